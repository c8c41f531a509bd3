//! What must be on the medium: two words per chunk, what is settled there and
//! what was sent last. While a write is in flight, or after a crash cut it off,
//! either may be found.
//!
//! The words lie in mapped memory, of a file if there is to be something left
//! after a crash: what was stored before the process was killed is in the file.
//! Each chunk is touched by one worker only.
// UNSAFETY: maps memory and makes a slice of it.

use std::ffi::c_void;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Anything.
    Unknown,
    /// The pattern of this write.
    Data(u32),
    /// Zeroes, since this UNMAP.
    Zeroes(u32),
}

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The kernel says no.
    #[error("state file {file}: {reason}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// It was made for another workload or device, or is none.
    #[error("state file {file}: {what} is {found}, not {expected}; remove the file to start anew")]
    Differs {
        /// The file.
        file: String,
        /// What differs.
        what: &'static str,
        /// As the file has it.
        found: u64,
        /// As the device and the workload have it.
        expected: u64,
    },
    /// There is nothing to check.
    #[error("state file {0}: does not exist, so there is nothing to check")]
    Missing(String),
    /// No memory for the expected state.
    #[error("no memory to keep the state of {chunks} blocks: {reason}")]
    Memory {
        /// How many.
        chunks: u64,
        /// Why.
        reason: String,
    },
}

/// What a ledger is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub block_size: u32,
    pub chunk_bytes: u64,
    pub chunks: u64,
}

/// The expected content of a device.
pub(crate) struct Ledger {
    memory: *mut c_void,
    len: usize,
    chunks: u64,
    salt: u64,
    is_loaded: bool,
    file: Option<PathBuf>,
}

// SAFETY: the memory is only read and written as atomics, until the last reference is dropped.
unsafe impl Send for Ledger {}
// SAFETY: as above.
unsafe impl Sync for Ledger {}

impl Ledger {
    /// An empty ledger in memory.
    pub(crate) fn in_memory(geometry: Geometry, salt: u64) -> Result<Self, StateError> {
        let len = len_of(geometry)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let mapped = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        let memory = mapped
            .map_err(|error| StateError::Memory { chunks: geometry.chunks, reason: error.to_string() })?;
        Ok(Ledger { memory, len, chunks: geometry.chunks, salt, is_loaded: false, file: None })
    }

    /// The ledger in `path`, made with `salt` if there is none.
    pub(crate) fn in_file(path: &Path, geometry: Geometry, salt: u64) -> Result<Self, StateError> {
        let failed = |error: &dyn fmt::Display| StateError::Io {
            file: path.display().to_string(),
            reason: error.to_string(),
        };
        let len = len_of(geometry)?;
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(|error| failed(&error))?;
        let header = read_header(&mut file).map_err(|error| failed(&error))?;
        let (salt, is_loaded) = match header {
            Some(header) => (header.check(path, geometry)?, true),
            None => {
                file.set_len(len as u64).map_err(|error| failed(&error))?;
                Header::new(geometry, salt).write(&mut file).map_err(|error| failed(&error))?;
                (salt, false)
            }
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice; the file is as long as the mapping.
        let mapped = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)
        };
        let memory = mapped.map_err(|error| failed(&error))?;
        let file = Some(path.to_owned());
        Ok(Ledger { memory, len, chunks: geometry.chunks, salt, is_loaded, file })
    }

    /// Tells the data of this ledger from that of others.
    pub(crate) fn salt(&self) -> u64 {
        self.salt
    }

    /// Whether it says something of an earlier run.
    pub(crate) fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// What a chunk may hold: what is settled, and what was sent last.
    pub(crate) fn expected(&self, chunk: u64) -> [Content; 2] {
        let [settled, sent] = self.words(chunk);
        [decode(settled.load(Ordering::Relaxed)), decode(sent.load(Ordering::Relaxed))]
    }

    /// Whether something can be said of a chunk.
    pub(crate) fn is_known(&self, chunk: u64) -> bool {
        !self.expected(chunk).contains(&Content::Unknown)
    }

    /// A write of the chunk is about to be sent; gives its sequence number.
    pub(crate) fn begin_write(&self, chunk: u64) -> u32 {
        let sequence = self.next_sequence(chunk);
        self.words(chunk)[1].store(encode(KIND_DATA, sequence), Ordering::Release);
        sequence
    }

    /// An UNMAP of the chunk is about to be sent.
    pub(crate) fn begin_unmap(&self, chunk: u64, reads_zeroes: bool) {
        let kind = if reads_zeroes { KIND_ZEROES } else { KIND_UNKNOWN };
        let sequence = self.next_sequence(chunk);
        self.words(chunk)[1].store(encode(kind, sequence), Ordering::Release);
    }

    /// What was sent has been completed.
    pub(crate) fn settle(&self, chunk: u64) {
        let [settled, sent] = self.words(chunk);
        settled.store(sent.load(Ordering::Relaxed), Ordering::Release);
    }

    /// Numbers begin again after a thousand million writes of one chunk.
    fn next_sequence(&self, chunk: u64) -> u32 {
        let [settled, sent] = self.words(chunk);
        let newest =
            (settled.load(Ordering::Relaxed) & SEQUENCE).max(sent.load(Ordering::Relaxed) & SEQUENCE);
        if newest >= SEQUENCE { 1 } else { newest + 1 }
    }

    fn words(&self, chunk: u64) -> [&AtomicU32; 2] {
        assert!(chunk < self.chunks, "chunk {chunk} of {}", self.chunks);
        let offset = HEADER_BYTES + chunk as usize * WORDS_BYTES;
        // SAFETY: the mapping is `HEADER_BYTES` and `chunks` pairs of words long, page aligned, and lives as
        // long as `self`; a file mapped here is never shortened by this process.
        unsafe {
            let first = self.memory.byte_add(offset).cast::<AtomicU32>();
            [&*first, &*first.add(1)]
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: mapped by the constructor with this length; no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.memory, self.len) };
        if let Err(error) = unmapped {
            log::warn!("state is not unmapped file={:?} error={error}", self.file);
        }
    }
}

impl Content {
    /// Number of the write or UNMAP; 0 if unknown.
    pub(crate) fn sequence(self) -> u32 {
        match self {
            Content::Unknown => 0,
            Content::Data(sequence) | Content::Zeroes(sequence) => sequence,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Unknown => f.write_str("anything"),
            Content::Data(sequence) => write!(f, "write {sequence}"),
            Content::Zeroes(sequence) => write!(f, "zeroes (unmap {sequence})"),
        }
    }
}

fn encode(kind: u32, sequence: u32) -> u32 {
    kind | sequence
}

fn decode(word: u32) -> Content {
    match (word & !SEQUENCE, word & SEQUENCE) {
        (KIND_DATA, 1..) => Content::Data(word & SEQUENCE),
        (KIND_ZEROES, _) => Content::Zeroes(word & SEQUENCE),
        _ => Content::Unknown,
    }
}

fn len_of(geometry: Geometry) -> Result<usize, StateError> {
    let len =
        (geometry.chunks as usize).checked_mul(WORDS_BYTES).and_then(|len| len.checked_add(HEADER_BYTES));
    len.ok_or(StateError::Memory { chunks: geometry.chunks, reason: "too many".to_owned() })
}

/// The first page of a state file: eight words, little endian.
struct Header([u64; 6]);

impl Header {
    fn new(geometry: Geometry, salt: u64) -> Self {
        let Geometry { block_size, chunk_bytes, chunks } = geometry;
        Header([MAGIC, FORMAT, u64::from(block_size), chunk_bytes, chunks, salt])
    }

    fn write(&self, file: &mut File) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER_WORDS_BYTES);
        self.0.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&bytes)
    }

    /// The salt, if the rest fits.
    fn check(&self, path: &Path, geometry: Geometry) -> Result<u64, StateError> {
        let own = Header::new(geometry, self.0[5]);
        let names =
            ["its mark", "its format", "the block size", "the I/O size", "the number of I/Os", "the salt"];
        for ((found, expected), what) in self.0.iter().zip(own.0).zip(names) {
            if *found != expected {
                let file = path.display().to_string();
                return Err(StateError::Differs { file, what, found: *found, expected });
            }
        }
        Ok(self.0[5])
    }
}

/// `None`: the file is new, or its maker died before anything was written to the device.
fn read_header(file: &mut File) -> std::io::Result<Option<Header>> {
    let mut bytes = Vec::with_capacity(HEADER_WORDS_BYTES);
    file.seek(SeekFrom::Start(0))?;
    file.take(HEADER_WORDS_BYTES as u64).read_to_end(&mut bytes)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    bytes.resize(HEADER_WORDS_BYTES, 0);
    let mut words = [0; 6];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    Ok(Some(Header(words)))
}

const MAGIC: u64 = 0x7265_6764_656c_7470;
const FORMAT: u64 = 1;
const HEADER_WORDS_BYTES: usize = 48;
/// A page, so that the words begin on one.
const HEADER_BYTES: usize = 4096;
const WORDS_BYTES: usize = 8;
const SEQUENCE: u32 = (1 << 30) - 1;
const KIND_DATA: u32 = 0;
const KIND_ZEROES: u32 = 1 << 30;
const KIND_UNKNOWN: u32 = 2 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { block_size: 512, chunk_bytes: 4096, chunks: 1000 };

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tenon-perf-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn an_untouched_chunk_may_hold_anything() {
        let ledger = Ledger::in_memory(GEOMETRY, 1).unwrap();
        assert_eq!(ledger.expected(999), [Content::Unknown; 2]);
        assert!(!ledger.is_known(999));
    }

    #[test]
    fn a_write_in_flight_leaves_both_possible_and_settles_when_completed() {
        let ledger = Ledger::in_memory(GEOMETRY, 1).unwrap();
        assert_eq!(ledger.begin_write(3), 1);
        assert!(!ledger.is_known(3), "the old content was unknown and may still be there");
        ledger.settle(3);
        assert_eq!(ledger.expected(3), [Content::Data(1); 2]);
        assert_eq!(ledger.begin_write(3), 2);
        assert_eq!(ledger.expected(3), [Content::Data(1), Content::Data(2)]);
        ledger.settle(3);
        ledger.begin_unmap(3, true);
        assert_eq!(ledger.expected(3), [Content::Data(2), Content::Zeroes(3)]);
        ledger.settle(3);
        ledger.begin_unmap(3, false);
        ledger.settle(3);
        assert!(!ledger.is_known(3));
    }

    #[test]
    fn a_failed_write_leaves_both_possible_and_the_next_one_has_a_new_number() {
        let ledger = Ledger::in_memory(GEOMETRY, 1).unwrap();
        ledger.begin_write(0);
        ledger.settle(0);
        assert_eq!((ledger.begin_write(0), ledger.begin_write(0)), (2, 3));
        assert_eq!(ledger.expected(0), [Content::Data(1), Content::Data(3)]);
    }

    #[test]
    fn a_file_keeps_the_state_and_the_salt() {
        let path = scratch("keeps");
        let ledger = Ledger::in_file(&path, GEOMETRY, 77).unwrap();
        assert!(!ledger.is_loaded());
        ledger.begin_write(5);
        drop(ledger);
        let ledger = Ledger::in_file(&path, GEOMETRY, 78).unwrap();
        assert!(ledger.is_loaded());
        assert_eq!((ledger.salt(), ledger.expected(5)), (77, [Content::Unknown, Content::Data(1)]));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_of_another_workload_is_refused_with_what_differs() {
        let path = scratch("differs");
        drop(Ledger::in_file(&path, GEOMETRY, 1).unwrap());
        let other = Geometry { chunk_bytes: 8192, ..GEOMETRY };
        let error = Ledger::in_file(&path, other, 1).map(|_| ()).unwrap_err().to_string();
        assert!(error.ends_with("the I/O size is 4096, not 8192; remove the file to start anew"), "{error}");
        std::fs::write(&path, "something else entirely").unwrap();
        assert!(Ledger::in_file(&path, GEOMETRY, 1).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
