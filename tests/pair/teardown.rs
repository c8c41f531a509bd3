//! Scenario S3.j: the TCP twin of the teardown bounds. A target that is gone, or
//! does not answer, holds nothing up.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tenon_tests::initiator::{paths, states, within};
use tenon_tests::{counts, wait_for};

use crate::world::{NQN, ONE, PATIENT, Target, initiator};

#[test]
fn s3_j_a_killed_target_is_noticed_by_all_queues_at_once() {
    let mut target = Target::start(1);
    let mut host = initiator();
    host.ok("bdev_nvme_attach_controller", target.path(0, PATIENT));
    target.kill();
    within(Duration::from_millis(500), "the loss", || paths(&mut host, &target.paths()) == [[false; 3]]);
    assert_ne!(states(&mut host), ["enabled"]);
    host.stop();
}

#[test]
fn s3_j_a_controller_of_a_healthy_target_is_detached_at_once() {
    let mut target = Target::start(1);
    let mut host = initiator();
    // What a first attach leaves for good (a transport, memory) is there before the count.
    for _ in 0..2 {
        host.ok("bdev_nvme_attach_controller", target.path(0, PATIENT));
        let begin = Instant::now();
        host.ok("bdev_nvme_detach_controller", json!({ "name": "nvme0" }));
        assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
        within(Duration::from_millis(500), "the target's end of the queues", || target.queues() == 0);
    }
    assert!(!host.log().contains("WARN"), "{}", host.log());
    host.stop();
}

#[test]
fn s3_j_a_controller_of_a_frozen_target_is_detached_in_bounded_time() {
    let mut target = Target::start(1);
    let mut host = initiator();
    host.ok("bdev_nvme_attach_controller", target.path(0, PATIENT));
    target.host().signal(Signal::STOP);
    let begin = Instant::now();
    host.ok("bdev_nvme_detach_controller", json!({ "name": "nvme0" }));
    let took = begin.elapsed();
    target.host().signal(Signal::CONT);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(host.bdevs().is_empty());
    host.stop();
}

#[test]
fn s3_j_a_frozen_target_is_given_up_and_goes_on_when_it_thaws() {
    let mut target = Target::start(1);
    let mut load = target.load(&json!({}));
    load.goes_on();
    target.host().signal(Signal::STOP);
    // Keep alive of 2 s.
    within(Duration::from_secs(5), "the loss", || states(&mut load.host) != ["enabled"]);
    target.host().signal(Signal::CONT);
    within(Duration::from_secs(5), "the return", || states(&mut load.host) == ["enabled"]);
    load.goes_on();
    load.finish();
}

#[test]
fn s3_j_a_deleted_subsystem_ends_its_hosts_and_serves_them_when_it_is_back() {
    let mut target = Target::start(1);
    let mut load = target.load(&json!({}));
    load.goes_on();
    target.host().ok("nvmf_delete_subsystem", json!({ "nqn": NQN }));
    within(Duration::from_secs(2), "the loss", || states(&mut load.host) != ["enabled"]);
    target.host().ok("nvmf_create_subsystem", json!({ "nqn": NQN, "allow_any_host": true }));
    target.listen(0);
    target.add_namespace(1, "f0", ONE);
    load.goes_on();
    load.finish();
}

#[test]
fn s3_j_many_controllers_lose_their_target_at_once() {
    const CONTROLLERS: usize = 64;
    let mut target = Target::start(1);
    let mut host = initiator();
    for number in 0..CONTROLLERS {
        let mut params = target.path(0, PATIENT);
        params["name"] = format!("nvme{number}").into();
        params["hostnqn"] =
            format!("nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-{number:012}").into();
        params["num_io_queues"] = 1.into();
        // The namespace is one device, of the first.
        params["max_bdevs"] = i32::from(number == 0).into();
        host.ok("bdev_nvme_attach_controller", params);
    }
    assert_eq!(states(&mut host).len(), CONTROLLERS);
    target.kill();
    let mut slowest = Duration::ZERO;
    within(Duration::from_secs(2), "the loss of all", || {
        let begin = Instant::now();
        let states = states(&mut host);
        slowest = slowest.max(begin.elapsed());
        states.iter().all(|state| state != "enabled")
    });
    assert!(slowest < Duration::from_millis(500), "a call took {slowest:?}");
    host.stop();
}

#[test]
fn attaching_and_detaching_under_io_leaves_nothing() {
    let rounds = tenon_tests::number("TENON_TEST_ROUNDS").unwrap_or(20);
    let target = Target::start(2);
    let mut load = target.load(&json!({}));
    load.goes_on();
    let second = target.path(1, PATIENT);
    let mut before = None;
    for _ in 0..rounds {
        let path = json!({ "name": "nvme0", "trsvcid": second["trsvcid"] });
        load.host.ok("bdev_nvme_detach_controller", path);
        load.host.ok("bdev_nvme_attach_controller", second.clone());
        wait_for("both paths", || (states(&mut load.host) == ["enabled"; 2]).then_some(()));
        let now = counts(&mut load.host)["nvme"].clone();
        assert_eq!(*before.get_or_insert(now.clone()), now);
    }
    load.goes_on();
    load.finish();
}
