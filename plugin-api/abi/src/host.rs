//! What the host offers a module: one table of functions, valid for the life
//! of the process. Also the small structs only these functions use.
// UNSAFETY: the table and its texts are shared between threads.

use core::ffi::c_void;

use crate::{
    BdevEvent, BdevHandle, BdevInfo, BdevV1, ClaimKind, DescHandle, ErrorV1, ExamineAnswer, ExamineToken,
    HotplugEvent, IoChannel, OpToken, OpenFlags, ReactorHandle, Reason, Str,
};

/// A reactor; opaque.
#[repr(C)]
#[derive(Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct HostReactor {
    _private: [u8; 0],
}

/// A loaded module, as the host knows it; opaque.
#[repr(C)]
#[derive(Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct HostModule {
    _private: [u8; 0],
}

/// One log line. Texts are borrowed for the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct LogRecord {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub level: u32,
    /// Source line, or 0.
    pub line: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Module path that logs.
    pub target: Str,
    /// Source file, or empty.
    pub file: Str,
    /// The message.
    pub message: Str,
}

/// Behaviour of a poller.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct PollerFlags(pub u32);

impl PollerFlags {
    /// Must run in every turn; keeps an adaptive reactor awake.
    pub const PURE: PollerFlags = PollerFlags(0);
    /// Has a wake source of its own (a descriptor, a message, a timer): the reactor may sleep while it is idle.
    pub const WAKEABLE: PollerFlags = PollerFlags(1);
}

/// Describes a poller; copied by the host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct PollerV1 {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// Behaviour.
    pub flags: PollerFlags,
    /// For people, e.g. in `thread_get_pollers`.
    pub name: Str,
    /// Time between calls in microseconds; 0: every turn.
    pub period_us: u64,
    /// Called on the poller's reactor; returns > 0 if it did work.
    pub callback: unsafe extern "C" fn(arg: *mut c_void) -> i32,
    /// WAKEABLE only: arms the wake source before the reactor sleeps and returns > 0 if sleeping is safe, 0 if
    /// there is work. Optional.
    pub before_sleep: Option<unsafe extern "C" fn(arg: *mut c_void) -> i32>,
    /// Argument of both.
    pub arg: *mut c_void,
}

/// A message, timer or piece of offloaded work.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct MessageFn(pub unsafe extern "C" fn(arg: *mut c_void));

/// Hears that a descriptor is ready; `revents` as in epoll.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct FdFn(pub unsafe extern "C" fn(arg: *mut c_void, revents: u32));

/// Hears of a device's events, on the control thread.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct EventFn(pub unsafe extern "C" fn(arg: *mut c_void, event: *const BdevEvent));

/// Hears of memory that comes and goes, on the control thread.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct MemoryFn(
    pub unsafe extern "C" fn(arg: *mut c_void, event: BufferEvent, region: *const MemoryRegion),
);

/// Handles an RPC method on the control thread and answers `token` now or later.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct RpcFn(pub unsafe extern "C" fn(arg: *mut c_void, params_json: Str, token: OpToken));

/// A piece of memory that devices may access.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct MemoryRegion {
    /// First byte.
    pub base: *mut c_void,
    /// Length in bytes.
    pub len: u64,
    /// Never reused within one run.
    pub id: u64,
    /// NUMA node, or -1.
    pub numa_node: i32,
    /// Size of its pages in bytes.
    pub page_size: u32,
}

/// What happened to a [`MemoryRegion`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct BufferEvent(pub u32);

impl BufferEvent {
    /// New memory: register it with devices before the call returns.
    pub const ADD: BufferEvent = BufferEvent(1);
    /// It will be unmapped after the call: no device may access it any longer.
    pub const REMOVE: BufferEvent = BufferEvent(2);
}

/// Kind of a metric.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct MetricKind(pub u32);

impl MetricKind {
    /// Only grows.
    pub const COUNTER: MetricKind = MetricKind(1);
    /// Goes up and down.
    pub const GAUGE: MetricKind = MetricKind(2);
}

/// Describes a metric of a module; copied by the host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct MetricDesc {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// Kind.
    pub kind: MetricKind,
    /// `a-z 0-9 _`, with its unit last (`_bytes`, `_seconds`); the host prefixes `tenon_<module>_`.
    pub name: Str,
    /// One sentence.
    pub help: Str,
    /// Labels as a JSON object of strings, or empty.
    pub labels_json: Str,
}

/// Functions of the host. Unless stated otherwise: control thread only. A call from a wrong thread returns
/// `-EPERM` (or null/0) and is logged. Functions that return `i32` return 0 or `-errno`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct HostApiV1 {
    /// Bytes of this table the host offers.
    pub size: u32,
    /// The host's [`crate::ABI_MAJOR`].
    pub abi_major: u16,
    /// The host's [`crate::ABI_MINOR`].
    pub abi_minor: u16,

    // ---- anywhere -------------------------------------------------------------------------------------
    /// A further table by name and version, e.g. `nvmf-target` 1; null if not offered. Any thread.
    pub query: unsafe extern "C" fn(id: Str, version: u32) -> *const c_void,
    /// Logs. Any thread.
    pub log: unsafe extern "C" fn(record: *const LogRecord),
    /// Monotonic time in nanoseconds (virtual under test). Any thread.
    pub now_ns: unsafe extern "C" fn() -> u64,
    /// Cheap monotonic counter. Any thread.
    pub ticks: unsafe extern "C" fn() -> u64,
    /// Frequency of `ticks` in Hz. Any thread.
    pub ticks_hz: unsafe extern "C" fn() -> u64,
    /// Zeroed memory that devices may access; null if there is none. `align` is a power of two, `numa_node`
    /// -1 for any. Any thread; not for the data path.
    pub alloc: unsafe extern "C" fn(len: usize, align: usize, numa_node: i32) -> *mut c_void,
    /// Frees memory of `alloc`; `len` and `align` as given. Any thread.
    pub free: unsafe extern "C" fn(ptr: *mut c_void, len: usize, align: usize),
    /// Reports the regions behind `alloc` and the host's buffers: now for those that exist, later as they come
    /// and go. Control thread; `callback` runs there too. The handle ends the subscription with `memory_unsubscribe`.
    pub memory_subscribe:
        unsafe extern "C" fn(me: *mut HostModule, callback: MemoryFn, arg: *mut c_void, out: *mut u64) -> i32,
    /// Ends a subscription.
    pub memory_unsubscribe: unsafe extern "C" fn(subscription: u64) -> i32,
    /// A buffer of at least `len` bytes from the calling reactor's pool, 4096-aligned; null if none is left.
    pub buffer_get: unsafe extern "C" fn(len: usize) -> *mut c_void,
    /// Returns a buffer on the reactor that got it; `len` as given.
    pub buffer_put: unsafe extern "C" fn(buffer: *mut c_void, len: usize),
    /// A 64-bit cell the module updates with relaxed atomic operations; owned by the host, never freed.
    /// Any thread, not for the data path.
    pub metric_register:
        unsafe extern "C" fn(me: *mut HostModule, desc: *const MetricDesc, out: *mut *mut u64) -> i32,

    // ---- reactors --------------------------------------------------------------------------------------
    /// The calling thread's reactor, or null. Any thread.
    pub reactor_current: unsafe extern "C" fn() -> *mut HostReactor,
    /// The control reactor. Any thread.
    pub reactor_control: unsafe extern "C" fn() -> *mut HostReactor,
    /// Number of data reactors. Any thread.
    pub reactor_count: unsafe extern "C" fn() -> u32,
    /// Data reactor `index`, or null. Any thread.
    pub reactor_nth: unsafe extern "C" fn(index: u32) -> *mut HostReactor,
    /// Index of a data reactor; `u32::MAX` for the control reactor. Any thread.
    pub reactor_index: unsafe extern "C" fn(reactor: *mut HostReactor) -> u32,
    /// Runs `callback(arg)` on `reactor`, in order of sending. Any thread; `-EAGAIN` if its queue is full.
    pub send: unsafe extern "C" fn(reactor: *mut HostReactor, callback: MessageFn, arg: *mut c_void) -> i32,
    /// Runs `work(arg)` on a worker thread that may block, then `done(arg)` on the calling reactor.
    /// Any reactor; `-EAGAIN` if the queue of workers is full.
    pub offload: unsafe extern "C" fn(work: MessageFn, done: MessageFn, arg: *mut c_void) -> i32,
    /// Starts a poller on the calling reactor; `poller` is copied.
    pub poller_register: unsafe extern "C" fn(poller: *const PollerV1, out: *mut ReactorHandle) -> i32,
    /// Stops a poller, on its reactor; allowed inside its own callback.
    pub poller_unregister: unsafe extern "C" fn(poller: ReactorHandle) -> i32,
    /// Pauses (`paused != 0`) or resumes a poller and sets its period, on its reactor.
    pub poller_set: unsafe extern "C" fn(poller: ReactorHandle, period_us: u64, paused: u32) -> i32,
    /// Calls `callback(arg)` once on the calling reactor, `delay_ns` from now.
    pub timer_start: unsafe extern "C" fn(
        delay_ns: u64,
        callback: MessageFn,
        arg: *mut c_void,
        out: *mut ReactorHandle,
    ) -> i32,
    /// Cancels a timer, on its reactor; `-ENOENT` if it has fired.
    pub timer_cancel: unsafe extern "C" fn(timer: ReactorHandle) -> i32,
    /// Calls `callback(arg, revents)` on the calling reactor while `fd` is ready (level-triggered; `events` and
    /// `revents` as in epoll). The caller keeps `fd` open until `fd_unregister`.
    pub fd_register: unsafe extern "C" fn(
        fd: i32,
        events: u32,
        callback: FdFn,
        arg: *mut c_void,
        out: *mut ReactorHandle,
    ) -> i32,
    /// Changes the events of a watched descriptor, on its reactor.
    pub fd_modify: unsafe extern "C" fn(fd: ReactorHandle, events: u32) -> i32,
    /// Ends the watch, on its reactor; no callback after it returns.
    pub fd_unregister: unsafe extern "C" fn(fd: ReactorHandle) -> i32,

    // ---- devices, owner's side --------------------------------------------------------------------------
    /// Registers a device and starts its examination. `op` is the token of the create this belongs to, or
    /// `OpToken(0)`; the create is answered after the examination. `-EEXIST` if a name or UUID is taken;
    /// `-ETIMEDOUT` if the client of the create has been told that it did not end in time: the module takes back
    /// what it did, as for any other error.
    pub bdev_register: unsafe extern "C" fn(
        me: *mut HostModule,
        bdev: *const BdevV1,
        op: OpToken,
        out: *mut BdevHandle,
    ) -> i32,
    /// Starts the removal of a device of this module; its `destruct` is called at the end. Idempotent.
    pub bdev_unregister: unsafe extern "C" fn(bdev: BdevHandle, reason: Reason) -> i32,
    /// Sets the capacity; openers hear of it after the gate obeys the new size on every reactor.
    pub bdev_resize: unsafe extern "C" fn(bdev: BdevHandle, num_blocks: u64) -> i32,
    /// Publishes an event of a device of this module to its openers (DEGRADED, HEALTHY, PATH_CHANGED,
    /// READ_ONLY, WRITABLE, MEDIA_MANAGEMENT).
    pub bdev_publish: unsafe extern "C" fn(bdev: BdevHandle, event: *const BdevEvent) -> i32,
    /// Backing gone: I/O waits in the gate for `deadline_ms` (0: no limit), then the device is removed.
    pub bdev_set_absent: unsafe extern "C" fn(bdev: BdevHandle, deadline_ms: u64) -> i32,
    /// Backing back with the same identity: waiting I/O continues.
    pub bdev_set_present: unsafe extern "C" fn(bdev: BdevHandle) -> i32,

    // ---- devices, consumer's side -----------------------------------------------------------------------
    /// The device of that name, alias or UUID, also while it is being examined; `BdevHandle(0)` if there is none.
    pub bdev_find: unsafe extern "C" fn(name: Str) -> BdevHandle,
    /// Opens a device. `on_event` runs on the control thread; after REMOVE the owner of the descriptor must
    /// put its channels and close it. `-ENODEV` if it is gone or going, or still being examined and not offered to
    /// this module; `-EPERM` if a claim forbids it.
    pub bdev_open: unsafe extern "C" fn(
        me: *mut HostModule,
        bdev: BdevHandle,
        flags: OpenFlags,
        on_event: EventFn,
        arg: *mut c_void,
        out: *mut DescHandle,
    ) -> i32,
    /// Closes a descriptor and releases its claim. Its channels must have been put.
    pub bdev_close: unsafe extern "C" fn(desc: DescHandle) -> i32,
    /// Claims the device for this descriptor; `key` only for READ_MANY_WRITE_SHARED. `-EPERM` if another claim forbids it.
    pub bdev_claim: unsafe extern "C" fn(desc: DescHandle, kind: ClaimKind, key: u64) -> i32,
    /// Fills `info` (whose `size` the caller has set).
    pub bdev_info: unsafe extern "C" fn(bdev: BdevHandle, info: *mut BdevInfo) -> i32,
    /// The descriptor's channel on the calling reactor, opened on first use and counted; null if the device is
    /// gone, its module failed to open it, or memory is short. Any reactor.
    pub channel_get: unsafe extern "C" fn(desc: DescHandle) -> *mut IoChannel,
    /// Returns one `channel_get`, on the same reactor, with no I/O outstanding on it.
    pub channel_put: unsafe extern "C" fn(ch: *mut IoChannel),

    // ---- answers and publications ---------------------------------------------------------------------
    /// Answers an [`OpToken`] exactly once. `error` null: success with `result_json` (empty: `true`).
    pub op_done: unsafe extern "C" fn(token: OpToken, result_json: Str, error: *const ErrorV1),
    /// Answers an [`ExamineToken`] exactly once; `reason` for WAITING and FAILED.
    pub examine_done: unsafe extern "C" fn(token: ExamineToken, answer: ExamineAnswer, reason: Str),
    /// Adds a notification for `notify_get_notifications`.
    pub notify: unsafe extern "C" fn(me: *mut HostModule, kind: Str, context: Str) -> i32,
    /// Adds an RPC method: `handler` runs on the control thread and answers `token`. Removed with the module.
    /// `-EEXIST` if the method exists.
    pub rpc_register:
        unsafe extern "C" fn(me: *mut HostModule, method: Str, handler: RpcFn, arg: *mut c_void) -> i32,
    /// Publishes a hotplug event to every module.
    pub hotplug_publish: unsafe extern "C" fn(me: *mut HostModule, event: *const HotplugEvent) -> i32,
    /// Asks the host's watcher to publish events of `id` in `subsystem` (`file`: an absolute path, which need
    /// not exist). Counted.
    pub hotplug_watch: unsafe extern "C" fn(me: *mut HostModule, subsystem: Str, id: Str) -> i32,
    /// Undoes one `hotplug_watch`.
    pub hotplug_unwatch: unsafe extern "C" fn(me: *mut HostModule, subsystem: Str, id: Str) -> i32,
}

// SAFETY: the table is immutable; its functions state their own thread rules.
unsafe impl Sync for HostApiV1 {}
// SAFETY: as above.
unsafe impl Send for HostApiV1 {}

/// Identifier under which the host's `query` offers [`OperationTableV1`].
pub const QUERY_OPERATIONS: &str = "bdev-operations";

/// What a module may ask about an operation of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct OperationTableV1 {
    /// Bytes of this table the writer knows.
    pub size: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// 1 if the host would repeat the operation of `token` once a device of that name is in service, should the
    /// operation fail with `-ENODEV` and that name now: the device is being created or examined. Else 0. For a
    /// module that can begin without the device. Control thread.
    pub base_is_coming: unsafe extern "C" fn(token: OpToken, name: Str) -> i32,
}

/// Identifier under which the host's `query` offers [`KeyringTableV1`].
pub const QUERY_KEYRING: &str = "keyring";

/// Keys that the operator has given names (`keyring_file_add_key`, `[[key]]`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct KeyringTableV1 {
    /// Bytes of this table the host offers.
    pub size: u32,
    /// Reserved, 0.
    pub flags: u32,
    /// Control thread: writes the key of that name to `out`, in its text form (`DHHC-1:…:` or
    /// `NVMeTLSkey-1:…:`), and returns its length; or `-ENOENT` if there is none, `-ERANGE` if it is longer than
    /// `out_len`. The key cannot be removed until its users have released it as often as they acquired it. A
    /// module keeps the text no longer than it needs it, wipes it, and never logs it.
    pub acquire: unsafe extern "C" fn(me: *mut HostModule, name: Str, out: *mut u8, out_len: usize) -> i32,
    /// Control thread: undoes one `acquire` that gave a key.
    pub release: unsafe extern "C" fn(me: *mut HostModule, name: Str),
}
