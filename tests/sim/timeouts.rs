//! I/O that takes too long, and writes whose end nobody knows.

use std::cell::Cell;
use std::time::Duration;

use serde_json::json;

use crate::load::Load;
use crate::survive::{drain, run};
use crate::world::{ONE, World, for_seeds};

/// A device whose reads and writes take this long.
fn slow_device(world: &World, latency_us: u64) {
    world.device("m0", 1024);
    let params = json!({
        "name": "d0", "base": "m0", "avg_read_latency_us": latency_us, "p99_read_latency_us": latency_us,
        "avg_write_latency_us": latency_us, "p99_write_latency_us": latency_us,
    });
    world.wait(|world, reply| world.core.create("delay", &params, reply)).expect("device");
}

/// A namespace on such a device, attached.
fn slow(world: &World, latency_us: u64, options: serde_json::Value) -> Load {
    slow_device(world, latency_us);
    world.subsystem(&["a"]);
    world.add_namespace(1, "d0", ONE);
    world.rpc("bdev_nvme_set_options", options).expect("options");
    world.attach("a", json!({})).expect("attaches");
    Load::open(world, "nvme0n1", 0)
}

#[test]
fn an_io_that_takes_too_long_is_aborted() {
    for_seeds(10, |world| {
        let options = json!({ "timeout_us": 1_000_000, "action_on_timeout": "abort" });
        let load = slow(world, 10_000_000, options);
        load.submit_at(world, 0, world.roll(2) == 0);
        world.advance(Duration::from_millis(900));
        load.collect();
        assert_eq!(load.in_flight(), 1, "not too early");
        world.advance(Duration::from_millis(800));
        load.collect();
        assert_eq!(load.in_flight(), 0, "at the latest after one and a half");
        // The delay is over by that; the device below may have been through with it.
        let failed = load.failed.borrow();
        assert!(failed.iter().all(|status| status.as_nvme() == Some((0, 0x07))), "{failed:?}");
        drop(failed);
        assert_eq!(world.controllers(), ["enabled"]);
        load.close(world);
    });
}

#[test]
fn an_io_that_takes_too_long_resets_its_controller_and_ends_after_its_tries() {
    for_seeds(10, |world| {
        let options = json!({ "timeout_us": 1_000_000, "action_on_timeout": "reset", "bdev_retry_count": 1 });
        let load = slow(world, 60_000_000, options);
        load.submit_at(world, 0, false);
        world.advance(Duration::from_millis(1700));
        load.collect();
        assert_eq!(load.in_flight(), 1, "it is tried again");
        drain(world, &load, 5);
        assert_eq!(load.failed.borrow()[0].as_nvme(), Some((3, 0x71)), "aborted by the host");
        load.close(world);
    });
}

#[test]
fn an_io_that_takes_too_long_is_waited_for_if_nothing_else_is_asked() {
    for_seeds(5, |world| {
        let load = slow(world, 5_000_000, json!({ "timeout_us": 1_000_000, "action_on_timeout": "none" }));
        load.submit_at(world, 0, true);
        drain(world, &load, 6);
        assert!(load.failed.borrow().is_empty());
        assert_eq!(world.controllers(), ["enabled"]);
        load.close(world);
    });
}

#[test]
fn a_write_lost_with_its_path_is_not_repeated_before_the_old_one_is_known_dead() {
    let held_back = Cell::new(0);
    for_seeds(40, |world| {
        slow_device(world, 20_000);
        world.subsystem(&["a", "b"]);
        world.add_namespace(1, "d0", ONE);
        for path in ["a", "b"] {
            world.attach(path, json!({ "command_quiesce_time_ms": 2000 })).expect("attaches");
        }
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 10);
        for _ in 0..6 {
            load.submit(world);
            world.steps(world.roll(60));
        }
        world.stop_listening("a");
        world.advance(Duration::from_millis(500));
        load.collect();
        // Reads went on at once, by the other path.
        assert_eq!(load.in_flight(), load.writes_in_flight());
        let waits = load.writes_in_flight();
        held_back.set(held_back.get() + waits);
        // New I/O does not wait for them.
        let good = load.good.get();
        run(world, &load, 50);
        assert!(load.good.get() > good);
        world.advance(Duration::from_millis(1000));
        load.collect();
        assert_eq!(load.writes_in_flight(), waits, "held back");
        drain(world, &load, 2);
        assert!(load.failed.borrow().is_empty());
        world.listen("a");
        world.serves_within(5);
        load.close(world);
    });
    assert!(held_back.get() > 0, "some write was on its way");
}

#[test]
fn an_io_fails_at_its_deadline_wherever_it_waits() {
    for_seeds(10, |world| {
        world
            .rpc("bdev_nvme_set_options", json!({ "io_deadline_ms": 2000, "bdev_retry_count": -1 }))
            .expect("set");
        world.export(&["a"]);
        world.attach("a", json!({})).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 5);
        drain(world, &load, 1);
        let waits_for_its_deadline = |what: &str| {
            let failed = load.failed.borrow().len();
            load.submit_at(world, 512, world.roll(2) == 0);
            world.advance(Duration::from_millis(1990));
            load.collect();
            assert_eq!((load.in_flight(), load.failed.borrow().len()), (1, failed), "{what}: not too early");
            world.advance(Duration::from_millis(20));
            load.collect();
            assert_eq!(load.in_flight(), 0, "{what}: two seconds are over");
            assert_eq!(load.failed.borrow()[failed].as_nvme(), Some((3, 0x71)), "{what}");
        };
        // Not ready, again and again.
        for opc in [1, 2] {
            let never_ready = json!({
                "name": "nvme0", "cmd_type": "io", "opc": opc, "err_count": 1_000_000, "sct": 0, "sc": 0x82,
            });
            world.rpc("bdev_nvme_add_error_injection", never_ready).expect("injects");
        }
        waits_for_its_deadline("it is tried again and again");
        for opc in [1, 2] {
            let remove = json!({ "name": "nvme0", "cmd_type": "io", "opc": opc });
            world.rpc("bdev_nvme_remove_error_injection", remove).expect("removes");
        }
        world.stop_listening("a");
        world.advance(Duration::from_millis(100));
        waits_for_its_deadline("there is no path");
        world.listen("a");
        world.serves_within(5);
        run(world, &load, 5);
        drain(world, &load, 1);
        load.close(world);
    });
}

#[test]
fn an_io_on_its_way_is_aborted_at_its_deadline_and_its_controller_reset_if_that_does_not_help() {
    for_seeds(10, |world| {
        let is_deaf = world.roll(2) == 0;
        let load = slow(world, 60_000_000, json!({ "io_deadline_ms": 2000 }));
        if is_deaf {
            let abort = json!({
                "name": "nvme0", "cmd_type": "admin", "opc": 8, "do_not_submit": true, "timeout_in_us": 9_000_000,
            });
            world.rpc("bdev_nvme_add_error_injection", abort).expect("injects");
        }
        load.submit_at(world, 0, false);
        world.advance(Duration::from_millis(1990));
        load.collect();
        assert_eq!(load.in_flight(), 1, "not too early");
        // Looked at four times in a deadline: aborted at the next look, lost at the one after it.
        world.advance(Duration::from_millis(if is_deaf { 1100 } else { 600 }));
        load.collect();
        assert_eq!(load.in_flight(), 0);
        let failed: Vec<_> = load.failed.borrow().iter().map(|status| status.as_nvme()).collect();
        match is_deaf {
            true => assert_eq!(failed, [Some((3, 0x71))]),
            // The delay is over by that; the device below may have been through with it.
            false => assert!(failed.iter().all(|status| *status == Some((0, 0x07))), "{failed:?}"),
        }
        world.serves_within(5);
        load.close(world);
    });
}
