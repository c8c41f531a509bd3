//! What the protocol itself costs per command, without a socket or a device.
//!
//!     cargo run --release -p transport-tcp --example cost
//!
//! Batches of 128 commands are taken, answered and encoded by the target, and
//! the answers taken by the initiator. Everything else a target does per
//! command comes on top.

use std::hint::black_box;
use std::time::{Duration, Instant};

use nvme_spec::command::Sqe;
use nvme_spec::completion::{Cqe, StatusField};
use tenon_sdk::crc32c;
use transport_tcp::connection::request::Transfer;
use transport_tcp::connection::{
    InitiatorConnection, InitiatorEvent, InitiatorOptions, OptionError, Piece, TargetConnection, TargetEvent,
    TargetOptions,
};
use zerocopy::FromZeros;

const BATCH: u16 = 128;
const BLOCK: u32 = 4096;
const TIME: Duration = Duration::from_millis(300);

fn main() -> Result<(), OptionError> {
    println!("{:<34} {:>10} {:>10}", "ns per 4 KiB command, batches of 128", "target", "initiator");
    for digests in [false, true] {
        for transfer in [Transfer::ToHost(BLOCK), Transfer::ToController(BLOCK)] {
            let (target, initiator) = measure(transfer, digests)?;
            let name = format!("{transfer:?}{}", if digests { ", digests" } else { "" });
            println!("{name:<34} {target:>10.1} {initiator:>10.1}");
        }
    }
    let block = vec![0x5a_u8; BLOCK as usize];
    let digest = (0..10_000).map(|_| {
        let start = Instant::now();
        black_box(crc32c(0, black_box(&block)));
        start.elapsed()
    });
    println!("digest of 4 KiB: {:?}", digest.min().unwrap_or_default());
    Ok(())
}

/// Nanoseconds per command at the target and at the initiator.
///
/// Every batch is the same bytes, so these are made once; then output is only looked at, not copied.
fn measure(transfer: Transfer, digests: bool) -> Result<(f64, f64), OptionError> {
    let mut target = TargetConnection::new(TargetOptions::DEFAULT, 0)?;
    let options = InitiatorOptions {
        needs_header_digest: digests,
        needs_data_digest: digests,
        ..InitiatorOptions::DEFAULT
    };
    let mut initiator = InitiatorConnection::new(options, 0)?;
    let payload = vec![0x5a_u8; BLOCK as usize];
    let (mut requests, mut answers) = (Vec::new(), Vec::new());
    for _handshake_then_batch in 0..2 {
        requests.clear();
        answers.clear();
        submit(&mut initiator, transfer);
        send(&mut initiator, &payload, |bytes| requests.extend_from_slice(bytes));
        serve(&mut target, transfer, &payload, &requests, |bytes| answers.extend_from_slice(bytes));
        take_answers(&mut initiator, &answers);
    }
    // The least is what the code costs; the rest is what else the machine does.
    let (mut at_target, mut at_initiator) = (Duration::MAX, Duration::MAX);
    let start = Instant::now();
    while start.elapsed() < TIME {
        let before = Instant::now();
        submit(&mut initiator, transfer);
        send(&mut initiator, &payload, look_at);
        let sent = Instant::now();
        serve(&mut target, transfer, &payload, &requests, look_at);
        let served = Instant::now();
        let taken = take_answers(&mut initiator, &answers);
        assert_eq!(taken, u64::from(BATCH), "every command is answered");
        at_initiator = at_initiator.min(sent - before + served.elapsed());
        at_target = at_target.min(served - sent);
    }
    let per_command = |time: Duration| time.as_nanos() as f64 / f64::from(BATCH);
    Ok((per_command(at_target), per_command(at_initiator)))
}

fn submit(initiator: &mut InitiatorConnection, transfer: Transfer) {
    let mut sqe = Sqe::new_zeroed();
    for cid in 0..BATCH {
        sqe.cid.set(cid);
        let _ = black_box(initiator.submit(&sqe, transfer));
    }
}

fn send(initiator: &mut InitiatorConnection, payload: &[u8], mut sink: impl FnMut(&[u8])) {
    loop {
        initiator.poll_output(|place| crc32c(0, &payload[..place.len as usize]), 0);
        let len = initiator.output_len() as usize;
        if len == 0 {
            return;
        }
        write_to(&mut sink, initiator.pieces(), payload);
        initiator.handle_written(len, 0);
    }
}

/// Takes and answers what `wire` holds.
fn serve(
    target: &mut TargetConnection,
    transfer: Transfer,
    payload: &[u8],
    wire: &[u8],
    mut sink: impl FnMut(&[u8]),
) {
    let cqe = Cqe::new(0, 0, StatusField::SUCCESS);
    let length = if matches!(transfer, Transfer::ToHost(_)) { BLOCK } else { 0 };
    let mut start = 0;
    loop {
        let handled = target.handle_bytes(&wire[start..], 0);
        start += handled.consumed;
        match handled.event {
            Some(TargetEvent::Command { slot, sqe, data, .. }) => {
                black_box((sqe, data));
                target.execute(slot);
                target.complete(slot, &cqe, length);
            }
            Some(_) => {}
            None => break,
        }
    }
    loop {
        target.poll_output(|place| crc32c(0, &payload[..place.len as usize]), 0);
        let len = target.output_len() as usize;
        if len == 0 {
            break;
        }
        write_to(&mut sink, target.pieces(), payload);
        target.handle_written(len, 0);
    }
    while target.poll_released().is_some() {}
}

fn take_answers(initiator: &mut InitiatorConnection, wire: &[u8]) -> u64 {
    let mut start = 0;
    loop {
        let handled = initiator.handle_bytes(&wire[start..], 0);
        start += handled.consumed;
        match handled.event {
            Some(InitiatorEvent::Data { bytes, .. }) => look_at(bytes),
            Some(_) => {}
            None => break,
        }
    }
    std::iter::from_fn(|| initiator.poll_completion()).count() as u64
}

fn look_at(bytes: &[u8]) {
    black_box(bytes);
}

/// Stands for the socket.
fn write_to<'a>(sink: &mut impl FnMut(&[u8]), pieces: impl Iterator<Item = Piece<'a>>, payload: &[u8]) {
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => sink(bytes),
            Piece::Payload(place) => sink(&payload[..place.len as usize]),
        }
    }
}
