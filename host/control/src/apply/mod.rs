//! Makes the running host what a configuration file says, at start and at a
//! reload.
//!
//! Order in the file does not matter: every device is asked for at once; one
//! whose base is not there yet is kept as *waiting* and asked for again when a
//! device of that name becomes ready, now or hours later. So is one that went
//! away with its base although nobody deleted either. A device that fails is
//! reported and leaves the others alone. What is exported is [`crate::nvmf`]'s
//! part. How a reload goes is in [`reload`].

mod reload;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use log::{debug, error, info};
use serde::Serialize;
use serde_json::Value;
use tenon_bdev::{Answer, Core, OpError, QosLimits};
use tenon_reactor::current;

use crate::config::{BdevEntry, Config, Phase, QosTable};
use crate::nvmf::Nvmf;

/// The engine; cloning is cheap. Control reactor only.
#[derive(Clone)]
pub struct Engine(Rc<Inner>);

struct Inner {
    core: Core,
    nvmf: Nvmf,
    current: RefCell<Config>,
    waiting: RefCell<Vec<Waiting>>,
    /// Devices whose modules make them as soon as others of the file are there, and the steps that wait for that.
    expected: RefCell<Vec<(String, Progress)>>,
    /// The start or reload under way: what waited and can now be made belongs to it.
    under_way: RefCell<Option<Progress>>,
    /// Reloads that wait for its end.
    queued: RefCell<VecDeque<QueuedReload>>,
}

#[derive(Clone)]
struct Waiting {
    entry: BdevEntry,
    base: String,
}

/// A configuration to come, and who wants to know what came of it.
type QueuedReload = (Config, Box<dyn FnOnce(Report)>);

/// Most reloads that wait.
const MAX_QUEUED: usize = 16;

/// A device of the configuration that waits for another one.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct WaitingEntry {
    /// The device.
    pub name: String,
    /// Its module.
    pub module: String,
    /// The device it waits for.
    pub waits_for: String,
    /// Where it is configured.
    pub location: String,
}

/// What went wrong, for people; empty if nothing did. Whoever gets it tells them: nothing of it is logged before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One line per device or module that failed.
    pub failures: Vec<String>,
    /// One line per required module or device among them.
    pub required: Vec<String>,
}

/// Counts the steps still running and hands over the report after the last.
#[derive(Clone)]
pub(crate) struct Progress(Rc<RefCell<ProgressState>>);

struct ProgressState {
    running: usize,
    report: Report,
    done: Option<Box<dyn FnOnce(Report)>>,
}

impl Engine {
    pub(crate) fn new(core: Core, nvmf: Nvmf) -> Self {
        let engine = Engine(Rc::new(Inner {
            core: core.clone(),
            nvmf,
            current: RefCell::default(),
            waiting: RefCell::default(),
            expected: RefCell::default(),
            under_way: RefCell::default(),
            queued: RefCell::default(),
        }));
        let weak = Rc::downgrade(&engine.0);
        core.on_bdev_ready(move |name, aliases| {
            if let Some(inner) = weak.upgrade() {
                let engine = Engine(inner);
                engine.retry_waiting_for(name, aliases);
                engine.arrived(name);
                engine.revive();
                let under_way = engine.0.under_way.borrow().clone();
                engine.0.nvmf.device_ready(name, aliases, under_way.as_ref());
            }
        });
        engine
    }

    /// The configuration in force.
    #[must_use]
    pub fn current(&self) -> Config {
        self.0.current.borrow().clone()
    }

    /// Devices, and namespaces, that wait for devices.
    #[must_use]
    pub fn waiting(&self) -> Vec<WaitingEntry> {
        let mut list: Vec<WaitingEntry> = self
            .0
            .waiting
            .borrow()
            .iter()
            .map(|waiting| WaitingEntry {
                name: waiting.entry.name.clone(),
                module: waiting.entry.module.clone(),
                waits_for: waiting.base.clone(),
                location: waiting.entry.params.location().to_string(),
            })
            .collect();
        list.extend(self.0.core.awaited().into_iter().map(|awaited| WaitingEntry {
            location: self.location_of(&awaited.name),
            waits_for: match awaited.waits_for {
                // Its file, for example: the module knows.
                nothing if nothing.is_empty() => format!("module {}", awaited.module),
                missing => missing,
            },
            name: awaited.name,
            module: awaited.module,
        }));
        list.extend(self.0.nvmf.waiting());
        list
    }

    /// Applies the configuration of the start. `done` runs when every device is ready, waiting or failed.
    pub fn start(&self, config: Config, done: impl FnOnce(Report) + 'static) {
        let progress = self.begin(done);
        for entry in &config.modules {
            self.0.core.set_module_config(&entry.name, &Value::Object(entry.options.value.clone()));
        }
        let bdevs = config.bdevs.clone();
        let modules = config.modules.clone();
        self.set_bdev_options(&config.bdev);
        *self.0.current.borrow_mut() = config;
        for entry in modules {
            let (step, name) = (progress.clone(), entry.name.clone());
            step.begin();
            self.0.core.module_load(&name, None, move |result| {
                if let Err(error) = result {
                    step.fail(format!("{}: {error}", entry.options.location()), entry.required);
                }
                step.end();
            });
        }
        let nvmf = self.0.current.borrow().nvmf.clone();
        let (engine, wanted, after) = (self.clone(), nvmf.clone(), progress.clone());
        self.0.nvmf.change(&nvmf, Phase::Keys, progress, move || {
            for entry in bdevs {
                engine.create(entry, &after);
            }
            engine.0.nvmf.change(&wanted, Phase::Coming, after.clone(), move || after.end());
        });
    }

    fn begin(&self, done: impl FnOnce(Report) + 'static) -> Progress {
        let weak = Rc::downgrade(&self.0);
        let progress = Progress::new(move |report| {
            let engine = weak.upgrade().map(Engine);
            drop(engine.as_ref().and_then(|engine| engine.0.under_way.take()));
            done(report);
            if let Some(engine) = engine {
                engine.reload_next();
            }
        });
        *self.0.under_way.borrow_mut() = Some(progress.clone());
        progress
    }

    /// Devices of the file that wait for others, as [`SavedEntry`](tenon_bdev::SavedEntry) has those that were made.
    pub(crate) fn waiting_tables(&self) -> Vec<(String, serde_json::Map<String, Value>, QosTable)> {
        let waiting = self.0.waiting.borrow();
        let table = |waiting: &Waiting| {
            let entry = &waiting.entry;
            (entry.module.clone(), entry.params.value.clone(), entry.qos)
        };
        waiting.iter().map(table).collect()
    }

    fn location_of(&self, name: &str) -> String {
        let current = self.0.current.borrow();
        let entry = current.bdevs.iter().find(|entry| entry.name == name);
        entry.map_or_else(String::new, |entry| entry.params.location().to_string())
    }

    /// Deletes a device of `module`, or ends the wait of a name for its base or for what its module wants: one way
    /// for operators and for reloads.
    pub fn delete(&self, name: &str, module: &str, reply: impl FnOnce(Result<Answer, OpError>) + 'static) {
        let was_waiting = {
            let mut waiting = self.0.waiting.borrow_mut();
            let before = waiting.len();
            waiting.retain(|waiting| waiting.entry.name != name || waiting.entry.module != module);
            waiting.len() != before
        };
        if was_waiting {
            info!("bdev is not waited for any more name={name}");
            reply(Ok(Answer { bdevs: Vec::new(), result: Value::Bool(true) }));
        } else {
            self.0.core.delete(name, Some(module), reply);
        }
    }

    /// Whether there is something of that name to delete.
    fn is_known(&self, name: &str) -> bool {
        self.0.core.find(name).is_some()
            || self.0.waiting.borrow().iter().any(|waiting| waiting.entry.name == name)
            || self.0.core.devices_of(name).is_some()
    }

    fn create(&self, entry: BdevEntry, progress: &Progress) {
        let (engine, step) = (self.clone(), progress.clone());
        let params = Value::Object(entry.params.value.clone());
        let module = entry.module.clone();
        step.begin();
        self.0.core.create(&module, &params, move |result| {
            match result {
                Ok(answer) => {
                    for name in &answer.bdevs {
                        engine.set_qos(name, entry.qos, &step);
                    }
                    if answer.bdevs.is_empty() {
                        engine.expect(&entry.name, &answer.result, &step);
                    }
                }
                Err(error) => engine.create_failed(entry, &error, &step),
            }
            step.end();
        });
    }

    fn create_failed(&self, entry: BdevEntry, error: &OpError, progress: &Progress) {
        let at = entry.params.location();
        match error.waiting_for() {
            Some(base) => {
                let base = base.to_owned();
                info!("bdev waits for another name={} waits_for={base} at={at}", entry.name);
                self.0.waiting.borrow_mut().push(Waiting { entry, base: base.clone() });
                // It may have become ready between the refusal and now.
                if self.0.core.find(&base).is_some() {
                    self.retry_waiting_for(&base, &[]);
                }
            }
            None => {
                progress.fail(format!("{at}: bdev {}: {error}", entry.name), false);
                self.forget(&entry);
            }
        }
    }

    /// A create was answered although there is no device yet. If all it misses is in the file, the start or reload
    /// is over when it is there, or after a while.
    fn expect(&self, name: &str, answer: &Value, progress: &Progress) {
        let missing = answer.get("missing").and_then(Value::as_array).cloned().unwrap_or_default();
        let is_in_file =
            |base: &Value| self.0.current.borrow().bdevs.iter().any(|entry| *base == *entry.name);
        if missing.is_empty() || !missing.iter().all(is_in_file) || self.0.core.find(name).is_some() {
            return;
        }
        progress.begin();
        self.0.expected.borrow_mut().push((name.to_owned(), progress.clone()));
        let (weak, late) = (Rc::downgrade(&self.0), name.to_owned());
        let timer = current().set_timer(ARRIVAL_TIMEOUT, move || {
            if let Some(inner) = weak.upgrade() {
                Engine(inner).arrived(&late);
            }
        });
        if timer.is_err() {
            self.arrived(name);
        }
    }

    /// A device is there, or will not be waited for any longer.
    fn arrived(&self, name: &str) {
        let (here, still) = self.0.expected.take().into_iter().partition(|(expected, _)| expected == name);
        *self.0.expected.borrow_mut() = still;
        let here: Vec<(String, Progress)> = here;
        here.into_iter().for_each(|(_, step)| step.end());
        self.limit_again(name);
    }

    /// The limits of the file hold for a device that came by itself, too.
    fn limit_again(&self, name: &str) {
        let qos = {
            let current = self.0.current.borrow();
            if !current.bdevs.iter().any(|entry| entry.qos != QosTable::default()) {
                return;
            }
            current.bdevs.iter().find(|entry| entry.name == name).map(|entry| entry.qos)
        };
        if let Some(qos) = qos.filter(|qos| *qos != QosTable::default()) {
            let owner = name.to_owned();
            self.0.core.set_qos(name, limits(qos), move |result| {
                if let Err(error) = result {
                    debug!("rate limits are not set bdev={owner} error=\"{error}\"");
                }
            });
        }
    }

    fn retry_waiting_for(&self, name: &str, aliases: &[String]) {
        let ready = |base: &str| base == name || aliases.iter().any(|alias| alias == base);
        let (due, still): (Vec<_>, Vec<_>) =
            self.0.waiting.take().into_iter().partition(|waiting| ready(&waiting.base));
        self.0.waiting.borrow_mut().extend(still);
        let under_way = self.0.under_way.borrow().clone();
        for waiting in due {
            if let Some(progress) = &under_way {
                self.create(waiting.entry, progress);
                continue;
            }
            let progress = Progress::new(|report: Report| {
                for failure in report.failures {
                    error!("{failure}");
                }
            });
            self.create(waiting.entry, &progress);
            progress.end();
        }
    }

    /// A device became ready: what nobody deleted, but went away with its base, is asked for again.
    fn revive(&self) {
        for entry in self.0.core.gone_config().into_iter().filter(|entry| entry.method.is_none()) {
            let Value::Object(params) = entry.params.clone() else { continue };
            let title = format!("[[bdev]] {}", params.get("name").and_then(Value::as_str).unwrap_or("-"));
            self.0.core.create(&entry.module, &entry.params, move |result| match result {
                Ok(answer) => info!("bdev made again bdevs={}", answer.bdevs.join(",")),
                Err(error) => debug!("bdev not made again yet: {title}: {error}"),
            });
        }
    }

    fn set_qos(&self, name: &str, qos: QosTable, progress: &Progress) {
        let step = progress.clone();
        let owner = name.to_owned();
        step.begin();
        self.0.core.set_qos(name, limits(qos), move |result| {
            if let Err(error) = result {
                step.fail(format!("bdev {owner}: rate limits: {error}"), false);
            }
            step.end();
        });
    }
}

impl Progress {
    /// One step is running already: the caller's, ended by its own `end`.
    pub(crate) fn new(done: impl FnOnce(Report) + 'static) -> Self {
        Progress(Rc::new(RefCell::new(ProgressState {
            running: 1,
            report: Report::default(),
            done: Some(Box::new(done)),
        })))
    }

    pub(crate) fn begin(&self) {
        self.0.borrow_mut().running += 1;
    }

    pub(crate) fn fail(&self, line: String, is_required: bool) {
        let mut state = self.0.borrow_mut();
        if is_required {
            state.report.required.push(line.clone());
        }
        state.report.failures.push(line);
    }

    pub(crate) fn end(&self) {
        let finished = {
            let mut state = self.0.borrow_mut();
            state.running -= 1;
            if state.running > 0 {
                return;
            }
            state.done.take().map(|done| (done, std::mem::take(&mut state.report)))
        };
        if let Some((done, report)) = finished {
            done(report);
        }
    }
}

/// How long a start waits for a device that its module makes when the others of the file are there.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Limits as the data plane takes them.
#[must_use]
pub fn limits(qos: QosTable) -> QosLimits {
    QosLimits {
        rw_ios_per_sec: qos.rw_ios_per_sec,
        rw_mbytes_per_sec: qos.rw_mbytes_per_sec,
        r_mbytes_per_sec: qos.r_mbytes_per_sec,
        w_mbytes_per_sec: qos.w_mbytes_per_sec,
    }
}
