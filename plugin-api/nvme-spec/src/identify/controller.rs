//! Identify Controller (CNS 01h) and the NVM command set's own part of it (CNS 06h).
//!
//! One structure serves I/O, discovery and administrative controllers; which
//! fields each kind must fill is not decided here.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::IDENTIFY_SIZE;
use crate::nqn::NqnField;
use crate::property::Version;
use crate::text::AsciiField;

/// Identify Controller data structure (CNS 01h). Base 2.0c §5.17.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI Vendor ID.
    pub vid: U16,
    /// PCI Subsystem Vendor ID.
    pub ssvid: U16,
    /// Serial Number.
    pub sn: AsciiField<20>,
    /// Model Number.
    pub mn: AsciiField<40>,
    /// Firmware Revision.
    pub fr: AsciiField<8>,
    /// Recommended Arbitration Burst: 2 to the power of RAB commands.
    pub rab: u8,
    /// IEEE OUI Identifier, least significant byte first.
    pub ieee: [u8; 3],
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
    pub cmic: Cmic,
    /// Maximum Data Transfer Size: 2 to the power of MDTS minimum pages (CAP.MPSMIN); 0 for no limit.
    pub mdts: u8,
    /// Controller ID.
    pub cntlid: U16,
    /// Version.
    pub ver: Version,
    /// RTD3 Resume Latency, in microseconds.
    pub rtd3r: U32,
    /// RTD3 Entry Latency, in microseconds.
    pub rtd3e: U32,
    /// Optional Asynchronous Events Supported.
    pub oaes: Oaes,
    /// Controller Attributes.
    pub ctratt: Ctratt,
    /// Read Recovery Levels Supported.
    pub rrls: U16,
    _rsvd102: [u8; 9],
    /// Controller Type.
    pub cntrltype: ControllerType,
    /// FRU Globally Unique Identifier.
    pub fguid: [u8; 16],
    /// Command Retry Delay Time 1, in units of 100 ms.
    pub crdt1: U16,
    /// Command Retry Delay Time 2, in units of 100 ms.
    pub crdt2: U16,
    /// Command Retry Delay Time 3, in units of 100 ms.
    pub crdt3: U16,
    _rsvd134: [u8; 119],
    /// NVM Subsystem Report.
    pub nvmsr: u8,
    /// VPD Write Cycle Information.
    pub vwci: u8,
    /// Management Endpoint Capabilities.
    pub mec: u8,
    /// Optional Admin Command Support.
    pub oacs: Oacs,
    /// Abort Command Limit, 0's based.
    pub acl_z: u8,
    /// Asynchronous Event Request Limit, 0's based.
    pub aerl_z: u8,
    /// Firmware Updates.
    pub frmw: u8,
    /// Log Page Attributes.
    pub lpa: Lpa,
    /// Error Log Page Entries, 0's based.
    pub elpe_z: u8,
    /// Number of Power States Support, 0's based.
    pub npss_z: u8,
    /// Admin Vendor Specific Command Configuration.
    pub avscc: u8,
    /// Autonomous Power State Transition Attributes.
    pub apsta: u8,
    /// Warning Composite Temperature Threshold, in kelvin.
    pub wctemp: U16,
    /// Critical Composite Temperature Threshold, in kelvin.
    pub cctemp: U16,
    /// Maximum Time for Firmware Activation, in units of 100 ms.
    pub mtfa: U16,
    /// Host Memory Buffer Preferred Size, in units of 4 KiB.
    pub hmpre: U32,
    /// Host Memory Buffer Minimum Size, in units of 4 KiB.
    pub hmmin: U32,
    /// Total NVM Capacity, in bytes.
    pub tnvmcap: U128,
    /// Unallocated NVM Capacity, in bytes.
    pub unvmcap: U128,
    /// Replay Protected Memory Block Support.
    pub rpmbs: U32,
    /// Extended Device Self-test Time, in minutes.
    pub edstt: U16,
    /// Device Self-test Options.
    pub dsto: u8,
    /// Firmware Update Granularity, in units of 4 KiB.
    pub fwug: u8,
    /// Keep Alive Support: granularity of the timer, in units of 100 ms; 0 for none.
    pub kas: U16,
    /// Host Controlled Thermal Management Attributes.
    pub hctma: U16,
    /// Minimum Thermal Management Temperature, in kelvin.
    pub mntmt: U16,
    /// Maximum Thermal Management Temperature, in kelvin.
    pub mxtmt: U16,
    /// Sanitize Capabilities.
    pub sanicap: U32,
    /// Host Memory Buffer Minimum Descriptor Entry Size, in units of 4 KiB.
    pub hmminds: U32,
    /// Host Memory Maximum Descriptors Entries.
    pub hmmaxd: U16,
    /// NVM Set Identifier Maximum.
    pub nsetidmax: U16,
    /// Endurance Group Identifier Maximum.
    pub endgidmax: U16,
    /// ANA Transition Time, in seconds.
    pub anatt: u8,
    /// Asymmetric Namespace Access Capabilities.
    pub anacap: AnaCapabilities,
    /// ANA Group Identifier Maximum.
    pub anagrpmax: U32,
    /// Number of ANA Group Identifiers.
    pub nanagrpid: U32,
    /// Persistent Event Log Size, in units of 64 KiB.
    pub pels: U32,
    /// Domain Identifier.
    pub domainid: U16,
    _rsvd358: [u8; 10],
    /// Max Endurance Group Capacity, in bytes.
    pub megcap: U128,
    _rsvd384: [u8; 2],
    /// Command Quiesce Time, in milliseconds; 0: not reported. Base 2.1.
    pub cqt: U16,
    _rsvd388: [u8; 124],
    /// Submission Queue Entry Size: required in bits 3:0, maximum in bits 7:4, as powers of two.
    pub sqes: u8,
    /// Completion Queue Entry Size: required in bits 3:0, maximum in bits 7:4, as powers of two.
    pub cqes: u8,
    /// Maximum Outstanding Commands per queue, mandatory over fabrics.
    pub maxcmd: U16,
    /// Number of Namespaces: the highest valid namespace identifier.
    pub nn: U32,
    /// Optional NVM Command Support.
    pub oncs: Oncs,
    /// Fused Operation Support.
    pub fuses: Fuses,
    /// Format NVM Attributes.
    pub fna: u8,
    /// Volatile Write Cache.
    pub vwc: Vwc,
    /// Atomic Write Unit Normal, in logical blocks, 0's based.
    pub awun_z: U16,
    /// Atomic Write Unit Power Fail, in logical blocks, 0's based.
    pub awupf_z: U16,
    /// I/O Command Set Vendor Specific Command Configuration.
    pub icsvscc: u8,
    /// Namespace Write Protection Capabilities.
    pub nwpc: u8,
    /// Atomic Compare and Write Unit, in logical blocks, 0's based.
    pub acwu_z: U16,
    /// Copy Descriptor Formats Supported: bit n for format n.
    pub cdfs: U16,
    /// SGL Support.
    pub sgls: Sgls,
    /// Maximum Number of Allowed Namespaces.
    pub mnan: U32,
    /// Maximum Domain Namespace Attachments.
    pub maxdna: U128,
    /// Maximum I/O Controller Namespace Attachments.
    pub maxcna: U32,
    _rsvd564: [u8; 204],
    /// NVM Subsystem NVMe Qualified Name.
    pub subnqn: NqnField,
    _rsvd1024: [u8; 768],
    /// I/O Queue Command Capsule Supported Size, in units of 16 bytes.
    pub ioccsz: U32,
    /// I/O Queue Response Capsule Supported Size, in units of 16 bytes.
    pub iorcsz: U32,
    /// In Capsule Data Offset, in units of 16 bytes, from the end of the SQE.
    pub icdoff: U16,
    /// Fabrics Controller Attributes.
    pub fcatt: Fcatt,
    /// Maximum SGL Data Block Descriptors in a capsule; 0 for no limit.
    pub msdbd: u8,
    /// Optional Fabrics Commands Support.
    pub ofcs: Ofcs,
    /// Discovery Controller Type.
    pub dctype: DiscoveryControllerType,
    _rsvd1807: [u8; 241],
    /// Power State Descriptors, NPSS of which count.
    pub psd: [PowerState; 32],
    /// Vendor specific.
    pub vs: [u8; 1024],
}

assert_layout!(
    IdentifyController,
    IDENTIFY_SIZE,
    sn: 4, mn: 24, fr: 64, rab: 72, ieee: 73, cmic: 76, mdts: 77, cntlid: 78, ver: 80, rtd3r: 84, rtd3e: 88,
    oaes: 92, ctratt: 96, rrls: 100, cntrltype: 111, fguid: 112, crdt1: 128, nvmsr: 253, oacs: 256, acl_z: 258,
    aerl_z: 259, frmw: 260, lpa: 261, elpe_z: 262, npss_z: 263, wctemp: 266, cctemp: 268, mtfa: 270, tnvmcap: 280,
    unvmcap: 296, rpmbs: 312, edstt: 316, fwug: 319, kas: 320, sanicap: 328, endgidmax: 340, anatt: 342,
    anacap: 343, anagrpmax: 344, nanagrpid: 348, pels: 352, megcap: 368, sqes: 512, cqes: 513, maxcmd: 514,
    nn: 516, oncs: 520, fuses: 522, fna: 524, vwc: 525, awun_z: 526, awupf_z: 528, nwpc: 531, acwu_z: 532,
    cdfs: 534, sgls: 536, mnan: 540, maxdna: 544, maxcna: 560, subnqn: 768, ioccsz: 1792, iorcsz: 1796,
    icdoff: 1800, fcatt: 1802, msdbd: 1803, ofcs: 1804, dctype: 1806, psd: 2048, vs: 3072,
);

/// Power State Descriptor. Base 2.0c §5.17.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PowerState {
    /// Maximum Power, in centiwatts, or in units of 0.1 mW if bit 0 of `flags` is set.
    pub mp: U16,
    _rsvd2: u8,
    /// Bit 0: scale of Maximum Power; bit 1: Non-Operational State.
    pub flags: u8,
    /// Entry Latency, in microseconds.
    pub enlat: U32,
    /// Exit Latency, in microseconds.
    pub exlat: U32,
    /// Relative Read Throughput.
    pub rrt: u8,
    /// Relative Read Latency.
    pub rrl: u8,
    /// Relative Write Throughput.
    pub rwt: u8,
    /// Relative Write Latency.
    pub rwl: u8,
    /// Idle Power.
    pub idlp: U16,
    /// Idle Power Scale, in bits 7:6.
    pub ips: u8,
    _rsvd19: u8,
    /// Active Power.
    pub actp: U16,
    /// Active Power Workload in bits 2:0, Active Power Scale in bits 7:6.
    pub apw: u8,
    _rsvd23: [u8; 9],
}

assert_layout!(PowerState, 32, flags: 3, enlat: 4, exlat: 8, rrt: 12, idlp: 16, ips: 18, actp: 20, apw: 22);

bit_set! {
    /// CMIC, Controller Multi-Path I/O and Namespace Sharing Capabilities.
    pub struct Cmic(u8) {
        MULTIPLE_PORTS = 1 << 0, "The NVM subsystem may have more than one port";
        MULTIPLE_CONTROLLERS = 1 << 1, "The NVM subsystem may have more than one controller";
        SR_IOV = 1 << 2, "The controller belongs to an SR-IOV virtual function";
        ANA = 1 << 3, "The NVM subsystem supports Asymmetric Namespace Access reporting";
    }
}

bit_set! {
    /// OAES, Optional Asynchronous Events Supported; the same bits as the Asynchronous Event Configuration feature.
    pub struct Oaes(U32 as u32) {
        NAMESPACE_ATTRIBUTE = 1 << 8, "Namespace Attribute Notices";
        FIRMWARE_ACTIVATION = 1 << 9, "Firmware Activation Notices";
        ANA_CHANGE = 1 << 11, "Asymmetric Namespace Access Change Notices";
        PREDICTABLE_LATENCY = 1 << 12, "Predictable Latency Event Aggregate Log Change Notices";
        LBA_STATUS = 1 << 13, "LBA Status Information Notices";
        ENDURANCE_GROUP = 1 << 14, "Endurance Group Event Aggregate Log Page Change Notices";
        NORMAL_SUBSYSTEM_SHUTDOWN = 1 << 15, "Normal NVM Subsystem Shutdown event";
        ZONE_DESCRIPTOR_CHANGED = 1 << 27, "Zone Descriptor Changed Notices";
        DISCOVERY_LOG_CHANGE = 1 << 31, "Discovery Log Page Change Notification";
    }
}

bit_set! {
    /// CTRATT, Controller Attributes.
    pub struct Ctratt(U32 as u32) {
        HOST_ID_128 = 1 << 0, "128-bit Host Identifier";
        NON_OPERATIONAL_POWER = 1 << 1, "Non-Operational Power State Permissive Mode";
        NVM_SETS = 1 << 2, "NVM Sets";
        READ_RECOVERY_LEVELS = 1 << 3, "Read Recovery Levels";
        ENDURANCE_GROUPS = 1 << 4, "Endurance Groups";
        PREDICTABLE_LATENCY = 1 << 5, "Predictable Latency Mode";
        TRAFFIC_BASED_KEEP_ALIVE = 1 << 6, "Traffic Based Keep Alive Support";
        NAMESPACE_GRANULARITY = 1 << 7, "Namespace Granularity";
        SQ_ASSOCIATIONS = 1 << 8, "SQ Associations";
        UUID_LIST = 1 << 9, "UUID List";
        MULTI_DOMAIN = 1 << 10, "Multi-Domain Subsystem";
        FIXED_CAPACITY = 1 << 11, "Fixed Capacity Management";
        VARIABLE_CAPACITY = 1 << 12, "Variable Capacity Management";
        DELETE_ENDURANCE_GROUP = 1 << 13, "Delete Endurance Group";
        DELETE_NVM_SET = 1 << 14, "Delete NVM Set";
        EXTENDED_LBA_FORMATS = 1 << 15, "Extended LBA Formats Supported";
        FLEXIBLE_DATA_PLACEMENT = 1 << 19, "Flexible Data Placement Support";
    }
}

open_enum! {
    /// CNTRLTYPE, Controller Type.
    pub struct ControllerType(u8) {
        NOT_REPORTED = 0x00, "Controller type not reported";
        IO = 0x01, "I/O controller";
        DISCOVERY = 0x02, "Discovery controller";
        ADMINISTRATIVE = 0x03, "Administrative controller";
    }
}

open_enum! {
    /// DCTYPE, Discovery Controller Type.
    pub struct DiscoveryControllerType(u8) {
        NOT_REPORTED = 0x00, "Discovery controller type not reported";
        DIRECT = 0x01, "Direct Discovery controller";
        CENTRAL = 0x02, "Central Discovery controller";
    }
}

bit_set! {
    /// OACS, Optional Admin Command Support.
    pub struct Oacs(U16 as u16) {
        SECURITY = 1 << 0, "Security Send and Receive";
        FORMAT = 1 << 1, "Format NVM";
        FIRMWARE = 1 << 2, "Firmware Commit and Image Download";
        NAMESPACE_MANAGEMENT = 1 << 3, "Namespace Management and Attachment";
        SELF_TEST = 1 << 4, "Device Self-test";
        DIRECTIVES = 1 << 5, "Directive Send and Receive";
        NVME_MI = 1 << 6, "NVMe-MI Send and Receive";
        VIRTUALIZATION = 1 << 7, "Virtualization Management";
        DOORBELL_BUFFER = 1 << 8, "Doorbell Buffer Config";
        GET_LBA_STATUS = 1 << 9, "Get LBA Status";
        LOCKDOWN = 1 << 10, "Command and Feature Lockdown";
    }
}

bit_set! {
    /// LPA, Log Page Attributes.
    pub struct Lpa(u8) {
        SMART_PER_NAMESPACE = 1 << 0, "SMART / Health Information per namespace";
        COMMANDS_SUPPORTED = 1 << 1, "Commands Supported and Effects log page";
        EXTENDED_DATA = 1 << 2, "Extended data for Get Log Page: 32-bit dword count and an offset";
        TELEMETRY = 1 << 3, "Telemetry log pages";
        PERSISTENT_EVENT = 1 << 4, "Persistent Event log page";
        SUPPORTED_PAGES = 1 << 5, "Log pages 00h, 12h and 13h, and scope in log page 05h";
        TELEMETRY_AREA_4 = 1 << 6, "Telemetry Data Area 4";
    }
}

bit_set! {
    /// ANACAP, Asymmetric Namespace Access Capabilities.
    pub struct AnaCapabilities(u8) {
        OPTIMIZED = 1 << 0, "Reports ANA Optimized state";
        NON_OPTIMIZED = 1 << 1, "Reports ANA Non-Optimized state";
        INACCESSIBLE = 1 << 2, "Reports ANA Inaccessible state";
        PERSISTENT_LOSS = 1 << 3, "Reports ANA Persistent Loss state";
        CHANGE = 1 << 4, "Reports ANA Change state";
        GROUP_ID_FIXED = 1 << 6, "A namespace's ANAGRPID does not change while it is attached";
        GROUP_ID_MANAGEABLE = 1 << 7, "Namespace Management takes a non-zero ANAGRPID";
    }
}

bit_set! {
    /// ONCS, Optional NVM Command Support.
    pub struct Oncs(U16 as u16) {
        COMPARE = 1 << 0, "Compare";
        WRITE_UNCORRECTABLE = 1 << 1, "Write Uncorrectable";
        DATASET_MANAGEMENT = 1 << 2, "Dataset Management";
        WRITE_ZEROES = 1 << 3, "Write Zeroes";
        SAVE_FEATURES = 1 << 4, "Save field of Set Features and Select field of Get Features";
        RESERVATIONS = 1 << 5, "Reservations";
        TIMESTAMP = 1 << 6, "Timestamp feature";
        VERIFY = 1 << 7, "Verify";
        COPY = 1 << 8, "Copy";
    }
}

bit_set! {
    /// FUSES, Fused Operation Support.
    pub struct Fuses(U16 as u16) {
        COMPARE_AND_WRITE = 1 << 0, "Compare and Write fused operation";
    }
}

bit_set! {
    /// VWC, Volatile Write Cache.
    pub struct Vwc(u8) {
        PRESENT = 1 << 0, "A volatile write cache is present";
        FLUSH_ALL_REFUSED = 0b10 << 1, "Flush with NSID FFFFFFFFh is not supported";
        FLUSH_ALL = 0b11 << 1, "Flush with NSID FFFFFFFFh is supported";
    }
}

bit_set! {
    /// SGLS, SGL Support. Base 2.0c §5.17.2.1.
    pub struct Sgls(U32 as u32) {
        SUPPORTED = 0b01, "SGLs are supported without alignment or granularity requirement";
        SUPPORTED_DWORD = 0b10, "SGLs are supported, data blocks dword aligned and in multiples of a dword";
        KEYED = 1 << 2, "Keyed SGL Data Block descriptor";
        BIT_BUCKET = 1 << 16, "SGL Bit Bucket descriptor";
        METADATA_BYTE_ALIGNED = 1 << 17, "Byte aligned contiguous metadata buffer";
        LONGER_THAN_DATA = 1 << 18, "SGL longer than the data to transfer";
        METADATA_SGL = 1 << 19, "MPTR may hold an SGL descriptor's address";
        OFFSET = 1 << 20, "Address field as an offset";
        TRANSPORT_DATA_BLOCK = 1 << 21, "Transport SGL Data Block descriptor";
    }
}

bit_set! {
    /// FCATT, Fabrics Controller Attributes.
    pub struct Fcatt(u8) {
        STATIC_MODEL = 1 << 0, "The NVM subsystem uses the static controller model, not the dynamic one";
    }
}

bit_set! {
    /// OFCS, Optional Fabrics Commands Support.
    pub struct Ofcs(U16 as u16) {
        DISCONNECT = 1 << 0, "Disconnect, and deletion of individual I/O queues";
    }
}

/// The NVM command set's Identify Controller data structure (CNS 06h, CSI 00h). NVM Command Set §4.1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// Verify Size Limit: 2 to the power of VSL minimum pages; 0 for no limit.
    pub vsl: u8,
    /// Write Zeroes Size Limit: 2 to the power of WZSL minimum pages; 0 for no limit.
    pub wzsl: u8,
    /// Write Uncorrectable Size Limit: 2 to the power of WUSL minimum pages; 0 for no limit.
    pub wusl: u8,
    /// Dataset Management Ranges Limit; 0 for no limit.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit, in logical blocks; 0 for no limit.
    pub dmrsl: U32,
    /// Dataset Management Size Limit, in logical blocks of one command; 0 for no limit.
    pub dmsl: U64,
    _rsvd16: [u8; 4080],
}

assert_layout!(IdentifyControllerNvm, IDENTIFY_SIZE, vsl: 0, wzsl: 1, wusl: 2, dmrl: 3, dmrsl: 4, dmsl: 8);
