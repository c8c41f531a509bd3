//! What a module tells the host's outside: metrics, notifications, hotplug
//! events and RPC methods.
// UNSAFETY: calls the functions of the host's table; metrics are the host's cells.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use tenon_abi::{HotplugEvent, HotplugKind, MetricDesc, MetricKind, OpToken as RawToken, RpcFn, Str};

use crate::module::{Exported, parse, text};
use crate::{Error, Host, OpToken, bridge};

/// A number that only grows.
#[derive(Clone, Copy)]
pub struct Counter(&'static AtomicU64);

/// A number that goes up and down.
#[derive(Clone, Copy)]
pub struct Gauge(&'static AtomicU64);

/// What happened outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HotplugChange {
    /// Appeared.
    Added,
    /// Vanished.
    Removed,
    /// Size or attributes changed.
    Changed,
}

/// Something appeared, vanished or changed outside. The same event may come twice: compare `generation`.
#[derive(Clone, Copy, Debug)]
pub struct Hotplug<'a> {
    /// What happened.
    pub change: HotplugChange,
    /// Source: `file`, `pci`, `rdma`, `net`, `nvmf`, `plugin`.
    pub subsystem: &'a str,
    /// Object within the source: a path, a PCI address, a device name.
    pub id: &'a str,
    /// Grows with each event of the same `id`.
    pub generation: u64,
    /// Further facts as a JSON object, or empty.
    pub attributes: &'a str,
}

/// A request to the host's watcher to publish events of one object; ends when dropped.
#[must_use = "the host stops watching when this is dropped"]
pub struct HotplugWatch {
    host: Host,
    subsystem: String,
    id: String,
    /// Stays on the control thread.
    _local: PhantomData<*const ()>,
}

impl Counter {
    /// Adds `n`. Any thread.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// Sets it to `n`. Any thread.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Host {
    /// Registers a counter: `name` is `a-z 0-9 _` with its unit last (`_bytes`, `_seconds`), `help` one sentence.
    /// Any thread, not for the data path.
    ///
    /// # Errors
    /// If the host refuses the name or has no room.
    pub fn counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<Counter, Error> {
        self.metric(MetricKind::COUNTER, name, help, labels).map(Counter)
    }

    /// Registers a gauge, as [`Host::counter`].
    ///
    /// # Errors
    /// If the host refuses the name or has no room.
    pub fn gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Result<Gauge, Error> {
        self.metric(MetricKind::GAUGE, name, help, labels).map(Gauge)
    }

    fn metric(
        &self,
        kind: MetricKind,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
    ) -> Result<&'static AtomicU64, Error> {
        let labels: serde_json::Map<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        let labels = if labels.is_empty() { String::new() } else { serde_json::to_string(&labels)? };
        let desc = MetricDesc {
            size: size_of::<MetricDesc>() as u32,
            kind,
            name: Str::new(name),
            help: Str::new(help),
            labels_json: Str::new(&labels),
        };
        let mut cell: *mut u64 = std::ptr::null_mut();
        // SAFETY: the host copies `desc` and writes `cell`.
        let code = unsafe { (self.api.metric_register)(self.me, &desc, &mut cell) };
        Error::check(code, "cannot register a metric").map_err(|error| error.object(name))?;
        if cell.is_null() {
            return Err(Error::io("the host gave no cell for a metric").object(name));
        }
        // SAFETY: the host keeps the 64-bit cell for ever and accesses it only by atomic operations.
        Ok(unsafe { AtomicU64::from_ptr(cell) })
    }

    /// Adds a notification for `notify_get_notifications`.
    ///
    /// # Errors
    /// `-EPERM` off the control thread.
    pub fn notify(&self, kind: &str, context: &str) -> Result<(), Error> {
        // SAFETY: the texts are borrowed for the call.
        let code = unsafe { (self.api.notify)(self.me, Str::new(kind), Str::new(context)) };
        Error::check(code, "cannot add a notification")
    }

    /// Publishes a hotplug event to every module.
    ///
    /// # Errors
    /// `-EPERM` off the control thread.
    pub fn publish_hotplug(&self, event: &Hotplug<'_>) -> Result<(), Error> {
        let event = HotplugEvent {
            size: size_of::<HotplugEvent>() as u32,
            kind: match event.change {
                HotplugChange::Added => HotplugKind::ADD,
                HotplugChange::Removed => HotplugKind::REMOVE,
                HotplugChange::Changed => HotplugKind::CHANGE,
            },
            subsystem: Str::new(event.subsystem),
            id: Str::new(event.id),
            generation: event.generation,
            attributes_json: Str::new(event.attributes),
        };
        // SAFETY: the event and its texts are borrowed for the call.
        let code = unsafe { (self.api.hotplug_publish)(self.me, &event) };
        Error::check(code, "cannot publish a hotplug event")
    }

    /// Asks the host's watcher to publish events of `id` in `subsystem` (`file`: an absolute path, which need not
    /// exist) until the watch is dropped. They arrive at [`crate::Module::hotplug`].
    ///
    /// # Errors
    /// If the host cannot watch it, or off the control thread.
    pub fn watch(&self, subsystem: &str, id: &str) -> Result<HotplugWatch, Error> {
        // SAFETY: the texts are borrowed for the call.
        let code = unsafe { (self.api.hotplug_watch)(self.me, Str::new(subsystem), Str::new(id)) };
        Error::check(code, "cannot watch").map_err(|error| error.object(format!("{subsystem} {id}")))?;
        Ok(HotplugWatch { host: *self, subsystem: subsystem.into(), id: id.into(), _local: PhantomData })
    }

    /// Adds an RPC method, usually from [`crate::Module::init_complete`]. The handler runs on the control thread
    /// and answers the token now or later. Removed with the module.
    ///
    /// # Errors
    /// `-EEXIST` if the method exists, `-EPERM` off the control thread.
    pub fn rpc<M: Exported, P: DeserializeOwned>(
        &self,
        method: &str,
        handler: fn(&M, P, OpToken),
    ) -> Result<(), Error> {
        let arg = handler as *mut c_void;
        // SAFETY: `arg` is a function of this image, which is never unmapped.
        let code =
            unsafe { (self.api.rpc_register)(self.me, Str::new(method), RpcFn(call_rpc::<M, P>), arg) };
        Error::check(code, "cannot add an rpc method").map_err(|error| error.object(method))
    }
}

impl Drop for HotplugWatch {
    fn drop(&mut self) {
        let (subsystem, id) = (Str::new(&self.subsystem), Str::new(&self.id));
        // SAFETY: the texts are borrowed for the call, and this is the control thread.
        let code = unsafe { (self.host.api.hotplug_unwatch)(self.host.me, subsystem, id) };
        if code != 0 {
            log::error!("watch unknown to the host id={} code={code}", self.id);
        }
    }
}

/// Reads an event of the host; `None` for a kind this version does not know.
///
/// # Safety
/// `event` and its texts are valid for `'a`.
pub(crate) unsafe fn hotplug_of<'a>(event: *const HotplugEvent) -> Option<Hotplug<'a>> {
    // SAFETY: the caller promises a valid event.
    let event = unsafe { &*event };
    let change = match event.kind {
        HotplugKind::ADD => HotplugChange::Added,
        HotplugKind::REMOVE => HotplugChange::Removed,
        HotplugKind::CHANGE => HotplugChange::Changed,
        _ => return None,
    };
    // SAFETY: the caller promises valid texts.
    unsafe {
        Some(Hotplug {
            change,
            subsystem: text(event.subsystem),
            id: text(event.id),
            generation: event.generation,
            attributes: text(event.attributes_json),
        })
    }
}

/// # Safety
/// Called by the host on the control thread with the argument of `rpc`.
unsafe extern "C" fn call_rpc<M: Exported, P: DeserializeOwned>(
    arg: *mut c_void,
    params_json: Str,
    token: RawToken,
) {
    // SAFETY: `rpc` made `arg` of a function of this very type.
    let handler = unsafe { std::mem::transmute::<*mut c_void, fn(&M, P, OpToken)>(arg) };
    let slot = M::slot();
    let Some(host) = slot.host() else { return };
    // SAFETY: the host gives each token once, on the control thread.
    let token = unsafe { OpToken::new(host, token) };
    // SAFETY: the host calls on the control thread.
    let Some(module) = (unsafe { slot.current() }) else {
        return token.fail(Error::new(crate::errno::ESHUTDOWN, "the module is not running"));
    };
    // SAFETY: the text is valid for the call.
    match parse::<P>(unsafe { text(params_json) }) {
        Ok(params) => bridge::run("an rpc method", || handler(&module, params, token)),
        Err(error) => token.fail(error),
    }
}
