//! Scenario S2: paths are used and reported by one rule.

use std::time::Duration;

use serde_json::json;
use tenon_nvmf_target::AnaState;
use tenon_tests::multipath::TABLE;

use crate::load::Load;
use crate::world::{World, for_seeds};

/// Two listeners of one subsystem, both attached.
pub fn two_paths(world: &World) -> Load {
    world.export(&["a", "b"]);
    assert_eq!(world.attach("a", json!({})).expect("attaches"), json!(["nvme0n1"]));
    assert_eq!(world.attach("b", json!({})).expect("attaches"), json!(["nvme0n1"]));
    let load = Load::open(world, "nvme0n1", 0);
    world.advance(Duration::from_millis(10));
    load
}

fn policy(world: &World, policy: &str) {
    let params = json!({ "name": "nvme0n1", "policy": policy });
    world.rpc("bdev_nvme_set_multipath_policy", params).expect("set");
    world.settle();
}

const T: bool = true;
const F: bool = false;
const OPTIMIZED: AnaState = AnaState::OPTIMIZED;
const NON_OPTIMIZED: AnaState = AnaState::NON_OPTIMIZED;
const INACCESSIBLE: AnaState = AnaState::INACCESSIBLE;

fn check_table(world: &World, load: &Load, is_busy: bool) {
    for row in &TABLE {
        policy(world, row.policy);
        for (traddr, word) in ["a", "b"].into_iter().zip(row.ana) {
            world.ana(traddr, AnaState::from_word(word).expect("a state"));
        }
        for _ in 0..20 {
            for _ in 0..if is_busy { world.roll(4) } else { 0 } {
                load.submit(world);
            }
            world.advance(Duration::from_millis(5));
            load.collect();
        }
        let told: Vec<[bool; 3]> = world.paths("nvme0n1").iter().map(|path| path.1).collect();
        assert_eq!(told, row.paths, "{row:?}");
    }
}

#[test]
fn s2_a_the_table_holds_under_load() {
    for_seeds(10, |world| {
        let load = two_paths(world);
        check_table(world, &load, true);
        world.ana("b", OPTIMIZED);
        world.advance(Duration::from_secs(1));
        load.collect();
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        load.close(world);
    });
}

#[test]
fn s2_b_the_table_holds_on_an_idle_host() {
    for_seeds(10, |world| {
        let load = two_paths(world);
        check_table(world, &load, false);
        load.close(world);
    });
}

#[test]
fn s2_a_the_path_attached_first_is_current_although_another_was_connected_first() {
    for_seeds(10, |world| {
        world.export(&["a", "b"]);
        world.attach_all(&["a", "b"]);
        world.stop_listening("a");
        world.advance(Duration::from_millis(200));
        let load = Load::open(world, "nvme0n1", 0);
        world.advance(Duration::from_millis(10));
        let current = |world: &World| world.paths("nvme0n1").iter().map(|path| path.1[2]).collect::<Vec<_>>();
        while load.good.get() < 10 {
            load.submit(world);
            world.advance(Duration::from_millis(1));
            load.collect();
        }
        assert_eq!(current(world), [F, T]);
        world.listen("a");
        world.serves_within(5);
        assert_eq!(current(world), [T, F]);
        load.close(world);
    });
}

#[test]
fn s2_c_d_a_lost_path_is_left_without_any_io() {
    for_seeds(10, |world| {
        let load = two_paths(world);
        for mode in ["active_passive", "active_active"] {
            policy(world, mode);
            world.ana("b", NON_OPTIMIZED);
            world.advance(Duration::from_millis(100));
            assert_eq!(world.paths("nvme0n1")[0].1, [T, T, T]);
            world.stop_listening("a");
            world.advance(Duration::from_millis(200));
            let paths = world.paths("nvme0n1");
            assert_eq!((paths[0].1, paths[1].1), ([F, F, F], [T, T, T]), "{mode}");
            world.listen("a");
            world.serves_within(5);
        }
        load.close(world);
    });
}

#[test]
fn s2_f_io_waits_for_the_transition_time_and_then_fails_with_the_state() {
    for_seeds(10, |world| {
        let load = two_paths(world);
        world.ana("a", INACCESSIBLE);
        world.ana("b", INACCESSIBLE);
        world.advance(Duration::from_millis(50));
        while load.in_flight() < 3 {
            load.submit(world);
        }
        world.advance(Duration::from_secs(3));
        load.collect();
        assert_eq!(load.in_flight(), 3, "it waits");
        world.ana("a", OPTIMIZED);
        world.advance(Duration::from_secs(1));
        load.collect();
        assert_eq!((load.in_flight(), load.good.get()), (0, 3), "it goes on within a second");
        world.ana("a", INACCESSIBLE);
        world.advance(Duration::from_millis(50));
        load.submit(world);
        world.advance(Duration::from_secs(40));
        load.collect();
        assert_eq!(load.in_flight(), 0);
        assert_eq!(load.failed.borrow()[0].as_nvme(), Some((3, 0x02)), "inaccessible");
        load.close(world);
    });
}

#[test]
fn s2_h_round_robin_shares_the_work() {
    for_seeds(5, |world| {
        let load = two_paths(world);
        let params = json!({
            "name": "nvme0n1", "policy": "active_active", "selector": "round_robin", "rr_min_io": 1,
        });
        world.rpc("bdev_nvme_set_multipath_policy", params).expect("set");
        let count = |world: &World| {
            let all = world.rpc("bdev_nvme_get_io_paths", json!({ "name": "nvme0n1" })).expect("answers");
            let paths = all["poll_groups"][0]["io_paths"].as_array().expect("paths").clone();
            let of = |path: &serde_json::Value| path["commands"].as_u64().expect("a number");
            paths.iter().map(of).collect::<Vec<u64>>()
        };
        let before = count(world);
        for _ in 0..400 {
            load.submit(world);
            world.advance(Duration::from_micros(500));
            load.collect();
        }
        let after = count(world);
        let done: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        let total: u64 = done.iter().sum();
        assert!(total > 300 && done.iter().all(|part| part * 100 / total >= 45), "{done:?}");
        load.close(world);
    });
}
