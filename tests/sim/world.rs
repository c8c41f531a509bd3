//! A simulated host that is target and initiator at once.

// UNSAFETY: loads the plugins' descriptors.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tenon_bdev::{BdevSnapshot, Core, CoreOptions, OpError, State};
use tenon_modules::{Catalog, Existing, InitOn};
use tenon_nvmf_target::{Address, AnaState, NamespaceSpec, SubsystemSpec, Target, TargetOptions};
use tenon_reactor::{ReactorRef, Simulation};

use crate::{images, refusal};

/// The subsystem of every test.
pub const NQN: &str = "nqn.2026-01.io.tenon:sim";
/// Identities of namespaces.
pub const ONE: &str = "11111111-1111-4111-8111-111111111111";
pub const TWO: &str = "22222222-2222-4222-8222-222222222222";

/// A simulated host.
pub struct World {
    simulation: RefCell<Simulation>,
    pub core: Core,
    pub target: Target,
    dice: Cell<u64>,
}

/// The built plugins that every world has.
const PLUGINS: [&str; 5] = ["bdev_malloc", "bdev_null", "bdev_delay", "transport_loop", "bdev_nvme"];

/// Plugins have one module per image: one world at a time.
static ONE_WORLD: Mutex<()> = Mutex::new(());

/// Runs `test` for every seed: up to `TENON_TEST_SEEDS`, from `TENON_TEST_FIRST_SEED` on, or the one that
/// `TENON_TEST_SEED` names.
pub fn for_seeds(default: u64, test: impl Fn(&World)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("TENON_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("TENON_TEST_FIRST_SEED").unwrap_or(1);
            first..number("TENON_TEST_SEEDS").unwrap_or(default) + 1
        }
    };
    let _alone = ONE_WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    for seed in seeds {
        let guard = Named(seed);
        let world = World::new(seed);
        test(&world);
        world.end();
        std::mem::forget(guard);
    }
}

/// Names the seed of a test that fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        eprintln!("failed with TENON_TEST_SEED={}", self.0);
    }
}

/// Writes what is logged to standard error, with the virtual time.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let ms = tenon_reactor::now_ns() / 1_000_000;
        eprintln!("{ms:>9} ms {:5} {} {}", record.level(), record.target(), record.args());
    }

    fn flush(&self) {}
}

/// Shows the logs of one seed if `TENON_TEST_LOG` is set.
fn show_logs() {
    if std::env::var_os("TENON_TEST_LOG").is_some() && log::set_logger(&Logger).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
}

impl World {
    fn new(seed: u64) -> World {
        show_logs();
        let mut simulation = Simulation::new(seed, 2);
        let mut options = CoreOptions::default();
        options.modules.init_on = InitOn::Offload;
        let control = simulation.control();
        let core = simulation.on(&control, |_| Core::start(options, Catalog::empty()));
        let target = simulation.on(&control, |_| Target::start(TargetOptions::default(), core.clone()));
        let dice = Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let world = World { simulation: RefCell::new(simulation), core, target, dice };
        PLUGINS.iter().for_each(|name| world.load(name));
        world
            .wait(|world, reply| world.target.create_transport("LOOP", &json!({}), reply))
            .expect("transport");
        world
    }

    /// Loads a built plugin.
    pub fn load(&self, name: &str) {
        let descriptor = images::descriptor(name, |descriptor| match name {
            // SAFETY: descriptors of plugins are static.
            "bdev_nvme" => unsafe { refusal::refusing(descriptor) },
            _ => descriptor,
        });
        let loaded = self.wait(|world, reply: Box<dyn FnOnce(bool)>| {
            // SAFETY: the descriptor is static and its module keeps the contract.
            unsafe {
                world.core.module_load_static(descriptor, &json!({}), Existing::Refuse, move |result| {
                    reply(result.map_err(|error| eprintln!("{error}")).is_ok());
                });
            }
        });
        assert!(loaded, "modules load");
    }

    /// Ends everything, and checks that nothing is left.
    fn end(&self) {
        self.wait(|world, reply| world.target.shutdown(move || reply(())));
        let report = self.wait(|world, reply| world.core.shutdown(reply));
        assert!(report.is_clean(), "left: {:?} {:?}", report.left, report.counts);
    }

    /// A number below `sides`.
    pub fn roll(&self, sides: u64) -> u64 {
        let next =
            self.dice.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.dice.set(next);
        (next >> 33) % sides
    }

    pub fn on<T>(&self, f: impl FnOnce(&World) -> T) -> T {
        let control = self.simulation.borrow().control();
        self.simulation.borrow_mut().on(&control, |_| f(self))
    }

    pub fn on_data<T>(&self, index: usize, f: impl FnOnce() -> T) -> T {
        let reactor: ReactorRef = self.simulation.borrow().data(index);
        self.simulation.borrow_mut().on(&reactor, |_| f())
    }

    pub fn now_ns(&self) -> u64 {
        self.simulation.borrow().now_ns()
    }

    pub fn steps(&self, count: u64) {
        for _ in 0..count {
            self.simulation.borrow_mut().step();
        }
    }

    pub fn settle(&self) {
        assert!(self.simulation.borrow_mut().run_until_idle(1_000_000), "comes to rest");
    }

    pub fn advance(&self, time: Duration) {
        self.simulation.borrow_mut().advance(time);
    }

    /// Whether `condition` holds within `time`.
    pub fn within(&self, time: Duration, condition: impl FnMut() -> bool) -> bool {
        self.simulation.borrow_mut().run_until(time, condition)
    }

    /// Starts something on the control reactor, and runs until it replies.
    #[track_caller]
    pub fn wait<T: 'static>(&self, start: impl FnOnce(&World, Box<dyn FnOnce(T)>)) -> T {
        let answer: Rc<RefCell<Option<T>>> = Rc::default();
        let slot = answer.clone();
        self.on(|world| start(world, Box::new(move |value| *slot.borrow_mut() = Some(value))));
        self.within(Duration::from_secs(120), || answer.borrow().is_some());
        answer.borrow_mut().take().expect("a reply")
    }

    /// Calls a method of the control socket.
    pub fn rpc(&self, method: &str, params: Value) -> Result<Value, OpError> {
        let answer = self.start_rpc(method, params);
        self.within(Duration::from_secs(120), || answer.borrow().is_some());
        answer.borrow_mut().take().expect("a reply")
    }

    /// Calls a method whose answer comes later.
    pub fn start_rpc(&self, method: &str, params: Value) -> Rc<RefCell<Option<Result<Value, OpError>>>> {
        let answer: Rc<RefCell<Option<Result<Value, OpError>>>> = Rc::default();
        let slot = answer.clone();
        self.on(|world| {
            let known = world.core.rpc(method, &params, move |answer| {
                *slot.borrow_mut() = Some(answer.map(|answer| answer.result));
            });
            assert!(known, "{method}");
        });
        answer
    }

    /// A device in memory.
    pub fn device(&self, name: &str, blocks: u64) {
        let params = json!({ "name": name, "num_blocks": blocks, "block_size": 512 });
        self.wait(|world, reply| world.core.create("malloc", &params, reply)).expect("device");
    }

    /// Device `m0` as namespace 1 of a subsystem that is reachable at these addresses.
    pub fn export(&self, addresses: &[&str]) {
        self.device("m0", 1024);
        self.subsystem(addresses);
        self.add_namespace(1, "m0", ONE);
    }

    /// A subsystem without namespaces, reachable at these addresses.
    pub fn subsystem(&self, addresses: &[&str]) {
        let spec = SubsystemSpec { allow_any_host: true, ana_reporting: true, ..SubsystemSpec::new(NQN) };
        self.wait(|world, reply| world.target.create_subsystem(spec, reply)).expect("subsystem");
        for traddr in addresses {
            self.listen(traddr);
        }
    }

    pub fn listen(&self, traddr: &str) {
        let address = address(traddr);
        self.wait(|world, reply| {
            world.target.add_listener(NQN, &address, false, AnaState::OPTIMIZED, reply);
        })
        .expect("listener");
    }

    pub fn stop_listening(&self, traddr: &str) {
        let address = address(traddr);
        self.wait(|world, reply| world.target.remove_listener(NQN, &address, reply)).expect("listener");
    }

    /// What a kill does to its hosts: every connection ends, everything is forgotten.
    pub fn kill_subsystem(&self) {
        self.wait(|world, reply| world.target.delete_subsystem(NQN, reply)).expect("deleted");
    }

    pub fn add_namespace(&self, nsid: u32, bdev: &str, uuid: &str) {
        let uuid = uuid::Uuid::parse_str(uuid).ok();
        let spec =
            NamespaceSpec { bdev_name: bdev.into(), nsid: Some(nsid), uuid, ..NamespaceSpec::default() };
        self.wait(|world, reply| world.target.add_namespace(NQN, spec, reply)).expect("namespace");
    }

    pub fn remove_namespace(&self, nsid: u32) {
        self.wait(|world, reply| world.target.remove_namespace(NQN, nsid, reply)).expect("removed");
    }

    pub fn ana(&self, traddr: &str, state: AnaState) {
        let address = address(traddr);
        self.on(|world| world.target.set_ana_state(NQN, &address, state, None)).expect("ana state");
    }

    /// Attaches; gives the names of the devices.
    pub fn attach(&self, traddr: &str, more: Value) -> Result<Value, OpError> {
        let mut params = json!({
            "name": "nvme0", "trtype": "LOOP", "traddr": traddr, "subnqn": NQN,
            "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1,
        });
        let more = more.as_object().cloned().unwrap_or_default();
        params.as_object_mut().expect("an object").extend(more);
        self.rpc("bdev_nvme_attach_controller", params)
    }

    /// Attaches a path by each of these addresses.
    pub fn attach_all(&self, addresses: &[&str]) {
        for traddr in addresses {
            self.attach(traddr, json!({})).expect("attaches");
        }
    }

    pub fn bdev(&self, name: &str) -> Option<BdevSnapshot> {
        self.on(|world| world.core.bdev(name))
    }

    /// What the module itself counts of a device.
    pub fn driver_statistics(&self, name: &'static str) -> Option<Value> {
        self.on(move |world| world.core.driver_statistics(name))
    }

    pub fn state(&self, name: &str) -> Option<State> {
        self.bdev(name).map(|bdev| bdev.state)
    }

    /// States of the controllers, in order of attachment.
    pub fn controllers(&self) -> Vec<String> {
        let all = self.rpc("bdev_nvme_get_controllers", json!({})).expect("answers");
        let paths = all.as_array().into_iter().flatten().flat_map(|group| group["ctrlrs"].as_array());
        paths.flatten().map(|path| path["state"].as_str().unwrap_or("?").to_owned()).collect()
    }

    /// `(connected, accessible, current)` of each path of a device on reactor 0.
    pub fn paths(&self, name: &str) -> Vec<(String, [bool; 3])> {
        let all = self.rpc("bdev_nvme_get_io_paths", json!({ "name": name })).expect("answers");
        let groups = all["poll_groups"].as_array().expect("groups");
        let Some(group) = groups.iter().find(|group| group["thread"] == "reactor_0") else {
            return Vec::new();
        };
        let path = |path: &Value| {
            let is = |key: &str| path[key].as_bool().expect("a boolean");
            let traddr = path["transport"]["traddr"].as_str().expect("an address").to_owned();
            (traddr, [is("connected"), is("accessible"), is("current")])
        };
        let mut paths: Vec<_> = group["io_paths"].as_array().expect("paths").iter().map(path).collect();
        paths.sort();
        paths
    }

    /// Whether all controllers serve within `seconds`.
    #[track_caller]
    pub fn serves_within(&self, seconds: u64) {
        let end_ns = self.now_ns() + seconds * 1_000_000_000;
        while self.controllers().iter().any(|state| state != "enabled") {
            assert!(self.now_ns() < end_ns, "still {:?} after {seconds} s", self.controllers());
            self.advance(Duration::from_millis(50));
        }
        self.advance(Duration::from_millis(20));
    }
}

pub fn address(traddr: &str) -> Address {
    let (trtype, adrfam) = ("LOOP".to_owned(), "loop".to_owned());
    Address { trtype, adrfam, traddr: traddr.to_owned(), trsvcid: String::new() }
}
