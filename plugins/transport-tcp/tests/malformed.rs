//! Each rule of the specification that a peer can break, and the FES and FEI that answer it.
//!
//! Every case is fed in one piece and byte by byte. Framing rules that do not
//! depend on the connection are tested in `codec`, over more values.

mod wire;

use nvme_spec::completion::{Cqe, StatusField};
use transport_tcp::codec::Framing;
use transport_tcp::connection::request::Transfer;
use transport_tcp::connection::{
    ConnectionState, Ending, InitiatorConnection, InitiatorOptions, TargetConnection, TargetEvent,
    TargetOptions,
};
use transport_tcp::pdu::{
    DigestFlags, FatalErrorStatus as Fes, IcReq, IcResp, PduFlags, PduKind, PduType, field,
};
use wire::{
    DIGESTS, PLAIN, any, begin, begin_write, c2h_data, capsule, check_initiator_refuses,
    check_target_refuses, h2c_data, initiator_output, pdu, r2t, ready_initiator, ready_target, response,
    submit, termination, with,
};

const SMALL: TargetOptions = TargetOptions {
    queue_depth: 8,
    max_h2c_data_bytes: 4096,
    r2t_bytes: 8192,
    max_r2t: 2,
    ..TargetOptions::DEFAULT
};
const HOST: InitiatorOptions = InitiatorOptions { queue_depth: 8, max_r2t: 2, ..InitiatorOptions::DEFAULT };

fn ic_req() -> Vec<u8> {
    pdu(&IcReq::new(0, DigestFlags(0), 0), &PLAIN, &[])
}

fn ic_resp() -> Vec<u8> {
    pdu(&IcResp::new(0, DigestFlags(0), 4096), &PLAIN, &[])
}

/// A fresh target is given `bytes`.
#[track_caller]
fn new_target(bytes: &[u8], fes: Fes, fei: u32) {
    let make = || (TargetConnection::new(SMALL, 0).expect("options in range"), bytes.to_vec());
    check_target_refuses(make, fes, fei);
}

/// A target after the handshake is given `bytes`.
#[track_caller]
fn target(framing: &Framing, bytes: &[u8], fes: Fes, fei: u32) {
    check_target_refuses(|| (ready_target(SMALL, framing), bytes.to_vec()), fes, fei);
}

/// A target that waits for 20,000 bytes of command 5 is given what `make` makes of the transfer tag.
#[track_caller]
fn target_in_write(make: impl Fn(u16) -> Vec<u8>, fes: Fes, fei: u32) {
    let make = || {
        let mut connection = ready_target(SMALL, &PLAIN);
        let (_, ttag) = begin_write(&mut connection, &PLAIN, 5, 20_000);
        (connection, make(ttag))
    };
    check_target_refuses(make, fes, fei);
}

#[track_caller]
fn new_initiator(bytes: &[u8], fes: Fes, fei: u32) {
    let make = || {
        let mut connection = InitiatorConnection::new(HOST, 0).expect("options in range");
        initiator_output(&mut connection);
        (connection, bytes.to_vec())
    };
    check_initiator_refuses(make, fes, fei);
}

/// An initiator with a command 5 of this transfer under way is given `bytes`.
#[track_caller]
fn initiator(transfer: Transfer, bytes: &[u8], fes: Fes, fei: u32) {
    let make = || {
        let mut connection = ready_initiator(HOST, &PLAIN);
        submit(&mut connection, 5, transfer);
        (connection, bytes.to_vec())
    };
    check_initiator_refuses(make, fes, fei);
}

//= NVMe/TCP 1.0 §3.1
//= type=test
//# Reception of an ICReq PDU with an
//# unsupported parameter is treated as a fatal transport error with the Fatal Error Status field in the
//# C2HTermReq PDU set to “Unsupported Parameter” and the Additional Error Information field containing
//# the unsupported parameter field byte offset.
#[test]
fn another_format_version_is_an_unsupported_parameter() {
    new_target(&with(ic_req(), field::PFV, &[1, 0], &PLAIN), Fes::UNSUPPORTED_PARAMETER, 8);
    new_initiator(&with(ic_resp(), field::PFV, &[0, 1], &PLAIN), Fes::UNSUPPORTED_PARAMETER, 8);
}

#[test]
fn an_alignment_above_128_bytes_is_an_invalid_field() {
    for pda_z in [32, 255] {
        new_target(&with(ic_req(), field::PDA, &[pda_z], &PLAIN), Fes::INVALID_PDU_HEADER_FIELD, 10);
        new_initiator(&with(ic_resp(), field::PDA, &[pda_z], &PLAIN), Fes::INVALID_PDU_HEADER_FIELD, 10);
    }
}

#[test]
fn handshake_pdus_have_one_length() {
    for (bytes, is_request) in [(ic_req(), true), (ic_resp(), false)] {
        for (at, value) in [(field::HLEN, 24), (field::PLEN, 127), (field::PLEN, 129), (field::PLEN, 0)] {
            let bytes = with(bytes.clone(), at, &[value], &PLAIN);
            let check = if is_request { new_target } else { new_initiator };
            check(&bytes, Fes::INVALID_PDU_HEADER_FIELD, at);
        }
    }
}

#[test]
fn maxh2cdata_has_to_be_4096_at_least_and_a_multiple_of_4() {
    for maxh2cdata in [0_u32, 4, 4092] {
        let bytes = with(ic_resp(), field::MAXH2CDATA, &maxh2cdata.to_le_bytes(), &PLAIN);
        new_initiator(&bytes, Fes::UNSUPPORTED_PARAMETER, 12);
    }
    let bytes = with(ic_resp(), field::MAXH2CDATA, &4097_u32.to_le_bytes(), &PLAIN);
    new_initiator(&bytes, Fes::INVALID_PDU_HEADER_FIELD, 12);
}

#[test]
fn digests_that_were_not_asked_for_are_an_invalid_field() {
    for dgst in [1, 2, 3] {
        let bytes = with(ic_resp(), field::DGST, &[dgst], &PLAIN);
        new_initiator(&bytes, Fes::INVALID_PDU_HEADER_FIELD, 11);
    }
}

#[test]
fn framing_errors_name_the_field() {
    let invalid = Fes::INVALID_PDU_HEADER_FIELD;
    for framing in [PLAIN, DIGESTS] {
        let bytes = capsule(&framing, 1, &[]);
        let flags = u8::from(!framing.header_digest);
        target(&framing, &with(bytes.clone(), field::FLAGS, &[flags], &framing), invalid, 1);
        target(&framing, &with(bytes.clone(), field::HLEN, &[64], &framing), invalid, 2);
        target(&framing, &with(bytes.clone(), field::PLEN, &[0, 0, 0, 0], &framing), invalid, 4);
        let data = capsule(&framing, 1, &[7; 512]);
        target(&framing, &with(data.clone(), field::PDO, &[8], &framing), invalid, 3);
        target(&framing, &with(data, field::PLEN, &[0, 0, 0, 1], &framing), invalid, 4);
    }
}

#[test]
fn in_capsule_data_above_the_limit_is_refused_by_its_header() {
    let bytes = capsule(&PLAIN, 1, &vec![0; 8196]);
    target(&PLAIN, &bytes[..72], Fes::INVALID_PDU_HEADER_FIELD, field::PLEN);
    let limited = || {
        let mut connection = ready_target(SMALL, &PLAIN);
        connection.limit(8, 4096);
        (connection, capsule(&PLAIN, 1, &vec![0; 4100]))
    };
    check_target_refuses(limited, Fes::INVALID_PDU_HEADER_FIELD, field::PLEN);
}

#[test]
fn a_wrong_header_digest_is_told_with_what_was_received() {
    let damaged = |mut bytes: Vec<u8>, hlen: usize| {
        bytes[hlen..hlen + 4].copy_from_slice(&[1, 2, 3, 4]);
        bytes
    };
    target(&DIGESTS, &damaged(capsule(&DIGESTS, 1, &[]), 72), Fes::HEADER_DIGEST_ERROR, 0x0403_0201);
    let make = || (ready_initiator(HOST, &DIGESTS), damaged(response(&DIGESTS, 1), 24));
    check_initiator_refuses(make, Fes::HEADER_DIGEST_ERROR, 0x0403_0201);
}

#[test]
fn a_wrong_header_digest_of_damaged_fields_is_not_blamed_on_the_fields() {
    let mut bytes = h2c_data(&DIGESTS, 9, 9, 4, &[0; 8], true);
    bytes[12] = 0xff;
    let digest = u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]);
    target(&DIGESTS, &bytes, Fes::HEADER_DIGEST_ERROR, digest);
}

//= NVMe/TCP 1.0 §3.3.2.2
//= type=test
//# Reception of a H2CData PDU with an unknown TTAG is treated as a fatal transport error with the Fatal
//# Error Status field set to “Invalid PDU Header Field” and the Additional Error Information field containing the
//# TTAG field byte offset.
#[test]
fn data_with_an_unknown_tag_is_refused() {
    for wrong in [1_u16, 0x0007, 0x8000, 0xffff] {
        target_in_write(
            |ttag| h2c_data(&PLAIN, 5, ttag ^ wrong, 0, &[0; 8], false),
            Fes::INVALID_PDU_HEADER_FIELD,
            field::TTAG,
        );
    }
    target(&PLAIN, &h2c_data(&PLAIN, 5, 0, 0, &[0; 8], true), Fes::INVALID_PDU_HEADER_FIELD, field::TTAG);
}

#[test]
fn a_tag_of_an_earlier_command_in_the_same_slot_is_unknown() {
    let make = || {
        let mut connection = ready_target(TargetOptions { queue_depth: 1, ..SMALL }, &PLAIN);
        let (slot, old) = begin_write(&mut connection, &PLAIN, 5, 8);
        let bytes = h2c_data(&PLAIN, 5, old, 0, &[0; 8], true);
        assert_eq!(connection.handle_bytes(&bytes, 0).consumed, bytes.len());
        assert_eq!(
            connection.handle_bytes(&[], 0).event,
            Some(TargetEvent::DataComplete { slot, is_intact: true })
        );
        connection.complete(slot, &Cqe::new(5, 0, StatusField::SUCCESS), 0);
        wire::target_output(&mut connection);
        connection.poll_released();
        let (_, new) = begin_write(&mut connection, &PLAIN, 5, 8);
        assert_ne!(old, new);
        (connection, h2c_data(&PLAIN, 5, old, 0, &[0; 8], true))
    };
    check_target_refuses(make, Fes::INVALID_PDU_HEADER_FIELD, field::TTAG);
}

#[test]
fn data_for_another_command_than_the_tags_is_refused() {
    target_in_write(
        |ttag| h2c_data(&PLAIN, 6, ttag, 0, &[0; 8], false),
        Fes::INVALID_PDU_HEADER_FIELD,
        field::CCCID,
    );
}

#[test]
fn unaligned_offsets_and_lengths_are_invalid_fields() {
    let offset = |ttag| h2c_data(&PLAIN, 5, ttag, 2, &[0; 8], false);
    target_in_write(offset, Fes::INVALID_PDU_HEADER_FIELD, field::OFFSET);
    let length = |ttag| h2c_data(&PLAIN, 5, ttag, 0, &[0; 6], false);
    target_in_write(length, Fes::INVALID_PDU_HEADER_FIELD, field::LENGTH);
    let read = Transfer::ToHost(4096);
    let bytes = c2h_data(&PLAIN, 5, 2, &[0; 8], PduFlags::NONE);
    initiator(read, &bytes, Fes::INVALID_PDU_HEADER_FIELD, field::OFFSET);
    let bytes = c2h_data(&PLAIN, 5, 0, &[0; 6], PduFlags::NONE);
    initiator(read, &bytes, Fes::INVALID_PDU_HEADER_FIELD, field::LENGTH);
    let write = Transfer::ToController(20_000);
    initiator(write, &r2t(&PLAIN, 5, 0, 3, 8), Fes::INVALID_PDU_HEADER_FIELD, field::OFFSET);
    initiator(write, &r2t(&PLAIN, 5, 0, 0, 7), Fes::INVALID_PDU_HEADER_FIELD, field::LENGTH);
}

#[test]
fn empty_transfers_are_invalid_fields() {
    // A PDU of no data: PDO at the end of the PDU, DATAL 0.
    let empty = |mut bytes: Vec<u8>| {
        bytes.truncate(24);
        let bytes = with(bytes, field::PLEN, &24_u32.to_le_bytes(), &PLAIN);
        with(bytes, field::LENGTH, &0_u32.to_le_bytes(), &PLAIN)
    };
    let h2c = |ttag| empty(h2c_data(&PLAIN, 5, ttag, 0, &[0; 8], false));
    target_in_write(h2c, Fes::INVALID_PDU_HEADER_FIELD, field::LENGTH);
    let c2h = empty(c2h_data(&PLAIN, 5, 0, &[0; 8], PduFlags::LAST_PDU));
    initiator(Transfer::ToHost(4096), &c2h, Fes::INVALID_PDU_HEADER_FIELD, field::LENGTH);
    let none = r2t(&PLAIN, 5, 0, 0, 0);
    initiator(Transfer::ToController(20_000), &none, Fes::INVALID_PDU_HEADER_FIELD, field::LENGTH);
}

//= NVMe/TCP 1.0 §3.3.2.2
//= type=test
//# Reception of a H2CData PDU with a data length which exceeds MAXH2CDATA is treated as a fatal
//# transport error with the Fatal Error Status field in the C2HTermReq PDU set to “Data Transfer Limit
//# Exceeded”.
#[test]
fn data_above_maxh2cdata_is_refused() {
    target_in_write(|ttag| h2c_data(&PLAIN, 5, ttag, 0, &vec![0; 4100], false), Fes::LIMIT_EXCEEDED, 0);
}

//= NVMe/TCP 1.0 §3.3.2.2
//= type=test
//# Reception of a H2CData PDU that is outside the range starting from R2TO to R2TO + R2TL is treated as
//# a fatal transport error with the Fatal Error Status field in the C2HTermReq PDU set to “Data Transfer Out
//# of Range”.
#[test]
fn data_outside_of_its_r2t_is_out_of_range() {
    for offset in [8192, 16_384, 20_000, 0xffff_fffc] {
        let make = |ttag| h2c_data(&PLAIN, 5, ttag, offset, &[0; 8], false);
        target_in_write(make, Fes::DATA_TRANSFER_OUT_OF_RANGE, 0);
    }
    let over_the_end = |ttag| {
        let mut bytes = h2c_data(&PLAIN, 5, ttag, 0, &[0; 4096], false);
        bytes.extend(h2c_data(&PLAIN, 5, ttag, 4096, &[0; 4092], false));
        bytes.extend(h2c_data(&PLAIN, 5, ttag, 8188, &[0; 8], true));
        bytes
    };
    target_in_write(over_the_end, Fes::DATA_TRANSFER_OUT_OF_RANGE, 0);
}

//= NVMe/TCP 1.0 §3.3.2.2
//= type=test
//# Reception of a non-contiguous H2CData PDU is treated as a fatal transport error with the Fatal Error
//# Status field set to “PDU Sequence Error”.
#[test]
fn data_that_skips_or_repeats_is_out_of_sequence() {
    target_in_write(|ttag| h2c_data(&PLAIN, 5, ttag, 8, &[0; 8], false), Fes::PDU_SEQUENCE_ERROR, 0);
    let twice = |ttag| {
        let bytes = h2c_data(&PLAIN, 5, ttag, 0, &[0; 8], false);
        [bytes.clone(), bytes].concat()
    };
    target_in_write(twice, Fes::PDU_SEQUENCE_ERROR, 0);
}

#[test]
fn the_last_flag_has_to_be_at_the_end_of_an_r2t() {
    let early = |ttag| h2c_data(&PLAIN, 5, ttag, 0, &[0; 8], true);
    target_in_write(early, Fes::INVALID_PDU_HEADER_FIELD, field::FLAGS);
    let missing = |ttag| {
        let mut bytes = h2c_data(&PLAIN, 5, ttag, 0, &[0; 4096], false);
        bytes.extend(h2c_data(&PLAIN, 5, ttag, 4096, &[0; 4096], false));
        bytes
    };
    target_in_write(missing, Fes::INVALID_PDU_HEADER_FIELD, field::FLAGS);
}

#[test]
fn data_after_all_that_was_asked_for_is_out_of_sequence() {
    let make = || {
        let mut connection = ready_target(SMALL, &PLAIN);
        let (_, ttag) = begin_write(&mut connection, &PLAIN, 5, 8);
        let bytes = h2c_data(&PLAIN, 5, ttag, 0, &[0; 8], true);
        (connection, [bytes.clone(), bytes].concat())
    };
    check_target_refuses(make, Fes::PDU_SEQUENCE_ERROR, 0);
}

#[test]
fn more_commands_than_the_queue_has_entries_are_out_of_sequence() {
    let make = || {
        let mut connection = ready_target(SMALL, &PLAIN);
        for cid in 0..8 {
            begin(&mut connection, &PLAIN, cid);
        }
        (connection, capsule(&PLAIN, 8, &[]))
    };
    check_target_refuses(make, Fes::PDU_SEQUENCE_ERROR, 0);
    let limited = || {
        let mut connection = ready_target(SMALL, &PLAIN);
        connection.limit(2, 8192);
        begin(&mut connection, &PLAIN, 0);
        begin(&mut connection, &PLAIN, 1);
        (connection, capsule(&PLAIN, 8, &[]))
    };
    check_target_refuses(limited, Fes::PDU_SEQUENCE_ERROR, 0);
}

//= NVMe/TCP 1.0 §3.3.2.1
//= type=test
//# Reception of a C2HData PDU with an unknown command capsule identifier (CCCID) is treated as a fatal
//# transport error with the Fatal Error Status field in the H2CTermReq PDU set to “Invalid PDU Header Field”
//# and the Additional Error Information field containing the CCCID field byte offset.
#[test]
fn pdus_of_unknown_commands_name_the_identifier() {
    let invalid = Fes::INVALID_PDU_HEADER_FIELD;
    for cid in [4_u16, 13, 0x8005, 0xffff] {
        let read = c2h_data(&PLAIN, cid, 0, &[0; 8], PduFlags::NONE);
        initiator(Transfer::ToHost(4096), &read, invalid, field::CCCID);
        initiator(Transfer::ToController(20_000), &r2t(&PLAIN, cid, 0, 0, 8), invalid, field::CCCID);
        initiator(Transfer::None, &response(&PLAIN, cid), invalid, field::RCCQE_CID);
    }
}

#[test]
fn a_second_response_is_of_an_unknown_command() {
    let bytes = [response(&PLAIN, 5), response(&PLAIN, 5)].concat();
    initiator(Transfer::None, &bytes, Fes::INVALID_PDU_HEADER_FIELD, field::RCCQE_CID);
    let flags = PduFlags::LAST_PDU.with_if(true, PduFlags::SUCCESS);
    let bytes = [c2h_data(&PLAIN, 5, 0, &[0; 8], flags), response(&PLAIN, 5)].concat();
    initiator(Transfer::ToHost(8), &bytes, Fes::INVALID_PDU_HEADER_FIELD, field::RCCQE_CID);
}

//= NVMe/TCP 1.0 §3.3.2.1
//= type=test
//# Reception of a C2HData PDU that is outside the Command Data Buffer range is treated as a fatal transport
//# error with the Fatal Error Status field in the H2CTermReq PDU set to “Data Transfer Out of Range”.
#[test]
fn data_outside_of_the_hosts_buffer_is_out_of_range() {
    for (offset, len) in [(0, 4100), (4096, 8), (0xffff_fffc, 8)] {
        let bytes = c2h_data(&PLAIN, 5, offset, &vec![0; len], PduFlags::LAST_PDU);
        initiator(Transfer::ToHost(4096), &bytes, Fes::DATA_TRANSFER_OUT_OF_RANGE, 0);
    }
    let bytes = r2t(&PLAIN, 5, 1, 0, 20_004);
    initiator(Transfer::ToController(20_000), &bytes, Fes::DATA_TRANSFER_OUT_OF_RANGE, 0);
}

//= NVMe/TCP 1.0 §3.3.2.1
//= type=test
//# Reception of a non-contiguous C2HData PDU is treated as a fatal transport error with the Fatal Error Status
//# field in the H2CTermReq PDU set to “PDU Sequence Error” (refer to section 3.5).
#[test]
fn data_and_requests_of_a_controller_have_to_follow_each_other() {
    let skipping = c2h_data(&PLAIN, 5, 8, &[0; 8], PduFlags::NONE);
    initiator(Transfer::ToHost(4096), &skipping, Fes::PDU_SEQUENCE_ERROR, 0);
    let repeating = c2h_data(&PLAIN, 5, 0, &[0; 8], PduFlags::NONE).repeat(2);
    initiator(Transfer::ToHost(4096), &repeating, Fes::PDU_SEQUENCE_ERROR, 0);
    initiator(Transfer::ToController(20_000), &r2t(&PLAIN, 5, 0, 4, 8), Fes::PDU_SEQUENCE_ERROR, 0);
    let repeating = r2t(&PLAIN, 5, 0, 0, 8).repeat(2);
    initiator(Transfer::ToController(20_000), &repeating, Fes::PDU_SEQUENCE_ERROR, 0);
}

//= NVMe/TCP 1.0 §3.3.2.1
//= type=test
//# Reception of a C2HData PDU with the SUCCESS flag set to ‘1’ and the LAST_PDU flag cleared to ‘0’ is
//# treated as a fatal transport error with the Fatal Error Status field in the H2CTermReq PDU set to “Invalid
//# PDU Header Field” and the Additional Error Information field containing the FLAGS field byte offset.
#[test]
fn success_without_last_is_an_invalid_field() {
    let bytes = c2h_data(&PLAIN, 5, 0, &[0; 8], PduFlags::SUCCESS);
    initiator(Transfer::ToHost(4096), &bytes, Fes::INVALID_PDU_HEADER_FIELD, field::FLAGS);
}

//= NVMe/TCP 1.0 §3.3.2.1
//= type=test
//# Reception of an unexpected C2HData PDU is treated as a fatal transport error with the Fatal Error Status
//# field in the H2CTermReq PDU set to “PDU Sequence Error”.
#[test]
fn data_that_no_command_expects_is_out_of_sequence() {
    let after_last = c2h_data(&PLAIN, 5, 0, &[0; 8], PduFlags::LAST_PDU).repeat(2);
    initiator(Transfer::ToHost(4096), &after_last, Fes::PDU_SEQUENCE_ERROR, 0);
    let data = c2h_data(&PLAIN, 5, 0, &[0; 8], PduFlags::LAST_PDU);
    initiator(Transfer::None, &data, Fes::PDU_SEQUENCE_ERROR, 0);
    initiator(Transfer::ToController(20_000), &data, Fes::PDU_SEQUENCE_ERROR, 0);
    let request = r2t(&PLAIN, 5, 0, 0, 8);
    initiator(Transfer::ToHost(4096), &request, Fes::PDU_SEQUENCE_ERROR, 0);
    // The data came in the capsule.
    initiator(Transfer::ToController(4096), &request, Fes::PDU_SEQUENCE_ERROR, 0);
}

//= NVMe/TCP 1.0 §3.3.2.2
//= type=test
//# Reception of an R2T PDU that exceeds MAXR2T is treated as a fatal transport error with the Fatal Error
//# Status field in the H2CTermReq PDU set to “R2T Limit Exceeded”.
#[test]
fn more_r2ts_than_agreed_are_refused() {
    let bytes: Vec<u8> = (0..3).flat_map(|i| r2t(&PLAIN, 5, i, u32::from(i) * 8, 8)).collect();
    initiator(Transfer::ToController(20_000), &bytes, Fes::LIMIT_EXCEEDED, 0);
}

//= NVMe/TCP 1.0 §3.3
//= type=test
//# An NVMe/TCP PDU
//# that is transferred in a direction opposite from that with which it is associated is treated as a fatal transport
//# error (refer to section 3.5).
#[test]
fn pdus_of_the_other_direction_and_reserved_types_are_refused() {
    for kind in [
        PduKind::IcResp,
        PduKind::C2hTermReq,
        PduKind::CapsuleResp,
        PduKind::C2hData,
        PduKind::R2t,
        PduKind::Unknown,
    ] {
        target(&PLAIN, &any(kind, &PLAIN), Fes::INVALID_PDU_HEADER_FIELD, field::TYPE);
    }
    for code in [0x08, 0x0a, 0x0b, 0x80, 0xff] {
        let mut bytes = capsule(&PLAIN, 1, &[]);
        bytes[0] = code;
        target(&PLAIN, &bytes, Fes::INVALID_PDU_HEADER_FIELD, field::TYPE);
        initiator(Transfer::None, &bytes, Fes::INVALID_PDU_HEADER_FIELD, field::TYPE);
    }
}

//= NVMe/TCP 1.0 §3.5
//= type=test
//# The controller shall ignore a H2CTermReq PDU
//# with a PDU length (PLEN) that exceeds 152 bytes (24-byte PDU Header plus 128-byte PDU data) and shall
//# terminate the connection immediately.
#[test]
fn a_termination_of_an_impossible_length_ends_the_connection_without_a_word() {
    for plen in [0_u32, 23, 153, u32::MAX] {
        let bytes = with(termination(PduType::H2C_TERM_REQ), field::PLEN, &plen.to_le_bytes(), &PLAIN);
        let mut connection = ready_target(SMALL, &PLAIN);
        connection.handle_bytes(&bytes, 0);
        assert_eq!(connection.state(), ConnectionState::Closed);
        assert_eq!(connection.ending(), Some(Ending::PeerTerminatedIllegibly));
        assert_eq!(connection.output_len(), 0);
        let bytes = with(termination(PduType::C2H_TERM_REQ), field::PLEN, &plen.to_le_bytes(), &PLAIN);
        let mut connection = ready_initiator(HOST, &PLAIN);
        connection.handle_bytes(&bytes, 0);
        assert_eq!(connection.ending(), Some(Ending::PeerTerminatedIllegibly));
        assert_eq!(connection.output_len(), 0);
    }
}

#[test]
fn a_termination_of_the_peer_is_told_with_its_reason() {
    let mut connection = ready_target(SMALL, &PLAIN);
    connection.handle_bytes(&termination(PduType::H2C_TERM_REQ), 0);
    let expected = Ending::PeerTerminated { fes: Fes::PDU_SEQUENCE_ERROR, fei: 7 };
    assert_eq!((connection.state(), connection.ending()), (ConnectionState::Closed, Some(expected)));
    let mut connection = ready_initiator(HOST, &PLAIN);
    connection.handle_bytes(&termination(PduType::C2H_TERM_REQ), 0);
    assert_eq!((connection.state(), connection.ending()), (ConnectionState::Closed, Some(expected)));
}
