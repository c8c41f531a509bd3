//! Splitting and bouncing: an I/O that a device's limits do not allow as it is
//! reaches the module as several children, or through buffers of the host.
//! Also lends memory of the host where the module lends none.
// UNSAFETY: owns the children's memory and copies between scatter lists.

use std::ffi::c_void;
use std::rc::Rc;

use tenon_abi::{BDEV_IO_SIZE, BdevFlags, BdevIo, IoFlags, IoState, IoStatus, IoVec, Limits, Op};

use super::device::Device;
use super::flight::{Flight, FlightState};
use super::memory::RawBuf;
use super::world::{self, World};

/// A part of the parent's range.
#[derive(Clone, Copy)]
struct Part {
    offset_blocks: u64,
    num_blocks: u64,
}

struct Child {
    memory: RawBuf,
    iovs: Box<[IoVec]>,
    bounce: Option<RawBuf>,
    part: Part,
    cookie: u64,
}

/// The children of one flight.
pub(crate) struct Reshape {
    children: Vec<Child>,
    remaining: usize,
    status: IoStatus,
    lent: Option<(RawBuf, Box<[IoVec]>)>,
}

fn carries_data(op: Op) -> bool {
    matches!(op, Op::READ | Op::WRITE | Op::COMPARE)
}

/// Largest number of blocks of one child that starts at `offset_blocks`.
fn longest_part(op: Op, flags: BdevFlags, limits: &Limits, block: u64, offset_blocks: u64) -> u64 {
    let mut longest = u64::MAX;
    let mut limit = |blocks: u64| {
        if blocks > 0 {
            longest = longest.min(blocks);
        }
    };
    if carries_data(op) {
        limit(limits.max_transfer_blocks.into());
        let bytes = u64::from(limits.max_segments) * u64::from(limits.max_segment_bytes);
        limit((bytes / block).max(u64::from(bytes > 0)));
        let to_next = |unit: u32| u64::from(unit) - offset_blocks % u64::from(unit);
        if op != Op::COMPARE && flags.contains(BdevFlags::SPLIT_ON_BOUNDARY) {
            limit(to_next(limits.optimal_io_boundary));
        }
        if op == Op::WRITE && flags.contains(BdevFlags::SPLIT_ON_WRITE_UNIT) {
            limit(to_next(limits.write_unit));
        }
    }
    if op == Op::UNMAP {
        limit(limits.max_unmap_blocks.into());
    }
    if op == Op::WRITE_ZEROES {
        limit(limits.max_write_zeroes_blocks.into());
    }
    longest
}

fn parts_of(op: Op, device: &Device, offset_blocks: u64, num_blocks: u64) -> Vec<Part> {
    let (limits, flags) = (device.limits.get(), device.flags.get());
    let (mut at, end) = (offset_blocks, offset_blocks + num_blocks);
    let mut parts = Vec::new();
    while at < end {
        let longest = longest_part(op, flags, &limits, device.block_bytes(), at);
        let num_blocks = longest.min(end - at);
        parts.push(Part { offset_blocks: at, num_blocks });
        at += num_blocks;
    }
    parts
}

/// True if the module cannot take these pieces as they are.
fn needs_bounce(limits: &Limits, pieces: &[IoVec]) -> bool {
    let align = limits.required_alignment.max(1) as usize;
    let too_many = limits.max_segments > 0 && pieces.len() > limits.max_segments as usize;
    let is_wrong = |piece: &IoVec| {
        !(piece.base as usize).is_multiple_of(align)
            || !piece.len.is_multiple_of(align)
            || (limits.max_segment_bytes > 0 && piece.len > limits.max_segment_bytes as usize)
    };
    too_many || pieces.iter().any(is_wrong)
}

/// The pieces of `len` bytes from byte `skip` of a scatter list.
fn slice_of(pieces: &[IoVec], mut skip: usize, mut len: usize) -> Vec<IoVec> {
    let mut out = Vec::new();
    for piece in pieces {
        if skip >= piece.len {
            skip -= piece.len;
            continue;
        }
        let take = (piece.len - skip).min(len);
        // SAFETY: `skip` is inside the piece, as just checked.
        let base = unsafe { piece.base.cast::<u8>().add(skip).cast() };
        if take > 0 {
            out.push(IoVec { base, len: take });
        }
        len -= take;
        skip = 0;
    }
    out
}

/// Copies between a buffer and a scatter list.
fn copy(buffer: &RawBuf, pieces: &[IoVec], into_pieces: bool) {
    let mut at = 0;
    for piece in pieces {
        let (mine, theirs) = (buffer.at(at), piece.base.cast::<u8>());
        assert!(at + piece.len <= buffer.len(), "bounce buffer: shorter than its list");
        // SAFETY: both ranges are inside their memory, as just checked, and separate.
        unsafe {
            match into_pieces {
                true => theirs.copy_from_nonoverlapping(mine, piece.len),
                false => mine.copy_from_nonoverlapping(theirs, piece.len),
            }
        }
        at += piece.len;
    }
}

/// A list of pieces within a contiguous buffer.
fn segments(buffer: &RawBuf, len: usize, limits: &Limits) -> Vec<IoVec> {
    let most = if limits.max_segment_bytes > 0 { limits.max_segment_bytes as usize } else { len.max(1) };
    let starts = (0..len).step_by(most);
    starts.map(|at| IoVec { base: buffer.at(at).cast(), len: most.min(len - at) }).collect()
}

/// # Safety
/// `flight` is live, with a readable scatter list.
unsafe fn pieces_of(flight: &Flight) -> &[IoVec] {
    let wanted = &flight.wanted;
    if wanted.iovs.is_null() || wanted.iovcnt == 0 {
        return &[];
    }
    // SAFETY: the caller promises the list.
    unsafe { std::slice::from_raw_parts(wanted.iovs, wanted.iovcnt as usize) }
}

unsafe extern "C" fn child_done(io: *mut BdevIo, arg: *mut c_void) {
    let Some(world) = world::current() else { return };
    if let Some(parent) = world.flights.get(arg as u64) {
        // SAFETY: the child is ours again; its status is valid in `done`.
        world.child_landed(parent, unsafe { (*io).status });
    }
}

impl World {
    pub(crate) fn needs_reshape(&self, flight: &Flight) -> bool {
        // SAFETY: channels live as long as the world; the consumer's list is readable until `done`.
        let (device, pieces) = unsafe { (&(*flight.channel).device, pieces_of(flight)) };
        let wanted = &flight.wanted;
        let limits = device.limits.get();
        if !carries_data(wanted.op) && wanted.op != Op::UNMAP && wanted.op != Op::WRITE_ZEROES {
            return false;
        }
        let lends = device.io_flags & u64::from(IoFlags::LEND.0) != 0;
        let wants_memory = wanted.op == Op::READ && wanted.iovcnt == 0;
        let longest =
            longest_part(wanted.op, device.flags.get(), &limits, device.block_bytes(), wanted.offset_blocks);
        wanted.num_blocks > longest || (wants_memory && !lends) || needs_bounce(&limits, pieces)
    }

    /// Sends the I/O as children if it must be; false if it may go as it is.
    pub(crate) fn reshape(self: &Rc<World>, flight: *mut Flight) -> bool {
        // SAFETY: the flight is live, as are channels; the consumer's list is readable until `done`.
        let (found, device) = unsafe { (&*flight, Rc::clone(&(*(*flight).channel).device)) };
        if !self.needs_reshape(found) {
            return false;
        }
        let (wanted, block) = (found.wanted, device.block_bytes() as usize);
        let len = wanted.num_blocks as usize * block;
        let wants_memory = wanted.op == Op::READ && wanted.iovcnt == 0;
        let lent = wants_memory.then(|| RawBuf::new(len, BOUNCE_ALIGN, 0)).flatten();
        if wants_memory && lent.is_none() {
            self.finish(flight, IoStatus::NOMEM);
            return true;
        }
        let lent = lent.map(|buffer| {
            let list: Box<[IoVec]> = Box::new([IoVec { base: buffer.at(0).cast(), len }]);
            (buffer, list)
        });
        let parts = parts_of(wanted.op, &device, wanted.offset_blocks, wanted.num_blocks);
        let children: Vec<Child> = {
            // SAFETY: as above.
            let pieces = lent.as_ref().map_or(unsafe { pieces_of(found) }, |(_, list)| list);
            parts.into_iter().filter_map(|part| self.make_child(found, &device, part, pieces)).collect()
        };
        found.state.set(FlightState::Reshaped);
        let ios: Vec<*mut BdevIo> = children.iter().map(|child| child.memory.at(0).cast()).collect();
        let remaining = children.len();
        let reshape = Reshape { children, remaining, status: IoStatus::SUCCESS, lent };
        *found.reshape.borrow_mut() = Some(reshape);
        let mut admitted = Vec::new();
        for (nth, io) in ios.into_iter().enumerate() {
            // SAFETY: the child is filled in, and its memory stays until the parent is over.
            let child = unsafe { self.start_flight(found.gate, io, true) };
            if let Some(reshape) = found.reshape.borrow_mut().as_mut() {
                // SAFETY: it is live.
                reshape.children[nth].cookie = unsafe { (*child).cookie };
            }
            admitted.push(child);
        }
        admitted.into_iter().for_each(|child| self.dispatch(child));
        true
    }

    fn make_child(&self, parent: &Flight, device: &Device, part: Part, pieces: &[IoVec]) -> Option<Child> {
        let (wanted, limits, block) = (&parent.wanted, device.limits.get(), device.block_bytes() as usize);
        let skipped = part.offset_blocks - wanted.offset_blocks;
        let (skip, len) = (skipped as usize * block, part.num_blocks as usize * block);
        let mut iovs = if carries_data(wanted.op) { slice_of(pieces, skip, len) } else { Vec::new() };
        let bounce = if needs_bounce(&limits, &iovs) {
            let align = (limits.required_alignment as usize).max(BOUNCE_ALIGN);
            let buffer = RawBuf::new(len, align, 0)?;
            if wanted.op != Op::READ {
                copy(&buffer, &iovs, false);
            }
            iovs = segments(&buffer, len, &limits);
            Some(buffer)
        } else {
            None
        };
        let mut iovs = iovs.into_boxed_slice();
        // SAFETY: the channel is live; the parent's I/O is the host's.
        let (ctx_size, md, ext) = unsafe {
            let io = &*parent.io;
            let md = if io.md.is_null() {
                io.md
            } else {
                io.md.cast::<u8>().add(skipped as usize * limits.md_size as usize).cast()
            };
            ((*(*parent.channel).face.get()).io_ctx_size, md, io.ext)
        };
        let memory = RawBuf::new(BDEV_IO_SIZE + ctx_size as usize + SPARE_CONTEXT, 64, 0)?;
        let filled = BdevIo {
            op: wanted.op,
            state: IoState::IDLE,
            flags: IoFlags(wanted.flags.0 & !IoFlags::LEND.0),
            iovcnt: iovs.len() as u32,
            iovs: if iovs.is_empty() { std::ptr::null_mut() } else { iovs.as_mut_ptr() },
            offset_blocks: part.offset_blocks,
            num_blocks: part.num_blocks,
            done: Some(child_done),
            done_arg: parent.cookie as *mut c_void,
            ch: std::ptr::null_mut(),
            status: IoStatus::SUCCESS,
            cdw0: 0,
            md,
            ext,
            link: std::ptr::null_mut(),
            submit_ticks: 0,
            inline_iov: IoVec::EMPTY,
            host: [std::ptr::null_mut(); 2],
        };
        // SAFETY: fresh memory of that size and alignment.
        unsafe { memory.at(0).cast::<BdevIo>().write(filled) };
        Some(Child { memory, iovs, bounce, part, cookie: 0 })
    }

    pub(crate) fn children_of(&self, parent: &Flight) -> Vec<*mut Flight> {
        let reshape = parent.reshape.borrow();
        let children = reshape.iter().flat_map(|reshape| &reshape.children);
        children.filter_map(|child| self.flights.get(child.cookie)).collect()
    }

    fn child_landed(self: &Rc<World>, parent: *mut Flight, status: IoStatus) {
        // SAFETY: the parent is live while its children are.
        let found = unsafe { &*parent };
        {
            let mut slot = found.reshape.borrow_mut();
            let Some(reshape) = slot.as_mut() else { return };
            reshape.remaining -= 1;
            if reshape.status.is_success() {
                reshape.status = status;
            }
            if reshape.remaining > 0 {
                return;
            }
        }
        self.assemble(parent);
    }

    /// All children are back: the parent's data and result.
    fn assemble(self: &Rc<World>, parent: *mut Flight) {
        // SAFETY: the parent is live, and its I/O is with the host.
        let found = unsafe { &*parent };
        let Some(mut reshape) = found.reshape.borrow_mut().take() else { return };
        // SAFETY: channels live as long as the world; the consumer's list is readable until `done`.
        let (device, own) = unsafe { (&(*found.channel).device, pieces_of(found)) };
        let block = device.block_bytes() as usize;
        let status = reshape.status;
        if found.wanted.op == Op::READ && status.is_success() {
            for child in &reshape.children {
                let Some(bounce) = &child.bounce else { continue };
                let skip = (child.part.offset_blocks - found.wanted.offset_blocks) as usize * block;
                let pieces = reshape.lent.as_ref().map_or(own, |(_, list)| list);
                copy(bounce, &slice_of(pieces, skip, child.part.num_blocks as usize * block), true);
            }
        }
        // The children are over; only lent memory has to stay.
        reshape.children.iter_mut().for_each(|child| child.iovs = Box::default());
        match reshape.lent.as_mut() {
            Some((_, list)) if status.is_success() => {
                // SAFETY: as above; the list lives in the flight until the consumer returns it.
                unsafe {
                    (*found.io).iovs = list.as_mut_ptr();
                    (*found.io).iovcnt = 1;
                }
                reshape.children = Vec::new();
                *found.reshape.borrow_mut() = Some(reshape);
                self.lend(parent);
            }
            Some(_) | None => self.finish(parent, status),
        }
    }
}

const BOUNCE_ALIGN: usize = 4096;
/// Keeps a module that uses more context than it declared from damaging the test; the consumer's own I/Os tell.
const SPARE_CONTEXT: usize = 256;
