//! The host's side of the contract: the table of functions that modules call.
//!
//! Each function checks what it is given and where it is called from, turns it
//! into the crate's own types, and calls the engine that does the work. None of
//! them panics or blocks. A call from a wrong thread is refused and reported once
//! per function. By subject: `anywhere`, `reactors`, `owner`, `consumer`, `answers`.
// UNSAFETY: every function takes pointers from modules, as the contract has it.

mod answers;
mod anywhere;
mod arguments;
mod consumer;
mod owner;
mod reactors;

use std::collections::HashSet;

use parking_lot::Mutex;
use tenon_abi::{ABI_MAJOR, ABI_MINOR, HostApiV1, OperationTableV1, QUERY_OPERATIONS};

use crate::core::Core;

pub use anywhere::register_host_table;

/// The table every module of the process is given.
static HOST_API: HostApiV1 = HostApiV1 {
    size: size_of::<HostApiV1>() as u32,
    abi_major: ABI_MAJOR,
    abi_minor: ABI_MINOR,
    query: anywhere::query,
    log: anywhere::log,
    now_ns: anywhere::now_ns,
    ticks: anywhere::ticks,
    ticks_hz: anywhere::ticks_hz,
    alloc: anywhere::alloc,
    free: anywhere::free,
    memory_subscribe: anywhere::memory_subscribe,
    memory_unsubscribe: anywhere::memory_unsubscribe,
    buffer_get: anywhere::buffer_get,
    buffer_put: anywhere::buffer_put,
    metric_register: anywhere::metric_register,
    reactor_current: reactors::reactor_current,
    reactor_control: reactors::reactor_control,
    reactor_count: reactors::reactor_count,
    reactor_nth: reactors::reactor_nth,
    reactor_index: reactors::reactor_index,
    send: reactors::send,
    offload: reactors::offload,
    poller_register: reactors::poller_register,
    poller_unregister: reactors::poller_unregister,
    poller_set: reactors::poller_set,
    timer_start: reactors::timer_start,
    timer_cancel: reactors::timer_cancel,
    fd_register: reactors::fd_register,
    fd_modify: reactors::fd_modify,
    fd_unregister: reactors::fd_unregister,
    bdev_register: owner::bdev_register,
    bdev_unregister: owner::bdev_unregister,
    bdev_resize: owner::bdev_resize,
    bdev_publish: owner::bdev_publish,
    bdev_set_absent: owner::bdev_set_absent,
    bdev_set_present: owner::bdev_set_present,
    bdev_find: consumer::bdev_find,
    bdev_open: consumer::bdev_open,
    bdev_close: consumer::bdev_close,
    bdev_claim: consumer::bdev_claim,
    bdev_info: consumer::bdev_info,
    channel_get: consumer::channel_get,
    channel_put: consumer::channel_put,
    op_done: answers::op_done,
    examine_done: answers::examine_done,
    notify: answers::notify,
    rpc_register: answers::rpc_register,
    hotplug_publish: answers::hotplug_publish,
    hotplug_watch: answers::hotplug_watch,
    hotplug_unwatch: answers::hotplug_unwatch,
};

/// The table of functions the host offers to modules.
pub fn host_api() -> &'static HostApiV1 {
    register_host_table(QUERY_OPERATIONS, 1, &OPERATION_TABLE);
    &HOST_API
}

/// What [`HostApiV1::query`] offers beside the tables of the layers above.
static OPERATION_TABLE: OperationTableV1 = OperationTableV1 {
    size: size_of::<OperationTableV1>() as u32,
    flags: 0,
    base_is_coming: answers::base_is_coming,
};

/// The core, if the caller is on the control reactor; else it is reported.
fn control(function: &'static str) -> Option<Core> {
    let core = Core::current();
    if core.is_none() {
        wrong_thread(function);
    }
    core
}

/// Reports, once per function, that a module called from where it must not.
fn wrong_thread(function: &'static str) {
    static REPORTED: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let is_new = REPORTED.lock().get_or_insert_with(HashSet::new).insert(function);
    if is_new {
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        log::error!("module called a function from a wrong thread function={function} thread={thread}");
    }
}
