//! Phases of a gate: whether I/O runs, waits or bounces, and how a change reaches every reactor.
//!
//! ```text
//!   Running ⇄ Frozen     I/O waits in the gate, first in first out
//!   Running ⇄ Absent     the same; the backing is gone
//!   any ──► Orphaned     what waits and what comes is answered NO_DEVICE; there is no way back
//! ```
//!
//! A reset freezes on top of any phase, and so does a compare-and-write that the gate itself carries out. The control reactor publishes phase and reset as one word with
//! a growing epoch, then tells every reactor; a channel that is opened meanwhile reads the word, and an
//! older message does nothing to it. What is in the module stays there in every phase.
// UNSAFETY: works on the channels of the calling reactor through raw pointers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tenon_abi::IoStatus;

use super::broadcast::{assert_control, each_channel};
use super::channel::ModuleChannel;
use super::gate::Gate;
use super::queue::IoQueue;
use super::{service, split, submit};

/// What the gate does with I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// I/O goes to the module.
    Running,
    /// I/O waits.
    Frozen,
    /// I/O waits: the backing is gone, the device's identity stays.
    Absent,
    /// I/O is answered with NO_DEVICE.
    Orphaned,
}

impl Phase {
    /// The phase after the control plane asked for `wanted`: an orphan stays one.
    #[must_use]
    pub fn next(self, wanted: Phase) -> Phase {
        match (self, wanted) {
            (Phase::Orphaned, Phase::Running | Phase::Frozen | Phase::Absent | Phase::Orphaned) => {
                Phase::Orphaned
            }
            (Phase::Running | Phase::Frozen | Phase::Absent, Phase::Orphaned) => Phase::Orphaned,
            (Phase::Running | Phase::Frozen | Phase::Absent, Phase::Running) => Phase::Running,
            (Phase::Running | Phase::Frozen | Phase::Absent, Phase::Frozen) => Phase::Frozen,
            (Phase::Running | Phase::Frozen | Phase::Absent, Phase::Absent) => Phase::Absent,
        }
    }
}

/// What the control reactor last decided, in one word that any reactor can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Published {
    pub epoch: u64,
    pub phase: Phase,
    pub is_resetting: bool,
    pub is_exclusive: bool,
}

impl Published {
    pub(super) const START: Published =
        Published { epoch: 0, phase: Phase::Running, is_resetting: false, is_exclusive: false };

    pub(super) fn to_word(self) -> u64 {
        let phase = match self.phase {
            Phase::Running => 0,
            Phase::Frozen => 1,
            Phase::Absent => 2,
            Phase::Orphaned => 3,
        };
        let flags = u64::from(self.is_exclusive) << 3 | u64::from(self.is_resetting) << 2;
        self.epoch << EPOCH_SHIFT | flags | phase
    }

    pub(super) fn from_word(word: u64) -> Published {
        let phase = match word & 3 {
            0 => Phase::Running,
            1 => Phase::Frozen,
            2 => Phase::Absent,
            _ => Phase::Orphaned,
        };
        let (is_resetting, is_exclusive) = (word & 4 != 0, word & 8 != 0);
        Published { epoch: word >> EPOCH_SHIFT, phase, is_resetting, is_exclusive }
    }
}

impl Gate {
    /// Changes what happens to I/O; `done` runs on the control reactor when every reactor obeys.
    ///
    /// I/O that waits is kept through Frozen and Absent, sent in order when Running comes back, and
    /// answered NO_DEVICE when the gate is orphaned. Orphaned is final: later wishes change nothing.
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn set_phase(self: &Arc<Self>, phase: Phase, done: impl FnOnce() + 'static) {
        let next = self.published().phase.next(phase);
        self.publish(|published| published.phase = next);
        self.apply_everywhere(move |_outstanding| done());
    }

    /// The phase the control plane asked for last; other reactors may not have heard of it yet.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.published().phase
    }

    pub(super) fn published(&self) -> Published {
        Published::from_word(self.word.load(Ordering::SeqCst))
    }

    pub(super) fn publish(&self, change: impl FnOnce(&mut Published)) {
        assert_control();
        let mut published = self.published();
        change(&mut published);
        published.epoch += 1;
        // SeqCst: pairs with the store of `Slot::is_open`; see `Gate::open_reactors`.
        self.word.store(published.to_word(), Ordering::SeqCst);
    }

    /// Makes every channel obey what was published; `done` gets the I/Os then in the module.
    pub(super) fn apply_everywhere(self: &Arc<Self>, done: impl FnOnce(u64) + 'static) {
        let published = self.published();
        each_channel(
            self,
            // SAFETY: `each_channel` calls with the live channel of the reactor it runs on.
            move |m| unsafe {
                apply(m, published);
                u64::from((*m).io.outstanding)
            },
            move |answers| done(answers.iter().map(|(_, outstanding)| outstanding).sum()),
        );
    }
}

/// Makes one channel obey, unless it has heard of something newer.
///
/// # Safety
/// `m` is a live channel of the calling reactor.
pub(super) unsafe fn apply(m: *mut ModuleChannel, published: Published) {
    // SAFETY: the caller promises a live channel; no reference outlives a statement that calls out.
    unsafe {
        if published.epoch <= (*m).epoch {
            return;
        }
        let was_resetting = (*m).is_resetting;
        let was_orphaned = (*m).phase == Phase::Orphaned;
        (*m).epoch = published.epoch;
        (*m).phase = published.phase;
        (*m).is_resetting = published.is_resetting;
        (*m).is_exclusive = published.is_exclusive;
        submit::update_ops(m);
        if (*m).phase == Phase::Orphaned && !was_orphaned {
            refuse_waiting(m, IoStatus::NO_DEVICE);
        } else if (*m).is_resetting && !was_resetting {
            refuse_waiting(m, IoStatus::ABORTED);
        }
        if !(*m).is_closed() {
            service::run(m);
        }
    }
}

/// Answers everything that waits in the gate of this reactor, oldest first.
///
/// # Safety
/// As for [`apply`].
unsafe fn refuse_waiting(m: *mut ModuleChannel, status: IoStatus) {
    // SAFETY: the queues are taken out first, so what a consumer submits meanwhile is not in them.
    unsafe {
        let compare_writes = (*m).compare_writes.waiting.take();
        let limited = (*m).limited.each_mut().map(IoQueue::take);
        let [reads, writes] = limited;
        let queues = [(*m).nomem.take(), compare_writes, reads, writes, (*m).held.take()];
        (*m).queue_changed();
        for mut queue in queues {
            while let Some(io) = queue.pop_front() {
                submit::finish(io, status);
            }
        }
        split::stop_all(m, status);
    }
}

/// Bits below the epoch: phase, reset, exclusive use.
const EPOCH_SHIFT: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Phase; 4] = [Phase::Running, Phase::Frozen, Phase::Absent, Phase::Orphaned];

    #[test]
    fn only_orphaned_is_final() {
        for from in ALL {
            for wanted in ALL {
                let expected = if from == Phase::Orphaned { Phase::Orphaned } else { wanted };
                assert_eq!(from.next(wanted), expected, "{from:?} asked for {wanted:?}");
            }
        }
    }

    #[test]
    fn what_is_published_survives_its_word() {
        for phase in ALL {
            for (is_resetting, is_exclusive) in [(false, false), (false, true), (true, false), (true, true)] {
                let published = Published { epoch: 77, phase, is_resetting, is_exclusive };
                assert_eq!(Published::from_word(published.to_word()), published);
            }
        }
    }
}
