//! Plugins of a Tenon host: finding them, deciding whether they may run,
//! loading, initialising, superseding and retiring them.
//!
//! * [`Catalog`]: what is installed, read from the files without loading them.
//! * [`Modules`]: the loaded ones. A module is loaded when it is first needed
//!   ([`Modules::ensure`]) or by its file ([`Modules::load_file`]).
//! * [`Module`]: one of them, with its callbacks as safe functions.
//! * [`log_bridge`]: the host's side of a plugin's log lines.
//!
//! # The way in
//!
//! ```text
//! file ─► trust (owner, mode) ─► elf_file, metadata ─► store (copy) ─► dlopen
//!      ─► gate 1: magic, major, sizes (callbacks) ─► gate 2: layouts (certificate) ─► init ─► running
//! ```
//!
//! Everything up to `init` runs on threads of its own and has a deadline; a
//! module that hangs is failed and its thread left behind. Every refusal names
//! the file, the reason and the remedy ([`PluginError`]).
//!
//! # The way out
//!
//! Nothing is unmapped. A module is quiesced, its devices go, `fini` is
//! answered, and it is retired. A newer version is loaded beside the older one
//! under a path of its own; new devices go to the newer one.
//!
//! Does not know devices, RPC or configuration: those are the layers above,
//! which listen ([`Listener`]).

mod apart;
mod callbacks;
mod catalog;
mod certificate;
mod elf_file;
mod error;
mod image;
mod load;
pub mod log_bridge;
mod metadata;
mod module;
mod retire;
mod set;
mod state;
mod store;
mod trust;
mod version;
mod watch;

pub use apart::InitOn;
pub use catalog::{
    Catalog, CatalogChange, Origin, PLUGIN_DIR_VARIABLE, PluginDirectory, PluginInfo, default_directories,
    inspect,
};
pub use elf_file::fuzz_metadata;
pub use error::{LoadError, ModuleError, Place, PluginError};
pub use image::{CheckReport, LayoutCheck, check, open_unstarted};
pub use load::Existing;
pub use metadata::Metadata;
pub use module::{Call, Callback, Module, ModuleInfo, ModuleRef, Refusal};
pub use retire::DrainCause;
pub use set::{DEFAULT_FINI_DEADLINE, DEFAULT_INIT_DEADLINE, Listener, Modules, ModulesOptions};
pub use state::{InvalidTransition, ModuleEvent, ModuleState};
pub use trust::Trust;
pub use version::Version;
pub use watch::WatchError;
