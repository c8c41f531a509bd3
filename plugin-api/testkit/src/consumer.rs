//! The test as the one who uses a device: descriptors, channels, and I/Os in
//! memory that is watched: guard zones around every piece and behind the
//! driver context, and a second look after completion.
// UNSAFETY: builds I/Os in raw memory that modules write through pointers.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::fmt;
use std::hash::Hasher;
use std::rc::{Rc, Weak};

use tenon_abi::{
    BDEV_IO_SIZE, BdevEvent, BdevEventKind, BdevIo, ClaimKind, CopyRange, EventFn, IoChannel, IoExtV1,
    IoFlags, IoOpsV1, IoState, IoStatus, IoVec, Op, OpenFlags, Reason, errno, submit,
};

use crate::host::channel::GateChannel;
use crate::host::flight::FlightState;
use crate::host::memory::RawBuf;
use crate::host::module::{self, ModuleId, ModuleState};
use crate::host::schedule::{CONTROL, Where};
use crate::host::world::{self, World};
use crate::violation::Fault;

/// How a device is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    Write,
}

/// An event a descriptor received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// What happened.
    pub kind: BdevEventKind,
    /// Why.
    pub reason: Reason,
    /// Meaning depends on the kind.
    pub value: u64,
    /// Time by which the receiver must have acted; 0: none.
    pub deadline_ns: u64,
}

/// An open device. Not closed by dropping it: a test says when.
pub struct Descriptor {
    world: Weak<World>,
    handle: u64,
    events: Rc<RefCell<Vec<Event>>>,
}

unsafe extern "C" fn hear(arg: *mut c_void, event: *const BdevEvent) {
    // SAFETY: `arg` is the list of the descriptor, which the world keeps; the event is lent for the call.
    let (events, event) = unsafe { (&*arg.cast::<RefCell<Vec<Event>>>(), &*event) };
    let BdevEvent { kind, reason, value, deadline_ns, .. } = *event;
    events.borrow_mut().push(Event { kind, reason, value, deadline_ns });
}

impl Descriptor {
    pub(crate) fn open(world: &Rc<World>, name: &str, access: Access) -> Result<Descriptor, i32> {
        let device = world.find(name).ok_or(errno::ENODEV)?;
        let events: Rc<RefCell<Vec<Event>>> = Rc::default();
        let flags = if access == Access::Write { OpenFlags::WRITE } else { OpenFlags::READ };
        let arg = Rc::as_ptr(&events).cast_mut().cast();
        let handle = world.enter(Where::Reactor(CONTROL), ModuleId::HOST, || {
            world.open(ModuleId::HOST, device.id, flags, EventFn(hear), arg)
        })?;
        // Kept by the world: events may come as long as it is open, and a test may drop its descriptor earlier.
        world.consumers.borrow_mut().push((handle, Rc::clone(&events)));
        Ok(Descriptor { world: Rc::downgrade(world), handle, events })
    }

    fn world(&self) -> Rc<World> {
        self.world.upgrade().expect("a descriptor is used while its fake host is there")
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.events.borrow().clone()
    }

    /// True once REMOVE was received.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.events.borrow().iter().any(|event| event.kind == BdevEventKind::REMOVE)
    }

    /// Claims the device; 0 or `-errno`.
    pub fn claim(&self, kind: ClaimKind, key: u64) -> i32 {
        let world = self.world();
        world.enter(Where::Reactor(CONTROL), ModuleId::HOST, || world.claim(self.handle, kind, key))
    }

    /// The channel on data reactor `reactor`; `None` if the module or host refuses it.
    #[must_use]
    pub fn channel(&self, reactor: u32) -> Option<Channel> {
        let (world, index) = (self.world(), reactor as usize + 1);
        let face =
            world.enter(Where::Reactor(index), ModuleId::HOST, || world.channel_get(self.handle, index));
        (!face.is_null()).then(|| Channel { world: Rc::downgrade(&world), face, reactor: index })
    }

    /// Closes it; 0 or `-errno`.
    pub fn close(&self) -> i32 {
        let world = self.world();
        world.enter(Where::Reactor(CONTROL), ModuleId::HOST, || world.close(self.handle))
    }
}

/// A channel of a descriptor. Not put by dropping it: a test says when.
#[derive(Clone)]
pub struct Channel {
    world: Weak<World>,
    face: *mut IoChannel,
    reactor: usize,
}

impl Channel {
    fn world(&self) -> Rc<World> {
        self.world.upgrade().expect("a channel is used while its fake host is there")
    }

    fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        // A reactor that does something is awake.
        self.world().woken(self.reactor);
        self.world().enter(Where::Reactor(self.reactor), ModuleId::HOST, f)
    }

    fn ops(&self) -> &'static IoOpsV1 {
        // SAFETY: the face lives as long as the world, and its operations are the gate's, which are static.
        unsafe { &*(*self.face).ops }
    }

    /// The raw channel, for code that drives the contract by hand.
    #[must_use]
    pub fn as_ptr(&self) -> *mut IoChannel {
        self.face
    }

    /// Submits on the channel's reactor.
    #[must_use]
    pub fn submit(&self, request: Request) -> Io {
        let slot = Slot::make(&self.world(), self.face, request);
        // SAFETY: the slot's I/O is filled in and stays until it is over; this counts as the channel's reactor.
        self.enter(|| unsafe { submit(self.face, slot.io()) });
        Io(slot)
    }

    /// Submits all at once.
    #[must_use]
    pub fn submit_batch(&self, requests: Vec<Request>) -> Vec<Io> {
        let world = self.world();
        let slots: Vec<Rc<Slot>> =
            requests.into_iter().map(|request| Slot::make(&world, self.face, request)).collect();
        let ios: Vec<*mut BdevIo> = slots.iter().map(|slot| slot.io()).collect();
        if let Some(batch) = self.ops().submit_batch {
            // SAFETY: as in `submit`.
            self.enter(|| unsafe { batch(self.face, ios.as_ptr(), ios.len() as u32) });
        }
        slots.into_iter().map(Io).collect()
    }

    /// Asks to finish an I/O early; 0 if it was found.
    pub fn abort(&self, victim: &Io) -> i32 {
        // SAFETY: the victim's memory is kept by its slot.
        self.ops()
            .abort
            .map_or(errno::ENOTSUP, |abort| self.enter(|| unsafe { abort(self.face, victim.0.io()) }))
    }

    /// Returns lent memory.
    pub fn release(&self, io: &Io) {
        io.0.note_release();
        if let Some(release) = self.ops().release {
            // SAFETY: the I/O's memory is kept by its slot.
            self.enter(|| unsafe { release(self.face, io.0.io()) });
        }
    }

    /// Gives the channel back.
    pub fn put(&self) {
        let (world, reactor) = (self.world(), self.reactor);
        self.enter(|| world.channel_put(self.face, reactor));
    }
}

/// An I/O to be submitted.
#[derive(Clone, Debug)]
pub struct Request {
    op: Op,
    offset_blocks: u64,
    num_blocks: u64,
    payload: Payload,
    compare: Option<Vec<u8>>,
    /// Separate metadata, or what a READ's buffer for it holds before.
    metadata: Option<Vec<u8>>,
    sources: Vec<CopyRange>,
    flags: IoFlags,
    pieces: Vec<usize>,
    misaligned: usize,
}

#[derive(Clone, Debug)]
enum Payload {
    None,
    /// Bytes go out.
    Out(Vec<u8>),
    /// Room for whole blocks.
    In,
}

impl Request {
    /// An operation without payload.
    #[must_use]
    pub fn new(op: Op, offset_blocks: u64, num_blocks: u64) -> Request {
        Request {
            op,
            offset_blocks,
            num_blocks,
            payload: Payload::None,
            compare: None,
            metadata: None,
            sources: Vec::new(),
            flags: IoFlags::NONE,
            pieces: Vec::new(),
            misaligned: 0,
        }
    }

    /// READ into fresh memory.
    #[must_use]
    pub fn read(offset_blocks: u64, num_blocks: u64) -> Request {
        Request { payload: Payload::In, ..Request::new(Op::READ, offset_blocks, num_blocks) }
    }

    /// READ that accepts lent memory and brings none.
    #[must_use]
    pub fn read_lent(offset_blocks: u64, num_blocks: u64) -> Request {
        Request::new(Op::READ, offset_blocks, num_blocks).flags(IoFlags::LEND)
    }

    /// WRITE of `data`, whose length must be whole blocks.
    #[must_use]
    pub fn write(offset_blocks: u64, num_blocks: u64, data: Vec<u8>) -> Request {
        Request { payload: Payload::Out(data), ..Request::new(Op::WRITE, offset_blocks, num_blocks) }
    }

    /// COMPARE with `data`.
    #[must_use]
    pub fn compare(offset_blocks: u64, num_blocks: u64, data: Vec<u8>) -> Request {
        Request { payload: Payload::Out(data), ..Request::new(Op::COMPARE, offset_blocks, num_blocks) }
    }

    /// COMPARE_AND_WRITE: if the medium holds `expected`, write `data`.
    #[must_use]
    pub fn compare_and_write(
        offset_blocks: u64,
        num_blocks: u64,
        expected: Vec<u8>,
        data: Vec<u8>,
    ) -> Request {
        Request {
            payload: Payload::Out(data),
            compare: Some(expected),
            ..Request::new(Op::COMPARE_AND_WRITE, offset_blocks, num_blocks)
        }
    }

    /// FLUSH.
    #[must_use]
    pub fn flush() -> Request {
        Request::new(Op::FLUSH, 0, 0)
    }

    /// UNMAP.
    #[must_use]
    pub fn unmap(offset_blocks: u64, num_blocks: u64) -> Request {
        Request::new(Op::UNMAP, offset_blocks, num_blocks)
    }

    /// WRITE_ZEROES.
    #[must_use]
    pub fn write_zeroes(offset_blocks: u64, num_blocks: u64) -> Request {
        Request::new(Op::WRITE_ZEROES, offset_blocks, num_blocks)
    }

    /// RESET.
    #[must_use]
    pub fn reset() -> Request {
        Request::new(Op::RESET, 0, 0)
    }

    /// COPY of the source ranges, each an offset and a number of blocks, one behind the other to `offset_blocks`.
    #[must_use]
    pub fn copy(offset_blocks: u64, sources: &[(u64, u64)]) -> Request {
        let ranges = sources.iter();
        let sources: Vec<CopyRange> =
            ranges.map(|&(offset_blocks, num_blocks)| CopyRange { offset_blocks, num_blocks }).collect();
        let num_blocks = sources.iter().map(|range| range.num_blocks).sum();
        Request { sources, ..Request::new(Op::COPY, offset_blocks, num_blocks) }
    }

    /// Brings a buffer for separate metadata that holds these bytes; a READ fills it.
    #[must_use]
    pub fn metadata(mut self, metadata: Vec<u8>) -> Request {
        self.metadata = Some(metadata);
        self
    }

    /// Sets flags.
    #[must_use]
    pub fn flags(mut self, flags: IoFlags) -> Request {
        self.flags = flags;
        self
    }

    /// Sizes of the payload's pieces in bytes; what remains is the last piece.
    #[must_use]
    pub fn pieces(mut self, pieces: &[usize]) -> Request {
        self.pieces = pieces.to_vec();
        self
    }

    /// Starts every piece this many bytes off its natural alignment.
    #[must_use]
    pub fn misaligned(mut self, bytes: usize) -> Request {
        self.misaligned = bytes;
        self
    }
}

/// Result of an I/O.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Status.
    pub status: IoStatus,
    /// The payload of a READ, also if it was lent.
    pub data: Vec<u8>,
    /// What the buffer for separate metadata holds after a READ; empty without one.
    pub metadata: Vec<u8>,
    /// True if the data is in lent memory, which must be released.
    pub is_lent: bool,
    /// `offset_blocks` after completion (SEEK operations answer there).
    pub offset_blocks: u64,
}

/// A submitted I/O.
#[derive(Clone)]
pub struct Io(Rc<Slot>);

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { op, offset_blocks, num_blocks, .. } = &self.0.request;
        write!(f, "op {} of {num_blocks} blocks at {offset_blocks}", op.0)
    }
}

impl Io {
    /// True once it has completed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.completions.get() > 0
    }

    /// How often it completed; once, if all is well.
    #[must_use]
    pub fn completions(&self) -> u32 {
        self.0.completions.get()
    }

    /// The result, once it has completed.
    #[must_use]
    pub fn completion(&self) -> Option<Completion> {
        self.is_done().then(|| self.0.result())
    }

    /// What the lent memory holds now.
    #[must_use]
    pub fn lent_data(&self) -> Option<Vec<u8>> {
        (self.is_done() && self.0.is_lent.get()).then(|| self.0.lent_bytes())
    }

    /// The raw I/O, for code that drives the contract by hand.
    #[must_use]
    pub fn as_ptr(&self) -> *mut BdevIo {
        self.0.io()
    }
}

/// Guarded pieces of one payload in one allocation.
struct Pieces {
    memory: RawBuf,
    list: Box<[IoVec]>,
    at: Vec<(usize, usize)>,
}

impl Pieces {
    fn make(len: usize, sizes: &[usize], misaligned: usize) -> Pieces {
        let mut left = len;
        let mut lens: Vec<usize> = Vec::new();
        for size in sizes {
            let take = (*size).min(left);
            if take > 0 {
                lens.push(take);
            }
            left -= take;
        }
        if left > 0 || lens.is_empty() {
            lens.push(left);
        }
        let align = if lens.len() == 1 { PAYLOAD_ALIGN } else { PIECE_ALIGN };
        let mut at = Vec::new();
        let mut next = align;
        for len in lens {
            at.push((next + misaligned, len));
            next = (next + misaligned + len + GUARD).next_multiple_of(align);
        }
        let memory =
            RawBuf::new(next + GUARD, PAYLOAD_ALIGN, GUARD_BYTE).expect("memory for a test's payload");
        let list =
            at.iter().map(|(start, len)| IoVec { base: memory.at(*start).cast(), len: *len }).collect();
        Pieces { memory, list, at }
    }

    fn copy_in(&self, mut data: &[u8]) {
        for (start, len) in &self.at {
            let take = (*len).min(data.len());
            self.memory.copy_in(*start, &data[..take]);
            data = &data[take..];
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.at.iter().flat_map(|(start, len)| self.memory.copy_out(*start, *len)).collect()
    }

    fn is_intact(&self) -> bool {
        let mut from = 0;
        for (start, len) in &self.at {
            if !self.memory.is_filled(from, start - from, GUARD_BYTE) {
                return false;
            }
            from = start + len;
        }
        self.memory.is_filled(from, self.memory.len() - from, GUARD_BYTE)
    }
}

/// One I/O of a test with everything it points to; kept by the world after completion, to see late writes.
pub(crate) struct Slot {
    memory: RawBuf,
    ctx_size: usize,
    channel: *mut IoChannel,
    payload: Option<Pieces>,
    metadata: Option<Pieces>,
    _compare: Option<Pieces>,
    _ext: Option<Box<IoExtV1>>,
    request: Request,
    completions: Cell<u32>,
    status: Cell<IoStatus>,
    is_lent: Cell<bool>,
    data: RefCell<Vec<u8>>,
    digest: Cell<Option<u64>>,
}

unsafe extern "C" fn consumer_done(io: *mut BdevIo, arg: *mut c_void) {
    // SAFETY: `arg` is a slot that the world keeps; the I/O is ours again.
    unsafe { (*arg.cast::<Slot>()).landed(io) };
}

impl Slot {
    fn make(world: &Rc<World>, channel: *mut IoChannel, request: Request) -> Rc<Slot> {
        // SAFETY: channels live as long as the world, and this one came from the gate.
        let (ctx_size, block) = unsafe {
            let block = (*channel.cast::<GateChannel>()).device.block_bytes() as usize;
            ((*channel).io_ctx_size as usize, block)
        };
        let total = BDEV_IO_SIZE + ctx_size + CONTEXT_GUARD;
        let memory = RawBuf::new(total, 64, GUARD_BYTE).expect("memory for a test's I/O");
        memory.fill(0, BDEV_IO_SIZE + ctx_size, 0);
        let (pieces, misaligned) = (&request.pieces, request.misaligned);
        let payload = match &request.payload {
            Payload::None => None,
            Payload::In => Some(Pieces::make(request.num_blocks as usize * block, pieces, misaligned)),
            Payload::Out(data) => {
                let made = Pieces::make(data.len(), pieces, misaligned);
                made.copy_in(data);
                Some(made)
            }
        };
        let of_bytes = |data: &Vec<u8>| {
            let made = Pieces::make(data.len(), &[], 0);
            made.copy_in(data);
            made
        };
        let compare = request.compare.as_ref().map(of_bytes);
        let metadata = request.metadata.as_ref().map(of_bytes);
        let ext = ext_of(&request, compare.as_ref());
        let slot = Rc::new(Slot {
            memory,
            ctx_size,
            channel,
            payload,
            metadata,
            _compare: compare,
            _ext: ext,
            request,
            completions: Cell::new(0),
            status: Cell::new(IoStatus::SUCCESS),
            is_lent: Cell::new(false),
            data: RefCell::new(Vec::new()),
            digest: Cell::new(None),
        });
        slot.fill_in();
        world.keep_slot(Rc::clone(&slot));
        slot
    }

    fn fill_in(self: &Rc<Slot>) {
        let list = self.payload.as_ref().map(|pieces| (pieces.list.as_ptr().cast_mut(), pieces.list.len()));
        let (iovs, iovcnt) = list.unwrap_or((std::ptr::null_mut(), 0));
        let filled = BdevIo {
            op: self.request.op,
            state: IoState::IDLE,
            flags: self.request.flags,
            iovcnt: iovcnt as u32,
            iovs,
            offset_blocks: self.request.offset_blocks,
            num_blocks: self.request.num_blocks,
            done: Some(consumer_done),
            done_arg: Rc::as_ptr(self).cast_mut().cast(),
            ch: std::ptr::null_mut(),
            status: IoStatus::SUCCESS,
            cdw0: 0,
            md: self.metadata.as_ref().map_or(std::ptr::null_mut(), |metadata| metadata.list[0].base),
            ext: self._ext.as_ref().map_or(std::ptr::null(), |ext| &raw const **ext),
            link: std::ptr::null_mut(),
            submit_ticks: 0,
            inline_iov: IoVec::EMPTY,
            host: [std::ptr::null_mut(); 2],
        };
        // SAFETY: the memory is large enough and aligned to 64.
        unsafe { self.io().write(filled) };
    }

    fn io(&self) -> *mut BdevIo {
        self.memory.at(0).cast()
    }

    fn landed(&self, io: *mut BdevIo) {
        self.completions.set(self.completions.get() + 1);
        if self.completions.get() > 1 {
            return;
        }
        // SAFETY: the I/O is ours again.
        let (status, flags) = unsafe { ((*io).status, (*io).flags) };
        self.status.set(status);
        self.is_lent.set(flags.contains(IoFlags::LENT));
        let data = match (&self.request.payload, self.is_lent.get()) {
            (Payload::None | Payload::In, true) => self.lent_bytes(),
            (Payload::In, false) => self.payload.as_ref().map(Pieces::bytes).unwrap_or_default(),
            (Payload::None | Payload::Out(_), _) => Vec::new(),
        };
        *self.data.borrow_mut() = data;
        self.check(true);
        if !self.is_lent.get() {
            self.digest.set(Some(self.digest_now()));
        }
    }

    fn owner(&self) -> (ModuleId, String) {
        // SAFETY: channels live as long as the world.
        let device = unsafe { &(*self.channel.cast::<GateChannel>()).device };
        (device.owner, device.name.clone())
    }

    fn report(&self, fault: Fault, what: &str) {
        if let Some(world) = world::current() {
            let (owner, name) = self.owner();
            let Request { op, offset_blocks, num_blocks, .. } = &self.request;
            let detail = format!("`{name}`: op {} of {num_blocks} blocks at {offset_blocks}: {what}", op.0);
            world.violate_by(fault, owner, detail);
        }
    }

    /// Looks at everything that nobody may have written.
    fn check(&self, at_completion: bool) {
        let behind = BDEV_IO_SIZE + self.ctx_size;
        if !self.memory.is_filled(behind, CONTEXT_GUARD, GUARD_BYTE) {
            self.report(Fault::PayloadOverrun, "memory behind the driver context was written");
        }
        if let (Some(metadata), Some(brought)) = (&self.metadata, &self.request.metadata) {
            if !metadata.is_intact() {
                self.report(Fault::PayloadOverrun, "memory next to the metadata was written");
            }
            if self.request.op != Op::READ && metadata.bytes() != *brought {
                self.report(Fault::PayloadModified, "the metadata was modified");
            }
        }
        let Some(payload) = &self.payload else { return };
        if !payload.is_intact() {
            self.report(Fault::PayloadOverrun, "memory next to the payload was written");
        }
        if let (true, Payload::Out(data)) = (at_completion, &self.request.payload)
            && payload.bytes() != *data
        {
            self.report(Fault::PayloadModified, "the payload was modified");
        }
    }

    /// A digest of all that must not change after completion.
    fn digest_now(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        hasher.write(&self.memory.copy_out(0, BDEV_IO_SIZE + self.ctx_size));
        if let Some(payload) = &self.payload {
            hasher.write(&payload.bytes());
        }
        if let Some(metadata) = &self.metadata {
            hasher.write(&metadata.bytes());
        }
        hasher.finish()
    }

    /// The second look.
    fn verify(&self) {
        if let Some(digest) = self.digest.get() {
            self.check(false);
            if digest != self.digest_now() {
                self.report(Fault::TouchedAfterCompletion, "it was written after its completion");
            }
        }
    }

    fn result(&self) -> Completion {
        // SAFETY: the I/O is ours since its completion.
        let offset_blocks = unsafe { (*self.io()).offset_blocks };
        let data = self.data.borrow().clone();
        let read = self.metadata.as_ref().filter(|_| self.request.op == Op::READ);
        let metadata = read.map(Pieces::bytes).unwrap_or_default();
        Completion { status: self.status.get(), data, metadata, is_lent: self.is_lent.get(), offset_blocks }
    }

    fn lent_bytes(&self) -> Vec<u8> {
        // SAFETY: the I/O is ours, and lent memory stays until it is released.
        let pieces = unsafe {
            let io = &*self.io();
            if io.iovs.is_null() { &[] } else { std::slice::from_raw_parts(io.iovs, io.iovcnt as usize) }
        };
        let mut out = Vec::new();
        for piece in pieces.iter().filter(|piece| !piece.base.is_null()) {
            // SAFETY: as above.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(piece.base.cast::<u8>(), piece.len) });
        }
        out
    }

    fn note_release(&self) {
        self.is_lent.set(false);
    }

    fn is_over(&self) -> bool {
        self.completions.get() > 0 && !self.is_lent.get()
    }
}

/// What the request cannot say without an extension, if anything.
fn ext_of(request: &Request, compare: Option<&Pieces>) -> Option<Box<IoExtV1>> {
    if compare.is_none() && request.metadata.is_none() && request.sources.is_empty() {
        return None;
    }
    let (compare_iovs, compare_iovcnt) =
        compare.map_or((std::ptr::null(), 0), |compare| (compare.list.as_ptr(), compare.list.len() as u32));
    // The vector's memory stays where it is when the request moves into its slot.
    let copy_ranges = if request.sources.is_empty() { std::ptr::null() } else { request.sources.as_ptr() };
    Some(Box::new(IoExtV1 {
        size: size_of::<IoExtV1>() as u32,
        flags: 0,
        nvme_sqe: std::ptr::null(),
        nvme_cqe: std::ptr::null_mut(),
        copy_ranges,
        copy_range_count: request.sources.len() as u32,
        compare_iovcnt,
        compare_iovs,
        md_len: request.metadata.as_ref().map_or(0, |metadata| metadata.len() as u64),
        zone_action: 0,
        reserved: 0,
        memory_key: 0,
    }))
}

impl World {
    fn keep_slot(&self, slot: Rc<Slot>) {
        let mut slots = self.slots.borrow_mut();
        slots.push_back(slot);
        // Old ones that are over get their second look and go.
        while slots.len() > MAX_SLOTS && slots.front().is_some_and(|slot| slot.is_over()) {
            if let Some(slot) = slots.pop_front() {
                slot.verify();
            }
        }
    }

    /// The second look at everything that is kept.
    pub(crate) fn verify_slots(&self) {
        self.slots.borrow().iter().for_each(|slot| slot.verify());
    }

    /// I/Os of tests that a module or the host holds.
    pub(crate) fn flights_of_tests(&self) -> usize {
        let is_open = |state| !matches!(state, FlightState::Done | FlightState::Lent);
        // SAFETY: live flights are not freed.
        let states = self.flights.snapshot().into_iter().map(|flight| unsafe { (*flight).state.get() });
        states.filter(|state| is_open(*state)).count()
    }

    /// Releases, puts and closes whatever tests still hold.
    pub(crate) fn close_consumers(self: &std::rc::Rc<World>) {
        for flight in self.flights.snapshot() {
            // SAFETY: live flights and gates are not freed.
            let (found, gate) = unsafe { (&*flight, &*(*flight).gate) };
            if found.state.get() == FlightState::Lent && gate.module == ModuleId::HOST && !gate.is_put.get() {
                let channel =
                    Channel { world: Rc::downgrade(self), face: found.gate.cast(), reactor: gate.reactor };
                if let Some(release) = channel.ops().release {
                    // SAFETY: the I/O is a test's, and its memory is kept by its slot.
                    channel.enter(|| unsafe { release(channel.face, found.io) });
                }
            }
        }
        // The testkit's own filters close theirs in their destruct.
        let is_tests = |id: u64| self.consumers.borrow().iter().any(|(handle, _)| *handle == id);
        let gates: Vec<*mut GateChannel> = self.gates.borrow().clone();
        for gate in gates {
            // SAFETY: channels live as long as the world.
            let found = unsafe { &*gate };
            while is_tests(found.desc) && !found.is_put.get() {
                self.enter(Where::Reactor(found.reactor), ModuleId::HOST, || {
                    self.channel_put(gate.cast(), found.reactor)
                });
            }
        }
        let open = self.descriptors.borrow().snapshot();
        for desc in open {
            if is_tests(desc.id) {
                self.enter(Where::Reactor(CONTROL), ModuleId::HOST, || self.close(desc.id));
            }
        }
    }

    /// A test panicked: nothing is freed, but other tests may use the plugins.
    pub(crate) fn abandon(&self) {
        for module in self.modules.borrow().iter() {
            if matches!(module.state.get(), ModuleState::Running | ModuleState::Draining) {
                module::release(module.key);
            }
        }
    }

    /// Frees what was kept for late faults.
    pub(crate) fn dissolve(&self) {
        self.flights.clear();
        self.slots.borrow_mut().clear();
        self.clear_channels();
    }
}

const GUARD_BYTE: u8 = 0xc5;
const GUARD: usize = 64;
const CONTEXT_GUARD: usize = 256;
const PAYLOAD_ALIGN: usize = 4096;
const PIECE_ALIGN: usize = 512;
const MAX_SLOTS: usize = 1024;
