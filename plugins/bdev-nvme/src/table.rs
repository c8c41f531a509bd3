//! The paths of a device, as the control thread writes them and channels read
//! them when they are told to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme_spec::log::AnaState;

use crate::door::Door;
use crate::errors::ErrorCounts;
use crate::select::{PathFacts, Rules};

/// One path: a namespace at a controller.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) door: Arc<Door>,
    pub(crate) nsid: u32,
    /// The controller has the namespace.
    pub(crate) is_present: bool,
    pub(crate) ana: AnaState,
    /// Since when it is in this state.
    pub(crate) ana_since_ns: u64,
    pub(crate) anatt_sec: u8,
    /// Its state is being asked for.
    pub(crate) is_updating: bool,
    pub(crate) is_preferred: bool,
}

impl Entry {
    /// What is known of the path without its queue.
    pub(crate) fn facts(&self) -> PathFacts {
        PathFacts {
            is_connected: false,
            is_present: self.is_present,
            is_updating: self.is_updating,
            ana: self.ana,
            is_preferred: self.is_preferred,
            in_flight: 0,
            latency_ns: 0,
        }
    }
}

/// The paths of a device.
pub(crate) struct Table {
    /// The device; never reused.
    pub(crate) device: u64,
    pub(crate) options: TableOptions,
    /// What controllers have ended I/Os with, if that is counted.
    pub(crate) errors: Option<ErrorCounts>,
    inner: Mutex<Inner>,
}

/// What does not change as long as there is the device.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TableOptions {
    /// How often an I/O is tried again; -1: without limit.
    pub(crate) retry_limit: i32,
    /// How long an I/O may take with all its tries; 0: no limit.
    pub(crate) io_deadline_ns: u64,
    /// I/O is counted by path.
    pub(crate) counts_paths: bool,
    /// Errors are counted.
    pub(crate) counts_errors: bool,
    /// Source ranges that a copy command of the namespace may have.
    pub(crate) copy_ranges: u16,
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    rules: Rules,
    is_gone: bool,
}

impl Table {
    pub(crate) fn new(device: u64, options: TableOptions) -> Arc<Self> {
        let errors = options.counts_errors.then(ErrorCounts::new);
        Arc::new(Table { device, options, errors, inner: Mutex::default() })
    }

    /// What there is now.
    pub(crate) fn read(&self) -> (Vec<Entry>, Rules, bool) {
        let inner = self.lock();
        (inner.entries.clone(), inner.rules, inner.is_gone)
    }

    /// Adds a path; they stand in the order in which their controllers were attached.
    pub(crate) fn add(&self, entry: Entry) {
        self.change(|entries| {
            let at = entries.partition_point(|other| other.door.id <= entry.door.id);
            entries.insert(at, entry);
        });
    }

    /// Changes the paths; the caller tells the channels.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Vec<Entry>) -> R) -> R {
        change(&mut self.lock().entries)
    }

    pub(crate) fn rules(&self) -> Rules {
        self.lock().rules
    }

    pub(crate) fn set_rules(&self, rules: Rules) {
        self.lock().rules = rules;
    }

    /// The device goes: nothing waits any more.
    pub(crate) fn set_gone(&self) {
        self.lock().is_gone = true;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
