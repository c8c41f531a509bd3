//! Fault plans: what a [`crate::TestBase`] does wrong, and when. Counts start
//! at 1 with the first I/O after the plan was set; chances follow from the
//! fake host's seed.

use std::ops::Range;

use tenon_abi::{IoStatus, Op};

use crate::rng::Rng;

/// What a test base does to the I/O it gets.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    fail_nth: Vec<(u64, IoStatus)>,
    fail_permille: Option<(u32, IoStatus)>,
    fail_op: Vec<(Op, IoStatus)>,
    fail_range: Vec<(Range<u64>, IoStatus)>,
    nomem_bursts: Vec<(u64, u64)>,
    nomem_permille: u32,
    delay_ns: Option<(u64, u64)>,
    reorder: u64,
    remove_at: Option<u64>,
    resize_at: Vec<(u64, u64)>,
    corrupt_nth: Vec<u64>,
}

/// What is to happen to one I/O.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) status: Option<IoStatus>,
    pub(crate) delay_ns: u64,
    pub(crate) is_corrupt: bool,
    pub(crate) removes: bool,
    pub(crate) resizes_to: Option<u64>,
}

impl FaultPlan {
    /// Nothing goes wrong.
    #[must_use]
    pub fn none() -> FaultPlan {
        FaultPlan::default()
    }

    /// The `nth` I/O fails with `status`.
    #[must_use]
    pub fn fail_nth(mut self, nth: u64, status: IoStatus) -> Self {
        self.fail_nth.push((nth, status));
        self
    }

    /// So many of 1000 I/Os fail with `status`.
    #[must_use]
    pub fn fail_permille(mut self, permille: u32, status: IoStatus) -> Self {
        self.fail_permille = Some((permille, status));
        self
    }

    /// Every `op` fails with `status`.
    #[must_use]
    pub fn fail_op(mut self, op: Op, status: IoStatus) -> Self {
        self.fail_op.push((op, status));
        self
    }

    /// Every I/O that touches `blocks` fails with `status`.
    #[must_use]
    pub fn fail_range(mut self, blocks: Range<u64>, status: IoStatus) -> Self {
        self.fail_range.push((blocks, status));
        self
    }

    /// From the `nth` I/O on, `count` I/Os are answered NOMEM.
    #[must_use]
    pub fn nomem_burst(mut self, nth: u64, count: u64) -> Self {
        self.nomem_bursts.push((nth, count));
        self
    }

    /// So many of 1000 I/Os are answered NOMEM.
    #[must_use]
    pub fn nomem_permille(mut self, permille: u32) -> Self {
        self.nomem_permille = permille;
        self
    }

    /// Every I/O takes between `min` and `max` nanoseconds.
    #[must_use]
    pub fn delay_ns(mut self, min: u64, max: u64) -> Self {
        self.delay_ns = Some((min, max));
        self
    }

    /// Completions overtake one another within about `window` I/Os.
    #[must_use]
    pub fn reorder(mut self, window: u64) -> Self {
        self.reorder = window;
        self
    }

    /// The device is hot-removed when the `nth` I/O arrives.
    #[must_use]
    pub fn remove_at(mut self, nth: u64) -> Self {
        self.remove_at = Some(nth);
        self
    }

    /// The device gets `blocks` blocks when the `nth` I/O arrives.
    #[must_use]
    pub fn resize_at(mut self, nth: u64, blocks: u64) -> Self {
        self.resize_at.push((nth, blocks));
        self
    }

    /// The `nth` I/O, if a READ, gives wrong data; if a WRITE, stores wrong data.
    #[must_use]
    pub fn corrupt_nth(mut self, nth: u64) -> Self {
        self.corrupt_nth.push(nth);
        self
    }

    pub(crate) fn judge(&self, nth: u64, op: Op, blocks: &Range<u64>, rng: &Rng) -> Verdict {
        let found = |(_, status): &(_, IoStatus)| *status;
        let by_count = self.fail_nth.iter().find(|(at, _)| *at == nth).map(found);
        let by_op = self.fail_op.iter().find(|(failing, _)| *failing == op).map(|(_, status)| *status);
        let overlaps = |range: &Range<u64>| range.start < blocks.end && blocks.start < range.end;
        let by_range = self.fail_range.iter().find(|(range, _)| overlaps(range)).map(|(_, status)| *status);
        let in_burst = self.nomem_bursts.iter().any(|(at, count)| (*at..at + count).contains(&nth));
        let is_starved = in_burst || rng.chance(self.nomem_permille);
        let by_chance =
            self.fail_permille.filter(|(permille, _)| rng.chance(*permille)).map(|(_, status)| status);
        let nomem = is_starved.then_some(IoStatus::NOMEM);
        let (min, max) = self.delay_ns.unwrap_or((0, 0));
        Verdict {
            status: nomem.or(by_count).or(by_op).or(by_range).or(by_chance),
            delay_ns: rng.between(min, max) + rng.below(self.reorder) * REORDER_STEP_NS,
            is_corrupt: self.corrupt_nth.contains(&nth),
            removes: self.remove_at == Some(nth),
            resizes_to: self.resize_at.iter().find(|(at, _)| *at == nth).map(|(_, blocks)| *blocks),
        }
    }
}

const REORDER_STEP_NS: u64 = 1_000;

#[cfg(test)]
mod tests {
    use tenon_abi::{IoStatus, Op};

    use super::FaultPlan;
    use crate::rng::Rng;

    #[test]
    fn a_burst_starves_exactly_its_ios() {
        let (plan, rng) = (FaultPlan::none().nomem_burst(3, 2), Rng::new(0));
        let starved: Vec<u64> = (1..8)
            .filter(|nth| plan.judge(*nth, Op::READ, &(0..1), &rng).status == Some(IoStatus::NOMEM))
            .collect();
        assert_eq!(starved, [3, 4]);
    }

    #[test]
    fn only_ios_that_touch_the_range_fail() {
        let (plan, rng) = (FaultPlan::none().fail_range(10..12, IoStatus::IO_ERROR), Rng::new(0));
        let fails = |blocks: std::ops::Range<u64>| plan.judge(1, Op::WRITE, &blocks, &rng).status.is_some();
        assert!(fails(8..11) && fails(11..12) && fails(0..100));
        assert!(!fails(8..10) && !fails(12..13));
    }
}
