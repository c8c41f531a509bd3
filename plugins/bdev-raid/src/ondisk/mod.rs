//! What lies between the superblock of a member and its data area: the map of that
//! gap, and pure parsers and builders of what is in it. All little-endian, each
//! sealed by a CRC-32C and bound to its array by UUID, so that what an earlier
//! array left behind is never taken for ours.
//!
//! ```text
//!     0 KiB  superblock (`superblock.rs`), the commit point
//!    64 KiB  record, slot 0      lineage, rebuild checkpoint, copy of the superblock
//!   128 KiB  record, slot 1
//!   192 KiB  write-intent bitmap
//!   256 KiB  journal slots, up to the data area
//! ```
//!
//! A record and a lineage are of use to this version only, and harmless to others:
//! they name the superblock they belong to, and one that another program has
//! written since makes them void. Bitmap and journal are not: a program that does
//! not know them would write data behind their back. So a superblock of an array
//! that has them is of major version 2, which readers of 1.0 refuse (its `flags`,
//! which say what is needed, they do not look at).

pub mod bitmap;
pub mod journal;
pub(crate) mod record;

use tenon_sdk::crc32c;

/// First byte of the record with an even sequence number.
pub const RECORD: u64 = 64 << 10;
/// Bytes between the two slots of the record.
pub const RECORD_STRIDE: u64 = 64 << 10;
/// First byte of the bitmap.
pub const BITMAP: u64 = 192 << 10;
/// First byte of the first journal slot.
pub const JOURNAL: u64 = 256 << 10;

/// The CRC-32C of a sealed block whose own field, at `at`, counts as zero.
fn seal_of(bytes: &[u8], at: usize) -> u32 {
    let crc = crc32c(0, &bytes[..at]);
    let crc = crc32c(crc, &[0; 4]);
    crc32c(crc, &bytes[at + 4..])
}

/// Takes fields off the front of bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
