//! The consumer's side: a slot owns one I/O, its memory and what is expected of it.
// UNSAFETY: allocates I/Os with their driver context, and lends them to the gate.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use tenon_abi::{BDEV_IO_SIZE, BdevIo, CopyRange, IoChannel, IoExtV1, IoFlags, IoState, IoStatus, IoVec, Op};

/// Most pieces a slot's payload is cut into.
pub const MAX_PIECES: usize = 64;

/// What follows a completion.
pub type After = Box<dyn FnMut(&mut Slot)>;

pub struct Slot {
    pub io: *mut BdevIo,
    layout: Layout,
    memory: *mut u8,
    memory_layout: Layout,
    /// Where the payload begins in the memory.
    pub misaligned: usize,
    pub len: usize,
    iovs: [IoVec; MAX_PIECES],
    pub compare_iovs: [IoVec; 1],
    pub ranges: [CopyRange; 4],
    pub ext: IoExtV1,
    pub in_flight: Cell<bool>,
    pub completions: Cell<u64>,
    pub status: Cell<IoStatus>,
    /// Runs after each completion.
    pub after: Option<After>,
}

impl Slot {
    /// For payloads up to `bytes`.
    pub fn new(io_ctx_size: u32, bytes: usize) -> Box<Slot> {
        let layout = Layout::from_size_align(BDEV_IO_SIZE + io_ctx_size as usize, 64).unwrap();
        let memory_layout = Layout::from_size_align(bytes + 4096, 4096).unwrap();
        // SAFETY: neither layout is of size zero.
        let (io, memory) = unsafe { (alloc_zeroed(layout).cast::<BdevIo>(), alloc_zeroed(memory_layout)) };
        Box::new(Slot {
            io,
            layout,
            memory,
            memory_layout,
            misaligned: 0,
            len: 0,
            iovs: [IoVec::EMPTY; MAX_PIECES],
            compare_iovs: [IoVec::EMPTY; 1],
            ranges: [CopyRange { offset_blocks: 0, num_blocks: 0 }; 4],
            ext: IoExtV1 {
                size: size_of::<IoExtV1>() as u32,
                flags: 0,
                nvme_sqe: ptr::null(),
                nvme_cqe: ptr::null_mut(),
                copy_ranges: ptr::null(),
                copy_range_count: 0,
                compare_iovcnt: 0,
                compare_iovs: ptr::null(),
                md_len: 0,
                zone_action: 0,
                reserved: 0,
                memory_key: 0,
            },
            in_flight: Cell::new(false),
            completions: Cell::new(0),
            status: Cell::new(IoStatus::SUCCESS),
            after: None,
        })
    }

    pub fn payload(&mut self) -> &mut [u8] {
        // SAFETY: the memory has room for what is asked; see `prepare`.
        unsafe { std::slice::from_raw_parts_mut(self.memory.add(self.misaligned), self.len) }
    }

    /// Fills the request in; the payload of `bytes` is cut after each of `cuts`, which grow.
    pub fn prepare(&mut self, op: Op, offset_blocks: u64, num_blocks: u64, bytes: usize, cuts: &[usize]) {
        assert!(!self.in_flight.get());
        assert!(bytes + self.misaligned <= self.memory_layout.size());
        self.len = bytes;
        let base = self.payload().as_mut_ptr();
        let mut count = 0;
        let mut from = 0;
        for &cut in cuts.iter().filter(|&&cut| cut < bytes).chain([&bytes]) {
            if cut > from {
                // SAFETY: `from` is inside the payload.
                let piece = unsafe { base.add(from) };
                self.iovs[count] = IoVec { base: piece.cast(), len: cut - from };
                count += 1;
                from = cut;
            }
        }
        // SAFETY: the slot owns its idle I/O.
        unsafe {
            (*self.io).op = op;
            (*self.io).flags = IoFlags::NONE;
            (*self.io).iovs = if count == 0 { ptr::null_mut() } else { self.iovs.as_mut_ptr() };
            (*self.io).iovcnt = count as u32;
            (*self.io).offset_blocks = offset_blocks;
            (*self.io).num_blocks = num_blocks;
            (*self.io).md = ptr::null_mut();
            (*self.io).ext = ptr::null();
        }
    }

    pub fn set_flags(&mut self, flags: IoFlags) {
        // SAFETY: as in `prepare`.
        unsafe { (*self.io).flags = flags };
    }

    /// The sources of a COPY.
    pub fn copy_from(&mut self, ranges: &[(u64, u64)]) {
        for (to, &(offset_blocks, num_blocks)) in self.ranges.iter_mut().zip(ranges) {
            *to = CopyRange { offset_blocks, num_blocks };
        }
        self.ext.copy_ranges = self.ranges.as_ptr();
        self.ext.copy_range_count = ranges.len() as u32;
        // SAFETY: as in `prepare`.
        unsafe { (*self.io).ext = &raw const self.ext };
    }

    /// What a COMPARE_AND_WRITE expects; as long as the payload unless the test is about that.
    pub fn expect(&mut self, expected: &mut [u8]) {
        self.compare_iovs[0] = IoVec { base: expected.as_mut_ptr().cast(), len: expected.len() };
        self.ext.compare_iovs = self.compare_iovs.as_ptr();
        self.ext.compare_iovcnt = 1;
        // SAFETY: as in `prepare`.
        unsafe { (*self.io).ext = &raw const self.ext };
    }

    /// What `submit` needs: marks the slot as in flight.
    pub fn start(&mut self) -> *mut BdevIo {
        assert!(!self.in_flight.replace(true), "submitted twice");
        // SAFETY: as in `prepare`.
        unsafe {
            assert_eq!((*self.io).state, IoState::IDLE);
            (*self.io).done = Some(done);
            (*self.io).done_arg = ptr::from_mut(self).cast();
        }
        self.io
    }

    /// # Safety
    /// `ch` is a live channel of the calling reactor.
    pub unsafe fn submit(&mut self, ch: *mut IoChannel) {
        let io = self.start();
        // SAFETY: as promised by the caller; the slot is not looked at while the call lasts.
        unsafe { tenon_abi::submit(ch, io) };
    }

    /// # Safety
    /// As for `submit`.
    pub unsafe fn abort(&self, ch: *mut IoChannel) -> i32 {
        // SAFETY: the gate's table has all callbacks.
        unsafe { ((*(*ch).ops).abort.unwrap())(ch, self.io) }
    }

    pub fn is_lent(&self) -> bool {
        // SAFETY: the slot owns its I/O, which is not in flight.
        !self.in_flight.get() && unsafe { (*self.io).flags.contains(IoFlags::LENT) }
    }

    /// The bytes that were read, wherever they are.
    pub fn result(&mut self) -> Vec<u8> {
        if !self.is_lent() {
            return self.payload().to_vec();
        }
        // SAFETY: lent memory is valid until it is released.
        unsafe {
            let pieces = std::slice::from_raw_parts((*self.io).iovs, (*self.io).iovcnt as usize);
            let bytes =
                |piece: &IoVec| std::slice::from_raw_parts(piece.base.cast::<u8>(), piece.len).to_vec();
            pieces.iter().flat_map(bytes).collect()
        }
    }

    /// # Safety
    /// As for `submit`.
    pub unsafe fn release(&mut self, ch: *mut IoChannel) {
        // SAFETY: the gate's table has all callbacks.
        unsafe { ((*(*ch).ops).release.unwrap())(ch, self.io) };
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.in_flight.get() {
            // A test that failed; whoever has the I/O may still write to it.
            return;
        }
        // SAFETY: allocated in `new` with these layouts.
        unsafe {
            dealloc(self.io.cast(), self.layout);
            dealloc(self.memory, self.memory_layout);
        }
    }
}

unsafe extern "C" fn done(io: *mut BdevIo, slot: *mut c_void) {
    let slot = slot.cast::<Slot>();
    // SAFETY: `start` set the slot, which lives until the I/O is back.
    unsafe {
        assert_eq!((*slot).io, io);
        assert!((*slot).in_flight.replace(false), "completed twice");
        assert_eq!((*io).state, IoState::IDLE);
        assert_eq!((*io).done_arg, slot.cast(), "done was not given back");
        (*slot).completions.set((*slot).completions.get() + 1);
        (*slot).status.set((*io).status);
        let after = (*slot).after.take();
        if let Some(mut after) = after {
            after(&mut *slot);
            if (*slot).after.is_none() {
                (*slot).after = Some(after);
            }
        }
    }
}
