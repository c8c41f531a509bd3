//! The transports' door: the functions of [`NvmfTargetApiV1`].
//!
//! They turn raw pointers into queues and commands, and nothing else. On the
//! I/O path they are plain calls; a panic there ends the process, since half a
//! command cannot be taken back.
// UNSAFETY: implements the contract's functions, which take raw pointers from transports.

use std::ffi::c_void;
use std::sync::Arc;

use nvme_spec::completion::StatusField;
use tenon_abi::transport::target::{
    ConnectionInfo, Disposition, HostQueuePair, HostTransport, NvmfTargetApiV1, TargetRequest,
};
use tenon_abi::transport::{CloseReason, DeviceEvent};
use tenon_abi::{Str, errno, reaches};

use super::QueuePair;
use super::command::Command;
use super::interface::ConnectionFacts;
use super::side::ReactorSide;
use crate::transport::TransportShared;

/// The table every transport is given.
pub(crate) static TARGET_API: NvmfTargetApiV1 = NvmfTargetApiV1 {
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

/// The instance behind a transport's handle.
///
/// # Safety
/// `host` is what `create` was given, and `destroy` is not answered yet.
unsafe fn instance<'a>(host: *mut HostTransport) -> &'a TransportShared {
    // SAFETY: the target keeps the instance until `destroy` is answered.
    unsafe { &*host.cast::<TransportShared>() }
}

unsafe extern "C" fn connection_new(host: *mut HostTransport, listener: u64, connection: *mut c_void) -> i32 {
    // SAFETY: as the contract has it.
    let transport = unsafe { instance(host) };
    let Some(reactor) = transport.choose_reactor() else { return errno::ENOSPC };
    let (id, number) = (reactor.id(), transport.number);
    let adopted = Adopted { host, connection };
    let sent = reactor.send(move || {
        let adopted = adopted;
        // SAFETY: the instance lives until `destroy` is answered, which waits for its connections.
        let transport = unsafe { instance(adopted.host) };
        let group = ReactorSide::current().and_then(|side| side.group(number));
        // SAFETY: the group is the transport's own, on this reactor.
        let code = group.map_or(errno::ESHUTDOWN, |group| unsafe {
            (transport.ops().connection_adopt)(group, adopted.connection)
        });
        if code != 0 {
            log::warn!(
                "connection was not adopted transport={} listener={listener} code={code}",
                transport.name
            );
            transport.connection_gone(id);
        }
    });
    if sent.is_err() {
        transport.connection_gone(id);
        return errno::EAGAIN;
    }
    0
}

/// Pointers on their way to the reactor that adopts a connection.
struct Adopted {
    host: *mut HostTransport,
    connection: *mut c_void,
}

// SAFETY: the transport announced the connection to be taken over on another reactor.
unsafe impl Send for Adopted {}

unsafe extern "C" fn queue_pair_open(
    host: *mut HostTransport,
    connection: *mut c_void,
    info: *const ConnectionInfo,
    out: *mut *mut HostQueuePair,
) -> i32 {
    let Some(side) = ReactorSide::current() else { return errno::EPERM };
    // SAFETY: the transport's struct is readable during the call; `size` is read first.
    let facts = unsafe {
        if !reaches((*info).size, size_of::<ConnectionInfo>()) {
            return errno::EINVAL;
        }
        let info = &*info;
        let text = |text: Str| text.as_str().unwrap_or_default().to_owned();
        ConnectionFacts {
            key: side.next_key(),
            transport: instance(host).number,
            listener: info.listener,
            queue_depth: info.queue_depth,
            in_capsule_size: info.in_capsule_size,
            is_secure: info.secure != 0,
            psk_identity: text(info.psk_identity),
            peer: format!("{}:{}", text(info.peer.traddr), text(info.peer.trsvcid)),
        }
    };
    // SAFETY: the handle was made by `Arc::into_raw`, and is good until `destroy` is answered.
    let transport = unsafe {
        let raw = host.cast::<TransportShared>().cast_const();
        Arc::increment_strong_count(raw);
        Arc::from_raw(raw)
    };
    let number = facts.key.number;
    let queue = side.queue_added(QueuePair::new(facts, side.clone(), transport, connection));
    let timer = tenon_reactor::current().set_timer(side.options.connect_timeout, move || {
        let Some(side) = ReactorSide::current() else { return };
        side.with_queue(number, |queue| {
            queue.connect_timer.set(None);
            log::info!("connection without connect command is closed peer={}", queue.facts.peer);
            queue.close(CloseReason::TIMEOUT);
        });
    });
    // SAFETY: the queue was just made; `out` is the transport's.
    unsafe {
        (*queue).connect_timer.set(timer.ok());
        *out = queue.cast();
    }
    0
}

unsafe extern "C" fn queue_pair_closed(queue_pair: *mut HostQueuePair, reason: CloseReason) {
    // SAFETY: the queue is freed after this call and its last release.
    let queue = unsafe { &*queue_pair.cast::<QueuePair>() };
    log::debug!("connection closed peer={} reason={}", queue.facts.peer, reason.0);
    queue.transport_closed();
}

unsafe extern "C" fn request_begin(request: *mut TargetRequest) -> Disposition {
    // SAFETY: the transport set the queue, which outlives its requests.
    unsafe { (*(*request).queue_pair.cast::<QueuePair>()).begin(request) }
}

unsafe extern "C" fn request_execute(request: *mut TargetRequest) {
    // SAFETY: the request was begun with RECEIVE, EXECUTE or WAIT, so it has a command.
    unsafe {
        let command: *mut Command = (*request).host[0].cast();
        (*(*command).queue).execute(command);
    }
}

unsafe extern "C" fn request_fail(request: *mut TargetRequest, status: u16) {
    // SAFETY: the request was begun with RECEIVE, EXECUTE or WAIT, so it has a command.
    unsafe {
        let command: *mut Command = (*request).host[0].cast();
        (*(*command).queue).fail(command, StatusField(status.into()));
    }
}

unsafe extern "C" fn connection_dropped(host: *mut HostTransport, _: *mut c_void) {
    // SAFETY: as the contract has it.
    let transport = unsafe { instance(host) };
    if let Some(side) = ReactorSide::current() {
        transport.connection_gone(side.id);
    }
}

unsafe extern "C" fn request_release(request: *mut TargetRequest) {
    // SAFETY: the transport set the queue, which outlives its requests.
    unsafe { (*(*request).queue_pair.cast::<QueuePair>()).released(request) };
}

unsafe extern "C" fn device_event(host: *mut HostTransport, event: *const DeviceEvent) {
    // SAFETY: the transport's struct is readable during the call.
    let (transport, state, name, reason) = unsafe {
        let event = &*event;
        (
            instance(host),
            event.state.0,
            event.name.as_str().unwrap_or("?").to_owned(),
            event.reason.as_str().unwrap_or_default().to_owned(),
        )
    };
    log::info!("transport device changed transport={} device={name} state={state} {reason}", transport.name);
}

unsafe extern "C" fn psk_lookup(
    host: *mut HostTransport,
    _: u64,
    identity: Str,
    key: *mut u8,
    key_len: usize,
) -> i32 {
    // SAFETY: the handle is the transport's own; the text is readable during the call.
    let (transport, identity) = unsafe { (instance(host), identity.as_str()) };
    let Some(found) = identity.and_then(|identity| transport.psks.lookup(identity)) else {
        return errno::ENOENT;
    };
    if found.len() > key_len || key.is_null() {
        return errno::EINVAL;
    }
    // SAFETY: the caller's memory has room for `key_len` bytes, and is not the directory's.
    unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), key, found.len()) };
    found.len() as i32
}
