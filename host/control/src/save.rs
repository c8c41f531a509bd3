//! Writes the running configuration back as TOML: the host's own tables as they
//! are in force, then every device in creation order with the parameters that
//! make it again, then what is exported.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use log::warn;
use serde::Serialize;
use serde_json::{Map, Value};
use tenon_bdev::{DEFAULT_RESET_DRAIN_TIMEOUT, QosLimits};
use tenon_reactor::current;

use crate::config::{BdevSection, Config, ModuleEntry, QosTable, Table};
use crate::context::Control;
use crate::nvmf_save::{self, Written};

/// The configuration file that makes what runs now.
#[must_use]
pub fn to_toml(control: &Control) -> String {
    let mut devices = Vec::new();
    let mut there = HashSet::new();
    for entry in control.core().saved_config() {
        let Value::Object(params) = entry.params else {
            warn!("device has no saved parameters bdevs={:?}", entry.bdevs);
            continue;
        };
        let qos = entry.bdevs.iter().find_map(|name| qos_of(control, name));
        let qos = qos.or_else(|| configured_qos(control, &params));
        if !entry.bdevs.is_empty() {
            there.extend(name_of(&params));
        }
        there.extend(entry.bdevs.iter().cloned());
        devices.push((entry.module, params, qos.unwrap_or_default(), !entry.bdevs.is_empty()));
    }
    let waiting = control.engine().waiting_tables();
    devices.extend(waiting.into_iter().map(|(module, params, qos)| (module, params, qos, false)));
    // A file that has a name twice is refused: what waits gives way to what is there.
    devices.retain(|(module, params, _, is_there)| {
        let Some(name) = name_of(params).filter(|_| !is_there) else { return true };
        let is_free = there.insert(name.clone());
        if !is_free {
            warn!("bdev that waits is not saved, its name is taken name={name} module={module}");
        }
        is_free
    });
    let devices = devices.into_iter().map(|(module, params, qos, _)| (module, params, qos));
    let mut config = control.engine().current();
    take_what_calls_changed(control, &mut config);
    text_of(&config, devices, nvmf_save::tables(control))
}

fn name_of(params: &Map<String, Value>) -> Option<String> {
    params.get("name").and_then(Value::as_str).map(str::to_owned)
}

/// Options that calls gave the device layer and modules take the place of those of the file.
fn take_what_calls_changed(control: &Control, config: &mut Config) {
    let core = control.core();
    let (examine, drain) = (core.auto_examine(), core.reset_drain_timeout().as_secs());
    let BdevSection { auto_examine, reset_drain_timeout_sec } = &mut config.bdev;
    if auto_examine.unwrap_or(true) != examine {
        *auto_examine = Some(examine);
    }
    if reset_drain_timeout_sec.unwrap_or(DEFAULT_RESET_DRAIN_TIMEOUT.as_secs()) != drain {
        *reset_drain_timeout_sec = Some(drain);
    }
    let mut in_force: BTreeMap<_, _> = core.module_configs().into_iter().collect();
    for module in &mut config.modules {
        module.options.value = in_force.remove(&module.name).unwrap_or_default();
    }
    let by_call = |(name, options): (String, Map<String, Value>)| {
        let options = Table::detached(&format!("[[module]] {name}"), options);
        ModuleEntry { name, required: false, options }
    };
    config.modules.extend(in_force.into_iter().map(by_call));
}

/// The host's own tables and modules of `config`, devices as module, parameters and limits, and what is exported.
pub(crate) fn text_of(
    config: &Config,
    devices: impl IntoIterator<Item = (String, Map<String, Value>, QosTable)>,
    exported: Vec<Written>,
) -> String {
    let mut text = String::from("# Written by save_config.\n");
    push_section(&mut text, "[host]", &config.host);
    push_section(&mut text, "[plugins]", &config.plugins);
    push_section(&mut text, "[metrics]", &config.metrics);
    push_section(&mut text, "[bdev_options]", &config.bdev);
    for module in &config.modules {
        let mut table = module.options.value.clone();
        table.insert("name".to_owned(), Value::String(module.name.clone()));
        if module.required {
            table.insert("required".to_owned(), Value::Bool(true));
        }
        push_table(&mut text, "[[module]]", &table);
    }
    for (module, params, qos) in devices {
        let mut table = Map::new();
        table.insert("module".to_owned(), Value::String(module));
        table.extend(params);
        if qos != QosTable::default() {
            table.insert("qos".to_owned(), serde_json::to_value(qos).unwrap_or(Value::Null));
        }
        push_table(&mut text, "[[bdev]]", &table);
    }
    for (title, table) in exported {
        push_table(&mut text, &title, &table);
    }
    text
}

/// Replaces `path` as a whole or not at all, away from the control thread. `done` gets the path on failure.
pub fn write_file(path: PathBuf, text: String, done: impl FnOnce(Result<(), (String, io::Error)>) + 'static) {
    let name = path.display().to_string();
    let (shared, refused) = (std::rc::Rc::new(std::cell::Cell::new(Some(done))), name.clone());
    let on_done = shared.clone();
    let work = move || replace(&path, text.as_bytes());
    let offloaded = current().offload(work, move |result: io::Result<()>| {
        if let Some(done) = on_done.take() {
            done(result.map_err(|error| (name, error)));
        }
    });
    if let Err(error) = offloaded
        && let Some(done) = shared.take()
    {
        done(Err((refused, io::Error::other(error.to_string()))));
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(directory)?.sync_all()
}

/// Limits of a device that is not there now.
fn configured_qos(control: &Control, params: &Map<String, Value>) -> Option<QosTable> {
    let name = params.get("name").and_then(Value::as_str)?;
    if control.core().find(name).is_some() {
        return None;
    }
    let current = control.engine().current();
    current.bdevs.iter().find(|entry| entry.name == name).map(|entry| entry.qos)
}

/// The limits of a device, if it has any.
pub(crate) fn qos_of(control: &Control, name: &str) -> Option<QosTable> {
    let QosLimits { rw_ios_per_sec, rw_mbytes_per_sec, r_mbytes_per_sec, w_mbytes_per_sec } =
        control.core().bdev(name)?.qos;
    let table = QosTable { rw_ios_per_sec, rw_mbytes_per_sec, r_mbytes_per_sec, w_mbytes_per_sec };
    (table != QosTable::default()).then_some(table)
}

fn push_section(text: &mut String, title: &str, section: &impl Serialize) {
    if let Ok(Value::Object(table)) = serde_json::to_value(section) {
        push_table(text, title, &table);
    }
}

/// Keys that name an object.
const NAMING: &[&str] = &["module", "name", "nqn", "bdev_name", "trtype", "traddr"];

/// A table without its nulls; nothing if nothing is left.
fn push_table(text: &mut String, title: &str, table: &Map<String, Value>) {
    // What names the object comes first.
    let (head, rest): (Vec<_>, Vec<_>) = table.iter().partition(|(key, _)| NAMING.contains(&key.as_str()));
    let lines: Vec<String> = head
        .into_iter()
        .chain(rest)
        .filter_map(|(key, value)| Some(format!("{} = {}\n", bare_or_quoted(key), to_toml_value(value)?)))
        .collect();
    if !lines.is_empty() {
        text.push_str(&format!("\n{title}\n{}", lines.concat()));
    }
}

fn to_toml_value(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => basic_string(text),
        Value::Array(items) => {
            format!("[{}]", items.iter().filter_map(to_toml_value).collect::<Vec<_>>().join(", "))
        }
        Value::Object(table) => {
            let pairs: Vec<String> = table
                .iter()
                .filter_map(|(key, value)| {
                    Some(format!("{} = {}", bare_or_quoted(key), to_toml_value(value)?))
                })
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    })
}

fn bare_or_quoted(key: &str) -> String {
    let is_bare = !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if is_bare { key.to_owned() } else { basic_string(key) }
}

/// TOML's basic string: the one form that can be a key as well as a value, whatever is in it.
fn basic_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            letter if letter.is_ascii_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(letter))),
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_reads_back_as_the_same_values() {
        let table = json!({
            "name": "a\"b\\c\n", "size": "64MiB", "count": 3, "ratio": 0.5, "on": true, "none": null,
            "list": ["x", 1, null], "odd key": { "deep": [{"a": 1}] }, "both \"'''\" quotes\u{7f}\r": "'\"",
        });
        let mut text = String::new();
        push_table(&mut text, "[[bdev]]", table.as_object().unwrap());
        let parsed: toml::Table = toml::from_str(&text).expect(&text);
        let back = serde_json::to_value(&parsed["bdev"][0]).unwrap();
        let mut expected = table;
        expected.as_object_mut().unwrap().remove("none");
        expected["list"] = json!(["x", 1]);
        assert_eq!(back, expected);
    }

    #[test]
    fn an_empty_table_leaves_no_trace() {
        let mut text = String::new();
        push_section(&mut text, "[metrics]", &json!({ "listen": null }));
        assert_eq!(text, "");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = std::env::temp_dir().join(format!("tenon-save-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("saved.toml");
        std::fs::write(&path, "old").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
