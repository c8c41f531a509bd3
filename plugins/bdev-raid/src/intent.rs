//! Write intent: which regions of an array may differ between its members. A write
//! to a clean region waits until the region is marked on the members; regions that
//! rest become clean again after a while, but never while a member is missing, so
//! that one that returns lacks what is marked and nothing else.
//!
//! [`Intent`] is what channels look at: one load per write to a marked region.
//! [`Ledger`] is what the control thread keeps of it; who writes it to members is
//! `marking.rs`.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::ondisk::bitmap::{Bitmap, MAX_REGIONS, last_mask};

/// The regions of an array, shared by its channels and the control thread.
pub struct Intent {
    region_blocks: u64,
    /// Marked on the members: may be written to.
    marked: Vec<AtomicU64>,
    /// Written to since the last round.
    touched: Vec<AtomicU64>,
    /// Members may differ there since a crash or from the beginning.
    unsynced: Vec<AtomicU64>,
    has_unsynced: AtomicBool,
}

/// What is on the members, what is to be, and what is being cleared.
pub struct Ledger {
    uuid: [u8; 16],
    region_blocks: u64,
    regions: u32,
    sequence: u64,
    /// Regions that are to be marked on members.
    wanted: Vec<u64>,
    /// Those of `wanted` that become clean once no write to them is in flight.
    clearing: Vec<u64>,
    /// Those that were asked for since then.
    asked: Vec<u64>,
    /// What the write under way holds.
    writing: Option<Vec<u64>>,
    /// Whether another write is due.
    is_due: bool,
}

/// Words of regions, one bit each.
pub type Words = Vec<u64>;

impl Intent {
    /// The regions as a ledger has them; those marked may differ, if members are to be compared.
    #[must_use]
    pub fn new(ledger: &Ledger, is_unsynced: bool) -> Intent {
        let words =
            |of: &dyn Fn(u64) -> u64| ledger.wanted.iter().map(|word| AtomicU64::new(of(*word))).collect();
        let is_any = ledger.wanted.iter().any(|word| *word != 0);
        Intent {
            region_blocks: ledger.region_blocks,
            marked: words(&|word| word),
            touched: words(&|_| 0),
            unsynced: words(&|word| if is_unsynced { word } else { 0 }),
            has_unsynced: AtomicBool::new(is_unsynced && is_any),
        }
    }

    /// Whether a write to these blocks may start; it is remembered.
    #[inline]
    pub fn enter(&self, blocks: &Range<u64>) -> bool {
        let mut is_marked = true;
        for region in self.regions_of(blocks) {
            let (word, bit) = place(region);
            is_marked &= self.marked[word].load(Ordering::Acquire) & bit != 0;
            // The line stays shared between reactors as long as nothing changes.
            if self.touched[word].load(Ordering::Relaxed) & bit == 0 {
                self.touched[word].fetch_or(bit, Ordering::Relaxed);
            }
        }
        is_marked
    }

    /// Whether members may differ in these blocks.
    #[inline]
    pub fn is_unsynced(&self, blocks: &Range<u64>) -> bool {
        self.has_unsynced.load(Ordering::Relaxed) && self.has_any(&self.unsynced, blocks)
    }

    /// Whether members may differ anywhere.
    #[must_use]
    pub fn has_unsynced(&self) -> bool {
        self.has_unsynced.load(Ordering::Relaxed)
    }

    /// Members are equal in these blocks now.
    pub fn synced(&self, blocks: &Range<u64>) {
        let first = blocks.start.div_ceil(self.region_blocks);
        let last = self.marked.len() as u64 * 64;
        let is_covered = |region: &u64| (region + 1) * self.region_blocks <= blocks.end;
        for region in (first..last).take_while(is_covered) {
            let (word, bit) = place(region);
            self.unsynced[word].fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Members are equal everywhere now.
    pub fn all_synced(&self) {
        self.unsynced.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.has_unsynced.store(false, Ordering::Relaxed);
    }

    /// Every marked region now.
    #[must_use]
    pub fn marked(&self) -> Words {
        self.marked.iter().map(|word| word.load(Ordering::Relaxed)).collect()
    }

    /// Whether one of these regions overlaps the blocks.
    #[must_use]
    pub fn overlaps(&self, words: &Words, blocks: &Range<u64>) -> bool {
        self.regions_of(blocks).any(|region| words[place(region).0] & place(region).1 != 0)
    }

    /// The regions of a range of blocks.
    pub fn regions_of(&self, blocks: &Range<u64>) -> Range<u64> {
        let end = (self.marked.len() as u64 * 64).min(blocks.end.div_ceil(self.region_blocks));
        (blocks.start / self.region_blocks).min(end)..end
    }

    /// Marked regions that nobody has written to since this was asked last.
    #[must_use]
    pub fn rested(&self) -> Words {
        let rested = |((marked, touched), unsynced): ((&AtomicU64, &AtomicU64), &AtomicU64)| {
            marked.load(Ordering::Relaxed)
                & !touched.swap(0, Ordering::Relaxed)
                & !unsynced.load(Ordering::Relaxed)
        };
        self.marked.iter().zip(&self.touched).zip(&self.unsynced).map(rested).collect()
    }

    fn has_any(&self, words: &[AtomicU64], blocks: &Range<u64>) -> bool {
        self.regions_of(blocks)
            .any(|region| words[place(region).0].load(Ordering::Relaxed) & place(region).1 != 0)
    }
}

impl Ledger {
    /// For an array of that many blocks; a region holds whole `unit`s. `is_dirty`: nothing is known of any region.
    #[must_use]
    pub fn new(uuid: [u8; 16], num_blocks: u64, unit: u64, is_dirty: bool) -> Ledger {
        let unit = unit.max(1);
        let region_blocks = num_blocks.div_ceil(TARGET_REGIONS).max(MIN_REGION_BLOCKS).next_multiple_of(unit);
        let regions =
            u32::try_from(num_blocks.div_ceil(region_blocks)).unwrap_or(MAX_REGIONS).clamp(1, MAX_REGIONS);
        let words = regions.div_ceil(64) as usize;
        let mut wanted = vec![if is_dirty { u64::MAX } else { 0 }; words];
        wanted[words - 1] &= last_mask(regions);
        Ledger {
            uuid,
            region_blocks,
            regions,
            sequence: 0,
            wanted,
            clearing: vec![0; words],
            asked: vec![0; words],
            writing: None,
            is_due: false,
        }
    }

    /// Goes on from what members hold: a region counts as marked if one of them says so. Any copy that is whole has
    /// all that matters; without one, nothing is known of any region.
    pub fn load(&mut self, copies: &[Bitmap]) {
        let is_ours = |copy: &&Bitmap| {
            copy.uuid == self.uuid && copy.region_blocks == self.region_blocks && copy.regions == self.regions
        };
        let ours: Vec<&Bitmap> = copies.iter().filter(is_ours).collect();
        if ours.is_empty() {
            return self.mark_all();
        }
        for (nth, word) in self.wanted.iter_mut().enumerate() {
            *word = ours.iter().fold(0, |all, copy| all | copy.words[nth]);
        }
        self.sequence = ours.iter().map(|copy| copy.sequence).max().unwrap_or(0);
    }

    /// Nothing is known of any region.
    pub fn mark_all(&mut self) {
        self.wanted.fill(u64::MAX);
        *self.wanted.last_mut().expect("there is a region") &= last_mask(self.regions);
    }

    /// A write to these regions waits. Those that are marked, or will be by a write that is due or under way, need no
    /// other: each write wakes all who wait, and they ask again.
    pub fn ask(&mut self, regions: Range<u64>) {
        for region in regions.start..regions.end.min(self.regions.into()) {
            let (word, bit) = place(region);
            self.is_due |= bit & (!self.wanted[word] | self.clearing[word] & !self.asked[word]) != 0;
            self.asked[word] |= bit;
            self.wanted[word] |= bit;
        }
    }

    /// Has the bitmap written once more, although nothing has changed; gives the number it will have at least.
    pub fn write_again(&mut self) -> u64 {
        self.is_due = true;
        self.sequence + 1
    }

    /// The number of the last bitmap that was begun to be written.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Goes on from the number of the ledger that this one takes the place of.
    pub fn follow(&mut self, older: &Ledger) {
        self.sequence = older.sequence;
    }

    /// The bitmap to write next, if one is due and none is being written.
    pub fn next_write(&mut self) -> Option<Bitmap> {
        if !self.is_due || self.writing.is_some() {
            return None;
        }
        self.is_due = false;
        self.writing = Some(self.wanted.clone());
        Some(self.bitmap())
    }

    /// The bitmap of the present state, with the next number.
    pub fn bitmap(&mut self) -> Bitmap {
        self.sequence += 1;
        let (uuid, region_blocks, sequence) = (self.uuid, self.region_blocks, self.sequence);
        Bitmap { uuid, region_blocks, sequence, regions: self.regions, words: self.wanted.clone() }
    }

    /// The write is durable: its regions may be written to, except those that are on their way to be cleared.
    pub fn written(&mut self, intent: &Intent) {
        let Some(words) = self.writing.take() else { return };
        for (nth, word) in words.into_iter().enumerate() {
            let usable = word & self.wanted[nth] & (!self.clearing[nth] | self.asked[nth]);
            intent.marked[nth].fetch_or(usable, Ordering::Release);
        }
    }

    /// First step of clearing: no write to these regions starts any more without asking.
    pub fn begin_clear(&mut self, intent: &Intent, regions: &Words) {
        for (nth, word) in regions.iter().enumerate() {
            self.clearing[nth] = *word;
            self.asked[nth] = 0;
            intent.marked[nth].fetch_and(!word, Ordering::AcqRel);
        }
    }

    /// Second step: no write to them is in flight. Those that were asked for meanwhile stay marked.
    pub fn end_clear(&mut self) {
        for nth in 0..self.wanted.len() {
            self.wanted[nth] &= !(self.clearing[nth] & !self.asked[nth]);
            self.clearing[nth] = 0;
        }
        self.is_due = true;
    }

    /// Number of marked regions.
    #[must_use]
    pub fn marked_regions(&self) -> u32 {
        self.wanted.iter().map(|word| word.count_ones()).sum()
    }

    /// Number of regions.
    #[must_use]
    pub fn regions(&self) -> u32 {
        self.regions
    }

    /// Blocks of a region.
    #[must_use]
    pub fn region_blocks(&self) -> u64 {
        self.region_blocks
    }
}

#[inline]
fn place(region: u64) -> (usize, u64) {
    ((region / 64) as usize, 1 << (region % 64))
}

/// Regions of an array unless it is small or grows: enough to tell what is used, few enough to be marked soon.
const TARGET_REGIONS: u64 = 4096;
/// Blocks of the smallest region.
const MIN_REGION_BLOCKS: u64 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Event {
        Ask(u64),
        Write,
        Written,
        BeginClear(u64),
        EndClear,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0u64..16).prop_map(Event::Ask),
            Just(Event::Write),
            Just(Event::Written),
            any::<u64>().prop_map(Event::BeginClear),
            Just(Event::EndClear),
        ]
    }

    proptest! {
        /// Whatever the order: a region that may be written to is marked on the members, by the last bitmap that is
        /// durable and by any that is on its way; and one that was asked for may be written to in the end.
        #[test]
        fn what_may_be_written_to_is_marked_on_members(events in prop::collection::vec(event(), 1..200)) {
            let mut ledger = Ledger::new([1; 16], 16 * 8, 8, false);
            let intent = Intent::new(&ledger, false);
            let (mut durable, mut on_its_way, mut is_clearing) = (0u64, None, false);
            // Writes that started before a clearing and are in flight.
            let mut in_flight = 0u64;
            let mut waiting = 0u64;
            let to_the_end = [Event::Written, Event::EndClear, Event::Write, Event::Written];
            for event in events.into_iter().chain(to_the_end) {
                if let Event::Ask(region) = event {
                    waiting |= 1 << region;
                }
                match event {
                    Event::Ask(region) => ledger.ask(region..region + 1),
                    Event::Write => on_its_way = on_its_way.or(ledger.next_write().map(|bitmap| bitmap.words[0])),
                    Event::Written => if let Some(words) = on_its_way.take() {
                        durable = words;
                        ledger.written(&intent);
                    },
                    Event::BeginClear(words) if !is_clearing => {
                        in_flight = intent.marked()[0];
                        let words = vec![words & intent.marked()[0]];
                        ledger.begin_clear(&intent, &words);
                        is_clearing = true;
                    }
                    Event::EndClear if is_clearing => {
                        in_flight = 0;
                        ledger.end_clear();
                        is_clearing = false;
                    }
                    Event::BeginClear(_) | Event::EndClear => {}
                }
                let used = intent.marked()[0] | in_flight;
                prop_assert_eq!(used & !durable, 0);
                prop_assert_eq!(used & !on_its_way.unwrap_or(used), 0);
                waiting &= !intent.marked()[0];
            }
            prop_assert_eq!(waiting, 0);
        }
    }

    #[test]
    fn a_region_is_entered_once_it_is_marked_and_left_once_it_rests() {
        let mut ledger = Ledger::new([1; 16], 1000, 8, false);
        let intent = Intent::new(&ledger, false);
        assert!(!intent.enter(&(16..17)));
        ledger.ask(intent.regions_of(&(16..17)));
        let bitmap = ledger.next_write().unwrap();
        assert!(!intent.enter(&(16..17)), "it is not durable yet");
        ledger.ask(intent.regions_of(&(16..17)));
        ledger.written(&intent);
        ledger.ask(intent.regions_of(&(16..17)));
        assert!(ledger.next_write().is_none(), "who asks again needs no other write");
        assert!(intent.enter(&(16..17)) && !intent.enter(&(16..25)));
        assert_eq!(intent.rested(), [0, 0]);
        assert_eq!(intent.rested(), bitmap.words);
    }

    #[test]
    fn without_a_whole_copy_every_region_may_differ() {
        let mut ledger = Ledger::new([1; 16], 1000, 8, false);
        ledger.load(&[]);
        assert_eq!(ledger.marked_regions(), ledger.regions());
        let mut other = Ledger::new([1; 16], 1000, 8, false);
        other.ask(3..4);
        let (copy, foreign) = (other.bitmap(), Ledger::new([2; 16], 1000, 8, true).bitmap());
        ledger.load(&[copy, foreign]);
        assert_eq!(ledger.marked_regions(), 1);
    }

    #[test]
    fn regions_are_few_and_hold_whole_units() {
        for (blocks, unit) in [(1, 8), (4096, 24), (1 << 40, 128 * 3), (u64::MAX / 2, 7)] {
            let ledger = Ledger::new([1; 16], blocks, unit, true);
            assert!(ledger.regions() <= MAX_REGIONS && ledger.region_blocks().is_multiple_of(unit));
            assert!(ledger.region_blocks().saturating_mul(ledger.regions().into()) >= blocks);
        }
    }

    #[test]
    fn what_was_compared_is_no_longer_told_to_differ() {
        let ledger = Ledger::new([1; 16], 64 * 8, 8, true);
        let intent = Intent::new(&ledger, true);
        assert!(intent.is_unsynced(&(20..21)));
        intent.synced(&(12..32));
        assert!(
            intent.is_unsynced(&(15..16)) && !intent.is_unsynced(&(16..32)) && intent.is_unsynced(&(32..33))
        );
        intent.all_synced();
        assert!(!intent.has_unsynced());
    }
}
