//! The contract between the Tenon host and its plugins: frozen `#[repr(C)]`
//! tables, structs and constants, and nothing that executes beyond the two
//! inline steps of the data path ([`submit`] and [`complete`]).
//!
//! C is the contract: a plugin in C uses the generated `tenon_plugin.h`, a
//! plugin in Rust normally uses `tenon-sdk`, which is safe. Types here follow
//! four rules:
//!
//! 1. A table starts with `size`; it grows at its end only; a reader touches a
//!    field only if `size` reaches it ([`reaches`]).
//! 2. Constants live in open newtypes; an unknown value is representable.
//! 3. Whoever allocates, frees. Text ([`Str`]) is borrowed for the call.
//! 4. Objects of the host are handles with a generation; a stale handle fails
//!    with `-ENODEV`, it never dangles.
//!
//! Threads: *control thread* means the host's control reactor, where all
//! lifecycle callbacks run one at a time; *its reactor* means the reactor
//! thread that created the channel in question. A callback never blocks,
//! except [`ModuleOpsV1::init`] and work given to [`HostApiV1::offload`].
//!
//! Does not contain protocol types (crate `nvme-spec`) or any policy.
#![no_std]
#![warn(missing_docs)]
// UNSAFETY: the contract is made of raw pointers; `submit` and `complete` follow them.

#[cfg(feature = "certificate")]
extern crate std;

mod bdev;
#[cfg(feature = "certificate")]
pub mod certificate;
mod error;
mod event;
mod host;
mod io;
pub mod layout;
mod module;
mod text;
pub mod transport;

pub use bdev::{BdevFlags, BdevInfo, BdevOpsV1, BdevState, BdevV1, ClaimKind, Limits, OpenFlags};
pub use error::{ErrorV1, errno};
pub use event::{BdevEvent, BdevEventKind, ExamineAnswer, HotplugEvent, HotplugKind, Reason};
pub use host::{
    BufferEvent, EventFn, FdFn, HostApiV1, HostModule, HostReactor, KeyringTableV1, LogRecord, MemoryFn,
    MemoryRegion, MessageFn, MetricDesc, MetricKind, OperationTableV1, PollerFlags, PollerV1, QUERY_KEYRING,
    QUERY_OPERATIONS, RpcFn,
};
pub use io::{
    BDEV_IO_SIZE, BdevIo, CopyRange, IoChannel, IoExtV1, IoFlags, IoOpsV1, IoState, IoStatus, Op, complete,
    io_context, submit,
};
pub use module::{AbiSizes, ModuleFlags, ModuleOpsV1, PluginDescV1};
pub use text::{IoVec, JsonSink, Str};

/// Major version: the entry symbol carries it, and it changes only with an incompatible contract.
pub const ABI_MAJOR: u16 = 1;
/// Minor version: grows by one with every appended field or constant.
pub const ABI_MINOR: u16 = 0;
/// First eight bytes of every [`PluginDescV1`]: `"TENONABI"` read as a little-endian integer.
pub const MAGIC: u64 = u64::from_le_bytes(*b"TENONABI");
/// Name of the one symbol a plugin exports: `const PluginDescV1 *tenon_plugin_v1(void)`.
pub const ENTRY_SYMBOL: &str = "tenon_plugin_v1";
/// ELF section with `key=value` pairs, each ended by NUL, that describe a plugin without loading it.
/// Keys: `abi` (`major.minor`), `name`, `version`, `provides` (comma list of `bdev`, `transport`),
/// `rpc` (comma list of methods whose first call loads the plugin).
pub const METADATA_SECTION: &str = ".tenon_plugin";

/// Handle of a block device: index and generation, packed by the host. `0` is never valid.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BdevHandle(pub u64);

/// Handle of an open descriptor. `0` is never valid.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct DescHandle(pub u64);

/// An answer owed to the host for a lifecycle operation (create, delete, RPC, fini, destruct, …).
/// Must be given to [`HostApiV1::op_done`] exactly once, from the control thread. `0` means "none".
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct OpToken(pub u64);

/// An answer owed to the host for one examine callback; see [`HostApiV1::examine_done`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ExamineToken(pub u64);

/// Handle of a poller, timer or watched file descriptor of one reactor. `0` is never valid.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ReactorHandle(pub u64);

/// True if a table whose `size` field holds `size` reaches a field that ends at byte `end`.
///
/// Use with `core::mem::offset_of!`: `reaches(host.size, offset_of!(HostApiV1, now_ns) + 8)`.
#[must_use]
pub const fn reaches(size: u32, end: usize) -> bool {
    size as usize >= end
}
