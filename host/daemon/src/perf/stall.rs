//! Whether a load still moves: a device that has I/O in flight and completes none
//! of it for too long hangs, and the load is given up. Only decides, by what it
//! is shown and the time it is told.

use std::time::{Duration, Instant};

use tenon_perf::InFlight;

/// Watches a load.
pub struct Stall {
    limit: Duration,
    /// Per worker: what it showed last, and since when it shows that.
    seen: Vec<(InFlight, Instant)>,
    is_stopping: bool,
    given_up: Option<Instant>,
}

/// How a load is.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It moves.
    Goes,
    /// It does not.
    Hangs,
    /// It was to report what it has, and does not do that either: what is to be said about it.
    Lost(String),
}

impl Stall {
    /// A load may do nothing for as long as `limit`.
    pub fn new(limit: Duration) -> Stall {
        Stall { limit, seen: Vec::new(), is_stopping: false, given_up: None }
    }

    /// The load is to end: nobody wants to wait for long any more.
    pub fn stop(&mut self) {
        self.is_stopping = true;
        self.limit = self.limit.min(STOP_LIMIT);
    }

    /// Whether it is to end.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    /// Takes what is in flight now.
    pub fn look(&mut self, in_flight: &[InFlight], now: Instant) -> Verdict {
        if let Some(since) = self.given_up {
            let is_late = now.saturating_duration_since(since) >= REPORT_LIMIT;
            return if is_late { Verdict::Lost(complaint(in_flight)) } else { Verdict::Goes };
        }
        // A worker that has reported is not among them any more; then all are looked at anew.
        let is_new = self.seen.len() != in_flight.len();
        self.seen.resize_with(in_flight.len(), || (in_flight[0].clone(), now));
        let mut hangs = false;
        for ((before, since), shown) in self.seen.iter_mut().zip(in_flight) {
            if is_new || before != shown || shown.outstanding == 0 {
                (*before, *since) = (shown.clone(), now);
            }
            hangs |= now.saturating_duration_since(*since) >= self.limit;
        }
        if !hangs {
            return Verdict::Goes;
        }
        self.given_up = Some(now);
        Verdict::Hangs
    }
}

fn complaint(in_flight: &[InFlight]) -> String {
    let lines: Vec<String> = in_flight
        .iter()
        .filter(|worker| worker.outstanding > 0)
        .map(|worker| format!("bdev {}: hangs with {} I/Os in flight", worker.bdev, worker.outstanding))
        .collect();
    lines.join("\n       ")
}

/// How long a load that is to stop may do nothing.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long reactors may take to say what they have.
const REPORT_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(completions: u32, outstanding: u32) -> InFlight {
        InFlight { bdev: "e0".into(), completions, outstanding }
    }

    #[track_caller]
    fn check(stall: &mut Stall, begin: Instant, looks: &[(u64, &[InFlight], Verdict)]) {
        for (seconds, shown, expected) in looks {
            assert_eq!(
                stall.look(shown, begin + Duration::from_secs(*seconds)),
                *expected,
                "after {seconds} s"
            );
        }
    }

    #[test]
    fn only_a_device_that_completes_nothing_of_what_it_has_hangs() {
        let begin = Instant::now();
        let mut stall = Stall::new(Duration::from_secs(10));
        let looks: &[(u64, &[InFlight], Verdict)] = &[
            (0, &[worker(1, 0), worker(1, 4)], Verdict::Goes),
            (9, &[worker(1, 0), worker(2, 4)], Verdict::Goes),
            (18, &[worker(1, 0), worker(2, 4)], Verdict::Goes),
            // The other one has reported: both were told apart by their place.
            (20, &[worker(2, 4)], Verdict::Goes),
            (29, &[worker(2, 4)], Verdict::Goes),
            (30, &[worker(2, 4)], Verdict::Hangs),
            (31, &[worker(2, 4)], Verdict::Goes),
            (32, &[worker(2, 4)], Verdict::Lost("bdev e0: hangs with 4 I/Os in flight".into())),
        ];
        check(&mut stall, begin, looks);
    }

    #[test]
    fn who_stops_a_load_does_not_wait_for_its_whole_limit() {
        let begin = Instant::now();
        let mut stall = Stall::new(Duration::from_secs(600));
        check(&mut stall, begin, &[(0, &[worker(1, 1)], Verdict::Goes), (4, &[worker(1, 1)], Verdict::Goes)]);
        stall.stop();
        check(&mut stall, begin, &[(5, &[worker(1, 1)], Verdict::Hangs)]);
    }
}
