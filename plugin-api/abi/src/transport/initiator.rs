//! Initiator role of a transport: connections that carry capsules for a module
//! that speaks NVMe (`bdev-nvme`). The module gets a transport by name from the
//! host's table ([`TransportTableApiV2`]), never by linking to it.

use core::ffi::c_void;

use super::{CloseReason, DeviceEvent, Direction, MemoryKeys, TransportId, TransportV1};
use crate::{HostModule, IoVec, JsonSink, MemoryRegion, Str};

/// One NVMe command at the initiator, allocated by the module with `InitiatorOpsV1::request_ctx_size` bytes
/// of transport context behind it.
#[repr(C, align(64))]
#[derive(Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct InitiatorRequest {
    /// Submission queue entry; the transport fills CID-independent transport fields (SGL).
    pub sqe: [u8; 64],
    /// Completion queue entry; valid in `done` if `status` is 0.
    pub cqe: [u8; 16],
    /// Payload.
    pub iovs: *mut IoVec,
    /// Pieces in `iovs`.
    pub iovcnt: u32,
    /// Payload in bytes.
    pub length: u32,
    /// Which way the payload travels.
    pub direction: Direction,
    /// Reserved, 0.
    pub reserved: [u8; 3],
    /// 0 if `cqe` arrived, else `-errno` of the transport (`-ECANCELED` after a disconnect).
    pub status: i32,
    /// Called exactly once, on the connection's reactor.
    pub done: Option<unsafe extern "C" fn(request: *mut InitiatorRequest, arg: *mut c_void)>,
    /// Second argument of `done`.
    pub done_arg: *mut c_void,
    /// The connection; set by `submit`.
    pub connection: *mut c_void,
    /// For whoever holds the request.
    pub link: *mut InitiatorRequest,
    /// Keys of the payload's region, if the transport needs them.
    pub keys: MemoryKeys,
    /// The transport's, while submitted.
    pub transport: [*mut c_void; 2],
}

/// How to connect. Copied by the transport.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ConnectParams {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// Queue identifier: 0 for the admin queue.
    pub qid: u32,
    /// Entries of the submission queue.
    pub queue_size: u32,
    /// Controller identifier for an I/O queue, else `0xffff`.
    pub cntlid: u32,
    /// The peer.
    pub peer: TransportId,
    /// Local address to bind, or empty texts.
    pub local: TransportId,
    /// NQN of this host.
    pub hostnqn: Str,
    /// Transport options as one JSON object (digests, priority, …).
    pub options_json: Str,
    /// Time of `now_ns` by which CONNECTED or CLOSED is reported.
    pub deadline_ns: u64,
    /// Identity of `psk`, as the peer knows it; empty: the channel is not secured.
    pub psk_identity: Str,
    /// TLS pre-shared key of the channel: `psk_len` bytes, borrowed for the call. Given only to transports with
    /// [`super::TransportFlags::SECURE_INITIATOR`], which refuse a channel that they cannot secure with it.
    pub psk: *const u8,
    /// Length of `psk` in bytes.
    pub psk_len: usize,
}

impl ConnectParams {
    /// Bytes that every writer knows: up to `deadline_ns`.
    pub const FIRST_SIZE: usize = core::mem::offset_of!(ConnectParams, psk_identity);
}

/// Kind of a connection event.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ConnectionEventKind(pub u32);

impl ConnectionEventKind {
    /// Ready for capsules.
    pub const CONNECTED: ConnectionEventKind = ConnectionEventKind(1);
    /// Unusable from now on; outstanding requests are being completed. At most once.
    pub const CLOSING: ConnectionEventKind = ConnectionEventKind(2);
    /// Every request is completed and every resource released. Exactly once, last.
    pub const CLOSED: ConnectionEventKind = ConnectionEventKind(3);
}

/// What happened to a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ConnectionEvent {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// What.
    pub kind: ConnectionEventKind,
    /// Why, for CLOSING and CLOSED.
    pub reason: CloseReason,
    /// `-errno`, or 0.
    pub status: i32,
    /// CONNECTED: most commands in flight the peer accepts.
    pub queue_depth: u32,
    /// CONNECTED: largest in-capsule data in bytes.
    pub in_capsule_size: u32,
    /// Text for people, or empty.
    pub detail: Str,
}

/// Hears of a connection's events, on its reactor.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ConnectionFn(pub unsafe extern "C" fn(arg: *mut c_void, event: *const ConnectionEvent));

/// Hears of a transport's devices, on the control thread.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct DeviceFn(pub unsafe extern "C" fn(arg: *mut c_void, event: *const DeviceEvent));

/// Initiator role of a transport. On the poll group's reactor unless stated otherwise; nothing blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct InitiatorOpsV1 {
    /// Bytes of this table the plugin knows.
    pub size: u32,
    /// Bytes of transport context behind each [`InitiatorRequest`], multiple of 64.
    pub request_ctx_size: u32,
    /// Makes the initiator's poll group on the calling reactor.
    pub poll_group_create: unsafe extern "C" fn(options_json: Str, out: *mut *mut c_void) -> i32,
    /// Ends it; its connections are CLOSED.
    pub poll_group_destroy: unsafe extern "C" fn(group: *mut c_void),
    /// Starts a connection; `on_event` follows. Connections of one group progress concurrently.
    pub connect: unsafe extern "C" fn(
        group: *mut c_void,
        params: *const ConnectParams,
        on_event: ConnectionFn,
        arg: *mut c_void,
        out: *mut *mut c_void,
    ) -> i32,
    /// Ends a connection: CLOSING, every request completed, CLOSED, at the latest at `drain_by_ns`. Idempotent.
    pub disconnect: unsafe extern "C" fn(connection: *mut c_void, reason: CloseReason, drain_by_ns: u64),
    /// After CLOSED: frees the connection.
    pub connection_free: unsafe extern "C" fn(connection: *mut c_void),
    /// Sends a command. Refused with `-EAGAIN` if the queue is full, `-ENOTCONN` if closing.
    pub submit: unsafe extern "C" fn(connection: *mut c_void, request: *mut InitiatorRequest) -> i32,
    /// Sends what `submit` has gathered; called once after a batch.
    pub flush: unsafe extern "C" fn(connection: *mut c_void),
    /// Registers memory with the device of `group`; keys into `out`. Only for transports without ANY_MEMORY.
    pub memory_register: Option<
        unsafe extern "C" fn(group: *mut c_void, region: *const MemoryRegion, out: *mut MemoryKeys) -> i32,
    >,
    /// Undoes `memory_register`.
    pub memory_unregister: Option<unsafe extern "C" fn(group: *mut c_void, region: *const MemoryRegion)>,
    /// Control thread: reports devices now and as they come and go. Optional.
    pub device_subscribe: Option<unsafe extern "C" fn(on_event: DeviceFn, arg: *mut c_void) -> i32>,
    /// Writes the group's statistics as one JSON object.
    pub statistics_json: unsafe extern "C" fn(group: *mut c_void, sink: *const JsonSink),
}

/// Gets a transport asked for by `acquire`, on the control thread.
///
/// `transport` is null if there is none; `reason` says why then, and is borrowed for the call.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct TransportFn(
    pub unsafe extern "C" fn(arg: *mut c_void, transport: *const TransportV1, reason: Str),
);

/// The host's table of transports.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct TransportTableApiV2 {
    /// Bytes of this table the host offers.
    pub size: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// Control thread: asks for the transport of that name (`TCP`, in any case), whose plugin is loaded if
    /// needed. `done` hears of it exactly once, later and never from inside this call, unless this returns
    /// `-errno`. The transport stays valid for the life of the process; its user is counted until `release`.
    pub acquire:
        unsafe extern "C" fn(me: *mut HostModule, name: Str, done: TransportFn, arg: *mut c_void) -> i32,
    /// Control thread: undoes one `acquire` that gave a transport.
    pub release: unsafe extern "C" fn(me: *mut HostModule, transport: *const TransportV1),
}
