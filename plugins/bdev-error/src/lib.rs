//! `error`: devices that let chosen I/O fail, hang or be corrupted, and pass
//! everything else to the device below. `config` has the parameters,
//! `injection` decides about one I/O, `bdev` is the device, `channel` its data
//! path.
#![forbid(unsafe_code)]

mod bdev;
mod channel;
mod config;
mod injection;

use tenon_sdk::{Error, Host, Module, NoConfig, OpToken, export_plugin};

use bdev::ErrorBdev;
use config::{ErrorParams, InjectError};

/// The module.
pub struct ErrorModule {
    host: Host,
}

impl Module for ErrorModule {
    type Config = NoConfig;
    type Params = ErrorParams;

    fn init(host: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(ErrorModule { host })
    }

    fn init_complete(&self) {
        let method = "bdev_error_inject_error";
        if let Err(error) = self.host.rpc::<Self, InjectError>(method, Self::inject) {
            log::error!("method not registered method={method} error=\"{error}\"");
        }
    }

    fn validate(params: &ErrorParams) -> Result<(), Error> {
        params.check()
    }

    fn create(&self, params: ErrorParams, token: OpToken) {
        token.run(|op| {
            let (spec, bdev) = ErrorBdev::open(op.host(), &params)?;
            op.register(spec, bdev)?;
            // What existing clients get; the name follows from the parameters.
            Ok(true)
        });
    }

    fn update(&self, name: &str, params: ErrorParams, token: OpToken) {
        token.run(|_| {
            params.check()?;
            let bdev = self.host.bdev::<ErrorBdev>(name).ok_or_else(|| Error::not_found(name))?;
            bdev.update(&params)?;
            Ok(true)
        });
    }
}

impl ErrorModule {
    fn inject(&self, params: InjectError, token: OpToken) {
        token.run(|_| {
            let (name, injection) = params.split()?;
            let bdev = self.host.bdev::<ErrorBdev>(&name).ok_or_else(|| Error::not_found(&name))?;
            bdev.inject(&injection)?;
            Ok(true)
        });
    }
}

export_plugin! {
    module: ErrorModule,
    name: "error",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["bdev"],
    rpc: ["bdev_error_create", "bdev_error_delete", "bdev_error_inject_error"],
}
