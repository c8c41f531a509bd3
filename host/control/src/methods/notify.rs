//! `notify_*`: what happened to devices and modules, by growing id. With
//! `timeout` the call waits for news instead of answering with none.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tenon_bdev::Notification;
use tenon_reactor::current;

use super::{Method, NoParams, with};
use crate::context::Control;
use crate::rpc::{Reply, RpcError};

pub const METHODS: &[(&str, Method)] =
    &[("notify_get_types", get_types), ("notify_get_notifications", get_notifications)];

/// Longest wait of one call, in milliseconds.
const MAX_TIMEOUT_MS: u64 = 600_000;

fn get_types(control: &Control, params: Value, reply: Reply) {
    with("notify_get_types", params, reply, |_: NoParams, reply| {
        reply.send(Ok(json!(control.core().notification_kinds())));
    });
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Get {
    /// First id wanted.
    #[serde(default)]
    id: u64,
    /// Most notifications in one answer.
    max: Option<usize>,
    /// Milliseconds to wait if there is none yet. 0 or absent: do not wait.
    #[serde(default)]
    timeout: u64,
}

fn get_notifications(control: &Control, params: Value, reply: Reply) {
    with("notify_get_notifications", params, reply, |params: Get, reply| {
        let found = notifications(control, params);
        if !found.is_empty() || params.timeout == 0 {
            reply.send(Ok(json!(found)));
            return;
        }
        wait(control, params, reply);
    });
}

fn notifications(control: &Control, params: Get) -> Vec<Value> {
    let max = params.max.unwrap_or(usize::MAX);
    let list = control.core().notifications(params.id, max);
    list.into_iter()
        .map(|Notification { id, kind, context, .. }| json!({ "type": kind, "ctx": context, "id": id }))
        .collect()
}

/// Answers at the first notification or at the time-out, whichever comes first.
fn wait(control: &Control, params: Get, reply: Reply) {
    let pending = Rc::new(Cell::new(Some(reply)));
    let timer = {
        let pending = pending.clone();
        current().set_timer(Duration::from_millis(params.timeout.min(MAX_TIMEOUT_MS)), move || {
            if let Some(reply) = pending.take() {
                reply.send(Ok(json!([])));
            }
        })
    };
    let timer = match timer {
        Ok(timer) => timer,
        Err(error) => {
            if let Some(reply) = pending.take() {
                let reason = format!("cannot wait: {error}");
                reply.send(Err(RpcError::new(tenon_abi::errno::EAGAIN, "notify_get_notifications", reason)));
            }
            return;
        }
    };
    listen(control, params, pending, timer);
}

fn listen(control: &Control, params: Get, pending: Rc<Cell<Option<Reply>>>, timer: tenon_reactor::TimerId) {
    let listener = Rc::new(Cell::new(None));
    let (shared, this) = (control.clone(), listener.clone());
    let id = control.core().on_notification(move |_| {
        let (control, pending, this) = (shared.clone(), pending.clone(), this.clone());
        // Later, so that the listener is not removed while it runs. Not deferred for want of room: the
        // timer answers instead.
        let _ = current().defer(move || {
            if let Some(id) = this.take() {
                control.core().remove_listener(id);
            }
            let Some(reply) = pending.take() else { return };
            current().cancel_timer(timer);
            reply.send(Ok(json!(notifications(&control, params))));
        });
    });
    listener.set(Some(id));
}
