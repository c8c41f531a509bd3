//! What a reactor has for all its queues: the queues themselves, the views of
//! subsystems, poll groups, idle commands, and who waits for a buffer.
//!
//! Made when the target starts, found by the reactor's number, changed only on
//! its reactor.
// UNSAFETY: owns the queue pairs whose raw pointers transports hold.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::rc::Rc;

use tenon_abi::transport::CloseReason;
use tenon_reactor::{ReactorId, ReactorRef};

use super::command::{Command, Pool};
use super::interface::{QueueKey, SubsystemId};
use super::share::Shares;
use super::view::SubsystemSide;
use super::{Phase, QueuePair};
use crate::config::TargetOptions;
use crate::post::post;
use crate::reservation::state::Host;
use crate::target::Target;

/// The target on one data reactor.
pub(crate) struct ReactorSide {
    pub id: ReactorId,
    control: ReactorRef,
    pub options: TargetOptions,
    pub pool: Pool,
    pub shares: Shares,
    subsystems: RefCell<HashMap<SubsystemId, Rc<SubsystemSide>>>,
    queues: RefCell<HashMap<u64, *mut QueuePair>>,
    groups: RefCell<HashMap<u64, *mut c_void>>,
    waiting: RefCell<VecDeque<*mut Command>>,
    is_serving: Cell<bool>,
    numbers: Cell<u64>,
    /// Admin and I/O queues opened since the start.
    pub opened: Cell<(u64, u64)>,
    /// I/O commands served by subsystems that are gone.
    past_commands: Cell<u64>,
}

/// What a reactor has, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReactorCounts {
    /// Connections.
    pub queues: usize,
    /// Commands in flight.
    pub commands: usize,
    /// Commands that wait for a buffer.
    pub waiting: usize,
    /// Subsystems known.
    pub subsystems: usize,
    /// Poll groups.
    pub poll_groups: usize,
}

thread_local! {
    /// By reactor; a simulation has several on its thread.
    static SIDES: RefCell<Vec<Option<Rc<ReactorSide>>>> = const { RefCell::new(Vec::new()) };
}

impl ReactorSide {
    /// Makes the calling reactor's.
    pub(crate) fn install(options: TargetOptions) {
        let local = tenon_reactor::current();
        let side = Rc::new(ReactorSide {
            id: local.id(),
            control: local.directory().control().clone(),
            options,
            pool: Pool::new(),
            shares: Shares::default(),
            subsystems: RefCell::default(),
            queues: RefCell::default(),
            groups: RefCell::default(),
            waiting: RefCell::default(),
            is_serving: Cell::new(false),
            numbers: Cell::new(0),
            opened: Cell::new((0, 0)),
            past_commands: Cell::new(0),
        });
        SIDES.with(|sides| {
            let mut sides = sides.borrow_mut();
            let at = local.id().index();
            if sides.len() <= at {
                sides.resize(at + 1, None);
            }
            sides[at] = Some(side);
        });
    }

    /// Takes the calling reactor's away.
    pub(crate) fn uninstall() {
        let at = tenon_reactor::current().id().index();
        let side = SIDES.with(|sides| sides.borrow_mut().get_mut(at).and_then(Option::take));
        drop(side);
    }

    /// The calling reactor's.
    pub(crate) fn current() -> Option<Rc<ReactorSide>> {
        let at = tenon_reactor::try_current()?.id().index();
        SIDES.with(|sides| sides.borrow().get(at).cloned().flatten())
    }

    pub(crate) fn tell_control(&self, f: impl FnOnce() + Send + 'static) {
        post(&self.control, f);
    }

    pub(crate) fn next_key(&self) -> QueueKey {
        self.numbers.set(self.numbers.get() + 1);
        QueueKey { reactor: self.id, number: self.numbers.get() }
    }

    pub(crate) fn subsystem(&self, id: SubsystemId) -> Option<Rc<SubsystemSide>> {
        self.subsystems.borrow().get(&id).cloned()
    }

    pub(crate) fn subsystem_added(&self, id: SubsystemId) {
        self.subsystems.borrow_mut().entry(id).or_insert_with(|| Rc::new(SubsystemSide::new(id)));
    }

    pub(crate) fn subsystem_removed(&self, id: SubsystemId) {
        let removed = self.subsystems.borrow_mut().remove(&id);
        if let Some(removed) = removed {
            self.past_commands.set(self.past_commands.get() + removed.counts().commands());
        }
    }

    /// Commands with devices now, and I/O commands served since the start.
    pub(crate) fn work(&self) -> (u64, u64) {
        let subsystems = self.subsystems.borrow();
        let pending = subsystems.values().map(|view| u64::from(view.in_device.get())).sum();
        let served: u64 = subsystems.values().map(|view| view.counts().commands()).sum();
        (pending, served + self.past_commands.get())
    }

    pub(crate) fn group(&self, transport: u64) -> Option<*mut c_void> {
        self.groups.borrow().get(&transport).copied()
    }

    pub(crate) fn group_added(&self, transport: u64, group: *mut c_void) {
        self.groups.borrow_mut().insert(transport, group);
    }

    pub(crate) fn group_removed(&self, transport: u64) -> Option<*mut c_void> {
        self.groups.borrow_mut().remove(&transport)
    }

    /// Takes over a queue; the pointer is good until [`ReactorSide::free_queue`].
    pub(crate) fn queue_added(&self, queue: QueuePair) -> *mut QueuePair {
        let number = queue.key.number;
        let raw = Box::into_raw(Box::new(queue));
        self.queues.borrow_mut().insert(number, raw);
        raw
    }

    /// Calls `f` with the queue of that number, if it is still here.
    pub(crate) fn with_queue<T>(&self, number: u64, f: impl FnOnce(&QueuePair) -> T) -> Option<T> {
        let queue = self.queues.borrow().get(&number).copied()?;
        // SAFETY: a queue is freed by `free_queue` only, which takes it out first and never runs inside `f`:
        // it is deferred.
        Some(f(unsafe { &*queue }))
    }

    pub(crate) fn queue_numbers(&self) -> Vec<u64> {
        self.queues.borrow().keys().copied().collect()
    }

    /// Frees a queue that its transport has closed and that has no request left.
    pub(crate) fn free_queue(&self, number: u64) {
        let Some(raw) = self.queues.borrow_mut().remove(&number) else { return };
        // SAFETY: it came from `queue_added`, and is taken out once; no request refers to it any more.
        let queue = unsafe { Box::from_raw(raw) };
        if queue.phase.get() != Phase::Closed || queue.outstanding() != 0 {
            log::error!("queue in use was not freed number={number}");
            self.queues.borrow_mut().insert(number, Box::into_raw(queue));
            return;
        }
        if let Some(open) = queue.opened.get() {
            let own: *const QueuePair = raw;
            open.subsystem.queues.borrow_mut().retain(|other| !std::ptr::eq(*other, own));
        }
        // SAFETY: every request of the connection is released; this is its reactor.
        unsafe { (queue.transport.ops().connection_free)(queue.connection) };
        queue.transport.connection_gone(self.id);
        let key = queue.key;
        self.tell_control(move || {
            if let Some(target) = Target::current() {
                target.queue_gone(key);
            }
        });
    }

    /// Ends every connection of a transport.
    pub(crate) fn close_queues(&self, wanted: impl Fn(&QueuePair) -> bool, reason: CloseReason) {
        for number in self.queue_numbers() {
            self.with_queue(number, |queue| {
                if wanted(queue) {
                    queue.close(reason);
                }
            });
        }
    }

    /// Ends early what some hosts have under way at a namespace; tells how many commands devices still have.
    pub(crate) fn abort_commands_of(&self, id: SubsystemId, nsid: u32, hosts: &[Host]) -> usize {
        let mut left = 0;
        for number in self.queue_numbers() {
            self.with_queue(number, |queue| {
                let is_theirs = queue.opened.get().is_some_and(|open| {
                    open.subsystem.id == id && open.qid != 0 && hosts.contains(&open.association.hostid.0)
                });
                if is_theirs {
                    left += queue.abort_namespace(nsid);
                }
            });
        }
        left
    }

    /// `command` is served when a buffer comes back.
    pub(crate) fn wait_for_buffer(&self, command: *mut Command) {
        self.waiting.borrow_mut().push_back(command);
    }

    pub(crate) fn forget_waiting(&self, commands: &[*mut Command]) {
        if !commands.is_empty() {
            self.waiting.borrow_mut().retain(|waiting| !commands.contains(waiting));
        }
    }

    /// A buffer came back: those who wait are served, in a later turn.
    pub(crate) fn buffer_returned(&self) {
        if self.waiting.borrow().is_empty() || self.is_serving.replace(true) {
            return;
        }
        let queued = tenon_reactor::current().defer(|| {
            if let Some(side) = ReactorSide::current() {
                side.serve_waiting();
            }
        });
        if queued.is_err() {
            self.is_serving.set(false);
        }
    }

    fn serve_waiting(&self) {
        self.is_serving.set(false);
        // Each is tried once: one that holds too much itself does not keep the others waiting.
        let count = self.waiting.borrow().len();
        for _ in 0..count {
            let Some(command) = self.waiting.borrow_mut().pop_front() else { return };
            // SAFETY: whoever ends a command takes it off this list first.
            let is_served = unsafe { (*(*command).queue).retry_buffer(command) };
            if !is_served {
                self.waiting.borrow_mut().push_back(command);
            }
        }
    }

    pub(crate) fn counts(&self) -> ReactorCounts {
        ReactorCounts {
            queues: self.queues.borrow().len(),
            commands: self.pool.in_use(),
            waiting: self.waiting.borrow().len(),
            subsystems: self.subsystems.borrow().len(),
            poll_groups: self.groups.borrow().len(),
        }
    }
}
