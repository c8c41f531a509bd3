//! Descriptors: open devices, and the claims that end with them.
//!
//! Opening and closing happens on the control reactor. The table that tells the
//! gate behind a descriptor is shared with all reactors, as `channel_get` needs
//! it there. Delivers nothing itself: see `event`.
// UNSAFETY: a channel is a raw pointer, as the ABI has it.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;

use tenon_abi::{BdevHandle, DescHandle, EventFn, IoChannel, errno};

use crate::claim::{Claim, Holding, Owner, may_claim, may_open};
use crate::core::{Core, WeakCore};
use crate::error::OpError;
use crate::event::Event;
use crate::io::{ChannelError, Gate};
use crate::slab::{Kind, Slab};
use crate::snapshot::BdevSnapshot;
use crate::thread;

/// Open descriptors, as the control reactor knows them.
pub(crate) struct Descriptors {
    slab: Slab<OpenDescriptor>,
}

/// One open descriptor. Its owner, mode and claim are in the device's record.
pub(crate) struct OpenDescriptor {
    pub bdev: BdevHandle,
    pub sink: EventSink,
    pub pending: VecDeque<Event>,
    /// A delivery is under way or queued.
    pub is_scheduled: bool,
    /// REMOVE is among what was queued: the last event there is.
    pub is_removal_told: bool,
}

/// Who hears of a device's events.
#[derive(Clone)]
pub(crate) enum EventSink {
    Module { callback: EventFn, arg: *mut c_void },
    Host(EventListener),
}

/// Called with each event of a device.
type EventListener = Rc<RefCell<dyn FnMut(&Event)>>;

/// The gate behind each descriptor, for all reactors.
#[derive(Default)]
pub(crate) struct DescriptorTable {
    gates: HashMap<u64, (Arc<Gate>, bool)>,
}

/// An open device of a layer of the host. Dropping it closes the device and releases its claim.
#[must_use = "dropping a descriptor closes the device"]
pub struct Descriptor {
    core: WeakCore,
    handle: DescHandle,
    bdev: BdevHandle,
}

/// A channel of a device on one reactor. Dropping it, there, puts it.
#[derive(Debug)]
pub struct Channel {
    raw: *mut IoChannel,
}

impl Default for Descriptors {
    fn default() -> Self {
        Self { slab: Slab::new(Kind::Descriptor, MAX_DESCRIPTORS) }
    }
}

impl Descriptors {
    pub(crate) fn get_mut(&mut self, desc: DescHandle) -> Option<&mut OpenDescriptor> {
        self.slab.get_mut(desc.0)
    }

    pub(crate) fn bdev_of(&self, desc: DescHandle) -> Option<BdevHandle> {
        self.slab.get(desc.0).map(|open| open.bdev)
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn pending(&self) -> usize {
        self.slab.iter().map(|(_, open)| open.pending.len()).sum()
    }
}

impl Core {
    /// Opens a device in service by name, alias or UUID. `owner` is shown to operators and compared by
    /// claims; `on_event` hears of the device, never from inside a call of its owner.
    pub fn open(
        &self,
        name: &str,
        owner: &str,
        write: bool,
        on_event: impl FnMut(&Event) + 'static,
    ) -> Result<Descriptor, OpError> {
        let bdev = self.find(name).ok_or_else(|| self.not_there(name))?;
        self.open_handle(bdev, owner, write, on_event)
    }

    /// As [`Core::open`], by handle.
    pub fn open_handle(
        &self,
        bdev: BdevHandle,
        owner: &str,
        write: bool,
        on_event: impl FnMut(&Event) + 'static,
    ) -> Result<Descriptor, OpError> {
        let sink = EventSink::Host(Rc::new(RefCell::new(on_event)));
        let handle = self.open_descriptor(bdev, Owner::Host(owner.into()), write, sink)?;
        Ok(Descriptor { core: self.downgrade(), handle, bdev })
    }

    pub(crate) fn open_descriptor(
        &self,
        bdev: BdevHandle,
        owner: Owner,
        write: bool,
        sink: EventSink,
    ) -> Result<DescHandle, OpError> {
        let mut registry = self.inner.registry.borrow_mut();
        let Some(record) = registry.get_mut(bdev) else {
            return Err(OpError::new(errno::ENODEV, "", "device is gone"));
        };
        if !record.state().may_be_opened() {
            return Err(OpError::new(errno::ENODEV, &*record.name, "device is going"));
        }
        may_open(&record.descriptors, &owner, write).map_err(|refusal| {
            OpError::new(errno::EPERM, &*record.name, "device cannot be opened for writing")
                .with_cause(refusal)
        })?;
        let open = OpenDescriptor {
            bdev,
            sink,
            pending: VecDeque::new(),
            is_scheduled: false,
            is_removal_told: false,
        };
        let inserted = self.inner.descriptors.borrow_mut().slab.insert(open);
        let Ok(raw) = inserted else {
            return Err(OpError::new(errno::ENOSPC, &*record.name, "too many descriptors are open"));
        };
        let desc = DescHandle(raw);
        log::debug!("bdev opened bdev={} owner={owner} write={write}", record.name);
        record.descriptors.push(Holding { desc, owner, write, claim: None });
        self.inner.shared.descriptors.write().gates.insert(raw, (record.gate.clone(), write));
        Ok(desc)
    }

    /// Closes a descriptor and releases its claim. False if it is not open.
    pub(crate) fn close_descriptor(&self, desc: DescHandle) -> bool {
        let entry = self.inner.shared.descriptors.write().gates.remove(&desc.0);
        let open = self.inner.descriptors.borrow_mut().slab.remove(desc.0);
        let Some(open) = open else { return false };
        if let Some(record) = self.inner.registry.borrow_mut().get_mut(open.bdev) {
            record.descriptors.retain(|holding| holding.desc != desc);
            log::debug!("bdev closed bdev={}", record.name);
        }
        let bdev = open.bdev;
        self.later(move |core| core.removal_check(bdev));
        // Closures of the opener and the gate are dropped with no record borrowed.
        drop((entry, open));
        true
    }

    pub(crate) fn claim_descriptor(&self, desc: DescHandle, claim: Claim) -> Result<(), OpError> {
        let closed = || OpError::new(errno::ENODEV, "", "descriptor is not open");
        let bdev = self.inner.descriptors.borrow().bdev_of(desc).ok_or_else(closed)?;
        let mut registry = self.inner.registry.borrow_mut();
        let record = registry.get_mut(bdev).ok_or_else(closed)?;
        if !record.state().may_be_opened() {
            return Err(OpError::new(errno::ENODEV, &*record.name, "device is going"));
        }
        may_claim(&record.descriptors, desc, claim).map_err(|refusal| {
            let code = match refusal {
                crate::claim::Refusal::NoKey => errno::EINVAL,
                crate::claim::Refusal::Claimed { .. }
                | crate::claim::Refusal::OpenForWriting { .. }
                | crate::claim::Refusal::Twice { .. } => errno::EPERM,
            };
            OpError::new(code, &*record.name, format!("claim {claim} is refused")).with_cause(refusal)
        })?;
        let Some(holding) = record.descriptors.iter_mut().find(|holding| holding.desc == desc) else {
            return Err(closed());
        };
        holding.claim = Some(claim);
        if claim.writes() && !holding.write {
            holding.write = true;
            if let Some(entry) = self.inner.shared.descriptors.write().gates.get_mut(&desc.0) {
                entry.1 = true;
            }
        }
        log::debug!("bdev claimed bdev={} owner={} claim={claim}", holding.owner, record.name);
        Ok(())
    }

    /// Every descriptor that `module` has not closed.
    pub(crate) fn descriptors_of_module(&self, module: u32) -> Vec<(DescHandle, Arc<str>)> {
        let registry = self.inner.registry.borrow();
        let mut found = Vec::new();
        for record in registry.iter() {
            for holding in &record.descriptors {
                if matches!(&holding.owner, Owner::Module(owner) if owner.id() == module) {
                    found.push((holding.desc, record.name.clone()));
                }
            }
        }
        found
    }
}

impl Descriptor {
    /// What reactors need for [`channel_get`].
    pub fn handle(&self) -> DescHandle {
        self.handle
    }

    /// The device.
    pub fn bdev(&self) -> BdevHandle {
        self.bdev
    }

    /// Claims the device for this descriptor, until it is closed.
    pub fn claim(&self, claim: Claim) -> Result<(), OpError> {
        match self.core.upgrade() {
            Some(core) => core.claim_descriptor(self.handle, claim),
            None => Err(OpError::new(errno::ESHUTDOWN, "", "host is shutting down")),
        }
    }

    /// What is known of the device now.
    pub fn snapshot(&self) -> Option<BdevSnapshot> {
        self.core.upgrade()?.snapshot_of(self.bdev)
    }

    /// The capacity now; 0 if the device is gone.
    pub fn num_blocks(&self) -> u64 {
        let Some(core) = self.core.upgrade() else { return 0 };
        let registry = core.inner.registry.borrow();
        registry.get(self.bdev).map_or(0, |record| record.gate.num_blocks())
    }

    /// Closes the device; the same as dropping the descriptor.
    pub fn close(self) {}
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.close_descriptor(self.handle);
        }
    }
}

/// The descriptor's channel on the calling reactor, opened on first use and counted.
pub fn channel_get(desc: DescHandle) -> Result<Channel, ChannelError> {
    channel_get_raw(desc).map(|raw| Channel { raw })
}

/// As [`channel_get`], without an owner: whoever gets it puts it.
pub(crate) fn channel_get_raw(desc: DescHandle) -> Result<*mut IoChannel, ChannelError> {
    let shared = thread::shared().ok_or_else(|| ChannelError::NoReactor(Arc::from("")))?;
    // The lock is not held while the module opens its channel.
    let entry = shared.descriptors.read().gates.get(&desc.0).cloned();
    let (gate, write) = entry.ok_or_else(|| ChannelError::Gone(Arc::from("")))?;
    gate.channel_get(desc, write)
}

impl Channel {
    /// For [`tenon_abi::submit`].
    pub fn as_ptr(&self) -> *mut IoChannel {
        self.raw
    }

    /// Driver context an I/O on this channel needs, in bytes.
    pub fn io_ctx_size(&self) -> u32 {
        // SAFETY: the channel lives until it is put, which `drop` does.
        unsafe { (*self.raw).io_ctx_size }
    }

    /// Gives up ownership; undone by [`Channel::from_raw`].
    pub fn into_raw(self) -> *mut IoChannel {
        let raw = self.raw;
        std::mem::forget(self);
        raw
    }

    /// Takes ownership of one [`channel_get`].
    ///
    /// # Safety
    /// `raw` came from [`Channel::into_raw`], once, on the same reactor.
    pub unsafe fn from_raw(raw: *mut IoChannel) -> Channel {
        Channel { raw }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if tenon_reactor::try_current().is_none() {
            log::error!("channel was dropped away from its reactor, it stays open");
            return;
        }
        // SAFETY: `raw` is one counted `channel_get` of this reactor (`Channel` is not `Send`), put once.
        unsafe { Gate::channel_put(self.raw) };
    }
}

/// Most open descriptors.
const MAX_DESCRIPTORS: usize = 1 << 20;
