//! In-band authentication: the two fabrics commands and the messages of DH-HMAC-CHAP. Base 2.0c §6.1, §6.2, §8.13.5.
//!
//! Only layouts and lengths; the cryptography and the order of messages
//! belong to whoever authenticates. Each message with a variable tail has a
//! `parse` that checks every length against the bytes that are there.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::command_view;
use crate::fabrics::FabricsHead;

/// Security Protocol (SECP) of the NVMe protocols: Authentication Send and Receive. Base 2.0c §6.1.
pub const SECP_NVME: u8 = 0xe9;

/// SP Specific (SPSP0, SPSP1) of authentication messages. Base 2.0c §6.1.
pub const SPSP_AUTHENTICATION: u8 = 0x01;

/// Most hash or group identifiers in one protocol descriptor.
pub const MAX_PROTOCOL_IDS: usize = 30;

/// Authentication Send and Authentication Receive. Base 2.0c §6.1, §6.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Authentication {
    /// Fields common to fabrics commands.
    pub head: FabricsHead,
    _rsvd40: u8,
    /// SP Specific 0.
    pub spsp0: u8,
    /// SP Specific 1.
    pub spsp1: u8,
    /// Security Protocol.
    pub secp: u8,
    /// Transfer Length (Send) or Allocation Length (Receive), in bytes.
    pub length: U32,
    _rsvd48: [u8; 16],
}

command_view!(Authentication, spsp0: 41, spsp1: 42, secp: 43, length: 44);

open_enum! {
    /// AUTH_TYPE, Authentication Type. Base 2.0c §8.13.
    pub struct AuthType(u8) {
        COMMON = 0x00, "Common messages";
        DH_HMAC_CHAP = 0x01, "DH-HMAC-CHAP messages";
    }
}

open_enum! {
    /// AUTH_ID, Authentication Identifier: which message it is, within its AUTH_TYPE. Base 2.0c §8.13.
    ///
    /// Negotiate and both failures are common messages, the others DH-HMAC-CHAP's.
    pub struct AuthId(u8) {
        NEGOTIATE = 0x00, "AUTH_Negotiate";
        CHALLENGE = 0x01, "DH-HMAC-CHAP_Challenge";
        REPLY = 0x02, "DH-HMAC-CHAP_Reply";
        SUCCESS1 = 0x03, "DH-HMAC-CHAP_Success1";
        SUCCESS2 = 0x04, "DH-HMAC-CHAP_Success2";
        FAILURE2 = 0xf0, "AUTH_Failure2";
        FAILURE1 = 0xf1, "AUTH_Failure1";
    }
}

open_enum! {
    /// Authentication protocol of a descriptor. Base 2.0c §8.13.
    pub struct AuthProtocol(u8) {
        DH_HMAC_CHAP = 0x01, "DH-HMAC-CHAP";
    }
}

open_enum! {
    /// Hash function. Base 2.0c §8.13.5.
    pub struct HashId(u8) {
        SHA_256 = 0x01, "SHA-256";
        SHA_384 = 0x02, "SHA-384";
        SHA_512 = 0x03, "SHA-512";
    }
}

impl HashId {
    /// Length of the hash in bytes, which is HL in the messages; `None` if unknown.
    #[must_use]
    pub const fn hash_len(self) -> Option<usize> {
        match self {
            Self::SHA_256 => Some(32),
            Self::SHA_384 => Some(48),
            Self::SHA_512 => Some(64),
            _ => None,
        }
    }
}

open_enum! {
    /// Diffie-Hellman group. Base 2.0c §8.13.5.
    pub struct DhGroupId(u8) {
        NULL = 0x00, "NULL";
        FFDHE_2048 = 0x01, "2048-bit";
        FFDHE_3072 = 0x02, "3072-bit";
        FFDHE_4096 = 0x03, "4096-bit";
        FFDHE_6144 = 0x04, "6144-bit";
        FFDHE_8192 = 0x05, "8192-bit";
    }
}

impl DhGroupId {
    /// Length of a public value in bytes, 0 without exchange; `None` if unknown.
    #[must_use]
    pub const fn public_value_len(self) -> Option<usize> {
        match self {
            Self::NULL => Some(0),
            Self::FFDHE_2048 => Some(256),
            Self::FFDHE_3072 => Some(384),
            Self::FFDHE_4096 => Some(512),
            Self::FFDHE_6144 => Some(768),
            Self::FFDHE_8192 => Some(1024),
            _ => None,
        }
    }
}

open_enum! {
    /// SC_C, Secure Channel Protocol Concatenation. Base 2.0c §8.13.
    pub struct SecureChannelConcatenation(u8) {
        NONE = 0x00, "No secure channel concatenation";
        NEW_TLS_PSK = 0x02, "Generates a TLS PSK";
        REPLACE_TLS_PSK = 0x03, "Replaces the TLS PSK";
    }
}

open_enum! {
    /// Reason Code of a failure message. Base 2.0c §8.13.
    pub struct FailureReason(u8) {
        AUTHENTICATION_FAILED = 0x01, "Authentication failure";
    }
}

open_enum! {
    /// Reason Code Explanation of [`FailureReason::AUTHENTICATION_FAILED`]. Base 2.0c §8.13.
    pub struct FailureExplanation(u8) {
        AUTHENTICATION_FAILED = 0x01, "Authentication failed";
        PROTOCOL_NOT_USABLE = 0x02, "Authentication protocol not usable";
        SECURE_CHANNEL_MISMATCH = 0x03, "Secure channel concatenation mismatch";
        HASH_NOT_USABLE = 0x04, "Hash function not usable";
        DH_GROUP_NOT_USABLE = 0x05, "DH group not usable";
        INCORRECT_PAYLOAD = 0x06, "Incorrect payload";
        INCORRECT_MESSAGE = 0x07, "Incorrect protocol message";
    }
}

/// The first six bytes of every message. Base 2.0c §8.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MessageHead {
    /// Authentication Type.
    pub auth_type: AuthType,
    /// Authentication Identifier.
    pub auth_id: AuthId,
    _rsvd2: [u8; 2],
    /// Transaction Identifier.
    pub t_id: U16,
}

assert_layout!(MessageHead, 6, auth_type: 0, auth_id: 1, t_id: 4);

impl MessageHead {
    /// The head of a message.
    #[must_use]
    pub const fn new(auth_type: AuthType, auth_id: AuthId, t_id: u16) -> Self {
        Self { auth_type, auth_id, _rsvd2: [0; 2], t_id: U16::new(t_id) }
    }
}

/// AUTH_Negotiate; `napd` [`ProtocolDescriptor`]s follow. Base 2.0c §8.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Negotiate {
    /// Head.
    pub head: MessageHead,
    /// Secure Channel Protocol Concatenation.
    pub sc_c: SecureChannelConcatenation,
    /// Number of Authentication Protocol Descriptors.
    pub napd: u8,
}

assert_layout!(Negotiate, 8, sc_c: 6, napd: 7);

impl Negotiate {
    /// The message and its descriptors, `None` if the bytes end before them.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(&Self, &[ProtocolDescriptor])> {
        let (message, tail) = Self::ref_from_prefix(bytes).ok()?;
        let count = usize::from(message.napd);
        let (descriptors, _) = <[ProtocolDescriptor]>::ref_from_prefix_with_elems(tail, count).ok()?;
        Some((message, descriptors))
    }
}

/// Authentication Protocol Descriptor of DH-HMAC-CHAP. Base 2.0c §8.13.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ProtocolDescriptor {
    /// Authentication Protocol Identifier.
    pub authid: AuthProtocol,
    _rsvd1: u8,
    /// Number of hash identifiers.
    pub halen: u8,
    /// Number of group identifiers.
    pub dhlen: u8,
    hash_ids: [HashId; MAX_PROTOCOL_IDS],
    dh_group_ids: [DhGroupId; MAX_PROTOCOL_IDS],
}

assert_layout!(ProtocolDescriptor, 64, halen: 2, dhlen: 3, hash_ids: 4, dh_group_ids: 34);

impl ProtocolDescriptor {
    /// A descriptor of DH-HMAC-CHAP, in order of preference; `None` if a list has more than [`MAX_PROTOCOL_IDS`].
    #[must_use]
    pub fn new(hashes: &[HashId], groups: &[DhGroupId]) -> Option<Self> {
        let mut descriptor = Self {
            authid: AuthProtocol::DH_HMAC_CHAP,
            _rsvd1: 0,
            halen: u8::try_from(hashes.len()).ok()?,
            dhlen: u8::try_from(groups.len()).ok()?,
            hash_ids: [HashId(0); MAX_PROTOCOL_IDS],
            dh_group_ids: [DhGroupId(0); MAX_PROTOCOL_IDS],
        };
        descriptor.hash_ids.get_mut(..hashes.len())?.copy_from_slice(hashes);
        descriptor.dh_group_ids.get_mut(..groups.len())?.copy_from_slice(groups);
        Some(descriptor)
    }

    /// Hash functions offered; `None` if the count exceeds the list.
    #[must_use]
    pub fn hash_ids(&self) -> Option<&[HashId]> {
        self.hash_ids.get(..usize::from(self.halen))
    }

    /// Groups offered; `None` if the count exceeds the list.
    #[must_use]
    pub fn dh_group_ids(&self) -> Option<&[DhGroupId]> {
        self.dh_group_ids.get(..usize::from(self.dhlen))
    }
}

/// DH-HMAC-CHAP_Challenge; `hl` bytes of challenge and `dhvlen` of DH value follow. Base 2.0c §8.13.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Challenge {
    /// Head.
    pub head: MessageHead,
    /// Hash Length.
    pub hl: u8,
    _rsvd7: u8,
    /// Hash function selected.
    pub hashid: HashId,
    /// Group selected.
    pub dhgid: DhGroupId,
    /// DH Value Length.
    pub dhvlen: U16,
    /// Sequence Number.
    pub seqnum: U32,
}

assert_layout!(Challenge, 16, hl: 6, hashid: 8, dhgid: 9, dhvlen: 10, seqnum: 12);

impl Challenge {
    /// The message, the challenge value and the DH value; `None` if the bytes end before them.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(&Self, &[u8], &[u8])> {
        let (message, tail) = Self::ref_from_prefix(bytes).ok()?;
        let (cval, tail) = tail.split_at_checked(usize::from(message.hl))?;
        let dhv = tail.get(..usize::from(message.dhvlen.get()))?;
        Some((message, cval, dhv))
    }
}

/// DH-HMAC-CHAP_Reply; `hl` bytes of response, `hl` of challenge and `dhvlen` of DH value follow.
///
/// Base 2.0c §8.13.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Reply {
    /// Head.
    pub head: MessageHead,
    /// Hash Length.
    pub hl: u8,
    _rsvd7: u8,
    /// Challenge Valid: 1 if the host wants the controller to authenticate too.
    pub cvalid: u8,
    _rsvd9: u8,
    /// DH Value Length.
    pub dhvlen: U16,
    /// Sequence Number.
    pub seqnum: U32,
}

assert_layout!(Reply, 16, hl: 6, cvalid: 8, dhvlen: 10, seqnum: 12);

/// What follows a [`Reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyValues<'a> {
    /// Response Value.
    pub rval: &'a [u8],
    /// Challenge Value; means something only if CVALID is set.
    pub cval: &'a [u8],
    /// DH Value.
    pub dhv: &'a [u8],
}

impl Reply {
    /// The message and its values; `None` if the bytes end before them.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(&Self, ReplyValues<'_>)> {
        let (message, tail) = Self::ref_from_prefix(bytes).ok()?;
        let (rval, tail) = tail.split_at_checked(usize::from(message.hl))?;
        let (cval, tail) = tail.split_at_checked(usize::from(message.hl))?;
        let dhv = tail.get(..usize::from(message.dhvlen.get()))?;
        Some((message, ReplyValues { rval, cval, dhv }))
    }
}

/// DH-HMAC-CHAP_Success1; `hl` bytes of response follow if `rvalid` is set. Base 2.0c §8.13.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Success1 {
    /// Head.
    pub head: MessageHead,
    /// Hash Length.
    pub hl: u8,
    _rsvd7: u8,
    /// Response Valid: 1 if the controller authenticates too.
    pub rvalid: u8,
    _rsvd9: [u8; 7],
}

assert_layout!(Success1, 16, hl: 6, rvalid: 8);

impl Success1 {
    /// The message and the response value, empty if there is none; `None` if the bytes end before it.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(&Self, &[u8])> {
        let (message, tail) = Self::ref_from_prefix(bytes).ok()?;
        let len = if message.rvalid & 1 != 0 { usize::from(message.hl) } else { 0 };
        Some((message, tail.get(..len)?))
    }
}

/// DH-HMAC-CHAP_Success2. Base 2.0c §8.13.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Success2 {
    /// Head.
    pub head: MessageHead,
    _rsvd6: [u8; 10],
}

assert_layout!(Success2, 16, head: 0);

/// AUTH_Failure1 (from the controller) and AUTH_Failure2 (from the host). Base 2.0c §8.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Failure {
    /// Head.
    pub head: MessageHead,
    /// Reason Code.
    pub reason: FailureReason,
    /// Reason Code Explanation.
    pub explanation: FailureExplanation,
}

assert_layout!(Failure, 8, reason: 6, explanation: 7);

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;
    use zerocopy::FromZeros;

    #[test]
    fn a_challenge_splits_at_its_own_lengths() {
        let mut head = Challenge::new_zeroed();
        head.hl = 32;
        head.dhvlen.set(3);
        let mut bytes = Vec::from(head.as_bytes());
        bytes.extend_from_slice(&[0xcc; 32]);
        bytes.extend_from_slice(&[0xdd; 3]);
        let (_, cval, dhv) = Challenge::parse(&bytes).expect("all there");
        assert_eq!((cval, dhv), (&[0xcc; 32][..], &[0xdd; 3][..]));
        assert!((0..bytes.len()).all(|len| Challenge::parse(&bytes[..len]).is_none()));
    }

    #[test]
    fn a_reply_has_two_values_of_hash_length() {
        let mut head = Reply::new_zeroed();
        head.hl = 2;
        let mut bytes = Vec::from(head.as_bytes());
        bytes.extend_from_slice(&[1, 1, 2, 2]);
        let (_, values) = Reply::parse(&bytes).expect("all there");
        assert_eq!(values, ReplyValues { rval: &[1, 1], cval: &[2, 2], dhv: &[] });
        assert!(Reply::parse(&bytes[..19]).is_none());
    }

    #[test]
    fn negotiation_lists_are_bounded() {
        let descriptor =
            ProtocolDescriptor::new(&[HashId::SHA_256], &[DhGroupId::NULL, DhGroupId::FFDHE_2048])
                .expect("short");
        let mut negotiate = Negotiate::new_zeroed();
        negotiate.napd = 1;
        let mut bytes = Vec::from(negotiate.as_bytes());
        bytes.extend_from_slice(descriptor.as_bytes());
        let (_, found) = Negotiate::parse(&bytes).expect("all there");
        assert_eq!(found[0].dh_group_ids(), Some(&[DhGroupId::NULL, DhGroupId::FFDHE_2048][..]));
        bytes[8 + 2] = 31;
        assert_eq!(Negotiate::parse(&bytes).expect("all there").1[0].hash_ids(), None);
        assert!(ProtocolDescriptor::new(&[HashId::SHA_256; 31], &[]).is_none());
        bytes[7] = 2;
        assert!(Negotiate::parse(&bytes).is_none());
    }

    #[test]
    fn success1_has_a_response_only_if_valid() {
        let mut message = Success1::new_zeroed();
        message.hl = 32;
        assert_eq!(Success1::parse(message.as_bytes()).map(|(_, rval)| rval), Some(&[][..]));
        message.rvalid = 1;
        assert_eq!(Success1::parse(message.as_bytes()), None);
    }
}
