//! Arrays over slow devices in the whole host: what becomes of a create that the
//! host waits for no longer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use tenon_abi::errno;
use tenon_bdev::OpError;

use crate::world::{World, for_seeds};

fn set_latency(world: &World, device: &str, latency_us: u64) {
    for kind in ["avg_write", "p99_write", "avg_read", "p99_read"] {
        let params = json!({ "delay_bdev_name": device, "latency_type": kind, "latency_us": latency_us });
        world.rpc("bdev_delay_update_latency", params).expect("latency");
    }
}

fn arrays(world: &World) -> Vec<Value> {
    let all = world.rpc("bdev_raid_get_bdevs", json!({ "category": "all" })).expect("arrays");
    all.as_array().cloned().expect("a list")
}

fn mirror() -> Value {
    json!({ "name": "r0", "raid_level": "raid1", "base_bdevs": ["d0", "d1"], "superblock": true })
}

/// The delays are polled, so time must not pass all at once.
fn until(world: &World, is_met: impl Fn() -> bool) {
    let is_met = (0..2000).any(|_| {
        world.advance(Duration::from_millis(500));
        is_met()
    });
    assert!(is_met, "it does not end");
}

#[test]
fn s4_i_a_create_that_times_out_ends_as_a_whole_array_or_none_and_can_be_repeated() {
    let outcomes = [const { Cell::new(0) }; 2];
    for_seeds(20, |world| {
        world.load("bdev_raid");
        for (base, name) in [("m0", "d0"), ("m1", "d1")] {
            world.device(base, 8192);
            let params = json!({ "name": name, "base": base, "avg_read_latency_us": 0, "p99_read_latency_us": 0,
                "avg_write_latency_us": 0, "p99_write_latency_us": 0 });
            world.wait(|world, reply| world.core.create("delay", &params, reply)).expect("device");
            // Some reads and writes of a create take longer together than the host waits.
            set_latency(world, name, world.roll(64) * 1_000_000);
        }
        let answer: Rc<RefCell<Option<Result<_, OpError>>>> = Rc::default();
        let slot = answer.clone();
        world.on(|world| {
            world.core.create("raid", &mirror(), move |result| *slot.borrow_mut() = Some(result.map(drop)));
        });
        until(world, || answer.borrow().is_some());
        let reply = answer.borrow_mut().take().expect("a reply");
        until(world, || arrays(world).iter().all(|array| array["state"] == "online" && reply.is_ok()));
        let state: Vec<Value> = arrays(world).iter().map(|array| array["state"].clone()).collect();
        let outcome = &outcomes[usize::from(reply.is_ok())];
        outcome.set(outcome.get() + 1);
        match reply {
            Ok(_) => assert_eq!(state, ["online"]),
            Err(error) => {
                assert_eq!(error.code, errno::ETIMEDOUT, "{error}");
                assert!(world.bdev("r0").is_none() && state.is_empty(), "{state:?}");
                ["d0", "d1"].iter().for_each(|name| set_latency(world, name, 0));
                // Nothing is left of it: neither for another array nor for the same.
                let mut other = mirror();
                other["name"] = "other".into();
                for array in [other, mirror()] {
                    world
                        .wait(|world, reply| world.core.create("raid", &array, reply))
                        .expect("another create");
                    let name = array["name"].clone();
                    if name == "other" {
                        world.rpc("bdev_raid_destroy", json!({ "name": name })).expect("an array that goes");
                    }
                }
            }
        }
        assert!(world.bdev("r0").is_some());
    });
    // One seed alone may be repeated.
    let is_one = std::env::var_os("TENON_TEST_SEED").is_some();
    assert!(is_one || outcomes.iter().all(|count| count.get() > 0), "{outcomes:?}");
}
