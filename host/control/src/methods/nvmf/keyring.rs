//! Keys by name, from files of their own.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tenon_nvmf_target::KeySnapshot;

use super::answer;
use crate::config::KeyTable;
use crate::context::Control;
use crate::methods::{Method, with};
use crate::rpc::Reply;

pub const METHODS: &[(&str, Method)] =
    &[("keyring_file_add_key", add), ("keyring_file_remove_key", remove), ("keyring_get_keys", get_all)];

fn add(control: &Control, params: Value, reply: Reply) {
    with("keyring_file_add_key", params, reply, |params: KeyTable, reply| {
        control.target().add_key_file(&params.name, Path::new(&params.path), answer(reply));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Remove {
    name: String,
}

fn remove(control: &Control, params: Value, reply: Reply) {
    with("keyring_file_remove_key", params, reply, |params: Remove, reply| {
        answer(reply)(control.target().remove_key(&params.name));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetAll {
    #[expect(dead_code, reason = "every key is shown")]
    enable: Option<bool>,
}

fn get_all(control: &Control, params: Value, reply: Reply) {
    with("keyring_get_keys", params, reply, |_: GetAll, reply| {
        let describe = |key: &KeySnapshot| {
            json!({
                "name": key.name,
                "module": "keyring_file",
                "path": key.path,
                "kind": key.kind,
                "removed": false,
                "probed": true,
                "refcnt": key.users,
            })
        };
        reply.send(Ok(control.target().keys().iter().map(describe).collect()));
    });
}
