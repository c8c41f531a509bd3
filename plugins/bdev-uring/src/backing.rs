//! The file or block device behind a device: opening it, what it can do, and
//! what the data path needs of it but must not wait for. Everything here may
//! block and runs on worker threads, except where it says otherwise.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Statx, StatxFlags, fallocate, flock, statx};
use tenon_sdk::{ByteSize, Error, errno};
use uuid::Uuid;

use crate::config::{UringParams, is_block_size};
use crate::discard;

/// An open file.
#[derive(Debug)]
pub struct Backing {
    file: File,
    identity: Identity,
    geometry: Geometry,
    /// The file system may have lost writes; see [`Backing::note_lost_writes`].
    has_lost_writes: AtomicBool,
}

/// Tells one file from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Of a block device.
    number: u64,
}

/// What an open file is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Logical block in bytes.
    pub block_size: u32,
    /// Physical block in bytes, a multiple of `block_size`.
    pub physical_block_size: u32,
    /// Capacity.
    pub num_blocks: u64,
    /// What memory must be aligned to, in bytes.
    pub memory_alignment: u32,
    /// The page cache is bypassed.
    pub is_direct: bool,
    /// A block device of the kernel.
    pub is_block_device: bool,
    /// Ranges can be deallocated.
    pub can_punch: bool,
    /// Identity, if the file has one that lasts.
    pub uuid: Option<Uuid>,
}

/// What direct I/O on a file needs.
#[derive(Clone, Copy)]
struct Alignment {
    memory: u32,
    offset: u32,
}

impl Backing {
    /// Opens the file of a device, or makes it if the parameters say so.
    pub fn open(params: &UringParams) -> Result<Backing, Error> {
        let path = &params.filename;
        let (file, is_direct) = open_or_create(path, params)?;
        let opened = match Backing::of_file(file, is_direct, params) {
            Err(Unfit::ForDirect(reason)) => {
                log::warn!("file is used through the page cache path={} reason=\"{reason}\"", path.display());
                let file = open_file(path, params, false).map_err(|error| failed(path, "open", &error))?;
                Backing::of_file(file, false, params)
            }
            other => other,
        };
        opened.map_err(|unfit| match unfit {
            Unfit::ForDirect(reason) => Error::invalid(reason),
            Unfit::At(error) => error,
        })
    }

    fn of_file(file: File, is_direct: bool, params: &UringParams) -> Result<Backing, Unfit> {
        let path = &params.filename;
        let metadata = file.metadata().map_err(|error| failed(path, "look at", &error))?;
        check_type(path, metadata.file_type())?;
        lock(&file, params)?;
        let geometry = geometry_of(&file, &metadata, is_direct, params)?;
        if is_direct {
            probe(&file, geometry)?;
        }
        let identity = Identity::of(&metadata);
        Ok(Backing { file, identity, geometry, has_lost_writes: AtomicBool::new(false) })
    }

    /// Which file it is. Does not block.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// What it is like. Does not block.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Its descriptor, as long as this lives. Does not block.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Deallocates a range of a block device that cannot do so by `fallocate`.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        discard::discard(self.file.as_fd(), offset, len)
    }

    /// A flush failed. If the page cache is between, the kernel has dropped what it could not write and would report
    /// success next time, so every later flush has to fail. Does not block.
    pub fn note_lost_writes(&self) {
        if !self.geometry.is_direct && !self.has_lost_writes.swap(true, Ordering::Relaxed) {
            log::error!("writes may be lost, every flush fails from now on fd={}", self.raw_fd());
        }
    }

    /// True after [`Backing::note_lost_writes`]. Does not block.
    pub fn has_lost_writes(&self) -> bool {
        self.has_lost_writes.load(Ordering::Relaxed)
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // A ring that ends later than this must not keep others from locking the file.
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            log::debug!("file was not locked error=\"{error}\"");
        }
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Identity {
        Identity { device: metadata.dev(), inode: metadata.ino(), number: metadata.rdev() }
    }
}

/// What there is at a path.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Which file.
    pub identity: Identity,
    /// Its size, if that can be found out.
    pub bytes: Option<u64>,
}

impl Found {
    /// Looks at `path`; `None`: no file is there, or none that can be seen.
    pub fn at(path: &Path) -> Option<Found> {
        let metadata = std::fs::metadata(path).ok()?;
        let bytes = match metadata.file_type().is_block_device() {
            true => File::open(path).and_then(|file| size_of(&file)).ok(),
            false => Some(metadata.len()),
        };
        Some(Found { identity: Identity::of(&metadata), bytes })
    }
}

/// Why a file cannot be used.
enum Unfit {
    /// It can, through the page cache.
    ForDirect(String),
    At(Error),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Unfit::At(error)
    }
}

/// The file, and whether it is open for direct I/O.
fn open_or_create(path: &Path, params: &UringParams) -> Result<(File, bool), Error> {
    match std::fs::metadata(path) {
        Ok(metadata) => check_type(path, metadata.file_type())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => match params.create_size {
            Some(size) => create(path, size).map_err(|error| failed(path, "create", &error))?,
            None => return Err(failed(path, "open", &error)),
        },
        Err(error) => return Err(failed(path, "look at", &error)),
    }
    match open_file(path, params, params.direct) {
        Err(error) if params.direct && error.raw_os_error() == Some(libc::EINVAL) => {
            log::warn!("file system does no direct I/O, the page cache is used path={}", path.display());
            let file = open_file(path, params, false).map_err(|error| failed(path, "open", &error))?;
            Ok((file, false))
        }
        Ok(file) => Ok((file, params.direct)),
        Err(error) => Err(failed(path, "open", &error)),
    }
}

fn open_file(path: &Path, params: &UringParams, is_direct: bool) -> io::Result<File> {
    let is_block_device = std::fs::metadata(path)?.file_type().is_block_device();
    let mut flags = if is_direct { libc::O_DIRECT } else { 0 };
    if is_block_device && !params.readonly {
        // Fails while the kernel uses it, e.g. because it is mounted.
        flags |= libc::O_EXCL;
    }
    OpenOptions::new().read(true).write(!params.readonly).custom_flags(flags).open(path)
}

/// Makes a sparse file; nothing is left of it if that fails.
fn create(path: &Path, size: ByteSize) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(size.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })?;
    log::info!("file created path={} size={}", path.display(), size.as_bytes());
    Ok(())
}

fn check_type(path: &Path, kind: FileType) -> Result<(), Error> {
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let reason = "is neither a regular file nor a block device";
    Err(Error::new(errno::EINVAL, reason).object(path.display().to_string()))
}

/// Keeps other processes that ask from using the file as well. Waits for a lock of one that is dead: the kernel ends
/// a ring, and with it the lock, when its last I/O is over, which may be seconds after the process.
fn lock(file: &File, params: &UringParams) -> Result<(), Error> {
    let how = match params.readonly {
        true => FlockOperation::NonBlockingLockShared,
        false => FlockOperation::NonBlockingLockExclusive,
    };
    let mut result = flock(file, how);
    for _ in 0..LOCK_ATTEMPTS {
        if result != Err(rustix::io::Errno::WOULDBLOCK) || !is_locked_by_the_dead(file) {
            break;
        }
        std::thread::sleep(LOCK_PAUSE);
        result = flock(file, how);
    }
    match result {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let path = params.filename.display().to_string();
            Err(Error::busy("another process or device uses the file").object(path))
        }
        Err(error) => {
            log::warn!("file cannot be locked path={} error=\"{error}\"", params.filename.display());
            Ok(())
        }
    }
}

/// Whether no process that lives has a lock on the file. One that has let go meanwhile counts as dead.
fn is_locked_by_the_dead(file: &File) -> bool {
    let (Ok(metadata), Ok(locks)) = (file.metadata(), std::fs::read_to_string("/proc/locks")) else {
        return false;
    };
    let inode = metadata.ino().to_string();
    lock_owners(&locks, &inode).all(|pid| pid != 0 && !is_alive(pid))
}

/// Whether a process lives; one whose parent has not asked for its end does not.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // Its state follows its name, which may hold anything.
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    !matches!(state, Some("Z" | "X"))
}

/// Processes with a lock of `flock` on an inode, whatever file system it is of: some name another device here than
/// in the file's metadata. 0 is a process that this one cannot see.
fn lock_owners<'a>(locks: &'a str, inode: &'a str) -> impl Iterator<Item = u32> {
    // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
    let owner = move |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next()?;
        let (pid, place) = (words.nth(2)?, words.next()?);
        (kind == "FLOCK" && place.rsplit(':').next() == Some(inode)).then(|| pid.parse().unwrap_or(0))
    };
    // Those who wait for a lock have an arrow there.
    locks.lines().filter_map(owner)
}

fn geometry_of(
    file: &File,
    metadata: &Metadata,
    is_direct: bool,
    params: &UringParams,
) -> Result<Geometry, Unfit> {
    let path = &params.filename;
    let look_at = |error: &io::Error| failed(path, "look at", error);
    let is_block_device = metadata.file_type().is_block_device();
    let facts = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME | StatxFlags::DIOALIGN)
        .map_err(|error| look_at(&error.into()))?;
    let alignment = if is_direct { direct_alignment(&facts)? } else { Alignment { memory: 1, offset: 1 } };
    let (logical, physical) = if is_block_device {
        let logical = rustix::fs::ioctl_blksszget(file).map_err(|error| look_at(&error.into()))?;
        let physical = rustix::fs::ioctl_blkpbszget(file).map_err(|error| look_at(&error.into()))?;
        (logical.max(alignment.offset), physical)
    } else {
        (alignment.offset, u32::try_from(metadata.blksize()).unwrap_or(0))
    };
    let block_size = params.block_size.unwrap_or(logical.max(MIN_BLOCK_SIZE));
    if block_size < alignment.offset {
        let offset = alignment.offset;
        return Err(Unfit::ForDirect(format!(
            "direct I/O needs blocks of {offset}, not of {block_size} bytes"
        )));
    }
    if !is_block_size(block_size) {
        let reason = format!("has blocks of {block_size} bytes, which no device can have");
        return Err(Unfit::At(Error::invalid(reason).object(path.display().to_string())));
    }
    let num_blocks = size_of(file).map_err(|error| look_at(&error))? / u64::from(block_size);
    if num_blocks == 0 {
        let reason = format!("is smaller than a block of {block_size} bytes");
        return Err(Unfit::At(Error::invalid(reason).object(path.display().to_string())));
    }
    Ok(Geometry {
        block_size,
        physical_block_size: if physical > block_size && physical % block_size == 0 {
            physical
        } else {
            block_size
        },
        num_blocks,
        memory_alignment: alignment.memory,
        is_direct,
        is_block_device,
        can_punch: is_block_device || can_punch(file, metadata),
        uuid: if is_block_device { None } else { uuid_of(metadata, &facts) },
    })
}

/// What the kernel says about direct I/O; a kernel that says nothing gets pages, which suit every device.
fn direct_alignment(facts: &Statx) -> Result<Alignment, Unfit> {
    let (memory, offset) = (facts.stx_dio_mem_align, facts.stx_dio_offset_align);
    if facts.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Ok(Alignment { memory: 4096, offset: MIN_BLOCK_SIZE });
    }
    if memory == 0 || offset == 0 {
        return Err(Unfit::ForDirect("the file system does no direct I/O on it".to_owned()));
    }
    Ok(Alignment { memory: memory.next_power_of_two(), offset: offset.next_power_of_two() })
}

/// Reads the first block: only that tells whether direct I/O works.
fn probe(file: &File, geometry: Geometry) -> Result<(), Unfit> {
    let (len, align) = (geometry.block_size as usize, geometry.memory_alignment.max(4096) as usize);
    let mut memory = vec![0; len + align];
    let start = memory.as_ptr().align_offset(align);
    let block = memory.get_mut(start..start + len).unwrap_or_default();
    match rustix::io::pread(file, block, 0) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::INVAL) => Err(Unfit::ForDirect("direct I/O is refused".to_owned())),
        Err(error) => Err(Unfit::At(Error::from(io::Error::from(error)))),
    }
}

/// Tries with the range behind the end, which changes nothing. A block device learns it when it is asked to.
fn can_punch(file: &File, metadata: &Metadata) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, mode, metadata.len().next_multiple_of(65_536), 65_536).is_ok()
}

/// The same inode, made at the same time, is the same device at every start.
fn uuid_of(metadata: &Metadata, facts: &Statx) -> Option<Uuid> {
    let has_birth = facts.stx_mask & StatxFlags::BTIME.bits() != 0;
    let born = (facts.stx_btime.tv_sec, facts.stx_btime.tv_nsec);
    let text = format!("tenon uring file {} {} {}", metadata.ino(), born.0, born.1);
    has_birth.then(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()))
}

/// Also of a block device, whose metadata says 0.
fn size_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Error {
    let code = error.raw_os_error().map_or(errno::EIO, |number| -number);
    // "No such device" would make the host wait for a device of that name.
    let code = if code == errno::ENODEV { errno::EIO } else { code };
    let text = error.to_string();
    let cause = text.split(" (os error").next().unwrap_or(&text).to_lowercase();
    Error::new(code, format!("cannot {what} the file")).object(path.display().to_string()).caused_by(cause)
}

/// Where a file is, whatever the working directory will be.
pub fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|error| failed(path, "find", &error))
}

const MIN_BLOCK_SIZE: u32 = 512;
/// How often a lock of a dead process is tried again: for half a minute in all, as long as a disk may take for an I/O.
const LOCK_ATTEMPTS: u32 = 3000;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_of_a_lock_are_those_that_have_it() {
        let locks = "1: FLOCK  ADVISORY  WRITE 12 fe:00:5678 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 13 fe:00:5678 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 14 fe:00:5678 0 EOF\n\
                     3: FLOCK  ADVISORY  READ  15 00:1a:5678 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 16 fe:00:56 0 EOF\n\
                     5: FLOCK\n";
        assert_eq!(lock_owners(locks, "5678").collect::<Vec<_>>(), [12, 15]);
        assert_eq!(lock_owners(locks, "7").count(), 0);
    }
}
