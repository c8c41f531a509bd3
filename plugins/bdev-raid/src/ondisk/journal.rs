//! The journal of raid5: what a partial write to a stripe is about to change, as
//! it lies on two members before any of it is changed in place. Redoing it any
//! number of times gives the stripe as the write leaves it, whatever of it was
//! done, so parity fits its data after a crash, also if a member is lost with it.
//!
//! A member's journal is an array of slots; a stripe has its slot by its number,
//! and while a write has the slot no other stripe of the same slot is written.
//! So the newest whole entry of a slot is the newest of its stripe. An entry ends
//! where its slot ends, the footer last, and is written at once:
//!
//! ```text
//!  parity [band] | data of each changed strip [band each] | footer of 4 KiB, at least a block:
//!   0 magic[8]  8 version u16  10 kind u16  12 payload u32  16 crc u32  20 changed u32
//!  24 uuid[16]  40 epoch u64  48 sequence u64  56 stripe u64  64 column u32  68 blocks u32
//! ```
//!
//! `epoch` is the number of the superblock it was written under: a change of the
//! members makes all earlier entries void. Does no I/O (`channel/raid5.rs` writes,
//! `replay.rs` reads).

use tenon_sdk::crc32c;

use super::Fields;

/// What a footer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Identity of the array.
    pub uuid: [u8; 16],
    /// Number of the superblock it was written under.
    pub epoch: u64,
    /// Grows with each entry in the slot.
    pub sequence: u64,
    /// The stripe.
    pub stripe: u64,
    /// First block of the band, from the beginning of a strip.
    pub column: u32,
    /// Blocks of the band; 0: nothing is to be redone, and what the slot held before is void.
    pub blocks: u32,
    /// A bit per strip of data, in the order of the array's blocks, that is changed.
    pub changed: u32,
}

impl Entry {
    /// Reads the entry at the end of a slot's bytes, with its payload: parity, then each changed strip. `None` if it
    /// is no whole entry.
    #[must_use]
    pub fn parse(slot: &[u8], footer_bytes: usize, block_bytes: usize) -> Option<(Entry, &[u8])> {
        let (body, footer) = slot.split_at_checked(slot.len().checked_sub(footer_bytes)?)?;
        let mut fields = Fields(footer);
        if fields.array()? != MAGIC || fields.u16()? != VERSION || fields.u16()? != 0 {
            return None;
        }
        let (payload, crc, changed) = (fields.u32()? as usize, fields.u32()?, fields.u32()?);
        let uuid = fields.array()?;
        let (epoch, sequence, stripe) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (column, blocks) = (fields.u32()?, fields.u32()?);
        let payload_bytes = &body[body.len().checked_sub(payload)?..];
        if seal(footer, payload_bytes)? != crc {
            return None;
        }
        let entry = Entry { uuid, epoch, sequence, stripe, column, blocks, changed };
        (entry.payload_bytes(block_bytes) == Some(payload)).then_some((entry, payload_bytes))
    }

    /// Writes the footer behind a payload that is in place; `slot` ends where the slot ends.
    pub fn put(&self, slot: &mut [u8], footer_bytes: usize) {
        let (payload, footer) = slot.split_at_mut(slot.len() - footer_bytes);
        footer.fill(0);
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            footer[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&[0; 2]);
        put(&(payload.len() as u32).to_le_bytes());
        put(&[0; 4]);
        put(&self.changed.to_le_bytes());
        put(&self.uuid);
        put(&self.epoch.to_le_bytes());
        put(&self.sequence.to_le_bytes());
        put(&self.stripe.to_le_bytes());
        put(&self.column.to_le_bytes());
        put(&self.blocks.to_le_bytes());
        let crc = seal(footer, payload).unwrap_or(0);
        footer[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Bytes of its payload; `None` if that is no sensible number.
    fn payload_bytes(&self, block_bytes: usize) -> Option<usize> {
        if self.blocks == 0 {
            return Some(0);
        }
        let bands = self.changed.count_ones() as usize + 1;
        (self.blocks as usize).checked_mul(block_bytes)?.checked_mul(bands)
    }
}

/// The slots of the journal on each member of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Blocks of a slot.
    pub slot_blocks: u64,
    /// First block of the first slot.
    pub first_block: u64,
    /// How many.
    pub count: u64,
    /// Bytes of a footer.
    pub footer_bytes: usize,
    /// Bytes of the largest payload.
    pub payload_bytes: usize,
}

impl Slots {
    /// The slots before a data area that begins at block `data_offset`; `None` if there is no room for one.
    /// An entry has room for a block of each member.
    #[must_use]
    pub fn new(data_offset: u64, block_bytes: usize, members: usize) -> Option<Slots> {
        let block = block_bytes as u64;
        let footer_bytes = FOOTER.next_multiple_of(block_bytes);
        let payload_bytes = PAYLOAD.next_multiple_of(block_bytes).max(members * block_bytes);
        let slot_blocks = (footer_bytes + payload_bytes) as u64 / block;
        let first_block = super::JOURNAL.div_ceil(block);
        let count = (data_offset.saturating_sub(first_block) / slot_blocks).min(MAX_SLOTS);
        (count > 0).then_some(Slots { slot_blocks, first_block, count, footer_bytes, payload_bytes })
    }

    /// The slot of a stripe.
    #[must_use]
    pub fn of(&self, stripe: u64) -> u64 {
        stripe % self.count
    }

    /// The block behind a slot, where its entry ends.
    #[must_use]
    pub fn end(&self, slot: u64) -> u64 {
        self.first_block + (slot + 1) * self.slot_blocks
    }
}

fn seal(footer: &[u8], payload: &[u8]) -> Option<u32> {
    let crc = crc32c(0, footer.get(..CRC)?);
    let crc = crc32c(crc, footer.get(CRC + 4..FOOTER_USED)?);
    Some(crc32c(crc, payload))
}

const MAGIC: [u8; 8] = *b"TNNJRNAL";
const VERSION: u16 = 1;
const CRC: usize = 16;
const FOOTER_USED: usize = 72;
/// Bytes of a footer, unless a block is larger.
const FOOTER: usize = 4096;
/// Bytes of data and parity in an entry at most, unless a block of each member is more.
const PAYLOAD: usize = 28 << 10;
/// Most slots.
pub const MAX_SLOTS: u64 = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(column: u32, blocks: u32, changed: u32) -> Entry {
        Entry { uuid: [5; 16], epoch: 3, sequence: 9, stripe: 77, column, blocks, changed }
    }

    fn slot(entry: &Entry) -> Vec<u8> {
        let payload = entry.payload_bytes(512).unwrap();
        let mut bytes: Vec<u8> = (0..payload + 4096).map(|n| n as u8).collect();
        entry.put(&mut bytes, 4096);
        bytes
    }

    proptest! {
        #[test]
        fn what_is_built_is_read(column: u32, blocks in 0u32..8, changed in 1u32..64, spare in 0usize..3) {
            let entry = entry(column, blocks, changed);
            let mut bytes = vec![0xaa; spare * 512];
            bytes.extend(slot(&entry));
            let (found, payload) = Entry::parse(&bytes, 4096, 512).unwrap();
            prop_assert_eq!(found, entry);
            prop_assert!(payload.iter().enumerate().all(|(n, byte)| *byte == n as u8));
        }

        #[test]
        fn arbitrary_fields_under_a_right_seal_never_panic(
            edits in prop::collection::vec((8usize..72, any::<u8>()), 0..16)
        ) {
            let mut bytes = slot(&entry(1, 2, 3));
            let footer = bytes.len() - 4096;
            edits.into_iter().for_each(|(at, value)| bytes[footer + at] = value);
            let (payload, tail) = bytes.split_at_mut(footer);
            let crc = seal(tail, payload).unwrap();
            tail[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
            let _ = Entry::parse(&bytes, 4096, 512);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = slot(&entry(1, 1, 1));
        for bit in 0..(1024 + FOOTER_USED) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Entry::parse(&bad, 4096, 512), None, "bit {bit}");
        }
        assert_eq!(Entry::parse(&good[..100], 4096, 512), None);
        assert_eq!(Entry::parse(&[], 4096, 512), None);
    }

    #[test]
    fn slots_end_before_the_data() {
        for block_bytes in [512, 4096, 65536] {
            for data_offset in [1 << 20, 8 << 20, 1 << 30] {
                let slots = Slots::new(data_offset / block_bytes as u64, block_bytes, 3).unwrap();
                assert!(slots.end(slots.count - 1) * block_bytes as u64 <= data_offset);
                assert!(slots.count <= MAX_SLOTS);
                assert_eq!(
                    slots.slot_blocks as usize * block_bytes,
                    slots.footer_bytes + slots.payload_bytes
                );
            }
        }
        assert_eq!(Slots::new(512, 512, 3), None);
    }
}
