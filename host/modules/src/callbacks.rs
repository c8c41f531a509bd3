//! Gate 1 on the two tables of a plugin, and what is kept of them.
//!
//! A plugin's table may be shorter (older minor) or longer (newer minor) than
//! ours, and a C plugin may have null where Rust's types say "never null".
//! So nothing here makes a reference to foreign memory: fields are read one by
//! one, as plain words, and only if `size` reaches them.
// UNSAFETY: reads tables that belong to a plugin, through raw pointers.

use core::ffi::{c_char, c_void};
use std::mem::{align_of, offset_of, size_of};

use tenon_abi::{
    ABI_MAJOR, AbiSizes, BdevHandle, ExamineToken, HostApiV1, HostModule, HotplugEvent, JsonSink, MAGIC,
    ModuleOpsV1, OpToken, PluginDescV1, Str, reaches,
};

use crate::error::LoadError;
use crate::metadata::{MAX_VERSION_LEN, check_name, check_version};
use crate::version::Version;

/// Bytes of `built_with` that are kept.
const MAX_BUILT_WITH_LEN: usize = 256;

type Init = unsafe extern "C" fn(*const HostApiV1, *mut HostModule, Str, *mut c_char, usize) -> i32;
type Notify = unsafe extern "C" fn();
type Request = unsafe extern "C" fn(Str, OpToken);
type NamedRequest = unsafe extern "C" fn(Str, Str, OpToken);
type Examine = unsafe extern "C" fn(BdevHandle, Str, ExamineToken);

/// A copy of a plugin's callbacks: those its table has and that are not null.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callbacks {
    pub(crate) init: Init,
    pub(crate) init_complete: Option<Notify>,
    pub(crate) configure: Option<Request>,
    pub(crate) create: Option<Request>,
    pub(crate) update: Option<NamedRequest>,
    pub(crate) delete: Option<Request>,
    pub(crate) examine_config: Option<Examine>,
    pub(crate) examine_disk: Option<Examine>,
    pub(crate) hotplug: Option<unsafe extern "C" fn(*const HotplugEvent)>,
    pub(crate) quiesce: Option<Notify>,
    pub(crate) fini: unsafe extern "C" fn(OpToken),
    pub(crate) schema: Option<unsafe extern "C" fn() -> Str>,
    pub(crate) validate: Option<unsafe extern "C" fn(Str, *mut c_char, usize) -> i32>,
    pub(crate) set_log_level: Option<unsafe extern "C" fn(u32)>,
    pub(crate) query: Option<unsafe extern "C" fn(Str, u32) -> *const c_void>,
    pub(crate) validate_config: Option<unsafe extern "C" fn(Str, *mut c_char, usize) -> i32>,
    pub(crate) config_json: Option<unsafe extern "C" fn(*const JsonSink)>,
}

/// What is kept of a plugin's descriptor.
#[derive(Clone, Debug)]
pub(crate) struct Descriptor {
    pub(crate) abi: (u16, u16),
    pub(crate) name: String,
    pub(crate) version: Version,
    pub(crate) built_with: String,
    pub(crate) callbacks: Callbacks,
}

/// Reads and checks a descriptor and its callbacks.
///
/// # Safety
/// `descriptor` is null or what a plugin's entry function returned: static data of the plugin, at least as
/// long as its `size` field says, with texts that are static as well.
pub(crate) unsafe fn read_descriptor(descriptor: *const PluginDescV1) -> Result<Descriptor, LoadError> {
    if descriptor.is_null() {
        return Err(LoadError::NullDescriptor);
    }
    if !descriptor.cast::<u8>().addr().is_multiple_of(align_of::<PluginDescV1>()) {
        // No compiler places a descriptor there: the function returned something else.
        return Err(LoadError::BadMagic { found: 0 });
    }
    // SAFETY: the caller vouches for a descriptor; its first 16 bytes are common to every version.
    let (magic, major, minor, size) = unsafe {
        ((*descriptor).magic, (*descriptor).abi_major, (*descriptor).abi_minor, (*descriptor).size)
    };
    if magic != MAGIC {
        return Err(LoadError::BadMagic { found: magic });
    }
    if major != ABI_MAJOR {
        return Err(LoadError::WrongMajor { found: major, host: ABI_MAJOR });
    }
    if !reaches(size, size_of::<PluginDescV1>()) {
        let min = size_of::<PluginDescV1>();
        return Err(LoadError::TableTooSmall { table: "PluginDescV1", size, min });
    }
    // SAFETY: `size` reaches every field of version 1.0, and all of them are plain words. A null `ops` is
    // representable.
    let PluginDescV1 { sizes, name, version, built_with, ops, .. } = unsafe { descriptor.read() };
    check_sizes(&sizes, &AbiSizes::current())?;
    // SAFETY: texts of a descriptor are static data of the plugin.
    let (name, version, built_with) = unsafe {
        (
            text("name", name, 63)?,
            text("version", version, MAX_VERSION_LEN)?,
            text("built_with", built_with, MAX_BUILT_WITH_LEN)?,
        )
    };
    check_name(name).map_err(|why| LoadError::BadText { field: "name", detail: why.into() })?;
    check_version(version).map_err(|why| LoadError::BadText { field: "version", detail: why.into() })?;
    // SAFETY: the caller vouches for the descriptor, hence for the table it points to.
    let callbacks = unsafe { read_callbacks(ops)? };
    Ok(Descriptor {
        abi: (major, minor),
        name: name.to_owned(),
        version: Version::new(version),
        built_with: built_with.to_owned(),
        callbacks,
    })
}

/// Names the first frozen type whose size differs.
fn check_sizes(plugin: &AbiSizes, host: &AbiSizes) -> Result<(), LoadError> {
    let pairs = [
        ("BdevIo", plugin.bdev_io, host.bdev_io),
        ("IoChannel", plugin.io_channel, host.io_channel),
        ("IoExtV1", plugin.io_ext, host.io_ext),
        ("Limits", plugin.limits, host.limits),
        ("BdevEvent", plugin.bdev_event, host.bdev_event),
        ("HotplugEvent", plugin.hotplug_event, host.hotplug_event),
        ("LogRecord", plugin.log_record, host.log_record),
        ("ErrorV1", plugin.error, host.error),
    ];
    match pairs.into_iter().find(|(_, plugin, host)| plugin != host) {
        Some((ty, plugin, host)) => Err(LoadError::WrongSize { ty, plugin, host }),
        None => Ok(()),
    }
}

/// # Safety
/// `text` is static data of a plugin.
unsafe fn text(field: &'static str, text: Str, max: usize) -> Result<&'static str, LoadError> {
    let bad = |detail: String| LoadError::BadText { field, detail };
    if text.len > max {
        return Err(bad(format!("has {} bytes, more than {max}", text.len)));
    }
    // SAFETY: the caller vouches for the text; its length was checked above.
    unsafe { text.as_str() }.ok_or_else(|| bad("is null or not UTF-8".into()))
}

/// # Safety
/// `ops` is null or a table that is as long as its first field says, with pointers to functions of the
/// signatures in [`ModuleOpsV1`] or nulls.
unsafe fn read_callbacks(ops: *const ModuleOpsV1) -> Result<Callbacks, LoadError> {
    if ops.is_null() {
        return Err(LoadError::NullCallbacks);
    }
    // SAFETY: the caller vouches for the table; every version starts with its size.
    let size = unsafe { (&raw const (*ops).size).read() };
    let min = offset_of!(ModuleOpsV1, fini) + size_of::<usize>();
    if !reaches(size, min) {
        return Err(LoadError::TableTooSmall { table: "ModuleOpsV1", size, min });
    }
    // A field behind the end of a shorter table is absent; so is a null. `Option<fn>` reads a null as `None`,
    // also where the type of the field says it cannot be null.
    macro_rules! callback {
        ($field:ident) => {
            if reaches(size, offset_of!(ModuleOpsV1, $field) + size_of::<usize>()) {
                // SAFETY: `size` reaches the field, which is one word: null or a function of this type.
                unsafe { (&raw const (*ops).$field).cast::<Option<_>>().read() }
            } else {
                None
            }
        };
    }
    Ok(Callbacks {
        init: callback!(init).ok_or(LoadError::MissingCallback { name: "init" })?,
        init_complete: callback!(init_complete),
        configure: callback!(configure),
        create: callback!(create),
        update: callback!(update),
        delete: callback!(delete),
        examine_config: callback!(examine_config),
        examine_disk: callback!(examine_disk),
        hotplug: callback!(hotplug),
        quiesce: callback!(quiesce),
        fini: callback!(fini).ok_or(LoadError::MissingCallback { name: "fini" })?,
        schema: callback!(schema),
        validate: callback!(validate),
        set_log_level: callback!(set_log_level),
        query: callback!(query),
        validate_config: callback!(validate_config),
        config_json: callback!(config_json),
    })
}

const _: () = assert!(size_of::<Option<Init>>() == size_of::<usize>());
const _: () = assert!(offset_of!(ModuleOpsV1, config_json) + size_of::<usize>() == size_of::<ModuleOpsV1>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differing_size_is_named() {
        let host = AbiSizes::current();
        let plugin = AbiSizes { limits: host.limits + 8, error: 1, ..host };
        let error = check_sizes(&plugin, &host).unwrap_err();
        assert_eq!(error, LoadError::WrongSize { ty: "Limits", plugin: host.limits + 8, host: host.limits });
        assert_eq!(check_sizes(&host, &host), Ok(()));
    }
}
