//! Load on block devices: what `tenon perf` runs, and what tests use to keep a
//! device busy while something happens to it.
//!
//! [`start`] opens devices on the control reactor and puts one worker per
//! (reactor, device) on the data reactors. A worker owns its I/Os and buffers
//! from the start, so that a running load allocates nothing and takes no lock.
//!
//! ```text
//!   control: session ── opens, listens for REMOVE, collects ──► report
//!               │ start message                    ▲ outcome
//!               ▼                                  │
//!   reactor: worker ── request (what next) ── slots (I/Os, buffers) ── submit ──► device
//!               │         access · random              ▲ done
//!               └── latency (histograms) · pattern + ledger (what must be on the medium)
//! ```
//!
//! A device that completes inside `submit` is kept busy by a loop, not by
//! recursion: a completion only gives its slot back, and every submission
//! comes from the worker's poller. A device that goes is left: the worker
//! drains, puts its channel, and the session closes the descriptor.
//!
//! Knows neither RPC nor configuration files, and prints nothing.

mod access;
mod ledger;
mod pattern;
mod random;
mod report;
mod request;
mod session;
mod slots;
mod stage;
mod tally;
mod worker;
mod workload;

pub use ledger::StateError;
pub use pattern::{Mismatch, MismatchKind};
pub use report::{BdevReport, IoFailure, LatencyReport, OpReport, Report};
pub use session::{InFlight, Monitor, Plan, Progress, Running, StartError, start};
pub use tally::Histogram;
pub use workload::{
    Access, End, MAX_BATCH, MAX_BLOCK_BYTES, MAX_QUEUE_DEPTH, Timing, Workload, WorkloadError,
};
