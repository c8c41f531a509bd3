//! The initiator role: connections as `bdev-nvme` opens them.
//!
//! Everything happens on the reactor that connected. Events and completions are
//! given from the end's own turn ([`InitiatorEnd::run`]), never from inside a
//! call of the module.
// UNSAFETY: implements the contract's table, which takes raw pointers.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tenon_sdk::abi::transport::CloseReason;
use tenon_sdk::abi::transport::initiator::{
    ConnectParams, ConnectionEvent, ConnectionEventKind, ConnectionFn, InitiatorOpsV1, InitiatorRequest,
};
use tenon_sdk::abi::{JsonSink, Str, reaches};
use tenon_sdk::{Exported, Timer, errno};

use crate::LoopModule;
use crate::link::{ECONNREFUSED, ECONNRESET, ENOTCONN, End, Link, Slot, SlotState, TargetIs};
use crate::listeners;

/// Where the initiator's end of a connection is.
///
/// ```text
/// Connecting ──taken over──► Live ──disconnect, target gone──► Closing ──all told──► Closing, waits
///     └──refused, too late, disconnect──────────────────────────▲            ──nothing in flight──► Closed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Live,
    /// To be told.
    Closing,
    /// CLOSING was told; commands the target is busy with are awaited.
    Draining,
    Closed,
}

/// The initiator's end of a connection; on its reactor only.
pub(crate) struct InitiatorEnd {
    phase: Cell<Phase>,
    reason: Cell<CloseReason>,
    on_event: ConnectionFn,
    arg: *mut c_void,
    free: RefCell<Vec<u16>>,
    in_flight: Cell<u32>,
    /// Commands are queued, and the target's bell is not rung.
    is_gathering: Cell<bool>,
    deadline: RefCell<Option<Timer>>,
    group: Rc<Group>,
}

/// A reactor's initiators, counted.
#[derive(Default)]
struct Group {
    connections: Cell<u64>,
    commands: Cell<u64>,
}

impl InitiatorEnd {
    /// Looks what has come: the target, its answers, its end.
    pub(crate) fn run(&self, link: &Arc<Link>) {
        match (self.phase.get(), link.target_is()) {
            (Phase::Connecting, TargetIs::Open) => self.connected(link),
            (Phase::Connecting, TargetIs::Refused) => self.close(link, CloseReason::REFUSED),
            (Phase::Connecting | Phase::Live, TargetIs::Gone) => self.close(link, link.reason()),
            (Phase::Connecting, TargetIs::New)
            | (Phase::Live, TargetIs::New | TargetIs::Open | TargetIs::Refused)
            | (Phase::Closing | Phase::Draining | Phase::Closed, _) => {}
        }
        for _ in 0..link.depth() {
            let Some(index) = link.next(End::Initiator) else { break };
            self.settle(link.slot(index));
        }
        if self.phase.get() == Phase::Closing {
            self.phase.set(Phase::Draining);
            self.deadline.borrow_mut().take();
            self.tell(ConnectionEventKind::CLOSING, link);
            for slot in link.slots() {
                // One that the target is busy with comes back by itself.
                if slot.advance(SlotState::Open, SlotState::Abandoned) || slot.is_answered() {
                    self.settle(slot);
                }
            }
        }
        if self.phase.get() == Phase::Draining && self.in_flight.get() == 0 {
            self.phase.set(Phase::Closed);
            self.group.connections.set(self.group.connections.get() - 1);
            self.tell(ConnectionEventKind::CLOSED, link);
        }
    }

    fn connected(&self, link: &Arc<Link>) {
        self.phase.set(Phase::Live);
        self.deadline.borrow_mut().take();
        self.tell(ConnectionEventKind::CONNECTED, link);
    }

    fn close(&self, link: &Arc<Link>, reason: CloseReason) {
        match self.phase.get() {
            Phase::Connecting | Phase::Live => {
                self.phase.set(Phase::Closing);
                self.reason.set(reason);
                link.hang_up();
                link.ring(End::Initiator);
            }
            Phase::Closing | Phase::Draining | Phase::Closed => {}
        }
    }

    /// Completes what a slot holds, if it holds anything.
    fn settle(&self, slot: &Slot) {
        let request = slot.take_request();
        if request.is_null() {
            return;
        }
        let status = if slot.is_answered() { 0 } else { errno::ECANCELED };
        slot.clear();
        self.free.borrow_mut().push(slot.index);
        self.in_flight.set(self.in_flight.get() - 1);
        // SAFETY: the module keeps a submitted request until `done`, which is called once: it was taken out.
        unsafe {
            (*request).status = status;
            if let Some(done) = (*request).done {
                done(request, (*request).done_arg);
            }
        }
    }

    fn tell(&self, kind: ConnectionEventKind, link: &Link) {
        let is_connected = kind == ConnectionEventKind::CONNECTED;
        let event = ConnectionEvent {
            size: size_of::<ConnectionEvent>() as u32,
            kind,
            reason: if is_connected { CloseReason(0) } else { self.reason.get() },
            status: if is_connected { 0 } else { status_of(self.reason.get()) },
            queue_depth: link.depth().into(),
            in_capsule_size: link.in_capsule_size,
            detail: Str::EMPTY,
        };
        // SAFETY: the module's function and argument, valid until CLOSED; the event lives until it returns.
        unsafe { (self.on_event.0)(self.arg, &event) };
    }
}

fn status_of(reason: CloseReason) -> i32 {
    match reason {
        CloseReason::REFUSED => ECONNREFUSED,
        CloseReason::TIMEOUT => errno::ETIMEDOUT,
        CloseReason::LOCAL => errno::ECANCELED,
        _ => ECONNRESET,
    }
}

unsafe extern "C" fn poll_group_create(_options_json: Str, out: *mut *mut c_void) -> i32 {
    // SAFETY: the module gives room for the pointer.
    unsafe { *out = Rc::into_raw(Rc::new(Group::default())).cast_mut().cast() };
    0
}

unsafe extern "C" fn poll_group_destroy(group: *mut c_void) {
    // SAFETY: `poll_group_create` leaked this reference, on this reactor.
    drop(unsafe { Rc::from_raw(group.cast_const().cast::<Group>()) });
}

unsafe extern "C" fn connect(
    group: *mut c_void,
    params: *const ConnectParams,
    on_event: ConnectionFn,
    arg: *mut c_void,
    out: *mut *mut c_void,
) -> i32 {
    let Some(host) = LoopModule::host() else { return errno::ESHUTDOWN };
    let Some(reactor) = host.reactor() else { return errno::EPERM };
    // SAFETY: the module's parameters are valid for the call, its group until it is destroyed.
    let (listener, depth, deadline_ns, group) = unsafe {
        if !reaches((*params).size, ConnectParams::FIRST_SIZE) {
            return errno::EINVAL;
        }
        let text = |text: Str| text.as_str().unwrap_or_default();
        let peer = &(*params).peer;
        let listener = listeners::find(&listeners::key(text(peer.traddr), text(peer.trsvcid)));
        let most = listener.as_ref().map_or(1, |listener| listener.instance.options.max_queue_depth);
        let raw = group.cast_const().cast::<Group>();
        Rc::increment_strong_count(raw);
        (listener, (*params).queue_size.clamp(1, most) as u16, (*params).deadline_ns, Rc::from_raw(raw))
    };
    group.connections.set(group.connections.get() + 1);
    let end = InitiatorEnd {
        phase: Cell::new(Phase::Connecting),
        reason: Cell::new(CloseReason::LOCAL),
        on_event,
        arg,
        free: RefCell::new((0..depth).rev().collect()),
        in_flight: Cell::new(0),
        is_gathering: Cell::new(false),
        deadline: RefCell::default(),
        group,
    };
    let link = Link::new(host, reactor, listener, depth, end);
    announce(&link);
    let late = Arc::downgrade(&link);
    let timer = host.timer(Duration::from_nanos(deadline_ns.saturating_sub(host.now_ns())), move || {
        if let Some(link) = late.upgrade() {
            // SAFETY: a timer runs on the reactor that set it, which is the initiator's.
            unsafe { link.initiator() }.too_late(&link);
        }
    });
    // SAFETY: this is the initiator's reactor; the module gives room for the pointer.
    unsafe {
        *link.initiator().deadline.borrow_mut() = timer.ok();
        *out = Arc::into_raw(link).cast_mut().cast();
    }
    0
}

impl InitiatorEnd {
    fn too_late(&self, link: &Arc<Link>) {
        if self.phase.get() == Phase::Connecting {
            self.close(link, CloseReason::TIMEOUT);
        }
    }
}

/// Offers the connection to the target core; the answer is an event.
fn announce(link: &Arc<Link>) {
    let Some(listener) = &link.listener else {
        return link.target_left(TargetIs::Refused, CloseReason::REFUSED);
    };
    let raw = Arc::into_raw(Arc::clone(link));
    let instance = &listener.instance;
    // SAFETY: the core has the reference until it adopts or frees the connection.
    let code = unsafe {
        (instance.api.connection_new)(instance.core, listener.number, raw.cast_mut().cast::<c_void>())
    };
    if code != 0 {
        // SAFETY: the core refused it, so the reference is still ours.
        drop(unsafe { Arc::from_raw(raw) });
        link.target_left(TargetIs::Refused, CloseReason::RESOURCES);
    }
}

/// The connection behind the module's pointer.
///
/// # Safety
/// `connection` came from `connect` and is not freed.
unsafe fn link_of(connection: *mut c_void) -> Arc<Link> {
    let raw = connection.cast_const().cast::<Link>();
    // SAFETY: as the caller promises.
    unsafe {
        Arc::increment_strong_count(raw);
        Arc::from_raw(raw)
    }
}

unsafe extern "C" fn disconnect(connection: *mut c_void, reason: CloseReason, _drain_by_ns: u64) {
    // SAFETY: the module calls on the connection's reactor, before it frees it.
    unsafe {
        let link = link_of(connection);
        link.initiator().close(&link, reason);
    }
}

unsafe extern "C" fn connection_free(connection: *mut c_void) {
    // SAFETY: `connect` leaked this reference; the module gives it back once, after CLOSED.
    drop(unsafe { Arc::from_raw(connection.cast_const().cast::<Link>()) });
}

unsafe extern "C" fn submit(connection: *mut c_void, request: *mut InitiatorRequest) -> i32 {
    // SAFETY: the module calls on the connection's reactor and keeps the request until `done`.
    unsafe {
        let link = &*connection.cast_const().cast::<Link>();
        let end = link.initiator();
        if end.phase.get() != Phase::Live {
            return ENOTCONN;
        }
        let Some(index) = end.free.borrow_mut().pop() else { return errno::EAGAIN };
        (*request).connection = connection;
        link.slot(index).open(request);
        end.in_flight.set(end.in_flight.get() + 1);
        end.group.commands.set(end.group.commands.get() + 1);
        link.queue(End::Target, index);
        end.is_gathering.set(true);
    }
    0
}

unsafe extern "C" fn flush(connection: *mut c_void) {
    // SAFETY: as in `disconnect`.
    unsafe {
        let link = link_of(connection);
        if link.initiator().is_gathering.replace(false) {
            link.ring(End::Target);
        }
    }
}

unsafe extern "C" fn statistics_json(group: *mut c_void, sink: *const JsonSink) {
    // SAFETY: the group lives until it is destroyed; the sink is valid for the call.
    unsafe {
        let group = &*group.cast_const().cast::<Group>();
        let text = serde_json::json!({
            "trtype": "LOOP",
            "connections": group.connections.get(),
            "commands": group.commands.get(),
        });
        ((*sink).write)((*sink).arg, Str::new(&text.to_string()));
    }
}

/// The initiator role.
pub(crate) static OPS: InitiatorOpsV1 = InitiatorOpsV1 {
    size: size_of::<InitiatorOpsV1>() as u32,
    request_ctx_size: 0,
    poll_group_create,
    poll_group_destroy,
    connect,
    disconnect,
    connection_free,
    submit,
    flush,
    memory_register: None,
    memory_unregister: None,
    device_subscribe: None,
    statistics_json,
};
