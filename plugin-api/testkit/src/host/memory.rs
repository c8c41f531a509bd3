//! Memory of the fake host: `alloc` and the reactors' buffers, each with a
//! guard zone on both sides, so that a write next to it is found. Also
//! [`RawBuf`], the same for payloads of tests.
// UNSAFETY: owns raw allocations that modules write through pointers.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ffi::c_void;

use super::module::ModuleId;

/// Raw memory that others write through pointers while we hold it; never borrowed as a slice.
pub(crate) struct RawBuf {
    base: *mut u8,
    layout: Layout,
}

impl RawBuf {
    /// `len` bytes of `fill`, aligned to `align` (a power of two).
    pub(crate) fn new(len: usize, align: usize, fill: u8) -> Option<RawBuf> {
        let buffer = RawBuf::zeroed(len, align)?;
        if fill != 0 {
            buffer.fill(0, buffer.len(), fill);
        }
        Some(buffer)
    }

    /// `len` zeroes, aligned to `align` (a power of two). Large ones cost nothing until they are touched.
    fn zeroed(len: usize, align: usize) -> Option<RawBuf> {
        let layout = Layout::from_size_align(len.max(1), align.max(1)).ok()?;
        // SAFETY: the layout's size is at least 1.
        let base = unsafe { alloc_zeroed(layout) };
        (!base.is_null()).then_some(RawBuf { base, layout })
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }

    /// The address of byte `at`.
    pub(crate) fn at(&self, at: usize) -> *mut u8 {
        assert!(at <= self.len(), "raw buffer: {at} is behind its end");
        // SAFETY: at most one behind the end of the allocation, as just checked.
        unsafe { self.base.add(at) }
    }

    pub(crate) fn copy_in(&self, at: usize, from: &[u8]) {
        assert!(at + from.len() <= self.len(), "raw buffer: copy behind its end");
        // SAFETY: the range is inside the allocation, as just checked, and `from` is a separate borrow.
        unsafe { self.base.add(at).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }

    pub(crate) fn copy_out(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len(), "raw buffer: copy behind its end");
        let mut out = vec![0; len];
        // SAFETY: the range is inside the initialised allocation, and `out` is fresh.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(self.base.add(at), len) };
        out
    }

    pub(crate) fn fill(&self, at: usize, len: usize, byte: u8) {
        assert!(at + len <= self.len(), "raw buffer: fill behind its end");
        // SAFETY: the range is inside the allocation, as just checked.
        unsafe { self.base.add(at).write_bytes(byte, len) };
    }

    /// True if `len` bytes at `at` are all `byte`.
    pub(crate) fn is_filled(&self, at: usize, len: usize, byte: u8) -> bool {
        self.copy_out(at, len).iter().all(|found| *found == byte)
    }
}

impl Drop for RawBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed only here.
        unsafe { dealloc(self.base, self.layout) };
    }
}

/// An allocation between two guard zones.
pub(crate) struct Guarded {
    buffer: RawBuf,
    guard: usize,
    pub(crate) len: usize,
    pub(crate) align: usize,
    pub(crate) module: ModuleId,
    pub(crate) id: u64,
}

// SAFETY: plain owned memory; whoever writes it through the pointer is the module's responsibility.
unsafe impl Send for Guarded {}

impl Guarded {
    fn new(len: usize, align: usize, module: ModuleId, id: u64) -> Option<Guarded> {
        let guard = align.max(MIN_GUARD);
        let total = len.checked_add(2 * guard)?;
        let buffer = RawBuf::zeroed(total, align)?;
        buffer.fill(0, guard, GUARD_BYTE);
        buffer.fill(guard + len, guard, GUARD_BYTE);
        Some(Guarded { buffer, guard, len, align, module, id })
    }

    pub(crate) fn pointer(&self) -> *mut u8 {
        self.buffer.at(self.guard)
    }

    /// True if nobody wrote next to the allocation.
    pub(crate) fn is_intact(&self) -> bool {
        let behind = self.guard + self.len;
        self.buffer.is_filled(0, self.guard, GUARD_BYTE)
            && self.buffer.is_filled(behind, self.buffer.len() - behind, GUARD_BYTE)
    }
}

/// What `free` and `buffer_put` found wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FreeFault {
    Unknown,
    OtherSize,
    Overrun,
}

/// Every allocation of one fake host, by address.
#[derive(Default)]
pub(crate) struct Memory {
    live: BTreeMap<usize, Guarded>,
    next_id: u64,
}

impl Memory {
    /// Zeroed memory, or null.
    pub(crate) fn allocate(&mut self, len: usize, align: usize, module: ModuleId) -> *mut c_void {
        if len == 0 || len > MAX_ALLOCATION || !align.is_power_of_two() || align > MAX_ALIGN {
            return std::ptr::null_mut();
        }
        self.next_id += 1;
        let Some(block) = Guarded::new(len, align, module, self.next_id) else { return std::ptr::null_mut() };
        let pointer = block.pointer();
        self.live.insert(pointer as usize, block);
        pointer.cast()
    }

    /// Takes an allocation back; what is wrong with the call is told.
    pub(crate) fn release(
        &mut self,
        pointer: *mut c_void,
        len: usize,
        align: usize,
    ) -> Result<Guarded, FreeFault> {
        let block = self.live.remove(&(pointer as usize)).ok_or(FreeFault::Unknown)?;
        if block.len != len || block.align != align {
            return Err(FreeFault::OtherSize);
        }
        if block.is_intact() { Ok(block) } else { Err(FreeFault::Overrun) }
    }

    pub(crate) fn of(&self, module: ModuleId) -> impl Iterator<Item = &Guarded> {
        self.live.values().filter(move |block| block.module == module)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Guarded> {
        self.live.values()
    }
}

const GUARD_BYTE: u8 = 0xc5;
const MIN_GUARD: usize = 64;
const MAX_ALIGN: usize = 2 << 20;
const MAX_ALLOCATION: usize = 4 << 30;

#[cfg(test)]
mod tests {
    use super::{FreeFault, Memory};
    use crate::host::module::ModuleId;

    #[test]
    fn a_write_next_to_an_allocation_is_found() {
        let mut memory = Memory::default();
        let pointer = memory.allocate(100, 64, ModuleId::HOST);
        assert_eq!(pointer as usize % 64, 0);
        // SAFETY: one byte behind the allocation is its guard zone, which is still ours.
        unsafe { pointer.cast::<u8>().add(100).write(1) };
        assert_eq!(memory.release(pointer, 100, 64).err(), Some(FreeFault::Overrun));
    }

    #[test]
    fn memory_is_freed_once_and_as_it_was_got() {
        let mut memory = Memory::default();
        let pointer = memory.allocate(4096, 4096, ModuleId::HOST);
        assert!(memory.release(pointer, 4096, 4096).is_ok());
        assert_eq!(memory.release(pointer, 4096, 4096).err(), Some(FreeFault::Unknown));
        let pointer = memory.allocate(10, 8, ModuleId::HOST);
        assert_eq!(memory.release(pointer, 11, 8).err(), Some(FreeFault::OtherSize));
        assert!(memory.allocate(10, 3, ModuleId::HOST).is_null(), "alignment is no power of two");
    }
}
