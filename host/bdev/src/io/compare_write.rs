//! COMPARE_AND_WRITE for modules that can only compare (or read) and write.
//!
//! ```text
//!  Off ─turn─► Next ─► Ready(Compare) ⇄ InModule(Compare) ─equal─► Ready(Write) ⇄ InModule(Write) ─► Next … ─► Off
//!                                          │ ▲ NOMEM, after a while
//!                                          ▼ │
//!                                        Refused
//! ```
//!
//! Requests wait on their channel until `exclusive` gives the reactor a turn; nothing else is in the module then,
//! so what is compared is what is overwritten. A turn carries out the requests that wait, one after the other,
//! each in parts that keep to the device's limits. Phases and resets come first: a request that was
//! not written yet waits again, or is answered as any other that waits in the gate. All there is
//! to it (a child, a buffer) is allocated when a channel gets its first request.
//!
//! # Safety
//! Every unsafe function takes a live channel of the calling reactor.
// UNSAFETY: works on the calling reactor's channels and I/Os through raw pointers.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use tenon_abi::{BdevFlags, BdevIo, IoFlags, IoState, IoStatus, Limits, Op};
use tenon_reactor::{ReactorId, current, now_ns};

use super::bounce;
use super::broadcast::at;
use super::channel::{Consumer, ModuleChannel};
use super::check::{Verdict, check};
use super::child::{BOUNCE_BYTES, Built, Child, List, Pool, build};
use super::freeze::Phase;
use super::gate::Gate;
use super::queue::IoQueue;
use super::split::{Mode, Parent};
use super::{abort as aborting, exclusive, submit};

/// The requests of one channel.
#[derive(Debug)]
pub(super) struct CompareWrites {
    /// Waits for a turn.
    pub waiting: IoQueue,
    has_asked: bool,
    /// Null until there was a request.
    work: *mut Work,
}

impl Default for CompareWrites {
    fn default() -> Self {
        Self { waiting: IoQueue::new(), has_asked: false, work: ptr::null_mut() }
    }
}

impl CompareWrites {
    /// Requests that are not answered.
    pub(super) fn len(&self) -> u32 {
        // SAFETY: `work` is null or made by `Work::new` and live as long as its channel.
        let is_at_work = unsafe { !self.work.is_null() && !(*self.work).io.is_null() };
        self.waiting.len() + u32::from(is_at_work)
    }

    /// Whether requests wait for a turn that nobody has asked for.
    pub(super) fn must_ask(&self) -> bool {
        !self.has_asked && !self.waiting.is_empty()
    }
}

impl Drop for CompareWrites {
    fn drop(&mut self) {
        if !self.work.is_null() {
            // SAFETY: made by `Work::new`; a channel is freed when it has nothing at work.
            drop(unsafe { Box::from_raw(self.work) });
        }
    }
}

/// The request that is being carried out.
struct Work {
    step: Step,
    /// The consumer's, or null.
    io: *mut BdevIo,
    /// Stands in for `io` with the payload and operation of the stage.
    request: BdevIo,
    parent: Parent,
    pool: *mut Pool,
    child: *mut Child,
    buffer: *mut u8,
    /// Requests that may still be begun in this turn.
    left: u32,
    is_driving: bool,
    is_aborted: bool,
    has_written: bool,
    backoff_ns: u64,
    /// Since when the module refuses the part; 0: it does not.
    refused_since_ns: u64,
}

/// What of a request is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Compare,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Not this reactor's turn.
    Off,
    /// Between two requests.
    Next,
    /// The next part is to be made.
    Ready(Stage),
    /// The part that was refused is to be given to the module again.
    Again(Stage),
    /// A part is with the module.
    InModule(Stage),
    /// The module refused a part; a timer runs.
    Refused(Stage),
}

impl Work {
    fn new(m: *mut ModuleChannel) -> *mut Work {
        // SAFETY: the caller's channel is live; all-zero is a valid `BdevIo`; a new pool has a child.
        unsafe {
            let pool = Pool::with((*m).io.io_ctx_size, 1);
            let child = (*pool).take().unwrap_or(ptr::null_mut());
            Box::into_raw(Box::new(Work {
                step: Step::Off,
                io: ptr::null_mut(),
                request: std::mem::zeroed(),
                parent: Parent::new(m, ptr::null_mut(), Mode::Payload),
                pool,
                child,
                buffer: bounce::allocate(),
                left: 0,
                is_driving: false,
                is_aborted: false,
                has_written: false,
                backoff_ns: BACKOFF_MIN_NS,
                refused_since_ns: 0,
            }))
        }
    }

    /// Makes `request` what the stage needs.
    unsafe fn load(&mut self, m: *mut ModuleChannel, stage: Stage) {
        // SAFETY: `io` is the consumer's and was checked, so its arguments are valid.
        unsafe {
            let io = &*self.io;
            let request = &mut self.request;
            request.offset_blocks = io.offset_blocks;
            request.num_blocks = io.num_blocks;
            let mode = match stage {
                Stage::Compare => {
                    request.op = Op::COMPARE;
                    request.flags = IoFlags(io.flags.0 & !IoFlags::FUA.0);
                    request.iovs = (*io.ext).compare_iovs.cast_mut();
                    request.iovcnt = (*io.ext).compare_iovcnt;
                    if (*m).gate.declares(Op::COMPARE) { Mode::Payload } else { Mode::CompareRead }
                }
                Stage::Write => {
                    request.op = Op::WRITE;
                    request.flags = io.flags;
                    request.iovs = io.iovs;
                    request.iovcnt = io.iovcnt;
                    Mode::Payload
                }
            };
            self.parent = Parent::new(m, request, mode);
        }
        self.step = Step::Ready(stage);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: both were made in `new`, and nothing is with the module.
        unsafe {
            drop(Box::from_raw(self.pool));
            bounce::deallocate(self.buffer);
        }
    }
}

/// Whether the gate can carry out COMPARE_AND_WRITE with what a module declares.
pub(super) fn is_possible(declared: u64) -> bool {
    declared & Op::WRITE.bit() != 0 && declared & (Op::READ.bit() | Op::COMPARE.bit()) != 0
}

/// The limits of a device as consumers see them: with the largest COMPARE_AND_WRITE that the gate carries out, where
/// the module has none of its own.
#[must_use]
pub fn with_compare_write(mut limits: Limits, flags: BdevFlags, declared: u64) -> Limits {
    if declared & Op::COMPARE_AND_WRITE.bit() == 0 && is_possible(declared) {
        let interleaved = flags.contains(BdevFlags::METADATA_INTERLEAVED);
        let stride = limits.block_size.max(1) + if interleaved { limits.md_size } else { 0 };
        limits.atomic_compare_write_blocks = (MOST_BYTES / stride).max(1);
    }
    limits
}

/// Takes a request from a consumer.
///
/// # Safety
/// `m` is a live channel of the calling reactor that is not closed; `io` is owned by the gate and was checked.
pub(super) unsafe fn begin(m: *mut ModuleChannel, io: *mut BdevIo) {
    // SAFETY: as promised by the caller.
    unsafe {
        (*io).state = IoState::SUBMITTED;
        (*m).compare_writes.waiting.push_back(io);
        (*m).queue_changed();
        ask(m);
    }
}

/// Asks for a turn if requests wait for one.
///
/// # Safety
/// `m` is a live channel of the calling reactor.
pub(super) unsafe fn ask(m: *mut ModuleChannel) {
    // SAFETY: as promised by the caller.
    unsafe {
        if (*m).compare_writes.must_ask() {
            (*m).compare_writes.has_asked = true;
            exclusive::ask(ModuleChannel::gate(m), current().reactor());
        }
    }
}

/// The device is this reactor's: carries out what waits. If it is not quiet, everybody is told.
pub(super) fn take_turn(gate: &Arc<Gate>, id: ReactorId, is_quiet: bool) {
    // Closed meanwhile: then nothing waits.
    let Some(m) = gate.channel_here(id) else { return exclusive::turn_over(gate) };
    // SAFETY: `m` is this reactor's channel; it is not freed before a turn of its own.
    unsafe {
        (*m).compare_writes.has_asked = false;
        if !is_quiet {
            let mut refused = (*m).compare_writes.waiting.take();
            (*m).queue_changed();
            exclusive::turn_over(gate);
            while let Some(io) = refused.pop_front() {
                submit::finish(io, IoStatus::TIMED_OUT);
            }
            return;
        }
        if (*m).compare_writes.work.is_null() {
            (*m).compare_writes.work = Work::new(m);
        }
        let work = (*m).compare_writes.work;
        (*work).left = (*m).compare_writes.waiting.len().min(MOST_PER_TURN);
        (*work).step = Step::Next;
        drive(m);
    }
}

/// Goes on until the module has a part, a timer runs or the turn is over.
unsafe fn drive(m: *mut ModuleChannel) {
    // SAFETY: the caller's channel is live; its work is as long as it is, and no reference is held across a call out.
    unsafe {
        let work = (*m).compare_writes.work;
        if std::mem::replace(&mut (*work).is_driving, true) {
            return;
        }
        loop {
            match (*work).step {
                Step::Off | Step::InModule(_) | Step::Refused(_) => break,
                Step::Next => next(m, work),
                Step::Ready(stage) => {
                    if may_go_on(m, work) {
                        make_part(m, work, stage);
                    }
                }
                Step::Again(stage) => {
                    if may_go_on(m, work) {
                        give(m, work, stage);
                    }
                }
            }
        }
        (*work).is_driving = false;
    }
}

/// Begins the next request, or ends the turn.
unsafe fn next(m: *mut ModuleChannel, work: *mut Work) {
    // SAFETY: as in `drive`; the channel of a request that waits in the gate has not been put.
    unsafe {
        let may_begin = (*work).left > 0 && !is_interrupted(m);
        let io = if may_begin { (*m).compare_writes.waiting.pop_front() } else { None };
        let Some(io) = io else {
            (*work).step = Step::Off;
            (*m).queue_changed();
            return exclusive::turn_over(ModuleChannel::gate(m));
        };
        (*work).left -= 1;
        // What was right when it came may not be any more.
        match check((*io).ch.cast::<Consumer>(), io) {
            Verdict::Fail(status) => submit::finish(io, status),
            Verdict::Exclusive => {
                (*work).io = io;
                (*work).is_aborted = false;
                (*work).has_written = false;
                (*work).load(m, Stage::Compare);
            }
            Verdict::Plain | Verdict::Split(_) | Verdict::Reset => submit::finish(io, IoStatus::INTERNAL),
        }
    }
}

/// Phases and resets come before a turn.
unsafe fn is_interrupted(m: *mut ModuleChannel) -> bool {
    // SAFETY: the caller's channel is live.
    unsafe { (*m).phase != Phase::Running || (*m).is_resetting }
}

/// Whether the request may go on; if not, it is answered or waits again.
unsafe fn may_go_on(m: *mut ModuleChannel, work: *mut Work) -> bool {
    // SAFETY: as in `drive`.
    unsafe {
        if (*work).is_aborted && !(*work).has_written || (*m).is_resetting {
            end(m, work, IoStatus::ABORTED);
            return false;
        }
        match (*m).phase {
            Phase::Running => true,
            Phase::Orphaned => {
                end(m, work, IoStatus::NO_DEVICE);
                false
            }
            // Half a write cannot be compared again.
            Phase::Frozen | Phase::Absent if (*work).has_written => {
                end(m, work, IoStatus::IO_ERROR);
                false
            }
            Phase::Frozen | Phase::Absent => {
                let io = std::mem::replace(&mut (*work).io, ptr::null_mut());
                (*work).step = Step::Next;
                (*m).compare_writes.waiting.push_front(io);
                false
            }
        }
    }
}

/// Makes the next part of the stage and gives it to the module; after the last one goes to the next stage.
unsafe fn make_part(m: *mut ModuleChannel, work: *mut Work, stage: Stage) {
    // SAFETY: as in `drive`; the child is free, and the buffer its own.
    unsafe {
        if (*work).parent.remaining() == 0 {
            return match stage {
                Stage::Compare => (*work).load(m, Stage::Write),
                Stage::Write => end(m, work, IoStatus::SUCCESS),
            };
        }
        let child = (*work).child;
        match build(m, &raw mut (*work).parent, child, (*work).buffer) {
            Built::Ready => {
                let io = (*child).io;
                (*io).done = Some(part_done);
                (*io).done_arg = m.cast();
                (*io).flags.0 |= IoFlags::NO_RETRY.0;
                give(m, work, stage);
            }
            Built::NeedsBuffer => end(m, work, IoStatus::INTERNAL),
            Built::Refused(status) => end(m, work, status),
        }
    }
}

unsafe fn give(m: *mut ModuleChannel, work: *mut Work, stage: Stage) {
    // SAFETY: as in `drive`; the child was built and is not with the module.
    unsafe {
        (*work).step = Step::InModule(stage);
        submit::forward(m, (*(*work).child).io);
    }
}

/// [`BdevIo::done`] of a part.
unsafe extern "C" fn part_done(io: *mut BdevIo, m: *mut c_void) {
    let m = m.cast::<ModuleChannel>();
    // SAFETY: `make_part` put the channel there; it lives while the request is not answered.
    unsafe {
        let work = (*m).compare_writes.work;
        let Step::InModule(stage) = (*work).step else { return };
        match (*io).status {
            IoStatus::SUCCESS if stage == Stage::Compare && !is_equal(work) => {
                end(m, work, IoStatus::MISCOMPARE);
            }
            IoStatus::SUCCESS => {
                (*work).refused_since_ns = 0;
                (*work).backoff_ns = BACKOFF_MIN_NS;
                (*work).has_written |= stage == Stage::Write;
                (*work).step = Step::Ready(stage);
            }
            IoStatus::NOMEM => refused(m, work, stage),
            status => end(m, work, status),
        }
        drive(m);
    }
}

/// Whether the part that was read is what the consumer expects; one that the module compared is.
unsafe fn is_equal(work: *mut Work) -> bool {
    // SAFETY: the part is back, and the consumer's list valid until its request is answered.
    unsafe {
        let (request, child) = (&(*work).request, &*(*work).child);
        let expected = List { iovs: request.iovs, count: request.iovcnt };
        let was_compared = (*work).parent.mode != Mode::CompareRead;
        was_compared || expected.equals(child.at, child.buffer, child.bytes)
    }
}

/// The module lacks a resource: the part is given to it again after a while.
unsafe fn refused(m: *mut ModuleChannel, work: *mut Work, stage: Stage) {
    // SAFETY: as in `drive`.
    unsafe {
        let now = now_ns();
        if (*work).refused_since_ns == 0 {
            (*work).refused_since_ns = now;
        }
        let is_over = now >= (*work).refused_since_ns + GIVE_UP_NS;
        if is_over || (*(*work).io).flags.contains(IoFlags::NO_RETRY) {
            return end(m, work, IoStatus::NOMEM);
        }
        (*work).step = Step::Refused(stage);
        let (gate, id) = (Arc::clone(&(*m).gate), (*m).reactor);
        let when = now + (*work).backoff_ns;
        (*work).backoff_ns = ((*work).backoff_ns * 2).min(BACKOFF_MAX_NS);
        at(when, move || try_again(&gate, id));
    }
}

fn try_again(gate: &Arc<Gate>, id: ReactorId) {
    let Some(m) = gate.channel_here(id) else { return };
    // SAFETY: `m` is this reactor's channel.
    unsafe {
        let work = (*m).compare_writes.work;
        if !work.is_null()
            && let Step::Refused(stage) = (*work).step
        {
            (*work).step = Step::Again(stage);
            drive(m);
        }
    }
}

/// Answers the request.
unsafe fn end(m: *mut ModuleChannel, work: *mut Work, status: IoStatus) {
    // SAFETY: as in `drive`.
    unsafe {
        let io = std::mem::replace(&mut (*work).io, ptr::null_mut());
        (*work).step = Step::Next;
        (*work).refused_since_ns = 0;
        (*work).backoff_ns = BACKOFF_MIN_NS;
        (*m).queue_changed();
        submit::finish(io, status);
    }
}

/// Ends `victim` early if it is being carried out; false if it is not.
///
/// # Safety
/// `m` is a live channel of the calling reactor; `victim` is only compared.
pub(super) unsafe fn abort(m: *mut ModuleChannel, victim: *mut BdevIo) -> bool {
    // SAFETY: as promised; the part of a request that is with the module is valid.
    unsafe {
        let work = (*m).compare_writes.work;
        if work.is_null() || (*work).io != victim {
            return false;
        }
        (*work).is_aborted = true;
        match (*work).step {
            Step::InModule(_) => {
                // A part that the module does not find has completed or will.
                aborting::in_module(m, (*(*work).child).io);
            }
            Step::Refused(stage) => {
                (*work).step = Step::Again(stage);
                drive(m);
            }
            Step::Off | Step::Next | Step::Ready(_) | Step::Again(_) => {}
        }
        true
    }
}

/// Most that is compared and written at once.
const MOST_BYTES: u32 = BOUNCE_BYTES as u32;
/// Requests of one reactor in one turn; more have to wait for the next round.
const MOST_PER_TURN: u32 = 32;
/// First and longest pause before a part is given to the module again.
const BACKOFF_MIN_NS: u64 = 100_000;
const BACKOFF_MAX_NS: u64 = 10_000_000;
/// How long a module may refuse a part until the consumer hears of it.
const GIVE_UP_NS: u64 = 30_000_000_000;
