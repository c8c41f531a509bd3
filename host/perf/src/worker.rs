//! One device on one reactor under load: the poller that submits, and the
//! completion that measures, checks and gives the slot back.
//!
//! A completion never submits. So a device that completes inside `submit` is
//! served by the loop of [`Worker::pump`], and its stack does not grow. A device
//! that completes later gets all that is free in one batch per turn, which lets
//! it enter the kernel or ring a doorbell once.
//!
//! # Safety
//! Unless a function says more: it runs on the worker's reactor, `worker` is
//! live and nobody else refers into it, and `slot` is one of its own that has
//! been taken and is not submitted.
// UNSAFETY: fills, submits and receives raw I/Os.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tenon_abi::{BdevIo, DescHandle, IoChannel, IoFlags, IoStatus};
use tenon_bdev::{Channel, channel_get};
use tenon_reactor::{Poll, PollerId, PollerKind, current, now_ns, precise_now_ns, ticks};

use crate::ledger::{Content, Ledger};
use crate::pattern::Frame;
use crate::report::Faults;
use crate::request::{Generator, Kind, Next, Part, Request};
use crate::session::{Command, Link, Outcome};
use crate::slots::{FreeSlots, Slot, Slots};
use crate::stage::{Pass, Passes, Stage, StageEvent};
use crate::tally::Tally;
use crate::workload::{End, MAX_BATCH, Timing, Workload};

/// What a worker is told at its start.
pub(crate) struct Order {
    pub workload: Arc<Workload>,
    pub desc: DescHandle,
    pub link: Arc<Link>,
    pub part: Part,
    /// Workers of the same device, this one included.
    pub workers: u64,
    pub seed: u64,
    pub blocks_per_chunk: u64,
    pub block_size: u32,
    pub ledger: Option<Arc<Ledger>>,
    /// Blocks read as zeroes after UNMAP.
    pub unmap_reads_zeroes: bool,
    pub passes: Passes,
}

/// The worker. Reached through a raw pointer only, since completions come while it submits.
pub(crate) struct Worker {
    channel: *mut IoChannel,
    free: FreeSlots,
    stage: Stage,
    generator: Generator,
    tallies: [Tally; Kind::COUNT],
    /// Every so many I/Os are timed; 0: none.
    timed_every: u32,
    /// I/Os until the next one that is timed.
    to_timed: u32,
    /// When the last timed I/O completed.
    last_ticks: u64,
    /// The device completed the last I/O inside `submit`.
    completes_inside: bool,
    block_bytes: usize,
    blocks_per_chunk: u64,
    lends: bool,
    /// Data is written and checked with care.
    care: Option<Care>,
    depth: u32,
    batch: Option<u32>,
    per_turn: u32,
    pace: Option<Pace>,
    /// It could not submit although a slot was free, and waits for a completion.
    is_blocked: bool,
    faults: Faults,
    passes: Passes,
    deadline_ns: u64,
    load: LoadTimes,
    /// I/Os of the load, by kind, once it is over.
    measured: Option<[Tally; Kind::COUNT]>,
    published: u64,
    poller: Option<PollerId>,
    /// It has reported and stays for what is still in flight.
    is_abandoned: bool,
    order: Order,
    slots: Option<Slots>,
    /// Keeps `channel`.
    open: Option<Channel>,
}

/// What verification needs.
struct Care {
    ledger: Arc<Ledger>,
    frame: Frame,
    unmap_reads_zeroes: bool,
}

/// A limit of I/Os per second.
struct Pace {
    per_second: f64,
    since_ns: u64,
    sent: u64,
}

/// When the load ran.
#[derive(Clone, Copy, Default)]
struct LoadTimes {
    begin_ns: u64,
    end_ns: u64,
}

/// Owns a worker on behalf of its poller.
struct Owned(*mut Worker);

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `launch` and owned by the poller alone.
        unsafe {
            if (*self.0).stage == Stage::Finished {
                drop(Box::from_raw(self.0));
            } else if !(*self.0).is_abandoned {
                // The reactor ends under the load: the device may still complete what it has.
                log::error!("load abandoned with i/o in flight bdev={}", (*self.0).order.link.bdev());
            }
        }
    }
}

/// Starts a worker on the calling reactor; it reports through its link.
pub(crate) fn launch(order: Order) {
    let link = order.link.clone();
    if let Err(reason) = try_launch(order) {
        link.finish(Outcome::failed(reason));
    }
}

fn try_launch(order: Order) -> Result<(), String> {
    let open = channel_get(order.desc).map_err(|error| error.to_string())?;
    let (io_ctx_size, depth) = (open.io_ctx_size(), order.workload.queue_depth);
    let worker = Box::into_raw(Box::new(Worker::new(order, open)));
    // SAFETY: `worker` is live and not shared yet; `owned` frees it on every failure.
    unsafe {
        let owned = Owned(worker);
        let block_bytes = (*worker).block_bytes as u64;
        let Some(slots) = Slots::new(worker, depth, io_ctx_size, block_bytes) else {
            (*worker).stage = Stage::Finished;
            return Err(format!("no memory for {depth} I/Os of {block_bytes} bytes"));
        };
        (*worker).free = FreeSlots::all(slots.first(), depth);
        (*worker).slots = Some(slots);
        (*worker).enter(now_ns());
        let local = current();
        let poll = move || {
            let owned = &owned;
            Worker::poll(owned.0)
        };
        match local.register_poller("perf", 0, PollerKind::Wakeable, poll) {
            Ok(poller) => {
                (*worker).poller = Some(poller);
                local.set_before_sleep(poller, move || Worker::may_sleep(worker));
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Worker {
    fn new(order: Order, open: Channel) -> Worker {
        let workload = order.workload.clone();
        let care = order.ledger.clone().map(|ledger| Care {
            frame: Frame { salt: ledger.salt(), block_size: order.block_size as usize },
            ledger,
            unmap_reads_zeroes: order.unmap_reads_zeroes,
        });
        let pace = workload.rate.map(|rate| Pace {
            per_second: rate as f64 / order.workers as f64,
            since_ns: now_ns(),
            sent: 0,
        });
        let block_bytes = workload.block_bytes as usize;
        Worker {
            channel: open.as_ptr(),
            free: FreeSlots::all(std::ptr::null_mut(), 0),
            stage: order.passes.first(),
            generator: Generator::new(&workload, order.part, order.workers, order.seed, order.ledger.clone()),
            tallies: Default::default(),
            timed_every: timed_every(workload.timing, true, block_bytes),
            to_timed: 1,
            last_ticks: 0,
            completes_inside: true,
            block_bytes,
            blocks_per_chunk: order.blocks_per_chunk,
            lends: workload.lend,
            care,
            depth: workload.queue_depth,
            batch: workload.batch,
            per_turn: (BYTES_PER_TURN / block_bytes).clamp(MIN_PER_TURN, MAX_PER_TURN) as u32,
            pace,
            is_blocked: false,
            faults: Faults::default(),
            passes: order.passes,
            deadline_ns: u64::MAX,
            load: LoadTimes::default(),
            measured: None,
            published: 0,
            poller: None,
            is_abandoned: false,
            order,
            slots: None,
            open: Some(open),
        }
    }

    /// One turn of the reactor.
    fn poll(worker: *mut Worker) -> Poll {
        // SAFETY: the poller owns the worker. References into it end before anything is submitted, except inside
        // `pump`, which takes none.
        unsafe {
            let now = now_ns();
            match (*worker).order.link.command() {
                Command::Run => {}
                Command::Stop | Command::Removed => (*worker).apply(StageEvent::Leave, now),
                Command::Abandon => {
                    (*worker).apply(StageEvent::Leave, now);
                    if (*worker).free.len() < (*worker).depth {
                        (*worker).abandon();
                        return Poll::Busy;
                    }
                }
            }
            let mut submitted = 0;
            if let Stage::Running(pass) = (*worker).stage {
                if pass == Pass::Load && now >= (*worker).deadline_ns {
                    (*worker).apply(StageEvent::Exhausted, now);
                } else {
                    submitted = Self::pump(worker, pass, now);
                }
            }
            let is_over = !matches!((*worker).stage, Stage::Running(_));
            if is_over && (*worker).free.len() == (*worker).depth {
                (*worker).apply(StageEvent::Drained, now);
            }
            let has_progress = (*worker).publish();
            if (*worker).stage == Stage::Finished {
                (*worker).finish();
            }
            if submitted > 0 || has_progress { Poll::Busy } else { Poll::Idle }
        }
    }

    fn may_sleep(worker: *mut Worker) -> bool {
        // SAFETY: the hook goes with the poller, which owns the worker.
        unsafe {
            match (*worker).stage {
                Stage::Running(_) => (*worker).free.len() == 0 || (*worker).is_blocked,
                Stage::Draining(_) | Stage::Leaving => (*worker).free.len() < (*worker).depth,
                Stage::Finished => true,
            }
        }
    }

    /// Submits what the workload wants next, up to the turn's share; gives how many.
    ///
    /// # Safety
    /// `worker` is live, and no reference into it exists.
    unsafe fn pump(worker: *mut Worker, pass: Pass, now: u64) -> u32 {
        // SAFETY: as promised; `channel` is open as long as the worker runs.
        unsafe {
            let quota = match (&mut (*worker).pace, pass) {
                (Some(pace), Pass::Load) => pace.quota(now, (*worker).per_turn),
                _ => (*worker).per_turn,
            };
            (*worker).is_blocked = false;
            let sent = match (*worker).batch {
                None if (*worker).completes_inside => Self::pump_one_by_one(worker, pass, quota),
                None => Self::pump_batch(worker, pass, quota.min(MAX_BATCH)),
                Some(batch) => {
                    let mut sent = 0;
                    while sent < quota {
                        let wanted = batch.min(quota - sent);
                        let count = Self::pump_batch(worker, pass, wanted);
                        sent += count;
                        if count < wanted {
                            break;
                        }
                    }
                    sent
                }
            };
            if let Some(pace) = &mut (*worker).pace {
                pace.sent += u64::from(sent);
            }
            sent
        }
    }

    #[inline(always)]
    unsafe fn pump_one_by_one(worker: *mut Worker, pass: Pass, quota: u32) -> u32 {
        // SAFETY: as for `pump`; a slot that is taken is ours until its I/O is submitted.
        unsafe {
            let channel = (*worker).channel;
            (*worker).last_ticks = if (*worker).timed_every != 0 { ticks() } else { 0 };
            for sent in 0..quota {
                let Some(slot) = (*worker).next_slot(pass) else { return sent };
                let free = (*worker).free.len();
                (*slot).start = (*worker).stamp();
                tenon_abi::submit(channel, (*slot).io);
                if (*worker).free.len() == free {
                    (*worker).follow(false);
                    return sent + 1;
                }
            }
            quota
        }
    }

    unsafe fn pump_batch(worker: *mut Worker, pass: Pass, quota: u32) -> u32 {
        // SAFETY: as for `pump`.
        if unsafe { (*worker).free.len() } == 0 {
            return 0;
        }
        let mut batch = [std::ptr::null_mut::<BdevIo>(); MAX_BATCH as usize];
        let mut count = 0;
        // SAFETY: as for `pump_one_by_one`.
        unsafe {
            let at = if (*worker).timed_every != 0 { ticks() } else { 0 };
            while count < quota {
                let Some(slot) = (*worker).next_slot(pass) else { break };
                (*slot).start = if (*worker).is_timed() { at } else { 0 };
                batch[count as usize] = (*slot).io;
                count += 1;
            }
            if count == 0 {
                return 0;
            }
            let (channel, free) = ((*worker).channel, (*worker).free.len());
            match (*(*channel).ops).submit_batch {
                Some(submit_batch) if count > 1 => submit_batch(channel, batch.as_ptr(), count),
                _ => batch[..count as usize].iter().for_each(|io| tenon_abi::submit(channel, *io)),
            }
            let completes_inside = (*worker).free.len() == free + count;
            if completes_inside != (*worker).completes_inside {
                (*worker).follow(completes_inside);
            }
            count
        }
    }

    /// The device has changed its manner.
    #[cold]
    fn follow(&mut self, completes_inside: bool) {
        self.completes_inside = completes_inside;
        self.timed_every = timed_every(self.order.workload.timing, completes_inside, self.block_bytes);
        self.to_timed = 1;
    }

    /// The next I/O, ready to be submitted, or none for now.
    #[inline(always)]
    unsafe fn next_slot(&mut self, pass: Pass) -> Option<*mut Slot> {
        if self.free.len() == 0 {
            return None;
        }
        let request = match self.generator.next(pass) {
            Next::Io(request) => request,
            Next::Wait => {
                self.is_blocked = true;
                return None;
            }
            Next::End => {
                self.apply(StageEvent::Exhausted, now_ns());
                return None;
            }
        };
        let slot = self.free.take();
        // SAFETY: a free slot is the worker's, and so is its I/O.
        unsafe {
            self.fill(slot, request);
            if self.care.is_some() {
                self.prepare(slot, request);
            }
        }
        Some(slot)
    }

    #[inline(always)]
    unsafe fn fill(&mut self, slot: *mut Slot, request: Request) {
        // SAFETY: as in `next_slot`.
        unsafe {
            (*slot).request = request;
            let io = (*slot).io;
            let (flags, iovcnt) = match request.kind {
                Kind::Read if self.lends => (IoFlags::LEND, 0),
                Kind::Read | Kind::Write => (IoFlags::NONE, 1),
                Kind::Unmap | Kind::Flush => (IoFlags::NONE, 0),
            };
            BdevIo::set_head(io, request.kind.op(), flags, iovcnt);
            (*io).offset_blocks = request.chunk * self.blocks_per_chunk;
            (*io).num_blocks = self.blocks_per_chunk;
            (*io).iovs = if iovcnt == 0 { std::ptr::null_mut() } else { &raw mut (*slot).iov };
            (*io).done = Some(done);
            (*io).done_arg = slot.cast::<c_void>();
            if request.kind == Kind::Flush {
                (*io).num_blocks = 0;
            }
        }
    }

    /// Makes the data of a verified I/O, and notes what is about to change.
    #[cold]
    unsafe fn prepare(&mut self, slot: *mut Slot, request: Request) {
        let Some(care) = &self.care else { return };
        // SAFETY: as in `next_slot`; the buffer is `block_bytes` long and nobody reads it now.
        let buffer =
            unsafe { std::slice::from_raw_parts_mut((*slot).iov.base.cast::<u8>(), self.block_bytes) };
        match request.kind {
            Kind::Read => care.frame.spoil(buffer),
            Kind::Write => {
                let sequence = care.ledger.begin_write(request.chunk);
                care.frame.fill(request.chunk * self.blocks_per_chunk, sequence, buffer);
            }
            Kind::Unmap => care.ledger.begin_unmap(request.chunk, care.unmap_reads_zeroes),
            Kind::Flush => {}
        }
        if self.timed_every != 0 {
            self.last_ticks = ticks();
        }
    }

    /// Ticks at which the I/O begins, or 0. While the device completes inside `submit`, the end of one I/O is the
    /// begin of the next: one reading of the counter per I/O.
    #[inline(always)]
    fn stamp(&mut self) -> u64 {
        if !self.is_timed() {
            0
        } else if self.timed_every == 1 {
            self.last_ticks
        } else {
            ticks()
        }
    }

    #[inline(always)]
    fn is_timed(&mut self) -> bool {
        match self.timed_every {
            0 => false,
            1 => true,
            every => {
                self.to_timed -= 1;
                if self.to_timed == 0 {
                    self.to_timed = every;
                    return true;
                }
                false
            }
        }
    }

    /// What a plain success does not need: errors, lent memory, verified data.
    #[cold]
    #[inline(never)]
    unsafe fn done_with_care(&mut self, slot: *mut Slot) {
        // SAFETY: the I/O of `slot` has completed, so both are the worker's again.
        unsafe {
            let (io, request) = ((*slot).io, (*slot).request);
            let is_lent = (*io).flags.contains(IoFlags::LENT);
            if !(*io).status.is_success() {
                self.failed(request, (*io).status);
            } else if let Some(care) = &self.care {
                match request.kind {
                    Kind::Read => {
                        let lba = request.chunk * self.blocks_per_chunk;
                        let expected = care.ledger.expected(request.chunk);
                        let (wrong, first) =
                            care.frame.check(lba, expected, payload(io, slot, self.block_bytes));
                        self.faults.verified(known_blocks(expected, self.blocks_per_chunk), wrong, first);
                    }
                    Kind::Write | Kind::Unmap => care.ledger.settle(request.chunk),
                    Kind::Flush => {}
                }
            }
            if is_lent {
                give_back(self.channel, io);
            }
            self.generator.done(request);
        }
    }

    #[cold]
    fn failed(&mut self, request: Request, status: IoStatus) {
        let is_gone = status == IoStatus::NO_DEVICE
            || status == IoStatus::ABORTED && self.order.link.command() == Command::Removed;
        if is_gone {
            self.faults.removed += 1;
        } else {
            self.faults.failed(request, request.chunk * self.blocks_per_chunk, status);
        }
        if is_gone || self.faults.errors >= MAX_ERRORS {
            self.apply(StageEvent::Leave, now_ns());
        }
    }

    fn apply(&mut self, event: StageEvent, now: u64) {
        let before = self.stage;
        self.stage = before.next(event, self.passes);
        if self.stage == before {
            return;
        }
        let was_load =
            matches!(before, Stage::Draining(Pass::Load) | Stage::Leaving) && self.load.begin_ns != 0;
        if was_load && self.measured.is_none() {
            self.load.end_ns = precise_now_ns();
            self.measured = Some(std::mem::take(&mut self.tallies));
        }
        if matches!(self.stage, Stage::Running(_)) {
            self.enter(now);
        }
    }

    /// A pass begins.
    fn enter(&mut self, now: u64) {
        let Stage::Running(pass) = self.stage else { return };
        self.generator.begin(pass);
        self.tallies = Default::default();
        if pass == Pass::Load {
            self.load.begin_ns = precise_now_ns();
            if let End::After(time) = self.order.workload.end {
                let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                self.deadline_ns = self.load.begin_ns.saturating_add(time_ns);
            }
            if let Some(pace) = &mut self.pace {
                (pace.since_ns, pace.sent) = (now, 0);
            }
        }
    }

    /// Shows how far the load is; true if something was done since the last time.
    fn publish(&mut self) -> bool {
        let ios = self.tallies.iter().map(|tally| tally.ios).sum();
        let has_progress = std::mem::replace(&mut self.published, ios) != ios;
        self.order.link.show(self.free.returned(), self.depth - self.free.len());
        if has_progress && matches!(self.stage, Stage::Running(Pass::Load) | Stage::Draining(Pass::Load)) {
            let bytes = (self.tallies[0].ios + self.tallies[1].ios) * self.block_bytes as u64;
            self.order.link.ios.store(ios, Ordering::Relaxed);
            self.order.link.bytes.store(bytes, Ordering::Relaxed);
        }
        has_progress
    }

    /// Reports although I/O is in flight. The worker, its memory and its channel stay for what may still complete.
    fn abandon(&mut self) {
        let Some(poller) = self.poller.take() else { return };
        self.is_abandoned = true;
        if self.load.begin_ns != 0 && self.measured.is_none() {
            self.load.end_ns = precise_now_ns();
            self.measured = Some(std::mem::take(&mut self.tallies));
        }
        let outstanding = self.depth - self.free.len();
        let outcome = Outcome { outstanding, ..self.outcome() };
        self.order.link.finish(outcome);
        current().unregister_poller(poller);
    }

    /// Gives everything back and reports; the poller goes, and with it the worker.
    fn finish(&mut self) {
        let Some(poller) = self.poller.take() else { return };
        self.slots = None;
        self.open = None;
        let outcome = self.outcome();
        self.order.link.finish(outcome);
        current().unregister_poller(poller);
    }

    fn outcome(&mut self) -> Outcome {
        Outcome {
            tallies: self.measured.take().unwrap_or_default(),
            faults: std::mem::take(&mut self.faults),
            begin_ns: self.load.begin_ns,
            end_ns: self.load.end_ns,
            failure: None,
            outstanding: 0,
        }
    }
}

/// Completion of every I/O of every worker.
///
/// # Safety
/// `io` is the I/O of the slot that `slot` points to, and has just completed on its worker's reactor.
unsafe extern "C" fn done(io: *mut BdevIo, slot: *mut c_void) {
    let slot = slot.cast::<Slot>();
    // SAFETY: as promised; a worker lives until all its I/Os have completed. The references made here end before
    // the function does, and nothing called in between submits.
    unsafe {
        let worker = (*slot).worker;
        let kind = (*slot).request.kind as usize;
        let tally = &mut (*worker).tallies[kind & (Kind::COUNT - 1)];
        if (*slot).start != 0 {
            let now = ticks();
            (*worker).last_ticks = now;
            tally.histogram.record(now.saturating_sub((*slot).start));
        }
        let is_plain = (*io).status.is_success() && (*worker).care.is_none();
        if is_plain {
            tally.ios += 1;
            if (*io).flags.contains(IoFlags::LENT) {
                give_back((*worker).channel, io);
            }
        } else {
            tally.ios += u64::from((*io).status.is_success());
            (*worker).done_with_care(slot);
        }
        (*worker).free.put(slot);
    }
}

/// Blocks of a chunk of which something was known.
fn known_blocks(expected: [Content; 2], blocks: u64) -> u64 {
    if expected.contains(&Content::Unknown) { 0 } else { blocks }
}

/// Returns lent memory.
///
/// # Safety
/// `io` completed with lent memory on `channel`.
#[inline(always)]
unsafe fn give_back(channel: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: as promised; a channel that lends takes back.
    unsafe {
        if let Some(release) = (*(*channel).ops).release {
            release(channel, io);
        }
    }
}

/// The data of a completed READ in one piece: its own buffer, or memory that was lent.
///
/// # Safety
/// `io` is the I/O of `slot` and completed with success; the result is not used after lent memory went back.
unsafe fn payload<'a>(io: *mut BdevIo, slot: *mut Slot, len: usize) -> &'a [u8] {
    // SAFETY: as promised; the pieces of a completed READ are readable, the buffer is `len` bytes long.
    unsafe {
        if (*io).iovcnt == 1 && (*(*io).iovs).len == len {
            return std::slice::from_raw_parts((*(*io).iovs).base.cast::<u8>(), len);
        }
        let buffer = (*slot).iov.base.cast::<u8>();
        let mut filled = 0;
        for piece in 0..(*io).iovcnt as usize {
            let piece = &*(*io).iovs.add(piece);
            let part = piece.len.min(len - filled);
            std::ptr::copy(piece.base.cast::<u8>(), buffer.add(filled), part);
            filled += part;
        }
        std::slice::from_raw_parts(buffer, len)
    }
}

impl Pace {
    /// I/Os that may be sent now. What could not be sent in time is not made up for later than by one turn's share.
    fn quota(&mut self, now: u64, per_turn: u32) -> u32 {
        let due = (now.saturating_sub(self.since_ns) as f64 * 1e-9 * self.per_second) as u64;
        let behind = due.saturating_sub(self.sent);
        if behind > u64::from(per_turn) {
            self.sent = due - u64::from(per_turn);
        }
        behind.min(u64::from(per_turn)) as u32
    }
}

/// Of how many I/Os one is timed; 0: none is.
fn timed_every(timing: Timing, completes_inside: bool, block_bytes: usize) -> u32 {
    let is_short = completes_inside && block_bytes < LONG_IO_BYTES;
    match timing {
        Timing::Off => 0,
        Timing::Sampled => SAMPLE_EVERY,
        Timing::Auto if is_short => SAMPLE_EVERY,
        Timing::Auto | Timing::All => 1,
    }
}

/// A fraction of a nanosecond per I/O, and still hundreds of thousands of samples a second.
const SAMPLE_EVERY: u32 = 64;
/// Beside an I/O of this size, reading the time costs nothing, even if the device is memory.
const LONG_IO_BYTES: usize = 64 << 10;
/// After so many errors a worker gives up.
const MAX_ERRORS: u64 = 1000;
/// How much a worker submits before others of its reactor have their turn.
const BYTES_PER_TURN: usize = 1 << 20;
const MIN_PER_TURN: usize = 8;
const MAX_PER_TURN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_gives_its_rate_and_does_not_make_up_for_a_long_pause() {
        let mut pace = Pace { per_second: 1000.0, since_ns: 0, sent: 0 };
        assert_eq!(pace.quota(10_000_000, 256), 10);
        pace.sent += 10;
        assert_eq!(pace.quota(10_000_000, 256), 0);
        assert_eq!(pace.quota(60_000_000_000, 256), 256);
        pace.sent += 256;
        assert_eq!(pace.quota(60_001_000_000, 256), 1);
    }
}
