//! One submission of one I/O: who waits for it, who has it, and how it ends.
//! The host takes the place of the consumer's `done` while the I/O is with the
//! module, so that a completion too many, by the wrong thread or with the
//! wrong I/O is told from a right one.
// UNSAFETY: reads and restores I/Os that consumers lent until `done`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;

use tenon_abi::{BDEV_IO_SIZE, BdevIo, IoFlags, IoState, IoStatus, IoVec, Op};

use super::channel::{GateChannel, ModuleChannel};
use super::device::Device;
use super::module::ModuleId;
use super::reshape::Reshape;
use super::schedule::Where;
use super::shared::{Injected, Shared};
use super::world::{self, World};
use crate::violation::Fault;

pub(crate) type DoneFn = unsafe extern "C" fn(io: *mut BdevIo, arg: *mut c_void);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FlightState {
    /// With the host: the device is frozen, absent or about to be reset.
    Held,
    /// With the host after the module answered NOMEM.
    Starved,
    /// With the host, whose children for it are with the module.
    Reshaped,
    /// With the module.
    Submitted,
    /// Completed; the consumer has not returned the memory yet.
    Lent,
    /// Over.
    Done,
}

/// The request fields as the consumer set them.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) op: Op,
    pub(crate) flags: IoFlags,
    pub(crate) offset_blocks: u64,
    pub(crate) num_blocks: u64,
    pub(crate) iovs: *mut IoVec,
    pub(crate) iovcnt: u32,
}

impl Wanted {
    /// # Safety
    /// `io` is readable.
    pub(crate) unsafe fn of(io: *const BdevIo) -> Wanted {
        // SAFETY: the caller promises it.
        let io = unsafe { &*io };
        Wanted {
            op: io.op,
            flags: io.flags,
            offset_blocks: io.offset_blocks,
            num_blocks: io.num_blocks,
            iovs: io.iovs,
            iovcnt: io.iovcnt,
        }
    }
}

pub(crate) struct Flight {
    pub(crate) cookie: u64,
    pub(crate) io: *mut BdevIo,
    pub(crate) gate: *mut GateChannel,
    pub(crate) channel: *mut ModuleChannel,
    /// Module of the device.
    pub(crate) owner: ModuleId,
    /// Module of the consumer.
    pub(crate) consumer: ModuleId,
    pub(crate) done: Option<DoneFn>,
    pub(crate) done_arg: *mut c_void,
    pub(crate) wanted: Wanted,
    pub(crate) state: Cell<FlightState>,
    pub(crate) retries: Cell<u32>,
    /// Made by the host itself for a part of another flight.
    pub(crate) is_child: bool,
    pub(crate) reshape: RefCell<Option<Reshape>>,
    shared: Arc<Shared>,
}

/// All submissions of one fake host; those that are over are kept for a while, so that a late completion is
/// recognised.
#[derive(Default)]
pub(crate) struct Flights {
    live: RefCell<BTreeMap<u64, *mut Flight>>,
    over: RefCell<VecDeque<*mut Flight>>,
    next: Cell<u64>,
}

impl Flights {
    pub(crate) fn get(&self, cookie: u64) -> Option<*mut Flight> {
        self.live.borrow().get(&cookie).copied()
    }

    /// The live flight at this address, if it is one.
    pub(crate) fn at(&self, address: *const c_void) -> Option<*mut Flight> {
        self.live.borrow().values().copied().find(|flight| flight.cast_const().cast() == address)
    }

    /// The flight of `io` through `gate`.
    pub(crate) fn of_io(&self, gate: *mut GateChannel, io: *const BdevIo) -> Option<*mut Flight> {
        let live = self.live.borrow();
        // SAFETY: flights in `live` are not freed.
        live.values().copied().find(|flight| unsafe {
            (**flight).gate == gate && (**flight).io.cast_const() == io && !(**flight).is_child
        })
    }

    pub(crate) fn snapshot(&self) -> Vec<*mut Flight> {
        self.live.borrow().values().copied().collect()
    }

    fn retire(&self, flight: *mut Flight) {
        // SAFETY: flights in `live` are not freed.
        let cookie = unsafe { (*flight).cookie };
        if self.live.borrow_mut().remove(&cookie).is_some() {
            let mut over = self.over.borrow_mut();
            over.push_back(flight);
            if over.len() > MAX_REMEMBERED {
                over.pop_front().into_iter().for_each(free);
            }
        }
    }

    /// Frees every flight; nothing may complete afterwards.
    pub(crate) fn clear(&self) {
        std::mem::take(&mut *self.live.borrow_mut()).into_values().for_each(free);
        std::mem::take(&mut *self.over.borrow_mut()).into_iter().for_each(free);
    }
}

fn free(flight: *mut Flight) {
    // SAFETY: made by `Box::into_raw` in `start_flight`, and just taken out of the only list it was in.
    drop(unsafe { Box::from_raw(flight) });
}

/// Stands in for the consumer's `done` while the I/O is with the module.
pub(crate) unsafe extern "C" fn flight_done(io: *mut BdevIo, arg: *mut c_void) {
    let flight = arg.cast::<Flight>();
    // SAFETY: `arg` is the flight this function was installed with, which outlives the I/O.
    let (shared, owner, cookie) = unsafe { (&(*flight).shared, (*flight).owner, (*flight).cookie) };
    match world::current() {
        Some(world) if Arc::ptr_eq(&world.shared, shared) => world.completed(flight, io),
        Some(_) | None => {
            shared.violate(Fault::WrongThread, owner, "an I/O was completed on a thread that is no reactor");
            shared.inject(Injected::ForeignCompletion { flight: cookie as usize });
        }
    }
}

impl World {
    /// Admits `io`, which passed the gate.
    ///
    /// # Safety
    /// `io` is idle and filled in, and its memory stays until `done`; `gate` is live.
    pub(crate) unsafe fn start_flight(
        &self,
        gate: *mut GateChannel,
        io: *mut BdevIo,
        is_child: bool,
    ) -> *mut Flight {
        let cookie = self.flights.next.get() + 1;
        self.flights.next.set(cookie);
        // SAFETY: gates live as long as the world; the caller promises the I/O.
        let (found, wanted) = unsafe { (&*gate, Wanted::of(io)) };
        let flight = Box::into_raw(Box::new(Flight {
            cookie,
            io,
            gate,
            channel: found.channel,
            owner: found.device.owner,
            consumer: if is_child { ModuleId::HOST } else { found.module },
            // SAFETY: the caller promises the I/O.
            done: unsafe { (*io).done },
            // SAFETY: as above.
            done_arg: unsafe { (*io).done_arg },
            wanted,
            state: Cell::new(FlightState::Held),
            retries: Cell::new(0),
            is_child,
            reshape: RefCell::new(None),
            shared: Arc::clone(&self.shared),
        }));
        self.flights.live.borrow_mut().insert(cookie, flight);
        if !is_child {
            found.in_flight.set(found.in_flight.get() + 1);
        }
        // SAFETY: the caller promises the I/O, which is the host's from now on.
        unsafe {
            (*io).state = IoState::SUBMITTED;
            (*io).host = [flight.cast(), cookie as *mut c_void];
            (*io).submit_ticks = self.now_ns();
        }
        flight
    }

    /// Makes an admitted I/O the module's, without giving it to it yet.
    ///
    /// # Safety
    /// The flight is live, and its I/O is with the host.
    pub(crate) unsafe fn prepare(&self, flight: *mut Flight) -> *mut BdevIo {
        // SAFETY: the caller promises the flight; channels live as long as the world.
        let (found, channel) = unsafe { (&*flight, &*(*flight).channel) };
        found.state.set(FlightState::Submitted);
        let lends = channel.device.io_flags & u64::from(IoFlags::LEND.0) != 0;
        let hidden = if lends { 0 } else { IoFlags::LEND.0 };
        let io = found.io;
        // SAFETY: the caller promises that the I/O is ours.
        unsafe {
            (*io).flags = IoFlags(found.wanted.flags.0 & !hidden);
            (*io).done = Some(flight_done);
            (*io).done_arg = flight.cast();
            (*io).state = IoState::SUBMITTED;
            (*io).status = IoStatus::SUCCESS;
            (*io).cdw0 = 0;
            (*io).link = std::ptr::null_mut();
            (*io).host = [flight.cast(), found.cookie as *mut c_void];
            let face = channel.face.get();
            (*io).ch = face;
            (*face).outstanding += 1;
            self.spoil_context(io, (*face).io_ctx_size);
        }
        io
    }

    /// Gives an admitted I/O to the module.
    pub(crate) fn forward(self: &Rc<World>, flight: *mut Flight) {
        // SAFETY: channels live as long as the world.
        let channel = unsafe { &*(*flight).channel };
        // SAFETY: an admitted I/O is ours until we hand it on, and the module's channel is live.
        unsafe {
            let io = self.prepare(flight);
            let face = channel.face.get();
            let (ops, place) = ((*face).ops, Where::Reactor(channel.reactor));
            self.enter(place, channel.device.owner, || ((*ops).submit)(face, io));
        }
        self.check_channel(channel);
    }

    /// The driver context is undefined at submission and after completion: make it so.
    ///
    /// # Safety
    /// `io` has `len` bytes of context.
    pub(crate) unsafe fn spoil_context(&self, io: *mut BdevIo, len: u32) {
        let byte = self.rng.next() as u8 | 1;
        // SAFETY: the caller promises the bytes behind the I/O.
        unsafe { io.cast::<u8>().add(BDEV_IO_SIZE).write_bytes(byte, len as usize) };
    }

    /// The module has completed `io`, or says so.
    pub(crate) fn completed(self: &Rc<World>, flight: *mut Flight, io: *mut BdevIo) {
        // SAFETY: a flight that is over is kept as well; only its fields are read.
        let found = unsafe { &*flight };
        let channel = self.channel_of(found);
        if io != found.io {
            let detail = format!("`{}` completed an I/O with the `done` of another one", channel.device.name);
            return self.violate_by(Fault::ForeignCompletion, found.owner, detail);
        }
        match found.state.get() {
            FlightState::Submitted => {}
            FlightState::Done | FlightState::Lent => {
                let detail = format!("`{}` completed an I/O a second time", channel.device.name);
                return self.violate_by(Fault::DoubleCompletion, found.owner, detail);
            }
            state @ (FlightState::Held | FlightState::Starved | FlightState::Reshaped) => {
                let detail =
                    format!("`{}` completed an I/O that is with the host ({state:?})", channel.device.name);
                return self.violate_by(Fault::ForeignCompletion, found.owner, detail);
            }
        }
        if self.reactor_here() != Some(channel.reactor) {
            let detail = format!(
                "`{}` completed an I/O of reactor {} elsewhere",
                channel.device.name, channel.reactor
            );
            self.violate_by(Fault::WrongThread, found.owner, detail);
        }
        self.check_completion(found, channel);
        self.land(flight);
        self.feed_starved(found.channel);
        self.progress_resets(&channel.device);
        self.check_channel(channel);
        self.call_done(found);
    }

    fn channel_of(&self, flight: &Flight) -> &ModuleChannel {
        // SAFETY: channels live as long as the world.
        unsafe { &*flight.channel }
    }

    /// Gives the I/O back to the consumer's fields.
    fn land(&self, flight: *mut Flight) {
        // SAFETY: the flight is live, and the module has given the I/O back.
        let (found, io) = unsafe { (&*flight, &mut *(*flight).io) };
        let is_lent = io.flags.contains(IoFlags::LENT);
        io.flags = IoFlags(found.wanted.flags.0 | if is_lent { IoFlags::LENT.0 } else { 0 });
        io.done = found.done;
        io.done_arg = found.done_arg;
        if is_lent {
            return found.state.set(FlightState::Lent);
        }
        // SAFETY: the channel is live; the I/O has as much context as its channel asked for.
        unsafe { self.spoil_context(found.io, (*(*found.channel).face.get()).io_ctx_size) };
        self.end(flight);
    }

    /// The submission is over: nothing of it is with host or module.
    pub(crate) fn end(&self, flight: *mut Flight) {
        // SAFETY: the flight is live, as are gates.
        let (found, gate) = unsafe { (&*flight, &*(*flight).gate) };
        found.state.set(FlightState::Done);
        if !found.is_child {
            gate.in_flight.set(gate.in_flight.get() - 1);
        }
        self.flights.retire(flight);
    }

    fn call_done(&self, flight: &Flight) {
        // SAFETY: gates live as long as the world.
        let place = Where::Reactor(unsafe { (*flight.gate).reactor });
        if let Some(done) = flight.done {
            let (io, arg) = (flight.io, flight.done_arg);
            // SAFETY: the consumer's own function and argument, called once for this submission.
            self.enter(place, flight.consumer, || unsafe { done(io, arg) });
        }
    }

    /// Ends an I/O that is with the host.
    pub(crate) fn finish(&self, flight: *mut Flight, status: IoStatus) {
        // SAFETY: the flight is live, and the I/O is with the host.
        let (found, io) = unsafe { (&*flight, &mut *(*flight).io) };
        io.flags = found.wanted.flags;
        io.done = found.done;
        io.done_arg = found.done_arg;
        io.status = status;
        io.state = IoState::IDLE;
        self.end(flight);
        self.call_done(found);
    }

    /// Completes a READ with memory of the host, which stays out until the consumer returns it.
    pub(crate) fn lend(&self, flight: *mut Flight) {
        // SAFETY: the flight is live, and the I/O is with the host.
        let (found, io) = unsafe { (&*flight, &mut *(*flight).io) };
        io.flags = IoFlags(found.wanted.flags.0 | IoFlags::LENT.0);
        io.done = found.done;
        io.done_arg = found.done_arg;
        io.status = IoStatus::SUCCESS;
        io.state = IoState::IDLE;
        found.state.set(FlightState::Lent);
        self.call_done(found);
    }

    /// A completion that came from a foreign thread, now on the right one.
    pub(crate) fn finish_foreign(self: &Rc<World>, cookie: usize) {
        let Some(flight) = self.flights.get(cookie as u64) else { return };
        // SAFETY: it is live, as are its channel and I/O.
        let (reactor, owner, io) = unsafe { ((*(*flight).channel).reactor, (*flight).owner, (*flight).io) };
        self.enter(Where::Reactor(reactor), owner, || self.completed(flight, io));
    }

    fn check_completion(&self, found: &Flight, channel: &ModuleChannel) {
        // SAFETY: the module has given the I/O back.
        let io = unsafe { &*found.io };
        let (wanted, name) = (&found.wanted, &channel.device.name);
        let bad = |what: String| {
            self.violate_by(
                Fault::BadCompletion,
                found.owner,
                format!("`{name}` completed op {}: {what}", wanted.op.0),
            );
        };
        if io.status.0 > 0 && io.status.as_nvme().is_none() {
            bad(format!("status {} is neither 0, nor -errno, nor an NVMe status", io.status.0));
        }
        if io.status == IoStatus::NOT_SUPPORTED && !found.is_child && wanted.op.0 < Op::NVME_ADMIN.0 {
            let detail = format!("`{name}` declares op {} and answers NOT_SUPPORTED", wanted.op.0);
            self.violate_by(Fault::DeclaredButRefused, found.owner, detail);
        }
        if !std::ptr::eq(io.host[0].cast::<Flight>(), std::ptr::from_ref(found)) {
            bad("the host's words in the I/O were overwritten".to_owned());
        }
        if io.flags.contains(IoFlags::LENT) {
            return self.check_lent(found, channel, &bad);
        }
        let seeks = wanted.op == Op::SEEK_HOLE || wanted.op == Op::SEEK_DATA || wanted.op == Op::ZONE_APPEND;
        let is_same = io.op == wanted.op
            && (io.offset_blocks == wanted.offset_blocks || seeks)
            && io.num_blocks == wanted.num_blocks
            && io.iovs == wanted.iovs
            && io.iovcnt == wanted.iovcnt;
        if !is_same {
            bad("request fields of the consumer were changed".to_owned());
        }
        let wants_memory = wanted.op == Op::READ && wanted.iovcnt == 0 && wanted.num_blocks > 0;
        if wants_memory && io.status.is_success() {
            bad("a READ without payload succeeded without lending memory".to_owned());
        }
    }

    fn check_lent(&self, found: &Flight, channel: &ModuleChannel, bad: &dyn Fn(String)) {
        // SAFETY: the module has given the I/O back, with its own list of its own memory.
        let (io, pieces) = unsafe {
            let io = &*found.io;
            let is_empty = io.iovs.is_null() || io.iovcnt == 0;
            (io, if is_empty { &[] } else { std::slice::from_raw_parts(io.iovs, io.iovcnt as usize) })
        };
        let (wanted, device) = (&found.wanted, &channel.device);
        if wanted.op != Op::READ || !wanted.flags.contains(IoFlags::LEND) || !io.status.is_success() {
            bad("LENT without a successful READ that asked for it".to_owned());
        }
        let bytes: u64 = pieces.iter().map(|piece| piece.len as u64).sum();
        if bytes != wanted.num_blocks * device.block_bytes() {
            bad(format!("{bytes} bytes lent for {} blocks", wanted.num_blocks));
        }
    }

    /// True if a module holds an I/O of `device`.
    pub(crate) fn is_busy(&self, device: &Device) -> bool {
        self.flights.snapshot().into_iter().any(|flight| {
            // SAFETY: live flights and their channels are not freed.
            let found = unsafe { &*flight };
            found.state.get() == FlightState::Submitted && self.channel_of(found).device.id == device.id
        })
    }
}

const MAX_REMEMBERED: usize = 16_384;
