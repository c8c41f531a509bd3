//! Keep alive: a host that is silent for its own time-out loses its controller.
//!
//! Traffic based: any command on any queue of the controller counts. Queues mark
//! that one came; here it is looked at twice per time-out, on the control
//! reactor, so that neither a paused subsystem nor a busy device matters.
//! A discovery controller without a time-out is for one look at its log page: it
//! goes when nothing has come for two minutes.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nvme_spec::features::KAS_UNIT_MS;
use nvme_spec::property::ControllerStatus;
use tenon_abi::transport::CloseReason;
use tenon_reactor::now_ns;

use super::Controller;
use crate::target::Target;

impl Target {
    /// Sets the time-out, rounded up to the granularity; 0 ends it.
    pub(crate) fn set_keep_alive(&self, controller: &Rc<Controller>, wanted_ms: u32) {
        self.stop_keep_alive(controller);
        let rules = controller.keep_alive_rules;
        let timeout_ms = match wanted_ms {
            0 => 0,
            wanted => {
                let unit_ms = u32::from(rules.granularity_100ms) * KAS_UNIT_MS;
                let raised = wanted.max(rules.min_ms).max(self.inner.options.min_keep_alive_ms);
                raised.div_ceil(unit_ms).saturating_mul(unit_ms)
            }
        };
        controller.keep_alive_ms.set(timeout_ms);
        controller.last_seen_ns.set(now_ns());
        if longest_silence_ms(controller) > 0 {
            self.watch(controller);
        }
    }

    pub(crate) fn stop_keep_alive(&self, controller: &Controller) {
        if let Some(timer) = controller.keep_alive_timer.take() {
            tenon_reactor::current().cancel_timer(timer);
        }
    }

    fn watch(&self, controller: &Rc<Controller>) {
        let half = Duration::from_millis(longest_silence_ms(controller).div_ceil(2));
        let (target, watched) = (self.clone(), controller.clone());
        let timer = tenon_reactor::current().set_timer(half, move || target.look(&watched));
        if timer.is_err() {
            log::error!("controller is not watched: no timer is left cntlid={}", controller.cntlid());
        }
        controller.keep_alive_timer.set(timer.ok());
    }

    fn look(&self, controller: &Rc<Controller>) {
        controller.keep_alive_timer.set(None);
        if controller.is_ending.get() {
            return;
        }
        let now = now_ns();
        if controller.association.traffic.swap(false, Ordering::Relaxed) {
            controller.last_seen_ns.set(now);
        }
        let silent_ms = (now - controller.last_seen_ns.get()) / 1_000_000;
        if silent_ms < longest_silence_ms(controller) {
            return self.watch(controller);
        }
        log::warn!(
            "keep alive expired nqn={} cntlid={} hostnqn={} silent_ms={silent_ms}",
            controller.subsystem.nqn,
            controller.cntlid(),
            controller.association.hostnqn
        );
        controller.csts.set(controller.csts.get().with(ControllerStatus::CFS));
        self.end_controller(controller, CloseReason::TIMEOUT);
    }
}

/// How long the host may be silent; 0: for ever.
fn longest_silence_ms(controller: &Controller) -> u64 {
    match controller.keep_alive_ms.get() {
        0 if controller.subsystem.is_discovery => DISCOVERY_ACTIVITY_MS,
        timeout_ms => timeout_ms.into(),
    }
}

/// The time-out of a discovery controller whose host keeps nothing alive.
const DISCOVERY_ACTIVITY_MS: u64 = 120_000;
