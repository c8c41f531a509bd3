//! `uring`: devices in files and on block devices of the kernel, by io_uring.
//!
//! * control thread: `config` has the parameters, `files` keeps the devices and
//!   what is known of their files, `presence` decides what a file that comes or
//!   goes means, `bdev` is a device;
//! * worker threads: `backing` opens files, `discard` is a system call;
//! * reactors: `channel` is the data path, `ring` the io_uring under it, `status`
//!   what its errors mean.
#![deny(unsafe_code)]

mod backing;
mod bdev;
mod channel;
mod config;
#[allow(unsafe_code)]
mod discard;
mod files;
mod presence;
#[allow(unsafe_code)]
mod ring;
mod status;

use std::rc::Rc;

use schemars::JsonSchema;
use serde::Deserialize;
use tenon_sdk::{ControlCell, Error, Host, Hotplug, Module, NoConfig, NoParams, OpToken, export_plugin};

use config::UringParams;
use files::Files;

/// The module.
pub struct UringModule {
    host: Host,
    files: ControlCell<Files>,
}

/// Parameters of methods about one device.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

impl Module for UringModule {
    type Config = NoConfig;
    type Params = UringParams;

    const DELETE: Option<fn(&Self, &str, OpToken)> = Some(Self::delete);

    fn init(host: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(UringModule { host, files: ControlCell::new() })
    }

    fn init_complete(&self) {
        let host = self.host;
        let results = [
            host.rpc::<Self, Named>("bdev_uring_rescan", Self::rescan),
            host.rpc::<Self, Named>("bdev_aio_rescan", Self::rescan),
            host.rpc::<Self, NoParams>("bdev_uring_get_waiting", Self::get_waiting),
        ];
        for error in results.into_iter().filter_map(Result::err) {
            log::error!("method not registered error=\"{error}\"");
        }
    }

    fn validate(params: &UringParams) -> Result<(), Error> {
        params.check()
    }

    fn create(&self, params: UringParams, token: OpToken) {
        self.open(params, token);
    }

    fn update(&self, name: &str, params: UringParams, token: OpToken) {
        token.run(|_| {
            params.check()?;
            self.update_in_place(name, &params)?;
            Ok(true)
        });
    }

    fn hotplug(&self, event: &Hotplug<'_>) {
        if event.subsystem == "file" {
            self.file_changed(event.id);
        }
    }

    fn quiesce(&self) {
        self.stop_all_waiting();
    }

    fn fini(self: Rc<Self>, token: OpToken) {
        // Watches and timers end here, on the control thread.
        drop(self.files.with(std::mem::take));
        drop(self);
        token.done();
    }
}

impl UringModule {
    fn rescan(&self, params: Named, token: OpToken) {
        self.look_for(&params.name, token);
    }

    /// The host removes the device, if there is one.
    fn delete(&self, name: &str, token: OpToken) {
        self.stop_waiting(name);
        token.done();
    }

    fn get_waiting(&self, _: NoParams, token: OpToken) {
        token.reply(&self.waiting());
    }
}

export_plugin! {
    module: UringModule,
    name: "uring",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["bdev"],
    rpc: [
        "bdev_uring_create",
        "bdev_uring_delete",
        "bdev_uring_rescan",
        "bdev_uring_get_waiting",
        "bdev_aio_create",
        "bdev_aio_delete",
        "bdev_aio_rescan",
    ],
}
