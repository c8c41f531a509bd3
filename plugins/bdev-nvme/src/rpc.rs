//! The methods of `bdev_nvme_*`, with the parameters existing clients give.

use std::rc::Rc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tenon_sdk::{Error, Host, Module, NoParams, OpToken};

use crate::NvmeModule;
use crate::commands::SendCommand;
use crate::config::{NvmeConfig, NvmeParams};
use crate::controller::state::Event;
use crate::controller::{Controller, Waiter};
use crate::credentials::{Credentials, KeyNames};
use crate::inject::{AddInjection, RemoveInjection};
use crate::select::{Policy, Rules, Selector};
use crate::wishes::Preferred;

/// One controller, or all without a name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    name: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Name {
    name: String,
}

/// Which paths of a controller are to be detached; all that match.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Detach {
    name: String,
    trtype: Option<String>,
    traddr: Option<String>,
    adrfam: Option<String>,
    trsvcid: Option<String>,
    subnqn: Option<String>,
    hostaddr: Option<String>,
    hostsvcid: Option<String>,
}

/// A controller by name, one of its paths by controller identifier.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OnePath {
    name: String,
    cntlid: Option<u16>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Preferring {
    name: String,
    cntlid: Option<u16>,
    /// Instead of `cntlid`: the path's address, which stays the same when it reconnects.
    traddr: Option<String>,
    trsvcid: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetHotplug {
    enable: bool,
    period_us: Option<u64>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Firmware {
    filename: String,
    bdev_name: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetPolicy {
    name: String,
    policy: Policy,
    selector: Option<Selector>,
    rr_min_io: Option<u32>,
}

/// Keys by which the paths of a controller authenticate from now on; without any, they do not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetKeys {
    name: String,
    dhchap_key: Option<String>,
    dhchap_ctrlr_key: Option<String>,
}

/// Adds the methods.
pub(crate) fn register(host: Host) -> Result<(), Error> {
    host.rpc::<NvmeModule, NvmeParams>("bdev_nvme_attach_controller", attach)?;
    host.rpc::<NvmeModule, NvmeParams>("bdev_nvme_create", |module, params, token| {
        match params.check().and_then(|()| params.check_table()) {
            Ok(()) => module.create(params, token),
            Err(error) => token.fail(error),
        }
    })?;
    host.rpc::<NvmeModule, Detach>("bdev_nvme_detach_controller", detach)?;
    host.rpc::<NvmeModule, Named>("bdev_nvme_get_controllers", get_controllers)?;
    host.rpc::<NvmeModule, OnePath>("bdev_nvme_reset_controller", |module, params, token| {
        change(module, &params, Event::Reset, token);
    })?;
    host.rpc::<NvmeModule, OnePath>("bdev_nvme_enable_controller", |module, params, token| {
        change(module, &params, Event::Enable, token);
    })?;
    host.rpc::<NvmeModule, OnePath>("bdev_nvme_disable_controller", |module, params, token| {
        change(module, &params, Event::Disable, token);
    })?;
    host.rpc::<NvmeModule, Named>("bdev_nvme_get_io_paths", |module, params, token| {
        module.registry().report_paths(params.name, token);
    })?;
    host.rpc::<NvmeModule, Preferring>("bdev_nvme_set_preferred_path", set_preferred)?;
    host.rpc::<NvmeModule, SetPolicy>("bdev_nvme_set_multipath_policy", set_policy)?;
    host.rpc::<NvmeModule, Value>("bdev_nvme_set_options", set_options)?;
    host.rpc::<NvmeModule, Name>("bdev_nvme_get_path_iostat", |module, params, token| {
        module.registry().report_path_iostat(params.name, token);
    })?;
    host.rpc::<NvmeModule, SendCommand>("bdev_nvme_send_cmd", |module, params, token| {
        module.registry().send_command(&params, token);
    })?;
    host.rpc::<NvmeModule, Name>("bdev_nvme_get_controller_health_info", |module, params, token| {
        module.registry().health(&params.name, token);
    })?;
    host.rpc::<NvmeModule, Firmware>("bdev_nvme_apply_firmware", |module, params, token| {
        log::debug!("firmware refused filename={}", params.filename);
        token.fail(module.registry().refuse_firmware(&params.bdev_name));
    })?;
    host.rpc::<NvmeModule, SetHotplug>("bdev_nvme_set_hotplug", set_hotplug)?;
    host.rpc::<NvmeModule, NvmeParams>("bdev_nvme_start_discovery", start_discovery)?;
    host.rpc::<NvmeModule, Name>("bdev_nvme_stop_discovery", stop_discovery)?;
    host.rpc::<NvmeModule, NoParams>("bdev_nvme_get_discovery_info", |module, _, token| {
        token.run(|_| Ok(module.registry().describe_discoveries()));
    })?;
    host.rpc::<NvmeModule, NvmeParams>("bdev_nvme_start_mdns_discovery", start_mdns_discovery)?;
    host.rpc::<NvmeModule, Name>("bdev_nvme_stop_mdns_discovery", |module, params, token| {
        module.registry().stop_mdns_discovery(&params.name, token);
    })?;
    host.rpc::<NvmeModule, NoParams>("bdev_nvme_get_mdns_discovery_info", |module, _, token| {
        token.run(|_| Ok(module.registry().describe_searches()));
    })?;
    host.rpc::<NvmeModule, AddInjection>("bdev_nvme_add_error_injection", |module, params, token| {
        module.registry().add_injection(&params, token);
    })?;
    host.rpc::<NvmeModule, RemoveInjection>("bdev_nvme_remove_error_injection", |module, params, token| {
        module.registry().remove_injection(&params, token);
    })?;
    host.rpc::<NvmeModule, SetKeys>("bdev_nvme_set_keys", set_keys)?;
    host.rpc::<NvmeModule, NoParams>("bdev_nvme_get_transport_statistics", |module, _, token| {
        module.registry().report_statistics(token);
    })
}

fn attach(module: &NvmeModule, params: NvmeParams, token: OpToken) {
    if params.discovery {
        let reason = "discovery is true: a discovery service is started by bdev_nvme_start_discovery";
        return token.fail(Error::invalid(reason).object(&*params.name));
    }
    if params.svcname.is_some() {
        let reason = "svcname is given: bdev_nvme_start_mdns_discovery searches discovery services";
        return token.fail(Error::invalid(reason).object(&*params.name));
    }
    match params.check().and_then(|()| params.check_table()) {
        Ok(()) => module.registry().attach(&params, false, token),
        Err(error) => token.fail(error),
    }
}

fn detach(module: &NvmeModule, params: Detach, token: OpToken) {
    let registry = module.registry();
    let matches = |controller: &Rc<Controller>| {
        let (door, transport) = (&controller.door, controller.transport.name());
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(value))
        };
        is(&params.trtype, transport)
            && is(&params.traddr, &door.address.traddr)
            && is(&params.adrfam, crate::config::family_name(door.address.adrfam))
            && is(&params.trsvcid, &door.address.trsvcid)
            && is(&params.subnqn, &door.address.subnqn)
            && is(&params.hostaddr, &door.local.traddr)
            && is(&params.hostsvcid, &door.local.trsvcid)
    };
    let controllers: Vec<Rc<Controller>> =
        registry.controllers(Some(&params.name)).into_iter().filter(matches).collect();
    if controllers.is_empty() {
        return token.fail(Error::not_found(params.name));
    }
    registry.detach(&controllers, move || token.done());
}

fn get_controllers(module: &NvmeModule, params: Named, token: OpToken) {
    token.run(|_| module.registry().describe_controllers(params.name.as_deref()));
}

/// Changes the keys of every path; answers when the admin queues of all have authenticated.
fn set_keys(module: &NvmeModule, params: SetKeys, token: OpToken) {
    let registry = module.registry();
    let controllers = registry.controllers(Some(&params.name));
    if controllers.is_empty() {
        return token.fail(Error::not_found(&*params.name));
    }
    let names = KeyNames { dhchap_key: params.dhchap_key, dhchap_ctrlr_key: params.dhchap_ctrlr_key };
    let config = registry.config.borrow().clone();
    let load = |_: &Rc<Controller>| Credentials::load(registry.host, &names, &config);
    let loaded: Result<Vec<_>, Error> = controllers.iter().map(load).collect();
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return token.fail(error.object(&*params.name)),
    };
    let ended = all_of(controllers.len(), token);
    for (controller, (credentials, held)) in controllers.iter().zip(loaded) {
        controller.set_keys(names.clone(), credentials, held, ended());
    }
}

/// Makes waiters, `count` of them: the token is answered by the first that fails, or by the last.
fn all_of(count: usize, token: OpToken) -> impl Fn() -> Waiter {
    let left = Rc::new(std::cell::Cell::new(count));
    let token = Rc::new(std::cell::Cell::new(Some(token)));
    move || {
        let (left, token) = (Rc::clone(&left), Rc::clone(&token));
        Box::new(move |result| {
            left.set(left.get() - 1);
            let is_last = left.get() == 0;
            match (result, token.take()) {
                (Err(error), Some(token)) => token.fail(error),
                (Ok(()), Some(token_left)) if is_last => token_left.done(),
                (Ok(()), token_left) => token.set(token_left),
                (Err(_), None) => {}
            }
        })
    }
}

/// Resets, enables or disables; answers when all that are meant have come to an end.
fn change(module: &NvmeModule, params: &OnePath, event: Event, token: OpToken) {
    let controllers = match module.registry().paths_named(&params.name, params.cntlid) {
        Ok(controllers) => controllers,
        Err(error) => return token.fail(error),
    };
    let ended = all_of(controllers.len(), token);
    for controller in controllers {
        controller.ask(event, ended());
    }
}

fn set_preferred(module: &NvmeModule, params: Preferring, token: OpToken) {
    token.run(|_| {
        let wanted = match (params.cntlid, params.traddr) {
            (Some(cntlid), None) => Preferred::Controller(cntlid),
            (None, Some(traddr)) => Preferred::Address { traddr, trsvcid: params.trsvcid },
            (Some(_), Some(_)) | (None, None) => {
                return Err(Error::invalid("give exactly one of cntlid and traddr").object(&*params.name));
            }
        };
        module.registry().set_preferred(&params.name, &wanted).map(|()| true)
    });
}

fn set_policy(module: &NvmeModule, params: SetPolicy, token: OpToken) {
    token.run(|_| {
        let change = |old: Rules| Rules {
            policy: params.policy,
            selector: params.selector.unwrap_or(old.selector),
            rr_min_io: params.rr_min_io.unwrap_or(old.rr_min_io),
            ..old
        };
        module.registry().set_policy(&params.name, change).map(|()| true)
    });
}

fn start_discovery(module: &NvmeModule, params: NvmeParams, token: OpToken) {
    let params = NvmeParams { discovery: true, ..params };
    match params.check().and_then(|()| params.check_table()) {
        Ok(()) => module.registry().start_discovery(params, token),
        Err(error) => token.fail(error),
    }
}

fn stop_discovery(module: &NvmeModule, params: Name, token: OpToken) {
    module.registry().stop_discovery(&params.name, token);
}

fn start_mdns_discovery(module: &NvmeModule, params: NvmeParams, token: OpToken) {
    if params.svcname.is_none() {
        return token.fail(Error::invalid("missing field `svcname`").object(&*params.name));
    }
    module.registry().start_mdns_discovery(params, token);
}

fn set_hotplug(_: &NvmeModule, params: SetHotplug, token: OpToken) {
    token.run(|_| match params {
        SetHotplug { enable: true, .. } => Err(Error::not_supported(
            "enable is true: there is no PCIe transport whose devices could be watched; \
             bdev_nvme_start_discovery attaches controllers as they come",
        )),
        SetHotplug { period_us: Some(period), .. } if period > MAX_HOTPLUG_PERIOD_US => {
            Err(Error::invalid(format!("period_us is {period}: must be at most {MAX_HOTPLUG_PERIOD_US}")))
        }
        SetHotplug { enable: false, .. } => Ok(true),
    });
}

fn set_options(module: &NvmeModule, params: Value, token: OpToken) {
    let registry = module.registry();
    token.run(|_| {
        // What is not given stays as it is.
        let mut all = serde_json::to_value(&*registry.config.borrow())?;
        if let (Some(all), Value::Object(changes)) = (all.as_object_mut(), params) {
            all.extend(changes);
        }
        let config: NvmeConfig = serde_json::from_value(all)?;
        config.check()?;
        *registry.config.borrow_mut() = config;
        Ok(true)
    });
}

/// Longest pause between two looks for devices.
const MAX_HOTPLUG_PERIOD_US: u64 = 10_000_000;
