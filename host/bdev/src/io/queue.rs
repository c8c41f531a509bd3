//! A first-in-first-out queue of I/Os, linked through the I/Os themselves.
//!
//! Whoever holds an I/O owns its `link`, so queueing allocates nothing and needs no bound of its own: a
//! queue is as long as its consumers have I/Os. Does not know why something waits.
// UNSAFETY: follows the `link` of I/Os that the queue holds.

use std::ptr;

use tenon_abi::BdevIo;

/// I/Os that the gate holds, oldest first.
#[derive(Debug)]
pub(super) struct IoQueue {
    head: *mut BdevIo,
    tail: *mut BdevIo,
    len: u32,
}

impl IoQueue {
    pub(super) const fn new() -> Self {
        Self { head: ptr::null_mut(), tail: ptr::null_mut(), len: 0 }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The oldest, or null.
    pub(super) fn front(&self) -> *mut BdevIo {
        self.head
    }

    /// # Safety
    /// `io` is valid, in no queue, and stays valid until it is taken out.
    pub(super) unsafe fn push_back(&mut self, io: *mut BdevIo) {
        // SAFETY: the caller promises a valid `io`; `tail` is held by this queue, so it is valid too.
        unsafe {
            (*io).link = ptr::null_mut();
            if self.tail.is_null() {
                self.head = io;
            } else {
                (*self.tail).link = io;
            }
        }
        self.tail = io;
        self.len += 1;
    }

    /// # Safety
    /// As for [`IoQueue::push_back`].
    pub(super) unsafe fn push_front(&mut self, io: *mut BdevIo) {
        // SAFETY: the caller promises a valid `io`.
        unsafe { (*io).link = self.head };
        if self.tail.is_null() {
            self.tail = io;
        }
        self.head = io;
        self.len += 1;
    }

    /// Takes the oldest out.
    pub(super) fn pop_front(&mut self) -> Option<*mut BdevIo> {
        let io = self.head;
        if io.is_null() {
            return None;
        }
        // SAFETY: what the queue holds is valid, by the promise of whoever pushed it.
        unsafe {
            self.head = (*io).link;
            (*io).link = ptr::null_mut();
        }
        if self.head.is_null() {
            self.tail = ptr::null_mut();
        }
        self.len -= 1;
        Some(io)
    }

    /// Takes `victim` out if it is here; it is only compared, never followed, unless it is.
    pub(super) fn remove(&mut self, victim: *mut BdevIo) -> bool {
        self.remove_first(|io| io == victim).is_some()
    }

    /// Takes out the oldest that `wanted` picks.
    pub(super) fn remove_first(&mut self, wanted: impl Fn(*mut BdevIo) -> bool) -> Option<*mut BdevIo> {
        let mut before: *mut BdevIo = ptr::null_mut();
        let mut io = self.head;
        while !io.is_null() {
            // SAFETY: `io` and `before` are held by the queue, hence valid.
            unsafe {
                let next = (*io).link;
                if wanted(io) {
                    if before.is_null() {
                        self.head = next;
                    } else {
                        (*before).link = next;
                    }
                    if next.is_null() {
                        self.tail = before;
                    }
                    (*io).link = ptr::null_mut();
                    self.len -= 1;
                    return Some(io);
                }
                before = io;
                io = next;
            }
        }
        None
    }

    /// Everything, leaving nothing behind.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tenon_abi::{IoFlags, IoState, IoStatus, IoVec, Op};

    fn io() -> BdevIo {
        BdevIo {
            op: Op::READ,
            state: IoState::IDLE,
            flags: IoFlags::NONE,
            iovcnt: 0,
            iovs: ptr::null_mut(),
            offset_blocks: 0,
            num_blocks: 0,
            done: None,
            done_arg: ptr::null_mut(),
            ch: ptr::null_mut(),
            status: IoStatus::SUCCESS,
            cdw0: 0,
            md: ptr::null_mut(),
            ext: ptr::null(),
            link: ptr::null_mut(),
            submit_ticks: 0,
            inline_iov: IoVec::EMPTY,
            host: [ptr::null_mut(); 2],
        }
    }

    #[test]
    fn order_is_kept_through_pushes_at_both_ends_and_removals() {
        let mut ios: Vec<BdevIo> = (0..5).map(|_| io()).collect();
        let at: Vec<*mut BdevIo> = ios.iter_mut().map(ptr::from_mut).collect();
        let mut queue = IoQueue::new();
        // SAFETY: the I/Os outlive the queue and each is pushed once.
        unsafe {
            queue.push_back(at[1]);
            queue.push_back(at[2]);
            queue.push_front(at[0]);
            queue.push_back(at[3]);
        }
        assert!(queue.remove(at[2]));
        assert!(!queue.remove(at[4]));
        assert!(queue.remove(at[3]), "the last one");
        // SAFETY: as above.
        unsafe { queue.push_back(at[4]) };
        assert_eq!(queue.len(), 3);
        let mut rest = queue.take();
        assert!(queue.is_empty());
        let order: Vec<_> = std::iter::from_fn(|| rest.pop_front()).collect();
        assert_eq!(order, [at[0], at[1], at[4]]);
    }
}
