//! Redoing what the journals of the members of a raid5 hold, before the array comes
//! up: every entry that was written under the superblock that is in force, the
//! newest of each slot. Doing it again does no harm.

use std::rc::Rc;

use tenon_sdk::Error;

use crate::array::{Array, Inner};
use crate::disk;
use crate::ondisk::journal::{Entry, Slots};
use crate::superblock::Features;

/// An entry to be redone.
struct Redo {
    entry: Entry,
    payload: Vec<u8>,
}

impl Inner {
    /// The journal of the array; `None` if it has none.
    pub fn journal(&self) -> Option<Slots> {
        let wanted = self.agreed.features.contains(Features::JOURNAL);
        let room = self.slots.iter().map(|slot| slot.data_offset).min().filter(|_| wanted)?;
        Slots::new(room, self.block_size as usize, self.slots.len())
    }
}

impl Array {
    /// Reads the journals and redoes what they hold; `then` learns whether everything is in place.
    pub fn replay(self: &Rc<Self>, then: impl FnOnce(&Rc<Array>, Result<(), Error>) + 'static) {
        let (slots, targets, block) = {
            let inner = self.inner.borrow();
            (inner.journal(), inner.current(), u64::from(inner.block_size))
        };
        let Some(slots) = slots else { return then(self, Ok(())) };
        let this = Rc::clone(self);
        let (from, len) = (slots.first_block * block, (slots.count * slots.slot_blocks * block) as usize);
        disk::each(
            targets,
            |base, _, done| disk::read_at(base, from, len, done),
            move |journals: Vec<(usize, Result<Vec<u8>, Error>)>| {
                // A journal that cannot be read is like one that was lost: each entry is on two members.
                let journals = journals.into_iter().filter_map(|(_, bytes)| bytes.ok()).collect::<Vec<_>>();
                let redo = this.entries(&slots, &journals);
                log::info!("journal read raid={} entries={}", this.name, redo.len());
                this.redo(redo, then);
            },
        );
    }

    fn entries(&self, slots: &Slots, journals: &[Vec<u8>]) -> Vec<Redo> {
        let inner = self.inner.borrow();
        let epoch = inner.superblock.as_ref().map_or(0, |superblock| superblock.seq_number);
        let block = inner.block_size as usize;
        let slot_bytes = slots.slot_blocks as usize * block;
        let newest = |nth: usize| {
            let found = journals.iter().filter_map(|journal| {
                let slot = journal.get(nth * slot_bytes..(nth + 1) * slot_bytes)?;
                let (entry, payload) = Entry::parse(slot, slots.footer_bytes, block)?;
                let is_ours =
                    entry.uuid == inner.uuid && entry.epoch == epoch && slots.of(entry.stripe) == nth as u64;
                is_ours.then_some((entry, payload))
            });
            let (entry, payload) = found.max_by_key(|(entry, _)| entry.sequence)?;
            (entry.blocks > 0).then(|| Redo { entry, payload: payload.to_vec() })
        };
        (0..slots.count as usize).filter_map(newest).collect()
    }

    /// Writes one entry after the other in place; a member that is not there is left out.
    fn redo(
        self: &Rc<Self>,
        mut left: Vec<Redo>,
        then: impl FnOnce(&Rc<Array>, Result<(), Error>) + 'static,
    ) {
        let Some(next) = left.pop() else { return then(self, Ok(())) };
        let Some(parts) = self.parts(&next) else {
            log::error!("journal entry does not fit raid={} stripe={}", self.name, next.entry.stripe);
            return self.redo(left, then);
        };
        let current = self.inner.borrow().current();
        let targets: Vec<_> =
            current.into_iter().filter(|(slot, _)| parts.iter().any(|part| part.0 == *slot)).collect();
        let this = Rc::clone(self);
        disk::each(
            targets,
            |base, slot, done| match parts.iter().find(|part| part.0 == slot) {
                Some((_, at, bytes)) => disk::write_at(base, *at, bytes, done),
                None => done(Ok(())),
            },
            move |results: Vec<(usize, Result<(), Error>)>| match results
                .into_iter()
                .find_map(|(_, result)| result.err())
            {
                None => this.redo(left, then),
                Some(error) => then(&this, Err(error)),
            },
        );
    }

    /// What goes where: slot, byte of the device, bytes. `None` if the entry does not fit the array.
    fn parts<'a>(&self, redo: &'a Redo) -> Option<Vec<(usize, u64, &'a [u8])>> {
        let inner = self.inner.borrow();
        let layout = inner.layout.as_ref()?;
        let block = u64::from(inner.block_size);
        let entry = &redo.entry;
        let end = u64::from(entry.column).checked_add(entry.blocks.into())?;
        let data = layout.members() as u32 - 1;
        let stripes = layout.data_sizes.first()? / layout.strip_blocks;
        if end > layout.strip_blocks || entry.stripe >= stripes || entry.changed >> data != 0 {
            return None;
        }
        let width = entry.blocks as usize * block as usize;
        let strips = (0..data as usize).filter(|strip| entry.changed & (1 << strip) != 0);
        let members = std::iter::once(layout.parity_slot(entry.stripe))
            .chain(strips.map(|strip| layout.data_slot(entry.stripe, strip)));
        let at = entry.stripe * layout.strip_blocks + u64::from(entry.column);
        let place = |slot: usize| (inner.slots[slot].data_offset + at) * block;
        Some(
            members
                .zip(redo.payload.chunks_exact(width))
                .map(|(slot, part)| (slot, place(slot), part))
                .collect(),
        )
    }
}
