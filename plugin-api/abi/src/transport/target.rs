//! Target role of a transport: what the transport implements ([`TargetOpsV1`])
//! and what the target core gives it ([`NvmfTargetApiV1`]).
//!
//! Life of a command: the transport receives a capsule into its own request,
//! whose first member is a [`TargetRequest`]; `request_begin` tells how much
//! data travels which way and into which memory; the transport moves data from
//! the peer; `request_execute` runs the command; `TargetOpsV1::request_complete`
//! sends data and completion; `request_release` ends it. One crossing each.
//!
//! # Connections
//! 1. The transport accepts, on any reactor, and calls `connection_new`. If that fails, the connection is still
//!    the transport's. Otherwise `connection_adopt` is called once, later, on the reactor the target core chose;
//!    an adoption that fails has freed the connection.
//! 2. After the transport's own handshake it calls `queue_pair_open`, from inside `connection_adopt` or later. A
//!    connection that ends before that ends with `connection_dropped` and is not heard of again.
//! 3. A queue pair ends with one `queue_pair_closed`, whoever began: the peer, the transport, or the target core
//!    by `connection_close`. The target core calls `connection_close` from inside any of its functions, also
//!    `request_begin`; the transport may answer with `queue_pair_closed` from inside it, but not while a call of
//!    `request_begin`, `request_execute` or `request_fail` for that connection is on the stack.
//! 4. After `queue_pair_closed` the target core gives back, by `request_complete`, every request it has; some of
//!    them before `queue_pair_closed` returns, those on a device when the device is through with them. Requests
//!    that the transport has are released by the transport, before or after.
//! 5. `connection_free` follows the last `request_release`, in a later turn: never from inside a call of the
//!    transport.
//!
//! # Requests
//! A request is the transport's or the target core's, and changes hands as follows; who has it may not be guessed
//! from time.
//!
//! | call | from | to |
//! |---|---|---|
//! | `request_begin` = RECEIVE, EXECUTE | transport | transport, which owes `request_execute` or `request_fail` |
//! | `request_begin` = RESPOND | transport | transport, which owes `request_release` |
//! | `request_begin` = WAIT | transport | target core, which owes `request_buffers` or `request_complete` |
//! | `request_buffers` | target core | transport, as after RECEIVE if data is to be received, else as after EXECUTE |
//! | `request_execute`, `request_fail` | transport | target core, which owes `request_complete` |
//! | `request_complete` | target core | transport, which owes `request_release` |
//! | `request_release` | transport | transport: it may be used for the next command |
//!
//! * `request_complete` may be called from inside `request_execute`, `request_fail` and `queue_pair_closed`, also
//!   for other requests of the same or another connection of the reactor, and from inside any other callback of
//!   the reactor. `request_buffers` comes from no call of the transport.
//! * From inside `request_complete` and `request_buffers` the transport may call `request_release`,
//!   `request_execute` and `request_fail`; it does not call `request_begin`.
//! * A request that the transport has may be released at any time once its connection ends. One that the target
//!   core has may not, not even then.
//! * Memory in `iovs`, `capsule_data` included, stays the target core's to use from `request_execute` to
//!   `request_complete`. Data to the host stays readable until `request_release`. In-capsule data is not used after
//!   `request_complete`.
//! * Functions of this table that take a request or a queue pair are called on the connection's reactor.

use core::ffi::c_void;

use super::{CloseReason, DeviceEvent, Direction, TransportId};
use crate::{IoVec, JsonSink, OpToken, Str};

/// A transport instance of the target core; opaque to the transport.
#[repr(C)]
#[derive(Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct HostTransport {
    _private: [u8; 0],
}

/// A queue pair of the target core; opaque to the transport.
#[repr(C)]
#[derive(Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct HostQueuePair {
    _private: [u8; 0],
}

/// One NVMe command at the target, embedded at the start of the transport's own request.
#[repr(C, align(64))]
#[derive(Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct TargetRequest {
    /// Submission queue entry as received.
    pub sqe: [u8; 64],
    /// Completion queue entry to send; filled by the target core.
    pub cqe: [u8; 16],
    /// Payload memory: chosen by `request_begin` (data to the controller) or set by the target core before
    /// `request_complete` (data to the host, possibly lent).
    pub iovs: *mut IoVec,
    /// Pieces in `iovs`.
    pub iovcnt: u32,
    /// Payload in bytes.
    pub length: u32,
    /// Which way the payload travels.
    pub direction: Direction,
    /// Reserved, 0.
    pub reserved: [u8; 3],
    /// Bytes of payload that arrived in the capsule, at `capsule_data`; set by the transport.
    pub capsule_length: u32,
    /// In-capsule data, or null; set by the transport.
    pub capsule_data: *mut c_void,
    /// The queue pair; set by the transport.
    pub queue_pair: *mut HostQueuePair,
    /// For whoever holds the request.
    pub link: *mut TargetRequest,
    /// Room for a list of one.
    pub inline_iov: IoVec,
    /// Local memory key of `iovs`, if the transport needs one and the memory is registered; else 0.
    pub memory_key: u64,
    /// The target core's, between `request_begin` and `request_release`.
    pub host: [*mut c_void; 3],
}

/// What a transport tells about a new connection.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ConnectionInfo {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// Most commands in flight.
    pub queue_depth: u32,
    /// Largest in-capsule data in bytes.
    pub in_capsule_size: u32,
    /// 1 if the channel is secured (TLS).
    pub secure: u32,
    /// The peer.
    pub peer: TransportId,
    /// This side.
    pub local: TransportId,
    /// Listener that accepted it, as given to `listen`.
    pub listener: u64,
    /// TLS pre-shared key identity, or empty.
    pub psk_identity: Str,
}

/// Listener facts for the discovery log.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct DiscoveryInfo {
    /// Transport requirements (TREQ).
    pub treq: u8,
    /// Reserved, 0.
    pub reserved: [u8; 7],
    /// Transport-specific address subtype (TSAS).
    pub tsas: [u8; 256],
}

/// What `request_begin` decided.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct Disposition(pub u32);

impl Disposition {
    /// Fill `iovs` with the peer's data, then call `request_execute`.
    pub const RECEIVE: Disposition = Disposition(1);
    /// Call `request_execute` now.
    pub const EXECUTE: Disposition = Disposition(2);
    /// `cqe` holds the answer (an error): send it, then `request_release`.
    pub const RESPOND: Disposition = Disposition(3);
    /// No buffer now; the target core calls `TargetOpsV1::request_buffers` later.
    pub const WAIT: Disposition = Disposition(4);
}

/// Target role of a transport. Control thread unless stated otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct TargetOpsV1 {
    /// Bytes of this table the plugin knows.
    pub size: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// Makes an instance from `options_json`; stores it in `out`, then answers `token`. `api` and `host` stay
    /// valid until `destroy` is answered.
    pub create: unsafe extern "C" fn(
        host: *mut HostTransport,
        api: *const NvmfTargetApiV1,
        options_json: Str,
        token: OpToken,
        out: *mut *mut c_void,
    ),
    /// Ends an instance; its listeners and connections are gone already.
    pub destroy: unsafe extern "C" fn(transport: *mut c_void, token: OpToken),
    /// Writes the effective options as one JSON object.
    pub options_json: unsafe extern "C" fn(transport: *mut c_void, sink: *const JsonSink),
    /// Writes statistics of the poll group on the calling reactor as one JSON object. Any reactor.
    pub statistics_json: unsafe extern "C" fn(group: *mut c_void, sink: *const JsonSink),
    /// Starts accepting at `address`; `listener` names it from now on. Answers `token` when it listens.
    pub listen: unsafe extern "C" fn(
        transport: *mut c_void,
        listener: u64,
        address: *const TransportId,
        options_json: Str,
        token: OpToken,
    ),
    /// Stops accepting at once; its connections live on. Answers `token`.
    pub stop_listen: unsafe extern "C" fn(transport: *mut c_void, listener: u64, token: OpToken),
    /// Fills the discovery log facts of a listener.
    pub listener_discover:
        unsafe extern "C" fn(transport: *mut c_void, listener: u64, out: *mut DiscoveryInfo) -> i32,
    /// On a reactor: makes this instance's poll group there; stores it in `out`.
    pub poll_group_create: unsafe extern "C" fn(transport: *mut c_void, out: *mut *mut c_void) -> i32,
    /// On its reactor, when its connections are gone.
    pub poll_group_destroy: unsafe extern "C" fn(group: *mut c_void),
    /// On `group`'s reactor: takes over a connection announced by `connection_new`. If it fails, the transport has
    /// freed the connection.
    pub connection_adopt: unsafe extern "C" fn(group: *mut c_void, connection: *mut c_void) -> i32,
    /// On its reactor: ends a connection; nothing is received from now on, what is completed is still sent. Ends
    /// with `queue_pair_closed`, at the latest at `drain_by_ns`. Idempotent.
    pub connection_close:
        unsafe extern "C" fn(connection: *mut c_void, reason: CloseReason, drain_by_ns: u64),
    /// On its reactor: every request of the connection is released; free it.
    pub connection_free: unsafe extern "C" fn(connection: *mut c_void),
    /// On its reactor: send payload (if to the host) and completion, then call `request_release`.
    pub request_complete: unsafe extern "C" fn(request: *mut TargetRequest),
    /// On its reactor: buffers for a request that got [`Disposition::WAIT`] are in `iovs` now.
    pub request_buffers: unsafe extern "C" fn(request: *mut TargetRequest),
}

/// What the target core offers a transport.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct NvmfTargetApiV1 {
    /// Bytes of this table the host offers.
    pub size: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// Any reactor: a connection was accepted by `listener`; the target core has `connection_adopt` called on
    /// the reactor it chooses, or refuses with `-errno` (`-ENOSPC`: too many) and the transport drops it.
    pub connection_new:
        unsafe extern "C" fn(host: *mut HostTransport, listener: u64, connection: *mut c_void) -> i32,
    /// On the connection's reactor: the transport's own handshake is done; gives the queue pair.
    pub queue_pair_open: unsafe extern "C" fn(
        host: *mut HostTransport,
        connection: *mut c_void,
        info: *const ConnectionInfo,
        out: *mut *mut HostQueuePair,
    ) -> i32,
    /// On its reactor, once: no more commands will come. The target core ends what is executing, then calls
    /// `connection_free`.
    pub queue_pair_closed: unsafe extern "C" fn(queue_pair: *mut HostQueuePair, reason: CloseReason),
    /// Starts a command whose `sqe`, capsule data and `queue_pair` are set. Not from inside another call for the
    /// same connection.
    pub request_begin: unsafe extern "C" fn(request: *mut TargetRequest) -> Disposition,
    /// Runs a command whose data is complete.
    pub request_execute: unsafe extern "C" fn(request: *mut TargetRequest),
    /// Ends a command: its completion was sent, or its connection is closing.
    pub request_release: unsafe extern "C" fn(request: *mut TargetRequest),
    /// Control thread: a device came, went or changed.
    pub device_event: unsafe extern "C" fn(host: *mut HostTransport, event: *const DeviceEvent),
    /// Any thread: copies the pre-shared key of `identity` (at most `key_len` bytes); returns its length or
    /// `-ENOENT`. The caller wipes `key` after use.
    pub psk_lookup: unsafe extern "C" fn(
        host: *mut HostTransport,
        listener: u64,
        identity: Str,
        key: *mut u8,
        key_len: usize,
    ) -> i32,
    /// Ends a command that cannot be executed: its data arrived damaged, or cannot arrive. Instead of
    /// `request_execute`, for a request that the transport has after RECEIVE, EXECUTE or `request_buffers`.
    /// `status` is the status field of the completion queue entry (bits 31:16 of its dword 3, phase tag 0), e.g.
    /// Transient Transport Error; success is taken for Internal Error. `request_complete` follows, from inside.
    pub request_fail: unsafe extern "C" fn(request: *mut TargetRequest, status: u16),
    /// On its reactor, once: an adopted connection ended before `queue_pair_open`, and is freed by the transport.
    pub connection_dropped: unsafe extern "C" fn(host: *mut HostTransport, connection: *mut c_void),
}
