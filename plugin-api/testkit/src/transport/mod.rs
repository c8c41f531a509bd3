//! The conformance suite of NVMe-oF transports, both roles against each other:
//! a target core and an initiator module inside the test, each of which asserts
//! that the transport keeps the contract.
//!
//! ```no_run
//! # mod transport_mine { pub fn plugin() -> *const tenon_testkit::abi::PluginDescV1 { std::ptr::null() } }
//! use tenon_testkit::{TransportSuite, transport_conformance};
//!
//! # #[allow(unused)]
//! #[test]
//! fn conforms_to_the_transport_contract() {
//!     transport_conformance(transport_mine::plugin, TransportSuite::new("here", ""));
//! }
//! ```
// UNSAFETY: calls the tables of a transport.

mod checks;
mod peer;
mod target;

use std::ffi::c_void;
use std::time::Duration;

use tenon_abi::transport::initiator::InitiatorOpsV1;
use tenon_abi::transport::target::TargetOpsV1;
use tenon_abi::transport::{QUERY_TRANSPORT, TransportId, TransportV1};
use tenon_abi::{JsonSink, Str};

use crate::host::{FakeHost, IntoPlugin, ModuleId, Pending, Place, Plugin};

/// What the suite needs to know of a transport.
#[derive(Clone, Debug)]
pub struct TransportSuite {
    traddr: String,
    trsvcid: String,
    options: String,
    connect_options: String,
    real_io: bool,
    seeds: u64,
}

impl TransportSuite {
    /// A transport that listens at this address; a service identifier `free port` stands for one.
    #[must_use]
    pub fn new(traddr: &str, trsvcid: &str) -> Self {
        TransportSuite {
            traddr: traddr.to_owned(),
            trsvcid: trsvcid.to_owned(),
            options: "{}".to_owned(),
            connect_options: "{}".to_owned(),
            real_io: false,
            seeds: 3,
        }
    }

    /// Options of the instance, as a JSON object.
    #[must_use]
    pub fn options(mut self, json: &str) -> Self {
        json.clone_into(&mut self.options);
        self
    }

    /// Options of each connection of the initiator, as a JSON object.
    #[must_use]
    pub fn connect_options(mut self, json: &str) -> Self {
        json.clone_into(&mut self.connect_options);
        self
    }

    /// The transport does real I/O: the clock is the real one.
    #[must_use]
    pub fn real_io(mut self, real_io: bool) -> Self {
        self.real_io = real_io;
        self
    }

    /// Number of orders tried; default 3.
    #[must_use]
    pub fn seeds(mut self, seeds: u64) -> Self {
        self.seeds = seeds;
        self
    }
}

/// Runs every check with every seed, each with a fresh host.
///
/// # Panics
/// If the transport does not keep the contract.
pub fn transport_conformance(plugin: impl IntoPlugin, suite: TransportSuite) {
    let plugin = plugin.into_plugin();
    for (name, check) in checks::ALL {
        for seed in 1..=suite.seeds {
            let running = Running { name, seed };
            let mut rig = Rig::new(&plugin, &suite, seed);
            check(&mut rig);
            rig.end();
            std::mem::forget(running);
        }
        println!("check {name} ... ok");
    }
}

/// Names the check that fails.
struct Running {
    name: &'static str,
    seed: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        eprintln!("check {} ... FAILED with seed {}", self.name, self.seed);
    }
}

/// A host with the transport in both roles: an instance that listens, and poll groups on every reactor.
struct Rig {
    host: FakeHost,
    module: ModuleId,
    suite: TransportSuite,
    target_ops: &'static TargetOpsV1,
    initiator_ops: &'static InitiatorOpsV1,
    instance: *mut c_void,
    trsvcid: String,
    trtype: u8,
    /// Per data reactor.
    initiator_groups: Vec<*mut c_void>,
    is_listening: bool,
}

/// Number of the one listener.
const LISTENER: u64 = 7;
/// Data reactors.
const REACTORS: u32 = 2;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(5);

impl Rig {
    fn new(plugin: &Plugin, suite: &TransportSuite, seed: u64) -> Rig {
        let host = FakeHost::builder().seed(seed).reactors(REACTORS).real_io(suite.real_io).build();
        let module = host.load(plugin, "{}").expect("it loads");
        let table = host.query(module, QUERY_TRANSPORT, 1).cast::<TransportV1>();
        // SAFETY: a module's answer to this query is its static table.
        let table = unsafe { table.as_ref() }.expect("it offers a transport");
        // SAFETY: tables of a static table are static.
        let (target_ops, initiator_ops) = unsafe { (table.target.as_ref(), table.initiator.as_ref()) };
        let mut rig = Rig {
            host,
            module,
            target_ops: target_ops.expect("it has a target role"),
            initiator_ops: initiator_ops.expect("it has an initiator role"),
            instance: std::ptr::null_mut(),
            trsvcid: match &*suite.trsvcid {
                "free port" => free_port(),
                trsvcid => trsvcid.to_owned(),
            },
            trtype: table.trtype as u8,
            suite: suite.clone(),
            initiator_groups: Vec::new(),
            is_listening: false,
        };
        rig.begin();
        rig
    }

    fn begin(&mut self) {
        let out = &raw mut self.instance;
        let pending = self.host.ask(self.module, "create", |token| {
            let options = Str::new(&self.suite.options);
            // SAFETY: core and table are static; the texts are lent for the call.
            unsafe { (self.target_ops.create)(target::core_handle(), target::api(), options, token, out) };
        });
        self.wait_for(&pending).expect("an instance");
        target::install(self.host.table(), self.target_ops);
        for reactor in 0..REACTORS {
            let (mut target_group, mut group) = (std::ptr::null_mut(), std::ptr::null_mut());
            let codes = self.host.on_behalf_of(self.module, Place::Data(reactor), || {
                // SAFETY: on the reactor; the instance is alive.
                unsafe {
                    (
                        (self.target_ops.poll_group_create)(self.instance, &mut target_group),
                        (self.initiator_ops.poll_group_create)(Str::new("{}"), &mut group),
                    )
                }
            });
            assert_eq!(codes, (0, 0), "poll groups");
            target::add_group(target_group);
            self.initiator_groups.push(group);
        }
        self.listen();
    }

    fn listen(&mut self) {
        let pending = self.host.ask(self.module, "listen", |token| {
            let id = self.id();
            // SAFETY: the instance is alive; address and texts are lent for the call.
            unsafe { (self.target_ops.listen)(self.instance, LISTENER, &id, Str::new("{}"), token) };
        });
        self.wait_for(&pending).expect("it listens");
        self.is_listening = true;
    }

    fn stop_listening(&mut self) {
        let pending = self.host.ask(self.module, "stop_listen", |token| {
            // SAFETY: the instance is alive.
            unsafe { (self.target_ops.stop_listen)(self.instance, LISTENER, token) };
        });
        self.wait_for(&pending).expect("it stops");
        self.is_listening = false;
    }

    /// The listener's address.
    fn id(&self) -> TransportId {
        TransportId {
            size: size_of::<TransportId>() as u32,
            trtype: self.trtype,
            adrfam: if self.suite.real_io { 1 } else { 254 },
            reserved: 0,
            traddr: Str::new(&self.suite.traddr),
            trsvcid: Str::new(&self.trsvcid),
            subnqn: Str::EMPTY,
        }
    }

    fn wait_for(&self, pending: &Pending) -> Result<String, crate::OpError> {
        assert!(self.run_until(|| pending.is_done()), "an answer in time");
        pending.result().expect("it is done")
    }

    /// Whether `is_met` holds in time; the target core does its part meanwhile.
    fn run_until(&self, mut is_met: impl FnMut() -> bool) -> bool {
        let is_met = self.host.run_until(PATIENCE, || {
            target::turn(&self.host, self.module);
            is_met()
        });
        if !is_met {
            for line in self.host.logs() {
                eprintln!("log {}: {}", line.target, line.message);
            }
            eprintln!("target core: {}", target::describe());
        }
        is_met
    }

    /// Ends what is left, in order, and checks that nothing is.
    fn end(mut self) {
        if self.is_listening {
            self.stop_listening();
        }
        target::close_all(&self.host, self.module);
        assert!(self.run_until(|| target::connections() == 0), "connections end");
        for (reactor, group) in (0..REACTORS).zip(std::mem::take(&mut self.initiator_groups)) {
            self.host.on_behalf_of(self.module, Place::Data(reactor), || {
                // SAFETY: the groups' connections are gone; this is their reactor.
                unsafe {
                    (self.initiator_ops.poll_group_destroy)(group);
                    (self.target_ops.poll_group_destroy)(target::group(reactor as usize));
                }
            });
        }
        let pending = self.host.ask(self.module, "destroy", |token| {
            // SAFETY: nothing of the instance is left.
            unsafe { (self.target_ops.destroy)(self.instance, token) };
        });
        self.wait_for(&pending).expect("it ends");
        target::uninstall();
    }

    /// What the instance says of its options.
    fn options_json(&self) -> String {
        self.json(|sink| {
            // SAFETY: the instance is alive; the sink is lent for the call.
            unsafe { (self.target_ops.options_json)(self.instance, sink) };
        })
    }

    /// What both roles say of their groups on reactor 0.
    fn statistics_json(&self) -> [String; 2] {
        let place = Place::Data(0);
        self.host.on_behalf_of(self.module, place, || {
            [
                // SAFETY: the groups are alive; this is their reactor.
                self.json(|sink| unsafe { (self.target_ops.statistics_json)(target::group(0), sink) }),
                // SAFETY: as above.
                self.json(|sink| unsafe {
                    (self.initiator_ops.statistics_json)(self.initiator_groups[0], sink)
                }),
            ]
        })
    }

    fn json(&self, write: impl FnOnce(*const JsonSink)) -> String {
        let mut text = String::new();
        let sink = JsonSink { write: append, arg: (&raw mut text).cast() };
        write(&sink);
        text
    }
}

unsafe extern "C" fn append(arg: *mut c_void, text: Str) {
    // SAFETY: `arg` is the string of a call under way; the text is readable.
    unsafe {
        if let Some(text) = text.as_str() {
            (*arg.cast::<String>()).push_str(text);
        }
    }
}

fn free_port() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("bound").port().to_string()
}
