//! Host functions around reactors: messages, offloaded work, pollers, timers, descriptors.
// UNSAFETY: hands C functions and their arguments to the reactor.

use std::ffi::c_void;

use tenon_abi::{FdFn, HostReactor, MessageFn, PollerFlags, PollerV1, ReactorHandle, errno};
use tenon_reactor::{
    FdId, Interest, Local, PollerId, PollerKind, ReactorId, RegisterError, SendError, TimerId, try_current,
};

use super::{arguments, wrong_thread};
use crate::thread;

pub(super) unsafe extern "C" fn reactor_current() -> *mut HostReactor {
    thread::current_reactor()
}

pub(super) unsafe extern "C" fn reactor_control() -> *mut HostReactor {
    thread::reactor_pointer(ReactorId::CONTROL)
}

pub(super) unsafe extern "C" fn reactor_count() -> u32 {
    u32::try_from(thread::reactor_count()).unwrap_or(u32::MAX)
}

pub(super) unsafe extern "C" fn reactor_nth(index: u32) -> *mut HostReactor {
    let index = index as usize;
    if index < thread::reactor_count() {
        thread::reactor_pointer(ReactorId::data(index))
    } else {
        std::ptr::null_mut()
    }
}

pub(super) unsafe extern "C" fn reactor_index(reactor: *mut HostReactor) -> u32 {
    match thread::reactor_of(reactor) {
        Some((_, index)) if index > 0 => u32::try_from(index - 1).unwrap_or(u32::MAX),
        Some(_) | None => u32::MAX,
    }
}

pub(super) unsafe extern "C" fn send(
    reactor: *mut HostReactor,
    callback: MessageFn,
    arg: *mut c_void,
) -> i32 {
    let Some((reactor, _)) = thread::reactor_of(reactor) else { return errno::EINVAL };
    // SAFETY: the module vouches that `callback` may be called with `arg` there, at any later time.
    match unsafe { reactor.send_raw(callback.0, arg) } {
        Ok(()) => 0,
        Err(SendError::QueueFull) => errno::EAGAIN,
        Err(SendError::Stopped) => errno::ESHUTDOWN,
    }
}

pub(super) unsafe extern "C" fn offload(work: MessageFn, done: MessageFn, arg: *mut c_void) -> i32 {
    let Some(local) = here("offload") else { return errno::EPERM };
    // SAFETY: the module vouches for `work` on any thread and `done` on this one.
    match unsafe { local.offload_raw(work.0, arg, done.0) } {
        Ok(()) => 0,
        Err(_) => errno::EAGAIN,
    }
}

pub(super) unsafe extern "C" fn poller_register(poller: *const PollerV1, out: *mut ReactorHandle) -> i32 {
    let Some(local) = here("poller_register") else { return errno::EPERM };
    // SAFETY: the module's struct is readable.
    let Some(poller) = (unsafe { arguments::read(poller) }) else { return errno::EINVAL };
    // SAFETY: its text is readable during the call.
    let Some(name) = (unsafe { arguments::text(poller.name) }) else { return errno::EINVAL };
    if out.is_null() || poller.flags.0 & !PollerFlags::WAKEABLE.0 != 0 {
        return errno::EINVAL;
    }
    let is_wakeable = poller.flags == PollerFlags::WAKEABLE;
    let kind = if is_wakeable { PollerKind::Wakeable } else { PollerKind::Pure };
    // SAFETY: the module vouches for callback and argument until it unregisters the poller.
    let id =
        match unsafe { local.register_poller_raw(name, poller.period_us, kind, poller.callback, poller.arg) }
        {
            Ok(id) => id,
            Err(error) => return register_code(&error),
        };
    if let Some(before_sleep) = poller.before_sleep.filter(|_| is_wakeable) {
        // SAFETY: as above.
        unsafe { local.set_before_sleep_raw(id, before_sleep, poller.arg) };
    }
    // SAFETY: the module passed room for the handle.
    unsafe { out.write(ReactorHandle(id.to_raw())) };
    0
}

pub(super) unsafe extern "C" fn poller_unregister(poller: ReactorHandle) -> i32 {
    let Some(local) = here("poller_unregister") else { return errno::EPERM };
    if local.unregister_poller(PollerId::from_raw(poller.0)) { 0 } else { errno::ENOENT }
}

pub(super) unsafe extern "C" fn poller_set(poller: ReactorHandle, period_us: u64, paused: u32) -> i32 {
    let Some(local) = here("poller_set") else { return errno::EPERM };
    let id = PollerId::from_raw(poller.0);
    if !local.set_poller_period(id, period_us) {
        return errno::ENOENT;
    }
    let found = if paused != 0 { local.pause_poller(id) } else { local.resume_poller(id) };
    if found { 0 } else { errno::ENOENT }
}

pub(super) unsafe extern "C" fn timer_start(
    delay_ns: u64,
    callback: MessageFn,
    arg: *mut c_void,
    out: *mut ReactorHandle,
) -> i32 {
    let Some(local) = here("timer_start") else { return errno::EPERM };
    let deadline_ns = local.now_ns().saturating_add(delay_ns);
    // SAFETY: the module vouches for callback and argument until the timer fires or is cancelled.
    match unsafe { local.set_timer_raw(deadline_ns, callback.0, arg) } {
        Ok(id) => {
            if !out.is_null() {
                // SAFETY: the module passed room for the handle.
                unsafe { out.write(ReactorHandle(id.to_raw())) };
            }
            0
        }
        Err(error) => register_code(&error),
    }
}

pub(super) unsafe extern "C" fn timer_cancel(timer: ReactorHandle) -> i32 {
    let Some(local) = here("timer_cancel") else { return errno::EPERM };
    if local.cancel_timer(TimerId::from_raw(timer.0)) { 0 } else { errno::ENOENT }
}

pub(super) unsafe extern "C" fn fd_register(
    fd: i32,
    events: u32,
    callback: FdFn,
    arg: *mut c_void,
    out: *mut ReactorHandle,
) -> i32 {
    let Some(local) = here("fd_register") else { return errno::EPERM };
    if out.is_null() || fd < 0 {
        return errno::EINVAL;
    }
    // SAFETY: the module vouches for callback and argument, and keeps the descriptor open, until it
    // unregisters it.
    match unsafe { local.register_fd_raw(fd, Interest::from_bits(events), callback.0, arg) } {
        Ok(id) => {
            // SAFETY: the module passed room for the handle.
            unsafe { out.write(ReactorHandle(id.to_raw())) };
            0
        }
        Err(error) => register_code(&error),
    }
}

pub(super) unsafe extern "C" fn fd_modify(fd: ReactorHandle, events: u32) -> i32 {
    let Some(local) = here("fd_modify") else { return errno::EPERM };
    match local.modify_fd(FdId::from_raw(fd.0), Interest::from_bits(events)) {
        Ok(true) => 0,
        Ok(false) => errno::ENOENT,
        Err(error) => error.raw_os_error().map_or(errno::EIO, |code| -code),
    }
}

pub(super) unsafe extern "C" fn fd_unregister(fd: ReactorHandle) -> i32 {
    let Some(local) = here("fd_unregister") else { return errno::EPERM };
    if local.unregister_fd(FdId::from_raw(fd.0)) { 0 } else { errno::ENOENT }
}

/// The reactor the caller runs on; a foreign thread is reported.
fn here(function: &'static str) -> Option<Local> {
    let local = try_current();
    if local.is_none() {
        wrong_thread(function);
    }
    local
}

fn register_code(error: &RegisterError) -> i32 {
    log::warn!("reactor refused a registration error={error}");
    match error {
        RegisterError::Epoll { source, .. } => source.raw_os_error().map_or(errno::EIO, |code| -code),
        RegisterError::TooManyPollers { .. }
        | RegisterError::TooManyTimers
        | RegisterError::TooManyFds { .. } => errno::ENOSPC,
    }
}
