//! What can be wrong with a plugin or a module, told to an operator: the file,
//! the reason and the remedy in one line.
//!
//! [`PluginError`] is about a file on its way in, [`ModuleError`] about a module
//! that was loaded. Does not decide anything: the gates do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::state::{ModuleEvent, ModuleState};

/// A plugin file that is not usable, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginError {
    /// The file as it was named, or empty if no file is involved.
    pub file: PathBuf,
    /// What is wrong.
    pub fault: LoadError,
}

impl PluginError {
    /// An error about `file`.
    #[must_use]
    pub fn new(file: &Path, fault: LoadError) -> Self {
        PluginError { file: file.to_path_buf(), fault }
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        self.fault.remedy()
    }
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "plugin {}: ", self.file.display())?;
        }
        write!(f, "{}; {}", self.fault, self.fault.remedy())
    }
}

impl std::error::Error for PluginError {}

/// Which of the two places with permissions is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The plugin file.
    File,
    /// The directory it is in.
    Directory,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::File => "the file",
            Place::Directory => "its directory",
        })
    }
}

/// Why a plugin was not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// No file of that name.
    #[error("no such file")]
    NotFound,
    /// No directory of that name.
    #[error("no such plugin directory")]
    NoDirectory,
    /// A device, directory, pipe or socket.
    #[error("is {kind}, not a regular file")]
    NotRegularFile {
        /// What it is, with its article.
        kind: &'static str,
    },
    /// A system call failed.
    #[error("cannot {step}: {cause}")]
    Unreadable {
        /// What was tried.
        step: &'static str,
        /// The system's message.
        cause: String,
    },
    /// Larger than any plugin.
    #[error("has {size} bytes, more than the {max} bytes a plugin may have")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The bound.
        max: u64,
    },
    /// Group or others may write.
    #[error("{place} {} is writable by others (mode {mode:04o})", path.display())]
    WritableByOthers {
        /// File or directory.
        place: Place,
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Owned by neither root nor the user the host runs as.
    #[error("{place} {} is owned by uid {uid}, neither by root nor by uid {euid} of this process", path.display())]
    UntrustedOwner {
        /// File or directory.
        place: Place,
        /// Which.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Who we are.
        euid: u32,
    },
    /// No ELF magic.
    #[error("is not an ELF file (it starts with {start})")]
    NotElf {
        /// The first bytes in hexadecimal, or `nothing`.
        start: String,
    },
    /// Shorter than its headers say.
    #[error("is truncated: {detail}")]
    Truncated {
        /// What lies outside the file.
        detail: String,
    },
    /// ELF, but inconsistent.
    #[error("is a damaged ELF file: {detail}")]
    MalformedElf {
        /// What is inconsistent.
        detail: String,
    },
    /// ELF class 32.
    #[error("is a 32-bit object, this host is 64-bit")]
    Not64Bit,
    /// Big-endian on a little-endian host, or the reverse.
    #[error("has the other byte order than this host")]
    WrongByteOrder,
    /// Built for another processor.
    #[error("is built for {found}, this host is {host}")]
    OtherArchitecture {
        /// The plugin's architecture.
        found: String,
        /// Ours.
        host: &'static str,
    },
    /// An executable, object file or core dump.
    #[error("is {kind}, not a shared library")]
    NotSharedLibrary {
        /// What it is, with its article.
        kind: &'static str,
    },
    /// A shared library, but not a plugin.
    #[error("has no section {}", tenon_abi::METADATA_SECTION)]
    NoMetadata,
    /// The metadata section cannot be read.
    #[error("has a malformed section {}: {detail}", tenon_abi::METADATA_SECTION)]
    MalformedMetadata {
        /// What is wrong with it.
        detail: String,
    },
    /// Built for another major version of the contract.
    #[error("is built for contract version {found}.x, this host speaks {host}.x")]
    WrongMajor {
        /// The plugin's.
        found: u16,
        /// Ours.
        host: u16,
    },
    /// The entry symbol is missing.
    #[error("does not export {}", tenon_abi::ENTRY_SYMBOL)]
    NoEntrySymbol,
    /// The dynamic linker refused it: a library or symbol it needs is missing.
    #[error("cannot be linked: {message}")]
    Unresolved {
        /// The linker's message.
        message: String,
    },
    /// The entry function returned null.
    #[error("its {} returned null", tenon_abi::ENTRY_SYMBOL)]
    NullDescriptor,
    /// The descriptor does not start with the magic.
    #[error("its descriptor starts with {found:#018x} instead of {:#018x}", tenon_abi::MAGIC)]
    BadMagic {
        /// What it starts with.
        found: u64,
    },
    /// A table ends before its first version does.
    #[error("its {table} says it has {size} bytes, version 1.0 has at least {min}")]
    TableTooSmall {
        /// Name of the table's type.
        table: &'static str,
        /// What it says.
        size: u32,
        /// What it must have.
        min: usize,
    },
    /// A frozen type has another size in the plugin.
    #[error("its {ty} has {plugin} bytes, the host's has {host}")]
    WrongSize {
        /// The type.
        ty: &'static str,
        /// Size in the plugin.
        plugin: u16,
        /// Size in the host.
        host: u16,
    },
    /// The descriptor has no callbacks.
    #[error("its descriptor has no table of callbacks")]
    NullCallbacks,
    /// A callback that every module must have is null.
    #[error("its callback {name} is null")]
    MissingCallback {
        /// The callback.
        name: &'static str,
    },
    /// A text of the descriptor is unusable.
    #[error("its descriptor's {field} {detail}")]
    BadText {
        /// Field of the descriptor.
        field: &'static str,
        /// Why.
        detail: String,
    },
    /// Metadata and descriptor do not belong together.
    #[error("its {field} is \"{metadata}\" in the metadata and \"{descriptor}\" in the descriptor")]
    MetadataDiffers {
        /// Field of the descriptor.
        field: &'static str,
        /// Value in the section.
        metadata: String,
        /// Value in the descriptor.
        descriptor: String,
    },
    /// No layout certificate, and the policy asks for one.
    #[error("carries no layout certificate and layout_check is \"require\"")]
    Uncertified,
    /// The certificate cannot be used.
    #[error("has an unusable layout certificate: {cause}")]
    BadCertificate {
        /// Why.
        cause: String,
    },
    /// The plugin's compiler laid a frozen type out differently.
    #[error("its {ty}.{field} is {plugin}, the host's is {host}")]
    LayoutDiffers {
        /// The type.
        ty: String,
        /// First differing field.
        field: String,
        /// What the plugin has.
        plugin: String,
        /// What the host has.
        host: String,
    },
    /// A module of that name is in the host.
    #[error("module {module} {version} is already loaded{}", from(file))]
    AlreadyLoaded {
        /// The module.
        module: String,
        /// Version of the one that is loaded.
        version: String,
        /// Where that one came from.
        file: Option<PathBuf>,
    },
    /// A module of that name is on its way in or out.
    #[error("module {module} is {state}")]
    Busy {
        /// The module.
        module: String,
        /// What it is doing.
        state: ModuleState,
    },
    /// No plugin offers that module.
    #[error("no plugin provides a module {name}{}", known_modules(known))]
    UnknownModule {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The file was replaced while it was being loaded.
    #[error("was replaced while it was being loaded")]
    Replaced,
    /// The private copy could not be made.
    #[error("cannot be copied to {}: {cause}", target.display())]
    CopyFailed {
        /// Where to.
        target: PathBuf,
        /// The system's message.
        cause: String,
    },
    /// The bound on images in one process is reached.
    #[error("this process has already mapped {max} plugin images, which are never unmapped")]
    TooManyImages {
        /// The bound.
        max: usize,
    },
    /// The host lacks what it takes to load anything now.
    #[error("cannot be loaded now: {cause}")]
    NoResources {
        /// The system's message.
        cause: String,
    },
    /// The constructors of another library never returned, and hold the dynamic linker.
    #[error("the dynamic linker is held by {}, whose opening has not finished", holder.display())]
    LinkerBlocked {
        /// The other library.
        holder: PathBuf,
    },
    /// Constructors of the library did not return in time.
    #[error("opening it did not finish within {deadline:?}")]
    OpenTimedOut {
        /// The deadline.
        deadline: Duration,
    },
    /// `init` returned an error.
    #[error("init of module {module} failed with {code}: {text}")]
    InitFailed {
        /// The module.
        module: String,
        /// `-errno`.
        code: i32,
        /// The module's message.
        text: String,
    },
    /// `init` did not return in time; its thread is left behind.
    #[error("init of module {module} did not finish within {deadline:?}")]
    InitTimedOut {
        /// The module.
        module: String,
        /// The deadline.
        deadline: Duration,
    },
}

impl LoadError {
    /// What the operator can do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        use LoadError as E;
        match self {
            E::NotFound => "check the path, or see `tenon plugin list`".into(),
            E::NoDirectory => "create it or remove it from the configuration".into(),
            E::NotRegularFile { .. }
            | E::NotElf { .. }
            | E::NotSharedLibrary { .. }
            | E::NoMetadata
            | E::NoEntrySymbol => "give the shared library (.so) that building a plugin makes".into(),
            E::Unreadable { .. } => "make it readable for the user the host runs as".into(),
            E::TooLarge { .. } => "strip its debug information".into(),
            E::WritableByOthers { path, .. } => format!("run `chmod go-w {}`", path.display()),
            E::UntrustedOwner { path, .. } => format!("run `chown root {}`", path.display()),
            E::Truncated { .. } | E::MalformedElf { .. } => "copy the file again, completely".into(),
            E::Not64Bit | E::WrongByteOrder | E::OtherArchitecture { .. } => {
                "install the build for this machine".into()
            }
            E::MalformedMetadata { .. } | E::MetadataDiffers { .. } | E::BadText { .. } => {
                "rebuild the plugin with one consistent name and version".into()
            }
            E::WrongMajor { .. } => {
                "install the build of this plugin for this host, or the matching host".into()
            }
            E::Unresolved { .. } => "install the library it needs, or a build for this system".into(),
            E::NullDescriptor
            | E::BadMagic { .. }
            | E::TableTooSmall { .. }
            | E::NullCallbacks
            | E::MissingCallback { .. } => "report this to the plugin's vendor".into(),
            E::WrongSize { .. } | E::LayoutDiffers { .. } => {
                "rebuild the plugin against this host's plugin-api".into()
            }
            E::Uncertified => "build it with the certificate, or set layout_check to \"warn\"".into(),
            E::BadCertificate { .. } => "rebuild the plugin, or set layout_check to \"off\"".into(),
            E::AlreadyLoaded { .. } => "unregister that module first, or load this one with `replace`".into(),
            E::Busy { .. } => "try again when that has finished".into(),
            E::UnknownModule { .. } => "install its plugin or correct the name".into(),
            E::Replaced => "try again".into(),
            E::CopyFailed { .. } => "make room there, or configure another state directory".into(),
            E::TooManyImages { .. } => "restart the host".into(),
            E::NoResources { .. } => "try again when the host is less busy".into(),
            E::LinkerBlocked { holder } => format!("remove {} and restart the host", holder.display()),
            E::OpenTimedOut { .. } | E::InitTimedOut { .. } => {
                "see its log for what it waits for, or raise the deadline".into()
            }
            E::InitFailed { .. } => "correct what it complains about and load it again".into(),
        }
    }
}

/// Why something could not be done with a loaded module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// Its state does not allow it.
    #[error("module {module} is {state}: {event} is not possible now")]
    InvalidState {
        /// The module.
        module: String,
        /// Its state.
        state: ModuleState,
        /// What was asked.
        event: ModuleEvent,
    },
    /// `fini` was not answered in time.
    #[error("fini of module {module} was not answered within {deadline:?}")]
    FiniTimedOut {
        /// The module.
        module: String,
        /// The deadline.
        deadline: Duration,
    },
    /// `fini` was answered with an error.
    #[error("fini of module {module} failed: {text}")]
    FiniFailed {
        /// The module.
        module: String,
        /// Its message.
        text: String,
    },
    /// `init` failed.
    #[error("{0}")]
    Init(PluginError),
    /// The layer above declared it failed.
    #[error("module {module} failed: {reason}")]
    Faulted {
        /// The module.
        module: String,
        /// Why.
        reason: String,
    },
}

fn from(file: &Option<PathBuf>) -> String {
    file.as_ref().map(|file| format!(" from {}", file.display())).unwrap_or_default()
}

fn known_modules(known: &[String]) -> String {
    if known.is_empty() {
        " (none is installed)".into()
    } else {
        format!(" (installed: {})", known.join(", "))
    }
}
