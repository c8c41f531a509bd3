//! Scenario S4.h with data: the process of an array is killed under a verified load
//! of another process, while all members are there, while one is missing and while
//! one is rebuilt. Whoever comes back serves every write that was acknowledged, and
//! its members agree. A test kills a few times; `TENON_TEST_ROUNDS` says how often.

use serde_json::{Value, json};
use tenon_tests::{Scratch, number, wait_for};

use crate::world::{ONE, Target, file_device};

/// Times the process is killed.
const ROUNDS: u64 = 2;
const DEVICE_MIB: u32 = 6;

fn array_target(level: &str, members: usize, strip_kb: u32) -> Target {
    let scratch = Scratch::new();
    let names: Vec<String> = (0..members).map(|nth| format!("m{nth}")).collect();
    let device = |nth: usize| {
        let uuid = format!("uuid = \"00000000-0000-4000-8000-00000000000{nth}\"\n");
        file_device(&format!("m{nth}"), &scratch.join(&format!("m{nth}.img")), DEVICE_MIB, &uuid)
    };
    let mut devices: String = (0..=members).map(device).collect();
    devices += &format!(
        "[[bdev]]\nmodule = \"raid\"\nname = \"r0\"\nlevel = \"{level}\"\nstrip_size_kb = {strip_kb}\n\
         base_bdevs = {names:?}\nspares = [\"m{members}\"]\nsuperblock = true\nbitmap = true\n"
    );
    Target::of(scratch, devices, 1)
}

fn array(target: &mut Target) -> Value {
    target.host().ok("bdev_raid_get_bdevs", json!({ "category": "all" }))[0].clone()
}

fn is_whole(array: &Value) -> bool {
    array["num_base_bdevs_operational"] == array["num_base_bdevs"]
        && array.get("process").is_none()
        && array["bitmap"]["is_synced"] == true
}

/// Takes a member out, or gives back those that are out.
fn disturb(target: &mut Target, round: u64) {
    let now = array(target);
    let slots = now["base_bdevs_list"].as_array().unwrap();
    if is_whole(&now) {
        let name = slots[round as usize % slots.len()]["name"].clone();
        target.host().ok("bdev_raid_remove_base_bdev", json!({ "name": name }));
        return;
    }
    for nth in 0..=slots.len() {
        // Refused if it is a member, or none is missing.
        let params = json!({ "raid_bdev": "r0", "base_bdev": format!("m{nth}") });
        let _ = target.host().call("bdev_raid_add_base_bdev", params);
    }
}

fn killed_again_and_again(level: &str, members: usize, strip_kb: u32) {
    let mut target = array_target(level, members, strip_kb);
    target.add_namespace(1, "r0", ONE);
    let mut load = target.load(&json!({}));
    for round in 0..number("TENON_TEST_ROUNDS").unwrap_or(ROUNDS) {
        load.goes_on();
        disturb(&mut target, round);
        target.kill();
        target.restart();
        wait_for("the array", || (array(&mut target)["state"] == "online").then_some(()));
        target.host().ok("bdev_wait_for_examine", json!({}));
        target.add_namespace(1, "r0", ONE);
    }
    load.goes_on();
    wait_for("a whole array", || {
        let now = array(&mut target);
        if now.get("process").is_none() && !is_whole(&now) {
            disturb(&mut target, 0);
        }
        is_whole(&now).then_some(())
    });
    target.host().ok("bdev_raid_start_scrub", json!({ "name": "r0" }));
    let scrub = wait_for("the scrub", || {
        let scrub = array(&mut target)["scrub"].clone();
        (scrub["state"] == "completed").then_some(scrub)
    });
    assert_eq!(scrub["mismatched_blocks"], 0, "{level}: {scrub}");
    // What is left holds all of it.
    let first = array(&mut target)["base_bdevs_list"][0]["name"].clone();
    target.host().ok("bdev_raid_remove_base_bdev", json!({ "name": first }));
    load.goes_on();
    load.finish();
}

#[test]
fn s4_h_a_mirror_that_is_killed_under_load_serves_all_that_was_acknowledged() {
    killed_again_and_again("raid1", 2, 0);
}

#[test]
fn s4_h_parity_that_is_killed_under_load_serves_all_that_was_acknowledged() {
    killed_again_and_again("raid5", 3, 16);
}
