//! Object census: how many of everything there are, so that a test or an operator
//! can see a leak. After everything was removed, what [`ObjectCounts::owned`]
//! counts is zero.

use serde::Serialize;
use tenon_modules::ModuleState;

use crate::core::Core;

/// Objects of the core and of the reactors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ObjectCounts {
    /// Devices.
    pub bdevs: usize,
    /// Open descriptors.
    pub descriptors: usize,
    /// Claims.
    pub claims: usize,
    /// Channels of consumers.
    pub channels: usize,
    /// Channels of modules.
    pub module_channels: usize,
    /// I/Os that wait in gates.
    pub queued_ios: usize,
    /// Operations in flight.
    pub operations: usize,
    /// Answers modules owe.
    pub answers_owed: usize,
    /// Names that operations have for themselves.
    pub names_locked: usize,
    /// Examine answers modules owe.
    pub examine_tokens: usize,
    /// Removals under way.
    pub removals: usize,
    /// Lifecycle activities.
    pub activities: usize,
    /// Who waits for them.
    pub waiters: usize,
    /// Deadlines.
    pub deadlines: usize,
    /// Events on their way to descriptors.
    pub events: usize,
    /// Tasks in the core's queue.
    pub tasks: usize,
    /// RPC methods of modules.
    pub rpc_methods: usize,
    /// Subscriptions to memory.
    pub memory_subscriptions: usize,
    /// Objects the host watches for modules.
    pub hotplug_watches: usize,
    /// Entries of the configuration to save.
    pub saved_entries: usize,
    /// Modules in service.
    pub modules: usize,
    /// Notifications kept.
    pub notifications: usize,
    /// Metrics.
    pub metrics: usize,
    /// Bytes of device memory handed out.
    pub memory_bytes: u64,
    /// Regions of device memory.
    pub memory_regions: usize,
    /// Per reactor, the control reactor first.
    pub reactors: Vec<ReactorCounts>,
}

/// Objects of one reactor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReactorCounts {
    /// Its name.
    pub name: String,
    /// Pollers.
    pub pollers: u32,
    /// Timers.
    pub timers: u32,
    /// Watched descriptors.
    pub fds: u32,
}

impl ObjectCounts {
    /// Everything that belongs to a device, an operation or a module; 0 when all of those are gone.
    pub fn owned(&self) -> usize {
        self.bdevs
            + self.descriptors
            + self.claims
            + self.channels
            + self.module_channels
            + self.queued_ios
            + self.operations
            + self.answers_owed
            + self.names_locked
            + self.examine_tokens
            + self.removals
            + self.activities
            + self.waiters
            + self.events
            + self.rpc_methods
            + self.memory_subscriptions
            + self.hotplug_watches
    }
}

impl Core {
    /// Counts everything.
    pub fn object_counts(&self) -> ObjectCounts {
        let inner = &self.inner;
        let operations = inner.operations.borrow();
        let activities = inner.activities.borrow();
        let mut counts = ObjectCounts {
            descriptors: inner.descriptors.borrow().len(),
            operations: operations.len(),
            answers_owed: operations.answers_owed(),
            names_locked: operations.names_locked(),
            examine_tokens: inner.examinations.borrow().tokens(),
            activities: activities.len(),
            waiters: activities.waiters(),
            deadlines: inner.deadlines.borrow().len(),
            events: inner.descriptors.borrow().pending(),
            tasks: self.tasks_waiting(),
            rpc_methods: inner.rpc_table.borrow().len(),
            memory_subscriptions: inner.subscriptions.borrow().len(),
            hotplug_watches: inner.hotplug.borrow().len(),
            saved_entries: inner.saved.borrow().len(),
            modules: inner.modules.all().iter().filter(|module| is_in_service(module.state())).count(),
            notifications: inner.notifications.borrow().len(),
            metrics: crate::metrics::count(),
            ..ObjectCounts::default()
        };
        (counts.memory_bytes, counts.memory_regions) = crate::memory::usage();
        for record in inner.registry.borrow().iter() {
            let gate = record.gate.census();
            counts.bdevs += 1;
            counts.claims += record.descriptors.iter().filter(|holding| holding.claim.is_some()).count();
            counts.removals += usize::from(record.removal.is_some());
            counts.channels += gate.channels as usize;
            counts.module_channels += gate.module_channels as usize;
            counts.queued_ios += gate.queued as usize;
        }
        counts.reactors = inner.shared.directory().all().iter().map(reactor_counts).collect();
        counts
    }
}

fn is_in_service(state: ModuleState) -> bool {
    match state {
        ModuleState::Initialised | ModuleState::Running | ModuleState::Draining | ModuleState::Finishing => {
            true
        }
        ModuleState::Loaded | ModuleState::Initialising | ModuleState::Retired | ModuleState::Failed => false,
    }
}

fn reactor_counts(reactor: &tenon_reactor::ReactorRef) -> ReactorCounts {
    let statistics = reactor.statistics();
    ReactorCounts {
        name: reactor.name().to_owned(),
        pollers: statistics.every_turn_pollers + statistics.timed_pollers + statistics.paused_pollers,
        timers: statistics.timers,
        fds: statistics.fds,
    }
}
