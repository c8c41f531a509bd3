//! NVMe-oF transports as seen through the door: the table a transport plugin
//! offers by `query("nvmf-transport", 1)`, for its target role ([`target`]),
//! its initiator role ([`initiator`]) or both.
//!
//! Shaped for byte streams and for RDMA alike: poll groups belong to a reactor,
//! memory regions have keys, devices come and go, every teardown has a drain
//! deadline. Commands cross as 64 raw bytes, completions as 16; their meaning
//! is in the NVMe specifications and the crate `nvme-spec`.
// UNSAFETY: static tables of a plugin are shared between threads.

pub mod initiator;
pub mod target;

use crate::Str;

/// Identifier under which a module's `query` offers [`TransportV1`].
pub const QUERY_TRANSPORT: &str = "nvmf-transport";
/// Identifier under which the host's `query` offers [`target::NvmfTargetApiV1`].
pub const QUERY_TARGET: &str = "nvmf-target";
/// Identifier under which the host's `query` offers [`initiator::TransportTableApiV2`].
pub const QUERY_TRANSPORT_TABLE: &str = "nvmf-transports";

/// Address of one end of a connection. Texts are borrowed for the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct TransportId {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// Transport type (NVMe-oF discovery log value: 1 RDMA, 2 FC, 3 TCP, 254 loop).
    pub trtype: u8,
    /// Address family (NVMe-oF discovery log value: 1 IPv4, 2 IPv6, 254 loop).
    pub adrfam: u8,
    /// Reserved, 0.
    pub reserved: u16,
    /// Transport address.
    pub traddr: Str,
    /// Transport service identifier.
    pub trsvcid: Str,
    /// Subsystem NQN, or empty.
    pub subnqn: Str,
}

/// What a transport can do.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct TransportFlags(pub u32);

impl TransportFlags {
    /// Data is placed by remote keys (keyed SGLs) rather than in the stream.
    pub const KEYED_SGL: TransportFlags = TransportFlags(1);
    /// Commands may carry data in their capsule.
    pub const IN_CAPSULE_DATA: TransportFlags = TransportFlags(1 << 1);
    /// Sends from any memory; otherwise payloads must lie in registered regions.
    pub const ANY_MEMORY: TransportFlags = TransportFlags(1 << 2);
    /// Can secure a channel (TLS).
    pub const SECURE_CHANNEL: TransportFlags = TransportFlags(1 << 3);
    /// Secures channels of its initiator role by the key of [`initiator::ConnectParams`].
    pub const SECURE_INITIATOR: TransportFlags = TransportFlags(1 << 5);
    /// Reads may be answered from lent memory.
    pub const LENT_MEMORY: TransportFlags = TransportFlags(1 << 4);
}

/// What a transport plugin offers. Static in the plugin.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct TransportV1 {
    /// Bytes of this table the plugin knows.
    pub size: u32,
    /// Capabilities.
    pub flags: TransportFlags,
    /// Name as in `trtype`: `TCP`, `RDMA`, `LOOP`.
    pub name: Str,
    /// Transport type, see [`TransportId::trtype`].
    pub trtype: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Target role, or null.
    pub target: *const target::TargetOpsV1,
    /// Initiator role, or null.
    pub initiator: *const initiator::InitiatorOpsV1,
}

// SAFETY: a table is immutable static data of the plugin.
unsafe impl Sync for TransportV1 {}

/// Which way a command's data travels, seen from the NVMe host.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct Direction(pub u8);

impl Direction {
    /// No data.
    pub const NONE: Direction = Direction(0);
    /// NVMe host to controller.
    pub const TO_CONTROLLER: Direction = Direction(1);
    /// Controller to NVMe host.
    pub const TO_HOST: Direction = Direction(2);
}

/// Why a connection ended or is to end.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct CloseReason(pub u32);

impl CloseReason {
    /// The local side asked.
    pub const LOCAL: CloseReason = CloseReason(1);
    /// The peer closed or reset the connection.
    pub const PEER: CloseReason = CloseReason(2);
    /// The peer broke the protocol.
    pub const PROTOCOL: CloseReason = CloseReason(3);
    /// The peer was silent too long (keep alive, handshake, idle).
    pub const TIMEOUT: CloseReason = CloseReason(4);
    /// The device below went away.
    pub const DEVICE: CloseReason = CloseReason(5);
    /// Out of memory or of connections.
    pub const RESOURCES: CloseReason = CloseReason(6);
    /// Authentication or TLS failed.
    pub const SECURITY: CloseReason = CloseReason(7);
    /// Refused: nobody listens, or the peer rejected the connection.
    pub const REFUSED: CloseReason = CloseReason(8);
    /// The network cannot reach the peer.
    pub const UNREACHABLE: CloseReason = CloseReason(9);
}

/// State of a device below a transport, e.g. an RDMA adapter or a network interface.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct DeviceState(pub u32);

impl DeviceState {
    /// Usable on every poll group.
    pub const READY: DeviceState = DeviceState(1);
    /// Present but not usable everywhere; the transport retries.
    pub const DEGRADED: DeviceState = DeviceState(2);
    /// Being removed; its connections drain.
    pub const REMOVING: DeviceState = DeviceState(3);
    /// Gone.
    pub const GONE: DeviceState = DeviceState(4);
}

/// A device came, went or changed state. Duplicates are allowed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct DeviceEvent {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// New state.
    pub state: DeviceState,
    /// Name of the device.
    pub name: Str,
    /// Grows with every incarnation of the same name.
    pub generation: u64,
    /// For REMOVING: time of `now_ns` by which connections are gone; 0: none.
    pub deadline_ns: u64,
    /// Text for people, or empty.
    pub reason: Str,
}

/// Keys of a memory region on one device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct MemoryKeys {
    /// For local access.
    pub local_key: u64,
    /// For a peer's access.
    pub remote_key: u64,
}
