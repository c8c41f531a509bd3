//! The fake host: the complete function table of the contract in one thread,
//! on a virtual clock, with every order that the contract leaves open chosen
//! by a seed. [`FakeHost`] is the test's side of it; `table` is the plugin's.
//!
//! Below it: `world` (all state of one fake host), `schedule` (reactors),
//! `module` (loading), `operation` and `examine` (tokens), `device`,
//! `descriptor`, `removal` (lifecycle), `channel`, `gate`, `reshape` (data
//! path). Nothing here is fast; everything here is strict.

pub(crate) mod channel;
pub(crate) mod descriptor;
pub(crate) mod device;
pub(crate) mod event;
pub(crate) mod examine;
mod fake;
pub(crate) mod flight;
pub(crate) mod gate;
pub(crate) mod lifecycle;
pub(crate) mod memory;
pub(crate) mod module;
pub(crate) mod operation;
mod publish;
pub(crate) mod removal;
mod reset;
mod reshape;
mod rules;
pub(crate) mod schedule;
pub(crate) mod shared;
mod table;
mod teardown;
pub(crate) mod world;

pub use fake::{Builder, FakeHost};
pub use module::{IntoPlugin, LoadError, ModuleId, Plugin};
pub use operation::{OpError, Pending};
pub use schedule::Place;
pub use shared::LogLine;

pub use device::DeviceInfo;
