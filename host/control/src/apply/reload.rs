//! A reload: from the configuration in force to a new one, by what differs.
//!
//! Modules get their options first, then devices change, between what is no
//! longer exported and what is newly exported. The order of tables in a file
//! means nothing, so a device that something still holds is tried again after
//! each other step that may have let go of it; only when none does is the
//! holder told. Whatever fails stays, for the next reload, as it was in the
//! file before: it is in the difference again. Does not read files.

use std::collections::VecDeque;
use std::time::Duration;

use log::info;
use serde_json::{Map, Value};
use tenon_abi::errno;
use tenon_bdev::{Answer, DEFAULT_RESET_DRAIN_TIMEOUT, OpError};

use super::{Engine, MAX_QUEUED, Progress, Report};
use crate::config::{
    BdevEntry, BdevSection, Change, Config, ModuleEntry, Phase, QosTable, difference, module_difference,
};

/// Changes of devices still to make.
struct Plan {
    due: VecDeque<Change>,
    /// Those that something holds, and what to say if it does not let go.
    held: Vec<(Change, String)>,
    /// A step since `held` was last tried may have let go of one of them.
    has_let_go: bool,
    /// The devices of the configuration before.
    before: Vec<BdevEntry>,
    done: Box<dyn FnOnce()>,
}

/// How a step ended.
enum Step {
    Done,
    Failed(String),
    Held(String),
}

impl Plan {
    fn next(&mut self) -> Option<Change> {
        // Removals come first, and all that can be made are made before anything else.
        if self.has_let_go && !matches!(self.due.front(), Some(Change::Remove { .. })) {
            self.has_let_go = false;
            for (change, _) in self.held.drain(..).rev() {
                self.due.push_front(change);
            }
        }
        self.due.pop_front()
    }

    /// Why `change` has to wait for an earlier one of the same device.
    fn held_earlier(&self, change: &Change) -> Option<String> {
        let (_, reason) = self.held.iter().find(|(held, _)| held.name() == change.name())?;
        Some(reason.clone())
    }
}

impl Engine {
    /// Applies what differs between the configuration in force and `new`. A step that cannot be done is reported
    /// and tried again by the next reload.
    ///
    /// One that comes during the start or during another reload is made after it.
    pub fn reload(&self, mut new: Config, done: impl FnOnce(Report) + 'static) {
        if self.0.under_way.borrow().is_some() {
            let mut queued = self.0.queued.borrow_mut();
            if queued.len() >= MAX_QUEUED {
                let failure = "too many reloads wait for the one under way".to_owned();
                drop(queued);
                return done(Report { failures: vec![failure], required: Vec::new() });
            }
            return queued.push_back((new, Box::new(done)));
        }
        new.nvmf.number_namespaces(&self.0.nvmf.in_force());
        let old = self.0.current.replace(new);
        let new = self.current();
        let changes = difference(&old, &new);
        info!("configuration reload changes={}", changes.len());
        if old.bdev != new.bdev {
            self.set_bdev_options(&new.bdev);
        }
        let progress = self.begin(done);
        let (engine, after) = (self.clone(), progress.clone());
        let coming = {
            let (target, nvmf) = (self.0.nvmf.clone(), new.nvmf.clone());
            move || target.change(&nvmf, Phase::Coming, after.clone(), move || after.end())
        };
        let next = progress.clone();
        let devices = move || {
            let plan = Plan {
                due: changes.into(),
                held: Vec::new(),
                has_let_go: false,
                before: old.bdevs,
                done: Box::new(coming),
            };
            engine.step(plan, next);
        };
        let (target, wanted, after) = (self.0.nvmf.clone(), new.nvmf.clone(), progress.clone());
        self.configure_modules(&old.modules, &new.modules, &progress, move || {
            let (keys, last) = (target.clone(), after.clone());
            target.change(&wanted.clone(), Phase::Going, after, move || {
                keys.change(&wanted, Phase::Keys, last, devices);
            });
        });
    }

    /// Makes the reload that waits longest.
    pub(super) fn reload_next(&self) {
        let next = self.0.queued.borrow_mut().pop_front();
        if let Some((config, done)) = next {
            self.reload(config, done);
        }
    }

    pub(super) fn set_bdev_options(&self, options: &BdevSection) {
        self.0.core.set_auto_examine(options.auto_examine.unwrap_or(true));
        let timeout =
            options.reset_drain_timeout_sec.map_or(DEFAULT_RESET_DRAIN_TIMEOUT, Duration::from_secs);
        self.0.core.set_reset_drain_timeout(timeout);
    }

    /// Loads modules that are new in the file and gives options that differ to those that run.
    fn configure_modules(
        &self,
        old: &[ModuleEntry],
        new: &[ModuleEntry],
        progress: &Progress,
        then: impl FnOnce() + 'static,
    ) {
        let outer = progress.clone();
        let all = Progress::new(move |report: Report| {
            report.failures.into_iter().for_each(|failure| outer.fail(failure, false));
            then();
        });
        for (name, entry) in module_difference(old, new) {
            let options = entry.map_or_else(Map::new, |entry| entry.options.value.clone());
            let title = entry
                .map_or_else(|| format!("[[module]] {name}"), |entry| entry.options.location().to_string());
            let options = Value::Object(options);
            let (engine, step) = (self.clone(), all.clone());
            let before = old.iter().find(|entry| entry.name == name).cloned();
            let owner = name.clone();
            let finish = move |result: Result<(), OpError>| {
                if let Err(error) = result {
                    engine.restore_module(&owner, before);
                    step.fail(format!("{title}: module {owner}: {error}"), false);
                }
                step.end();
            };
            all.begin();
            if self.0.core.modules().current(&name).is_some() {
                self.0.core.module_configure(&name, &options, move |result: Result<Answer, OpError>| {
                    finish(match result {
                        Err(error) if error.code == errno::ENOTSUP => {
                            Err(OpError::new(errno::ENOTSUP, String::new(), "takes no options while it runs"))
                        }
                        result => result.map(drop),
                    });
                });
            } else {
                self.0.core.set_module_config(&name, &options);
                match entry {
                    Some(_) => self.0.core.module_load(&name, None, move |result| finish(result.map(drop))),
                    None => finish(Ok(())),
                }
            }
        }
        all.end();
    }

    /// One change after the other, so that what is removed is gone before its name is used again.
    fn step(&self, mut plan: Plan, progress: Progress) {
        let Some(change) = plan.next() else {
            for (change, reason) in std::mem::take(&mut plan.held) {
                self.restore(change.name(), &plan.before);
                // Told once, not for each change of the device that waited behind it.
                if !matches!(change, Change::Add(_) | Change::SetQos { .. }) {
                    progress.fail(reason, false);
                }
            }
            return (plan.done)();
        };
        if let Some(reason) = plan.held_earlier(&change) {
            plan.held.push((change, reason));
            return self.step(plan, progress);
        }
        let (engine, next, retried) = (self.clone(), progress.clone(), change.clone());
        let after = move |step: Step| {
            match step {
                Step::Done => plan.has_let_go = true,
                Step::Held(reason) => plan.held.push((retried, reason)),
                Step::Failed(reason) => {
                    engine.restore(retried.name(), &plan.before);
                    next.fail(reason, false);
                }
            }
            engine.step(plan, next);
        };
        match change {
            Change::Remove { name, module } => self.remove(&name, &module, after),
            Change::Update(entry) => self.update(entry, &progress, after),
            Change::SetQos { name, qos } => {
                self.change_qos(&name, qos, &progress);
                after(Step::Done);
            }
            Change::Add(entry) => {
                self.create(entry, &progress);
                after(Step::Done);
            }
        }
    }

    /// A change of a device failed: the configuration in force says of it what it said before.
    fn restore(&self, name: &str, before: &[BdevEntry]) {
        let old = before.iter().find(|entry| entry.name == name).cloned();
        let bdevs = &mut self.0.current.borrow_mut().bdevs;
        let place = bdevs.iter().position(|entry| entry.name == name);
        match (place, old) {
            (Some(place), Some(old)) => bdevs[place] = old,
            (Some(place), None) => drop(bdevs.remove(place)),
            (None, Some(old)) => bdevs.push(old),
            (None, None) => {}
        }
    }

    fn restore_module(&self, name: &str, before: Option<ModuleEntry>) {
        let modules = &mut self.0.current.borrow_mut().modules;
        modules.retain(|entry| entry.name != name);
        modules.extend(before);
    }

    /// A device of the file was not made: it is no part of what is in force.
    pub(super) fn forget(&self, failed: &BdevEntry) {
        let is_it =
            |entry: &BdevEntry| entry.name == failed.name && entry.params.value == failed.params.value;
        self.0.current.borrow_mut().bdevs.retain(|entry| !is_it(entry));
    }

    fn remove(&self, name: &str, module: &str, after: impl FnOnce(Step) + 'static) {
        if !self.is_known(name) {
            return after(Step::Done);
        }
        if let Some(holder) = self.holder_of(name) {
            return after(Step::Held(format!("bdev {name}: cannot be removed while {holder} uses it")));
        }
        let owner = name.to_owned();
        self.delete(name, module, move |result| {
            after(match result {
                Ok(_) => Step::Done,
                Err(error) => Step::Failed(format!("bdev {owner}: cannot be removed: {error}")),
            });
        });
    }

    fn update(&self, entry: BdevEntry, progress: &Progress, after: impl FnOnce(Step) + 'static) {
        if self.0.core.find(&entry.name).is_none() {
            if self.is_known(&entry.name) {
                return self.replace(entry, progress, after);
            }
            self.create(entry, progress);
            return after(Step::Done);
        }
        let (engine, name, progress) = (self.clone(), entry.name.clone(), progress.clone());
        let params = Value::Object(entry.params.value.clone());
        self.0.core.update(&name, &params, move |result| match result {
            Ok(_) => after(Step::Done),
            Err(error) if error.code == errno::ENOTSUP => engine.replace(entry, &progress, after),
            Err(error) => {
                let at = entry.params.location();
                after(Step::Failed(format!("{at}: bdev {}: {error}", entry.name)));
            }
        });
    }

    /// The module cannot change the device in place: delete and create, unless somebody uses it.
    fn replace(&self, entry: BdevEntry, progress: &Progress, after: impl FnOnce(Step) + 'static) {
        let (name, at) = (entry.name.clone(), entry.params.location());
        if let Some(holder) = self.holder_of(&name) {
            return after(Step::Held(format!("{at}: bdev {name}: cannot be changed while {holder} uses it")));
        }
        let (engine, progress, module) = (self.clone(), progress.clone(), entry.module.clone());
        self.delete(&name.clone(), &module, move |result| match result {
            Ok(_) => {
                engine.create(entry, &progress);
                after(Step::Done);
            }
            Err(error) => after(Step::Failed(format!("{at}: bdev {name}: cannot be replaced: {error}"))),
        });
    }

    fn holder_of(&self, name: &str) -> Option<String> {
        let holder = |name: &str| {
            let snapshot = self.0.core.bdev(name)?;
            snapshot.holders.first().map(|holder| holder.owner.clone())
        };
        let devices = self.0.core.devices_of(name).unwrap_or_default();
        holder(name).or_else(|| devices.iter().find_map(|device| holder(device)))
    }

    /// New limits, of a device that is there or of one that is waited for.
    fn change_qos(&self, name: &str, qos: QosTable, progress: &Progress) {
        if self.0.core.find(name).is_some() {
            return self.set_qos(name, qos, progress);
        }
        let mut waiting = self.0.waiting.borrow_mut();
        if let Some(waiting) = waiting.iter_mut().find(|waiting| waiting.entry.name == name) {
            waiting.entry.qos = qos;
        }
    }
}
