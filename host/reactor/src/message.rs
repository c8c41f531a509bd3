//! The message queue: many senders, one reactor, a fixed number of slots.
//!
//! A ring in which every slot carries a turn counter. A sender takes a position
//! with one compare-and-swap, writes its slot and publishes it; the reactor reads
//! in order and frees. There is no allocation and no lock; a full ring refuses.
//! The alternative, a linked list, needs an allocation per message and a counter
//! for the bound. Knows nothing of sleeping: see `wake` for that.
// UNSAFETY: slots are written and read through raw pointers; the turn counter decides who may.

use std::mem::MaybeUninit;

use crate::callback::{Callback, MessageFn};
use crate::sync::{AtomicUsize, Ordering, SlotCell, retry_hint};

/// How many messages may wait for one reactor; the next one is refused.
pub const MESSAGE_QUEUE_CAPACITY: usize = 65_536;

/// What a slot holds: a function, its argument, and how to release the argument unused.
pub(crate) type Message = Callback<MessageFn>;

/// A bounded queue of messages with one consumer.
pub(crate) struct MessageQueue {
    /// Next position a sender takes. On its own cache line: every sender writes it.
    tail: CacheLine<AtomicUsize>,
    /// Next position the consumer reads. Only the consumer writes it.
    head: CacheLine<AtomicUsize>,
    slots: Box<[Slot]>,
    mask: usize,
    lap_shift: u32,
}

/// Turn `2 * lap`: free for the sender of that lap. `2 * lap + 1`: holds a message.
struct Slot {
    turn: AtomicUsize,
    message: SlotCell<MaybeUninit<Message>>,
}

#[repr(align(64))]
struct CacheLine<T>(T);

// SAFETY: a slot's message is written by the one sender that took its position and read by the
// one consumer after the release store of `turn`; `Message` itself is `Send`.
unsafe impl Send for MessageQueue {}
// SAFETY: as above; every other field is atomic or immutable.
unsafe impl Sync for MessageQueue {}

impl MessageQueue {
    /// A queue for `capacity` messages, which must be a power of two.
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two(), "queue capacity {capacity} is not a power of two");
        Self {
            tail: CacheLine(AtomicUsize::new(0)),
            head: CacheLine(AtomicUsize::new(0)),
            slots: new_slots(capacity),
            mask: capacity - 1,
            lap_shift: capacity.trailing_zeros(),
        }
    }

    /// Appends a message, or gives it back when every slot is taken. Any thread.
    pub(crate) fn push(&self, message: Message) -> Result<(), Message> {
        let mut tail = self.tail.0.load(Ordering::Relaxed);
        loop {
            let slot = &self.slots[tail & self.mask];
            let free = (tail >> self.lap_shift).wrapping_mul(2);
            let turn = slot.turn.load(Ordering::Acquire);
            if turn == free {
                let taken = self.tail.0.compare_exchange_weak(
                    tail,
                    tail.wrapping_add(1),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                );
                match taken {
                    Ok(_) => {
                        // SAFETY: the exchange gave this position to this thread alone, and the
                        // acquire load of `turn` saw the consumer's release of the last lap.
                        slot.message.with_mut(|cell| unsafe { (*cell).write(message) });
                        slot.turn.store(free.wrapping_add(1), Ordering::Release);
                        return Ok(());
                    }
                    Err(now) => tail = now,
                }
            } else {
                let now = self.tail.0.load(Ordering::Relaxed);
                // The slot still holds the last lap's message and nobody moved on: full.
                if now == tail && (turn.wrapping_sub(free) as isize) < 0 {
                    return Err(message);
                }
                tail = now;
                retry_hint();
            }
        }
    }

    /// Whether a message can be taken. Consumer only, as the answer is its own to act on.
    #[inline(always)]
    pub(crate) fn has_message(&self) -> bool {
        let head = self.head.0.load(Ordering::Relaxed);
        self.slots[head & self.mask].turn.load(Ordering::Acquire) == self.full_turn(head)
    }

    /// Takes the oldest message.
    ///
    /// # Safety
    ///
    /// One thread at a time: the reactor that owns the queue, or whoever holds it alone.
    pub(crate) unsafe fn pop(&self) -> Option<Message> {
        let head = self.head.0.load(Ordering::Relaxed);
        let slot = &self.slots[head & self.mask];
        let full = self.full_turn(head);
        if slot.turn.load(Ordering::Acquire) != full {
            return None;
        }
        // SAFETY: `turn` says that the slot was published, and only the caller consumes.
        let message = slot.message.with_mut(|cell| unsafe { (*cell).assume_init_read() });
        self.head.0.store(head.wrapping_add(1), Ordering::Relaxed);
        slot.turn.store(full.wrapping_add(1), Ordering::Release);
        Some(message)
    }

    /// How many messages wait; a moment's estimate when senders are active.
    pub(crate) fn len(&self) -> usize {
        let head = self.head.0.load(Ordering::Relaxed);
        self.tail.0.load(Ordering::Relaxed).wrapping_sub(head).min(self.slots.len())
    }

    #[inline(always)]
    fn full_turn(&self, position: usize) -> usize {
        (position >> self.lap_shift).wrapping_mul(2).wrapping_add(1)
    }
}

impl Drop for MessageQueue {
    fn drop(&mut self) {
        // SAFETY: `&mut self` proves that there is neither sender nor consumer.
        while let Some(unsent) = unsafe { self.pop() } {
            drop(unsent);
        }
    }
}

/// Zeroed pages cost nothing until they are used: a quiet reactor's queue stays small.
#[cfg(not(loom))]
fn new_slots(capacity: usize) -> Box<[Slot]> {
    let slots = Box::<[Slot]>::new_zeroed_slice(capacity);
    // SAFETY: a zero `turn` is a valid atomic and means "free in lap 0"; the message is
    // `MaybeUninit`, for which any bytes are valid.
    unsafe { slots.assume_init() }
}

#[cfg(loom)]
fn new_slots(capacity: usize) -> Box<[Slot]> {
    (0..capacity)
        .map(|_| Slot { turn: AtomicUsize::new(0), message: SlotCell::new(MaybeUninit::uninit()) })
        .collect()
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn adding(counter: &Arc<AtomicU64>, value: u64) -> Message {
        let counter = Arc::clone(counter);
        Message::once(move || {
            counter.fetch_add(value, Ordering::Relaxed);
        })
    }

    #[test]
    fn the_queue_refuses_the_message_after_the_last_slot_and_recovers() {
        let counter = Arc::new(AtomicU64::new(0));
        let queue = MessageQueue::new(4);
        for round in 0..3 {
            for _ in 0..4 {
                assert!(queue.push(adding(&counter, 1)).is_ok(), "round {round}");
            }
            assert!(queue.push(adding(&counter, 100)).is_err(), "a fifth message fits nowhere");
            assert_eq!(queue.len(), 4);
            // SAFETY: this test's thread is the only consumer.
            while let Some(message) = unsafe { queue.pop() } {
                message.call();
            }
            assert!(!queue.has_message());
        }
        assert_eq!(counter.load(Ordering::Relaxed), 12);
    }

    #[test]
    fn dropping_the_queue_releases_undelivered_closures() {
        let held = Arc::new(AtomicU64::new(0));
        let queue = MessageQueue::new(4);
        assert!(queue.push(adding(&held, 1)).is_ok());
        assert_eq!(Arc::strong_count(&held), 2);
        drop(queue);
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(held.load(Ordering::Relaxed), 0, "released, not run");
    }

    #[test]
    fn every_sender_keeps_its_order() {
        const SENDERS: u64 = 3;
        let each: u64 = if cfg!(miri) { 50 } else { 20_000 };
        let queue = Arc::new(MessageQueue::new(64));
        let seen = Arc::new(parking_lot::Mutex::new(vec![Vec::new(); SENDERS as usize]));
        std::thread::scope(|scope| {
            for sender in 0..SENDERS {
                let (queue, seen) = (Arc::clone(&queue), Arc::clone(&seen));
                scope.spawn(move || {
                    for i in 0..each {
                        let seen = Arc::clone(&seen);
                        let mut message = Message::once(move || seen.lock()[sender as usize].push(i));
                        while let Err(back) = queue.push(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let mut received = 0;
            while received < SENDERS * each {
                // SAFETY: this is the only consuming thread.
                match unsafe { queue.pop() } {
                    Some(message) => {
                        message.call();
                        received += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        for order in seen.lock().iter() {
            assert!(order.iter().copied().eq(0..each));
        }
    }
}
