//! Hotplug: what appears, vanishes or changes outside, told to every module.
//!
//! Modules and the host publish; every module hears of everything, later. The
//! host itself watches files for modules that ask for it (`file_watch`). Events
//! name objects by text and carry a generation; a duplicate does no harm.

use std::collections::HashMap;

use serde_json::Value;
use tenon_abi::{HotplugEvent, HotplugKind, Str, errno};
use tenon_modules::ModuleRef;

use crate::core::Core;
use crate::file_watch::FileWatch;

/// What is watched, and for whom.
#[derive(Default)]
pub(crate) struct Hotplug {
    /// How often each module asked for each file.
    watches: HashMap<(u32, String), u32>,
    pub files: Option<FileWatch>,
    /// Events published by the host, per subsystem and object.
    generations: HashMap<(String, String), u64>,
}

/// An event on its way to the modules.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub kind: HotplugKind,
    pub subsystem: String,
    pub id: String,
    pub generation: u64,
    pub attributes: String,
}

impl Hotplug {
    pub(crate) fn len(&self) -> usize {
        self.watches.len()
    }
}

impl Core {
    /// Tells all modules that something appeared, vanished or changed.
    pub fn publish_hotplug(&self, kind: HotplugKind, subsystem: &str, id: &str, attributes: &Value) {
        let generation = {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let key = (subsystem.to_owned(), id.to_owned());
            if hotplug.generations.len() >= MAX_OBJECTS && !hotplug.generations.contains_key(&key) {
                log::warn!("too many hotplug objects, event is not published subsystem={subsystem} id={id}");
                return;
            }
            let generation = hotplug.generations.entry(key).or_default();
            *generation += 1;
            *generation
        };
        let attributes = if attributes.is_null() { String::new() } else { attributes.to_string() };
        self.tell_hotplug(Published {
            kind,
            subsystem: subsystem.to_owned(),
            id: id.to_owned(),
            generation,
            attributes,
        });
    }

    /// Passes an event on, one module after the other.
    pub(crate) fn tell_hotplug(&self, event: Published) {
        log::debug!("hotplug kind={} subsystem={} id={}", event.kind.0, event.subsystem, event.id);
        for module in self.inner.modules.in_service() {
            let event = event.clone();
            self.later(move |_| {
                let raw = HotplugEvent {
                    size: size_of::<HotplugEvent>() as u32,
                    kind: event.kind,
                    subsystem: Str::new(&event.subsystem),
                    id: Str::new(&event.id),
                    generation: event.generation,
                    attributes_json: Str::new(&event.attributes),
                };
                // A module without the callback does not care; one that has left does not either.
                let _ = module.hotplug(&raw);
            });
        }
    }

    /// A module asks for events of an object.
    pub(crate) fn hotplug_watch(&self, module: ModuleRef, subsystem: &str, id: &str) -> i32 {
        if subsystem != "file" {
            return errno::ENOTSUP;
        }
        if !id.starts_with('/') || id.len() > MAX_PATH || id.contains('\0') {
            return errno::EINVAL;
        }
        let key = (module.id(), id.to_owned());
        {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            if let Some(count) = hotplug.watches.get_mut(&key) {
                *count = count.saturating_add(1);
                return 0;
            }
            if hotplug.watches.len() >= MAX_WATCHES {
                return errno::ENOSPC;
            }
        }
        if let Err(error) = self.file_watch_add(id) {
            log::error!("file cannot be watched path={id} error={error}");
            return error.raw_os_error().map_or(errno::EIO, |code| -code);
        }
        self.inner.hotplug.borrow_mut().watches.insert(key, 1);
        0
    }

    /// Undoes one [`Core::hotplug_watch`].
    pub(crate) fn hotplug_unwatch(&self, module: ModuleRef, subsystem: &str, id: &str) -> i32 {
        if subsystem != "file" {
            return errno::ENOTSUP;
        }
        let key = (module.id(), id.to_owned());
        {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let Some(count) = hotplug.watches.get_mut(&key) else { return errno::ENOENT };
            *count -= 1;
            if *count > 0 {
                return 0;
            }
            hotplug.watches.remove(&key);
        }
        self.file_watch_remove(id);
        0
    }

    pub(crate) fn hotplug_forget_module(&self, module: u32) {
        let forgotten: Vec<String> = {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let of_module: Vec<(u32, String)> =
                hotplug.watches.keys().filter(|(id, _)| *id == module).cloned().collect();
            for key in &of_module {
                hotplug.watches.remove(key);
            }
            of_module.into_iter().map(|(_, path)| path).collect()
        };
        for path in forgotten {
            self.file_watch_remove(&path);
        }
    }
}

/// Most objects with a generation of the host's.
const MAX_OBJECTS: usize = 65_536;
/// Most objects watched for all modules.
const MAX_WATCHES: usize = 65_536;
/// Longest path.
const MAX_PATH: usize = 4096;
