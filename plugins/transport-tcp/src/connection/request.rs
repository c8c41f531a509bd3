//! One request at the initiator: its states and what is known of its transfer.
//!
//! The connection moves requests through these states; the owner keeps the
//! memory and whatever it wants to do afterwards.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use nvme_spec::command::Sqe;
use nvme_spec::completion::Cqe;
use thiserror::Error;
use zerocopy::FromZeros;

/// State of a request slot at the initiator.
///
/// ```text
///         Submit          Encode          Answer              Drain          Poll
///   Free ───────► Queued ───────► Sent ──────────► Draining ────────► Done ───────► Free
///                    └──────────────┴── Lose ─────────┘
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RequestState {
    /// Unused.
    Free,
    /// Submitted; the peer has not seen it.
    Queued,
    /// The capsule is encoded; data travels.
    Sent,
    /// Over, but the request's memory is still part of the output.
    Draining,
    /// Its completion waits for the owner.
    Done,
}

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RequestEvent {
    /// The owner submits it.
    Submit,
    /// Its capsule is encoded.
    Encode,
    /// The peer completed it.
    Answer,
    /// The connection ended.
    Lose,
    /// None of its memory is part of the output.
    Drain,
    /// The owner took the completion.
    Poll,
}

/// An event that the state does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{event:?} in state {state:?} of a request")]
pub struct InvalidRequestEvent {
    /// State at the time.
    pub state: RequestState,
    /// What happened.
    pub event: RequestEvent,
}

impl RequestState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Free, Self::Queued, Self::Sent, Self::Draining, Self::Done];

    /// The state after `event`.
    pub const fn next(self, event: RequestEvent) -> Result<Self, InvalidRequestEvent> {
        use RequestEvent::{Answer, Drain, Encode, Lose, Poll, Submit};
        use RequestState::{Done, Draining, Free, Queued, Sent};
        Ok(match (self, event) {
            (Free, Submit) => Queued,
            (Queued, Encode) => Sent,
            (Sent, Answer) | (Queued | Sent | Draining, Lose) => Draining,
            // What was sent so far is written; the answer is still to come.
            (Sent, Drain) => Sent,
            (Draining, Drain) | (Done, Lose) => Done,
            (Done, Poll) | (Free, Lose) => Free,
            (Free, Encode | Answer | Drain | Poll)
            | (Queued, Submit | Answer | Drain | Poll)
            | (Sent, Submit | Encode | Poll)
            | (Draining, Submit | Encode | Answer | Poll)
            | (Done, Submit | Encode | Answer | Drain) => {
                return Err(InvalidRequestEvent { state: self, event });
            }
        })
    }
}

impl RequestEvent {
    /// Every event.
    pub const ALL: [Self; 6] =
        [Self::Submit, Self::Encode, Self::Answer, Self::Lose, Self::Drain, Self::Poll];
}

/// Payload of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transfer {
    /// None.
    None,
    /// As many bytes to the controller.
    ToController(u32),
    /// As many bytes to the host.
    ToHost(u32),
}

impl Transfer {
    /// Bytes of payload.
    #[must_use]
    pub const fn length(self) -> u32 {
        match self {
            Self::None => 0,
            Self::ToController(length) | Self::ToHost(length) => length,
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// With this completion; its status says whether it succeeded.
    Answered(Cqe),
    /// The connection ended first: it may have been executed or not.
    Lost,
}

/// One R2T that is not answered in full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Grant {
    pub(crate) ttag: u16,
    /// Where the range ends; it starts where the one before ends.
    pub(crate) end: u32,
}

/// What the initiator knows of a request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) state: RequestState,
    pub(crate) cid: u16,
    /// In the send queue.
    pub(crate) is_queued: bool,
    /// The payload travels in the capsule.
    pub(crate) is_in_capsule: bool,
    /// Every data digest was right.
    pub(crate) is_intact: bool,
    /// The last data to the host came.
    pub(crate) has_last_data: bool,
    /// Parts of the output that belong to it and are not written.
    pub(crate) unwritten: u32,
    pub(crate) transfer: Transfer,
    /// To the host: bytes that came. To the controller: bytes encoded outside of the capsule.
    pub(crate) moved: u32,
    /// To the controller: where the last R2T ends.
    pub(crate) granted: u32,
    pub(crate) grants: VecDeque<Grant>,
    pub(crate) sqe: Sqe,
    pub(crate) outcome: Outcome,
}

impl Request {
    pub(crate) fn new(max_r2t: u32) -> Self {
        Self {
            state: RequestState::Free,
            cid: 0,
            is_queued: false,
            is_in_capsule: false,
            is_intact: true,
            has_last_data: false,
            unwritten: 0,
            transfer: Transfer::None,
            moved: 0,
            granted: 0,
            grants: VecDeque::with_capacity(max_r2t as usize),
            sqe: Sqe::new_zeroed(),
            outcome: Outcome::Lost,
        }
    }

    /// Takes the slot for a request.
    pub(crate) fn begin(&mut self, sqe: &Sqe, transfer: Transfer, is_in_capsule: bool) {
        self.cid = sqe.cid.get();
        self.sqe = *sqe;
        self.transfer = transfer;
        self.is_in_capsule = is_in_capsule;
        self.is_intact = true;
        self.has_last_data = false;
        self.moved = 0;
        self.granted = 0;
        self.grants.clear();
        self.outcome = Outcome::Lost;
    }
}
