//! The one source of chance: a small generator (SplitMix64) whose whole
//! sequence follows from a seed, so that a failing test is repeated by its
//! seed. Not for anything that needs unpredictable numbers.

use std::cell::Cell;

/// A seeded sequence of numbers. Shared by reference; every draw advances it.
#[derive(Debug)]
pub struct Rng(Cell<u64>);

impl Rng {
    /// The sequence that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Rng(Cell::new(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    /// The next 64 bits.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..end`; 0 if `end` is 0.
    pub fn below(&self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    /// A number in `first..=last`.
    pub fn between(&self, first: u64, last: u64) -> u64 {
        first + self.below(last.saturating_sub(first).saturating_add(1))
    }

    /// An index into something of `len` elements.
    pub fn index(&self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in `permille` of 1000 draws.
    pub fn chance(&self, permille: u32) -> bool {
        self.below(1000) < u64::from(permille)
    }

    /// Fills `out`.
    pub fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// `len` bytes.
    #[must_use]
    pub fn bytes(&self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(&mut out);
        out
    }

    /// A second sequence that does not disturb this one further.
    #[must_use]
    pub fn fork(&self) -> Rng {
        Rng::new(self.next())
    }

    /// Permutes `items`.
    pub fn shuffle<T>(&self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn the_same_seed_gives_the_same_sequence() {
        let (a, b) = (Rng::new(7), Rng::new(7));
        assert!((0..100).all(|_| a.next() == b.next()));
        assert_ne!(Rng::new(1).next(), Rng::new(2).next());
    }

    #[test]
    fn draws_stay_within_their_bounds() {
        let rng = Rng::new(3);
        assert!((0..1000).all(|_| rng.below(7) < 7));
        assert!((0..1000).all(|_| (5..=9).contains(&rng.between(5, 9))));
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.between(4, 4), 4);
    }
}
