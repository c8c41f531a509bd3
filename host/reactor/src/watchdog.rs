//! The watchdog: says which reactor does not turn.
//!
//! A reactor measures its own turns and warns of a long one afterwards. A turn
//! that does not end cannot do that; so one thread looks at all reactors now and
//! then and names the one that is awake but has not turned. It only reports.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::directory::Directory;

/// A turn longer than this is reported, unless the options say otherwise.
pub(crate) const DEFAULT_THRESHOLD: Duration = Duration::from_millis(100);

/// Whether a reactor's long turns are reported, at most one in [`REPORT_INTERVAL_NS`].
pub(crate) struct LongTurns {
    threshold_ns: u64,
    last_report_ns: Cell<Option<u64>>,
    unreported: Cell<u64>,
}

impl LongTurns {
    pub(crate) fn new(threshold: Duration) -> Self {
        Self {
            threshold_ns: u64::try_from(threshold.as_nanos()).unwrap_or(u64::MAX),
            last_report_ns: Cell::new(None),
            unreported: Cell::new(0),
        }
    }

    #[inline(always)]
    pub(crate) fn threshold_ns(&self) -> u64 {
        self.threshold_ns
    }

    /// Counts a long turn. `Some`: report it, and how many were not reported before it.
    pub(crate) fn should_report(&self, now_ns: u64) -> Option<u64> {
        let is_early = self.last_report_ns.get().is_some_and(|last| now_ns - last < REPORT_INTERVAL_NS);
        if is_early {
            self.unreported.set(self.unreported.get() + 1);
            return None;
        }
        self.last_report_ns.set(Some(now_ns));
        Some(self.unreported.replace(0))
    }
}

/// What one look at a reactor shows.
#[derive(Clone, Copy, Debug)]
struct Look {
    turns: u64,
    is_sleeping: bool,
}

/// What the watchdog remembers of one reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// It turns, or it sleeps.
    Moving { turns: u64 },
    /// It has been awake at the same turn since then.
    Suspect { turns: u64, since: Duration },
    /// As above, and it was reported.
    Reported { turns: u64 },
}

impl Watch {
    /// The next state, and for how long the turn has lasted if it is to be reported now.
    fn next(self, look: Look, now: Duration, threshold: Duration) -> (Self, Option<Duration>) {
        let (Self::Moving { turns } | Self::Suspect { turns, .. } | Self::Reported { turns }) = self;
        if look.is_sleeping || look.turns != turns {
            return (Self::Moving { turns: look.turns }, None);
        }
        match self {
            Self::Moving { turns } => (Self::Suspect { turns, since: now }, None),
            Self::Suspect { turns, since } if now - since >= threshold => {
                (Self::Reported { turns }, Some(now - since))
            }
            Self::Suspect { .. } | Self::Reported { .. } => (self, None),
        }
    }
}

/// The thread that looks at all reactors.
pub(crate) struct Watchdog {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn start(
        directory: Directory,
        threshold: Duration,
        affinity: Option<CpuSet>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("tenon-watchdog".to_owned()).spawn(move || {
            if let Some(affinity) = affinity {
                // It inherits its creator's cores; failing, it watches from there.
                let _ = sched_setaffinity(None, &affinity);
            }
            watch(&directory, threshold, &stopped);
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    pub(crate) fn stop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // It only reads counters and logs: if that panicked, there is nothing to undo.
            let _ = thread.join();
        }
    }
}

fn watch(directory: &Directory, threshold: Duration, stop: &(Mutex<bool>, Condvar)) {
    let start = Instant::now();
    let interval = threshold.max(SHORTEST_INTERVAL);
    let mut watches = vec![Watch::Moving { turns: u64::MAX }; directory.all().len()];
    let mut is_stopped = stop.0.lock();
    while !*is_stopped {
        for (watch, reactor) in watches.iter_mut().zip(directory.all()) {
            let published = &reactor.shared().published;
            let look = Look {
                turns: published.turns.load(Ordering::Relaxed),
                is_sleeping: published.is_sleeping.load(Ordering::Relaxed)
                    || reactor.shared().is_stopped.load(Ordering::Relaxed),
            };
            let (next, stuck) = watch.next(look, start.elapsed(), threshold);
            *watch = next;
            if let Some(lasting) = stuck {
                let lasting_ms = lasting.as_millis();
                log::warn!("reactor turn does not end reactor={} lasting_ms={lasting_ms}", reactor.name());
            }
        }
        stop.1.wait_for(&mut is_stopped, interval);
    }
}

const REPORT_INTERVAL_NS: u64 = 10_000_000_000;
/// A threshold below this does not make the watchdog itself a load.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    const THRESHOLD: Duration = Duration::from_millis(100);

    #[track_caller]
    fn check(looks: &[(u64, u64, bool)], reports: &[u64]) {
        let mut watch = Watch::Moving { turns: u64::MAX };
        let mut reported = Vec::new();
        for &(at_ms, turns, is_sleeping) in looks {
            let (next, stuck) =
                watch.next(Look { turns, is_sleeping }, Duration::from_millis(at_ms), THRESHOLD);
            watch = next;
            reported.extend(stuck.map(|_| at_ms));
        }
        assert_eq!(reported, reports);
    }

    #[test]
    fn a_turn_that_does_not_end_is_reported_once() {
        check(&[(0, 5, false), (100, 5, false), (150, 5, false), (200, 5, false), (300, 5, false)], &[200]);
    }

    #[test]
    fn a_reactor_that_turns_or_sleeps_is_not_reported() {
        check(&[(0, 1, false), (100, 2, false), (200, 3, false), (300, 4, false)], &[]);
        check(&[(0, 1, true), (100, 1, true), (200, 1, true), (300, 1, true)], &[]);
    }

    #[test]
    fn a_second_stuck_turn_is_reported_again() {
        check(
            &[
                (0, 1, false),
                (100, 1, false),
                (200, 1, false),
                (300, 2, false),
                (400, 2, false),
                (500, 2, false),
            ],
            &[200, 500],
        );
    }

    #[test]
    fn long_turns_are_reported_once_in_the_interval_with_a_count_of_the_rest() {
        let turns = LongTurns::new(THRESHOLD);
        assert_eq!(turns.should_report(0), Some(0));
        assert_eq!(turns.should_report(1), None);
        assert_eq!(turns.should_report(REPORT_INTERVAL_NS - 1), None);
        assert_eq!(turns.should_report(REPORT_INTERVAL_NS), Some(2));
        assert_eq!(turns.should_report(2 * REPORT_INTERVAL_NS), Some(0));
    }
}
