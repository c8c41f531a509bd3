//! The function table as a plugin sees it: checks the calling thread and the
//! arguments, copies borrowed data, and hands over to [`World`]. No policy.
// UNSAFETY: every function here is called by a module with raw pointers.

use std::ffi::c_void;
use std::rc::Rc;

use tenon_abi::{
    ABI_MAJOR, ABI_MINOR, BdevEvent, BdevHandle, BdevInfo, BdevV1, ClaimKind, DescHandle, ErrorV1, EventFn,
    ExamineAnswer, ExamineToken, FdFn, HostApiV1, HostModule, HostReactor, HotplugEvent, IoChannel,
    LogRecord, MemoryFn, MessageFn, MetricDesc, OpToken, OpenFlags, PollerV1, ReactorHandle, Reason, RpcFn,
    Str, errno,
};

use super::module::ModuleId;
use super::operation::OpError;
use super::schedule::{CONTROL, PollerSpec};
use super::shared::{self, Injected, lock, reactor_face, shared as any_host, text};
use super::world::{self, World};
use crate::violation::Fault;

/// The table the plugins get.
pub(crate) fn host_api() -> &'static HostApiV1 {
    &HOST_API
}

static HOST_API: HostApiV1 = HostApiV1 {
    size: size_of::<HostApiV1>() as u32,
    abi_major: ABI_MAJOR,
    abi_minor: ABI_MINOR,
    query,
    log,
    now_ns,
    ticks: now_ns,
    ticks_hz,
    alloc,
    free,
    memory_subscribe,
    memory_unsubscribe,
    buffer_get,
    buffer_put,
    metric_register,
    reactor_current,
    reactor_control,
    reactor_count,
    reactor_nth,
    reactor_index,
    send,
    offload,
    poller_register,
    poller_unregister,
    poller_set,
    timer_start,
    timer_cancel,
    fd_register,
    fd_modify,
    fd_unregister,
    bdev_register,
    bdev_unregister,
    bdev_resize,
    bdev_publish,
    bdev_set_absent,
    bdev_set_present,
    bdev_find,
    bdev_open,
    bdev_close,
    bdev_claim,
    bdev_info,
    channel_get,
    channel_put,
    op_done,
    examine_done,
    notify,
    rpc_register,
    hotplug_publish,
    hotplug_watch,
    hotplug_unwatch,
};

/// Runs `f` if the caller is on a reactor; else the call is a violation and gives `refused`.
fn on_reactor<R>(function: &str, refused: R, f: impl FnOnce(&Rc<World>, usize) -> R) -> R {
    if let Some(world) = world::current() {
        if let Some(reactor) = world.reactor_here() {
            return f(&world, reactor);
        }
        world.violate(Fault::WrongThread, format!("{function} was called outside every reactor"));
    } else if let Some(host) = any_host() {
        let module = shared::foreign().map_or(ModuleId::HOST, |found| found.module);
        host.violate(
            Fault::WrongThread,
            module,
            format!("{function} was called on a thread that is no reactor"),
        );
    }
    refused
}

/// Runs `f` if the caller is on the control reactor; else the call is a violation and gives `refused`.
fn on_control<R>(function: &str, refused: R, f: impl FnOnce(&Rc<World>) -> R) -> R {
    let mut refused = Some(refused);
    let answer = on_reactor(function, None, |world, reactor| {
        if reactor == CONTROL {
            return Some(f(world));
        }
        world.violate(Fault::WrongThread, format!("{function} was called on data reactor {}", reactor - 1));
        None
    });
    answer.or_else(|| refused.take()).expect("one of the two is there")
}

fn to_errno(found: bool) -> i32 {
    if found { 0 } else { errno::ENOENT }
}

/// Records a null pointer argument.
fn missing(world: &World, function: &str, what: &str) -> i32 {
    world.violate(Fault::BadCall, format!("{function}: {what} is missing or malformed"));
    errno::EINVAL
}

unsafe extern "C" fn query(id: Str, version: u32) -> *const c_void {
    // SAFETY: the contract lends the text for the call.
    let (Some(host), Some(id)) = (any_host(), unsafe { text(id) }) else { return std::ptr::null() };
    let offers = lock(&host.offers);
    let found = offers.iter().find(|(name, offered, _)| *name == id && *offered == version);
    found.map_or(std::ptr::null(), |(_, _, table)| *table as *const c_void)
}

unsafe extern "C" fn log(record: *const LogRecord) {
    if let Some(host) = any_host() {
        // SAFETY: the contract lends the record for the call.
        unsafe { host.log(record) };
    }
}

unsafe extern "C" fn now_ns() -> u64 {
    any_host().map_or(0, |host| host.now_ns())
}

unsafe extern "C" fn ticks_hz() -> u64 {
    1_000_000_000
}

/// The module the caller works for.
fn caller() -> ModuleId {
    match world::current() {
        Some(world) => world.acting.get(),
        None => shared::foreign().map_or(ModuleId::HOST, |found| found.module),
    }
}

unsafe extern "C" fn alloc(len: usize, align: usize, _numa_node: i32) -> *mut c_void {
    let Some(host) = any_host() else { return std::ptr::null_mut() };
    let pointer = lock(&host.memory).allocate(len, align, caller());
    if let Some(world) = world::current()
        && !pointer.is_null()
    {
        world.memory_added(pointer, len);
    }
    pointer
}

unsafe extern "C" fn free(ptr: *mut c_void, len: usize, align: usize) {
    let Some(host) = any_host() else { return };
    if ptr.is_null() {
        return;
    }
    let released = lock(&host.memory).release(ptr, len, align);
    match released {
        Ok(block) => {
            if let Some(world) = world::current() {
                world.memory_removed(block);
            }
        }
        Err(fault) => {
            let detail = format!("free of {len} bytes aligned to {align}: {fault:?}");
            host.violate(Fault::MemoryLeaked, caller(), detail);
        }
    }
}

unsafe extern "C" fn memory_subscribe(
    me: *mut HostModule,
    callback: MemoryFn,
    arg: *mut c_void,
    out: *mut u64,
) -> i32 {
    on_control("memory_subscribe", errno::EPERM, |world| {
        let Some(module) = world.module_of(me) else { return errno::EINVAL };
        if out.is_null() {
            return missing(world, "memory_subscribe", "`out`");
        }
        let id = world.memory_subscribe(module, callback, arg);
        // SAFETY: `out` is not null, and the contract makes it writable.
        unsafe { *out = id };
        0
    })
}

unsafe extern "C" fn memory_unsubscribe(subscription: u64) -> i32 {
    on_control("memory_unsubscribe", errno::EPERM, |world| to_errno(world.memory_unsubscribe(subscription)))
}

unsafe extern "C" fn buffer_get(len: usize) -> *mut c_void {
    on_reactor("buffer_get", std::ptr::null_mut(), |world, reactor| world.buffer_get(reactor, len))
}

unsafe extern "C" fn buffer_put(buffer: *mut c_void, len: usize) {
    on_reactor("buffer_put", (), |world, reactor| world.buffer_put(reactor, buffer, len));
}

unsafe extern "C" fn metric_register(
    me: *mut HostModule,
    desc: *const MetricDesc,
    out: *mut *mut u64,
) -> i32 {
    let Some(host) = any_host() else { return errno::ESHUTDOWN };
    // SAFETY: the contract lends the description and makes `out` writable.
    unsafe { host.metric_register(me as usize, desc, out) }
}

unsafe extern "C" fn reactor_current() -> *mut HostReactor {
    let Some(world) = world::current() else { return std::ptr::null_mut() };
    world.reactor_here().map_or(std::ptr::null_mut(), |index| world.shared.reactor(index))
}

unsafe extern "C" fn reactor_control() -> *mut HostReactor {
    any_host().map_or(std::ptr::null_mut(), |host| host.reactor(CONTROL))
}

unsafe extern "C" fn reactor_count() -> u32 {
    any_host().map_or(0, |host| host.reactor_count() as u32 - 1)
}

unsafe extern "C" fn reactor_nth(index: u32) -> *mut HostReactor {
    any_host().map_or(std::ptr::null_mut(), |host| host.reactor((index as usize).saturating_add(1)))
}

unsafe extern "C" fn reactor_index(reactor: *mut HostReactor) -> u32 {
    match reactor_face(reactor.cast()).map(|face| face.index) {
        Some(CONTROL) | None => u32::MAX,
        Some(index) => index as u32 - 1,
    }
}

unsafe extern "C" fn send(reactor: *mut HostReactor, callback: MessageFn, arg: *mut c_void) -> i32 {
    let Some(face) = reactor_face(reactor.cast()) else {
        if let Some(host) = any_host() {
            host.violate(Fault::BadCall, caller(), "send to something that is no reactor");
        }
        return errno::EINVAL;
    };
    let Some(host) = face.shared.upgrade() else { return errno::ESHUTDOWN };
    if let Some(world) = world::current()
        && std::sync::Arc::ptr_eq(&world.shared, &host)
    {
        return world.send(face.index, callback, arg);
    }
    host.inject(Injected::Message { reactor: face.index, callback, arg: arg as usize, module: caller() })
}

unsafe extern "C" fn offload(work: MessageFn, done: MessageFn, arg: *mut c_void) -> i32 {
    on_reactor("offload", errno::EPERM, |world, reactor| world.offload(reactor, work, done, arg))
}

unsafe extern "C" fn poller_register(poller: *const PollerV1, out: *mut ReactorHandle) -> i32 {
    on_reactor("poller_register", errno::EPERM, |world, reactor| {
        // SAFETY: the contract lends the description, or it is null.
        let Some(found) = (unsafe { poller.as_ref() }) else {
            return missing(world, "poller_register", "`poller`");
        };
        if out.is_null() || (found.size as usize) < size_of::<PollerV1>() {
            return missing(world, "poller_register", "`out` or `size`");
        }
        let spec = PollerSpec {
            flags: found.flags,
            period_us: found.period_us,
            callback: found.callback,
            before_sleep: found.before_sleep,
            arg: found.arg,
        };
        // SAFETY: the contract lends the name for the call.
        let name = unsafe { text(found.name) }.unwrap_or_default();
        let handle = world.poller_register(reactor, name, spec);
        // SAFETY: `out` is not null, and the contract makes it writable.
        unsafe { *out = ReactorHandle(handle) };
        0
    })
}

/// Runs `f` on a poller, timer or watch of the calling reactor; naming one of another reactor is a violation.
fn on_own_handle(function: &str, handle: ReactorHandle, f: impl FnOnce(&Rc<World>, usize) -> bool) -> i32 {
    on_reactor(function, errno::EPERM, |world, reactor| {
        if f(world, reactor) {
            return 0;
        }
        if world.is_elsewhere(reactor, handle.0) {
            world.violate(Fault::WrongThread, format!("{function} for a handle of another reactor"));
            return errno::EPERM;
        }
        errno::ENOENT
    })
}

unsafe extern "C" fn poller_unregister(poller: ReactorHandle) -> i32 {
    on_own_handle("poller_unregister", poller, |world, reactor| world.poller_unregister(reactor, poller.0))
}

unsafe extern "C" fn poller_set(poller: ReactorHandle, period_us: u64, paused: u32) -> i32 {
    on_own_handle("poller_set", poller, |world, reactor| {
        world.poller_set(reactor, poller.0, period_us, paused != 0)
    })
}

unsafe extern "C" fn timer_start(
    delay_ns: u64,
    callback: MessageFn,
    arg: *mut c_void,
    out: *mut ReactorHandle,
) -> i32 {
    on_reactor("timer_start", errno::EPERM, |world, reactor| {
        let handle = world.timer_start(reactor, delay_ns, callback, arg);
        if !out.is_null() {
            // SAFETY: not null, and the contract makes it writable.
            unsafe { *out = ReactorHandle(handle) };
        }
        0
    })
}

unsafe extern "C" fn timer_cancel(timer: ReactorHandle) -> i32 {
    on_own_handle("timer_cancel", timer, |world, reactor| world.timer_cancel(reactor, timer.0))
}

unsafe extern "C" fn fd_register(
    fd: i32,
    events: u32,
    callback: FdFn,
    arg: *mut c_void,
    out: *mut ReactorHandle,
) -> i32 {
    on_reactor("fd_register", errno::EPERM, |world, reactor| {
        if fd < 0 || out.is_null() {
            return missing(world, "fd_register", "`fd` or `out`");
        }
        if world.is_watched(reactor, fd) {
            return errno::EEXIST;
        }
        let handle = world.fd_register(reactor, fd, events, callback, arg);
        // SAFETY: `out` is not null, and the contract makes it writable.
        unsafe { *out = ReactorHandle(handle) };
        0
    })
}

unsafe extern "C" fn fd_modify(fd: ReactorHandle, events: u32) -> i32 {
    on_own_handle("fd_modify", fd, |world, reactor| world.fd_modify(reactor, fd.0, events))
}

unsafe extern "C" fn fd_unregister(fd: ReactorHandle) -> i32 {
    on_own_handle("fd_unregister", fd, |world, reactor| world.fd_unregister(reactor, fd.0))
}

unsafe extern "C" fn bdev_register(
    me: *mut HostModule,
    bdev: *const BdevV1,
    op: OpToken,
    out: *mut BdevHandle,
) -> i32 {
    on_control("bdev_register", errno::EPERM, |world| {
        let Some(module) = world.module_of(me) else { return errno::EINVAL };
        // SAFETY: the contract lends the registration with its texts for the call.
        match unsafe { world.register(module, bdev, op) } {
            Ok(handle) => {
                if !out.is_null() {
                    // SAFETY: not null, and the contract makes it writable.
                    unsafe { *out = BdevHandle(handle) };
                }
                0
            }
            Err(code) => code,
        }
    })
}

unsafe extern "C" fn bdev_unregister(bdev: BdevHandle, reason: Reason) -> i32 {
    on_control("bdev_unregister", errno::EPERM, |world| {
        world.with_own("bdev_unregister", bdev, |world, device| {
            world.unregister(device, reason);
            0
        })
    })
}

unsafe extern "C" fn bdev_resize(bdev: BdevHandle, num_blocks: u64) -> i32 {
    on_control("bdev_resize", errno::EPERM, |world| {
        world.with_own("bdev_resize", bdev, |world, device| world.resize(device, num_blocks))
    })
}

unsafe extern "C" fn bdev_publish(bdev: BdevHandle, event: *const BdevEvent) -> i32 {
    on_control("bdev_publish", errno::EPERM, |world| {
        // SAFETY: the contract lends the event for the call, or it is null.
        let Some(event) = (unsafe { event.as_ref() }) else {
            return missing(world, "bdev_publish", "`event`");
        };
        // SAFETY: as above, its text.
        let detail = unsafe { text(event.detail) }.unwrap_or_default();
        world.with_own("bdev_publish", bdev, |world, device| world.publish(device, event, detail))
    })
}

unsafe extern "C" fn bdev_set_absent(bdev: BdevHandle, deadline_ms: u64) -> i32 {
    on_control("bdev_set_absent", errno::EPERM, |world| {
        world.with_own("bdev_set_absent", bdev, |world, device| world.set_absent(device, deadline_ms))
    })
}

unsafe extern "C" fn bdev_set_present(bdev: BdevHandle) -> i32 {
    on_control("bdev_set_present", errno::EPERM, |world| {
        world.with_own("bdev_set_present", bdev, World::set_present)
    })
}

unsafe extern "C" fn bdev_find(name: Str) -> BdevHandle {
    on_control("bdev_find", BdevHandle(0), |world| {
        // SAFETY: the contract lends the text for the call.
        let name = unsafe { text(name) }.unwrap_or_default();
        BdevHandle(world.find(&name).map_or(0, |device| device.id))
    })
}

unsafe extern "C" fn bdev_open(
    me: *mut HostModule,
    bdev: BdevHandle,
    flags: OpenFlags,
    on_event: EventFn,
    arg: *mut c_void,
    out: *mut DescHandle,
) -> i32 {
    on_control("bdev_open", errno::EPERM, |world| {
        let Some(module) = world.module_of(me) else { return errno::EINVAL };
        if out.is_null() {
            return missing(world, "bdev_open", "`out`");
        }
        match world.open(module, bdev.0, flags, on_event, arg) {
            Ok(handle) => {
                // SAFETY: `out` is not null, and the contract makes it writable.
                unsafe { *out = DescHandle(handle) };
                0
            }
            Err(code) => code,
        }
    })
}

unsafe extern "C" fn bdev_close(desc: DescHandle) -> i32 {
    on_control("bdev_close", errno::EPERM, |world| world.close(desc.0))
}

unsafe extern "C" fn bdev_claim(desc: DescHandle, kind: ClaimKind, key: u64) -> i32 {
    on_control("bdev_claim", errno::EPERM, |world| world.claim(desc.0, kind, key))
}

unsafe extern "C" fn bdev_info(bdev: BdevHandle, info: *mut BdevInfo) -> i32 {
    on_control("bdev_info", errno::EPERM, |world| {
        // SAFETY: the contract makes `info` readable and writable for its `size`, or it is null.
        unsafe { world.fill_info(bdev.0, info) }
    })
}

unsafe extern "C" fn channel_get(desc: DescHandle) -> *mut IoChannel {
    on_reactor("channel_get", std::ptr::null_mut(), |world, reactor| world.channel_get(desc.0, reactor))
}

unsafe extern "C" fn channel_put(ch: *mut IoChannel) {
    on_reactor("channel_put", (), |world, reactor| world.channel_put(ch, reactor));
}

unsafe extern "C" fn op_done(token: OpToken, result_json: Str, error: *const ErrorV1) {
    on_control("op_done", (), |world| {
        // SAFETY: the contract lends result and error for the call.
        let answer = unsafe {
            match error.as_ref() {
                None => Ok(text(result_json).unwrap_or_default()),
                Some(error) => Err(OpError::from_abi(error)),
            }
        };
        world.answer_operation(token.0, answer);
    });
}

unsafe extern "C" fn examine_done(token: ExamineToken, answer: ExamineAnswer, reason: Str) {
    on_control("examine_done", (), |world| {
        // SAFETY: the contract lends the text for the call.
        let reason = unsafe { text(reason) }.unwrap_or_default();
        world.answer_examination(token.0, answer, reason);
    });
}

unsafe extern "C" fn notify(me: *mut HostModule, kind: Str, context: Str) -> i32 {
    on_control("notify", errno::EPERM, |world| {
        // SAFETY: the contract lends both texts for the call.
        let (Some(kind), Some(context)) = (unsafe { (text(kind), text(context)) }) else {
            return missing(world, "notify", "a text");
        };
        let known = world.module_of(me).is_some();
        if known {
            world.notifications.borrow_mut().push((kind, context));
        }
        if known { 0 } else { errno::EINVAL }
    })
}

unsafe extern "C" fn rpc_register(me: *mut HostModule, method: Str, handler: RpcFn, arg: *mut c_void) -> i32 {
    on_control("rpc_register", errno::EPERM, |world| {
        // SAFETY: the contract lends the text for the call.
        match (world.module_of(me), unsafe { text(method) }) {
            (Some(module), Some(name)) if !name.is_empty() => world.rpc_register(module, name, handler, arg),
            (Some(_) | None, Some(_) | None) => missing(world, "rpc_register", "the method's name"),
        }
    })
}

unsafe extern "C" fn hotplug_publish(me: *mut HostModule, event: *const HotplugEvent) -> i32 {
    on_control("hotplug_publish", errno::EPERM, |world| {
        // SAFETY: the contract lends the event for the call, or it is null.
        let (Some(_), Some(event)) = (world.module_of(me), unsafe { event.as_ref() }) else {
            return missing(world, "hotplug_publish", "`event`");
        };
        // SAFETY: as above, its texts.
        let (subsystem, id, attributes) =
            unsafe { (text(event.subsystem), text(event.id), text(event.attributes_json)) };
        world.hotplug(
            event.kind,
            &subsystem.unwrap_or_default(),
            &id.unwrap_or_default(),
            event.generation,
            &attributes.unwrap_or_default(),
        );
        0
    })
}

unsafe extern "C" fn hotplug_watch(me: *mut HostModule, subsystem: Str, id: Str) -> i32 {
    on_control("hotplug_watch", errno::EPERM, |world| {
        // SAFETY: the contract lends both texts for the call.
        match (world.module_of(me), unsafe { (text(subsystem), text(id)) }) {
            (Some(module), (Some(subsystem), Some(id))) => world.hotplug_watch(module, subsystem, id),
            _ => missing(world, "hotplug_watch", "a text"),
        }
    })
}

unsafe extern "C" fn hotplug_unwatch(me: *mut HostModule, subsystem: Str, id: Str) -> i32 {
    on_control("hotplug_unwatch", errno::EPERM, |world| {
        // SAFETY: the contract lends both texts for the call.
        match (world.module_of(me), unsafe { (text(subsystem), text(id)) }) {
            (Some(module), (Some(subsystem), Some(id))) => {
                to_errno(world.hotplug_unwatch(module, &subsystem, &id))
            }
            _ => missing(world, "hotplug_unwatch", "a text"),
        }
    })
}
