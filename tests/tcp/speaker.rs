//! A host that speaks NVMe over TCP to the built process, over a real socket.
//!
//! The protocol is the transport's own initiator state machine, or raw bytes
//! where a test wants to break it. Every wait is bounded by the socket's
//! time-out.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use nvme_spec::command::{CommandFlags, Sqe};
use nvme_spec::completion::Cqe;
use nvme_spec::fabrics::{Connect, ConnectData, PropertySet};
use nvme_spec::io::ReadWrite;
use nvme_spec::nqn::{HostId, NqnField};
use nvme_spec::opcode::{AdminOpcode, FABRICS, FabricsType, IoOpcode};
use nvme_spec::property::PropertyOffset;
use nvme_spec::status::StatusCode;
use tenon_sdk::crc32c;
use tenon_tests::PATIENCE;
use transport_tcp::connection::request::{Outcome, Transfer};
use transport_tcp::connection::{
    ConnectionState, Ending, InitiatorConnection, InitiatorEvent, InitiatorOptions, Piece, Slot,
};
use transport_tcp::nvme_spec;
use zerocopy::{FromZeros, IntoBytes};

/// What bytes go through: a socket, or a program that encrypts them.
pub trait Wire: Read + Write {}

impl<T: Read + Write> Wire for T {}

/// One queue of a host.
pub struct Speaker {
    stream: Box<dyn Wire>,
    connection: InitiatorConnection,
    memory: Vec<Vec<u8>>,
    inbox: Vec<u8>,
    done: Vec<(u16, Cqe, Vec<u8>)>,
    pub ending: Option<Ending>,
    next_cid: u16,
    /// Its name as a host.
    pub hostnqn: &'static str,
    /// The last byte of what is sent next is changed.
    damages: bool,
    started: Instant,
}

/// What a command moves.
pub enum Data<'a> {
    None,
    Out(&'a [u8]),
    In(usize),
}

impl Speaker {
    /// Connects and shakes hands.
    pub fn open(address: SocketAddr, options: InitiatorOptions) -> Speaker {
        let mut speaker = Speaker::dial(address, options);
        speaker.until(|speaker| speaker.connection.state() == ConnectionState::Ready);
        speaker
    }

    /// Connects, and says nothing yet.
    pub fn dial(address: SocketAddr, options: InitiatorOptions) -> Speaker {
        let stream = TcpStream::connect(address).expect("the target listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time");
        stream.set_nodelay(true).expect("tcp");
        Speaker::over(Box::new(stream), options)
    }

    /// Uses bytes that go another way.
    pub fn over(stream: Box<dyn Wire>, options: InitiatorOptions) -> Speaker {
        let connection = InitiatorConnection::new(options, 0).expect("options in range");
        let memory = vec![Vec::new(); connection.slots()];
        Speaker {
            stream,
            connection,
            memory,
            inbox: Vec::new(),
            done: Vec::new(),
            ending: None,
            next_cid: 0,
            hostnqn: HOSTNQN,
            damages: false,
            started: Instant::now(),
        }
    }

    /// Connects as an admin queue and enables the controller; returns its identifier.
    pub fn admin(address: SocketAddr, options: InitiatorOptions, nqn: &str) -> (Speaker, u16) {
        let mut speaker = Speaker::open(address, options);
        let cntlid = speaker.become_admin(nqn);
        (speaker, cntlid)
    }

    /// As [`Speaker::admin`], after the handshake.
    pub fn become_admin(&mut self, nqn: &str) -> u16 {
        let speaker = self;
        let cqe = speaker.connect(nqn, 0, 0xffff);
        assert!(cqe.status.is_success(), "{cqe:?}");
        let mut enable = PropertySet::new_zeroed();
        enable.head.opc = FABRICS;
        enable.head.fctype = FabricsType::PROPERTY_SET;
        enable.ofst = PropertyOffset::CC;
        enable.value.set(0x0046_0001);
        let (enabled, _) = speaker.command(Sqe::from_view(&enable), Data::None);
        assert!(enabled.status.is_success(), "{enabled:?}");
        cqe.dw0.get() as u16
    }

    /// Shakes hands; false if the connection ends instead.
    pub fn shakes_hands(&mut self) -> bool {
        self.until(|speaker| {
            speaker.connection.state() == ConnectionState::Ready || speaker.ending.is_some()
        });
        self.ending.is_none()
    }

    /// Connects as I/O queue `qid`.
    pub fn io(address: SocketAddr, options: InitiatorOptions, nqn: &str, qid: u16, cntlid: u16) -> Speaker {
        let mut speaker = Speaker::open(address, options);
        speaker.become_io(nqn, qid, cntlid);
        speaker
    }

    /// As [`Speaker::io`], after the handshake.
    pub fn become_io(&mut self, nqn: &str, qid: u16, cntlid: u16) {
        let cqe = self.connect(nqn, qid, cntlid);
        assert!(cqe.status.is_success(), "{cqe:?}");
        self.connection.set_in_capsule_bytes(4096);
    }

    pub fn connect(&mut self, nqn: &str, qid: u16, cntlid: u16) -> Cqe {
        let mut command = Connect::new_zeroed();
        command.head.opc = FABRICS;
        command.head.fctype = FabricsType::CONNECT;
        command.qid.set(qid);
        command.sqsize_z.set(if qid == 0 { 31 } else { 63 });
        let mut data = ConnectData::new_zeroed();
        data.hostid = HostId([7; 16]);
        data.cntlid.set(cntlid);
        data.subnqn = NqnField::new(nqn).expect("a name");
        data.hostnqn = NqnField::new(self.hostnqn).expect("a name");
        self.command(Sqe::from_view(&command), Data::Out(data.as_bytes())).0
    }

    /// Runs one command to its end.
    #[track_caller]
    pub fn command(&mut self, sqe: Sqe, data: Data<'_>) -> (Cqe, Vec<u8>) {
        let cid = self.submit(sqe, data);
        self.wait_for(cid)
    }

    /// Submits a command; returns its identifier.
    #[track_caller]
    pub fn submit(&mut self, mut sqe: Sqe, data: Data<'_>) -> u16 {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        sqe.cid.set(cid);
        let (transfer, memory) = match data {
            Data::None => (Transfer::None, Vec::new()),
            Data::Out(bytes) => (Transfer::ToController(bytes.len() as u32), bytes.to_vec()),
            Data::In(len) => (Transfer::ToHost(len as u32), vec![0; len]),
        };
        let slot = self.connection.slot_of(cid);
        self.memory[slot.index()] = memory;
        let taken = self.connection.submit(&sqe, transfer).expect("room for a command");
        assert_eq!(taken, slot);
        self.push();
        cid
    }

    /// Waits for the completion of `cid`.
    #[track_caller]
    pub fn wait_for(&mut self, cid: u16) -> (Cqe, Vec<u8>) {
        self.until(|speaker| speaker.done.iter().any(|done| done.0 == cid));
        let at = self.done.iter().position(|done| done.0 == cid).expect("just found");
        let (_, cqe, data) = self.done.swap_remove(at);
        (cqe, data)
    }

    /// Writes blocks of 512 bytes and expects success.
    #[track_caller]
    pub fn write(&mut self, slba: u64, data: &[u8]) {
        let (cqe, _) = self.command(rw(IoOpcode::WRITE, slba, data.len()), Data::Out(data));
        assert!(cqe.status.is_success(), "{cqe:?}");
    }

    /// Reads blocks of 512 bytes and expects success.
    #[track_caller]
    pub fn read(&mut self, slba: u64, len: usize) -> Vec<u8> {
        let (cqe, data) = self.command(rw(IoOpcode::READ, slba, len), Data::In(len));
        assert!(cqe.status.is_success(), "{cqe:?}");
        data
    }

    /// Writes with a data digest that is wrong; returns how that ended.
    #[track_caller]
    pub fn damaged_write(&mut self, slba: u64, data: &[u8]) -> StatusCode {
        self.damages = true;
        let (cqe, _) = self.command(rw(IoOpcode::WRITE, slba, data.len()), Data::Out(data));
        cqe.status.code()
    }

    /// Receives until the connection has ended; returns why.
    pub fn until_ended(&mut self) -> Ending {
        self.until(|speaker| speaker.ending.is_some());
        self.ending.expect("just found")
    }

    #[track_caller]
    fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        self.push();
        while !condition(self) {
            let mut bytes = vec![0; 64 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => self.eof(),
                Ok(count) => self.take(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => self.eof(),
                Err(error) => panic!("the target says nothing: {error}"),
            }
            self.push();
            assert!(condition(self) || self.ending.is_none(), "the connection ended: {:?}", self.ending);
        }
    }

    fn eof(&mut self) {
        if let Some(InitiatorEvent::Ended(ending)) = self.connection.handle_eof() {
            self.ending = Some(ending);
        }
        self.ending.get_or_insert(Ending::PeerClosed);
    }

    fn take(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        let now_ns = self.started.elapsed().as_nanos() as u64;
        let inbox = std::mem::take(&mut self.inbox);
        let mut at = 0;
        loop {
            let handled = self.connection.handle_bytes(&inbox[at..], now_ns);
            at += handled.consumed;
            match handled.event {
                None => break,
                Some(InitiatorEvent::Data { slot, offset, bytes }) => {
                    self.memory[slot.index()][offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                Some(InitiatorEvent::Ended(ending)) => self.ending = Some(ending),
                Some(InitiatorEvent::Ready(_)) => {}
            }
        }
        self.inbox = inbox[at..].to_vec();
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(completion) = self.connection.poll_completion() {
            let memory = std::mem::take(&mut self.memory[completion.slot.index()]);
            if let Outcome::Answered(cqe) = completion.outcome {
                self.done.push((completion.cid, cqe, memory));
            }
        }
    }

    /// Sends what is due.
    pub fn push(&mut self) {
        let now_ns = self.started.elapsed().as_nanos() as u64;
        loop {
            let memory = &self.memory;
            let part =
                |slot: Slot, offset: u32, len: u32| &memory[slot.index()][offset as usize..][..len as usize];
            self.connection.poll_output(|p| crc32c(0, part(p.slot, p.offset, p.len)), now_ns);
            let mut out = Vec::new();
            for piece in self.connection.pieces() {
                match piece {
                    Piece::Bytes(bytes) => out.extend_from_slice(bytes),
                    Piece::Payload(p) => out.extend_from_slice(part(p.slot, p.offset, p.len)),
                }
            }
            if out.is_empty() {
                return;
            }
            if std::mem::take(&mut self.damages) {
                *out.last_mut().expect("not empty") ^= 1;
            }
            if self.stream.write_all(&out).and_then(|()| self.stream.flush()).is_err() {
                return self.eof();
            }
            self.connection.handle_written(out.len(), now_ns);
            self.collect();
        }
    }
}

/// The name of a speaker that is given no other.
pub const HOSTNQN: &str = "nqn.2026-01.io.tenon:speaker";

/// A command that reads or writes blocks of 512 bytes of namespace 1.
pub fn rw(opcode: IoOpcode, slba: u64, len: usize) -> Sqe {
    let mut command = ReadWrite::new_zeroed();
    command.head.opc = opcode.0;
    command.head.flags = CommandFlags::PSDT_SGL;
    command.head.nsid.set(1);
    command.slba.set(slba);
    command.nlb_z.set((len / 512 - 1) as u16);
    Sqe::from_view(&command)
}

/// Identify Controller.
pub fn identify() -> Sqe {
    let mut sqe = Sqe::new_zeroed();
    sqe.opc = AdminOpcode::IDENTIFY.0;
    sqe.cdw10.set(1);
    sqe
}

/// Bytes that tell their place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
