//! Views of the admin commands an NVMe-oF controller takes.
//!
//! Features' values are in [`crate::features`], log pages in [`crate::log`],
//! Identify's answers in [`crate::identify`], fabrics commands in
//! [`crate::fabrics`]. Commands without fields of their own (Keep Alive,
//! Asynchronous Event Request) are a bare [`crate::command::Sqe`].

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::{CommandHead, command_view};
use crate::features::FeatureId;
use crate::identify::{Cns, Csi};
use crate::log::LogPageId;

/// Identify. Base 2.0c §5.17.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Identify {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Controller or Namespace Structure.
    pub cns: Cns,
    _rsvd41: u8,
    /// Controller Identifier.
    pub cntid: U16,
    /// CNS Specific Identifier.
    pub cns_specific: U16,
    _rsvd46: u8,
    /// Command Set Identifier.
    pub csi: Csi,
    _rsvd48: [u8; 8],
    /// UUID Index, in bits 6:0.
    pub uuid_index: u8,
    _rsvd57: [u8; 7],
}

command_view!(Identify, cns: 40, cntid: 42, cns_specific: 44, csi: 47, uuid_index: 56);

/// Get Log Page. Base 2.0c §5.16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GetLogPage {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Log Page Identifier.
    pub lid: LogPageId,
    /// Log Specific Field and Retain Asynchronous Event.
    pub lsp_rae: LogSpecific,
    /// Number of Dwords Lower.
    pub numdl: U16,
    /// Number of Dwords Upper.
    pub numdu: U16,
    /// Log Specific Identifier.
    pub lsi: U16,
    /// Log Page Offset: in bytes, or an index if Offset Type says so.
    pub lpo: U64,
    /// UUID Index, in bits 6:0.
    pub uuid_index: u8,
    _rsvd57: u8,
    /// Bit 7: Offset Type, set if the offset is an index.
    pub ot: u8,
    /// Command Set Identifier.
    pub csi: Csi,
    _rsvd60: [u8; 4],
}

command_view!(GetLogPage, lid: 40, lsp_rae: 41, numdl: 42, numdu: 44, lsi: 46, lpo: 48, uuid_index: 56, csi: 59);

impl GetLogPage {
    /// Number of dwords to transfer, 0's based.
    #[must_use]
    pub const fn numd_z(&self) -> u32 {
        (self.numdu.get() as u32) << 16 | self.numdl.get() as u32
    }

    /// Number of bytes to transfer.
    #[must_use]
    pub const fn length(&self) -> u64 {
        (self.numd_z() as u64 + 1) * 4
    }

    /// Sets the number of dwords to transfer, 0's based.
    pub fn set_numd_z(&mut self, numd_z: u32) {
        let [a, b, c, d] = numd_z.to_le_bytes();
        self.numdl = U16::from_bytes([a, b]);
        self.numdu = U16::from_bytes([c, d]);
    }

    /// Whether the offset is an index into the log page's entries.
    #[must_use]
    pub const fn offset_is_index(&self) -> bool {
        self.ot & 0x80 != 0
    }
}

bit_set! {
    /// Byte 41 of Get Log Page: Log Specific Field in bits 6:0, RAE in bit 7. Base 2.0c §5.16.
    pub struct LogSpecific(u8) {
        RAE = 1 << 7, "Retain Asynchronous Event: reading does not clear the event";
    }
}

impl LogSpecific {
    /// Log Specific Field: ANA's Return Groups Only, Discovery's extended entries, and so on.
    #[must_use]
    pub const fn lsp(self) -> u8 {
        self.field(0, 7)
    }

    /// These bits with a Log Specific Field; seven bits count.
    #[must_use]
    pub const fn with_lsp(self, lsp: u8) -> Self {
        self.with_field(0, 7, lsp)
    }
}

/// Get Features. Base 2.0c §5.15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GetFeatures {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Feature Identifier.
    pub fid: FeatureId,
    /// Select, in bits 2:0.
    pub sel: FeatureSelect,
    _rsvd42: [u8; 2],
    /// Command dword 11, feature specific.
    pub cdw11: U32,
    _rsvd48: [u8; 8],
    /// UUID Index, in bits 6:0.
    pub uuid_index: u8,
    _rsvd57: [u8; 7],
}

command_view!(GetFeatures, fid: 40, sel: 41, cdw11: 44, uuid_index: 56);

open_enum! {
    /// Select field of Get Features. Base 2.0c §5.15.
    pub struct FeatureSelect(u8) {
        CURRENT = 0b000, "Current value";
        DEFAULT = 0b001, "Default value";
        SAVED = 0b010, "Saved value";
        SUPPORTED_CAPABILITIES = 0b011, "Supported capabilities";
    }
}

bit_set! {
    /// Completion dword 0 of Get Features with Select 011b. Base 2.0c §5.15.
    pub struct FeatureCapabilities(U32 as u32) {
        SAVEABLE = 1 << 0, "The feature can be saved";
        NAMESPACE_SPECIFIC = 1 << 1, "The feature is namespace specific";
        CHANGEABLE = 1 << 2, "The feature can be changed";
    }
}

/// Set Features. Base 2.0c §5.27.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SetFeatures {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Feature Identifier.
    pub fid: FeatureId,
    _rsvd41: [u8; 2],
    /// Bit 7: Save.
    pub sv: u8,
    /// Command dword 11: the value of most features.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// UUID Index, in bits 6:0.
    pub uuid_index: u8,
    _rsvd57: [u8; 3],
    /// Command dword 15.
    pub cdw15: U32,
}

command_view!(SetFeatures, fid: 40, sv: 43, cdw11: 44, cdw12: 48, cdw13: 52, uuid_index: 56, cdw15: 60);

impl SetFeatures {
    /// Whether the value is to survive resets and power cycles.
    #[must_use]
    pub const fn is_save(&self) -> bool {
        self.sv & 0x80 != 0
    }
}

/// Abort. Base 2.0c §5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Abort {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Submission queue of the command to abort.
    pub sqid: U16,
    /// Identifier of the command to abort.
    pub victim_cid: U16,
    _rsvd44: [u8; 20],
}

command_view!(Abort, sqid: 40, victim_cid: 42);

/// Completion dword 0 of Abort if the command was not aborted; 0 if it was. Base 2.0c §5.1.
pub const ABORT_NOT_ABORTED: u32 = 1;

/// Create I/O Completion Queue; memory-based transports only. Base 2.0c §5.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CreateIoCq {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Queue Identifier.
    pub qid: U16,
    /// Queue Size, 0's based.
    pub qsize_z: U16,
    /// Bit 0: physically contiguous; bit 1: interrupts enabled.
    pub flags: U16,
    /// Interrupt Vector.
    pub iv: U16,
    _rsvd48: [u8; 16],
}

command_view!(CreateIoCq, qid: 40, qsize_z: 42, flags: 44, iv: 46);

/// Create I/O Submission Queue; memory-based transports only. Base 2.0c §5.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CreateIoSq {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Queue Identifier.
    pub qid: U16,
    /// Queue Size, 0's based.
    pub qsize_z: U16,
    /// Bit 0: physically contiguous; bits 2:1: queue priority.
    pub flags: U16,
    /// Completion Queue Identifier.
    pub cqid: U16,
    /// NVM Set Identifier.
    pub nvmsetid: U16,
    _rsvd50: [u8; 14],
}

command_view!(CreateIoSq, qid: 40, qsize_z: 42, flags: 44, cqid: 46, nvmsetid: 48);

/// Delete I/O Submission Queue, Delete I/O Completion Queue; memory-based transports only. Base 2.0c §5.6, §5.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeleteIoQueue {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Queue Identifier.
    pub qid: U16,
    _rsvd42: [u8; 22],
}

command_view!(DeleteIoQueue, qid: 40);

/// Namespace Attachment: the controller list is the command's data. Base 2.0c §5.22.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NamespaceAttachment {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Select, in bits 3:0.
    pub sel: AttachmentSelect,
    _rsvd41: [u8; 23],
}

command_view!(NamespaceAttachment, sel: 40);

open_enum! {
    /// Select field of Namespace Attachment.
    pub struct AttachmentSelect(u8) {
        ATTACH = 0, "Controller Attach";
        DETACH = 1, "Controller Detach";
    }
}

/// Namespace Management. Base 2.0c §5.23.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NamespaceManagement {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Select, in bits 3:0.
    pub sel: ManagementSelect,
    _rsvd41: [u8; 6],
    /// Command Set Identifier.
    pub csi: Csi,
    _rsvd48: [u8; 16],
}

command_view!(NamespaceManagement, sel: 40, csi: 47);

open_enum! {
    /// Select field of Namespace Management.
    pub struct ManagementSelect(u8) {
        CREATE = 0, "Create";
        DELETE = 1, "Delete";
    }
}

/// Format NVM: format index, metadata settings, protection information and secure erase in one dword.
///
/// Base 2.0c §5.14.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FormatNvm {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// What to format to.
    pub format: FormatDword,
    _rsvd44: [u8; 20],
}

command_view!(FormatNvm, format: 40);

bit_set! {
    /// Command dword 10 of Format NVM.
    pub struct FormatDword(U32 as u32) {
        EXTENDED_METADATA = 1 << 4, "Metadata is transferred at the end of each logical block";
        PROTECTION_FIRST = 1 << 8, "Protection information in the first bytes of metadata";
    }
}

impl FormatDword {
    /// Index of the LBA format: LBAFL in bits 3:0, LBAFU in bits 13:12 as the upper two bits.
    #[must_use]
    pub const fn format_index(self) -> u8 {
        (self.field(0, 4) | self.field(12, 2) << 4) as u8
    }

    /// Protection information type; 0 for none.
    #[must_use]
    pub const fn protection_type(self) -> u8 {
        self.field(5, 3) as u8
    }

    /// Secure Erase Settings: 0 none, 1 user data, 2 cryptographic.
    #[must_use]
    pub const fn secure_erase(self) -> u8 {
        self.field(9, 3) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn log_page_length_joins_both_halves() {
        let mut get = GetLogPage::new_zeroed();
        assert_eq!(get.length(), 4);
        get.set_numd_z(0x0001_0003);
        assert_eq!((get.numdl.get(), get.numdu.get(), get.length()), (3, 1, 0x4_0010));
        get.set_numd_z(u32::MAX);
        assert_eq!(get.length(), 1 << 34);
    }

    #[test]
    fn log_specific_field_leaves_retain_alone() {
        let bits = LogSpecific::RAE.with_lsp(0x05);
        assert_eq!((bits.get(), bits.lsp()), (0x85, 5));
        assert!(bits.contains(LogSpecific::RAE));
    }

    #[test]
    fn format_index_joins_lower_and_upper_bits() {
        assert_eq!(FormatDword::new(0x2 << 12 | 0x3).format_index(), 0x23);
    }
}
