//! The atomics that the message queue and the sleep protocol are built from.
//!
//! Under `cfg(loom)` they are loom's, so that its tests explore every
//! interleaving of those two files. All other files use the standard library.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

/// A cell whose contents one thread at a time may reach, as the queue's turn counter decides.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct SlotCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> SlotCell<T> {
    /// Calls `f` with a pointer to the contents.
    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell as SlotCell;

/// Tells loom that a retry loop waits for another thread; nothing otherwise.
#[inline(always)]
pub(crate) fn retry_hint() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(not(loom))]
    std::hint::spin_loop();
}
