//! The table of the initiator role: from the contract's pointers to groups and
//! connections, and nothing else.
// UNSAFETY: implements the contract's table, which takes raw pointers.

use std::ffi::c_void;
use std::rc::Rc;

use tenon_sdk::abi::transport::CloseReason;
use tenon_sdk::abi::transport::initiator::{ConnectParams, ConnectionFn, InitiatorOpsV1, InitiatorRequest};
use tenon_sdk::abi::{JsonSink, Str, reaches};
use tenon_sdk::{Exported, errno};

use crate::TcpTransport;
use crate::initiator::{Connection, ENOTCONN, open};
use crate::initiator_group::Group;

unsafe extern "C" fn poll_group_create(_options_json: Str, out: *mut *mut c_void) -> i32 {
    let Some(host) = TcpTransport::host() else { return errno::ESHUTDOWN };
    match Group::new(host) {
        Ok(group) => {
            // SAFETY: the module gives room for the pointer.
            unsafe { *out = Rc::into_raw(group).cast_mut().cast() };
            0
        }
        Err(error) => error.code,
    }
}

unsafe extern "C" fn poll_group_destroy(group: *mut c_void) {
    // SAFETY: `poll_group_create` leaked this reference, on this reactor.
    let group = unsafe { Rc::from_raw(group.cast_const().cast::<Group>()) };
    group.end();
}

unsafe extern "C" fn connect(
    group: *mut c_void,
    params: *const ConnectParams,
    on_event: ConnectionFn,
    arg: *mut c_void,
    out: *mut *mut c_void,
) -> i32 {
    // SAFETY: the module's group lives until it is destroyed; its parameters are valid for the call.
    let (group, params) = unsafe {
        if !reaches((*params).size, ConnectParams::FIRST_SIZE) {
            return errno::EINVAL;
        }
        let raw = group.cast_const().cast::<Group>();
        Rc::increment_strong_count(raw);
        (Rc::from_raw(raw), &*params)
    };
    match open(&group, params, on_event, arg) {
        Ok(connection) => {
            group.add(Rc::clone(&connection));
            // SAFETY: the module gives room for the pointer.
            unsafe { *out = Rc::into_raw(connection).cast_mut().cast() };
            0
        }
        Err(code) => code,
    }
}

/// The connection behind the module's pointer.
///
/// # Safety
/// `connection` came from `connect` and is not freed.
unsafe fn connection_of<'a>(connection: *mut c_void) -> &'a Connection {
    // SAFETY: as the caller promises.
    unsafe { &*connection.cast_const().cast::<Connection>() }
}

unsafe extern "C" fn disconnect(connection: *mut c_void, reason: CloseReason, drain_by_ns: u64) {
    // SAFETY: the module calls on the connection's reactor, before it frees it.
    unsafe { connection_of(connection) }.disconnect(reason, drain_by_ns);
}

unsafe extern "C" fn connection_free(connection: *mut c_void) {
    // SAFETY: `connect` leaked this reference; the module gives it back once, after CLOSED.
    drop(unsafe { Rc::from_raw(connection.cast_const().cast::<Connection>()) });
}

unsafe extern "C" fn submit(connection: *mut c_void, request: *mut InitiatorRequest) -> i32 {
    // SAFETY: the module calls on the connection's reactor and keeps the request until `done`.
    let own = unsafe { connection_of(connection) };
    match own.group() {
        Some(group) => own.submit(&group, connection, request),
        None => ENOTCONN,
    }
}

unsafe extern "C" fn flush(_connection: *mut c_void) {
    // The poller of this very reactor sends what was submitted, with all else of this turn.
}

unsafe extern "C" fn statistics_json(group: *mut c_void, sink: *const JsonSink) {
    // SAFETY: the group lives until it is destroyed; the sink is valid for the call.
    unsafe {
        let text = (*group.cast_const().cast::<Group>()).statistics_json().to_string();
        ((*sink).write)((*sink).arg, Str::new(&text));
    }
}

/// The initiator role.
pub(crate) static OPS: InitiatorOpsV1 = InitiatorOpsV1 {
    size: size_of::<InitiatorOpsV1>() as u32,
    request_ctx_size: 0,
    poll_group_create,
    poll_group_destroy,
    connect,
    disconnect,
    connection_free,
    submit,
    flush,
    memory_register: None,
    memory_unregister: None,
    device_subscribe: None,
    statistics_json,
};
