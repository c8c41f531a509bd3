//! A queue of I/Os that wait for something. It links the I/Os themselves, so
//! that queueing allocates nothing and has no bound of its own: the number of
//! I/Os is bounded by their consumers.
// UNSAFETY: walks the link of raw I/Os it owns.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::null_mut;

use tenon_abi::{BdevIo, IoStatus};

use crate::channel::{Channel, Victim};
use crate::io::Io;

/// A first-in-first-out queue of I/Os of a channel `C`. All methods take `&self`.
///
/// A queue that is dropped with I/Os in it completes them with [`IoStatus::ABORTED`].
pub struct IoQueue<C: Channel> {
    head: Cell<*mut BdevIo>,
    tail: Cell<*mut BdevIo>,
    len: Cell<usize>,
    owns: PhantomData<Io<C>>,
}

impl<C: Channel> IoQueue<C> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        IoQueue {
            head: Cell::new(null_mut()),
            tail: Cell::new(null_mut()),
            len: Cell::new(0),
            owns: PhantomData,
        }
    }

    /// Number of I/Os in it.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.get()
    }

    /// True if there is none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.get().is_null()
    }

    /// Appends an I/O.
    #[inline]
    pub fn push_back(&self, io: Io<C>) {
        let io = io.into_raw();
        // SAFETY: the token made the I/O ours, and whoever holds an I/O owns its link; so for the tail.
        unsafe {
            (*io).link = null_mut();
            match self.tail.get() {
                tail if tail.is_null() => self.head.set(io),
                tail => (*tail).link = io,
            }
        }
        self.tail.set(io);
        self.len.set(self.len.get() + 1);
    }

    /// Puts an I/O before all others.
    #[inline]
    pub fn push_front(&self, io: Io<C>) {
        let io = io.into_raw();
        // SAFETY: as in `push_back`.
        unsafe { (*io).link = self.head.get() };
        if self.tail.get().is_null() {
            self.tail.set(io);
        }
        self.head.set(io);
        self.len.set(self.len.get() + 1);
    }

    /// Takes out the first.
    #[inline]
    #[must_use]
    pub fn pop_front(&self) -> Option<Io<C>> {
        let io = self.head.get();
        if io.is_null() {
            return None;
        }
        // SAFETY: the queue owns the I/O.
        self.head.set(unsafe { (*io).link });
        if self.head.get().is_null() {
            self.tail.set(null_mut());
        }
        self.len.set(self.len.get() - 1);
        // SAFETY: `push_*` took it from a token of this very type.
        Some(unsafe { Io::from_raw(io) })
    }

    /// Takes out the first if `ready` says so of its state.
    #[inline]
    #[must_use]
    pub fn pop_front_if(&self, ready: impl FnOnce(&C::PerIo) -> bool) -> Option<Io<C>> {
        let io = self.pop_front()?;
        if ready(io.context()) {
            return Some(io);
        }
        self.push_front(io);
        None
    }

    /// Looks at the state of the first.
    #[inline]
    pub fn front<R>(&self, look: impl FnOnce(&C::PerIo) -> R) -> Option<R> {
        // It is out of the queue meanwhile, so that `look` cannot complete it under its own borrow.
        let io = self.pop_front()?;
        let seen = look(io.context());
        self.push_front(io);
        Some(seen)
    }

    /// Takes out the I/O an abort is about, if it is in the queue.
    #[must_use]
    pub fn remove(&self, victim: Victim) -> Option<Io<C>> {
        let (mut previous, mut io) = (null_mut::<BdevIo>(), self.head.get());
        while !io.is_null() && !victim.is(io) {
            previous = io;
            // SAFETY: the queue owns the I/O.
            io = unsafe { (*io).link };
        }
        if io.is_null() {
            return None;
        }
        // SAFETY: as above.
        let next = unsafe { (*io).link };
        match previous {
            previous if previous.is_null() => self.head.set(next),
            // SAFETY: as above.
            previous => unsafe { (*previous).link = next },
        }
        if next.is_null() {
            self.tail.set(previous);
        }
        self.len.set(self.len.get() - 1);
        // SAFETY: as in `pop_front`.
        Some(unsafe { Io::from_raw(io) })
    }

    /// Completes everything that is in it now. What a completion puts into it stays there.
    pub fn complete_all(&self, status: IoStatus) {
        let mut next = self.head.replace(null_mut());
        self.tail.set(null_mut());
        self.len.set(0);
        while !next.is_null() {
            let io = next;
            // SAFETY: the queue owned the I/O, whose token `push_*` took; nobody else finds it any longer.
            let io = unsafe {
                next = (*io).link;
                Io::<C>::from_raw(io)
            };
            io.complete(status);
        }
    }
}

impl<C: Channel> Default for IoQueue<C> {
    fn default() -> Self {
        IoQueue::new()
    }
}

impl<C: Channel> Drop for IoQueue<C> {
    fn drop(&mut self) {
        self.complete_all(IoStatus::ABORTED);
    }
}
