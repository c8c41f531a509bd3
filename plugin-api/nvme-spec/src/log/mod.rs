//! Log pages: identifiers, and the pages that need no file of their own. Base 2.0c §5.16.1.
//!
//! [`ana`], [`effects`], [`endurance`] and [`health`] hold the larger ones; the Discovery log
//! page is in [`crate::discovery`]. The Changed Namespace List (04h) is a
//! [`crate::identify::NamespaceList`].

pub mod ana;
pub mod effects;
pub mod endurance;
pub mod health;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use ana::{AnaGroupDescriptor, AnaLogHeader, AnaState};
pub use effects::{CommandEffects, CommandsSupported, FeaturesSupported, LogPagesSupported};
pub use endurance::{EnduranceGroupAggregate, EnduranceGroupInformation};
pub use health::{FirmwareSlots, HealthInformation};

open_enum! {
    /// Log Page Identifier. Base 2.0c §5.16.1.
    pub struct LogPageId(u8) {
        SUPPORTED_LOG_PAGES = 0x00, "Supported Log Pages";
        ERROR_INFORMATION = 0x01, "Error Information";
        HEALTH_INFORMATION = 0x02, "SMART / Health Information";
        FIRMWARE_SLOT = 0x03, "Firmware Slot Information";
        CHANGED_NAMESPACES = 0x04, "Changed Namespace List";
        COMMANDS_SUPPORTED = 0x05, "Commands Supported and Effects";
        DEVICE_SELF_TEST = 0x06, "Device Self-test";
        TELEMETRY_HOST = 0x07, "Telemetry Host-Initiated";
        TELEMETRY_CONTROLLER = 0x08, "Telemetry Controller-Initiated";
        ENDURANCE_GROUP = 0x09, "Endurance Group Information";
        PREDICTABLE_LATENCY_NVM_SET = 0x0a, "Predictable Latency Per NVM Set";
        PREDICTABLE_LATENCY_AGGREGATE = 0x0b, "Predictable Latency Event Aggregate";
        ANA = 0x0c, "Asymmetric Namespace Access";
        PERSISTENT_EVENT = 0x0d, "Persistent Event Log";
        LBA_STATUS = 0x0e, "LBA Status Information";
        ENDURANCE_GROUP_AGGREGATE = 0x0f, "Endurance Group Event Aggregate";
        MEDIA_UNIT_STATUS = 0x10, "Media Unit Status";
        CAPACITY_CONFIGURATION_LIST = 0x11, "Supported Capacity Configuration List";
        FEATURES_SUPPORTED = 0x12, "Feature Identifiers Supported and Effects";
        MI_COMMANDS_SUPPORTED = 0x13, "NVMe-MI Commands Supported and Effects";
        LOCKDOWN = 0x14, "Command and Feature Lockdown";
        BOOT_PARTITION = 0x15, "Boot Partition";
        ROTATIONAL_MEDIA = 0x16, "Rotational Media Information";
        DISCOVERY = 0x70, "Discovery";
        RESERVATION_NOTIFICATION = 0x80, "Reservation Notification";
        SANITIZE_STATUS = 0x81, "Sanitize Status";
        CHANGED_ZONES = 0xbf, "Changed Zone List";
    }
}

/// First identifier of the Changed Namespace List (04h) if more than 1024 namespaces changed. Base 2.0c §5.16.1.5.
pub const CHANGED_NAMESPACES_OVERFLOW: u32 = 0xffff_ffff;

/// An entry of the Error Information log page (01h). Base 2.0c §5.16.1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorInformation {
    /// Error Count: unique, increasing; 0 for an empty entry.
    pub error_count: U64,
    /// Submission Queue ID; FFFFh if the error belongs to no command.
    pub sqid: U16,
    /// Command ID; FFFFh if the error belongs to no command.
    pub cid: U16,
    /// Status Field, in bits 15:1.
    pub status: crate::completion::StatusField,
    /// Parameter Error Location: byte in bits 7:0, bit in bits 10:8; FFFFh for none.
    pub parameter_error_location: U16,
    /// First LBA that failed, if any.
    pub lba: U64,
    /// Namespace, if any.
    pub nsid: U32,
    /// Vendor Specific Information Available: a log page identifier, or 0.
    pub vendor_log_page: u8,
    /// Transport Type; 0 for none.
    pub trtype: crate::discovery::TransportType,
    _rsvd30: [u8; 2],
    /// Command Specific Information.
    pub command_specific: U64,
    /// Transport Type Specific Information.
    pub transport_specific: U16,
    _rsvd42: [u8; 22],
}

assert_layout!(
    ErrorInformation,
    64,
    error_count: 0, sqid: 8, cid: 10, status: 12, parameter_error_location: 14, lba: 16, nsid: 24,
    vendor_log_page: 28, trtype: 29, command_specific: 32, transport_specific: 40
);

/// The Reservation Notification log page (80h): one notification per read. Base 2.0c §5.16.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReservationNotification {
    /// Log Page Count: increasing; 0 in an empty page.
    pub count: U64,
    /// Reservation Notification Log Page Type.
    pub notification_type: ReservationNotificationType,
    /// Number of further log pages available, at most 255.
    pub available: u8,
    _rsvd10: [u8; 2],
    /// Namespace.
    pub nsid: U32,
    _rsvd16: [u8; 48],
}

assert_layout!(ReservationNotification, 64, count: 0, notification_type: 8, available: 9, nsid: 12);

open_enum! {
    /// Reservation Notification Log Page Type. Base 2.0c §5.16.1.
    pub struct ReservationNotificationType(u8) {
        EMPTY = 0, "Empty Log Page";
        REGISTRATION_PREEMPTED = 1, "Registration Preempted";
        RESERVATION_RELEASED = 2, "Reservation Released";
        RESERVATION_PREEMPTED = 3, "Reservation Preempted";
    }
}
