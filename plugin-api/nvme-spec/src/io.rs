//! Views of the NVM command set's I/O commands, and the ranges their data holds.
//!
//! Reservation commands are in [`crate::reservation`]. Flush has no fields of
//! its own: it is a bare [`crate::command::Sqe`].

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::{CommandHead, command_view};

/// Read, Write, Compare, Verify, Write Zeroes, Write Uncorrectable.
///
/// NVM Command Set §3.2.1, §3.2.4 to §3.2.8. They share one layout; which bits of `control` and `dsm` count
/// depends on the opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReadWrite {
    /// Fields common to all commands; dwords 2 and 3 hold the upper bits of the storage and reference tags.
    pub head: CommandHead,
    /// Starting LBA.
    pub slba: U64,
    /// Number of Logical Blocks, 0's based.
    pub nlb_z: U16,
    /// Bits 31:16 of command dword 12.
    pub control: IoControl,
    /// Command dword 13: Dataset Management hints, Directive Specific.
    pub dsm: U32,
    /// Initial, or expected initial, Logical Block Reference Tag.
    pub ilbrt: U32,
    /// Logical Block Application Tag.
    pub lbat: U16,
    /// Logical Block Application Tag Mask.
    pub lbatm: U16,
}

command_view!(ReadWrite, slba: 40, nlb_z: 48, control: 50, dsm: 52, ilbrt: 56, lbat: 60, lbatm: 62);

impl ReadWrite {
    /// Number of logical blocks.
    #[must_use]
    pub const fn block_count(&self) -> u32 {
        self.nlb_z.get() as u32 + 1
    }
}

bit_set! {
    /// Bits 31:16 of command dword 12 of I/O commands, shifted down by 16. NVM Command Set §3.2.
    pub struct IoControl(U16 as u16) {
        STC = 1 << 8, "Storage Tag Check";
        DEAC = 1 << 9, "Deallocate, in Write Zeroes";
        PRCHK_REFERENCE = 1 << 10, "Check the reference tag";
        PRCHK_APPLICATION = 1 << 11, "Check the application tag";
        PRCHK_GUARD = 1 << 12, "Check the guard";
        PRACT = 1 << 13, "Protection Information Action: the controller inserts or strips";
        FUA = 1 << 14, "Force Unit Access";
        LR = 1 << 15, "Limited Retry";
    }
}

impl IoControl {
    /// Directive Type, in Write: 0 for none, 1 for streams.
    #[must_use]
    pub const fn dtype(self) -> u8 {
        self.field(4, 4) as u8
    }
}

/// Dataset Management. NVM Command Set §3.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DatasetManagement {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Number of Ranges, 0's based.
    pub nr_z: u8,
    _rsvd41: [u8; 3],
    /// What the ranges are for.
    pub attributes: DsmAttributes,
    _rsvd48: [u8; 16],
}

command_view!(DatasetManagement, nr_z: 40, attributes: 44);

impl DatasetManagement {
    /// Number of ranges in the command's data.
    #[must_use]
    pub const fn range_count(&self) -> usize {
        self.nr_z as usize + 1
    }
}

bit_set! {
    /// Command dword 11 of Dataset Management. NVM Command Set §3.2.3.
    pub struct DsmAttributes(U32 as u32) {
        IDR = 1 << 0, "Integral Dataset for Read";
        IDW = 1 << 1, "Integral Dataset for Write";
        AD = 1 << 2, "Attribute Deallocate";
    }
}

/// Most ranges one Dataset Management command can hold.
pub const DSM_MAX_RANGES: usize = 256;

/// A range of Dataset Management. NVM Command Set §3.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DsmRange {
    /// Context Attributes: hints.
    pub cattr: U32,
    /// Length in logical blocks; not 0's based.
    pub nlb: U32,
    /// Starting LBA.
    pub slba: U64,
}

assert_layout!(DsmRange, 16, cattr: 0, nlb: 4, slba: 8);

/// Copy. NVM Command Set §3.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CopyCommand {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Starting Destination LBA.
    pub sdlba: U64,
    /// Number of Ranges, 0's based.
    pub nr_z: u8,
    /// Descriptor Format in bits 3:0, protection information of the read side in bits 7:4.
    pub format_prinfor: u8,
    /// Bits 31:16 of command dword 12, for the write side.
    pub control: IoControl,
    /// Command dword 13: Directive Specific in bits 31:16.
    pub dspec: U32,
    /// Initial Logical Block Reference Tag of the write side.
    pub ilbrt: U32,
    /// Logical Block Application Tag of the write side.
    pub lbat: U16,
    /// Logical Block Application Tag Mask of the write side.
    pub lbatm: U16,
}

command_view!(CopyCommand, sdlba: 40, nr_z: 48, format_prinfor: 49, control: 50, ilbrt: 56, lbat: 60, lbatm: 62);

impl CopyCommand {
    /// Number of source ranges in the command's data.
    #[must_use]
    pub const fn range_count(&self) -> usize {
        self.nr_z as usize + 1
    }

    /// Descriptor Format: 0 for [`CopyRange`].
    #[must_use]
    pub const fn descriptor_format(&self) -> u8 {
        self.format_prinfor & 0xf
    }

    /// Protection Information of the read side: bit 0 reference tag, 1 application tag, 2 guard, 3 action.
    #[must_use]
    pub const fn prinfor(&self) -> u8 {
        self.format_prinfor >> 4
    }
}

/// A source range of Copy, descriptor format 0h. NVM Command Set §3.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CopyRange {
    _rsvd0: [u8; 8],
    /// Starting LBA.
    pub slba: U64,
    /// Number of Logical Blocks, 0's based.
    pub nlb_z: U16,
    _rsvd18: [u8; 6],
    /// Expected Initial Logical Block Reference Tag.
    pub eilbrt: U32,
    /// Expected Logical Block Application Tag.
    pub elbat: U16,
    /// Expected Logical Block Application Tag Mask.
    pub elbatm: U16,
}

assert_layout!(CopyRange, 32, slba: 8, nlb_z: 16, eilbrt: 24, elbat: 28, elbatm: 30);

impl CopyRange {
    /// Number of logical blocks.
    #[must_use]
    pub const fn block_count(&self) -> u32 {
        self.nlb_z.get() as u32 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Sqe;
    use zerocopy::{FromZeros, IntoBytes};

    #[test]
    fn control_is_the_upper_half_of_dword_12() {
        let mut sqe = Sqe::new_zeroed();
        sqe.cdw12.set(1 << 30 | 1 << 29 | 1 << 25 | 0x1 << 20 | 0x00ff);
        let command: &ReadWrite = sqe.view();
        assert_eq!(command.block_count(), 256);
        assert!(command.control.contains(IoControl::FUA | IoControl::PRACT | IoControl::DEAC));
        assert_eq!(command.control.dtype(), 1);
    }

    #[test]
    fn block_count_does_not_overflow() {
        let mut command = ReadWrite::new_zeroed();
        command.nlb_z.set(u16::MAX);
        assert_eq!(command.block_count(), 65_536);
    }

    #[test]
    fn copy_format_and_read_side_share_a_byte() {
        let mut sqe = Sqe::new_zeroed();
        sqe.cdw12.set(0x0000_5103);
        let copy: &CopyCommand = sqe.view();
        assert_eq!((copy.range_count(), copy.descriptor_format(), copy.prinfor()), (4, 1, 5));
    }

    #[test]
    fn dsm_ranges_are_read_from_a_data_buffer() {
        let mut data = [DsmRange::new_zeroed(); 2];
        data[1].slba.set(77);
        let ranges = <[DsmRange]>::ref_from_bytes(data.as_bytes()).expect("a multiple of 16 bytes");
        assert_eq!(ranges[1].slba.get(), 77);
    }
}
