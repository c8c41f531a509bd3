//! Making, deleting, showing and pausing subsystems.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tenon_nvmf_target::{NamespaceSnapshot, SubsystemSnapshot, TargetError};

use super::listener::address_json;
use super::{TargetName, answer};
use crate::config::SubsystemTable;
use crate::context::Control;
use crate::methods::{Method, with};
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] = &[
    ("nvmf_create_subsystem", create),
    ("nvmf_delete_subsystem", delete),
    ("nvmf_get_subsystems", get_all),
    ("nvmf_subsystem_pause", pause),
    ("nvmf_subsystem_resume", resume),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    nqn: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    serial_number: Option<String>,
    model_number: Option<String>,
    max_namespaces: Option<u32>,
    #[serde(default)]
    allow_any_host: bool,
    #[serde(default)]
    ana_reporting: bool,
    min_cntlid: Option<u16>,
    max_cntlid: Option<u16>,
    #[serde(default)]
    max_discard_size_kib: u64,
    #[serde(default)]
    max_write_zeroes_size_kib: u64,
    #[serde(default)]
    passthrough: bool,
}

fn create(control: &Control, params: Value, reply: Reply) {
    with("nvmf_create_subsystem", params, reply, |params: Create, reply| {
        if params.passthrough {
            let reason = "passthrough: commands are served by the host, none is passed through to a device";
            reply.send(Err(RpcError::new(tenon_abi::errno::ENOTSUP, &params.nqn, reason)));
            return;
        }
        let table = SubsystemTable {
            nqn: params.nqn,
            serial_number: params.serial_number,
            model_number: params.model_number,
            max_namespaces: params.max_namespaces,
            allow_any_host: params.allow_any_host,
            ana_reporting: params.ana_reporting,
            min_cntlid: params.min_cntlid,
            max_cntlid: params.max_cntlid,
            max_discard_size_kib: params.max_discard_size_kib,
            max_write_zeroes_size_kib: params.max_write_zeroes_size_kib,
            namespace: Vec::new(),
            listener: Vec::new(),
            host: Vec::new(),
        };
        control.target().create_subsystem(table.spec(), answer(reply));
    });
}

fn delete(control: &Control, params: Value, reply: Reply) {
    with("nvmf_delete_subsystem", params, reply, |params: super::OfSubsystem, reply| {
        let (nvmf, nqn) = (control.nvmf().clone(), params.nqn.clone());
        control.target().delete_subsystem(&params.nqn, move |result| {
            if result.is_ok() {
                nvmf.subsystem_withdrawn(&nqn);
            }
            answer(reply)(result);
        });
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetAll {
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    nqn: Option<String>,
}

fn get_all(control: &Control, params: Value, reply: Reply) {
    with("nvmf_get_subsystems", params, reply, |params: GetAll, reply| {
        let subsystems = control.target().subsystems();
        let is_wanted = |one: &&SubsystemSnapshot| params.nqn.as_ref().is_none_or(|nqn| one.spec.nqn == *nqn);
        let list: Vec<Value> = subsystems.iter().filter(is_wanted).map(describe).collect();
        reply.send(match params.nqn {
            Some(nqn) if list.is_empty() => Err(TargetError::NoSubsystem(nqn).into()),
            _ => Ok(Value::Array(list)),
        });
    });
}

fn describe(subsystem: &SubsystemSnapshot) -> Value {
    let addresses: Vec<Value> = subsystem.listeners.iter().map(|one| address_json(&one.address)).collect();
    let hosts = subsystem.hosts.iter().zip(&subsystem.host_keys).zip(&subsystem.host_limits);
    let hosts: Vec<Value> = hosts.map(super::access::host_json).collect();
    let mut object = json!({
        "nqn": subsystem.spec.nqn,
        "subtype": if subsystem.is_discovery { "Discovery" } else { "NVMe" },
        "listen_addresses": addresses,
        "allow_any_host": subsystem.allow_any_host,
        "hosts": hosts,
    });
    if subsystem.is_discovery {
        return object;
    }
    let spec = &subsystem.spec;
    for (key, value) in [
        ("serial_number", json!(spec.serial_number)),
        ("model_number", json!(spec.model_number)),
        ("max_namespaces", json!(spec.max_namespaces)),
        ("min_cntlid", json!(spec.min_cntlid)),
        ("max_cntlid", json!(spec.max_cntlid)),
        ("ana_reporting", json!(spec.ana_reporting)),
        ("state", json!(format!("{:?}", subsystem.state).to_lowercase())),
        ("namespaces", subsystem.namespaces.iter().map(|one| namespace(one, spec.ana_reporting)).collect()),
    ] {
        object[key] = value;
    }
    object
}

fn namespace(namespace: &NamespaceSnapshot, has_ana: bool) -> Value {
    let mut object = json!({
        "nsid": namespace.nsid,
        "bdev_name": namespace.bdev_name,
        "name": namespace.bdev_name,
        "uuid": namespace.uuid.to_string(),
    });
    if namespace.nguid != [0; 16] {
        object["nguid"] = json!(hexadecimal(&namespace.nguid));
    }
    if namespace.eui64 != [0; 8] {
        object["eui64"] = json!(hexadecimal(&namespace.eui64));
    }
    if has_ana {
        object["anagrpid"] = json!(namespace.anagrpid);
    }
    if let Some(hosts) = &namespace.hosts {
        object["no_auto_visible"] = json!(true);
        object["hosts"] = json!(hosts);
    }
    if let Some(file) = &namespace.spec.ptpl_file {
        object["ptpl_file"] = json!(file);
    }
    if namespace.is_write_protected {
        object["write_protected"] = json!(true);
    }
    object
}

/// Bytes as digits, in the upper case existing clients compare with.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    nqn: String,
    #[serde(default)]
    #[expect(dead_code, reason = "there is one target")]
    tgt_name: TargetName,
    /// Milliseconds after which it resumes by itself.
    deadline_ms: Option<u64>,
}

fn pause(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_pause", params, reply, |params: Pause, reply| {
        let target = control.target();
        let longest = target.options().pause_deadline;
        let deadline = params.deadline_ms.map_or(longest, Duration::from_millis);
        target.pause_subsystem(&params.nqn, deadline, answer(reply));
    });
}

fn resume(control: &Control, params: Value, reply: Reply) {
    with("nvmf_subsystem_resume", params, reply, |params: super::OfSubsystem, reply| {
        control.target().resume_subsystem(&params.nqn, answer(reply));
    });
}
