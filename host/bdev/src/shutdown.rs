//! The end: devices go from the top of each stack to the bottom, then modules
//! are finished in the reverse order of loading.
//!
//! Every step has a deadline. What does not go by then is left, named in the
//! report; the process may end all the same.

use std::collections::VecDeque;

use tenon_abi::{BdevHandle, Reason};
use tenon_modules::ModuleRef;

use crate::census::ObjectCounts;
use crate::claim::Owner;
use crate::core::Core;
use crate::deadline::{Due, Key};

/// Called at the end, with what is left.
type Done = Box<dyn FnOnce(ShutdownReport)>;

/// How a shutdown ended.
#[derive(Clone, Debug, Default)]
pub struct ShutdownReport {
    /// Objects that are left.
    pub counts: ObjectCounts,
    /// What did not go in time, and why.
    pub left: Vec<String>,
}

/// Whether the core is in service, and how far it is on its way out.
pub(crate) enum Stage {
    Running,
    /// Devices that nobody stands on are removed; then, when that is not enough, all.
    RemovingBdevs {
        end: End,
        deadline: Key,
        is_forced: bool,
    },
    /// Modules are finished one after the other.
    FinishingModules {
        end: End,
        deadline: Key,
        waiting: VecDeque<ModuleRef>,
        current: Option<ModuleRef>,
    },
    Stopped,
}

/// What is reported to whom.
pub(crate) struct End {
    done: Vec<Done>,
    left: Vec<String>,
}

impl ShutdownReport {
    /// Everything went.
    pub fn is_clean(&self) -> bool {
        self.left.is_empty()
    }
}

impl Core {
    /// Removes all devices and finishes all modules; then the core is no longer installed, and `done`
    /// runs.
    pub fn shutdown(&self, done: impl FnOnce(ShutdownReport) + 'static) {
        let done: Done = Box::new(done);
        let mut stage = self.inner.stage.borrow_mut();
        match &mut *stage {
            Stage::RemovingBdevs { end, .. } | Stage::FinishingModules { end, .. } => end.done.push(done),
            Stage::Stopped => {
                drop(stage);
                done(ShutdownReport { counts: self.object_counts(), left: Vec::new() });
            }
            Stage::Running => {
                drop(stage);
                log::info!("shutdown begins bdevs={}", self.bdev_count());
                let deadline = self.set_deadline_in(self.inner.options.shutdown_deadline, Due::Shutdown);
                let end = End { done: vec![done], left: Vec::new() };
                *self.inner.stage.borrow_mut() = Stage::RemovingBdevs { end, deadline, is_forced: false };
                self.shutdown_progress();
            }
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        !matches!(*self.inner.stage.borrow(), Stage::Running)
    }

    /// Something went: the next thing may go. Thousands of devices that go lead to one look.
    pub(crate) fn shutdown_progress(&self) {
        let is_removing = matches!(*self.inner.stage.borrow(), Stage::RemovingBdevs { .. });
        if is_removing && !self.inner.is_shutdown_check_queued.replace(true) {
            self.later(|core| {
                core.inner.is_shutdown_check_queued.set(false);
                core.shutdown_check();
            });
        }
    }

    fn shutdown_check(&self) {
        let is_removing = matches!(*self.inner.stage.borrow(), Stage::RemovingBdevs { .. });
        if !is_removing {
            return;
        }
        let is_busy = self.inner.operations.borrow().len() > 0;
        if self.bdev_count() == 0 && !is_busy {
            return self.shutdown_modules(Vec::new());
        }
        let (next, is_going) = self.shutdown_candidates();
        let next = if next.is_empty() && !is_going { self.not_yet_going() } else { next };
        for bdev in next {
            self.remove_bdev(bdev, Reason::SHUTDOWN);
        }
    }

    /// Devices no module stands on, the newest first; and whether some are on their way already.
    fn shutdown_candidates(&self) -> (Vec<BdevHandle>, bool) {
        let registry = self.inner.registry.borrow();
        let is_top = |record: &&crate::registry::Bdev| {
            record.removal.is_none()
                && !record.descriptors.iter().any(|holding| matches!(holding.owner, Owner::Module(_)))
        };
        let candidates = registry.iter().rev().filter(is_top).map(|record| record.handle).collect();
        (candidates, registry.iter().any(|record| record.removal.is_some()))
    }

    fn not_yet_going(&self) -> Vec<BdevHandle> {
        let registry = self.inner.registry.borrow();
        registry.iter().rev().filter(|record| record.removal.is_none()).map(|record| record.handle).collect()
    }

    pub(crate) fn shutdown_overdue(&self) {
        enum Next {
            Force,
            GiveUpBdevs,
            GiveUpModule,
            Nothing,
        }
        let next = match &mut *self.inner.stage.borrow_mut() {
            Stage::RemovingBdevs { is_forced, .. } if !*is_forced => {
                *is_forced = true;
                Next::Force
            }
            Stage::RemovingBdevs { .. } => Next::GiveUpBdevs,
            Stage::FinishingModules { .. } => Next::GiveUpModule,
            Stage::Running | Stage::Stopped => Next::Nothing,
        };
        match next {
            Next::Force => {
                log::warn!("shutdown takes long, removing all bdevs at once");
                for bdev in self.not_yet_going() {
                    self.remove_bdev(bdev, Reason::SHUTDOWN);
                }
                let key = self.set_deadline_in(self.inner.options.shutdown_deadline, Due::Shutdown);
                if let Stage::RemovingBdevs { deadline, .. } = &mut *self.inner.stage.borrow_mut() {
                    *deadline = key;
                }
            }
            Next::GiveUpBdevs => self.shutdown_modules(self.bdevs_left()),
            Next::GiveUpModule => self.shutdown_next_module(None),
            Next::Nothing => {}
        }
    }

    fn bdevs_left(&self) -> Vec<String> {
        let bdevs: Vec<(BdevHandle, String)> = {
            let registry = self.inner.registry.borrow();
            registry.iter().map(|record| (record.handle, record.name.to_string())).collect()
        };
        let left = bdevs.into_iter().map(|(bdev, name)| {
            let waits_for = self.removal_waits_for(bdev).unwrap_or_default();
            format!("bdev {name} waits for {waits_for}")
        });
        left.collect()
    }

    fn shutdown_modules(&self, mut left: Vec<String>) {
        let key = self.set_deadline_in(self.inner.options.shutdown_deadline, Due::Shutdown);
        let waiting: VecDeque<ModuleRef> = self.inner.modules.in_service().into_iter().rev().collect();
        let old = {
            let mut stage = self.inner.stage.borrow_mut();
            match std::mem::replace(&mut *stage, Stage::Stopped) {
                Stage::RemovingBdevs { mut end, deadline, .. } => {
                    end.left.append(&mut left);
                    *stage = Stage::FinishingModules { end, deadline: key, waiting, current: None };
                    deadline
                }
                other => {
                    *stage = other;
                    key
                }
            }
        };
        self.cancel_deadline(Some(old));
        self.shutdown_next_module(None);
    }

    /// The module `finished` is done with, or the current one has had its time.
    fn shutdown_next_module(&self, finished: Option<ModuleRef>) {
        let key = self.set_deadline_in(self.inner.options.shutdown_deadline, Due::Shutdown);
        let (next, old) = {
            let mut stage = self.inner.stage.borrow_mut();
            let Stage::FinishingModules { end, deadline, waiting, current } = &mut *stage else {
                drop(stage);
                return self.cancel_deadline(Some(key));
            };
            match (finished, *current) {
                // An answer of one that was given up.
                (Some(finished), Some(current)) if finished.id() != current.id() => {
                    drop(stage);
                    return self.cancel_deadline(Some(key));
                }
                (None, Some(current)) => {
                    end.left.push(format!("module {} is {:?}", current.name(), current.state()));
                }
                (Some(_) | None, None) | (Some(_), Some(_)) => {}
            }
            *current = waiting.pop_front();
            (*current, std::mem::replace(deadline, key))
        };
        self.cancel_deadline(Some(old));
        let Some(module) = next else { return self.shutdown_end() };
        let core = self.downgrade();
        self.inner.modules.unregister(module, move |result| {
            if let Err(error) = result {
                log::warn!("module was not finished module={} error={error}", module.name());
            }
            if let Some(core) = core.upgrade() {
                core.later(move |core| core.shutdown_next_module(Some(module)));
            }
        });
    }

    fn shutdown_end(&self) {
        let stage = self.inner.stage.replace(Stage::Stopped);
        let Stage::FinishingModules { end, deadline, .. } = stage else { return };
        self.cancel_deadline(Some(deadline));
        let report = ShutdownReport { counts: self.object_counts(), left: end.left };
        log::info!("shutdown ends left={}", report.left.len());
        self.hotplug_stop();
        self.uninstall();
        for done in end.done {
            done(report.clone());
        }
    }
}
