//! The memories of both sides: page-aligned, in huge pages like a device's, and touched
//! before anything is measured.
// UNSAFETY: makes slices of memory that it allocated.

use tenon_bdev::{device_alloc, device_free};

use crate::Keeper;

pub const PAGE_BYTES: usize = 4096;
/// Does not fit into a cache.
const MEMORY_BYTES: usize = 256 << 20;

/// Memory from where a device's comes from.
pub struct Area {
    base: *mut u8,
    len: usize,
}

/// Bytes of an area that are to be sent.
#[derive(Clone, Copy)]
pub struct Piece {
    pub at: usize,
    pub len: usize,
}

/// A large area with blocks at random places.
pub struct Memory {
    area: Area,
    block: usize,
    state: u64,
}

impl Area {
    /// # Panics
    /// If there is no memory.
    pub fn new(len: usize) -> Self {
        // A block that lies in one page more than it has to is sent slower.
        let base = device_alloc(len, PAGE_BYTES, -1).cast::<u8>();
        assert!(!base.is_null(), "no memory of {len} bytes");
        Area { base, len }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated, zeroed, and belong to this area alone.
        unsafe { std::slice::from_raw_parts(self.base, self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: it was allocated with these, and nobody else knows of it.
        unsafe { device_free(self.base.cast(), self.len, PAGE_BYTES) }
    }
}

impl Memory {
    /// Blocks of `block` bytes.
    pub fn new(block: usize) -> Self {
        let mut area = Area::new(MEMORY_BYTES);
        area.bytes_mut().fill(0xa5);
        Memory { area, block, state: 7 }
    }

    pub fn bytes(&self) -> &[u8] {
        self.area.bytes()
    }
}

impl Keeper for Memory {
    /// A random block's.
    fn place(&mut self) -> usize {
        let (state, below) = (&mut self.state, (MEMORY_BYTES / self.block) as u64);
        *state = state.wrapping_add(0xa076_1d64_78bd_642f);
        let product = u128::from(*state) * u128::from(*state ^ 0xe703_7ed1_a0b4_28db);
        let random = (product >> 64) as u64 ^ product as u64;
        ((u128::from(random) * u128::from(below)) >> 64) as usize * self.block
    }

    fn store(&mut self, at: usize, bytes: &[u8]) {
        self.area.bytes_mut()[at..][..bytes.len()].copy_from_slice(bytes);
    }
}
