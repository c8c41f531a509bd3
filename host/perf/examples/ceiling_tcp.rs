//! What TCP over loopback gives to two loops that only move the bytes of
//! NVMe/TCP: `cargo xtask bench tcp` compares the target with it.
//!
//!     ceiling_tcp read|write CONNECTIONS DEPTH BLOCK_BYTES SECONDS
//!
//! One thread asks, one answers, each on a core of its own and never asleep. A
//! read is 72 bytes that are answered by 24 and the block, from a random place of
//! a large memory and without a copy; a write is 72 bytes and the block, answered
//! by 24. Both sides receive as much as fits a core's cache and send all that is
//! ready in one call. Nothing is parsed, checked or stored.
//!
//! The memory is to be of huge pages, as a device's is, or the kernel's copy spends its
//! time on finding pages: start it with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`.
//!
//! Prints I/Os per second, and the median time between two receipts of answers in
//! microseconds: at depth 1 that of an I/O.
#![allow(clippy::unwrap_used, reason = "a tool of the benchmarks, not of the product")]
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What is moved.
#[derive(Clone, Copy)]
struct Work {
    depth: usize,
    /// Bytes of a request, and of its answer.
    request: usize,
    answer: usize,
    /// Bytes of the block in the answer, from the memory.
    lent: usize,
    /// Bytes of the block in the request.
    carried: usize,
}

/// A socket with what is to be sent on it, and how far the current message has been received.
struct Line {
    stream: TcpStream,
    out: VecDeque<Piece>,
    received: usize,
}

/// Bytes of the memory that are to be sent.
#[derive(Clone, Copy)]
struct Piece {
    at: usize,
    len: usize,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kind, numbers @ ..] = &words[..] else { panic!("{USAGE}") };
    let numbers: Vec<usize> = numbers.iter().map(|word| word.parse().expect(USAGE)).collect();
    let [connections, depth, block, seconds] = numbers[..] else { panic!("{USAGE}") };
    let work = match kind.as_str() {
        "read" => Work { depth, request: COMMAND, answer: HEADER + block, lent: block, carried: 0 },
        "write" => Work { depth, request: COMMAND + block, answer: HEADER, lent: 0, carried: block },
        _ => panic!("{USAGE}"),
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asking: Vec<Line> =
        (0..connections).map(|_| Line::new(TcpStream::connect(address).unwrap())).collect();
    let answering: Vec<Line> = (0..connections).map(|_| Line::new(listener.accept().unwrap().0)).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let (over, cpus) = (is_over.clone(), cpus());
    let (first, second) = (cpus[0], *cpus.get(1).unwrap_or(&cpus[0]));
    let target = thread::spawn(move || {
        pin(first);
        answer(answering, work, &over);
    });
    pin(second);
    let (rate, median_us) = ask(asking, work, Duration::from_secs(seconds as u64));
    is_over.store(true, Ordering::Relaxed);
    target.join().unwrap();
    println!("{rate:.0} {median_us:.2}");
}

/// Keeps `depth` requests in flight on each line; gives answers per second and the median of some times.
fn ask(mut lines: Vec<Line>, work: Work, time: Duration) -> (f64, f64) {
    let (memory, mut buffer) = (vec![0x5a; COMMAND + work.carried], vec![0; RECEIVE_BYTES]);
    let mut times = Vec::new();
    let request = Piece { at: 0, len: work.request };
    for line in &mut lines {
        line.out.extend(std::iter::repeat_n(request, work.depth));
    }
    let (begin, mut done) = (Instant::now(), 0);
    let (mut asked, mut idle) = (begin, Idle::default());
    while begin.elapsed() < time {
        idle.turn(done);
        for line in &mut lines {
            line.send(&memory);
            let answers = line.receive(&mut buffer, work.answer);
            line.out.extend(std::iter::repeat_n(request, answers));
            if answers > 0 {
                done += answers;
                times.push(asked.elapsed());
                asked = Instant::now();
            }
        }
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    (done as f64 / begin.elapsed().as_secs_f64(), median.as_secs_f64() * 1e6)
}

/// Answers requests until it is over.
fn answer(mut lines: Vec<Line>, work: Work, is_over: &AtomicBool) {
    let (reserve, mut buffer) = (vec![0xa5; MEMORY_BYTES + PAGE_BYTES], vec![0; RECEIVE_BYTES]);
    // A block that lies in one page more than it has to is sent slower.
    let memory = &reserve[reserve.as_ptr().align_offset(PAGE_BYTES)..][..MEMORY_BYTES];
    let chunks = (MEMORY_BYTES / work.lent.max(1)) as u64;
    let (mut state, mut done, mut idle) = (7, 0, Idle::default());
    while !is_over.load(Ordering::Relaxed) {
        idle.turn(done);
        for line in &mut lines {
            for _ in 0..line.receive(&mut buffer, work.request) {
                done += 1;
                line.out.push_back(Piece { at: 0, len: HEADER });
                if work.lent > 0 {
                    line.out.push_back(Piece { at: random(&mut state, chunks) * work.lent, len: work.lent });
                }
            }
            line.send(memory);
        }
    }
}

/// Gives way to the kernel's threads now and then while nothing comes: they may be what it waits for.
#[derive(Default)]
struct Idle {
    done: usize,
    turns: u32,
}

impl Idle {
    /// Another turn begins; `done` is what was done until now.
    fn turn(&mut self, done: usize) {
        self.turns = if done == self.done { self.turns + 1 } else { 0 };
        self.done = done;
        if self.turns == TURNS_TO_YIELD {
            self.turns = 0;
            thread::yield_now();
        }
    }
}

impl Line {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        Line { stream, out: VecDeque::new(), received: 0 }
    }

    /// Receives what there is; gives how many messages of `len` bytes are complete now.
    fn receive(&mut self, buffer: &mut [u8], len: usize) -> usize {
        match self.stream.read(buffer) {
            Ok(bytes) => self.received += bytes,
            Err(error) if is_over(&error) || error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("receive: {error}"),
        }
        let messages = self.received / len;
        self.received %= len;
        messages
    }

    /// Sends what the socket takes of what is ready.
    fn send(&mut self, memory: &[u8]) {
        if self.out.is_empty() {
            return;
        }
        let mut slices = [IoSlice::new(&[]); PIECES_PER_CALL];
        let count = self.out.len().min(PIECES_PER_CALL);
        for (slice, piece) in slices.iter_mut().zip(&self.out) {
            *slice = IoSlice::new(&memory[piece.at..piece.at + piece.len]);
        }
        let mut sent = match self.stream.write_vectored(&slices[..count]) {
            Ok(bytes) => bytes,
            Err(error) if is_over(&error) || error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("send: {error}"),
        };
        while let Some(piece) = self.out.front_mut()
            && sent > 0
        {
            let part = sent.min(piece.len);
            (piece.at, piece.len, sent) = (piece.at + part, piece.len - part, sent - part);
            if piece.len == 0 {
                self.out.pop_front();
            }
        }
    }
}

/// The one who asks ends first, with answers under way.
fn is_over(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

fn random(state: &mut u64, below: u64) -> usize {
    *state = state.wrapping_add(0xa076_1d64_78bd_642f);
    let product = u128::from(*state) * u128::from(*state ^ 0xe703_7ed1_a0b4_28db);
    let random = (product >> 64) as u64 ^ product as u64;
    ((u128::from(random) * u128::from(below)) >> 64) as usize
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

const USAGE: &str = "usage: ceiling_tcp read|write CONNECTIONS DEPTH BLOCK_BYTES SECONDS";
/// A command capsule: header and submission queue entry.
const COMMAND: usize = 72;
/// What comes with data, or is the response.
const HEADER: usize = 24;
/// Some 20 us.
const TURNS_TO_YIELD: u32 = 100;
/// Does not fit into a cache.
const MEMORY_BYTES: usize = 256 << 20;
const PAGE_BYTES: usize = 4096;
/// Stays in a core's second-level cache, beside the socket's own.
const RECEIVE_BYTES: usize = 256 << 10;
/// As many as the kernel takes.
const PIECES_PER_CALL: usize = 1024;
