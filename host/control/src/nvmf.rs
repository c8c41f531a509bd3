//! Makes the target what a configuration file says, at start and at a reload,
//! and remembers what the target itself does not: with which options a
//! transport was made, and which namespaces of the file wait for a device.
//!
//! Steps run one after the other; one that fails is reported, leaves the others
//! alone and is tried again by the next reload. A namespace whose device is not
//! there waits for it, also when the device went away while it was shown.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use log::{error, info, warn};
use serde_json::{Map, Value};
use tenon_bdev::Core;
use tenon_nvmf_target::{SubsystemState, Target, TargetError};

use crate::apply::{Progress, WaitingEntry};
use crate::config::{
    HostTable, Location, NamespaceEntry, NamespaceTable, NvmfChange, NvmfConfig, NvmfSection, Phase, Placed,
    SubsystemEntry, nvmf_difference,
};

/// The export part of the configuration engine; cloning is cheap. Control reactor only.
#[derive(Clone)]
pub struct Nvmf(Rc<Inner>);

struct Inner {
    core: Core,
    target: Target,
    /// What of the file has been made.
    in_force: RefCell<NvmfConfig>,
    /// Namespaces of the file by subsystem and number.
    namespaces: RefCell<BTreeMap<(String, u32), Standing>>,
    /// Options transports were made with.
    transports: RefCell<BTreeMap<String, Map<String, Value>>>,
}

/// A namespace of the file.
struct Standing {
    entry: NamespaceEntry,
    state: NamespaceState,
}

/// Where a namespace of the file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NamespaceState {
    /// Its device is not there.
    Waiting,
    /// It is being added.
    Adding,
    /// It was added.
    Shown,
}

/// Called at the end of a step, with what went wrong.
type Done = Box<dyn FnOnce(Result<(), String>)>;

impl Nvmf {
    pub(crate) fn new(core: Core, target: Target) -> Self {
        Nvmf(Rc::new(Inner {
            core,
            target,
            in_force: RefCell::default(),
            namespaces: RefCell::default(),
            transports: RefCell::default(),
        }))
    }

    /// The target.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// What of the file has been made.
    #[must_use]
    pub fn in_force(&self) -> NvmfConfig {
        self.0.in_force.borrow().clone()
    }

    /// Options a transport was made with.
    #[must_use]
    pub fn transport_options(&self, trtype: &str) -> Map<String, Value> {
        self.0.transports.borrow().get(&trtype.to_ascii_uppercase()).cloned().unwrap_or_default()
    }

    /// Makes a transport, loading its plugin if need be.
    pub fn create_transport(
        &self,
        trtype: &str,
        options: &Map<String, Value>,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let (nvmf, name, kept) = (self.clone(), trtype.to_ascii_uppercase(), options.clone());
        self.0.target.create_transport(trtype, &Value::Object(options.clone()), move |result| {
            if result.is_ok() {
                nvmf.0.transports.borrow_mut().insert(name, kept);
            }
            done(result);
        });
    }

    /// Ends a transport nobody listens by.
    pub fn delete_transport(&self, trtype: &str, done: impl FnOnce(Result<(), TargetError>) + 'static) {
        let (nvmf, name) = (self.clone(), trtype.to_ascii_uppercase());
        self.0.target.delete_transport(trtype, move |result| {
            if result.is_ok() {
                nvmf.0.transports.borrow_mut().remove(&name);
            }
            done(result);
        });
    }

    /// An operator removed a namespace: the file's does not come back by itself.
    pub fn namespace_withdrawn(&self, nqn: &str, nsid: u32) {
        self.0.namespaces.borrow_mut().remove(&(nqn.to_owned(), nsid));
    }

    /// An operator deleted a subsystem: none of the file's namespaces waits for it.
    pub fn subsystem_withdrawn(&self, nqn: &str) {
        self.0.namespaces.borrow_mut().retain(|(owner, _), _| owner != nqn);
    }

    /// Namespaces that wait for their device.
    #[must_use]
    pub fn waiting(&self) -> Vec<WaitingEntry> {
        let namespaces = self.0.namespaces.borrow();
        let waiting = namespaces.iter().filter(|(_, one)| one.state == NamespaceState::Waiting);
        waiting
            .map(|((nqn, nsid), one)| WaitingEntry {
                name: format!("{nqn} namespace {nsid}"),
                module: "nvmf".to_owned(),
                waits_for: one.entry.table.bdev_name.clone(),
                location: one.entry.at.to_string(),
            })
            .collect()
    }

    /// The same of one subsystem, with the numbers they will have.
    #[must_use]
    pub fn waiting_in(&self, nqn: &str) -> Vec<NamespaceTable> {
        let namespaces = self.0.namespaces.borrow();
        let waiting = namespaces
            .iter()
            .filter(|((owner, _), one)| owner == nqn && one.state == NamespaceState::Waiting);
        waiting
            .map(|((_, nsid), one)| NamespaceTable { nsid: Some(*nsid), ..one.entry.table.clone() })
            .collect()
    }

    /// Makes the steps of one phase on the way to `wanted`, then calls `done`.
    pub(crate) fn change(
        &self,
        wanted: &NvmfConfig,
        phase: Phase,
        progress: Progress,
        done: impl FnOnce() + 'static,
    ) {
        let steps = nvmf_difference(&self.0.in_force.borrow(), wanted, phase);
        self.step(steps.into_iter(), progress, Box::new(done));
    }

    fn step(&self, mut steps: std::vec::IntoIter<NvmfChange>, progress: Progress, done: Box<dyn FnOnce()>) {
        let Some(change) = steps.next() else { return done() };
        let (nvmf, made) = (self.clone(), change.clone());
        let ended: Done = Box::new(move |result| {
            match result {
                Ok(()) => made.note(&mut nvmf.0.in_force.borrow_mut()),
                Err(reason) => progress.fail(reason, false),
            }
            nvmf.step(steps, progress, done);
        });
        self.make(change, ended);
    }

    fn make(&self, change: NvmfChange, done: Done) {
        let target = &self.0.target;
        match change {
            NvmfChange::SetOptions(options) => self.set_options(&options, done),
            NvmfChange::RemoveKey(name) => self.remove_key(name, done),
            NvmfChange::AddKey(key) => self.add_key(key, done),
            NvmfChange::RemoveTransport(trtype) => {
                self.delete_transport(&trtype.clone(), or_gone(format!("transport {trtype}"), done));
            }
            NvmfChange::AddTransport(entry) => {
                let failed = failed(&entry.options.location(), format!("transport {}", entry.trtype), done);
                self.create_transport(&entry.trtype, &entry.options.value, failed);
            }
            NvmfChange::RemoveSubsystem(nqn) => self.remove_subsystem(nqn, done),
            NvmfChange::AddSubsystem(entry) => self.add_subsystem(entry, done),
            NvmfChange::AllowAnyHost(nqn, allowed) => {
                // A new subsystem has it from its making.
                or_gone(format!("subsystem {nqn}"), done)(target.set_allow_any_host(&nqn, allowed));
            }
            NvmfChange::RemoveHost(nqn, host) => {
                or_gone(format!("subsystem {nqn}: host {host}"), done)(target.remove_host(&nqn, &host));
            }
            NvmfChange::AddHost(nqn, host) => self.add_host(&nqn, &host, done),
            NvmfChange::SetKeys(nqn, host) => self.set_keys(&nqn, &host, done),
            NvmfChange::RemoveListener(nqn, address) => {
                let ended = or_gone(format!("subsystem {nqn}: listener {address}"), done);
                target.remove_listener(&nqn, &address, ended);
            }
            NvmfChange::AddListener(nqn, listener) => self.add_listener(nqn, listener, done),
            NvmfChange::SetAnaStates(nqn, listener) => {
                let ended = failed(&listener.at, format!("subsystem {nqn}: {}", listener.table.traddr), done);
                ended(self.set_ana_states(&nqn, &listener));
            }
            NvmfChange::RemoveNamespace(nqn, nsid) => {
                self.namespace_withdrawn(&nqn, nsid);
                let ended = or_gone(format!("subsystem {nqn}: namespace {nsid}"), done);
                target.remove_namespace(&nqn, nsid, ended);
            }
            NvmfChange::AddNamespace(nqn, entry) => self.add_namespace(&nqn, entry, done),
            NvmfChange::SetAnaGroup(nqn, entry) => {
                self.change_namespace(&nqn, entry, done, |target, entry| {
                    let group = entry.table.anagrpid.unwrap_or(entry.nsid);
                    target.set_namespace_ana_group(&nqn, entry.nsid, group)
                })
            }
            NvmfChange::SetVisible(nqn, entry) => {
                let before = self.hosts_of(&nqn, entry.nsid);
                self.change_namespace(&nqn, entry, done, |target, entry| {
                    set_visible(target, &nqn, entry, &before)
                });
            }
            NvmfChange::RemoveReferral(referral) => {
                let ended = or_gone(format!("referral {}", referral.table.traddr), done);
                ended(
                    wanted(referral.table.referral())
                        .and_then(|referral| target.remove_referral(&referral.address, &referral.subnqn)),
                );
            }
            NvmfChange::AddReferral(referral) => {
                let ended = failed(&referral.at, format!("referral {}", referral.table.traddr), done);
                ended(wanted(referral.table.referral()).and_then(|referral| target.add_referral(referral)));
            }
        }
    }

    fn set_options(&self, options: &NvmfSection, done: Done) {
        let target = &self.0.target;
        let default = tenon_nvmf_target::TargetOptions::default();
        let limit = options.max_subsystems.map_or(default.max_subsystems, |limit| limit as usize);
        target.set_max_subsystems(limit);
        target.set_retry_delays(options.crdt.unwrap_or(default.retry_delays_100ms));
        target.set_discovery_filter(options.discovery_filter.unwrap_or_default().0);
        let authentication = wanted(options.authentication()).and_then(|one| target.set_authentication(one));
        let ended = |mdns| done(authentication.and(mdns).map_err(|error| format!("[nvmf]: {error}")));
        match (options.publish_mdns.unwrap_or_default(), target.publishes_mdns()) {
            (true, false) => ended(target.publish_mdns()),
            (false, true) => target.stop_mdns(ended),
            (true, true) | (false, false) => ended(Ok(())),
        }
    }

    fn add_subsystem(&self, entry: SubsystemEntry, done: Done) {
        if entry.is_discovery() {
            return done(Ok(()));
        }
        let ended = failed(&entry.at, format!("subsystem {}", entry.table.nqn), done);
        self.0.target.create_subsystem(entry.table.spec(), ended);
    }

    fn remove_subsystem(&self, nqn: String, done: Done) {
        self.subsystem_withdrawn(&nqn);
        if nqn == crate::config::DISCOVERY_NQN {
            return done(Ok(()));
        }
        let object = format!("subsystem {nqn}");
        self.0.target.delete_subsystem(&nqn, or_gone(object, done));
    }

    fn add_listener(&self, nqn: String, listener: Placed<crate::config::ListenerTable>, done: Done) {
        let ended = failed(&listener.at, format!("subsystem {nqn}: {}", listener.table.traddr), done);
        let checked = wanted(listener.table.address()).and_then(|address| {
            let state = wanted(listener.table.state())?;
            Ok((address, state))
        });
        let (address, state) = match checked {
            Ok(checked) => checked,
            Err(error) => return ended(Err(error)),
        };
        let (nvmf, owner) = (self.clone(), nqn.clone());
        let is_secure = listener.table.secure_channel;
        self.0.target.add_listener(&nqn, &address, is_secure, state, move |result| {
            let has_groups = !listener.table.ana_groups.is_empty();
            ended(match result {
                Ok(()) if has_groups => nvmf.set_ana_states(&owner, &listener),
                other => other,
            });
        });
    }

    fn set_ana_states(
        &self,
        nqn: &str,
        listener: &Placed<crate::config::ListenerTable>,
    ) -> Result<(), TargetError> {
        let address = wanted(listener.table.address())?;
        let target = &self.0.target;
        target.set_ana_state(nqn, &address, wanted(listener.table.state())?, None)?;
        for (group, state) in wanted(listener.table.groups())? {
            target.set_ana_state(nqn, &address, state, Some(group))?;
        }
        Ok(())
    }

    /// A step about a namespace that may still wait: then only its entry changes.
    fn change_namespace(
        &self,
        nqn: &str,
        entry: NamespaceEntry,
        done: Done,
        change: impl FnOnce(&Target, &NamespaceEntry) -> Result<(), TargetError>,
    ) {
        let is_shown = {
            let mut namespaces = self.0.namespaces.borrow_mut();
            let standing = namespaces.get_mut(&(nqn.to_owned(), entry.nsid));
            standing.is_none_or(|standing| {
                standing.entry = entry.clone();
                standing.state == NamespaceState::Shown
            })
        };
        let result = if is_shown { change(&self.0.target, &entry) } else { Ok(()) };
        failed(&entry.at, format!("subsystem {nqn}: namespace {}", entry.nsid), done)(result);
    }

    fn hosts_of(&self, nqn: &str, nsid: u32) -> Vec<String> {
        let subsystems = self.0.target.subsystems();
        let subsystem = subsystems.into_iter().find(|one| one.spec.nqn == nqn);
        let namespaces = subsystem.map(|one| one.namespaces).unwrap_or_default();
        namespaces.into_iter().find(|one| one.nsid == nsid).and_then(|one| one.hosts).unwrap_or_default()
    }

    fn add_namespace(&self, nqn: &str, entry: NamespaceEntry, done: Done) {
        let key = (nqn.to_owned(), entry.nsid);
        let standing = Standing { entry: entry.clone(), state: NamespaceState::Adding };
        self.0.namespaces.borrow_mut().insert(key.clone(), standing);
        let object = format!("subsystem {nqn}: namespace {}", entry.nsid);
        let spec = wanted(entry.table.spec());
        let spec = match spec {
            Ok(spec) => tenon_nvmf_target::NamespaceSpec { nsid: Some(entry.nsid), ..spec },
            Err(error) => return failed(&entry.at, object, done)(Err(error)),
        };
        let nvmf = self.clone();
        self.0.target.add_namespace(nqn, spec, move |result| match result {
            Ok(_) => {
                nvmf.namespace_is(&key, NamespaceState::Shown);
                let shown = set_visible(&nvmf.0.target, &key.0, &entry, &[]);
                failed(&entry.at, object, done)(shown);
            }
            Err(TargetError::Refused { source, .. }) if source.waiting_for().is_some() => {
                info!("namespace waits for its bdev nqn={} nsid={} bdev={}", key.0, key.1, source.object);
                nvmf.namespace_is(&key, NamespaceState::Waiting);
                done(Ok(()));
                // It may have become ready between the refusal and now.
                if nvmf.0.core.find(&entry.table.bdev_name).is_some() {
                    nvmf.device_ready(&entry.table.bdev_name, &[], None);
                }
            }
            Err(error) => {
                nvmf.namespace_withdrawn(&key.0, key.1);
                failed(&entry.at, object, done)(Err(error));
            }
        });
    }

    fn namespace_is(&self, key: &(String, u32), state: NamespaceState) {
        if let Some(standing) = self.0.namespaces.borrow_mut().get_mut(key) {
            standing.state = state;
        }
    }

    /// A device became ready: namespaces of the file that it is for are added, as part of the start or reload
    /// under way if there is one.
    pub(crate) fn device_ready(&self, name: &str, aliases: &[String], under_way: Option<&Progress>) {
        let is_its = |entry: &NamespaceEntry| {
            let wanted = &entry.table.bdev_name;
            wanted == name || aliases.iter().any(|alias| alias.eq_ignore_ascii_case(wanted))
        };
        let of_it: Vec<(String, NamespaceEntry, NamespaceState)> = {
            let namespaces = self.0.namespaces.borrow();
            let found = namespaces.iter().filter(|(_, standing)| is_its(&standing.entry));
            found.map(|((nqn, _), one)| (nqn.clone(), one.entry.clone(), one.state)).collect()
        };
        if of_it.is_empty() {
            return;
        }
        let subsystems = self.0.target.subsystems();
        for (nqn, entry, state) in of_it {
            let subsystem = subsystems.iter().find(|one| one.spec.nqn == nqn);
            let Some(subsystem) = subsystem.filter(|one| one.state != SubsystemState::Going) else {
                continue;
            };
            let is_gone = subsystem.namespaces.iter().all(|one| one.nsid != entry.nsid);
            let is_due = match state {
                NamespaceState::Waiting => true,
                NamespaceState::Adding => false,
                NamespaceState::Shown => is_gone,
            };
            if !is_due {
                continue;
            }
            let progress = under_way.cloned().unwrap_or_else(|| {
                Progress::new(|report| report.failures.iter().for_each(|failure| error!("{failure}")))
            });
            // A progress made here has its one step running already.
            if under_way.is_some() {
                progress.begin();
            }
            let done: Done = Box::new(move |result| {
                if let Err(reason) = result {
                    progress.fail(reason, false);
                }
                progress.end();
            });
            self.add_namespace(&nqn, entry, done);
        }
    }

    fn add_host(&self, nqn: &str, host: &Placed<HostTable>, done: Done) {
        let ended = failed(&host.at, format!("subsystem {nqn}: host {}", host.table.nqn), done);
        let added = self.0.target.add_host_with_keys(nqn, &host.table.nqn, host.table.keys());
        ended(added.and_then(|()| self.set_limits(nqn, &host.table)));
    }

    fn set_keys(&self, nqn: &str, host: &Placed<HostTable>, done: Done) {
        let ended = failed(&host.at, format!("subsystem {nqn}: host {}", host.table.nqn), done);
        let keys = host.table.keys();
        let has_psk = |one: &tenon_nvmf_target::SubsystemSnapshot| {
            let mut hosts = one.hosts.iter().zip(&one.host_keys);
            hosts.any(|(name, own)| *name == host.table.nqn && own.psk == keys.psk)
        };
        let target = &self.0.target;
        let subsystems = target.subsystems();
        // The key of secure channels belongs to connections: with another one the host comes anew.
        let set = match subsystems.iter().find(|one| one.spec.nqn == nqn).is_some_and(has_psk) {
            true => target.set_host_keys(nqn, &host.table.nqn, keys.dhchap_key, keys.dhchap_ctrlr_key),
            false => target
                .remove_host(nqn, &host.table.nqn)
                .and_then(|()| target.add_host_with_keys(nqn, &host.table.nqn, keys)),
        };
        ended(set.and_then(|()| self.set_limits(nqn, &host.table)));
    }

    fn set_limits(&self, nqn: &str, host: &HostTable) -> Result<(), TargetError> {
        self.0.target.set_host_limits(nqn, &host.nqn, host.limits())
    }

    fn remove_key(&self, name: String, done: Done) {
        or_gone(format!("key {name}"), done)(self.0.target.remove_key(&name));
    }

    fn add_key(&self, key: Placed<crate::config::KeyTable>, done: Done) {
        let ended = failed(&key.at, format!("key {}", key.table.name), done);
        self.0.target.add_key_file(&key.table.name, Path::new(&key.table.path), ended);
    }
}

/// Makes exactly the hosts of the entry see a namespace.
fn set_visible(
    target: &Target,
    nqn: &str,
    entry: &NamespaceEntry,
    before: &[String],
) -> Result<(), TargetError> {
    let wanted = &entry.table.hosts;
    for host in before.iter().filter(|host| !wanted.contains(host)) {
        target.set_namespace_visible(nqn, entry.nsid, host, false)?;
    }
    for host in wanted.iter().filter(|host| !before.contains(host)) {
        target.set_namespace_visible(nqn, entry.nsid, host, true)?;
    }
    Ok(())
}

/// A value of a file or request as the target's error.
fn wanted<T>(result: Result<T, (&'static str, String)>) -> Result<T, TargetError> {
    result.map_err(|(key, reason)| invalid(key, &reason))
}

fn invalid(object: &str, reason: &str) -> TargetError {
    TargetError::Invalid { object: object.to_owned(), reason: reason.to_owned() }
}

/// An end that puts the place and the object in front of an error.
fn failed(at: &Location, object: String, done: Done) -> impl FnOnce(Result<(), TargetError>) + 'static {
    let at = at.clone();
    move |result| done(result.map_err(|error| format!("{at}: {object}: {error}")))
}

/// The end of a removal: what an operator has removed before is no error.
fn or_gone(object: String, done: Done) -> impl FnOnce(Result<(), TargetError>) + 'static {
    move |result| {
        done(match result {
            Ok(()) => Ok(()),
            Err(error) if error.code() == tenon_abi::errno::ENOENT => {
                warn!("removed before {object} reason={error}");
                Ok(())
            }
            Err(error) => Err(format!("{object}: {error}")),
        });
    }
}
