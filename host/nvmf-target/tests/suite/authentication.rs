//! Hosts that have to prove who they are, as the target treats them: what a
//! queue takes before, which key counts, what a wrong one leads to.
//!
//! The cryptography has tests of its own.

use std::time::Duration;

use crate::rig::auth::{authenticate, command, key_file, negotiate, receive, send};
use crate::rig::{HOST, NQN, World, property_set, read};
use crate::transport::Connection;
use nvme_spec::auth::{AuthId, AuthType, MessageHead};
use nvme_spec::opcode::FabricsType;
use nvme_spec::status::StatusCode;
use tenon_nvmf_target::{AuthenticationOptions, DhGroupId, HashId, HostKeys, SubsystemSpec};
use zerocopy::IntoBytes;

/// A target whose only host has a key, without an exchange of values: that one takes no worker's time.
fn guarded(seed: u64) -> World {
    let world = World::new(seed);
    world.subsystem(SubsystemSpec::new(NQN));
    world.listen(NQN, "a");
    world.device(serde_json::json!({ "name": "m0", "blocks": 64 }));
    world.namespace(NQN, "m0");
    for (name, secret) in [("host", [1; 32]), ("sub", [2; 32]), ("new", [3; 32])] {
        let path = key_file(&format!("{name}{seed}"), &secret);
        world.wait(|world, reply| world.target.add_key_file(name, &path, reply)).expect("a key");
    }
    world
        .on(|world| {
            world.target.set_authentication(AuthenticationOptions {
                hashes: vec![HashId::SHA_256],
                groups: vec![DhGroupId::NULL],
            })?;
            let keys = HostKeys {
                dhchap_key: Some("host".into()),
                dhchap_ctrlr_key: Some("sub".into()),
                ..HostKeys::default()
            };
            world.target.add_host_with_keys(NQN, HOST, keys)
        })
        .expect("added");
    world
}

/// Connects, and checks that the host is told to authenticate.
fn connect(world: &World, qid: u16, cntlid: u16) -> (&'static Connection, u16) {
    let queue = world.open("a");
    let answer = world.connect_queue(queue, qid, cntlid, 0).cqe;
    assert!(answer.status.is_success());
    assert_eq!(answer.dw0.get() >> 16, 2, "authentication is required");
    (queue, answer.dw0.get() as u16)
}

#[test]
fn a_queue_takes_nothing_until_its_host_has_proven_itself() {
    let world = guarded(1);
    let (admin, cntlid) = connect(&world, 0, 0xffff);
    let required = StatusCode::AUTHENTICATION_REQUIRED;
    assert_eq!(world.status(admin, property_set(0x0046_0001), vec![]), required);
    assert_eq!(receive(&world, admin), Err(StatusCode::COMMAND_SEQUENCE_ERROR));
    assert_eq!(authenticate(&world, admin, HOST, [1; 32], true), AuthId::SUCCESS1);
    assert_eq!(world.status(admin, property_set(0x0046_0001), vec![]), StatusCode::SUCCESS);
    let (queue, _) = connect(&world, 1, cntlid);
    assert_eq!(world.status(queue, read(1, 0, 1), vec![]), required);
    assert_eq!(authenticate(&world, queue, HOST, [1; 32], false), AuthId::SUCCESS1);
    assert_eq!(world.status(queue, read(1, 0, 1), vec![]), StatusCode::SUCCESS);
    // Once more, while it is in use; and again, after the time that a first one may take.
    world.advance(Duration::from_secs(40));
    assert_eq!(authenticate(&world, queue, HOST, [1; 32], true), AuthId::SUCCESS1);
    world.advance(Duration::from_secs(40));
    assert_eq!(world.status(queue, read(1, 0, 1), vec![]), StatusCode::SUCCESS);
    let queues = world.wait(|world, reply| world.target.queues(NQN, reply)).expect("queues");
    let proven = Some((HashId::SHA_256, DhGroupId::NULL));
    assert!(queues.iter().all(|queue| queue.authentication.is_some_and(|own| own.proven == proven)));
    world.finish();
}

#[test]
fn a_wrong_key_ends_the_connection_with_the_reason() {
    let world = guarded(2);
    let (admin, _) = connect(&world, 0, 0xffff);
    assert_eq!(authenticate(&world, admin, HOST, [9; 32], true), AuthId::FAILURE1);
    world.settle();
    assert!(admin.is_open(), "the host has a last word");
    world.advance(Duration::from_millis(1100));
    assert!(admin.is_freed.get());
    world.finish();
}

#[test]
fn a_failed_repetition_ends_a_live_queue() {
    let world = guarded(3);
    let (admin, _) = connect(&world, 0, 0xffff);
    assert_eq!(authenticate(&world, admin, HOST, [1; 32], false), AuthId::SUCCESS1);
    assert_eq!(world.status(admin, property_set(0x0046_0001), vec![]), StatusCode::SUCCESS);
    assert_eq!(authenticate(&world, admin, HOST, [9; 32], false), AuthId::FAILURE1);
    let last = MessageHead::new(AuthType::COMMON, AuthId::FAILURE2, 5);
    assert_eq!(send(&world, admin, [last.as_bytes(), &[1, 1]].concat()), StatusCode::SUCCESS);
    world.settle();
    assert!(admin.is_freed.get());
    world.finish();
}

#[test]
fn a_host_that_takes_too_long_is_closed() {
    let world = guarded(4);
    let (silent, _) = connect(&world, 0, 0xffff);
    let (slow, _) = connect(&world, 0, 0xffff);
    assert_eq!(send(&world, slow, negotiate()), StatusCode::SUCCESS);
    world.advance(Duration::from_secs(29));
    assert!(silent.is_open() && slow.is_open());
    world.advance(Duration::from_secs(2));
    assert!(silent.is_freed.get() && slow.is_freed.get());
    world.finish();
}

#[test]
fn a_new_key_counts_from_the_next_transaction_on() {
    let world = guarded(5);
    let (admin, _) = connect(&world, 0, 0xffff);
    assert_eq!(authenticate(&world, admin, HOST, [1; 32], false), AuthId::SUCCESS1);
    let rotate = |host: Option<&str>, sub: Option<&str>| {
        world.on(|world| {
            world.target.set_host_keys(NQN, HOST, host.map(str::to_owned), sub.map(str::to_owned))
        })
    };
    rotate(Some("new"), Some("sub")).expect("rotated");
    assert_eq!(world.status(admin, property_set(0x0046_0001), vec![]), StatusCode::SUCCESS);
    assert_eq!(authenticate(&world, admin, HOST, [3; 32], true), AuthId::SUCCESS1);
    assert_eq!(authenticate(&world, admin, HOST, [1; 32], false), AuthId::FAILURE1);
    let error = world.on(|world| world.target.remove_key("new")).expect_err("in use").to_string();
    assert!(error.contains("in use"), "{error}");
    world.on(|world| world.target.remove_key("host")).expect("unused");
    assert!(rotate(Some("host"), None).is_err(), "it is gone");
    assert!(rotate(None, Some("sub")).is_err(), "a subsystem's key alone means nothing");
    rotate(None, None).expect("no keys");
    let open = world.open("a");
    let answer = world.connect_queue(open, 0, 0xffff, 0).cqe;
    assert_eq!((answer.status.is_success(), answer.dw0.get() >> 16), (true, 0));
    assert_eq!(send(&world, open, negotiate()), StatusCode::SUCCESS);
    assert_eq!(receive(&world, open).expect("a failure")[1], AuthId::FAILURE1.0, "without a key");
    world.finish();
}

#[test]
fn wrong_fields_of_the_commands_are_refused() {
    let world = guarded(6);
    let (admin, _) = connect(&world, 0, 0xffff);
    for (at, value) in [(41, 0), (42, 0), (43, 0xe8), (46, 0xff)] {
        let mut sqe = command(FabricsType::AUTHENTICATION_RECEIVE, 4096);
        sqe.as_mut_bytes()[at] = value;
        assert_eq!(world.status(admin, sqe, vec![]), StatusCode::INVALID_FIELD, "byte {at}");
    }
    assert_eq!(send(&world, admin, negotiate()), StatusCode::SUCCESS);
    let small = command(FabricsType::AUTHENTICATION_RECEIVE, 16);
    assert_eq!(world.status(admin, small, vec![]), StatusCode::INVALID_FIELD, "no room for the message");
    assert!(receive(&world, admin).is_ok(), "which is still there");
    world.finish();
}
