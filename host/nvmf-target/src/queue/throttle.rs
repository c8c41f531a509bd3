//! Commands of a limited host that wait until there is an allowance for them.
//!
//! They wait in order, each queue for itself, and a timer of the reactor wakes
//! them; a command that has passed once is not charged again.
// UNSAFETY: follows commands through raw pointers, as the queue does.

use std::sync::Arc;
use std::time::Duration;

use nvme_spec::completion::StatusField;
use nvme_spec::status::StatusCode;
use tenon_reactor::now_ns;

use super::command::{Command, Stage, Work};
use super::side::ReactorSide;
use super::{Phase, QueuePair};
use crate::limits::HostLimiter;

impl QueuePair {
    /// Whether a command may go on now; if not, it waits here.
    ///
    /// # Safety
    /// `command` is in this queue's list and nobody else has it.
    pub(super) unsafe fn may_pass(&self, command: *mut Command) -> bool {
        // SAFETY: as the caller promises.
        let wait_ns = unsafe {
            if (*command).is_admitted {
                return true;
            }
            match self.throttled.borrow().is_empty() {
                true => match self.charge(command) {
                    Ok(()) => return true,
                    Err(wait_ns) => wait_ns,
                },
                // Whoever is first has set the timer.
                false => 0,
            }
        };
        // SAFETY: as above.
        unsafe { (*command).stage = Stage::Held };
        self.throttled.borrow_mut().push_back(command);
        if wait_ns > 0 {
            self.wake_throttled(wait_ns);
        }
        false
    }

    /// The host's limits from now on.
    pub(crate) fn set_limiter(&self, limiter: Option<Arc<HostLimiter>>) {
        let Some(open) = self.opened.get() else { return };
        open.is_limited.set(limiter.is_some());
        *open.limiter.borrow_mut() = limiter;
        self.forget_throttle_timer();
        self.pass_throttled();
    }

    pub(super) fn forget_throttle_timer(&self) {
        if let Some(timer) = self.throttle_timer.take() {
            tenon_reactor::current().cancel_timer(timer);
        }
    }

    /// # Safety
    /// As [`QueuePair::may_pass`].
    unsafe fn charge(&self, command: *mut Command) -> Result<(), u64> {
        let limiter = self.opened.get().and_then(|open| open.limiter.borrow().clone());
        let Some(limiter) = limiter else { return Ok(()) };
        // SAFETY: as the caller promises.
        unsafe {
            let is_write = match (*command).work {
                Work::Read | Work::Compare | Work::Verify | Work::Flush | Work::Hint | Work::Control => false,
                Work::Write
                | Work::WriteZeroes
                | Work::Deallocate
                | Work::Copy
                | Work::WriteUncorrectable => true,
            };
            limiter.take(now_ns(), is_write, u64::from((*(*command).request).length))?;
            (*command).is_admitted = true;
        }
        Ok(())
    }

    fn wake_throttled(&self, wait_ns: u64) {
        self.forget_throttle_timer();
        let number = self.key.number;
        let timer = tenon_reactor::current().set_timer(Duration::from_nanos(wait_ns), move || {
            let Some(side) = ReactorSide::current() else { return };
            side.with_queue(number, |queue| {
                queue.throttle_timer.set(None);
                queue.pass_throttled();
            });
        });
        if timer.is_err() {
            log::error!("limited commands wait for the next: no timer is left");
        }
        self.throttle_timer.set(timer.ok());
    }

    /// Lets those go on that there is an allowance for.
    fn pass_throttled(&self) {
        let count = self.throttled.borrow().len();
        for _ in 0..count {
            let Some(command) = self.throttled.borrow().front().copied() else { return };
            // SAFETY: throttled commands are in our list and nobody else's.
            unsafe {
                if self.phase.get() != Phase::Live {
                    self.throttled.borrow_mut().pop_front();
                    self.complete(command, StatusField::new(StatusCode::ABORTED_SQ_DELETION), 0);
                    continue;
                }
                if let Err(wait_ns) = self.charge(command) {
                    return self.wake_throttled(wait_ns);
                }
                self.throttled.borrow_mut().pop_front();
                // Also where the limits have ended.
                (*command).is_admitted = true;
                self.start(command);
            }
        }
    }
}
