//! `tenon check` and `tenon config schema`: everything that can be said about a
//! configuration without starting a host. Plugins are loaded for what they say
//! of their parameters, but no module is started and no device is made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;
use tenon_control::config::{BdevEntry, Config, ConfigError, nearest};
use tenon_control::schema::{ModuleSchema, of_file};
use tenon_modules::{Catalog, LayoutCheck, ModuleRef, Trust, open_unstarted};

use crate::cli::{CheckArgs, SchemaArgs};
use crate::exit::{CONFIG, Exit};
use crate::host;

/// `tenon check`.
pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let config = host::read_config(Some(&args.file))?;
    let catalog = host::catalog(&config, &args.plugin_dir);
    let mut plugins = Plugins { catalog, loaded: BTreeMap::new() };
    let mut problems: Vec<String> = Vec::new();
    if let Some(list) = &config.host.cpus
        && let Err(reason) = host::parse_cpus(list)
    {
        problems.push(format!("{}: [host] `cpus`: {reason}", args.file.display()));
    }
    for entry in &config.modules {
        if let Err(reason) = plugins.get(&entry.name) {
            problems.push(format!("{}: {reason}", entry.options.location()));
        }
    }
    for entry in &config.bdevs {
        problems.extend(plugins.check_bdev(entry));
    }
    if problems.is_empty() {
        println!("{}: {}", args.file.display(), summary(&config));
        return Ok(());
    }
    Err(Exit::new(CONFIG, problems.join("\n       ")).into())
}

fn summary(config: &Config) -> String {
    format!("valid: {} bdevs, {} modules", config.bdevs.len(), config.modules.len())
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

    fn check_bdev(&mut self, entry: &BdevEntry) -> Option<String> {
        let plugin = match self.get(&entry.module) {
            Ok(plugin) => plugin,
            Err(reason) => return Some(format!("{}: {reason}", entry.params.location_of("module"))),
        };
        let params = Value::Object(entry.params.value.clone()).to_string();
        let reason = plugin.module.validate(&params).err()?.text;
        let unknown_key = plugin.schema.as_ref().and_then(|schema| host::check_keys(entry, schema).err());
        Some(match unknown_key {
            // The module knows more names for its keys than its schema tells; it has the last word.
            Some(error @ ConfigError::UnknownKey { .. }) if names_key(&error, &reason) => error.to_string(),
            _ => value_error(entry, &reason).to_string(),
        })
    }
}

fn names_key(error: &ConfigError, reason: &str) -> bool {
    matches!(error, ConfigError::UnknownKey { key, .. } if reason.contains(&format!("`{key}`")))
}

/// A module's complaint, put on the line of the key it names first.
fn value_error(entry: &BdevEntry, reason: &str) -> ConfigError {
    let key = entry.params.value.keys().find(|key| {
        reason.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == key.as_str())
    });
    entry.params.bad_value(key.map_or(".", String::as_str), reason.to_owned())
}
