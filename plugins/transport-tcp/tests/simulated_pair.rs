//! Both roles against each other over a simulated wire, under many seeds.
//!
//! Each run draws its options, commands, fragment sizes and order of events
//! from one seed. A failure names the seed; it is committed to [`KNOWN`].

mod peers;

use peers::{Controller, FAILS, GIVEN_UP, Host, NO_DATA, READ, REGION, Rng, WRITE, Wire};
use transport_tcp::connection::{
    ConnectionState, Ending, InitiatorConnection, InitiatorEvent, InitiatorOptions, TargetConnection,
    TargetEvent, TargetOptions,
};

const SEEDS: u64 = 1000;
const COMMANDS: usize = 24;
const MAX_STEPS: usize = 400_000;

/// Seeds that found something once.
const KNOWN: &[u64] = &[];

struct World {
    rng: Rng,
    host: Host,
    controller: Controller,
    to_controller: Wire,
    to_host: Wire,
    submitted: usize,
    now_ns: u64,
    /// Fragments are at most this long.
    fragment: usize,
}

impl World {
    fn new(seed: u64, needs_digests: bool) -> Self {
        let mut rng = Rng(seed);
        let depth = 1 + rng.below(16) as u16;
        let r2t_bytes = 4096 + 4 * rng.below(8192) as u32;
        let target = TargetOptions {
            queue_depth: depth,
            max_h2c_data_bytes: 4096 + 4 * rng.below(6000) as u32,
            max_c2h_data_bytes: 4096 + 4 * rng.below(20_000) as u32,
            r2t_bytes,
            max_r2t: 1 + rng.below(6) as u32,
            cpda_z: rng.below(32) as u8,
            sends_success_flag: rng.coin(),
            ..TargetOptions::DEFAULT
        };
        let initiator = InitiatorOptions {
            queue_depth: depth,
            max_r2t: 1 + rng.below(6) as u32,
            hpda_z: rng.below(32) as u8,
            needs_header_digest: needs_digests || rng.coin(),
            needs_data_digest: needs_digests || rng.coin(),
            ..InitiatorOptions::DEFAULT
        };
        let connection = TargetConnection::new(target, 0).expect("options in range");
        let host = Host::new(InitiatorConnection::new(initiator, 0).expect("options in range"));
        let fragment: usize = [1, 7, 64, 1500, 40_000][rng.below(5)];
        Self {
            controller: Controller::new(connection, depth.into()),
            host,
            to_controller: Wire::default(),
            to_host: Wire::default(),
            submitted: 0,
            now_ns: 0,
            fragment: fragment.max(if needs_digests { 64 } else { 1 }),
            rng,
        }
    }

    /// Something happens.
    fn step(&mut self) {
        self.now_ns += 1;
        let (now, choice) = (self.now_ns, self.rng.next() as usize);
        let limit = 1 + self.rng.below(self.fragment * 4);
        match self.rng.below(8) {
            0 => self.submit(),
            1 => self.controller.decide(),
            2 => self.controller.complete_one(choice),
            3 => self.to_host.put(&self.controller.transmit(limit, now)),
            4 => self.to_controller.put(&self.host.transmit(limit, now)),
            5 => {
                let bytes = self.to_host.take(limit);
                self.host.receive(&bytes, choice & 1 == 0, now);
            }
            _ => {
                let bytes = self.to_controller.take(limit);
                self.controller.receive(&bytes, choice & 1 == 0, now);
            }
        }
    }

    fn submit(&mut self) {
        if self.submitted >= COMMANDS || self.host.connection.state() != ConnectionState::Ready {
            return;
        }
        let index = self.rng.below(self.host.connection.slots());
        let max = if self.fragment < 16 { 700 } else { REGION };
        let length = match self.rng.below(4) {
            0 => 4096,
            1 => 1 + self.rng.below(9000),
            _ => 1 + self.rng.below(max),
        };
        let length = length.min(max);
        let at = self.rng.below(REGION - length + 1);
        let opcode = [READ, READ, WRITE, WRITE, WRITE, NO_DATA, FAILS, GIVEN_UP][self.rng.below(8)];
        let length = if opcode == NO_DATA { 0 } else { length };
        let data = self.rng.bytes(length);
        let result = if self.rng.below(4) == 0 { self.rng.next() as u32 } else { 0 };
        self.submitted += usize::from(self.host.submit(index, opcode, at, data, result));
    }

    fn is_done(&self) -> bool {
        self.host.completed == COMMANDS && self.controller.connection.commands_in_flight() == 0
    }

    /// Both ends see the end of the stream; the device's commands complete afterwards.
    fn cut(&mut self) {
        self.host.eof();
        self.controller.eof();
        while !self.controller.executing.is_empty() {
            self.controller.complete_one(0);
            self.controller.poll();
        }
    }

    #[track_caller]
    fn check_census(&self, seed: u64) {
        assert_eq!(self.host.completed, self.submitted, "seed {seed}: a request is lost or answered twice");
        assert_eq!(self.host.connection.requests_in_flight(), 0, "seed {seed}");
        assert_eq!(self.controller.connection.commands_in_flight(), 0, "seed {seed}");
    }
}

fn seeds() -> impl Iterator<Item = u64> {
    KNOWN.iter().copied().chain(0..SEEDS)
}

#[test]
fn every_command_completes_once_with_its_data_however_bytes_are_cut() {
    let mut answered = 0;
    for seed in seeds() {
        let mut world = World::new(seed, false);
        let steps = (0..MAX_STEPS).take_while(|_| {
            world.step();
            !world.is_done()
        });
        let steps = steps.count();
        assert!(steps < MAX_STEPS, "seed {seed}: stuck at {} of {COMMANDS}", world.host.completed);
        world.check_census(seed);
        assert_eq!((world.host.ending, world.controller.ending), (None, None), "seed {seed}");
        assert_eq!((world.host.lost, world.host.transient), (0, 0), "seed {seed}");
        assert_eq!(world.controller.released.len(), COMMANDS, "seed {seed}");
        answered += world.host.completed;
    }
    assert_eq!(answered, seeds().count() * COMMANDS);
}

#[test]
fn a_cut_at_any_moment_completes_every_command_once() {
    for seed in seeds() {
        let mut world = World::new(seed, false);
        for _ in 0..world.rng.below(3000) {
            world.step();
        }
        world.cut();
        world.check_census(seed);
        assert_eq!(world.host.ending, Some(Ending::PeerClosed), "seed {seed}");
        assert_eq!(world.controller.ending, Some(Ending::PeerClosed), "seed {seed}");
    }
}

#[test]
fn damage_on_the_wire_is_never_taken_for_data() {
    let (mut terminated, mut transient) = (0, 0);
    for seed in seeds() {
        let mut world = World::new(seed, true);
        let mut left = 1 + world.rng.below(3);
        for _ in 0..20_000 {
            world.step();
            let is_open = world.host.connection.state() == ConnectionState::Ready;
            if is_open && left > 0 && world.rng.below(120) == 0 {
                left -= usize::from(damage(&mut world));
            }
            let is_over = world.host.ending.is_some() && world.controller.ending.is_some();
            if is_over || world.is_done() {
                break;
            }
        }
        terminated += usize::from(world.host.ending.is_some() || world.controller.ending.is_some());
        transient += world.host.transient;
        world.cut();
        world.check_census(seed);
    }
    assert!(terminated > 100 && transient > 100, "{terminated} terminated, {transient} transient errors");
}

#[test]
fn a_silent_wire_ends_whoever_is_owed_something_and_nobody_else() {
    let (mut timed_out, mut patient) = (0, 0);
    for seed in seeds() {
        let mut world = World::new(seed, false);
        for _ in 0..world.rng.below(3000) {
            world.step();
        }
        // Nothing is delivered any more; both ends fill the wire as far as it goes.
        let now = world.now_ns;
        world.controller.transmit(world.rng.below(5000), now);
        world.host.transmit(world.rng.below(5000), now);
        let target = &mut world.controller.connection;
        let is_owed = target.output_len() > 0;
        if let Some(at) = target.next_deadline() {
            assert_eq!(target.handle_timeout(at - 1), None, "seed {seed}");
            let event = target.handle_timeout(at);
            let Some(TargetEvent::Ended(ending @ Ending::TimedOut(_))) = event else {
                panic!("seed {seed}: {event:?}")
            };
            world.controller.end(ending);
            timed_out += 1;
        } else {
            assert!(!is_owed, "seed {seed}: waits for ever to be read");
            patient += 1;
        }
        world.controller.poll();
        let initiator = &mut world.host.connection;
        if let Some(at) = initiator.next_deadline()
            && let Some(InitiatorEvent::Ended(ending)) = initiator.handle_timeout(at)
        {
            world.host.end(ending);
        }
        world.cut();
        world.check_census(seed);
    }
    assert!(timed_out > 100 && patient > 100, "{timed_out} timed out, {patient} patient");
}

/// Flips bits of one byte that is under way.
fn damage(world: &mut World) -> bool {
    let wire = if world.rng.coin() { &mut world.to_controller } else { &mut world.to_host };
    let bytes = wire.under_way();
    if bytes.is_empty() {
        return false;
    }
    let at = world.rng.below(bytes.len());
    bytes[at] ^= 1 << world.rng.below(8);
    true
}
