//! The core: one per process, on the control reactor. It owns all records and
//! the queue of what is to be done later.
//!
//! The methods of [`Core`] are spread over the files of this crate, one engine
//! each. All of them follow one rule: a borrow of the state ends before anybody
//! else's code runs, be it a module's callback, a reply, or the drop of a closure.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tenon_modules::{Catalog, ModuleRef, Modules, ModulesOptions};

use crate::activity::Activities;
use crate::deadline::Deadlines;
use crate::descriptor::Descriptors;
use crate::error::OpError;
use crate::examine::Examinations;
use crate::hotplug::Hotplug;
use crate::io::DEFAULT_RESET_DRAIN_TIMEOUT;
use crate::memory::Subscriptions;
use crate::module_events::ModuleEvents;
use crate::notify::{Listeners, Notifications};
use crate::operation::Operations;
use crate::registry::Registry;
use crate::rpc_table::RpcTable;
use crate::saved::Saved;
use crate::shutdown::Stage;
use crate::thread::Shared;

/// How a core behaves; deadlines are those of single steps.
#[derive(Clone)]
pub struct CoreOptions {
    /// How modules are loaded; `host` must be [`crate::host_api`].
    pub modules: ModulesOptions,
    /// Offer every new device to the modules.
    pub auto_examine: bool,
    /// How long an operation may take before its client is told so. Default 60 s.
    pub operation_deadline: Duration,
    /// How long a module may examine one device. Default 10 s.
    pub examine_deadline: Duration,
    /// How long openers may take to close a device that goes. Default 10 s.
    pub remove_deadline: Duration,
    /// How long a reactor may take to give up the channels of a device that goes. Default 10 s.
    pub drain_deadline: Duration,
    /// How long a module may take to destruct a device. Default 10 s.
    pub destruct_deadline: Duration,
    /// How long [`Core::shutdown`] waits for each step. Default 20 s.
    pub shutdown_deadline: Duration,
    /// Most devices. Default 65,536.
    pub max_bdevs: usize,
    /// Most bytes of [`crate::buffer_get`] per reactor. Default 64 MiB.
    pub buffer_pool_bytes: usize,
}

impl Default for CoreOptions {
    fn default() -> Self {
        Self {
            modules: ModulesOptions::new(crate::host_api()),
            auto_examine: true,
            operation_deadline: Duration::from_secs(60),
            examine_deadline: Duration::from_secs(10),
            remove_deadline: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(10),
            destruct_deadline: Duration::from_secs(10),
            shutdown_deadline: Duration::from_secs(20),
            max_bdevs: 65_536,
            buffer_pool_bytes: 64 << 20,
        }
    }
}

/// The control plane of all block devices. Lives on the control reactor; cloning it is cheap.
#[derive(Clone)]
pub struct Core {
    pub(crate) inner: Rc<Inner>,
}

/// A core that does not keep it alive.
#[derive(Clone)]
pub(crate) struct WeakCore(Weak<Inner>);

/// Work for a later turn.
type Task = Box<dyn FnOnce(&Core)>;

/// The records. Each cell is borrowed for one step at a time.
pub(crate) struct Inner {
    pub options: CoreOptions,
    pub auto_examine: Cell<bool>,
    pub reset_drain_timeout: Cell<Duration>,
    pub shared: Arc<Shared>,
    pub modules: Modules,
    /// What [`Modules`] calls; kept alive here.
    pub module_events: RefCell<Option<Rc<ModuleEvents>>>,
    pub module_configs: RefCell<HashMap<String, String>>,
    pub registry: RefCell<Registry>,
    pub descriptors: RefCell<Descriptors>,
    pub examinations: RefCell<Examinations>,
    pub operations: RefCell<Operations>,
    pub activities: RefCell<Activities>,
    pub deadlines: RefCell<Deadlines>,
    pub notifications: RefCell<Notifications>,
    pub listeners: RefCell<Listeners>,
    pub rpc_table: RefCell<RpcTable>,
    pub subscriptions: RefCell<Subscriptions>,
    pub hotplug: RefCell<Hotplug>,
    pub saved: RefCell<Saved>,
    pub stage: RefCell<Stage>,
    /// Why the host refused what a module asked for last, during the module's call.
    refusal: RefCell<Option<OpError>>,
    later: RefCell<VecDeque<Task>>,
    is_later_armed: Cell<bool>,
    next_id: Cell<u64>,
    /// A look at what the shutdown may do next is queued.
    pub is_shutdown_check_queued: Cell<bool>,
}

thread_local! {
    static CORE: RefCell<Option<Core>> = const { RefCell::new(None) };
}

impl Core {
    /// Starts the core on the control reactor, and makes it known to all reactors.
    ///
    /// # Panics
    /// Away from the control reactor: that is a fault of the caller.
    pub fn start(options: CoreOptions, catalog: Catalog) -> Core {
        let local = tenon_reactor::current();
        assert!(local.is_control(), "the core starts on the control reactor, not on {}", local.name());
        let shared = Shared::publish(local.directory());
        let core = Core {
            inner: Rc::new(Inner {
                auto_examine: Cell::new(options.auto_examine),
                reset_drain_timeout: Cell::new(DEFAULT_RESET_DRAIN_TIMEOUT),
                modules: Modules::new(options.modules.clone(), catalog),
                module_events: RefCell::default(),
                module_configs: RefCell::default(),
                registry: RefCell::new(Registry::new(options.max_bdevs)),
                descriptors: RefCell::default(),
                examinations: RefCell::default(),
                operations: RefCell::default(),
                activities: RefCell::default(),
                deadlines: RefCell::default(),
                notifications: RefCell::default(),
                listeners: RefCell::default(),
                rpc_table: RefCell::default(),
                subscriptions: RefCell::default(),
                hotplug: RefCell::default(),
                saved: RefCell::default(),
                stage: RefCell::new(Stage::Running),
                refusal: RefCell::default(),
                later: RefCell::default(),
                is_later_armed: Cell::new(false),
                next_id: Cell::new(0),
                is_shutdown_check_queued: Cell::new(false),
                shared: shared.clone(),
                options,
            }),
        };
        core.install(&shared);
        core.listen_to_modules();
        core.listen_to_memory();
        core
    }

    /// The core of the control reactor the caller runs on.
    pub fn current() -> Option<Core> {
        if !tenon_reactor::try_current()?.is_control() {
            return None;
        }
        CORE.try_with(|core| core.borrow().clone()).ok().flatten()
    }

    /// The modules: what is loaded, the catalog, log levels.
    pub fn modules(&self) -> &Modules {
        &self.inner.modules
    }

    /// The modules' tables of the configuration; a module gets its own when it is loaded.
    pub fn set_module_config(&self, name: &str, config: &serde_json::Value) {
        self.inner.module_configs.borrow_mut().insert(name.to_owned(), config.to_string());
    }

    pub(crate) fn keep_module_config(&self, name: &str, config: &str) {
        self.inner.module_configs.borrow_mut().insert(name.to_owned(), config.to_owned());
    }

    /// A method of `module` may have changed its options: those in force are kept, if it tells them.
    pub(crate) fn keep_options_in_force(&self, module: Option<ModuleRef>) {
        let Some(module) = module else { return };
        let Some(text) = module.config() else { return };
        match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text) {
            Ok(_) => self.keep_module_config(module.name(), &text),
            Err(error) => log::warn!("options are no JSON object module={} error=\"{error}\"", module.name()),
        }
    }

    /// The options of modules that have any, by name.
    pub fn module_configs(&self) -> Vec<(String, serde_json::Map<String, serde_json::Value>)> {
        let configs = self.inner.module_configs.borrow();
        let table = |text: &String| serde_json::from_str::<serde_json::Map<_, _>>(text).ok();
        let filled = configs.iter().filter_map(|(name, text)| Some((name.clone(), table(text)?)));
        let mut configs: Vec<_> = filled.filter(|(_, table)| !table.is_empty()).collect();
        configs.sort_by(|(one, _), (other, _)| one.cmp(other));
        configs
    }

    pub(crate) fn module_config(&self, name: &str) -> String {
        self.inner.module_configs.borrow().get(name).cloned().unwrap_or_else(|| "{}".to_owned())
    }

    /// The host refuses what a module asks for; the module gets the code alone.
    pub(crate) fn refused(&self, error: OpError) -> i32 {
        let code = error.code;
        *self.inner.refusal.borrow_mut() = Some(error);
        // What the module reports later is about something else.
        self.later(|core| _ = core.inner.refusal.take());
        code
    }

    /// A module's report, with the host's own reason where it has only the system's word for the code.
    pub(crate) fn explained(&self, mut error: OpError) -> OpError {
        let is_it = |refusal: &OpError| (refusal.code, &refusal.object) == (error.code, &error.object);
        if !error.cause.is_empty()
            && let Some(refusal) = self.inner.refusal.take().filter(is_it)
        {
            error.cause = if refusal.cause.is_empty() { refusal.reason } else { refusal.cause };
        }
        error
    }

    /// Runs `task` on the control reactor, after what was asked for before, never from inside this call.
    pub(crate) fn later(&self, task: impl FnOnce(&Core) + 'static) {
        self.inner.later.borrow_mut().push_back(Box::new(task));
        self.arm_later();
    }

    fn arm_later(&self) {
        if self.inner.is_later_armed.replace(true) {
            return;
        }
        let core = self.downgrade();
        let run = move || {
            if let Some(core) = core.upgrade() {
                core.run_later();
            }
        };
        // A descriptor may be dropped outside of a turn, when the reactor is not to be had.
        let is_deferred = tenon_reactor::try_current().is_some_and(|local| local.defer(run).is_ok());
        if is_deferred {
            return;
        }
        let sent = self.inner.shared.directory().control().send(|| {
            if let Some(core) = Core::current() {
                core.run_later();
            }
        });
        if let Err(error) = sent {
            // The next task tries again.
            log::error!("control reactor takes no more work error={error}");
            self.inner.is_later_armed.set(false);
        }
    }

    fn run_later(&self) {
        self.inner.is_later_armed.set(false);
        for _ in 0..TASKS_PER_TURN {
            let task = self.inner.later.borrow_mut().pop_front();
            let Some(task) = task else { return };
            task(self);
        }
        if !self.inner.later.borrow().is_empty() {
            self.arm_later();
        }
    }

    /// Number of tasks that wait; bounded by the objects they are about.
    pub(crate) fn tasks_waiting(&self) -> usize {
        self.inner.later.borrow().len()
    }

    /// A number never given before.
    pub(crate) fn next_id(&self) -> u64 {
        let id = self.inner.next_id.get() + 1;
        self.inner.next_id.set(id);
        id
    }

    pub(crate) fn downgrade(&self) -> WeakCore {
        WeakCore(Rc::downgrade(&self.inner))
    }

    fn install(&self, shared: &Arc<Shared>) {
        shared.clone().install();
        let replaced = CORE.with(|core| core.borrow_mut().replace(self.clone()));
        drop(replaced);
        for reactor in shared.directory().data() {
            let shared = shared.clone();
            let limit = self.inner.options.buffer_pool_bytes;
            let sent = reactor.send(move || {
                crate::buffers::set_limit(limit);
                shared.install();
            });
            if let Err(error) = sent {
                log::error!("reactor does not know the core reactor={} error={error}", reactor.name());
            }
        }
        crate::buffers::set_limit(self.inner.options.buffer_pool_bytes);
    }

    /// Undoes [`Core::start`]; the last clone frees the records.
    pub(crate) fn uninstall(&self) {
        self.disarm_timer();
        crate::memory::forget_listener(self.inner.shared.base());
        self.inner.shared.withdraw();
        for reactor in self.inner.shared.directory().data() {
            let shared = self.inner.shared.clone();
            // A reactor that has stopped has nothing to forget.
            let _ = reactor.send(move || {
                crate::buffers::release_idle();
                shared.uninstall();
            });
        }
        crate::buffers::release_idle();
        self.inner.shared.uninstall();
        let own = CORE.with(|core| {
            let mut core = core.borrow_mut();
            let is_own = core.as_ref().is_some_and(|core| Rc::ptr_eq(&core.inner, &self.inner));
            if is_own { core.take() } else { None }
        });
        drop(own);
    }
}

impl WeakCore {
    pub(crate) fn upgrade(&self) -> Option<Core> {
        self.0.upgrade().map(|inner| Core { inner })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.withdraw();
        crate::memory::forget_listener(self.shared.base());
    }
}

/// Tasks run before the reactor looks at other work.
const TASKS_PER_TURN: usize = 128;
