//! Properties: what takes the place of a controller's registers over fabrics.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use nvme_spec::command::Sqe;
use nvme_spec::fabrics::{PropertyGet, PropertySet};
use nvme_spec::property::{
    Capabilities, CommandSetSelected, ControllerConfiguration, ControllerStatus, PropertyOffset,
    ReadyTimeouts, ShutdownNotification, ShutdownStatus, Version,
};
use nvme_spec::status::StatusCode;

use super::Controller;
use crate::queue::interface::Answer;
use crate::target::Target;

impl Target {
    pub(super) fn property_get(&self, controller: &Rc<Controller>, sqe: &Sqe) -> Answer {
        let get: &PropertyGet = sqe.view();
        let value = match get.ofst {
            PropertyOffset::CAP => self.capabilities(controller.facts.queue_depth).get(),
            PropertyOffset::VS => u64::from(Version::V2_0.0.get()),
            PropertyOffset::CC => u64::from(controller.cc.get().get()),
            PropertyOffset::CSTS => u64::from(controller.csts.get().get()),
            PropertyOffset::CRTO => u64::from(ReadyTimeouts::from_500ms(READY_TIMEOUT_500MS, 0).get()),
            _ => return Answer::refuse(StatusCode::INVALID_FIELD),
        };
        if get.attrib.size() != get.ofst.size() {
            return Answer::refuse(StatusCode::INVALID_FIELD);
        }
        Answer::result(value)
    }

    pub(super) fn property_set(&self, controller: &Rc<Controller>, sqe: &Sqe) -> Answer {
        let set: &PropertySet = sqe.view();
        if set.ofst != PropertyOffset::CC || set.attrib.size() != set.ofst.size() {
            return Answer::refuse(StatusCode::INVALID_FIELD);
        }
        let new = ControllerConfiguration::new(set.value.get() as u32);
        let old = controller.cc.get();
        let (was_enabled, enables) =
            (old.contains(ControllerConfiguration::EN), new.contains(ControllerConfiguration::EN));
        if enables && !is_acceptable(new) {
            return Answer::refuse(StatusCode::INVALID_FIELD);
        }
        controller.cc.set(new);
        match (was_enabled, enables) {
            (false, true) => {
                controller.csts.set(ControllerStatus::RDY);
                log::debug!("controller enabled cntlid={}", controller.cntlid());
            }
            (true, false) => self.reset(controller),
            (true, true) | (false, false) => {}
        }
        if new.shn() != ShutdownNotification::NONE && old.shn() == ShutdownNotification::NONE {
            controller.csts.set(controller.csts.get().with_shst(ShutdownStatus::OCCURRING));
            self.close_io_queues(controller);
            self.check_shutdown(controller);
        }
        Answer::ok()
    }

    /// A controller that shuts down has done so when its last I/O queue is gone.
    pub(super) fn check_shutdown(&self, controller: &Rc<Controller>) {
        let status = controller.csts.get();
        if status.shst() == ShutdownStatus::OCCURRING && controller.io_queues().is_empty() {
            controller.csts.set(status.with_shst(ShutdownStatus::COMPLETE));
        }
    }

    /// A controller level reset: I/O queues end, and what the host has set is forgotten.
    fn reset(&self, controller: &Rc<Controller>) {
        log::info!("controller reset cntlid={}", controller.cntlid());
        controller.csts.set(ControllerStatus::EMPTY);
        self.close_io_queues(controller);
        self.abort_event_requests(controller);
        *controller.features.borrow_mut() = super::Features::new(&self.inner.options);
        controller.association.retries_advanced.store(false, Ordering::Relaxed);
        *controller.changed.borrow_mut() = Some(Default::default());
    }

    /// What a controller can do whose transport holds `queue_depth` commands per connection.
    fn capabilities(&self, queue_depth: u32) -> Capabilities {
        let most = u16::try_from(queue_depth.max(2)).unwrap_or(u16::MAX);
        let entries = self.inner.options.max_queue_entries.min(most);
        Capabilities::CQR
            .with(Capabilities::CSS_NVM)
            .with(Capabilities::CRMS_WITH_MEDIA)
            .with_mqes_z(entries - 1)
            .with_to_500ms(READY_TIMEOUT_500MS as u8)
    }
}

/// Whether a controller can be enabled with this configuration.
fn is_acceptable(cc: ControllerConfiguration) -> bool {
    let entry_sizes = matches!((cc.iosqes(), cc.iocqes()), (6, 4) | (0, 0));
    entry_sizes && cc.mps() == 0 && cc.ams() == 0 && cc.css() == CommandSetSelected::NVM
}

/// Longest time to become ready: 15 s.
const READY_TIMEOUT_500MS: u16 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_with_unknown_sizes_is_refused() {
        let good = ControllerConfiguration::EN.with_entry_sizes(6, 4);
        assert!(is_acceptable(good));
        assert!(!is_acceptable(good.with_entry_sizes(7, 4)));
        assert!(!is_acceptable(good.with_mps(1)));
        assert!(!is_acceptable(good.with_css(CommandSetSelected::ADMIN_ONLY)));
    }
}
