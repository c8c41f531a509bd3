//! An initiator module inside the test: connections, the commands on them, and
//! the record of what was told and completed.
// UNSAFETY: calls the initiator's table, and is called back with raw pointers.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;

use tenon_abi::transport::initiator::{
    ConnectParams, ConnectionEvent, ConnectionEventKind, ConnectionFn, InitiatorOpsV1, InitiatorRequest,
};
use tenon_abi::transport::{CloseReason, Direction};
use tenon_abi::{IoVec, Str, errno};

use super::Rig;
use super::target::{READ, WRITE};
use crate::host::{ModuleId, Place};

/// Entries of a queue.
pub(super) const ENTRIES: u32 = 16;

/// A connection.
pub(super) struct Peer {
    pub(super) seen: Rc<Seen>,
    raw: *mut c_void,
    reactor: u32,
    ops: &'static InitiatorOpsV1,
    module: ModuleId,
    next: Cell<u16>,
    is_freed: Cell<bool>,
}

/// What was told.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) events: RefCell<Vec<ConnectionEventKind>>,
    pub(super) depth: Cell<u32>,
    pub(super) reason: Cell<u32>,
}

/// A command, and what became of it.
pub(super) struct Command {
    request: *mut InitiatorRequest,
    layout: Layout,
    pub(super) payload: Vec<u8>,
    iovs: Vec<IoVec>,
    pub(super) completions: Cell<u32>,
    number: u32,
    cid: u16,
}

impl Peer {
    pub(super) fn connect(rig: &Rig, reactor: u32) -> Peer {
        Peer::connect_within(rig, reactor, super::PATIENCE.as_nanos() as u64)
    }

    pub(super) fn connect_within(rig: &Rig, reactor: u32, within_ns: u64) -> Peer {
        let seen: Rc<Seen> = Rc::default();
        let id = rig.id();
        let params = ConnectParams {
            size: size_of::<ConnectParams>() as u32,
            qid: 0,
            queue_size: ENTRIES,
            cntlid: 0xffff,
            peer: id,
            local: tenon_abi::transport::TransportId { traddr: Str::EMPTY, trsvcid: Str::EMPTY, ..id },
            hostnqn: Str::new("nqn.2026-01.io.tenon:testkit"),
            options_json: Str::new(&rig.suite.connect_options),
            deadline_ns: rig.host.now_ns() + within_ns,
            psk_identity: Str::EMPTY,
            psk: std::ptr::null(),
            psk_len: 0,
        };
        let mut raw = std::ptr::null_mut();
        let arg = Rc::into_raw(Rc::clone(&seen)).cast_mut().cast::<c_void>();
        let code = rig.host.on_behalf_of(rig.module, Place::Data(reactor), || {
            // SAFETY: on the group's reactor; parameters are lent for the call, `arg` lives until CLOSED.
            unsafe {
                let group = rig.initiator_groups[reactor as usize];
                (rig.initiator_ops.connect)(group, &params, ConnectionFn(heard), arg, &mut raw)
            }
        });
        assert_eq!(code, 0, "a connection starts");
        assert!(seen.events.borrow().is_empty(), "events come later");
        let (ops, module) = (rig.initiator_ops, rig.module);
        Peer { seen, raw, reactor, ops, module, next: Cell::new(0), is_freed: Cell::new(false) }
    }

    pub(super) fn has(&self, kind: ConnectionEventKind) -> bool {
        self.seen.events.borrow().contains(&kind)
    }

    /// Waits until it is connected.
    #[track_caller]
    pub(super) fn opened(self, rig: &Rig) -> Peer {
        assert!(rig.run_until(|| self.has(ConnectionEventKind::CONNECTED)), "connected in time");
        assert!(self.seen.depth.get() > 0);
        self
    }

    /// Submits a command; its payload is cut into `pieces`. `None` if the queue is full.
    pub(super) fn submit(
        &self,
        rig: &Rig,
        op: u8,
        offset: usize,
        payload: Vec<u8>,
        pieces: usize,
    ) -> Result<Box<Command>, i32> {
        let mut command = Command::new(self.ops, op, offset, payload, pieces, self.next.get());
        let raw: *mut Command = &raw mut *command;
        let code = rig.host.on_behalf_of(self.module, Place::Data(self.reactor), || {
            // SAFETY: on the connection's reactor; the request lives in the command until it is done.
            unsafe {
                (*command.request).done = Some(done);
                (*command.request).done_arg = raw.cast();
                (self.ops.submit)(self.raw, command.request)
            }
        });
        if code != 0 {
            command.completions.set(1);
            return Err(code);
        }
        self.next.set((self.next.get() + 1) % ENTRIES as u16);
        assert_eq!(command.completions.get(), 0, "completions come later");
        Ok(command)
    }

    pub(super) fn flush(&self, rig: &Rig) {
        rig.host.on_behalf_of(self.module, Place::Data(self.reactor), || {
            // SAFETY: on the connection's reactor, before it is freed.
            unsafe { (self.ops.flush)(self.raw) };
        });
    }

    /// One command, and its end.
    #[track_caller]
    pub(super) fn run(&self, rig: &Rig, op: u8, offset: usize, payload: Vec<u8>, pieces: usize) -> Vec<u8> {
        let command = self.submit(rig, op, offset, payload, pieces).expect("room");
        self.flush(rig);
        assert!(rig.run_until(|| command.completions.get() > 0), "answered in time");
        command.check_good();
        let payload = command.payload.clone();
        drop(command);
        payload
    }

    pub(super) fn disconnect(&self, rig: &Rig) {
        rig.host.on_behalf_of(self.module, Place::Data(self.reactor), || {
            let drain_by_ns = rig.host.now_ns() + 1_000_000_000;
            // SAFETY: on the connection's reactor, before it is freed.
            unsafe { (self.ops.disconnect)(self.raw, CloseReason::LOCAL, drain_by_ns) };
        });
    }

    /// Waits for the end, checks what was told, and frees the connection.
    #[track_caller]
    pub(super) fn ended(&self, rig: &Rig) {
        assert!(rig.run_until(|| self.has(ConnectionEventKind::CLOSED)), "closed in time");
        let events = self.seen.events.borrow();
        let count = |kind| events.iter().filter(|event| **event == kind).count();
        assert_eq!(events.last(), Some(&ConnectionEventKind::CLOSED), "CLOSED is the last");
        assert_eq!(count(ConnectionEventKind::CLOSED), 1);
        assert!(count(ConnectionEventKind::CLOSING) <= 1 && count(ConnectionEventKind::CONNECTED) <= 1);
        drop(events);
        if !self.is_freed.replace(true) {
            rig.host.on_behalf_of(self.module, Place::Data(self.reactor), || {
                // SAFETY: after CLOSED, once.
                unsafe { (self.ops.connection_free)(self.raw) };
            });
        }
    }
}

impl Command {
    fn new(
        ops: &InitiatorOpsV1,
        op: u8,
        offset: usize,
        payload: Vec<u8>,
        pieces: usize,
        cid: u16,
    ) -> Box<Command> {
        let context = ops.request_ctx_size as usize;
        let layout = Layout::from_size_align(size_of::<InitiatorRequest>() + context, 64).expect("small");
        // SAFETY: the layout is not empty.
        let request = unsafe { alloc_zeroed(layout) }.cast::<InitiatorRequest>();
        assert!(!request.is_null());
        let number = 0x5eed_0000 | u32::from(cid);
        let mut command = Box::new(Command {
            request,
            layout,
            payload,
            iovs: Vec::new(),
            completions: Cell::new(0),
            number,
            cid,
        });
        command.cut(pieces);
        let length = command.payload.len() as u32;
        // SAFETY: zeroes are a request; list and payload live as long as the command.
        unsafe {
            let mut sqe = [0; 64];
            sqe[0] = op;
            sqe[2..4].copy_from_slice(&cid.to_le_bytes());
            sqe[40..44].copy_from_slice(&(offset as u32).to_le_bytes());
            sqe[48..52].copy_from_slice(&length.to_le_bytes());
            sqe[52..56].copy_from_slice(&number.to_le_bytes());
            (*request).sqe = sqe;
            (*request).iovs = command.iovs.as_mut_ptr();
            (*request).iovcnt = command.iovs.len() as u32;
            (*request).length = length;
            (*request).direction = match (op, length) {
                (_, 0) => Direction::NONE,
                (READ, _) => Direction::TO_HOST,
                _ => Direction::TO_CONTROLLER,
            };
        }
        command
    }

    fn cut(&mut self, pieces: usize) {
        let size = self.payload.len().div_ceil(pieces.max(1)).max(1);
        for piece in self.payload.chunks_mut(size) {
            self.iovs.push(IoVec { base: piece.as_mut_ptr().cast(), len: piece.len() });
        }
    }

    /// The transport's word on it.
    pub(super) fn status(&self) -> i32 {
        assert_eq!(self.completions.get(), 1, "completed once");
        // SAFETY: the request lives as long as the command.
        unsafe { (*self.request).status }
    }

    /// It was answered, with success and as itself.
    #[track_caller]
    pub(super) fn check_good(&self) {
        assert_eq!(self.status(), 0);
        // SAFETY: as above.
        let cqe = unsafe { (*self.request).cqe };
        assert_eq!(u32::from_le_bytes([cqe[0], cqe[1], cqe[2], cqe[3]]), self.number);
        assert_eq!(u16::from_le_bytes([cqe[12], cqe[13]]), self.cid);
        assert_eq!(u16::from_le_bytes([cqe[14], cqe[15]]) >> 1, 0, "success");
    }

    /// It came back: answered, or lost with its connection.
    #[track_caller]
    pub(super) fn check_over(&self) {
        let status = self.status();
        assert!(status == 0 || status == errno::ECANCELED, "status {status}");
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        assert!(self.completions.get() > 0 || std::thread::panicking(), "dropped while it is on the way");
        // SAFETY: allocated with this layout, and done.
        unsafe { dealloc(self.request.cast(), self.layout) };
    }
}

unsafe extern "C" fn heard(arg: *mut c_void, event: *const ConnectionEvent) {
    // SAFETY: the reference given to `connect` lives until CLOSED; the event is lent for the call.
    unsafe {
        let seen = &*arg.cast_const().cast::<Seen>();
        let event = &*event;
        seen.events.borrow_mut().push(event.kind);
        match event.kind {
            ConnectionEventKind::CONNECTED => seen.depth.set(event.queue_depth),
            ConnectionEventKind::CLOSED => {
                seen.reason.set(event.reason.0);
                drop(Rc::from_raw(arg.cast_const().cast::<Seen>()));
            }
            _ => {}
        }
    }
}

unsafe extern "C" fn done(_: *mut InitiatorRequest, arg: *mut c_void) {
    // SAFETY: the command lives until it is done.
    let command = unsafe { &*arg.cast_const().cast::<Command>() };
    command.completions.set(command.completions.get() + 1);
}

/// Bytes that are different everywhere.
pub(super) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(101)) as u8).collect()
}

/// Writes and reads back.
#[track_caller]
pub(super) fn round_trip(rig: &Rig, peer: &Peer, offset: usize, len: usize, pieces: usize) {
    let sent = pattern(offset + len, len);
    peer.run(rig, WRITE, offset, sent.clone(), pieces);
    let got = peer.run(rig, READ, offset, vec![0xee; len], pieces.max(2) - 1);
    assert!(got == sent, "{len} bytes in {pieces} pieces at {offset} came back different");
}
