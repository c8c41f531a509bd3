//! Lending memory to readers: a READ that allows it completes with a pointer
//! into the device's own memory instead of a copy, and stays outstanding until
//! the consumer returns the memory.
// UNSAFETY: changes the scatter list of raw I/Os.

use std::cell::Cell;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use tenon_abi::{IoFlags, IoStatus, IoVec};

use crate::SharedBuf;
use crate::channel::Channel;
use crate::io::Io;

/// Answers READs of one channel from memory, by lending it where the consumer allows, by copying elsewhere.
///
/// A device that lends says so in [`crate::BdevSpec::lends`] and returns its lender from [`Channel::lender`].
/// The memory outlives every loan: a lender dropped with memory still lent leaks it.
pub struct Lender {
    memory: ManuallyDrop<Arc<SharedBuf>>,
    lent: Cell<u64>,
}

impl Lender {
    /// Lends `memory`.
    #[must_use]
    pub fn new(memory: Arc<SharedBuf>) -> Lender {
        Lender { memory: ManuallyDrop::new(memory), lent: Cell::new(0) }
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &SharedBuf {
        &self.memory
    }

    /// READs whose memory has not come back.
    #[must_use]
    pub fn lent(&self) -> u64 {
        self.lent.get()
    }

    /// Completes a READ with `len` bytes at `byte_offset`, lent or copied.
    pub fn complete_read<C: Channel>(&self, io: Io<C>, byte_offset: u64, len: u64) {
        if !io.can_lend() {
            let status = io.read_from(&self.memory, byte_offset);
            return io.complete(status);
        }
        let Some(at) = self.memory.at(byte_offset, len) else {
            return io.complete(IoStatus::LBA_OUT_OF_RANGE);
        };
        self.lent.set(self.lent.get() + 1);
        let raw = io.as_raw();
        // SAFETY: the token's holder owns the I/O; the memory is kept until `returned` was called for it.
        unsafe {
            (*raw).inline_iov = IoVec { base: at.cast::<c_void>(), len: len as usize };
            (*raw).iovs = &raw mut (*raw).inline_iov;
            (*raw).iovcnt = 1;
            (*raw).flags.0 |= IoFlags::LENT.0;
        }
        io.complete(IoStatus::SUCCESS);
    }

    pub(crate) fn returned(&self) {
        debug_assert!(self.lent.get() > 0, "memory came back that was not lent");
        self.lent.set(self.lent.get().saturating_sub(1));
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        if self.lent.get() > 0 {
            log::error!("memory leaked because readers still have it loans={}", self.lent.get());
            return;
        }
        // SAFETY: nobody reads the memory through this lender any longer, and it is dropped once.
        unsafe { ManuallyDrop::drop(&mut self.memory) };
    }
}
