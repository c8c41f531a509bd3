//! Fabrics commands: Connect, Disconnect, Property Get and Set, and their results. Base 2.0c §6.
//!
//! Authentication Send and Receive are in [`crate::auth`], property values in
//! [`crate::property`].

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::{CommandFlags, command_view};
use crate::nqn::{HostId, NqnField};
use crate::opcode::FabricsType;
use crate::property::PropertyOffset;
use crate::sgl::DataPointer;

/// CNTLID in Connect's data that asks for any controller (dynamic controller model). Base 2.0c §6.3.
pub const CNTLID_DYNAMIC: u16 = 0xffff;

/// CNTLID in Connect's data that asks for any controller in the static model. Base 2.0c §6.3.
pub const CNTLID_STATIC_ANY: u16 = 0xfffe;

/// Highest controller identifier a controller may have: FFF0h to FFFFh are reserved.
pub const CNTLID_MAX: u16 = 0xffef;

/// Queue identifier of the admin queue.
pub const QID_ADMIN: u16 = 0;

/// Smallest admin queue over fabrics, in entries.
pub const ADMIN_QUEUE_MIN_ENTRIES: u16 = 32;

/// Connect's record format.
pub const CONNECT_RECFMT: u16 = 0;

/// The first 40 bytes of a fabrics command. Base 2.0c §6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FabricsHead {
    /// Opcode, always [`crate::opcode::FABRICS`].
    pub opc: u8,
    /// Data pointer selection, always SGL.
    pub flags: CommandFlags,
    /// Command identifier.
    pub cid: U16,
    /// Fabrics command type.
    pub fctype: FabricsType,
    _rsvd5: [u8; 19],
    /// SGL descriptor of the data, if the command has any.
    pub sgl1: DataPointer,
}

assert_layout!(FabricsHead, 40, cid: 2, fctype: 4, sgl1: 24);

/// Connect; its data is [`ConnectData`]. Base 2.0c §6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Connect {
    /// Fields common to fabrics commands.
    pub head: FabricsHead,
    /// Record Format, [`CONNECT_RECFMT`].
    pub recfmt: U16,
    /// Queue Identifier; 0 creates a controller.
    pub qid: U16,
    /// Submission Queue Size, 0's based.
    pub sqsize_z: U16,
    /// Connect Attributes.
    pub cattr: ConnectAttributes,
    _rsvd47: u8,
    /// Keep Alive Timeout, in milliseconds; 0 for none. Admin queue only.
    pub kato_ms: U32,
    _rsvd52: [u8; 12],
}

command_view!(Connect, recfmt: 40, qid: 42, sqsize_z: 44, cattr: 46, kato_ms: 48);

impl Connect {
    /// Submission queue size in entries.
    #[must_use]
    pub const fn queue_entries(&self) -> u32 {
        self.sqsize_z.get() as u32 + 1
    }
}

bit_set! {
    /// CATTR, Connect Attributes; bits 1:0 are the priority class. Base 2.0c §6.3.
    pub struct ConnectAttributes(u8) {
        DISABLE_SQ_FLOW_CONTROL = 1 << 2, "The host does without submission queue flow control";
        INDIVIDUAL_QUEUE_DELETION = 1 << 3, "The host may delete individual I/O queues";
    }
}

impl ConnectAttributes {
    /// Priority class for weighted round robin: 0 urgent, 1 high, 2 medium, 3 low.
    #[must_use]
    pub const fn priority_class(self) -> u8 {
        self.field(0, 2)
    }
}

/// Data of Connect. Base 2.0c §6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host Identifier.
    pub hostid: HostId,
    /// Controller ID: which one an I/O queue belongs to, or [`CNTLID_DYNAMIC`] for a new one.
    pub cntlid: U16,
    _rsvd18: [u8; 238],
    /// NVM Subsystem NVMe Qualified Name.
    pub subnqn: NqnField,
    /// Host NVMe Qualified Name.
    pub hostnqn: NqnField,
    _rsvd768: [u8; 256],
}

assert_layout!(ConnectData, 1024, hostid: 0, cntlid: 16, subnqn: 256, hostnqn: 512);

/// Completion dword 0 of a successful Connect. Base 2.0c §6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectResult {
    /// Controller ID allocated or joined.
    pub cntlid: U16,
    /// Authentication and security requirements.
    pub authreq: AuthenticationRequirements,
}

assert_layout!(ConnectResult, 4, cntlid: 0, authreq: 2);

impl ConnectResult {
    /// The result as completion dword 0 holds it.
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

bit_set! {
    /// AUTHREQ: what the queue needs before other commands are taken. Base 2.0c §6.3.
    pub struct AuthenticationRequirements(U16 as u16) {
        ATR = 1 << 1, "Authentication transaction required";
        ASCR = 1 << 2, "Authentication and secure channel required";
    }
}

/// Completion dword 0 of a Connect that failed with Connect Invalid Parameters. Base 2.0c §6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InvalidParameter {
    /// Invalid Parameter Offset, in bytes.
    pub ipo: U16,
    /// Invalid Attributes: where the offset counts from.
    pub iattr: InvalidAttributes,
    _rsvd3: u8,
}

assert_layout!(InvalidParameter, 4, ipo: 0, iattr: 2);

impl InvalidParameter {
    /// A parameter in the submission queue entry.
    #[must_use]
    pub const fn in_sqe(offset: u16) -> Self {
        Self { ipo: U16::new(offset), iattr: InvalidAttributes::EMPTY, _rsvd3: 0 }
    }

    /// A parameter in Connect's data.
    #[must_use]
    pub const fn in_data(offset: u16) -> Self {
        Self { ipo: U16::new(offset), iattr: InvalidAttributes::DATA, _rsvd3: 0 }
    }

    /// The result as completion dword 0 holds it.
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

bit_set! {
    /// IATTR, Invalid Attributes. Base 2.0c §6.3.
    pub struct InvalidAttributes(u8) {
        DATA = 1 << 0, "The offset counts from the start of Connect's data, not of the SQE";
    }
}

/// Disconnect: deletes the I/O queue it is sent on. Base 2.0c §6.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Disconnect {
    /// Fields common to fabrics commands.
    pub head: FabricsHead,
    /// Record Format, 0.
    pub recfmt: U16,
    _rsvd42: [u8; 22],
}

command_view!(Disconnect, recfmt: 40);

/// Property Get; the value is in the completion's two result dwords. Base 2.0c §6.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertyGet {
    /// Fields common to fabrics commands.
    pub head: FabricsHead,
    /// Attributes: the property's size.
    pub attrib: PropertyAttributes,
    _rsvd41: [u8; 3],
    /// Offset of the property.
    pub ofst: PropertyOffset,
    _rsvd48: [u8; 16],
}

command_view!(PropertyGet, attrib: 40, ofst: 44);

/// Property Set. Base 2.0c §6.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertySet {
    /// Fields common to fabrics commands.
    pub head: FabricsHead,
    /// Attributes: the property's size.
    pub attrib: PropertyAttributes,
    _rsvd41: [u8; 3],
    /// Offset of the property.
    pub ofst: PropertyOffset,
    /// The value; the upper half is reserved for properties of four bytes.
    pub value: U64,
    _rsvd56: [u8; 8],
}

command_view!(PropertySet, attrib: 40, ofst: 44, value: 48);

open_enum! {
    /// ATTRIB of the property commands; bits 2:0 are the size. Base 2.0c §6.5.
    pub struct PropertyAttributes(u8) {
        SIZE_4 = 0b000, "Property of 4 bytes";
        SIZE_8 = 0b001, "Property of 8 bytes";
    }
}

impl PropertyAttributes {
    /// Size in bytes, `None` if reserved.
    #[must_use]
    pub const fn size(self) -> Option<u32> {
        match self.0 & 0b111 {
            0b000 => Some(4),
            0b001 => Some(8),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_results_share_dword_zero() {
        let result = ConnectResult { cntlid: U16::new(7), authreq: AuthenticationRequirements::ATR };
        assert_eq!(result.to_dw0().get(), 7 | 1 << 17);
        assert_eq!(ConnectResult::from_dw0(U32::new(7 | 1 << 18)).authreq, AuthenticationRequirements::ASCR);
        assert_eq!(InvalidParameter::in_data(256).to_dw0().get(), 0x0001_0100);
        assert_eq!(InvalidParameter::in_sqe(42).to_dw0().get(), 42);
    }

    #[test]
    fn queue_of_the_largest_size_does_not_overflow() {
        use zerocopy::FromZeros;
        let mut connect = Connect::new_zeroed();
        connect.sqsize_z.set(u16::MAX);
        assert_eq!(connect.queue_entries(), 65_536);
    }

    #[test]
    fn property_size_ignores_the_reserved_bits() {
        assert_eq!(PropertyAttributes(0xf9).size(), Some(8));
        assert_eq!(PropertyAttributes(0x02).size(), None);
    }
}
