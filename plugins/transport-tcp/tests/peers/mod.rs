//! Two owners of connections, a device and a wire between them, all in memory.
//!
//! [`Controller`] owns the target's end and a device of bytes; [`Host`] owns
//! the initiator's end and a model of what the device holds. Neither knows a
//! clock or a socket: tests carry the bytes and make up the time.
#![allow(dead_code, reason = "each test uses its part")]

use nvme_spec::command::Sqe;
use nvme_spec::completion::{Cqe, StatusField};
use nvme_spec::sgl::SglIdentifier;
use nvme_spec::status::StatusCode;
use tenon_sdk::crc32c;
use transport_tcp::connection::initiator::Completion;
use transport_tcp::connection::request::{Outcome, Transfer};
use transport_tcp::connection::{
    Ending, InitiatorConnection, InitiatorEvent, Piece, Placement, Slot, TargetConnection, TargetEvent,
};
use zerocopy::FromZeros;

/// A seeded generator (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Bytes under way in one direction.
#[derive(Default)]
pub struct Wire {
    bytes: Vec<u8>,
    taken: usize,
}

impl Wire {
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next bytes, at most `limit`.
    pub fn take(&mut self, limit: usize) -> Vec<u8> {
        let len = limit.min(self.bytes.len() - self.taken);
        let bytes = self.bytes[self.taken..self.taken + len].to_vec();
        self.taken += len;
        if self.taken == self.bytes.len() || self.taken > 1 << 20 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        bytes
    }

    /// What was put and not taken.
    pub fn under_way(&mut self) -> &mut [u8] {
        &mut self.bytes[self.taken..]
    }
}

pub const READ: u8 = 2;
pub const WRITE: u8 = 1;
pub const NO_DATA: u8 = 0;
/// Fails with an error status, after its data if it has any.
pub const FAILS: u8 = 0x81;
/// Is completed by the controller before its data has come.
pub const GIVEN_UP: u8 = 0x91;

/// Part of the device that one slot reads and writes.
pub const REGION: usize = 40 << 10;

/// The target's end with a device.
pub struct Controller {
    pub connection: TargetConnection,
    pub device: Vec<u8>,
    pub entries: Vec<Sqe>,
    pub memory: Vec<Vec<u8>>,
    /// Commands to complete, in any order.
    pub executing: Vec<(Slot, StatusField)>,
    /// Commands that wait for a decision.
    pub undecided: Vec<Slot>,
    pub released: Vec<Slot>,
    pub ending: Option<Ending>,
    inbox: Vec<u8>,
}

impl Controller {
    pub fn new(connection: TargetConnection, slots: usize) -> Self {
        Self {
            connection,
            device: vec![0; slots.next_power_of_two() * REGION],
            entries: vec![Sqe::new_zeroed(); slots],
            memory: vec![Vec::new(); slots],
            executing: Vec::new(),
            undecided: Vec::new(),
            released: Vec::new(),
            ending: None,
            inbox: Vec::new(),
        }
    }

    /// Takes bytes from the wire; as many as it likes go straight to where they belong.
    pub fn receive(&mut self, mut bytes: &[u8], is_direct: bool, now_ns: u64) {
        if is_direct && self.inbox.is_empty() {
            while let Some(place) = self.connection.placement() {
                let len = bytes.len().min(place.len as usize);
                let (direct, rest) = bytes.split_at(len);
                self.memory[place.slot.index()][place.offset as usize..][..len].copy_from_slice(direct);
                self.connection.handle_placed(direct, now_ns);
                bytes = rest;
                if bytes.is_empty() {
                    break;
                }
                self.look(now_ns);
            }
        }
        self.inbox.extend_from_slice(bytes);
        self.look(now_ns);
    }

    fn look(&mut self, now_ns: u64) {
        let inbox = std::mem::take(&mut self.inbox);
        let mut start = 0;
        loop {
            let handled = self.connection.handle_bytes(&inbox[start..], now_ns);
            start += handled.consumed;
            match handled.event {
                None => break,
                Some(TargetEvent::Ready(_)) => {}
                Some(TargetEvent::Command { slot, sqe, data, is_intact }) => {
                    self.entries[slot.index()] = *sqe;
                    self.memory[slot.index()].clear();
                    self.begin(slot, data, is_intact);
                }
                Some(TargetEvent::Data { slot, offset, bytes }) => {
                    self.memory[slot.index()][offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                Some(TargetEvent::DataComplete { slot, is_intact }) => self.execute(slot, is_intact),
                Some(TargetEvent::Ended(ending)) => self.end(ending),
            }
        }
        self.inbox = inbox[start..].to_vec();
    }

    fn begin(&mut self, slot: Slot, data: &[u8], is_intact: bool) {
        let sgl = self.entries[slot.index()].dptr.sgl();
        if sgl.identifier != SglIdentifier::DATA_BLOCK_OFFSET {
            assert!(data.is_empty());
            return self.undecided.push(slot);
        }
        assert_eq!(data.len(), sgl.length.get() as usize);
        self.memory[slot.index()] = data.to_vec();
        self.connection.execute(slot);
        self.execute(slot, is_intact);
    }

    /// Says what becomes of the commands that wait for it.
    pub fn decide(&mut self) {
        for slot in std::mem::take(&mut self.undecided) {
            let entry = &self.entries[slot.index()];
            let length = entry.dptr.sgl().length.get();
            match entry.opc {
                WRITE | FAILS if length > 0 => {
                    self.memory[slot.index()] = vec![0; length as usize];
                    self.connection.receive(slot, length);
                }
                GIVEN_UP if length > 0 => {
                    self.memory[slot.index()] = vec![0; length as usize];
                    self.connection.receive(slot, length);
                    let memory = &self.memory;
                    self.connection.poll_output(|place| crc32c(0, piece_of(memory, place)), 0);
                    self.connection.complete(slot, &Cqe::new(0, 0, error()), 0);
                }
                _ => {
                    self.connection.execute(slot);
                    self.execute(slot, true);
                }
            }
        }
    }

    fn execute(&mut self, slot: Slot, is_intact: bool) {
        let entry = &self.entries[slot.index()];
        let at = entry.cdw10.get() as usize;
        let length = entry.dptr.sgl().length.get() as usize;
        let status = match entry.opc {
            _ if !is_intact => StatusField::new(StatusCode::TRANSIENT_TRANSPORT_ERROR),
            FAILS | GIVEN_UP => error(),
            WRITE => {
                self.device[at..at + length].copy_from_slice(&self.memory[slot.index()]);
                StatusField::SUCCESS
            }
            READ => {
                self.memory[slot.index()] = self.device[at..at + length].to_vec();
                StatusField::SUCCESS
            }
            _ => StatusField::SUCCESS,
        };
        self.executing.push((slot, status));
    }

    /// Completes one executing command, whichever `choice` names.
    pub fn complete_one(&mut self, choice: usize) {
        if self.executing.is_empty() {
            return;
        }
        let (slot, status) = self.executing.swap_remove(choice % self.executing.len());
        let is_read = self.entries[slot.index()].opc == READ && status.is_success();
        let length = if is_read { self.memory[slot.index()].len() as u32 } else { 0 };
        let mut cqe = Cqe::new(0, 0, status);
        // Some results are more than a success.
        cqe.dw0.set(self.entries[slot.index()].cdw11.get());
        self.connection.complete(slot, &cqe, length);
    }

    /// Bytes for the wire, at most `limit`.
    pub fn transmit(&mut self, limit: usize, now_ns: u64) -> Vec<u8> {
        let memory = &self.memory;
        self.connection.poll_output(|place| crc32c(0, piece_of(memory, place)), now_ns);
        let bytes = gather(self.connection.pieces(), memory, limit);
        self.connection.handle_written(bytes.len(), now_ns);
        self.poll();
        bytes
    }

    pub fn poll(&mut self) {
        while let Some(slot) = self.connection.poll_released() {
            // Whoever still refers to it reads garbage.
            self.memory[slot.index()].fill(0xdd);
            self.undecided.retain(|other| *other != slot);
            self.released.push(slot);
        }
    }

    pub fn end(&mut self, ending: Ending) {
        assert_eq!(self.ending.replace(ending), None, "ended twice");
    }

    pub fn eof(&mut self) {
        if let Some(TargetEvent::Ended(ending)) = self.connection.handle_eof() {
            self.end(ending);
        }
        self.poll();
    }
}

/// The initiator's end with a model of the device.
pub struct Host {
    pub connection: InitiatorConnection,
    pub memory: Vec<Vec<u8>>,
    pub entries: Vec<Sqe>,
    /// What each region holds.
    pub model: Vec<u8>,
    /// Region contents after a write whose fate is not known.
    pub uncertain: Vec<bool>,
    pub generation: u16,
    pub completed: usize,
    pub lost: usize,
    pub transient: usize,
    pub ending: Option<Ending>,
    inbox: Vec<u8>,
}

impl Host {
    pub fn new(connection: InitiatorConnection) -> Self {
        let slots = connection.slots();
        Self {
            connection,
            memory: vec![Vec::new(); slots],
            entries: vec![Sqe::new_zeroed(); slots],
            model: vec![0; slots * REGION],
            uncertain: vec![false; slots],
            generation: 0,
            completed: 0,
            lost: 0,
            transient: 0,
            ending: None,
            inbox: Vec::new(),
        }
    }

    /// Submits a command on the region of `index`; whether it was taken.
    pub fn submit(&mut self, index: usize, opcode: u8, at: usize, data: Vec<u8>, result: u32) -> bool {
        self.generation = self.generation.wrapping_add(1);
        let slots = self.connection.slots() as u16;
        let cid = index as u16 | self.generation.wrapping_mul(slots);
        let mut sqe = Sqe::new_zeroed();
        sqe.opc = opcode;
        sqe.cid.set(cid);
        sqe.cdw10.set((index * REGION + at) as u32);
        sqe.cdw11.set(result);
        let length = data.len() as u32;
        let transfer = match opcode {
            READ => Transfer::ToHost(length),
            _ if length == 0 => Transfer::None,
            _ => Transfer::ToController(length),
        };
        if self.connection.submit(&sqe, transfer).is_err() {
            return false;
        }
        self.entries[index] = sqe;
        self.memory[index] = data;
        true
    }

    pub fn receive(&mut self, mut bytes: &[u8], is_direct: bool, now_ns: u64) {
        if is_direct && self.inbox.is_empty() {
            while let Some(place) = self.connection.placement() {
                let len = bytes.len().min(place.len as usize);
                let (direct, rest) = bytes.split_at(len);
                self.memory[place.slot.index()][place.offset as usize..][..len].copy_from_slice(direct);
                self.connection.handle_placed(direct, now_ns);
                bytes = rest;
                if bytes.is_empty() {
                    break;
                }
                self.look(now_ns);
            }
        }
        self.inbox.extend_from_slice(bytes);
        self.look(now_ns);
    }

    fn look(&mut self, now_ns: u64) {
        let inbox = std::mem::take(&mut self.inbox);
        let mut start = 0;
        loop {
            let handled = self.connection.handle_bytes(&inbox[start..], now_ns);
            start += handled.consumed;
            match handled.event {
                None => break,
                Some(InitiatorEvent::Ready(_)) => {}
                Some(InitiatorEvent::Data { slot, offset, bytes }) => {
                    self.memory[slot.index()][offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                Some(InitiatorEvent::Ended(ending)) => self.end(ending),
            }
        }
        self.inbox = inbox[start..].to_vec();
        self.poll();
    }

    pub fn transmit(&mut self, limit: usize, now_ns: u64) -> Vec<u8> {
        let memory = &self.memory;
        self.connection.poll_output(|place| crc32c(0, piece_of(memory, place)), now_ns);
        let bytes = gather(self.connection.pieces(), memory, limit);
        self.connection.handle_written(bytes.len(), now_ns);
        self.poll();
        bytes
    }

    pub fn poll(&mut self) {
        while let Some(completion) = self.connection.poll_completion() {
            self.check(completion);
        }
    }

    /// Whether a completion is what the model says.
    fn check(&mut self, completion: Completion) {
        let index = completion.slot.index();
        let entry = self.entries[index];
        assert_eq!(completion.cid, entry.cid.get());
        let at = entry.cdw10.get() as usize;
        let data = std::mem::take(&mut self.memory[index]);
        self.completed += 1;
        let Outcome::Answered(cqe) = completion.outcome else {
            self.lost += 1;
            self.uncertain[index] |= entry.opc == WRITE;
            return;
        };
        assert_eq!(cqe.cid.get(), completion.cid);
        if cqe.status.code() == StatusCode::TRANSIENT_TRANSPORT_ERROR {
            self.transient += 1;
            return;
        }
        let expects_error = matches!(entry.opc, FAILS | GIVEN_UP);
        assert_eq!(cqe.status.is_success(), !expects_error, "{:?}", cqe.status);
        match entry.opc {
            READ => {
                assert_eq!(completion.received as usize, data.len());
                assert!(self.uncertain[index] || data == self.model[at..at + data.len()], "data is damaged");
                assert_eq!(cqe.dw0, entry.cdw11);
            }
            WRITE => self.model[at..at + data.len()].copy_from_slice(&data),
            _ => {}
        }
    }

    pub fn end(&mut self, ending: Ending) {
        assert_eq!(self.ending.replace(ending), None, "ended twice");
    }

    pub fn eof(&mut self) {
        if let Some(InitiatorEvent::Ended(ending)) = self.connection.handle_eof() {
            self.end(ending);
        }
        self.poll();
    }
}

pub fn error() -> StatusField {
    StatusField::new(StatusCode::INVALID_FIELD).with_dnr(true)
}

pub fn piece_of(memory: &[Vec<u8>], place: Placement) -> &[u8] {
    &memory[place.slot.index()][place.offset as usize..][..place.len as usize]
}

/// The bytes that pieces stand for, at most `limit`.
pub fn gather<'a>(pieces: impl Iterator<Item = Piece<'a>>, memory: &'a [Vec<u8>], limit: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend_from_slice(match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Payload(place) => piece_of(memory, place),
        });
        if bytes.len() >= limit {
            bytes.truncate(limit);
            break;
        }
    }
    bytes
}
