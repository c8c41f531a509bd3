//! What a process need not do: windows of regions that are known to be equal, and
//! what a rebuild had done before a restart. A rebuild is recorded as it goes on.

use std::ops::Range;
use std::rc::Rc;

use crate::RaidModule;
use crate::array::{Array, Inner, Standing};
use crate::change::Task;
use crate::disk;
use crate::level::Level;
use crate::process::{Kind, Process};

impl Inner {
    /// What is known of the member that is to be rebuilt. It lacks no more than what is marked if it has taken every
    /// superblock that its slot had while it was current; what an interrupted rebuild gave it counts if it is recorded.
    pub fn recall_rebuild(&mut self) {
        let has_bitmap = self.marking.is_some();
        let Some(slot) = self.process.as_ref().and_then(Process::target) else { return };
        let uuid = self.slots[slot].uuid;
        let synced_seq = self.agreed.synced_seq.get(slot).copied().unwrap_or(0);
        let found = self.found.iter().rev().find(|(other, _)| *other == uuid).map(|(_, seq)| *seq);
        let is_delta = has_bitmap && synced_seq > 0 && found.is_some_and(|seq| seq >= synced_seq);
        let checkpoint = self.agreed.checkpoint.take();
        let is_it = |at: &crate::ondisk::record::Checkpoint| usize::from(at.slot) == slot && at.uuid == uuid;
        // Writes that did not reach it meanwhile are known by the bitmap only.
        let resume_at =
            checkpoint.filter(|at| has_bitmap && found.is_some() && is_it(at)).map_or(0, |at| at.done_blocks);
        if !is_delta && let Some(seq) = self.agreed.synced_seq.get_mut(slot) {
            // From now on it holds neither its old content nor all of the new.
            *seq = 0;
        }
        if let Some(process) = self.process.as_mut() {
            process.recall(is_delta, resume_at);
        }
    }

    /// Passes over windows that need not be looked at.
    pub fn skip_clean(&mut self, smallest: u64) {
        while let Some(process) = self.process.as_ref()
            && let Some((blocks, locked)) = process.next_blocks(self, smallest)
            && !process.is_needed(self, &blocks, &locked)
        {
            if let Some(process) = self.process.as_mut() {
                process.done_blocks += blocks.end - blocks.start;
            }
        }
    }

    /// A window of a resync was made equal.
    pub fn window_is_equal(&self, locked: &Range<u64>) {
        let is_resync = self.process.as_ref().is_some_and(|process| matches!(process.kind, Kind::Resync));
        // Of raid10 a window is of one pair only.
        if let Some(marking) =
            self.marking.as_ref().filter(|_| is_resync && self.params.level != Level::Raid10)
        {
            marking.intent.synced(locked);
        }
    }
}

impl Array {
    /// Makes durable how far a rebuild is, every so often; a restart goes on from there.
    pub fn record_progress(self: &Rc<Self>, then: impl FnOnce(&Rc<Array>) + 'static) {
        let due = {
            let mut inner = self.inner.borrow_mut();
            let is_due =
                inner.marking.is_some() && inner.process.as_mut().is_some_and(Process::is_record_due);
            let superblock = inner.superblock.clone().filter(|_| is_due);
            superblock.map(|superblock| (inner.next_record(&superblock), inner.current()))
        };
        let Some(((place, bytes), targets)) = due else { return then(self) };
        let this = Rc::clone(self);
        disk::write_all_at(targets, place, &bytes, move |failures| {
            for (slot, error) in failures {
                log::warn!("progress not recorded raid={} slot={slot} error=\"{error}\"", this.name);
            }
            then(&this);
        });
    }

    /// Members that may differ are made equal, if nothing else runs and all that are needed are there.
    pub fn resync(self: &Rc<Self>) {
        if !self.inner.borrow().is_resync_due() {
            return self.task_done();
        }
        self.begin(Kind::Resync);
    }

    /// Has members made equal when it is their turn.
    pub fn push_resync(self: &Rc<Self>) {
        if self.inner.borrow().is_resync_due() {
            self.push(Task::Resync);
        }
    }
}

impl Inner {
    /// Whether members that may differ wait to be made equal.
    pub fn is_resync_due(&self) -> bool {
        let waits = |slot: &crate::array::Slot| slot.standing == Standing::Target && slot.base.is_some();
        self.process.is_none()
            && !self.slots.iter().any(waits)
            && self.can_resync()
            && self.marking.as_ref().is_some_and(|marking| marking.intent.has_unsynced())
    }
}

impl RaidModule {
    /// Notes that a device carried a superblock of an array.
    pub fn note_found(array: &Array, uuid: [u8; 16], seq_number: u64) {
        let mut inner = array.inner.borrow_mut();
        inner.found.retain(|(other, _)| *other != uuid);
        if inner.found.len() == MAX_FOUND {
            inner.found.remove(0);
        }
        inner.found.push((uuid, seq_number));
    }
}

/// Devices of an array that are remembered.
const MAX_FOUND: usize = 64;
