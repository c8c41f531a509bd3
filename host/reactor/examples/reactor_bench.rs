//! Prints what a reactor costs: a turn, a message, a wake-up, an idle second.
//!
//! `cargo run --release -p tenon-reactor --example reactor_bench`. Figures are of
//! the machine it runs on; compare only runs made side by side. Not a test: it
//! judges nothing.
// UNSAFETY: registers a C function as a poller, which is what a plugin's poller is.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tenon_reactor::{
    Cpus, Mode, Poll, PollerId, PollerKind, ReactorRef, Reactors, ReactorsOptions, current, ticks, ticks_hz,
};

const PATIENCE: Duration = Duration::from_secs(10);
const ROUNDS: usize = 2000;

fn main() {
    let options = ReactorsOptions { cpus: Cpus::Count(2), ..ReactorsOptions::default() };
    let reactors = Reactors::start(options).expect("reactors start");
    println!("ticks per second: {}", ticks_hz());
    let reactor = reactors.data()[0].clone();
    turn_costs(&reactor);
    println!("ticks(): {:.1} ns", per_call_ns(ticks));
    println!("now_ns() off a reactor: {:.1} ns", per_call_ns(tenon_reactor::now_ns));
    let reader = call(&reactor, || per_call_ns(tenon_reactor::now_ns));
    println!("now_ns() on a reactor: {reader:.1} ns");
    message_costs(&reactors.data()[0], &reactors.data()[1]);
    wake_latency(&reactors);
    timer_lateness(&reactor);
    idle_cost(&reactors);
    reactors.shutdown(PATIENCE).expect("reactors end");
}

unsafe extern "C" fn poll_nothing(_: *mut c_void) -> i32 {
    0
}

fn turn_costs(reactor: &ReactorRef) {
    println!("turn, one pure C poller: {:.1} ns", turn_ns(reactor, register_raw));
    println!("turn, one pure closure poller: {:.1} ns", turn_ns(reactor, register_closure));
    let eight = turn_ns(reactor, || (0..8).flat_map(|_| register_raw()).collect());
    println!("turn, eight pure C pollers: {eight:.1} ns");
    let (_keep, fd) =
        std::io::pipe().map(|(reader, writer)| ((writer, reader.try_clone()), reader)).expect("pipe");
    let id = call(reactor, move || {
        use std::os::fd::AsRawFd;
        let raw = fd.as_raw_fd();
        let keep = move |_| drop(fd.try_clone());
        current().register_fd(raw, tenon_reactor::Interest::READ, keep).expect("a pipe can be watched")
    });
    println!("turn, one pure C poller and a quiet descriptor: {:.1} ns", turn_ns(reactor, register_raw));
    assert!(call(reactor, move || current().unregister_fd(id)));
}

fn register_raw() -> Vec<PollerId> {
    // SAFETY: the function touches nothing.
    let id = unsafe {
        current().register_poller_raw("raw", 0, PollerKind::Pure, poll_nothing, std::ptr::null_mut())
    };
    vec![id.expect("below the limit")]
}

fn register_closure() -> Vec<PollerId> {
    let id = current().register_poller("closure", 0, PollerKind::Pure, || Poll::Idle);
    vec![id.expect("below the limit")]
}

/// The best of several samples: what a turn costs when nobody else takes the core.
fn turn_ns(reactor: &ReactorRef, register: impl FnOnce() -> Vec<PollerId> + Send + 'static) -> f64 {
    let ids = call(reactor, register);
    let sample = || {
        let (turns, start) = (reactor.statistics().turns, Instant::now());
        while start.elapsed() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        let elapsed = start.elapsed().as_nanos() as f64;
        elapsed / (reactor.statistics().turns - turns) as f64
    };
    let best = (0..9).map(|_| sample()).fold(f64::MAX, f64::min);
    call(reactor, move || ids.into_iter().for_each(|id| assert!(current().unregister_poller(id))));
    best
}

fn per_call_ns(f: fn() -> u64) -> f64 {
    const CALLS: u32 = 1_000_000;
    let start = Instant::now();
    for _ in 0..CALLS {
        std::hint::black_box(f());
    }
    start.elapsed().as_nanos() as f64 / f64::from(CALLS)
}

unsafe extern "C" fn count_message(arg: *mut c_void) {
    // SAFETY: `message_costs` passes a counter that lives until all messages have run.
    unsafe { &*arg.cast::<AtomicU64>() }.fetch_add(1, Ordering::Relaxed);
}

/// One reactor sends in bulk to another that is awake.
fn message_costs(sender: &ReactorRef, receiver: &ReactorRef) {
    const MESSAGES: u64 = 50_000;
    for is_raw in [true, false] {
        let mut best = f64::MAX;
        for _ in 0..9 {
            let counter = Arc::new(AtomicU64::new(0));
            let (to, count) = (receiver.clone(), Arc::clone(&counter));
            let start = Instant::now();
            let sent_ns = call(sender, move || {
                let start = Instant::now();
                for _ in 0..MESSAGES {
                    let count = Arc::clone(&count);
                    if is_raw {
                        let arg = Arc::as_ptr(&count).cast_mut().cast();
                        // SAFETY: `counter` lives until all messages have run.
                        unsafe { to.send_raw(count_message, arg) }.expect("room");
                    } else {
                        let add = move || {
                            count.fetch_add(1, Ordering::Relaxed);
                        };
                        to.send(add).expect("room");
                    }
                }
                start.elapsed().as_nanos() as f64
            });
            while counter.load(Ordering::Relaxed) < MESSAGES {
                std::thread::yield_now();
            }
            let total = start.elapsed().as_nanos() as f64;
            if total / (MESSAGES as f64) < best {
                best = total / MESSAGES as f64;
                let send = sent_ns / MESSAGES as f64;
                println!("message, raw={is_raw}: send {send:.1} ns, sent and run {best:.1} ns");
            }
        }
    }
}

/// From a send on one reactor to the run on another, awake and asleep.
fn wake_latency(reactors: &Reactors) {
    let (from, to) = (&reactors.data()[0], &reactors.data()[1]);
    set_mode(from, Mode::Poll);
    set_mode(to, Mode::Poll);
    report("message latency, awake", (0..ROUNDS).map(|_| one_way_ns(from, to)).collect());
    set_mode(to, Mode::Adaptive);
    let asleep = || {
        while !to.statistics().is_sleeping {
            std::thread::yield_now();
        }
        one_way_ns(from, to)
    };
    report("message latency, asleep", (0..ROUNDS).map(|_| asleep()).collect());
    set_mode(from, Mode::Adaptive);
    let control = reactors.control().clone();
    let rpc = || {
        let start = Instant::now();
        call(&control, || ());
        start.elapsed().as_nanos() as u64
    };
    report("round trip to the control reactor", (0..ROUNDS).map(|_| rpc()).collect());
}

fn one_way_ns(from: &ReactorRef, to: &ReactorRef) -> u64 {
    let (sender, receiver) = mpsc::channel();
    let to = to.clone();
    let send = move || {
        let sent = ticks();
        to.send(move || sender.send(ticks().saturating_sub(sent)).expect("the bench waits")).expect("room");
    };
    from.send(send).expect("room");
    let elapsed = receiver.recv_timeout(PATIENCE).expect("the message runs");
    (u128::from(elapsed) * 1_000_000_000 / u128::from(ticks_hz())) as u64
}

fn timer_lateness(reactor: &ReactorRef) {
    let one = || {
        let (sender, receiver) = mpsc::channel();
        let set = move || {
            let deadline = current().now_ns() + 200_000;
            let fire = move || sender.send(tenon_reactor::now_ns() - deadline).expect("the bench waits");
            current().set_timer_at(deadline, fire).expect("below the limit");
        };
        reactor.send(set).expect("room");
        receiver.recv_timeout(PATIENCE).expect("the timer fires")
    };
    report("timer lateness, asleep", (0..ROUNDS).map(|_| one()).collect());
}

fn idle_cost(reactors: &Reactors) {
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let threads = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
        let run = |text: &str| text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
        threads.filter_map(|text| run(&text)).sum::<u64>().max(run(&stat).unwrap_or(0))
    };
    let sleeps = || reactors.directory().all().iter().map(|reactor| reactor.statistics().sleeps).sum::<u64>();
    std::thread::sleep(Duration::from_millis(100));
    let before = (cpu(), sleeps());
    std::thread::sleep(Duration::from_secs(2));
    let used = (cpu() - before.0) as f64 / 2e9 * 100.0;
    println!("idle: {used:.3} % of a core, {} wake-ups in 2 s", sleeps() - before.1);
}

fn report(what: &str, mut samples: Vec<u64>) {
    samples.sort_unstable();
    let at = |part: f64| samples[((samples.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
    println!("{what}: p50 {:.2} us, p99 {:.2} us, max {:.2} us", at(0.5), at(0.99), at(1.0));
}

fn set_mode(reactor: &ReactorRef, mode: Mode) {
    call(reactor, move || current().set_mode(mode));
}

fn call<T: Send + 'static>(reactor: &ReactorRef, f: impl FnOnce() -> T + Send + 'static) -> T {
    reactor.call(PATIENCE, f).expect("the reactor answers")
}
