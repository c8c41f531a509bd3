//! Where a discovery service is asked: places, each with a controller of its
//! own, and the reading of their log pages. What is done about what they say is
//! in `paths`.

use std::rc::Rc;

use ::log::{debug, warn};
use tenon_sdk::FabricAddress;

use super::log::{EntryKind, LogEntry, LogReading};
use super::{Discovery, is_same_place, transport_name};
use crate::config::{NvmeParams, Timers};
use crate::controller::admin::Answer;
use crate::controller::state::State;
use crate::controller::{Controller, News};

/// Where the service is asked.
pub(super) struct Place {
    pub(super) address: FabricAddress,
    pub(super) origin: Origin,
    pub(super) controller: Option<Rc<Controller>>,
    pub(super) entries: Vec<LogEntry>,
    pub(super) reading: Reading,
    /// It was read, or could not be reached, at least once.
    pub(super) is_settled: bool,
}

/// Why a service is asked at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// An operator named it.
    Named,
    /// It was announced by multicast DNS.
    Announced {
        /// Of the name by which operators know it.
        number: u32,
    },
    /// A log page refers to it; it goes when none does.
    Referred,
}

/// Whether a place's page is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    No,
    Yes,
    /// It has changed meanwhile.
    YesAndAgain,
}

impl Discovery {
    pub(super) fn add_place(&self, address: FabricAddress, origin: Origin) {
        let place = Place {
            address: address.clone(),
            origin,
            controller: None,
            entries: Vec::new(),
            reading: Reading::No,
            is_settled: false,
        };
        self.places.borrow_mut().push(place);
        self.ask(address);
    }

    /// Makes the controller of a place that has none.
    pub(super) fn ask(&self, address: FabricAddress) {
        let Some(registry) = self.registry.upgrade() else { return };
        let trtype = transport_name(address.trtype).unwrap_or(&self.params.trtype).to_owned();
        let (me, at) = (self.me.clone(), address.clone());
        let asked = self.host.transport(&trtype, move |transport| {
            let Some(discovery) = me.upgrade() else { return };
            let is_wanted = discovery.place(&at, |_| ()).is_some() && !discovery.is_stopping.get();
            match transport {
                Ok(transport) if is_wanted => {
                    let params = NvmeParams {
                        trtype: transport.name().to_owned(),
                        traddr: at.traddr.clone(),
                        trsvcid: Some(at.trsvcid.clone()),
                        subnqn: at.subnqn.clone(),
                        svcname: None,
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

    pub(super) fn place<R>(&self, address: &FabricAddress, with: impl FnOnce(&mut Place) -> R) -> Option<R> {
        self.places.borrow_mut().iter_mut().find(|place| place.address == *address).map(with)
    }

    pub(super) fn place_failed(&self, address: &FabricAddress, reason: &str) {
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
    pub(super) fn read(&self, address: &FabricAddress, controller: &Controller) {
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

    /// Places that no page refers to any more go, new ones come.
    pub(super) fn settle_places(&self) {
        let (gone, new) = {
            let mut places = self.places.borrow_mut();
            let referred: Vec<FabricAddress> = places
                .iter()
                .flat_map(|place| &place.entries)
                .filter(|entry| entry.kind == EntryKind::Referral)
                .map(|entry| entry.address.clone())
                .collect();
            let is_wanted = |place: &Place| {
                place.is_root() || referred.iter().any(|address| is_same_place(address, &place.address))
            };
            let (kept, gone): (Vec<Place>, Vec<Place>) = places.drain(..).partition(is_wanted);
            *places = kept;
            let mut new: Vec<FabricAddress> = Vec::new();
            for address in referred {
                let is_known = places.iter().map(|place| &place.address).chain(&new);
                if !is_known.into_iter().any(|known| is_same_place(known, &address)) {
                    new.push(address);
                }
            }
            let counted = places.iter().filter(|place| !place.is_announced()).count();
            let room = MAX_PLACES.saturating_sub(counted);
            if new.len() > room {
                warn!("referrals are passed over name={} count={}", self.params.name, new.len() - room);
                new.truncate(room);
            }
            (gone, new)
        };
        let gone: Vec<Rc<Controller>> = gone.into_iter().filter_map(|place| place.controller).collect();
        self.detach_places(&gone);
        new.into_iter().for_each(|address| self.add_place(address, Origin::Referred));
    }

    /// Controllers of places that are not asked any more go.
    pub(super) fn detach_places(&self, controllers: &[Rc<Controller>]) {
        if let Some(registry) = self.registry.upgrade()
            && !controllers.is_empty()
        {
            registry.detach(controllers, || {});
        }
    }
}

impl Place {
    /// It is asked for its own sake.
    pub(super) fn is_root(&self) -> bool {
        self.origin != Origin::Referred
    }

    pub(super) fn is_announced(&self) -> bool {
        matches!(self.origin, Origin::Announced { .. })
    }

    /// Its service is connected.
    pub(super) fn is_serving(&self) -> bool {
        self.controller.as_ref().is_some_and(|controller| controller.state.get() == State::Ready)
    }
}

/// Places where one service is asked, beside those that are announced.
const MAX_PLACES: usize = 16;
/// Pause between two attempts to reach a place.
const RECONNECT_SEC: u32 = 1;
