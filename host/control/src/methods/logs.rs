//! `log_*`: levels under the names existing clients use, and debug flags per
//! target.

use log::LevelFilter;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Method, NoParams, with};
use crate::context::Control;
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] = &[
    ("log_set_level", set_level),
    ("log_get_level", get_level),
    ("log_set_print_level", set_level),
    ("log_get_print_level", get_level),
    ("log_set_flag", set_flag),
    ("log_clear_flag", clear_flag),
    ("log_get_flags", get_flags),
    ("log_enable_timestamps", enable_timestamps),
];

/// Names of the levels on the wire; `NOTICE` is what a host logs by default.
const LEVELS: &[(&str, LevelFilter)] = &[
    ("DISABLED", LevelFilter::Off),
    ("ERROR", LevelFilter::Error),
    ("WARNING", LevelFilter::Warn),
    ("NOTICE", LevelFilter::Info),
    ("INFO", LevelFilter::Debug),
    ("DEBUG", LevelFilter::Trace),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetLevel {
    level: String,
}

fn set_level(control: &Control, params: Value, reply: Reply) {
    with("log_set_level", params, reply, |params: SetLevel, reply| {
        match LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&params.level)) {
            Some((_, level)) => {
                control.logs().set_level(*level);
                control.core().modules().set_log_level(log::max_level());
                reply.send(Ok(json!(true)));
            }
            None => {
                let names: Vec<&str> = LEVELS.iter().map(|(name, _)| *name).collect();
                let reason = format!("level: unknown level {}; one of {}", params.level, names.join(", "));
                reply.send(Err(RpcError::invalid_params("log_set_level", reason)));
            }
        }
    });
}

fn get_level(control: &Control, params: Value, reply: Reply) {
    with("log_get_level", params, reply, |_: NoParams, reply| {
        let level = control.logs().level();
        let name =
            LEVELS.iter().find(|(_, candidate)| *candidate == level).map_or("NOTICE", |(name, _)| name);
        reply.send(Ok(json!(name)));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Flag {
    flag: String,
}

fn set_flag(control: &Control, params: Value, reply: Reply) {
    with("log_set_flag", params, reply, |params: Flag, reply| {
        change_flag(control, &params.flag, true, reply)
    });
}

fn clear_flag(control: &Control, params: Value, reply: Reply) {
    with("log_clear_flag", params, reply, |params: Flag, reply| {
        change_flag(control, &params.flag, false, reply)
    });
}

fn change_flag(control: &Control, flag: &str, on: bool, reply: Reply) {
    if control.logs().set_flag(flag, on) {
        control.core().modules().set_log_level(log::max_level());
        reply.send(Ok(json!(true)));
    } else {
        let names: Vec<String> = control.logs().flags().into_iter().map(|(name, _)| name).collect();
        let reason = format!("no such log flag; one of all, {}", names.join(", "));
        reply.send(Err(RpcError::new(tenon_abi::errno::EINVAL, flag, reason)));
    }
}

fn get_flags(control: &Control, params: Value, reply: Reply) {
    with("log_get_flags", params, reply, |_: NoParams, reply| {
        let flags: Map<String, Value> =
            control.logs().flags().into_iter().map(|(name, on)| (name, json!(on))).collect();
        reply.send(Ok(Value::Object(flags)));
    });
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnableTimestamps {
    enabled: bool,
}

fn enable_timestamps(control: &Control, params: Value, reply: Reply) {
    with("log_enable_timestamps", params, reply, |params: EnableTimestamps, reply| {
        control.logs().set_timestamps(params.enabled);
        reply.send(Ok(json!(true)));
    });
}
