//! Endurance Group Information (09h) and Endurance Group Event Aggregate (0Fh).

use zerocopy::little_endian::{U16, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Endurance Group Information (09h); the group is the command's Log Specific Identifier. Base 2.0c §5.16.1.10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EnduranceGroupInformation {
    /// Critical Warning: bit 0 spare, 2 reliability, 3 read only.
    pub critical_warning: u8,
    /// Endurance Group Features.
    pub features: u8,
    _rsvd2: u8,
    /// Available Spare, in percent.
    pub available_spare: u8,
    /// Available Spare Threshold, in percent.
    pub available_spare_threshold: u8,
    /// Percentage Used; may exceed 100.
    pub percentage_used: u8,
    /// Domain Identifier; 0 without domains.
    pub domain: U16,
    _rsvd8: [u8; 24],
    /// Endurance Estimate, in billions of bytes; 0 if not reported.
    pub endurance_estimate: U128,
    /// Data Units Read, in billions of bytes, rounded up.
    pub data_units_read: U128,
    /// Data Units Written, in billions of bytes, rounded up.
    pub data_units_written: U128,
    /// Media Units Written, in billions of bytes, rounded up.
    pub media_units_written: U128,
    /// Host Read Commands.
    pub host_read_commands: U128,
    /// Host Write Commands.
    pub host_write_commands: U128,
    /// Media and Data Integrity Errors.
    pub media_errors: U128,
    /// Number of Error Information Log Entries.
    pub error_log_entries: U128,
    /// Total Endurance Group Capacity, in bytes.
    pub total_capacity: U128,
    /// Unallocated Endurance Group Capacity, in bytes.
    pub unallocated_capacity: U128,
    _rsvd192: [u8; 320],
}

assert_layout!(
    EnduranceGroupInformation,
    512,
    available_spare: 3, available_spare_threshold: 4, percentage_used: 5, domain: 6, endurance_estimate: 32,
    data_units_read: 48, data_units_written: 64, media_units_written: 80, host_read_commands: 96,
    host_write_commands: 112, media_errors: 128, error_log_entries: 144, total_capacity: 160,
    unallocated_capacity: 176
);

/// Head of Endurance Group Event Aggregate (0Fh); as many group identifiers of two bytes follow.
///
/// Base 2.0c §5.16.1.16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EnduranceGroupAggregate {
    /// Number of groups with an event that was not read.
    pub count: U64,
}

assert_layout!(EnduranceGroupAggregate, 8, count: 0);
