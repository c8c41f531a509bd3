//! Devices are found although the host refuses now this, now that: no refusal
//! makes the initiator look for ever, and none is remembered longer than it lasts.

use std::cell::Cell;
use std::time::Duration;

use serde_json::json;
use tenon_bdev::State;

use crate::load::Load;
use crate::refusal::{WISHES, grant_all, refuse};
use crate::survive::{drain, run};
use crate::world::{World, for_seeds};

/// Namespaces of the target.
const COUNT: u32 = 3;

fn uuid(number: u32) -> String {
    format!("{number:08}-1111-4111-8111-111111111111")
}

fn add(world: &World, number: u32) {
    world.add_namespace(number, &format!("m{number}"), &uuid(number));
}

fn target(world: &World) {
    world.subsystem(&["a"]);
    (1..=COUNT).for_each(|number| add(world, number));
}

/// Waits until there is a device for each namespace.
#[track_caller]
fn all_come(world: &World, seconds: u64, case: &str) {
    let is_there =
        |number| world.bdev(&format!("nvme0n{number}")).is_some_and(|bdev| bdev.state == State::Ready);
    let end_ns = world.now_ns() + seconds * 1_000_000_000;
    while !(1..=COUNT).all(is_there) {
        assert!(world.now_ns() < end_ns, "{case}: not all after {seconds} s, {:?}", world.controllers());
        world.advance(Duration::from_millis(20));
    }
}

#[test]
fn s0_j_whatever_is_refused_an_attach_ends_and_its_devices_come() {
    let (answered, refused) = (Cell::new(0), Cell::new(0));
    for_seeds(200, |world| {
        (1..=COUNT).for_each(|number| world.device(&format!("m{number}"), 256));
        target(world);
        let wish = WISHES[world.roll(WISHES.len() as u64) as usize];
        let (granted, count) = (world.roll(16), 1 + world.roll(4));
        refuse(wish, granted, count);
        // Answered, with whatever.
        let mut result = world.attach("a", json!({}));
        refused.set(refused.get() + u64::from(grant_all(count)));
        if result.is_err() {
            result = world.attach("a", json!({}));
        } else {
            answered.set(answered.get() + 1);
        }
        result.unwrap_or_else(|error| panic!("{wish:?} {granted} {count}: {error}"));
        all_come(world, 15, &format!("{wish:?} {granted} {count}"));
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 10);
        drain(world, &load, 10);
        assert!(load.failed.borrow().is_empty(), "{wish:?}: {:?}", load.failed.borrow());
        load.close(world);
    });
    println!("{} attaches succeeded at once, {} had something refused", answered.get(), refused.get());
}

#[test]
fn s0_j_whatever_is_refused_a_changed_target_is_seen_in_the_end() {
    for_seeds(200, |world| {
        (1..=COUNT).for_each(|number| world.device(&format!("m{number}"), 256));
        target(world);
        world.attach("a", json!({})).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        for _ in 0..3 {
            run(world, &load, 5);
            let wish = WISHES[world.roll(WISHES.len() as u64) as usize];
            let (granted, count) = (world.roll(12), 1 + world.roll(4));
            refuse(wish, granted, count);
            match world.roll(3) {
                0 => {
                    world.kill_subsystem();
                    world.steps(world.roll(300));
                    target(world);
                }
                1 => {
                    let number = 2 + world.roll(2) as u32;
                    world.remove_namespace(number);
                    world.advance(Duration::from_millis(world.roll(50)));
                    add(world, number);
                }
                _ => {
                    world.stop_listening("a");
                    world.advance(Duration::from_millis(world.roll(1500)));
                    world.listen("a");
                }
            }
            run(world, &load, world.roll(1500));
            grant_all(count);
            let case = format!("{wish:?} {granted} {count}");
            all_come(world, 30, &case);
            world.serves_within(20);
            load.collect();
            drain(world, &load, 20);
            assert!(load.failed.borrow().is_empty(), "{case}: {:?}", load.failed.borrow());
        }
        load.close(world);
    });
}
