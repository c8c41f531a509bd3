//! Block devices: who exists, who holds whom, and the gate every I/O passes.
//!
//! The control plane lives on the control reactor behind [`Core`]: names,
//! descriptors, claims, the examination of new devices, removal, and the
//! operations (create, delete, …) that an operator or a client asks for. It is
//! what [`host_api`] offers to modules and what the layers above call. The data
//! plane, in [`io`], runs on data reactors and takes no lock per I/O.
//!
//! # Architecture
//!
//! ```text
//!   upper layers ── Core ──┐                        ┌── HostApiV1 ── modules
//!                          ▼                        ▼
//!        operation ──► registry ──► examine ──► ready ──► removal
//!            │          names        tokens    claims     orphan · told · drained · destructed
//!            └ reply after examination          │
//!                                               ▼
//!                              io::Gate, one per device, a channel per reactor
//! ```
//!
//! * Everything here belongs to the control reactor and is reached without locks. State is borrowed
//!   for one step at a time and never while a module's code runs: a module may call back.
//! * What is told to others is told later, from a queue ([`Core`]'s), never from inside the
//!   call that caused it.
//! * Objects are named by handles of index and generation. A stale handle fails.
//! * Whatever waits, waits with a deadline; when it passes, the holder is named, and nothing is
//!   freed under it.
//!
//! # Files
//!
//! `core` owns the records and the queue of what is done later, `registry` the devices by handle and
//! `names` by name. A device comes by `register` and `examine`, is held through `descriptor` and `claim`,
//! changes by `backing`, and goes by `removal`; `lifecycle` says what may follow what, `gate_steps` what
//! the gate is asked for and in which order, `event` tells openers. A client's wish is a `request`, its
//! course an `operation` (`op_state`), what modules owe for it `owed`, what goes on `activity`, how long
//! it may take `deadline`. `host_api` is the modules' door; `module_events`, `rpc_table`, `hotplug`,
//! `file_watch`, `memory`, `buffers` and `metrics` are what else it needs. `snapshot`, `saved`, `notify`,
//! `measure` and `census` report; `shutdown` ends it all.
//!
//! Does not load modules (`tenon-modules`) and does not know RPC or configuration files.

mod activity;
mod backing;
mod buffers;
mod callbacks;
mod census;
mod claim;
mod core;
mod deadline;
mod descriptor;
mod error;
mod event;
mod examine;
mod file_watch;
mod gate_steps;
mod host_api;
mod hotplug;
pub mod io;
mod lifecycle;
mod measure;
mod memory;
mod metrics;
mod module_events;
mod names;
mod notify;
mod op_state;
mod operation;
mod owed;
mod register;
mod registry;
mod removal;
mod request;
mod rpc_table;
mod saved;
mod shutdown;
mod slab;
mod snapshot;
mod thread;

pub use crate::core::{Core, CoreOptions};
pub use buffers::{buffer_get, buffer_put, buffer_room};
pub use census::{ObjectCounts, ReactorCounts};
pub use claim::Claim;
pub use descriptor::{Channel, Descriptor, channel_get};
pub use error::OpError;
pub use event::Event;
pub use examine::{ExamineNote, Verdict};
pub use host_api::{host_api, register_host_table};
pub use io::{
    ChannelStat, DEFAULT_RESET_DRAIN_TIMEOUT, Gate, GateCensus, HistogramData, IoStat, OpStat, OpStats,
    QosLimits, QueueDepthStat, ResetMode,
};
pub use lifecycle::State;
pub use memory::{RegionSnapshot, device_alloc, device_free, memory_regions};
pub use metrics::{MetricSample, metrics};
pub use names::{NameError, check_name};
pub use notify::{ListenerId, Notification};
pub use operation::Answer;
pub use removal::{RemovalStep, reason_text};
pub use saved::{Awaited, SavedEntry};
pub use shutdown::ShutdownReport;
pub use snapshot::{BdevSnapshot, ClaimSnapshot, HolderSnapshot, OperationSnapshot, RemovalSnapshot};
