//! A connection without its socket: bytes and times in, events and bytes out.
//!
//! ```text
//!            bytes of the peer                        commands of the owner
//!                   │                                          │
//!   handle_bytes ───┤  codec::scan ─► states ─► target /       ├── receive, complete / submit
//!   handle_placed ──┘                           initiator ─────┘
//!                                                  │
//!            events (returned by handle_*)  ◄──────┼──────►  outbox ─► pieces, handle_written
//! ```
//!
//! [`target::TargetConnection`] is the controller's end, [`initiator::InitiatorConnection`] the host's.
//! Both are driven alike:
//!
//! 1. `handle_bytes` with what was received, until it returns no event; what it
//!    did not consume is presented again in front of the next bytes. Payload
//!    that has not been received yet can go straight to where `placement` says,
//!    followed by `handle_placed`.
//! 2. `poll_output` encodes what is due, `pieces` is what to write, `handle_written` tells how much of it
//!    was. One write per batch carries as many responses as have come up.
//! 3. `poll_released` (target) or `poll_completion` (initiator) after either.
//! 4. `handle_timeout` when `next_deadline` has passed, `handle_eof` when the
//!    peer has closed. In [`ConnectionState::Closed`] the socket is to be closed.
//!
//! Memory of commands belongs to the owner and is named by [`Slot`]: there is no pointer in here, no clock
//! and no allocation after `new`. A peer's fault never panics; misuse by the owner does.
#![forbid(unsafe_code)]

pub mod deadline;
pub mod handshake;
pub mod initiator;
pub mod options;
pub mod outbox;
pub mod request;
pub mod states;
pub mod target;

pub mod command;
mod inflow;
mod link;

use std::collections::VecDeque;

use thiserror::Error;

use crate::pdu::FatalErrorStatus;
use crate::peer_error::PeerError;

pub use deadline::Timeout;
pub use handshake::Agreement;
pub use initiator::{InitiatorConnection, InitiatorEvent};
pub use options::{InitiatorOptions, OptionError, TargetOptions, Timeouts};
pub use outbox::Piece;
pub use states::ConnectionState;
pub use target::{TargetConnection, TargetEvent};

/// One of a connection's commands: an index below its queue depth, by which the owner finds its own part.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Slot(u16);

impl Slot {
    /// The slot of an index.
    #[must_use]
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// The index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) const fn get(self) -> u16 {
        self.0
    }
}

/// A piece of a command's payload.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Placement {
    /// Whose.
    pub slot: Slot,
    /// Offset in the command's payload.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// What became of bytes given to `handle_bytes`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Handled<E> {
    /// Bytes done with. The rest is presented again, in front of what is received next.
    pub consumed: usize,
    /// What happened, if anything; then there may be more in the rest.
    pub event: Option<E>,
}

/// Why a connection ended, or is ending.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Ending {
    /// The owner closed it.
    #[error("closed")]
    Local,
    /// The peer closed the stream.
    #[error("closed by the peer")]
    PeerClosed,
    /// The peer sent a Terminate Connection Request.
    #[error("terminated by the peer: {fes:?}, information {fei:#x}")]
    PeerTerminated {
        /// Fatal Error Status.
        fes: FatalErrorStatus,
        /// Fatal Error Information.
        fei: u32,
    },
    /// The peer sent a Terminate Connection Request of an impossible length.
    #[error("terminated by the peer, without a legible reason")]
    PeerTerminatedIllegibly,
    /// The peer broke the protocol and was told so.
    #[error("protocol error of the peer: {0}")]
    Protocol(#[source] PeerError),
    /// The peer took too long.
    #[error("timed out: {0:?}")]
    TimedOut(Timeout),
    /// The controller does without a digest that this host needs.
    #[error("the controller refused a digest")]
    DigestRefused,
}

/// A bounded first-in first-out queue of slots, each of which is in it once at most.
#[derive(Debug)]
pub(crate) struct SlotQueue(VecDeque<Slot>);

impl SlotQueue {
    pub(crate) fn new(slots: u16) -> Self {
        Self(VecDeque::with_capacity(slots.into()))
    }

    pub(crate) fn push(&mut self, slot: Slot) {
        debug_assert!(!self.0.contains(&slot), "{slot:?} queued twice");
        debug_assert!(self.0.len() < self.0.capacity(), "more slots queued than there are");
        self.0.push_back(slot);
    }

    pub(crate) fn pop(&mut self) -> Option<Slot> {
        self.0.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Bytes of `bytes` that a Terminate Connection Request quotes: the header that was being processed.
pub(crate) fn quoted_header(bytes: &[u8]) -> &[u8] {
    let header_len = crate::codec::kind_of(bytes).map_or(0, |kind| usize::from(kind.header_len()));
    &bytes[..header_len.max(crate::pdu::COMMON_LEN).min(bytes.len())]
}
