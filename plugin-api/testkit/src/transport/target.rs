//! A target core inside the test: a memory that commands write and read, and
//! the record of who has which request.
//!
//! What a command does is in its 64 bytes: the operation in byte 0, offset and
//! length in dwords 10 and 12, a number that comes back in dword 13.
// UNSAFETY: implements the core's functions of the contract, which take raw pointers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;

use tenon_abi::transport::target::{
    ConnectionInfo, Disposition, HostQueuePair, HostTransport, NvmfTargetApiV1, TargetOpsV1, TargetRequest,
};
use tenon_abi::transport::{CloseReason, DeviceEvent, Direction};
use tenon_abi::{HostApiV1, IoVec, Str};

use crate::host::{FakeHost, ModuleId, Place};

/// Does nothing.
pub(super) const NOTHING: u8 = 0;
/// Writes to the memory.
pub(super) const WRITE: u8 = 1;
/// Reads from the memory.
pub(super) const READ: u8 = 2;
/// Is answered when the test says so.
pub(super) const HOLD: u8 = 4;
/// Writes, after a wait for a buffer.
pub(super) const LATE_WRITE: u8 = 5;
/// Bytes of the memory.
pub(super) const MEMORY: usize = 4 << 20;

/// Who has a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    /// The transport, which owes an execute or a release.
    Transport,
    /// The core, which owes a completion.
    Core,
    /// The core, which owes buffers.
    Waiting,
    /// The transport, which owes a release.
    Answered,
}

struct Request {
    queue: usize,
    holder: Holder,
    buffer: Vec<u8>,
    iov: Box<IoVec>,
}

struct Queue {
    connection: *mut c_void,
    reactor: u32,
    is_closed: bool,
    is_asked: bool,
}

#[derive(Default)]
struct Core {
    host: Option<&'static HostApiV1>,
    ops: Option<&'static TargetOpsV1>,
    groups: Vec<*mut c_void>,
    /// Connections to be adopted.
    announced: Vec<*mut c_void>,
    /// By the number behind their handle.
    queues: HashMap<usize, Queue>,
    requests: HashMap<*mut TargetRequest, Request>,
    memory: Vec<u8>,
    next: usize,
    adopts: bool,
    adopting_on: u32,
    opened: usize,
    freed: usize,
    in_capsule: u32,
}

thread_local! {
    static CORE: RefCell<Core> = RefCell::default();
    /// Anything the transport may take for the core's handle.
    static HANDLE: Cell<u8> = const { Cell::new(0) };
}

fn with<R>(f: impl FnOnce(&mut Core) -> R) -> R {
    CORE.with_borrow_mut(f)
}

pub(super) fn core_handle() -> *mut HostTransport {
    HANDLE.with(|handle| handle.as_ptr().cast())
}

pub(super) fn api() -> *const NvmfTargetApiV1 {
    &API
}

pub(super) fn install(host: &'static HostApiV1, ops: &'static TargetOpsV1) {
    let (host, ops) = (Some(host), Some(ops));
    let core = Core { host, ops, memory: vec![0; MEMORY], next: 1, adopts: true, ..Core::default() };
    CORE.set(core);
}

pub(super) fn uninstall() {
    let core = CORE.take();
    assert!(core.requests.is_empty() && core.announced.is_empty(), "requests are released");
    assert_eq!(core.opened, core.freed, "every connection is freed once");
}

pub(super) fn add_group(group: *mut c_void) {
    with(|core| core.groups.push(group));
}

pub(super) fn group(index: usize) -> *mut c_void {
    with(|core| core.groups[index])
}

/// Connections that are not freed.
pub(super) fn connections() -> usize {
    with(|core| core.queues.len() + core.announced.len())
}

/// Whether announced connections are taken over.
pub(super) fn set_adopts(adopts: bool) {
    with(|core| core.adopts = adopts);
}

/// What there is, for who reads of a failure.
pub(super) fn describe() -> String {
    with(|core| {
        let (queues, announced, requests) = (core.queues.len(), core.announced.len(), core.requests.len());
        format!("{queues} queues, {announced} announced, {} opened, {requests} requests", core.opened)
    })
}

/// Requests the core has.
pub(super) fn held() -> usize {
    with(|core| core.requests.values().filter(|request| request.holder == Holder::Core).count())
}

fn ops() -> &'static TargetOpsV1 {
    with(|core| core.ops.expect("installed"))
}

/// What the core does in turns of its own: adopts, gives buffers, frees.
pub(super) fn turn(host: &FakeHost, module: ModuleId) {
    let announced = with(|core| if core.adopts { std::mem::take(&mut core.announced) } else { Vec::new() });
    for connection in announced {
        let (reactor, group) = with(|core| {
            core.adopting_on = (core.adopting_on + 1) % core.groups.len() as u32;
            (core.adopting_on, core.groups[core.adopting_on as usize])
        });
        host.on_behalf_of(module, Place::Data(reactor), || {
            // SAFETY: the connection was announced; this is the group's reactor.
            unsafe { (ops().connection_adopt)(group, connection) };
        });
    }
    let waiting = with(|core| {
        let all = core.requests.iter_mut().filter(|(_, request)| request.holder == Holder::Waiting);
        all.map(|(raw, request)| {
            request.holder = Holder::Transport;
            (*raw, request.queue)
        })
        .collect::<Vec<_>>()
    });
    for (raw, queue) in waiting {
        let reactor = with(|core| core.queues[&queue].reactor);
        host.on_behalf_of(module, Place::Data(reactor), || {
            // SAFETY: the request waited; its buffer is set here.
            unsafe {
                give_buffer(raw);
                (ops().request_buffers)(raw);
            }
        });
    }
    let over = with(|core| {
        let busy: Vec<usize> = core.requests.values().map(|request| request.queue).collect();
        let is_over = |(number, queue): (&usize, &Queue)| {
            (queue.is_closed && !busy.contains(number)).then_some((*number, queue.reactor, queue.connection))
        };
        core.queues.iter().filter_map(is_over).collect::<Vec<_>>()
    });
    for (number, reactor, connection) in over {
        with(|core| {
            core.queues.remove(&number);
            core.freed += 1;
        });
        host.on_behalf_of(module, Place::Data(reactor), || {
            // SAFETY: closed, and every request released.
            unsafe { (ops().connection_free)(connection) };
        });
    }
}

/// Asks the transport to end every connection.
pub(super) fn close_all(host: &FakeHost, module: ModuleId) {
    let open = with(|core| {
        let mut open = Vec::new();
        for queue in core.queues.values_mut().filter(|queue| !queue.is_closed && !queue.is_asked) {
            queue.is_asked = true;
            open.push((queue.reactor, queue.connection));
        }
        open
    });
    for (reactor, connection) in open {
        host.on_behalf_of(module, Place::Data(reactor), || {
            let drain_by_ns = host.now_ns() + 1_000_000_000;
            // SAFETY: the connection is not freed; this is its reactor.
            unsafe { (ops().connection_close)(connection, CloseReason::LOCAL, drain_by_ns) };
        });
    }
}

/// Answers every held command.
pub(super) fn answer_held(host: &FakeHost, module: ModuleId) {
    let all = with(|core| {
        let held = core.requests.iter().filter(|(_, request)| request.holder == Holder::Core);
        held.map(|(raw, request)| (*raw, core.queues[&request.queue].reactor)).collect::<Vec<_>>()
    });
    for (raw, reactor) in all {
        // SAFETY: the core has the request.
        host.on_behalf_of(module, Place::Data(reactor), || unsafe { complete(raw, 0) });
    }
}

fn dword(sqe: &[u8; 64], index: usize) -> usize {
    let at = index * 4;
    u32::from_le_bytes([sqe[at], sqe[at + 1], sqe[at + 2], sqe[at + 3]]) as usize
}

/// # Safety
/// The request is begun and not released.
unsafe fn give_buffer(raw: *mut TargetRequest) {
    // SAFETY: the request is alive; its buffer lives until it is released.
    unsafe {
        let length = (*raw).length as usize;
        with(|core| {
            let request = core.requests.get_mut(&raw).expect("begun");
            request.buffer = vec![0; length];
            *request.iov = IoVec { base: request.buffer.as_mut_ptr().cast(), len: length };
            (*raw).iovs = &raw mut *request.iov;
            (*raw).iovcnt = 1;
        });
    }
}

/// # Safety
/// The request is begun and not released, and the core has it.
unsafe fn complete(raw: *mut TargetRequest, status: u16) {
    // SAFETY: the core has the request, which is alive.
    unsafe {
        let sqe = (*raw).sqe;
        let mut cqe = [0; 16];
        cqe[..4].copy_from_slice(&sqe[52..56]);
        cqe[12..14].copy_from_slice(&sqe[2..4]);
        cqe[14..16].copy_from_slice(&status.to_le_bytes());
        (*raw).cqe = cqe;
        if status != 0 {
            (*raw).direction = Direction::NONE;
        }
        with(|core| {
            let request = core.requests.get_mut(&raw).expect("begun");
            assert_eq!(request.holder, Holder::Core, "the core answers what it has");
            request.holder = Holder::Answered;
        });
        (ops().request_complete)(raw);
    }
}

unsafe extern "C" fn connection_new(_: *mut HostTransport, listener: u64, connection: *mut c_void) -> i32 {
    assert_eq!(listener, super::LISTENER);
    with(|core| core.announced.push(connection));
    0
}

unsafe extern "C" fn queue_pair_open(
    _: *mut HostTransport,
    connection: *mut c_void,
    info: *const ConnectionInfo,
    out: *mut *mut HostQueuePair,
) -> i32 {
    // SAFETY: the transport's struct is readable for the call.
    let info = unsafe { &*info };
    assert!(info.queue_depth > 0 && info.listener == super::LISTENER);
    with(|core| {
        let number = core.next;
        core.next += 1;
        core.opened += 1;
        core.in_capsule = info.in_capsule_size;
        let host = core.host.expect("installed");
        // SAFETY: functions of the host's table, callable on any thread.
        let reactor = unsafe { (host.reactor_index)((host.reactor_current)()) };
        assert_ne!(reactor, u32::MAX, "on a data reactor");
        core.queues.insert(number, Queue { connection, reactor, is_closed: false, is_asked: false });
        // SAFETY: the transport gives room for the handle.
        unsafe { *out = std::ptr::without_provenance_mut(number) };
    });
    0
}

unsafe extern "C" fn queue_pair_closed(queue: *mut HostQueuePair, _: CloseReason) {
    let number = queue.addr();
    let held = with(|core| {
        let queue = core.queues.get_mut(&number).expect("open");
        assert!(!std::mem::replace(&mut queue.is_closed, true), "closed once");
        let own = |(raw, request): (&*mut TargetRequest, &mut Request)| {
            let mine = request.queue == number && matches!(request.holder, Holder::Core | Holder::Waiting);
            mine.then(|| {
                request.holder = Holder::Core;
                *raw
            })
        };
        core.requests.iter_mut().filter_map(own).collect::<Vec<_>>()
    });
    for raw in held {
        // SAFETY: the core has these.
        unsafe { complete(raw, ABORTED) };
    }
}

unsafe extern "C" fn request_begin(raw: *mut TargetRequest) -> Disposition {
    // SAFETY: the transport gives a filled request.
    unsafe {
        let sqe = (*raw).sqe;
        let queue = (*raw).queue_pair.addr();
        with(|core| {
            assert!(!core.queues[&queue].is_closed, "no command after the end");
            let iov = Box::new(IoVec::EMPTY);
            let request = Request { queue, holder: Holder::Transport, buffer: Vec::new(), iov };
            assert!(core.requests.insert(raw, request).is_none(), "begun while in use");
        });
        (*raw).length = 0;
        (*raw).direction = Direction::NONE;
        let length = dword(&sqe, 12) as u32;
        match sqe[0] {
            WRITE | LATE_WRITE => {
                (*raw).length = length;
                (*raw).direction = Direction::TO_CONTROLLER;
                if (*raw).capsule_length > 0 {
                    assert_eq!((*raw).capsule_length, length, "the capsule has all of it");
                    // Admin and fabrics commands may always bring so much.
                    assert!(length <= with(|core| core.in_capsule).max(ADMIN_IN_CAPSULE_BYTES));
                    (*raw).inline_iov = IoVec { base: (*raw).capsule_data, len: length as usize };
                    (*raw).iovs = &raw mut (*raw).inline_iov;
                    (*raw).iovcnt = 1;
                    return Disposition::EXECUTE;
                }
                if sqe[0] == LATE_WRITE {
                    with(|core| core.requests.get_mut(&raw).expect("begun").holder = Holder::Waiting);
                    return Disposition::WAIT;
                }
                give_buffer(raw);
                Disposition::RECEIVE
            }
            READ => {
                (*raw).length = length;
                (*raw).direction = Direction::TO_HOST;
                Disposition::EXECUTE
            }
            _ => Disposition::EXECUTE,
        }
    }
}

unsafe extern "C" fn request_execute(raw: *mut TargetRequest) {
    // SAFETY: the request was begun.
    unsafe {
        take(raw);
        let sqe = (*raw).sqe;
        let (offset, length) = (dword(&sqe, 10), (*raw).length as usize);
        match sqe[0] {
            WRITE | LATE_WRITE => {
                let pieces = std::slice::from_raw_parts((*raw).iovs, (*raw).iovcnt as usize);
                assert_eq!(pieces.iter().map(|piece| piece.len).sum::<usize>(), length);
                let mut at = offset;
                for piece in pieces {
                    let bytes = std::slice::from_raw_parts(piece.base.cast::<u8>(), piece.len);
                    with(|core| core.memory[at..at + piece.len].copy_from_slice(bytes));
                    at += piece.len;
                }
            }
            READ => with(|core| {
                // Lent: the transport reads the memory itself.
                let base = core.memory[offset..offset + length].as_mut_ptr().cast();
                let request = core.requests.get_mut(&raw).expect("begun");
                *request.iov = IoVec { base, len: length };
                (*raw).iovs = &raw mut *request.iov;
                (*raw).iovcnt = 1;
            }),
            HOLD => return,
            _ => {}
        }
        complete(raw, 0);
    }
}

/// # Safety
/// The request is begun and not released.
unsafe fn take(raw: *mut TargetRequest) {
    with(|core| {
        let request = core.requests.get_mut(&raw).expect("begun");
        assert_eq!(request.holder, Holder::Transport, "executed by who has it");
        request.holder = Holder::Core;
    });
}

unsafe extern "C" fn request_fail(raw: *mut TargetRequest, status: u16) {
    // SAFETY: the request was begun.
    unsafe {
        take(raw);
        complete(raw, status);
    }
}

unsafe extern "C" fn request_release(raw: *mut TargetRequest) {
    let request = with(|core| core.requests.remove(&raw)).expect("released once");
    assert!(
        matches!(request.holder, Holder::Transport | Holder::Answered),
        "released by who has it, not while {:?}",
        request.holder
    );
}

unsafe extern "C" fn device_event(_: *mut HostTransport, _: *const DeviceEvent) {}

unsafe extern "C" fn psk_lookup(_: *mut HostTransport, _: u64, _: Str, _: *mut u8, _: usize) -> i32 {
    tenon_abi::errno::ENOENT
}

unsafe extern "C" fn connection_dropped(_: *mut HostTransport, _: *mut c_void) {}

static API: NvmfTargetApiV1 = NvmfTargetApiV1 {
    size: size_of::<NvmfTargetApiV1>() as u32,
    flags: 0,
    connection_new,
    queue_pair_open,
    queue_pair_closed,
    request_begin,
    request_execute,
    request_release,
    device_event,
    psk_lookup,
    request_fail,
    connection_dropped,
};

/// In-capsule data every controller takes on a queue that is not an I/O queue yet.
const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;
/// Command Aborted due to SQ Deletion, as the status field of a completion.
const ABORTED: u16 = 0x08 << 1;
