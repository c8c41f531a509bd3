//! What the coming and going of modules means for devices.
//!
//! A module that comes into service is offered all devices. One that leaves
//! loses its RPC methods at once, then its devices, and only then is finished;
//! what it forgot to give back is taken from it and reported. Loading, states and
//! deadlines of the module itself are in `tenon-modules`.
// UNSAFETY: passes the descriptor of a linked module on.

use std::path::Path;
use std::rc::{Rc, Weak};

use serde_json::{Map, Value, json};
use tenon_abi::{HotplugKind, OpToken, PluginDescV1, Reason, errno};
use tenon_modules::{
    CatalogChange, DrainCause, Existing, Listener, ModuleError, ModuleRef, ModuleState, PluginError,
};

use crate::activity::Origin;
use crate::core::{Core, WeakCore};
use crate::deadline::Due;
use crate::error::OpError;
use crate::op_state::OpState;
use crate::owed::Owed;
use crate::request::load_error;

/// Hears of modules.
pub(crate) struct ModuleEvents {
    core: WeakCore,
}

impl Core {
    pub(crate) fn listen_to_modules(&self) {
        let events = Rc::new(ModuleEvents { core: self.downgrade() });
        let weak: Weak<ModuleEvents> = Rc::downgrade(&events);
        self.inner.modules.set_listener(weak);
        *self.inner.module_events.borrow_mut() = Some(events);
    }

    /// Loads a module of the catalog, or finds it loaded. `config` are its options from now on if it comes into
    /// service; without, it gets those it was given before. A load with other options that is in flight is
    /// waited for: if it fails, these have their turn.
    ///
    /// # Errors
    /// To `done`: `EEXIST` if it runs with other options than `config`.
    pub fn module_load(
        &self,
        name: &str,
        config: Option<&Map<String, Value>>,
        done: impl FnOnce(Result<ModuleRef, OpError>) + 'static,
    ) {
        let (given, before) = (config.map(|config| json!(config).to_string()), self.module_config(name));
        if self.inner.modules.current(name).is_some() && given.as_ref().is_some_and(|given| *given != before)
        {
            let reason = "module runs with other options; module_configure may change them";
            let error = OpError::new(errno::EEXIST, name, reason);
            return self.later(move |_| done(Err(error)));
        }
        let other = self.inner.modules.loading_with(name);
        if given.is_some() && other.is_some() && given != other {
            let (core, name, config) = (self.downgrade(), name.to_owned(), config.cloned());
            let done: Box<dyn FnOnce(Result<ModuleRef, OpError>)> = Box::new(done);
            return self.inner.modules.ensure(&name.clone(), "", move |_| {
                if let Some(core) = core.upgrade() {
                    core.module_load(&name, config.as_ref(), done);
                }
            });
        }
        let config = given.clone().unwrap_or(before);
        let done = self.load_activity(name.to_owned(), given, done);
        self.inner.modules.ensure(name, &config, done);
    }

    /// Loads a module from its file; `config` as for [`module_load`](Self::module_load).
    pub fn module_load_file(
        &self,
        path: &Path,
        existing: Existing,
        config: Option<&Map<String, Value>>,
        done: impl FnOnce(Result<ModuleRef, OpError>) + 'static,
    ) {
        let before = || {
            let plugin = tenon_modules::inspect(path, self.inner.options.modules.trust);
            plugin.map_or_else(|_| "{}".to_owned(), |plugin| self.module_config(&plugin.name))
        };
        let given = config.map(|config| json!(config).to_string());
        let config = given.clone().unwrap_or_else(before);
        let done = self.load_activity(path.display().to_string(), given, done);
        self.inner.modules.load_file(path, &config, existing, done);
    }

    /// Loads a module that is linked into the process.
    ///
    /// # Safety
    /// As [`tenon_modules::Modules::load_static`].
    pub unsafe fn module_load_static(
        &self,
        descriptor: *const PluginDescV1,
        config: &serde_json::Value,
        existing: Existing,
        done: impl FnOnce(Result<ModuleRef, OpError>) + 'static,
    ) {
        let config = config.to_string();
        let done = self.load_activity("static".to_owned(), Some(config.clone()), done);
        // SAFETY: as the caller promises.
        unsafe { self.inner.modules.load_static(descriptor, &config, existing, done) };
    }

    /// Makes a load an activity that others can wait for. Options that were given with it are kept if the module
    /// takes them.
    fn load_activity(
        &self,
        object: String,
        given: Option<String>,
        done: impl FnOnce(Result<ModuleRef, OpError>) + 'static,
    ) -> impl FnOnce(Result<ModuleRef, PluginError>) + 'static {
        let activity = self.activity_begin(Origin::Requested);
        let core = self.downgrade();
        move |result| {
            if let Some(core) = core.upgrade() {
                if let (Ok(module), Some(given)) = (&result, &given) {
                    core.keep_module_config(module.name(), given);
                }
                core.later(move |core| core.activity_end(activity));
            }
            done(result.map_err(|error| load_error(&object, &error)));
        }
    }

    /// Takes a module out of service: its devices are removed, then it is finished. Its code stays mapped.
    pub fn module_unregister(&self, name: &str, done: impl FnOnce(Result<(), OpError>) + 'static) {
        let Some(module) = self.inner.modules.current(name) else {
            let error = OpError::new(errno::ENOENT, name, "no such module is running");
            return self.later(move |_| done(Err(error)));
        };
        let activity = self.activity_begin(Origin::Requested);
        let core = self.downgrade();
        self.inner.modules.unregister(module, move |result| {
            if let Some(core) = core.upgrade() {
                core.later(move |core| core.activity_end(activity));
            }
            done(result.map_err(|error| {
                OpError::new(errno::EIO, module.name(), "module could not be unregistered").with_cause(error)
            }));
        });
    }

    fn module_draining(&self, module: ModuleRef, cause: DrainCause) {
        if cause == DrainCause::Unregister {
            self.rpc_forget_module(module);
            for bdev in self.bdevs_of_module(module) {
                self.remove_bdev(bdev, Reason::MODULE_UNREGISTERED);
            }
            let patience = self.inner.options.remove_deadline + self.inner.options.drain_deadline;
            self.set_deadline_in(patience, Due::ModuleDrain(module.id()));
        }
        self.module_drain_check(module);
    }

    /// A draining module may be finished when it has no device and owes no operation.
    pub(crate) fn module_drain_check(&self, module: ModuleRef) {
        if module.state() != ModuleState::Draining {
            return;
        }
        let has_bdevs = self.inner.registry.borrow().has_of_module(module.id());
        let is_busy = {
            let operations = self.inner.operations.borrow();
            operations.iter().any(|(_, operation)| {
                // What a module has not answered in time does not keep it in service.
                operation.module.is_some_and(|m| m.id() == module.id()) && operation.state != OpState::Overdue
            })
        };
        if !has_bdevs && !is_busy {
            self.inner.modules.drained(module);
        }
    }

    pub(crate) fn modules_drain_check(&self) {
        for module in self.inner.modules.all() {
            self.module_drain_check(module);
        }
    }

    pub(crate) fn module_drain_overdue(&self, module: u32) {
        let found = self.inner.modules.all().into_iter().find(|other| other.id() == module);
        let Some(module) = found.filter(|module| module.state() == ModuleState::Draining) else { return };
        for bdev in self.bdevs_of_module(module) {
            let waits_for = self.removal_waits_for(bdev).unwrap_or_default();
            let name = self.name_of(bdev).unwrap_or_default();
            log::warn!(
                "module cannot be finished, its bdev is held module={} bdev={name} waits_for={waits_for}",
                module.name()
            );
        }
    }

    fn bdevs_of_module(&self, module: ModuleRef) -> Vec<tenon_abi::BdevHandle> {
        let registry = self.inner.registry.borrow();
        // The newest first: a device is removed before what it was built on.
        let of_module = registry.iter().rev().filter(|record| record.module.id() == module.id());
        of_module.map(|record| record.handle).collect()
    }

    /// Takes back what a module did not give back, after its last call.
    fn module_gone(&self, module: ModuleRef) {
        self.rpc_forget_module(module);
        self.operations_forget_module(module);
        self.examine_forget_module(module.id());
        self.memory_forget_module(module.id());
        self.hotplug_forget_module(module.id());
        self.saved_forget_module(module);
        if module.state() == ModuleState::Retired {
            for (desc, bdev) in self.descriptors_of_module(module.id()) {
                log::warn!("retired module left a descriptor open module={} bdev={bdev}", module.name());
                self.close_descriptor(desc);
            }
        }
        self.notify("module_unregister", module.name());
        self.shutdown_progress();
    }
}

impl ModuleEvents {
    fn later(&self, task: impl FnOnce(&Core) + 'static) {
        if let Some(core) = self.core.upgrade() {
            core.later(task);
        }
    }
}

impl Listener for ModuleEvents {
    fn running(&self, module: ModuleRef) {
        self.later(move |core| {
            core.notify("module_register", module.name());
            core.examine_all_for(module);
        });
    }

    fn draining(&self, module: ModuleRef, cause: DrainCause) {
        self.later(move |core| core.module_draining(module, cause));
    }

    fn fini_token(&self, module: ModuleRef) -> OpToken {
        self.core.upgrade().map_or(OpToken(0), |core| core.owe(Owed::Fini(module)))
    }

    fn retired(&self, module: ModuleRef) {
        self.later(move |core| core.module_gone(module));
    }

    fn failed(&self, module: ModuleRef, why: &ModuleError) {
        match why {
            // Whoever asked for the module is told, and tells.
            ModuleError::Init(error) => {
                log::debug!("module not started module={} error={error}", module.name())
            }
            ModuleError::InvalidState { .. }
            | ModuleError::FiniTimedOut { .. }
            | ModuleError::FiniFailed { .. }
            | ModuleError::Faulted { .. } => {
                log::error!("module failed module={} error={why}", module.name());
            }
        }
        self.later(move |core| core.module_gone(module));
    }

    fn catalog_changed(&self, changes: &[CatalogChange]) {
        for change in changes {
            let (kind, path) = match change {
                CatalogChange::Added(plugin) => (HotplugKind::ADD, plugin.path.clone()),
                CatalogChange::Changed { new, .. } => (HotplugKind::CHANGE, new.path.clone()),
                CatalogChange::Removed(plugin) => (HotplugKind::REMOVE, plugin.path.clone()),
                // The watch that found it has told so.
                CatalogChange::Rejected(_) => continue,
            };
            self.later(move |core| {
                core.publish_hotplug(kind, "plugin", &path.to_string_lossy(), &serde_json::Value::Null);
            });
        }
    }
}
