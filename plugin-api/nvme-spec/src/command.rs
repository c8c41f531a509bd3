//! The submission queue entry and the view of it that each command defines.
//!
//! [`Sqe`] is what travels; the per-command structures in [`crate::admin`],
//! [`crate::io`], [`crate::reservation`] and [`crate::fabrics`] are 64-byte
//! overlays of it, reached by [`Sqe::view`]. A view says how bytes are laid
//! out, not that the opcode fits: the caller has looked at that already.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::opcode::{FABRICS, FabricsType};
use crate::sgl::{DataPointer, Psdt};

/// Size of a submission queue entry: 2 to the power of [`SQES_LOG2`].
pub const SQE_SIZE: usize = 64;

/// The submission queue entry size as CC.IOSQES and Identify's SQES tell it.
pub const SQES_LOG2: u8 = 6;

/// The namespace identifier that means all namespaces. Base 2.0c §3.2.1.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// Highest namespace identifier a namespace may have. Base 2.0c §3.2.1.
pub const NSID_MAX: u32 = 0xffff_fffe;

/// The command identifier no command may have: it marks an error that belongs to no command.
pub const CID_NONE: u16 = 0xffff;

/// A submission queue entry. Base 2.0c §3.3.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sqe {
    /// Opcode.
    pub opc: u8,
    /// Fused operation and data pointer selection.
    pub flags: CommandFlags,
    /// Command identifier.
    pub cid: U16,
    /// Namespace identifier.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata pointer.
    pub mptr: U64,
    /// Data pointer: two PRP entries or one SGL descriptor.
    pub dptr: DataPointer,
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}

assert_layout!(
    Sqe,
    SQE_SIZE,
    cid: 2, nsid: 4, cdw2: 8, cdw3: 12, mptr: 16, dptr: 24, cdw10: 40, cdw11: 44, cdw12: 48, cdw13: 52, cdw14: 56, cdw15: 60
);

impl Sqe {
    /// This entry through a command's own field names.
    #[must_use]
    pub fn view<C: CommandView>(&self) -> &C {
        C::ref_from_bytes(self.as_bytes())
            .expect("CommandView is implemented for unaligned 64-byte types only")
    }

    /// This entry through a command's own field names, to be changed in place.
    #[must_use]
    pub fn view_mut<C: CommandView>(&mut self) -> &mut C {
        C::mut_from_bytes(self.as_mut_bytes())
            .expect("CommandView is implemented for unaligned 64-byte types only")
    }

    /// The entry a command's view makes up.
    #[must_use]
    pub fn from_view<C: CommandView>(command: &C) -> Self {
        let mut sqe = Self::new_zeroed();
        *sqe.view_mut::<C>() = *command;
        sqe
    }

    /// The fabrics command type if this is a fabrics command. Base 2.0c §6.
    #[must_use]
    pub const fn fabrics_type(&self) -> Option<FabricsType> {
        if self.opc != FABRICS {
            return None;
        }
        // FCTYPE is byte 4, where other commands have the lowest byte of NSID.
        let [fctype, ..] = self.nsid.get().to_le_bytes();
        Some(FabricsType(fctype))
    }
}

/// A 64-byte overlay of [`Sqe`]. Implemented for the command structures of this crate only.
pub trait CommandView:
    sealed::Sealed + Copy + FromBytes + Immutable + IntoBytes + KnownLayout + Unaligned
{
}

pub(crate) mod sealed {
    /// Keeps `CommandView` to types whose size this crate has asserted.
    pub trait Sealed {}
}

/// Asserts that a structure is a 64-byte overlay with its first own field at byte 40 and makes it a [`CommandView`].
macro_rules! command_view {
    ($Type:ty $(, $field:ident: $offset:expr)* $(,)?) => {
        assert_layout!($Type, $crate::command::SQE_SIZE $(, $field: $offset)*);
        impl $crate::command::sealed::Sealed for $Type {}
        impl $crate::command::CommandView for $Type {}
    };
}
pub(crate) use command_view;

command_view!(Sqe);

/// The first 40 bytes of a command, the same for all but fabrics commands. Base 2.0c §3.3.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandHead {
    /// Opcode.
    pub opc: u8,
    /// Fused operation and data pointer selection.
    pub flags: CommandFlags,
    /// Command identifier.
    pub cid: U16,
    /// Namespace identifier.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata pointer.
    pub mptr: U64,
    /// Data pointer: two PRP entries or one SGL descriptor.
    pub dptr: DataPointer,
}

assert_layout!(CommandHead, 40, cid: 2, nsid: 4, mptr: 16, dptr: 24);

bit_set! {
    /// Byte 1 of a command: FUSE in bits 1:0, PSDT in bits 7:6. Base 2.0c §3.3.3.1.
    pub struct CommandFlags(u8) {
        FUSE_FIRST = 1 << 0, "First command of a fused operation";
        FUSE_SECOND = 1 << 1, "Second command of a fused operation";
        PSDT_SGL = 1 << 6, "Data by SGL, metadata as one contiguous buffer: what fabrics commands always say";
        PSDT_SGL_METADATA_SGL = 1 << 7, "Data and metadata by SGL";
    }
}

impl CommandFlags {
    /// Whether the command is part of a fused operation.
    #[must_use]
    pub const fn fuse(self) -> Fuse {
        match self.field(0, 2) {
            0b00 => Fuse::None,
            0b01 => Fuse::First,
            0b10 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// What MPTR and DPTR hold.
    #[must_use]
    pub const fn psdt(self) -> Psdt {
        match self.field(6, 2) {
            0b00 => Psdt::Prp,
            0b01 => Psdt::Sgl,
            0b10 => Psdt::SglMetadataSgl,
            _ => Psdt::Reserved,
        }
    }
}

/// Part of a command in a fused operation. Base 2.0c §3.3.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fuse {
    /// An operation of its own.
    None,
    /// The first command of a fused operation.
    First,
    /// The second command of a fused operation.
    Second,
    /// The value 11b, which the specification reserves.
    Reserved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fctype_is_read_from_byte_four_of_fabrics_commands_only() {
        let mut sqe = Sqe::new_zeroed();
        sqe.opc = FABRICS;
        sqe.nsid.set(0x0000_0001);
        assert_eq!(sqe.fabrics_type(), Some(FabricsType::CONNECT));
        sqe.opc = 0x02;
        assert_eq!(sqe.fabrics_type(), None);
    }

    #[test]
    fn flags_split_into_fuse_and_psdt() {
        let flags = CommandFlags::FUSE_SECOND | CommandFlags::PSDT_SGL;
        assert_eq!(flags.0, 0x42);
        assert_eq!(flags.fuse(), Fuse::Second);
        assert_eq!(flags.psdt(), Psdt::Sgl);
        assert_eq!(CommandFlags(0x03).fuse(), Fuse::Reserved);
        assert_eq!(CommandFlags(0xc0).psdt(), Psdt::Reserved);
    }
}
