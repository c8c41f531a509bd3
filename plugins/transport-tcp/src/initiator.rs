//! The initiator role: connections to controllers, as `bdev-nvme` opens them.
//! `open` makes them, `initiator_table` is the contract's table of it.
//!
//! A connection drives the sans-IO state machine with a socket: the group's
//! poller calls [`Connection::run`] in every turn. Requests complete and events
//! are told from there, never from inside a call of the module, and exactly
//! once: the state machine says when none of a request's memory is in use.
// UNSAFETY: moves payload of requests by raw pointers, and calls the module back with them.

mod open;

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;

use nvme_spec::command::Sqe;
use nvme_spec::completion::StatusField;
use nvme_spec::status::StatusCode;
use tenon_sdk::abi::Str;
use tenon_sdk::abi::transport::initiator::{
    ConnectionEvent, ConnectionEventKind, ConnectionFn, InitiatorRequest,
};
use tenon_sdk::abi::transport::{CloseReason, Direction};
use tenon_sdk::{FdWatch, Host, IoVec, crc32c, errno};
use zerocopy::FromBytes;

use crate::channel::Channel;
use crate::connection::initiator::SubmitError;
use crate::connection::request::{Outcome, Transfer};
use crate::connection::{
    ConnectionState, Ending, InitiatorConnection, InitiatorEvent, Piece, Placement, Slot,
};
use crate::initiator_group::{Group, GroupRef, count};
use crate::pdu::ADMIN_IN_CAPSULE_BYTES;
use crate::socket::MAX_PIECES;

pub(crate) use open::open;

/// Where a connection is.
///
/// ```text
/// Opening ─writable─► Securing ─secured─► Handshake ─ICResp─► Live ─ended, disconnect─► Closing ─nothing in flight─► Over
///    └──────────────────refused, too late─────┴─────────────────────────────▲
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    /// The channel's own handshake; at once over if the channel is plain.
    Securing,
    Handshake,
    Live,
    /// CLOSING is to be told.
    Ending,
    Closing,
    Over,
}

/// Why a connection ends.
#[derive(Clone, Debug)]
struct Why {
    reason: CloseReason,
    status: i32,
    detail: String,
}

/// One connection; on its group's reactor.
pub(crate) struct Connection {
    host: Host,
    group: GroupRef,
    phase: Cell<Phase>,
    machine: RefCell<InitiatorConnection>,
    /// The watch goes before the descriptor it watches.
    socket: RefCell<Option<(FdWatch, Channel)>>,
    /// The module's requests by slot.
    requests: Box<[Cell<*mut InitiatorRequest>]>,
    /// The beginning of a PDU whose rest has not come.
    stash: RefCell<Vec<u8>>,
    is_readable: Rc<Cell<bool>>,
    is_writable: Rc<Cell<bool>>,
    watches_writable: Cell<bool>,
    why: RefCell<Option<Why>>,
    connect_by_ns: u64,
    drain_by_ns: Cell<u64>,
    qid: u16,
    /// In-capsule data after Connect, which may always bring 8192 bytes.
    in_capsule_size: u32,
    is_connect_done: Cell<bool>,
    is_connect_told: Cell<bool>,
    on_event: ConnectionFn,
    arg: *mut c_void,
}

impl Connection {
    /// Moves what can be moved; true if there was something.
    pub(crate) fn run(&self, group: &Group, now_ns: u64) -> bool {
        let mut is_busy = false;
        if self.phase.get() == Phase::Opening {
            if !self.is_writable.get() {
                return false;
            }
            is_busy = true;
            self.opened();
        }
        if self.phase.get() == Phase::Securing {
            is_busy |= self.secure();
        }
        if matches!(self.phase.get(), Phase::Handshake | Phase::Live | Phase::Closing) {
            is_busy |= self.receive(group, now_ns);
            self.announce_end();
            is_busy |= self.complete(group);
            is_busy |= self.send(group, now_ns);
        }
        is_busy |= self.announce_end();
        if self.phase.get() == Phase::Closing {
            self.finish(group, now_ns);
        }
        is_busy
    }

    /// Tells the module that the end has begun, before any of its requests comes back for that.
    fn announce_end(&self) -> bool {
        if self.phase.get() != Phase::Ending {
            return false;
        }
        self.phase.set(Phase::Closing);
        self.tell(ConnectionEventKind::CLOSING, 0);
        true
    }

    /// The socket can say how connecting ended.
    fn opened(&self) {
        let result = match &*self.socket.borrow() {
            Some((watch, channel)) => channel.socket().connected().and_then(|()| {
                watch.modify(READABLE).map_err(|error| std::io::Error::other(error.to_string()))
            }),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        };
        match result {
            Ok(()) => {
                self.watches_writable.set(false);
                self.phase.set(Phase::Securing);
                // Whoever secures a channel speaks first.
                self.is_readable.set(true);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Goes on with the channel's handshake; true if something was done.
    fn secure(&self) -> bool {
        if !self.is_readable.replace(false) {
            return false;
        }
        let result = match &*self.socket.borrow() {
            Some((_, channel)) => channel.handshake(),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        };
        match result {
            Ok(true) => {
                // What came with the end of the handshake may be inside the channel already.
                self.is_readable.set(true);
                self.phase.set(Phase::Handshake);
            }
            Ok(false) => {}
            Err(error) => {
                let detail = format!("the channel cannot be secured: {error}");
                self.end(Why { reason: CloseReason::SECURITY, status: errno::EACCES, detail });
                let _ = self.machine.borrow_mut().close();
            }
        }
        true
    }

    /// The socket failed.
    fn failed(&self, error: &std::io::Error) {
        let status = error.raw_os_error().map_or(errno::EIO, |code| -code);
        let reason = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => CloseReason::REFUSED,
            std::io::ErrorKind::TimedOut => CloseReason::TIMEOUT,
            std::io::ErrorKind::NetworkUnreachable | std::io::ErrorKind::HostUnreachable => {
                CloseReason::UNREACHABLE
            }
            _ => CloseReason::PEER,
        };
        self.end(Why { reason, status, detail: error.to_string() });
        // Nothing can be sent any more.
        let _ = self.machine.borrow_mut().close();
    }

    /// Begins the end; only the first reason counts.
    fn end(&self, why: Why) {
        match self.phase.get() {
            Phase::Opening | Phase::Securing | Phase::Handshake | Phase::Live => {
                self.phase.set(Phase::Ending);
                self.drain_by_ns.set(self.drain_by_ns.get().min(self.host.now_ns() + TERMINATION_NS));
                *self.why.borrow_mut() = Some(why);
            }
            Phase::Ending | Phase::Closing | Phase::Over => {}
        }
    }

    fn ended(&self, ending: Ending) {
        let (reason, status) = match ending {
            Ending::Local => (CloseReason::LOCAL, errno::ECANCELED),
            Ending::PeerClosed | Ending::PeerTerminated { .. } | Ending::PeerTerminatedIllegibly => {
                (CloseReason::PEER, ECONNRESET)
            }
            Ending::Protocol(_) => (CloseReason::PROTOCOL, EPROTO),
            Ending::TimedOut(_) => (CloseReason::TIMEOUT, errno::ETIMEDOUT),
            Ending::DigestRefused => (CloseReason::REFUSED, EPROTO),
        };
        self.end(Why { reason, status, detail: ending.to_string() });
    }

    fn receive(&self, group: &Group, now_ns: u64) -> bool {
        let is_asked = !self.is_readable.get();
        if is_asked && !(group.may_ask() && self.machine.borrow().awaits_answers()) {
            return false;
        }
        let mut is_busy = false;
        for _ in 0..RECEIVES_PER_TURN {
            match self.receive_once(group, now_ns) {
                Received::Nothing => {
                    if is_asked && !is_busy {
                        group.asked_in_vain();
                    }
                    break;
                }
                Received::Some => is_busy = true,
                Received::All => {
                    is_busy = true;
                    break;
                }
            }
        }
        is_busy
    }

    /// Receives once and hands the bytes to the state machine.
    fn receive_once(&self, group: &Group, now_ns: u64) -> Received {
        let mut machine = self.machine.borrow_mut();
        if machine.state() == ConnectionState::Closed {
            self.is_readable.set(false);
            return Received::Nothing;
        }
        let mut stash = self.stash.borrow_mut();
        let mut buffer = group.buffer.borrow_mut();
        let kept = stash.len();
        buffer[..kept].copy_from_slice(&stash);
        stash.clear();
        // Payload that goes on goes straight to its memory, if that saves a copy that is worth it.
        let placement = machine.placement().filter(|at| kept == 0 && at.len as usize >= PLACED_FROM);
        let mut pieces = group.pieces.borrow_mut();
        pieces.clear();
        let mut direct = 0;
        if let Some(at) = placement {
            direct = self.pieces_of(at, &mut pieces, MAX_PIECES - 1);
        }
        let room = &mut buffer[kept..];
        pieces.push(IoVec { base: room.as_mut_ptr().cast(), len: room.len() });
        let asked = direct + room.len();
        let received = match &*self.socket.borrow() {
            // SAFETY: the buffer is ours for this call; the other pieces are memory of a request in flight, which
            // the module keeps and leaves to the transport.
            Some((_, socket)) => unsafe { socket.receive(&mut pieces) },
            None => Ok(None),
        };
        let count = match received {
            Ok(Some(count)) => count,
            Ok(None) => {
                self.is_readable.set(false);
                stash.extend_from_slice(&buffer[..kept]);
                return Received::Nothing;
            }
            Err(error) => {
                drop(machine);
                self.failed(&error);
                return Received::All;
            }
        };
        self.note_received(group, count);
        if count == 0 {
            self.is_readable.set(false);
            let event = machine.handle_eof();
            drop(machine);
            if let Some(InitiatorEvent::Ended(ending)) = event {
                self.ended(ending);
            }
            return Received::All;
        }
        let placed = count.min(direct);
        self.place(&mut machine, &pieces, placed, now_ns);
        let ending = self.handle(&mut machine, &buffer[..kept + count - placed], &mut stash, now_ns);
        drop(machine);
        if let Some(ending) = ending {
            self.ended(ending);
        }
        if count < asked {
            self.is_readable.set(false);
            return Received::All;
        }
        Received::Some
    }

    fn note_received(&self, group: &Group, bytes: usize) {
        count(&group.statistics.receives, 1);
        count(&group.statistics.received_bytes, bytes as u64);
    }

    /// Tells the state machine of `placed` bytes that went straight to the first `pieces`.
    fn place(&self, machine: &mut InitiatorConnection, pieces: &[IoVec], placed: usize, now_ns: u64) {
        let mut left = placed;
        for piece in pieces {
            if left == 0 {
                return;
            }
            let len = piece.len.min(left);
            // SAFETY: the bytes were received to there just now, and the request is still in flight.
            let bytes = unsafe { std::slice::from_raw_parts(piece.base.cast::<u8>(), len) };
            machine.handle_placed(bytes, now_ns);
            left -= len;
        }
    }

    /// Hands bytes over, copies data to its memory, and keeps what is not a whole PDU.
    fn handle(
        &self,
        machine: &mut InitiatorConnection,
        bytes: &[u8],
        stash: &mut Vec<u8>,
        now_ns: u64,
    ) -> Option<Ending> {
        let (mut at, mut ended) = (0, None);
        loop {
            let handled = machine.handle_bytes(&bytes[at..], now_ns);
            at += handled.consumed;
            match handled.event {
                None => break,
                Some(InitiatorEvent::Ready(_)) => {
                    if self.phase.get() == Phase::Handshake {
                        self.phase.set(Phase::Live);
                        // Told when the state machine is not borrowed: by `complete`.
                    }
                }
                Some(InitiatorEvent::Data { slot, offset, bytes }) => self.copy_in(slot, offset, bytes),
                Some(InitiatorEvent::Ended(ending)) => ended = Some(ending),
            }
        }
        stash.extend_from_slice(&bytes[at..]);
        ended
    }

    /// Copies data of a request to its memory.
    fn copy_in(&self, slot: Slot, offset: u32, bytes: &[u8]) {
        let mut left = bytes;
        self.walk(Placement { slot, offset, len: bytes.len() as u32 }, |piece| {
            let (now, later) = left.split_at(piece.len.min(left.len()));
            // SAFETY: the piece is part of a request's memory, which the module leaves to the transport while it
            // is in flight; the source is the group's buffer.
            unsafe { piece.base.cast::<u8>().copy_from_nonoverlapping(now.as_ptr(), now.len()) };
            left = later;
            true
        });
    }

    /// The memory of a placement as pieces, at most `most`; gives their bytes.
    fn pieces_of(&self, at: Placement, pieces: &mut Vec<IoVec>, most: usize) -> usize {
        let mut bytes = 0;
        self.walk(at, |piece| {
            if pieces.len() >= most {
                return false;
            }
            bytes += piece.len;
            pieces.push(piece);
            true
        });
        bytes
    }

    /// Visits the memory of a placement, piece by piece, until `visit` has enough.
    fn walk(&self, at: Placement, mut visit: impl FnMut(IoVec) -> bool) {
        let request = self.requests[at.slot.index()].get();
        if request.is_null() {
            return;
        }
        // SAFETY: a request in flight and its list are kept by the module.
        let list = unsafe {
            match (*request).iovcnt {
                0 => &[][..],
                count => std::slice::from_raw_parts((*request).iovs, count as usize),
            }
        };
        let (mut skip, mut left) = (at.offset as usize, at.len as usize);
        for piece in list {
            if left == 0 {
                return;
            }
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let len = (piece.len - skip).min(left);
            // SAFETY: `skip` is inside the piece.
            let base = unsafe { piece.base.byte_add(skip) };
            if !visit(IoVec { base, len }) {
                return;
            }
            (skip, left) = (0, left - len);
        }
    }

    /// Gives finished requests back; true if there were any.
    fn complete(&self, group: &Group) -> bool {
        if self.phase.get() == Phase::Live && !self.is_connect_told.replace(true) {
            self.tell(ConnectionEventKind::CONNECTED, self.requests.len() as u32);
        }
        let mut is_busy = false;
        loop {
            let completion = self.machine.borrow_mut().poll_completion();
            let Some(completion) = completion else { return is_busy };
            is_busy = true;
            count(&group.statistics.completions, 1);
            let request = self.requests[completion.slot.index()].replace(std::ptr::null_mut());
            if request.is_null() {
                log::error!("nvme tcp initiator completed a request twice cid={}", completion.cid);
                continue;
            }
            if !self.is_connect_done.replace(true) && self.qid != 0 {
                self.machine.borrow_mut().set_in_capsule_bytes(self.in_capsule_size);
            }
            // SAFETY: the module keeps a submitted request until `done`, which is called once: it was taken out.
            unsafe {
                (*request).status = match completion.outcome {
                    Outcome::Answered(mut cqe) => {
                        let is_short = (*request).direction == Direction::TO_HOST
                            && completion.received < (*request).length;
                        if self.qid != 0 && is_short && cqe.status.is_success() {
                            cqe.status = StatusField::new(StatusCode::DATA_TRANSFER_ERROR);
                        }
                        (*request).cqe = cqe.to_u128().to_le_bytes();
                        0
                    }
                    Outcome::Lost => errno::ECANCELED,
                };
                if let Some(done) = (*request).done {
                    done(request, (*request).done_arg);
                }
            }
        }
    }

    /// Sends what there is; true if something went out.
    fn send(&self, group: &Group, now_ns: u64) -> bool {
        if !self.is_writable.get() {
            return false;
        }
        self.watch_writable(false);
        let mut is_busy = false;
        for _ in 0..SENDS_PER_TURN {
            let mut machine = self.machine.borrow_mut();
            machine.poll_output(|placement| self.digest(placement), now_ns);
            if machine.output_len() == 0 {
                break;
            }
            let mut pieces = group.pieces.borrow_mut();
            pieces.clear();
            for piece in machine.pieces() {
                match piece {
                    Piece::Bytes(bytes) => {
                        pieces.push(IoVec { base: bytes.as_ptr().cast_mut().cast(), len: bytes.len() });
                    }
                    Piece::Payload(at) => _ = self.pieces_of(at, &mut pieces, MAX_PIECES),
                }
                if pieces.len() >= MAX_PIECES {
                    break;
                }
            }
            let asked: usize = pieces.iter().map(|piece| piece.len).sum();
            let sent = match &*self.socket.borrow() {
                // SAFETY: the state machine keeps its bytes in place until they are written, the module its
                // requests' memory until they are done.
                Some((_, socket)) => unsafe { socket.send(&pieces) },
                None => Ok(None),
            };
            match sent {
                Ok(Some(bytes)) => {
                    is_busy = true;
                    count(&group.statistics.sends, 1);
                    count(&group.statistics.sent_bytes, bytes as u64);
                    machine.handle_written(bytes, now_ns);
                    if bytes < asked {
                        self.wait_for_room();
                        break;
                    }
                }
                Ok(None) => {
                    self.wait_for_room();
                    break;
                }
                Err(error) => {
                    drop(machine);
                    self.failed(&error);
                    return true;
                }
            }
        }
        is_busy
    }

    fn digest(&self, at: Placement) -> u32 {
        let mut digest = 0;
        self.walk(at, |piece| {
            // SAFETY: part of a request's memory, which the module leaves unchanged while it is in flight.
            let bytes = unsafe { std::slice::from_raw_parts(piece.base.cast::<u8>(), piece.len) };
            digest = crc32c(digest, bytes);
            true
        });
        digest
    }

    fn wait_for_room(&self) {
        self.is_writable.set(false);
        self.watch_writable(true);
    }

    fn watch_writable(&self, watches: bool) {
        if self.watches_writable.replace(watches) == watches {
            return;
        }
        let events = if watches { READABLE | WRITABLE } else { READABLE };
        if let Some((watch, _)) = &*self.socket.borrow()
            && let Err(error) = watch.modify(events)
        {
            log::warn!("nvme tcp initiator cannot watch a socket error=\"{error}\"");
        }
    }

    /// Closes the socket once nothing has to be sent, or it is time.
    fn finish(&self, group: &Group, now_ns: u64) {
        let mut machine = self.machine.borrow_mut();
        let says_why = machine.state() == ConnectionState::Terminating && machine.output_len() > 0;
        if says_why && now_ns < self.drain_by_ns.get() {
            return;
        }
        let _ = machine.close();
        drop(machine);
        self.complete(group);
        if self.machine.borrow().requests_in_flight() == 0 {
            self.phase.set(Phase::Over);
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.phase.get() == Phase::Over
    }

    /// Whether the poller has something to do now.
    pub(crate) fn has_work(&self) -> bool {
        let machine = self.machine.borrow();
        match self.phase.get() {
            Phase::Opening => self.is_writable.get(),
            Phase::Securing => self.is_readable.get(),
            Phase::Ending | Phase::Over => true,
            // Only a Terminate Connection Request that does not leave keeps a connection so long.
            Phase::Closing => self.is_writable.get(),
            Phase::Handshake | Phase::Live => {
                let has_output = machine.has_output_due() || machine.output_len() > 0;
                self.is_readable.get() || has_output && self.is_writable.get()
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let own = match self.phase.get() {
            Phase::Opening | Phase::Securing | Phase::Handshake => Some(self.connect_by_ns),
            Phase::Live | Phase::Over => None,
            Phase::Ending | Phase::Closing => Some(self.drain_by_ns.get()),
        };
        let machine = self.machine.borrow().next_deadline();
        own.into_iter().chain(machine).min()
    }

    pub(crate) fn check_time(&self, now_ns: u64) {
        if matches!(self.phase.get(), Phase::Opening | Phase::Securing | Phase::Handshake)
            && now_ns >= self.connect_by_ns
        {
            let detail = "not connected in time".to_owned();
            self.end(Why { reason: CloseReason::TIMEOUT, status: errno::ETIMEDOUT, detail });
            let _ = self.machine.borrow_mut().close();
            return;
        }
        let is_due = self.machine.borrow().next_deadline().is_some_and(|at| now_ns >= at);
        if is_due && !matches!(self.phase.get(), Phase::Opening | Phase::Securing) {
            let event = self.machine.borrow_mut().handle_timeout(now_ns);
            if let Some(InitiatorEvent::Ended(ending)) = event {
                self.ended(ending);
            }
        }
    }

    /// The last event; the module may free the connection from inside it.
    pub(crate) fn tell_closed(&self) {
        let socket = self.socket.borrow_mut().take();
        drop(socket);
        self.tell(ConnectionEventKind::CLOSED, 0);
    }

    fn tell(&self, kind: ConnectionEventKind, queue_depth: u32) {
        let why = self.why.borrow().clone();
        let event = ConnectionEvent {
            size: size_of::<ConnectionEvent>() as u32,
            kind,
            reason: why.as_ref().map_or(CloseReason(0), |why| why.reason),
            status: why.as_ref().map_or(0, |why| why.status),
            queue_depth,
            in_capsule_size: ADMIN_IN_CAPSULE_BYTES,
            detail: why.as_ref().map_or(Str::EMPTY, |why| Str::new(&why.detail)),
        };
        // SAFETY: the module's function and argument, valid until CLOSED; the event lives until it returns.
        unsafe { (self.on_event.0)(self.arg, &event) };
    }

    /// The module ends it.
    pub(crate) fn disconnect(&self, reason: CloseReason, drain_by_ns: u64) {
        self.drain_by_ns.set(drain_by_ns);
        self.end(Why { reason, status: errno::ECANCELED, detail: "closed by the initiator".to_owned() });
    }

    /// Its group, while there is one.
    pub(crate) fn group(&self) -> Option<Rc<Group>> {
        self.group.upgrade()
    }

    pub(crate) fn submit(
        &self,
        group: &Group,
        connection: *mut c_void,
        request: *mut InitiatorRequest,
    ) -> i32 {
        if self.phase.get() != Phase::Live {
            return ENOTCONN;
        }
        // SAFETY: the module gives a filled request and keeps it until `done`.
        let (sqe, transfer) = unsafe {
            (*request).connection = connection;
            let transfer = match (*request).direction {
                Direction::TO_CONTROLLER => Transfer::ToController((*request).length),
                Direction::TO_HOST => Transfer::ToHost((*request).length),
                _ => Transfer::None,
            };
            (Sqe::read_from_bytes(&(&(*request).sqe)[..]), transfer)
        };
        let Ok(sqe) = sqe else { return errno::EINVAL };
        match self.machine.borrow_mut().submit(&sqe, transfer) {
            Ok(slot) => {
                self.requests[slot.index()].set(request);
                count(&group.statistics.commands, 1);
                0
            }
            Err(SubmitError::NotReady) => ENOTCONN,
            Err(SubmitError::QueueFull | SubmitError::IdentifierInUse(_)) => errno::EAGAIN,
            Err(SubmitError::TooLong(_)) => errno::EINVAL,
        }
    }
}

/// What one receive came to.
enum Received {
    Nothing,
    /// There may be more.
    Some,
    /// All there was.
    All,
}

const READABLE: u32 = libc::EPOLLIN as u32;
const WRITABLE: u32 = libc::EPOLLOUT as u32;
const FAILED: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
const ECONNRESET: i32 = -libc::ECONNRESET;
/// Not connected, or closing.
pub(crate) const ENOTCONN: i32 = -libc::ENOTCONN;
const EPROTO: i32 = -libc::EPROTO;

/// Receives of one connection in one turn, so that others get theirs.
const RECEIVES_PER_TURN: usize = 4;
/// Sends of one connection in one turn.
const SENDS_PER_TURN: usize = 4;
/// Payload of which at least so much is still to come is received straight to its memory.
const PLACED_FROM: usize = 16 << 10;
/// How long a Terminate Connection Request may take to leave.
const TERMINATION_NS: u64 = 1_000_000_000;
