//! Where a host's connection is in its life, as its owner sees it.
//!
//! Beside the protocol's own states, which end with the stream, this tells who
//! knows the connection: before the handshake only the transport, then the
//! target core as well, and at the end again only the transport, while the host
//! is told what it did wrong. One total function; acting is `host_connection`'s.
#![forbid(unsafe_code)]

/// Where a connection is.
///
/// ```text
///            Opened           CloseAsked             Told            Freed
/// Handshake ───────► Open ─────────────► Draining         ┌► Ended ────────► Gone
///     │               │ StreamOver           │ StreamOver │    │ FreedEarly     ▲
///     │ StreamOver    └────────► Ending ◄────┘     │      │    ▼                │ SocketClosed
///     └────► Lingering              └──────────────┴──────┘ Lingering ──────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The target core does not know it yet.
    Handshake,
    /// It is a queue pair.
    Open,
    /// The target core ends it; what is due is still sent.
    Draining,
    /// The stream is over; the target core is to be told.
    Ending,
    /// The target core knows, and gives back what it has.
    Ended,
    /// Only the transport knows it, until its socket is closed.
    Lingering,
    /// Nothing is left.
    Gone,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseEvent {
    /// The target core made a queue pair of it.
    Opened,
    /// The target core ends it.
    CloseAsked,
    /// No more can be received.
    StreamOver,
    /// The target core is told that the queue pair ended.
    Told,
    /// The target core let go of it.
    Freed,
    /// As Freed, while something is still being sent.
    FreedEarly,
    /// The socket is closed.
    SocketClosed,
}

impl Phase {
    /// What follows; `None` if the event means nothing in this phase.
    pub const fn next(self, event: PhaseEvent) -> Option<Self> {
        use Phase::{Draining, Ended, Ending, Gone, Handshake, Lingering, Open};
        use PhaseEvent::{CloseAsked, Freed, FreedEarly, Opened, SocketClosed, StreamOver, Told};
        match (self, event) {
            (Handshake, Opened) => Some(Open),
            (Handshake, StreamOver) => Some(Lingering),
            (Open, CloseAsked) => Some(Draining),
            (Open | Draining, StreamOver) => Some(Ending),
            (Ending, Told) => Some(Ended),
            (Ended, Freed) => Some(Gone),
            (Ended, FreedEarly) => Some(Lingering),
            (Lingering, SocketClosed) => Some(Gone),
            (Handshake, CloseAsked | Told | Freed | FreedEarly | SocketClosed)
            | (Open, Opened | Told | Freed | FreedEarly | SocketClosed)
            | (Draining, Opened | CloseAsked | Told | Freed | FreedEarly | SocketClosed)
            | (Ending, Opened | CloseAsked | StreamOver | Freed | FreedEarly | SocketClosed)
            | (Ended, Opened | CloseAsked | StreamOver | Told | SocketClosed)
            | (Lingering, Opened | CloseAsked | StreamOver | Told | Freed | FreedEarly)
            | (Gone, Opened | CloseAsked | StreamOver | Told | Freed | FreedEarly | SocketClosed) => None,
        }
    }

    /// Whether bytes of the host are looked at. After the end of the stream they are, to be thrown away: the host
    /// may have to read first what it did wrong.
    pub const fn receives(self) -> bool {
        match self {
            Self::Handshake | Self::Open | Self::Ending | Self::Ended | Self::Lingering => true,
            Self::Draining | Self::Gone => false,
        }
    }

    /// Whether the target core has never known it.
    pub const fn is_unknown(self) -> bool {
        matches!(self, Self::Handshake)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_core_is_told_once_and_only_if_it_knows() {
        use Phase::*;
        use PhaseEvent::*;
        assert_eq!(Handshake.next(StreamOver), Some(Lingering));
        for phase in [Handshake, Open, Draining, Ended, Lingering, Gone] {
            assert_eq!(phase.next(Told), None, "{phase:?}");
        }
        assert_eq!(Ending.next(Told), Some(Ended));
    }

    #[test]
    fn every_way_leads_to_gone() {
        use Phase::*;
        use PhaseEvent::*;
        for (start, way) in [
            (Handshake, &[StreamOver, SocketClosed][..]),
            (Handshake, &[Opened, StreamOver, Told, Freed]),
            (Open, &[CloseAsked, StreamOver, Told, Freed]),
            (Open, &[StreamOver, Told, FreedEarly, SocketClosed]),
        ] {
            let end = way.iter().try_fold(start, |phase, event| phase.next(*event));
            assert_eq!(end, Some(Gone));
        }
    }
}
