//! What a module says of a device of its own while it is in service: backing
//! lost and found, a new capacity, events for its openers.
//!
//! The gate obeys first, on every reactor; then openers are told. Who is told
//! and when is in `event`, the order of the gate's steps in `gate_steps`.

use std::time::Duration;

use tenon_abi::{BdevEventKind, BdevHandle, Reason, errno};

use crate::core::Core;
use crate::deadline::Due;
use crate::event::Event as DeviceEvent;
use crate::gate_steps::GateStep;
use crate::lifecycle::{Event, State};
use crate::registry::AbsentSince;

impl Core {
    /// The backing of a device is gone; its I/O waits for `limit`, then the device is removed.
    pub(crate) fn backing_lost(&self, bdev: BdevHandle, limit: Option<Duration>) -> i32 {
        {
            let registry = self.inner.registry.borrow();
            let Some(record) = registry.get(bdev) else { return errno::ENODEV };
            if !record.state().may_be_opened() {
                return errno::ENODEV;
            }
            if record.state() == State::Absent {
                return 0;
            }
        }
        if !self.gate_step(bdev, GateStep::Absent) {
            return errno::EAGAIN;
        }
        let key = limit.map(|limit| self.set_deadline_in(limit, Due::Absent(bdev)));
        let deadline_ns = limit.map_or(0, crate::deadline::deadline_ns);
        let mut registry = self.inner.registry.borrow_mut();
        if let Some(record) = registry.get_mut(bdev) {
            record.apply(Event::BackingLost);
            record.absent = Some(AbsentSince { deadline_ns, key });
            log::warn!("bdev is absent bdev={} deadline={limit:?}", record.name);
        }
        0
    }

    /// The backing is there again, with the same identity.
    pub(crate) fn backing_found(&self, bdev: BdevHandle) -> i32 {
        {
            let registry = self.inner.registry.borrow();
            let Some(record) = registry.get(bdev) else { return errno::ENODEV };
            if !record.state().may_be_opened() {
                return errno::ENODEV;
            }
            if record.state() != State::Absent {
                return 0;
            }
        }
        if !self.gate_step(bdev, GateStep::Present) {
            return errno::EAGAIN;
        }
        let absent = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return errno::ENODEV };
            let is_examined = record.examination.is_examined;
            record.apply(if is_examined { Event::BackingFound } else { Event::BackingFoundEarly });
            log::info!("bdev is present again bdev={}", record.name);
            record.absent.take()
        };
        self.cancel_deadline(absent.and_then(|absent| absent.key));
        0
    }

    pub(crate) fn backing_lost_everywhere(&self, bdev: BdevHandle) {
        let deadline_ns = {
            let registry = self.inner.registry.borrow();
            let Some(record) = registry.get(bdev) else { return };
            record.absent.map_or(0, |absent| absent.deadline_ns)
        };
        let mut event = DeviceEvent::new(BdevEventKind::ABSENT, bdev, Reason::HOT_REMOVED);
        event.deadline_ns = deadline_ns;
        self.publish_event(&event);
    }

    pub(crate) fn backing_found_everywhere(&self, bdev: BdevHandle) {
        self.publish_event(&DeviceEvent::new(BdevEventKind::PRESENT, bdev, Reason::UNSPECIFIED));
    }

    pub(crate) fn absent_overdue(&self, bdev: BdevHandle) {
        let is_absent = {
            let registry = self.inner.registry.borrow();
            registry.get(bdev).is_some_and(|record| record.state() == State::Absent)
        };
        if is_absent {
            self.remove_bdev(bdev, Reason::DEADLINE);
        }
    }

    /// The capacity changed; openers hear of it when every reactor obeys.
    pub(crate) fn resize_bdev(&self, bdev: BdevHandle, num_blocks: u64) -> i32 {
        {
            let registry = self.inner.registry.borrow();
            let Some(record) = registry.get(bdev) else { return errno::ENODEV };
            if !record.state().may_be_opened() {
                return errno::ENODEV;
            }
            if num_blocks == 0 || num_blocks.checked_mul(u64::from(record.limits.block_size)).is_none() {
                return errno::EINVAL;
            }
        }
        if self.gate_step(bdev, GateStep::Resize(num_blocks)) { 0 } else { errno::EAGAIN }
    }

    pub(crate) fn resized_everywhere(&self, bdev: BdevHandle, num_blocks: u64) {
        let name = {
            let mut registry = self.inner.registry.borrow_mut();
            let Some(record) = registry.get_mut(bdev) else { return };
            log::info!(
                "bdev has a new size bdev={} from={} to={num_blocks}",
                record.name,
                record.limits.num_blocks
            );
            record.limits.num_blocks = num_blocks;
            record.name.clone()
        };
        self.notify("bdev_resize", &name);
        let mut event = DeviceEvent::new(BdevEventKind::RESIZE, bdev, Reason::UNSPECIFIED);
        event.value = num_blocks;
        self.publish_event(&event);
    }

    /// Passes on what a module says of its device.
    pub(crate) fn publish_for_module(&self, event: &DeviceEvent) -> i32 {
        let may_publish = matches!(
            event.kind,
            BdevEventKind::DEGRADED
                | BdevEventKind::HEALTHY
                | BdevEventKind::PATH_CHANGED
                | BdevEventKind::READ_ONLY
                | BdevEventKind::WRITABLE
                | BdevEventKind::MEDIA_MANAGEMENT
        );
        if !may_publish {
            return errno::EINVAL;
        }
        {
            let registry = self.inner.registry.borrow();
            match registry.get(event.bdev) {
                Some(record) if record.state().may_be_opened() => {}
                Some(_) | None => return errno::ENODEV,
            }
        }
        match event.kind {
            BdevEventKind::READ_ONLY | BdevEventKind::WRITABLE => {
                let is_read_only = event.kind == BdevEventKind::READ_ONLY;
                let step = GateStep::Protect(is_read_only, Box::new(event.clone()));
                if self.gate_step(event.bdev, step) { 0 } else { errno::EAGAIN }
            }
            _ => {
                self.publish_event(event);
                0
            }
        }
    }
}
