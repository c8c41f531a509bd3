//! The Discovery log page (70h) and the words of transport addresses. Base 2.0c §5.16.1.

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::nqn::NqnField;
use crate::text::AsciiField;

/// The service port of NVMe/TCP discovery controllers.
pub const DISCOVERY_TCP_PORT: u16 = 8009;

/// The service port of NVMe/TCP and NVMe/RDMA I/O controllers.
pub const IO_PORT: u16 = 4420;

/// Header of the Discovery log page; [`DiscoveryEntry`]s follow. Base 2.0c §5.16.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// Generation Counter: changes with the page; a host that sees it change while reading starts over.
    pub genctr: U64,
    /// Number of Records.
    pub numrec: U64,
    /// Record Format, 0.
    pub recfmt: U16,
    _rsvd18: [u8; 1006],
}

assert_layout!(DiscoveryHeader, 1024, genctr: 0, numrec: 8, recfmt: 16);

impl DiscoveryHeader {
    /// A header.
    #[must_use]
    pub const fn new(genctr: u64, numrec: u64) -> Self {
        Self { genctr: U64::new(genctr), numrec: U64::new(numrec), recfmt: U16::new(0), _rsvd18: [0; 1006] }
    }
}

/// Discovery Log Page Entry. Base 2.0c §5.16.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// Transport Type.
    pub trtype: TransportType,
    /// Address Family.
    pub adrfam: AddressFamily,
    /// Subsystem Type.
    pub subtype: SubsystemType,
    /// Transport Requirements.
    pub treq: TransportRequirements,
    /// Port ID.
    pub portid: U16,
    /// Controller ID: a static one, or FFFFh (dynamic) or FFFEh (any static).
    pub cntlid: U16,
    /// Admin Max SQ Size, in entries.
    pub asqsz: U16,
    /// Entry Flags.
    pub eflags: EntryFlags,
    _rsvd12: [u8; 20],
    /// Transport Service Identifier: the port number in decimal for IP transports.
    pub trsvcid: AsciiField<32>,
    _rsvd64: [u8; 192],
    /// NVM Subsystem Qualified Name.
    pub subnqn: NqnField,
    /// Transport Address.
    pub traddr: AsciiField<256>,
    /// Transport Specific Address Subtype.
    pub tsas: Tsas,
}

assert_layout!(
    DiscoveryEntry,
    1024,
    trtype: 0, adrfam: 1, subtype: 2, treq: 3, portid: 4, cntlid: 6, asqsz: 8, eflags: 10, trsvcid: 32,
    subnqn: 256, traddr: 512, tsas: 768
);

open_enum! {
    /// TRTYPE, Transport Type. Base 2.0c §5.16.1.
    pub struct TransportType(u8) {
        NONE = 0x00, "Not indicated";
        RDMA = 0x01, "RDMA transport";
        FIBRE_CHANNEL = 0x02, "Fibre Channel transport";
        TCP = 0x03, "TCP transport";
        LOOP = 0xfe, "Intra-host transport";
    }
}

open_enum! {
    /// ADRFAM, Address Family. Base 2.0c §5.16.1.
    pub struct AddressFamily(u8) {
        PCIE = 0x00, "PCI Express";
        IPV4 = 0x01, "AF_INET: IPv4";
        IPV6 = 0x02, "AF_INET6: IPv6";
        INFINIBAND = 0x03, "AF_IB: InfiniBand";
        FIBRE_CHANNEL = 0x04, "Fibre Channel";
        LOOP = 0xfe, "Intra-host";
    }
}

open_enum! {
    /// SUBTYPE, Subsystem Type. Base 2.0c §5.16.1.
    pub struct SubsystemType(u8) {
        REFERRAL = 0x01, "Referral to another discovery service";
        NVM = 0x02, "NVM subsystem";
        CURRENT_DISCOVERY = 0x03, "The discovery subsystem the page came from";
    }
}

bit_set! {
    /// TREQ, Transport Requirements; bits 1:0 are the secure channel. Base 2.0c §5.16.1.
    pub struct TransportRequirements(u8) {
        SQ_FLOW_CONTROL_OPTIONAL = 1 << 2, "Submission queue flow control can be disabled";
    }
}

impl TransportRequirements {
    /// Whether a secure channel is required.
    #[must_use]
    pub const fn secure_channel(self) -> SecureChannel {
        SecureChannel(self.field(0, 2))
    }

    /// These requirements with a secure channel requirement.
    #[must_use]
    pub const fn with_secure_channel(self, secure_channel: SecureChannel) -> Self {
        self.with_field(0, 2, secure_channel.0)
    }
}

open_enum! {
    /// Secure channel in [`TransportRequirements`]. Base 2.0c §5.16.1.
    pub struct SecureChannel(u8) {
        NOT_SPECIFIED = 0b00, "Not specified";
        REQUIRED = 0b01, "Required";
        NOT_REQUIRED = 0b10, "Not required";
    }
}

bit_set! {
    /// EFLAGS, Entry Flags. Base 2.0c §5.16.1.
    pub struct EntryFlags(U16 as u16) {
        DUPRETINFO = 1 << 0, "Duplicate Returned Information: the same discovery service by another address";
        EPCSD = 1 << 1, "Explicit Persistent Connection Support for Discovery";
        NCC = 1 << 2, "No CDC Connectivity";
    }
}

/// TSAS, Transport Specific Address Subtype: what it holds depends on TRTYPE.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Tsas(pub [u8; 256]);

impl Tsas {
    /// As the RDMA transport's.
    #[must_use]
    pub fn rdma(&self) -> RdmaTsas {
        zerocopy::transmute!(self.0)
    }

    /// As the TCP transport's.
    #[must_use]
    pub fn tcp(&self) -> TcpTsas {
        zerocopy::transmute!(self.0)
    }
}

impl core::fmt::Debug for Tsas {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let used = self.0.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        write!(f, "Tsas({:02x?})", self.0.get(..used).unwrap_or_default())
    }
}

impl From<RdmaTsas> for Tsas {
    fn from(tsas: RdmaTsas) -> Self {
        Self(zerocopy::transmute!(tsas))
    }
}

impl From<TcpTsas> for Tsas {
    fn from(tsas: TcpTsas) -> Self {
        Self(zerocopy::transmute!(tsas))
    }
}

/// TSAS of the RDMA transport. RDMA Transport 1.0c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RdmaTsas {
    /// RDMA QP Service Type.
    pub qptype: RdmaQpType,
    /// RDMA Provider Type.
    pub prtype: RdmaProviderType,
    /// RDMA Connection Management Service.
    pub cms: RdmaConnectionService,
    _rsvd3: [u8; 5],
    /// RDMA Partition Key, for AF_IB.
    pub pkey: U16,
    _rsvd10: [u8; 246],
}

assert_layout!(RdmaTsas, 256, qptype: 0, prtype: 1, cms: 2, pkey: 8);

impl RdmaTsas {
    /// A reliable connection by RDMA_CM, as IP based providers have it.
    #[must_use]
    pub const fn new(prtype: RdmaProviderType) -> Self {
        Self {
            qptype: RdmaQpType::RELIABLE_CONNECTED,
            prtype,
            cms: RdmaConnectionService::RDMA_CM,
            _rsvd3: [0; 5],
            pkey: U16::new(0),
            _rsvd10: [0; 246],
        }
    }
}

open_enum! {
    /// RDMA QP Service Type. RDMA Transport 1.0c.
    pub struct RdmaQpType(u8) {
        RELIABLE_CONNECTED = 0x01, "Reliable Connected";
        RELIABLE_DATAGRAM = 0x02, "Reliable Datagram";
    }
}

open_enum! {
    /// RDMA Provider Type. RDMA Transport 1.0c.
    pub struct RdmaProviderType(u8) {
        NOT_SPECIFIED = 0x01, "No provider specified";
        INFINIBAND = 0x02, "InfiniBand";
        ROCE = 0x03, "RoCE";
        ROCE_V2 = 0x04, "RoCEv2";
        IWARP = 0x05, "iWARP";
    }
}

open_enum! {
    /// RDMA Connection Management Service. RDMA Transport 1.0c.
    pub struct RdmaConnectionService(u8) {
        RDMA_CM = 0x01, "RDMA_IP_CM";
    }
}

/// TSAS of the TCP transport. TCP Transport 1.0c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TcpTsas {
    /// Security Type.
    pub sectype: SecurityType,
    _rsvd1: [u8; 255],
}

assert_layout!(TcpTsas, 256, sectype: 0);

impl TcpTsas {
    /// A security type.
    #[must_use]
    pub const fn new(sectype: SecurityType) -> Self {
        Self { sectype, _rsvd1: [0; 255] }
    }
}

open_enum! {
    /// SECTYPE, Security Type of the TCP transport. TCP Transport 1.0c.
    pub struct SecurityType(u8) {
        NONE = 0x00, "No security";
        TLS_1_2 = 0x01, "TLS version 1.2";
        TLS_1_3 = 0x02, "TLS version 1.3";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tsas_reads_back_by_transport() {
        let rdma = Tsas::from(RdmaTsas::new(RdmaProviderType::ROCE_V2));
        assert_eq!(rdma.0[..4], [1, 4, 1, 0]);
        assert_eq!(rdma.rdma().prtype, RdmaProviderType::ROCE_V2);
        assert_eq!(Tsas::from(TcpTsas::new(SecurityType::TLS_1_3)).tcp().sectype, SecurityType::TLS_1_3);
    }

    #[test]
    fn secure_channel_leaves_flow_control_alone() {
        let treq =
            TransportRequirements::SQ_FLOW_CONTROL_OPTIONAL.with_secure_channel(SecureChannel::NOT_REQUIRED);
        assert_eq!((treq.get(), treq.secure_channel()), (0b110, SecureChannel::NOT_REQUIRED));
    }
}
