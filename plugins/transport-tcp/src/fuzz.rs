//! Entry points for fuzzing: any bytes end in an answer, and what must hold is asserted.
//!
//! The targets that call them and their corpora are in `tests/fuzz`.
#![forbid(unsafe_code)]

use nvme_spec::command::Sqe;
use nvme_spec::completion::{Cqe, StatusField};
use zerocopy::FromZeros;

use crate::codec::{Framing, Scan, scan};
use crate::connection::command::CommandState;
use crate::connection::request::Transfer;
use crate::connection::{
    ConnectionState, InitiatorConnection, InitiatorEvent, InitiatorOptions, Slot, TargetConnection,
    TargetEvent, TargetOptions, Timeouts,
};
use crate::pdu::COMMON_LEN;

/// Feeds any bytes to the header check, under every framing the first byte can ask for.
///
/// # Panics
///
/// If the check contradicts itself.
pub fn fuzz_codec(input: &[u8]) {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let alignment = ((choice >> 2 & 0b11) + 1) * 4;
    let framing = Framing {
        header_digest: choice & 1 != 0,
        data_digest: choice & 2 != 0,
        receive_alignment: alignment,
        send_alignment: alignment,
    };
    let whole = scan(bytes, &framing, LIMIT_BYTES);
    if let Ok(Scan::Complete(frame)) = whole {
        assert!(frame.head_len >= COMMON_LEN && frame.data_offset >= frame.head_len);
        assert!(frame.head_len <= bytes.len());
        assert!(frame.total_len() >= frame.head_len);
    }
    for end in 0..bytes.len().min(MAX_PREFIX) {
        match scan(&bytes[..end], &framing, LIMIT_BYTES) {
            Ok(Scan::Incomplete(needed)) => assert!(needed > end, "asks for what it has"),
            decided => assert_eq!(decided, whole, "a longer prefix changes the answer"),
        }
    }
}

/// Feeds any bytes to a connection: the first chooses role and digests, the second the size of the pieces.
///
/// # Panics
///
/// If the connection loses or invents a command, or goes on after its end.
pub fn fuzz_connection(input: &[u8]) {
    let [choice, piece, bytes @ ..] = input else { return };
    let piece = usize::from(*piece) + 1;
    if choice & 1 == 0 { fuzz_target(*choice, piece, bytes) } else { fuzz_initiator(*choice, piece, bytes) }
}

fn fuzz_target(choice: u8, piece: usize, bytes: &[u8]) {
    let options = TargetOptions {
        queue_depth: 4,
        r2t_bytes: 4096,
        max_h2c_data_bytes: 4096,
        max_r2t: 2,
        cpda_z: choice >> 4 & 3,
        sends_success_flag: choice & 2 != 0,
        ..TargetOptions::DEFAULT
    };
    let Ok(mut connection) = TargetConnection::new(options, 0) else { return };
    feed(bytes, piece, |input, now_ns| {
        let handled = connection.handle_bytes(input, now_ns);
        let consumed = handled.consumed;
        match handled.event {
            Some(TargetEvent::Command { slot, sqe, .. }) => settle(&mut connection, slot, sqe),
            Some(TargetEvent::DataComplete { slot, .. }) => connection.complete(slot, &success(), 0),
            Some(TargetEvent::Data { bytes, .. }) => assert!(!bytes.is_empty()),
            Some(TargetEvent::Ready(_) | TargetEvent::Ended(_)) => {}
            None => write_target(&mut connection, now_ns, choice & 4 == 0),
        }
        assert!(connection.state() != ConnectionState::Closed || connection.output_len() == 0);
        (consumed, handled.event.is_some())
    });
    connection.close();
    for index in 0..options.queue_depth {
        if connection.command_state(Slot::new(index)) == CommandState::Executing {
            connection.complete(Slot::new(index), &success(), 0);
        }
    }
    while connection.poll_released().is_some() {}
    assert_eq!(connection.commands_in_flight(), 0, "a command is lost");
}

/// Decides what becomes of a command by its bytes, so that the input reaches every way.
fn settle(connection: &mut TargetConnection, slot: Slot, sqe: &Sqe) {
    match sqe.opc & 3 {
        0 => connection.complete(slot, &success(), 0),
        1 => connection.receive(slot, sqe.cdw10.get() % 20_000 + 1),
        2 => connection.complete(slot, &success(), sqe.cdw10.get() % 20_000),
        _ => {
            connection.execute(slot);
            connection.complete(slot, &success(), 8);
        }
    }
}

fn write_target(connection: &mut TargetConnection, now_ns: u64, writes_all: bool) {
    connection.poll_output(|_| 0, now_ns);
    let len = connection.output_len();
    connection.handle_written(if writes_all { len } else { len / 2 } as usize, now_ns);
    while connection.poll_released().is_some() {}
}

fn fuzz_initiator(choice: u8, piece: usize, bytes: &[u8]) {
    let options = InitiatorOptions {
        queue_depth: 4,
        max_r2t: 2,
        hpda_z: choice >> 4 & 3,
        needs_header_digest: choice & 2 != 0,
        needs_data_digest: choice & 4 != 0,
        timeouts: Timeouts::DEFAULT,
        ..InitiatorOptions::DEFAULT
    };
    let Ok(mut connection) = InitiatorConnection::new(options, 0) else { return };
    let mut in_flight = 0;
    feed(bytes, piece, |input, now_ns| {
        let handled = connection.handle_bytes(input, now_ns);
        match handled.event {
            Some(InitiatorEvent::Ready(_)) => {
                for (cid, transfer) in TRANSFERS.into_iter().enumerate() {
                    let mut sqe = Sqe::new_zeroed();
                    sqe.cid.set(cid as u16);
                    in_flight += usize::from(connection.submit(&sqe, transfer).is_ok());
                }
            }
            Some(InitiatorEvent::Data { bytes, .. }) => assert!(!bytes.is_empty()),
            Some(InitiatorEvent::Ended(_)) | None => {}
        }
        connection.poll_output(|_| 0, now_ns);
        connection.handle_written(connection.output_len() as usize, now_ns);
        while connection.poll_completion().is_some() {
            in_flight -= 1;
        }
        (handled.consumed, handled.event.is_some())
    });
    connection.close();
    while connection.poll_completion().is_some() {
        in_flight -= 1;
    }
    assert_eq!((in_flight, connection.requests_in_flight()), (0, 0), "a request is lost");
}

/// Presents `bytes` in pieces until they are used up; `handle` says what it consumed and whether to call again.
fn feed(bytes: &[u8], piece: usize, mut handle: impl FnMut(&[u8], u64) -> (usize, bool)) {
    let (mut start, mut end) = (0, 0);
    while end < bytes.len() {
        end = bytes.len().min(end + piece);
        loop {
            let (consumed, had_event) = handle(&bytes[start..end], end as u64);
            assert!(consumed <= end - start, "consumes what it was not given");
            start += consumed;
            if !had_event {
                break;
            }
        }
    }
}

fn success() -> Cqe {
    Cqe::new(0, 0, StatusField::SUCCESS)
}

const LIMIT_BYTES: u32 = 8192;
const MAX_PREFIX: usize = 160;
const TRANSFERS: [Transfer; 4] =
    [Transfer::None, Transfer::ToHost(8192), Transfer::ToController(20_000), Transfer::ToController(512)];
