//! Devices of this module: the trait of a device, its registration, and what
//! the owner may do with it later.
// UNSAFETY: device objects travel through the host as raw pointers.

use std::any::Any;
use std::collections::HashMap;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tenon_abi::{
    BdevEvent, BdevEventKind, BdevHandle, BdevOpsV1, BdevV1, IoChannel, JsonSink, OpToken as RawToken,
    Reason, Str,
};

use crate::channel::{Channel, attach, detach};
use crate::spec::BdevSpec;
use crate::{Error, Host, OpToken, Reactor, bridge, errno};

/// A device of this module. [`Bdev::channel`] runs on any reactor, the others on the control thread.
pub trait Bdev: Send + Sync + Sized + 'static {
    /// Its data path on one reactor.
    type Channel: Channel;

    /// Opens the device on the calling reactor, `reactor`. Pollers and alarms of the channel keep a
    /// [`std::rc::Weak`] of it; the host drops the channel when none of its I/O is outstanding.
    ///
    /// # Errors
    /// Whoever wants to use the device on this reactor fails.
    fn channel(&self, reactor: Reactor) -> Result<Rc<Self::Channel>, Error>;

    /// Every descriptor and channel is closed: release everything and answer. The default drops the device.
    fn destruct(self: Arc<Self>, token: OpToken) {
        drop(self);
        token.done();
    }

    /// `driver_specific` of the device in `bdev_get_bdevs`: a JSON object.
    fn dump(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    /// The device's current parameters: creating a device from them gives the same device. The default lets the
    /// host save the parameters of the create call.
    fn config(&self) -> Option<serde_json::Value> {
        None
    }

    /// `driver_specific` of the device in `bdev_get_iostat`: a JSON object of what the module itself counts.
    fn statistics(&self) -> Option<serde_json::Value> {
        None
    }

    /// The host reset this device's statistics.
    fn reset_statistics(&self) {}

    /// The create that registered this device has failed after all, e.g. because its examination did not end in
    /// time; [`Bdev::destruct`] is called next. What the create wrote, which would bring the device back, is to go
    /// with the device. The default has written nothing.
    fn rolled_back(&self) {}
}

/// An event of a device that its owner tells those who opened it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Publish {
    /// Works with reduced redundancy or speed.
    Degraded,
    /// Fully working again.
    Healthy,
    /// The set of usable paths changed.
    PathChanged,
    /// Writes are refused from now on.
    ReadOnly,
    /// Writes are accepted again.
    Writable,
    /// The device asks for media management.
    MediaManagement,
}

/// A registered device, until its destruct was answered.
struct Registration<B> {
    host: Host,
    name: String,
    bdev: Arc<B>,
}

struct Device {
    id: BdevHandle,
    object: Arc<dyn Any + Send + Sync>,
}

/// Devices of the modules of this image by module and name; touched when devices come and go, and by lookups.
static DEVICES: LazyLock<Mutex<HashMap<(usize, String), Device>>> = LazyLock::new(Mutex::default);

impl OpToken {
    /// Registers a device as part of this operation: if the operation fails, the host removes it again, otherwise
    /// it is answered after the device is examined.
    ///
    /// # Errors
    /// `-EEXIST` if a name or UUID is taken, with the device that has it; `-EINVAL` if the description is wrong;
    /// `-ETIMEDOUT` if the host has given the operation up at its deadline: what was done for it, down to what was
    /// written, is to be taken back.
    pub fn register<B: Bdev>(&self, spec: BdevSpec, bdev: B) -> Result<BdevHandle, Error> {
        register(self.host(), &spec, bdev, self.raw())
    }
}

impl Host {
    /// Registers a device that belongs to no operation, e.g. one that was discovered.
    ///
    /// # Errors
    /// As [`OpToken::register`].
    pub fn register<B: Bdev>(&self, spec: BdevSpec, bdev: B) -> Result<BdevHandle, Error> {
        register(*self, &spec, bdev, RawToken(0))
    }

    /// Starts the removal of a device of this module; [`Bdev::destruct`] is called at the end. May be repeated.
    ///
    /// # Errors
    /// `-ENODEV` if it is gone, `-EPERM` if it is another module's.
    pub fn unregister(&self, id: BdevHandle, reason: Reason) -> Result<(), Error> {
        // SAFETY: handles are checked by the host.
        Error::check(unsafe { (self.api.bdev_unregister)(id, reason) }, "cannot unregister the device")
    }

    /// Sets the capacity of a device of this module; openers hear of it after every reactor obeys the new size.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn resize(&self, id: BdevHandle, num_blocks: u64) -> Result<(), Error> {
        // SAFETY: handles are checked by the host.
        Error::check(unsafe { (self.api.bdev_resize)(id, num_blocks) }, "cannot resize the device")
    }

    /// Backing gone: I/O waits for `deadline` (`None`: no limit), then the device is removed.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn set_absent(&self, id: BdevHandle, deadline: Option<Duration>) -> Result<(), Error> {
        // A deadline under a millisecond is not "no limit".
        let deadline_ms =
            deadline.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1));
        // SAFETY: handles are checked by the host.
        Error::check(unsafe { (self.api.bdev_set_absent)(id, deadline_ms) }, "cannot set the device absent")
    }

    /// Backing back with the same identity: waiting I/O continues.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn set_present(&self, id: BdevHandle) -> Result<(), Error> {
        // SAFETY: handles are checked by the host.
        Error::check(unsafe { (self.api.bdev_set_present)(id) }, "cannot set the device present")
    }

    /// Tells those who opened a device of this module what happened to it.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn publish(&self, id: BdevHandle, what: Publish, reason: Reason, detail: &str) -> Result<(), Error> {
        let kind = match what {
            Publish::Degraded => BdevEventKind::DEGRADED,
            Publish::Healthy => BdevEventKind::HEALTHY,
            Publish::PathChanged => BdevEventKind::PATH_CHANGED,
            Publish::ReadOnly => BdevEventKind::READ_ONLY,
            Publish::Writable => BdevEventKind::WRITABLE,
            Publish::MediaManagement => BdevEventKind::MEDIA_MANAGEMENT,
        };
        let event = BdevEvent {
            size: size_of::<BdevEvent>() as u32,
            kind,
            bdev: id,
            reason,
            reserved: 0,
            value: 0,
            deadline_ns: 0,
            detail: Str::new(detail),
        };
        // SAFETY: the event and its text are borrowed for the call.
        Error::check(unsafe { (self.api.bdev_publish)(id, &event) }, "cannot publish the event")
    }

    /// The object of a device this module registered, by name, e.g. to update it. Do not keep it: the device
    /// closes its base devices when the last reference goes.
    #[must_use]
    pub fn bdev<B: Bdev>(&self, name: &str) -> Option<Arc<B>> {
        let object = Arc::clone(&devices().get(&self.key(name))?.object);
        object.downcast::<B>().ok()
    }

    /// The handle of a device this module registered, by name.
    #[must_use]
    pub fn registered(&self, name: &str) -> Option<BdevHandle> {
        devices().get(&self.key(name)).map(|device| device.id).filter(|id| id.0 != 0)
    }

    fn key(&self, name: &str) -> (usize, String) {
        (self.me as usize, name.to_owned())
    }
}

fn register<B: Bdev>(host: Host, spec: &BdevSpec, bdev: B, op: RawToken) -> Result<BdevHandle, Error> {
    let bdev = Arc::new(bdev);
    // Known before the host knows it, so that callbacks from inside the registration find it; taken names fail
    // in the host as well, but must not replace the first device here.
    let object: Arc<dyn Any + Send + Sync> = bdev.clone();
    let key = host.key(&spec.name);
    if devices().contains_key(&key) {
        return Err(Error::exists(&*spec.name));
    }
    devices().insert(key.clone(), Device { id: BdevHandle(0), object });
    let registration = Box::into_raw(Box::new(Registration { host, name: spec.name.clone(), bdev }));
    let aliases: Vec<Str> = spec.aliases.iter().map(|alias| Str::new(alias)).collect();
    let raw = BdevV1 {
        size: size_of::<BdevV1>() as u32,
        flags: spec.flags,
        limits: spec.limits,
        io_types: spec.ops.bits(),
        io_flags: u64::from(spec.io_flags.0),
        uuid: spec.uuid,
        nguid: spec.nguid,
        eui64: spec.eui64,
        numa_node: spec.numa_node,
        alias_count: aliases.len() as u32,
        name: Str::new(&spec.name),
        product: Str::new(&spec.product),
        aliases: aliases.as_ptr(),
        ctx: registration.cast::<c_void>(),
        ops: &const { Table::<B>::OPS },
    };
    let mut id = BdevHandle(0);
    // SAFETY: the host copies `raw`; `ctx` stays valid until its destruct was called, which ends the device.
    let code = unsafe { (host.api.bdev_register)(host.me, &raw, op, &mut id) };
    if let Err(error) = Error::check(code, "cannot register the device") {
        forget(&key);
        // SAFETY: the host refused, so nobody else has the registration.
        drop(unsafe { Box::from_raw(registration) });
        let error = if error.code == errno::EEXIST { taken(host, spec) } else { error };
        return Err(error.object(&*spec.name));
    }
    if let Some(device) = devices().get_mut(&key) {
        device.id = id;
    }
    Ok(id)
}

/// Whose the name or the UUID of a device is that cannot be registered for it.
fn taken(host: Host, spec: &BdevSpec) -> Error {
    let uuid = uuid_text(spec.uuid);
    let names = std::iter::once(&spec.name).chain(&spec.aliases).map(|name| ("name", name));
    let holder = names.chain([("UUID", &uuid)]).find_map(|(what, name)| {
        let holder = host.bdev_info(host.find(name)?).ok()?;
        Some(format!("{what} {name} is that of device {} of module {}", holder.name, holder.module))
    });
    Error::new(errno::EEXIST, holder.unwrap_or_else(|| "its name or its UUID is taken".to_owned()))
}

fn uuid_text(uuid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(uuid));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

fn forget(key: &(usize, String)) {
    // The object is dropped after the lock is released: its drop may call the host.
    let removed = devices().remove(key);
    drop(removed);
}

fn devices() -> MutexGuard<'static, HashMap<(usize, String), Device>> {
    DEVICES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The C functions of a device.
struct Table<B>(PhantomData<B>);

impl<B: Bdev> Table<B> {
    const OPS: BdevOpsV1 = BdevOpsV1 {
        size: size_of::<BdevOpsV1>() as u32,
        flags: 0,
        channel_create: channel_create::<B>,
        channel_destroy: channel_destroy::<B>,
        destruct: destruct::<B>,
        dump_json: Some(dump_json::<B>),
        config_json: Some(config_json::<B>),
        reset_stats: Some(reset_stats::<B>),
        stats_json: Some(stats_json::<B>),
        rolled_back: Some(rolled_back::<B>),
    };
}

/// The device behind a callback's first argument.
///
/// # Safety
/// `ctx` is the `Registration<B>` of a device that was not destructed.
unsafe fn device<'a, B>(ctx: *mut c_void) -> &'a Registration<B> {
    // SAFETY: as the caller promises.
    unsafe { &*ctx.cast_const().cast::<Registration<B>>() }
}

unsafe extern "C" fn channel_create<B: Bdev>(ctx: *mut c_void, ch: *mut IoChannel) -> i32 {
    // SAFETY: the host calls with the device's argument and a channel of its own.
    let (device, reactor) = unsafe {
        let device = device::<B>(ctx);
        (device, device.host.reactor_of((*ch).reactor))
    };
    let result = bridge::guard("channel", || {
        let reactor = reactor.ok_or_else(|| Error::io("a channel without a reactor"))?;
        device.bdev.channel(reactor)
    });
    // SAFETY: the host lets the module fill this channel now.
    match result.and_then(|inner| inner).and_then(|channel| unsafe { attach(ch, channel) }) {
        Ok(()) => 0,
        Err(error) => {
            log::error!("channel not opened bdev={} error=\"{error}\"", device.name);
            error.code
        }
    }
}

unsafe extern "C" fn channel_destroy<B: Bdev>(_ctx: *mut c_void, ch: *mut IoChannel) {
    // SAFETY: the host destroys a channel that `channel_create` attached, once, with no I/O outstanding.
    let channel = unsafe { detach::<B::Channel>(ch) };
    bridge::run("the drop of a channel", || drop(channel));
}

unsafe extern "C" fn destruct<B: Bdev>(ctx: *mut c_void, token: RawToken) {
    // SAFETY: the host destructs a device once and does not use its argument afterwards.
    let registration = unsafe { Box::from_raw(ctx.cast::<Registration<B>>()) };
    let Registration { host, name, bdev } = *registration;
    forget(&host.key(&name));
    // SAFETY: the host gives a token of its own, on the control thread.
    let token = unsafe { OpToken::new(host, token) };
    bridge::run("destruct", || bdev.destruct(token));
}

unsafe extern "C" fn dump_json<B: Bdev>(ctx: *mut c_void, sink: *const JsonSink) {
    // SAFETY: the host calls with the device's argument.
    let device = unsafe { device::<B>(ctx) };
    let value = bridge::guard("dump", || device.bdev.dump()).unwrap_or_else(|_| serde_json::json!({}));
    // SAFETY: the sink is valid for the call.
    unsafe { write_json(&value, sink) };
}

unsafe extern "C" fn config_json<B: Bdev>(ctx: *mut c_void, sink: *const JsonSink) {
    // SAFETY: the host calls with the device's argument.
    let device = unsafe { device::<B>(ctx) };
    if let Ok(Some(value)) = bridge::guard("config", || device.bdev.config()) {
        // SAFETY: the sink is valid for the call.
        unsafe { write_json(&value, sink) };
    }
}

unsafe extern "C" fn stats_json<B: Bdev>(ctx: *mut c_void, sink: *const JsonSink) {
    // SAFETY: the host calls with the device's argument.
    let device = unsafe { device::<B>(ctx) };
    if let Ok(Some(value)) = bridge::guard("statistics", || device.bdev.statistics()) {
        // SAFETY: the sink is valid for the call.
        unsafe { write_json(&value, sink) };
    }
}

unsafe extern "C" fn reset_stats<B: Bdev>(ctx: *mut c_void) {
    // SAFETY: the host calls with the device's argument.
    let device = unsafe { device::<B>(ctx) };
    bridge::run("reset_statistics", || device.bdev.reset_statistics());
}

unsafe extern "C" fn rolled_back<B: Bdev>(ctx: *mut c_void) {
    // SAFETY: the host calls with the device's argument, before it destructs it.
    let device = unsafe { device::<B>(ctx) };
    bridge::run("rolled_back", || device.bdev.rolled_back());
}

/// # Safety
/// `sink` is valid for the call.
pub(crate) unsafe fn write_json(value: &serde_json::Value, sink: *const JsonSink) {
    let text = value.to_string();
    // SAFETY: as the caller promises; the text is borrowed for the call.
    unsafe { ((*sink).write)((*sink).arg, Str::new(&text)) };
}
