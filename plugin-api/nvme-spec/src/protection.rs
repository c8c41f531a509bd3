//! Protection information: the tuple behind each logical block. NVM Command Set §5.2.
//!
//! Unlike everything else in NVMe its fields are big-endian.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// 16b guard protection information. NVM Command Set §5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ProtectionTuple16 {
    /// Guard: CRC-16 (T10-DIF) of the logical block and of the metadata before this tuple.
    pub guard: U16,
    /// Application Tag.
    pub application_tag: U16,
    /// Storage tag and reference tag; by default the low 32 bits of the LBA.
    pub reference_tag: U32,
}

assert_layout!(ProtectionTuple16, 8, guard: 0, application_tag: 2, reference_tag: 4);

/// The application tag that switches checking off for a block (types 1 and 2).
pub const APPLICATION_TAG_UNCHECKED: u16 = 0xffff;

/// The reference tag that, with [`APPLICATION_TAG_UNCHECKED`], switches checking off for a block (type 3).
pub const REFERENCE_TAG_UNCHECKED: u32 = 0xffff_ffff;
