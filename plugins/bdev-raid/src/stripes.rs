//! Stripes of raid5 that are being changed: one lock per slot of the journal, which
//! several reactors take without waiting, and the cutting of a write into bands
//! that an entry of the journal has room for.
//!
//! A band is a range of columns of one stripe in which the same strips are changed.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ondisk::journal::Slots;

/// The locks of an array's stripes and the slots of its journal.
pub struct Stripes {
    /// Where entries are.
    pub slots: Slots,
    /// Identity of the array.
    pub uuid: [u8; 16],
    locks: Vec<AtomicU64>,
    /// The stripe whose entry a slot holds, or [`NONE`]; whoever has the lock may change it.
    holds: Vec<AtomicU64>,
    sequence: AtomicU64,
}

/// A part of a write that is done at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Band {
    /// The stripe.
    pub stripe: u64,
    /// First block, from the beginning of a strip.
    pub column: u64,
    /// Blocks in each strip.
    pub blocks: u64,
    /// A bit per strip of data that is changed.
    pub changed: u32,
}

impl Stripes {
    /// For an array whose members have this room for a journal.
    pub fn new(slots: Slots, uuid: [u8; 16]) -> Stripes {
        let words = |value| (0..slots.count).map(|_| AtomicU64::new(value)).collect();
        Stripes { slots, uuid, locks: words(0), holds: words(NONE), sequence: AtomicU64::new(1) }
    }

    /// Takes the lock of a stripe's slot. If another reactor has it, that one will tell all when it lets go.
    pub fn try_lock(&self, stripe: u64, reactor: u64) -> bool {
        let lock = &self.locks[self.slots.of(stripe) as usize];
        let mine = (reactor + 1) << 1;
        loop {
            let now = lock.load(Ordering::Relaxed);
            let (next, is_taken) = match now {
                0 => (mine, true),
                _ if now & !1 == mine || now & 1 == 1 => return false,
                _ => (now | 1, false),
            };
            if lock.compare_exchange(now, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return is_taken;
            }
        }
    }

    /// Lets go; true if another reactor waits for it.
    #[must_use]
    pub fn unlock(&self, stripe: u64) -> bool {
        self.locks[self.slots.of(stripe) as usize].swap(0, Ordering::AcqRel) & 1 == 1
    }

    /// The next number of an entry.
    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether the slot of a stripe may hold an entry of that very stripe. With its lock.
    pub fn has_entry(&self, stripe: u64) -> bool {
        self.holds[self.slots.of(stripe) as usize].load(Ordering::Relaxed) == stripe
    }

    /// Notes what a slot holds from now on. With its lock.
    pub fn note_entry(&self, stripe: u64, is_void: bool) {
        let value = if is_void { NONE } else { stripe };
        self.holds[self.slots.of(stripe) as usize].store(value, Ordering::Relaxed);
    }
}

impl Band {
    /// The band that begins at a column, of a write to the blocks `from..to` of a stripe with strips of `strip`
    /// blocks; `None` if no column from there on is written to. An entry holds `room` blocks of data and parity.
    #[must_use]
    pub fn next(stripe: u64, from: u64, to: u64, strip: u64, column: u64, room: u64) -> Option<Band> {
        let (first, last) = (from / strip, (to - 1) / strip);
        let (begin, end) = (from % strip, (to - 1) % strip + 1);
        let mut column = column;
        while column < strip {
            let is_changed = |nth: &u64| {
                let after = if *nth == first { begin } else { 0 };
                let before = if *nth == last { end } else { strip };
                (after..before).contains(&column)
            };
            let changed = (first..=last).filter(is_changed).fold(0, |mask: u32, nth| mask | 1 << nth);
            let cut = [begin, end, strip].into_iter().filter(|cut| *cut > column).min().unwrap_or(strip);
            if changed != 0 {
                let widest = (room / (u64::from(changed.count_ones()) + 1)).max(1);
                return Some(Band { stripe, column, blocks: (cut - column).min(widest), changed });
            }
            column = cut;
        }
        None
    }

    /// The strips that are changed.
    pub fn strips(&self) -> impl Iterator<Item = usize> + use<> {
        let changed = self.changed;
        (0..u32::BITS as usize).filter(move |strip| changed & (1 << strip) != 0)
    }
}

/// No stripe.
const NONE: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bands_have_every_block_of_a_write_once_and_fit_an_entry(
            strip in 1u64..20, data in 2u64..8, room in 8u64..40, cut in any::<(u16, u16)>()
        ) {
            let size = strip * data;
            let (a, b) = (u64::from(cut.0) % size, u64::from(cut.1) % size);
            let (from, to) = (a.min(b), a.max(b) + 1);
            let mut found = HashSet::new();
            let mut column = 0;
            while let Some(band) = Band::next(3, from, to, strip, column, room) {
                prop_assert!(band.blocks > 0 && band.column >= column);
                prop_assert!(band.blocks * (u64::from(band.changed.count_ones()) + 1) <= room);
                for nth in band.strips() {
                    for at in band.column..band.column + band.blocks {
                        prop_assert!(found.insert(nth as u64 * strip + at));
                    }
                }
                column = band.column + band.blocks;
            }
            prop_assert_eq!(found, (from..to).collect::<HashSet<_>>());
        }
    }

    #[test]
    fn a_lock_is_one_reactors_and_tells_if_another_waits() {
        let slots = Slots::new(2048, 512, 3).unwrap();
        let (stripes, same) = (Stripes::new(slots, [1; 16]), slots.count);
        assert!(stripes.try_lock(0, 0) && stripes.try_lock(1, 1));
        assert!(!stripes.try_lock(same, 0));
        assert!(!stripes.unlock(0), "only the holder itself waits");
        assert!(stripes.try_lock(same, 0) && !stripes.try_lock(0, 1) && !stripes.try_lock(0, 2));
        assert!(stripes.unlock(0), "others wait");
        assert!(stripes.try_lock(0, 1));
    }
}
