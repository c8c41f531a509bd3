//! Channels: a consumer's (descriptor, reactor) and, below it, the module's (device, reactor).
//!
//! Both start with the ABI's [`IoChannel`] head. The consumer's carries what the fast path compares a
//! request with; the module's carries the queues, the counters and what the module put there. They are
//! opened, used and closed on one reactor. The module's is closed in a turn of its own, never
//! from inside a completion, and never while I/O is outstanding on it.
//!
//! # Safety
//! Every private unsafe function takes live channels of the calling reactor.
// UNSAFETY: allocates channels and follows raw pointers between them.

use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use log::{error, warn};
use tenon_abi::{BdevFlags, BdevIo, DescHandle, IoChannel, IoFlags, IoOpsV1, IoStatus, Op, errno, reaches};
use tenon_reactor::{Local, ReactorId, TimerId, current, now_ns, try_current};

use super::backpressure::Waiting;
use super::bounce::Bounce;
use super::broadcast::{at, later};
use super::child::Pool;
use super::compare_write::CompareWrites;
use super::freeze::Phase;
use super::gate::Gate;
use super::histogram::Histogram;
use super::qos::Budget;
use super::queue::IoQueue;
use super::service::Service;
use super::split::{PARENT_SIZE, Parents};
use super::statistics::{Counters, Latency, Recent};
use super::{backpressure, statistics, submit};

/// Why a channel was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The device is going.
    #[error("bdev {0} is being removed")]
    Gone(Arc<str>),
    /// The caller is on no reactor of the gate's set.
    #[error("bdev {0}: a channel is opened on a reactor only")]
    NoReactor(Arc<str>),
    /// The module opens its own device from inside `channel_create`.
    #[error("bdev {0}: its channel is being opened")]
    Opening(Arc<str>),
    /// The module refused.
    #[error("bdev {name}: module failed to open a channel, errno {code}")]
    Module {
        /// The device.
        name: Arc<str>,
        /// `-errno` as the module gave it.
        code: i32,
    },
    /// The module answered 0 but left the channel unusable.
    #[error("bdev {name}: module opened a channel with {what}")]
    Malformed {
        /// The device.
        name: Arc<str>,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl ChannelError {
    /// The `-errno` of the same meaning.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            ChannelError::Gone(_) => errno::ENODEV,
            ChannelError::NoReactor(_) => errno::EPERM,
            ChannelError::Opening(_) => errno::EBUSY,
            ChannelError::Module { code, .. } => *code,
            ChannelError::Malformed { .. } => errno::EINVAL,
        }
    }
}

/// What a descriptor submits to on one reactor.
#[repr(C, align(64))]
pub(super) struct Consumer {
    pub io: IoChannel,
    pub module: *mut ModuleChannel,
    pub num_blocks: u64,
    /// Bytes of payload per block, interleaved metadata included.
    pub stride: u64,
    pub align_mask: usize,
    /// Largest READ and WRITE for which nothing else is to be looked at; 0: always more.
    pub quick_blocks: [u64; 2],
    /// What READ and WRITE must keep to on the fast path.
    pub fast: [FastLimits; 2],
    /// Operations this descriptor may send.
    pub allowed: u64,
    desc: DescHandle,
    references: u32,
    is_writer: bool,
}

/// Limits of READ or of WRITE; what does not keep to them is looked at again on the slow path.
#[derive(Clone, Copy, Debug)]
pub(super) struct FastLimits {
    /// 0: never on the fast path.
    pub max_blocks: u64,
    /// An I/O must not cross multiples of `boundary`, a power of two; else mask 0 and no boundary.
    pub boundary_mask: u64,
    pub boundary: u64,
    pub refused_flags: u16,
}

/// A module's channel with everything the gate keeps beside it.
#[repr(C, align(64))]
pub(super) struct ModuleChannel {
    pub io: IoChannel,
    // The second line: all that the fast path touches beside the head.
    pub next_timed_ns: u64,
    /// I/Os until the next one is timed, of those that are not counted in `recent`.
    pub sample_left: u32,
    /// One I/O in so many is timed.
    pub sample_every: u32,
    /// The reactor, for its time.
    pub local: Local,
    pub recent: Recent,
    /// Without what is in `recent`.
    pub counters: Counters,

    pub gate: Arc<Gate>,
    pub reactor: ReactorId,
    pub service: Rc<Service>,
    pub consumers: Vec<*mut Consumer>,
    pub batch: Option<unsafe extern "C" fn(*mut IoChannel, *const *mut BdevIo, u32)>,
    pub abort: Option<unsafe extern "C" fn(*mut IoChannel, *mut BdevIo) -> i32>,
    pub release: Option<unsafe extern "C" fn(*mut IoChannel, *mut BdevIo)>,

    pub epoch: u64,
    pub phase: Phase,
    pub is_resetting: bool,
    /// The device is kept free for compare-and-writes.
    pub is_exclusive: bool,
    /// Waits for the gate to open.
    pub held: IoQueue,
    /// Refused by the module for want of resources, and what came after.
    pub nomem: IoQueue,
    pub nomem_wait: Waiting,
    /// Waits for the rate limits: reads, writes.
    pub limited: [IoQueue; 2],
    /// Those the gate carries out itself.
    pub compare_writes: CompareWrites,
    pub budget: Option<Arc<Budget>>,
    pub budget_timer: Option<TimerId>,
    pub parents: Parents,
    /// Null until something is cut.
    pub pool: *mut Pool,
    /// Position in the list of `service`, or `usize::MAX`.
    pub service_index: usize,

    pub latency: [Latency; Op::COUNT as usize],
    pub histograms: [Option<Box<Histogram>>; Op::COUNT as usize],
    pub reported_faults: u32,
    is_closing: bool,
}

impl ModuleChannel {
    /// The device of a channel.
    ///
    /// # Safety
    /// `m` is live for `'a`.
    pub(super) unsafe fn gate<'a>(m: *const Self) -> &'a Arc<Gate> {
        // SAFETY: as promised by the caller.
        unsafe { &(*m).gate }
    }

    /// The bounce buffers a channel shares with others of its reactor.
    ///
    /// # Safety
    /// As for [`ModuleChannel::gate`].
    pub(super) unsafe fn bounce<'a>(m: *const Self) -> &'a Bounce {
        // SAFETY: as promised by the caller; a channel keeps its service.
        unsafe { &(*Rc::as_ptr(&(*m).service)).bounce }
    }

    /// Whether I/O must not go to the module now.
    pub(super) fn is_closed(&self) -> bool {
        self.phase != Phase::Running || self.is_resetting || self.is_exclusive
    }

    /// I/Os that wait in the gate on this reactor.
    pub(super) fn queued(&self) -> u32 {
        let limited = self.limited[0].len() + self.limited[1].len();
        self.held.len() + self.nomem.len() + limited + self.compare_writes.len()
    }

    /// Makes the census current; called where a queue grew or shrank.
    pub(super) fn queue_changed(&self) {
        self.gate.slot(self.reactor).queued.store(self.queued(), Ordering::Relaxed);
    }

    /// Whether a request can go to the module with nothing but the fast checks.
    pub(super) fn is_open(&self) -> bool {
        !self.is_closed() && self.budget.is_none() && self.queued() == 0
    }
}

impl Drop for ModuleChannel {
    fn drop(&mut self) {
        if !self.pool.is_null() {
            // SAFETY: made by `Pool::new`; a channel is freed when nothing is being cut.
            drop(unsafe { Box::from_raw(self.pool) });
        }
    }
}

impl Gate {
    /// The channel of `desc` on the calling reactor, opened on first use and counted.
    ///
    /// A frozen or absent device gives one too: its I/O waits.
    ///
    /// # Errors
    /// If the device is orphaned, the module refuses, or the caller is on no reactor.
    pub fn channel_get(
        self: &Arc<Self>,
        desc: DescHandle,
        write: bool,
    ) -> Result<*mut IoChannel, ChannelError> {
        let name = || Arc::clone(&self.spec.name);
        let local = try_current().ok_or_else(|| ChannelError::NoReactor(name()))?;
        let id = local.id();
        if self.directory().get(id) != Some(&local.reactor()) {
            return Err(ChannelError::NoReactor(name()));
        }
        if self.published().phase == Phase::Orphaned {
            return Err(ChannelError::Gone(name()));
        }
        let m = match self.channel_here(id) {
            Some(m) => m,
            None => create(self, id)?,
        };
        // SAFETY: `m` is this reactor's channel; it is closed only in a turn of its own.
        unsafe {
            let consumers = &(*m).consumers;
            let found = consumers.iter().copied().find(|&c| (*c).desc == desc);
            if let Some(c) = found {
                (*c).references += 1;
                return Ok(c.cast());
            }
            (*m).is_closing = false;
            let c = new_consumer(m, desc, write);
            (*m).consumers.push(c);
            count_consumers(m);
            submit::refresh_consumer(c);
            submit::update_ops(m);
            Ok(c.cast())
        }
    }

    /// Returns one [`Gate::channel_get`]. The last of a descriptor on a reactor frees its channel, the
    /// last descriptor on a reactor closes the module's, in a turn of its own.
    ///
    /// # Safety
    /// `ch` came from `channel_get` on the calling reactor, is put once per get, and none of its
    /// I/O is outstanding.
    pub unsafe fn channel_put(ch: *mut IoChannel) {
        let c = ch.cast::<Consumer>();
        // SAFETY: the caller gives back a live channel of this reactor.
        unsafe {
            (*c).references -= 1;
            if (*c).references > 0 {
                return;
            }
            let m = (*c).module;
            refuse_leftovers(m, c);
            (*m).consumers.retain(|&other| other != c);
            count_consumers(m);
            drop(Box::from_raw(c));
            if (*m).consumers.is_empty() {
                (*m).is_closing = true;
                let (gate, id) = (Arc::clone(&(*m).gate), (*m).reactor);
                later(move || close(&gate, id));
            }
        }
    }
}

/// Opens the module's channel on the calling reactor.
fn create(gate: &Arc<Gate>, id: ReactorId) -> Result<*mut ModuleChannel, ChannelError> {
    let name = || Arc::clone(&gate.spec.name);
    if gate.slot(id).is_opening.swap(true, Ordering::Relaxed) {
        return Err(ChannelError::Opening(name()));
    }
    gate.set_open(id, true);
    let made = create_module_channel(gate, id);
    gate.slot(id).is_opening.store(false, Ordering::Relaxed);
    if made.is_err() {
        gate.set_open(id, false);
    }
    made
}

fn create_module_channel(gate: &Arc<Gate>, id: ReactorId) -> Result<*mut ModuleChannel, ChannelError> {
    let name = || Arc::clone(&gate.spec.name);
    let m = Box::into_raw(new_module_channel(gate, id));
    // SAFETY: `m` was just allocated; the module's callbacks are valid for the life of the process.
    unsafe {
        let ops = gate.spec.ops;
        let code = ((*ops).channel_create)(gate.spec.ctx, &raw mut (*m).io);
        if code != 0 {
            drop(Box::from_raw(m));
            return Err(ChannelError::Module { name: name(), code: code.min(-1) });
        }
        if let Err(what) = adopt(m) {
            ((*ops).channel_destroy)(gate.spec.ctx, &raw mut (*m).io);
            drop(Box::from_raw(m));
            return Err(ChannelError::Malformed { name: name(), what });
        }
        gate.set_channel_here(id, m);
        submit::refresh(m);
        Ok(m)
    }
}

/// Checks what the module made of its channel and takes over from it.
unsafe fn adopt(m: *mut ModuleChannel) -> Result<(), &'static str> {
    // SAFETY: the caller just had the module fill in the head of its live `m`.
    unsafe {
        let ops = (*m).io.ops;
        if ops.is_null() {
            return Err("no operations");
        }
        let size = (*ops).size;
        if !reaches(size, std::mem::offset_of!(IoOpsV1, submit) + FN) {
            return Err("a table of operations that does not reach submit");
        }
        if (*m).io.io_ctx_size > MAX_IO_CTX_SIZE || !(*m).io.io_ctx_size.is_multiple_of(64) {
            return Err("an I/O context that is not a multiple of 64 or too large");
        }
        let reach = |offset: usize| reaches(size, offset + FN);
        (*m).batch = (*ops).submit_batch.filter(|_| reach(std::mem::offset_of!(IoOpsV1, submit_batch)));
        (*m).abort = (*ops).abort.filter(|_| reach(std::mem::offset_of!(IoOpsV1, abort)));
        (*m).release = (*ops).release.filter(|_| reach(std::mem::offset_of!(IoOpsV1, release)));
        (*m).io.retry = Some(backpressure::retry);
        (*m).io.host = m.cast();
        if Pool::is_needed(&ModuleChannel::gate(m).spec) {
            (*m).pool = Pool::new((*m).io.io_ctx_size);
        }
    }
    Ok(())
}

fn new_module_channel(gate: &Arc<Gate>, id: ReactorId) -> Box<ModuleChannel> {
    let published = gate.published();
    Box::new(ModuleChannel {
        io: head(id),
        next_timed_ns: 0,
        sample_left: statistics::SAMPLE_EVERY,
        sample_every: statistics::SAMPLE_EVERY,
        local: current(),
        recent: Recent::new(statistics::SAMPLE_EVERY),
        counters: Counters::default(),
        gate: Arc::clone(gate),
        reactor: id,
        service: Service::here(),
        consumers: Vec::new(),
        batch: None,
        abort: None,
        release: None,
        epoch: published.epoch,
        phase: published.phase,
        is_resetting: published.is_resetting,
        is_exclusive: published.is_exclusive,
        held: IoQueue::new(),
        nomem: IoQueue::new(),
        nomem_wait: Waiting::default(),
        limited: [IoQueue::new(), IoQueue::new()],
        compare_writes: CompareWrites::default(),
        budget: None,
        budget_timer: None,
        parents: Parents::default(),
        pool: ptr::null_mut(),
        service_index: usize::MAX,
        latency: [Latency::default(); Op::COUNT as usize],
        histograms: [const { None }; Op::COUNT as usize],
        reported_faults: 0,
        is_closing: false,
    })
}

unsafe fn new_consumer(m: *mut ModuleChannel, desc: DescHandle, is_writer: bool) -> *mut Consumer {
    // SAFETY: the caller passes its live module channel.
    let (gate, mut io, io_ctx_size) = unsafe { (&(*m).gate, head((*m).reactor), (*m).io.io_ctx_size) };
    let limits = &gate.spec.limits;
    let interleaved = gate.spec.flags.contains(BdevFlags::METADATA_INTERLEAVED);
    io.ops = &raw const submit::GUARDED_OPS;
    io.io_ctx_size = io_ctx_size.max(PARENT_SIZE);
    Box::into_raw(Box::new(Consumer {
        io,
        module: m,
        num_blocks: 0,
        stride: u64::from(limits.block_size) + if interleaved { u64::from(limits.md_size) } else { 0 },
        align_mask: limits.required_alignment.max(1) as usize - 1,
        quick_blocks: [0; 2],
        fast: [FastLimits { max_blocks: 0, boundary_mask: 0, boundary: u64::MAX, refused_flags: !0 }; 2],
        allowed: 0,
        desc,
        references: 1,
        is_writer,
    }))
}

fn head(id: ReactorId) -> IoChannel {
    IoChannel {
        ops: ptr::null(),
        ctx: ptr::null_mut(),
        outstanding: 0,
        io_ctx_size: 0,
        flags: 0,
        faults: 0,
        reactor: crate::thread::reactor_pointer(id),
        host: ptr::null_mut(),
        retry: None,
        reserved: [0],
    }
}

impl Consumer {
    /// Whether its descriptor was opened for writing.
    pub(super) fn is_writer(&self) -> bool {
        self.is_writer
    }
}

/// A consumer that puts a channel with I/O still in the gate broke the contract; the I/O is answered.
unsafe fn refuse_leftovers(m: *mut ModuleChannel, c: *mut Consumer) {
    // SAFETY: both are live channels of this reactor; what the queues hold is valid until answered.
    unsafe {
        let of_consumer = |io: *mut BdevIo| (*io).ch == c.cast();
        loop {
            let left = (*m).held.remove_first(of_consumer);
            let left = left.or_else(|| (*m).limited[0].remove_first(of_consumer));
            let left = left.or_else(|| (*m).limited[1].remove_first(of_consumer));
            let left = left.or_else(|| (*m).compare_writes.waiting.remove_first(of_consumer));
            let Some(io) = left else { break };
            (*m).queue_changed();
            error!("channel put with I/O waiting on it bdev={} reactor={}", (*m).gate.name(), (*m).reactor);
            submit::finish(io, IoStatus::ABORTED);
        }
    }
}

unsafe fn count_consumers(m: *mut ModuleChannel) {
    // SAFETY: the caller passes its live module channel.
    let (gate, id, consumers) = unsafe { (&(*m).gate, (*m).reactor, &(*m).consumers) };
    gate.slot(id).consumers.store(consumers.len() as u32, Ordering::Relaxed);
}

/// Closes the module's channel on the calling reactor if still nobody uses it.
fn close(gate: &Arc<Gate>, id: ReactorId) {
    let Some(m) = gate.channel_here(id) else { return };
    // SAFETY: `m` is this reactor's channel, and this runs in a turn of its own: no frame uses it.
    unsafe {
        if !(*m).is_closing {
            return;
        }
        if (*m).io.outstanding > 0 || (*m).queued() > 0 || !(*m).parents.is_empty() {
            if gate.may_warn() {
                warn!(
                    "channel cannot be closed: I/O left bdev={} reactor={id} outstanding={} queued={}",
                    gate.name(),
                    (*m).io.outstanding,
                    (*m).queued()
                );
            }
            let gate = Arc::clone(gate);
            return at(now_ns() + CLOSE_RETRY_NS, move || close(&gate, id));
        }
        statistics::retire(m);
        if let Some(timer) = (*m).budget_timer.take() {
            current().cancel_timer(timer);
        }
        Waiting::cancel(m);
        Rc::clone(&(*m).service).forget(m);
        gate.set_channel_here(id, ptr::null_mut());
        ((*gate.spec.ops).channel_destroy)(gate.spec.ctx, &raw mut (*m).io);
        statistics::report_faults(m);
        drop(Box::from_raw(m));
        gate.set_open(id, gate.channel_here(id).is_some());
    }
}

/// The flags a consumer may pass to the module as they are.
pub(super) fn passed_flags(gate: &Gate) -> u16 {
    let mut passed = gate.spec.io_flags as u16 & !IoFlags::LENT.0 | IoFlags::NO_RETRY.0;
    if !gate.understands(IoFlags::LEND) {
        passed &= !IoFlags::LEND.0;
    }
    passed
}

/// Most driver context per I/O a stack of devices may ask for, in bytes.
pub const MAX_IO_CTX_SIZE: u32 = 1 << 20;
/// How long a channel whose consumer left I/O behind waits before it is looked at again.
const CLOSE_RETRY_NS: u64 = 10_000_000;
/// Bytes of a function pointer in a table.
const FN: usize = size_of::<usize>();
