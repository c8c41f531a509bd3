//! Statistics of a reactor: written by its own thread, readable from any.
//!
//! Plain stores, not read-modify-writes: there is one writer. A reader may see
//! fields of two different turns, which a report can bear. Pollers by name are
//! not here, as names change; ask on the reactor with `Local::pollers`.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::poller::PollerCounts;

/// What a reactor has done since it started; times in [`ticks`](crate::ticks).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Turns of the loop.
    pub turns: u64,
    /// Ticks of turns that found work.
    pub busy_ticks: u64,
    /// Ticks of turns that found none.
    pub idle_ticks: u64,
    /// Ticks asleep.
    pub sleep_ticks: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
    /// The longest turn so far, in nanoseconds.
    pub longest_turn_ns: u64,
    /// Turns longer than the watchdog's threshold.
    pub long_turns: u64,
    /// Messages run.
    pub messages: u64,
    /// Messages waiting now.
    pub messages_waiting: u64,
    /// Pollers run on every turn.
    pub every_turn_pollers: u32,
    /// Pollers run by period.
    pub timed_pollers: u32,
    /// Paused pollers.
    pub paused_pollers: u32,
    /// Pending one-shot timers.
    pub timers: u32,
    /// Watched descriptors.
    pub fds: u32,
    /// Whether it sleeps now.
    pub is_sleeping: bool,
    /// The core it is pinned to, if it is.
    pub cpu: Option<u32>,
    /// The thread's id as the kernel knows it; 0 in a simulation.
    pub thread_id: u32,
}

/// The same, where the reactor's thread writes it.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub turns: AtomicU64,
    pub busy_ticks: AtomicU64,
    pub idle_ticks: AtomicU64,
    pub sleep_ticks: AtomicU64,
    pub sleeps: AtomicU64,
    pub longest_turn_ns: AtomicU64,
    pub long_turns: AtomicU64,
    pub messages: AtomicU64,
    pub every_turn_pollers: AtomicU32,
    pub timed_pollers: AtomicU32,
    pub paused_pollers: AtomicU32,
    pub timers: AtomicU32,
    pub fds: AtomicU32,
    pub is_sleeping: AtomicBool,
    /// The core plus 1; 0: not pinned.
    pub cpu_plus_one: AtomicU32,
    pub thread_id: AtomicU32,
}

impl Published {
    /// A copy for a report.
    pub(crate) fn snapshot(&self, messages_waiting: usize) -> Statistics {
        Statistics {
            turns: self.turns.load(Relaxed),
            busy_ticks: self.busy_ticks.load(Relaxed),
            idle_ticks: self.idle_ticks.load(Relaxed),
            sleep_ticks: self.sleep_ticks.load(Relaxed),
            sleeps: self.sleeps.load(Relaxed),
            longest_turn_ns: self.longest_turn_ns.load(Relaxed),
            long_turns: self.long_turns.load(Relaxed),
            messages: self.messages.load(Relaxed),
            messages_waiting: messages_waiting as u64,
            every_turn_pollers: self.every_turn_pollers.load(Relaxed),
            timed_pollers: self.timed_pollers.load(Relaxed),
            paused_pollers: self.paused_pollers.load(Relaxed),
            timers: self.timers.load(Relaxed),
            fds: self.fds.load(Relaxed),
            is_sleeping: self.is_sleeping.load(Relaxed),
            cpu: self.cpu_plus_one.load(Relaxed).checked_sub(1),
            thread_id: self.thread_id.load(Relaxed),
        }
    }

    pub(crate) fn set_poller_counts(&self, counts: PollerCounts) {
        self.every_turn_pollers.store(counts.every_turn, Relaxed);
        self.timed_pollers.store(counts.timed, Relaxed);
        self.paused_pollers.store(counts.paused, Relaxed);
    }
}

/// Adds to a counter that only the calling thread writes.
#[inline(always)]
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
}
