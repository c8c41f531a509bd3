//! RESET: one at a time per device; the host freezes the device and waits
//! until its module holds no I/O before the module sees the reset.
// UNSAFETY: reads flights by their address.

use std::rc::Rc;

use tenon_abi::IoStatus;

use super::device::Device;
use super::flight::{Flight, FlightState};
use super::world::World;

impl World {
    /// Queues a reset and freezes the device.
    pub(crate) fn start_reset(self: &Rc<World>, device: &Rc<Device>, flight: *mut Flight) {
        device.resets.borrow_mut().push_back(flight);
        if !device.is_frozen.replace(true) {
            let device = Rc::clone(device);
            self.post(super::schedule::CONTROL, move |world| world.progress_resets(&device));
        }
    }

    /// Gives the next reset to the module once nothing else is with it; thaws the device after the last.
    pub(crate) fn progress_resets(self: &Rc<World>, device: &Rc<Device>) {
        if !device.is_frozen.get() || self.is_busy(device) {
            return;
        }
        let next = device.resets.borrow_mut().pop_front();
        match next {
            Some(flight) => self.submit_reset(flight),
            None => {
                device.is_frozen.set(false);
                self.resume_waiting(device);
            }
        }
    }

    /// On the consumer's reactor.
    fn submit_reset(&self, flight: *mut Flight) {
        // SAFETY: what was in the queue of resets is live.
        let (cookie, reactor) = unsafe { ((*flight).cookie, (*(*flight).gate).reactor) };
        self.post(reactor, move |world| {
            let Some(flight) = world.flights.get(cookie) else { return };
            // SAFETY: as above.
            let (state, device) = unsafe { ((*flight).state.get(), Rc::clone(&(*(*flight).channel).device)) };
            if state != FlightState::Held {
                return;
            }
            if device.state.get().is_open_to_consumers() {
                world.forward(flight);
            } else {
                world.finish(flight, IoStatus::NO_DEVICE);
            }
        });
    }
}
