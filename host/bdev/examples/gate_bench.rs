//! Measures what the gate costs per I/O: a module that completes at once, alone and behind its gate.
//!
//! `cargo run --release -p tenon-bdev --example gate_bench`. Rounds are interleaved, and the least and the median of
//! each are printed: on a shared machine only figures of one run compare.
// UNSAFETY: plays module and consumer through the raw contract.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tenon_abi::{
    BdevFlags, BdevIo, BdevOpsV1, DescHandle, IoChannel, IoFlags, IoOpsV1, IoState, IoStatus, IoVec, Limits,
    Op, OpToken, complete,
};
use tenon_bdev::io::{Gate, GateSpec};
use tenon_reactor::{Cpus, Reactors, ReactorsOptions};

const ROUNDS: usize = 40;
const IOS: u32 = 1_000_000;
const BATCH: usize = 32;
/// Bytes of an I/O and the driver context behind it.
const IO_BYTES: usize = 512;

static MODULE_OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit: module_submit,
    submit_batch: Some(module_batch),
    abort: None,
    release: None,
};

static BDEV_OPS: BdevOpsV1 = BdevOpsV1 {
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

#[inline(never)]
unsafe extern "C" fn module_submit(_ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: whoever submits gives the module a complete I/O.
    unsafe { complete(io, IoStatus::SUCCESS) }
}

#[inline(never)]
unsafe extern "C" fn module_batch(_ch: *mut IoChannel, ios: *const *mut BdevIo, count: u32) {
    for index in 0..count as usize {
        // SAFETY: as above, for `count` of them.
        unsafe { complete(*ios.add(index), IoStatus::SUCCESS) }
    }
}

unsafe extern "C" fn channel_create(_ctx: *mut c_void, ch: *mut IoChannel) -> i32 {
    // SAFETY: the host passes the channel it opens.
    unsafe {
        (*ch).ops = &raw const MODULE_OPS;
        (*ch).io_ctx_size = 0;
    }
    0
}

unsafe extern "C" fn channel_destroy(_ctx: *mut c_void, _ch: *mut IoChannel) {}

unsafe extern "C" fn destruct(_ctx: *mut c_void, _token: OpToken) {}

unsafe extern "C" fn done(_io: *mut BdevIo, arg: *mut c_void) {
    // SAFETY: `fill` set the counter, which lives through the run.
    unsafe { *arg.cast::<u64>() += 1 };
}

/// The consumer's I/Os, side by side.
#[repr(C, align(64))]
struct Memory([[u8; IO_BYTES]; BATCH]);

struct Consumer {
    memory: Box<Memory>,
    ios: Vec<*mut BdevIo>,
    payload: Vec<u8>,
    completed: Box<u64>,
}

impl Consumer {
    fn new() -> Self {
        let mut memory = Box::new(Memory([[0; IO_BYTES]; BATCH]));
        let ios = memory.0.iter_mut().map(|bytes| bytes.as_mut_ptr().cast()).collect();
        Self { memory, ios, payload: vec![0; 4096], completed: Box::new(0) }
    }

    /// Fills a request in, as every consumer does each time.
    #[inline(always)]
    fn fill(&mut self, index: usize, block: u32) -> *mut BdevIo {
        let io = self.ios[index];
        // SAFETY: the I/O is this consumer's and idle.
        unsafe {
            (*io).op = Op::READ;
            (*io).flags = IoFlags::NONE;
            (*io).inline_iov = IoVec { base: self.payload.as_mut_ptr().cast(), len: 4096 };
            (*io).iovs = &raw mut (*io).inline_iov;
            (*io).iovcnt = 1;
            (*io).offset_blocks = u64::from(block % 1000);
            (*io).num_blocks = 8;
            (*io).done = Some(done);
            (*io).done_arg = (&raw mut *self.completed).cast();
        }
        io
    }
}

fn one_by_one(consumer: &mut Consumer, ch: *mut IoChannel, is_raw: bool) -> f64 {
    let start = Instant::now();
    for block in 0..IOS {
        let io = consumer.fill(0, block);
        // SAFETY: on the channel's reactor. Without a gate, its part of the contract is done here.
        unsafe {
            if is_raw {
                (*ch).outstanding += 1;
                (*io).state = IoState::SUBMITTED;
            }
            tenon_abi::submit(std::hint::black_box(ch), io);
        }
    }
    start.elapsed().as_nanos() as f64 / f64::from(IOS)
}

fn in_batches(consumer: &mut Consumer, ch: *mut IoChannel, is_raw: bool) -> f64 {
    let start = Instant::now();
    for block in 0..IOS / BATCH as u32 {
        for index in 0..BATCH {
            let io = consumer.fill(index, block);
            // SAFETY: as in `one_by_one`.
            unsafe {
                (*io).ch = ch;
                if is_raw {
                    (*ch).outstanding += 1;
                    (*io).state = IoState::SUBMITTED;
                }
            }
        }
        let ch = std::hint::black_box(ch);
        // SAFETY: both tables have the call.
        unsafe {
            ((*(*ch).ops).submit_batch.expect("both have it"))(ch, consumer.ios.as_ptr(), BATCH as u32)
        };
    }
    start.elapsed().as_nanos() as f64 / f64::from(IOS)
}

struct Measured(&'static str, Vec<f64>);

impl Measured {
    fn print(&mut self) {
        self.1.sort_by(f64::total_cmp);
        println!("{:<28} least {:6.2} ns   median {:6.2} ns", self.0, self.1[0], self.1[self.1.len() / 2]);
    }
}

fn measure(gate: &Arc<Gate>) -> Vec<Measured> {
    let mut consumer = Consumer::new();
    let mut raw = IoChannel {
        ops: &raw const MODULE_OPS,
        ctx: std::ptr::null_mut(),
        outstanding: 0,
        io_ctx_size: 0,
        flags: 0,
        faults: 0,
        reactor: std::ptr::null_mut(),
        host: std::ptr::null_mut(),
        retry: None,
        reserved: [0],
    };
    let raw: *mut IoChannel = &raw mut raw;
    let ch = gate.channel_get(DescHandle(1), true).expect("the module opens every channel");
    let mut all = ["module", "gate and module", "module, batches", "gate and module, batches"]
        .map(|name| Measured(name, vec![]));
    for _ in 0..ROUNDS {
        all[0].1.push(one_by_one(&mut consumer, raw, true));
        all[1].1.push(one_by_one(&mut consumer, ch, false));
        all[2].1.push(in_batches(&mut consumer, raw, true));
        all[3].1.push(in_batches(&mut consumer, ch, false));
    }
    assert_eq!(*consumer.completed, u64::from(IOS) * ROUNDS as u64 * 4);
    // SAFETY: got above, on this reactor; nothing is outstanding.
    unsafe { Gate::channel_put(ch) };
    drop(consumer.memory);
    all.into()
}

fn main() {
    let options = ReactorsOptions { cpus: Cpus::Count(1), ..ReactorsOptions::default() };
    let reactors = Reactors::start(options).expect("one reactor starts");
    let spec = GateSpec {
        name: Arc::from("null0"),
        flags: BdevFlags(0),
        limits: Limits::new(512, 1 << 20),
        io_types: Op::READ.bit() | Op::WRITE.bit(),
        io_flags: 0,
        ctx: std::ptr::null_mut(),
        ops: &raw const BDEV_OPS,
    };
    let gate = Gate::new(spec, reactors.directory().clone());
    let measured = reactors.data()[0].call(Duration::from_secs(300), move || measure(&gate));
    measured.expect("the reactor answers").iter_mut().for_each(Measured::print);
    reactors.shutdown(Duration::from_secs(5)).expect("the reactors stop");
}
