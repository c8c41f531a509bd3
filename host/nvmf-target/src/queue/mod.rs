//! Queue pairs: one per connection, on the reactor that the connection lives on.
//!
//! A queue owns its commands from `request_begin` to `request_release`. Fabrics
//! and admin commands go to the control reactor and come back ([`interface`]);
//! I/O commands run here, on the reactor's view of the subsystem ([`view`]),
//! without a message, a lock or an allocation. `begin` decides what a command
//! needs, `execute` runs it, `throttle` keeps a host's rate, `table` is the transports' door, `side` holds what
//! a reactor has for all its queues.
//!
//! A request that is in the target's hands when its connection closes goes back
//! by `request_complete` like any other; the transport answers with
//! `request_release`, and the connection is freed after the last one.
// UNSAFETY: commands and requests are linked through raw pointers, as the contract has it.

pub(crate) mod begin;
pub(crate) mod command;
pub(crate) mod execute;
pub(crate) mod interface;
pub(crate) mod share;
pub(crate) mod side;
pub(crate) mod table;
mod throttle;
pub(crate) mod view;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nvme_spec::command::Sqe;
use nvme_spec::completion::{Cqe, StatusField};
use nvme_spec::status::StatusCode;
use tenon_abi::transport::target::{Disposition, TargetRequest};
use tenon_abi::transport::{CloseReason, Direction};
use tenon_abi::{IoFlags, IoVec};
use tenon_bdev::{buffer_get, buffer_put, buffer_room};
use tenon_reactor::{TimerId, now_ns};
use zerocopy::FromBytes;

use self::command::{Command, Stage, Work};
use self::interface::{Access, Answer, Association, ConnectionFacts, ErrorRecord, Opening, QueueKey};
use self::share::{Share, may_take};
use self::side::ReactorSide;
use self::view::SubsystemSide;
use crate::limits::HostLimiter;
use crate::status::refused;
use crate::transport::TransportShared;

/// Where a queue is in its life.
///
/// ```text
/// New ──ConnectCame──► Connecting ──Accepted──────────────────────────► Live
///  ▲                    │    └──AcceptedUnproven──► Authenticating ──Proven──┘ │
///  └──────Refused───────┘                                                      ▼ CloseAsked
///  any ───────────────────────────────CloseAsked────────────────────────► Closing ──TransportDone──► Closed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    New,
    Connecting,
    Authenticating,
    Live,
    Closing,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PhaseEvent {
    ConnectCame,
    Accepted,
    AcceptedUnproven,
    Proven,
    Refused,
    CloseAsked,
    TransportDone,
}

impl Phase {
    /// What follows; `None` if the event means nothing in this phase.
    pub(crate) fn next(self, event: PhaseEvent) -> Option<Self> {
        use Phase::{Authenticating, Closed, Closing, Connecting, Live, New};
        use PhaseEvent::{
            Accepted, AcceptedUnproven, CloseAsked, ConnectCame, Proven, Refused, TransportDone,
        };
        match (self, event) {
            (New, ConnectCame) => Some(Connecting),
            (Connecting, Accepted) | (Authenticating, Proven) => Some(Live),
            (Connecting, AcceptedUnproven) => Some(Authenticating),
            (Connecting, Refused) => Some(New),
            (New | Connecting | Authenticating | Live, CloseAsked) => Some(Closing),
            (New | Connecting | Authenticating | Live | Closing, TransportDone) => Some(Closed),
            (Closing, CloseAsked | Accepted | AcceptedUnproven | Proven | Refused | ConnectCame)
            | (
                Closed,
                CloseAsked | Accepted | AcceptedUnproven | Proven | Refused | ConnectCame | TransportDone,
            )
            | (New, Accepted | AcceptedUnproven | Proven | Refused)
            | (Connecting, ConnectCame | Proven)
            | (Authenticating, ConnectCame | Accepted | AcceptedUnproven | Refused)
            | (Live, ConnectCame | Accepted | AcceptedUnproven | Proven | Refused) => None,
        }
    }
}

/// What a queue is since its Connect.
pub(crate) struct OpenQueue {
    pub association: Arc<Association>,
    pub qid: u16,
    pub entries: u32,
    pub has_flow_control: bool,
    pub subsystem: Rc<SubsystemSide>,
    pub access: RefCell<Arc<Access>>,
    pub is_limited: Cell<bool>,
    pub limiter: RefCell<Option<Arc<HostLimiter>>>,
}

/// One connection's queue pair.
pub(crate) struct QueuePair {
    pub key: QueueKey,
    pub facts: Arc<ConnectionFacts>,
    pub side: Rc<ReactorSide>,
    pub transport: Arc<TransportShared>,
    pub connection: *mut c_void,
    pub phase: Cell<Phase>,
    pub opened: OnceCell<OpenQueue>,
    sq_head: Cell<u32>,
    /// Requests between `request_begin` and `request_release`, with or without a command.
    outstanding: Cell<u32>,
    first: Cell<*mut Command>,
    last: Cell<*mut Command>,
    held: RefCell<VecDeque<*mut Command>>,
    /// Commands that wait for an allowance.
    throttled: RefCell<VecDeque<*mut Command>>,
    throttle_timer: Cell<Option<TimerId>>,
    /// First half of a fused operation whose second half has not come.
    fused: Cell<*mut Command>,
    buffer_bytes: Cell<usize>,
    /// What all queues of its host hold on this reactor; set when it is opened.
    share: OnceCell<Share>,
    tickets: Cell<u64>,
    errors: RefCell<VecDeque<ErrorRecord>>,
    pub connect_timer: Cell<Option<TimerId>>,
    pub commands: Cell<u64>,
    is_free_queued: Cell<bool>,
}

impl QueuePair {
    pub(crate) fn new(
        facts: ConnectionFacts,
        side: Rc<ReactorSide>,
        transport: Arc<TransportShared>,
        connection: *mut c_void,
    ) -> Self {
        Self {
            key: facts.key,
            facts: Arc::new(facts),
            side,
            transport,
            connection,
            phase: Cell::new(Phase::New),
            opened: OnceCell::new(),
            sq_head: Cell::new(0),
            outstanding: Cell::new(0),
            first: Cell::new(std::ptr::null_mut()),
            last: Cell::new(std::ptr::null_mut()),
            held: RefCell::default(),
            throttled: RefCell::default(),
            throttle_timer: Cell::new(None),
            fused: Cell::new(std::ptr::null_mut()),
            buffer_bytes: Cell::new(0),
            share: OnceCell::new(),
            tickets: Cell::new(0),
            errors: RefCell::default(),
            connect_timer: Cell::new(None),
            commands: Cell::new(0),
            is_free_queued: Cell::new(false),
        }
    }

    pub(crate) fn outstanding(&self) -> u32 {
        self.outstanding.get()
    }

    /// Moves on; false if the event means nothing now.
    pub(crate) fn advance(&self, event: PhaseEvent) -> bool {
        match self.phase.get().next(event) {
            Some(next) => {
                self.phase.set(next);
                true
            }
            None => false,
        }
    }

    /// Asks the transport to end the connection.
    pub(crate) fn close(&self, reason: CloseReason) {
        if !self.advance(PhaseEvent::CloseAsked) {
            return;
        }
        self.forget_connect_timer();
        let deadline = now_ns() + self.side.options.drain_deadline.as_nanos() as u64;
        // SAFETY: the connection is the transport's until `connection_free`; this is its reactor.
        unsafe { (self.transport.ops().connection_close)(self.connection, reason, deadline) };
    }

    pub(crate) fn forget_connect_timer(&self) {
        if let Some(timer) = self.connect_timer.take() {
            tenon_reactor::current().cancel_timer(timer);
        }
    }

    /// Becomes what Connect asked for.
    fn open(&self, opening: Opening) -> Result<(), StatusField> {
        let subsystem = self.side.subsystem(opening.association.subsystem);
        let event = match opening.needs_authentication {
            true => PhaseEvent::AcceptedUnproven,
            false => PhaseEvent::Accepted,
        };
        let Some(subsystem) = subsystem.filter(|_| self.advance(event)) else {
            return Err(StatusField::new(StatusCode::CONNECT_CONTROLLER_BUSY));
        };
        self.forget_connect_timer();
        subsystem.queues.borrow_mut().push(self);
        let share = self.share.get_or_init(|| self.side.shares.of(&opening.association.hostnqn));
        share.set(share.get() + self.buffer_bytes.get());
        let opened = OpenQueue {
            association: opening.association,
            qid: opening.qid,
            entries: opening.entries,
            has_flow_control: opening.has_flow_control,
            subsystem,
            access: RefCell::new(opening.access),
            is_limited: Cell::new(opening.limiter.is_some()),
            limiter: RefCell::new(opening.limiter),
        };
        let (admin, io) = self.side.opened.get();
        self.side.opened.set(if opened.qid == 0 { (admin + 1, io) } else { (admin, io + 1) });
        if self.opened.set(opened).is_err() {
            log::error!("queue was opened twice number={}", self.key.number);
        }
        Ok(())
    }

    /// Counts a command that arrived; false if there are more than the queue may hold.
    fn count_arrival(&self) -> bool {
        self.commands.set(self.commands.get() + 1);
        self.outstanding.set(self.outstanding.get() + 1);
        let entries = match self.opened.get() {
            Some(open) => {
                if !open.association.traffic.load(Ordering::Relaxed) {
                    open.association.traffic.store(true, Ordering::Relaxed);
                }
                open.entries
            }
            None => u32::MAX,
        };
        let head = self.sq_head.get() + 1;
        self.sq_head.set(if head >= entries { 0 } else { head });
        self.outstanding.get() <= entries
    }

    /// A fresh command for `request`, at the end of the queue's list.
    ///
    /// # Safety
    /// `request` is the transport's, begun and not released.
    unsafe fn adopt(&self, request: *mut TargetRequest, class: u16) -> *mut Command {
        let command = self.side.pool.get(class);
        let last = self.last.replace(command);
        // SAFETY: the command is fresh and ours; the list's members are alive.
        unsafe {
            (*command).request = request;
            (*command).queue = self;
            (*command).previous = last;
            (*request).host[0] = command.cast();
            if last.is_null() {
                self.first.set(command);
            } else {
                (*last).next = command;
            }
        }
        command
    }

    /// Takes `command` off the list, with what it holds, and gives it back to the pool.
    ///
    /// # Safety
    /// `command` is in this queue's list, and nobody else has it.
    unsafe fn discard(&self, command: *mut Command) {
        // SAFETY: the list's members are alive; the command is ours.
        unsafe {
            self.release_memory(command);
            let (previous, next) = ((*command).previous, (*command).next);
            if previous.is_null() {
                self.first.set(next);
            } else {
                (*previous).next = next;
            }
            if next.is_null() {
                self.last.set(previous);
            } else {
                (*next).previous = previous;
            }
            (*(*command).request).host[0] = std::ptr::null_mut();
            self.side.pool.put(command);
        }
    }

    /// Gives back lent memory and the buffer of a command.
    ///
    /// # Safety
    /// `command` is in this queue's list, and nobody else has it.
    unsafe fn release_memory(&self, command: *mut Command) {
        // SAFETY: the command's I/O is idle; its channel lives as long as the command's namespace.
        unsafe {
            let io = Command::io(command);
            if (*command).work == Work::Read
                && (*io).flags.contains(IoFlags::LENT)
                && let Some(namespace) = (*command).namespace.as_ref()
            {
                // On the channel it was submitted to: the I/O itself names the device's.
                let channel = namespace.channel();
                match (*(*channel).ops).release {
                    Some(release) => release(channel, io),
                    None => (*io).flags.0 &= !IoFlags::LENT.0,
                }
            }
            let buffer = std::mem::replace(&mut (*command).buffer, std::ptr::null_mut());
            if !buffer.is_null() {
                let len = (*command).buffer_len as usize;
                buffer_put(buffer, len);
                self.buffer_bytes.set(self.buffer_bytes.get() - len);
                if let Some(share) = self.share.get() {
                    share.set(share.get() - len);
                }
                self.side.buffer_returned();
            }
        }
    }

    /// A buffer of `len` bytes as the command's payload memory; false if there is none now.
    ///
    /// # Safety
    /// `command` is in this queue's list.
    pub(crate) unsafe fn take_buffer(&self, command: *mut Command, len: u32) -> bool {
        let len = len.max(1);
        let held = self.buffer_bytes.get();
        if held > 0 && held + len as usize > self.side.options.max_buffer_bytes_per_connection {
            return false;
        }
        let held_by_host = self.share.get().map_or(held, |share| share.get());
        if !may_take(held_by_host, len as usize, buffer_room()) {
            return false;
        }
        let buffer = buffer_get(len as usize);
        if buffer.is_null() {
            return false;
        }
        self.buffer_bytes.set(held + len as usize);
        if let Some(share) = self.share.get() {
            share.set(share.get() + len as usize);
        }
        // SAFETY: the command and its request are alive.
        unsafe {
            (*command).buffer = buffer;
            (*command).buffer_len = len;
            let request = (*command).request;
            (*request).inline_iov = IoVec { base: buffer, len: (*request).length as usize };
            (*request).iovs = &raw mut (*request).inline_iov;
            (*request).iovcnt = 1;
        }
        true
    }

    fn next_ticket(&self) -> u64 {
        self.tickets.set(self.tickets.get() + 1);
        self.tickets.get()
    }

    /// Fills the completion of `request`.
    ///
    /// # Safety
    /// `request` is the transport's, begun and not released.
    unsafe fn fill_completion(&self, request: *mut TargetRequest, status: StatusField, result: u64) {
        // SAFETY: the request is alive.
        let request = unsafe { &mut *request };
        let cid = u16::from_le_bytes([request.sqe[2], request.sqe[3]]);
        let open = self.opened.get();
        let has_flow_control = open.is_none_or(|open| open.has_flow_control);
        let head = if has_flow_control { self.sq_head.get() as u16 } else { u16::MAX };
        let mut cqe = Cqe::new(cid, head, status);
        cqe.sqid.set(open.map_or(0, |open| open.qid));
        cqe.set_result_u64(result);
        if !status.is_success() {
            cqe.status = self.with_retry_delay(status);
            request.length = 0;
            request.iovcnt = 0;
            request.direction = Direction::NONE;
            self.record_error(&request.sqe, status);
        }
        // Two whole words, as a transport should read them: one that reads across several young stores waits until
        // all before them have left the processor's buffer, and those may be a block of data.
        let number = cqe.to_u128();
        let words = request.cqe.as_mut_ptr().cast::<u64>();
        // SAFETY: the field has two words and lies at a multiple of their size.
        unsafe {
            words.write_volatile((number as u64).to_le());
            words.add(1).write_volatile(((number >> 64) as u64).to_le());
        }
    }

    /// Tells a host that understands it how long to wait before it tries again: CRDT1 for want of memory, CRDT2
    /// while a device is away.
    fn with_retry_delay(&self, status: StatusField) -> StatusField {
        let understands =
            self.opened.get().is_some_and(|open| open.association.retries_advanced.load(Ordering::Relaxed));
        match status.code() {
            _ if status.dnr() || !understands => status,
            StatusCode::COMMAND_INTERRUPTED => status.with_crd(1),
            StatusCode::NAMESPACE_NOT_READY => status.with_crd(2),
            _ => status,
        }
    }

    /// Refuses a request that has no command.
    ///
    /// # Safety
    /// As [`QueuePair::fill_completion`].
    unsafe fn respond(&self, request: *mut TargetRequest, status: StatusField) -> Disposition {
        // SAFETY: as the caller promises.
        unsafe {
            (*request).host[0] = std::ptr::null_mut();
            self.fill_completion(request, status, 0);
        }
        Disposition::RESPOND
    }

    /// Hands a command that is ours back to the transport. Neither may be touched afterwards.
    ///
    /// # Safety
    /// `command` is in this queue's list, and nobody else has it.
    pub(crate) unsafe fn complete(&self, command: *mut Command, status: StatusField, result: u64) {
        // SAFETY: the command and its request are alive until the transport releases the request.
        unsafe {
            let request = (*command).request;
            (*command).stage = Stage::Answered;
            self.fill_completion(request, status, result);
            (self.transport.ops().request_complete)(request);
        }
    }

    fn record_error(&self, sqe: &[u8; 64], status: StatusField) {
        let Some(open) = self.opened.get() else { return };
        let number = open.association.errors.fetch_add(1, Ordering::Relaxed) + 1;
        let Ok(sqe) = Sqe::ref_from_bytes(sqe) else { return };
        let is_io = open.qid != 0 && sqe.opc != nvme_spec::opcode::FABRICS;
        let record = ErrorRecord {
            number,
            sqid: open.qid,
            cid: sqe.cid.get(),
            status,
            nsid: if sqe.opc == nvme_spec::opcode::FABRICS { 0 } else { sqe.nsid.get() },
            lba: if is_io { u64::from(sqe.cdw11.get()) << 32 | u64::from(sqe.cdw10.get()) } else { 0 },
        };
        let mut errors = self.errors.borrow_mut();
        if errors.len() >= MAX_ERRORS {
            errors.pop_front();
        }
        errors.push_back(record);
    }

    pub(crate) fn errors(&self) -> Vec<ErrorRecord> {
        self.errors.borrow().iter().copied().collect()
    }

    /// The control reactor answers a capsule.
    pub(crate) fn answered(&self, ticket: u64, answer: Answer) {
        let command = self.find(|command| command.stage == Stage::Control && command.ticket == ticket);
        let Some(command) = command else { return };
        let mut status = answer.status.unwrap_or(StatusField::SUCCESS);
        let is_connect = self.phase.get() == Phase::Connecting;
        if let Some(opening) = answer.opening {
            status = self.open(opening).err().unwrap_or(status);
        }
        if is_connect && !status.is_success() {
            self.advance(PhaseEvent::Refused);
        }
        if answer.is_proven {
            // A queue that authenticates once more is live already.
            self.advance(PhaseEvent::Proven);
        }
        // SAFETY: the command is in our list and came back to us; its buffer has `length` bytes.
        unsafe {
            let request = (*command).request;
            if status.is_success() && (*request).direction == Direction::TO_HOST {
                let room = std::slice::from_raw_parts_mut(
                    (*command).buffer.cast::<u8>(),
                    (*request).length as usize,
                );
                let len = answer.data.len().min(room.len());
                room[..len].copy_from_slice(&answer.data[..len]);
                room[len..].fill(0);
            }
            self.complete(command, status, answer.result);
        }
        if answer.closes {
            self.close(CloseReason::LOCAL);
        }
    }

    /// The first command that `wanted` accepts, from the oldest on.
    pub(crate) fn find(&self, wanted: impl Fn(&Command) -> bool) -> Option<*mut Command> {
        let mut at = self.first.get();
        while !at.is_null() {
            // SAFETY: the list's members are alive.
            if wanted(unsafe { &*at }) {
                return Some(at);
            }
            // SAFETY: as above.
            at = unsafe { (*at).next };
        }
        None
    }

    /// The ticket of the command `cid`, if the control reactor has it.
    pub(crate) fn ticket_of(&self, cid: u16) -> Option<u64> {
        let command = self.find(|command| {
            // SAFETY: the request of a listed command is alive.
            let sqe = unsafe { &(*command.request).sqe };
            command.stage == Stage::Control && u16::from_le_bytes([sqe[2], sqe[3]]) == cid
        })?;
        // SAFETY: found in the list just now.
        Some(unsafe { (*command).ticket })
    }

    /// The transport is through with a request.
    ///
    /// # Safety
    /// `request` was begun on this queue and is released once.
    pub(crate) unsafe fn released(&self, request: *mut TargetRequest) {
        // SAFETY: as the caller promises.
        let command: *mut Command = unsafe { (*request).host[0] }.cast();
        if !command.is_null() {
            // SAFETY: a command of ours that the transport has.
            let stage = unsafe { (*command).stage };
            if !matches!(stage, Stage::Transport | Stage::Answered) {
                log::error!("transport released a request that it did not have stage={stage:?}");
                return;
            }
            // SAFETY: the transport gives it up.
            unsafe {
                self.part(command, StatusCode::ABORTED_SQ_DELETION);
                self.discard(command);
            }
        }
        self.outstanding.set(self.outstanding.get() - 1);
        self.free_when_done();
    }

    /// Ends what ties `command` to the other half of a fused operation; that half is answered if it waits.
    ///
    /// # Safety
    /// `command` is in this queue's list.
    pub(crate) unsafe fn part(&self, command: *mut Command, code: StatusCode) {
        if self.fused.get() == command {
            self.fused.set(std::ptr::null_mut());
        }
        // SAFETY: partners are in the same list and are told before either goes.
        unsafe {
            let partner = std::mem::replace(&mut (*command).partner, std::ptr::null_mut());
            if !partner.is_null() {
                (*partner).partner = std::ptr::null_mut();
                if (*partner).stage == Stage::Partner {
                    self.complete(partner, refused(code), 0);
                }
            }
        }
    }

    /// The transport will bring no more commands.
    pub(crate) fn transport_closed(&self) {
        if !self.advance(PhaseEvent::TransportDone) {
            log::error!("transport closed a queue twice number={}", self.key.number);
            return;
        }
        self.forget_connect_timer();
        let mut waiting = Vec::new();
        let mut at = self.first.get();
        while !at.is_null() {
            // SAFETY: the list's members are alive.
            unsafe {
                let partner = (*at).partner;
                match (*at).stage {
                    // The device still reads its data; it ends with the first half.
                    Stage::Partner if !partner.is_null() && (*partner).stage == Stage::Device => {}
                    Stage::Held
                    | Stage::Partner
                    | Stage::Control
                    | Stage::BufferToReceive
                    | Stage::BufferToExecute => waiting.push(at),
                    Stage::Transport | Stage::Answered | Stage::Device => {}
                }
                at = (*at).next;
            }
        }
        self.held.borrow_mut().clear();
        self.throttled.borrow_mut().clear();
        self.forget_throttle_timer();
        self.fused.set(std::ptr::null_mut());
        self.side.forget_waiting(&waiting);
        for command in &waiting {
            // SAFETY: alive, see above; ties go first so that nobody is answered twice.
            unsafe { (**command).partner = std::ptr::null_mut() };
        }
        for command in waiting {
            // SAFETY: collected above; completing one command frees no other.
            unsafe { self.complete(command, StatusField::new(StatusCode::ABORTED_SQ_DELETION), 0) };
        }
        self.free_when_done();
    }

    /// Ends a closed queue after its last request, outside the call that released it.
    fn free_when_done(&self) {
        let is_done = self.phase.get() == Phase::Closed && self.outstanding.get() == 0;
        if !is_done || self.is_free_queued.replace(true) {
            return;
        }
        let (side, number) = (self.side.clone(), self.key.number);
        let queued = tenon_reactor::current().defer(move || side.free_queue(number));
        if queued.is_err() {
            log::error!("connection was not freed: too much is deferred number={}", self.key.number);
        }
    }
}

/// Error records kept per queue.
const MAX_ERRORS: usize = 16;

#[cfg(test)]
mod tests {
    use super::Phase::*;
    use super::PhaseEvent::*;

    #[test]
    fn a_closed_queue_stays_closed() {
        for event in [ConnectCame, Accepted, AcceptedUnproven, Proven, Refused, CloseAsked, TransportDone] {
            assert_eq!(Closed.next(event), None);
        }
    }

    #[test]
    fn a_refused_connect_may_be_repeated() {
        assert_eq!(New.next(ConnectCame), Some(Connecting));
        assert_eq!(Connecting.next(Refused), Some(New));
        assert_eq!(Connecting.next(ConnectCame), None);
        assert_eq!(Live.next(CloseAsked), Some(Closing));
        assert_eq!(Connecting.next(AcceptedUnproven), Some(Authenticating));
        assert_eq!(Authenticating.next(Proven), Some(Live));
        assert_eq!(Live.next(Proven), None);
        assert_eq!(Closing.next(Accepted), None);
    }
}
