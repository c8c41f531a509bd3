//! Opening a plugin file once, and deciding through that descriptor whether
//! its code may run inside the host.
//!
//! Code in a plugin has every right the host has, so the file and the
//! directory that can replace it must belong to root or to the host's user and
//! be writable by nobody else. All checks are made on open descriptors (`fstat`),
//! so that nothing can be exchanged between a check and the use.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

use crate::error::{LoadError, Place, PluginError};

/// Largest plugin file.
pub(crate) const MAX_PLUGIN_BYTES: u64 = 1 << 30;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Who may own a plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// File and directory belong to root or to the user of this process, and only their owner may write.
    #[default]
    Owner,
    /// Anything goes: for a developer's machine.
    Off,
}

/// Identity of a file's content as far as `fstat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    size: u64,
    modified_s: i64,
    modified_ns: u64,
    changed_s: i64,
    changed_ns: u64,
}

impl FileId {
    fn of(stat: &Stat) -> FileId {
        // The width of these fields differs between architectures.
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        FileId {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: stat.st_size as u64,
            modified_s: stat.st_mtime as i64,
            modified_ns: stat.st_mtime_nsec as u64,
            changed_s: stat.st_ctime as i64,
            changed_ns: stat.st_ctime_nsec as u64,
        }
    }

    /// Identity of what `path` names now; `None` if it names nothing.
    pub(crate) fn of_path(path: &Path) -> Option<FileId> {
        rustix::fs::stat(path).ok().map(|stat| FileId::of(&stat))
    }

    /// True if both are the same file with the same content; its permissions and names may differ.
    pub(crate) fn is_same_content(&self, other: &FileId) -> bool {
        FileId { changed_s: 0, changed_ns: 0, ..*self } == FileId { changed_s: 0, changed_ns: 0, ..*other }
    }

    /// True if both are the same file, whatever became of its content.
    pub(crate) fn is_same_file(&self, other: &FileId) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// A plugin file, open and trusted.
#[derive(Debug)]
pub(crate) struct TrustedFile {
    /// Its path without symbolic links.
    pub(crate) path: PathBuf,
    /// Open for reading, at its start.
    pub(crate) file: File,
    pub(crate) id: FileId,
    pub(crate) size: u64,
}

impl TrustedFile {
    /// Opens `path`, with symbolic links resolved: the directory that counts is the one the file is in.
    pub(crate) fn open(path: &Path, trust: Trust) -> Result<TrustedFile, PluginError> {
        Self::open_checked(path, trust).map_err(|fault| PluginError::new(path, fault))
    }

    fn open_checked(path: &Path, trust: Trust) -> Result<TrustedFile, LoadError> {
        let resolved = path.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => LoadError::NotFound,
            _ => LoadError::Unreadable { step: "resolve its path", cause: error.to_string() },
        })?;
        let (Some(directory), Some(name)) = (resolved.parent(), resolved.file_name()) else {
            return Err(LoadError::NotRegularFile { kind: "a directory" });
        };
        let parent = open_at(
            openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()),
            "open its directory",
        )?;
        check_owner(&stat_of(&parent)?, directory, Place::Directory, trust)?;
        // NONBLOCK: opening a pipe must not wait for a writer. NOFOLLOW: the path has no links any more.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = open_at(openat(&parent, name, flags, Mode::empty()), "open it")?;
        let stat = stat_of(&file)?;
        if let Some(kind) = not_regular(FileType::from_raw_mode(stat.st_mode)) {
            return Err(LoadError::NotRegularFile { kind });
        }
        check_owner(&stat, &resolved, Place::File, trust)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size > MAX_PLUGIN_BYTES {
            return Err(LoadError::TooLarge { size, max: MAX_PLUGIN_BYTES });
        }
        Ok(TrustedFile { path: resolved, file: File::from(file), id: FileId::of(&stat), size })
    }
}

fn open_at(result: Result<OwnedFd, Errno>, step: &'static str) -> Result<OwnedFd, LoadError> {
    result.map_err(|errno| match errno {
        Errno::NOENT => LoadError::NotFound,
        Errno::NXIO => LoadError::NotRegularFile { kind: "a socket or device" },
        errno => LoadError::Unreadable { step, cause: std::io::Error::from(errno).to_string() },
    })
}

fn stat_of(file: &OwnedFd) -> Result<Stat, LoadError> {
    fstat(file).map_err(|errno| LoadError::Unreadable {
        step: "get its status",
        cause: std::io::Error::from(errno).to_string(),
    })
}

fn not_regular(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory"),
        FileType::Fifo => Some("a pipe"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        FileType::Symlink => Some("a symbolic link"),
        FileType::Unknown => Some("something unknown"),
    }
}

fn check_owner(stat: &Stat, path: &Path, place: Place, trust: Trust) -> Result<(), LoadError> {
    match trust {
        Trust::Off => return Ok(()),
        Trust::Owner => {}
    }
    let euid = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != euid {
        return Err(LoadError::UntrustedOwner { place, path: path.to_path_buf(), uid: stat.st_uid, euid });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(LoadError::WritableByOthers { place, path: path.to_path_buf(), mode });
    }
    Ok(())
}
