//! NVMe-oF transports as a module uses them to reach a controller: a transport
//! by name, a poll group per reactor, and queues ([`FabricQueue`]) on which
//! commands travel. What the commands mean is the module's matter.
// UNSAFETY: calls the functions of the host's and the transport's tables.

mod queue;

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::rc::Rc;

use tenon_abi::transport::TransportV1;
use tenon_abi::transport::initiator::{InitiatorOpsV1, TransportFn, TransportTableApiV2};
use tenon_abi::transport::{QUERY_TRANSPORT_TABLE, TransportFlags, TransportId};
use tenon_abi::{JsonSink, Str, reaches};

use crate::{Error, Host, bridge};

pub use queue::{
    Carried, ConnectOptions, FabricCommand, FabricEvent, FabricQueue, IoOrOwn, NotSubmitted, OwnPayload,
    PayloadOf,
};

/// Address of a controller, or of this end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FabricAddress {
    /// Transport type as in the discovery log: 1 RDMA, 3 TCP, 254 inside the process.
    pub trtype: u8,
    /// Address family as in the discovery log: 1 IPv4, 2 IPv6, 254 inside the process.
    pub adrfam: u8,
    /// Transport address.
    pub traddr: String,
    /// Transport service identifier, e.g. a port.
    pub trsvcid: String,
    /// NQN of the subsystem, or empty.
    pub subnqn: String,
}

/// A transport with an initiator role, in use until the last clone is dropped. On the control thread; what other
/// reactors need of it is [`FabricTransport::share`].
pub struct FabricTransport {
    host: Host,
    table: &'static TransportV1,
}

/// The part of a [`FabricTransport`] that any reactor may use.
#[derive(Clone, Copy)]
pub struct SharedTransport {
    host: Host,
    ops: &'static InitiatorOpsV1,
    secures_channels: bool,
}

/// A transport's poll group on one reactor; ends with its last clone, after its queues.
#[derive(Clone)]
pub struct FabricGroup {
    pub(crate) inner: Rc<GroupInner>,
}

pub(crate) struct GroupInner {
    pub(crate) host: Host,
    pub(crate) ops: &'static InitiatorOpsV1,
    pub(crate) raw: *mut c_void,
    /// It secures channels with a key.
    pub(crate) secures_channels: bool,
    _local: PhantomData<*const ()>,
}

impl FabricAddress {
    pub(crate) fn raw(&self) -> TransportId {
        TransportId {
            size: size_of::<TransportId>() as u32,
            trtype: self.trtype,
            adrfam: self.adrfam,
            reserved: 0,
            traddr: Str::new(&self.traddr),
            trsvcid: Str::new(&self.trsvcid),
            subnqn: Str::new(&self.subnqn),
        }
    }
}

type Acquired = Box<dyn FnOnce(Result<FabricTransport, Error>)>;

struct Asked {
    host: Host,
    name: String,
    done: Acquired,
}

impl Host {
    /// Asks for the transport `name` (`TCP`, in any case), whose plugin is loaded if needed; `done` hears of it
    /// later, on this thread. Control thread.
    ///
    /// # Errors
    /// If the host offers no transports, or refuses.
    pub fn transport(
        &self,
        name: &str,
        done: impl FnOnce(Result<FabricTransport, Error>) + 'static,
    ) -> Result<(), Error> {
        let table = self.query(QUERY_TRANSPORT_TABLE, 2).cast::<TransportTableApiV2>();
        // SAFETY: what the host answers to this query is its table, for the life of the process.
        let table = unsafe { table.as_ref() }.filter(|table| reaches(table.size, END_OF_TABLE));
        let Some(table) = table else {
            return Err(Error::not_supported("this host has no nvme-of transports"));
        };
        let asked =
            Box::into_raw(Box::new(Asked { host: *self, name: name.to_owned(), done: Box::new(done) }));
        // SAFETY: `heard` takes the box over, once; the text is borrowed for the call.
        let code = unsafe { (table.acquire)(self.me, Str::new(name), TransportFn(heard), asked.cast()) };
        Error::check(code, "cannot ask for a transport").map_err(|error| {
            // SAFETY: the host refused, so the box is still ours.
            drop(unsafe { Box::from_raw(asked) });
            error.object(name)
        })
    }
}

/// # Safety
/// `arg` is the `Asked` of one request, given back once.
unsafe extern "C" fn heard(arg: *mut c_void, transport: *const TransportV1, reason: Str) {
    // SAFETY: as the caller promises; a transport's table is static, and the text valid for the call.
    let (asked, table, reason) = unsafe {
        let asked = Box::from_raw(arg.cast::<Asked>());
        (asked, transport.as_ref(), reason.as_str().unwrap_or_default().to_owned())
    };
    let Asked { host, name, done } = *asked;
    let result = match table {
        None => Err(Error::not_found(name).caused_by(reason)),
        Some(table) => {
            let transport = FabricTransport { host, table };
            match transport.ops() {
                Some(_) => Ok(transport),
                None => Err(Error::not_supported("the transport has no initiator role").object(name)),
            }
        }
    };
    bridge::run("the answer of a transport", || done(result));
}

impl FabricTransport {
    fn ops(&self) -> Option<&'static InitiatorOpsV1> {
        // SAFETY: a transport's tables are static.
        let ops = unsafe { self.table.initiator.as_ref() }?;
        reaches(ops.size, size_of::<InitiatorOpsV1>()).then_some(ops)
    }

    /// The name, as in `trtype`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        // SAFETY: the text of a static table is static.
        unsafe { self.table.name.as_str() }.unwrap_or("?")
    }

    /// Its number in the discovery log.
    #[must_use]
    pub fn trtype(&self) -> u8 {
        self.table.trtype as u8
    }

    /// What other reactors need; valid while this is.
    ///
    /// # Panics
    /// Never: a transport without an initiator role is not given out.
    #[must_use]
    pub fn share(&self) -> SharedTransport {
        let ops = self.ops().expect("checked when it was acquired");
        let secures_channels = self.table.flags.0 & TransportFlags::SECURE_INITIATOR.0 != 0;
        SharedTransport { host: self.host, ops, secures_channels }
    }
}

impl Drop for FabricTransport {
    fn drop(&mut self) {
        let table = self.host.query(QUERY_TRANSPORT_TABLE, 2).cast::<TransportTableApiV2>();
        // SAFETY: the host's table, and a transport that it gave once.
        unsafe {
            if let Some(table) = table.as_ref() {
                (table.release)(self.host.me, self.table);
            }
        }
    }
}

impl SharedTransport {
    /// Makes the transport's poll group on the calling reactor.
    ///
    /// # Errors
    /// If the transport refuses.
    pub fn group(&self, options: &serde_json::Value) -> Result<FabricGroup, Error> {
        let options = options.to_string();
        let mut raw: *mut c_void = std::ptr::null_mut();
        // SAFETY: on a reactor; the text is borrowed for the call.
        let code = unsafe { (self.ops.poll_group_create)(Str::new(&options), &mut raw) };
        Error::check(code, "cannot make a poll group of the transport")?;
        let Self { host, ops, secures_channels } = *self;
        Ok(FabricGroup {
            inner: Rc::new(GroupInner { host, ops, raw, secures_channels, _local: PhantomData }),
        })
    }
}

impl FabricGroup {
    /// The group's statistics, as the transport tells them.
    #[must_use]
    pub fn statistics(&self) -> serde_json::Value {
        let mut text = String::new();
        let sink = JsonSink { write: append, arg: (&raw mut text).cast() };
        // SAFETY: the group is alive; sink and text live until the call returns.
        unsafe { (self.inner.ops.statistics_json)(self.inner.raw, &sink) };
        serde_json::from_str(&text).unwrap_or_default()
    }
}

impl Drop for GroupInner {
    fn drop(&mut self) {
        // SAFETY: queues hold a reference until they are closed, so none is left; this is the group's reactor.
        unsafe { (self.ops.poll_group_destroy)(self.raw) };
    }
}

/// # Safety
/// `arg` is the string of a call under way.
unsafe extern "C" fn append(arg: *mut c_void, text: Str) {
    // SAFETY: as the caller promises.
    unsafe {
        if let Some(text) = text.as_str() {
            (*arg.cast::<String>()).push_str(text);
        }
    }
}

/// Bytes of a table that has both functions.
const END_OF_TABLE: usize = offset_of!(TransportTableApiV2, release) + size_of::<usize>();
