//! The methods of `bdev_nvme_*`, with the parameters existing clients give.

use std::rc::Rc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tenon_sdk::{Error, Host, NoParams, OpToken};

use crate::NvmeModule;
use crate::config::{NvmeConfig, NvmeParams};
use crate::controller::Controller;
use crate::controller::state::Event;
use crate::select::{Policy, Rules, Selector};

/// One controller, or all without a name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    name: Option<String>,
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
struct Preferred {
    name: String,
    cntlid: u16,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SetPolicy {
    name: String,
    policy: Policy,
    selector: Option<Selector>,
    rr_min_io: Option<u32>,
}

/// Adds the methods.
pub(crate) fn register(host: Host) -> Result<(), Error> {
    host.rpc::<NvmeModule, NvmeParams>("bdev_nvme_attach_controller", attach)?;
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
    host.rpc::<NvmeModule, Preferred>("bdev_nvme_set_preferred_path", set_preferred)?;
    host.rpc::<NvmeModule, SetPolicy>("bdev_nvme_set_multipath_policy", set_policy)?;
    host.rpc::<NvmeModule, Value>("bdev_nvme_set_options", set_options)?;
    host.rpc::<NvmeModule, NoParams>("bdev_nvme_get_transport_statistics", |module, _, token| {
        module.registry().report_statistics(token);
    })
}

fn attach(module: &NvmeModule, params: NvmeParams, token: OpToken) {
    module.registry().attach(params, token);
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

/// Resets, enables or disables; answers when all that are meant have come to an end.
fn change(module: &NvmeModule, params: &OnePath, event: Event, token: OpToken) {
    let is_meant = |controller: &Rc<Controller>| {
        params.cntlid.is_none_or(|cntlid| controller.facts.borrow().cntlid == cntlid)
    };
    let registry = module.registry();
    let controllers: Vec<Rc<Controller>> =
        registry.controllers(Some(&params.name)).into_iter().filter(is_meant).collect();
    if controllers.is_empty() {
        return token.fail(Error::not_found(&*params.name));
    }
    let left = Rc::new(std::cell::Cell::new(controllers.len()));
    let token = Rc::new(std::cell::Cell::new(Some(token)));
    for controller in controllers {
        let (left, token) = (Rc::clone(&left), Rc::clone(&token));
        controller.ask(
            event,
            Box::new(move |result| {
                left.set(left.get() - 1);
                let is_last = left.get() == 0;
                match (result, token.take()) {
                    (Err(error), Some(token)) => token.fail(error),
                    (Ok(()), Some(token_left)) if is_last => token_left.done(),
                    (Ok(()), token_left) => token.set(token_left),
                    (Err(_), None) => {}
                }
            }),
        );
    }
}

fn set_preferred(module: &NvmeModule, params: Preferred, token: OpToken) {
    let registry = module.registry();
    token.run(|_| {
        let device = registry.device_named(&params.name).ok_or_else(|| Error::not_found(&*params.name))?;
        let found = device.table.change(|entries| {
            let is_meant = |id: u64| {
                registry
                    .controller(id)
                    .is_some_and(|controller| controller.facts.borrow().cntlid == params.cntlid)
            };
            let found = entries.iter().any(|entry| is_meant(entry.door.id));
            if found {
                entries.iter_mut().for_each(|entry| entry.is_preferred = is_meant(entry.door.id));
            }
            found
        });
        if !found {
            let reason = format!("no path has the controller identifier {}", params.cntlid);
            return Err(Error::new(tenon_sdk::errno::ENODEV, reason).object(&*params.name));
        }
        registry.tell_channels(&device);
        Ok(true)
    });
}

fn set_policy(module: &NvmeModule, params: SetPolicy, token: OpToken) {
    let registry = module.registry();
    token.run(|_| {
        let device = registry.device_named(&params.name).ok_or_else(|| Error::not_found(&*params.name))?;
        if params.rr_min_io == Some(0) {
            return Err(Error::invalid("rr_min_io is 0: must be at least 1").object(&*params.name));
        }
        let old = device.table.rules();
        device.table.set_rules(Rules {
            policy: params.policy,
            selector: params.selector.unwrap_or(old.selector),
            rr_min_io: params.rr_min_io.unwrap_or(old.rr_min_io),
        });
        registry.tell_channels(&device);
        Ok(true)
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
        *registry.config.borrow_mut() = config;
        Ok(true)
    });
}
