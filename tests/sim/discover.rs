//! A discovery service attaches what it is told of, and nothing else.

use std::time::Duration;

use serde_json::{Value, json};
use tenon_nvmf_target::{AnaState, NamespaceSpec, Referral, SubsystemSpec};

use crate::load::Load;
use crate::world::{NQN, ONE, TWO, World, address, for_seeds};

const OTHER: &str = "nqn.2026-01.io.tenon:other";

fn discover(world: &World, traddr: &str, more: Value) -> Result<Value, tenon_bdev::OpError> {
    let mut params = json!({
        "name": "disc", "trtype": "LOOP", "traddr": traddr, "wait_for_attach": true,
        "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1,
    });
    params.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    world.rpc("bdev_nvme_start_discovery", params)
}

fn stop(world: &World) {
    world.rpc("bdev_nvme_stop_discovery", json!({ "name": "disc" })).expect("stops");
}

fn info(world: &World) -> Value {
    world.rpc("bdev_nvme_get_discovery_info", json!({})).expect("answers")
}

/// `name traddr` of every attached controller, in order.
fn attached(world: &World) -> Vec<String> {
    let all = world.rpc("bdev_nvme_get_controllers", json!({})).expect("answers");
    let mut found = Vec::new();
    for group in all.as_array().into_iter().flatten() {
        for path in group["ctrlrs"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            found.push(format!("{} {}", text(&group["name"]), text(&path["trid"]["traddr"])));
        }
    }
    found.sort();
    found
}

#[track_caller]
fn becomes(world: &World, expected: &[&str]) {
    let reached = (0..200).any(|_| {
        let is_so = attached(world) == expected;
        if !is_so {
            world.advance(Duration::from_millis(50));
        }
        is_so
    });
    assert!(reached, "{:?} instead of {expected:?}", attached(world));
}

fn other_subsystem(world: &World, traddr: &str, device: &str) {
    let spec = SubsystemSpec { allow_any_host: true, ..SubsystemSpec::new(OTHER) };
    world.wait(|world, reply| world.target.create_subsystem(spec, reply)).expect("subsystem");
    let at = address(traddr);
    world
        .wait(|world, reply| world.target.add_listener(OTHER, &at, false, AnaState::OPTIMIZED, reply))
        .expect("listener");
    let uuid = uuid::Uuid::parse_str(TWO).ok();
    let spec = NamespaceSpec { bdev_name: device.into(), nsid: Some(1), uuid, ..NamespaceSpec::default() };
    world.wait(|world, reply| world.target.add_namespace(OTHER, spec, reply)).expect("namespace");
}

#[test]
fn paths_come_and_go_with_the_log_page() {
    for_seeds(10, |world| {
        world.device("m0", 1024);
        world.device("m1", 1024);
        world.subsystem(&["a", "b"]);
        world.add_namespace(1, "m0", ONE);
        assert_eq!(discover(world, "a", json!({})).expect("discovers"), json!(true));
        assert_eq!(attached(world), ["disc0 a", "disc0 b"], "all of it when it answers");
        let load = Load::open(world, "disc0n1", 0);
        world.advance(Duration::from_millis(20));
        assert_eq!(world.paths("disc0n1").len(), 2, "two paths of one device");
        other_subsystem(world, "a", "m1");
        becomes(world, &["disc0 a", "disc0 b", "disc1 a"]);
        world.advance(Duration::from_millis(20));
        assert!(world.bdev("disc1n1").is_some());
        world.stop_listening("b");
        becomes(world, &["disc0 a", "disc1 a"]);
        world.listen("b");
        becomes(world, &["disc0 a", "disc0 b", "disc1 a"]);
        for _ in 0..50 {
            load.submit(world);
            world.advance(Duration::from_millis(1));
            load.collect();
        }
        assert!(load.good.get() > 30 && load.failed.borrow().is_empty());
        load.close(world);
        stop(world);
        assert!(attached(world).is_empty() && world.bdev("disc0n1").is_none());
        assert_eq!(info(world), json!([]));
    });
}

#[test]
fn a_wait_that_takes_too_long_fails_and_leaves_nothing() {
    for_seeds(10, |world| {
        let error =
            discover(world, "nowhere", json!({ "attach_timeout_ms": 2500 })).expect_err("nobody there");
        assert!(error.to_string().contains("within 2500 ms"), "{error}");
        assert!(error.to_string().contains("refused"), "the obstacle is named: {error}");
        assert_eq!(info(world), json!([]));
        // Without a wait it goes on until somebody is there.
        world.device("m0", 1024);
        discover(world, "a", json!({ "wait_for_attach": false })).expect("starts");
        world.advance(Duration::from_secs(5));
        assert_eq!(info(world)[0]["name"], "disc");
        world.subsystem(&["a"]);
        world.add_namespace(1, "m0", ONE);
        becomes(world, &["disc0 a"]);
        let error = discover(world, "b", json!({})).expect_err("the name is taken");
        assert_eq!(error.code, -17, "{error}");
        let again = json!({ "name": "more" });
        let error = discover(world, "a", again).expect_err("the address is taken");
        assert!(error.to_string().contains("disc asks this address already"), "{error}");
        stop(world);
        world.rpc("bdev_nvme_stop_discovery", json!({ "name": "disc" })).expect_err("no more there");
    });
}

#[test]
fn a_service_survives_its_target_and_is_heard_after_a_long_silence() {
    for_seeds(10, |world| {
        world.export(&["a"]);
        discover(world, "a", json!({})).expect("discovers");
        world.advance(Duration::from_secs(120));
        let told = &info(world)[0];
        assert_eq!(told["state"], "enabled", "kept alive: {told}");
        world.listen("b");
        becomes(world, &["disc0 a", "disc0 b"]);
        world.kill_subsystem();
        world.advance(Duration::from_secs(3));
        world.subsystem(&["a"]);
        world.add_namespace(1, "m0", ONE);
        becomes(world, &["disc0 a"]);
        world.serves_within(5);
        assert!(world.bdev("disc0n1").is_some(), "the same name again");
        stop(world);
    });
}

#[test]
fn a_controller_that_was_given_up_is_attached_again_while_it_is_told_of() {
    for_seeds(10, |world| {
        world.export(&["a", "b"]);
        let timers = json!({ "ctrlr_loss_timeout_sec": 2, "reconnect_delay_sec": 1 });
        discover(world, "a", timers).expect("discovers");
        // The service forgets nothing while it is away, and finds everything when it is back.
        world.kill_subsystem();
        world.advance(Duration::from_secs(8));
        world.subsystem(&["a", "b"]);
        world.add_namespace(1, "m0", ONE);
        becomes(world, &["disc0 a", "disc0 b"]);
        world.advance(Duration::from_millis(100));
        assert!(world.bdev("disc0n1").is_some());
        stop(world);
    });
}

#[test]
fn referrals_are_followed_and_forgotten() {
    for_seeds(10, |world| {
        world.device("m0", 1024);
        world.device("m1", 1024);
        world.subsystem(&["a"]);
        world.add_namespace(1, "m0", ONE);
        other_subsystem(world, "z", "m1");
        let filter = tenon_nvmf_target::DiscoveryFilter { address: true, ..Default::default() };
        world.on(|world| world.target.set_discovery_filter(filter));
        discover(world, "a", json!({})).expect("discovers");
        assert_eq!(attached(world), ["disc0 a"], "only what this listener may tell of");
        let referral = || Referral {
            address: address("z"),
            subnqn: "nqn.2014-08.org.nvmexpress.discovery".to_owned(),
            secure_channel: false,
        };
        world.on(|world| world.target.add_referral(referral())).expect("referral");
        becomes(world, &["disc0 a", "disc1 z"]);
        let told = info(world);
        assert_eq!(told[0]["referrals"][0]["trid"]["traddr"], "z", "{told}");
        world
            .on(|world| world.target.remove_referral(&referral().address, &referral().subnqn))
            .expect("gone");
        becomes(world, &["disc0 a"]);
        assert_eq!(info(world)[0]["referrals"], json!([]), "{NQN}");
        stop(world);
    });
}

#[test]
fn a_controller_of_an_operator_is_left_alone() {
    for_seeds(5, |world| {
        world.export(&["a"]);
        world.attach("a", json!({ "name": "disc0" })).expect("attaches");
        discover(world, "a", json!({})).expect("discovers");
        assert_eq!(info(world)[0]["paths"][0]["state"], "foreign");
        stop(world);
        assert_eq!(attached(world), ["disc0 a"]);
    });
}
