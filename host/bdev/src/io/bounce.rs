//! Bounce buffers of one reactor: a bounded pool that all its devices share, and who waits for one.
//!
//! Buffers are allocated when first needed and kept. A parent that finds none waits in line with its
//! children in flight; it goes on when any channel of the reactor gives a buffer back. A channel has
//! at most half of them, so a device that hangs cannot starve the others; and a channel that has none gets
//! one even beyond the bound, as the holders of all others may be stacked on top of it and wait for it.
// UNSAFETY: hands out raw memory and holds raw pointers to waiting parents.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};

use super::channel::ModuleChannel;
use super::child::BOUNCE_BYTES;
use super::split::{self, Parent, ParentQueue};

/// The pool of one reactor.
#[derive(Default)]
pub(super) struct Bounce {
    free: RefCell<Vec<*mut u8>>,
    made: Cell<u32>,
    waiting: RefCell<ParentQueue>,
    is_resuming: Cell<bool>,
    has_more: Cell<bool>,
}

impl Bounce {
    /// A buffer for a child of `m`, if there is one.
    ///
    /// # Safety
    /// `m` is a live channel of this reactor, with a pool.
    pub(super) unsafe fn take(&self, m: *mut ModuleChannel) -> Option<*mut u8> {
        // SAFETY: as promised by the caller.
        unsafe {
            let pool = (*m).pool;
            if (*pool).buffers >= BUFFERS_PER_CHANNEL {
                return None;
            }
            let spare = self.free.borrow_mut().pop();
            let buffer = match spare {
                Some(buffer) => buffer,
                None if self.made.get() < BUFFERS || (*pool).buffers == 0 => {
                    self.made.set(self.made.get() + 1);
                    allocate()
                }
                None => return None,
            };
            (*pool).buffers += 1;
            Some(buffer)
        }
    }

    /// Takes a buffer back.
    ///
    /// # Safety
    /// `buffer` came from [`Bounce::take`] with this `m`.
    pub(super) unsafe fn put(&self, m: *mut ModuleChannel, buffer: *mut u8) {
        // SAFETY: as promised by the caller.
        unsafe { (*(*m).pool).buffers -= 1 };
        if self.made.get() > BUFFERS {
            self.made.set(self.made.get() - 1);
            // SAFETY: made by `allocate`, and its child has done with it.
            unsafe { dealloc(buffer, LAYOUT) };
            return;
        }
        self.free.borrow_mut().push(buffer);
    }

    /// Lines a parent up.
    ///
    /// # Safety
    /// `p` is an active parent in no queue, and is removed before it is completed.
    pub(super) unsafe fn wait(&self, p: *mut Parent) {
        // SAFETY: as promised by the caller.
        unsafe { self.waiting.borrow_mut().push_back(p) };
    }

    pub(super) fn leave(&self, p: *mut Parent) {
        self.waiting.borrow_mut().remove(p);
    }

    /// Lets waiting parents go on, each at most once.
    pub(super) fn resume(&self) {
        if self.waiting.borrow().is_empty() {
            self.has_more.set(false);
            return;
        }
        if self.is_resuming.replace(true) {
            self.has_more.set(true);
            return;
        }
        self.has_more.set(false);
        let waiting = self.waiting.borrow().len();
        for _ in 0..waiting {
            let Some(p) = self.waiting.borrow_mut().pop_front() else { break };
            let is_exhausted = self.free.borrow().is_empty() && self.made.get() >= BUFFERS;
            // SAFETY: parents in the queue are active. One that finds no buffer lines up again.
            unsafe {
                if is_exhausted && split::has_buffers(p) {
                    self.wait(p);
                } else {
                    split::resume_from_bounce(p);
                }
            }
        }
        self.is_resuming.set(false);
    }

    /// Whether a buffer came back while others were being handed out.
    pub(super) fn has_work(&self) -> bool {
        self.has_more.get() && !self.waiting.borrow().is_empty()
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        for buffer in self.free.borrow_mut().drain(..) {
            // SAFETY: made by `allocate`, and nobody has it.
            unsafe { dealloc(buffer, LAYOUT) };
        }
    }
}

/// Zeroed memory of a bounce buffer's size and alignment.
pub(super) fn allocate() -> *mut u8 {
    // SAFETY: the layout is not of size zero.
    let memory = unsafe { alloc_zeroed(LAYOUT) };
    if memory.is_null() {
        handle_alloc_error(LAYOUT);
    }
    memory
}

/// Gives back what [`allocate`] gave.
///
/// # Safety
/// `buffer` came from there, and nobody uses it any more.
pub(super) unsafe fn deallocate(buffer: *mut u8) {
    // SAFETY: as promised by the caller.
    unsafe { dealloc(buffer, LAYOUT) };
}

const LAYOUT: Layout = match Layout::from_size_align(BOUNCE_BYTES, BOUNCE_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

/// Buffers per reactor.
const BUFFERS: u32 = 16;
/// Of them, how many one channel may have.
const BUFFERS_PER_CHANNEL: u32 = 8;
