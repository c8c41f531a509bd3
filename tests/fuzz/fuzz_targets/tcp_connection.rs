//! Feeds any bytes to an NVMe/TCP connection; the first two choose role, options and piece size.
//!
//! Whatever a peer sends, every command is answered or let go of exactly once,
//! and nothing is sent after the end.

#![cfg_attr(fuzzing, no_main)]
#![forbid(unsafe_code)]

tenon_fuzz::target!(transport_tcp::fuzz_connection);
