//! Devices of others: opening, claiming, hearing of their events, and channels
//! to them. Closing and putting happen when the owner drops the object.
// UNSAFETY: calls the functions of the host's table; event closures travel through the host as raw pointers.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use tenon_abi::{
    BdevEvent, BdevEventKind, BdevFlags, BdevHandle, BdevInfo as RawInfo, BdevIo, BdevState, ClaimKind,
    DescHandle, EventFn, IoChannel, IoFlags, IoOpsV1, Limits, OpenFlags, Reason, Str, reaches,
};

use crate::host::ControlOnly;
use crate::module::text;
use crate::op::OpSet;
use crate::{Error, Host, bridge, errno};

/// How a device is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    Write,
}

/// What a claim asks for. It belongs to the descriptor and ends with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// One module owns the device; others may only read.
    ExclusiveWrite,
    /// Many readers, the claiming descriptor writes.
    ReadManyWriteOne,
    /// Nobody writes.
    ReadManyWriteNone,
    /// Many writers that present the same key.
    ReadManyWriteShared(u64),
}

/// What happened to a device that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseEvent {
    /// The device goes away: unregister what is built on it, drop the descriptor before the time `deadline_ns`.
    /// Once per descriptor.
    Remove {
        /// Why.
        reason: Reason,
        /// By which time of [`Host::now_ns`]; 0: none.
        deadline_ns: u64,
    },
    /// The capacity changed.
    Resize {
        /// Blocks now.
        num_blocks: u64,
    },
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
    /// Backing gone; I/O waits.
    Absent {
        /// Until this time of [`Host::now_ns`]; 0: no limit.
        deadline_ns: u64,
    },
    /// Backing back, same identity.
    Present,
    /// The device asks for media management.
    MediaManagement,
    /// An event of a newer host.
    Unknown(u32),
}

/// What is known about a device.
#[derive(Clone, Debug)]
pub struct BdevInfo {
    /// The device.
    pub id: BdevHandle,
    /// Unique name.
    pub name: String,
    /// What kind of device.
    pub product: String,
    /// Module that registered it.
    pub module: String,
    /// Properties.
    pub flags: BdevFlags,
    /// Geometry and limits now.
    pub limits: Limits,
    /// Operations this version knows.
    pub ops: OpSet,
    /// I/O flags.
    pub io_flags: IoFlags,
    /// Identity.
    pub uuid: [u8; 16],
    /// NVMe Namespace Globally Unique Identifier, or zero.
    pub nguid: [u8; 16],
    /// IEEE EUI-64, or zero.
    pub eui64: [u8; 8],
    /// NUMA node, or -1.
    pub numa_node: i32,
    /// Lifecycle state.
    pub state: BdevState,
}

/// An open device; closes, and ends its claim, when dropped (and every channel of it is).
///
/// May be moved to and used on any reactor for [`Descriptor::channel`]; everything else is the control thread's.
#[derive(Clone)]
pub struct Descriptor(Arc<Opened>);

struct Opened {
    host: Host,
    desc: DescHandle,
    info: BdevInfo,
    /// The event closure, until the descriptor is closed.
    events: ControlOnly<*const c_void>,
    release: unsafe fn(*const c_void),
}

/// A channel to a device below, on the reactor that opened it; put when the last clone is dropped.
///
/// Drop it only when none of your I/O is on it any longer. A plain field of a [`crate::Channel`] is right: the
/// host drops that one only when all its I/O is done.
#[derive(Clone)]
pub struct BaseChannel {
    raw: NonNull<IoChannel>,
    io_ctx_size: u32,
    owner: Rc<Gotten>,
}

struct Gotten {
    raw: NonNull<IoChannel>,
    opened: Arc<Opened>,
}

impl Host {
    /// Opens the device of that name, alias or UUID. `on_event` runs on the control thread; after
    /// [`BaseEvent::Remove`] the device must be closed.
    ///
    /// # Errors
    /// [`Error::missing_base`] if there is none, `-EPERM` if a claim forbids it.
    pub fn open(
        &self,
        name: &str,
        access: Access,
        on_event: impl Fn(&BaseEvent) + 'static,
    ) -> Result<Descriptor, Error> {
        // SAFETY: the text is borrowed for the call.
        let id = unsafe { (self.api.bdev_find)(Str::new(name)) };
        if id.0 == 0 {
            return Err(Error::missing_base(name));
        }
        self.open_named(id, name, access, on_event)
    }

    /// As [`Host::open`], by handle, e.g. of [`crate::Examined`].
    ///
    /// # Errors
    /// `-ENODEV` if it is gone or going, `-EPERM` if a claim forbids it.
    pub fn open_id(
        &self,
        id: BdevHandle,
        access: Access,
        on_event: impl Fn(&BaseEvent) + 'static,
    ) -> Result<Descriptor, Error> {
        let name = self.bdev_info(id)?.name;
        self.open_named(id, &name, access, on_event)
    }

    fn open_named<F: Fn(&BaseEvent) + 'static>(
        &self,
        id: BdevHandle,
        name: &str,
        access: Access,
        on_event: F,
    ) -> Result<Descriptor, Error> {
        let info = self.bdev_info(id).map_err(|error| named(error, name))?;
        let flags = match access {
            Access::Read => OpenFlags::READ,
            Access::Write => OpenFlags::WRITE,
        };
        let events = Rc::into_raw(Rc::new(on_event)).cast::<c_void>();
        let mut desc = DescHandle(0);
        // SAFETY: `events` stays valid until the descriptor is closed.
        let code = unsafe {
            (self.api.bdev_open)(self.me, id, flags, EventFn(event::<F>), events.cast_mut(), &mut desc)
        };
        Error::check(code, "cannot open the base device").map_err(|error| {
            // SAFETY: the host refused, so nobody else has the closure.
            unsafe { drop_events::<F>(events) };
            named(error, name)
        })?;
        let (events, release) = (ControlOnly(events), drop_events::<F> as unsafe fn(*const c_void));
        Ok(Descriptor(Arc::new(Opened { host: *self, desc, info, events, release })))
    }

    /// The device of that name, alias or UUID.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<BdevHandle> {
        // SAFETY: the text is borrowed for the call.
        let id = unsafe { (self.api.bdev_find)(Str::new(name)) };
        (id.0 != 0).then_some(id)
    }

    /// What is known about a device.
    ///
    /// # Errors
    /// `-ENODEV` if it is gone.
    pub fn bdev_info(&self, id: BdevHandle) -> Result<BdevInfo, Error> {
        let mut raw = RawInfo {
            size: size_of::<RawInfo>() as u32,
            flags: BdevFlags(0),
            bdev: id,
            limits: Limits::new(512, 0),
            io_types: 0,
            io_flags: 0,
            uuid: [0; 16],
            nguid: [0; 16],
            eui64: [0; 8],
            numa_node: -1,
            state: BdevState::DESTROYED,
            name: Str::EMPTY,
            product: Str::EMPTY,
            module: Str::EMPTY,
        };
        // SAFETY: the host fills `raw` as far as its `size`; every field has a value before.
        Error::check(unsafe { (self.api.bdev_info)(id, &mut raw) }, "cannot read about the device")?;
        // SAFETY: the texts are valid until the next call of the host, and copied here.
        let [name, product, module] =
            [raw.name, raw.product, raw.module].map(|field| unsafe { text(field) }.to_owned());
        Ok(BdevInfo {
            id: raw.bdev,
            name,
            product,
            module,
            flags: raw.flags,
            limits: raw.limits,
            ops: OpSet::from_bits(raw.io_types),
            io_flags: IoFlags(raw.io_flags as u16),
            uuid: raw.uuid,
            nguid: raw.nguid,
            eui64: raw.eui64,
            numa_node: raw.numa_node,
            state: raw.state,
        })
    }
}

impl Descriptor {
    /// The device.
    #[must_use]
    pub fn id(&self) -> BdevHandle {
        self.0.info.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.info.name
    }

    /// What was known about it when it was opened. Any thread.
    #[must_use]
    pub fn opened_info(&self) -> &BdevInfo {
        &self.0.info
    }

    /// What is known about it now.
    ///
    /// # Errors
    /// `-ENODEV` if it is gone.
    pub fn info(&self) -> Result<BdevInfo, Error> {
        self.0.host.bdev_info(self.id())
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> Host {
        self.0.host
    }

    /// Claims the device for this descriptor.
    ///
    /// # Errors
    /// `-EPERM` if another claim forbids it.
    pub fn claim(&self, claim: Claim) -> Result<(), Error> {
        let (kind, key) = match claim {
            Claim::ExclusiveWrite => (ClaimKind::EXCL_WRITE, 0),
            Claim::ReadManyWriteOne => (ClaimKind::READ_MANY_WRITE_ONE, 0),
            Claim::ReadManyWriteNone => (ClaimKind::READ_MANY_WRITE_NONE, 0),
            Claim::ReadManyWriteShared(key) => (ClaimKind::READ_MANY_WRITE_SHARED, key),
        };
        // SAFETY: a live descriptor.
        let code = unsafe { (self.0.host.api.bdev_claim)(self.0.desc, kind, key) };
        Error::check(code, "cannot claim the base device").map_err(|error| named(error, self.name()))
    }

    /// A channel on the calling reactor. On a reactor.
    ///
    /// # Errors
    /// `-ENODEV` if the device is gone, its module failed to open it, or memory is short.
    pub fn channel(&self) -> Result<BaseChannel, Error> {
        // SAFETY: a live descriptor; off a reactor the host gives null.
        let raw = unsafe { (self.0.host.api.channel_get)(self.0.desc) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            Error::new(errno::ENODEV, "cannot open a channel to the base device").object(self.name())
        })?;
        // SAFETY: a channel just opened; its context size never changes.
        let io_ctx_size = unsafe { raw.as_ref().io_ctx_size };
        let owner = Rc::new(Gotten { raw, opened: Arc::clone(&self.0) });
        Ok(BaseChannel { raw, io_ctx_size, owner })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let (host, desc, release) = (self.host, self.desc, self.release);
        let events = ControlOnly(self.events.0);
        let close = move || {
            let events = events;
            // SAFETY: every channel holds this object, so all are put; after closing there are no more events, and
            // a call of the closure under way holds its own reference.
            unsafe {
                let code = (host.api.bdev_close)(desc);
                if code == 0 {
                    release(events.0);
                } else {
                    log::error!("descriptor unknown to the host code={code}");
                }
            }
        };
        if host.is_control() {
            close();
        } else {
            host.send_surely(host.control(), Box::new(close));
        }
    }
}

impl BaseChannel {
    /// Driver context an I/O on this channel needs, in bytes.
    #[inline(always)]
    #[must_use]
    pub fn io_context_size(&self) -> u32 {
        self.io_ctx_size
    }

    /// What was known about the device when it was opened.
    #[must_use]
    pub fn info(&self) -> &BdevInfo {
        &self.owner.opened.info
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> Host {
        self.owner.opened.host
    }

    #[inline(always)]
    pub(crate) fn as_raw(&self) -> *mut IoChannel {
        self.raw.as_ptr()
    }

    /// Asks the device to finish a child early.
    pub(crate) fn abort(&self, child: *mut BdevIo) -> bool {
        // SAFETY: the channel is held, and the child is only a name to look for.
        unsafe {
            let ops = (*self.as_raw()).ops;
            match reached(ops, std::mem::offset_of!(IoOpsV1, abort)).then(|| (*ops).abort).flatten() {
                Some(abort) => abort(self.as_raw(), child) == 0,
                None => false,
            }
        }
    }

    /// Returns memory a child was lent.
    ///
    /// # Safety
    /// `child` completed with lent memory on this channel, and its memory has not been returned.
    pub(crate) unsafe fn release(&self, child: *mut BdevIo) {
        // SAFETY: as the caller promises; the channel is held.
        unsafe { release_on(self.as_raw(), child) };
    }
}

impl Drop for Gotten {
    fn drop(&mut self) {
        // SAFETY: one `channel_get` is returned, on its reactor: `Gotten` is not `Send`.
        unsafe { (self.opened.host.api.channel_put)(self.raw.as_ptr()) }
    }
}

/// Returns memory a child was lent on `ch`.
///
/// # Safety
/// `ch` is held by a base channel, and `child` completed on it with memory that has not been returned.
#[cold]
pub(crate) unsafe fn release_on(ch: *mut IoChannel, child: *mut BdevIo) {
    // SAFETY: as the caller promises.
    unsafe {
        let ops = (*ch).ops;
        if let Some(release) =
            reached(ops, std::mem::offset_of!(IoOpsV1, release)).then(|| (*ops).release).flatten()
        {
            release(ch, child);
        }
    }
}

/// True if the table reaches the callback at `offset`.
///
/// # Safety
/// `ops` is a table.
unsafe fn reached(ops: *const IoOpsV1, offset: usize) -> bool {
    // SAFETY: every table has its size.
    reaches(unsafe { (*ops).size }, offset + size_of::<usize>())
}

fn named(error: Error, name: &str) -> Error {
    if error.code == errno::ENODEV { Error::missing_base(name) } else { error.object(name) }
}

/// # Safety
/// `arg` is the closure of an open descriptor, `event` valid for the call; control thread.
unsafe extern "C" fn event<F: Fn(&BaseEvent)>(arg: *mut c_void, event: *const BdevEvent) {
    let closure = arg.cast_const().cast::<F>();
    // SAFETY: the descriptor's reference exists; ours lets the closure drop the descriptor.
    let (on_event, event) = unsafe {
        Rc::increment_strong_count(closure);
        (Rc::from_raw(closure), &*event)
    };
    let event = match event.kind {
        BdevEventKind::REMOVE => BaseEvent::Remove { reason: event.reason, deadline_ns: event.deadline_ns },
        BdevEventKind::RESIZE => BaseEvent::Resize { num_blocks: event.value },
        BdevEventKind::DEGRADED => BaseEvent::Degraded,
        BdevEventKind::HEALTHY => BaseEvent::Healthy,
        BdevEventKind::PATH_CHANGED => BaseEvent::PathChanged,
        BdevEventKind::READ_ONLY => BaseEvent::ReadOnly,
        BdevEventKind::WRITABLE => BaseEvent::Writable,
        BdevEventKind::ABSENT => BaseEvent::Absent { deadline_ns: event.deadline_ns },
        BdevEventKind::PRESENT => BaseEvent::Present,
        BdevEventKind::MEDIA_MANAGEMENT => BaseEvent::MediaManagement,
        BdevEventKind(other) => BaseEvent::Unknown(other),
    };
    bridge::run("an event of a base device", || on_event(&event));
}

/// # Safety
/// `events` came from `Rc::into_raw` and is given up; control thread.
unsafe fn drop_events<F>(events: *const c_void) {
    // SAFETY: the caller gives up the reference.
    drop(unsafe { Rc::from_raw(events.cast::<F>()) });
}

/// What the tests of the data path need: a channel without a host behind it.
#[cfg(test)]
impl BaseChannel {
    pub(crate) fn of_raw(raw: *mut IoChannel) -> BaseChannel {
        let raw = NonNull::new(raw).unwrap();
        let info = BdevInfo {
            id: BdevHandle(1),
            name: "b0".into(),
            product: String::new(),
            module: String::new(),
            flags: BdevFlags(0),
            limits: Limits::new(512, 1024),
            ops: OpSet::ALL,
            io_flags: IoFlags::NONE,
            uuid: [0; 16],
            nguid: [0; 16],
            eui64: [0; 8],
            numa_node: -1,
            state: BdevState::READY,
        };
        unsafe fn nothing(_: *const c_void) {}
        let host = crate::stub::host();
        let events = ControlOnly(std::ptr::null());
        let opened = Arc::new(Opened { host, desc: DescHandle(1), info, events, release: nothing });
        // SAFETY: the test keeps the channel.
        let io_ctx_size = unsafe { raw.as_ref().io_ctx_size };
        BaseChannel { raw, io_ctx_size, owner: Rc::new(Gotten { raw, opened }) }
    }
}
