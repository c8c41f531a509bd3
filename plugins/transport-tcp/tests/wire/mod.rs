//! PDUs made by hand, connections brought to a state, and what they send.
//!
//! For tests that play the peer byte by byte; the framing is always the peer's
//! view of what was agreed.
#![allow(dead_code, reason = "each test uses its part")]

use nvme_spec::command::Sqe;
use nvme_spec::completion::{Cqe, StatusField};
use tenon_sdk::crc32c;
use transport_tcp::codec::{Framing, encode_header};
use transport_tcp::connection::request::Transfer;
use transport_tcp::connection::{
    ConnectionState, Ending, InitiatorConnection, InitiatorEvent, InitiatorOptions, Piece, Slot,
    TargetConnection, TargetEvent, TargetOptions,
};
use transport_tcp::pdu::{
    C2hData, CapsuleCmd, CapsuleResp, CommonHeader, DigestFlags, FatalErrorStatus, H2cData, IcReq, IcResp,
    PduFlags, PduKind, PduType, R2t, SHORT_LEN, TermReq,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

pub const PLAIN: Framing = Framing::PLAIN;
pub const DIGESTS: Framing =
    Framing { header_digest: true, data_digest: true, receive_alignment: 4, send_alignment: 4 };

/// A PDU with its digests.
pub fn pdu<H: IntoBytes + Immutable>(header: &H, framing: &Framing, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    let len = encode_header(header, framing, &mut bytes);
    bytes.truncate(len);
    bytes.extend_from_slice(data);
    if framing.data_digest && !data.is_empty() {
        bytes.extend_from_slice(&crc32c(0, data).to_le_bytes());
    }
    bytes
}

/// The PDU with other bytes at `at`, its header digest right again.
pub fn with(mut bytes: Vec<u8>, at: u32, value: &[u8], framing: &Framing) -> Vec<u8> {
    let at = at as usize;
    let kind = PduKind::of(PduType(bytes[0]));
    bytes[at..at + value.len()].copy_from_slice(value);
    if framing.header_digest && kind.has_header_digest() {
        let hlen = usize::from(kind.header_len());
        let digest = crc32c(0, &bytes[..hlen]);
        bytes[hlen..hlen + 4].copy_from_slice(&digest.to_le_bytes());
    }
    bytes
}

pub fn capsule(framing: &Framing, cid: u16, data: &[u8]) -> Vec<u8> {
    let ch = framing.header(PduType::CAPSULE_CMD, PduFlags::NONE, data.len() as u32);
    let mut ccsqe = Sqe::new_zeroed();
    ccsqe.cid.set(cid);
    pdu(&CapsuleCmd { ch, ccsqe }, framing, data)
}

pub fn h2c_data(framing: &Framing, cid: u16, ttag: u16, offset: u32, data: &[u8], is_last: bool) -> Vec<u8> {
    let flags = PduFlags::NONE.with_if(is_last, PduFlags::LAST_PDU);
    let ch = framing.header(PduType::H2C_DATA, flags, data.len() as u32);
    pdu(&H2cData::new(ch, cid, ttag, offset, data.len() as u32), framing, data)
}

pub fn c2h_data(framing: &Framing, cid: u16, offset: u32, data: &[u8], flags: PduFlags) -> Vec<u8> {
    let ch = framing.header(PduType::C2H_DATA, flags, data.len() as u32);
    pdu(&C2hData::new(ch, cid, offset, data.len() as u32), framing, data)
}

pub fn r2t(framing: &Framing, cid: u16, ttag: u16, offset: u32, length: u32) -> Vec<u8> {
    pdu(&R2t::new(framing.header(PduType::R2T, PduFlags::NONE, 0), cid, ttag, offset, length), framing, &[])
}

pub fn response(framing: &Framing, cid: u16) -> Vec<u8> {
    let ch = framing.header(PduType::CAPSULE_RESP, PduFlags::NONE, 0);
    pdu(&CapsuleResp { ch, rccqe: Cqe::new(cid, 0, StatusField::SUCCESS) }, framing, &[])
}

pub fn termination(pdu_type: PduType) -> Vec<u8> {
    pdu(&TermReq::new(pdu_type, FatalErrorStatus::PDU_SEQUENCE_ERROR, 7, 8), &PLAIN, &[0; 8])
}

/// A well-formed PDU of a kind; the unknown one is the Kickstart Discovery Request.
pub fn any(kind: PduKind, framing: &Framing) -> Vec<u8> {
    match kind {
        PduKind::IcReq => pdu(&IcReq::new(0, DigestFlags(0), 0), &PLAIN, &[]),
        PduKind::IcResp => pdu(&IcResp::new(0, DigestFlags(0), 4096), &PLAIN, &[]),
        PduKind::H2cTermReq => termination(PduType::H2C_TERM_REQ),
        PduKind::C2hTermReq => termination(PduType::C2H_TERM_REQ),
        PduKind::CapsuleCmd => capsule(framing, 1, &[]),
        PduKind::CapsuleResp => response(framing, 1),
        PduKind::H2cData => h2c_data(framing, 1, 1, 0, &[1; 8], true),
        PduKind::C2hData => c2h_data(framing, 1, 0, &[1; 8], PduFlags::LAST_PDU),
        PduKind::R2t => r2t(framing, 1, 1, 0, 8),
        PduKind::Unknown => {
            pdu(&CommonHeader::new(PduType(0x0a), PduFlags::NONE, 24, 0, 24), &PLAIN, &[0; 16])
        }
    }
}

/// A target's end after a handshake with or without digests, ICResp written.
pub fn ready_target(options: TargetOptions, framing: &Framing) -> TargetConnection {
    let mut connection = TargetConnection::new(options, 0).expect("options in range");
    let dgst = DigestFlags::new(framing.header_digest, framing.data_digest);
    let request = pdu(&IcReq::new(0, dgst, 15), &PLAIN, &[]);
    let handled = connection.handle_bytes(&request, 0);
    assert!(matches!(handled.event, Some(TargetEvent::Ready(_))), "{handled:?}");
    assert_eq!(target_output(&mut connection).len(), 128);
    connection
}

/// An initiator's end after a handshake with or without digests, ICReq written.
pub fn ready_initiator(options: InitiatorOptions, framing: &Framing) -> InitiatorConnection {
    let (needs_header_digest, needs_data_digest) = (framing.header_digest, framing.data_digest);
    let options = InitiatorOptions { needs_header_digest, needs_data_digest, ..options };
    let mut connection = InitiatorConnection::new(options, 0).expect("options in range");
    assert_eq!(initiator_output(&mut connection).len(), 128);
    let dgst = DigestFlags::new(framing.header_digest, framing.data_digest);
    let handled_bytes = pdu(&IcResp::new(0, dgst, 4096), &PLAIN, &[]);
    let handled = connection.handle_bytes(&handled_bytes, 0);
    assert!(matches!(handled.event, Some(InitiatorEvent::Ready(_))), "{handled:?}");
    connection
}

/// Takes one command to the owner.
pub fn begin(connection: &mut TargetConnection, framing: &Framing, cid: u16) -> Slot {
    let bytes = capsule(framing, cid, &[]);
    let handled = connection.handle_bytes(&bytes, 0);
    assert_eq!(handled.consumed, bytes.len());
    let Some(TargetEvent::Command { slot, .. }) = handled.event else { panic!("{handled:?}") };
    slot
}

/// Asks for data of a new command and returns its slot and the transfer tag of the R2T.
pub fn begin_write(connection: &mut TargetConnection, framing: &Framing, cid: u16, len: u32) -> (Slot, u16) {
    let slot = begin(connection, framing, cid);
    connection.receive(slot, len);
    let output = target_output(connection);
    let (r2t, _) = R2t::ref_from_prefix(&output).expect("an R2T");
    assert_eq!(r2t.ch.pdu_type, PduType::R2T);
    (slot, r2t.ttag.get())
}

/// Sends a command of the host.
pub fn submit(connection: &mut InitiatorConnection, cid: u16, transfer: Transfer) -> Slot {
    let mut sqe = Sqe::new_zeroed();
    sqe.cid.set(cid);
    let slot = connection.submit(&sqe, transfer).expect("room for a command");
    initiator_output(connection);
    slot
}

/// Everything a target's end sends now; payload is zeroes.
pub fn target_output(connection: &mut TargetConnection) -> Vec<u8> {
    let mut output = Vec::new();
    loop {
        connection.poll_output(|place| crc32c(0, &vec![0; place.len as usize]), 0);
        let bytes = flatten(connection.pieces());
        connection.handle_written(bytes.len(), 0);
        if bytes.is_empty() {
            return output;
        }
        output.extend(bytes);
    }
}

/// Everything an initiator's end sends now; payload is zeroes.
pub fn initiator_output(connection: &mut InitiatorConnection) -> Vec<u8> {
    let mut output = Vec::new();
    loop {
        connection.poll_output(|place| crc32c(0, &vec![0; place.len as usize]), 0);
        let bytes = flatten(connection.pieces());
        connection.handle_written(bytes.len(), 0);
        if bytes.is_empty() {
            return output;
        }
        output.extend(bytes);
    }
}

pub fn flatten<'a>(pieces: impl Iterator<Item = Piece<'a>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Bytes(part) => bytes.extend_from_slice(part),
            Piece::Payload(place) => bytes.resize(bytes.len() + place.len as usize, 0),
        }
    }
    bytes
}

/// Headers of the PDUs in a stream.
pub fn headers(stream: &[u8]) -> Vec<CommonHeader> {
    let mut rest = stream;
    let mut found = Vec::new();
    while let Ok((header, _)) = CommonHeader::ref_from_prefix(rest) {
        found.push(*header);
        rest = &rest[header.plen.get() as usize..];
    }
    assert!(rest.is_empty(), "the stream ends inside a PDU");
    found
}

/// The Terminate Connection Request that ends a stream: type, FES, FEI and what it quotes.
#[track_caller]
pub fn last_termination(stream: &[u8]) -> (PduType, FatalErrorStatus, u32, Vec<u8>) {
    let last = headers(stream).last().copied().expect("a PDU");
    let request = &stream[stream.len() - last.plen.get() as usize..];
    let (header, quoted) = TermReq::ref_from_prefix(request).expect("a whole request");
    assert_eq!(usize::from(last.hlen), SHORT_LEN);
    (last.pdu_type, header.fes, header.fei.get(), quoted.to_vec())
}

/// A target's end refuses `bytes`, in one piece and byte by byte, with this FES and FEI.
#[track_caller]
pub fn check_target_refuses(make: impl Fn() -> (TargetConnection, Vec<u8>), fes: FatalErrorStatus, fei: u32) {
    for piece in [usize::MAX, 1] {
        let (mut connection, bytes) = make();
        let (mut start, mut end, mut ending) = (0, 0, None);
        while end < bytes.len() && ending.is_none() {
            end = bytes.len().min(end.saturating_add(piece));
            loop {
                let handled = connection.handle_bytes(&bytes[start..end], 0);
                start += handled.consumed;
                match handled.event {
                    Some(TargetEvent::Ended(Ending::Protocol(error))) => ending = Some(error),
                    Some(TargetEvent::Ended(other)) => panic!("{other}"),
                    Some(_) => {}
                    None => break,
                }
            }
        }
        let error = ending.expect("the bytes are refused");
        assert_eq!(error.fatal_error(), (fes, fei), "{error}");
        assert_eq!(connection.state(), ConnectionState::Terminating);
        let (pdu_type, sent_fes, sent_fei, quoted) = last_termination(&target_output(&mut connection));
        assert_eq!((pdu_type, sent_fes, sent_fei), (PduType::C2H_TERM_REQ, fes, fei), "{error}");
        assert!((8..=128).contains(&quoted.len()), "quotes {} bytes", quoted.len());
    }
}

/// An initiator's end refuses `bytes`, in one piece and byte by byte, with this FES and FEI.
#[track_caller]
pub fn check_initiator_refuses(
    make: impl Fn() -> (InitiatorConnection, Vec<u8>),
    fes: FatalErrorStatus,
    fei: u32,
) {
    for piece in [usize::MAX, 1] {
        let (mut connection, bytes) = make();
        let (mut start, mut end, mut ending) = (0, 0, None);
        while end < bytes.len() && ending.is_none() {
            end = bytes.len().min(end.saturating_add(piece));
            loop {
                let handled = connection.handle_bytes(&bytes[start..end], 0);
                start += handled.consumed;
                match handled.event {
                    Some(InitiatorEvent::Ended(Ending::Protocol(error))) => ending = Some(error),
                    Some(InitiatorEvent::Ended(other)) => panic!("{other}"),
                    Some(_) => {}
                    None => break,
                }
            }
        }
        let error = ending.expect("the bytes are refused");
        assert_eq!(error.fatal_error(), (fes, fei), "{error}");
        assert_eq!(connection.state(), ConnectionState::Terminating);
        let (pdu_type, sent_fes, sent_fei, quoted) = last_termination(&initiator_output(&mut connection));
        assert_eq!((pdu_type, sent_fes, sent_fei), (PduType::H2C_TERM_REQ, fes, fei), "{error}");
        assert!((8..=128).contains(&quoted.len()), "quotes {} bytes", quoted.len());
    }
}
