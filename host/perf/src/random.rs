//! A fast random sequence: one multiplication per number, 64 bits of state.
//! Not for secrets.

/// The sequence (wyrand's construction).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of `seed`; near seeds give unrelated sequences.
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    #[inline(always)]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        fold(self.0, self.0 ^ SALT)
    }

    /// From 0 up to, but not including, 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// A random number scaled to below `bound`; uses its upper bits.
#[inline(always)]
pub(crate) fn scale(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

/// A number in which every bit of `value` counts.
pub(crate) fn mix(value: u64) -> u64 {
    fold(value ^ STEP, value.wrapping_add(SALT).rotate_left(29) | 1)
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

const STEP: u64 = 0xa076_1d64_78bd_642f;
const SALT: u64 = 0xe703_7ed1_a0b4_28db;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_below_a_bound_are_spread_evenly() {
        let mut random = Random::new(7);
        let mut counts = [0u32; 16];
        for _ in 0..160_000 {
            counts[scale(random.next(), 16) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }

    #[test]
    fn near_seeds_give_unrelated_sequences() {
        let (mut a, mut b) = (Random::new(1), Random::new(2));
        let differing: u32 = (0..64).map(|_| (a.next() ^ b.next()).count_ones()).sum();
        assert!((1_800..2_300).contains(&differing), "{differing} of 4096 bits differ");
    }
}
