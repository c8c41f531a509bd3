//! Ends that an operator wants commands to have, and what follows from them:
//! above all an ANA page that cannot be read, scenario S2.g.

use std::time::Duration;

use serde_json::{Value, json};
use tenon_abi::IoStatus;
use tenon_nvmf_target::{AnaState, SubsystemSpec};

use crate::load::Load;
use crate::multipath::two_paths;
use crate::survive::{drain, run};
use crate::world::{NQN, ONE, World, for_seeds};

/// Opcodes.
const WRITE: u8 = 1;
const READ: u8 = 2;
const GET_LOG_PAGE: u8 = 2;

fn controllers(world: &World) -> Vec<Value> {
    let all = world.rpc("bdev_nvme_get_controllers", json!({ "name": "nvme0" })).expect("answers");
    all[0]["ctrlrs"].as_array().expect("controllers").clone()
}

/// Injects at the path by this address.
fn inject(world: &World, traddr: &str, cmd_type: &str, opc: u8, more: Value) {
    let path = controllers(world).into_iter().find(|one| one["trid"]["traddr"] == traddr).expect("a path");
    let mut params = json!({ "name": "nvme0", "cntlid": path["cntlid"], "cmd_type": cmd_type, "opc": opc });
    params.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    assert_eq!(world.rpc("bdev_nvme_add_error_injection", params).expect("injects"), true);
}

/// Commands that each path has taken, and those of them that failed.
fn commands(world: &World) -> [[u64; 2]; 2] {
    let all = world.rpc("bdev_nvme_get_io_paths", json!({ "name": "nvme0n1" })).expect("answers");
    let group =
        all["poll_groups"].as_array().expect("groups").iter().find(|one| one["thread"] == "reactor_0");
    let paths = group.expect("a reactor")["io_paths"].as_array().expect("paths").clone();
    let of = |path: &Value| ["commands", "failed_commands"].map(|key| path[key].as_u64().expect("a number"));
    [of(&paths[0]), of(&paths[1])]
}

/// Some I/O, all of which comes back.
fn work(world: &World, load: &Load) {
    let before = load.good.get() + load.failed.borrow().len() as u64;
    run(world, load, 20);
    drain(world, load, 5);
    assert!(load.good.get() + load.failed.borrow().len() as u64 > before);
}

#[test]
fn s2_g_a_path_whose_ana_page_cannot_be_read_is_used_again_once_it_can() {
    for_seeds(10, |world| {
        let load = two_paths(world);
        let failures = 1 + world.roll(4);
        let error = json!({ "err_count": failures, "sct": 0, "sc": 6 });
        inject(world, "a", "admin", GET_LOG_PAGE, error);
        world.ana("a", AnaState::NON_OPTIMIZED);
        world.ana("a", AnaState::OPTIMIZED);
        let changed_ns = world.now_ns();
        world.advance(Duration::from_millis(100));
        let flags = |world: &World| world.paths("nvme0n1").iter().map(|path| path.1).collect::<Vec<_>>();
        assert_eq!(flags(world), [[true, false, false], [true; 3]], "its state is not known");
        work(world, &load);
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        // Pauses of 1, 2, 4, 8 s, each begun when a read has failed.
        while controllers(world)[0]["error_injections"].is_array() || flags(world)[0] != [true; 3] {
            let waited = Duration::from_nanos(world.now_ns() - changed_ns);
            assert!(waited < Duration::from_secs(1 << failures), "{failures} failures, {waited:?}");
            world.advance(Duration::from_millis(20));
        }
        let waited = Duration::from_nanos(world.now_ns() - changed_ns);
        assert!(waited >= Duration::from_secs((1 << failures) - 1), "it is not asked for without a pause");
        work(world, &load);
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        load.close(world);
    });
}

#[test]
fn s2_g_a_path_is_not_used_while_the_first_read_of_its_ana_page_fails_either() {
    for_seeds(10, |world| {
        let load = two_paths(world);
        inject(world, "a", "admin", GET_LOG_PAGE, json!({ "err_count": 2 }));
        world.stop_listening("a");
        world.advance(Duration::from_millis(200));
        world.listen("a");
        world.serves_within(5);
        assert_eq!(world.paths("nvme0n1")[0].1, [true, false, false]);
        world.advance(Duration::from_secs(4));
        assert_eq!(world.paths("nvme0n1")[0].1, [true; 3]);
        load.close(world);
    });
}

#[test]
fn s2_g_a_controller_that_reports_no_ana_states_is_accessible() {
    for_seeds(10, |world| {
        world.device("m0", 1024);
        let spec = SubsystemSpec { allow_any_host: true, ana_reporting: false, ..SubsystemSpec::new(NQN) };
        world.wait(|world, reply| world.target.create_subsystem(spec, reply)).expect("subsystem");
        world.listen("a");
        world.add_namespace(1, "m0", ONE);
        world.attach("a", json!({})).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        world.advance(Duration::from_millis(10));
        assert_eq!(world.paths("nvme0n1")[0].1, [true; 3]);
        work(world, &load);
        load.close(world);
    });
}

#[test]
fn an_io_ends_as_injected_and_the_next_as_it_does() {
    for_seeds(10, |world| {
        let load = two_paths(world);
        inject(world, "a", "io", READ, json!({ "err_count": 2, "sct": 2, "sc": 0x81 }));
        for _ in 0..3 {
            load.submit_at(world, 0, false);
            world.advance(Duration::from_millis(50));
            load.collect();
        }
        assert_eq!(*load.failed.borrow(), [IoStatus::UNRECOVERED_READ; 2]);
        assert_eq!((load.good.get(), load.in_flight()), (1, 0));
        assert!(controllers(world)[0]["error_injections"].is_null(), "used up");
        load.close(world);
    });
}

#[test]
fn an_io_that_a_path_fails_by_its_own_fault_goes_to_another() {
    for_seeds(10, |world| {
        let load = two_paths(world);
        let pathing_error = json!({ "err_count": 1_000_000, "sct": 3, "sc": 0 });
        inject(world, "a", "io", READ, pathing_error.clone());
        inject(world, "a", "io", WRITE, pathing_error);
        work(world, &load);
        let (good, [first, second]) = (load.good.get(), commands(world));
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        assert_eq!(first, [good; 2], "each was tried there first");
        assert_eq!(second, [good, 0], "and once on the other");
        let remove = |opc| json!({ "name": "nvme0", "cmd_type": "io", "opc": opc });
        for opc in [READ, WRITE] {
            world.rpc("bdev_nvme_remove_error_injection", remove(opc)).expect("removed");
        }
        work(world, &load);
        assert_eq!(commands(world)[1], second, "the first is as good as before");
        load.close(world);
    });
}

#[test]
fn an_io_that_is_not_submitted_takes_its_time_and_leaves_nothing() {
    for_seeds(10, |world| {
        let load = two_paths(world);
        let unsent = json!({ "do_not_submit": true, "timeout_in_us": 2_000_000, "sct": 2, "sc": 0x80 });
        inject(world, "a", "io", WRITE, unsent);
        let before = commands(world)[0][0];
        load.submit_at(world, 512, true);
        world.advance(Duration::from_millis(1990));
        load.collect();
        assert_eq!((load.in_flight(), load.good.get()), (1, 0), "it seems to be on its way");
        world.advance(Duration::from_millis(20));
        load.collect();
        assert_eq!(*load.failed.borrow(), [IoStatus::nvme(2, 0x80)]);
        assert_eq!(commands(world)[0][0], before, "the controller has not seen it");
        load.close(world);
    });
}

#[test]
fn an_admin_command_that_is_not_submitted_is_late_for_its_controller() {
    for_seeds(10, |world| {
        world.rpc("bdev_nvme_set_options", json!({ "timeout_admin_us": 1_000_000 })).expect("set");
        let load = two_paths(world);
        let unsent = json!({ "do_not_submit": true, "timeout_in_us": 60_000_000 });
        inject(world, "a", "admin", GET_LOG_PAGE, unsent);
        world.ana("a", AnaState::NON_OPTIMIZED);
        world.advance(Duration::from_millis(950));
        assert_eq!(world.paths("nvme0n1")[0].1, [true, false, false], "it may still come");
        world.advance(Duration::from_millis(100));
        world.serves_within(5);
        assert!(controllers(world)[0]["error_injections"].is_null(), "used up");
        work(world, &load);
        assert_eq!(world.paths("nvme0n1")[0].1[..2], [true; 2]);
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        load.close(world);
    });
}

#[test]
fn what_cannot_be_injected_is_refused_with_words() {
    for_seeds(1, |world| {
        let load = two_paths(world);
        let add = |more: Value| {
            let mut params = json!({ "name": "nvme0", "cmd_type": "io", "opc": 2 });
            params.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            world.rpc("bdev_nvme_add_error_injection", params).expect_err("refused").to_string()
        };
        assert!(add(json!({ "name": "nvme7" })).contains("nvme7"));
        assert!(add(json!({ "cntlid": 0xfff0 })).contains("nvme0"));
        assert!(add(json!({ "err_count": 0 })).contains("err_count is 0"));
        assert!(add(json!({ "cmd_type": "other" })).contains("cmd_type"));
        load.close(world);
    });
}
