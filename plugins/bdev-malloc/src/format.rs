//! Where a block and its metadata are in the device's memory: one type for
//! each way, so that devices without metadata do not ask for it. The data path
//! itself is in `bdev`.

use std::sync::Arc;

use tenon_sdk::{Channel, Error, Host, Io, IoStatus, SharedBuf};

use crate::bdev::{allocate, in_range};
use crate::config::MallocParams;

/// A way of laying out blocks.
pub trait Format: Clone + Send + Sync + 'static {
    /// Bytes that one block takes in the device's memory and in a payload.
    fn stride(&self) -> u64;

    /// Bytes that so many blocks take; where a block starts.
    fn bytes(&self, blocks: u64) -> u64;

    /// Metadata in a memory of its own.
    fn separate(&self) -> Option<&Separate>;
}

/// Data only.
#[derive(Clone)]
pub struct Plain {
    block_shift: u32,
}

/// Each block's metadata behind its data, in the same payload.
#[derive(Clone)]
pub struct Extended {
    stride: u64,
}

/// Metadata beside the data, which an I/O transfers only if it brings a buffer for it.
#[derive(Clone)]
pub struct Separate {
    block_shift: u32,
    md_size: u64,
    memory: Arc<SharedBuf>,
}

impl Plain {
    /// Blocks of that size.
    pub fn new(params: &MallocParams) -> Self {
        Plain { block_shift: params.block_size.trailing_zeros() }
    }
}

impl Format for Plain {
    fn stride(&self) -> u64 {
        1 << self.block_shift
    }

    #[inline(always)]
    fn bytes(&self, blocks: u64) -> u64 {
        blocks << self.block_shift
    }

    #[inline(always)]
    fn separate(&self) -> Option<&Separate> {
        None
    }
}

impl Extended {
    /// Blocks of data and metadata together.
    pub fn new(params: &MallocParams) -> Self {
        Extended { stride: u64::from(params.block_size) + u64::from(params.md_size) }
    }
}

impl Format for Extended {
    fn stride(&self) -> u64 {
        self.stride
    }

    #[inline]
    fn bytes(&self, blocks: u64) -> u64 {
        // Too much is found out of range by the memory.
        blocks.saturating_mul(self.stride)
    }

    #[inline(always)]
    fn separate(&self) -> Option<&Separate> {
        None
    }
}

impl Separate {
    /// Allocates the metadata; it is zero.
    pub fn new(host: Host, params: &MallocParams) -> Result<Self, Error> {
        let md_size = u64::from(params.md_size);
        let memory = Arc::new(allocate(host, params, params.blocks()? * md_size)?);
        Ok(Separate { block_shift: params.block_size.trailing_zeros(), md_size, memory })
    }

    /// The memory.
    pub fn memory(&self) -> &SharedBuf {
        &self.memory
    }

    /// Bytes of one block's.
    pub fn size(&self) -> u64 {
        self.md_size
    }

    /// False if the I/O brings a buffer that does not hold the metadata of all its blocks.
    pub fn fits<C: Channel>(&self, io: &Io<C>) -> bool {
        let room = io.metadata().len() as u64;
        room == 0 || room >= io.num_blocks().saturating_mul(self.md_size)
    }

    /// Fills the I/O's buffer, if it has one.
    pub fn read<C: Channel>(&self, io: &mut Io<C>) -> IoStatus {
        let (at, len) = self.range(io);
        let into = io.metadata_mut();
        if into.is_empty() {
            return IoStatus::SUCCESS;
        }
        match into.get_mut(..len) {
            Some(into) => in_range(self.memory.read(at, into)),
            None => IoStatus::INVALID,
        }
    }

    /// Stores what the I/O brings; nothing changes if it brings none.
    pub fn write<C: Channel>(&self, io: &Io<C>) -> IoStatus {
        let (at, len) = self.range(io);
        let from = io.metadata();
        if from.is_empty() {
            return IoStatus::SUCCESS;
        }
        match from.get(..len) {
            Some(from) => in_range(self.memory.write(at, from)),
            None => IoStatus::INVALID,
        }
    }

    /// Compares what the I/O brings; equal if it brings none.
    pub fn compare<C: Channel>(&self, io: &Io<C>) -> IoStatus {
        let (mut at, len) = self.range(io);
        let brought = io.metadata();
        if brought.is_empty() {
            return IoStatus::SUCCESS;
        }
        let Some(brought) = brought.get(..len) else { return IoStatus::INVALID };
        let mut stored = [0; COMPARED_AT_ONCE];
        for part in brought.chunks(COMPARED_AT_ONCE) {
            let stored = &mut stored[..part.len()];
            if !self.memory.read(at, stored) {
                return IoStatus::LBA_OUT_OF_RANGE;
            }
            if stored != part {
                return IoStatus::MISCOMPARE;
            }
            at += part.len() as u64;
        }
        IoStatus::SUCCESS
    }

    /// Where the metadata of the I/O's blocks starts, and its length.
    fn range<C: Channel>(&self, io: &Io<C>) -> (u64, usize) {
        let bytes = |blocks: u64| blocks.saturating_mul(self.md_size);
        (bytes(io.offset_blocks()), usize::try_from(bytes(io.num_blocks())).unwrap_or(usize::MAX))
    }
}

impl Format for Separate {
    fn stride(&self) -> u64 {
        1 << self.block_shift
    }

    #[inline]
    fn bytes(&self, blocks: u64) -> u64 {
        blocks << self.block_shift
    }

    #[inline(always)]
    fn separate(&self) -> Option<&Separate> {
        Some(self)
    }
}

const COMPARED_AT_ONCE: usize = 4096;
