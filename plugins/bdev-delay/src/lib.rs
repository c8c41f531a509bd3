//! `delay`: devices that complete reads and writes of another device later than
//! that one does. `config` has the parameters, `latency` the times, which may
//! change while I/O is in flight, `bdev` the device, `channel` its data path.
#![forbid(unsafe_code)]

mod bdev;
mod channel;
mod config;
mod latency;

use std::sync::Arc;

use tenon_sdk::{Error, Host, Module, NoConfig, OpToken, export_plugin};

use bdev::DelayBdev;
use config::{DelayParams, UpdateLatency};

/// The module.
pub struct DelayModule {
    host: Host,
}

impl Module for DelayModule {
    type Config = NoConfig;
    type Params = DelayParams;

    fn init(host: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(DelayModule { host })
    }

    fn init_complete(&self) {
        let method = "bdev_delay_update_latency";
        if let Err(error) = self.host.rpc::<Self, UpdateLatency>(method, Self::update_latency) {
            log::error!("method not registered method={method} error=\"{error}\"");
        }
    }

    fn validate(params: &DelayParams) -> Result<(), Error> {
        params.check()
    }

    fn create(&self, params: DelayParams, token: OpToken) {
        token.run(|op| {
            let (spec, bdev) = DelayBdev::open(op.host(), &params)?;
            op.register(spec, bdev)?;
            Ok(params.name.clone())
        });
    }

    fn update(&self, name: &str, params: DelayParams, token: OpToken) {
        token.run(|_| {
            params.check()?;
            self.bdev(name)?.update(&params)?;
            Ok(true)
        });
    }
}

impl DelayModule {
    fn update_latency(&self, params: UpdateLatency, token: OpToken) {
        token.run(|_| {
            let latency = config::checked_ns(&params.delay_bdev_name, params.latency_us)?;
            self.bdev(&params.delay_bdev_name)?.set_latency(params.latency_type, latency);
            Ok(true)
        });
    }

    fn bdev(&self, name: &str) -> Result<Arc<DelayBdev>, Error> {
        self.host.bdev::<DelayBdev>(name).ok_or_else(|| Error::not_found(name))
    }
}

export_plugin! {
    module: DelayModule,
    name: "delay",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["bdev"],
    rpc: ["bdev_delay_create", "bdev_delay_delete", "bdev_delay_update_latency"],
}
