//! The devices by name and what is known of their files: looks at a file when
//! something happened at its path, and does what `presence` says. Control
//! thread; what blocks is done by workers.
//!
//! A look compares the file at the path with the one that is open, so it does
//! not matter what the event said, or how often it comes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tenon_sdk::{BdevId, Error, Exported, Host, HotplugWatch, OpToken, Timer, errno};

use crate::UringModule;
use crate::backing::{self, Backing, Found, Identity};
use crate::bdev::UringBdev;
use crate::config::UringParams;
use crate::presence::{Action, Event, Policy, Presence};

/// Every device, and every name that waits for a file.
#[derive(Default)]
pub struct Files {
    entries: BTreeMap<String, Entry>,
    /// The module ends: nothing new is opened.
    is_quiesced: bool,
}

struct Entry {
    params: UringParams,
    presence: Presence,
    device: Option<Device>,
    /// When an absent device is removed.
    absent_until_ns: u64,
    is_looking: bool,
    must_look_again: bool,
    retry: Option<Timer>,
    next_retry: Duration,
    _watch: Option<HotplugWatch>,
}

/// A registered device.
#[derive(Clone, Copy)]
struct Device {
    id: BdevId,
    identity: Identity,
    block_size: u32,
    num_blocks: u64,
}

/// A name that waits for a file, as `bdev_uring_get_waiting` shows it.
#[derive(Serialize)]
pub struct WaitingFile {
    name: String,
    filename: PathBuf,
}

impl Entry {
    fn new(params: UringParams) -> Entry {
        Entry {
            params,
            presence: Presence::Opening,
            device: None,
            absent_until_ns: 0,
            is_looking: false,
            must_look_again: false,
            retry: None,
            next_retry: FIRST_RETRY,
            _watch: None,
        }
    }

    fn step(&mut self, event: Event) -> Action {
        let policy =
            Policy { waits: self.params.wait_for_file, keeps: self.params.absent_timeout_sec.as_ns() > 0 };
        let before = self.presence;
        let (presence, action) = before.next(event, policy);
        self.presence = presence;
        if presence != before {
            let (name, path) = (&self.params.name, self.params.filename.display());
            log::info!("file changed state bdev={name} path={path} from={before:?} to={presence:?}");
        }
        action
    }

    fn sight_of(&self, found: Option<Found>) -> Event {
        match (found, self.device) {
            (None, _) => Event::NoFile,
            (Some(found), Some(device)) if found.identity == device.identity => Event::SameFile,
            (Some(_), _) => Event::OtherFile,
        }
    }
}

/// Creation.
impl UringModule {
    /// Opens the file and registers the device, or begins to wait for the file.
    pub fn open(&self, mut params: UringParams, token: OpToken) {
        let name = params.name.clone();
        match backing::absolute(&params.filename) {
            Ok(path) => params.filename = path,
            Err(error) => return token.fail(error),
        }
        let is_new = self.files.with(|files| {
            let is_new = !files.entries.contains_key(&name);
            files.entries.entry(name.clone()).or_insert_with(|| Entry::new(params.clone()));
            is_new
        });
        if !is_new {
            return token.fail(Error::exists(name));
        }
        let work = move || Backing::open(&params);
        token.offload(work, move |token, result| {
            let mut token = Some(token);
            let result = result.and_then(|inner| inner);
            UringModule::with(|module| {
                if let Some(token) = token.take() {
                    module.opened(&name, token, result);
                }
            });
            if let Some(token) = token {
                token.fail(Error::new(errno::ESHUTDOWN, "the module is not running"));
            }
        });
    }

    fn opened(&self, name: &str, token: OpToken, result: Result<Backing, Error>) {
        let waits =
            self.files.with(|files| files.entries.get(name).is_some_and(|entry| entry.params.wait_for_file));
        let result = match result {
            Ok(backing) => self.register(name, backing, |spec, bdev| token.register(spec, bdev)),
            Err(error) if error.code == errno::ENOENT && waits => {
                self.step(name, Event::OpenFailed);
                self.watch(name);
                Ok(())
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => token.reply(name),
            Err(error) => {
                drop(self.files.with(|files| files.entries.remove(name)));
                token.fail(error);
            }
        }
    }

    /// Makes a device of an open file; `register` gives it to the host.
    fn register(
        &self,
        name: &str,
        backing: Backing,
        register: impl FnOnce(tenon_sdk::BdevSpec, UringBdev) -> Result<BdevId, Error>,
    ) -> Result<(), Error> {
        let params = self.files.with(|files| files.entries.get(name).map(|entry| entry.params.clone()));
        let params = params.ok_or_else(|| Error::not_found(name))?;
        let (identity, geometry) = (backing.identity(), *backing.geometry());
        let (spec, bdev) = UringBdev::new(self.host, params, backing)?;
        let id = register(spec, bdev)?;
        self.files.with(|files| {
            if let Some(entry) = files.entries.get_mut(name) {
                let (block_size, num_blocks) = (geometry.block_size, geometry.num_blocks);
                entry.device = Some(Device { id, identity, block_size, num_blocks });
                entry.next_retry = FIRST_RETRY;
            }
        });
        self.step(name, Event::Opened);
        self.watch(name);
        // The file may have gone, or got another size, before it was watched.
        self.look(name);
        Ok(())
    }

    /// Changes what can be changed while the device is in use.
    pub fn update_in_place(&self, name: &str, params: &UringParams) -> Result<(), Error> {
        let filename = backing::absolute(&params.filename)?;
        let params = UringParams { filename, ..params.clone() };
        let is_changed = self.files.with(|files| {
            let entry = files.entries.get_mut(name).filter(|entry| entry.params.differs_in_place(&params));
            entry.map(|entry| entry.params = params.clone()).is_some()
        });
        if !is_changed {
            let reason = "only absent_timeout_sec and wait_for_file can change in place";
            return Err(Error::not_supported(reason).object(name));
        }
        if let Some(bdev) = self.host.bdev::<UringBdev>(name) {
            bdev.set_params(params);
        }
        Ok(())
    }

    fn watch(&self, name: &str) {
        let is_watched = |entry: &Entry| entry._watch.is_some();
        let path = self.files.with(|files| {
            let entry = files.entries.get(name).filter(|entry| !is_watched(entry));
            entry.map(|entry| entry.params.filename.clone())
        });
        let Some(path) = path else { return };
        match self.host.watch("file", &path.to_string_lossy()) {
            Ok(watch) => self.files.with(|files| {
                if let Some(entry) = files.entries.get_mut(name) {
                    entry._watch = Some(watch);
                }
            }),
            Err(error) => log::warn!("file cannot be watched bdev={name} error=\"{error}\""),
        }
    }
}

/// What happens to files.
impl UringModule {
    /// Something happened at a path.
    pub fn file_changed(&self, path: &str) {
        let names: Vec<String> = self.files.with(|files| {
            let here = files.entries.iter().filter(|(_, entry)| entry.params.filename == Path::new(path));
            here.map(|(name, _)| name.clone()).collect()
        });
        names.iter().for_each(|name| self.look(name));
    }

    /// Looks at the file of a device, then answers.
    pub fn look_for(&self, name: &str, token: OpToken) {
        let path =
            self.files.with(|files| files.entries.get(name).map(|entry| entry.params.filename.clone()));
        let Some(path) = path else { return token.fail(Error::not_found(name)) };
        let name = name.to_owned();
        token.offload(
            move || Found::at(&path),
            move |token, found| {
                if let Ok(found) = found {
                    UringModule::with(|module| module.looked(&name, found));
                }
                token.done();
            },
        );
    }

    /// Looks at the file of a device; one look at a time.
    fn look(&self, name: &str) {
        let path = self.files.with(|files| {
            let entry = files.entries.get_mut(name)?;
            entry.must_look_again = entry.is_looking;
            let may_look = !std::mem::replace(&mut entry.is_looking, true);
            may_look.then(|| entry.params.filename.clone())
        });
        let Some(path) = path else { return };
        let looked = name.to_owned();
        let done = move |found: Result<Option<Found>, Error>| {
            UringModule::with(|module| module.look_ended(&looked, found));
        };
        if let Err(error) = self.host.offload(move || Found::at(&path), done) {
            log::warn!("file was not looked at bdev={name} error=\"{error}\"");
            self.files.with(|files| {
                if let Some(entry) = files.entries.get_mut(name) {
                    entry.is_looking = false;
                }
            });
            self.retry_later(name);
        }
    }

    fn look_ended(&self, name: &str, found: Result<Option<Found>, Error>) {
        let again = self.files.with(|files| {
            let entry = files.entries.get_mut(name)?;
            entry.is_looking = false;
            Some(std::mem::take(&mut entry.must_look_again))
        });
        if let Ok(found) = found {
            self.looked(name, found);
        }
        if again == Some(true) {
            self.look(name);
        }
    }

    fn looked(&self, name: &str, found: Option<Found>) {
        let sight = self.files.with(|files| files.entries.get(name).map(|entry| entry.sight_of(found)));
        let Some(sight) = sight else { return };
        match self.step(name, sight) {
            Action::Nothing => {}
            Action::Open => self.reopen(name),
            Action::SetAbsent => self.set_absent(name),
            Action::SetPresent => {
                self.with_device(name, |host, device| host.set_present(device.id));
                self.resize(name, found);
            }
            Action::Resize => self.resize(name, found),
            Action::Remove(reason) => {
                self.with_device(name, |host, device| host.unregister(device.id, reason))
            }
        }
    }

    fn step(&self, name: &str, event: Event) -> Action {
        self.files
            .with(|files| files.entries.get_mut(name).map_or(Action::Nothing, |entry| entry.step(event)))
    }

    fn with_device(&self, name: &str, call: impl FnOnce(Host, Device) -> Result<(), Error>) {
        let device = self.files.with(|files| files.entries.get(name).and_then(|entry| entry.device));
        let Some(device) = device else { return };
        if let Err(error) = call(self.host, device) {
            log::warn!("device cannot follow its file bdev={name} error=\"{error}\"");
        }
    }

    fn set_absent(&self, name: &str) {
        let now_ns = self.host.now_ns();
        let timeout = self.files.with(|files| {
            let entry = files.entries.get_mut(name)?;
            let timeout = entry.params.absent_timeout_sec;
            entry.absent_until_ns = now_ns.saturating_add(timeout.as_ns());
            Some(timeout.as_duration())
        });
        log::warn!("file is gone, i/o waits bdev={name} for={timeout:?}");
        self.with_device(name, |host, device| host.set_absent(device.id, timeout));
    }

    fn resize(&self, name: &str, found: Option<Found>) {
        let Some(bytes) = found.and_then(|found| found.bytes) else { return };
        self.with_device(name, |host, device| {
            let num_blocks = bytes / u64::from(device.block_size);
            if num_blocks == device.num_blocks {
                return Ok(());
            }
            host.resize(device.id, num_blocks)?;
            self.files.with(|files| {
                let device = files.entries.get_mut(name).and_then(|entry| entry.device.as_mut());
                device.into_iter().for_each(|device| device.num_blocks = num_blocks);
            });
            Ok(())
        });
    }

    /// A file that was waited for is there.
    fn reopen(&self, name: &str) {
        let params = self.files.with(|files| files.entries.get(name).map(|entry| entry.params.clone()));
        let Some(params) = params else { return };
        let opened = name.to_owned();
        let done = move |result: Result<Result<Backing, Error>, Error>| {
            UringModule::with(|module| module.reopened(&opened, result.and_then(|inner| inner)));
        };
        if let Err(error) = self.host.offload(move || Backing::open(&params), done) {
            self.reopen_failed(name, &error);
        }
    }

    fn reopened(&self, name: &str, result: Result<Backing, Error>) {
        let is_wanted = self.files.with(|files| !files.is_quiesced && files.entries.contains_key(name));
        if !is_wanted {
            return;
        }
        let host = self.host;
        let registered =
            result.and_then(|backing| self.register(name, backing, |spec, bdev| host.register(spec, bdev)));
        if let Err(error) = registered {
            self.reopen_failed(name, &error);
        }
    }

    fn reopen_failed(&self, name: &str, error: &Error) {
        log::warn!("file is there and cannot be used yet bdev={name} error=\"{error}\"");
        self.step(name, Event::OpenFailed);
        self.retry_later(name);
    }

    /// Looks again after a while, which grows from time to time.
    fn retry_later(&self, name: &str) {
        let delay = self.files.with(|files| {
            let entry = files.entries.get_mut(name)?;
            let next = (entry.next_retry * 2).min(LAST_RETRY);
            Some(std::mem::replace(&mut entry.next_retry, next))
        });
        let Some(delay) = delay else { return };
        let again = name.to_owned();
        let timer = self.host.timer(delay, move || {
            UringModule::with(|module| module.look(&again));
        });
        match timer {
            Ok(timer) => {
                let old = self
                    .files
                    .with(|files| files.entries.get_mut(name).and_then(|entry| entry.retry.replace(timer)));
                drop(old);
            }
            Err(error) => log::warn!("file is not looked at again bdev={name} error=\"{error}\""),
        }
    }

    /// The device is gone and its file closed.
    pub fn destroyed(&self, name: &str) {
        let now_ns = self.host.now_ns();
        let (presence, gone) = self.files.with(|files| {
            let Some(entry) = files.entries.get_mut(name) else { return (Presence::Gone, None) };
            let is_overdue = entry.presence == Presence::Absent && now_ns >= entry.absent_until_ns;
            let is_lost = entry.presence == Presence::Leaving || is_overdue;
            entry.device = None;
            entry.step(if is_lost && !files.is_quiesced { Event::Lost } else { Event::Deleted });
            match entry.presence {
                Presence::Gone => (Presence::Gone, files.entries.remove(name)),
                other => (other, None),
            }
        });
        // The watch ends outside of the borrow: that calls the host.
        drop(gone);
        if presence == Presence::Waiting {
            self.look(name);
        }
    }
}

/// Names that wait for a file.
impl UringModule {
    /// All of them.
    pub fn waiting(&self) -> Vec<WaitingFile> {
        self.files.with(|files| {
            let waiting = files.entries.values().filter(|entry| entry.presence == Presence::Waiting);
            let shown = waiting.map(|entry| WaitingFile {
                name: entry.params.name.clone(),
                filename: entry.params.filename.clone(),
            });
            shown.collect()
        })
    }

    /// Ends the wait of one: now, or when its device, which is wanted no more, is gone.
    pub fn stop_waiting(&self, name: &str) {
        let ended = self.files.with(|files| {
            let entry = files.entries.get_mut(name)?;
            entry.params.wait_for_file = false;
            if entry.device.is_none() { files.entries.remove(name) } else { None }
        });
        // The watch ends outside of the borrow: that calls the host.
        drop(ended);
    }

    /// Ends every wait, for good.
    pub fn stop_all_waiting(&self) {
        let ended = self.files.with(|files| {
            files.is_quiesced = true;
            let (kept, ended) = std::mem::take(&mut files.entries)
                .into_iter()
                .partition(|(_, entry)| entry.presence != Presence::Waiting);
            files.entries = kept;
            let ended: BTreeMap<String, Entry> = ended;
            ended
        });
        drop(ended);
    }
}

/// First pause before a file that could not be opened is looked at again; each is twice as long as the one before.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(60);
