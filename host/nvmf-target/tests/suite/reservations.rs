//! Reservations as hosts use them: who is let in, who is told, what survives.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::rig::{NQN, Session, World, admin, log_page, read, rw, write};
use nvme_spec::command::Sqe;
use nvme_spec::opcode::{AdminOpcode, IoOpcode};
use nvme_spec::status::StatusCode;
use serde_json::json;
use tenon_nvmf_target::{NamespaceSpec, SubsystemSpec, TargetOptions};

const CONFLICT: StatusCode = StatusCode::RESERVATION_CONFLICT;
pub const OK: StatusCode = StatusCode::SUCCESS;

/// A reservation command with these keys as its data.
pub fn command(opcode: IoOpcode, cdw10: u32, data: &[u64]) -> (Sqe, Vec<u8>) {
    let data: Vec<u8> = data.iter().flat_map(|key| key.to_le_bytes()).collect();
    let mut sqe = rw(opcode, 1, 0, 1, data.len());
    sqe.cdw10.set(cdw10);
    sqe.cdw11.set(0);
    sqe.cdw12.set(0);
    (sqe, data)
}

pub fn register(action: u32, key: u64, new_key: u64) -> (Sqe, Vec<u8>) {
    command(IoOpcode::RESERVATION_REGISTER, action, &[key, new_key])
}

pub fn acquire(action: u32, rtype: u32, key: u64, victim: u64) -> (Sqe, Vec<u8>) {
    command(IoOpcode::RESERVATION_ACQUIRE, rtype << 8 | action, &[key, victim])
}

fn release(action: u32, rtype: u32, key: u64) -> (Sqe, Vec<u8>) {
    command(IoOpcode::RESERVATION_RELEASE, rtype << 8 | action, &[key])
}

pub fn report(len: usize) -> Sqe {
    let mut sqe = rw(IoOpcode::RESERVATION_REPORT, 1, 0, 1, len);
    sqe.cdw10.set(len as u32 / 4 - 1);
    sqe.cdw11.set(1);
    sqe.cdw12.set(0);
    sqe
}

#[track_caller]
pub fn check(world: &World, host: &Session, (sqe, data): (Sqe, Vec<u8>), expected: StatusCode) {
    assert_eq!(world.status(host.queues[0], sqe, data), expected);
}

#[track_caller]
pub fn may(world: &World, host: &Session, reads: bool, writes: bool) {
    let code = |may| if may { OK } else { CONFLICT };
    check(world, host, (read(1, 0, 1), vec![]), code(reads));
    check(world, host, write(1, 0, &[1; 512]), code(writes));
    check(world, host, (rw(IoOpcode::FLUSH, 1, 0, 1, 0), vec![]), code(writes));
    check(world, host, (rw(IoOpcode::VERIFY, 1, 0, 1, 0), vec![]), code(reads));
    check(world, host, (rw(IoOpcode::WRITE_ZEROES, 1, 0, 1, 0), vec![]), code(writes));
    let mut range = vec![0; 16];
    range[4] = 1;
    let mut hint = rw(IoOpcode::DATASET_MANAGEMENT, 1, 0, 1, 16);
    hint.cdw10.set(0);
    hint.cdw11.set(0);
    check(world, host, (hint, range), code(writes));
    let copy = rw(IoOpcode::COPY, 1, 10, 1, 32);
    check(world, host, (copy, vec![0; 32]), code(writes));
}

#[test]
fn every_type_lets_in_whom_it_says_on_every_command() {
    let world = World::serving(1, &[("m0", 64)]);
    let hosts = [1, 2, 3].map(|host| world.session_of_host("a", host));
    check(&world, &hosts[0], register(0, 0, 10), OK);
    check(&world, &hosts[1], register(0, 0, 20), OK);
    for (rtype, registrant, stranger) in [
        (1, (true, false), (true, false)),
        (2, (false, false), (false, false)),
        (3, (true, true), (true, false)),
        (4, (true, true), (false, false)),
        (5, (true, true), (true, false)),
        (6, (true, true), (false, false)),
    ] {
        check(&world, &hosts[0], acquire(0, rtype, 10, 0), OK);
        may(&world, &hosts[0], true, true);
        may(&world, &hosts[1], registrant.0, registrant.1);
        may(&world, &hosts[2], stranger.0, stranger.1);
        let held = world.command(hosts[2].queues[0], report(64 * 3), vec![]).data;
        assert_eq!((held[4], held[5], held[64 + 2]), (rtype as u8, 2, 1), "anybody may ask");
        check(&world, &hosts[0], release(0, rtype, 10), OK);
        may(&world, &hosts[2], true, true);
    }
    world.finish();
}

#[test]
fn a_second_queue_and_controller_of_the_holder_are_the_holder() {
    let world = World::serving(2, &[("m0", 64)]);
    let (one, two) = (world.session_of_host("a", 1), world.session_of_host("a", 1));
    check(&world, &one, register(0, 0, 10), OK);
    check(&world, &two, acquire(0, 2, 10, 0), OK);
    may(&world, &one, true, true);
    may(&world, &two, true, true);
    let held = world.command(one.queues[0], report(64 * 3), vec![]).data;
    assert_eq!(held[5], 2, "a report has both controllers");
    assert_eq!([held[64], held[128]].map(u16::from), [one.cntlid, two.cntlid]);
    world.on_queue(two.admin, || two.admin.drop_by_peer());
    world.settle();
    may(&world, &one, true, true);
    world.finish();
}

#[test]
fn wrong_fields_are_refused() {
    let world = World::serving(3, &[("m0", 64)]);
    let host = world.session_of_host("a", 1);
    let invalid = StatusCode::INVALID_FIELD;
    check(&world, &host, register(3, 0, 1), invalid);
    check(&world, &host, register(0, 0, 0), invalid);
    check(&world, &host, register(0b01 << 30, 0, 1), invalid);
    // No file: nothing can persist.
    check(&world, &host, register(0b11 << 30, 0, 1), invalid);
    check(&world, &host, register(0, 0, 1), OK);
    check(&world, &host, acquire(0, 0, 1, 0), invalid);
    check(&world, &host, acquire(0, 7, 1, 0), invalid);
    check(&world, &host, acquire(3, 1, 1, 0), invalid);
    check(&world, &host, acquire(1 << 3, 1, 1, 0), invalid);
    check(&world, &host, release(2, 1, 1), invalid);
    check(&world, &host, release(1 << 3, 1, 1), invalid);
    check(&world, &host, release(0, 1, 9), CONFLICT);
    let (mut sqe, data) = register(0, 0, 1);
    sqe.nsid.set(2);
    check(&world, &host, (sqe, data), StatusCode::INVALID_NAMESPACE_OR_FORMAT);
    let mut short = report(64);
    short.cdw11.set(0);
    check(&world, &host, (short, vec![]), StatusCode::HOST_IDENTIFIER_INCONSISTENT_FORMAT);
    let (mut sqe, data) = register(0, 0, 1);
    sqe.dptr.0[8] = 8;
    check(&world, &host, (sqe, data), StatusCode::DATA_SGL_LENGTH_INVALID);
    world.finish();
}

#[test]
fn preempted_hosts_are_told_by_event_and_log_unless_masked() {
    let world = World::serving(4, &[("m0", 64)]);
    let hosts = [1, 2].map(|host| world.session_of_host("a", host));
    let event =
        || world.start(hosts[0].admin, admin(AdminOpcode::ASYNCHRONOUS_EVENT_REQUEST, 0, 0, 0, 0), vec![]);
    let told = event();
    check(&world, &hosts[0], register(0, 0, 10), OK);
    check(&world, &hosts[1], register(0, 0, 20), OK);
    check(&world, &hosts[0], acquire(0, 1, 10, 0), OK);
    check(&world, &hosts[1], acquire(1, 3, 20, 10), OK);
    may(&world, &hosts[0], true, false);
    world.settle();
    assert_eq!(told.borrow().as_ref().expect("told").cqe.dw0.get(), 0x0080_0006);
    let log = |host: &Session| world.command(host.admin, log_page(0x80, 64), vec![]).data;
    let page = log(&hosts[0]);
    assert_eq!((page[0], page[8], page[9], page[12]), (1, 1, 0, 1), "registration preempted");
    assert_eq!(log(&hosts[0])[8], 0, "and nothing more");
    assert_eq!(log(&hosts[1])[8], 0, "who preempts knows");
    let mask = admin(AdminOpcode::SET_FEATURES, 1, 0x82, 0b1110, 0);
    assert_eq!(world.status(hosts[0].admin, mask, vec![]), OK);
    let get = admin(AdminOpcode::GET_FEATURES, 1, 0x82, 0, 0);
    assert_eq!(world.command(hosts[1].admin, get, vec![]).cqe.dw0.get(), 0b1110);
    check(&world, &hosts[0], register(0, 0, 10), OK);
    check(&world, &hosts[1], release(1, 0, 20), OK);
    assert_eq!(log(&hosts[0])[8], 0, "masked");
    let unmask = admin(AdminOpcode::SET_FEATURES, 0xffff_ffff, 0x82, 0, 0);
    assert_eq!(world.status(hosts[0].admin, unmask, vec![]), OK);
    check(&world, &hosts[0], register(0, 0, 10), OK);
    check(&world, &hosts[1], register(0, 0, 20), OK);
    check(&world, &hosts[1], release(1, 0, 20), OK);
    assert_eq!(log(&hosts[0])[8], 3, "reservation preempted, by clear");
    world.finish();
}

#[test]
fn preempt_and_abort_ends_what_is_under_way_and_waits_for_it() {
    let world = World::serving(5, &[("m0", 64)]);
    let hosts = [1, 2].map(|host| world.session_of_host("a", host));
    check(&world, &hosts[0], register(0, 0, 10), OK);
    check(&world, &hosts[1], register(0, 0, 20), OK);
    check(&world, &hosts[0], acquire(0, 1, 10, 0), OK);
    crate::rig::device::set_delay("m0", 5_000_000);
    let slow: Vec<_> = (0..4).map(|at| world.start(hosts[0].queues[0], read(1, at, 1), vec![])).collect();
    let other = world.start(hosts[1].queues[0], read(1, 9, 1), vec![]);
    world.settle();
    check(&world, &hosts[1], acquire(2, 2, 20, 10), OK);
    for reply in &slow {
        let code = reply.borrow().as_ref().expect("ended").cqe.status.code();
        assert_eq!(code, StatusCode::ABORTED_PREEMPT_AND_ABORT);
    }
    assert!(other.borrow().is_none(), "the preempting host's own command goes on");
    crate::rig::device::set_delay("m0", 0);
    may(&world, &hosts[0], false, false);
    world.advance(Duration::from_secs(6));
    assert!(other.borrow().as_ref().expect("ended").cqe.status.is_success());
    world.finish();
}

pub fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("tenon-reservations-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// A target whose namespaces keep their reservations in `folder`.
pub fn keeping(seed: u64, folder: &Path) -> World {
    let options = TargetOptions { reservation_folder: Some(folder.to_owned()), ..TargetOptions::default() };
    let world = World::with(seed, options);
    world.subsystem(SubsystemSpec { allow_any_host: true, ..SubsystemSpec::new(NQN) });
    world.listen(NQN, "a");
    world.device(json!({ "name": "m0", "blocks": 64 }));
    world
}

pub fn add(world: &World) -> Result<u32, String> {
    let spec = NamespaceSpec {
        bdev_name: "m0".into(),
        uuid: Some(uuid::Uuid::from_u128(5)),
        ..NamespaceSpec::default()
    };
    let added = world.wait(|world, reply| world.target.add_namespace(NQN, spec, reply));
    added.map_err(|error| error.to_string())
}

#[test]
fn a_file_that_cannot_be_used_refuses_the_namespace_or_the_command() {
    let folder = folder("broken");
    let file = folder.join(format!("{}.json", uuid::Uuid::from_u128(5)));
    std::fs::write(&file, b"{}").expect("written");
    let world = keeping(9, &folder);
    let error = add(&world).expect_err("refused");
    assert!(error.contains("no file of reservations"), "{error}");
    std::fs::remove_file(&file).expect("removed");
    add(&world).expect("the device is free again");
    let host = world.session_of_host("a", 1);
    std::fs::remove_dir_all(&folder).expect("the folder goes");
    check(&world, &host, register(0b11 << 30, 0, 10), StatusCode::INTERNAL_ERROR);
    let held = world.command(host.queues[0], report(64), vec![]).data;
    assert_eq!(held[5], 0, "what is not kept does not count");
    check(&world, &host, register(0, 0, 10), OK);
    world.finish();
}

#[test]
fn a_namespace_that_goes_takes_its_reservations_along() {
    let world = World::serving(10, &[("m0", 64)]);
    let hosts = [1, 2].map(|host| world.session_of_host("a", host));
    check(&world, &hosts[0], register(0, 0, 10), OK);
    check(&world, &hosts[0], acquire(0, 2, 10, 0), OK);
    world.remove_namespace(NQN, 1);
    check(&world, &hosts[0], register(0, 0, 10), StatusCode::INVALID_NAMESPACE_OR_FORMAT);
    world.namespace(NQN, "m0");
    may(&world, &hosts[1], true, true);
    world.finish();
}
