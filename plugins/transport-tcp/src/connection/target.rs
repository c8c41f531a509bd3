//! The controller's end of a connection.
//!
//! Hands out commands, asks for their data by R2T, checks that the host's data
//! keeps to what was asked for, and encodes data and responses. What a command
//! means, and its memory, is the owner's; see [`crate::connection`] for the
//! order of calls.
//!
//! Every command has a [`Slot`] from its [`TargetEvent::Command`] until
//! [`TargetConnection::poll_released`] returns it. Between the two the owner
//! calls [`TargetConnection::receive`] or [`TargetConnection::execute`], and
//! [`TargetConnection::complete`] exactly once. When the connection ends, commands
//! that are not executing are released at once, and calls for them do nothing.
#![forbid(unsafe_code)]

use nvme_spec::command::Sqe;
use nvme_spec::completion::Cqe;
use tenon_sdk::crc32c;
use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

use crate::codec::{Frame, MAX_DATA_OFFSET, read_digest};
use crate::connection::command::{Command, CommandEvent, CommandState};
use crate::connection::deadline::Owed;
use crate::connection::handshake::{self, Agreement};
use crate::connection::inflow::Progress;
use crate::connection::link::{Begun, Link, Role};
use crate::connection::options::{MAX_COMMAND_BYTES, OptionError, TargetOptions};
use crate::connection::outbox::{Outbox, Piece};
use crate::connection::states::{Action, ConnectionState, Incident};
use crate::connection::{Ending, Handled, Placement, Slot, SlotQueue, quoted_header};
use crate::pdu::{
    ADMIN_IN_CAPSULE_BYTES, C2hData, CapsuleCmd, CapsuleResp, DIGEST_LEN, H2cData, IcReq, PduFlags, PduKind,
    PduType, R2t,
};
use crate::peer_error::PeerError;

/// The controller's end of a connection.
#[derive(Debug)]
pub struct TargetConnection {
    link: Link,
    options: TargetOptions,
    /// R2Ts outstanding per command, after the handshake.
    max_r2t: u32,
    /// Most in-capsule data now.
    capsule_limit: u32,
    /// Commands in flight at most; `commands.len()` until the owner knows less.
    depth: u16,
    commands: Box<[Command]>,
    free: Vec<Slot>,
    /// Commands with something to encode.
    outgoing: SlotQueue,
    released: SlotQueue,
    /// A capsule waits for a slot whose response is being written.
    is_stalled: bool,
    /// Commands whose data is on its way.
    receiving: u16,
}

/// What happened at the controller's end.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum TargetEvent<'b> {
    /// The handshake is done.
    Ready(Agreement),
    /// A command arrived. The owner takes the entry and says before the next `handle_bytes` what becomes of
    /// it, or keeps it waiting in this state.
    Command {
        /// Its slot.
        slot: Slot,
        /// The entry.
        sqe: &'b Sqe,
        /// In-capsule data, part of the bytes given to `handle_bytes`; empty if there is none.
        data: &'b [u8],
        /// The data digest of `data` is right, or not used. If not, the command is to be completed with
        /// Transient Transport Error.
        is_intact: bool,
    },
    /// These bytes belong to the memory of a command.
    Data {
        /// Whose.
        slot: Slot,
        /// Offset in its payload.
        offset: u32,
        /// Part of the bytes given to `handle_bytes`.
        bytes: &'b [u8],
    },
    /// All data of a command is there; it is to be executed.
    DataComplete {
        /// Whose.
        slot: Slot,
        /// Every data digest was right, or none is used. If not, the command is to be completed with
        /// Transient Transport Error.
        is_intact: bool,
    },
    /// The connection ended, or is being terminated. Once.
    Ended(Ending),
}

impl TargetConnection {
    /// A connection that was just accepted. Everything is allocated here.
    pub fn new(options: TargetOptions, now_ns: u64) -> Result<Self, OptionError> {
        options.check()?;
        let depth = options.queue_depth;
        let outbox = Outbox::new(usize::from(depth));
        Ok(Self {
            link: Link::new(Role::Target, outbox, options.timeouts, now_ns),
            max_r2t: 1,
            capsule_limit: options.in_capsule_bytes.max(ADMIN_IN_CAPSULE_BYTES),
            depth,
            commands: vec![Command::new(); depth.into()].into(),
            // The lowest slots are used first and stay in the cache.
            free: (0..depth).rev().map(Slot::new).collect(),
            outgoing: SlotQueue::new(depth),
            released: SlotQueue::new(depth),
            is_stalled: false,
            receiving: 0,
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

    /// Commands that have a slot.
    #[must_use]
    pub fn commands_in_flight(&self) -> usize {
        self.commands.len() - self.free.len()
    }

    /// State of a slot.
    #[must_use]
    pub fn command_state(&self, slot: Slot) -> CommandState {
        self.commands[slot.index()].state
    }

    /// Whether input waits for [`Self::poll_released`]; receiving more is of no use until then.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Contiguous bytes a receive buffer has to be able to hold: the largest capsule.
    #[must_use]
    pub fn max_contiguous_bytes(&self) -> usize {
        MAX_DATA_OFFSET + self.capsule_limit as usize + DIGEST_LEN
    }

    /// Whether data digests are used, which the handshake decides.
    #[must_use]
    pub fn has_data_digest(&self) -> bool {
        self.link.framing.data_digest
    }

    /// The queue has `entries` (its Connect said so), and in-capsule data is `in_capsule_bytes` at most (8192
    /// for an admin queue, IOCCSZ's for an I/O queue). Both can only be lowered.
    pub fn limit(&mut self, entries: u16, in_capsule_bytes: u32) {
        self.depth = self.depth.min(entries.max(1));
        self.capsule_limit = self.capsule_limit.min(in_capsule_bytes);
    }

    /// Looks at received bytes until something happened or they are used up.
    #[inline(always)]
    pub fn handle_bytes<'b>(&mut self, bytes: &'b [u8], now_ns: u64) -> Handled<TargetEvent<'b>> {
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

    /// Where the next bytes of the stream belong, if they are a command's data. They may be received straight
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

    /// Asks the host for the `length` bytes of data of a command.
    ///
    /// # Panics
    ///
    /// If the command is not new, or `length` is 0 or more than [`MAX_COMMAND_BYTES`].
    pub fn receive(&mut self, slot: Slot, length: u32) {
        assert!((1..=MAX_COMMAND_BYTES).contains(&length), "{length} bytes of data asked for");
        if self.is_over(slot) {
            return;
        }
        self.advance(slot, CommandEvent::Receive);
        self.commands[slot.index()].length = length;
        self.receiving += 1;
        self.enqueue(slot);
    }

    /// Runs a command without data, or with in-capsule data only.
    ///
    /// # Panics
    ///
    /// If the command is not new.
    pub fn execute(&mut self, slot: Slot) {
        if !self.is_over(slot) {
            self.advance(slot, CommandEvent::Execute);
        }
    }

    /// Ends a command with a completion and, to the host, `length` bytes of its payload. Its memory stays in
    /// use until [`Self::poll_released`]. If data of the host is still on its way, it is thrown away.
    ///
    /// # Panics
    ///
    /// If the command has no slot or is completed already, or `length` is more than [`MAX_COMMAND_BYTES`].
    #[inline(always)]
    pub fn complete(&mut self, slot: Slot, cqe: &Cqe, length: u32) {
        // In registers: on its way through memory the entry would wait for the stores before it.
        self.complete_with(slot, cqe.to_u128(), length);
    }

    fn complete_with(&mut self, slot: Slot, cqe: u128, length: u32) {
        assert!(length <= MAX_COMMAND_BYTES, "{length} bytes of data sent");
        if self.is_over(slot) {
            return;
        }
        self.advance(slot, CommandEvent::Complete);
        let command = &mut self.commands[slot.index()];
        command.cqe = Cqe { cid: U16::new(command.cid), ..Cqe::from_u128(cqe) };
        if self.link.state != ConnectionState::Ready {
            return self.abandon(slot);
        }
        let command = &mut self.commands[slot.index()];
        match command.state {
            CommandState::Discarding => {
                self.link.inflow.discard(slot);
                self.data_arrived(slot);
            }
            CommandState::Responding => {
                command.length = length;
                command.moved = 0;
                self.enqueue(slot);
            }
            CommandState::Free
            | CommandState::Received
            | CommandState::Receiving
            | CommandState::Executing => {}
        }
    }

    /// Encodes what is due, as far as there is room. `digest` gives the CRC32C of a piece of payload; it is
    /// called only if data digests are used.
    pub fn poll_output(&mut self, mut digest: impl FnMut(Placement) -> u32, now_ns: u64) {
        let was_empty = self.link.outbox.is_empty();
        while self.link.state == ConnectionState::Ready
            && self.link.outbox.has_room(PDUS_PER_TURN)
            && let Some(slot) = self.outgoing.pop()
        {
            self.commands[slot.index()].is_queued = false;
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

    /// What is to be written, in order; up to [`crate::connection::outbox::MAX_SEGMENTS`] pieces.
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
            // A connection that is being terminated lets go of commands it never responded to.
            match self.commands[slot.index()].state {
                CommandState::Responding => self.release(slot, CommandEvent::Sent),
                CommandState::Free
                | CommandState::Received
                | CommandState::Receiving
                | CommandState::Executing
                | CommandState::Discarding => {}
            }
        }
    }

    /// The next command that is over: its memory is no longer used and its slot is free. Either its response
    /// was written or the connection ended.
    pub fn poll_released(&mut self) -> Option<Slot> {
        let slot = self.released.pop()?;
        self.free.push(slot);
        self.is_stalled = false;
        Some(slot)
    }

    /// When [`Self::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.link.clock.next(self.link.state, self.owed()).map(|(at, _)| at)
    }

    /// Ends the connection if a deadline has passed.
    pub fn handle_timeout(&mut self, now_ns: u64) -> Option<TargetEvent<'static>> {
        let timeout = self.link.missed(self.owed(), now_ns)?;
        self.end(Incident::Timeout, Ending::TimedOut(timeout))
    }

    /// The peer closed the stream.
    pub fn handle_eof(&mut self) -> Option<TargetEvent<'static>> {
        self.end(Incident::Eof, Ending::PeerClosed)
    }

    /// The owner ends the connection: nothing more is sent. Pieces that are being written asynchronously have to
    /// be done with before.
    pub fn close(&mut self) -> Option<TargetEvent<'static>> {
        self.end(Incident::Close, Ending::Local)
    }

    /// Takes one step; gives the bytes it used, or none if there are too few. What happened goes to `told`, by a call
    /// of its own, so that it stays where it is written.
    #[inline(never)]
    fn step<'b>(
        &mut self,
        bytes: &'b [u8],
        now_ns: u64,
        told: &mut Option<TargetEvent<'b>>,
    ) -> Option<usize> {
        if !self.link.inflow.is_idle() {
            return self.step_data(bytes, told);
        }
        match self.link.begin(bytes, self.capsule_limit) {
            Begun::Wait => None,
            Begun::Discard => Some(bytes.len()),
            Begun::Wrong(error) => self.fail(error, bytes, now_ns, told),
            Begun::Heard(ending) => {
                *told = self.end(Incident::Pdu(PduKind::H2cTermReq), ending);
                Some(bytes.len())
            }
            Begun::Pdu { frame, action, to } => match self.act(bytes, &frame, action, now_ns, told) {
                Ok(step) => {
                    self.link.state = to;
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
        now_ns: u64,
        told: &mut Option<TargetEvent<'b>>,
    ) -> Result<Option<usize>, PeerError> {
        match action {
            Action::Negotiate => self.negotiate(bytes, frame, now_ns, told),
            Action::BeginCommand => self.begin_command(bytes, frame, told),
            Action::TakeData => self.begin_data(bytes, frame),
            Action::TakeR2t
            | Action::TakeResponse
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
        now_ns: u64,
        told: &mut Option<TargetEvent<'b>>,
    ) -> Result<Option<usize>, PeerError> {
        let Ok((request, _)) = IcReq::ref_from_prefix(bytes) else { return Ok(None) };
        let (response, agreement) = handshake::answer(request, &self.options)?;
        self.link.outbox.push_header(&response, &self.link.framing);
        self.link.clock.sent(now_ns);
        self.link.framing = agreement.framing;
        self.max_r2t = agreement.max_r2t;
        self.link.consumed_header();
        *told = Some(TargetEvent::Ready(agreement));
        Ok(Some(frame.total_len()))
    }

    fn begin_command<'b>(
        &mut self,
        bytes: &'b [u8],
        frame: &Frame,
        told: &mut Option<TargetEvent<'b>>,
    ) -> Result<Option<usize>, PeerError> {
        let Ok((capsule, _)) = CapsuleCmd::ref_from_prefix(bytes) else { return Ok(None) };
        let total_len = frame.total_len();
        if bytes.len() < total_len {
            self.link.wait_for(total_len);
            return Ok(None);
        }
        let Some(slot) = self.take_slot()? else { return Ok(None) };
        self.commands[slot.index()].begin(capsule.ccsqe.cid.get());
        self.advance(slot, CommandEvent::Capsule);
        let data_end = frame.data_offset + frame.data_len as usize;
        let data = &bytes[frame.data_offset..data_end];
        let is_intact = !frame.has_data_digest || read_digest(&bytes[data_end..]) == Some(crc32c(0, data));
        self.link.consumed_header();
        *told = Some(TargetEvent::Command { slot, sqe: &capsule.ccsqe, data, is_intact });
        Ok(Some(total_len))
    }

    /// A free slot, or none yet: the host may have seen a response before this end learnt that it was written.
    fn take_slot(&mut self) -> Result<Option<Slot>, PeerError> {
        if self.commands_in_flight() < usize::from(self.depth)
            && let Some(slot) = self.free.pop()
        {
            return Ok(Some(slot));
        }
        let is_any_ending = self.commands.iter().any(|command| command.is_ended) || !self.released.is_empty();
        if !is_any_ending {
            return Err(PeerError::QueueOverrun { limit: self.depth.into() });
        }
        self.is_stalled = true;
        Ok(None)
    }

    fn begin_data(&mut self, bytes: &[u8], frame: &Frame) -> Result<Option<usize>, PeerError> {
        let Ok((header, _)) = H2cData::ref_from_prefix(bytes) else { return Ok(None) };
        let slot = self.check_data(header)?;
        let placement = Placement { slot, offset: header.datao.get(), len: frame.data_len };
        let is_discarded = self.commands[slot.index()].state == CommandState::Discarding;
        self.link.inflow.start(frame, placement, is_discarded);
        self.link.consumed_header();
        Ok(Some(frame.head_len))
    }

    /// Whether the host's data is what the oldest outstanding R2T of the command asked for.
    fn check_data(&self, header: &H2cData) -> Result<Slot, PeerError> {
        let (ttag, cccid) = (header.ttag.get(), header.cccid.get());
        let unknown = PeerError::UnknownTransferTag { ttag };
        let slot = Slot::new(ttag & self.slot_mask());
        let command = self.commands.get(slot.index()).ok_or(unknown)?;
        if command.requested == 0 || self.tag_of(slot, command) != ttag {
            return Err(unknown);
        }
        if command.cid != cccid {
            return Err(PeerError::CommandMismatch { cccid, expected: command.cid });
        }
        let unexpected = PeerError::UnexpectedData { pdu: PduKind::H2cData, cid: cccid };
        match command.state {
            CommandState::Receiving | CommandState::Discarding => {}
            CommandState::Executing | CommandState::Responding => return Err(unexpected),
            CommandState::Free | CommandState::Received => return Err(unknown),
        }
        let (offset, length) = (header.datao.get(), header.datal.get());
        if !offset.is_multiple_of(4) {
            return Err(PeerError::OffsetUnaligned { pdu: PduKind::H2cData, offset });
        }
        let data_end = u64::from(offset) + u64::from(length);
        if length == 0 || !length.is_multiple_of(4) && data_end != u64::from(command.length) {
            return Err(PeerError::Length { pdu: PduKind::H2cData, length });
        }
        if length > self.options.max_h2c_data_bytes {
            return Err(PeerError::DataLimit { length, limit: self.options.max_h2c_data_bytes });
        }
        let (start, end) = command.current_r2t(self.options.r2t_bytes).ok_or(unexpected)?;
        if offset < start || data_end > u64::from(end) {
            return Err(PeerError::OutOfRange { pdu: PduKind::H2cData, offset, length, end });
        }
        if offset != command.moved {
            return Err(PeerError::NotContiguous { pdu: PduKind::H2cData, offset, expected: command.moved });
        }
        if header.ch.flags.contains(PduFlags::LAST_PDU) != (data_end == u64::from(end)) {
            return Err(PeerError::LastFlag { end: offset + length, r2t_end: end });
        }
        Ok(slot)
    }

    fn step_data<'b>(&mut self, bytes: &'b [u8], told: &mut Option<TargetEvent<'b>>) -> Option<usize> {
        match self.link.inflow.step(bytes) {
            Progress::Wait => None,
            Progress::Skipped(count) => Some(count),
            Progress::Data { slot, offset, bytes } => {
                *told = Some(TargetEvent::Data { slot, offset, bytes });
                Some(bytes.len())
            }
            Progress::Finished { taken, slot, len, is_intact } => {
                let command = &mut self.commands[slot.index()];
                command.moved += len;
                command.is_intact &= is_intact;
                *told = self.data_arrived(slot);
                Some(taken)
            }
        }
    }

    /// Data of `slot` arrived, or will not be waited for: asks for more, or ends the transfer.
    fn data_arrived(&mut self, slot: Slot) -> Option<TargetEvent<'static>> {
        let command = self.commands[slot.index()];
        let is_done = match command.state {
            CommandState::Receiving => command.moved == command.length,
            CommandState::Discarding => command.moved == command.requested,
            CommandState::Free
            | CommandState::Received
            | CommandState::Executing
            | CommandState::Responding => return None,
        };
        if !is_done {
            let may_ask = command.state == CommandState::Receiving
                && command.requested < command.length
                && command.outstanding_r2ts(self.options.r2t_bytes) < self.max_r2t;
            if may_ask {
                self.enqueue(slot);
            }
            return None;
        }
        self.receiving -= 1;
        self.advance(slot, CommandEvent::DataDone);
        if command.state == CommandState::Receiving {
            return Some(TargetEvent::DataComplete { slot, is_intact: command.is_intact });
        }
        let command = &mut self.commands[slot.index()];
        (command.length, command.moved) = (0, 0);
        self.enqueue(slot);
        None
    }

    fn encode(&mut self, slot: Slot, digest: &mut impl FnMut(Placement) -> u32) {
        match self.commands[slot.index()].state {
            CommandState::Receiving => self.encode_r2t(slot),
            CommandState::Responding => self.encode_response(slot, digest),
            // Completed since it was queued: what it waits for comes by itself.
            CommandState::Free
            | CommandState::Received
            | CommandState::Executing
            | CommandState::Discarding => {}
        }
    }

    //= NVMe/TCP 1.0 §3.3.2.2
    //# A controller
    //# may send an R2T PDU without waiting for a previous R2T data transfer to complete, but shall not exceed
    //# the maximum number of outstanding R2T PDUs per command supported by the host (MAXR2T).
    fn encode_r2t(&mut self, slot: Slot) {
        let r2t_bytes = self.options.r2t_bytes;
        let framing = self.link.framing;
        let command = self.commands[slot.index()];
        let length = r2t_bytes.min(command.length - command.requested);
        let ch = framing.header(PduType::R2T, PduFlags::NONE, 0);
        let r2t = R2t::new(ch, command.cid, self.tag_of(slot, &command), command.requested, length);
        self.link.outbox.push_header(&r2t, &framing);
        let command = &mut self.commands[slot.index()];
        command.requested += length;
        if command.requested < command.length && command.outstanding_r2ts(r2t_bytes) < self.max_r2t {
            self.enqueue(slot);
        }
    }

    /// One C2HData PDU, and with the last one the response. Larger payloads go to the end of the queue, so that
    /// other commands get their turn.
    fn encode_response(&mut self, slot: Slot, digest: &mut impl FnMut(Placement) -> u32) {
        let framing = self.link.framing;
        let command = &mut self.commands[slot.index()];
        let len = self.options.max_c2h_data_bytes.min(command.length - command.moved);
        let is_last = command.moved + len == command.length;
        //= NVMe/TCP 1.0 §3.3.2.1
        //# The SUCCESS flag shall be cleared to ‘0’ in all C2HData PDUs that are not the last C2HData PDU
        //# for a command.
        let is_success = len > 0 && is_last && self.options.sends_success_flag && command.is_plain_success();
        if len > 0 {
            let flags =
                PduFlags::NONE.with_if(is_last, PduFlags::LAST_PDU).with_if(is_success, PduFlags::SUCCESS);
            let ch = framing.header(PduType::C2H_DATA, flags, len);
            let payload = Placement { slot, offset: command.moved, len };
            self.link.outbox.push_header(&C2hData::new(ch, command.cid, command.moved, len), &framing);
            self.link.outbox.push_payload(payload);
            if framing.data_digest {
                self.link.outbox.push_digest(digest(payload));
            }
            command.moved += len;
        }
        if !is_last {
            return self.enqueue(slot);
        }
        if !is_success {
            let ch = framing.header(PduType::CAPSULE_RESP, PduFlags::NONE, 0);
            self.link.outbox.push_header(&CapsuleResp { ch, rccqe: command.cqe }, &framing);
        }
        command.is_ended = true;
        self.link.outbox.end(slot);
    }

    fn enqueue(&mut self, slot: Slot) {
        let command = &mut self.commands[slot.index()];
        if !command.is_queued {
            command.is_queued = true;
            self.outgoing.push(slot);
        }
    }

    /// The peer broke the protocol.
    #[cold]
    fn fail<'b>(
        &mut self,
        error: PeerError,
        bytes: &'b [u8],
        now_ns: u64,
        told: &mut Option<TargetEvent<'b>>,
    ) -> Option<usize> {
        // What is encoded is sent before the termination; memory it refers to stays in use until then.
        let nothing_encoded = self.link.outbox.is_empty();
        for index in 0..self.commands.len() {
            let slot = Slot::new(index as u16);
            let command = &mut self.commands[index];
            if command.is_ended {
                continue;
            }
            if command.state == CommandState::Responding && command.moved > 0 && !nothing_encoded {
                command.is_ended = true;
                self.link.outbox.end(slot);
            } else {
                self.abandon(slot);
            }
        }
        self.outgoing.clear();
        self.receiving = 0;
        let ending = self.link.fail(error, quoted_header(bytes), now_ns);
        *told = Some(TargetEvent::Ended(ending));
        Some(bytes.len())
    }

    fn end(&mut self, incident: Incident, ending: Ending) -> Option<TargetEvent<'static>> {
        let was_told = self.link.ending.is_some();
        if !self.link.close(incident, ending) {
            return None;
        }
        self.outgoing.clear();
        self.receiving = 0;
        for index in 0..self.commands.len() {
            self.abandon(Slot::new(index as u16));
        }
        (!was_told).then_some(TargetEvent::Ended(ending))
    }

    /// Whether the command went with its connection; its slot is not used again.
    fn is_over(&self, slot: Slot) -> bool {
        self.link.state != ConnectionState::Ready && self.commands[slot.index()].state == CommandState::Free
    }

    /// Lets go of a command of an ended connection, unless the owner works on it.
    fn abandon(&mut self, slot: Slot) {
        match self.commands[slot.index()].state {
            CommandState::Free | CommandState::Executing => {}
            CommandState::Received
            | CommandState::Receiving
            | CommandState::Discarding
            | CommandState::Responding => self.release(slot, CommandEvent::Abandon),
        }
    }

    fn release(&mut self, slot: Slot, event: CommandEvent) {
        self.advance(slot, event);
        let command = &mut self.commands[slot.index()];
        command.is_queued = false;
        command.is_ended = false;
        self.released.push(slot);
    }

    /// # Panics
    ///
    /// If the state does not allow the event, which is the owner's mistake.
    fn advance(&mut self, slot: Slot, event: CommandEvent) {
        let command = &mut self.commands[slot.index()];
        match command.state.next(event) {
            Ok(state) => command.state = state,
            Err(error) => panic!("{slot:?}: {error}"),
        }
    }

    fn owed(&self) -> Owed {
        let has_partial = self.link.clock.has_left_over() && !self.is_stalled;
        Owed {
            input: has_partial || !self.link.inflow.is_idle() || self.receiving > 0,
            output: !self.link.outbox.is_empty(),
            commands: self.commands_in_flight() > 0,
        }
    }

    /// Bits of a transfer tag that are the slot.
    fn slot_mask(&self) -> u16 {
        (self.commands.len().next_power_of_two() - 1) as u16
    }

    /// Slot in the low bits, generation of its use in the others.
    fn tag_of(&self, slot: Slot, command: &Command) -> u16 {
        let mask = self.slot_mask();
        command.generation.wrapping_mul(mask.wrapping_add(1)) | slot.get()
    }
}

/// Most PDUs encoded for a command at a time: data and response.
const PDUS_PER_TURN: usize = 2;
