//! A discovery service: what it tells of is attached, what it no longer tells
//! of is detached, for as long as the service is wanted.
//!
//! It is asked by a persistent controller at each of its places: the one an
//! operator named, and those that log pages refer to. A place that is not
//! reached is tried again for ever, and what it told of stays attached
//! meanwhile. Subsystems get names by number, in the order in which they are
//! first told of, and keep them. What the pages say is read in `log`.

mod log;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use ::log::{debug, info, warn};
use nvme_spec::discovery::TransportType;
use nvme_spec::nqn::DISCOVERY_NQN;
use serde_json::{Value, json};
use tenon_sdk::{Error, FabricAddress, Host, Hotplug, HotplugChange, OpToken, Timer};

use self::log::{EntryKind, LogEntry, LogReading, MAX_ENTRIES};
use crate::attach::{Asked, Purpose};
use crate::config::{NvmeParams, Timers};
use crate::controller::admin::Answer;
use crate::controller::state::{Event, State};
use crate::controller::{Controller, News};
use crate::registry::Registry;
use crate::report::trid;

/// A discovery service.
pub(crate) struct Discovery {
    me: Weak<Discovery>,
    host: Host,
    registry: Weak<Registry>,
    pub(crate) params: NvmeParams,
    places: RefCell<Vec<Place>>,
    paths: RefCell<Vec<Path>>,
    /// Names of subsystems.
    names: RefCell<BTreeMap<String, String>>,
    /// Who waits for the first attachments, and how they are registered.
    waiting: RefCell<Option<Asked>>,
    clocks: RefCell<Clocks>,
    retry_sec: Cell<u64>,
    /// The pause could not be arranged.
    retry_is_owed: Cell<bool>,
    generation: Cell<u64>,
    is_stopping: Cell<bool>,
}

#[derive(Default)]
struct Clocks {
    retry: Option<Timer>,
    attach: Option<Timer>,
}

/// Where the service is asked.
struct Place {
    address: FabricAddress,
    controller: Option<Rc<Controller>>,
    entries: Vec<LogEntry>,
    reading: Reading,
    /// It was read, or could not be reached, at least once.
    is_settled: bool,
}

/// Whether a place's page is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    No,
    Yes,
    /// It has changed meanwhile.
    YesAndAgain,
}

/// A path that the service tells of.
struct Path {
    address: FabricAddress,
    is_secure: bool,
    name: String,
    state: PathState,
}

/// What has become of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathState {
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

impl Registry {
    pub(crate) fn discoveries(&self) -> Vec<Rc<Discovery>> {
        self.discoveries.borrow().clone()
    }

    /// Starts a discovery service; answers at once, or when what it tells of at first is attached.
    pub(crate) fn start_discovery(self: &Rc<Self>, params: NvmeParams, token: OpToken) {
        let params = NvmeParams { discovery: true, subnqn: String::new(), ..params };
        let timers = Timers::of(&params, &self.config.borrow());
        let checked =
            params.check().and_then(|()| timers.check().map_err(|error| error.object(&*params.name)));
        if let Err(error) = checked {
            return token.fail(error);
        }
        let services = self.discoveries();
        let address = params.address(0);
        if let Some(other) = services.iter().find(|other| other.params.name == params.name) {
            return token.fail(Error::exists(&*other.params.name));
        }
        if let Some(other) = services.iter().find(|other| other.params.address(0) == address) {
            let reason = format!("discovery service {} asks this address already", other.params.name);
            return token.fail(Error::new(tenon_sdk::errno::EEXIST, reason).object(&*params.name));
        }
        if services.len() >= MAX_SERVICES {
            let reason = format!("there are {MAX_SERVICES} discovery services: no more are possible");
            return token.fail(Error::no_memory(reason).object(&*params.name));
        }
        self.add_wishes(&params);
        let discovery = Discovery::new(self, params);
        self.discoveries.borrow_mut().push(Rc::clone(&discovery));
        discovery.start(token);
    }

    /// The service of that name, which is not listed any more.
    pub(crate) fn take_discovery(&self, name: &str) -> Option<Rc<Discovery>> {
        let mut services = self.discoveries.borrow_mut();
        let at = services.iter().position(|service| service.params.name == name)?;
        Some(services.remove(at))
    }

    /// Ends all of them; the controllers that are to be detached.
    pub(crate) fn end_discoveries(&self) -> Vec<Rc<Controller>> {
        let services = self.discoveries.take();
        let reason = || Error::new(tenon_sdk::errno::ESHUTDOWN, "the module is going out of service");
        services.iter().flat_map(|service| service.end(reason())).collect()
    }

    /// `bdev_nvme_get_discovery_info`.
    pub(crate) fn describe_discoveries(&self) -> Value {
        self.discoveries().iter().map(|discovery| discovery.describe()).collect()
    }
}

impl Discovery {
    fn new(registry: &Rc<Registry>, params: NvmeParams) -> Rc<Self> {
        Rc::new_cyclic(|me| Discovery {
            me: me.clone(),
            host: registry.host,
            registry: Rc::downgrade(registry),
            params,
            places: RefCell::default(),
            paths: RefCell::default(),
            names: RefCell::default(),
            waiting: RefCell::default(),
            clocks: RefCell::default(),
            retry_sec: Cell::new(1),
            retry_is_owed: Cell::new(false),
            generation: Cell::new(0),
            is_stopping: Cell::new(false),
        })
    }

    fn start(&self, token: OpToken) {
        if self.params.wait_for_attach || self.params.attach_timeout_ms > 0 {
            *self.waiting.borrow_mut() = Some(Rc::new(Cell::new(Some(token))));
            self.arm_attach_timeout();
        } else {
            token.done();
        }
        let address = FabricAddress { subnqn: DISCOVERY_NQN.to_owned(), ..self.params.address(0) };
        self.add_place(address);
    }

    fn arm_attach_timeout(&self) {
        let timeout_ms = self.params.attach_timeout_ms;
        if timeout_ms == 0 {
            return;
        }
        let me = self.me.clone();
        let timer = self.host.timer(Duration::from_millis(timeout_ms), move || {
            let Some(discovery) = me.upgrade() else { return };
            let Some(registry) = discovery.registry.upgrade() else { return };
            let reason = format!("not everything was attached within {timeout_ms} ms");
            let error = Error::timed_out(reason).object(&*discovery.params.name);
            let error = error.caused_by(discovery.obstacle());
            discovery.answer(Err(error));
            if let Some(discovery) = registry.take_discovery(&discovery.params.name) {
                registry.detach(&discovery.end(Error::timed_out("discovery took too long")), || {});
            }
        });
        match timer {
            Ok(timer) => self.clocks.borrow_mut().attach = Some(timer),
            Err(error) => warn!("discovery service has no attach timeout error=\"{error}\""),
        }
    }

    /// What is in the way of the first attachments.
    fn obstacle(&self) -> String {
        let places = self.places.borrow();
        let place = places.iter().find(|place| place.reading != Reading::No || !place.is_settled);
        let failed = places.iter().filter_map(|place| place.controller.as_ref());
        let failed = failed.map(|controller| controller.last_error.borrow().clone());
        match failed.into_iter().find(|error| !error.is_empty()) {
            Some(error) => error,
            None if place.is_some() => "the discovery service has not answered".to_owned(),
            None => "controllers are being attached".to_owned(),
        }
    }

    fn answer(&self, result: Result<(), Error>) {
        self.clocks.borrow_mut().attach.take();
        let token = self.waiting.borrow_mut().take().and_then(|asked| asked.take());
        match (token, result) {
            (Some(token), Ok(())) => token.done(),
            (Some(token), Err(error)) => token.fail(error),
            (None, _) => {}
        }
    }

    /// No more of it; the controllers that are to be detached.
    pub(crate) fn end(&self, reason: Error) -> Vec<Rc<Controller>> {
        self.is_stopping.set(true);
        *self.clocks.borrow_mut() = Clocks::default();
        self.answer(Err(reason.object(&*self.params.name)));
        let Some(registry) = self.registry.upgrade() else { return Vec::new() };
        let paths = self.paths.take();
        paths.iter().for_each(|path| self.publish(path, HotplugChange::Removed));
        let mut controllers: Vec<Rc<Controller>> =
            paths.iter().filter_map(|path| path.controller(&registry)).collect();
        controllers.extend(self.places.take().into_iter().filter_map(|place| place.controller));
        controllers
    }

    /// No new controllers from now on.
    pub(crate) fn quiesce(&self) {
        self.is_stopping.set(true);
        *self.clocks.borrow_mut() = Clocks::default();
    }

    /// Whether the service attached a controller.
    pub(crate) fn owns(&self, controller: u64) -> bool {
        let Some(registry) = self.registry.upgrade() else { return false };
        let paths = self.paths.borrow();
        paths.iter().any(|path| path.controller(&registry).is_some_and(|own| own.id == controller))
    }

    fn add_place(&self, address: FabricAddress) {
        let Some(registry) = self.registry.upgrade() else { return };
        let (controller, entries) = (None, Vec::new());
        let place =
            Place { address: address.clone(), controller, entries, reading: Reading::No, is_settled: false };
        self.places.borrow_mut().push(place);
        let trtype = transport_name(address.trtype).unwrap_or(&self.params.trtype).to_owned();
        let (me, at) = (self.me.clone(), address.clone());
        let asked = self.host.transport(&trtype, move |transport| {
            let Some(discovery) = me.upgrade() else { return };
            let is_wanted = discovery.place(&at, |_| ()).is_some() && !discovery.is_stopping.get();
            match transport {
                Ok(transport) if is_wanted => {
                    let params = NvmeParams {
                        traddr: at.traddr.clone(),
                        trsvcid: Some(at.trsvcid.clone()),
                        subnqn: at.subnqn.clone(),
                        ..discovery.params.clone()
                    };
                    // Never given up: what it told of depends on it.
                    let timers = Timers {
                        ctrlr_loss_timeout_sec: -1,
                        reconnect_delay_sec: RECONNECT_SEC,
                        fast_io_fail_timeout_sec: 0,
                    };
                    let (me, place) = (discovery.me.clone(), at.clone());
                    let listener = move |controller: &Controller, news| {
                        if let Some(discovery) = me.upgrade() {
                            discovery.heard(&place, controller, news);
                        }
                    };
                    let made =
                        registry.new_controller(transport, params, timers, true, Some(Box::new(listener)));
                    let controller = match made {
                        Ok(controller) => controller,
                        Err(error) => return discovery.place_failed(&at, &error.to_string()),
                    };
                    registry.discoverers.borrow_mut().insert(controller.id, Rc::clone(&controller));
                    registry.begin_upkeep();
                    discovery.place(&at, |place| place.controller = Some(Rc::clone(&controller)));
                    controller.start(Box::new(|_| {}));
                }
                Ok(_) => {}
                Err(error) => discovery.place_failed(&at, &error.to_string()),
            }
        });
        if let Err(error) = asked {
            self.place_failed(&address, &error.to_string());
        }
    }

    fn place<R>(&self, address: &FabricAddress, with: impl FnOnce(&mut Place) -> R) -> Option<R> {
        self.places.borrow_mut().iter_mut().find(|place| place.address == *address).map(with)
    }

    fn place_failed(&self, address: &FabricAddress, reason: &str) {
        let was_settled = self.place(address, |place| {
            place.reading = Reading::No;
            std::mem::replace(&mut place.is_settled, true)
        });
        if was_settled == Some(false) {
            warn!(
                "discovery service is not reached name={} traddr={} reason=\"{reason}\"",
                self.params.name, address.traddr
            );
        }
        self.check_waiting();
    }

    fn heard(&self, address: &FabricAddress, controller: &Controller, news: News) {
        match news {
            News::Serves => {
                self.place(address, |place| place.reading = Reading::No);
                self.read(address, controller);
            }
            News::LogChanged => self.read(address, controller),
            News::Fails => {
                let reason = controller.last_error.borrow().clone();
                self.place_failed(address, &reason);
            }
        }
    }

    /// Reads the log page of a place, again if that is under way.
    fn read(&self, address: &FabricAddress, controller: &Controller) {
        let starts = self.place(address, |place| {
            let starts = place.reading == Reading::No;
            place.reading = if starts { Reading::Yes } else { Reading::YesAndAgain };
            starts
        });
        if starts == Some(true) && !self.is_stopping.get() {
            self.read_step(address.clone(), controller, LogReading::new());
        }
    }

    fn read_step(&self, address: FabricAddress, controller: &Controller, mut reading: LogReading) {
        let Some(command) = reading.command() else {
            return self.was_read(&address, controller, reading.finish());
        };
        let me = self.me.clone();
        controller.send(&command, move |controller, answer: Answer| {
            let Some(discovery) = me.upgrade() else { return };
            let (cqe, data) = match answer {
                Ok(answer) => answer,
                // Its connection goes: it is read again when there is another one.
                Err(_) => return,
            };
            let data = data.as_ref().map_or(&[][..], |data| data.as_slice());
            match reading.answered(&cqe, data) {
                Ok(()) => discovery.read_step(address, controller, reading),
                Err(error) => {
                    discovery.place_failed(&address, &error.to_string());
                    discovery.retry_later();
                }
            }
        });
    }

    fn was_read(&self, address: &FabricAddress, controller: &Controller, entries: Vec<LogEntry>) {
        debug!("discovery log page read name={} entries={}", self.params.name, entries.len());
        let again = self.place(address, |place| {
            (place.entries, place.is_settled) = (entries, true);
            std::mem::replace(&mut place.reading, Reading::No) == Reading::YesAndAgain
        });
        self.settle();
        if again == Some(true) {
            self.read(address, controller);
        }
    }

    /// Makes what is attached, and where the service is asked, what the pages say.
    fn settle(&self) {
        if self.is_stopping.get() {
            return;
        }
        self.settle_places();
        let mut told: Vec<LogEntry> = Vec::new();
        for place in self.places.borrow().iter() {
            for entry in place.entries.iter().filter(|entry| entry.kind == EntryKind::Nvm) {
                if !told.iter().any(|other| other.address == entry.address) && told.len() < MAX_ENTRIES {
                    told.push(entry.clone());
                }
            }
        }
        self.forget_paths(&told);
        for entry in told {
            if !self.paths.borrow().iter().any(|path| path.address == entry.address) {
                self.add_path(entry);
            }
        }
        self.attach_wanted();
    }

    /// Places that no page refers to any more go, new ones come.
    fn settle_places(&self) {
        let (gone, new) = {
            let mut places = self.places.borrow_mut();
            let referred: Vec<FabricAddress> = places
                .iter()
                .flat_map(|place| &place.entries)
                .filter(|entry| entry.kind == EntryKind::Referral)
                .map(|entry| entry.address.clone())
                .collect();
            let (mut gone, mut at) = (Vec::new(), 1);
            while at < places.len() {
                if referred.iter().any(|address| is_same_place(address, &places[at].address)) {
                    at += 1;
                } else {
                    gone.push(places.remove(at));
                }
            }
            let mut new: Vec<FabricAddress> = Vec::new();
            for address in referred {
                let is_known = places.iter().map(|place| &place.address).chain(&new);
                if !is_known.into_iter().any(|known| is_same_place(known, &address)) {
                    new.push(address);
                }
            }
            let room = MAX_PLACES.saturating_sub(places.len());
            if new.len() > room {
                warn!("referrals are passed over name={} count={}", self.params.name, new.len() - room);
                new.truncate(room);
            }
            (gone, new)
        };
        let gone: Vec<Rc<Controller>> = gone.into_iter().filter_map(|place| place.controller).collect();
        if let Some(registry) = self.registry.upgrade()
            && !gone.is_empty()
        {
            registry.detach(&gone, || {});
        }
        new.into_iter().for_each(|address| self.add_place(address));
    }

    /// Paths that no page tells of any more are detached.
    fn forget_paths(&self, told: &[LogEntry]) {
        let gone: Vec<Path> = {
            let mut paths = self.paths.borrow_mut();
            let is_told = |path: &Path| told.iter().any(|entry| entry.address == path.address);
            let (kept, gone) = paths.drain(..).partition(is_told);
            *paths = kept;
            gone
        };
        let Some(registry) = self.registry.upgrade() else { return };
        for path in gone {
            info!("path is not told of any more name={} traddr={}", path.name, path.address.traddr);
            self.publish(&path, HotplugChange::Removed);
            // Not by an order: its devices may come back.
            if let Some(controller) = path.controller(&registry) {
                controller.on(Event::Delete);
            }
        }
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
        let mut numbered = (0..=2 * MAX_ENTRIES).map(|number| format!("{}{number}", self.params.name));
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
    fn retry_later(&self) {
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

    /// Whoever waits for the first attachments is told when all of them have ended.
    fn check_waiting(&self) {
        let is_over = {
            let (places, paths) = (self.places.borrow(), self.paths.borrow());
            // The first place is waited for; another may be out of reach.
            let has_begun = places.first().is_some_and(|place| {
                let is_serving = |c: &Rc<Controller>| c.state.get() == State::Ready;
                place.is_settled && place.controller.as_ref().is_some_and(is_serving)
            });
            let is_settled = places.iter().all(|place| place.is_settled && place.reading == Reading::No);
            let is_open = |path: &Path| matches!(path.state, PathState::Wanted | PathState::Attaching);
            has_begun && is_settled && !paths.iter().any(is_open)
        };
        if is_over {
            self.answer(Ok(()));
        }
    }

    fn publish(&self, path: &Path, change: HotplugChange) {
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

    fn describe(&self) -> Value {
        let places = self.places.borrow();
        let of = |place: &Place| {
            let name = transport_name(place.address.trtype).unwrap_or(&self.params.trtype);
            let controller = place.controller.as_ref();
            let state = controller.map_or("connecting", |controller| controller.state.get().as_str());
            let mut told = json!({ "trid": trid(name, &place.address), "state": state });
            let reason = controller.map(|controller| controller.last_error.borrow().clone());
            if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
                told["reason"] = reason.into();
            }
            told
        };
        let mut all = places.first().map_or_else(|| json!({}), of);
        all["name"] = self.params.name.clone().into();
        all["referrals"] = places.iter().skip(1).map(of).collect();
        let paths = self.paths.borrow();
        let path = |path: &Path| {
            let name = transport_name(path.address.trtype).unwrap_or("unknown");
            json!({
                "name": path.name,
                "trid": trid(name, &path.address),
                "state": path.state.as_str(),
                "secure_channel": path.is_secure,
            })
        };
        all["paths"] = paths.iter().map(path).collect();
        all
    }
}

impl Path {
    /// Its controller, if that is the service's. By address: the number is not known while it is being attached.
    fn controller(&self, registry: &Registry) -> Option<Rc<Controller>> {
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

/// Places are told apart by address: a referral may have no NQN, or that of all discovery services.
fn is_same_place(a: &FabricAddress, b: &FabricAddress) -> bool {
    a.traddr == b.traddr && a.trsvcid == b.trsvcid
}

/// The name of a transport, by its number in the log page.
fn transport_name(trtype: u8) -> Option<&'static str> {
    match TransportType(trtype) {
        TransportType::TCP => Some("TCP"),
        TransportType::RDMA => Some("RDMA"),
        TransportType::LOOP => Some("LOOP"),
        _ => None,
    }
}

/// Discovery services of one host.
const MAX_SERVICES: usize = 16;
/// Places where one service is asked.
const MAX_PLACES: usize = 16;
/// Pause between two attempts to reach a place.
const RECONNECT_SEC: u32 = 1;
/// Longest pause before what failed is tried again.
const MAX_RETRY_SEC: u64 = 10;
const EALREADY: i32 = -114;
