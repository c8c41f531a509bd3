//! The plugins that are installed: what each directory offers, without loading
//! anything. Answers which file serves a module name or an RPC method.
//!
//! Scanning reads files and blocks. A bad file is not an error of the catalog:
//! it is listed with its reason. See `watch` for how a catalog follows its
//! directories.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::elf_file;
use crate::error::{LoadError, PluginError};
use crate::trust::{FileId, Trust, TrustedFile};
use crate::version::Version;

/// Files looked at per directory.
const MAX_FILES: usize = 1024;

/// Names further plugin directories, separated by colons.
pub const PLUGIN_DIR_VARIABLE: &str = "TENON_PLUGIN_DIR";

/// Where a directory comes from: decides what is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The directory of the host's program: holds much that is no plugin, which is passed over in silence.
    BesideExecutable,
    /// Installed with the host; may be absent.
    Bundled,
    /// Named by the operator; its absence is reported.
    Configured,
}

/// A directory with plugins. Of two plugins with the same name and version the one in the earlier directory counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PluginDirectory {
    /// The directory.
    pub path: PathBuf,
    /// Where it comes from.
    pub origin: Origin,
}

impl PluginDirectory {
    /// A directory the operator named.
    #[must_use]
    pub fn configured(path: impl Into<PathBuf>) -> Self {
        PluginDirectory { path: path.into(), origin: Origin::Configured }
    }
}

/// A plugin file that looks usable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PluginInfo {
    /// The file, without symbolic links.
    pub path: PathBuf,
    /// Name of its module.
    pub name: String,
    /// Version of its module.
    pub version: Version,
    /// Major version of the contract.
    pub abi_major: u16,
    /// Minor version of the contract.
    pub abi_minor: u16,
    /// What it provides: `bdev`, `transport`.
    pub provides: Vec<String>,
    /// RPC methods whose first call loads it.
    pub rpc: Vec<String>,
    /// Size of the file.
    pub size_bytes: u64,
    #[serde(skip)]
    id: FileId,
}

/// What a rescan found changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogChange {
    /// A usable plugin is new.
    Added(PluginInfo),
    /// The file of a plugin has other content.
    Changed {
        /// What it was.
        old: PluginInfo,
        /// What it is.
        new: PluginInfo,
    },
    /// A plugin's file is gone or no longer usable.
    Removed(PluginInfo),
    /// A file is not usable, for a new reason.
    Rejected(PluginError),
}

/// Everything found in some directories.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    directories: Vec<PluginDirectory>,
    trust: Trust,
    plugins: Vec<PluginInfo>,
    rejected: Vec<PluginError>,
    /// Identity of each rejected file, so that a rescan need not read it again.
    rejected_ids: HashMap<PathBuf, FileId>,
}

/// Reads one plugin file without loading it.
pub fn inspect(path: &Path, trust: Trust) -> Result<PluginInfo, PluginError> {
    let plugin = TrustedFile::open(path, trust)?;
    let metadata = elf_file::read_metadata(&plugin.file).map_err(|fault| PluginError::new(path, fault))?;
    Ok(PluginInfo {
        path: plugin.path,
        name: metadata.name,
        version: metadata.version,
        abi_major: metadata.abi.0,
        abi_minor: metadata.abi.1,
        provides: metadata.provides,
        rpc: metadata.rpc,
        size_bytes: plugin.size,
        id: plugin.id,
    })
}

/// The directories of this installation: those in `TENON_PLUGIN_DIR`, `../lib/tenon/plugins` of the program,
/// and the program's own directory (where cargo puts libraries).
#[must_use]
pub fn default_directories() -> Vec<PluginDirectory> {
    let variable = std::env::var_os(PLUGIN_DIR_VARIABLE);
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    directories_for(variable.as_deref(), program.as_deref())
}

fn directories_for(variable: Option<&std::ffi::OsStr>, program: Option<&Path>) -> Vec<PluginDirectory> {
    let mut directories: Vec<PluginDirectory> = variable
        .map(|value| std::env::split_paths(value).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .filter(|path| !path.as_os_str().is_empty())
        .map(PluginDirectory::configured)
        .collect();
    if let Some(beside) = program.and_then(Path::parent) {
        if let Some(prefix) = beside.parent() {
            directories
                .push(PluginDirectory { path: prefix.join("lib/tenon/plugins"), origin: Origin::Bundled });
        }
        directories.push(PluginDirectory { path: beside.to_path_buf(), origin: Origin::BesideExecutable });
    }
    directories
}

impl Catalog {
    /// A catalog of nothing.
    #[must_use]
    pub fn empty() -> Catalog {
        Catalog::default()
    }

    /// Looks at every file of the directories, in their order.
    #[must_use]
    pub fn scan(directories: Vec<PluginDirectory>, trust: Trust) -> Catalog {
        Catalog { directories, trust, ..Catalog::default() }.scan_again()
    }

    /// The same directories as they are now. Files that did not change are not read again.
    #[must_use]
    pub fn scan_again(&self) -> Catalog {
        let mut found =
            Catalog { directories: self.directories.clone(), trust: self.trust, ..Catalog::default() };
        for directory in &self.directories {
            match library_files(directory) {
                Ok(files) => files.iter().for_each(|file| found.look_at(file, directory, self)),
                Err(fault) if directory.origin == Origin::Configured => {
                    found.rejected.push(PluginError::new(&directory.path, fault));
                }
                Err(_) => {}
            }
        }
        found
    }

    /// Usable plugins, in order of directories and file names.
    #[must_use]
    pub fn plugins(&self) -> &[PluginInfo] {
        &self.plugins
    }

    /// Files that are not usable, and why.
    #[must_use]
    pub fn rejected(&self) -> &[PluginError] {
        &self.rejected
    }

    /// The first file that is not usable and whose name is that of a plugin of module `name`, as
    /// `lib<kind>_<name>.so` or `<name>.so`: what is in the file is not known.
    #[must_use]
    pub fn rejected_for(&self, name: &str) -> Option<&PluginError> {
        let name = name.replace('-', "_");
        self.rejected.iter().find(|error| {
            let Some(stem) = error.file.file_stem().and_then(|stem| stem.to_str()) else { return false };
            let stem = stem.strip_prefix("lib").unwrap_or(stem).replace('-', "_");
            stem.strip_suffix(&*name)
                .is_some_and(|kind| !name.is_empty() && (kind.is_empty() || kind.ends_with('_')))
        })
    }

    /// The directories.
    #[must_use]
    pub fn directories(&self) -> &[PluginDirectory] {
        &self.directories
    }

    /// The newest version of a module.
    #[must_use]
    pub fn newest(&self, name: &str) -> Option<&PluginInfo> {
        newest(self.plugins.iter().filter(|plugin| plugin.name == name))
    }

    /// All versions of a module, newest first.
    #[must_use]
    pub fn versions(&self, name: &str) -> Vec<&PluginInfo> {
        let mut versions: Vec<_> = self.plugins.iter().filter(|plugin| plugin.name == name).collect();
        versions.sort_by(|one, other| other.version.cmp(&one.version));
        versions
    }

    /// The plugin that serves an RPC method: the newest version of the module that announces it.
    #[must_use]
    pub fn for_rpc(&self, method: &str) -> Option<&PluginInfo> {
        newest(self.plugins.iter().filter(|plugin| plugin.rpc.iter().any(|served| served == method)))
    }

    /// Names of all modules, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.plugins.iter().map(|plugin| plugin.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// What differs in `new`, which was scanned later.
    #[must_use]
    pub fn changes_to(&self, new: &Catalog) -> Vec<CatalogChange> {
        let mut changes = Vec::new();
        let before: HashMap<&Path, &PluginInfo> =
            self.plugins.iter().map(|plugin| (plugin.path.as_path(), plugin)).collect();
        for plugin in &new.plugins {
            match before.get(plugin.path.as_path()) {
                None => changes.push(CatalogChange::Added(plugin.clone())),
                Some(old) if !old.id.is_same_content(&plugin.id) => {
                    changes.push(CatalogChange::Changed { old: (*old).clone(), new: plugin.clone() });
                }
                Some(_) => {}
            }
        }
        let gone = |old: &&PluginInfo| new.plugins.iter().all(|plugin| plugin.path != old.path);
        changes.extend(self.plugins.iter().filter(gone).cloned().map(CatalogChange::Removed));
        let is_new = |error: &&PluginError| !self.rejected.contains(error);
        changes.extend(new.rejected.iter().filter(is_new).cloned().map(CatalogChange::Rejected));
        changes
    }

    fn look_at(&mut self, file: &Path, directory: &PluginDirectory, before: &Catalog) {
        let id = FileId::of_path(file);
        let result = match (before.unchanged(file, id), id) {
            (Some(result), _) => result,
            (None, _) => inspect(file, self.trust),
        };
        match result {
            Ok(plugin) => self.add(plugin),
            Err(PluginError { fault: LoadError::NoMetadata, .. })
                if directory.origin == Origin::BesideExecutable => {}
            Err(error) => {
                if let Some(id) = id {
                    self.rejected_ids.insert(file.to_path_buf(), id);
                }
                self.rejected.push(error);
            }
        }
    }

    /// What the last scan said about a file that did not change since. Permissions are part of a file's identity
    /// (its change time), those of its directory are not: a fault about them is looked at again.
    fn unchanged(&self, file: &Path, id: Option<FileId>) -> Option<Result<PluginInfo, PluginError>> {
        let id = id?;
        if self.rejected_ids.get(file) == Some(&id) {
            let error = self.rejected.iter().find(|error| error.file == file)?;
            let is_about_content = !matches!(
                error.fault,
                LoadError::WritableByOthers { .. }
                    | LoadError::UntrustedOwner { .. }
                    | LoadError::Unreadable { .. }
            );
            return is_about_content.then(|| Err(error.clone()));
        }
        self.plugins
            .iter()
            .find(|plugin| plugin.path == file && plugin.id == id)
            .map(|plugin| Ok(plugin.clone()))
    }

    fn add(&mut self, plugin: PluginInfo) {
        if self.plugins.iter().any(|other| other.path == plugin.path) {
            return; // one file by two names, or a directory given twice
        }
        self.plugins.push(plugin);
    }
}

/// The first of the newest: earlier directories come first.
fn newest<'a>(plugins: impl Iterator<Item = &'a PluginInfo>) -> Option<&'a PluginInfo> {
    plugins.fold(None, |best: Option<&PluginInfo>, plugin| match best {
        Some(best) if best.version >= plugin.version => Some(best),
        Some(_) | None => Some(plugin),
    })
}

fn library_files(directory: &PluginDirectory) -> Result<Vec<PathBuf>, LoadError> {
    let entries = fs::read_dir(&directory.path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => LoadError::NoDirectory,
        _ => LoadError::Unreadable { step: "list it", cause: error.to_string() },
    })?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "so"))
        .take(MAX_FILES)
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_named_by_variable_installation_and_program() {
        let directories = directories_for(Some("/a:/b:".as_ref()), Some(Path::new("/usr/bin/tenon")));
        let paths: Vec<_> = directories.iter().map(|directory| directory.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/a", "/b", "/usr/lib/tenon/plugins", "/usr/bin"]);
        assert_eq!(directories[0].origin, Origin::Configured);
        assert_eq!(directories[3].origin, Origin::BesideExecutable);
        assert!(directories_for(None, None).is_empty());
    }

    #[test]
    fn absent_directory_is_reported_only_if_it_was_configured() {
        let absent = |origin| PluginDirectory { path: "/nonexistent/tenon".into(), origin };
        let catalog =
            Catalog::scan(vec![absent(Origin::Bundled), absent(Origin::BesideExecutable)], Trust::Owner);
        assert!(catalog.rejected().is_empty());
        let catalog = Catalog::scan(vec![absent(Origin::Configured)], Trust::Owner);
        assert_eq!(catalog.rejected()[0].fault, LoadError::NoDirectory);
    }

    #[test]
    fn an_unusable_file_is_found_by_the_module_it_is_named_after() {
        let files = ["libbdev_fast_disk.so", "libtransport-tcp.so", "disk.so", "broken"];
        let rejected = files.map(|file| PluginError::new(Path::new(file), LoadError::NoEntrySymbol));
        let catalog = Catalog { rejected: rejected.to_vec(), ..Catalog::default() };
        let found = |name| catalog.rejected_for(name).map(|error| error.file.display().to_string());
        assert_eq!(found("fast_disk").as_deref(), Some("libbdev_fast_disk.so"));
        assert_eq!(found("fast-disk").as_deref(), Some("libbdev_fast_disk.so"));
        assert_eq!(found("tcp").as_deref(), Some("libtransport-tcp.so"));
        assert_eq!(found("disk").as_deref(), Some("libbdev_fast_disk.so"));
        assert_eq!((found("k"), found("cp"), found("")), (None, None, None));
    }
}
