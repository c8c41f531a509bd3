//! Status codes: every (status code type, status code) pair the specifications name.
//!
//! Kept apart from [`crate::completion::StatusField`], which adds phase tag
//! and retry advice. In the command-specific type, values from 80h on mean
//! one thing for a command of an I/O command set and another for a fabrics
//! command; both are named here and [`StatusCode::name_for`] tells them apart.

use core::fmt;

open_enum! {
    /// Status code type (SCT). Base 2.0c §3.3.3.2.1.
    pub struct StatusCodeType(u8) {
        GENERIC = 0, "Generic Command Status";
        COMMAND_SPECIFIC = 1, "Command Specific Status";
        MEDIA_AND_DATA_INTEGRITY = 2, "Media and Data Integrity Errors";
        PATH_RELATED = 3, "Path Related Status";
        VENDOR_SPECIFIC = 7, "Vendor Specific";
    }
}

/// Status code type in bits 10:8, status code in bits 7:0: which failure, without retry advice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StatusCode(u16);

impl StatusCode {
    /// The bits of a code.
    pub const MASK: u16 = 0x7ff;

    /// The code made of a status code type (three bits count) and a status code.
    #[must_use]
    pub const fn from_parts(sct: StatusCodeType, sc: u8) -> Self {
        Self((sct.0 as u16 & 0b111) << 8 | sc as u16)
    }

    /// The code in the low eleven bits.
    #[must_use]
    pub const fn from_u16(value: u16) -> Self {
        Self(value & Self::MASK)
    }

    /// Status code type in bits 10:8, status code in bits 7:0.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Status code type.
    #[must_use]
    pub const fn sct(self) -> StatusCodeType {
        StatusCodeType((self.0 >> 8) as u8)
    }

    /// Status code, which means something only together with its type.
    #[must_use]
    pub const fn sc(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Whether the failure is one of the path, not of the namespace or the command: another path may succeed.
    #[must_use]
    pub const fn is_path_related(self) -> bool {
        self.sct().0 == StatusCodeType::PATH_RELATED.0
    }

    /// The specification's words for this code, as an answer to a command of the given kind.
    #[must_use]
    pub fn name_for(self, kind: CommandKind) -> Option<&'static str> {
        let tables = match kind {
            CommandKind::AdminOrIo => &ADMIN_OR_IO_NAMES,
            CommandKind::Fabrics => &FABRICS_KIND_NAMES,
        };
        tables.iter().flat_map(|table| table.iter()).find(|(code, _)| *code == self).map(|(_, name)| *name)
    }

    /// The specification's words for this code, as an answer to an admin or I/O command.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        self.name_for(CommandKind::AdminOrIo)
    }
}

/// Which commands a command-specific code answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommandKind {
    /// An admin command or one of an I/O command set.
    AdminOrIo,
    /// A fabrics command, or a Discovery log page read.
    Fabrics,
}

impl fmt::Debug for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sct={:#x} sc={:#04x} ({})", self.sct().0, self.sc(), self.name().unwrap_or("unknown"))
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "unknown status sct {:#x} sc {:#04x}", self.sct().0, self.sc()),
        }
    }
}

/// Makes the codes of one status code type and the table of their names.
macro_rules! status_codes {
    ($(#[$meta:meta])* $TABLE:ident, $SCT:ident { $($Const:ident = $sc:literal, $text:literal;)* }) => {
        impl StatusCode {
            $(
                #[doc = concat!($text, ".")]
                pub const $Const: Self = Self::from_parts(StatusCodeType::$SCT, $sc);
            )*
        }

        $(#[$meta])*
        const $TABLE: &[(StatusCode, &str)] = &[$((StatusCode::$Const, $text)),*];
    };
}

status_codes! {
    /// Generic command status. Base 2.0c §3.3.3.2.1.1.
    GENERIC_NAMES, GENERIC {
        SUCCESS = 0x00, "Successful Completion";
        INVALID_OPCODE = 0x01, "Invalid Command Opcode";
        INVALID_FIELD = 0x02, "Invalid Field in Command";
        COMMAND_ID_CONFLICT = 0x03, "Command ID Conflict";
        DATA_TRANSFER_ERROR = 0x04, "Data Transfer Error";
        ABORTED_POWER_LOSS = 0x05, "Commands Aborted due to Power Loss Notification";
        INTERNAL_ERROR = 0x06, "Internal Error";
        ABORTED_BY_REQUEST = 0x07, "Command Abort Requested";
        ABORTED_SQ_DELETION = 0x08, "Command Aborted due to SQ Deletion";
        ABORTED_FAILED_FUSED = 0x09, "Command Aborted due to Failed Fused Command";
        ABORTED_MISSING_FUSED = 0x0a, "Command Aborted due to Missing Fused Command";
        INVALID_NAMESPACE_OR_FORMAT = 0x0b, "Invalid Namespace or Format";
        COMMAND_SEQUENCE_ERROR = 0x0c, "Command Sequence Error";
        INVALID_SGL_SEGMENT_DESCRIPTOR = 0x0d, "Invalid SGL Segment Descriptor";
        INVALID_SGL_DESCRIPTOR_COUNT = 0x0e, "Invalid Number of SGL Descriptors";
        DATA_SGL_LENGTH_INVALID = 0x0f, "Data SGL Length Invalid";
        METADATA_SGL_LENGTH_INVALID = 0x10, "Metadata SGL Length Invalid";
        SGL_DESCRIPTOR_TYPE_INVALID = 0x11, "SGL Descriptor Type Invalid";
        INVALID_CMB_USE = 0x12, "Invalid Use of Controller Memory Buffer";
        PRP_OFFSET_INVALID = 0x13, "PRP Offset Invalid";
        ATOMIC_WRITE_UNIT_EXCEEDED = 0x14, "Atomic Write Unit Exceeded";
        OPERATION_DENIED = 0x15, "Operation Denied";
        SGL_OFFSET_INVALID = 0x16, "SGL Offset Invalid";
        HOST_IDENTIFIER_INCONSISTENT_FORMAT = 0x18, "Host Identifier Inconsistent Format";
        KEEP_ALIVE_TIMER_EXPIRED = 0x19, "Keep Alive Timer Expired";
        KEEP_ALIVE_TIMEOUT_INVALID = 0x1a, "Keep Alive Timeout Invalid";
        ABORTED_PREEMPT_AND_ABORT = 0x1b, "Command Aborted due to Preempt and Abort";
        SANITIZE_FAILED = 0x1c, "Sanitize Failed";
        SANITIZE_IN_PROGRESS = 0x1d, "Sanitize In Progress";
        SGL_DATA_BLOCK_GRANULARITY_INVALID = 0x1e, "SGL Data Block Granularity Invalid";
        COMMAND_NOT_SUPPORTED_IN_CMB = 0x1f, "Command Not Supported for Queue in CMB";
        NAMESPACE_WRITE_PROTECTED = 0x20, "Namespace is Write Protected";
        COMMAND_INTERRUPTED = 0x21, "Command Interrupted";
        TRANSIENT_TRANSPORT_ERROR = 0x22, "Transient Transport Error";
        PROHIBITED_BY_LOCKDOWN = 0x23, "Command Prohibited by Command and Feature Lockdown";
        ADMIN_COMMAND_MEDIA_NOT_READY = 0x24, "Admin Command Media Not Ready";
        FDP_DISABLED = 0x29, "FDP Disabled";
        INVALID_PLACEMENT_HANDLE_LIST = 0x2a, "Invalid Placement Handle List";
        LBA_OUT_OF_RANGE = 0x80, "LBA Out of Range";
        CAPACITY_EXCEEDED = 0x81, "Capacity Exceeded";
        NAMESPACE_NOT_READY = 0x82, "Namespace Not Ready";
        RESERVATION_CONFLICT = 0x83, "Reservation Conflict";
        FORMAT_IN_PROGRESS = 0x84, "Format In Progress";
    }
}

status_codes! {
    /// Command specific status of admin commands. Base 2.0c §3.3.3.2.1.2.
    ADMIN_NAMES, COMMAND_SPECIFIC {
        COMPLETION_QUEUE_INVALID = 0x00, "Completion Queue Invalid";
        INVALID_QUEUE_IDENTIFIER = 0x01, "Invalid Queue Identifier";
        INVALID_QUEUE_SIZE = 0x02, "Invalid Queue Size";
        ABORT_COMMAND_LIMIT_EXCEEDED = 0x03, "Abort Command Limit Exceeded";
        ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED = 0x05, "Asynchronous Event Request Limit Exceeded";
        INVALID_FIRMWARE_SLOT = 0x06, "Invalid Firmware Slot";
        INVALID_FIRMWARE_IMAGE = 0x07, "Invalid Firmware Image";
        INVALID_INTERRUPT_VECTOR = 0x08, "Invalid Interrupt Vector";
        INVALID_LOG_PAGE = 0x09, "Invalid Log Page";
        INVALID_FORMAT = 0x0a, "Invalid Format";
        FIRMWARE_NEEDS_CONVENTIONAL_RESET = 0x0b, "Firmware Activation Requires Conventional Reset";
        INVALID_QUEUE_DELETION = 0x0c, "Invalid Queue Deletion";
        FEATURE_NOT_SAVEABLE = 0x0d, "Feature Identifier Not Saveable";
        FEATURE_NOT_CHANGEABLE = 0x0e, "Feature Not Changeable";
        FEATURE_NOT_NAMESPACE_SPECIFIC = 0x0f, "Feature Not Namespace Specific";
        FIRMWARE_NEEDS_SUBSYSTEM_RESET = 0x10, "Firmware Activation Requires NVM Subsystem Reset";
        FIRMWARE_NEEDS_CONTROLLER_RESET = 0x11, "Firmware Activation Requires Controller Level Reset";
        FIRMWARE_NEEDS_MAXIMUM_TIME = 0x12, "Firmware Activation Requires Maximum Time Violation";
        FIRMWARE_ACTIVATION_PROHIBITED = 0x13, "Firmware Activation Prohibited";
        OVERLAPPING_RANGE = 0x14, "Overlapping Range";
        NAMESPACE_INSUFFICIENT_CAPACITY = 0x15, "Namespace Insufficient Capacity";
        NAMESPACE_IDENTIFIER_UNAVAILABLE = 0x16, "Namespace Identifier Unavailable";
        NAMESPACE_ALREADY_ATTACHED = 0x18, "Namespace Already Attached";
        NAMESPACE_IS_PRIVATE = 0x19, "Namespace Is Private";
        NAMESPACE_NOT_ATTACHED = 0x1a, "Namespace Not Attached";
        THIN_PROVISIONING_NOT_SUPPORTED = 0x1b, "Thin Provisioning Not Supported";
        CONTROLLER_LIST_INVALID = 0x1c, "Controller List Invalid";
        SELF_TEST_IN_PROGRESS = 0x1d, "Device Self-test In Progress";
        BOOT_PARTITION_WRITE_PROHIBITED = 0x1e, "Boot Partition Write Prohibited";
        INVALID_CONTROLLER_IDENTIFIER = 0x1f, "Invalid Controller Identifier";
        INVALID_SECONDARY_CONTROLLER_STATE = 0x20, "Invalid Secondary Controller State";
        INVALID_CONTROLLER_RESOURCE_COUNT = 0x21, "Invalid Number of Controller Resources";
        INVALID_RESOURCE_IDENTIFIER = 0x22, "Invalid Resource Identifier";
        SANITIZE_PROHIBITED_WITH_PMR = 0x23, "Sanitize Prohibited While Persistent Memory Region is Enabled";
        ANA_GROUP_IDENTIFIER_INVALID = 0x24, "ANA Group Identifier Invalid";
        ANA_ATTACH_FAILED = 0x25, "ANA Attach Failed";
        INSUFFICIENT_CAPACITY = 0x26, "Insufficient Capacity";
        NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED = 0x27, "Namespace Attachment Limit Exceeded";
        LOCKDOWN_NOT_SUPPORTED = 0x28, "Prohibition of Command Execution Not Supported";
        IO_COMMAND_SET_NOT_SUPPORTED = 0x29, "I/O Command Set Not Supported";
        IO_COMMAND_SET_NOT_ENABLED = 0x2a, "I/O Command Set Not Enabled";
        IO_COMMAND_SET_COMBINATION_REJECTED = 0x2b, "I/O Command Set Combination Rejected";
        INVALID_IO_COMMAND_SET = 0x2c, "Invalid I/O Command Set";
        IDENTIFIER_UNAVAILABLE = 0x2d, "Identifier Unavailable";
        INVALID_DISCOVERY_INFORMATION = 0x2f, "Invalid Discovery Information";
        ZONING_DATA_STRUCTURE_LOCKED = 0x30, "Zoning Data Structure Locked";
        ZONING_DATA_STRUCTURE_NOT_FOUND = 0x31, "Zoning Data Structure Not Found";
        INSUFFICIENT_DISCOVERY_RESOURCES = 0x32, "Insufficient Discovery Resources";
        REQUESTED_FUNCTION_DISABLED = 0x33, "Requested Function Disabled";
        ZONE_GROUP_ORIGINATOR_INVALID = 0x34, "ZoneGroup Originator Invalid";
    }
}

status_codes! {
    /// Command specific status of the NVM and Zoned Namespace command sets.
    IO_NAMES, COMMAND_SPECIFIC {
        CONFLICTING_ATTRIBUTES = 0x80, "Conflicting Attributes";
        INVALID_PROTECTION_INFORMATION = 0x81, "Invalid Protection Information";
        WRITE_TO_READ_ONLY_RANGE = 0x82, "Attempted Write to Read Only Range";
        COMMAND_SIZE_LIMIT_EXCEEDED = 0x83, "Command Size Limit Exceeded";
        ZONE_INVALID_OPERATION_REQUEST = 0xb6, "Invalid Zone Operation Request";
        ZRWA_RESOURCES_UNAVAILABLE = 0xb7, "ZRWA Resources Unavailable";
        ZONE_BOUNDARY_ERROR = 0xb8, "Zoned Boundary Error";
        ZONE_IS_FULL = 0xb9, "Zone Is Full";
        ZONE_IS_READ_ONLY = 0xba, "Zone Is Read Only";
        ZONE_IS_OFFLINE = 0xbb, "Zone Is Offline";
        ZONE_INVALID_WRITE = 0xbc, "Zone Invalid Write";
        TOO_MANY_ACTIVE_ZONES = 0xbd, "Too Many Active Zones";
        TOO_MANY_OPEN_ZONES = 0xbe, "Too Many Open Zones";
        INVALID_ZONE_STATE_TRANSITION = 0xbf, "Invalid Zone State Transition";
    }
}

status_codes! {
    /// Command specific status of fabrics commands. Base 2.0c §3.3.3.2.1.2.
    FABRICS_NAMES, COMMAND_SPECIFIC {
        CONNECT_INCOMPATIBLE_FORMAT = 0x80, "Connect: Incompatible Format";
        CONNECT_CONTROLLER_BUSY = 0x81, "Connect: Controller Busy";
        CONNECT_INVALID_PARAMETERS = 0x82, "Connect: Invalid Parameters";
        CONNECT_RESTART_DISCOVERY = 0x83, "Connect: Restart Discovery";
        CONNECT_INVALID_HOST = 0x84, "Connect: Invalid Host";
        DISCONNECT_INVALID_QUEUE_TYPE = 0x85, "Disconnect: Invalid Queue Type";
        DISCOVER_RESTART = 0x90, "Discover Restart";
        AUTHENTICATION_REQUIRED = 0x91, "Authentication Required";
    }
}

status_codes! {
    /// Media and data integrity errors. Base 2.0c §3.3.3.2.1.3.
    MEDIA_NAMES, MEDIA_AND_DATA_INTEGRITY {
        WRITE_FAULT = 0x80, "Write Fault";
        UNRECOVERED_READ_ERROR = 0x81, "Unrecovered Read Error";
        GUARD_CHECK_ERROR = 0x82, "End-to-end Guard Check Error";
        APPLICATION_TAG_CHECK_ERROR = 0x83, "End-to-end Application Tag Check Error";
        REFERENCE_TAG_CHECK_ERROR = 0x84, "End-to-end Reference Tag Check Error";
        COMPARE_FAILURE = 0x85, "Compare Failure";
        ACCESS_DENIED = 0x86, "Access Denied";
        DEALLOCATED_OR_UNWRITTEN_BLOCK = 0x87, "Deallocated or Unwritten Logical Block";
        STORAGE_TAG_CHECK_ERROR = 0x88, "End-to-End Storage Tag Check Error";
    }
}

status_codes! {
    /// Path related status. Base 2.0c §3.3.3.2.1.4.
    PATH_NAMES, PATH_RELATED {
        INTERNAL_PATH_ERROR = 0x00, "Internal Path Error";
        ANA_PERSISTENT_LOSS = 0x01, "Asymmetric Access Persistent Loss";
        ANA_INACCESSIBLE = 0x02, "Asymmetric Access Inaccessible";
        ANA_TRANSITION = 0x03, "Asymmetric Access Transition";
        CONTROLLER_PATHING_ERROR = 0x60, "Controller Pathing Error";
        HOST_PATHING_ERROR = 0x70, "Host Pathing Error";
        ABORTED_BY_HOST = 0x71, "Command Aborted By Host";
    }
}

/// Names of every code as an answer to an admin or I/O command.
const ADMIN_OR_IO_NAMES: [&[(StatusCode, &str)]; 5] =
    [GENERIC_NAMES, ADMIN_NAMES, IO_NAMES, MEDIA_NAMES, PATH_NAMES];

/// Names of every code as an answer to a fabrics command.
const FABRICS_KIND_NAMES: [&[(StatusCode, &str)]; 5] =
    [GENERIC_NAMES, ADMIN_NAMES, FABRICS_NAMES, MEDIA_NAMES, PATH_NAMES];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_is_named_twice() {
        for tables in [ADMIN_OR_IO_NAMES, FABRICS_KIND_NAMES] {
            let codes = || tables.iter().flat_map(|table| table.iter());
            for (at, (code, name)) in codes().enumerate() {
                let later = codes().skip(at + 1).find(|(other, _)| other == code);
                assert_eq!(later, None, "{name}");
            }
        }
    }

    #[test]
    fn one_value_has_two_names_by_kind_of_command() {
        let code = StatusCode::from_parts(StatusCodeType::COMMAND_SPECIFIC, 0x82);
        assert_eq!(code.name_for(CommandKind::AdminOrIo), Some("Attempted Write to Read Only Range"));
        assert_eq!(code.name_for(CommandKind::Fabrics), Some("Connect: Invalid Parameters"));
        assert_eq!(
            StatusCode::INVALID_FIELD.name_for(CommandKind::Fabrics),
            Some("Invalid Field in Command")
        );
    }

    #[test]
    fn unknown_codes_stay_representable() {
        let code = StatusCode::from_parts(StatusCodeType::VENDOR_SPECIFIC, 0xc1);
        assert_eq!((code.name(), code.sct(), code.sc()), (None, StatusCodeType::VENDOR_SPECIFIC, 0xc1));
        assert_eq!(code.get(), 0x7c1);
    }

    #[test]
    fn ana_codes_are_path_related() {
        assert!(StatusCode::ANA_INACCESSIBLE.is_path_related());
        assert!(!StatusCode::WRITE_FAULT.is_path_related());
    }
}
