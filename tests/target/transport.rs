//! The suite's transport: the loop transport's initiator, as a module uses it.
// UNSAFETY: speaks the raw contract.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nvme_spec::command::Sqe;
use serde_json::json;
use tenon_abi::transport::initiator::{
    ConnectParams, ConnectionEvent, ConnectionEventKind, ConnectionFn, InitiatorOpsV1, InitiatorRequest,
    TransportFn, TransportTableApiV2,
};
use tenon_abi::transport::{
    CloseReason, Direction, MemoryKeys, QUERY_TRANSPORT_TABLE, TransportId, TransportV1,
};
use tenon_abi::{IoVec, Str};
use tenon_modules::Existing;
use tenon_reactor::ReactorRef;
use zerocopy::{FromBytes, IntoBytes};

use crate::images;
use crate::rig::device::chance;
use crate::rig::{Completion, Reply, World};

thread_local! {
    static TRANSPORT: Cell<*const TransportV1> = const { Cell::new(std::ptr::null()) };
}

/// A plugin has one module per image: one world at a time.
pub type Alone = MutexGuard<'static, ()>;

pub fn alone() -> Alone {
    static ONE_WORLD: Mutex<()> = Mutex::new(());
    ONE_WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory is copied at once: only the order of messages differs from seed to seed.
pub fn set_delay(_: u64) {}

/// Gives the target this transport.
pub fn make(world: &World) {
    let descriptor = images::descriptor("transport_loop", |descriptor| descriptor);
    world.wait(|world, reply| {
        // SAFETY: the descriptor is static and its module keeps the contract.
        unsafe {
            world.core.module_load_static(descriptor, &json!({}), Existing::Refuse, move |result| {
                result.expect("the module loads");
                reply(());
            });
        }
    });
    let options = json!({ "in_capsule_data_size": 4096 });
    world.wait(|world, reply| world.target.create_transport("LOOP", &options, reply)).expect("transport");
    world.on(|_| {
        let query = tenon_bdev::host_api().query;
        // SAFETY: the host's functions, on the control reactor, with texts that live during the calls.
        unsafe {
            let table: *const TransportTableApiV2 = query(Str::new(QUERY_TRANSPORT_TABLE), 2).cast();
            let found = TransportFn(found);
            assert_eq!(
                ((*table).acquire)(std::ptr::null_mut(), Str::new("LOOP"), found, std::ptr::null_mut()),
                0
            );
        }
    });
    world.settle();
    assert!(!TRANSPORT.with(Cell::get).is_null(), "the transport is found by its name");
}

unsafe extern "C" fn found(_: *mut c_void, transport: *const TransportV1, _: Str) {
    TRANSPORT.with(|cell| cell.set(transport));
    // SAFETY: as in `make`; what was got is given back, as the suite counts users.
    unsafe { ((*table()).release)(std::ptr::null_mut(), transport) };
}

/// The host's table of transports, on the control reactor.
fn table() -> *const TransportTableApiV2 {
    // SAFETY: the host's function, with a text that lives during the call.
    unsafe { (tenon_bdev::host_api().query)(Str::new(QUERY_TRANSPORT_TABLE), 2).cast() }
}

fn ops() -> &'static InitiatorOpsV1 {
    // SAFETY: a transport is valid for the life of the process, and this one has both roles.
    unsafe { &*(*TRANSPORT.with(Cell::get)).initiator }
}

/// One connection. Never freed, so that a late event is an assertion and not a crash.
pub struct Connection {
    reactor: ReactorRef,
    group: Cell<*mut c_void>,
    raw: Cell<*mut c_void>,
    is_connected: Cell<bool>,
    is_closing: Cell<bool>,
    /// Nothing is left of it.
    pub is_freed: Cell<bool>,
    in_flight: Cell<u32>,
}

/// A command in flight.
#[repr(C)]
struct Request {
    initiator: InitiatorRequest,
    connection: &'static Connection,
    piece: IoVec,
    data: Vec<u8>,
    reply: Reply,
}

/// A connection through the listener at `traddr`, from any of the data reactors.
pub fn open(world: &World, traddr: &str) -> &'static Connection {
    let reactors = world.on(|_| tenon_reactor::current().directory().data().to_vec());
    let connection: &'static Connection = Box::leak(Box::new(Connection {
        reactor: reactors[chance() as usize % reactors.len()].clone(),
        group: Cell::new(std::ptr::null_mut()),
        raw: Cell::new(std::ptr::null_mut()),
        is_connected: Cell::new(false),
        is_closing: Cell::new(false),
        is_freed: Cell::new(false),
        in_flight: Cell::new(0),
    }));
    world.on_queue(connection, || connection.connect(traddr));
    world.settle();
    assert!(connection.is_connected.get(), "nobody listens at {traddr}");
    connection
}

impl Connection {
    pub fn reactor(&self) -> ReactorRef {
        self.reactor.clone()
    }

    pub fn is_open(&self) -> bool {
        self.is_connected.get() && !self.is_closing.get()
    }

    fn connect(&'static self, traddr: &str) {
        let id = |traddr| TransportId {
            size: size_of::<TransportId>() as u32,
            trtype: 254,
            adrfam: 254,
            reserved: 0,
            traddr: Str::new(traddr),
            trsvcid: Str::EMPTY,
            subnqn: Str::EMPTY,
        };
        let params = ConnectParams {
            size: size_of::<ConnectParams>() as u32,
            qid: 0,
            queue_size: 128,
            cntlid: 0xffff,
            peer: id(traddr),
            local: id(""),
            hostnqn: Str::EMPTY,
            options_json: Str::EMPTY,
            deadline_ns: tenon_reactor::now_ns() + CONNECT_NS,
            psk_identity: Str::EMPTY,
            psk: std::ptr::null(),
            psk_len: 0,
        };
        let own = std::ptr::from_ref(self).cast_mut().cast();
        let (mut group, mut raw) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the transport's functions, on the connection's reactor; the connection is never freed.
        unsafe {
            assert_eq!((ops().poll_group_create)(Str::EMPTY, &mut group), 0);
            assert_eq!((ops().connect)(group, &params, ConnectionFn(heard), own, &mut raw), 0);
        }
        self.group.set(group);
        self.raw.set(raw);
    }

    /// Sends a command, on the connection's reactor. Whether data goes in the capsule is the transport's choice.
    pub fn send(&'static self, sqe: Sqe, out: Vec<u8>, _in_capsule: bool) -> Reply {
        let reply = Reply::default();
        if !self.is_open() {
            return reply;
        }
        let mut bytes = [0; 64];
        bytes.copy_from_slice(sqe.as_bytes());
        let (direction, data) = transfer(&bytes, out);
        let request = Box::into_raw(Box::new(Request {
            initiator: InitiatorRequest {
                sqe: bytes,
                cqe: [0; 16],
                iovs: std::ptr::null_mut(),
                iovcnt: u32::from(!data.is_empty()),
                length: data.len() as u32,
                direction,
                reserved: [0; 3],
                status: 0,
                done: Some(done),
                done_arg: std::ptr::null_mut(),
                connection: std::ptr::null_mut(),
                link: std::ptr::null_mut(),
                keys: MemoryKeys { local_key: 0, remote_key: 0 },
                transport: [std::ptr::null_mut(); 2],
            },
            connection: self,
            piece: IoVec::EMPTY,
            data,
            reply: reply.clone(),
        }));
        // SAFETY: the request lives until `done`, or until it is refused.
        unsafe {
            (*request).piece =
                IoVec { base: (*request).data.as_mut_ptr().cast(), len: (*request).data.len() };
            (*request).initiator.iovs = &raw mut (*request).piece;
            self.in_flight.set(self.in_flight.get() + 1);
            if (ops().submit)(self.raw.get(), request.cast()) != 0 {
                self.in_flight.set(self.in_flight.get() - 1);
                drop(Box::from_raw(request));
            }
            (ops().flush)(self.raw.get());
        }
        reply
    }

    /// The host drops the connection, on its reactor.
    pub fn drop_by_peer(&'static self) {
        if self.is_open() {
            // SAFETY: an open connection is not freed.
            unsafe { (ops().disconnect)(self.raw.get(), CloseReason::LOCAL, tenon_reactor::now_ns()) };
            self.is_closing.set(true);
        }
    }
}

/// Which way the data of a command goes, as its opcode says, and as much of it or room for it as its SGL says.
fn transfer(sqe: &[u8; 64], mut out: Vec<u8>) -> (Direction, Vec<u8>) {
    const FABRICS: u8 = 0x7f;
    let code = if sqe[0] == FABRICS { sqe[4] } else { sqe[0] };
    let length = u32::from_le_bytes([sqe[32], sqe[33], sqe[34], sqe[35]]) as usize;
    match code & 3 {
        _ if !out.is_empty() => {
            out.resize(length, 0);
            (Direction::TO_CONTROLLER, out)
        }
        2 if length > 0 => (Direction::TO_HOST, vec![0; length]),
        _ => (Direction::NONE, out),
    }
}

unsafe extern "C" fn done(request: *mut InitiatorRequest, _: *mut c_void) {
    // SAFETY: made by `send`, and done once.
    let request = unsafe { Box::from_raw(request.cast::<Request>()) };
    let connection = request.connection;
    assert!(!connection.is_freed.get(), "a command ended after its connection");
    connection.in_flight.set(connection.in_flight.get() - 1);
    if request.initiator.status == 0 {
        let cqe = FromBytes::read_from_bytes(&request.initiator.cqe[..]).expect("16 bytes");
        let is_in = request.initiator.direction == Direction::TO_HOST;
        let data = if is_in { request.data } else { Vec::new() };
        let earlier = request.reply.borrow_mut().replace(Completion { cqe, data });
        assert!(earlier.is_none(), "one completion");
    }
}

unsafe extern "C" fn heard(arg: *mut c_void, event: *const ConnectionEvent) {
    // SAFETY: connections are never freed; the event is valid during the call.
    let (connection, kind) = unsafe { (&*arg.cast::<Connection>(), (*event).kind) };
    match kind {
        ConnectionEventKind::CONNECTED => connection.is_connected.set(true),
        ConnectionEventKind::CLOSING => connection.is_closing.set(true),
        ConnectionEventKind::CLOSED => {
            assert_eq!(connection.in_flight.get(), 0, "every command has ended");
            assert!(!connection.is_freed.replace(true), "closed once");
            connection.is_closing.set(true);
            // SAFETY: the last event was told; the group has no other connection.
            unsafe {
                (ops().connection_free)(connection.raw.get());
                (ops().poll_group_destroy)(connection.group.get());
            }
        }
        _ => panic!("event {}", kind.0),
    }
}

const CONNECT_NS: u64 = 1_000_000_000;
/// Seeds per run: the transport inside the test has more of them, and delays besides.
pub const SEEDS: u64 = 100;
