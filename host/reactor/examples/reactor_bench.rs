//! Prints what a reactor costs: a turn, a message, a wake-up, an idle second.
//!
//! `cargo run --release -p tenon-reactor --example reactor_bench`. Figures are of
//! the machine it runs on; compare only runs made side by side. Not a test: it
//! judges nothing.
//!
//! # Safety
//!
//! The C functions here are unsafe only by their type; their callers owe nothing.
// UNSAFETY: registers a C function as a poller, which is what a plugin's poller is.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
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
    report("wake-up without a reactor (eventfd there; atomic back)", bare_wake_ups());
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

static RECEIVED: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn count_message(_: *mut c_void) {
    RECEIVED.store(RECEIVED.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// One reactor sends in bulk to another that is awake; the best of several rounds.
fn message_costs(sender: &ReactorRef, receiver: &ReactorRef) {
    const MESSAGES: u64 = 20_000;
    for is_raw in [true, false] {
        let mut best = (f64::MAX, f64::MAX);
        for _ in 0..15 {
            RECEIVED.store(0, Ordering::Relaxed);
            let to = receiver.clone();
            let (sent, total) = call(sender, move || {
                let start = Instant::now();
                for n in 0..MESSAGES {
                    if is_raw {
                        // SAFETY: the function does not look at its argument.
                        unsafe { to.send_raw(count_message, std::ptr::null_mut()) }.expect("room");
                    } else {
                        // SAFETY: as above. The closure has something to hold, as one would.
                        let count =
                            move || unsafe { count_message(std::ptr::without_provenance_mut(n as usize)) };
                        to.send(count).expect("room");
                    }
                }
                let sent = start.elapsed();
                while RECEIVED.load(Ordering::Relaxed) < MESSAGES {
                    std::hint::spin_loop();
                }
                (sent, start.elapsed())
            });
            let each = |time: Duration| time.as_nanos() as f64 / MESSAGES as f64;
            best = (best.0.min(each(sent)), best.1.min(each(total)));
        }
        println!("message, raw={is_raw}: send {:.1} ns, sent and run {:.1} ns", best.0, best.1);
    }
}

/// Half of a round trip between two data reactors, awake and asleep; nothing else runs.
fn wake_latency(reactors: &Reactors) {
    let (from, to) = (&reactors.data()[0], &reactors.data()[1]);
    set_mode(from, Mode::Poll);
    set_mode(to, Mode::Poll);
    report("message latency, awake (half a round trip)", round_trips(from, to, Duration::ZERO, 2));
    set_mode(to, Mode::Sleep);
    let pause = Duration::from_micros(300);
    report("message latency, asleep (there; back to one awake)", round_trips(from, to, pause, 1));
    set_mode(from, Mode::Adaptive);
    set_mode(to, Mode::Adaptive);
    let control = reactors.control().clone();
    let rpc = || {
        let start = Instant::now();
        call(&control, || ());
        start.elapsed().as_nanos() as u64
    };
    report("round trip from a thread to the control reactor", (0..ROUNDS).map(|_| rpc()).collect());
}

/// One message there and back, after a pause, again and again; times divided by `legs`.
fn round_trips(from: &ReactorRef, to: &ReactorRef, pause: Duration, legs: u64) -> Vec<u64> {
    struct Game {
        from: ReactorRef,
        to: ReactorRef,
        pause: Duration,
        samples: Vec<u64>,
        done: mpsc::Sender<Vec<u64>>,
    }
    fn serve(game: Box<Game>) {
        let (to, sent) = (game.to.clone(), ticks());
        let there = move || {
            let from = game.from.clone();
            from.send(move || back(game, sent)).expect("room");
        };
        to.send(there).expect("room");
    }
    fn back(mut game: Box<Game>, sent: u64) {
        game.samples.push(ticks().saturating_sub(sent));
        if game.samples.len() == ROUNDS {
            let samples = std::mem::take(&mut game.samples);
            return game.done.send(samples).expect("the bench waits");
        }
        if game.pause.is_zero() {
            return serve(game);
        }
        current().set_timer(game.pause, move || serve(game)).expect("below the limit");
    }
    let (done, samples) = mpsc::channel();
    let game = Box::new(Game { from: from.clone(), to: to.clone(), pause, samples: Vec::new(), done });
    from.send(move || serve(game)).expect("room");
    let samples = samples.recv_timeout(PATIENCE).expect("the game ends");
    let ns = |ticks: u64| (u128::from(ticks) * 1_000_000_000 / u128::from(ticks_hz())) as u64 / legs;
    samples.into_iter().map(ns).collect()
}

/// What the machine takes to wake a thread on another core, for comparison with a reactor that sleeps.
fn bare_wake_ups() -> Vec<u64> {
    static HEARD: AtomicU64 = AtomicU64::new(0);
    let bell = std::sync::Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
    let heard = bell.clone();
    let sleeper = std::thread::spawn(move || {
        pin(1);
        for round in 1..=ROUNDS as u64 {
            rustix::io::read(&*heard, &mut [0; 8]).expect("an eventfd can be read");
            HEARD.store(round, Ordering::Release);
        }
    });
    let waker = std::thread::spawn(move || {
        pin(0);
        let wake = |round| {
            let pause = Instant::now();
            while pause.elapsed() < Duration::from_micros(300) {
                std::hint::spin_loop();
            }
            let sent = Instant::now();
            rustix::io::write(&*bell, &1u64.to_ne_bytes()).expect("an eventfd can be written");
            while HEARD.load(Ordering::Acquire) < round {
                std::hint::spin_loop();
            }
            sent.elapsed().as_nanos() as u64
        };
        (1..=ROUNDS as u64).map(wake).collect()
    });
    sleeper.join().expect("the sleeper ends");
    waker.join().expect("the waker ends")
}

/// To one of the cores that this process may use.
fn pin(index: usize) {
    let allowed = sched_getaffinity(None).expect("a thread has cores");
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
    let mut set = CpuSet::new();
    set.set(cpus[index.min(cpus.len() - 1)]);
    sched_setaffinity(None, &set).expect("an allowed core");
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
        let own = std::process::id().to_string();
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        // All threads but this one, whose reading of these files is work.
        let others = tasks.filter(|task| task.file_name().to_string_lossy() != own);
        let texts = others.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
        texts.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum::<u64>()
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
