//! Events of devices, delivered to each descriptor as a step of its own on
//! the control reactor; absence and return of a device's backing.
// UNSAFETY: calls consumers' event functions and lends them the event.

use std::rc::Rc;

use tenon_abi::{BdevEvent, BdevEventKind, BdevFlags, BdevHandle, Reason, Str, errno};

use super::descriptor::Desc;
use super::device::Device;
use super::lifecycle::{DeviceEvent, DeviceState};
use super::schedule::{CONTROL, Where};
use super::world::World;
use crate::violation::Fault;

#[derive(Clone)]
struct Notice {
    kind: BdevEventKind,
    reason: Reason,
    value: u64,
    deadline_ns: u64,
    detail: String,
}

impl World {
    fn deliver(&self, desc: &Desc, notice: &Notice) {
        let event = BdevEvent {
            size: size_of::<BdevEvent>() as u32,
            kind: notice.kind,
            bdev: BdevHandle(desc.device.id),
            reason: notice.reason,
            reserved: 0,
            value: notice.value,
            deadline_ns: notice.deadline_ns,
            detail: Str::new(&notice.detail),
        };
        self.enter(Where::Reactor(CONTROL), desc.module, || {
            // SAFETY: the descriptor is open, so its function and argument are valid; the event is lent.
            unsafe { desc.on_event.0(desc.arg, &raw const event) };
        });
    }

    fn tell(&self, device: &Rc<Device>, notice: &Notice) {
        let mut openers = device.descriptors.borrow().clone();
        self.rng.shuffle(&mut openers);
        for id in openers {
            let notice = notice.clone();
            self.post(CONTROL, move |world| {
                let Some(desc) = world.descriptor(id) else { return };
                if !desc.was_told.get() {
                    world.deliver(&desc, &notice);
                }
            });
        }
    }

    pub(crate) fn tell_openers(
        &self,
        device: &Rc<Device>,
        kind: BdevEventKind,
        reason: Reason,
        value: u64,
        deadline_ns: u64,
    ) {
        self.tell(device, &Notice { kind, reason, value, deadline_ns, detail: String::new() });
    }

    /// Tells each descriptor, once, that the device goes.
    pub(crate) fn tell_removal(&self, device: &Rc<Device>, reason: Reason, deadline_ns: u64) {
        let notice =
            Notice { kind: BdevEventKind::REMOVE, reason, value: 0, deadline_ns, detail: String::new() };
        let mut openers = device.descriptors.borrow().clone();
        self.rng.shuffle(&mut openers);
        for id in openers {
            device.notices.set(device.notices.get() + 1);
            let (notice, device) = (notice.clone(), Rc::clone(device));
            self.post(CONTROL, move |world| {
                device.notices.set(device.notices.get() - 1);
                if let Some(desc) = world.descriptor(id)
                    && !desc.was_told.replace(true)
                {
                    world.deliver(&desc, &notice);
                }
                world.progress_removal(&device);
            });
        }
    }

    /// A module publishes an event of its own device.
    pub(crate) fn publish(&self, device: &Rc<Device>, event: &BdevEvent, detail: String) -> i32 {
        let flags = device.flags.get();
        match event.kind {
            BdevEventKind::DEGRADED
            | BdevEventKind::HEALTHY
            | BdevEventKind::PATH_CHANGED
            | BdevEventKind::MEDIA_MANAGEMENT => {}
            BdevEventKind::READ_ONLY => device.flags.set(flags.union(BdevFlags::READ_ONLY)),
            BdevEventKind::WRITABLE => device.flags.set(BdevFlags(flags.0 & !BdevFlags::READ_ONLY.0)),
            other => {
                self.violate(
                    Fault::BadCall,
                    format!("bdev_publish of event {} is the host's to send", other.0),
                );
                return errno::EINVAL;
            }
        }
        let (kind, reason, value, deadline_ns) = (event.kind, event.reason, event.value, event.deadline_ns);
        self.tell(device, &Notice { kind, reason, value, deadline_ns, detail });
        0
    }

    pub(crate) fn set_absent(self: &Rc<World>, device: &Rc<Device>, deadline_ms: u64) -> i32 {
        match device.state.get() {
            DeviceState::Ready | DeviceState::Examining => {}
            DeviceState::Absent => return 0,
            DeviceState::Registering
            | DeviceState::Orphaned
            | DeviceState::Draining
            | DeviceState::Destroyed => {
                return errno::ENODEV;
            }
        }
        device.step(DeviceEvent::BackingGone);
        device.absences.set(device.absences.get() + 1);
        let deadline_ns = if deadline_ms == 0 { 0 } else { self.now_ns() + deadline_ms * 1_000_000 };
        self.tell_openers(device, BdevEventKind::ABSENT, Reason::UNSPECIFIED, 0, deadline_ns);
        if deadline_ms > 0 {
            let (device, absence) = (Rc::clone(device), device.absences.get());
            self.after(CONTROL, deadline_ms * 1_000_000, move |world| {
                if device.state.get() == DeviceState::Absent && device.absences.get() == absence {
                    world.unregister(&device, Reason::DEADLINE);
                }
            });
        }
        0
    }

    pub(crate) fn set_present(self: &Rc<World>, device: &Rc<Device>) -> i32 {
        match device.state.get() {
            DeviceState::Absent => {
                device.step(DeviceEvent::BackingBack);
                self.tell_openers(device, BdevEventKind::PRESENT, Reason::UNSPECIFIED, 0, 0);
                self.resume_waiting(device);
                0
            }
            DeviceState::Registering | DeviceState::Examining | DeviceState::Ready => 0,
            DeviceState::Orphaned | DeviceState::Draining | DeviceState::Destroyed => errno::ENODEV,
        }
    }
}
