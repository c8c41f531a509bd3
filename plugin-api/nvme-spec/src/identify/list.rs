//! Identify's lists: namespaces, controllers, identification descriptors, command sets, UUIDs, granularities.
//!
//! Lists end at the first zero entry or after a count; iterators here are
//! bounded by the structure's size whatever a peer wrote into it.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Csi, IDENTIFY_SIZE};

/// Namespace identifiers in a [`NamespaceList`].
pub const NAMESPACE_LIST_LEN: usize = 1024;

/// Controller identifiers in a [`ControllerList`].
pub const CONTROLLER_LIST_LEN: usize = 2047;

/// Command set combinations in a [`CommandSetList`].
pub const COMMAND_SET_LIST_LEN: usize = 512;

/// Namespace list (CNS 02h, 07h, 10h, 1Ah; log page 04h): identifiers in increasing order, zero filled.
///
/// Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct NamespaceList(pub [U32; NAMESPACE_LIST_LEN]);

assert_layout!(NamespaceList, IDENTIFY_SIZE);

impl NamespaceList {
    /// The identifiers up to the first zero.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|nsid| nsid.get()).take_while(|nsid| *nsid != 0)
    }
}

/// Controller list (CNS 12h, 13h): identifiers in increasing order. Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControllerList {
    /// Number of identifiers that count.
    pub count: U16,
    /// The identifiers.
    pub cntlids: [U16; CONTROLLER_LIST_LEN],
}

assert_layout!(ControllerList, IDENTIFY_SIZE, count: 0, cntlids: 2);

impl ControllerList {
    /// The identifiers that count, at most as many as fit.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.cntlids.iter().map(|cntlid| cntlid.get()).take(usize::from(self.count.get()))
    }
}

open_enum! {
    /// Namespace Identifier Type of a [`IdDescriptor`]. Base 2.0c §5.17.2.
    pub struct NamespaceIdType(u8) {
        EUI64 = 0x01, "IEEE Extended Unique Identifier";
        NGUID = 0x02, "Namespace Globally Unique Identifier";
        UUID = 0x03, "Namespace UUID";
        CSI = 0x04, "Command Set Identifier";
    }
}

impl NamespaceIdType {
    /// Length of the identifier, `None` if the type is not known here.
    #[must_use]
    pub const fn id_len(self) -> Option<u8> {
        match self {
            Self::EUI64 => Some(8),
            Self::NGUID | Self::UUID => Some(16),
            Self::CSI => Some(1),
            _ => None,
        }
    }
}

/// Head of a Namespace Identification Descriptor; `nidl` bytes follow. Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdDescriptorHead {
    /// Namespace Identifier Type.
    pub nidt: NamespaceIdType,
    /// Namespace Identifier Length; 0 ends the list.
    pub nidl: u8,
    _rsvd2: [u8; 2],
}

assert_layout!(IdDescriptorHead, 4, nidt: 0, nidl: 1);

/// One namespace identifier as a descriptor list (CNS 03h) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdDescriptor<'a> {
    /// IEEE Extended Unique Identifier, most significant byte first.
    Eui64(&'a [u8; 8]),
    /// Namespace Globally Unique Identifier, most significant byte first.
    Nguid(&'a [u8; 16]),
    /// Namespace UUID.
    Uuid(&'a [u8; 16]),
    /// The command set of the namespace.
    Csi(Csi),
    /// A type this crate does not know, or a known one with a wrong length.
    Unknown {
        /// Namespace Identifier Type.
        nidt: NamespaceIdType,
        /// The identifier as it came.
        nid: &'a [u8],
    },
}

/// Namespace Identification Descriptor list (CNS 03h). Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct IdDescriptors(pub [u8; IDENTIFY_SIZE]);

assert_layout!(IdDescriptors, IDENTIFY_SIZE);

impl IdDescriptors {
    /// The descriptors up to the one of zero length or the first that does not fit.
    #[must_use]
    pub fn iter(&self) -> IdDescriptorIter<'_> {
        IdDescriptorIter { rest: &self.0 }
    }

    /// A list of these identifiers; `None` if they do not fit or one is longer than 255 bytes.
    #[must_use]
    pub fn from_descriptors(descriptors: &[IdDescriptor<'_>]) -> Option<Self> {
        let mut list = Self([0; IDENTIFY_SIZE]);
        let mut rest = &mut list.0[..];
        for descriptor in descriptors {
            let csi;
            let (nidt, nid): (_, &[u8]) = match *descriptor {
                IdDescriptor::Eui64(nid) => (NamespaceIdType::EUI64, nid),
                IdDescriptor::Nguid(nid) => (NamespaceIdType::NGUID, nid),
                IdDescriptor::Uuid(nid) => (NamespaceIdType::UUID, nid),
                IdDescriptor::Csi(code) => {
                    csi = [code.0];
                    (NamespaceIdType::CSI, &csi)
                }
                IdDescriptor::Unknown { nidt, nid } => (nidt, nid),
            };
            let head = IdDescriptorHead { nidt, nidl: u8::try_from(nid.len()).ok()?, _rsvd2: [0; 2] };
            let (to_head, after_head) = rest.split_at_mut_checked(size_of::<IdDescriptorHead>())?;
            let (to_nid, after_nid) = after_head.split_at_mut_checked(nid.len())?;
            to_head.copy_from_slice(head.as_bytes());
            to_nid.copy_from_slice(nid);
            rest = after_nid;
        }
        Some(list)
    }
}

/// Iterator of [`IdDescriptors::iter`]. Each step consumes at least a head, so it ends.
#[derive(Clone, Debug)]
pub struct IdDescriptorIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for IdDescriptorIter<'a> {
    type Item = IdDescriptor<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (head, body) = IdDescriptorHead::read_from_prefix(self.rest).ok()?;
        if head.nidl == 0 {
            return None;
        }
        let (nid, rest) = body.split_at_checked(usize::from(head.nidl))?;
        self.rest = rest;
        let unknown = IdDescriptor::Unknown { nidt: head.nidt, nid };
        Some(match head.nidt {
            NamespaceIdType::EUI64 => nid.try_into().map_or(unknown, IdDescriptor::Eui64),
            NamespaceIdType::NGUID => nid.try_into().map_or(unknown, IdDescriptor::Nguid),
            NamespaceIdType::UUID => nid.try_into().map_or(unknown, IdDescriptor::Uuid),
            NamespaceIdType::CSI => match *nid {
                [code] => IdDescriptor::Csi(Csi(code)),
                _ => unknown,
            },
            _ => unknown,
        })
    }
}

/// Identify I/O Command Set data structure (CNS 1Ch): the combinations a controller can enable.
///
/// Bit n of a combination stands for the command set of CSI n. Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct CommandSetList(pub [U64; COMMAND_SET_LIST_LEN]);

assert_layout!(CommandSetList, IDENTIFY_SIZE);

/// An entry of the UUID list (CNS 17h). Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UuidListEntry {
    /// What the UUID is associated with, in bits 1:0: 0 nothing, 1 PCI vendor, 2 PCI subsystem vendor.
    pub header: u8,
    _rsvd1: [u8; 15],
    /// The UUID; zero ends the list.
    pub uuid: [u8; 16],
}

assert_layout!(UuidListEntry, 32, header: 0, uuid: 16);

/// UUID list (CNS 17h): entry 0 is reserved, UUID index n is entry n. Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct UuidList(pub [UuidListEntry; 128]);

assert_layout!(UuidList, IDENTIFY_SIZE);

/// Primary Controller Capabilities (CNS 14h). Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PrimaryControllerCapabilities {
    /// Controller Identifier.
    pub cntlid: U16,
    /// Port Identifier.
    pub portid: U16,
    /// Controller Resource Types: bit 0 virtual queues, bit 1 virtual interrupts.
    pub crt: u8,
    _rsvd5: [u8; 27],
    /// Virtual queue resources.
    pub vq: FlexibleResources,
    _rsvd48: [u8; 16],
    /// Virtual interrupt resources.
    pub vi: FlexibleResources,
    _rsvd80: [u8; 4016],
}

assert_layout!(PrimaryControllerCapabilities, IDENTIFY_SIZE, cntlid: 0, portid: 2, crt: 4, vq: 32, vi: 64);

/// One kind of flexible resource in [`PrimaryControllerCapabilities`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FlexibleResources {
    /// Flexible resources in total.
    pub total: U32,
    /// Flexible resources assigned to secondary controllers.
    pub assigned: U32,
    /// Flexible resources allocated to the primary controller.
    pub allocated_to_primary: U16,
    /// Private resources of the primary controller.
    pub private: U16,
    /// Most flexible resources a secondary controller may get.
    pub secondary_max: U16,
    /// Preferred granularity of assignment.
    pub granularity: U16,
}

assert_layout!(FlexibleResources, 16, total: 0, assigned: 4, allocated_to_primary: 8, private: 10, secondary_max: 12);

/// An entry of the Secondary Controller list (CNS 15h). Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SecondaryController {
    /// Secondary Controller Identifier.
    pub scid: U16,
    /// Primary Controller Identifier.
    pub pcid: U16,
    /// Secondary Controller State: bit 0 set if online.
    pub scs: u8,
    _rsvd5: [u8; 3],
    /// Virtual Function Number.
    pub vfn: U16,
    /// Number of VQ flexible resources assigned.
    pub nvq: U16,
    /// Number of VI flexible resources assigned.
    pub nvi: U16,
    _rsvd14: [u8; 18],
}

assert_layout!(SecondaryController, 32, scid: 0, pcid: 2, scs: 4, vfn: 8, nvq: 10, nvi: 12);

/// Secondary Controller list (CNS 15h). Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SecondaryControllerList {
    /// Number of entries that count.
    pub count: u8,
    _rsvd1: [u8; 31],
    /// The entries.
    pub entries: [SecondaryController; 127],
}

assert_layout!(SecondaryControllerList, IDENTIFY_SIZE, count: 0, entries: 32);

/// An entry of the NVM Set list (CNS 04h). Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NvmSet {
    /// NVM Set Identifier.
    pub nvmsetid: U16,
    /// Endurance Group Identifier.
    pub endgid: U16,
    _rsvd4: [u8; 4],
    /// Random 4 KiB Read Typical, in units of 100 ns; 0 if not reported.
    pub random_read_typical: U32,
    /// Optimal Write Size in bytes; 0 if not reported.
    pub optimal_write_size: U32,
    /// Total NVM Set Capacity in bytes.
    pub total_capacity: U128,
    /// Unallocated NVM Set Capacity in bytes.
    pub unallocated_capacity: U128,
    _rsvd48: [u8; 80],
}

assert_layout!(
    NvmSet,
    128,
    endgid: 2, random_read_typical: 8, optimal_write_size: 12, total_capacity: 16, unallocated_capacity: 32
);

/// NVM Set list (CNS 04h): sets from the one asked for on. Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NvmSetList {
    /// Number of entries that count.
    pub count: u8,
    _rsvd1: [u8; 127],
    /// The entries.
    pub entries: [NvmSet; 31],
}

assert_layout!(NvmSetList, IDENTIFY_SIZE, count: 0, entries: 128);

/// Endurance Group list (CNS 19h): identifiers from the one asked for on. Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EnduranceGroupList {
    /// Number of identifiers that count.
    pub count: U16,
    /// The identifiers.
    pub endgids: [U16; 2047],
}

assert_layout!(EnduranceGroupList, IDENTIFY_SIZE, count: 0, endgids: 2);

/// Namespace Granularity list (CNS 16h). Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NamespaceGranularityList {
    /// Bit 0: descriptor n belongs to LBA format n.
    pub attributes: U32,
    /// Number of descriptors, 0's based.
    pub count_z: u8,
    _rsvd5: [u8; 27],
    /// The descriptors.
    pub descriptors: [NamespaceGranularity; 16],
    _rsvd288: [u8; 3808],
}

assert_layout!(NamespaceGranularityList, IDENTIFY_SIZE, attributes: 0, count_z: 4, descriptors: 32);

/// A descriptor of [`NamespaceGranularityList`], in bytes; 0 if not reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NamespaceGranularity {
    /// Namespace Size Granularity.
    pub nszegran: U64,
    /// Namespace Capacity Granularity.
    pub ncapgran: U64,
}

assert_layout!(NamespaceGranularity, 16, nszegran: 0, ncapgran: 8);

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;
    use zerocopy::FromZeros;

    #[test]
    fn descriptors_read_back_in_order() {
        let all = [
            IdDescriptor::Nguid(&[2; 16]),
            IdDescriptor::Uuid(&[3; 16]),
            IdDescriptor::Eui64(&[1; 8]),
            IdDescriptor::Csi(Csi::NVM),
        ];
        let list = IdDescriptors::from_descriptors(&all).expect("61 bytes fit");
        assert_eq!(list.iter().collect::<Vec<_>>(), all);
    }

    #[test]
    fn a_descriptor_of_the_wrong_length_is_kept_as_unknown() {
        let mut list = IdDescriptors::new_zeroed();
        list.0[..6].copy_from_slice(&[3, 2, 0, 0, 0xaa, 0xbb]);
        let found: Vec<_> = list.iter().collect();
        assert_eq!(found, [IdDescriptor::Unknown { nidt: NamespaceIdType::UUID, nid: &[0xaa, 0xbb] }]);
    }

    #[test]
    fn descriptors_past_the_end_are_not_read() {
        assert_eq!(IdDescriptors([0xff; IDENTIFY_SIZE]).iter().count(), IDENTIFY_SIZE / (4 + 255));
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let big = [IdDescriptor::Uuid(&[7; 16]); 205];
        assert!(IdDescriptors::from_descriptors(&big[..204]).is_some());
        assert!(IdDescriptors::from_descriptors(&big).is_none());
    }

    #[test]
    fn a_controller_count_above_the_list_is_cut() {
        let mut list = ControllerList::new_zeroed();
        list.count.set(u16::MAX);
        assert_eq!(list.iter().count(), CONTROLLER_LIST_LEN);
    }

    #[test]
    fn namespace_list_ends_at_zero() {
        let mut list = NamespaceList::new_zeroed();
        list.0[0].set(1);
        list.0[1].set(5);
        list.0[3].set(9);
        assert_eq!(list.iter().collect::<Vec<_>>(), [1, 5]);
    }
}
