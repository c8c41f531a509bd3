//! Exclusive use of a device: rounds in which compare-and-writes have it for themselves, on every reactor.
//!
//! ```text
//!  Idle ─Asked─► Closing ─Closed─► Draining ─Quiet/Late─► Turns ─Over─► Opening ─Opened─► Idle
//! ```
//!
//! A reactor with compare-and-writes to carry out asks the control reactor. There every channel is closed, so
//! that new I/O waits, and the module's I/O awaited; then each reactor that has asked by now has one turn, one
//! after the other, and the channels open again. Between two rounds all other I/O has its turn. The gate is not in the completion
//! path of ordinary I/O, so it cannot know which of it overlaps; a lock on a range
//! would have to wait for all of it just the same, and would cost every I/O a look.
//!
//! A module that does not get quiet in time is left alone: the channels open and who asked is told. What is
//! done in a turn is in `compare_write`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use log::warn;
use tenon_reactor::{ReactorRef, now_ns};

use super::broadcast::{assert_control, at, deliver};
use super::compare_write;
use super::drain::Drained;
use super::gate::Gate;

/// Exclusive use of one device.
#[derive(Debug, Default)]
pub(super) struct Exclusives {
    state: ExclusiveState,
    /// Reactors that asked; each is in it once at most.
    waiting: VecDeque<ReactorRef>,
    /// Reactors of this round that have not had their turn.
    turns: VecDeque<ReactorRef>,
    /// Whether the module was quiet when the turns began.
    is_quiet: bool,
    /// Tells turns apart for the warning about a slow one.
    sequence: u64,
}

/// Where a round is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ExclusiveState {
    #[default]
    Idle,
    Closing,
    Draining,
    Turns,
    Opening,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExclusiveEvent {
    /// A reactor wants a turn.
    Asked,
    /// Every channel is closed.
    Closed,
    /// The module has no I/O, or the time for that is over.
    Drained,
    /// Every turn is over.
    Over,
    /// Every channel is open again.
    Opened,
}

impl ExclusiveState {
    /// The state after `event`, or `None` where it cannot happen.
    fn next(self, event: ExclusiveEvent) -> Option<ExclusiveState> {
        use {ExclusiveEvent::*, ExclusiveState::*};
        match (self, event) {
            (Idle, Asked) => Some(Closing),
            (Closing, Closed) => Some(Draining),
            (Draining, Drained) => Some(Turns),
            (Turns, Over) => Some(Opening),
            (Opening, Opened) => Some(Idle),
            (Idle, Closed | Drained | Over | Opened)
            | (Closing, Asked | Drained | Over | Opened)
            | (Draining, Asked | Closed | Over | Opened)
            | (Turns, Asked | Closed | Drained | Opened)
            | (Opening, Asked | Closed | Drained | Over) => None,
        }
    }
}

/// Asks for a turn of `reactor`, which must not have asked for one that it has not had.
pub(super) fn ask(gate: &Arc<Gate>, reactor: ReactorRef) {
    let control = gate.directory().control().clone();
    let gate = Arc::clone(gate);
    deliver(&control, move || {
        gate.exclusives.lock().waiting.push_back(reactor);
        start_round(&gate);
    });
}

/// A reactor is through with its turn.
pub(super) fn turn_over(gate: &Arc<Gate>) {
    let control = gate.directory().control().clone();
    let gate = Arc::clone(gate);
    deliver(&control, move || next_turn(&gate));
}

impl Gate {
    #[track_caller]
    fn exclusive_step(&self, event: ExclusiveEvent) {
        assert_control();
        let mut exclusives = self.exclusives.lock();
        let state = exclusives.state;
        exclusives.state = state
            .next(event)
            .unwrap_or_else(|| panic!("exclusive use of {}: {event:?} in {state:?}", self.name()));
    }
}

/// Starts a round if somebody waits for one and none is under way.
fn start_round(gate: &Arc<Gate>) {
    let is_wanted = {
        let exclusives = gate.exclusives.lock();
        exclusives.state == ExclusiveState::Idle && !exclusives.waiting.is_empty()
    };
    if !is_wanted {
        return;
    }
    gate.exclusive_step(ExclusiveEvent::Asked);
    gate.publish(|published| published.is_exclusive = true);
    let timeout_ns = gate.reset_drain_timeout_ns.load(Ordering::Relaxed);
    let deadline_ns = now_ns().saturating_add(timeout_ns);
    let closed = Arc::clone(gate);
    gate.apply_everywhere(move |_outstanding| {
        closed.exclusive_step(ExclusiveEvent::Closed);
        let quiet = Arc::clone(&closed);
        closed.wait_quiet(deadline_ns, move |left| drained(&quiet, left));
    });
}

fn drained(gate: &Arc<Gate>, left: Drained) {
    gate.exclusive_step(ExclusiveEvent::Drained);
    {
        let mut exclusives = gate.exclusives.lock();
        exclusives.turns = std::mem::take(&mut exclusives.waiting);
        exclusives.is_quiet = left.outstanding == 0;
    }
    if left.outstanding > 0 && gate.may_warn() {
        warn!(
            "compare-and-write given up: I/O does not come back bdev={} outstanding={}",
            gate.name(),
            left.outstanding
        );
    }
    next_turn(gate);
}

/// Lets the next reactor of the round have its turn, or ends the round.
fn next_turn(gate: &Arc<Gate>) {
    let (reactor, is_quiet, sequence) = {
        let mut exclusives = gate.exclusives.lock();
        exclusives.sequence += 1;
        (exclusives.turns.pop_front(), exclusives.is_quiet, exclusives.sequence)
    };
    let Some(reactor) = reactor else { return end_round(gate) };
    let slow = Arc::downgrade(gate);
    at(now_ns() + SLOW_TURN_NS, move || {
        if let Some(gate) = slow.upgrade() {
            warn_if_still_running(&gate, sequence);
        }
    });
    let (id, gate) = (reactor.id(), Arc::clone(gate));
    deliver(&reactor, move || compare_write::take_turn(&gate, id, is_quiet));
}

fn warn_if_still_running(gate: &Gate, sequence: u64) {
    let exclusives = gate.exclusives.lock();
    if exclusives.sequence == sequence && exclusives.state == ExclusiveState::Turns {
        warn!(
            "compare-and-write keeps a device from all others bdev={} after_s={}",
            gate.name(),
            SLOW_TURN_NS / 1_000_000_000
        );
    }
}

fn end_round(gate: &Arc<Gate>) {
    gate.exclusive_step(ExclusiveEvent::Over);
    gate.publish(|published| published.is_exclusive = false);
    let opened = Arc::clone(gate);
    gate.apply_everywhere(move |_outstanding| {
        opened.exclusive_step(ExclusiveEvent::Opened);
        start_round(&opened);
    });
}

/// After how long a turn that is not over is named.
const SLOW_TURN_NS: u64 = 30_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_goes_through_every_state_and_no_other_way() {
        use {ExclusiveEvent::*, ExclusiveState::*};
        let events = [Asked, Closed, Drained, Over, Opened];
        let states = [Idle, Closing, Draining, Turns, Opening];
        for (at, state) in states.into_iter().enumerate() {
            for event in events {
                let expected = (event == events[at]).then(|| states[(at + 1) % states.len()]);
                assert_eq!(state.next(event), expected, "{state:?} {event:?}");
            }
        }
    }
}
