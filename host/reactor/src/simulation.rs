//! Simulation: the same reactors in one thread, on a virtual clock, ordered by a seed.
//!
//! A step picks, by the seed, one reactor that could do something or one
//! offloaded job. A reactor's step is a turn, cut short by the seed: fewer messages, no pollers
//! yet, no timers yet, pollers from another one on. That gives every interleaving
//! that threads could show between turns, and the same one again for the same
//! seed. What holds on threads holds here: a sender's messages stay in order, and
//! a message that was caused by another comes after it.
//!
//! A reactor with nothing to do sleeps as it would on a thread, hooks included: a
//! wake-up that is lost there is lost here. The clock stands still while there is
//! work; [`Simulation::advance`] moves it from deadline to deadline.
//!
//! Descriptors are real and what the kernel says of them is not seeded; tests that
//! must be repeatable do without them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::time::Duration;

use crate::callback::take_panic;
use crate::clock::{Clock, VirtualClock, VirtualGuard, install_virtual, precise_now_ns};
use crate::directory::{Directory, ReactorId, ReactorRef, SendError, Shared};
use crate::local::{Local, current, enter, leave};
use crate::message::Message;
use crate::offload::{Job, OffloadPool};
use crate::random::Random;
use crate::reactor::{Core, CoreParts, MESSAGES_PER_TURN, TurnPlan};
use crate::rest::{DEFAULT_SPIN, Mode};
use crate::watchdog::DEFAULT_THRESHOLD;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This reactor turned.
    Ran(ReactorId),
    /// An offloaded job ran, or its answer found room.
    Offload,
    /// There is nothing to do at this time.
    Idle,
}

/// A control reactor and data reactors in the calling thread.
pub struct Simulation {
    directory: Directory,
    reactors: Vec<Simulated>,
    clock: Rc<VirtualClock>,
    jobs: Rc<RefCell<VecDeque<Job>>>,
    /// Answers of jobs that have run, whose reactor's queue was full.
    answers: Vec<(Message, ReactorRef)>,
    random: Random,
    /// Counts what may have given any reactor something new to find.
    epoch: u64,
    quantum_ns: Option<u64>,
    stall_permille: u32,
    trace: u64,
    _guard: VirtualGuard,
}

struct Simulated {
    core: Rc<Core>,
    sleep: Sleep,
}

/// Why a simulated reactor has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleep {
    /// It sleeps, until this time if nothing wakes it.
    Until(u64),
    /// It may not sleep, and has found nothing in so many full turns of this epoch.
    Spinning { epoch: u64, idle_turns: u32 },
}

impl Simulation {
    /// `seed` decides every order; the reactors are asleep and the clock stands.
    ///
    /// # Panics
    ///
    /// If a simulation already runs on this thread: they would share its clock.
    pub fn new(seed: u64, data_reactors: usize) -> Self {
        let clock = Rc::new(VirtualClock::new());
        let guard = install_virtual(Rc::clone(&clock));
        let ids = std::iter::once(ReactorId::CONTROL).chain((0..data_reactors).map(ReactorId::data));
        let directory = Directory::new(ids.map(|id| Shared::new(id, None)));
        let jobs = Rc::new(RefCell::new(VecDeque::new()));
        let make = |reactor: &ReactorRef| {
            let core = Core::new(CoreParts {
                shared: reactor.shared().clone(),
                directory: directory.clone(),
                clock: Clock::Virtual(Rc::clone(&clock)),
                mode: if reactor.is_control() { Mode::Sleep } else { Mode::Adaptive },
                spin: DEFAULT_SPIN,
                offload: OffloadPool::Simulated(Rc::clone(&jobs)),
                watchdog_threshold: DEFAULT_THRESHOLD,
            });
            let core = core.expect("a simulated reactor asks the kernel for nothing");
            Simulated { core, sleep: Sleep::Spinning { epoch: 0, idle_turns: 0 } }
        };
        let reactors = directory.all().iter().map(make).collect();
        Self {
            directory,
            reactors,
            clock,
            jobs,
            answers: Vec::new(),
            random: Random::new(seed),
            epoch: 1,
            quantum_ns: None,
            stall_permille: 0,
            trace: FNV_OFFSET,
            _guard: guard,
        }
    }

    /// All reactors.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The control reactor.
    pub fn control(&self) -> ReactorRef {
        self.directory.control().clone()
    }

    /// The `n`-th data reactor.
    pub fn data(&self, n: usize) -> ReactorRef {
        self.directory.data()[n].clone()
    }

    /// The virtual time.
    pub fn now_ns(&self) -> u64 {
        self.clock.now()
    }

    /// A number that two runs share if they took the same steps at the same times.
    pub fn trace_hash(&self) -> u64 {
        self.trace
    }

    /// Lets [`Self::advance`] stop at least this often while a poller keeps a reactor awake: for
    /// pollers that look at the clock themselves. Without it such a poller sees the end only.
    pub fn set_quantum(&mut self, quantum: Duration) {
        self.quantum_ns = Some((quantum.as_nanos() as u64).max(1));
    }

    /// In so many of 1000 steps of [`Self::advance`] and [`Self::run_until`], time goes on to the
    /// next deadline although there is work: a timeout races with what it times. Default: 0.
    pub fn set_stall_permille(&mut self, permille: u32) {
        self.stall_permille = permille;
    }

    /// Runs `f` now, as if it were called from a callback of `reactor`.
    pub fn on<R>(&mut self, reactor: &ReactorRef, f: impl FnOnce(&Local) -> R) -> R {
        let index = reactor.id().index();
        assert!(self.directory.get(reactor.id()) == Some(reactor), "{reactor:?} is not of this simulation");
        self.wake(index);
        self.epoch += 1;
        let _entered = enter(&self.reactors[index].core);
        f(&current())
    }

    /// Does one thing, if there is one to do at this time.
    pub fn step(&mut self) -> Step {
        let jobs = self.jobs.borrow().len() + self.answers.len();
        let mut runnable: Vec<usize> = Vec::with_capacity(self.reactors.len() + 1);
        runnable.extend((0..self.reactors.len()).filter(|&index| self.is_runnable(index)));
        if jobs > 0 {
            runnable.push(OFFLOAD);
        }
        if runnable.is_empty() {
            return Step::Idle;
        }
        let chosen = runnable[self.random.below(runnable.len())];
        self.record(chosen as u64);
        let step = if chosen == OFFLOAD {
            self.run_job();
            Step::Offload
        } else {
            self.run_turn(chosen);
            Step::Ran(self.reactors[chosen].core.shared.id)
        };
        if let Some(panic) = take_panic() {
            resume_unwind(panic);
        }
        step
    }

    /// Steps until there is nothing to do at this time; false if that took more than `limit`.
    pub fn run_until_idle(&mut self, limit: usize) -> bool {
        self.epoch += 1;
        (0..limit).any(|_| self.step() == Step::Idle)
    }

    /// Lets `duration` pass, stopping at every deadline on the way until there is nothing to do.
    /// False if that took more than [`STEPS_PER_DEADLINE`] steps at one time.
    pub fn advance(&mut self, duration: Duration) -> bool {
        let target_ns = self.clock.now().saturating_add(duration.as_nanos() as u64);
        self.drive(target_ns, &mut || false) == Driven::TimePassed
    }

    /// Steps and lets time pass until `condition` holds; false if `limit` has passed before.
    pub fn run_until(&mut self, limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
        let target_ns = self.clock.now().saturating_add(limit.as_nanos() as u64);
        condition() || self.drive(target_ns, &mut condition) == Driven::ConditionMet
    }

    fn drive(&mut self, target_ns: u64, condition: &mut dyn FnMut() -> bool) -> Driven {
        loop {
            self.epoch += 1;
            let mut is_idle = false;
            for _ in 0..STEPS_PER_DEADLINE {
                let can_stall = self.stall_permille > 0 && self.next_stop_ns() <= target_ns;
                is_idle = can_stall && self.random.chance(self.stall_permille) || self.step() == Step::Idle;
                if condition() {
                    return Driven::ConditionMet;
                }
                if is_idle {
                    break;
                }
            }
            if !is_idle {
                return Driven::NeverIdle;
            }
            let now_ns = self.clock.now();
            if now_ns >= target_ns {
                return Driven::TimePassed;
            }
            self.clock.move_to(self.next_stop_ns().clamp(now_ns, target_ns));
            self.record(self.clock.now());
        }
    }

    /// The next time at which something is due, after now.
    fn next_stop_ns(&self) -> u64 {
        let now_ns = self.clock.now();
        let deadline = |reactor: &Simulated| match reactor.sleep {
            Sleep::Until(until_ns) => until_ns,
            Sleep::Spinning { .. } => {
                let quantum = self.quantum_ns.map_or(u64::MAX, |quantum| now_ns.saturating_add(quantum));
                reactor.core.next_deadline_ns().min(quantum)
            }
        };
        self.reactors.iter().map(deadline).filter(|&ns| ns > now_ns).min().unwrap_or(u64::MAX)
    }

    fn is_runnable(&self, index: usize) -> bool {
        let Simulated { core, sleep } = &self.reactors[index];
        if core.fds.count() > 0 {
            core.fds.wait(Some(0));
        }
        if core.fds.has_ready() || core.shared.queue.has_message() {
            return true;
        }
        match *sleep {
            Sleep::Until(until_ns) => self.clock.now() >= until_ns || !core.shared.sleep.is_asleep(),
            Sleep::Spinning { epoch, idle_turns } => {
                core.has_chores()
                    || core.next_deadline_ns() <= self.clock.now()
                    || epoch != self.epoch
                    || idle_turns < IDLE_TURNS_TO_BELIEVE
            }
        }
    }

    fn wake(&mut self, index: usize) {
        let reactor = &mut self.reactors[index];
        match reactor.sleep {
            Sleep::Until(_) => {
                reactor.core.end_sleep();
                reactor.sleep = Sleep::Spinning { epoch: 0, idle_turns: 0 };
            }
            // The clock may have moved between two turns: that is not a long turn.
            Sleep::Spinning { .. } => {
                reactor.core.advance_now();
            }
        }
    }

    fn run_turn(&mut self, index: usize) {
        self.wake(index);
        let plan = self.plan();
        let is_full = plan.messages == MESSAGES_PER_TURN && plan.has_pollers && plan.has_timers;
        let epoch = self.epoch;
        let Simulated { core, sleep } = &mut self.reactors[index];
        let entered = enter(core);
        let busy = core.turn(&plan);
        core.account(busy);
        *sleep = match *sleep {
            _ if busy => Sleep::Spinning { epoch: 0, idle_turns: 0 },
            unchanged if !is_full => unchanged,
            Sleep::Spinning { epoch: before, idle_turns } => match core.prepare_sleep() {
                Some(until_ns) => Sleep::Until(until_ns),
                None if before == epoch => Sleep::Spinning { epoch, idle_turns: idle_turns + 1 },
                None => Sleep::Spinning { epoch, idle_turns: 1 },
            },
            Sleep::Until(_) => unreachable!("{} was woken before its turn", core.shared.name),
        };
        drop(entered);
        if busy {
            self.epoch += 1;
        }
        self.record(u64::from(busy));
    }

    fn plan(&mut self) -> TurnPlan {
        if self.random.chance(FULL_TURN_PERMILLE) {
            return TurnPlan { first_poller: self.random.below(POLLER_STARTS), ..TurnPlan::FULL };
        }
        TurnPlan {
            messages: self.random.below(FEW_MESSAGES + 1),
            has_pollers: self.random.chance(500),
            has_timers: self.random.chance(500),
            first_poller: self.random.below(POLLER_STARTS),
        }
    }

    /// Workers take jobs in order but end them in any, so any job may be the next.
    fn run_job(&mut self) {
        let waiting = self.jobs.borrow().len();
        let chosen = self.random.below(waiting + self.answers.len());
        let (done, reply_to) = if chosen < waiting {
            let job = self.jobs.borrow_mut().remove(chosen).expect("chosen below the length");
            let _left = leave();
            job.work.call();
            (job.done, job.reply_to)
        } else {
            self.answers.swap_remove(chosen - waiting)
        };
        self.epoch += 1;
        match reply_to.send_message(done) {
            Ok(()) | Err((SendError::Stopped, _)) => {}
            Err((SendError::QueueFull, done)) => self.answers.push((done, reply_to)),
        }
    }

    fn record(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(FNV_PRIME);
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        for Simulated { core, .. } in &self.reactors {
            let _entered = enter(core);
            core.finish(false);
        }
        // A panic while things were released has nowhere to go.
        drop(take_panic());
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("now_ns", &self.now_ns())
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driven {
    ConditionMet,
    TimePassed,
    NeverIdle,
}

/// Called from a callback in a simulation: the code around it took this long.
///
/// # Panics
///
/// Outside a simulation, where code takes the time it takes.
pub fn spend(duration: Duration) {
    let clock = crate::clock::virtual_clock().expect("time can be spent only in a simulation");
    clock.move_to(precise_now_ns().saturating_add(duration.as_nanos() as u64));
}

/// How many steps a simulation does at one time before it is said never to be idle.
pub const STEPS_PER_DEADLINE: usize = 1_000_000;
/// Full idle turns without news until a reactor that may not sleep is believed to be idle: a hook
/// may refuse once, after it has armed its source.
const IDLE_TURNS_TO_BELIEVE: u32 = 2;
const FULL_TURN_PERMILLE: u32 = 500;
const FEW_MESSAGES: usize = 4;
const POLLER_STARTS: usize = 8;
const OFFLOAD: usize = usize::MAX;
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
