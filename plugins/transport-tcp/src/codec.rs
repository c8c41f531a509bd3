//! Framing: bytes to PDU headers and back, digests, padding.
//!
//! [`scan`] looks at the first bytes of a PDU and says how many more it needs,
//! where the data lies, or what is wrong; it never trusts a length before it
//! has a floor and a ceiling. [`encode_header`] is its inverse. What a PDU means
//! for a connection, and when it may come, is in [`crate::connection`].
#![forbid(unsafe_code)]

use tenon_sdk::crc32c;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::pdu::{
    COMMON_LEN, CommonHeader, DIGEST_LEN, H2cData, PduFlags, PduKind, PduType, SHORT_LEN, TERM_REQ_MAX_LEN,
};
use crate::peer_error::PeerError;

/// How PDUs are framed after the handshake; [`Framing::PLAIN`] before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Headers are followed by a digest.
    pub header_digest: bool,
    /// Data is followed by a digest.
    pub data_digest: bool,
    /// Alignment in bytes of data this side receives, 4 to 128.
    pub receive_alignment: u8,
    /// Alignment in bytes of data this side sends, 4 to 128.
    pub send_alignment: u8,
}

impl Framing {
    /// Without digests and padding.
    pub const PLAIN: Self =
        Self { header_digest: false, data_digest: false, receive_alignment: 4, send_alignment: 4 };

    /// Bytes of a header of `kind` and its digest.
    #[must_use]
    pub const fn head_len(&self, kind: PduKind) -> usize {
        let digest = if self.header_digest && kind.has_header_digest() { DIGEST_LEN } else { 0 };
        kind.header_len() as usize + digest
    }

    /// Bytes of digest behind data.
    #[must_use]
    pub const fn data_digest_len(&self) -> usize {
        if self.data_digest { DIGEST_LEN } else { 0 }
    }

    /// PDO this side uses when it sends data behind a header of `kind`.
    #[must_use]
    pub const fn data_offset(&self, kind: PduKind) -> usize {
        self.head_len(kind).next_multiple_of(self.send_alignment as usize)
    }

    /// Common header of a PDU of `kind` that this side sends, with `data_len` bytes of data.
    #[must_use]
    pub fn header(&self, pdu_type: PduType, extra: PduFlags, data_len: u32) -> CommonHeader {
        let kind = PduKind::of(pdu_type);
        let flags = extra
            .with_if(self.header_digest && kind.has_header_digest(), PduFlags::HDGSTF)
            .with_if(self.data_digest && data_len > 0, PduFlags::DDGSTF);
        let hlen = usize::from(kind.header_len());
        if data_len == 0 {
            return CommonHeader::new(pdu_type, flags, hlen, 0, self.head_len(kind) as u32);
        }
        let pdo = self.data_offset(kind);
        let plen = pdo as u32 + data_len + self.data_digest_len() as u32;
        let pdo = u8::try_from(pdo).expect("76 bytes of header aligned to at most 128 bytes fit");
        CommonHeader::new(pdu_type, flags, hlen, pdo, plen)
    }
}

/// A PDU whose header is complete and well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of header and header digest.
    pub head_len: usize,
    /// Start of the data from the start of the PDU; `head_len` if there is none.
    pub data_offset: usize,
    /// Bytes of data.
    pub data_len: u32,
    /// Whether a data digest follows the data.
    pub has_data_digest: bool,
}

impl Frame {
    /// Bytes of the whole PDU.
    #[must_use]
    pub const fn total_len(&self) -> usize {
        let digest = if self.has_data_digest { DIGEST_LEN } else { 0 };
        self.data_offset + self.data_len as usize + digest
    }
}

/// Outcome of [`scan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Nothing can be said before there are this many bytes.
    Incomplete(usize),
    /// The header is there.
    Complete(Frame),
}

/// Kind of the PDU that starts with `bytes`, `None` if there are none.
#[must_use]
pub fn kind_of(bytes: &[u8]) -> Option<PduKind> {
    bytes.first().map(|first| PduKind::of(PduType(*first)))
}

/// Checks the header of the PDU that starts with `bytes`. `capsule_limit` bounds in-capsule data.
///
/// Total over all inputs. Fields are judged in the order of their offsets, because FEI names the lowest
/// one in error, with one exception: where a digest protects the header, only what is needed to find the
/// digest is judged before it.
#[inline(always)]
pub fn scan(bytes: &[u8], framing: &Framing, capsule_limit: u32) -> Result<Scan, PeerError> {
    let Ok((common, _)) = CommonHeader::ref_from_prefix(bytes) else {
        return Ok(Scan::Incomplete(COMMON_LEN));
    };
    let kind = PduKind::of(common.pdu_type);
    if kind == PduKind::Unknown {
        return Err(PeerError::Type { pdu_type: common.pdu_type });
    }
    let wants_digest = framing.header_digest && kind.has_header_digest();
    if kind.has_header_digest() && common.flags.contains(PduFlags::HDGSTF) != wants_digest {
        return Err(PeerError::DigestFlags { pdu: kind, flags: common.flags });
    }
    if common.hlen != kind.header_len() {
        return Err(PeerError::HeaderLength { pdu: kind, hlen: common.hlen });
    }
    let head_len = framing.head_len(kind);
    let plen = common.plen.get();
    if (plen as usize) < head_len {
        return Err(PeerError::PduLength { pdu: kind, plen });
    }
    if bytes.len() < head_len {
        return Ok(Scan::Incomplete(head_len));
    }
    if wants_digest {
        check_header_digest(kind, bytes, head_len)?;
    }
    frame(kind, common, bytes, framing, capsule_limit).map(Scan::Complete)
}

/// Writes `header`, its digest and zeroes up to the data offset it names. Returns the bytes written.
///
/// # Panics
///
/// If `out` is shorter than that; callers reserve [`MAX_HEADER_BYTES`].
#[inline]
pub fn encode_header<H: IntoBytes + Immutable>(header: &H, framing: &Framing, out: &mut [u8]) -> usize {
    let bytes = header.as_bytes();
    out[..bytes.len()].copy_from_slice(bytes);
    let kind = kind_of(bytes).unwrap_or(PduKind::Unknown);
    let mut end = bytes.len();
    if framing.header_digest && kind.has_header_digest() {
        out[end..end + DIGEST_LEN].copy_from_slice(&crc32c(0, bytes).to_le_bytes());
        end += DIGEST_LEN;
    }
    let data_offset = usize::from(out[PDO_AT]);
    if data_offset > end {
        out[end..data_offset].fill(0);
        end = data_offset;
    }
    end
}

/// The digest at the start of `bytes`, `None` if they are too few.
#[must_use]
pub fn read_digest(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk::<DIGEST_LEN>().map(|digest| u32::from_le_bytes(*digest))
}

fn check_header_digest(kind: PduKind, bytes: &[u8], head_len: usize) -> Result<(), PeerError> {
    let (header, digest) = bytes[..head_len].split_at(head_len - DIGEST_LEN);
    let computed = crc32c(0, header);
    match read_digest(digest) {
        Some(received) if received != computed => {
            Err(PeerError::HeaderDigest { pdu: kind, received, computed })
        }
        Some(_) | None => Ok(()),
    }
}

/// Judges PLEN, PDO and DDGSTF of a header whose digest is right.
#[inline(always)]
fn frame(
    kind: PduKind,
    common: &CommonHeader,
    bytes: &[u8],
    framing: &Framing,
    capsule_limit: u32,
) -> Result<Frame, PeerError> {
    let head_len = framing.head_len(kind);
    let plen = common.plen.get() as usize;
    let wrong_length = Err(PeerError::PduLength { pdu: kind, plen: common.plen.get() });
    let without_data = Frame { head_len, data_offset: head_len, data_len: 0, has_data_digest: false };
    match kind {
        PduKind::IcReq | PduKind::IcResp | PduKind::CapsuleResp | PduKind::R2t => {
            if plen == head_len {
                Ok(without_data)
            } else {
                wrong_length
            }
        }
        // Only the header is of interest: the connection ends with it.
        PduKind::H2cTermReq | PduKind::C2hTermReq => {
            if plen <= TERM_REQ_MAX_LEN {
                Ok(without_data)
            } else {
                wrong_length
            }
        }
        PduKind::CapsuleCmd if plen == head_len => Ok(without_data),
        PduKind::CapsuleCmd => {
            let frame = frame_with_data(kind, common, framing)?;
            if frame.data_len <= capsule_limit { Ok(frame) } else { wrong_length }
        }
        // C2HData has DATAL in the same place.
        PduKind::H2cData | PduKind::C2hData => {
            let frame = frame_with_data(kind, common, framing)?;
            match H2cData::ref_from_prefix(bytes) {
                Ok((header, _)) if header.datal.get() != frame.data_len => wrong_length,
                Ok(_) => Ok(frame),
                Err(_) => wrong_length,
            }
        }
        PduKind::Unknown => Err(PeerError::Type { pdu_type: common.pdu_type }),
    }
}

#[inline(always)]
fn frame_with_data(kind: PduKind, common: &CommonHeader, framing: &Framing) -> Result<Frame, PeerError> {
    let has_data_digest = common.flags.contains(PduFlags::DDGSTF);
    if has_data_digest != framing.data_digest {
        return Err(PeerError::DigestFlags { pdu: kind, flags: common.flags });
    }
    let head_len = framing.head_len(kind);
    let data_offset = usize::from(common.pdo);
    if data_offset < head_len || !common.pdo.is_multiple_of(framing.receive_alignment) {
        return Err(PeerError::DataOffset { pdu: kind, pdo: common.pdo });
    }
    let around = data_offset + framing.data_digest_len();
    match (common.plen.get() as usize).checked_sub(around) {
        Some(data_len) => Ok(Frame { head_len, data_offset, data_len: data_len as u32, has_data_digest }),
        None => Err(PeerError::PduLength { pdu: kind, plen: common.plen.get() }),
    }
}

/// Most bytes of header, digest and padding in front of data.
pub const MAX_HEADER_BYTES: usize = 128;

/// Most bytes in front of in-capsule data that a peer may send: PDO is one byte.
pub const MAX_DATA_OFFSET: usize = u8::MAX as usize;

const PDO_AT: usize = std::mem::offset_of!(CommonHeader, pdo);

const _: () = assert!(SHORT_LEN == size_of::<H2cData>());

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::{
        C2hData, CAPSULE_CMD_LEN, CapsuleCmd, DigestFlags, FatalErrorStatus, IcReq, R2t, TermReq, field,
    };
    use nvme_spec::command::Sqe;
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    const DIGESTS: Framing =
        Framing { header_digest: true, data_digest: true, receive_alignment: 4, send_alignment: 4 };
    const LIMIT: u32 = 8192;

    fn framing(header_digest: bool, data_digest: bool, alignment_z: u8) -> Framing {
        let alignment = (alignment_z + 1) * 4;
        Framing { header_digest, data_digest, receive_alignment: alignment, send_alignment: alignment }
    }

    fn encode<H: IntoBytes + Immutable>(header: &H, framing: &Framing) -> Vec<u8> {
        let mut out = vec![0xee; 256];
        let len = encode_header(header, framing, &mut out);
        out.truncate(len);
        out
    }

    fn capsule(framing: &Framing, data_len: u32) -> Vec<u8> {
        let ch = framing.header(PduType::CAPSULE_CMD, PduFlags::NONE, data_len);
        encode(&CapsuleCmd { ch, ccsqe: Sqe::new_zeroed() }, framing)
    }

    #[track_caller]
    fn check_refused(bytes: &[u8], framing: &Framing, fes: FatalErrorStatus, fei: u32) {
        let error = scan(bytes, framing, LIMIT).expect_err("refused");
        assert_eq!(error.fatal_error(), (fes, fei), "{error}");
    }

    #[track_caller]
    fn check_field(bytes: &[u8], framing: &Framing, fei: u32) {
        check_refused(bytes, framing, FatalErrorStatus::INVALID_PDU_HEADER_FIELD, fei);
    }

    /// Changes a header and mends its digest.
    fn with_byte(mut bytes: Vec<u8>, at: usize, value: u8, framing: &Framing) -> Vec<u8> {
        bytes[at] = value;
        if framing.header_digest {
            let hlen = usize::from(PduKind::of(PduType(bytes[0])).header_len());
            let digest = crc32c(0, &bytes[..hlen]);
            bytes[hlen..hlen + 4].copy_from_slice(&digest.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_header_is_asked_for_in_two_steps() {
        let bytes = capsule(&DIGESTS, 0);
        assert_eq!(scan(&[], &DIGESTS, LIMIT), Ok(Scan::Incomplete(8)));
        assert_eq!(scan(&bytes[..7], &DIGESTS, LIMIT), Ok(Scan::Incomplete(8)));
        assert_eq!(scan(&bytes[..8], &DIGESTS, LIMIT), Ok(Scan::Incomplete(76)));
        assert!(matches!(scan(&bytes, &DIGESTS, LIMIT), Ok(Scan::Complete(_))));
    }

    #[test]
    fn plen_zero_and_plen_below_the_header_are_refused_at_once() {
        for (framing, floor) in [(Framing::PLAIN, 72), (DIGESTS, 76)] {
            for plen in [0, 1, 8, floor - 1] {
                let bytes = with_byte(capsule(&framing, 0), 4, plen, &framing);
                check_field(&bytes[..8], &framing, field::PLEN);
            }
        }
    }

    #[test]
    fn plen_ceilings_hold_for_every_kind() {
        for pdu_type in [PduType::CAPSULE_RESP, PduType::R2T] {
            let ch = Framing::PLAIN.header(pdu_type, PduFlags::NONE, 0);
            let bytes = with_byte(encode(&R2t::new(ch, 0, 0, 0, 0), &Framing::PLAIN), 4, 25, &Framing::PLAIN);
            check_field(&bytes, &Framing::PLAIN, field::PLEN);
        }
        let ic = encode(&IcReq::new(0, DigestFlags(0), 0), &Framing::PLAIN);
        check_field(&with_byte(ic, 4, 129, &Framing::PLAIN), &Framing::PLAIN, field::PLEN);
        let term = TermReq::new(PduType::H2C_TERM_REQ, FatalErrorStatus::PDU_SEQUENCE_ERROR, 0, 128);
        let term = encode(&term, &Framing::PLAIN);
        assert!(scan(&term, &Framing::PLAIN, LIMIT).is_ok());
        check_field(&with_byte(term, 4, 153, &Framing::PLAIN), &Framing::PLAIN, field::PLEN);
        assert!(scan(&capsule(&Framing::PLAIN, LIMIT), &Framing::PLAIN, LIMIT).is_ok());
        check_field(&capsule(&Framing::PLAIN, LIMIT + 1), &Framing::PLAIN, field::PLEN);
    }

    #[test]
    fn hlen_of_another_header_is_refused() {
        for hlen in [0, 8, 71, 73, 76, 255] {
            check_field(&with_byte(capsule(&DIGESTS, 0), 2, hlen, &DIGESTS), &DIGESTS, field::HLEN);
        }
    }

    #[test]
    fn pdo_has_to_be_behind_the_header_aligned_and_inside_the_pdu() {
        let framing = framing(true, true, 3);
        let bytes = capsule(&framing, 512);
        assert_eq!(bytes[3], 80);
        for pdo in [0, 4, 72, 76, 79, 81, 84, 255] {
            check_field(&with_byte(bytes.clone(), 3, pdo, &framing), &framing, field::PDO);
        }
        let short = capsule(&framing, 1);
        check_field(&with_byte(short, 3, 96, &framing), &framing, field::PLEN);
    }

    #[test]
    fn digest_flags_have_to_be_what_was_agreed() {
        let flag_at = field::FLAGS as usize;
        for flags in [0, 2] {
            check_field(&with_byte(capsule(&DIGESTS, 0), flag_at, flags, &DIGESTS), &DIGESTS, field::FLAGS);
        }
        check_field(&with_byte(capsule(&DIGESTS, 8), flag_at, 1, &DIGESTS), &DIGESTS, field::FLAGS);
        let plain = Framing::PLAIN;
        for flags in [1, 2, 3] {
            check_field(&with_byte(capsule(&plain, 8), flag_at, flags, &plain), &plain, field::FLAGS);
        }
    }

    #[test]
    fn a_data_digest_flag_without_data_means_nothing() {
        let plain = Framing::PLAIN;
        let bytes = with_byte(capsule(&plain, 0), field::FLAGS as usize, 2, &plain);
        assert!(matches!(scan(&bytes, &plain, LIMIT), Ok(Scan::Complete(frame)) if !frame.has_data_digest));
    }

    #[test]
    fn reserved_flags_are_ignored() {
        let plain = Framing::PLAIN;
        let bytes = with_byte(capsule(&plain, 0), field::FLAGS as usize, 0xf0, &plain);
        assert!(scan(&bytes, &plain, LIMIT).is_ok());
    }

    //= NVMe/TCP 1.0 §3.6.2.5
    //= type=test
    //# This field indicates the HDGST that was received
    //# by the controller caused a header digest verification error.
    #[test]
    fn a_wrong_header_digest_is_told_as_received() {
        let mut bytes = capsule(&DIGESTS, 0);
        bytes[CAPSULE_CMD_LEN..].copy_from_slice(&0x1234_5678_u32.to_le_bytes());
        check_refused(&bytes, &DIGESTS, FatalErrorStatus::HEADER_DIGEST_ERROR, 0x1234_5678);
    }

    #[test]
    fn datal_has_to_agree_with_plen() {
        for framing in [Framing::PLAIN, DIGESTS] {
            let ch = framing.header(PduType::C2H_DATA, PduFlags::NONE, 512);
            let right = encode(&C2hData::new(ch, 0, 0, 512), &framing);
            assert!(scan(&right, &framing, LIMIT).is_ok());
            for datal in [0, 508, 516, u32::MAX] {
                let bytes = encode(&C2hData::new(ch, 0, 0, datal), &framing);
                check_field(&bytes, &framing, field::PLEN);
            }
        }
    }

    #[test]
    fn padding_is_what_the_specification_draws() {
        // Figure 8: 24 bytes of header, CPDA 0Fh, 40 bytes of padding. Figure 9: HPDA 03h, 8 bytes.
        assert_eq!(framing(false, false, 0x0f).data_offset(PduKind::H2cData), 64);
        assert_eq!(framing(false, false, 0x03).data_offset(PduKind::C2hData), 32);
        let padded = framing(true, false, 0x0f);
        let ch = padded.header(PduType::H2C_DATA, PduFlags::NONE, 4);
        let bytes = encode(&H2cData::new(ch, 0, 0, 0, 4), &padded);
        assert_eq!(bytes.len(), 64);
        assert!(bytes[28..].iter().all(|byte| *byte == 0));
    }

    proptest! {
        #[test]
        fn what_is_encoded_scans_back(
            header_digest: bool, data_digest: bool, alignment_z in 0..32_u8,
            data_len in 0..LIMIT, cid: u16, offset: u32,
        ) {
            let framing = framing(header_digest, data_digest, alignment_z);
            let bytes = capsule(&framing, data_len);
            let Ok(Scan::Complete(frame)) = scan(&bytes, &framing, LIMIT) else { panic!("refused") };
            prop_assert_eq!(frame.data_len, data_len);
            prop_assert_eq!(frame.data_offset, bytes.len());
            let ch = framing.header(PduType::C2H_DATA, PduFlags::LAST_PDU, data_len + 1);
            let bytes = encode(&C2hData::new(ch, cid, offset, data_len + 1), &framing);
            let Ok(Scan::Complete(frame)) = scan(&bytes, &framing, LIMIT) else { panic!("refused") };
            prop_assert_eq!(frame.total_len() as u32, ch.plen.get());
            prop_assert_eq!(frame.data_offset % usize::from(framing.receive_alignment), 0);
        }

        #[test]
        fn any_bytes_end_in_an_answer_that_more_bytes_do_not_take_back(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..12_u8,
            header_digest: bool, data_digest: bool,
        ) {
            let framing = framing(header_digest, data_digest, 0);
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let whole = scan(&bytes, &framing, LIMIT);
            for end in 0..bytes.len() {
                match scan(&bytes[..end], &framing, LIMIT) {
                    Ok(Scan::Incomplete(needed)) => prop_assert!(needed > end),
                    decided => prop_assert_eq!(decided, whole),
                }
            }
        }
    }
}
