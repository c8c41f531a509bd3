//! What the members of an array agree on, each time anew: the superblock and the
//! record that goes with it. Every agreement is one step of the lineage, made by
//! the writer that was drawn when the array was brought up, so that two halves
//! that went on without each other are told from one that was left behind.

use std::rc::Rc;

use tenon_sdk::Error;
use uuid::Uuid;

use crate::array::{Array, Inner, Standing};
use crate::disk::{self, Copy, Draft};
use crate::level::Level;
use crate::lineage::{Kinship, Lineage};
use crate::ondisk::record::{Checkpoint, Record};
use crate::process::Process;
use crate::superblock::{Entry, Features, Superblock};

/// What is agreed on beyond the superblock.
pub struct Agreement {
    /// What readers must know to write to the array.
    pub features: Features,
    /// Who has written the array.
    pub lineage: Lineage,
    /// Number of the last record.
    pub record_sequence: u64,
    /// Per slot: the last superblock its member took while it held current data.
    pub synced_seq: Vec<u64>,
    /// How far a rebuild was when the record was read.
    pub checkpoint: Option<Checkpoint>,
    /// Who brought the array up.
    writer: [u8; 16],
}

impl Agreement {
    /// For an array of which nothing is known yet.
    pub fn new() -> Agreement {
        Agreement {
            features: Features::NONE,
            lineage: Lineage::default(),
            record_sequence: 0,
            synced_seq: Vec::new(),
            checkpoint: None,
            writer: Uuid::new_v4().into_bytes(),
        }
    }
}

impl Inner {
    /// Takes a member's copy for what was agreed on last.
    pub fn learn(&mut self, copy: &Copy) {
        self.agreed.features = copy.superblock.features;
        self.superblock = Some(copy.superblock.clone());
        if self.params.level != Level::Raid5 {
            self.params.bitmap = copy.superblock.features.contains(Features::BITMAP);
        }
        match &copy.record {
            Some(record) => {
                self.agreed.lineage = record.lineage.clone();
                self.agreed.synced_seq.clone_from(&record.synced_seq);
                self.agreed.checkpoint = record.checkpoint;
            }
            None => {
                self.agreed.lineage = Lineage::default();
                self.agreed.synced_seq = Vec::new();
                self.agreed.checkpoint = None;
            }
        }
        self.count_record(copy);
    }

    /// Notes the number of a member's record, so that the next one is newer than any.
    pub fn count_record(&mut self, copy: &Copy) {
        let found = copy.record.as_ref().map_or(0, |record| record.sequence);
        self.agreed.record_sequence = self.agreed.record_sequence.max(found);
    }

    /// A copy of what was agreed on last, for comparison with that of a member.
    pub fn last_copy(&self) -> Option<Copy> {
        let superblock = self.superblock.clone()?;
        let record = (!self.agreed.lineage.steps().is_empty()).then(|| Record {
            sequence: self.agreed.record_sequence,
            superblock: superblock.clone(),
            lineage: self.agreed.lineage.clone(),
            synced_seq: self.agreed.synced_seq.clone(),
            checkpoint: self.agreed.checkpoint,
        });
        Some(Copy { superblock, record, is_damaged: false })
    }

    /// The features a new array of these parameters has.
    pub fn features_wanted(&self) -> Features {
        match self.params.level {
            Level::Raid5 => Features::BITMAP.union(Features::JOURNAL),
            _ if self.params.bitmap => Features::BITMAP,
            _ => Features::NONE,
        }
    }

    /// What members are to be told next: a superblock of the present state with the next number, and its record.
    pub fn next_draft(&mut self, name: &str) -> Draft {
        let seq_number = self.superblock.as_ref().map_or(0, |superblock| superblock.seq_number) + 1;
        let superblock = self.superblock_now(name, seq_number);
        let encoded = superblock.encode();
        self.agreed.lineage.add(self.agreed.writer);
        self.agreed.synced_seq.resize(self.slots.len(), 0);
        let record = disk::has_gap(&superblock).then(|| self.next_record(&superblock));
        self.superblock = Some(superblock);
        Draft { record, superblock: encoded }
    }

    /// The next record that goes with a superblock.
    pub fn next_record(&mut self, superblock: &Superblock) -> (u64, Vec<u8>) {
        self.agreed.record_sequence += 1;
        let holds =
            |slot: usize| self.slots[slot].base.is_some() && self.slots[slot].standing == Standing::Current;
        let synced = |(slot, seq): (usize, &u64)| if holds(slot) { superblock.seq_number } else { *seq };
        let record = Record {
            sequence: self.agreed.record_sequence,
            superblock: superblock.clone(),
            lineage: self.agreed.lineage.clone(),
            synced_seq: self.agreed.synced_seq.iter().enumerate().map(synced).collect(),
            checkpoint: self.checkpoint_now(),
        };
        (record.place(), record.encode())
    }

    /// Every current member has taken the superblock in force.
    pub fn note_synced(&mut self) {
        let seq_number = self.superblock.as_ref().map_or(0, |superblock| superblock.seq_number);
        for (slot, _) in self.current() {
            if let Some(seq) = self.agreed.synced_seq.get_mut(slot) {
                *seq = seq_number;
            }
        }
    }

    fn checkpoint_now(&self) -> Option<Checkpoint> {
        let process = self.process.as_ref()?;
        let target = process.target()?;
        let slot = &self.slots[target];
        (slot.standing == Standing::Target && process.done_blocks > 0).then_some(Checkpoint {
            slot: target as u16,
            uuid: slot.uuid,
            done_blocks: process.done_blocks,
        })
    }
}

impl Array {
    /// Makes the present state durable on every current member; a member that cannot take it is lost as well, as
    /// long as enough are left. `then` learns whether the state is durable.
    ///
    /// No write may be in flight: the journal takes a new superblock for the end of all earlier writes.
    pub fn commit(self: &Rc<Self>, then: impl FnOnce(&Rc<Array>, bool) + 'static) {
        let (targets, last, draft) = {
            let mut inner = self.inner.borrow_mut();
            if !inner.params.superblock {
                drop(inner);
                return then(self, true);
            }
            let draft = inner.next_draft(&self.name);
            // A rebuilt member comes last: the others must not be complete without knowing of it.
            let joins = inner.process.as_ref().and_then(Process::target);
            let (mut last, targets): (Vec<_>, Vec<_>) =
                inner.current().into_iter().partition(|(slot, _)| Some(*slot) == joins);
            // One that is being rebuilt is told as well, so that it is found after a restart.
            let being_rebuilt = |(nth, slot): (usize, &crate::array::Slot)| {
                Some((nth, slot.base.clone().filter(|_| slot.standing == Standing::Target)?))
            };
            last.extend(inner.slots.iter().enumerate().filter_map(being_rebuilt));
            (targets, last, draft)
        };
        let this = Rc::clone(self);
        let judge = move |failures: Vec<(usize, Error)>| this.count_failures(failures, then);
        let kept = draft.clone();
        disk::write_all(targets, &draft, move |failures| {
            if failures.is_empty() { disk::write_all(last, &kept, judge) } else { judge(failures) }
        });
    }

    fn count_failures(
        self: &Rc<Self>,
        failures: Vec<(usize, Error)>,
        then: impl FnOnce(&Rc<Array>, bool) + 'static,
    ) {
        let is_enough = {
            for (slot, error) in &failures {
                self.note_failure(*slot, &error.to_string());
            }
            let mut inner = self.inner.borrow_mut();
            for (slot, _) in &failures {
                inner.slots[*slot].standing = Standing::Failed;
            }
            if failures.is_empty() {
                inner.note_synced();
            }
            inner.survives_on(inner.current_mask())
        };
        // Each round has fewer members, so this ends.
        match failures.is_empty() {
            true => then(self, true),
            false if is_enough => self.commit(then),
            false => then(self, false),
        }
    }
}

/// True if each side went on without the other, so that both may hold writes the other lacks. Lineages tell; where
/// one is not known, a superblock of equal number that differs does, or one that gave up a member which the other counts.
pub fn has_diverged(ours: &Copy, theirs: &Copy, uuid: &[u8; 16]) -> bool {
    if let (Some(our_record), Some(their_record)) = (&ours.record, &theirs.record) {
        match our_record.lineage.compare(&their_record.lineage) {
            Kinship::Diverged => return true,
            Kinship::Same | Kinship::Older | Kinship::Newer => return false,
            Kinship::Unknown => {}
        }
    }
    let (ours, theirs) = (&ours.superblock, &theirs.superblock);
    if ours.seq_number == theirs.seq_number {
        return ours != theirs;
    }
    let (newer, older) = if ours.seq_number > theirs.seq_number { (ours, theirs) } else { (theirs, ours) };
    let counts =
        |superblock: &Superblock, uuid: &[u8; 16]| superblock.member(uuid).is_some_and(Entry::is_configured);
    // The older copy was the last word of a side; its members are those it counts.
    let gave_up = newer.members.iter().any(|entry| entry.is_configured() && !counts(older, &entry.uuid));
    let was_given_up = older.members.iter().any(|entry| entry.is_configured() && !counts(newer, &entry.uuid));
    let concerns = counts(older, uuid) != counts(newer, uuid) || counts(theirs, uuid);
    gave_up && was_given_up && concerns
}

/// What an operator is told of a side that has one agreement of its own: a crash in the middle of a change, such as
/// growth, leaves that on the members that had been told. Whether any write went with it, nobody knows.
pub fn last_step_of(theirs: &Copy, ours: &Copy) -> &'static str {
    match (&theirs.record, &ours.record) {
        (Some(theirs), Some(ours)) if theirs.lineage.is_one_step_apart(&ours.lineage) => {
            "; all that it does not share with them is its last agreement: if a crash interrupted that, it holds \
             no acknowledged write that they lack"
        }
        (_, _) => "",
    }
}

/// How an operator is told of one side of an array that went two ways.
pub fn side(copy: &Copy) -> String {
    let seq = copy.superblock.seq_number;
    match copy
        .record
        .as_ref()
        .and_then(|record| Some((record.lineage.generation(), record.lineage.writer()?)))
    {
        Some((generation, writer)) => {
            format!("generation {generation} of writer {}, sequence number {seq}", Uuid::from_bytes(writer))
        }
        None => format!("sequence number {seq}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::EntryState;

    fn copy(seq_number: u64, states: &[u32], writers: &[u8]) -> Copy {
        let entry = |(slot, state): (usize, &u32)| Entry {
            uuid: [slot as u8 + 1; 16],
            data_offset: 2048,
            data_size: 8,
            state: EntryState(*state),
            slot: slot as u8,
        };
        let superblock = Superblock {
            features: Features::NONE,
            uuid: [7; 16],
            name: "r".into(),
            raid_size: 8,
            block_size: 512,
            level: 1,
            strip_size: 0,
            seq_number,
            num_base_bdevs: states.len() as u8,
            members: states.iter().enumerate().map(entry).collect(),
        };
        let mut lineage = Lineage::default();
        writers.iter().for_each(|writer| lineage.add([*writer; 16]));
        let record = (!writers.is_empty()).then(|| Record {
            sequence: seq_number,
            superblock: superblock.clone(),
            lineage,
            synced_seq: vec![0; states.len()],
            checkpoint: None,
        });
        Copy { superblock, record, is_damaged: false }
    }

    #[track_caller]
    fn check(ours: (u64, &[u32]), theirs: (u64, &[u32]), member: u8, expected: bool) {
        let (ours, theirs) = (copy(ours.0, ours.1, &[]), copy(theirs.0, theirs.1, &[]));
        assert_eq!(has_diverged(&ours, &theirs, &[member; 16]), expected);
    }

    #[test]
    fn members_that_went_on_without_each_other_are_told_from_those_left_behind() {
        // Left behind, returns later.
        check((4, &[1, 0]), (3, &[1, 1]), 2, false);
        check((3, &[1, 1]), (4, &[1, 0]), 1, false);
        // Each without the other, with equal and with different numbers.
        check((4, &[1, 0]), (4, &[0, 1]), 2, true);
        check((6, &[1, 0]), (4, &[0, 1]), 2, true);
        check((4, &[0, 1]), (6, &[1, 0]), 1, true);
        // A crash between two copies.
        check((4, &[1, 1, 0]), (3, &[1, 1, 1]), 2, false);
    }

    #[test]
    fn copies_that_say_the_same_but_were_written_by_two_are_told_apart() {
        let check = |ours: &[u8], theirs: &[u8], expected| {
            let seq = |writers: &[u8]| writers.len() as u64;
            let (ours, theirs) = (copy(seq(ours), &[1, 1], ours), copy(seq(theirs), &[1, 1], theirs));
            assert_eq!(has_diverged(&ours, &theirs, &[2; 16]), expected);
        };
        check(&[1, 1, 2], &[1, 1, 3], true);
        check(&[1, 1, 2, 2], &[1, 1, 3], true);
        check(&[1, 1, 2, 2], &[1, 1, 2], false);
        check(&[1, 1], &[1, 1, 2], false);
    }
}
