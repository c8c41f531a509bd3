//! What the control thread and the reactors share of a controller: whether I/O
//! queues may be opened, and how many are.
//!
//! The door is opened and closed by the control thread and looked at when a
//! queue is opened, never by an I/O. A queue counts from before it connects
//! until everything of it is released, so that a count of 0 behind a closed
//! door stays 0.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tenon_sdk::{ChannelKey, FabricAddress, Host, SharedTransport};

use crate::config::ActionOnTimeout;
use crate::controller::command::HostIdentity;
use crate::credentials::Credentials;
use crate::inject::Injections;

/// A controller as reactors know it.
pub(crate) struct Door {
    /// Never reused.
    pub(crate) id: u64,
    pub(crate) host: Host,
    pub(crate) transport: SharedTransport,
    pub(crate) address: FabricAddress,
    pub(crate) local: FabricAddress,
    pub(crate) identity: HostIdentity,
    pub(crate) connect_timeout_ns: u64,
    /// Secures every channel.
    pub(crate) channel_key: Option<ChannelKey>,
    pub(crate) injections: Injections,
    credentials: Mutex<Arc<Credentials>>,
    state: Mutex<DoorState>,
    queues: AtomicUsize,
}

/// Who is connected to, by whom, and how.
pub(crate) struct Target {
    pub(crate) address: FabricAddress,
    pub(crate) local: FabricAddress,
    pub(crate) identity: HostIdentity,
    pub(crate) connect_timeout_ns: u64,
    pub(crate) channel_key: Option<ChannelKey>,
    pub(crate) credentials: Credentials,
}

/// Whether a queue may be opened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Access {
    /// Not now, perhaps later.
    Later,
    /// No, and no time is known when.
    Never,
    /// Yes.
    Open(OpenFacts),
}

/// What a queue has to know of an open controller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OpenFacts {
    pub(crate) cntlid: u16,
    pub(crate) entries: u16,
    pub(crate) retry_delays_100ms: [u16; 3],
    /// For how long a lost controller may still carry out what it was told.
    pub(crate) quiesce_ns: u64,
    /// Time for an I/O; 0: for ever.
    pub(crate) io_timeout_ns: u64,
    pub(crate) on_timeout: ActionOnTimeout,
    /// Time for an I/O with all its tries; 0: for ever.
    pub(crate) io_deadline_ns: u64,
    /// Most bytes of one transfer.
    pub(crate) max_transfer_bytes: u64,
    /// Options of the transport.
    pub(crate) options: Value,
}

struct DoorState {
    access: Access,
    /// Grows each time the door is opened.
    generation: u64,
    /// Queue identifiers nobody has.
    free: Vec<u16>,
}

/// A right to have one queue; counted until dropped.
pub(crate) struct Pass {
    door: Arc<Door>,
    pub(crate) qid: u16,
    pub(crate) generation: u64,
    pub(crate) facts: OpenFacts,
}

/// Why there is no pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPass {
    /// The door is closed.
    Closed,
    /// The controller has granted fewer queues than there are reactors.
    NoQueueLeft,
}

impl Door {
    pub(crate) fn new(id: u64, host: Host, transport: SharedTransport, target: Target) -> Arc<Self> {
        let Target { address, local, identity, connect_timeout_ns, channel_key, credentials } = target;
        let state = DoorState { access: Access::Later, generation: 0, free: Vec::new() };
        Arc::new(Door {
            id,
            host,
            transport,
            address,
            local,
            identity,
            connect_timeout_ns,
            channel_key,
            injections: Injections::default(),
            credentials: Mutex::new(Arc::new(credentials)),
            state: Mutex::new(state),
            queues: AtomicUsize::new(0),
        })
    }

    /// With what a queue authenticates now.
    pub(crate) fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Other keys from the next transaction on; the old ones.
    pub(crate) fn set_credentials(&self, credentials: Arc<Credentials>) -> Arc<Credentials> {
        std::mem::replace(&mut *self.credentials.lock().unwrap_or_else(PoisonError::into_inner), credentials)
    }

    /// Queues may be opened, `queues` at most.
    pub(crate) fn open(&self, facts: OpenFacts, queues: u16) {
        let mut state = self.lock();
        state.access = Access::Open(facts);
        state.generation += 1;
        state.free = (1..=queues).rev().collect();
    }

    /// No more queues; with a closed door, `is_final` says whether there is hope.
    pub(crate) fn close(&self, is_final: bool) {
        self.lock().access = if is_final { Access::Never } else { Access::Later };
    }

    /// Whether queues are to be expected, now or later.
    pub(crate) fn has_hope(&self) -> bool {
        self.lock().access != Access::Never
    }

    /// The generation that is open.
    pub(crate) fn open_generation(&self) -> Option<u64> {
        let state = self.lock();
        matches!(state.access, Access::Open(_)).then_some(state.generation)
    }

    /// A right to have a queue.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Pass, NoPass> {
        let mut state = self.lock();
        let Access::Open(facts) = &state.access else { return Err(NoPass::Closed) };
        let facts = facts.clone();
        let qid = state.free.pop().ok_or(NoPass::NoQueueLeft)?;
        // Counted under the lock: whoever closes the door sees it.
        self.queues.fetch_add(1, Ordering::SeqCst);
        Ok(Pass { door: Arc::clone(self), qid, generation: state.generation, facts })
    }

    /// Queues that are not released yet.
    pub(crate) fn queues(&self) -> usize {
        let _state = self.lock();
        self.queues.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, DoorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.door.lock();
        if state.generation == self.generation {
            state.free.push(self.qid);
        }
        self.door.queues.fetch_sub(1, Ordering::SeqCst);
    }
}
