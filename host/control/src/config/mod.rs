//! The configuration file: one TOML text, declarative and order-free.
//!
//! `document` reads TOML and remembers the line of every key, `sections` gives
//! the host's own tables their types, `difference` compares two files for a
//! reload (`nvmf_difference` for what is exported), `nvmf` (with `nvmf_words`) holds the tables of
//! the NVMe-oF target, `suggest` finds the key somebody probably meant. The tables of
//! modules (`[[bdev]]`, `[[module]]`) stay JSON here: the module that owns them
//! checks them. Does not create anything; that is [`crate::apply`].

mod difference;
mod document;
mod nvmf;
mod nvmf_difference;
mod nvmf_words;
mod sections;
mod suggest;

pub use difference::{Change, difference, module_difference};
pub use document::{ConfigError, Location, Table};
pub use nvmf::{
    AddressTable, AnaGroupTable, DISCOVERY_NQN, HostTable, KeyTable, ListenerTable, NamespaceEntry,
    NamespaceTable, NvmfConfig, NvmfSection, Placed, ReferralTable, SubsystemEntry, SubsystemTable,
    TransportEntry,
};
pub use nvmf_difference::{NvmfChange, Phase, nvmf_difference};
pub use nvmf_words::{DiscoveryFilterName, Wrong, ana_state, authentication, digest_name, group_name};
pub use sections::{
    BdevEntry, BdevSection, Config, HostSection, LayoutCheck, LogLevel, MetricsSection, ModuleEntry,
    PluginsSection, QosTable, ReactorMode, host_schema,
};
pub use suggest::nearest;
