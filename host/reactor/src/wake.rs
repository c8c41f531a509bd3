//! The sleep protocol: a sender wakes a reactor if, and only if, it sleeps or is about to.
//!
//! ```text
//!   sender                          reactor
//!   publish the message             announce: state = Asleep
//!   ── full fence ──                ── full fence ──
//!   state == Asleep? claim, wake    a message there? retract : sleep
//! ```
//!
//! One of the two always sees the other, so no wake-up is lost, and an awake
//! reactor costs its senders a fence and a load, not a system call. The order of
//! the two loads is what loom checks below. Does not know how to sleep or wake:
//! `rest` does the one through epoll, [`Waker`] the other through an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::sync::{AtomicU32, Ordering, fence};

/// Whether the owner of a queue sleeps.
#[derive(Debug)]
pub(crate) struct SleepState {
    state: AtomicU32,
}

impl SleepState {
    pub(crate) fn new() -> Self {
        Self { state: AtomicU32::new(AWAKE) }
    }

    /// Owner: from now on senders wake me. The queue must be looked at after this, before sleeping.
    pub(crate) fn announce(&self) {
        // An exchange and not a store, so that it comes after every claim that it does not undo.
        self.state.swap(ASLEEP, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// Owner: I am awake, whoever or whatever woke me.
    pub(crate) fn retract(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// Sender, after publishing: whether it is this sender that has to wake the owner.
    #[inline]
    pub(crate) fn claim_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        // Of several senders that find a sleeper, the one whose exchange succeeds wakes it.
        self.state.load(Ordering::Relaxed) == ASLEEP
            && self.state.compare_exchange(ASLEEP, AWAKE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether the owner has announced its sleep and nobody has claimed to wake it.
    pub(crate) fn is_asleep(&self) -> bool {
        self.state.load(Ordering::Relaxed) == ASLEEP
    }
}

/// The descriptor that ends a reactor's epoll wait.
///
/// It is watched edge-triggered, so every write is an event and it need never be
/// read; at one write a nanosecond its counter would be full after 584 years.
#[derive(Debug)]
pub(crate) struct Waker {
    eventfd: OwnedFd,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { eventfd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    pub(crate) fn wake(&self) {
        if let Err(error) = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes()) {
            log::error!("reactor wake-up failed error={error}");
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn only_one_sender_wakes_a_sleeper() {
        let state = SleepState::new();
        assert!(!state.claim_wake(), "an awake owner needs no wake-up");
        state.announce();
        assert!(state.is_asleep());
        assert!(state.claim_wake());
        assert!(!state.claim_wake(), "the first claim is enough");
        state.retract();
        assert!(!state.is_asleep());
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Condvar, Mutex};

    use super::SleepState;
    use crate::message::{Message, MessageQueue};

    /// Stands for the eventfd: a wake-up that comes before the wait is not lost.
    struct Bell {
        rung: Mutex<bool>,
        changed: Condvar,
    }

    impl Bell {
        fn ring(&self) {
            *self.rung.lock().expect("no test thread panics holding the lock") = true;
            self.changed.notify_one();
        }

        fn wait(&self) {
            let mut rung = self.rung.lock().expect("no test thread panics holding the lock");
            while !*rung {
                rung = self.changed.wait(rung).expect("no test thread panics holding the lock");
            }
            *rung = false;
        }
    }

    struct World {
        queue: MessageQueue,
        sleep: SleepState,
        bell: Bell,
        delivered: std::sync::Arc<std::sync::atomic::AtomicUsize>,
    }

    fn world(capacity: usize) -> Arc<World> {
        Arc::new(World {
            queue: MessageQueue::new(capacity),
            sleep: SleepState::new(),
            bell: Bell { rung: Mutex::new(false), changed: Condvar::new() },
            delivered: std::sync::Arc::default(),
        })
    }

    fn send(world: &World, value: usize) -> bool {
        let delivered = std::sync::Arc::clone(&world.delivered);
        let message = Message::once(move || {
            delivered.fetch_add(value, Ordering::Relaxed);
        });
        let sent = world.queue.push(message).is_ok();
        if sent && world.sleep.claim_wake() {
            world.bell.ring();
        }
        sent
    }

    /// The reactor: works, and sleeps whenever it finds nothing. A lost wake-up would leave it
    /// waiting for the bell for ever, which loom reports as a deadlock.
    fn receive(world: &World, expected: usize) {
        let mut received = 0;
        while received < expected {
            // SAFETY: one thread calls `receive`.
            if let Some(message) = unsafe { world.queue.pop() } {
                message.call();
                received += 1;
                continue;
            }
            world.sleep.announce();
            if !world.queue.has_message() {
                world.bell.wait();
            }
            world.sleep.retract();
        }
    }

    #[test]
    fn loom_no_wake_up_is_lost_with_one_sender() {
        loom::model(|| {
            let world = world(4);
            let sender = {
                let world = Arc::clone(&world);
                loom::thread::spawn(move || {
                    assert!(send(&world, 1));
                    assert!(send(&world, 10));
                })
            };
            receive(&world, 2);
            sender.join().expect("the sender does not panic");
            assert_eq!(world.delivered.load(Ordering::Relaxed), 11);
        });
    }

    #[test]
    fn loom_no_wake_up_is_lost_with_two_senders() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let world = world(4);
            let senders = [1, 10].map(|value| {
                let world = Arc::clone(&world);
                loom::thread::spawn(move || assert!(send(&world, value)))
            });
            receive(&world, 2);
            for sender in senders {
                sender.join().expect("the sender does not panic");
            }
            assert_eq!(world.delivered.load(Ordering::Relaxed), 11);
        });
    }

    #[test]
    fn loom_a_full_queue_refuses_and_loses_nothing() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let world = world(1);
            let sent = Arc::new(AtomicUsize::new(0));
            let senders = [1, 10].map(|value| {
                let (world, sent) = (Arc::clone(&world), Arc::clone(&sent));
                loom::thread::spawn(move || {
                    if send(&world, value) {
                        sent.fetch_add(value, Ordering::Relaxed);
                    }
                })
            });
            receive(&world, 1);
            for sender in senders {
                sender.join().expect("the sender does not panic");
            }
            // SAFETY: the senders have ended; this thread is alone.
            while let Some(message) = unsafe { world.queue.pop() } {
                message.call();
            }
            assert_eq!(world.delivered.load(Ordering::Relaxed), sent.load(Ordering::Relaxed));
        });
    }
}
