//! The promise of the ABI, kept by the built process: plugins of every version
//! of the contract load, and what is no right plugin is refused in one line
//! while the host goes on.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod history;
mod old_plugins;
mod plugin_files;
mod wrong_plugins;
