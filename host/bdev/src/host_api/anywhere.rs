//! Host functions that need no device: tables, logs, time, memory, metrics.
// UNSAFETY: takes pointers from modules, as the contract has it.

use std::collections::BTreeMap;
use std::ffi::c_void;

use parking_lot::RwLock;
use tenon_abi::{HostModule, LogRecord, MemoryFn, MetricDesc, Str, errno};

use super::{arguments, control};

/// Tables of the layers above, by name and version.
static TABLES: RwLock<BTreeMap<(&'static str, u32), Table>> = RwLock::new(BTreeMap::new());

/// The address of a static table.
struct Table(*const c_void);

// SAFETY: the address of an immutable static table, which any thread may read.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

/// Offers modules a further table of functions, e.g. `nvmf-target` version 1. Registering it again
/// changes nothing. Any thread.
pub fn register_host_table<T: Sync>(id: &'static str, version: u32, table: &'static T) {
    let table = Table((&raw const *table).cast());
    TABLES.write().entry((id, version)).or_insert(table);
}

pub(super) unsafe extern "C" fn query(id: Str, version: u32) -> *const c_void {
    // SAFETY: the module's text is readable during the call.
    let Some(id) = (unsafe { arguments::text(id) }) else { return std::ptr::null() };
    let tables = TABLES.read();
    let found = tables.iter().find(|((name, its_version), _)| *name == id && *its_version == version);
    found.map_or(std::ptr::null(), |(_, table)| table.0)
}

pub(super) unsafe extern "C" fn log(record: *const LogRecord) {
    // SAFETY: as the contract has it; the bridge checks pointer and size.
    unsafe { tenon_modules::log_bridge::log(record) };
}

pub(super) unsafe extern "C" fn now_ns() -> u64 {
    tenon_reactor::now_ns()
}

pub(super) unsafe extern "C" fn ticks() -> u64 {
    tenon_reactor::ticks()
}

pub(super) unsafe extern "C" fn ticks_hz() -> u64 {
    tenon_reactor::ticks_hz()
}

pub(super) unsafe extern "C" fn alloc(len: usize, align: usize, numa_node: i32) -> *mut c_void {
    crate::memory::device_alloc(len, align, numa_node)
}

pub(super) unsafe extern "C" fn free(ptr: *mut c_void, len: usize, align: usize) {
    // SAFETY: the module gives back what it got from `alloc`.
    unsafe { crate::memory::device_free(ptr, len, align) };
}

pub(super) unsafe extern "C" fn memory_subscribe(
    me: *mut HostModule,
    callback: MemoryFn,
    arg: *mut c_void,
    out: *mut u64,
) -> i32 {
    let Some(core) = control("memory_subscribe") else { return errno::EPERM };
    let Some(module) = arguments::module(me) else { return errno::EINVAL };
    if out.is_null() {
        return errno::EINVAL;
    }
    match core.memory_subscribe(module, callback, arg) {
        Ok(id) => {
            // SAFETY: the module passed room for the handle.
            unsafe { out.write(id) };
            0
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn memory_unsubscribe(subscription: u64) -> i32 {
    let Some(core) = control("memory_unsubscribe") else { return errno::EPERM };
    if core.memory_unsubscribe(subscription) { 0 } else { errno::ENOENT }
}

pub(super) unsafe extern "C" fn buffer_get(len: usize) -> *mut c_void {
    crate::buffers::buffer_get(len)
}

pub(super) unsafe extern "C" fn buffer_put(buffer: *mut c_void, len: usize) {
    // SAFETY: the module gives back what it got from `buffer_get`.
    unsafe { crate::buffers::buffer_put(buffer, len) };
}

pub(super) unsafe extern "C" fn metric_register(
    me: *mut HostModule,
    desc: *const MetricDesc,
    out: *mut *mut u64,
) -> i32 {
    let Some(module) = arguments::module(me) else { return errno::EINVAL };
    // SAFETY: the module's struct is readable.
    let Some(desc) = (unsafe { arguments::read(desc) }) else { return errno::EINVAL };
    // SAFETY: its texts are readable during the call.
    let texts = unsafe {
        (arguments::text(desc.name), arguments::text(desc.help), arguments::text(desc.labels_json))
    };
    let ((Some(name), Some(help), Some(labels)), false) = (texts, out.is_null()) else {
        return errno::EINVAL;
    };
    match crate::metrics::register(module.name(), desc.kind, name, help, labels) {
        Ok(cell) => {
            // SAFETY: the module passed room for the address.
            unsafe { out.write(cell.as_ptr()) };
            0
        }
        Err(error) => {
            log::warn!("metric is refused module={} error={error}", module.name());
            match error {
                crate::metrics::MetricError::TooMany => errno::ENOSPC,
                crate::metrics::MetricError::OtherKind(_) => errno::EEXIST,
                crate::metrics::MetricError::Name(_)
                | crate::metrics::MetricError::Kind(_)
                | crate::metrics::MetricError::Labels(_) => errno::EINVAL,
            }
        }
    }
}
