//! The initiator over TCP when wires flap and targets die: the twins of S1.h and
//! S3 for this transport, on the virtual clock.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tenon_nvmf_target::AnaState;

use crate::load::Load;
use crate::network::{Network, address, call, own_address};
use crate::world::{NQN, ONE, World, for_seeds};

/// A target over TCP whose namespace has paths by so many networks, and a load on it.
struct Wires<'a> {
    world: &'a World,
    networks: RefCell<Vec<Network>>,
    load: Load,
}

impl<'a> Wires<'a> {
    fn new(world: &'a World, paths: usize, bdev: &str) -> Wires<'a> {
        world.load("transport_tcp");
        world
            .wait(|world, reply| world.target.create_transport("TCP", &json!({}), reply))
            .expect("transport");
        world.subsystem(&[]);
        let at = own_address();
        listen(world);
        world.add_namespace(1, bdev, ONE);
        world.rpc("bdev_nvme_set_options", json!({ "keep_alive_timeout_ms": 2000 })).expect("set");
        let mut networks: Vec<Network> = (0..paths).map(|_| Network::new(at)).collect();
        networks.iter_mut().for_each(|network| network.is_calm = true);
        for path in 0..paths {
            let attach = json!({
                "name": "nvme0", "trtype": "TCP", "traddr": at.ip().to_string(), "subnqn": NQN,
                "trsvcid": networks[path].port().to_string(),
                "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1,
            });
            call(world, &mut networks, "bdev_nvme_attach_controller", attach).expect("attaches");
        }
        let load = Load::open(world, "nvme0n1", 0);
        let wires = Wires { world, networks: RefCell::new(networks), load };
        wires.pass(50);
        wires
    }

    /// Milliseconds pass.
    fn pass(&self, ms: u64) {
        for _ in 0..ms {
            self.world.advance(Duration::from_millis(1));
            self.networks.borrow_mut().iter_mut().for_each(|network| network.pump(self.world));
            self.load.collect();
        }
    }

    /// Milliseconds until something holds, at most so many.
    #[track_caller]
    fn until(&self, ms: u64, what: &str, condition: impl Fn() -> bool) -> u64 {
        for passed in 0..=ms {
            if condition() {
                return passed;
            }
            self.pass(1);
        }
        panic!("{what}: not within {ms} ms");
    }

    fn call(&self, method: &str, params: Value) -> Value {
        call(self.world, &mut self.networks.borrow_mut(), method, params).expect("answers")
    }

    /// Some I/O, until it is complete.
    fn works(&self) {
        let good = self.load.good.get();
        self.until(10_000, "i/o", || {
            self.load.submit(self.world);
            self.load.good.get() > good + 10
        });
        self.until(10_000, "the last i/o", || self.load.in_flight() == 0);
        assert!(self.load.failed.borrow().is_empty(), "{:?}", self.load.failed.borrow());
    }

    fn flags(&self) -> Vec<[bool; 3]> {
        self.world.paths("nvme0n1").iter().map(|path| path.1).collect()
    }

    fn end(self) {
        self.load.close(self.world);
        self.call("bdev_nvme_detach_controller", json!({ "name": "nvme0" }));
    }
}

fn listen(world: &World) {
    let at = address(own_address());
    world
        .wait(|world, reply| world.target.add_listener(NQN, &at, false, AnaState::OPTIMIZED, reply))
        .expect("listens");
}

/// Lines of the initiator's log that operators see, by their first words.
static LINES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

struct Counter;

impl log::Log for Counter {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) && record.target().contains("bdev_nvme") {
            let text = record.args().to_string();
            // Of one kind are the lines of the same words about the same path.
            let kind = text.split(" from=").next().and_then(|text| text.split(" reason=").next());
            let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
            *lines.entry(kind.unwrap_or_default().to_owned()).or_default() += 1;
        }
    }

    fn flush(&self) {}
}

#[test]
fn s1_h_paths_that_come_and_go_lose_nothing_and_do_not_fill_the_log() {
    if log::set_logger(&Counter).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    for_seeds(2, |world| {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).clear();
        world.device("m0", 1024);
        let wires = Wires::new(world, 2, "m0");
        wires.works();
        for flap in 0..200 {
            let mut networks = wires.networks.borrow_mut();
            let path = flap % 2;
            networks[path].is_down = !networks[path].is_down;
            if world.roll(2) == 0 {
                networks[path].cut();
            }
            let most = networks.iter().map(Network::links).max();
            // An admin queue and two I/O queues, and those that are on their way out.
            assert!(most <= Some(6), "{most:?} connections at once");
            drop(networks);
            for _ in 0..150 {
                wires.load.submit(world);
                wires.pass(2);
            }
        }
        wires.networks.borrow_mut().iter_mut().for_each(|network| network.is_down = false);
        let took =
            wires.until(6000, "both paths", || wires.flags().iter().all(|path| path[..2] == [true; 2]));
        wires.works();
        println!("60 s of flaps: {} i/os, both paths after {took} ms", wires.load.good.get());
        let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(lines.values().all(|count| *count <= 60 + 12), "lines in a minute: {lines:#?}");
        wires.end();
    });
}

#[test]
fn s3_j_a_killed_target_is_noticed_by_all_queues_at_once() {
    for_seeds(10, |world| {
        world.device("m0", 1024);
        let wires = Wires::new(world, 1, "m0");
        wires.works();
        for _ in 0..5 {
            wires.load.submit(world);
        }
        wires.networks.borrow_mut()[0].cut();
        wires.until(500, "the loss", || wires.flags() == [[false; 3]]);
        wires.until(3000, "the return", || wires.flags() == [[true; 3]]);
        wires.until(1000, "what was in flight", || wires.load.in_flight() == 0);
        wires.works();
        wires.end();
    });
}

#[test]
fn s3_j_a_controller_of_a_silent_target_is_detached_in_bounded_time() {
    for_seeds(10, |world| {
        world.device("m0", 1024);
        let wires = Wires::new(world, 1, "m0");
        wires.works();
        wires.load.close(world);
        wires.networks.borrow_mut()[0].silence();
        let begin_ns = world.now_ns();
        wires.call("bdev_nvme_detach_controller", json!({ "name": "nvme0" }));
        let took = Duration::from_nanos(world.now_ns() - begin_ns);
        assert!(took < Duration::from_secs(1), "{took:?}");
    });
}

#[test]
fn s3_j_a_silent_target_is_given_up_by_its_keep_alive_and_its_io_goes_on() {
    for_seeds(10, |world| {
        world.device("m0", 1024);
        let wires = Wires::new(world, 1, "m0");
        wires.works();
        for _ in 0..5 {
            wires.load.submit(world);
        }
        let waits = wires.load.in_flight();
        wires.networks.borrow_mut()[0].silence();
        // A keep alive is sent each second, and waited for for two.
        wires.until(3100, "the loss", || !wires.flags()[0][0]);
        assert!(wires.load.in_flight() <= waits && wires.load.failed.borrow().is_empty());
        wires.until(3000, "the return", || wires.flags() == [[true; 3]]);
        wires.works();
        wires.end();
    });
}

#[test]
fn s3_j_a_target_that_talks_nonsense_is_left_and_hangs_nothing() {
    for_seeds(10, |world| {
        world.device("m0", 1024);
        let wires = Wires::new(world, 1, "m0");
        wires.works();
        wires.networks.borrow_mut()[0].garbles = true;
        let good = wires.load.good.get();
        wires.until(10_000, "i/o behind it", || {
            wires.load.submit(world);
            wires.load.good.get() > good + 50
        });
        wires.until(5000, "what was in flight", || wires.load.in_flight() == 0);
        wires.until(3000, "the return", || wires.flags() == [[true; 3]]);
        wires.works();
        wires.end();
    });
}

#[test]
fn s3_j_a_subsystem_that_is_deleted_under_io_fails_it_in_time_and_serves_again() {
    for_seeds(10, |world| {
        world.device("m0", 1024);
        let params = json!({
            "name": "d0", "base": "m0", "avg_read_latency_us": 1_000_000, "p99_read_latency_us": 1_000_000,
            "avg_write_latency_us": 1_000_000, "p99_write_latency_us": 1_000_000,
        });
        world.wait(|world, reply| world.core.create("delay", &params, reply)).expect("device");
        world.rpc("bdev_nvme_set_options", json!({ "io_deadline_ms": 3000 })).expect("set");
        let wires = Wires::new(world, 1, "d0");
        for _ in 0..8 {
            wires.load.submit(world);
        }
        wires.pass(100);
        let waits = wires.load.in_flight() as u64;
        world.kill_subsystem();
        // It is not told whether they were carried out, and so they are tried again until their time is over.
        wires.until(5000, "its i/o", || wires.load.in_flight() == 0);
        let failed = wires.load.failed.borrow().len() as u64;
        assert_eq!(failed + wires.load.good.get(), waits, "each has ended once");
        world.subsystem(&[]);
        listen(world);
        world.add_namespace(1, "d0", ONE);
        wires.until(5000, "the return", || wires.flags() == [[true; 3]]);
        let good = wires.load.good.get();
        wires.load.submit(world);
        wires.until(2000, "i/o", || wires.load.good.get() > good);
        wires.until(2000, "the last i/o", || wires.load.in_flight() == 0);
        wires.end();
    });
}
