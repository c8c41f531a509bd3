//! However a stream is cut into pieces, the same things happen.
//!
//! Random streams of well-formed and of damaged PDUs are fed to each role in one
//! piece, byte by byte and in random pieces; events, data, outcome and output
//! have to be the same.

mod wire;

use nvme_spec::command::Sqe;
use nvme_spec::completion::{Cqe, StatusField};
use proptest::collection::vec;
use proptest::prelude::*;
use transport_tcp::codec::Framing;
use transport_tcp::connection::request::Transfer;
use transport_tcp::connection::{
    Ending, InitiatorConnection, InitiatorEvent, InitiatorOptions, Slot, TargetConnection, TargetEvent,
    TargetOptions,
};
use transport_tcp::pdu::{DigestFlags, IcReq, IcResp, PduFlags, PduKind};
use wire::{any, c2h_data, capsule, h2c_data, headers, initiator_output, pdu, r2t, response, target_output};
use zerocopy::FromZeros;

const TARGET: TargetOptions = TargetOptions {
    queue_depth: 4,
    r2t_bytes: 4096,
    max_h2c_data_bytes: 4096,
    max_r2t: 2,
    ..TargetOptions::DEFAULT
};

/// What happened, with neighbouring data joined.
#[derive(Debug, PartialEq)]
enum Seen {
    Ready,
    Command { slot: Slot, sqe: Box<Sqe>, data: Vec<u8>, is_intact: bool },
    Data { slot: Slot, offset: u32, bytes: Vec<u8> },
    DataComplete { slot: Slot, is_intact: bool },
    Completion { cid: u16, outcome: String, received: u32 },
    Ended(Ending),
}

fn note_data(seen: &mut Vec<Seen>, new_slot: Slot, new_offset: u32, new: &[u8]) {
    if let Some(Seen::Data { slot, offset, bytes }) = seen.last_mut()
        && *slot == new_slot
        && *offset + bytes.len() as u32 == new_offset
    {
        return bytes.extend_from_slice(new);
    }
    seen.push(Seen::Data { slot: new_slot, offset: new_offset, bytes: new.to_vec() });
}

/// Feeds `stream` in pieces of the given lengths, again and again.
fn feed(stream: &[u8], pieces: &[usize], mut take: impl FnMut(&[u8]) -> (usize, bool)) {
    let mut lengths = pieces.iter().copied().cycle();
    let (mut start, mut end) = (0, 0);
    while end < stream.len() {
        end = stream.len().min(end.saturating_add(lengths.next().unwrap_or(1)));
        loop {
            let (consumed, had_event) = take(&stream[start..end]);
            start += consumed;
            if !had_event {
                break;
            }
        }
    }
}

fn run_target(stream: &[u8], pieces: &[usize]) -> (Vec<Seen>, Vec<u8>) {
    let mut connection = TargetConnection::new(TARGET, 0).expect("options in range");
    let (mut seen, mut output) = (Vec::new(), Vec::new());
    let success = Cqe::new(0, 0, StatusField::SUCCESS);
    feed(stream, pieces, |bytes| {
        let handled = connection.handle_bytes(bytes, 0);
        match handled.event {
            None => return (handled.consumed, false),
            Some(TargetEvent::Ready(_)) => seen.push(Seen::Ready),
            Some(TargetEvent::Command { slot, sqe, data, is_intact }) => {
                seen.push(Seen::Command { slot, sqe: Box::new(*sqe), data: data.to_vec(), is_intact });
                match sqe.cid.get() % 3 {
                    0 => connection.receive(slot, 6000),
                    1 => connection.complete(slot, &success, 100),
                    _ => {
                        connection.execute(slot);
                        connection.complete(slot, &success, 0);
                    }
                }
            }
            Some(TargetEvent::Data { slot, offset, bytes }) => note_data(&mut seen, slot, offset, bytes),
            Some(TargetEvent::DataComplete { slot, is_intact }) => {
                seen.push(Seen::DataComplete { slot, is_intact });
                connection.complete(slot, &success, 0);
            }
            Some(TargetEvent::Ended(ending)) => seen.push(Seen::Ended(ending)),
        }
        output.extend(target_output(&mut connection));
        while connection.poll_released().is_some() {}
        (handled.consumed, true)
    });
    // What a termination quotes depends on how much of a header had come.
    if matches!(seen.last(), Some(Seen::Ended(Ending::Protocol(_)))) {
        let last = headers(&output).last().map_or(0, |header| header.plen.get() as usize);
        output.truncate(output.len() - last);
    }
    (seen, output)
}

fn run_initiator(stream: &[u8], pieces: &[usize], framing: &Framing) -> (Vec<Seen>, usize) {
    let options = InitiatorOptions {
        queue_depth: 8,
        max_r2t: 2,
        needs_header_digest: framing.header_digest,
        needs_data_digest: framing.data_digest,
        ..InitiatorOptions::DEFAULT
    };
    let mut connection = InitiatorConnection::new(options, 0).expect("options in range");
    let mut seen = Vec::new();
    feed(stream, pieces, |bytes| {
        let handled = connection.handle_bytes(bytes, 0);
        match handled.event {
            None => {}
            Some(InitiatorEvent::Ready(_)) => {
                seen.push(Seen::Ready);
                for cid in 0..8_u16 {
                    let mut sqe = Sqe::new_zeroed();
                    sqe.cid.set(cid);
                    let transfer =
                        if cid % 2 == 0 { Transfer::ToHost(6000) } else { Transfer::ToController(20_000) };
                    connection.submit(&sqe, transfer).expect("room for a command");
                }
                initiator_output(&mut connection);
            }
            Some(InitiatorEvent::Data { slot, offset, bytes }) => note_data(&mut seen, slot, offset, bytes),
            Some(InitiatorEvent::Ended(ending)) => seen.push(Seen::Ended(ending)),
        }
        (handled.consumed, handled.event.is_some())
    });
    // Completions are polled at the end: when they are is the owner's choice.
    initiator_output(&mut connection);
    connection.close();
    while let Some(completion) = connection.poll_completion() {
        let outcome = format!("{:?}", completion.outcome);
        seen.push(Seen::Completion { cid: completion.cid, outcome, received: completion.received });
    }
    (seen, connection.requests_in_flight())
}

/// A PDU for a target, right or wrong.
fn pdu_for_target() -> impl Strategy<Value = (u8, u16, u32, usize, bool)> {
    (0..12_u8, 0..6_u16, 0..4_u32, 1..1500_usize, proptest::bool::ANY)
}

fn encode_for_target(framing: &Framing, parts: (u8, u16, u32, usize, bool)) -> Vec<u8> {
    let (choice, cid, step, len, flag) = parts;
    match choice {
        0..=3 => capsule(framing, cid * 3, &[]),
        4 | 5 => capsule(framing, cid, &vec![cid as u8; len]),
        // The first use of a slot has generation 1, and there are four slots.
        6..=9 => {
            let data = vec![step as u8; (len * 4).min(4096)];
            h2c_data(framing, cid * 3, 4 | cid & 3, step * 4096, &data, flag)
        }
        10 => any_kind(framing, len),
        _ => {
            let mut bytes = capsule(framing, cid, &[1; 64]);
            let at = len % bytes.len();
            bytes[at] ^= 1 << step;
            bytes
        }
    }
}

fn encode_for_initiator(framing: &Framing, parts: (u8, u16, u32, usize, bool)) -> Vec<u8> {
    let (choice, cid, step, len, flag) = parts;
    match choice {
        0..=2 => response(framing, cid),
        3..=6 => {
            let flags = PduFlags::NONE.with_if(flag, PduFlags::LAST_PDU);
            let flags = flags.with_if(flag && len % 2 == 0, PduFlags::SUCCESS);
            c2h_data(framing, cid & !1, step * 1000, &vec![step as u8; 1000], flags)
        }
        7..=9 => r2t(framing, cid | 1, len as u16, step * 4096, 4096),
        10 => any_kind(framing, len),
        _ => {
            let mut bytes = c2h_data(framing, cid & !1, 0, &[1; 64], PduFlags::LAST_PDU);
            let at = len % bytes.len();
            bytes[at] ^= 1 << step;
            bytes
        }
    }
}

fn any_kind(framing: &Framing, choice: usize) -> Vec<u8> {
    any(PduKind::ALL[choice % PduKind::ALL.len()], framing)
}

fn framing_of(header_digest: bool, data_digest: bool) -> Framing {
    Framing { header_digest, data_digest, ..Framing::PLAIN }
}

/// One after the other: commands with data in the capsule, with data by R2T in PDUs of `chunk` bytes, or with
/// data for the host. The only slot in use is the first, and its generation counts the commands.
fn right_stream_for_target(framing: &Framing, commands: &[(u16, usize, usize)]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (number, (cid, len, chunk)) in commands.iter().enumerate() {
        if cid % 3 != 0 {
            stream.extend(capsule(framing, *cid, &vec![number as u8; *len]));
            continue;
        }
        stream.extend(capsule(framing, *cid, &[]));
        let tag = (number as u16 + 1) * 4;
        for (start, end) in [(0, 4096_u32), (4096, 6000)] {
            let mut at = start;
            while at < end {
                let len = (*chunk as u32 * 4).min(end - at);
                let data = vec![at as u8; len as usize];
                stream.extend(h2c_data(framing, *cid, tag, at, &data, at + len == end));
                at += len;
            }
        }
    }
    stream
}

/// Reads of 6000 bytes in PDUs of `chunk` bytes for the even identifiers, two R2Ts and an early end for the
/// odd ones, all mixed as `picks` says.
fn right_stream_for_initiator(framing: &Framing, chunk: usize, picks: &[usize]) -> Vec<u8> {
    let mut left: Vec<Vec<Vec<u8>>> = (0..8_u16).map(|cid| pdus_of_command(framing, cid, chunk)).collect();
    let mut picks = picks.iter().cycle();
    let mut stream = Vec::new();
    while left.iter().any(|pdus| !pdus.is_empty()) {
        let pick = picks.next().copied().unwrap_or(0);
        let open: Vec<usize> = (0..left.len()).filter(|index| !left[*index].is_empty()).collect();
        stream.extend(left[open[pick % open.len()]].remove(0));
    }
    stream
}

fn pdus_of_command(framing: &Framing, cid: u16, chunk: usize) -> Vec<Vec<u8>> {
    if cid % 2 == 1 {
        let r2ts = [r2t(framing, cid, cid, 0, 8192), r2t(framing, cid, 99, 8192, 11_808)];
        return r2ts.into_iter().chain([response(framing, cid)]).collect();
    }
    let mut pdus = Vec::new();
    let mut at = 0;
    while at < 6000 {
        let len = (chunk as u32 * 4).min(6000 - at);
        let is_last = at + len == 6000;
        let flags = PduFlags::NONE.with_if(is_last, PduFlags::LAST_PDU);
        let flags = flags.with_if(is_last && cid.is_multiple_of(4), PduFlags::SUCCESS);
        pdus.push(c2h_data(framing, cid, at, &vec![at as u8; len as usize], flags));
        at += len;
    }
    if !cid.is_multiple_of(4) {
        pdus.push(response(framing, cid));
    }
    pdus
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_target_sees_the_same_however_its_stream_is_cut(
        header_digest: bool, data_digest: bool,
        parts in vec(pdu_for_target(), 1..24), pieces in vec(1..700_usize, 1..20),
    ) {
        let framing = framing_of(header_digest, data_digest);
        let request = IcReq::new(0, DigestFlags::new(header_digest, data_digest), 3);
        let mut stream = pdu(&request, &Framing::PLAIN, &[]);
        stream.extend(parts.into_iter().flat_map(|parts| encode_for_target(&framing, parts)));
        let whole = run_target(&stream, &[usize::MAX]);
        prop_assert_eq!(&run_target(&stream, &pieces), &whole);
        prop_assert_eq!(&run_target(&stream, &[1]), &whole);
    }

    #[test]
    fn an_initiator_sees_the_same_however_its_stream_is_cut(
        header_digest: bool, data_digest: bool,
        parts in vec(pdu_for_target(), 1..24), pieces in vec(1..700_usize, 1..20),
    ) {
        let framing = framing_of(header_digest, data_digest);
        let response = IcResp::new(0, DigestFlags::new(header_digest, data_digest), 4096);
        let mut stream = pdu(&response, &Framing::PLAIN, &[]);
        stream.extend(parts.into_iter().flat_map(|parts| encode_for_initiator(&framing, parts)));
        let whole = run_initiator(&stream, &[usize::MAX], &framing);
        prop_assert_eq!(whole.1, 0, "a request is lost");
        prop_assert_eq!(&run_initiator(&stream, &pieces, &framing), &whole);
        prop_assert_eq!(&run_initiator(&stream, &[1], &framing), &whole);
    }

    #[test]
    fn a_target_follows_a_right_stream_however_it_is_cut(
        header_digest: bool, data_digest: bool,
        commands in vec((0..100_u16, 0..2000_usize, 1..1024_usize), 1..20), pieces in vec(1..3000_usize, 1..20),
    ) {
        let framing = framing_of(header_digest, data_digest);
        let request = IcReq::new(0, DigestFlags::new(header_digest, data_digest), 3);
        let mut stream = pdu(&request, &Framing::PLAIN, &[]);
        stream.extend(right_stream_for_target(&framing, &commands));
        let whole = run_target(&stream, &[usize::MAX]);
        let begun = whole.0.iter().filter(|seen| matches!(seen, Seen::Command { is_intact: true, .. })).count();
        prop_assert_eq!(begun, commands.len());
        let done =
            whole.0.iter().filter(|seen| matches!(seen, Seen::DataComplete { is_intact: true, .. })).count();
        prop_assert_eq!(done, commands.iter().filter(|(cid, ..)| cid % 3 == 0).count());
        prop_assert!(!matches!(whole.0.last(), Some(Seen::Ended(_))));
        prop_assert_eq!(&run_target(&stream, &pieces), &whole);
        prop_assert_eq!(&run_target(&stream, &[1]), &whole);
    }

    #[test]
    fn an_initiator_follows_a_right_stream_however_it_is_cut(
        header_digest: bool, data_digest: bool, chunk in 1..1500_usize,
        picks in vec(0..8_usize, 1..50), pieces in vec(1..3000_usize, 1..20),
    ) {
        let framing = framing_of(header_digest, data_digest);
        let response = IcResp::new(0, DigestFlags::new(header_digest, data_digest), 4096);
        let mut stream = pdu(&response, &Framing::PLAIN, &[]);
        stream.extend(right_stream_for_initiator(&framing, chunk, &picks));
        let whole = run_initiator(&stream, &[usize::MAX], &framing);
        let answered = whole.0.iter().filter(|seen| match seen {
            Seen::Completion { cid, outcome, received } => {
                outcome.starts_with("Answered") && *received == if cid % 2 == 0 { 6000 } else { 0 }
            }
            _ => false,
        });
        prop_assert_eq!(answered.count(), 8);
        prop_assert_eq!(&run_initiator(&stream, &pieces, &framing), &whole);
        prop_assert_eq!(&run_initiator(&stream, &[1], &framing), &whole);
    }
}
