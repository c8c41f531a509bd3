//! Log pages.
//!
//! Pages that need what reactors counted are answered later; the rest at once.
//! A page is made whole and then cut to the offset and length asked for.

use std::rc::Rc;

use nvme_spec::admin::{GetLogPage, LogSpecific};
use nvme_spec::command::NSID_ALL;
use nvme_spec::discovery::TransportType;
use nvme_spec::identify::NamespaceList;
use nvme_spec::log::ana::LSP_RETURN_GROUPS_ONLY;
use nvme_spec::log::effects::LogPageSupport;
use nvme_spec::log::health::CriticalWarning;
use nvme_spec::log::{
    AnaGroupDescriptor, AnaLogHeader, CHANGED_NAMESPACES_OVERFLOW, CommandEffects, CommandsSupported,
    EnduranceGroupAggregate, EnduranceGroupInformation, ErrorInformation, FirmwareSlots, HealthInformation,
    LogPageId, LogPagesSupported,
};
use nvme_spec::opcode::{AdminOpcode, FABRICS, IoOpcode};
use nvme_spec::status::StatusCode;
use tenon_reactor::now_ns;
use zerocopy::IntoBytes;

use super::Controller;
use super::aer::EventKind;
use super::features;
use super::identify::{ENDURANCE_GROUP, capacity, firmware_revision};
use crate::queue::command::zeroed;
use crate::queue::execute::OPTIONAL_COMMANDS;
use crate::queue::interface::{Answer, Capsule, ErrorRecord, IoCounts};
use crate::target::Target;

impl Target {
    pub(super) fn get_log_page(&self, controller: &Rc<Controller>, capsule: Capsule) -> Option<Answer> {
        let get: GetLogPage = *capsule.sqe.view();
        let offset = get.lpo.get();
        if !offset.is_multiple_of(4) || get.offset_is_index() || !pages(controller).contains(&get.lid) {
            let code = if pages(controller).contains(&get.lid) {
                StatusCode::INVALID_FIELD
            } else {
                StatusCode::INVALID_LOG_PAGE
            };
            return Some(Answer::refuse(code));
        }
        let is_read = !get.lsp_rae.contains(LogSpecific::RAE);
        let kind = match get.lid {
            LogPageId::CHANGED_NAMESPACES => Some(EventKind::Namespace),
            LogPageId::ANA => Some(EventKind::Ana),
            LogPageId::DISCOVERY => Some(EventKind::Discovery),
            LogPageId::RESERVATION_NOTIFICATION => Some(EventKind::Reservation),
            LogPageId::HEALTH_INFORMATION => Some(EventKind::Temperature),
            _ => None,
        };
        let answer = match get.lid {
            LogPageId::ERROR_INFORMATION | LogPageId::HEALTH_INFORMATION | LogPageId::ENDURANCE_GROUP => {
                self.counted_page(controller, capsule, &get)
            }
            _ => Some(cut(&self.page(controller, &get, is_read), offset, capsule.response_len)),
        };
        let is_refused = answer.as_ref().is_some_and(|answer| answer.status.is_some());
        if let Some(kind) = kind.filter(|_| is_read && !is_refused) {
            self.log_was_read(controller, kind);
        }
        answer
    }

    /// A page of what reactors counted; `None` as it is answered later.
    fn counted_page(
        &self,
        controller: &Rc<Controller>,
        capsule: Capsule,
        get: &GetLogPage,
    ) -> Option<Answer> {
        let (offset, nsid) = (get.lpo.get(), capsule.sqe.nsid.get());
        match get.lid {
            LogPageId::ERROR_INFORMATION => self.error_log(controller, capsule, offset),
            LogPageId::HEALTH_INFORMATION if nsid == 0 || nsid == NSID_ALL => {
                self.health_log(controller, capsule, offset);
            }
            LogPageId::ENDURANCE_GROUP if get.lsi.get() == ENDURANCE_GROUP => {
                self.endurance_log(controller, capsule, offset);
            }
            _ => return Some(Answer::refuse(StatusCode::INVALID_FIELD)),
        }
        None
    }

    /// A page that is known at once, whole.
    fn page(&self, controller: &Rc<Controller>, get: &GetLogPage, is_read: bool) -> Vec<u8> {
        match get.lid {
            // No warning was ever given.
            LogPageId::ENDURANCE_GROUP_AGGREGATE => zeroed::<EnduranceGroupAggregate>().as_bytes().to_vec(),
            LogPageId::SUPPORTED_LOG_PAGES => {
                let mut page: LogPagesSupported = zeroed();
                pages(controller).iter().for_each(|lid| page.set(*lid, LogPageSupport::LSUPP));
                page.as_bytes().to_vec()
            }
            LogPageId::FIRMWARE_SLOT => {
                let mut page: FirmwareSlots = zeroed();
                page.afi = 1;
                page.frs[0] = firmware_revision();
                page.as_bytes().to_vec()
            }
            LogPageId::CHANGED_NAMESPACES => changed_namespaces(controller, is_read),
            LogPageId::RESERVATION_NOTIFICATION => {
                controller.notices.borrow_mut().page(is_read).as_bytes().to_vec()
            }
            LogPageId::COMMANDS_SUPPORTED => effects(controller).as_bytes().to_vec(),
            LogPageId::FEATURES_SUPPORTED => features::supported().as_bytes().to_vec(),
            LogPageId::ANA => {
                let groups_only = get.lsp_rae.lsp() & LSP_RETURN_GROUPS_ONLY != 0;
                ana_log(controller, groups_only)
            }
            _ => self.discovery_log(&controller.association.hostnqn, controller.listener),
        }
    }

    /// Entries of all the controller's queues, the newest first.
    fn error_log(&self, controller: &Rc<Controller>, capsule: Capsule, offset: u64) {
        let (target, trtype) = (self.clone(), self.trtype_of(controller));
        let keys = controller.all_queues();
        self.ask(
            move |side| {
                let own = keys.iter().filter(|key| key.reactor == side.id);
                own.filter_map(|key| side.with_queue(key.number, crate::queue::QueuePair::errors))
                    .flatten()
                    .collect::<Vec<ErrorRecord>>()
            },
            move |records| {
                let mut records: Vec<ErrorRecord> = records.into_iter().flatten().collect();
                records.sort_by_key(|record| std::cmp::Reverse(record.number));
                let mut page = Vec::new();
                for record in records.iter().take(MAX_ERROR_ENTRIES) {
                    let mut entry: ErrorInformation = zeroed();
                    entry.error_count.set(record.number);
                    entry.sqid.set(record.sqid);
                    entry.cid.set(record.cid);
                    entry.status = record.status;
                    entry.parameter_error_location.set(u16::MAX);
                    entry.lba.set(record.lba);
                    entry.nsid.set(record.nsid);
                    entry.trtype = trtype;
                    page.extend_from_slice(entry.as_bytes());
                }
                page.resize(MAX_ERROR_ENTRIES * size_of::<ErrorInformation>(), 0);
                let answer = cut(&page, offset, capsule.response_len);
                target.answer(capsule.facts.key, capsule.ticket, answer);
            },
        );
    }

    /// Counted over all namespaces, by all hosts: the health of a subsystem has no parts.
    fn health_log(&self, controller: &Rc<Controller>, capsule: Capsule, offset: u64) {
        let (target, controller, id) = (self.clone(), controller.clone(), controller.subsystem.id);
        self.ask(
            move |side| side.subsystem(id).map(|view| view.counts()).unwrap_or_default(),
            move |reactors| {
                let mut total = IoCounts::default();
                reactors.iter().for_each(|counts| total.add(counts));
                let mut page: HealthInformation = zeroed();
                page.composite_temperature.set(TEMPERATURE_KELVIN);
                if controller.features.borrow().is_temperature_beyond() {
                    page.critical_warning = CriticalWarning::TEMPERATURE;
                }
                page.available_spare = 100;
                page.available_spare_threshold = 10;
                let units = |bytes: u64| u128::from(bytes.div_ceil(DATA_UNIT_BYTES));
                page.data_units_read.set(units(total.read_bytes));
                page.data_units_written.set(units(total.write_bytes));
                page.host_read_commands.set(u128::from(total.read_commands));
                page.host_write_commands.set(u128::from(total.write_commands));
                page.power_cycles.set(1);
                let hours = (now_ns() - controller.made_ns) / 3_600_000_000_000;
                page.power_on_hours.set(u128::from(hours));
                page.media_errors.set(u128::from(total.media_errors));
                let errors = controller.association.errors.load(std::sync::atomic::Ordering::Relaxed);
                page.error_log_entries.set(u128::from(errors));
                let answer = cut(page.as_bytes(), offset, capsule.response_len);
                target.answer(capsule.facts.key, capsule.ticket, answer);
            },
        );
    }

    /// The one endurance group: what hosts did with all namespaces, on a medium that does not wear.
    fn endurance_log(&self, controller: &Rc<Controller>, capsule: Capsule, offset: u64) {
        let (target, controller, id) = (self.clone(), controller.clone(), controller.subsystem.id);
        self.ask(
            move |side| side.subsystem(id).map(|view| view.counts()).unwrap_or_default(),
            move |reactors| {
                let mut total = IoCounts::default();
                reactors.iter().for_each(|counts| total.add(counts));
                let mut page: EnduranceGroupInformation = zeroed();
                page.available_spare = 100;
                page.available_spare_threshold = 10;
                let units = |bytes: u64| u128::from(bytes.div_ceil(ENDURANCE_UNIT_BYTES));
                page.data_units_read.set(units(total.read_bytes));
                page.data_units_written.set(units(total.write_bytes));
                page.media_units_written.set(units(total.write_bytes));
                page.host_read_commands.set(u128::from(total.read_commands));
                page.host_write_commands.set(u128::from(total.write_commands));
                page.media_errors.set(u128::from(total.media_errors));
                page.total_capacity.set(capacity(&controller));
                let answer = cut(page.as_bytes(), offset, capsule.response_len);
                target.answer(capsule.facts.key, capsule.ticket, answer);
            },
        );
    }

    fn trtype_of(&self, controller: &Controller) -> TransportType {
        let transports = self.inner.transports.borrow();
        let instance = transports.get(&controller.facts.transport);
        TransportType(instance.map_or(0, |instance| instance.shared.trtype))
    }
}

/// The part of a page that was asked for.
fn cut(page: &[u8], offset: u64, length: u32) -> Answer {
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| page.get(offset..)) else {
        return Answer::refuse(StatusCode::INVALID_FIELD);
    };
    let length = rest.len().min(length as usize);
    Answer::data(rest[..length].to_vec())
}

/// The log pages of a controller.
fn pages(controller: &Controller) -> &'static [LogPageId] {
    match (controller.subsystem.is_discovery, controller.subsystem.spec.ana_reporting) {
        (true, _) => &[
            LogPageId::SUPPORTED_LOG_PAGES,
            LogPageId::ERROR_INFORMATION,
            LogPageId::FEATURES_SUPPORTED,
            LogPageId::DISCOVERY,
        ],
        (false, false) => IO_PAGES.split_last().map_or(&[], |(_, rest)| rest),
        (false, true) => IO_PAGES,
    }
}

/// Pages of an I/O controller; the last only with ANA.
const IO_PAGES: &[LogPageId] = &[
    LogPageId::SUPPORTED_LOG_PAGES,
    LogPageId::ERROR_INFORMATION,
    LogPageId::HEALTH_INFORMATION,
    LogPageId::FIRMWARE_SLOT,
    LogPageId::CHANGED_NAMESPACES,
    LogPageId::COMMANDS_SUPPORTED,
    LogPageId::ENDURANCE_GROUP,
    LogPageId::ENDURANCE_GROUP_AGGREGATE,
    LogPageId::FEATURES_SUPPORTED,
    LogPageId::RESERVATION_NOTIFICATION,
    LogPageId::ANA,
];

fn changed_namespaces(controller: &Controller, is_read: bool) -> Vec<u8> {
    let mut page: NamespaceList = zeroed();
    let mut changed = controller.changed.borrow_mut();
    match changed.as_ref() {
        Some(nsids) => page.0.iter_mut().zip(nsids).for_each(|(to, nsid)| to.set(*nsid)),
        None => page.0[0].set(CHANGED_NAMESPACES_OVERFLOW),
    }
    if is_read {
        *changed = Some(Default::default());
    }
    page.as_bytes().to_vec()
}

fn effects(controller: &Controller) -> CommandsSupported {
    let mut page: CommandsSupported = zeroed();
    let of_controller = CommandEffects::CSUPP.with(CommandEffects::SCOPE_CONTROLLER);
    for opcode in [
        AdminOpcode::GET_LOG_PAGE,
        AdminOpcode::IDENTIFY,
        AdminOpcode::ABORT,
        AdminOpcode::SET_FEATURES,
        AdminOpcode::GET_FEATURES,
        AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST,
        AdminOpcode::KEEP_ALIVE,
        AdminOpcode(FABRICS),
    ] {
        page.set_admin(opcode, of_controller);
    }
    // Linux takes a scope at an I/O command for an unusual effect and says so; every one is of a namespace.
    let of_namespace = CommandEffects::CSUPP;
    let changes = of_namespace.with(CommandEffects::LBCC);
    page.set_io(IoOpcode::READ, of_namespace);
    page.set_io(IoOpcode::FLUSH, of_namespace);
    page.set_io(IoOpcode::WRITE, changes);
    for opcode in [
        IoOpcode::RESERVATION_REGISTER,
        IoOpcode::RESERVATION_REPORT,
        IoOpcode::RESERVATION_ACQUIRE,
        IoOpcode::RESERVATION_RELEASE,
    ] {
        page.set_io(opcode, of_namespace);
    }
    let namespaces = controller.subsystem.namespaces.borrow();
    for (opcode, op) in OPTIONAL_COMMANDS {
        let is_hint = opcode == IoOpcode::DATASET_MANAGEMENT;
        if is_hint || namespaces.values().any(|namespace| namespace.io_types & op.bit() != 0) {
            let reads = matches!(opcode, IoOpcode::COMPARE | IoOpcode::VERIFY);
            page.set_io(opcode, if reads { of_namespace } else { changes });
        }
    }
    page
}

fn ana_log(controller: &Controller, groups_only: bool) -> Vec<u8> {
    let subsystem = &controller.subsystem;
    let changes = subsystem.ana_changes.get();
    let mut groups: std::collections::BTreeMap<u32, Vec<u32>> = Default::default();
    for namespace in subsystem.namespaces.borrow().values() {
        if namespace.is_visible_to(&controller.association.hostnqn) {
            groups.entry(namespace.anagrpid).or_default().push(namespace.nsid);
        }
    }
    let access = subsystem.access(&controller.association.hostnqn, controller.listener);
    let mut page = AnaLogHeader::new(changes, groups.len() as u16).as_bytes().to_vec();
    for (group, nsids) in &groups {
        let count = if groups_only { 0 } else { nsids.len() as u32 };
        let descriptor = AnaGroupDescriptor::new(*group, count, changes, access.ana_state(*group));
        page.extend_from_slice(descriptor.as_bytes());
        if !groups_only {
            nsids.iter().for_each(|nsid| page.extend_from_slice(&nsid.to_le_bytes()));
        }
    }
    page
}

/// Entries of the error log page.
pub(super) const MAX_ERROR_ENTRIES: usize = 64;
/// A data unit: 1,000 blocks of 512 bytes.
const DATA_UNIT_BYTES: u64 = 512_000;
/// The unit of an endurance group.
const ENDURANCE_UNIT_BYTES: u64 = 1_000_000_000;
/// Temperature of a device that has none: 25 degrees Celsius.
pub(super) const TEMPERATURE_KELVIN: u16 = 298;
