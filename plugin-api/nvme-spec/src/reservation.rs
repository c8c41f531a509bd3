//! Reservations: the four commands, their data, and the registrant report.
//!
//! What a reservation forbids is the target's business, not this crate's.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::{CommandHead, command_view};

bit_set! {
    /// RESCAP, Reservation Capabilities of a namespace.
    pub struct ReservationCapabilities(u8) {
        PTPL = 1 << 0, "Persist Through Power Loss";
        WRITE_EXCLUSIVE = 1 << 1, "Write Exclusive";
        EXCLUSIVE_ACCESS = 1 << 2, "Exclusive Access";
        WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 1 << 3, "Write Exclusive - Registrants Only";
        EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 1 << 4, "Exclusive Access - Registrants Only";
        WRITE_EXCLUSIVE_ALL_REGISTRANTS = 1 << 5, "Write Exclusive - All Registrants";
        EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 1 << 6, "Exclusive Access - All Registrants";
        IGNORE_KEY_1_3 = 1 << 7, "Ignore Existing Key as defined in revision 1.3 or later";
    }
}

open_enum! {
    /// Reservation Type. Base 2.0c §7.2.
    pub struct ReservationType(u8) {
        NONE = 0, "No reservation";
        WRITE_EXCLUSIVE = 1, "Write Exclusive";
        EXCLUSIVE_ACCESS = 2, "Exclusive Access";
        WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 3, "Write Exclusive - Registrants Only";
        EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 4, "Exclusive Access - Registrants Only";
        WRITE_EXCLUSIVE_ALL_REGISTRANTS = 5, "Write Exclusive - All Registrants";
        EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 6, "Exclusive Access - All Registrants";
    }
}

impl ReservationType {
    /// Whether every registrant holds the reservation.
    #[must_use]
    pub const fn is_all_registrants(self) -> bool {
        matches!(self, Self::WRITE_EXCLUSIVE_ALL_REGISTRANTS | Self::EXCLUSIVE_ACCESS_ALL_REGISTRANTS)
    }

    /// Whether registrants other than the holder may do what others may not.
    #[must_use]
    pub const fn is_registrants_only(self) -> bool {
        matches!(self, Self::WRITE_EXCLUSIVE_REGISTRANTS_ONLY | Self::EXCLUSIVE_ACCESS_REGISTRANTS_ONLY)
    }

    /// Whether reads by others are refused too.
    #[must_use]
    pub const fn is_exclusive_access(self) -> bool {
        matches!(
            self,
            Self::EXCLUSIVE_ACCESS
                | Self::EXCLUSIVE_ACCESS_REGISTRANTS_ONLY
                | Self::EXCLUSIVE_ACCESS_ALL_REGISTRANTS
        )
    }
}

bit_set! {
    /// Byte 40 of Register, Acquire and Release: action in bits 2:0, Ignore Existing Key in bit 3.
    pub struct ReservationControl(u8) {
        IGNORE_EXISTING_KEY = 1 << 3, "Ignore Existing Key";
    }
}

impl ReservationControl {
    /// RREGA, RACQA or RRELA: a [`RegisterAction`], [`AcquireAction`] or [`ReleaseAction`].
    #[must_use]
    pub const fn action(self) -> u8 {
        self.field(0, 3)
    }

    /// These bits with an action; three bits count.
    #[must_use]
    pub const fn with_action(self, action: u8) -> Self {
        self.with_field(0, 3, action)
    }
}

/// Reservation Register; its data is [`RegisterData`]. Base 2.0c §7.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReservationRegister {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Action, a [`RegisterAction`], and Ignore Existing Key.
    pub control: ReservationControl,
    _rsvd41: [u8; 2],
    /// Change Persist Through Power Loss State, in bits 7:6.
    pub cptpl: u8,
    _rsvd44: [u8; 20],
}

command_view!(ReservationRegister, control: 40, cptpl: 43);

impl ReservationRegister {
    /// What the action is.
    #[must_use]
    pub const fn rrega(&self) -> RegisterAction {
        RegisterAction(self.control.action())
    }

    /// What is to become of the Persist Through Power Loss state.
    #[must_use]
    pub const fn change_ptpl(&self) -> ChangePtpl {
        ChangePtpl(self.cptpl >> 6)
    }
}

open_enum! {
    /// RREGA, Reservation Register Action. Base 2.0c §7.3.
    pub struct RegisterAction(u8) {
        REGISTER = 0, "Register Reservation Key";
        UNREGISTER = 1, "Unregister Reservation Key";
        REPLACE = 2, "Replace Reservation Key";
    }
}

open_enum! {
    /// CPTPL, Change Persist Through Power Loss State. Base 2.0c §7.3.
    pub struct ChangePtpl(u8) {
        NO_CHANGE = 0b00, "No change";
        CLEAR = 0b10, "Released and cleared on a power on";
        PERSIST = 0b11, "Persist across power loss";
    }
}

/// Data of Reservation Register. Base 2.0c §7.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegisterData {
    /// Current Reservation Key.
    pub crkey: U64,
    /// New Reservation Key.
    pub nrkey: U64,
}

assert_layout!(RegisterData, 16, crkey: 0, nrkey: 8);

/// Reservation Acquire; its data is [`AcquireData`]. Base 2.0c §7.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReservationAcquire {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Action, an [`AcquireAction`], and Ignore Existing Key.
    pub control: ReservationControl,
    /// Reservation Type.
    pub rtype: ReservationType,
    _rsvd42: [u8; 22],
}

command_view!(ReservationAcquire, control: 40, rtype: 41);

impl ReservationAcquire {
    /// What the action is.
    #[must_use]
    pub const fn racqa(&self) -> AcquireAction {
        AcquireAction(self.control.action())
    }
}

open_enum! {
    /// RACQA, Reservation Acquire Action. Base 2.0c §7.2.
    pub struct AcquireAction(u8) {
        ACQUIRE = 0, "Acquire";
        PREEMPT = 1, "Preempt";
        PREEMPT_AND_ABORT = 2, "Preempt and Abort";
    }
}

/// Data of Reservation Acquire. Base 2.0c §7.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AcquireData {
    /// Current Reservation Key.
    pub crkey: U64,
    /// Preempt Reservation Key.
    pub prkey: U64,
}

assert_layout!(AcquireData, 16, crkey: 0, prkey: 8);

/// Reservation Release; its data is [`ReleaseData`]. Base 2.0c §7.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReservationRelease {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Action, a [`ReleaseAction`], and Ignore Existing Key.
    pub control: ReservationControl,
    /// Reservation Type.
    pub rtype: ReservationType,
    _rsvd42: [u8; 22],
}

command_view!(ReservationRelease, control: 40, rtype: 41);

impl ReservationRelease {
    /// What the action is.
    #[must_use]
    pub const fn rrela(&self) -> ReleaseAction {
        ReleaseAction(self.control.action())
    }
}

open_enum! {
    /// RRELA, Reservation Release Action. Base 2.0c §7.4.
    pub struct ReleaseAction(u8) {
        RELEASE = 0, "Release";
        CLEAR = 1, "Clear";
    }
}

/// Data of Reservation Release. Base 2.0c §7.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReleaseData {
    /// Current Reservation Key.
    pub crkey: U64,
}

assert_layout!(ReleaseData, 8, crkey: 0);

/// Reservation Report. Base 2.0c §7.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReservationReport {
    /// Fields common to all commands.
    pub head: CommandHead,
    /// Number of Dwords to transfer, 0's based.
    pub numd_z: U32,
    /// Bit 0: Extended Data Structure.
    pub eds: u8,
    _rsvd45: [u8; 19],
}

command_view!(ReservationReport, numd_z: 40, eds: 44);

impl ReservationReport {
    /// Whether the report has the form for 128-bit host identifiers, the only one over fabrics.
    #[must_use]
    pub const fn is_extended(&self) -> bool {
        self.eds & 1 != 0
    }

    /// Number of bytes to transfer.
    #[must_use]
    pub const fn length(&self) -> u64 {
        (self.numd_z.get() as u64 + 1) * 4
    }
}

/// Head of a Reservation Status data structure; [`RegisteredController`]s follow. Base 2.0c §7.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReservationStatus {
    /// Generation.
    pub r#gen: U32,
    /// Reservation Type held; 0 for none.
    pub rtype: ReservationType,
    /// Number of registered controllers.
    pub regctl: U16,
    _rsvd7: [u8; 2],
    /// Persist Through Power Loss State.
    pub ptpls: u8,
    _rsvd10: [u8; 14],
}

assert_layout!(ReservationStatus, 24, rtype: 4, regctl: 5, ptpls: 9);

/// Head of the extended Reservation Status; [`RegisteredControllerExtended`]s follow. Base 2.0c §7.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReservationStatusExtended {
    /// The fields both forms have.
    pub status: ReservationStatus,
    _rsvd24: [u8; 40],
}

assert_layout!(ReservationStatusExtended, 64, status: 0);

/// A registrant, 64-bit host identifier. Base 2.0c §7.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegisteredController {
    /// Controller ID; FFFFh if the host is registered without a controller.
    pub cntlid: U16,
    /// Reservation Status: bit 0 set if the host holds the reservation.
    pub rcsts: u8,
    _rsvd3: [u8; 5],
    /// Host Identifier.
    pub hostid: [u8; 8],
    /// Reservation Key.
    pub rkey: U64,
}

assert_layout!(RegisteredController, 24, cntlid: 0, rcsts: 2, hostid: 8, rkey: 16);

/// A registrant, 128-bit host identifier. Base 2.0c §7.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegisteredControllerExtended {
    /// Controller ID; FFFFh if the host is registered without a controller.
    pub cntlid: U16,
    /// Reservation Status: bit 0 set if the host holds the reservation.
    pub rcsts: u8,
    _rsvd3: [u8; 5],
    /// Reservation Key.
    pub rkey: U64,
    /// Host Identifier.
    pub hostid: [u8; 16],
    _rsvd32: [u8; 32],
}

assert_layout!(RegisteredControllerExtended, 64, cntlid: 0, rcsts: 2, rkey: 8, hostid: 16);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Sqe;
    use zerocopy::FromZeros;

    #[test]
    fn register_fields_come_from_dword_10() {
        let mut sqe = Sqe::new_zeroed();
        sqe.cdw10.set(0b11 << 30 | 1 << 3 | 2);
        let register: &ReservationRegister = sqe.view();
        assert_eq!(register.rrega(), RegisterAction::REPLACE);
        assert_eq!(register.change_ptpl(), ChangePtpl::PERSIST);
        assert!(register.control.contains(ReservationControl::IGNORE_EXISTING_KEY));
    }

    #[test]
    fn acquire_fields_come_from_dword_10() {
        let mut sqe = Sqe::new_zeroed();
        sqe.cdw10.set(5 << 8 | 1);
        let acquire: &ReservationAcquire = sqe.view();
        assert_eq!(acquire.racqa(), AcquireAction::PREEMPT);
        assert!(acquire.rtype.is_all_registrants() && !acquire.rtype.is_exclusive_access());
    }
}
