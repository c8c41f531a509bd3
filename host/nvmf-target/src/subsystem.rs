//! Subsystems: what they are, how they come, pause and go.
//!
//! The record is the control reactor's; reactors have a view of it
//! (`queue::view`) that is made before the subsystem is announced and taken
//! away after its last queue. Namespaces, hosts and listeners have files of
//! their own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvme_spec::nqn;
use nvme_spec::text::AsciiField;
use tenon_abi::transport::CloseReason;
use tenon_bdev::QosLimits;
use tenon_reactor::TimerId;

use crate::ana::ListenerUse;
use crate::config::{HostKeys, MAX_NAMESPACES, SubsystemSpec};
use crate::controller::Controller;
use crate::error::TargetError;
use crate::limits::HostLimiter;
use crate::namespace::Namespace;
use crate::queue::interface::{Access, SubsystemId};
use crate::target::Target;

/// Where a subsystem is in its life.
///
/// ```text
/// Starting ──ReactorsKnow──► Active ──Pause──► Paused ──Resume──► Active
///     any ──Delete──► Going
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsystemState {
    /// Reactors are being told.
    Starting,
    /// In service.
    Active,
    /// I/O commands are held.
    Paused,
    /// Being deleted.
    Going,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubsystemEvent {
    ReactorsKnow,
    Pause,
    Resume,
    Delete,
}

impl SubsystemState {
    /// What follows; `None` if the event means nothing in this state.
    pub(crate) fn next(self, event: SubsystemEvent) -> Option<Self> {
        use SubsystemEvent::{Delete, Pause, ReactorsKnow, Resume};
        use SubsystemState::{Active, Going, Paused, Starting};
        match (self, event) {
            (Starting, ReactorsKnow) | (Paused, Resume) => Some(Active),
            (Active, Pause) => Some(Paused),
            (Starting | Active | Paused, Delete) => Some(Going),
            (Starting, Pause | Resume)
            | (Active, ReactorsKnow | Resume)
            | (Paused, ReactorsKnow | Pause)
            | (Going, ReactorsKnow | Pause | Resume | Delete) => None,
        }
    }
}

/// A subsystem, as the control reactor knows it.
pub(crate) struct Subsystem {
    pub id: SubsystemId,
    pub nqn: String,
    pub spec: SubsystemSpec,
    pub is_discovery: bool,
    pub state: Cell<SubsystemState>,
    pub allows_any_host: Cell<bool>,
    /// Hosts that may connect, with their keys.
    pub hosts: RefCell<BTreeMap<String, HostKeys>>,
    /// Allowances of hosts that have limits.
    pub limiters: RefCell<BTreeMap<String, Arc<HostLimiter>>>,
    pub namespaces: RefCell<BTreeMap<u32, Namespace>>,
    pub listeners: RefCell<BTreeMap<u64, ListenerUse>>,
    pub controllers: RefCell<BTreeMap<u16, Rc<Controller>>>,
    pub next_cntlid: Cell<u16>,
    /// Changes of ANA states and groups so far.
    pub ana_changes: Cell<u64>,
    pub pause_timer: Cell<Option<TimerId>>,
    /// Called when the last controller is gone.
    pub emptied: RefCell<Vec<Box<dyn FnOnce()>>>,
}

/// A subsystem for reports.
#[derive(Clone, Debug)]
pub struct SubsystemSnapshot {
    /// What it was made from.
    pub spec: SubsystemSpec,
    /// Whether it is the discovery subsystem.
    pub is_discovery: bool,
    /// Where it is in its life.
    pub state: SubsystemState,
    /// Whether any host may connect.
    pub allow_any_host: bool,
    /// Hosts that may.
    pub hosts: Vec<String>,
    /// Their keys, in the same order.
    pub host_keys: Vec<HostKeys>,
    /// Their limits, in the same order.
    pub host_limits: Vec<QosLimits>,
    /// Its namespaces.
    pub namespaces: Vec<crate::namespace::NamespaceSnapshot>,
    /// Its listeners.
    pub listeners: Vec<crate::listener::ListenerSnapshot>,
    /// Its controllers.
    pub controllers: Vec<crate::controller::ControllerSnapshot>,
}

impl Subsystem {
    fn new(id: SubsystemId, spec: SubsystemSpec, is_discovery: bool) -> Self {
        Self {
            id,
            nqn: spec.nqn.clone(),
            is_discovery,
            state: Cell::new(SubsystemState::Starting),
            allows_any_host: Cell::new(spec.allow_any_host),
            hosts: RefCell::default(),
            limiters: RefCell::default(),
            namespaces: RefCell::default(),
            listeners: RefCell::default(),
            controllers: RefCell::default(),
            next_cntlid: Cell::new(spec.min_cntlid),
            ana_changes: Cell::new(0),
            pause_timer: Cell::new(None),
            emptied: RefCell::default(),
            spec,
        }
    }

    pub(crate) fn limits_of(&self, host: &str) -> QosLimits {
        self.limiters.borrow().get(host).map(|limiter| limiter.limits).unwrap_or_default()
    }

    /// Whether a host may connect.
    pub(crate) fn allows(&self, hostnqn: &str) -> bool {
        self.allows_any_host.get() || self.hosts.borrow().contains_key(hostnqn)
    }

    /// What a host sees that came by `listener`.
    pub(crate) fn access(&self, hostnqn: &str, listener: u64) -> Arc<Access> {
        let mut access = Access::default();
        for (nsid, namespace) in self.namespaces.borrow().iter() {
            if namespace.is_visible_to(hostnqn) {
                access.show(*nsid);
            }
        }
        if let Some(used) = self.listeners.borrow().get(&listener) {
            access.ana = used.ana_states(self.spec.max_namespaces);
        }
        Arc::new(access)
    }

    pub(crate) fn advance(&self, event: SubsystemEvent) -> bool {
        match self.state.get().next(event) {
            Some(next) => {
                self.state.set(next);
                true
            }
            None => false,
        }
    }

    /// A controller identifier nobody has.
    pub(crate) fn free_cntlid(&self) -> Option<u16> {
        let controllers = self.controllers.borrow();
        let (min, max) = (self.spec.min_cntlid, self.spec.max_cntlid);
        let start = self.next_cntlid.get().clamp(min, max);
        let free = (start..=max).chain(min..start).find(|cntlid| !controllers.contains_key(cntlid))?;
        self.next_cntlid.set(if free >= max { min } else { free + 1 });
        Some(free)
    }
}

impl Target {
    /// Makes an NVM subsystem.
    pub fn create_subsystem(
        &self,
        spec: SubsystemSpec,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let checked = self.check_running().and_then(|()| spec.check()).and_then(|()| {
            let subsystems = self.inner.subsystems.borrow();
            if subsystems.values().any(|subsystem| subsystem.nqn == spec.nqn) {
                return Err(TargetError::SubsystemExists(spec.nqn.clone()));
            }
            let limit = self.inner.max_subsystems.get();
            if subsystems.len() > limit {
                return Err(TargetError::TooMany { object: "subsystems".into(), limit });
            }
            Ok(())
        });
        if let Err(error) = checked {
            return self.later(move || done(Err(error)));
        }
        let subsystem = self.insert_subsystem(spec, false);
        let id = subsystem.id;
        self.ask(
            move |side| side.subsystem_added(id),
            move |_| {
                subsystem.advance(SubsystemEvent::ReactorsKnow);
                log::info!("subsystem created nqn={}", subsystem.nqn);
                done(Ok(()));
            },
        );
    }

    pub(crate) fn make_discovery_subsystem(&self) {
        let spec = SubsystemSpec {
            allow_any_host: true,
            model_number: "Tenon Discovery".into(),
            max_namespaces: 1,
            ..SubsystemSpec::new(nqn::DISCOVERY_NQN)
        };
        let subsystem = self.insert_subsystem(spec, true);
        let id = subsystem.id;
        self.ask(
            move |side| side.subsystem_added(id),
            move |_| {
                subsystem.advance(SubsystemEvent::ReactorsKnow);
            },
        );
    }

    fn insert_subsystem(&self, spec: SubsystemSpec, is_discovery: bool) -> Rc<Subsystem> {
        let id = self.next_number();
        let subsystem = Rc::new(Subsystem::new(id, spec, is_discovery));
        self.inner.subsystems.borrow_mut().insert(id, subsystem.clone());
        subsystem
    }

    /// Deletes a subsystem: its connections are closed, its namespaces removed.
    pub fn delete_subsystem(&self, nqn: &str, done: impl FnOnce(Result<(), TargetError>) + 'static) {
        let found = self.subsystem(nqn).and_then(|subsystem| {
            if subsystem.is_discovery {
                return Err(TargetError::invalid(nqn, "the discovery subsystem cannot be deleted"));
            }
            if !subsystem.advance(SubsystemEvent::Delete) {
                return Err(TargetError::SubsystemGoing(nqn.to_owned()));
            }
            Ok(subsystem)
        });
        let subsystem = match found {
            Ok(subsystem) => subsystem,
            Err(error) => return self.later(move || done(Err(error))),
        };
        self.forget_pause_timer(&subsystem);
        let (target, going) = (self.clone(), subsystem.clone());
        self.close_controllers(&subsystem, move || {
            let (after, emptied) = (target.clone(), going.clone());
            target.remove_all_namespaces(&going, move || {
                let listeners: Vec<u64> = emptied.listeners.borrow().keys().copied().collect();
                for listener in after.inner.listeners.borrow_mut().values_mut() {
                    listener.users.remove(&emptied.id);
                }
                after.leave_listeners(listeners, {
                    let (target, subsystem) = (after.clone(), emptied.clone());
                    move || target.forget_subsystem(subsystem, Box::new(done))
                });
            });
        });
    }

    fn forget_subsystem(&self, subsystem: Rc<Subsystem>, done: crate::transports::Done<()>) {
        let (target, id) = (self.clone(), subsystem.id);
        self.ask(
            move |side| side.subsystem_removed(id),
            move |_| {
                target.inner.subsystems.borrow_mut().remove(&id);
                target.publish_psks(&subsystem, true);
                log::info!("subsystem deleted nqn={}", subsystem.nqn);
                target.discovery_changed();
                done(Ok(()));
            },
        );
    }

    /// Ends every controller of a subsystem; `done` when the last is gone.
    pub(crate) fn close_controllers(&self, subsystem: &Rc<Subsystem>, done: impl FnOnce() + 'static) {
        let controllers: Vec<Rc<Controller>> = subsystem.controllers.borrow().values().cloned().collect();
        subsystem.emptied.borrow_mut().push(Box::new(done));
        for controller in controllers {
            self.end_controller(&controller, CloseReason::LOCAL);
        }
        // Connections that have not connected yet find the subsystem going.
        self.check_emptied(subsystem);
    }

    pub(crate) fn check_emptied(&self, subsystem: &Rc<Subsystem>) {
        if subsystem.controllers.borrow().is_empty() {
            for done in subsystem.emptied.take() {
                self.later(done);
            }
        }
    }

    /// Holds I/O commands of a subsystem; `done` when none is with a device. Keep alive, Abort, events,
    /// properties and every admin command are served meanwhile. Resumes by itself after `deadline`, at most
    /// the target's pause deadline.
    pub fn pause_subsystem(
        &self,
        nqn: &str,
        deadline: Duration,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let subsystem = match self.subsystem(nqn) {
            Ok(subsystem) if subsystem.advance(SubsystemEvent::Pause) => subsystem,
            Ok(_) => {
                let error = TargetError::invalid(nqn, "only an active subsystem can be paused");
                return self.later(move || done(Err(error)));
            }
            Err(error) => return self.later(move || done(Err(error))),
        };
        let deadline = deadline.min(self.inner.options.pause_deadline);
        let (target, paused) = (self.clone(), subsystem.clone());
        let timer = tenon_reactor::current().set_timer(deadline, move || {
            paused.pause_timer.set(None);
            log::warn!("pause of subsystem reached its deadline nqn={}", paused.nqn);
            target.resume(&paused, || {});
        });
        subsystem.pause_timer.set(timer.ok());
        log::info!("subsystem paused nqn={}", subsystem.nqn);
        let waits = Rc::new(PauseWait {
            left: Cell::new(self.inner.directory.data().len()),
            done: RefCell::default(),
        });
        *waits.done.borrow_mut() = Some(Box::new(done));
        let number = self.next_number();
        PAUSES.with(|pauses| pauses.borrow_mut().insert(number, waits));
        let id = subsystem.id;
        self.ask(
            move |side| {
                let quiet = {
                    let side = side.clone();
                    move || side.tell_control(move || reactor_is_quiet(number))
                };
                match side.subsystem(id) {
                    Some(view) => {
                        view.is_paused.set(true);
                        view.when_quiet(quiet);
                    }
                    None => quiet(),
                }
            },
            |_| {},
        );
    }

    /// Lets a paused subsystem go on.
    pub fn resume_subsystem(&self, nqn: &str, done: impl FnOnce(Result<(), TargetError>) + 'static) {
        match self.subsystem(nqn) {
            Ok(subsystem) if subsystem.state.get() == SubsystemState::Paused => {
                self.resume(&subsystem, move || done(Ok(())));
            }
            Ok(_) => {
                let error = TargetError::invalid(nqn, "the subsystem is not paused");
                self.later(move || done(Err(error)));
            }
            Err(error) => self.later(move || done(Err(error))),
        }
    }

    fn resume(&self, subsystem: &Rc<Subsystem>, done: impl FnOnce() + 'static) {
        self.forget_pause_timer(subsystem);
        subsystem.advance(SubsystemEvent::Resume);
        log::info!("subsystem resumed nqn={}", subsystem.nqn);
        let id = subsystem.id;
        self.ask(
            move |side| {
                let Some(view) = side.subsystem(id) else { return };
                view.is_paused.set(false);
                for number in side.queue_numbers() {
                    side.with_queue(number, |queue| {
                        if queue.opened.get().is_some_and(|open| open.subsystem.id == id) {
                            queue.resume();
                        }
                    });
                }
            },
            move |_| done(),
        );
    }

    fn forget_pause_timer(&self, subsystem: &Subsystem) {
        if let Some(timer) = subsystem.pause_timer.take() {
            tenon_reactor::current().cancel_timer(timer);
        }
    }

    /// The subsystem of that name, unless it is going.
    pub(crate) fn subsystem(&self, nqn: &str) -> Result<Rc<Subsystem>, TargetError> {
        let found = self.inner.subsystems.borrow().values().find(|subsystem| subsystem.nqn == nqn).cloned();
        let subsystem = found.ok_or_else(|| TargetError::NoSubsystem(nqn.to_owned()))?;
        if subsystem.state.get() == SubsystemState::Going {
            return Err(TargetError::SubsystemGoing(nqn.to_owned()));
        }
        Ok(subsystem)
    }

    pub(crate) fn discovery_subsystem(&self) -> Option<Rc<Subsystem>> {
        self.inner.subsystems.borrow().values().find(|subsystem| subsystem.is_discovery).cloned()
    }

    /// Every subsystem, in the order of their making; the discovery subsystem first.
    pub fn subsystems(&self) -> Vec<SubsystemSnapshot> {
        let subsystems: Vec<Rc<Subsystem>> = self.inner.subsystems.borrow().values().cloned().collect();
        subsystems
            .iter()
            .map(|subsystem| SubsystemSnapshot {
                spec: subsystem.spec.clone(),
                is_discovery: subsystem.is_discovery,
                state: subsystem.state.get(),
                allow_any_host: subsystem.allows_any_host.get(),
                hosts: subsystem.hosts.borrow().keys().cloned().collect(),
                host_keys: subsystem.hosts.borrow().values().cloned().collect(),
                host_limits: subsystem.hosts.borrow().keys().map(|host| subsystem.limits_of(host)).collect(),
                namespaces: subsystem.namespaces.borrow().values().map(Namespace::snapshot).collect(),
                listeners: self.listeners_of(subsystem),
                controllers: subsystem.controllers.borrow().values().map(|c| c.snapshot()).collect(),
            })
            .collect()
    }

    /// Gives every queue of a subsystem what its host may see and use now.
    pub(crate) fn publish_access(&self, subsystem: &Subsystem) {
        for controller in subsystem.controllers.borrow().values() {
            let access = subsystem.access(&controller.association.hostnqn, controller.listener);
            for key in controller.io_queues() {
                let access = access.clone();
                self.tell_queue(key, move |queue| {
                    if let Some(open) = queue.opened.get() {
                        *open.access.borrow_mut() = access;
                    }
                });
            }
        }
    }
}

/// A pause that waits for reactors to have nothing with devices.
struct PauseWait {
    left: Cell<usize>,
    done: RefCell<Option<crate::transports::Done<()>>>,
}

thread_local! {
    /// On the control reactor.
    static PAUSES: RefCell<BTreeMap<u64, Rc<PauseWait>>> = const { RefCell::new(BTreeMap::new()) };
}

fn reactor_is_quiet(number: u64) {
    let Some(wait) = PAUSES.with(|pauses| pauses.borrow().get(&number).cloned()) else { return };
    wait.left.set(wait.left.get() - 1);
    if wait.left.get() == 0 {
        PAUSES.with(|pauses| pauses.borrow_mut().remove(&number));
        if let Some(done) = wait.done.take() {
            done(Ok(()));
        }
    }
}

impl SubsystemSpec {
    /// Whether a subsystem can be made of it.
    ///
    /// # Errors
    /// A value that is none, or out of its range.
    pub fn check(&self) -> Result<(), TargetError> {
        let invalid = |reason: String| Err(TargetError::invalid(format!("subsystem {}", self.nqn), reason));
        if let Err(error) = nqn::validate(&self.nqn) {
            return invalid(error.to_string());
        }
        if AsciiField::<20>::new(&self.serial_number).is_none() {
            return invalid(format!(
                "serial_number {:?} is not 1 to 20 printable characters",
                self.serial_number
            ));
        }
        if AsciiField::<40>::new(&self.model_number).is_none() {
            return invalid(format!(
                "model_number {:?} is not 1 to 40 printable characters",
                self.model_number
            ));
        }
        if !(1..=MAX_NAMESPACES).contains(&self.max_namespaces) {
            return invalid(format!("max_namespaces {} is not 1 to {MAX_NAMESPACES}", self.max_namespaces));
        }
        let zeroes = self.max_write_zeroes_size_kib;
        if zeroes != 0 && (zeroes < 4 || !zeroes.is_power_of_two()) {
            return invalid(format!("max_write_zeroes_size_kib {zeroes} is not a power of two from 4 on"));
        }
        let (min, max) = (self.min_cntlid, self.max_cntlid);
        if min == 0 || min > max || max > nvme_spec::fabrics::CNTLID_MAX {
            let limit = nvme_spec::fabrics::CNTLID_MAX;
            return invalid(format!("controller identifiers {min} to {max} are not within 1 to {limit}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn wrong(change: impl FnOnce(&mut SubsystemSpec), word: &str) {
        let mut spec = SubsystemSpec::new("nqn.2026-01.io.tenon:a");
        change(&mut spec);
        let text = spec.check().expect_err("wrong").to_string();
        assert!(text.contains(word), "{text}");
    }

    #[test]
    fn wrong_values_are_named() {
        assert!(SubsystemSpec::new("nqn.2026-01.io.tenon:a").check().is_ok());
        wrong(|spec| spec.nqn = "iqn.x".into(), "nqn.");
        wrong(|spec| spec.serial_number = "x".repeat(21), "serial_number");
        wrong(|spec| spec.max_namespaces = 0, "max_namespaces 0");
        wrong(|spec| spec.min_cntlid = 0, "controller identifiers 0");
        wrong(|spec| spec.max_cntlid = 0xfff0, "65520");
    }

    #[test]
    fn controller_identifiers_are_not_used_again_at_once() {
        let spec =
            SubsystemSpec { min_cntlid: 5, max_cntlid: 6, ..SubsystemSpec::new("nqn.2026-01.io.tenon:a") };
        let subsystem = Subsystem::new(1, spec, false);
        assert_eq!(subsystem.free_cntlid(), Some(5));
        assert_eq!(subsystem.free_cntlid(), Some(6));
        assert_eq!(subsystem.free_cntlid(), Some(5));
    }
}
