//! State of the control thread inside objects that other threads share.
// UNSAFETY: hands out a value only on the thread that owns it.

use std::cell::{RefCell, UnsafeCell};
use std::mem::ManuallyDrop;
use std::sync::OnceLock;
use std::thread::{self, ThreadId};

/// Holds a `T` that need not be `Send`, in a [`crate::Module`] or [`crate::Bdev`], which must be: pollers, timers,
/// watches, `Rc`s, lists of what the module manages. The thread that uses it first owns it, which is to be the
/// control thread; the `T` is made there by `default()`.
///
/// ```
/// use tenon_sdk::{ControlCell, Poller};
/// #[derive(Default)]
/// struct Handles {
///     poller: Option<Poller>,
/// }
/// struct MyModule {
///     handles: ControlCell<Handles>,
/// }
/// fn is_send<T: Send>() {}
/// is_send::<MyModule>();
/// ```
pub struct ControlCell<T> {
    owner: OnceLock<ThreadId>,
    value: UnsafeCell<ManuallyDrop<RefCell<Option<T>>>>,
}

// SAFETY: `value` is touched by the owner alone: `with` checks the thread, and dropping elsewhere leaks it.
unsafe impl<T> Send for ControlCell<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for ControlCell<T> {}

impl<T: Default> ControlCell<T> {
    /// Calls `work` with the value. What it returns is usually moved out of the borrow before the host is called,
    /// since the host may call back.
    ///
    /// # Panics
    /// On another thread than the first, and from inside itself.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let here = thread::current().id();
        let owner = *self.owner.get_or_init(|| here);
        assert_eq!(owner, here, "state of the control thread was used on another thread");
        // SAFETY: this is the owner, and the shared borrow only gives out what the `RefCell` allows.
        let value = unsafe { &*self.value.get() };
        work(value.borrow_mut().get_or_insert_default())
    }
}

impl<T> ControlCell<T> {
    /// An empty cell. Any thread.
    #[must_use]
    pub const fn new() -> Self {
        ControlCell { owner: OnceLock::new(), value: UnsafeCell::new(ManuallyDrop::new(RefCell::new(None))) }
    }
}

impl<T> Default for ControlCell<T> {
    fn default() -> Self {
        ControlCell::new()
    }
}

impl<T> Drop for ControlCell<T> {
    fn drop(&mut self) {
        if self.owner.get().is_none_or(|owner| *owner == thread::current().id()) {
            // SAFETY: nobody else uses the cell any longer, and this is the owner or there is no value.
            unsafe { ManuallyDrop::drop(self.value.get_mut()) };
        } else {
            log::error!("state of the control thread leaked because another thread dropped it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn the_first_user_owns_it() {
        let cell = ControlCell::<Vec<Rc<u32>>>::new();
        let shared = Rc::new(7);
        cell.with(|list| list.push(Rc::clone(&shared)));
        thread::scope(|scope| {
            assert!(scope.spawn(|| cell.with(|list| list.len())).join().is_err());
        });
        assert_eq!(cell.with(|list| list.len()), 1);
        drop(cell);
        assert_eq!(Rc::strong_count(&shared), 1);
    }

    #[test]
    fn dropped_elsewhere_it_is_left_alone() {
        static DROPS: AtomicU32 = AtomicU32::new(0);
        #[derive(Default)]
        struct Local(PhantomData<Rc<u32>>);
        impl Drop for Local {
            fn drop(&mut self) {
                DROPS.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (used, unused) = (ControlCell::<Local>::new(), ControlCell::<Local>::new());
        used.with(|_| ());
        thread::spawn(move || drop((used, unused))).join().unwrap();
        assert_eq!(DROPS.load(Ordering::Relaxed), 0);
        let here = ControlCell::<Local>::new();
        here.with(|_| ());
        drop(here);
        assert_eq!(DROPS.load(Ordering::Relaxed), 1);
    }
}
