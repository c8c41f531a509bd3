//! What hosts are told of reservations: the report, and notifications with
//! their log page.

use std::collections::VecDeque;
use std::rc::Rc;

use nvme_spec::command::Sqe;
use nvme_spec::features::ReservationNotificationMask;
use nvme_spec::log::{ReservationNotification, ReservationNotificationType as Notice};
use nvme_spec::reservation::{
    RegisteredControllerExtended, ReservationReport, ReservationStatusExtended, ReservationType,
};
use nvme_spec::status::StatusCode;
use zerocopy::IntoBytes;

use super::NamespaceReservations;
use super::state::{Host, Reservations};
use crate::controller::Controller;
use crate::controller::aer::EventKind;
use crate::queue::command::zeroed;
use crate::queue::interface::Answer;
use crate::subsystem::Subsystem;
use crate::target::Target;

/// Notifications that a controller's host has not read.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    /// Number of the latest; never 0 once there was one.
    count: u64,
    unread: VecDeque<(u64, Notice, u32)>,
}

impl Notices {
    fn push(&mut self, notice: Notice, nsid: u32) {
        self.count = self.count.wrapping_add(1).max(1);
        if self.unread.len() >= MAX_NOTICES {
            // The numbers show the host that it has missed some.
            self.unread.pop_front();
        }
        self.unread.push_back((self.count, notice, nsid));
    }

    /// The log page: the oldest notification, which is gone afterwards if the page is read for good.
    pub(crate) fn page(&mut self, is_read: bool) -> ReservationNotification {
        let mut page: ReservationNotification = zeroed();
        if let Some((number, notice, nsid)) = self.unread.front().copied() {
            page.count.set(number);
            page.notification_type = notice;
            page.available = (self.unread.len() - 1).min(usize::from(u8::MAX)) as u8;
            page.nsid.set(nsid);
        }
        if is_read {
            self.unread.pop_front();
        }
        page
    }
}

impl Target {
    /// Tells hosts what became of their registrations, unless that is masked.
    pub(super) fn notify_hosts(
        &self,
        subsystem: &Rc<Subsystem>,
        slot: &NamespaceReservations,
        notices: &[(Host, Notice)],
    ) {
        let controllers: Vec<Rc<Controller>> = subsystem.controllers.borrow().values().cloned().collect();
        for (host, notice) in notices {
            if slot.mask.get().contains(masked_by(*notice)) {
                continue;
            }
            for controller in controllers.iter().filter(|own| own.association.hostid.0 == *host) {
                controller.notices.borrow_mut().push(*notice, slot.nsid);
                self.raise_on(controller, EventKind::Reservation);
            }
        }
    }
}

/// The bit of the notification mask for a notice.
fn masked_by(notice: Notice) -> ReservationNotificationMask {
    match notice {
        Notice::REGISTRATION_PREEMPTED => ReservationNotificationMask::REGPRE,
        Notice::RESERVATION_RELEASED => ReservationNotificationMask::RESREL,
        _ => ReservationNotificationMask::RESPRE,
    }
}

/// Reservation Report. Over fabrics host identifiers have 128 bits, so there is only the extended form.
pub(super) fn report(controller: &Controller, slot: &NamespaceReservations, sqe: &Sqe) -> Answer {
    let command: &ReservationReport = sqe.view();
    if !command.is_extended() {
        return Answer::refuse(StatusCode::HOST_IDENTIFIER_INCONSISTENT_FORMAT);
    }
    let controllers: Vec<(Host, u16)> = {
        let controllers = controller.subsystem.controllers.borrow();
        controllers.values().map(|other| (other.association.hostid.0, other.cntlid())).collect()
    };
    Answer::data(status(&slot.state.borrow(), &controllers))
}

/// The data of a report: an entry per controller of each registrant, or one without a controller.
fn status(state: &Reservations, controllers: &[(Host, u16)]) -> Vec<u8> {
    let mut entries = Vec::new();
    for (host, key) in &state.registrants {
        let mut own: Vec<u16> =
            controllers.iter().filter(|(id, _)| id == host).map(|(_, own)| *own).collect();
        if own.is_empty() {
            own.push(NO_CONTROLLER);
        }
        for cntlid in own {
            let mut entry: RegisteredControllerExtended = zeroed();
            entry.cntlid.set(cntlid);
            entry.rcsts = u8::from(state.is_holder(host));
            entry.rkey.set(*key);
            entry.hostid = *host;
            entries.push(entry);
        }
    }
    let mut head: ReservationStatusExtended = zeroed();
    head.status.r#gen.set(state.generation);
    head.status.rtype = state.held.map_or(ReservationType::NONE, |held| held.rtype);
    head.status.regctl.set(entries.len().min(usize::from(u16::MAX)) as u16);
    head.status.ptpls = u8::from(state.is_persistent);
    let mut data = head.as_bytes().to_vec();
    entries.iter().for_each(|entry| data.extend_from_slice(entry.as_bytes()));
    data
}

/// Controller identifier of a host that is not connected.
const NO_CONTROLLER: u16 = 0xffff;
/// Most notifications that are kept for a host.
const MAX_NOTICES: usize = 256;

#[cfg(test)]
mod tests {
    use super::super::state::Held;
    use super::*;

    #[test]
    fn notifications_are_read_one_by_one_and_bounded() {
        let mut notices = Notices::default();
        assert_eq!(notices.page(true).notification_type, Notice::EMPTY);
        for nsid in 1..=MAX_NOTICES as u32 + 5 {
            notices.push(Notice::RESERVATION_RELEASED, nsid);
        }
        let first = notices.page(false);
        assert_eq!((first.count.get(), first.nsid.get(), first.available), (6, 6, 255));
        assert_eq!(notices.page(true).count, first.count, "it stays until it is read for good");
        assert_eq!(notices.page(true).count.get(), 7);
    }

    #[test]
    fn a_report_has_every_controller_of_a_registrant() {
        let state = Reservations {
            generation: 3,
            registrants: [([1; 16], 10), ([2; 16], 20)].into(),
            held: Some(Held { rtype: ReservationType::WRITE_EXCLUSIVE, by: Some([1; 16]) }),
            is_persistent: true,
        };
        let data = status(&state, &[([1; 16], 4), ([1; 16], 5), ([3; 16], 6)]);
        assert_eq!(data.len(), 64 * 4);
        assert_eq!((data[0], data[4], data[5], data[9]), (3, 1, 3, 1));
        let entry = |at: usize| (data[64 * at], data[64 * at + 2], data[64 * at + 8], data[64 * at + 16]);
        assert_eq!([entry(1), entry(2), entry(3)], [(4, 1, 10, 1), (5, 1, 10, 1), (0xff, 0, 20, 2)]);
    }
}
