//! The modules of a host: what is loaded, in which order, and who is told.
//!
//! Lives on the control reactor. Loading is in `load`, leaving in `retire`,
//! following the plugin directories in `watch`. Knows nothing of devices: the
//! layer above listens, removes devices when a module drains, and says when the
//! last one is gone.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use log::LevelFilter;
use tenon_abi::{HostApiV1, OpToken};
use tenon_reactor::{Local, current};

use crate::apart::InitOn;
use crate::catalog::{Catalog, CatalogChange};
use crate::error::ModuleError;
use crate::image::LayoutCheck;
use crate::load::Load;
use crate::log_bridge::level_number;
use crate::module::{ModuleInfo, ModuleRef};
use crate::retire::{DrainCause, Exit};
use crate::state::ModuleState;
use crate::trust::Trust;
use crate::watch::Watching;

/// Default time for opening a plugin, and again for its `init`.
pub const DEFAULT_INIT_DEADLINE: Duration = Duration::from_secs(5);
/// Default time for `fini`.
pub const DEFAULT_FINI_DEADLINE: Duration = Duration::from_secs(5);

/// How modules are loaded.
#[derive(Clone, Debug)]
pub struct ModulesOptions {
    /// What modules get as the host.
    pub host: &'static HostApiV1,
    /// What to do about layout certificates.
    pub layout_check: LayoutCheck,
    /// Time for opening a plugin, and again for its `init`.
    pub init_deadline: Duration,
    /// Time for `fini`.
    pub fini_deadline: Duration,
    /// Directory for the copies that are mapped, under `plugins/`. `None`: a plugin is mapped from its own file
    /// the first time and from a memory file after that.
    pub state_dir: Option<PathBuf>,
    /// Who may own a plugin.
    pub trust: Trust,
    /// Where opening and `init` run.
    pub init_on: InitOn,
}

impl ModulesOptions {
    /// The defaults.
    #[must_use]
    pub fn new(host: &'static HostApiV1) -> Self {
        ModulesOptions {
            host,
            layout_check: LayoutCheck::default(),
            init_deadline: DEFAULT_INIT_DEADLINE,
            fini_deadline: DEFAULT_FINI_DEADLINE,
            state_dir: None,
            trust: Trust::default(),
            init_on: InitOn::default(),
        }
    }
}

/// The layer above. Everything is called on the control reactor, with nothing borrowed: it may call back.
pub trait Listener {
    /// The module is part of the host: offer it every device, give it its configuration.
    fn running(&self, module: ModuleRef) {
        let _ = module;
    }

    /// The module takes no new devices. [`DrainCause::Unregister`]: remove its devices. Either way call
    /// [`Modules::drained`] when the last one is gone. May come a second time with `Unregister`.
    fn draining(&self, module: ModuleRef, cause: DrainCause);

    /// A token for `fini`; when the module answers it, call [`Modules::fini_done`].
    fn fini_token(&self, module: ModuleRef) -> OpToken;

    /// `fini` was answered; nothing of the module is called any more.
    fn retired(&self, module: ModuleRef) {
        let _ = module;
    }

    /// A step failed; nothing of the module is called any more.
    fn failed(&self, module: ModuleRef, why: &ModuleError) {
        let _ = (module, why);
    }

    /// The plugin directories changed.
    fn catalog_changed(&self, changes: &[CatalogChange]) {
        let _ = changes;
    }
}

/// The modules of a host. A clone is the same set.
#[derive(Clone)]
pub struct Modules {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) options: ModulesOptions,
    pub(crate) local: Local,
    pub(crate) catalog: RefCell<Rc<Catalog>>,
    pub(crate) modules: RefCell<Vec<ModuleRef>>,
    /// Loads in flight.
    pub(crate) loads: RefCell<Vec<Load>>,
    pub(crate) next_ticket: Cell<u64>,
    /// Files whose opening passed its deadline and has not returned since, by ticket.
    pub(crate) blocked_opens: RefCell<Vec<(u64, PathBuf)>>,
    /// Modules that are leaving.
    pub(crate) exits: RefCell<Vec<Exit>>,
    pub(crate) watching: Watching,
    listener: RefCell<Option<Weak<dyn Listener>>>,
    log_level: Cell<LevelFilter>,
}

impl Modules {
    /// An empty set. To be called on the control reactor.
    #[must_use]
    pub fn new(options: ModulesOptions, catalog: Catalog) -> Modules {
        Modules {
            inner: Rc::new(Inner {
                options,
                local: current(),
                catalog: RefCell::new(Rc::new(catalog)),
                modules: RefCell::default(),
                loads: RefCell::default(),
                next_ticket: Cell::new(1),
                blocked_opens: RefCell::default(),
                exits: RefCell::default(),
                watching: Watching::default(),
                listener: RefCell::new(None),
                log_level: Cell::new(log::max_level()),
            }),
        }
    }

    /// Sets who is told.
    pub fn set_listener(&self, listener: Weak<dyn Listener>) {
        *self.inner.listener.borrow_mut() = Some(listener);
    }

    /// The module that new devices of this name go to: the newest running one.
    #[must_use]
    pub fn current(&self, name: &str) -> Option<ModuleRef> {
        let modules = self.inner.modules.borrow();
        modules
            .iter()
            .rev()
            .copied()
            .find(|module| module.name() == name && module.state() == ModuleState::Running)
    }

    /// Running modules, in order of loading.
    #[must_use]
    pub fn running(&self) -> Vec<ModuleRef> {
        self.filtered(|state| state == ModuleState::Running)
    }

    /// Modules whose callbacks may run, in order of loading.
    #[must_use]
    pub fn in_service(&self) -> Vec<ModuleRef> {
        self.filtered(ModuleState::is_in_service)
    }

    /// Every module there was, in order of loading.
    #[must_use]
    pub fn all(&self) -> Vec<ModuleRef> {
        self.filtered(|_| true)
    }

    /// Every module as shown to an operator.
    #[must_use]
    pub fn info(&self) -> Vec<ModuleInfo> {
        self.inner.modules.borrow().iter().map(|module| module.info()).collect()
    }

    /// True while a plugin is being opened or initialised.
    #[must_use]
    pub fn loading(&self) -> bool {
        !self.inner.loads.borrow().is_empty()
    }

    /// A file whose opening never returned. It may hold the dynamic linker's lock: then nothing can be opened any
    /// more, and the process can only leave by `_exit`, because `exit` wants that lock.
    #[must_use]
    pub fn blocked_open(&self) -> Option<PathBuf> {
        self.inner.blocked_opens.borrow().first().map(|(_, file)| file.clone())
    }

    /// Tells every module the level, and each new one from now on.
    pub fn set_log_level(&self, level: LevelFilter) {
        self.inner.log_level.set(level);
        for module in self.in_service() {
            let _ = module.set_log_level(level_number(level));
        }
    }

    /// The installed plugins as of the last scan.
    #[must_use]
    pub fn catalog(&self) -> Rc<Catalog> {
        Rc::clone(&self.inner.catalog.borrow())
    }

    fn filtered(&self, wanted: impl Fn(ModuleState) -> bool) -> Vec<ModuleRef> {
        self.inner.modules.borrow().iter().copied().filter(|module| wanted(module.state())).collect()
    }
}

impl Inner {
    pub(crate) fn listener(&self) -> Option<Rc<dyn Listener>> {
        self.listener.borrow().as_ref().and_then(Weak::upgrade)
    }

    pub(crate) fn give_log_level(&self, module: ModuleRef) {
        let _ = module.set_log_level(level_number(self.log_level.get()));
    }

    pub(crate) fn take_ticket(&self) -> u64 {
        self.next_ticket.replace(self.next_ticket.get() + 1)
    }

    /// Runs `f` later in this turn or the next: an answer is never given inside the call that asked.
    pub(crate) fn later(&self, f: impl FnOnce() + 'static) {
        let slot = Rc::new(Cell::new(Some(f)));
        let deferred = Rc::clone(&slot);
        let run = move || {
            if let Some(f) = deferred.take() {
                f();
            }
        };
        if self.local.defer(run).is_err()
            && let Some(f) = slot.take()
        {
            // The reactor's list is full: an early answer is better than none.
            f();
        }
    }
}
