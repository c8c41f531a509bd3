//! The configuration as types: the host's own tables in full, the tables of
//! modules as JSON under the module's name. Defaults are in the doc comments,
//! which are also the schema's descriptions.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::document::{ConfigError, Table, read, remedy};
use super::nvmf::{KeyTable, NvmfConfig, NvmfSection, ReferralTable, SubsystemTable};

/// A whole configuration file.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `[host]`.
    pub host: HostSection,
    /// `[plugins]`.
    pub plugins: PluginsSection,
    /// `[metrics]`.
    pub metrics: MetricsSection,
    /// `[bdev_options]`.
    pub bdev: BdevSection,
    /// `[[module]]`, in file order.
    pub modules: Vec<ModuleEntry>,
    /// `[[bdev]]`, in file order.
    pub bdevs: Vec<BdevEntry>,
    /// What is exported: `[nvmf]`, `[[key]]`, `[[transport]]`, `[[subsystem]]`, `[[referral]]`.
    pub nvmf: NvmfConfig,
}

/// `[host]`: threads, control socket and log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HostSection {
    /// CPUs the data reactors are pinned to, e.g. `"0-3,8"`. Default: one reactor, on the first allowed CPU.
    pub cpus: Option<String>,
    /// `"adaptive"` sleeps when idle, `"poll"` never sleeps. Default: `"adaptive"`.
    pub mode: ReactorMode,
    /// How long an idle adaptive reactor spins before it sleeps, in microseconds. Default: 50.
    pub spin_us: Option<u64>,
    /// Path of the control socket. Default: `/var/tmp/tenon.sock`, or what the command line says.
    pub rpc_socket: Option<PathBuf>,
    /// `"error"`, `"warn"`, `"info"`, `"debug"` or `"trace"`. Default: `"info"`.
    pub log_level: Option<LogLevel>,
    /// How long a removal, a `fini` or the shutdown may take before it is reported, in seconds. Default: 10.
    pub drain_timeout_sec: Option<u64>,
}

/// How data reactors wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReactorMode {
    /// Spin while there is work and a short while after, then sleep.
    #[default]
    Adaptive,
    /// Never sleep.
    Poll,
}

/// Log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// An operator must act.
    Error,
    /// Something works worse than it should.
    Warn,
    /// Objects come, go and change state.
    Info,
    /// Per command.
    Debug,
    /// Everything.
    Trace,
}

/// `[plugins]`: where plugins come from and what is asked of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PluginsSection {
    /// Directories searched before the bundled ones. Default: none.
    pub directories: Vec<PathBuf>,
    /// `"require"` a matching layout certificate, `"warn"` without one, or do not look (`"off"`). Default: `"warn"`.
    pub layout_check: LayoutCheck,
    /// Time a module has for its `init`, in seconds. Default: 5.
    pub init_timeout_sec: Option<u64>,
    /// Where plugins are copied before they are loaded, so that an overwritten file cannot hurt a running host.
    /// Default: `$STATE_DIRECTORY` as set by systemd, else plugins are loaded where they are.
    pub state_directory: Option<PathBuf>,
    /// Watch the directories for new plugins. Default: true.
    pub watch: Option<bool>,
}

/// What to do about a plugin's layout certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LayoutCheck {
    /// Refuse a plugin without one.
    Require,
    /// Load it and say so.
    #[default]
    Warn,
    /// Do not look.
    Off,
}

/// `[metrics]`: the Prometheus endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsSection {
    /// Address and port, e.g. `"127.0.0.1:9464"`. Default: no endpoint.
    pub listen: Option<String>,
}

/// `[bdev_options]`: options of the block-device layer; the same as `bdev_set_options`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BdevSection {
    /// Offer every new device to every module. Default: true.
    pub auto_examine: Option<bool>,
    /// How long a reset waits for outstanding I/O before the module resets the device, in seconds. Default: 5.
    pub reset_drain_timeout_sec: Option<u64>,
}

/// `[[module]]`: options of a module, loaded at start.
#[derive(Clone, Debug)]
pub struct ModuleEntry {
    /// Module name.
    pub name: String,
    /// True: the host does not start without it.
    pub required: bool,
    /// The module's own options.
    pub options: Table,
}

/// `[[bdev]]`: a device.
#[derive(Clone, Debug)]
pub struct BdevEntry {
    /// Module that creates it.
    pub module: String,
    /// Name, or what the module makes of the parameters if it takes none.
    pub name: String,
    /// Rate limits.
    pub qos: QosTable,
    /// The module's parameters (with `name`).
    pub params: Table,
}

/// `qos` of a `[[bdev]]`; the same as `bdev_set_qos_limit`. 0 or absent: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QosTable {
    /// Reads and writes per second; a multiple of 1000.
    pub rw_ios_per_sec: u64,
    /// MiB per second, reads and writes together.
    pub rw_mbytes_per_sec: u64,
    /// MiB per second, reads.
    pub r_mbytes_per_sec: u64,
    /// MiB per second, writes.
    pub w_mbytes_per_sec: u64,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| ConfigError::Unreadable { file: file.to_owned(), reason: error.to_string() })?;
        Self::parse(file, &text)
    }

    /// Reads a text; `file` is for messages.
    ///
    /// # Errors
    /// The first thing wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        for (section, table) in read(file, text)? {
            let single = table.title.starts_with(&format!("[{section}]"));
            match (section.as_str(), single) {
                ("host", true) => config.host = parse_section(&table)?,
                ("plugins", true) => config.plugins = parse_section(&table)?,
                ("metrics", true) => config.metrics = metrics(&table)?,
                ("bdev_options", true) => config.bdev = parse_section(&table)?,
                ("module", false) => config.modules.push(module_entry(table)?),
                ("bdev", false) => config.bdevs.push(bdev_entry(table)?),
                _ => {
                    let unknown = unknown_section(&section, &table);
                    if !config.nvmf.take(&section, single, table)? {
                        return Err(unknown);
                    }
                }
            }
        }
        check_unique_names(&config)?;
        config.nvmf.check_unique()?;
        config.nvmf.number_namespaces(&NvmfConfig::default());
        Ok(config)
    }
}

/// JSON Schema of the host's own tables and the frame of the module tables.
#[must_use]
pub fn host_schema() -> Map<String, Value> {
    let list = |items: Value| serde_json::json!({ "type": "array", "items": items });
    Map::from_iter([
        ("host".to_owned(), inline::<HostSection>()),
        ("plugins".to_owned(), inline::<PluginsSection>()),
        ("metrics".to_owned(), inline::<MetricsSection>()),
        ("bdev_options".to_owned(), inline::<BdevSection>()),
        ("nvmf".to_owned(), inline::<NvmfSection>()),
        ("key".to_owned(), list(inline::<KeyTable>())),
        ("subsystem".to_owned(), list(inline::<SubsystemTable>())),
        ("referral".to_owned(), list(inline::<ReferralTable>())),
    ])
}

/// The schema of a type that refers to nothing: a reference would be looked for in the whole file's schema.
fn inline<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// Keys a table of this type must have.
pub(super) fn required_keys<T: JsonSchema>() -> Vec<String> {
    let schema = schema_for!(T).to_value();
    let required = schema["required"].as_array().into_iter().flatten();
    required.filter_map(|key| key.as_str().map(str::to_owned)).collect()
}

pub(super) fn parse_section<T: JsonSchema + for<'de> Deserialize<'de>>(
    table: &Table,
) -> Result<T, ConfigError> {
    let known = known_keys::<T>();
    table.check_keys(known.iter().map(String::as_str))?;
    table.parse()
}

/// Keys a table of this type may have.
fn known_keys<T: JsonSchema>() -> Vec<String> {
    let schema = schema_for!(T).to_value();
    schema["properties"].as_object().into_iter().flat_map(Map::keys).cloned().collect()
}

fn metrics(table: &Table) -> Result<MetricsSection, ConfigError> {
    let section: MetricsSection = parse_section(table)?;
    if let Some(listen) = &section.listen
        && listen.parse::<SocketAddr>().is_err()
    {
        let reason = format!("`{listen}` is no ADDRESS:PORT, such as 127.0.0.1:9464");
        return Err(table.bad_value("listen", reason));
    }
    Ok(section)
}

fn module_entry(mut table: Table) -> Result<ModuleEntry, ConfigError> {
    let name = table.take_text("name")?;
    let required = match table.value.remove("required") {
        None => false,
        Some(Value::Bool(flag)) => flag,
        Some(other) => return Err(table.bad_value("required", format!("must be true or false, not {other}"))),
    };
    Ok(ModuleEntry { name, required, options: table })
}

fn bdev_entry(mut table: Table) -> Result<BdevEntry, ConfigError> {
    let module = table.take_text("module")?;
    let qos = match table.value.remove("qos") {
        None => QosTable::default(),
        Some(value) => {
            table.check_nested_keys("qos", &value, &known_keys::<QosTable>())?;
            serde_path_to_error::deserialize(value).map_err(|error| {
                table.bad_value(&format!("qos.{}", error.path()), error.inner().to_string())
            })?
        }
    };
    let name = match table.value.get("name") {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        Some(other) => {
            return Err(table.bad_value("name", format!("must be a non-empty string, not {other}")));
        }
        None => implied_name(&module, &table)?,
    };
    Ok(BdevEntry { module, name, qos, params: table })
}

/// A table without `name` has the name that clients know: a device of module `error` is called after its base.
fn implied_name(module: &str, table: &Table) -> Result<String, ConfigError> {
    match table.value.get("base") {
        Some(Value::String(base)) if module == "error" && !base.is_empty() => Ok(format!("EE_{base}")),
        _ => Err(ConfigError::MissingKey {
            at: table.location(),
            table: table.title.clone(),
            key: "name".to_owned(),
        }),
    }
}

fn check_unique_names(config: &Config) -> Result<(), ConfigError> {
    let mut seen = std::collections::HashMap::new();
    for entry in &config.bdevs {
        if let Some(first) = seen.insert(entry.name.as_str(), entry.params.location()) {
            let reason = format!("`{}` is defined already at {first}", entry.name);
            return Err(entry.params.bad_value("name", reason));
        }
    }
    let mut seen = std::collections::HashMap::new();
    for entry in &config.modules {
        if let Some(first) = seen.insert(entry.name.as_str(), entry.options.location()) {
            let reason = format!("`{}` is defined already at {first}", entry.name);
            return Err(entry.options.bad_value("name", reason));
        }
    }
    Ok(())
}

fn unknown_section(section: &str, table: &Table) -> ConfigError {
    if SECTIONS.contains(&section) {
        let is_list = !matches!(section, "host" | "plugins" | "metrics" | "bdev_options" | "nvmf");
        let right = if is_list { "[[…]]" } else { "[…]" };
        return table.bad_value(".", format!("`{section}` is written as {right}"));
    }
    ConfigError::UnknownKey {
        at: table.location(),
        table: "the configuration".to_owned(),
        key: section.to_owned(),
        remedy: remedy(section, SECTIONS.iter().copied()),
    }
}

/// Names of the top-level tables.
pub(super) const SECTIONS: &[&str] = &[
    "host",
    "plugins",
    "metrics",
    "bdev_options",
    "module",
    "bdev",
    "nvmf",
    "key",
    "transport",
    "subsystem",
    "referral",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("t.toml"), text)
    }

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        assert_eq!(parse(text).expect_err(text).to_string(), expected);
    }

    #[test]
    fn the_schema_of_a_section_refers_to_nothing_outside() {
        let text = serde_json::to_string(&host_schema()).unwrap();
        assert!(!text.contains("$ref") && !text.contains("$schema"), "{text}");
        assert!(text.contains("bdev_name") && text.contains("non_optimized"), "{text}");
    }

    #[test]
    fn an_empty_file_is_a_valid_configuration() {
        assert!(parse("").unwrap().bdevs.is_empty());
    }

    #[test]
    fn tables_of_modules_stay_json_without_the_hosts_keys() {
        let config = parse(
            "[[bdev]]\nmodule = \"malloc\"\nname = \"m0\"\nsize = \"64MiB\"\nqos = { rw_ios_per_sec = 1000 }\n",
        )
        .unwrap();
        let entry = &config.bdevs[0];
        assert_eq!((entry.module.as_str(), entry.qos.rw_ios_per_sec), ("malloc", 1000));
        assert_eq!(
            Value::Object(entry.params.value.clone()),
            serde_json::json!({"name": "m0", "size": "64MiB"})
        );
        assert_eq!(entry.params.location_of("size").line, 4);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_and_its_line() {
        check_error(
            "[host]\ncpus = \"0\"\nlog_levle = \"info\"\n",
            "t.toml:3: unknown key `log_levle` in [host]; did you mean `log_level`?",
        );
        check_error(
            "[metricz]\nlisten = \"x\"\n",
            "t.toml:1: unknown key `metricz` in the configuration; did you mean `metrics`?",
        );
    }

    #[test]
    fn an_error_is_one_line_whatever_is_in_the_file() {
        check_error(
            "[plugins]\nlayout_check = \"a\\nb\"\n",
            "t.toml:2: [plugins] `layout_check`: unknown variant `a\\nb`, expected one of `require`, `warn`, `off`",
        );
        check_error("[[bdev]]\nname = \"a\\u001Bb\"\n", "t.toml:1: [[bdev]] a\\u{1b}b lacks `module`");
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_its_line() {
        check_error(
            "[host]\n\nspin_us = \"soon\"\n",
            "t.toml:3: [host] `spin_us`: invalid type: string \"soon\", expected u64",
        );
    }

    #[test]
    fn the_same_name_twice_names_both_lines() {
        check_error(
            "[[bdev]]\nmodule=\"null\"\nname=\"a\"\n[[bdev]]\nmodule=\"null\"\nname=\"a\"\n",
            "t.toml:6: [[bdev]] a `name`: `a` is defined already at t.toml:1",
        );
    }

    #[test]
    fn broken_toml_names_its_line() {
        let error = parse("[host]\ncpus = \n").unwrap_err().to_string();
        assert!(error.starts_with("t.toml:2: "), "{error}");
    }

    #[test]
    fn a_bdev_without_module_or_name_is_refused() {
        check_error("[[bdev]]\nname=\"a\"\n", "t.toml:1: [[bdev]] a lacks `module`");
        check_error("[[bdev]]\nmodule=\"null\"\n", "t.toml:1: [[bdev]] lacks `name`");
    }

    #[test]
    fn a_single_table_where_an_array_belongs_is_explained() {
        check_error("[bdev]\nmodule=\"null\"\n", "t.toml:1: [bdev]: `bdev` is written as [[…]]");
    }
}
