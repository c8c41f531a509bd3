//! A consumer that knows what its device must hold: writes and reads blocks of
//! its own, counts every completion, and fails on a wrong byte, an I/O that
//! completes twice, or one that never does.
// UNSAFETY: is a consumer of the contract: submits raw I/Os and gets them back by pointer.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::Rc;

use tenon_abi::{BDEV_IO_SIZE, BdevEventKind, BdevIo, IoStatus, IoVec, Op};
use tenon_bdev::{Channel, Descriptor, channel_get};

use crate::world::World;

/// Parts of the device, each written and read as a whole.
const SLOTS: usize = 8;
/// Blocks of a part.
const BLOCKS: u64 = 8;
/// Slot of an I/O whose data is not checked.
const UNCHECKED: usize = usize::MAX;
const BYTES: usize = BLOCKS as usize * 512;

/// A load on one device, from one reactor.
pub struct Load {
    descriptor: RefCell<Option<Descriptor>>,
    channel: RefCell<Option<Channel>>,
    reactor: usize,
    /// What each part may hold: more than one value after a write whose end is unknown.
    held: RefCell<Vec<Vec<u8>>>,
    #[allow(clippy::vec_box, reason = "the device has a pointer to each while it is on the way")]
    flights: RefCell<Vec<Box<Flight>>>,
    pub events: Rc<RefCell<Vec<BdevEventKind>>>,
    pub good: Cell<u64>,
    pub failed: RefCell<Vec<IoStatus>>,
}

struct Flight {
    memory: *mut u8,
    layout: Layout,
    payload: Box<[u8; BYTES]>,
    iov: IoVec,
    slot: usize,
    is_write: bool,
    value: u8,
    completions: Cell<u32>,
    status: Cell<IoStatus>,
}

impl Load {
    /// Opens a device on a data reactor.
    pub fn open(world: &World, name: &str, reactor: usize) -> Load {
        let events: Rc<RefCell<Vec<BdevEventKind>>> = Rc::default();
        let heard = Rc::clone(&events);
        let descriptor = world.on(|world| {
            world.core.open(name, "load", true, move |event| heard.borrow_mut().push(event.kind))
        });
        let descriptor = descriptor.expect("opens");
        let handle = descriptor.handle();
        let channel = world.on_data(reactor, || channel_get(handle)).expect("a channel");
        Load {
            descriptor: RefCell::new(Some(descriptor)),
            channel: RefCell::new(Some(channel)),
            reactor,
            held: RefCell::new(vec![vec![0]; SLOTS]),
            flights: RefCell::default(),
            events,
            good: Cell::new(0),
            failed: RefCell::default(),
        }
    }

    /// I/Os on the way.
    pub fn in_flight(&self) -> usize {
        self.flights.borrow().len()
    }

    /// Starts a read or write of a part that is not in use; false if there is none.
    pub fn submit(&self, world: &World) -> bool {
        let slot = world.roll(SLOTS as u64) as usize;
        let is_busy = self.flights.borrow().iter().any(|flight| flight.slot == slot);
        if is_busy || self.channel.borrow().is_none() {
            return false;
        }
        let (is_write, value) = (world.roll(2) == 0, world.roll(256) as u8);
        if is_write {
            self.held.borrow_mut()[slot].push(value);
        }
        self.start(world, slot as u64 * BLOCKS, is_write, value, slot);
        true
    }

    /// Starts a read or write anywhere, whose data is not checked.
    pub fn submit_at(&self, world: &World, offset_blocks: u64, is_write: bool) {
        self.start(world, offset_blocks, is_write, 0x5a, UNCHECKED);
    }

    /// Writes on the way.
    pub fn writes_in_flight(&self) -> usize {
        self.flights.borrow().iter().filter(|flight| flight.is_write && flight.completions.get() == 0).count()
    }

    fn start(&self, world: &World, offset_blocks: u64, is_write: bool, value: u8, slot: usize) {
        let channel = self.channel.borrow().as_ref().map(|channel| (channel.as_ptr(), channel.io_ctx_size()));
        let (channel, context) = channel.expect("open");
        let layout = Layout::from_size_align(BDEV_IO_SIZE + context as usize, 64).expect("small");
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        assert!(!memory.is_null());
        let mut flight = Box::new(Flight {
            memory,
            layout,
            payload: Box::new([if is_write { value } else { 0xaa }; BYTES]),
            iov: IoVec::EMPTY,
            slot,
            is_write,
            value,
            completions: Cell::new(0),
            status: Cell::new(IoStatus::SUCCESS),
        });
        flight.iov = IoVec { base: flight.payload.as_mut_ptr().cast(), len: BYTES };
        let raw: *mut Flight = &raw mut *flight;
        self.flights.borrow_mut().push(flight);
        world.on_data(self.reactor, || {
            // SAFETY: the I/O is zeroed and has room for its context; it lives until it is collected, which waits
            // for its completion; this is the channel's reactor.
            unsafe {
                let io = memory.cast::<BdevIo>();
                (*io).op = if is_write { Op::WRITE } else { Op::READ };
                (*io).iovs = &raw mut (*raw).iov;
                (*io).iovcnt = 1;
                (*io).offset_blocks = offset_blocks;
                (*io).num_blocks = BLOCKS;
                (*io).done = Some(done);
                (*io).done_arg = raw.cast();
                tenon_abi::submit(channel, io);
            }
        });
    }

    /// Takes what is complete, and checks it.
    #[track_caller]
    pub fn collect(&self) {
        let mut over = Vec::new();
        let mut flights = self.flights.borrow_mut();
        let mut at = 0;
        while at < flights.len() {
            if flights[at].completions.get() > 0 {
                over.push(flights.swap_remove(at));
            } else {
                at += 1;
            }
        }
        drop(flights);
        for flight in over {
            assert_eq!(flight.completions.get(), 1, "completed once");
            let status = flight.status.get();
            if !status.is_success() {
                self.failed.borrow_mut().push(status);
                continue;
            }
            self.good.set(self.good.get() + 1);
            if flight.slot == UNCHECKED {
                continue;
            }
            let held = &mut self.held.borrow_mut()[flight.slot];
            if flight.is_write {
                *held = vec![flight.value];
            } else {
                let first = flight.payload[0];
                assert!(
                    flight.payload.iter().all(|byte| *byte == first),
                    "a torn read of part {}",
                    flight.slot
                );
                assert!(held.contains(&first), "part {} holds {first}, not {held:?}", flight.slot);
                // What was read is what is there, whatever may have been written before.
                *held = vec![first];
            }
        }
    }

    /// Closes; every I/O has to be complete.
    pub fn close(&self, world: &World) {
        self.collect();
        assert_eq!(self.in_flight(), 0, "no i/o is lost");
        let channel = self.channel.borrow_mut().take();
        world.on_data(self.reactor, || drop(channel));
        let descriptor = self.descriptor.borrow_mut().take();
        world.on(|_| drop(descriptor));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and complete.
        unsafe { dealloc(self.memory, self.layout) };
    }
}

unsafe extern "C" fn done(io: *mut BdevIo, arg: *mut c_void) {
    // SAFETY: the flight lives until its completion is collected.
    unsafe {
        let flight = &*arg.cast::<Flight>();
        flight.completions.set(flight.completions.get() + 1);
        flight.status.set((*io).status);
    }
}
