//! The reactor one runs on: pollers, timers, descriptors, offloaded work.
//!
//! [`Local`] is `!Send`: whoever holds one is on that reactor's thread, so nothing
//! here locks. Every function may be called from inside any callback, also about
//! the callback itself. Messages to other reactors go through `directory`.
// UNSAFETY: the current reactor is a pointer in a thread-local; raw callbacks pass through.

use std::any::type_name;
use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::callback::{Callback, FdFn, MessageFn, PollFn, TimerFn};
use crate::clock::precise_now_ns;
use crate::directory::{Directory, ReactorId, ReactorRef, SendError};
use crate::epoll::{Events, Interest, MAX_FDS};
use crate::offload::{Job, OffloadError};
use crate::poller::{MAX_POLLERS, Poll, PollerKind, PollerStatistics};
use crate::reactor::Core;
use crate::rest::Mode;
use crate::slab::{FdId, PollerId, TimerId};
use crate::stats::Statistics;
use crate::timer::{Action, MAX_TIMERS};

/// The reactor that the caller runs on.
///
/// # Panics
///
/// Anywhere else: to ask there is a bug. [`try_current`] asks without one.
pub fn current() -> Local {
    try_current().expect("called from a callback of a reactor")
}

/// The reactor that the caller runs on, if it runs on one.
pub fn try_current() -> Option<Local> {
    let core = CURRENT.get();
    if core.is_null() {
        return None;
    }
    // SAFETY: the pointer came from an `Rc` that `Entered` keeps alive while it is in the
    // thread-local; the count is raised for the `Rc` that is made of it.
    let core = unsafe {
        Rc::increment_strong_count(core);
        Rc::from_raw(core)
    };
    Some(Local { core })
}

/// Monotonic nanoseconds: on a reactor as of this turn, which costs a load; elsewhere precise.
#[inline]
pub fn now_ns() -> u64 {
    // SAFETY: the pointer is null or kept alive by the `Entered` that put it there.
    match unsafe { CURRENT.get().as_ref() } {
        Some(core) => core.now_ns(),
        None => precise_now_ns(),
    }
}

/// Why something was not registered. Its closure was dropped without having run.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The reactor has as many pollers as it may.
    #[error("poller {name:?} not registered: limit of {MAX_POLLERS} reached")]
    TooManyPollers {
        /// The poller's name.
        name: String,
    },
    /// The reactor has as many timers as it may.
    #[error("timer not set: limit of {MAX_TIMERS} reached")]
    TooManyTimers,
    /// The reactor watches as many descriptors as it may.
    #[error("descriptor {fd} not registered: limit of {MAX_FDS} reached")]
    TooManyFds {
        /// The descriptor.
        fd: RawFd,
    },
    /// The kernel does not watch this descriptor.
    #[error("descriptor {fd} cannot be watched")]
    Epoll {
        /// The descriptor.
        fd: RawFd,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// A handle on the caller's own reactor.
#[derive(Clone)]
pub struct Local {
    core: Rc<Core>,
}

impl Local {
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// The same reactor for other threads.
    pub fn reactor(&self) -> ReactorRef {
        ReactorRef::new(Arc::clone(&self.core.shared))
    }

    /// Which reactor this is.
    pub fn id(&self) -> ReactorId {
        self.core.shared.id
    }

    /// `control`, or `reactor_<n>`.
    pub fn name(&self) -> &str {
        &self.core.shared.name
    }

    /// Whether it is the control reactor.
    pub fn is_control(&self) -> bool {
        self.id() == ReactorId::CONTROL
    }

    /// All reactors beside this one, and itself.
    pub fn directory(&self) -> &Directory {
        &self.core.directory
    }

    /// Monotonic nanoseconds as of this turn.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.core.now_ns()
    }

    /// Precise ticks; see [`ticks`](crate::ticks).
    pub fn ticks(&self) -> u64 {
        self.core.clock.read().0
    }

    /// When it spins and when it sleeps.
    pub fn mode(&self) -> Mode {
        self.core.mode.get()
    }

    /// Changes that from the next turn on.
    pub fn set_mode(&self, mode: Mode) {
        self.core.mode.set(mode);
    }

    /// What it has done so far.
    pub fn statistics(&self) -> Statistics {
        self.core.shared.published.snapshot(self.core.shared.queue.len())
    }

    /// Its pollers, with what they have done.
    pub fn pollers(&self) -> Vec<PollerStatistics> {
        self.core.pollers.statistics()
    }

    /// Calls `poll` on every turn, or once in `period_us` if that is not 0.
    pub fn register_poller(
        &self,
        name: &str,
        period_us: u64,
        kind: PollerKind,
        poll: impl FnMut() -> Poll + 'static,
    ) -> Result<PollerId, RegisterError> {
        self.add_poller(name, period_us, kind, Callback::poll(poll))
    }

    /// As [`Self::register_poller`], for a C function; the call costs no more than itself.
    ///
    /// # Safety
    ///
    /// `poll` must be callable with `arg` on this thread until the poller is unregistered, and
    /// must not unwind.
    pub unsafe fn register_poller_raw(
        &self,
        name: &str,
        period_us: u64,
        kind: PollerKind,
        poll: PollFn,
        arg: *mut c_void,
    ) -> Result<PollerId, RegisterError> {
        self.add_poller(name, period_us, kind, Callback::raw(poll, arg))
    }

    /// Sets what is asked each time before the reactor sleeps; false for a stale handle.
    ///
    /// `may_sleep` arms the poller's wake source and then looks for work once more: true means
    /// that any work from now on will wake the reactor. It is asked after the reactor has told
    /// its senders that it is about to sleep, so a message that comes meanwhile is not missed.
    pub fn set_before_sleep(&self, id: PollerId, may_sleep: impl FnMut() -> bool + 'static) -> bool {
        self.add_before_sleep(id, Callback::ask(may_sleep))
    }

    /// As [`Self::set_before_sleep`], for a C function that returns more than 0 for yes.
    ///
    /// # Safety
    ///
    /// As for [`Self::register_poller_raw`], until the poller is unregistered.
    pub unsafe fn set_before_sleep_raw(&self, id: PollerId, may_sleep: PollFn, arg: *mut c_void) -> bool {
        self.add_before_sleep(id, Callback::raw(may_sleep, arg))
    }

    /// Removes a poller; false for a stale handle. It is not called again.
    pub fn unregister_poller(&self, id: PollerId) -> bool {
        let Some(owned) = self.core.pollers.unregister(id, &self.core.timers) else { return false };
        owned.into_iter().flatten().for_each(|owned| self.core.release_later(owned));
        self.core.schedule_changed();
        true
    }

    /// Stops calling a poller until it is resumed; false for a stale handle.
    pub fn pause_poller(&self, id: PollerId) -> bool {
        let found = self.core.pollers.pause(id, &self.core.timers);
        self.core.schedule_changed();
        found
    }

    /// Calls a paused poller again; false for a stale handle.
    pub fn resume_poller(&self, id: PollerId) -> bool {
        let found = self.core.pollers.resume(id, &self.core.timers, self.precise_now_ns());
        self.core.schedule_changed();
        found
    }

    /// Changes a poller's period, 0 for every turn; false for a stale handle.
    pub fn set_poller_period(&self, id: PollerId, period_us: u64) -> bool {
        let found = self.core.pollers.set_period(id, period_us, &self.core.timers, self.precise_now_ns());
        self.core.schedule_changed();
        found
    }

    /// Calls `f` once, `after` from now.
    pub fn set_timer(&self, after: Duration, f: impl FnOnce() + 'static) -> Result<TimerId, RegisterError> {
        let after = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.set_timer_at(self.precise_now_ns().saturating_add(after), f)
    }

    /// Calls `f` once, when [`now_ns`] has reached `deadline_ns`.
    pub fn set_timer_at(
        &self,
        deadline_ns: u64,
        f: impl FnOnce() + 'static,
    ) -> Result<TimerId, RegisterError> {
        self.add_timer(deadline_ns, Callback::once(f))
    }

    /// As [`Self::set_timer_at`], for a C function.
    ///
    /// # Safety
    ///
    /// `f` must be callable with `arg` on this thread until it was called or cancelled, and must
    /// not unwind.
    pub unsafe fn set_timer_raw(
        &self,
        deadline_ns: u64,
        f: TimerFn,
        arg: *mut c_void,
    ) -> Result<TimerId, RegisterError> {
        self.add_timer(deadline_ns, Callback::raw(f, arg))
    }

    /// Cancels a timer. True: it will not fire. False: it has fired, or was cancelled before.
    pub fn cancel_timer(&self, id: TimerId) -> bool {
        let cancelled = self.core.timers.borrow_mut().remove(id.0);
        match cancelled {
            Some(Action::OneShot(callback)) => self.core.release_later(callback.into_owned_arg()),
            Some(Action::Poll(_)) | None => return false,
        }
        self.core.timers_changed();
        true
    }

    /// Calls `ready` whenever `fd` is, until it is unregistered.
    ///
    /// `fd` stays the caller's, and must be unregistered before it is closed: otherwise a
    /// duplicate of it may go on to report events.
    pub fn register_fd(
        &self,
        fd: RawFd,
        interest: Interest,
        ready: impl FnMut(Events) + 'static,
    ) -> Result<FdId, RegisterError> {
        self.add_fd(fd, interest, Callback::ready(ready))
    }

    /// As [`Self::register_fd`], for a C function that is given the `EPOLL*` bits.
    ///
    /// # Safety
    ///
    /// `ready` must be callable with `arg` on this thread until the descriptor is unregistered,
    /// and must not unwind.
    pub unsafe fn register_fd_raw(
        &self,
        fd: RawFd,
        interest: Interest,
        ready: FdFn,
        arg: *mut c_void,
    ) -> Result<FdId, RegisterError> {
        self.add_fd(fd, interest, Callback::raw(ready, arg))
    }

    /// Changes what a descriptor is watched for; `Ok(false)` for a stale handle.
    pub fn modify_fd(&self, id: FdId, interest: Interest) -> io::Result<bool> {
        self.core.fds.modify(id, interest).map_or(Ok(false), |done| done.map(|()| true))
    }

    /// Stops watching a descriptor; false for a stale handle. Its callback is not called again,
    /// not even for an event that has already been fetched.
    pub fn unregister_fd(&self, id: FdId) -> bool {
        let Some(owned) = self.core.fds.unregister(id) else { return false };
        self.core.release_later(owned);
        self.core.fds_changed();
        true
    }

    /// Runs `work` on a worker thread, then `done` with its result on this reactor.
    ///
    /// `done` need not be `Send`: it stays here. It is dropped if the reactor stops first.
    pub fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(T) + 'static,
    ) -> Result<(), OffloadError> {
        let result = Arc::new(Mutex::new(None));
        let answer = Arc::clone(&result);
        let token = self.core.await_offload(Callback::once(move || {
            let result = result.lock().take();
            done(result.unwrap_or_else(|| panic!("offloaded work gave no {}", type_name::<T>())));
        }))?;
        let job = Job {
            work: Callback::once(move || {
                let result = work();
                *answer.lock() = Some(result);
            }),
            done: Callback::once(move || current().core.finish_offload(token)),
            reply_to: self.reactor(),
        };
        self.core.offload.submit(job).inspect_err(|_| self.core.forget_offload(token))
    }

    /// Runs `work(arg)` on a worker thread, then `done(arg)` on this reactor.
    ///
    /// # Safety
    ///
    /// `work` must be callable with `arg` on any thread, `done` on this one, and neither may
    /// unwind. On an error neither is called; if the reactor stops first, `done` is not.
    pub unsafe fn offload_raw(
        &self,
        work: MessageFn,
        arg: *mut c_void,
        done: MessageFn,
    ) -> Result<(), OffloadError> {
        let (work, done) = (Callback::raw(work, arg), Callback::raw(done, arg));
        self.core.offload.submit(Job { work, done, reply_to: self.reactor() })
    }

    /// Calls `f` on this reactor soon, but not before the caller has returned to it.
    pub fn defer(&self, f: impl FnOnce() + 'static) -> Result<(), SendError> {
        self.core.defer(Callback::once(f))
    }

    fn precise_now_ns(&self) -> u64 {
        self.core.clock.read().1
    }

    fn add_poller(
        &self,
        name: &str,
        period_us: u64,
        kind: PollerKind,
        callback: Callback<PollFn>,
    ) -> Result<PollerId, RegisterError> {
        let now_ns = self.precise_now_ns();
        let id = self
            .core
            .pollers
            .register(name, period_us, kind, callback, &self.core.timers, now_ns)
            .map_err(|_refused| RegisterError::TooManyPollers { name: name.to_owned() })?;
        self.core.schedule_changed();
        Ok(id)
    }

    fn add_before_sleep(&self, id: PollerId, hook: Callback<PollFn>) -> bool {
        match self.core.pollers.set_before_sleep(id, hook) {
            Ok(old) => {
                old.into_iter().for_each(|owned| self.core.release_later(owned));
                true
            }
            Err(_refused) => false,
        }
    }

    fn add_timer(&self, deadline_ns: u64, callback: Callback<TimerFn>) -> Result<TimerId, RegisterError> {
        let inserted = self.core.timers.borrow_mut().insert(deadline_ns, Action::OneShot(callback));
        let key = inserted.map_err(|_refused| RegisterError::TooManyTimers)?;
        self.core.timers_changed();
        Ok(TimerId(key))
    }

    fn add_fd(&self, fd: RawFd, interest: Interest, callback: Callback<FdFn>) -> Result<FdId, RegisterError> {
        let id = self
            .core
            .fds
            .register(fd, interest, callback)
            .ok_or(RegisterError::TooManyFds { fd })?
            .map_err(|source| RegisterError::Epoll { fd, source })?;
        self.core.fds_changed();
        Ok(id)
    }
}

/// Makes `core` the current reactor of the calling thread until the guard is dropped.
pub(crate) fn enter(core: &Rc<Core>) -> Entered {
    Entered { _core: Rc::clone(core), before: CURRENT.replace(Rc::as_ptr(core)) }
}

/// Makes the calling thread run on no reactor, as a worker does, until the guard is dropped.
pub(crate) fn leave() -> Left {
    Left { before: CURRENT.replace(std::ptr::null()) }
}

/// Keeps a reactor current, and alive as long as it is.
pub(crate) struct Entered {
    _core: Rc<Core>,
    before: *const Core,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// Keeps every reactor from being current.
pub(crate) struct Left {
    before: *const Core,
}

impl Drop for Left {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// The reactor's name, or the thread's for one that is none.
pub(crate) fn name_of_current_thread() -> String {
    match try_current() {
        Some(local) => local.name().to_owned(),
        None => std::thread::current().name().unwrap_or("unnamed thread").to_owned(),
    }
}

thread_local! {
    static CURRENT: Cell<*const Core> = const { Cell::new(std::ptr::null()) };
}
