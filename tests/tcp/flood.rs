//! Hosts that ask for more than they send or take, in every way there is: the process
//! stays within its memory, and others are served.

use std::io::Write;
use std::net::TcpStream;

use serde_json::json;
use tenon_tests::wait_for;
use transport_tcp::nvme_spec::command::Sqe;
use transport_tcp::nvme_spec::opcode::{AdminOpcode, IoOpcode};
use zerocopy::FromZeros;

use crate::speaker::{Data, Speaker, identify, pattern, rw};
use crate::{NQN, PLAIN, Served, serve};

const GREEDY: &str = "nqn.2026-01.io.tenon:greedy";

/// Memory of the process in MiB.
fn memory_mib(served: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.host.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of that");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// An admin queue and `count` I/O queues of a host that asks for much.
fn greedy(served: &Served, count: u16) -> Vec<Speaker> {
    let mut admin = Speaker::open(served.address, PLAIN);
    admin.hostnqn = GREEDY;
    let cntlid = admin.become_admin(NQN);
    let mut queues = vec![admin];
    for qid in 1..=count {
        let mut queue = Speaker::open(served.address, PLAIN);
        queue.hostnqn = GREEDY;
        queue.become_io(NQN, qid, cntlid);
        queues.push(queue);
    }
    queues
}

/// Connections that say this and no more.
fn unfinished(served: &Served, bytes: &[u8]) -> Vec<TcpStream> {
    let dial = || {
        let mut stream = TcpStream::connect(served.address).expect("listens");
        let _ = stream.write_all(bytes);
        stream
    };
    (0..400).map(|_| dial()).collect()
}

/// Another host identifies the controller, and writes and reads with data that needs buffers.
fn others_are_served(served: &Served) {
    let (mut admin, mut io) = served.session(PLAIN);
    let (cqe, _) = admin.command(identify(), Data::In(4096));
    assert!(cqe.status.is_success());
    for round in 0..20 {
        let data = pattern(round, 64 << 10);
        io.write(round * 128, &data);
        assert!(io.read(round * 128, 64 << 10) == data);
    }
}

#[test]
fn a_host_that_asks_for_buffers_and_sends_nothing_leaves_some_to_others() {
    let served = serve(json!({}));
    let before = memory_mib(&served);
    let mut queues = greedy(&served, 12);
    for queue in &mut queues[1..] {
        for at in 0..60 {
            // Its data is asked for, and not sent: nobody reads the request.
            queue.submit(rw(IoOpcode::WRITE, at % 15 * 2048, 1 << 20), Data::Out(&vec![1; 1 << 20]));
        }
    }
    others_are_served(&served);
    let grown = memory_mib(&served) - before;
    assert!(grown < 200, "{grown} MiB");
}

#[test]
fn memory_is_bounded_under_each_flood() {
    let mut served = serve(json!({ "acceptor_backlog": 4096 }));
    // Blocks of the device that were written are memory of the process too.
    let (_admin, mut io) = served.session(PLAIN);
    (0..16).for_each(|at| io.write(at * 2048, &pattern(at, 1 << 20)));
    let before = memory_mib(&served);
    let check = |what: &str, served: &mut Served| {
        others_are_served(served);
        let grown = memory_mib(served).saturating_sub(before);
        assert!(grown < 64, "{what}: {grown} MiB");
    };

    // Handshakes that go no further, and capsules that end in the middle.
    let mut request = [0; 128];
    (request[2], request[4]) = (128, 128);
    let streams = unfinished(&served, &request[..100]);
    check("half handshakes", &mut served);
    drop(streams);
    let streams = unfinished(&served, &[&request[..], &[4, 0, 72, 72, 72, 32, 0, 0], &[0; 3000]].concat());
    check("half capsules", &mut served);
    drop(streams);

    // Answers that nobody reads: large ones, and many small ones.
    let mut queues = greedy(&served, 8);
    for queue in &mut queues[1..] {
        for at in 0..60 {
            queue.submit(rw(IoOpcode::READ, at % 15 * 2048, 1 << 20), Data::In(1 << 20));
        }
    }
    check("unread data", &mut served);
    drop(queues);
    let mut queues = greedy(&served, 1);
    for _ in 0..16 {
        let mut event = Sqe::new_zeroed();
        event.opc = AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST.0;
        queues[0].submit(event, Data::None);
    }
    check("event requests", &mut served);
    drop(queues);

    // Connections that come and go as fast as they can.
    for _ in 0..2000 {
        drop(TcpStream::connect(served.address).expect("listens"));
    }
    check("connections", &mut served);
    wait_for("connections to go", || (served.connections() == 2).then_some(()));
    assert_eq!(served.group_sum("receive_chunks"), 0);
}
