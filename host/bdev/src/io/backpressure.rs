//! What happens when a module says NOMEM: its I/O waits in line and is tried again.
//!
//! The refused I/O and all that comes after it on the channel wait in one queue, so order is kept.
//! They are tried again when the module has completed about half of what it had when it refused
//! (it gets room for several, not one at a time); if it had nothing, nothing will complete, so a timer
//! with a growing delay tries. A device that accepts nothing at all for [`GIVE_UP_NS`] has its oldest
//! I/O answered NOMEM. The gate is not in the completion path: `service` watches `outstanding`.
//!
//! # Safety
//! Every unsafe function takes a live channel of the calling reactor, and I/Os that the gate owns.
// UNSAFETY: works on the calling reactor's channels through raw pointers.

use std::ffi::c_void;

use log::warn;
use tenon_abi::{BdevIo, IoChannel, IoFlags, IoState, IoStatus, Op};
use tenon_reactor::{TimerId, current, now_ns};

use super::channel::ModuleChannel;
use super::freeze::Phase;
use super::{service, submit};

/// What a channel with refused I/O waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// Nothing: try now.
    Now,
    /// The module has at most so many I/Os.
    Outstanding(u32),
    /// The timer.
    Timer(TimerId),
}

/// State of the retries of one channel.
#[derive(Debug)]
pub(super) struct Waiting {
    until: Until,
    /// The I/O that is being tried right now, to know it again if it is refused at once.
    trying: *mut BdevIo,
    was_refused: bool,
    backoff_ns: u64,
    /// Since when the module accepted nothing although it had nothing; 0: it did.
    stuck_since_ns: u64,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            until: Until::Now,
            trying: std::ptr::null_mut(),
            was_refused: false,
            backoff_ns: BACKOFF_MIN_NS,
            stuck_since_ns: 0,
        }
    }
}

impl Waiting {
    /// Whether it is time to try again.
    pub(super) fn is_over(&self, outstanding: u32) -> bool {
        match self.until {
            Until::Now => true,
            Until::Outstanding(threshold) => outstanding <= threshold,
            Until::Timer(_) => false,
        }
    }

    /// Whether completions, which only a poller sees, end the wait.
    pub(super) fn is_watched(&self) -> bool {
        match self.until {
            Until::Now | Until::Outstanding(_) => true,
            Until::Timer(_) => false,
        }
    }

    /// Ends a wait for the timer.
    pub(super) unsafe fn cancel(m: *mut ModuleChannel) {
        // SAFETY: the caller's channel is live.
        unsafe {
            if let Until::Timer(timer) = (*m).nomem_wait.until {
                current().cancel_timer(timer);
                (*m).nomem_wait.until = Until::Now;
            }
        }
    }
}

/// [`IoChannel::retry`] of a module's channel: `io` was refused, and is not outstanding any more.
pub(super) unsafe extern "C" fn retry(ch: *mut IoChannel, io: *mut BdevIo) {
    let m = ch.cast::<ModuleChannel>();
    // SAFETY: `complete` calls with the channel the gate forwarded `io` on.
    unsafe {
        if (*io).flags.contains(IoFlags::NO_RETRY) || (*io).op == Op::RESET {
            return submit::finish(io, IoStatus::NOMEM);
        }
        if (*m).phase == Phase::Orphaned {
            return submit::finish(io, IoStatus::NO_DEVICE);
        }
        if (*m).is_resetting {
            return submit::finish(io, IoStatus::ABORTED);
        }
        // The state stays IDLE while it waits, so that a second completion by the module is noticed.
        if (*m).nomem_wait.trying == io {
            (*m).nomem_wait.was_refused = true;
            (*m).nomem.push_front(io);
        } else {
            (*m).nomem.push_back(io);
        }
        (*m).queue_changed();
        wait(m);
        submit::update_ops(m);
        if !(*m).is_closed() {
            service::kick(m);
        }
    }
}

/// Queues an I/O that comes while others wait.
///
/// # Safety
/// `m` is a live channel of the calling reactor; `io` is owned by the gate.
pub(super) unsafe fn wait_behind(m: *mut ModuleChannel, io: *mut BdevIo) {
    // SAFETY: as promised by the caller.
    unsafe {
        (*io).state = IoState::SUBMITTED;
        (*m).nomem.push_back(io);
        (*m).queue_changed();
    }
}

/// Decides what to wait for after a refusal.
unsafe fn wait(m: *mut ModuleChannel) {
    // SAFETY: the caller's channel is live.
    unsafe {
        let outstanding = (*m).io.outstanding;
        if outstanding > 0 {
            Waiting::cancel(m);
            (*m).nomem_wait.until = Until::Outstanding(threshold(outstanding));
            return;
        }
        if let Until::Timer(_) = (*m).nomem_wait.until {
            return;
        }
        let wait = &mut (*m).nomem_wait;
        let now = now_ns();
        if wait.stuck_since_ns == 0 {
            wait.stuck_since_ns = now;
        }
        let deadline = now + wait.backoff_ns;
        wait.backoff_ns = (wait.backoff_ns * 2).min(BACKOFF_MAX_NS);
        // Without a timer the poller tries on every turn; it is bounded by GIVE_UP_NS all the same.
        wait.until =
            current().set_timer_raw(deadline, timer_fired, m.cast()).map_or(Until::Now, Until::Timer);
    }
}

unsafe extern "C" fn timer_fired(m: *mut c_void) {
    let m = m.cast::<ModuleChannel>();
    // SAFETY: the timer is cancelled before the channel is freed.
    unsafe {
        (*m).nomem_wait.until = Until::Now;
        if !(*m).is_closed() {
            service::run(m);
        }
    }
}

/// Tries refused I/O again, oldest first, until one is refused again.
///
/// # Safety
/// `m` is a live channel of the calling reactor.
pub(super) unsafe fn retry_refused(m: *mut ModuleChannel) {
    // SAFETY: a channel is freed in a turn of its own only; no reference is held across a call out.
    unsafe {
        if (*m).nomem.is_empty() || !(*m).nomem_wait.is_over((*m).io.outstanding) {
            return;
        }
        if !(*m).nomem_wait.trying.is_null() {
            return; // A completion inside a retry asked for service.
        }
        Waiting::cancel(m);
        (*m).nomem_wait.until = Until::Now;
        give_up_if_stuck(m);
        for _ in 0..(*m).nomem.len() {
            if (*m).is_closed() {
                break;
            }
            let Some(io) = (*m).nomem.pop_front() else { break };
            (*m).nomem_wait.trying = io;
            (*m).nomem_wait.was_refused = false;
            submit::forward(m, io);
            (*m).nomem_wait.trying = std::ptr::null_mut();
            if (*m).nomem_wait.was_refused {
                break;
            }
            (*m).nomem_wait.stuck_since_ns = 0;
            (*m).nomem_wait.backoff_ns = BACKOFF_MIN_NS;
        }
        (*m).queue_changed();
    }
}

/// Answers the oldest I/O if the module has accepted nothing for too long.
unsafe fn give_up_if_stuck(m: *mut ModuleChannel) {
    // SAFETY: the caller's channel is live.
    unsafe {
        let since = (*m).nomem_wait.stuck_since_ns;
        let now = now_ns();
        if since == 0 || now < since + GIVE_UP_NS {
            return;
        }
        if (*m).gate.may_warn() {
            warn!(
                "module accepts no I/O bdev={} reactor={} waiting={}",
                (*m).gate.name(),
                (*m).reactor,
                (*m).nomem.len()
            );
        }
        if let Some(io) = (*m).nomem.pop_front() {
            submit::finish(io, IoStatus::NOMEM);
        }
    }
}

/// How far a module's load must fall until it is asked again.
fn threshold(outstanding: u32) -> u32 {
    (outstanding / 2).max(outstanding.saturating_sub(RETRY_ROOM))
}

/// A busy module is asked again when it has completed so many.
const RETRY_ROOM: u32 = 8;
/// First and longest delay of a retry that no completion can trigger.
const BACKOFF_MIN_NS: u64 = 100_000;
const BACKOFF_MAX_NS: u64 = 10_000_000;
/// How long a module may accept nothing, having nothing, until its consumers hear of it.
const GIVE_UP_NS: u64 = 30_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_asked_again_when_half_or_eight_are_done() {
        assert_eq!(threshold(1), 0);
        assert_eq!(threshold(8), 4);
        assert_eq!(threshold(16), 8);
        assert_eq!(threshold(128), 120);
    }
}
