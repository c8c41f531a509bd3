//! A transport inside the test: requests go straight to the target's table.
//!
//! It receives data at once or later, sends at once or later, and asserts that
//! the target keeps the contract: one completion per request, one `free` per
//! connection, nothing for a request that was released.
// UNSAFETY: speaks the raw contract.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::time::Duration;

use tenon_abi::transport::target::*;
use tenon_abi::transport::*;
use tenon_abi::{IoVec, JsonSink, OpToken, Str};
use tenon_reactor::ReactorRef;

use serde_json::json;

use crate::rig::device::chance;
use crate::rig::{Completion, Reply, World};

thread_local! {
    static HOST: Cell<*mut HostTransport> = const { Cell::new(std::ptr::null_mut()) };
    static API: Cell<*const NvmfTargetApiV1> = const { Cell::new(std::ptr::null()) };
    static LISTENERS: RefCell<Vec<(u64, String)>> = RefCell::default();
    static GROUPS: Cell<i32> = const { Cell::new(0) };
    /// Status that commands with in-capsule data fail with, if they do.
    static IS_DAMAGED: Cell<Option<u16>> = const { Cell::new(None) };
    /// Options and statistics that the transport tells.
    pub static OPTIONS: Cell<&'static str> = const { Cell::new("{}") };
    /// How long receiving and sending take, at most; 0: no time.
    static DELAY_US: Cell<u64> = const { Cell::new(0) };
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Receiving,
    Target,
    Waiting,
    Sending,
}

#[repr(C)]
struct Request {
    target: TargetRequest,
    connection: *const Connection,
    place: Cell<Place>,
    out: Vec<u8>,
    reply: Reply,
}

/// One connection. Never freed, so that a late use is an assertion and not a crash.
pub struct Connection {
    queue: Cell<*mut HostQueuePair>,
    reactor: RefCell<Option<ReactorRef>>,
    requests: RefCell<Vec<*mut Request>>,
    pub close_reason: Cell<Option<CloseReason>>,
    pub is_freed: Cell<bool>,
    in_capsule: Cell<u32>,
    listener: u64,
}

fn api() -> &'static NvmfTargetApiV1 {
    // SAFETY: given by `create`, valid until `destroy`.
    unsafe { &*API.with(Cell::get) }
}

/// Worlds do not share anything.
pub struct Alone;

pub fn alone() -> Alone {
    Alone
}

/// How long receiving and sending take, at most; 0: no time.
pub fn set_delay(delay_us: u64) {
    DELAY_US.with(|delay| delay.set(delay_us));
}

/// Gives the target this transport.
pub fn make(world: &World) {
    world.wait(|world, reply| {
        // SAFETY: the table is static and keeps the contract.
        unsafe {
            world.target.create_transport_of(&TRANSPORT, &json!({}), move |result| {
                result.expect("the transport is made");
                reply(());
            });
        }
    });
}

/// A connection through the listener at `traddr`.
pub fn open(world: &World, traddr: &str) -> &'static Connection {
    let listener = LISTENERS.with(|listeners| {
        let listeners = listeners.borrow();
        listeners.iter().find(|listener| listener.1 == traddr).expect("listener").0
    });
    let connection = world.on(|_| connect(listener));
    world.settle();
    connection
}

/// Opens a connection through a listener, on the calling reactor.
fn connect(listener: u64) -> &'static Connection {
    let connection = Box::leak(Box::new(Connection {
        queue: Cell::new(std::ptr::null_mut()),
        reactor: RefCell::new(None),
        requests: RefCell::default(),
        close_reason: Cell::new(None),
        is_freed: Cell::new(false),
        in_capsule: Cell::new(4096),
        listener,
    }));
    let raw = std::ptr::from_ref::<Connection>(connection).cast_mut().cast();
    // SAFETY: as the contract has it.
    assert_eq!(unsafe { (api().connection_new)(HOST.with(Cell::get), listener, raw) }, 0);
    connection
}

impl Connection {
    pub fn reactor(&self) -> ReactorRef {
        self.reactor.borrow().clone().expect("adopted")
    }

    pub fn is_open(&self) -> bool {
        self.close_reason.get().is_none()
    }

    /// Sends a command, on the connection's reactor.
    pub fn send(&'static self, sqe: nvme_spec::command::Sqe, out: Vec<u8>, in_capsule: bool) -> Reply {
        let reply = Reply::default();
        if !self.is_open() {
            return reply;
        }
        let mut bytes = [0; 64];
        bytes.copy_from_slice(zerocopy::IntoBytes::as_bytes(&sqe));
        let request = Box::into_raw(Box::new(Request {
            target: TargetRequest {
                sqe: bytes,
                cqe: [0; 16],
                iovs: std::ptr::null_mut(),
                iovcnt: 0,
                length: 0,
                direction: Direction::NONE,
                reserved: [0; 3],
                capsule_length: 0,
                capsule_data: std::ptr::null_mut(),
                queue_pair: self.queue.get(),
                link: std::ptr::null_mut(),
                inline_iov: IoVec::EMPTY,
                memory_key: 0,
                host: [std::ptr::null_mut(); 3],
            },
            connection: self,
            place: Cell::new(Place::Target),
            out,
            reply: reply.clone(),
        }));
        self.requests.borrow_mut().push(request);
        // SAFETY: the request lives until `release`.
        unsafe {
            if in_capsule && (*request).out.len() <= self.in_capsule.get() as usize {
                (*request).target.capsule_length = (*request).out.len() as u32;
                (*request).target.capsule_data = (*request).out.as_mut_ptr().cast();
            }
            match (api().request_begin)(request.cast()) {
                Disposition::RECEIVE => receive(request),
                Disposition::EXECUTE => match IS_DAMAGED.with(Cell::get) {
                    Some(status) => (api().request_fail)(request.cast(), status),
                    None => (api().request_execute)(request.cast()),
                },
                Disposition::RESPOND => request_complete(request.cast()),
                _ => (*request).place.set(Place::Waiting),
            }
        }
        reply
    }

    /// Sends a command whose data arrives damaged, on the connection's reactor.
    pub fn send_damaged(&'static self, sqe: nvme_spec::command::Sqe, out: Vec<u8>, status: u16) -> Reply {
        IS_DAMAGED.with(|damaged| damaged.set(Some(status)));
        let reply = self.send(sqe, out, true);
        IS_DAMAGED.with(|damaged| damaged.set(None));
        reply
    }

    /// The host drops the connection.
    pub fn drop_by_peer(&'static self) {
        close(self, CloseReason::PEER);
    }
}

fn delayed(f: impl FnOnce() + 'static) {
    let delay_us = DELAY_US.with(Cell::get);
    if delay_us == 0 {
        return f();
    }
    let delay = Duration::from_micros(chance() % delay_us + 1);
    tenon_reactor::current().set_timer(delay, f).expect("timers");
}

/// Whether a request is still at `place`; it may have gone with its connection.
unsafe fn is_at(connection: *const Connection, request: *mut Request, place: Place) -> bool {
    // SAFETY: connections are never freed; a listed request is alive.
    unsafe { (*connection).requests.borrow().contains(&request) && (*request).place.get() == place }
}

unsafe fn receive(request: *mut Request) {
    // SAFETY: the request is ours; its memory was given by the target.
    unsafe {
        (*request).place.set(Place::Receiving);
        let connection = (*request).connection;
        delayed(move || {
            if !is_at(connection, request, Place::Receiving) {
                return;
            }
            let mut from = 0;
            for at in 0..(*request).target.iovcnt as usize {
                let iov = *(*request).target.iovs.add(at);
                let piece = &(&(*request).out)[from..];
                let len = piece.len().min(iov.len);
                std::ptr::copy_nonoverlapping(piece.as_ptr(), iov.base.cast(), len);
                from += len;
            }
            (*request).place.set(Place::Target);
            (api().request_execute)(request.cast());
        });
    }
}

unsafe extern "C" fn request_complete(request: *mut TargetRequest) {
    let request: *mut Request = request.cast();
    // SAFETY: the target gives the request back.
    unsafe {
        let connection = (*request).connection;
        assert!((*connection).requests.borrow().contains(&request), "completion for a released request");
        assert!(!(*connection).is_freed.get());
        (*request).place.set(Place::Sending);
        if !(*connection).is_open() {
            return release(request);
        }
        delayed(move || {
            if is_at(connection, request, Place::Sending) {
                let target = &(*request).target;
                let mut data = Vec::new();
                if target.direction == Direction::TO_HOST {
                    for at in 0..target.iovcnt as usize {
                        let iov = *target.iovs.add(at);
                        data.extend_from_slice(std::slice::from_raw_parts(iov.base.cast::<u8>(), iov.len));
                    }
                    assert_eq!(data.len(), target.length as usize);
                }
                let cqe = zerocopy::FromBytes::read_from_bytes(&target.cqe[..]).expect("16 bytes");
                let earlier = (*request).reply.borrow_mut().replace(Completion { cqe, data });
                assert!(earlier.is_none(), "one completion");
                release(request);
            }
        });
    }
}

unsafe fn release(request: *mut Request) {
    // SAFETY: the request is ours, and released once.
    unsafe {
        let connection = (*request).connection;
        (*connection).requests.borrow_mut().retain(|other| *other != request);
        (api().request_release)(request.cast());
        drop(Box::from_raw(request));
    }
}

unsafe extern "C" fn request_buffers(request: *mut TargetRequest) {
    let request: *mut Request = request.cast();
    // SAFETY: the request waited for this.
    unsafe {
        assert_eq!((*request).place.get(), Place::Waiting);
        (*request).place.set(Place::Target);
        if (*request).target.direction == Direction::TO_CONTROLLER && (*request).target.capsule_length == 0 {
            receive(request);
        } else {
            (api().request_execute)(request.cast());
        }
    }
}

fn close(connection: &'static Connection, reason: CloseReason) {
    if connection.close_reason.get().is_some() {
        return;
    }
    connection.close_reason.set(Some(reason));
    let own: Vec<*mut Request> = connection.requests.borrow().clone();
    for request in own {
        // SAFETY: requests that the transport has are released now; the target brings the rest.
        unsafe {
            if matches!((*request).place.get(), Place::Receiving | Place::Sending) {
                release(request);
            }
        }
    }
    let closed = move || {
        // SAFETY: once per connection.
        unsafe { (api().queue_pair_closed)(connection.queue.get(), reason) };
    };
    tenon_reactor::current().defer(closed).expect("room");
}

unsafe extern "C" fn connection_close(connection: *mut c_void, reason: CloseReason, _: u64) {
    // SAFETY: ours, leaked.
    close(unsafe { &*connection.cast::<Connection>() }, reason);
}

unsafe extern "C" fn connection_free(connection: *mut c_void) {
    // SAFETY: ours, leaked.
    let connection = unsafe { &*connection.cast::<Connection>() };
    assert!(connection.requests.borrow().is_empty(), "every request is released");
    assert!(!connection.is_freed.replace(true), "freed once");
}

unsafe extern "C" fn connection_adopt(_: *mut c_void, connection: *mut c_void) -> i32 {
    // SAFETY: ours, leaked.
    let own = unsafe { &*connection.cast::<Connection>() };
    let local = tenon_reactor::current();
    *own.reactor.borrow_mut() = Some(local.reactor());
    let id = TransportId {
        size: size_of::<TransportId>() as u32,
        trtype: 254,
        adrfam: 254,
        reserved: 0,
        traddr: Str::new("peer"),
        trsvcid: Str::new("1"),
        subnqn: Str::EMPTY,
    };
    let info = ConnectionInfo {
        size: size_of::<ConnectionInfo>() as u32,
        queue_depth: 128,
        in_capsule_size: 4096,
        secure: 0,
        peer: id,
        local: id,
        listener: own.listener,
        psk_identity: Str::EMPTY,
    };
    let mut queue = std::ptr::null_mut();
    // SAFETY: the struct lives until the call returns.
    let code = unsafe { (api().queue_pair_open)(HOST.with(Cell::get), connection, &info, &mut queue) };
    own.queue.set(queue);
    code
}

fn done(token: OpToken) {
    // SAFETY: the host's function.
    unsafe { (tenon_bdev::host_api().op_done)(token, Str::EMPTY, std::ptr::null()) };
}

unsafe extern "C" fn create(
    host: *mut HostTransport,
    api: *const NvmfTargetApiV1,
    _: Str,
    token: OpToken,
    out: *mut *mut c_void,
) {
    HOST.with(|cell| cell.set(host));
    API.with(|cell| cell.set(api));
    LISTENERS.with(|listeners| listeners.borrow_mut().clear());
    // SAFETY: the target's slot.
    unsafe { *out = std::ptr::without_provenance_mut(1) };
    done(token);
}

unsafe extern "C" fn destroy(_: *mut c_void, token: OpToken) {
    assert!(LISTENERS.with(|listeners| listeners.borrow().is_empty()), "listeners stop first");
    assert_eq!(GROUPS.with(Cell::get), 0, "poll groups end first");
    done(token);
}

unsafe extern "C" fn json(_: *mut c_void, sink: *const JsonSink) {
    // SAFETY: valid during the call.
    unsafe { ((*sink).write)((*sink).arg, Str::new(OPTIONS.with(Cell::get))) };
}

unsafe extern "C" fn listen(
    _: *mut c_void,
    number: u64,
    address: *const TransportId,
    _: Str,
    token: OpToken,
) {
    // SAFETY: valid during the call.
    let traddr = unsafe { (*address).traddr.as_str() }.expect("text").to_owned();
    LISTENERS.with(|listeners| listeners.borrow_mut().push((number, traddr)));
    done(token);
}

unsafe extern "C" fn stop_listen(_: *mut c_void, number: u64, token: OpToken) {
    LISTENERS.with(|listeners| listeners.borrow_mut().retain(|listener| listener.0 != number));
    done(token);
}

unsafe extern "C" fn discover(_: *mut c_void, _: u64, _: *mut DiscoveryInfo) -> i32 {
    0
}

unsafe extern "C" fn group_create(_: *mut c_void, _: *mut *mut c_void) -> i32 {
    GROUPS.with(|groups| groups.set(groups.get() + 1));
    0
}

unsafe extern "C" fn group_destroy(_: *mut c_void) {
    GROUPS.with(|groups| groups.set(groups.get() - 1));
}

static TARGET_OPS: TargetOpsV1 = TargetOpsV1 {
    size: size_of::<TargetOpsV1>() as u32,
    flags: 0,
    create,
    destroy,
    options_json: json,
    statistics_json: json,
    listen,
    stop_listen,
    listener_discover: discover,
    poll_group_create: group_create,
    poll_group_destroy: group_destroy,
    connection_adopt,
    connection_close,
    connection_free,
    request_complete,
    request_buffers,
};

static TRANSPORT: TransportV1 = TransportV1 {
    size: size_of::<TransportV1>() as u32,
    flags: TransportFlags(
        TransportFlags::IN_CAPSULE_DATA.0 | TransportFlags::ANY_MEMORY.0 | TransportFlags::LENT_MEMORY.0,
    ),
    name: Str::new("LOOP"),
    trtype: 254,
    reserved: 0,
    target: &raw const TARGET_OPS,
    initiator: std::ptr::null(),
};

/// Seeds per run.
pub const SEEDS: u64 = 1000;
