//! Feeds any bytes to the parser of write-intent bitmaps of arrays.
//!
//! Every input is refused or read, and what was read is read again from what is
//! built of it.

#![cfg_attr(fuzzing, no_main)]
#![forbid(unsafe_code)]

tenon_fuzz::target!(bdev_raid::fuzz::fuzz_bitmap);
