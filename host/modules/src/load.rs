//! Bringing a module in: open apart, check the name, `init` apart, `init_complete`,
//! supersede the older one.
//!
//! ```text
//! ensure | load_file ─► opening (own thread, deadline) ─► Module Loaded ─► init (own thread, deadline)
//!                        └─ error: nothing is left             └─ error or deadline: Module Failed
//! ```
//!
//! Each load has a ticket. A result whose ticket is gone came after the deadline
//! and is ignored: its thread and image are left behind.
// UNSAFETY: `load_static` reads a descriptor the caller vouches for.

use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use tenon_abi::{PluginDescV1, errno};
use tenon_reactor::TimerId;

use crate::apart;
use crate::callbacks::read_descriptor;
use crate::error::{LoadError, ModuleError, PluginError};
use crate::image::{Image, OpenRequest, Taken};
use crate::module::{Module, ModuleRef, Refusal};
use crate::retire::DrainCause;
use crate::set::{Inner, Modules};
use crate::state::{ModuleEvent, ModuleState};

/// What to do if a module of the same name is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Refuse the new one.
    Refuse,
    /// Load the new one beside it; new devices go to the new one and the old one drains. Going back to an older
    /// version works the same way.
    Supersede,
}

/// Continuation of a load.
type Done = Box<dyn FnOnce(Result<ModuleRef, PluginError>)>;

/// A load in flight.
pub(crate) struct Load {
    ticket: u64,
    /// The module's name as far as it is known.
    name: Option<String>,
    file: PathBuf,
    config_json: String,
    existing: Existing,
    /// Set from `init` on.
    module: Option<ModuleRef>,
    timer: Option<TimerId>,
    waiting: Vec<Done>,
}

impl Modules {
    /// The running module `name`; if there is none, the newest version in the catalog is loaded with
    /// `config_json` first. Joins a load of that name that is in flight. `done` never runs inside this call.
    pub fn ensure(
        &self,
        name: &str,
        config_json: &str,
        done: impl FnOnce(Result<ModuleRef, PluginError>) + 'static,
    ) {
        if let Some(module) = self.current(name) {
            return self.inner.later(move || done(Ok(module)));
        }
        let mut loads = self.inner.loads.borrow_mut();
        if let Some(load) = loads.iter_mut().find(|load| load.name.as_deref() == Some(name)) {
            return load.waiting.push(Box::new(done));
        }
        drop(loads);
        let catalog = self.catalog();
        let unable = |fault| PluginError { file: PathBuf::new(), fault };
        if let Some(taken) = self.inner.taken(Existing::Refuse).iter().find(|taken| taken.name == name) {
            let error = unable(taken.error());
            return self.inner.later(move || done(Err(error)));
        }
        let Some(plugin) = catalog.newest(name) else {
            // A file that says by its name to be that module is what the operator has to look at.
            let error = catalog.rejected_for(name).cloned().unwrap_or_else(|| {
                unable(LoadError::UnknownModule { name: name.to_owned(), known: catalog.names() })
            });
            return self.inner.later(move || done(Err(error)));
        };
        let load =
            self.inner.new_load(Some(name), &plugin.path, config_json, Existing::Refuse, Box::new(done));
        self.inner.open(load);
    }

    /// The options that a load of that name, now in flight, was asked for with.
    #[must_use]
    pub fn loading_with(&self, name: &str) -> Option<String> {
        let loads = self.inner.loads.borrow();
        let load = loads.iter().find(|load| load.name.as_deref() == Some(name));
        load.map(|load| load.config_json.clone())
    }

    /// Loads the plugin in `path`. `done` never runs inside this call.
    pub fn load_file(
        &self,
        path: &Path,
        config_json: &str,
        existing: Existing,
        done: impl FnOnce(Result<ModuleRef, PluginError>) + 'static,
    ) {
        let load = self.inner.new_load(None, path, config_json, existing, Box::new(done));
        self.inner.open(load);
    }

    /// Takes in a module that is linked into this process: the same gate 1, `init` and all that follows, but no
    /// file and no certificate. `done` never runs inside this call.
    ///
    /// # Safety
    /// `descriptor` is null or a descriptor as the contract describes it, valid for the life of the process,
    /// whose callbacks obey the contract.
    pub unsafe fn load_static(
        &self,
        descriptor: *const PluginDescV1,
        config_json: &str,
        existing: Existing,
        done: impl FnOnce(Result<ModuleRef, PluginError>) + 'static,
    ) {
        let mut load = self.inner.new_load(None, Path::new(""), config_json, existing, Box::new(done));
        // SAFETY: passed on to the caller.
        let descriptor = unsafe { read_descriptor(descriptor) };
        match descriptor {
            Ok(descriptor) => match self.inner.conflict(&descriptor.name, existing) {
                None => {
                    load.name = Some(descriptor.name.clone());
                    self.inner.init(load, Module::from_static(descriptor));
                }
                Some(fault) => self.inner.refuse(load, fault),
            },
            Err(fault) => self.inner.refuse(load, fault),
        }
    }
}

impl Inner {
    fn new_load(
        &self,
        name: Option<&str>,
        file: &Path,
        config_json: &str,
        existing: Existing,
        done: Done,
    ) -> Load {
        Load {
            ticket: self.take_ticket(),
            name: name.map(str::to_owned),
            file: file.to_path_buf(),
            config_json: config_json.to_owned(),
            existing,
            module: None,
            timer: None,
            waiting: vec![done],
        }
    }

    /// Modules whose name a load may not have. One that is superseded has given its name away.
    fn taken(&self, existing: Existing) -> Vec<Taken> {
        let is_taken = |module: &ModuleRef| match module.state() {
            ModuleState::Running => existing == Existing::Refuse,
            ModuleState::Loaded | ModuleState::Initialising | ModuleState::Initialised => true,
            ModuleState::Draining | ModuleState::Finishing => !self.is_superseded(module),
            ModuleState::Retired | ModuleState::Failed => false,
        };
        let modules = self.modules.borrow();
        let taken = modules.iter().copied().filter(is_taken).map(|module| Taken {
            name: module.name().to_owned(),
            version: module.version().to_string(),
            file: module.path().map(Path::to_path_buf),
            state: module.state(),
        });
        taken.collect()
    }

    fn conflict(&self, name: &str, existing: Existing) -> Option<LoadError> {
        self.taken(existing).iter().find(|taken| taken.name == name).map(Taken::error)
    }

    // ---- opening ----------------------------------------------------------------------------------------------

    fn open(self: &Rc<Self>, load: Load) {
        let holder = self.blocked_opens.borrow().first().map(|(_, file)| file.clone());
        if let Some(holder) = holder {
            return self.refuse(load, LoadError::LinkerBlocked { holder });
        }
        let request = OpenRequest {
            path: load.file.clone(),
            trust: self.options.trust,
            layout_check: self.options.layout_check,
            state_dir: self.options.state_dir.clone(),
            taken: self.taken(load.existing),
        };
        let stem = load.file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let thread_name = format!("open {}", stem.unwrap_or_default());
        let ticket = load.ticket;
        self.run_apart(
            load,
            &thread_name,
            move || request.open(),
            move |inner, result| {
                inner.opened(ticket, result);
            },
        );
    }

    fn opened(self: &Rc<Self>, ticket: u64, result: Result<Image, PluginError>) {
        let Some(mut load) = self.take_load(ticket) else {
            self.blocked_opens.borrow_mut().retain(|(blocked, _)| *blocked != ticket);
            let what = result.map(|image| image.path).map_err(|error| error.to_string());
            log::warn!("result of opening a plugin ignored, it came too late result={what:?}");
            return;
        };
        let image = match result {
            Ok(image) => image,
            Err(error) => return self.finish(load, Err(error)),
        };
        // Asked again: another load of the same name may have overtaken this one.
        if let Some(fault) = self.conflict(&image.descriptor.name, load.existing) {
            let error = PluginError::new(&load.file, fault);
            return self.finish(load, Err(error));
        }
        load.name = Some(image.descriptor.name.clone());
        self.init(load, Module::from_image(image));
    }

    // ---- init -------------------------------------------------------------------------------------------------

    fn init(self: &Rc<Self>, mut load: Load, module: ModuleRef) {
        log::info!(
            "module loaded module={} version={} file={}",
            module.name(),
            module.version(),
            load.file.display()
        );
        self.modules.borrow_mut().push(module);
        module.transition(ModuleEvent::InitStarted).expect("a new module is Loaded");
        load.module = Some(module);
        let (host, config, ticket) = (self.options.host, load.config_json.clone(), load.ticket);
        let thread_name = format!("init {}", module.name());
        let work = move || module.run_init(host, &config);
        self.run_apart(load, &thread_name, work, move |inner, result| {
            inner.init_returned(ticket, module, result)
        });
    }

    fn init_returned(self: &Rc<Self>, ticket: u64, module: ModuleRef, result: Result<(), Refusal>) {
        let Some(load) = self.take_load(ticket) else {
            log::warn!("result of init ignored, it came too late module={} result={result:?}", module.name());
            return;
        };
        match result {
            _ if module.state() != ModuleState::Initialising => self.aborted(load, module),
            Ok(()) => self.init_succeeded(load, module),
            Err(Refusal { code, text }) => {
                let fault = LoadError::InitFailed { module: module.name().to_owned(), code, text };
                self.init_failed(load, module, ModuleEvent::Faulted, fault);
            }
        }
    }

    fn init_succeeded(self: &Rc<Self>, load: Load, module: ModuleRef) {
        module.transition(ModuleEvent::InitSucceeded).expect("a load with a ticket is Initialising");
        self.give_log_level(module);
        let _ = module.init_complete();
        if module.transition(ModuleEvent::InitCompleted).is_err() {
            return self.aborted(load, module);
        }
        log::info!("module running module={} version={}", module.name(), module.version());
        // First, so that two modules of one name are never offered the same device.
        self.supersede_others(module);
        if let Some(listener) = self.listener() {
            listener.running(module);
        }
        self.finish(load, Ok(module));
    }

    /// `Modules::fail` was called before the module was running.
    fn aborted(&self, load: Load, module: ModuleRef) {
        let text = module.failure().unwrap_or_default();
        let fault = LoadError::InitFailed { module: module.name().to_owned(), code: errno::EIO, text };
        let error = PluginError::new(&load.file, fault);
        self.finish(load, Err(error));
    }

    fn supersede_others(self: &Rc<Self>, newcomer: ModuleRef) {
        let is_older = |module: &ModuleRef| {
            module.name() == newcomer.name()
                && module.id() != newcomer.id()
                && module.state() == ModuleState::Running
        };
        let older: Vec<ModuleRef> = self.modules.borrow().iter().copied().filter(is_older).collect();
        for module in older {
            log::info!(
                "module superseded module={} version={} by={}",
                module.name(),
                module.version(),
                newcomer.version()
            );
            self.drain(module, DrainCause::Superseded, None);
        }
    }

    fn init_failed(self: &Rc<Self>, load: Load, module: ModuleRef, event: ModuleEvent, fault: LoadError) {
        module.transition(event).expect("a load with a ticket is Initialising, which may fail");
        let error = PluginError::new(&load.file, fault);
        module.set_failure(&error.fault.to_string());
        if let Some(listener) = self.listener() {
            listener.failed(module, &ModuleError::Init(error.clone()));
        }
        self.finish(load, Err(error));
    }

    // ---- common -----------------------------------------------------------------------------------------------

    /// Runs one step of `load` apart, with the deadline, and books the load as in flight.
    fn run_apart<T: Send + 'static>(
        self: &Rc<Self>,
        mut load: Load,
        thread_name: &str,
        work: impl FnOnce() -> T + Send + 'static,
        done: impl FnOnce(&Rc<Inner>, T) + 'static,
    ) {
        let ticket = load.ticket;
        let weak: Weak<Inner> = Rc::downgrade(self);
        let on_deadline = move || {
            if let Some(inner) = weak.upgrade() {
                inner.deadline_passed(ticket);
            }
        };
        match self.local.set_timer(self.options.init_deadline, on_deadline) {
            Ok(timer) => load.timer = Some(timer),
            Err(error) => return self.refuse(load, LoadError::NoResources { cause: error.to_string() }),
        }
        self.loads.borrow_mut().push(load);
        let weak = Rc::downgrade(self);
        let continuation = move |result: T| {
            if let Some(inner) = weak.upgrade() {
                done(&inner, result);
            }
        };
        let started = apart::run(&self.local, self.options.init_on, thread_name, work, continuation);
        if let Err(cause) = started
            && let Some(load) = self.take_load(ticket)
        {
            self.refuse(load, LoadError::NoResources { cause });
        }
    }

    fn deadline_passed(self: &Rc<Self>, ticket: u64) {
        let Some(load) = self.take_load(ticket) else { return };
        let deadline = self.options.init_deadline;
        match load.module {
            None => {
                self.blocked_opens.borrow_mut().push((ticket, load.file.clone()));
                let error = PluginError::new(&load.file, LoadError::OpenTimedOut { deadline });
                self.finish(load, Err(error));
            }
            Some(module) if module.state() != ModuleState::Initialising => self.aborted(load, module),
            Some(module) => {
                let fault = LoadError::InitTimedOut { module: module.name().to_owned(), deadline };
                self.init_failed(load, module, ModuleEvent::DeadlinePassed, fault);
            }
        }
    }

    /// Ends a load that could not start its next step; never inside the call that asked.
    fn refuse(self: &Rc<Self>, load: Load, fault: LoadError) {
        let inner = Rc::clone(self);
        self.later(move || match load.module {
            Some(module) => inner.init_failed(load, module, ModuleEvent::Faulted, fault),
            None => {
                let error = PluginError::new(&load.file, fault);
                inner.finish(load, Err(error));
            }
        });
    }

    /// Takes a load out of flight: its step has ended, one way or the other.
    fn take_load(&self, ticket: u64) -> Option<Load> {
        let mut loads = self.loads.borrow_mut();
        let at = loads.iter().position(|load| load.ticket == ticket)?;
        let mut load = loads.swap_remove(at);
        if let Some(timer) = load.timer.take() {
            self.local.cancel_timer(timer);
        }
        Some(load)
    }

    fn finish(&self, load: Load, result: Result<ModuleRef, PluginError>) {
        for done in load.waiting {
            done(result.clone());
        }
    }
}
