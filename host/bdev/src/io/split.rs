//! Requests that go to the module as children: cut at the device's limits, bounced, or made of others.
//!
//! The parent's own driver context, which the module does not use then, holds the state, so a cut
//! request allocates nothing. A bounded number of children is in flight; each that completes makes room
//! for the next. After the first error no more are made, and the parent is answered with it when the
//! last one is back. A parent that cannot go on (no child, no buffer, the gate is closed, it has had its
//! turn) is parked in line.
//!
//! # Safety
//! Every private unsafe function takes an active parent of the calling reactor, or its live channel.
// UNSAFETY: keeps parents in raw memory and lists; follows children back to them.

use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use tenon_abi::{BdevIo, IoState, IoStatus, Op, io_context};

use super::channel::ModuleChannel;
use super::child::{self, Built, Child, Cursor, List, POOL_CHILDREN, Pool};
use super::{abort as aborting, service, submit};

/// How children relate to their parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The same operation on a part of the payload.
    Payload,
    /// The same operation on a part of the blocks, without payload.
    Range,
    /// A part of one source range.
    Copy,
    /// WRITE of zeroes, for WRITE_ZEROES.
    Zeroes,
    /// READ into a buffer and compare, for COMPARE.
    CompareRead,
    /// The same operation, once, through a buffer.
    Whole,
}

/// Where a parent waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parked {
    No,
    /// In the pool's queue.
    Pool,
    /// In the reactor's queue for bounce buffers.
    Bounce,
}

/// State of a cut request, in its driver context.
#[repr(C)]
pub(super) struct Parent {
    pub io: *mut BdevIo,
    module: *mut ModuleChannel,
    previous: *mut Parent,
    next: *mut Parent,
    next_waiting: *mut Parent,
    /// Blocks given to children so far.
    pub issued_blocks: u64,
    /// The first byte of payload not given to a child.
    pub at: Cursor,
    /// The first block of the sources not given to a child.
    pub range_offset: u64,
    pub range_index: u32,
    in_flight: u32,
    status: IoStatus,
    pub mode: Mode,
    parked: Parked,
    is_issuing: bool,
}

/// Bytes a consumer's driver context has at least.
pub(super) const PARENT_SIZE: u32 = 128;
const _: () = assert!(size_of::<Parent>() <= PARENT_SIZE as usize);

impl Parent {
    /// A parent that has made no child yet.
    pub(super) fn new(m: *mut ModuleChannel, io: *mut BdevIo, mode: Mode) -> Parent {
        Parent {
            io,
            module: m,
            previous: ptr::null_mut(),
            next: ptr::null_mut(),
            next_waiting: ptr::null_mut(),
            issued_blocks: 0,
            at: Cursor::default(),
            range_offset: 0,
            range_index: 0,
            in_flight: 0,
            status: IoStatus::SUCCESS,
            mode,
            parked: Parked::No,
            is_issuing: false,
        }
    }

    /// Blocks not yet given to a child.
    pub(super) fn remaining(&self) -> u64 {
        // SAFETY: a parent lives in its I/O's memory.
        unsafe { (*self.io).num_blocks - self.issued_blocks }
    }

    fn is_all_issued(&self) -> bool {
        match self.mode {
            Mode::Whole => self.range_index == 1,
            Mode::Payload | Mode::Range | Mode::Copy | Mode::Zeroes | Mode::CompareRead => {
                self.remaining() == 0
            }
        }
    }

    fn most_in_flight(&self) -> u32 {
        match self.mode {
            Mode::Payload | Mode::CompareRead | Mode::Whole => MAX_DATA_CHILDREN,
            Mode::Range | Mode::Copy | Mode::Zeroes => MAX_RANGE_CHILDREN,
        }
    }

    fn can_issue(&self) -> bool {
        self.status.is_success() && !self.is_all_issued()
    }
}

/// The cut requests of one channel.
#[derive(Debug)]
pub(super) struct Parents {
    head: *mut Parent,
}

impl Default for Parents {
    fn default() -> Self {
        Self { head: ptr::null_mut() }
    }
}

impl Parents {
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    unsafe fn insert(&mut self, p: *mut Parent) {
        // SAFETY: the caller's parent is live and in no list; those in the list are live.
        unsafe {
            (*p).previous = ptr::null_mut();
            (*p).next = self.head;
            if !self.head.is_null() {
                (*self.head).previous = p;
            }
        }
        self.head = p;
    }

    unsafe fn remove(&mut self, p: *mut Parent) {
        // SAFETY: the caller's parent is in this list, whose members are live.
        unsafe {
            let (previous, next) = ((*p).previous, (*p).next);
            if previous.is_null() {
                self.head = next;
            } else {
                (*previous).next = next;
            }
            if !next.is_null() {
                (*next).previous = previous;
            }
        }
    }

    fn find(&self, wanted: impl Fn(&Parent) -> bool) -> Option<*mut Parent> {
        let mut p = self.head;
        while !p.is_null() {
            // SAFETY: members of the list are live, and `wanted` only looks.
            unsafe {
                if wanted(&*p) {
                    return Some(p);
                }
                p = (*p).next;
            }
        }
        None
    }
}

/// Parents that wait for the same thing, first in first out.
#[derive(Debug)]
pub(super) struct ParentQueue {
    head: *mut Parent,
    tail: *mut Parent,
    len: usize,
}

impl Default for ParentQueue {
    fn default() -> Self {
        Self { head: ptr::null_mut(), tail: ptr::null_mut(), len: 0 }
    }
}

impl ParentQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// # Safety
    /// `p` is active, in no queue, and stays active until it is taken out.
    pub(super) unsafe fn push_back(&mut self, p: *mut Parent) {
        // SAFETY: as promised; members of the queue are active.
        unsafe {
            (*p).next_waiting = ptr::null_mut();
            if self.tail.is_null() {
                self.head = p;
            } else {
                (*self.tail).next_waiting = p;
            }
        }
        self.tail = p;
        self.len += 1;
    }

    pub(super) fn pop_front(&mut self) -> Option<*mut Parent> {
        let p = self.head;
        (!p.is_null()).then(|| {
            self.remove(p);
            p
        })
    }

    pub(super) fn remove(&mut self, p: *mut Parent) {
        let mut before: *mut Parent = ptr::null_mut();
        let mut at = self.head;
        while !at.is_null() {
            // SAFETY: members of the queue are active.
            let next = unsafe { (*at).next_waiting };
            if at == p {
                if before.is_null() {
                    self.head = next;
                } else {
                    // SAFETY: as above.
                    unsafe { (*before).next_waiting = next };
                }
                if next.is_null() {
                    self.tail = before;
                }
                self.len -= 1;
                return;
            }
            before = at;
            at = next;
        }
    }
}

/// Starts to cut `io`.
///
/// # Safety
/// `m` is a live channel that is not closed; `io` is owned by the gate, was checked, and has
/// [`PARENT_SIZE`] bytes of driver context.
pub(super) unsafe fn begin(m: *mut ModuleChannel, io: *mut BdevIo, mode: Mode) {
    // SAFETY: as promised by the caller.
    unsafe {
        (*io).state = IoState::SUBMITTED;
        let p = io_context(io).cast::<Parent>();
        p.write(Parent::new(m, io, mode));
        (*m).parents.insert(p);
        if (*m).pool.is_null() {
            (*m).pool = Pool::new((*m).io.io_ctx_size);
        }
        if (*(*m).pool).waiting.is_empty() { proceed(p) } else { park(p) }
    }
}

/// Makes children until `p` cannot go on, and answers `p` if it is through.
unsafe fn proceed(p: *mut Parent) {
    // SAFETY: the caller's parent is active; it stays so while `is_issuing` is set.
    unsafe {
        (*p).is_issuing = true;
        let had_its_turn = (0..CHILDREN_PER_TURN).all(|_| issue(p));
        (*p).is_issuing = false;
        if had_its_turn && (*p).can_issue() && (*p).parked == Parked::No {
            park(p);
            service::kick((*p).module);
        }
        settle(p);
    }
}

/// Makes one child; false if `p` cannot go on now.
unsafe fn issue(p: *mut Parent) -> bool {
    // SAFETY: as in `proceed`; a channel is freed in a turn of its own only.
    unsafe {
        let m = (*p).module;
        if !(*p).can_issue() || (*p).in_flight >= (*p).most_in_flight() {
            return false;
        }
        let pool = (*m).pool;
        let child = if (*m).is_closed() { None } else { (*pool).take() };
        let Some(child) = child else {
            park(p);
            return false;
        };
        let built = match child::build(m, p, child, ptr::null_mut()) {
            Built::NeedsBuffer => match ModuleChannel::bounce(m).take(m) {
                Some(buffer) => bounced(m, p, child, buffer),
                None => Built::NeedsBuffer,
            },
            built @ (Built::Ready | Built::Refused(_)) => built,
        };
        match built {
            Built::Ready => {
                (*p).in_flight += 1;
                submit::feed(m, (*child).io);
                true
            }
            Built::NeedsBuffer => {
                (*pool).put(child);
                (*p).parked = Parked::Bounce;
                ModuleChannel::bounce(m).wait(p);
                false
            }
            Built::Refused(status) => {
                (*pool).put(child);
                (*p).status = status;
                false
            }
        }
    }
}

/// Builds with a buffer, which goes back if the child could not be made all the same.
unsafe fn bounced(m: *mut ModuleChannel, p: *mut Parent, child: *mut Child, buffer: *mut u8) -> Built {
    // SAFETY: as in `issue`; the buffer was just taken for `m`.
    unsafe {
        let built = child::build(m, p, child, buffer);
        if let Built::Refused(_) = built {
            ModuleChannel::bounce(m).put(m, buffer);
        }
        built
    }
}

unsafe fn park(p: *mut Parent) {
    // SAFETY: the caller's parent is active and in no queue.
    unsafe {
        (*p).parked = Parked::Pool;
        (*(*(*p).module).pool).waiting.push_back(p);
    }
}

/// Answers `p` if nothing is in flight and nothing more will be.
unsafe fn settle(p: *mut Parent) {
    // SAFETY: the caller's parent is active.
    unsafe {
        if (*p).in_flight > 0 || (*p).is_issuing || (*p).can_issue() {
            return;
        }
        let m = (*p).module;
        match (*p).parked {
            Parked::No => {}
            Parked::Pool => (*(*m).pool).waiting.remove(p),
            Parked::Bounce => ModuleChannel::bounce(m).leave(p),
        }
        (*m).parents.remove(p);
        submit::finish((*p).io, (*p).status);
    }
}

/// [`BdevIo::done`] of every child.
pub(super) unsafe extern "C" fn child_done(io: *mut BdevIo, child: *mut c_void) {
    let child = child.cast::<Child>();
    // SAFETY: `complete` calls with what `child::build` put into the child's I/O; a parent with a child in
    // flight is active.
    unsafe {
        let p = (*child).parent;
        let m = (*p).module;
        let status = conclude(p, child, io);
        let had_buffer = !(*child).buffer.is_null();
        if had_buffer {
            ModuleChannel::bounce(m).put(m, (*child).buffer);
        }
        (*(*m).pool).put(child);
        (*p).in_flight -= 1;
        if (*p).status.is_success() {
            (*p).status = status;
        }
        if !(*p).is_issuing {
            if (*p).parked == Parked::No { proceed(p) } else { settle(p) }
        }
        // The parent may be answered and gone.
        resume(m);
        if had_buffer {
            let service = Rc::clone(&(*m).service);
            service.bounce.resume();
            if service.bounce.has_work() {
                service.start();
            }
        }
    }
}

/// Brings a child's results to its parent; returns what became of the child.
unsafe fn conclude(p: *mut Parent, child: *mut Child, io: *mut BdevIo) -> IoStatus {
    // SAFETY: as in `child_done`.
    unsafe {
        let from = (*p).io;
        let status = (*io).status;
        if (*p).mode == Mode::Whole {
            (*from).cdw0 = (*io).cdw0;
            (*from).offset_blocks = (*io).offset_blocks;
        }
        if !status.is_success() || (*child).buffer.is_null() {
            return status;
        }
        let list = List { iovs: (*from).iovs, count: (*from).iovcnt };
        if (*p).mode == Mode::CompareRead {
            let is_equal = list.equals((*child).at, (*child).buffer, (*child).bytes);
            return if is_equal { status } else { IoStatus::MISCOMPARE };
        }
        if receives_data(from) {
            list.copy_into((*child).at, (*child).buffer, (*child).bytes);
        }
        status
    }
}

/// Lets parents that wait for the pool go on, each at most once.
///
/// # Safety
/// `m` is a live channel of the calling reactor.
pub(super) unsafe fn resume(m: *mut ModuleChannel) {
    // SAFETY: as promised; a channel is freed in a turn of its own only.
    unsafe {
        let pool = (*m).pool;
        if pool.is_null() || (*pool).waiting.is_empty() || std::mem::replace(&mut (*pool).is_resuming, true) {
            return;
        }
        for _ in 0..(*pool).waiting.len() {
            if !can_resume(m) {
                break;
            }
            let Some(p) = (*pool).waiting.pop_front() else { break };
            (*p).parked = Parked::No;
            proceed(p);
        }
        (*pool).is_resuming = false;
        if can_resume(m) {
            service::kick(m);
        }
    }
}

/// Whether a parent waits that could go on now.
///
/// # Safety
/// `m` is live.
pub(super) unsafe fn can_resume(m: *mut ModuleChannel) -> bool {
    // SAFETY: as promised by the caller.
    unsafe {
        let pool = (*m).pool;
        !pool.is_null() && !(*m).is_closed() && !(*pool).waiting.is_empty() && (*pool).free_count > 0
    }
}

/// Whether the channel of a parent has bounce buffers, whose return will make it go on.
///
/// # Safety
/// `p` is active.
pub(super) unsafe fn has_buffers(p: *mut Parent) -> bool {
    // SAFETY: as promised; the channel of a parent has a pool.
    unsafe { (*(*(*p).module).pool).buffers > 0 }
}

/// Lets a parent that was taken from the queue for buffers go on.
///
/// # Safety
/// `p` is active and was just taken out of that queue.
pub(super) unsafe fn resume_from_bounce(p: *mut Parent) {
    // SAFETY: as promised by the caller.
    unsafe {
        (*p).parked = Parked::No;
        proceed(p);
    }
}

/// Answers every parent of `m` that has not given all of itself to children yet with `status`, as soon as
/// its children are back.
///
/// # Safety
/// `m` is a live channel of the calling reactor, and closed.
pub(super) unsafe fn stop_all(m: *mut ModuleChannel, status: IoStatus) {
    // SAFETY: as promised; the list is walked without calling out, then searched anew after each answer.
    unsafe {
        let mut p = (*m).parents.head;
        while !p.is_null() {
            if (*p).can_issue() {
                (*p).status = status;
            }
            p = (*p).next;
        }
        let is_through = |p: &Parent| p.in_flight == 0 && !p.is_issuing && !p.can_issue();
        loop {
            let parents = &(*m).parents;
            let Some(p) = parents.find(is_through) else { break };
            settle(p);
        }
    }
}

/// Stops cutting `victim` and aborts its children; false if it is not being cut.
///
/// # Safety
/// `m` is a live channel of the calling reactor; `victim` is only compared.
pub(super) unsafe fn abort(m: *mut ModuleChannel, victim: *mut BdevIo) -> bool {
    // SAFETY: as promised. The raised count keeps the parent active while its children complete.
    unsafe {
        let parents = &(*m).parents;
        let Some(p) = parents.find(|p| p.io == victim) else { return false };
        (*p).in_flight += 1;
        if (*p).can_issue() {
            (*p).status = IoStatus::ABORTED;
        }
        for index in 0..POOL_CHILDREN {
            let child = (*(*m).pool).child(index);
            if (*child).parent != p {
                continue;
            }
            let io = (*child).io;
            if aborting::take_waiting(m, io) {
                (*m).queue_changed();
                submit::finish(io, IoStatus::ABORTED);
            } else {
                // A child the module does not find has completed or will.
                aborting::in_module(m, io);
            }
        }
        (*p).in_flight -= 1;
        submit::update_ops(m);
        if !(*p).is_issuing {
            if (*p).parked == Parked::No { proceed(p) } else { settle(p) }
        }
        true
    }
}

/// Whether the payload goes to the device.
///
/// # Safety
/// `io` is valid.
pub(super) unsafe fn sends_data(io: *const BdevIo) -> bool {
    // SAFETY: as promised by the caller.
    unsafe {
        match (*io).op {
            Op::NVME_ADMIN | Op::NVME_IO => nvme_direction(io) & 1 != 0,
            Op::READ | Op::GET_ZONE_INFO => false,
            _ => true,
        }
    }
}

/// Whether the payload comes from the device.
unsafe fn receives_data(io: *const BdevIo) -> bool {
    // SAFETY: the caller's I/O is valid.
    unsafe {
        match (*io).op {
            Op::READ | Op::GET_ZONE_INFO => true,
            Op::NVME_ADMIN | Op::NVME_IO => nvme_direction(io) & 2 != 0,
            _ => false,
        }
    }
}

/// The lowest two bits of an NVMe opcode tell the direction; both if the command is not there.
unsafe fn nvme_direction(io: *const BdevIo) -> u8 {
    // SAFETY: `ext` is null or valid; `nvme_sqe` is null or has 64 bytes.
    unsafe {
        let ext = (*io).ext;
        if ext.is_null() || (*ext).nvme_sqe.is_null() { 3 } else { *(*ext).nvme_sqe & 3 }
    }
}

/// Children in flight per parent, with payload and without.
const MAX_DATA_CHILDREN: u32 = 32;
const MAX_RANGE_CHILDREN: u32 = 8;
/// Children a parent makes until others have their turn.
const CHILDREN_PER_TURN: u32 = 64;

const _: () = assert!(MAX_DATA_CHILDREN as usize <= POOL_CHILDREN);
