//! How data travels: batches, R2T windows, splitting, placement, digests, and what waits for what.

mod wire;

use nvme_spec::command::Sqe;
use nvme_spec::completion::{Cqe, StatusField};
use nvme_spec::status::StatusCode;
use tenon_sdk::crc32c;
use transport_tcp::connection::command::CommandState;
use transport_tcp::connection::initiator::SubmitError;
use transport_tcp::connection::request::{Outcome, RequestState, Transfer};
use transport_tcp::connection::{
    ConnectionState, Ending, InitiatorConnection, InitiatorEvent, InitiatorOptions, Piece, Placement, Slot,
    TargetConnection, TargetEvent, TargetOptions,
};
use transport_tcp::pdu::{C2hData, DigestFlags, H2cData, IcReq, PduFlags, PduKind, PduType, R2t};
use wire::{
    DIGESTS, PLAIN, any, begin, begin_write, c2h_data, capsule, h2c_data, headers, initiator_output, pdu,
    r2t, ready_initiator, ready_target, response, submit, target_output,
};
use zerocopy::{FromBytes, FromZeros};

const TARGET: TargetOptions = TargetOptions { queue_depth: 64, ..TargetOptions::DEFAULT };
const HOST: InitiatorOptions = InitiatorOptions { queue_depth: 64, ..InitiatorOptions::DEFAULT };

fn success() -> Cqe {
    Cqe::new(0, 0, StatusField::SUCCESS)
}

fn failure() -> Cqe {
    Cqe::new(0, 0, StatusField::new(StatusCode::INVALID_FIELD))
}

/// Takes command `cid` and completes it with `len` bytes.
fn answer(connection: &mut TargetConnection, cid: u16, cqe: &Cqe, len: u32) -> Slot {
    let slot = begin(connection, &PLAIN, cid);
    connection.execute(slot);
    connection.complete(slot, cqe, len);
    slot
}

fn types(stream: &[u8]) -> Vec<PduType> {
    headers(stream).iter().map(|header| header.pdu_type).collect()
}

#[test]
fn sixty_four_responses_are_one_piece() {
    let mut connection = ready_target(TARGET, &PLAIN);
    for cid in 0..64 {
        answer(&mut connection, cid, &success(), 0);
    }
    connection.poll_output(|_| 0, 0);
    let pieces: Vec<_> = connection.pieces().collect();
    assert!(matches!(pieces[..], [Piece::Bytes(bytes)] if bytes.len() == 64 * 24), "{} pieces", pieces.len());
    connection.handle_written(64 * 24, 0);
    let released = std::iter::from_fn(|| connection.poll_released()).count();
    assert_eq!((released, connection.commands_in_flight()), (64, 0));
}

#[test]
fn sixty_four_reads_are_two_pieces_each() {
    let mut connection = ready_target(TARGET, &DIGESTS);
    for cid in 0..64 {
        let slot = begin(&mut connection, &DIGESTS, cid);
        connection.execute(slot);
        connection.complete(slot, &success(), 4096);
    }
    connection.poll_output(|_| 7, 0);
    // The digest of one payload and the header of the next lie side by side.
    assert_eq!(connection.pieces().count(), 64 * 2 + 1);
}

#[test]
fn completions_carry_the_identifier_of_their_command() {
    let mut connection = ready_target(TARGET, &PLAIN);
    answer(&mut connection, 0x1234, &Cqe::new(9, 5, StatusField::SUCCESS), 0);
    let output = target_output(&mut connection);
    assert_eq!(output[16..18], [5, 0], "SQHD stays");
    assert_eq!(output[20..22], [0x34, 0x12]);
}

#[test]
fn the_success_flag_replaces_a_response_that_says_nothing_else() {
    let check = |options: TargetOptions, cqe: &Cqe, len: u32, flags: PduFlags, pdus: &[PduType]| {
        let mut connection = ready_target(options, &PLAIN);
        answer(&mut connection, 1, cqe, len);
        let output = target_output(&mut connection);
        assert_eq!(types(&output), pdus);
        if len > 0 {
            assert_eq!(headers(&output)[0].flags, flags);
        }
    };
    let last = PduFlags::LAST_PDU;
    let both = last.with_if(true, PduFlags::SUCCESS);
    check(TARGET, &success(), 4096, both, &[PduType::C2H_DATA]);
    let silent = TargetOptions { sends_success_flag: false, ..TARGET };
    check(silent, &success(), 4096, last, &[PduType::C2H_DATA, PduType::CAPSULE_RESP]);
    let mut result = success();
    result.dw1.set(1);
    check(TARGET, &result, 4096, last, &[PduType::C2H_DATA, PduType::CAPSULE_RESP]);
    check(TARGET, &failure(), 4096, last, &[PduType::C2H_DATA, PduType::CAPSULE_RESP]);
    check(TARGET, &success(), 0, last, &[PduType::CAPSULE_RESP]);
}

//= NVMe/TCP 1.0 §3.3.2.1
//= type=test
//# The SUCCESS flag shall be cleared to ‘0’ in all C2HData PDUs that are not the last C2HData PDU
//# for a command.
#[test]
fn large_reads_take_turns_and_stay_in_order() {
    let options = TargetOptions { max_c2h_data_bytes: 4096, ..TARGET };
    let mut connection = ready_target(options, &PLAIN);
    answer(&mut connection, 1, &success(), 10_000);
    answer(&mut connection, 2, &success(), 8192);
    let output = target_output(&mut connection);
    let mut rest = output.as_slice();
    let mut seen = Vec::new();
    while let Ok((header, _)) = C2hData::ref_from_prefix(rest) {
        let is_last = header.ch.flags.contains(PduFlags::LAST_PDU);
        assert_eq!(header.ch.flags.contains(PduFlags::SUCCESS), is_last);
        seen.push((header.cccid.get(), header.datao.get(), header.datal.get(), is_last));
        rest = &rest[header.ch.plen.get() as usize..];
    }
    let expected = [
        (1, 0, 4096, false),
        (2, 0, 4096, false),
        (1, 4096, 4096, false),
        (2, 4096, 4096, true),
        (1, 8192, 1808, true),
    ];
    assert_eq!(seen, expected);
}

/// A target after a handshake with a host that allows `max_r2t` R2Ts.
fn target_for_host_with(max_r2t: u32, options: TargetOptions) -> TargetConnection {
    let mut connection = TargetConnection::new(options, 0).expect("options in range");
    connection.handle_bytes(&pdu(&IcReq::new(0, DigestFlags(0), max_r2t - 1), &PLAIN, &[]), 0);
    target_output(&mut connection);
    connection
}

//= NVMe/TCP 1.0 §3.3.2.2
//= type=test
//# A controller
//# may send an R2T PDU without waiting for a previous R2T data transfer to complete, but shall not exceed
//# the maximum number of outstanding R2T PDUs per command supported by the host (MAXR2T).
#[test]
fn r2ts_keep_to_the_window_and_cover_the_data_once() {
    for max_r2t in [1, 2, 4, 9] {
        let options = TargetOptions { r2t_bytes: 4096, max_r2t: 4, ..TARGET };
        let mut connection = target_for_host_with(max_r2t, options);
        let slot = begin(&mut connection, &PLAIN, 5);
        connection.receive(slot, 20_002);
        let (mut outstanding, mut asked, mut most) = (Vec::new(), 0, 0);
        let mut is_complete = false;
        while !is_complete {
            let output = target_output(&mut connection);
            let mut rest = output.as_slice();
            while let Ok((r2t, _)) = R2t::ref_from_prefix(rest) {
                assert_eq!(r2t.r2to.get(), asked);
                asked += r2t.r2tl.get();
                outstanding.push(*r2t);
                rest = &rest[24..];
            }
            most = most.max(outstanding.len());
            assert!(outstanding.len() <= max_r2t.min(4) as usize);
            let r2t = outstanding.remove(0);
            let (offset, len) = (r2t.r2to.get(), r2t.r2tl.get());
            let data = h2c_data(&PLAIN, 5, r2t.ttag.get(), offset, &vec![1; len as usize], true);
            let mut start = 0;
            while start < data.len() {
                let handled = connection.handle_bytes(&data[start..], 0);
                start += handled.consumed;
                is_complete |= matches!(handled.event, Some(TargetEvent::DataComplete { .. }));
            }
            is_complete |= connection.handle_bytes(&[], 0).event.is_some();
        }
        assert_eq!((asked, most), (20_002, max_r2t.min(4) as usize));
    }
}

#[test]
fn the_host_splits_by_maxh2cdata_and_serves_r2ts_in_order() {
    // `ready_initiator` is told MAXH2CDATA 4096.
    let mut connection = ready_initiator(HOST, &PLAIN);
    submit(&mut connection, 5, Transfer::ToController(10_002));
    let bytes = [r2t(&PLAIN, 5, 0xaa, 0, 6000), r2t(&PLAIN, 5, 0xbb, 6000, 4002)].concat();
    assert_eq!(connection.handle_bytes(&bytes, 0).consumed, bytes.len());
    let output = initiator_output(&mut connection);
    let mut rest = output.as_slice();
    let mut seen = Vec::new();
    while let Ok((header, _)) = H2cData::ref_from_prefix(rest) {
        let is_last = header.ch.flags.contains(PduFlags::LAST_PDU);
        assert_eq!(header.cccid.get(), 5);
        seen.push((header.ttag.get(), header.datao.get(), header.datal.get(), is_last));
        rest = &rest[header.ch.plen.get() as usize..];
    }
    let expected = [(0xaa, 0, 4096, false), (0xaa, 4096, 1904, true), (0xbb, 6000, 4002, true)];
    assert_eq!(seen, expected);
}

#[test]
fn small_data_travels_in_the_capsule_and_says_so() {
    let mut connection = ready_initiator(HOST, &DIGESTS);
    connection.set_in_capsule_bytes(4096);
    for (cid, transfer, plen, sgl) in [
        (1, Transfer::ToController(4096), 76 + 4096 + 4, 0x01),
        (2, Transfer::ToController(4097), 76, 0x5a),
        (3, Transfer::ToHost(512), 76, 0x5a),
        (4, Transfer::None, 76, 0x5a),
    ] {
        let mut sqe = Sqe::new_zeroed();
        sqe.cid.set(cid);
        sqe.flags.0 = 0xc1;
        connection.submit(&sqe, transfer).expect("room for a command");
        let output = initiator_output(&mut connection);
        assert_eq!(output.len(), plen);
        assert_eq!(output[8 + 1], 0x41, "fused bits stay, PSDT says SGL");
        assert_eq!(output[8 + 39], sgl);
        assert_eq!(output[8 + 32..8 + 36], transfer.length().to_le_bytes());
    }
}

/// Feeds a PDU header and receives its data straight into place.
fn place(connection: &mut TargetConnection, bytes: &[u8], header_len: usize, chunk: usize) -> Vec<Placement> {
    assert_eq!(connection.handle_bytes(&bytes[..header_len], 0).event, None);
    let mut at = header_len;
    let mut places = Vec::new();
    while let Some(place) = connection.placement() {
        let len = chunk.min(place.len as usize);
        places.push(place);
        connection.handle_placed(&bytes[at..at + len], 0);
        at += len;
    }
    places
}

#[test]
fn data_can_go_straight_to_its_place() {
    for framing in [PLAIN, DIGESTS] {
        let mut connection = ready_target(TARGET, &framing);
        let (slot, tag) = begin_write(&mut connection, &framing, 5, 40_000);
        let bytes = h2c_data(&framing, 5, tag, 0, &vec![0x5a; 40_000], true);
        let header_len = bytes.len() - 40_000 - framing.data_digest_len();
        let places = place(&mut connection, &bytes, header_len, 16_000);
        let lens: Vec<(u32, u32)> = places.iter().map(|place| (place.offset, place.len)).collect();
        assert_eq!(lens, [(0, 40_000), (16_000, 24_000), (32_000, 8000)]);
        let digest = &bytes[bytes.len() - framing.data_digest_len()..];
        let event = connection.handle_bytes(digest, 0).event;
        assert_eq!(event, Some(TargetEvent::DataComplete { slot, is_intact: true }));
    }
}

#[test]
fn damage_to_data_fails_its_command_alone() {
    let damaged = |mut bytes: Vec<u8>| {
        let last = bytes.len() - 1;
        bytes[last] ^= 0x10;
        bytes
    };
    let mut connection = ready_target(TARGET, &DIGESTS);
    let bytes = damaged(capsule(&DIGESTS, 1, &[3; 512]));
    let Some(TargetEvent::Command { slot, is_intact, data, .. }) = connection.handle_bytes(&bytes, 0).event
    else {
        panic!("no command")
    };
    assert!(!is_intact && data == [3; 512]);
    connection.execute(slot);
    connection.complete(slot, &failure(), 0);
    assert_eq!(types(&target_output(&mut connection)), [PduType::CAPSULE_RESP]);
    let (slot, tag) = begin_write(&mut connection, &DIGESTS, 5, 16);
    let bytes = damaged(h2c_data(&DIGESTS, 5, tag, 0, &[1; 16], true));
    let placed = connection.handle_bytes(&bytes, 0);
    let event = connection.handle_bytes(&bytes[placed.consumed..], 0).event;
    assert_eq!(event, Some(TargetEvent::DataComplete { slot, is_intact: false }));
    assert_eq!(connection.state(), ConnectionState::Ready);
}

//= NVMe/TCP 1.0 §3.5
//= type=test
//# When a host detects a data digest error in a C2HData PDU, that host shall continue
//# processing C2HData PDUs associated with the command and when the command processing has
//# completed, if a successful status was returned by the controller, the host shall fail the command with a
//# non-fatal transport error.
#[test]
fn damage_to_data_for_the_host_becomes_a_transient_transport_error() {
    let mut connection = ready_initiator(HOST, &DIGESTS);
    submit(&mut connection, 5, Transfer::ToHost(16));
    let mut bytes = c2h_data(&DIGESTS, 5, 0, &[1; 8], PduFlags::NONE);
    *bytes.last_mut().expect("a digest") ^= 1;
    let flags = PduFlags::LAST_PDU.with_if(true, PduFlags::SUCCESS);
    bytes.extend(c2h_data(&DIGESTS, 5, 8, &[2; 8], flags));
    let mut start = 0;
    while start < bytes.len() {
        start += connection.handle_bytes(&bytes[start..], 0).consumed;
    }
    let completion = connection.poll_completion().expect("a completion");
    let Outcome::Answered(cqe) = completion.outcome else { panic!("lost") };
    assert_eq!(cqe.status.code(), StatusCode::TRANSIENT_TRANSPORT_ERROR);
    assert_eq!(completion.received, 16);
    assert_eq!(connection.state(), ConnectionState::Ready);
}

#[test]
fn a_capsule_waits_for_a_slot_whose_response_is_being_written() {
    let mut connection = ready_target(TargetOptions { queue_depth: 1, ..TARGET }, &PLAIN);
    let slot = answer(&mut connection, 1, &success(), 0);
    connection.poll_output(|_| 0, 0);
    // Sent asynchronously: the host has the response already.
    let bytes = capsule(&PLAIN, 2, &[]);
    let handled = connection.handle_bytes(&bytes, 0);
    assert_eq!((handled.consumed, handled.event), (0, None));
    assert!(connection.is_stalled());
    connection.handle_written(24, 0);
    assert_eq!(connection.handle_bytes(&bytes, 0).event, None);
    assert_eq!(connection.poll_released(), Some(slot));
    assert!(!connection.is_stalled());
    assert!(matches!(connection.handle_bytes(&bytes, 0).event, Some(TargetEvent::Command { .. })));
}

#[test]
fn a_command_completed_early_waits_for_what_was_asked_for() {
    let options = TargetOptions { r2t_bytes: 4096, max_r2t: 1, ..TARGET };
    let mut connection = ready_target(options, &PLAIN);
    let (slot, tag) = begin_write(&mut connection, &PLAIN, 5, 8192);
    let first = h2c_data(&PLAIN, 5, tag, 0, &[1; 8], false);
    assert_eq!(connection.handle_bytes(&first, 0).consumed, first.len());
    connection.complete(slot, &failure(), 0);
    assert_eq!(connection.command_state(slot), CommandState::Discarding);
    assert!(target_output(&mut connection).is_empty());
    let rest = h2c_data(&PLAIN, 5, tag, 8, &[1; 4088], true);
    let handled = connection.handle_bytes(&rest, 0);
    assert_eq!((handled.consumed, handled.event), (rest.len(), None), "nobody wants the data");
    // No R2T for the second half.
    assert_eq!(types(&target_output(&mut connection)), [PduType::CAPSULE_RESP]);
    assert_eq!(connection.poll_released(), Some(slot));
}

#[test]
fn a_placement_ends_with_the_command_that_wanted_it() {
    let mut connection = ready_target(TARGET, &PLAIN);
    let (slot, tag) = begin_write(&mut connection, &PLAIN, 5, 4096);
    let bytes = h2c_data(&PLAIN, 5, tag, 0, &[1; 4096], true);
    connection.handle_bytes(&bytes[..24], 0);
    assert_eq!(connection.placement(), Some(Placement { slot, offset: 0, len: 4096 }));
    connection.complete(slot, &failure(), 0);
    assert_eq!(connection.placement(), None);
    assert_eq!(connection.handle_bytes(&bytes[24..], 0).event, None);
    assert_eq!(types(&target_output(&mut connection)), [PduType::CAPSULE_RESP]);
}

#[test]
fn data_may_end_at_any_byte() {
    let mut connection = ready_target(TARGET, &PLAIN);
    let (slot, tag) = begin_write(&mut connection, &PLAIN, 5, 7);
    connection.handle_bytes(&h2c_data(&PLAIN, 5, tag, 0, &[1; 7], true), 0);
    let event = connection.handle_bytes(&[], 0).event;
    assert_eq!(event, Some(TargetEvent::DataComplete { slot, is_intact: true }));
    let mut connection = ready_initiator(HOST, &PLAIN);
    submit(&mut connection, 5, Transfer::ToHost(4096));
    let flags = PduFlags::LAST_PDU.with_if(true, PduFlags::SUCCESS);
    connection.handle_bytes(&c2h_data(&PLAIN, 5, 0, &[1; 7], flags), 0);
    assert_eq!(connection.handle_bytes(&[], 0).event, None);
    assert_eq!(connection.poll_completion().map(|completion| completion.received), Some(7));
}

#[test]
fn what_is_encoded_is_sent_before_a_termination_and_its_memory_kept_until_then() {
    let options = TargetOptions { max_c2h_data_bytes: 4096, ..TARGET };
    let mut connection = ready_target(options, &PLAIN);
    let written = answer(&mut connection, 1, &success(), 4096);
    connection.poll_output(|_| 0, 0);
    let queued = answer(&mut connection, 2, &success(), 4096);
    let executing = begin(&mut connection, &PLAIN, 3);
    connection.execute(executing);
    let undecided = begin(&mut connection, &PLAIN, 4);
    connection.handle_bytes(&any(PduKind::Unknown, &PLAIN), 0);
    let released: Vec<_> = std::iter::from_fn(|| connection.poll_released()).collect();
    assert_eq!(released, [queued, undecided]);
    let output = target_output(&mut connection);
    assert_eq!(types(&output), [PduType::C2H_DATA, PduType::C2H_TERM_REQ]);
    assert_eq!(connection.poll_released(), Some(written));
    connection.handle_eof();
    assert_eq!(connection.poll_released(), None);
    connection.complete(executing, &success(), 0);
    assert_eq!(connection.poll_released(), Some(executing));
    assert_eq!(connection.commands_in_flight(), 0);
}

#[test]
fn calls_for_commands_that_went_with_their_connection_do_nothing() {
    let mut connection = ready_target(TARGET, &PLAIN);
    let slot = begin(&mut connection, &PLAIN, 1);
    connection.close();
    connection.receive(slot, 8);
    connection.execute(slot);
    connection.complete(slot, &success(), 0);
    assert_eq!((connection.poll_released(), connection.poll_released()), (Some(slot), None));
}

#[test]
fn a_completion_waits_until_the_requests_memory_is_written() {
    let mut connection = ready_initiator(HOST, &PLAIN);
    let slot = submit(&mut connection, 5, Transfer::ToController(20_000));
    connection.handle_bytes(&r2t(&PLAIN, 5, 1, 0, 20_000), 0);
    connection.poll_output(|_| 0, 0);
    let len = connection.output_len() as usize;
    connection.handle_written(30, 0);
    connection.handle_bytes(&response(&PLAIN, 5), 0);
    assert_eq!(connection.request_state(slot), RequestState::Draining);
    assert_eq!(connection.poll_completion(), None);
    connection.handle_written(len - 30, 0);
    assert!(connection.poll_completion().is_some());
    assert_eq!(connection.requests_in_flight(), 0);
}

#[test]
fn requests_are_lost_with_their_connection_and_answers_are_not() {
    let mut connection = ready_initiator(HOST, &PLAIN);
    submit(&mut connection, 1, Transfer::None);
    submit(&mut connection, 2, Transfer::None);
    connection.handle_bytes(&response(&PLAIN, 1), 0);
    assert_eq!(connection.handle_eof(), Some(InitiatorEvent::Ended(Ending::PeerClosed)));
    let outcomes: Vec<_> = std::iter::from_fn(|| connection.poll_completion())
        .map(|completion| (completion.cid, completion.outcome != Outcome::Lost))
        .collect();
    assert_eq!(outcomes, [(1, true), (2, false)]);
}

#[test]
fn requests_are_refused_with_a_reason() {
    let mut sqe = Sqe::new_zeroed();
    let mut connection = InitiatorConnection::new(HOST, 0).expect("options in range");
    assert_eq!(connection.submit(&sqe, Transfer::None), Err(SubmitError::NotReady));
    let mut connection = ready_initiator(InitiatorOptions { queue_depth: 3, ..HOST }, &PLAIN);
    assert_eq!(connection.submit(&sqe, Transfer::ToHost(u32::MAX)), Err(SubmitError::TooLong(u32::MAX)));
    assert_eq!(connection.submit(&sqe, Transfer::None), Ok(Slot::new(0)));
    sqe.cid.set(4);
    assert_eq!(connection.submit(&sqe, Transfer::None), Err(SubmitError::IdentifierInUse(4)));
    for cid in [5, 2] {
        sqe.cid.set(cid);
        assert!(connection.submit(&sqe, Transfer::None).is_ok());
    }
    sqe.cid.set(3);
    assert_eq!(connection.submit(&sqe, Transfer::None), Err(SubmitError::QueueFull));
}

//= NVMe/TCP 1.0 §3.3.1.1
//= type=test
//# If a host requests the use of header digest or data digest in the ICReq PDU, but the use of the digest was
//# not enabled by the controller in the ICResp PDU, then the host may refuse the connection establishment
//# and terminate the NVMe/TCP connection
#[test]
fn a_controller_without_the_digests_that_are_needed_is_left() {
    for (header, data) in [(true, false), (false, true)] {
        let options = InitiatorOptions { needs_header_digest: header, needs_data_digest: data, ..HOST };
        let mut connection = InitiatorConnection::new(options, 0).expect("options in range");
        let bytes = any(PduKind::IcResp, &PLAIN);
        let event = connection.handle_bytes(&bytes, 0).event;
        assert_eq!(event, Some(InitiatorEvent::Ended(Ending::DigestRefused)));
        assert_eq!(connection.state(), ConnectionState::Closed);
    }
}

#[test]
fn digests_of_payload_are_asked_for_as_it_is_split() {
    let options = TargetOptions { max_c2h_data_bytes: 4096, ..TARGET };
    let mut connection = ready_target(options, &DIGESTS);
    let slot = begin(&mut connection, &DIGESTS, 1);
    connection.execute(slot);
    connection.complete(slot, &success(), 6000);
    let mut asked = Vec::new();
    connection.poll_output(
        |place| {
            asked.push((place.offset, place.len));
            0x0102_0304
        },
        0,
    );
    assert_eq!(asked, [(0, 4096), (4096, 1904)]);
    let Some(Piece::Bytes(last)) = connection.pieces().last() else { panic!("not bytes") };
    assert_eq!(last, [4, 3, 2, 1]);
    assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
}
