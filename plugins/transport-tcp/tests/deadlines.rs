//! What a silent, slow or half-open peer comes to.

mod wire;

use nvme_spec::completion::{Cqe, StatusField};
use transport_tcp::connection::request::Transfer;
use transport_tcp::connection::{
    ConnectionState, Ending, InitiatorConnection, InitiatorEvent, InitiatorOptions, TargetConnection,
    TargetEvent, TargetOptions, Timeout, Timeouts,
};
use transport_tcp::pdu::PduKind;
use wire::{
    PLAIN, any, begin, begin_write, capsule, h2c_data, ready_initiator, ready_target, submit, target_output,
};

const TIMEOUTS: Timeouts = Timeouts { handshake_ns: 10, stall_ns: 30, idle_ns: 0, termination_ns: 40 };
const TARGET: TargetOptions = TargetOptions { timeouts: TIMEOUTS, ..TargetOptions::DEFAULT };
const HOST: InitiatorOptions = InitiatorOptions { timeouts: TIMEOUTS, ..InitiatorOptions::DEFAULT };

#[track_caller]
fn check(connection: &mut TargetConnection, at: u64, timeout: Timeout) {
    assert_eq!(connection.next_deadline(), Some(at));
    assert_eq!(connection.handle_timeout(at - 1), None);
    let was_terminating = connection.state() == ConnectionState::Terminating;
    let ended = (!was_terminating).then_some(TargetEvent::Ended(Ending::TimedOut(timeout)));
    assert_eq!(connection.handle_timeout(at), ended);
    assert_eq!((connection.state(), connection.next_deadline()), (ConnectionState::Closed, None));
}

#[test]
fn a_peer_that_never_speaks_is_left() {
    check(&mut TargetConnection::new(TARGET, 5).expect("options in range"), 15, Timeout::Handshake);
    let mut connection = InitiatorConnection::new(HOST, 5).expect("options in range");
    assert_eq!(connection.next_deadline(), Some(15));
    let ended = InitiatorEvent::Ended(Ending::TimedOut(Timeout::Handshake));
    assert_eq!(connection.handle_timeout(15), Some(ended));
}

#[test]
fn a_handshake_byte_by_byte_does_not_buy_time() {
    let mut connection = TargetConnection::new(TARGET, 0).expect("options in range");
    let request = any(PduKind::IcReq, &PLAIN);
    for now in 1..10 {
        assert_eq!(connection.handle_bytes(&request[..now as usize], now).consumed, 0);
    }
    check(&mut connection, 10, Timeout::Handshake);
}

#[test]
fn an_idle_queue_has_no_deadline_unless_it_is_given_one() {
    let mut connection = ready_target(TARGET, &PLAIN);
    begin(&mut connection, &PLAIN, 1);
    assert_eq!(connection.next_deadline(), None);
    let options = TargetOptions { timeouts: Timeouts { idle_ns: 100, ..TIMEOUTS }, ..TARGET };
    check(&mut ready_target(options, &PLAIN), 100, Timeout::Idle);
}

#[test]
fn half_a_capsule_is_waited_for_as_long_as_bytes_come() {
    let mut connection = ready_target(TARGET, &PLAIN);
    let bytes = capsule(&PLAIN, 1, &[0; 512]);
    for (len, now) in [(3, 20), (80, 45), (80, 60)] {
        connection.handle_bytes(&bytes[..len], now);
    }
    check(&mut connection, 45 + 30, Timeout::Stall);
}

#[test]
fn data_that_was_asked_for_has_to_come() {
    let mut connection = ready_target(TARGET, &PLAIN);
    let (_, tag) = begin_write(&mut connection, &PLAIN, 1, 20_000);
    assert_eq!(connection.next_deadline(), Some(30));
    let bytes = h2c_data(&PLAIN, 1, tag, 0, &[0; 8], false);
    connection.handle_bytes(&bytes, 12);
    connection.handle_bytes(&[], 12);
    let bytes = h2c_data(&PLAIN, 1, tag, 8, &[0; 80], false);
    connection.handle_bytes(&bytes[..24], 20);
    connection.handle_placed(&bytes[24..44], 25);
    check(&mut connection, 25 + 30, Timeout::Stall);
}

#[test]
fn a_reader_that_takes_nothing_is_left_and_its_commands_released() {
    let mut connection = ready_target(TARGET, &PLAIN);
    let slot = begin(&mut connection, &PLAIN, 1);
    assert_eq!(connection.next_deadline(), None);
    connection.execute(slot);
    connection.complete(slot, &Cqe::new(1, 0, StatusField::SUCCESS), 4096);
    connection.poll_output(|_| 0, 7);
    connection.handle_written(100, 20);
    // Bytes the other way do not count.
    connection.handle_bytes(&capsule(&PLAIN, 2, &[]), 45);
    check(&mut connection, 20 + 30, Timeout::Stall);
    assert_eq!(connection.output_len(), 0);
    assert_eq!(std::iter::from_fn(|| connection.poll_released()).count(), 2);
}

//= NVMe/TCP 1.0 §3.5
//= type=test
//# If the host does not terminate
//# the connection within 30 seconds, the controller may terminate the connection.
#[test]
fn a_peer_that_does_not_close_after_a_termination_is_left() {
    let mut connection = ready_target(TARGET, &PLAIN);
    connection.handle_bytes(&any(PduKind::Unknown, &PLAIN), 3);
    target_output(&mut connection);
    // Whatever still comes is discarded and buys no time.
    connection.handle_bytes(&capsule(&PLAIN, 2, &[]), 30);
    check(&mut connection, 3 + 40, Timeout::Termination);
    assert!(matches!(connection.ending(), Some(Ending::Protocol(_))), "the first reason stays");
    assert_eq!(Timeouts::DEFAULT.termination_ns, 30_000_000_000);
}

#[test]
fn a_capsule_that_waits_for_a_slot_is_not_the_peers_fault() {
    let mut connection = ready_target(TargetOptions { queue_depth: 1, ..TARGET }, &PLAIN);
    let slot = begin(&mut connection, &PLAIN, 1);
    connection.execute(slot);
    connection.complete(slot, &Cqe::new(1, 0, StatusField::SUCCESS), 0);
    connection.poll_output(|_| 0, 0);
    connection.handle_bytes(&capsule(&PLAIN, 2, &[]), 1);
    assert!(connection.is_stalled());
    connection.handle_written(24, 2);
    assert_eq!(connection.next_deadline(), None);
}

#[test]
fn lost_requests_of_a_silent_controller_are_told_when_it_is_left() {
    let mut connection = ready_initiator(HOST, &PLAIN);
    submit(&mut connection, 1, Transfer::ToHost(8));
    // How long a command may take is not the transport's to say.
    assert_eq!(connection.next_deadline(), None);
    let bytes = any(PduKind::C2hData, &PLAIN);
    connection.handle_bytes(&bytes[..20], 5);
    assert_eq!(connection.handle_timeout(34), None);
    let ended = InitiatorEvent::Ended(Ending::TimedOut(Timeout::Stall));
    assert_eq!(connection.handle_timeout(35), Some(ended));
    assert!(connection.poll_completion().is_some());
}
