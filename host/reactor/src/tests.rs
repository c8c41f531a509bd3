//! Tests of the crate as a whole, through its public functions.
//!
//! `simulated` on the virtual clock, by seed; `threads` for what only threads and
//! the kernel can show. Tests of one file are in that file.

mod simulated;
mod threads;
