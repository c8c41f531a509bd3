//! Files that appear, vanish, change their size, or are replaced.
//!
//! The directory of a watched file (or the nearest one that exists) is watched
//! with inotify; any event there, after a short rest, leads to a look at the file,
//! and what differs from the last look is published. Writes are not watched: they
//! would cost every I/O to a file. What inotify does not tell, a slow sweep finds.
//! Looking may block, so it is done by the offload workers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags};
use serde_json::json;
use tenon_abi::HotplugKind;
use tenon_reactor::{FdId, Interest, Poll, PollerId, PollerKind};

use crate::core::Core;

/// The watcher and what it watches.
pub(crate) struct FileWatch {
    inotify: Arc<OwnedFd>,
    fd: FdId,
    sweep: PollerId,
    files: HashMap<String, Watched>,
    /// Directories in which something happened since the last look.
    touched: HashSet<i32>,
    is_resting: bool,
    /// Where the last sweep ended.
    swept: String,
}

#[derive(Default)]
struct Watched {
    users: u32,
    /// What the last look found; `None` before the first.
    found: Option<Found>,
    directory: Option<i32>,
    is_looking: bool,
    /// Something happened while it was looked at.
    must_look_again: bool,
}

/// What there is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Something { device: u64, inode: u64, size: u64, mode: u32 },
}

/// What a look brought.
struct Look {
    path: String,
    found: Found,
    directory: Option<i32>,
}

impl Core {
    /// Watches a file for one more user.
    pub(crate) fn file_watch_add(&self, path: &str) -> io::Result<()> {
        if self.inner.hotplug.borrow().files.is_none() {
            let watch = self.file_watch_start()?;
            self.inner.hotplug.borrow_mut().files = Some(watch);
        }
        let is_new = {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let Some(watch) = &mut hotplug.files else { return Ok(()) };
            let watched = watch.files.entry(path.to_owned()).or_default();
            watched.users += 1;
            watched.users == 1
        };
        if is_new {
            self.file_look(vec![path.to_owned()]);
        }
        Ok(())
    }

    /// One user less; the last ends the watch.
    pub(crate) fn file_watch_remove(&self, path: &str) {
        let mut hotplug = self.inner.hotplug.borrow_mut();
        let Some(watch) = &mut hotplug.files else { return };
        let Some(watched) = watch.files.get_mut(path) else { return };
        watched.users = watched.users.saturating_sub(1);
        if watched.users == 0 {
            let directory = watched.directory;
            watch.files.remove(path);
            watch.leave_directory(directory);
        }
        let is_unused = watch.files.is_empty();
        drop(hotplug);
        if is_unused {
            self.hotplug_stop();
        }
    }

    /// Ends all watching.
    pub(crate) fn hotplug_stop(&self) {
        let watch = self.inner.hotplug.borrow_mut().files.take();
        if let (Some(watch), Some(local)) = (watch, tenon_reactor::try_current()) {
            local.unregister_fd(watch.fd);
            local.unregister_poller(watch.sweep);
        }
    }

    fn file_watch_start(&self) -> io::Result<FileWatch> {
        let inotify = rustix::fs::inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let local = tenon_reactor::current();
        let core = self.downgrade();
        let fd = local
            .register_fd(inotify.as_raw_fd(), Interest::READ, move |_| {
                if let Some(core) = core.upgrade() {
                    core.file_events();
                }
            })
            .map_err(io::Error::other)?;
        let core = self.downgrade();
        let period_us = u64::try_from(SWEEP_PERIOD.as_micros()).unwrap_or(u64::MAX);
        let sweep = local.register_poller("file_watch_sweep", period_us, PollerKind::Wakeable, move || {
            if let Some(core) = core.upgrade() {
                core.file_sweep();
            }
            Poll::Idle
        });
        let sweep = match sweep {
            Ok(sweep) => sweep,
            Err(error) => {
                local.unregister_fd(fd);
                return Err(io::Error::other(error));
            }
        };
        Ok(FileWatch {
            inotify: Arc::new(inotify),
            fd,
            sweep,
            files: HashMap::new(),
            touched: HashSet::new(),
            is_resting: false,
            swept: String::new(),
        })
    }

    /// Something happened in some directory: look at its files after a short rest.
    fn file_events(&self) {
        let must_rest = {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let Some(watch) = &mut hotplug.files else { return };
            watch.read_events();
            !watch.touched.is_empty() && !std::mem::replace(&mut watch.is_resting, true)
        };
        if !must_rest {
            return;
        }
        let core = self.downgrade();
        let timer = tenon_reactor::current().set_timer(REST, move || {
            if let Some(core) = core.upgrade() {
                core.file_look_at_touched();
            }
        });
        if timer.is_err() {
            self.file_look_at_touched();
        }
    }

    fn file_look_at_touched(&self) {
        let paths = {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let Some(watch) = &mut hotplug.files else { return };
            watch.is_resting = false;
            let touched = std::mem::take(&mut watch.touched);
            let is_touched = |watched: &Watched| {
                touched.contains(&OVERFLOW)
                    || watched.directory.is_none_or(|directory| touched.contains(&directory))
            };
            let paths = watch.files.iter().filter(|(_, watched)| is_touched(watched));
            paths.map(|(path, _)| path.clone()).collect()
        };
        self.file_look(paths);
    }

    fn file_sweep(&self) {
        let paths = {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let Some(watch) = &mut hotplug.files else { return };
            let sorted: BTreeSet<&String> = watch.files.keys().collect();
            let after = sorted.iter().filter(|path| ***path > watch.swept);
            let paths: Vec<String> = after.take(SWEEP_FILES).map(|path| (*path).clone()).collect();
            watch.swept = if paths.len() == SWEEP_FILES {
                paths.last().cloned().unwrap_or_default()
            } else {
                String::new()
            };
            paths
        };
        self.file_look(paths);
    }

    /// Looks at files on a worker thread.
    fn file_look(&self, mut paths: Vec<String>) {
        let inotify = {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let Some(watch) = &mut hotplug.files else { return };
            paths.retain(|path| {
                let Some(watched) = watch.files.get_mut(path) else { return false };
                watched.must_look_again = watched.is_looking;
                !std::mem::replace(&mut watched.is_looking, true)
            });
            watch.inotify.clone()
        };
        if paths.is_empty() {
            return;
        }
        let core = self.downgrade();
        let wanted = paths.clone();
        let looked = tenon_reactor::current().offload(
            move || paths.into_iter().map(|path| look(&inotify, path)).collect::<Vec<Look>>(),
            move |looks| {
                if let Some(core) = core.upgrade() {
                    looks.into_iter().for_each(|look| core.file_looked(look));
                }
            },
        );
        if let Err(error) = looked {
            log::warn!("files were not looked at, the next sweep does error={error}");
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let Some(watch) = &mut hotplug.files else { return };
            for path in wanted {
                if let Some(watched) = watch.files.get_mut(&path) {
                    watched.is_looking = false;
                }
            }
        }
    }

    fn file_looked(&self, look: Look) {
        let (before, again) = {
            let mut hotplug = self.inner.hotplug.borrow_mut();
            let Some(watch) = &mut hotplug.files else { return };
            let Some(watched) = watch.files.get_mut(&look.path) else {
                // Nobody wants it any more.
                return watch.leave_directory(look.directory);
            };
            watched.is_looking = false;
            let again = std::mem::take(&mut watched.must_look_again);
            let before = watched.found.replace(look.found);
            let old = std::mem::replace(&mut watched.directory, look.directory);
            if old != look.directory {
                watch.leave_directory(old);
            }
            (before, again)
        };
        for kind in changes(before, look.found) {
            let attributes = match (*kind, look.found) {
                (HotplugKind::REMOVE, _) | (_, Found::Nothing) => serde_json::Value::Null,
                (_, Found::Something { size, mode, .. }) => {
                    json!({ "size": size, "type": file_type(mode), "mode": format!("{:o}", mode & 0o7777) })
                }
            };
            self.publish_hotplug(*kind, "file", &look.path, &attributes);
        }
        if again {
            self.file_look(vec![look.path]);
        }
    }
}

impl FileWatch {
    /// Takes what inotify has to say.
    fn read_events(&mut self) {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = Reader::new(&*self.inotify, &mut buffer);
        for _ in 0..EVENTS_PER_TURN {
            // An empty queue is an error too: EAGAIN.
            let Ok(event) = reader.next() else { return };
            self.touched.insert(event.wd());
        }
    }

    /// Ends the watch of a directory no watched file needs any more.
    fn leave_directory(&self, directory: Option<i32>) {
        let Some(directory) = directory else { return };
        if self.files.values().any(|watched| watched.directory == Some(directory)) {
            return;
        }
        // The kernel ended it already if the directory is gone.
        let _ = rustix::fs::inotify::remove_watch(&*self.inotify, directory);
    }
}

/// Watches the directory first, then looks: what happens in between is not missed.
fn look(inotify: &OwnedFd, path: String) -> Look {
    let flags = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    let mut directory = None;
    for ancestor in Path::new(&path).ancestors().skip(1) {
        if let Ok(watch) = rustix::fs::inotify::add_watch(inotify, ancestor, flags) {
            directory = Some(watch);
            break;
        }
    }
    let found = std::fs::metadata(&path).map_or(Found::Nothing, |metadata| Found::Something {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: if metadata.file_type().is_block_device() { 0 } else { metadata.len() },
        mode: metadata.mode(),
    });
    Look { path, found, directory }
}

/// What is to be published when `before` became `now`.
fn changes(before: Option<Found>, now: Found) -> &'static [HotplugKind] {
    match (before.unwrap_or(Found::Nothing), now) {
        (Found::Nothing, Found::Nothing) => &[],
        (Found::Nothing, Found::Something { .. }) => &[HotplugKind::ADD],
        (Found::Something { .. }, Found::Nothing) => &[HotplugKind::REMOVE],
        (
            old @ Found::Something { device, inode, .. },
            Found::Something { device: device_now, inode: inode_now, .. },
        ) => {
            if (device, inode) != (device_now, inode_now) {
                &[HotplugKind::REMOVE, HotplugKind::ADD]
            } else if old != now {
                &[HotplugKind::CHANGE]
            } else {
                &[]
            }
        }
    }
}

fn file_type(mode: u32) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFREG => "file",
        libc::S_IFBLK => "block",
        libc::S_IFDIR => "directory",
        _ => "other",
    }
}

/// How long a directory is left alone after an event, as events come in bunches.
const REST: Duration = Duration::from_millis(20);
/// Between two sweeps.
const SWEEP_PERIOD: Duration = Duration::from_secs(2);
/// Files looked at in one sweep.
const SWEEP_FILES: usize = 64;
/// Events read before other work has its turn; the rest is still there.
const EVENTS_PER_TURN: usize = 256;
/// What inotify gives as directory when it has lost events.
const OVERFLOW: i32 = -1;

#[cfg(test)]
mod tests {
    use super::{Found, changes};
    use tenon_abi::HotplugKind;

    const fn something(inode: u64, size: u64) -> Found {
        Found::Something { device: 1, inode, size, mode: 0o100_644 }
    }

    #[test]
    fn a_replaced_file_vanishes_and_appears() {
        let (add, remove, change) = (HotplugKind::ADD, HotplugKind::REMOVE, HotplugKind::CHANGE);
        assert_eq!(changes(None, Found::Nothing), []);
        assert_eq!(changes(None, something(1, 5)), [add]);
        assert_eq!(changes(Some(something(1, 5)), something(1, 5)), []);
        assert_eq!(changes(Some(something(1, 5)), something(1, 6)), [change]);
        assert_eq!(changes(Some(something(1, 5)), something(2, 5)), [remove, add]);
        assert_eq!(changes(Some(something(1, 5)), Found::Nothing), [remove]);
        assert_eq!(changes(Some(Found::Nothing), something(1, 5)), [add]);
    }
}
