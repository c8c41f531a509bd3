//! Our initiator against the kernel's target, which is not ours in any part.

use std::time::Duration;

use serde_json::json;
use tenon_tests::initiator::{Load, num_blocks, paths, states, uuid, within};
use tenon_tests::multipath::TABLE;
use tenon_tests::{Host, wait_for};

use crate::nvmet::{NQN, Nvmet, ONE, TWO};

const T: bool = true;
const F: bool = false;

fn attach(host: &mut Host, target: &Nvmet, path: usize, more: &str) -> serde_json::Value {
    let more = serde_json::from_str(&format!("{{{more}}}")).unwrap();
    host.ok("bdev_nvme_attach_controller", target.way(path, more))
}

const PATIENT: &str = r#""ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1"#;

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn the_kernels_target_is_attached_and_keeps_every_block() {
    let target = Nvmet::start(1);
    for (header, data) in [(F, F), (T, F), (F, T), (T, T)] {
        let load = target.load(&json!({ "hdgst": header, "ddgst": data }));
        tenon_tests::let_pass(Duration::from_secs(2));
        load.finish();
    }
    let mut host = Host::start("");
    assert_eq!(attach(&mut host, &target, 0, PATIENT), json!(["nvme0n1"]));
    assert_eq!(uuid(&mut host, "nvme0n1").as_deref(), Some(ONE));
    let shown = host.ok("bdev_get_bdevs", json!({ "name": "nvme0n1" }));
    assert_eq!(shown[0]["driver_specific"]["nvme"][0]["ctrlr_data"]["subnqn"], NQN, "{shown}");
    host.ok("bdev_nvme_detach_controller", json!({ "name": "nvme0" }));
    host.stop();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn the_kernels_namespaces_come_and_go() {
    let target = Nvmet::start(1);
    let mut host = Host::start("");
    attach(&mut host, &target, 0, PATIENT);
    target.add_namespace(2, "/run/kernel-disk.other", TWO);
    within(Duration::from_secs(5), "the second device", || {
        uuid(&mut host, "nvme0n2").as_deref() == Some(TWO)
    });
    target.enable(2, false);
    within(Duration::from_secs(2), "its end", || num_blocks(&mut host, "nvme0n2").is_none());
    target.enable(2, true);
    within(Duration::from_secs(5), "its return", || num_blocks(&mut host, "nvme0n2").is_some());
    assert_eq!(uuid(&mut host, "nvme0n1").as_deref(), Some(ONE), "the first has not noticed");
    host.stop();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn s0_h_the_kernels_namespace_grows_and_shrinks() {
    let target = Nvmet::start(1);
    let mut host = Host::start("");
    attach(&mut host, &target, 0, PATIENT);
    let block = host.ok("bdev_get_bdevs", json!({ "name": "nvme0n1" }))[0]["block_size"].as_u64().unwrap();
    for mib in [32, 8, 64] {
        target.resize(mib);
        within(Duration::from_secs(5), "the new size", || {
            num_blocks(&mut host, "nvme0n1") == Some((u64::from(mib) << 20) / block)
        });
    }
    host.stop();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn s0_c_e_a_load_survives_the_kernels_port() {
    let target = Nvmet::start(1);
    let mut load = target.load(&json!({}));
    for _ in 0..3 {
        load.goes_on();
        target.stop_listening(0);
        within(Duration::from_secs(5), "the loss", || states(&mut load.host) != ["enabled"]);
        target.listen(0);
        within(Duration::from_secs(3), "the reconnect", || states(&mut load.host) == ["enabled"]);
        load.goes_on();
    }
    load.finish();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn s0_c_e_a_device_survives_a_namespace_that_is_away_after_a_reconnect() {
    let target = Nvmet::start(1);
    let mut load = target.load(&json!({}));
    load.goes_on();
    target.stop_listening(0);
    within(Duration::from_secs(5), "the loss", || states(&mut load.host) != ["enabled"]);
    target.enable(1, false);
    target.listen(0);
    within(Duration::from_secs(3), "the reconnect", || states(&mut load.host) == ["enabled"]);
    wait_for("the absence", || (paths(&mut load.host, target.paths()) == [[T, F, F]]).then_some(()));
    let before = load.stands_still();
    target.enable(1, true);
    within(Duration::from_secs(2), "I/O", || load.ios() > before);
    assert_eq!(uuid(&mut load.host, "nvme0n1").as_deref(), Some(ONE));
    load.finish();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn s0_f_another_namespace_in_its_place_is_another_device() {
    let target = Nvmet::start(1);
    let mut host = Host::start("");
    attach(&mut host, &target, 0, PATIENT);
    target.stop_listening(0);
    within(Duration::from_secs(5), "the loss", || states(&mut host) != ["enabled"]);
    target.replace();
    target.listen(0);
    wait_for("the other device", || {
        let names = host.bdevs();
        (names.len() == 1 && uuid(&mut host, &names[0]).as_deref() == Some(TWO)).then_some(())
    });
    host.stop();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn s2_a_states_of_the_kernels_ports_choose_the_path() {
    let target = Nvmet::start(2);
    let mut load = target.load(&json!({}));
    load.goes_on();
    for row in TABLE.iter().filter(|row| row.policy == "active_passive") {
        for (port, state) in row.ana.iter().enumerate() {
            // The kernel's word for it.
            target.set_ana(port, &state.replace('_', "-"));
        }
        within(Duration::from_secs(1), &format!("{:?}", row.ana), || {
            paths(&mut load.host, target.paths()) == row.paths
        });
    }
    load.goes_on();
    load.finish();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn s0_i_a_load_moves_between_the_kernels_ports() {
    let target = Nvmet::start(2);
    let mut load = target.load(&json!({}));
    for path in [0, 1] {
        load.goes_on();
        target.stop_listening(path);
        within(Duration::from_secs(5), "the other path", || {
            paths(&mut load.host, target.paths())[1 - path] == [T, T, T]
        });
        load.goes_on();
        target.listen(path);
        within(Duration::from_secs(3), "its return", || {
            paths(&mut load.host, target.paths())[path][..2] == [T, T]
        });
    }
    load.finish();
}

/// Two of our processes with a network between them that is bent.
#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn s2_c_a_path_whose_packets_are_lost_is_left() {
    let wire = crate::wire::Wire::start();
    let target = wire.target();
    let mut load = Load::start(crate::wire::NQN, &wire.paths(), &json!({}));
    load.goes_on();
    wire.lose(0, "100%");
    within(Duration::from_secs(6), "the other path", || {
        paths(&mut load.host, &wire.paths()) == [[F, F, F], [T, T, T]]
    });
    load.goes_on();
    wire.heal(0);
    within(Duration::from_secs(6), "its return", || paths(&mut load.host, &wire.paths())[0][..2] == [T, T]);
    load.finish();
    target.stop();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn s1_h_a_wire_that_comes_and_goes_loses_nothing() {
    let seconds = tenon_tests::number("TENON_TEST_SECONDS").unwrap_or(10);
    let wire = crate::wire::Wire::start();
    let target = wire.target();
    let mut load = Load::start(crate::wire::NQN, &wire.paths(), &json!({}));
    load.goes_on();
    let end = std::time::Instant::now() + Duration::from_secs(seconds);
    let mut path = 0;
    while std::time::Instant::now() < end {
        wire.lose(path, "100%");
        tenon_tests::let_pass(Duration::from_millis(300));
        wire.heal(path);
        tenon_tests::let_pass(Duration::from_millis(300));
        path = 1 - path;
    }
    within(Duration::from_secs(6), "both paths", || {
        paths(&mut load.host, &wire.paths()).iter().all(|path| path[..2] == [T, T])
    });
    load.finish();
    target.stop();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_wire_that_loses_and_delays_loses_no_block() {
    let wire = crate::wire::Wire::start();
    let target = wire.target();
    wire.bend(0, "loss 2% delay 2ms 1ms reorder 20%");
    wire.bend(1, "loss 1% duplicate 1% delay 1ms");
    let mut load = Load::start(crate::wire::NQN, &wire.paths(), &json!({ "ddgst": true }));
    load.goes_on();
    tenon_tests::let_pass(Duration::from_secs(5));
    load.finish();
    target.stop();
}
