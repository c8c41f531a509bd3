//! What is saved of controllers makes them again: all paths, how they are used,
//! and discovery services.

use std::time::Duration;

use serde_json::{Value, json};

use crate::load::Load;
use crate::world::{ONE, World, for_seeds};

/// The tables of the module, as the configuration has them.
fn saved(world: &World) -> Vec<Value> {
    let entries = world.on(|world| world.core.saved_config());
    entries.into_iter().filter(|entry| entry.module == "nvme").map(|entry| entry.params).collect()
}

fn detach(world: &World) {
    world.rpc("bdev_nvme_detach_controller", json!({ "name": "nvme0" })).expect("detaches");
    assert!(world.bdev("nvme0n1").is_none() && world.controllers().is_empty());
}

/// Makes a table, as a start does.
fn make(world: &World, table: &Value) -> Value {
    world.wait(|world, reply| world.core.create("nvme", table, reply)).expect("created").result
}

fn set(world: &World, preferred: &str, policy: &str) {
    let path = json!({ "name": "nvme0n1", "traddr": preferred });
    world.rpc("bdev_nvme_set_preferred_path", path).expect("set");
    let policy = json!({ "name": "nvme0n1", "policy": policy });
    world.rpc("bdev_nvme_set_multipath_policy", policy).expect("set");
}

/// Which paths are current, once somebody uses the device.
fn current(world: &World) -> Vec<(String, bool)> {
    let load = Load::open(world, "nvme0n1", 0);
    world.advance(Duration::from_millis(20));
    let paths = world.paths("nvme0n1");
    load.close(world);
    paths.into_iter().map(|(traddr, flags)| (traddr, flags[2])).collect()
}

fn told(a: bool, b: bool) -> Vec<(String, bool)> {
    vec![("a".to_owned(), a), ("b".to_owned(), b)]
}

#[test]
fn s2_i_paths_policy_and_preferred_path_survive_a_save() {
    for_seeds(10, |world| {
        world.export(&["a", "b"]);
        world.attach_all(&["a", "b"]);
        for (policy, expected) in [("active_passive", told(false, true)), ("active_active", told(true, true))]
        {
            set(world, "b", policy);
            let tables = saved(world);
            assert_eq!(tables.len(), 1, "one table for all paths: {tables:?}");
            assert_eq!(tables[0]["paths"], json!([{ "traddr": "b" }]));
            // What is remembered of the device is not what makes it so again.
            set(world, "a", if policy == "active_passive" { "active_active" } else { "active_passive" });
            detach(world);
            assert!(saved(world).is_empty());
            assert_eq!(make(world, &tables[0]), json!(["nvme0n1"]));
            assert_eq!(current(world), expected, "{policy}");
            assert_eq!(saved(world), tables, "saved again it is the same");
        }
        world
            .wait(|world, reply| world.core.delete("nvme0", Some("nvme"), reply))
            .expect("a reload deletes it");
        assert!(world.bdev("nvme0n1").is_none() && world.controllers().is_empty());
    });
}

#[test]
fn s2_i_a_path_that_is_away_at_the_start_comes_later() {
    for_seeds(10, |world| {
        world.export(&["a"]);
        let table = |loss: i32| {
            json!({
                "name": "nvme0", "trtype": "LOOP", "traddr": "b", "subnqn": crate::world::NQN,
                "ctrlr_loss_timeout_sec": loss, "reconnect_delay_sec": 1, "paths": [{ "traddr": "a" }],
            })
        };
        assert_eq!(make(world, &table(-1)), json!(["nvme0n1"]), "one path is enough");
        assert_eq!(current(world), [("a".to_owned(), true)]);
        world.listen("b");
        world.serves_within(3);
        assert_eq!(world.controllers().len(), 2);
        detach(world);
        world.kill_subsystem();
        // With no path at all the name waits for one.
        let missing = make(world, &table(-1));
        let told = format!("cannot attach to {} at b", crate::world::NQN);
        assert!(missing["missing"][0].as_str().is_some_and(|text| text.contains(&told)), "{missing}");
        world.subsystem(&["a", "b"]);
        world.add_namespace(1, "m0", ONE);
        world.serves_within(3);
        assert!(world.bdev("nvme0n1").is_some());
        detach(world);
    });
}

#[test]
fn s2_i_a_discovery_service_survives_a_save() {
    for_seeds(10, |world| {
        world.export(&["a", "b"]);
        let service = json!({
            "name": "disc", "trtype": "LOOP", "traddr": "a", "wait_for_attach": true,
            "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1,
        });
        world.rpc("bdev_nvme_start_discovery", service).expect("starts");
        let tables = saved(world);
        assert_eq!((tables.len(), &tables[0]["discovery"]), (1, &json!(true)), "{tables:?}");
        world
            .wait(|world, reply| world.core.delete("disc", Some("nvme"), reply))
            .map_or_else(|error| panic!("a reload deletes it: {error}"), |_| ());
        assert!(world.controllers().is_empty() && saved(world).is_empty());
        make(world, &tables[0]);
        assert_eq!(world.controllers(), ["enabled", "enabled"]);
        assert_eq!(saved(world), tables);
        world.wait(|world, reply| world.core.delete("disc", Some("nvme"), reply)).expect("deleted");
        // One that waits for nothing has no devices of its own: they come by themselves.
        let mut table = tables[0].clone();
        table.as_object_mut().expect("a table").remove("wait_for_attach");
        make(world, &table);
        assert_eq!(saved(world), [table.clone()]);
        world.advance(Duration::from_millis(100));
        assert_eq!(world.controllers(), ["enabled", "enabled"]);
        assert_eq!(saved(world), [table], "one table, not two");
        world.rpc("bdev_nvme_stop_discovery", json!({ "name": "disc" })).expect("stops");
        assert!(saved(world).is_empty(), "what is stopped does not come back");
    });
}

#[test]
fn s2_i_a_discovery_service_started_by_a_call_survives_a_save_before_and_after_it_has_devices() {
    for waits in [false, true] {
        let call = json!({
            "name": "disc", "trtype": "LOOP", "traddr": "a", "wait_for_attach": waits,
            "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1,
        });
        for_seeds(10, |world| {
            let table = |tables: &[Value]| {
                assert_eq!((tables.len(), &tables[0]["discovery"]), (1, &json!(true)), "{tables:?}");
                tables[0].clone()
            };
            world.device("m0", 1024);
            world.subsystem(&["a"]);
            world.rpc("bdev_nvme_start_discovery", call.clone()).expect("starts");
            table(&saved(world));
            world.add_namespace(1, "m0", ONE);
            world.advance(Duration::from_millis(100));
            assert_eq!(world.controllers(), ["enabled"]);
            table(&saved(world));
            world.rpc("bdev_nvme_stop_discovery", json!({ "name": "disc" })).expect("stops");
            assert!(saved(world).is_empty() && world.bdev("disc0n1").is_none());
            // With a device from the first, which goes again.
            world.rpc("bdev_nvme_start_discovery", call.clone()).expect("starts");
            world.advance(Duration::from_millis(100));
            assert!(world.bdev("disc0n1").is_some());
            world.remove_namespace(1);
            world.advance(Duration::from_millis(100));
            assert!(world.bdev("disc0n1").is_none());
            let kept = table(&saved(world));
            // A restart: the table makes it again.
            world.rpc("bdev_nvme_stop_discovery", json!({ "name": "disc" })).expect("stops");
            assert!(saved(world).is_empty(), "what is stopped does not come back");
            make(world, &kept);
            world.add_namespace(1, "m0", ONE);
            world.advance(Duration::from_millis(100));
            assert!(world.bdev("disc0n1").is_some());
            world.rpc("bdev_nvme_stop_discovery", json!({ "name": "disc" })).expect("stops");
            assert!(saved(world).is_empty(), "nor does the table's");
        });
    }
}
