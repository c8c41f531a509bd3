//! Scenario S0: an initiator survives its target, whatever comes back.

use std::time::Duration;

use serde_json::json;
use tenon_abi::{BdevEventKind, IoStatus};
use tenon_bdev::State;
use tenon_nvmf_target::NamespaceSpec;

use crate::load::Load;
use crate::world::{NQN, ONE, TWO, World, for_seeds};

/// Keeps a load going for some virtual time.
pub fn run(world: &World, load: &Load, ms: u64) {
    for _ in 0..ms {
        for _ in 0..world.roll(4) {
            load.submit(world);
        }
        world.advance(Duration::from_millis(1));
        load.collect();
    }
}

/// Waits until everything is complete.
#[track_caller]
pub fn drain(world: &World, load: &Load, seconds: u64) {
    let end_ns = world.now_ns() + seconds * 1_000_000_000;
    while load.in_flight() > 0 {
        assert!(world.now_ns() < end_ns, "{} i/o wait after {seconds} s", load.in_flight());
        world.advance(Duration::from_millis(10));
        load.collect();
    }
}

/// An empty target, attached; then a namespace, which becomes a device.
fn attached(world: &World) {
    world.device("m0", 1024);
    world.subsystem(&["a"]);
    assert_eq!(world.attach("a", json!({})).expect("attaches"), json!([]));
    assert_eq!(world.controllers(), ["enabled"]);
    world.add_namespace(1, "m0", ONE);
    assert!(world.within(Duration::from_secs(5), || world.core.bdev("nvme0n1").is_some()), "within 5 s");
    world.settle();
    assert_eq!(world.bdev("nvme0n1").expect("listed").uuid.to_string(), ONE);
}

#[test]
fn s0_a_b_an_empty_target_is_attached_and_a_namespace_appears() {
    for_seeds(20, |world| {
        attached(world);
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 50);
        drain(world, &load, 5);
        assert!(load.failed.borrow().is_empty() && load.good.get() > 0);
        load.close(world);
    });
}

#[test]
fn s0_c_e_a_device_outlives_its_target_and_goes_on_with_the_same_namespace() {
    for_seeds(20, |world| {
        attached(world);
        let handle = world.bdev("nvme0n1").expect("listed").handle;
        let reactor = world.roll(2) as usize;
        let load = Load::open(world, "nvme0n1", reactor);
        run(world, &load, 20);
        world.kill_subsystem();
        run(world, &load, 1 + world.roll(3000));
        let good = load.good.get();
        world.subsystem(&["a"]);
        world.serves_within(3);
        run(world, &load, 200);
        assert_eq!(load.good.get(), good, "nothing succeeds without a namespace");
        let bdev = world.bdev("nvme0n1").expect("still listed");
        assert_eq!((bdev.handle, bdev.uuid.to_string()), (handle, ONE.to_owned()));
        assert_eq!(bdev.state, State::Absent);
        if reactor == 0 {
            let path = ("a".to_owned(), [true, false, false]);
            assert_eq!(world.paths("nvme0n1"), [path], "connected, and no more");
        }
        assert!(!load.events.borrow().contains(&BdevEventKind::REMOVE));
        world.add_namespace(1, "m0", ONE);
        drain(world, &load, 2);
        run(world, &load, 50);
        drain(world, &load, 2);
        assert!(load.good.get() > good && load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        assert_eq!(world.bdev("nvme0n1").expect("listed").handle, handle);
        load.close(world);
    });
}

#[test]
fn s0_d_a_namespace_that_stays_away_too_long_takes_its_device_along() {
    for_seeds(10, |world| {
        world.export(&["a"]);
        world.attach("a", json!({ "ns_absent_timeout_sec": 5 })).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 10);
        world.kill_subsystem();
        // Some I/O waits for the connection already, some for the namespace.
        run(world, &load, 5);
        world.subsystem(&["a"]);
        world.serves_within(5);
        run(world, &load, 100);
        let gone =
            world.within(Duration::from_secs(7), || load.events.borrow().contains(&BdevEventKind::REMOVE));
        assert!(gone, "removed when its time is up");
        drain(world, &load, 2);
        assert!(!load.failed.borrow().is_empty());
        load.close(world);
        world.settle();
        assert!(world.bdev("nvme0n1").is_none());
    });
}

#[test]
fn s0_d_without_a_limit_io_waits_as_long_as_the_namespace_is_away() {
    for_seeds(10, |world| {
        attached(world);
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 10);
        world.kill_subsystem();
        world.subsystem(&["a"]);
        world.serves_within(5);
        run(world, &load, 100);
        let (waits, good) = (load.in_flight(), load.good.get());
        world.advance(Duration::from_secs(30));
        load.collect();
        assert_eq!((load.in_flight(), load.good.get()), (waits, good));
        world.add_namespace(1, "m0", ONE);
        drain(world, &load, 2);
        assert!(load.failed.borrow().is_empty());
        load.close(world);
    });
}

#[test]
fn s0_h_a_device_shrinks_and_grows_under_those_who_use_it() {
    for_seeds(20, |world| {
        let resize = |mib: u64| world.rpc("bdev_null_resize", json!({ "name": "n0", "new_size": mib }));
        let params = json!({ "name": "n0", "num_blocks": 128 * 2048, "block_size": 512 });
        world.wait(|world, reply| world.core.create("null", &params, reply)).expect("device");
        world.subsystem(&["a"]);
        world.add_namespace(1, "n0", ONE);
        world.attach("a", json!({})).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        let blocks = || world.bdev("nvme0n1").expect("listed").limits.num_blocks;
        // The tail is in use while it goes.
        for _ in 0..1 + world.roll(8) {
            load.submit_at(world, 127 * 2048, world.roll(2) == 0);
            world.steps(world.roll(40));
        }
        resize(32).expect("shrinks");
        drain(world, &load, 5);
        assert!(load.failed.borrow().iter().all(|status| *status == IoStatus::LBA_OUT_OF_RANGE));
        world.advance(Duration::from_secs(2));
        assert_eq!(blocks(), 32 * 2048);
        assert!(load.events.borrow().contains(&BdevEventKind::RESIZE));
        load.failed.borrow_mut().clear();
        let good = load.good.get();
        load.submit_at(world, 32 * 2048, true);
        load.submit_at(world, 32 * 2048 - 4, false);
        load.submit_at(world, 0, true);
        drain(world, &load, 5);
        assert_eq!(*load.failed.borrow(), [IoStatus::LBA_OUT_OF_RANGE; 2], "beyond the end, and across it");
        assert_eq!(load.good.get(), good + 1);
        resize(256).expect("grows");
        world.advance(Duration::from_secs(2));
        assert_eq!(blocks(), 256 * 2048);
        load.submit_at(world, 255 * 2048, true);
        drain(world, &load, 5);
        assert_eq!(load.good.get(), good + 2);
        load.close(world);
    });
}

#[test]
fn s0_f_another_namespace_of_the_same_number_is_another_device() {
    for_seeds(10, |world| {
        attached(world);
        world.device("m1", 1024);
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 20);
        world.kill_subsystem();
        run(world, &load, 100);
        let good = load.good.get();
        world.subsystem(&["a"]);
        world.add_namespace(1, "m1", TWO);
        world.serves_within(5);
        let removed =
            world.within(Duration::from_secs(2), || load.events.borrow().contains(&BdevEventKind::REMOVE));
        assert!(removed, "openers of the old device are told");
        drain(world, &load, 2);
        assert_eq!(load.good.get(), good, "no i/o reached the new namespace");
        load.close(world);
        world.settle();
        let uuids: Vec<String> = world.on(|world| {
            let all = world.core.bdevs();
            all.iter().filter(|bdev| bdev.module == "nvme").map(|bdev| bdev.uuid.to_string()).collect()
        });
        assert_eq!(uuids, [TWO]);
    });
}

#[test]
fn s0_g_the_view_changes_only_while_connected() {
    for_seeds(10, |world| {
        for (name, blocks) in [("m1", 1024), ("m2", 1024), ("m3", 2048)] {
            world.device(name, blocks);
        }
        world.device("m1b", 4096);
        world.subsystem(&["a"]);
        world.add_namespace(1, "m1", ONE);
        world.add_namespace(2, "m2", TWO);
        world.attach("a", json!({})).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        world.stop_listening("a");
        world.advance(Duration::from_secs(1));
        world.remove_namespace(1);
        world.add_namespace(1, "m1b", ONE);
        world.remove_namespace(2);
        world.add_namespace(3, "m3", "33333333-3333-4333-8333-333333333333");
        world.advance(Duration::from_secs(3));
        let blocks = |name: &str| world.bdev(name).map(|bdev| bdev.limits.num_blocks);
        assert_eq!((blocks("nvme0n1"), blocks("nvme0n2"), blocks("nvme0n3")), (Some(1024), Some(1024), None));
        world.listen("a");
        world.serves_within(15);
        assert_eq!((blocks("nvme0n1"), blocks("nvme0n3")), (Some(4096), Some(2048)));
        assert_eq!(world.state("nvme0n2"), Some(State::Absent));
        assert!(load.events.borrow().contains(&BdevEventKind::RESIZE));
        world.remove_namespace(3);
        world.advance(Duration::from_secs(2));
        assert!(world.bdev("nvme0n3").is_none(), "what is removed while connected is gone");
        load.close(world);
    });
}

#[test]
fn s0_i_an_empty_path_is_left_and_comes_back() {
    // Each path is another host to the target, which can take the namespace from one of them.
    let host = |path: &str| format!("nqn.2026-01.io.tenon:host-{path}");
    for_seeds(20, |world| {
        world.device("m0", 1024);
        world.subsystem(&["a", "b"]);
        let spec = NamespaceSpec {
            bdev_name: "m0".into(),
            nsid: Some(1),
            uuid: uuid::Uuid::parse_str(ONE).ok(),
            no_auto_visible: true,
            ..NamespaceSpec::default()
        };
        world.wait(|world, reply| world.target.add_namespace(NQN, spec, reply)).expect("namespace");
        let show = |path: &str, is_visible| {
            let set = world.on(|world| world.target.set_namespace_visible(NQN, 1, &host(path), is_visible));
            set.expect("a namespace that is not visible to all");
        };
        for path in ["a", "b"] {
            show(path, true);
            world.attach(path, json!({ "hostnqn": host(path) })).expect("attaches");
        }
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 20);
        world.stop_listening("a");
        show("a", false);
        run(world, &load, world.roll(200));
        world.listen("a");
        world.serves_within(5);
        run(world, &load, 100);
        drain(world, &load, 1);
        let paths = world.paths("nvme0n1");
        assert_eq!((paths[0].1, paths[1].1), ([true, false, false], [true; 3]), "connected and empty");
        assert_eq!(world.state("nvme0n1"), Some(State::Ready));
        show("a", true);
        world.advance(Duration::from_secs(2));
        assert_eq!(world.paths("nvme0n1")[0].1[..2], [true; 2]);
        run(world, &load, 20);
        drain(world, &load, 1);
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        load.close(world);
    });
}

#[test]
fn s0_j_anything_at_any_time_loses_nothing() {
    for_seeds(100, |world| {
        attached(world);
        let load = Load::open(world, "nvme0n1", world.roll(2) as usize);
        let mut has_namespace = true;
        for _ in 0..40 {
            for _ in 0..world.roll(6) {
                load.submit(world);
            }
            match world.roll(8) {
                0 => {
                    world.kill_subsystem();
                    world.steps(world.roll(300));
                    world.subsystem(&["a"]);
                    has_namespace = false;
                }
                1 if !has_namespace => {
                    world.add_namespace(1, "m0", ONE);
                    has_namespace = true;
                }
                2 => {
                    world.stop_listening("a");
                    world.steps(world.roll(300));
                    world.listen("a");
                }
                3 => {
                    let _ = world.on(|world| {
                        let params = json!({ "name": "nvme0" });
                        world.core.rpc("bdev_nvme_reset_controller", &params, |_| ())
                    });
                }
                4 => world.advance(Duration::from_millis(world.roll(2500))),
                _ => world.steps(world.roll(400)),
            }
            load.collect();
        }
        if !has_namespace {
            world.add_namespace(1, "m0", ONE);
        }
        drain(world, &load, 10);
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        assert!(!load.events.borrow().contains(&BdevEventKind::REMOVE));
        load.close(world);
    });
}

#[test]
fn a_controller_is_detached_whatever_it_is_doing() {
    for_seeds(60, |world| {
        attached(world);
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, world.roll(30));
        match world.roll(3) {
            0 => world.kill_subsystem(),
            1 => world.stop_listening("a"),
            _ => {}
        }
        world.steps(world.roll(2000));
        let answer = std::rc::Rc::new(std::cell::Cell::new(false));
        let answered = answer.clone();
        world.on(|world| {
            let params = json!({ "name": "nvme0" });
            world.core.rpc("bdev_nvme_detach_controller", &params, move |result| {
                assert!(result.is_ok());
                answered.set(true);
            })
        });
        let told =
            world.within(Duration::from_secs(10), || load.events.borrow().contains(&BdevEventKind::REMOVE));
        assert!(told, "openers are told");
        drain(world, &load, 10);
        load.close(world);
        assert!(world.within(Duration::from_secs(10), || answer.get()), "detached");
        assert!(world.controllers().is_empty() && world.bdev("nvme0n1").is_none());
    });
}

#[test]
fn controllers_come_and_go_under_io_and_leave_nothing() {
    for_seeds(2, |world| {
        world.export(&["a"]);
        let rounds = std::env::var("TENON_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(50);
        for _ in 0..rounds {
            world.attach("a", json!({})).expect("attaches");
            let load = Load::open(world, "nvme0n1", world.roll(2) as usize);
            for _ in 0..world.roll(12) {
                load.submit_at(world, 8 * world.roll(100), world.roll(2) == 0);
                world.steps(world.roll(100));
            }
            let gone = std::rc::Rc::new(std::cell::Cell::new(false));
            let is_gone = gone.clone();
            world.on(|world| {
                let params = json!({ "name": "nvme0" });
                world.core.rpc("bdev_nvme_detach_controller", &params, move |_| is_gone.set(true))
            });
            let told = || load.events.borrow().contains(&BdevEventKind::REMOVE);
            assert!(world.within(Duration::from_secs(10), told), "openers are told");
            drain(world, &load, 10);
            load.close(world);
            assert!(world.within(Duration::from_secs(10), || gone.get()), "detached");
            assert!(world.controllers().is_empty() && world.bdev("nvme0n1").is_none());
        }
    });
}

#[test]
fn io_to_a_lost_controller_fails_when_its_timer_says_so() {
    for_seeds(10, |world| {
        world.export(&["a"]);
        let timers = json!({ "ctrlr_loss_timeout_sec": 8, "fast_io_fail_timeout_sec": 3 });
        world.attach("a", timers).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 10);
        drain(world, &load, 1);
        world.kill_subsystem();
        load.submit(world);
        world.advance(Duration::from_millis(2500));
        load.collect();
        assert_eq!(load.in_flight(), 1, "it waits at first");
        drain(world, &load, 1);
        assert_eq!(load.failed.borrow()[0].as_nvme(), Some((3, 0x70)), "host pathing error");
        assert!(world.bdev("nvme0n1").is_some());
        let told =
            world.within(Duration::from_secs(8), || load.events.borrow().contains(&BdevEventKind::REMOVE));
        assert!(told, "the controller is given up after 8 s");
        load.close(world);
        world.advance(Duration::from_secs(1));
        assert!(world.controllers().is_empty() && world.bdev("nvme0n1").is_none());
    });
}

#[test]
fn an_attach_that_fails_says_why_and_leaves_nothing() {
    for_seeds(5, |world| {
        let error = world.attach("nowhere", json!({})).expect_err("nobody listens");
        assert!(error.to_string().contains("refused"), "{error}");
        world.subsystem(&["a"]);
        let error =
            world.attach("a", json!({ "subnqn": "nqn.2026-01.io.tenon:other" })).expect_err("unknown");
        assert!(error.to_string().contains("connect was refused"), "{error}");
        assert!(world.controllers().is_empty());
        world.attach("a", json!({})).expect("attaches");
        let error = world.attach("a", json!({})).expect_err("twice");
        assert_eq!(error.code, -114, "{error}");
        assert_eq!(world.controllers(), ["enabled"], "{NQN}");
    });
}
