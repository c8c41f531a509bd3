//! Working through blocks of members' data areas, chunk by chunk: restoring one
//! member from the others, or comparing what they hold. Runs on the control thread
//! with memory of its own; who holds writes back meanwhile is `process.rs`, what
//! blocks that differ mean is decided in `scrub.rs`.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use tenon_sdk::{BaseChannel, DmaBuf, Error, Host, IoStatus};

use crate::layout::Layout;
use crate::level::Level;
use crate::scrub::{self, Verdict};
use crate::xor::xor_into;

/// A member and where its data area begins.
#[derive(Clone)]
pub struct Place {
    /// Slot of the member.
    pub slot: usize,
    /// Channel on the control thread.
    pub channel: BaseChannel,
    /// First block of the data area.
    pub data_offset: u64,
}

/// What is done with the blocks.
#[derive(Clone)]
pub enum Work {
    /// This member gets what the others say it holds.
    Restore(Place),
    /// Members are compared, and written to if they differ and it is to be repaired.
    Check {
        /// Whether to write.
        is_repair: bool,
        /// Whether the first of several copies counts, whatever the others hold.
        first_counts: bool,
    },
}

/// What was found in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Blocks that differ.
    pub mismatches: u64,
    /// Blocks that a member could not read.
    pub unreadable: u64,
    /// Blocks that cannot be restored.
    pub lost: u64,
    /// Blocks that were written anew.
    pub repaired: u64,
    /// The first block of the data area that differs or cannot be read.
    pub first: Option<u64>,
}

/// Why a window could not be done.
pub struct Failure {
    /// The member that could not be written.
    pub slot: Option<usize>,
    /// Why.
    pub error: Error,
}

/// Memory for chunks that is used again and again.
#[derive(Clone, Default)]
pub struct Pool(Rc<RefCell<Vec<DmaBuf>>>);

/// A window being worked through.
struct Window {
    host: Host,
    layout: Arc<Layout>,
    sources: Vec<Place>,
    work: Work,
    pool: Pool,
    block_bytes: usize,
    next: Cell<u64>,
    end: u64,
    in_flight: Cell<usize>,
    is_pumping: Cell<bool>,
    found: Cell<Found>,
    failure: RefCell<Option<Failure>>,
    done: RefCell<Option<WindowDone>>,
}

/// Blocks that were read from every source.
struct Chunk {
    at: u64,
    blocks: u64,
    buffers: Vec<Option<DmaBuf>>,
    /// Sources that could not be read, one bit each, by their place in the list.
    unread: u32,
    left: usize,
}

type WindowDone = Box<dyn FnOnce(Result<Found, Failure>)>;

/// Works through these blocks of the data areas of `sources`.
pub fn run(
    host: Host,
    layout: Arc<Layout>,
    sources: Vec<Place>,
    work: Work,
    pool: Pool,
    blocks: Range<u64>,
    done: impl FnOnce(Result<Found, Failure>) + 'static,
) {
    let Some(first) = sources.first() else {
        return done(Err(Failure { slot: None, error: Error::io("no member can be read") }));
    };
    let block_bytes = first.channel.payload_block_size();
    let window = Rc::new(Window {
        host,
        layout,
        sources,
        work,
        pool,
        block_bytes,
        next: Cell::new(blocks.start),
        end: blocks.end,
        in_flight: Cell::new(0),
        is_pumping: Cell::new(false),
        found: Cell::default(),
        failure: RefCell::new(None),
        done: RefCell::new(Some(Box::new(done))),
    });
    window.pump();
}

impl Window {
    /// Keeps as many chunks in flight as may be. Members may answer at once: then this goes on in a loop, not deeper.
    fn pump(self: &Rc<Self>) {
        if self.is_pumping.replace(true) {
            return;
        }
        let step = (CHUNK_BYTES / self.block_bytes).max(1) as u64;
        while self.in_flight.get() < CHUNKS && self.failure.borrow().is_none() && self.next.get() < self.end {
            let at = self.next.get();
            let blocks = step.min(self.end - at);
            self.next.set(at + blocks);
            self.in_flight.set(self.in_flight.get() + 1);
            match (&self.work, self.layout.level) {
                (Work::Restore(_), Level::Raid1 | Level::Raid10) => {
                    // Chunk by chunk from another member.
                    let nth = (at / step) as usize % self.sources.len();
                    self.copy(at, blocks, nth, self.sources.len(), None);
                }
                (Work::Restore(_) | Work::Check { .. }, _) => self.read_each(at, blocks),
            }
        }
        self.is_pumping.set(false);
        if self.in_flight.get() == 0 {
            self.finish();
        }
    }

    fn finish(&self) {
        let Some(done) = self.done.borrow_mut().take() else { return };
        let failure = self.failure.borrow_mut().take();
        done(failure.map_or(Ok(self.found.get()), Err));
    }

    /// Reads from the sources in turn until one can, then writes.
    fn copy(self: &Rc<Self>, at: u64, blocks: u64, nth: usize, left: usize, buffer: Option<DmaBuf>) {
        if left == 0 {
            return self.fail(None, Error::io("no member can be read"));
        }
        let buffer = match buffer.map_or_else(|| self.buffer(blocks), Ok) {
            Ok(buffer) => buffer,
            Err(error) => return self.fail(None, error),
        };
        let source = &self.sources[nth];
        let this = Rc::clone(self);
        source.channel.read(source.data_offset + at, buffer, move |buffer, status| {
            if status.is_success() {
                this.restore(at, buffer);
            } else {
                this.copy(at, blocks, (nth + 1) % this.sources.len(), left - 1, Some(buffer));
            }
        });
    }

    /// Reads the same blocks of every source.
    fn read_each(self: &Rc<Self>, at: u64, blocks: u64) {
        let mut buffers = Vec::with_capacity(self.sources.len());
        for _ in &self.sources {
            match self.buffer(blocks) {
                Ok(buffer) => buffers.push(buffer),
                Err(error) => return self.fail(None, error),
            }
        }
        let empty = self.sources.iter().map(|_| None).collect();
        let chunk = Chunk { at, blocks, buffers: empty, unread: 0, left: self.sources.len() };
        let chunk = Rc::new(RefCell::new(chunk));
        for (nth, (source, buffer)) in self.sources.iter().zip(buffers).enumerate() {
            let (this, chunk) = (Rc::clone(self), Rc::clone(&chunk));
            source.channel.read(source.data_offset + at, buffer, move |buffer, status| {
                let is_whole = {
                    let mut chunk = chunk.borrow_mut();
                    chunk.buffers[nth] = Some(buffer);
                    if !status.is_success() {
                        chunk.unread |= 1 << nth;
                    }
                    chunk.left -= 1;
                    chunk.left == 0
                };
                if is_whole {
                    this.chunk_was_read(&mut chunk.borrow_mut());
                }
            });
        }
    }

    fn chunk_was_read(self: &Rc<Self>, chunk: &mut Chunk) {
        let mut buffers: Vec<DmaBuf> = chunk.buffers.drain(..).flatten().collect();
        let (is_repair, first_counts) = match &self.work {
            Work::Check { is_repair, first_counts } => (*is_repair, *first_counts),
            Work::Restore(_) => return self.restore_sum(chunk, buffers),
        };
        let verdict = {
            let mut parts: Vec<&mut [u8]> = buffers.iter_mut().map(DmaBuf::as_mut_slice).collect();
            scrub::judge(&self.layout, chunk.at, self.block_bytes, &mut parts, chunk.unread, first_counts)
        };
        self.note(&verdict, chunk, is_repair);
        let dirty = if is_repair { verdict.dirty } else { 0 };
        let places: Vec<(Place, DmaBuf)> = self.sources.iter().cloned().zip(buffers).collect();
        // One more than the writes, so that the chunk ends when all were started.
        self.in_flight.set(self.in_flight.get() + dirty.count_ones() as usize);
        for (nth, (place, buffer)) in places.into_iter().enumerate() {
            if dirty & (1 << nth) != 0 {
                self.write(&place, chunk.at, buffer);
            } else {
                self.pool.give(buffer);
            }
        }
        self.finish_one();
    }

    fn note(&self, verdict: &Verdict, chunk: &Chunk, is_repair: bool) {
        let mut found = self.found.get();
        found.mismatches += verdict.mismatches;
        found.lost += verdict.lost;
        found.unreadable += u64::from(chunk.unread.count_ones()) * chunk.blocks;
        if is_repair {
            found.repaired += verdict.repairable;
        }
        let first = verdict.first.map(|nth| chunk.at + nth);
        found.first = found.first.into_iter().chain(first).min();
        self.found.set(found);
    }

    /// The target gets the exclusive or of all sources.
    fn restore_sum(self: &Rc<Self>, chunk: &Chunk, buffers: Vec<DmaBuf>) {
        let mut buffers = buffers.into_iter();
        let Some(mut sum) = buffers.next().filter(|_| chunk.unread == 0) else {
            buffers.for_each(|buffer| self.pool.give(buffer));
            return self.fail(None, Error::io("a member cannot be read"));
        };
        for buffer in buffers {
            xor_into(sum.as_mut_slice(), buffer.as_slice());
            self.pool.give(buffer);
        }
        self.restore(chunk.at, sum);
    }

    fn restore(self: &Rc<Self>, at: u64, buffer: DmaBuf) {
        match &self.work {
            Work::Restore(target) => self.write(&target.clone(), at, buffer),
            Work::Check { .. } => self.finish_one(),
        }
    }

    fn write(self: &Rc<Self>, place: &Place, at: u64, buffer: DmaBuf) {
        let (this, slot) = (Rc::clone(self), place.slot);
        place.channel.write(place.data_offset + at, buffer, move |buffer, status| {
            this.pool.give(buffer);
            if status.is_success() {
                this.finish_one();
            } else {
                this.fail(Some(slot), cannot_write(status));
            }
        });
    }

    fn fail(self: &Rc<Self>, slot: Option<usize>, error: Error) {
        self.failure.borrow_mut().get_or_insert(Failure { slot, error });
        self.finish_one();
    }

    fn finish_one(self: &Rc<Self>) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.pump();
    }

    fn buffer(&self, blocks: u64) -> Result<DmaBuf, Error> {
        let len = blocks as usize * self.block_bytes;
        let pooled = if len == CHUNK_BYTES { self.pool.0.borrow_mut().pop() } else { None };
        pooled.map_or_else(|| self.host.alloc(len, 4096, -1), Ok)
    }
}

impl Pool {
    fn give(&self, buffer: DmaBuf) {
        let mut kept = self.0.borrow_mut();
        if buffer.len() == CHUNK_BYTES && kept.len() < POOLED {
            kept.push(buffer);
        }
    }
}

fn cannot_write(status: IoStatus) -> Error {
    Error::io("a member cannot be written").caused_by(format!("i/o status {}", status.0))
}

/// Bytes of a member read and written at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks in flight.
const CHUNKS: usize = 8;
/// Chunks of memory kept.
const POOLED: usize = 64;
