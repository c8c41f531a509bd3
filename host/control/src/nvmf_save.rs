//! What the target has, written as it would be configured: tables of a
//! configuration file, and the calls that make it again.

use serde_json::{Map, Value, json};
use tenon_bdev::QosLimits;
use tenon_nvmf_target::{
    AnaState, AuthenticationOptions, HostKeys, KeySnapshot, ListenerSnapshot, NamespaceSnapshot,
    SubsystemSnapshot, SubsystemState, TargetOptions,
};

use crate::config::{
    AddressTable, AnaGroupTable, DISCOVERY_NQN, DiscoveryFilterName, HostTable, KeyTable, ListenerTable,
    NamespaceTable, NvmfConfig, NvmfSection, ReferralTable, SubsystemTable, digest_name, group_name,
};
use crate::context::Control;

/// Title and content of a table.
pub(crate) type Written = (String, Map<String, Value>);

/// The tables that make the target again, in an order people read well.
pub(crate) fn tables(control: &Control) -> Vec<Written> {
    let mut tables = vec![written("[nvmf]", &options(control))];
    tables.extend(keys(control).iter().map(|key| written("[[key]]", key)));
    for trtype in control.target().transports() {
        tables.push(transport_table(&trtype, control.nvmf().transport_options(&trtype)));
    }
    for subsystem in wanted_subsystems(control) {
        let mut table = table_of(&subsystem);
        table.namespace.extend(control.nvmf().waiting_in(&table.nqn));
        table.namespace.sort_by_key(|namespace| namespace.nsid);
        push_subsystem(&table, &mut tables);
    }
    let referrals = control.target().referrals();
    tables.extend(referrals.iter().map(|referral| {
        let AddressTable { trtype, adrfam, traddr, trsvcid } = AddressTable::of(&referral.address);
        let subnqn = (referral.subnqn != DISCOVERY_NQN).then(|| referral.subnqn.clone());
        let secure_channel = referral.secure_channel;
        let table = ReferralTable { trtype, adrfam, traddr, trsvcid, subnqn, secure_channel };
        written("[[referral]]", &table)
    }));
    tables
}

/// The tables of a configuration as it was read.
pub(crate) fn tables_of(config: &NvmfConfig) -> Vec<Written> {
    let mut tables = vec![written("[nvmf]", &config.options)];
    tables.extend(config.keys.iter().map(|key| written("[[key]]", &key.table)));
    for entry in &config.transports {
        tables.push(transport_table(&entry.trtype, entry.options.value.clone()));
    }
    for entry in &config.subsystems {
        let table = SubsystemTable {
            namespace: entry.namespaces.iter().map(|one| one.table.clone()).collect(),
            listener: entry.listeners.iter().map(|one| one.table.clone()).collect(),
            host: entry.hosts.iter().map(|one| one.table.clone()).collect(),
            ..entry.table.clone()
        };
        push_subsystem(&table, &mut tables);
    }
    tables.extend(config.referrals.iter().map(|one| written("[[referral]]", &one.table)));
    tables
}

fn written(title: &str, table: &impl serde::Serialize) -> Written {
    let value = match serde_json::to_value(table) {
        Ok(Value::Object(value)) => value,
        Ok(_) | Err(_) => Map::new(),
    };
    (title.to_owned(), value)
}

fn transport_table(trtype: &str, options: Map<String, Value>) -> Written {
    let mut table = Map::from_iter([("trtype".to_owned(), json!(trtype))]);
    table.extend(options);
    ("[[transport]]".to_owned(), table)
}

/// A subsystem's own table, then one for each thing it has.
fn push_subsystem(table: &SubsystemTable, tables: &mut Vec<Written>) {
    let (title, mut own) = written("[[subsystem]]", table);
    for key in ["namespace", "listener", "host"] {
        own.remove(key);
    }
    if table.nqn == DISCOVERY_NQN {
        own.retain(|key, _| key == "nqn");
    }
    tables.push((title, own));
    tables.extend(table.host.iter().map(|one| written("[[subsystem.host]]", one)));
    tables.extend(table.namespace.iter().map(|one| written("[[subsystem.namespace]]", one)));
    tables.extend(table.listener.iter().map(|one| written("[[subsystem.listener]]", one)));
}

fn options(control: &Control) -> NvmfSection {
    let (target, default) = (control.target(), TargetOptions::default());
    let (limit, delays) = (target.max_subsystems(), target.retry_delays());
    let filter = DiscoveryFilterName(target.discovery_filter());
    let (authentication, usual) = (target.authentication(), AuthenticationOptions::default());
    let digests = || authentication.hashes.iter().map(|hash| digest_name(*hash).to_owned()).collect();
    let groups = || authentication.groups.iter().map(|group| group_name(*group).to_owned()).collect();
    NvmfSection {
        dhchap_digests: (authentication.hashes != usual.hashes).then(digests),
        dhchap_dhgroups: (authentication.groups != usual.groups).then(groups),
        max_subsystems: (limit != default.max_subsystems).then(|| u32::try_from(limit).unwrap_or(u32::MAX)),
        discovery_filter: (filter != DiscoveryFilterName::default()).then_some(filter),
        publish_mdns: target.publishes_mdns().then_some(true),
        crdt: (delays != default.retry_delays_100ms).then_some(delays),
        reservation_directory: control.engine().current().nvmf.options.reservation_directory,
    }
}

fn keys(control: &Control) -> Vec<KeyTable> {
    let table = |key: KeySnapshot| KeyTable { name: key.name, path: key.path.display().to_string() };
    control.target().keys().into_iter().map(table).collect()
}

/// Subsystems to write: those that stay, and the discovery subsystem if it has listeners of its own.
fn wanted_subsystems(control: &Control) -> Vec<SubsystemSnapshot> {
    let is_wanted = |one: &SubsystemSnapshot| {
        one.state != SubsystemState::Going && !(one.is_discovery && one.listeners.is_empty())
    };
    control.target().subsystems().into_iter().filter(is_wanted).collect()
}

fn table_of(subsystem: &SubsystemSnapshot) -> SubsystemTable {
    let spec = &subsystem.spec;
    SubsystemTable {
        nqn: spec.nqn.clone(),
        serial_number: Some(spec.serial_number.clone()),
        model_number: Some(spec.model_number.clone()),
        max_namespaces: Some(spec.max_namespaces),
        allow_any_host: subsystem.allow_any_host,
        ana_reporting: spec.ana_reporting,
        min_cntlid: Some(spec.min_cntlid),
        max_cntlid: Some(spec.max_cntlid),
        max_discard_size_kib: spec.max_discard_size_kib,
        max_write_zeroes_size_kib: spec.max_write_zeroes_size_kib,
        namespace: subsystem.namespaces.iter().map(namespace_table).collect(),
        listener: subsystem.listeners.iter().map(listener_table).collect(),
        host: {
            let hosts = subsystem.hosts.iter().zip(&subsystem.host_keys);
            hosts.zip(&subsystem.host_limits).map(host_table).collect()
        },
    }
}

/// With its identity, so that hosts find the same namespace again whatever its device gets.
fn namespace_table(namespace: &NamespaceSnapshot) -> NamespaceTable {
    let digits = |bytes: &[u8]| {
        let is_set = bytes.iter().any(|byte| *byte != 0);
        is_set.then(|| crate::methods::nvmf::hexadecimal(bytes))
    };
    NamespaceTable {
        bdev_name: namespace.bdev_name.clone(),
        nsid: Some(namespace.nsid),
        nguid: digits(&namespace.nguid),
        eui64: digits(&namespace.eui64),
        uuid: Some(namespace.uuid.to_string()),
        anagrpid: (namespace.anagrpid != namespace.nsid).then_some(namespace.anagrpid),
        no_auto_visible: namespace.hosts.is_some(),
        hosts: namespace.hosts.clone().unwrap_or_default(),
        read_only: namespace.spec.read_only,
        ptpl_file: namespace.spec.ptpl_file.clone(),
    }
}

fn listener_table(listener: &ListenerSnapshot) -> ListenerTable {
    let AddressTable { trtype, adrfam, traddr, trsvcid } = AddressTable::of(&listener.address);
    let default = listener.default_ana_state;
    let others = listener.ana_states.iter().filter(|(_, state)| *state != default);
    ListenerTable {
        trtype,
        adrfam,
        traddr,
        trsvcid,
        secure_channel: listener.is_secure,
        ana_state: (default != AnaState::OPTIMIZED).then(|| default.word().to_owned()),
        ana_groups: others
            .map(|(group, state)| AnaGroupTable { anagrpid: *group, ana_state: state.word().to_owned() })
            .collect(),
    }
}

fn host_table(((host, keys), limits): ((&String, &HostKeys), &QosLimits)) -> HostTable {
    let HostKeys { psk, dhchap_key, dhchap_ctrlr_key } = keys.clone();
    HostTable {
        nqn: host.clone(),
        psk,
        dhchap_key,
        dhchap_ctrlr_key,
        rw_ios_per_sec: limits.rw_ios_per_sec,
        rw_mbytes_per_sec: limits.rw_mbytes_per_sec,
        r_mbytes_per_sec: limits.r_mbytes_per_sec,
        w_mbytes_per_sec: limits.w_mbytes_per_sec,
    }
}

/// The calls that make the target again, in the order they must be made.
pub(crate) fn calls(control: &Control) -> Vec<Value> {
    let call = |method: &str, params: Value| json!({ "method": method, "params": params });
    let target = control.target();
    let [crdt1, crdt2, crdt3] = target.retry_delays();
    let mut set_config = json!({ "discovery_filter": DiscoveryFilterName(target.discovery_filter()).text() });
    let options = options(control);
    for (key, names) in
        [("dhchap_digests", options.dhchap_digests), ("dhchap_dhgroups", options.dhchap_dhgroups)]
    {
        if let Some(names) = names {
            set_config[key] = json!(names);
        }
    }
    let mut calls = vec![
        call("nvmf_set_max_subsystems", json!({ "max_subsystems": target.max_subsystems() })),
        call("nvmf_set_crdt", json!({ "crdt1": crdt1, "crdt2": crdt2, "crdt3": crdt3 })),
        call("nvmf_set_config", set_config),
    ];
    calls.extend(keys(control).iter().map(|key| call("keyring_file_add_key", json!(key))));
    for trtype in target.transports() {
        let (_, params) = transport_table(&trtype, control.nvmf().transport_options(&trtype));
        calls.push(call("nvmf_create_transport", Value::Object(params)));
    }
    for subsystem in wanted_subsystems(control) {
        subsystem_calls(&table_of(&subsystem), &mut calls);
    }
    for referral in target.referrals() {
        let params = json!({
            "address": AddressTable::of(&referral.address),
            "secure_channel": referral.secure_channel,
            "subnqn": referral.subnqn,
        });
        calls.push(call("nvmf_discovery_add_referral", params));
    }
    if target.publishes_mdns() {
        calls.push(call("nvmf_publish_mdns_prr", json!({})));
    }
    calls
}

fn subsystem_calls(table: &SubsystemTable, calls: &mut Vec<Value>) {
    let nqn = &table.nqn;
    let mut call = |method: &str, params: Value| calls.push(json!({ "method": method, "params": params }));
    if nqn != DISCOVERY_NQN {
        let mut tables = Vec::new();
        push_subsystem(
            &SubsystemTable { namespace: vec![], listener: vec![], host: vec![], ..table.clone() },
            &mut tables,
        );
        for (_, params) in tables {
            call("nvmf_create_subsystem", Value::Object(params));
        }
    }
    for host in &table.host {
        let mut params = json!({ "nqn": nqn, "host": host.nqn });
        let keys = [
            ("psk", &host.psk),
            ("dhchap_key", &host.dhchap_key),
            ("dhchap_ctrlr_key", &host.dhchap_ctrlr_key),
        ];
        for (key, name) in keys {
            if let Some(name) = name {
                params[key] = json!(name);
            }
        }
        call("nvmf_subsystem_add_host", params);
        let limits = host.limits();
        if limits.is_limited() {
            let params = json!({
                "nqn": nqn, "host": host.nqn,
                "rw_ios_per_sec": limits.rw_ios_per_sec, "rw_mbytes_per_sec": limits.rw_mbytes_per_sec,
                "r_mbytes_per_sec": limits.r_mbytes_per_sec, "w_mbytes_per_sec": limits.w_mbytes_per_sec,
            });
            call("nvmf_subsystem_set_host_qos_limit", params);
        }
    }
    for namespace in &table.namespace {
        let (_, mut own) = written("", namespace);
        own.remove("hosts");
        call("nvmf_subsystem_add_ns", json!({ "nqn": nqn, "namespace": own }));
        for host in &namespace.hosts {
            call("nvmf_ns_add_host", json!({ "nqn": nqn, "nsid": namespace.nsid, "host": host }));
        }
    }
    for listener in &table.listener {
        let address = json!({
            "trtype": listener.trtype, "adrfam": listener.adrfam,
            "traddr": listener.traddr, "trsvcid": listener.trsvcid,
        });
        let mut params =
            json!({ "nqn": nqn, "listen_address": address, "secure_channel": listener.secure_channel });
        if let Some(state) = &listener.ana_state {
            params["ana_state"] = json!(state);
        }
        call("nvmf_subsystem_add_listener", params);
        for group in &listener.ana_groups {
            call(
                "nvmf_subsystem_listener_set_ana_state",
                json!({
                    "nqn": nqn, "listen_address": address,
                    "ana_state": group.ana_state, "anagrpid": group.anagrpid,
                }),
            );
        }
    }
}
