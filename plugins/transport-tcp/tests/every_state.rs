//! Every pair of state and PDU, on live connections: what the table says is what happens.
//!
//! The table itself is `src/connection/states.txt`.

mod wire;

use nvme_spec::command::Sqe;
use nvme_spec::completion::{Cqe, StatusField};
use transport_tcp::connection::command::CommandState;
use transport_tcp::connection::request::{RequestState, Transfer};
use transport_tcp::connection::states::{Action, Incident, initiator_next, target_next};
use transport_tcp::connection::{
    ConnectionState, Ending, InitiatorConnection, InitiatorEvent, InitiatorOptions, Slot, TargetConnection,
    TargetEvent, TargetOptions,
};
use transport_tcp::pdu::{FatalErrorStatus as Fes, PduFlags, PduKind, PduType, field};
use wire::{
    PLAIN, any, begin, begin_write, c2h_data, capsule, h2c_data, initiator_output, last_termination, r2t,
    ready_initiator, ready_target, response, submit, target_output, with,
};
use zerocopy::FromZeros;

const TARGET: TargetOptions = TargetOptions { queue_depth: 4, ..TargetOptions::DEFAULT };
const HOST: InitiatorOptions = InitiatorOptions { queue_depth: 4, ..InitiatorOptions::DEFAULT };
/// Of the command that `any` speaks of.
const CID: u16 = 1;

fn success() -> Cqe {
    Cqe::new(0, 0, StatusField::SUCCESS)
}

/// A target in a state; in Ready it waits for 8 bytes of command 1, by the tag that is returned.
fn target_in(state: ConnectionState) -> (TargetConnection, u16) {
    if state == ConnectionState::Handshake {
        return (TargetConnection::new(TARGET, 0).expect("options in range"), 0);
    }
    let mut connection = ready_target(TARGET, &PLAIN);
    let (_, tag) = begin_write(&mut connection, &PLAIN, CID, 8);
    match state {
        ConnectionState::Handshake | ConnectionState::Ready => {}
        ConnectionState::Terminating => {
            connection.handle_bytes(&any(PduKind::Unknown, &PLAIN), 0);
            target_output(&mut connection);
        }
        ConnectionState::Closed => {
            connection.close();
        }
    }
    assert_eq!(connection.state(), state);
    (connection, tag)
}

#[test]
fn every_pdu_in_every_state_of_the_target() {
    for state in ConnectionState::ALL {
        for kind in PduKind::ALL {
            let (mut connection, tag) = target_in(state);
            let mut bytes = any(kind, &PLAIN);
            if kind == PduKind::H2cData {
                bytes = with(bytes, field::TTAG, &tag.to_le_bytes(), &PLAIN);
            }
            let (to, action) = target_next(state, Incident::Pdu(kind));
            let event = connection.handle_bytes(&bytes, 0).event;
            let context = format!("{kind:?} in {state:?}: {event:?}");
            assert_eq!(connection.state(), to, "{context}");
            match action {
                Action::Negotiate => assert!(matches!(event, Some(TargetEvent::Ready(_))), "{context}"),
                Action::BeginCommand => {
                    assert!(matches!(event, Some(TargetEvent::Command { .. })), "{context}");
                }
                Action::TakeData => {
                    assert!(matches!(event, Some(TargetEvent::Data { offset: 0, .. })), "{context}");
                }
                Action::HearTermination => {
                    let is_told = matches!(event, Some(TargetEvent::Ended(Ending::PeerTerminated { .. })));
                    assert!(is_told, "{context}");
                }
                Action::RefuseType | Action::RefuseSequence => {
                    assert!(matches!(event, Some(TargetEvent::Ended(Ending::Protocol(_)))), "{context}");
                    check_refusal(action, &bytes, &target_output(&mut connection));
                }
                Action::Ignore => assert!(event.is_none() && connection.output_len() == 0, "{context}"),
                Action::TakeR2t | Action::TakeResponse | Action::Terminate | Action::Close => {
                    panic!("not at a target: {context}");
                }
            }
        }
    }
}

fn initiator_in(state: ConnectionState) -> InitiatorConnection {
    if state == ConnectionState::Handshake {
        let mut connection = InitiatorConnection::new(HOST, 0).expect("options in range");
        initiator_output(&mut connection);
        return connection;
    }
    let mut connection = ready_initiator(HOST, &PLAIN);
    match state {
        ConnectionState::Handshake | ConnectionState::Ready => {}
        ConnectionState::Terminating => {
            connection.handle_bytes(&any(PduKind::Unknown, &PLAIN), 0);
            initiator_output(&mut connection);
        }
        ConnectionState::Closed => {
            connection.close();
        }
    }
    assert_eq!(connection.state(), state);
    connection
}

#[test]
fn every_pdu_in_every_state_of_the_initiator() {
    for state in ConnectionState::ALL {
        for kind in PduKind::ALL {
            let mut connection = initiator_in(state);
            if state == ConnectionState::Ready {
                let is_write = kind == PduKind::R2t;
                connection.set_in_capsule_bytes(0);
                let transfer = if is_write { Transfer::ToController(8) } else { Transfer::ToHost(8) };
                submit(&mut connection, CID, transfer);
            }
            let (to, action) = initiator_next(state, Incident::Pdu(kind));
            let bytes = any(kind, &PLAIN);
            let handled = connection.handle_bytes(&bytes, 0);
            let event = handled.event;
            let context = format!("{kind:?} in {state:?}: {event:?}");
            assert_eq!(connection.state(), to, "{context}");
            match action {
                Action::Negotiate => assert!(matches!(event, Some(InitiatorEvent::Ready(_))), "{context}"),
                Action::TakeData => {
                    assert!(matches!(event, Some(InitiatorEvent::Data { offset: 0, .. })), "{context}");
                }
                Action::TakeR2t => {
                    assert!(event.is_none() && handled.consumed == bytes.len(), "{context}");
                    assert_eq!(initiator_output(&mut connection).len(), 24 + 8, "{context}");
                }
                Action::TakeResponse => assert!(connection.poll_completion().is_some(), "{context}"),
                Action::HearTermination => {
                    let is_told = matches!(event, Some(InitiatorEvent::Ended(Ending::PeerTerminated { .. })));
                    assert!(is_told, "{context}");
                }
                Action::RefuseType | Action::RefuseSequence => {
                    assert!(matches!(event, Some(InitiatorEvent::Ended(Ending::Protocol(_)))), "{context}");
                    check_refusal(action, &bytes, &initiator_output(&mut connection));
                }
                Action::Ignore => assert!(event.is_none() && connection.output_len() == 0, "{context}"),
                Action::BeginCommand | Action::Terminate | Action::Close => {
                    panic!("not at an initiator: {context}");
                }
            }
        }
    }
}

/// The Terminate Connection Request says what was refused of `sent`, and quotes it.
#[track_caller]
fn check_refusal(action: Action, sent: &[u8], output: &[u8]) {
    let (_, fes, fei, quoted) = last_termination(output);
    let expected =
        if action == Action::RefuseType { Fes::INVALID_PDU_HEADER_FIELD } else { Fes::PDU_SEQUENCE_ERROR };
    assert_eq!((fes, fei), (expected, 0));
    let header_len = PduKind::of(PduType(sent[0])).header_len().max(8);
    assert_eq!(quoted, sent[..usize::from(header_len)]);
}

/// A target with command 1 in a state, its slot, and the tag that data for it would carry.
fn target_with_command(state: CommandState) -> (TargetConnection, Slot, u16) {
    let mut connection = ready_target(TARGET, &PLAIN);
    if state == CommandState::Received {
        // Its first tag would be that of another first use of the slot.
        let (_, _, tag) = target_with_command(CommandState::Receiving);
        let slot = begin(&mut connection, &PLAIN, CID);
        return (connection, slot, tag);
    }
    let (slot, tag) = begin_write(&mut connection, &PLAIN, CID, 16);
    let data = h2c_data(&PLAIN, CID, tag, 0, &[1; 16], true);
    match state {
        CommandState::Received | CommandState::Receiving => {}
        CommandState::Discarding => connection.complete(slot, &success(), 0),
        CommandState::Executing | CommandState::Responding | CommandState::Free => {
            connection.handle_bytes(&data, 0);
            connection.handle_bytes(&[], 0);
        }
    }
    match state {
        CommandState::Responding => connection.complete(slot, &success(), 0),
        CommandState::Free => {
            connection.complete(slot, &success(), 0);
            target_output(&mut connection);
            assert_eq!(connection.poll_released(), Some(slot));
        }
        CommandState::Received
        | CommandState::Receiving
        | CommandState::Executing
        | CommandState::Discarding => {}
    }
    assert_eq!(connection.command_state(slot), state);
    (connection, slot, tag)
}

#[test]
fn data_in_every_state_of_a_command() {
    for state in CommandState::ALL {
        let (mut connection, slot, tag) = target_with_command(state);
        let bytes = h2c_data(&PLAIN, CID, tag, 0, &[1; 16], true);
        let event = connection.handle_bytes(&bytes, 0).event;
        let refused = match event {
            Some(TargetEvent::Ended(Ending::Protocol(error))) => Some(error.fatal_error()),
            _ => None,
        };
        match state {
            CommandState::Free | CommandState::Received => {
                let unknown = (Fes::INVALID_PDU_HEADER_FIELD, field::TTAG);
                assert_eq!(refused, Some(unknown), "{state:?}");
            }
            CommandState::Executing | CommandState::Responding => {
                assert_eq!(refused, Some((Fes::PDU_SEQUENCE_ERROR, 0)), "{state:?}");
            }
            CommandState::Receiving => assert!(matches!(event, Some(TargetEvent::Data { .. }))),
            CommandState::Discarding => {
                assert_eq!(event, None);
                assert_eq!(connection.command_state(slot), CommandState::Responding);
            }
        }
    }
}

/// An initiator with command 1 in a state; its capsule is unwritten in Draining.
fn initiator_with_request(state: RequestState) -> InitiatorConnection {
    let mut connection = ready_initiator(HOST, &PLAIN);
    let slot = connection.slot_of(CID);
    let mut sqe = Sqe::new_zeroed();
    sqe.cid.set(CID);
    if state != RequestState::Free {
        connection.submit(&sqe, Transfer::ToHost(8)).expect("room for a command");
    }
    match state {
        RequestState::Free | RequestState::Queued => {}
        RequestState::Sent => {
            initiator_output(&mut connection);
        }
        RequestState::Draining => {
            connection.poll_output(|_| 0, 0);
            connection.handle_bytes(&response(&PLAIN, CID), 0);
        }
        RequestState::Done => {
            initiator_output(&mut connection);
            connection.handle_bytes(&response(&PLAIN, CID), 0);
        }
    }
    assert_eq!(connection.request_state(slot), state);
    connection
}

#[test]
fn every_pdu_of_a_command_in_every_state_of_a_request() {
    let pdus = [
        (response(&PLAIN, CID), field::RCCQE_CID),
        (c2h_data(&PLAIN, CID, 0, &[1; 8], PduFlags::LAST_PDU), field::CCCID),
        (r2t(&PLAIN, CID, 1, 0, 8), field::CCCID),
    ];
    for state in RequestState::ALL {
        for (bytes, cid_field) in &pdus {
            let mut connection = initiator_with_request(state);
            let event = connection.handle_bytes(bytes, 0).event;
            let refused = match event {
                Some(InitiatorEvent::Ended(Ending::Protocol(error))) => Some(error.fatal_error()),
                _ => None,
            };
            let is_r2t_of_a_read = bytes[0] == 9;
            match state {
                RequestState::Sent if is_r2t_of_a_read => {
                    assert_eq!(refused, Some((Fes::PDU_SEQUENCE_ERROR, 0)));
                }
                RequestState::Sent => assert_eq!(refused, None),
                RequestState::Free | RequestState::Queued | RequestState::Draining | RequestState::Done => {
                    let unknown = (Fes::INVALID_PDU_HEADER_FIELD, *cid_field);
                    assert_eq!(refused, Some(unknown), "{state:?} {:#04x}", bytes[0]);
                }
            }
        }
    }
}

#[test]
fn a_second_end_is_not_told() {
    for state in ConnectionState::ALL {
        let (mut connection, _) = target_in(state);
        let is_told_here = matches!(state, ConnectionState::Handshake | ConnectionState::Ready);
        assert_eq!(connection.handle_eof().is_some(), is_told_here, "{state:?}");
        assert_eq!((connection.handle_eof(), connection.close()), (None, None));
        assert_eq!(connection.state(), ConnectionState::Closed);
        let mut connection = initiator_in(state);
        assert_eq!(connection.handle_eof().is_some(), is_told_here, "{state:?}");
        assert_eq!((connection.handle_eof(), connection.close()), (None, None));
        assert_eq!(connection.state(), ConnectionState::Closed);
    }
}

#[test]
fn commands_after_the_end_are_not_taken() {
    let (mut connection, _) = target_in(ConnectionState::Closed);
    let bytes = capsule(&PLAIN, 1, &[]);
    assert_eq!(connection.handle_bytes(&bytes, 0).consumed, bytes.len());
    while connection.poll_released().is_some() {}
    assert_eq!(connection.commands_in_flight(), 0);
}
