//! What a module tells the host about a block device, and the device's
//! lifecycle callbacks. The data path is in `io.rs`.

use core::ffi::c_void;

use crate::{BdevHandle, IoChannel, JsonSink, OpToken, Str};

/// Properties of a device.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BdevFlags(pub u32);

impl BdevFlags {
    /// Writes are refused.
    pub const READ_ONLY: BdevFlags = BdevFlags(1);
    /// Completed writes may be lost without a FLUSH.
    pub const VOLATILE_WRITE_CACHE: BdevFlags = BdevFlags(1 << 1);
    /// The host splits READ and WRITE at multiples of `optimal_io_boundary`.
    pub const SPLIT_ON_BOUNDARY: BdevFlags = BdevFlags(1 << 2);
    /// The host splits WRITE at multiples of `write_unit` and refuses partial units.
    pub const SPLIT_ON_WRITE_UNIT: BdevFlags = BdevFlags(1 << 3);
    /// Deallocated blocks read as zeroes.
    pub const UNMAP_READS_ZEROES: BdevFlags = BdevFlags(1 << 4);
    /// Metadata is interleaved with the data of each block.
    pub const METADATA_INTERLEAVED: BdevFlags = BdevFlags(1 << 5);
    /// The medium rotates.
    pub const ROTATIONAL: BdevFlags = BdevFlags(1 << 6);
    /// A zoned device.
    pub const ZONED: BdevFlags = BdevFlags(1 << 7);

    /// True if every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: BdevFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of flags.
    #[must_use]
    pub const fn union(self, other: BdevFlags) -> BdevFlags {
        BdevFlags(self.0 | other.0)
    }
}

/// Geometry and limits; the host's gate keeps every I/O within them by refusing or splitting.
/// A limit of 0 means "none". Blocks are of `block_size` bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct Limits {
    /// Capacity.
    pub num_blocks: u64,
    /// Logical block: a power of two, 512 to 65,536 bytes (metadata not included).
    pub block_size: u32,
    /// Physical block in bytes; a multiple of `block_size`.
    pub physical_block_size: u32,
    /// Metadata per block in bytes.
    pub md_size: u32,
    /// Alignment every piece of a payload must have, in bytes, a power of two; the host bounces other payloads.
    pub required_alignment: u32,
    /// Blocks; see [`BdevFlags::SPLIT_ON_BOUNDARY`].
    pub optimal_io_boundary: u32,
    /// Blocks; see [`BdevFlags::SPLIT_ON_WRITE_UNIT`].
    pub write_unit: u32,
    /// Largest READ or WRITE in blocks.
    pub max_transfer_blocks: u32,
    /// Most pieces in a payload.
    pub max_segments: u32,
    /// Largest piece in bytes.
    pub max_segment_bytes: u32,
    /// Largest UNMAP in blocks.
    pub max_unmap_blocks: u32,
    /// Largest WRITE_ZEROES in blocks.
    pub max_write_zeroes_blocks: u32,
    /// Largest COPY in blocks.
    pub max_copy_blocks: u32,
    /// Blocks written atomically on power loss.
    pub atomic_write_blocks: u32,
    /// Blocks handled atomically by COMPARE_AND_WRITE.
    pub atomic_compare_write_blocks: u32,
    /// Preferred write granularity in blocks (NVMe NPWG).
    pub preferred_write_granularity: u32,
    /// Preferred write alignment in blocks (NVMe NPWA).
    pub preferred_write_alignment: u32,
    /// Preferred UNMAP granularity in blocks (NVMe NPDG).
    pub preferred_unmap_granularity: u32,
    /// Preferred UNMAP alignment in blocks (NVMe NPDA).
    pub preferred_unmap_alignment: u32,
    /// Optimal write size in blocks (NVMe NOWS).
    pub optimal_write_size: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

impl Limits {
    /// A device of `num_blocks` blocks of `block_size` bytes that needs no splitting and no alignment.
    #[must_use]
    pub const fn new(block_size: u32, num_blocks: u64) -> Self {
        Limits {
            num_blocks,
            block_size,
            physical_block_size: block_size,
            md_size: 0,
            required_alignment: 1,
            optimal_io_boundary: 0,
            write_unit: 0,
            max_transfer_blocks: 0,
            max_segments: 0,
            max_segment_bytes: 0,
            max_unmap_blocks: 0,
            max_write_zeroes_blocks: 0,
            max_copy_blocks: 0,
            atomic_write_blocks: 0,
            atomic_compare_write_blocks: 0,
            preferred_write_granularity: 0,
            preferred_write_alignment: 0,
            preferred_unmap_granularity: 0,
            preferred_unmap_alignment: 0,
            optimal_write_size: 0,
            reserved: 0,
        }
    }
}

/// Registration of a device; the host copies it during [`crate::HostApiV1::bdev_register`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BdevV1 {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// Properties.
    pub flags: BdevFlags,
    /// Geometry and limits.
    pub limits: Limits,
    /// One [`crate::Op::bit`] per operation this build of the module handles; the host never sends another.
    pub io_types: u64,
    /// The [`crate::IoFlags`] this build understands; the host never sends another.
    pub io_flags: u64,
    /// Identity; all zero: the host makes one (stable for the same name only if derived by the module).
    pub uuid: [u8; 16],
    /// NVMe Namespace Globally Unique Identifier, or zero.
    pub nguid: [u8; 16],
    /// IEEE EUI-64, or zero.
    pub eui64: [u8; 8],
    /// NUMA node, or -1.
    pub numa_node: i32,
    /// Number of `aliases`.
    pub alias_count: u32,
    /// Unique name: 1–255 bytes, no control characters, no `/`.
    pub name: Str,
    /// What kind of device, e.g. `Malloc disk`.
    pub product: Str,
    /// Further unique names, or null.
    pub aliases: *const Str,
    /// First argument of every callback in `ops`; must stay valid until the destruct token is answered.
    pub ctx: *mut c_void,
    /// Callbacks; must stay valid for the life of the plugin.
    pub ops: *const BdevOpsV1,
}

/// Lifecycle callbacks of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BdevOpsV1 {
    /// Bytes of this table the writer knows.
    pub size: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// Opens the device on the calling reactor: sets `ch.ops`, `ch.ctx` and `ch.io_ctx_size` (0 if it keeps no
    /// per-I/O state). Returns 0 or `-errno`; on failure nothing is kept. May open channels of base devices.
    pub channel_create: unsafe extern "C" fn(ctx: *mut c_void, ch: *mut IoChannel) -> i32,
    /// Closes it, on the same reactor, when `ch.outstanding == 0`.
    pub channel_destroy: unsafe extern "C" fn(ctx: *mut c_void, ch: *mut IoChannel),
    /// Control thread, once, after every descriptor and channel is closed. The module frees what it holds
    /// (closes its base devices) and answers `token` now or later; then the host forgets the device.
    pub destruct: unsafe extern "C" fn(ctx: *mut c_void, token: OpToken),
    /// Control thread: writes one JSON object for `driver_specific` in `bdev_get_bdevs`. Optional.
    pub dump_json: Option<unsafe extern "C" fn(ctx: *mut c_void, sink: *const JsonSink)>,
    /// Control thread: writes the device's current parameters as one JSON object, such that creating a device
    /// from it gives the same device. Absent, or writing nothing: the host saves the parameters of the create
    /// call. Optional.
    pub config_json: Option<unsafe extern "C" fn(ctx: *mut c_void, sink: *const JsonSink)>,
    /// Control thread: the host reset this device's statistics; the module may reset its own. Optional.
    pub reset_stats: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
    /// Control thread: writes one JSON object for `driver_specific` in `bdev_get_iostat`, of what the module
    /// itself counts and `reset_stats` resets. Absent, or writing nothing: it counts nothing. Optional.
    pub stats_json: Option<unsafe extern "C" fn(ctx: *mut c_void, sink: *const JsonSink)>,
    /// Control thread, just before `destruct`: the create that registered this device has failed after all, e.g.
    /// because its examination did not end in time. What it wrote, which would bring the device back, is to go with
    /// the device. Absent: it wrote nothing. Optional.
    pub rolled_back: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
}

/// What a consumer may know about a device; filled by [`crate::HostApiV1::bdev_info`].
/// Texts stay valid until the next call into the host from the same thread.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BdevInfo {
    /// Bytes of this struct; set by the caller, lowered by the host to what it filled.
    pub size: u32,
    /// Properties.
    pub flags: BdevFlags,
    /// The device.
    pub bdev: BdevHandle,
    /// Geometry and limits now.
    pub limits: Limits,
    /// Operations.
    pub io_types: u64,
    /// I/O flags.
    pub io_flags: u64,
    /// Identity.
    pub uuid: [u8; 16],
    /// NVMe Namespace Globally Unique Identifier, or zero.
    pub nguid: [u8; 16],
    /// IEEE EUI-64, or zero.
    pub eui64: [u8; 8],
    /// NUMA node, or -1.
    pub numa_node: i32,
    /// Lifecycle state.
    pub state: BdevState,
    /// Unique name.
    pub name: Str,
    /// What kind of device.
    pub product: Str,
    /// Module that registered it.
    pub module: Str,
}

/// Lifecycle state of a device.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BdevState(pub u32);

impl BdevState {
    /// Being registered.
    pub const REGISTERING: BdevState = BdevState(0);
    /// Offered to the modules.
    pub const EXAMINING: BdevState = BdevState(1);
    /// In service.
    pub const READY: BdevState = BdevState(2);
    /// Backing gone, identity kept.
    pub const ABSENT: BdevState = BdevState(3);
    /// New I/O bounces; openers have been told.
    pub const ORPHANED: BdevState = BdevState(4);
    /// Nobody holds it; the module is destructing it.
    pub const DRAINING: BdevState = BdevState(5);
    /// Gone.
    pub const DESTROYED: BdevState = BdevState(6);
}

/// Kind of a claim; a claim belongs to a descriptor and ends with it.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ClaimKind(pub u32);

impl ClaimKind {
    /// One module owns the device; others may only read.
    pub const EXCL_WRITE: ClaimKind = ClaimKind(1);
    /// Many readers, the claiming descriptor writes.
    pub const READ_MANY_WRITE_ONE: ClaimKind = ClaimKind(2);
    /// Nobody writes.
    pub const READ_MANY_WRITE_NONE: ClaimKind = ClaimKind(3);
    /// Many writers that present the same key.
    pub const READ_MANY_WRITE_SHARED: ClaimKind = ClaimKind(4);
}

/// How a descriptor is opened.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct OpenFlags(pub u32);

impl OpenFlags {
    /// Read only.
    pub const READ: OpenFlags = OpenFlags(0);
    /// Read and write; `-EPERM` if a claim forbids it.
    pub const WRITE: OpenFlags = OpenFlags(1);
}
