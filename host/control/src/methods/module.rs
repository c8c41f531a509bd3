//! `module_*`: plugins at run time.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tenon_abi::errno;
use tenon_bdev::OpError;
use tenon_modules::{Existing, ModuleRef};

use super::{Method, NoParams, answer_true, with};
use crate::context::Control;
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] = &[
    ("module_load", load),
    ("module_unregister", unregister),
    ("module_get_list", get_list),
    ("module_configure", configure),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    /// Module of the catalog.
    name: Option<String>,
    /// Plugin file; exactly one of `name` and `path`.
    path: Option<PathBuf>,
    /// Load beside a running module of the same name, which then drains.
    #[serde(default)]
    replace: bool,
    /// The module's options; without, those it was given before.
    config: Option<Map<String, Value>>,
}

fn load(control: &Control, params: Value, reply: Reply) {
    with("module_load", params, reply, |params: Load, reply| {
        let core = control.core();
        let done = move |result: Result<ModuleRef, OpError>| {
            let info = result.map(|module| json!(module.info()));
            reply.send(info.map_err(RpcError::from));
        };
        match (params.name, params.path) {
            (Some(name), None) => core.module_load(&name, params.config.as_ref(), done),
            (None, Some(path)) => {
                let existing = if params.replace { Existing::Supersede } else { Existing::Refuse };
                core.module_load_file(&path, existing, params.config.as_ref(), done);
            }
            _ => {
                let reason = "give exactly one of name and path";
                done(Err(OpError::new(errno::EINVAL, "module_load", reason)));
            }
        }
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unregister {
    name: String,
}

fn unregister(control: &Control, params: Value, reply: Reply) {
    with("module_unregister", params, reply, |params: Unregister, reply| {
        control.core().module_unregister(&params.name, answer_true(reply));
    });
}

fn get_list(control: &Control, params: Value, reply: Reply) {
    with("module_get_list", params, reply, |_: NoParams, reply| {
        let modules = control.core().modules();
        let loaded: Vec<Value> = modules.all().into_iter().map(|module| json!(module.info())).collect();
        let catalog = modules.catalog();
        let rejected: Vec<String> = catalog.rejected().iter().map(ToString::to_string).collect();
        reply.send(Ok(json!({ "modules": loaded, "available": catalog.plugins(), "rejected": rejected })));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Configure {
    name: String,
    config: Value,
}

fn configure(control: &Control, params: Value, reply: Reply) {
    with("module_configure", params, reply, |params: Configure, reply| {
        control.core().module_configure(&params.name, &params.config, move |result| {
            reply.send(result.map(|answer| answer.result).map_err(RpcError::from));
        });
    });
}
