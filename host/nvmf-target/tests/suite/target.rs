//! The target as a host meets it: connect, admin commands, I/O, changes under it.

use std::time::Duration;

use crate::rig::{HOST, NQN, World, admin, connect, log_page, property_set, read, rw, write};
use crate::transport::Connection;
use nvme_spec::command::{CommandFlags, Sqe};
use nvme_spec::fabrics::InvalidParameter;
use nvme_spec::identify::controller::{Fuses, Oncs};
use nvme_spec::identify::{Cns, IdentifyController, IdentifyNamespace};
use nvme_spec::opcode::{AdminOpcode, IoOpcode};
use nvme_spec::status::StatusCode;
use serde_json::json;
use tenon_bdev::QosLimits;
use tenon_nvmf_target::{AnaState, SubsystemSpec};
use zerocopy::{FromBytes, IntoBytes};

pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

#[test]
fn a_host_connects_identifies_writes_and_reads() {
    let world = World::serving(1, &[("m0", 256)]);
    let host = world.session("a", 2);
    let id = world.command(
        host.admin,
        admin(AdminOpcode::IDENTIFY, 0, u32::from(Cns::CONTROLLER.0), 0, 4096),
        vec![],
    );
    let id = IdentifyController::read_from_bytes(&id.data).expect("4096 bytes");
    assert_eq!(id.subnqn.as_str(), Ok(NQN));
    assert_eq!((id.cntlid.get(), id.ver.major(), id.ioccsz.get()), (host.cntlid, 2, (64 + 4096) / 16));
    let ns = world.command(
        host.admin,
        admin(AdminOpcode::IDENTIFY, 1, u32::from(Cns::NAMESPACE.0), 0, 4096),
        vec![],
    );
    let ns = IdentifyNamespace::read_from_bytes(&ns.data).expect("4096 bytes");
    assert_eq!((ns.nsze.get(), ns.lbaf[0].lbads), (256, 9));
    for (queue, len) in [(0, 4096), (1, 65_536)] {
        let data = pattern(queue as u8, len);
        let (sqe, out) = write(1, 8, &data);
        assert_eq!(world.status(host.queues[queue], sqe, out), StatusCode::SUCCESS);
        let read = world.command(host.queues[1 - queue], read(1, 8, (len / 512) as u16), vec![]);
        assert!(read.cqe.status.is_success());
        assert_eq!(read.data, data);
    }
    world.finish();
}

#[test]
fn each_wrong_connect_is_told_what_is_wrong() {
    let world = World::serving(2, &[]);
    let queue = world.open("a");
    let check =
        |change: &dyn Fn(&mut Sqe, &mut Vec<u8>), code: StatusCode, parameter: Option<InvalidParameter>| {
            let (mut sqe, mut data) = connect(NQN, HOST, 0, 0xffff, 0);
            change(&mut sqe, &mut data);
            let answer = world.command(queue, sqe, data).cqe;
            assert_eq!(answer.status.code(), code);
            if let Some(parameter) = parameter {
                assert_eq!(InvalidParameter::from_dw0(answer.dw0), parameter);
            }
        };
    let wrong = StatusCode::CONNECT_INVALID_PARAMETERS;
    check(&|sqe, _| sqe.cdw10.set(1), StatusCode::CONNECT_INCOMPATIBLE_FORMAT, None);
    check(&|sqe, _| sqe.cdw11.set(0), wrong, Some(InvalidParameter::in_sqe(44)));
    check(&|sqe, _| sqe.cdw11.set(60_000), wrong, Some(InvalidParameter::in_sqe(44)));
    check(&|_, data| data[256] = b'x', wrong, Some(InvalidParameter::in_data(256)));
    check(&|_, data| data[512] = 0, wrong, Some(InvalidParameter::in_data(512)));
    check(&|_, data| data[..16].fill(0), wrong, Some(InvalidParameter::in_data(0)));
    check(&|_, data| data[16] = 5, wrong, Some(InvalidParameter::in_data(16)));
    check(&|sqe, _| sqe.cdw10.set(1 << 16), wrong, Some(InvalidParameter::in_data(16)));
    check(&|sqe, _| sqe.dptr.0[8] = 1, StatusCode::DATA_SGL_LENGTH_INVALID, None);
    assert_eq!(world.status(queue, property_set(1), vec![]), StatusCode::COMMAND_SEQUENCE_ERROR);
    check(&|_, _| {}, StatusCode::SUCCESS, None);
    check(&|_, _| {}, StatusCode::COMMAND_SEQUENCE_ERROR, None);
    world.on(|world| world.target.set_allow_any_host(NQN, false)).expect("set");
    world.settle();
    assert!(!queue.is_open(), "a host that is no longer allowed is closed");
    let again = world.open("a");
    assert_eq!(world.connect_queue(again, 0, 0xffff, 0).cqe.status.code(), StatusCode::CONNECT_INVALID_HOST);
    world.on(|world| world.target.add_host(NQN, HOST)).expect("added");
    assert!(world.connect_queue(again, 0, 0xffff, 0).cqe.status.is_success());
    world.finish();
}

#[test]
fn each_wrong_connect_of_an_io_queue_is_told_what_is_wrong() {
    let world = World::serving(16, &[]);
    let one = world.session("a", 1);
    let two = world.session_of_host("a", 2);
    let wrong = StatusCode::CONNECT_INVALID_PARAMETERS;
    let check = |host: &str, qid, cntlid, code: StatusCode, parameter: Option<InvalidParameter>| {
        let (sqe, data) = connect(NQN, host, qid, cntlid, 0);
        let answer = world.command(world.open("a"), sqe, data).cqe;
        assert_eq!(answer.status.code(), code, "qid {qid} cntlid {cntlid}");
        if let Some(parameter) = parameter {
            assert_eq!(InvalidParameter::from_dw0(answer.dw0), parameter);
        }
    };
    check(HOST, 1, one.cntlid, wrong, Some(InvalidParameter::in_sqe(42)));
    check(HOST, 128, one.cntlid, wrong, Some(InvalidParameter::in_sqe(42)));
    check(HOST, 2, 0xffff, wrong, Some(InvalidParameter::in_data(16)));
    check(HOST, 2, two.cntlid, wrong, Some(InvalidParameter::in_data(16)));
    check(HOST, 0, 0xfffe, wrong, Some(InvalidParameter::in_data(16)));
    check(HOST, 0, one.cntlid, wrong, Some(InvalidParameter::in_data(16)));
    check(HOST, 2, one.cntlid, StatusCode::SUCCESS, None);
    // The same name with another identifier is another host.
    let (sqe, mut data) = connect(NQN, HOST, 3, one.cntlid, 0);
    data[..16].fill(9);
    let answer = world.command(world.open("a"), sqe, data).cqe;
    assert_eq!(InvalidParameter::from_dw0(answer.dw0), InvalidParameter::in_data(16));
    // A controller that is not enabled has no I/O queues.
    let admin = world.open("a");
    let fresh = world.connect_queue(admin, 0, 0xffff, 0).cqe.dw0.get() as u16;
    check(HOST, 1, fresh, StatusCode::COMMAND_SEQUENCE_ERROR, None);
    // A discovery controller has none at all.
    let (sqe, data) = connect(nvme_spec::nqn::DISCOVERY_NQN, HOST, 1, 1, 0);
    let answer = world.command(world.open("a"), sqe, data).cqe;
    assert_eq!(InvalidParameter::from_dw0(answer.dw0), InvalidParameter::in_sqe(42));
    world.finish();
}

#[test]
fn a_subsystem_is_reached_by_its_listeners_and_while_it_has_room() {
    const SMALL: &str = "nqn.2026-01.io.tenon:small";
    let world = World::serving(17, &[]);
    let spec = SubsystemSpec { allow_any_host: true, max_cntlid: 2, ..SubsystemSpec::new(SMALL) };
    world.subsystem(spec);
    world.listen(SMALL, "b");
    let code = |traddr: &str| {
        let (sqe, data) = connect(SMALL, HOST, 0, 0xffff, 0);
        world.status(world.open(traddr), sqe, data)
    };
    assert_eq!(code("a"), StatusCode::CONNECT_INVALID_HOST, "not by a listener of another subsystem");
    assert_eq!((code("b"), code("b")), (StatusCode::SUCCESS, StatusCode::SUCCESS));
    assert_eq!(code("b"), StatusCode::CONNECT_CONTROLLER_BUSY);
    let secure = crate::rig::address("s");
    let listened = world.wait(|world, reply| {
        world.target.add_listener(NQN, &secure, true, AnaState::OPTIMIZED, reply);
    });
    listened.expect("listens");
    let (sqe, data) = connect(NQN, HOST, 0, 0xffff, 0);
    let plain = world.status(world.open("s"), sqe, data);
    assert_eq!(plain, StatusCode::CONNECT_INVALID_HOST, "a plain channel to a secure listener");
    world.finish();
}

#[test]
fn a_connection_that_never_connects_is_closed() {
    let world = World::serving(3, &[]);
    let queue = world.open("a");
    world.advance(Duration::from_secs(11));
    assert!(queue.is_freed.get());
    world.finish();
}

#[test]
fn a_silent_host_loses_its_controller_and_a_busy_one_does_not() {
    let world = World::serving(4, &[("m0", 64)]);
    let silent = world.session_of("a", 1, 1000);
    let busy = world.session_of("a", 1, 1000);
    for _ in 0..6 {
        world.advance(Duration::from_millis(400));
        assert_eq!(world.status(busy.queues[0], read(1, 0, 1), vec![]), StatusCode::SUCCESS);
    }
    assert!(silent.admin.is_freed.get() && silent.queues[0].is_freed.get());
    assert!(busy.admin.is_open());
    world.finish();
}

#[test]
fn a_discovery_controller_that_is_kept_alive_by_nobody_goes_after_two_minutes() {
    let world = World::serving(22, &[]);
    let queue = world.open("a");
    let (sqe, data) = connect(nvme_spec::nqn::DISCOVERY_NQN, HOST, 0, 0xffff, 0);
    assert_eq!(world.status(queue, sqe, data), StatusCode::SUCCESS);
    assert_eq!(world.status(queue, property_set(0x0046_0001), vec![]), StatusCode::SUCCESS);
    world.advance(Duration::from_secs(110));
    assert_eq!(world.status(queue, log_page(0x70, 1024), vec![]), StatusCode::SUCCESS);
    world.advance(Duration::from_secs(110));
    assert!(queue.is_open(), "a command came");
    world.advance(Duration::from_secs(80));
    assert!(queue.is_freed.get());
    // An I/O controller without a time-out stays as long as its connection.
    let host = world.session("a", 1);
    world.advance(Duration::from_secs(3600));
    assert!(host.admin.is_open());
    world.finish();
}

#[test]
fn a_temperature_beyond_a_threshold_is_told_until_the_log_is_read() {
    let world = World::serving(24, &[]);
    let host = world.session("a", 1);
    let set = |fid, value| {
        let set = admin(AdminOpcode::SET_FEATURES, 0, fid, value, 0);
        assert_eq!(world.status(host.admin, set, vec![]), StatusCode::SUCCESS);
    };
    let wait = || {
        let sqe = admin(AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST, 0, 0, 0, 0);
        let event = world.start(host.admin, sqe, vec![]);
        world.settle();
        event
    };
    let warning = || world.command(host.admin, log_page(2, 512), vec![]).data[0];
    let event = wait();
    set(4, 290);
    assert!(event.borrow().is_none(), "the host has not asked for it");
    assert_eq!(warning(), 0b10);
    set(0x0b, 0b10);
    set(4, 280);
    world.settle();
    assert_eq!(event.borrow().as_ref().expect("told").cqe.dw0.get(), 0x0002_0101);
    let again = wait();
    set(4, 270);
    world.settle();
    assert!(again.borrow().is_none(), "the log has not been read");
    assert_eq!(warning(), 0b10);
    set(4, 343);
    assert_eq!((warning(), again.borrow().is_none()), (0, true));
    // Too cold.
    set(4, 1 << 20 | 300);
    world.settle();
    assert!(again.borrow().is_some());
    let get =
        |select| world.command(host.admin, admin(AdminOpcode::GET_FEATURES, 0, 4, select, 0), vec![]).cqe;
    assert_eq!((get(0).dw0.get(), get(1 << 20).dw0.get()), (343, 300));
    assert_eq!(get(1 << 16).status.code(), StatusCode::INVALID_FIELD, "there is no sensor 1");
    world.finish();
}

#[test]
fn io_commands_do_what_they_say() {
    let world = World::serving(5, &[("m0", 256)]);
    let host = world.session("a", 1);
    let queue = host.queues[0];
    let data = pattern(9, 1024);
    let (sqe, out) = write(1, 0, &data);
    assert_eq!(world.status(queue, sqe, out), StatusCode::SUCCESS);
    let compare = rw(IoOpcode::COMPARE, 1, 0, 2, 1024);
    assert_eq!(world.status(queue, compare, data.clone()), StatusCode::SUCCESS);
    assert_eq!(world.status(queue, compare, pattern(8, 1024)), StatusCode::COMPARE_FAILURE);
    // Copy blocks 0 and 1 to 10 and 11.
    let mut range = vec![0; 32];
    range[16] = 1;
    let mut copy = rw(IoOpcode::COPY, 1, 10, 1, 32);
    copy.cdw12.set(0);
    assert_eq!(world.status(queue, copy, range.clone()), StatusCode::SUCCESS);
    assert_eq!(world.command(queue, read(1, 10, 2), vec![]).data, data);
    range[8] = 255;
    assert_eq!(world.status(queue, copy, range), StatusCode::LBA_OUT_OF_RANGE);
    assert_eq!(world.status(queue, rw(IoOpcode::WRITE_ZEROES, 1, 0, 1, 0), vec![]), StatusCode::SUCCESS);
    assert_eq!(world.command(queue, read(1, 0, 1), vec![]).data, vec![0; 512]);
    // Deallocate block 1 and, in a second range, block 11.
    let mut ranges = vec![0; 32];
    (ranges[4], ranges[8], ranges[20], ranges[24]) = (1, 1, 1, 11);
    let mut dsm = rw(IoOpcode::DATASET_MANAGEMENT, 1, 0, 1, 32);
    dsm.cdw10.set(1);
    dsm.cdw11.set(4);
    assert_eq!(world.status(queue, dsm, ranges.clone()), StatusCode::SUCCESS);
    // Some hosts always send the whole list of 256 ranges.
    let mut whole = rw(IoOpcode::DATASET_MANAGEMENT, 1, 0, 1, 4096);
    (whole.cdw10, whole.cdw11) = (dsm.cdw10, dsm.cdw11);
    let list = [ranges, vec![0; 4096 - 32]].concat();
    assert_eq!(world.status(queue, whole, list), StatusCode::SUCCESS);
    assert_eq!(world.command(queue, read(1, 11, 1), vec![]).data, vec![0; 512]);
    assert_eq!(world.status(queue, rw(IoOpcode::FLUSH, 1, 0, 1, 0), vec![]), StatusCode::SUCCESS);
    assert_eq!(world.status(queue, rw(IoOpcode::VERIFY, 1, 0, 8, 0), vec![]), StatusCode::SUCCESS);
    let uncorrectable = rw(IoOpcode::WRITE_UNCORRECTABLE, 1, 0, 1, 0);
    assert_eq!(world.status(queue, uncorrectable, vec![]), StatusCode::INVALID_OPCODE);
    assert_eq!(world.status(queue, read(1, 255, 2), vec![]), StatusCode::LBA_OUT_OF_RANGE);
    assert_eq!(world.status(queue, read(2, 0, 1), vec![]), StatusCode::INVALID_NAMESPACE_OR_FORMAT);
    let errors = world.command(host.admin, log_page(1, 64), vec![]).data;
    assert_eq!(errors[8], 1, "the newest error is of queue 1");
    world.finish();
}

/// Sends a fused pair for block 4: what is to be there, and what is to be there afterwards.
fn fused(world: &World, queue: &'static Connection, first: &[u8], second: &[u8]) -> (StatusCode, StatusCode) {
    let mut compare = rw(IoOpcode::COMPARE, 1, 4, 1, 512);
    compare.flags = CommandFlags::PSDT_SGL.with(CommandFlags::FUSE_FIRST);
    let (mut sqe, out) = write(1, 4, second);
    sqe.flags = CommandFlags::PSDT_SGL.with(CommandFlags::FUSE_SECOND);
    let one = world.start(queue, compare, first.to_vec());
    let two = world.start(queue, sqe, out);
    world.settle();
    let code = |reply: &crate::rig::Reply| reply.borrow().as_ref().expect("done").cqe.status.code();
    (code(&one), code(&two))
}

#[test]
fn a_device_that_only_reads_and_writes_serves_what_the_gate_makes_of_that() {
    let world = World::serving(21, &[]);
    world.device(json!({ "name": "p0", "blocks": 64, "plain": true }));
    world.namespace(NQN, "p0");
    let host = world.session("a", 1);
    let queue = host.queues[0];
    let data = pattern(5, 512);
    assert_eq!(fused(&world, queue, &[0; 512], &data), (StatusCode::SUCCESS, StatusCode::SUCCESS));
    let failed = (StatusCode::COMPARE_FAILURE, StatusCode::ABORTED_FAILED_FUSED);
    assert_eq!(fused(&world, queue, &[0; 512], &[1; 512]), failed);
    assert_eq!(world.status(queue, rw(IoOpcode::COMPARE, 1, 4, 1, 512), data), StatusCode::SUCCESS);
    assert_eq!(world.status(queue, rw(IoOpcode::WRITE_ZEROES, 1, 4, 1, 0), vec![]), StatusCode::SUCCESS);
    assert_eq!(world.status(queue, rw(IoOpcode::FLUSH, 1, 0, 1, 0), vec![]), StatusCode::SUCCESS);
    assert_eq!(world.status(queue, rw(IoOpcode::COPY, 1, 0, 1, 32), vec![0; 32]), StatusCode::INVALID_OPCODE);
    let id = world.command(host.admin, admin(AdminOpcode::IDENTIFY, 0, 1, 0, 4096), vec![]).data;
    let id = IdentifyController::read_from_bytes(&id).expect("4096 bytes");
    assert!(id.oncs.contains(Oncs::COMPARE) && !id.oncs.contains(Oncs::COPY));
    assert!(id.fuses.contains(Fuses::COMPARE_AND_WRITE));
    world.finish();
}

#[test]
fn a_fused_pair_compares_and_writes_in_one_step() {
    let world = World::serving(6, &[("m0", 64)]);
    let host = world.session("a", 1);
    let queue = host.queues[0];
    let data = pattern(3, 512);
    assert_eq!(fused(&world, queue, &[0; 512], &data), (StatusCode::SUCCESS, StatusCode::SUCCESS));
    let failed = (StatusCode::COMPARE_FAILURE, StatusCode::ABORTED_FAILED_FUSED);
    assert_eq!(fused(&world, queue, &[0; 512], &[1; 512]), failed);
    assert_eq!(world.command(queue, read(1, 4, 1), vec![]).data, data);
    let mut alone = rw(IoOpcode::COMPARE, 1, 4, 1, 512);
    alone.flags = CommandFlags::PSDT_SGL.with(CommandFlags::FUSE_FIRST);
    let first = world.start(queue, alone, data.clone());
    world.settle();
    assert!(first.borrow().is_none(), "it waits for its second half");
    assert_eq!(world.status(queue, read(1, 0, 1), vec![]), StatusCode::SUCCESS);
    let status = first.borrow().as_ref().expect("ended").cqe.status.code();
    assert_eq!(status, StatusCode::ABORTED_MISSING_FUSED);
    world.finish();
}

#[test]
fn lent_memory_is_returned() {
    let world = World::new(7);
    world.subsystem(SubsystemSpec { allow_any_host: true, ..SubsystemSpec::new(NQN) });
    world.listen(NQN, "a");
    world.device(json!({ "name": "l0", "blocks": 64, "lends": true }));
    world.namespace(NQN, "l0");
    let host = world.session("a", 1);
    let (sqe, out) = write(1, 0, &pattern(1, 2048));
    assert_eq!(world.status(host.queues[0], sqe, out), StatusCode::SUCCESS);
    assert_eq!(world.command(host.queues[0], read(1, 0, 4), vec![]).data, pattern(1, 2048));
    assert_eq!(crate::rig::device::lent("l0"), 0);
    world.finish();
}

#[test]
fn a_removed_device_takes_its_namespace_along_and_the_host_hears() {
    let world = World::serving(8, &[("m0", 64), ("m1", 64)]);
    let host = world.session("a", 1);
    let mut configure = admin(AdminOpcode::SET_FEATURES, 0, 0x0b, 1 << 8 | 1 << 11, 0);
    assert_eq!(world.status(host.admin, configure, vec![]), StatusCode::SUCCESS);
    let event = world.start(host.admin, admin(AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST, 0, 0, 0, 0), vec![]);
    world.settle();
    assert!(event.borrow().is_none());
    world.wait(|world, reply| world.core.delete("m0", None, reply)).expect("deleted");
    assert_eq!(event.borrow().as_ref().expect("told").cqe.dw0.get(), 0x0004_0002);
    assert_eq!(world.status(host.queues[0], read(1, 0, 1), vec![]), StatusCode::INVALID_NAMESPACE_OR_FORMAT);
    assert_eq!(world.status(host.queues[0], read(2, 0, 1), vec![]), StatusCode::SUCCESS);
    let changed = world.command(host.admin, log_page(4, 4096), vec![]).data;
    assert_eq!(changed[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    configure.cdw11.set(0);
    assert_eq!(world.status(host.admin, configure, vec![]), StatusCode::SUCCESS);
    crate::rig::device::set_delay("m1", 0);
    world.on(|_| crate::rig::device::resize("m1", 128));
    world.settle();
    assert_eq!(world.status(host.queues[0], read(2, 127, 1), vec![]), StatusCode::SUCCESS);
    world.finish();
}

#[test]
fn a_paused_subsystem_holds_io_and_serves_the_rest() {
    let world = World::serving(9, &[("m0", 64)]);
    let host = world.session("a", 1);
    let pause = Duration::from_secs(5);
    world.wait(|world, reply| world.target.pause_subsystem(NQN, pause, reply)).expect("paused");
    let held = world.start(host.queues[0], read(1, 0, 1), vec![]);
    let mut second = read(1, 1, 1);
    second.cid.set(77);
    let aborted = world.start(host.queues[0], second, vec![]);
    assert_eq!(
        world.status(host.admin, admin(AdminOpcode::KEEP_ALIVE, 0, 0, 0, 0), vec![]),
        StatusCode::SUCCESS
    );
    let abort = admin(AdminOpcode::ABORT, 0, 77 << 16 | 1, 0, 0);
    assert_eq!(world.command(host.admin, abort, vec![]).cqe.dw0.get(), 0);
    world.settle();
    let status = aborted.borrow().as_ref().expect("aborted").cqe.status.code();
    assert_eq!(status, StatusCode::ABORTED_BY_REQUEST);
    assert!(held.borrow().is_none());
    world.advance(Duration::from_secs(6));
    assert!(held.borrow().as_ref().expect("resumed at the deadline").cqe.status.is_success());
    world.finish();
}

#[test]
fn a_limited_host_is_held_to_its_rate_and_no_other_is() {
    let world = World::serving(14, &[("m0", 64)]);
    let hosts = [1, 2].map(|host| world.session_of_host("a", host));
    let limits = QosLimits { rw_ios_per_sec: 100, ..QosLimits::default() };
    let unknown = world.on(|world| world.target.set_host_limits(NQN, &crate::rig::host_nqn(1), limits));
    assert!(unknown.expect_err("not in the list").to_string().contains("host1"));
    world.on(|world| world.target.add_host(NQN, &crate::rig::host_nqn(1))).expect("added");
    let set = |limits| {
        world.on(|world| world.target.set_host_limits(NQN, &crate::rig::host_nqn(1), limits)).expect("set");
        world.settle();
    };
    set(limits);
    let burst = |host: &crate::rig::Session| -> Vec<_> {
        (0..30).map(|at| world.start(host.queues[0], read(1, at, 1), vec![])).collect()
    };
    let ended =
        |replies: &[crate::rig::Reply]| replies.iter().filter(|reply| reply.borrow().is_some()).count();
    let (slow, free) = (burst(&hosts[0]), burst(&hosts[1]));
    world.settle();
    assert_eq!(ended(&free), 30);
    assert!(ended(&slow) < 3, "{}", ended(&slow));
    world.advance(Duration::from_millis(100));
    assert!((8..13).contains(&ended(&slow)), "{}", ended(&slow));
    // One that waits can be aborted, and the rest go when the limits do.
    let mut last = read(1, 40, 1);
    last.cid.set(99);
    let aborted = world.start(hosts[0].queues[0], last, vec![]);
    let abort = admin(AdminOpcode::ABORT, 0, 99 << 16 | 1, 0, 0);
    assert_eq!(world.command(hosts[0].admin, abort, vec![]).cqe.dw0.get(), 0);
    let code = aborted.borrow().as_ref().expect("aborted").cqe.status.code();
    assert_eq!(code, StatusCode::ABORTED_BY_REQUEST);
    set(QosLimits::default());
    assert_eq!(ended(&slow), 30);
    // A connection that goes takes its waiting commands along.
    set(limits);
    burst(&hosts[0]);
    world.settle();
    host_drops(&world, hosts[0].queues[0]);
    world.finish();
}

#[test]
fn limits_of_a_namespace_are_its_devices() {
    let world = World::serving(15, &[("m0", 64)]);
    let limits = QosLimits { rw_ios_per_sec: 1000, ..QosLimits::default() };
    world.wait(|world, reply| world.target.set_namespace_limits(NQN, 1, limits, reply)).expect("set");
    let wrong = world.wait(|world, reply| world.target.set_namespace_limits(NQN, 2, limits, reply));
    assert!(wrong.expect_err("no such namespace").to_string().contains("no namespace 2"));
    world.finish();
}

#[test]
fn a_host_that_understands_it_is_told_how_long_to_wait() {
    let world = World::serving(18, &[("m0", 64)]);
    let host = world.session("a", 1);
    let failed = |status: i32| {
        crate::rig::device::fail_next("m0", status);
        let status = world.command(host.queues[0], read(1, 0, 1), vec![]).cqe.status;
        (status.code(), status.crd())
    };
    let away = tenon_abi::errno::ENODEV;
    assert_eq!(failed(away), (StatusCode::NAMESPACE_NOT_READY, 0));
    let mut behavior = vec![0; 512];
    behavior[0] = 1;
    let set = admin(AdminOpcode::SET_FEATURES, 0, 0x16, 0, 512);
    assert_eq!(world.status(host.admin, set, behavior), StatusCode::SUCCESS);
    assert_eq!(failed(away), (StatusCode::NAMESPACE_NOT_READY, 2));
    assert_eq!(failed(tenon_abi::errno::EAGAIN), (StatusCode::COMMAND_INTERRUPTED, 1));
    assert_eq!(failed(tenon_abi::errno::EIO), (StatusCode::INTERNAL_ERROR, 0));
    world.finish();
}

#[test]
fn modules_get_transports_by_name() {
    use std::cell::RefCell;
    use std::ffi::c_void;
    use tenon_abi::transport::initiator::{TransportFn, TransportTableApiV2};
    use tenon_abi::transport::{QUERY_TARGET, QUERY_TRANSPORT_TABLE, TransportV1};
    thread_local! {
        static ANSWERS: RefCell<Vec<(bool, String)>> = const { RefCell::new(Vec::new()) };
    }
    unsafe extern "C" fn answered(_: *mut c_void, transport: *const TransportV1, reason: tenon_abi::Str) {
        // SAFETY: the text is readable during the call.
        let reason = unsafe { reason.as_str() }.unwrap_or_default().to_owned();
        ANSWERS.with(|answers| answers.borrow_mut().push((!transport.is_null(), reason)));
    }
    let world = World::new(19);
    world.on(|world| {
        let query = tenon_bdev::host_api().query;
        // SAFETY: the host's functions, on the control reactor, with texts that live during the calls.
        unsafe {
            assert!(!query(tenon_abi::Str::new(QUERY_TARGET), 1).is_null());
            let table: *const TransportTableApiV2 =
                query(tenon_abi::Str::new(QUERY_TRANSPORT_TABLE), 2).cast();
            let ask = |name| {
                let name = tenon_abi::Str::new(name);
                ((*table).acquire)(std::ptr::null_mut(), name, TransportFn(answered), std::ptr::null_mut())
            };
            assert_eq!(ask("NONE"), 0);
            assert_eq!(ask("../x"), tenon_abi::errno::EINVAL);
        }
        assert_eq!(world.target.transport_users(), []);
    });
    world.settle();
    let answers = ANSWERS.take();
    assert_eq!(answers.len(), 1);
    assert!(!answers[0].0 && answers[0].1.contains("transport_none"), "{answers:?}");
    world.finish();
}

#[test]
fn ana_states_are_per_listener() {
    let world = World::serving(10, &[("m0", 64)]);
    world.listen(NQN, "b");
    let (one, two) = (world.session("a", 1), world.session("b", 1));
    let set = |state| {
        world
            .on(|world| world.target.set_ana_state(NQN, &crate::rig::address("a"), state, None))
            .expect("set")
    };
    set(AnaState::INACCESSIBLE);
    world.settle();
    assert_eq!(world.status(one.queues[0], read(1, 0, 1), vec![]), StatusCode::ANA_INACCESSIBLE);
    assert_eq!(world.status(two.queues[0], read(1, 0, 1), vec![]), StatusCode::SUCCESS);
    let log = world.command(one.admin, log_page(0x0c, 52), vec![]).data;
    assert_eq!((log[8], log[16], log[32], log[48]), (1, 1, AnaState::INACCESSIBLE.0, 1));
    set(AnaState::NON_OPTIMIZED);
    world.settle();
    assert_eq!(world.status(one.queues[0], read(1, 0, 1), vec![]), StatusCode::SUCCESS);
    world
        .wait(|world, reply| world.target.remove_listener(NQN, &crate::rig::address("a"), reply))
        .expect("removed");
    assert!(one.admin.is_freed.get() && two.admin.is_open());
    world.finish();
}

#[test]
fn a_group_that_stays_in_change_becomes_inaccessible_after_the_transition_time() {
    let world = World::serving(21, &[("m0", 64)]);
    let host = world.session("a", 1);
    let configure = admin(AdminOpcode::SET_FEATURES, 0, 0x0b, 1 << 11, 0);
    assert_eq!(world.status(host.admin, configure, vec![]), StatusCode::SUCCESS);
    let set = |state, group| {
        world
            .on(|world| world.target.set_ana_state(NQN, &crate::rig::address("a"), state, group))
            .expect("set");
        world.settle();
    };
    let read = || world.status(host.queues[0], read(1, 0, 1), vec![]);
    let log = || world.command(host.admin, log_page(0x0c, 52), vec![]).data;
    for group in [None, Some(1)] {
        set(AnaState::CHANGE, group);
        world.advance(Duration::from_secs(9));
        assert_eq!(read(), StatusCode::ANA_TRANSITION);
        let event =
            world.start(host.admin, admin(AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST, 0, 0, 0, 0), vec![]);
        let before = log()[0];
        world.settle();
        event.borrow_mut().take();
        let event =
            world.start(host.admin, admin(AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST, 0, 0, 0, 0), vec![]);
        world.advance(Duration::from_secs(2));
        assert_eq!(read(), StatusCode::ANA_INACCESSIBLE);
        assert_eq!(event.borrow().as_ref().expect("an event").cqe.dw0.get() >> 8 & 0xff, 3);
        let page = log();
        assert_eq!((page[0], page[32]), (before + 1, AnaState::INACCESSIBLE.0));
        // What was said meanwhile holds, and a new transition has its own time.
        set(AnaState::CHANGE, group);
        world.advance(Duration::from_secs(6));
        set(AnaState::OPTIMIZED, group);
        world.advance(Duration::from_secs(6));
        assert_eq!(read(), StatusCode::SUCCESS);
        set(AnaState::CHANGE, group);
        world.advance(Duration::from_secs(6));
        set(AnaState::CHANGE, group);
        world.advance(Duration::from_secs(6));
        assert_eq!(read(), StatusCode::ANA_TRANSITION);
        set(AnaState::OPTIMIZED, group);
    }
    world.finish();
}

#[test]
fn discovery_shows_what_a_host_may_use() {
    let world = World::serving(11, &[]);
    let spec = SubsystemSpec::new("nqn.2026-01.io.tenon:private");
    world.subsystem(spec);
    world.listen("nqn.2026-01.io.tenon:private", "a");
    let queue = world.open("a");
    let (sqe, data) = connect(nvme_spec::nqn::DISCOVERY_NQN, HOST, 0, 0xffff, 0);
    assert_eq!(world.status(queue, sqe, data), StatusCode::SUCCESS);
    assert_eq!(world.status(queue, property_set(0x0046_0001), vec![]), StatusCode::SUCCESS);
    let log = world.command(queue, log_page(0x70, 4096), vec![]).data;
    assert_eq!(log[8], 2, "the discovery service and one subsystem");
    assert_eq!(&log[1024 * 2 + 256..][..NQN.len()], NQN.as_bytes());
    world.on(|world| world.target.add_host("nqn.2026-01.io.tenon:private", HOST)).expect("added");
    assert_eq!(world.command(queue, log_page(0x70, 4096), vec![]).data[8], 3);
    world.finish();
}

#[test]
fn every_log_page_and_feature_answers() {
    let world = World::serving(12, &[("m0", 64)]);
    let host = world.session("a", 1);
    for (lid, len) in
        [(0, 1024), (1, 4096), (2, 512), (3, 512), (4, 4096), (5, 4096), (0x0c, 64), (0x12, 1024), (0x80, 64)]
    {
        assert_eq!(world.status(host.admin, log_page(lid, len), vec![]), StatusCode::SUCCESS, "log {lid:#x}");
    }
    assert_eq!(world.status(host.admin, log_page(0x81, 64), vec![]), StatusCode::INVALID_LOG_PAGE);
    for (fid, len) in [
        (1, 0),
        (2, 0),
        (4, 0),
        (5, 0),
        (6, 0),
        (7, 0),
        (11, 0),
        (15, 0),
        (0x10, 0),
        (0x16, 512),
        (0x80, 0),
        (0x81, 16),
    ] {
        let get = admin(AdminOpcode::GET_FEATURES, 0, fid, 1, len);
        assert_eq!(world.status(host.admin, get, vec![]), StatusCode::SUCCESS, "feature {fid:#x}");
    }
    let protect = admin(AdminOpcode::SET_FEATURES, 1, 0x84, 1, 0);
    assert_eq!(world.status(host.admin, protect, vec![]), StatusCode::SUCCESS);
    world.settle();
    let (sqe, out) = write(1, 0, &[1; 512]);
    assert_eq!(world.status(host.queues[0], sqe, out), StatusCode::NAMESPACE_WRITE_PROTECTED);
    for (cns, nsid) in [
        (4, 0),
        (0x10, 0),
        (0x11, 1),
        (0x12, 1),
        (0x14, 0),
        (0x15, 0),
        (0x16, 0),
        (0x19, 0),
        (0, 1),
        (1, 0),
        (2, 0),
        (3, 1),
        (5, 1),
        (6, 0),
        (7, 0),
        (8, 1),
        (0x13, 0),
        (0x1c, 0),
    ] {
        let identify = admin(AdminOpcode::IDENTIFY, nsid, cns, 0, 4096);
        assert_eq!(world.status(host.admin, identify, vec![]), StatusCode::SUCCESS, "cns {cns:#x}");
    }
    let nothing = admin(AdminOpcode::IDENTIFY, 1, 0x18, 0, 4096);
    assert_eq!(world.status(host.admin, nothing, vec![]), StatusCode::INVALID_FIELD);
    let unknown = admin(AdminOpcode::FORMAT_NVM, 1, 0, 0, 0);
    assert_eq!(world.status(host.admin, unknown, vec![]), StatusCode::INVALID_OPCODE);
    world.finish();
}

#[test]
fn what_is_uniform_here_is_told_all_the_same() {
    let world = World::serving(20, &[("m0", 64)]);
    let host = world.session("a", 1);
    let sets = world.command(host.admin, admin(AdminOpcode::IDENTIFY, 0, 4, 0, 4096), vec![]).data;
    assert_eq!((sets[0], sets[128], sets[130], sets[144..148].to_vec()), (1, 1, 1, vec![0, 0x80, 0, 0]));
    let feature = |opcode, cdw11| world.command(host.admin, admin(opcode, 0, 0x18, cdw11, 0), vec![]).cqe;
    assert!(feature(AdminOpcode::SET_FEATURES, 0x0004_0001).status.is_success());
    assert_eq!(feature(AdminOpcode::GET_FEATURES, 1).dw0.get(), 0x0004_0001);
    assert_eq!(feature(AdminOpcode::GET_FEATURES, 2).status.code(), StatusCode::INVALID_FIELD);
    assert_eq!(feature(AdminOpcode::SET_FEATURES, 2).status.code(), StatusCode::INVALID_FIELD);
    let mut wear = log_page(9, 512);
    assert_eq!(world.status(host.admin, wear, vec![]), StatusCode::INVALID_FIELD, "no group");
    wear.cdw11.set(1 << 16);
    assert_eq!(world.command(host.admin, wear, vec![]).data[161], 0x80);
    for (tmt1, tmt2, code) in [
        (300, 320, StatusCode::SUCCESS),
        (320, 300, StatusCode::INVALID_FIELD),
        (0, 400, StatusCode::INVALID_FIELD),
    ] {
        let set = admin(AdminOpcode::SET_FEATURES, 0, 0x10, tmt1 << 16 | tmt2, 0);
        assert_eq!(world.status(host.admin, set, vec![]), code, "{tmt1} {tmt2}");
    }
    world.finish();
}

#[test]
fn shutdown_and_disconnect_end_queues() {
    let world = World::serving(13, &[("m0", 64)]);
    let host = world.session("a", 2);
    let mut disconnect = property_set(0);
    disconnect.nsid.set(u32::from(nvme_spec::opcode::FabricsType::DISCONNECT.0));
    disconnect.as_mut_bytes()[40..].fill(0);
    assert_eq!(world.status(host.queues[0], disconnect, vec![]), StatusCode::SUCCESS);
    world.settle();
    assert!(host.queues[0].is_freed.get() && host.queues[1].is_open());
    assert_eq!(world.status(host.admin, disconnect, vec![]), StatusCode::DISCONNECT_INVALID_QUEUE_TYPE);
    assert_eq!(world.status(host.admin, property_set(0x0046_4001), vec![]), StatusCode::SUCCESS);
    world.settle();
    assert!(host.queues[1].is_freed.get() && host.admin.is_open());
    host_drops(&world, host.admin);
    world.finish();
}

fn host_drops(world: &World, queue: &'static crate::transport::Connection) {
    world.on_queue(queue, || queue.drop_by_peer());
    world.settle();
    assert!(queue.is_freed.get());
}
