//! When a reactor sleeps, how, and for how long.
//!
//! ```text
//!   Awake ──idle for `spin`, nothing forbids──► Announced ──queue empty, hooks agree──► Asleep
//!     ▲  ◄──────────── a message, or a hook says no ──┘                                   │
//!     └──────────────── a descriptor, a message (see `wake`) or the next deadline ────────┘
//! ```
//!
//! A sleep costs the next event some microseconds, spinning costs a core; so a
//! data reactor spins for a short while after the last work. Also decides how
//! often an awake reactor looks at its descriptors. What a turn does is in
//! `reactor`.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::reactor::Core;
use crate::stats;

/// When a reactor spins and when it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Spin while there is work and for a short while after, then sleep.
    Adaptive,
    /// Never sleep: lowest latency for a whole core.
    Poll,
    /// Never spin: sleep as soon as there is nothing to do. The control reactor's mode.
    Sleep,
}

/// How long an adaptive reactor goes on looking for work after the last.
pub const DEFAULT_SPIN: Duration = Duration::from_micros(40);
/// How often a [`Pure`](crate::PollerKind::Pure) poller of every turn runs on a reactor that
/// never spins.
pub const SLEEP_MODE_PURE_PERIOD: Duration = Duration::from_millis(1);

/// A reactor's memory of when it last had work.
pub(crate) struct Rest {
    spin_ns: u64,
    last_busy_ns: Cell<u64>,
    last_fd_check_ns: Cell<u64>,
}

impl Rest {
    pub(crate) fn new(spin: Duration, now_ns: u64) -> Self {
        Self {
            spin_ns: u64::try_from(spin.as_nanos()).unwrap_or(u64::MAX),
            last_busy_ns: Cell::new(now_ns),
            last_fd_check_ns: Cell::new(now_ns),
        }
    }
}

impl Core {
    /// After a turn was accounted: sleeps if it may, else looks at descriptors if it is time.
    pub(crate) fn rest_after(&self, busy: bool) {
        if self.is_stopping() {
            return;
        }
        let now_ns = self.now_ns();
        if busy {
            self.rest.last_busy_ns.set(now_ns);
        } else if self.has_spun_enough(now_ns)
            && let Some(until_ns) = self.prepare_sleep()
        {
            self.sleep_until(until_ns);
            return;
        }
        let has_pollers = self.pollers.every_turn_count() > 0;
        if self.fds.count() > 0 {
            let since_check_ns = now_ns - self.rest.last_fd_check_ns.get();
            // Without pollers there is nothing better to do than to look.
            if !has_pollers || since_check_ns >= FD_CHECK_INTERVAL_NS {
                self.rest.last_fd_check_ns.set(now_ns);
                self.fds.wait(Some(0));
            }
        } else if !has_pollers {
            std::hint::spin_loop();
        }
    }

    /// Tells senders that this reactor is about to sleep and returns until when it may, or tells
    /// them that it is awake again and returns `None`.
    ///
    /// Everything that could give it work is looked at after the announcement: whoever adds work
    /// later sees it and wakes the reactor.
    pub(crate) fn prepare_sleep(&self) -> Option<u64> {
        let pure_period_ns = match self.mode.get() {
            Mode::Poll => return None,
            Mode::Adaptive => 0,
            Mode::Sleep => SLEEP_MODE_PURE_PERIOD.as_nanos() as u64,
        };
        if self.pollers.pure_count() > 0 && pure_period_ns == 0 {
            return None;
        }
        self.shared.sleep.announce();
        if self.shared.queue.has_message() || !self.pollers.allow_sleep() || self.has_chores() {
            self.shared.sleep.retract();
            return None;
        }
        // The hooks may have registered something, so this comes last.
        let now_ns = self.clock.read().1;
        let until_ns = match (self.pollers.pure_count() > 0, pure_period_ns) {
            (false, _) => self.next_deadline_ns(),
            (true, 0) => now_ns,
            (true, period_ns) => self.next_deadline_ns().min(now_ns + period_ns),
        };
        if until_ns <= now_ns {
            self.shared.sleep.retract();
            return None;
        }
        Some(until_ns)
    }

    /// Ends what [`Self::prepare_sleep`] began; the time since the last turn was spent asleep.
    pub(crate) fn end_sleep(&self) {
        self.shared.sleep.retract();
        let published = &self.shared.published;
        published.is_sleeping.store(false, Ordering::Relaxed);
        stats::add(&published.sleep_ticks, self.advance_now().0);
        stats::add(&published.sleeps, 1);
    }

    fn sleep_until(&self, until_ns: u64) {
        self.shared.published.is_sleeping.store(true, Ordering::Relaxed);
        let timeout_ns = (until_ns != u64::MAX).then(|| until_ns.saturating_sub(self.clock.read().1));
        self.fds.wait(timeout_ns);
        self.end_sleep();
        self.rest.last_fd_check_ns.set(self.now_ns());
    }

    fn has_spun_enough(&self, now_ns: u64) -> bool {
        match self.mode.get() {
            Mode::Poll => false,
            Mode::Sleep => true,
            Mode::Adaptive => now_ns - self.rest.last_busy_ns.get() >= self.rest.spin_ns,
        }
    }
}

/// How long an awake reactor with pollers lets its descriptors wait: a look costs some 300 ns.
const FD_CHECK_INTERVAL_NS: u64 = 5_000;
