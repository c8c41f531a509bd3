//! NVMe over TCP as hosts meet it: the built process, real sockets on loopback,
//! honest hosts and others.
#![forbid(unsafe_code)]

mod flood;
mod hostile;
mod secure;
mod speaker;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use serde_json::{Value, json};
use speaker::{Data, Speaker, identify, pattern, rw};
use tenon_tests::{Host, PATIENCE, counts, wait_for};
use transport_tcp::connection::{Ending, InitiatorOptions};
use transport_tcp::nvme_spec::opcode::IoOpcode;
use transport_tcp::nvme_spec::status::StatusCode;

const NQN: &str = "nqn.2026-01.io.tenon:tcp";
const PLAIN: InitiatorOptions = InitiatorOptions::DEFAULT;
const DIGESTS: InitiatorOptions =
    InitiatorOptions { needs_header_digest: true, needs_data_digest: true, ..InitiatorOptions::DEFAULT };

/// Waits until the transport has no connection.
fn wait_for_gone(host: &mut Host) {
    wait_for("connections to go", || {
        let stats = host.ok("nvmf_get_stats", json!({}));
        let groups = stats["poll_groups"].as_array().expect("groups").clone();
        groups.iter().all(|group| group["transports"][0]["connections"] == 0).then_some(())
    });
}

/// A process that serves a device of 16 MiB.
struct Served {
    host: Host,
    address: SocketAddr,
}

fn free_address() -> SocketAddr {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    probe.local_addr().expect("bound")
}

fn listen_address(address: SocketAddr) -> Value {
    json!({
        "trtype": "TCP", "adrfam": "IPv4",
        "traddr": address.ip().to_string(), "trsvcid": address.port().to_string()
    })
}

fn serve(options: Value) -> Served {
    let mut host = Host::start("");
    let mut create = json!({ "trtype": "TCP" });
    for (key, value) in options.as_object().expect("options") {
        create[key] = value.clone();
    }
    host.ok("nvmf_create_transport", create);
    host.ok("bdev_malloc_create", json!({ "name": "m0", "num_blocks": 32768, "block_size": 512 }));
    host.ok("nvmf_create_subsystem", json!({ "nqn": NQN, "allow_any_host": true }));
    host.ok("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": { "bdev_name": "m0" } }));
    let address = free_address();
    let listener = json!({ "nqn": NQN, "listen_address": listen_address(address) });
    host.ok("nvmf_subsystem_add_listener", listener);
    Served { host, address }
}

impl Served {
    /// An admin queue and an I/O queue.
    fn session(&self, options: InitiatorOptions) -> (Speaker, Speaker) {
        let (admin, cntlid) = Speaker::admin(self.address, options, NQN);
        let io = Speaker::io(self.address, options, NQN, 1, cntlid);
        (admin, io)
    }

    fn connections(&mut self) -> u64 {
        self.group_sum("connections")
    }

    /// A number of the transport's statistics, over all reactors.
    fn group_sum(&mut self, key: &str) -> u64 {
        let stats = self.host.ok("nvmf_get_stats", json!({}));
        let groups = stats["poll_groups"].as_array().expect("groups").clone();
        groups.iter().map(|group| group["transports"][0][key].as_u64().unwrap_or(0)).sum()
    }
}

fn moves_data(options: InitiatorOptions) {
    let served = serve(json!({}));
    let (mut admin, mut io) = served.session(options);
    let (cqe, id) = admin.command(identify(), Data::In(4096));
    assert!(cqe.status.is_success());
    assert!(String::from_utf8_lossy(&id[768..1024]).starts_with(NQN));
    // In the capsule, by one R2T, by several R2Ts and data PDUs.
    for (at, len) in [(0, 512), (8, 4096), (64, 8192), (256, 128 << 10), (1024, 1 << 20)] {
        let data = pattern(len as u64, len);
        io.write(at, &data);
        assert!(io.read(at, len) == data, "{len} bytes differ");
    }
    // Many at once, of all sizes.
    let mut under_way = Vec::new();
    for round in 0..48_u64 {
        let len = [512, 4096, 16384, 65536][round as usize % 4];
        let data = pattern(round, len);
        let cid = io.submit(rw(IoOpcode::WRITE, round * 128, len), Data::Out(&data));
        under_way.push((cid, round * 128, data));
    }
    for (cid, ..) in &under_way {
        assert!(io.wait_for(*cid).0.status.is_success());
    }
    for (_, slba, data) in &under_way {
        assert!(io.read(*slba, data.len()) == *data);
    }
}

#[test]
fn data_arrives_whole_in_capsules_and_by_r2t() {
    moves_data(PLAIN);
}

#[test]
fn data_arrives_whole_with_both_digests() {
    moves_data(DIGESTS);
}

#[test]
fn a_connection_in_single_bytes_is_understood() {
    let served = serve(json!({}));
    let mut slow = TcpStream::connect(served.address).expect("listens");
    slow.set_nodelay(true).expect("tcp");
    slow.set_read_timeout(Some(PATIENCE)).expect("a time");
    let mut request = [0; 128];
    (request[2], request[4]) = (128, 128);
    for byte in request {
        slow.write_all(&[byte]).expect("open");
    }
    let mut response = [0; 128];
    slow.read_exact(&mut response).expect("an answer");
    assert_eq!((response[0], response[2]), (1, 128));
}

#[test]
fn a_wrong_data_digest_fails_its_command_alone() {
    let served = serve(json!({}));
    let (_admin, mut io) = served.session(DIGESTS);
    io.write(0, &pattern(1, 4096));
    let status = io.damaged_write(0, &pattern(2, 4096));
    assert_eq!(status, StatusCode::TRANSIENT_TRANSPORT_ERROR);
    assert!(io.read(0, 4096) == pattern(1, 4096), "damaged data was written");
}

#[test]
fn half_open_peers_are_dropped_and_others_served() {
    let mut served = serve(json!({ "handshake_timeout_sec": 1 }));
    let silent: Vec<TcpStream> =
        (0..50).map(|_| TcpStream::connect(served.address).expect("listens")).collect();
    let (_admin, mut io) = served.session(PLAIN);
    io.write(0, &pattern(1, 4096));
    for mut stream in silent {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0, "it is closed");
    }
    wait_for("handshakes to be given up", || {
        (served.group_sum("unfinished_connections") == 50).then_some(())
    });
    assert!(io.read(0, 4096) == pattern(1, 4096));
}

#[test]
fn a_process_short_of_descriptors_serves_on_and_recovers() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let served = serve(json!({ "handshake_timeout_sec": 1 }));
    let (_admin, mut io) = served.session(PLAIN);
    let pid = served.host.pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count() as u64;
    let raw = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not zero");
    let limit = |current| {
        let limit = Rlimit { current: Some(current), maximum: Some(4096) };
        prlimit(Some(raw), Resource::Nofile, limit).expect("its owner may");
    };
    limit(open + 4);
    let storm: Vec<TcpStream> =
        (0..60).map(|_| TcpStream::connect(served.address).expect("the kernel takes them")).collect();
    for round in 0..200 {
        io.write(round * 8, &pattern(round, 4096));
        assert!(io.read(round * 8, 4096) == pattern(round, 4096));
    }
    drop(storm);
    limit(open + 64);
    let (_other_admin, mut other) = served.session(PLAIN);
    assert!(other.read(0, 4096) == pattern(0, 4096));
}

#[test]
fn a_host_that_does_not_read_is_closed_and_starves_nobody() {
    let mut served = serve(json!({ "stall_timeout_sec": 1 }));
    let (_slow_admin, mut slow) = served.session(PLAIN);
    for at in 0..60 {
        slow.submit(rw(IoOpcode::READ, at * 16, 1 << 20), Data::In(1 << 20));
    }
    let (_admin, mut io) = served.session(PLAIN);
    for round in 0..200 {
        io.write(round * 8, &pattern(round, 4096));
        assert!(io.read(round * 8, 4096) == pattern(round, 4096));
    }
    wait_for("the slow queue to be closed", || (served.connections() == 3).then_some(()));
}

/// Submits more data than one connection may have buffers for; returns the commands.
fn submit_too_much(io: &mut Speaker) -> Vec<u16> {
    (0..60)
        .map(|round| {
            let slba = round % 15 * 2048;
            io.submit(rw(IoOpcode::WRITE, slba, 1 << 20), Data::Out(&pattern(slba, 1 << 20)))
        })
        .collect()
}

#[test]
fn more_data_than_there_are_buffers_waits_its_turn() {
    let served = serve(json!({}));
    let (_admin, mut io) = served.session(PLAIN);
    let commands = submit_too_much(&mut io);
    for cid in commands {
        assert!(io.wait_for(cid).0.status.is_success());
    }
    for slba in (0..15).map(|at| at * 2048) {
        assert!(io.read(slba, 1 << 20) == pattern(slba, 1 << 20));
    }
}

#[test]
fn commands_that_wait_for_buffers_go_with_their_connection() {
    let mut served = serve(json!({}));
    let (admin, mut io) = served.session(PLAIN);
    submit_too_much(&mut io);
    drop((admin, io));
    wait_for_gone(&mut served.host);
    assert_eq!(served.group_sum("receive_chunks"), 0);
    let (_admin, mut io) = served.session(PLAIN);
    io.write(0, &pattern(1, 4096));
    assert!(io.read(0, 4096) == pattern(1, 4096));
    drop((_admin, io));
    served.host.stop();
}

#[test]
fn a_thousand_connections_come_and_go_without_a_trace() {
    let mut served = serve(json!({}));
    let before = counts(&mut served.host);
    for round in 0..1000 {
        match round % 4 {
            0 => drop(TcpStream::connect(served.address).expect("listens")),
            1 => drop(Speaker::open(served.address, PLAIN)),
            2 => drop(Speaker::admin(served.address, PLAIN, NQN)),
            _ => drop(served.session(PLAIN)),
        }
    }
    wait_for("connections to go", || (served.connections() == 0).then_some(()));
    wait_for("controllers to go", || {
        let controllers = served.host.ok("nvmf_subsystem_get_controllers", json!({ "nqn": NQN }));
        (controllers == json!([])).then_some(())
    });
    assert_eq!(counts(&mut served.host), before);
    assert_eq!(served.group_sum("receive_chunks"), 0);
    served.host.stop();
}

#[test]
fn a_second_subsystem_leaves_a_listener_and_its_connections_alone() {
    let mut served = serve(json!({}));
    let (_admin, mut io) = served.session(PLAIN);
    let other = "nqn.2026-01.io.tenon:other";
    served.host.ok("nvmf_create_subsystem", json!({ "nqn": other, "allow_any_host": true }));
    let listener = json!({ "nqn": other, "listen_address": listen_address(served.address) });
    served.host.ok("nvmf_subsystem_add_listener", listener.clone());
    drop(Speaker::admin(served.address, PLAIN, other));
    served.host.ok("nvmf_subsystem_remove_listener", listener);
    io.write(0, &pattern(1, 4096));
    let own = json!({ "nqn": NQN, "listen_address": listen_address(served.address) });
    served.host.ok("nvmf_subsystem_remove_listener", own.clone());
    assert_eq!(io.until_ended(), Ending::PeerClosed);
    assert!(TcpStream::connect(served.address).is_err(), "nobody listens");
    served.host.ok("nvmf_subsystem_add_listener", own);
    let (_admin, mut io) = served.session(PLAIN);
    assert!(io.read(0, 4096) == pattern(1, 4096));
}

#[test]
fn wrong_options_and_addresses_are_named() {
    let mut host = Host::start("");
    let error = host.err("nvmf_create_transport", json!({ "trtype": "TCP", "max_r2t": 17 }));
    assert!(error.message.contains("max_r2t is 17"), "{error:?}");
    let mut served = serve(json!({}));
    for (traddr, trsvcid, expected) in [
        ("nowhere", "4420", "not an IP address"),
        ("127.0.0.1", "port", "not a port"),
        ("::1", "4420", "another family"),
    ] {
        let address = json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": traddr, "trsvcid": trsvcid });
        let listener = json!({ "nqn": NQN, "listen_address": address });
        let error = served.host.err("nvmf_subsystem_add_listener", listener);
        assert!(error.message.contains(expected), "{error:?}");
    }
    let taken = json!({ "nqn": NQN, "listen_address": listen_address(served.address) });
    served.host.ok("nvmf_subsystem_remove_listener", taken.clone());
    let _holder = TcpListener::bind(served.address).expect("free again");
    let error = served.host.err("nvmf_subsystem_add_listener", taken);
    assert_eq!(error.code, -98, "{error:?}");
}
