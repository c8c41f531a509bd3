//! The write-intent bitmap as it lies on a member: which regions of the array may
//! differ between its members. It is made durable before a write to a region that
//! was clean, so any copy that is whole is right; one that is torn or belongs to
//! another array says nothing.
//!
//! ```text
//!   0 magic[8]  8 version u16  10 reserved u16  12 length u32  16 crc u32  20 regions u32
//!  24 uuid[16]  40 region_blocks u64  48 sequence u64  56 reserved[8]
//!  64 bits, one per region, the first in bit 0 of byte 0
//! ```

use super::{Fields, seal_of};

/// The content of a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Identity of the array.
    pub uuid: [u8; 16],
    /// Blocks of the array in a region.
    pub region_blocks: u64,
    /// Grows with each bitmap that is written.
    pub sequence: u64,
    /// Number of regions.
    pub regions: u32,
    /// One bit per region, the first in bit 0 of the first word.
    pub words: Vec<u64>,
}

impl Bitmap {
    /// Reads a bitmap; `None` if it is no whole bitmap of this version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Bitmap> {
        let mut fields = Fields(bytes);
        if fields.array()? != MAGIC || fields.u16()? != VERSION {
            return None;
        }
        let (_, length, crc, regions) = (fields.u16()?, fields.u32()?, fields.u32()?, fields.u32()?);
        let words = regions.div_ceil(64) as usize;
        if regions == 0 || regions > MAX_REGIONS || length as usize != HEADER + 8 * words {
            return None;
        }
        let covered = bytes.get(..length as usize)?;
        if seal_of(covered, CRC) != crc {
            return None;
        }
        let (uuid, region_blocks, sequence) = (fields.array()?, fields.u64()?, fields.u64()?);
        let mut fields = Fields(&covered[HEADER..]);
        let words = (0..words).map(|_| fields.u64()).collect::<Option<Vec<_>>>()?;
        let spare = words.last().map_or(0, |last| last & !last_mask(regions));
        (region_blocks > 0 && spare == 0).then_some(Bitmap { uuid, region_blocks, sequence, regions, words })
    }

    /// The bytes to write.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let length = HEADER + 8 * self.words.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.regions.to_le_bytes());
        bytes.extend(self.uuid);
        bytes.extend(self.region_blocks.to_le_bytes());
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend([0; 8]);
        self.words.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        let crc = seal_of(&bytes, CRC);
        bytes[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

/// The bits of the last word that stand for regions.
#[must_use]
pub fn last_mask(regions: u32) -> u64 {
    match regions % 64 {
        0 => u64::MAX,
        rest => (1 << rest) - 1,
    }
}

const MAGIC: [u8; 8] = *b"TNNBTMAP";
const VERSION: u16 = 1;
const CRC: usize = 16;
const HEADER: usize = 64;
/// Most regions: header and bits are one block of 4 KiB.
pub const MAX_REGIONS: u32 = 8 * (4096 - HEADER as u32);
/// Bytes of the largest bitmap.
pub const MAX_BITMAP: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bitmap(regions: u32, sequence: u64) -> Bitmap {
        let mut words: Vec<u64> = (0..u64::from(regions.div_ceil(64))).map(|n| n * 0x0123_4567).collect();
        *words.last_mut().unwrap() &= last_mask(regions);
        Bitmap { uuid: [4; 16], region_blocks: 128, sequence, regions, words }
    }

    proptest! {
        #[test]
        fn what_is_built_is_read(regions in 1u32..=MAX_REGIONS, sequence: u64) {
            let bitmap = bitmap(regions, sequence);
            let bytes = bitmap.encode();
            prop_assert!(bytes.len() <= MAX_BITMAP);
            prop_assert_eq!(Bitmap::parse(&bytes), Some(bitmap));
        }

        #[test]
        fn arbitrary_fields_under_a_right_seal_never_panic(edits in prop::collection::vec((8usize..192, any::<u8>()), 0..16)) {
            let mut bytes = bitmap(1000, 1).encode();
            edits.into_iter().for_each(|(at, value)| bytes[at] = value);
            let crc = seal_of(&bytes, CRC);
            bytes[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
            if let Some(bitmap) = Bitmap::parse(&bytes) {
                prop_assert_eq!(Bitmap::parse(&bitmap.encode()), Some(bitmap));
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = bitmap(130, 3).encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Bitmap::parse(&bad), None, "bit {bit}");
        }
        assert!((0..good.len()).all(|cut| Bitmap::parse(&good[..cut]).is_none()));
    }
}
