//! The Asymmetric Namespace Access log page (0Ch): states of a path to groups of namespaces.
//!
//! Base 2.0c §5.16.1.13 and §8.1. The page is a header, then per group a
//! descriptor and its namespace identifiers.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Return Groups Only: Log Specific Field that leaves the namespace identifiers out. Base 2.0c §5.16.1.13.
pub const LSP_RETURN_GROUPS_ONLY: u8 = 1;

open_enum! {
    /// Asymmetric Namespace Access State. Base 2.0c §8.1.
    pub struct AnaState(u8) {
        OPTIMIZED = 0x01, "ANA Optimized state";
        NON_OPTIMIZED = 0x02, "ANA Non-Optimized state";
        INACCESSIBLE = 0x03, "ANA Inaccessible state";
        PERSISTENT_LOSS = 0x04, "ANA Persistent Loss state";
        CHANGE = 0x0f, "ANA Change state";
    }
}

impl AnaState {
    /// Whether the controller takes I/O commands in this state. Unknown states do not count as usable.
    #[must_use]
    pub const fn is_accessible(self) -> bool {
        matches!(self, Self::OPTIMIZED | Self::NON_OPTIMIZED)
    }

    /// The word for it in configurations and reports; `"unknown"` for a state that the specification does not have.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::OPTIMIZED => "optimized",
            Self::NON_OPTIMIZED => "non_optimized",
            Self::INACCESSIBLE => "inaccessible",
            Self::PERSISTENT_LOSS => "persistent_loss",
            Self::CHANGE => "change",
            _ => "unknown",
        }
    }

    /// The state that [`word`](Self::word) has this word for.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        let states =
            [Self::OPTIMIZED, Self::NON_OPTIMIZED, Self::INACCESSIBLE, Self::PERSISTENT_LOSS, Self::CHANGE];
        states.into_iter().find(|state| state.word() == word)
    }
}

/// Header of the ANA log page. Base 2.0c §5.16.1.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaLogHeader {
    /// Change Count of the page.
    pub chgcnt: U64,
    /// Number of ANA Group Descriptors.
    pub ngrps: U16,
    _rsvd10: [u8; 6],
}

assert_layout!(AnaLogHeader, 16, chgcnt: 0, ngrps: 8);

impl AnaLogHeader {
    /// A header.
    #[must_use]
    pub const fn new(chgcnt: u64, ngrps: u16) -> Self {
        Self { chgcnt: U64::new(chgcnt), ngrps: U16::new(ngrps), _rsvd10: [0; 6] }
    }
}

/// ANA Group Descriptor, followed by `nnsids` namespace identifiers. Base 2.0c §5.16.1.13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaGroupDescriptor {
    /// ANA Group Identifier, not zero.
    pub agid: U32,
    /// Number of namespace identifiers that follow.
    pub nnsids: U32,
    /// Change Count of the group; 0 if not reported.
    pub chgcnt: U64,
    /// State in bits 3:0.
    state: u8,
    _rsvd17: [u8; 15],
}

assert_layout!(AnaGroupDescriptor, 32, agid: 0, nnsids: 4, chgcnt: 8, state: 16);

impl AnaGroupDescriptor {
    /// A descriptor.
    #[must_use]
    pub const fn new(agid: u32, nnsids: u32, chgcnt: u64, state: AnaState) -> Self {
        Self {
            agid: U32::new(agid),
            nnsids: U32::new(nnsids),
            chgcnt: U64::new(chgcnt),
            state: state.0 & 0xf,
            _rsvd17: [0; 15],
        }
    }

    /// Asymmetric Namespace Access State.
    #[must_use]
    pub const fn state(&self) -> AnaState {
        AnaState(self.state & 0xf)
    }
}

/// A page read from a peer, as header and groups. Bounded by the bytes given, whatever the counts in them say.
#[derive(Clone, Copy, Debug)]
pub struct AnaLog<'a> {
    /// The page's header.
    pub header: &'a AnaLogHeader,
    groups: &'a [u8],
}

impl<'a> AnaLog<'a> {
    /// The page in these bytes, `None` if not even a header fits.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, groups) = AnaLogHeader::ref_from_prefix(bytes).ok()?;
        Some(Self { header, groups })
    }

    /// The groups with their namespace identifiers; `None` in place of the first group that is cut short.
    pub fn groups(&self) -> impl Iterator<Item = Option<AnaGroup<'a>>> + use<'a> {
        let mut rest = Some(self.groups);
        (0..self.header.ngrps.get()).map_while(move |_| {
            let bytes = rest.take()?;
            let Some((group, after)) = AnaGroup::split_from(bytes) else {
                return Some(None);
            };
            rest = Some(after);
            Some(Some(group))
        })
    }
}

/// One group of an [`AnaLog`].
#[derive(Clone, Copy, Debug)]
pub struct AnaGroup<'a> {
    /// The group's descriptor.
    pub descriptor: &'a AnaGroupDescriptor,
    /// The namespaces in it.
    pub nsids: &'a [U32],
}

impl<'a> AnaGroup<'a> {
    fn split_from(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (descriptor, after) = AnaGroupDescriptor::ref_from_prefix(bytes).ok()?;
        let count = usize::try_from(descriptor.nnsids.get()).ok()?;
        let (nsids, after) = <[U32]>::ref_from_prefix_with_elems(after, count).ok()?;
        Some((Self { descriptor, nsids }, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn page(groups: &[(u32, AnaState, &[u32])]) -> Vec<u8> {
        let mut bytes = Vec::from(AnaLogHeader::new(9, groups.len() as u16).as_bytes());
        for (agid, state, nsids) in groups {
            let descriptor = AnaGroupDescriptor::new(*agid, nsids.len() as u32, 1, *state);
            bytes.extend_from_slice(descriptor.as_bytes());
            nsids.iter().for_each(|nsid| bytes.extend_from_slice(&nsid.to_le_bytes()));
        }
        bytes
    }

    #[test]
    fn groups_read_back_with_their_namespaces() {
        let bytes = page(&[(1, AnaState::OPTIMIZED, &[1, 2]), (7, AnaState::INACCESSIBLE, &[])]);
        let log = AnaLog::parse(&bytes).expect("a header is there");
        let groups: Vec<_> = log.groups().map(|group| group.expect("whole")).collect();
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].nsids, [U32::new(1), U32::new(2)]);
        assert!(groups[0].descriptor.state().is_accessible());
        assert_eq!(groups[1].descriptor.state(), AnaState::INACCESSIBLE);
    }

    #[test]
    fn a_count_beyond_the_page_ends_with_one_none() {
        let mut bytes = page(&[(1, AnaState::OPTIMIZED, &[1])]);
        bytes[8] = 0xff; // ngrps
        bytes[20] = 0xff; // nnsids of the first group
        let log = AnaLog::parse(&bytes).expect("a header is there");
        assert_eq!(log.groups().map(|group| group.is_some()).collect::<Vec<_>>(), [false]);
        assert!(AnaLog::parse(&bytes[..15]).is_none());
    }
}
