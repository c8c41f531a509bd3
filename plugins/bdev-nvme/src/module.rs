//! Messages to the control thread, and the way from there to the module.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tenon_sdk::{Host, Reactor};

use crate::registry::Registry;

thread_local! {
    /// On the control thread. Not by way of the module: messages arrive also while it is finishing.
    static REGISTRY: RefCell<Weak<Registry>> = const { RefCell::new(Weak::new()) };
}

/// Makes messages reach a registry.
pub(crate) fn install(registry: &Rc<Registry>) {
    REGISTRY.set(Rc::downgrade(registry));
}

/// The registry, on the control thread.
pub(crate) fn registry() -> Option<Rc<Registry>> {
    REGISTRY.with_borrow(Weak::upgrade)
}

/// An I/O queue was lost.
pub(crate) fn queue_lost(host: Host, controller: u64, generation: u64, reason: String) {
    tell(host, move |registry| {
        if let Some(controller) = registry.controller(controller) {
            controller.queue_lost(generation, reason);
        }
    });
}

/// An I/O queue is released.
pub(crate) fn queue_released(host: Host, controller: u64) {
    tell(host, move |registry| {
        if let Some(controller) = registry.controller(controller) {
            controller.check_drained();
        }
    });
}

/// A controller says that a namespace is in another ANA state than known.
pub(crate) fn ana_suspected(host: Host, controller: u64) {
    tell(host, move |registry| {
        if let Some(controller) = registry.controller(controller) {
            registry.ana_updating(&controller);
            controller.ana_suspected();
        }
    });
}

/// A device is to be reset; its channel on `reactor` waits for the end.
pub(crate) fn reset_wanted(host: Host, device: u64, reactor: Reactor) {
    tell(host, move |registry| registry.reset_device(device, reactor));
}

/// A channel could not set an alarm: it is to be looked after.
pub(crate) fn kick_wanted(host: Host) {
    tell(host, |registry| registry.kick_is_owed.set(true));
}

/// A command is to be aborted.
pub(crate) fn abort_wanted(host: Host, controller: u64, qid: u16, cid: u16) {
    tell(host, move |registry| {
        if let Some(controller) = registry.controller(controller) {
            controller.abort(qid, cid);
        }
    });
}

/// Calls `message` on the control thread.
pub(crate) fn tell(host: Host, message: impl FnOnce(&Registry) + Send + 'static) {
    post(host, host.control(), move || {
        if let Some(registry) = registry() {
            message(&registry);
        }
    });
}

/// Calls `message` on a reactor; tries again while its queue is full.
pub(crate) fn post(host: Host, reactor: Reactor, message: impl FnOnce() + Send + 'static) {
    send(host, reactor, Arc::new(Mutex::new(Some(message))), 0);
}

fn send<F>(host: Host, reactor: Reactor, message: Arc<Mutex<Option<F>>>, attempt: u32)
where
    F: FnOnce() + Send + 'static,
{
    let sent = Arc::clone(&message);
    let result = host.send(reactor, move || {
        let message = sent.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(message) = message {
            message();
        }
    });
    if result.is_ok() {
        return;
    }
    if attempt == MAX_ATTEMPTS {
        log::error!("a reactor takes no messages: one is lost");
        return;
    }
    match host.timer(RETRY, move || send(host, reactor, message, attempt + 1)) {
        Ok(timer) => timer.detach(),
        Err(error) => log::error!("a message to a reactor is lost error=\"{error}\""),
    }
}

/// Pause before a message is sent again.
const RETRY: Duration = Duration::from_millis(1);
/// Attempts after which it is given up.
const MAX_ATTEMPTS: u32 = 10_000;
