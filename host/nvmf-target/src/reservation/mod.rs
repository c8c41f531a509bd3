//! Reservations: the commands of hosts, one after the other for each namespace.
//!
//! A command is applied to the state ([`state`]), made durable if the state is
//! to outlive the process ([`ptpl`]), shown to every reactor, and only then
//! answered: a host that holds a reservation knows that no other host's command
//! passes any more. Reports and notifications are in [`report`]. Reactors check
//! commands against a view; without a reservation that is one test of a flag.

pub(crate) mod ptpl;
pub(crate) mod report;
pub(crate) mod state;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nvme_spec::command::NSID_ALL;
use nvme_spec::completion::StatusField;
use nvme_spec::features::{ReservationNotificationMask, ReservationPersistence};
use nvme_spec::opcode::IoOpcode;
use nvme_spec::status::StatusCode;

use self::ptpl::PtplError;
use self::state::{Host, Outcome, Request, Reservations};
use crate::controller::Controller;
use crate::error::TargetError;
use crate::queue::interface::{Answer, Capsule, SubsystemId};
use crate::status::refused;
use crate::subsystem::Subsystem;
use crate::target::Target;

/// The reservations of one namespace, and the commands that wait to change them.
pub(crate) struct NamespaceReservations {
    subsystem: SubsystemId,
    nsid: u32,
    uuid: uuid::Uuid,
    /// Where they are kept if they are to outlive the process; absent: they cannot.
    pub file: Option<PathBuf>,
    pub state: RefCell<Reservations>,
    pub mask: Cell<ReservationNotificationMask>,
    waiting: RefCell<VecDeque<Pending>>,
    is_busy: Cell<bool>,
    is_gone: Cell<bool>,
}

/// Hears how a change ended.
type Changed = Box<dyn FnOnce(Result<(), StatusField>)>;

/// A change that waits for its turn.
struct Pending {
    host: Host,
    request: Request,
    done: Changed,
}

/// The reservations of a namespace for reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationSnapshot {
    /// Type as hosts number it; 0: nothing is reserved.
    pub rtype: u8,
    /// Identifier of the host that holds it; absent: none, or every registrant.
    pub holder: Option<uuid::Uuid>,
    /// Identifiers and keys of registered hosts.
    pub registrants: Vec<(uuid::Uuid, u64)>,
    /// Counts changes.
    pub generation: u32,
    /// Whether it outlives the process.
    pub is_persistent: bool,
}

impl NamespaceReservations {
    /// Reservations that nobody can change until [`Target::load_reservations`] has ended.
    pub(crate) fn new(subsystem: SubsystemId, nsid: u32, uuid: uuid::Uuid, file: Option<PathBuf>) -> Self {
        Self {
            subsystem,
            nsid,
            uuid,
            file,
            state: RefCell::default(),
            mask: Cell::new(ReservationNotificationMask::EMPTY),
            waiting: RefCell::default(),
            is_busy: Cell::new(true),
            is_gone: Cell::new(false),
        }
    }

    pub(crate) fn snapshot(&self) -> ReservationSnapshot {
        let state = self.state.borrow();
        let uuid = |host: &Host| uuid::Uuid::from_bytes(*host);
        ReservationSnapshot {
            rtype: state.held.map_or(0, |held| held.rtype.0),
            holder: state.held.and_then(|held| held.by).as_ref().map(uuid),
            registrants: state.registrants.iter().map(|(host, key)| (uuid(host), *key)).collect(),
            generation: state.generation,
            is_persistent: state.is_persistent,
        }
    }

    /// The namespace is taken away: what waits is refused.
    pub(crate) fn end(&self) {
        self.is_gone.set(true);
        for pending in self.waiting.take() {
            (pending.done)(Err(refused(StatusCode::INVALID_NAMESPACE_OR_FORMAT)));
        }
    }
}

impl Target {
    /// Where the reservations of a namespace are kept: where it says, else in the target's folder.
    pub(crate) fn reservation_file(&self, named: Option<&Path>, uuid: uuid::Uuid) -> Option<PathBuf> {
        let in_folder = || {
            let folder = self.inner.options.reservation_folder.as_ref()?;
            (!uuid.is_nil()).then(|| folder.join(format!("{uuid}.json")))
        };
        named.map(Path::to_owned).or_else(in_folder)
    }

    /// Reads what the reservations were when the process ended; commands are taken afterwards.
    pub(crate) fn load_reservations(
        &self,
        slot: &Rc<NamespaceReservations>,
        done: impl FnOnce(Result<(), TargetError>) + 'static,
    ) {
        let Some(file) = slot.file.clone() else {
            slot.is_busy.set(false);
            return done(Ok(()));
        };
        let (target, slot) = (self.clone(), slot.clone());
        let (uuid, object) = (slot.uuid, format!("namespace {}", slot.nsid));
        let loaded = move |loaded: Result<Reservations, PtplError>| match loaded {
            Ok(state) => {
                *slot.state.borrow_mut() = state;
                slot.is_busy.set(false);
                target.next_reservation(&slot);
                done(Ok(()));
            }
            Err(error) => done(Err(TargetError::invalid(object, error.to_string()))),
        };
        self.offload(move || ptpl::load(&file, uuid), loaded);
    }

    /// A reservation command of an I/O queue.
    pub(crate) fn reservation_command(
        &self,
        controller: &Rc<Controller>,
        capsule: &Capsule,
    ) -> Option<Answer> {
        let slot = match visible_slot(controller, capsule.sqe.nsid.get()) {
            Ok(slot) => slot,
            Err(code) => return Some(Answer::refuse(code)),
        };
        if IoOpcode(capsule.sqe.opc) == IoOpcode::RESERVATION_REPORT {
            return Some(report::report(controller, &slot, &capsule.sqe));
        }
        let request = match Request::parse(&capsule.sqe, &capsule.data) {
            Ok(request) => request,
            Err(code) => return Some(Answer::refuse(code)),
        };
        let (target, key, ticket) = (self.clone(), capsule.facts.key, capsule.ticket);
        let done = Box::new(move |result: Result<(), StatusField>| {
            target.answer(key, ticket, result.map_or_else(Answer::status, |()| Answer::ok()));
        });
        self.change_reservations(&slot, controller.association.hostid.0, request, done);
        None
    }

    /// Set Features 83h: for one namespace, or for all that can.
    pub(crate) fn set_persistence(
        &self,
        controller: &Rc<Controller>,
        capsule: &Capsule,
        value: ReservationPersistence,
    ) -> Option<Answer> {
        let nsid = capsule.sqe.nsid.get();
        let is_wanted = value.contains(ReservationPersistence::PTPL);
        let slots = match nsid {
            NSID_ALL => visible_slots(controller).into_iter().filter(|slot| slot.file.is_some()).collect(),
            _ => match visible_slot(controller, nsid) {
                Ok(slot) => vec![slot],
                Err(code) => return Some(Answer::refuse(code)),
            },
        };
        if slots.is_empty() {
            return Some(if is_wanted { Answer::refuse(StatusCode::INVALID_FIELD) } else { Answer::ok() });
        }
        let left = Rc::new(Cell::new(slots.len()));
        let failed = Rc::new(Cell::new(None));
        for slot in slots {
            let (target, key, ticket) = (self.clone(), capsule.facts.key, capsule.ticket);
            let (left, failed) = (left.clone(), failed.clone());
            let done = Box::new(move |result: Result<(), StatusField>| {
                left.set(left.get() - 1);
                failed.set(failed.get().or(result.err()));
                if left.get() == 0 {
                    let answer = failed.get().map_or_else(Answer::ok, Answer::status);
                    target.answer(key, ticket, answer);
                }
            });
            let host = controller.association.hostid.0;
            self.change_reservations(&slot, host, Request::Persist(is_wanted), done);
        }
        None
    }

    /// Changes the reservations of a namespace when those asked for before have ended.
    fn change_reservations(
        &self,
        slot: &Rc<NamespaceReservations>,
        host: Host,
        request: Request,
        done: Changed,
    ) {
        if slot.is_gone.get() {
            return done(Err(refused(StatusCode::INVALID_NAMESPACE_OR_FORMAT)));
        }
        slot.waiting.borrow_mut().push_back(Pending { host, request, done });
        self.next_reservation(slot);
    }

    fn next_reservation(&self, slot: &Rc<NamespaceReservations>) {
        while !slot.is_busy.get() {
            let Some(pending) = slot.waiting.borrow_mut().pop_front() else { return };
            if pending.request.wants_persistence() && slot.file.is_none() {
                (pending.done)(Err(refused(StatusCode::INVALID_FIELD)));
                continue;
            }
            let applied = slot.state.borrow().apply(pending.host, &pending.request);
            match applied {
                Err(code) => (pending.done)(Err(refused(code))),
                Ok(outcome) if outcome.next == *slot.state.borrow() => (pending.done)(Ok(())),
                Ok(outcome) => {
                    slot.is_busy.set(true);
                    self.persist_reservations(slot, outcome, pending.done);
                }
            }
        }
    }

    fn persist_reservations(&self, slot: &Rc<NamespaceReservations>, outcome: Outcome, done: Changed) {
        let concerns_file = outcome.next.is_persistent || slot.state.borrow().is_persistent;
        let Some(file) = slot.file.clone().filter(|_| concerns_file) else {
            return self.publish_reservations(slot, outcome, done);
        };
        let (target, slot) = (self.clone(), slot.clone());
        let (uuid, next) = (slot.uuid, outcome.next.clone());
        let writing = file.clone();
        self.inner.reservation_writes.borrow_mut().insert(file.clone());
        self.offload(
            move || ptpl::store(&file, uuid, &next),
            move |stored| {
                target.inner.reservation_writes.borrow_mut().remove(&writing);
                match stored {
                    Ok(()) => target.publish_reservations(&slot, outcome, done),
                    Err(error) => {
                        ::log::error!("reservation is not kept nsid={} error={error}", slot.nsid);
                        let failed = Err(StatusField::new(StatusCode::INTERNAL_ERROR));
                        target.reservation_changed(&slot, None, done, failed);
                    }
                }
            },
        );
    }

    fn publish_reservations(&self, slot: &Rc<NamespaceReservations>, outcome: Outcome, done: Changed) {
        if slot.is_gone.get() {
            // Another namespace may have its number by now.
            return self.reservation_changed(slot, None, done, Ok(()));
        }
        let view = outcome.next.view();
        let (target, own) = (self.clone(), slot.clone());
        let aborted = outcome.aborted.clone();
        let after = move || target.abort_preempted(&own, aborted, outcome, 0, done);
        if view == slot.state.borrow().view() {
            return after();
        }
        let (id, nsid) = (slot.subsystem, slot.nsid);
        self.ask(
            move |side| {
                if let Some(namespace) = side.subsystem(id).and_then(|subsystem| subsystem.namespace(nsid)) {
                    namespace.set_reservation(view.clone());
                }
            },
            move |_| after(),
        );
    }

    /// Ends the commands of preempted hosts, and waits until no device has one of them.
    fn abort_preempted(
        &self,
        slot: &Rc<NamespaceReservations>,
        hosts: Vec<Host>,
        outcome: Outcome,
        attempts: u32,
        done: Changed,
    ) {
        if hosts.is_empty() || slot.is_gone.get() {
            return self.reservation_changed(slot, Some(outcome), done, Ok(()));
        }
        let (target, own) = (self.clone(), slot.clone());
        let (id, nsid, asked) = (slot.subsystem, slot.nsid, hosts.clone());
        self.ask(
            move |side| side.abort_commands_of(id, nsid, &asked),
            move |left| {
                if left.iter().sum::<usize>() == 0 {
                    return target.reservation_changed(&own, Some(outcome), done, Ok(()));
                }
                if attempts >= MAX_ABORT_WAITS {
                    ::log::error!("commands of preempted hosts do not end nsid={}", own.nsid);
                    let failed = Err(StatusField::new(StatusCode::INTERNAL_ERROR));
                    return target.reservation_changed(&own, Some(outcome), done, failed);
                }
                let again = target.clone();
                let set = tenon_reactor::current().set_timer(ABORT_WAIT, move || {
                    again.abort_preempted(&own, hosts, outcome, attempts + 1, done);
                });
                if set.is_err() {
                    ::log::error!("reservation is not answered: no timer is left");
                }
            },
        );
    }

    /// The last step: the new state counts, hosts are told, and the next change begins.
    fn reservation_changed(
        &self,
        slot: &Rc<NamespaceReservations>,
        outcome: Option<Outcome>,
        done: Changed,
        result: Result<(), StatusField>,
    ) {
        if slot.is_gone.get() {
            return done(Err(refused(StatusCode::INVALID_NAMESPACE_OR_FORMAT)));
        }
        if let Some(outcome) = outcome {
            *slot.state.borrow_mut() = outcome.next;
            let subsystem = self.inner.subsystems.borrow().get(&slot.subsystem).cloned();
            if let Some(subsystem) = subsystem {
                self.notify_hosts(&subsystem, slot, &outcome.notices);
            }
        }
        done(result);
        slot.is_busy.set(false);
        self.next_reservation(slot);
    }

    /// Whether another namespace keeps its reservations in `file`, or one that has gone still writes it.
    pub(crate) fn is_reservation_file_taken(&self, file: &Path) -> bool {
        if self.inner.reservation_writes.borrow().contains(file) {
            return true;
        }
        let subsystems = self.inner.subsystems.borrow();
        let taken = |subsystem: &Rc<Subsystem>| {
            let namespaces = subsystem.namespaces.borrow();
            namespaces.values().any(|namespace| namespace.reservations.file.as_deref() == Some(file))
        };
        subsystems.values().any(taken)
    }
}

/// The reservations of a namespace, if the controller's host sees it.
pub(crate) fn visible_slot(
    controller: &Controller,
    nsid: u32,
) -> Result<Rc<NamespaceReservations>, StatusCode> {
    let namespaces = controller.subsystem.namespaces.borrow();
    let found = namespaces.get(&nsid).filter(|ns| ns.is_visible_to(&controller.association.hostnqn));
    found.map(|namespace| namespace.reservations.clone()).ok_or(StatusCode::INVALID_NAMESPACE_OR_FORMAT)
}

/// Those of every namespace that the controller's host sees.
pub(crate) fn visible_slots(controller: &Controller) -> Vec<Rc<NamespaceReservations>> {
    let namespaces = controller.subsystem.namespaces.borrow();
    let visible = namespaces.values().filter(|ns| ns.is_visible_to(&controller.association.hostnqn));
    visible.map(|namespace| namespace.reservations.clone()).collect()
}

/// How often, and how many times, it is looked whether preempted commands have ended: ten seconds.
const ABORT_WAIT: Duration = Duration::from_millis(1);
const MAX_ABORT_WAITS: u32 = 10_000;
