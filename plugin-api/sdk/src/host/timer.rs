//! Time that passes: [`Timer`] runs a closure once, [`Alarm`] is set again and
//! again without allocating and so suits the data path.
// UNSAFETY: closures travel through the host as raw pointers.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;
use std::time::Duration;

use tenon_abi::{MessageFn, ReactorHandle};

use crate::{Error, Host, bridge};

/// A closure that runs once, later; dropping the timer cancels it.
#[must_use = "a timer is cancelled when it is dropped; use `detach` to let it run"]
pub struct Timer {
    host: Host,
    shot: Rc<Shot>,
}

struct Shot {
    /// Of the pending timer; 0 once it fired or was cancelled.
    handle: Cell<ReactorHandle>,
    run: RefCell<Option<Box<dyn FnOnce()>>>,
}

/// A timer that can be set any number of times; dropping it cancels it.
///
/// Its closure may set or drop it. A panic in the closure aborts: alarms move I/O.
#[must_use = "an alarm is cancelled when it is dropped"]
pub struct Alarm {
    host: Host,
    bell: Rc<Bell>,
}

struct Bell {
    /// Of the pending timer; 0 if none is pending.
    handle: Cell<ReactorHandle>,
    ring: Box<dyn Fn()>,
}

impl Host {
    /// Runs `run` on the calling reactor, `delay` from now. On a reactor.
    ///
    /// # Errors
    /// If the reactor has no room for another timer, or the thread is none of the host's.
    pub fn timer(&self, delay: Duration, run: impl FnOnce() + 'static) -> Result<Timer, Error> {
        let shot =
            Rc::new(Shot { handle: Cell::new(ReactorHandle(0)), run: RefCell::new(Some(Box::new(run))) });
        let handle = self.start_timer(nanoseconds(delay), fire_shot, &shot)?;
        shot.handle.set(handle);
        Ok(Timer { host: *self, shot })
    }

    /// Makes an alarm that calls `ring` on the calling reactor whenever its time is up. It is not set yet.
    pub fn alarm(&self, ring: impl Fn() + 'static) -> Alarm {
        let bell = Rc::new(Bell { handle: Cell::new(ReactorHandle(0)), ring: Box::new(ring) });
        Alarm { host: *self, bell }
    }

    /// Starts a timer that owns one reference to `object` while it is pending.
    fn start_timer<T>(
        &self,
        delay_ns: u64,
        fire: unsafe extern "C" fn(*mut c_void),
        object: &Rc<T>,
    ) -> Result<ReactorHandle, Error> {
        let arg = Rc::into_raw(Rc::clone(object));
        let mut handle = ReactorHandle(0);
        // SAFETY: `arg` owns a reference until `fire` or the one who cancels takes it.
        let code = unsafe {
            (self.api.timer_start)(delay_ns, MessageFn(fire), arg.cast_mut().cast::<c_void>(), &mut handle)
        };
        Error::check(code, "cannot start a timer").inspect_err(|_| {
            // SAFETY: no timer was started, so the reference is still ours.
            drop(unsafe { Rc::from_raw(arg) });
        })?;
        Ok(handle)
    }

    /// Cancels a pending timer and takes back its reference to `object`.
    fn stop_timer<T>(&self, handle: ReactorHandle, object: &Rc<T>) {
        // SAFETY: on the timer's reactor, since timers and alarms are not `Send`.
        if unsafe { (self.api.timer_cancel)(handle) } == 0 {
            // SAFETY: it will not fire, so nobody else takes the reference that `start_timer` leaked.
            drop(unsafe { Rc::from_raw(Rc::as_ptr(object)) });
        }
    }
}

impl Timer {
    /// Lets the timer run without an owner.
    pub fn detach(self) {
        self.shot.handle.set(ReactorHandle(0));
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let handle = self.shot.handle.replace(ReactorHandle(0));
        if handle.0 != 0 {
            self.host.stop_timer(handle, &self.shot);
        }
    }
}

impl Alarm {
    /// Sets it to ring `delay_ns` from now, instead of any earlier setting. Without room for another timer on the
    /// reactor it does not ring; the error says so.
    ///
    /// # Errors
    /// If the reactor has no room for another timer, or the thread is none of the host's.
    pub fn set_ns(&self, delay_ns: u64) -> Result<(), Error> {
        self.cancel();
        let handle = self.host.start_timer(delay_ns, fire_bell, &self.bell)?;
        self.bell.handle.set(handle);
        Ok(())
    }

    /// True if it will ring.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.bell.handle.get().0 != 0
    }

    /// Takes back the setting, if any.
    pub fn cancel(&self) {
        let handle = self.bell.handle.replace(ReactorHandle(0));
        if handle.0 != 0 {
            self.host.stop_timer(handle, &self.bell);
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// # Safety
/// `arg` is a reference to a [`Shot`], given up by the timer.
unsafe extern "C" fn fire_shot(arg: *mut c_void) {
    // SAFETY: `start_timer` leaked this reference for us.
    let shot = unsafe { Rc::from_raw(arg.cast_const().cast::<Shot>()) };
    shot.handle.set(ReactorHandle(0));
    let run = shot.run.borrow_mut().take();
    if let Some(run) = run {
        bridge::run("a timer", run);
    }
}

/// # Safety
/// `arg` is a reference to a [`Bell`], given up by the timer.
unsafe extern "C" fn fire_bell(arg: *mut c_void) {
    // SAFETY: `start_timer` leaked this reference for us.
    let bell = unsafe { Rc::from_raw(arg.cast_const().cast::<Bell>()) };
    bell.handle.set(ReactorHandle(0));
    (bell.ring)();
}

fn nanoseconds(delay: Duration) -> u64 {
    u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)
}
