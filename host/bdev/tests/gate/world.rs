//! A simulation with a device, its gate and channels, and the few steps every test takes.
// UNSAFETY: submits and puts channels on the reactors they belong to.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tenon_abi::{DescHandle, IoChannel, IoStatus, Op};
use tenon_bdev::io::{Drained, Gate, GateCensus, Phase};
use tenon_reactor::{ReactorRef, Simulation};

use super::device::{Behaviour, Declared, Device};
use super::slot::Slot;

pub struct World {
    pub sim: Simulation,
    pub device: Rc<Device>,
    pub gate: Arc<Gate>,
}

/// A channel of a consumer and where it is.
#[derive(Clone)]
pub struct Channel {
    pub ch: *mut IoChannel,
    pub reactor: ReactorRef,
}

/// What a callback will set.
pub type Answer<T> = Rc<RefCell<Option<T>>>;

pub fn answer<T: 'static>() -> (Answer<T>, impl FnOnce(T) + 'static) {
    let answer: Answer<T> = Rc::default();
    let inside = Rc::clone(&answer);
    (answer, move |value| *inside.borrow_mut() = Some(value))
}

impl World {
    pub fn new(seed: u64, declared: Declared, behaviour: Behaviour) -> World {
        let sim = Simulation::new(seed, 3);
        let device = Device::new(declared, behaviour, seed);
        let gate = device.gate(sim.directory());
        World { sim, device, gate }
    }

    pub fn channel(&mut self, desc: u64, reactor: usize) -> Channel {
        let reactor = self.sim.data(reactor);
        let gate = Arc::clone(&self.gate);
        let ch = self.sim.on(&reactor, |_| gate.channel_get(DescHandle(desc), true)).unwrap();
        Channel { ch, reactor }
    }

    pub fn put(&mut self, channel: &Channel) {
        let ch = channel.ch;
        // SAFETY: the test gives back what it got, once.
        self.sim.on(&channel.reactor, |_| unsafe { Gate::channel_put(ch) });
    }

    pub fn slot(&self, channel: &Channel, bytes: usize) -> Box<Slot> {
        // SAFETY: the channel is live.
        Slot::new(unsafe { (*channel.ch).io_ctx_size }, bytes)
    }

    pub fn submit(&mut self, channel: &Channel, slot: &mut Slot) {
        let ch = channel.ch;
        // SAFETY: on the channel's reactor.
        self.sim.on(&channel.reactor, |_| unsafe { slot.submit(ch) });
    }

    pub fn abort(&mut self, channel: &Channel, slot: &Slot) -> i32 {
        let ch = channel.ch;
        // SAFETY: on the channel's reactor.
        self.sim.on(&channel.reactor, |_| unsafe { slot.abort(ch) })
    }

    /// Submits and waits; the status.
    pub fn run(&mut self, channel: &Channel, slot: &mut Slot) -> IoStatus {
        self.submit(channel, slot);
        let is_back = || !slot.in_flight.get();
        assert!(self.sim.run_until(Duration::from_secs(60), is_back), "I/O did not come back");
        slot.status.get()
    }

    /// Writes a pattern and waits.
    pub fn write(&mut self, channel: &Channel, offset: u64, blocks: u64, byte: u8) -> IoStatus {
        let bytes = (blocks * self.device.stride()) as usize;
        let mut slot = self.slot(channel, bytes);
        slot.prepare(Op::WRITE, offset, blocks, bytes, &[]);
        slot.payload().fill(byte);
        self.run(channel, &mut slot)
    }

    /// Runs a control-plane call and waits until it is done.
    pub fn control<T: 'static>(&mut self, call: impl FnOnce(&Arc<Gate>, Box<dyn FnOnce(T)>)) -> T {
        let (result, set) = answer();
        let control = self.sim.control();
        let gate = Arc::clone(&self.gate);
        self.sim.on(&control, |_| call(&gate, Box::new(set)));
        assert!(result.borrow().is_none(), "answered inside the call");
        let is_done = || result.borrow().is_some();
        assert!(self.sim.run_until(Duration::from_secs(120), is_done), "no answer");
        result.borrow_mut().take().unwrap()
    }

    pub fn set_phase(&mut self, phase: Phase) {
        self.control::<()>(|gate, done| gate.set_phase(phase, move || done(())));
    }

    pub fn drain(&mut self, deadline: Duration) -> Drained {
        let deadline_ns = self.sim.now_ns() + deadline.as_nanos() as u64;
        self.control(|gate, done| gate.wait_drained(deadline_ns, done))
    }

    pub fn settle(&mut self) {
        assert!(self.sim.run_until_idle(100_000), "never idle");
    }

    /// Puts the channels and asserts that nothing is left anywhere.
    pub fn finish(mut self, channels: &[Channel]) {
        channels.iter().for_each(|channel| self.put(channel));
        let left = self.drain(Duration::from_secs(5));
        assert!(left.is_empty(), "{left:?}");
        // Messages under way hold their reactors, and those hold them.
        assert!(self.sim.run_until_idle(100_000), "messages without an end");
        assert_eq!(self.gate.census(), GateCensus::default());
        assert_eq!(self.device.channels.get(), 0, "module channels left");
        assert_eq!(self.device.pending.get(), 0);
        assert!(self.device.lent.borrow().is_empty(), "memory lent for ever");
        assert_eq!(self.gate.faults(), 0);
    }
}

/// Counts calls.
pub fn counter() -> (Rc<Cell<u32>>, impl Fn() + Clone + 'static) {
    let count = Rc::new(Cell::new(0));
    let inside = Rc::clone(&count);
    (count, move || inside.set(inside.get() + 1))
}
