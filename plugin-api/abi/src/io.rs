//! The data path: one block-device I/O, the channel it travels on, and the two
//! inline steps every layer executes. A child I/O lives in its parent's driver
//! context, directly behind the parent, so a stack of devices allocates nothing.
//!
//! Everything here belongs to one reactor thread; nothing is atomic.
// UNSAFETY: `submit` and `complete` follow the raw pointers of the data path.

use core::ffi::c_void;

use crate::{HostReactor, IoVec, errno};

/// Operation of an I/O.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct Op(pub u8);

impl Op {
    /// Read `num_blocks` into `iovs` (or lend memory, see [`IoFlags::LEND`]).
    pub const READ: Op = Op(0);
    /// Write `num_blocks` from `iovs`.
    pub const WRITE: Op = Op(1);
    /// Make every completed write durable.
    pub const FLUSH: Op = Op(2);
    /// Deallocate blocks; later reads give zeroes or old data as the device declares.
    pub const UNMAP: Op = Op(3);
    /// Write zeroes without a payload.
    pub const WRITE_ZEROES: Op = Op(4);
    /// Reset the device. The host freezes and drains the device first.
    pub const RESET: Op = Op(5);
    /// Compare the medium with `iovs`; a difference is [`IoStatus::MISCOMPARE`].
    pub const COMPARE: Op = Op(6);
    /// Atomically compare with `ext.compare_iovs`, then write `iovs`.
    pub const COMPARE_AND_WRITE: Op = Op(7);
    /// Copy `ext.copy_ranges` to `offset_blocks`.
    pub const COPY: Op = Op(8);
    /// Check that blocks can be read, without transferring them.
    pub const VERIFY: Op = Op(9);
    /// Mark blocks so that reading them fails until they are written again.
    pub const WRITE_UNCORRECTABLE: Op = Op(10);
    /// NVMe admin command in `ext.nvme_sqe`, data in `iovs`.
    pub const NVME_ADMIN: Op = Op(11);
    /// NVMe I/O command in `ext.nvme_sqe`, data in `iovs`.
    pub const NVME_IO: Op = Op(12);
    /// Report zones into `iovs`.
    pub const GET_ZONE_INFO: Op = Op(13);
    /// Zone action in `ext`.
    pub const ZONE_MANAGEMENT: Op = Op(14);
    /// Append to the zone that starts at `offset_blocks`.
    pub const ZONE_APPEND: Op = Op(15);
    /// Find the next unallocated block from `offset_blocks`; the answer replaces `offset_blocks`.
    pub const SEEK_HOLE: Op = Op(16);
    /// Find the next allocated block from `offset_blocks`; the answer replaces `offset_blocks`.
    pub const SEEK_DATA: Op = Op(17);
    /// Number of operations this minor version knows.
    pub const COUNT: u8 = 18;

    /// The bit of this operation in [`crate::BdevV1::io_types`]; 0 for an operation that cannot have one.
    #[must_use]
    pub const fn bit(self) -> u64 {
        if self.0 < 64 { 1 << self.0 } else { 0 }
    }
}

/// Flags of an I/O; a device states in [`crate::BdevV1::io_flags`] which it understands.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct IoFlags(pub u16);

impl IoFlags {
    /// No flag.
    pub const NONE: IoFlags = IoFlags(0);
    /// Force unit access: durable before completion.
    pub const FUA: IoFlags = IoFlags(1);
    /// READ: the consumer accepts lent memory. `iovs` may then be null with `iovcnt == 0`.
    pub const LEND: IoFlags = IoFlags(1 << 1);
    /// READ, set by the module before completion: `iovs` describes the module's own memory. The I/O stays
    /// outstanding until the consumer returns it through [`IoOpsV1::release`] of the channel it submitted on.
    pub const LENT: IoFlags = IoFlags(1 << 2);
    /// WRITE_ZEROES: the blocks may be deallocated.
    pub const DEALLOCATE: IoFlags = IoFlags(1 << 3);
    /// Report `-ENOMEM` to the consumer instead of retrying in the host.
    pub const NO_RETRY: IoFlags = IoFlags(1 << 4);
    /// Flags the host itself consumes; a device need not declare them.
    pub const HOST: IoFlags = IoFlags(1 << 1 | 1 << 2 | 1 << 4);

    /// True if every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: IoFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Who owns an I/O now; lets a second completion be caught.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct IoState(pub u8);

impl IoState {
    /// With the consumer.
    pub const IDLE: IoState = IoState(0);
    /// With the host or the module.
    pub const SUBMITTED: IoState = IoState(1);
}

/// Result of an I/O: 0, `-errno`, or an NVMe status (`1 << 30 | dnr << 14 | sct << 8 | sc`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct IoStatus(pub i32);

impl IoStatus {
    /// Done as asked.
    pub const SUCCESS: IoStatus = IoStatus(0);
    /// Generic device error.
    pub const IO_ERROR: IoStatus = IoStatus(errno::EIO);
    /// The module lacks a resource; the host retries the I/O when others have completed.
    pub const NOMEM: IoStatus = IoStatus(errno::ENOMEM);
    /// The device is gone.
    pub const NO_DEVICE: IoStatus = IoStatus(errno::ENODEV);
    /// The operation or flag is not declared by the device.
    pub const NOT_SUPPORTED: IoStatus = IoStatus(errno::ENOTSUP);
    /// Malformed request: alignment, scatter list or field value.
    pub const INVALID: IoStatus = IoStatus(errno::EINVAL);
    /// The descriptor or device is read-only, or another module holds a claim.
    pub const NOT_PERMITTED: IoStatus = IoStatus(errno::EPERM);
    /// Deadline passed.
    pub const TIMED_OUT: IoStatus = IoStatus(errno::ETIMEDOUT);
    /// Aborted by request, reset or removal.
    pub const ABORTED: IoStatus = IoStatus(errno::ECANCELED);
    /// The range ends behind the device (NVMe: LBA Out of Range).
    pub const LBA_OUT_OF_RANGE: IoStatus = IoStatus::nvme(0, 0x80);
    /// COMPARE found a difference (NVMe: Compare Failure).
    pub const MISCOMPARE: IoStatus = IoStatus::nvme(2, 0x85);
    /// The medium cannot be read (NVMe: Unrecovered Read Error).
    pub const UNRECOVERED_READ: IoStatus = IoStatus::nvme(2, 0x81);
    /// A fault of this process, not of the device (NVMe: Internal Error).
    pub const INTERNAL: IoStatus = IoStatus::nvme(0, 0x06);

    /// An NVMe status from its status code type (0–7) and status code.
    #[must_use]
    pub const fn nvme(sct: u8, sc: u8) -> IoStatus {
        IoStatus(1 << 30 | ((sct & 7) as i32) << 8 | sc as i32)
    }

    /// Status code type and status code if this is an NVMe status.
    #[must_use]
    pub const fn as_nvme(self) -> Option<(u8, u8)> {
        if self.0 > 0 && self.0 & (1 << 30) != 0 {
            Some(((self.0 >> 8 & 7) as u8, (self.0 & 0xff) as u8))
        } else {
            None
        }
    }

    /// True for [`IoStatus::SUCCESS`].
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }
}

/// Bytes of [`BdevIo`]; the driver context follows at this offset.
pub const BDEV_IO_SIZE: usize = 128;

/// One block I/O: a hot and a cold cache line, then [`IoChannel::io_ctx_size`] bytes of driver context.
///
/// The consumer allocates it (64-byte aligned, `BDEV_IO_SIZE + io_ctx_size` bytes, zeroed once), fills the
/// request fields and owns it again when `done` runs. The driver context's content is undefined at submit.
#[repr(C, align(64))]
#[derive(Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BdevIo {
    /// Operation. Consumer sets.
    pub op: Op,
    /// Set by [`submit`] and [`complete`]; the consumer initialises it to [`IoState::IDLE`] once.
    pub state: IoState,
    /// Flags. Consumer sets; a module may add [`IoFlags::LENT`].
    pub flags: IoFlags,
    /// Pieces in `iovs`.
    pub iovcnt: u32,
    /// Payload; the list and the memory stay valid until `done`.
    pub iovs: *mut IoVec,
    /// First block.
    pub offset_blocks: u64,
    /// Number of blocks; 0 only for operations without a range.
    pub num_blocks: u64,
    /// Called exactly once, on the channel's reactor, possibly from inside [`submit`].
    pub done: Option<unsafe extern "C" fn(io: *mut BdevIo, arg: *mut c_void)>,
    /// Second argument of `done`.
    pub done_arg: *mut c_void,
    /// Channel the I/O is on now. Set by [`submit`], and by the host when it forwards.
    pub ch: *mut IoChannel,
    /// Result; valid in `done`.
    pub status: IoStatus,
    /// Command-specific result of an NVMe command; else 0.
    pub cdw0: u32,
    /// Separate metadata, or null.
    pub md: *mut c_void,
    /// Rarely used arguments, or null.
    pub ext: *const IoExtV1,
    /// For whoever holds the I/O: lets a driver queue it without allocating.
    pub link: *mut BdevIo,
    /// The host's, while the I/O is submitted: time stamp of submission in ticks.
    pub submit_ticks: u64,
    /// For whoever fills `iovs`: room for a list of one.
    pub inline_iov: IoVec,
    /// The host's, while the I/O is submitted.
    pub host: [*mut c_void; 2],
}

/// Rarely used arguments of an I/O.
#[repr(C)]
#[derive(Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct IoExtV1 {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// 64-byte NVMe submission queue entry of NVME_ADMIN and NVME_IO.
    pub nvme_sqe: *const u8,
    /// 16-byte NVMe completion queue entry, written by the module.
    pub nvme_cqe: *mut u32,
    /// Sources of COPY.
    pub copy_ranges: *const CopyRange,
    /// Number of `copy_ranges`.
    pub copy_range_count: u32,
    /// Pieces in `compare_iovs`.
    pub compare_iovcnt: u32,
    /// Data COMPARE_AND_WRITE compares with.
    pub compare_iovs: *const IoVec,
    /// Bytes at `BdevIo::md`.
    pub md_len: u64,
    /// Zone action of ZONE_MANAGEMENT (NVMe ZNS values).
    pub zone_action: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Local key of the payload's memory region, for a device that does DMA; 0 if unknown.
    pub memory_key: u64,
}

/// One source range of a COPY.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct CopyRange {
    /// First source block.
    pub offset_blocks: u64,
    /// Number of blocks.
    pub num_blocks: u64,
}

/// Operations of a channel. On the channel a consumer holds they are the host's gate; on the channel a
/// module created they are the module's. All run on the channel's reactor and must not block.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct IoOpsV1 {
    /// Bytes of this table the writer knows.
    pub size: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// Starts one I/O. The module owns `io` until it calls [`complete`] on it, exactly once, now or later.
    pub submit: unsafe extern "C" fn(ch: *mut IoChannel, io: *mut BdevIo),
    /// Starts `count` I/Os with one doorbell or system call; optional.
    pub submit_batch: Option<unsafe extern "C" fn(ch: *mut IoChannel, ios: *const *mut BdevIo, count: u32)>,
    /// Asks to finish `victim` early; it still completes exactly once, with any status. Returns 0 if the
    /// victim was found, `-ENOENT` if not (completed or never seen). Optional.
    pub abort: Option<unsafe extern "C" fn(ch: *mut IoChannel, victim: *mut BdevIo) -> i32>,
    /// Returns the memory of a READ that completed with [`IoFlags::LENT`]. Optional for a module.
    pub release: Option<unsafe extern "C" fn(ch: *mut IoChannel, io: *mut BdevIo)>,
}

/// Public head of a channel: one device on one reactor. Allocated by the host.
#[repr(C)]
#[derive(Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct IoChannel {
    /// Current operations; the host swaps them to freeze, limit, trace or orphan a device.
    pub ops: *const IoOpsV1,
    /// The module's channel context. Set by [`crate::BdevOpsV1::channel_create`].
    pub ctx: *mut c_void,
    /// I/Os submitted to this channel and not yet completed, or completed with memory still lent.
    pub outstanding: u32,
    /// Driver context an I/O on this channel needs: this layer and all below, in bytes, multiple of 64.
    pub io_ctx_size: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// Completions that arrived for an I/O that was not submitted; a module fault, counted.
    pub faults: u32,
    /// The reactor this channel belongs to.
    pub reactor: *mut HostReactor,
    /// The host's.
    pub host: *mut c_void,
    /// Called by [`complete`] instead of `done` for [`IoStatus::NOMEM`], so that the host can retry. Set by the host.
    pub retry: Option<unsafe extern "C" fn(ch: *mut IoChannel, io: *mut BdevIo)>,
    /// Reserved, 0.
    pub reserved: [u64; 1],
}

/// Gives `io` to `ch`. The inline step of every consumer and every stacked layer.
///
/// # Safety
/// Called on `ch`'s reactor; `ch` was obtained from [`crate::HostApiV1::channel_get`] and not yet put;
/// `io` is idle, filled in, and has `ch.io_ctx_size` bytes of context behind it.
#[inline(always)]
pub unsafe fn submit(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the caller owns the idle `io`, and `ch` with its table lives until it is put.
    unsafe {
        (*io).ch = ch;
        ((*(*ch).ops).submit)(ch, io);
    }
}

impl BdevIo {
    /// The first eight bytes of an idle I/O: operation, state, flags and number of pieces.
    #[inline(always)]
    #[must_use]
    pub const fn head(op: Op, flags: IoFlags, iovcnt: u32) -> u64 {
        let ([f0, f1], [n0, n1, n2, n3]) = (flags.0.to_ne_bytes(), iovcnt.to_ne_bytes());
        u64::from_ne_bytes([op.0, IoState::IDLE.0, f0, f1, n0, n1, n2, n3])
    }

    /// Sets operation, flags and number of pieces with one store, as a consumer best does: who reads them together
    /// right afterwards then need not wait until several stores have reached the cache.
    ///
    /// # Safety
    /// `io` is valid, idle and the caller's.
    #[inline(always)]
    pub unsafe fn set_head(io: *mut BdevIo, op: Op, flags: IoFlags, iovcnt: u32) {
        // SAFETY: the four fields are the first eight bytes, and an I/O is aligned to more than that.
        unsafe { io.cast::<u64>().write(Self::head(op, flags, iovcnt)) };
    }

    /// The first eight bytes, see [`BdevIo::head`].
    ///
    /// # Safety
    /// `io` is valid.
    #[inline(always)]
    #[must_use]
    pub unsafe fn get_head(io: *const BdevIo) -> u64 {
        // SAFETY: as in `set_head`.
        unsafe { io.cast::<u64>().read() }
    }
}

/// Finishes `io`. The inline step of every module, exactly once per submitted I/O.
///
/// A second call for the same submission is counted in [`IoChannel::faults`] and has no other effect, as
/// long as the consumer has not reused the I/O. An I/O that carries [`IoFlags::LENT`] stays outstanding.
///
/// # Safety
/// Called on the reactor of `io`'s channel, by the module `io` was submitted to.
#[inline(always)]
pub unsafe fn complete(io: *mut BdevIo, status: IoStatus) {
    // SAFETY: a submitted I/O and its channel stay valid until completion, which this is.
    unsafe {
        let ch = (*io).ch;
        if (*io).state.0 != IoState::SUBMITTED.0 {
            (*ch).faults += 1;
            return;
        }
        (*io).status = status;
        (*io).state = IoState::IDLE;
        if (*io).flags.0 & IoFlags::LENT.0 == 0 {
            (*ch).outstanding -= 1;
        }
        if status.0 == IoStatus::NOMEM.0
            && let Some(retry) = (*ch).retry
        {
            retry(ch, io);
            return;
        }
        if let Some(done) = (*io).done {
            done(io, (*io).done_arg);
        }
    }
}

/// The driver context behind `io`.
///
/// # Safety
/// `io` was allocated with a driver context.
#[inline(always)]
#[must_use]
pub unsafe fn io_context(io: *mut BdevIo) -> *mut c_void {
    // SAFETY: the context follows the I/O in the same allocation.
    unsafe { io.cast::<u8>().add(BDEV_IO_SIZE).cast() }
}

const _: () = assert!(size_of::<BdevIo>() == BDEV_IO_SIZE && align_of::<BdevIo>() == 64);
const _: () = assert!(core::mem::offset_of!(BdevIo, iovs) == size_of::<u64>(), "the head is one word");
const _: () = assert!(core::mem::offset_of!(BdevIo, md) == 64, "cold fields start the second line");
const _: () = assert!(size_of::<IoVec>() == 16 && size_of::<IoChannel>() == 64);

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    struct Counts {
        done: u32,
        retried: u32,
    }

    unsafe extern "C" fn submit_nothing(_: *mut IoChannel, io: *mut BdevIo) {
        // SAFETY: the test owns both.
        unsafe {
            (*io).state = IoState::SUBMITTED;
            (*(*io).ch).outstanding += 1;
        }
    }

    unsafe extern "C" fn count_done(_: *mut BdevIo, arg: *mut c_void) {
        // SAFETY: `arg` is the test's `Counts`.
        unsafe { (*arg.cast::<Counts>()).done += 1 };
    }

    unsafe extern "C" fn count_retry(ch: *mut IoChannel, _: *mut BdevIo) {
        // SAFETY: `host` is the test's `Counts`.
        unsafe { (*(*ch).host.cast::<Counts>()).retried += 1 };
    }

    #[track_caller]
    fn check(flags: IoFlags, statuses: &[IoStatus], done: u32, retried: u32, outstanding: u32, faults: u32) {
        let ops = IoOpsV1 {
            size: size_of::<IoOpsV1>() as u32,
            flags: 0,
            submit: submit_nothing,
            submit_batch: None,
            abort: None,
            release: None,
        };
        let mut counts = Counts { done: 0, retried: 0 };
        let counts = &raw mut counts;
        // SAFETY: all-zero is a valid `IoChannel` and `BdevIo` (null pointers, no callbacks).
        let (mut ch, mut io): (IoChannel, BdevIo) = unsafe { (core::mem::zeroed(), core::mem::zeroed()) };
        ch.ops = &ops;
        ch.host = counts.cast();
        ch.retry = Some(count_retry);
        io.flags = flags;
        io.done = Some(count_done);
        io.done_arg = counts.cast();
        let (ch, io) = (&raw mut ch, &raw mut io);
        // SAFETY: channel, I/O, table and counts live to the end of this function.
        unsafe {
            submit(ch, io);
            for status in statuses {
                complete(io, *status);
            }
            assert_eq!(((*counts).done, (*counts).retried), (done, retried));
            assert_eq!(((*ch).outstanding, (*ch).faults), (outstanding, faults));
        }
    }

    #[test]
    fn a_completion_runs_done_once_and_ends_the_io() {
        check(IoFlags::NONE, &[IoStatus::SUCCESS], 1, 0, 0, 0);
    }

    #[test]
    fn a_second_completion_is_counted_and_has_no_effect() {
        check(IoFlags::NONE, &[IoStatus::SUCCESS, IoStatus::IO_ERROR], 1, 0, 0, 1);
    }

    #[test]
    fn a_lent_read_stays_outstanding() {
        check(IoFlags::LENT, &[IoStatus::SUCCESS], 1, 0, 1, 0);
    }

    #[test]
    fn nomem_goes_to_the_host_instead_of_done() {
        check(IoFlags::NONE, &[IoStatus::NOMEM], 0, 1, 0, 0);
    }

    #[test]
    fn every_operation_has_its_own_bit() {
        let all = (0..Op::COUNT).fold(0, |mask, op| mask | Op(op).bit());
        assert_eq!(all.count_ones(), u32::from(Op::COUNT));
        assert_eq!(Op(200).bit(), 0);
    }

    #[test]
    fn nvme_status_survives_the_round_trip_and_errno_is_none() {
        for sct in 0..8 {
            for sc in [0, 1, 0x80, 0xff] {
                assert_eq!(IoStatus::nvme(sct, sc).as_nvme(), Some((sct, sc)));
            }
        }
        for status in [IoStatus::SUCCESS, IoStatus::IO_ERROR, IoStatus::NOMEM] {
            assert_eq!(status.as_nvme(), None);
        }
    }
}
