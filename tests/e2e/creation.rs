//! When a create is answered, and what a create leaves: chains sent without
//! waiting, two of one name, clients that go away in the middle.

use serde_json::{Value, json};
use tenon_tests::{
    Connection, Host, Scratch, counts, example, outcome, plugin_directory, wait_for, wait_for_counts,
};

/// A host that has module `troubled` among its plugins.
fn host_with_troubled() -> Host {
    let scratch = Scratch::new();
    let directory = plugin_directory(&scratch);
    std::fs::copy(example("troubled"), directory.join("libtroubled.so")).expect("the directory is writable");
    Host::start_in(scratch, "", &["--plugin-dir", directory.to_str().unwrap()])
}

/// A host that is loading module `troubled`, which takes `init_ms`: a create of its is in flight that long. With it
/// the connection that asked for the load.
fn host_with_a_slow_module(init_ms: u32) -> (Host, Connection) {
    let mut host = host_with_troubled();
    let mut loader = host.connect();
    loader.send("module_load", json!({ "name": "troubled", "config": { "init_ms": init_ms } }));
    wait_for("the load", || {
        let list = host.ok("module_get_list", json!({}));
        list["modules"].to_string().contains("initialising").then_some(())
    });
    (host, loader)
}

fn named(name: &str) -> Value {
    json!({ "name": name })
}

fn malloc(name: &str) -> Value {
    json!({ "name": name, "num_blocks": 8192, "block_size": 512 })
}

fn passthru(name: &str, base: &str) -> Value {
    json!({ "name": name, "base_bdev_name": base })
}

fn delay(name: &str, base: &str) -> Value {
    json!({
        "name": name, "base_bdev_name": base,
        "avg_read_latency": 1000, "p99_read_latency": 1000,
        "avg_write_latency": 1000, "p99_write_latency": 1000
    })
}

/// So slow to write that a superblock is not durable at once.
fn write_delay(name: &str, base: &str) -> Value {
    json!({
        "name": name, "base_bdev_name": base,
        "avg_read_latency": 0, "p99_read_latency": 0,
        "avg_write_latency": 20_000, "p99_write_latency": 20_000
    })
}

/// The replies to calls with ids from 1 to `count`, in the order of the ids, and the ids in order of arrival.
fn replies(connection: &mut Connection, count: u64) -> (Vec<Value>, Vec<u64>) {
    let mut all: Vec<Value> =
        (0..count).map(|_| connection.receive().expect("the host answers every call")).collect();
    let arrival = all.iter().map(|reply| reply["id"].as_u64().unwrap()).collect();
    all.sort_by_key(|reply| reply["id"].as_u64());
    (all, arrival)
}

#[test]
fn a_chain_sent_without_waiting_is_built() {
    let mut host = Host::start("");
    for round in 0..20 {
        let mut chain = host.connect();
        chain.send("bdev_malloc_create", malloc("m0"));
        // Whoever looks for a superblock on it, or on what stands on it, waits for that.
        chain.send("bdev_delay_create", delay("d0", "m0"));
        chain.send("bdev_passthru_create", passthru("p0", "d0"));
        chain.send("bdev_passthru_create", passthru("p1", "p0"));
        chain.send("bdev_error_create", json!({ "base_name": "p1" }));
        for _ in 0..5 {
            let reply = chain.receive().unwrap();
            let result = outcome(&reply).unwrap_or_else(|error| panic!("round {round}: {error:?}"));
            // Whatever is told to be there is ready.
            let name = result.as_str().unwrap_or("EE_p1");
            let bdev = host.ok("bdev_get_bdevs", named(name));
            assert_eq!(bdev[0]["state"], "ready", "round {round}: {bdev}");
        }
        assert_eq!(host.bdevs(), ["m0", "d0", "p0", "p1", "EE_p1"]);
        host.ok("bdev_malloc_delete", named("m0"));
        assert!(host.bdevs().is_empty());
    }
    host.stop();
}

#[test]
fn an_array_is_online_when_its_create_is_answered_also_if_nobody_waited_for_its_members() {
    let mut host = Host::start("");
    let mut chain = host.connect();
    for round in 0..10 {
        for member in ["a", "b"] {
            chain.send("bdev_malloc_create", malloc(member));
            chain.send("bdev_delay_create", write_delay(&format!("d{member}"), member));
        }
        let array =
            json!({ "name": "r", "raid_level": "raid1", "base_bdevs": ["da", "db"], "superblock": true });
        chain.send("bdev_raid_create", array);
        for _ in 0..4 {
            outcome(&chain.receive().unwrap()).unwrap();
        }
        assert_eq!(outcome(&chain.receive().unwrap()), Ok(json!(true)), "round {round}");
        assert_eq!(host.ok("bdev_get_bdevs", named("r"))[0]["state"], "ready");
        let arrays = host.ok("bdev_raid_get_bdevs", json!({ "category": "online" }));
        assert_eq!(arrays[0]["num_base_bdevs_discovered"], 2, "{arrays}");
        host.ok("bdev_raid_delete", named("r"));
        for member in ["a", "b"] {
            host.ok("bdev_malloc_delete", named(member));
        }
    }
    host.stop();
}

#[test]
fn a_second_create_of_a_name_in_flight_gets_eexist() {
    let (host, _loader) = host_with_a_slow_module(500);
    let mut connection = host.connect();
    for _ in 0..3 {
        connection.send("bdev_troubled_create", named("t0"));
    }
    connection.send("bdev_malloc_create", malloc("t0"));
    let (replies, _) = replies(&mut connection, 4);
    assert_eq!(outcome(&replies[0]), Ok(json!("t0")));
    for reply in &replies[1..] {
        assert_eq!(outcome(reply).unwrap_err().code, -17, "{reply}");
    }
    host.stop();
}

#[test]
fn waiting_for_examine_includes_creates_in_flight() {
    let (host, _loader) = host_with_a_slow_module(500);
    let mut connection = host.connect();
    connection.send("bdev_troubled_create", named("t0"));
    connection.send("bdev_wait_for_examine", json!({}));
    connection.send("bdev_get_bdevs", json!({}));
    let (replies, arrival) = replies(&mut connection, 3);
    assert_eq!(arrival, [3, 1, 2], "others are answered at once, the waiter after the create");
    assert_eq!(outcome(&replies[2]), Ok(json!([])));
    assert_eq!(outcome(&replies[0]), Ok(json!("t0")));
    assert_eq!(outcome(&replies[1]), Ok(json!(true)));
    host.stop();
}

#[test]
fn waiting_for_examine_does_not_wait_for_later_calls() {
    let host = host_with_troubled();
    let mut connection = host.connect();
    connection.send("bdev_wait_for_examine", json!({}));
    connection.send("module_load", json!({ "name": "troubled", "config": { "init_ms": 500 } }));
    connection.send("bdev_wait_for_examine", json!({}));
    let (_, arrival) = replies(&mut connection, 3);
    assert_eq!(arrival, [1, 2, 3]);
    host.stop();
}

#[test]
fn a_client_that_goes_away_leaves_whole_devices() {
    let (mut host, _loader) = host_with_a_slow_module(500);
    host.ok("bdev_malloc_create", malloc("m0"));
    let mut gone = host.connect();
    gone.send("bdev_troubled_create", named("t0"));
    gone.send("bdev_passthru_create", passthru("p0", "m0"));
    gone.send("bdev_passthru_create", passthru("p1", "p0"));
    // The host has the calls: one of them is answered.
    assert!(gone.receive().is_some());
    drop(gone);
    host.ok("bdev_wait_for_examine", json!({}));
    for (name, module) in [("t0", "troubled"), ("p0", "passthru"), ("p1", "passthru")] {
        let bdev = host.ok("bdev_get_bdevs", named(name));
        assert_eq!((&bdev[0]["state"], &bdev[0]["module"]), (&json!("ready"), &json!(module)), "{bdev}");
    }
    for (method, name) in
        [("bdev_passthru_delete", "p1"), ("bdev_passthru_delete", "p0"), ("bdev_troubled_delete", "t0")]
    {
        host.ok(method, named(name));
    }
    let left = counts(&mut host);
    for kind in ["operations", "answers_owed", "names_locked", "examine_tokens", "activities", "descriptors"]
    {
        assert_eq!(left[kind], 0, "{kind}: {left}");
    }
    host.stop();
}

#[test]
fn a_client_that_goes_away_at_once_leaves_whole_devices() {
    let mut host = Host::start("");
    host.ok("bdev_malloc_create", malloc("m0"));
    host.ok("bdev_passthru_create", passthru("warm", "m0"));
    host.ok("bdev_passthru_delete", named("warm"));
    let before = counts(&mut host);
    for _ in 0..50 {
        let mut gone = host.connect();
        gone.send("bdev_passthru_create", passthru("p0", "m0"));
        drop(gone);
        // Its call may be read before or after this one: what it makes is whole, or not there.
        host.ok("bdev_wait_for_examine", json!({}));
        let deleted = host.call("bdev_passthru_delete", named("p0"));
        if let Err(error) = deleted {
            assert_eq!(error.code, -19, "{error:?}");
            wait_for("the late create", || host.bdevs().contains(&"p0".to_owned()).then_some(()));
            host.ok("bdev_passthru_delete", named("p0"));
        }
        assert_eq!(host.bdevs(), ["m0"]);
    }
    wait_for_counts(&mut host, &before);
    host.stop();
}

#[test]
fn a_refused_create_leaves_nothing_and_may_be_sent_again() {
    let mut host = Host::start("");
    host.ok("bdev_malloc_create", malloc("m0"));
    let create = delay("d0", "m0");
    let mut wrong = create.clone();
    wrong["avg_read_latency"] = json!("soon");
    let before = counts(&mut host);
    for _ in 0..3 {
        host.err("bdev_delay_create", wrong.clone());
        assert_eq!(host.bdevs(), ["m0"]);
        assert_eq!(host.ok("bdev_get_bdevs", named("m0"))[0]["claimed"], false);
    }
    assert_eq!(counts(&mut host), before);
    host.ok("bdev_delay_create", create);
    host.stop();
}

#[test]
fn the_first_of_several_loads_decides_the_options_whatever_their_order() {
    const OPTIONS: [Option<u32>; 3] = [Some(300), Some(301), None];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut host = host_with_troubled();
        let mut connection = host.connect();
        let first = OPTIONS[order[0]];
        for at in order {
            let mut params = named("troubled");
            if let Some(init_ms) = OPTIONS[at] {
                params["config"] = json!({ "init_ms": init_ms });
            }
            connection.send("module_load", params);
        }
        let (replies, _) = replies(&mut connection, 3);
        for (at, reply) in order.iter().zip(&replies) {
            match outcome(reply) {
                Ok(_) => assert!(OPTIONS[*at].is_none_or(|_| OPTIONS[*at] == first), "{order:?}: {reply}"),
                Err(error) => {
                    assert!(OPTIONS[*at].is_some() && OPTIONS[*at] != first, "{order:?}: {reply}");
                    assert_eq!(error.code, -17, "{error:?}");
                    assert!(error.message.contains("runs with other options"), "{error:?}");
                }
            }
        }
        let saved = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
        match first {
            Some(init_ms) => assert!(saved.contains(&format!("init_ms = {init_ms}\n")), "{order:?}: {saved}"),
            None => assert!(!saved.contains("init_ms"), "{order:?}: {saved}"),
        }
        host.stop();
    }
}

#[test]
fn options_have_their_turn_after_a_load_with_others_has_failed() {
    let mut host = host_with_troubled();
    let mut connection = host.connect();
    for options in [json!({ "trouble": "fails" }), json!({ "init_ms": 1 })] {
        connection.send("module_load", json!({ "name": "troubled", "config": options }));
    }
    let (replies, _) = replies(&mut connection, 2);
    assert!(outcome(&replies[0]).is_err(), "{}", replies[0]);
    assert!(outcome(&replies[1]).is_ok(), "{}", replies[1]);
    let saved = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(saved.contains("init_ms = 1\n") && !saved.contains("trouble ="), "{saved}");
    host.stop();
}
