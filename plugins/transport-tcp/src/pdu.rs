//! The PDUs of NVMe/TCP, byte for byte.
//!
//! Plain data: little-endian, byte-aligned, any bit pattern valid, fields named
//! and ordered as in the specification (TCP Transport 1.0 §3.6.2). Codes are
//! open newtypes. How a PDU is told from garbage, its digests and its padding
//! are in [`crate::codec`]; when it may be sent is in [`crate::connection`].
#![forbid(unsafe_code)]

use std::fmt;

use nvme_spec::command::Sqe;
use nvme_spec::completion::Cqe;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First byte of a PDU. TCP Transport 1.0 §3.3, figure 10.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct PduType(pub u8);

impl PduType {
    /// Initialize Connection Request.
    pub const IC_REQ: Self = Self(0x00);
    /// Initialize Connection Response.
    pub const IC_RESP: Self = Self(0x01);
    /// Host to Controller Terminate Connection Request.
    pub const H2C_TERM_REQ: Self = Self(0x02);
    /// Controller to Host Terminate Connection Request.
    pub const C2H_TERM_REQ: Self = Self(0x03);
    /// Command Capsule.
    pub const CAPSULE_CMD: Self = Self(0x04);
    /// Response Capsule.
    pub const CAPSULE_RESP: Self = Self(0x05);
    /// Host to Controller Data.
    pub const H2C_DATA: Self = Self(0x06);
    /// Controller to Host Data.
    pub const C2H_DATA: Self = Self(0x07);
    /// Ready to Transfer.
    pub const R2T: Self = Self(0x09);
}

impl fmt::Debug for PduType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PduKind::of(*self) {
            PduKind::Unknown => write!(f, "unknown {:#04x}", self.0),
            known => write!(f, "{known:?}"),
        }
    }
}

/// The PDU types as a closed set, every reserved code being [`PduKind::Unknown`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PduKind {
    /// Initialize Connection Request.
    IcReq,
    /// Initialize Connection Response.
    IcResp,
    /// Host to Controller Terminate Connection Request.
    H2cTermReq,
    /// Controller to Host Terminate Connection Request.
    C2hTermReq,
    /// Command Capsule.
    CapsuleCmd,
    /// Response Capsule.
    CapsuleResp,
    /// Host to Controller Data.
    H2cData,
    /// Controller to Host Data.
    C2hData,
    /// Ready to Transfer.
    R2t,
    /// A type this revision reserves.
    Unknown,
}

impl PduKind {
    /// Every kind, in the order of the codes.
    pub const ALL: [Self; 10] = [
        Self::IcReq,
        Self::IcResp,
        Self::H2cTermReq,
        Self::C2hTermReq,
        Self::CapsuleCmd,
        Self::CapsuleResp,
        Self::H2cData,
        Self::C2hData,
        Self::R2t,
        Self::Unknown,
    ];

    /// What a type byte means.
    #[must_use]
    pub const fn of(pdu_type: PduType) -> Self {
        match pdu_type {
            PduType::IC_REQ => Self::IcReq,
            PduType::IC_RESP => Self::IcResp,
            PduType::H2C_TERM_REQ => Self::H2cTermReq,
            PduType::C2H_TERM_REQ => Self::C2hTermReq,
            PduType::CAPSULE_CMD => Self::CapsuleCmd,
            PduType::CAPSULE_RESP => Self::CapsuleResp,
            PduType::H2C_DATA => Self::H2cData,
            PduType::C2H_DATA => Self::C2hData,
            PduType::R2T => Self::R2t,
            PduType(0x08 | 0x0a..) => Self::Unknown,
        }
    }

    /// Length of the header without its digest; 0 for an unknown type.
    #[must_use]
    pub const fn header_len(self) -> u8 {
        match self {
            Self::IcReq | Self::IcResp => IC_LEN as u8,
            Self::CapsuleCmd => CAPSULE_CMD_LEN as u8,
            Self::H2cTermReq
            | Self::C2hTermReq
            | Self::CapsuleResp
            | Self::H2cData
            | Self::C2hData
            | Self::R2t => SHORT_LEN as u8,
            Self::Unknown => 0,
        }
    }

    /// Whether the header is followed by a digest once digests are agreed on.
    #[must_use]
    pub const fn has_header_digest(self) -> bool {
        match self {
            Self::CapsuleCmd | Self::CapsuleResp | Self::H2cData | Self::C2hData | Self::R2t => true,
            Self::IcReq | Self::IcResp | Self::H2cTermReq | Self::C2hTermReq | Self::Unknown => false,
        }
    }
}

/// Flags of a PDU; which ones a type defines is said at their names.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct PduFlags(pub u8);

impl PduFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// A header digest follows the header.
    pub const HDGSTF: Self = Self(1 << 0);
    /// A data digest follows the data.
    pub const DDGSTF: Self = Self(1 << 1);
    /// H2CData: last of its R2T. C2HData: last of its command.
    pub const LAST_PDU: Self = Self(1 << 2);
    /// C2HData: the command succeeded and no response capsule follows.
    pub const SUCCESS: Self = Self(1 << 3);

    /// Whether every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags, and `other` if `condition`.
    #[must_use]
    pub const fn with_if(self, condition: bool, other: Self) -> Self {
        if condition { Self(self.0 | other.0) } else { self }
    }
}

/// First 8 bytes of every PDU. TCP Transport 1.0 §3.6.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommonHeader {
    /// PDU-Type.
    pub pdu_type: PduType,
    /// FLAGS.
    pub flags: PduFlags,
    /// Header Length, without the digest.
    pub hlen: u8,
    /// PDU Data Offset from the start of the PDU.
    pub pdo: u8,
    /// PDU Length, everything included.
    pub plen: U32,
}

impl CommonHeader {
    /// A header of `kind` without data.
    #[must_use]
    pub fn new(pdu_type: PduType, flags: PduFlags, hlen: usize, pdo: u8, plen: u32) -> Self {
        let hlen = u8::try_from(hlen).expect("no PDU header is longer than 128 bytes");
        Self { pdu_type, flags, hlen, pdo, plen: U32::new(plen) }
    }
}

/// Initialize Connection Request. TCP Transport 1.0 §3.6.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcReq {
    /// PDU header.
    pub ch: CommonHeader,
    /// PDU Format Version.
    pub pfv: U16,
    /// Host PDU Data Alignment in dwords, 0's based.
    pub hpda_z: u8,
    /// Digests the host asks for.
    pub dgst: DigestFlags,
    /// Maximum number of outstanding R2Ts for a command, 0's based.
    pub maxr2t_z: U32,
    _rsvd16: [u8; 112],
}

/// Initialize Connection Response. TCP Transport 1.0 §3.6.2.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcResp {
    /// PDU header.
    pub ch: CommonHeader,
    /// PDU Format Version.
    pub pfv: U16,
    /// Controller PDU Data Alignment in dwords, 0's based.
    pub cpda_z: u8,
    /// Digests that are used.
    pub dgst: DigestFlags,
    /// Maximum Host to Controller Data length in bytes.
    pub maxh2cdata: U32,
    _rsvd16: [u8; 112],
}

impl IcReq {
    /// A request of format version 0.
    #[must_use]
    pub fn new(hpda_z: u8, dgst: DigestFlags, maxr2t_z: u32) -> Self {
        let ch = CommonHeader::new(PduType::IC_REQ, PduFlags::NONE, IC_LEN, 0, IC_LEN as u32);
        Self { ch, pfv: U16::new(0), hpda_z, dgst, maxr2t_z: U32::new(maxr2t_z), _rsvd16: [0; 112] }
    }
}

impl IcResp {
    /// A response of format version 0.
    #[must_use]
    pub fn new(cpda_z: u8, dgst: DigestFlags, maxh2cdata: u32) -> Self {
        let ch = CommonHeader::new(PduType::IC_RESP, PduFlags::NONE, IC_LEN, 0, IC_LEN as u32);
        Self { ch, pfv: U16::new(0), cpda_z, dgst, maxh2cdata: U32::new(maxh2cdata), _rsvd16: [0; 112] }
    }
}

/// DGST of ICReq and ICResp.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct DigestFlags(pub u8);

impl DigestFlags {
    /// Header digests.
    pub const HDGST_ENABLE: u8 = 1 << 0;
    /// Data digests.
    pub const DDGST_ENABLE: u8 = 1 << 1;

    /// From the two bits.
    #[must_use]
    pub const fn new(header: bool, data: bool) -> Self {
        Self(header as u8 | (data as u8) << 1)
    }

    /// Whether header digests are asked for or used.
    #[must_use]
    pub const fn header(self) -> bool {
        self.0 & Self::HDGST_ENABLE != 0
    }

    /// Whether data digests are asked for or used.
    #[must_use]
    pub const fn data(self) -> bool {
        self.0 & Self::DDGST_ENABLE != 0
    }
}

/// Terminate Connection Request of either direction; up to [`TERM_REQ_MAX_DATA`] bytes of the offending
/// header follow. TCP Transport 1.0 §3.6.2.4 and §3.6.2.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TermReq {
    /// PDU header.
    pub ch: CommonHeader,
    /// Fatal Error Status.
    pub fes: FatalErrorStatus,
    /// Fatal Error Information.
    pub fei: U32,
    _rsvd14: [u8; 10],
}

impl TermReq {
    /// A request that quotes `data_len` bytes of the header that was wrong.
    #[must_use]
    pub fn new(pdu_type: PduType, fes: FatalErrorStatus, fei: u32, data_len: usize) -> Self {
        let plen = (SHORT_LEN + data_len.min(TERM_REQ_MAX_DATA)) as u32;
        let ch = CommonHeader::new(pdu_type, PduFlags::NONE, SHORT_LEN, 0, plen);
        Self { ch, fes, fei: U32::new(fei), _rsvd14: [0; 10] }
    }
}

/// Fatal Error Status of a Terminate Connection Request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct FatalErrorStatus(pub U16);

impl FatalErrorStatus {
    /// A field of the PDU header is invalid; FEI is its offset.
    pub const INVALID_PDU_HEADER_FIELD: Self = Self(U16::new(0x01));
    /// The PDU was not expected.
    pub const PDU_SEQUENCE_ERROR: Self = Self(U16::new(0x02));
    /// The header digest is wrong; FEI is the digest as received.
    pub const HEADER_DIGEST_ERROR: Self = Self(U16::new(0x03));
    /// Data outside of what was asked for.
    pub const DATA_TRANSFER_OUT_OF_RANGE: Self = Self(U16::new(0x04));
    /// From a controller: H2CData longer than MAXH2CDATA. From a host: more R2Ts than MAXR2T.
    pub const LIMIT_EXCEEDED: Self = Self(U16::new(0x05));
    /// A parameter is not supported; FEI is its offset.
    pub const UNSUPPORTED_PARAMETER: Self = Self(U16::new(0x06));

    /// The specification's words; those of the code's two meanings at [`Self::LIMIT_EXCEEDED`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0.get() {
            0x01 => "invalid PDU header field",
            0x02 => "PDU sequence error",
            0x03 => "header digest error",
            0x04 => "data transfer out of range",
            0x05 => "data transfer or R2T limit exceeded",
            0x06 => "unsupported parameter",
            _ => "reserved",
        }
    }
}

impl fmt::Debug for FatalErrorStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x} ({})", self.0.get(), self.name())
    }
}

/// Command Capsule; in-capsule data may follow. TCP Transport 1.0 §3.6.2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleCmd {
    /// PDU header.
    pub ch: CommonHeader,
    /// Command Capsule SQE.
    pub ccsqe: Sqe,
}

/// Response Capsule. TCP Transport 1.0 §3.6.2.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleResp {
    /// PDU header.
    pub ch: CommonHeader,
    /// Response Capsule CQE.
    pub rccqe: Cqe,
}

/// Host to Controller Data; the data follows. TCP Transport 1.0 §3.6.2.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct H2cData {
    /// PDU header.
    pub ch: CommonHeader,
    /// Command Capsule CID.
    pub cccid: U16,
    /// Transfer Tag of the R2T this answers.
    pub ttag: U16,
    /// Offset in the command's data.
    pub datao: U32,
    /// Bytes of data in this PDU.
    pub datal: U32,
    _rsvd20: U32,
}

/// Controller to Host Data; the data follows. TCP Transport 1.0 §3.6.2.9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct C2hData {
    /// PDU header.
    pub ch: CommonHeader,
    /// Command Capsule CID.
    pub cccid: U16,
    _rsvd10: U16,
    /// Offset in the command's data.
    pub datao: U32,
    /// Bytes of data in this PDU.
    pub datal: U32,
    _rsvd20: U32,
}

/// Ready to Transfer. TCP Transport 1.0 §3.6.2.10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct R2t {
    /// PDU header.
    pub ch: CommonHeader,
    /// Command Capsule CID.
    pub cccid: U16,
    /// Transfer Tag the answers have to carry.
    pub ttag: U16,
    /// Offset in the command's data.
    pub r2to: U32,
    /// Bytes asked for.
    pub r2tl: U32,
    _rsvd20: U32,
}

impl H2cData {
    /// Data of a command; the header is filled in by the codec.
    #[must_use]
    pub fn new(ch: CommonHeader, cccid: u16, ttag: u16, datao: u32, datal: u32) -> Self {
        let (cccid, ttag) = (U16::new(cccid), U16::new(ttag));
        Self { ch, cccid, ttag, datao: U32::new(datao), datal: U32::new(datal), _rsvd20: U32::new(0) }
    }
}

impl C2hData {
    /// Data of a command; the header is filled in by the codec.
    #[must_use]
    pub fn new(ch: CommonHeader, cccid: u16, datao: u32, datal: u32) -> Self {
        let (cccid, _rsvd10, _rsvd20) = (U16::new(cccid), U16::new(0), U32::new(0));
        Self { ch, cccid, _rsvd10, datao: U32::new(datao), datal: U32::new(datal), _rsvd20 }
    }
}

impl R2t {
    /// A request for data of a command.
    #[must_use]
    pub fn new(ch: CommonHeader, cccid: u16, ttag: u16, r2to: u32, r2tl: u32) -> Self {
        let (cccid, ttag) = (U16::new(cccid), U16::new(ttag));
        Self { ch, cccid, ttag, r2to: U32::new(r2to), r2tl: U32::new(r2tl), _rsvd20: U32::new(0) }
    }
}

/// Length of [`CommonHeader`].
pub const COMMON_LEN: usize = 8;
/// Length of [`IcReq`] and [`IcResp`].
pub const IC_LEN: usize = 128;
/// Length of [`CapsuleCmd`].
pub const CAPSULE_CMD_LEN: usize = 72;
/// Length of every other PDU header.
pub const SHORT_LEN: usize = 24;
/// Length of a header or data digest.
pub const DIGEST_LEN: usize = 4;
/// Longest data of a Terminate Connection Request. TCP Transport 1.0 §3.5.
pub const TERM_REQ_MAX_DATA: usize = 128;
/// Longest Terminate Connection Request. TCP Transport 1.0 §3.5.
pub const TERM_REQ_MAX_LEN: usize = SHORT_LEN + TERM_REQ_MAX_DATA;
/// Highest value of HPDA and CPDA: 128 bytes.
pub const MAX_PDA_Z: u8 = 31;
/// Least value of MAXH2CDATA.
pub const MIN_MAXH2CDATA: u32 = 4096;
/// In-capsule data of admin and fabrics commands. TCP Transport 1.0 §3.3.1.
pub const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;

/// Offset of a header field, as FEI tells it.
pub mod field {
    /// PDU-Type.
    pub const TYPE: u32 = 0;
    /// FLAGS.
    pub const FLAGS: u32 = 1;
    /// HLEN.
    pub const HLEN: u32 = 2;
    /// PDO.
    pub const PDO: u32 = 3;
    /// PLEN.
    pub const PLEN: u32 = 4;
    /// PFV of ICReq and ICResp.
    pub const PFV: u32 = 8;
    /// HPDA of ICReq, CPDA of ICResp.
    pub const PDA: u32 = 10;
    /// DGST of ICReq and ICResp.
    pub const DGST: u32 = 11;
    /// MAXH2CDATA of ICResp.
    pub const MAXH2CDATA: u32 = 12;
    /// CCCID of H2CData, C2HData and R2T.
    pub const CCCID: u32 = 8;
    /// TTAG of H2CData and R2T.
    pub const TTAG: u32 = 10;
    /// DATAO of H2CData and C2HData, R2TO of R2T.
    pub const OFFSET: u32 = 12;
    /// DATAL of H2CData and C2HData, R2TL of R2T.
    pub const LENGTH: u32 = 16;
    /// CID of the completion in CapsuleResp.
    pub const RCCQE_CID: u32 = 20;
}

const _: () = {
    use std::mem::offset_of;
    assert!(
        size_of::<CommonHeader>() == COMMON_LEN && offset_of!(CommonHeader, plen) == field::PLEN as usize
    );
    assert!(size_of::<IcReq>() == IC_LEN && offset_of!(IcReq, hpda_z) == field::PDA as usize);
    assert!(offset_of!(IcReq, pfv) == field::PFV as usize && offset_of!(IcReq, maxr2t_z) == 12);
    assert!(size_of::<IcResp>() == IC_LEN && offset_of!(IcResp, cpda_z) == field::PDA as usize);
    assert!(offset_of!(IcResp, dgst) == field::DGST as usize);
    assert!(offset_of!(IcResp, maxh2cdata) == field::MAXH2CDATA as usize);
    assert!(size_of::<TermReq>() == SHORT_LEN && offset_of!(TermReq, fei) == 10);
    assert!(size_of::<CapsuleCmd>() == CAPSULE_CMD_LEN && offset_of!(CapsuleCmd, ccsqe) == 8);
    assert!(size_of::<CapsuleResp>() == SHORT_LEN && offset_of!(CapsuleResp, rccqe) == 8);
    assert!(offset_of!(CapsuleResp, rccqe) + offset_of!(Cqe, cid) == field::RCCQE_CID as usize);
    assert!(size_of::<H2cData>() == SHORT_LEN && offset_of!(H2cData, cccid) == field::CCCID as usize);
    assert!(offset_of!(H2cData, ttag) == field::TTAG as usize);
    assert!(offset_of!(H2cData, datao) == field::OFFSET as usize);
    assert!(offset_of!(H2cData, datal) == field::LENGTH as usize);
    assert!(size_of::<C2hData>() == SHORT_LEN && offset_of!(C2hData, datao) == field::OFFSET as usize);
    assert!(size_of::<R2t>() == SHORT_LEN && offset_of!(R2t, r2tl) == field::LENGTH as usize);
    assert!(TERM_REQ_MAX_LEN == 152);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_byte_has_a_kind_and_the_kinds_a_header_length() {
        let known = (0..=u8::MAX).filter(|code| PduKind::of(PduType(*code)) != PduKind::Unknown).count();
        assert_eq!(known, PduKind::ALL.len() - 1);
        for kind in PduKind::ALL {
            assert_eq!(kind.header_len() == 0, kind == PduKind::Unknown);
        }
    }

    #[test]
    fn directions_are_the_lowest_bit_of_the_type() {
        let to_host =
            [PduType::IC_RESP, PduType::C2H_TERM_REQ, PduType::CAPSULE_RESP, PduType::C2H_DATA, PduType::R2T];
        assert!(to_host.iter().all(|pdu_type| pdu_type.0 & 1 == 1));
    }
}
