//! An I/O as a command of the NVM command set. Pure but for what it reads from
//! the I/O.

use nvme_spec::command::Sqe;
use nvme_spec::io::{DatasetManagement, DsmAttributes, DsmRange, IoControl, ReadWrite};
use nvme_spec::opcode::IoOpcode;
use tenon_sdk::{BdevOp, IoFlags, IoStatus};
use zerocopy::{FromZeros, IntoBytes};

/// What of an I/O makes the command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) op: BdevOp,
    pub(crate) flags: IoFlags,
    pub(crate) offset_blocks: u64,
    pub(crate) num_blocks: u64,
}

/// How the payload travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Travels {
    No,
    In,
    Out,
    /// The range of a deallocation.
    Range([u8; 16]),
}

/// The command, and how its payload travels.
#[inline]
pub(crate) fn encode(nsid: u32, wanted: &Wanted) -> Result<([u8; 64], Travels), IoStatus> {
    let (opcode, travels) = match wanted.op {
        BdevOp::Read => (IoOpcode::READ, Travels::In),
        BdevOp::Write => (IoOpcode::WRITE, Travels::Out),
        BdevOp::Compare => (IoOpcode::COMPARE, Travels::Out),
        BdevOp::WriteZeroes => (IoOpcode::WRITE_ZEROES, Travels::No),
        BdevOp::Verify => (IoOpcode::VERIFY, Travels::No),
        BdevOp::WriteUncorrectable => (IoOpcode::WRITE_UNCORRECTABLE, Travels::No),
        BdevOp::Flush => return Ok((flush(nsid), Travels::No)),
        BdevOp::Unmap => return deallocate(nsid, wanted),
        BdevOp::Reset
        | BdevOp::CompareAndWrite
        | BdevOp::Copy
        | BdevOp::NvmeAdmin
        | BdevOp::NvmeIo
        | BdevOp::GetZoneInfo
        | BdevOp::ZoneManagement
        | BdevOp::ZoneAppend
        | BdevOp::SeekHole
        | BdevOp::SeekData => return Err(IoStatus::NOT_SUPPORTED),
    };
    let Some(blocks_z) = wanted.num_blocks.checked_sub(1).and_then(|z| u16::try_from(z).ok()) else {
        return Err(IoStatus::INVALID);
    };
    let mut command = ReadWrite::new_zeroed();
    command.head.opc = opcode.0;
    command.head.nsid.set(nsid);
    command.slba.set(wanted.offset_blocks);
    command.nlb_z.set(blocks_z);
    let mut control = 0;
    if wanted.flags.contains(IoFlags::FUA) {
        control |= IoControl::FUA.get();
    }
    if wanted.op == BdevOp::WriteZeroes && wanted.flags.contains(IoFlags::DEALLOCATE) {
        control |= IoControl::DEAC.get();
    }
    command.control = IoControl::new(control);
    Ok((bytes(&Sqe::from_view(&command)), travels))
}

fn flush(nsid: u32) -> [u8; 64] {
    let mut sqe = Sqe::new_zeroed();
    sqe.opc = IoOpcode::FLUSH.0;
    sqe.nsid.set(nsid);
    bytes(&sqe)
}

fn deallocate(nsid: u32, wanted: &Wanted) -> Result<([u8; 64], Travels), IoStatus> {
    let Ok(blocks) = u32::try_from(wanted.num_blocks) else { return Err(IoStatus::INVALID) };
    let mut command = DatasetManagement::new_zeroed();
    command.head.opc = IoOpcode::DATASET_MANAGEMENT.0;
    command.head.nsid.set(nsid);
    command.attributes = DsmAttributes::AD;
    let mut range = DsmRange::new_zeroed();
    range.nlb.set(blocks);
    range.slba.set(wanted.offset_blocks);
    let mut range_bytes = [0; 16];
    range_bytes.copy_from_slice(range.as_bytes());
    Ok((bytes(&Sqe::from_view(&command)), Travels::Range(range_bytes)))
}

fn bytes(sqe: &Sqe) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes.copy_from_slice(sqe.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    fn wanted(op: BdevOp, flags: u16, offset_blocks: u64, num_blocks: u64) -> Wanted {
        Wanted { op, flags: IoFlags(flags), offset_blocks, num_blocks }
    }

    #[test]
    fn reads_and_writes_carry_their_range_and_flags() {
        let (sqe, travels) = encode(7, &wanted(BdevOp::Write, IoFlags::FUA.0, 1 << 33, 65_536)).unwrap();
        let sqe = Sqe::read_from_bytes(&sqe[..]).unwrap();
        let write: &ReadWrite = sqe.view();
        assert_eq!((sqe.opc, sqe.nsid.get(), travels), (IoOpcode::WRITE.0, 7, Travels::Out));
        assert_eq!((write.slba.get(), write.block_count()), (1 << 33, 65_536));
        assert!(write.control.contains(IoControl::FUA) && !write.control.contains(IoControl::DEAC));
        assert_eq!(encode(7, &wanted(BdevOp::Read, 0, 0, 65_537)), Err(IoStatus::INVALID));
        assert_eq!(encode(7, &wanted(BdevOp::Read, 0, 0, 0)), Err(IoStatus::INVALID));
    }

    #[test]
    fn an_unmap_is_one_deallocated_range() {
        let (sqe, travels) = encode(1, &wanted(BdevOp::Unmap, 0, 8, 4)).unwrap();
        assert_eq!(sqe[0], IoOpcode::DATASET_MANAGEMENT.0);
        let Travels::Range(range) = travels else { panic!("{travels:?}") };
        let range = DsmRange::read_from_bytes(&range[..]).unwrap();
        assert_eq!((range.slba.get(), range.nlb.get()), (8, 4));
    }
}
