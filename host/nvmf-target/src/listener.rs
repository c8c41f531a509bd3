//! Listeners: addresses that a transport accepts connections on, and which
//! subsystems are reached through them. In which ANA state is in `ana`.
//!
//! An address is listened on once, for all subsystems that use it. Removing a
//! subsystem's use closes the connections to it that came by it.
// UNSAFETY: calls the transport's table with borrowed texts, as the contract has it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use nvme_spec::discovery::AddressFamily;
use nvme_spec::log::AnaState;
use tenon_abi::Str;
use tenon_abi::transport::target::DiscoveryInfo;
use tenon_abi::transport::{CloseReason, TransportId};
use tenon_bdev::OpError;

use crate::ana::ListenerUse;
use crate::config::Address;
use crate::controller::Controller;
use crate::error::TargetError;
use crate::subsystem::{Subsystem, SubsystemState};
use crate::target::Target;
use crate::transports::Done;

/// An address that is listened on.
pub(crate) struct TargetListener {
    pub number: u64,
    /// Number in the discovery log.
    pub port: u16,
    pub transport: u64,
    pub address: Address,
    pub is_secure: bool,
    /// Subsystems that use it.
    pub users: BTreeSet<u64>,
    state: ListenerState,
    /// Who wants to know whether it listens.
    waiting: Vec<Done<u64>>,
}

/// Where a listener is in its life: one way, from left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListenerState {
    Starting,
    Listening,
    Stopping,
}

/// A listener of a subsystem for reports.
#[derive(Clone, Debug)]
pub struct ListenerSnapshot {
    /// Where.
    pub address: Address,
    /// Whether the channel is secured.
    pub is_secure: bool,
    /// State of each ANA group, from 1 on.
    pub ana_states: Vec<(u32, AnaState)>,
    /// State of groups that have none of their own.
    pub default_ana_state: AnaState,
}

impl Target {
    /// Makes a subsystem reachable at an address; listens there if nobody does yet.
    pub fn add_listener(
        &self,
        nqn: &str,
        address: &Address,
        is_secure: bool,
        ana_state: AnaState,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let checked = self.check_running().and_then(|()| self.check_listener(nqn, address));
        let (subsystem, existing) = match checked {
            Ok(checked) => checked,
            Err(error) => return self.later(move || done(Err(error))),
        };
        let target = self.clone();
        let finish = move |result: Result<u64, TargetError>| {
            let number = match result {
                Ok(number) => number,
                Err(error) => return done(Err(error)),
            };
            if subsystem.state.get() == SubsystemState::Going {
                return target.leave_listeners(vec![number], move || {
                    done(Err(TargetError::SubsystemGoing(subsystem.nqn.clone())));
                });
            }
            if let Some(listener) = target.inner.listeners.borrow_mut().get_mut(&number) {
                listener.users.insert(subsystem.id);
            }
            let set = target.next_number();
            subsystem.listeners.borrow_mut().insert(number, ListenerUse::new(ana_state, set));
            target.watch_transition(&subsystem, number, set, ana_state);
            log::info!("listener added nqn={}", subsystem.nqn);
            target.discovery_changed();
            done(Ok(()));
        };
        match existing {
            Some(number) => self.when_listening(number, Box::new(finish)),
            None => self.listen(address, is_secure, Box::new(finish)),
        }
    }

    /// Ends a subsystem's use of an address; its connections that came by it are closed.
    pub fn remove_listener(
        &self,
        nqn: &str,
        address: &Address,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let found = self.subsystem_listener(nqn, address);
        let (subsystem, number) = match found {
            Ok(found) => found,
            Err(error) => return self.later(move || done(Err(error))),
        };
        subsystem.listeners.borrow_mut().remove(&number);
        if let Some(listener) = self.inner.listeners.borrow_mut().get_mut(&number) {
            listener.users.remove(&subsystem.id);
        }
        let controllers: Vec<Rc<Controller>> = subsystem.controllers.borrow().values().cloned().collect();
        for controller in controllers.iter().filter(|controller| controller.listener == number) {
            self.end_controller(controller, CloseReason::LOCAL);
        }
        log::info!("listener removed nqn={nqn} address={address}");
        self.discovery_changed();
        self.leave_listeners(vec![number], move || done(Ok(())));
    }

    pub(crate) fn listeners_of(&self, subsystem: &Subsystem) -> Vec<ListenerSnapshot> {
        let listeners = self.inner.listeners.borrow();
        let used = subsystem.listeners.borrow();
        used.iter()
            .filter_map(|(number, used)| {
                let listener = listeners.get(number)?;
                let groups = 1..=subsystem.spec.max_namespaces;
                Some(ListenerSnapshot {
                    address: listener.address.clone(),
                    is_secure: listener.is_secure,
                    ana_states: groups.map(|group| (group, used.ana_state(group))).collect(),
                    default_ana_state: used.default_state(),
                })
            })
            .collect()
    }

    /// Where the target can be reached by TCP, by number of the listener.
    pub(crate) fn tcp_listeners(&self) -> BTreeMap<u64, Address> {
        let listeners = self.inner.listeners.borrow();
        let is_open = |listener: &&TargetListener| {
            listener.state == ListenerState::Listening && !listener.users.is_empty()
        };
        let by_tcp =
            listeners.values().filter(is_open).filter(|one| one.address.trtype.eq_ignore_ascii_case("tcp"));
        by_tcp.map(|listener| (listener.number, listener.address.clone())).collect()
    }

    fn listener_at(&self, address: &Address) -> Option<u64> {
        let listeners = self.inner.listeners.borrow();
        listeners
            .values()
            .find(|listener| is_same(&listener.address, address))
            .map(|listener| listener.number)
    }

    pub(crate) fn subsystem_listener(
        &self,
        nqn: &str,
        address: &Address,
    ) -> Result<(Rc<Subsystem>, u64), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        let number =
            self.listener_at(address).filter(|number| subsystem.listeners.borrow().contains_key(number));
        let missing =
            || TargetError::NoListener { object: format!("subsystem {nqn}"), address: address.to_string() };
        let number = number.ok_or_else(missing)?;
        Ok((subsystem, number))
    }

    /// Starts to listen at an address nobody listens at.
    fn listen(&self, address: &Address, is_secure: bool, done: Done<u64>) {
        let Some(instance) = self.instance_named(&address.trtype) else {
            let error = TargetError::NoTransport(address.trtype.clone());
            return self.later(move || done(Err(error)));
        };
        let number = self.next_number();
        let ports: BTreeSet<u16> = self.inner.listeners.borrow().values().map(|other| other.port).collect();
        let listener = TargetListener {
            number,
            port: (1..=u16::MAX).find(|port| !ports.contains(port)).unwrap_or(0),
            transport: instance.shared.number,
            address: address.clone(),
            is_secure,
            users: BTreeSet::new(),
            state: ListenerState::Starting,
            waiting: vec![done],
        };
        self.inner.listeners.borrow_mut().insert(number, listener);
        let (target, object) = (self.clone(), format!("listener {address}"));
        let answered = Box::new(move |result: Result<String, OpError>| {
            let waiting = {
                let mut listeners = target.inner.listeners.borrow_mut();
                let Some(listener) = listeners.get_mut(&number) else { return };
                let waiting = std::mem::take(&mut listener.waiting);
                if result.is_ok() {
                    listener.state = ListenerState::Listening;
                } else {
                    listeners.remove(&number);
                }
                waiting
            };
            for done in waiting {
                done(match &result {
                    Ok(_) => Ok(number),
                    Err(source) => {
                        Err(TargetError::Refused { object: object.clone(), source: source.clone() })
                    }
                });
            }
        });
        let options = if is_secure { "{\"secure_channel\":true}" } else { "{}" };
        let shared = instance.shared.clone();
        let address = address.clone();
        self.with_token(answered, move |token| {
            let id = transport_id(shared.trtype, &address);
            // SAFETY: the context is the plugin's; address and options live until the call returns.
            unsafe { (shared.ops().listen)(shared.context(), number, &id, Str::new(options), token) };
        });
    }

    /// Calls `done` once the listener listens.
    fn when_listening(&self, number: u64, done: Done<u64>) {
        let mut listeners = self.inner.listeners.borrow_mut();
        match listeners.get_mut(&number) {
            Some(listener) if listener.state == ListenerState::Starting => listener.waiting.push(done),
            Some(listener) if listener.state == ListenerState::Listening => {
                drop(listeners);
                self.later(move || done(Ok(number)));
            }
            Some(_) | None => {
                let error = TargetError::invalid("listener", "its address is being given up");
                drop(listeners);
                self.later(move || done(Err(error)));
            }
        }
    }

    /// Stops listening where nobody is left, one after the other.
    pub(crate) fn leave_listeners(&self, mut numbers: Vec<u64>, done: impl FnOnce() + 'static) {
        let Some(number) = numbers.pop() else { return self.later(done) };
        let target = self.clone();
        let instance = {
            let mut listeners = self.inner.listeners.borrow_mut();
            let going = listeners
                .get_mut(&number)
                .filter(|listener| listener.users.is_empty() && listener.state == ListenerState::Listening);
            going.and_then(|listener| {
                listener.state = ListenerState::Stopping;
                self.inner.transports.borrow().get(&listener.transport).cloned()
            })
        };
        let Some(instance) = instance else { return self.leave_listeners(numbers, done) };
        let answered = Box::new(move |result: Result<String, OpError>| {
            if let Err(error) = result {
                log::warn!("listener did not stop cleanly error={error}");
            }
            target.inner.listeners.borrow_mut().remove(&number);
            target.leave_listeners(numbers, done);
        });
        let shared = instance.shared.clone();
        self.with_token(answered, move |token| {
            // SAFETY: the context is the plugin's, alive until it is destroyed.
            unsafe { (shared.ops().stop_listen)(shared.context(), number, token) };
        });
    }

    /// What the transport adds to a listener's entries in the discovery log.
    pub(crate) fn discovery_info(&self, number: u64) -> DiscoveryInfo {
        let mut info = DiscoveryInfo { treq: 0, reserved: [0; 7], tsas: [0; 256] };
        let transport = self.inner.listeners.borrow().get(&number).map(|listener| listener.transport);
        let instance = transport.and_then(|number| self.inner.transports.borrow().get(&number).cloned());
        if let Some(instance) = instance {
            let shared = &instance.shared;
            // SAFETY: the context is the plugin's; `info` lives until the call returns.
            let code = unsafe { (shared.ops().listener_discover)(shared.context(), number, &mut info) };
            if code != 0 {
                log::debug!("listener tells nothing for discovery listener={number} code={code}");
            }
        }
        info
    }
}

/// Two ways to write the same place.
fn is_same(one: &Address, other: &Address) -> bool {
    one.trtype.eq_ignore_ascii_case(&other.trtype)
        && one.adrfam.eq_ignore_ascii_case(&other.adrfam)
        && one.traddr == other.traddr
        && one.trsvcid == other.trsvcid
}

/// Address family by the name operators use.
pub(crate) fn family_of(name: &str) -> Option<AddressFamily> {
    Some(match name.to_ascii_lowercase().as_str() {
        "ipv4" => AddressFamily::IPV4,
        "ipv6" => AddressFamily::IPV6,
        "ib" => AddressFamily::INFINIBAND,
        "fc" => AddressFamily::FIBRE_CHANNEL,
        "loop" => AddressFamily::LOOP,
        _ => return None,
    })
}

fn transport_id(trtype: u8, address: &Address) -> TransportId {
    TransportId {
        size: size_of::<TransportId>() as u32,
        trtype,
        adrfam: family_of(&address.adrfam).map_or(0, |family| family.0),
        reserved: 0,
        traddr: Str::new(&address.traddr),
        trsvcid: Str::new(&address.trsvcid),
        subnqn: Str::EMPTY,
    }
}

impl Target {
    fn check_listener(
        &self,
        nqn: &str,
        address: &Address,
    ) -> Result<(Rc<Subsystem>, Option<u64>), TargetError> {
        let subsystem = self.subsystem(nqn)?;
        if self.instance_named(&address.trtype).is_none() {
            return Err(TargetError::NoTransport(address.trtype.clone()));
        }
        if family_of(&address.adrfam).is_none() {
            let reason = format!("address family {:?} is unknown", address.adrfam);
            return Err(TargetError::invalid(format!("listener {address}"), reason));
        }
        let existing = self.listener_at(address);
        if existing.is_some_and(|number| subsystem.listeners.borrow().contains_key(&number)) {
            let object = format!("subsystem {nqn}");
            return Err(TargetError::ListenerExists { object, address: address.to_string() });
        }
        if existing.is_none() && self.inner.listeners.borrow().len() >= MAX_LISTENERS {
            return Err(TargetError::TooMany { object: "listeners".into(), limit: MAX_LISTENERS });
        }
        Ok((subsystem, existing))
    }
}

/// Most addresses listened on.
const MAX_LISTENERS: usize = 1024;
