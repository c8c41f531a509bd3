//! Asynchronous events: requests that wait, events that wait, and the rule that
//! one kind is reported once until its log page is read.

use std::collections::VecDeque;
use std::rc::Rc;

use nvme_spec::completion::StatusField;
use nvme_spec::event::{AsyncEvent, EventType, SmartEvent};
use nvme_spec::features::AsyncEventConfig;
use nvme_spec::log::LogPageId;
use nvme_spec::status::StatusCode;

use super::Controller;
use crate::queue::interface::{Answer, QueueKey};
use crate::subsystem::Subsystem;
use crate::target::Target;

/// What hosts can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    Namespace,
    Ana,
    Discovery,
    Reservation,
    /// A temperature is beyond a threshold that the host has set.
    Temperature,
}

/// Requests and events of one controller.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// Tickets of requests, the oldest first.
    requests: VecDeque<u64>,
    /// Bits of kinds that happened and are not reported.
    pending: u8,
    /// Bits of kinds that were reported and whose log page is not read.
    masked: u8,
}

impl EventKind {
    const ALL: [EventKind; 5] =
        [Self::Namespace, Self::Ana, Self::Discovery, Self::Reservation, Self::Temperature];

    fn bit(self) -> u8 {
        match self {
            Self::Namespace => 1,
            Self::Ana => 2,
            Self::Discovery => 4,
            Self::Reservation => 8,
            Self::Temperature => 16,
        }
    }

    fn event(self) -> AsyncEvent {
        match self {
            Self::Namespace => AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED,
            Self::Ana => AsyncEvent::ANA_CHANGE,
            Self::Discovery => AsyncEvent::DISCOVERY_LOG_CHANGE,
            Self::Reservation => AsyncEvent::RESERVATION_LOG_AVAILABLE,
            Self::Temperature => {
                AsyncEvent::new(EventType::SMART, SmartEvent::TEMPERATURE.0, LogPageId::HEALTH_INFORMATION)
            }
        }
    }

    /// What a host sets to hear of it; nothing for reservations, which have a mask of their own.
    fn enabled_by(self) -> AsyncEventConfig {
        match self {
            Self::Namespace => AsyncEventConfig::NAMESPACE_ATTRIBUTE,
            Self::Ana => AsyncEventConfig::ANA_CHANGE,
            Self::Discovery => AsyncEventConfig::DISCOVERY_LOG_CHANGE,
            Self::Reservation => AsyncEventConfig::EMPTY,
            Self::Temperature => AsyncEventConfig::SMART_TEMPERATURE,
        }
    }
}

impl Events {
    /// A request came; false if there are too many.
    fn request(&mut self, ticket: u64) -> bool {
        let fits = self.requests.len() <= usize::from(AERL_Z);
        if fits {
            self.requests.push_back(ticket);
        }
        fits
    }

    fn happened(&mut self, kind: EventKind) {
        // A kind that is masked is not lost: its log page, unread, tells this change too.
        if self.masked & kind.bit() == 0 {
            self.pending |= kind.bit();
        }
    }

    /// The log page of a kind was read.
    fn read(&mut self, kind: EventKind) {
        self.masked &= !kind.bit();
    }

    /// The next request and event that belong together.
    fn take(&mut self) -> Option<(u64, EventKind)> {
        let kind = EventKind::ALL.into_iter().find(|kind| self.pending & kind.bit() != 0)?;
        let ticket = self.requests.pop_front()?;
        self.pending &= !kind.bit();
        self.masked |= kind.bit();
        Some((ticket, kind))
    }
}

impl Target {
    pub(super) fn event_requested(&self, controller: &Rc<Controller>, ticket: u64) -> Option<Answer> {
        if !controller.events.borrow_mut().request(ticket) {
            return Some(Answer::refuse(StatusCode::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED));
        }
        self.report(controller);
        None
    }

    /// Ends one waiting request because the host aborts it.
    pub(super) fn abort_event_request(&self, admin: QueueKey, ticket: u64) -> bool {
        let Some(controller) = self.controller_of(admin) else { return false };
        let mut events = controller.events.borrow_mut();
        let Some(at) = events.requests.iter().position(|waiting| *waiting == ticket) else { return false };
        events.requests.remove(at);
        drop(events);
        self.answer(admin, ticket, Answer::status(StatusField::new(StatusCode::ABORTED_BY_REQUEST)));
        true
    }

    pub(super) fn abort_event_requests(&self, controller: &Rc<Controller>) {
        let dropped = controller.events.take();
        for ticket in dropped.requests {
            let aborted = Answer::status(StatusField::new(StatusCode::ABORTED_BY_REQUEST));
            self.answer(controller.admin, ticket, aborted);
        }
    }

    /// Something happened that the hosts of a subsystem are told, those by `listener` if one is given.
    pub(crate) fn raise(&self, subsystem: &Subsystem, kind: EventKind, listener: Option<u64>) {
        let controllers: Vec<Rc<Controller>> = subsystem.controllers.borrow().values().cloned().collect();
        for controller in controllers {
            if listener.is_none_or(|listener| listener == controller.listener) {
                self.raise_on(&controller, kind);
            }
        }
    }

    /// A namespace came, went or changed.
    pub(crate) fn namespace_changed(&self, subsystem: &Subsystem, nsid: u32) {
        let controllers: Vec<Rc<Controller>> = subsystem.controllers.borrow().values().cloned().collect();
        for controller in controllers {
            self.namespace_changed_for(&controller, nsid);
        }
    }

    /// A namespace became visible or invisible to one host.
    pub(crate) fn raise_for_host(&self, subsystem: &Subsystem, host: &str, nsid: u32) {
        let controllers: Vec<Rc<Controller>> = subsystem.controllers.borrow().values().cloned().collect();
        for controller in controllers.iter().filter(|controller| *controller.association.hostnqn == *host) {
            self.namespace_changed_for(controller, nsid);
        }
    }

    /// The host read the log page of a kind of event, and wants to hear of the next.
    pub(super) fn log_was_read(&self, controller: &Rc<Controller>, kind: EventKind) {
        controller.events.borrow_mut().read(kind);
        self.report(controller);
    }

    fn namespace_changed_for(&self, controller: &Rc<Controller>, nsid: u32) {
        let mut changed = controller.changed.borrow_mut();
        if let Some(list) = changed.as_mut() {
            list.insert(nsid);
            if list.len() > MAX_CHANGED {
                *changed = None;
            }
        }
        drop(changed);
        self.raise_on(controller, EventKind::Namespace);
    }

    pub(crate) fn raise_on(&self, controller: &Rc<Controller>, kind: EventKind) {
        let enabled = controller.features.borrow().async_events;
        if enabled.contains(kind.enabled_by()) {
            controller.events.borrow_mut().happened(kind);
            self.report(controller);
        }
    }

    fn report(&self, controller: &Rc<Controller>) {
        for _ in EventKind::ALL {
            let next = controller.events.borrow_mut().take();
            let Some((ticket, kind)) = next else { return };
            let result = u64::from(kind.event().to_dw0().get());
            self.answer(controller.admin, ticket, Answer::result(result));
        }
    }
}

/// Asynchronous Event Request Limit, 0's based.
pub(super) const AERL_Z: u8 = 3;
/// Most namespaces the changed namespace list names.
const MAX_CHANGED: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_reported_once_until_its_log_is_read() {
        let mut events = Events::default();
        assert!(events.request(1) && events.request(2));
        events.happened(EventKind::Namespace);
        assert_eq!(events.take(), Some((1, EventKind::Namespace)));
        events.happened(EventKind::Namespace);
        assert_eq!(events.take(), None);
        events.happened(EventKind::Ana);
        assert_eq!(events.take(), Some((2, EventKind::Ana)));
        events.read(EventKind::Namespace);
        events.happened(EventKind::Namespace);
        assert_eq!(events.take(), None, "no request waits");
        assert!(events.request(3));
        assert_eq!(events.take(), Some((3, EventKind::Namespace)));
    }

    #[test]
    fn requests_are_bounded() {
        let mut events = Events::default();
        assert!((0..=u64::from(AERL_Z)).all(|ticket| events.request(ticket)));
        assert!(!events.request(99));
    }
}
