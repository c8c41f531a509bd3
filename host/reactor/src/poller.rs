//! Pollers of one reactor: those run on every turn and those run by period.
//!
//! ```text
//!   EveryTurn ◄─set period 0──► Timed        pause: either ─► Paused
//!                                            resume: Paused ─► by its period
//! ```
//!
//! The pollers of every turn lie side by side in one vector, and a turn over them
//! costs an indirect call each. They may change while it runs: what is added runs
//! from the next turn on, what is removed becomes a poller that does nothing and
//! is swept out after the turn. Timed pollers wait in `timer`. Does not decide
//! when to sleep; it only counts the pollers that forbid it.
//!
//! # Safety
//!
//! `poll_nothing` is unsafe only by its type; its caller owes nothing.
// UNSAFETY: calls C functions; the vector is reached without a run-time borrow check.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::ffi::c_void;

use crate::callback::{Callback, OwnedArg, PollFn};
use crate::slab::{Key, PollerId, Slab};
use crate::timer::{Action, Timers};

/// How many pollers a reactor may have; the next one is refused.
pub const MAX_POLLERS: usize = 4096;

/// What a poller says when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// There was nothing to do.
    Idle,
    /// There was work, so there may be more.
    Busy,
}

/// Whether a reactor may sleep while a poller is registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollerKind {
    /// Nothing else tells of its work: with period 0 it keeps a data reactor awake, and is run
    /// every [`SLEEP_MODE_PURE_PERIOD`](crate::SLEEP_MODE_PURE_PERIOD) on one that never spins.
    Pure,
    /// A descriptor or a message wakes the reactor when there is work for it. Its hook,
    /// see [`Local::set_before_sleep`](crate::Local::set_before_sleep), arms that source.
    Wakeable,
}

/// When a poller runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollerState {
    /// On every turn.
    EveryTurn,
    /// Once in its period.
    Timed,
    /// Not until it is resumed.
    Paused,
}

/// One poller, for a report.
#[derive(Clone, Debug)]
pub struct PollerStatistics {
    /// Its handle.
    pub id: PollerId,
    /// As it was registered.
    pub name: String,
    /// As it was registered.
    pub kind: PollerKind,
    /// 0: every turn.
    pub period_us: u64,
    /// When it runs now.
    pub state: PollerState,
    /// How often it was called.
    pub runs: u64,
    /// How often it found work.
    pub busy_runs: u64,
}

/// The pollers of one reactor.
pub(crate) struct Pollers {
    /// Only this file touches it, and never across a callback.
    every_turn: UnsafeCell<Vec<Running>>,
    every_turn_count: Cell<usize>,
    in_pass: Cell<bool>,
    has_removed: Cell<bool>,
    slots: RefCell<Slab<Poller>>,
    /// Of those run on every turn, how many are [`PollerKind::Pure`].
    pure_count: Cell<usize>,
    hook_count: Cell<usize>,
}

/// How many pollers are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PollerCounts {
    pub every_turn: u32,
    pub timed: u32,
    pub paused: u32,
}

struct Running {
    run: PollFn,
    arg: *mut c_void,
    runs: u64,
    busy_runs: u64,
    /// `None`: removed during the pass.
    key: Option<Key>,
}

struct Poller {
    name: Box<str>,
    kind: PollerKind,
    period_us: u64,
    callback: Callback<PollFn>,
    before_sleep: Option<Callback<PollFn>>,
    schedule: Schedule,
    runs: u64,
    busy_runs: u64,
}

#[derive(Clone, Copy)]
enum Schedule {
    EveryTurn { index: usize },
    Timed { timer: Key },
    Paused,
}

/// A poller that was called by its period: what to call, and for whom to count.
pub(crate) struct TimedCall {
    run: PollFn,
    arg: *mut c_void,
    id: PollerId,
}

impl Pollers {
    pub(crate) fn new(tag: u32) -> Self {
        Self {
            every_turn: UnsafeCell::new(Vec::new()),
            every_turn_count: Cell::new(0),
            in_pass: Cell::new(false),
            has_removed: Cell::new(false),
            slots: RefCell::new(Slab::new(tag, MAX_POLLERS)),
            pure_count: Cell::new(0),
            hook_count: Cell::new(0),
        }
    }

    /// Adds a poller, or gives the callback back when the bound is reached.
    pub(crate) fn register(
        &self,
        name: &str,
        period_us: u64,
        kind: PollerKind,
        callback: Callback<PollFn>,
        timers: &RefCell<Timers>,
        now_ns: u64,
    ) -> Result<PollerId, OwnedArg> {
        let poller = Poller {
            name: name.into(),
            kind,
            period_us,
            callback,
            before_sleep: None,
            schedule: Schedule::Paused,
            runs: 0,
            busy_runs: 0,
        };
        let key =
            self.slots.borrow_mut().insert(poller).map_err(|refused| refused.callback.into_owned_arg())?;
        self.schedule(key, timers, now_ns);
        Ok(PollerId(key))
    }

    /// Removes a poller; what it owned is the caller's to release, after any running callback.
    pub(crate) fn unregister(&self, id: PollerId, timers: &RefCell<Timers>) -> Option<[Option<OwnedArg>; 2]> {
        self.slots.borrow().get(id.0)?;
        self.unschedule(id.0, timers);
        let poller = self.slots.borrow_mut().remove(id.0)?;
        let hook = poller.before_sleep.map(Callback::into_owned_arg);
        self.hook_count.set(self.hook_count.get() - usize::from(hook.is_some()));
        Some([Some(poller.callback.into_owned_arg()), hook])
    }

    /// Sets or replaces the question asked before a sleep; returns the old one's argument.
    pub(crate) fn set_before_sleep(
        &self,
        id: PollerId,
        hook: Callback<PollFn>,
    ) -> Result<Option<OwnedArg>, OwnedArg> {
        let mut slots = self.slots.borrow_mut();
        let Some(poller) = slots.get_mut(id.0) else { return Err(hook.into_owned_arg()) };
        let old = poller.before_sleep.replace(hook);
        self.hook_count.set(self.hook_count.get() + usize::from(old.is_none()));
        Ok(old.map(Callback::into_owned_arg))
    }

    /// Stops running a poller; one that is paused stays so.
    pub(crate) fn pause(&self, id: PollerId, timers: &RefCell<Timers>) -> bool {
        self.unschedule(id.0, timers)
    }

    /// Runs a paused poller again; one that runs goes on as it was.
    pub(crate) fn resume(&self, id: PollerId, timers: &RefCell<Timers>, now_ns: u64) -> bool {
        let schedule = self.slots.borrow().get(id.0).map(|poller| poller.schedule);
        match schedule {
            None => false,
            Some(Schedule::EveryTurn { .. } | Schedule::Timed { .. }) => true,
            Some(Schedule::Paused) => {
                self.schedule(id.0, timers, now_ns);
                true
            }
        }
    }

    /// Changes the period; a paused poller uses it when it is resumed.
    pub(crate) fn set_period(
        &self,
        id: PollerId,
        period_us: u64,
        timers: &RefCell<Timers>,
        now_ns: u64,
    ) -> bool {
        let schedule = match self.slots.borrow_mut().get_mut(id.0) {
            None => return false,
            Some(poller) => {
                poller.period_us = period_us;
                poller.schedule
            }
        };
        match schedule {
            Schedule::Paused => {}
            Schedule::EveryTurn { .. } | Schedule::Timed { .. } => {
                self.unschedule(id.0, timers);
                self.schedule(id.0, timers, now_ns);
            }
        }
        true
    }

    /// Calls every poller of every turn once, from the `first`-th on; true if one found work.
    #[inline(always)]
    pub(crate) fn run_every_turn(&self, first: usize) -> bool {
        // What is added during the pass lies behind `end`; nothing is taken out before it is over.
        let end = self.with_every_turn(|running| running.len());
        if end == 0 {
            return false;
        }
        self.in_pass.set(true);
        let mut busy = false;
        let mut index = if first < end { first } else { 0 };
        for _ in 0..end {
            let (run, arg) = self.with_every_turn(|running| {
                let poller = &mut running[index];
                poller.runs += 1;
                (poller.run, poller.arg)
            });
            // SAFETY: whoever registered the pair vouched for it until it is unregistered, and
            // an unregistered poller's entry holds `poll_nothing` instead.
            if unsafe { run(arg) } > 0 {
                busy = true;
                self.with_every_turn(|running| running[index].busy_runs += 1);
            }
            index += 1;
            if index == end {
                index = 0;
            }
        }
        self.in_pass.set(false);
        if self.has_removed.get() {
            self.sweep();
        }
        busy
    }

    /// The period of a timed poller has passed: sets its next deadline, returns what to call.
    ///
    /// The deadline is set first, so that the callback may pause or unregister itself. A poller
    /// that is late by more than a period skips runs rather than repeating them.
    pub(crate) fn begin_timed(
        &self,
        id: PollerId,
        deadline_ns: u64,
        timers: &RefCell<Timers>,
        now_ns: u64,
    ) -> Option<TimedCall> {
        let mut slots = self.slots.borrow_mut();
        let poller = slots.get_mut(id.0)?;
        let period_ns = period_ns(poller.period_us);
        let next = deadline_ns.saturating_add(period_ns);
        let next = if next > now_ns { next } else { now_ns.saturating_add(period_ns) };
        poller.schedule = timed(id.0, next, timers);
        poller.runs += 1;
        let (run, arg) = poller.callback.parts();
        Some(TimedCall { run, arg, id })
    }

    /// Calls a timed poller.
    pub(crate) fn run_timed(&self, call: &TimedCall) -> bool {
        // SAFETY: as in `run_every_turn`; `begin_timed` found it registered a moment ago.
        let busy = unsafe { (call.run)(call.arg) } > 0;
        if busy && let Some(poller) = self.slots.borrow_mut().get_mut(call.id.0) {
            poller.busy_runs += 1;
        }
        busy
    }

    /// Asks every hook of a poller that is not paused; true if all of them allow a sleep.
    pub(crate) fn allow_sleep(&self) -> bool {
        if self.hook_count.get() == 0 {
            return true;
        }
        let slots = self.slots.borrow().slots();
        for index in 0..slots {
            let hook = self.slots.borrow().at(index).and_then(|poller| match poller.schedule {
                Schedule::Paused => None,
                Schedule::EveryTurn { .. } | Schedule::Timed { .. } => {
                    poller.before_sleep.as_ref().map(Callback::parts)
                }
            });
            // SAFETY: as in `run_every_turn`; the hook was in its slot a moment ago.
            if hook.is_some_and(|(run, arg)| unsafe { run(arg) } <= 0) {
                return false;
            }
        }
        true
    }

    /// How many pollers every turn calls.
    #[inline(always)]
    pub(crate) fn every_turn_count(&self) -> usize {
        self.every_turn_count.get()
    }

    /// How many of them forbid to sleep.
    #[inline(always)]
    pub(crate) fn pure_count(&self) -> usize {
        self.pure_count.get()
    }

    pub(crate) fn counts(&self) -> PollerCounts {
        let mut counts = PollerCounts::default();
        for (_, poller) in self.slots.borrow().iter() {
            match poller.schedule {
                Schedule::EveryTurn { .. } => counts.every_turn += 1,
                Schedule::Timed { .. } => counts.timed += 1,
                Schedule::Paused => counts.paused += 1,
            }
        }
        counts
    }

    /// All pollers, for a report.
    pub(crate) fn statistics(&self) -> Vec<PollerStatistics> {
        self.slots.borrow().iter().map(|(key, poller)| self.describe(key, poller)).collect()
    }

    /// Takes everything that pollers own out, for release.
    pub(crate) fn drain(&self) -> Vec<OwnedArg> {
        self.with_every_turn(Vec::clear);
        self.every_turn_count.set(0);
        self.pure_count.set(0);
        self.hook_count.set(0);
        let pollers = self.slots.borrow_mut().drain();
        pollers
            .into_iter()
            .flat_map(|poller| [Some(poller.callback), poller.before_sleep])
            .flatten()
            .map(Callback::into_owned_arg)
            .collect()
    }

    fn describe(&self, key: Key, poller: &Poller) -> PollerStatistics {
        let (state, (runs, busy_runs)) = match poller.schedule {
            Schedule::EveryTurn { index } => (
                PollerState::EveryTurn,
                self.with_every_turn(|running| (running[index].runs, running[index].busy_runs)),
            ),
            Schedule::Timed { .. } => (PollerState::Timed, (0, 0)),
            Schedule::Paused => (PollerState::Paused, (0, 0)),
        };
        PollerStatistics {
            id: PollerId(key),
            name: poller.name.to_string(),
            kind: poller.kind,
            period_us: poller.period_us,
            state,
            runs: poller.runs + runs,
            busy_runs: poller.busy_runs + busy_runs,
        }
    }

    /// Paused ─► by its period.
    fn schedule(&self, key: Key, timers: &RefCell<Timers>, now_ns: u64) {
        let mut slots = self.slots.borrow_mut();
        let Some(poller) = slots.get_mut(key) else { return };
        if poller.period_us > 0 {
            poller.schedule = timed(key, now_ns.saturating_add(period_ns(poller.period_us)), timers);
            return;
        }
        let (run, arg) = poller.callback.parts();
        let index = self.with_every_turn(|running| {
            running.push(Running { run, arg, runs: 0, busy_runs: 0, key: Some(key) });
            running.len() - 1
        });
        poller.schedule = Schedule::EveryTurn { index };
        self.every_turn_count.set(self.every_turn_count.get() + 1);
        self.pure_count.set(self.pure_count.get() + usize::from(poller.kind == PollerKind::Pure));
    }

    /// Any ─► Paused; false if there is no such poller.
    fn unschedule(&self, key: Key, timers: &RefCell<Timers>) -> bool {
        let mut slots = self.slots.borrow_mut();
        let Some(poller) = slots.get_mut(key) else { return false };
        match std::mem::replace(&mut poller.schedule, Schedule::Paused) {
            Schedule::Paused => return true,
            Schedule::Timed { timer } => {
                timers.borrow_mut().remove(timer);
                return true;
            }
            Schedule::EveryTurn { index } => self.with_every_turn(|running| {
                let running = &mut running[index];
                poller.runs += running.runs;
                poller.busy_runs += running.busy_runs;
                *running = Running {
                    run: poll_nothing,
                    arg: std::ptr::null_mut(),
                    runs: 0,
                    busy_runs: 0,
                    key: None,
                };
            }),
        }
        self.every_turn_count.set(self.every_turn_count.get() - 1);
        self.pure_count.set(self.pure_count.get() - usize::from(poller.kind == PollerKind::Pure));
        drop(slots);
        self.has_removed.set(true);
        if !self.in_pass.get() {
            self.sweep();
        }
        true
    }

    /// Takes removed pollers out of the vector and tells the others where they are now.
    #[cold]
    fn sweep(&self) {
        self.has_removed.set(false);
        let mut slots = self.slots.borrow_mut();
        self.with_every_turn(|running| {
            running.retain(|entry| entry.key.is_some());
            for (index, entry) in running.iter().enumerate() {
                if let Some(poller) = entry.key.and_then(|key| slots.get_mut(key)) {
                    poller.schedule = Schedule::EveryTurn { index };
                }
            }
        });
    }

    #[inline(always)]
    fn with_every_turn<R>(&self, f: impl FnOnce(&mut Vec<Running>) -> R) -> R {
        // SAFETY: the reactor's thread is the only one here (`Pollers` is not `Sync`), and no
        // closure that this file passes calls a callback or this function again.
        f(unsafe { &mut *self.every_turn.get() })
    }
}

/// What runs in the place of a poller that was removed during the pass.
unsafe extern "C" fn poll_nothing(_: *mut c_void) -> i32 {
    0
}

fn timed(key: Key, deadline_ns: u64, timers: &RefCell<Timers>) -> Schedule {
    match timers.borrow_mut().insert(deadline_ns, Action::Poll(PollerId(key))) {
        Ok(timer) => Schedule::Timed { timer },
        Err(_) => unreachable!("the heap has room for one deadline of each of {MAX_POLLERS} pollers"),
    }
}

fn period_ns(period_us: u64) -> u64 {
    period_us.saturating_mul(1000)
}
