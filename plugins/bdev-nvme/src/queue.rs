//! One I/O queue: a controller on one reactor, shared by all devices there.
//!
//! It connects as soon as its controller's door is open, tells the control
//! thread if it is lost, and connects again behind the next open door. What
//! becomes of I/O that comes back is its channel's matter.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use nvme_spec::completion::Cqe;
use nvme_spec::status::CommandKind;
use tenon_sdk::abi::transport::CloseReason;
use tenon_sdk::{
    ConnectOptions, FabricCommand, FabricEvent, FabricQueue, Io, IoOrOwn, NotSubmitted, OwnPayload,
    PayloadOf, Victim,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::channel::NvmeChannel;
use crate::controller::command::{AdminCommand, Data};
use crate::door::{Door, NoPass, Pass};
use crate::module;
use crate::side::Side;

/// What travels on an I/O queue: I/Os, and its own Connect.
type Carry = IoOrOwn<NvmeChannel, ()>;

/// Where a queue is.
///
/// ```text
/// Idle ──open door──► Connecting ──Connect answered──► Live
///  ▲                      └─────────lost, closed─────────┤
///  └───────────────────────released──────── Closing ◄────┘
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
        })
    }

    #[inline]
    pub(crate) fn is_live(&self) -> bool {
        self.phase.get() == Phase::Live
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
                let own = self.pass.borrow().as_ref().map(|pass| pass.generation);
                if own != open {
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
            FabricEvent::Done { item: IoOrOwn::Own(_), result } => self.connect_answered(result),
            FabricEvent::Closing { detail, status, .. } => {
                if matches!(self.phase.get(), Phase::Connecting | Phase::Live) {
                    self.phase.set(Phase::Closing);
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
                module::queue_released(self.door.host, self.door.id);
                self.follow();
                self.tell_channels();
            }
        }
    }

    /// Sends Connect, which makes the connection a queue of its controller.
    fn connect(&self) {
        let (qid, cntlid, entries) = match &*self.pass.borrow() {
            Some(pass) => (pass.qid, pass.facts.cntlid, pass.facts.entries),
            None => return,
        };
        let identity = &self.door.identity;
        let subnqn = &self.door.address.subnqn;
        let sent = AdminCommand::connect(identity, subnqn, qid, cntlid, entries, 0)
            .map_err(|error| error.to_string())
            .and_then(|command| {
                let memory = match &command.data {
                    Data::Out(bytes) => {
                        let mut memory =
                            self.door.host.alloc(bytes.len(), 64, -1).map_err(|error| error.to_string())?;
                        memory.as_mut_slice().copy_from_slice(bytes);
                        Some(memory)
                    }
                    Data::None | Data::In(_) => None,
                };
                let mut sqe = [0; 64];
                sqe.copy_from_slice(command.sqe.as_bytes());
                let command = FabricCommand { sqe, payload: PayloadOf::ToController };
                let Some(fabric) = self.fabric() else { return Err("the queue is gone".to_owned()) };
                // A queue of n entries holds n - 1 commands.
                fabric.set_limit(usize::from(entries) - 1);
                let result = fabric.submit(&command, IoOrOwn::Own(OwnPayload::new(memory, ())));
                fabric.flush();
                result.map_err(|_| "the queue takes no commands".to_owned())
            });
        if let Err(reason) = sent {
            self.lost(reason);
        }
    }

    fn connect_answered(&self, result: Result<[u8; 16], i32>) {
        if self.phase.get() != Phase::Connecting {
            return;
        }
        let refused = match result {
            Ok(cqe) => {
                let cqe = Cqe::read_from_bytes(&cqe[..]).expect("a completion queue entry has 16 bytes");
                (!cqe.status.is_success()).then(|| {
                    let code = cqe.status.code();
                    let name = code.name_for(CommandKind::Fabrics).unwrap_or("unknown");
                    format!("connect of an i/o queue was refused: {name} ({:#x})", code.get())
                })
            }
            Err(status) => Some(format!("connect was lost (error {status})")),
        };
        match refused {
            None => {
                self.phase.set(Phase::Live);
                self.tell_channels();
            }
            Some(reason) => self.lost(reason),
        }
    }

    fn lost(&self, reason: String) {
        self.close(CloseReason::LOCAL);
        self.tell_lost(reason);
    }

    fn tell_lost(&self, reason: String) {
        let generation = self.pass.borrow().as_ref().map(|pass| pass.generation);
        if let Some(generation) = generation {
            module::queue_lost(self.door.host, self.door.id, generation, reason);
        }
    }

    fn close(&self, reason: CloseReason) {
        match self.phase.get() {
            Phase::Connecting | Phase::Live => {
                self.phase.set(Phase::Closing);
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
        io: Io<NvmeChannel>,
    ) -> Result<(), (Io<NvmeChannel>, bool)> {
        let fabric = self.fabric.borrow();
        let Some(fabric) = fabric.as_ref().filter(|_| self.is_live()) else { return Err((io, false)) };
        self.counts.commands.set(self.counts.commands.get() + 1);
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
/// How long what is on a queue may take to come back.
const DRAIN_NS: u64 = 5_000_000_000;
