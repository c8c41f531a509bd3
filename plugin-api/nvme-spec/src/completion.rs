//! The completion queue entry.
//!
//! Over fabrics it travels in a response capsule, without a phase tag and
//! with a submission queue identifier that the receiver ignores.

use core::fmt;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::status::StatusCode;

/// Size of a completion queue entry: 2 to the power of [`CQES_LOG2`].
pub const CQE_SIZE: usize = 16;

/// The completion queue entry size as CC.IOCQES and Identify's CQES tell it.
pub const CQES_LOG2: u8 = 4;

/// A completion queue entry. Base 2.0c §3.3.3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// Command-specific result.
    pub dw0: U32,
    /// Command-specific result, upper half where it has 64 bits.
    pub dw1: U32,
    /// Submission queue head pointer: how much of the queue may be used again.
    pub sqhd: U16,
    /// Submission queue identifier; reserved over fabrics.
    pub sqid: U16,
    /// Identifier of the command that completed.
    pub cid: U16,
    /// Phase tag and status.
    pub status: StatusField,
}

assert_layout!(Cqe, CQE_SIZE, dw0: 0, dw1: 4, sqhd: 8, sqid: 10, cid: 12, status: 14);

impl Cqe {
    /// A completion with a zero result.
    #[inline]
    #[must_use]
    pub const fn new(cid: u16, sqhd: u16, status: StatusField) -> Self {
        // Written as it is read: see `to_u128`.
        Self::from_u128((status.0.get() as u128) << 112 | (cid as u128) << 96 | (sqhd as u128) << 64)
    }

    /// The entry as one little-endian number. Data paths pass it on as one: read in other pieces than it was just
    /// written in, it would wait until all that was written before, data of commands among it, has left the
    /// processor's store buffer.
    #[inline]
    #[must_use]
    pub const fn to_u128(self) -> u128 {
        let bytes: [u8; CQE_SIZE] = zerocopy::transmute!(self);
        u128::from_le_bytes(bytes)
    }

    /// The entry that is this little-endian number.
    #[inline]
    #[must_use]
    pub const fn from_u128(number: u128) -> Self {
        zerocopy::transmute!(number.to_le_bytes())
    }

    /// Both result dwords as one number: Property Get's value, Zone Append's LBA.
    #[must_use]
    pub const fn result_u64(&self) -> u64 {
        (self.dw1.get() as u64) << 32 | self.dw0.get() as u64
    }

    /// Sets both result dwords from one number.
    pub fn set_result_u64(&mut self, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.dw0 = U32::from_bytes([a, b, c, d]);
        self.dw1 = U32::from_bytes([e, f, g, h]);
    }
}

/// Bits 31:16 of completion dword 3: phase tag, status code and type, retry advice. Base 2.0c §3.3.3.2.1.
///
/// | bits | 15 | 14 | 13:12 | 11:9 | 8:1 | 0 |
/// |---|---|---|---|---|---|---|
/// | field | DNR | M | CRD | SCT | SC | phase tag |
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct StatusField(pub U16);

impl StatusField {
    /// Success, phase tag clear.
    pub const SUCCESS: Self = Self::new(StatusCode::SUCCESS);

    /// A status without retry advice, phase tag clear.
    #[must_use]
    pub const fn new(code: StatusCode) -> Self {
        Self(U16::new((code.get() & StatusCode::MASK) << 1))
    }

    /// Status code and status code type.
    #[must_use]
    pub const fn code(self) -> StatusCode {
        StatusCode::from_u16(self.0.get() >> 1 & StatusCode::MASK)
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.code().get() == StatusCode::SUCCESS.get()
    }

    /// Do Not Retry: the same command would fail again.
    #[must_use]
    pub const fn dnr(self) -> bool {
        self.0.get() & Self::DNR != 0
    }

    /// More: the Error Information log has an entry on this failure.
    #[must_use]
    pub const fn more(self) -> bool {
        self.0.get() & Self::MORE != 0
    }

    /// Command Retry Delay: 0 for none, 1 to 3 for Identify Controller's CRDT1 to CRDT3.
    #[must_use]
    pub const fn crd(self) -> u8 {
        (self.0.get() >> Self::CRD_SHIFT & 0b11) as u8
    }

    /// Phase tag, which only memory-based completion queues have.
    #[must_use]
    pub const fn phase(self) -> bool {
        self.0.get() & 1 != 0
    }

    /// This status with Do Not Retry set or cleared.
    #[must_use]
    pub const fn with_dnr(self, dnr: bool) -> Self {
        self.with_bit(Self::DNR, dnr)
    }

    /// This status with More set or cleared.
    #[must_use]
    pub const fn with_more(self, more: bool) -> Self {
        self.with_bit(Self::MORE, more)
    }

    /// This status with the phase tag set or cleared.
    #[must_use]
    pub const fn with_phase(self, phase: bool) -> Self {
        self.with_bit(1, phase)
    }

    /// This status with a Command Retry Delay; only the low two bits of `crd` count.
    #[must_use]
    pub const fn with_crd(self, crd: u8) -> Self {
        let cleared = self.0.get() & !(0b11 << Self::CRD_SHIFT);
        Self(U16::new(cleared | (crd as u16 & 0b11) << Self::CRD_SHIFT))
    }

    const fn with_bit(self, bit: u16, set: bool) -> Self {
        let cleared = self.0.get() & !bit;
        Self(U16::new(if set { cleared | bit } else { cleared }))
    }

    const DNR: u16 = 1 << 15;
    const MORE: u16 = 1 << 14;
    const CRD_SHIFT: u32 = 12;
}

impl From<StatusCode> for StatusField {
    fn from(code: StatusCode) -> Self {
        Self::new(code)
    }
}

impl fmt::Debug for StatusField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatusField({:?}", self.code())?;
        if self.crd() != 0 {
            write!(f, " crd={}", self.crd())?;
        }
        if self.more() {
            f.write_str(" more")?;
        }
        if self.dnr() {
            f.write_str(" dnr")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_status_do_not_touch_each_other() {
        let status = StatusField::new(StatusCode::INVALID_FIELD).with_dnr(true).with_crd(2).with_phase(true);
        assert_eq!(status.code(), StatusCode::INVALID_FIELD);
        assert!(status.dnr() && status.phase() && !status.more() && !status.is_success());
        assert_eq!(status.crd(), 2);
        assert_eq!(status.0.get(), 0x8000 | 2 << 12 | 2 << 1 | 1);
        assert_eq!(status.with_dnr(false).with_crd(0).with_phase(false), StatusCode::INVALID_FIELD.into());
    }

    #[test]
    fn success_with_the_phase_tag_is_still_success() {
        assert!(StatusField::SUCCESS.with_phase(true).is_success());
    }

    #[test]
    fn result_of_64_bits_is_low_dword_first() {
        let mut cqe = Cqe::new(7, 1, StatusField::SUCCESS);
        cqe.set_result_u64(0x1122_3344_5566_7788);
        assert_eq!(cqe.dw0.get(), 0x5566_7788);
        assert_eq!(cqe.result_u64(), 0x1122_3344_5566_7788);
    }
}
