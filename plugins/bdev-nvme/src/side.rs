//! What a reactor has for all controllers and devices: poll groups, queues,
//! channels. Made when first needed, found by the reactor, ended by the module.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tenon_sdk::{Error, FabricGroup, Host, SharedTransport};

use crate::channel::NvmeChannel;
use crate::door::Door;
use crate::queue::IoQueue;

/// This module on one reactor.
#[derive(Default)]
pub(crate) struct Side {
    groups: RefCell<BTreeMap<u8, FabricGroup>>,
    queues: RefCell<BTreeMap<u64, Rc<IoQueue>>>,
    channels: RefCell<Vec<Weak<NvmeChannel>>>,
}

/// What existing clients call a figure of a transport, and what the transport calls it.
const KNOWN_STATISTICS: [(&str, &str); 4] = [
    ("trname", "trtype"),
    ("socket_completions", "receives"),
    ("nvme_completions", "completions"),
    ("submitted_requests", "commands"),
];

/// The control reactor's number here.
const CONTROL: u32 = u32::MAX;

thread_local! {
    /// By reactor: in a simulation all of them share a thread.
    static SIDES: RefCell<BTreeMap<u32, Rc<Side>>> = const { RefCell::new(BTreeMap::new()) };
}

fn here(host: Host) -> u32 {
    host.reactor().and_then(|reactor| reactor.index()).unwrap_or(CONTROL)
}

impl Side {
    /// The calling reactor's, made if there is none.
    pub(crate) fn current(host: Host) -> Rc<Side> {
        let at = here(host);
        SIDES.with(|sides| Rc::clone(sides.borrow_mut().entry(at).or_default()))
    }

    /// The calling reactor's, if there is one.
    pub(crate) fn existing(host: Host) -> Option<Rc<Side>> {
        let at = here(host);
        SIDES.with(|sides| sides.borrow().get(&at).cloned())
    }

    /// Ends the calling reactor's.
    pub(crate) fn end(host: Host) {
        let at = here(host);
        let side = SIDES.with(|sides| sides.borrow_mut().remove(&at));
        drop(side);
    }

    /// The poll group of a transport.
    pub(crate) fn group(&self, transport: &SharedTransport, trtype: u8) -> Result<FabricGroup, Error> {
        if let Some(group) = self.groups.borrow().get(&trtype) {
            return Ok(group.clone());
        }
        let group = transport.group(&serde_json::json!({}))?;
        self.groups.borrow_mut().insert(trtype, group.clone());
        Ok(group)
    }

    /// The queue of a controller, which opens when it can.
    pub(crate) fn queue(self: &Rc<Self>, door: &Arc<Door>) -> Rc<IoQueue> {
        let existing = self.queues.borrow().get(&door.id).cloned();
        let queue = existing.unwrap_or_else(|| {
            let queue = IoQueue::new(Arc::clone(door), self);
            self.queues.borrow_mut().insert(door.id, Rc::clone(&queue));
            queue
        });
        queue.follow();
        queue
    }

    /// The door of a controller was opened or closed.
    pub(crate) fn door_moved(&self, controller: u64) {
        let queue = self.queues.borrow().get(&controller).cloned();
        if let Some(queue) = queue {
            queue.follow();
        }
        self.kick();
    }

    /// The queue of a controller is to authenticate again.
    pub(crate) fn authenticate(&self, controller: u64) {
        let queue = self.queues.borrow().get(&controller).cloned();
        if let Some(queue) = queue {
            queue.authenticate_again();
        }
    }

    /// A controller is gone, its queues released.
    pub(crate) fn forget(&self, controller: u64) {
        let queue = self.queues.borrow_mut().remove(&controller);
        drop(queue);
    }

    pub(crate) fn add_channel(&self, channel: &Rc<NvmeChannel>) {
        let mut channels = self.channels.borrow_mut();
        channels.retain(|channel| channel.strong_count() > 0);
        channels.push(Rc::downgrade(channel));
    }

    /// The channels of a device, of all devices without one.
    pub(crate) fn channels(&self, device: Option<u64>) -> Vec<Rc<NvmeChannel>> {
        let channels = self.channels.borrow();
        let live = channels.iter().filter_map(Weak::upgrade);
        live.filter(|channel| device.is_none_or(|device| channel.device() == device)).collect()
    }

    /// The paths of a device changed.
    pub(crate) fn table_changed(&self, device: u64) {
        for channel in self.channels(Some(device)) {
            channel.refresh();
        }
    }

    /// Something that I/O may wait for has changed.
    pub(crate) fn kick(&self) {
        for channel in self.channels(None) {
            channel.kick();
        }
    }

    /// Statistics of the poll groups, by the names that existing clients know as well.
    pub(crate) fn statistics(&self) -> Vec<serde_json::Value> {
        let of = |group: &FabricGroup| {
            let mut told = group.statistics();
            for (known, own) in KNOWN_STATISTICS {
                let value = told[own].clone();
                if !value.is_null() {
                    told[known] = value;
                }
            }
            told
        };
        self.groups.borrow().values().map(of).collect()
    }
}
