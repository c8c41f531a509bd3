//! Which hosts may connect, and with which keys.

use serde::Deserialize;
use serde_json::{Value, json};
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
];

/// A host as answers show it.
pub(super) fn host_json((host, keys): (&String, &HostKeys)) -> Value {
    let mut object = json!({ "nqn": host });
    let names =
        [("psk", &keys.psk), ("dhchap_key", &keys.dhchap_key), ("dhchap_ctrlr_key", &keys.dhchap_ctrlr_key)];
    for (key, name) in names {
        if let Some(name) = name {
            object[key] = json!(name);
        }
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
