//! Removal: orphan, tell every opener once, wait until nobody holds the
//! device, destruct once. Nothing is ever freed under a holder.
// UNSAFETY: calls the module's last callbacks of a device.

use std::mem::offset_of;
use std::rc::Rc;

use tenon_abi::{BdevOpsV1, OpToken, Reason, reaches};

use super::device::Device;
use super::lifecycle::{DeviceEvent, DeviceState};
use super::operation::OpKind;
use super::schedule::{CONTROL, Where};
use super::world::World;
use crate::violation::Fault;

impl World {
    /// Starts the removal; a second call changes nothing.
    pub(crate) fn unregister(self: &Rc<World>, device: &Rc<Device>, reason: Reason) {
        if !device.state.get().is_open_to_consumers() {
            return;
        }
        device.step(DeviceEvent::Unregister);
        device.is_rolled_back.set(reason == Reason::ROLLED_BACK);
        let deadline = self.options.removal_deadline.as_nanos() as u64;
        self.tell_removal(device, reason, self.now_ns() + deadline);
        self.fail_held_io(device);
        let late = Rc::clone(device);
        self.after(CONTROL, deadline, move |world| world.name_holders(&late));
        // From a step of its own: the caller may still use the device's context in this one.
        let device = Rc::clone(device);
        self.post(CONTROL, move |world| {
            world.progress_removal(&device);
            world.progress_operations();
        });
    }

    fn name_holders(&self, device: &Device) {
        if device.state.get() != DeviceState::Orphaned {
            return;
        }
        for id in device.descriptors.borrow().iter() {
            if let Some(desc) = self.descriptor(*id) {
                let detail =
                    format!("`{}` is still open after the deadline of its REMOVE event", device.name);
                self.violate_by(Fault::RemovalIgnored, desc.module, detail);
            }
        }
    }

    /// Destructs the device if nobody holds it any longer.
    pub(crate) fn progress_removal(self: &Rc<World>, device: &Rc<Device>) {
        let is_held = !device.descriptors.borrow().is_empty()
            || !device.channels.borrow().is_empty()
            || device.examining.get() > 0
            || device.notices.get() > 0;
        if device.state.get() != DeviceState::Orphaned || is_held {
            return;
        }
        device.step(DeviceEvent::Released);
        let device = Rc::clone(device);
        self.post(CONTROL, move |world| world.destruct(&device));
    }

    fn destruct(self: &Rc<World>, device: &Rc<Device>) {
        let label = format!("destruct of `{}`", device.name);
        let operation = self.new_operation(device.owner, label, OpKind::Destruct(Rc::clone(device)), "");
        let watched = Rc::clone(&operation);
        self.after(CONTROL, self.options.operation_deadline.as_nanos() as u64 / 2, move |world| {
            world.give_up(&watched);
        });
        self.enter(Where::Reactor(CONTROL), device.owner, || {
            let end = offset_of!(BdevOpsV1, rolled_back) + size_of::<usize>();
            // SAFETY: the table was checked at registration; the field is read only if the table reaches it.
            let told =
                unsafe { if reaches((*device.ops).size, end) { (*device.ops).rolled_back } else { None } };
            if let (true, Some(told)) = (device.is_rolled_back.get(), told) {
                // SAFETY: the device is not destructed, so its context is valid.
                unsafe { told(device.ctx) };
            }
            // SAFETY: nobody holds the device, and the state admits this call only once.
            unsafe { ((*device.ops).destruct)(device.ctx, OpToken(operation.id)) };
        });
    }

    /// The module has answered the destruct token.
    pub(crate) fn destructed(self: &Rc<World>, device: &Rc<Device>) {
        device.step(DeviceEvent::Destructed);
        self.devices.borrow_mut().remove(device.id);
        self.notifications.borrow_mut().push(("bdev_unregister".to_owned(), device.name.clone()));
        self.post(CONTROL, World::progress_operations);
    }
}
