//! The device: one piece of memory that every reactor's channel shares. Every
//! operation completes inside `submit`, except zeroing much memory, which is
//! done piece by piece so that nobody else on the reactor waits for it, and writes
//! past the cache, which are waited for together. Where metadata is belongs to
//! `format`.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tenon_sdk::{
    Alarm, Bdev, BdevOp, Channel, Error, Host, Io, IoBatch, IoFlags, IoQueue, IoStatus, Lender, Reactor,
    SharedBuf, Victim, Written,
};

use crate::config::MallocParams;
use crate::format::Format;

/// A device.
pub struct MallocBdev<F: Format> {
    host: Host,
    params: MallocParams,
    format: F,
    memory: Arc<SharedBuf>,
}

/// Its data path on one reactor.
pub struct MallocChannel<F: Format> {
    memory: Lender,
    format: F,
    /// UNMAP and WRITE_ZEROES too large for one go.
    zeroing: IoQueue<Self>,
    /// Blocks of the first of them that are done.
    zeroed: Cell<u64>,
    next_piece: Alarm,
    /// WRITEs whose bytes others may not see yet.
    unsettled: IoQueue<Self>,
    settle_soon: Alarm,
    waits: Rc<Waits>,
    /// Of `waits`, when the last of `unsettled` was stored.
    stored_after: Cell<u64>,
}

/// How often a thread has waited for its stores past the cache, to whatever device: one wait is for all of them.
#[derive(Default)]
struct Waits(Cell<u64>);

thread_local! {
    static WAITS: Rc<Waits> = Rc::default();
}

impl<F: Format> MallocBdev<F> {
    /// Allocates the memory; it is zero.
    pub fn new(host: Host, params: &MallocParams, format: F) -> Result<Self, Error> {
        let memory = allocate(host, params, params.blocks()? * format.stride())?;
        Ok(MallocBdev { host, params: params.clone(), format, memory: Arc::new(memory) })
    }
}

/// Zeroed memory where the parameters want it.
pub fn allocate(host: Host, params: &MallocParams, bytes: u64) -> Result<SharedBuf, Error> {
    let memory = host
        .alloc(bytes as usize, ALIGNMENT, params.numa_node.unwrap_or(-1))
        .map_err(|error| Error::no_memory(format!("no memory for {bytes} bytes")).caused_by(error))?;
    Ok(memory.share())
}

impl<F: Format> Bdev for MallocBdev<F> {
    type Channel = MallocChannel<F>;

    fn channel(&self, _: Reactor) -> Result<Rc<MallocChannel<F>>, Error> {
        Ok(Rc::new_cyclic(|channel: &Weak<MallocChannel<F>>| {
            let alarm = |ring: fn(&MallocChannel<F>)| {
                let channel = channel.clone();
                self.host.alarm(move || {
                    if let Some(channel) = channel.upgrade() {
                        ring(&channel);
                    }
                })
            };
            MallocChannel {
                memory: Lender::new(self.memory.clone()),
                format: self.format.clone(),
                zeroing: IoQueue::new(),
                zeroed: Cell::new(0),
                next_piece: alarm(MallocChannel::zero_piece),
                unsettled: IoQueue::new(),
                settle_soon: alarm(MallocChannel::settle),
                waits: WAITS.with(Rc::clone),
                stored_after: Cell::new(0),
            }
        }))
    }

    fn config(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&self.params).ok()
    }
}

impl<F: Format> Channel for MallocChannel<F> {
    type PerIo = ();

    fn submit(&self, io: Io<Self>) {
        let at = self.format.bytes(io.offset_blocks());
        let len = self.format.bytes(io.num_blocks());
        let status = match io.op() {
            BdevOp::Read => return self.read(io, at, len),
            BdevOp::Write => return self.write(io, at, len),
            BdevOp::Flush | BdevOp::Reset | BdevOp::Verify => IoStatus::SUCCESS,
            BdevOp::Unmap | BdevOp::WriteZeroes if len > ZERO_PIECE => return self.zero_later(io),
            BdevOp::Unmap | BdevOp::WriteZeroes => in_range(self.zero(io.offset_blocks(), io.num_blocks())),
            BdevOp::Compare => self.compare(&io, at),
            BdevOp::Copy => self.copy(&io),
            _ => IoStatus::NOT_SUPPORTED,
        };
        io.complete(status);
    }

    /// Fetches the beginning of what the next I/O reads while the one before it is copied: without that each copy begins
    /// by waiting for memory.
    fn submit_batch(&self, mut batch: IoBatch<'_, Self>) {
        while let Some(io) = batch.next() {
            if let Some(next) = batch.upcoming()
                && next.op == BdevOp::Read
                && !next.flags.contains(IoFlags::LEND)
            {
                let len = self.format.bytes(next.num_blocks).min(FETCHED_AHEAD);
                self.memory.memory().fetch_ahead(self.format.bytes(next.offset_blocks), len);
            }
            self.submit(io);
        }
    }

    fn abort(&self, victim: Victim) -> bool {
        let Some(io) = self.zeroing.remove(victim) else { return false };
        // If it was the first, the next one starts; zeroing a part of it again does no harm.
        self.zeroed.set(0);
        io.complete(IoStatus::ABORTED);
        true
    }

    fn lender(&self) -> Option<&Lender> {
        Some(&self.memory)
    }
}

impl<F: Format> MallocChannel<F> {
    #[inline(always)]
    fn read(&self, mut io: Io<Self>, at: u64, len: u64) {
        if let Some(separate) = self.format.separate() {
            let status = separate.read(&mut io);
            if !status.is_success() {
                return io.complete(status);
            }
        }
        self.memory.complete_read(io, at, len);
    }

    /// A write past the cache is complete when it has been waited for, which several do together. The wait comes before the
    /// next write's stores: most of it has then gone by in the work between the two.
    #[inline(always)]
    fn write(&self, io: Io<Self>, at: u64, len: u64) {
        if !self.unsettled.is_empty() && (self.unsettled.len() >= SETTLED_TOGETHER || self.are_settled()) {
            self.settle();
        }
        let separate = self.format.separate();
        if separate.is_some_and(|separate| !separate.fits(&io)) {
            return io.complete(IoStatus::INVALID);
        }
        let Written { mut status, is_settled } = io.write_unsettled_to(self.memory.memory(), at);
        if let Some(separate) = separate
            && status.is_success()
        {
            status = separate.write(&io);
        }
        if is_settled {
            return io.complete(status);
        }
        if !status.is_success() || len > LONGEST_UNSETTLED {
            self.waits.wait();
            return io.complete(status);
        }
        self.stored_after.set(self.waits.0.get());
        self.unsettled.push_back(io);
        if !self.settle_soon.is_set() && self.settle_soon.set_ns(THIS_TURN_NS).is_err() {
            self.settle();
        }
    }

    /// Whether writes to another device were waited for since.
    #[inline]
    fn are_settled(&self) -> bool {
        self.stored_after.get() != self.waits.0.get()
    }

    fn settle(&self) {
        if !self.are_settled() {
            self.waits.wait();
        }
        self.unsettled.complete_all(IoStatus::SUCCESS);
    }

    fn compare(&self, io: &Io<Self>, at: u64) -> IoStatus {
        let status = io.compare_with(self.memory.memory(), at);
        match self.format.separate() {
            Some(separate) if status.is_success() => separate.compare(io),
            _ => status,
        }
    }

    /// Zeroes blocks and their metadata.
    fn zero(&self, first: u64, blocks: u64) -> bool {
        let data = self.memory.memory().zero(self.format.bytes(first), self.format.bytes(blocks));
        let metadata = self.format.separate().is_none_or(|separate| {
            let size = separate.size();
            separate.memory().zero(first.saturating_mul(size), blocks.saturating_mul(size))
        });
        data && metadata
    }

    fn zero_later(&self, io: Io<Self>) {
        self.zeroing.push_back(io);
        if self.zeroing.len() == 1 {
            self.wake();
        }
    }

    /// Zeroes the next piece of the first I/O that wants it.
    fn zero_piece(&self) {
        let Some(io) = self.zeroing.pop_front() else { return };
        let (first, blocks) = (io.offset_blocks(), io.num_blocks());
        let done = self.zeroed.get();
        let piece = (ZERO_PIECE / self.format.stride()).min(blocks - done);
        let is_inside = self.zero(first + done, piece);
        if is_inside && done + piece < blocks {
            self.zeroed.set(done + piece);
            self.zeroing.push_front(io);
        } else {
            self.zeroed.set(0);
            io.complete(in_range(is_inside));
        }
        if !self.zeroing.is_empty() {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.next_piece.set_ns(NEXT_TURN_NS) {
            log::warn!("memory cannot be zeroed in pieces error=\"{error}\"");
            self.zeroed.set(0);
            self.zeroing.complete_all(IoStatus::NOMEM);
        }
    }

    /// Copies every source range behind the one before it, metadata after data.
    fn copy(&self, io: &Io<Self>) -> IoStatus {
        let status = copy(self.memory.memory(), io, self.format.stride());
        match self.format.separate() {
            Some(separate) if status.is_success() => copy(separate.memory(), io, separate.size()),
            _ => status,
        }
    }
}

impl Waits {
    fn wait(&self) {
        SharedBuf::settle();
        self.0.set(self.0.get() + 1);
    }
}

/// Copies the source ranges of blocks that have `stride` bytes in `memory`, piece by piece.
fn copy<C: Channel>(memory: &SharedBuf, io: &Io<C>, stride: u64) -> IoStatus {
    let mut piece = [0; COPY_PIECE];
    let Some(mut at) = io.offset_blocks().checked_mul(stride) else { return IoStatus::LBA_OUT_OF_RANGE };
    for range in io.copy_ranges() {
        let (Some(mut from), Some(mut left)) =
            (range.offset_blocks.checked_mul(stride), range.num_blocks.checked_mul(stride))
        else {
            return IoStatus::LBA_OUT_OF_RANGE;
        };
        while left > 0 {
            let part = &mut piece[..left.min(COPY_PIECE as u64) as usize];
            if !memory.read(from, part) || !memory.write(at, part) {
                return IoStatus::LBA_OUT_OF_RANGE;
            }
            from += part.len() as u64;
            at += part.len() as u64;
            left -= part.len() as u64;
        }
    }
    IoStatus::SUCCESS
}

/// What an access to the memory came to.
pub fn in_range(done: bool) -> IoStatus {
    if done { IoStatus::SUCCESS } else { IoStatus::LBA_OUT_OF_RANGE }
}

/// A page, so that a lent block never shares one with another device.
const ALIGNMENT: usize = 4096;
const COPY_PIECE: usize = 4096;
/// From there the processor goes on by itself. Medians in ns per read of 4 KiB at random (QD 128, a Xeon) with 0, 256, 512,
/// 1024 and 4096 bytes: from 16 MiB 184, 171, 168, 180 and 204; from 256 MiB 387, 355, 340, 337 and 386.
const FETCHED_AHEAD: u64 = 512;
/// Memory that is zeroed in one turn of the reactor: some 100 us.
const ZERO_PIECE: u64 = 1 << 20;
/// Writes to a device that are waited for at once: the wait takes as long as one of them. More make a consumer wait who goes on
/// with each answer: 4 KiB writes over TCP, one connection, 0.88 M/s with 64 and 1.07 M with 16.
const SETTLED_TOGETHER: usize = 15;
/// Longer writes gain less than their consumers lose who could use their buffers again at once: raid5f, 64 KiB to each member,
/// wrote 59 instead of 72 k stripes per second.
const LONGEST_UNSETTLED: u64 = 16 << 10;
/// When the pollers of this turn are over. A turn later 4 KiB writes on four TCP connections were 0.70 instead of 0.95 M/s.
const THIS_TURN_NS: u64 = 0;
/// Not in this turn.
const NEXT_TURN_NS: u64 = 1;
