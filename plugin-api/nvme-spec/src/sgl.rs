//! Data pointers: SGL descriptors and PRP entries.
//!
//! Over fabrics every command uses SGLs: TCP knows in-capsule offsets and the
//! transport data block, RDMA keyed data blocks. PRP entries are for
//! memory-based transports only. What a descriptor points to, and whether its
//! kind fits the transport, is not judged here.

use core::fmt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What MPTR and DPTR of a command hold. Base 2.0c §3.3.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Psdt {
    /// DPTR holds two PRP entries; MPTR points to a contiguous buffer.
    Prp,
    /// DPTR holds an SGL descriptor; MPTR points to a contiguous buffer.
    Sgl,
    /// DPTR holds an SGL descriptor; MPTR points to an SGL segment with one descriptor.
    SglMetadataSgl,
    /// The value 11b, which the specification reserves.
    Reserved,
}

/// DPTR: sixteen bytes whose meaning PSDT tells. Base 2.0c §3.3.3.1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct DataPointer(pub [u8; 16]);

impl DataPointer {
    /// As an SGL descriptor of a kind yet to be looked at.
    #[must_use]
    pub fn sgl(&self) -> SglDescriptor {
        zerocopy::transmute!(self.0)
    }

    /// As a keyed SGL descriptor.
    #[must_use]
    pub fn keyed_sgl(&self) -> KeyedSglDescriptor {
        zerocopy::transmute!(self.0)
    }

    /// As two PRP entries.
    #[must_use]
    pub fn prp(&self) -> PrpPair {
        zerocopy::transmute!(self.0)
    }

    /// The identifier byte, the same in every SGL descriptor.
    #[must_use]
    pub const fn sgl_identifier(&self) -> SglIdentifier {
        SglIdentifier(self.0[15])
    }
}

impl fmt::Debug for DataPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataPointer({:02x?})", self.0)
    }
}

impl From<SglDescriptor> for DataPointer {
    fn from(descriptor: SglDescriptor) -> Self {
        Self(zerocopy::transmute!(descriptor))
    }
}

impl From<KeyedSglDescriptor> for DataPointer {
    fn from(descriptor: KeyedSglDescriptor) -> Self {
        Self(zerocopy::transmute!(descriptor))
    }
}

impl From<PrpPair> for DataPointer {
    fn from(pair: PrpPair) -> Self {
        Self(zerocopy::transmute!(pair))
    }
}

open_enum! {
    /// SGL descriptor type: bits 7:4 of the identifier. Base 2.0c §4.1.2.
    pub struct SglType(u8) {
        DATA_BLOCK = 0x0, "SGL Data Block descriptor";
        BIT_BUCKET = 0x1, "SGL Bit Bucket descriptor";
        SEGMENT = 0x2, "SGL Segment descriptor";
        LAST_SEGMENT = 0x3, "SGL Last Segment descriptor";
        KEYED_DATA_BLOCK = 0x4, "Keyed SGL Data Block descriptor";
        TRANSPORT_DATA_BLOCK = 0x5, "Transport SGL Data Block descriptor";
        VENDOR_SPECIFIC = 0xf, "Vendor specific descriptor";
    }
}

open_enum! {
    /// SGL descriptor sub type: bits 3:0 of the identifier. Base 2.0c §4.1.2.
    ///
    /// Values from Ah to Fh are the transport's: RDMA uses Fh for remote invalidation of the key, TCP uses Ah in its
    /// transport data block.
    pub struct SglSubtype(u8) {
        ADDRESS = 0x0, "Address";
        OFFSET = 0x1, "Offset into the capsule";
        TRANSPORT_A = 0xa, "NVMe transport specific Ah";
        TRANSPORT_B = 0xb, "NVMe transport specific Bh";
        TRANSPORT_C = 0xc, "NVMe transport specific Ch";
        TRANSPORT_D = 0xd, "NVMe transport specific Dh";
        TRANSPORT_E = 0xe, "NVMe transport specific Eh";
        TRANSPORT_F = 0xf, "NVMe transport specific Fh, remote invalidation in RDMA";
    }
}

/// Byte 15 of a descriptor: type in bits 7:4, sub type in bits 3:0. Base 2.0c §4.1.2.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct SglIdentifier(pub u8);

impl SglIdentifier {
    /// A data block at an address: what memory-based transports use.
    pub const DATA_BLOCK_ADDRESS: Self = Self::new(SglType::DATA_BLOCK, SglSubtype::ADDRESS);
    /// A data block in the capsule: in-capsule data of TCP and RDMA.
    pub const DATA_BLOCK_OFFSET: Self = Self::new(SglType::DATA_BLOCK, SglSubtype::OFFSET);
    /// A data block the transport moves: TCP's H2CData and C2HData.
    pub const TRANSPORT_DATA_BLOCK: Self = Self::new(SglType::TRANSPORT_DATA_BLOCK, SglSubtype::TRANSPORT_A);
    /// A remote memory region by key: RDMA.
    pub const KEYED_DATA_BLOCK: Self = Self::new(SglType::KEYED_DATA_BLOCK, SglSubtype::ADDRESS);
    /// A remote memory region by key, which the controller invalidates with its response: RDMA.
    pub const KEYED_DATA_BLOCK_INVALIDATE: Self =
        Self::new(SglType::KEYED_DATA_BLOCK, SglSubtype::TRANSPORT_F);
    /// The last segment, in the capsule: RDMA capsules with several descriptors.
    pub const LAST_SEGMENT_OFFSET: Self = Self::new(SglType::LAST_SEGMENT, SglSubtype::OFFSET);

    /// The identifier made of a type and a sub type, four bits each.
    #[must_use]
    pub const fn new(sgl_type: SglType, subtype: SglSubtype) -> Self {
        Self(sgl_type.0 << 4 | subtype.0 & 0xf)
    }

    /// Descriptor type.
    #[must_use]
    pub const fn sgl_type(self) -> SglType {
        SglType(self.0 >> 4)
    }

    /// Descriptor sub type.
    #[must_use]
    pub const fn subtype(self) -> SglSubtype {
        SglSubtype(self.0 & 0xf)
    }
}

impl fmt::Debug for SglIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {}", self.sgl_type(), self.subtype())
    }
}

/// An SGL descriptor other than the keyed one: data block, bit bucket, segment, last segment, transport data block.
///
/// Base 2.0c §4.1.2. `address` is an address, an offset into the capsule, or reserved, by type and sub type; a
/// segment's `length` is the size of the next segment, a multiple of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SglDescriptor {
    /// Address, or offset into the capsule; reserved for bit buckets and transport data blocks.
    pub address: U64,
    /// Length in bytes.
    pub length: U32,
    _rsvd12: [u8; 3],
    /// Type and sub type.
    pub identifier: SglIdentifier,
}

assert_layout!(SglDescriptor, 16, address: 0, length: 8, identifier: 15);

impl SglDescriptor {
    /// A descriptor with its reserved bytes zero.
    #[must_use]
    pub const fn new(identifier: SglIdentifier, address: u64, length: u32) -> Self {
        Self { address: U64::new(address), length: U32::new(length), _rsvd12: [0; 3], identifier }
    }
}

/// A keyed SGL data block descriptor. Base 2.0c §4.1.2, RDMA Transport.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct KeyedSglDescriptor {
    /// Address in the remote memory region.
    pub address: U64,
    length: [u8; 3],
    key: [u8; 4],
    /// Type and sub type.
    pub identifier: SglIdentifier,
}

assert_layout!(KeyedSglDescriptor, 16, address: 0, length: 8, key: 11, identifier: 15);

impl KeyedSglDescriptor {
    /// Largest length the 24-bit field can hold.
    pub const MAX_LENGTH: u32 = 0xff_ffff;

    /// A descriptor; `None` if `length` does not fit 24 bits.
    #[must_use]
    pub const fn new(identifier: SglIdentifier, address: u64, length: u32, key: u32) -> Option<Self> {
        let [a, b, c, 0] = length.to_le_bytes() else {
            return None;
        };
        Some(Self { address: U64::new(address), length: [a, b, c], key: key.to_le_bytes(), identifier })
    }

    /// Length in bytes.
    #[must_use]
    pub const fn length(&self) -> u32 {
        let [a, b, c] = self.length;
        u32::from_le_bytes([a, b, c, 0])
    }

    /// The remote key.
    #[must_use]
    pub const fn key(&self) -> u32 {
        u32::from_le_bytes(self.key)
    }
}

impl fmt::Debug for KeyedSglDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A remote key grants access to the peer's memory, so it stays out of logs.
        f.debug_struct("KeyedSglDescriptor")
            .field("address", &self.address)
            .field("length", &self.length())
            .field("identifier", &self.identifier)
            .finish_non_exhaustive()
    }
}

/// PRP1 and PRP2 of a command. Base 2.0c §4.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PrpPair {
    /// First PRP entry, which may have an offset into its page.
    pub prp1: PrpEntry,
    /// Reserved, second PRP entry, or pointer to a PRP list, by transfer length.
    pub prp2: PrpEntry,
}

assert_layout!(PrpPair, 16, prp1: 0, prp2: 8);

/// A PRP entry: a memory page's address, with an offset into it in the first entry. Base 2.0c §4.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct PrpEntry(pub U64);

impl PrpEntry {
    /// Base address and offset of the page, for a page of `1 << page_shift` bytes (`page_shift` = CC.MPS + 12).
    #[must_use]
    pub const fn page_and_offset(self, page_shift: u32) -> (u64, u64) {
        let mask = (1_u64 << page_shift) - 1;
        (self.0.get() & !mask, self.0.get() & mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn identifiers_are_type_then_subtype() {
        assert_eq!(SglIdentifier::DATA_BLOCK_OFFSET.0, 0x01);
        assert_eq!(SglIdentifier::TRANSPORT_DATA_BLOCK.0, 0x5a);
        assert_eq!(SglIdentifier::KEYED_DATA_BLOCK.0, 0x40);
        assert_eq!(SglIdentifier::KEYED_DATA_BLOCK_INVALIDATE.0, 0x4f);
        assert_eq!(SglIdentifier(0x5a).sgl_type(), SglType::TRANSPORT_DATA_BLOCK);
    }

    #[test]
    fn keyed_length_above_24_bits_is_refused() {
        let id = SglIdentifier::KEYED_DATA_BLOCK;
        let max =
            KeyedSglDescriptor::new(id, 0x1000, KeyedSglDescriptor::MAX_LENGTH, 7).expect("fits 24 bits");
        assert_eq!((max.length(), max.key()), (0xff_ffff, 7));
        assert_eq!(KeyedSglDescriptor::new(id, 0, KeyedSglDescriptor::MAX_LENGTH + 1, 0), None);
    }

    #[test]
    fn data_pointer_reads_back_what_was_put_in() {
        let keyed = KeyedSglDescriptor::new(SglIdentifier::KEYED_DATA_BLOCK, 0x1122, 0x33_4455, 0x6677_8899);
        let pointer = DataPointer::from(keyed.expect("fits 24 bits"));
        assert_eq!(pointer.0, [0x22, 0x11, 0, 0, 0, 0, 0, 0, 0x55, 0x44, 0x33, 0x99, 0x88, 0x77, 0x66, 0x40]);
        assert_eq!(pointer.keyed_sgl().length(), 0x33_4455);
        let plain = SglDescriptor::new(SglIdentifier::DATA_BLOCK_OFFSET, 8, 512);
        assert_eq!(DataPointer::from(plain).sgl().as_bytes(), plain.as_bytes());
        assert_eq!(DataPointer::from(plain).sgl_identifier(), SglIdentifier::DATA_BLOCK_OFFSET);
    }

    #[test]
    fn prp_splits_at_the_page() {
        assert_eq!(PrpEntry(U64::new(0x1_2345)).page_and_offset(12), (0x1_2000, 0x345));
    }
}
