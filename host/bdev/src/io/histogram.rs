//! Latency histograms: log-linear buckets of ticks, per operation, recorded while wanted.
//!
//! Values are grouped in ranges of powers of two, each of 2^[`HISTOGRAM_BUCKET_SHIFT`] buckets; the first
//! range has buckets one tick wide. While recording is on, every I/O is timed. Counts of closed
//! channels are kept. Does not say how a report is encoded.
// UNSAFETY: the control reactor's visits read the channels of the reactor they run on.

use std::sync::Arc;

use tenon_abi::Op;
use tenon_reactor::ticks_hz;

use super::broadcast::{assert_control, each_channel};
use super::gate::Gate;

/// Counts of values by bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Histogram(Box<[u64]>);

impl Histogram {
    pub(super) fn new() -> Self {
        Self(vec![0; HISTOGRAM_BUCKETS].into_boxed_slice())
    }

    pub(super) fn record(&mut self, value: u64) {
        self.0[bucket(value)] += 1;
    }

    pub(super) fn add(&mut self, other: &Histogram) {
        self.0.iter_mut().zip(&other.0).for_each(|(count, more)| *count += more);
    }

    pub(super) fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// The index of the bucket that counts `value`.
fn bucket(value: u64) -> usize {
    let bits = u64::BITS - value.leading_zeros();
    let range = bits.saturating_sub(HISTOGRAM_BUCKET_SHIFT);
    let width_shift = range.saturating_sub(1);
    let in_range = (value >> width_shift) as usize & (BUCKETS_PER_RANGE - 1);
    range as usize * BUCKETS_PER_RANGE + in_range
}

/// A histogram as reports carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramData {
    /// Buckets per range, as a power of two.
    pub bucket_shift: u32,
    /// Ticks per second of the values.
    pub tick_rate: u64,
    /// Counts: range by range, bucket by bucket.
    pub buckets: Vec<u64>,
}

/// What is being recorded, and what closed channels had recorded.
#[derive(Debug, Default)]
pub(super) struct Recording {
    /// Bits of [`Op::bit`].
    pub ops: u64,
    pub retired: Vec<Option<Histogram>>,
}

impl Recording {
    /// Keeps what a closing channel has recorded.
    pub(super) fn retire(&mut self, op: usize, histogram: &Histogram) {
        if self.ops == 0 {
            return;
        }
        if self.retired.len() <= op {
            self.retired.resize(op + 1, None);
        }
        self.retired[op].get_or_insert_with(Histogram::new).add(histogram);
    }
}

impl Gate {
    /// Starts (from zero) or stops recording the latency of every I/O, or of those of one operation;
    /// `done` runs on the control reactor when every reactor obeys.
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn enable_histogram(self: &Arc<Self>, enable: bool, op: Option<Op>, done: impl FnOnce() + 'static) {
        assert_control();
        let wanted = op.map_or(self.io_types(), Op::bit);
        {
            let mut recording = self.recording.lock();
            recording.ops = if enable { wanted & KNOWN } else { 0 };
            recording.retired.clear();
        }
        each_channel(
            self,
            // SAFETY: `each_channel` calls with the live channel of the reactor it runs on.
            |m| unsafe {
                let histograms = &mut (*m).histograms;
                histograms.iter_mut().flatten().for_each(|histogram| histogram.clear());
                super::submit::refresh(m);
            },
            move |_| done(),
        );
    }

    /// Whether anything is recorded.
    #[must_use]
    pub fn is_histogram_enabled(&self) -> bool {
        self.recording.lock().ops != 0
    }

    /// The histogram of one operation, or of all that are recorded; `None` if none of them is.
    ///
    /// # Panics
    /// Anywhere but on the control reactor.
    pub fn histogram(self: &Arc<Self>, op: Option<Op>, done: impl FnOnce(Option<HistogramData>) + 'static) {
        assert_control();
        let asked = op.map_or(u64::MAX, Op::bit);
        let is_recorded = self.recording.lock().ops & asked != 0;
        let gate = Arc::clone(self);
        each_channel(
            self,
            // SAFETY: `each_channel` calls with the live channel of the reactor it runs on.
            move |m| unsafe { sum(&(*m).histograms, asked) },
            move |answers| {
                let mut total = Histogram::new();
                let retired = gate.recording.lock();
                for (op, histogram) in retired.retired.iter().enumerate() {
                    if let Some(histogram) = histogram
                        && asked & (1 << op) != 0
                    {
                        total.add(histogram);
                    }
                }
                drop(retired);
                answers.iter().for_each(|(_, histogram)| total.add(histogram));
                let data = HistogramData {
                    bucket_shift: HISTOGRAM_BUCKET_SHIFT,
                    tick_rate: ticks_hz(),
                    buckets: total.0.into_vec(),
                };
                done(is_recorded.then_some(data));
            },
        );
    }
}

fn sum(histograms: &[Option<Box<Histogram>>], asked: u64) -> Histogram {
    let mut total = Histogram::new();
    for (op, histogram) in histograms.iter().enumerate() {
        if let Some(histogram) = histogram
            && asked & (1 << op) != 0
        {
            total.add(histogram);
        }
    }
    total
}

/// Buckets per range are 2 to this power.
pub const HISTOGRAM_BUCKET_SHIFT: u32 = 7;
const BUCKETS_PER_RANGE: usize = 1 << HISTOGRAM_BUCKET_SHIFT;
/// Buckets of a histogram: one range for each power of two above the first, and the first.
pub const HISTOGRAM_BUCKETS: usize = (64 - HISTOGRAM_BUCKET_SHIFT as usize + 1) * BUCKETS_PER_RANGE;
/// Operations that can have a histogram.
const KNOWN: u64 = (1 << Op::COUNT) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: u64, expected: usize) {
        assert_eq!(bucket(value), expected, "value {value}");
    }

    #[test]
    fn buckets_are_one_tick_wide_up_to_255_and_double_with_each_range() {
        check(0, 0);
        check(127, 127);
        check(128, 128);
        check(255, 255);
        check(256, 256);
        check(257, 256);
        check(258, 257);
        check(511, 383);
        check(512, 384);
        check(u64::MAX, HISTOGRAM_BUCKETS - 1);
    }

    #[test]
    fn buckets_never_go_back_as_values_grow() {
        let mut last = 0;
        for shift in 0..64 {
            for step in 0..8u64 {
                let value = (1u64 << shift) + (1u64 << shift) / 8 * step;
                let now = bucket(value);
                assert!(now >= last, "value {value}");
                last = now;
            }
        }
    }
}
