//! `tenon check` and `tenon config schema`: everything that can be said about a
//! configuration without starting a host. Plugins are loaded for what they say
//! of their parameters, but no module is started and no device is made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;
use tenon_control::config::{BdevEntry, Config, ConfigError, ModuleEntry, Table, TransportEntry, nearest};
use tenon_control::schema::{ModuleSchema, of_file};
use tenon_modules::{Catalog, LayoutCheck, Module, ModuleRef, Refusal, Trust, open_unstarted};

use crate::cli::{CheckArgs, SchemaArgs};
use crate::exit::{CONFIG, Exit};
use crate::host;

/// `tenon check`.
pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let file = args.file.as_ref().or(args.config.as_ref()).expect("the command line has one of them");
    let config = host::read_config(Some(file))?;
    let catalog = host::catalog(&config, &args.plugin_dir);
    let mut plugins = Plugins { catalog, loaded: BTreeMap::new() };
    let mut problems: Vec<String> = Vec::new();
    if let Some(list) = &config.host.cpus
        && let Err(reason) = host::parse_cpus(list)
    {
        problems.push(format!("{}: [host] `cpus`: {reason}", file.display()));
    }
    for entry in &config.modules {
        problems.extend(plugins.check_module(entry));
    }
    for entry in &config.bdevs {
        problems.extend(plugins.check_bdev(entry));
    }
    for entry in &config.nvmf.transports {
        problems.extend(plugins.check_transport(entry));
    }
    problems.extend(check_identities(&config.bdevs));
    problems.extend(check_references(&config));
    if problems.is_empty() {
        println!("{}: {}", file.display(), summary(&config));
        return Ok(());
    }
    Err(Exit::new(CONFIG, problems.join("\n       ")).into())
}

fn summary(config: &Config) -> String {
    let (bdevs, modules) = (config.bdevs.len(), config.modules.len());
    match config.nvmf.subsystems.len() {
        0 => format!("valid: {bdevs} bdevs, {modules} modules"),
        count => format!("valid: {bdevs} bdevs, {modules} modules, {count} subsystems"),
    }
}

/// Names that no device can have, devices that are to stand on themselves, and UUIDs that two have.
fn check_identities(bdevs: &[BdevEntry]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut known: BTreeMap<String, &BdevEntry> = BTreeMap::new();
    for entry in bdevs {
        if let Err(error) = tenon_bdev::check_name(&entry.name) {
            problems.push(entry.params.bad_value("name", error.to_string()).to_string());
        }
        if entry.params.value.get("base").is_some_and(|base| *base == *entry.name) {
            let reason = format!("{} is the device itself: name the one below it", entry.name);
            problems.push(entry.params.bad_value("base", reason).to_string());
        }
        let Some(uuid) = entry.params.value.get("uuid").and_then(Value::as_str) else { continue };
        if let Some(other) = known.insert(uuid.to_ascii_lowercase(), entry) {
            let at = other.params.location_of("uuid");
            let reason = format!("{uuid} is that of {} at {at}: give one of the two another", other.name);
            problems.push(entry.params.bad_value("uuid", reason).to_string());
        }
    }
    problems
}

/// Names inside a file that lead to nothing. A device of a namespace may come later, by RPC or hotplug.
fn check_references(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let transports: Vec<&str> = config.nvmf.transports.iter().map(|one| one.trtype.as_str()).collect();
    let keys: Vec<&str> = config.nvmf.keys.iter().map(|key| key.table.name.as_str()).collect();
    for subsystem in &config.nvmf.subsystems {
        for listener in &subsystem.listeners {
            let trtype = listener.table.trtype.to_ascii_uppercase();
            if !transports.contains(&trtype.as_str()) {
                let at = &listener.at;
                problems.push(format!(
                    "{at}: [[subsystem.listener]] `trtype`: there is no [[transport]] {trtype}"
                ));
            }
        }
        for host in &subsystem.hosts {
            let table = &host.table;
            let used = [
                ("psk", &table.psk),
                ("dhchap_key", &table.dhchap_key),
                ("dhchap_ctrlr_key", &table.dhchap_ctrlr_key),
            ];
            for (key, name) in used {
                let Some(name) = name.as_deref().filter(|name| !keys.contains(name)) else { continue };
                let remedy = nearest(name, keys.iter().copied())
                    .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                problems.push(format!(
                    "{}: [[subsystem.host]] `{key}`: there is no [[key]] {name}{remedy}",
                    host.at
                ));
            }
        }
        let spec = subsystem.table.spec();
        if let Err(error) = spec.check() {
            problems.push(format!("{}: {error}", subsystem.at));
        }
        let beyond = subsystem.namespaces.iter().filter(|one| one.nsid > spec.max_namespaces);
        problems.extend(beyond.map(|one| {
            format!(
                "{}: [[subsystem.namespace]] `nsid`: {} is more than max_namespaces, {}",
                one.at, one.nsid, spec.max_namespaces
            )
        }));
    }
    problems
}

/// `tenon config schema`.
pub fn schema(args: &SchemaArgs) -> anyhow::Result<()> {
    let mut plugins =
        Plugins { catalog: host::catalog(&Config::default(), &args.plugin_dir), loaded: BTreeMap::new() };
    let names: Vec<String> = plugins.catalog.plugins().iter().map(|plugin| plugin.name.clone()).collect();
    let mut modules = Vec::new();
    for name in names {
        match plugins.get(&name) {
            Ok(plugin) => {
                if let Some(schema) = plugin.schema.clone() {
                    modules.push(ModuleSchema { name, schema });
                }
            }
            Err(reason) => eprintln!("tenon: {reason}; its parameters are missing from the schema"),
        }
    }
    modules.dedup_by(|a, b| a.name == b.name);
    crate::exit::end_with_reader();
    println!("{}", serde_json::to_string_pretty(&of_file(&modules)).context("cannot print")?);
    Ok(())
}

struct Plugin {
    module: ModuleRef,
    schema: Option<Value>,
}

/// Plugins loaded for questions, each at most once.
struct Plugins {
    catalog: Catalog,
    loaded: BTreeMap<String, Result<Plugin, String>>,
}

impl Plugins {
    fn get(&mut self, name: &str) -> Result<&Plugin, String> {
        if !self.loaded.contains_key(name) {
            let plugin = self.load(name);
            self.loaded.insert(name.to_owned(), plugin);
        }
        self.loaded[name].as_ref().map_err(Clone::clone)
    }

    fn load(&self, name: &str) -> Result<Plugin, String> {
        let path: PathBuf = match self.catalog.newest(name) {
            Some(info) => info.path.clone(),
            None => return Err(self.unknown(name)),
        };
        let module =
            open_unstarted(&path, Trust::Owner, LayoutCheck::Warn).map_err(|error| error.to_string())?;
        let schema = module.schema().and_then(|text| serde_json::from_str(&text).ok());
        Ok(Plugin { module, schema })
    }

    fn unknown(&self, name: &str) -> String {
        let names = self.catalog.plugins().iter().map(|plugin| plugin.name.as_str());
        match nearest(name, names.clone()) {
            Some(near) => format!("no plugin provides module `{name}`; did you mean `{near}`?"),
            None => {
                let known: Vec<&str> = names.collect();
                format!("no plugin provides module `{name}`; found: {}", known.join(", "))
            }
        }
    }

    fn check_transport(&mut self, entry: &TransportEntry) -> Option<String> {
        let name = format!("transport_{}", entry.trtype.to_ascii_lowercase());
        let plugin = match self.get(&name) {
            Ok(plugin) => plugin,
            Err(_) => {
                let known: Vec<String> = self.transports();
                let near = nearest(&entry.trtype, known.iter().map(String::as_str));
                let remedy = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("found: {}", known.join(", ")),
                };
                let at = entry.options.location_of("trtype");
                return Some(format!("{at}: no plugin provides transport `{}`; {remedy}", entry.trtype));
            }
        };
        let unknown_key = plugin.schema.as_ref().and_then(|schema| {
            let keys = tenon_control::schema::transport_keys(schema)?;
            entry.options.check_keys(keys.iter().map(String::as_str)).err()
        });
        plugin.complaint(&entry.options, unknown_key, Module::validate)
    }

    /// Transports there are plugins for.
    fn transports(&self) -> Vec<String> {
        let names = self.catalog.plugins().iter();
        names.filter_map(|plugin| plugin.name.strip_prefix("transport_").map(str::to_uppercase)).collect()
    }

    fn check_module(&mut self, entry: &ModuleEntry) -> Option<String> {
        let plugin = match self.get(&entry.name) {
            Ok(plugin) => plugin,
            Err(reason) => return Some(format!("{}: {reason}", entry.options.location())),
        };
        let unknown_key = plugin.schema.as_ref().and_then(|schema| {
            let keys = tenon_control::schema::module_keys(schema)?;
            entry.options.check_keys(keys.iter().map(String::as_str)).err()
        });
        plugin.complaint(&entry.options, unknown_key, Module::validate_config)
    }

    fn check_bdev(&mut self, entry: &BdevEntry) -> Option<String> {
        let plugin = match self.get(&entry.module) {
            Ok(plugin) => plugin,
            Err(reason) => return Some(format!("{}: {reason}", entry.params.location_of("module"))),
        };
        let unknown_key = plugin.schema.as_ref().and_then(|schema| host::check_keys(entry, schema).err());
        plugin.complaint(&entry.params, unknown_key, Module::validate)
    }
}

impl Plugin {
    /// What the module says against a table, with its line; `unknown_key` is what its schema says.
    fn complaint(
        &self,
        table: &Table,
        unknown_key: Option<ConfigError>,
        validate: fn(&Module, &str) -> Result<(), Refusal>,
    ) -> Option<String> {
        let params = Value::Object(table.value.clone()).to_string();
        let reason = validate(self.module, &params).err()?.text;
        Some(match unknown_key {
            // The module knows more names for its keys than its schema tells; it has the last word.
            Some(error @ ConfigError::UnknownKey { .. }) if names_key(&error, &reason) => error.to_string(),
            _ => value_error(table, &reason).to_string(),
        })
    }
}

fn names_key(error: &ConfigError, reason: &str) -> bool {
    matches!(error, ConfigError::UnknownKey { key, .. } if reason.contains(&format!("`{key}`")))
}

/// A module's complaint, put on the line of the key it names first.
fn value_error(table: &Table, reason: &str) -> ConfigError {
    let key = table.value.keys().find(|key| {
        reason.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == key.as_str())
    });
    table.bad_value(key.map_or(".", String::as_str), reason.to_owned())
}
