//! Parity: exclusive or of byte strings. The loops work on fixed pieces that the
//! compiler turns into vector instructions, once for each kind of processor; which
//! kind it is, is asked at run time.

use pulp::{Arch, NullaryFnOnce};

/// `target ^= source`, byte by byte.
///
/// # Panics
/// If the lengths differ.
#[inline]
pub fn xor_into(target: &mut [u8], source: &[u8]) {
    assert_eq!(target.len(), source.len(), "exclusive or of different lengths");
    Arch::new().dispatch(Into { target, source });
}

/// `target` becomes the exclusive or of the strips of `data`, which are as long as it is. Works piece by piece through
/// all strips, so that what was added up does not leave the nearest cache.
///
/// # Panics
/// If `data` is not whole strips.
pub fn parity_of_strips(target: &mut [u8], data: &[u8]) {
    assert!(!target.is_empty() && data.len().is_multiple_of(target.len()), "parity of parts of strips");
    Arch::new().dispatch(Strips { target, data });
}

struct Into<'a> {
    target: &'a mut [u8],
    source: &'a [u8],
}

impl NullaryFnOnce for Into<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        add(self.target, self.source);
    }
}

struct Strips<'a> {
    target: &'a mut [u8],
    data: &'a [u8],
}

impl NullaryFnOnce for Strips<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let strip = self.target.len();
        for (nth, target) in self.target.chunks_mut(NEAR).enumerate() {
            let (at, len) = (nth * NEAR, target.len());
            let mut parts = self.data.chunks_exact(strip).map(|part| &part[at..at + len]);
            match (parts.next(), parts.next()) {
                (Some(first), Some(second)) => sum(target, first, second),
                (Some(only), None) => target.copy_from_slice(only),
                (None, _) => {}
            }
            for part in parts {
                add(target, part);
            }
        }
    }
}

#[inline(always)]
fn add(target: &mut [u8], source: &[u8]) {
    let (wide, rest) = target.as_chunks_mut::<WIDE>();
    let (wide_source, rest_source) = source.as_chunks::<WIDE>();
    for (target, source) in wide.iter_mut().zip(wide_source) {
        for (target, source) in target.iter_mut().zip(source) {
            *target ^= source;
        }
    }
    for (target, source) in rest.iter_mut().zip(rest_source) {
        *target ^= source;
    }
}

#[inline(always)]
fn sum(target: &mut [u8], one: &[u8], other: &[u8]) {
    let (wide, rest) = target.as_chunks_mut::<WIDE>();
    let ((wide_one, rest_one), (wide_other, rest_other)) =
        (one.as_chunks::<WIDE>(), other.as_chunks::<WIDE>());
    for ((target, one), other) in wide.iter_mut().zip(wide_one).zip(wide_other) {
        for ((target, one), other) in target.iter_mut().zip(one).zip(other) {
            *target = one ^ other;
        }
    }
    for ((target, one), other) in rest.iter_mut().zip(rest_one).zip(rest_other) {
        *target = one ^ other;
    }
}

/// Calls `work` with each part of the bytes `from..from + len` of a scattered payload, and where in that range the
/// part begins.
pub fn for_range(
    pieces: &mut dyn Iterator<Item = &mut [u8]>,
    from: usize,
    len: usize,
    mut work: impl FnMut(&mut [u8], usize),
) {
    let mut at = 0;
    for piece in pieces {
        let (start, end) = (at.max(from), (at + piece.len()).min(from + len));
        if start < end {
            work(&mut piece[start - at..end - at], start - from);
        }
        at += piece.len();
    }
}

/// Bytes per step: several vector registers of any machine.
const WIDE: usize = 128;
/// Bytes that stay in the nearest cache while strips are added to them.
const NEAR: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_gives_back_what_was() {
        for len in [0, 1, 127, 128, 129, 4096, 5000] {
            let source: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            let before: Vec<u8> = (0..len).map(|n| (n * 13) as u8).collect();
            let mut target = before.clone();
            xor_into(&mut target, &source);
            assert!(target.iter().zip(&before).zip(&source).all(|((t, b), s)| *t == b ^ s));
            xor_into(&mut target, &source);
            assert_eq!(target, before);
        }
    }

    #[test]
    fn parity_of_strips_is_their_exclusive_or() {
        for (strips, len) in [(1, 512), (2, 512), (3, 4096), (4, 5000), (7, 65536), (2, 1)] {
            let data: Vec<u8> = (0..strips * len).map(|n| ((n * 31) >> 3) as u8).collect();
            let mut parity = vec![0xff; len];
            parity_of_strips(&mut parity, &data);
            for (at, byte) in parity.iter().enumerate() {
                assert_eq!(*byte, data.iter().skip(at).step_by(len).fold(0, |sum, byte| sum ^ byte));
            }
        }
    }

    #[test]
    fn a_range_of_scattered_bytes_is_found() {
        let (mut a, mut b, mut c) = (vec![1u8; 3], vec![1u8; 4], vec![1u8; 2]);
        let source = [2, 3, 4, 5];
        {
            let mut pieces = [&mut a[..], &mut [], &mut b[..], &mut c[..]].into_iter();
            for_range(&mut pieces, 2, 4, |piece, at| xor_into(piece, &source[at..at + piece.len()]));
        }
        assert_eq!((a, b, c), (vec![1, 1, 3], vec![2, 5, 4, 1], vec![1, 1]));
    }
}
