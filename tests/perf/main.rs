//! `tenon perf` as an operator runs it: what it prints, when it fails, and that
//! a running load allocates nothing, in no part of the process.
#![forbid(unsafe_code)]

mod allocation;
mod command;
