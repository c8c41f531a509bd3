//! Scenario S2: paths are used and reported by one rule.

use std::time::Duration;

use serde_json::json;
use tenon_tests::initiator::{paths, within};
use tenon_tests::multipath::TABLE;
use tenon_tests::{Host, wait_for};

use crate::world::{ONE, PATIENT, Target, initiator};

const T: bool = true;
const F: bool = false;
const OPTIMIZED: &str = "optimized";
const INACCESSIBLE: &str = "inaccessible";

/// Goes through the table; each row must be reported within a second. Under a load, some I/O goes on in each row.
fn check_table(host: &mut Host, target: &mut Target, is_busy: bool) {
    for row in &TABLE {
        set_policy(host, json!({ "policy": row.policy }));
        target.set_ana(0, row.ana[0]);
        target.set_ana(1, row.ana[1]);
        let (what, ways) = (format!("{} {:?}", row.policy, row.ana), target.paths());
        within(Duration::from_secs(1), &what, || paths(host, &ways) == row.paths);
        if is_busy && row.paths.iter().any(|path| path[2]) {
            let before = commands(host);
            wait_for("I/O", || (commands(host) > before + IN_FLIGHT).then_some(()));
        }
    }
    target.set_ana(0, OPTIMIZED);
    target.set_ana(1, OPTIMIZED);
}

/// More I/Os than a load has in flight: one of them began after the last change.
pub const IN_FLIGHT: u64 = 64;

/// Commands that all paths have taken.
pub fn commands(host: &mut Host) -> u64 {
    let report = host.ok("bdev_nvme_get_io_paths", json!({ "name": "nvme0n1" }));
    let groups = report["poll_groups"].as_array().cloned().unwrap_or_default();
    let of_group = |group: &serde_json::Value| group["io_paths"].as_array().cloned().unwrap_or_default();
    groups.iter().flat_map(of_group).filter_map(|path| path["commands"].as_u64()).sum()
}

fn set_policy(host: &mut Host, mut params: serde_json::Value) {
    params["name"] = "nvme0n1".into();
    host.ok("bdev_nvme_set_multipath_policy", params);
}

fn attach_both(target: &Target, more: &str) -> Host {
    let mut host = initiator();
    for path in 0..2 {
        host.ok("bdev_nvme_attach_controller", target.path(path, more));
    }
    host
}

#[test]
fn s2_a_the_table_holds_under_load() {
    let mut target = Target::start(2);
    let mut load = target.load(&json!({}));
    load.goes_on();
    check_table(&mut load.host, &mut target, true);
    load.goes_on();
    load.finish();
}

#[test]
fn s2_b_the_table_holds_on_an_idle_host() {
    let mut target = Target::start(2);
    let mut host = attach_both(&target, PATIENT);
    check_table(&mut host, &mut target, false);
    host.stop();
}

#[test]
fn s2_d_a_lost_path_is_left_without_any_io() {
    let mut target = Target::start(2);
    let mut host = attach_both(&target, PATIENT);
    assert_eq!(paths(&mut host, &target.paths()), [[T, T, T], [T, T, F]]);
    target.stop_listening(0);
    within(Duration::from_secs(1), "the other path", || paths(&mut host, &target.paths())[1] == [T, T, T]);
    assert_eq!(paths(&mut host, &target.paths())[0], [F, F, F]);
    target.listen(0);
    within(Duration::from_secs(3), "its return", || paths(&mut host, &target.paths())[0][..2] == [T, T]);
    host.stop();
}

#[test]
fn s2_d_a_load_changes_paths_over_and_over() {
    let rounds = tenon_tests::number("TENON_TEST_ROUNDS").unwrap_or(2);
    let mut target = Target::start(2);
    let mut load = target.load(&json!({}));
    for _ in 0..rounds {
        for path in 0..2 {
            load.goes_on();
            target.stop_listening(path);
            within(Duration::from_secs(2), "I/O on the other path", || {
                paths(&mut load.host, &target.paths())[1 - path] == [T, T, T]
            });
            let before = load.ios();
            within(Duration::from_secs(1), "I/O", || load.ios() > before);
            target.listen(path);
            within(Duration::from_secs(3), "its return", || {
                paths(&mut load.host, &target.paths())[path][..2] == [T, T]
            });
        }
    }
    load.finish();
}

#[test]
fn s2_f_io_waits_while_no_path_is_accessible_and_goes_on_within_a_second() {
    let mut target = Target::start(2);
    let mut load = target.load(&json!({}));
    load.goes_on();
    for path in 0..2 {
        target.set_ana(path, INACCESSIBLE);
    }
    within(Duration::from_secs(1), "no path", || paths(&mut load.host, &target.paths()) == [[T, F, F]; 2]);
    // Nothing is sent on an inaccessible path.
    let before = load.stands_still();
    target.set_ana(1, OPTIMIZED);
    within(Duration::from_secs(1), "I/O", || load.ios() > before);
    load.finish();
}

#[test]
fn s2_h_round_robin_shares_the_work() {
    let target = Target::start(2);
    let mut load = target.load(&json!({}));
    load.goes_on();
    for rr_min_io in [1, 64] {
        let policy = json!({ "policy": "active_active", "selector": "round_robin", "rr_min_io": rr_min_io });
        set_policy(&mut load.host, policy);
        let count = |host: &mut Host| -> Vec<u64> {
            let report = host.ok("bdev_nvme_get_io_paths", json!({ "name": "nvme0n1" }));
            let groups = report["poll_groups"].as_array().unwrap().clone();
            let of = |path: usize| -> u64 {
                groups.iter().filter_map(|group| group["io_paths"][path]["commands"].as_u64()).sum()
            };
            vec![of(0), of(1)]
        };
        let before = count(&mut load.host);
        let done = wait_for("work on both paths", || {
            let after = count(&mut load.host);
            let done: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
            (done.iter().sum::<u64>() > 2000).then_some(done)
        });
        let total: u64 = done.iter().sum();
        assert!(done.iter().all(|part| part * 100 / total >= 45), "rr_min_io {rr_min_io}: {done:?}");
    }
    load.finish();
}

#[test]
fn s2_g_a_path_whose_ana_page_cannot_be_read_is_used_again_once_it_can() {
    let mut target = Target::start(2);
    let mut load = target.load(&json!({}));
    load.goes_on();
    let report = load.host.ok("bdev_nvme_get_io_paths", json!({ "name": "nvme0n1" }));
    let all = report["poll_groups"][0]["io_paths"].as_array().unwrap().clone();
    let port = target.ports[0].to_string();
    let first = all.iter().find(|path| path["transport"]["trsvcid"] == port.as_str()).unwrap();
    // The page cannot be read twice: after a second, and after two more, it is asked for again.
    let error = json!({
        "name": "nvme0", "cntlid": first["cntlid"], "cmd_type": "admin", "opc": 2, "err_count": 2,
        "sct": 0, "sc": 6,
    });
    load.host.ok("bdev_nvme_add_error_injection", error);
    target.set_ana(0, "non_optimized");
    target.set_ana(0, OPTIMIZED);
    let ways = target.paths();
    within(Duration::from_secs(1), "the other path", || {
        paths(&mut load.host, &ways) == [[T, F, F], [T, T, T]]
    });
    load.goes_on();
    within(Duration::from_secs(5), "its return", || paths(&mut load.host, &ways) == [[T, T, T], [T, T, F]]);
    load.finish();
}

#[test]
fn s2_i_paths_policy_and_preferred_path_come_back_in_another_process() {
    let target = Target::start(2);
    let ways = target.paths();
    for (policy, expected) in [
        (json!({ "policy": "active_passive" }), [[T, T, F], [T, T, T]]),
        (json!({ "policy": "active_active", "selector": "queue_depth" }), [[T, T, T], [T, T, T]]),
    ] {
        let mut host = attach_both(&target, PATIENT);
        set_policy(&mut host, policy.clone());
        let preferred =
            json!({ "name": "nvme0n1", "traddr": "127.0.0.1", "trsvcid": ways[1].trsvcid.to_string() });
        host.ok("bdev_nvme_set_preferred_path", preferred);
        assert_eq!(paths(&mut host, &ways), expected);
        let saved = host.ok("save_config", json!({}));
        host.stop();
        let mut host = Host::start(saved.as_str().unwrap());
        within(Duration::from_secs(5), "both paths", || paths(&mut host, &ways) == expected);
        let device = host.ok("bdev_get_bdevs", json!({ "name": "nvme0n1" }));
        let told = &device[0]["driver_specific"];
        assert_eq!((&told["mp_policy"], &told["selector"]), (&policy["policy"], &policy["selector"]));
        assert_eq!(host.ok("save_config", json!({})), saved, "nothing was lost on the way");
        host.stop();
    }
}

#[test]
fn a_device_that_is_away_is_saved_with_all_its_paths() {
    let mut target = Target::start(2);
    let ways = target.paths();
    let mut host = attach_both(&target, &format!("{PATIENT}, \"ns_absent_timeout_sec\": 1"));
    set_policy(&mut host, json!({ "policy": "active_active" }));
    let saved = host.ok("save_config", json!({}));
    target.remove_namespace(1);
    within(Duration::from_secs(5), "no device", || host.bdevs().is_empty());
    assert_eq!(host.ok("save_config", json!({})), saved);
    host.stop();
    let mut host = Host::start(saved.as_str().unwrap());
    target.add_namespace(1, "f0", ONE);
    within(Duration::from_secs(5), "the device", || !host.bdevs().is_empty());
    within(Duration::from_secs(5), "both paths", || paths(&mut host, &ways) == [[T, T, T]; 2]);
    host.stop();
}

#[test]
fn a_controller_and_a_device_of_another_module_do_not_share_a_name() {
    let target = Target::start(1);
    let mut host = initiator();
    let device = |name: &str| json!({ "name": name, "num_blocks": 8, "block_size": 512 });
    host.ok("bdev_null_create", device("nvme0"));
    let taken = host.err("bdev_nvme_attach_controller", target.path(0, PATIENT));
    assert!(taken.code == -17 && taken.message.contains("nvme0"), "{taken:?}");
    host.ok("bdev_null_delete", json!({ "name": "nvme0" }));
    host.ok("bdev_nvme_attach_controller", target.path(0, PATIENT));
    let taken = host.err("bdev_null_create", device("nvme0"));
    assert!(taken.code == -17 && taken.message.contains("nvme0n1 of module nvme"), "{taken:?}");
    host.stop();
}
