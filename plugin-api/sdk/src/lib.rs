//! Safe Rust for Tenon plugins. A plugin crate implements [`Module`], [`Bdev`]
//! and [`Channel`], says [`export_plugin!`], and can `#![forbid(unsafe_code)]`:
//! every raw pointer of the contract (`tenon-abi`) stays in here.
//!
//! ```
//! use std::rc::Rc;
//! use tenon_sdk::{
//!     Bdev, BdevOp, BdevSpec, Channel, Error, Host, Io, IoStatus, Module, NoConfig, OpSet, OpToken, Reactor,
//! };
//! # mod serde { pub use tenon_sdk::serde::*; }
//! # mod schemars { pub use tenon_sdk::schemars::*; }
//!
//! #[derive(tenon_sdk::serde::Deserialize, tenon_sdk::schemars::JsonSchema)]
//! # #[serde(crate = "tenon_sdk::serde")]
//! # #[schemars(crate = "tenon_sdk::schemars")]
//! struct Params {
//!     name: String,
//!     num_blocks: u64,
//! }
//!
//! struct Zeroes;
//! struct ZeroDevice;
//! struct ZeroChannel;
//!
//! impl Module for Zeroes {
//!     type Config = NoConfig;
//!     type Params = Params;
//!
//!     fn init(_: Host, _: NoConfig) -> Result<Self, Error> {
//!         Ok(Zeroes)
//!     }
//!
//!     fn create(&self, params: Params, token: OpToken) {
//!         token.run(|op| {
//!             let spec = BdevSpec::new(&params.name, 512, params.num_blocks).ops(OpSet::of(&[BdevOp::Read]));
//!             op.register(spec, ZeroDevice)?;
//!             Ok(params.name.clone())
//!         });
//!     }
//! }
//!
//! impl Bdev for ZeroDevice {
//!     type Channel = ZeroChannel;
//!
//!     fn channel(&self, _: Reactor) -> Result<Rc<ZeroChannel>, Error> {
//!         Ok(Rc::new(ZeroChannel))
//!     }
//! }
//!
//! impl Channel for ZeroChannel {
//!     type PerIo = ();
//!
//!     fn submit(&self, mut io: Io<Self>) {
//!         for buffer in io.buffers_mut() {
//!             buffer.fill(0);
//!         }
//!         io.complete(IoStatus::SUCCESS);
//!     }
//! }
//!
//! tenon_sdk::export_plugin! {
//!     module: Zeroes,
//!     name: "zeroes",
//!     version: env!("CARGO_PKG_VERSION"),
//!     provides: ["bdev"],
//!     rpc: [],
//! }
//! # fn main() {}
//! ```
//!
//! # Threads
//! [`Module`] and the lifecycle of [`Bdev`] belong to the *control thread*. A [`Channel`] belongs to the reactor
//! that opened it; so do its pollers, timers and base channels, none of which is `Send`.
//!
//! # Re-entrance
//! Completing an I/O may submit the next one to the same channel before `complete` returns, so callbacks take
//! `&self`. Keep state in `Cell` and [`IoQueue`]; hold no `RefCell` borrow across [`Io::complete`], a forward, or a
//! call of the host.
//!
//! # Panics
//! On the control path a panic becomes an error answer and the host lives. On the data path it aborts the
//! process, because half an I/O cannot be taken back.
#![warn(missing_docs)]

mod base;
mod bdev;
mod bridge;
mod channel;
mod checksum;
mod control;
mod error;
mod export;
mod fabric;
mod fan_out;
mod follow;
mod forward;
mod host;
mod io;
mod lend;
mod let_go;
mod module;
mod op;
mod queue;
mod request;
#[cfg(test)]
mod rig;
mod spec;
mod store;
#[cfg(test)]
mod stub;
mod superblock;
mod token;
mod units;

pub use base::{Access, BaseChannel, BaseEvent, BdevInfo, Claim, Descriptor};
pub use bdev::{Bdev, Publish};
pub use channel::{Channel, Children, IoBatch, Released, Upcoming, Victim};
pub use checksum::crc32c;
pub use control::ControlCell;
pub use error::Error;
pub use fabric::{
    Carried, ConnectOptions, FabricAddress, FabricCommand, FabricEvent, FabricGroup, FabricQueue,
    FabricTransport, IoOrOwn, NotSubmitted, OwnPayload, PayloadOf, SharedTransport,
};
pub use fan_out::{ChildDone, Fan, FanRequest};
pub use forward::{ChildRequest, Forwarded, TooManyPieces};
pub use host::event_loop::{FdWatch, Poll, Poller};
pub use host::key::{ChannelKey, HeldKey};
pub use host::memory::{Buffer, DmaBuf, MemoryChange, MemoryWatch, SharedBuf, fetch_ahead};
pub use host::publish::{Counter, Gauge, Hotplug, HotplugChange, HotplugWatch};
pub use host::timer::{Alarm, Timer};
pub use host::{Host, Reactor};
pub use io::{Io, Written};
pub use lend::Lender;
pub use let_go::LetGo;
pub use module::{Exported, Module, NoConfig, NoParams, changed_options, transport_schema};
pub use op::{BdevOp, OpSet};
pub use queue::IoQueue;
pub use spec::BdevSpec;
pub use superblock::{Superblock, SuperblockFormat};
pub use tenon_abi::{
    BdevFlags, BdevHandle as BdevId, BdevState, CopyRange, IoFlags, IoStatus, IoVec, Limits, MemoryRegion,
    Reason, errno,
};
pub use token::{ExamineToken, Examined, OpToken};
pub use units::{ByteSize, Microseconds, Milliseconds, Seconds, TimeSpan, UnitError};

/// The raw contract, for tables of their own (transports).
pub use tenon_abi as abi;
pub use {schemars, serde, serde_json, zeroize};

/// What `export_plugin!` expands to. Not part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::bridge::loaded;
    pub use crate::export::{ABI, descriptor, metadata, metadata_len};
    #[cfg(feature = "certificate")]
    pub use crate::export::{certificate, certificate_header};
    pub use crate::module::{Callbacks, Slot};
    #[cfg(feature = "certificate")]
    pub use {abi_stable, tenon_abi::certificate::CertificateRef};
}

#[cfg(test)]
mod data_path_tests;
