//! `passthru`: a device that passes everything to the one below it, unchanged.
//! The smallest stacked module: start reading here. `config` has the
//! parameters, `bdev` the device.
#![forbid(unsafe_code)]

mod bdev;
mod config;

use tenon_sdk::{Error, Host, Module, NoConfig, OpToken, export_plugin};

use bdev::PassthruBdev;
use config::PassthruParams;

/// The module; it keeps nothing.
pub struct PassthruModule;

impl Module for PassthruModule {
    type Config = NoConfig;
    type Params = PassthruParams;

    fn init(_: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(PassthruModule)
    }

    fn create(&self, params: PassthruParams, token: OpToken) {
        token.run(|op| {
            let (spec, bdev) = PassthruBdev::open(op.host(), &params)?;
            op.register(spec, bdev)?;
            Ok(params.name.clone())
        });
    }
}

export_plugin! {
    module: PassthruModule,
    name: "passthru",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["bdev"],
    rpc: ["bdev_passthru_create", "bdev_passthru_delete"],
}
