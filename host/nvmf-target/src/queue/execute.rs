//! Running a command: on the device's channel of this reactor, or by the control reactor.
//!
//! A command with its data enters by [`QueuePair::execute`] and leaves by
//! `complete`. Between lie a paused subsystem, the other half of a fused
//! operation, a buffer that has to be waited for, and the device, more than
//! once where one command is several device operations.
//!
//! # Safety
//! Every private unsafe function here takes a command that is in the list of
//! the queue it is called on and that nobody else has; its request is alive.
// UNSAFETY: fills device I/Os and follows commands through raw pointers, as the contract has it.

use std::cell::Cell;
use std::ffi::c_void;

use nvme_spec::command::Sqe;
use nvme_spec::completion::StatusField;
use nvme_spec::io::{CopyRange as WireCopyRange, DsmRange};
use nvme_spec::opcode::IoOpcode;
use nvme_spec::status::{StatusCode, StatusCodeType};
use tenon_abi::transport::Direction;
use tenon_abi::{BdevIo, CopyRange, IoFlags, IoStatus, Op, submit};
use zerocopy::FromBytes;

use super::begin::check_range;
use super::command::{Command, Stage, Work};
use super::interface::Capsule;
use super::view::{MAX_COPY_RANGES, MAX_RANGES};
use super::{Phase, QueuePair};
use crate::reservation::state::Use;
use crate::status::{of_device, refused};
use crate::target::Target;

impl QueuePair {
    /// Runs a command whose data is complete.
    ///
    /// # Safety
    /// `command` is in this queue's list, and the transport has just given it up.
    pub(crate) unsafe fn execute(&self, command: *mut Command) {
        // SAFETY: the command and its request are alive until it is completed and released.
        unsafe {
            if let Some(code) = (*command).aborted {
                self.part(command, StatusCode::ABORTED_FAILED_FUSED);
                return self.complete(command, StatusField::new(code), 0);
            }
            if matches!(self.phase.get(), Phase::Closing | Phase::Closed) {
                self.part(command, StatusCode::ABORTED_SQ_DELETION);
                return self.complete(command, StatusField::new(StatusCode::ABORTED_SQ_DELETION), 0);
            }
            if (*command).work == Work::Control {
                return self.ask_control(command);
            }
            if (*command).is_fused_first || (*command).is_fused_second {
                return self.execute_fused(command);
            }
            self.start(command);
        }
    }

    /// Ends a command that the transport cannot bring the data of.
    ///
    /// # Safety
    /// As [`QueuePair::execute`].
    pub(crate) unsafe fn fail(&self, command: *mut Command, status: StatusField) {
        let status = if status.is_success() { StatusCode::INTERNAL_ERROR.into() } else { status };
        // SAFETY: the command and its request are alive until it is completed and released.
        unsafe {
            if (*command).stage != Stage::Transport {
                let stage = (*command).stage;
                return log::error!("transport failed a request that it did not have stage={stage:?}");
            }
            self.part(command, StatusCode::ABORTED_FAILED_FUSED);
            self.complete(command, status, 0);
        }
    }

    /// Sends a command to the control reactor.
    unsafe fn ask_control(&self, command: *mut Command) {
        let ticket = self.next_ticket();
        // SAFETY: the command and its request are alive; received data has `length` bytes in one piece.
        let (sqe, data, response_len) = unsafe {
            (*command).stage = Stage::Control;
            (*command).ticket = ticket;
            let request = &*(*command).request;
            let bytes = request.sqe;
            let length = request.length as usize;
            let data = match request.direction {
                Direction::TO_CONTROLLER => {
                    std::slice::from_raw_parts((*request.iovs).base.cast::<u8>(), length).to_vec()
                }
                _ => Vec::new(),
            };
            let response_len = if request.direction == Direction::TO_HOST { request.length } else { 0 };
            (bytes, data, response_len)
        };
        let Ok(sqe) = Sqe::read_from_bytes(&sqe) else { return };
        let capsule = Capsule { facts: self.facts.clone(), ticket, sqe, data, response_len };
        self.side.tell_control(move || {
            if let Some(target) = Target::current() {
                target.capsule_came(capsule);
            }
        });
    }

    /// One half of a fused operation is here; the second to come runs both.
    unsafe fn execute_fused(&self, command: *mut Command) {
        // SAFETY: partners are alive, both in this queue's list.
        unsafe {
            let partner = (*command).partner;
            if partner.is_null() {
                if self.fused.get() == command {
                    (*command).stage = Stage::Partner;
                } else {
                    let is_second = (*command).is_fused_second;
                    let code = if is_second {
                        StatusCode::ABORTED_FAILED_FUSED
                    } else {
                        StatusCode::ABORTED_MISSING_FUSED
                    };
                    self.complete(command, refused(code), 0);
                }
                return;
            }
            if (*partner).stage != Stage::Partner {
                (*command).stage = Stage::Partner;
                return;
            }
            let (first, second) =
                if (*command).is_fused_first { (command, partner) } else { (partner, command) };
            (*second).stage = Stage::Partner;
            self.start(first);
        }
    }

    /// Gives an I/O command to its device, unless the subsystem is paused or the namespace gone.
    ///
    /// # Safety
    /// `command` is in this queue's list and nobody else has it.
    pub(crate) unsafe fn start(&self, command: *mut Command) {
        let Some(open) = self.opened.get() else { return };
        // SAFETY: as the caller promises.
        unsafe {
            if open.subsystem.is_paused.get() {
                (*command).stage = Stage::Held;
                self.held.borrow_mut().push_back(command);
                return;
            }
            let Some(namespace) =
                (*command).namespace.as_ref().filter(|namespace| !namespace.is_removed.get())
            else {
                return self.finish(command, refused(StatusCode::INVALID_NAMESPACE_OR_FORMAT));
            };
            if namespace.is_reserved.get() && !namespace.allows(&open.association.hostid.0, use_of(command)) {
                return self.finish(command, refused(StatusCode::RESERVATION_CONFLICT));
            }
            if open.is_limited.get() && !self.may_pass(command) {
                return;
            }
            match (*command).work {
                Work::Hint => self.finish(command, self.check_hints(command)),
                Work::Flush => self.start_flush(command),
                Work::Deallocate => self.start_deallocate(command),
                Work::Copy => self.start_copy(command),
                Work::Read
                | Work::Write
                | Work::Compare
                | Work::WriteZeroes
                | Work::Verify
                | Work::WriteUncorrectable => self.start_range(command),
                Work::Control => self.complete(command, refused(StatusCode::INTERNAL_ERROR), 0),
            }
        }
    }

    /// One contiguous range of blocks.
    unsafe fn start_range(&self, command: *mut Command) {
        // SAFETY: the command, its request and its namespace are alive; the I/O behind it is idle.
        unsafe {
            let Some(namespace) = (*command).namespace.as_ref() else { return };
            let (channel, may_borrow) = (namespace.channel(), self.may_borrow(namespace));
            let io = Command::io(command);
            let request = (*command).request;
            let mut flags = 0;
            (*io).ext = std::ptr::null();
            (*io).op = match (*command).work {
                Work::Read => Op::READ,
                Work::Write => Op::WRITE,
                Work::WriteZeroes => Op::WRITE_ZEROES,
                Work::Verify => Op::VERIFY,
                Work::WriteUncorrectable => Op::WRITE_UNCORRECTABLE,
                _ => Op::COMPARE,
            };
            let mut carrier = request;
            if !(*command).partner.is_null() && (*command).is_fused_first {
                // The device compares with the first command's data and writes the second's.
                let second = (*command).partner;
                carrier = (*second).request;
                (*io).op = Op::COMPARE_AND_WRITE;
                (*command).ext.compare_iovs = (*request).iovs;
                (*command).ext.compare_iovcnt = (*request).iovcnt;
                (*io).ext = &raw const (*command).ext;
                (*command).forces_unit_access = (*second).forces_unit_access;
                (*command).flushes_after = (*second).flushes_after;
            }
            if (*command).work == Work::Read && (*command).buffer.is_null() {
                if may_borrow && (*command).cursor == 0 {
                    flags |= IoFlags::LEND.0;
                } else if !self.take_buffer(command, (*request).length) {
                    (*command).stage = Stage::BufferToExecute;
                    return self.side.wait_for_buffer(command);
                }
            }
            if (*command).forces_unit_access {
                flags |= IoFlags::FUA.0;
            }
            if (*command).deallocates && (*command).work == Work::WriteZeroes {
                flags |= IoFlags::DEALLOCATE.0;
            }
            (*io).flags = IoFlags(flags);
            (*io).iovs = (*carrier).iovs;
            (*io).iovcnt = (*carrier).iovcnt;
            (*io).offset_blocks = (*command).slba;
            (*io).num_blocks = u64::from((*command).blocks);
            self.submit(command, channel, io);
        }
    }

    unsafe fn start_flush(&self, command: *mut Command) {
        // SAFETY: as in `start_range`.
        unsafe {
            let Some(namespace) = (*command).namespace.as_ref() else { return };
            if !namespace.supports(Op::FLUSH) {
                return self.finish(command, StatusField::SUCCESS);
            }
            let channel = namespace.channel();
            let io = Command::io(command);
            (*io).op = Op::FLUSH;
            (*io).flags = IoFlags::NONE;
            (*io).ext = std::ptr::null();
            (*io).iovs = std::ptr::null_mut();
            (*io).iovcnt = 0;
            (*io).offset_blocks = 0;
            (*io).num_blocks = 0;
            self.submit(command, channel, io);
        }
    }

    /// Dataset Management: one device operation per range, one after the other.
    unsafe fn start_deallocate(&self, command: *mut Command) {
        // SAFETY: as in `start_range`.
        unsafe {
            if (*command).cursor == 0 {
                let status = self.check_hints(command);
                if !status.is_success() {
                    return self.finish(command, status);
                }
            }
            let Some(namespace) = (*command).namespace.as_ref() else { return };
            let channel = namespace.channel();
            while (*command).cursor < (*command).blocks {
                let range = range_of(command, (*command).cursor as usize);
                (*command).cursor += 1;
                if range.nlb.get() == 0 {
                    continue;
                }
                let io = Command::io(command);
                (*io).op = Op::UNMAP;
                (*io).flags = IoFlags::NONE;
                (*io).ext = std::ptr::null();
                (*io).iovs = std::ptr::null_mut();
                (*io).iovcnt = 0;
                (*io).offset_blocks = range.slba.get();
                (*io).num_blocks = u64::from(range.nlb.get());
                return self.submit(command, channel, io);
            }
            self.finish(command, StatusField::SUCCESS);
        }
    }

    /// Whether the ranges of Dataset Management lie within the namespace.
    unsafe fn check_hints(&self, command: *mut Command) -> StatusField {
        // SAFETY: as in `start_range`; the data has `blocks` ranges.
        unsafe {
            let Some(namespace) = (*command).namespace.as_ref() else {
                return refused(StatusCode::INVALID_NAMESPACE_OR_FORMAT);
            };
            for at in 0..((*command).blocks as usize).min(MAX_RANGES) {
                let range = range_of(command, at);
                if let Err(code) = check_range(namespace, range.slba.get(), u64::from(range.nlb.get())) {
                    return refused(code);
                }
            }
            StatusField::SUCCESS
        }
    }

    unsafe fn start_copy(&self, command: *mut Command) {
        // SAFETY: as in `start_range`; the buffer has room for the parsed ranges behind the wire's.
        unsafe {
            let total = match parse_copy(command) {
                Ok(total) => total,
                Err(code) => return self.finish(command, refused(code)),
            };
            let Some(namespace) = (*command).namespace.as_ref() else { return };
            let channel = namespace.channel();
            let io = Command::io(command);
            (*command).ext.copy_ranges = copy_room(command);
            (*command).ext.copy_range_count = (*command).blocks;
            (*io).op = Op::COPY;
            (*io).flags = if (*command).forces_unit_access { IoFlags::FUA } else { IoFlags::NONE };
            (*io).ext = &raw const (*command).ext;
            (*io).iovs = std::ptr::null_mut();
            (*io).iovcnt = 0;
            (*io).offset_blocks = (*command).slba;
            (*io).num_blocks = total;
            self.submit(command, channel, io);
        }
    }

    unsafe fn submit(&self, command: *mut Command, channel: *mut tenon_abi::IoChannel, io: *mut BdevIo) {
        let Some(open) = self.opened.get() else { return };
        open.subsystem.enter();
        // SAFETY: the I/O is filled and idle, with the driver context its channel asks for behind it.
        unsafe {
            (*command).stage = Stage::Device;
            (*io).done = Some(device_done);
            (*io).done_arg = command.cast();
            submit(channel, io);
        }
    }

    /// The device is through with a command's I/O.
    unsafe fn device_returned(&self, command: *mut Command, status: IoStatus) {
        let Some(open) = self.opened.get() else { return };
        // SAFETY: the command is alive and ours again.
        unsafe {
            let io = Command::io(command);
            let is_lent_refused = status == IoStatus::NOT_SUPPORTED
                && (*command).work == Work::Read
                && (*io).flags.contains(IoFlags::LEND);
            if is_lent_refused && self.phase.get() == Phase::Live {
                // It would have to be split, or is not in one piece: into memory of ours, then.
                (*command).cursor = 1;
                open.subsystem.leave();
                return self.start_range(command);
            }
            let goes_on = status.is_success() && self.phase.get() == Phase::Live;
            if goes_on && (*command).work == Work::Deallocate {
                open.subsystem.leave();
                return self.start_deallocate(command);
            }
            if goes_on && std::mem::replace(&mut (*command).flushes_after, false) {
                open.subsystem.leave();
                return self.start_flush(command);
            }
            if status.is_success() && (*io).op == Op::READ {
                let request = (*command).request;
                (*request).iovs = (*io).iovs;
                (*request).iovcnt = (*io).iovcnt;
            }
            let code = match (*command).aborted {
                Some(code) if status == IoStatus::ABORTED => StatusField::new(code),
                _ => of_device(status),
            };
            self.finish(command, code);
            open.subsystem.leave();
        }
    }

    /// Counts and completes an I/O command, and the other half of a fused operation with it.
    unsafe fn finish(&self, command: *mut Command, status: StatusField) {
        // SAFETY: the command is ours; its partner, if any, waits for it.
        unsafe {
            self.count(command, status);
            let second = std::mem::replace(&mut (*command).partner, std::ptr::null_mut());
            if !second.is_null() {
                (*second).partner = std::ptr::null_mut();
            }
            self.complete(command, status, 0);
            if !second.is_null() && (*second).stage == Stage::Partner {
                let status = if status.is_success() {
                    self.count(second, StatusField::SUCCESS);
                    StatusField::SUCCESS
                } else {
                    refused(StatusCode::ABORTED_FAILED_FUSED)
                };
                self.complete(second, status, 0);
            }
        }
    }

    unsafe fn count(&self, command: *mut Command, status: StatusField) {
        // SAFETY: the command, its request and its namespace are alive.
        unsafe {
            let Some(namespace) = (*command).namespace.as_ref() else { return };
            let mut counts = namespace.counts.borrow_mut();
            let bytes = u64::from((*(*command).request).length);
            match ((*command).work, status.is_success()) {
                (_, false) => {
                    counts.failed_commands += 1;
                    let is_media = status.code().sct() == StatusCodeType::MEDIA_AND_DATA_INTEGRITY;
                    counts.media_errors += u64::from(is_media);
                }
                (Work::Read, true) => {
                    counts.read_commands += 1;
                    counts.read_bytes += bytes;
                }
                (Work::Write, true) => {
                    counts.write_commands += 1;
                    counts.write_bytes += bytes;
                }
                (_, true) => counts.other_commands += 1,
            }
        }
    }

    /// The subsystem goes on: what was held runs now.
    pub(crate) fn resume(&self) {
        let count = self.held.borrow().len();
        for _ in 0..count {
            let Some(command) = self.held.borrow_mut().pop_front() else { return };
            // SAFETY: held commands are in our list and nobody else's.
            unsafe {
                match self.phase.get() {
                    Phase::Live => self.start(command),
                    _ => self.complete(command, StatusField::new(StatusCode::ABORTED_SQ_DELETION), 0),
                }
            }
        }
    }

    /// A buffer may be had again: tries to go on; false if there is still none.
    ///
    /// # Safety
    /// `command` is in this queue's list and waits for a buffer.
    pub(crate) unsafe fn retry_buffer(&self, command: *mut Command) -> bool {
        // SAFETY: as the caller promises.
        unsafe {
            let request = (*command).request;
            match (*command).stage {
                Stage::BufferToReceive => {
                    if !self.take_buffer(command, (*command).buffer_len) {
                        return false;
                    }
                    self.direct(command);
                    (self.transport.ops().request_buffers)(request);
                }
                _ => {
                    if !self.take_buffer(command, (*request).length) {
                        return false;
                    }
                    self.start(command);
                }
            }
        }
        true
    }

    /// Ends the command `cid` early if that is possible; true if it was found and will end as aborted.
    pub(crate) fn abort(&self, cid: u16) -> bool {
        let found = self.find(|command| {
            // SAFETY: the request of a listed command is alive.
            let sqe = unsafe { &(*command.request).sqe };
            u16::from_le_bytes([sqe[2], sqe[3]]) == cid && command.stage != Stage::Answered
        });
        let Some(command) = found else { return false };
        // SAFETY: found in our list just now.
        unsafe { self.abort_command(command, StatusCode::ABORTED_BY_REQUEST) }
    }

    /// Ends early what hosts have under way at a namespace; tells how many commands the device still has.
    pub(crate) fn abort_namespace(&self, nsid: u32) -> usize {
        let code = StatusCode::ABORTED_PREEMPT_AND_ABORT;
        let is_of = |command: &Command| {
            command.stage != Stage::Answered
                && command.namespace.as_ref().is_some_and(|namespace| namespace.nsid == nsid)
        };
        // Ending one may take others along, so that the list is looked through again for each.
        while let Some(command) = self.find(|command| is_of(command) && command.aborted != Some(code)) {
            // SAFETY: found in our list just now.
            unsafe {
                (*command).aborted = Some(code);
                self.abort_command(command, code);
            }
        }
        let left = Cell::new(0);
        self.find(|command| {
            left.set(left.get() + usize::from(command.stage == Stage::Device && is_of(command)));
            false
        });
        left.get()
    }

    /// Ends `command` early if that is possible; true if it will end as aborted.
    ///
    /// # Safety
    /// `command` is in this queue's list.
    unsafe fn abort_command(&self, command: *mut Command, code: StatusCode) -> bool {
        let aborted = StatusField::new(code);
        // SAFETY: the command is in our list; who has it now is told by its stage.
        unsafe {
            match (*command).stage {
                Stage::Transport => (*command).aborted = Some(code),
                Stage::Held => {
                    self.held.borrow_mut().retain(|held| *held != command);
                    self.throttled.borrow_mut().retain(|held| *held != command);
                    self.finish(command, aborted);
                }
                Stage::BufferToReceive | Stage::BufferToExecute => {
                    self.side.forget_waiting(&[command]);
                    self.part(command, StatusCode::ABORTED_FAILED_FUSED);
                    self.finish(command, aborted);
                }
                Stage::Partner if self.fused.get() == command => {
                    self.fused.set(std::ptr::null_mut());
                    self.complete(command, aborted, 0);
                }
                Stage::Partner | Stage::Control | Stage::Answered => return false,
                Stage::Device => {
                    let Some(namespace) = (*command).namespace.clone() else { return false };
                    let channel = namespace.channel();
                    let abort = (*(*channel).ops).abort;
                    return abort.is_some_and(|abort| abort(channel, Command::io(command)) == 0);
                }
            }
        }
        true
    }
}

/// What a command does, as far as reservations care.
unsafe fn use_of(command: *mut Command) -> Use {
    // SAFETY: the command is alive.
    unsafe {
        match (*command).work {
            // The first half of a fused operation stands for both.
            Work::Compare if (*command).is_fused_first => Use::Write,
            Work::Read | Work::Compare | Work::Verify => Use::Read,
            Work::Write
            | Work::Flush
            | Work::WriteZeroes
            | Work::Deallocate
            | Work::Hint
            | Work::Copy
            | Work::WriteUncorrectable
            | Work::Control => Use::Write,
        }
    }
}

unsafe extern "C" fn device_done(_: *mut BdevIo, arg: *mut c_void) {
    let command: *mut Command = arg.cast();
    // SAFETY: the command is alive until it is completed; its queue outlives its commands.
    unsafe {
        let queue = &*(*command).queue;
        queue.device_returned(command, (*Command::io(command)).status);
    }
}

/// Range `at` of a Dataset Management command's data.
unsafe fn range_of(command: *mut Command, at: usize) -> DsmRange {
    // SAFETY: the data is one piece of `blocks` ranges; the wire type needs no alignment.
    unsafe { (*(*(*command).request).iovs).base.cast::<DsmRange>().add(at).read() }
}

/// Where a Copy's parsed ranges lie: behind the room for the wire's.
unsafe fn copy_room(command: *mut Command) -> *mut CopyRange {
    // SAFETY: the buffer was taken with room for both.
    unsafe { (*command).buffer.cast::<u8>().add(MAX_COPY_RANGES * size_of::<WireCopyRange>()).cast() }
}

/// Parses and checks the source ranges of a Copy; tells how many blocks it copies.
unsafe fn parse_copy(command: *mut Command) -> Result<u64, StatusCode> {
    // SAFETY: the data is one piece of `blocks` ranges, and `copy_room` has room for as many.
    unsafe {
        let namespace = (*command).namespace.as_ref().ok_or(StatusCode::INVALID_NAMESPACE_OR_FORMAT)?;
        let data = (*(*(*command).request).iovs).base.cast::<WireCopyRange>();
        let room = copy_room(command);
        let mut total = 0;
        for at in 0..((*command).blocks as usize).min(MAX_COPY_RANGES) {
            let range = data.add(at).read();
            let (slba, blocks) = (range.slba.get(), u64::from(range.block_count()));
            check_range(namespace, slba, blocks)?;
            total += blocks;
            room.add(at).write(CopyRange { offset_blocks: slba, num_blocks: blocks });
        }
        if namespace.copy_blocks != 0 && total > u64::from(namespace.copy_blocks) {
            return Err(StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED);
        }
        check_range(namespace, (*command).slba, total)?;
        Ok(total)
    }
}

/// I/O commands a namespace may have, and the device operation each needs.
pub(crate) const OPTIONAL_COMMANDS: [(IoOpcode, Op); 6] = [
    (IoOpcode::COMPARE, Op::COMPARE),
    (IoOpcode::WRITE_ZEROES, Op::WRITE_ZEROES),
    (IoOpcode::DATASET_MANAGEMENT, Op::UNMAP),
    (IoOpcode::VERIFY, Op::VERIFY),
    (IoOpcode::COPY, Op::COPY),
    (IoOpcode::WRITE_UNCORRECTABLE, Op::WRITE_UNCORRECTABLE),
];
