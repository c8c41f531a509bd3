//! A target on a simulation, with devices in memory, and what a host says to it
//! over the `transport` of the suite.

pub mod auth;
pub mod device;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use nvme_spec::command::{CommandFlags, Sqe};
use nvme_spec::completion::Cqe;
use nvme_spec::fabrics::{Connect, ConnectData, PropertySet};
use nvme_spec::io::ReadWrite;
use nvme_spec::nqn::{HostId, NqnField};
use nvme_spec::opcode::{AdminOpcode, FABRICS, FabricsType, IoOpcode};
use nvme_spec::property::PropertyOffset;
use nvme_spec::sgl::{SglDescriptor, SglIdentifier};
use nvme_spec::status::StatusCode;
use serde_json::json;
use tenon_bdev::{Core, CoreOptions};
use tenon_modules::{Catalog, Existing, InitOn};
use tenon_nvmf_target::{Address, AnaState, NamespaceSpec, SubsystemSpec, Target, TargetOptions};
use tenon_reactor::Simulation;
use zerocopy::{FromZeros, IntoBytes};

use crate::transport::{self, Connection};

pub const NQN: &str = "nqn.2026-01.io.tenon:one";
pub const HOST: &str = "nqn.2026-01.io.tenon:host";

/// A simulated host of the target.
pub struct World {
    simulation: RefCell<Simulation>,
    pub core: Core,
    pub target: Target,
    _alone: transport::Alone,
}

/// What came back for a command.
#[derive(Clone, Debug)]
pub struct Completion {
    pub cqe: Cqe,
    pub data: Vec<u8>,
}

pub type Reply = Rc<RefCell<Option<Completion>>>;

/// A connected controller as its host sees it.
pub struct Session {
    pub admin: &'static Connection,
    pub queues: Vec<&'static Connection>,
    pub cntlid: u16,
}

impl World {
    pub fn new(seed: u64) -> World {
        World::with(seed, TargetOptions::default())
    }

    pub fn with(seed: u64, options: TargetOptions) -> World {
        device::reset(seed);
        transport::set_delay(0);
        let alone = transport::alone();
        let mut simulation = Simulation::new(seed, 2);
        let mut core_options = CoreOptions::default();
        core_options.modules.init_on = InitOn::Offload;
        let control = simulation.control();
        let core = simulation.on(&control, |_| Core::start(core_options, Catalog::empty()));
        let target = simulation.on(&control, |_| Target::start(options, core.clone()));
        let world = World { simulation: RefCell::new(simulation), core, target, _alone: alone };
        world.wait(|world, reply| {
            // SAFETY: the descriptor is static and keeps the contract.
            unsafe {
                world.core.module_load_static(&device::PLUGIN, &json!({}), Existing::Refuse, move |result| {
                    result.expect("the module loads");
                    reply(());
                });
            }
        });
        transport::make(&world);
        world
    }

    /// A world with one subsystem, one listener, and a namespace per device of `blocks` blocks.
    pub fn serving(seed: u64, devices: &[(&str, u64)]) -> World {
        let world = World::new(seed);
        let spec = SubsystemSpec { allow_any_host: true, ana_reporting: true, ..SubsystemSpec::new(NQN) };
        world.subsystem(spec);
        world.listen(NQN, "a");
        for (name, blocks) in devices {
            world.device(json!({ "name": name, "blocks": blocks }));
            world.namespace(NQN, name);
        }
        world
    }

    pub fn on<T>(&self, f: impl FnOnce(&World) -> T) -> T {
        let control = self.simulation.borrow().control();
        let mut simulation = self.simulation.borrow_mut();
        simulation.on(&control, |_| f(self))
    }

    pub fn on_queue<T>(&self, connection: &Connection, f: impl FnOnce() -> T) -> T {
        self.simulation.borrow_mut().on(&connection.reactor(), |_| f())
    }

    pub fn settle(&self) {
        assert!(self.simulation.borrow_mut().run_until_idle(1_000_000), "comes to rest");
    }

    pub fn advance(&self, time: Duration) {
        self.simulation.borrow_mut().advance(time);
    }

    pub fn steps(&self, count: u64) {
        for _ in 0..count {
            self.simulation.borrow_mut().step();
        }
    }

    pub fn run_until(&self, condition: impl FnMut() -> bool) -> bool {
        self.simulation.borrow_mut().run_until(Duration::from_secs(30), condition)
    }

    /// Starts something on the control reactor, and runs until it replies.
    #[track_caller]
    pub fn wait<T: 'static>(&self, start: impl FnOnce(&World, Box<dyn FnOnce(T)>)) -> T {
        let answer: Rc<RefCell<Option<T>>> = Rc::default();
        let slot = answer.clone();
        self.on(|world| start(world, Box::new(move |value| *slot.borrow_mut() = Some(value))));
        self.run_until(|| answer.borrow().is_some());
        self.settle();
        answer.borrow_mut().take().expect("a reply")
    }

    pub fn subsystem(&self, spec: SubsystemSpec) {
        self.wait(|world, reply| world.target.create_subsystem(spec, reply)).expect("subsystem");
    }

    pub fn listen(&self, nqn: &str, traddr: &str) {
        let address = address(traddr);
        let listened = self
            .wait(|world, reply| world.target.add_listener(nqn, &address, false, AnaState::OPTIMIZED, reply));
        listened.expect("listener");
    }

    pub fn device(&self, params: serde_json::Value) {
        self.wait(|world, reply| world.core.create("memory", &params, reply)).expect("device");
    }

    pub fn namespace(&self, nqn: &str, bdev: &str) -> u32 {
        let spec = NamespaceSpec { bdev_name: bdev.into(), ..NamespaceSpec::default() };
        self.wait(|world, reply| world.target.add_namespace(nqn, spec, reply)).expect("namespace")
    }

    pub fn remove_namespace(&self, nqn: &str, nsid: u32) {
        self.wait(|world, reply| world.target.remove_namespace(nqn, nsid, reply)).expect("removed");
    }

    /// A connection through the listener at `traddr`.
    pub fn open(&self, traddr: &str) -> &'static Connection {
        transport::open(self, traddr)
    }

    pub fn start(&self, connection: &'static Connection, sqe: Sqe, out: Vec<u8>) -> Reply {
        let in_capsule = device::chance().is_multiple_of(2);
        self.on_queue(connection, || connection.send(sqe, out, in_capsule))
    }

    #[track_caller]
    pub fn command(&self, connection: &'static Connection, sqe: Sqe, out: Vec<u8>) -> Completion {
        let reply = self.start(connection, sqe, out);
        self.run_until(|| reply.borrow().is_some());
        let answer = reply.borrow_mut().take();
        answer.expect("a completion")
    }

    #[track_caller]
    pub fn status(&self, connection: &'static Connection, sqe: Sqe, out: Vec<u8>) -> StatusCode {
        self.command(connection, sqe, out).cqe.status.code()
    }

    pub fn connect_queue(
        &self,
        connection: &'static Connection,
        qid: u16,
        cntlid: u16,
        kato_ms: u32,
    ) -> Completion {
        let (sqe, data) = connect(NQN, HOST, qid, cntlid, kato_ms);
        self.command(connection, sqe, data)
    }

    /// Connects and enables a controller with `queues` I/O queues.
    #[track_caller]
    pub fn session(&self, traddr: &str, queues: u16) -> Session {
        self.session_of(traddr, queues, 0)
    }

    #[track_caller]
    pub fn session_of(&self, traddr: &str, queues: u16, kato_ms: u32) -> Session {
        let admin = self.open(traddr);
        let connected = self.connect_queue(admin, 0, 0xffff, kato_ms);
        assert!(connected.cqe.status.is_success(), "{:?}", connected.cqe);
        let cntlid = connected.cqe.dw0.get() as u16;
        assert_eq!(self.status(admin, property_set(0x0046_0001), Vec::new()), StatusCode::SUCCESS);
        let queues = (1..=queues)
            .map(|qid| {
                let queue = self.open(traddr);
                let connected = self.connect_queue(queue, qid, cntlid, 0);
                assert!(connected.cqe.status.is_success(), "{:?}", connected.cqe);
                queue
            })
            .collect();
        Session { admin, queues, cntlid }
    }

    /// A controller of another host, told apart by its number, with one I/O queue.
    #[track_caller]
    pub fn session_of_host(&self, traddr: &str, host: u8) -> Session {
        let connect = |queue, qid, cntlid| {
            let (mut sqe, mut data) = connect(NQN, &host_nqn(host), qid, cntlid, 0);
            data[..16].fill(host);
            sqe.dptr = SglDescriptor::new(SglIdentifier::TRANSPORT_DATA_BLOCK, 0, data.len() as u32).into();
            let answer = self.command(queue, sqe, data);
            assert!(answer.cqe.status.is_success(), "{:?}", answer.cqe);
            if answer.cqe.dw0.get() >> 16 != 0 {
                let both_ways = device::chance().is_multiple_of(2);
                let end = auth::authenticate(self, queue, &host_nqn(host), [host; 32], both_ways);
                assert_eq!(end, nvme_spec::auth::AuthId::SUCCESS1);
            }
            answer.cqe.dw0.get() as u16
        };
        let admin = self.open(traddr);
        let cntlid = connect(admin, 0, 0xffff);
        assert_eq!(self.status(admin, property_set(0x0046_0001), Vec::new()), StatusCode::SUCCESS);
        let queue = self.open(traddr);
        connect(queue, 1, cntlid);
        Session { admin, queues: vec![queue], cntlid }
    }

    /// Ends everything, and asserts that nothing is left.
    pub fn finish(self) {
        self.wait(|world, reply| world.target.shutdown(move || reply(())));
        let counts = self.on(|world| world.target.counts());
        assert_eq!(counts, tenon_nvmf_target::TargetCounts::default());
        let report = self.wait(|world, reply| world.core.shutdown(reply));
        assert!(report.is_clean(), "left: {:?}", report.left);
    }
}

pub fn host_nqn(host: u8) -> String {
    format!("nqn.2026-01.io.tenon:host{host}")
}

pub fn address(traddr: &str) -> Address {
    Address { trtype: "LOOP".into(), adrfam: "loop".into(), traddr: traddr.into(), trsvcid: String::new() }
}

fn with_data(mut sqe: Sqe, len: usize) -> Sqe {
    sqe.flags = CommandFlags::PSDT_SGL;
    sqe.dptr = SglDescriptor::new(SglIdentifier::TRANSPORT_DATA_BLOCK, 0, len as u32).into();
    sqe
}

pub fn connect(subnqn: &str, hostnqn: &str, qid: u16, cntlid: u16, kato_ms: u32) -> (Sqe, Vec<u8>) {
    let mut command = Connect::new_zeroed();
    command.head.opc = FABRICS;
    command.head.fctype = FabricsType::CONNECT;
    command.qid.set(qid);
    command.sqsize_z.set(31);
    command.kato_ms.set(kato_ms);
    let mut data = ConnectData::new_zeroed();
    data.hostid = HostId([1; 16]);
    data.cntlid.set(cntlid);
    data.subnqn = NqnField::new(subnqn).expect("a name");
    data.hostnqn = NqnField::new(hostnqn).expect("a name");
    let data = data.as_bytes().to_vec();
    (with_data(Sqe::from_view(&command), data.len()), data)
}

pub fn property_set(cc: u32) -> Sqe {
    let mut command = PropertySet::new_zeroed();
    command.head.opc = FABRICS;
    command.head.flags = CommandFlags::PSDT_SGL;
    command.head.fctype = FabricsType::PROPERTY_SET;
    command.ofst = PropertyOffset::CC;
    command.value.set(u64::from(cc));
    Sqe::from_view(&command)
}

pub fn admin(opcode: AdminOpcode, nsid: u32, cdw10: u32, cdw11: u32, len: usize) -> Sqe {
    let mut sqe = Sqe::new_zeroed();
    sqe.opc = opcode.0;
    sqe.nsid.set(nsid);
    sqe.cdw10.set(cdw10);
    sqe.cdw11.set(cdw11);
    with_data(sqe, len)
}

pub fn log_page(lid: u8, len: usize) -> Sqe {
    let numd = (len / 4 - 1) as u32;
    admin(AdminOpcode::GET_LOG_PAGE, 0xffff_ffff, numd << 16 | u32::from(lid), 0, len)
}

pub fn rw(opcode: IoOpcode, nsid: u32, slba: u64, blocks: u16, len: usize) -> Sqe {
    let mut command = ReadWrite::new_zeroed();
    command.head.opc = opcode.0;
    command.head.nsid.set(nsid);
    command.slba.set(slba);
    command.nlb_z.set(blocks - 1);
    with_data(Sqe::from_view(&command), len)
}

pub fn write(nsid: u32, slba: u64, data: &[u8]) -> (Sqe, Vec<u8>) {
    (rw(IoOpcode::WRITE, nsid, slba, (data.len() / 512) as u16, data.len()), data.to_vec())
}

pub fn read(nsid: u32, slba: u64, blocks: u16) -> Sqe {
    rw(IoOpcode::READ, nsid, slba, blocks, usize::from(blocks) * 512)
}
