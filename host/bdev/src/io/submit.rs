//! Submission: the fast path, the guarded path, and the two tables of operations they are in.
//!
//! A consumer's channel has [`OPEN_OPS`] while nothing stands between it and the module, and
//! [`GUARDED_OPS`] while something does: a phase, a reset, a rate limit, or I/O that waits. The fast path
//! therefore asks none of them. Counting happens where a request is passed on, once per request.
//!
//! # Safety
//! Every private unsafe function takes a live channel of the calling reactor, and I/Os whose consumer has given
//! them to the gate.
// UNSAFETY: forwards I/Os between channels through raw pointers.

use std::sync::Arc;

use tenon_abi::{BdevIo, IoChannel, IoFlags, IoOpsV1, IoState, IoStatus, Op};

use super::channel::{Consumer, FastLimits, ModuleChannel, passed_flags};
use super::check::{self, Verdict, check, is_plain, is_quick};
use super::freeze::Phase;
use super::{abort, backpressure, compare_write, qos, reset, service, split, statistics};

/// Nothing stands between the consumer and the module.
pub(super) static OPEN_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit: submit_open,
    submit_batch: Some(batch_open),
    abort: Some(abort::abort),
    release: Some(abort::release),
};

/// Something does.
pub(super) static GUARDED_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit: submit_guarded,
    submit_batch: Some(batch_guarded),
    abort: Some(abort::abort),
    release: Some(abort::release),
};

unsafe extern "C" fn submit_open(ch: *mut IoChannel, io: *mut BdevIo) {
    let c = ch.cast::<Consumer>();
    // SAFETY: consumers call with their live channel and an I/O they own; a consumer's `module` is live.
    unsafe {
        if !is_quick(c, io) {
            return submit_plain(c, io);
        }
        pass(c, io);
    }
}

/// What the first test of the fast path does not pass. Of the C convention as [`submit_checked`].
#[inline(never)]
unsafe extern "C" fn submit_plain(c: *mut Consumer, io: *mut BdevIo) {
    // SAFETY: as in `submit_open`.
    unsafe {
        if !is_plain(c, io) {
            return submit_checked(c, io);
        }
        pass(c, io);
    }
}

/// Counts a request of the fast path and gives it to the module.
#[inline(always)]
unsafe fn pass(c: *mut Consumer, io: *mut BdevIo) {
    // SAFETY: as in `submit_open`.
    unsafe {
        let m = (*c).module;
        if (*m).recent.count((*io).op, (*io).num_blocks) || is_long_ago(m) {
            return submit_timed(m, io);
        }
        forward(m, io);
    }
}

/// Passes on an I/O of the fast path that is to be timed. Of the C convention as [`submit_checked`].
#[cold]
#[inline(never)]
unsafe extern "C" fn submit_timed(m: *mut ModuleChannel, io: *mut BdevIo) {
    // SAFETY: the caller's channel is live and the I/O its own.
    unsafe {
        statistics::start_timing(m, io);
        forward(m, io);
    }
}

/// What the fast path does not pass at once. Of the C convention, which says that it does not unwind: so the
/// fast path can end with it and has no need of a stack frame.
#[cold]
#[inline(never)]
unsafe extern "C" fn submit_checked(c: *mut Consumer, io: *mut BdevIo) {
    // SAFETY: as in `submit_open`.
    unsafe {
        match check(c, io) {
            Verdict::Fail(status) => finish(io, status),
            Verdict::Reset => reset::begin(c, io),
            verdict @ (Verdict::Plain | Verdict::Split(_) | Verdict::Exclusive) => {
                time_if_due((*c).module, io);
                dispatch(c, io, verdict);
            }
        }
    }
}

unsafe extern "C" fn submit_guarded(ch: *mut IoChannel, io: *mut BdevIo) {
    let c = ch.cast::<Consumer>();
    // SAFETY: as in `submit_open`.
    unsafe {
        let m = (*c).module;
        if (*m).phase == Phase::Orphaned {
            return finish(io, IoStatus::NO_DEVICE);
        }
        let verdict = match check(c, io) {
            Verdict::Fail(status) => return finish(io, status),
            Verdict::Reset => return reset::begin(c, io),
            verdict @ (Verdict::Plain | Verdict::Split(_) | Verdict::Exclusive) => verdict,
        };
        time_if_due(m, io);
        if (*m).is_closed() || !(*m).held.is_empty() {
            (*io).state = IoState::SUBMITTED;
            (*m).held.push_back(io);
            (*m).queue_changed();
            if !(*m).is_closed() {
                service::kick(m);
            }
            return;
        }
        qos::admit(c, io, verdict);
    }
}

/// Sends a request that waited: what was right when it came may not be any more.
///
/// # Safety
/// `io` was held by the gate and `io.ch` is the live consumer's channel it came on.
pub(super) unsafe fn resume(io: *mut BdevIo) {
    // SAFETY: as promised; the channel of an I/O in the gate cannot have been put.
    unsafe {
        let c = (*io).ch.cast::<Consumer>();
        match check(c, io) {
            Verdict::Fail(status) => finish(io, status),
            Verdict::Reset => reset::begin(c, io),
            verdict @ (Verdict::Plain | Verdict::Split(_) | Verdict::Exclusive) => {
                qos::admit(c, io, verdict);
            }
        }
    }
}

/// Counts a request and passes it on, whole or as children.
///
/// # Safety
/// `c` is live, `io` is owned by the gate, `verdict` was just given and is not a refusal.
pub(super) unsafe fn dispatch(c: *mut Consumer, io: *mut BdevIo, verdict: Verdict) {
    // SAFETY: as promised by the caller.
    unsafe {
        let m = (*c).module;
        (*m).counters.count((*io).op, (*io).num_blocks);
        match verdict {
            Verdict::Plain => feed(m, io),
            Verdict::Split(mode) => split::begin(m, io, mode),
            Verdict::Exclusive => compare_write::begin(m, io),
            Verdict::Reset => reset::begin(c, io),
            Verdict::Fail(status) => finish(io, status),
        }
    }
}

/// Gives an I/O to the module, behind those it refused.
///
/// # Safety
/// `m` is a live channel that is not closed; `io` is owned by the gate.
pub(super) unsafe fn feed(m: *mut ModuleChannel, io: *mut BdevIo) {
    // SAFETY: as promised by the caller.
    unsafe { if (*m).nomem.is_empty() { forward(m, io) } else { backpressure::wait_behind(m, io) } }
}

/// Counts one request of the fast path and times it if it is due.
#[inline(always)]
unsafe fn account(m: *mut ModuleChannel, io: *mut BdevIo) {
    // SAFETY: the caller's channel and I/O are live.
    unsafe {
        if (*m).recent.count((*io).op, (*io).num_blocks) || is_long_ago(m) {
            statistics::start_timing(m, io);
        }
    }
}

/// Starts to time `io`, which is not of the fast path, if it is the one in so many or the last timed one is long ago.
unsafe fn time_if_due(m: *mut ModuleChannel, io: *mut BdevIo) {
    // SAFETY: as in `account`.
    unsafe {
        (*m).sample_left -= 1;
        if (*m).sample_left == 0 || is_long_ago(m) {
            statistics::start_timing(m, io);
        }
    }
}

#[inline(always)]
unsafe fn is_long_ago(m: *mut ModuleChannel) -> bool {
    // SAFETY: the caller's channel is live.
    unsafe { (*m).local.now_ns() >= (*m).next_timed_ns }
}

/// # Safety
/// `m` is live, and `io` is owned by the gate and complete.
#[inline(always)]
pub(super) unsafe fn forward(m: *mut ModuleChannel, io: *mut BdevIo) {
    // SAFETY: the module's table is valid for the life of the process.
    unsafe {
        (*m).io.outstanding += 1;
        (*io).state = IoState::SUBMITTED;
        (*io).ch = m.cast();
        ((*(*m).io.ops).submit)(m.cast(), io);
    }
}

/// Answers a request that is not in the module.
///
/// # Safety
/// `io` is owned by the gate: neither idle with its consumer nor in the module.
pub(super) unsafe fn finish(io: *mut BdevIo, status: IoStatus) {
    // SAFETY: as promised; `done` is the consumer's, or the gate's own in front of it.
    unsafe {
        (*io).status = status;
        (*io).state = IoState::IDLE;
        if let Some(done) = (*io).done {
            done(io, (*io).done_arg);
        }
    }
}

/// Forwards runs of plain requests in one call each.
unsafe extern "C" fn batch_open(ch: *mut IoChannel, ios: *const *mut BdevIo, count: u32) {
    let c = ch.cast::<Consumer>();
    // SAFETY: consumers call with their live channel and `count` I/Os they own. The channel stays while
    // the call lasts: its consumer has given I/Os that it must wait for.
    unsafe {
        let m = (*c).module;
        let Some(batch) = (*m).batch else { return each(ch, ios, 0, count) };
        let mut first = 0;
        for next in 0..count {
            let io = *ios.add(next as usize);
            if is_quick(c, io) || is_plain(c, io) {
                account(m, io);
                (*io).state = IoState::SUBMITTED;
                (*io).ch = m.cast();
                continue;
            }
            pass_run(m, batch, ios.add(first as usize), next - first);
            tenon_abi::submit(ch, io);
            first = next + 1;
            if (*ch).ops != &raw const OPEN_OPS {
                return each(ch, ios, first, count);
            }
        }
        pass_run(m, batch, ios.add(first as usize), count - first);
    }
}

/// Gives the module `count` requests that were found plain and made ready.
unsafe fn pass_run(
    m: *mut ModuleChannel,
    batch: unsafe extern "C" fn(*mut IoChannel, *const *mut BdevIo, u32),
    ios: *const *mut BdevIo,
    count: u32,
) {
    if count > 0 {
        // SAFETY: the caller owns them until now.
        unsafe {
            (*m).io.outstanding += count;
            batch(m.cast(), ios, count);
        }
    }
}

unsafe extern "C" fn batch_guarded(ch: *mut IoChannel, ios: *const *mut BdevIo, count: u32) {
    // SAFETY: as in `batch_open`.
    unsafe { each(ch, ios, 0, count) }
}

/// One by one, by whatever table the channel has by then.
unsafe fn each(ch: *mut IoChannel, ios: *const *mut BdevIo, first: u32, count: u32) {
    // SAFETY: as in `batch_open`.
    unsafe {
        for index in first..count {
            tenon_abi::submit(ch, *ios.add(index as usize));
        }
    }
}

/// Gives every consumer of `m` the table it needs now.
///
/// # Safety
/// `m` is a live channel of the calling reactor.
pub(super) unsafe fn update_ops(m: *mut ModuleChannel) {
    // SAFETY: consumers live as long as they are in the list.
    unsafe {
        let ops = if (*m).is_open() { &raw const OPEN_OPS } else { &raw const GUARDED_OPS };
        for &c in &(*m).consumers {
            (*c).io.ops = ops;
        }
    }
}

/// Reads again what the control reactor may have changed: capacity, permission, rate limits, recording.
///
/// # Safety
/// As for [`update_ops`].
pub(super) unsafe fn refresh(m: *mut ModuleChannel) {
    // SAFETY: as in `update_ops`.
    unsafe {
        for &c in &(*m).consumers {
            refresh_consumer(c);
        }
        let gate = Arc::clone(&(*m).gate);
        (*m).budget = gate.qos.lock().budget();
        statistics::refresh_recording(m);
        update_ops(m);
        if !(*m).is_closed() {
            service::run(m);
        }
    }
}

/// # Safety
/// `c` is live.
pub(super) unsafe fn refresh_consumer(c: *mut Consumer) {
    // SAFETY: as promised; the references end before anything else is called.
    unsafe {
        let gate = &(*(*c).module).gate;
        let mut allowed = gate.io_types();
        if !(*c).is_writer() || gate.is_read_only() {
            allowed &= !CHANGES;
        }
        (*c).allowed = allowed;
        (*c).num_blocks = gate.num_blocks();
        for op in [Op::READ, Op::WRITE] {
            let limits = fast_limits(&*c, op);
            let is_whole = limits.boundary == u64::MAX;
            (*c).quick_blocks[op.0 as usize] = if is_whole { limits.max_blocks } else { 0 };
            (*c).fast[op.0 as usize] = limits;
        }
    }
}

fn fast_limits(c: &Consumer, op: Op) -> FastLimits {
    // SAFETY: a consumer's module channel outlives it.
    let gate = unsafe { &(*c.module).gate };
    let limits = &gate.spec.limits;
    let boundary = check::boundary(gate);
    let is_slow = c.allowed & op.bit() == 0
        || boundary.is_some_and(|boundary| !boundary.is_power_of_two())
        || op == Op::WRITE && check::write_unit(gate) > 0;
    let by_transfer = if limits.max_transfer_blocks > 0 { limits.max_transfer_blocks } else { u32::MAX };
    let by_segment = match limits.max_segment_bytes {
        0 => u64::MAX,
        bytes => u64::from(bytes) / c.stride,
    };
    let lent = if op == Op::READ { 0 } else { IoFlags::LEND.0 };
    FastLimits {
        max_blocks: if is_slow { 0 } else { u64::from(by_transfer).min(by_segment) },
        boundary_mask: boundary.map_or(0, |boundary| boundary - 1),
        boundary: boundary.unwrap_or(u64::MAX),
        refused_flags: !passed_flags(gate) | lent,
    }
}

/// Operations that need a writer. NVMe commands may be any, so they do.
const CHANGES: u64 = Op::WRITE.bit()
    | Op::UNMAP.bit()
    | Op::WRITE_ZEROES.bit()
    | Op::COMPARE_AND_WRITE.bit()
    | Op::COPY.bit()
    | Op::WRITE_UNCORRECTABLE.bit()
    | Op::ZONE_MANAGEMENT.bit()
    | Op::ZONE_APPEND.bit()
    | Op::NVME_ADMIN.bit()
    | Op::NVME_IO.bit();
