//! The control plane's face: configuration file, JSON-RPC, schema and metrics.
//!
//! `config` reads files, `apply` (with `nvmf` for what is exported) makes the
//! running host what a file says,
//! `rpc` is the protocol, `methods` the calls, `metrics` the Prometheus
//! endpoint. This crate knows every noun of the host; no other crate knows it.
//! Parameters of modules pass through as JSON: the module that owns them checks
//! them. Everything runs on the control reactor.
#![forbid(unsafe_code)]

pub mod apply;
pub mod config;
mod context;
mod doorway;
mod fuzz;
pub mod methods;
pub mod metrics;
pub mod nvmf;
mod nvmf_save;
pub mod rpc;
pub mod save;
pub mod schema;

pub use context::{Control, LogControl, ProcessControl, Stop};
pub use fuzz::{fuzz_config, fuzz_rpc_frame};
