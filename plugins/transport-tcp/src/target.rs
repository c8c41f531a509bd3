//! The target role's table: the functions of [`TargetOpsV1`], and the instance
//! they work on.
//!
//! Turns raw pointers into listeners, poll groups and connections, and nothing
//! else. Instances and listeners belong to the control reactor, a poll group and
//! its connections to theirs.
// UNSAFETY: implements the contract's functions, which take raw pointers from the target core.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use tenon_sdk::abi::transport::target::{
    DiscoveryInfo, HostTransport, NvmfTargetApiV1, TargetOpsV1, TargetRequest,
};
use tenon_sdk::abi::transport::{CloseReason, TransportId};
use tenon_sdk::abi::{JsonSink, OpToken as RawToken, Str};
use tenon_sdk::{Error, Exported, Host, OpToken, errno};

use crate::TcpTransport;
use crate::channel::Channel;
use crate::config::{ListenerOptions, TcpOptions};
use crate::host_connection::HostConnection;
use crate::listener::{Accepted, Dress, Listener};
use crate::poll_group::PollGroup;

/// An instance of the transport at a target.
struct Instance {
    sdk: Host,
    host: *mut HostTransport,
    api: &'static NvmfTargetApiV1,
    options: TcpOptions,
    /// Control reactor only.
    listeners: RefCell<HashMap<u64, (Listener, ListenerOptions)>>,
    groups: Arc<Groups>,
}

/// The poll groups, by reactor.
#[derive(Default)]
struct Groups {
    by_reactor: Mutex<HashMap<Option<u32>, GroupPointer>>,
}

#[derive(Clone, Copy)]
struct GroupPointer(*const PollGroup);

// SAFETY: followed on the group's own reactor only.
unsafe impl Send for GroupPointer {}

impl Groups {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Option<u32>, GroupPointer>> {
        self.by_reactor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instance {
    /// What becomes of accepted sockets: a channel, secured if that is wanted.
    #[cfg(feature = "tls")]
    fn dress(&self, listener: u64, is_secure: bool) -> Result<Box<Dress>, Error> {
        if !is_secure {
            return Ok(Box::new(|socket| Ok(Channel::Plain(socket))));
        }
        let (api, host) = (self.api, self.host);
        Ok(Box::new(move |socket| {
            let lookup = move |identity: &str, key: &mut [u8]| {
                // SAFETY: the target core's function, for any thread; text and room live until it returns.
                let len = unsafe {
                    (api.psk_lookup)(host, listener, Str::new(identity), key.as_mut_ptr(), key.len())
                };
                usize::try_from(len).ok()
            };
            crate::tls::SecureChannel::accept(socket, Box::new(lookup)).map(Channel::Secure)
        }))
    }

    /// As above, in a build without TLS.
    #[cfg(not(feature = "tls"))]
    fn dress(&self, _: u64, is_secure: bool) -> Result<Box<Dress>, Error> {
        if is_secure {
            return Err(Error::not_supported("secure_channel is true, and this build has no TLS"));
        }
        Ok(Box::new(|socket| Ok(Channel::Plain(socket))))
    }
}

/// The target role's table.
pub static TARGET_OPS: TargetOpsV1 = TargetOpsV1 {
    size: size_of::<TargetOpsV1>() as u32,
    flags: 0,
    create,
    destroy,
    options_json,
    statistics_json,
    listen,
    stop_listen,
    listener_discover,
    poll_group_create,
    poll_group_destroy,
    connection_adopt,
    connection_close,
    connection_free,
    request_complete,
    request_buffers,
};

/// The host as the module got it. The table is only reached through a module that runs.
fn sdk() -> Host {
    TcpTransport::host().expect("the table of a transport is used while its module runs")
}

/// Answers `token` with what `work` returns.
///
/// # Safety
/// `token` came with the call that is being answered.
unsafe fn answer(token: RawToken, work: impl FnOnce() -> Result<(), Error>) {
    // SAFETY: as the caller promises.
    let token = unsafe { OpToken::from_raw(sdk(), token) };
    match work() {
        Ok(()) => token.done(),
        Err(error) => token.fail(error),
    }
}

/// # Safety
/// `transport` was made by `create`, and `destroy` is not answered yet.
unsafe fn instance<'a>(transport: *mut c_void) -> &'a Instance {
    // SAFETY: as the caller promises.
    unsafe { &*transport.cast::<Instance>() }
}

/// # Safety
/// `group` was made by `poll_group_create` and is not destroyed yet; this is its reactor.
unsafe fn group<'a>(group: *mut c_void) -> &'a PollGroup {
    // SAFETY: as the caller promises.
    unsafe { &*group.cast::<PollGroup>() }
}

/// # Safety
/// `connection` was adopted and is not freed yet; this is its reactor.
unsafe fn connection<'a>(connection: *mut c_void) -> &'a HostConnection {
    // SAFETY: as the caller promises.
    unsafe { &*connection.cast::<HostConnection>() }
}

unsafe extern "C" fn create(
    host: *mut HostTransport,
    api: *const NvmfTargetApiV1,
    options_json: Str,
    token: RawToken,
    out: *mut *mut c_void,
) {
    // SAFETY: the target core's table is good until `destroy` is answered, its texts during the call, its token
    // for this call, and its slot is writable.
    unsafe {
        answer(token, || {
            if !tenon_sdk::abi::reaches((*api).size, size_of::<NvmfTargetApiV1>()) {
                return Err(Error::not_supported("the target is older than the transport"));
            }
            let text = options_json.as_str().ok_or_else(|| Error::invalid("options are not text"))?;
            let instance = Instance {
                sdk: sdk(),
                host,
                api: &*api,
                options: TcpOptions::parse(text)?,
                listeners: RefCell::default(),
                groups: Arc::default(),
            };
            *out = Box::into_raw(Box::new(instance)).cast();
            Ok(())
        });
    }
}

unsafe extern "C" fn destroy(transport: *mut c_void, token: RawToken) {
    // SAFETY: made by `create`; listeners, groups and connections are gone, and the token is for this call.
    unsafe {
        let instance = Box::from_raw(transport.cast::<Instance>());
        answer(token, || {
            drop(instance);
            Ok(())
        });
    }
}

unsafe extern "C" fn options_json(transport: *mut c_void, sink: *const JsonSink) {
    // SAFETY: the instance exists; the sink is good during the call.
    unsafe {
        let text = serde_json::to_string(&instance(transport).options).unwrap_or_else(|_| "{}".to_owned());
        ((*sink).write)((*sink).arg, Str::new(&text));
    }
}

unsafe extern "C" fn statistics_json(own: *mut c_void, sink: *const JsonSink) {
    // SAFETY: the group exists, this is its reactor; the sink is good during the call.
    unsafe {
        let text = group(own).statistics();
        ((*sink).write)((*sink).arg, Str::new(&text));
    }
}

unsafe extern "C" fn listen(
    transport: *mut c_void,
    listener: u64,
    address: *const TransportId,
    options_json: Str,
    token: RawToken,
) {
    // SAFETY: the instance exists; texts are readable during the call; the token is for this call.
    unsafe {
        let own = instance(transport);
        answer(token, || {
            let address = socket_address(&*address)?;
            let text = options_json.as_str().ok_or_else(|| Error::invalid("options are not text"))?;
            let options: ListenerOptions = serde_json::from_str(text)?;
            let dress = own.dress(listener, options.secure_channel)?;
            let (api, host) = (own.api, own.host);
            let announce = move |connection| (api.connection_new)(host, listener, connection);
            let backlog = own.options.acceptor_backlog;
            let socket = own.options.socket();
            let opened =
                Listener::open(own.sdk, listener, address, backlog, socket, dress, Box::new(announce))?;
            own.listeners.borrow_mut().insert(listener, (opened, options));
            Ok(())
        });
    }
}

unsafe extern "C" fn stop_listen(transport: *mut c_void, listener: u64, token: RawToken) {
    // SAFETY: the instance exists; the token is for this call.
    let (own, token) = unsafe { (instance(transport), OpToken::from_raw(sdk(), token)) };
    let stopped = own.listeners.borrow_mut().remove(&listener);
    if stopped.is_none() {
        return token.fail(Error::not_found("listener"));
    }
    drop(stopped);
    // Connections that nobody knows but this transport would otherwise outlive the listener unseen.
    let groups = own.groups.clone();
    let visit = move |reactor: tenon_sdk::Reactor| {
        let pointer = groups.lock().get(&reactor.index()).copied();
        if let Some(GroupPointer(pointer)) = pointer {
            // SAFETY: this is the group's reactor, and it takes itself out of the table when it ends.
            unsafe { (*pointer).drop_unfinished(listener) };
        }
    };
    let token = Rc::new(RefCell::new(Some(token)));
    let answered = token.clone();
    let done = move || {
        let token = answered.borrow_mut().take();
        if let Some(token) = token {
            token.done();
        }
    };
    if let Err(error) = own.sdk.each_reactor(visit, done) {
        let token = token.borrow_mut().take();
        if let Some(token) = token {
            token.fail(error);
        }
    }
}

unsafe extern "C" fn listener_discover(
    transport: *mut c_void,
    listener: u64,
    out: *mut DiscoveryInfo,
) -> i32 {
    // SAFETY: the instance exists; `out` is the target core's.
    unsafe {
        let listeners = instance(transport).listeners.borrow();
        let Some((_, options)) = listeners.get(&listener) else { return errno::ENOENT };
        let is_secure = options.secure_channel;
        (*out).treq = if is_secure { TREQ_REQUIRED } else { TREQ_NOT_SPECIFIED };
        (*out).tsas[0] = if is_secure { SECURITY_TLS_1_3 } else { SECURITY_NONE };
    }
    0
}

unsafe extern "C" fn poll_group_create(transport: *mut c_void, out: *mut *mut c_void) -> i32 {
    // SAFETY: the instance exists.
    let own = unsafe { instance(transport) };
    match PollGroup::new(own.sdk, own.api, own.host, own.options.protocol()) {
        Ok(group) => {
            let raw = Rc::into_raw(group);
            let reactor = own.sdk.reactor().and_then(tenon_sdk::Reactor::index);
            own.groups.lock().insert(reactor, GroupPointer(raw));
            // SAFETY: `out` is the target core's.
            unsafe { *out = raw.cast_mut().cast() };
            0
        }
        Err(error) => {
            log::error!("poll group cannot be made error=\"{error}\"");
            error.code
        }
    }
}

unsafe extern "C" fn poll_group_destroy(own: *mut c_void) {
    // SAFETY: made by `poll_group_create` of this reactor, and not used afterwards.
    let group = unsafe { Rc::from_raw(own.cast_const().cast::<PollGroup>()) };
    group.end_all();
}

unsafe extern "C" fn connection_adopt(own: *mut c_void, connection: *mut c_void) -> i32 {
    // SAFETY: the group exists; the connection is a box that `connection_new` announced, and is taken over here.
    let (group, accepted) = unsafe { (group(own), Box::from_raw(connection.cast::<Accepted>())) };
    group.adopt(*accepted).map_or_else(|error| error.code, |()| 0)
}

unsafe extern "C" fn connection_close(own: *mut c_void, reason: CloseReason, drain_by_ns: u64) {
    // SAFETY: adopted and not freed yet; this is its reactor.
    let connection = unsafe { connection(own) };
    if let Some(group) = connection.group() {
        group.close(connection, reason, drain_by_ns);
    }
}

unsafe extern "C" fn connection_free(own: *mut c_void) {
    // SAFETY: adopted and not freed yet; this is its reactor.
    let connection = unsafe { connection(own) };
    if let Some(group) = connection.group() {
        group.free(connection);
    }
}

unsafe extern "C" fn request_complete(request: *mut TargetRequest) {
    // SAFETY: the target core gives back one of this transport's requests.
    unsafe { HostConnection::complete(request) };
}

unsafe extern "C" fn request_buffers(request: *mut TargetRequest) {
    // SAFETY: as above.
    unsafe { HostConnection::buffers(request) };
}

/// Where to listen.
fn socket_address(address: &TransportId) -> Result<SocketAddr, Error> {
    // SAFETY: texts are readable during the call that brought them.
    let (traddr, trsvcid) = unsafe { (address.traddr.as_str(), address.trsvcid.as_str()) };
    let (traddr, trsvcid) = (traddr.unwrap_or_default(), trsvcid.unwrap_or_default());
    let invalid = |reason: String| Error::invalid(reason).object(format!("TCP {traddr}:{trsvcid}"));
    let ip: IpAddr =
        traddr.parse().map_err(|_| invalid(format!("address {traddr:?} is not an IP address")))?;
    let port = if trsvcid.is_empty() { Ok(DEFAULT_PORT) } else { trsvcid.parse() };
    let port: u16 = port.map_err(|_| invalid(format!("service {trsvcid:?} is not a port, 1 to 65535")))?;
    match (address.adrfam, ip) {
        (FAMILY_IPV4, IpAddr::V4(_)) | (FAMILY_IPV6, IpAddr::V6(_)) => Ok(SocketAddr::new(ip, port)),
        (FAMILY_IPV4 | FAMILY_IPV6, _) => {
            Err(invalid(format!("address {traddr:?} is of another family than said")))
        }
        (family, _) => Err(invalid(format!("address family {family} is neither IPv4 (1) nor IPv6 (2)"))),
    }
}

/// Transport type and address families as in the discovery log.
pub const TRTYPE_TCP: u8 = 3;
/// IPv4.
pub const FAMILY_IPV4: u8 = 1;
/// IPv6.
pub const FAMILY_IPV6: u8 = 2;
/// TREQ: whether a secure channel is required. Without one nothing is said, as some hosts know only what is so
/// common.
const TREQ_NOT_SPECIFIED: u8 = 0b00;
const TREQ_REQUIRED: u8 = 0b01;
/// SECTYPE.
const SECURITY_NONE: u8 = 0;
const SECURITY_TLS_1_3: u8 = 2;
/// The port assigned to NVMe over TCP.
const DEFAULT_PORT: u16 = 4420;
