//! `nvme`: block devices behind NVMe controllers, over any transport the host
//! has: an initiator with several paths that survives its target.
//!
//! * control thread: `config` and `options` have the parameters, `registry` the controllers and
//!   devices, `attach` and `discovery` bring them, `wishes` how paths are used, `saved` the tables
//!   that make it all again, `upkeep` what could not be arranged at once, `controller` one controller
//!   (its life in `state`, what is asked of it in `setup` and `scan`, and again in `changes`, its
//!   admin queue in `admin`, its log in `quiet`), `namespace` what makes a device, `rpc`, `commands`,
//!   `io_commands` and `report` what operators say and see, `bdev` a device;
//! * both: `credentials` has the keys of a controller, `authenticate` proves with them who is at either end;
//! * between: `door` says whether a controller's queues may be opened, `table`
//!   which paths a device has, `module` carries messages to the control thread;
//! * reactors: `side` has all of a reactor, `queue` a controller's I/O queue,
//!   `channel` the data path of a device, `select` chooses a path and reports it,
//!   `encode` makes commands, `status` judges their ends, `tally` and `errors` count them, `inject` has ends that
//!   operators want.
#![forbid(unsafe_code)]

mod attach;
mod authenticate;
mod bdev;
mod channel;
mod commands;
mod config;
mod controller;
mod credentials;
mod discovery;
mod door;
mod encode;
mod errors;
mod inject;
mod io_commands;
mod module;
mod namespace;
mod options;
mod queue;
mod quiet;
mod registry;
mod report;
mod rpc;
mod saved;
mod select;
mod side;
mod status;
mod table;
mod tally;
mod text;
mod upkeep;
mod wishes;

use std::rc::Rc;

use tenon_sdk::{ControlCell, Error, Host, Module, OpToken, export_plugin};

use config::{NvmeConfig, NvmeParams};
use controller::command::HostIdentity;
use registry::Registry;
use side::Side;

/// The module.
pub struct NvmeModule {
    host: Host,
    config: NvmeConfig,
    identity: HostIdentity,
    registry: ControlCell<Option<Rc<Registry>>>,
}

impl NvmeModule {
    /// Everything the module manages. Control thread.
    pub(crate) fn registry(&self) -> Rc<Registry> {
        let make = || Registry::new(self.host, self.config.clone(), self.identity.clone());
        self.registry.with(|registry| Rc::clone(registry.get_or_insert_with(make)))
    }
}

impl Module for NvmeModule {
    type Config = NvmeConfig;
    type Params = NvmeParams;

    const DELETE: Option<fn(&Self, &str, OpToken)> =
        Some(|module, name, token| module.registry().delete(name, token));

    fn init(host: Host, config: NvmeConfig) -> Result<Self, Error> {
        let identity = HostIdentity::of_machine();
        Ok(NvmeModule { host, config, identity, registry: ControlCell::new() })
    }

    fn validate_config(config: &NvmeConfig) -> Result<(), Error> {
        config.check()
    }

    fn config(&self) -> Option<serde_json::Value> {
        tenon_sdk::changed_options(&*self.registry().config.borrow())
    }

    fn validate(params: &NvmeParams) -> Result<(), Error> {
        params.check()?;
        params.check_table()?;
        config::Timers::of(params, &NvmeConfig::default()).check()
    }

    fn init_complete(&self) {
        if let Err(error) = rpc::register(self.host) {
            log::error!("methods of the module are missing error=\"{error}\"");
        }
    }

    fn configure(&self, config: NvmeConfig, token: OpToken) {
        *self.registry().config.borrow_mut() = config;
        token.done();
    }

    fn create(&self, params: NvmeParams, token: OpToken) {
        if params.svcname.is_some() {
            self.registry().start_mdns_discovery(params, token);
        } else if params.discovery {
            self.registry().start_discovery(params, token);
        } else {
            self.registry().attach(&params, true, token);
        }
    }

    fn quiesce(&self) {
        self.registry().discoveries().iter().for_each(|discovery| discovery.quiesce());
    }

    fn fini(self: Rc<Self>, token: OpToken) {
        let registry = self.registry();
        let host = self.host;
        let mut controllers = registry.end_discoveries();
        controllers.extend(registry.controllers(None));
        registry.detach(&controllers, move || {
            let ended = Rc::new(std::cell::Cell::new(Some((self, token))));
            let last = Rc::clone(&ended);
            let asked = host.each_reactor(
                move |_| Side::end(host),
                move || {
                    Side::end(host);
                    if let Some((module, token)) = last.take() {
                        drop(module);
                        token.done();
                    }
                },
            );
            if let Err(error) = asked
                && let Some((_, token)) = ended.take()
            {
                token.fail(error);
            }
        });
    }
}

export_plugin! {
    module: NvmeModule,
    name: "nvme",
    version: env!("CARGO_PKG_VERSION"),
    provides: ["bdev"],
    rpc: [
        "bdev_nvme_attach_controller",
        "bdev_nvme_create",
        "bdev_nvme_detach_controller",
        "bdev_nvme_get_controllers",
        "bdev_nvme_reset_controller",
        "bdev_nvme_enable_controller",
        "bdev_nvme_disable_controller",
        "bdev_nvme_get_io_paths",
        "bdev_nvme_set_preferred_path",
        "bdev_nvme_set_multipath_policy",
        "bdev_nvme_set_options",
        "bdev_nvme_start_discovery",
        "bdev_nvme_stop_discovery",
        "bdev_nvme_get_discovery_info",
        "bdev_nvme_start_mdns_discovery",
        "bdev_nvme_stop_mdns_discovery",
        "bdev_nvme_get_mdns_discovery_info",
        "bdev_nvme_get_path_iostat",
        "bdev_nvme_send_cmd",
        "bdev_nvme_get_controller_health_info",
        "bdev_nvme_apply_firmware",
        "bdev_nvme_set_hotplug",
        "bdev_nvme_set_keys",
        "bdev_nvme_add_error_injection",
        "bdev_nvme_remove_error_injection",
        "bdev_nvme_get_transport_statistics",
    ],
}
