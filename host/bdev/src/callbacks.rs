//! The lifecycle callbacks of a device, called through one place.
//!
//! Checks that a module's table reaches a callback before it is called, and that
//! what the module writes is what it should be. Decides nothing.
// UNSAFETY: follows the table a module registered with its device.

use std::ffi::c_void;
use std::mem::offset_of;

use serde_json::Value;
use tenon_abi::{BdevOpsV1, JsonSink, OpToken, Str, reaches};
use tenon_modules::{ModuleRef, ModuleState};

use crate::registry::Callbacks;

impl Callbacks {
    /// Tells the module to let go of the device.
    ///
    /// # Safety
    /// The device is registered, nobody holds it, and this is called once.
    pub(crate) unsafe fn destruct(self, token: OpToken) {
        // SAFETY: registration checked that the table reaches `destruct`; the caller vouches for the rest.
        unsafe { ((*self.ops).destruct)(self.ctx, token) };
    }

    /// What the module tells operators of the device.
    ///
    /// # Safety
    /// The device is registered and not yet destructed.
    pub(crate) unsafe fn dump_json(self, device: &str) -> Option<Value> {
        // SAFETY: as the caller promises; the table is static in the plugin.
        let dump = unsafe { self.optional(offset_of!(BdevOpsV1, dump_json), |ops| (*ops).dump_json) }?;
        // SAFETY: as above.
        unsafe { self.collect(dump, device, "dump_json") }
    }

    /// The device's current parameters.
    ///
    /// # Safety
    /// As [`Callbacks::dump_json`].
    pub(crate) unsafe fn config_json(self, device: &str) -> Option<Value> {
        // SAFETY: as the caller promises; the table is static in the plugin.
        let config = unsafe { self.optional(offset_of!(BdevOpsV1, config_json), |ops| (*ops).config_json) }?;
        // SAFETY: as above.
        unsafe { self.collect(config, device, "config_json") }
    }

    /// What the module itself counts of the device.
    ///
    /// # Safety
    /// As [`Callbacks::dump_json`].
    pub(crate) unsafe fn stats_json(self, device: &str) -> Option<Value> {
        // SAFETY: as the caller promises; the table is static in the plugin.
        let stats = unsafe { self.optional(offset_of!(BdevOpsV1, stats_json), |ops| (*ops).stats_json) }?;
        // SAFETY: as above.
        unsafe { self.collect(stats, device, "stats_json") }
    }

    /// The host reset the device's statistics.
    ///
    /// # Safety
    /// As [`Callbacks::dump_json`].
    pub(crate) unsafe fn reset_stats(self) {
        // SAFETY: as the caller promises; the table is static in the plugin.
        let reset = unsafe { self.optional(offset_of!(BdevOpsV1, reset_stats), |ops| (*ops).reset_stats) };
        if let Some(reset) = reset {
            // SAFETY: as above.
            unsafe { reset(self.ctx) };
        }
    }

    /// The create that registered the device has failed.
    ///
    /// # Safety
    /// As [`Callbacks::dump_json`].
    pub(crate) unsafe fn rolled_back(self) {
        // SAFETY: as the caller promises; the table is static in the plugin.
        let told = unsafe { self.optional(offset_of!(BdevOpsV1, rolled_back), |ops| (*ops).rolled_back) };
        if let Some(told) = told {
            // SAFETY: as above.
            unsafe { told(self.ctx) };
        }
    }

    /// A callback that may be missing, by being null or by the table being shorter.
    ///
    /// # Safety
    /// As [`Callbacks::dump_json`]; `get` reads the field at `offset`.
    unsafe fn optional<T>(self, offset: usize, get: impl Fn(*const BdevOpsV1) -> Option<T>) -> Option<T> {
        // SAFETY: every table reaches its own size.
        let size = unsafe { (*self.ops).size };
        if reaches(size, offset + size_of::<Option<T>>()) { get(self.ops) } else { None }
    }

    /// # Safety
    /// As [`Callbacks::dump_json`].
    unsafe fn collect(self, callback: WriteJson, device: &str, what: &str) -> Option<Value> {
        let mut text = String::new();
        let sink = JsonSink { write: append, arg: (&raw mut text).cast() };
        // SAFETY: the callback gets its own context; the sink and the text behind it live until it returns.
        unsafe { callback(self.ctx, &sink) };
        if text.is_empty() {
            return None;
        }
        match serde_json::from_str(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                log::warn!("module wrote no valid JSON bdev={device} callback={what} error={error}");
                None
            }
        }
    }
}

/// The type of the callbacks that write JSON.
type WriteJson = unsafe extern "C" fn(ctx: *mut c_void, sink: *const JsonSink);

/// Appends a piece of text to the `String` behind `arg`.
unsafe extern "C" fn append(arg: *mut c_void, text: Str) {
    // SAFETY: `arg` is the string of the `collect` that made the sink and waits for the callback.
    let collected = unsafe { &mut *arg.cast::<String>() };
    // SAFETY: the module's text is readable during the call.
    let Some(text) = (unsafe { text.as_str() }) else { return };
    if collected.len() + text.len() <= MAX_JSON {
        collected.push_str(text);
    }
}

/// The module's code may still run.
pub(crate) fn may_be_called(module: ModuleRef) -> bool {
    match module.state() {
        ModuleState::Initialised | ModuleState::Running | ModuleState::Draining | ModuleState::Finishing => {
            true
        }
        ModuleState::Loaded | ModuleState::Initialising | ModuleState::Retired | ModuleState::Failed => false,
    }
}

/// Longest JSON text a module may write for one device.
const MAX_JSON: usize = 16 << 20;
