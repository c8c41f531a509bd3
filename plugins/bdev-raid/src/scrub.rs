//! What it means when members do not hold what they should: which blocks differ,
//! and what each member has to hold instead. Pure; `window.rs` reads and writes.

use crate::layout::Layout;
use crate::level::Level;
use crate::xor::xor_into;

/// What is to be said and done about a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Blocks that differ.
    pub mismatches: u64,
    /// Blocks that nobody can say the content of.
    pub lost: u64,
    /// Blocks that get their content back when `dirty` members are written.
    pub repairable: u64,
    /// Members whose part was changed, one bit each.
    pub dirty: u32,
    /// The first block that is wrong.
    pub first: Option<u64>,
}

/// Compares the same blocks of members, `at` being the first, and changes each part to what it should be. Members
/// whose bit is in `unread` could not be read.
///
/// Of copies the content that most members hold counts, of two that differ the first; the first always if it is what
/// was read until now. Of a stripe the data counts,
/// since there is no telling which strip is wrong.
pub fn judge(
    layout: &Layout,
    at: u64,
    block_bytes: usize,
    parts: &mut [&mut [u8]],
    unread: u32,
    first_counts: bool,
) -> Verdict {
    let blocks = parts.first().map_or(0, |part| part.len() / block_bytes);
    let mut verdict = Verdict::default();
    for block in 0..blocks {
        let bytes = block * block_bytes..(block + 1) * block_bytes;
        let outcome = match layout.level {
            Level::Raid5 | Level::Raid5f => stripe(layout, at + block as u64, parts, &bytes, unread),
            Level::Raid0 | Level::Concat | Level::Raid1 | Level::Raid10 => {
                copies(parts, &bytes, unread, first_counts)
            }
        };
        let (mismatches, lost, dirty) = match outcome {
            Outcome::Right => continue,
            Outcome::Unread(dirty) => (0, 0, dirty),
            Outcome::Differs(dirty) => (1, 0, dirty),
            Outcome::Lost => (0, 1, 0),
        };
        verdict.mismatches += mismatches;
        verdict.lost += lost;
        verdict.repairable += 1 - lost;
        verdict.dirty |= dirty;
        verdict.first.get_or_insert(block as u64);
    }
    verdict
}

/// Of one block.
enum Outcome {
    Right,
    /// It could not be read from these members, and is known nevertheless.
    Unread(u32),
    /// These members hold something else.
    Differs(u32),
    Lost,
}

fn copies(
    parts: &mut [&mut [u8]],
    bytes: &std::ops::Range<usize>,
    unread: u32,
    first_counts: bool,
) -> Outcome {
    let is_read = |nth: usize| unread & (1 << nth) == 0;
    let same = |one: usize, other: usize| parts[one][bytes.clone()] == parts[other][bytes.clone()];
    let votes = |one: usize| (0..parts.len()).filter(|other| is_read(*other) && same(one, *other)).count();
    let readable = || (0..parts.len()).filter(|nth| is_read(*nth));
    let Some(first) = readable().next() else { return Outcome::Lost };
    let differs = readable().any(|nth| !same(first, nth));
    // The first of those with most votes.
    let best = if differs && !first_counts {
        readable().rev().max_by_key(|nth| votes(*nth)).unwrap_or(first)
    } else {
        first
    };
    let wrong = (0..parts.len()).filter(|nth| !is_read(*nth) || !same(best, *nth));
    let dirty = wrong.fold(0, |mask, nth| mask | 1 << nth);
    if dirty == 0 {
        return Outcome::Right;
    }
    for nth in (0..parts.len()).filter(|nth| dirty & (1 << nth) != 0) {
        copy_part(parts, best, nth, bytes);
    }
    if differs { Outcome::Differs(dirty) } else { Outcome::Unread(dirty) }
}

/// Every member of a stripe is among the parts.
fn stripe(
    layout: &Layout,
    at: u64,
    parts: &mut [&mut [u8]],
    bytes: &std::ops::Range<usize>,
    unread: u32,
) -> Outcome {
    if unread.count_ones() > 1 {
        return Outcome::Lost;
    }
    let parity = layout.parity_slot(at / layout.strip_blocks);
    let wrong = if unread == 0 { parity } else { unread.trailing_zeros() as usize };
    if unread != 0 {
        parts[wrong][bytes.clone()].fill(0);
    }
    let (before, rest) = parts.split_at_mut(wrong);
    let Some((target, after)) = rest.split_first_mut() else { return Outcome::Lost };
    let target = &mut target[bytes.clone()];
    // First the difference to what it should be.
    for part in before.iter().chain(after.iter()) {
        xor_into(target, &part[bytes.clone()]);
    }
    if unread != 0 {
        return Outcome::Unread(unread);
    }
    let differs = target.iter().any(|byte| *byte != 0);
    target.fill(0);
    for part in before.iter().chain(after.iter()) {
        xor_into(target, &part[bytes.clone()]);
    }
    if differs { Outcome::Differs(1 << wrong) } else { Outcome::Right }
}

fn copy_part(parts: &mut [&mut [u8]], from: usize, to: usize, bytes: &std::ops::Range<usize>) {
    let (low, high) = (from.min(to), from.max(to));
    let (before, after) = parts.split_at_mut(high);
    let (low, high) = (&mut before[low][bytes.clone()], &mut after[0][bytes.clone()]);
    if from < to { high.copy_from_slice(low) } else { low.copy_from_slice(high) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 4;

    /// Each block is given by one byte; gives what is in the parts afterwards.
    #[track_caller]
    fn check(level: Level, at: u64, parts: &[&[u8]], unread: u32, expected: Verdict, after: &[&[u8]]) {
        let wide = |part: &&[u8]| part.iter().flat_map(|byte| [*byte; BLOCK]).collect::<Vec<u8>>();
        let strip = if level == Level::Raid1 { 0 } else { 2 };
        let layout = Layout::new(level, strip, &vec![64; parts.len()]).unwrap();
        let mut bytes: Vec<Vec<u8>> = parts.iter().map(wide).collect();
        let verdict = {
            let mut parts: Vec<&mut [u8]> = bytes.iter_mut().map(Vec::as_mut_slice).collect();
            judge(&layout, at, BLOCK, &mut parts, unread, false)
        };
        assert_eq!(verdict, expected);
        assert_eq!(bytes, after.iter().map(wide).collect::<Vec<_>>());
    }

    fn wrong(mismatches: u64, repairable: u64, dirty: u32, first: u64) -> Verdict {
        Verdict { mismatches, repairable, dirty, first: Some(first), lost: 0 }
    }

    #[test]
    fn of_copies_that_differ_the_majority_counts_and_of_two_the_first() {
        check(Level::Raid1, 0, &[&[1, 2], &[1, 2]], 0, Verdict::default(), &[&[1, 2], &[1, 2]]);
        check(Level::Raid1, 0, &[&[1, 2], &[1, 3]], 0, wrong(1, 1, 0b10, 1), &[&[1, 2], &[1, 2]]);
        check(
            Level::Raid1,
            0,
            &[&[1, 9], &[1, 3], &[1, 3]],
            0,
            wrong(1, 1, 0b001, 1),
            &[&[1, 3], &[1, 3], &[1, 3]],
        );
    }

    #[test]
    fn a_copy_that_cannot_be_read_gets_what_the_others_hold() {
        check(Level::Raid1, 0, &[&[0], &[7]], 0b01, wrong(0, 1, 0b01, 0), &[&[7], &[7]]);
        let lost = Verdict { lost: 1, first: Some(0), ..Verdict::default() };
        check(Level::Raid1, 0, &[&[0], &[7]], 0b11, lost, &[&[0], &[7]]);
    }

    #[test]
    fn of_a_stripe_that_does_not_add_up_the_parity_is_computed_anew() {
        // Parity is on slot 2 of stripe 0 and on slot 1 of stripe 1; strips have two blocks.
        check(Level::Raid5f, 0, &[&[1], &[2], &[3]], 0, Verdict::default(), &[&[1], &[2], &[3]]);
        check(Level::Raid5f, 0, &[&[1], &[2], &[9]], 0, wrong(1, 1, 0b100, 0), &[&[1], &[2], &[3]]);
        check(
            Level::Raid5f,
            1,
            &[&[1, 1], &[2, 9], &[3, 2]],
            0,
            wrong(1, 1, 0b010, 1),
            &[&[1, 1], &[2, 3], &[3, 2]],
        );
    }

    #[test]
    fn a_strip_that_cannot_be_read_is_computed_of_the_others() {
        check(Level::Raid5f, 0, &[&[9], &[2], &[3]], 0b001, wrong(0, 1, 0b001, 0), &[&[1], &[2], &[3]]);
        let lost = Verdict { lost: 1, first: Some(0), ..Verdict::default() };
        check(Level::Raid5f, 0, &[&[9], &[2], &[3]], 0b011, lost, &[&[9], &[2], &[3]]);
    }
}
