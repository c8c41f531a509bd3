//! Connections moved by calls of their sockets, and who of them is ready.
#![allow(clippy::unwrap_used, reason = "a tool of the benchmarks, not of the product")]

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use rustix::event::{Timespec, epoll};

use crate::memory::{Memory, Piece};
use crate::{Answering, Engine, HEADER, Intake, Keeper, Work, buffer};

/// A socket with what is to be sent on it, and how far its messages have been received.
pub struct Line {
    pub stream: TcpStream,
    pub out: VecDeque<Piece>,
    pub intake: Intake,
    /// There may be more to receive or to send than one call moved.
    has_more: bool,
}

/// The answering side by calls of the sockets.
pub struct Calls {
    lines: Vec<Line>,
    readiness: Readiness,
    buffer: Vec<u8>,
}

/// Finds the connections whose turn it is.
pub struct Readiness {
    /// Without it, each one has a turn.
    epoll: Option<OwnedFd>,
    events: Vec<epoll::Event>,
    pub ready: Vec<usize>,
}

impl Line {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        Line { stream, out: VecDeque::new(), intake: Intake::default(), has_more: false }
    }

    /// Receives what there is; gives the number of bytes.
    pub fn receive(&mut self, buffer: &mut [u8]) -> usize {
        match self.stream.read(buffer) {
            Ok(bytes) => {
                self.has_more = bytes == buffer.len();
                bytes
            }
            Err(error) if is_over(&error) || error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("receive: {error}"),
        }
    }

    /// Answers so many requests.
    pub fn answer(&mut self, requests: usize, work: Work, memory: &mut Memory) {
        for _ in 0..requests {
            self.out.push_back(Piece { at: 0, len: HEADER });
            if work.lent > 0 {
                self.out.push_back(Piece { at: memory.place(), len: work.lent });
            }
        }
    }

    /// Sends what the socket takes of what is ready.
    pub fn send(&mut self, memory: &[u8]) {
        if self.out.is_empty() {
            return;
        }
        let mut slices = [IoSlice::new(&[]); PIECES_PER_CALL];
        let count = self.out.len().min(PIECES_PER_CALL);
        for (slice, piece) in slices.iter_mut().zip(&self.out) {
            *slice = IoSlice::new(&memory[piece.at..piece.at + piece.len]);
        }
        let due: usize = slices[..count].iter().map(|slice| slice.len()).sum();
        match self.stream.write_vectored(&slices[..count]) {
            Ok(bytes) => {
                self.sent(bytes);
                self.has_more |= bytes == due && !self.out.is_empty();
            }
            Err(error) if is_over(&error) || error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("send: {error}"),
        }
    }

    /// So many bytes have left.
    pub fn sent(&mut self, mut bytes: usize) {
        while let Some(piece) = self.out.front_mut()
            && bytes > 0
        {
            let part = bytes.min(piece.len);
            (piece.at, piece.len, bytes) = (piece.at + part, piece.len - part, bytes - part);
            if piece.len == 0 {
                self.out.pop_front();
            }
        }
    }
}

impl Calls {
    pub fn new(lines: Vec<Line>, engine: Engine) -> Self {
        Calls { readiness: Readiness::new(&lines, engine), lines, buffer: buffer() }
    }
}

impl Answering for Calls {
    fn turn(&mut self, work: Work, memory: &mut Memory) -> usize {
        let mut done = 0;
        for at in 0..self.readiness.find(&mut self.lines) {
            let line = &mut self.lines[self.readiness.ready[at]];
            let received = line.receive(&mut self.buffer);
            let requests = line.intake.take_requests(&self.buffer[..received], work, memory);
            done += requests;
            line.answer(requests, work, memory);
            line.send(memory.bytes());
        }
        done
    }
}

impl Readiness {
    pub fn new(lines: &[Line], engine: Engine) -> Self {
        let epoll = (engine == Engine::Epoll).then(|| {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            for (index, line) in lines.iter().enumerate() {
                epoll::add(&epoll, &line.stream, epoll::EventData::new_u64(index as u64), flags).unwrap();
            }
            epoll
        });
        Readiness { epoll, events: Vec::with_capacity(EVENTS_PER_CALL), ready: Vec::new() }
    }

    /// Lists the connections that have a turn now; gives their number.
    pub fn find(&mut self, lines: &mut [Line]) -> usize {
        self.ready.clear();
        let Some(epoll) = &self.epoll else {
            self.ready.extend(0..lines.len());
            return self.ready.len();
        };
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.events.clear();
        epoll::wait(epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&at_once)).unwrap();
        // An edge is told once.
        let more = lines
            .iter_mut()
            .enumerate()
            .filter_map(|(index, line)| std::mem::take(&mut line.has_more).then_some(index));
        self.ready.extend(more);
        self.ready.extend(self.events.iter().map(|event| event.data.u64() as usize));
        self.ready.len()
    }
}

/// The one who asks ends first, with answers under way.
fn is_over(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// As many as the kernel takes.
const PIECES_PER_CALL: usize = 1024;
const EVENTS_PER_CALL: usize = 256;
