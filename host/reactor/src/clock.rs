//! Time: a monotonic clock in nanoseconds, and a faster counter in ticks.
//!
//! The real clock reads the processor's time-stamp counter, calibrated once
//! against `CLOCK_MONOTONIC`, where that counter is invariant; elsewhere it is
//! `CLOCK_MONOTONIC` itself. The virtual clock moves only when a simulation says
//! so. Reactors cache what they read here once per turn; see `reactor`.
// UNSAFETY: reads the time-stamp counter; dereferences the thread's virtual clock.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::OnceLock;

use rustix::time::{ClockId, clock_gettime};

/// A precise reading of the fast counter; virtual nanoseconds on a simulation's thread.
#[inline]
pub fn ticks() -> u64 {
    match virtual_now() {
        Some(now) => now,
        None => TimeScale::get().ticks(),
    }
}

/// How many [`ticks`] a second has.
pub fn ticks_hz() -> u64 {
    if in_simulation() { NS_PER_S } else { TimeScale::get().ticks_hz }
}

/// Precise monotonic nanoseconds, real or virtual as the calling thread is; [`now_ns`](crate::now_ns) is as of the turn.
pub fn precise_now_ns() -> u64 {
    match virtual_now() {
        Some(now) => now,
        None => {
            let scale = TimeScale::get();
            scale.ns_at(scale.ticks())
        }
    }
}

/// The clock of one reactor.
#[derive(Clone)]
pub(crate) enum Clock {
    Real(TimeScale),
    Virtual(Rc<VirtualClock>),
}

impl Clock {
    pub(crate) fn real() -> Self {
        Self::Real(*TimeScale::get())
    }

    /// Ticks and nanoseconds of the same moment.
    #[inline]
    pub(crate) fn read(&self) -> (u64, u64) {
        match self {
            Self::Real(scale) => {
                let ticks = scale.ticks();
                (ticks, scale.ns_at(ticks))
            }
            Self::Virtual(clock) => (clock.now(), clock.now()),
        }
    }
}

/// How ticks become nanoseconds: `base_ns + (ticks - base_ticks) * ns_per_tick / 2^32`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeScale {
    source: TickSource,
    base_ticks: u64,
    base_ns: u64,
    ns_per_tick: u64,
    ticks_hz: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TickSource {
    /// The processor's counter; constructed only where it is known to be invariant.
    TimeStampCounter,
    MonotonicClock,
}

impl TimeScale {
    /// The process's scale; the first caller calibrates, which takes [`CALIBRATION_NS`].
    pub(crate) fn get() -> &'static Self {
        static SCALE: OnceLock<TimeScale> = OnceLock::new();
        SCALE.get_or_init(|| if counter_is_invariant() { Self::calibrate() } else { Self::monotonic() })
    }

    #[inline(always)]
    fn ticks(&self) -> u64 {
        match self.source {
            TickSource::TimeStampCounter => read_counter(),
            TickSource::MonotonicClock => monotonic_ns(),
        }
    }

    #[inline(always)]
    fn ns_at(&self, ticks: u64) -> u64 {
        // A core whose counter is a few ticks behind the calibrating one must not underflow.
        let elapsed = ticks.saturating_sub(self.base_ticks);
        self.base_ns + ((u128::from(elapsed) * u128::from(self.ns_per_tick)) >> 32) as u64
    }

    fn monotonic() -> Self {
        Self {
            source: TickSource::MonotonicClock,
            base_ticks: 0,
            base_ns: 0,
            ns_per_tick: 1 << 32,
            ticks_hz: NS_PER_S,
        }
    }

    fn calibrate() -> Self {
        let (first_ticks, first_ns) = paired_reading();
        while monotonic_ns() < first_ns + CALIBRATION_NS {
            std::hint::spin_loop();
        }
        let (last_ticks, last_ns) = paired_reading();
        let (ticks, ns) = (last_ticks.saturating_sub(first_ticks), last_ns - first_ns);
        if ticks == 0 {
            return Self::monotonic();
        }
        Self {
            source: TickSource::TimeStampCounter,
            base_ticks: last_ticks,
            base_ns: last_ns,
            ns_per_tick: ((u128::from(ns) << 32) / u128::from(ticks)) as u64,
            ticks_hz: (u128::from(ticks) * u128::from(NS_PER_S) / u128::from(ns)) as u64,
        }
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub(crate) struct VirtualClock {
    now_ns: Cell<u64>,
}

impl VirtualClock {
    /// Starts at [`VIRTUAL_START_NS`], so that "a while ago" is still a time.
    pub(crate) fn new() -> Self {
        Self { now_ns: Cell::new(VIRTUAL_START_NS) }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now_ns.get()
    }

    /// Moves to `ns`, never backwards.
    pub(crate) fn move_to(&self, ns: u64) {
        self.now_ns.set(self.now_ns.get().max(ns));
    }
}

/// Makes `clock` the time of the calling thread until the guard is dropped.
pub(crate) fn install_virtual(clock: Rc<VirtualClock>) -> VirtualGuard {
    assert!(!in_simulation(), "a simulation already runs on this thread");
    VIRTUAL.set(Rc::as_ptr(&clock));
    VirtualGuard { _clock: clock }
}

/// Keeps a virtual clock installed, and alive as long as it is.
pub(crate) struct VirtualGuard {
    _clock: Rc<VirtualClock>,
}

impl Drop for VirtualGuard {
    fn drop(&mut self) {
        VIRTUAL.set(std::ptr::null());
    }
}

/// Whether a simulation runs on the calling thread.
pub(crate) fn in_simulation() -> bool {
    !VIRTUAL.get().is_null()
}

/// The clock of the simulation that runs on the calling thread.
pub(crate) fn virtual_clock() -> Option<Rc<VirtualClock>> {
    let clock = VIRTUAL.get();
    if clock.is_null() {
        return None;
    }
    // SAFETY: the pointer came from the `Rc` that the thread's `VirtualGuard` keeps alive; the
    // count is raised for the `Rc` that is made of it.
    unsafe {
        Rc::increment_strong_count(clock);
        Some(Rc::from_raw(clock))
    }
}

#[inline]
fn virtual_now() -> Option<u64> {
    // SAFETY: the pointer is null or of the clock that the thread's `VirtualGuard` keeps alive;
    // the guard clears it before the clock can go.
    unsafe { VIRTUAL.get().as_ref() }.map(VirtualClock::now)
}

fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * NS_PER_S + time.tv_nsec as u64
}

/// The counter and the clock as of one moment: the tightest of several tries.
fn paired_reading() -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..PAIRING_TRIES {
        let before = read_counter();
        let ns = monotonic_ns();
        let width = read_counter().saturating_sub(before);
        if width < best.0 {
            best = (width, before + width / 2, ns);
        }
    }
    (best.1, best.2)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn read_counter() -> u64 {
    // SAFETY: every x86_64 processor has the instruction, and Linux lets programs use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn read_counter() -> u64 {
    monotonic_ns()
}

/// Whether the counter runs at one rate on all cores, by the processor's and the kernel's word.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn counter_is_invariant() -> bool {
    const POWER_MANAGEMENT_LEAF: u32 = 0x8000_0007;
    const INVARIANT_TSC_EDX: u32 = 1 << 8;
    let highest = core::arch::x86_64::__cpuid(0x8000_0000).eax;
    if highest < POWER_MANAGEMENT_LEAF {
        return false;
    }
    let invariant = core::arch::x86_64::__cpuid(POWER_MANAGEMENT_LEAF).edx & INVARIANT_TSC_EDX != 0;
    // The kernel takes a counter that it found unstable off its list.
    let kernel_agrees =
        std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/available_clocksource")
            .map_or(true, |list| list.split_whitespace().any(|source| source == "tsc"));
    invariant && kernel_agrees
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn counter_is_invariant() -> bool {
    false
}

thread_local! {
    static VIRTUAL: Cell<*const VirtualClock> = const { Cell::new(std::ptr::null()) };
}

/// Nanoseconds in a second.
pub(crate) const NS_PER_S: u64 = 1_000_000_000;
/// Two readings this far apart, each good to some 20 ns, give the rate to a few parts in a million.
const CALIBRATION_NS: u64 = 5_000_000;
const PAIRING_TRIES: usize = 16;
/// One hour.
const VIRTUAL_START_NS: u64 = 3600 * NS_PER_S;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn the_scaled_counter_follows_the_monotonic_clock() {
        let scale = TimeScale::get();
        let before = monotonic_ns();
        let scaled = scale.ns_at(scale.ticks());
        let after = monotonic_ns();
        // 1 ms: far below what a wrong rate or base gives, far above the calibration's error.
        assert!(scaled + 1_000_000 > before && scaled < after + 1_000_000, "{before} {scaled} {after}");
    }

    #[test]
    fn a_virtual_clock_hides_the_real_one_and_never_goes_back() {
        let clock = Rc::new(VirtualClock::new());
        let guard = install_virtual(Rc::clone(&clock));
        let start = ticks();
        assert_eq!(start, precise_now_ns());
        assert_eq!(ticks_hz(), NS_PER_S);
        clock.move_to(start + 5);
        clock.move_to(start + 2);
        assert_eq!(ticks(), start + 5);
        drop(guard);
        assert!(!in_simulation());
    }
}
