//! Two small modules written against the raw contract, each able to break it
//! on purpose: a RAM disk and a pass-through. The suite must pass both when
//! they behave and name the fault when they do not.
// UNSAFETY: speaks the raw contract.
#![allow(dead_code)]

pub mod pass;
pub mod ram;

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use tenon_abi::{
    ABI_MAJOR, ABI_MINOR, AbiSizes, ErrorV1, HostApiV1, HostModule, JsonSink, MAGIC, ModuleFlags,
    ModuleOpsV1, OpToken, PluginDescV1, Str,
};

/// What `init` gave a module.
pub struct Door {
    host: AtomicPtr<HostApiV1>,
    me: AtomicPtr<HostModule>,
}

impl Door {
    pub const fn new() -> Door {
        Door { host: AtomicPtr::new(std::ptr::null_mut()), me: AtomicPtr::new(std::ptr::null_mut()) }
    }

    pub fn set(&self, host: *const HostApiV1, me: *mut HostModule) {
        self.host.store(host.cast_mut(), Ordering::Release);
        self.me.store(me, Ordering::Release);
    }

    pub fn host(&self) -> &'static HostApiV1 {
        // SAFETY: `init` stored the table, which lives as long as the process.
        unsafe { &*self.host.load(Ordering::Acquire) }
    }

    pub fn me(&self) -> *mut HostModule {
        self.me.load(Ordering::Acquire)
    }

    pub fn succeed(&self, token: OpToken) {
        // SAFETY: an empty result; no error.
        unsafe { (self.host().op_done)(token, Str::EMPTY, std::ptr::null()) };
    }

    pub fn fail(&self, token: OpToken, code: i32, object: &str, reason: &str) {
        let error = ErrorV1 {
            size: size_of::<ErrorV1>() as u32,
            code,
            object: Str::new(object),
            reason: Str::new(reason),
            cause: Str::EMPTY,
        };
        // SAFETY: the error lives during the call.
        unsafe { (self.host().op_done)(token, Str::EMPTY, &raw const error) };
    }
}

pub const fn descriptor(name: &'static str, ops: &'static ModuleOpsV1) -> PluginDescV1 {
    PluginDescV1 {
        magic: MAGIC,
        size: size_of::<PluginDescV1>() as u32,
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        sizes: AbiSizes::current(),
        name: Str::new(name),
        version: Str::new("0.0.0"),
        built_with: Str::new("rustc"),
        ops,
    }
}

/// A module table with nothing optional in it.
pub const fn plain_ops(
    init: unsafe extern "C" fn(*const HostApiV1, *mut HostModule, Str, *mut c_char, usize) -> i32,
    fini: unsafe extern "C" fn(OpToken),
) -> ModuleOpsV1 {
    ModuleOpsV1 {
        size: size_of::<ModuleOpsV1>() as u32,
        flags: ModuleFlags::NONE,
        init,
        init_complete: None,
        configure: None,
        create: None,
        update: None,
        delete: None,
        examine_config: None,
        examine_disk: None,
        hotplug: None,
        quiesce: None,
        fini,
        schema: None,
        validate: None,
        set_log_level: None,
        query: None,
        validate_config: None,
        config_json: None,
    }
}

/// Parameters of a create, checked by hand: only these keys, each of its type.
pub fn parse(text: Str, keys: &[&str]) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    // SAFETY: the host lends the text for the call this is part of.
    let text = unsafe { text.as_str() }.ok_or("parameters are not UTF-8")?;
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let serde_json::Value::Object(map) = value else { return Err("parameters are no object".to_owned()) };
    for (key, value) in &map {
        if !keys.contains(&key.as_str()) {
            return Err(format!("unknown key `{key}`"));
        }
        if !value.is_string() && !value.is_u64() {
            return Err(format!("`{key}` has the wrong type"));
        }
    }
    Ok(map)
}

pub fn string(map: &serde_json::Map<String, serde_json::Value>, key: &str) -> Result<String, String> {
    let found = map.get(key).and_then(serde_json::Value::as_str);
    found.map(str::to_owned).ok_or_else(|| format!("`{key}` is missing or no text"))
}

pub fn number(map: &serde_json::Map<String, serde_json::Value>, key: &str) -> Result<u64, String> {
    map.get(key).and_then(serde_json::Value::as_u64).ok_or_else(|| format!("`{key}` is missing or no number"))
}

/// # Safety
/// `sink` is lent by the host.
pub unsafe fn write_json(sink: *const JsonSink, text: &str) {
    // SAFETY: the caller promises it.
    unsafe { ((*sink).write)((*sink).arg, Str::new(text)) };
}

/// # Safety
/// `err` has `err_len` writable bytes.
pub unsafe fn write_error(err: *mut c_char, err_len: usize, text: &str) {
    let len = text.len().min(err_len.saturating_sub(1));
    // SAFETY: the caller promises the room.
    unsafe {
        err.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), len);
        err.add(len).write(0);
    }
}

/// Makes a pointer a number that may cross threads.
pub fn address<T>(pointer: *mut T) -> usize {
    pointer as usize
}

pub type Arg = *mut c_void;
