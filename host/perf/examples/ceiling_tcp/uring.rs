//! The answering side by io_uring: every socket is received from for as long as
//! it lasts, into a ring of buffers that all share, and one system call per turn
//! sends on all of them.
// UNSAFETY: gives the kernel pointers to buffers and lists, which live until the ring is gone.
#![allow(clippy::unwrap_used, reason = "a tool of the benchmarks, not of the product")]

use std::alloc::{Layout, alloc_zeroed};
use std::io::{IoSlice, Result};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::memory::Memory;
use crate::sockets::Line;
use crate::{Answering, Work};

/// What a connection's send names; it stays in place while the kernel has it.
#[repr(C)]
struct Sending {
    header: libc::msghdr,
    pieces: Vec<IoSlice<'static>>,
    is_under_way: bool,
}

/// Buffers that the kernel takes from in order, for whatever socket has bytes.
struct Buffers {
    ring: *mut BufRingEntry,
    memory: *mut u8,
    count: u16,
    bytes: usize,
    tail: u16,
}

/// The answering side by io_uring.
pub struct Ring {
    ring: IoUring,
    lines: Vec<Line>,
    sendings: Vec<Sending>,
    buffers: Buffers,
    /// Data, result and flags of what has ended.
    ended: Vec<(u64, i32, u32)>,
    /// Connections that something was heard of in this turn.
    touched: Vec<usize>,
    is_over: bool,
}

impl Ring {
    pub fn new(lines: Vec<Line>, work: Work) -> Self {
        let mut ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(4 * ENTRIES)
            .build(ENTRIES)
            .unwrap();
        let buffers = Buffers::new(&ring, work, lines.len()).unwrap();
        for (index, line) in lines.iter().enumerate() {
            push(&mut ring, &receive(index, line));
        }
        let sendings = lines.iter().map(|_| Sending::new()).collect();
        let (ended, touched) = (Vec::with_capacity(4 * ENTRIES as usize), Vec::with_capacity(lines.len()));
        Ring { ring, lines, sendings, buffers, ended, touched, is_over: false }
    }

    /// Something of a connection has ended; gives the number of requests that came.
    fn ended(&mut self, data: u64, result: i32, flags: u32, work: Work, memory: &mut Memory) -> usize {
        let index = (data >> 1) as usize;
        let (line, sending) = (&mut self.lines[index], &mut self.sendings[index]);
        self.touched.push(index);
        let bytes = usize::try_from(result).unwrap_or(0);
        if data & 1 == SEND {
            sending.is_under_way = false;
            line.sent(bytes);
            return 0;
        }
        let mut requests = 0;
        if let Some(first) = cqueue::buffer_select(flags) {
            self.buffers
                .take(first, bytes, |bytes| requests += line.intake.take_requests(bytes, work, memory));
            line.answer(requests, work, memory);
        }
        if !cqueue::more(flags) && !self.is_over {
            push(&mut self.ring, &receive(index, line));
        }
        requests
    }
}

impl Answering for Ring {
    fn turn(&mut self, work: Work, memory: &mut Memory) -> usize {
        self.ring.submit().unwrap();
        let mut ended = std::mem::take(&mut self.ended);
        ended.extend(self.ring.completion().map(|cqe| (cqe.user_data(), cqe.result(), cqe.flags())));
        let mut requests = 0;
        for (data, result, flags) in ended.drain(..) {
            requests += self.ended(data, result, flags, work, memory);
        }
        self.ended = ended;
        self.buffers.give_back();
        while let Some(index) = self.touched.pop() {
            if let Some(entry) = self.sendings[index].begin(index, &self.lines[index], memory.bytes()) {
                push(&mut self.ring, &entry);
            }
        }
        requests
    }

    /// The kernel may still be sending from the memory.
    fn end(&mut self) {
        self.is_over = true;
        for line in &self.lines {
            let _ = line.stream.shutdown(Shutdown::Both);
        }
        let deadline = Instant::now() + END;
        while self.sendings.iter().any(|sending| sending.is_under_way) && Instant::now() < deadline {
            self.ring.submit().unwrap();
            let ended: Vec<u64> = self.ring.completion().map(|cqe| cqe.user_data()).collect();
            for data in ended.into_iter().filter(|data| data & 1 == SEND) {
                self.sendings[(data >> 1) as usize].is_under_way = false;
            }
        }
    }
}

fn receive(index: usize, line: &Line) -> squeue::Entry {
    let data = (index as u64) << 1 | RECEIVE;
    opcode::RecvMultiBundle::new(Fd(line.stream.as_raw_fd()), GROUP).build().user_data(data)
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: what the entry names lives as long as it is under way: buffers and lists are the ring's, and `end` waits for the memory.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit().unwrap();
    }
}

impl Sending {
    fn new() -> Self {
        // SAFETY: an all-zero header is an empty one.
        let header = unsafe { std::mem::zeroed() };
        Sending { header, pieces: Vec::with_capacity(PIECES_PER_CALL), is_under_way: false }
    }

    /// Sends what is ready, unless the last send is still under way.
    fn begin(&mut self, index: usize, line: &Line, memory: &[u8]) -> Option<squeue::Entry> {
        if self.is_under_way || line.out.is_empty() {
            return None;
        }
        self.pieces.clear();
        for piece in line.out.iter().take(PIECES_PER_CALL) {
            let bytes = &memory[piece.at..piece.at + piece.len];
            // SAFETY: the memory lives as long as the ring.
            let bytes = unsafe { std::slice::from_raw_parts(bytes.as_ptr(), bytes.len()) };
            self.pieces.push(IoSlice::new(bytes));
        }
        self.header.msg_iov = self.pieces.as_mut_ptr().cast();
        self.header.msg_iovlen = self.pieces.len();
        self.is_under_way = true;
        let fd = Fd(line.stream.as_raw_fd());
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let data = (index as u64) << 1 | SEND;
        Some(opcode::SendMsg::new(fd, &raw const self.header).flags(flags).build().user_data(data))
    }
}

impl Buffers {
    fn new(ring: &IoUring, work: Work, lines: usize) -> Result<Self> {
        let count = if lines > FEW || work.carried == 0 { MANY_BUFFERS } else { BUFFERS };
        let bytes = if work.carried == 0 { SMALL_BUFFER_BYTES } else { BUFFER_BYTES };
        // Never freed: the kernel has them until the process ends.
        let entries = allocate(usize::from(count) * size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        let memory = allocate(usize::from(count) * bytes);
        // SAFETY: the ring of entries is page-aligned and never freed.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, count, GROUP, 0)? };
        let mut buffers = Buffers { ring: entries, memory, count, bytes, tail: 0 };
        for number in 0..count {
            buffers.put(number);
        }
        buffers.give_back();
        Ok(buffers)
    }

    /// Gives `use_it` the bytes of so many buffers as `len` bytes need, from `first` on, and puts them back.
    fn take(&mut self, first: u16, len: usize, mut use_it: impl FnMut(&[u8])) {
        let (mut number, mut left) = (first, len);
        while left > 0 {
            let count = left.min(self.bytes);
            // SAFETY: the kernel has filled the buffer and does not touch it until it is put back.
            let bytes = unsafe {
                std::slice::from_raw_parts(self.memory.add(usize::from(number) * self.bytes), count)
            };
            use_it(bytes);
            self.put(number);
            (number, left) = ((number + 1) % self.count, left - count);
        }
    }

    fn put(&mut self, number: u16) {
        // SAFETY: the place is inside the ring, and the kernel looks at it when the tail is behind it.
        let entry = unsafe { &mut *self.ring.add(usize::from(self.tail % self.count)) };
        // SAFETY: the buffer is inside the memory.
        entry.set_addr(unsafe { self.memory.add(usize::from(number) * self.bytes) } as u64);
        entry.set_len(self.bytes as u32);
        entry.set_bid(number);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Tells the kernel of all that was put.
    fn give_back(&self) {
        // SAFETY: the tail is a part of the first entry that nothing else uses.
        let tail = unsafe { &*BufRingEntry::tail(self.ring).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

fn allocate(bytes: usize) -> *mut u8 {
    let layout = Layout::from_size_align(bytes, 4096).unwrap();
    // SAFETY: the layout is not empty.
    unsafe { alloc_zeroed(layout) }
}

const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const GROUP: u16 = 0;
const ENTRIES: u32 = 1024;
const PIECES_PER_CALL: usize = 1024;
/// Of blocks, for few connections: together as much as stays in a core's second-level cache.
const BUFFERS: u16 = 256;
/// Each of many connections takes at least one at a time.
const MANY_BUFFERS: u16 = 1024;
const BUFFER_BYTES: usize = 4 << 10;
/// Of requests without a block.
const SMALL_BUFFER_BYTES: usize = 1 << 10;
/// So many connections are few.
const FEW: usize = 4;
/// Sends that are under way end in much less.
const END: Duration = Duration::from_secs(1);
