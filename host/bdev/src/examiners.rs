//! Modules that find their devices by what other devices carry are loaded when the
//! first device is there, so that an array comes back although no file names it. A
//! device is first examined when that is over, so that it does not depend on who is
//! faster whether an array or somebody else gets it.

use std::collections::HashSet;

use crate::core::Core;

/// Examiners that were asked for, and what waits for them.
#[derive(Default)]
pub(crate) struct Examiners {
    /// Each is loaded by itself once: an operator may unload it.
    asked: HashSet<String>,
    loading: usize,
    /// At most one per device.
    waiting: Vec<Then>,
}

type Then = Box<dyn FnOnce(&Core)>;

impl Core {
    /// Runs `then` when every module that provides `examine` has been loaded, or could not be.
    pub(crate) fn with_examiners(&self, then: impl FnOnce(&Core) + 'static) {
        let due: Vec<String> = {
            let mut examiners = self.inner.examiners.borrow_mut();
            let catalog = self.inner.modules.catalog();
            let provides = |what: &String| what == EXAMINE;
            let names = catalog.plugins().iter().filter(|plugin| plugin.provides.iter().any(provides));
            let due: Vec<String> = names
                .map(|plugin| plugin.name.clone())
                .filter(|name| examiners.asked.insert(name.clone()))
                .collect();
            examiners.loading += due.len();
            due
        };
        for name in due {
            let weak = self.downgrade();
            self.module_load(&name.clone(), None, move |result| {
                if let Err(error) = result {
                    log::error!("what devices carry is not looked at module={name} error=\"{error}\"");
                }
                if let Some(core) = weak.upgrade() {
                    core.examiner_is_loaded();
                }
            });
        }
        let mut examiners = self.inner.examiners.borrow_mut();
        if examiners.loading > 0 {
            examiners.waiting.push(Box::new(then));
            return;
        }
        drop(examiners);
        then(self);
    }

    fn examiner_is_loaded(&self) {
        let waiting = {
            let mut examiners = self.inner.examiners.borrow_mut();
            examiners.loading -= 1;
            if examiners.loading > 0 { Vec::new() } else { std::mem::take(&mut examiners.waiting) }
        };
        for then in waiting {
            self.later(then);
        }
    }
}

/// What a plugin says that it provides.
const EXAMINE: &str = "examine";
