//! Descriptors and claims. A claim belongs to a descriptor and ends with it.
// UNSAFETY: looks at raw channels, which live as long as the world.

use std::cell::Cell;
use std::ffi::c_void;
use std::rc::Rc;

use tenon_abi::{ClaimKind, EventFn, OpenFlags, errno};

use super::device::Device;
use super::module::ModuleId;
use super::world::World;
use crate::violation::Fault;

pub(crate) struct Desc {
    pub(crate) id: u64,
    pub(crate) device: Rc<Device>,
    pub(crate) module: ModuleId,
    pub(crate) may_write: bool,
    pub(crate) on_event: EventFn,
    pub(crate) arg: *mut c_void,
    pub(crate) claim: Cell<Option<(ClaimKind, u64)>>,
    pub(crate) was_told: Cell<bool>,
}

impl World {
    pub(crate) fn descriptor(&self, id: u64) -> Option<Rc<Desc>> {
        self.descriptors.borrow().get(id)
    }

    /// The descriptors that hold a claim on `device`.
    pub(crate) fn claims_on(&self, device: &Device) -> impl Iterator<Item = Rc<Desc>> + use<> {
        let held: Vec<Rc<Desc>> =
            device.descriptors.borrow().iter().filter_map(|id| self.descriptor(*id)).collect();
        held.into_iter().filter(|desc| desc.claim.get().is_some())
    }

    /// The open descriptor behind `id`; a handle that never was one is a violation.
    pub(crate) fn expect_descriptor(&self, function: &str, id: u64) -> Option<Rc<Desc>> {
        let found = self.descriptor(id);
        if found.is_none() {
            let closed = self.descriptors.borrow().was_issued(id);
            let what = if closed { "is closed" } else { "never was one" };
            self.violate(Fault::BadCall, format!("{function}: descriptor {id:#x} {what}"));
        }
        found
    }

    pub(crate) fn open(
        &self,
        module: ModuleId,
        bdev: u64,
        flags: OpenFlags,
        on_event: EventFn,
        arg: *mut c_void,
    ) -> Result<u64, i32> {
        let device = self.device(bdev).ok_or(errno::ENODEV)?;
        if !device.state.get().is_open_to_consumers() || !self.may_open(&device, module) {
            return Err(errno::ENODEV);
        }
        let may_write = flags == OpenFlags::WRITE;
        let forbids = |desc: Rc<Desc>| match desc.claim.get() {
            Some((ClaimKind::READ_MANY_WRITE_SHARED, _)) | None => false,
            Some(_) => true,
        };
        if may_write && self.claims_on(&device).any(forbids) {
            return Err(errno::EPERM);
        }
        let id = self.descriptors.borrow_mut().reserve();
        device.descriptors.borrow_mut().push(id);
        let desc = Desc {
            id,
            device,
            module,
            may_write,
            on_event,
            arg,
            claim: Cell::new(None),
            was_told: Cell::new(false),
        };
        self.descriptors.borrow_mut().insert(id, Rc::new(desc));
        Ok(id)
    }

    pub(crate) fn close(self: &Rc<World>, id: u64) -> i32 {
        let Some(desc) = self.expect_descriptor("bdev_close", id) else { return errno::ENODEV };
        if desc.module != self.acting.get() {
            self.violate(
                Fault::BadCall,
                format!("bdev_close of another module's descriptor of `{}`", desc.device.name),
            );
            return errno::EPERM;
        }
        if self.has_channels(&desc) {
            let detail = format!("bdev_close of `{}` with channels that were not put", desc.device.name);
            self.violate(Fault::ChannelLeaked, detail);
            return errno::EBUSY;
        }
        self.take_descriptor(&desc);
        0
    }

    /// Ends a descriptor with its claim.
    pub(crate) fn take_descriptor(self: &Rc<World>, desc: &Desc) {
        desc.device.descriptors.borrow_mut().retain(|other| *other != desc.id);
        self.descriptors.borrow_mut().remove(desc.id);
        self.progress_removal(&desc.device);
    }

    fn has_channels(&self, desc: &Desc) -> bool {
        // SAFETY: channels live as long as the world.
        desc.device.gates.borrow().iter().any(|gate| unsafe { (**gate).desc } == desc.id)
    }

    pub(crate) fn claim(&self, id: u64, kind: ClaimKind, key: u64) -> i32 {
        let Some(desc) = self.expect_descriptor("bdev_claim", id) else { return errno::ENODEV };
        if !(ClaimKind::EXCL_WRITE.0..=ClaimKind::READ_MANY_WRITE_SHARED.0).contains(&kind.0) {
            return errno::EINVAL;
        }
        if !desc.device.state.get().is_open_to_consumers() {
            return errno::ENODEV;
        }
        let goes_with = |other: &Rc<Desc>| match other.claim.get() {
            Some((ClaimKind::READ_MANY_WRITE_NONE, _)) => kind == ClaimKind::READ_MANY_WRITE_NONE,
            Some((ClaimKind::READ_MANY_WRITE_SHARED, other_key)) => {
                kind == ClaimKind::READ_MANY_WRITE_SHARED && key == other_key
            }
            Some(_) | None => false,
        };
        if self.claims_on(&desc.device).any(|other| other.id != id && !goes_with(&other)) {
            return errno::EPERM;
        }
        let others: Vec<Rc<Desc>> =
            desc.device.descriptors.borrow().iter().filter_map(|id| self.descriptor(*id)).collect();
        let writer =
            others.iter().any(|other| other.id != id && other.may_write && other.claim.get().is_none());
        if writer && kind != ClaimKind::READ_MANY_WRITE_SHARED {
            return errno::EPERM;
        }
        desc.claim.set(Some((kind, key)));
        0
    }

    /// True if a write through `desc` is allowed by the device's claims.
    pub(crate) fn may_write(&self, desc: &Desc) -> bool {
        let is_promoted =
            matches!(desc.claim.get(), Some((kind, _)) if kind != ClaimKind::READ_MANY_WRITE_NONE);
        if !desc.may_write && !is_promoted {
            return false;
        }
        self.claims_on(&desc.device).all(|other| match other.claim.get() {
            Some((ClaimKind::READ_MANY_WRITE_NONE, _)) => false,
            Some((ClaimKind::READ_MANY_WRITE_SHARED, _)) => desc.claim.get().is_some(),
            Some(_) => other.id == desc.id,
            None => true,
        })
    }
}
