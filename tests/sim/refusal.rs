//! A host that refuses what a module asks for when a test wants it to: memory,
//! timers, messages, registrations. The initiator's module gets its host's table
//! of functions by way of this file.
// UNSAFETY: is a host of the contract as far as it passes on what a module asks for.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use tenon_abi::{
    BdevHandle, BdevV1, HostApiV1, HostModule, HostReactor, MessageFn, ModuleOpsV1, OpToken, PluginDescV1,
    ReactorHandle, Str, errno,
};

/// What may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Memory,
    Timer,
    Message,
    Registration,
}

pub const WISHES: [Wish; 4] = [Wish::Memory, Wish::Timer, Wish::Message, Wish::Registration];

/// Refuses wishes of one kind: so many after the first so many.
#[derive(Clone, Copy)]
struct Refusal {
    wish: Wish,
    granted: u64,
    refused: u64,
}

thread_local! {
    static REFUSAL: Cell<Option<Refusal>> = const { Cell::new(None) };
}

/// Refuses `refused` wishes, once `granted` have been granted.
pub fn refuse(wish: Wish, granted: u64, refused: u64) {
    REFUSAL.set(Some(Refusal { wish, granted, refused }));
}

/// Grants everything; whether something was refused.
pub fn grant_all(refused: u64) -> bool {
    REFUSAL.take().is_some_and(|left| left.refused < refused)
}

fn is_refused(wish: Wish) -> bool {
    let Some(mut refusal) = REFUSAL.get().filter(|refusal| refusal.wish == wish) else { return false };
    let is_refused = refusal.granted == 0 && refusal.refused > 0;
    match refusal.granted {
        0 => refusal.refused = refusal.refused.saturating_sub(1),
        _ => refusal.granted -= 1,
    }
    REFUSAL.set(Some(refusal));
    is_refused
}

type Init = unsafe extern "C" fn(*const HostApiV1, *mut HostModule, Str, *mut c_char, usize) -> i32;

static REAL_INIT: OnceLock<Init> = OnceLock::new();
static REAL: OnceLock<HostApiV1> = OnceLock::new();
static REFUSING: OnceLock<HostApiV1> = OnceLock::new();

/// The descriptor of a module whose host may refuse; of one module per process.
///
/// # Safety
/// The descriptor is valid for ever.
pub unsafe fn refusing(descriptor: *const PluginDescV1) -> *const PluginDescV1 {
    // SAFETY: the caller's descriptor and its table are static.
    let (mut descriptor, mut ops): (PluginDescV1, ModuleOpsV1) =
        unsafe { (descriptor.read(), (*descriptor).ops.read()) };
    REAL_INIT.set(ops.init).expect("one module");
    ops.init = init;
    descriptor.ops = Box::leak(Box::new(ops));
    Box::leak(Box::new(descriptor))
}

unsafe extern "C" fn init(
    host: *const HostApiV1,
    me: *mut HostModule,
    config: Str,
    error: *mut c_char,
    error_len: usize,
) -> i32 {
    // SAFETY: the host's table is static, and as long as this process's build has it.
    let real = REAL.get_or_init(|| unsafe { host.read() });
    let table = HostApiV1 { alloc, timer_start, send, bdev_register, ..*real };
    let real_init = REAL_INIT.get().expect("it has a descriptor");
    // SAFETY: as the host calls it, with a table that lives for ever.
    unsafe { real_init(REFUSING.get_or_init(|| table), me, config, error, error_len) }
}

fn real() -> &'static HostApiV1 {
    REAL.get().expect("it was initialised with it")
}

unsafe extern "C" fn alloc(len: usize, align: usize, numa_node: i32) -> *mut c_void {
    if is_refused(Wish::Memory) {
        return std::ptr::null_mut();
    }
    // SAFETY: passed on as it came.
    unsafe { (real().alloc)(len, align, numa_node) }
}

unsafe extern "C" fn timer_start(
    delay_ns: u64,
    callback: MessageFn,
    arg: *mut c_void,
    out: *mut ReactorHandle,
) -> i32 {
    if is_refused(Wish::Timer) {
        return errno::ENOMEM;
    }
    // SAFETY: passed on as it came.
    unsafe { (real().timer_start)(delay_ns, callback, arg, out) }
}

unsafe extern "C" fn send(reactor: *mut HostReactor, callback: MessageFn, arg: *mut c_void) -> i32 {
    if is_refused(Wish::Message) {
        return errno::EAGAIN;
    }
    // SAFETY: passed on as it came.
    unsafe { (real().send)(reactor, callback, arg) }
}

unsafe extern "C" fn bdev_register(
    me: *mut HostModule,
    bdev: *const BdevV1,
    op: OpToken,
    out: *mut BdevHandle,
) -> i32 {
    if is_refused(Wish::Registration) {
        return errno::ENOMEM;
    }
    // SAFETY: passed on as it came.
    unsafe { (real().bdev_register)(me, bdev, op, out) }
}
