//! Connect: a connection becomes a queue of a controller, or is told exactly why not.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use nvme_spec::fabrics::{
    AuthenticationRequirements, CNTLID_DYNAMIC, CONNECT_RECFMT, Connect, ConnectAttributes, ConnectData,
    ConnectResult, InvalidParameter,
};
use nvme_spec::property::{ControllerConfiguration, ControllerStatus};
use nvme_spec::status::StatusCode;
use tenon_reactor::now_ns;
use zerocopy::FromBytes;

use super::Controller;
use super::aer::Events;
use super::features::Features;
use crate::auth::psk::is_identity_of;
use crate::queue::interface::{Access, Answer, Association, Capsule, Opening};
use crate::subsystem::{Subsystem, SubsystemState};
use crate::target::{QueueRecord, Target};

/// Offsets of Connect's parameters, for Invalid Parameter Offset.
mod offset {
    pub const QID: u16 = 42;
    pub const SQSIZE: u16 = 44;
    pub const HOSTID: u16 = 0;
    pub const CNTLID: u16 = 16;
    pub const SUBNQN: u16 = 256;
    pub const HOSTNQN: u16 = 512;
}

impl Target {
    pub(crate) fn connect(&self, capsule: &Capsule) -> Answer {
        self.try_connect(capsule).unwrap_or_else(|refusal| {
            log::info!(
                "connect refused peer={} status={:?} result={:#x}",
                capsule.facts.peer,
                refusal.status,
                refusal.result
            );
            refusal
        })
    }

    fn try_connect(&self, capsule: &Capsule) -> Result<Answer, Answer> {
        let in_sqe = |at| Answer::invalid_parameter(InvalidParameter::in_sqe(at));
        let in_data = |at| Answer::invalid_parameter(InvalidParameter::in_data(at));
        let connect: Connect = *capsule.sqe.view();
        if connect.recfmt.get() != CONNECT_RECFMT {
            return Err(Answer::refuse(StatusCode::CONNECT_INCOMPATIBLE_FORMAT));
        }
        let Ok(data) = ConnectData::read_from_bytes(&capsule.data) else {
            return Err(Answer::refuse(StatusCode::DATA_SGL_LENGTH_INVALID));
        };
        let entries = connect.queue_entries();
        let most = u32::from(self.inner.options.max_queue_entries).min(capsule.facts.queue_depth.max(2));
        if entries < 2 || entries > most {
            return Err(in_sqe(offset::SQSIZE));
        }
        let subnqn = data.subnqn.as_str().map_err(|_| in_data(offset::SUBNQN))?;
        let hostnqn = data.hostnqn.as_str().map_err(|_| in_data(offset::HOSTNQN))?;
        if !data.hostid.is_set() {
            return Err(in_data(offset::HOSTID));
        }
        let found = self.inner.subsystems.borrow().values().find(|other| other.nqn == subnqn).cloned();
        let subsystem = found.ok_or_else(|| in_data(offset::SUBNQN))?;
        if self.inner.is_shutting_down.get()
            || matches!(subsystem.state.get(), SubsystemState::Going | SubsystemState::Starting)
        {
            return Err(Answer::status(StatusCode::CONNECT_CONTROLLER_BUSY.into()));
        }
        let listener = capsule.facts.listener;
        let is_reachable = subsystem.is_discovery || subsystem.listeners.borrow().contains_key(&listener);
        let is_secure_enough = capsule.facts.is_secure
            || !self.inner.listeners.borrow().get(&listener).is_some_and(|listener| listener.is_secure);
        let named = (!subsystem.is_discovery).then_some(subnqn);
        let is_own_channel =
            !capsule.facts.is_secure || is_identity_of(&capsule.facts.psk_identity, hostnqn, named);
        if !is_reachable || !is_secure_enough || !is_own_channel || !subsystem.allows(hostnqn) {
            return Err(Answer::refuse(StatusCode::CONNECT_INVALID_HOST));
        }
        if connect.qid.get() == 0 {
            if data.cntlid.get() != CNTLID_DYNAMIC {
                return Err(in_data(offset::CNTLID));
            }
            return self.connect_admin(capsule, &connect, &data, &subsystem, hostnqn);
        }
        if subsystem.is_discovery || connect.qid.get() > self.inner.options.max_io_queues {
            return Err(in_sqe(offset::QID));
        }
        let controller = subsystem.controllers.borrow().get(&data.cntlid.get()).cloned();
        let controller = controller
            .filter(|controller| {
                let own = &controller.association;
                *own.hostnqn == *hostnqn && own.hostid == data.hostid && controller.listener == listener
            })
            .ok_or_else(|| in_data(offset::CNTLID))?;
        if controller.is_ending.get() || !controller.is_ready() {
            return Err(Answer::refuse(StatusCode::COMMAND_SEQUENCE_ERROR));
        }
        if controller.queue(connect.qid.get()).is_some() {
            return Err(in_sqe(offset::QID));
        }
        Ok(self.open_queue(capsule, &connect, &controller))
    }

    fn connect_admin(
        &self,
        capsule: &Capsule,
        connect: &Connect,
        data: &ConnectData,
        subsystem: &Rc<Subsystem>,
        hostnqn: &str,
    ) -> Result<Answer, Answer> {
        let busy = || Answer::status(StatusCode::CONNECT_CONTROLLER_BUSY.into());
        let cntlid = subsystem.free_cntlid().ok_or_else(busy)?;
        let association = Arc::new(Association {
            subsystem: subsystem.id,
            cntlid,
            hostnqn: hostnqn.into(),
            hostid: data.hostid,
            traffic: AtomicBool::new(false),
            errors: AtomicU64::new(0),
            retries_advanced: AtomicBool::new(false),
        });
        let controller = Rc::new(Controller {
            association,
            subsystem: subsystem.clone(),
            facts: capsule.facts.clone(),
            listener: capsule.facts.listener,
            admin: capsule.facts.key,
            cc: Cell::new(ControllerConfiguration::EMPTY),
            csts: Cell::new(ControllerStatus::EMPTY),
            is_ending: Cell::new(false),
            keep_alive_rules: self.keep_alive_rules(capsule.facts.transport),
            keep_alive_ms: Cell::new(0),
            last_seen_ns: Cell::new(now_ns()),
            keep_alive_timer: Cell::new(None),
            made_ns: now_ns(),
            queues: RefCell::new(BTreeMap::new()),
            events: RefCell::new(Events::default()),
            features: RefCell::new(Features::new(&self.inner.options)),
            changed: RefCell::new(Some(Default::default())),
            notices: RefCell::default(),
        });
        subsystem.controllers.borrow_mut().insert(cntlid, controller.clone());
        self.set_keep_alive(&controller, connect.kato_ms.get());
        log::info!("controller made nqn={} cntlid={cntlid} hostnqn={hostnqn}", subsystem.nqn);
        Ok(self.open_queue(capsule, connect, &controller))
    }

    fn open_queue(&self, capsule: &Capsule, connect: &Connect, controller: &Rc<Controller>) -> Answer {
        let (key, qid) = (capsule.facts.key, connect.qid.get());
        let (subsystem, cntlid) = (controller.subsystem.id, controller.cntlid());
        self.inner.queues.borrow_mut().insert(key, QueueRecord { subsystem, cntlid, qid });
        controller.queues.borrow_mut().insert(qid, key);
        let access = match qid {
            0 => Arc::new(Access::default()),
            _ => controller.subsystem.access(&controller.association.hostnqn, controller.listener),
        };
        let needs_authentication =
            self.needs_authentication(&controller.subsystem, &controller.association.hostnqn);
        if needs_authentication {
            self.expect_authentication(key);
        }
        let opening = Opening {
            association: controller.association.clone(),
            qid,
            entries: connect.queue_entries(),
            has_flow_control: !connect.cattr.contains(ConnectAttributes::DISABLE_SQ_FLOW_CONTROL),
            access,
            needs_authentication,
            limiter: match qid {
                0 => None,
                _ => {
                    let limiters = controller.subsystem.limiters.borrow();
                    limiters.get(&*controller.association.hostnqn).cloned()
                }
            },
        };
        let authreq = match needs_authentication {
            true => AuthenticationRequirements::ATR,
            false => AuthenticationRequirements::EMPTY,
        };
        let result = ConnectResult { cntlid: cntlid.into(), authreq }.to_dw0().get();
        Answer { result: u64::from(result), opening: Some(opening), ..Answer::ok() }
    }
}
