//! Private copies of plugin files: what is really mapped.
//!
//! Three facts of the dynamic linker make copies necessary:
//!
//! * `dlopen` of a path that was opened before returns the **old** image even
//!   if the file was replaced, because names are compared first; the same inode
//!   under another name returns the old image too. New code needs a new name
//!   *and* a new inode.
//! * A mapped file that is overwritten in place (`cp new.so plugin.so`) changes
//!   or vanishes under the running code: SIGBUS in the host.
//! * A module that was retired, or whose `init` failed, needs fresh statics to
//!   be tried again, and images are never unmapped.
//!
//! With a state directory every plugin runs from
//! `<state>/plugins/<name>-<version>-<hash8>.so`. Without one a plugin runs from
//! its own file the first time and from a sealed memory file after that.
//! `/proc/self/fd/N` of the checked descriptor instead of a copy was rejected:
//! the number is reused after a close and then names an old image again, and
//! debuggers cannot open it. It is used for memory files, which stay open.
//!
//! A plugin that finds libraries of its own by `$ORIGIN` finds them beside the
//! copy, which is to say not at all: it must be linked to them by another path.
//! Does not decide whether a file may be loaded: that is `trust` and the gates.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crc_fast::{CrcAlgorithm, Digest};
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::error::LoadError;
use crate::metadata::Metadata;
use crate::trust::{FileId, TrustedFile};

/// Images one process may map; they are never unmapped.
pub(crate) const MAX_IMAGES: usize = 256;
/// Copies kept in a state directory; the oldest go first.
const MAX_COPIES: usize = 64;
/// Bytes read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Every path this process has given to `dlopen`, with the plugin file it stands for. Held for look-ups only,
/// not while a file is copied: loads do not wait for each other.
static MAPPED: Mutex<Option<HashMap<PathBuf, FileId>>> = Mutex::new(None);

/// Where the image of a plugin is to be opened.
#[derive(Debug)]
pub(crate) struct Placed {
    /// What to give to `dlopen`.
    pub(crate) path: PathBuf,
    /// The file at `path` when it was placed; `None` for a memory file, which nobody can exchange.
    id: Option<FileId>,
}

impl Placed {
    /// True if `path` still names the file that was checked.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.id.is_none_or(|id| FileId::of_path(&self.path).is_some_and(|now| now.is_same_content(&id)))
    }
}

/// Finds or makes the file from which `plugin` is opened, and books it as mapped.
pub(crate) fn place(
    plugin: &mut TrustedFile,
    metadata: &Metadata,
    state_dir: Option<&Path>,
) -> Result<Placed, LoadError> {
    match state_dir {
        Some(state_dir) => copy_to_directory(plugin, metadata, &state_dir.join("plugins")),
        None if book_own_path(plugin)? => Ok(Placed { path: plugin.path.clone(), id: Some(plugin.id) }),
        None => copy_to_memory(plugin, metadata),
    }
}

/// Books `path` for the content `id`; the bound is checked here for every way of placing.
fn book(mapped: &mut HashMap<PathBuf, FileId>, path: PathBuf, id: FileId) -> Result<(), LoadError> {
    if mapped.len() >= MAX_IMAGES {
        return Err(LoadError::TooManyImages { max: MAX_IMAGES });
    }
    mapped.insert(path, id);
    Ok(())
}

/// Books the plugin's own path; false if `dlopen` of it would return an image that exists already.
fn book_own_path(plugin: &TrustedFile) -> Result<bool, LoadError> {
    let mut mapped = MAPPED.lock();
    let mapped = mapped.get_or_insert_default();
    if mapped.contains_key(&plugin.path) || mapped.values().any(|id| id.is_same_file(&plugin.id)) {
        return Ok(false);
    }
    book(mapped, plugin.path.clone(), plugin.id)?;
    Ok(true)
}

fn copy_to_directory(
    plugin: &mut TrustedFile,
    metadata: &Metadata,
    directory: &Path,
) -> Result<Placed, LoadError> {
    let failed = |target: &Path, error: std::io::Error| LoadError::CopyFailed {
        target: target.to_path_buf(),
        cause: error.to_string(),
    };
    let directory = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .and_then(|()| directory.canonicalize())
        .map_err(|error| failed(directory, error))?;
    let hash = content_hash(&mut plugin.file)
        .map_err(|error| LoadError::Unreadable { step: "read it", cause: error.to_string() })?;
    let target =
        book_name(&directory, &format!("{}-{}-{hash:08x}", metadata.name, metadata.version), plugin.id)?;
    write_copy(&mut plugin.file, &target).map_err(|error| {
        MAPPED.lock().get_or_insert_default().remove(&target);
        failed(&target, error)
    })
}

/// Books a name that this process has not mapped: normally the first, a numbered one for fresh statics.
fn book_name(directory: &Path, stem: &str, id: FileId) -> Result<PathBuf, LoadError> {
    let mut mapped = MAPPED.lock();
    let mapped = mapped.get_or_insert_default();
    remove_oldest(directory, mapped);
    let names = (1..=MAX_IMAGES).map(|number| match number {
        1 => directory.join(format!("{stem}.so")),
        number => directory.join(format!("{stem}-{number}.so")),
    });
    let is_free = |name: &PathBuf| !mapped.contains_key(name);
    let name = names.into_iter().find(is_free).ok_or(LoadError::TooManyImages { max: MAX_IMAGES })?;
    book(mapped, name.clone(), id)?;
    Ok(name)
}

/// Writes a new file and renames it over `target`, so that another process that has the old one mapped keeps it.
fn write_copy(source: &mut File, target: &Path) -> std::io::Result<Placed> {
    // The name is booked, so no other load of this process writes this draft.
    let draft = target.with_extension(format!("{}.draft", std::process::id()));
    let _ = fs::remove_file(&draft);
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o500).open(&draft)?;
    let result = copy_content(source, &mut copy).and_then(|()| fs::rename(&draft, target));
    if let Err(error) = result {
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    Ok(Placed { path: target.to_path_buf(), id: FileId::of_path(target) })
}

/// A copy that lives in memory under the name of its descriptor, which stays open for the life of the process.
fn copy_to_memory(plugin: &mut TrustedFile, metadata: &Metadata) -> Result<Placed, LoadError> {
    let failed = |error: std::io::Error| LoadError::CopyFailed {
        target: PathBuf::from("a memory file"),
        cause: error.to_string(),
    };
    let name = format!("{}-{}", metadata.name, metadata.version);
    let memory = rustix::fs::memfd_create(name.as_str(), MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|errno| failed(errno.into()))?;
    let mut memory = File::from(memory);
    copy_content(&mut plugin.file, &mut memory).map_err(failed)?;
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )
    .map_err(|errno| failed(errno.into()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    book(MAPPED.lock().get_or_insert_default(), path.clone(), plugin.id)?;
    // Left open on purpose: a reused number would name this image for another plugin.
    let _ = memory.into_raw_fd();
    Ok(Placed { path, id: None })
}

fn copy_content(source: &mut File, target: &mut File) -> std::io::Result<()> {
    source.seek(SeekFrom::Start(0))?;
    std::io::copy(source, target)?;
    target.flush()
}

/// CRC-32C of the content: tells builds of one version apart, is no proof of origin.
fn content_hash(file: &mut File) -> std::io::Result<u32> {
    file.seek(SeekFrom::Start(0))?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut hash = Digest::new(CrcAlgorithm::Crc32Iscsi);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hash.finalize() as u32),
            count => hash.update(&chunk[..count]),
        }
    }
}

/// Keeps the directory below its bound. Removing a copy that some process has mapped is harmless: the inode
/// stays until it is unmapped.
fn remove_oldest(directory: &Path, mapped: &HashMap<PathBuf, FileId>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut copies: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| !mapped.contains_key(&entry.path()))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .filter(|(_, path)| {
            path.extension().is_some_and(|extension| extension == "so" || extension == "draft")
        })
        .collect();
    copies.sort();
    let surplus = copies.len().saturating_sub(MAX_COPIES.saturating_sub(1));
    for (_, path) in copies.into_iter().take(surplus) {
        if let Err(error) = fs::remove_file(&path) {
            log::debug!("old plugin copy not removed path={} error={error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_surplus_copies_are_removed_and_never_mapped_ones() {
        let directory = std::env::temp_dir().join(format!("tenon-store-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for number in 0..MAX_COPIES + 5 {
            fs::write(directory.join(format!("m-1-{number:08x}.so")), b"x").unwrap();
        }
        let kept = directory.join("m-1-00000000.so");
        let id = FileId::of_path(&kept).unwrap();
        remove_oldest(&directory, &HashMap::from([(kept.clone(), id)]));
        assert!(kept.exists());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), MAX_COPIES);
        fs::remove_dir_all(&directory).unwrap();
    }
}
