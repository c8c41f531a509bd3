//! Addresses a subsystem is reached at, and ANA states through them.

use serde::Deserialize;
use serde_json::{Value, json};
use tenon_nvmf_target::{Address, ListenerSnapshot, SubsystemSnapshot};

use super::{TargetName, answer, answer_ended, answer_settled, of_subsystem, wrong};
use crate::config::{AddressTable, ana_state};
use crate::context::Control;
use crate::methods::{Method, with};
use crate::rpc::Reply;

pub const METHODS: &[(&str, Method)] = &[
    ("nvmf_subsystem_add_listener", add),
    ("nvmf_subsystem_remove_listener", remove),
    ("nvmf_subsystem_get_listeners", get_all),
    ("nvmf_subsystem_listener_set_ana_state", set_ana_state),
];

/// An address as every answer shows it.
pub(super) fn address_json(address: &Address) -> Value {
    json!({
        "trtype": address.trtype,
        "adrfam": address.adrfam,
        "traddr": address.traddr,
        "trsvcid": address.trsvcid,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    nqn: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    listen_address: AddressTable,
    #[serde(default)]
    secure_channel: bool,
    ana_state: Option<String>,
    #[expect(dead_code, reason = "a transport has one kind of socket")]
    sock_impl: Option<String>,
}

fn add(control: &Control, params: Value, reply: Reply) {
    const METHOD: &str = "nvmf_subsystem_add_listener";
    with(METHOD, params, reply, |params: Add, reply| {
        let state = ana_state(params.ana_state.as_deref().unwrap_or("optimized"));
        match params.listen_address.address().and_then(|address| Ok((address, state?))) {
            Ok((address, state)) => {
                let answer = answer(reply);
                control.target().add_listener(&params.nqn, &address, params.secure_channel, state, answer);
            }
            Err(error) => reply.send(Err(wrong(METHOD, error))),
        }
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Remove {
    nqn: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    listen_address: AddressTable,
}

fn remove(control: &Control, params: Value, reply: Reply) {
    const METHOD: &str = "nvmf_subsystem_remove_listener";
    with(METHOD, params, reply, |params: Remove, reply| match params.listen_address.address() {
        Ok(address) => {
            let answer = answer_ended(control, &params.nqn, reply);
            control.target().remove_listener(&params.nqn, &address, answer);
        }
        Err(error) => reply.send(Err(wrong(METHOD, error))),
    });
}

fn get_all(control: &Control, params: Value, reply: Reply) {
    of_subsystem(control, "nvmf_subsystem_get_listeners", params, reply, |subsystem| {
        subsystem.listeners.iter().map(|listener| describe(subsystem, listener)).collect()
    });
}

fn describe(subsystem: &SubsystemSnapshot, listener: &ListenerSnapshot) -> Value {
    let mut object = json!({
        "address": address_json(&listener.address),
        "secure_channel": listener.is_secure,
    });
    if subsystem.spec.ana_reporting {
        let states = listener.ana_states.iter();
        object["ana_states"] =
            states.map(|(group, state)| json!({ "ana_group": group, "ana_state": state.word() })).collect();
        object["ana_state"] = json!(listener.default_ana_state.word());
    }
    object
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetAnaState {
    nqn: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    listen_address: AddressTable,
    ana_state: String,
    anagrpid: Option<u32>,
}

fn set_ana_state(control: &Control, params: Value, reply: Reply) {
    const METHOD: &str = "nvmf_subsystem_listener_set_ana_state";
    with(METHOD, params, reply, |params: SetAnaState, reply| {
        let state = ana_state(&params.ana_state);
        match params.listen_address.address().and_then(|address| Ok((address, state?))) {
            Ok((address, state)) => {
                // 0 is what existing clients say for every group.
                let group = params.anagrpid.filter(|group| *group > 0);
                let set = control.target().set_ana_state(&params.nqn, &address, state, group);
                answer_settled(control, reply)(set);
            }
            Err(error) => reply.send(Err(wrong(METHOD, error))),
        }
    });
}
