//! Controllers: a host's use of a subsystem, from Connect on the admin queue to
//! the last of its queues.
//!
//! Everything but I/O commands is served here, on the control reactor:
//! `connect`, `property`, `identify`, `log`, `features`, `aer`, `keep_alive`.
//! A controller ends when its admin queue does, when its host is silent too
//! long, or when the operator says so; it is gone when its last queue is.

pub(crate) mod aer;
mod connect;
mod features;
mod identify;
mod keep_alive;
mod log;
mod property;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use nvme_spec::admin::{ABORT_NOT_ABORTED, Abort};
use nvme_spec::command::Sqe;
use nvme_spec::fabrics::Disconnect;
use nvme_spec::opcode::{AdminOpcode, FabricsType};
use nvme_spec::property::{ControllerConfiguration, ControllerStatus};
use nvme_spec::status::StatusCode;
use tenon_abi::transport::CloseReason;
use tenon_reactor::TimerId;

use self::aer::Events;
use self::features::Features;
use crate::queue::interface::{Answer, Association, Capsule, ConnectionFacts, QueueKey};
use crate::reservation::report::Notices;
use crate::subsystem::Subsystem;
use crate::target::Target;
use crate::transports::KeepAliveRules;

/// A controller. What changes is borrowed for one step at a time.
pub(crate) struct Controller {
    pub association: Arc<Association>,
    pub subsystem: Rc<Subsystem>,
    pub facts: Arc<ConnectionFacts>,
    pub listener: u64,
    pub admin: QueueKey,
    pub cc: Cell<ControllerConfiguration>,
    pub csts: Cell<ControllerStatus>,
    pub is_ending: Cell<bool>,
    pub keep_alive_rules: KeepAliveRules,
    pub keep_alive_ms: Cell<u32>,
    pub last_seen_ns: Cell<u64>,
    pub keep_alive_timer: Cell<Option<TimerId>>,
    pub made_ns: u64,
    queues: RefCell<BTreeMap<u16, QueueKey>>,
    pub events: RefCell<Events>,
    pub features: RefCell<Features>,
    /// Namespaces that changed since the host read the list; `None`: too many to name.
    pub changed: RefCell<Option<BTreeSet<u32>>>,
    /// What became of reservations, for the host to read.
    pub notices: RefCell<Notices>,
}

/// A controller for reports.
#[derive(Clone, Debug)]
pub struct ControllerSnapshot {
    /// Controller identifier.
    pub cntlid: u16,
    /// Its host.
    pub hostnqn: String,
    /// Identifier of its host.
    pub hostid: String,
    /// Where the host is.
    pub peer: String,
    /// I/O queues.
    pub num_io_queues: usize,
    /// Keep-alive time-out in milliseconds; 0: none.
    pub keep_alive_timeout_ms: u32,
    /// Whether the host has enabled it.
    pub is_ready: bool,
    /// Whether it goes as soon as its connections are drained.
    pub is_ending: bool,
}

impl Controller {
    pub(crate) fn cntlid(&self) -> u16 {
        self.association.cntlid
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.csts.get().contains(ControllerStatus::RDY)
    }

    pub(crate) fn queue(&self, qid: u16) -> Option<QueueKey> {
        self.queues.borrow().get(&qid).copied()
    }

    pub(crate) fn io_queues(&self) -> Vec<QueueKey> {
        self.queues.borrow().iter().filter(|(qid, _)| **qid != 0).map(|(_, key)| *key).collect()
    }

    pub(crate) fn numbered_queues(&self) -> Vec<(u16, QueueKey)> {
        self.queues.borrow().iter().map(|(qid, key)| (*qid, *key)).collect()
    }

    pub(crate) fn all_queues(&self) -> Vec<QueueKey> {
        self.queues.borrow().values().copied().collect()
    }

    pub(crate) fn snapshot(&self) -> ControllerSnapshot {
        ControllerSnapshot {
            cntlid: self.cntlid(),
            hostnqn: self.association.hostnqn.to_string(),
            hostid: self.association.hostid.to_string(),
            peer: self.facts.peer.clone(),
            num_io_queues: self.io_queues().len(),
            keep_alive_timeout_ms: self.keep_alive_ms.get(),
            is_ready: self.is_ready(),
            is_ending: self.is_ending.get(),
        }
    }
}

impl Target {
    /// Serves a command that a queue forwarded; `None` if it is answered later.
    pub(crate) fn serve(&self, capsule: Capsule) -> Option<Answer> {
        let fctype = capsule.sqe.fabrics_type();
        if fctype == Some(FabricsType::CONNECT) {
            return Some(self.connect(&capsule));
        }
        let record = self.inner.queues.borrow().get(&capsule.facts.key).copied();
        let controller = record.and_then(|record| {
            let subsystem = self.inner.subsystems.borrow().get(&record.subsystem).cloned()?;
            let controller = subsystem.controllers.borrow().get(&record.cntlid).cloned()?;
            Some((controller, record.qid))
        });
        let Some((controller, qid)) = controller else {
            return Some(Answer::refuse(StatusCode::COMMAND_SEQUENCE_ERROR));
        };
        match fctype {
            Some(FabricsType::AUTHENTICATION_SEND) => self.authentication_send(&controller, &capsule),
            Some(FabricsType::AUTHENTICATION_RECEIVE) => {
                Some(self.authentication_receive(&controller, &capsule))
            }
            Some(fctype) => Some(self.serve_fabrics(&controller, qid, fctype, &capsule.sqe)),
            None if qid != 0 => self.reservation_command(&controller, &capsule),
            None => self.serve_admin(&controller, capsule),
        }
    }

    fn serve_fabrics(&self, controller: &Rc<Controller>, qid: u16, fctype: FabricsType, sqe: &Sqe) -> Answer {
        match fctype {
            FabricsType::PROPERTY_GET if qid == 0 => self.property_get(controller, sqe),
            FabricsType::PROPERTY_SET if qid == 0 => self.property_set(controller, sqe),
            FabricsType::DISCONNECT if qid == 0 => Answer::refuse(StatusCode::DISCONNECT_INVALID_QUEUE_TYPE),
            FabricsType::DISCONNECT if sqe.view::<Disconnect>().recfmt.get() != 0 => {
                Answer::refuse(StatusCode::CONNECT_INCOMPATIBLE_FORMAT)
            }
            FabricsType::DISCONNECT => Answer { closes: true, ..Answer::ok() },
            _ => Answer::refuse(StatusCode::INVALID_OPCODE),
        }
    }

    fn serve_admin(&self, controller: &Rc<Controller>, capsule: Capsule) -> Option<Answer> {
        let opcode = AdminOpcode(capsule.sqe.opc);
        if opcode == AdminOpcode::KEEP_ALIVE {
            // The arrival itself was noted by the queue.
            return Some(Answer::ok());
        }
        if !controller.is_ready() {
            return Some(Answer::refuse(StatusCode::COMMAND_SEQUENCE_ERROR));
        }
        match opcode {
            AdminOpcode::IDENTIFY => Some(self.identify(controller, &capsule.sqe)),
            AdminOpcode::GET_LOG_PAGE => self.get_log_page(controller, capsule),
            AdminOpcode::GET_FEATURES => Some(self.get_features(controller, &capsule.sqe)),
            AdminOpcode::SET_FEATURES => self.set_features(controller, &capsule),
            AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST => self.event_requested(controller, capsule.ticket),
            AdminOpcode::ABORT => self.abort(controller, &capsule),
            _ => Some(Answer::refuse(StatusCode::INVALID_OPCODE)),
        }
    }

    fn abort(&self, controller: &Rc<Controller>, capsule: &Capsule) -> Option<Answer> {
        let abort: &Abort = capsule.sqe.view();
        let (sqid, cid) = (abort.sqid.get(), abort.victim_cid.get());
        let not_found = Answer::result(u64::from(ABORT_NOT_ABORTED));
        let Some(victim) = controller.queue(sqid) else {
            return Some(Answer::refuse(StatusCode::INVALID_FIELD));
        };
        let (admin, ticket) = (controller.admin, capsule.ticket);
        let Some(control) = self.inner.directory.get(tenon_reactor::ReactorId::CONTROL).cloned() else {
            return Some(not_found);
        };
        let Some(reactor) = self.inner.directory.get(victim.reactor) else { return Some(not_found) };
        let weak_events = sqid == 0;
        // Asked of the reactor, not of the queue: the answer must come though the queue may be gone.
        crate::post::post(reactor, move || {
            let side = crate::queue::side::ReactorSide::current();
            let outcome = side.and_then(|side| {
                side.with_queue(victim.number, |queue| {
                    let event_ticket = weak_events.then(|| queue.ticket_of(cid)).flatten();
                    (event_ticket, event_ticket.is_none() && queue.abort(cid))
                })
            });
            let (event_ticket, is_aborted) = outcome.unwrap_or((None, false));
            crate::post::post(&control, move || {
                let Some(target) = Target::current() else { return };
                let is_event = event_ticket.is_some_and(|event| target.abort_event_request(admin, event));
                let result = if is_aborted || is_event { 0 } else { u64::from(ABORT_NOT_ABORTED) };
                target.answer(admin, ticket, Answer::result(result));
            });
        });
        None
    }

    /// The controller behind an admin queue.
    pub(crate) fn controller_of(&self, key: QueueKey) -> Option<Rc<Controller>> {
        let record = self.inner.queues.borrow().get(&key).copied()?;
        let subsystem = self.inner.subsystems.borrow().get(&record.subsystem).cloned()?;
        subsystem.controllers.borrow().get(&record.cntlid).cloned()
    }

    /// Ends a controller: its connections are closed, and it is gone after the last. Idempotent.
    pub(crate) fn end_controller(&self, controller: &Rc<Controller>, reason: CloseReason) {
        if controller.is_ending.replace(true) {
            return;
        }
        self.stop_keep_alive(controller);
        controller.csts.set(controller.csts.get().without(ControllerStatus::RDY));
        for key in controller.all_queues() {
            self.tell_queue(key, move |queue| queue.close(reason));
        }
    }

    /// Ends the I/O queues of a controller that is reset or shut down.
    pub(crate) fn close_io_queues(&self, controller: &Rc<Controller>) {
        for key in controller.io_queues() {
            self.tell_queue(key, |queue| queue.close(CloseReason::LOCAL));
        }
    }

    /// A connection is gone.
    pub(crate) fn queue_gone(&self, key: QueueKey) {
        self.forget_authentication(key);
        let controller = self.controller_of(key);
        let record = self.inner.queues.borrow_mut().remove(&key);
        let (Some(controller), Some(record)) = (controller, record) else { return };
        controller.queues.borrow_mut().remove(&record.qid);
        if record.qid == 0 {
            self.end_controller(&controller, CloseReason::LOCAL);
        }
        self.check_shutdown(&controller);
        if controller.queues.borrow().is_empty() {
            let subsystem = &controller.subsystem;
            subsystem.controllers.borrow_mut().remove(&record.cntlid);
            ::log::info!(
                "controller gone nqn={} cntlid={} hostnqn={}",
                subsystem.nqn,
                record.cntlid,
                controller.association.hostnqn
            );
            self.check_emptied(subsystem);
        }
    }
}
