//! `malloc`: block devices in memory. Reads can be lent: the consumer gets a
//! pointer into the device instead of a copy. `config` has the parameters,
//! `bdev` the device, `format` where its blocks and their metadata lie.
#![forbid(unsafe_code)]

mod bdev;
mod config;
mod format;

use std::cell::Cell;

use tenon_sdk::{Error, Host, Module, NoConfig, OpToken, export_plugin};

use bdev::MallocBdev;
use config::{MallocParams, Metadata};
use format::{Extended, Plain, Separate};

/// The module.
pub struct MallocModule {
    /// For devices without a name: `Malloc0`, `Malloc1`, …
    next_number: Cell<u32>,
}

impl Module for MallocModule {
    type Config = NoConfig;
    type Params = MallocParams;

    fn init(_: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(MallocModule { next_number: Cell::new(0) })
    }

    fn validate(params: &MallocParams) -> Result<(), Error> {
        params.check()
    }

    fn create(&self, mut params: MallocParams, token: OpToken) {
        token.run(|op| {
            if params.name.is_none() {
                params.name = Some(self.free_name(op.host())?);
            }
            let (host, spec) = (op.host(), params.spec()?);
            match params.metadata() {
                Metadata::None => op.register(spec, MallocBdev::new(host, &params, Plain::new(&params))?)?,
                Metadata::Interleaved => {
                    op.register(spec, MallocBdev::new(host, &params, Extended::new(&params))?)?
                }
                Metadata::Separate => {
                    let format = Separate::new(host, &params)?;
                    op.register(spec, MallocBdev::new(host, &params, format)?)?
                }
            };
            Ok(params.name)
        });
    }
}

impl MallocModule {
    fn free_name(&self, host: Host) -> Result<String, Error> {
        for _ in 0..MAX_NAMES_TRIED {
            let name = format!("Malloc{}", self.next_number.replace(self.next_number.get().wrapping_add(1)));
            if host.registered(&name).is_none() && host.find(&name).is_none() {
                return Ok(name);
            }
        }
        Err(Error::exists("Malloc*"))
    }
}

/// As many devices a host may have.
const MAX_NAMES_TRIED: u32 = 65_536;

export_plugin! {
    module: MallocModule,
    name: "malloc",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["bdev"],
    rpc: ["bdev_malloc_create", "bdev_malloc_delete"],
}
