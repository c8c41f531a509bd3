//! Feeds any bytes to the cutter and the reader of calls.
//!
//! Any local process may connect: every input must be cut into the same texts
//! however it arrives, and each text end in calls or in an error to answer.

#![cfg_attr(fuzzing, no_main)]
#![forbid(unsafe_code)]

tenon_fuzz::target!(tenon_control::fuzz_rpc_frame);
