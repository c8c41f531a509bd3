//! `rpc_get_methods`, `spdk_*`, `framework_*` and the configuration calls: what
//! concerns the process as a whole.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Method, NoParams, names, with};
use crate::context::{Control, Stop};
use crate::rpc::{Reply, RpcError};
use crate::{nvmf_save, save};

pub const METHODS: &[(&str, Method)] = &[
    ("rpc_get_methods", rpc_get_methods),
    ("spdk_get_version", get_version),
    ("spdk_kill_instance", kill_instance),
    ("framework_start_init", wait_init),
    ("framework_wait_init", wait_init),
    ("framework_get_subsystems", get_subsystems),
    ("framework_get_config", get_config),
    ("config_get_waiting", get_waiting),
    ("config_reload", reload),
    ("save_config", save_config),
    ("debug_get_object_counts", get_object_counts),
    ("debug_get_operations", get_operations),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetMethods {
    #[serde(default)]
    #[expect(dead_code, reason = "every method can be called in every phase")]
    current: bool,
    #[serde(default)]
    #[expect(dead_code, reason = "there are no aliases")]
    include_aliases: bool,
}

fn rpc_get_methods(control: &Control, params: Value, reply: Reply) {
    with("rpc_get_methods", params, reply, |_: GetMethods, reply| reply.send(Ok(json!(names(control)))));
}

fn get_version(_: &Control, params: Value, reply: Reply) {
    with("spdk_get_version", params, reply, |_: NoParams, reply| {
        let number = |text: &str| text.parse::<u32>().unwrap_or(0);
        let mut version = json!({
            "version": concat!("Tenon v", env!("CARGO_PKG_VERSION")),
            "fields": {
                "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
                "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
                "patch": number(env!("CARGO_PKG_VERSION_PATCH")),
                "suffix": env!("CARGO_PKG_VERSION_PRE"),
            },
        });
        // Known if whoever built it said so.
        if let Some(commit) = option_env!("TENON_COMMIT") {
            version["fields"]["commit"] = json!(commit);
        }
        reply.send(Ok(version));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KillInstance {
    sig_name: String,
}

fn kill_instance(control: &Control, params: Value, reply: Reply) {
    with("spdk_kill_instance", params, reply, |params: KillInstance, reply| {
        match params.sig_name.trim_start_matches("SIG") {
            "TERM" | "INT" => control.process().stop(Stop::Gracefully),
            "KILL" | "QUIT" => control.process().stop(Stop::AtOnce),
            "HUP" => control.process().reload(Box::new(|_| {})),
            "USR1" => {}
            other => {
                let reason = format!(
                    "sig_name: unknown signal {other}; one of SIGTERM, SIGINT, SIGKILL, SIGQUIT, SIGHUP, SIGUSR1"
                );
                reply.send(Err(RpcError::invalid_params("spdk_kill_instance", reason)));
                return;
            }
        }
        reply.send(Ok(json!(true)));
    });
}

fn wait_init(control: &Control, params: Value, reply: Reply) {
    with("framework_wait_init", params, reply, |_: NoParams, reply| {
        control.when_ready(move || reply.send(Ok(json!(true))));
    });
}

fn get_subsystems(_: &Control, params: Value, reply: Reply) {
    with("framework_get_subsystems", params, reply, |_: NoParams, reply| {
        reply.send(Ok(json!([
            { "subsystem": "reactor", "depends_on": [] },
            { "subsystem": "module", "depends_on": ["reactor"] },
            { "subsystem": "bdev", "depends_on": ["module"] },
            { "subsystem": "nvmf", "depends_on": ["bdev"] },
        ])));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetConfig {
    name: String,
}

fn get_config(control: &Control, params: Value, reply: Reply) {
    with("framework_get_config", params, reply, |params: GetConfig, reply| match params.name.as_str() {
        "bdev" => reply.send(Ok(Value::Array(bdev_calls(control)))),
        "nvmf" => reply.send(Ok(Value::Array(nvmf_save::calls(control)))),
        "module" => {
            let call = |(name, config)| json!({ "method": "module_configure", "params": { "name": name, "config": Value::Object(config) } });
            reply.send(Ok(control.core().module_configs().into_iter().map(call).collect()));
        }
        "reactor" => reply.send(Ok(json!([]))),
        other => {
            let reason = "no such subsystem; one of reactor, module, bdev, nvmf";
            reply.send(Err(RpcError::new(tenon_abi::errno::ENOENT, other, reason)));
        }
    });
}

/// The calls that make the devices again, with what is asked of the layer and of each.
fn bdev_calls(control: &Control) -> Vec<Value> {
    let core = control.core();
    let examine = json!({ "bdev_auto_examine": core.auto_examine() });
    let mut calls = vec![json!({ "method": "bdev_set_options", "params": examine })];
    for entry in core.saved_config() {
        let limits: Vec<Value> = entry.bdevs.iter().filter_map(|name| limit_call(control, name)).collect();
        calls.push(create_call(entry.method, &entry.module, entry.params));
        calls.extend(limits);
    }
    // What waits for its base is configured as much as what is there.
    let coming = control.engine().waiting_tables().into_iter();
    calls.extend(coming.map(|(module, params, _)| create_call(None, &module, Value::Object(params))));
    calls
}

fn limit_call(control: &Control, name: &str) -> Option<Value> {
    let Value::Object(mut params) = serde_json::to_value(save::qos_of(control, name)?).ok()? else {
        return None;
    };
    params.insert("name".to_owned(), json!(name));
    Some(json!({ "method": "bdev_set_qos_limit", "params": params }))
}

/// The call that makes a device again.
fn create_call(method: Option<String>, module: &str, params: Value) -> Value {
    let method = method.unwrap_or_else(|| format!("bdev_{module}_create"));
    json!({ "method": method, "params": params })
}

fn get_waiting(control: &Control, params: Value, reply: Reply) {
    with("config_get_waiting", params, reply, |_: NoParams, reply| {
        reply.send(Ok(json!(control.engine().waiting())));
    });
}

fn reload(control: &Control, params: Value, reply: Reply) {
    with("config_reload", params, reply, |_: NoParams, reply| {
        control.process().reload(Box::new(move |result| match result {
            Ok(()) => reply.send(Ok(json!(true))),
            Err(failures) => {
                let mut error = RpcError::new(tenon_abi::errno::EINVAL, "config_reload", failures.join("; "));
                error.data["failures"] = json!(failures);
                reply.send(Err(error));
            }
        }));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SaveConfig {
    filename: Option<PathBuf>,
}

fn save_config(control: &Control, params: Value, reply: Reply) {
    with("save_config", params, reply, |params: SaveConfig, reply| {
        let text = save::to_toml(control);
        match params.filename {
            None => reply.send(Ok(json!(text))),
            Some(path) => save::write_file(path, text, move |result| match result {
                Ok(()) => reply.send(Ok(json!(true))),
                Err((object, error)) => {
                    let code = -error.raw_os_error().unwrap_or(5);
                    reply.send(Err(RpcError::new(code, &object, format!("cannot be written: {error}"))));
                }
            }),
        }
    });
}

fn get_object_counts(control: &Control, params: Value, reply: Reply) {
    with("debug_get_object_counts", params, reply, |_: NoParams, reply| {
        let mut counts = json!(control.core().object_counts());
        let target = control.target().counts();
        counts["nvmf"] = json!({
            "subsystems": target.subsystems,
            "namespaces": target.namespaces,
            "controllers": target.controllers,
            "queues": target.queues,
            "descriptors": target.descriptors,
            "listeners": target.listeners,
            "transports": target.transports,
            "questions": target.questions,
            "authentications": target.authentications,
        });
        reply.send(Ok(counts));
    });
}

fn get_operations(control: &Control, params: Value, reply: Reply) {
    with("debug_get_operations", params, reply, |_: NoParams, reply| {
        reply.send(Ok(json!(control.core().operations())));
    });
}
