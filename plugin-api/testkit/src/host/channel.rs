//! Channels: the consumer's (one per descriptor and reactor, with the gate's
//! operations) and the module's (one per device and reactor) below it. Both
//! are kept after their end, so that a late use is found and not undefined.
// UNSAFETY: owns the raw channels that consumers and modules point to.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::mem::offset_of;
use std::rc::Rc;

use tenon_abi::{BdevIo, IoChannel, IoFlags, IoOpsV1, IoStatus, reaches};

use super::descriptor::Desc;
use super::device::Device;
use super::flight::{Flight, FlightState, flight_done};
use super::gate::GATE_OPS;
use super::module::ModuleId;
use super::schedule::Where;
use super::world::{self, World};
use crate::violation::Fault;

/// What a consumer holds.
#[repr(C)]
pub(crate) struct GateChannel {
    face: UnsafeCell<IoChannel>,
    pub(crate) desc: u64,
    pub(crate) descriptor: Rc<Desc>,
    pub(crate) device: Rc<Device>,
    pub(crate) module: ModuleId,
    pub(crate) reactor: usize,
    pub(crate) channel: *mut ModuleChannel,
    refs: Cell<u32>,
    pub(crate) in_flight: Cell<u32>,
    pub(crate) is_put: Cell<bool>,
}

/// What the module made.
#[repr(C)]
pub(crate) struct ModuleChannel {
    pub(crate) face: UnsafeCell<IoChannel>,
    pub(crate) device: Rc<Device>,
    pub(crate) reactor: usize,
    users: Cell<u32>,
    starved: RefCell<VecDeque<u64>>,
    is_retry_due: Cell<bool>,
    faults_seen: Cell<u32>,
    is_destroyed: Cell<bool>,
}

impl ModuleChannel {
    fn outstanding(&self) -> u32 {
        // SAFETY: the channel lives as long as the world, and its fields are plain words.
        unsafe { (*self.face.get()).outstanding }
    }
}

fn face_for(world: &World, reactor: usize) -> IoChannel {
    IoChannel {
        ops: std::ptr::null(),
        ctx: std::ptr::null_mut(),
        outstanding: 0,
        io_ctx_size: 0,
        flags: 0,
        faults: 0,
        reactor: world.shared.reactor(reactor),
        host: std::ptr::null_mut(),
        retry: None,
        reserved: [0],
    }
}

/// `complete` calls this instead of `done` when the module says NOMEM.
unsafe extern "C" fn starve(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: `ch` is a module channel this hook was installed on; the I/O's words are ours while it is submitted.
    let address = unsafe { (*io).host[0] };
    let Some(world) = world::current() else {
        // SAFETY: the word holds the flight; `flight_done` reports the wrong thread.
        return unsafe { flight_done(io, address) };
    };
    let Some(flight) = world.flights.at(address) else {
        return world.violate(Fault::ForeignCompletion, "NOMEM for an I/O whose host words were overwritten");
    };
    // SAFETY: the flight is live, and `ch` is the face of a module channel, its first field.
    let (found, channel) = unsafe { (&*flight, &*ch.cast::<ModuleChannel>()) };
    let is_ours = found.state.get() == FlightState::Submitted && found.io == io;
    let gives_up = found.wanted.flags.contains(IoFlags::NO_RETRY) || found.retries.get() >= MAX_RETRIES;
    if !is_ours || gives_up {
        return world.completed(flight, io);
    }
    if world.reactor_here() != Some(channel.reactor) {
        let detail = format!(
            "`{}` answered NOMEM for an I/O of reactor {} elsewhere",
            channel.device.name, channel.reactor
        );
        world.violate_by(Fault::WrongThread, found.owner, detail);
    }
    found.retries.set(found.retries.get() + 1);
    found.state.set(FlightState::Starved);
    channel.starved.borrow_mut().push_back(found.cookie);
    world.progress_resets(&channel.device);
    let address = ch.cast::<ModuleChannel>();
    world.after(channel.reactor, RETRY_AFTER_NS, move |world| world.feed_starved(address));
}

impl World {
    pub(crate) fn channel_get(self: &Rc<World>, desc: u64, reactor: usize) -> *mut IoChannel {
        let Some(descriptor) = self.expect_descriptor("channel_get", desc) else {
            return std::ptr::null_mut();
        };
        let device = Rc::clone(&descriptor.device);
        if !device.state.get().is_open_to_consumers() {
            return std::ptr::null_mut();
        }
        let gates = device.gates.borrow();
        // SAFETY: channels live as long as the world.
        let found = gates
            .iter()
            .copied()
            .find(|gate| unsafe { (**gate).desc == desc && (**gate).reactor == reactor });
        drop(gates);
        if let Some(gate) = found {
            // SAFETY: as above.
            unsafe { (*gate).refs.set((*gate).refs.get() + 1) };
            return gate.cast();
        }
        let Some(channel) = self.module_channel(&device, reactor) else { return std::ptr::null_mut() };
        // SAFETY: as above.
        let io_ctx_size = unsafe {
            (*channel).users.set((*channel).users.get() + 1);
            (*(*channel).face.get()).io_ctx_size
        };
        let face = IoChannel { ops: &raw const GATE_OPS, io_ctx_size, ..face_for(self, reactor) };
        let gate = Box::into_raw(Box::new(GateChannel {
            face: UnsafeCell::new(face),
            desc,
            module: descriptor.module,
            descriptor,
            device: Rc::clone(&device),
            reactor,
            channel,
            refs: Cell::new(1),
            in_flight: Cell::new(0),
            is_put: Cell::new(false),
        }));
        self.gates.borrow_mut().push(gate);
        device.gates.borrow_mut().push(gate);
        gate.cast()
    }

    /// The module's channel of `device` on `reactor`, created on first use.
    fn module_channel(self: &Rc<World>, device: &Rc<Device>, reactor: usize) -> Option<*mut ModuleChannel> {
        let channels = device.channels.borrow();
        // SAFETY: channels live as long as the world.
        let found = channels.iter().copied().find(|channel| unsafe { (**channel).reactor } == reactor);
        drop(channels);
        if found.is_some() {
            return found;
        }
        let channel = Box::into_raw(Box::new(ModuleChannel {
            face: UnsafeCell::new(IoChannel { retry: Some(starve), ..face_for(self, reactor) }),
            device: Rc::clone(device),
            reactor,
            users: Cell::new(0),
            starved: RefCell::new(VecDeque::new()),
            is_retry_due: Cell::new(false),
            faults_seen: Cell::new(0),
            is_destroyed: Cell::new(false),
        }));
        self.channels.borrow_mut().push(channel);
        // Listed before the call: the device must not be destructed under a module that is creating a channel.
        device.channels.borrow_mut().push(channel);
        // SAFETY: the device is not destructed, so its context is valid; the channel lives as long as the world.
        let code = self.enter(Where::Reactor(reactor), device.owner, || unsafe {
            ((*device.ops).channel_create)(device.ctx, channel.cast())
        });
        // SAFETY: as above.
        let wrong = if code == 0 { unsafe { wrong_face(&*(*channel).face.get()) } } else { None };
        if code == 0 && wrong.is_none() {
            return Some(channel);
        }
        // SAFETY: as above.
        unsafe { (*channel).is_destroyed.set(true) };
        device.channels.borrow_mut().retain(|other| *other != channel);
        if let Some(wrong) = wrong {
            self.violate_by(
                Fault::BadDeclaration,
                device.owner,
                format!("channel of `{}`: {wrong}", device.name),
            );
        }
        None
    }

    pub(crate) fn channel_put(self: &Rc<World>, ch: *mut IoChannel, reactor: usize) {
        let gate = ch.cast::<GateChannel>();
        if !self.gates.borrow().contains(&gate) {
            return self
                .violate(Fault::BadCall, "channel_put of something that is no channel of channel_get");
        }
        // SAFETY: it is in the list, so it lives as long as the world.
        let found = unsafe { &*gate };
        let name = &found.device.name;
        if found.is_put.get() {
            return self.violate(Fault::UseAfterPut, format!("channel of `{name}` was put a second time"));
        }
        if found.reactor != reactor {
            let detail = format!("channel of `{name}` of reactor {} was put on {reactor}", found.reactor);
            return self.violate(Fault::WrongThread, detail);
        }
        found.refs.set(found.refs.get() - 1);
        if found.refs.get() > 0 {
            return;
        }
        if found.in_flight.get() > 0 {
            let detail =
                format!("channel of `{name}` was put with {} I/Os outstanding", found.in_flight.get());
            self.violate(Fault::IoOutstanding, detail);
        }
        self.take_channel(gate);
    }

    /// Ends a consumer's channel, and the module's with its last one.
    pub(crate) fn take_channel(self: &Rc<World>, gate: *mut GateChannel) {
        // SAFETY: channels live as long as the world.
        let found = unsafe { &*gate };
        found.is_put.set(true);
        found.device.gates.borrow_mut().retain(|other| *other != gate);
        self.release_module_channel(found.channel);
    }

    fn release_module_channel(self: &Rc<World>, channel: *mut ModuleChannel) {
        // SAFETY: channels live as long as the world.
        let found = unsafe { &*channel };
        found.users.set(found.users.get() - 1);
        if found.users.get() > 0 {
            return;
        }
        let device = Rc::clone(&found.device);
        if found.outstanding() > 0 {
            let detail =
                format!("`{}` has {} I/Os outstanding at channel_destroy", device.name, found.outstanding());
            self.violate_by(Fault::IoOutstanding, device.owner, detail);
        }
        // SAFETY: nobody uses the channel any longer, and this is its reactor.
        self.enter(Where::Reactor(found.reactor), device.owner, || unsafe {
            ((*device.ops).channel_destroy)(device.ctx, channel.cast());
        });
        self.check_channel(found);
        found.is_destroyed.set(true);
        device.channels.borrow_mut().retain(|other| *other != channel);
        self.progress_removal(&device);
    }

    /// Gives starved I/Os back to the module, in a step of its own.
    pub(crate) fn feed_starved(&self, channel: *mut ModuleChannel) {
        // SAFETY: channels live as long as the world.
        let found = unsafe { &*channel };
        if found.starved.borrow().is_empty() || found.is_retry_due.replace(true) {
            return;
        }
        self.post(found.reactor, move |world| {
            // SAFETY: as above.
            let found = unsafe { &*channel };
            found.is_retry_due.set(false);
            let count = found.starved.borrow().len();
            for _ in 0..count {
                let Some(cookie) = found.starved.borrow_mut().pop_front() else { break };
                let Some(flight) = world.flights.get(cookie) else { continue };
                // SAFETY: the flight is live.
                if unsafe { (*flight).state.get() } == FlightState::Starved {
                    world.dispatch(flight);
                }
                // SAFETY: flights that are over are kept for a while.
                if unsafe { (*flight).state.get() } == FlightState::Starved {
                    break;
                }
            }
        });
    }

    /// Ends what the host holds of a device that goes.
    pub(crate) fn fail_held_io(&self, device: &Device) {
        let mut held: Vec<*mut Flight> = device.waiting.borrow_mut().drain(..).collect();
        held.extend(device.resets.borrow_mut().drain(..));
        device.is_frozen.set(false);
        for channel in device.channels.borrow().iter() {
            // SAFETY: channels live as long as the world.
            let cookies: Vec<u64> = unsafe { (**channel).starved.borrow_mut().drain(..).collect() };
            held.extend(cookies.into_iter().filter_map(|cookie| self.flights.get(cookie)));
        }
        for flight in held {
            // SAFETY: what is held or starved is live.
            let (cookie, reactor) = unsafe { ((*flight).cookie, (*(*flight).gate).reactor) };
            self.post(reactor, move |world| {
                let Some(flight) = world.flights.get(cookie) else { return };
                // SAFETY: as above.
                if matches!(unsafe { (*flight).state.get() }, FlightState::Held | FlightState::Starved) {
                    world.finish(flight, IoStatus::NO_DEVICE);
                }
            });
        }
    }

    /// Reports completions that the inline step counted as faults.
    pub(crate) fn check_channel(&self, channel: &ModuleChannel) {
        // SAFETY: the channel lives as long as the world.
        let faults = unsafe { (*channel.face.get()).faults };
        if faults > channel.faults_seen.replace(faults) {
            let detail = format!("`{}` completed an I/O a second time", channel.device.name);
            self.violate_by(Fault::DoubleCompletion, channel.device.owner, detail);
        }
    }

    /// As [`World::check_channel`], for every device that is there.
    pub(crate) fn check_channels(&self) {
        let devices = self.devices.borrow().snapshot();
        for device in devices {
            for channel in device.channels.borrow().iter() {
                // SAFETY: channels live as long as the world.
                self.check_channel(unsafe { &**channel });
            }
        }
    }

    /// As [`World::check_channel`], also for channels that are gone.
    pub(crate) fn check_all_channels(&self) {
        for channel in self.channels.borrow().iter() {
            // SAFETY: channels live as long as the world.
            self.check_channel(unsafe { &**channel });
        }
    }

    /// Frees every channel; nothing may refer to one afterwards.
    pub(crate) fn clear_channels(&self) {
        for gate in self.gates.borrow_mut().drain(..) {
            // SAFETY: made by `Box::into_raw`, and just taken out of the only list that owns it.
            drop(unsafe { Box::from_raw(gate) });
        }
        for channel in self.channels.borrow_mut().drain(..) {
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(channel) });
        }
    }
}

/// What is wrong with what `channel_create` filled in.
///
/// # Safety
/// `face.ops` is null or a table.
unsafe fn wrong_face(face: &IoChannel) -> Option<String> {
    let end = offset_of!(IoOpsV1, submit) + size_of::<usize>();
    // SAFETY: a table starts with its size; the pointer is checked first.
    if face.ops.is_null() || !reaches(unsafe { (*face.ops).size }, end) {
        return Some("`ops` is missing or does not reach `submit`".to_owned());
    }
    if !face.io_ctx_size.is_multiple_of(64) {
        return Some(format!("`io_ctx_size` {} is no multiple of 64", face.io_ctx_size));
    }
    None
}

const RETRY_AFTER_NS: u64 = 100_000;
/// A module that never has room gets its NOMEM through in the end.
const MAX_RETRIES: u32 = 10_000;
