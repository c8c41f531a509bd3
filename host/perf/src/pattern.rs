//! What a verified block holds: who it is (address and sequence number) in its
//! head, and in every word behind it. So a block tells whether it is the one
//! that was asked for, the newest, and in one piece.
//!
//! Works on bytes only; which sequence number is expected is the ledger's.

use std::fmt;

use serde::Serialize;

use crate::ledger::Content;
use crate::random::mix;

/// A block that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// The block.
    pub lba: u64,
    /// What is wrong with it.
    pub kind: MismatchKind,
    /// What must be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// What can be wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MismatchKind {
    /// Zeroes where something was written.
    Lost,
    /// What was there before.
    Stale,
    /// A block of another address.
    Misplaced,
    /// Pieces of different writes.
    Torn,
    /// Nothing that was ever written.
    Corrupt,
}

impl fmt::Display for MismatchKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MismatchKind::Lost => "lost",
            MismatchKind::Stale => "stale",
            MismatchKind::Misplaced => "misplaced",
            MismatchKind::Torn => "torn",
            MismatchKind::Corrupt => "corrupt",
        })
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lba {}: {}: expected {}, found {}", self.lba, self.kind, self.expected, self.found)
    }
}

/// Where data comes from and how it is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Tells one set of data from another.
    pub salt: u64,
    /// Bytes of a logical block; at least 512.
    pub block_size: usize,
}

/// What the head of a block says.
struct Head {
    lba: u64,
    sequence: u64,
}

impl Frame {
    /// Writes the blocks from `lba` on with `sequence`.
    pub(crate) fn fill(&self, lba: u64, sequence: u32, data: &mut [u8]) {
        for (index, block) in data.chunks_exact_mut(self.block_size).enumerate() {
            let mut words = self.words(lba + index as u64, u64::from(sequence));
            for word in block.chunks_exact_mut(WORD) {
                word.copy_from_slice(&words.next().to_le_bytes());
            }
        }
    }

    /// Makes sure that what is in the buffer is not taken for what is read into it.
    pub(crate) fn spoil(&self, data: &mut [u8]) {
        for block in data.chunks_exact_mut(self.block_size) {
            for word in [0, block.len() - WORD] {
                block[word..word + WORD].copy_from_slice(&SPOILT.to_le_bytes());
            }
        }
    }

    /// Compares the blocks from `lba` on with what must be there: in each block either of the two. Gives the number
    /// of wrong blocks and the first of them.
    pub(crate) fn check(&self, lba: u64, expected: [Content; 2], data: &[u8]) -> (u64, Option<Mismatch>) {
        let (mut wrong, mut first) = (0, None);
        for (index, block) in data.chunks_exact(self.block_size).enumerate() {
            let lba = lba + index as u64;
            if expected.iter().any(|content| self.holds(lba, *content, block)) {
                continue;
            }
            wrong += 1;
            if first.is_none() {
                first = Some(self.diagnose(lba, expected, block));
            }
        }
        (wrong, first)
    }

    fn holds(&self, lba: u64, content: Content, block: &[u8]) -> bool {
        match content {
            Content::Unknown => true,
            Content::Zeroes(_) => is_zero(block),
            Content::Data(sequence) => self.is_written(lba, u64::from(sequence), block),
        }
    }

    fn is_written(&self, lba: u64, sequence: u64, block: &[u8]) -> bool {
        let mut words = self.words(lba, sequence);
        let difference =
            block.chunks_exact(WORD).fold(0, |difference, word| difference | words.next() ^ load(word));
        difference == 0
    }

    #[cold]
    fn diagnose(&self, lba: u64, expected: [Content; 2], block: &[u8]) -> Mismatch {
        let mut wanted = expected[0].to_string();
        if expected[1] != expected[0] {
            wanted = format!("{wanted} or {}", expected[1]);
        }
        let (kind, found) = self.identify(lba, expected, block);
        Mismatch { lba, kind, expected: wanted, found }
    }

    fn identify(&self, lba: u64, expected: [Content; 2], block: &[u8]) -> (MismatchKind, String) {
        let Some(head) = self.head(block) else {
            return match () {
                () if is_zero(block) => (MismatchKind::Lost, "zeroes".to_owned()),
                () if load(block) == SPOILT => (MismatchKind::Corrupt, "an untouched buffer".to_owned()),
                () if self.has_own_tail(lba, expected, block) => {
                    (MismatchKind::Torn, "only the end of it".to_owned())
                }
                () => (MismatchKind::Corrupt, format!("foreign data {:#018x}", load(block))),
            };
        };
        let Head { lba: found, sequence } = head;
        if !self.is_written(found, sequence, block) {
            return (MismatchKind::Torn, format!("lba {found} write {sequence} mixed with something else"));
        }
        if found != lba {
            return (MismatchKind::Misplaced, format!("lba {found} write {sequence}"));
        }
        let newest = expected.iter().map(|content| content.sequence()).max().unwrap_or(0);
        let kind = if sequence <= u64::from(newest) { MismatchKind::Stale } else { MismatchKind::Corrupt };
        (kind, format!("write {sequence}"))
    }

    /// Whether the last word is right although the head is not.
    fn has_own_tail(&self, lba: u64, expected: [Content; 2], block: &[u8]) -> bool {
        let last = self.block_size / WORD - 1;
        expected.iter().any(|content| {
            let mut words = self.words(lba, u64::from(content.sequence()));
            (0..last).for_each(|_| _ = words.next());
            words.next() == load(&block[last * WORD..])
        })
    }

    fn head(&self, block: &[u8]) -> Option<Head> {
        let is_ours = load(block) == MAGIC ^ self.salt;
        is_ours.then(|| Head { lba: load(&block[WORD..]), sequence: load(&block[2 * WORD..]) })
    }

    fn words(&self, lba: u64, sequence: u64) -> Words {
        let body = mix(self.salt ^ mix(lba ^ mix(sequence)));
        Words { position: 0, head: [MAGIC ^ self.salt, lba, sequence], body }
    }
}

/// The words of a block.
struct Words {
    position: usize,
    head: [u64; 3],
    body: u64,
}

impl Words {
    #[inline(always)]
    fn next(&mut self) -> u64 {
        self.body = self.body.wrapping_add(STRIDE);
        let word = if self.position < self.head.len() { self.head[self.position] } else { self.body };
        self.position += 1;
        word
    }
}

fn load(bytes: &[u8]) -> u64 {
    let mut word = [0; WORD];
    word.copy_from_slice(&bytes[..WORD]);
    u64::from_le_bytes(word)
}

fn is_zero(block: &[u8]) -> bool {
    block.chunks_exact(WORD).fold(0, |all, word| all | load(word)) == 0
}

const WORD: usize = 8;
const MAGIC: u64 = 0x6e6f_6e65_745f_6b6c;
const SPOILT: u64 = 0x5a5a_5a5a_a5a5_a5a5;
/// Odd, so that no word of a block comes twice.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame { salt: 99, block_size: 512 };

    fn block(lba: u64, sequence: u32) -> Vec<u8> {
        let mut data = vec![0; 512];
        FRAME.fill(lba, sequence, &mut data);
        data
    }

    #[track_caller]
    fn check(data: &[u8], expected: [Content; 2], kind: Option<MismatchKind>) {
        let (wrong, first) = FRAME.check(10, expected, data);
        assert_eq!(first.map(|mismatch| mismatch.kind), kind);
        assert_eq!(wrong > 0, kind.is_some());
    }

    fn written(sequence: u32) -> [Content; 2] {
        [Content::Data(sequence); 2]
    }

    #[test]
    fn what_was_written_is_found() {
        check(&[block(10, 5), block(11, 5)].concat(), written(5), None);
        check(&[block(10, 5), block(11, 4)].concat(), [Content::Data(4), Content::Data(5)], None);
        check(&[0; 512], [Content::Zeroes(3); 2], None);
        check(&[1; 512], [Content::Unknown; 2], None);
    }

    #[test]
    fn every_kind_of_wrong_block_is_told_from_the_others() {
        check(&[0; 512], written(5), Some(MismatchKind::Lost));
        check(&block(10, 4), written(5), Some(MismatchKind::Stale));
        check(&block(10, 2), [Content::Zeroes(3); 2], Some(MismatchKind::Stale));
        check(&block(12, 5), written(5), Some(MismatchKind::Misplaced));
        check(&block(10, 6), written(5), Some(MismatchKind::Corrupt));
        check(&[7; 512], written(5), Some(MismatchKind::Corrupt));
        let torn = [&block(10, 5)[..256], &block(10, 4)[256..]].concat();
        check(&torn, written(5), Some(MismatchKind::Torn));
        let head_lost = [&[0; 256], &block(10, 5)[256..]].concat();
        check(&head_lost, written(5), Some(MismatchKind::Torn));
        let mut untouched = block(10, 5);
        FRAME.spoil(&mut untouched);
        check(&untouched, written(5), Some(MismatchKind::Corrupt));
    }

    #[test]
    fn data_of_another_run_is_foreign() {
        let mut data = vec![0; 512];
        Frame { salt: 98, ..FRAME }.fill(10, 5, &mut data);
        check(&data, written(5), Some(MismatchKind::Corrupt));
    }

    #[test]
    fn one_wrong_bit_is_found_wherever_it_is() {
        for bit in 0..512 * 8 {
            let mut data = block(10, 5);
            data[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FRAME.check(10, written(5), &data).0, 1, "bit {bit}");
        }
    }

    #[test]
    fn a_mismatch_says_where_and_what() {
        let (_, first) = FRAME.check(10, written(5), &block(10, 4));
        assert_eq!(first.unwrap().to_string(), "lba 10: stale: expected write 5, found write 4");
    }
}
