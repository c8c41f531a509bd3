//! The gate on real threads: reactors submit as fast as they can while the control reactor changes everything.
//!
//! What is mixed is little and in no order that could be repeated; `gate_model` has the mixes, this has the threads.
// UNSAFETY: plays module and consumer through the raw contract.
#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod gate;

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gate::slot::Slot;
use tenon_abi::{
    BdevFlags, BdevIo, BdevOpsV1, DescHandle, IoChannel, IoOpsV1, IoStatus, Limits, Op, OpToken, complete,
};
use tenon_bdev::io::{Drained, Gate, GateSpec, Phase, QosLimits, ResetMode};
use tenon_reactor::{Cpus, ReactorRef, Reactors, ReactorsOptions, current};

/// Completes in the next turn, and refuses every hundredth I/O.
static OPS: IoOpsV1 = IoOpsV1 {
    size: size_of::<IoOpsV1>() as u32,
    flags: 0,
    submit: module_submit,
    submit_batch: None,
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

static CHANNELS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn channel_create(_ctx: *mut c_void, ch: *mut IoChannel) -> i32 {
    CHANNELS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the gate passes the channel it opens.
    unsafe {
        (*ch).ops = &raw const OPS;
        (*ch).ctx = Box::into_raw(Box::new(0u64)).cast();
    }
    0
}

unsafe extern "C" fn channel_destroy(_ctx: *mut c_void, ch: *mut IoChannel) {
    CHANNELS.fetch_sub(1, Ordering::Relaxed);
    // SAFETY: made in `channel_create`.
    drop(unsafe { Box::from_raw((*ch).ctx.cast::<u64>()) });
}

unsafe extern "C" fn destruct(_ctx: *mut c_void, _token: OpToken) {}

unsafe extern "C" fn module_submit(ch: *mut IoChannel, io: *mut BdevIo) {
    // SAFETY: the I/O is the module's until it completes it; the count is the channel's.
    unsafe {
        let count = (*ch).ctx.cast::<u64>();
        *count += 1;
        if *count % 100 == 0 {
            return complete(io, IoStatus::NOMEM);
        }
        current().defer(move || complete(io, IoStatus::SUCCESS)).unwrap();
    }
}

/// A call of the control plane and what follows it.
type Change = Box<dyn FnOnce(&Arc<Gate>, Box<dyn FnOnce()>) + Send>;

/// What one reactor holds while it runs. A slot must not move while its I/O is out.
#[allow(clippy::vec_box, reason = "see above")]
struct Load {
    ch: *mut IoChannel,
    slots: Vec<Box<Slot>>,
}

thread_local! {
    static LOAD: RefCell<Option<Load>> = const { RefCell::new(None) };
}

const SLOTS: usize = 32;
const ROUNDS: usize = 150;

fn start(gate: &Arc<Gate>, stop: &Arc<AtomicBool>) {
    let ch = gate.channel_get(DescHandle(1), true).unwrap();
    let mut slots: Vec<Box<Slot>> = Vec::new();
    for index in 0..SLOTS {
        // SAFETY: the channel is live.
        let mut slot = Slot::new(unsafe { (*ch).io_ctx_size }, 16 * 512);
        let blocks = if index % 4 == 0 { 16 } else { 2 };
        slot.prepare(Op::WRITE, index as u64 * 16, blocks, blocks as usize * 512, &[]);
        let stop = Arc::clone(stop);
        slot.after = Some(Box::new(move |slot| {
            if !stop.load(Ordering::Relaxed) && slot.status.get() != IoStatus::NO_DEVICE {
                // SAFETY: `done` runs on the channel's reactor.
                unsafe { slot.submit(ch) };
            }
        }));
        slots.push(slot);
    }
    for slot in &mut slots {
        // SAFETY: on the channel's reactor.
        unsafe { slot.submit(ch) };
    }
    LOAD.set(Some(Load { ch, slots }));
}

/// Completions so far, and whether all I/O is back.
fn look() -> (u64, bool) {
    LOAD.with_borrow(|load| {
        let slots = &load.as_ref().unwrap().slots;
        (
            slots.iter().map(|slot| slot.completions.get()).sum(),
            slots.iter().all(|slot| !slot.in_flight.get()),
        )
    })
}

/// Waits until all I/O of a reactor is back and puts its channel.
fn end(reactor: &ReactorRef, wait: Duration) {
    let deadline = Instant::now() + wait;
    loop {
        let (completions, is_back) = reactor.call(wait, look).unwrap();
        if is_back {
            assert!(completions > 1000, "{completions}");
            break;
        }
        assert!(Instant::now() < deadline, "I/O did not come back");
        std::thread::yield_now();
    }
    let put = || {
        let load = LOAD.take().unwrap();
        // SAFETY: got on this reactor, and all I/O is back.
        unsafe { Gate::channel_put(load.ch) };
    };
    reactor.call(wait, put).unwrap();
}

#[test]
fn changes_while_threads_submit_lose_and_double_nothing() {
    let reactors =
        Reactors::start(ReactorsOptions { cpus: Cpus::Count(2), pin: false, ..ReactorsOptions::default() });
    let reactors = reactors.unwrap();
    let mut limits = Limits::new(512, 4096);
    limits.max_transfer_blocks = 8;
    let spec = GateSpec {
        name: Arc::from("threads0"),
        flags: BdevFlags(0),
        limits,
        io_types: Op::READ.bit() | Op::WRITE.bit() | Op::RESET.bit(),
        io_flags: 0,
        ctx: std::ptr::null_mut(),
        ops: &raw const BDEV_OPS,
    };
    let gate = Gate::new(spec, reactors.directory().clone());
    let stop = Arc::new(AtomicBool::new(false));
    let wait = Duration::from_secs(20);
    for reactor in reactors.data() {
        let (gate, stop) = (Arc::clone(&gate), Arc::clone(&stop));
        reactor.call(wait, move || start(&gate, &stop)).unwrap();
    }
    let control = |call: Change| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let gate = Arc::clone(&gate);
        let run = move || call(&gate, Box::new(move || sender.send(()).unwrap()));
        reactors.control().call(wait, run).unwrap();
        receiver.recv_timeout(wait).unwrap();
    };
    for round in 0..ROUNDS {
        match round % 6 {
            0 => control(Box::new(|gate, done| gate.set_phase(Phase::Frozen, done))),
            1 => control(Box::new(|gate, done| gate.wait_quiet(u64::MAX, move |_| done()))),
            2 => control(Box::new(|gate, done| gate.set_phase(Phase::Running, done))),
            3 => {
                let limits = QosLimits { rw_ios_per_sec: 50_000, ..QosLimits::default() };
                control(Box::new(move |gate, done| gate.set_qos(limits, done)));
            }
            4 => control(Box::new(|gate, done| gate.iostat(true, ResetMode::Extremes, move |_| done()))),
            _ => control(Box::new(|gate, done| gate.set_qos(QosLimits::default(), done))),
        }
    }
    stop.store(true, Ordering::Relaxed);
    control(Box::new(|gate, done| gate.set_phase(Phase::Running, done)));
    reactors.data().iter().for_each(|reactor| end(reactor, wait));
    control(Box::new(|gate, done| gate.set_phase(Phase::Orphaned, done)));
    control(Box::new(|gate, done| {
        gate.wait_drained(u64::MAX, move |left: Drained| {
            assert!(left.is_empty());
            done();
        });
    }));
    assert_eq!(CHANNELS.load(Ordering::Relaxed), 0);
    assert_eq!(gate.faults(), 0);
    reactors.shutdown(wait).unwrap();
}
