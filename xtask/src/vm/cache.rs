//! Where built kernels are kept, and under which names.
//!
//! A name holds what the thing was made from: the version of the Debian
//! package and a hash of this repository's own inputs. A change of either
//! makes a new name, so nothing here is ever invalidated; old entries may be
//! deleted by hand.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of machines in the user's cache, made if it is not there.
pub fn folder() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    let folder = base.join("tenon/vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// The newest entry `PREFIX-…-HASH`, whatever version it was made from.
pub fn newest(folder: &Path, prefix: &str, hash: &str) -> Result<Option<PathBuf>> {
    let (start, end) = (format!("{prefix}-"), format!("-{hash}"));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("folder {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&start) && name.ends_with(&end) {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    Ok(found.into_iter().max().map(|(_, path)| path))
}

/// A folder to build in, removed when dropped. It lies in the cache, so that a result can be renamed into place.
pub struct BuildFolder {
    /// Absolute path.
    pub path: PathBuf,
}

impl BuildFolder {
    /// Makes an empty folder that no other process uses.
    pub fn create(cache: &Path) -> Result<Self> {
        let path = cache.join(format!("build-{}", std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot clear {}", path.display()))?;
        }
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for BuildFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("warning: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// FNV-1a in hexadecimal: the standard library's hashes may change from release to release.
pub fn hash_of(inputs: &[&str]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for input in inputs {
        // The separator keeps ["ab", "c"] and ["a", "bc"] apart; no input holds it.
        for byte in input.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_same_in_every_build() {
        assert_eq!(hash_of(&[]), "cbf29ce484222325");
        assert_eq!(hash_of(&["CONFIG_64BIT=y\n"]), hash_of(&["CONFIG_64BIT=y\n"]));
        assert_ne!(hash_of(&["ab", "c"]), hash_of(&["a", "bc"]));
    }

    #[test]
    fn only_entries_of_the_same_inputs_are_found() {
        let folder = env::temp_dir().join(format!("tenon-vm-cache-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in ["linux-uml-6.12.1-1-aaaa", "linux-uml-6.12.2-1-bbbb", "other-6.12.1-1-aaaa"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let found = newest(&folder, "linux-uml", "aaaa").unwrap();
        assert_eq!(found, Some(folder.join("linux-uml-6.12.1-1-aaaa")));
        assert_eq!(newest(&folder, "linux-uml", "cccc").unwrap(), None);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_build_folder_goes_away_with_its_owner() {
        let cache = env::temp_dir().join(format!("tenon-vm-build-{}", std::process::id()));
        fs::create_dir_all(&cache).unwrap();
        let build = BuildFolder::create(&cache).unwrap();
        let path = build.path.clone();
        fs::write(path.join("file"), "").unwrap();
        drop(build);
        assert!(!path.exists());
        fs::remove_dir_all(&cache).unwrap();
    }
}
