//! Asynchronous events: what completion dword 0 of an Asynchronous Event Request says. Base 2.0c §5.2.
//!
//! Which events a host asked for is the Asynchronous Event Configuration
//! feature: [`crate::features::AsyncEventConfig`].

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::log::LogPageId;

/// Completion dword 0 of an Asynchronous Event Request. Base 2.0c §5.2.1.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct AsyncEvent {
    /// Asynchronous Event Type, in bits 2:0.
    pub event_type: EventType,
    /// Asynchronous Event Information: what it means depends on the type.
    pub information: u8,
    /// The log page that tells more; reading it clears the event.
    pub log_page: LogPageId,
    _rsvd3: u8,
}

assert_layout!(AsyncEvent, 4, event_type: 0, information: 1, log_page: 2);

impl AsyncEvent {
    /// Attached namespaces changed: read the Changed Namespace List.
    pub const NAMESPACE_ATTRIBUTE_CHANGED: Self =
        Self::notice(Notice::NAMESPACE_ATTRIBUTE_CHANGED, LogPageId::CHANGED_NAMESPACES);
    /// ANA states changed: read the ANA log page.
    pub const ANA_CHANGE: Self = Self::notice(Notice::ANA_CHANGE, LogPageId::ANA);
    /// The discovery log changed: read it again.
    pub const DISCOVERY_LOG_CHANGE: Self = Self::notice(Notice::DISCOVERY_LOG_CHANGE, LogPageId::DISCOVERY);
    /// A reservation event happened: read the Reservation Notification log page.
    pub const RESERVATION_LOG_AVAILABLE: Self = Self::new(
        EventType::IO_COMMAND_SPECIFIC,
        IoCommandEvent::RESERVATION_LOG_AVAILABLE.0,
        LogPageId::RESERVATION_NOTIFICATION,
    );

    /// An event of any type.
    #[must_use]
    pub const fn new(event_type: EventType, information: u8, log_page: LogPageId) -> Self {
        Self { event_type, information, log_page, _rsvd3: 0 }
    }

    /// An event of type notice.
    #[must_use]
    pub const fn notice(notice: Notice, log_page: LogPageId) -> Self {
        Self::new(EventType::NOTICE, notice.0, log_page)
    }

    /// The event as completion dword 0 holds it.
    #[must_use]
    pub fn from_dw0(dw0: U32) -> Self {
        zerocopy::transmute!(dw0)
    }

    /// Completion dword 0.
    #[must_use]
    pub fn to_dw0(self) -> U32 {
        zerocopy::transmute!(self)
    }
}

open_enum! {
    /// Asynchronous Event Type. Base 2.0c §5.2.1.
    pub struct EventType(u8) {
        ERROR = 0b000, "Error status";
        SMART = 0b001, "SMART / Health status";
        NOTICE = 0b010, "Notice";
        IMMEDIATE = 0b011, "Immediate";
        ONE_SHOT = 0b100, "One-Shot";
        IO_COMMAND_SPECIFIC = 0b110, "I/O Command specific status";
        VENDOR_SPECIFIC = 0b111, "Vendor specific";
    }
}

open_enum! {
    /// Asynchronous Event Information of [`EventType::ERROR`]. Base 2.0c §5.2.1.
    pub struct ErrorEvent(u8) {
        INVALID_DOORBELL_REGISTER = 0x00, "Write to Invalid Doorbell Register";
        INVALID_DOORBELL_VALUE = 0x01, "Invalid Doorbell Write Value";
        DIAGNOSTIC_FAILURE = 0x02, "Diagnostic Failure";
        PERSISTENT_INTERNAL_ERROR = 0x03, "Persistent Internal Error";
        TRANSIENT_INTERNAL_ERROR = 0x04, "Transient Internal Error";
        FIRMWARE_IMAGE_LOAD_ERROR = 0x05, "Firmware Image Load Error";
    }
}

open_enum! {
    /// Asynchronous Event Information of [`EventType::SMART`]. Base 2.0c §5.2.1.
    pub struct SmartEvent(u8) {
        RELIABILITY = 0x00, "NVM subsystem Reliability";
        TEMPERATURE = 0x01, "Temperature Threshold";
        SPARE = 0x02, "Spare Below Threshold";
    }
}

open_enum! {
    /// Asynchronous Event Information of [`EventType::NOTICE`]. Base 2.0c §5.2.1.
    pub struct Notice(u8) {
        NAMESPACE_ATTRIBUTE_CHANGED = 0x00, "Namespace Attribute Changed";
        FIRMWARE_ACTIVATION_STARTING = 0x01, "Firmware Activation Starting";
        TELEMETRY_LOG_CHANGED = 0x02, "Telemetry Log Changed";
        ANA_CHANGE = 0x03, "Asymmetric Namespace Access Change";
        PREDICTABLE_LATENCY = 0x04, "Predictable Latency Event Aggregate Log Change";
        LBA_STATUS = 0x05, "LBA Status Information Alert";
        ENDURANCE_GROUP = 0x06, "Endurance Group Event Aggregate Log Page Change";
        DISCOVERY_LOG_CHANGE = 0xf0, "Discovery Log Page Change";
    }
}

open_enum! {
    /// Asynchronous Event Information of [`EventType::IO_COMMAND_SPECIFIC`]. Base 2.0c §5.2.1.
    pub struct IoCommandEvent(u8) {
        RESERVATION_LOG_AVAILABLE = 0x00, "Reservation Log Page Available";
        SANITIZE_COMPLETED = 0x01, "Sanitize Operation Completed";
        SANITIZE_UNEXPECTED_DEALLOCATION = 0x02, "Sanitize Operation Completed With Unexpected Deallocation";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_take_their_places_in_dword_zero() {
        assert_eq!(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.to_dw0().get(), 0x0004_0002);
        assert_eq!(AsyncEvent::ANA_CHANGE.to_dw0().get(), 0x000c_0302);
        assert_eq!(AsyncEvent::DISCOVERY_LOG_CHANGE.to_dw0().get(), 0x0070_f002);
        assert_eq!(AsyncEvent::RESERVATION_LOG_AVAILABLE.to_dw0().get(), 0x0080_0006);
        assert_eq!(AsyncEvent::from_dw0(U32::new(0x000c_0302)), AsyncEvent::ANA_CHANGE);
    }
}
