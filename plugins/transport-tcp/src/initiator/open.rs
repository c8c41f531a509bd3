//! Opening a connection: what a module asks of it, the socket, and the channel
//! on it. How that goes is told by the connection's events.
// UNSAFETY: reads the parameters' texts and key by their raw pointers.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::rc::Rc;

use serde::Deserialize;
use tenon_sdk::abi::reaches;
use tenon_sdk::abi::transport::TransportId;
use tenon_sdk::abi::transport::initiator::{ConnectParams, ConnectionFn};
use tenon_sdk::{FdWatch, Host, errno};

use super::{Connection, FAILED, Phase, READABLE, WRITABLE};
use crate::channel::Channel;
use crate::connection::InitiatorConnection;
use crate::connection::options::{InitiatorOptions, MAX_QUEUE_DEPTH};
use crate::initiator_group::Group;
use crate::pdu::ADMIN_IN_CAPSULE_BYTES;
use crate::socket::{Socket, SocketOptions};

/// What a module may ask of a connection; what is meant for other transports is passed over.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct ConnectionOptions {
    /// Ask for header digests, and refuse a controller without.
    hdgst: bool,
    /// Ask for data digests, and refuse a controller without.
    ddgst: bool,
    /// `SO_PRIORITY`.
    priority: u32,
    /// Time after which unacknowledged data ends the connection; 0: the system's.
    ack_timeout_ms: u32,
    /// Most in-capsule data of an I/O queue, from the controller's IOCCSZ.
    in_capsule_data_size: u32,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        let in_capsule_data_size = ADMIN_IN_CAPSULE_BYTES;
        ConnectionOptions { hdgst: false, ddgst: false, priority: 0, ack_timeout_ms: 0, in_capsule_data_size }
    }
}

/// The address of a transport identifier, which has to be an internet address.
///
/// # Safety
/// Its texts are valid for the call.
unsafe fn address(id: &TransportId) -> Option<SocketAddr> {
    // SAFETY: as the caller promises.
    let (traddr, trsvcid) = unsafe { (id.traddr.as_str()?, id.trsvcid.as_str()?) };
    let ip: IpAddr = traddr.parse().ok()?;
    let port = if trsvcid.is_empty() { 0 } else { trsvcid.parse().ok()? };
    Some(SocketAddr::new(ip, port))
}

/// The key that is to secure the channel, and its identity; `None` if there is none.
///
/// # Safety
/// The parameters' texts and key are valid for the call.
unsafe fn key_of(params: &ConnectParams) -> Option<(&str, &[u8])> {
    // The writer may know a shorter struct.
    if !reaches(params.size, size_of::<ConnectParams>()) || params.psk_len == 0 || params.psk.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    unsafe { Some((params.psk_identity.as_str()?, std::slice::from_raw_parts(params.psk, params.psk_len))) }
}

/// Opens a connection; how that goes is an event.
pub(crate) fn open(
    group: &Rc<Group>,
    params: &ConnectParams,
    on_event: ConnectionFn,
    arg: *mut c_void,
) -> Result<Rc<Connection>, i32> {
    // SAFETY: texts of the parameters are valid for the call.
    let (peer, local, options) = unsafe {
        let json = params.options_json.as_str().filter(|json| !json.is_empty()).unwrap_or("{}");
        let options: ConnectionOptions = serde_json::from_str(json).map_err(|_| errno::EINVAL)?;
        (address(&params.peer).ok_or(errno::EINVAL)?, address(&params.local), options)
    };
    let host = group.host;
    let now_ns = host.now_ns();
    let machine = InitiatorConnection::new(
        InitiatorOptions {
            queue_depth: params.queue_size.clamp(1, MAX_QUEUE_DEPTH.into()) as u16,
            needs_header_digest: options.hdgst,
            needs_data_digest: options.ddgst,
            ..InitiatorOptions::DEFAULT
        },
        now_ns,
    )
    .map_err(|_| errno::EINVAL)?;
    let sockets = SocketOptions {
        priority: options.priority,
        user_timeout_ms: options.ack_timeout_ms,
        ..SocketOptions::DEFAULT
    };
    let ready = Ready::default();
    // SAFETY: the parameters' key is valid for the call.
    let key = unsafe { key_of(params) };
    let opened = Socket::connect(&peer, local.as_ref(), &sockets)
        .and_then(|socket| match key {
            Some((identity, key)) => Channel::secured(socket, identity, key),
            None => Ok(Channel::Plain(socket)),
        })
        .and_then(|channel| Ok((watch(host, channel.socket(), &ready)?, channel)));
    let connection = Rc::new(Connection {
        host,
        group: Rc::downgrade(group),
        phase: Cell::new(Phase::Opening),
        requests: (0..machine.slots()).map(|_| Cell::new(std::ptr::null_mut())).collect(),
        stash: RefCell::new(Vec::with_capacity(machine.max_contiguous_bytes())),
        machine: RefCell::new(machine),
        socket: RefCell::new(None),
        is_readable: ready.readable,
        is_writable: ready.writable,
        watches_writable: Cell::new(true),
        why: RefCell::new(None),
        connect_by_ns: params.deadline_ns,
        drain_by_ns: Cell::new(u64::MAX),
        qid: params.qid as u16,
        in_capsule_size: options.in_capsule_data_size,
        is_connect_done: Cell::new(false),
        is_connect_told: Cell::new(false),
        on_event,
        arg,
    });
    match opened {
        Ok(opened) => *connection.socket.borrow_mut() = Some(opened),
        Err(error) => connection.failed(&error),
    }
    Ok(connection)
}

/// What the socket is ready for.
#[derive(Default)]
struct Ready {
    readable: Rc<Cell<bool>>,
    writable: Rc<Cell<bool>>,
}

/// Watches the socket until it is connected.
fn watch(host: Host, socket: &Socket, ready: &Ready) -> io::Result<FdWatch> {
    let (readable, writable) = (Rc::clone(&ready.readable), Rc::clone(&ready.writable));
    let watch = host.watch_fd(&socket.as_fd(), WRITABLE, move |events| {
        if events & (READABLE | FAILED) != 0 {
            readable.set(true);
        }
        if events & (WRITABLE | FAILED) != 0 {
            writable.set(true);
        }
    });
    watch.map_err(|error| io::Error::other(error.to_string()))
}
