//! What goes on: numbers for lifecycle work in flight, and who waits for it.
//!
//! Each operation, examination, removal and load is an activity from the moment
//! it is asked for until it is over or its deadline has passed. A waiter waits
//! for what was in flight when it asked, and for the examinations of devices that
//! modules made of it meanwhile; never for later requests, so it cannot starve.

use std::collections::BTreeSet;

use crate::core::Core;
use crate::deadline::{Due, Key};

/// Called when nothing is in flight any more.
type Done = Box<dyn FnOnce()>;

/// Numbers of what goes on.
#[derive(Default)]
pub(crate) struct Activities {
    last: u64,
    /// Asked for by somebody outside.
    requested: BTreeSet<u64>,
    /// A consequence of something a module did on its own.
    derived: BTreeSet<u64>,
    waiters: Vec<Waiter>,
}

struct Waiter {
    id: u64,
    /// Waits for requests up to this number.
    up_to: u64,
    deadline: Key,
    done: Done,
}

/// Why something goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Requested,
    Derived,
}

impl Activities {
    fn is_over(&self, up_to: u64) -> bool {
        self.derived.is_empty() && self.requested.first().is_none_or(|first| *first > up_to)
    }

    pub(crate) fn len(&self) -> usize {
        self.requested.len() + self.derived.len()
    }

    pub(crate) fn waiters(&self) -> usize {
        self.waiters.len()
    }
}

impl Core {
    pub(crate) fn activity_begin(&self, origin: Origin) -> u64 {
        let mut activities = self.inner.activities.borrow_mut();
        activities.last += 1;
        let number = activities.last;
        match origin {
            Origin::Requested => activities.requested.insert(number),
            Origin::Derived => activities.derived.insert(number),
        };
        number
    }

    /// Over, or not waited for any longer. Ending twice is allowed.
    pub(crate) fn activity_end(&self, number: u64) {
        let ready = {
            let mut activities = self.inner.activities.borrow_mut();
            let removed = activities.requested.remove(&number) | activities.derived.remove(&number);
            if !removed || activities.waiters.is_empty() {
                return;
            }
            let waiters = std::mem::take(&mut activities.waiters);
            let (ready, waiting) = waiters.into_iter().partition(|waiter| activities.is_over(waiter.up_to));
            activities.waiters = waiting;
            ready
        };
        self.release(ready);
    }

    /// Calls `done` once all lifecycle work that is in flight now is over, or its deadline passed.
    pub fn wait_for_examine(&self, done: impl FnOnce() + 'static) {
        let up_to = {
            let activities = self.inner.activities.borrow();
            if activities.is_over(activities.last) {
                drop(activities);
                self.later(move |_| done());
                return;
            }
            activities.last
        };
        let id = self.next_id();
        let longest = self.inner.options.operation_deadline * 2;
        let deadline = self.set_deadline_in(longest, Due::Idle(id));
        self.inner.activities.borrow_mut().waiters.push(Waiter { id, up_to, deadline, done: Box::new(done) });
    }

    pub(crate) fn idle_overdue(&self, id: u64) {
        let ready = {
            let mut activities = self.inner.activities.borrow_mut();
            let waiters = std::mem::take(&mut activities.waiters);
            let (ready, waiting) = waiters.into_iter().partition(|waiter| waiter.id == id);
            activities.waiters = waiting;
            ready
        };
        log::warn!("waited too long for lifecycle operations, no longer waiting");
        self.release(ready);
    }

    fn release(&self, ready: Vec<Waiter>) {
        for waiter in ready {
            self.cancel_deadline(Some(waiter.deadline));
            self.later(move |_| (waiter.done)());
        }
    }
}
