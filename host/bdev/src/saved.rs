//! What was created, so that the configuration can be written down and made again.
//!
//! A record per create that succeeded, in order, with its parameters and its
//! devices. A device's own account of its parameters (`config_json`) is preferred
//! when the module gives one. Does not write files.
// UNSAFETY: calls `config_json` of devices.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;
use tenon_abi::BdevHandle;
use tenon_modules::ModuleRef;

use crate::core::Core;
use crate::request::Request;

/// One entry of the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedEntry {
    /// Module that makes it.
    pub module: String,
    /// The module's RPC method that made it; `None`: its `create`.
    pub method: Option<String>,
    /// Parameters.
    pub params: Value,
    /// Devices that are there because of it.
    pub bdevs: Vec<String>,
}

/// Creates that succeeded and whose devices were not deleted since.
#[derive(Default)]
pub(crate) struct Saved {
    records: BTreeMap<u64, Record>,
    by_bdev: HashMap<BdevHandle, u64>,
    /// Records without devices that may come back.
    gone: BTreeSet<u64>,
    next: u64,
}

struct Record {
    module: ModuleRef,
    method: Option<Arc<str>>,
    params: Value,
    bdevs: Vec<BdevHandle>,
}

impl Saved {
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// The record of a device that went away, by module and name.
    fn gone_of(&self, module: ModuleRef, name: Option<&str>) -> Option<u64> {
        let name = name?;
        let is_it = |number: &&u64| {
            self.records.get(*number).is_some_and(|record| {
                record.module.name() == module.name()
                    && record.params.get("name").and_then(Value::as_str) == Some(name)
            })
        };
        self.gone.iter().find(is_it).copied()
    }

    fn keep(&mut self, wanted: impl Fn(&Record) -> bool) {
        self.records.retain(|_, record| wanted(record));
        let Saved { gone, records, .. } = self;
        gone.retain(|number| records.contains_key(number));
    }

    fn drop_record(&mut self, number: u64) {
        self.records.remove(&number);
        self.gone.remove(&number);
    }
}

impl Core {
    /// A create, or an RPC that registered devices, succeeded.
    pub(crate) fn saved_add(&self, request: &Request, module: Option<ModuleRef>, bdevs: &[BdevHandle]) {
        let (method, params) = match request {
            Request::Create { params, .. } => (None, params),
            Request::Rpc { method, params, .. } if !bdevs.is_empty() => (Some(method.clone()), params),
            Request::Rpc { .. }
            | Request::Delete { .. }
            | Request::Update { .. }
            | Request::Configure { .. } => {
                return;
            }
        };
        let (Some(module), Ok(params)) = (module, serde_json::from_str::<Value>(params)) else { return };
        let mut saved = self.inner.saved.borrow_mut();
        // What was made again takes the place of what went away.
        if let Some(replaced) = saved.gone_of(module, params.get("name").and_then(Value::as_str)) {
            saved.drop_record(replaced);
        }
        let number = saved.next;
        saved.next += 1;
        for bdev in bdevs {
            saved.by_bdev.insert(*bdev, number);
        }
        saved.records.insert(number, Record { module, method, params, bdevs: bdevs.to_vec() });
    }

    /// A device was updated in place.
    pub(crate) fn saved_update(&self, name: &str, params: &str) {
        let Some(bdev) = self.find_any(name) else { return };
        let Ok(Value::Object(changes)) = serde_json::from_str(params) else { return };
        let mut saved = self.inner.saved.borrow_mut();
        let Some(number) = saved.by_bdev.get(&bdev).copied() else { return };
        if let Some(Value::Object(params)) = saved.records.get_mut(&number).map(|record| &mut record.params) {
            params.extend(changes);
        }
    }

    /// A method that takes something away by name takes its record along, if no device speaks for it.
    pub(crate) fn saved_rpc(&self, method: &str, params: &str, module: Option<ModuleRef>) {
        let takes_away = ["_delete", "_detach", "_destroy"].iter().any(|word| method.contains(word));
        let Some(module) = module.filter(|_| takes_away) else { return };
        let Ok(params) = serde_json::from_str::<Value>(params) else { return };
        let Some(name) = params.get("name") else { return };
        self.inner.saved.borrow_mut().keep(|record| {
            let is_named = record.module.name() == module.name() && record.params.get("name") == Some(name);
            !is_named || !record.bdevs.is_empty()
        });
    }

    /// A device is gone. Its record goes with the last of them, unless the device may come back by itself.
    pub(crate) fn saved_forget_bdev(&self, bdev: BdevHandle, may_return: bool) {
        let mut saved = self.inner.saved.borrow_mut();
        let Some(number) = saved.by_bdev.remove(&bdev) else { return };
        let Some(record) = saved.records.get_mut(&number) else { return };
        record.bdevs.retain(|other| *other != bdev);
        match (record.bdevs.is_empty(), may_return) {
            (true, true) => _ = saved.gone.insert(number),
            (true, false) => saved.drop_record(number),
            (false, _) => {}
        }
    }

    /// A device that comes back by itself belongs to the create that made it first.
    pub(crate) fn saved_adopt(&self, module: ModuleRef, name: &str, bdev: BdevHandle) {
        let mut saved = self.inner.saved.borrow_mut();
        let Some(number) = saved.gone_of(module, Some(name)) else { return };
        saved.gone.remove(&number);
        if let Some(record) = saved.records.get_mut(&number) {
            record.bdevs.push(bdev);
        }
        saved.by_bdev.insert(bdev, number);
    }

    /// Creates whose devices went away although nobody deleted them.
    pub fn gone_config(&self) -> Vec<SavedEntry> {
        let saved = self.inner.saved.borrow();
        let records = saved.gone.iter().filter_map(|number| saved.records.get(number));
        let entry = |record: &Record| SavedEntry {
            module: record.module.name().to_owned(),
            method: record.method.as_ref().map(|method| method.to_string()),
            params: record.params.clone(),
            bdevs: Vec::new(),
        };
        records.map(entry).collect()
    }

    /// A module is gone, and with it what it was asked to make.
    pub(crate) fn saved_forget_module(&self, module: ModuleRef) {
        let mut saved = self.inner.saved.borrow_mut();
        saved.keep(|record| record.module.id() != module.id() || !record.bdevs.is_empty());
    }

    /// The configuration as it is now, in the order of creation.
    pub fn saved_config(&self) -> Vec<SavedEntry> {
        let records: Vec<(String, Option<String>, Value, Vec<BdevHandle>)> = {
            let saved = self.inner.saved.borrow();
            let entry = |record: &Record| {
                let method = record.method.as_ref().map(|method| method.to_string());
                (record.module.name().to_owned(), method, record.params.clone(), record.bdevs.clone())
            };
            saved.records.values().map(entry).collect()
        };
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        for (module, method, params, bdevs) in records {
            let names: Vec<String> = bdevs.iter().filter_map(|bdev| self.name_of(*bdev)).collect();
            let mut own: Vec<Value> = bdevs.iter().filter_map(|bdev| self.own_config(*bdev)).collect();
            own.dedup();
            if own.is_empty() {
                entries.push(SavedEntry { module, method, params, bdevs: names });
                continue;
            }
            for params in own {
                seen.insert((module.clone(), params.to_string()));
                entries.push(SavedEntry {
                    module: module.clone(),
                    method: None,
                    params,
                    bdevs: names.clone(),
                });
            }
        }
        self.add_unasked(&mut entries, &mut seen);
        entries
    }

    /// Devices that modules made by themselves and that give an account of how to make them again.
    fn add_unasked(&self, entries: &mut Vec<SavedEntry>, seen: &mut HashSet<(String, String)>) {
        let unasked: Vec<(BdevHandle, String, String)> = {
            let (registry, saved) = (self.inner.registry.borrow(), self.inner.saved.borrow());
            let unasked = registry.iter().filter(|record| {
                record.state().may_be_opened() && !saved.by_bdev.contains_key(&record.handle)
            });
            unasked.map(|r| (r.handle, r.module.name().to_owned(), r.name.to_string())).collect()
        };
        for (bdev, module, name) in unasked {
            let Some(params) = self.own_config(bdev) else { continue };
            if seen.insert((module.clone(), params.to_string())) {
                entries.push(SavedEntry { module, method: None, params, bdevs: vec![name] });
            }
        }
    }

    /// The entry that makes the device of that name.
    pub fn config_of(&self, name: &str) -> Option<SavedEntry> {
        let own_name = self.name_of(self.find_any(name)?)?;
        self.saved_config().into_iter().find(|entry| entry.bdevs.contains(&own_name))
    }

    fn own_config(&self, bdev: BdevHandle) -> Option<Value> {
        let (callbacks, module, name) = {
            let registry = self.inner.registry.borrow();
            let record = registry.get(bdev).filter(|record| record.state().may_be_opened())?;
            (record.callbacks, record.module, record.name.clone())
        };
        if !crate::callbacks::may_be_called(module) {
            return None;
        }
        // SAFETY: the device is registered and not being destructed, as its state says.
        unsafe { callbacks.config_json(&name) }
    }
}
