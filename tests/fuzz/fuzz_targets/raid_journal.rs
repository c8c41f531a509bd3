//! Feeds any bytes to the parser of entries of an array's journal; the first chooses the size of a block.
//!
//! Every input is refused or read, and what was read is read again from what is
//! built of it.

#![cfg_attr(fuzzing, no_main)]
#![forbid(unsafe_code)]

tenon_fuzz::target!(bdev_raid::fuzz::fuzz_journal);
