//! How far a worker is: the passes of a workload one after the other, each
//! drained before the next begins.
//!
//! ```text
//!  Running(Check) ─► Draining ─► Running(Fill) ─► … Running(Load) ─► … Running(Recheck) ─► Draining ─► Finished
//!        └────────────── Leave (stopped, device removed) ──► Leaving ──► Finished
//! ```

/// What is done to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Reads what an earlier run left.
    Check,
    /// Writes every block once.
    Fill,
    /// The workload.
    Load,
    /// Reads all that was written.
    Recheck,
}

/// Where a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Submits I/O.
    Running(Pass),
    /// Waits for what it submitted.
    Draining(Pass),
    /// As `Draining`, but nothing comes after it.
    Leaving,
    /// Nothing is in flight, and nothing will be.
    Finished,
}

/// What happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StageEvent {
    /// The pass has nothing more to submit.
    Exhausted,
    /// Nothing is in flight any more.
    Drained,
    /// It is to stop whatever it does.
    Leave,
}

/// Which passes a workload has, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passes {
    pub checks: bool,
    pub fills: bool,
    pub loads: bool,
    pub rechecks: bool,
}

impl Passes {
    pub(crate) fn first(self) -> Stage {
        self.at_or_after(Pass::Check)
    }

    fn after(self, pass: Pass) -> Stage {
        match pass {
            Pass::Check => self.at_or_after(Pass::Fill),
            Pass::Fill => self.at_or_after(Pass::Load),
            Pass::Load => self.at_or_after(Pass::Recheck),
            Pass::Recheck => Stage::Finished,
        }
    }

    fn at_or_after(self, pass: Pass) -> Stage {
        let has = match pass {
            Pass::Check => self.checks,
            Pass::Fill => self.fills,
            Pass::Load => self.loads,
            Pass::Recheck => self.rechecks,
        };
        if has { Stage::Running(pass) } else { self.after(pass) }
    }
}

impl Stage {
    /// What comes after `event`.
    pub(crate) fn next(self, event: StageEvent, passes: Passes) -> Stage {
        use Stage::{Draining, Finished, Leaving, Running};
        use StageEvent::{Drained, Exhausted, Leave};
        match (self, event) {
            (Running(pass), Exhausted) => Draining(pass),
            (Draining(pass), Drained) => passes.after(pass),
            (Leaving, Drained) => Finished,
            (Running(_) | Draining(_), Leave) => Leaving,
            // Between two of its I/Os a running pass may have nothing in flight.
            (Running(_), Drained) => self,
            (Draining(_), Exhausted) | (Leaving, Exhausted | Leave) => self,
            (Finished, Exhausted | Drained | Leave) => Finished,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Passes = Passes { checks: true, fills: true, loads: true, rechecks: true };

    fn run(passes: Passes) -> Vec<Pass> {
        let mut stage = passes.first();
        let mut seen = Vec::new();
        while let Stage::Running(pass) = stage {
            seen.push(pass);
            stage = stage.next(StageEvent::Exhausted, passes).next(StageEvent::Drained, passes);
        }
        assert_eq!(stage, Stage::Finished);
        seen
    }

    #[test]
    fn passes_follow_in_order_and_those_not_wanted_are_left_out() {
        assert_eq!(run(ALL), [Pass::Check, Pass::Fill, Pass::Load, Pass::Recheck]);
        let plain = Passes { checks: false, fills: false, loads: true, rechecks: false };
        assert_eq!(run(plain), [Pass::Load]);
        assert_eq!(run(Passes { checks: true, loads: false, ..plain }), [Pass::Check]);
    }

    #[test]
    fn leaving_drains_and_skips_the_rest() {
        for stage in [Stage::Running(Pass::Load), Stage::Draining(Pass::Check)] {
            let leaving = stage.next(StageEvent::Leave, ALL);
            assert_eq!(leaving, Stage::Leaving);
            assert_eq!(leaving.next(StageEvent::Drained, ALL), Stage::Finished);
        }
    }

    #[test]
    fn repeated_events_change_nothing() {
        assert_eq!(Stage::Leaving.next(StageEvent::Leave, ALL), Stage::Leaving);
        assert_eq!(Stage::Finished.next(StageEvent::Leave, ALL), Stage::Finished);
        assert_eq!(Stage::Running(Pass::Fill).next(StageEvent::Drained, ALL), Stage::Running(Pass::Fill));
    }
}
