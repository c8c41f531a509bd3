//! One queue: a connection, and the commands that are on it.
//!
//! Requests are allocated when the connection is made, as many as the queue has
//! entries; a command borrows one with the thing it was submitted for
//! ([`Carried`]), which owns or keeps the payload and comes back exactly once.
// UNSAFETY: lays out requests with the transport's context behind them, and gives the transport payloads that
// what is carried keeps valid.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;

use tenon_abi::transport::initiator::{
    ConnectParams, ConnectionEvent, ConnectionEventKind, ConnectionFn, InitiatorRequest,
};
use tenon_abi::transport::{CloseReason, Direction};
use tenon_abi::{IoVec, Str};

use crate::channel::{Channel, Victim};
use crate::fabric::{FabricAddress, FabricGroup};
use crate::host::key::ChannelKey;
use crate::host::memory::DmaBuf;
use crate::io::Io;
use crate::{Error, errno};

/// What a command is submitted for: it keeps the payload valid, and comes back with the command's end.
///
/// Implemented for [`OwnPayload`] and [`IoOrOwn`] only: the transport reads and writes the payload by pointer.
pub trait Carried: sealed::Sealed + Sized + 'static {
    #[doc(hidden)]
    fn payload(&self) -> &[IoVec];
}

mod sealed {
    /// Keeps [`super::Carried`] to the types of this file.
    pub trait Sealed {}
}

/// A command of the module's own: its memory, and whatever the module wants to find again.
pub struct OwnPayload<K> {
    memory: Option<DmaBuf>,
    list: Box<[IoVec]>,
    /// What the command is for.
    pub kind: K,
}

impl<K> OwnPayload<K> {
    /// A command with `memory` as its payload, or without one.
    pub fn new(memory: Option<DmaBuf>, kind: K) -> Self {
        let list = match &memory {
            Some(memory) => {
                let slice = memory.as_slice();
                Box::new([IoVec { base: slice.as_ptr().cast_mut().cast(), len: slice.len() }]) as Box<[IoVec]>
            }
            None => Box::new([]),
        };
        OwnPayload { memory, list, kind }
    }

    /// The memory back, and what it was for.
    pub fn into_parts(self) -> (Option<DmaBuf>, K) {
        (self.memory, self.kind)
    }
}

impl<K> sealed::Sealed for OwnPayload<K> {}
impl<K: 'static> Carried for OwnPayload<K> {
    fn payload(&self) -> &[IoVec] {
        &self.list
    }
}

/// What an I/O queue carries: I/Os, and a few commands of the module's own.
pub enum IoOrOwn<C: Channel, K> {
    /// An I/O of a channel.
    Io(Io<C>),
    /// A command of the module's own.
    Own(OwnPayload<K>),
}

impl<C: Channel, K> sealed::Sealed for IoOrOwn<C, K> {}
impl<C: Channel, K: 'static> Carried for IoOrOwn<C, K> {
    #[inline]
    fn payload(&self) -> &[IoVec] {
        match self {
            IoOrOwn::Io(io) => io.iovs(),
            IoOrOwn::Own(own) => &own.list,
        }
    }
}

/// Payload of a command.
#[derive(Clone, Copy, Debug)]
pub enum PayloadOf<'a> {
    /// None.
    None,
    /// That of what is carried, from the controller.
    FromController,
    /// That of what is carried, to the controller.
    ToController,
    /// These bytes, to the controller; at most [`PayloadOf::MAX_INLINE`].
    Inline(&'a [u8]),
}

impl PayloadOf<'_> {
    /// Most bytes of [`PayloadOf::Inline`].
    pub const MAX_INLINE: usize = 128;
}

/// A command: 64 bytes whose identifier and data pointer are filled in on the way.
#[derive(Clone, Copy, Debug)]
pub struct FabricCommand<'a> {
    /// The submission queue entry.
    pub sqe: [u8; 64],
    /// Its payload.
    pub payload: PayloadOf<'a>,
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// The controller.
    pub peer: FabricAddress,
    /// Address of this end, or empty.
    pub local: FabricAddress,
    /// NQN of this host.
    pub hostnqn: String,
    /// Queue identifier: 0 for the admin queue.
    pub qid: u16,
    /// Controller, for an I/O queue; else `0xffff`.
    pub cntlid: u16,
    /// Entries of the submission queue.
    pub queue_size: u32,
    /// Options of the transport.
    pub options: serde_json::Value,
    /// Time of [`crate::Host::now_ns`] by which it is connected or closed.
    pub deadline_ns: u64,
    /// Secures the channel; `None`: it is not secured.
    pub channel_key: Option<ChannelKey>,
}

/// What happens on a queue, told on its reactor.
pub enum FabricEvent<T> {
    /// Commands may be submitted.
    Connected {
        /// Most commands in flight.
        queue_depth: u32,
        /// Most data in a command's capsule.
        in_capsule_size: u32,
    },
    /// A command is over.
    Done {
        /// What it was submitted for.
        item: T,
        /// The completion queue entry, or `-errno` if the connection was lost.
        result: Result<[u8; 16], i32>,
    },
    /// No more commands from now on; those on the way come back. At most once.
    Closing {
        /// Why.
        reason: CloseReason,
        /// `-errno`, or 0.
        status: i32,
        /// Text for people, or empty.
        detail: String,
    },
    /// Everything has come back and is released. Once, last.
    Closed {
        /// Why.
        reason: CloseReason,
        /// `-errno`, or 0.
        status: i32,
        /// Text for people, or empty.
        detail: String,
    },
}

/// A command was not taken, and with it what it was for.
pub struct NotSubmitted<T> {
    /// What it was for.
    pub item: T,
    /// True if the queue is full and room will come; false if it is closing or not connected.
    pub is_full: bool,
}

/// A queue to a controller, on the reactor that connected it. Dropped before it is closed, it disconnects.
pub struct FabricQueue<T: Carried> {
    inner: Rc<Inner<T>>,
}

struct Inner<T: Carried> {
    group: FabricGroup,
    raw: Cell<*mut c_void>,
    phase: Cell<Phase>,
    slots: Slots<T>,
    free: RefCell<Vec<u16>>,
    limit: Cell<usize>,
    on_event: Box<dyn Fn(FabricEvent<T>)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Connecting,
    Live,
    Closing,
    Closed,
}

/// What is behind a request and the transport's context.
struct Tail<T> {
    item: Option<T>,
    generation: u16,
    inline: [u8; PayloadOf::MAX_INLINE],
    inline_iov: IoVec,
}

/// The requests of a queue, in one piece of memory.
struct Slots<T> {
    memory: *mut u8,
    layout: Layout,
    stride: usize,
    tail: usize,
    count: usize,
    /// Bits of a command identifier that name the slot.
    bits: u32,
    owns: std::marker::PhantomData<T>,
}

impl<T: Carried> FabricQueue<T> {
    /// Starts a connection; `on_event` hears how it goes, never from inside a call of this queue. It may use the
    /// queue, and should keep its owner by a [`std::rc::Weak`].
    ///
    /// # Errors
    /// If the transport refuses at once.
    pub fn connect(
        group: &FabricGroup,
        options: &ConnectOptions,
        on_event: impl Fn(FabricEvent<T>) + 'static,
    ) -> Result<Self, Error> {
        let key = options.channel_key.as_ref();
        if key.is_some() && !group.inner.secures_channels {
            let reason = "the transport cannot secure a channel with a key";
            return Err(Error::not_supported(reason).object(&*options.peer.traddr));
        }
        let entries = options.queue_size.clamp(1, MAX_ENTRIES) as usize;
        let inner = Rc::new(Inner {
            group: group.clone(),
            raw: Cell::new(std::ptr::null_mut()),
            phase: Cell::new(Phase::Connecting),
            slots: Slots::new(entries, group.inner.ops.request_ctx_size as usize),
            free: RefCell::new((0..entries as u16).rev().collect()),
            limit: Cell::new(entries),
            on_event: Box::new(on_event),
        });
        let text = options.options.to_string();
        let params = ConnectParams {
            size: size_of::<ConnectParams>() as u32,
            qid: options.qid.into(),
            queue_size: entries as u32,
            cntlid: options.cntlid.into(),
            peer: options.peer.raw(),
            local: options.local.raw(),
            hostnqn: Str::new(&options.hostnqn),
            options_json: Str::new(&text),
            deadline_ns: options.deadline_ns,
            psk_identity: key.map_or(Str::EMPTY, |key| Str::new(key.identity())),
            psk: key.map_or(std::ptr::null(), |key| key.secret().as_ptr()),
            psk_len: key.map_or(0, |key| key.secret().len()),
        };
        let arg = Rc::into_raw(Rc::clone(&inner)).cast_mut().cast::<c_void>();
        for slot in 0..entries as u16 {
            // SAFETY: the slots are this queue's, and nothing is submitted yet.
            unsafe { (*inner.slots.at(slot).0).done_arg = arg };
        }
        let mut raw: *mut c_void = std::ptr::null_mut();
        // SAFETY: the group lives as long as the queue; `arg` owns a reference until CLOSED; parameters are
        // borrowed for the call.
        let code = unsafe {
            (group.inner.ops.connect)(group.inner.raw, &params, ConnectionFn(happened::<T>), arg, &mut raw)
        };
        if let Err(error) = Error::check(code, "cannot connect") {
            // SAFETY: the transport refused, so the reference is still ours.
            drop(unsafe { Rc::from_raw(arg.cast_const().cast::<Inner<T>>()) });
            inner.phase.set(Phase::Closed);
            return Err(error.object(&*options.peer.traddr));
        }
        inner.raw.set(raw);
        Ok(FabricQueue { inner })
    }

    /// Queues a command; [`FabricQueue::flush`] sends what was queued.
    ///
    /// # Errors
    /// If the queue is full or not connected, with what the command was for.
    #[inline]
    pub fn submit(&self, command: &FabricCommand<'_>, item: T) -> Result<(), NotSubmitted<T>> {
        let inner = &*self.inner;
        if inner.phase.get() != Phase::Live {
            return Err(NotSubmitted { item, is_full: false });
        }
        if inner.in_flight() >= inner.limit.get() {
            return Err(NotSubmitted { item, is_full: true });
        }
        let Some(slot) = inner.free.borrow_mut().pop() else {
            return Err(NotSubmitted { item, is_full: true });
        };
        // SAFETY: the slot was free, so nobody else uses it; what it points to is kept by the item, which stays
        // in the slot until the transport is through with the request.
        let code = unsafe {
            let (request, tail) = inner.slots.at(slot);
            let tail = &mut *tail;
            tail.generation = tail.generation.wrapping_add(1);
            let cid = inner.slots.cid(slot, tail.generation);
            (*request).sqe = command.sqe;
            (&raw mut (*request).sqe).cast::<u8>().add(2).cast::<[u8; 2]>().write(cid.to_le_bytes());
            let (direction, list): (Direction, &[IoVec]) = match command.payload {
                PayloadOf::None => (Direction::NONE, &[]),
                PayloadOf::FromController => (Direction::TO_HOST, item.payload()),
                PayloadOf::ToController => (Direction::TO_CONTROLLER, item.payload()),
                PayloadOf::Inline(bytes) => {
                    let len = bytes.len().min(PayloadOf::MAX_INLINE);
                    tail.inline[..len].copy_from_slice(&bytes[..len]);
                    tail.inline_iov = IoVec { base: tail.inline.as_mut_ptr().cast(), len };
                    (Direction::TO_CONTROLLER, std::slice::from_ref(&tail.inline_iov))
                }
            };
            (*request).iovs = list.as_ptr().cast_mut();
            (*request).iovcnt = list.len() as u32;
            (*request).length = list.iter().map(|piece| piece.len).sum::<usize>() as u32;
            (*request).direction = direction;
            tail.item = Some(item);
            (inner.group.inner.ops.submit)(inner.raw.get(), request)
        };
        if code == 0 {
            return Ok(());
        }
        inner.free.borrow_mut().push(slot);
        // SAFETY: the transport refused the request, so the slot is still ours.
        let item = unsafe { (*inner.slots.at(slot).1).item.take() };
        match item {
            Some(item) => Err(NotSubmitted { item, is_full: code == errno::EAGAIN }),
            None => Ok(()),
        }
    }

    /// Sends what was queued; once after a batch.
    #[inline]
    pub fn flush(&self) {
        if self.inner.phase.get() == Phase::Live {
            // SAFETY: the connection is not freed before CLOSED.
            unsafe { (self.inner.group.inner.ops.flush)(self.inner.raw.get()) };
        }
    }

    /// Ends the queue: what is on it comes back, at the latest at `drain_by_ns`. May be repeated.
    pub fn disconnect(&self, reason: CloseReason, drain_by_ns: u64) {
        self.inner.disconnect(reason, drain_by_ns);
    }

    /// Most commands in flight from now on; at most what the connection has.
    pub fn set_limit(&self, commands: usize) {
        self.inner.limit.set(commands.clamp(1, self.inner.slots.count));
    }

    /// Commands on the way.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    /// True if a command would not be refused for want of room.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.inner.in_flight() < self.inner.limit.get()
    }

    /// True if commands may be submitted.
    #[inline]
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.inner.phase.get() == Phase::Live
    }
}

impl<C: Channel, K: 'static> FabricQueue<IoOrOwn<C, K>> {
    /// Visits the I/Os on the way with the identifiers of their commands.
    pub fn for_each_io(&self, mut visit: impl FnMut(u16, &Io<C>)) {
        let slots = &self.inner.slots;
        for slot in 0..slots.count as u16 {
            // SAFETY: this is the queue's reactor; `visit` has no way to take the item out or to submit into the
            // slot, which is in use.
            let tail = unsafe { &*slots.at(slot).1 };
            if let Some(IoOrOwn::Io(io)) = &tail.item {
                visit(slots.cid(slot, tail.generation), io);
            }
        }
    }

    /// The identifier of the command that carries the I/O an abort is about.
    #[must_use]
    pub fn identifier_of(&self, victim: Victim) -> Option<u16> {
        let slots = &self.inner.slots;
        (0..slots.count as u16).find_map(|slot| {
            // SAFETY: this is the queue's reactor, and nothing is called meanwhile.
            let tail = unsafe { &*slots.at(slot).1 };
            let Some(IoOrOwn::Io(io)) = &tail.item else { return None };
            victim.is_io(io).then(|| slots.cid(slot, tail.generation))
        })
    }
}

impl<T: Carried> Drop for FabricQueue<T> {
    fn drop(&mut self) {
        self.inner.disconnect(CloseReason::LOCAL, self.inner.group.inner.host.now_ns());
    }
}

impl<T: Carried> Inner<T> {
    fn in_flight(&self) -> usize {
        self.slots.count - self.free.borrow().len()
    }

    fn disconnect(&self, reason: CloseReason, drain_by_ns: u64) {
        match self.phase.get() {
            Phase::Connecting | Phase::Live => {
                self.phase.set(Phase::Closing);
                // SAFETY: the connection is not freed before CLOSED.
                unsafe { (self.group.inner.ops.disconnect)(self.raw.get(), reason, drain_by_ns) };
            }
            Phase::Closing | Phase::Closed => {}
        }
    }
}

/// # Safety
/// `arg` is the reference that `connect` gave the transport; it is taken back with CLOSED.
unsafe extern "C" fn happened<T: Carried>(arg: *mut c_void, event: *const ConnectionEvent) {
    let raw = arg.cast_const().cast::<Inner<T>>();
    // SAFETY: the transport's reference exists until CLOSED; the event is valid for the call.
    let (inner, event) = unsafe {
        Rc::increment_strong_count(raw);
        (Rc::from_raw(raw), &*event)
    };
    // SAFETY: the text is valid for the call.
    let text = || unsafe { event.detail.as_str() }.unwrap_or_default().to_owned();
    match event.kind {
        ConnectionEventKind::CONNECTED => {
            if inner.phase.get() != Phase::Connecting {
                return;
            }
            inner.phase.set(Phase::Live);
            inner.limit.set((event.queue_depth as usize).clamp(1, inner.slots.count));
            let (queue_depth, in_capsule_size) = (event.queue_depth, event.in_capsule_size);
            (inner.on_event)(FabricEvent::Connected { queue_depth, in_capsule_size });
        }
        ConnectionEventKind::CLOSING => {
            inner.phase.set(Phase::Closing);
            let (reason, status) = (event.reason, event.status);
            (inner.on_event)(FabricEvent::Closing { reason, status, detail: text() });
        }
        ConnectionEventKind::CLOSED => {
            inner.phase.set(Phase::Closed);
            // SAFETY: nothing is in flight any more and nothing is told after this; the reference is the
            // transport's.
            unsafe {
                (inner.group.inner.ops.connection_free)(inner.raw.get());
                drop(Rc::from_raw(raw));
            }
            let (reason, status) = (event.reason, event.status);
            (inner.on_event)(FabricEvent::Closed { reason, status, detail: text() });
        }
        _ => {}
    }
}

/// # Safety
/// `request` is one of the slots of the queue `arg`, and is over.
unsafe extern "C" fn done<T: Carried>(request: *mut InitiatorRequest, arg: *mut c_void) {
    let raw = arg.cast_const().cast::<Inner<T>>();
    // SAFETY: the transport holds a reference until CLOSED, which comes after every request.
    let inner = unsafe {
        Rc::increment_strong_count(raw);
        Rc::from_raw(raw)
    };
    // SAFETY: as the caller promises; the slot is ours again.
    let (slot, item, result) = unsafe {
        let slot = inner.slots.number(request);
        let item = (*inner.slots.at(slot).1).item.take();
        let result = if (*request).status == 0 { Ok((*request).cqe) } else { Err((*request).status) };
        (slot, item, result)
    };
    let Some(item) = item else {
        log::error!("a transport completed a command twice slot={slot}");
        return;
    };
    inner.free.borrow_mut().push(slot);
    (inner.on_event)(FabricEvent::Done { item, result });
}

impl<T: Carried> Slots<T> {
    fn new(count: usize, context: usize) -> Self {
        let tail = (size_of::<InitiatorRequest>() + context).next_multiple_of(64);
        let stride = (tail + size_of::<Tail<T>>()).next_multiple_of(64);
        let layout = Layout::from_size_align(stride * count, 64).expect("a queue is at most some megabytes");
        // SAFETY: the size is not 0.
        let memory = unsafe { alloc_zeroed(layout) };
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        let bits = count.next_power_of_two().trailing_zeros();
        let slots = Slots { memory, layout, stride, tail, count, bits, owns: std::marker::PhantomData };
        for slot in 0..count as u16 {
            // SAFETY: both parts lie within the memory, aligned, and are written before they are read. Zeroes are
            // a request: null pointers, no callback.
            unsafe {
                let (request, tail) = slots.at(slot);
                (*request).done = Some(done::<T>);
                tail.write(Tail {
                    item: None,
                    generation: 0,
                    inline: [0; PayloadOf::MAX_INLINE],
                    inline_iov: IoVec::EMPTY,
                });
            }
        }
        slots
    }

    fn at(&self, slot: u16) -> (*mut InitiatorRequest, *mut Tail<T>) {
        let base = self.memory.wrapping_add(usize::from(slot) * self.stride);
        (base.cast(), base.wrapping_add(self.tail).cast())
    }

    fn number(&self, request: *mut InitiatorRequest) -> u16 {
        ((request as usize - self.memory as usize) / self.stride) as u16
    }

    /// The identifier of a slot's command: never the one no command may have.
    fn cid(&self, slot: u16, generation: u16) -> u16 {
        let room = 16 - self.bits;
        // One generation less than fits, so that not all bits are set.
        let generations = if room == 0 { 1 } else { (1_u32 << room).saturating_sub(1).max(1) };
        slot | ((u32::from(generation) % generations) << self.bits) as u16
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        for slot in 0..self.count {
            let base = self.memory.wrapping_add(slot * self.stride + self.tail);
            // SAFETY: every tail was written when the slots were made; the memory is given back once.
            unsafe { base.cast::<Tail<T>>().drop_in_place() };
        }
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.memory, self.layout) };
    }
}

/// Most entries of a queue.
const MAX_ENTRIES: u32 = 4096;
