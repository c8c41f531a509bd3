//! What TCP over loopback gives to two loops that only move the bytes of
//! NVMe/TCP: `cargo xtask bench tcp` compares the target with it.
//!
//!     ceiling_tcp read|fetch|write|drop CONNECTIONS DEPTH BLOCK_BYTES SECONDS [each|epoll|uring] [turns]
//!
//! One thread asks, one answers, each on a core of its own and never asleep. A
//! read is 72 bytes that are answered by 24 and the block, from a random place of
//! a large memory and without a copy. A write is 72 bytes and the block, which is
//! different memory for each request in flight; it is copied to a random place of
//! the large memory, as nobody knows where a block belongs before its command has
//! come, and answered by 24. `drop` is a write whose block is thrown away: no
//! device does that, it shows what the copy costs. `fetch` is a read whose block
//! the asking side copies to the memory of its request, as an initiator has to.
//! Both sides receive as much as fits a core's cache and send all that is ready in
//! one call. Nothing is parsed or checked.
//!
//! The next word is how the answering side finds what has come: by asking each
//! socket, by epoll, or by io_uring. Without it, it is what the target does: each
//! socket while they are few. `sockets` and `uring` have the two loops.
//!
//! With `turns`, one thread is both sides by turns, and the least processor time
//! per request of each side is printed, in nanoseconds: what another process does
//! to the machine meanwhile changes little in that.
//!
//! Both memories come from where a device's come from, in huge pages if there are any.
//!
//! Prints I/Os per second, the median time between two receipts of answers in
//! microseconds, at depth 1 that of an I/O, and the nanoseconds per I/O of the asking
//! side's turns that found something.
#![allow(clippy::unwrap_used, reason = "a tool of the benchmarks, not of the product")]

mod memory;
mod sockets;
mod uring;

use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::memory::{Area, Memory, PAGE_BYTES, Piece};
use crate::sockets::{Calls, Line, Readiness};
use crate::uring::Ring;

/// What is moved.
#[derive(Clone, Copy)]
pub struct Work {
    pub depth: usize,
    /// Bytes of a request, and of its answer.
    pub request: usize,
    pub answer: usize,
    /// Bytes of the block in the answer, from the memory.
    pub lent: usize,
    /// Bytes of the block in the request.
    pub carried: usize,
    /// What was carried is copied to the memory.
    pub is_kept: bool,
    /// What was lent is copied to the memory of its request.
    pub is_fetched: bool,
}

impl Work {
    /// Bytes of a block.
    fn block(self) -> usize {
        self.lent.max(self.carried)
    }

    /// Where the block of a line's request lies.
    fn block_of(self, line: usize, request: usize) -> usize {
        PAGE_BYTES + (line * self.depth + request % self.depth) * self.block()
    }
}

/// How the answering side finds and moves bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Each,
    Epoll,
    Uring,
}

/// The side that answers.
pub trait Answering {
    /// Answers what has come; gives the number of requests.
    fn turn(&mut self, work: Work, memory: &mut Memory) -> usize;
    /// Nothing of it is used any more when this returns.
    fn end(&mut self) {}
}

/// Who keeps what is received.
pub trait Keeper {
    /// Where the next block belongs.
    fn place(&mut self) -> usize;
    fn store(&mut self, at: usize, bytes: &[u8]);
}

/// Where the answers of one line belong.
struct Blocks<'a> {
    area: &'a mut Area,
    line: usize,
    answered: &'a mut usize,
    work: Work,
}

impl Keeper for Blocks<'_> {
    fn place(&mut self) -> usize {
        *self.answered += 1;
        self.work.block_of(self.line, *self.answered - 1)
    }

    fn store(&mut self, at: usize, bytes: &[u8]) {
        self.area.bytes_mut()[at..][..bytes.len()].copy_from_slice(bytes);
    }
}

/// How far the messages of one connection have been received.
#[derive(Default)]
pub struct Intake {
    /// Bytes of the current message.
    received: usize,
    /// Where its block belongs.
    place: usize,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (words, has_turns) = match words.split_last() {
        Some((last, others)) if last == "turns" => (others, true),
        _ => (&words[..], false),
    };
    let (words, engine) = engine_of(words);
    let [kind, numbers @ ..] = words else { panic!("{USAGE}") };
    let numbers: Vec<usize> = numbers.iter().map(|word| word.parse().expect(USAGE)).collect();
    let [connections, depth, block, seconds] = numbers[..] else { panic!("{USAGE}") };
    let engine = engine.unwrap_or(if connections <= FEW { Engine::Each } else { Engine::Epoll });
    let work = work(kind, depth, block);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (mut asking, mut answering) = (Vec::new(), Vec::new());
    for _ in 0..connections {
        asking.push(Line::new(TcpStream::connect(address).unwrap()));
        answering.push(Line::new(listener.accept().unwrap().0));
    }
    if has_turns {
        return by_turns(Asking::new(asking, work), answering, work, engine, seconds);
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let (over, cpus) = (is_over.clone(), cpus());
    let (first, second) = (cpus[0], *cpus.get(1).unwrap_or(&cpus[0]));
    let is_ready = Arc::new(Barrier::new(2));
    let ready = is_ready.clone();
    let target = thread::spawn(move || {
        pin(first);
        answer(answering, work, engine, &ready, &over);
    });
    pin(second);
    is_ready.wait();
    let (rate, median_us, busy_ns) = ask(asking, work, Duration::from_secs(seconds as u64));
    is_over.store(true, Ordering::Relaxed);
    target.join().unwrap();
    println!("{rate:.0} {median_us:.2} {busy_ns:.1}");
}

/// The words without the engine's.
fn engine_of(words: &[String]) -> (&[String], Option<Engine>) {
    let Some((last, others)) = words.split_last() else { panic!("{USAGE}") };
    match last.as_str() {
        "each" => (others, Some(Engine::Each)),
        "epoll" => (others, Some(Engine::Epoll)),
        "uring" => (others, Some(Engine::Uring)),
        _ => (words, None),
    }
}

fn work(kind: &str, depth: usize, block: usize) -> Work {
    let write = Work {
        depth,
        request: COMMAND + block,
        answer: HEADER,
        lent: 0,
        carried: block,
        is_kept: kind == "write",
        is_fetched: kind == "fetch",
    };
    match kind {
        "read" | "fetch" => {
            Work { request: COMMAND, answer: HEADER + block, lent: block, carried: 0, ..write }
        }
        "write" | "drop" => write,
        _ => panic!("{USAGE}"),
    }
}

/// The side that asks: keeps `depth` requests in flight on each line.
struct Asking {
    lines: Vec<Line>,
    readiness: Readiness,
    /// A command, and a block for each request in flight.
    area: Area,
    /// Requests so far on each line.
    asked: Vec<usize>,
    /// Answers so far on each line.
    answered: Vec<usize>,
    buffer: Vec<u8>,
}

impl Asking {
    fn new(lines: Vec<Line>, work: Work) -> Self {
        let engine = if lines.len() <= FEW { Engine::Each } else { Engine::Epoll };
        let mut area = Area::new(PAGE_BYTES + lines.len() * work.depth * work.block());
        area.bytes_mut().fill(0x5a);
        let mut asking = Asking {
            readiness: Readiness::new(&lines, engine),
            area,
            asked: vec![0; lines.len()],
            answered: vec![0; lines.len()],
            buffer: buffer(),
            lines,
        };
        for index in 0..asking.lines.len() {
            asking.ask(index, work.depth, work);
        }
        asking
    }

    /// Receives answers and asks anew; gives their number.
    fn turn(&mut self, work: Work) -> usize {
        let mut done = 0;
        for at in 0..self.readiness.find(&mut self.lines) {
            let index = self.readiness.ready[at];
            let line = &mut self.lines[index];
            let received = line.receive(&mut self.buffer);
            let bytes = &self.buffer[..received];
            let answers = if work.is_fetched {
                let (area, answered) = (&mut self.area, &mut self.answered[index]);
                let mut blocks = Blocks { area, line: index, answered, work };
                line.intake.take(bytes, [HEADER, work.answer], &mut blocks)
            } else {
                line.intake.count(received, work.answer)
            };
            self.ask(index, answers, work);
            done += answers;
        }
        done
    }

    fn ask(&mut self, index: usize, count: usize, work: Work) {
        let line = &mut self.lines[index];
        for _ in 0..count {
            line.out.push_back(Piece { at: 0, len: COMMAND });
            if work.carried > 0 {
                // Requests end in the order they began in: what ended last lends its block to the next.
                let at = work.block_of(index, self.asked[index]);
                self.asked[index] += 1;
                line.out.push_back(Piece { at, len: work.carried });
            }
        }
        line.send(self.area.bytes());
    }
}

/// Gives answers per second, the median of some times between answers, and what an answer cost.
fn ask(lines: Vec<Line>, work: Work, time: Duration) -> (f64, f64, f64) {
    let mut asking = Asking::new(lines, work);
    let (begin, mut done, mut times, mut busy) = (Instant::now(), 0, Vec::new(), Duration::ZERO);
    let (mut last, mut now, mut idle) = (begin, begin, Idle::default());
    while now - begin < time {
        idle.turn(done);
        let answers = asking.turn(work);
        let before = std::mem::replace(&mut now, Instant::now());
        if answers > 0 {
            done += answers;
            times.push(now - last);
            last = now;
            busy += now - before;
        }
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let rate = done as f64 / (now - begin).as_secs_f64();
    (rate, median.as_secs_f64() * 1e6, busy.as_nanos() as f64 / done.max(1) as f64)
}

/// Answers requests until it is over, once the memory has been touched.
fn answer(lines: Vec<Line>, work: Work, engine: Engine, is_ready: &Barrier, is_over: &AtomicBool) {
    let (mut memory, mut done, mut idle) = (Memory::new(work.block()), 0, Idle::default());
    let mut answering = answering(lines, work, engine);
    is_ready.wait();
    while !is_over.load(Ordering::Relaxed) {
        idle.turn(done);
        done += answering.turn(work, &mut memory);
    }
    answering.end();
}

fn answering(lines: Vec<Line>, work: Work, engine: Engine) -> Box<dyn Answering> {
    match engine {
        Engine::Each | Engine::Epoll => Box::new(Calls::new(lines, engine)),
        Engine::Uring => Box::new(Ring::new(lines, work)),
    }
}

/// Both sides on one core, by turns; prints what each costs.
fn by_turns(mut asking: Asking, lines: Vec<Line>, work: Work, engine: Engine, seconds: usize) {
    pin(cpus()[0]);
    let (mut memory, mut answering) = (Memory::new(work.block()), answering(lines, work, engine));
    let (mut least, end) = ([f64::MAX; 2], Instant::now() + Duration::from_secs(seconds as u64));
    while Instant::now() < end {
        let (mut used, mut done) = ([0; 2], [0; 2]);
        while done[1] < REQUESTS_PER_TIME {
            let begin = processor_ns();
            done[0] += asking.turn(work);
            let middle = processor_ns();
            done[1] += answering.turn(work, &mut memory);
            (used[0], used[1]) = (used[0] + middle - begin, used[1] + processor_ns() - middle);
        }
        for side in [0, 1] {
            least[side] = least[side].min(used[side] as f64 / done[side].max(1) as f64);
        }
    }
    answering.end();
    println!("{:.0} {:.0}", least[0], least[1]);
}

/// Processor time of this thread.
fn processor_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Gives way to the kernel's threads now and then while nothing comes: they may be what it waits for.
#[derive(Default)]
pub struct Idle {
    done: usize,
    turns: u32,
}

impl Idle {
    /// Another turn begins; `done` is what was done until now.
    pub fn turn(&mut self, done: usize) {
        self.turns = if done == self.done { self.turns + 1 } else { 0 };
        self.done = done;
        if self.turns == TURNS_TO_YIELD {
            self.turns = 0;
            thread::yield_now();
        }
    }
}

impl Intake {
    /// Of so many bytes more, how many messages of `len` bytes are complete now.
    pub fn count(&mut self, bytes: usize, len: usize) -> usize {
        self.received += bytes;
        let messages = self.received / len;
        self.received %= len;
        messages
    }

    /// Takes bytes of messages, of so many bytes of header and so many in all; gives how many are complete now.
    pub fn take(&mut self, mut bytes: &[u8], [header, len]: [usize; 2], keeper: &mut impl Keeper) -> usize {
        let mut messages = 0;
        while !bytes.is_empty() {
            let is_header = self.received < header;
            let end = if is_header { header } else { len };
            let (now, later) = bytes.split_at(bytes.len().min(end - self.received));
            if !is_header {
                keeper.store(self.place + self.received - header, now);
            }
            self.received += now.len();
            bytes = later;
            if self.received == header {
                self.place = keeper.place();
            } else if self.received == len {
                self.received = 0;
                messages += 1;
            }
        }
        messages
    }

    /// As [`Intake::take`], of requests.
    pub fn take_requests(&mut self, bytes: &[u8], work: Work, memory: &mut Memory) -> usize {
        if work.is_kept {
            self.take(bytes, [COMMAND, work.request], memory)
        } else {
            self.count(bytes.len(), work.request)
        }
    }
}

pub fn buffer() -> Vec<u8> {
    vec![0; RECEIVE_BYTES]
}

fn cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect()
}

fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).unwrap();
}

const USAGE: &str = "usage: ceiling_tcp read|fetch|write|drop CONNECTIONS DEPTH BLOCK_BYTES SECONDS [each|epoll|uring] [turns]";
/// A command capsule: header and submission queue entry.
const COMMAND: usize = 72;
/// What comes with data, or is the response.
pub const HEADER: usize = 24;
/// So many connections are asked one by one.
const FEW: usize = 4;
/// A time is taken of so many.
const REQUESTS_PER_TIME: usize = 4000;
/// Some 20 us.
const TURNS_TO_YIELD: u32 = 100;
/// Stays in a core's second-level cache, beside the socket's own.
const RECEIVE_BYTES: usize = 256 << 10;
