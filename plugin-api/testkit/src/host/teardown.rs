//! The end of a module and of a fake host, and the census of what is left: a
//! module that has ended must have given everything back.
// UNSAFETY: calls the module's quiesce callback.

use std::rc::Rc;
use std::time::Duration;

use tenon_abi::{Reason, errno};

use super::channel::GateChannel;
use super::device::Device;
use super::flight::FlightState;
use super::module::{self, Module, ModuleId, ModuleState, module_callback};
use super::operation::OpError;
use super::schedule::{CONTROL, Where};
use super::shared::lock;
use super::world::World;
use crate::violation::Fault;

impl World {
    fn devices_of(&self, module: ModuleId) -> Vec<Rc<Device>> {
        let all = self.devices.borrow().snapshot();
        all.into_iter().filter(|device| device.owner == module).collect()
    }

    /// Removes every device of `module`; true if all are gone in time.
    pub(crate) fn remove_devices(self: &Rc<World>, module: ModuleId, reason: Reason) -> bool {
        for device in self.devices_of(module) {
            self.unregister(&device, reason);
        }
        self.run_until(self.options.operation_deadline, || self.devices_of(module).is_empty())
    }

    /// Quiesce, removal of the devices, fini, census.
    pub(crate) fn unregister_module(self: &Rc<World>, module: &Rc<Module>) -> Result<(), OpError> {
        if module.state.get() != ModuleState::Running {
            return Ok(());
        }
        module.state.set(ModuleState::Draining);
        if let Some(quiesce) = module_callback!(module, quiesce) {
            // SAFETY: the module runs, and this is the control thread's turn.
            self.enter(Where::Reactor(CONTROL), module.id, || unsafe { quiesce() });
        }
        let are_gone = self.remove_devices(module.id, Reason::MODULE_UNREGISTERED);
        if !are_gone {
            for device in self.devices_of(module.id) {
                let detail = format!("`{}` is still {:?}", device.name, device.state.get());
                self.violate_by(Fault::DeviceLeaked, module.id, detail);
            }
        }
        let result = if are_gone {
            let operation = self.start_fini(module);
            self.wait_operation(&operation).map(|_| ())
        } else {
            Err(OpError::new(errno::EBUSY, &module.name, "its devices did not go"))
        };
        self.settle();
        module.state.set(ModuleState::Retired);
        self.census(module);
        self.expel(module.id);
        module::release(module.key);
        result
    }

    /// Records what a module that has ended did not give back.
    fn census(&self, module: &Module) {
        let leaked =
            |fault: Fault, what: String| self.violate_by(fault, module.id, format!("left behind: {what}"));
        for (fault, what) in self.schedule.left_by(module.id) {
            leaked(fault, what);
        }
        self.schedule.forget(module.id);
        for gate in self.gates.borrow().iter() {
            // SAFETY: channels live as long as the world.
            let gate = unsafe { &**gate };
            if gate.module == module.id && !gate.is_put.get() {
                leaked(
                    Fault::ChannelLeaked,
                    format!("channel of `{}` on reactor {}", gate.device.name, gate.reactor),
                );
            }
        }
        for desc in self.descriptors.borrow().snapshot().iter().filter(|desc| desc.module == module.id) {
            leaked(Fault::DescriptorLeaked, format!("descriptor of `{}`", desc.device.name));
            if desc.claim.get().is_some() {
                leaked(Fault::ClaimLeaked, format!("claim of `{}`", desc.device.name));
            }
        }
        for operation in self.operations.borrow().snapshot().iter().filter(|found| found.module == module.id)
        {
            self.give_up(operation);
        }
        let blocks = lock(&self.shared.memory);
        let left: Vec<usize> = blocks.of(module.id).map(|block| block.len).collect();
        drop(blocks);
        if !left.is_empty() {
            leaked(
                Fault::MemoryLeaked,
                format!("{} allocations, {} bytes", left.len(), left.iter().sum::<usize>()),
            );
        }
        let buffers = self.buffers_out.borrow().iter().filter(|buffer| buffer.module == module.id).count();
        if buffers > 0 {
            leaked(Fault::BufferLeaked, format!("{buffers} buffers"));
        }
        for watch in self.watches.borrow().iter().filter(|watch| watch.module == module.id) {
            leaked(Fault::WatchLeaked, format!("watch of `{}` in `{}`", watch.id, watch.subsystem));
        }
        if self.subscriptions.borrow().iter().any(|subscription| subscription.module == module.id) {
            leaked(Fault::WatchLeaked, "a memory subscription".to_owned());
        }
        self.methods.borrow_mut().retain(|method| method.module != module.id);
        self.watches.borrow_mut().retain(|watch| watch.module != module.id);
        self.subscriptions.borrow_mut().retain(|subscription| subscription.module != module.id);
    }

    /// Takes away the descriptors and channels a module left behind: nothing of it is called any longer, and the
    /// devices it held can go.
    fn expel(self: &Rc<World>, module: ModuleId) {
        let gates: Vec<*mut GateChannel> = self.gates.borrow().clone();
        // SAFETY: channels live as long as the world.
        let left =
            gates.into_iter().filter(|gate| unsafe { (**gate).module == module && !(**gate).is_put.get() });
        left.for_each(|gate| self.take_channel(gate));
        let open = self.descriptors.borrow().snapshot();
        for desc in open.into_iter().filter(|desc| desc.module == module) {
            self.take_descriptor(&desc);
        }
    }

    /// Records every I/O that is still with a module.
    pub(crate) fn report_lost_io(&self) {
        for flight in self.flights.snapshot() {
            // SAFETY: live flights and their channels are not freed.
            let found = unsafe { &*flight };
            // SAFETY: as above.
            let device = unsafe { &(*found.channel).device };
            let wanted = &found.wanted;
            if found.state.get() == FlightState::Submitted {
                let detail = format!(
                    "`{}` never completed op {} of {} blocks at {}",
                    device.name, wanted.op.0, wanted.num_blocks, wanted.offset_blocks
                );
                self.violate_by(Fault::IoLost, found.owner, detail);
            }
        }
    }

    /// Ends everything in order and records what is left. Does nothing the second time.
    pub(crate) fn finish_all(self: &Rc<World>) {
        if self.is_finished.replace(true) {
            return;
        }
        let waits = || self.flights.snapshot().is_empty() || self.flights_of_tests() == 0;
        if !self.run_until(IO_DEADLINE, waits) {
            self.report_lost_io();
        }
        self.close_consumers();
        let modules: Vec<Rc<Module>> = self.modules.borrow().iter().rev().cloned().collect();
        for module in &modules {
            let _ = self.unregister_module(module);
        }
        if !self.remove_devices(ModuleId::HOST, Reason::SHUTDOWN) {
            for device in self.devices_of(ModuleId::HOST) {
                for id in device.descriptors.borrow().iter() {
                    if let Some(desc) = self.descriptor(*id) {
                        let detail = format!("`{}` cannot go: it is still open", device.name);
                        self.violate_by(Fault::DescriptorLeaked, desc.module, detail);
                    }
                }
            }
        }
        self.check_all_channels();
        self.verify_slots();
    }
}

/// How long the I/Os of a test may take at its end.
const IO_DEADLINE: Duration = Duration::from_secs(10);
