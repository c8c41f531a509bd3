//! Callbacks: a C function with an argument, or a closure in the same clothes.
//!
//! Everything a reactor calls is a [`Callback`]. A raw one is called directly,
//! with no more than an indirect call; a closure is boxed and called through a
//! trampoline that also decides what becomes of a panic. Knows no source of
//! events; those store callbacks and say when to call them.
//!
//! # Safety
//!
//! The private trampolines want the pointer that `Callback::boxed` made for their
//! very closure type: alive, called by nobody else meanwhile, and for `call_once`
//! and `release_box` never used again.
// UNSAFETY: closures are stored as untyped pointers, so that closures and C functions share a path.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::clock::in_simulation;
use crate::epoll::Events;
use crate::local::name_of_current_thread;
use crate::poller::Poll;

/// A poller: returns more than 0 when it found work, 0 (or less) when idle.
pub type PollFn = unsafe extern "C" fn(*mut c_void) -> i32;
/// A one-shot timer.
pub type TimerFn = unsafe extern "C" fn(*mut c_void);
/// A message, or either half of an offloaded job.
pub type MessageFn = unsafe extern "C" fn(*mut c_void);
/// A descriptor is ready; the second argument holds the `EPOLL*` bits.
pub type FdFn = unsafe extern "C" fn(*mut c_void, u32);

/// A function and the argument it owns.
pub(crate) struct Callback<F> {
    run: F,
    arg: OwnedArg,
}

/// An argument, and how to release it if there is something to release.
pub(crate) struct OwnedArg {
    arg: *mut c_void,
    release: Option<unsafe fn(*mut c_void)>,
}

impl<F: Copy> Callback<F> {
    /// A C callback; `arg` stays the caller's.
    pub(crate) fn raw(run: F, arg: *mut c_void) -> Self {
        Self { run, arg: OwnedArg { arg, release: None } }
    }

    fn boxed<C>(run: F, closure: C) -> Self {
        let arg = Box::into_raw(Box::new(closure)).cast();
        Self { run, arg: OwnedArg { arg, release: Some(release_box::<C>) } }
    }

    /// The function and its argument, for a call that leaves the callback in place.
    #[inline(always)]
    pub(crate) fn parts(&self) -> (F, *mut c_void) {
        (self.run, self.arg.arg)
    }

    /// Gives up the function; what remains only releases the argument.
    pub(crate) fn into_owned_arg(self) -> OwnedArg {
        self.arg
    }
}

impl Callback<MessageFn> {
    /// A closure that is called at most once.
    pub(crate) fn once<C: FnOnce()>(closure: C) -> Self {
        Self::boxed(call_once::<C>, closure)
    }

    /// Calls it; a closure is consumed by its call.
    #[inline]
    pub(crate) fn call(self) {
        let (run, arg) = self.parts();
        std::mem::forget(self.arg);
        // SAFETY: `run` and `arg` were given together, either by a caller of an unsafe `*_raw`
        // function who vouched for them or by `once`; the argument's ownership goes to the call.
        unsafe { run(arg) }
    }
}

impl Callback<PollFn> {
    /// A closure that is polled.
    pub(crate) fn poll<C: FnMut() -> Poll>(closure: C) -> Self {
        Self::boxed(call_poll::<C>, closure)
    }

    /// A closure that is asked before a sleep.
    pub(crate) fn ask<C: FnMut() -> bool>(closure: C) -> Self {
        Self::boxed(call_ask::<C>, closure)
    }
}

impl Callback<FdFn> {
    /// A closure that is told of a descriptor's events.
    pub(crate) fn ready<C: FnMut(Events)>(closure: C) -> Self {
        Self::boxed(call_ready::<C>, closure)
    }
}

// SAFETY: a callback crosses threads only as a message or an offloaded job. Their closures are
// `Send` by the bounds of the public functions; for a raw one the caller of the unsafe function
// vouches.
unsafe impl<F> Send for Callback<F> {}

impl Drop for OwnedArg {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            // SAFETY: `release` was instantiated for the closure that `arg` points to, and a
            // callback that consumed its argument forgot this value.
            unsafe { release(self.arg) }
        }
    }
}

/// A panic that a simulation has to hand to its test; the first one, if there are several.
pub(crate) fn take_panic() -> Option<Box<dyn Any + Send>> {
    PANIC.with(|slot| slot.borrow_mut().take())
}

unsafe extern "C" fn call_once<C: FnOnce()>(arg: *mut c_void) {
    // SAFETY: `arg` came from `Box::into_raw` for this very type, and is called only once.
    let closure = unsafe { Box::from_raw(arg.cast::<C>()) };
    guarded(closure);
}

unsafe extern "C" fn call_poll<C: FnMut() -> Poll>(arg: *mut c_void) -> i32 {
    // SAFETY: `arg` came from `Box::into_raw` for this very type. A reactor does not call
    // itself, so this is the only reference; it is released only after the call has returned.
    let closure = unsafe { &mut *arg.cast::<C>() };
    guarded(|| i32::from(closure() == Poll::Busy))
}

unsafe extern "C" fn call_ask<C: FnMut() -> bool>(arg: *mut c_void) -> i32 {
    // SAFETY: as in `call_poll`.
    let closure = unsafe { &mut *arg.cast::<C>() };
    guarded(|| i32::from(closure()))
}

unsafe extern "C" fn call_ready<C: FnMut(Events)>(arg: *mut c_void, revents: u32) {
    // SAFETY: as in `call_poll`.
    let closure = unsafe { &mut *arg.cast::<C>() };
    guarded(|| closure(Events::from_bits(revents)));
}

unsafe fn release_box<C>(arg: *mut c_void) {
    // SAFETY: `arg` came from `Box::into_raw` for this very type; its owner is being dropped.
    drop(unsafe { Box::from_raw(arg.cast::<C>()) });
}

/// Runs a closure below a C frame, through which a panic must not unwind.
#[inline(always)]
pub(crate) fn guarded<R: Default>(f: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        closure_panicked(payload);
        R::default()
    })
}

#[cold]
fn closure_panicked(payload: Box<dyn Any + Send>) {
    if in_simulation() {
        PANIC.with(|slot| {
            slot.borrow_mut().get_or_insert(payload);
        });
        return;
    }
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    log::error!("callback panicked, aborting reactor={} panic={text:?}", name_of_current_thread());
    log::logger().flush();
    std::process::abort();
}

thread_local! {
    static PANIC: RefCell<Option<Box<dyn Any + Send>>> = const { RefCell::new(None) };
}
