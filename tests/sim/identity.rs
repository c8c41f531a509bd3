//! A namespace that cannot become a device, because its UUID or its name is that
//! of another one in the host: who attaches it is told, and nothing else changes.

use std::time::Duration;

use serde_json::json;
use tenon_abi::errno;
use tenon_bdev::{OpError, State};

use crate::load::Load;
use crate::survive::{drain, run};
use crate::world::{ONE, World, for_seeds};

const TWO: &str = "22222222-2222-4222-8222-222222222222";

#[track_caller]
fn is_refused(result: Result<serde_json::Value, OpError>, words: &[&str]) {
    let error = result.expect_err("it is refused");
    assert_eq!(error.code, errno::EEXIST, "{error}");
    let told = error.to_string();
    assert!(words.iter().all(|word| told.contains(word)), "{told}");
}

fn names(world: &World) -> Vec<String> {
    world.on(|world| world.core.bdev_names())
}

#[test]
fn a_namespace_with_the_uuid_of_a_local_device_is_refused_and_leaves_nothing() {
    for_seeds(20, |world| {
        ["m0", "m1"].iter().for_each(|name| world.device(name, 256));
        let own = world.bdev("m0").expect("a device").uuid.to_string();
        world.subsystem(&["a"]);
        // The first of them could become a device.
        world.add_namespace(1, "m1", ONE);
        world.add_namespace(2, "m0", &own);
        let words = ["nvme0n2", &own, "device m0 of module malloc", "give one of the two another UUID"];
        for _ in 0..2 {
            is_refused(world.attach("a", json!({})), &words);
            assert_eq!(names(world), ["m0", "m1"]);
            assert!(world.controllers().is_empty());
        }
        world.remove_namespace(2);
        world.add_namespace(2, "m0", TWO);
        assert_eq!(world.attach("a", json!({})).expect("attaches"), json!(["nvme0n1", "nvme0n2"]));
    });
}

#[test]
fn a_subsystem_that_is_attached_by_another_name_is_refused_with_that_name() {
    for_seeds(20, |world| {
        world.export(&["a", "b"]);
        world.attach("a", json!({})).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 5);
        let words = ["nvme1n1", ONE, "device nvme0n1 of module nvme", "attach with the name nvme0"];
        is_refused(world.attach("b", json!({ "name": "nvme1" })), &words);
        run(world, &load, 5);
        assert_eq!((names(world), world.controllers().len()), (vec!["m0".to_owned(), "nvme0n1".into()], 1));
        world.attach("b", json!({})).expect("it is a path");
        run(world, &load, 5);
        drain(world, &load, 1);
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        assert_eq!(world.paths("nvme0n1").len(), 2);
        load.close(world);
    });
}

#[test]
fn a_name_that_is_taken_refuses_the_attach_and_not_the_paths_there_are() {
    for_seeds(20, |world| {
        ["m0", "m1", "nvme0n2"].iter().for_each(|name| world.device(name, 256));
        world.subsystem(&["a", "b"]);
        world.add_namespace(1, "m0", ONE);
        world.attach("a", json!({})).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        // It comes while the controller serves: nobody has asked, the log tells.
        world.add_namespace(2, "m1", TWO);
        world.advance(Duration::from_millis(50));
        run(world, &load, 5);
        let words = ["name nvme0n2 is that of device nvme0n2 of module malloc", "attach with another name"];
        is_refused(world.attach("b", json!({})), &words);
        run(world, &load, 5);
        drain(world, &load, 1);
        assert!(load.failed.borrow().is_empty(), "{:?}", load.failed.borrow());
        assert_eq!((world.state("nvme0n1"), world.paths("nvme0n1").len()), (Some(State::Ready), 1));
        load.close(world);
    });
}
