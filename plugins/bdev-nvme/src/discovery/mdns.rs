//! Discovery services that are found by multicast DNS: every address announced
//! is a place of one [`Discovery`], so that a subsystem several of them tell of is
//! one device with several paths.
//!
//! A place stays when its announcement is gone, by a goodbye or because nobody
//! heard of it in time: what it told of may be in use, and a network that carries
//! no multicast for a while must not cost data. Only one that never told of
//! anything goes with its announcement. Listening is in `browser`, what was heard
//! in `announcements`.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

use ::log::{info, warn};
use serde_json::{Value, json};
use tenon_sdk::{Error, FabricAddress, OpToken, errno};

use super::announcements::{Announcements, service_type};
use super::browser::Browser;
use super::places::{Origin, Place};
use super::{Discovery, is_same_place};
use crate::config::{NvmeParams, Timers};
use crate::controller::Controller;
use crate::registry::Registry;

/// What a service has that searches its places itself.
pub(super) struct Search {
    browser: RefCell<Option<Browser>>,
    next_number: Cell<u32>,
    /// Places that an operator does not want.
    unwanted: RefCell<Vec<FabricAddress>>,
    /// Addresses that were passed over when last looked.
    passed_over: Cell<usize>,
}

impl Registry {
    /// Starts to search discovery services; answers at once, since a search has no end to wait for.
    pub(crate) fn start_mdns_discovery(self: &Rc<Self>, params: NvmeParams, token: OpToken) {
        match self.start_search(params) {
            Ok(()) => token.done(),
            Err(error) => token.fail(error),
        }
    }

    fn start_search(self: &Rc<Self>, params: NvmeParams) -> Result<(), Error> {
        params.check()?;
        params.check_table()?;
        let of_params = |error: Error| error.object(&*params.name);
        Timers::of(&params, &self.config.borrow()).check().map_err(of_params)?;
        self.check_new_service(&params.name)?;
        let svcname = params.svcname.as_deref().unwrap_or_default();
        let service_type = service_type(svcname).map_err(of_params)?;
        for other in self.discoveries() {
            let same = other.params.svcname.as_deref().map(super::announcements::service_type);
            if matches!(same, Some(Ok(same)) if same == service_type) {
                let reason = format!("{} searches {svcname} already", other.params.name);
                return Err(of_params(Error::new(errno::EEXIST, reason)));
            }
        }
        let browser = Browser::start(self.host, service_type, local_ip(&params)).map_err(of_params)?;
        self.add_wishes(&params);
        let search = Search {
            browser: RefCell::new(Some(browser)),
            next_number: Cell::new(0),
            unwanted: RefCell::default(),
            passed_over: Cell::new(0),
        };
        self.discoveries.borrow_mut().push(Discovery::new(self, params, Some(search)));
        // What was heard before there was somebody to be told.
        self.follow_announcements();
        Ok(())
    }

    /// Something is announced that was not, or the other way round.
    pub(crate) fn follow_announcements(&self) {
        self.discoveries().iter().for_each(|discovery| discovery.follow());
    }

    /// Ends a search; what waits for controllers to be gone waits for its threads as well.
    pub(super) fn end_browser(&self, browser: Browser) {
        self.browsers_ending.set(self.browsers_ending.get() + 1);
        browser.end(self.host, || {
            if let Some(registry) = crate::module::registry() {
                registry.browser_ended();
            }
        });
    }

    /// `bdev_nvme_stop_mdns_discovery`.
    pub(crate) fn stop_mdns_discovery(&self, name: &str, token: OpToken) {
        let is_it = |discovery: &Rc<Discovery>| discovery.params.name == name && discovery.search.is_some();
        if self.discoveries().iter().any(is_it) {
            return self.delete(name, token);
        }
        token.fail(Error::new(errno::ENOENT, "no search by multicast DNS has that name").object(name));
    }

    /// `bdev_nvme_stop_discovery`, for what a search found as well.
    pub(crate) fn stop_discovery(&self, name: &str, token: OpToken) {
        for discovery in self.discoveries() {
            if discovery.params.name == name {
                if discovery.search.is_none() {
                    return self.delete(name, token);
                }
                let reason = "it searches by multicast DNS: bdev_nvme_stop_mdns_discovery stops it";
                return token.fail(Error::invalid(reason).object(name));
            }
            match discovery.leave(name) {
                Some(Ok(controllers)) => {
                    info!("discovery service is not wanted any more name={name}");
                    return self.detach(&controllers, move || token.done());
                }
                Some(Err(error)) => return token.fail(error),
                None => {}
            }
        }
        token.fail(Error::not_found(name));
    }

    /// `bdev_nvme_get_mdns_discovery_info`.
    pub(crate) fn describe_searches(&self) -> Value {
        self.discoveries().iter().filter_map(|discovery| discovery.describe_search()).collect()
    }
}

impl Search {
    pub(super) fn take_browser(&self) -> Option<Browser> {
        self.browser.take()
    }

    fn announcements(&self) -> Announcements {
        self.browser.borrow().as_ref().map(Browser::announcements).unwrap_or_default()
    }
}

impl Discovery {
    /// Asks where somebody announces to be asked.
    fn follow(&self) {
        let Some(search) = self.search.as_ref().filter(|_| !self.is_stopping.get()) else { return };
        let announced = search.announcements().addresses();
        self.drop_useless(&announced);
        self.follow_moved(&announced);
        let mut passed_over = 0;
        for address in announced {
            if self.asks(&address) {
                continue;
            }
            if let Some(obstacle) = self.obstacle_to(search, &address) {
                passed_over += 1;
                if passed_over > search.passed_over.get() {
                    warn!(
                        "discovery service is passed over name={} traddr={} reason=\"{obstacle}\"",
                        self.params.name, address.traddr
                    );
                }
                continue;
            }
            let origin = Origin::Announced { number: self.next_number(search) };
            let is_known = {
                let mut places = self.places.borrow_mut();
                let known = places.iter_mut().find(|place| is_same_place(&place.address, &address));
                known.map(|place| place.origin = origin).is_some()
            };
            if !is_known {
                self.add_place(address, origin);
            }
        }
        search.passed_over.set(passed_over);
    }

    /// Places that are not announced any more and never told of anything.
    fn drop_useless(&self, announced: &[FabricAddress]) {
        let mut gone = Vec::new();
        self.places.borrow_mut().retain_mut(|place| {
            let is_announced = announced.iter().any(|address| is_same_place(address, &place.address));
            let stays =
                is_announced || !place.is_announced() || !place.entries.is_empty() || place.is_serving();
            if !stays {
                gone.extend(place.controller.take());
            }
            stays
        });
        self.detach_places(&gone);
    }

    /// Places that have another NQN now, or are reached over another transport, and do not serve by the old one.
    fn follow_moved(&self, announced: &[FabricAddress]) {
        let mut moved: Vec<(FabricAddress, Option<Rc<Controller>>)> = Vec::new();
        for place in self.places.borrow_mut().iter_mut().filter(|place| place.is_announced()) {
            let new = announced.iter().find(|address| is_same_place(address, &place.address));
            if let Some(new) = new.filter(|new| **new != place.address && !place.is_serving()) {
                // What it told of stays until the new one tells something else.
                (place.address, place.reading, place.is_settled) = (new.clone(), super::Reading::No, false);
                moved.push((new.clone(), place.controller.take()));
            }
        }
        for (address, old) in moved {
            self.detach_places(old.as_slice());
            self.ask(address);
        }
    }

    /// Why an address is not asked although it is announced.
    fn obstacle_to(&self, search: &Search, address: &FabricAddress) -> Option<String> {
        if search.unwanted.borrow().iter().any(|unwanted| is_same_place(unwanted, address)) {
            return Some("bdev_nvme_stop_discovery stopped it".to_owned());
        }
        let local = local_ip(&self.params);
        let remote = address.traddr.parse::<IpAddr>().ok();
        if matches!((local, remote), (Some(local), Some(remote)) if local.is_ipv4() != remote.is_ipv4()) {
            return Some("hostaddr is of another address family".to_owned());
        }
        let registry = self.registry.upgrade()?;
        let others = registry.discoveries();
        let mut others = others.iter().filter(|other| other.params.name != self.params.name);
        if let Some(other) = others.find(|other| other.asks(address)) {
            return Some(format!("discovery service {} asks it already", other.params.name));
        }
        let count = self.places.borrow().iter().filter(|place| place.is_announced()).count();
        (count >= MAX_ANNOUNCED).then(|| format!("there are {MAX_ANNOUNCED} already"))
    }

    /// Whether this address is asked because somebody named or announced it.
    pub(super) fn asks(&self, address: &FabricAddress) -> bool {
        let places = self.places.borrow();
        places.iter().any(|place| place.is_root() && is_same_place(&place.address, address))
    }

    /// The number of the next place, by which no service is called.
    fn next_number(&self, search: &Search) -> u32 {
        let services = self.registry.upgrade().map(|registry| registry.discoveries()).unwrap_or_default();
        loop {
            let number = search.next_number.get();
            search.next_number.set(number.wrapping_add(1));
            let name = self.name_of_place(number);
            if !services.iter().any(|service| service.params.name == name) {
                return number;
            }
        }
    }

    pub(super) fn name_of_place(&self, number: u32) -> String {
        format!("{}{number}", self.params.name)
    }

    /// Whether a place that was found is called so.
    pub(super) fn has_found(&self, name: &str) -> bool {
        self.places.borrow().iter().any(|place| self.is_called(place, name))
    }

    fn is_called(&self, place: &Place, name: &str) -> bool {
        matches!(place.origin, Origin::Announced { number } if self.name_of_place(number) == name)
    }

    /// Gives up the place of that name for good; the controllers that are to be detached. `None` if there is none.
    fn leave(&self, name: &str) -> Option<Result<Vec<Rc<Controller>>, Error>> {
        let search = self.search.as_ref()?;
        let at = self.places.borrow().iter().position(|place| self.is_called(place, name))?;
        if search.unwanted.borrow().len() >= MAX_ANNOUNCED {
            let reason = format!("{MAX_ANNOUNCED} are stopped already: stop the search {}", self.params.name);
            return Some(Err(Error::no_memory(reason).object(name)));
        }
        let place = self.places.borrow_mut().remove(at);
        search.unwanted.borrow_mut().push(place.address);
        self.settle_places();
        let mut controllers = self.take_untold();
        controllers.extend(place.controller);
        self.settle();
        // There may be room for another one.
        self.follow();
        Some(Ok(controllers))
    }

    fn describe_search(&self) -> Option<Value> {
        let search = self.search.as_ref()?;
        let announcements = search.announcements();
        let announced = announcements.addresses();
        let places = self.places.borrow();
        let of = |place: &Place| {
            let Origin::Announced { number } = place.origin else { return None };
            let mut told = self.describe_place(place);
            told["name"] = self.name_of_place(number).into();
            let is_announced = announced.iter().any(|address| is_same_place(address, &place.address));
            told["announced"] = is_announced.into();
            Some(told)
        };
        let unasked = announced.iter().filter(|address| !self.asks(address));
        let unasked = unasked.filter_map(|address| {
            let at = format!("{}:{}", address.traddr, address.trsvcid);
            Some(json!({ "name": at, "reason": self.obstacle_to(search, address)? }))
        });
        let unusable = announcements.unusable();
        let unusable = unusable.map(|(name, reason)| json!({ "name": name, "reason": reason }));
        Some(json!({
            "name": self.params.name,
            "svcname": self.params.svcname,
            "referrals": places.iter().filter_map(of).collect::<Value>(),
            "passed_over": unasked.chain(unusable).collect::<Value>(),
        }))
    }
}

/// Whose interface is searched; `None`: all are.
fn local_ip(params: &NvmeParams) -> Option<IpAddr> {
    params.hostaddr.as_deref()?.parse().ok()
}

/// Announced places of one search.
const MAX_ANNOUNCED: usize = 64;
