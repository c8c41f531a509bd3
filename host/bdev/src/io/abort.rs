//! Abort of one I/O and the return of lent memory: the two calls that no phase holds up.
//!
//! A victim that waits in the gate is answered ABORTED at once, inside the call. A victim that was cut is
//! not cut further and its children are aborted; any other may be in the module. A RESET cannot be
//! aborted. The victim is only compared, never followed, until it is found.
//!
//! # Safety
//! Every unsafe function takes a live channel of the calling reactor; a victim may be any pointer.
// UNSAFETY: follows channels and I/Os through raw pointers.

use tenon_abi::{BdevIo, IoChannel, IoFlags, IoStatus, errno};

use super::channel::{Consumer, ModuleChannel};
use super::{compare_write, split, submit};

/// [`tenon_abi::IoOpsV1::abort`] of a consumer's channel: 0 if the victim was found, `-ENOENT` if not,
/// `-ENOTSUP` if only the module could know and it cannot abort.
pub(super) unsafe extern "C" fn abort(ch: *mut IoChannel, victim: *mut BdevIo) -> i32 {
    // SAFETY: consumers call with their live channel.
    unsafe {
        let m = (*ch.cast::<Consumer>()).module;
        if take_waiting(m, victim) {
            (*m).queue_changed();
            submit::update_ops(m);
            submit::finish(victim, IoStatus::ABORTED);
            return 0;
        }
        if split::abort(m, victim) || compare_write::abort(m, victim) {
            return 0;
        }
        in_module(m, victim)
    }
}

/// Takes `victim` out of the queue it waits in, if it does.
pub(super) unsafe fn take_waiting(m: *mut ModuleChannel, victim: *mut BdevIo) -> bool {
    // SAFETY: the caller's channel is live; one queue at a time is borrowed.
    unsafe {
        (*m).held.remove(victim)
            || (*m).nomem.remove(victim)
            || (*m).limited[0].remove(victim)
            || (*m).limited[1].remove(victim)
            || (*m).compare_writes.waiting.remove(victim)
    }
}

/// Asks the module.
pub(super) unsafe fn in_module(m: *mut ModuleChannel, victim: *mut BdevIo) -> i32 {
    // SAFETY: the module's callback only compares `victim` until it has found it.
    unsafe { (*m).abort.map_or(errno::ENOTSUP, |abort| abort(m.cast(), victim)) }
}

/// [`tenon_abi::IoOpsV1::release`] of a consumer's channel. The module gives its memory back, the gate
/// does the accounting; a second release of one READ is counted as a fault and does nothing else.
pub(super) unsafe extern "C" fn release(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: consumers call with their live channel and an I/O of theirs that was completed with LENT.
    unsafe {
        let m = (*ch.cast::<Consumer>()).module;
        if !(*io).flags.contains(IoFlags::LENT) || (*m).io.outstanding == 0 {
            (*m).io.faults += 1;
            return;
        }
        if let Some(release) = (*m).release {
            release(m.cast(), io);
        }
        (*io).flags.0 &= !IoFlags::LENT.0;
        (*m).io.outstanding -= 1;
    }
}
