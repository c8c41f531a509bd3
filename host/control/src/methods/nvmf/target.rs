//! Options of the target as a whole. They take effect at once, at any time.

use serde::Deserialize;
use serde_json::{Value, json};
use tenon_abi::errno;

use super::wrong;
use crate::config::{DiscoveryFilterName, authentication};
use crate::context::Control;
use crate::methods::{Method, with};
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] = &[
    ("nvmf_set_config", set_config),
    ("nvmf_set_max_subsystems", set_max_subsystems),
    ("nvmf_set_crdt", set_crdt),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetConfig {
    /// Accepting wakes a reactor here; nothing is polled.
    #[expect(dead_code, reason = "there is no such poller")]
    acceptor_poll_rate: Option<u64>,
    admin_cmd_passthru: Option<Passthrough>,
    /// Connections go to the reactor with the fewest.
    poll_groups_mask: Option<String>,
    discovery_filter: Option<String>,
    dhchap_digests: Option<Vec<String>>,
    dhchap_dhgroups: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Passthrough {
    identify_ctrlr: bool,
}

fn set_config(control: &Control, params: Value, reply: Reply) {
    const METHOD: &str = "nvmf_set_config";
    with(METHOD, params, reply, |params: SetConfig, reply| {
        let refused =
            |key: &str, reason: &str| Err(RpcError::new(errno::ENOTSUP, "nvmf", format!("{key}: {reason}")));
        if params.admin_cmd_passthru.is_some_and(|wanted| wanted.identify_ctrlr) {
            reply.send(refused("admin_cmd_passthru", "no admin command is passed through to a device"));
            return;
        }
        if params.poll_groups_mask.is_some() {
            reply.send(refused("poll_groups_mask", "connections go to the data reactor with the fewest"));
            return;
        }
        let filter = params.discovery_filter.as_deref().map(DiscoveryFilterName::parse).transpose();
        let filter = filter.map_err(|reason| ("discovery_filter", reason));
        let options = authentication(params.dhchap_digests.as_deref(), params.dhchap_dhgroups.as_deref());
        let (filter, mut options) = match filter.and_then(|filter| Ok((filter, options?))) {
            Ok(values) => values,
            Err(error) => return reply.send(Err(wrong(METHOD, error))),
        };
        let target = control.target();
        // What the call does not name stays.
        let before = target.authentication();
        if params.dhchap_digests.is_none() {
            options.hashes = before.hashes;
        }
        if params.dhchap_dhgroups.is_none() {
            options.groups = before.groups;
        }
        if let Err(error) = target.set_authentication(options) {
            return reply.send(Err(error.into()));
        }
        if let Some(filter) = filter {
            target.set_discovery_filter(filter.0);
        }
        reply.send(Ok(json!(true)));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetMaxSubsystems {
    max_subsystems: u32,
}

fn set_max_subsystems(control: &Control, params: Value, reply: Reply) {
    const METHOD: &str = "nvmf_set_max_subsystems";
    with(METHOD, params, reply, |params: SetMaxSubsystems, reply| {
        if params.max_subsystems == 0 {
            return reply.send(Err(wrong(METHOD, ("max_subsystems", "must be at least 1".to_owned()))));
        }
        control.target().set_max_subsystems(params.max_subsystems as usize);
        reply.send(Ok(json!(true)));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetCrdt {
    #[serde(default)]
    crdt1: u16,
    #[serde(default)]
    crdt2: u16,
    #[serde(default)]
    crdt3: u16,
}

fn set_crdt(control: &Control, params: Value, reply: Reply) {
    with("nvmf_set_crdt", params, reply, |params: SetCrdt, reply| {
        control.target().set_retry_delays([params.crdt1, params.crdt2, params.crdt3]);
        reply.send(Ok(json!(true)));
    });
}
