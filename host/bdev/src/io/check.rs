//! What a request must be to reach a module, and how it gets there: whole, cut, or not at all.
//!
//! [`is_quick`] is the fast path's first test, with the fewest compares for the usual READ and WRITE: one piece, no
//! flags. [`is_plain`] is its second, and passes nearly every READ and WRITE.
//! [`check`] is complete and decides about the rest. Rules beyond the ABI's text: a READ or WRITE of no
//! blocks is INVALID, as is a piece of no bytes or without memory; a READ with LEND and no memory
//! is NOT_SUPPORTED where the module cannot lend for it, and is to be sent again with memory.
//!
//! # Safety
//! Every private unsafe function takes a request whose lists and arguments are valid as far as they say.
// UNSAFETY: follows the scatter lists and arguments of I/Os.

use tenon_abi::{BdevFlags, BdevIo, CopyRange, IoExtV1, IoFlags, IoStatus, IoVec, Op, reaches};

use super::channel::{Consumer, passed_flags};
use super::child::{BOUNCE_BYTES, bounce_limit};
use super::gate::Gate;
use super::split::Mode;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Goes to the module as it is.
    Plain,
    /// Goes as children.
    Split(Mode),
    /// Goes to `compare_write`.
    Exclusive,
    /// Goes to `reset`.
    Reset,
    /// Goes nowhere.
    Fail(IoStatus),
}

/// Whether `io` is a READ or WRITE in one piece and without flags that can go to the module as it is. False is no
/// verdict: [`is_plain`] asks for more.
///
/// # Safety
/// As for [`is_plain`].
#[inline(always)]
pub(super) unsafe fn is_quick(c: *const Consumer, io: *const BdevIo) -> bool {
    const READ: u64 = BdevIo::head(Op::READ, IoFlags::NONE, 1);
    const WRITE: u64 = BdevIo::head(Op::WRITE, IoFlags::NONE, 1);
    // SAFETY: as for `is_plain`.
    unsafe {
        let head = BdevIo::get_head(io);
        if head != READ && head != WRITE {
            return false;
        }
        let (offset, blocks) = ((*io).offset_blocks, (*io).num_blocks);
        // As in `is_plain`; the limit is 0 where that one has more to look at.
        blocks.wrapping_sub(1) < (*c).quick_blocks[usize::from(head == WRITE)]
            && offset <= (*c).num_blocks
            && blocks <= (*c).num_blocks - offset
            && is_one_piece((*io).iovs, blocks, c)
    }
}

/// Whether `io` can go to the module as it is. False is no verdict: [`check`] knows.
///
/// # Safety
/// Both are live; what `io` points to is valid.
#[inline(always)]
pub(super) unsafe fn is_plain(c: *const Consumer, io: *const BdevIo) -> bool {
    // SAFETY: the caller promises live objects; `iovs` is followed only if it says it has a piece.
    unsafe {
        let op = (*io).op.0 as usize;
        if op > Op::WRITE.0 as usize {
            return false;
        }
        let limits = &(*c).fast[op];
        let (offset, blocks) = ((*io).offset_blocks, (*io).num_blocks);
        // `blocks - 1` refuses 0 as well; with `max_blocks` below 2^32 nothing below overflows.
        let in_limits = blocks.wrapping_sub(1) < limits.max_blocks
            && (*io).flags.0 & limits.refused_flags == 0
            && offset <= (*c).num_blocks
            && blocks <= (*c).num_blocks - offset
            && (offset & limits.boundary_mask) + blocks <= limits.boundary;
        if !in_limits {
            return false;
        }
        if (*io).iovcnt != 1 {
            return (*io).iovcnt == 0 && op == Op::READ.0 as usize && (*io).flags.contains(IoFlags::LEND);
        }
        is_one_piece((*io).iovs, blocks, c)
    }
}

/// Whether `iov` is a piece for so many blocks, where the module can use it.
#[inline(always)]
unsafe fn is_one_piece(iov: *const IoVec, blocks: u64, c: *const Consumer) -> bool {
    // SAFETY: the caller's request says that it has a piece.
    unsafe {
        !iov.is_null()
            && (*iov).len as u64 == blocks * (*c).stride
            && !(*iov).base.is_null()
            && (*iov).base.addr() & (*c).align_mask == 0
    }
}

/// What becomes of `io`. Takes flags off that are the gate's own and not for this module.
///
/// # Safety
/// As for [`is_plain`].
pub(super) unsafe fn check(c: *const Consumer, io: *mut BdevIo) -> Verdict {
    // SAFETY: the caller promises live objects; the references end with this function, which calls
    // nobody else's code.
    let (c, io) = unsafe { (&*c, &mut *io) };
    // SAFETY: a consumer's module channel outlives it.
    let gate: &Gate = unsafe { &(*c.module).gate };
    if io.op == Op::RESET {
        return Verdict::Reset;
    }
    if c.allowed & io.op.bit() == 0 {
        let is_known = gate.io_types() & io.op.bit() != 0;
        return Verdict::Fail(if is_known { IoStatus::NOT_PERMITTED } else { IoStatus::NOT_SUPPORTED });
    }
    io.flags.0 &= !IoFlags::LENT.0;
    if io.op != Op::READ || !gate.understands(IoFlags::LEND) {
        if io.op == Op::READ && io.flags.contains(IoFlags::LEND) && io.iovcnt == 0 {
            return Verdict::Fail(IoStatus::NOT_SUPPORTED);
        }
        io.flags.0 &= !IoFlags::LEND.0;
    }
    if io.flags.0 & !passed_flags(gate) != 0 {
        return Verdict::Fail(IoStatus::NOT_SUPPORTED);
    }
    // SAFETY: as promised by the caller.
    let verdict = unsafe { by_kind(c, gate, io) };
    verdict.unwrap_or_else(Verdict::Fail)
}

/// The groups of operations that are checked alike.
enum Kind {
    Data,
    Range,
    Copy,
    Flush,
    Position,
    Command,
}

fn kind(op: Op) -> Option<Kind> {
    Some(match op {
        Op::READ | Op::WRITE | Op::COMPARE | Op::COMPARE_AND_WRITE | Op::ZONE_APPEND => Kind::Data,
        Op::UNMAP | Op::WRITE_ZEROES | Op::VERIFY | Op::WRITE_UNCORRECTABLE => Kind::Range,
        Op::COPY => Kind::Copy,
        Op::FLUSH => Kind::Flush,
        Op::SEEK_HOLE | Op::SEEK_DATA | Op::ZONE_MANAGEMENT => Kind::Position,
        Op::NVME_ADMIN | Op::NVME_IO | Op::GET_ZONE_INFO => Kind::Command,
        _ => return None,
    })
}

unsafe fn by_kind(c: &Consumer, gate: &Gate, io: &BdevIo) -> Result<Verdict, IoStatus> {
    let limits = &gate.spec.limits;
    // SAFETY: the caller promises a valid request.
    unsafe {
        match kind(io.op).ok_or(IoStatus::NOT_SUPPORTED)? {
            Kind::Data => data(c, gate, io),
            Kind::Range => {
                in_range(c, io)?;
                let limit = match io.op {
                    Op::UNMAP => limits.max_unmap_blocks,
                    Op::WRITE_ZEROES if !gate.declares(Op::WRITE_ZEROES) => {
                        whole_units(gate, io)?;
                        return Ok(Verdict::Split(Mode::Zeroes));
                    }
                    Op::WRITE_ZEROES => limits.max_write_zeroes_blocks,
                    _ => 0,
                };
                Ok(unless(exceeds(io.num_blocks, limit), Mode::Range))
            }
            Kind::Copy => {
                in_range(c, io)?;
                copy_sources(c, io)?;
                Ok(unless(exceeds(io.num_blocks, limits.max_copy_blocks), Mode::Copy))
            }
            Kind::Flush => {
                if io.num_blocks > 0 {
                    in_range(c, io)?;
                }
                Ok(Verdict::Plain)
            }
            Kind::Position if io.offset_blocks >= c.num_blocks => Err(IoStatus::LBA_OUT_OF_RANGE),
            Kind::Position => Ok(Verdict::Plain),
            Kind::Command => {
                let payload = Payload::measure(gate, io.iovs, io.iovcnt)?;
                whole(gate, &payload, payload.bytes)
            }
        }
    }
}

unsafe fn data(c: &Consumer, gate: &Gate, io: &BdevIo) -> Result<Verdict, IoStatus> {
    in_range(c, io)?;
    let limits = &gate.spec.limits;
    let crosses = crosses_boundary(gate, io.offset_blocks, io.num_blocks);
    let too_large = exceeds(io.num_blocks, limits.max_transfer_blocks) || crosses;
    if io.flags.contains(IoFlags::LEND) && io.iovcnt == 0 {
        return if too_large { Err(IoStatus::NOT_SUPPORTED) } else { Ok(Verdict::Plain) };
    }
    // SAFETY: the caller promises a valid scatter list.
    let payload = unsafe { Payload::measure(gate, io.iovs, io.iovcnt)? };
    let bytes = io.num_blocks.checked_mul(c.stride).ok_or(IoStatus::INVALID)?;
    if payload.bytes != bytes {
        return Err(IoStatus::INVALID);
    }
    match io.op {
        Op::WRITE => {
            whole_units(gate, io)?;
            let unit = write_unit(gate);
            Ok(unless(too_large || exceeds(io.num_blocks, unit) || !payload.fits, Mode::Payload))
        }
        Op::COMPARE if !gate.declares(Op::COMPARE) => Ok(Verdict::Split(Mode::CompareRead)),
        Op::COMPARE_AND_WRITE => {
            // SAFETY: as above.
            let compared = unsafe { compared_payload(gate, io)? };
            let too_wide = exceeds(io.num_blocks, limits.atomic_compare_write_blocks);
            if compared.bytes != bytes || too_wide {
                return Err(IoStatus::INVALID);
            }
            if !gate.declares(Op::COMPARE_AND_WRITE) {
                whole_units(gate, io)?;
                // Separate metadata would have to be compared and written as well.
                return if io.md.is_null() { Ok(Verdict::Exclusive) } else { Err(IoStatus::NOT_SUPPORTED) };
            }
            if too_large {
                return Err(IoStatus::INVALID);
            }
            let both = Payload { bytes, fits: payload.fits && compared.fits };
            whole(gate, &both, bytes * 2)
        }
        Op::ZONE_APPEND if too_large => Err(IoStatus::INVALID),
        Op::ZONE_APPEND => whole(gate, &payload, bytes),
        _ => Ok(unless(too_large || !payload.fits, Mode::Payload)),
    }
}

/// An operation that cannot be cut, only bounced, and only if its payload fits into one buffer.
fn whole(gate: &Gate, payload: &Payload, bounced_bytes: u64) -> Result<Verdict, IoStatus> {
    if payload.fits {
        return Ok(Verdict::Plain);
    }
    let can_bounce = bounced_bytes <= bounce_limit(gate);
    if can_bounce { Ok(Verdict::Split(Mode::Whole)) } else { Err(IoStatus::INVALID) }
}

fn unless(must_split: bool, mode: Mode) -> Verdict {
    if must_split { Verdict::Split(mode) } else { Verdict::Plain }
}

/// A limit of 0 is none.
fn exceeds(blocks: u64, limit: u32) -> bool {
    limit != 0 && blocks > u64::from(limit)
}

fn in_range(c: &Consumer, io: &BdevIo) -> Result<(), IoStatus> {
    if io.num_blocks == 0 {
        return Err(IoStatus::INVALID);
    }
    let fits = io.offset_blocks <= c.num_blocks && io.num_blocks <= c.num_blocks - io.offset_blocks;
    if fits { Ok(()) } else { Err(IoStatus::LBA_OUT_OF_RANGE) }
}

fn crosses_boundary(gate: &Gate, offset: u64, blocks: u64) -> bool {
    boundary(gate).is_some_and(|boundary| offset % boundary + blocks > boundary)
}

/// The boundary in blocks that READ and WRITE must not cross.
pub(super) fn boundary(gate: &Gate) -> Option<u64> {
    let boundary = u64::from(gate.spec.limits.optimal_io_boundary);
    (gate.spec.flags.contains(BdevFlags::SPLIT_ON_BOUNDARY) && boundary > 0).then_some(boundary)
}

/// The blocks every WRITE must have, or 0 for any.
pub(super) fn write_unit(gate: &Gate) -> u32 {
    if gate.spec.flags.contains(BdevFlags::SPLIT_ON_WRITE_UNIT) { gate.spec.limits.write_unit } else { 0 }
}

fn whole_units(gate: &Gate, io: &BdevIo) -> Result<(), IoStatus> {
    let unit = u64::from(write_unit(gate));
    if unit > 0 && !(io.offset_blocks.is_multiple_of(unit) && io.num_blocks.is_multiple_of(unit)) {
        return Err(IoStatus::INVALID);
    }
    Ok(())
}

/// A scatter list, measured.
struct Payload {
    bytes: u64,
    /// The module takes it as it is.
    fits: bool,
}

impl Payload {
    unsafe fn measure(gate: &Gate, iovs: *const IoVec, count: u32) -> Result<Payload, IoStatus> {
        if count == 0 {
            return Ok(Payload { bytes: 0, fits: true });
        }
        if iovs.is_null() {
            return Err(IoStatus::INVALID);
        }
        let limits = &gate.spec.limits;
        let rule = PieceRule::new(gate);
        // SAFETY: the caller promises `count` pieces at the non-null `iovs`.
        let pieces = unsafe { std::slice::from_raw_parts(iovs, count as usize) };
        let mut payload =
            Payload { bytes: 0, fits: limits.max_segments == 0 || count <= limits.max_segments };
        for piece in pieces {
            if piece.base.is_null() || piece.len == 0 {
                return Err(IoStatus::INVALID);
            }
            payload.bytes = payload.bytes.checked_add(piece.len as u64).ok_or(IoStatus::INVALID)?;
            payload.fits &= rule.is_aligned(piece) && piece.len <= rule.max_bytes;
        }
        Ok(payload)
    }
}

/// What one piece of a payload must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct PieceRule {
    base_mask: usize,
    len_mask: usize,
    pub max_bytes: usize,
}

impl PieceRule {
    pub(super) fn new(gate: &Gate) -> Self {
        let limits = &gate.spec.limits;
        let alignment = limits.required_alignment.max(1) as usize;
        let interleaved = gate.spec.flags.contains(BdevFlags::METADATA_INTERLEAVED);
        Self {
            base_mask: alignment - 1,
            // A device that wants aligned memory transfers whole sectors from each piece, unless its
            // blocks are no multiple of one.
            len_mask: if interleaved { 0 } else { alignment.min(limits.block_size as usize) - 1 },
            max_bytes: match limits.max_segment_bytes as usize {
                0 => usize::MAX,
                bytes if bytes >= alignment => bytes & !(alignment - 1),
                bytes => bytes,
            },
        }
    }

    /// Whether a bounce buffer can be cut into pieces that keep to the rule.
    pub(super) fn fits_buffer(&self) -> bool {
        self.base_mask < BOUNCE_BYTES
            && (self.max_bytes == usize::MAX || self.max_bytes & self.base_mask == 0)
    }

    pub(super) fn is_aligned(&self, piece: &IoVec) -> bool {
        piece.base.addr() & self.base_mask == 0 && piece.len & self.len_mask == 0
    }
}

unsafe fn compared_payload(gate: &Gate, io: &BdevIo) -> Result<Payload, IoStatus> {
    // SAFETY: the caller promises that `ext` is null or valid as far as it says.
    unsafe {
        let reach = std::mem::offset_of!(IoExtV1, compare_iovs) + size_of::<usize>();
        if io.ext.is_null() || !reaches((*io.ext).size, reach) {
            return Err(IoStatus::INVALID);
        }
        Payload::measure(gate, (*io.ext).compare_iovs, (*io.ext).compare_iovcnt)
    }
}

unsafe fn copy_sources(c: &Consumer, io: &BdevIo) -> Result<(), IoStatus> {
    // SAFETY: the caller promises that `ext` is null or valid as far as it says.
    let ranges = unsafe {
        let reach = std::mem::offset_of!(IoExtV1, copy_range_count) + size_of::<u32>();
        if io.ext.is_null() || !reaches((*io.ext).size, reach) || (*io.ext).copy_ranges.is_null() {
            return Err(IoStatus::INVALID);
        }
        std::slice::from_raw_parts::<CopyRange>((*io.ext).copy_ranges, (*io.ext).copy_range_count as usize)
    };
    let mut blocks = 0u64;
    for range in ranges {
        if range.num_blocks == 0 {
            return Err(IoStatus::INVALID);
        }
        let fits =
            range.offset_blocks <= c.num_blocks && range.num_blocks <= c.num_blocks - range.offset_blocks;
        if !fits {
            return Err(IoStatus::LBA_OUT_OF_RANGE);
        }
        blocks = blocks.checked_add(range.num_blocks).ok_or(IoStatus::INVALID)?;
    }
    if blocks == io.num_blocks { Ok(()) } else { Err(IoStatus::INVALID) }
}
