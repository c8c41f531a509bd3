//! What was created, so that the configuration can be written down and made again.
//!
//! A record per create that succeeded, in order, with its parameters and its
//! devices. A device's own account of its parameters (`config_json`) is preferred
//! when the module gives one. Does not write files.
// UNSAFETY: calls `config_json` of devices.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value};
use tenon_abi::BdevHandle;
use tenon_modules::{Callback, ModuleRef};

use crate::core::Core;
use crate::registry::Bdev;
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

/// A name that was created and is no device now: it waits for something, such as its file, its members or its base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// The name.
    pub name: String,
    /// Module that makes the device.
    pub module: String,
    /// What it waits for, as far as its module or its parameters say so.
    pub waits_for: String,
}

/// Creates that succeeded and whose devices were not deleted since.
#[derive(Default)]
pub(crate) struct Saved {
    records: BTreeMap<u64, Record>,
    by_bdev: HashMap<BdevHandle, u64>,
    by_name: HashMap<String, BTreeSet<u64>>,
    /// Records whose devices went away and may come back: the host asks for them again.
    gone: BTreeSet<u64>,
    /// Records that never had a device: their modules make one when they can.
    awaited: BTreeSet<u64>,
    next: u64,
}

struct Record {
    module: ModuleRef,
    method: Option<Arc<str>>,
    params: Value,
    bdevs: Vec<BdevHandle>,
    /// What the last of its devices said makes it again, while that is away.
    account: Option<Value>,
    waits_for: String,
    /// A call started it, and one ends it: its devices come and go meanwhile.
    is_service: bool,
}

impl Record {
    fn name(&self) -> Option<&str> {
        self.params.get("name").and_then(Value::as_str)
    }
}

impl Saved {
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Records without devices.
    fn absent(&self) -> impl Iterator<Item = (u64, &Record)> {
        let numbers = self.gone.iter().chain(&self.awaited);
        numbers.filter_map(|number| Some((*number, self.records.get(number)?)))
    }

    /// The record without devices of that name, of `module` if one is given.
    fn absent_of(&self, module: Option<&str>, name: Option<&str>) -> Option<u64> {
        let name = name?;
        let is_it = |(_, record): &(u64, &Record)| {
            record.name() == Some(name) && module.is_none_or(|module| record.module.name() == module)
        };
        self.absent().find(is_it).map(|(number, _)| number)
    }

    /// The record of that name, whatever devices it has, of `module` if one is given.
    fn named(&self, module: Option<&str>, name: &str) -> Option<&Record> {
        let is_it = |record: &&Record| module.is_none_or(|module| record.module.name() == module);
        self.all_named(name).find(is_it)
    }

    fn all_named(&self, name: &str) -> impl Iterator<Item = &Record> {
        let numbers = self.by_name.get(name).into_iter().flatten();
        numbers.filter_map(|number| self.records.get(number))
    }

    /// The module other than `module` that was asked to make `name`, and a device it has made of it.
    pub(crate) fn others_devices(&self, module: &str, name: &str) -> Option<(&str, BdevHandle)> {
        let mut others = self.all_named(name).filter(|record| record.module.name() != module);
        others.find_map(|record| Some((record.module.name(), *record.bdevs.first()?)))
    }

    fn keep(&mut self, wanted: impl Fn(&Record) -> bool) {
        self.records.retain(|_, record| wanted(record));
        let Saved { gone, awaited, by_name, records, .. } = self;
        gone.retain(|number| records.contains_key(number));
        awaited.retain(|number| records.contains_key(number));
        by_name.retain(|_, numbers| {
            numbers.retain(|number| records.contains_key(number));
            !numbers.is_empty()
        });
    }

    /// Records of what was ended go with their last devices.
    fn end_services(&mut self, ended: impl Fn(&Record) -> bool) {
        for record in self.records.values_mut().filter(|record| ended(record)) {
            record.is_service = false;
        }
    }

    fn drop_record(&mut self, number: u64) {
        let record = self.records.remove(&number);
        let name = record.as_ref().and_then(Record::name);
        if let Some((name, numbers)) = name.and_then(|name| Some((name, self.by_name.get_mut(name)?))) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_name.remove(name);
            }
        }
        self.is_present(number);
    }

    fn is_present(&mut self, number: u64) {
        self.gone.remove(&number);
        self.awaited.remove(&number);
    }
}

impl Core {
    /// A create, or an RPC that registered devices, succeeded.
    pub(crate) fn saved_add(
        &self,
        request: &Request,
        module: Option<ModuleRef>,
        bdevs: &[BdevHandle],
        answer: &Value,
    ) {
        let Some(module) = module else { return };
        let (method, params, is_service) = match request {
            Request::Create { params, .. } => (None, serde_json::from_str(params).ok(), false),
            Request::Rpc { method, params, .. } => match started_table(method, module, params) {
                Some(table) => (Some(method.clone()), Some(table), true),
                None if bdevs.is_empty() => return,
                None => (Some(method.clone()), serde_json::from_str(params).ok(), false),
            },
            Request::Delete { .. } | Request::Update { .. } | Request::Configure { .. } => return,
        };
        let Some(params): Option<Value> = params else { return };
        let name = params.get("name").and_then(Value::as_str);
        let arrived = if bdevs.is_empty() { name.and_then(|name| self.arrived(module, name)) } else { None };
        let bdevs: Vec<BdevHandle> = bdevs.iter().copied().chain(arrived).collect();
        let mut saved = self.inner.saved.borrow_mut();
        // What was made again takes the place of what went away.
        if let Some(replaced) = saved.absent_of(Some(module.name()), name) {
            saved.drop_record(replaced);
        }
        let number = saved.next;
        saved.next += 1;
        if bdevs.is_empty() && name.is_some() {
            saved.awaited.insert(number);
        }
        for bdev in &bdevs {
            saved.by_bdev.insert(*bdev, number);
        }
        let waits_for = missing_of(answer).or_else(|| foundation_of(&params)).unwrap_or_default();
        if let Some(name) = name {
            saved.by_name.entry(name.to_owned()).or_default().insert(number);
        }
        let record = Record { module, method, params, bdevs, account: None, waits_for, is_service };
        saved.records.insert(number, record);
    }

    /// A device that came by itself before the create that waited for it was over.
    fn arrived(&self, module: ModuleRef, name: &str) -> Option<BdevHandle> {
        let bdev = self.find_any(name)?;
        let registry = self.inner.registry.borrow();
        let is_its = registry.get(bdev).is_some_and(|record| record.module.id() == module.id());
        (is_its && self.came_by_itself(bdev)).then_some(bdev)
    }

    /// Whether no create made a device.
    pub(crate) fn came_by_itself(&self, bdev: BdevHandle) -> bool {
        !self.inner.saved.borrow().by_bdev.contains_key(&bdev)
    }

    /// The module of a name that was created and is no device: it has none now, or its devices have other names.
    pub(crate) fn saved_module(&self, name: &str, module: Option<&str>) -> Option<ModuleRef> {
        self.inner.saved.borrow().named(module, name).map(|record| record.module)
    }

    /// The devices that are there because `name` was created; `None` if it was not.
    pub fn devices_of(&self, name: &str) -> Option<Vec<String>> {
        let bdevs = self.inner.saved.borrow().named(None, name)?.bdevs.clone();
        Some(bdevs.into_iter().filter_map(|bdev| self.name_of(bdev)).collect())
    }

    /// A name is not wanted any more: it goes at once, or with the devices that are still there.
    pub(crate) fn saved_forget(&self, name: &str, module: Option<&str>) {
        let mut saved = self.inner.saved.borrow_mut();
        if let Some(number) = saved.absent_of(module, Some(name)) {
            saved.drop_record(number);
        }
        saved.end_services(|record| {
            record.name() == Some(name) && module.is_none_or(|module| record.module.name() == module)
        });
    }

    /// Names that were created and are no devices now; [`Core::delete`] ends the wait of one.
    pub fn awaited(&self) -> Vec<Awaited> {
        let saved = self.inner.saved.borrow();
        let awaited = |(_, record): (u64, &Record)| {
            Some(Awaited {
                name: record.name()?.to_owned(),
                module: record.module.name().to_owned(),
                waits_for: record.waits_for.clone(),
            })
        };
        saved.absent().filter_map(awaited).collect()
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
        let words = ["_delete", "_detach", "_destroy", "_stop_discovery", "_stop_mdns_discovery"];
        let takes_away = words.iter().any(|word| method.contains(word));
        let Some(module) = module.filter(|_| takes_away) else { return };
        let Ok(params) = serde_json::from_str::<Value>(params) else { return };
        let Some(name) = params.get("name").and_then(Value::as_str) else { return };
        let is_named = |record: &Record| record.module.name() == module.name() && record.name() == Some(name);
        let mut saved = self.inner.saved.borrow_mut();
        saved.keep(|record| !is_named(record) || !record.bdevs.is_empty());
        saved.end_services(is_named);
    }

    /// A device goes that may come back by itself: what it is made of by now may be more than it was created with.
    /// An account of something of another name does not stand for what was created.
    pub(crate) fn saved_keep_account(&self, bdev: BdevHandle) {
        let Some(account) = self.account_of(bdev, |_| true) else { return };
        let mut saved = self.inner.saved.borrow_mut();
        let Some(number) = saved.by_bdev.get(&bdev).copied() else { return };
        if let Some(record) = saved.records.get_mut(&number)
            && record.name() == account.get("name").and_then(Value::as_str)
        {
            record.account = Some(account);
        }
    }

    /// A device is gone. Its record goes with the last of them, unless the device may come back by itself.
    pub(crate) fn saved_forget_bdev(&self, bdev: BdevHandle, may_return: bool) {
        let mut saved = self.inner.saved.borrow_mut();
        let Some(number) = saved.by_bdev.remove(&bdev) else { return };
        let Some(record) = saved.records.get_mut(&number) else { return };
        record.bdevs.retain(|other| *other != bdev);
        match (record.bdevs.is_empty(), may_return) {
            (true, true) => _ = saved.gone.insert(number),
            (true, false) if record.is_service => _ = saved.awaited.insert(number),
            (true, false) => saved.drop_record(number),
            (false, _) => {}
        }
    }

    /// A device that comes by itself belongs to the create that made it first, or that waited for it.
    pub(crate) fn saved_adopt(&self, module: ModuleRef, name: &str, bdev: BdevHandle) {
        let mut saved = self.inner.saved.borrow_mut();
        let Some(number) = saved.absent_of(Some(module.name()), Some(name)) else { return };
        saved.is_present(number);
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
                let account = record.account.clone().filter(|_| record.bdevs.is_empty());
                let method =
                    record.method.as_ref().filter(|_| account.is_none()).map(|method| method.to_string());
                let params = account.unwrap_or_else(|| record.params.clone());
                (record.module.name().to_owned(), method, params, record.bdevs.clone())
            };
            saved.records.values().map(entry).collect()
        };
        let mut entries = Vec::new();
        let (mut seen, mut plain) = (HashSet::new(), Vec::new());
        for (module, method, params, bdevs) in records {
            let names: Vec<String> = bdevs.iter().filter_map(|bdev| self.name_of(*bdev)).collect();
            let mut own: Vec<Value> = bdevs.iter().filter_map(|bdev| self.own_config(*bdev)).collect();
            own.dedup();
            if own.is_empty() {
                plain.push(entries.len());
                entries.push(SavedEntry { module, method, params, bdevs: names });
                continue;
            }
            for params in own {
                // Devices of several creates may have one account.
                if !seen.insert((module.clone(), params.to_string())) {
                    continue;
                }
                entries.push(SavedEntry {
                    module: module.clone(),
                    method: None,
                    params,
                    bdevs: names.clone(),
                });
            }
        }
        self.add_unasked(&mut entries, &mut seen);
        // An account of devices that came by themselves stands for the create that made them come.
        let name_of =
            |entry: &SavedEntry| Some((entry.module.clone(), entry.params.get("name")?.to_string()));
        let is_plain = |at: &usize| plain.contains(at);
        let accounts: HashSet<_> = entries
            .iter()
            .enumerate()
            .filter(|(at, _)| !is_plain(at))
            .filter_map(|(_, entry)| name_of(entry))
            .collect();
        let stays = |at: usize, entry: &SavedEntry| {
            !is_plain(&at) || name_of(entry).is_none_or(|name| !accounts.contains(&name))
        };
        let kept = entries.into_iter().enumerate().filter(|(at, entry)| stays(*at, entry));
        kept.map(|(_, entry)| entry).collect()
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
        self.account_of(bdev, |record| record.state().may_be_opened())
    }

    /// What a device that is not being destructed yet says makes it again.
    fn account_of(&self, bdev: BdevHandle, is_asked: impl Fn(&Bdev) -> bool) -> Option<Value> {
        let (callbacks, module, name) = {
            let registry = self.inner.registry.borrow();
            let record = registry.get(bdev).filter(|record| is_asked(record))?;
            (record.callbacks, record.module, record.name.clone())
        };
        if !crate::callbacks::may_be_called(module) {
            return None;
        }
        // SAFETY: the device is registered and not being destructed, as its state or its caller says.
        unsafe { callbacks.config_json(&name) }
    }
}

/// The table that says as well what a call starts, such as `…_start_discovery`: its parameters, or those with the
/// option of that name (`discovery = true`). It is kept although its devices come later, by themselves.
fn started_table(method: &str, module: ModuleRef, params: &str) -> Option<Value> {
    let (_, option) = method.split_once("_start_")?;
    if !module.offers(Callback::Validate) || !crate::callbacks::may_be_called(module) {
        return None;
    }
    let plain: Map<String, Value> = serde_json::from_str(params).ok()?;
    let mut with_option = plain.clone();
    with_option.insert(option.to_owned(), true.into());
    let tables = [plain, with_option].map(Value::Object);
    tables.into_iter().find(|table| module.validate(&table.to_string()).is_ok())
}

/// What a module that could not make a device yet says it misses.
fn missing_of(answer: &Value) -> Option<String> {
    let names = answer.get("missing").and_then(Value::as_array)?;
    let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// What a device stands on, by the parameters that modules have for it.
fn foundation_of(params: &Value) -> Option<String> {
    let keys = ["filename", "base", "base_bdev_name", "base_name"];
    keys.iter().find_map(|key| params.get(key)?.as_str()).map(str::to_owned)
}
