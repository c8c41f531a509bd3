//! What an operator says about the target: the parameters of its objects, as
//! they stand in requests and configuration files. Checked where they are used.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds and times of a target.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// Most subsystems, the discovery subsystem not counted.
    pub max_subsystems: usize,
    /// Most connections over all transports.
    pub max_connections: usize,
    /// Most I/O queues of one controller.
    pub max_io_queues: u16,
    /// Entries of the largest queue.
    pub max_queue_entries: u16,
    /// Largest payload of one command in bytes: a power of two, 4 KiB to 4 MiB.
    pub max_transfer_bytes: u32,
    /// How long a connection may stay without a Connect command.
    pub connect_timeout: Duration,
    /// How long a queue may take to authenticate.
    pub authentication_timeout: Duration,
    /// How long a closing connection may take to drain.
    pub drain_deadline: Duration,
    /// How long a subsystem may stay paused before it resumes by itself.
    pub pause_deadline: Duration,
    /// How long a transport may take to start or stop listening.
    pub transport_deadline: Duration,
    /// Smallest keep-alive time-out a controller takes, in milliseconds; smaller ones are raised.
    pub min_keep_alive_ms: u32,
    /// Most bytes of buffers that one connection may hold; its further commands wait, so that none starves the
    /// others.
    pub max_buffer_bytes_per_connection: usize,
    /// Command Retry Delay Times, in units of 100 ms.
    pub retry_delays_100ms: [u16; 3],
    /// Folder where reservations of namespaces without a file of their own are kept, if hosts want them to
    /// persist; absent: only a namespace with `ptpl_file` offers that.
    pub reservation_folder: Option<PathBuf>,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            max_subsystems: 1024,
            max_connections: 4096,
            max_io_queues: 127,
            max_queue_entries: 1024,
            max_transfer_bytes: 1 << 20,
            connect_timeout: Duration::from_secs(10),
            authentication_timeout: Duration::from_secs(30),
            drain_deadline: Duration::from_secs(5),
            pause_deadline: Duration::from_secs(10),
            transport_deadline: Duration::from_secs(10),
            min_keep_alive_ms: 100,
            max_buffer_bytes_per_connection: 16 << 20,
            retry_delays_100ms: [0; 3],
            reservation_folder: None,
        }
    }
}

/// An NVM subsystem to be made.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SubsystemSpec {
    /// Its NVMe Qualified Name.
    pub nqn: String,
    /// Serial number: at most 20 printable ASCII characters.
    #[serde(default = "default_serial_number")]
    pub serial_number: String,
    /// Model number: at most 40 printable ASCII characters.
    #[serde(default = "default_model_number")]
    pub model_number: String,
    /// Largest namespace identifier.
    #[serde(default = "default_max_namespaces")]
    pub max_namespaces: u32,
    /// Whether any host may connect.
    #[serde(default)]
    pub allow_any_host: bool,
    /// Whether Asymmetric Namespace Access is reported.
    #[serde(default)]
    pub ana_reporting: bool,
    /// Smallest controller identifier.
    #[serde(default = "default_min_cntlid")]
    pub min_cntlid: u16,
    /// Largest controller identifier.
    #[serde(default = "default_max_cntlid")]
    pub max_cntlid: u16,
    /// Largest Dataset Management range hosts are told of, in KiB; 0: no limit.
    #[serde(default)]
    pub max_discard_size_kib: u64,
    /// Largest Write Zeroes hosts are told of, in KiB: a power of two from 4 on; 0: no limit.
    #[serde(default)]
    pub max_write_zeroes_size_kib: u64,
}

impl SubsystemSpec {
    /// A subsystem of this name, with defaults.
    pub fn new(nqn: impl Into<String>) -> Self {
        Self {
            nqn: nqn.into(),
            serial_number: default_serial_number(),
            model_number: default_model_number(),
            max_namespaces: default_max_namespaces(),
            allow_any_host: false,
            ana_reporting: false,
            min_cntlid: default_min_cntlid(),
            max_cntlid: default_max_cntlid(),
            max_discard_size_kib: 0,
            max_write_zeroes_size_kib: 0,
        }
    }
}

/// A namespace to be added.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceSpec {
    /// The device, by name, alias or UUID.
    pub bdev_name: String,
    /// Its identifier; absent: the smallest free one.
    #[serde(default)]
    pub nsid: Option<u32>,
    /// Namespace Globally Unique Identifier; absent: the device's.
    #[serde(default)]
    pub nguid: Option<[u8; 16]>,
    /// IEEE Extended Unique Identifier; absent: the device's.
    #[serde(default)]
    pub eui64: Option<[u8; 8]>,
    /// UUID; absent: the device's.
    #[serde(default)]
    pub uuid: Option<uuid::Uuid>,
    /// ANA group; absent: the namespace's own number.
    #[serde(default)]
    pub anagrpid: Option<u32>,
    /// Only hosts added to the namespace see it.
    #[serde(default)]
    pub no_auto_visible: bool,
    /// Writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// File where its reservations are kept if hosts want them to persist.
    #[serde(default)]
    pub ptpl_file: Option<PathBuf>,
}

/// The keys of a host at a subsystem, by their names in the keyring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HostKeys {
    /// Pre-shared key for secure channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<String>,
    /// Key by which the host proves who it is; present: it has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhchap_key: Option<String>,
    /// Key by which the subsystem proves to the host who it is, if the host asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhchap_ctrlr_key: Option<String>,
}

impl HostKeys {
    pub(crate) fn uses(&self, name: &str) -> bool {
        [&self.psk, &self.dhchap_key, &self.dhchap_ctrlr_key].into_iter().flatten().any(|own| own == name)
    }
}

/// Where to listen, or where a referral points to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// Transport, as its plugin spells it: `TCP`, `RDMA`, `LOOP`.
    pub trtype: String,
    /// Address family: `IPv4`, `IPv6`, `IB`, `FC`, `loop`.
    #[serde(default = "default_adrfam")]
    pub adrfam: String,
    /// Address.
    pub traddr: String,
    /// Service identifier, e.g. a port.
    #[serde(default)]
    pub trsvcid: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.trtype, self.traddr, self.trsvcid)
    }
}

/// A discovery service somewhere else.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Referral {
    /// Where.
    pub address: Address,
    /// Its NQN.
    #[serde(default = "default_referral_nqn")]
    pub subnqn: String,
    /// Whether it wants a secure channel.
    #[serde(default)]
    pub secure_channel: bool,
}

/// Which listeners a discovery log page shows, beside the host's permission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryFilter {
    /// Only those of the transport the host came by.
    pub transport: bool,
    /// Only those of the address the host came to.
    pub address: bool,
    /// Only those of the service identifier the host came to.
    pub service: bool,
}

impl DiscoveryFilter {
    /// Whether a host that came to `came` is told of `other`.
    pub(crate) fn shows(self, came: &Address, other: &Address) -> bool {
        (!self.transport || came.trtype.eq_ignore_ascii_case(&other.trtype))
            && (!self.address || came.traddr == other.traddr)
            && (!self.service || came.trsvcid == other.trsvcid)
    }
}

/// Largest `max_namespaces`.
pub const MAX_NAMESPACES: u32 = 1024;

fn default_serial_number() -> String {
    "00000000000000000000".to_owned()
}

fn default_model_number() -> String {
    "Tenon bdev Controller".to_owned()
}

fn default_max_namespaces() -> u32 {
    32
}

fn default_min_cntlid() -> u16 {
    1
}

fn default_max_cntlid() -> u16 {
    nvme_spec::fabrics::CNTLID_MAX
}

fn default_adrfam() -> String {
    "IPv4".to_owned()
}

fn default_referral_nqn() -> String {
    nvme_spec::nqn::DISCOVERY_NQN.to_owned()
}
