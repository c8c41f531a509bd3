//! One command at the target: its states and what is known of its transfer.
//!
//! The connection moves commands through these states; the owner keeps the
//! submission queue entry and the memory.
#![forbid(unsafe_code)]

use nvme_spec::completion::{Cqe, StatusField};
use thiserror::Error;
use zerocopy::FromZeros;

/// State of a command slot at the target.
///
/// ```text
///          Capsule           Receive            DataDone           Complete            Sent
///   Free ─────────► Received ───────► Receiving ─────────► Executing ───────► Responding ──► Free
///                      │                  │ Complete                              ▲
///                      ├──Execute─────────┼───────────────► Executing             │
///                      └──Complete────────┼────────────────────────────────────►──┤
///                                         └──► Discarding ──────DataDone──────────┘
///   all but Free and Executing ──Abandon──► Free;  Executing ──Complete on a closed connection──► Free
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CommandState {
    /// Unused.
    Free,
    /// Given to the owner, which has not said yet what becomes of it.
    Received,
    /// The host's data is on its way.
    Receiving,
    /// With the owner.
    Executing,
    /// Completed before its data was there: what was asked for is awaited and thrown away.
    Discarding,
    /// Data and response are being sent.
    Responding,
}

/// What happens to a command.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CommandEvent {
    /// Its capsule arrived.
    Capsule,
    /// The owner wants its data by R2T.
    Receive,
    /// The owner runs it without (more) data.
    Execute,
    /// All data that was asked for is there.
    DataDone,
    /// The owner completed it.
    Complete,
    /// Its response is written.
    Sent,
    /// The connection ended.
    Abandon,
}

/// An event that the state does not allow: the owner's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{event:?} in state {state:?} of a command")]
pub struct InvalidCommandEvent {
    /// State at the time.
    pub state: CommandState,
    /// What happened.
    pub event: CommandEvent,
}

impl CommandState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Free, Self::Received, Self::Receiving, Self::Executing, Self::Discarding, Self::Responding];

    /// The state after `event`.
    pub const fn next(self, event: CommandEvent) -> Result<Self, InvalidCommandEvent> {
        use CommandEvent::{Abandon, Capsule, Complete, DataDone, Execute, Receive, Sent};
        use CommandState::{Discarding, Executing, Free, Received, Receiving, Responding};
        Ok(match (self, event) {
            (Free, Capsule) => Received,
            (Received, Receive) => Receiving,
            (Received, Execute) | (Receiving, DataDone) => Executing,
            (Receiving, Complete) => Discarding,
            (Received | Executing, Complete) | (Discarding, DataDone) => Responding,
            (Responding, Sent) => Free,
            (Received | Receiving | Discarding | Responding, Abandon) => Free,
            // The owner still works on it and completes it later.
            (Executing, Abandon) => Executing,
            (Free, Receive | Execute | DataDone | Complete | Sent | Abandon)
            | (Received, Capsule | DataDone | Sent)
            | (Receiving, Capsule | Receive | Execute | Sent)
            | (Executing, Capsule | Receive | Execute | DataDone | Sent)
            | (Discarding, Capsule | Receive | Execute | Complete | Sent)
            | (Responding, Capsule | Receive | Execute | DataDone | Complete) => {
                return Err(InvalidCommandEvent { state: self, event });
            }
        })
    }
}

impl CommandEvent {
    /// Every event.
    pub const ALL: [Self; 7] = [
        Self::Capsule,
        Self::Receive,
        Self::Execute,
        Self::DataDone,
        Self::Complete,
        Self::Sent,
        Self::Abandon,
    ];
}

/// What the target knows of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    pub(crate) state: CommandState,
    pub(crate) cid: u16,
    /// Grows with each use of the slot; part of the transfer tag, so that late data of an earlier use is told.
    pub(crate) generation: u16,
    /// In the send queue.
    pub(crate) is_queued: bool,
    /// Every data digest was right.
    pub(crate) is_intact: bool,
    /// All output is in the outbox and its end noted there.
    pub(crate) is_ended: bool,
    /// Bytes of payload, either way.
    pub(crate) length: u32,
    /// To the controller: bytes asked for by R2T.
    pub(crate) requested: u32,
    /// To the controller: bytes that came. To the host: bytes encoded.
    pub(crate) moved: u32,
    /// The response.
    pub(crate) cqe: Cqe,
}

impl Command {
    pub(crate) fn new() -> Self {
        Self {
            state: CommandState::Free,
            cid: 0,
            generation: 0,
            is_queued: false,
            is_intact: true,
            is_ended: false,
            length: 0,
            requested: 0,
            moved: 0,
            cqe: Cqe::new_zeroed(),
        }
    }

    /// Clears the slot, which is free, for a new capsule.
    pub(crate) fn begin(&mut self, cid: u16) {
        let generation = self.generation.wrapping_add(1);
        *self = Self { cid, generation, ..Self::new() };
    }

    /// The range of the oldest outstanding R2T. The host serves them in order, so data belongs to this one.
    pub(crate) fn current_r2t(&self, r2t_bytes: u32) -> Option<(u32, u32)> {
        if self.moved >= self.requested {
            return None;
        }
        let start = self.moved - self.moved % r2t_bytes;
        Some((start, self.requested.min(start + r2t_bytes)))
    }

    /// R2Ts that the host has not answered in full.
    pub(crate) fn outstanding_r2ts(&self, r2t_bytes: u32) -> u32 {
        match self.current_r2t(r2t_bytes) {
            Some((start, _)) => (self.requested - start).div_ceil(r2t_bytes),
            None => 0,
        }
    }

    /// Whether the response says nothing that the SUCCESS flag does not say.
    pub(crate) fn is_plain_success(&self) -> bool {
        self.cqe.status == StatusField::SUCCESS && self.cqe.result_u64() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r2t_ranges_follow_the_data() {
        let mut command =
            Command { state: CommandState::Receiving, length: 10_000, requested: 8192, ..Command::new() };
        assert_eq!(command.current_r2t(4096), Some((0, 4096)));
        assert_eq!(command.outstanding_r2ts(4096), 2);
        command.moved = 4092;
        assert_eq!((command.current_r2t(4096), command.outstanding_r2ts(4096)), (Some((0, 4096)), 2));
        command.moved = 4096;
        assert_eq!((command.current_r2t(4096), command.outstanding_r2ts(4096)), (Some((4096, 8192)), 1));
        command.requested = 10_000;
        assert_eq!(command.outstanding_r2ts(4096), 2);
        command.moved = 8192;
        assert_eq!(command.current_r2t(4096), Some((8192, 10_000)));
        command.moved = 10_000;
        assert_eq!((command.current_r2t(4096), command.outstanding_r2ts(4096)), (None, 0));
    }

    #[test]
    fn only_a_success_without_result_can_be_a_flag() {
        let mut command = Command::new();
        assert!(command.is_plain_success());
        command.cqe.dw0.set(1);
        assert!(!command.is_plain_success());
        command.cqe = Cqe::new(0, 9, StatusField::SUCCESS);
        assert!(command.is_plain_success());
        command.cqe.status = StatusField::SUCCESS.with_more(true);
        assert!(!command.is_plain_success());
    }
}
