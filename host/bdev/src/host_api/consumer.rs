//! Host functions for who uses a device: find, open, claim, information, channels.
// UNSAFETY: takes pointers from modules, as the contract has it.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;

use tenon_abi::{
    BdevHandle, BdevInfo, ClaimKind, DescHandle, EventFn, HostModule, IoChannel, OpenFlags, Str, errno,
};

use super::{arguments, control, wrong_thread};
use crate::claim::{Claim, Owner};
use crate::descriptor::EventSink;
use crate::io::Gate;

thread_local! {
    /// Keeps the texts of the last `bdev_info` alive until the next.
    static LAST_INFO: RefCell<Option<(Arc<str>, Arc<str>)>> = const { RefCell::new(None) };
}

pub(super) unsafe extern "C" fn bdev_find(name: Str) -> BdevHandle {
    let Some(core) = control("bdev_find") else { return BdevHandle(0) };
    // SAFETY: the module's text is readable during the call.
    let Some(name) = (unsafe { arguments::text(name) }) else { return BdevHandle(0) };
    core.find_coming(name).unwrap_or(BdevHandle(0))
}

pub(super) unsafe extern "C" fn bdev_open(
    me: *mut HostModule,
    bdev: BdevHandle,
    flags: OpenFlags,
    on_event: EventFn,
    arg: *mut c_void,
    out: *mut DescHandle,
) -> i32 {
    let Some(core) = control("bdev_open") else { return errno::EPERM };
    let (Some(module), false) = (arguments::module(me), out.is_null()) else { return errno::EINVAL };
    let write = match flags {
        OpenFlags::READ => false,
        OpenFlags::WRITE => true,
        OpenFlags(_) => return errno::EINVAL,
    };
    if !module.state().is_in_service() {
        return errno::ESHUTDOWN;
    }
    if !core.may_use(bdev, module) {
        log::debug!("bdev is not opened: its examination is not over module={}", module.name());
        return errno::ENODEV;
    }
    let sink = EventSink::Module { callback: on_event, arg };
    match core.open_descriptor(bdev, Owner::Module(module), write, sink) {
        Ok(desc) => {
            // SAFETY: the module passed room for the handle.
            unsafe { out.write(desc) };
            0
        }
        Err(error) => {
            log::debug!("bdev is not opened module={} error={error}", module.name());
            core.refused(error)
        }
    }
}

pub(super) unsafe extern "C" fn bdev_close(desc: DescHandle) -> i32 {
    let Some(core) = control("bdev_close") else { return errno::EPERM };
    if core.close_descriptor(desc) { 0 } else { errno::ENODEV }
}

pub(super) unsafe extern "C" fn bdev_claim(desc: DescHandle, kind: ClaimKind, key: u64) -> i32 {
    let Some(core) = control("bdev_claim") else { return errno::EPERM };
    let Some(claim) = Claim::from_abi(kind, key) else { return errno::EINVAL };
    match core.claim_descriptor(desc, claim) {
        Ok(()) => 0,
        Err(error) => {
            log::debug!("claim is refused error={error}");
            core.refused(error)
        }
    }
}

pub(super) unsafe extern "C" fn bdev_info(bdev: BdevHandle, info: *mut BdevInfo) -> i32 {
    let Some(core) = control("bdev_info") else { return errno::EPERM };
    if info.is_null() || !info.is_aligned() {
        return errno::EINVAL;
    }
    // SAFETY: the module passed a struct that starts with its size.
    let room = unsafe { info.cast::<u32>().read() } as usize;
    if room < MIN_INFO {
        return errno::EINVAL;
    }
    let filled = room.min(size_of::<BdevInfo>());
    let registry = core.inner.registry.borrow();
    let Some(record) = registry.get(bdev) else { return errno::ENODEV };
    let mut limits = record.limits;
    limits.num_blocks = record.gate.num_blocks();
    let texts = (record.name.clone(), record.product.clone());
    let answer = BdevInfo {
        size: filled as u32,
        flags: record.flags,
        bdev,
        limits,
        io_types: record.gate.io_types(),
        io_flags: record.io_flags,
        uuid: record.uuid.into_bytes(),
        nguid: record.nguid,
        eui64: record.eui64,
        numa_node: record.numa_node,
        state: record.state().to_abi(),
        name: Str::new(&texts.0),
        product: Str::new(&texts.1),
        module: Str::new(record.module.name()),
    };
    // SAFETY: the module passed room for `room` bytes, of which no more than that are written.
    unsafe { info.cast::<u8>().copy_from_nonoverlapping((&raw const answer).cast(), filled) };
    let _ = LAST_INFO.try_with(|last| last.replace(Some(texts)));
    0
}

pub(super) unsafe extern "C" fn channel_get(desc: DescHandle) -> *mut IoChannel {
    if tenon_reactor::try_current().is_none() {
        wrong_thread("channel_get");
        return std::ptr::null_mut();
    }
    match crate::descriptor::channel_get_raw(desc) {
        Ok(channel) => channel,
        Err(error) => {
            log::debug!("channel is not opened error={error}");
            std::ptr::null_mut()
        }
    }
}

pub(super) unsafe extern "C" fn channel_put(ch: *mut IoChannel) {
    if ch.is_null() {
        return;
    }
    if tenon_reactor::try_current().is_none() {
        return wrong_thread("channel_put");
    }
    // SAFETY: the module gives back one `channel_get` of this reactor.
    unsafe { Gate::channel_put(ch) };
}

/// Bytes of [`BdevInfo`] up to its handle: the least a caller must have room for.
const MIN_INFO: usize = std::mem::offset_of!(BdevInfo, limits);
