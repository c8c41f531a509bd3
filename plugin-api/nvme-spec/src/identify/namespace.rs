//! Identify Namespace (CNS 00h), its NVM extension (CNS 05h) and the command set independent form (CNS 08h).

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::IDENTIFY_SIZE;
use crate::reservation::ReservationCapabilities;

/// Identify Namespace data structure of the NVM command set (CNS 00h, 11h). NVM Command Set §4.1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Namespace Size, in logical blocks.
    pub nsze: U64,
    /// Namespace Capacity, in logical blocks.
    pub ncap: U64,
    /// Namespace Utilization, in logical blocks.
    pub nuse: U64,
    /// Namespace Features.
    pub nsfeat: Nsfeat,
    /// Number of LBA Formats, 0's based.
    pub nlbaf_z: u8,
    /// Formatted LBA Size.
    pub flbas: Flbas,
    /// Metadata Capabilities.
    pub mc: MetadataCapabilities,
    /// End-to-end Data Protection Capabilities.
    pub dpc: DataProtectionCapabilities,
    /// End-to-end Data Protection Type Settings.
    pub dps: DataProtection,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: Nmic,
    /// Reservation Capabilities.
    pub rescap: ReservationCapabilities,
    /// Format Progress Indicator.
    pub fpi: u8,
    /// Deallocate Logical Block Features.
    pub dlfeat: Dlfeat,
    /// Namespace Atomic Write Unit Normal, 0's based.
    pub nawun_z: U16,
    /// Namespace Atomic Write Unit Power Fail, 0's based.
    pub nawupf_z: U16,
    /// Namespace Atomic Compare and Write Unit, 0's based.
    pub nacwu_z: U16,
    /// Namespace Atomic Boundary Size Normal, 0's based.
    pub nabsn_z: U16,
    /// Namespace Atomic Boundary Offset.
    pub nabo: U16,
    /// Namespace Atomic Boundary Size Power Fail, 0's based.
    pub nabspf_z: U16,
    /// Namespace Optimal I/O Boundary, in logical blocks; 0 for none.
    pub noiob: U16,
    /// NVM Capacity, in bytes.
    pub nvmcap: U128,
    /// Namespace Preferred Write Granularity, in logical blocks, 0's based.
    pub npwg_z: U16,
    /// Namespace Preferred Write Alignment, in logical blocks, 0's based.
    pub npwa_z: U16,
    /// Namespace Preferred Deallocate Granularity, in logical blocks, 0's based.
    pub npdg_z: U16,
    /// Namespace Preferred Deallocate Alignment, in logical blocks, 0's based.
    pub npda_z: U16,
    /// Namespace Optimal Write Size, in logical blocks, 0's based.
    pub nows_z: U16,
    /// Maximum Single Source Range Length of Copy, in logical blocks.
    pub mssrl: U16,
    /// Maximum Copy Length, in logical blocks.
    pub mcl: U32,
    /// Maximum Source Range Count of Copy, 0's based.
    pub msrc_z: u8,
    _rsvd81: u8,
    /// Number of Unique Capability LBA Formats.
    pub nulbaf: u8,
    _rsvd83: [u8; 9],
    /// ANA Group Identifier; 0 if the controller does not report ANA.
    pub anagrpid: U32,
    _rsvd96: [u8; 3],
    /// Namespace Attributes.
    pub nsattr: Nsattr,
    /// NVM Set Identifier.
    pub nvmsetid: U16,
    /// Endurance Group Identifier.
    pub endgid: U16,
    /// Namespace Globally Unique Identifier, most significant byte first; zero for none.
    pub nguid: [u8; 16],
    /// IEEE Extended Unique Identifier, most significant byte first; zero for none.
    pub eui64: [u8; 8],
    /// LBA Formats, NLBAF of which count.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vs: [u8; 3712],
}

assert_layout!(
    IdentifyNamespace,
    IDENTIFY_SIZE,
    nsze: 0, ncap: 8, nuse: 16, nsfeat: 24, nlbaf_z: 25, flbas: 26, mc: 27, dpc: 28, dps: 29, nmic: 30, rescap: 31,
    fpi: 32, dlfeat: 33, nawun_z: 34, noiob: 46, nvmcap: 48, npwg_z: 64, nows_z: 72, mssrl: 74, mcl: 76,
    msrc_z: 80, nulbaf: 82, anagrpid: 92, nsattr: 99, nvmsetid: 100, endgid: 102, nguid: 104, eui64: 120,
    lbaf: 128, vs: 384,
);

impl IdentifyNamespace {
    /// The LBA format in use; `None` if FLBAS points past the formats.
    #[must_use]
    pub fn lba_format(&self) -> Option<&LbaFormat> {
        self.lbaf.get(usize::from(self.flbas.format_index()))
    }
}

/// LBA Format data structure. NVM Command Set §4.1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata Size, in bytes per logical block.
    pub ms: U16,
    /// LBA Data Size: 2 to the power of LBADS bytes; below 9 the format is not available.
    pub lbads: u8,
    /// Relative Performance, in bits 1:0; 0 is best.
    pub rp: u8,
}

assert_layout!(LbaFormat, 4, ms: 0, lbads: 2, rp: 3);

impl LbaFormat {
    /// Logical block size in bytes, without metadata; `None` if the format is not available or absurd.
    #[must_use]
    pub const fn block_size(&self) -> Option<u32> {
        match self.lbads {
            exponent @ 9..=31 => Some(1 << exponent),
            _ => None,
        }
    }
}

bit_set! {
    /// NSFEAT, Namespace Features.
    pub struct Nsfeat(u8) {
        THIN_PROVISIONING = 1 << 0, "Thin provisioning";
        NAMESPACE_ATOMICS = 1 << 1, "NAWUN, NAWUPF and NACWU are this namespace's own";
        DEALLOCATED_ERROR = 1 << 2, "Deallocated or Unwritten Logical Block error";
        IDENTIFIERS_NOT_REUSED = 1 << 3, "NGUID and EUI64 are never reused";
        OPTIMAL_PERFORMANCE = 1 << 4, "NPWG, NPWA, NPDG, NPDA and NOWS are defined";
    }
}

bit_set! {
    /// FLBAS, Formatted LBA Size.
    pub struct Flbas(u8) {
        EXTENDED_METADATA = 1 << 4, "Metadata is transferred at the end of each logical block";
    }
}

impl Flbas {
    /// The FLBAS of a format index (six bits count) and metadata placement.
    #[must_use]
    pub const fn from_format(index: u8, extended_metadata: bool) -> Self {
        let metadata = if extended_metadata { Self::EXTENDED_METADATA } else { Self::EMPTY };
        metadata.with_field(0, 4, index & 0xf).with_field(5, 2, index >> 4)
    }

    /// Index of the LBA format: bits 3:0, and bits 6:5 as the upper two bits.
    #[must_use]
    pub const fn format_index(self) -> u8 {
        self.field(0, 4) | self.field(5, 2) << 4
    }
}

bit_set! {
    /// MC, Metadata Capabilities.
    pub struct MetadataCapabilities(u8) {
        EXTENDED = 1 << 0, "Metadata as part of the logical block";
        SEPARATE = 1 << 1, "Metadata in a separate buffer";
    }
}

bit_set! {
    /// DPC, End-to-end Data Protection Capabilities.
    pub struct DataProtectionCapabilities(u8) {
        TYPE_1 = 1 << 0, "Protection information type 1";
        TYPE_2 = 1 << 1, "Protection information type 2";
        TYPE_3 = 1 << 2, "Protection information type 3";
        FIRST = 1 << 3, "Protection information in the first bytes of metadata";
        LAST = 1 << 4, "Protection information in the last bytes of metadata";
    }
}

bit_set! {
    /// DPS, End-to-end Data Protection Type Settings.
    pub struct DataProtection(u8) {
        FIRST = 1 << 3, "Protection information is in the first bytes of metadata, not the last";
    }
}

impl DataProtection {
    /// Protection information type 1 to 3; 0 if disabled.
    #[must_use]
    pub const fn protection_type(self) -> u8 {
        self.field(0, 3)
    }

    /// These settings with a protection information type; three bits count.
    #[must_use]
    pub const fn with_protection_type(self, protection_type: u8) -> Self {
        self.with_field(0, 3, protection_type)
    }
}

bit_set! {
    /// NMIC, Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub struct Nmic(u8) {
        SHARED = 1 << 0, "The namespace may be attached to two or more controllers at once";
    }
}

bit_set! {
    /// NSATTR, Namespace Attributes.
    pub struct Nsattr(u8) {
        WRITE_PROTECTED = 1 << 0, "The namespace is write protected";
    }
}

bit_set! {
    /// DLFEAT, Deallocate Logical Block Features.
    pub struct Dlfeat(u8) {
        READS_ZEROES = 0b001, "Deallocated blocks read as zeroes";
        READS_ONES = 0b010, "Deallocated blocks read as all ones";
        WRITE_ZEROES_DEALLOCATE = 1 << 3, "Write Zeroes may deallocate";
        GUARD_IS_CRC = 1 << 4, "The guard of a deallocated block is the CRC of its value";
    }
}

/// The NVM command set's Identify Namespace data structure (CNS 05h, CSI 00h). NVM Command Set §4.1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespaceNvm {
    /// Logical Block Storage Tag Mask.
    pub lbstm: U64,
    /// Protection Information Capabilities.
    pub pic: u8,
    _rsvd9: [u8; 3],
    /// Extended LBA Formats, parallel to [`IdentifyNamespace::lbaf`].
    pub elbaf: [ExtendedLbaFormat; 64],
    _rsvd268: [u8; 3828],
}

assert_layout!(IdentifyNamespaceNvm, IDENTIFY_SIZE, lbstm: 0, pic: 8, elbaf: 12);

bit_set! {
    /// Extended LBA Format data structure. NVM Command Set §4.1.5.
    pub struct ExtendedLbaFormat(U32 as u32) {}
}

impl ExtendedLbaFormat {
    /// Storage Tag Size, in bits.
    #[must_use]
    pub const fn storage_tag_size_bits(self) -> u8 {
        self.field(0, 7) as u8
    }

    /// Protection Information Format.
    #[must_use]
    pub const fn protection_format(self) -> ProtectionFormat {
        ProtectionFormat(self.field(7, 2) as u8)
    }

    /// The extended format of a storage tag size and a protection information format.
    #[must_use]
    pub const fn from_parts(storage_tag_size_bits: u8, format: ProtectionFormat) -> Self {
        Self::EMPTY.with_field(0, 7, storage_tag_size_bits as u32).with_field(7, 2, format.0 as u32)
    }
}

open_enum! {
    /// Protection Information Format: size of the guard. NVM Command Set §5.2.
    pub struct ProtectionFormat(u8) {
        GUARD_16 = 0, "16b guard protection information";
        GUARD_32 = 1, "32b guard protection information";
        GUARD_64 = 2, "64b guard protection information";
    }
}

/// I/O Command Set Independent Identify Namespace data structure (CNS 08h). Base 2.0c §5.17.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespaceIndependent {
    /// Common Namespace Features.
    pub nsfeat: IndependentNsfeat,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: Nmic,
    /// Reservation Capabilities.
    pub rescap: ReservationCapabilities,
    /// Format Progress Indicator.
    pub fpi: u8,
    /// ANA Group Identifier; 0 if the controller does not report ANA.
    pub anagrpid: U32,
    /// Namespace Attributes.
    pub nsattr: Nsattr,
    _rsvd9: u8,
    /// NVM Set Identifier.
    pub nvmsetid: U16,
    /// Endurance Group Identifier.
    pub endgid: U16,
    /// Namespace Status.
    pub nstat: Nstat,
    _rsvd15: [u8; 4081],
}

assert_layout!(
    IdentifyNamespaceIndependent,
    IDENTIFY_SIZE,
    nsfeat: 0, nmic: 1, rescap: 2, fpi: 3, anagrpid: 4, nsattr: 8, nvmsetid: 10, endgid: 12, nstat: 14
);

bit_set! {
    /// NSFEAT of the command set independent structure.
    pub struct IndependentNsfeat(u8) {
        IDENTIFIERS_NOT_REUSED = 1 << 3, "NGUID and EUI64 are never reused";
        ROTATIONAL_MEDIA = 1 << 4, "The namespace stores data on rotational media";
    }
}

bit_set! {
    /// NSTAT, Namespace Status.
    pub struct Nstat(u8) {
        READY = 1 << 0, "The namespace is ready";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn format_index_uses_six_split_bits() {
        for index in 0..64 {
            let flbas = Flbas::from_format(index, true);
            assert_eq!(flbas.format_index(), index);
            assert!(flbas.contains(Flbas::EXTENDED_METADATA));
        }
        assert_eq!(Flbas::from_format(0x21, false).get(), 0x41);
    }

    #[test]
    fn block_size_of_an_unavailable_format_is_none() {
        let mut ns = IdentifyNamespace::new_zeroed();
        assert_eq!(ns.lba_format().and_then(LbaFormat::block_size), None);
        ns.lbaf[0].lbads = 12;
        assert_eq!(ns.lba_format().and_then(LbaFormat::block_size), Some(4096));
        ns.lbaf[0].lbads = 255;
        assert_eq!(ns.lba_format().and_then(LbaFormat::block_size), None);
    }
}
