//! The kernel's own NVMe/TCP host and nvme-cli against the built process, its own
//! target against our initiator, and two processes with a bent wire between them.
//!
//! Every scenario needs root and a kernel with all that, which ordinary machines
//! lack: `cargo xtask interop` runs each in a machine of its own. Targets are
//! reached over the loopback device of that machine, or by `wire`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod changes;
mod connect;
mod data;
mod faults;
mod initiator;
mod initiator_access;
mod kernel;
mod nvmet;
mod paths;
mod wire;
