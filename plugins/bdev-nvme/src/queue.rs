//! One I/O queue: a controller on one reactor, shared by all devices there.
//!
//! It connects as soon as its controller's door is open, tells the control
//! thread if it is lost, and connects again behind the next open door. What
//! becomes of I/O that comes back is its channel's matter.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use nvme_spec::completion::Cqe;
use nvme_spec::fabrics::ConnectResult;
use nvme_spec::status::CommandKind;
use tenon_sdk::abi::transport::CloseReason;
use tenon_sdk::{
    ConnectOptions, FabricCommand, FabricEvent, FabricQueue, Io, IoOrOwn, NotSubmitted, OwnPayload, Timer,
    Victim, errno,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::authenticate;
use crate::channel::NvmeChannel;
use crate::config::ActionOnTimeout;
use crate::controller::admin::{AdminQueue, Answer, Reply};
use crate::controller::command::AdminCommand;
use crate::door::{Door, NoPass, Pass};
use crate::module;
use crate::side::Side;

/// What travels on an I/O queue: I/Os, and a few commands of its own.
type Carry = IoOrOwn<NvmeChannel, Reply>;

/// Where a queue is.
///
/// ```text
/// Idle ──open door──► Connecting ──Connect answered, authenticated──► Live
///  ▲                      └────────────────lost, closed────────────────┤
///  └──────────────────────────────released──────── Closing ◄───────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Connecting,
    Live,
    Closing,
}

/// A controller's I/O queue on this reactor.
pub(crate) struct IoQueue {
    pub(crate) door: Arc<Door>,
    side: Weak<Side>,
    phase: Cell<Phase>,
    fabric: RefCell<Option<Rc<FabricQueue<Carry>>>>,
    pass: RefCell<Option<Pass>>,
    /// The controller has no queue for this reactor.
    is_left_out: Cell<bool>,
    pub(crate) delays: Cell<[u16; 3]>,
    pub(crate) counts: Counts,
    /// Own commands that found no room; at most one per transaction.
    own_waiting: RefCell<VecDeque<(AdminCommand, Reply)>>,
    /// Commands of operators that wait for the queue to be live.
    early: RefCell<Vec<(AdminCommand, Reply)>>,
    is_authenticating: Cell<bool>,
    /// Ends a queue that does not become live in time; later it watches the time of I/Os.
    deadline: RefCell<Option<Timer>>,
    /// Grows twice per I/O timeout: how long an I/O is on its way, without a look at the clock.
    age: Cell<u32>,
    /// Looks for I/Os that have come to their deadline.
    overdue_watch: RefCell<Option<Timer>>,
    /// Until when its controller may carry out commands of the connection that was lost last.
    quiet_at_ns: Cell<u64>,
}

/// What a queue has done.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) commands: Cell<u64>,
    pub(crate) failed: Cell<u64>,
    /// What a command takes: a moving mean of those that were timed; 0 before the first.
    pub(crate) latency_ns: Cell<u32>,
}

impl Counts {
    /// Whether the next command is to be timed.
    #[inline]
    pub(crate) fn is_timed(&self) -> bool {
        self.commands.get().is_multiple_of(TIMED_EACH)
    }

    /// A timed command took so long.
    pub(crate) fn took(&self, ns: u64) {
        let ns = u32::try_from(ns).unwrap_or(u32::MAX).max(1);
        let mean = match self.latency_ns.get() {
            0 => ns,
            old => ((u64::from(old) * 7 + u64::from(ns)) / 8) as u32,
        };
        self.latency_ns.set(mean.max(1));
    }
}

impl IoQueue {
    pub(crate) fn new(door: Arc<Door>, side: &Rc<Side>) -> Rc<Self> {
        Rc::new(IoQueue {
            door,
            side: Rc::downgrade(side),
            phase: Cell::new(Phase::Idle),
            fabric: RefCell::default(),
            pass: RefCell::default(),
            is_left_out: Cell::new(false),
            delays: Cell::new([0; 3]),
            counts: Counts::default(),
            own_waiting: RefCell::default(),
            early: RefCell::default(),
            is_authenticating: Cell::new(false),
            deadline: RefCell::default(),
            age: Cell::new(0),
            overdue_watch: RefCell::default(),
            quiet_at_ns: Cell::new(0),
        })
    }

    #[inline]
    pub(crate) fn is_live(&self) -> bool {
        self.phase.get() == Phase::Live
    }

    /// Whether its controller has no queue for this reactor.
    pub(crate) fn is_left_out(&self) -> bool {
        self.is_left_out.get()
    }

    /// Whether it may become live.
    pub(crate) fn has_hope(&self) -> bool {
        !self.is_left_out.get() && self.door.has_hope()
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.fabric.borrow().as_ref().map_or(0, |fabric| fabric.in_flight() as u32)
    }

    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.is_live() && self.fabric.borrow().as_ref().is_some_and(|fabric| fabric.has_room())
    }

    /// Follows the door: opens behind an open one, closes behind a closed one.
    pub(crate) fn follow(self: &Rc<Self>) {
        let open = self.door.open_generation();
        match self.phase.get() {
            Phase::Idle if open.is_some() => self.open(),
            Phase::Connecting | Phase::Live => {
                if self.generation() != open {
                    self.close(CloseReason::LOCAL);
                }
            }
            Phase::Idle | Phase::Closing => {}
        }
    }

    fn open(self: &Rc<Self>) {
        let Some(side) = self.side.upgrade() else { return };
        let pass = match self.door.enter() {
            Ok(pass) => pass,
            Err(NoPass::Closed) => return,
            Err(NoPass::NoQueueLeft) => {
                if !self.is_left_out.replace(true) {
                    log::warn!(
                        "controller has no queue left for a reactor traddr={} subnqn={}",
                        self.door.address.traddr,
                        self.door.address.subnqn
                    );
                }
                return;
            }
        };
        self.is_left_out.set(false);
        self.delays.set(pass.facts.retry_delays_100ms);
        let door = &self.door;
        let options = ConnectOptions {
            peer: door.address.clone(),
            local: door.local.clone(),
            hostnqn: door.identity.nqn.clone(),
            qid: pass.qid,
            cntlid: pass.facts.cntlid,
            queue_size: pass.facts.entries.into(),
            options: pass.facts.options.clone(),
            deadline_ns: door.host.now_ns() + door.connect_timeout_ns,
            channel_key: door.channel_key.clone(),
        };
        let generation = pass.generation;
        let weak = Rc::downgrade(self);
        let connected = side.group(&door.transport, door.address.trtype).and_then(|group| {
            FabricQueue::connect(&group, &options, move |event| {
                if let Some(queue) = weak.upgrade() {
                    queue.on(event);
                }
            })
        });
        match connected {
            Ok(fabric) => {
                self.phase.set(Phase::Connecting);
                *self.pass.borrow_mut() = Some(pass);
                *self.fabric.borrow_mut() = Some(Rc::new(fabric));
            }
            Err(error) => {
                drop(pass);
                module::queue_lost(self.door.host, self.door.id, generation, error.to_string());
                module::queue_released(self.door.host, self.door.id);
            }
        }
    }

    fn on(self: &Rc<Self>, event: FabricEvent<Carry>) {
        self.handle(event);
        self.send_waiting();
    }

    fn handle(self: &Rc<Self>, event: FabricEvent<Carry>) {
        match event {
            FabricEvent::Connected { .. } => self.connect(),
            FabricEvent::Done { item: IoOrOwn::Io(io), result } => {
                let channel = io.context().channel.clone();
                let result = result.map(|cqe| {
                    Cqe::read_from_bytes(&cqe[..]).expect("a completion queue entry has 16 bytes")
                });
                match channel {
                    Some(channel) => channel.finished(io, self, result),
                    None => io.complete(tenon_sdk::IoStatus::INTERNAL),
                }
            }
            FabricEvent::Done { item: IoOrOwn::Own(own), result } => {
                let (memory, reply) = own.into_parts();
                let cqe = result.map(|cqe| {
                    Cqe::read_from_bytes(&cqe[..]).expect("a completion queue entry has 16 bytes")
                });
                reply(cqe.map(|cqe| (cqe, memory)));
            }
            FabricEvent::Closing { detail, status, .. } => {
                if matches!(self.phase.get(), Phase::Connecting | Phase::Live) {
                    self.phase.set(Phase::Closing);
                    self.note_lost();
                    self.tell_lost(format!("{detail} (error {status})"));
                }
            }
            FabricEvent::Closed { .. } => {
                // The last to hold it; dropped outside the borrow.
                let fabric = self.fabric.borrow_mut().take();
                drop(fabric);
                let pass = self.pass.borrow_mut().take();
                drop(pass);
                self.phase.set(Phase::Idle);
                let unsent = self.own_waiting.take().into_iter().chain(self.early.take());
                unsent.for_each(|(_, reply)| reply(Err(errno::ECANCELED)));
                drop((self.deadline.take(), self.overdue_watch.take()));
                module::queue_released(self.door.host, self.door.id);
                self.follow();
                self.tell_channels();
            }
        }
    }

    /// Sends Connect, which makes the connection a queue of its controller.
    fn connect(self: &Rc<Self>) {
        let (qid, cntlid, entries) = match &*self.pass.borrow() {
            Some(pass) => (pass.qid, pass.facts.cntlid, pass.facts.entries),
            None => return,
        };
        let Some(fabric) = self.fabric() else { return };
        // A queue of n entries holds n - 1 commands.
        fabric.set_limit(usize::from(entries) - 1);
        let late = Rc::downgrade(self);
        let time = Duration::from_nanos(self.door.connect_timeout_ns) + AUTHENTICATION;
        let timer = self.door.host.timer(time, move || {
            if let Some(queue) = late.upgrade().filter(|queue| queue.phase.get() == Phase::Connecting) {
                queue.lost("an i/o queue was not connected in time".to_owned());
            }
        });
        match timer {
            Ok(timer) => *self.deadline.borrow_mut() = Some(timer),
            Err(error) => return self.lost(error.to_string()),
        }
        match AdminCommand::connect(&self.door.identity, &self.door.address.subnqn, qid, cntlid, entries, 0) {
            Ok(command) => {
                let weak = Rc::downgrade(self);
                let answered = move |answer| {
                    if let Some(queue) = weak.upgrade() {
                        queue.connect_answered(answer);
                    }
                };
                self.send_own(command, Box::new(answered));
            }
            Err(error) => self.lost(error.to_string()),
        }
    }

    fn connect_answered(self: &Rc<Self>, answer: Answer) {
        if self.phase.get() != Phase::Connecting {
            return;
        }
        let cqe = match answer {
            Ok((cqe, _)) => cqe,
            Err(status) => return self.lost(format!("connect was lost (error {status})")),
        };
        if !cqe.status.is_success() {
            let code = cqe.status.code();
            let name = code.name_for(CommandKind::Fabrics).unwrap_or("unknown");
            return self.lost(format!("connect of an i/o queue was refused: {name} ({:#x})", code.get()));
        }
        match authenticate::is_needed(&ConnectResult::from_dw0(cqe.dw0), &self.door.credentials()) {
            Ok(false) => self.is_connected(),
            Ok(true) => self.authenticate(),
            Err(reason) => self.lost(reason.to_owned()),
        }
    }

    fn is_connected(self: &Rc<Self>) {
        if self.phase.get() == Phase::Connecting {
            self.phase.set(Phase::Live);
            drop(self.deadline.take());
            self.watch();
            self.watch_deadlines();
            for (command, reply) in self.early.take() {
                self.send_own(command, reply);
            }
            self.tell_channels();
        }
    }

    /// Looks for I/Os that take too long, twice per timeout.
    fn watch(self: &Rc<Self>) {
        let timeout_ns = self.pass.borrow().as_ref().map_or(0, |pass| pass.facts.io_timeout_ns);
        if timeout_ns == 0 {
            return;
        }
        let weak = Rc::downgrade(self);
        let period = Duration::from_nanos((timeout_ns / 2).max(MIN_WATCH_NS));
        let timer = self.door.host.timer(period, move || {
            if let Some(queue) = weak.upgrade().filter(|queue| queue.is_live()) {
                queue.check_ages();
                queue.watch();
            }
        });
        match timer {
            Ok(timer) => *self.deadline.borrow_mut() = Some(timer),
            Err(error) => log::error!("i/o of a queue is not timed error=\"{error}\""),
        }
    }

    fn check_ages(&self) {
        let age = self.age.get().wrapping_add(1);
        self.age.set(age);
        let facts = self.pass.borrow().as_ref().map(|pass| (pass.qid, pass.facts.on_timeout));
        let (Some(fabric), Some((qid, action))) = (self.fabric(), facts) else { return };
        let (mut late, mut is_hopeless) = (Vec::new(), false);
        fabric.for_each_io(|cid, io| {
            let own = age.wrapping_sub(io.context().submitted_at_age);
            if own == LATE {
                late.push(cid);
            }
            is_hopeless |= own >= HOPELESS;
        });
        if let Some(first) = late.first() {
            log::warn!(
                "i/o takes too long traddr={} qid={qid} cid={first} count={} action={action:?}",
                self.door.address.traddr,
                late.len()
            );
        }
        match action {
            ActionOnTimeout::None => {}
            ActionOnTimeout::Abort if is_hopeless => self.lost("an i/o outlived its abort".to_owned()),
            ActionOnTimeout::Abort => {
                for cid in late {
                    module::abort_wanted(self.door.host, self.door.id, qid, cid);
                }
            }
            ActionOnTimeout::Reset if late.is_empty() => {}
            ActionOnTimeout::Reset => self.lost("an i/o took too long".to_owned()),
        }
    }

    /// Looks for I/Os that have come to their deadline, four times in it.
    fn watch_deadlines(self: &Rc<Self>) {
        let deadline_ns = self.pass.borrow().as_ref().map_or(0, |pass| pass.facts.io_deadline_ns);
        if deadline_ns == 0 {
            return;
        }
        let weak = Rc::downgrade(self);
        let period_ns = (deadline_ns / 4).max(MIN_WATCH_NS);
        let timer = self.door.host.timer(Duration::from_nanos(period_ns), move || {
            if let Some(queue) = weak.upgrade().filter(|queue| queue.is_live()) {
                queue.check_deadlines(period_ns);
                queue.watch_deadlines();
            }
        });
        match timer {
            Ok(timer) => *self.overdue_watch.borrow_mut() = Some(timer),
            Err(error) => log::error!("deadlines of i/o are not watched error=\"{error}\""),
        }
    }

    /// Has I/Os aborted that have come to their deadline since the last look; one from before it does not end by that.
    fn check_deadlines(&self, period_ns: u64) {
        let now_ns = self.door.host.now_ns();
        let qid = self.pass.borrow().as_ref().map(|pass| pass.qid);
        let (Some(fabric), Some(qid)) = (self.fabric(), qid) else { return };
        let (mut late, mut is_hopeless) = (Vec::new(), false);
        fabric.for_each_io(|cid, io| match io.context().deadline_ns {
            0 => {}
            deadline_ns if deadline_ns > now_ns => {}
            deadline_ns if now_ns - deadline_ns < period_ns => late.push(cid),
            _ => is_hopeless = true,
        });
        if is_hopeless {
            return self.lost("an i/o outlived its deadline and its abort".to_owned());
        }
        for cid in late {
            module::abort_wanted(self.door.host, self.door.id, qid, cid);
        }
    }

    /// Most bytes of one transfer.
    pub(crate) fn max_transfer_bytes(&self) -> u64 {
        self.pass.borrow().as_ref().map_or(0, |pass| pass.facts.max_transfer_bytes)
    }

    /// Whether an I/O has taken too long.
    pub(crate) fn is_late(&self, io: &Io<NvmeChannel>) -> bool {
        self.age.get().wrapping_sub(io.context().submitted_at_age) >= LATE
    }

    /// Its connection is lost: from when on its controller cannot carry out anything of it any more.
    fn note_lost(&self) {
        let quiesce_ns = self.pass.borrow().as_ref().map_or(0, |pass| pass.facts.quiesce_ns);
        if quiesce_ns > 0 {
            self.quiet_at_ns.set(self.door.host.now_ns() + quiesce_ns);
        }
    }

    /// Until when a write that was lost with its connection may still be carried out; in the past if it may not.
    pub(crate) fn quiet_at_ns(&self) -> u64 {
        self.quiet_at_ns.get()
    }

    /// Authenticates a queue in use; those on the way to it do so anyway.
    pub(crate) fn authenticate_again(self: &Rc<Self>) {
        if self.is_live() && !self.is_authenticating.get() {
            self.authenticate();
        }
    }

    fn authenticate(self: &Rc<Self>) {
        self.is_authenticating.set(true);
        let (sends, ends) = (Rc::downgrade(self), Rc::downgrade(self));
        let generation = self.generation();
        let is_same = move |queue: &Rc<IoQueue>| queue.generation() == generation;
        let send = move |command: &AdminCommand, reply: Reply| match sends.upgrade().filter(is_same) {
            Some(queue) => queue.send_own(command.clone(), reply),
            None => reply(Err(errno::ECANCELED)),
        };
        let done = move |result: Result<(), String>| {
            let Some(queue) = ends.upgrade() else { return };
            queue.is_authenticating.set(false);
            match result {
                _ if !is_same(&queue) => {}
                Ok(()) => queue.is_connected(),
                Err(reason) => queue.lost(reason),
            }
        };
        let names = (&*self.door.identity.nqn, &*self.door.address.subnqn);
        let (host, credentials) = (self.door.host, self.door.credentials());
        authenticate::authenticate(host, Rc::new(send), &credentials, names, Box::new(done));
    }

    /// Which opening of the door it belongs to, while it has a connection.
    fn generation(&self) -> Option<u64> {
        self.pass.borrow().as_ref().map(|pass| pass.generation)
    }

    /// Sends a command of its own, as soon as there is room; the reply is called exactly once.
    fn send_own(&self, command: AdminCommand, reply: Reply) {
        let Some(fabric) = self.fabric() else { return reply(Err(errno::ECANCELED)) };
        let memory = match AdminQueue::memory(self.door.host, &command.data) {
            Ok(memory) => memory,
            Err(error) => return reply(Err(error.code)),
        };
        let mut sqe = [0; 64];
        sqe.copy_from_slice(command.sqe.as_bytes());
        let payload = command.data.payload();
        let item = IoOrOwn::Own(OwnPayload::new(memory, reply));
        let result = fabric.submit(&FabricCommand { sqe, payload }, item);
        fabric.flush();
        if let Err(NotSubmitted { item: IoOrOwn::Own(own), is_full }) = result {
            let (_, reply) = own.into_parts();
            if is_full {
                self.own_waiting.borrow_mut().push_back((command, reply));
            } else {
                reply(Err(errno::ECANCELED));
            }
        }
    }

    /// Sends a command of an operator, as soon as the queue is live; the reply is called once, if only to say that the
    /// queue has ended before.
    pub(crate) fn send_for_operator(&self, command: AdminCommand, reply: Reply) {
        match self.phase.get() {
            Phase::Live => self.send_own(command, reply),
            Phase::Connecting => self.early.borrow_mut().push((command, reply)),
            Phase::Idle | Phase::Closing => reply(Err(errno::EAGAIN)),
        }
    }

    /// Something came back or ended: tries what found no room.
    fn send_waiting(&self) {
        if self.own_waiting.borrow().is_empty() {
            return;
        }
        let waiting = self.own_waiting.borrow_mut().pop_front();
        if let Some((command, reply)) = waiting {
            self.send_own(command, reply);
        }
    }

    fn lost(&self, reason: String) {
        self.close(CloseReason::LOCAL);
        self.tell_lost(reason);
    }

    fn tell_lost(&self, reason: String) {
        if let Some(generation) = self.generation() {
            module::queue_lost(self.door.host, self.door.id, generation, reason);
        }
    }

    fn close(&self, reason: CloseReason) {
        match self.phase.get() {
            Phase::Connecting | Phase::Live => {
                self.phase.set(Phase::Closing);
                self.note_lost();
                if let Some(fabric) = self.fabric() {
                    fabric.disconnect(reason, self.door.host.now_ns() + DRAIN_NS);
                }
            }
            Phase::Idle | Phase::Closing => {}
        }
    }

    fn tell_channels(&self) {
        if let Some(side) = self.side.upgrade() {
            side.kick();
        }
    }

    fn fabric(&self) -> Option<Rc<FabricQueue<Carry>>> {
        self.fabric.borrow().clone()
    }

    /// Gives an I/O to the controller; back if there is no room or the queue is not live.
    #[inline]
    pub(crate) fn submit(
        &self,
        command: &FabricCommand<'_>,
        mut io: Io<NvmeChannel>,
    ) -> Result<(), (Io<NvmeChannel>, bool)> {
        let fabric = self.fabric.borrow();
        let Some(fabric) = fabric.as_ref().filter(|_| self.is_live()) else { return Err((io, false)) };
        self.counts.commands.set(self.counts.commands.get() + 1);
        io.context_mut().submitted_at_age = self.age.get();
        match fabric.submit(command, IoOrOwn::Io(io)) {
            Ok(()) => Ok(()),
            Err(NotSubmitted { item: IoOrOwn::Io(io), is_full }) => Err((io, is_full)),
            // What was given comes back.
            Err(NotSubmitted { item: IoOrOwn::Own(_), .. }) => Ok(()),
        }
    }

    /// Sends what was submitted.
    #[inline]
    pub(crate) fn flush(&self) {
        if let Some(fabric) = &*self.fabric.borrow() {
            fabric.flush();
        }
    }

    /// Queue and identifier of the command that carries an I/O.
    pub(crate) fn find(&self, victim: Victim) -> Option<(u16, u16)> {
        let cid = self.fabric.borrow().as_ref()?.identifier_of(victim)?;
        let qid = self.pass.borrow().as_ref()?.qid;
        Some((qid, cid))
    }
}

/// Of so many commands one is timed: two looks at the clock for each would cost more than choosing its path.
const TIMED_EACH: u64 = 64;
/// Looks at the clock after which an I/O is late: one and a half timeouts at most, one at least.
const LATE: u32 = 3;
/// Looks at the clock after which an I/O that was aborted will not come back.
const HOPELESS: u32 = 5;
/// Shortest pause between two looks.
const MIN_WATCH_NS: u64 = 500_000;
/// What authentication adds to the time in which a queue has to be connected: the largest group takes a while.
const AUTHENTICATION: Duration = Duration::from_secs(10);
/// How long what is on a queue may take to come back.
const DRAIN_NS: u64 = 5_000_000_000;
