//! One host's connection at the target: its socket, its protocol, and the
//! requests that its commands are.
//!
//! Joins three parties and decides little itself. The protocol says what bytes
//! mean, the target core what a command needs, the poll group when it is this
//! connection's turn: then it receives once, lets the core work, and sends
//! everything that has come up in one go. A turn is never nested in another;
//! completions that come at other times queue the connection for its next.
//!
//! # Safety
//! Requests live as long as the connection and are reached through raw pointers
//! only, since the target core writes to them as well. Who has one at a time is
//! the contract's matter (`tenon_abi::transport::target`).
// UNSAFETY: fills requests, and sends from and receives to the memory they name.

mod life;

use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use nvme_spec::command::Sqe;
use nvme_spec::completion::{Cqe, StatusField};
use nvme_spec::status::StatusCode;
use tenon_sdk::abi::transport::target::{Disposition, HostQueuePair, NvmfTargetApiV1, TargetRequest};
use tenon_sdk::abi::transport::{CloseReason, Direction};
use tenon_sdk::{IoVec, crc32c};
use zerocopy::IntoBytes;

use crate::channel::Channel;
use crate::connection::options::OptionError;
use crate::connection::{ConnectionState, Piece, Placement, Slot, TargetConnection, TargetEvent};
use crate::host_request::{Place, Request, each_piece, fetch_payload, fill, pieces_of};
use crate::inbox::{Chunk, Inbox, Room};
use crate::listener::Accepted;
use crate::phase::{Phase, PhaseEvent};
use crate::poll_group::{PollGroup, Shared};
use crate::socket::{MAX_PIECES, Socket};

/// A connection of a host.
pub struct HostConnection {
    shared: Rc<Shared>,
    group: Weak<PollGroup>,
    /// Place in the poll group's table.
    pub index: usize,
    /// Listener that accepted it.
    pub listener: u64,
    pub opened_ns: u64,
    peer: SocketAddr,
    local: SocketAddr,
    channel: RefCell<Option<Channel>>,
    /// The channel's own handshake is not done.
    is_securing: Cell<bool>,
    protocol: RefCell<TargetConnection>,
    inbox: RefCell<Inbox>,
    /// Received bytes that wait for a command's end, from an offset on.
    pending: RefCell<Option<(Room, usize)>>,
    requests: Box<[UnsafeCell<Request>]>,
    queue_pair: Cell<*mut HostQueuePair>,
    phase: Cell<Phase>,
    close_reason: Cell<CloseReason>,
    drain_by_ns: Cell<u64>,
    is_connected: Cell<bool>,
    was_unfinished: Cell<bool>,
    /// In the group's work list, or having its turn.
    pub is_queued: Cell<bool>,
    is_readable: Cell<bool>,
    is_writable: Cell<bool>,
    /// The peer has sent its last byte.
    is_half_closed: Cell<bool>,
    /// Commands whose large payload is being received.
    large_receives: Cell<u32>,
}

impl HostConnection {
    /// Takes over an accepted connection.
    pub fn new(
        shared: &Rc<Shared>,
        group: Weak<PollGroup>,
        index: usize,
        accepted: Accepted,
    ) -> Result<Rc<Self>, OptionError> {
        let options = shared.protocol;
        let now_ns = shared.host.now_ns();
        let protocol = TargetConnection::new(options, now_ns)?;
        let inbox = Inbox::new(protocol.max_contiguous_bytes());
        Ok(Rc::new_cyclic(|own| {
            let requests = (0..options.queue_depth)
                .map(|slot| UnsafeCell::new(Request::idle(own.as_ptr(), Slot::new(slot))))
                .collect();
            Self {
                shared: shared.clone(),
                group,
                index,
                listener: accepted.listener,
                opened_ns: now_ns,
                peer: accepted.peer,
                local: accepted.local,
                is_securing: Cell::new(accepted.channel.is_secure()),
                channel: RefCell::new(Some(accepted.channel)),
                protocol: RefCell::new(protocol),
                inbox: RefCell::new(inbox),
                pending: RefCell::new(None),
                requests,
                queue_pair: Cell::new(std::ptr::null_mut()),
                phase: Cell::new(Phase::Handshake),
                close_reason: Cell::new(CloseReason::LOCAL),
                drain_by_ns: Cell::new(u64::MAX),
                is_connected: Cell::new(false),
                was_unfinished: Cell::new(false),
                is_queued: Cell::new(false),
                is_readable: Cell::new(true),
                is_writable: Cell::new(true),
                is_half_closed: Cell::new(false),
                large_receives: Cell::new(0),
            }
        }))
    }

    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn with_socket<T>(&self, f: impl FnOnce(&Socket) -> T) -> Option<T> {
        self.channel.borrow().as_ref().map(|channel| f(channel.socket()))
    }

    /// The socket's state changed.
    pub fn socket_ready(&self, is_readable: bool, is_writable: bool, is_half_closed: bool) {
        self.is_readable.set(self.is_readable.get() || is_readable);
        self.is_writable.set(self.is_writable.get() || is_writable);
        self.is_half_closed.set(self.is_half_closed.get() || is_half_closed);
    }

    /// Looks at the socket although nobody said that there is something.
    pub fn probe(&self) {
        self.is_readable.set(true);
    }

    /// Receives, works and sends, once. Returns whether there is more to do at once.
    pub fn turn(&self) -> bool {
        let now_ns = self.shared.host.now_ns();
        if self.phase.get().receives() {
            self.take_in(now_ns);
        }
        self.send_out(now_ns);
        self.settle(now_ns);
        let may_receive = self.phase.get().receives()
            && (self.is_readable.get() && !self.inbox_is_blocked() || self.pending_can_go_on());
        let may_send = self.is_writable.get() && self.channel.borrow().is_some() && self.has_output();
        may_receive || may_send
    }

    /// Does what the phase asks for at the end of a turn.
    fn settle(&self, now_ns: u64) {
        if self.phase.get() == Phase::Draining && (!self.has_output() || now_ns >= self.drain_by_ns.get()) {
            let ended = self.protocol.borrow_mut().close();
            if let Some(TargetEvent::Ended(ending)) = ended {
                self.over(ending);
            }
        }
        if self.protocol.borrow().state() == ConnectionState::Closed {
            // Closing the descriptor also ends its watch.
            drop(self.channel.borrow_mut().take());
            self.advance(PhaseEvent::SocketClosed);
        }
        if self.advance(PhaseEvent::Told) {
            let (queue_pair, reason) = (self.queue_pair.get(), self.close_reason.get());
            // SAFETY: once per queue pair, and no call of the target core for this connection is on the stack.
            unsafe { (self.api().queue_pair_closed)(queue_pair, reason) };
        }
        self.release_ended();
    }

    /// Ends what has waited too long; returns when to look again.
    pub fn check_deadlines(&self, now_ns: u64) -> u64 {
        let missed = self.protocol.borrow_mut().handle_timeout(now_ns);
        if let Some(TargetEvent::Ended(ending)) = missed {
            self.over(ending);
        }
        self.settle(now_ns);
        let next = self.protocol.borrow().next_deadline().unwrap_or(u64::MAX);
        if self.phase.get() == Phase::Draining { next.min(self.drain_by_ns.get()) } else { next }
    }

    /// The poll group it is in, unless that ends.
    pub fn group(&self) -> Option<Rc<PollGroup>> {
        self.group.upgrade()
    }

    /// Whether the target core never got to know it.
    pub fn was_unfinished(&self) -> bool {
        self.was_unfinished.get()
    }

    /// Gives chunks back that no command uses.
    pub fn reclaim(&self) {
        self.inbox.borrow_mut().reclaim(&self.shared.chunks);
    }

    fn advance(&self, event: PhaseEvent) -> bool {
        match self.phase.get().next(event) {
            Some(phase) => {
                self.phase.set(phase);
                true
            }
            None => false,
        }
    }

    fn request(&self, slot: Slot) -> *mut Request {
        self.requests[slot.index()].get()
    }

    fn api(&self) -> &'static NvmfTargetApiV1 {
        self.shared.api
    }

    fn has_output(&self) -> bool {
        let protocol = self.protocol.borrow();
        protocol.has_output_due() || protocol.output_len() > 0
    }

    fn inbox_is_blocked(&self) -> bool {
        self.pending.borrow().is_some() || self.inbox.borrow().is_blocked()
    }

    fn pending_can_go_on(&self) -> bool {
        self.pending.borrow().is_some() && !self.protocol.borrow().is_stalled()
    }
}

/// Receiving.
impl HostConnection {
    fn take_in(&self, now_ns: u64) {
        if self.is_securing.get() && !self.secure() {
            return;
        }
        let pending =
            if self.protocol.borrow().is_stalled() { None } else { self.pending.borrow_mut().take() };
        if let Some((room, from)) = pending {
            self.work_on(room, from, now_ns);
        }
        if !self.is_readable.get() || self.pending.borrow().is_some() || !self.phase.get().receives() {
            return;
        }
        let Some(mut room) = self.inbox.borrow_mut().room(&self.shared.chunks) else { return };
        let from = room.start();
        match self.receive(&mut room, now_ns) {
            Ok(()) => self.work_on(room, from, now_ns),
            Err(error) => {
                self.discard(room);
                self.lost(error);
            }
        }
    }

    /// Receives once; data of a command goes straight to its memory. `Err(None)`: the stream ended.
    fn receive(&self, room: &mut Room, now_ns: u64) -> Result<(), Option<io::Error>> {
        let placement = self.protocol.borrow().placement();
        let mut pieces = self.shared.pieces.borrow_mut();
        pieces.clear();
        if let Some(placement) = placement {
            // SAFETY: the command is being received, so its memory is this side's.
            unsafe { pieces_of(self.request(placement.slot), placement, &mut pieces) };
        }
        let placed: usize = pieces.iter().map(|piece| piece.len).sum();
        let is_large = self.large_receives.get() > 0;
        pieces.push(room.spare(if is_large { SMALL_RECEIVE_BYTES } else { usize::MAX }));
        let asked = placed + pieces[pieces.len() - 1].len;
        let channel = self.channel.borrow();
        let received = match channel.as_ref() {
            // SAFETY: the pieces are a command's memory that is being received to, and a chunk's unused part.
            Some(channel) => unsafe { channel.receive(&mut pieces) },
            None => Ok(Some(0)),
        };
        self.shared.counters.receives.set(self.shared.counters.receives.get() + 1);
        let count = match received {
            Ok(Some(0)) => return Err(None),
            Ok(Some(count)) => count,
            Ok(None) => 0,
            Err(error) => return Err(Some(error)),
        };
        if count < asked && !self.is_half_closed.get() {
            self.is_readable.set(false);
        }
        self.shared.counters.received_bytes.set(self.shared.counters.received_bytes.get() + count as u64);
        let mut left = count;
        for piece in &pieces[..pieces.len() - 1] {
            let len = piece.len.min(left);
            left -= len;
            if len > 0 {
                // SAFETY: these bytes were just received.
                let bytes = unsafe { std::slice::from_raw_parts(piece.base.cast::<u8>(), len) };
                self.protocol.borrow_mut().handle_placed(bytes, now_ns);
            }
        }
        room.received(left);
        Ok(())
    }

    /// Looks at the bytes of `room` from `at` on until nothing more can be said.
    fn work_on(&self, room: Room, mut at: usize, now_ns: u64) {
        loop {
            let handled = self.protocol.borrow_mut().handle_bytes(room.bytes(at), now_ns);
            at += handled.consumed;
            match handled.event {
                None => break,
                Some(TargetEvent::Command { slot, sqe, data, is_intact }) => {
                    self.begin(slot, sqe, data, is_intact, room.chunk());
                }
                // SAFETY: the command is being received, so its memory is this side's.
                Some(TargetEvent::Data { slot, offset, bytes }) => unsafe {
                    fill(self.request(slot), offset, bytes);
                },
                Some(TargetEvent::DataComplete { slot, is_intact }) => self.data_complete(slot, is_intact),
                Some(TargetEvent::Ready(_)) => self.open(),
                Some(TargetEvent::Ended(ending)) => self.over(ending),
            }
            if !self.phase.get().receives() {
                return self.discard(room);
            }
        }
        if self.protocol.borrow().is_stalled() && self.phase.get().receives() {
            *self.pending.borrow_mut() = Some((room, at));
        } else {
            self.inbox.borrow_mut().close(room, at, &self.shared.chunks);
        }
    }

    /// Gives up bytes that nobody looks at.
    fn discard(&self, room: Room) {
        let end = room.end();
        self.inbox.borrow_mut().close(room, end, &self.shared.chunks);
    }

    fn discard_pending(&self) {
        let pending = self.pending.borrow_mut().take();
        if let Some((room, _)) = pending {
            self.discard(room);
        }
    }

    /// A command arrived.
    fn begin(&self, slot: Slot, sqe: &Sqe, data: &[u8], is_intact: bool, chunk: &Rc<Chunk>) {
        let request = self.request(slot);
        // SAFETY: the slot is new, so its request is this side's.
        let disposition = unsafe {
            let own = &mut *request;
            own.target.sqe.copy_from_slice(sqe.as_bytes());
            own.is_intact = is_intact;
            own.target.capsule_length = data.len() as u32;
            own.target.capsule_data = std::ptr::null_mut();
            if !data.is_empty() {
                own.target.capsule_data = data.as_ptr().cast_mut().cast();
                own.chunk = Some(chunk.clone());
            }
            (self.api().request_begin)(request.cast())
        };
        match disposition {
            Disposition::EXECUTE => self.run(slot),
            Disposition::RECEIVE => self.expect(slot),
            Disposition::WAIT => {
                // SAFETY: this side keeps its own part of a request whoever has the rest.
                unsafe { (*request).place = Place::Waiting };
            }
            _ => self.respond(slot),
        }
    }

    /// Has the host send the data of a command.
    fn expect(&self, slot: Slot) {
        let request = self.request(slot);
        // SAFETY: the target core gave the request back to be filled.
        let length = unsafe {
            (*request).chunk = None;
            (*request).target.length
        };
        if length == 0 {
            return self.run(slot);
        }
        self.protocol.borrow_mut().receive(slot, length);
        if length > LARGE_PAYLOAD_BYTES {
            // SAFETY: as above.
            unsafe { (*request).is_large = true };
            self.large_receives.set(self.large_receives.get() + 1);
        }
    }

    /// Runs a command whose data is complete, unless it is damaged.
    fn run(&self, slot: Slot) {
        self.protocol.borrow_mut().execute(slot);
        self.hand_over(slot);
    }

    fn data_complete(&self, slot: Slot, is_intact: bool) {
        let request = self.request(slot);
        // SAFETY: the command's data has come, so the request is this side's.
        unsafe {
            (*request).is_intact &= is_intact;
            if std::mem::take(&mut (*request).is_large) {
                self.large_receives.set(self.large_receives.get() - 1);
            }
        }
        self.hand_over(slot);
    }

    fn hand_over(&self, slot: Slot) {
        let request = self.request(slot);
        // SAFETY: the request was begun and is this side's until one of these calls.
        unsafe {
            if (*request).is_intact {
                (self.api().request_execute)(request.cast());
            } else {
                let status = StatusField::new(StatusCode::TRANSIENT_TRANSPORT_ERROR);
                self.shared.counters.damaged.set(self.shared.counters.damaged.get() + 1);
                (self.api().request_fail)(request.cast(), status.0.get());
            }
        }
    }
}

/// Sending.
impl HostConnection {
    /// The target core gives a request back to be answered.
    ///
    /// # Safety
    /// `request` is one of this crate's, begun and not released.
    pub unsafe fn complete(request: *mut TargetRequest) {
        let request: *mut Request = request.cast();
        // SAFETY: the connection lives until its last request is released.
        let (own, slot, place) = unsafe { (&*(*request).connection, (*request).slot, (*request).place) };
        // SAFETY: the request is this side's now.
        unsafe { (*request).place = Place::Settled };
        if place == Place::Orphaned {
            // SAFETY: as above, and the protocol does not know it any more.
            unsafe { (own.api().request_release)(request.cast()) };
        } else {
            own.respond(slot);
        }
        own.shared.queue(own);
    }

    /// There is memory for a request that waited for it.
    ///
    /// # Safety
    /// As [`HostConnection::complete`].
    pub unsafe fn buffers(request: *mut TargetRequest) {
        let request: *mut Request = request.cast();
        // SAFETY: as in `complete`.
        let (own, slot, place) = unsafe { (&*(*request).connection, (*request).slot, (*request).place) };
        if place == Place::Orphaned {
            let status = StatusField::new(StatusCode::TRANSIENT_TRANSPORT_ERROR);
            // SAFETY: the request is this side's; its connection has ended.
            return unsafe { (own.api().request_fail)(request.cast(), status.0.get()) };
        }
        // SAFETY: the request is this side's now.
        let is_there = unsafe {
            (*request).place = Place::Settled;
            let target = &(*request).target;
            target.direction != Direction::TO_CONTROLLER || target.capsule_length >= target.length
        };
        if is_there {
            own.run(slot);
        } else {
            own.expect(slot);
        }
        own.shared.queue(own);
    }

    /// Lets the protocol answer a command.
    fn respond(&self, slot: Slot) {
        let request = self.request(slot);
        // SAFETY: the target core gave the request back; nobody else has it.
        let (cqe, length) = unsafe {
            let own = &mut *request;
            // What came in the capsule is not looked at any more.
            own.chunk = None;
            if std::mem::take(&mut own.is_large) {
                self.large_receives.set(self.large_receives.get() - 1);
            }
            let length = if own.target.direction == Direction::TO_HOST { own.target.length } else { 0 };
            // In the two words it was just written in: a load across both would wait until all stores before them,
            // a block of data among them, have left the processor's buffer.
            let words = own.target.cqe.as_ptr().cast::<u64>();
            let (low, high) = (words.read_volatile(), words.add(1).read_volatile());
            (Cqe::from_u128(u128::from(u64::from_le(high)) << 64 | u128::from(u64::from_le(low))), length)
        };
        if !self.is_connected.get() && cqe.status.is_success() {
            self.learn_limits(slot);
        }
        self.shared.counters.commands.set(self.shared.counters.commands.get() + 1);
        let mut protocol = self.protocol.borrow_mut();
        if length > 0 && cqe.status.is_success() {
            // SAFETY: the request is this side's, and its payload is there.
            unsafe { fetch_payload(request, protocol.has_data_digest()) };
        }
        protocol.complete(slot, &cqe, length);
    }

    /// Sends what has come up, as far as the socket takes it.
    fn send_out(&self, now_ns: u64) {
        for _ in 0..MAX_SENDS_PER_TURN {
            if !self.is_writable.get() {
                return;
            }
            let digest = |placement: Placement| {
                let mut digest = 0;
                // SAFETY: the command is being answered, so its memory is readable until it is released.
                unsafe {
                    let request = self.request(placement.slot);
                    each_piece(request, placement.offset, placement.len, |base, len| {
                        digest = crc32c(digest, std::slice::from_raw_parts(base, len));
                    });
                }
                digest
            };
            self.protocol.borrow_mut().poll_output(digest, now_ns);
            if self.protocol.borrow().output_len() == 0 || !self.send_once(now_ns) {
                return;
            }
            self.release_ended();
        }
    }

    /// One call of the socket; false if nothing was sent.
    fn send_once(&self, now_ns: u64) -> bool {
        let mut pieces = self.shared.pieces.borrow_mut();
        pieces.clear();
        let protocol = self.protocol.borrow();
        for piece in protocol.pieces() {
            match piece {
                Piece::Bytes(bytes) => {
                    pieces.push(IoVec { base: bytes.as_ptr().cast_mut().cast(), len: bytes.len() });
                }
                // SAFETY: as for the digest.
                Piece::Payload(placement) => unsafe {
                    pieces_of(self.request(placement.slot), placement, &mut pieces);
                },
            }
            if pieces.len() >= MAX_PIECES {
                pieces.truncate(MAX_PIECES);
                break;
            }
        }
        drop(protocol);
        let due: usize = pieces.iter().map(|piece| piece.len).sum();
        let channel = self.channel.borrow();
        let Some(connected) = channel.as_ref() else { return false };
        // SAFETY: headers stay until they are written, payload until its request is released.
        let sent = unsafe { connected.send(&pieces) };
        drop((channel, pieces));
        self.shared.counters.sends.set(self.shared.counters.sends.get() + 1);
        match sent {
            Ok(sent) => {
                let count = sent.unwrap_or(0);
                if count < due {
                    self.is_writable.set(false);
                }
                self.shared.counters.sent_bytes.set(self.shared.counters.sent_bytes.get() + count as u64);
                self.protocol.borrow_mut().handle_written(count, now_ns);
                count > 0
            }
            Err(error) => {
                self.lost(Some(error));
                false
            }
        }
    }

    /// Returns the requests whose responses are written.
    fn release_ended(&self) {
        loop {
            let Some(slot) = self.protocol.borrow_mut().poll_released() else { return };
            let request = self.request(slot);
            // SAFETY: the protocol is through with the command. If the target core still has it, it gives it back.
            unsafe {
                if (*request).place == Place::Waiting {
                    (*request).place = Place::Orphaned;
                    continue;
                }
                (*request).chunk = None;
                (*request).is_large = false;
                (self.api().request_release)(request.cast());
            }
        }
    }
}

/// Calls of the socket to send in one turn; then other connections have theirs.
const MAX_SENDS_PER_TURN: usize = 8;
/// Payload from which on it pays to receive it straight to its memory.
const LARGE_PAYLOAD_BYTES: u32 = 32 << 10;
/// Received at once while a large payload is expected, so that most of it goes straight to its memory.
const SMALL_RECEIVE_BYTES: usize = 4 << 10;
