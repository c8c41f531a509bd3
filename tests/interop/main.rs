//! The kernel's own NVMe/TCP host and nvme-cli against the built process.
//!
//! Every scenario needs root and a kernel with that host, which ordinary
//! machines lack: `cargo xtask interop` runs each in a machine of its own. The
//! target is reached over the loopback device of that machine.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod changes;
mod connect;
mod data;
mod faults;
mod initiator;
mod kernel;
mod nvmet;
mod paths;
mod wire;
