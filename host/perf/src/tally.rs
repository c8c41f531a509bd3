//! What a worker counts: I/Os by kind, and their latencies in buckets whose
//! width grows with the value. Recording is an index and an addition.

/// Latencies in ticks; each bucket is at most 1/64 wide of its value.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    samples: u64,
    sum: u64,
    max: u64,
}

/// I/Os of one kind on one worker.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    /// That succeeded.
    pub ios: u64,
    pub histogram: Histogram,
}

impl Default for Histogram {
    fn default() -> Self {
        let counts: Box<[u64]> = vec![0; BUCKETS].into_boxed_slice();
        Histogram { counts: counts.try_into().expect("made with that length"), samples: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    #[inline(always)]
    pub(crate) fn record(&mut self, ticks: u64) {
        self.counts[bucket_of(ticks)] += 1;
        self.samples += 1;
        self.sum = self.sum.wrapping_add(ticks);
        if ticks > self.max {
            self.max = ticks;
        }
    }

    pub(crate) fn add(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count += more;
        }
        self.samples += other.samples;
        self.sum = self.sum.wrapping_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// Values recorded.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Largest value.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// Mean of the values.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.samples == 0 { 0.0 } else { self.sum as f64 / self.samples as f64 }
    }

    /// The value below or at which `share` (0 to 1) of all values are: the upper end of its bucket.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.samples as f64 * share).ceil() as u64).clamp(1, self.samples.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_end(bucket).min(self.max);
            }
        }
        self.max
    }

    /// Lower bound of the smallest value.
    #[must_use]
    pub fn min(&self) -> u64 {
        self.counts.iter().position(|count| *count > 0).map_or(0, lower_end)
    }

    /// Buckets that are not empty: lower end, upper end, count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (lower_end(bucket), upper_end(bucket), *count))
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Histogram({} samples, mean {:.0}, max {})", self.samples, self.mean(), self.max)
    }
}

#[inline(always)]
fn bucket_of(value: u64) -> usize {
    let shift = (63 - (value | SUB_BUCKETS).leading_zeros()) - SUB_BITS;
    ((u64::from(shift) << SUB_BITS) + (value >> shift)) as usize
}

fn lower_end(bucket: usize) -> u64 {
    let shift = (bucket as u64 >> SUB_BITS).saturating_sub(1);
    (bucket as u64 - (shift << SUB_BITS)) << shift
}

fn upper_end(bucket: usize) -> u64 {
    let shift = (bucket as u64 >> SUB_BITS).saturating_sub(1);
    lower_end(bucket) + ((1 << shift) - 1)
}

/// Buckets per power of two, as a power of two.
const SUB_BITS: u32 = 6;
const SUB_BUCKETS: u64 = 1 << SUB_BITS;
const BUCKETS: usize = (65 - SUB_BITS as usize) << SUB_BITS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap_and_hold_what_is_put_in_them() {
        let mut next = 0u64;
        for bucket in 0..BUCKETS {
            assert_eq!(lower_end(bucket), next, "bucket {bucket}");
            assert_eq!((bucket_of(lower_end(bucket)), bucket_of(upper_end(bucket))), (bucket, bucket));
            next = upper_end(bucket).wrapping_add(1);
        }
        assert_eq!((next, bucket_of(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn quantiles_are_right_to_the_width_of_a_bucket() {
        let mut histogram = Histogram::default();
        (1..=100_000).for_each(|value| histogram.record(value));
        for (share, exact) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0), (1.0, 100_000.0)] {
            let found = histogram.quantile(share) as f64;
            assert!(found >= exact && found <= exact * (1.0 + 1.0 / 64.0), "{share}: {found}");
        }
        assert_eq!((histogram.max(), histogram.min(), histogram.samples()), (100_000, 1, 100_000));
        assert!((histogram.mean() - 50_000.5).abs() < 1e-6);
    }

    #[test]
    fn merged_histograms_are_the_histogram_of_all_values() {
        let (mut a, mut b, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for value in [3, 700, 1 << 40] {
            a.record(value);
            b.record(value * 2);
            both.record(value);
            both.record(value * 2);
        }
        a.add(&b);
        assert_eq!(a.buckets().collect::<Vec<_>>(), both.buckets().collect::<Vec<_>>());
        assert_eq!((a.max(), a.samples()), (both.max(), both.samples()));
    }

    #[test]
    fn an_empty_histogram_has_no_quantile_but_zero() {
        assert_eq!(Histogram::default().quantile(0.99), 0);
    }
}
