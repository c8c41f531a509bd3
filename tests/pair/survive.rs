//! Scenario S0: an initiator survives its target, whatever comes back.

use std::time::{Duration, Instant};

use serde_json::json;
use tenon_tests::initiator::{Load, num_blocks, paths, states, uuid, within};
use tenon_tests::wait_for;

use crate::paths::{IN_FLIGHT, commands};
use crate::world::{NQN, ONE, PATIENT, TWO, Target, initiator};

/// A device that never blocks, of so many MiB, on the target.
fn null(target: &mut Target, name: &str, mib: u64) {
    let params = json!({ "name": name, "num_blocks": mib * 2048, "block_size": 512 });
    target.host().ok("bdev_null_create", params);
}

#[test]
fn s0_a_b_an_empty_target_is_attached_and_a_namespace_appears() {
    let mut target = Target::empty(1);
    let mut host = initiator();
    let begin = Instant::now();
    assert_eq!(host.ok("bdev_nvme_attach_controller", target.path(0, PATIENT)), json!([]));
    assert_eq!(states(&mut host), ["enabled"]);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    target.add_namespace(1, "f0", ONE);
    within(Duration::from_secs(5), "the device", || uuid(&mut host, "nvme0n1").as_deref() == Some(ONE));
    host.ok("bdev_nvme_detach_controller", json!({ "name": "nvme0" }));
    host.stop();
    let mut load = target.load(&json!({}));
    load.goes_on();
    load.finish();
}

#[test]
fn s0_c_e_a_device_outlives_its_target_and_goes_on_with_the_same_namespace() {
    let mut target = Target::start(1);
    let mut load = target.load(&json!({}));
    load.goes_on();
    target.kill();
    wait_for("the loss", || (states(&mut load.host) != ["enabled"]).then_some(()));
    target.restart();
    within(Duration::from_secs(3), "the reconnect", || states(&mut load.host) == ["enabled"]);
    within(Duration::from_secs(1), "the namespace's absence", || {
        paths(&mut load.host, &target.paths()) == [[true, false, false]]
    });
    let before = load.ios();
    for call in ["bdev_get_bdevs", "bdev_get_iostat", "save_config", "bdev_nvme_get_controllers"] {
        load.host.ok(call, json!({}));
    }
    load.host.ok("bdev_nvme_reset_controller", json!({ "name": "nvme0" }));
    within(Duration::from_secs(3), "the reset", || states(&mut load.host) == ["enabled"]);
    assert_eq!(uuid(&mut load.host, "nvme0n1").as_deref(), Some(ONE), "still listed");
    assert_eq!(load.ios(), before, "nothing completes without the namespace");
    target.add_namespace(1, "f0", ONE);
    within(Duration::from_secs(2), "I/O", || load.ios() > before);
    load.finish();
}

#[test]
fn s0_d_a_namespace_that_stays_away_too_long_fails_its_io() {
    let mut target = Target::start(1);
    let mut load = target.load(&json!({ "ns_absent_timeout_sec": 2 }));
    load.goes_on();
    target.kill();
    target.restart();
    wait_for("the absence", || {
        (paths(&mut load.host, &target.paths()) == [[true, false, false]]).then_some(())
    });
    let begin = Instant::now();
    let verdict = load.verdict();
    let took = begin.elapsed();
    assert!(!verdict.is_clean, "{}", verdict.text);
    assert!((1.0..3.0).contains(&took.as_secs_f64()), "{took:?}\n{}", verdict.text);
    assert!(verdict.text.contains("bdev nvme0n1: "), "{}", verdict.text);
}

#[test]
fn s0_d_io_waits_for_an_absent_namespace_without_burning_a_processor() {
    let mut target = Target::start(1);
    let mut load = target.load(&json!({}));
    load.goes_on();
    target.kill();
    target.restart();
    wait_for("the absence", || {
        (paths(&mut load.host, &target.paths()) == [[true, false, false]]).then_some(())
    });
    let before = load.stands_still();
    let spent = tenon_tests::cpu_time(&load.host);
    tenon_tests::let_pass(Duration::from_secs(2));
    let spent = tenon_tests::cpu_time(&load.host).saturating_sub(spent);
    assert!(spent < Duration::from_millis(300), "{spent:?} of 2 s while all I/O waits");
    assert_eq!(load.ios(), before);
    target.add_namespace(1, "f0", ONE);
    load.goes_on();
    load.finish();
}

#[test]
fn s0_f_another_namespace_of_the_same_number_is_another_device() {
    let mut target = Target::start(1);
    let mut load = target.load(&json!({}));
    load.goes_on();
    target.kill();
    target.restart();
    null(&mut target, "n0", 16);
    target.add_namespace(1, "n0", TWO);
    // The load ends: its device is removed under it. Nothing of it was read from, or written to, the other.
    let verdict = load.verdict();
    assert!(!verdict.is_clean && verdict.text.contains("was removed under the load"), "{}", verdict.text);
    assert!(!verdict.text.contains(": expected write "), "{}", verdict.text);
    let stats = target.host().ok("bdev_get_iostat", json!({ "name": "n0" }));
    assert_eq!(stats["bdevs"][0]["num_write_ops"], 0, "{stats}");

    let mut host = initiator();
    let attached = host.ok("bdev_nvme_attach_controller", target.path(0, PATIENT));
    assert_eq!(uuid(&mut host, attached[0].as_str().unwrap()).as_deref(), Some(TWO));
    target.kill();
    target.restart();
    target.add_namespace(1, "f0", ONE);
    wait_for("the other device", || {
        let names: Vec<String> = host.bdevs();
        (names.len() == 1 && uuid(&mut host, &names[0]).as_deref() == Some(ONE)).then_some(())
    });
    host.stop();
}

#[test]
fn s0_g_the_view_changes_only_while_connected() {
    let mut target = Target::empty(1);
    for (name, nsid, id) in [("n0", 1, ONE), ("n1", 2, TWO)] {
        null(&mut target, name, 64);
        target.add_namespace(nsid, name, id);
    }
    let mut host = initiator();
    assert_eq!(
        host.ok("bdev_nvme_attach_controller", target.path(0, PATIENT)),
        json!(["nvme0n1", "nvme0n2"])
    );
    target.stop_listening(0);
    wait_for("the end of the queues", || (target.queues() == 0).then_some(()));
    target.host().ok("bdev_null_resize", json!({ "name": "n0", "new_size": 128 }));
    target.remove_namespace(2);
    null(&mut target, "n2", 64);
    target.add_namespace(3, "n2", "33333333-3333-4333-8333-333333333333");
    let view =
        |host: &mut tenon_tests::Host| ["nvme0n1", "nvme0n2", "nvme0n3"].map(|name| num_blocks(host, name));
    let (small, large) = (Some(64 * 2048), Some(128 * 2048));
    assert_eq!(view(&mut host), [small, small, None]);
    target.listen(0);
    within(Duration::from_secs(15), "the new view", || view(&mut host) == [large, small, small]);
    let absent = host.ok("bdev_nvme_get_io_paths", json!({ "name": "nvme0n2" }));
    let paths = absent["poll_groups"][0]["io_paths"].as_array().cloned().unwrap_or_default();
    assert!(paths.iter().all(|path| path["accessible"] == false), "{absent}");
    // One that goes while connected is gone.
    target.remove_namespace(3);
    within(Duration::from_secs(2), "the end of the third", || num_blocks(&mut host, "nvme0n3").is_none());
    host.stop();
}

#[test]
fn s0_h_a_namespace_shrinks_under_a_load_and_grows_back() {
    let mut target = Target::empty(1);
    null(&mut target, "n0", 128);
    target.add_namespace(1, "n0", ONE);
    let mut host = initiator();
    host.ok("bdev_nvme_attach_controller", target.path(0, PATIENT));
    for mib in [32, 128] {
        target.host().ok("bdev_null_resize", json!({ "name": "n0", "new_size": mib }));
        within(Duration::from_secs(5), "the size", || num_blocks(&mut host, "nvme0n1") == Some(mib * 2048));
    }
    host.stop();
}

#[test]
fn s0_j_a_target_dies_over_and_over_and_nothing_is_lost() {
    let rounds = tenon_tests::number("TENON_TEST_ROUNDS").unwrap_or(3);
    let mut target = Target::start(1);
    let mut load = target.load(&json!({}));
    for _ in 0..rounds {
        load.goes_on();
        target.kill();
        target.restart();
        target.add_namespace(1, "f0", ONE);
        within(Duration::from_secs(3), "the reconnect", || states(&mut load.host) == ["enabled"]);
    }
    load.goes_on();
    load.finish();
}

/// Hosts that the target tells apart: one for each path.
const HOSTS: [&str; 2] = ["nqn.2026-01.io.tenon:host-a", "nqn.2026-01.io.tenon:host-b"];

/// Shows or hides namespace 1 from the host of a path.
fn show(target: &mut Target, path: usize, is_visible: bool) {
    let method = if is_visible { "nvmf_ns_add_host" } else { "nvmf_ns_remove_host" };
    target.host().ok(method, json!({ "nqn": NQN, "nsid": 1, "host": HOSTS[path] }));
}

#[test]
fn s0_i_a_load_goes_on_by_the_other_path_while_one_comes_back_empty() {
    let mut target = Target::empty(2);
    let namespace = json!({ "nsid": 1, "bdev_name": "f0", "uuid": ONE, "no_auto_visible": true });
    target.host().ok("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": namespace }));
    show(&mut target, 0, true);
    show(&mut target, 1, true);
    let ways = target.paths();
    let mut load = Load::start(NQN, &ways[..1], &json!({ "hostnqn": HOSTS[0] }));
    let second = target.path(1, &format!(r#""hostnqn": "{}""#, HOSTS[1]));
    load.host.ok("bdev_nvme_attach_controller", second);
    load.goes_on();
    target.stop_listening(0);
    show(&mut target, 0, false);
    let [lost, empty, usable, used] = [[false; 3], [true, false, false], [true, true, false], [true; 3]];
    within(Duration::from_secs(2), "the other path", || paths(&mut load.host, &ways) == [lost, used]);
    load.goes_on();
    target.listen(0);
    within(Duration::from_secs(3), "the empty one", || paths(&mut load.host, &ways) == [empty, used]);
    load.goes_on();
    show(&mut target, 0, true);
    within(Duration::from_secs(2), "its return", || paths(&mut load.host, &ways) == [used, usable]);
    load.goes_on();
    // What was in flight when the path was lost was sent once more, and nothing else.
    let sent = commands(&mut load.host);
    let done = load.ios();
    assert!(sent <= done + 2 * IN_FLIGHT, "{sent} commands for {done} i/os");
    load.finish();
}
