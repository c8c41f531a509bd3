//! From a file to a checked image in memory: trust, metadata, copy, `dlopen`,
//! entry symbol, gate 1 (tables), gate 2 (certificate). Blocks, and runs the
//! library's constructors; so it is done apart from the reactors.
//!
//! Does not call a callback of the module. Nothing is ever unmapped: function
//! pointers, thread-local destructors and threads of a plugin outlive any
//! moment at which unmapping would look safe.
// UNSAFETY: dlopen runs foreign constructors; dlsym gives an untyped address.

use std::fmt;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use serde::Serialize;
use tenon_abi::{ENTRY_SYMBOL, PluginDescV1};

use crate::callbacks::{Descriptor, read_descriptor};
use crate::certificate;
use crate::elf_file;
use crate::error::{LoadError, PluginError};
use crate::metadata::Metadata;
use crate::module::{Module, ModuleRef};
use crate::state::ModuleState;
use crate::store::place;
use crate::trust::{Trust, TrustedFile};
use crate::version::Version;

/// What to do about layout certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayoutCheck {
    /// Refuse a plugin without certificate, or with one that does not match.
    Require,
    /// Refuse a certificate that does not match; warn about a plugin without one, as plugins in C are.
    #[default]
    Warn,
    /// Do not look at certificates.
    Off,
}

impl FromStr for LayoutCheck {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "require" => Ok(LayoutCheck::Require),
            "warn" => Ok(LayoutCheck::Warn),
            "off" => Ok(LayoutCheck::Off),
            other => Err(format!("layout_check \"{other}\" is none of require, warn, off")),
        }
    }
}

impl fmt::Display for LayoutCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LayoutCheck::Require => "require",
            LayoutCheck::Warn => "warn",
            LayoutCheck::Off => "off",
        })
    }
}

/// Result of [`check`].
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// Name of the module.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// Contract version it was built with.
    pub abi: (u16, u16),
    /// Compiler, for people.
    pub built_with: String,
    /// Frozen types whose layout was compared and is equal; `None`: the plugin has no certificate, or
    /// certificates were not looked at.
    pub certified_types: Option<usize>,
}

/// Runs every gate on a plugin file, including `dlopen` and with it the library's constructors, but calls no
/// callback. Blocks; the image stays mapped in this process.
pub fn check(path: &Path, trust: Trust, layout_check: LayoutCheck) -> Result<CheckReport, PluginError> {
    let request =
        OpenRequest { path: path.to_path_buf(), trust, layout_check, state_dir: None, taken: Vec::new() };
    let image = request.open()?;
    Ok(CheckReport {
        name: image.descriptor.name,
        version: image.descriptor.version,
        abi: image.descriptor.abi,
        built_with: image.descriptor.built_with,
        certified_types: image.certified_types,
    })
}

/// Opens a plugin as [`check`] does and gives the module without starting it: its `schema` and `validate` can be
/// asked, nothing else of it ever runs. It belongs to no set. Blocks.
pub fn open_unstarted(
    path: &Path,
    trust: Trust,
    layout_check: LayoutCheck,
) -> Result<ModuleRef, PluginError> {
    let request =
        OpenRequest { path: path.to_path_buf(), trust, layout_check, state_dir: None, taken: Vec::new() };
    Ok(Module::from_image(request.open()?))
}

/// A module whose name is not free.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) file: Option<PathBuf>,
    pub(crate) state: ModuleState,
}

impl Taken {
    /// The error of a load that wanted the name.
    pub(crate) fn error(&self) -> LoadError {
        match self.state {
            ModuleState::Running => LoadError::AlreadyLoaded {
                module: self.name.clone(),
                version: self.version.clone(),
                file: self.file.clone(),
            },
            state => LoadError::Busy { module: self.name.clone(), state },
        }
    }
}

/// What to open, and how strictly.
#[derive(Clone, Debug)]
pub(crate) struct OpenRequest {
    pub(crate) path: PathBuf,
    pub(crate) trust: Trust,
    pub(crate) layout_check: LayoutCheck,
    pub(crate) state_dir: Option<PathBuf>,
    /// Names that must not come out of the file's metadata; asked before any of its code runs.
    pub(crate) taken: Vec<Taken>,
}

/// A mapped and checked plugin.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) descriptor: Descriptor,
    pub(crate) metadata: Metadata,
    /// The plugin file.
    pub(crate) path: PathBuf,
    /// What was mapped: the same, or a copy.
    pub(crate) mapped_path: PathBuf,
    pub(crate) certified_types: Option<usize>,
}

impl OpenRequest {
    pub(crate) fn open(&self) -> Result<Image, PluginError> {
        let mut plugin = TrustedFile::open(&self.path, self.trust)?;
        self.open_trusted(&mut plugin).map_err(|fault| PluginError::new(&self.path, fault))
    }

    fn open_trusted(&self, plugin: &mut TrustedFile) -> Result<Image, LoadError> {
        let metadata = elf_file::read_metadata(&plugin.file)?;
        if let Some(taken) = self.taken.iter().find(|taken| taken.name == metadata.name) {
            return Err(taken.error());
        }
        plugin
            .file
            .seek(SeekFrom::Start(0))
            .map_err(|error| LoadError::Unreadable { step: "read it", cause: error.to_string() })?;
        let placed = place(plugin, &metadata, self.state_dir.as_deref())?;
        let library = map(&placed.path)?;
        if !placed.is_unchanged() {
            return Err(LoadError::Replaced);
        }
        let entry = call_entry(&library)?;
        // SAFETY: `entry` is what the plugin's entry function returned.
        let descriptor = unsafe { read_descriptor(entry)? };
        compare_texts(&metadata, &descriptor)?;
        let certified_types = match self.layout_check {
            LayoutCheck::Off => None,
            // SAFETY: `library` is an opened plugin whose metadata, magic and major version are ours.
            LayoutCheck::Require | LayoutCheck::Warn => unsafe { certificate::check(&library, entry)? },
        };
        match (self.layout_check, certified_types) {
            (LayoutCheck::Require, None) => return Err(LoadError::Uncertified),
            (LayoutCheck::Warn, None) => {
                log::warn!("plugin has no layout certificate file={}", plugin.path.display());
            }
            (LayoutCheck::Require | LayoutCheck::Warn | LayoutCheck::Off, Some(_))
            | (LayoutCheck::Off, None) => {}
        }
        let mapped_path = placed.path;
        Ok(Image { descriptor, metadata, path: plugin.path.clone(), mapped_path, certified_types })
    }
}

/// Opens the library for ever: NODELETE, and the handle is forgotten.
fn map(path: &Path) -> Result<std::mem::ManuallyDrop<Library>, LoadError> {
    let flags = RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE;
    // SAFETY: constructors of the library run here. The file belongs to root or to our user (`trust`), so its
    // code is as trusted as the host; nothing else can be promised about foreign code.
    match unsafe { Library::open(Some(path), flags) } {
        Ok(library) => Ok(std::mem::ManuallyDrop::new(library)),
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            Err(LoadError::Unresolved { message: source.unwrap_or_else(|| error.to_string()) })
        }
    }
}

fn call_entry(library: &Library) -> Result<*const PluginDescV1, LoadError> {
    type Entry = unsafe extern "C" fn() -> *const PluginDescV1;
    // SAFETY: the contract gives the symbol of this name this signature.
    let entry = unsafe { library.get::<Entry>(ENTRY_SYMBOL) }.map_err(|_| LoadError::NoEntrySymbol)?;
    // SAFETY: the function takes nothing and returns the address of static data.
    Ok(unsafe { entry() })
}

/// The section is what everybody saw before loading: it must not have lied.
fn compare_texts(metadata: &Metadata, descriptor: &Descriptor) -> Result<(), LoadError> {
    let pairs = [
        ("name", metadata.name.as_str(), descriptor.name.as_str()),
        ("version", metadata.version.as_str(), descriptor.version.as_str()),
    ];
    match pairs.into_iter().find(|(_, metadata, descriptor)| metadata != descriptor) {
        Some((field, metadata, descriptor)) => Err(LoadError::MetadataDiffers {
            field,
            metadata: metadata.to_owned(),
            descriptor: descriptor.to_owned(),
        }),
        None => Ok(()),
    }
}
