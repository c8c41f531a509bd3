//! Parity: exclusive or of byte strings. The loops work on fixed pieces that the
//! compiler turns into vector instructions.

/// `target ^= source`, byte by byte.
///
/// # Panics
/// If the lengths differ.
pub fn xor_into(target: &mut [u8], source: &[u8]) {
    assert_eq!(target.len(), source.len(), "exclusive or of different lengths");
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
