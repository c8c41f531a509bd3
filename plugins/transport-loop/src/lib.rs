//! `transport_loop`: NVMe-oF inside one process, in both roles.
//!
//! An initiator finds a listener by its address and hands its commands over to
//! the target in this process, on the same reactor or on another one: no socket,
//! no wire format, one copy of the payload. For tests of everything above a
//! transport, and as the shortest example of one.
//!
//! `config` has the options, `listeners` says who listens where, `link` is one
//! connection with its two ends, `target` and `initiator` are the tables of the
//! two roles.
#![deny(unsafe_code)]

mod config;
#[allow(unsafe_code)]
mod initiator;
#[allow(unsafe_code)]
mod link;
mod listeners;
#[allow(unsafe_code)]
mod target;

use std::ffi::c_void;

use tenon_sdk::abi::Str;
use tenon_sdk::abi::transport::{QUERY_TRANSPORT, TransportFlags, TransportV1};
use tenon_sdk::{Error, Host, Module, NoConfig, export_plugin, transport_schema};

use crate::config::LoopOptions;

/// The module; it keeps nothing.
pub struct LoopModule;

impl Module for LoopModule {
    type Config = NoConfig;
    /// Of a `[[transport]]` table; the module makes no devices.
    type Params = LoopOptions;

    fn init(_: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(LoopModule)
    }

    fn validate(options: &LoopOptions) -> Result<(), Error> {
        options.check()
    }

    fn schema() -> serde_json::Value {
        transport_schema::<LoopOptions>()
    }

    fn query(id: &str, version: u32) -> *const c_void {
        if id == QUERY_TRANSPORT && version == 1 {
            return (&raw const TRANSPORT).cast();
        }
        std::ptr::null()
    }
}

/// What this plugin offers.
static TRANSPORT: TransportV1 = TransportV1 {
    size: size_of::<TransportV1>() as u32,
    flags: TransportFlags(
        TransportFlags::IN_CAPSULE_DATA.0 | TransportFlags::ANY_MEMORY.0 | TransportFlags::LENT_MEMORY.0,
    ),
    name: Str::new("LOOP"),
    trtype: TRTYPE as u32,
    reserved: 0,
    target: &raw const target::OPS,
    initiator: &raw const initiator::OPS,
};

/// Transport type and address family of a connection inside the process.
const TRTYPE: u8 = 254;

export_plugin! {
    module: LoopModule,
    name: "transport_loop",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["transport"],
    rpc: [],
}
