//! Entry points for fuzzing: any bytes end in an answer, and what was read is read
//! again from what is built of it. The targets that call them and their corpora
//! are in `tests/fuzz`.

use crate::ondisk::bitmap::Bitmap;
use crate::ondisk::journal::Entry;
use crate::ondisk::record::Record;
use crate::superblock::Superblock;

/// Feeds any bytes to the parsers of superblocks and records.
///
/// # Panics
///
/// If what was read is not what is built of it.
pub fn fuzz_superblock(input: &[u8]) {
    if let Ok(superblock) = Superblock::parse(input) {
        assert_eq!(Superblock::parse(&superblock.encode()).as_ref(), Ok(&superblock));
    }
    if let Some(record) = Record::parse(input) {
        assert_eq!(Record::parse(&record.encode()).as_ref(), Some(&record));
    }
}

/// Feeds any bytes to the parser of bitmaps.
///
/// # Panics
///
/// If what was read is not what is built of it.
pub fn fuzz_bitmap(input: &[u8]) {
    if let Some(bitmap) = Bitmap::parse(input) {
        assert_eq!(Bitmap::parse(&bitmap.encode()).as_ref(), Some(&bitmap));
    }
}

/// Feeds any bytes to the parser of journal entries; the first chooses the size of a block.
///
/// # Panics
///
/// If what was read is not what is built of it.
pub fn fuzz_journal(input: &[u8]) {
    let Some((choice, slot)) = input.split_first() else { return };
    let block_bytes = 512 << (choice % 4);
    if let Some((entry, payload)) = Entry::parse(slot, FOOTER, block_bytes) {
        let mut again = payload.to_vec();
        again.resize(payload.len() + FOOTER, 0);
        entry.put(&mut again, FOOTER);
        assert_eq!(Entry::parse(&again, FOOTER, block_bytes), Some((entry, payload)));
    }
}

/// Smaller than a real one, so that inputs stay small.
const FOOTER: usize = 128;
