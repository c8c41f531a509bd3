//! SMART / Health Information (02h) and Firmware Slot Information (03h).

use zerocopy::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::text::AsciiField;

/// SMART / Health Information (02h). Base 2.0c §5.16.1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HealthInformation {
    /// Critical Warning.
    pub critical_warning: CriticalWarning,
    /// Composite Temperature, in kelvin.
    pub composite_temperature: U16,
    /// Available Spare, in percent.
    pub available_spare: u8,
    /// Available Spare Threshold, in percent.
    pub available_spare_threshold: u8,
    /// Percentage Used; may exceed 100.
    pub percentage_used: u8,
    /// Endurance Group Critical Warning Summary.
    pub endurance_group_warning: u8,
    _rsvd7: [u8; 25],
    /// Data Units Read, in units of 1000 times 512 bytes, rounded up.
    pub data_units_read: U128,
    /// Data Units Written, in units of 1000 times 512 bytes, rounded up.
    pub data_units_written: U128,
    /// Host Read Commands.
    pub host_read_commands: U128,
    /// Host Write Commands.
    pub host_write_commands: U128,
    /// Controller Busy Time, in minutes.
    pub controller_busy_time: U128,
    /// Power Cycles.
    pub power_cycles: U128,
    /// Power On Hours.
    pub power_on_hours: U128,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media and Data Integrity Errors.
    pub media_errors: U128,
    /// Number of Error Information Log Entries.
    pub error_log_entries: U128,
    /// Warning Composite Temperature Time, in minutes.
    pub warning_temperature_time: U32,
    /// Critical Composite Temperature Time, in minutes.
    pub critical_temperature_time: U32,
    /// Temperature Sensors 1 to 8, in kelvin; 0 for none.
    pub temperature_sensors: [U16; 8],
    /// Thermal Management Temperature 1 and 2 Transition Counts.
    pub thermal_transitions: [U32; 2],
    /// Total Times for Thermal Management Temperature 1 and 2, in seconds.
    pub thermal_times: [U32; 2],
    _rsvd232: [u8; 280],
}

assert_layout!(
    HealthInformation,
    512,
    composite_temperature: 1, available_spare: 3, percentage_used: 5, endurance_group_warning: 6,
    data_units_read: 32, data_units_written: 48, host_read_commands: 64, host_write_commands: 80,
    controller_busy_time: 96, power_cycles: 112, power_on_hours: 128, unsafe_shutdowns: 144, media_errors: 160,
    error_log_entries: 176, warning_temperature_time: 192, temperature_sensors: 200, thermal_transitions: 216,
    thermal_times: 224
);

bit_set! {
    /// Critical Warning. Base 2.0c §5.16.1.3.
    pub struct CriticalWarning(u8) {
        SPARE = 1 << 0, "Available spare is below its threshold";
        TEMPERATURE = 1 << 1, "A temperature is beyond a threshold";
        RELIABILITY = 1 << 2, "Reliability of the NVM subsystem is degraded";
        READ_ONLY = 1 << 3, "All media is in read only mode";
        VOLATILE_BACKUP = 1 << 4, "The volatile memory backup device has failed";
        PMR_READ_ONLY = 1 << 5, "The persistent memory region is read only or unreliable";
    }
}

/// Firmware Slot Information (03h). Base 2.0c §5.16.1.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareSlots {
    /// Active Firmware Info: running slot in bits 2:0, slot after the next reset in bits 6:4.
    pub afi: u8,
    _rsvd1: [u8; 7],
    /// Firmware Revisions of slots 1 to 7.
    pub frs: [AsciiField<8>; 7],
    _rsvd64: [u8; 448],
}

assert_layout!(FirmwareSlots, 512, afi: 0, frs: 8);
