//! `null`: devices that complete everything at once and store nothing. For
//! measuring what is above them. `config` has the parameters, `bdev` the device.
#![forbid(unsafe_code)]

mod bdev;
mod config;

use tenon_sdk::{Error, Host, Module, NoConfig, OpToken, export_plugin};

use bdev::NullBdev;
use config::{NullParams, Resize};

/// The module.
pub struct NullModule {
    host: Host,
}

impl Module for NullModule {
    type Config = NoConfig;
    type Params = NullParams;

    fn init(host: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(NullModule { host })
    }

    fn init_complete(&self) {
        if let Err(error) = self.host.rpc::<Self, Resize>("bdev_null_resize", Self::resize) {
            log::error!("method not registered method=bdev_null_resize error={error}");
        }
    }

    fn validate(params: &NullParams) -> Result<(), Error> {
        params.check()
    }

    fn create(&self, params: NullParams, token: OpToken) {
        token.run(|op| {
            params.check()?;
            op.register(params.spec()?, NullBdev::new(&params))?;
            Ok(params.name.clone())
        });
    }

    fn update(&self, name: &str, params: NullParams, token: OpToken) {
        token.run(|_| {
            params.check()?;
            let bdev = self.host.bdev::<NullBdev>(name).ok_or_else(|| Error::not_found(name))?;
            bdev.update(self.host, &params)?;
            Ok(true)
        });
    }
}

impl NullModule {
    fn resize(&self, params: Resize, token: OpToken) {
        token.run(|_| {
            let name = &params.name;
            let bdev = self.host.bdev::<NullBdev>(name).ok_or_else(|| Error::not_found(name))?;
            bdev.resize(self.host, params.new_size)?;
            Ok(true)
        });
    }
}

export_plugin! {
    module: NullModule,
    name: "null",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["bdev"],
    rpc: ["bdev_null_create", "bdev_null_delete", "bdev_null_resize"],
}
