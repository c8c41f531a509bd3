//! Referrals: where hosts are sent to find more. And whether the network is told of
//! the listeners without being asked.

use serde::Deserialize;
use serde_json::{Value, json};
use tenon_nvmf_target::Referral;

use super::listener::address_json;
use super::{TargetName, answer, wrong};
use crate::config::{AddressTable, DISCOVERY_NQN};
use crate::context::Control;
use crate::methods::{Method, with};
use crate::rpc::Reply;

pub const METHODS: &[(&str, Method)] = &[
    ("nvmf_discovery_add_referral", add),
    ("nvmf_discovery_remove_referral", remove),
    ("nvmf_discovery_get_referrals", get_all),
    ("nvmf_publish_mdns_prr", publish_mdns),
    ("nvmf_stop_mdns_prr", stop_mdns),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    address: AddressTable,
    #[serde(default)]
    secure_channel: bool,
    subnqn: Option<String>,
}

fn add(control: &Control, params: Value, reply: Reply) {
    const METHOD: &str = "nvmf_discovery_add_referral";
    with(METHOD, params, reply, |params: Add, reply| match params.address.address() {
        Ok(address) => {
            let subnqn = params.subnqn.unwrap_or_else(|| DISCOVERY_NQN.to_owned());
            let referral = Referral { address, subnqn, secure_channel: params.secure_channel };
            answer(reply)(control.target().add_referral(referral));
        }
        Err(error) => reply.send(Err(wrong(METHOD, error))),
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Remove {
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    address: AddressTable,
    subnqn: Option<String>,
}

fn remove(control: &Control, params: Value, reply: Reply) {
    const METHOD: &str = "nvmf_discovery_remove_referral";
    with(METHOD, params, reply, |params: Remove, reply| match params.address.address() {
        Ok(address) => {
            let subnqn = params.subnqn.as_deref().unwrap_or(DISCOVERY_NQN);
            answer(reply)(control.target().remove_referral(&address, subnqn));
        }
        Err(error) => reply.send(Err(wrong(METHOD, error))),
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetOnly {
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
}

fn get_all(control: &Control, params: Value, reply: Reply) {
    with("nvmf_discovery_get_referrals", params, reply, |_: TargetOnly, reply| {
        let describe = |referral: &Referral| {
            json!({
                "address": address_json(&referral.address),
                "secure_channel": referral.secure_channel,
                "subnqn": referral.subnqn,
            })
        };
        reply.send(Ok(control.target().referrals().iter().map(describe).collect()));
    });
}

fn publish_mdns(control: &Control, params: Value, reply: Reply) {
    with("nvmf_publish_mdns_prr", params, reply, |_: TargetOnly, reply| {
        answer(reply)(control.target().publish_mdns());
    });
}

fn stop_mdns(control: &Control, params: Value, reply: Reply) {
    with("nvmf_stop_mdns_prr", params, reply, |_: TargetOnly, reply| {
        control.target().stop_mdns(answer(reply));
    });
}
