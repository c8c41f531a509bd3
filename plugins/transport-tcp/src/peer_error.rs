//! What a peer can do wrong, and what the Terminate Connection Request says of it.
//!
//! Each variant is one rule of TCP Transport 1.0; [`PeerError::fatal_error`]
//! maps it to FES and FEI in one place. Errors that leave the connection usable
//! (data digests) are not here, they fail one command.
#![forbid(unsafe_code)]

use thiserror::Error;

use crate::pdu::{FatalErrorStatus, PduFlags, PduKind, PduType, field};

/// The peer broke the protocol; its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PeerError {
    /// The type is reserved or belongs to the other direction.
    #[error("PDU type {pdu_type:?} does not travel this way")]
    Type {
        /// As received.
        pdu_type: PduType,
    },
    /// HDGSTF or DDGSTF is not what was agreed on.
    #[error("flags {flags:?} of {pdu:?} do not fit the agreed digests")]
    DigestFlags {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        flags: PduFlags,
    },
    /// HLEN is not the length of this header.
    #[error("header length {hlen} of {pdu:?}")]
    HeaderLength {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        hlen: u8,
    },
    /// PDO is inside the header, beyond the PDU or not aligned as agreed.
    #[error("data offset {pdo} of {pdu:?}")]
    DataOffset {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        pdo: u8,
    },
    /// PLEN is below what the header needs, above a limit, or contradicts the data length.
    #[error("length {plen} of {pdu:?}")]
    PduLength {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        plen: u32,
    },
    /// The header digest does not match.
    #[error("header digest {received:#010x} of {pdu:?}, computed {computed:#010x}")]
    HeaderDigest {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        received: u32,
        /// Over the header as received.
        computed: u32,
    },
    /// The PDU is known but not expected now.
    #[error("{pdu:?} out of sequence")]
    Sequence {
        /// Kind of the PDU.
        pdu: PduKind,
    },
    /// PFV is not 0.
    #[error("PDU format version {pfv}")]
    FormatVersion {
        /// As received.
        pfv: u16,
    },
    /// HPDA or CPDA is more than 128 bytes.
    #[error("data alignment {pda_z} above 31")]
    Alignment {
        /// As received.
        pda_z: u8,
    },
    /// The controller uses a digest that was not asked for.
    #[error("digests {dgst:#04x} were not asked for")]
    DigestNotRequested {
        /// DGST as received.
        dgst: u8,
    },
    /// MAXH2CDATA is no multiple of 4.
    #[error("MAXH2CDATA {maxh2cdata} is no multiple of 4")]
    MaxH2cDataUnaligned {
        /// As received.
        maxh2cdata: u32,
    },
    /// MAXH2CDATA is below 4096.
    #[error("MAXH2CDATA {maxh2cdata} below 4096")]
    MaxH2cDataTooSmall {
        /// As received.
        maxh2cdata: u32,
    },
    /// No R2T with this tag is outstanding.
    #[error("unknown transfer tag {ttag:#06x}")]
    UnknownTransferTag {
        /// As received.
        ttag: u16,
    },
    /// No command with this identifier is outstanding.
    #[error("unknown command identifier {cid:#06x} in {pdu:?}")]
    UnknownCommand {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        cid: u16,
    },
    /// The transfer tag belongs to another command.
    #[error("command identifier {cccid:#06x} in H2CData for command {expected:#06x}")]
    CommandMismatch {
        /// As received.
        cccid: u16,
        /// Of the command whose tag it is.
        expected: u16,
    },
    /// DATAO or R2TO is no multiple of 4.
    #[error("offset {offset} of {pdu:?} is no multiple of 4")]
    OffsetUnaligned {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        offset: u32,
    },
    /// DATAL or R2TL is 0, or no multiple of 4 before the end of the command's data.
    #[error("data length {length} of {pdu:?}")]
    Length {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        length: u32,
    },
    /// The offset does not continue the last PDU's.
    #[error("{pdu:?} at offset {offset}, expected {expected}")]
    NotContiguous {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        offset: u32,
        /// Where the last one ended.
        expected: u32,
    },
    /// Offset and length leave the range that was asked for.
    #[error("{pdu:?} of {length} bytes at {offset} outside of its range, which ends at {end}")]
    OutOfRange {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        offset: u32,
        /// As received.
        length: u32,
        /// End of what was asked for.
        end: u32,
    },
    /// H2CData is longer than MAXH2CDATA.
    #[error("{length} bytes in one H2CData, limit {limit}")]
    DataLimit {
        /// As received.
        length: u32,
        /// MAXH2CDATA.
        limit: u32,
    },
    /// More R2Ts of one command than MAXR2T.
    #[error("more than {limit} R2Ts for command {cid:#06x}")]
    R2tLimit {
        /// As received.
        cid: u16,
        /// MAXR2T, 1's based.
        limit: u32,
    },
    /// LAST_PDU is set before the end of an R2T or missing at it.
    #[error("last-PDU flag of H2CData at offset {end} of an R2T that ends at {r2t_end}")]
    LastFlag {
        /// Where this PDU ends.
        end: u32,
        /// Where the R2T ends.
        r2t_end: u32,
    },
    /// SUCCESS without LAST_PDU.
    #[error("success flag without last-PDU flag")]
    SuccessWithoutLast,
    /// Data for a command that expects none, or no more.
    #[error("{pdu:?} for command {cid:#06x}, which expects none")]
    UnexpectedData {
        /// Kind of the PDU.
        pdu: PduKind,
        /// As received.
        cid: u16,
    },
    /// More commands than the queue has entries.
    #[error("more than {limit} commands in flight")]
    QueueOverrun {
        /// Entries of the queue.
        limit: u32,
    },
}

impl PeerError {
    /// FES and FEI of the Terminate Connection Request that answers this. TCP Transport 1.0 §3.6.2.4
    /// and §3.6.2.5; FEI is 0 where the specification reserves it.
    #[must_use]
    pub const fn fatal_error(self) -> (FatalErrorStatus, u32) {
        use FatalErrorStatus as Fes;
        match self {
            Self::Type { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::TYPE),
            Self::DigestFlags { .. } | Self::LastFlag { .. } | Self::SuccessWithoutLast => {
                (Fes::INVALID_PDU_HEADER_FIELD, field::FLAGS)
            }
            Self::HeaderLength { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::HLEN),
            Self::DataOffset { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::PDO),
            Self::PduLength { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::PLEN),
            Self::HeaderDigest { received, .. } => (Fes::HEADER_DIGEST_ERROR, received),
            Self::Sequence { .. }
            | Self::NotContiguous { .. }
            | Self::UnexpectedData { .. }
            | Self::QueueOverrun { .. } => (Fes::PDU_SEQUENCE_ERROR, 0),
            Self::FormatVersion { .. } => (Fes::UNSUPPORTED_PARAMETER, field::PFV),
            Self::Alignment { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::PDA),
            Self::DigestNotRequested { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::DGST),
            Self::MaxH2cDataUnaligned { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::MAXH2CDATA),
            Self::MaxH2cDataTooSmall { .. } => (Fes::UNSUPPORTED_PARAMETER, field::MAXH2CDATA),
            Self::UnknownTransferTag { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::TTAG),
            Self::UnknownCommand { pdu: PduKind::CapsuleResp, .. } => {
                (Fes::INVALID_PDU_HEADER_FIELD, field::RCCQE_CID)
            }
            Self::UnknownCommand { .. } | Self::CommandMismatch { .. } => {
                (Fes::INVALID_PDU_HEADER_FIELD, field::CCCID)
            }
            Self::OffsetUnaligned { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::OFFSET),
            Self::Length { .. } => (Fes::INVALID_PDU_HEADER_FIELD, field::LENGTH),
            Self::OutOfRange { .. } => (Fes::DATA_TRANSFER_OUT_OF_RANGE, 0),
            Self::DataLimit { .. } | Self::R2tLimit { .. } => (Fes::LIMIT_EXCEEDED, 0),
        }
    }
}
