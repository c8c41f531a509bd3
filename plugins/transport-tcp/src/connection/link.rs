//! What both roles do alike with the stream: framing, termination, deadlines, output.
//!
//! A role asks [`Link::begin`] what the next bytes are and gets either a PDU
//! to act upon or the end of the connection. Commands and their transfers are
//! the roles' own.
#![forbid(unsafe_code)]

use zerocopy::FromBytes;

use crate::codec::{Frame, Framing, Scan, kind_of, scan};
use crate::connection::deadline::{Clock, Owed, Timeout};
use crate::connection::inflow::Inflow;
use crate::connection::outbox::Outbox;
use crate::connection::states::{Action, ConnectionState, Incident, initiator_next, target_next};
use crate::connection::{Ending, Timeouts};
use crate::pdu::{COMMON_LEN, PduType, TermReq};
use crate::peer_error::PeerError;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The controller's.
    Target,
    /// The host's.
    Initiator,
}

/// One end of a connection, as far as the role does not matter.
#[derive(Debug)]
pub(crate) struct Link {
    role: Role,
    pub(crate) state: ConnectionState,
    pub(crate) framing: Framing,
    pub(crate) outbox: Outbox,
    pub(crate) inflow: Inflow,
    pub(crate) clock: Clock,
    /// Why the connection ended or is ending; set when `state` leaves Ready.
    pub(crate) ending: Option<Ending>,
    /// Bytes of the next PDU without which nothing can be said of it.
    needed: usize,
}

/// What the next bytes are.
#[derive(Debug)]
pub(crate) enum Begun {
    /// The beginning of something.
    Wait,
    /// Nothing of interest any more.
    Discard,
    /// A PDU that is wrong.
    Wrong(PeerError),
    /// The peer ends the connection.
    Heard(Ending),
    /// A PDU with a well-formed header, what to do with it, and the state after that.
    Pdu { frame: Frame, action: Action, to: ConnectionState },
}

impl Link {
    pub(crate) fn new(role: Role, outbox: Outbox, timeouts: Timeouts, now_ns: u64) -> Self {
        Self {
            role,
            state: ConnectionState::Handshake,
            framing: Framing::PLAIN,
            outbox,
            inflow: Inflow::default(),
            clock: Clock::new(timeouts, now_ns),
            ending: None,
            needed: COMMON_LEN,
        }
    }

    /// Looks at the PDU that starts with `bytes`. Not while data of the last one is outstanding.
    ///
    /// Always part of its caller, as [`scan`] is of it: what they find would be copied from call to call through
    /// memory, in other pieces than it was written in, and wait there for the data of the command before.
    #[inline(always)]
    pub(crate) fn begin(&mut self, bytes: &[u8], capsule_limit: u32) -> Begun {
        let Some(kind) = kind_of(bytes) else { return Begun::Wait };
        let (to, action) = self.next(Incident::Pdu(kind));
        if action == Action::Ignore {
            return Begun::Discard;
        }
        if bytes.len() < self.needed {
            return Begun::Wait;
        }
        match action {
            Action::RefuseType => Begun::Wrong(PeerError::Type { pdu_type: PduType(bytes[0]) }),
            Action::RefuseSequence => Begun::Wrong(PeerError::Sequence { pdu: kind }),
            Action::HearTermination => self.hear(bytes),
            Action::Negotiate
            | Action::BeginCommand
            | Action::TakeData
            | Action::TakeR2t
            | Action::TakeResponse => match scan(bytes, &self.framing, capsule_limit) {
                Ok(Scan::Complete(frame)) => Begun::Pdu { frame, action, to },
                Ok(Scan::Incomplete(needed)) => self.wait_for(needed),
                Err(error) => Begun::Wrong(error),
            },
            // No PDU causes these.
            Action::Terminate | Action::Close | Action::Ignore => Begun::Discard,
        }
    }

    /// Nothing can be done before there are `needed` bytes of the PDU.
    pub(crate) fn wait_for(&mut self, needed: usize) -> Begun {
        self.needed = needed;
        Begun::Wait
    }

    /// The next bytes begin another PDU, or data of this one.
    pub(crate) fn consumed_header(&mut self) {
        self.needed = COMMON_LEN;
    }

    //= NVMe/TCP 1.0 §3.5
    //# The controller shall ignore a H2CTermReq PDU
    //# with a PDU length (PLEN) that exceeds 152 bytes (24-byte PDU Header plus 128-byte PDU data) and shall
    //# terminate the connection immediately.
    #[cold]
    fn hear(&mut self, bytes: &[u8]) -> Begun {
        match scan(bytes, &Framing::PLAIN, 0) {
            Ok(Scan::Incomplete(needed)) => self.wait_for(needed),
            Ok(Scan::Complete(_)) => match TermReq::ref_from_prefix(bytes) {
                Ok((request, _)) => {
                    Begun::Heard(Ending::PeerTerminated { fes: request.fes, fei: request.fei.get() })
                }
                Err(_) => Begun::Heard(Ending::PeerTerminatedIllegibly),
            },
            Err(_) => Begun::Heard(Ending::PeerTerminatedIllegibly),
        }
    }

    /// The peer broke the protocol with the PDU of which `header` is the beginning: tells it so. Input is
    /// discarded from now on.
    pub(crate) fn fail(&mut self, error: PeerError, header: &[u8], now_ns: u64) -> Ending {
        let (state, action) = self.next(Incident::Violation);
        if action == Action::Terminate {
            let (fes, fei) = error.fatal_error();
            let pdu_type = match self.role {
                Role::Target => PduType::C2H_TERM_REQ,
                Role::Initiator => PduType::H2C_TERM_REQ,
            };
            self.outbox.push_termination(pdu_type, fes, fei, header);
            self.clock.terminated(now_ns);
            self.clock.sent(now_ns);
            self.inflow = Inflow::default();
            self.ending = Some(Ending::Protocol(error));
        }
        self.state = state;
        self.ending.unwrap_or(Ending::Protocol(error))
    }

    /// The connection is over: nothing is sent or looked at any more. Returns whether it was open before.
    pub(crate) fn close(&mut self, incident: Incident, ending: Ending) -> bool {
        let (state, action) = self.next(incident);
        self.state = state;
        let was_open = matches!(action, Action::Close | Action::HearTermination);
        if was_open {
            self.outbox.clear();
            self.inflow = Inflow::default();
            self.ending.get_or_insert(ending);
        }
        was_open
    }

    /// The deadline that has passed at `now_ns`, if one has.
    pub(crate) fn missed(&self, owed: Owed, now_ns: u64) -> Option<Timeout> {
        let (at, timeout) = self.clock.next(self.state, owed)?;
        (now_ns >= at).then_some(timeout)
    }

    fn next(&self, incident: Incident) -> (ConnectionState, Action) {
        match self.role {
            Role::Target => target_next(self.state, incident),
            Role::Initiator => initiator_next(self.state, incident),
        }
    }
}
