//! Host functions for who owns a device: register, unregister, resize, events, backing.
// UNSAFETY: takes pointers from modules, as the contract has it.

use std::time::Duration;

use tenon_abi::{BdevEvent, BdevHandle, BdevV1, HostModule, OpToken, Reason, errno};
use uuid::Uuid;

use super::{arguments, control};
use crate::error::{OpError, bounded};
use crate::event::Event;
use crate::register::{KNOWN_OPS, all_names, check_limits, normalised};
use crate::registry::{Callbacks, Description};

pub(super) unsafe extern "C" fn bdev_register(
    me: *mut HostModule,
    bdev: *const BdevV1,
    op: OpToken,
    out: *mut BdevHandle,
) -> i32 {
    let Some(core) = control("bdev_register") else { return errno::EPERM };
    let Some(module) = arguments::module(me) else { return errno::EINVAL };
    // SAFETY: the module's struct is readable.
    let read = unsafe { arguments::read(bdev) };
    let (Some(bdev), false) = (read, out.is_null()) else { return errno::EINVAL };
    // SAFETY: what the struct points to is readable during the call.
    let registered =
        unsafe { describe(&bdev) }.and_then(|description| core.register_bdev(module, description, op));
    match registered {
        Ok(handle) => {
            // SAFETY: the module passed room for the handle.
            unsafe { out.write(handle) };
            0
        }
        Err(error) => {
            log::warn!("bdev is not registered module={} error={error}", module.name());
            core.refused(error)
        }
    }
}

/// Copies and checks what a module says of its device.
///
/// # Safety
/// Texts, aliases and the table `bdev` points to are readable during the call, as the contract has it.
unsafe fn describe(bdev: &BdevV1) -> Result<Description, OpError> {
    let invalid = |reason: &str| OpError::new(errno::EINVAL, "", reason);
    // SAFETY: as the caller promises.
    let (name, product) = unsafe { (arguments::text(bdev.name), arguments::text(bdev.product)) };
    let (Some(name), Some(product)) = (name, product) else { return Err(invalid("name is not text")) };
    let invalid = |reason: &str| OpError::new(errno::EINVAL, bounded(name), reason);
    // SAFETY: as the caller promises; a table that ends before `destruct` has no owner.
    if !unsafe { arguments::is_table(bdev.ops) } {
        return Err(invalid("table of callbacks is missing or too short"));
    }
    let limits = normalised(bdev.limits);
    check_limits(&limits, bdev.flags).map_err(invalid)?;
    if bdev.alias_count > MAX_ALIASES || (bdev.alias_count > 0 && bdev.aliases.is_null()) {
        return Err(invalid("list of aliases is missing or too long"));
    }
    let mut aliases = Vec::new();
    for index in 0..bdev.alias_count as usize {
        // SAFETY: `aliases` has `alias_count` entries, whose texts are readable.
        let alias = unsafe { arguments::text(bdev.aliases.add(index).read()) };
        aliases.push(alias.ok_or_else(|| invalid("alias is not text"))?);
    }
    let given = Uuid::from_bytes(bdev.uuid);
    let uuid = if given.is_nil() { Uuid::new_v4() } else { given };
    Ok(Description {
        all_names: all_names(name, &aliases, uuid)?,
        product: bounded(product).into(),
        uuid,
        nguid: bdev.nguid,
        eui64: bdev.eui64,
        numa_node: bdev.numa_node,
        flags: bdev.flags,
        limits,
        io_types: bdev.io_types & KNOWN_OPS,
        io_flags: bdev.io_flags,
        callbacks: Callbacks { ctx: bdev.ctx, ops: bdev.ops },
    })
}

pub(super) unsafe extern "C" fn bdev_unregister(bdev: BdevHandle, reason: Reason) -> i32 {
    let Some(core) = control("bdev_unregister") else { return errno::EPERM };
    if core.remove_bdev(bdev, reason) { 0 } else { errno::ENODEV }
}

pub(super) unsafe extern "C" fn bdev_resize(bdev: BdevHandle, num_blocks: u64) -> i32 {
    let Some(core) = control("bdev_resize") else { return errno::EPERM };
    core.resize_bdev(bdev, num_blocks)
}

pub(super) unsafe extern "C" fn bdev_publish(bdev: BdevHandle, event: *const BdevEvent) -> i32 {
    let Some(core) = control("bdev_publish") else { return errno::EPERM };
    // SAFETY: the module's struct is readable.
    let Some(event) = (unsafe { arguments::read(event) }) else { return errno::EINVAL };
    // SAFETY: its text is readable during the call.
    let Some(detail) = (unsafe { arguments::text(event.detail) }) else { return errno::EINVAL };
    core.publish_for_module(&Event {
        kind: event.kind,
        bdev,
        reason: event.reason,
        value: event.value,
        deadline_ns: event.deadline_ns,
        detail: bounded(detail),
    })
}

pub(super) unsafe extern "C" fn bdev_set_absent(bdev: BdevHandle, deadline_ms: u64) -> i32 {
    let Some(core) = control("bdev_set_absent") else { return errno::EPERM };
    core.backing_lost(bdev, (deadline_ms > 0).then(|| Duration::from_millis(deadline_ms)))
}

pub(super) unsafe extern "C" fn bdev_set_present(bdev: BdevHandle) -> i32 {
    let Some(core) = control("bdev_set_present") else { return errno::EPERM };
    core.backing_found(bdev)
}

/// Most aliases of one device.
const MAX_ALIASES: u32 = 16;
