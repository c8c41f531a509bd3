//! Deadlines of the control plane: one ordered set behind one reactor timer.
//!
//! Thousands of operations and examinations may wait at once; each of them has a
//! deadline here, and the reactor sees only the earliest. What is due is data
//! ([`Due`]), so that a deadline keeps nothing alive.

use std::collections::BTreeMap;

use tenon_abi::BdevHandle;
use tenon_reactor::TimerId;

use crate::core::Core;

/// What has to be looked at when time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// An operation was not answered, or not finished.
    Operation(u64),
    /// The examination with that activity number was not answered.
    Examine(BdevHandle, u64),
    /// A device was not let go of.
    Removal(BdevHandle),
    /// An absent device did not come back.
    Absent(BdevHandle),
    /// Somebody has waited long enough for others.
    Idle(u64),
    /// The devices of a module did not go.
    ModuleDrain(u32),
    /// The shutdown takes too long.
    Shutdown,
}

/// Names a deadline, so that it can be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    at_ns: u64,
    number: u64,
}

/// All deadlines, the earliest first. Bounded by the objects that have one.
#[derive(Default)]
pub(crate) struct Deadlines {
    due: BTreeMap<Key, Due>,
    next_number: u64,
    timer: Option<(u64, TimerId)>,
}

impl Deadlines {
    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }
}

impl Core {
    /// Calls `due` back at `at_ns`.
    pub(crate) fn set_deadline(&self, at_ns: u64, due: Due) -> Key {
        let key = {
            let mut deadlines = self.inner.deadlines.borrow_mut();
            deadlines.next_number += 1;
            let key = Key { at_ns, number: deadlines.next_number };
            deadlines.due.insert(key, due);
            key
        };
        self.arm_timer();
        key
    }

    /// Calls `due` back `delay` from now.
    pub(crate) fn set_deadline_in(&self, delay: std::time::Duration, due: Due) -> Key {
        self.set_deadline(deadline_ns(delay), due)
    }

    pub(crate) fn cancel_deadline(&self, key: Option<Key>) {
        if let Some(key) = key {
            // The timer stays; a wake-up without work is cheaper than re-arming for every operation.
            self.inner.deadlines.borrow_mut().due.remove(&key);
        }
    }

    /// Makes the reactor's timer fire for the earliest deadline.
    fn arm_timer(&self) {
        let local = tenon_reactor::current();
        let mut deadlines = self.inner.deadlines.borrow_mut();
        let Some(earliest) = deadlines.due.first_key_value().map(|(key, _)| key.at_ns) else { return };
        if let Some((at_ns, timer)) = deadlines.timer {
            if at_ns <= earliest {
                return;
            }
            local.cancel_timer(timer);
        }
        let core = self.downgrade();
        let armed = local.set_timer_at(earliest, move || {
            if let Some(core) = core.upgrade() {
                core.run_due();
            }
        });
        deadlines.timer = match armed {
            Ok(timer) => Some((earliest, timer)),
            Err(error) => {
                log::error!("deadline timer was refused, deadlines wait for the next one error={error}");
                None
            }
        };
    }

    fn run_due(&self) {
        self.inner.deadlines.borrow_mut().timer = None;
        let now = tenon_reactor::now_ns();
        for _ in 0..DUE_PER_TURN {
            let due = {
                let mut deadlines = self.inner.deadlines.borrow_mut();
                match deadlines.due.first_entry() {
                    Some(entry) if entry.key().at_ns <= now => entry.remove(),
                    Some(_) | None => break,
                }
            };
            self.on_due(due);
        }
        self.arm_timer();
    }

    fn on_due(&self, due: Due) {
        match due {
            Due::Operation(operation) => self.operation_overdue(operation),
            Due::Examine(bdev, activity) => self.examine_overdue(bdev, activity),
            Due::Removal(bdev) => self.removal_overdue(bdev),
            Due::Absent(bdev) => self.absent_overdue(bdev),
            Due::Idle(waiter) => self.idle_overdue(waiter),
            Due::ModuleDrain(module) => self.module_drain_overdue(module),
            Due::Shutdown => self.shutdown_overdue(),
        }
    }

    /// The reactor's timer is gone with the core.
    pub(crate) fn disarm_timer(&self) {
        let timer = self.inner.deadlines.borrow_mut().timer.take();
        if let (Some((_, timer)), Some(local)) = (timer, tenon_reactor::try_current()) {
            local.cancel_timer(timer);
        }
    }
}

/// The time `delay` from now.
pub(crate) fn deadline_ns(delay: std::time::Duration) -> u64 {
    tenon_reactor::now_ns().saturating_add(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX))
}

/// Deadlines looked at before other work has its turn.
const DUE_PER_TURN: usize = 256;
