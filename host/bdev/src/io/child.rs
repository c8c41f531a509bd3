//! Children of a cut request: the pool they come from, and how a piece of the parent becomes one.
//!
//! A channel whose device needs cutting has a bounded pool of children, each with room for the module's
//! driver context and for a scatter list of its own, so cutting allocates nothing. A child carries
//! whole blocks within every limit of the device; where the parent's memory does not allow that (a
//! piece is not aligned, or a block lies in too many pieces), it carries a bounce buffer instead. Does not
//! decide when children are made; see `split`.
//!
//! # Safety
//! Every private unsafe function takes an active parent, a child of its channel's pool, and cursors inside the
//! parent's scatter list; a buffer has [`BOUNCE_BYTES`].
// UNSAFETY: lays out children in raw memory; copies between payloads and buffers.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr;
use std::sync::OnceLock;

use tenon_abi::{BDEV_IO_SIZE, BdevFlags, BdevIo, CopyRange, IoExtV1, IoFlags, IoState, IoStatus, IoVec, Op};

use super::channel::ModuleChannel;
use super::check::{PieceRule, boundary, write_unit};
use super::gate::{Gate, GateSpec};
use super::split::{self, Mode, Parent, ParentQueue};

/// A part of a parent on its way; the child's [`BdevIo`] and driver context follow it in memory.
#[repr(C, align(64))]
pub(super) struct Child {
    /// Null while the child is free.
    pub parent: *mut Parent,
    /// The I/O behind it.
    pub io: *mut BdevIo,
    next_free: *mut Child,
    /// Bounce buffer, or null.
    pub buffer: *mut u8,
    /// Where in the parent's payload the child's begins, and how long it is.
    pub at: Cursor,
    pub bytes: usize,
    ext: IoExtV1,
    source: CopyRange,
    iovs: [IoVec; CHILD_IOVS],
}

/// A place in a scatter list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub index: u32,
    pub offset: usize,
}

/// The children of one channel.
#[derive(Debug)]
pub(super) struct Pool {
    memory: *mut u8,
    layout: Layout,
    stride: usize,
    free: *mut Child,
    pub free_count: u32,
    /// Parents that wait for a child, for their next turn, or for the gate to open.
    pub waiting: ParentQueue,
    pub is_resuming: bool,
    /// Bounce buffers that children of this channel hold.
    pub buffers: u32,
}

impl Pool {
    /// Whether a device may need children for more than what the gate makes of other operations.
    pub(super) fn is_needed(spec: &GateSpec) -> bool {
        let limits = &spec.limits;
        spec.flags.0 & (BdevFlags::SPLIT_ON_BOUNDARY.0 | BdevFlags::SPLIT_ON_WRITE_UNIT.0) != 0
            || limits.required_alignment > 1
            || [
                limits.max_transfer_blocks,
                limits.max_segments,
                limits.max_segment_bytes,
                limits.max_unmap_blocks,
                limits.max_write_zeroes_blocks,
                limits.max_copy_blocks,
            ]
            .iter()
            .any(|&limit| limit > 0)
    }

    /// A pool with all children free; freed by its channel.
    pub(super) fn new(io_ctx_size: u32) -> *mut Pool {
        Self::with(io_ctx_size, POOL_CHILDREN)
    }

    /// The same with so many children.
    pub(super) fn with(io_ctx_size: u32, count: usize) -> *mut Pool {
        let stride = (size_of::<Child>() + BDEV_IO_SIZE + io_ctx_size as usize).next_multiple_of(64);
        let layout = Layout::from_size_align(stride * count, 64)
            .expect("a bounded context size times a small constant");
        // SAFETY: the layout is not of size zero.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        let mut pool = Box::new(Pool {
            memory,
            layout,
            stride,
            free: ptr::null_mut(),
            free_count: 0,
            waiting: ParentQueue::default(),
            is_resuming: false,
            buffers: 0,
        });
        for index in (0..count).rev() {
            let child = pool.child(index);
            // SAFETY: every child has its I/O directly behind it; a child's size is a multiple of 64.
            unsafe { (*child).io = child.cast::<u8>().add(size_of::<Child>()).cast() };
            pool.put(child);
        }
        Box::into_raw(pool)
    }

    pub(super) fn child(&self, index: usize) -> *mut Child {
        // SAFETY: `index` is below the number of children, whose strides the allocation holds.
        unsafe { self.memory.add(index * self.stride).cast() }
    }

    pub(super) fn take(&mut self) -> Option<*mut Child> {
        let child = self.free;
        if child.is_null() {
            return None;
        }
        // SAFETY: a child in the free list is one of this pool's.
        self.free = unsafe { (*child).next_free };
        self.free_count -= 1;
        Some(child)
    }

    pub(super) fn put(&mut self, child: *mut Child) {
        // SAFETY: the caller gives back one of this pool's children.
        unsafe {
            (*child).parent = ptr::null_mut();
            (*child).buffer = ptr::null_mut();
            (*child).next_free = self.free;
        }
        self.free = child;
        self.free_count += 1;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.memory, self.layout) };
    }
}

/// What came of the attempt to make a child.
pub(super) enum Built {
    Ready,
    /// It needs a bounce buffer; call again with one.
    NeedsBuffer,
    /// The parent cannot be cut within the device's limits.
    Refused(IoStatus),
}

/// Fills `child` with the next part of `p` and moves `p` on.
///
/// # Safety
/// `p` is an active parent on `m`, `child` was just taken from `m`'s pool; `buffer` is null or a bounce
/// buffer that is the child's from now on.
pub(super) unsafe fn build(
    m: *mut ModuleChannel,
    p: *mut Parent,
    child: *mut Child,
    buffer: *mut u8,
) -> Built {
    // SAFETY: as promised; nothing is called out of here, so the references are exclusive.
    unsafe {
        let gate: &Gate = &(*m).gate;
        (*child).parent = p;
        (*(*child).io).done_arg = child.cast();
        let (parent, child) = (&mut *p, &mut *child);
        start(parent, child);
        match parent.mode {
            Mode::Range => {
                let limit = match (*parent.io).op {
                    Op::UNMAP => gate.spec.limits.max_unmap_blocks,
                    _ => gate.spec.limits.max_write_zeroes_blocks,
                };
                let blocks = parent.remaining().min(u64::from(limit.max(1)));
                set_range(parent, child, blocks);
                Built::Ready
            }
            Mode::Copy => {
                copy_source(gate, parent, child);
                Built::Ready
            }
            Mode::Zeroes => zeroes(gate, parent, child),
            Mode::Payload | Mode::CompareRead => payload(gate, parent, child, buffer),
            Mode::Whole => whole(gate, parent, child, buffer),
        }
    }
}

/// What every child of a parent has in common with it.
unsafe fn start(parent: &Parent, child: &mut Child) {
    // SAFETY: the caller's parent and child are live; the child's I/O is idle.
    unsafe {
        let from = parent.io;
        let io = child.io;
        (*io).op = match parent.mode {
            Mode::Zeroes => Op::WRITE,
            Mode::CompareRead => Op::READ,
            Mode::Payload | Mode::Range | Mode::Copy | Mode::Whole => (*from).op,
        };
        (*io).state = IoState::IDLE;
        (*io).flags = IoFlags((*from).flags.0 & !(IoFlags::LEND.0 | IoFlags::LENT.0));
        if parent.mode == Mode::Zeroes {
            (*io).flags.0 &= !IoFlags::DEALLOCATE.0;
        }
        (*io).iovs = ptr::null_mut();
        (*io).iovcnt = 0;
        (*io).done = Some(split::child_done);
        (*io).cdw0 = 0;
        (*io).md = ptr::null_mut();
        (*io).ext = ptr::null();
        child.buffer = ptr::null_mut();
        child.at = parent.at;
        child.bytes = 0;
        if !(*from).ext.is_null() {
            child.ext = EMPTY_EXT;
            let known = ((*(*from).ext).size as usize).min(size_of::<IoExtV1>());
            ptr::copy_nonoverlapping((*from).ext.cast::<u8>(), (&raw mut child.ext).cast(), known);
            child.ext.size = size_of::<IoExtV1>() as u32;
            (*io).ext = &raw const child.ext;
        }
    }
}

/// Gives the child the parent's next `blocks`.
unsafe fn set_range(parent: &mut Parent, child: &mut Child, blocks: u64) {
    // SAFETY: as in `start`.
    unsafe {
        let (from, io) = (parent.io, child.io);
        (*io).offset_blocks = (*from).offset_blocks + parent.issued_blocks;
        (*io).num_blocks = blocks;
        parent.issued_blocks += blocks;
    }
}

unsafe fn copy_source(gate: &Gate, parent: &mut Parent, child: &mut Child) {
    // SAFETY: `check` found `ext` and its ranges valid and their sum equal to the parent's blocks.
    unsafe {
        let range = *(*(*parent.io).ext).copy_ranges.add(parent.range_index as usize);
        let limit = u64::from(gate.spec.limits.max_copy_blocks.max(1));
        let blocks = (range.num_blocks - parent.range_offset).min(limit);
        child.source =
            CopyRange { offset_blocks: range.offset_blocks + parent.range_offset, num_blocks: blocks };
        child.ext.copy_ranges = &raw const child.source;
        child.ext.copy_range_count = 1;
        parent.range_offset += blocks;
        if parent.range_offset == range.num_blocks {
            parent.range_index += 1;
            parent.range_offset = 0;
        }
        set_range(parent, child, blocks);
    }
}

/// WRITE of zeroes for a device that has no WRITE_ZEROES.
unsafe fn zeroes(gate: &Gate, parent: &mut Parent, child: &mut Child) -> Built {
    let stride = stride(gate);
    let piece_bytes = PieceRule::new(gate).max_bytes.min(BOUNCE_BYTES);
    let quantum = quantum(gate, Op::WRITE, stride);
    let most_bytes = (piece_bytes as u64).saturating_mul(most_pieces(gate) as u64);
    // SAFETY: the caller's parent is live.
    let blocks = unsafe { room(gate, parent, Op::WRITE) };
    let bytes = (blocks * stride).min(most_bytes) / quantum * quantum;
    if bytes == 0 {
        return Built::Refused(IoStatus::INVALID);
    }
    let mut left = bytes as usize;
    let mut count = 0;
    while left > 0 {
        let len = left.min(piece_bytes);
        child.iovs[count] = IoVec { base: zero_memory().cast_mut().cast(), len };
        left -= len;
        count += 1;
    }
    // SAFETY: as in `start`.
    unsafe {
        set_iovs(child, 0, count);
        set_range(parent, child, bytes / stride);
    }
    Built::Ready
}

/// READ, WRITE or COMPARE of as much as fits, from the parent's memory or through a buffer.
unsafe fn payload(gate: &Gate, parent: &mut Parent, child: &mut Child, buffer: *mut u8) -> Built {
    // SAFETY: the caller's parent and child are live; `check` measured the parent's scatter list.
    unsafe {
        let op = (*parent.io).op;
        let stride = stride(gate);
        let quantum = quantum(gate, op, stride);
        let most_bytes = room(gate, parent, op) * stride;
        let list = List { iovs: (*parent.io).iovs, count: (*parent.io).iovcnt };
        let must_bounce = parent.mode == Mode::CompareRead;
        let direct =
            if must_bounce { 0 } else { list.gather(gate, parent.at, most_bytes, quantum, &mut child.iovs) };
        let bytes = if direct > 0 {
            direct
        } else {
            if buffer.is_null() {
                return Built::NeedsBuffer;
            }
            let bytes = most_bytes.min(bounce_limit(gate)) / quantum * quantum;
            if bytes == 0 {
                return Built::Refused(IoStatus::INVALID);
            }
            child.buffer = buffer;
            bytes
        };
        child.bytes = bytes as usize;
        if child.buffer.is_null() {
            set_iovs(child, 0, count_pieces(&child.iovs, child.bytes));
        } else {
            if op == Op::WRITE || op == Op::COMPARE && !must_bounce {
                list.copy_out_of(parent.at, child.buffer, child.bytes);
            }
            let count = cut_buffer(gate, child.buffer, child.bytes, &mut child.iovs);
            set_iovs(child, 0, count);
            child.ext.memory_key = 0;
        }
        parent.at = list.advance(parent.at, child.bytes);
        set_metadata(gate, parent, child, bytes / stride);
        set_range(parent, child, bytes / stride);
    }
    Built::Ready
}

/// An operation that must stay in one piece, through a buffer.
unsafe fn whole(gate: &Gate, parent: &mut Parent, child: &mut Child, buffer: *mut u8) -> Built {
    if buffer.is_null() {
        return Built::NeedsBuffer;
    }
    // SAFETY: as in `payload`; `check` found that both payloads fit into one buffer.
    unsafe {
        let from = parent.io;
        let io = child.io;
        let list = List { iovs: (*from).iovs, count: (*from).iovcnt };
        child.buffer = buffer;
        child.bytes = list.bytes();
        if split::sends_data(from) {
            list.copy_out_of(Cursor::default(), buffer, child.bytes);
        }
        let (first, second) = child.iovs.split_at_mut(CHILD_IOVS / 2);
        let count = cut_buffer(gate, buffer, child.bytes, first);
        if (*from).op == Op::COMPARE_AND_WRITE {
            let compared = List { iovs: (*(*from).ext).compare_iovs, count: (*(*from).ext).compare_iovcnt };
            let behind = buffer.add(child.bytes);
            compared.copy_out_of(Cursor::default(), behind, child.bytes);
            child.ext.compare_iovcnt = cut_buffer(gate, behind, child.bytes, second) as u32;
            child.ext.compare_iovs = second.as_ptr();
        }
        set_iovs(child, 0, count);
        child.ext.memory_key = 0;
        (*io).md = (*from).md;
        (*io).offset_blocks = (*from).offset_blocks;
        (*io).num_blocks = (*from).num_blocks;
        parent.range_index = 1;
    }
    Built::Ready
}

unsafe fn set_iovs(child: &mut Child, first: usize, count: usize) {
    // SAFETY: the child's I/O is behind it.
    unsafe {
        let io = child.io;
        (*io).iovs = child.iovs[first..].as_mut_ptr();
        (*io).iovcnt = count as u32;
    }
}

/// Separate metadata of the child's blocks.
unsafe fn set_metadata(gate: &Gate, parent: &Parent, child: &mut Child, blocks: u64) {
    // SAFETY: a parent's `md`, if any, has `md_size` bytes for each of its blocks.
    unsafe {
        let (from, io) = (parent.io, child.io);
        let md_size = u64::from(gate.spec.limits.md_size);
        if (*from).md.is_null() || md_size == 0 {
            return;
        }
        (*io).md = (*from).md.byte_add((parent.issued_blocks * md_size) as usize);
        child.ext.md_len = blocks * md_size;
    }
}

/// Blocks the next child may have by the limits on ranges.
unsafe fn room(gate: &Gate, parent: &Parent, op: Op) -> u64 {
    // SAFETY: the caller's parent is live.
    let offset = unsafe { (*parent.io).offset_blocks } + parent.issued_blocks;
    let mut room = parent.remaining();
    if gate.spec.limits.max_transfer_blocks > 0 {
        room = room.min(u64::from(gate.spec.limits.max_transfer_blocks));
    }
    if let Some(boundary) = boundary(gate) {
        room = room.min(boundary - offset % boundary);
    }
    let unit = u64::from(write_unit(gate));
    if op == Op::WRITE && unit > 0 {
        room = room.min(unit);
    }
    // Keeps every product with a block's bytes far from overflow.
    room.min(u64::from(u32::MAX))
}

/// Bytes a child's payload is a multiple of.
fn quantum(gate: &Gate, op: Op, stride: u64) -> u64 {
    if op == Op::WRITE { stride * u64::from(write_unit(gate).max(1)) } else { stride }
}

/// Bytes of payload per block.
fn stride(gate: &Gate) -> u64 {
    let limits = &gate.spec.limits;
    let interleaved = gate.spec.flags.contains(BdevFlags::METADATA_INTERLEAVED);
    u64::from(limits.block_size) + if interleaved { u64::from(limits.md_size) } else { 0 }
}

fn most_pieces(gate: &Gate) -> usize {
    match gate.spec.limits.max_segments {
        0 => CHILD_IOVS,
        segments => CHILD_IOVS.min(segments as usize),
    }
}

/// Bytes that one bounced child can carry on this device.
pub(super) fn bounce_limit(gate: &Gate) -> u64 {
    let rule = PieceRule::new(gate);
    let pieces = most_pieces(gate).min(CHILD_IOVS / 2) as u64;
    if !rule.fits_buffer() {
        return 0;
    }
    (BOUNCE_BYTES as u64).min((rule.max_bytes as u64).saturating_mul(pieces))
}

/// Cuts a buffer into the pieces the device takes; returns how many.
fn cut_buffer(gate: &Gate, buffer: *mut u8, bytes: usize, pieces: &mut [IoVec]) -> usize {
    let most = PieceRule::new(gate).max_bytes;
    let (mut done, mut count) = (0, 0);
    while done < bytes && count < pieces.len() {
        let len = (bytes - done).min(most);
        // SAFETY: `done < bytes`, and the buffer has `bytes`.
        pieces[count] = IoVec { base: unsafe { buffer.add(done) }.cast(), len };
        done += len;
        count += 1;
    }
    count
}

fn count_pieces(pieces: &[IoVec], bytes: usize) -> usize {
    let mut left = bytes;
    pieces
        .iter()
        .take_while(|piece| {
            let is_used = left > 0;
            left = left.saturating_sub(piece.len);
            is_used
        })
        .count()
}

/// A parent's scatter list.
#[derive(Clone, Copy)]
pub(super) struct List {
    pub iovs: *const IoVec,
    pub count: u32,
}

impl List {
    unsafe fn piece(&self, cursor: Cursor) -> IoVec {
        // SAFETY: the caller's cursor is inside the list.
        unsafe {
            let piece = *self.iovs.add(cursor.index as usize);
            IoVec { base: piece.base.byte_add(cursor.offset), len: piece.len - cursor.offset }
        }
    }

    fn step(&self, mut cursor: Cursor, piece: &IoVec, bytes: usize) -> Cursor {
        if bytes == piece.len {
            cursor.index += 1;
            cursor.offset = 0;
        } else {
            cursor.offset += bytes;
        }
        cursor
    }

    unsafe fn bytes(&self) -> usize {
        // SAFETY: the list has `count` pieces.
        (0..self.count as usize).map(|index| unsafe { (*self.iovs.add(index)).len }).sum()
    }

    /// Takes pieces from `cursor` on, as they are, as long as the device takes them; returns their bytes, a
    /// multiple of `quantum` and at most `most_bytes`. The last piece is cut to fit.
    unsafe fn gather(
        &self,
        gate: &Gate,
        mut cursor: Cursor,
        most_bytes: u64,
        quantum: u64,
        pieces: &mut [IoVec; CHILD_IOVS],
    ) -> u64 {
        let rule = PieceRule::new(gate);
        let (mut bytes, mut count) = (0u64, 0);
        while bytes < most_bytes && count < most_pieces(gate) && cursor.index < self.count {
            // SAFETY: the cursor is inside the list, as just checked.
            let whole = unsafe { self.piece(cursor) };
            let left = usize::try_from(most_bytes - bytes).unwrap_or(usize::MAX);
            let piece = IoVec { base: whole.base, len: whole.len.min(rule.max_bytes).min(left) };
            if !rule.is_aligned(&piece) {
                break;
            }
            pieces[count] = piece;
            count += 1;
            bytes += piece.len as u64;
            cursor = self.step(cursor, &whole, piece.len);
        }
        let usable = bytes / quantum * quantum;
        let mut excess = (bytes - usable) as usize;
        while excess > 0 {
            let last = &mut pieces[count - 1];
            let cut = excess.min(last.len);
            last.len -= cut;
            excess -= cut;
            if last.len == 0 {
                count -= 1;
            }
        }
        usable
    }

    pub(super) unsafe fn advance(&self, mut cursor: Cursor, bytes: usize) -> Cursor {
        let mut left = bytes;
        while left > 0 {
            // SAFETY: the caller advances within the list.
            let piece = unsafe { self.piece(cursor) };
            let step = left.min(piece.len);
            cursor = self.step(cursor, &piece, step);
            left -= step;
        }
        cursor
    }

    /// Calls `each` with every stretch of the list's memory in `bytes` from `cursor`, and its offset.
    unsafe fn stretches(
        &self,
        mut cursor: Cursor,
        bytes: usize,
        mut each: impl FnMut(*mut u8, usize, usize),
    ) {
        let mut done = 0;
        while done < bytes {
            // SAFETY: the caller stays within the list.
            let piece = unsafe { self.piece(cursor) };
            let len = piece.len.min(bytes - done);
            each(piece.base.cast(), done, len);
            cursor = self.step(cursor, &piece, len);
            done += len;
        }
    }

    /// Copies payload into a buffer.
    unsafe fn copy_out_of(&self, cursor: Cursor, buffer: *mut u8, bytes: usize) {
        // SAFETY: the payload and the buffer both have `bytes`, and a buffer is nobody's payload.
        unsafe {
            self.stretches(cursor, bytes, |memory, done, len| {
                ptr::copy_nonoverlapping(memory, buffer.add(done), len);
            });
        }
    }

    /// Copies a buffer into the payload.
    pub(super) unsafe fn copy_into(&self, cursor: Cursor, buffer: *const u8, bytes: usize) {
        // SAFETY: as in `copy_out_of`.
        unsafe {
            self.stretches(cursor, bytes, |memory, done, len| {
                ptr::copy_nonoverlapping(buffer.add(done), memory, len);
            });
        }
    }

    /// Whether the payload and a buffer hold the same.
    pub(super) unsafe fn equals(&self, cursor: Cursor, buffer: *const u8, bytes: usize) -> bool {
        let mut is_equal = true;
        // SAFETY: as in `copy_out_of`; both are only read.
        unsafe {
            self.stretches(cursor, bytes, |memory, done, len| {
                is_equal &= std::slice::from_raw_parts(memory, len)
                    == std::slice::from_raw_parts(buffer.add(done), len);
            });
        }
        is_equal
    }
}

/// Memory that is zero and stays so.
fn zero_memory() -> *const u8 {
    struct Zeroes(*mut u8);
    // SAFETY: never written after it was made.
    unsafe impl Send for Zeroes {}
    // SAFETY: as above.
    unsafe impl Sync for Zeroes {}
    static ZEROES: OnceLock<Zeroes> = OnceLock::new();
    ZEROES.get_or_init(|| Zeroes(super::bounce::allocate())).0
}

const EMPTY_EXT: IoExtV1 = IoExtV1 {
    size: size_of::<IoExtV1>() as u32,
    flags: 0,
    nvme_sqe: ptr::null(),
    nvme_cqe: ptr::null_mut(),
    copy_ranges: ptr::null(),
    copy_range_count: 0,
    compare_iovcnt: 0,
    compare_iovs: ptr::null(),
    md_len: 0,
    zone_action: 0,
    reserved: 0,
    memory_key: 0,
};

/// Children per channel; what needs more waits for those in flight.
pub(super) const POOL_CHILDREN: usize = 32;
/// Pieces a child's own scatter list has room for.
pub(super) const CHILD_IOVS: usize = 32;
/// Bytes of a bounce buffer, which is also aligned to as many.
pub(super) const BOUNCE_BYTES: usize = 128 * 1024;

const _: () = assert!(size_of::<Child>().is_multiple_of(64), "the child's I/O behind it is aligned");
