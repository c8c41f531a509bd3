//! Many seeds of hosts that reserve a namespace, prove who they are and are
//! limited, while the target changes under them: after every change each host
//! may do exactly what the report says, and nothing is left at the end.

use std::time::Duration;

use crate::reservations::command;
use crate::rig::auth::{authenticate, key_file};
use crate::rig::device::chance;
use crate::rig::{NQN, Session, World, admin, host_nqn, read, rw, write};
use nvme_spec::command::Sqe;
use nvme_spec::opcode::{AdminOpcode, IoOpcode};
use nvme_spec::status::StatusCode;
use tenon_bdev::QosLimits;
use tenon_nvmf_target::{AnaState, AuthenticationOptions, DhGroupId, HashId, HostKeys};

const HOSTS: [u8; 3] = [1, 3, 4];

/// The hosts and what the test knows of the target.
struct Scene {
    world: World,
    sessions: Vec<Session>,
    has_namespace: bool,
    is_limited: bool,
}

/// What a report says.
struct Report {
    rtype: u8,
    /// Per host of [`HOSTS`]: whether it is registered, and whether it holds the reservation.
    hosts: [(bool, bool); 3],
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let world = World::serving(seed, &[("m0", 64)]);
        world.listen(NQN, "b");
        crate::rig::device::set_delay("m0", chance() % 3 * 100);
        crate::transport::set_delay(chance() % 2 * 100);
        for (name, secret) in [("one", 1), ("three", 3), ("sub", 2)] {
            let path = key_file(&format!("{name}-access"), &[secret; 32]);
            world.wait(|world, reply| world.target.add_key_file(name, &path, reply)).expect("a key");
        }
        world
            .on(|world| {
                let hashes = vec![HashId::SHA_256];
                let groups = vec![DhGroupId::NULL];
                world.target.set_authentication(AuthenticationOptions { hashes, groups })?;
                for (host, key) in [(1, "one"), (3, "three")] {
                    let keys = HostKeys {
                        dhchap_key: Some(key.into()),
                        dhchap_ctrlr_key: Some("sub".into()),
                        ..HostKeys::default()
                    };
                    world.target.add_host_with_keys(NQN, &host_nqn(host), keys)?;
                }
                Ok::<(), tenon_nvmf_target::TargetError>(())
            })
            .expect("hosts");
        let sessions = HOSTS.iter().map(|host| world.session_of_host("a", *host)).collect();
        Scene { world, sessions, has_namespace: true, is_limited: false }
    }

    fn revive(&mut self, at: usize) {
        let session = &self.sessions[at];
        if !session.admin.is_open() || session.queues.iter().any(|queue| !queue.is_open()) {
            let (world, admin) = (&self.world, session.admin);
            world.on_queue(admin, || admin.drop_by_peer());
            world.settle();
            self.sessions[at] = world.session_of_host(["a", "b"][chance() as usize % 2], HOSTS[at]);
        }
    }

    fn status(&self, at: usize, (sqe, data): (Sqe, Vec<u8>)) -> StatusCode {
        self.world.status(self.sessions[at].queues[0], sqe, data)
    }

    /// One reservation command of one host, most of them with keys and types that make sense.
    fn reserve(&mut self) {
        let at = chance() as usize % HOSTS.len();
        self.revive(at);
        let own = u64::from(HOSTS[at]);
        let other = u64::from(HOSTS[chance() as usize % HOSTS.len()]);
        let rtype = (chance() % 6 + 1) as u32;
        let key = if chance().is_multiple_of(10) { 99 } else { own };
        let command = match chance() % 8 {
            0..=2 => command(IoOpcode::RESERVATION_REGISTER, (chance() % 3) as u32, &[key, own]),
            3 => command(IoOpcode::RESERVATION_ACQUIRE, rtype << 8, &[key, 0]),
            4 => command(IoOpcode::RESERVATION_ACQUIRE, rtype << 8 | 1, &[key, other]),
            5 => command(IoOpcode::RESERVATION_ACQUIRE, rtype << 8 | 2, &[key, other]),
            6 => command(IoOpcode::RESERVATION_RELEASE, rtype << 8, &[key]),
            _ => command(IoOpcode::RESERVATION_RELEASE, 1, &[key]),
        };
        let code = self.status(at, command);
        let expected = [
            StatusCode::SUCCESS,
            StatusCode::RESERVATION_CONFLICT,
            StatusCode::INVALID_FIELD,
            StatusCode::INVALID_NAMESPACE_OR_FORMAT,
        ];
        assert!(expected.contains(&code), "{code:?}");
    }

    fn report(&self, at: usize) -> Option<Report> {
        let mut sqe = rw(IoOpcode::RESERVATION_REPORT, 1, 0, 1, 4096);
        sqe.cdw10.set(1023);
        sqe.cdw11.set(1);
        sqe.cdw12.set(0);
        let answer = self.world.command(self.sessions[at].queues[0], sqe, vec![]);
        if !answer.cqe.status.is_success() {
            return None;
        }
        let entries = answer.data[64..].chunks(64).take(usize::from(answer.data[5]));
        let mut report = Report { rtype: answer.data[4], hosts: [(false, false); 3] };
        for entry in entries {
            let at = HOSTS.iter().position(|host| *host == entry[16]).expect("a host of ours");
            report.hosts[at] = (true, entry[2] & 1 == 1);
        }
        Some(report)
    }

    /// What each host may do is what the report says.
    fn check(&mut self) {
        (0..HOSTS.len()).for_each(|at| self.revive(at));
        let Some(report) = self.report(chance() as usize % HOSTS.len()) else {
            assert!(!self.has_namespace, "a report is refused for want of a namespace only");
            return;
        };
        for (at, (is_registered, is_holder)) in report.hosts.into_iter().enumerate() {
            let shares = is_holder || (report.rtype >= 3 && is_registered);
            let reads = report.rtype == 0 || shares || matches!(report.rtype, 1 | 3 | 5);
            let writes = report.rtype == 0 || shares;
            let code = |may| if may { StatusCode::SUCCESS } else { StatusCode::RESERVATION_CONFLICT };
            let block = chance() % 8 + 8 * at as u64;
            assert_eq!(self.status(at, (read(1, block, 1), vec![])), code(reads), "type {}", report.rtype);
            assert_eq!(
                self.status(at, write(1, block, &[at as u8; 512])),
                code(writes),
                "type {}",
                report.rtype
            );
        }
    }

    fn load(&mut self) {
        for at in 0..HOSTS.len() {
            let queue = self.sessions[at].queues[0];
            for _ in 0..chance() % 4 {
                let block = 32 + chance() % 24;
                let (sqe, data) = match chance() % 2 {
                    0 => (read(1, block, 2), vec![]),
                    _ => write(1, block, &[7; 1024]),
                };
                self.world.start(queue, sqe, data);
            }
        }
    }

    fn change(&mut self) {
        let world = &self.world;
        match chance() % 9 {
            0 if self.has_namespace => {
                world.remove_namespace(NQN, 1);
                self.has_namespace = false;
            }
            0 | 1 if !self.has_namespace => {
                assert_eq!(world.namespace(NQN, "m0"), 1);
                self.has_namespace = true;
            }
            2 => {
                let pause = Duration::from_millis(chance() % 30 + 1);
                let _ = world.wait(|world, reply| world.target.pause_subsystem(NQN, pause, reply));
            }
            3 => {
                let state = [AnaState::OPTIMIZED, AnaState::NON_OPTIMIZED][chance() as usize % 2];
                let address = crate::rig::address(["a", "b"][chance() as usize % 2]);
                world.on(|world| world.target.set_ana_state(NQN, &address, state, None)).expect("set");
                world.settle();
            }
            4 => {
                self.is_limited = !self.is_limited;
                let rate = if self.is_limited { 2000 } else { 0 };
                let limits = QosLimits { rw_ios_per_sec: rate, ..QosLimits::default() };
                world.on(|world| world.target.set_host_limits(NQN, &host_nqn(1), limits)).expect("set");
            }
            5 => {
                let queue = self.sessions[chance() as usize % HOSTS.len()].queues[0];
                world.on_queue(queue, || queue.drop_by_peer());
            }
            6 => {
                self.revive(1);
                let queue = self.sessions[1].queues[0];
                let end = authenticate(&self.world, queue, &host_nqn(3), [3; 32], chance().is_multiple_of(2));
                assert_eq!(end, nvme_spec::auth::AuthId::SUCCESS1, "again, under load");
            }
            7 => {
                let admin_queue = self.sessions[2].admin;
                if admin_queue.is_open() {
                    world.start(admin_queue, admin(AdminOpcode::ABORT, 0, 1, 0, 0), vec![]);
                }
            }
            _ => {
                let listener = crate::rig::address("b");
                world
                    .wait(|world, reply| world.target.remove_listener(NQN, &listener, reply))
                    .expect("there");
                world.listen(NQN, "b");
            }
        }
    }
}

fn run(seed: u64) {
    let mut scene = Scene::new(seed);
    for _ in 0..25 {
        scene.load();
        scene.world.steps(chance() % 40);
        scene.reserve();
        if chance().is_multiple_of(3) {
            scene.change();
        }
        if chance().is_multiple_of(2) {
            scene.check();
        }
    }
    scene.world.advance(Duration::from_secs(12));
    let open: Vec<_> = scene.sessions.iter().filter(|session| session.queues[0].is_open()).collect();
    if open.len() == scene.sessions.len() {
        // Replies of connections that were dropped never come; those that are open owe nothing.
        let queues = scene.world.wait(|world, reply| world.target.queues(NQN, reply)).expect("queues");
        assert!(queues.iter().all(|queue| queue.outstanding == 0), "seed {seed}: {queues:?}");
    }
    scene.world.finish();
}

#[test]
fn hosts_may_do_what_the_report_says_whatever_changes() {
    for seed in 1..=crate::transport::SEEDS {
        run(seed);
    }
}
