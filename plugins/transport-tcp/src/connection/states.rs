//! The states of a connection and what every PDU and incident does in each.
//!
//! One total function per role; `states.txt` is the table they make, and a test
//! compares it. They decide what is done with a PDU by its type alone; whether
//! its fields are right is found out later and is an incident of its own.
#![forbid(unsafe_code)]

use crate::pdu::PduKind;

/// State of a connection, in either role.
///
/// ```text
/// Handshake ──ICReq / ICResp──► Ready ──violation──► Terminating ──closed, too late──► Closed
///     └──────────violation──────────────────────────────▲                                ▲
///     any ──────TermReq of the peer, end of stream, time-out, own close──────────────────┘
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConnectionState {
    /// ICReq and ICResp are being exchanged.
    Handshake,
    /// Capsules and data travel.
    Ready,
    /// A Terminate Connection Request is on its way; input is discarded until the peer closes.
    Terminating,
    /// Over; the socket is to be closed.
    Closed,
}

impl ConnectionState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Handshake, Self::Ready, Self::Terminating, Self::Closed];
}

/// What can happen to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Incident {
    /// A PDU of this type begins.
    Pdu(PduKind),
    /// A PDU turned out to be wrong.
    Violation,
    /// A deadline passed.
    Timeout,
    /// The stream ended.
    Eof,
    /// The owner wants it to end.
    Close,
}

impl Incident {
    /// Every incident.
    pub fn all() -> impl Iterator<Item = Self> {
        let others = [Self::Violation, Self::Timeout, Self::Eof, Self::Close];
        PduKind::ALL.into_iter().map(Self::Pdu).chain(others)
    }
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Target: agree and answer. Initiator: take over what was agreed.
    Negotiate,
    /// Target: take the command.
    BeginCommand,
    /// Take the data.
    TakeData,
    /// Initiator: note what the controller asks for.
    TakeR2t,
    /// Initiator: take the completion.
    TakeResponse,
    /// The peer ends the connection: note why.
    HearTermination,
    /// Refuse the PDU: its type does not travel this way, or does not exist.
    RefuseType,
    /// Refuse the PDU: it is not expected now.
    RefuseSequence,
    /// Send a Terminate Connection Request.
    Terminate,
    /// Let go of everything; the socket is to be closed.
    Close,
    /// Nothing.
    Ignore,
}

/// What the controller's end does.
#[must_use]
pub const fn target_next(state: ConnectionState, incident: Incident) -> (ConnectionState, Action) {
    use ConnectionState::{Closed, Handshake, Ready, Terminating};
    use PduKind::{
        C2hData, C2hTermReq, CapsuleCmd, CapsuleResp, H2cData, H2cTermReq, IcReq, IcResp, R2t, Unknown,
    };
    match (state, incident) {
        (Handshake, Incident::Pdu(IcReq)) => (Ready, Action::Negotiate),
        (Handshake, Incident::Pdu(CapsuleCmd | H2cData)) | (Ready, Incident::Pdu(IcReq)) => {
            (Terminating, Action::RefuseSequence)
        }
        (Ready, Incident::Pdu(CapsuleCmd)) => (Ready, Action::BeginCommand),
        (Ready, Incident::Pdu(H2cData)) => (Ready, Action::TakeData),
        (Handshake | Ready, Incident::Pdu(H2cTermReq)) => (Closed, Action::HearTermination),
        (Handshake | Ready, Incident::Pdu(IcResp | C2hTermReq | CapsuleResp | C2hData | R2t | Unknown)) => {
            (Terminating, Action::RefuseType)
        }
        (Handshake | Ready, Incident::Violation) => (Terminating, Action::Terminate),
        (Handshake | Ready | Terminating, Incident::Timeout | Incident::Eof | Incident::Close) => {
            (Closed, Action::Close)
        }
        (Terminating, Incident::Pdu(_) | Incident::Violation) => (Terminating, Action::Ignore),
        (
            Closed,
            Incident::Pdu(_) | Incident::Violation | Incident::Timeout | Incident::Eof | Incident::Close,
        ) => (Closed, Action::Ignore),
    }
}

/// What the host's end does.
#[must_use]
pub const fn initiator_next(state: ConnectionState, incident: Incident) -> (ConnectionState, Action) {
    use ConnectionState::{Closed, Handshake, Ready, Terminating};
    use PduKind::{
        C2hData, C2hTermReq, CapsuleCmd, CapsuleResp, H2cData, H2cTermReq, IcReq, IcResp, R2t, Unknown,
    };
    match (state, incident) {
        (Handshake, Incident::Pdu(IcResp)) => (Ready, Action::Negotiate),
        (Handshake, Incident::Pdu(CapsuleResp | C2hData | R2t)) | (Ready, Incident::Pdu(IcResp)) => {
            (Terminating, Action::RefuseSequence)
        }
        (Ready, Incident::Pdu(CapsuleResp)) => (Ready, Action::TakeResponse),
        (Ready, Incident::Pdu(C2hData)) => (Ready, Action::TakeData),
        (Ready, Incident::Pdu(R2t)) => (Ready, Action::TakeR2t),
        (Handshake | Ready, Incident::Pdu(C2hTermReq)) => (Closed, Action::HearTermination),
        (Handshake | Ready, Incident::Pdu(IcReq | H2cTermReq | CapsuleCmd | H2cData | Unknown)) => {
            (Terminating, Action::RefuseType)
        }
        (Handshake | Ready, Incident::Violation) => (Terminating, Action::Terminate),
        (Handshake | Ready | Terminating, Incident::Timeout | Incident::Eof | Incident::Close) => {
            (Closed, Action::Close)
        }
        (Terminating, Incident::Pdu(_) | Incident::Violation) => (Terminating, Action::Ignore),
        (
            Closed,
            Incident::Pdu(_) | Incident::Violation | Incident::Timeout | Incident::Eof | Incident::Close,
        ) => (Closed, Action::Ignore),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::connection::command::{CommandEvent, CommandState};
    use crate::connection::request::{RequestEvent, RequestState};

    fn table() -> String {
        let mut text =
            String::from("What happens in each state; made and compared by a test of states.rs.\n");
        for (role, next) in [
            ("connection, target", target_next as fn(_, _) -> _),
            ("connection, initiator", initiator_next as fn(_, _) -> _),
        ] {
            let _ = writeln!(text, "\n# {role}");
            for state in ConnectionState::ALL {
                for incident in Incident::all() {
                    let (to, action) = next(state, incident);
                    let incident = format!("{incident:?}");
                    let _ = writeln!(
                        text,
                        "{:<12} {incident:<18} {:<12} {action:?}",
                        format!("{state:?}"),
                        format!("{to:?}")
                    );
                }
            }
        }
        let _ = writeln!(text, "\n# command at the target");
        for state in CommandState::ALL {
            for event in CommandEvent::ALL {
                let to = state.next(event).map_or("-".to_owned(), |to| format!("{to:?}"));
                let _ = writeln!(text, "{:<12} {:<18} {to}", format!("{state:?}"), format!("{event:?}"));
            }
        }
        let _ = writeln!(text, "\n# request at the initiator");
        for state in RequestState::ALL {
            for event in RequestEvent::ALL {
                let to = state.next(event).map_or("-".to_owned(), |to| format!("{to:?}"));
                let _ = writeln!(text, "{:<12} {:<18} {to}", format!("{state:?}"), format!("{event:?}"));
            }
        }
        text
    }

    /// `TENON_BLESS=1` writes the table instead of comparing it.
    #[test]
    fn the_committed_table_is_what_the_functions_do() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/connection/states.txt");
        let table = table();
        if std::env::var_os("TENON_BLESS").is_some() {
            std::fs::write(path, &table).expect("write the table");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(committed, table, "run with TENON_BLESS=1 and look at the difference");
    }

    #[test]
    fn nothing_leads_back() {
        let rank = |state| ConnectionState::ALL.iter().position(|known| *known == state);
        for state in ConnectionState::ALL {
            for incident in Incident::all() {
                assert!(rank(target_next(state, incident).0) >= rank(state));
                assert!(rank(initiator_next(state, incident).0) >= rank(state));
            }
        }
    }

    #[test]
    fn pdus_of_the_own_direction_are_refused_by_type_in_every_open_state() {
        for state in [ConnectionState::Handshake, ConnectionState::Ready] {
            for kind in PduKind::ALL {
                let at_target = target_next(state, Incident::Pdu(kind)).1 == Action::RefuseType;
                let at_initiator = initiator_next(state, Incident::Pdu(kind)).1 == Action::RefuseType;
                assert!(at_target != at_initiator || kind == PduKind::Unknown, "{state:?} {kind:?}");
            }
        }
    }
}
