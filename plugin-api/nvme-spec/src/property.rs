//! Controller properties: offsets and typed access to their fields.
//!
//! Over fabrics they are read and written by Property Get and Property Set,
//! on memory-based transports they are registers at the same offsets.

use core::fmt;

use zerocopy::little_endian::{U32, U64};

open_enum! {
    /// Offset of a controller property. Base 2.0c §3.1.3.
    pub struct PropertyOffset(U32 as u32) {
        CAP = 0x00, "Controller Capabilities";
        VS = 0x08, "Version";
        INTMS = 0x0c, "Interrupt Mask Set";
        INTMC = 0x10, "Interrupt Mask Clear";
        CC = 0x14, "Controller Configuration";
        CSTS = 0x1c, "Controller Status";
        NSSR = 0x20, "NVM Subsystem Reset";
        AQA = 0x24, "Admin Queue Attributes";
        ASQ = 0x28, "Admin Submission Queue Base Address";
        ACQ = 0x30, "Admin Completion Queue Base Address";
        CMBLOC = 0x38, "Controller Memory Buffer Location";
        CMBSZ = 0x3c, "Controller Memory Buffer Size";
        BPINFO = 0x40, "Boot Partition Information";
        BPRSEL = 0x44, "Boot Partition Read Select";
        BPMBL = 0x48, "Boot Partition Memory Buffer Location";
        CMBMSC = 0x50, "Controller Memory Buffer Memory Space Control";
        CMBSTS = 0x58, "Controller Memory Buffer Status";
        CMBEBS = 0x5c, "Controller Memory Buffer Elasticity Buffer Size";
        CMBSWTP = 0x60, "Controller Memory Buffer Sustained Write Throughput";
        NSSD = 0x64, "NVM Subsystem Shutdown";
        CRTO = 0x68, "Controller Ready Timeouts";
        PMRCAP = 0xe00, "Persistent Memory Region Capabilities";
        PMRCTL = 0xe04, "Persistent Memory Region Control";
        PMRSTS = 0xe08, "Persistent Memory Region Status";
        PMREBS = 0xe0c, "Persistent Memory Region Elasticity Buffer Size";
        PMRSWTP = 0xe10, "Persistent Memory Region Sustained Write Throughput";
        PMRMSCL = 0xe14, "Persistent Memory Region Memory Space Control Lower";
        PMRMSCU = 0xe18, "Persistent Memory Region Memory Space Control Upper";
    }
}

impl PropertyOffset {
    /// Size of the property in bytes, `None` if this crate does not know it.
    #[must_use]
    pub const fn size(self) -> Option<u32> {
        match self {
            Self::CAP | Self::ASQ | Self::ACQ | Self::BPMBL | Self::CMBMSC => Some(8),
            known if known.is_known() => Some(4),
            _ => None,
        }
    }
}

/// What to write to NSSR for an NVM subsystem reset: "NVMe" in ASCII. Base 2.0c §3.1.3.
pub const NSSR_RESET: u32 = 0x4e56_4d65;

/// What to write to NSSD for a normal NVM subsystem shutdown: "Nrml" in ASCII. Base 2.0c §3.1.3.
pub const NSSD_NORMAL: u32 = 0x4e72_6d6c;

/// What to write to NSSD for an abrupt NVM subsystem shutdown: "Abpt" in ASCII. Base 2.0c §3.1.3.
pub const NSSD_ABRUPT: u32 = 0x4162_7074;

bit_set! {
    /// CAP, Controller Capabilities. Base 2.0c §3.1.3.1.
    pub struct Capabilities(U64 as u64) {
        CQR = 1 << 16, "Contiguous Queues Required; over fabrics always set";
        AMS_WEIGHTED_ROUND_ROBIN = 1 << 17, "Arbitration: weighted round robin with urgent priority class";
        AMS_VENDOR = 1 << 18, "Arbitration: vendor specific";
        NSSRS = 1 << 36, "NVM Subsystem Reset Supported";
        CSS_NVM = 1 << 37, "Command sets: NVM Command Set";
        CSS_IO_COMMAND_SETS = 1 << 43, "Command sets: one or more I/O command sets, told by Identify CNS 1Ch";
        CSS_ADMIN_ONLY = 1 << 44, "Command sets: no I/O command set";
        BPS = 1 << 45, "Boot Partition Support";
        PMRS = 1 << 56, "Persistent Memory Region Supported";
        CMBS = 1 << 57, "Controller Memory Buffer Supported";
        NSSS = 1 << 58, "NVM Subsystem Shutdown Supported";
        CRMS_WITH_MEDIA = 1 << 59, "Controller Ready With Media Supported";
        CRMS_INDEPENDENT_OF_MEDIA = 1 << 60, "Controller Ready Independent of Media Supported";
    }
}

impl Capabilities {
    /// Maximum Queue Entries Supported, 0's based: the largest I/O queue less one.
    #[must_use]
    pub const fn mqes_z(self) -> u16 {
        self.field(0, 16) as u16
    }

    /// Largest I/O queue in entries.
    #[must_use]
    pub const fn max_queue_entries(self) -> u32 {
        self.mqes_z() as u32 + 1
    }

    /// Timeout (TO): the longest a change of CSTS.RDY takes, in units of 500 ms.
    #[must_use]
    pub const fn to_500ms(self) -> u8 {
        self.field(24, 8) as u8
    }

    /// Timeout (TO) in milliseconds.
    #[must_use]
    pub const fn ready_timeout_ms(self) -> u32 {
        self.to_500ms() as u32 * 500
    }

    /// Doorbell Stride: the stride is 4 << DSTRD bytes; 0 over fabrics.
    #[must_use]
    pub const fn dstrd(self) -> u8 {
        self.field(32, 4) as u8
    }

    /// Controller Power Scope.
    #[must_use]
    pub const fn cps(self) -> u8 {
        self.field(46, 2) as u8
    }

    /// Memory Page Size Minimum: 2 to the power of 12 + MPSMIN bytes.
    #[must_use]
    pub const fn mpsmin(self) -> u8 {
        self.field(48, 4) as u8
    }

    /// Memory Page Size Maximum: 2 to the power of 12 + MPSMAX bytes.
    #[must_use]
    pub const fn mpsmax(self) -> u8 {
        self.field(52, 4) as u8
    }

    /// These capabilities with MQES, 0's based.
    #[must_use]
    pub const fn with_mqes_z(self, mqes_z: u16) -> Self {
        self.with_field(0, 16, mqes_z as u64)
    }

    /// These capabilities with a timeout in units of 500 ms.
    #[must_use]
    pub const fn with_to_500ms(self, to: u8) -> Self {
        self.with_field(24, 8, to as u64)
    }

    /// These capabilities with a doorbell stride of 4 << `dstrd` bytes.
    #[must_use]
    pub const fn with_dstrd(self, dstrd: u8) -> Self {
        self.with_field(32, 4, dstrd as u64)
    }

    /// These capabilities with page sizes from 2 to the power of 12 + `mpsmin` to 12 + `mpsmax`.
    #[must_use]
    pub const fn with_page_sizes(self, mpsmin: u8, mpsmax: u8) -> Self {
        self.with_field(48, 4, mpsmin as u64).with_field(52, 4, mpsmax as u64)
    }
}

/// VS, Version: major, minor, tertiary. Also VER of Identify Controller. Base 2.0c §3.1.3.2.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    zerocopy::FromBytes,
    zerocopy::Immutable,
    zerocopy::IntoBytes,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(transparent)]
pub struct Version(pub U32);

impl Version {
    /// NVMe 1.3.
    pub const V1_3: Self = Self::new(1, 3, 0);
    /// NVMe 1.4.
    pub const V1_4: Self = Self::new(1, 4, 0);
    /// NVMe 2.0.
    pub const V2_0: Self = Self::new(2, 0, 0);
    /// NVMe 2.1.
    pub const V2_1: Self = Self::new(2, 1, 0);

    /// A version by its three numbers.
    #[must_use]
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self(U32::new((major as u32) << 16 | (minor as u32) << 8 | tertiary as u32))
    }

    /// Major version.
    #[must_use]
    pub const fn major(self) -> u16 {
        (self.0.get() >> 16) as u16
    }

    /// Minor version.
    #[must_use]
    pub const fn minor(self) -> u8 {
        (self.0.get() >> 8 & 0xff) as u8
    }

    /// Tertiary version.
    #[must_use]
    pub const fn tertiary(self) -> u8 {
        (self.0.get() & 0xff) as u8
    }

    /// Whether this version is `other` or later.
    #[must_use]
    pub const fn is_at_least(self, other: Self) -> bool {
        self.0.get() >= other.0.get()
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())?;
        match self.tertiary() {
            0 => Ok(()),
            tertiary => write!(f, ".{tertiary}"),
        }
    }
}

bit_set! {
    /// CC, Controller Configuration. Base 2.0c §3.1.3.5.
    pub struct ControllerConfiguration(U32 as u32) {
        EN = 1 << 0, "Enable";
        CRIME = 1 << 24, "Controller Ready Independent of Media Enable";
    }
}

impl ControllerConfiguration {
    /// I/O Command Set Selected.
    #[must_use]
    pub const fn css(self) -> CommandSetSelected {
        CommandSetSelected(self.field(4, 3) as u8)
    }

    /// Memory Page Size: 2 to the power of 12 + MPS bytes.
    #[must_use]
    pub const fn mps(self) -> u8 {
        self.field(7, 4) as u8
    }

    /// Arbitration Mechanism Selected: 0 for round robin.
    #[must_use]
    pub const fn ams(self) -> u8 {
        self.field(11, 3) as u8
    }

    /// Shutdown Notification.
    #[must_use]
    pub const fn shn(self) -> ShutdownNotification {
        ShutdownNotification(self.field(14, 2) as u8)
    }

    /// I/O Submission Queue Entry Size: 2 to the power of IOSQES bytes.
    #[must_use]
    pub const fn iosqes(self) -> u8 {
        self.field(16, 4) as u8
    }

    /// I/O Completion Queue Entry Size: 2 to the power of IOCQES bytes.
    #[must_use]
    pub const fn iocqes(self) -> u8 {
        self.field(20, 4) as u8
    }

    /// This configuration with a command set selection.
    #[must_use]
    pub const fn with_css(self, css: CommandSetSelected) -> Self {
        self.with_field(4, 3, css.0 as u32)
    }

    /// This configuration with a page size of 2 to the power of 12 + `mps` bytes.
    #[must_use]
    pub const fn with_mps(self, mps: u8) -> Self {
        self.with_field(7, 4, mps as u32)
    }

    /// This configuration with a shutdown notification.
    #[must_use]
    pub const fn with_shn(self, shn: ShutdownNotification) -> Self {
        self.with_field(14, 2, shn.0 as u32)
    }

    /// This configuration with I/O queue entry sizes as powers of two.
    #[must_use]
    pub const fn with_entry_sizes(self, iosqes: u8, iocqes: u8) -> Self {
        self.with_field(16, 4, iosqes as u32).with_field(20, 4, iocqes as u32)
    }
}

open_enum! {
    /// CC.CSS, I/O Command Set Selected. Base 2.0c §3.1.3.5.
    pub struct CommandSetSelected(u8) {
        NVM = 0b000, "NVM Command Set";
        ALL_SUPPORTED = 0b110, "All supported I/O command sets";
        ADMIN_ONLY = 0b111, "Admin Command Set only";
    }
}

open_enum! {
    /// CC.SHN, Shutdown Notification. Base 2.0c §3.1.3.5.
    pub struct ShutdownNotification(u8) {
        NONE = 0b00, "No notification";
        NORMAL = 0b01, "Normal shutdown notification";
        ABRUPT = 0b10, "Abrupt shutdown notification";
    }
}

bit_set! {
    /// CSTS, Controller Status. Base 2.0c §3.1.3.6.
    pub struct ControllerStatus(U32 as u32) {
        RDY = 1 << 0, "Ready";
        CFS = 1 << 1, "Controller Fatal Status";
        NSSRO = 1 << 4, "NVM Subsystem Reset Occurred";
        PP = 1 << 5, "Processing Paused";
        ST = 1 << 6, "Shutdown Type: the shutdown is the NVM subsystem's";
    }
}

impl ControllerStatus {
    /// Shutdown Status.
    #[must_use]
    pub const fn shst(self) -> ShutdownStatus {
        ShutdownStatus(self.field(2, 2) as u8)
    }

    /// This status with a shutdown status.
    #[must_use]
    pub const fn with_shst(self, shst: ShutdownStatus) -> Self {
        self.with_field(2, 2, shst.0 as u32)
    }
}

open_enum! {
    /// CSTS.SHST, Shutdown Status. Base 2.0c §3.1.3.6.
    pub struct ShutdownStatus(u8) {
        NORMAL_OPERATION = 0b00, "Normal operation";
        OCCURRING = 0b01, "Shutdown processing occurring";
        COMPLETE = 0b10, "Shutdown processing complete";
    }
}

bit_set! {
    /// AQA, Admin Queue Attributes; memory-based transports only. Base 2.0c §3.1.3.8.
    pub struct AdminQueueAttributes(U32 as u32) {}
}

impl AdminQueueAttributes {
    /// The attributes of admin queues of these sizes, 0's based, twelve bits each.
    #[must_use]
    pub const fn from_sizes(asqs_z: u16, acqs_z: u16) -> Self {
        Self::EMPTY.with_field(0, 12, asqs_z as u32).with_field(16, 12, acqs_z as u32)
    }

    /// Admin Submission Queue Size, 0's based.
    #[must_use]
    pub const fn asqs_z(self) -> u16 {
        self.field(0, 12) as u16
    }

    /// Admin Completion Queue Size, 0's based.
    #[must_use]
    pub const fn acqs_z(self) -> u16 {
        self.field(16, 12) as u16
    }
}

bit_set! {
    /// CRTO, Controller Ready Timeouts, both in units of 500 ms. Base 2.0c §3.1.3.
    pub struct ReadyTimeouts(U32 as u32) {}
}

impl ReadyTimeouts {
    /// The timeouts, in units of 500 ms.
    #[must_use]
    pub const fn from_500ms(with_media: u16, independent_of_media: u16) -> Self {
        Self::EMPTY.with_field(0, 16, with_media as u32).with_field(16, 16, independent_of_media as u32)
    }

    /// Controller Ready With Media Timeout, in units of 500 ms.
    #[must_use]
    pub const fn crwmt_500ms(self) -> u16 {
        self.field(0, 16) as u16
    }

    /// Controller Ready Independent of Media Timeout, in units of 500 ms.
    #[must_use]
    pub const fn crimt_500ms(self) -> u16 {
        self.field(16, 16) as u16
    }
}

bit_set! {
    /// CMBSZ, Controller Memory Buffer Size; memory-based transports only. Base 2.0c §3.1.3.
    pub struct MemoryBufferSize(U32 as u32) {
        SQS = 1 << 0, "Submission Queue Support";
        CQS = 1 << 1, "Completion Queue Support";
        LISTS = 1 << 2, "PRP and SGL List Support";
        RDS = 1 << 3, "Read Data Support";
        WDS = 1 << 4, "Write Data Support";
    }
}

impl MemoryBufferSize {
    /// Size in bytes; `None` if the size unit is reserved.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        match self.field(8, 4) {
            units @ 0..=6 => Some((self.field(12, 20) as u64) << (12 + 4 * units)),
            _ => None,
        }
    }
}

bit_set! {
    /// CMBLOC, Controller Memory Buffer Location; memory-based transports only. Base 2.0c §3.1.3.
    pub struct MemoryBufferLocation(U32 as u32) {}
}

impl MemoryBufferLocation {
    /// Base Indicator Register: which PCI base address register.
    #[must_use]
    pub const fn bir(self) -> u8 {
        self.field(0, 3) as u8
    }

    /// Offset, in units of CMBSZ's size unit.
    #[must_use]
    pub const fn offset(self) -> u32 {
        self.field(12, 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_fields_sit_where_hosts_look() {
        let cap = Capabilities::CQR
            .with(Capabilities::CSS_NVM)
            .with_mqes_z(127)
            .with_to_500ms(30)
            .with_page_sizes(0, 4);
        assert_eq!(cap.get(), 127 | 1 << 16 | 30 << 24 | 1 << 37 | 4 << 52);
        assert_eq!((cap.max_queue_entries(), cap.ready_timeout_ms(), cap.mpsmax()), (128, 15_000, 4));
        assert_eq!(cap.with_mqes_z(1).mqes_z(), 1);
    }

    #[test]
    fn configuration_as_linux_writes_it_reads_back() {
        let cc = ControllerConfiguration::new(0x0046_0001);
        assert!(cc.contains(ControllerConfiguration::EN));
        assert_eq!((cc.iosqes(), cc.iocqes(), cc.css()), (6, 4, CommandSetSelected::NVM));
        assert_eq!(cc.with_shn(ShutdownNotification::NORMAL).get(), 0x0046_4001);
    }

    #[test]
    fn versions_order_and_print() {
        assert!(Version::V2_0.is_at_least(Version::V1_4));
        assert_eq!(Version::V1_4.0.get(), 0x0001_0400);
        assert_eq!(std::format!("{} {}", Version::V2_0, Version::new(1, 2, 1)), "2.0 1.2.1");
    }

    #[test]
    fn property_sizes_are_those_of_the_attribute_field() {
        assert_eq!(PropertyOffset::CAP.size(), Some(8));
        assert_eq!(PropertyOffset::CC.size(), Some(4));
        assert_eq!(PropertyOffset::new(0x1000).size(), None);
    }

    #[test]
    fn memory_buffer_size_multiplies_by_its_unit() {
        assert_eq!(MemoryBufferSize::new(2 << 12 | 2 << 8).bytes(), Some(2 << 20));
        assert_eq!(MemoryBufferSize::new(7 << 8).bytes(), None);
    }
}
