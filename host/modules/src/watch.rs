//! Following the plugin directories: inotify on the control reactor, and
//! rescans on a worker.
//!
//! An event only says "look again": what changed is found by comparing two
//! scans, so lost, doubled and merged events do no harm. A file counts as soon
//! as it is complete: closed after writing, renamed or linked into place. A
//! directory that did not exist when the watch began is seen at the next rescan.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{AtFlags, CWD, FileType, inotify, statat};
use rustix::io::Errno;
use tenon_reactor::{FdId, Interest};

use crate::catalog::{Catalog, CatalogChange};
use crate::set::{Inner, Modules};

/// Events of one installation are spread over this time: one rescan for all of them.
const SETTLE: Duration = Duration::from_millis(200);
/// Events read per wake-up of the reactor; the descriptor stays ready if there are more.
const EVENTS_PER_TURN: usize = 256;
/// Bytes of the buffer they are read into.
const BUFFER_BYTES: usize = 8192;

/// Why directories cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel refused.
    #[error("plugin directories cannot be watched: {0}")]
    Inotify(std::io::Error),
    /// The reactor refused.
    #[error("plugin directories cannot be watched: {0}")]
    Reactor(#[from] tenon_reactor::RegisterError),
}

/// Continuation of a rescan.
type Done = Box<dyn FnOnce(Vec<CatalogChange>)>;

/// The watch and the rescans of a set of modules.
#[derive(Default)]
pub(crate) struct Watching {
    watch: RefCell<Option<Watch>>,
    /// True while a timer for the next rescan runs.
    is_settling: Cell<bool>,
    is_scanning: Cell<bool>,
    /// Those who wait for the next rescan to begin.
    waiting: RefCell<Vec<Done>>,
}

struct Watch {
    inotify: OwnedFd,
    directories: HashMap<i32, PathBuf>,
    fd: FdId,
}

impl Modules {
    /// Starts to watch the catalog's directories; changes go to `Listener::catalog_changed`. A second call does
    /// nothing.
    pub fn watch(&self) -> Result<(), WatchError> {
        let inner = &self.inner;
        if inner.watching.watch.borrow().is_some() {
            return Ok(());
        }
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|errno| WatchError::Inotify(errno.into()))?;
        let weak = Rc::downgrade(inner);
        let fd = inner.local.register_fd(inotify.as_raw_fd(), Interest::READ, move |_| {
            if let Some(inner) = weak.upgrade() {
                inner.read_events();
            }
        })?;
        *inner.watching.watch.borrow_mut() = Some(Watch { inotify, directories: HashMap::new(), fd });
        inner.watch_directories();
        Ok(())
    }

    /// Ends the watch.
    pub fn unwatch(&self) {
        if let Some(watch) = self.inner.watching.watch.borrow_mut().take() {
            self.inner.local.unregister_fd(watch.fd);
        }
    }

    /// Scans the directories again on a worker; `done` gets what changed, after the listener.
    pub fn rescan(&self, done: impl FnOnce(Vec<CatalogChange>) + 'static) {
        self.inner.rescan(Box::new(done));
    }
}

impl Inner {
    /// Adds the directories that are not watched yet: one may have been created since.
    fn watch_directories(&self) {
        let mut watch = self.watching.watch.borrow_mut();
        let Some(Watch { inotify, directories, .. }) = watch.as_mut() else { return };
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::ONLYDIR;
        for directory in self.catalog.borrow().directories() {
            match inotify::add_watch(&*inotify, &directory.path, flags) {
                Ok(watch) => {
                    directories.insert(watch, directory.path.clone());
                }
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    let (path, error) = (directory.path.display(), std::io::Error::from(errno));
                    log::warn!("plugin directory not watched path={path} error={error}");
                }
            }
        }
    }

    fn read_events(self: &Rc<Self>) {
        let mut is_changed = false;
        if let Some(Watch { inotify, directories, .. }) = self.watching.watch.borrow_mut().as_mut() {
            let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
            let mut reader = Reader::new(inotify, &mut buffer);
            for _ in 0..EVENTS_PER_TURN {
                let event = match reader.next() {
                    Ok(event) => event,
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => break,
                    Err(errno) => {
                        log::warn!("plugin watch broken error={}", std::io::Error::from(errno));
                        break;
                    }
                };
                is_changed |= matters(directories, event.wd(), event.events(), event.file_name());
                if event.events().contains(ReadFlags::IGNORED) {
                    directories.remove(&event.wd());
                }
            }
        }
        if is_changed {
            self.rescan_soon();
        }
    }

    fn rescan_soon(self: &Rc<Self>) {
        if self.watching.is_settling.replace(true) {
            return;
        }
        let weak: Weak<Inner> = Rc::downgrade(self);
        let timer = self.local.set_timer(SETTLE, move || {
            if let Some(inner) = weak.upgrade() {
                inner.watching.is_settling.set(false);
                inner.rescan(Box::new(drop));
            }
        });
        if timer.is_err() {
            self.watching.is_settling.set(false);
            self.rescan(Box::new(drop));
        }
    }

    fn rescan(self: &Rc<Self>, done: Done) {
        self.watching.waiting.borrow_mut().push(done);
        // A scan under way may have passed the file in question already: the next one answers.
        if self.watching.is_scanning.replace(true) {
            return;
        }
        self.watch_directories();
        let waiting = Rc::new(Cell::new(self.watching.waiting.take()));
        let before = self.catalog.borrow().as_ref().clone();
        let answered = Rc::clone(&waiting);
        let weak = Rc::downgrade(self);
        let work = move || before.scan_again();
        let started = self.local.offload(work, move |catalog| {
            if let Some(inner) = weak.upgrade() {
                inner.scanned(catalog, answered.take());
            }
        });
        if let Err(error) = started {
            log::warn!("plugin directories not scanned error={error}");
            self.watching.is_scanning.set(false);
            waiting.take().into_iter().for_each(|done| self.later(move || done(Vec::new())));
        }
    }

    fn scanned(self: &Rc<Self>, catalog: Catalog, waiting: Vec<Done>) {
        let before = self.catalog.replace(Rc::new(catalog));
        let changes = before.changes_to(&self.catalog.borrow());
        self.watching.is_scanning.set(false);
        for change in &changes {
            match change {
                CatalogChange::Added(new) | CatalogChange::Changed { new, .. } => {
                    log::info!(
                        "plugin found name={} version={} file={}",
                        new.name,
                        new.version,
                        new.path.display()
                    );
                }
                CatalogChange::Removed(old) => {
                    log::info!(
                        "plugin gone name={} version={} file={}",
                        old.name,
                        old.version,
                        old.path.display()
                    );
                }
                CatalogChange::Rejected(error) => log::warn!("plugin not usable error={error}"),
            }
        }
        if !changes.is_empty()
            && let Some(listener) = self.listener()
        {
            listener.catalog_changed(&changes);
        }
        waiting.into_iter().for_each(|done| done(changes.clone()));
        if !self.watching.waiting.borrow().is_empty() {
            self.rescan(Box::new(drop));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(watch) = self.watching.watch.borrow_mut().take() {
            self.local.unregister_fd(watch.fd);
        }
    }
}

/// True if an event may have changed the catalog.
fn matters(directories: &HashMap<i32, PathBuf>, watch: i32, events: ReadFlags, name: Option<&CStr>) -> bool {
    if events.intersects(ReadFlags::QUEUE_OVERFLOW | ReadFlags::DELETE_SELF | ReadFlags::IGNORED) {
        return true;
    }
    let Some(name) = name else {
        return true; // about the directory itself, e.g. its mode
    };
    if !name.to_bytes().ends_with(b".so") {
        return false;
    }
    if !events.contains(ReadFlags::CREATE) {
        return true;
    }
    // A new file is empty, and CLOSE_WRITE will follow; a new link is complete, and nothing follows.
    let Some(directory) = directories.get(&watch) else { return true };
    let path = directory.join(std::ffi::OsStr::new(name.to_str().unwrap_or_default()));
    statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| stat.st_nlink > 1 || FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}
