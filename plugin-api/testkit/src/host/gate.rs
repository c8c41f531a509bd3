//! The gate: the operations of the channel a consumer holds. Checks each I/O,
//! holds it while the device is frozen or absent, and gives it to the module.
// UNSAFETY: called by consumers with raw channels and I/Os.

use std::rc::Rc;

use tenon_abi::{BdevIo, IoChannel, IoFlags, IoOpsV1, IoState, IoStatus, Op, errno, reaches};

use super::channel::GateChannel;
use super::device::Device;
use super::flight::{Flight, FlightState};
use super::lifecycle::DeviceState;
use super::schedule::Where;
use super::shared;
use super::world::{self, World};
use crate::violation::Fault;

pub(crate) static GATE_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit: gate_submit,
    submit_batch: Some(gate_submit_batch),
    abort: Some(gate_abort),
    release: Some(gate_release),
};

/// Records a call on a thread that is no reactor.
fn off_thread(function: &str) {
    if let Some(host) = shared::shared() {
        let module = shared::foreign().map(|found| found.module).unwrap_or(super::module::ModuleId::HOST);
        host.violate(Fault::WrongThread, module, format!("{function} on a thread that is no reactor"));
    }
}

/// Ends an I/O that was not admitted.
///
/// # Safety
/// `io` is the consumer's, filled in.
unsafe fn refuse(io: *mut BdevIo, status: IoStatus) {
    // SAFETY: the caller promises the I/O; `done` is called once for this submission.
    unsafe {
        (*io).status = status;
        (*io).state = IoState::IDLE;
        if let Some(done) = (*io).done {
            done(io, (*io).done_arg);
        }
    }
}

unsafe extern "C" fn gate_submit(ch: *mut IoChannel, io: *mut BdevIo) {
    let Some(world) = world::current() else {
        off_thread("submit");
        // SAFETY: the consumer gave a filled-in I/O.
        return unsafe { refuse(io, IoStatus::INTERNAL) };
    };
    // SAFETY: these operations stand only in channels of `channel_get`; the consumer gave a filled-in I/O.
    unsafe {
        if let Some(flight) = world.admit(ch.cast(), io) {
            world.dispatch(flight);
        }
    }
}

unsafe extern "C" fn gate_submit_batch(ch: *mut IoChannel, ios: *const *mut BdevIo, count: u32) {
    // SAFETY: the consumer gives `count` I/Os.
    let ios: Vec<*mut BdevIo> = unsafe { std::slice::from_raw_parts(ios, count as usize) }.to_vec();
    let Some(world) = world::current() else {
        // SAFETY: as in `gate_submit`, which reports the thread.
        return ios.into_iter().for_each(|io| unsafe { gate_submit(ch, io) });
    };
    // SAFETY: as in `gate_submit`.
    let admitted: Vec<*mut Flight> = unsafe {
        ios.into_iter()
            .filter_map(|io| {
                (*io).ch = ch;
                world.admit(ch.cast(), io)
            })
            .collect()
    };
    world.dispatch_batch(&admitted);
}

unsafe extern "C" fn gate_abort(ch: *mut IoChannel, victim: *mut BdevIo) -> i32 {
    let Some(world) = world::current() else {
        off_thread("abort");
        return errno::EPERM;
    };
    match world.flights.of_io(ch.cast(), victim) {
        Some(flight) => world.abort(flight),
        None => errno::ENOENT,
    }
}

unsafe extern "C" fn gate_release(ch: *mut IoChannel, io: *mut BdevIo) {
    let Some(world) = world::current() else { return off_thread("release") };
    let lent = world.flights.of_io(ch.cast(), io);
    // SAFETY: a flight in the list is live.
    match lent.filter(|flight| unsafe { (**flight).state.get() } == FlightState::Lent) {
        Some(flight) => world.take_back(flight),
        None => world.violate(Fault::BadCall, "release of an I/O that holds no lent memory of this channel"),
    }
}

impl World {
    /// Checks one I/O; refuses it or starts its flight.
    ///
    /// # Safety
    /// `gate` came from `channel_get`, and `io` is filled in.
    unsafe fn admit(self: &Rc<World>, gate: *mut GateChannel, io: *mut BdevIo) -> Option<*mut Flight> {
        // SAFETY: channels live as long as the world.
        let found = unsafe { &*gate };
        if io.is_null() || !(io as usize).is_multiple_of(64) {
            self.violate(
                Fault::BadCall,
                format!("an I/O for `{}` is null or not aligned to 64", found.device.name),
            );
            return None;
        }
        // SAFETY: the caller promises the I/O.
        if unsafe { (*io).state } != IoState::IDLE {
            let detail = format!("an I/O for `{}` was submitted while not idle", found.device.name);
            self.violate(Fault::BadCall, detail);
            return None;
        }
        if found.is_put.get() {
            self.violate(
                Fault::UseAfterPut,
                format!("submit on a channel of `{}` that was put", found.device.name),
            );
            // SAFETY: as above.
            unsafe { refuse(io, IoStatus::NO_DEVICE) };
            return None;
        }
        if self.reactor_here() != Some(found.reactor) {
            let detail = format!("submit to `{}` of reactor {} elsewhere", found.device.name, found.reactor);
            self.violate(Fault::WrongThread, detail);
        }
        // SAFETY: as above.
        match unsafe { self.check_io(found, io) } {
            // SAFETY: as above; the flight takes the I/O over.
            Ok(()) => Some(unsafe { self.start_flight(gate, io, false) }),
            Err(status) => {
                let is_gone = !found.device.state.get().is_open_to_consumers();
                // SAFETY: as above.
                unsafe { refuse(io, if is_gone { IoStatus::NO_DEVICE } else { status }) };
                None
            }
        }
    }

    /// Sends an admitted I/O where it belongs now.
    pub(crate) fn dispatch(self: &Rc<World>, flight: *mut Flight) {
        // SAFETY: the flight is live, as are channels.
        let (found, device) = unsafe { (&*flight, Rc::clone(&(*(*flight).channel).device)) };
        match device.state.get() {
            DeviceState::Orphaned | DeviceState::Draining | DeviceState::Destroyed => {
                return self.finish(flight, IoStatus::NO_DEVICE);
            }
            DeviceState::Absent => return self.hold(&device, flight),
            DeviceState::Registering | DeviceState::Examining | DeviceState::Ready => {}
        }
        if found.wanted.op == Op::RESET {
            return self.start_reset(&device, flight);
        }
        if device.is_frozen.get() {
            return self.hold(&device, flight);
        }
        if found.is_child || !self.reshape(flight) {
            self.forward(flight);
        }
    }

    fn hold(&self, device: &Device, flight: *mut Flight) {
        // SAFETY: the flight is live.
        unsafe { (*flight).state.set(FlightState::Held) };
        device.waiting.borrow_mut().push_back(flight);
    }

    /// Gives the module a whole batch if it can take one and the seed says so.
    fn dispatch_batch(self: &Rc<World>, flights: &[*mut Flight]) {
        for flight in flights {
            // The channel's own batch function is reached through `forward_batch` only for plain I/O.
            if !self.is_plain(*flight) {
                return flights.iter().for_each(|flight| self.dispatch(*flight));
            }
        }
        self.forward_batch(flights);
    }

    fn is_plain(&self, flight: *mut Flight) -> bool {
        // SAFETY: the flight is live, as are channels.
        let (found, device) = unsafe { (&*flight, &(*(*flight).channel).device) };
        let is_up = matches!(device.state.get(), DeviceState::Examining | DeviceState::Ready);
        is_up && !device.is_frozen.get() && found.wanted.op != Op::RESET && !self.needs_reshape(found)
    }

    fn forward_batch(self: &Rc<World>, flights: &[*mut Flight]) {
        let Some(first) = flights.first() else { return };
        // SAFETY: flights of one batch are live and go to one channel.
        let channel = unsafe { &*(**first).channel };
        let end = std::mem::offset_of!(IoOpsV1, submit_batch) + size_of::<usize>();
        // SAFETY: the table was checked when the channel was made; the field is read only if it is reached.
        let batch = unsafe {
            let ops = (*channel.face.get()).ops;
            if reaches((*ops).size, end) { (*ops).submit_batch } else { None }
        };
        let Some(batch) = batch else { return flights.iter().for_each(|flight| self.forward(*flight)) };
        // SAFETY: admitted I/Os are ours until we hand them on.
        let ios: Vec<*mut BdevIo> = flights.iter().map(|flight| unsafe { self.prepare(*flight) }).collect();
        let (place, face) = (Where::Reactor(channel.reactor), channel.face.get());
        // SAFETY: the module's own function on its own channel, with I/Os prepared for it.
        self.enter(place, channel.device.owner, || unsafe { batch(face, ios.as_ptr(), ios.len() as u32) });
        self.check_channel(channel);
    }

    /// Gives every I/O that waits for `device` another chance, on its own reactor.
    pub(crate) fn resume_waiting(&self, device: &Device) {
        let waiting: Vec<*mut Flight> = device.waiting.borrow_mut().drain(..).collect();
        for flight in waiting {
            // SAFETY: what waits is live.
            let (cookie, reactor) = unsafe { ((*flight).cookie, (*(*flight).gate).reactor) };
            self.post(reactor, move |world| {
                let Some(flight) = world.flights.get(cookie) else { return };
                // SAFETY: as above.
                if unsafe { (*flight).state.get() } == FlightState::Held {
                    world.dispatch(flight);
                }
            });
        }
    }

    fn abort(self: &Rc<World>, flight: *mut Flight) -> i32 {
        // SAFETY: the flight is live, as are channels.
        let (found, channel) = unsafe { (&*flight, &*(*flight).channel) };
        match found.state.get() {
            FlightState::Held | FlightState::Starved => {
                channel.device.waiting.borrow_mut().retain(|other| *other != flight);
                channel.device.resets.borrow_mut().retain(|other| *other != flight);
                self.finish(flight, IoStatus::ABORTED);
                0
            }
            FlightState::Reshaped => {
                let children = self.children_of(found);
                children.into_iter().filter(|child| self.abort(*child) == 0).count();
                0
            }
            FlightState::Submitted => {
                let end = std::mem::offset_of!(IoOpsV1, abort) + size_of::<usize>();
                // SAFETY: as in `forward_batch`.
                let abort = unsafe {
                    let ops = (*channel.face.get()).ops;
                    if reaches((*ops).size, end) { (*ops).abort } else { None }
                };
                let Some(abort) = abort else { return errno::ENOENT };
                let (place, face, io) = (Where::Reactor(channel.reactor), channel.face.get(), found.io);
                // SAFETY: the module's own function on its own channel; it has the victim.
                let code = self.enter(place, found.owner, || unsafe { abort(face, io) });
                self.check_channel(channel);
                code
            }
            FlightState::Lent | FlightState::Done => errno::ENOENT,
        }
    }

    /// The consumer returns lent memory.
    fn take_back(self: &Rc<World>, flight: *mut Flight) {
        // SAFETY: the flight is live, as are channels.
        let (found, channel) = unsafe { (&*flight, &*(*flight).channel) };
        let is_modules = found.reshape.borrow().is_none();
        if is_modules {
            let end = std::mem::offset_of!(IoOpsV1, release) + size_of::<usize>();
            // SAFETY: as in `forward_batch`.
            let release = unsafe {
                let ops = (*channel.face.get()).ops;
                if reaches((*ops).size, end) { (*ops).release } else { None }
            };
            let (place, face, io) = (Where::Reactor(channel.reactor), channel.face.get(), found.io);
            if let Some(release) = release {
                // SAFETY: the module's own function on its own channel; the memory is its own.
                self.enter(place, found.owner, || unsafe { release(face, io) });
            }
            // SAFETY: the channel is live; a lent I/O was still counted on it.
            unsafe { (*face).outstanding -= 1 };
        }
        // SAFETY: the consumer's I/O, which it does not touch during this call.
        unsafe {
            (*found.io).flags = IoFlags((*found.io).flags.0 & !IoFlags::LENT.0);
            (*found.io).iovs = found.wanted.iovs;
            (*found.io).iovcnt = found.wanted.iovcnt;
            if is_modules {
                self.spoil_context(found.io, (*channel.face.get()).io_ctx_size);
            }
        }
        *found.reshape.borrow_mut() = None;
        self.end(flight);
    }
}
