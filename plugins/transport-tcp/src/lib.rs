//! NVMe over TCP: both roles' protocol, and the transport plugin around it.
//!
//! # Architecture
//!
//! ```text
//!   listener (control reactor)         poll_group (each data reactor)
//!       │ Accepted                        │ turns, deadlines
//!       └──── target core chooses ───► host_connection ──► connection::TargetConnection (sans-IO)
//!                                         │      │
//!                                      socket   requests ◄──► target core
//! ```
//!
//! [`pdu`] has the wire structures, [`codec`] the framing, [`peer_error`] what a
//! peer can do wrong, [`connection`] the state machines of target and
//! initiator. They see bytes, times and events only. `target` is the contract's
//! table of the target role, `listener`, `poll_group`, `host_connection`,
//! `host_request`, `phase` and `inbox` what is behind it; `channel` and `tls` secure it, `socket` serves both
//! roles. Sections
//! cited are those of the NVM Express TCP Transport Specification, revision 1.0.
// UNSAFETY: answers a query with a raw pointer to a static table.

mod channel;
pub mod codec;
pub mod config;
pub mod connection;
pub mod fuzz;
mod host_connection;
mod host_request;
mod inbox;
mod initiator;
mod initiator_group;
mod initiator_table;
mod listener;
pub mod pdu;
pub mod peer_error;
mod phase;
mod poll_group;
pub mod socket;
mod target;
#[cfg(feature = "tls")]
mod tls;

use std::ffi::c_void;

use tenon_sdk::abi::Str;
use tenon_sdk::abi::transport::{QUERY_TRANSPORT, TransportFlags, TransportV1};
use tenon_sdk::{Error, Host, Module, NoConfig, export_plugin, transport_schema};

use crate::config::TcpOptions;

pub use fuzz::{fuzz_codec, fuzz_connection};
pub use nvme_spec;

/// The module.
pub struct TcpTransport;

impl Module for TcpTransport {
    type Config = NoConfig;
    /// Of a `[[transport]]` table; the module makes no devices.
    type Params = TcpOptions;

    fn init(_: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(Self)
    }

    fn validate(options: &TcpOptions) -> Result<(), Error> {
        options.check()
    }

    fn schema() -> serde_json::Value {
        transport_schema::<TcpOptions>()
    }

    fn query(id: &str, version: u32) -> *const c_void {
        if (id, version) == (QUERY_TRANSPORT, 1) { (&raw const TRANSPORT).cast() } else { std::ptr::null() }
    }
}

static TRANSPORT: TransportV1 = TransportV1 {
    size: size_of::<TransportV1>() as u32,
    flags: TransportFlags(
        TransportFlags::IN_CAPSULE_DATA.0
            | TransportFlags::ANY_MEMORY.0
            | TransportFlags::LENT_MEMORY.0
            | if cfg!(feature = "tls") {
                TransportFlags::SECURE_CHANNEL.0 | TransportFlags::SECURE_INITIATOR.0
            } else {
                0
            },
    ),
    name: Str::new("TCP"),
    trtype: target::TRTYPE_TCP as u32,
    reserved: 0,
    target: &raw const target::TARGET_OPS,
    initiator: &raw const initiator_table::OPS,
};

export_plugin! {
    module: TcpTransport,
    name: "transport_tcp",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["transport"],
    rpc: [],
}
