//! Which hosts may connect, and with which keys.

use serde::Deserialize;
use serde_json::{Value, json};
use tenon_bdev::QosLimits;
use tenon_nvmf_target::HostKeys;

use super::{TargetName, answer_ended, answer_settled};
use crate::context::Control;
use crate::methods::{Method, with};
use crate::rpc::Reply;

pub const METHODS: &[(&str, Method)] = &[
    ("nvmf_subsystem_add_host", add),
    ("nvmf_subsystem_remove_host", remove),
    ("nvmf_subsystem_allow_any_host", allow_any),
    ("nvmf_subsystem_set_keys", set_keys),
    ("nvmf_subsystem_set_host_qos_limit", set_limits),
];

/// A host as answers show it.
pub(super) fn host_json(((host, keys), limits): ((&String, &HostKeys), &QosLimits)) -> Value {
    let mut object = json!({ "nqn": host });
    let names =
        [("psk", &keys.psk), ("dhchap_key", &keys.dhchap_key), ("dhchap_ctrlr_key", &keys.dhchap_ctrlr_key)];
    for (key, name) in names {
        if let Some(name) = name {
            object[key] = json!(name);
        }
    }
    if limits.is_limited() {
        object["assigned_rate_limits"] = json!({
            "rw_ios_per_sec": limits.rw_ios_per_sec,
            "rw_mbytes_per_sec": limits.rw_mbytes_per_sec,
            "r_mbytes_per_sec": limits.r_mbytes_per_sec,
            "w_mbytes_per_sec": limits.w_mbytes_per_sec,
        });
    }
    object
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    nqn: String,
    host: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    psk: Option<String>,
    dhchap_key: Option<String>,
    dhchap_ctrlr_key: Option<String>,
}

fn add(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_add_host", params, reply, |params: Add, reply| {
        let Add { nqn, host, psk, dhchap_key, dhchap_ctrlr_key, .. } = params;
        let keys = HostKeys { psk, dhchap_key, dhchap_ctrlr_key };
        let added = control.target().add_host_with_keys(&nqn, &host, keys);
        answer_settled(control, reply)(added);
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Remove {
    nqn: String,
    host: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
}

fn remove(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_remove_host", params, reply, |params: Remove, reply| {
        let removed = control.target().remove_host(&params.nqn, &params.host);
        answer_ended(control, &params.nqn, reply)(removed);
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetKeys {
    nqn: String,
    host: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    dhchap_key: Option<String>,
    dhchap_ctrlr_key: Option<String>,
}

fn set_keys(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_set_keys", params, reply, |params: SetKeys, reply| {
        let SetKeys { nqn, host, dhchap_key, dhchap_ctrlr_key, .. } = params;
        let set = control.target().set_host_keys(&nqn, &host, dhchap_key, dhchap_ctrlr_key);
        answer_settled(control, reply)(set);
    });
}

/// What a host may do per second at a subsystem; what is absent is not limited.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetLimits {
    nqn: String,
    host: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    #[serde(default)]
    rw_ios_per_sec: u64,
    #[serde(default)]
    rw_mbytes_per_sec: u64,
    #[serde(default)]
    r_mbytes_per_sec: u64,
    #[serde(default)]
    w_mbytes_per_sec: u64,
}

fn set_limits(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_set_host_qos_limit", params, reply, |params: SetLimits, reply| {
        let limits = QosLimits {
            rw_ios_per_sec: params.rw_ios_per_sec,
            rw_mbytes_per_sec: params.rw_mbytes_per_sec,
            r_mbytes_per_sec: params.r_mbytes_per_sec,
            w_mbytes_per_sec: params.w_mbytes_per_sec,
        };
        let set = control.target().set_host_limits(&params.nqn, &params.host, limits);
        answer_settled(control, reply)(set);
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllowAny {
    nqn: String,
    allow_any_host: bool,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
}

fn allow_any(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_allow_any_host", params, reply, |params: AllowAny, reply| {
        let set = control.target().set_allow_any_host(&params.nqn, params.allow_any_host);
        answer_ended(control, &params.nqn, reply)(set);
    });
}
