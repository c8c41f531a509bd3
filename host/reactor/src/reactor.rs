//! The reactor itself: the order of a turn, and what is accounted after it.
//!
//! A turn runs ready descriptors, messages, deferred calls, pollers and due
//! timers, each within a bound, so that none starves another. Reading the clock
//! costs as much as a short turn; while turns are idle and short it is read once
//! in [`IDLE_STRIDE`] of them. When to sleep is decided in `rest`; where turns
//! come from, a thread or a simulation, is not known here.
// UNSAFETY: takes messages from the queue, whose only consumer is the reactor's thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::callback::{Callback, MessageFn, OwnedArg, guarded};
use crate::clock::Clock;
use crate::directory::{Directory, SendError, Shared};
use crate::epoll::Fds;
use crate::offload::{OffloadError, OffloadPool};
use crate::poller::Pollers;
use crate::rest::{Mode, Rest};
use crate::slab::{Key, Slab};
use crate::stats;
use crate::timer::{Action, Timers};
use crate::watchdog::LongTurns;

/// How many messages, and how many deferred calls, a reactor runs in one turn; others wait.
pub const MESSAGES_PER_TURN: usize = 256;
/// How many timers and timed pollers a reactor runs in one turn; others wait for the next.
pub const TIMERS_PER_TURN: usize = 256;
/// How many deferred calls may wait on a reactor; the next one is refused.
pub const MAX_DEFERRED: usize = 65_536;

/// Everything that belongs to one reactor's thread.
pub(crate) struct Core {
    pub shared: Arc<Shared>,
    pub directory: Directory,
    pub clock: Clock,
    pub mode: Cell<Mode>,
    pub pollers: Pollers,
    pub timers: RefCell<Timers>,
    pub fds: Fds,
    pub offload: OffloadPool,
    pub rest: Rest,
    /// Answers that offloaded work owes this reactor.
    owed: RefCell<Slab<Callback<MessageFn>>>,
    deferred: RefCell<VecDeque<Callback<MessageFn>>>,
    /// What unregistered callbacks owned, until no callback runs.
    garbage: RefCell<Vec<OwnedArg>>,
    /// Whether `deferred` or `garbage` holds anything.
    has_chores: Cell<bool>,
    is_stopping: Cell<bool>,
    next_deadline_ns: Cell<u64>,
    now_ns: Cell<u64>,
    now_ticks: Cell<u64>,
    turns: Cell<u64>,
    accounted_turns: Cell<u64>,
    long_turns: LongTurns,
}

/// What a reactor is made of, apart from what it makes itself.
pub(crate) struct CoreParts {
    pub shared: Arc<Shared>,
    pub directory: Directory,
    pub clock: Clock,
    pub mode: Mode,
    pub spin: Duration,
    pub offload: OffloadPool,
    pub watchdog_threshold: Duration,
}

/// Which parts of a turn run. A thread runs all of them; a simulation leaves some for later.
pub(crate) struct TurnPlan {
    pub messages: usize,
    pub has_pollers: bool,
    pub has_timers: bool,
    /// Which of the pollers of every turn begins.
    pub first_poller: usize,
}

impl TurnPlan {
    /// All there is to do, in order.
    pub(crate) const FULL: Self =
        Self { messages: MESSAGES_PER_TURN, has_pollers: true, has_timers: true, first_poller: 0 };
}

impl Core {
    pub(crate) fn new(parts: CoreParts) -> io::Result<Rc<Self>> {
        let tag = parts.shared.id.index() as u32;
        let (now_ticks, now_ns) = parts.clock.read();
        let fds = Fds::new(tag);
        if let Some(waker) = &parts.shared.waker {
            fds.watch_waker(waker)?;
        }
        Ok(Rc::new(Self {
            shared: parts.shared,
            directory: parts.directory,
            clock: parts.clock,
            mode: Cell::new(parts.mode),
            pollers: Pollers::new(tag),
            timers: RefCell::new(Timers::new(tag)),
            fds,
            offload: parts.offload,
            rest: Rest::new(parts.spin, now_ns),
            owed: RefCell::new(Slab::new(tag, MAX_OWED)),
            deferred: RefCell::new(VecDeque::new()),
            garbage: RefCell::new(Vec::new()),
            has_chores: Cell::new(false),
            is_stopping: Cell::new(false),
            next_deadline_ns: Cell::new(u64::MAX),
            now_ns: Cell::new(now_ns),
            now_ticks: Cell::new(now_ticks),
            turns: Cell::new(0),
            accounted_turns: Cell::new(0),
            long_turns: LongTurns::new(parts.watchdog_threshold),
        }))
    }

    /// Turns until it is told to stop. The reactor must be the thread's current one.
    pub(crate) fn run(&self) {
        let mut turns_left = 1;
        while !self.is_stopping.get() {
            let busy = self.turn(&TurnPlan::FULL);
            turns_left -= 1;
            if busy || turns_left == 0 {
                turns_left = self.account(busy);
                self.rest_after(busy);
            }
        }
    }

    /// One turn; true if it found work.
    #[inline(always)]
    pub(crate) fn turn(&self, plan: &TurnPlan) -> bool {
        let mut busy = false;
        if self.fds.has_ready() {
            busy |= self.fds.dispatch();
        }
        if self.shared.queue.has_message() {
            busy |= self.run_messages(plan.messages);
        }
        if self.has_chores.get() {
            busy |= self.run_chores(plan.messages);
        }
        if plan.has_pollers {
            busy |= self.pollers.run_every_turn(plan.first_poller);
        }
        if plan.has_timers && self.next_deadline_ns.get() <= self.now_ns.get() {
            busy |= self.run_due();
        }
        self.turns.set(self.turns.get() + 1);
        busy
    }

    /// Reads the clock and accounts the turns since it was last read. Returns how many idle turns
    /// may pass until it must be read again.
    pub(crate) fn account(&self, busy: bool) -> u32 {
        let (ticks, ns) = self.advance_now();
        let turns = self.turns.get() - self.accounted_turns.replace(self.turns.get());
        let published = &self.shared.published;
        stats::add(&published.turns, turns);
        stats::add(if busy { &published.busy_ticks } else { &published.idle_ticks }, ticks);
        // Of several turns since the last reading at most one was long: see `IDLE_STRIDE`.
        if ns > published.longest_turn_ns.load(Ordering::Relaxed) {
            published.longest_turn_ns.store(ns, Ordering::Relaxed);
        }
        if ns > self.long_turns.threshold_ns() {
            self.note_long_turn(ns);
        }
        let is_short = ns < turns * IDLE_TURN_NS;
        if busy || !is_short || self.pollers.every_turn_count() == 0 { 1 } else { IDLE_STRIDE }
    }

    /// Moves the cached time to the clock's; returns the ticks and nanoseconds in between.
    pub(crate) fn advance_now(&self) -> (u64, u64) {
        let (ticks, now_ns) = self.clock.read();
        // Never backwards, should the core's counter be behind the last one's.
        let now_ns = now_ns.max(self.now_ns.get());
        let before = (self.now_ticks.replace(ticks), self.now_ns.replace(now_ns));
        (ticks.saturating_sub(before.0), now_ns - before.1)
    }

    /// Nanoseconds as of this turn.
    #[inline(always)]
    pub(crate) fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    /// The earliest deadline of a timer or timed poller, or `u64::MAX`.
    pub(crate) fn next_deadline_ns(&self) -> u64 {
        self.next_deadline_ns.get()
    }

    /// Whether a deferred call or a release waits for the next turn.
    pub(crate) fn has_chores(&self) -> bool {
        self.has_chores.get()
    }

    /// Ends [`Self::run`] after the turn.
    pub(crate) fn request_stop(&self) {
        self.is_stopping.set(true);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.get()
    }

    /// Timers were added or removed.
    pub(crate) fn timers_changed(&self) {
        let timers = self.timers.borrow();
        self.next_deadline_ns.set(timers.next_deadline_ns());
        self.shared.published.timers.store(timers.one_shots() as u32, Ordering::Relaxed);
    }

    /// Pollers were added, removed, paused or resumed, and with them perhaps deadlines.
    pub(crate) fn schedule_changed(&self) {
        self.timers_changed();
        self.shared.published.set_poller_counts(self.pollers.counts());
    }

    /// Descriptors were added or removed.
    pub(crate) fn fds_changed(&self) {
        self.shared.published.fds.store(self.fds.count() as u32, Ordering::Relaxed);
    }

    /// Releases what a callback owned once no callback runs: it may be the running one's own.
    pub(crate) fn release_later(&self, owned: OwnedArg) {
        self.garbage.borrow_mut().push(owned);
        self.has_chores.set(true);
    }

    /// Calls `f` from the reactor, later.
    pub(crate) fn defer(&self, f: Callback<MessageFn>) -> Result<(), SendError> {
        if self.deferred.borrow().len() >= MAX_DEFERRED {
            return Err(SendError::QueueFull);
        }
        self.deferred.borrow_mut().push_back(f);
        self.has_chores.set(true);
        Ok(())
    }

    /// Keeps what follows offloaded work until its answer comes.
    pub(crate) fn await_offload(&self, done: Callback<MessageFn>) -> Result<Key, OffloadError> {
        let inserted = self.owed.borrow_mut().insert(done);
        inserted.map_err(|_refused| OffloadError::QueueFull)
    }

    /// The answer has come.
    pub(crate) fn finish_offload(&self, token: Key) {
        let done = self.owed.borrow_mut().remove(token);
        if let Some(done) = done {
            done.call();
        }
    }

    /// No answer will come.
    pub(crate) fn forget_offload(&self, token: Key) {
        let forgotten = self.owed.borrow_mut().remove(token);
        forgotten.into_iter().for_each(|done| self.release_later(done.into_owned_arg()));
    }

    /// Refuses further messages and releases everything, on the reactor's thread. What was sent
    /// before is run first if `run_messages`, within the queue's bound.
    pub(crate) fn finish(&self, run_messages: bool) {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        for _ in 0..crate::message::MESSAGE_QUEUE_CAPACITY {
            // SAFETY: this is the reactor's thread.
            let Some(message) = (unsafe { self.shared.queue.pop() }) else { break };
            if run_messages {
                message.call();
            } else {
                self.release_later(message.into_owned_arg());
            }
        }
        // A release may unregister and defer further things, so this takes a few rounds; what
        // keeps making new ones for ever is left to the process's end.
        for _ in 0..RELEASE_ROUNDS {
            let timers = self.timers.borrow_mut().drain();
            let deferred = std::mem::take(&mut *self.deferred.borrow_mut());
            let owed = self.owed.borrow_mut().drain();
            let garbage = std::mem::take(&mut *self.garbage.borrow_mut());
            let owned = (self.pollers.drain(), self.fds.drain());
            guarded(|| drop((timers, deferred, owed, garbage, owned)));
            if self.garbage.borrow().is_empty() && self.deferred.borrow().is_empty() {
                break;
            }
        }
        self.schedule_changed();
        self.fds_changed();
    }

    fn run_messages(&self, limit: usize) -> bool {
        let mut run = 0;
        while run < limit {
            // SAFETY: this is the reactor's thread.
            let Some(message) = (unsafe { self.shared.queue.pop() }) else { break };
            message.call();
            run += 1;
        }
        stats::add(&self.shared.published.messages, run as u64);
        run > 0
    }

    /// Runs calls that were deferred before this turn, and releases what is no longer registered.
    #[cold]
    fn run_chores(&self, limit: usize) -> bool {
        let calls = self.deferred.borrow().len().min(limit);
        for _ in 0..calls {
            let next = self.deferred.borrow_mut().pop_front();
            if let Some(call) = next {
                call.call();
            }
        }
        let garbage = std::mem::take(&mut *self.garbage.borrow_mut());
        guarded(|| drop(garbage));
        self.has_chores.set(!self.deferred.borrow().is_empty() || !self.garbage.borrow().is_empty());
        calls > 0
    }

    /// Runs timers and timed pollers whose deadline has come, within a bound.
    #[cold]
    fn run_due(&self) -> bool {
        let mut busy = false;
        for _ in 0..TIMERS_PER_TURN {
            let due = self.timers.borrow_mut().pop_due(self.now_ns.get());
            match due {
                None => break,
                Some((_, Action::OneShot(callback))) => {
                    callback.call();
                    busy = true;
                }
                Some((deadline_ns, Action::Poll(id))) => {
                    let now_ns = self.now_ns.get();
                    if let Some(call) = self.pollers.begin_timed(id, deadline_ns, &self.timers, now_ns) {
                        busy |= self.pollers.run_timed(&call);
                    }
                }
            }
        }
        self.timers_changed();
        busy
    }

    #[cold]
    fn note_long_turn(&self, turn_ns: u64) {
        stats::add(&self.shared.published.long_turns, 1);
        if let Some(unreported) = self.long_turns.should_report(self.now_ns.get()) {
            log::warn!(
                "reactor turn was long reactor={} turn_us={} threshold_us={} unreported={unreported}",
                self.shared.name,
                turn_ns / 1000,
                self.long_turns.threshold_ns() / 1000,
            );
        }
    }
}

/// Idle turns between two readings of the clock, while they are so short that the time of all of
/// them is below what a single turn may take.
const IDLE_STRIDE: u32 = 16;
/// An idle turn longer than this has the clock read after every turn.
const IDLE_TURN_NS: u64 = 100;
/// Answers that offloaded work may owe one reactor.
const MAX_OWED: usize = 4 * crate::offload::MAX_OFFLOAD_QUEUE;
const RELEASE_ROUNDS: usize = 8;
