//! What is arranged anew because it could not be before: timers for which a
//! reactor had no room. Looked at each second, as long as there are controllers, by
//! a poller, which is registered once and so cannot be refused when it is needed.

use std::rc::Rc;

use tenon_sdk::{Poll, Reason};

use crate::controller::Controller;
use crate::module;
use crate::registry::Registry;
use crate::side::Side;

impl Registry {
    /// Begins to look after controllers, if nobody does.
    pub(crate) fn begin_upkeep(&self) {
        if self.upkeep.borrow().is_some() {
            return;
        }
        let poller = self.host.poller("nvme upkeep", PERIOD_US, || {
            if let Some(registry) = module::registry() {
                registry.look_after();
            }
            Poll::Idle
        });
        match poller {
            Ok(poller) => *self.upkeep.borrow_mut() = Some(poller),
            Err(error) => log::error!("controllers are not looked after error=\"{error}\""),
        }
    }

    /// Ends that if there are no controllers any more.
    pub(crate) fn end_upkeep(&self) {
        if self.controllers.borrow().is_empty() && self.discoverers.borrow().is_empty() {
            let poller = self.upkeep.take();
            drop(poller);
        }
    }

    fn look_after(&self) {
        let discoverers: Vec<Rc<Controller>> = self.discoverers.borrow().values().cloned().collect();
        for controller in self.controllers(None).iter().chain(&discoverers) {
            controller.keep_up();
        }
        self.discoveries().iter().for_each(|discovery| discovery.keep_up());
        let now_ns = self.host.now_ns();
        for device in self.devices().iter().filter(|device| device.is_absent_too_long(now_ns)) {
            self.remove_device(device, Reason::DEADLINE);
        }
        if self.kick_is_owed.take() {
            let host = self.host;
            let visit = move |_| {
                if let Some(side) = Side::existing(host) {
                    side.kick();
                }
            };
            if let Err(error) = host.each_reactor(visit, || {}) {
                log::error!("i/o may wait longer than it should error=\"{error}\"");
            }
        }
    }
}

/// Microseconds between two looks.
const PERIOD_US: u64 = 1_000_000;
