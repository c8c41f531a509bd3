//! A discovery service: what it tells of is attached, what it no longer tells
//! of is detached, for as long as the service is wanted.
//!
//! It is asked by a persistent controller at each of its places: the one an
//! operator named or those announced by multicast DNS (`mdns`), and those that log
//! pages refer to. A place that is not reached is tried again for ever, and what it
//! told of stays attached meanwhile. Subsystems get names by number, in the order in
//! which they are first told of, and keep them. Where it is asked is in `places`,
//! what the pages say is read in `log`, what becomes of it in `paths`.

mod announcements;
mod browser;
mod log;
mod mdns;
mod paths;
mod places;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use ::log::{error, warn};
use nvme_spec::discovery::TransportType;
use nvme_spec::nqn::DISCOVERY_NQN;
use serde_json::{Value, json};
use tenon_sdk::{Error, FabricAddress, Host, HotplugChange, OpToken, Timer};

pub(crate) use self::announcements::service_type;
use self::log::EntryKind;
use self::mdns::Search;
use self::paths::{Path, PathState};
use self::places::{Origin, Place, Reading};
use crate::attach::{Asked, Asking};
use crate::config::{NvmeParams, Timers};
use crate::controller::Controller;
use crate::registry::Registry;
use crate::report::trid;

/// A discovery service.
pub(crate) struct Discovery {
    me: Weak<Discovery>,
    host: Host,
    registry: Weak<Registry>,
    pub(crate) params: NvmeParams,
    /// Of a service that searches its places itself.
    search: Option<Search>,
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
        if let Err(error) = self.check_new_service(&params.name) {
            return token.fail(error);
        }
        let (services, address) = (self.discoveries(), params.address(0));
        if let Some(other) = services.iter().find(|other| other.asks(&address)) {
            let reason = format!("discovery service {} asks this address already", other.params.name);
            return token.fail(Error::new(tenon_sdk::errno::EEXIST, reason).object(&*params.name));
        }
        self.add_wishes(&params);
        let discovery = Discovery::new(self, params, None);
        self.discoveries.borrow_mut().push(Rc::clone(&discovery));
        discovery.start(token);
    }

    /// Refuses one service too many, and a name that one has.
    fn check_new_service(&self, name: &str) -> Result<(), Error> {
        let services = self.discoveries();
        if services.iter().any(|other| other.params.name == name || other.has_found(name)) {
            return Err(Error::exists(name));
        }
        if services.len() >= MAX_SERVICES {
            let reason = format!("there are {MAX_SERVICES} discovery services: no more are possible");
            return Err(Error::no_memory(reason).object(name));
        }
        Ok(())
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
        self.discoveries().iter().flat_map(|discovery| discovery.describe()).collect()
    }
}

impl Discovery {
    fn new(registry: &Rc<Registry>, params: NvmeParams, search: Option<Search>) -> Rc<Self> {
        Rc::new_cyclic(|me| Discovery {
            me: me.clone(),
            host: registry.host,
            registry: Rc::downgrade(registry),
            params,
            search,
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
            *self.waiting.borrow_mut() = Some(Asking::new(token));
            self.arm_attach_timeout();
        } else {
            token.done();
        }
        let address = FabricAddress { subnqn: DISCOVERY_NQN.to_owned(), ..self.params.address(0) };
        self.add_place(address, Origin::Named);
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
        let asked = self.waiting.borrow_mut().take();
        if let Some(error) = asked.as_ref().and_then(|asked| asked.refused()) {
            // One device is no reason to give up all that the service tells of.
            error!("namespace did not become a device discovery={} error=\"{error}\"", self.params.name);
        }
        let token = asked.and_then(|asked| asked.take());
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
        if let Some(browser) = self.search.as_ref().and_then(Search::take_browser) {
            registry.end_browser(browser);
        }
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

    /// Makes what is attached, and where the service is asked, what the pages say.
    fn settle(&self) {
        if self.is_stopping.get() {
            return;
        }
        self.settle_places();
        self.settle_paths();
    }

    /// Whoever waits for the first attachments is told when all of them have ended.
    fn check_waiting(&self) {
        let is_over = {
            let (places, paths) = (self.places.borrow(), self.paths.borrow());
            // The first place is waited for; another may be out of reach.
            let has_begun = places.first().is_some_and(|place| place.is_settled && place.is_serving());
            let is_settled = places.iter().all(|place| place.is_settled && place.reading == Reading::No);
            let is_open = |path: &Path| matches!(path.state, PathState::Wanted | PathState::Attaching);
            has_begun && is_settled && !paths.iter().any(is_open)
        };
        if is_over {
            self.answer(Ok(()));
        }
    }

    /// Each place that is asked for its own sake, with the places and paths that it leads to.
    fn describe(&self) -> Vec<Value> {
        let (places, paths) = (self.places.borrow(), self.paths.borrow());
        let describe = |root: &Place| {
            let led_to = places_from(root, &places);
            let is_told = |path: &&Path| {
                led_to.iter().flat_map(|place| &place.entries).any(|entry| entry.address == path.address)
            };
            let mut all = self.describe_place(root);
            all["name"] = match root.origin {
                Origin::Announced { number } => self.name_of_place(number).into(),
                Origin::Named | Origin::Referred => self.params.name.clone().into(),
            };
            let referred = led_to.iter().filter(|place| !place.is_root());
            all["referrals"] = referred.map(|place| self.describe_place(place)).collect();
            all["paths"] = paths.iter().filter(is_told).map(Path::describe).collect();
            all
        };
        places.iter().filter(|place| place.is_root()).map(describe).collect()
    }

    fn describe_place(&self, place: &Place) -> Value {
        let name = transport_name(place.address.trtype).unwrap_or(&self.params.trtype);
        let controller = place.controller.as_ref();
        let state = controller.map_or("connecting", |controller| controller.state.get().as_str());
        let mut told = json!({ "trid": trid(name, &place.address), "state": state });
        let reason = controller.map(|controller| controller.last_error.borrow().clone());
        if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
            told["reason"] = reason.into();
        }
        told
    }
}

/// A place, and all that pages refer to from there on.
fn places_from<'a>(root: &'a Place, places: &'a [Place]) -> Vec<&'a Place> {
    let mut found = vec![root];
    let mut at = 0;
    while let Some(place) = found.get(at).copied() {
        at += 1;
        for entry in place.entries.iter().filter(|entry| entry.kind == EntryKind::Referral) {
            let referred = places.iter().find(|other| is_same_place(&other.address, &entry.address));
            if let Some(referred) = referred
                && !found.iter().any(|known| is_same_place(&known.address, &referred.address))
            {
                found.push(referred);
            }
        }
    }
    found
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
