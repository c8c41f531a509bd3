//! Events of devices on their way to those who opened them.
//!
//! An event is queued per descriptor and delivered on the control reactor, later:
//! never from inside the call that caused it, and in the order it happened. A
//! queue is bounded; REMOVE always has a place, and comes exactly once.
// UNSAFETY: calls the callback a module gave when it opened the device.

use tenon_abi::{BdevEvent, BdevEventKind, BdevHandle, DescHandle, Reason, Str};

use crate::core::Core;
use crate::descriptor::EventSink;

/// What happened to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: BdevEventKind,
    /// The device.
    pub bdev: BdevHandle,
    /// Why.
    pub reason: Reason,
    /// Meaning depends on `kind`: RESIZE, the new number of blocks.
    pub value: u64,
    /// Time of [`tenon_reactor::now_ns`] by which the receiver must have acted; 0: none.
    pub deadline_ns: u64,
    /// Text for people, or empty.
    pub detail: String,
}

impl Core {
    /// Tells everybody who has the device open now.
    pub(crate) fn publish_event(&self, event: &Event) {
        let descriptors: Vec<DescHandle> = {
            let registry = self.inner.registry.borrow();
            let Some(record) = registry.get(event.bdev) else { return };
            record.descriptors.iter().map(|holding| holding.desc).collect()
        };
        for desc in descriptors {
            self.queue_event(desc, event);
        }
    }

    fn queue_event(&self, desc: DescHandle, event: &Event) {
        let mut descriptors = self.inner.descriptors.borrow_mut();
        let Some(open) = descriptors.get_mut(desc) else { return };
        if open.is_removal_told {
            return;
        }
        if event.kind == BdevEventKind::REMOVE {
            open.is_removal_told = true;
        } else if open.pending.len() >= MAX_PENDING {
            // The newest facts count; the receiver asks `bdev_info` for the rest.
            open.pending.pop_front();
            log::debug!("bdev event dropped for a slow receiver kind={}", event.kind.0);
        }
        open.pending.push_back(event.clone());
        let was_scheduled = std::mem::replace(&mut open.is_scheduled, true);
        drop(descriptors);
        if !was_scheduled {
            self.later(move |core| core.deliver_event(desc));
        }
    }

    fn deliver_event(&self, desc: DescHandle) {
        let (event, sink) = {
            let mut descriptors = self.inner.descriptors.borrow_mut();
            let Some(open) = descriptors.get_mut(desc) else { return };
            let Some(event) = open.pending.pop_front() else {
                open.is_scheduled = false;
                return;
            };
            (event, open.sink.clone())
        };
        match &sink {
            EventSink::Host(on_event) => (on_event.borrow_mut())(&event),
            EventSink::Module { callback, arg } => {
                let raw = event.to_abi();
                // SAFETY: the descriptor is open, so its callback and argument are valid; `raw` and the
                // text it borrows live until the call returns.
                unsafe { (callback.0)(*arg, &raw) };
            }
        }
        drop(sink);
        // The next one, or the end of the delivery; the receiver may have closed the device.
        self.later(move |core| core.deliver_event(desc));
    }
}

impl Event {
    /// An event without value, deadline or text.
    pub(crate) fn new(kind: BdevEventKind, bdev: BdevHandle, reason: Reason) -> Self {
        Self { kind, bdev, reason, value: 0, deadline_ns: 0, detail: String::new() }
    }

    fn to_abi(&self) -> BdevEvent {
        BdevEvent {
            size: size_of::<BdevEvent>() as u32,
            kind: self.kind,
            bdev: self.bdev,
            reason: self.reason,
            reserved: 0,
            value: self.value,
            deadline_ns: self.deadline_ns,
            detail: Str::new(&self.detail),
        }
    }
}

/// Most events that wait for one descriptor.
const MAX_PENDING: usize = 64;
