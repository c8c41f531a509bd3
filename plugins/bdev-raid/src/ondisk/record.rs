//! The record: what an array of this version knows about itself beyond the
//! superblock. It is written before the superblock it belongs to, to the slot that
//! does not hold the last one, so that a torn superblock can be repaired from it
//! and a torn record leaves the other slot.
//!
//! ```text
//!   0 magic[8]  8 version u16  10 lineage u16  12 length u32  16 crc u32  20 members u16  22 target u16
//!  24 uuid[16]  40 sequence u64  48 checkpoint_blocks u64  56 target_uuid[16]  72 superblock u32  76 reserved[4]
//!  80 members × synced_seq u64, lineage × { generation u64, writer[16] }, superblock[superblock]
//! ```
//!
//! Does no I/O and decides nothing about members (`assembly.rs`, `lineage.rs`).

use super::{Fields, seal_of};
use crate::lineage::{Lineage, MAX_STEPS, Step, UNKNOWN_WRITER};
use crate::superblock::{MAX_LENGTH, Superblock};

/// The content of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Grows with each record that is written.
    pub sequence: u64,
    /// The superblock it was written with.
    pub superblock: Superblock,
    /// Who has written the array until then.
    pub lineage: Lineage,
    /// Per slot: the last superblock that its member has taken while it held current data; 0: never.
    pub synced_seq: Vec<u64>,
    /// How far a rebuild is.
    pub checkpoint: Option<Checkpoint>,
}

/// How far a rebuild is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Slot being rebuilt.
    pub slot: u16,
    /// The device in it.
    pub uuid: [u8; 16],
    /// Blocks of its data area that hold current data.
    pub done_blocks: u64,
}

impl Record {
    /// Reads one slot; `None` if it is no whole record of this version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Record> {
        let mut fields = Fields(bytes);
        if fields.array()? != MAGIC || fields.u16()? != VERSION {
            return None;
        }
        let (steps, length, crc) = (fields.u16()?, fields.u32()? as usize, fields.u32()?);
        let covered = bytes.get(..length).filter(|_| (HEADER..=MAX_RECORD).contains(&length))?;
        if seal_of(covered, CRC) != crc {
            return None;
        }
        let (members, target) = (fields.u16()?, fields.u16()?);
        let uuid: [u8; 16] = fields.array()?;
        let (sequence, done_blocks) = (fields.u64()?, fields.u64()?);
        let target_uuid = fields.array()?;
        let superblock_len = fields.u32()? as usize;
        let mut fields = Fields(&covered[HEADER..]);
        if usize::from(steps) > MAX_STEPS {
            return None;
        }
        let synced_seq = (0..members).map(|_| fields.u64()).collect::<Option<Vec<_>>>()?;
        let step =
            |fields: &mut Fields<'_>| Some(Step { generation: fields.u64()?, writer: fields.array()? });
        let steps = (0..steps).map(|_| step(&mut fields)).collect::<Option<Vec<_>>>()?;
        let superblock = Superblock::parse(fields.bytes(superblock_len)?).ok()?;
        if !fields.0.is_empty() || superblock.uuid != uuid || superblock.members.len() != usize::from(members)
        {
            return None;
        }
        let checkpoint = match target {
            NO_TARGET => None,
            slot if slot < members => Some(Checkpoint { slot, uuid: target_uuid, done_blocks }),
            _ => return None,
        };
        Some(Record { sequence, superblock, lineage: Lineage::of(steps)?, synced_seq, checkpoint })
    }

    /// The bytes to write.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let superblock = self.superblock.encode();
        let steps = self.lineage.steps();
        let length = HEADER + 8 * self.synced_seq.len() + 24 * steps.len() + superblock.len();
        let (target, uuid, done_blocks) = match self.checkpoint {
            Some(checkpoint) => (checkpoint.slot, checkpoint.uuid, checkpoint.done_blocks),
            None => (NO_TARGET, [0; 16], 0),
        };
        let mut bytes = Vec::with_capacity(length);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((steps.len() as u16).to_le_bytes());
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((self.synced_seq.len() as u16).to_le_bytes());
        bytes.extend(target.to_le_bytes());
        bytes.extend(self.superblock.uuid);
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(done_blocks.to_le_bytes());
        bytes.extend(uuid);
        bytes.extend((superblock.len() as u32).to_le_bytes());
        bytes.extend([0; 4]);
        self.synced_seq.iter().for_each(|seq| bytes.extend(seq.to_le_bytes()));
        for step in steps {
            bytes.extend(step.generation.to_le_bytes());
            bytes.extend(step.writer);
        }
        bytes.extend(superblock);
        let crc = seal_of(&bytes, CRC);
        bytes[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Where on a member it belongs, in bytes.
    #[must_use]
    pub fn place(&self) -> u64 {
        super::RECORD + self.sequence % 2 * super::RECORD_STRIDE
    }

    /// Of the records on a member, the one that goes with its superblock. Without one, the record of a superblock that
    /// was to be written next tells what was before it; and that of the one before tells all but the last step, which
    /// a crash has taken or another program has made.
    #[must_use]
    pub fn choose(slots: [Option<Record>; 2], superblock: &Superblock) -> Option<Record> {
        let ours = slots.into_iter().flatten().filter(|record| record.superblock.uuid == superblock.uuid);
        let (own, others): (Vec<_>, Vec<_>) = ours.partition(|record| record.superblock == *superblock);
        if let Some(own) = own.into_iter().max_by_key(|record| record.sequence) {
            return Some(own);
        }
        let seq_number = |record: &Record| record.superblock.seq_number;
        let mut nearest = others.into_iter().max_by_key(seq_number)?;
        if seq_number(&nearest) > superblock.seq_number {
            nearest.lineage.take_back();
        } else if seq_number(&nearest).checked_add(1) == Some(superblock.seq_number) {
            nearest.lineage.add(UNKNOWN_WRITER);
            // Who took the last superblock is not known either: nobody is told to lack less than all.
            nearest.synced_seq.fill(0);
        } else {
            return None;
        }
        (nearest.superblock, nearest.checkpoint) = (superblock.clone(), None);
        Some(nearest)
    }

    /// The newest record of a member whose superblock is damaged.
    #[must_use]
    pub fn newest(slots: [Option<Record>; 2]) -> Option<Record> {
        slots.into_iter().flatten().max_by_key(|record| record.sequence)
    }
}

const MAGIC: [u8; 8] = *b"TNNRECRD";
const VERSION: u16 = 1;
const CRC: usize = 16;
const HEADER: usize = 80;
const NO_TARGET: u16 = u16::MAX;
/// Bytes of the largest record.
pub const MAX_RECORD: usize = HEADER + 8 * 255 + 24 * MAX_STEPS + MAX_LENGTH;
const _: () = assert!((MAX_RECORD as u64) < super::RECORD_STRIDE);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lineage::Kinship;
    use crate::superblock::{Entry, EntryState};

    fn superblock(members: u8, seq_number: u64) -> Superblock {
        let entry = |slot: u8| Entry {
            uuid: [slot; 16],
            data_offset: 2048,
            data_size: 100,
            state: EntryState::CONFIGURED,
            slot,
        };
        Superblock {
            features: crate::superblock::Features::NONE,
            uuid: [9; 16],
            name: "r".into(),
            raid_size: 100,
            block_size: 512,
            level: 1,
            strip_size: 0,
            seq_number,
            num_base_bdevs: members,
            members: (0..members).map(entry).collect(),
        }
    }

    fn record(members: u8, steps: u64, sequence: u64, checkpoint: Option<Checkpoint>) -> Record {
        let mut lineage = Lineage::default();
        (0..steps).for_each(|nth| lineage.add([nth as u8; 16]));
        let synced_seq = (0..u64::from(members)).collect();
        Record { sequence, superblock: superblock(members, sequence), lineage, synced_seq, checkpoint }
    }

    proptest! {
        #[test]
        fn what_is_built_is_read(members in 1u8..=255, steps in 0u64..200, sequence: u64, done: u64, has: bool) {
            let checkpoint = Checkpoint { slot: u16::from(members) - 1, uuid: [3; 16], done_blocks: done };
            let record = record(members, steps, sequence, has.then_some(checkpoint));
            let mut bytes = record.encode();
            prop_assert!(bytes.len() <= MAX_RECORD);
            bytes.resize(bytes.len() + 100, 0xee);
            prop_assert_eq!(Record::parse(&bytes), Some(record));
        }

        #[test]
        fn arbitrary_fields_under_a_right_seal_never_panic(edits in prop::collection::vec((8usize..600, any::<u8>()), 0..24)) {
            let mut bytes = record(2, 3, 7, None).encode();
            for (at, value) in edits {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            let length = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
            if let Some(covered) = bytes.get(..length).filter(|covered| covered.len() > 20) {
                let crc = seal_of(covered, CRC);
                bytes[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
            }
            if let Some(record) = Record::parse(&bytes) {
                prop_assert_eq!(Record::parse(&record.encode()), Some(record));
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = record(2, 3, 7, None).encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::parse(&bad), None, "bit {bit}");
        }
        assert!((0..good.len()).all(|cut| Record::parse(&good[..cut]).is_none()));
    }

    #[test]
    fn a_record_goes_with_the_superblock_it_was_written_for() {
        let (old, new) = (record(2, 1, 4, None), record(2, 2, 5, None));
        let choose = |slots: [Option<&Record>; 2], seq| {
            Record::choose(slots.map(Option::<&Record>::cloned), &superblock(2, seq))
        };
        assert_eq!(choose([Some(&old), Some(&new)], 5), Some(new.clone()));
        assert_eq!(choose([Some(&old), Some(&new)], 4), Some(old.clone()));
        // Only the one for a superblock that was not written: it tells what was before.
        assert_eq!(choose([None, Some(&new)], 4).unwrap().lineage, old.lineage);
        // One that a crash has taken, or that another program has made; and several of those.
        let next = choose([Some(&old), Some(&new)], 6).unwrap();
        assert_eq!((next.lineage.generation(), next.lineage.writer()), (3, Some(UNKNOWN_WRITER)));
        assert_eq!((next.lineage.compare(&new.lineage), next.synced_seq), (Kinship::Newer, vec![0, 0]));
        assert_eq!(choose([Some(&old), Some(&new)], 7), None);
        let mut other = superblock(2, 5);
        other.raid_size += 1;
        assert_eq!(Record::choose([Some(old), Some(new)], &other), None);
    }
}
