//! The host as a module sees it: a small copyable handle whose methods are the
//! functions of [`HostApiV1`]. This file holds time, reactors, messages and
//! work on other threads; its children hold what has an owner of its own
//! (pollers, timers, memory, …). Devices are in `bdev.rs` and `base.rs`.
// UNSAFETY: calls the functions of the host's table.

pub(crate) mod event_loop;
pub(crate) mod key;
pub(crate) mod memory;
pub(crate) mod publish;
pub(crate) mod timer;

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenon_abi::{HostApiV1, HostModule, HostReactor, MessageFn, Str};

use crate::Error;
use crate::bridge;

/// The host, and which module asks. Copy it wherever it is needed.
///
/// Unless a method says otherwise it belongs to the control thread; from another thread it fails with `-EPERM`.
#[derive(Clone, Copy)]
pub struct Host {
    pub(crate) api: &'static HostApiV1,
    pub(crate) me: *mut HostModule,
}

// SAFETY: the table is immutable and `me` is an opaque name that only the host follows, on any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

/// A reactor: one event loop on one thread.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reactor {
    raw: NonNull<HostReactor>,
    index: u32,
}

// SAFETY: a reactor lives as long as the process, and the pointer is an opaque name only the host follows.
unsafe impl Send for Reactor {}
// SAFETY: as above.
unsafe impl Sync for Reactor {}

impl Reactor {
    /// Number of a data reactor, from 0; `None` for the control reactor.
    #[must_use]
    pub fn index(self) -> Option<u32> {
        (self.index != u32::MAX).then_some(self.index)
    }

    /// True for the control reactor.
    #[must_use]
    pub fn is_control(self) -> bool {
        self.index == u32::MAX
    }
}

impl Host {
    /// Makes a handle of what `init` was given.
    ///
    /// # Safety
    /// `api` must be a table of the host that lives as long as the process and reaches all fields of version
    /// 1.0, `me` the module it was given with.
    pub(crate) unsafe fn new(api: *const HostApiV1, me: *mut HostModule) -> Option<Host> {
        // SAFETY: the caller promises a valid table for the rest of the process, or null.
        let api = unsafe { api.as_ref() }?;
        Some(Host { api, me })
    }

    /// Monotonic time in nanoseconds; virtual under test. Any thread.
    #[inline]
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        // SAFETY: a function of the host's table, callable on any thread.
        unsafe { (self.api.now_ns)() }
    }

    /// Cheap monotonic counter. Any thread.
    #[inline]
    #[must_use]
    pub fn ticks(&self) -> u64 {
        // SAFETY: as in `now_ns`.
        unsafe { (self.api.ticks)() }
    }

    /// Frequency of [`Host::ticks`] in Hz. Any thread.
    #[must_use]
    pub fn ticks_hz(&self) -> u64 {
        // SAFETY: as in `now_ns`.
        unsafe { (self.api.ticks_hz)() }
    }

    /// A further table of the host by name and version, e.g. `nvmf-target` 1; null if not offered. Any thread.
    #[must_use]
    pub fn query(&self, id: &str, version: u32) -> *const c_void {
        // SAFETY: as in `now_ns`; the text is borrowed for the call.
        unsafe { (self.api.query)(Str::new(id), version) }
    }

    /// The calling thread's reactor; `None` on a thread that is not the host's. Any thread.
    #[must_use]
    pub fn reactor(&self) -> Option<Reactor> {
        // SAFETY: as in `now_ns`.
        self.reactor_of(unsafe { (self.api.reactor_current)() })
    }

    /// The control reactor. Any thread.
    ///
    /// # Panics
    /// If the host has none, which its contract excludes.
    #[must_use]
    pub fn control(&self) -> Reactor {
        // SAFETY: as in `now_ns`.
        let raw = unsafe { (self.api.reactor_control)() };
        self.reactor_of(raw).expect("the host has a control reactor")
    }

    /// The data reactors, by number. Any thread.
    pub fn reactors(&self) -> impl Iterator<Item = Reactor> + use<> {
        let host = *self;
        // SAFETY: as in `now_ns`.
        let count = unsafe { (host.api.reactor_count)() };
        // SAFETY: as in `now_ns`; a number out of range gives null.
        (0..count).filter_map(move |index| host.reactor_of(unsafe { (host.api.reactor_nth)(index) }))
    }

    /// True on the control thread.
    #[must_use]
    pub fn is_control(&self) -> bool {
        // SAFETY: as in `now_ns`.
        unsafe { (self.api.reactor_current)() == (self.api.reactor_control)() }
    }

    pub(crate) fn reactor_of(&self, raw: *mut HostReactor) -> Option<Reactor> {
        let raw = NonNull::new(raw)?;
        // SAFETY: as in `now_ns`; `raw` came from the host.
        Some(Reactor { raw, index: unsafe { (self.api.reactor_index)(raw.as_ptr()) } })
    }

    /// Runs `message` on `reactor`, in order of sending. Any thread.
    ///
    /// # Errors
    /// `-EAGAIN` if the reactor's queue is full; then `message` is dropped.
    pub fn send(&self, reactor: Reactor, message: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.try_send(reactor, Box::new(message)).map_err(|(error, _)| error)
    }

    /// As `send`, but gives the message back if the queue is full.
    fn try_send<F: FnOnce() + Send + 'static>(
        &self,
        reactor: Reactor,
        message: Box<F>,
    ) -> Result<(), (Error, Box<F>)> {
        let arg = Box::into_raw(message);
        // SAFETY: `call_once::<F>` takes over the box, on a thread that may have it because `F` is `Send`.
        let code =
            unsafe { (self.api.send)(reactor.raw.as_ptr(), MessageFn(call_once::<F>), arg.cast::<c_void>()) };
        match Error::check(code, "cannot send a message to a reactor") {
            Ok(()) => Ok(()),
            // SAFETY: the host refused the message, so the box is still ours alone.
            Err(error) => Err((error, unsafe { Box::from_raw(arg) })),
        }
    }

    /// As `send`, but tries again for a while when the queue is full. On a reactor.
    pub(crate) fn send_surely(&self, reactor: Reactor, message: Box<dyn FnOnce() + Send>) {
        self.send_attempt(reactor, message, 0);
    }

    fn send_attempt(&self, reactor: Reactor, message: Box<dyn FnOnce() + Send>, attempt: u32) {
        let Err((error, message)) = self.try_send(reactor, Box::new(message)) else { return };
        if attempt == MAX_SEND_ATTEMPTS {
            log::error!("message lost reactor={:?} error=\"{error}\"", reactor.index());
            return;
        }
        let host = *self;
        let again = move || host.send_attempt(reactor, *message, attempt + 1);
        match self.timer(SEND_RETRY, again) {
            Ok(timer) => timer.detach(),
            Err(error) => log::error!("message lost reactor={:?} error=\"{error}\"", reactor.index()),
        }
    }

    /// Runs `visit` once on every data reactor, all at the same time, then `done` on the control thread.
    /// From the control thread.
    ///
    /// # Errors
    /// `-EPERM` on another thread.
    pub fn each_reactor(
        &self,
        visit: impl Fn(Reactor) + Send + Sync + 'static,
        done: impl FnOnce() + 'static,
    ) -> Result<(), Error> {
        if !self.is_control() {
            return Err(Error::permission("reactors are visited from the control thread"));
        }
        let host = *self;
        let reactors: Vec<Reactor> = self.reactors().collect();
        // One more than the reactors: the visit is over only after this call has sent everything.
        let round = Arc::new(Round {
            left: AtomicUsize::new(reactors.len() + 1),
            done: ControlOnly(RefCell::new(Some(Box::new(done)))),
        });
        let visit = Arc::new(visit);
        for reactor in reactors {
            let (round, visit) = (Arc::clone(&round), Arc::clone(&visit));
            self.send_surely(
                reactor,
                Box::new(move || {
                    bridge::run("a visit of every reactor", || visit(reactor));
                    round.finish_one(host);
                }),
            );
        }
        round.finish_one(host);
        Ok(())
    }

    /// Runs `work` on a worker thread, where it may block, then `done` on the calling reactor. On a reactor.
    /// If `work` panics, `done` gets an error.
    ///
    /// # Errors
    /// `-EAGAIN` if the workers' queue is full; then both closures are dropped.
    pub fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(Result<T, Error>) + 'static,
    ) -> Result<(), Error> {
        self.offload_job(Job { work: Some(work), done: Some(done), result: None })
    }

    fn offload_job<W, D, T>(&self, job: Job<W, D, T>) -> Result<(), Error>
    where
        W: FnOnce() -> T + Send + 'static,
        D: FnOnce(Result<T, Error>) + 'static,
        T: Send + 'static,
    {
        let arg = Box::into_raw(Box::new(job));
        // SAFETY: `work` runs once, `done` once after it; the job is touched by one of them at a time, and `D`,
        // which need not be `Send`, only by `done`, on this thread.
        let code = unsafe {
            (self.api.offload)(
                MessageFn(job_work::<W, D, T>),
                MessageFn(job_done::<W, D, T>),
                arg.cast::<c_void>(),
            )
        };
        Error::check(code, "cannot hand work to a worker thread").inspect_err(|_| {
            // SAFETY: the host refused the job, so the box is still ours alone.
            drop(unsafe { Box::from_raw(arg) });
        })
    }
}

/// A value that only the control thread touches.
pub(crate) struct ControlOnly<T>(pub T);

// SAFETY: every user of `ControlOnly` reads, writes and drops the value on the control thread alone.
unsafe impl<T> Send for ControlOnly<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for ControlOnly<T> {}

type Finish = Box<dyn FnOnce()>;

struct Round {
    left: AtomicUsize,
    done: ControlOnly<RefCell<Option<Finish>>>,
}

impl Round {
    fn finish_one(self: Arc<Self>, host: Host) {
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        host.send_surely(
            host.control(),
            Box::new(move || {
                // The whole struct is captured, so that `done` is touched and dropped here only.
                let round = self;
                let done = round.done.0.borrow_mut().take();
                if let Some(done) = done {
                    done();
                }
            }),
        );
    }
}

struct Job<W, D, T> {
    work: Option<W>,
    done: Option<D>,
    result: Option<Result<T, Error>>,
}

/// # Safety
/// `arg` is a `Box<F>` nobody else has.
unsafe extern "C" fn call_once<F: FnOnce()>(arg: *mut c_void) {
    // SAFETY: the caller gives up the box.
    let message = unsafe { Box::from_raw(arg.cast::<F>()) };
    bridge::run("a message", *message);
}

/// # Safety
/// `arg` is a `Job<W, D, T>` nobody touches meanwhile.
unsafe extern "C" fn job_work<W: FnOnce() -> T, D, T>(arg: *mut c_void) {
    // SAFETY: `work` runs before `done` and alone.
    let job = unsafe { &mut *arg.cast::<Job<W, D, T>>() };
    if let Some(work) = job.work.take() {
        job.result = Some(bridge::guard("offloaded work", work));
    }
}

/// # Safety
/// `arg` is a `Box<Job<W, D, T>>` nobody else has any longer.
unsafe extern "C" fn job_done<W, D: FnOnce(Result<T, Error>), T>(arg: *mut c_void) {
    // SAFETY: `done` is the last to get the job.
    let mut job = unsafe { Box::from_raw(arg.cast::<Job<W, D, T>>()) };
    let result = job.result.take().unwrap_or_else(|| Err(Error::io("the work was not run")));
    if let Some(done) = job.done.take() {
        bridge::run("the end of offloaded work", || done(result));
    }
}

/// Pause before a message is sent again to a reactor whose queue was full.
const SEND_RETRY: Duration = Duration::from_millis(1);
/// Attempts after which such a message is given up: a reactor that stands still for so long is lost.
const MAX_SEND_ATTEMPTS: u32 = 10_000;
