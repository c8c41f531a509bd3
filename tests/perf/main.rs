//! `tenon perf` as an operator runs it: what it prints, when it fails, and that
//! a running load allocates nothing, in no part of the process.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod allocation;
mod command;
