//! [`TestBase`]: a RAM device of the testkit that records what arrives and
//! misbehaves by plan, for testing modules that stand on other devices.
// UNSAFETY: implements a device on the raw contract.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::ops::Range;
use std::rc::{Rc, Weak};

use tenon_abi::{
    BdevFlags, BdevIo, BdevOpsV1, BdevV1, IoChannel, IoFlags, IoOpsV1, IoStatus, IoVec, Limits, Op, OpToken,
    Reason, Str, complete, errno,
};

use crate::host::memory::RawBuf;
use crate::host::module::ModuleId;
use crate::host::schedule::{CONTROL, Where};
use crate::host::world::World;
use crate::plan::{FaultPlan, Verdict};
use crate::rng::Rng;

/// What a test base looks like.
#[derive(Clone, Debug)]
pub struct BaseSpec {
    name: String,
    limits: Limits,
    flags: BdevFlags,
    io_types: u64,
    io_flags: u64,
    uuid: [u8; 16],
    plan: FaultPlan,
}

impl BaseSpec {
    /// A RAM device that handles READ, WRITE, FLUSH, UNMAP, WRITE_ZEROES, COMPARE, COMPARE_AND_WRITE, VERIFY,
    /// RESET and FUA, without limits.
    #[must_use]
    pub fn new(name: &str, block_size: u32, num_blocks: u64) -> BaseSpec {
        let spec = BaseSpec {
            name: name.to_owned(),
            limits: Limits::new(block_size, num_blocks),
            flags: BdevFlags::UNMAP_READS_ZEROES,
            io_types: 0,
            io_flags: u64::from(IoFlags::FUA.0 | IoFlags::DEALLOCATE.0),
            uuid: [0; 16],
            plan: FaultPlan::none(),
        };
        spec.io_types(&[
            Op::READ,
            Op::WRITE,
            Op::FLUSH,
            Op::UNMAP,
            Op::WRITE_ZEROES,
            Op::COMPARE,
            Op::COMPARE_AND_WRITE,
            Op::VERIFY,
            Op::RESET,
        ])
    }

    /// The operations it declares.
    #[must_use]
    pub fn io_types(mut self, ops: &[Op]) -> Self {
        self.io_types = ops.iter().fold(0, |bits, op| bits | op.bit());
        self
    }

    /// The I/O flags it declares.
    #[must_use]
    pub fn io_flags(mut self, io_flags: u64) -> Self {
        self.io_flags = io_flags;
        self
    }

    /// Its properties.
    #[must_use]
    pub fn flags(mut self, flags: BdevFlags) -> Self {
        self.flags = flags;
        self
    }

    /// Changes its limits.
    #[must_use]
    pub fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    /// Whether it answers READs that ask for it with its own memory.
    #[must_use]
    pub fn lends(mut self, lends: bool) -> Self {
        let bit = u64::from(IoFlags::LEND.0);
        self.io_flags = if lends { self.io_flags | bit } else { self.io_flags & !bit };
        self
    }

    /// Its identity; all zero: the host makes one.
    #[must_use]
    pub fn uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = uuid;
        self
    }

    /// What it does wrong.
    #[must_use]
    pub fn plan(mut self, plan: FaultPlan) -> Self {
        self.plan = plan;
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size in blocks.
    #[must_use]
    pub fn num_blocks(&self) -> u64 {
        self.limits.num_blocks
    }
}

/// One I/O that reached a test base.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Operation.
    pub op: Op,
    /// First block.
    pub offset_blocks: u64,
    /// Number of blocks.
    pub num_blocks: u64,
    /// Flags.
    pub flags: IoFlags,
    /// Data reactor it came on; `u32::MAX` for the control reactor.
    pub reactor: u32,
    /// Sizes of the payload's pieces.
    pub pieces: Vec<usize>,
}

/// A copy that a reader has, and the list that describes it.
type Lent = (RawBuf, Box<[IoVec]>);

struct Waiting {
    id: u64,
    io: *mut BdevIo,
    reactor: usize,
    verdict: Verdict,
    is_held: bool,
}

struct Inner {
    world: Weak<World>,
    name: String,
    handle: Cell<u64>,
    block_size: usize,
    lends: bool,
    memory: RefCell<Vec<u8>>,
    /// Blocks that cannot be read until they are written.
    spoiled: RefCell<BTreeSet<u64>>,
    rng: Rng,
    plan: RefCell<FaultPlan>,
    seen: Cell<u64>,
    next_id: Cell<u64>,
    arrivals: RefCell<Vec<Arrival>>,
    waiting: RefCell<Vec<Waiting>>,
    holds: Cell<bool>,
    lent: RefCell<BTreeMap<usize, Lent>>,
    channels: Cell<u32>,
}

/// A RAM device of the testkit.
#[derive(Clone)]
pub struct TestBase(Rc<Inner>);

static DEVICE_OPS: BdevOpsV1 = BdevOpsV1 {
    size: size_of::<BdevOpsV1>() as u32,
    flags: 0,
    channel_create,
    channel_destroy,
    destruct,
    dump_json: None,
    config_json: None,
    reset_stats: None,
    stats_json: None,
    rolled_back: None,
};

static CHANNEL_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit,
    submit_batch: None,
    abort: Some(abort),
    release: Some(release),
};

/// # Safety
/// `ctx` is the context of a test base that is registered.
unsafe fn inner<'a>(ctx: *mut c_void) -> &'a Inner {
    // SAFETY: the caller promises it; the world keeps every base.
    unsafe { &*ctx.cast::<Inner>() }
}

unsafe extern "C" fn channel_create(ctx: *mut c_void, ch: *mut IoChannel) -> i32 {
    // SAFETY: the host passes our context and a fresh channel.
    unsafe {
        inner(ctx).channels.set(inner(ctx).channels.get() + 1);
        (*ch).ops = &raw const CHANNEL_OPS;
        (*ch).ctx = ctx;
        (*ch).io_ctx_size = 64;
    }
    0
}

unsafe extern "C" fn channel_destroy(ctx: *mut c_void, _ch: *mut IoChannel) {
    // SAFETY: the host passes our context.
    let base = unsafe { inner(ctx) };
    base.channels.set(base.channels.get() - 1);
}

unsafe extern "C" fn destruct(ctx: *mut c_void, token: OpToken) {
    // SAFETY: the host passes our context.
    let base = unsafe { inner(ctx) };
    let Some(world) = base.world.upgrade() else { return };
    if base.rng.chance(500) {
        world.answer_operation(token.0, Ok(String::new()));
    } else {
        world.post(CONTROL, move |world| world.answer_operation(token.0, Ok(String::new())));
    }
}

unsafe extern "C" fn submit(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the gate passes our channel and an admitted I/O.
    unsafe { inner((*ch).ctx).arrived(io) };
}

unsafe extern "C" fn abort(ch: *mut IoChannel, victim: *mut BdevIo) -> i32 {
    // SAFETY: the gate passes our channel.
    let base = unsafe { inner((*ch).ctx) };
    let found = base.waiting.borrow().iter().position(|waiting| waiting.io == victim);
    let Some(nth) = found else { return errno::ENOENT };
    let waiting = base.waiting.borrow_mut().remove(nth);
    // SAFETY: it was ours until now.
    unsafe { complete(waiting.io, IoStatus::ABORTED) };
    0
}

unsafe extern "C" fn release(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the gate passes our channel.
    let base = unsafe { inner((*ch).ctx) };
    base.lent.borrow_mut().remove(&(io as usize));
}

impl Inner {
    fn arrived(&self, io: *mut BdevIo) {
        let Some(world) = self.world.upgrade() else { return };
        // SAFETY: the I/O is ours until it completes.
        let (arrival, reactor) =
            unsafe { (arrival_of(&*io, &world), world.reactor_here().unwrap_or(CONTROL)) };
        self.seen.set(self.seen.get() + 1);
        let blocks = arrival.offset_blocks..arrival.offset_blocks + arrival.num_blocks;
        let verdict = self.plan.borrow().judge(self.seen.get(), arrival.op, &blocks, &self.rng);
        self.arrivals.borrow_mut().push(arrival);
        self.trigger(&world, &verdict);
        self.next_id.set(self.next_id.get() + 1);
        let (id, delay_ns) = (self.next_id.get(), verdict.delay_ns);
        let is_held = self.holds.get();
        self.waiting.borrow_mut().push(Waiting { id, io, reactor, verdict, is_held });
        if is_held {
            return;
        }
        if delay_ns == 0 && self.rng.chance(500) {
            return self.finish(id);
        }
        let address = std::ptr::from_ref(self);
        // SAFETY: the world keeps every base as long as it runs its timers.
        world.after(reactor, delay_ns, move |_| unsafe { (*address).finish(id) });
    }

    fn trigger(&self, world: &Rc<World>, verdict: &Verdict) {
        let device = world.device(self.handle.get());
        if let (true, Some(device)) = (verdict.removes, device.clone()) {
            world.post(CONTROL, move |world| world.unregister(&device, Reason::HOT_REMOVED));
        }
        if let (Some(blocks), Some(device)) = (verdict.resizes_to, device) {
            let address = std::ptr::from_ref(self);
            // SAFETY: as in `arrived`.
            world.post(CONTROL, move |world| unsafe {
                (*address).grow(blocks);
                world.resize(&device, blocks);
            });
        }
    }

    fn grow(&self, blocks: u64) {
        let len = blocks as usize * self.block_size;
        let mut memory = self.memory.borrow_mut();
        if memory.len() < len {
            memory.resize(len, 0);
        }
    }

    fn finish(&self, id: u64) {
        let found = self.waiting.borrow().iter().position(|waiting| waiting.id == id);
        let Some(nth) = found else { return };
        let Waiting { io, verdict, .. } = self.waiting.borrow_mut().remove(nth);
        let status = match verdict.status {
            Some(status) => status,
            // SAFETY: the I/O is ours until it completes.
            None => unsafe { self.execute(&mut *io, verdict.is_corrupt) },
        };
        // SAFETY: it was ours until now.
        unsafe { complete(io, status) };
    }

    /// # Safety
    /// `io` is ours, with a payload that is readable and writable.
    unsafe fn execute(&self, io: &mut BdevIo, is_corrupt: bool) -> IoStatus {
        let start = io.offset_blocks as usize * self.block_size;
        let end = start + io.num_blocks as usize * self.block_size;
        let mut memory = self.memory.borrow_mut();
        if end > memory.len() && io.num_blocks > 0 {
            return IoStatus::LBA_OUT_OF_RANGE;
        }
        let blocks = io.offset_blocks..io.offset_blocks + io.num_blocks;
        match io.op {
            Op::READ | Op::COMPARE | Op::COMPARE_AND_WRITE
                if self.spoiled.borrow().range(blocks.clone()).next().is_some() =>
            {
                return IoStatus::UNRECOVERED_READ;
            }
            Op::WRITE | Op::WRITE_ZEROES => self.spoiled.borrow_mut().retain(|block| !blocks.contains(block)),
            _ => {}
        }
        match io.op {
            Op::READ => {
                let mut data = memory[start..end].to_vec();
                if is_corrupt && let Some(byte) = data.first_mut() {
                    *byte ^= 0xff;
                }
                if self.lends && io.flags.contains(IoFlags::LEND) && (io.iovcnt == 0 || self.rng.chance(500))
                {
                    return self.lend(io, &data);
                }
                // SAFETY: the caller promises the payload.
                unsafe { scatter(io, &data) };
            }
            Op::WRITE => {
                // SAFETY: the caller promises the payload.
                let mut data = unsafe { gather(io.iovs, io.iovcnt) };
                if is_corrupt && let Some(byte) = data.first_mut() {
                    *byte ^= 0xff;
                }
                memory[start..end].copy_from_slice(&data);
            }
            Op::UNMAP | Op::WRITE_ZEROES => memory[start..end].fill(0),
            Op::COMPARE => {
                // SAFETY: the caller promises the payload.
                if unsafe { gather(io.iovs, io.iovcnt) } != memory[start..end] {
                    return IoStatus::MISCOMPARE;
                }
            }
            Op::COMPARE_AND_WRITE => {
                // SAFETY: the operation carries its second list in `ext`, and the caller promises both.
                let (expected, data) = unsafe {
                    let Some(ext) = io.ext.as_ref() else { return IoStatus::INVALID };
                    (gather(ext.compare_iovs.cast_mut(), ext.compare_iovcnt), gather(io.iovs, io.iovcnt))
                };
                if expected != memory[start..end] {
                    return IoStatus::MISCOMPARE;
                }
                memory[start..end].copy_from_slice(&data);
            }
            Op::FLUSH | Op::VERIFY | Op::RESET => {}
            _ => return IoStatus::NOT_SUPPORTED,
        }
        IoStatus::SUCCESS
    }

    /// Where an I/O that has not completed changes the medium, and what it writes there.
    fn change_by(&self, io: *mut BdevIo) -> Option<(usize, Vec<u8>)> {
        // SAFETY: the I/O is ours until it completes.
        let io = unsafe { &*io };
        let data = match io.op {
            // SAFETY: an admitted I/O's payload is readable.
            Op::WRITE => unsafe { gather(io.iovs, io.iovcnt) },
            Op::UNMAP | Op::WRITE_ZEROES => vec![0; io.num_blocks as usize * self.block_size],
            _ => return None,
        };
        Some((io.offset_blocks as usize * self.block_size, data))
    }

    fn lend(&self, io: &mut BdevIo, data: &[u8]) -> IoStatus {
        let Some(buffer) = RawBuf::new(data.len(), 4096, 0) else { return IoStatus::NOMEM };
        buffer.copy_in(0, data);
        let mut list: Box<[IoVec]> = Box::new([IoVec { base: buffer.at(0).cast(), len: data.len() }]);
        io.iovs = list.as_mut_ptr();
        io.iovcnt = 1;
        io.flags = IoFlags(io.flags.0 | IoFlags::LENT.0);
        self.lent.borrow_mut().insert(std::ptr::from_mut(io) as usize, (buffer, list));
        IoStatus::SUCCESS
    }
}

fn arrival_of(io: &BdevIo, world: &World) -> Arrival {
    let pieces = if io.iovs.is_null() {
        Vec::new()
    } else {
        // SAFETY: an admitted I/O's list is readable.
        let list = unsafe { std::slice::from_raw_parts(io.iovs, io.iovcnt as usize) };
        list.iter().map(|piece| piece.len).collect()
    };
    Arrival {
        op: io.op,
        offset_blocks: io.offset_blocks,
        num_blocks: io.num_blocks,
        flags: io.flags,
        reactor: world.reactor_here().map_or(u32::MAX, |index| (index as u32).wrapping_sub(1)),
        pieces,
    }
}

/// # Safety
/// The list and its pieces are readable.
unsafe fn gather(iovs: *mut IoVec, iovcnt: u32) -> Vec<u8> {
    let mut out = Vec::new();
    if iovs.is_null() {
        return out;
    }
    // SAFETY: the caller promises the list.
    for piece in unsafe { std::slice::from_raw_parts(iovs, iovcnt as usize) } {
        if piece.len > 0 {
            // SAFETY: the caller promises the pieces.
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(piece.base.cast::<u8>(), piece.len) });
        }
    }
    out
}

/// # Safety
/// The I/O's pieces are writable and hold `data.len()` bytes together.
unsafe fn scatter(io: &BdevIo, mut data: &[u8]) {
    if io.iovs.is_null() {
        return;
    }
    // SAFETY: the caller promises the list.
    for piece in unsafe { std::slice::from_raw_parts(io.iovs, io.iovcnt as usize) } {
        let take = piece.len.min(data.len());
        // SAFETY: the caller promises the pieces; the data is separate memory.
        unsafe { piece.base.cast::<u8>().copy_from_nonoverlapping(data.as_ptr(), take) };
        data = &data[take..];
    }
}

impl TestBase {
    pub(crate) fn register(world: &Rc<World>, spec: BaseSpec) -> TestBase {
        let block_size = spec.limits.block_size as usize;
        let inner = Rc::new(Inner {
            world: Rc::downgrade(world),
            name: spec.name.clone(),
            handle: Cell::new(0),
            block_size,
            lends: spec.io_flags & u64::from(IoFlags::LEND.0) != 0,
            spoiled: RefCell::default(),
            memory: RefCell::new(vec![0; spec.limits.num_blocks as usize * block_size]),
            rng: world.rng.fork(),
            plan: RefCell::new(spec.plan),
            seen: Cell::new(0),
            next_id: Cell::new(0),
            arrivals: RefCell::new(Vec::new()),
            waiting: RefCell::new(Vec::new()),
            holds: Cell::new(false),
            lent: RefCell::new(BTreeMap::new()),
            channels: Cell::new(0),
        });
        let kept: Rc<Inner> = Rc::clone(&inner);
        world.bases.borrow_mut().push(kept);
        let bdev = BdevV1 {
            size: size_of::<BdevV1>() as u32,
            flags: spec.flags,
            limits: spec.limits,
            io_types: spec.io_types,
            io_flags: spec.io_flags,
            uuid: spec.uuid,
            nguid: [0; 16],
            eui64: [0; 8],
            numa_node: -1,
            alias_count: 0,
            name: Str::new(&spec.name),
            product: Str::new("Test base"),
            aliases: std::ptr::null(),
            ctx: Rc::as_ptr(&inner).cast_mut().cast(),
            ops: &raw const DEVICE_OPS,
        };
        // SAFETY: the registration is readable for the call; context and table outlive the device.
        let registered = world.enter(Where::Reactor(CONTROL), ModuleId::HOST, || unsafe {
            world.register(ModuleId::HOST, &raw const bdev, OpToken(0))
        });
        match registered {
            Ok(handle) => inner.handle.set(handle),
            Err(code) => {
                panic!("test base `{}` was refused with {code}: {:?}", spec.name, world.shared.violations())
            }
        }
        TestBase(inner)
    }

    fn world(&self) -> Rc<World> {
        self.0.world.upgrade().expect("a base is used while its fake host is there")
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What arrived, in order.
    #[must_use]
    pub fn records(&self) -> Vec<Arrival> {
        self.0.arrivals.borrow().clone()
    }

    /// Forgets what arrived.
    pub fn clear_records(&self) {
        self.0.arrivals.borrow_mut().clear();
    }

    /// What the medium holds.
    #[must_use]
    pub fn bytes(&self, offset_blocks: u64, num_blocks: u64) -> Vec<u8> {
        let start = offset_blocks as usize * self.0.block_size;
        self.0.memory.borrow()[start..start + num_blocks as usize * self.0.block_size].to_vec()
    }

    /// What the medium would hold after a power cut at this moment: of each write that has not completed none, all
    /// or some of its blocks, in an order of its own.
    #[must_use]
    pub fn bytes_after_power_cut(&self) -> Vec<u8> {
        let mut medium = self.0.memory.borrow().clone();
        let rng = &self.0.rng;
        let mut cut: Vec<(usize, Vec<u8>)> =
            self.0.waiting.borrow().iter().filter_map(|waiting| self.0.change_by(waiting.io)).collect();
        rng.shuffle(&mut cut);
        for (start, data) in cut {
            let permille = [0, 500, 1000][rng.index(3)];
            for (nth, block) in data.chunks(self.0.block_size).enumerate() {
                let at = start + nth * self.0.block_size;
                if let Some(place) = medium.get_mut(at..at + block.len()).filter(|_| rng.chance(permille)) {
                    place.copy_from_slice(block);
                }
            }
        }
        medium
    }

    /// Changes the medium behind everybody's back.
    pub fn write_bytes(&self, offset_blocks: u64, data: &[u8]) {
        let start = offset_blocks as usize * self.0.block_size;
        self.0.memory.borrow_mut()[start..start + data.len()].copy_from_slice(data);
    }

    /// These blocks cannot be read any more until they are written.
    pub fn spoil(&self, blocks: Range<u64>) {
        self.0.spoiled.borrow_mut().extend(blocks);
    }

    /// How many blocks cannot be read.
    #[must_use]
    pub fn spoiled(&self) -> usize {
        self.0.spoiled.borrow().len()
    }

    /// Every block can be read again, and holds what it held.
    pub fn unspoil(&self) {
        self.0.spoiled.borrow_mut().clear();
    }

    /// A new plan; its counts start now.
    pub fn set_plan(&self, plan: FaultPlan) {
        *self.0.plan.borrow_mut() = plan;
        self.0.seen.set(0);
    }

    /// While true, nothing completes; then everything that was held does, in an order chosen by the seed.
    pub fn hold(&self, holds: bool) {
        self.0.holds.set(holds);
        if holds {
            return;
        }
        let world = self.world();
        let mut held: Vec<(u64, usize)> = Vec::new();
        for waiting in self.0.waiting.borrow_mut().iter_mut().filter(|waiting| waiting.is_held) {
            waiting.is_held = false;
            held.push((waiting.id, waiting.reactor));
        }
        self.0.rng.shuffle(&mut held);
        for (id, reactor) in held {
            let base = Rc::clone(&self.0);
            world.post(reactor, move |_| base.finish(id));
        }
    }

    /// I/Os that arrived and have not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.waiting.borrow().len()
    }

    /// Open channels.
    #[must_use]
    pub fn channels(&self) -> u32 {
        self.0.channels.get()
    }

    /// Lent buffers that were not returned.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.0.lent.borrow().len()
    }

    fn with_device(&self, f: impl FnOnce(&Rc<World>, &Rc<crate::host::device::Device>)) {
        let world = self.world();
        if let Some(device) = world.device(self.0.handle.get()) {
            f(&world, &device);
        }
    }

    /// Starts a hot removal.
    pub fn remove(&self) {
        self.with_device(|world, device| world.unregister(device, Reason::HOT_REMOVED));
    }

    /// True once the device is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.world().device(self.0.handle.get()).is_none()
    }

    /// Sets the capacity.
    pub fn resize(&self, num_blocks: u64) {
        self.0.grow(num_blocks);
        self.with_device(|world, device| {
            world.resize(device, num_blocks);
        });
    }

    /// The backing goes; I/O waits for `deadline_ms` (0: no limit).
    pub fn set_absent(&self, deadline_ms: u64) {
        self.with_device(|world, device| {
            world.set_absent(device, deadline_ms);
        });
    }

    /// The backing is back.
    pub fn set_present(&self) {
        self.with_device(|world, device| {
            world.set_present(device);
        });
    }
}
