//! What a plugin exports: its descriptor and the callbacks of its module.
// UNSAFETY: static tables of a plugin are shared between threads.

use core::ffi::{c_char, c_void};

use crate::{BdevHandle, ExamineToken, HostApiV1, HostModule, HotplugEvent, JsonSink, OpToken, Str};

/// Sizes of the frozen types as the plugin's compiler saw them; compared by the host before anything is called.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct AbiSizes {
    /// `sizeof(BdevIo)`.
    pub bdev_io: u16,
    /// `sizeof(IoChannel)`.
    pub io_channel: u16,
    /// `sizeof(IoExtV1)`.
    pub io_ext: u16,
    /// `sizeof(Limits)`.
    pub limits: u16,
    /// `sizeof(BdevEvent)`.
    pub bdev_event: u16,
    /// `sizeof(HotplugEvent)`.
    pub hotplug_event: u16,
    /// `sizeof(LogRecord)`.
    pub log_record: u16,
    /// `sizeof(ErrorV1)`.
    pub error: u16,
}

impl AbiSizes {
    /// The sizes in this build.
    #[must_use]
    pub const fn current() -> Self {
        AbiSizes {
            bdev_io: size_of::<crate::BdevIo>() as u16,
            io_channel: size_of::<crate::IoChannel>() as u16,
            io_ext: size_of::<crate::IoExtV1>() as u16,
            limits: size_of::<crate::Limits>() as u16,
            bdev_event: size_of::<crate::BdevEvent>() as u16,
            hotplug_event: size_of::<HotplugEvent>() as u16,
            log_record: size_of::<crate::LogRecord>() as u16,
            error: size_of::<crate::ErrorV1>() as u16,
        }
    }
}

/// Descriptor of a plugin: what `tenon_plugin_v1` returns. Static in the plugin.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct PluginDescV1 {
    /// [`crate::MAGIC`].
    pub magic: u64,
    /// Bytes of this struct the plugin knows.
    pub size: u32,
    /// [`crate::ABI_MAJOR`] the plugin was built with.
    pub abi_major: u16,
    /// [`crate::ABI_MINOR`] the plugin was built with.
    pub abi_minor: u16,
    /// Sizes of the frozen types.
    pub sizes: AbiSizes,
    /// Module name: 1–63 bytes of `a-z 0-9 _ -`.
    pub name: Str,
    /// Version of the module, e.g. `1.2.3`.
    pub version: Str,
    /// Compiler, for people.
    pub built_with: Str,
    /// Callbacks.
    pub ops: *const ModuleOpsV1,
}

// SAFETY: a descriptor is immutable static data of the plugin.
unsafe impl Sync for PluginDescV1 {}

/// Properties of a module.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ModuleFlags(pub u32);

impl ModuleFlags {
    /// Nothing special.
    pub const NONE: ModuleFlags = ModuleFlags(0);
}

/// Callbacks of a module. Unless stated otherwise they run on the control thread, one at a time, must not
/// block, and may call every function of [`HostApiV1`]. Optional callbacks may be null.
///
/// Order: `init` → `init_complete` → anything → `quiesce` → (devices are removed) → `fini`; nothing is called
/// after `fini` was answered. A module whose `init` failed gets no further call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ModuleOpsV1 {
    /// Bytes of this table the plugin knows.
    pub size: u32,
    /// Properties.
    pub flags: ModuleFlags,
    /// First call, on a thread of its own that may block until the host's deadline (then the module is failed
    /// and never called again). `host` and `me` stay valid for the life of the process. `config_json` is the
    /// module's table of the configuration, `{}` if absent. Only `log`, `query`, `now_ns`, `ticks`, `alloc` and
    /// `metric_register` of the host may be called. Returns 0, or `-errno` with a text in `err` (at most
    /// `err_len` bytes with its NUL).
    pub init: unsafe extern "C" fn(
        host: *const HostApiV1,
        me: *mut HostModule,
        config_json: Str,
        err: *mut c_char,
        err_len: usize,
    ) -> i32,
    /// The module is part of the host now: register methods, pollers, watches. Optional.
    pub init_complete: Option<unsafe extern "C" fn()>,
    /// New module-wide options at run time, same shape as `config_json`. Answer `token`. Optional.
    pub configure: Option<unsafe extern "C" fn(params_json: Str, token: OpToken)>,
    /// Creates what `params_json` (one `[[bdev]]` table or the RPC's parameters) describes: open, claim,
    /// register, then answer `token` with the result JSON. The host replies to its client after everything
    /// registered under `token` is examined. On error the module has undone its part; the host removes what
    /// was registered under `token`. `-ENODEV` with the missing device's name means "not yet". Optional.
    pub create: Option<unsafe extern "C" fn(params_json: Str, token: OpToken)>,
    /// Changes the device `name` to `params_json` in place, or answers `-ENOTSUP`. Optional.
    pub update: Option<unsafe extern "C" fn(name: Str, params_json: Str, token: OpToken)>,
    /// Deletes `name`; absent: the host removes the device of that name. Optional.
    pub delete: Option<unsafe extern "C" fn(name: Str, token: OpToken)>,
    /// A new device, or one older than this module, before any I/O; the module's own devices as well. Answer
    /// `token` from inside the call. Optional.
    pub examine_config: Option<unsafe extern "C" fn(bdev: BdevHandle, name: Str, token: ExamineToken)>,
    /// As `examine_config`, but may do I/O and answer later, within the host's deadline. Optional.
    pub examine_disk: Option<unsafe extern "C" fn(bdev: BdevHandle, name: Str, token: ExamineToken)>,
    /// Something appeared or vanished; every module hears of everything. Optional.
    pub hotplug: Option<unsafe extern "C" fn(event: *const HotplugEvent)>,
    /// No new devices from now on: stop discovering. Its devices are removed next. Optional.
    pub quiesce: Option<unsafe extern "C" fn()>,
    /// Last call: release everything and answer `token`, within the host's deadline.
    pub fini: unsafe extern "C" fn(token: OpToken),
    /// JSON Schema (draft 2020-12) of `create`'s parameters under `properties.bdev` and of the module table
    /// under `properties.module`; static text. May be called before `init`. Any thread. Optional.
    pub schema: Option<unsafe extern "C" fn() -> Str>,
    /// Checks `create` parameters without creating anything and without a running module: may be called before
    /// `init`. Returns 0, or `-errno` with a text in `err` as in `init`. Any thread. Optional.
    pub validate: Option<unsafe extern "C" fn(params_json: Str, err: *mut c_char, err_len: usize) -> i32>,
    /// New log level: 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace. Any thread. Optional.
    pub set_log_level: Option<unsafe extern "C" fn(level: u32)>,
    /// A further table by name and version, e.g. `nvmf-transport` 1; null if not offered. Any thread. Optional.
    pub query: Option<unsafe extern "C" fn(id: Str, version: u32) -> *const c_void>,
    /// Checks the module's table of the configuration as `validate` checks `create` parameters. Any thread. Optional.
    pub validate_config:
        Option<unsafe extern "C" fn(config_json: Str, err: *mut c_char, err_len: usize) -> i32>,
    /// Writes the options in force as one JSON object of the shape of `config_json`; what has its default may be
    /// left out. The host asks after each method of the module, saves the answer, and gives it to a module that
    /// takes this one's place. Absent, or writing nothing: `config_json` and `configure` alone say what is in
    /// force. Optional.
    pub config_json: Option<unsafe extern "C" fn(sink: *const JsonSink)>,
}

// SAFETY: a table is immutable static data of the plugin.
unsafe impl Sync for ModuleOpsV1 {}
