//! Proves a block-device plugin without the host: a fake host on a virtual
//! clock, RAM devices that misbehave by plan, and the conformance suite that
//! every module must pass.
//!
//! # For plugin authors
//!
//! Link the plugin as an rlib into a test and name its entry function:
//!
//! ```no_run
//! # mod bdev_mine { pub fn plugin() -> *const tenon_testkit::abi::PluginDescV1 { std::ptr::null() } }
//! use tenon_testkit::{Conformance, bdev_conformance};
//!
//! # #[allow(unused)]
//! #[test]
//! fn conforms_to_the_bdev_contract() {
//!     let suite = Conformance::new(r#"{"name":"m0","size":"16MiB","block_size":512}"#);
//!     bdev_conformance(bdev_mine::plugin, suite);
//! }
//! ```
//!
//! A module that stands on other devices names them with [`Conformance::bases`]; one that does real I/O says
//! [`Conformance::real_io`]. `TENON_TESTKIT_SEEDS=100 cargo test` tries more orders; a failure names its seed, and
//! `TENON_TESTKIT_SEED=<seed>` repeats it alone. A plugin in C, or a finished binary, is named by
//! [`Plugin::library`].
//!
//! For tests of what is special about a module, drive a [`FakeHost`] directly:
//!
//! ```no_run
//! # mod bdev_mine { pub fn plugin() -> *const tenon_testkit::abi::PluginDescV1 { std::ptr::null() } }
//! use tenon_testkit::{Access, BaseSpec, FakeHost, FaultPlan, Request};
//!
//! let host = FakeHost::new(1);
//! let base = host.add_base(BaseSpec::new("b0", 512, 2048).plan(FaultPlan::none().nomem_burst(3, 10)));
//! let module = host.load(bdev_mine::plugin, "{}").expect("it loads");
//! host.create(module, r#"{"name":"p0","base":"b0"}"#).expect("it is created");
//! let desc = host.open("p0", Access::Write).expect("it is there");
//! let channel = desc.channel(0).expect("a channel");
//! let io = channel.submit(Request::read(0, 8));
//! assert!(host.wait(&io).status.is_success());
//! ```
//!
//! Dropping the host ends everything in order and panics if the module violated the contract: an I/O completed
//! twice or never, a token forgotten, a descriptor left open, a byte written next to a payload ([`Fault`] lists
//! them all).
//!
//! What is demanded of a module beyond the contract's letter: `init` must work again after `fini` was answered,
//! since every check has a fresh host in the same process. Tests that use the same plugin wait for one another.
//!
//! Does not contain the real host; where the contract leaves an order open, the seed chooses.
#![warn(missing_docs)]

mod base;
mod conformance;
mod consumer;
mod filter;
mod host;
mod plan;
mod rng;
mod transport;
mod violation;

pub use base::{Arrival, BaseSpec, TestBase};
pub use conformance::{CheckResult, Conformance, Outcome, Report, bdev_conformance};
pub use consumer::{Access, Channel, Completion, Descriptor, Event, Io, Request};
pub use filter::Filter;
pub use host::{
    Builder, DeviceInfo, FakeHost, IntoPlugin, LoadError, LogLine, ModuleId, OpError, Pending, Place, Plugin,
};
pub use plan::FaultPlan;
pub use rng::Rng;
/// The contract itself, for the constants that tests name.
pub use tenon_abi as abi;
pub use transport::{TransportSuite, transport_conformance};
pub use violation::{Fault, Violation};
