//! One connection: what its two ends share, and how they reach each other.
//!
//! Commands travel by number: the initiator queues the number of a slot for the
//! target and rings its bell, the target queues it back. A bell is one message
//! however many numbers are queued, so a batch costs one message each way and
//! nothing is allocated per command but that.
//!
//! The initiator's memory is touched by the target's end only while the slot
//! says so ([`SlotState`]). That lets the initiator end a command at any time
//! without waiting for the target: what it takes back is not touched any more.
// UNSAFETY: hands requests of both sides from reactor to reactor by raw pointers.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use tenon_sdk::abi::IoVec;
use tenon_sdk::abi::transport::initiator::InitiatorRequest;
use tenon_sdk::abi::transport::target::TargetRequest;
use tenon_sdk::abi::transport::{CloseReason, Direction};
use tenon_sdk::{Host, Reactor};

use crate::initiator::InitiatorEnd;
use crate::listeners::Listener;
use crate::target::TargetEnd;

/// Whose turn a slot is.
///
/// ```text
/// Idle ──submit──► Open ⇄ Busy          the target's end copies from or to the initiator's memory
///   ▲                │ │
///   │                │ └──abandon──► Abandoned      the initiator has taken its memory back
///   └──── done ──────┴──answer──► Answered
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SlotState {
    Idle,
    Open,
    Busy,
    Answered,
    Abandoned,
}

/// One command in flight. Its first member is what the target core sees.
#[repr(C)]
pub(crate) struct Slot {
    /// The target's end only.
    pub(crate) target: UnsafeCell<TargetRequest>,
    /// The initiator's request, until it is done.
    request: AtomicPtr<InitiatorRequest>,
    state: AtomicU8,
    pub(crate) index: u16,
    /// In-capsule data; the target's end only.
    pub(crate) capsule: UnsafeCell<Box<[u8]>>,
    /// The connection; set before the first command.
    pub(crate) link: AtomicPtr<Link>,
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Target,
    Initiator,
}

/// What the target's end is to the initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TargetIs {
    /// Announced to the target core, not taken over yet.
    New,
    /// Taken over.
    Open,
    /// Not taken over.
    Refused,
    /// Closed, with every command back.
    Gone,
}

/// A connection.
pub(crate) struct Link {
    pub(crate) host: Host,
    /// Who accepted it; `None` if nobody listens.
    pub(crate) listener: Option<Listener>,
    /// Most in-capsule data.
    pub(crate) in_capsule_size: u32,
    slots: Box<[Slot]>,
    to_target: ArrayQueue<u16>,
    to_initiator: ArrayQueue<u16>,
    target_bell: AtomicBool,
    initiator_bell: AtomicBool,
    initiator_reactor: Reactor,
    target_reactor: OnceLock<Reactor>,
    target_is: AtomicU8,
    reason: AtomicU32,
    has_hung_up: AtomicBool,
    target_end: UnsafeCell<TargetEnd>,
    initiator_end: UnsafeCell<InitiatorEnd>,
}

// SAFETY: each end is reached by its own reactor only (`target`, `initiator`), slots as their state says, and
// everything else is atomic or immutable.
unsafe impl Send for Link {}
// SAFETY: as above.
unsafe impl Sync for Link {}

impl Link {
    pub(crate) fn new(
        host: Host,
        initiator_reactor: Reactor,
        listener: Option<Listener>,
        depth: u16,
        initiator_end: InitiatorEnd,
    ) -> Arc<Link> {
        let in_capsule_size =
            listener.as_ref().map_or(0, |listener| listener.instance.options.in_capsule_data_size);
        let depth = usize::from(depth.max(1));
        let link = Arc::new(Link {
            host,
            listener,
            in_capsule_size,
            slots: (0..depth).map(|index| Slot::new(index as u16, in_capsule_size as usize)).collect(),
            to_target: ArrayQueue::new(depth),
            to_initiator: ArrayQueue::new(depth),
            target_bell: AtomicBool::new(false),
            initiator_bell: AtomicBool::new(false),
            initiator_reactor,
            target_reactor: OnceLock::new(),
            target_is: AtomicU8::new(TargetIs::New as u8),
            reason: AtomicU32::new(CloseReason::PEER.0),
            has_hung_up: AtomicBool::new(false),
            target_end: UnsafeCell::new(TargetEnd::new()),
            initiator_end: UnsafeCell::new(initiator_end),
        });
        for slot in &link.slots {
            slot.link.store(Arc::as_ptr(&link).cast_mut(), Ordering::Release);
        }
        link
    }

    pub(crate) fn depth(&self) -> u16 {
        self.slots.len() as u16
    }

    pub(crate) fn slot(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The target's end.
    ///
    /// # Safety
    /// On the target's reactor.
    pub(crate) unsafe fn target(&self) -> &TargetEnd {
        // SAFETY: only one thread comes here, and the end itself is made of cells.
        unsafe { &*self.target_end.get() }
    }

    /// The initiator's end.
    ///
    /// # Safety
    /// On the initiator's reactor.
    pub(crate) unsafe fn initiator(&self) -> &InitiatorEnd {
        // SAFETY: as above.
        unsafe { &*self.initiator_end.get() }
    }

    /// The target's end lives on `reactor` from now on. True if the initiator hung up meanwhile.
    pub(crate) fn taken_over(&self, reactor: Reactor) -> bool {
        if self.target_reactor.set(reactor).is_err() {
            log::error!("loop connection was taken over twice");
        }
        // Both sides write before they read, in one order: one of them sees the other.
        self.target_is.store(TargetIs::Open as u8, Ordering::SeqCst);
        self.has_hung_up.load(Ordering::SeqCst)
    }

    /// Tells the initiator that there is no target any more, or never was.
    pub(crate) fn target_left(self: &Arc<Self>, is: TargetIs, reason: CloseReason) {
        self.reason.store(reason.0, Ordering::Relaxed);
        self.target_is.store(is as u8, Ordering::SeqCst);
        self.ring(End::Initiator);
    }

    pub(crate) fn target_is(&self) -> TargetIs {
        match self.target_is.load(Ordering::SeqCst) {
            0 => TargetIs::New,
            1 => TargetIs::Open,
            2 => TargetIs::Refused,
            _ => TargetIs::Gone,
        }
    }

    /// Why the target left.
    pub(crate) fn reason(&self) -> CloseReason {
        CloseReason(self.reason.load(Ordering::Relaxed))
    }

    /// The initiator is through with the connection.
    pub(crate) fn hang_up(self: &Arc<Self>) {
        self.has_hung_up.store(true, Ordering::SeqCst);
        if self.target_is() == TargetIs::Open {
            self.ring(End::Target);
        }
    }

    pub(crate) fn has_hung_up(&self) -> bool {
        self.has_hung_up.load(Ordering::SeqCst)
    }

    /// Queues a slot for the other end, which hears of it when its bell is rung.
    pub(crate) fn queue(&self, to: End, index: u16) {
        let queue = match to {
            End::Target => &self.to_target,
            End::Initiator => &self.to_initiator,
        };
        if queue.push(index).is_err() {
            // A slot is in a queue once at most, and there is room for all of them.
            log::error!("loop connection lost a command slot={index}");
        }
    }

    /// The next slot that came to an end.
    pub(crate) fn next(&self, at: End) -> Option<u16> {
        match at {
            End::Target => self.to_target.pop(),
            End::Initiator => self.to_initiator.pop(),
        }
    }

    /// Makes an end look what has come, in a later turn of its reactor.
    pub(crate) fn ring(self: &Arc<Self>, end: End) {
        if !self.bell(end).swap(true, Ordering::AcqRel) {
            self.send_bell(end);
        }
    }

    fn bell(&self, end: End) -> &AtomicBool {
        match end {
            End::Target => &self.target_bell,
            End::Initiator => &self.initiator_bell,
        }
    }

    fn send_bell(self: &Arc<Self>, end: End) {
        let reactor = match end {
            End::Target => self.target_reactor.get().copied(),
            End::Initiator => Some(self.initiator_reactor),
        };
        let Some(reactor) = reactor else { return };
        let link = Arc::clone(self);
        if self.host.send(reactor, move || link.heard(end)).is_ok() {
            return;
        }
        let link = Arc::clone(self);
        match self.host.timer(BELL_RETRY, move || link.send_bell(end)) {
            Ok(timer) => timer.detach(),
            Err(error) => log::error!("loop connection stands still error=\"{error}\""),
        }
    }

    fn heard(self: &Arc<Self>, end: End) {
        self.bell(end).store(false, Ordering::Release);
        // SAFETY: the bell of an end is sent to its reactor.
        unsafe {
            match end {
                End::Target => self.target().run(self),
                End::Initiator => self.initiator().run(self),
            }
        }
    }
}

impl Slot {
    fn new(index: u16, in_capsule_size: usize) -> Self {
        Slot {
            target: UnsafeCell::new(empty_request()),
            request: AtomicPtr::default(),
            state: AtomicU8::new(SlotState::Idle as u8),
            index,
            capsule: UnsafeCell::new(vec![0; in_capsule_size].into_boxed_slice()),
            link: AtomicPtr::default(),
        }
    }

    /// Takes a request of the initiator.
    pub(crate) fn open(&self, request: *mut InitiatorRequest) {
        self.request.store(request, Ordering::Relaxed);
        self.state.store(SlotState::Open as u8, Ordering::Release);
    }

    /// Moves on if the slot is in state `from`.
    pub(crate) fn advance(&self, from: SlotState, to: SlotState) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the target has answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.state.load(Ordering::Acquire) == SlotState::Answered as u8
    }

    /// Takes the initiator's request out; null if it is done already.
    pub(crate) fn take_request(&self) -> *mut InitiatorRequest {
        self.request.swap(std::ptr::null_mut(), Ordering::Relaxed)
    }

    /// The slot may be used again.
    pub(crate) fn clear(&self) {
        self.state.store(SlotState::Idle as u8, Ordering::Release);
    }

    /// Gives `use_it` the initiator's request while nobody else may touch it; `None` if it is taken back.
    /// Afterwards the slot is in state `then`.
    pub(crate) fn with_request<R>(
        &self,
        then: SlotState,
        use_it: impl FnOnce(&mut InitiatorRequest) -> R,
    ) -> Option<R> {
        if !self.advance(SlotState::Open, SlotState::Busy) {
            return None;
        }
        // SAFETY: the initiator keeps an open request alive and does not touch it; it waits while it is busy.
        let request = unsafe { &mut *self.request.load(Ordering::Relaxed) };
        let result = use_it(request);
        self.state.store(then as u8, Ordering::Release);
        Some(result)
    }
}

/// Copies at most `limit` bytes from one scatter list to another; gives the number copied.
///
/// # Safety
/// Both lists and the memory they name are valid, that of `to` for writing; nobody else uses it meanwhile.
pub(crate) unsafe fn copy(from: &[IoVec], to: &[IoVec], limit: usize) -> usize {
    let (mut done, mut at, mut used) = (0, 0, 0);
    for source in from {
        let mut offset = 0;
        while offset < source.len && done < limit {
            let Some(target) = to.get(at) else { return done };
            if used == target.len {
                (at, used) = (at + 1, 0);
                continue;
            }
            let len = (source.len - offset).min(target.len - used).min(limit - done);
            // SAFETY: as the caller promises; `len` stays within both pieces. They may be the same memory.
            unsafe {
                let (from, to) = (source.base.byte_add(offset), target.base.byte_add(used));
                std::ptr::copy(from.cast::<u8>().cast_const(), to.cast::<u8>(), len);
            }
            (offset, used, done) = (offset + len, used + len, done + len);
        }
    }
    done
}

/// The pieces of a scatter list.
///
/// # Safety
/// `iovs` has `count` pieces for `'a`, or `count` is 0.
pub(crate) unsafe fn pieces<'a>(iovs: *const IoVec, count: u32) -> &'a [IoVec] {
    if count == 0 || iovs.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(iovs, count as usize) }
}

/// A request of the target with nothing in it.
pub(crate) fn empty_request() -> TargetRequest {
    TargetRequest {
        sqe: [0; 64],
        cqe: [0; 16],
        iovs: std::ptr::null_mut(),
        iovcnt: 0,
        length: 0,
        direction: Direction::NONE,
        reserved: [0; 3],
        capsule_length: 0,
        capsule_data: std::ptr::null_mut(),
        queue_pair: std::ptr::null_mut(),
        link: std::ptr::null_mut(),
        inline_iov: IoVec::EMPTY,
        memory_key: 0,
        host: [std::ptr::null_mut(); 3],
    }
}

/// Nobody listens there.
pub(crate) const ECONNREFUSED: i32 = -111;
/// The other end is gone.
pub(crate) const ECONNRESET: i32 = -104;
/// Not connected, or closing.
pub(crate) const ENOTCONN: i32 = -107;
/// Pause before a bell is sent again to a reactor whose queue was full.
const BELL_RETRY: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(from: &[usize], to: &[usize], limit: usize) {
        let total = from.iter().sum::<usize>();
        let mut source: Vec<u8> = (0..total).map(|byte| byte as u8 + 1).collect();
        let room = to.iter().sum::<usize>();
        let mut target = vec![0_u8; room];
        let cut = |memory: &mut Vec<u8>, lens: &[usize]| {
            let mut base = memory.as_mut_ptr();
            let mut list = Vec::new();
            for len in lens {
                list.push(IoVec { base: base.cast(), len: *len });
                // SAFETY: the pieces together are as long as the memory.
                base = unsafe { base.add(*len) };
            }
            list
        };
        let (from, to) = (cut(&mut source, from), cut(&mut target, to));
        // SAFETY: both lists name memory of this function.
        let copied = unsafe { copy(&from, &to, limit) };
        let expected = total.min(room).min(limit);
        assert_eq!(copied, expected);
        assert_eq!(target[..expected], source[..expected]);
        assert!(target[expected..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn scatter_lists_are_copied_whatever_their_cuts() {
        check(&[10], &[10], 10);
        check(&[3, 0, 7], &[5, 5], 10);
        check(&[5, 5], &[1, 0, 2, 7], 10);
        check(&[10], &[4], 10);
        check(&[4], &[10], 10);
        check(&[10], &[10], 6);
        check(&[], &[10], 6);
        check(&[10], &[], 6);
    }
}
