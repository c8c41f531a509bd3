//! The memory of a worker: its I/Os with the driver context of the whole stack
//! behind each, and its buffers. All of it is made before the first I/O.
// UNSAFETY: allocates I/Os of a size known at run time and points at them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::ptr::NonNull;

use tenon_abi::{BDEV_IO_SIZE, BdevIo, IoVec};
use tenon_bdev::{device_alloc, device_free};

use crate::request::Request;
use crate::worker::Worker;

/// An I/O of a worker with what the worker must remember while it is in flight.
#[repr(C, align(64))]
pub(crate) struct Slot {
    pub io: *mut BdevIo,
    pub worker: *mut Worker,
    /// Ticks of its submission; 0: not timed.
    pub start: u64,
    pub request: Request,
    /// Its buffer. Here and not in the I/O, whose second line then need not be touched.
    pub iov: IoVec,
}
const _: () = assert!(size_of::<Slot>() == 64, "a slot is one line");

/// All slots of a worker.
pub(crate) struct Slots {
    ios: NonNull<u8>,
    layout: Layout,
    buffers: NonNull<c_void>,
    buffers_len: usize,
    slots: NonNull<Slot>,
    slots_layout: Layout,
}

/// Slots without an I/O in flight, first in, first out, so that a load walks through all its buffers whatever the
/// device does. Holds as many as there are slots.
pub(crate) struct FreeSlots {
    ring: Box<[*mut Slot]>,
    mask: u32,
    head: u32,
    tail: u32,
}

impl Slots {
    /// `count` slots for `worker`, or `None` if there is no memory.
    pub(crate) fn new(worker: *mut Worker, count: u32, io_ctx_size: u32, block_bytes: u64) -> Option<Slots> {
        let count = count as usize;
        let stride = BDEV_IO_SIZE + io_ctx_size as usize;
        let buffer_stride = (block_bytes as usize).next_multiple_of(PAGE);
        let layout = Layout::from_size_align(stride.checked_mul(count)?, align_of::<BdevIo>()).ok()?;
        let slots_layout = Layout::array::<Slot>(count).ok()?;
        let buffers_len = buffer_stride.checked_mul(count)?;
        let buffers = NonNull::new(device_alloc(buffers_len, PAGE, -1))?;
        // SAFETY: neither layout is of size 0, as `count` is not 0.
        let (ios, slots) = unsafe { (alloc_zeroed(layout), alloc_zeroed(slots_layout)) };
        let (Some(ios), Some(slots)) = (NonNull::new(ios), NonNull::new(slots.cast::<Slot>())) else {
            // SAFETY: as allocated above.
            unsafe {
                device_free(buffers.as_ptr(), buffers_len, PAGE);
                free(ios, layout);
                free(slots, slots_layout);
            }
            return None;
        };
        for index in 0..count {
            // SAFETY: all three arrays have `count` elements of these strides; zeroes are a valid `BdevIo`.
            unsafe {
                let io = ios.as_ptr().add(index * stride).cast::<BdevIo>();
                let base = buffers.as_ptr().byte_add(index * buffer_stride);
                let iov = IoVec { base, len: block_bytes as usize };
                let slot = slots.as_ptr().add(index);
                slot.write(Slot { io, worker, start: 0, request: Request::default(), iov });
            }
        }
        Some(Slots { ios, layout, buffers, buffers_len, slots, slots_layout })
    }

    /// The first of the slots; the others follow.
    pub(crate) fn first(&self) -> *mut Slot {
        self.slots.as_ptr()
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with these sizes; the worker drops them with no I/O in flight.
        unsafe {
            device_free(self.buffers.as_ptr(), self.buffers_len, PAGE);
            free(self.ios.as_ptr(), self.layout);
            free(self.slots.as_ptr().cast(), self.slots_layout);
        }
    }
}

/// # Safety
/// `memory` is null or was allocated with `layout`, and is not used any more.
unsafe fn free(memory: *mut u8, layout: Layout) {
    if !memory.is_null() {
        // SAFETY: as promised by the caller.
        unsafe { dealloc(memory, layout) };
    }
}

impl FreeSlots {
    /// All of `count` slots from `first` on.
    pub(crate) fn all(first: *mut Slot, count: u32) -> Self {
        let capacity = count.next_power_of_two();
        let mut ring = vec![std::ptr::null_mut(); capacity as usize].into_boxed_slice();
        for (index, place) in ring.iter_mut().enumerate().take(count as usize) {
            *place = first.wrapping_add(index);
        }
        Self { ring, mask: capacity - 1, head: 0, tail: count }
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    /// How many have been given back in all, modulo 2^32.
    pub(crate) fn returned(&self) -> u32 {
        self.tail
    }

    /// Takes the one that has been free for longest; there is one.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> *mut Slot {
        debug_assert!(self.len() > 0, "no slot is free");
        let slot = self.ring[(self.head & self.mask) as usize];
        self.head = self.head.wrapping_add(1);
        slot
    }

    #[inline(always)]
    pub(crate) fn put(&mut self, slot: *mut Slot) {
        self.ring[(self.tail & self.mask) as usize] = slot;
        self.tail = self.tail.wrapping_add(1);
    }
}

const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_slots_are_used_in_turn() {
        let place = |index: usize| std::ptr::without_provenance_mut::<Slot>(64 * (index + 1));
        let mut free = FreeSlots::all(place(0), 3);
        assert_eq!(free.len(), 3);
        for round in 0..100 {
            let slot = free.take();
            assert_eq!((slot, free.len()), (place(round % 3), 2));
            free.put(slot);
        }
    }
}
