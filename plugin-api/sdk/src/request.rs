//! I/O of the module's own, not a consumer's: superblocks, rebuild, probing.
//! Allocates per request, so it is not for the path of a consumer's I/O.
// UNSAFETY: allocates and completes raw I/Os.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::ptr::null_mut;

use tenon_abi::{BDEV_IO_SIZE, BdevIo, IoStatus, IoVec};

use crate::base::BaseChannel;
use crate::op::BdevOp;
use crate::{BdevFlags, DmaBuf, bridge};

/// A request in flight; owns the raw I/O, the memory it works on and the channel it is on.
struct Request<F> {
    io: OwnedIo,
    buffer: Option<DmaBuf>,
    base: BaseChannel,
    done: F,
}

/// A raw I/O with its driver context.
struct OwnedIo {
    raw: *mut BdevIo,
    layout: Layout,
}

impl BaseChannel {
    /// Reads as many blocks as `buffer` holds.
    pub fn read(&self, offset_blocks: u64, buffer: DmaBuf, done: impl FnOnce(DmaBuf, IoStatus) + 'static) {
        self.transfer(BdevOp::Read, offset_blocks, buffer, done);
    }

    /// Writes as many blocks as `buffer` holds.
    pub fn write(&self, offset_blocks: u64, buffer: DmaBuf, done: impl FnOnce(DmaBuf, IoStatus) + 'static) {
        self.transfer(BdevOp::Write, offset_blocks, buffer, done);
    }

    /// Makes every completed write durable.
    pub fn flush(&self, done: impl FnOnce(IoStatus) + 'static) {
        let num_blocks = self.info().limits.num_blocks;
        self.command(BdevOp::Flush, 0, num_blocks, done);
    }

    /// Deallocates blocks.
    pub fn unmap(&self, offset_blocks: u64, num_blocks: u64, done: impl FnOnce(IoStatus) + 'static) {
        self.command(BdevOp::Unmap, offset_blocks, num_blocks, done);
    }

    /// Writes zeroes.
    pub fn write_zeroes(&self, offset_blocks: u64, num_blocks: u64, done: impl FnOnce(IoStatus) + 'static) {
        self.command(BdevOp::WriteZeroes, offset_blocks, num_blocks, done);
    }

    /// Bytes of a block in a payload: the data, and metadata that is interleaved with it.
    #[must_use]
    pub fn payload_block_size(&self) -> usize {
        let info = self.info();
        let metadata =
            if info.flags.contains(BdevFlags::METADATA_INTERLEAVED) { info.limits.md_size } else { 0 };
        (info.limits.block_size + metadata) as usize
    }

    fn transfer(
        &self,
        op: BdevOp,
        offset_blocks: u64,
        buffer: DmaBuf,
        done: impl FnOnce(DmaBuf, IoStatus) + 'static,
    ) {
        let num_blocks = (buffer.len() / self.payload_block_size()) as u64;
        self.submit(op, offset_blocks, num_blocks, Some(buffer), move |buffer, status| {
            done(buffer.expect("a transfer has a buffer"), status);
        });
    }

    fn command(
        &self,
        op: BdevOp,
        offset_blocks: u64,
        num_blocks: u64,
        done: impl FnOnce(IoStatus) + 'static,
    ) {
        self.submit(op, offset_blocks, num_blocks, None, move |_, status| done(status));
    }

    fn submit<F: FnOnce(Option<DmaBuf>, IoStatus) + 'static>(
        &self,
        op: BdevOp,
        offset_blocks: u64,
        num_blocks: u64,
        buffer: Option<DmaBuf>,
        done: F,
    ) {
        let Some(io) = OwnedIo::new(self.io_context_size()) else { return done(buffer, IoStatus::NOMEM) };
        let raw = io.raw;
        let block = self.payload_block_size();
        let memory = buffer.as_ref().map(|buffer| (buffer.as_ptr(), num_blocks as usize * block));
        let request = Box::into_raw(Box::new(Request { io, buffer, base: self.clone(), done }));
        // SAFETY: a zeroed I/O is idle; it, its memory and the channel belong to the request, which lives until
        // the completion.
        unsafe {
            (*raw).op = op.to_abi();
            (*raw).offset_blocks = offset_blocks;
            (*raw).num_blocks = num_blocks;
            if let Some((base, len)) = memory {
                (*raw).inline_iov = IoVec { base: base.cast::<c_void>(), len };
                (*raw).iovs = &raw mut (*raw).inline_iov;
                (*raw).iovcnt = 1;
            } else {
                (*raw).iovs = null_mut();
            }
            (*raw).done = Some(request_done::<F>);
            (*raw).done_arg = request.cast::<c_void>();
            tenon_abi::submit((*request).base.as_raw(), raw);
        }
    }
}

impl OwnedIo {
    fn new(io_ctx_size: u32) -> Option<OwnedIo> {
        let layout = Layout::from_size_align(BDEV_IO_SIZE + io_ctx_size as usize, 64).ok()?;
        // SAFETY: the size is not zero.
        let raw = unsafe { alloc_zeroed(layout) }.cast::<BdevIo>();
        (!raw.is_null()).then_some(OwnedIo { raw, layout })
    }
}

impl Drop for OwnedIo {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the I/O is complete or was never submitted.
        unsafe { dealloc(self.raw.cast::<u8>(), self.layout) };
    }
}

/// # Safety
/// Completion of an I/O of `submit`, with its request as the argument.
unsafe extern "C" fn request_done<F: FnOnce(Option<DmaBuf>, IoStatus)>(
    io: *mut BdevIo,
    request: *mut c_void,
) {
    // SAFETY: the completion is called once, and the request is nobody else's.
    let (status, request) = unsafe { ((*io).status, Box::from_raw(request.cast::<Request<F>>())) };
    let Request { io, buffer, base, done } = *request;
    drop(io);
    bridge::run("the end of a request", || done(buffer, status));
    // The channel outlives the closure, which may have the last other reference.
    drop(base);
}
