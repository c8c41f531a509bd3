//! Making, showing and ending transports. Their options are their plugins' own.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tenon_nvmf_target::TargetError;

use super::{TargetName, answer};
use crate::context::Control;
use crate::methods::{Method, with};
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] =
    &[("nvmf_create_transport", create), ("nvmf_get_transports", get_all), ("nvmf_delete_transport", delete)];

/// What is not for the plugin.
#[derive(Deserialize)]
struct Create {
    trtype: String,
    #[serde(default)]
    tgt_name: TargetName,
    #[serde(flatten)]
    options: Map<String, Value>,
}

fn create(control: &Control, params: Value, reply: Reply) {
    with("nvmf_create_transport", params, reply, |params: Create, reply| {
        let TargetName = params.tgt_name;
        if params.trtype.is_empty() {
            let reason = "trtype: is empty";
            return reply.send(Err(RpcError::invalid_params("nvmf_create_transport", reason)));
        }
        control.nvmf().create_transport(&params.trtype, &params.options, answer(reply));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetAll {
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    trtype: Option<String>,
}

fn get_all(control: &Control, params: Value, reply: Reply) {
    with("nvmf_get_transports", params, reply, |params: GetAll, reply| {
        let names = control.target().transports();
        let is_wanted =
            |name: &&String| params.trtype.as_ref().is_none_or(|trtype| name.eq_ignore_ascii_case(trtype));
        let list: Vec<Value> = names.iter().filter(is_wanted).map(|name| describe(control, name)).collect();
        reply.send(match params.trtype {
            Some(trtype) if list.is_empty() => Err(TargetError::NoTransport(trtype).into()),
            _ => Ok(Value::Array(list)),
        });
    });
}

fn describe(control: &Control, name: &str) -> Value {
    let mut object = json!({ "trtype": name });
    if let Some(Value::Object(options)) = control.target().transport_options(name) {
        for (key, value) in options {
            object[&key] = value;
        }
    }
    object["trtype"] = json!(name);
    object
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete {
    trtype: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
}

fn delete(control: &Control, params: Value, reply: Reply) {
    with("nvmf_delete_transport", params, reply, |params: Delete, reply| {
        control.nvmf().delete_transport(&params.trtype, answer(reply));
    });
}
