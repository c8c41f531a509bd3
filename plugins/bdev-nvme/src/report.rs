//! What operators see: controllers, paths and devices as JSON, in the shapes
//! existing clients know.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tenon_sdk::{Error, FabricAddress, OpToken};

use crate::channel::PathReport;
use crate::config::family_name;
use crate::controller::Controller;
use crate::controller::state::State;
use crate::registry::Registry;
use crate::select::{Cursor, PathFacts, is_current};
use crate::side::Side;
use crate::table::Entry;
use crate::tally::Counted;

/// An address as `trid`.
pub(crate) fn trid(transport: &str, address: &FabricAddress) -> Value {
    let mut trid = json!({
        "trtype": transport,
        "adrfam": family_name(address.adrfam),
        "traddr": address.traddr,
        "subnqn": address.subnqn,
    });
    if !address.trsvcid.is_empty() {
        trid["trsvcid"] = address.trsvcid.clone().into();
    }
    trid
}

impl Controller {
    /// One entry of `ctrlrs`.
    fn describe(&self) -> Value {
        let mut entry = json!({
            "state": self.state.get().as_str(),
            "trid": trid(self.transport.name(), &self.door.address),
            "cntlid": self.facts.borrow().cntlid,
            "host": {
                "nqn": self.door.identity.nqn,
                "addr": self.door.local.traddr,
                "svcid": self.door.local.trsvcid,
            },
        });
        if let Some(injections) = self.door.injections.describe() {
            entry["error_injections"] = injections;
        }
        let last_error = self.last_error.borrow();
        if !last_error.is_empty() {
            entry["reason"] = last_error.clone().into();
        }
        entry
    }
}

impl Registry {
    /// `bdev_nvme_get_controllers`.
    pub(crate) fn describe_controllers(&self, name: Option<&str>) -> Result<Value, Error> {
        let controllers = self.controllers(name);
        if let (Some(name), true) = (name, controllers.is_empty()) {
            return Err(Error::not_found(name));
        }
        let mut groups: Vec<(String, Vec<Value>)> = Vec::new();
        for controller in controllers {
            let name = &controller.plan.params.name;
            match groups.iter_mut().find(|group| group.0 == *name) {
                Some(group) => group.1.push(controller.describe()),
                None => groups.push((name.clone(), vec![controller.describe()])),
            }
        }
        Ok(groups.into_iter().map(|(name, ctrlrs)| json!({ "name": name, "ctrlrs": ctrlrs })).collect())
    }

    /// `driver_specific` of a device.
    pub(crate) fn dump(&self, device: u64) -> Value {
        let Some(device) = self.devices().into_iter().find(|other| other.id == device) else {
            return json!({});
        };
        let (entries, rules, _) = device.table.read();
        let paths: Vec<Value> = entries
            .iter()
            .filter_map(|entry| {
                let controller = self.controller(entry.door.id)?;
                let facts = controller.facts.borrow();
                let (major, minor, _) = facts.version;
                let mut ns_data = json!({ "id": entry.nsid, "can_share": device.facts.borrow().is_shared });
                if facts.has_ana {
                    ns_data["ana_state"] = entry.ana.word().into();
                }
                Some(json!({
                    "trid": trid(controller.transport.name(), &entry.door.address),
                    "ctrlr_data": {
                        "cntlid": facts.cntlid,
                        "vendor_id": format!("{:#06x}", facts.vendor_id),
                        "model_number": facts.model_number,
                        "serial_number": facts.serial_number,
                        "firmware_revision": facts.firmware_revision,
                        "subnqn": facts.subnqn,
                        "oacs": {
                            "security": facts.oacs & 1,
                            "format": facts.oacs >> 1 & 1,
                            "firmware": facts.oacs >> 2 & 1,
                            "ns_manage": facts.oacs >> 3 & 1,
                        },
                        "multi_ctrlr": facts.multiple_controllers,
                        "ana_reporting": facts.has_ana,
                    },
                    "vs": { "nvme_version": format!("{major}.{minor}") },
                    "ns_data": ns_data,
                }))
            })
            .collect();
        let mut all = json!({ "nvme": paths, "mp_policy": rules.policy });
        if rules.policy == crate::select::Policy::ActiveActive {
            all["selector"] = json!(rules.selector);
        }
        all
    }

    /// `bdev_nvme_get_io_paths`: asks every reactor.
    pub(crate) fn report_paths(self: &Rc<Self>, name: Option<String>, token: OpToken) {
        if let Some(name) = &name
            && self.device_named(name).is_none()
        {
            return token.fail(Error::not_found(&**name));
        }
        self.gather(token, move |registry, found, token| {
            token.reply(&registry.describe_paths(name.as_deref(), &found));
        });
    }

    /// `bdev_nvme_get_path_iostat`: what each path of a device has done, on all reactors.
    pub(crate) fn report_path_iostat(self: &Rc<Self>, name: String, token: OpToken) {
        let Some(device) = self.device_named(&name) else { return token.fail(Error::not_found(name)) };
        if !device.table.options.counts_paths {
            let reason = "i/o is not counted by path: set the option io_path_stat before it is attached";
            return token.fail(Error::new(tenon_sdk::errno::EPERM, reason).object(name));
        }
        self.gather(token, move |registry, found, token| {
            let (entries, _, _) = device.table.read();
            let stat = |entry: &Entry| {
                let controller = registry.controller(entry.door.id)?;
                let mut counted = Counted::default();
                found
                    .iter()
                    .filter(|(id, report)| *id == device.id && report.controller == entry.door.id)
                    .filter_map(|(_, report)| report.counted.as_ref())
                    .for_each(|other| counted.add(other));
                let trid = trid(controller.transport.name(), &entry.door.address);
                Some(json!({ "trid": trid, "stat": counted.describe() }))
            };
            let stats: Vec<Value> = entries.iter().filter_map(stat).collect();
            token.reply(&json!({ "name": name, "stats": stats }));
        });
    }

    /// Asks every reactor for its paths; then answers.
    fn gather(
        self: &Rc<Self>,
        token: OpToken,
        answer: impl FnOnce(&Rc<Registry>, Vec<(u64, PathReport)>, OpToken) + 'static,
    ) {
        let host = self.host;
        let found: Arc<Mutex<Vec<(u64, PathReport)>>> = Arc::default();
        let (gathered, registry) = (Arc::clone(&found), Rc::clone(self));
        let token = Rc::new(std::cell::Cell::new(Some(token)));
        let answers = Rc::clone(&token);
        let asked = host.each_reactor(
            move |reactor| {
                let Some(side) = Side::existing(host) else { return };
                for channel in side.channels(None) {
                    let reports =
                        channel.report(reactor).into_iter().map(|report| (channel.device(), report));
                    found.lock().unwrap_or_else(PoisonError::into_inner).extend(reports);
                }
            },
            move || {
                let mut found = std::mem::take(&mut *gathered.lock().unwrap_or_else(PoisonError::into_inner));
                registry.add_idle(&mut found);
                if let Some(token) = answers.take() {
                    answer(&registry, found, token);
                }
            },
        );
        if let Err(error) = asked
            && let Some(token) = token.take()
        {
            token.fail(error);
        }
    }

    /// Adds the paths of devices that no reactor has open: as the first channel of one would use them.
    fn add_idle(&self, found: &mut Vec<(u64, PathReport)>) {
        let open: BTreeSet<u64> = found.iter().map(|(id, _)| *id).collect();
        for device in self.devices().into_iter().filter(|device| !open.contains(&device.id)) {
            let (entries, rules, _) = device.table.read();
            let is_ready = |id| self.controller(id).is_some_and(|one| one.state.get() == State::Ready);
            let facts_of =
                |entry: &Entry| PathFacts { is_connected: is_ready(entry.door.id), ..entry.facts() };
            let facts: Vec<PathFacts> = entries.iter().map(facts_of).collect();
            found.extend(entries.iter().enumerate().map(|(at, entry)| {
                let report = PathReport {
                    controller: entry.door.id,
                    reactor: 0,
                    is_current: is_current(&facts, &rules, Cursor::default(), at),
                    is_connected: facts[at].is_connected,
                    is_accessible: facts[at].is_accessible(),
                    commands: 0,
                    failed: 0,
                    in_flight: 0,
                    latency_ns: 0,
                    obstacle: facts[at].obstacle(),
                    counted: None,
                };
                (device.id, report)
            }));
        }
    }

    fn describe_paths(&self, name: Option<&str>, found: &[(u64, PathReport)]) -> Value {
        let mut reactors: Vec<u32> = found.iter().map(|(_, report)| report.reactor).collect();
        reactors.sort_unstable();
        reactors.dedup();
        let devices = self.devices();
        let group = |reactor: &u32| {
            let of_reactor = found.iter().filter(|(_, report)| report.reactor == *reactor);
            let paths = of_reactor.filter_map(|(id, report)| {
                let device = devices.iter().find(|device| device.id == *id)?;
                let controller = self.controller(report.controller)?;
                let is_wanted = name.is_none_or(|name| device.name == name);
                let mut transport = trid(controller.transport.name(), &controller.door.address);
                if let Some(transport) = transport.as_object_mut() {
                    transport.remove("subnqn");
                }
                is_wanted.then(|| {
                    let (entries, _, _) = device.table.read();
                    let entry = entries.iter().find(|entry| entry.door.id == report.controller);
                    let mut told = json!({
                        "bdev_name": device.name,
                        "controller_name": controller.plan.params.name,
                        "cntlid": controller.facts.borrow().cntlid,
                        "current": report.is_current,
                        "connected": report.is_connected,
                        "accessible": report.is_accessible,
                        "commands": report.commands,
                        "failed_commands": report.failed,
                        "in_flight": report.in_flight,
                        "latency_us": f64::from(report.latency_ns) / 1000.0,
                        "ana_state": entry.map_or("unknown", |entry| entry.ana.word()),
                        "transport": transport,
                    });
                    if let Some(obstacle) = &report.obstacle {
                        let cause = controller.last_error.borrow();
                        let has_cause = !report.is_connected && !cause.is_empty();
                        let reason =
                            if has_cause { format!("{obstacle}: {cause}") } else { obstacle.clone() };
                        told["reason"] = reason.into();
                    }
                    told
                })
            });
            json!({ "thread": format!("reactor_{reactor}"), "io_paths": paths.collect::<Vec<_>>() })
        };
        json!({ "poll_groups": reactors.iter().map(group).collect::<Vec<_>>() })
    }

    /// `bdev_nvme_get_transport_statistics`: asks every reactor.
    pub(crate) fn report_statistics(&self, token: OpToken) {
        let host = self.host;
        let found: Arc<Mutex<Vec<Value>>> = Arc::default();
        let gathered = Arc::clone(&found);
        let token = Rc::new(std::cell::Cell::new(Some(token)));
        let answers = Rc::clone(&token);
        let asked = host.each_reactor(
            move |reactor| {
                let Some(side) = Side::existing(host) else { return };
                let thread = format!("reactor_{}", reactor.index().unwrap_or(u32::MAX));
                let group = json!({ "thread": thread, "transports": side.statistics() });
                found.lock().unwrap_or_else(PoisonError::into_inner).push(group);
            },
            move || {
                let found = std::mem::take(&mut *gathered.lock().unwrap_or_else(PoisonError::into_inner));
                if let Some(token) = answers.take() {
                    token.reply(&json!({ "poll_groups": found }));
                }
            },
        );
        if let Err(error) = asked
            && let Some(token) = token.take()
        {
            token.fail(error);
        }
    }
}
