//! One controller: its admin queue, its timers, and what is known of it.
//!
//! Lives on the control reactor. [`state`] says what follows from what happens,
//! `setup` and `scan` which commands are sent; this file and `changes` do it. Namespaces
//! become devices in `registry`, I/O queues open behind the controller's door.

pub(crate) mod admin;
mod changes;
pub(crate) mod command;
mod keys;
pub(crate) mod scan;
pub(crate) mod setup;
pub(crate) mod state;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tenon_sdk::{ConnectOptions, Error, FabricTransport, Host, Timer};

use self::admin::{AdminEvent, AdminQueue, Answer};
use self::changes::Scans;
use self::command::AdminCommand;
use self::setup::{ControllerFacts, Progress, Setup};
use self::state::{Action, Event, Failure, Next, State};
use crate::config::{ActionOnTimeout, NvmeParams, Timers};
use crate::credentials::{HeldKeys, KeyNames};
use crate::door::{Door, OpenFacts};
use crate::quiet::Quiet;
use crate::registry::{Origin, Registry};
use crate::side::Side;

/// Called when what was asked for has come to an end.
pub(crate) type Waiter = Box<dyn FnOnce(Result<(), Error>)>;

/// What a controller is made with.
pub(crate) struct Plan {
    pub(crate) params: NvmeParams,
    pub(crate) timers: Timers,
    pub(crate) keep_alive_ms: u32,
    /// Entries of an I/O queue, unless the parameters say.
    pub(crate) io_entries: u16,
    pub(crate) admin_timeout: Option<Duration>,
    pub(crate) io_timeout_us: u64,
    pub(crate) io_deadline_ms: u64,
    pub(crate) on_timeout: ActionOnTimeout,
    pub(crate) ns_absent_timeout: Option<Duration>,
    pub(crate) transport_options: serde_json::Value,
    /// It is tried again although it never served yet.
    pub(crate) keeps_trying: bool,
    /// Hears what a controller tells beside its namespaces.
    pub(crate) listener: Option<Listener>,
}

/// What a controller's listener hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It serves.
    Serves,
    /// An attempt has failed; others may follow.
    Fails,
    /// Its discovery log page is another one.
    LogChanged,
}

/// Called on the control reactor.
pub(crate) type Listener = Box<dyn Fn(&Controller, News)>;

/// A controller.
pub(crate) struct Controller {
    me: Weak<Controller>,
    pub(crate) id: u64,
    host: Host,
    registry: Weak<Registry>,
    pub(crate) plan: Plan,
    pub(crate) door: Arc<Door>,
    /// In use as long as the controller is.
    pub(crate) transport: FabricTransport,
    pub(crate) state: Cell<State>,
    pub(crate) facts: RefCell<ControllerFacts>,
    admin: RefCell<Option<Rc<AdminQueue>>>,
    /// Grows with every attempt: what belongs to an earlier one is not heard any more.
    attempt: Cell<u64>,
    was_attached: Cell<bool>,
    ready_since_ns: Cell<Option<u64>>,
    lost_since_ns: Cell<Option<u64>>,
    pub(crate) last_error: RefCell<String>,
    losses_logged: Quiet,
    changes_logged: Quiet,
    waiters: RefCell<Vec<Waiter>>,
    clocks: RefCell<Clocks>,
    scans: Cell<Scans>,
    /// Event requests that found no room on the admin queue.
    events_owed: Cell<u16>,
    ana_retry_sec: Cell<u64>,
    /// Names of the keys in use, and the keys, which cannot be removed meanwhile.
    pub(crate) key_names: RefCell<KeyNames>,
    keys: RefCell<HeldKeys>,
}

/// Timers; each is cancelled by being dropped.
#[derive(Default)]
struct Clocks {
    delay: Option<Timer>,
    fast_io_fail: Option<Timer>,
    keep_alive: Option<Timer>,
    scan: Option<Timer>,
}

impl Controller {
    pub(crate) fn new(
        host: Host,
        registry: &Rc<Registry>,
        plan: Plan,
        door: Arc<Door>,
        transport: FabricTransport,
        keys: HeldKeys,
    ) -> Rc<Self> {
        let names = KeyNames::of(&plan.params);
        Rc::new_cyclic(|me| Controller {
            me: me.clone(),
            id: door.id,
            host,
            registry: Rc::downgrade(registry),
            plan,
            door,
            transport,
            state: Cell::new(State::Connecting),
            facts: RefCell::default(),
            admin: RefCell::default(),
            attempt: Cell::new(0),
            was_attached: Cell::new(false),
            ready_since_ns: Cell::new(None),
            lost_since_ns: Cell::new(None),
            last_error: RefCell::default(),
            losses_logged: Quiet::new(),
            changes_logged: Quiet::new(),
            waiters: RefCell::default(),
            clocks: RefCell::default(),
            scans: Cell::default(),
            events_owed: Cell::new(0),
            ana_retry_sec: Cell::new(1),
            key_names: RefCell::new(names),
            keys: RefCell::new(keys),
        })
    }

    /// Begins; `done` hears whether it came to serve.
    pub(crate) fn start(&self, done: Waiter) {
        self.waiters.borrow_mut().push(done);
        self.act(Action::Connect);
    }

    /// Does what an operator wants; `done` hears of the end of it.
    pub(crate) fn ask(&self, event: Event, done: Waiter) {
        self.waiters.borrow_mut().push(done);
        self.on(event);
        // What is so already needs no waiting.
        match (event, self.state.get()) {
            (Event::Enable, State::Ready) | (Event::Disable, State::Disabled) => self.tell(Ok(())),
            (Event::Reset, State::Disabled) => {
                self.tell(Err(Error::new(EALREADY, "the controller is disabled")));
            }
            (_, State::Deleted) => self.tell(Ok(())),
            _ => {}
        }
    }

    /// Something happened.
    pub(crate) fn on(&self, event: Event) {
        let old = self.state.get();
        let (next, action) = old.on(event);
        self.state.set(next);
        if old != next {
            // Attempts that go on and on are told once.
            let retries = |state: State| matches!(state.as_str(), "resetting" | "reconnect_is_delayed");
            let is_news = !(retries(old) && retries(next));
            let (level, left_out) = self.level(is_news, log::Level::Info, &self.changes_logged);
            log::log!(
                level,
                "controller changed name={} traddr={} trsvcid={} from={} to={} left_out={left_out}",
                self.plan.params.name,
                self.door.address.traddr,
                self.door.address.trsvcid,
                old.as_str(),
                next.as_str()
            );
        }
        self.act(action);
    }

    /// The level of a line, and how many of its kind were left out before it.
    fn level(&self, is_news: bool, of_news: log::Level, kind: &Quiet) -> (log::Level, u64) {
        let shown = if is_news { kind.ask(self.host.now_ns()) } else { None };
        shown.map_or((log::Level::Debug, 0), |left_out| (of_news, left_out))
    }

    fn act(&self, action: Action) {
        match action {
            Action::Nothing => {}
            Action::Connect => self.connect(),
            Action::Identify => self.set_up(),
            Action::Serve => self.serve(),
            Action::Close => self.close(),
            Action::Wait => self.wait(),
            Action::Rest => self.rest(),
            Action::Remove => self.remove(),
        }
    }

    fn connect(&self) {
        let attempt = self.attempt.get() + 1;
        self.attempt.set(attempt);
        let door = &self.door;
        let options = ConnectOptions {
            peer: door.address.clone(),
            local: door.local.clone(),
            hostnqn: door.identity.nqn.clone(),
            qid: 0,
            cntlid: nvme_spec::fabrics::CNTLID_DYNAMIC,
            queue_size: ADMIN_ENTRIES.into(),
            options: self.plan.transport_options.clone(),
            deadline_ns: self.host.now_ns() + door.connect_timeout_ns,
            channel_key: door.channel_key.clone(),
        };
        let me = self.me.clone();
        let connected =
            Side::current(self.host).group(&door.transport, door.address.trtype).and_then(|group| {
                AdminQueue::connect(&self.door, &group, &options, move |event| {
                    if let Some(controller) = me.upgrade() {
                        controller.admin_event(attempt, event);
                    }
                })
            });
        match connected {
            Ok(admin) => *self.admin.borrow_mut() = Some(Rc::new(admin)),
            Err(error) => self.lost(error.to_string()),
        }
    }

    fn admin_event(&self, attempt: u64, event: AdminEvent) {
        if attempt != self.attempt.get() {
            return;
        }
        match event {
            AdminEvent::Connected => self.on(Event::Connected),
            AdminEvent::Lost(reason) => self.lost(reason),
            AdminEvent::Closed => {
                let admin = self.admin.borrow_mut().take();
                drop(admin);
                self.check_drained();
            }
        }
    }

    /// A connection or something else that matters failed.
    pub(crate) fn lost(&self, reason: String) {
        let now_ns = self.host.now_ns();
        let is_serving = matches!(self.state.get(), State::Connecting | State::Identifying | State::Ready);
        if !is_serving {
            return;
        }
        let old_reason = self.last_error.replace(reason.clone());
        let is_news = old_reason != reason;
        let (level, left_out) = self.level(is_news, log::Level::Warn, &self.losses_logged);
        log::log!(
            level,
            "controller lost name={} traddr={} trsvcid={} reason=\"{reason}\" left_out={left_out}",
            self.plan.params.name,
            self.door.address.traddr,
            self.door.address.trsvcid
        );
        let failure = Failure {
            was_attached: self.was_attached.get() || self.plan.keeps_trying,
            ready_ns: self.ready_since_ns.get().map(|since| now_ns.saturating_sub(since)),
            lost_ns: self.lost_since_ns.get().map_or(0, |since| now_ns.saturating_sub(since)),
            reconnect_delay_sec: self.plan.timers.reconnect_delay_sec,
            ctrlr_loss_timeout_sec: self.plan.timers.ctrlr_loss_timeout_sec,
        };
        self.on(Event::Lost(failure.next()));
    }

    /// An I/O queue was lost; those of an earlier generation are lost anyway.
    pub(crate) fn queue_lost(&self, generation: u64, reason: String) {
        if self.door.open_generation() == Some(generation) {
            self.lost(reason);
        }
    }

    /// Sends a command; the answer is heard only while this attempt lasts.
    pub(crate) fn send(&self, command: &AdminCommand, answered: impl FnOnce(&Controller, Answer) + 'static) {
        let timeout = self.plan.admin_timeout;
        self.send_within(command, timeout, answered);
    }

    pub(crate) fn send_within(
        &self,
        command: &AdminCommand,
        timeout: Option<Duration>,
        answered: impl FnOnce(&Controller, Answer) + 'static,
    ) {
        let admin = self.admin.borrow().clone();
        let Some(admin) = admin else { return };
        let (me, attempt) = (self.me.clone(), self.attempt.get());
        let reply = Box::new(move |answer: Answer| {
            if let Some(controller) = me.upgrade()
                && controller.attempt.get() == attempt
            {
                answered(&controller, answer);
            }
        });
        admin.send(command, timeout, reply);
    }

    fn set_up(&self) {
        // The control reactor needs one as well: devices are examined there.
        let of_all = || self.host.reactors().count() as u16 + 1;
        let queues = self.plan.params.num_io_queues.unwrap_or_else(of_all);
        let setup = Setup::new(
            self.door.identity.clone(),
            self.door.address.subnqn.clone(),
            ADMIN_ENTRIES,
            self.plan.keep_alive_ms,
            queues,
        )
        .with_credentials(self.door.credentials());
        self.set_up_step(setup);
    }

    fn set_up_step(&self, mut setup: Setup) {
        let command = match setup.command() {
            Ok(command) => command,
            Err(error) => return self.lost(error.to_string()),
        };
        self.send(&command, move |controller, answer| {
            let (cqe, data) = match answer {
                Ok(answer) => answer,
                Err(code) => return controller.lost(format!("a command was not answered (error {code})")),
            };
            let data = data.as_ref().map_or(&[][..], |data| data.as_slice());
            match setup.answered(&cqe, data) {
                Ok(Progress::Go) => controller.set_up_step(setup),
                Ok(Progress::Authenticate) => controller.authenticate(|controller, result| match result {
                    Ok(()) => controller.set_up_step(setup),
                    Err(reason) => controller.lost(reason),
                }),
                Ok(Progress::Wait { ms }) => controller.set_up_later(setup, ms),
                Ok(Progress::Done) => {
                    *controller.facts.borrow_mut() = setup.facts;
                    controller.scan(Origin::Setup);
                }
                Err(error) => controller.lost(error.to_string()),
            }
        });
    }

    fn set_up_later(&self, setup: Setup, ms: u64) {
        let (me, attempt) = (self.me.clone(), self.attempt.get());
        let timer = self.host.timer(Duration::from_millis(ms), move || {
            if let Some(controller) = me.upgrade()
                && controller.attempt.get() == attempt
                && controller.state.get() == State::Identifying
            {
                controller.set_up_step(setup);
            }
        });
        match timer {
            Ok(timer) => self.clocks.borrow_mut().delay = Some(timer),
            Err(error) => self.lost(error.to_string()),
        }
    }

    fn serve(&self) {
        let facts = self.facts.borrow().clone();
        self.was_attached.set(true);
        self.ready_since_ns.set(Some(self.host.now_ns()));
        self.lost_since_ns.set(None);
        let mut clocks = self.clocks.borrow_mut();
        (clocks.delay, clocks.fast_io_fail) = (None, None);
        drop(clocks);
        self.last_error.borrow_mut().clear();
        if facts.io_queues > 0 {
            let mut options = self.plan.transport_options.clone();
            options["in_capsule_data_size"] = facts.in_capsule_bytes.into();
            let wanted = self.plan.params.io_queue_size.unwrap_or(self.plan.io_entries);
            let open = OpenFacts {
                cntlid: facts.cntlid,
                entries: u32::from(wanted).min(facts.max_queue_entries).max(2) as u16,
                retry_delays_100ms: facts.retry_delays_100ms,
                quiesce_ns: self.quiesce_ns(&facts),
                io_timeout_ns: self.plan.io_timeout_us.saturating_mul(1000),
                on_timeout: self.plan.on_timeout,
                io_deadline_ns: self.plan.io_deadline_ms.saturating_mul(1_000_000),
                max_transfer_bytes: facts.max_transfer_bytes.unwrap_or(u64::MAX),
                options,
            };
            self.door.open(open, facts.io_queues);
            self.tell_reactors();
        }
        self.events_owed.set(0);
        for _ in 0..facts.max_async_events.min(ASYNC_EVENTS) {
            self.request_event();
        }
        self.keep_alive();
        self.tell(Ok(()));
        self.scan_wanted();
        self.listen(News::Serves);
    }

    /// How long writes that were lost with a connection are held back: until the controller has found out, by its
    /// keep alive timer, and has let go of its commands.
    fn quiesce_ns(&self, facts: &ControllerFacts) -> u64 {
        let ms = match self.plan.params.command_quiesce_time_ms {
            Some(ms) => u64::from(ms),
            None => facts.quiesce_ms(self.plan.keep_alive_ms),
        };
        ms * 1_000_000
    }

    fn listen(&self, news: News) {
        if let Some(listener) = &self.plan.listener {
            listener(self, news);
        }
    }

    /// Every reactor looks at the door.
    fn tell_reactors(&self) {
        let (host, id) = (self.host, self.id);
        let told = host.each_reactor(
            move |_| {
                if let Some(side) = Side::existing(host) {
                    side.door_moved(id);
                }
            },
            || {},
        );
        if let Err(error) = told {
            log::error!("reactors were not told of a controller error=\"{error}\"");
        }
    }

    /// Sends a keep alive, and again after half its time.
    fn keep_alive(&self) {
        if self.plan.keep_alive_ms == 0 || !self.facts.borrow().has_keep_alive {
            return;
        }
        let me = self.me.clone();
        let timer = self.host.timer(
            Duration::from_millis(u64::from(self.plan.keep_alive_ms / 2).max(1)),
            move || {
                let Some(controller) = me.upgrade() else { return };
                let timeout = Duration::from_millis(controller.plan.keep_alive_ms.into());
                controller.send_within(&AdminCommand::keep_alive(), Some(timeout), |controller, answer| {
                    if let Ok((cqe, _)) = answer
                        && !cqe.status.is_success()
                    {
                        controller.lost(format!("keep alive was refused: {:?}", cqe.status));
                    }
                });
                if controller.state.get() == State::Ready {
                    controller.keep_alive();
                }
            },
        );
        if let Err(error) = &timer {
            log::error!("the next keep alive comes later than it should error=\"{error}\"");
        }
        self.clocks.borrow_mut().keep_alive = timer.ok();
    }

    /// Arranges anew what could not be arranged.
    pub(crate) fn keep_up(&self) {
        let (delay, keep_alive, fast_io_fail) = {
            let clocks = self.clocks.borrow();
            (clocks.delay.is_some(), clocks.keep_alive.is_some(), clocks.fast_io_fail.is_some())
        };
        match self.state.get() {
            State::Ready => {
                if !keep_alive {
                    self.keep_alive();
                }
                self.scan_wanted();
                (0..self.events_owed.take()).for_each(|_| self.request_event());
            }
            State::Delayed if !delay => self.arm_delay(),
            _ => {}
        }
        let waits = self.lost_since_ns.get().is_some() && self.door.has_hope();
        if waits && !fast_io_fail {
            self.arm_fast_io_fail();
        }
    }

    fn close(&self) {
        let now_ns = self.host.now_ns();
        self.ready_since_ns.set(None);
        self.scans.set(Scans::default());
        let mut clocks = self.clocks.borrow_mut();
        (clocks.delay, clocks.keep_alive, clocks.scan) = (None, None, None);
        drop(clocks);
        let is_final = matches!(self.state.get(), State::Closing(Next::Delete | Next::Fail | Next::Disable));
        if self.lost_since_ns.get().is_none() {
            self.lost_since_ns.set(Some(now_ns));
            if !is_final {
                self.arm_fast_io_fail();
            }
        }
        // I/O that has failed already goes on failing until the controller is back.
        self.door.close(is_final || !self.door.has_hope());
        self.tell_reactors();
        let admin = self.admin.borrow().clone();
        if let Some(admin) = admin {
            admin.close(now_ns + DRAIN_NS);
        }
        self.check_drained();
    }

    fn arm_fast_io_fail(&self) {
        let seconds = self.plan.timers.fast_io_fail_timeout_sec;
        if seconds == 0 {
            return;
        }
        let lost_since_ns = self.lost_since_ns.get().unwrap_or(self.host.now_ns());
        let end_ns = lost_since_ns.saturating_add(u64::from(seconds) * 1_000_000_000);
        let left = Duration::from_nanos(end_ns.saturating_sub(self.host.now_ns()));
        let me = self.me.clone();
        let timer = self.host.timer(left, move || {
            if let Some(controller) = me.upgrade()
                && controller.state.get() != State::Ready
            {
                log::warn!("i/o to a lost controller fails from now on name={}", controller.plan.params.name);
                controller.door.close(true);
                controller.tell_reactors();
            }
        });
        self.clocks.borrow_mut().fast_io_fail = timer.ok();
    }

    /// Goes on once every queue is released.
    pub(crate) fn check_drained(&self) {
        let is_closing = matches!(self.state.get(), State::Closing(_));
        if is_closing && self.admin.borrow().is_none() && self.door.queues() == 0 {
            self.on(Event::Drained);
        }
    }

    fn wait(&self) {
        // Whoever waits for it to serve hears that the attempt has failed; the next one is nobody's order.
        self.tell(Err(self.failure()));
        self.listen(News::Fails);
        self.arm_delay();
    }

    /// Tries again, or gives up, after a pause.
    fn arm_delay(&self) {
        let now_ns = self.host.now_ns();
        let timers = self.plan.timers;
        let delay_ns = u64::from(timers.reconnect_delay_sec.max(1)) * 1_000_000_000;
        let lost_ns = now_ns.saturating_sub(self.lost_since_ns.get().unwrap_or(now_ns));
        let left_ns = u64::try_from(timers.ctrlr_loss_timeout_sec)
            .map_or(u64::MAX, |limit| (limit * 1_000_000_000).saturating_sub(lost_ns));
        let is_last = left_ns <= delay_ns;
        let me = self.me.clone();
        let timer = self.host.timer(Duration::from_nanos(delay_ns.min(left_ns)), move || {
            let Some(controller) = me.upgrade() else { return };
            controller.clocks.borrow_mut().delay.take();
            controller.on(if is_last { Event::Lost(Next::Delete) } else { Event::DelayOver });
        });
        match timer {
            Ok(timer) => self.clocks.borrow_mut().delay = Some(timer),
            Err(error) => log::error!("controller is tried again later than it should be error=\"{error}\""),
        }
    }

    fn rest(&self) {
        self.door.close(true);
        self.tell_reactors();
        match self.state.get() {
            State::Disabled => self.tell(Ok(())),
            _ => self.tell(Err(self.failure())),
        }
    }

    fn remove(&self) {
        self.door.close(true);
        *self.clocks.borrow_mut() = Clocks::default();
        let (host, id) = (self.host, self.id);
        let forgotten = host.each_reactor(
            move |_| {
                if let Some(side) = Side::existing(host) {
                    side.forget(id);
                    side.kick();
                }
            },
            || {},
        );
        if let Err(error) = forgotten {
            log::error!("reactors keep a queue that is not used any more error=\"{error}\"");
        }
        if let Some(registry) = self.registry.upgrade() {
            registry.controller_gone(self);
        }
        let was_attached = self.was_attached.get();
        self.tell(if was_attached { Ok(()) } else { Err(self.failure()) });
    }

    /// Why it does not serve.
    fn failure(&self) -> Error {
        let address = &self.door.address;
        let cause = self.last_error.borrow().clone();
        let code = if cause.contains("refused") { ECONNREFUSED } else { tenon_sdk::errno::EIO };
        let reason =
            format!("cannot attach to {} at {} port {}", address.subnqn, address.traddr, address.trsvcid);
        Error::new(code, reason).object(&*self.plan.params.name).caused_by(if cause.is_empty() {
            "detached"
        } else {
            &cause
        })
    }

    fn tell(&self, result: Result<(), Error>) {
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        for waiter in waiters {
            waiter(result.clone());
        }
    }

    /// Asks the controller to end a command.
    pub(crate) fn abort(&self, qid: u16, cid: u16) {
        self.send(&AdminCommand::abort(qid, cid), |_, _| {});
    }
}

/// Entries of the admin queue.
const ADMIN_ENTRIES: u16 = 32;
/// Entries of an I/O queue, unless asked otherwise.
pub(crate) const IO_ENTRIES: u16 = 128;
/// Asynchronous event requests held at the controller.
const ASYNC_EVENTS: u16 = 4;
/// How long what is on the admin queue may take to come back.
const DRAIN_NS: u64 = 5_000_000_000;
const EALREADY: i32 = -114;
const ECONNREFUSED: i32 = -111;
