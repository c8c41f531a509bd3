//! Which chunk (a piece of the device as large as one I/O) comes next.
//!
//! Zipf numbers are drawn by inversion of the integral with rejection (Hörmann
//! and Derflinger, 1996): constant time and no table, however large the device
//! is. Ranks are then spread over the device, so that popular chunks are not
//! neighbours.

use crate::random::{Random, scale};
use crate::workload::Access;

/// The choice of chunks.
#[derive(Clone, Debug)]
pub(crate) enum Walk {
    Sequential { next: u64 },
    Random,
    Zipf(Box<Zipf>),
}

impl Walk {
    /// A walk over `chunks` chunks; a sequential one begins at `start`.
    pub(crate) fn new(access: Access, chunks: u64, start: u64) -> Self {
        match access {
            Access::Sequential => Walk::Sequential { next: start },
            Access::Random => Walk::Random,
            Access::Zipf { theta } => Walk::Zipf(Box::new(Zipf::new(chunks, theta))),
        }
    }

    /// The next chunk; `number` is a random one, of which the lower half may have been used.
    #[inline(always)]
    pub(crate) fn next(&mut self, number: u64, random: &mut Random, chunks: u64) -> u64 {
        match self {
            Walk::Sequential { next } => {
                let chunk = *next;
                *next = if chunk + 1 < chunks { chunk + 1 } else { 0 };
                chunk
            }
            Walk::Random => scale(number, chunks),
            Walk::Zipf(zipf) => zipf.next(random),
        }
    }
}

/// Zipf-distributed chunks.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    count: u64,
    theta: f64,
    /// Integral of the density from 1 to where the first rank begins.
    low: f64,
    /// The same to where the last rank ends.
    high: f64,
    /// How far behind its rank a point is accepted without a second look.
    shortcut: f64,
    /// Spreads ranks; has no divisor in common with `count`.
    multiplier: u64,
}

impl Zipf {
    fn new(count: u64, theta: f64) -> Self {
        let mut zipf = Zipf { count, theta, low: 0.0, high: 0.0, shortcut: 0.0, multiplier: 1 };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(count as f64 + 0.5);
        zipf.shortcut = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf.multiplier = spread_of(count);
        zipf
    }

    #[cold]
    fn next(&mut self, random: &mut Random) -> u64 {
        let rank = self.rank(random);
        (u128::from(rank - 1) * u128::from(self.multiplier) % u128::from(self.count)) as u64
    }

    /// From 1, the most popular, to `count`.
    fn rank(&self, random: &mut Random) -> u64 {
        for _ in 0..MAX_REJECTIONS {
            let area = self.high + random.unit() * (self.low - self.high);
            let point = self.inverse(area);
            let rank = (point + 0.5).floor().clamp(1.0, self.count as f64);
            let is_inside =
                rank - point <= self.shortcut || area >= self.integral(rank + 0.5) - self.density(rank);
            if is_inside {
                return rank as u64;
            }
        }
        1
    }

    fn density(&self, x: f64) -> f64 {
        x.powf(-self.theta)
    }

    /// Of the density, from 1.
    fn integral(&self, x: f64) -> f64 {
        let power = 1.0 - self.theta;
        if power.abs() < NEAR_ONE { x.ln() } else { (x.powf(power) - 1.0) / power }
    }

    fn inverse(&self, area: f64) -> f64 {
        let power = 1.0 - self.theta;
        if power.abs() < NEAR_ONE { area.exp() } else { (1.0 + area * power).max(0.0).powf(1.0 / power) }
    }
}

/// A step near the golden section of `count` that visits every chunk once.
fn spread_of(count: u64) -> u64 {
    let mut step = (count as f64 * 0.618_033_988_749_895) as u64 | 1;
    while divisor(step, count) != 1 {
        step += 2;
    }
    step
}

fn divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// An exponent this near to 1 is taken for 1, where the integral is a logarithm.
const NEAR_ONE: f64 = 1e-9;
/// Far more than ever needed: less than one in three is rejected.
const MAX_REJECTIONS: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_walk_wraps() {
        let (mut walk, mut random) = (Walk::new(Access::Sequential, 3, 2), Random::new(1));
        let chunks: Vec<u64> = (0..4).map(|_| walk.next(0, &mut random, 3)).collect();
        assert_eq!(chunks, [2, 0, 1, 2]);
    }

    #[test]
    fn spread_ranks_visit_every_chunk_once() {
        for count in [1, 2, 3, 10, 4096, 65_535, 99_991] {
            let step = spread_of(count);
            let mut seen = vec![false; count as usize];
            for rank in 0..count {
                seen[(u128::from(rank) * u128::from(step) % u128::from(count)) as usize] = true;
            }
            assert!(seen.iter().all(|seen| *seen), "{count}");
        }
    }

    #[track_caller]
    fn check_zipf(count: u64, theta: f64) {
        let zipf = Zipf::new(count, theta);
        let mut random = Random::new(3);
        let mut counts = vec![0u32; count as usize];
        let draws = 200_000;
        for _ in 0..draws {
            counts[zipf.rank(&mut random) as usize - 1] += 1;
        }
        let total: f64 = (1..=count).map(|rank| (rank as f64).powf(-theta)).sum();
        for rank in [1, 2, 3, 10] {
            let expected = f64::from(draws) * (rank as f64).powf(-theta) / total;
            let found = f64::from(counts[rank as usize - 1]);
            assert!((found - expected).abs() < 6.0 * expected.sqrt(), "{rank}: {found}, not {expected}");
        }
    }

    #[test]
    fn ranks_have_the_chance_zipf_gives_them() {
        check_zipf(1000, 0.5);
        check_zipf(1000, 1.0);
        check_zipf(1000, 1.2);
        check_zipf(10, 3.0);
    }

    #[test]
    fn a_device_of_one_chunk_has_only_that_one() {
        let (mut walk, mut random) = (Walk::new(Access::Zipf { theta: 1.2 }, 1, 0), Random::new(1));
        assert!((0..100).all(|_| walk.next(0, &mut random, 1) == 0));
    }
}
