//! Pollers and watched descriptors: closures that the calling reactor runs
//! until their owner drops them. Timers are in `timer.rs`.
// UNSAFETY: closures travel through the host as raw pointers.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use tenon_abi::{FdFn, PollerFlags, PollerV1, ReactorHandle, Str};

use crate::{Error, Host};

/// What a poller's run amounted to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poll {
    /// There was work.
    Busy,
    /// There was nothing to do.
    Idle,
}

/// A closure that a reactor runs in every turn or periodically; ends when dropped.
///
/// It may be dropped from inside its own closure. A panic in the closure aborts: pollers move I/O.
#[must_use = "a poller stops when it is dropped"]
pub struct Poller {
    host: Host,
    handle: ReactorHandle,
    period_us: Cell<u64>,
    /// Keeps the closures alive, and the poller on its thread.
    _closures: Rc<dyn Any>,
}

/// A watched file descriptor; the watch ends when dropped. The descriptor itself is not closed.
#[must_use = "a watch ends when it is dropped"]
pub struct FdWatch {
    host: Host,
    handle: ReactorHandle,
    _closure: Rc<dyn Any>,
}

struct Closures<R, S> {
    run: RefCell<R>,
    sleep: RefCell<S>,
}

impl Host {
    /// Starts a poller on the calling reactor that must run in every turn (or every `period_us`) and so keeps
    /// the reactor awake. On a reactor.
    ///
    /// # Errors
    /// If the reactor has no room for another poller, or the thread is none of the host's.
    pub fn poller(
        &self,
        name: &str,
        period_us: u64,
        run: impl FnMut() -> Poll + 'static,
    ) -> Result<Poller, Error> {
        self.start_poller(name, period_us, PollerFlags::PURE, run, || true)
    }

    /// Starts a poller that has a wake source of its own (a watched descriptor, a message, a timer): the reactor
    /// may sleep while it is idle. `may_sleep` runs before the reactor sleeps: it arms the wake source and
    /// answers false if there is work. On a reactor.
    ///
    /// # Errors
    /// As [`Host::poller`].
    pub fn wakeable_poller(
        &self,
        name: &str,
        period_us: u64,
        run: impl FnMut() -> Poll + 'static,
        may_sleep: impl FnMut() -> bool + 'static,
    ) -> Result<Poller, Error> {
        self.start_poller(name, period_us, PollerFlags::WAKEABLE, run, may_sleep)
    }

    fn start_poller<R: FnMut() -> Poll + 'static, S: FnMut() -> bool + 'static>(
        &self,
        name: &str,
        period_us: u64,
        flags: PollerFlags,
        run: R,
        may_sleep: S,
    ) -> Result<Poller, Error> {
        let closures = Rc::new(Closures { run: RefCell::new(run), sleep: RefCell::new(may_sleep) });
        let wakeable = flags == PollerFlags::WAKEABLE;
        let poller = PollerV1 {
            size: size_of::<PollerV1>() as u32,
            flags,
            name: Str::new(name),
            period_us,
            callback: run_poller::<R, S>,
            before_sleep: if wakeable { Some(before_sleep::<R, S>) } else { None },
            arg: Rc::as_ptr(&closures).cast_mut().cast::<c_void>(),
        };
        let mut handle = ReactorHandle(0);
        // SAFETY: the host copies `poller`; `arg` stays valid until `Poller::drop` has unregistered it.
        let code = unsafe { (self.api.poller_register)(&poller, &mut handle) };
        Error::check(code, "cannot start a poller").map_err(|error| error.object(name))?;
        Ok(Poller { host: *self, handle, period_us: Cell::new(period_us), _closures: closures })
    }

    /// Calls `ready` with epoll's event bits while `fd` is ready (level-triggered). Keep `fd` open as long as
    /// the watch. On a reactor.
    ///
    /// # Errors
    /// If the descriptor cannot be watched, or the thread is none of the host's.
    pub fn watch_fd<F: FnMut(u32) + 'static>(
        &self,
        fd: &impl AsRawFd,
        events: u32,
        ready: F,
    ) -> Result<FdWatch, Error> {
        let closure = Rc::new(RefCell::new(ready));
        let arg = Rc::as_ptr(&closure).cast_mut().cast::<c_void>();
        let mut handle = ReactorHandle(0);
        // SAFETY: `arg` stays valid until `FdWatch::drop` has unregistered it.
        let code =
            unsafe { (self.api.fd_register)(fd.as_raw_fd(), events, FdFn(fd_ready::<F>), arg, &mut handle) };
        Error::check(code, "cannot watch a file descriptor")?;
        Ok(FdWatch { host: *self, handle, _closure: closure })
    }
}

impl Poller {
    /// Changes the time between runs, 0 for every turn, and resumes a paused poller.
    pub fn set_period_us(&self, period_us: u64) {
        self.period_us.set(period_us);
        self.set(false);
    }

    /// Stops running it until [`Poller::resume`].
    pub fn pause(&self) {
        self.set(true);
    }

    /// Runs it again.
    pub fn resume(&self) {
        self.set(false);
    }

    fn set(&self, paused: bool) {
        // SAFETY: a live handle, on its reactor: `Poller` is not `Send`.
        let code =
            unsafe { (self.host.api.poller_set)(self.handle, self.period_us.get(), u32::from(paused)) };
        debug_assert_eq!(code, 0, "the host knows every poller that is not dropped");
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        // SAFETY: a live handle, on its reactor; after this the closures are not called again.
        let code = unsafe { (self.host.api.poller_unregister)(self.handle) };
        if code != 0 {
            log::error!("poller unknown to the host code={code}");
        }
    }
}

impl FdWatch {
    /// Changes the events that are watched for.
    ///
    /// # Errors
    /// If the descriptor was closed meanwhile.
    pub fn modify(&self, events: u32) -> Result<(), Error> {
        // SAFETY: a live handle, on its reactor: `FdWatch` is not `Send`.
        let code = unsafe { (self.host.api.fd_modify)(self.handle, events) };
        Error::check(code, "cannot change a watched file descriptor")
    }
}

impl Drop for FdWatch {
    fn drop(&mut self) {
        // SAFETY: a live handle, on its reactor; after this the closure is not called again.
        let code = unsafe { (self.host.api.fd_unregister)(self.handle) };
        if code != 0 {
            log::error!("watched descriptor unknown to the host code={code}");
        }
    }
}

/// Borrows an object that its owner may drop during the call: the count keeps it until the guard goes.
///
/// # Safety
/// `arg` came from `Rc::as_ptr` of an `Rc<T>` on this thread that still exists.
unsafe fn keep<T>(arg: *mut c_void) -> Rc<T> {
    let object = arg.cast_const().cast::<T>();
    // SAFETY: the caller's `Rc` exists, so the count may grow, and the new reference is ours to own.
    unsafe {
        Rc::increment_strong_count(object);
        Rc::from_raw(object)
    }
}

/// # Safety
/// `arg` is the `Closures<R, S>` of a registered poller.
unsafe extern "C" fn run_poller<R: FnMut() -> Poll, S>(arg: *mut c_void) -> i32 {
    // SAFETY: a registered poller's closures exist, and this is their thread.
    let closures = unsafe { keep::<Closures<R, S>>(arg) };
    let Ok(mut run) = closures.run.try_borrow_mut() else { return 0 };
    match run() {
        Poll::Busy => 1,
        Poll::Idle => 0,
    }
}

/// # Safety
/// As [`run_poller`].
unsafe extern "C" fn before_sleep<R, S: FnMut() -> bool>(arg: *mut c_void) -> i32 {
    // SAFETY: as in `run_poller`.
    let closures = unsafe { keep::<Closures<R, S>>(arg) };
    let Ok(mut may_sleep) = closures.sleep.try_borrow_mut() else { return 0 };
    i32::from(may_sleep())
}

/// # Safety
/// `arg` is the `RefCell<F>` of a registered watch.
unsafe extern "C" fn fd_ready<F: FnMut(u32)>(arg: *mut c_void, revents: u32) {
    // SAFETY: a registered watch's closure exists, and this is its thread.
    let closure = unsafe { keep::<RefCell<F>>(arg) };
    if let Ok(mut ready) = closure.try_borrow_mut() {
        ready(revents);
    }
}
