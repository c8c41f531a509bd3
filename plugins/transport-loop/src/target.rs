//! The target role: instances, listeners and the target's end of connections.
//!
//! Every call into the target core and every copy of payload happens here, on
//! the reactor the core chose for the connection.
// UNSAFETY: implements the contract's tables, which take raw pointers.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nvme_spec::command::{CommandFlags, Sqe};
use nvme_spec::sgl::{DataPointer, SglDescriptor, SglIdentifier};
use nvme_spec::zerocopy::{FromBytes, IntoBytes};
use tenon_sdk::abi::transport::target::{
    ConnectionInfo, DiscoveryInfo, Disposition, HostQueuePair, HostTransport, NvmfTargetApiV1, TargetOpsV1,
    TargetRequest,
};
use tenon_sdk::abi::transport::{CloseReason, Direction, TransportId};
use tenon_sdk::abi::{IoVec, JsonSink, OpToken as RawToken, Str};
use tenon_sdk::{Error, Exported, OpToken, errno};

use crate::config::LoopOptions;
use crate::link::{ECONNRESET, End, Link, Slot, SlotState, TargetIs, copy, pieces};
use crate::listeners::{self, Listener};
use crate::{LoopModule, TRTYPE};

/// An instance of the target role.
pub(crate) struct Instance {
    pub(crate) options: LoopOptions,
    pub(crate) api: &'static NvmfTargetApiV1,
    pub(crate) core: *mut HostTransport,
    connections: AtomicU64,
    commands: AtomicU64,
}

// SAFETY: the core's handle is an opaque name that only the core follows; everything else is immutable or atomic.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

/// Where the target's end of a connection is.
///
/// ```text
/// New ──adopt──► Open ──close, hang-up──► Closing ──told the core──► Closed ──free──► Freed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Open,
    Closing,
    Closed,
    Freed,
}

/// The target's end of a connection; on its reactor only.
pub(crate) struct TargetEnd {
    phase: Cell<Phase>,
    queue: Cell<*mut HostQueuePair>,
    reason: Cell<CloseReason>,
}

impl TargetEnd {
    pub(crate) fn new() -> Self {
        TargetEnd {
            phase: Cell::new(Phase::New),
            queue: Cell::new(std::ptr::null_mut()),
            reason: Cell::new(CloseReason::PEER),
        }
    }

    /// Looks what has come: commands, a hang-up, an end.
    pub(crate) fn run(&self, link: &Arc<Link>) {
        let Some(listener) = &link.listener else { return };
        if self.phase.get() == Phase::Open {
            if link.has_hung_up() {
                self.close(link, CloseReason::PEER);
            } else {
                self.receive(link, &listener.instance);
            }
        }
        if self.phase.get() == Phase::Closing {
            self.phase.set(Phase::Closed);
            // SAFETY: the queue was opened by the core and is closed once.
            unsafe { (listener.instance.api.queue_pair_closed)(self.queue.get(), self.reason.get()) };
        }
    }

    fn receive(&self, link: &Arc<Link>, instance: &Instance) {
        // As many as there are slots: what comes meanwhile rings again.
        for _ in 0..link.depth() {
            let Some(index) = link.next(End::Target) else { return };
            instance.commands.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the slot came from the initiator and is the target's now; this is the target's reactor.
            unsafe { self.begin(link, instance, link.slot(index)) };
            if self.phase.get() != Phase::Open {
                return;
            }
        }
        link.ring(End::Target);
    }

    /// # Safety
    /// On the target's reactor, with a slot that the initiator has just handed over.
    unsafe fn begin(&self, link: &Arc<Link>, instance: &Instance, slot: &Slot) {
        let request = slot.target.get();
        // SAFETY: the slot's target part is this end's.
        let is_taken = slot.with_request(SlotState::Open, |source| unsafe {
            let mut sqe = Sqe::read_from_bytes(&source.sqe[..]).unwrap_or(EMPTY_SQE);
            let is_out = source.direction == Direction::TO_CONTROLLER;
            let fits = is_out && source.length > 0 && source.length <= link.in_capsule_size;
            let identifier =
                if fits { SglIdentifier::DATA_BLOCK_OFFSET } else { SglIdentifier::TRANSPORT_DATA_BLOCK };
            sqe.flags = CommandFlags(sqe.flags.0 & !PSDT_MASK | CommandFlags::PSDT_SGL.0);
            sqe.dptr = DataPointer::from(SglDescriptor::new(identifier, 0, source.length));
            (*request).sqe.copy_from_slice(sqe.as_bytes());
            (*request).cqe = [0; 16];
            (*request).queue_pair = self.queue.get();
            (*request).capsule_length = 0;
            (*request).capsule_data = std::ptr::null_mut();
            if fits {
                let capsule = &mut *slot.capsule.get();
                let room = [IoVec { base: capsule.as_mut_ptr().cast(), len: capsule.len() }];
                let from = pieces(source.iovs, source.iovcnt);
                (*request).capsule_length = copy(from, &room, source.length as usize) as u32;
                (*request).capsule_data = capsule.as_mut_ptr().cast();
            }
        });
        if is_taken.is_none() {
            return answer(link, slot);
        }
        // SAFETY: the request is filled, and stays until it is released.
        unsafe {
            match (instance.api.request_begin)(request) {
                Disposition::RECEIVE => fill_and_execute(instance, slot),
                Disposition::EXECUTE => (instance.api.request_execute)(request),
                Disposition::RESPOND => request_complete(request),
                // WAIT, and whatever a newer core may say: it comes back by `request_buffers`.
                _ => {}
            }
        }
    }

    fn close(&self, link: &Arc<Link>, reason: CloseReason) {
        match self.phase.get() {
            Phase::Open => {
                self.phase.set(Phase::Closing);
                self.reason.set(reason);
                link.ring(End::Target);
            }
            Phase::New | Phase::Closing | Phase::Closed | Phase::Freed => {}
        }
    }
}

/// Fetches a command's payload and runs it; a command that was taken back goes to the core as it is.
///
/// # Safety
/// The core has given the slot's request memory to fill.
unsafe fn fill_and_execute(instance: &Instance, slot: &Slot) {
    let request = slot.target.get();
    // SAFETY: the initiator's payload is valid while the slot is busy; the core's until the request is released.
    let is_filled = slot.with_request(SlotState::Open, |source| unsafe {
        let to = pieces((*request).iovs, (*request).iovcnt);
        copy(pieces(source.iovs, source.iovcnt), to, source.length as usize) == (*request).length as usize
    });
    // SAFETY: the request was begun with RECEIVE; a broken transfer must not reach the device.
    unsafe {
        match is_filled {
            Some(true) => (instance.api.request_execute)(request),
            Some(false) => (instance.api.request_fail)(request, DATA_TRANSFER_ERROR),
            None => release(instance, slot),
        }
    }
}

/// # Safety
/// The slot's request was begun, and is the transport's.
unsafe fn release(instance: &Instance, slot: &Slot) {
    // SAFETY: the link lives as long as requests of it are with the core.
    unsafe {
        (instance.api.request_release)(slot.target.get());
        let raw: *const Link = slot.link.load(Ordering::Acquire);
        Arc::increment_strong_count(raw);
        answer(&Arc::from_raw(raw), slot);
    }
}

/// Gives a slot back to the initiator.
fn answer(link: &Arc<Link>, slot: &Slot) {
    link.queue(End::Initiator, slot.index);
    link.ring(End::Initiator);
}

unsafe extern "C" fn request_complete(request: *mut TargetRequest) {
    // SAFETY: every request the core has is the first member of a slot, whose link lives until `free`.
    unsafe {
        let slot = &*request.cast::<Slot>();
        let link = &*slot.link.load(Ordering::Acquire);
        let Some(listener) = &link.listener else { return };
        let _ = slot.with_request(SlotState::Answered, |source| {
            let from = pieces((*request).iovs, (*request).iovcnt);
            if (*request).direction == Direction::TO_HOST && source.direction == Direction::TO_HOST {
                let limit = (*request).length.min(source.length) as usize;
                copy(from, pieces(source.iovs, source.iovcnt), limit);
            }
            source.cqe = (*request).cqe;
        });
        release(&listener.instance, slot);
    }
}

unsafe extern "C" fn request_buffers(request: *mut TargetRequest) {
    // SAFETY: as in `request_complete`; the request waited for memory.
    unsafe {
        let slot = &*request.cast::<Slot>();
        let link = &*slot.link.load(Ordering::Acquire);
        let Some(listener) = &link.listener else { return };
        let is_out = (*request).direction == Direction::TO_CONTROLLER;
        if is_out && (*request).capsule_length == 0 {
            fill_and_execute(&listener.instance, slot);
        } else {
            (listener.instance.api.request_execute)(request);
        }
    }
}

unsafe extern "C" fn connection_adopt(_: *mut c_void, connection: *mut c_void) -> i32 {
    // SAFETY: `connect` leaked this reference for the core; it is taken back here or in `connection_free`.
    let link = unsafe { Arc::from_raw(connection.cast_const().cast::<Link>()) };
    let code = adopt(&link, connection);
    if code == 0 {
        let _ = Arc::into_raw(link);
    } else {
        link.target_left(TargetIs::Refused, CloseReason::REFUSED);
    }
    code
}

fn adopt(link: &Arc<Link>, connection: *mut c_void) -> i32 {
    let (Some(listener), Some(reactor)) = (&link.listener, link.host.reactor()) else { return errno::EPERM };
    if link.has_hung_up() {
        // The reference goes with the failed adoption.
        return ECONNRESET;
    }
    let id = TransportId {
        size: size_of::<TransportId>() as u32,
        trtype: TRTYPE,
        adrfam: TRTYPE,
        reserved: 0,
        traddr: Str::new("loop"),
        trsvcid: Str::EMPTY,
        subnqn: Str::EMPTY,
    };
    let info = ConnectionInfo {
        size: size_of::<ConnectionInfo>() as u32,
        queue_depth: link.depth().into(),
        in_capsule_size: link.in_capsule_size,
        secure: 0,
        peer: id,
        local: id,
        listener: listener.number,
        psk_identity: Str::EMPTY,
    };
    let mut queue: *mut HostQueuePair = std::ptr::null_mut();
    let instance = &listener.instance;
    // SAFETY: on the reactor the core chose; the structs live until the call returns.
    let code = unsafe { (instance.api.queue_pair_open)(instance.core, connection, &info, &mut queue) };
    if code != 0 {
        return code;
    }
    // SAFETY: this is the target's reactor from now on.
    let end = unsafe { link.target() };
    end.queue.set(queue);
    end.phase.set(Phase::Open);
    instance.connections.fetch_add(1, Ordering::Relaxed);
    if link.taken_over(reactor) {
        link.ring(End::Target);
    }
    link.ring(End::Initiator);
    0
}

unsafe extern "C" fn connection_close(connection: *mut c_void, reason: CloseReason, _drain_by_ns: u64) {
    // SAFETY: the core has the connection until `connection_free`; this is its reactor.
    unsafe {
        let raw = connection.cast_const().cast::<Link>();
        Arc::increment_strong_count(raw);
        let link = Arc::from_raw(raw);
        link.target().close(&link, reason);
    }
}

unsafe extern "C" fn connection_free(connection: *mut c_void) {
    // SAFETY: the core gives the connection up, on its reactor, after its last request.
    unsafe {
        let link = Arc::from_raw(connection.cast_const().cast::<Link>());
        let end = link.target();
        end.phase.set(Phase::Freed);
        if let Some(listener) = &link.listener {
            listener.instance.connections.fetch_sub(1, Ordering::Relaxed);
        }
        // What the core calls local is the peer's doing to the initiator.
        let reason = match end.reason.get() {
            CloseReason::LOCAL => CloseReason::PEER,
            reason => reason,
        };
        link.target_left(TargetIs::Gone, reason);
    }
}

unsafe extern "C" fn create(
    core: *mut HostTransport,
    api: *const NvmfTargetApiV1,
    options_json: Str,
    token: RawToken,
    out: *mut *mut c_void,
) {
    // SAFETY: the core calls on the control thread with a table that outlives the instance and a token of its own.
    unsafe {
        answer_token(token, || {
            let options = LoopOptions::parse(options_json.as_str().unwrap_or_default())?;
            let instance = Instance {
                options,
                api: &*api,
                core,
                connections: AtomicU64::new(0),
                commands: AtomicU64::new(0),
            };
            *out = Arc::into_raw(Arc::new(instance)).cast_mut().cast();
            Ok(())
        });
    }
}

unsafe extern "C" fn destroy(transport: *mut c_void, token: RawToken) {
    // SAFETY: `create` leaked this reference; listeners and connections are gone.
    unsafe {
        drop(Arc::from_raw(transport.cast_const().cast::<Instance>()));
        answer_token(token, || Ok(()));
    }
}

/// # Safety
/// On the control thread, with a token nobody else answers.
unsafe fn answer_token(token: RawToken, work: impl FnOnce() -> Result<(), Error>) {
    let Some(host) = LoopModule::host() else { return };
    // SAFETY: as the caller promises.
    let token = unsafe { OpToken::from_raw(host, token) };
    match work() {
        Ok(()) => token.done(),
        Err(error) => token.fail(error),
    }
}

/// The instance behind the core's pointer.
///
/// # Safety
/// `transport` came from `create` and is not destroyed.
unsafe fn instance(transport: *mut c_void) -> Arc<Instance> {
    let raw = transport.cast_const().cast::<Instance>();
    // SAFETY: as the caller promises.
    unsafe {
        Arc::increment_strong_count(raw);
        Arc::from_raw(raw)
    }
}

unsafe extern "C" fn listen(
    transport: *mut c_void,
    number: u64,
    address: *const TransportId,
    _options_json: Str,
    token: RawToken,
) {
    // SAFETY: the core's address is valid for the call, its context until `destroy`.
    unsafe {
        let text = |text: Str| text.as_str().unwrap_or_default();
        let (traddr, trsvcid) = (text((*address).traddr), text((*address).trsvcid));
        let listener = Listener { instance: instance(transport), number };
        answer_token(token, || {
            if traddr.is_empty() {
                return Err(Error::invalid("traddr is empty: must be a name of your choice"));
            }
            if !listeners::add(listeners::key(traddr, trsvcid), listener) {
                return Err(Error::new(errno::EEXIST, "the address is in use").object(traddr));
            }
            Ok(())
        });
    }
}

unsafe extern "C" fn stop_listen(transport: *mut c_void, number: u64, token: RawToken) {
    // SAFETY: as in `listen`.
    unsafe {
        listeners::remove(&instance(transport), number);
        answer_token(token, || Ok(()));
    }
}

unsafe extern "C" fn options_json(transport: *mut c_void, sink: *const JsonSink) {
    // SAFETY: the context lives until `destroy`; the sink is valid for the call.
    unsafe {
        let text = serde_json::to_string(&instance(transport).options).unwrap_or_default();
        ((*sink).write)((*sink).arg, Str::new(&text));
    }
}

unsafe extern "C" fn statistics_json(group: *mut c_void, sink: *const JsonSink) {
    // SAFETY: a poll group is its instance; the sink is valid for the call.
    unsafe {
        let instance = instance(group);
        let text = serde_json::json!({
            "trtype": "LOOP",
            "connections": instance.connections.load(Ordering::Relaxed),
            "commands": instance.commands.load(Ordering::Relaxed),
        });
        ((*sink).write)((*sink).arg, Str::new(&text.to_string()));
    }
}

unsafe extern "C" fn listener_discover(_: *mut c_void, _: u64, out: *mut DiscoveryInfo) -> i32 {
    // SAFETY: the core gives room for the struct.
    unsafe { *out = DiscoveryInfo { treq: 0, reserved: [0; 7], tsas: [0; 256] } };
    0
}

unsafe extern "C" fn poll_group_create(transport: *mut c_void, out: *mut *mut c_void) -> i32 {
    // Bells wake a reactor by themselves: a group is its instance.
    // SAFETY: the core gives room for the pointer.
    unsafe { *out = transport };
    0
}

unsafe extern "C" fn poll_group_destroy(_: *mut c_void) {}

/// The target role.
pub(crate) static OPS: TargetOpsV1 = TargetOpsV1 {
    size: size_of::<TargetOpsV1>() as u32,
    flags: 0,
    create,
    destroy,
    options_json,
    statistics_json,
    listen,
    stop_listen,
    listener_discover,
    poll_group_create,
    poll_group_destroy,
    connection_adopt,
    connection_close,
    connection_free,
    request_complete,
    request_buffers,
};

/// Both bits of a command's PSDT field.
const PSDT_MASK: u8 = 0b1100_0000;
/// Data Transfer Error as the status field of a completion.
const DATA_TRANSFER_ERROR: u16 = 0x04 << 1;
/// Stands for 64 bytes that are not there, which cannot be.
const EMPTY_SQE: Sqe = nvme_spec::zerocopy::transmute!([0_u8; 64]);
