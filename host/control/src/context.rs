//! What every method and the configuration engine share: the core, the
//! reactors, and the two things only the process itself can do (log settings
//! and stopping), given as traits by the daemon.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use log::LevelFilter;
use tenon_bdev::Core;
use tenon_nvmf_target::Target;
use tenon_reactor::Directory;

use crate::apply::Engine;
use crate::nvmf::Nvmf;

/// Log settings of the process.
pub trait LogControl {
    /// The level up to which lines are written.
    fn level(&self) -> LevelFilter;
    /// Sets it.
    fn set_level(&self, level: LevelFilter);
    /// Targets (module or crate names) that log at debug level whatever the level is, with all known targets.
    fn flags(&self) -> Vec<(String, bool)>;
    /// Sets or clears one; false if no such target is known.
    fn set_flag(&self, target: &str, on: bool) -> bool;
    /// Whether lines begin with the time.
    fn set_timestamps(&self, on: bool);
}

/// How the process is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Drain, then exit with code 0.
    Gracefully,
    /// Exit now.
    AtOnce,
}

/// What only the process can do to itself.
pub trait ProcessControl {
    /// Starts stopping; returns at once.
    fn stop(&self, how: Stop);
    /// Reads the configuration file again and applies the difference; `done` gets what failed.
    fn reload(&self, done: Box<dyn FnOnce(Result<(), Vec<String>>)>);
}

/// Shared state of the control plane. Control reactor only; cloning is cheap.
#[derive(Clone)]
pub struct Control(Rc<Inner>);

struct Inner {
    core: Core,
    directory: Directory,
    logs: Rc<dyn LogControl>,
    process: Rc<dyn ProcessControl>,
    nvmf: Nvmf,
    engine: Engine,
    is_ready: Cell<bool>,
    waiting_for_ready: RefCell<Vec<Box<dyn FnOnce()>>>,
}

impl Control {
    /// The control plane of `core` and `target`.
    #[must_use]
    pub fn new(
        core: Core,
        target: Target,
        directory: Directory,
        logs: Rc<dyn LogControl>,
        process: Rc<dyn ProcessControl>,
    ) -> Self {
        let nvmf = Nvmf::new(core.clone(), target);
        let engine = Engine::new(core.clone(), nvmf.clone());
        Control(Rc::new(Inner {
            core,
            directory,
            logs,
            process,
            nvmf,
            engine,
            is_ready: Cell::new(false),
            waiting_for_ready: RefCell::default(),
        }))
    }

    /// Devices and modules.
    #[must_use]
    pub fn core(&self) -> &Core {
        &self.0.core
    }

    /// The NVMe-oF target.
    #[must_use]
    pub fn target(&self) -> &Target {
        self.0.nvmf.target()
    }

    /// The target with what is configured of it.
    #[must_use]
    pub fn nvmf(&self) -> &Nvmf {
        &self.0.nvmf
    }

    /// All reactors.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.0.directory
    }

    /// Log settings.
    #[must_use]
    pub fn logs(&self) -> &dyn LogControl {
        &*self.0.logs
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &dyn ProcessControl {
        &*self.0.process
    }

    /// The configuration engine.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// True once the configuration given at start is applied.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.is_ready.get()
    }

    /// The start is over: answers everybody who waits for it.
    pub fn set_ready(&self) {
        self.0.is_ready.set(true);
        for waiter in self.0.waiting_for_ready.take() {
            waiter();
        }
    }

    /// Runs `then` once the host is ready, or now.
    pub fn when_ready(&self, then: impl FnOnce() + 'static) {
        if self.is_ready() {
            then();
        } else {
            self.0.waiting_for_ready.borrow_mut().push(Box::new(then));
        }
    }
}
