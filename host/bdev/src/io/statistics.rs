//! What a device has done: counts of every request, latencies of some, collected on demand.
//!
//! Each channel counts requests where it passes them on, in plain integers beside what the fast path
//! touches anyway. Latency is measured for every I/O of a slow device and one in [`SAMPLE_EVERY`] of a
//! fast one (all while a histogram records): the gate puts itself in front of `done` only for those. A report visits the reactors;
//! closed channels leave their figures behind.
//!
//! # Safety
//! Every private unsafe function takes a live channel of the calling reactor.
// UNSAFETY: puts itself between an I/O and its `done`; visits read the channels of their own reactor.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use log::warn;
use tenon_abi::{BdevIo, Op};
use tenon_reactor::{ReactorId, now_ns, ticks, ticks_hz};

use super::broadcast::{assert_control, each_channel};
use super::channel::ModuleChannel;
use super::gate::Gate;
use super::histogram::Histogram;

/// Requests and their blocks by operation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters([Count; Op::COUNT as usize]);

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    requests: u64,
    blocks: u64,
}

/// What the fast path has counted of READ and of WRITE: their requests, their blocks and how many requests are left
/// until one is to be timed, in one word each, as a stack of devices is bound by the stores it makes.
///
/// The upper 16 bits hold the requests that are left, less one: the word is negative when the last one was counted.
/// The others hold the blocks, of which the fast path passes fewer than 2^32 at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recent([i64; 2]);

impl Recent {
    /// Nothing counted yet, and `left` (at most 2^15) to count.
    pub(super) fn new(left: u32) -> Self {
        Self([(i64::from(left) - 1) << Self::SHIFT; 2])
    }

    /// Counts a READ or WRITE. After the last one, when it is true, it must be settled.
    #[inline(always)]
    pub(super) fn count(&mut self, op: Op, blocks: u64) -> bool {
        let word = &mut self.0[op.0 as usize & 1];
        *word = word.wrapping_add(blocks as i64).wrapping_sub(1 << Self::SHIFT);
        *word < 0
    }

    /// Moves what was counted into `counters`, where there were `left` to count.
    fn settle(&mut self, counters: &mut Counters, left: u32) {
        for (word, count) in self.0.into_iter().zip(&mut counters.0) {
            count.requests += (i64::from(left) - 1 - (word >> Self::SHIFT)) as u64;
            count.blocks = count.blocks.wrapping_add(word as u64 & ((1 << Self::SHIFT) - 1));
        }
        *self = Self::new(left);
    }

    const SHIFT: u32 = 48;
}

impl Counters {
    /// Counts one request, except where [`Recent`] does.
    pub(super) fn count(&mut self, op: Op, blocks: u64) {
        if let Some(count) = self.0.get_mut(op.0 as usize) {
            count.requests += 1;
            count.blocks = count.blocks.wrapping_add(blocks);
        }
    }

    fn of(&self, op: usize) -> Option<Count> {
        self.0.get(op).copied()
    }

    fn add(&mut self, other: &Counters) {
        for (count, more) in self.0.iter_mut().zip(&other.0) {
            count.requests += more.requests;
            count.blocks = count.blocks.wrapping_add(more.blocks);
        }
    }

    fn requests(&self) -> u64 {
        self.0.iter().map(|count| count.requests).sum()
    }
}

/// Latencies in ticks of the timed I/Os of one operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    timed: u64,
    sum: u64,
    min: u64,
    max: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { timed: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Latency {
    fn record(&mut self, ticks: u64) {
        self.timed += 1;
        self.sum = self.sum.wrapping_add(ticks);
        self.min = self.min.min(ticks);
        self.max = self.max.max(ticks);
    }

    fn add(&mut self, other: &Latency) {
        self.timed += other.timed;
        self.sum = self.sum.wrapping_add(other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    fn reset_extremes(&mut self) {
        (self.min, self.max) = (u64::MAX, 0);
    }
}

/// Puts the gate in front of `done` of an I/O that is about to be passed on.
///
/// # Safety
/// `m` is a live channel of the calling reactor; `io` is owned by the gate and not timed yet.
#[cold]
#[inline(never)]
pub(super) unsafe fn start_timing(m: *mut ModuleChannel, io: *mut BdevIo) {
    // SAFETY: as promised; `host` and `submit_ticks` are the gate's while it or the module has the I/O.
    unsafe {
        (*m).sample_left = (*m).sample_every;
        settle(m);
        (*m).next_timed_ns = now_ns() + TIMED_INTERVAL_NS;
        // A function pointer and an address are of one size; kept as an address.
        (*io).host = [(*io).done.map_or(std::ptr::null_mut(), |done| done as *mut c_void), (*io).done_arg];
        (*io).done = Some(timed_done);
        (*io).done_arg = m.cast();
        (*io).submit_ticks = ticks();
        if (*m).io.faults != (*m).reported_faults {
            report_faults(m);
        }
    }
}

/// `done` of a timed I/O.
unsafe extern "C" fn timed_done(io: *mut BdevIo, m: *mut c_void) {
    let m = m.cast::<ModuleChannel>();
    // SAFETY: `start_timing` stored a `done` in `host[0]`; the channel outlives the I/O's completion, as its
    // consumer has not put it yet.
    unsafe {
        let done: Option<unsafe extern "C" fn(*mut BdevIo, *mut c_void)> = std::mem::transmute((*io).host[0]);
        (*io).done = done;
        (*io).done_arg = (*io).host[1];
        if (*io).status.is_success() {
            let elapsed = ticks().saturating_sub((*io).submit_ticks);
            let op = (*io).op.0 as usize;
            if op < Op::COUNT as usize {
                (*m).latency[op].record(elapsed);
                if let Some(histogram) = &mut (*m).histograms[op] {
                    histogram.record(elapsed);
                }
            }
        }
        if let Some(done) = done {
            done(io, (*io).done_arg);
        }
    }
}

/// Starts or stops recording histograms as the control reactor wants.
///
/// # Safety
/// `m` is a live channel of the calling reactor.
pub(super) unsafe fn refresh_recording(m: *mut ModuleChannel) {
    // SAFETY: as promised by the caller.
    unsafe {
        let wanted = ModuleChannel::gate(m).recording.lock().ops;
        for op in 0..Op::COUNT as usize {
            let is_wanted = wanted & (1 << op) != 0;
            if is_wanted != (*m).histograms[op].is_some() {
                (*m).histograms[op] = is_wanted.then(|| Box::new(Histogram::new()));
            }
        }
        settle(m);
        (*m).sample_every = if wanted != 0 { 1 } else { SAMPLE_EVERY };
        (*m).sample_left = (*m).sample_every;
        (*m).recent = Recent::new((*m).sample_every);
    }
}

/// Makes the counters whole.
///
/// # Safety
/// As for [`refresh_recording`].
unsafe fn settle(m: *mut ModuleChannel) {
    // SAFETY: as promised by the caller.
    unsafe {
        let every = (*m).sample_every;
        (*m).recent.settle(&mut (*m).counters, every);
    }
}

/// Keeps the figures of a channel that closes.
///
/// # Safety
/// As for [`refresh_recording`].
pub(super) unsafe fn retire(m: *mut ModuleChannel) {
    // SAFETY: as promised by the caller.
    unsafe {
        let gate = Arc::clone(ModuleChannel::gate(m));
        gate.retired.lock().0.add(&snapshot(m));
        let mut recording = gate.recording.lock();
        let histograms = &(*m).histograms;
        for (op, histogram) in histograms.iter().enumerate() {
            if let Some(histogram) = histogram {
                recording.retire(op, histogram);
            }
        }
    }
}

/// Complains about completions of I/Os that were not outstanding, if there are new ones.
///
/// # Safety
/// As for [`refresh_recording`].
pub(super) unsafe fn report_faults(m: *mut ModuleChannel) {
    // SAFETY: as promised by the caller.
    unsafe {
        let faults = (*m).io.faults;
        let new = faults.wrapping_sub((*m).reported_faults);
        if new == 0 || !(*m).gate.may_warn() {
            return;
        }
        (*m).reported_faults = faults;
        ModuleChannel::gate(m).faults.fetch_add(u64::from(new), Ordering::Relaxed);
        warn!(
            "I/O completed or released twice bdev={} reactor={} times={new}",
            (*m).gate.name(),
            (*m).reactor
        );
    }
}

/// Figures of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpStat {
    /// Requests passed to the module.
    pub ops: u64,
    /// Bytes of their blocks, metadata not included.
    pub bytes: u64,
    /// Of the requests, how many were timed and succeeded.
    pub timed_ops: u64,
    /// Sum of the timed latencies.
    pub timed_ticks: u64,
    /// Shortest latency, 0 if none was timed.
    pub min_latency_ticks: u64,
    /// Longest latency, 0 if none was timed.
    pub max_latency_ticks: u64,
}

impl OpStat {
    /// The sum of the latencies of all requests, as the timed ones suggest.
    #[must_use]
    pub fn latency_ticks(&self) -> u64 {
        if self.timed_ops == 0 {
            return 0;
        }
        (u128::from(self.timed_ticks) * u128::from(self.ops) / u128::from(self.timed_ops)) as u64
    }
}

/// Figures of one or several channels.
#[derive(Clone, Debug)]
pub struct OpStats {
    counters: Counters,
    latency: [Latency; Op::COUNT as usize],
    block_size: u64,
}

impl Default for OpStats {
    fn default() -> Self {
        Self {
            counters: Counters::default(),
            latency: [Latency::default(); Op::COUNT as usize],
            block_size: 0,
        }
    }
}

impl OpStats {
    /// Figures of one operation; zero for an unknown one.
    #[must_use]
    pub fn op(&self, op: Op) -> OpStat {
        let index = op.0 as usize;
        let (count, latency) = match (self.counters.of(index), self.latency.get(index)) {
            (Some(count), Some(latency)) => (count, *latency),
            _ => (Count::default(), Latency::default()),
        };
        OpStat {
            ops: count.requests,
            bytes: count.blocks.wrapping_mul(self.block_size),
            timed_ops: latency.timed,
            timed_ticks: latency.sum,
            min_latency_ticks: if latency.timed == 0 || latency.min == u64::MAX { 0 } else { latency.min },
            max_latency_ticks: latency.max,
        }
    }

    /// Requests of every operation.
    #[must_use]
    pub fn total_ops(&self) -> u64 {
        self.counters.requests()
    }

    fn add(&mut self, other: &OpStats) {
        self.counters.add(&other.counters);
        for (latency, more) in self.latency.iter_mut().zip(&other.latency) {
            latency.add(more);
        }
        self.block_size = self.block_size.max(other.block_size);
    }

    fn reset(&mut self, mode: ResetMode) {
        match mode {
            ResetMode::None => {}
            ResetMode::Extremes => self.latency.iter_mut().for_each(Latency::reset_extremes),
            ResetMode::All => *self = OpStats { block_size: self.block_size, ..OpStats::default() },
        }
    }
}

/// What a report does to the figures it has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetMode {
    /// Nothing.
    #[default]
    None,
    /// Forgets the shortest and longest latencies (`maxmin`).
    Extremes,
    /// Starts from zero.
    All,
}

/// What closed channels left.
#[derive(Debug, Default)]
pub(super) struct Retired(pub OpStats);

/// Figures of a device on one reactor.
#[derive(Clone, Debug)]
pub struct ChannelStat {
    /// The reactor.
    pub reactor: ReactorId,
    /// Its figures.
    pub stats: OpStats,
    /// I/Os in the module now.
    pub outstanding: u32,
    /// I/Os waiting in the gate now.
    pub queued: u32,
    /// Descriptors that use it.
    pub consumers: u32,
}

/// Depth of a device's queue over time; zero while it is not sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepthStat {
    /// Time between samples; 0: not sampled.
    pub period_us: u64,
    /// I/Os in the device at the last sample.
    pub queue_depth: u64,
    /// Time in which the device had I/O.
    pub io_time_us: u64,
    /// The same, times the I/Os it had.
    pub weighted_io_time_us: u64,
}

/// Figures of a device.
#[derive(Clone, Debug)]
pub struct IoStat {
    /// Of all reactors, and of channels that are closed.
    pub total: OpStats,
    /// Of each open channel, if asked for.
    pub channels: Vec<ChannelStat>,
    /// Queue depth.
    pub queue_depth: QueueDepthStat,
    /// Ticks per second of the latencies.
    pub tick_rate: u64,
}

impl Gate {
    /// Collects figures from every reactor, then resets them as asked; `done` runs on the control reactor.
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn iostat(
        self: &Arc<Self>,
        per_channel: bool,
        reset: ResetMode,
        done: impl FnOnce(IoStat) + 'static,
    ) {
        assert_control();
        let gate = Arc::clone(self);
        each_channel(
            self,
            // SAFETY: `each_channel` calls with the live channel of the reactor it runs on.
            move |m| unsafe { read_channel(m, reset) },
            move |answers| {
                let mut total = {
                    let mut retired = gate.retired.lock();
                    let total = retired.0.clone();
                    retired.0.reset(reset);
                    total
                };
                answers.iter().for_each(|(_, channel)| total.add(&channel.stats));
                let channels = answers.into_iter().map(|(_, channel)| channel);
                done(IoStat {
                    total,
                    channels: if per_channel { channels.collect() } else { Vec::new() },
                    queue_depth: gate.sampling.lock().read(reset),
                    tick_rate: ticks_hz(),
                });
            },
        );
    }

    /// Resets figures without reading them; `done` runs on the control reactor.
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn reset_iostat(self: &Arc<Self>, mode: ResetMode, done: impl FnOnce() + 'static) {
        self.iostat(false, mode, move |_| done());
    }
}

unsafe fn read_channel(m: *mut ModuleChannel, reset: ResetMode) -> ChannelStat {
    // SAFETY: the caller's channel is live and of the calling reactor.
    unsafe {
        report_faults(m);
        let stats = snapshot(m);
        let mut after = stats.clone();
        after.reset(reset);
        (*m).counters = after.counters;
        (*m).latency = after.latency;
        ChannelStat {
            reactor: (*m).reactor,
            stats,
            outstanding: (*m).io.outstanding,
            queued: (*m).queued(),
            consumers: (*m).consumers.len() as u32,
        }
    }
}

unsafe fn snapshot(m: *mut ModuleChannel) -> OpStats {
    // SAFETY: the caller's channel is live and of the calling reactor.
    unsafe {
        settle(m);
        OpStats {
            counters: (*m).counters,
            latency: (*m).latency,
            block_size: u64::from(ModuleChannel::gate(m).spec.limits.block_size),
        }
    }
}

/// Of a fast device, one I/O in so many is timed.
pub(super) const SAMPLE_EVERY: u32 = 256;
/// An I/O is timed if the last timed one is so long ago.
const TIMED_INTERVAL_NS: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_holds_requests_and_blocks_until_it_is_settled() {
        const MOST: u64 = (1 << 32) - 1;
        let (mut recent, mut counters) = (Recent::new(SAMPLE_EVERY), Counters::default());
        for round in 1..=3 {
            for left in (0..SAMPLE_EVERY).rev() {
                assert_eq!(recent.count(Op::WRITE, MOST), left == 0, "{left} left in round {round}");
            }
            assert!(!recent.count(Op::READ, 8));
            recent.settle(&mut counters, SAMPLE_EVERY);
            let writes = round * u64::from(SAMPLE_EVERY);
            let found = [Op::READ, Op::WRITE].map(|op| counters.0[op.0 as usize]);
            assert_eq!([found[0].requests, found[0].blocks], [round, round * 8]);
            assert_eq!([found[1].requests, found[1].blocks], [writes, writes * MOST]);
        }
    }

    #[test]
    fn each_request_is_the_last_while_each_is_timed() {
        let (mut recent, mut counters) = (Recent::new(1), Counters::default());
        for requests in 1..=5 {
            assert!(recent.count(Op::READ, 1));
            recent.settle(&mut counters, 1);
            assert_eq!(counters.requests(), requests);
        }
    }
}
