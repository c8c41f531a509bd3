//! A fake module and a fake consumer around a gate, on a simulation.
//!
//! The module speaks the raw contract: it keeps its blocks in memory, completes at once or later in any
//! order, refuses in bursts, aborts, lends, and asserts that the gate keeps every promise about what
//! reaches a module. The consumer's slots own an I/O and its memory each and assert that it
//! completes exactly once. Everything is on one thread, as a simulation is.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod device;
pub mod slot;
pub mod world;

/// A small deterministic generator.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    pub fn permille(&mut self, chance: u64) -> bool {
        self.below(1000) < chance
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
