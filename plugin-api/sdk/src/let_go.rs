//! For devices that hold I/O back on purpose: the order to all their channels
//! to let it go. Removal waits for every I/O and asks no module to hurry, so a
//! device that may hold one for long has to look for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenon_abi::BdevState;

use crate::Host;

/// The order to let go what is held back, shared by a device and its channels. Each channel compares
/// [`LetGo::count`] in its poller with what it has seen.
#[derive(Debug, Default)]
pub struct LetGo {
    count: AtomicU64,
}

impl LetGo {
    /// No order yet.
    #[must_use]
    pub const fn new() -> Self {
        LetGo { count: AtomicU64::new(0) }
    }

    /// How often the order was given. Any thread.
    #[inline]
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Gives the order, and wakes every reactor, so that wakeable pollers see it. Any thread.
    pub fn order(&self, host: Host) {
        self.count.fetch_add(1, Ordering::Release);
        for reactor in host.reactors().chain([host.control()]) {
            // The message does nothing but wake; a reactor whose queue is full is awake.
            let _ = host.send(reactor, || ());
        }
    }

    /// Gives the order if the device `name` of this module is being removed. A channel calls it now and then while
    /// it holds I/O back. On a reactor.
    pub fn order_if_going(self: &Arc<Self>, host: Host, name: &Arc<str>) {
        let (this, name) = (Arc::clone(self), Arc::clone(name));
        let ask = move || {
            let info = host.registered(&name).and_then(|id| host.bdev_info(id).ok());
            if !info.is_some_and(|info| is_in_service(info.state)) {
                this.order(host);
            }
        };
        if let Err(error) = host.send(host.control(), ask) {
            log::debug!("cannot ask about a device error=\"{error}\"");
        }
    }
}

fn is_in_service(state: BdevState) -> bool {
    matches!(state, BdevState::REGISTERING | BdevState::EXAMINING | BdevState::READY | BdevState::ABSENT)
}
