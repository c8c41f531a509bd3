//! Paths that a discovery service tells of: attached as they come, detached when
//! no page tells of them any more, tried again as long as one does.

use std::rc::Rc;
use std::time::Duration;

use ::log::{info, warn};
use serde_json::{Value, json};
use tenon_sdk::{Error, FabricAddress, Hotplug, HotplugChange};

use super::log::{EntryKind, LogEntry, MAX_ENTRIES};
use super::places::{Place, Reading};
use super::{Discovery, is_same_place, transport_name};
use crate::attach::Purpose;
use crate::config::NvmeParams;
use crate::controller::Controller;
use crate::controller::state::{Event, State};
use crate::registry::Registry;
use crate::report::trid;

/// A path that the service tells of.
pub(super) struct Path {
    pub(super) address: FabricAddress,
    pub(super) is_secure: bool,
    pub(super) name: String,
    pub(super) state: PathState,
}

/// What has become of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathState {
    Wanted,
    Attaching,
    Attached {
        controller: u64,
    },
    /// To be tried again later.
    Failed,
    /// An operator attached a controller of this address.
    Foreign,
}

impl Discovery {
    /// Whether the service attached a controller.
    pub(crate) fn owns(&self, controller: u64) -> bool {
        let Some(registry) = self.registry.upgrade() else { return false };
        let paths = self.paths.borrow();
        paths.iter().any(|path| path.controller(&registry).is_some_and(|own| own.id == controller))
    }

    /// What the pages of all places tell of.
    fn told(&self) -> Vec<LogEntry> {
        let mut told: Vec<LogEntry> = Vec::new();
        for place in self.places.borrow().iter() {
            for entry in place.entries.iter().filter(|entry| entry.kind == EntryKind::Nvm) {
                if !told.iter().any(|other| other.address == entry.address) && told.len() < MAX_ENTRIES {
                    told.push(entry.clone());
                }
            }
        }
        told
    }

    /// Makes what is attached what the pages say.
    pub(super) fn settle_paths(&self) {
        for controller in self.take_untold() {
            // Not by an order: its devices may come back.
            controller.on(Event::Delete);
        }
        for entry in self.told() {
            if !self.paths.borrow().iter().any(|path| path.address == entry.address) {
                self.add_path(entry);
            }
        }
        self.attach_wanted();
    }

    /// Forgets paths that no page tells of any more; their controllers, which are to be detached.
    pub(super) fn take_untold(&self) -> Vec<Rc<Controller>> {
        let told = self.told();
        let gone: Vec<Path> = {
            let mut paths = self.paths.borrow_mut();
            let is_told = |path: &Path| told.iter().any(|entry| entry.address == path.address);
            let (kept, gone) = paths.drain(..).partition(is_told);
            *paths = kept;
            gone
        };
        let Some(registry) = self.registry.upgrade() else { return Vec::new() };
        for path in &gone {
            info!("path is not told of any more name={} traddr={}", path.name, path.address.traddr);
            self.publish(path, HotplugChange::Removed);
        }
        gone.iter().filter_map(|path| path.controller(&registry)).collect()
    }

    fn add_path(&self, entry: LogEntry) {
        let LogEntry { address, is_secure, .. } = entry;
        let Some(name) = self.name_of(&address.subnqn) else { return };
        info!("path found name={name} traddr={} trsvcid={}", address.traddr, address.trsvcid);
        let path = Path { address, is_secure, name, state: PathState::Wanted };
        self.publish(&path, HotplugChange::Added);
        self.paths.borrow_mut().push(path);
    }

    /// The name of a subsystem's controllers: that of the service, and the smallest number nobody has.
    fn name_of(&self, subnqn: &str) -> Option<String> {
        let registry = self.registry.upgrade()?;
        let mut names = self.names.borrow_mut();
        if let Some(name) = names.get(subnqn) {
            return Some(name.clone());
        }
        let is_free = |name: &String| {
            let others = registry.controllers(Some(name));
            !names.values().any(|taken| taken == name)
                && others.iter().all(|other| other.plan.params.subnqn == *subnqn)
        };
        let prefix = self.params.prefix();
        let mut numbered = (0..=2 * MAX_ENTRIES).map(|number| format!("{prefix}{number}"));
        let name = numbered.find(is_free)?;
        names.insert(subnqn.to_owned(), name.clone());
        Some(name)
    }

    /// Attaches what is told of and not attached.
    fn attach_wanted(&self) {
        let Some(registry) = self.registry.upgrade() else { return };
        let wanted: Vec<(FabricAddress, String)> = {
            let mut paths = self.paths.borrow_mut();
            let wanted = paths.iter_mut().filter(|path| path.state == PathState::Wanted);
            wanted
                .map(|path| {
                    path.state = PathState::Attaching;
                    (path.address.clone(), path.name.clone())
                })
                .collect()
        };
        for (address, name) in wanted {
            let Some(params) = self.params_of(&address, &name) else {
                warn!("path is of a transport this host does not know name={name} type={}", address.trtype);
                self.path(&address, |path| path.state = PathState::Foreign);
                continue;
            };
            let purpose = Purpose { asked: self.waiting.borrow().clone(), keeps_trying: false };
            let me = self.me.clone();
            registry.attach_one(
                params,
                purpose,
                Box::new(move |result| {
                    if let Some(discovery) = me.upgrade() {
                        discovery.path_ended(&address, result);
                    }
                }),
            );
        }
        self.check_waiting();
    }

    /// Parameters of a path's controller: the service's, where they do not say where it is.
    fn params_of(&self, address: &FabricAddress, name: &str) -> Option<NvmeParams> {
        Some(NvmeParams {
            name: name.to_owned(),
            trtype: transport_name(address.trtype)?.to_owned(),
            traddr: address.traddr.clone(),
            adrfam: None,
            trsvcid: Some(address.trsvcid.clone()).filter(|service| !service.is_empty()),
            subnqn: address.subnqn.clone(),
            discovery: false,
            svcname: None,
            wait_for_attach: false,
            attach_timeout_ms: 0,
            bdevs: Vec::new(),
            ..self.params.clone()
        })
    }

    fn path<R>(&self, address: &FabricAddress, with: impl FnOnce(&mut Path) -> R) -> Option<R> {
        self.paths.borrow_mut().iter_mut().find(|path| path.address == *address).map(with)
    }

    /// An attachment has come to an end.
    fn path_ended(&self, address: &FabricAddress, result: Result<u64, Error>) {
        let state = match &result {
            Ok(controller) => PathState::Attached { controller: *controller },
            Err(error) if error.code == EALREADY => PathState::Foreign,
            Err(_) => PathState::Failed,
        };
        let name = self.path(address, |path| {
            path.state = state;
            path.name.clone()
        });
        match (name, result) {
            (Some(name), Err(error)) if state == PathState::Failed => {
                warn!("path was not attached name={name} error=\"{error}\"");
                self.retry_later();
            }
            (Some(_), _) => self.retry_sec.set(1),
            // It is not told of any more: nobody wants it.
            (None, Ok(controller)) => {
                if let Some(registry) = self.registry.upgrade()
                    && let Some(controller) = registry.controller(controller)
                {
                    registry.detach(&[controller], || {});
                }
            }
            (None, Err(_)) => {}
        }
        self.check_waiting();
    }

    /// A controller is gone, e.g. because it was lost for too long. One that is told of is attached again.
    pub(crate) fn controller_gone(&self, controller: u64) {
        let lost = {
            let mut paths = self.paths.borrow_mut();
            let own = paths.iter_mut().find(|path| path.state == PathState::Attached { controller });
            own.map(|path| path.state = PathState::Failed).is_some()
        };
        if lost {
            self.retry_later();
        }
    }

    /// Tries again what failed, after a growing pause.
    pub(super) fn retry_later(&self) {
        if self.is_stopping.get() || self.clocks.borrow().retry.is_some() {
            return;
        }
        let pause_sec = self.retry_sec.get();
        self.retry_sec.set((pause_sec * 2).min(MAX_RETRY_SEC));
        let me = self.me.clone();
        let timer = self.host.timer(Duration::from_secs(pause_sec), move || {
            if let Some(discovery) = me.upgrade() {
                discovery.clocks.borrow_mut().retry.take();
                discovery.retry();
            }
        });
        match timer {
            Ok(timer) => self.clocks.borrow_mut().retry = Some(timer),
            Err(error) => {
                warn!("discovery service tries again later than it should error=\"{error}\"");
                self.retry_is_owed.set(true);
            }
        }
    }

    /// Arranges anew what could not be arranged.
    pub(crate) fn keep_up(&self) {
        if self.retry_is_owed.take() {
            self.retry();
        }
    }

    fn retry(&self) {
        for path in self.paths.borrow_mut().iter_mut().filter(|path| path.state == PathState::Failed) {
            path.state = PathState::Wanted;
        }
        let unread: Vec<(FabricAddress, Rc<Controller>)> = {
            let places = self.places.borrow();
            let of = |place: &Place| Some((place.address.clone(), place.controller.clone()?));
            places.iter().filter(|place| place.reading == Reading::No).filter_map(of).collect()
        };
        for (address, controller) in unread {
            if controller.state.get() == State::Ready {
                self.read(&address, &controller);
            }
        }
        self.reset_failed();
        self.attach_wanted();
    }

    /// A controller that gave up is told of all the same.
    fn reset_failed(&self) {
        let Some(registry) = self.registry.upgrade() else { return };
        let attached: Vec<u64> = {
            let paths = self.paths.borrow();
            let of = |path: &Path| match path.state {
                PathState::Attached { controller } => Some(controller),
                PathState::Wanted | PathState::Attaching | PathState::Failed | PathState::Foreign => None,
            };
            paths.iter().filter_map(of).collect()
        };
        for controller in attached.into_iter().filter_map(|id| registry.controller(id)) {
            if controller.state.get() == State::Failed {
                controller.on(Event::Reset);
            }
        }
    }

    pub(super) fn publish(&self, path: &Path, change: HotplugChange) {
        self.generation.set(self.generation.get() + 1);
        let address = &path.address;
        let id = format!("{} {} {}", address.traddr, address.trsvcid, address.subnqn);
        let attributes = json!({
            "name": path.name, "discovery": self.params.name,
            "trid": trid(transport_name(address.trtype).unwrap_or("unknown"), address),
        });
        let event = Hotplug {
            change,
            subsystem: "nvmf",
            id: id.trim(),
            generation: self.generation.get(),
            attributes: &attributes.to_string(),
        };
        if let Err(error) = self.host.publish_hotplug(&event) {
            warn!("event was not published error=\"{error}\"");
        }
    }
}

impl Path {
    pub(super) fn describe(&self) -> Value {
        let name = transport_name(self.address.trtype).unwrap_or("unknown");
        json!({
            "name": self.name,
            "trid": trid(name, &self.address),
            "state": self.state.as_str(),
            "secure_channel": self.is_secure,
        })
    }

    /// Its controller, if that is the service's. By address: the number is not known while it is being attached.
    pub(super) fn controller(&self, registry: &Registry) -> Option<Rc<Controller>> {
        match self.state {
            PathState::Attached { controller } => registry.controller(controller),
            PathState::Attaching => {
                let is_it = |other: &Rc<Controller>| is_same_place(&other.door.address, &self.address);
                registry.controllers(Some(&self.name)).into_iter().find(is_it)
            }
            PathState::Wanted | PathState::Failed | PathState::Foreign => None,
        }
    }
}

impl PathState {
    fn as_str(self) -> &'static str {
        match self {
            PathState::Wanted | PathState::Attaching => "attaching",
            PathState::Attached { .. } => "attached",
            PathState::Failed => "failed",
            PathState::Foreign => "foreign",
        }
    }
}

/// Longest pause before what failed is tried again.
const MAX_RETRY_SEC: u64 = 10;
const EALREADY: i32 = -114;
