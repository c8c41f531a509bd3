//! The reactors: messages, pollers, timers, watched descriptors and offloaded
//! work, run one at a time in an order chosen by the seed. The virtual clock
//! moves only when nothing is left to do; with real I/O it is the real clock.
// UNSAFETY: calls the functions modules registered, with the arguments they gave.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tenon_abi::{FdFn, MessageFn, PollerFlags, errno};

use super::module::ModuleId;
use super::shared::{Foreign, Injected, as_foreign, lock};
use super::world::World;
use crate::violation::Fault;

/// A reactor, as tests name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The control reactor.
    Control,
    /// A data reactor by index.
    Data(u32),
}

/// Whose turn it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Where {
    /// Code of the test, outside every reactor.
    Test,
    /// A reactor; 0 is control, data reactor n is n + 1.
    Reactor(usize),
    /// Offloaded work.
    Worker,
}

impl Place {
    pub(crate) fn index(self) -> usize {
        match self {
            Place::Control => CONTROL,
            Place::Data(index) => index as usize + 1,
        }
    }
}

type Task = Box<dyn FnOnce(&Rc<World>)>;

enum Message {
    Call { callback: MessageFn, arg: *mut c_void, module: ModuleId },
    Task(Task),
}

#[derive(Clone, Copy)]
pub(crate) struct PollerSpec {
    pub(crate) flags: PollerFlags,
    pub(crate) period_us: u64,
    pub(crate) callback: unsafe extern "C" fn(arg: *mut c_void) -> i32,
    pub(crate) before_sleep: Option<unsafe extern "C" fn(arg: *mut c_void) -> i32>,
    pub(crate) arg: *mut c_void,
}

struct Poller {
    handle: u64,
    name: String,
    module: ModuleId,
    spec: Cell<PollerSpec>,
    is_paused: Cell<bool>,
    is_asleep: Cell<bool>,
    due_ns: Cell<u64>,
    last_turn: Cell<u64>,
    is_registered: Cell<bool>,
}

enum Alarm {
    Call { callback: MessageFn, arg: *mut c_void },
    Task(Task),
}

struct Timer {
    handle: u64,
    module: ModuleId,
    alarm: Alarm,
}

struct Watch {
    handle: u64,
    module: ModuleId,
    fd: i32,
    events: Cell<u32>,
    callback: FdFn,
    arg: *mut c_void,
    is_registered: Cell<bool>,
}

#[derive(Default)]
struct Reactor {
    messages: RefCell<VecDeque<Message>>,
    pollers: RefCell<Vec<Rc<Poller>>>,
    timers: RefCell<BTreeMap<(u64, u64), Timer>>,
    watches: RefCell<Vec<Rc<Watch>>>,
}

struct Work {
    work: MessageFn,
    done: MessageFn,
    arg: *mut c_void,
    module: ModuleId,
    reactor: usize,
}

/// The reactors of one fake host.
pub(crate) struct Schedule {
    reactors: Vec<Reactor>,
    works: RefCell<VecDeque<Work>>,
    threads: Cell<usize>,
    next_handle: Cell<u64>,
    turn: Cell<u64>,
    quantum_ns: Cell<u64>,
    is_busy: Cell<bool>,
}

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Something ran.
    Ran,
    /// The clock moved.
    Moved,
    /// Nothing will happen before the limit.
    Idle,
}

enum Candidate {
    Message(usize),
    Timer(usize),
    Poller(usize, Rc<Poller>),
    Work(usize),
}

impl Schedule {
    pub(crate) fn new(reactors: usize) -> Schedule {
        Schedule {
            reactors: (0..reactors).map(|_| Reactor::default()).collect(),
            works: RefCell::new(VecDeque::new()),
            threads: Cell::new(0),
            next_handle: Cell::new(0),
            turn: Cell::new(1),
            quantum_ns: Cell::new(MIN_QUANTUM_NS),
            is_busy: Cell::new(false),
        }
    }

    fn fresh_handle(&self) -> u64 {
        self.next_handle.set(self.next_handle.get() + 1);
        self.next_handle.get() | HANDLE_TAG
    }

    /// What `module` left behind: pollers, timers, watched descriptors.
    pub(crate) fn left_by(&self, module: ModuleId) -> Vec<(Fault, String)> {
        let mut left = Vec::new();
        for (index, reactor) in self.reactors.iter().enumerate() {
            let pollers = reactor.pollers.borrow();
            let pollers = pollers.iter().filter(|found| found.module == module);
            left.extend(
                pollers.map(|found| {
                    (Fault::PollerLeaked, format!("poller `{}` of reactor {index}", found.name))
                }),
            );
            let timers = reactor.timers.borrow();
            let count = timers.values().filter(|found| found.module == module).count();
            if count > 0 {
                left.push((Fault::TimerLeaked, format!("{count} timers of reactor {index}")));
            }
            let watches = reactor.watches.borrow();
            let watches = watches.iter().filter(|found| found.module == module);
            left.extend(
                watches
                    .map(|found| (Fault::FdLeaked, format!("watch of fd {} on reactor {index}", found.fd))),
            );
        }
        left
    }

    /// Forgets what `module` left behind, so that it is not called after its end.
    pub(crate) fn forget(&self, module: ModuleId) {
        for reactor in &self.reactors {
            reactor.pollers.borrow_mut().retain(|found| found.module != module);
            reactor.timers.borrow_mut().retain(|_, found| found.module != module);
            reactor.watches.borrow_mut().retain(|found| found.module != module);
            reactor.messages.borrow_mut().retain(|message| match message {
                Message::Call { module: owner, .. } => *owner != module,
                Message::Task(_) => true,
            });
        }
        self.works.borrow_mut().retain(|work| work.module != module);
    }
}

impl World {
    /// The reactor the running code is on.
    pub(crate) fn reactor_here(&self) -> Option<usize> {
        match self.place.get() {
            Where::Reactor(index) => Some(index),
            Where::Test | Where::Worker => None,
        }
    }

    /// Runs `task` on `reactor` in a later step.
    pub(crate) fn post(&self, reactor: usize, task: impl FnOnce(&Rc<World>) + 'static) {
        self.schedule.reactors[reactor].messages.borrow_mut().push_back(Message::Task(Box::new(task)));
    }

    pub(crate) fn send(&self, reactor: usize, callback: MessageFn, arg: *mut c_void) -> i32 {
        let Some(target) = self.schedule.reactors.get(reactor) else { return errno::EINVAL };
        let mut messages = target.messages.borrow_mut();
        if messages.len() >= MAX_MESSAGES {
            return errno::EAGAIN;
        }
        messages.push_back(Message::Call { callback, arg, module: self.acting.get() });
        0
    }

    pub(crate) fn offload(&self, reactor: usize, work: MessageFn, done: MessageFn, arg: *mut c_void) -> i32 {
        let module = self.acting.get();
        if self.schedule.works.borrow().len() + self.schedule.threads.get() >= MAX_WORKS {
            return errno::EAGAIN;
        }
        self.schedule.works.borrow_mut().push_back(Work { work, done, arg, module, reactor });
        0
    }

    pub(crate) fn poller_register(&self, reactor: usize, name: String, spec: PollerSpec) -> u64 {
        let handle = self.schedule.fresh_handle();
        let poller = Poller {
            handle,
            name,
            module: self.acting.get(),
            spec: Cell::new(spec),
            is_paused: Cell::new(false),
            is_asleep: Cell::new(false),
            due_ns: Cell::new(self.now_ns() + spec.period_us * 1000),
            last_turn: Cell::new(0),
            is_registered: Cell::new(true),
        };
        self.schedule.reactors[reactor].pollers.borrow_mut().push(Rc::new(poller));
        handle
    }

    fn poller(&self, reactor: usize, handle: u64) -> Option<Rc<Poller>> {
        self.schedule.reactors[reactor].pollers.borrow().iter().find(|found| found.handle == handle).cloned()
    }

    /// True if the handle belongs to another reactor: a fault of the caller.
    pub(crate) fn is_elsewhere(&self, reactor: usize, handle: u64) -> bool {
        self.schedule.reactors.iter().enumerate().any(|(index, other)| {
            index != reactor
                && (other.pollers.borrow().iter().any(|found| found.handle == handle)
                    || other.watches.borrow().iter().any(|found| found.handle == handle)
                    || other.timers.borrow().values().any(|found| found.handle == handle))
        })
    }

    pub(crate) fn poller_unregister(&self, reactor: usize, handle: u64) -> bool {
        let Some(poller) = self.poller(reactor, handle) else { return false };
        poller.is_registered.set(false);
        self.schedule.reactors[reactor].pollers.borrow_mut().retain(|found| found.handle != handle);
        true
    }

    pub(crate) fn poller_set(&self, reactor: usize, handle: u64, period_us: u64, is_paused: bool) -> bool {
        let Some(poller) = self.poller(reactor, handle) else { return false };
        poller.spec.set(PollerSpec { period_us, ..poller.spec.get() });
        poller.due_ns.set(self.now_ns() + period_us * 1000);
        poller.is_paused.set(is_paused);
        poller.is_asleep.set(false);
        true
    }

    fn arm(&self, reactor: usize, delay_ns: u64, alarm: Alarm) -> u64 {
        let handle = self.schedule.fresh_handle();
        let due_ns = self.now_ns().saturating_add(delay_ns);
        let timer = Timer { handle, module: self.acting.get(), alarm };
        self.schedule.reactors[reactor].timers.borrow_mut().insert((due_ns, handle), timer);
        handle
    }

    pub(crate) fn timer_start(
        &self,
        reactor: usize,
        delay_ns: u64,
        callback: MessageFn,
        arg: *mut c_void,
    ) -> u64 {
        self.arm(reactor, delay_ns, Alarm::Call { callback, arg })
    }

    /// Runs `task` on `reactor` after `delay_ns`.
    pub(crate) fn after(
        &self,
        reactor: usize,
        delay_ns: u64,
        task: impl FnOnce(&Rc<World>) + 'static,
    ) -> u64 {
        self.enter(Where::Test, ModuleId::HOST, || self.arm(reactor, delay_ns, Alarm::Task(Box::new(task))))
    }

    pub(crate) fn timer_cancel(&self, reactor: usize, handle: u64) -> bool {
        let mut timers = self.schedule.reactors[reactor].timers.borrow_mut();
        let key = timers.iter().find(|(_, timer)| timer.handle == handle).map(|(key, _)| *key);
        key.is_some_and(|key| timers.remove(&key).is_some())
    }

    pub(crate) fn fd_register(
        &self,
        reactor: usize,
        fd: i32,
        events: u32,
        callback: FdFn,
        arg: *mut c_void,
    ) -> u64 {
        let handle = self.schedule.fresh_handle();
        let module = self.acting.get();
        let is_registered = Cell::new(true);
        let watch = Watch { handle, module, fd, events: Cell::new(events), callback, arg, is_registered };
        self.schedule.reactors[reactor].watches.borrow_mut().push(Rc::new(watch));
        handle
    }

    pub(crate) fn is_watched(&self, reactor: usize, fd: i32) -> bool {
        self.schedule.reactors[reactor].watches.borrow().iter().any(|found| found.fd == fd)
    }

    pub(crate) fn fd_modify(&self, reactor: usize, handle: u64, events: u32) -> bool {
        let watches = self.schedule.reactors[reactor].watches.borrow();
        let found = watches.iter().find(|found| found.handle == handle);
        found.inspect(|watch| watch.events.set(events)).is_some()
    }

    pub(crate) fn fd_unregister(&self, reactor: usize, handle: u64) -> bool {
        let mut watches = self.schedule.reactors[reactor].watches.borrow_mut();
        let before = watches.len();
        watches
            .iter()
            .filter(|found| found.handle == handle)
            .for_each(|watch| watch.is_registered.set(false));
        watches.retain(|found| found.handle != handle);
        watches.len() < before
    }

    /// Runs one thing that is due, or moves the clock, but not beyond `limit_ns`.
    pub(crate) fn step(self: &Rc<World>, limit_ns: u64) -> Step {
        self.take_injected();
        let mut candidates = self.candidates();
        if !candidates.is_empty() {
            let chosen = candidates.swap_remove(self.rng.index(candidates.len()));
            self.run(chosen);
            self.check_channels();
            return Step::Ran;
        }
        if self.poll_fds(0) {
            // Between two looks at descriptors every poller has its turn, also if one is always ready.
            self.schedule.turn.set(self.schedule.turn.get() + 1);
            self.check_channels();
            return Step::Ran;
        }
        self.end_turn(limit_ns)
    }

    fn candidates(&self) -> Vec<Candidate> {
        let (now_ns, turn) = (self.now_ns(), self.schedule.turn.get());
        let mut found = Vec::new();
        for (index, reactor) in self.schedule.reactors.iter().enumerate() {
            if !reactor.messages.borrow().is_empty() {
                found.push(Candidate::Message(index));
            }
            if reactor.timers.borrow().keys().next().is_some_and(|(due_ns, _)| *due_ns <= now_ns) {
                found.push(Candidate::Timer(index));
            }
            for poller in reactor.pollers.borrow().iter().filter(|poller| !poller.is_paused.get()) {
                let is_due = match poller.spec.get().period_us {
                    0 => !poller.is_asleep.get() && poller.last_turn.get() < turn,
                    _ => poller.due_ns.get() <= now_ns,
                };
                if is_due {
                    found.push(Candidate::Poller(index, Rc::clone(poller)));
                }
            }
        }
        let works = self.schedule.works.borrow().len();
        found.extend((0..works).map(Candidate::Work));
        found
    }

    fn run(self: &Rc<World>, chosen: Candidate) {
        match chosen {
            Candidate::Message(index) => {
                let message = self.schedule.reactors[index].messages.borrow_mut().pop_front();
                self.woken(index);
                match message {
                    Some(Message::Call { callback, arg, module }) => self.call(index, module, callback, arg),
                    Some(Message::Task(task)) => {
                        self.enter(Where::Reactor(index), ModuleId::HOST, || task(self));
                    }
                    None => {}
                }
            }
            Candidate::Timer(index) => {
                let timer = self.schedule.reactors[index].timers.borrow_mut().pop_first();
                self.woken(index);
                match timer.map(|(_, timer)| (timer.module, timer.alarm)) {
                    Some((module, Alarm::Call { callback, arg })) => self.call(index, module, callback, arg),
                    Some((_, Alarm::Task(task))) => {
                        self.enter(Where::Reactor(index), ModuleId::HOST, || task(self));
                    }
                    None => {}
                }
            }
            Candidate::Poller(index, poller) => self.run_poller(index, &poller),
            Candidate::Work(nth) => {
                let work = self.schedule.works.borrow_mut().remove(nth);
                if let Some(work) = work {
                    self.run_work(work);
                }
            }
        }
    }

    fn call(&self, reactor: usize, module: ModuleId, callback: MessageFn, arg: *mut c_void) {
        // SAFETY: the module gave this function with this argument for exactly one such call.
        self.enter(Where::Reactor(reactor), module, || unsafe { callback.0(arg) });
    }

    /// Something ran on a reactor: its sleeping pollers get their turn again.
    pub(crate) fn woken(&self, index: usize) {
        self.schedule.is_busy.set(true);
        for poller in self.schedule.reactors[index].pollers.borrow().iter() {
            poller.is_asleep.set(false);
        }
    }

    fn run_poller(&self, index: usize, poller: &Rc<Poller>) {
        let spec = poller.spec.get();
        poller.last_turn.set(self.schedule.turn.get());
        poller.due_ns.set(self.now_ns() + spec.period_us * 1000);
        let did = self.enter(Where::Reactor(index), poller.module, || {
            // SAFETY: the poller is registered, so its function and argument are valid.
            unsafe { (spec.callback)(spec.arg) }
        });
        if did > 0 {
            self.woken(index);
            return;
        }
        if spec.flags == PollerFlags::WAKEABLE && spec.period_us == 0 && poller.is_registered.get() {
            let may_sleep = spec.before_sleep.is_none_or(|before_sleep| {
                // SAFETY: as above; it is still registered.
                self.enter(Where::Reactor(index), poller.module, || unsafe { before_sleep(spec.arg) }) > 0
            });
            poller.is_asleep.set(may_sleep);
        }
    }

    fn run_work(self: &Rc<World>, work: Work) {
        let Work { work, done, arg, module, reactor } = work;
        let foreign = Foreign { shared: Arc::clone(&self.shared), module };
        if !self.shared.is_real() {
            self.enter(Where::Worker, module, || {
                // SAFETY: the module gave this function with this argument for one call on a worker.
                as_foreign(foreign, || unsafe { work.0(arg) });
            });
            let finished = Message::Call { callback: done, arg, module };
            self.schedule.reactors[reactor].messages.borrow_mut().push_back(finished);
            return;
        }
        self.schedule.threads.set(self.schedule.threads.get() + 1);
        let arg = arg as usize;
        std::thread::spawn(move || {
            let shared = Arc::clone(&foreign.shared);
            // SAFETY: as above; the contract says that this runs on another thread.
            as_foreign(foreign, || unsafe { work.0(arg as *mut c_void) });
            // A full inbox cannot be: it holds more than there may be works.
            shared.inject(Injected::WorkDone { reactor, done, arg, module });
        });
    }

    fn take_injected(self: &Rc<World>) {
        let arrived = std::mem::take(&mut *lock(&self.shared.injected));
        for what in arrived {
            match what {
                Injected::Message { reactor, callback, arg, module } => {
                    let message = Message::Call { callback, arg: arg as *mut c_void, module };
                    self.schedule.reactors[reactor].messages.borrow_mut().push_back(message);
                }
                Injected::WorkDone { reactor, done, arg, module } => {
                    self.schedule.threads.set(self.schedule.threads.get() - 1);
                    let message = Message::Call { callback: done, arg: arg as *mut c_void, module };
                    self.schedule.reactors[reactor].messages.borrow_mut().push_back(message);
                }
                Injected::ForeignCompletion { flight } => self.finish_foreign(flight),
            }
        }
    }

    /// Runs one callback of a ready descriptor; true if there was one.
    fn poll_fds(&self, timeout_ms: i32) -> bool {
        let mut watched: Vec<(usize, Rc<Watch>)> = Vec::new();
        for (index, reactor) in self.schedule.reactors.iter().enumerate() {
            watched.extend(reactor.watches.borrow().iter().map(|watch| (index, Rc::clone(watch))));
        }
        let mut fds: Vec<libc::pollfd> = watched
            .iter()
            .map(|(_, watch)| libc::pollfd { fd: watch.fd, events: watch.events.get() as i16, revents: 0 })
            .collect();
        if fds.is_empty() && timeout_ms == 0 {
            return false;
        }
        // SAFETY: `fds` is an array of that length for the duration of the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
        let ready: Vec<usize> = match ready {
            1.. => (0..fds.len()).filter(|nth| fds[*nth].revents != 0).collect(),
            _ => return false,
        };
        let chosen = ready[self.rng.index(ready.len())];
        let (index, watch) = &watched[chosen];
        if fds[chosen].revents & libc::POLLNVAL != 0 {
            let detail = format!("fd {} was closed before fd_unregister", watch.fd);
            self.violate_by(Fault::FdLeaked, watch.module, detail);
            self.fd_unregister(*index, watch.handle);
            return true;
        }
        self.woken(*index);
        let revents = fds[chosen].revents as u16 as u32;
        // SAFETY: the watch is registered, so its function and argument are valid.
        self.enter(Where::Reactor(*index), watch.module, || unsafe { watch.callback.0(watch.arg, revents) });
        true
    }

    /// The earliest time at which a timer or a periodic poller is due.
    fn next_due_ns(&self) -> Option<u64> {
        let mut earliest: Option<u64> = None;
        let mut consider = |due_ns: u64| earliest = Some(earliest.map_or(due_ns, |found| found.min(due_ns)));
        for reactor in &self.schedule.reactors {
            if let Some((due_ns, _)) = reactor.timers.borrow().keys().next() {
                consider(*due_ns);
            }
            let pollers = reactor.pollers.borrow();
            let periodic =
                pollers.iter().filter(|poller| !poller.is_paused.get() && poller.spec.get().period_us > 0);
            periodic.for_each(|poller| consider(poller.due_ns.get()));
        }
        earliest
    }

    fn spins(&self) -> bool {
        self.schedule.reactors.iter().any(|reactor| {
            let pollers = reactor.pollers.borrow();
            pollers.iter().any(|poller| {
                !poller.is_paused.get() && poller.spec.get().period_us == 0 && !poller.is_asleep.get()
            })
        })
    }

    fn has_outside_sources(&self) -> bool {
        self.schedule.threads.get() > 0
            || self.schedule.reactors.iter().any(|reactor| !reactor.watches.borrow().is_empty())
    }

    fn end_turn(&self, limit_ns: u64) -> Step {
        let now_ns = self.now_ns();
        self.schedule.turn.set(self.schedule.turn.get() + 1);
        let was_busy = self.schedule.is_busy.replace(false);
        if now_ns >= limit_ns {
            return Step::Idle;
        }
        let due_ns = self.next_due_ns();
        if self.shared.is_real() {
            if due_ns.is_none() && !self.spins() && !self.has_outside_sources() {
                return Step::Idle;
            }
            let wait_ns = due_ns.unwrap_or(limit_ns).min(limit_ns).saturating_sub(now_ns);
            if !self.spins() {
                self.poll_fds(Duration::from_nanos(wait_ns).as_millis().min(MAX_REAL_WAIT_MS) as i32);
            }
            return Step::Moved;
        }
        if self.spins() {
            let quantum = self.schedule.quantum_ns.get();
            let quantum = if was_busy { MIN_QUANTUM_NS } else { (quantum * 2).min(MAX_QUANTUM_NS) };
            self.schedule.quantum_ns.set(quantum);
            let target = (now_ns + quantum).min(due_ns.unwrap_or(u64::MAX)).min(limit_ns);
            self.shared.set_now_ns(target);
            return Step::Moved;
        }
        match due_ns {
            Some(due_ns) if due_ns <= limit_ns => {
                self.shared.set_now_ns(due_ns);
                Step::Moved
            }
            Some(_) | None => {
                self.shared.set_now_ns(if limit_ns == u64::MAX { now_ns } else { limit_ns });
                Step::Idle
            }
        }
    }

    /// Steps until `is_met`, for at most `within` of the fake host's time.
    pub(crate) fn run_until(self: &Rc<World>, within: Duration, mut is_met: impl FnMut() -> bool) -> bool {
        let limit_ns = self.now_ns().saturating_add(within.as_nanos() as u64);
        for _ in 0..MAX_STEPS {
            if is_met() {
                return true;
            }
            if self.step(limit_ns) == Step::Idle {
                break;
            }
        }
        is_met()
    }

    /// Runs everything that is due now.
    pub(crate) fn settle(self: &Rc<World>) {
        for _ in 0..MAX_STEPS {
            if self.step(self.now_ns()) == Step::Idle {
                break;
            }
        }
    }
}

/// Index of the control reactor.
pub(crate) const CONTROL: usize = 0;
const HANDLE_TAG: u64 = 9 << 48;
const MAX_MESSAGES: usize = 65_536;
const MAX_WORKS: usize = 1024;
/// Bounds every wait of a test, should a module keep the schedule busy for ever.
const MAX_STEPS: usize = 20_000_000;
const MIN_QUANTUM_NS: u64 = 1_000;
const MAX_QUANTUM_NS: u64 = 1_000_000;
const MAX_REAL_WAIT_MS: u128 = 1;
