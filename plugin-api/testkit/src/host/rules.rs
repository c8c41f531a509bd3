//! What the gate lets through: one function that decides about one I/O. It
//! holds a device to its declaration, so that a module only sees what it
//! declared.
// UNSAFETY: reads the consumer's I/O and its scatter list.

use tenon_abi::{BdevFlags, BdevIo, IoFlags, IoStatus, Op};

use super::channel::GateChannel;
use super::device::Device;
use super::world::World;

fn has_range(op: Op) -> bool {
    !matches!(
        op,
        Op::FLUSH
            | Op::RESET
            | Op::NVME_ADMIN
            | Op::NVME_IO
            | Op::SEEK_HOLE
            | Op::SEEK_DATA
            | Op::ZONE_MANAGEMENT
            | Op::GET_ZONE_INFO
    )
}

fn has_payload(op: Op) -> bool {
    matches!(op, Op::READ | Op::WRITE | Op::COMPARE | Op::COMPARE_AND_WRITE | Op::ZONE_APPEND)
}

fn changes_the_medium(op: Op) -> bool {
    !matches!(
        op,
        Op::READ
            | Op::FLUSH
            | Op::RESET
            | Op::COMPARE
            | Op::VERIFY
            | Op::GET_ZONE_INFO
            | Op::SEEK_HOLE
            | Op::SEEK_DATA
    )
}

/// Bytes of the payload; `None` if a piece is null or the sum overflows.
///
/// # Safety
/// `io.iovs` has `io.iovcnt` readable pieces, or is null.
unsafe fn payload_bytes(io: &BdevIo) -> Option<u64> {
    if io.iovcnt == 0 {
        return Some(0);
    }
    if io.iovs.is_null() {
        return None;
    }
    // SAFETY: the caller promises the list.
    let pieces = unsafe { std::slice::from_raw_parts(io.iovs, io.iovcnt as usize) };
    pieces.iter().try_fold(0u64, |sum, piece| {
        let is_void = piece.base.is_null() && piece.len > 0;
        if is_void { None } else { sum.checked_add(piece.len as u64) }
    })
}

fn check_range(io: &BdevIo, device: &Device) -> Result<(), IoStatus> {
    let num_blocks = device.limits.get().num_blocks;
    if io.op == Op::SEEK_HOLE || io.op == Op::SEEK_DATA {
        return if io.offset_blocks < num_blocks { Ok(()) } else { Err(IoStatus::LBA_OUT_OF_RANGE) };
    }
    if has_range(io.op) && io.num_blocks == 0 {
        return Err(IoStatus::INVALID);
    }
    match io.offset_blocks.checked_add(io.num_blocks) {
        Some(end) if end <= num_blocks || !has_range(io.op) => Ok(()),
        Some(_) | None => Err(IoStatus::LBA_OUT_OF_RANGE),
    }
}

impl World {
    /// # Safety
    /// `io` is a filled-in I/O whose scatter list is readable.
    pub(crate) unsafe fn check_io(&self, gate: &GateChannel, io: *const BdevIo) -> Result<(), IoStatus> {
        // SAFETY: the caller promises the I/O.
        let io = unsafe { &*io };
        let device = &gate.device;
        if io.op.bit() & device.io_types == 0 {
            return Err(IoStatus::NOT_SUPPORTED);
        }
        if u64::from(io.flags.0 & !IoFlags::HOST.0) & !device.io_flags != 0 {
            return Err(IoStatus::NOT_SUPPORTED);
        }
        if io.flags.contains(IoFlags::LENT) {
            return Err(IoStatus::INVALID);
        }
        let is_read_only = device.flags.get().contains(BdevFlags::READ_ONLY);
        if changes_the_medium(io.op) && (is_read_only || !self.may_write(&gate.descriptor)) {
            return Err(IoStatus::NOT_PERMITTED);
        }
        check_range(io, device)?;
        if has_payload(io.op) {
            // SAFETY: the caller promises the scatter list.
            let bytes = unsafe { payload_bytes(io) };
            let wants_memory = io.op == Op::READ && io.flags.contains(IoFlags::LEND) && io.iovcnt == 0;
            if !wants_memory && bytes != Some(io.num_blocks * device.block_bytes()) {
                return Err(IoStatus::INVALID);
            }
        }
        let unit = u64::from(device.limits.get().write_unit);
        let by_unit = io.op == Op::WRITE && device.flags.get().contains(BdevFlags::SPLIT_ON_WRITE_UNIT);
        if by_unit && (io.offset_blocks % unit != 0 || io.num_blocks % unit != 0) {
            return Err(IoStatus::INVALID);
        }
        Ok(())
    }
}
