//! Target and initiator over TCP, with a network in between that does to their
//! bytes whatever networks do: splits them down to single ones, holds them back,
//! lets one connection overtake another, takes them slowly, cuts connections, and
//! goes silent as if a cable were pulled.
//!
//! Both ends are the built transport with real sockets on loopback; what they
//! send passes through [`Network`], in the test's thread and on its virtual clock.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::slice::from_mut;
use std::time::Duration;

use serde_json::{Value, json};
use tenon_bdev::OpError;
use tenon_nvmf_target::{Address, AnaState};

use crate::load::Load;
use crate::world::{NQN, ONE, World, for_seeds};

/// Connections between hosts and the target.
pub struct Network {
    listener: TcpListener,
    target: SocketAddr,
    links: Vec<Link>,
    /// Nothing is cut, held back or silent any more.
    pub is_calm: bool,
    /// Nothing passes for the time being; nothing of it is lost either.
    pub is_down: bool,
    /// What the target sends next begins with nonsense.
    pub garbles: bool,
    pub cuts: u64,
}

/// One connection: the host's end and the target's.
struct Link {
    ends: [TcpStream; 2],
    /// What was received from each end and is not sent on.
    held: [Held; 2],
    /// Nothing passes any more, and nobody is told.
    is_silent: bool,
}

#[derive(Default)]
struct Held {
    bytes: VecDeque<u8>,
    until_ns: u64,
    has_ended: bool,
    garbles: bool,
}

impl Network {
    pub fn new(target: SocketAddr) -> Network {
        let listener = TcpListener::bind((target.ip(), 0)).expect("loopback");
        listener.set_nonblocking(true).expect("a socket");
        Network {
            listener,
            target,
            links: Vec::new(),
            is_calm: false,
            is_down: false,
            garbles: false,
            cuts: 0,
        }
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().expect("bound").port()
    }

    /// Moves what there is, or does not.
    pub fn pump(&mut self, world: &World) {
        if self.is_down {
            return;
        }
        while let Ok((host, _)) = self.listener.accept() {
            // A target that does not listen is one that refuses.
            let Ok(target) = TcpStream::connect(self.target) else { continue };
            for end in [&host, &target] {
                end.set_nonblocking(true).expect("a socket");
                end.set_nodelay(true).expect("tcp");
            }
            self.links.push(Link { ends: [host, target], held: Default::default(), is_silent: false });
        }
        if !self.is_calm && world.roll(4000) == 0 {
            self.links.iter_mut().for_each(|link| link.is_silent = true);
            self.cuts += 1;
        }
        // Whose bytes come first is nobody's promise.
        let count = self.links.len();
        if count > 0 {
            self.links.rotate_left(world.roll(count as u64) as usize);
        }
        if std::mem::take(&mut self.garbles) {
            self.links.iter_mut().for_each(|link| link.held[1].garbles = true);
        }
        let is_calm = self.is_calm;
        let before = self.links.len();
        self.links.retain_mut(|link| {
            let is_cut = !is_calm && world.roll(600) == 0;
            link.is_silent || !is_cut && link.pump(world, is_calm)
        });
        self.cuts += (before - self.links.len()) as u64;
    }
}

impl Link {
    /// Moves bytes both ways; false if the connection is over.
    fn pump(&mut self, world: &World, is_calm: bool) -> bool {
        let first = world.roll(2) as usize;
        for from in [first, 1 - first] {
            let [one, other] = &mut self.ends;
            let (source, sink) = if from == 0 { (one, other) } else { (other, one) };
            let held = &mut self.held[from];
            if !held.receive(source, world, is_calm) || !held.send(sink, world, is_calm) {
                return false;
            }
        }
        // A half that ended is told once all its bytes have passed.
        for from in [0, 1] {
            if self.held[from].has_ended && self.held[from].bytes.is_empty() {
                let _ = self.ends[1 - from].shutdown(Shutdown::Write);
            }
        }
        !self.held.iter().all(|held| held.has_ended && held.bytes.is_empty())
    }
}

impl Held {
    /// Takes bytes, unless too many wait: then the sender finds no room. False if the connection broke.
    fn receive(&mut self, source: &mut TcpStream, world: &World, is_calm: bool) -> bool {
        if self.has_ended || self.bytes.len() >= MOST_HELD {
            return true;
        }
        let mut buffer = [0; MOST_HELD];
        match source.read(&mut buffer) {
            Ok(0) => self.has_ended = true,
            Ok(count) => {
                if std::mem::take(&mut self.garbles) {
                    // The type of a PDU, if one begins here.
                    buffer[0] = 0xee;
                }
                self.bytes.extend(&buffer[..count]);
                if !is_calm && world.roll(10) == 0 {
                    self.until_ns = world.now_ns() + world.roll(30_000_000);
                }
            }
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        true
    }

    /// Sends some of the bytes on. False if the connection broke.
    fn send(&mut self, sink: &mut TcpStream, world: &World, is_calm: bool) -> bool {
        if self.bytes.is_empty() || world.now_ns() < self.until_ns {
            return true;
        }
        let pieces = if is_calm { 0 } else { world.roll(8) };
        let (piece, times) = match pieces {
            // One by one, which costs a call each.
            1 => (1, 40),
            2 => (1 + world.roll(200) as usize, 8),
            3 => (1 + world.roll(4000) as usize, 1),
            _ => (MOST_HELD, 1),
        };
        for _ in 0..times {
            let (front, _) = self.bytes.as_slices();
            if front.is_empty() {
                break;
            }
            match sink.write(&front[..front.len().min(piece)]) {
                Ok(count) => drop(self.bytes.drain(..count)),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

impl Network {
    /// Every connection ends at once, for both ends.
    pub fn cut(&mut self) {
        self.links.clear();
    }

    /// Nothing passes any more on the connections there are, and nobody is told.
    pub fn silence(&mut self) {
        self.links.iter_mut().for_each(|link| link.is_silent = true);
    }

    /// Connections there are.
    pub fn links(&self) -> usize {
        self.links.len()
    }
}

/// Makes a call that takes bytes on the networks to answer.
#[track_caller]
pub fn call(world: &World, networks: &mut [Network], method: &str, params: Value) -> Result<Value, OpError> {
    let answer = world.start_rpc(method, params);
    for _ in 0..300_000 {
        world.advance(Duration::from_millis(1));
        networks.iter_mut().for_each(|network| network.pump(world));
        if let Some(result) = answer.borrow_mut().take() {
            return result;
        }
    }
    panic!("{method} is not answered");
}

/// An address that no other process of this machine listens at.
pub fn own_address() -> SocketAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, 1 + (a & 0x3f), b, c), 4420).into()
}

pub fn address(at: SocketAddr) -> Address {
    Address {
        trtype: "TCP".into(),
        adrfam: "IPv4".into(),
        traddr: at.ip().to_string(),
        trsvcid: at.port().to_string(),
    }
}

#[test]
fn whatever_the_network_does_no_write_is_lost_and_nothing_is_left() {
    let (cuts, good, runs) = (Cell::new(0), Cell::new(0), Cell::new(0));
    for_seeds(SEEDS, |world| {
        world.load("transport_tcp");
        let capsule = [0, 512, 4096][world.roll(3) as usize];
        let options = json!({ "in_capsule_data_size": capsule, "c2h_success": world.roll(2) == 0, "cpda": world.roll(4) });
        world.wait(|world, reply| world.target.create_transport("TCP", &options, reply)).expect("transport");
        world.device("m0", 64);
        world.subsystem(&[]);
        let at = own_address();
        world
            .wait(|world, reply| {
                world.target.add_listener(NQN, &address(at), false, AnaState::OPTIMIZED, reply);
            })
            .expect("listens");
        world.add_namespace(1, "m0", ONE);
        let mut network = Network::new(at);
        network.is_calm = true;
        let attach = json!({
            "name": "nvme0", "trtype": "TCP", "traddr": at.ip().to_string(), "subnqn": NQN,
            "trsvcid": network.port().to_string(), "hdgst": world.roll(2) == 0, "ddgst": world.roll(2) == 0,
            "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1,
        });
        call(world, from_mut(&mut network), "bdev_nvme_attach_controller", attach).expect("attaches");
        let load = Load::open(world, "nvme0n1", world.roll(2) as usize);
        network.is_calm = false;
        for _ in 0..60 {
            load.submit(world);
            load.submit(world);
            world.advance(Duration::from_millis(1));
            network.pump(world);
            load.collect();
        }
        network.is_calm = true;
        let end_ns = world.now_ns() + 120_000_000_000;
        while load.in_flight() > 0 {
            assert!(world.now_ns() < end_ns, "{} i/o wait for ever", load.in_flight());
            world.advance(Duration::from_millis(2));
            network.pump(world);
            load.collect();
        }
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        load.close(world);
        call(world, from_mut(&mut network), "bdev_nvme_detach_controller", json!({ "name": "nvme0" }))
            .expect("detaches");
        cuts.set(cuts.get() + network.cuts);
        good.set(good.get() + load.good.get());
        runs.set(runs.get() + 1);
    });
    let (cuts, good, runs) = (cuts.get(), good.get(), runs.get());
    // One seed alone may be a quiet one.
    assert!(good >= 10 * runs && (runs < 100 || cuts > runs / 10), "{good} I/Os, {cuts} cuts, {runs} runs");
}

/// Runs of the network.
const SEEDS: u64 = 1000;
/// Bytes that the network takes from a sender before it passes them on.
const MOST_HELD: usize = 64 << 10;
