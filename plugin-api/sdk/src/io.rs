//! One I/O in the hands of a module: a token that is used up by completing it.
// UNSAFETY: wraps a raw I/O of the contract; everything else in the SDK that holds one does it through this type.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::{align_of, forget, needs_drop, offset_of};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use tenon_abi::{BdevIo, CopyRange, IoExtV1, IoFlags, IoStatus, IoVec, reaches};

use crate::channel::Channel;
use crate::op::BdevOp;
use crate::{OpSet, SharedBuf};

/// An I/O that was submitted to a channel `C` and must be completed exactly once: it can only be moved, and
/// completing moves it away.
///
/// ```compile_fail
/// fn twice<C: tenon_sdk::Channel>(io: tenon_sdk::Io<C>) {
///     io.complete(tenon_sdk::IoStatus::SUCCESS);
///     io.complete(tenon_sdk::IoStatus::SUCCESS);
/// }
/// ```
/// ```compile_fail
/// fn copy<C: tenon_sdk::Channel>(io: &tenon_sdk::Io<C>) -> tenon_sdk::Io<C> {
///     io.clone()
/// }
/// ```
/// ```compile_fail
/// fn to_another_thread<C: tenon_sdk::Channel + Send>(io: tenon_sdk::Io<C>) {
///     std::thread::spawn(move || io.complete(tenon_sdk::IoStatus::SUCCESS));
/// }
/// ```
/// ```compile_fail
/// #![deny(unused_must_use)]
/// fn next<C: tenon_sdk::Channel>(queue: &tenon_sdk::IoQueue<C>) -> tenon_sdk::Io<C> { queue.pop_front().unwrap() }
/// fn forgotten<C: tenon_sdk::Channel>(queue: &tenon_sdk::IoQueue<C>) {
///     next(queue);
/// }
/// ```
///
/// Dropping it without completing is a mistake: an assertion fails in debug builds, otherwise the I/O completes
/// with [`IoStatus::INTERNAL`] and [`Io::dropped`] counts it.
#[must_use = "an I/O must be completed, forwarded or queued"]
#[repr(transparent)]
pub struct Io<C: Channel> {
    raw: NonNull<BdevIo>,
    /// On one thread, and with `C`'s per-I/O state behind it.
    channel: PhantomData<*const C>,
}

/// What became of a write into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// To complete with.
    pub status: IoStatus,
    /// Whether every thread sees the bytes; if not, [`SharedBuf::settle`] comes before the completion.
    pub is_settled: bool,
}

/// I/Os of this image that were dropped instead of completed.
static DROPPED: AtomicU64 = AtomicU64::new(0);

impl<C: Channel> Io<C> {
    /// Bytes of driver context that hold `C::PerIo`; children come behind it.
    pub(crate) const AREA: usize = {
        assert!(align_of::<C::PerIo>() <= 64, "per-I/O state is aligned to 64 bytes at most");
        size_of::<C::PerIo>().next_multiple_of(64)
    };

    /// Takes over an I/O.
    ///
    /// # Safety
    /// `raw` was submitted to a channel whose context is a `C`, is not completed, has a known operation and an
    /// initialised `C::PerIo` at the start of its driver context; nobody else holds it; this is its reactor.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(raw: *mut BdevIo) -> Io<C> {
        // SAFETY: the caller promises a valid I/O.
        Io { raw: unsafe { NonNull::new_unchecked(raw) }, channel: PhantomData }
    }

    /// Gives up the token without completing.
    #[inline(always)]
    pub(crate) fn into_raw(self) -> *mut BdevIo {
        let raw = self.raw.as_ptr();
        forget(self);
        raw
    }

    #[inline(always)]
    pub(crate) fn as_raw(&self) -> *mut BdevIo {
        self.raw.as_ptr()
    }

    /// I/Os that modules of this image dropped instead of completing them.
    #[must_use]
    pub fn dropped() -> u64 {
        DROPPED.load(Ordering::Relaxed)
    }

    /// Finishes the I/O.
    #[inline(always)]
    pub fn complete(self, status: IoStatus) {
        // SAFETY: `from_raw` promises a submitted I/O of this reactor with an initialised context, and `into_raw`
        // uses the token up, so neither is touched again.
        unsafe {
            let raw = self.into_raw();
            if needs_drop::<C::PerIo>() {
                tenon_abi::io_context(raw).cast::<C::PerIo>().drop_in_place();
            }
            tenon_abi::complete(raw, status);
        }
    }

    /// What is to be done.
    #[inline(always)]
    #[must_use]
    pub fn op(&self) -> BdevOp {
        // SAFETY: `from_raw` promises a known operation, and `BdevOp` has the same numbers.
        unsafe { std::mem::transmute::<u8, BdevOp>(self.fields().op.0) }
    }

    /// First block.
    #[inline(always)]
    #[must_use]
    pub fn offset_blocks(&self) -> u64 {
        self.fields().offset_blocks
    }

    /// Number of blocks.
    #[inline(always)]
    #[must_use]
    pub fn num_blocks(&self) -> u64 {
        self.fields().num_blocks
    }

    /// Flags.
    #[inline(always)]
    #[must_use]
    pub fn flags(&self) -> IoFlags {
        self.fields().flags
    }

    /// The pieces of the payload, as for `readv` and `writev`.
    #[inline]
    #[must_use]
    pub fn iovs(&self) -> &[IoVec] {
        let fields = self.fields();
        if fields.iovcnt == 0 || fields.iovs.is_null() {
            return &[];
        }
        // SAFETY: the consumer keeps `iovcnt` pieces valid and unchanged until completion.
        unsafe { std::slice::from_raw_parts(fields.iovs, fields.iovcnt as usize) }
    }

    /// Bytes of the payload.
    #[must_use]
    pub fn payload_len(&self) -> u64 {
        self.iovs().iter().map(|piece| piece.len as u64).sum()
    }

    /// The payload, to read from.
    pub fn buffers(&self) -> impl Iterator<Item = &[u8]> {
        // SAFETY: the consumer keeps the payload valid until completion, and this borrow ends before that.
        self.iovs().iter().map(|piece| unsafe { slice(piece) })
    }

    /// The payload, to be filled; nothing if the operation does not fill its payload, or the payload is memory lent
    /// by a device below.
    pub fn buffers_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let filled = OPS_THAT_FILL.contains(self.op());
        let own = filled && !self.flags().contains(IoFlags::LENT);
        let pieces = if own { self.iovs() } else { &[] };
        pieces.iter().filter(|piece| piece.len > 0).map(|piece| {
            // SAFETY: the consumer lends the payload of such an operation for writing until completion; `&mut self`
            // makes this the only borrow.
            unsafe { std::slice::from_raw_parts_mut(piece.base.cast::<u8>(), piece.len) }
        })
    }

    /// Separate metadata, as long as the consumer says in its extension; else empty.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        match self.metadata_area() {
            // SAFETY: the consumer keeps the metadata valid until completion.
            Some((ptr, len)) => unsafe { std::slice::from_raw_parts(ptr, len) },
            None => &[],
        }
    }

    /// Separate metadata, to be filled; nothing if the operation does not fill its payload.
    #[must_use]
    pub fn metadata_mut(&mut self) -> &mut [u8] {
        match self.metadata_area() {
            // SAFETY: as for `buffers_mut`.
            Some((ptr, len)) if self.op().fills_payload() => unsafe {
                std::slice::from_raw_parts_mut(ptr, len)
            },
            _ => &mut [],
        }
    }

    /// Source ranges of [`BdevOp::Copy`].
    #[must_use]
    pub fn copy_ranges(&self) -> &[CopyRange] {
        match self.ext(offset_of!(IoExtV1, copy_range_count) + size_of::<u32>()) {
            Some(ext) if ext.copy_range_count > 0 && !ext.copy_ranges.is_null() => {
                // SAFETY: the consumer keeps the ranges valid until completion.
                unsafe { std::slice::from_raw_parts(ext.copy_ranges, ext.copy_range_count as usize) }
            }
            _ => &[],
        }
    }

    /// What [`BdevOp::CompareAndWrite`] compares the medium with.
    pub fn compare_buffers(&self) -> impl Iterator<Item = &[u8]> {
        // SAFETY: the consumer keeps the data valid until completion.
        self.compare_iovs().iter().map(|piece| unsafe { slice(piece) })
    }

    fn compare_iovs(&self) -> &[IoVec] {
        match self.ext(offset_of!(IoExtV1, compare_iovs) + size_of::<usize>()) {
            Some(ext) if ext.compare_iovcnt > 0 && !ext.compare_iovs.is_null() => {
                // SAFETY: the consumer keeps the pieces valid until completion.
                unsafe { std::slice::from_raw_parts(ext.compare_iovs, ext.compare_iovcnt as usize) }
            }
            _ => &[],
        }
    }

    /// Submission queue entry of [`BdevOp::NvmeAdmin`] and [`BdevOp::NvmeIo`].
    #[must_use]
    pub fn nvme_command(&self) -> Option<&[u8; 64]> {
        let ext = self.ext(offset_of!(IoExtV1, nvme_sqe) + size_of::<usize>())?;
        // SAFETY: the consumer keeps the 64 bytes valid until completion, or passes null.
        unsafe { ext.nvme_sqe.cast::<[u8; 64]>().as_ref() }
    }

    /// Writes the completion queue entry of an NVMe command; false if the consumer wants none.
    pub fn set_nvme_completion(&mut self, entry: [u32; 4]) -> bool {
        let cqe = match self.ext(offset_of!(IoExtV1, nvme_cqe) + size_of::<usize>()) {
            Some(ext) if !ext.nvme_cqe.is_null() => ext.nvme_cqe,
            _ => return false,
        };
        // SAFETY: the consumer gives room for 16 bytes until completion.
        unsafe { cqe.cast::<[u32; 4]>().write_unaligned(entry) };
        true
    }

    /// Action of [`BdevOp::ZoneManagement`] (NVMe ZNS values).
    #[must_use]
    pub fn zone_action(&self) -> Option<u32> {
        self.ext(offset_of!(IoExtV1, zone_action) + size_of::<u32>()).map(|ext| ext.zone_action)
    }

    /// Local key of the payload's memory region for a device that does DMA, if known.
    #[must_use]
    pub fn memory_key(&self) -> Option<u64> {
        let ext = self.ext(offset_of!(IoExtV1, memory_key) + size_of::<u64>())?;
        (ext.memory_key != 0).then_some(ext.memory_key)
    }

    /// This I/O's state of type [`Channel::PerIo`].
    #[inline(always)]
    #[must_use]
    pub fn context(&self) -> &C::PerIo {
        // SAFETY: `from_raw` promises an initialised `C::PerIo`, which only the token's holder touches.
        unsafe { &*tenon_abi::io_context(self.as_raw()).cast::<C::PerIo>() }
    }

    /// This I/O's state, to be changed.
    #[inline(always)]
    #[must_use]
    pub fn context_mut(&mut self) -> &mut C::PerIo {
        // SAFETY: as in `context`, and `&mut self` is unique.
        unsafe { &mut *tenon_abi::io_context(self.as_raw()).cast::<C::PerIo>() }
    }

    /// Sets the command-specific result of an NVMe command.
    #[inline]
    pub fn set_cdw0(&mut self, cdw0: u32) {
        // SAFETY: the token's holder owns the I/O.
        unsafe { (*self.as_raw()).cdw0 = cdw0 };
    }

    /// Sets the answer of [`BdevOp::SeekHole`] and [`BdevOp::SeekData`].
    #[inline]
    pub fn set_offset_blocks(&mut self, offset_blocks: u64) {
        // SAFETY: the token's holder owns the I/O.
        unsafe { (*self.as_raw()).offset_blocks = offset_blocks };
    }

    /// True if the READ may be answered with memory of the module, see [`crate::Lender`].
    #[inline]
    #[must_use]
    pub fn can_lend(&self) -> bool {
        self.flags().contains(IoFlags::LEND) && self.op() == BdevOp::Read
    }

    /// Fills the payload from `memory` at `byte_offset`; the result is the status to complete with.
    #[must_use = "complete the I/O with this status"]
    pub fn read_from(&self, memory: &SharedBuf, byte_offset: u64) -> IoStatus {
        if !self.op().fills_payload() || self.flags().contains(IoFlags::LENT) {
            return IoStatus::INVALID;
        }
        self.transfer(memory, byte_offset, |medium, piece, len| {
            // SAFETY: both sides have `len` bytes; the medium is never part of a consumer's payload unless lent,
            // and then both may be the same: `copy` allows that.
            unsafe { std::ptr::copy(medium, piece, len) };
            true
        })
    }

    /// Writes the payload to `memory` at `byte_offset`; the result is the status to complete with.
    #[must_use = "complete the I/O with this status"]
    pub fn write_to(&self, memory: &SharedBuf, byte_offset: u64) -> IoStatus {
        let written = self.write_unsettled_to(memory, byte_offset);
        if !written.is_settled {
            SharedBuf::settle();
        }
        written.status
    }

    /// As [`Io::write_to`], but other threads may not see the bytes yet: unless the result says that they do,
    /// [`SharedBuf::settle`] has to be called before the I/O is completed. Once for several I/Os is enough.
    #[inline]
    #[must_use = "complete the I/O with this status, when it is settled"]
    pub fn write_unsettled_to(&self, memory: &SharedBuf, byte_offset: u64) -> Written {
        let mut is_settled = true;
        let status = self.transfer(memory, byte_offset, |medium, piece, len| {
            // SAFETY: as in `read_from`.
            is_settled &= !unsafe { memory.store(medium, piece.cast_const(), len) };
            true
        });
        Written { status, is_settled }
    }

    /// Compares the payload with `memory` at `byte_offset`; the result is the status to complete with.
    #[must_use = "complete the I/O with this status"]
    pub fn compare_with(&self, memory: &SharedBuf, byte_offset: u64) -> IoStatus {
        compare(self.iovs(), memory, byte_offset)
    }

    /// Compares [`Io::compare_buffers`] with `memory` at `byte_offset`; success means "now write".
    #[must_use = "write or complete the I/O, depending on this status"]
    pub fn compare_first_with(&self, memory: &SharedBuf, byte_offset: u64) -> IoStatus {
        compare(self.compare_iovs(), memory, byte_offset)
    }

    fn transfer(
        &self,
        memory: &SharedBuf,
        byte_offset: u64,
        step: impl FnMut(*mut u8, *mut u8, usize) -> bool,
    ) -> IoStatus {
        let pieces = self.iovs();
        if pieces.is_empty() && self.num_blocks() > 0 {
            // The consumer wanted memory lent and this device does not lend.
            return IoStatus::INVALID;
        }
        walk(pieces, memory, byte_offset, step)
    }

    #[inline(always)]
    fn fields(&self) -> &BdevIo {
        // SAFETY: a valid I/O that only this token's holder and, for its own fields, the host touch.
        unsafe { self.raw.as_ref() }
    }

    fn metadata_area(&self) -> Option<(*mut u8, usize)> {
        let ext = self.ext(offset_of!(IoExtV1, md_len) + size_of::<u64>())?;
        let md: *mut c_void = self.fields().md;
        (!md.is_null() && ext.md_len > 0).then_some((md.cast::<u8>(), ext.md_len as usize))
    }

    /// The extension, if it reaches byte `end`.
    fn ext(&self, end: usize) -> Option<&IoExtV1> {
        // SAFETY: the consumer keeps the extension valid until completion, or passes null.
        let ext = unsafe { self.fields().ext.as_ref() }?;
        reaches(ext.size, end).then_some(ext)
    }
}

impl<C: Channel> Drop for Io<C> {
    #[cold]
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
        log::error!("i/o dropped without completion op={:?} offset={}", self.op(), self.offset_blocks());
        // SAFETY: the token is being used up here instead of by `complete`.
        unsafe { Io::<C>::from_raw(self.as_raw()).complete(IoStatus::INTERNAL) };
        debug_assert!(std::thread::panicking(), "an I/O was dropped without completion");
    }
}

const OPS_THAT_FILL: OpSet =
    OpSet::of(&[BdevOp::Read, BdevOp::GetZoneInfo, BdevOp::NvmeAdmin, BdevOp::NvmeIo]);

fn compare(pieces: &[IoVec], memory: &SharedBuf, byte_offset: u64) -> IoStatus {
    walk(pieces, memory, byte_offset, |medium, piece, len| {
        // SAFETY: both sides have `len` readable bytes, not written during the call by this thread.
        unsafe { std::slice::from_raw_parts(medium, len) == std::slice::from_raw_parts(piece, len) }
    })
}

/// Walks the pieces and the medium side by side; a step that answers false ends with MISCOMPARE.
fn walk(
    pieces: &[IoVec],
    memory: &SharedBuf,
    byte_offset: u64,
    mut step: impl FnMut(*mut u8, *mut u8, usize) -> bool,
) -> IoStatus {
    let total: u64 = pieces.iter().map(|piece| piece.len as u64).sum();
    let Some(mut medium) = memory.at(byte_offset, total) else { return IoStatus::LBA_OUT_OF_RANGE };
    for piece in pieces.iter().filter(|piece| piece.len > 0) {
        if !step(medium, piece.base.cast::<u8>(), piece.len) {
            return IoStatus::MISCOMPARE;
        }
        // SAFETY: `at` found all pieces together inside the block.
        medium = unsafe { medium.add(piece.len) };
    }
    IoStatus::SUCCESS
}

/// # Safety
/// The piece is valid for `'a`.
unsafe fn slice<'a>(piece: &IoVec) -> &'a [u8] {
    if piece.len == 0 {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(piece.base.cast::<u8>(), piece.len) }
}
