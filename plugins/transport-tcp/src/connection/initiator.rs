//! The host's end of a connection.
//!
//! Sends commands with their data in the capsule where it fits, answers R2Ts,
//! takes data and completions, and checks that the controller keeps to what was
//! asked for. What a command means, and its memory, is the owner's; see
//! [`crate::connection`] for the order of calls.
//!
//! The owner chooses command identifiers. Their low bits are the [`Slot`], so
//! identifiers in flight differ there: `slot | generation << bits` never
//! collides. Every submitted request is completed exactly once, by
//! [`InitiatorConnection::poll_completion`].
#![forbid(unsafe_code)]

use nvme_spec::command::{CommandFlags, Sqe};
use nvme_spec::completion::{Cqe, StatusField};
use nvme_spec::sgl::{DataPointer, SglDescriptor, SglIdentifier};
use nvme_spec::status::StatusCode;
use thiserror::Error;
use zerocopy::FromBytes;

use crate::codec::{Frame, Framing};
use crate::connection::deadline::Owed;
use crate::connection::handshake::{self, Agreement};
use crate::connection::inflow::Progress;
use crate::connection::link::{Begun, Link, Role};
use crate::connection::options::{InitiatorOptions, MAX_COMMAND_BYTES, OptionError};
use crate::connection::outbox::{MAX_SEGMENTS, Outbox, Piece};
use crate::connection::request::{Grant, Outcome, Request, RequestEvent, RequestState, Transfer};
use crate::connection::states::{Action, ConnectionState, Incident};
use crate::connection::{Ending, Handled, Placement, Slot, SlotQueue, quoted_header};
use crate::pdu::{
    ADMIN_IN_CAPSULE_BYTES, C2hData, CapsuleCmd, CapsuleResp, H2cData, IcResp, PduFlags, PduKind, PduType,
    R2t, SHORT_LEN,
};
use crate::peer_error::PeerError;

/// The host's end of a connection.
#[derive(Debug)]
pub struct InitiatorConnection {
    link: Link,
    options: InitiatorOptions,
    /// Most data of one H2CData, after the handshake.
    max_h2c_data_bytes: u32,
    /// Most in-capsule data.
    capsule_limit: u32,
    /// Requests in flight at most.
    depth: u16,
    in_flight: u16,
    /// As many as the queue is deep, rounded up to a power of two.
    requests: Box<[Request]>,
    /// Requests with something to encode.
    outgoing: SlotQueue,
    done: SlotQueue,
}

/// What happened at the host's end.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum InitiatorEvent<'b> {
    /// The handshake is done; requests may be submitted.
    Ready(Agreement),
    /// These bytes belong to the memory of a request.
    Data {
        /// Whose.
        slot: Slot,
        /// Offset in its payload.
        offset: u32,
        /// Part of the bytes given to `handle_bytes`.
        bytes: &'b [u8],
    },
    /// The connection ended, or is being terminated. Once. Requests are completed as lost.
    Ended(Ending),
}

/// A request that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Its slot, free from now on.
    pub slot: Slot,
    /// Its command identifier.
    pub cid: u16,
    /// How it ended. If a data digest was wrong, a success has become a Transient Transport Error.
    pub outcome: Outcome,
    /// Bytes of payload that came. A controller may send less than there is room for; for a command that
    /// knows its length, less with a success is a fault of the controller.
    pub received: u32,
}

/// A request is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SubmitError {
    /// Before the handshake or after the end.
    #[error("the connection is not ready")]
    NotReady,
    /// As many requests as the queue has entries are in flight.
    #[error("the queue is full")]
    QueueFull,
    /// A request with the same slot is in flight.
    #[error("command identifier {0:#06x} is in use")]
    IdentifierInUse(u16),
    /// More payload than a command can have.
    #[error("{0} bytes of payload")]
    TooLong(u32),
}

impl InitiatorConnection {
    /// A connection that is just open at the socket; ICReq is queued. Everything is allocated here.
    pub fn new(options: InitiatorOptions, now_ns: u64) -> Result<Self, OptionError> {
        options.check()?;
        let slots = options.queue_depth.next_power_of_two();
        let mut link = Link::new(Role::Initiator, Outbox::new(MAX_SEGMENTS), options.timeouts, now_ns);
        link.outbox.push_header(&handshake::request(&options), &Framing::PLAIN);
        Ok(Self {
            link,
            max_h2c_data_bytes: options.max_h2c_data_bytes,
            capsule_limit: ADMIN_IN_CAPSULE_BYTES,
            depth: options.queue_depth,
            in_flight: 0,
            requests: (0..slots).map(|_| Request::new(options.max_r2t)).collect(),
            outgoing: SlotQueue::new(slots),
            done: SlotQueue::new(slots),
            options,
        })
    }

    /// Where the connection stands.
    #[must_use]
    pub fn state(&self) -> ConnectionState {
        self.link.state
    }

    /// Why it ended or is ending.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.link.ending
    }

    /// Requests submitted and not polled.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.in_flight.into()
    }

    /// Whether the peer may have something to say to requests: not if it has not been sent what they have to say.
    #[must_use]
    pub fn awaits_answers(&self) -> bool {
        usize::from(self.in_flight) > self.outgoing.len()
    }

    /// State of a slot.
    #[must_use]
    pub fn request_state(&self, slot: Slot) -> RequestState {
        self.requests[slot.index()].state
    }

    /// Slots there are: the queue depth, rounded up to a power of two.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.requests.len()
    }

    /// The slot of a command identifier.
    #[must_use]
    pub fn slot_of(&self, cid: u16) -> Slot {
        Slot::new(cid & (self.requests.len() - 1) as u16)
    }

    /// Contiguous bytes a receive buffer has to be able to hold.
    #[must_use]
    pub fn max_contiguous_bytes(&self) -> usize {
        crate::codec::MAX_HEADER_BYTES
    }

    /// In-capsule data of this queue: 8192 on an admin queue (before this is called), from IOCCSZ on others.
    pub fn set_in_capsule_bytes(&mut self, bytes: u32) {
        self.capsule_limit = bytes;
    }

    /// Queues a command. Its data pointer is replaced: the transport knows how the payload travels.
    pub fn submit(&mut self, sqe: &Sqe, transfer: Transfer) -> Result<Slot, SubmitError> {
        if self.link.state != ConnectionState::Ready {
            return Err(SubmitError::NotReady);
        }
        if self.in_flight >= self.depth {
            return Err(SubmitError::QueueFull);
        }
        if transfer.length() > MAX_COMMAND_BYTES {
            return Err(SubmitError::TooLong(transfer.length()));
        }
        let cid = sqe.cid.get();
        let slot = self.slot_of(cid);
        let request = &mut self.requests[slot.index()];
        request.state =
            request.state.next(RequestEvent::Submit).map_err(|_| SubmitError::IdentifierInUse(cid))?;
        let is_in_capsule = match transfer {
            Transfer::ToController(length) => (1..=self.capsule_limit).contains(&length),
            Transfer::None | Transfer::ToHost(_) => false,
        };
        request.begin(sqe, transfer, is_in_capsule);
        let identifier = if is_in_capsule {
            SglIdentifier::DATA_BLOCK_OFFSET
        } else {
            SglIdentifier::TRANSPORT_DATA_BLOCK
        };
        request.sqe.flags = request.sqe.flags.without(PSDT_MASK).with(CommandFlags::PSDT_SGL);
        request.sqe.dptr = DataPointer::from(SglDescriptor::new(identifier, 0, transfer.length()));
        self.in_flight += 1;
        self.enqueue(slot);
        Ok(slot)
    }

    /// Looks at received bytes until something happened or they are used up.
    #[inline(always)]
    pub fn handle_bytes<'b>(&mut self, bytes: &'b [u8], now_ns: u64) -> Handled<InitiatorEvent<'b>> {
        // Written to where the caller reads it: a copy would wait for the data of the command before; see `Link::begin`.
        let mut handled = Handled { consumed: 0, event: None };
        while handled.event.is_none()
            && let Some(count) = self.step(&bytes[handled.consumed..], now_ns, &mut handled.event)
        {
            handled.consumed += count;
        }
        self.link.clock.received(bytes.len(), bytes.len() - handled.consumed, now_ns);
        handled
    }

    /// Where the next bytes of the stream belong, if they are a request's data. They may be received straight
    /// to there; [`Self::handle_placed`] tells that they were.
    #[must_use]
    pub fn placement(&self) -> Option<Placement> {
        self.link.inflow.placement()
    }

    /// `bytes` were received to where [`Self::placement`] said; they are read only if there are data digests.
    /// Then `handle_bytes` goes on, with nothing if nothing else was received.
    ///
    /// # Panics
    ///
    /// If there are more than `placement` said.
    pub fn handle_placed(&mut self, bytes: &[u8], now_ns: u64) {
        self.link.inflow.placed(bytes);
        self.link.clock.placed(now_ns);
    }

    /// Encodes what is due, as far as there is room. `digest` gives the CRC32C of a piece of payload; it is
    /// called only if data digests are used.
    pub fn poll_output(&mut self, mut digest: impl FnMut(Placement) -> u32, now_ns: u64) {
        let was_empty = self.link.outbox.is_empty();
        while self.link.state == ConnectionState::Ready
            && self.link.outbox.has_room(PDUS_PER_TURN)
            && let Some(slot) = self.outgoing.pop()
        {
            self.requests[slot.index()].is_queued = false;
            self.encode(slot, &mut digest);
        }
        if was_empty && !self.link.outbox.is_empty() {
            self.link.clock.sent(now_ns);
        }
    }

    /// Whether [`Self::poll_output`] has something to encode.
    #[must_use]
    pub fn has_output_due(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// What is to be written, in order; up to [`MAX_SEGMENTS`] pieces.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.link.outbox.pieces()
    }

    /// Bytes of [`Self::pieces`].
    #[must_use]
    pub fn output_len(&self) -> u64 {
        self.link.outbox.len()
    }

    /// `count` bytes of [`Self::pieces`] were written.
    ///
    /// # Panics
    ///
    /// If there are not as many.
    pub fn handle_written(&mut self, count: usize, now_ns: u64) {
        self.link.outbox.advance(count);
        self.link.clock.sent(now_ns);
        while let Some(slot) = self.link.outbox.pop_end() {
            let request = &mut self.requests[slot.index()];
            request.unwritten -= 1;
            if request.unwritten == 0 {
                self.drain(slot);
            }
        }
    }

    /// The next request that is over; its memory is no longer used.
    #[inline]
    pub fn poll_completion(&mut self) -> Option<Completion> {
        let slot = self.done.pop()?;
        self.advance(slot, RequestEvent::Poll);
        self.in_flight -= 1;
        let request = &self.requests[slot.index()];
        let outcome = match request.outcome {
            Outcome::Answered(cqe) => Outcome::Answered(Cqe::from_u128(cqe.to_u128())),
            Outcome::Lost => Outcome::Lost,
        };
        let received = match request.transfer {
            Transfer::ToHost(_) => request.moved,
            Transfer::None | Transfer::ToController(_) => 0,
        };
        Some(Completion { slot, cid: request.cid, outcome, received })
    }

    /// When [`Self::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.link.clock.next(self.link.state, self.owed()).map(|(at, _)| at)
    }

    /// Ends the connection if a deadline has passed.
    pub fn handle_timeout(&mut self, now_ns: u64) -> Option<InitiatorEvent<'static>> {
        let timeout = self.link.missed(self.owed(), now_ns)?;
        self.end(Incident::Timeout, Ending::TimedOut(timeout))
    }

    /// The peer closed the stream.
    pub fn handle_eof(&mut self) -> Option<InitiatorEvent<'static>> {
        self.end(Incident::Eof, Ending::PeerClosed)
    }

    /// The owner ends the connection: nothing more is sent. Pieces that are being written asynchronously have to
    /// be done with before.
    pub fn close(&mut self) -> Option<InitiatorEvent<'static>> {
        self.end(Incident::Close, Ending::Local)
    }

    /// Takes one step; gives the bytes it used, or none if there are too few. What happened goes to `told`, by a call
    /// of its own, so that it stays where it is written.
    #[inline(never)]
    fn step<'b>(
        &mut self,
        bytes: &'b [u8],
        now_ns: u64,
        told: &mut Option<InitiatorEvent<'b>>,
    ) -> Option<usize> {
        if !self.link.inflow.is_idle() {
            return self.step_data(bytes, told);
        }
        match self.link.begin(bytes, 0) {
            Begun::Wait => None,
            Begun::Discard => Some(bytes.len()),
            Begun::Wrong(error) => self.fail(error, bytes, now_ns, told),
            Begun::Heard(ending) => {
                *told = self.end(Incident::Pdu(PduKind::C2hTermReq), ending);
                Some(bytes.len())
            }
            Begun::Pdu { frame, action, to } => match self.act(bytes, &frame, action, told) {
                Ok(step) => {
                    // The handshake may have ended the connection instead.
                    if self.link.ending.is_none() {
                        self.link.state = to;
                    }
                    step
                }
                Err(error) => self.fail(error, bytes, now_ns, told),
            },
        }
    }

    fn act<'b>(
        &mut self,
        bytes: &'b [u8],
        frame: &Frame,
        action: Action,
        told: &mut Option<InitiatorEvent<'b>>,
    ) -> Result<Option<usize>, PeerError> {
        match action {
            Action::Negotiate => self.negotiate(bytes, frame, told),
            Action::TakeData => self.begin_data(bytes, frame),
            Action::TakeR2t => self.take_r2t(bytes),
            Action::TakeResponse => self.take_response(bytes),
            Action::BeginCommand
            | Action::HearTermination
            | Action::RefuseType
            | Action::RefuseSequence
            | Action::Terminate
            | Action::Close
            | Action::Ignore => Ok(None),
        }
    }

    #[cold]
    fn negotiate<'b>(
        &mut self,
        bytes: &'b [u8],
        frame: &Frame,
        told: &mut Option<InitiatorEvent<'b>>,
    ) -> Result<Option<usize>, PeerError> {
        let Ok((response, _)) = IcResp::ref_from_prefix(bytes) else { return Ok(None) };
        let agreement = handshake::accept(response, &self.options)?;
        //= NVMe/TCP 1.0 §3.3.1.1
        //# If a host requests the use of header digest or data digest in the ICReq PDU, but the use of the digest was
        //# not enabled by the controller in the ICResp PDU, then the host may refuse the connection establishment
        //# and terminate the NVMe/TCP connection
        let is_refused = self.options.needs_header_digest && !agreement.framing.header_digest
            || self.options.needs_data_digest && !agreement.framing.data_digest;
        if is_refused && let Some(event) = self.end(Incident::Close, Ending::DigestRefused) {
            *told = Some(event);
            return Ok(Some(frame.total_len()));
        }
        self.link.framing = agreement.framing;
        self.max_h2c_data_bytes = agreement.max_h2c_data_bytes;
        self.link.consumed_header();
        *told = Some(InitiatorEvent::Ready(agreement));
        Ok(Some(frame.total_len()))
    }

    /// The slot of a request that the peer has seen and not completed.
    fn sent_request(&self, pdu: PduKind, cid: u16) -> Result<Slot, PeerError> {
        let slot = self.slot_of(cid);
        let request = &self.requests[slot.index()];
        let is_known = request.state == RequestState::Sent && request.cid == cid;
        if is_known { Ok(slot) } else { Err(PeerError::UnknownCommand { pdu, cid }) }
    }

    fn begin_data(&mut self, bytes: &[u8], frame: &Frame) -> Result<Option<usize>, PeerError> {
        let Ok((header, _)) = C2hData::ref_from_prefix(bytes) else { return Ok(None) };
        let slot = self.check_data(header)?;
        let flags = header.ch.flags;
        let request = &mut self.requests[slot.index()];
        request.has_last_data = flags.contains(PduFlags::LAST_PDU);
        if flags.contains(PduFlags::SUCCESS) {
            request.outcome = Outcome::Answered(Cqe::new(request.cid, 0, StatusField::SUCCESS));
        }
        let placement = Placement { slot, offset: header.datao.get(), len: frame.data_len };
        self.link.inflow.start(frame, placement, false);
        self.link.consumed_header();
        Ok(Some(frame.head_len))
    }

    /// Whether the controller's data continues what it sent before, within what there is room for.
    fn check_data(&self, header: &C2hData) -> Result<Slot, PeerError> {
        let (cid, flags) = (header.cccid.get(), header.ch.flags);
        let is_last = flags.contains(PduFlags::LAST_PDU);
        if flags.contains(PduFlags::SUCCESS) && !is_last {
            return Err(PeerError::SuccessWithoutLast);
        }
        let slot = self.sent_request(PduKind::C2hData, cid)?;
        let request = &self.requests[slot.index()];
        let unexpected = PeerError::UnexpectedData { pdu: PduKind::C2hData, cid };
        let end = match request.transfer {
            Transfer::ToHost(end) if !request.has_last_data => end,
            Transfer::ToHost(_) | Transfer::ToController(_) | Transfer::None => return Err(unexpected),
        };
        let (offset, length) = (header.datao.get(), header.datal.get());
        if !offset.is_multiple_of(4) {
            return Err(PeerError::OffsetUnaligned { pdu: PduKind::C2hData, offset });
        }
        // The end of the data need not be aligned, and only the controller knows where it is.
        if length == 0 || !length.is_multiple_of(4) && !is_last {
            return Err(PeerError::Length { pdu: PduKind::C2hData, length });
        }
        if u64::from(offset) + u64::from(length) > u64::from(end) {
            return Err(PeerError::OutOfRange { pdu: PduKind::C2hData, offset, length, end });
        }
        if offset != request.moved {
            return Err(PeerError::NotContiguous { pdu: PduKind::C2hData, offset, expected: request.moved });
        }
        Ok(slot)
    }

    fn step_data<'b>(&mut self, bytes: &'b [u8], told: &mut Option<InitiatorEvent<'b>>) -> Option<usize> {
        match self.link.inflow.step(bytes) {
            Progress::Wait => None,
            Progress::Skipped(count) => Some(count),
            Progress::Data { slot, offset, bytes } => {
                *told = Some(InitiatorEvent::Data { slot, offset, bytes });
                Some(bytes.len())
            }
            Progress::Finished { taken, slot, len, is_intact } => {
                let request = &mut self.requests[slot.index()];
                request.moved += len;
                request.is_intact &= is_intact;
                if let Outcome::Answered(cqe) = request.outcome {
                    self.answer(slot, cqe.to_u128());
                }
                Some(taken)
            }
        }
    }

    fn take_r2t(&mut self, bytes: &[u8]) -> Result<Option<usize>, PeerError> {
        let Ok((r2t, _)) = R2t::ref_from_prefix(bytes) else { return Ok(None) };
        let slot = self.check_r2t(r2t)?;
        let end = r2t.r2to.get() + r2t.r2tl.get();
        let request = &mut self.requests[slot.index()];
        request.granted = end;
        debug_assert!(request.grants.len() < request.grants.capacity(), "the limit is checked");
        request.grants.push_back(Grant { ttag: r2t.ttag.get(), end });
        self.enqueue(slot);
        self.link.consumed_header();
        Ok(Some(self.link.framing.head_len(PduKind::R2t)))
    }

    fn check_r2t(&self, r2t: &R2t) -> Result<Slot, PeerError> {
        let (pdu, cid) = (PduKind::R2t, r2t.cccid.get());
        let slot = self.sent_request(pdu, cid)?;
        let request = &self.requests[slot.index()];
        let end = match request.transfer {
            Transfer::ToController(end) if !request.is_in_capsule => end,
            Transfer::ToController(_) | Transfer::ToHost(_) | Transfer::None => {
                return Err(PeerError::UnexpectedData { pdu, cid });
            }
        };
        let (offset, length) = (r2t.r2to.get(), r2t.r2tl.get());
        if !offset.is_multiple_of(4) {
            return Err(PeerError::OffsetUnaligned { pdu, offset });
        }
        let r2t_end = u64::from(offset) + u64::from(length);
        if length == 0 || !length.is_multiple_of(4) && r2t_end != u64::from(end) {
            return Err(PeerError::Length { pdu, length });
        }
        if r2t_end > u64::from(end) {
            return Err(PeerError::OutOfRange { pdu, offset, length, end });
        }
        if offset != request.granted {
            return Err(PeerError::NotContiguous { pdu, offset, expected: request.granted });
        }
        if request.grants.len() >= self.options.max_r2t as usize {
            return Err(PeerError::R2tLimit { cid, limit: self.options.max_r2t });
        }
        Ok(slot)
    }

    fn take_response(&mut self, bytes: &[u8]) -> Result<Option<usize>, PeerError> {
        let Ok((response, _)) = CapsuleResp::ref_from_prefix(bytes) else { return Ok(None) };
        let slot = self.sent_request(PduKind::CapsuleResp, response.rccqe.cid.get())?;
        self.answer(slot, response.rccqe.to_u128());
        self.link.consumed_header();
        Ok(Some(self.link.framing.head_len(PduKind::CapsuleResp)))
    }

    //= NVMe/TCP 1.0 §3.5
    //# When a host detects a data digest error in a C2HData PDU, that host shall continue
    //# processing C2HData PDUs associated with the command and when the command processing has
    //# completed, if a successful status was returned by the controller, the host shall fail the command with a
    //# non-fatal transport error.
    fn answer(&mut self, slot: Slot, cqe: u128) {
        let request = &mut self.requests[slot.index()];
        let mut cqe = Cqe::from_u128(cqe);
        if !request.is_intact && cqe.status.is_success() {
            cqe.status = StatusField::new(StatusCode::TRANSIENT_TRANSPORT_ERROR);
        }
        request.outcome = Outcome::Answered(cqe);
        // Data that was granted and not sent is no longer wanted.
        request.grants.clear();
        self.advance(slot, RequestEvent::Answer);
        self.drain_if_written(slot);
    }

    fn encode(&mut self, slot: Slot, digest: &mut impl FnMut(Placement) -> u32) {
        match self.requests[slot.index()].state {
            RequestState::Queued => self.encode_capsule(slot, digest),
            RequestState::Sent => self.encode_data(slot, digest),
            // Answered since it was queued.
            RequestState::Free | RequestState::Draining | RequestState::Done => {}
        }
    }

    fn encode_capsule(&mut self, slot: Slot, digest: &mut impl FnMut(Placement) -> u32) {
        let framing = self.link.framing;
        self.advance(slot, RequestEvent::Encode);
        let request = &mut self.requests[slot.index()];
        let len = if request.is_in_capsule { request.transfer.length() } else { 0 };
        let ch = framing.header(PduType::CAPSULE_CMD, PduFlags::NONE, len);
        self.link.outbox.push_header(&CapsuleCmd { ch, ccsqe: request.sqe }, &framing);
        if len > 0 {
            self.push_payload(Placement { slot, offset: 0, len }, digest);
        }
        self.note_end(slot);
    }

    /// One H2CData PDU of the oldest R2T. More goes to the end of the queue, so that other requests get their
    /// turn.
    fn encode_data(&mut self, slot: Slot, digest: &mut impl FnMut(Placement) -> u32) {
        let framing = self.link.framing;
        let request = &mut self.requests[slot.index()];
        let Some(&grant) = request.grants.front() else { return };
        let offset = request.moved;
        let len = self.max_h2c_data_bytes.min(grant.end - offset);
        let is_last = offset + len == grant.end;
        let flags = PduFlags::NONE.with_if(is_last, PduFlags::LAST_PDU);
        let ch = framing.header(PduType::H2C_DATA, flags, len);
        self.link.outbox.push_header(&H2cData::new(ch, request.cid, grant.ttag, offset, len), &framing);
        request.moved += len;
        if is_last {
            request.grants.pop_front();
        }
        let has_more = !request.grants.is_empty();
        self.push_payload(Placement { slot, offset, len }, digest);
        self.note_end(slot);
        if has_more {
            self.enqueue(slot);
        }
    }

    fn push_payload(&mut self, payload: Placement, digest: &mut impl FnMut(Placement) -> u32) {
        self.link.outbox.push_payload(payload);
        if self.link.framing.data_digest {
            self.link.outbox.push_digest(digest(payload));
        }
    }

    fn note_end(&mut self, slot: Slot) {
        self.requests[slot.index()].unwritten += 1;
        self.link.outbox.end(slot);
    }

    fn enqueue(&mut self, slot: Slot) {
        let request = &mut self.requests[slot.index()];
        if !request.is_queued {
            request.is_queued = true;
            self.outgoing.push(slot);
        }
    }

    /// Nothing of a request is part of the output any more.
    fn drain(&mut self, slot: Slot) {
        self.advance(slot, RequestEvent::Drain);
        if self.requests[slot.index()].state == RequestState::Done {
            self.done.push(slot);
        }
    }

    fn drain_if_written(&mut self, slot: Slot) {
        if self.requests[slot.index()].unwritten == 0 {
            self.drain(slot);
        }
    }

    /// The peer broke the protocol. Requests are lost as soon as their memory is not part of the output.
    #[cold]
    fn fail<'b>(
        &mut self,
        error: PeerError,
        bytes: &'b [u8],
        now_ns: u64,
        told: &mut Option<InitiatorEvent<'b>>,
    ) -> Option<usize> {
        let ending = self.link.fail(error, quoted_header(bytes), now_ns);
        self.lose_all();
        *told = Some(InitiatorEvent::Ended(ending));
        Some(bytes.len())
    }

    fn end(&mut self, incident: Incident, ending: Ending) -> Option<InitiatorEvent<'static>> {
        let was_told = self.link.ending.is_some();
        if !self.link.close(incident, ending) {
            return None;
        }
        for request in &mut self.requests {
            request.unwritten = 0;
        }
        self.lose_all();
        (!was_told).then_some(InitiatorEvent::Ended(ending))
    }

    fn lose_all(&mut self) {
        self.outgoing.clear();
        for index in 0..self.requests.len() {
            let slot = Slot::new(index as u16);
            let request = &mut self.requests[index];
            request.is_queued = false;
            match request.state {
                RequestState::Queued | RequestState::Sent | RequestState::Draining => {
                    // What was answered stays answered, it only waited for its memory.
                    if request.state != RequestState::Draining {
                        request.outcome = Outcome::Lost;
                    }
                    self.advance(slot, RequestEvent::Lose);
                    self.drain_if_written(slot);
                }
                RequestState::Free | RequestState::Done => {}
            }
        }
    }

    /// # Panics
    ///
    /// If the state does not allow the event, which is a mistake of this file.
    fn advance(&mut self, slot: Slot, event: RequestEvent) {
        let request = &mut self.requests[slot.index()];
        match request.state.next(event) {
            Ok(state) => request.state = state,
            Err(error) => panic!("{slot:?}: {error}"),
        }
    }

    fn owed(&self) -> Owed {
        Owed {
            input: self.link.clock.has_left_over() || !self.link.inflow.is_idle(),
            output: !self.link.outbox.is_empty(),
            commands: self.in_flight > 0,
        }
    }
}

/// PDUs encoded for a request at a time.
const PDUS_PER_TURN: usize = 1;

/// Both bits of a command's PSDT field.
const PSDT_MASK: CommandFlags = CommandFlags::new(0b1100_0000);

const _: () = assert!(SHORT_LEN == size_of::<CapsuleResp>());
