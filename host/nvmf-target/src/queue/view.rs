//! What a reactor knows of a subsystem: its namespaces' channels, whether it is
//! paused, who uses it. I/O commands run on this and nothing else.
//!
//! Changed only by messages of the control reactor. A command keeps the
//! namespace it found alive; a namespace that was taken away is marked, and its
//! channel goes with the last command.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use nvme_spec::io::DSM_MAX_RANGES;
use tenon_abi::{BdevFlags, IoFlags, Op};
use tenon_bdev::{Channel, channel_get};

use super::QueuePair;
use super::command::class_of;
use super::interface::{IoCounts, NamespaceFacts, OpenGuard, SubsystemId};
use crate::reservation::state::{Host, ReservationView, Use};

/// A namespace on a reactor.
pub(crate) struct NamespaceSide {
    // Put before the guard tells that nobody uses the descriptor.
    channel: Channel,
    _guard: Arc<OpenGuard>,
    pub nsid: u32,
    pub class: u16,
    /// Payload bytes of a block, interleaved metadata included.
    pub block_bytes: u32,
    pub num_blocks: Cell<u64>,
    pub io_types: u64,
    pub io_flags: IoFlags,
    pub has_write_cache: bool,
    pub is_write_protected: Cell<bool>,
    pub anagrpid: Cell<u32>,
    /// Blocks one fused operation may have.
    pub atomic_blocks: u32,
    /// Blocks one Copy may have; 0: no bound.
    pub copy_blocks: u32,
    /// Taken out of the view; commands that come to execute are refused.
    pub is_removed: Cell<bool>,
    /// Somebody holds a reservation: commands are checked against it.
    pub is_reserved: Cell<bool>,
    reservation: RefCell<Option<Arc<ReservationView>>>,
    pub counts: RefCell<IoCounts>,
}

/// A subsystem on a reactor.
pub(crate) struct SubsystemSide {
    pub id: SubsystemId,
    namespaces: RefCell<Vec<Option<Rc<NamespaceSide>>>>,
    pub is_paused: Cell<bool>,
    /// Commands with devices.
    pub in_device: Cell<u32>,
    /// Called when `in_device` becomes 0.
    quiet: RefCell<Option<Box<dyn FnOnce()>>>,
    pub queues: RefCell<Vec<*const QueuePair>>,
    /// Counted by namespaces that are gone.
    past: RefCell<IoCounts>,
}

impl NamespaceSide {
    /// Opens the device on the calling reactor.
    pub(crate) fn open(facts: &NamespaceFacts) -> Result<Self, String> {
        let channel = channel_get(facts.desc).map_err(|error| error.to_string())?;
        let context = channel.io_ctx_size();
        let class =
            class_of(context).ok_or_else(|| format!("driver context of {context} bytes is too large"))?;
        let interleaved = facts.flags.contains(BdevFlags::METADATA_INTERLEAVED);
        let metadata = if interleaved { facts.limits.md_size } else { 0 };
        Ok(Self {
            channel,
            _guard: facts.guard.clone(),
            nsid: facts.nsid,
            class,
            block_bytes: facts.limits.block_size + metadata,
            num_blocks: Cell::new(facts.limits.num_blocks),
            io_types: facts.io_types,
            io_flags: IoFlags(facts.io_flags as u16),
            has_write_cache: facts.flags.contains(BdevFlags::VOLATILE_WRITE_CACHE),
            is_write_protected: Cell::new(facts.is_write_protected),
            anagrpid: Cell::new(facts.anagrpid),
            atomic_blocks: facts.limits.atomic_compare_write_blocks.max(1),
            copy_blocks: facts.limits.max_copy_blocks,
            is_removed: Cell::new(false),
            is_reserved: Cell::new(facts.reservation.is_some()),
            reservation: RefCell::new(facts.reservation.clone()),
            counts: RefCell::default(),
        })
    }

    pub(crate) fn channel(&self) -> *mut tenon_abi::IoChannel {
        self.channel.as_ptr()
    }

    pub(crate) fn set_reservation(&self, view: Option<Arc<ReservationView>>) {
        self.is_reserved.set(view.is_some());
        *self.reservation.borrow_mut() = view;
    }

    /// Whether the reservation, if any, lets a host use the namespace.
    pub(crate) fn allows(&self, host: &Host, wanted: Use) -> bool {
        self.reservation.borrow().as_ref().is_none_or(|view| view.allows(host, wanted))
    }

    pub(crate) fn supports(&self, op: Op) -> bool {
        self.io_types & op.bit() != 0
    }
}

impl SubsystemSide {
    pub(crate) fn new(id: SubsystemId) -> Self {
        Self {
            id,
            namespaces: RefCell::default(),
            is_paused: Cell::new(false),
            in_device: Cell::new(0),
            quiet: RefCell::new(None),
            queues: RefCell::default(),
            past: RefCell::default(),
        }
    }

    pub(crate) fn namespace(&self, nsid: u32) -> Option<Rc<NamespaceSide>> {
        self.namespaces.borrow().get((nsid as usize).checked_sub(1)?)?.clone()
    }

    pub(crate) fn add(&self, namespace: NamespaceSide) {
        let at = namespace.nsid as usize - 1;
        let mut namespaces = self.namespaces.borrow_mut();
        if namespaces.len() <= at {
            namespaces.resize_with(at + 1, || None);
        }
        namespaces[at] = Some(Rc::new(namespace));
    }

    /// Takes a namespace away; what it counted so far stays with the subsystem.
    pub(crate) fn remove(&self, nsid: u32) {
        let Some(at) = (nsid as usize).checked_sub(1) else { return };
        let removed = self.namespaces.borrow_mut().get_mut(at).and_then(Option::take);
        if let Some(removed) = removed {
            removed.is_removed.set(true);
            self.past.borrow_mut().add(&removed.counts.borrow());
        }
    }

    /// What hosts did with the namespaces there are and were.
    pub(crate) fn counts(&self) -> IoCounts {
        let mut total = *self.past.borrow();
        for namespace in self.namespaces.borrow().iter().flatten() {
            total.add(&namespace.counts.borrow());
        }
        total
    }

    /// One more command is with a device.
    pub(crate) fn enter(&self) {
        self.in_device.set(self.in_device.get() + 1);
    }

    /// One less is.
    pub(crate) fn leave(&self) {
        let left = self.in_device.get() - 1;
        self.in_device.set(left);
        if left == 0
            && let Some(quiet) = self.quiet.take()
        {
            quiet();
        }
    }

    /// Calls `done` when no command is with a device: now, or when the last returns.
    pub(crate) fn when_quiet(&self, done: impl FnOnce() + 'static) {
        if self.in_device.get() == 0 {
            return done();
        }
        let earlier = self.quiet.replace(None);
        *self.quiet.borrow_mut() = Some(Box::new(move || {
            if let Some(earlier) = earlier {
                earlier();
            }
            done();
        }));
    }
}

/// Most ranges of a Dataset Management command, as the wire has it.
pub(crate) const MAX_RANGES: usize = DSM_MAX_RANGES;
/// Most source ranges of one Copy.
pub(crate) const MAX_COPY_RANGES: usize = 128;
