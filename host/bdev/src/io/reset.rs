//! Resets of a device: one at a time, for all its channels, with the module's own result.
//!
//! ```text
//!  Idle ─Asked─► Freezing ─Frozen─► Draining ─Quiet/Late─► Executing ─Answered─► Thawing ─Thawed─► Idle
//! ```
//!
//! A RESET submitted anywhere goes to the control reactor. There it freezes every channel, has what waits in
//! the gate answered ABORTED, and waits for the module's I/O until the drain timeout; then the
//! module gets the RESET on the channel it came from, the channels thaw, and the RESET is answered with what the module
//! said. A RESET that comes meanwhile waits and is executed for itself. A module without RESET
//! is reset by that drain alone: it succeeds only if everything drained. A device that is absent or
//! orphaned by then answers NO_DEVICE.
//!
//! # Safety
//! Unsafe functions run on the reactor the RESET belongs to, while the gate owns it.
// UNSAFETY: carries I/O pointers between reactors, and gives them back to the one they belong to.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::{info, warn};
use tenon_abi::{BdevIo, IoState, IoStatus, Op, errno};
use tenon_reactor::{ReactorRef, current, now_ns};

use super::broadcast::{assert_control, at, deliver};
use super::channel::{Consumer, ModuleChannel};
use super::drain::Drained;
use super::freeze::Phase;
use super::gate::Gate;
use super::submit;

/// Resets of one device.
#[derive(Debug, Default)]
pub(super) struct Resets {
    state: ResetState,
    /// The one being executed.
    running: Option<Request>,
    waiting: VecDeque<Request>,
    /// Tells resets apart for the warning about a slow one.
    sequence: u64,
}

/// A RESET and the reactor it belongs to.
#[derive(Clone, Debug)]
struct Request {
    io: IoPointer,
    reactor: ReactorRef,
}

/// An I/O on its way between reactors.
#[derive(Clone, Copy, Debug)]
struct IoPointer(*mut BdevIo);

// SAFETY: only the reactor the I/O belongs to follows the pointer.
unsafe impl Send for IoPointer {}

/// Where a device's reset is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ResetState {
    #[default]
    Idle,
    Freezing,
    Draining,
    Executing,
    Thawing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResetEvent {
    /// A RESET is there to be executed.
    Asked,
    /// Every channel is frozen.
    Frozen,
    /// The module has no I/O, or the drain timeout passed.
    Drained,
    /// The module answered.
    Answered,
    /// Every channel is open again.
    Thawed,
}

impl ResetState {
    /// The state after `event`, or `None` where it cannot happen.
    fn next(self, event: ResetEvent) -> Option<ResetState> {
        use {ResetEvent::*, ResetState::*};
        match (self, event) {
            (Idle, Asked) => Some(Freezing),
            (Freezing, Frozen) => Some(Draining),
            (Draining, Drained) => Some(Executing),
            (Executing, Answered) => Some(Thawing),
            (Thawing, Thawed) => Some(Idle),
            (Idle, Frozen | Drained | Answered | Thawed)
            | (Freezing, Asked | Drained | Answered | Thawed)
            | (Draining, Asked | Frozen | Answered | Thawed)
            | (Executing, Asked | Frozen | Drained | Thawed)
            | (Thawing, Asked | Frozen | Drained | Answered) => None,
        }
    }
}

impl Gate {
    /// How long a reset waits for I/O in the module before it resets it all the same.
    pub fn set_reset_drain_timeout(&self, timeout: Duration) {
        let ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        self.reset_drain_timeout_ns.store(ns, Ordering::Relaxed);
    }

    /// Whether a reset is under way.
    #[must_use]
    pub fn is_resetting(&self) -> bool {
        self.resets.lock().state != ResetState::Idle
    }

    #[track_caller]
    fn step(&self, event: ResetEvent) {
        assert_control();
        let mut resets = self.resets.lock();
        let state = resets.state;
        resets.state =
            state.next(event).unwrap_or_else(|| panic!("reset of {}: {event:?} in {state:?}", self.name()));
    }
}

/// Takes a RESET from a consumer.
///
/// # Safety
/// `c` is a live channel of the calling reactor; `io` is owned by the gate.
pub(super) unsafe fn begin(c: *mut Consumer, io: *mut BdevIo) {
    // SAFETY: as promised by the caller.
    let gate = unsafe {
        let m = (*c).module;
        if (*m).phase == Phase::Orphaned {
            return submit::finish(io, IoStatus::NO_DEVICE);
        }
        (*io).state = IoState::SUBMITTED;
        (*m).counters.count(Op::RESET, 0);
        Arc::clone(&(*m).gate)
    };
    let request = Request { io: IoPointer(io), reactor: current().reactor() };
    let control = gate.directory().control().clone();
    deliver(&control, move || ask(&gate, request));
}

fn ask(gate: &Arc<Gate>, request: Request) {
    let refused = {
        let mut resets = gate.resets.lock();
        if resets.waiting.len() < MAX_WAITING {
            resets.waiting.push_back(request);
            None
        } else {
            Some(request)
        }
    };
    if let Some(request) = refused {
        return answer(request, IoStatus(errno::EBUSY));
    }
    start_next(gate);
}

/// Starts the oldest waiting reset, if none is running.
fn start_next(gate: &Arc<Gate>) {
    let sequence = {
        let mut resets = gate.resets.lock();
        if resets.state != ResetState::Idle {
            return;
        }
        let Some(request) = resets.waiting.pop_front() else { return };
        resets.running = Some(request);
        resets.sequence += 1;
        resets.sequence
    };
    gate.step(ResetEvent::Asked);
    info!("bdev reset started bdev={}", gate.name());
    gate.publish(|published| published.is_resetting = true);
    let timeout_ns = gate.reset_drain_timeout_ns.load(Ordering::Relaxed);
    let deadline_ns = now_ns().saturating_add(timeout_ns);
    let frozen = Arc::clone(gate);
    gate.apply_everywhere(move |_outstanding| {
        frozen.step(ResetEvent::Frozen);
        let quiet = Arc::clone(&frozen);
        frozen.wait_quiet(deadline_ns, move |left| drained(&quiet, left, sequence));
    });
}

/// The module is quiet, or was given time enough.
fn drained(gate: &Arc<Gate>, left: Drained, sequence: u64) {
    gate.step(ResetEvent::Drained);
    if left.outstanding > 0 {
        warn!("reset goes on with I/O in the module bdev={} outstanding={}", gate.name(), left.outstanding);
    }
    match gate.phase() {
        Phase::Orphaned | Phase::Absent => return answered(gate, IoStatus::NO_DEVICE),
        Phase::Running | Phase::Frozen => {}
    }
    if !gate.declares(Op::RESET) {
        let is_quiet = left.outstanding == 0;
        return answered(gate, if is_quiet { IoStatus::SUCCESS } else { IoStatus::TIMED_OUT });
    }
    let Some(request) = gate.resets.lock().running.clone() else { return };
    let slow = Arc::downgrade(gate);
    at(now_ns() + SLOW_MODULE_NS, move || {
        if let Some(gate) = slow.upgrade() {
            warn_if_still_running(&gate, sequence);
        }
    });
    let (gate, reactor) = (Arc::clone(gate), request.reactor.clone());
    deliver(&reactor, move || {
        let IoPointer(io) = { request }.io;
        // SAFETY: the I/O belongs to this reactor, and its consumer keeps its channel until it is answered.
        unsafe { execute(gate, io) };
    });
}

fn warn_if_still_running(gate: &Gate, sequence: u64) {
    let resets = gate.resets.lock();
    if resets.sequence == sequence && resets.state == ResetState::Executing {
        warn!(
            "module has not answered a reset bdev={} after_s={}",
            gate.name(),
            SLOW_MODULE_NS / 1_000_000_000
        );
    }
}

/// Gives the RESET to the module, on its own reactor.
unsafe fn execute(gate: Arc<Gate>, io: *mut BdevIo) {
    // SAFETY: the caller's I/O is owned by the gate, and `ch` is the live channel it was submitted on.
    unsafe {
        let m: *mut ModuleChannel = (*(*io).ch.cast::<Consumer>()).module;
        match (*m).phase {
            Phase::Orphaned | Phase::Absent => return report(&gate, IoStatus::NO_DEVICE),
            Phase::Running | Phase::Frozen => {}
        }
        let call = Box::new(Call { gate, done: (*io).done, done_arg: (*io).done_arg });
        (*io).done = Some(module_done);
        (*io).done_arg = Box::into_raw(call).cast();
        submit::forward(m, io);
    }
}

/// What stands in for the consumer while the module has the RESET.
struct Call {
    gate: Arc<Gate>,
    done: Option<unsafe extern "C" fn(*mut BdevIo, *mut c_void)>,
    done_arg: *mut c_void,
}

unsafe extern "C" fn module_done(io: *mut BdevIo, call: *mut c_void) {
    // SAFETY: `execute` made `call`, and a completion comes once.
    unsafe {
        let call = Box::from_raw(call.cast::<Call>());
        (*io).done = call.done;
        (*io).done_arg = call.done_arg;
        // Its state stays IDLE until the consumer has it, so that a second completion is noticed.
        report(&call.gate, (*io).status);
    }
}

fn report(gate: &Arc<Gate>, status: IoStatus) {
    let control = gate.directory().control().clone();
    let gate = Arc::clone(gate);
    deliver(&control, move || answered(&gate, status));
}

/// The result is there: thaw, then tell.
fn answered(gate: &Arc<Gate>, status: IoStatus) {
    gate.step(ResetEvent::Answered);
    gate.publish(|published| published.is_resetting = false);
    let thawed = Arc::clone(gate);
    gate.apply_everywhere(move |_outstanding| {
        thawed.step(ResetEvent::Thawed);
        let request = thawed.resets.lock().running.take();
        info!("bdev reset ended bdev={} status={}", thawed.name(), status.0);
        if let Some(request) = request {
            answer(request, status);
        }
        start_next(&thawed);
    });
}

fn answer(request: Request, status: IoStatus) {
    let reactor = request.reactor.clone();
    deliver(&reactor, move || {
        let IoPointer(io) = { request }.io;
        // SAFETY: the I/O belongs to this reactor and is owned by the gate until now.
        unsafe { submit::finish(io, status) };
    });
}

/// How long a reset waits for I/O in the module, unless told otherwise.
pub const DEFAULT_RESET_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Resets of one device that may wait; the next is answered `-EBUSY`.
const MAX_WAITING: usize = 1024;
/// After how long a module that has not answered is named.
const SLOW_MODULE_NS: u64 = 30_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_goes_through_every_state_and_no_other_way() {
        use {ResetEvent::*, ResetState::*};
        let events = [Asked, Frozen, Drained, Answered, Thawed];
        let states = [Idle, Freezing, Draining, Executing, Thawing];
        for (at, state) in states.into_iter().enumerate() {
            for event in events {
                let expected = (event == events[at]).then(|| states[(at + 1) % states.len()]);
                assert_eq!(state.next(event), expected, "{state:?} {event:?}");
            }
        }
    }
}
