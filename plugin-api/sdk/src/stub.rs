//! A host for unit tests that offers next to nothing: whatever a test does not
//! expect to be called panics.
// UNSAFETY: implements the functions of the host's table.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use tenon_abi::{BdevHandle, DescHandle, HostApiV1, HostModule, HostReactor, IoChannel, LogRecord};

use crate::Host;

pub(crate) fn host() -> Host {
    // SAFETY: the table is static; the module is a name nobody follows.
    unsafe { Host::new(table(), 0x10 as *mut HostModule) }.unwrap()
}

pub(crate) fn table() -> &'static HostApiV1 {
    static TABLE: OnceLock<HostApiV1> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = MaybeUninit::<HostApiV1>::zeroed();
        // SAFETY: every function is set to one that panics, whose type does not matter as it never returns;
        // then those that work are set.
        unsafe {
            let words = table.as_mut_ptr().cast::<unsafe extern "C" fn()>();
            for index in 1..size_of::<HostApiV1>() / size_of::<usize>() {
                words.add(index).write(unexpected);
            }
            let fields = table.as_mut_ptr();
            (*fields).size = size_of::<HostApiV1>() as u32;
            (*fields).abi_major = 1;
            (*fields).log = log;
            (*fields).now_ns = zero;
            (*fields).alloc = alloc;
            (*fields).free = free;
            (*fields).buffer_get = buffer_get;
            (*fields).buffer_put = buffer_put;
            (*fields).reactor_current = reactor;
            (*fields).reactor_control = reactor;
            (*fields).bdev_close = bdev_close;
            (*fields).channel_put = channel_put;
            (*fields).bdev_unregister = bdev_unregister;
            table.assume_init()
        }
    })
}

unsafe extern "C" fn unexpected() {
    panic!("the stub does not have this function");
}

unsafe extern "C" fn log(_: *const LogRecord) {}

unsafe extern "C" fn zero() -> u64 {
    0
}

unsafe extern "C" fn alloc(len: usize, align: usize, _: i32) -> *mut c_void {
    // SAFETY: the SDK asks for no empty block.
    unsafe { alloc_zeroed(Layout::from_size_align(len, align).unwrap()) }.cast()
}

unsafe extern "C" fn free(ptr: *mut c_void, len: usize, align: usize) {
    // SAFETY: as allocated above.
    unsafe { dealloc(ptr.cast(), Layout::from_size_align(len, align).unwrap()) }
}

unsafe extern "C" fn buffer_get(len: usize) -> *mut c_void {
    // SAFETY: forwards to the function above.
    unsafe { alloc(len, 4096, -1) }
}

unsafe extern "C" fn buffer_put(ptr: *mut c_void, len: usize) {
    // SAFETY: forwards to the function above.
    unsafe { free(ptr, len, 4096) }
}

unsafe extern "C" fn reactor() -> *mut HostReactor {
    0x20 as *mut HostReactor
}

unsafe extern "C" fn bdev_close(_: DescHandle) -> i32 {
    0
}

unsafe extern "C" fn bdev_unregister(_: BdevHandle, _: tenon_abi::Reason) -> i32 {
    0
}

unsafe extern "C" fn channel_put(_: *mut IoChannel) {}
