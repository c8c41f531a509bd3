//! What a load has measured and found, merged from its workers: for people and
//! as JSON. Times are converted from ticks here and nowhere else.

use serde::Serialize;
use tenon_abi::IoStatus;
use tenon_reactor::ticks_hz;

use crate::pattern::Mismatch;
use crate::request::{Kind, Request};
use crate::session::Outcome;
use crate::tally::{Histogram, Tally};
use crate::workload::{Timing, Workload};

/// The result of a load.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Bytes of each I/O.
    pub block_bytes: u64,
    /// I/Os in flight per reactor and device.
    pub queue_depth: u32,
    /// Start of the random sequence.
    pub seed: u64,
    /// Which I/Os were timed.
    pub timing: Timing,
    /// Per device, in the order of the plan.
    pub bdevs: Vec<BdevReport>,
    /// All devices together.
    pub total: Total,
}

/// All devices together.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Total {
    /// Reads and writes.
    pub ios: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Reads and writes per second.
    pub iops: f64,
    /// MiB per second.
    pub mib_per_s: f64,
    /// I/Os that failed.
    pub errors: u64,
    /// Blocks that were not what they must be.
    pub mismatched_blocks: u64,
}

/// One device.
#[derive(Clone, Debug, Serialize)]
pub struct BdevReport {
    /// Its name.
    pub name: String,
    /// Reactors that worked on it.
    pub reactors: usize,
    /// How long the load ran.
    pub seconds: f64,
    /// Reads.
    pub read: OpReport,
    /// Writes.
    pub write: OpReport,
    /// UNMAPs.
    pub unmap: OpReport,
    /// FLUSHes.
    pub flush: OpReport,
    /// I/Os that failed.
    pub errors: u64,
    /// The first of them.
    pub failures: Vec<IoFailure>,
    /// The device went away under the load.
    pub is_removed: bool,
    /// I/Os that bounced because of that.
    pub removed: u64,
    /// Blocks read and found as they must be, or not.
    pub verified_blocks: u64,
    /// Blocks that were not what they must be.
    pub mismatched_blocks: u64,
    /// The first of them.
    pub mismatches: Vec<Mismatch>,
    /// I/Os that had not come back when the load was given up.
    pub outstanding: u64,
    /// Why reactors could not work on it.
    pub start_failures: Vec<String>,
}

/// I/Os of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OpReport {
    /// How many succeeded.
    pub ios: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Per second.
    pub iops: f64,
    /// MiB per second.
    pub mib_per_s: f64,
    /// From submission to completion, if timed.
    pub latency: Option<LatencyReport>,
    /// The same in full, in ticks.
    #[serde(skip)]
    pub histogram: Histogram,
}

/// Latencies in nanoseconds; percentiles are right to 1/64.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LatencyReport {
    /// I/Os that were timed.
    pub samples: u64,
    /// Shortest.
    pub min_ns: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Half of them are not longer.
    pub p50_ns: u64,
    /// 99 of 100 are not longer.
    pub p99_ns: u64,
    /// 999 of 1000 are not longer.
    pub p99_9_ns: u64,
    /// Longest.
    pub max_ns: u64,
}

/// An I/O that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IoFailure {
    /// `read`, `write`, `unmap` or `flush`.
    pub op: &'static str,
    /// First block.
    pub lba: u64,
    /// `-errno`, or the NVMe status.
    pub status: String,
}

/// What went wrong on a worker.
#[derive(Default)]
pub(crate) struct Faults {
    pub errors: u64,
    pub removed: u64,
    pub verified_blocks: u64,
    pub mismatched_blocks: u64,
    failures: Vec<IoFailure>,
    mismatches: Vec<Mismatch>,
}

impl Faults {
    pub(crate) fn failed(&mut self, request: Request, lba: u64, status: IoStatus) {
        self.errors += 1;
        if self.failures.len() < MAX_DETAILS {
            let status = status_text(status);
            self.failures.push(IoFailure { op: request.kind.as_str(), lba, status });
        }
    }

    pub(crate) fn verified(&mut self, blocks: u64, wrong: u64, first: Option<Mismatch>) {
        self.verified_blocks += blocks;
        self.mismatched_blocks += wrong;
        if self.mismatches.len() < MAX_DETAILS {
            self.mismatches.extend(first);
        }
    }
}

/// For people: `-5`, or `nvme 2/81`.
fn status_text(status: IoStatus) -> String {
    match status.as_nvme() {
        Some((sct, sc)) => format!("nvme sct {sct:#x} sc {sc:#04x}"),
        None => match std::io::Error::from_raw_os_error(-status.0) {
            error if status.0 < 0 => error.to_string(),
            _ => format!("status {}", status.0),
        },
    }
}

impl Report {
    pub(crate) fn new(bdevs: Vec<BdevReport>, workload: &Workload) -> Self {
        let mut total = Total::default();
        for bdev in &bdevs {
            for op in [&bdev.read, &bdev.write] {
                total.ios += op.ios;
                total.bytes += op.bytes;
                total.iops += op.iops;
                total.mib_per_s += op.mib_per_s;
            }
            total.errors += bdev.errors;
            total.mismatched_blocks += bdev.mismatched_blocks;
        }
        let Workload { block_bytes, queue_depth, seed, timing, .. } = *workload;
        Report { block_bytes, queue_depth, seed, timing, bdevs, total }
    }

    /// No I/O failed or stayed away, nothing wrong was read, every reactor could work.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bdevs.iter().all(|bdev| {
            bdev.errors == 0
                && bdev.mismatched_blocks == 0
                && bdev.start_failures.is_empty()
                && bdev.outstanding == 0
                && !bdev.is_removed
        })
    }
}

impl BdevReport {
    pub(crate) fn new(name: &str, outcomes: Vec<Outcome>, is_removed: bool, block_bytes: u64) -> Self {
        let worked = || outcomes.iter().filter(|outcome| outcome.failure.is_none() && outcome.begin_ns > 0);
        let begin = worked().map(|outcome| outcome.begin_ns).min().unwrap_or(0);
        let end = worked().map(|outcome| outcome.end_ns).max().unwrap_or(0);
        let seconds = end.saturating_sub(begin) as f64 * 1e-9;
        let op = |kind: Kind| {
            let mut sum = Tally::default();
            for outcome in &outcomes {
                let tally = &outcome.tallies[kind as usize];
                sum.ios += tally.ios;
                sum.histogram.add(&tally.histogram);
            }
            OpReport::new(sum, seconds, if kind == Kind::Flush { 0 } else { block_bytes })
        };
        let sum = |of: fn(&Faults) -> u64| outcomes.iter().map(|outcome| of(&outcome.faults)).sum();
        let removed = sum(|faults| faults.removed);
        BdevReport {
            name: name.to_owned(),
            reactors: worked().count(),
            seconds,
            read: op(Kind::Read),
            write: op(Kind::Write),
            unmap: op(Kind::Unmap),
            flush: op(Kind::Flush),
            errors: sum(|faults| faults.errors),
            // All its I/O may have bounced before the event came that it goes.
            is_removed: is_removed || removed > 0,
            removed,
            verified_blocks: sum(|faults| faults.verified_blocks),
            mismatched_blocks: sum(|faults| faults.mismatched_blocks),
            outstanding: outcomes.iter().map(|outcome| u64::from(outcome.outstanding)).sum(),
            start_failures: outcomes.iter().filter_map(|outcome| outcome.failure.clone()).collect(),
            failures: outcomes.iter().flat_map(|outcome| outcome.faults.failures.clone()).collect(),
            mismatches: outcomes.iter().flat_map(|outcome| outcome.faults.mismatches.clone()).collect(),
        }
    }

    /// The kinds that happened, by name.
    pub fn ops(&self) -> impl Iterator<Item = (&'static str, &OpReport)> {
        let ops = [&self.read, &self.write, &self.unmap, &self.flush];
        Kind::ALL.iter().map(|kind| kind.as_str()).zip(ops).filter(|(_, op)| op.ios > 0)
    }
}

impl OpReport {
    fn new(tally: Tally, seconds: f64, block_bytes: u64) -> Self {
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let bytes = tally.ios * block_bytes;
        OpReport {
            ios: tally.ios,
            bytes,
            iops: rate(tally.ios),
            mib_per_s: rate(bytes) / MIB,
            latency: LatencyReport::new(&tally.histogram),
            histogram: tally.histogram,
        }
    }
}

impl LatencyReport {
    fn new(histogram: &Histogram) -> Option<Self> {
        let ns_per_tick = 1e9 / ticks_hz() as f64;
        let ns = |ticks: u64| (ticks as f64 * ns_per_tick) as u64;
        (histogram.samples() > 0).then(|| LatencyReport {
            samples: histogram.samples(),
            min_ns: ns(histogram.min()),
            mean_ns: histogram.mean() * ns_per_tick,
            p50_ns: ns(histogram.quantile(0.5)),
            p99_ns: ns(histogram.quantile(0.99)),
            p99_9_ns: ns(histogram.quantile(0.999)),
            max_ns: ns(histogram.max()),
        })
    }
}

/// Failures and mismatches kept per worker; the rest is only counted.
const MAX_DETAILS: usize = 16;
const MIB: f64 = 1_048_576.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_in_words() {
        assert_eq!(status_text(IoStatus::UNRECOVERED_READ), "nvme sct 0x2 sc 0x81");
        assert_eq!(status_text(IoStatus::IO_ERROR), "Input/output error (os error 5)");
    }

    #[test]
    fn only_the_first_failures_are_kept_but_all_are_counted() {
        let mut faults = Faults::default();
        for lba in 0..100 {
            faults.failed(Request::default(), lba, IoStatus::IO_ERROR);
        }
        assert_eq!((faults.errors, faults.failures.len(), faults.failures[3].lba), (100, MAX_DETAILS, 3));
    }
}
