//! What must be done to get from one export configuration to another. A start
//! is a reload from nothing, so this is the plan of both.
//!
//! The plan has three phases, because devices change before the last: what goes
//! lets go of its devices first, devices find the keys they need, what comes
//! finds its devices made.

use std::collections::BTreeSet;

use tenon_nvmf_target::Address;

use super::nvmf::{
    HostTable, KeyTable, ListenerTable, NamespaceEntry, NvmfConfig, NvmfSection, Placed, ReferralTable,
    SubsystemEntry, TransportEntry,
};

/// When a change is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before devices change: what goes.
    Going,
    /// Before devices change: what they may need.
    Keys,
    /// After.
    Coming,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum NvmfChange {
    /// Options of the target.
    SetOptions(NvmfSection),
    /// A key is no longer in the file, or in another one.
    RemoveKey(String),
    /// A key is new.
    AddKey(Placed<KeyTable>),
    /// A transport is no longer wanted.
    RemoveTransport(String),
    /// A transport is new.
    AddTransport(TransportEntry),
    /// A subsystem goes with all it has.
    RemoveSubsystem(String),
    /// A subsystem comes; what it has comes in steps of its own.
    AddSubsystem(SubsystemEntry),
    /// Who may connect changes.
    AllowAnyHost(String, bool),
    /// A host may no longer connect.
    RemoveHost(String, String),
    /// A host may connect.
    AddHost(String, Placed<HostTable>),
    /// Keys of a host change.
    SetKeys(String, Placed<HostTable>),
    /// An address is given up.
    RemoveListener(String, Address),
    /// An address comes.
    AddListener(String, Placed<ListenerTable>),
    /// ANA states through an address change.
    SetAnaStates(String, Placed<ListenerTable>),
    /// A namespace goes.
    RemoveNamespace(String, u32),
    /// A namespace comes.
    AddNamespace(String, NamespaceEntry),
    /// A namespace goes into another ANA group.
    SetAnaGroup(String, NamespaceEntry),
    /// Other hosts see a namespace.
    SetVisible(String, NamespaceEntry),
    /// A referral goes.
    RemoveReferral(Placed<ReferralTable>),
    /// A referral comes.
    AddReferral(Placed<ReferralTable>),
}

/// The steps of one phase from `old` to `new`, in order.
#[must_use]
pub fn nvmf_difference(old: &NvmfConfig, new: &NvmfConfig, phase: Phase) -> Vec<NvmfChange> {
    let mut changes = Vec::new();
    match phase {
        Phase::Going => {
            gone_subsystems(old, new, &mut changes);
            for (before, after) in kept(old, new) {
                going_in(before, after, &mut changes);
            }
            let going = |one: &&TransportEntry| !new.transports.contains(one);
            let gone = old.transports.iter().filter(going);
            changes.extend(gone.map(|one| NvmfChange::RemoveTransport(one.trtype.clone())));
            let gone = old.referrals.iter().filter(|one| !new.referrals.contains(one));
            changes.extend(gone.cloned().map(NvmfChange::RemoveReferral));
            // One whose name stays has to make room; others go when no device uses them any more.
            let gone = gone_keys(old, new).filter(|one| has_key(new, &one.table.name));
            changes.extend(gone.map(|one| NvmfChange::RemoveKey(one.table.name.clone())));
        }
        Phase::Keys => {
            let come = new.keys.iter().filter(|one| !old.keys.contains(one));
            changes.extend(come.cloned().map(NvmfChange::AddKey));
        }
        Phase::Coming => {
            if old.options != new.options {
                changes.push(NvmfChange::SetOptions(new.options.clone()));
            }
            let come = new.transports.iter().filter(|one| !old.transports.contains(one));
            changes.extend(come.cloned().map(NvmfChange::AddTransport));
            let come = new.referrals.iter().filter(|one| !old.referrals.contains(one));
            changes.extend(come.cloned().map(NvmfChange::AddReferral));
            for after in &new.subsystems {
                match before(old, after) {
                    Some(before) => coming_in(before, after, &mut changes),
                    None => {
                        let empty = SubsystemEntry {
                            hosts: Vec::new(),
                            listeners: Vec::new(),
                            namespaces: Vec::new(),
                            ..after.clone()
                        };
                        changes.push(NvmfChange::AddSubsystem(empty.clone()));
                        coming_in(&empty, after, &mut changes);
                    }
                }
            }
            let gone = gone_keys(old, new).filter(|one| !has_key(new, &one.table.name));
            changes.extend(gone.map(|one| NvmfChange::RemoveKey(one.table.name.clone())));
        }
    }
    changes
}

fn gone_keys<'a>(old: &'a NvmfConfig, new: &'a NvmfConfig) -> impl Iterator<Item = &'a Placed<KeyTable>> {
    old.keys.iter().filter(|one| !new.keys.contains(one))
}

fn has_key(config: &NvmfConfig, name: &str) -> bool {
    config.keys.iter().any(|one| one.table.name == name)
}

/// The same subsystem in `old`, if it need not be made anew.
fn before<'a>(old: &'a NvmfConfig, after: &SubsystemEntry) -> Option<&'a SubsystemEntry> {
    old.subsystems.iter().find(|before| {
        let mut same = before.table.clone();
        same.allow_any_host = after.table.allow_any_host;
        same == after.table
    })
}

fn kept<'a>(
    old: &'a NvmfConfig,
    new: &'a NvmfConfig,
) -> impl Iterator<Item = (&'a SubsystemEntry, &'a SubsystemEntry)> {
    new.subsystems.iter().filter_map(|after| Some((before(old, after)?, after)))
}

fn gone_subsystems(old: &NvmfConfig, new: &NvmfConfig, changes: &mut Vec<NvmfChange>) {
    let stays: BTreeSet<&str> = kept(old, new).map(|(before, _)| before.table.nqn.as_str()).collect();
    for subsystem in old.subsystems.iter().filter(|one| !stays.contains(one.table.nqn.as_str())) {
        let nqn = subsystem.table.nqn.clone();
        if subsystem.is_discovery() {
            let addresses = subsystem.listeners.iter().filter_map(|one| one.table.address().ok());
            changes.extend(addresses.map(|address| NvmfChange::RemoveListener(nqn.clone(), address)));
        }
        // Of the discovery subsystem, which stays, only the record goes.
        changes.push(NvmfChange::RemoveSubsystem(nqn));
    }
}

fn going_in(before: &SubsystemEntry, after: &SubsystemEntry, changes: &mut Vec<NvmfChange>) {
    let nqn = &after.table.nqn;
    for listener in &before.listeners {
        let Ok(address) = listener.table.address() else { continue };
        let stays = same_listener(&after.listeners, listener)
            .is_some_and(|other| other.table.secure_channel == listener.table.secure_channel);
        if !stays {
            changes.push(NvmfChange::RemoveListener(nqn.clone(), address));
        }
    }
    for namespace in &before.namespaces {
        if !after.namespaces.iter().any(|other| is_same_namespace(namespace, other)) {
            changes.push(NvmfChange::RemoveNamespace(nqn.clone(), namespace.nsid));
        }
    }
    for host in &before.hosts {
        if !after.hosts.iter().any(|other| other.table.nqn == host.table.nqn) {
            changes.push(NvmfChange::RemoveHost(nqn.clone(), host.table.nqn.clone()));
        }
    }
}

fn coming_in(before: &SubsystemEntry, after: &SubsystemEntry, changes: &mut Vec<NvmfChange>) {
    let nqn = &after.table.nqn;
    if before.table.allow_any_host != after.table.allow_any_host {
        changes.push(NvmfChange::AllowAnyHost(nqn.clone(), after.table.allow_any_host));
    }
    for host in &after.hosts {
        match before.hosts.iter().find(|other| other.table.nqn == host.table.nqn) {
            None => changes.push(NvmfChange::AddHost(nqn.clone(), host.clone())),
            Some(other) if other != host => changes.push(NvmfChange::SetKeys(nqn.clone(), host.clone())),
            Some(_) => {}
        }
    }
    for namespace in &after.namespaces {
        match before.namespaces.iter().find(|other| is_same_namespace(other, namespace)) {
            None => changes.push(NvmfChange::AddNamespace(nqn.clone(), namespace.clone())),
            Some(other) => {
                if other.table.anagrpid != namespace.table.anagrpid {
                    changes.push(NvmfChange::SetAnaGroup(nqn.clone(), namespace.clone()));
                }
                if other.table.hosts != namespace.table.hosts {
                    changes.push(NvmfChange::SetVisible(nqn.clone(), namespace.clone()));
                }
            }
        }
    }
    for listener in &after.listeners {
        match same_listener(&before.listeners, listener) {
            Some(other) if other.table.secure_channel == listener.table.secure_channel => {
                let states = |one: &Placed<ListenerTable>| (one.table.state(), one.table.groups());
                if states(other) != states(listener) {
                    changes.push(NvmfChange::SetAnaStates(nqn.clone(), listener.clone()));
                }
            }
            Some(_) | None => changes.push(NvmfChange::AddListener(nqn.clone(), listener.clone())),
        }
    }
}

fn same_listener<'a>(
    list: &'a [Placed<ListenerTable>],
    wanted: &Placed<ListenerTable>,
) -> Option<&'a Placed<ListenerTable>> {
    let address = wanted.table.address().ok()?;
    list.iter().find(|other| other.table.address().ok().as_ref() == Some(&address))
}

/// Equal in everything that cannot be changed while hosts use it.
fn is_same_namespace(one: &NamespaceEntry, other: &NamespaceEntry) -> bool {
    let mut same = one.table.clone();
    same.nsid = other.table.nsid;
    same.anagrpid = other.table.anagrpid;
    same.hosts.clone_from(&other.table.hosts);
    one.nsid == other.nsid && same == other.table
}

impl NvmfChange {
    /// Notes in `config` that the change was made.
    pub fn note(&self, config: &mut NvmfConfig) {
        match self {
            NvmfChange::SetOptions(options) => config.options = options.clone(),
            NvmfChange::RemoveKey(name) => config.keys.retain(|one| one.table.name != *name),
            NvmfChange::AddKey(key) => config.keys.push(key.clone()),
            NvmfChange::RemoveTransport(trtype) => config.transports.retain(|one| one.trtype != *trtype),
            NvmfChange::AddTransport(entry) => config.transports.push(entry.clone()),
            NvmfChange::RemoveReferral(referral) => config.referrals.retain(|one| one != referral),
            NvmfChange::AddReferral(referral) => config.referrals.push(referral.clone()),
            NvmfChange::RemoveSubsystem(nqn) => config.subsystems.retain(|one| one.table.nqn != *nqn),
            NvmfChange::AddSubsystem(entry) => config.subsystems.push(entry.clone()),
            NvmfChange::AllowAnyHost(nqn, ..)
            | NvmfChange::RemoveHost(nqn, ..)
            | NvmfChange::AddHost(nqn, ..)
            | NvmfChange::SetKeys(nqn, ..)
            | NvmfChange::RemoveListener(nqn, ..)
            | NvmfChange::AddListener(nqn, ..)
            | NvmfChange::SetAnaStates(nqn, ..)
            | NvmfChange::RemoveNamespace(nqn, ..)
            | NvmfChange::AddNamespace(nqn, ..)
            | NvmfChange::SetAnaGroup(nqn, ..)
            | NvmfChange::SetVisible(nqn, ..) => {
                let found = config.subsystems.iter_mut().find(|one| one.table.nqn == *nqn);
                if let Some(subsystem) = found {
                    self.note_in(subsystem);
                }
            }
        }
    }

    fn note_in(&self, subsystem: &mut SubsystemEntry) {
        match self {
            NvmfChange::AllowAnyHost(_, allowed) => subsystem.table.allow_any_host = *allowed,
            NvmfChange::RemoveHost(_, host) => subsystem.hosts.retain(|one| one.table.nqn != *host),
            NvmfChange::AddHost(_, host) | NvmfChange::SetKeys(_, host) => {
                subsystem.hosts.retain(|one| one.table.nqn != host.table.nqn);
                subsystem.hosts.push(host.clone());
            }
            NvmfChange::RemoveListener(_, address) => {
                subsystem.listeners.retain(|one| one.table.address().ok().as_ref() != Some(address));
            }
            NvmfChange::AddListener(_, listener) | NvmfChange::SetAnaStates(_, listener) => {
                let address = listener.table.address();
                subsystem.listeners.retain(|one| one.table.address() != address);
                subsystem.listeners.push(listener.clone());
            }
            NvmfChange::RemoveNamespace(_, nsid) => subsystem.namespaces.retain(|one| one.nsid != *nsid),
            NvmfChange::AddNamespace(_, namespace)
            | NvmfChange::SetAnaGroup(_, namespace)
            | NvmfChange::SetVisible(_, namespace) => {
                subsystem.namespaces.retain(|one| one.nsid != namespace.nsid);
                subsystem.namespaces.push(namespace.clone());
            }
            NvmfChange::SetOptions(_)
            | NvmfChange::RemoveKey(_)
            | NvmfChange::AddKey(_)
            | NvmfChange::RemoveTransport(_)
            | NvmfChange::AddTransport(_)
            | NvmfChange::RemoveSubsystem(_)
            | NvmfChange::AddSubsystem(_)
            | NvmfChange::RemoveReferral(_)
            | NvmfChange::AddReferral(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn parse(text: &str, old: &NvmfConfig) -> NvmfConfig {
        let mut config = Config::parse(Path::new("t.toml"), text).unwrap().nvmf;
        config.number_namespaces(old);
        config
    }

    fn word(change: &NvmfChange) -> String {
        match change {
            NvmfChange::SetOptions(_) => "options".to_owned(),
            NvmfChange::RemoveKey(name) => format!("-key {name}"),
            NvmfChange::AddKey(key) => format!("+key {}", key.table.name),
            NvmfChange::RemoveTransport(trtype) => format!("-transport {trtype}"),
            NvmfChange::AddTransport(entry) => format!("+transport {}", entry.trtype),
            NvmfChange::RemoveSubsystem(nqn) => format!("-{}", short(nqn)),
            NvmfChange::AddSubsystem(entry) => format!("+{}", short(&entry.table.nqn)),
            NvmfChange::AllowAnyHost(nqn, on) => format!("{} any {on}", short(nqn)),
            NvmfChange::RemoveHost(nqn, host) => format!("{} -host {}", short(nqn), short(host)),
            NvmfChange::AddHost(nqn, host) => format!("{} +host {}", short(nqn), short(&host.table.nqn)),
            NvmfChange::SetKeys(nqn, host) => format!("{} keys {}", short(nqn), short(&host.table.nqn)),
            NvmfChange::RemoveListener(nqn, at) => format!("{} -at {}", short(nqn), at.traddr),
            NvmfChange::AddListener(nqn, at) => format!("{} +at {}", short(nqn), at.table.traddr),
            NvmfChange::SetAnaStates(nqn, at) => format!("{} ana {}", short(nqn), at.table.traddr),
            NvmfChange::RemoveNamespace(nqn, nsid) => format!("{} -ns {nsid}", short(nqn)),
            NvmfChange::AddNamespace(nqn, one) => format!("{} +ns {}", short(nqn), one.nsid),
            NvmfChange::SetAnaGroup(nqn, one) => format!("{} group {}", short(nqn), one.nsid),
            NvmfChange::SetVisible(nqn, one) => format!("{} visible {}", short(nqn), one.nsid),
            NvmfChange::RemoveReferral(one) => format!("-referral {}", one.table.traddr),
            NvmfChange::AddReferral(one) => format!("+referral {}", one.table.traddr),
        }
    }

    fn short(nqn: &str) -> &str {
        nqn.rsplit(':').next().unwrap_or(nqn)
    }

    #[track_caller]
    fn check(old: &str, new: &str, going: &[&str], coming: &[&str]) {
        let mut in_force = parse(old, &NvmfConfig::default());
        let new = parse(new, &in_force);
        let steps = nvmf_difference(&in_force, &new, Phase::Going);
        assert_eq!(steps.iter().map(word).collect::<Vec<_>>(), going);
        steps.iter().for_each(|step| step.note(&mut in_force));
        let mut words = Vec::new();
        for phase in [Phase::Keys, Phase::Coming] {
            let steps = nvmf_difference(&in_force, &new, phase);
            words.extend(steps.iter().map(word));
            steps.iter().for_each(|step| step.note(&mut in_force));
        }
        assert_eq!(words, coming);
        for phase in [Phase::Going, Phase::Keys, Phase::Coming] {
            assert_eq!(nvmf_difference(&in_force, &new, phase), [], "made changes are noted");
        }
    }

    const BASE: &str = r#"
[[transport]]
trtype = "TCP"
[[subsystem]]
nqn = "nqn.2026-01.io.tenon:a"
[[subsystem.namespace]]
bdev_name = "m0"
[[subsystem.namespace]]
bdev_name = "m1"
[[subsystem.listener]]
traddr = "127.0.0.1"
[[subsystem.host]]
nqn = "nqn.2026-01.io.tenon:h"
"#;

    #[test]
    fn a_start_makes_everything_in_the_order_it_is_needed() {
        check("", BASE, &[], &["+transport TCP", "+a", "a +host h", "a +ns 1", "a +ns 2", "a +at 127.0.0.1"]);
    }

    #[test]
    fn equal_files_need_nothing_wherever_their_lines_are() {
        check(BASE, &format!("\n\n{BASE}"), &[], &[]);
    }

    #[test]
    fn only_what_differs_is_touched() {
        check(BASE, &BASE.replace("\"m0\"", "\"m2\""), &["a -ns 1"], &["a +ns 1"]);
        check(BASE, &BASE.replace("127.0.0.1", "::1"), &["a -at 127.0.0.1"], &["a +at ::1"]);
        check(BASE, &BASE.replace("tenon:h", "tenon:i"), &["a -host h"], &["a +host i"]);
        let ana = BASE.replace("\"127.0.0.1\"", "\"127.0.0.1\"\nana_state = \"inaccessible\"");
        check(BASE, &ana, &[], &["a ana 127.0.0.1"]);
        let any = BASE.replace("tenon:a\"", "tenon:a\"\nallow_any_host = true");
        check(BASE, &any, &[], &["a any true"]);
        check(BASE, &BASE.replace("\"m1\"", "\"m1\"\nanagrpid = 7"), &[], &["a group 2"]);
        check(BASE, &BASE.replace("tenon:h\"", "tenon:h\"\npsk = \"k\""), &[], &["a keys h"]);
        check(BASE, &BASE.replace("\"TCP\"", "\"TCP\"\nkas = 1"), &["-transport TCP"], &["+transport TCP"]);
    }

    #[test]
    fn keys_come_before_devices_and_go_after_them() {
        let one = "[[key]]\nname = \"k\"\npath = \"/a\"\n";
        check(
            "",
            &format!("{one}{BASE}"),
            &[],
            &["+key k", "+transport TCP", "+a", "a +host h", "a +ns 1", "a +ns 2", "a +at 127.0.0.1"],
        );
        check(one, "", &[], &["-key k"]);
        check(one, &one.replace("/a", "/b"), &["-key k"], &["+key k"]);
    }

    #[test]
    fn a_subsystem_of_other_identity_is_made_anew() {
        let other = BASE.replace("tenon:a\"", "tenon:a\"\nserial_number = \"1\"");
        check(BASE, &other, &["-a"], &["+a", "a +host h", "a +ns 1", "a +ns 2", "a +at 127.0.0.1"]);
        check(BASE, "", &["-a", "-transport TCP"], &[]);
    }

    #[test]
    fn the_discovery_subsystem_only_loses_its_listeners() {
        let text = "[[subsystem]]\nnqn = \"nqn.2014-08.org.nvmexpress.discovery\"\n[[subsystem.listener]]\ntraddr = \"127.0.0.1\"\n";
        let nqn = "nqn.2014-08.org.nvmexpress.discovery";
        check(text, "", &[&format!("{nqn} -at 127.0.0.1"), &format!("-{nqn}")], &[]);
    }
}
