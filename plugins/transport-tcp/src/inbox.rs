//! What a connection has received and not understood yet, and the chunks of
//! memory that bytes are received into.
//!
//! A connection has a chunk while its bytes are looked at, and as long as a
//! command uses data that lies in it. The beginning of a PDU whose rest has not
//! come is kept in a small stash, so that a connection that waits has no chunk:
//! all connections of a reactor take turns with the same few, which stay in the
//! cache. Does not receive and does not know what bytes mean.
// UNSAFETY: bytes that are received lie next to bytes that a command reads, in one chunk.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use tenon_sdk::IoVec;

/// Memory that bytes are received into.
#[derive(Debug)]
pub struct Chunk {
    memory: NonNull<u8>,
}

/// Chunks that nobody uses.
#[derive(Debug, Default)]
pub struct ChunkPool {
    idle: RefCell<Vec<Rc<Chunk>>>,
    /// Chunks there are.
    made: Rc<Cell<usize>>,
}

/// The receiving end of one connection.
#[derive(Debug)]
pub struct Inbox {
    /// Used by commands, and not full.
    kept: Option<Rc<Chunk>>,
    /// Bytes of `kept` that are taken.
    taken: usize,
    /// Chunks that are full and still used by commands.
    full: Vec<Rc<Chunk>>,
    stash: Box<[u8]>,
    stashed: usize,
}

/// Room to receive into: a part of a chunk whose first bytes are what was stashed.
#[derive(Debug)]
pub struct Room {
    chunk: Rc<Chunk>,
    start: usize,
    /// Behind the last byte that is there.
    end: usize,
}

impl Chunk {
    fn layout() -> Layout {
        Layout::from_size_align(CHUNK_BYTES, CHUNK_ALIGN).expect("a size and a power of two make a layout")
    }

    fn new() -> Self {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(Self::layout()) };
        match NonNull::new(memory) {
            Some(memory) => Self { memory },
            None => handle_alloc_error(Self::layout()),
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: made by `new` with the same layout.
        unsafe { dealloc(self.memory.as_ptr(), Self::layout()) };
    }
}

impl ChunkPool {
    fn get(&self) -> Rc<Chunk> {
        let reused = self.idle.borrow_mut().pop();
        reused.unwrap_or_else(|| {
            self.made.set(self.made.get() + 1);
            Rc::new(Chunk::new())
        })
    }

    /// Takes back a chunk that nobody else has.
    fn put(&self, chunk: Rc<Chunk>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MAX_IDLE_CHUNKS {
            idle.push(chunk);
        } else {
            self.made.set(self.made.get() - 1);
        }
    }

    /// Chunks in use.
    pub fn in_use(&self) -> usize {
        self.made.get() - self.idle.borrow().len()
    }
}

impl Inbox {
    /// For a connection whose PDUs need at most `contiguous` bytes in one piece.
    pub fn new(contiguous: usize) -> Self {
        assert!(contiguous <= CHUNK_BYTES / 2, "the largest capsule fits a chunk");
        let stash = vec![0; contiguous].into();
        Self { kept: None, taken: 0, full: Vec::with_capacity(MAX_FULL_CHUNKS), stash, stashed: 0 }
    }

    /// Room for at least half a chunk; `None` while commands use too many chunks: they have to end first.
    pub fn room(&mut self, pool: &ChunkPool) -> Option<Room> {
        self.reclaim(pool);
        let (chunk, start) = match self.kept.take() {
            Some(chunk) if self.taken <= CHUNK_BYTES / 2 => (chunk, self.taken),
            Some(chunk) if self.full.len() < MAX_FULL_CHUNKS => {
                self.full.push(chunk);
                (pool.get(), 0)
            }
            Some(chunk) => {
                self.kept = Some(chunk);
                return None;
            }
            None => (pool.get(), 0),
        };
        let mut room = Room { chunk, start, end: start };
        room.append(&self.stash[..self.stashed]);
        self.stashed = 0;
        Some(room)
    }

    /// Puts the bytes from `from` on aside; they are fewer than a PDU. The chunk is kept if a command uses it.
    pub fn close(&mut self, room: Room, from: usize, pool: &ChunkPool) {
        let rest = room.bytes(from);
        self.stash[..rest.len()].copy_from_slice(rest);
        self.stashed = rest.len();
        if Rc::strong_count(&room.chunk) == 1 {
            return pool.put(room.chunk);
        }
        self.taken = room.end.next_multiple_of(CHUNK_ALIGN).min(CHUNK_BYTES);
        self.kept = Some(room.chunk);
    }

    /// Whether [`Inbox::room`] has none.
    pub fn is_blocked(&self) -> bool {
        let in_use = |chunk: &Rc<Chunk>| Rc::strong_count(chunk) > 1;
        self.full.len() >= MAX_FULL_CHUNKS
            && self.taken > CHUNK_BYTES / 2
            && self.kept.iter().chain(&self.full).all(in_use)
    }

    /// Gives every chunk back that no command uses.
    pub fn reclaim(&mut self, pool: &ChunkPool) {
        if let Some(chunk) = self.kept.take_if(|chunk| Rc::strong_count(chunk) == 1) {
            pool.put(chunk);
        }
        while let Some(at) = self.full.iter().position(|chunk| Rc::strong_count(chunk) == 1) {
            pool.put(self.full.swap_remove(at));
        }
    }
}

impl Room {
    /// The chunk, for a command that uses bytes of it.
    pub fn chunk(&self) -> &Rc<Chunk> {
        &self.chunk
    }

    /// Offset in the chunk at which bytes begin.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Offset behind the last byte that is there.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Where at most `most` more bytes can be received to.
    pub fn spare(&self, most: usize) -> IoVec {
        let len = most.min(CHUNK_BYTES - self.end);
        // SAFETY: `end` is inside the chunk.
        let base = unsafe { self.chunk.memory.add(self.end) };
        IoVec { base: base.as_ptr().cast(), len }
    }

    /// `count` bytes were received to where [`Room::spare`] said.
    pub fn received(&mut self, count: usize) {
        assert!(count <= CHUNK_BYTES - self.end, "{count} bytes received, more than there is room for");
        self.end += count;
    }

    /// The bytes that are there, from the offset `from` in the chunk on.
    pub fn bytes(&self, from: usize) -> &[u8] {
        assert!(from >= self.start && from <= self.end, "bytes from {from} on are not there");
        // SAFETY: the range is inside the chunk and initialised, and nobody writes to it: what is received goes
        // behind `end`, and `append` borrows the room mutably.
        unsafe { std::slice::from_raw_parts(self.chunk.memory.add(from).as_ptr(), self.end - from) }
    }

    fn append(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= CHUNK_BYTES - self.end, "a stash fits half a chunk");
        // SAFETY: the range behind `end` is inside the chunk, and no command uses it.
        unsafe {
            self.chunk.memory.add(self.end).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
        self.end += bytes.len();
    }
}

/// Bytes of a chunk: what is received at once, at most. Small enough to stay in a core's second-level cache.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Data of two commands does not share a cache line.
const CHUNK_ALIGN: usize = 64;
/// Chunks kept for later on a reactor; more are given back to the system.
const MAX_IDLE_CHUNKS: usize = 64;
/// Full chunks of one connection that commands may use, beside the one that is being filled.
const MAX_FULL_CHUNKS: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(room: &mut Room, bytes: &[u8]) {
        let spare = room.spare(bytes.len());
        assert_eq!(spare.len, bytes.len());
        // SAFETY: the room is ours, and large enough.
        unsafe { spare.base.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        room.received(bytes.len());
    }

    #[test]
    fn a_connection_that_waits_has_no_chunk_and_keeps_its_rest() {
        let pool = ChunkPool::default();
        let mut inbox = Inbox::new(100);
        let mut room = inbox.room(&pool).expect("room");
        receive(&mut room, b"whole and par");
        let from = room.start() + 10;
        inbox.close(room, from, &pool);
        assert_eq!(pool.in_use(), 0);
        let mut room = inbox.room(&pool).expect("room");
        receive(&mut room, b"t");
        assert_eq!(room.bytes(room.start()), b"part");
        let end = room.start() + 4;
        inbox.close(room, end, &pool);
        assert_eq!((pool.in_use(), pool.made.get()), (0, 1));
    }

    #[test]
    fn data_in_use_is_not_overwritten_and_chunks_are_bounded() {
        let pool = ChunkPool::default();
        let mut inbox = Inbox::new(100);
        let mut used = Vec::new();
        let data = [7; CHUNK_BYTES / 2];
        while let Some(mut room) = inbox.room(&pool) {
            receive(&mut room, &data);
            used.push((room.chunk().clone(), room.start()));
            let end = room.start() + data.len();
            inbox.close(room, end, &pool);
            assert!(used.len() < 100, "bounded");
        }
        assert_eq!(used.len(), 2 * (MAX_FULL_CHUNKS + 1));
        for (chunk, start) in &used {
            // SAFETY: the chunk is alive and the range initialised.
            let bytes = unsafe { std::slice::from_raw_parts(chunk.memory.add(*start).as_ptr(), data.len()) };
            assert_eq!(bytes, data);
        }
        used.clear();
        assert!(inbox.room(&pool).is_some(), "commands have ended");
        assert_eq!(pool.in_use(), 1);
    }
}
