//! Descriptors of one reactor, and the wait that a sleep is made of.
//!
//! A ready descriptor's event names its slot and generation. So a descriptor that
//! an earlier callback of the same batch has unregistered is skipped, also if its
//! slot is in use again. Level-triggered unless the interest says otherwise. Does
//! not own the descriptors it watches, and does not decide when to wait.
// UNSAFETY: calls epoll through libc, as a bad descriptor must be an error and not a contract.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::callback::{Callback, FdFn, OwnedArg};
use crate::slab::{FdId, Slab};

/// How many descriptors a reactor may watch; the next one is refused.
pub const MAX_FDS: usize = 65_536;

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest(u32);

impl Interest {
    /// Readable, or closed by the peer.
    pub const READ: Self = Self(libc::EPOLLIN as u32 | libc::EPOLLRDHUP as u32);
    /// Writable.
    pub const WRITE: Self = Self(libc::EPOLLOUT as u32);
    /// Both.
    pub const READ_WRITE: Self = Self(Self::READ.0 | Self::WRITE.0);
    /// Only errors and hang-ups, which are always told.
    pub const NONE: Self = Self(0);

    /// Tell of a change once instead of for as long as it lasts.
    #[must_use]
    pub const fn edge_triggered(self) -> Self {
        Self(self.0 | libc::EPOLLET as u32)
    }

    /// From `EPOLL*` bits.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// What has happened to a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events(u32);

impl Events {
    /// From `EPOLL*` bits.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The `EPOLL*` bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// A read will not block: there is data, an end or an error.
    pub const fn is_readable(self) -> bool {
        self.0 & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// A write will not block: there is room or an error.
    pub const fn is_writable(self) -> bool {
        self.0 & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// The peer has closed, one way or both.
    pub const fn is_hang_up(self) -> bool {
        self.0 & (libc::EPOLLRDHUP | libc::EPOLLHUP) as u32 != 0
    }

    /// The descriptor is in error.
    pub const fn is_error(self) -> bool {
        self.0 & libc::EPOLLERR as u32 != 0
    }
}

/// The descriptors of one reactor.
pub(crate) struct Fds {
    /// Made when it is first needed: a simulated reactor without descriptors has none.
    epoll: OnceCell<OwnedFd>,
    slots: RefCell<Slab<Watched>>,
    count: Cell<usize>,
    events: RefCell<Box<[libc::epoll_event]>>,
    /// How many of `events` the last wait has filled.
    ready: Cell<usize>,
}

struct Watched {
    fd: RawFd,
    callback: Callback<FdFn>,
}

impl Fds {
    pub(crate) fn new(tag: u32) -> Self {
        let none = libc::epoll_event { events: 0, u64: 0 };
        Self {
            epoll: OnceCell::new(),
            slots: RefCell::new(Slab::new(tag, MAX_FDS)),
            count: Cell::new(0),
            events: RefCell::new(vec![none; EVENTS_PER_WAIT].into_boxed_slice()),
            ready: Cell::new(0),
        }
    }

    /// Lets a write to `waker` end every later wait.
    pub(crate) fn watch_waker(&self, waker: impl AsFd) -> io::Result<()> {
        let interest = Interest(libc::EPOLLIN as u32).edge_triggered();
        self.control(libc::EPOLL_CTL_ADD, waker.as_fd().as_raw_fd(), interest, WAKER_DATA)
    }

    /// Watches a descriptor; `None` when the bound is reached.
    pub(crate) fn register(
        &self,
        fd: RawFd,
        interest: Interest,
        callback: Callback<FdFn>,
    ) -> Option<io::Result<FdId>> {
        // Two statements: a refused closure is dropped, which is foreign code, after the borrow.
        let inserted = self.slots.borrow_mut().insert(Watched { fd, callback });
        let id = FdId(inserted.ok()?);
        Some(match self.control(libc::EPOLL_CTL_ADD, fd, interest, id.to_raw()) {
            Ok(()) => {
                self.count.set(self.count.get() + 1);
                Ok(id)
            }
            Err(error) => {
                let refused = self.slots.borrow_mut().remove(id.0);
                drop(refused);
                Err(error)
            }
        })
    }

    /// Changes what a descriptor is watched for; `None` for a stale handle.
    pub(crate) fn modify(&self, id: FdId, interest: Interest) -> Option<io::Result<()>> {
        let fd = self.slots.borrow().get(id.0)?.fd;
        Some(self.control(libc::EPOLL_CTL_MOD, fd, interest, id.to_raw()))
    }

    /// Stops watching; what the callback owned is the caller's to release.
    pub(crate) fn unregister(&self, id: FdId) -> Option<OwnedArg> {
        let watched = self.slots.borrow_mut().remove(id.0)?;
        self.count.set(self.count.get() - 1);
        // A descriptor that was closed before is no longer in the set: that is not an error.
        if let Err(error) = self.control(libc::EPOLL_CTL_DEL, watched.fd, Interest::NONE, 0) {
            log::debug!("descriptor was gone before it was unregistered fd={} error={error}", watched.fd);
        }
        Some(watched.callback.into_owned_arg())
    }

    /// How many descriptors are watched.
    #[inline(always)]
    pub(crate) fn count(&self) -> usize {
        self.count.get()
    }

    /// Whether the last wait found something that is not yet dispatched.
    #[inline(always)]
    pub(crate) fn has_ready(&self) -> bool {
        self.ready.get() != 0
    }

    /// Waits for events, `None` without end; they are kept for [`Self::dispatch`].
    pub(crate) fn wait(&self, timeout_ns: Option<u64>) {
        if self.has_ready() {
            return;
        }
        let mut events = self.events.borrow_mut();
        match self.epoll().and_then(|epoll| wait(epoll, &mut events, timeout_ns)) {
            Ok(count) => self.ready.set(count),
            // Neither the descriptor nor the buffer is anyone else's to spoil.
            Err(error) => panic!("epoll wait of a reactor failed: {error}"),
        }
    }

    /// Calls the callbacks of what the last wait found; true if there was one.
    pub(crate) fn dispatch(&self) -> bool {
        let ready = self.ready.get();
        let mut called = false;
        for index in 0..ready {
            let event = self.events.borrow()[index];
            let key = FdId::from_raw(event.u64).0;
            let callback = self.slots.borrow().get(key).map(|watched| watched.callback.parts());
            if let Some((run, arg)) = callback {
                // SAFETY: whoever registered the pair vouched for it until it is unregistered;
                // the generation shows that it has not been.
                unsafe { run(arg, event.events) };
                called = true;
            }
        }
        self.ready.set(0);
        called
    }

    /// Takes everything that callbacks own out, for release.
    pub(crate) fn drain(&self) -> Vec<OwnedArg> {
        let watched = self.slots.borrow_mut().drain();
        self.count.set(0);
        self.ready.set(0);
        watched
            .into_iter()
            .map(|watched| {
                // The set itself goes right after; a failure changes nothing.
                let _ = self.control(libc::EPOLL_CTL_DEL, watched.fd, Interest::NONE, 0);
                watched.callback.into_owned_arg()
            })
            .collect()
    }

    fn epoll(&self) -> io::Result<&OwnedFd> {
        if self.epoll.get().is_none() {
            // SAFETY: no pointer is passed.
            let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the kernel has just given this descriptor to us alone.
            let _ = self.epoll.set(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        Ok(self.epoll.get().expect("set a line above"))
    }

    fn control(&self, operation: i32, fd: RawFd, interest: Interest, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.0, u64: data };
        // SAFETY: `event` lives through the call; a bad `fd` is an error, not a fault.
        let rc = unsafe { libc::epoll_ctl(self.epoll()?.as_raw_fd(), operation, fd, &mut event) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Waits with a timeout in nanoseconds where the kernel can (5.11), else in milliseconds, late
/// rather than early.
fn wait(epoll: &OwnedFd, events: &mut [libc::epoll_event], timeout_ns: Option<u64>) -> io::Result<usize> {
    static HAS_NANOSECONDS: AtomicBool = AtomicBool::new(true);
    let (epoll, capacity) = (epoll.as_raw_fd(), events.len() as i32);
    if timeout_ns != Some(0) && HAS_NANOSECONDS.load(Ordering::Relaxed) {
        let timeout = timeout_ns.map(|ns| libc::timespec {
            tv_sec: (ns / NS_PER_S).min(LONGEST_WAIT_S) as libc::time_t,
            tv_nsec: (ns % NS_PER_S) as libc::c_long,
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `events` has room for `capacity` events and `timeout` is null or valid; both
        // live through the call. The signal mask is null, for which the size is not read.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                epoll,
                events.as_mut_ptr(),
                capacity,
                timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        match ready_count(rc) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                HAS_NANOSECONDS.store(false, Ordering::Relaxed);
            }
            answer => return answer,
        }
    }
    let timeout_ms = timeout_ns.map_or(-1, |ns| ns.div_ceil(1_000_000).min(LONGEST_WAIT_MS) as i32);
    // SAFETY: `events` has room for `capacity` events and lives through the call.
    ready_count(i64::from(unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), capacity, timeout_ms) }))
}

fn ready_count(rc: i64) -> io::Result<usize> {
    if rc >= 0 {
        return Ok(rc as usize);
    }
    match io::Error::last_os_error() {
        // A signal: the reactor looks around and waits again.
        error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        error => Err(error),
    }
}

/// No slot has generation 0, so this names none: its event only ends the wait.
const WAKER_DATA: u64 = 0;
const EVENTS_PER_WAIT: usize = 64;
const NS_PER_S: u64 = 1_000_000_000;
/// Far deadlines are waited for in pieces; the kernel refuses some very large times.
const LONGEST_WAIT_S: u64 = 24 * 3600;
const LONGEST_WAIT_MS: u64 = LONGEST_WAIT_S * 1000;
