//! Rate limits: a budget per device that all reactors draw on, and I/O that waits for it.
//!
//! Each limit is a meter: the time until which what was let through pays for itself. A request passes
//! when that time has come and moves it on by its own cost, so a large one is let through and
//! then paid off; unused time is kept for [`BURST_NS`]. A meter is one atomic word, drawn on only
//! where a limit is set. What does not pass waits, reads apart from writes, each first in first out, and
//! is looked at again when its meter says, at least every [`SLICE_NS`].
//!
//! # Safety
//! Every unsafe function takes a live channel of the calling reactor.
// UNSAFETY: works on the calling reactor's channels through raw pointers.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenon_abi::{BdevIo, IoState, Op};
use tenon_reactor::{current, now_ns};

use super::broadcast::assert_control;
use super::channel::{Consumer, ModuleChannel};
use super::check::Verdict;
use super::gate::Gate;
use super::{service, submit};

/// Limits of a device; 0 is none. A megabyte has 1,048,576 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QosLimits {
    /// Reads and writes per second; rounded up to a multiple of [`QOS_MIN_IOS_PER_SEC`].
    pub rw_ios_per_sec: u64,
    /// Megabytes read and written per second.
    pub rw_mbytes_per_sec: u64,
    /// Megabytes read per second.
    pub r_mbytes_per_sec: u64,
    /// Megabytes written per second.
    pub w_mbytes_per_sec: u64,
}

impl QosLimits {
    /// Whether anything is limited.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        *self != QosLimits::default()
    }
}

/// The limits of a gate and the budget they make.
#[derive(Debug, Default)]
pub(super) struct Qos {
    limits: QosLimits,
    budget: Option<Arc<Budget>>,
}

impl Qos {
    pub(super) fn budget(&self) -> Option<Arc<Budget>> {
        self.budget.clone()
    }
}

/// The meters of one device.
#[derive(Debug)]
pub(super) struct Budget {
    rw_ios: Option<Meter>,
    rw_bytes: Option<Meter>,
    /// Of reads and of writes.
    bytes: [Option<Meter>; 2],
}

impl Budget {
    fn new(limits: &QosLimits) -> Self {
        let megabytes = |rate: u64| Meter::new(rate.saturating_mul(BYTES_PER_MEGABYTE));
        Self {
            rw_ios: Meter::new(limits.rw_ios_per_sec),
            rw_bytes: megabytes(limits.rw_mbytes_per_sec),
            bytes: [megabytes(limits.r_mbytes_per_sec), megabytes(limits.w_mbytes_per_sec)],
        }
    }

    fn meters(&self, class: usize) -> impl Iterator<Item = &Meter> {
        [&self.rw_ios, &self.rw_bytes, &self.bytes[class]].into_iter().flatten()
    }

    /// When a request of `class` may pass, in nanoseconds; not later than now: at once.
    fn ready_at_ns(&self, class: usize) -> u64 {
        self.meters(class).map(Meter::ready_at_ns).max().unwrap_or(0)
    }

    /// Lets a request through if it may pass now. Reactors that look at the same moment may all pass:
    /// each pays, so the rate holds.
    fn draw(&self, class: usize, bytes: u64, now_ns: u64) -> bool {
        if self.ready_at_ns(class) > now_ns {
            return false;
        }
        if let Some(meter) = &self.rw_ios {
            meter.pay(1, now_ns);
        }
        if let Some(meter) = &self.rw_bytes {
            meter.pay(bytes, now_ns);
        }
        if let Some(meter) = &self.bytes[class] {
            meter.pay(bytes, now_ns);
        }
        true
    }
}

/// One limit: when what was let through is paid for.
#[derive(Debug)]
struct Meter {
    /// In units of 2^-[`FRACTION_BITS`] ns, so that a small cost is not rounded away.
    paid_until: AtomicU64,
    /// Cost of one unit, in 2^-32 ns.
    cost: u64,
}

impl Meter {
    /// `None` for no limit.
    fn new(rate_per_sec: u64) -> Option<Self> {
        let cost = (u128::from(NS_PER_SEC) << 32).checked_div(u128::from(rate_per_sec))?;
        Some(Self { paid_until: AtomicU64::new(0), cost: cost.min(u128::from(u64::MAX)) as u64 })
    }

    fn ready_at_ns(&self) -> u64 {
        self.paid_until.load(Ordering::Relaxed) >> FRACTION_BITS
    }

    fn pay(&self, units: u64, now_ns: u64) {
        let cost = (u128::from(units) * u128::from(self.cost)) >> (32 - FRACTION_BITS);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX >> 1);
        let earliest = now_ns.saturating_sub(BURST_NS) << FRACTION_BITS;
        // Relaxed: the word stands for itself. The closure always gives a value, so this cannot fail.
        let _ = self.paid_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| {
            Some(until.max(earliest).saturating_add(cost))
        });
    }
}

/// What is limited: 0 for reads, 1 for writes.
fn class(op: Op) -> Option<usize> {
    match op {
        Op::READ | Op::COMPARE => Some(0),
        Op::WRITE | Op::COMPARE_AND_WRITE | Op::ZONE_APPEND | Op::NVME_IO => Some(1),
        _ => None,
    }
}

impl Gate {
    /// Sets the rate limits; `done` runs on the control reactor when every reactor obeys. I/O that
    /// waited for a limit that is gone goes on.
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn set_qos(self: &Arc<Self>, limits: QosLimits, done: impl FnOnce() + 'static) {
        assert_control();
        let rounded = limits.rw_ios_per_sec.checked_next_multiple_of(QOS_MIN_IOS_PER_SEC);
        let limits = QosLimits { rw_ios_per_sec: rounded.unwrap_or(u64::MAX), ..limits };
        {
            let mut qos = self.qos.lock();
            qos.limits = limits;
            qos.budget = limits.is_limited().then(|| Arc::new(Budget::new(&limits)));
        }
        self.refresh_everywhere(done);
    }

    /// The limits that are set, as rounded.
    #[must_use]
    pub fn qos(&self) -> QosLimits {
        self.qos.lock().limits
    }
}

/// Passes a checked request on if the limits allow it, else queues it.
///
/// # Safety
/// `c` is live and its gate is not closed; `io` is owned by the gate and `verdict` was just given to it.
pub(super) unsafe fn admit(c: *mut Consumer, io: *mut BdevIo, verdict: Verdict) {
    // SAFETY: as promised by the caller.
    unsafe {
        let m = (*c).module;
        if let (Some(budget), Some(class)) = (&(*m).budget, class((*io).op)) {
            let bytes = (*io).num_blocks.saturating_mul((*c).stride);
            if !(*m).limited[class].is_empty() || !budget.draw(class, bytes, now_ns()) {
                (*io).state = IoState::SUBMITTED;
                (*m).limited[class].push_back(io);
                (*m).queue_changed();
                return arm(m);
            }
        }
        submit::dispatch(c, io, verdict);
    }
}

/// Passes on what waited for the limits, as far as they allow, reads and writes in turn.
///
/// # Safety
/// `m` is a live channel of the calling reactor.
pub(super) unsafe fn drain(m: *mut ModuleChannel) {
    // SAFETY: as promised; a channel is freed in a turn of its own only.
    unsafe {
        let now = now_ns();
        let mut left = (*m).limited[0].len() + (*m).limited[1].len();
        let mut is_stuck = [false; 2];
        while left > 0 && is_stuck != [true; 2] && !(*m).is_closed() {
            for (class, is_stuck) in is_stuck.iter_mut().enumerate() {
                *is_stuck = *is_stuck || !pass_one(m, class, now);
            }
            left -= 1;
        }
        let is_waiting = (*m).limited.iter().any(|queue| !queue.is_empty());
        if is_waiting && !(*m).is_closed() {
            arm(m);
        }
    }
}

/// Passes the oldest request of a class on; false if there is none or it must wait.
unsafe fn pass_one(m: *mut ModuleChannel, class: usize, now: u64) -> bool {
    // SAFETY: as in `drain`; what the queue holds is valid, and its `ch` a live consumer's.
    unsafe {
        let io = (*m).limited[class].front();
        if io.is_null() || (*m).is_closed() {
            return false;
        }
        let c = (*io).ch.cast::<Consumer>();
        let bytes = (*io).num_blocks.saturating_mul((*c).stride);
        if let Some(budget) = &(*m).budget
            && !budget.draw(class, bytes, now)
        {
            return false;
        }
        (*m).limited[class].pop_front();
        (*m).queue_changed();
        match super::check::check(c, io) {
            Verdict::Fail(status) => submit::finish(io, status),
            verdict @ (Verdict::Plain | Verdict::Split(_) | Verdict::Exclusive | Verdict::Reset) => {
                submit::dispatch(c, io, verdict);
            }
        }
        true
    }
}

/// Sets the timer that looks at the queues again.
unsafe fn arm(m: *mut ModuleChannel) {
    // SAFETY: the caller's channel is live; the timer is cancelled before it is freed.
    unsafe {
        if (*m).budget_timer.is_some() {
            return;
        }
        let now = now_ns();
        let ready = |class: usize| match (&(*m).budget, (*m).limited[class].is_empty()) {
            (_, true) => u64::MAX,
            (None, false) => now,
            (Some(budget), false) => budget.ready_at_ns(class),
        };
        let deadline = ready(0).min(ready(1)).clamp(now + SLICE_MIN_NS, now + SLICE_NS);
        match current().set_timer_raw(deadline, timer_fired, m.cast()) {
            Ok(timer) => (*m).budget_timer = Some(timer),
            // No timer is left: the poller looks on every turn.
            Err(_) => service::kick(m),
        }
    }
}

unsafe extern "C" fn timer_fired(m: *mut c_void) {
    let m = m.cast::<ModuleChannel>();
    // SAFETY: the timer is cancelled before the channel is freed.
    unsafe {
        (*m).budget_timer = None;
        if !(*m).is_closed() {
            service::run(m);
        }
    }
}

/// Least limit of requests, and what limits of requests are multiples of.
pub const QOS_MIN_IOS_PER_SEC: u64 = 1000;
const BYTES_PER_MEGABYTE: u64 = 1024 * 1024;
const NS_PER_SEC: u64 = 1_000_000_000;
/// Longest and shortest time until a waiting request is looked at again.
const SLICE_NS: u64 = 1_000_000;
const SLICE_MIN_NS: u64 = 20_000;
/// Unused time that may be made up for. Longer than a slice, so that a timer that fires late costs no rate.
const BURST_NS: u64 = 4 * SLICE_NS;
const FRACTION_BITS: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws as often as it can at `step_ns` for a second; returns requests let through.
    fn in_a_second(budget: &Budget, class: usize, bytes: u64, step_ns: u64) -> u64 {
        let start = 10 * NS_PER_SEC;
        let mut passed = 0;
        let mut now = start;
        while now < start + NS_PER_SEC {
            while budget.draw(class, bytes, now) {
                passed += 1;
            }
            now += step_ns;
        }
        passed
    }

    #[track_caller]
    fn check(limits: QosLimits, class: usize, bytes: u64, step_ns: u64, expected: u64) {
        let passed = in_a_second(&Budget::new(&limits), class, bytes, step_ns);
        let off = passed.abs_diff(expected) * 100;
        assert!(off <= expected * 2, "{passed} passed, {expected} wanted: {limits:?} every {step_ns} ns");
    }

    #[test]
    fn a_rate_is_met_within_two_percent_whatever_the_time_between_looks() {
        for step_ns in [10_000, 333_333, 1_000_000, 3_000_000] {
            let limits = QosLimits { rw_ios_per_sec: 5_000, ..QosLimits::default() };
            check(limits, 0, 4096, step_ns, 5_000);
            let limits = QosLimits { w_mbytes_per_sec: 100, ..QosLimits::default() };
            check(limits, 1, 4096, step_ns, 25_600);
            let limits = QosLimits { rw_mbytes_per_sec: 8_000, ..QosLimits::default() };
            check(limits, 0, 4096, step_ns, 2_048_000);
        }
    }

    #[test]
    fn a_request_larger_than_a_slice_is_let_through_and_paid_off() {
        let limits = QosLimits { r_mbytes_per_sec: 10, ..QosLimits::default() };
        let passed = in_a_second(&Budget::new(&limits), 0, BYTES_PER_MEGABYTE, 1_000_000);
        assert_eq!(passed, 11, "the first one, and one for each megabyte paid off");
    }

    #[test]
    fn a_limit_on_writes_lets_reads_pass() {
        let budget = Budget::new(&QosLimits { w_mbytes_per_sec: 1, ..QosLimits::default() });
        assert!(budget.draw(1, 1 << 30, NS_PER_SEC));
        assert!(!budget.draw(1, 512, NS_PER_SEC));
        assert!((0..1000).all(|_| budget.draw(0, 1 << 20, NS_PER_SEC)));
    }
}
