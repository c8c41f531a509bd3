//! Features: what a host can set and ask of a controller.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use nvme_spec::admin::{FeatureCapabilities, FeatureSelect, GetFeatures, SetFeatures};
use nvme_spec::command::{NSID_ALL, Sqe};
use nvme_spec::completion::StatusField;
use nvme_spec::features::{
    AsyncEventConfig, EnduranceGroupEvent, FeatureId, HostBehavior, NumberOfQueues,
    ReservationNotificationMask, ReservationPersistence, TemperatureThreshold, ThermalManagement,
    WriteProtection,
};
use nvme_spec::log::effects::{FeatureEffects, FeaturesSupported};
use nvme_spec::status::StatusCode;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

use super::Controller;
use super::aer::EventKind;
use super::identify::{ENDURANCE_GROUP, THROTTLING_KELVIN};
use super::log::TEMPERATURE_KELVIN;
use crate::config::TargetOptions;
use crate::namespace::Namespace;
use crate::queue::command::zeroed;
use crate::queue::interface::{Answer, Capsule};
use crate::reservation::{visible_slot, visible_slots};
use crate::target::Target;

/// What a host has set.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    arbitration: u32,
    power_management: u32,
    temperature_over: u16,
    temperature_under: u16,
    error_recovery: u32,
    write_cache: u32,
    queues_z: u16,
    pub async_events: AsyncEventConfig,
    software_progress: u32,
    /// Advanced Command Retry Enable.
    retries_advanced: u8,
    /// Host Controlled Thermal Management, as a dword.
    thermal_management: u32,
    /// Critical warnings of the endurance group that the host wants to hear of.
    endurance_warnings: u8,
}

impl Features {
    pub(crate) fn new(options: &TargetOptions) -> Self {
        Self {
            arbitration: 0,
            power_management: 0,
            temperature_over: super::identify::WARNING_TEMPERATURE_KELVIN,
            temperature_under: 0,
            error_recovery: 0,
            write_cache: 1,
            queues_z: options.max_io_queues - 1,
            async_events: AsyncEventConfig::EMPTY,
            software_progress: 0,
            retries_advanced: 0,
            thermal_management: 0,
            endurance_warnings: 0,
        }
    }

    /// The value of a feature that is one dword; `None` if it is not.
    fn dword(&self, fid: FeatureId, cdw11: u32) -> Option<u32> {
        Some(match fid {
            FeatureId::ARBITRATION => self.arbitration,
            FeatureId::POWER_MANAGEMENT => self.power_management,
            FeatureId::TEMPERATURE_THRESHOLD => {
                let threshold = TemperatureThreshold::new(cdw11);
                match (threshold.sensor(), threshold.threshold_type()) {
                    (0, 0) => self.temperature_over.into(),
                    (0, 1) => self.temperature_under.into(),
                    _ => return None,
                }
            }
            FeatureId::ERROR_RECOVERY => self.error_recovery,
            FeatureId::VOLATILE_WRITE_CACHE => self.write_cache,
            FeatureId::NUMBER_OF_QUEUES => self.queues(),
            FeatureId::ASYNC_EVENT_CONFIGURATION => self.async_events.get(),
            FeatureId::SOFTWARE_PROGRESS_MARKER => self.software_progress,
            FeatureId::HOST_CONTROLLED_THERMAL_MANAGEMENT => self.thermal_management,
            FeatureId::ENDURANCE_GROUP_EVENT
                if EnduranceGroupEvent::new(cdw11).endurance_group() == ENDURANCE_GROUP =>
            {
                u32::from(self.endurance_warnings) << 16 | u32::from(ENDURANCE_GROUP)
            }
            _ => return None,
        })
    }

    /// Whether the temperature is one that the host wants to hear of.
    pub(super) fn is_temperature_beyond(&self) -> bool {
        TEMPERATURE_KELVIN >= self.temperature_over || TEMPERATURE_KELVIN <= self.temperature_under
    }

    /// Sets a threshold of the one temperature there is; no sensor has one of its own.
    fn set_temperature(&mut self, threshold: TemperatureThreshold) -> Result<(), StatusCode> {
        match (threshold.sensor(), threshold.threshold_type()) {
            (0 | ALL_SENSORS, 0) => self.temperature_over = threshold.kelvin(),
            (0 | ALL_SENSORS, 1) => self.temperature_under = threshold.kelvin(),
            _ => return Err(StatusCode::INVALID_FIELD),
        }
        Ok(())
    }

    fn queues(&self) -> u32 {
        let number = U16::new(self.queues_z);
        NumberOfQueues { nsq_z: number, ncq_z: number }.to_dword().get()
    }
}

impl Target {
    pub(super) fn get_features(&self, controller: &Rc<Controller>, sqe: &Sqe) -> Answer {
        let get: &GetFeatures = sqe.view();
        let fid = get.fid;
        let Some((_, capabilities)) = SUPPORTED.iter().find(|(known, _)| *known == fid) else {
            return Answer::refuse(StatusCode::INVALID_FIELD);
        };
        let defaults = Features::new(&self.inner.options);
        let current = controller.features.borrow();
        let (values, is_default) = match FeatureSelect(get.sel.0 & 0b111) {
            FeatureSelect::CURRENT => (&*current, false),
            FeatureSelect::DEFAULT | FeatureSelect::SAVED => (&defaults, true),
            FeatureSelect::SUPPORTED_CAPABILITIES => return Answer::result(u64::from(capabilities.get())),
            _ => return Answer::refuse(StatusCode::INVALID_FIELD),
        };
        if let Some(value) = values.dword(fid, get.cdw11.get()) {
            return Answer::result(u64::from(value));
        }
        match fid {
            FeatureId::KEEP_ALIVE_TIMER => {
                let timeout_ms = if is_default { 0 } else { controller.keep_alive_ms.get() };
                Answer::result(u64::from(timeout_ms))
            }
            FeatureId::HOST_BEHAVIOR_SUPPORT => {
                let mut behavior: HostBehavior = zeroed();
                behavior.acre = values.retries_advanced;
                Answer::data(zerocopy::IntoBytes::as_bytes(&behavior).to_vec())
            }
            // Of the group and the sensor there are, it has been answered above.
            FeatureId::ENDURANCE_GROUP_EVENT | FeatureId::TEMPERATURE_THRESHOLD => {
                Answer::refuse(StatusCode::INVALID_FIELD)
            }
            FeatureId::HOST_IDENTIFIER => Answer::data(controller.association.hostid.0.to_vec()),
            fid => {
                let nsid = sqe.nsid.get();
                let namespaces = controller.subsystem.namespaces.borrow();
                let visible =
                    namespaces.get(&nsid).filter(|ns| ns.is_visible_to(&controller.association.hostnqn));
                match visible {
                    Some(_) if is_default => Answer::result(0),
                    Some(namespace) => Answer::result(u64::from(of_namespace(namespace, fid))),
                    None => Answer::refuse(StatusCode::INVALID_NAMESPACE_OR_FORMAT),
                }
            }
        }
    }

    /// Sets a feature; `None` if it is answered later.
    pub(super) fn set_features(&self, controller: &Rc<Controller>, capsule: &Capsule) -> Option<Answer> {
        let set: SetFeatures = *capsule.sqe.view();
        let value = set.cdw11.get();
        if !SUPPORTED.iter().any(|(known, _)| *known == set.fid) {
            return Some(Answer::refuse(StatusCode::INVALID_FIELD));
        }
        if set.is_save() {
            return Some(Answer::refuse(StatusCode::FEATURE_NOT_SAVEABLE));
        }
        match set.fid {
            FeatureId::RESERVATION_PERSISTENCE => {
                self.set_persistence(controller, capsule, ReservationPersistence::new(value))
            }
            FeatureId::RESERVATION_NOTIFICATION_MASK => {
                Some(set_notification_mask(controller, capsule.sqe.nsid.get(), value))
            }
            FeatureId::NAMESPACE_WRITE_PROTECTION => {
                Some(self.protect(controller, capsule.sqe.nsid.get(), value))
            }
            fid => Some(self.set_own_feature(controller, capsule, fid, value)),
        }
    }

    /// Sets a feature of the controller itself.
    fn set_own_feature(
        &self,
        controller: &Rc<Controller>,
        capsule: &Capsule,
        fid: FeatureId,
        value: u32,
    ) -> Answer {
        let mut features = controller.features.borrow_mut();
        match fid {
            FeatureId::ARBITRATION => features.arbitration = value,
            FeatureId::POWER_MANAGEMENT if value & 0x1f != 0 => {
                return Answer::refuse(StatusCode::INVALID_FIELD);
            }
            FeatureId::POWER_MANAGEMENT => features.power_management = value,
            FeatureId::TEMPERATURE_THRESHOLD => {
                if let Err(code) = features.set_temperature(TemperatureThreshold::new(value)) {
                    return Answer::refuse(code);
                }
                let is_beyond = features.is_temperature_beyond();
                drop(features);
                if is_beyond {
                    self.raise_on(controller, EventKind::Temperature);
                }
            }
            // No deallocated-block errors are offered, and there is nothing to recover longer.
            FeatureId::ERROR_RECOVERY if value >> 16 != 0 => {
                return Answer::refuse(StatusCode::INVALID_FIELD);
            }
            FeatureId::ERROR_RECOVERY => features.error_recovery = value,
            // The cache is the device's: it cannot be turned off from here.
            FeatureId::VOLATILE_WRITE_CACHE if value & 1 == 0 => {
                return Answer::refuse(StatusCode::FEATURE_NOT_CHANGEABLE);
            }
            FeatureId::VOLATILE_WRITE_CACHE => {}
            FeatureId::NUMBER_OF_QUEUES => return self.set_queues(controller, &mut features, value),
            FeatureId::ASYNC_EVENT_CONFIGURATION => features.async_events = AsyncEventConfig::new(value),
            FeatureId::KEEP_ALIVE_TIMER => {
                drop(features);
                self.set_keep_alive(controller, value);
            }
            FeatureId::HOST_BEHAVIOR_SUPPORT => match HostBehavior::read_from_bytes(&capsule.data) {
                Ok(behavior) if behavior.acre <= 1 => {
                    features.retries_advanced = behavior.acre;
                    controller.association.retries_advanced.store(behavior.acre == 1, Ordering::Relaxed);
                }
                _ => return Answer::refuse(StatusCode::INVALID_FIELD),
            },
            FeatureId::SOFTWARE_PROGRESS_MARKER => features.software_progress = value & 0xff,
            FeatureId::HOST_CONTROLLED_THERMAL_MANAGEMENT => {
                if !is_thermal(ThermalManagement::new(value)) {
                    return Answer::refuse(StatusCode::INVALID_FIELD);
                }
                features.thermal_management = value;
            }
            FeatureId::ENDURANCE_GROUP_EVENT => {
                let event = EnduranceGroupEvent::new(value);
                if event.endurance_group() != ENDURANCE_GROUP {
                    return Answer::refuse(StatusCode::INVALID_FIELD);
                }
                features.endurance_warnings = event.critical_warnings();
            }
            // Over fabrics the identifier is Connect's.
            _ => return Answer::refuse(StatusCode::COMMAND_SEQUENCE_ERROR),
        }
        Answer::ok()
    }

    fn set_queues(&self, controller: &Controller, features: &mut Features, value: u32) -> Answer {
        if !controller.io_queues().is_empty() {
            return Answer::refuse(StatusCode::COMMAND_SEQUENCE_ERROR);
        }
        let asked = NumberOfQueues::from_dword(U32::new(value));
        if asked.nsq_z.get() == u16::MAX || asked.ncq_z.get() == u16::MAX {
            return Answer::refuse(StatusCode::INVALID_FIELD);
        }
        let wanted = asked.nsq_z.get().min(asked.ncq_z.get());
        features.queues_z = wanted.min(self.inner.options.max_io_queues - 1);
        Answer::result(u64::from(features.queues()))
    }

    fn protect(&self, controller: &Rc<Controller>, nsid: u32, value: u32) -> Answer {
        let is_visible = {
            let namespaces = controller.subsystem.namespaces.borrow();
            namespaces.get(&nsid).is_some_and(|ns| ns.is_visible_to(&controller.association.hostnqn))
        };
        if !is_visible {
            return Answer::refuse(StatusCode::INVALID_NAMESPACE_OR_FORMAT);
        }
        let is_protected = match WriteProtection::new(value & 0b111) {
            WriteProtection::NONE => false,
            WriteProtection::WRITE_PROTECT => true,
            _ => return Answer::status(StatusField::new(StatusCode::INVALID_FIELD).with_dnr(true)),
        };
        self.set_write_protection(&controller.subsystem, nsid, is_protected);
        Answer::ok()
    }
}

/// The value of a feature that each namespace has.
fn of_namespace(namespace: &Namespace, fid: FeatureId) -> u32 {
    match fid {
        FeatureId::RESERVATION_NOTIFICATION_MASK => namespace.reservations.mask.get().get(),
        FeatureId::RESERVATION_PERSISTENCE => u32::from(namespace.reservations.state.borrow().is_persistent),
        _ => u32::from(namespace.is_write_protected),
    }
}

fn set_notification_mask(controller: &Controller, nsid: u32, value: u32) -> Answer {
    let slots = match nsid {
        NSID_ALL => visible_slots(controller),
        _ => match visible_slot(controller, nsid) {
            Ok(slot) => vec![slot],
            Err(code) => return Answer::refuse(code),
        },
    };
    let known = ReservationNotificationMask::REGPRE
        .with(ReservationNotificationMask::RESREL)
        .with(ReservationNotificationMask::RESPRE);
    if value & !known.get() != 0 {
        return Answer::refuse(StatusCode::INVALID_FIELD);
    }
    slots.iter().for_each(|slot| slot.mask.set(ReservationNotificationMask::new(value)));
    Answer::ok()
}

/// Whether the temperatures for throttling are ones that Identify offers, the light one below the heavy one.
fn is_thermal(value: ThermalManagement) -> bool {
    let (light, heavy) = (value.tmt1_kelvin(), value.tmt2_kelvin());
    let is_offered = |kelvin: u16| kelvin == 0 || THROTTLING_KELVIN.contains(&kelvin);
    is_offered(light) && is_offered(heavy) && (light == 0 || heavy == 0 || light < heavy)
}

/// Log page 12h.
pub(super) fn supported() -> FeaturesSupported {
    let mut page: FeaturesSupported = zeroed();
    for (fid, capabilities) in SUPPORTED {
        let scope = if capabilities.contains(FeatureCapabilities::NAMESPACE_SPECIFIC) {
            FeatureEffects::SCOPE_NAMESPACE
        } else {
            FeatureEffects::SCOPE_CONTROLLER
        };
        page.set(*fid, FeatureEffects::FSUPP.with(scope));
    }
    page
}

/// Threshold Temperature Select of all sensors there are.
const ALL_SENSORS: u8 = 0xf;

const CHANGEABLE: FeatureCapabilities = FeatureCapabilities::CHANGEABLE;
const OF_NAMESPACE: FeatureCapabilities =
    FeatureCapabilities::CHANGEABLE.with(FeatureCapabilities::NAMESPACE_SPECIFIC);

/// The features there are.
const SUPPORTED: &[(FeatureId, FeatureCapabilities)] = &[
    (FeatureId::ARBITRATION, CHANGEABLE),
    (FeatureId::POWER_MANAGEMENT, CHANGEABLE),
    (FeatureId::TEMPERATURE_THRESHOLD, CHANGEABLE),
    (FeatureId::ERROR_RECOVERY, CHANGEABLE),
    (FeatureId::VOLATILE_WRITE_CACHE, CHANGEABLE),
    (FeatureId::NUMBER_OF_QUEUES, CHANGEABLE),
    (FeatureId::ASYNC_EVENT_CONFIGURATION, CHANGEABLE),
    (FeatureId::KEEP_ALIVE_TIMER, CHANGEABLE),
    (FeatureId::HOST_CONTROLLED_THERMAL_MANAGEMENT, CHANGEABLE),
    (FeatureId::HOST_BEHAVIOR_SUPPORT, CHANGEABLE),
    (FeatureId::ENDURANCE_GROUP_EVENT, CHANGEABLE),
    (FeatureId::SOFTWARE_PROGRESS_MARKER, CHANGEABLE),
    (FeatureId::HOST_IDENTIFIER, FeatureCapabilities::EMPTY),
    (FeatureId::RESERVATION_NOTIFICATION_MASK, OF_NAMESPACE),
    (FeatureId::RESERVATION_PERSISTENCE, OF_NAMESPACE),
    (FeatureId::NAMESPACE_WRITE_PROTECTION, OF_NAMESPACE),
];
