//! Adding, removing and changing namespaces, and who sees them.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{TargetName, answer, answer_settled, wrong};
use crate::config::NamespaceTable;
use crate::context::Control;
use crate::methods::{Method, with};
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] = &[
    ("nvmf_subsystem_add_ns", add),
    ("nvmf_subsystem_remove_ns", remove),
    ("nvmf_subsystem_set_ns_ana_group", set_ana_group),
    ("nvmf_ns_add_host", add_host),
    ("nvmf_ns_remove_host", remove_host),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    nqn: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    namespace: Namespace,
    #[serde(default)]
    no_auto_visible: bool,
}

/// `namespace` of a call: what a file says of one, but for its hosts, which have calls of their own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Namespace {
    bdev_name: String,
    nsid: Option<u32>,
    nguid: Option<String>,
    eui64: Option<String>,
    uuid: Option<String>,
    anagrpid: Option<u32>,
    #[serde(default)]
    no_auto_visible: bool,
    #[serde(default)]
    read_only: bool,
    ptpl_file: Option<PathBuf>,
    #[serde(default)]
    #[expect(dead_code, reason = "hosts never see metadata apart from their data")]
    hide_metadata: bool,
}

fn add(control: &Control, params: Value, reply: Reply) {
    const METHOD: &str = "nvmf_subsystem_add_ns";
    with(METHOD, params, reply, |params: Add, reply| {
        let namespace = params.namespace;
        let table = NamespaceTable {
            bdev_name: namespace.bdev_name,
            nsid: namespace.nsid,
            nguid: namespace.nguid,
            eui64: namespace.eui64,
            uuid: namespace.uuid,
            anagrpid: namespace.anagrpid,
            no_auto_visible: namespace.no_auto_visible || params.no_auto_visible,
            hosts: Vec::new(),
            read_only: namespace.read_only,
            ptpl_file: namespace.ptpl_file,
        };
        match table.spec() {
            Ok(spec) => control.target().add_namespace(&params.nqn, spec, move |result| {
                reply.send(result.map(|nsid| json!(nsid)).map_err(RpcError::from));
            }),
            Err((key, reason)) => {
                reply.send(Err(RpcError::invalid_params(METHOD, format!("namespace.{key}: {reason}"))));
            }
        }
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Remove {
    nqn: String,
    nsid: u32,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
}

fn remove(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_remove_ns", params, reply, |params: Remove, reply| {
        let (nvmf, nqn, nsid) = (control.nvmf().clone(), params.nqn.clone(), params.nsid);
        control.target().remove_namespace(&params.nqn, params.nsid, move |result| {
            if result.is_ok() {
                nvmf.namespace_withdrawn(&nqn, nsid);
            }
            answer(reply)(result);
        });
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetAnaGroup {
    nqn: String,
    nsid: u32,
    anagrpid: u32,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
}

fn set_ana_group(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_set_ns_ana_group", params, reply, |params: SetAnaGroup, reply| {
        let set = control.target().set_namespace_ana_group(&params.nqn, params.nsid, params.anagrpid);
        answer_settled(control, reply)(set);
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfHost {
    nqn: String,
    nsid: u32,
    host: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
}

fn add_host(control: &Control, params: Value, reply: Reply) {
    set_visible("nvmf_ns_add_host", control, params, reply, true);
}

fn remove_host(control: &Control, params: Value, reply: Reply) {
    set_visible("nvmf_ns_remove_host", control, params, reply, false);
}

fn set_visible(method: &str, control: &Control, params: Value, reply: Reply, is_visible: bool) {
    with(method, params, reply, |params: OfHost, reply| {
        if params.host.is_empty() {
            return reply.send(Err(wrong(method, ("host", "is empty".to_owned()))));
        }
        let set = control.target().set_namespace_visible(&params.nqn, params.nsid, &params.host, is_visible);
        answer_settled(control, reply)(set);
    });
}
