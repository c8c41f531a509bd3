//! The tables of the NVMe-oF target: `[nvmf]`, `[[key]]`, `[[transport]]`,
//! `[[subsystem]]` with its namespaces, listeners and hosts, `[[referral]]`.
//!
//! The same structs are parameters of the `nvmf_*` and `keyring_*` calls, and
//! make the schema. Options of a transport stay JSON: its plugin checks them.
//! Does not reach any object; [`crate::nvmf`] does.

use std::collections::BTreeSet;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tenon_bdev::QosLimits;
use tenon_nvmf_target::{
    Address, AnaState, AuthenticationOptions, HostKeys, NamespaceSpec, Referral, SubsystemSpec,
};

use super::document::{ConfigError, Location, Table};
use super::nvmf_words::{
    DiscoveryFilterName, TextOrNumber, Wrong, ana_state, authentication, hexadecimal, text_or_number,
};
use super::sections::parse_section;

/// What a file says of the target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NvmfConfig {
    /// `[nvmf]`.
    pub options: NvmfSection,
    /// `[[key]]`.
    pub keys: Vec<Placed<KeyTable>>,
    /// `[[transport]]`.
    pub transports: Vec<TransportEntry>,
    /// `[[subsystem]]`.
    pub subsystems: Vec<SubsystemEntry>,
    /// `[[referral]]`.
    pub referrals: Vec<Placed<ReferralTable>>,
}

/// A table with the place it stands at. The place does not count when two are compared.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    /// Where.
    pub at: Location,
    /// What.
    pub table: T,
}

impl<T: PartialEq> PartialEq for Placed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.table == other.table
    }
}

/// `[nvmf]`: options of the target; the same as `nvmf_set_config`, `nvmf_set_max_subsystems`, `nvmf_set_crdt`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NvmfSection {
    /// Most subsystems. Default: 1024.
    pub max_subsystems: Option<u32>,
    /// Which listeners discovery shows: `"match_any"`, or a list of `transport`, `address` and `svcid` that must
    /// be those the host came by, e.g. `"transport,address"`. Default: `"match_any"`.
    pub discovery_filter: Option<DiscoveryFilterName>,
    /// Whether TCP listeners are announced by multicast DNS; the same as `nvmf_publish_mdns_prr`. Default: false.
    pub publish_mdns: Option<bool>,
    /// Command Retry Delay Times 1 to 3, in units of 100 ms. Default: none.
    pub crdt: Option<[u16; 3]>,
    /// Hash functions for authentication, the best first: `"sha256"`, `"sha384"`, `"sha512"`. Default: all.
    pub dhchap_digests: Option<Vec<String>>,
    /// Diffie-Hellman groups for authentication, the best first: `"null"`, `"ffdhe2048"`, `"ffdhe3072"`,
    /// `"ffdhe4096"`, `"ffdhe6144"`, `"ffdhe8192"`. Default: all.
    pub dhchap_dhgroups: Option<Vec<String>>,
    /// Directory that keeps reservations hosts want to persist, of namespaces without a `ptpl_file`; takes effect
    /// at the next start. Default: `reservations` in `$STATE_DIRECTORY` as set by systemd, else they do not persist.
    pub reservation_directory: Option<PathBuf>,
}

impl NvmfSection {
    /// How hosts authenticate.
    ///
    /// # Errors
    /// The key and what is wrong with its value.
    pub fn authentication(&self) -> Result<AuthenticationOptions, Wrong> {
        authentication(self.dhchap_digests.as_deref(), self.dhchap_dhgroups.as_deref())
    }
}

/// `[[key]]`: a key in a file; the same as `keyring_file_add_key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyTable {
    /// Name by which hosts refer to it.
    pub name: String,
    /// The file, readable and writable by its owner alone.
    pub path: String,
}

/// `[[transport]]`: a transport to listen with; the same as `nvmf_create_transport`.
#[derive(Clone, Debug)]
pub struct TransportEntry {
    /// `TCP`, `RDMA`, …
    pub trtype: String,
    /// The plugin's own options.
    pub options: Table,
}

impl PartialEq for TransportEntry {
    fn eq(&self, other: &Self) -> bool {
        self.trtype == other.trtype && self.options.value == other.options.value
    }
}

/// Where to listen, or where a referral points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddressTable {
    /// Transport. Default: `"TCP"`.
    #[serde(default = "default_trtype")]
    pub trtype: String,
    /// `"IPv4"`, `"IPv6"`, `"IB"`, `"FC"` or `"loop"`. Default: what the address looks like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adrfam: Option<String>,
    /// Address.
    pub traddr: String,
    /// Service, e.g. a port. Default: none.
    #[serde(default, deserialize_with = "text_or_number")]
    #[schemars(with = "TextOrNumber")]
    pub trsvcid: String,
}

impl AddressTable {
    /// The address with everything in the spelling of the specification.
    ///
    /// # Errors
    /// The key and what is wrong with its value.
    pub fn address(&self) -> Result<Address, Wrong> {
        address(&self.trtype, self.adrfam.as_deref(), &self.traddr, &self.trsvcid)
    }

    /// A table that says `address`.
    #[must_use]
    pub fn of(address: &Address) -> Self {
        AddressTable {
            trtype: address.trtype.clone(),
            adrfam: Some(address.adrfam.clone()),
            traddr: address.traddr.clone(),
            trsvcid: address.trsvcid.clone(),
        }
    }
}

fn address(trtype: &str, adrfam: Option<&str>, traddr: &str, trsvcid: &str) -> Result<Address, Wrong> {
    if trtype.is_empty() {
        return Err(("trtype", "is empty".to_owned()));
    }
    if traddr.is_empty() {
        return Err(("traddr", "is empty".to_owned()));
    }
    let families = ["IPv4", "IPv6", "IB", "FC", "loop"];
    let adrfam = match adrfam {
        Some(wanted) => families
            .into_iter()
            .find(|family| family.eq_ignore_ascii_case(wanted))
            .ok_or_else(|| ("adrfam", format!("`{wanted}` is none of {}", families.join(", "))))?,
        None if trtype.eq_ignore_ascii_case("loop") => "loop",
        None if trtype.eq_ignore_ascii_case("fc") => "FC",
        None if traddr.contains(':') => "IPv6",
        None => "IPv4",
    };
    Ok(Address {
        trtype: trtype.to_ascii_uppercase(),
        adrfam: adrfam.to_owned(),
        traddr: traddr.to_owned(),
        trsvcid: trsvcid.to_owned(),
    })
}

/// `[[subsystem]]`: an NVM subsystem; the same as `nvmf_create_subsystem`. Of the discovery subsystem, only
/// listeners can be given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubsystemTable {
    /// NVMe Qualified Name.
    pub nqn: String,
    /// Serial number, at most 20 printable characters. Default: 20 zeroes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<String>,
    /// Model number, at most 40 printable characters. Default: `"Tenon bdev Controller"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_number: Option<String>,
    /// Largest namespace identifier, 1 to 1024. Default: 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_namespaces: Option<u32>,
    /// Any host may connect. Default: false.
    #[serde(default)]
    pub allow_any_host: bool,
    /// Report Asymmetric Namespace Access. Default: false.
    #[serde(default)]
    pub ana_reporting: bool,
    /// Smallest controller identifier. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_cntlid: Option<u16>,
    /// Largest controller identifier. Default: 65519.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cntlid: Option<u16>,
    /// Largest range of a Dataset Management command that hosts are told of, in KiB. Default: 0, no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_discard_size_kib: u64,
    /// Largest Write Zeroes command that hosts are told of, in KiB, a power of two. Default: 0, no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_write_zeroes_size_kib: u64,
    /// Namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespace: Vec<NamespaceTable>,
    /// Listeners.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listener: Vec<ListenerTable>,
    /// Hosts that may connect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host: Vec<HostTable>,
}

impl SubsystemTable {
    /// What the target makes the subsystem from.
    #[must_use]
    pub fn spec(&self) -> SubsystemSpec {
        let default = SubsystemSpec::new(&self.nqn);
        SubsystemSpec {
            serial_number: self.serial_number.clone().unwrap_or(default.serial_number),
            model_number: self.model_number.clone().unwrap_or(default.model_number),
            // 0 is what existing clients say for the default.
            max_namespaces: self.max_namespaces.filter(|max| *max > 0).unwrap_or(default.max_namespaces),
            allow_any_host: self.allow_any_host,
            ana_reporting: self.ana_reporting,
            min_cntlid: self.min_cntlid.unwrap_or(default.min_cntlid),
            max_cntlid: self.max_cntlid.unwrap_or(default.max_cntlid),
            max_discard_size_kib: self.max_discard_size_kib,
            max_write_zeroes_size_kib: self.max_write_zeroes_size_kib,
            nqn: default.nqn,
        }
    }
}

/// `[[subsystem.namespace]]`: a device shown to hosts; the same as `namespace` of `nvmf_subsystem_add_ns`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamespaceTable {
    /// The device, by name, alias or UUID; it need not be there yet.
    pub bdev_name: String,
    /// Namespace identifier. Default: the smallest free one, in the order of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nsid: Option<u32>,
    /// Namespace Globally Unique Identifier, 32 hexadecimal digits. Default: the device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nguid: Option<String>,
    /// IEEE Extended Unique Identifier, 16 hexadecimal digits. Default: the device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eui64: Option<String>,
    /// UUID. Default: the device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// ANA group. Default: the namespace identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anagrpid: Option<u32>,
    /// Only hosts listed in `hosts` see it. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_auto_visible: bool,
    /// Hosts that see it, with `no_auto_visible`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Refuse writes. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// File that keeps reservations hosts want to persist. Default: one in `[nvmf] reservation_directory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ptpl_file: Option<PathBuf>,
}

impl NamespaceTable {
    /// What the target makes the namespace from.
    ///
    /// # Errors
    /// The key and what is wrong with its value.
    pub fn spec(&self) -> Result<NamespaceSpec, Wrong> {
        if self.bdev_name.is_empty() {
            return Err(("bdev_name", "is empty".to_owned()));
        }
        if !self.hosts.is_empty() && !self.no_auto_visible {
            return Err(("hosts", "without no_auto_visible, every host sees the namespace".to_owned()));
        }
        let uuid = self.uuid.as_deref().map(uuid::Uuid::parse_str).transpose();
        Ok(NamespaceSpec {
            bdev_name: self.bdev_name.clone(),
            // 0 is what existing clients say for the smallest free one.
            nsid: self.nsid.filter(|nsid| *nsid > 0),
            nguid: self.nguid.as_deref().map(|text| hexadecimal("nguid", text)).transpose()?,
            eui64: self.eui64.as_deref().map(|text| hexadecimal("eui64", text)).transpose()?,
            uuid: uuid.map_err(|error| ("uuid", error.to_string()))?,
            anagrpid: self.anagrpid.filter(|group| *group > 0),
            no_auto_visible: self.no_auto_visible,
            read_only: self.read_only,
            ptpl_file: self.ptpl_file.clone(),
        })
    }
}

/// `[[subsystem.listener]]`: an address hosts reach the subsystem at; the same as `nvmf_subsystem_add_listener`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTable {
    /// Transport. Default: `"TCP"`.
    #[serde(default = "default_trtype")]
    pub trtype: String,
    /// `"IPv4"`, `"IPv6"`, `"IB"`, `"FC"` or `"loop"`. Default: what the address looks like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adrfam: Option<String>,
    /// Address.
    pub traddr: String,
    /// Service, e.g. a port. Default: none.
    #[serde(default, deserialize_with = "text_or_number")]
    #[schemars(with = "TextOrNumber")]
    pub trsvcid: String,
    /// Only over TLS. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub secure_channel: bool,
    /// State of the ANA groups through this listener: `"optimized"`, `"non_optimized"`, `"inaccessible"`,
    /// `"persistent_loss"` or `"change"`. Default: `"optimized"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ana_state: Option<String>,
    /// ANA groups in another state. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ana_groups: Vec<AnaGroupTable>,
}

/// One ANA group of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnaGroupTable {
    /// The group.
    pub anagrpid: u32,
    /// Its state.
    pub ana_state: String,
}

impl ListenerTable {
    /// Where.
    ///
    /// # Errors
    /// The key and what is wrong with its value.
    pub fn address(&self) -> Result<Address, Wrong> {
        address(&self.trtype, self.adrfam.as_deref(), &self.traddr, &self.trsvcid)
    }

    /// State of the groups.
    ///
    /// # Errors
    /// The name is unknown.
    pub fn state(&self) -> Result<AnaState, Wrong> {
        self.ana_state.as_deref().map_or(Ok(AnaState::OPTIMIZED), ana_state)
    }

    /// States of single groups.
    ///
    /// # Errors
    /// A name is unknown.
    pub fn groups(&self) -> Result<Vec<(u32, AnaState)>, Wrong> {
        self.ana_groups.iter().map(|group| Ok((group.anagrpid, ana_state(&group.ana_state)?))).collect()
    }
}

/// `[[subsystem.host]]`: a host that may connect; the same as `nvmf_subsystem_add_host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostTable {
    /// NVMe Qualified Name of the host.
    pub nqn: String,
    /// Key of TLS, by name. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<String>,
    /// Key by which the host proves itself (DH-HMAC-CHAP), by name. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhchap_key: Option<String>,
    /// Key by which the subsystem proves itself to the host, by name. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhchap_ctrlr_key: Option<String>,
    /// Most commands per second over all its connections. Default: 0, no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rw_ios_per_sec: u64,
    /// Most megabytes (1,048,576 bytes) read and written per second. Default: 0, no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rw_mbytes_per_sec: u64,
    /// Most megabytes read per second. Default: 0, no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub r_mbytes_per_sec: u64,
    /// Most megabytes written per second. Default: 0, no limit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub w_mbytes_per_sec: u64,
}

impl HostTable {
    /// What it may do per second.
    #[must_use]
    pub fn limits(&self) -> QosLimits {
        QosLimits {
            rw_ios_per_sec: self.rw_ios_per_sec,
            rw_mbytes_per_sec: self.rw_mbytes_per_sec,
            r_mbytes_per_sec: self.r_mbytes_per_sec,
            w_mbytes_per_sec: self.w_mbytes_per_sec,
        }
    }

    /// Names of its keys.
    #[must_use]
    pub fn keys(&self) -> HostKeys {
        HostKeys {
            psk: self.psk.clone(),
            dhchap_key: self.dhchap_key.clone(),
            dhchap_ctrlr_key: self.dhchap_ctrlr_key.clone(),
        }
    }
}

/// `[[referral]]`: a discovery service somewhere else; the same as `nvmf_discovery_add_referral`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReferralTable {
    /// Transport. Default: `"TCP"`.
    #[serde(default = "default_trtype")]
    pub trtype: String,
    /// `"IPv4"`, `"IPv6"`, `"IB"`, `"FC"` or `"loop"`. Default: what the address looks like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adrfam: Option<String>,
    /// Address.
    pub traddr: String,
    /// Service, e.g. a port. Default: none.
    #[serde(default, deserialize_with = "text_or_number")]
    #[schemars(with = "TextOrNumber")]
    pub trsvcid: String,
    /// Its NQN. Default: that of every discovery service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnqn: Option<String>,
    /// It wants TLS. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub secure_channel: bool,
}

impl ReferralTable {
    /// What the target is told.
    ///
    /// # Errors
    /// The key and what is wrong with its value.
    pub fn referral(&self) -> Result<Referral, Wrong> {
        Ok(Referral {
            address: address(&self.trtype, self.adrfam.as_deref(), &self.traddr, &self.trsvcid)?,
            subnqn: self.subnqn.clone().unwrap_or_else(|| DISCOVERY_NQN.to_owned()),
            secure_channel: self.secure_channel,
        })
    }
}

/// The NQN of every discovery service.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// A subsystem of the file.
#[derive(Clone, Debug)]
pub struct SubsystemEntry {
    /// Where it stands.
    pub at: Location,
    /// The subsystem itself; its lists are empty.
    pub table: SubsystemTable,
    /// Hosts that may connect.
    pub hosts: Vec<Placed<HostTable>>,
    /// Listeners.
    pub listeners: Vec<Placed<ListenerTable>>,
    /// Namespaces.
    pub namespaces: Vec<NamespaceEntry>,
}

impl PartialEq for SubsystemEntry {
    fn eq(&self, other: &Self) -> bool {
        self.table == other.table
            && self.hosts == other.hosts
            && self.listeners == other.listeners
            && self.namespaces == other.namespaces
    }
}

impl SubsystemEntry {
    /// True for the discovery subsystem, which is there without being asked for.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        self.table.nqn == DISCOVERY_NQN
    }
}

/// A namespace of the file.
#[derive(Clone, Debug)]
pub struct NamespaceEntry {
    /// Where it stands.
    pub at: Location,
    /// Its number: given, or chosen by [`NvmfConfig::number_namespaces`].
    pub nsid: u32,
    /// What the file says.
    pub table: NamespaceTable,
}

impl PartialEq for NamespaceEntry {
    fn eq(&self, other: &Self) -> bool {
        self.nsid == other.nsid && self.table == other.table
    }
}

impl NvmfConfig {
    /// Takes over one table of the file; false if it is none of the target's.
    pub(super) fn take(&mut self, section: &str, is_single: bool, table: Table) -> Result<bool, ConfigError> {
        match (section, is_single) {
            ("nvmf", true) => {
                self.options = parse_section(&table)?;
                self.options.authentication().map_err(|wrong| bad(&table, wrong))?;
            }
            ("key", false) => self.keys.push(placed(&table)?),
            ("transport", false) => self.transports.push(transport_entry(table)?),
            ("subsystem", false) => self.subsystems.push(subsystem_entry(table)?),
            ("referral", false) => {
                let referral: Placed<ReferralTable> = placed(&table)?;
                referral.table.referral().map_err(|wrong| bad(&table, wrong))?;
                self.referrals.push(referral);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Gives every namespace without a number the one it had in `old`, or the smallest free one.
    pub fn number_namespaces(&mut self, old: &NvmfConfig) {
        for subsystem in &mut self.subsystems {
            let before = old.subsystems.iter().find(|other| other.table.nqn == subsystem.table.nqn);
            let mut taken: BTreeSet<u32> =
                subsystem.namespaces.iter().filter_map(|namespace| namespace.table.nsid).collect();
            for namespace in subsystem.namespaces.iter_mut().filter(|one| one.table.nsid.is_none()) {
                let had = before.and_then(|before| {
                    let same = |one: &&NamespaceEntry| {
                        one.table.nsid.is_none() && one.table.bdev_name == namespace.table.bdev_name
                    };
                    before.namespaces.iter().find(same).map(|one| one.nsid)
                });
                let free = || (1..).find(|nsid| !taken.contains(nsid)).unwrap_or(1);
                namespace.nsid = had.filter(|nsid| !taken.contains(nsid)).unwrap_or_else(free);
                taken.insert(namespace.nsid);
            }
        }
    }

    /// Refuses two objects of one name.
    pub(super) fn check_unique(&self) -> Result<(), ConfigError> {
        unique("[[key]] `name`", self.keys.iter().map(|key| (key.table.name.clone(), &key.at)))?;
        let transports: Vec<_> =
            self.transports.iter().map(|one| (one.trtype.clone(), one.options.location())).collect();
        unique("[[transport]] `trtype`", transports.iter().map(|(trtype, at)| (trtype.clone(), at)))?;
        unique("[[subsystem]] `nqn`", self.subsystems.iter().map(|one| (one.table.nqn.clone(), &one.at)))?;
        for subsystem in &self.subsystems {
            let numbers = subsystem.namespaces.iter().filter_map(|one| Some((one.table.nsid?, &one.at)));
            unique("[[subsystem.namespace]] `nsid`", numbers.map(|(nsid, at)| (nsid.to_string(), at)))?;
            let addresses = subsystem
                .listeners
                .iter()
                .filter_map(|one| Some((one.table.address().ok()?.to_string(), &one.at)));
            unique("[[subsystem.listener]] address", addresses)?;
            let hosts = subsystem.hosts.iter().map(|one| (one.table.nqn.clone(), &one.at));
            unique("[[subsystem.host]] `nqn`", hosts)?;
        }
        Ok(())
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = (String, &'a Location)>) -> Result<(), ConfigError> {
    let mut seen = std::collections::HashMap::new();
    for (name, at) in names {
        if let Some(first) = seen.insert(name.clone(), at) {
            let reason = format!("`{name}` is defined already at {first}");
            return Err(ConfigError::BadValue { at: at.clone(), key: what.to_owned(), reason });
        }
    }
    Ok(())
}

fn bad(table: &Table, (key, reason): Wrong) -> ConfigError {
    table.bad_value(key, reason)
}

fn placed<T: JsonSchema + for<'de> Deserialize<'de>>(table: &Table) -> Result<Placed<T>, ConfigError> {
    require(table, &super::sections::required_keys::<T>())?;
    Ok(Placed { at: table.location(), table: parse_section(table)? })
}

/// A key that must be there is named as such, not as a fault of the whole table.
fn require(table: &Table, keys: &[String]) -> Result<(), ConfigError> {
    match keys.iter().find(|key| !table.value.contains_key(*key)) {
        None => Ok(()),
        Some(key) => Err(ConfigError::MissingKey {
            at: table.location(),
            table: table.title.clone(),
            key: key.clone(),
        }),
    }
}

fn transport_entry(mut table: Table) -> Result<TransportEntry, ConfigError> {
    let trtype = table.take_text("trtype")?.to_ascii_uppercase();
    Ok(TransportEntry { trtype, options: table })
}

fn subsystem_entry(mut table: Table) -> Result<SubsystemEntry, ConfigError> {
    let mut namespaces = Vec::new();
    let mut listeners = Vec::new();
    let mut hosts = Vec::new();
    for child in table.take_tables("namespace")? {
        let Placed { at, table } = placed::<NamespaceTable>(&child)?;
        let spec = table.spec().map_err(|wrong| bad(&child, wrong))?;
        namespaces.push(NamespaceEntry {
            at,
            nsid: spec.nsid.unwrap_or(0),
            table: NamespaceTable { nsid: spec.nsid, ..table },
        });
    }
    for child in table.take_tables("listener")? {
        let listener: Placed<ListenerTable> = placed(&child)?;
        listener.table.address().map_err(|wrong| bad(&child, wrong))?;
        listener.table.state().map_err(|wrong| bad(&child, wrong))?;
        listener.table.groups().map_err(|(_, reason)| bad(&child, ("ana_groups", reason)))?;
        listeners.push(listener);
    }
    for child in table.take_tables("host")? {
        hosts.push(placed(&child)?);
    }
    let Placed { at, table: subsystem } = placed::<SubsystemTable>(&table)?;
    let entry = SubsystemEntry { at, table: subsystem, hosts, listeners, namespaces };
    if entry.is_discovery() {
        let own = table.value.keys().find(|key| *key != "nqn").cloned();
        let other = own
            .or_else(|| (!entry.namespaces.is_empty()).then(|| "namespace".to_owned()))
            .or_else(|| (!entry.hosts.is_empty()).then(|| "host".to_owned()));
        if let Some(key) = other {
            return Err(table.bad_value(&key, "the discovery subsystem takes only listeners".to_owned()));
        }
    }
    Ok(entry)
}

fn default_trtype() -> String {
    "TCP".to_owned()
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn parse(text: &str) -> Result<NvmfConfig, ConfigError> {
        Config::parse(Path::new("t.toml"), text).map(|config| config.nvmf)
    }

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        assert_eq!(parse(text).expect_err(text).to_string(), expected);
    }

    const SUBSYSTEM: &str = "[[subsystem]]\nnqn = \"nqn.2026-01.io.tenon:a\"\n";

    #[test]
    fn nested_tables_keep_their_lines_and_belong_to_the_one_above() {
        let text = format!(
            "{SUBSYSTEM}[[subsystem.namespace]]\nbdev_name = \"m0\"\n[[subsystem.listener]]\ntraddr = \"::1\"\ntrsvcid = 4420\n{}[[subsystem.host]]\nnqn = \"nqn.2026-01.io.tenon:h\"\n",
            SUBSYSTEM.replace(":a", ":b")
        );
        let config = parse(&text).unwrap();
        let first = &config.subsystems[0];
        assert_eq!((first.namespaces.len(), first.hosts.len()), (1, 0));
        assert_eq!(first.namespaces[0].at.line, 3);
        let address = first.listeners[0].table.address().unwrap();
        assert_eq!((address.adrfam.as_str(), address.trsvcid.as_str()), ("IPv6", "4420"));
        assert_eq!(config.subsystems[1].hosts[0].table.nqn, "nqn.2026-01.io.tenon:h");
    }

    #[test]
    fn mistakes_inside_nested_tables_name_key_and_line() {
        check_error(
            &format!("{SUBSYSTEM}[[subsystem.namespace]]\nbdev_nmae = \"m0\"\nbdev_name = \"m0\"\n"),
            "t.toml:4: unknown key `bdev_nmae` in [[subsystem.namespace]] m0; did you mean `bdev_name`?",
        );
        check_error(
            &format!("{SUBSYSTEM}[[subsystem.listener]]\ntrsvcid = \"4420\"\n"),
            "t.toml:3: [[subsystem.listener]] lacks `traddr`",
        );
        check_error(
            &format!("{SUBSYSTEM}[[subsystem.namespace]]\nbdev_name = \"m0\"\nnguid = \"12\"\n"),
            "t.toml:5: [[subsystem.namespace]] m0 `nguid`: `12` is not 32 hexadecimal digits",
        );
        check_error(
            &format!("{SUBSYSTEM}[[subsystem.listener]]\ntraddr = \"a\"\nana_state = \"fast\"\n"),
            "t.toml:5: [[subsystem.listener]] a `ana_state`: `fast` is none of optimized, non_optimized, inaccessible, persistent_loss, change",
        );
        check_error(
            &format!("{SUBSYSTEM}namespace = 1\n"),
            "t.toml:3: [[subsystem]] nqn.2026-01.io.tenon:a `namespace`: is written as [[subsystem.namespace]]",
        );
        check_error("[[subsystem]]\nallow_any_host = true\n", "t.toml:1: [[subsystem]] lacks `nqn`");
        check_error(
            "[nvmf]\ndiscovery_filter = \"host\"\n",
            "t.toml:2: [nvmf] `discovery_filter`: `host` is none of match_any, or of transport, address, svcid joined by commas",
        );
    }

    #[test]
    fn two_of_one_name_are_refused_with_both_lines() {
        check_error(
            &format!("{SUBSYSTEM}{SUBSYSTEM}"),
            "t.toml:3: [[subsystem]] `nqn`: `nqn.2026-01.io.tenon:a` is defined already at t.toml:1",
        );
        check_error(
            "[[transport]]\ntrtype = \"tcp\"\n[[transport]]\ntrtype = \"TCP\"\n",
            "t.toml:3: [[transport]] `trtype`: `TCP` is defined already at t.toml:1",
        );
    }

    #[test]
    fn the_discovery_subsystem_takes_only_listeners() {
        check_error(
            "[[subsystem]]\nnqn = \"nqn.2014-08.org.nvmexpress.discovery\"\nallow_any_host = true\n",
            "t.toml:3: [[subsystem]] nqn.2014-08.org.nvmexpress.discovery `allow_any_host`: the discovery subsystem takes only listeners",
        );
    }

    #[test]
    fn namespaces_get_the_smallest_free_numbers_and_keep_them() {
        let namespaces = |names: &[(&str, Option<u32>)]| {
            let tables: String = names
                .iter()
                .map(|(name, nsid)| {
                    let nsid = nsid.map_or(String::new(), |nsid| format!("nsid = {nsid}\n"));
                    format!("[[subsystem.namespace]]\nbdev_name = \"{name}\"\n{nsid}")
                })
                .collect();
            parse(&format!("{SUBSYSTEM}{tables}")).unwrap()
        };
        let numbers = |config: &NvmfConfig| -> Vec<u32> {
            config.subsystems[0].namespaces.iter().map(|namespace| namespace.nsid).collect()
        };
        let mut old = namespaces(&[("a", None), ("b", Some(1)), ("c", None)]);
        old.number_namespaces(&NvmfConfig::default());
        assert_eq!(numbers(&old), [2, 1, 3]);
        let mut new = namespaces(&[("d", None), ("c", None), ("b", Some(1))]);
        new.number_namespaces(&old);
        assert_eq!(numbers(&new), [2, 3, 1]);
    }
}
