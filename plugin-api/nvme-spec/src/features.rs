//! Features: identifiers, and the values of Set and Get Features' dword 11, result and data. Base 2.0c §5.27.1.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// Feature Identifier. Base 2.0c §5.27.1.
    pub struct FeatureId(u8) {
        ARBITRATION = 0x01, "Arbitration";
        POWER_MANAGEMENT = 0x02, "Power Management";
        LBA_RANGE_TYPE = 0x03, "LBA Range Type";
        TEMPERATURE_THRESHOLD = 0x04, "Temperature Threshold";
        ERROR_RECOVERY = 0x05, "Error Recovery";
        VOLATILE_WRITE_CACHE = 0x06, "Volatile Write Cache";
        NUMBER_OF_QUEUES = 0x07, "Number of Queues";
        INTERRUPT_COALESCING = 0x08, "Interrupt Coalescing";
        INTERRUPT_VECTOR_CONFIGURATION = 0x09, "Interrupt Vector Configuration";
        WRITE_ATOMICITY_NORMAL = 0x0a, "Write Atomicity Normal";
        ASYNC_EVENT_CONFIGURATION = 0x0b, "Asynchronous Event Configuration";
        AUTONOMOUS_POWER_STATE_TRANSITION = 0x0c, "Autonomous Power State Transition";
        HOST_MEMORY_BUFFER = 0x0d, "Host Memory Buffer";
        TIMESTAMP = 0x0e, "Timestamp";
        KEEP_ALIVE_TIMER = 0x0f, "Keep Alive Timer";
        HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10, "Host Controlled Thermal Management";
        NON_OPERATIONAL_POWER_STATE = 0x11, "Non-Operational Power State Config";
        READ_RECOVERY_LEVEL = 0x12, "Read Recovery Level Config";
        PREDICTABLE_LATENCY_MODE = 0x13, "Predictable Latency Mode Config";
        PREDICTABLE_LATENCY_WINDOW = 0x14, "Predictable Latency Mode Window";
        LBA_STATUS_INTERVAL = 0x15, "LBA Status Information Report Interval";
        HOST_BEHAVIOR_SUPPORT = 0x16, "Host Behavior Support";
        SANITIZE_CONFIG = 0x17, "Sanitize Config";
        ENDURANCE_GROUP_EVENT = 0x18, "Endurance Group Event Configuration";
        IO_COMMAND_SET_PROFILE = 0x19, "I/O Command Set Profile";
        SPINUP_CONTROL = 0x1a, "Spinup Control";
        ENHANCED_CONTROLLER_METADATA = 0x7d, "Enhanced Controller Metadata";
        CONTROLLER_METADATA = 0x7e, "Controller Metadata";
        NAMESPACE_METADATA = 0x7f, "Namespace Metadata";
        SOFTWARE_PROGRESS_MARKER = 0x80, "Software Progress Marker";
        HOST_IDENTIFIER = 0x81, "Host Identifier";
        RESERVATION_NOTIFICATION_MASK = 0x82, "Reservation Notification Mask";
        RESERVATION_PERSISTENCE = 0x83, "Reservation Persistence";
        NAMESPACE_WRITE_PROTECTION = 0x84, "Namespace Write Protection Config";
    }
}

bit_set! {
    /// Arbitration (01h).
    pub struct Arbitration(U32 as u32) {}
}

impl Arbitration {
    /// Arbitration Burst: 2 to the power of AB commands; 7 for no limit.
    #[must_use]
    pub const fn burst(self) -> u8 {
        self.field(0, 3) as u8
    }

    /// Low Priority Weight, 0's based.
    #[must_use]
    pub const fn low_weight_z(self) -> u8 {
        self.field(8, 8) as u8
    }

    /// Medium Priority Weight, 0's based.
    #[must_use]
    pub const fn medium_weight_z(self) -> u8 {
        self.field(16, 8) as u8
    }

    /// High Priority Weight, 0's based.
    #[must_use]
    pub const fn high_weight_z(self) -> u8 {
        self.field(24, 8) as u8
    }
}

bit_set! {
    /// Power Management (02h).
    pub struct PowerManagement(U32 as u32) {}
}

impl PowerManagement {
    /// Power State.
    #[must_use]
    pub const fn power_state(self) -> u8 {
        self.field(0, 5) as u8
    }

    /// Workload Hint.
    #[must_use]
    pub const fn workload_hint(self) -> u8 {
        self.field(5, 3) as u8
    }
}

bit_set! {
    /// Temperature Threshold (04h).
    pub struct TemperatureThreshold(U32 as u32) {}
}

impl TemperatureThreshold {
    /// The value that sets or asks for a threshold.
    #[must_use]
    pub const fn from_parts(kelvin: u16, sensor: u8, is_under: bool) -> Self {
        Self::EMPTY.with_field(0, 16, kelvin as u32).with_field(16, 4, sensor as u32).with_field(
            20,
            2,
            is_under as u32,
        )
    }

    /// Temperature Threshold, in kelvin.
    #[must_use]
    pub const fn kelvin(self) -> u16 {
        self.field(0, 16) as u16
    }

    /// Threshold Temperature Select: 0 composite, 1 to 8 a sensor, Fh all.
    #[must_use]
    pub const fn sensor(self) -> u8 {
        self.field(16, 4) as u8
    }

    /// Threshold Type Select: 0 over, 1 under, others reserved.
    #[must_use]
    pub const fn threshold_type(self) -> u8 {
        self.field(20, 2) as u8
    }
}

bit_set! {
    /// Error Recovery (05h); namespace specific.
    pub struct ErrorRecovery(U32 as u32) {
        DULBE = 1 << 16, "Deallocated or Unwritten Logical Block Error Enable";
    }
}

impl ErrorRecovery {
    /// Time Limited Error Recovery, in units of 100 ms; 0 for no limit.
    #[must_use]
    pub const fn tler_100ms(self) -> u16 {
        self.field(0, 16) as u16
    }
}

bit_set! {
    /// Volatile Write Cache (06h).
    pub struct VolatileWriteCache(U32 as u32) {
        WCE = 1 << 0, "Volatile Write Cache Enable";
    }
}

/// Number of Queues (07h): requested in dword 11, allocated in the result; 0's based, FFFFh is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NumberOfQueues {
    /// Number of I/O Submission Queues, 0's based.
    pub nsq_z: U16,
    /// Number of I/O Completion Queues, 0's based.
    pub ncq_z: U16,
}

assert_layout!(NumberOfQueues, 4, nsq_z: 0, ncq_z: 2);

impl NumberOfQueues {
    /// The value as dword 11 or the result hold it.
    #[must_use]
    pub fn from_dword(dword: U32) -> Self {
        zerocopy::transmute!(dword)
    }

    /// The dword.
    #[must_use]
    pub fn to_dword(self) -> U32 {
        zerocopy::transmute!(self)
    }
}

bit_set! {
    /// Asynchronous Event Configuration (0Bh): which events the host wants.
    pub struct AsyncEventConfig(U32 as u32) {
        SMART_SPARE = 1 << 0, "SMART critical warning: available spare";
        SMART_TEMPERATURE = 1 << 1, "SMART critical warning: temperature";
        SMART_RELIABILITY = 1 << 2, "SMART critical warning: degraded reliability";
        SMART_READ_ONLY = 1 << 3, "SMART critical warning: media in read only mode";
        SMART_VOLATILE_BACKUP = 1 << 4, "SMART critical warning: volatile memory backup failed";
        SMART_PMR = 1 << 5, "SMART critical warning: persistent memory region";
        NAMESPACE_ATTRIBUTE = 1 << 8, "Namespace Attribute Notices";
        FIRMWARE_ACTIVATION = 1 << 9, "Firmware Activation Notices";
        TELEMETRY = 1 << 10, "Telemetry Log Notices";
        ANA_CHANGE = 1 << 11, "Asymmetric Namespace Access Change Notices";
        PREDICTABLE_LATENCY = 1 << 12, "Predictable Latency Event Aggregate Log Change Notices";
        LBA_STATUS = 1 << 13, "LBA Status Information Notices";
        ENDURANCE_GROUP = 1 << 14, "Endurance Group Event Aggregate Log Page Change Notices";
        NORMAL_SUBSYSTEM_SHUTDOWN = 1 << 15, "Normal NVM Subsystem Shutdown";
        ZONE_DESCRIPTOR_CHANGED = 1 << 27, "Zone Descriptor Changed Notices";
        DISCOVERY_LOG_CHANGE = 1 << 31, "Discovery Log Page Change Notification";
    }
}

/// Timestamp (0Eh): the feature's data. Base 2.0c §5.27.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Timestamp {
    milliseconds: [u8; 6],
    /// In Get Features: bit 0 if the clock may have stopped, bits 3:1 where the time came from.
    pub attributes: u8,
    _rsvd7: u8,
}

assert_layout!(Timestamp, 8, milliseconds: 0, attributes: 6);

impl Timestamp {
    /// A time in milliseconds since 1970, of which 48 bits count.
    #[must_use]
    pub const fn from_milliseconds(milliseconds: u64) -> Self {
        let [a, b, c, d, e, f, ..] = milliseconds.to_le_bytes();
        Self { milliseconds: [a, b, c, d, e, f], attributes: 0, _rsvd7: 0 }
    }

    /// Milliseconds since 1970, or since reset if the host never set it.
    #[must_use]
    pub const fn milliseconds(&self) -> u64 {
        let [a, b, c, d, e, f] = self.milliseconds;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

bit_set! {
    /// Host Controlled Thermal Management (10h).
    pub struct ThermalManagement(U32 as u32) {}
}

impl ThermalManagement {
    /// Thermal Management Temperature 2 (heavy throttling), in kelvin.
    #[must_use]
    pub const fn tmt2_kelvin(self) -> u16 {
        self.field(0, 16) as u16
    }

    /// Thermal Management Temperature 1 (light throttling), in kelvin.
    #[must_use]
    pub const fn tmt1_kelvin(self) -> u16 {
        self.field(16, 16) as u16
    }
}

/// Host Behavior Support (16h): the feature's data. Base 2.0c §5.27.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HostBehavior {
    /// Advanced Command Retry Enable: 1 if the host understands Command Retry Delay.
    pub acre: u8,
    /// Extended Telemetry Data Area 4 Supported: 1 if so.
    pub etdas: u8,
    /// LBA Format Extension Enable: 1 if the host understands 64 LBA formats.
    pub lbafee: u8,
    _rsvd3: [u8; 509],
}

assert_layout!(HostBehavior, 512, acre: 0, etdas: 1, lbafee: 2);

bit_set! {
    /// Endurance Group Event Configuration (18h).
    pub struct EnduranceGroupEvent(U32 as u32) {}
}

impl EnduranceGroupEvent {
    /// Endurance Group Identifier.
    #[must_use]
    pub const fn endurance_group(self) -> u16 {
        self.field(0, 16) as u16
    }

    /// Endurance Group Critical Warnings the host wants to be told of.
    #[must_use]
    pub const fn critical_warnings(self) -> u8 {
        self.field(16, 8) as u8
    }
}

bit_set! {
    /// Software Progress Marker (80h): bits 7:0 count pre-boot software loads.
    pub struct SoftwareProgress(U32 as u32) {}
}

impl SoftwareProgress {
    /// Pre-boot Software Load Count.
    #[must_use]
    pub const fn load_count(self) -> u8 {
        self.field(0, 8) as u8
    }
}

bit_set! {
    /// Host Identifier (81h), dword 11; the identifier itself is the feature's data.
    pub struct HostIdentifierControl(U32 as u32) {
        EXHID = 1 << 0, "Enable Extended Host Identifier: 128 bits, the only size over fabrics";
    }
}

bit_set! {
    /// Reservation Notification Mask (82h): a set bit masks the notification.
    pub struct ReservationNotificationMask(U32 as u32) {
        REGPRE = 1 << 1, "Mask Registration Preempted Notification";
        RESREL = 1 << 2, "Mask Reservation Released Notification";
        RESPRE = 1 << 3, "Mask Reservation Preempted Notification";
    }
}

bit_set! {
    /// Reservation Persistence (83h); namespace specific.
    pub struct ReservationPersistence(U32 as u32) {
        PTPL = 1 << 0, "Persist Through Power Loss";
    }
}

open_enum! {
    /// Namespace Write Protection Config (84h); bits 2:0 count.
    pub struct WriteProtection(U32 as u32) {
        NONE = 0b000, "No Write Protect";
        WRITE_PROTECT = 0b001, "Write Protect";
        UNTIL_POWER_CYCLE = 0b010, "Write Protect Until Power Cycle";
        PERMANENT = 0b011, "Permanent Write Protect";
    }
}

/// Keep Alive Timer (0Fh) is dword 11 as a whole: milliseconds, 0 for off. This is the unit of KAS.
pub const KAS_UNIT_MS: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_counts_are_halves_of_one_dword() {
        let queues = NumberOfQueues::from_dword(U32::new(0x0003_007f));
        assert_eq!((queues.nsq_z.get(), queues.ncq_z.get()), (127, 3));
        assert_eq!(queues.to_dword().get(), 0x0003_007f);
    }

    #[test]
    fn timestamp_keeps_48_bits() {
        assert_eq!(Timestamp::from_milliseconds(1_700_000_000_123).milliseconds(), 1_700_000_000_123);
        assert_eq!(Timestamp::from_milliseconds(u64::MAX).milliseconds(), (1 << 48) - 1);
    }

    #[test]
    fn temperature_parts_read_back() {
        let threshold = TemperatureThreshold::from_parts(0x0157, 3, true);
        assert_eq!((threshold.kelvin(), threshold.sensor(), threshold.threshold_type()), (0x157, 3, 1));
        assert_eq!(threshold.get(), 1 << 20 | 3 << 16 | 0x157);
    }
}
