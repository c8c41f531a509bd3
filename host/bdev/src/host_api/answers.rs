//! Host functions with which modules answer and publish.
// UNSAFETY: takes pointers from modules, as the contract has it.

use std::ffi::c_void;

use tenon_abi::{ErrorV1, ExamineAnswer, ExamineToken, HostModule, HotplugEvent, OpToken, RpcFn, Str, errno};

use super::{arguments, control};
use crate::error::{OpError, bounded};
use crate::hotplug::Published;

pub(super) unsafe extern "C" fn op_done(token: OpToken, result_json: Str, error: *const ErrorV1) {
    let Some(core) = control("op_done") else { return };
    let result = if error.is_null() {
        // SAFETY: the module's text is readable during the call.
        match unsafe { arguments::text(result_json) } {
            Some(text) => Ok(text.to_owned()),
            None => Err(OpError::new(errno::EINVAL, "", "module answered with something that is not text")),
        }
    } else {
        // SAFETY: the module's struct and its texts are readable during the call.
        Err(core.explained(unsafe { OpError::from_abi(error) }))
    };
    core.owed_answered(token, result);
}

pub(super) unsafe extern "C" fn base_is_coming(token: OpToken, name: Str) -> i32 {
    let Some(core) = control("base_is_coming") else { return 0 };
    // SAFETY: the module's text is readable during the call.
    let name = unsafe { arguments::text(name) };
    name.is_some_and(|name| core.base_is_coming(token, name)).into()
}

pub(super) unsafe extern "C" fn examine_done(token: ExamineToken, answer: ExamineAnswer, reason: Str) {
    let Some(core) = control("examine_done") else { return };
    // SAFETY: the module's text is readable during the call.
    let reason = unsafe { arguments::text(reason) }.unwrap_or_default();
    core.examine_answered(token, answer, reason);
}

pub(super) unsafe extern "C" fn notify(me: *mut HostModule, kind: Str, context: Str) -> i32 {
    let Some(core) = control("notify") else { return errno::EPERM };
    // SAFETY: the module's texts are readable during the call.
    let (kind, context) = unsafe { (arguments::text(kind), arguments::text(context)) };
    let (Some(_), Some(kind), Some(context)) = (arguments::module(me), kind, context) else {
        return errno::EINVAL;
    };
    if kind.is_empty() || kind.len() > MAX_KIND {
        return errno::EINVAL;
    }
    core.notify(kind, &bounded(context));
    0
}

pub(super) unsafe extern "C" fn rpc_register(
    me: *mut HostModule,
    method: Str,
    handler: RpcFn,
    arg: *mut c_void,
) -> i32 {
    let Some(core) = control("rpc_register") else { return errno::EPERM };
    // SAFETY: the module's text is readable during the call.
    let method = unsafe { arguments::text(method) };
    let (Some(module), Some(method)) = (arguments::module(me), method) else { return errno::EINVAL };
    core.rpc_register(module, method, handler, arg)
}

pub(super) unsafe extern "C" fn hotplug_publish(me: *mut HostModule, event: *const HotplugEvent) -> i32 {
    let Some(core) = control("hotplug_publish") else { return errno::EPERM };
    // SAFETY: the module's struct is readable.
    let event = unsafe { arguments::read(event) };
    let (Some(_), Some(event)) = (arguments::module(me), event) else { return errno::EINVAL };
    // SAFETY: its texts are readable during the call.
    let texts = unsafe {
        (arguments::text(event.subsystem), arguments::text(event.id), arguments::text(event.attributes_json))
    };
    let (Some(subsystem), Some(id), Some(attributes)) = texts else { return errno::EINVAL };
    core.tell_hotplug(Published {
        kind: event.kind,
        subsystem: bounded(subsystem),
        id: bounded(id),
        generation: event.generation,
        attributes: bounded(attributes),
    });
    0
}

pub(super) unsafe extern "C" fn hotplug_watch(me: *mut HostModule, subsystem: Str, id: Str) -> i32 {
    let Some(core) = control("hotplug_watch") else { return errno::EPERM };
    // SAFETY: the module's texts are readable during the call.
    let (subsystem, id) = unsafe { (arguments::text(subsystem), arguments::text(id)) };
    let (Some(module), Some(subsystem), Some(id)) = (arguments::module(me), subsystem, id) else {
        return errno::EINVAL;
    };
    core.hotplug_watch(module, subsystem, id)
}

pub(super) unsafe extern "C" fn hotplug_unwatch(me: *mut HostModule, subsystem: Str, id: Str) -> i32 {
    let Some(core) = control("hotplug_unwatch") else { return errno::EPERM };
    // SAFETY: the module's texts are readable during the call.
    let (subsystem, id) = unsafe { (arguments::text(subsystem), arguments::text(id)) };
    let (Some(module), Some(subsystem), Some(id)) = (arguments::module(me), subsystem, id) else {
        return errno::EINVAL;
    };
    core.hotplug_unwatch(module, subsystem, id)
}

/// Longest kind of a notification.
const MAX_KIND: usize = 128;
