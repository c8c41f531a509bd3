//! Devices over RPC: create, stack, limit, remove; names and parameters as
//! existing clients send them.

use serde_json::json;
use tenon_tests::{Host, counts, outcome, wait_for};

fn malloc(host: &mut Host, name: &str) {
    host.ok("bdev_malloc_create", json!({ "name": name, "num_blocks": 8192, "block_size": 512 }));
}

#[test]
fn a_stack_is_built_and_taken_down_from_the_top() {
    let mut host = Host::start("");
    let before = counts(&mut host);
    malloc(&mut host, "m0");
    host.ok(
        "bdev_delay_create",
        json!({ "name": "d0", "base_bdev_name": "m0", "avg_read_latency": 10, "p99_read_latency": 20, "avg_write_latency": 10, "p99_write_latency": 20 }),
    );
    host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "d0" }));
    host.ok("bdev_error_create", json!({ "base_name": "p0" }));
    assert_eq!(host.bdevs(), ["m0", "d0", "p0", "EE_p0"]);
    assert_eq!(host.ok("bdev_get_bdevs", json!({ "name": "m0" }))[0]["claimed"], true);
    host.ok("bdev_error_delete", json!({ "name": "EE_p0" }));
    host.ok("bdev_passthru_delete", json!({ "name": "p0" }));
    host.ok("bdev_delay_delete", json!({ "name": "d0" }));
    host.ok("bdev_malloc_delete", json!({ "name": "m0" }));
    assert_eq!(counts(&mut host), before);
    host.stop();
}

#[test]
fn a_device_with_the_uuid_of_another_is_refused_with_both_named() {
    let mut host = Host::start("");
    malloc(&mut host, "m0");
    let uuid = host.ok("bdev_get_bdevs", json!({ "name": "m0" }))[0]["uuid"].as_str().unwrap().to_owned();
    let null = |uuid: &str| json!({ "name": "n0", "num_blocks": 8, "block_size": 512, "uuid": uuid });
    let error = host.err("bdev_null_create", null(&uuid));
    assert_eq!(error.code, -17);
    let told = format!("n0: UUID {uuid} is that of device m0 of module malloc");
    assert!(error.message.contains(&told), "{}", error.message);
    assert_eq!(host.bdevs(), ["m0"]);
    host.ok("bdev_null_create", null("11111111-1111-4111-8111-111111111111"));
    host.stop();
}

#[test]
fn what_the_host_refuses_a_module_is_told_with_the_hosts_reason() {
    let mut host = Host::start("");
    malloc(&mut host, "m0");
    host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "m0" }));
    let error = host.err("bdev_passthru_create", json!({ "name": "p1", "base_bdev_name": "m0" }));
    assert_eq!(
        (error.code, error.message.contains("module passthru has claimed it")),
        (-1, true),
        "{error:?}"
    );
    let long = "n".repeat(256);
    for (name, reason) in
        [("a/b", "contains a slash"), ("a\u{1}", "a control character"), (&long, "256 bytes")]
    {
        let error =
            host.err("bdev_malloc_create", json!({ "name": name, "num_blocks": 8, "block_size": 512 }));
        assert_eq!((error.code, error.message.contains(reason)), (-22, true), "{error:?}");
    }
    assert_eq!(host.bdevs(), ["m0", "p0"]);
    host.stop();
}

#[test]
fn removing_the_lowest_device_takes_the_stack_along() {
    let mut host = Host::start("");
    let before = counts(&mut host);
    malloc(&mut host, "m0");
    host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "m0" }));
    host.ok("bdev_passthru_create", json!({ "name": "p1", "base_bdev_name": "p0" }));
    host.ok("bdev_malloc_delete", json!({ "name": "m0" }));
    assert!(host.bdevs().is_empty());
    assert_eq!(counts(&mut host), before);
    host.stop();
}

#[test]
fn refusals_carry_errno_object_and_reason() {
    let mut host = Host::start("");
    malloc(&mut host, "m0");
    let error = host.err("bdev_malloc_create", json!({ "name": "m0", "num_blocks": 8, "block_size": 512 }));
    assert_eq!((error.code, &error.data["object"]), (-17, &json!("m0")), "{error:?}");
    let error = host.err("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "nowhere" }));
    assert_eq!((error.code, &error.data["object"]), (-19, &json!("nowhere")), "{error:?}");
    host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "m0" }));
    let error = host.err("bdev_passthru_create", json!({ "name": "p1", "base_bdev_name": "m0" }));
    assert_eq!(error.code, -1, "{error:?}");
    let error = host.err("bdev_malloc_create", json!({ "name": "m1", "num_blocks": 8, "block_size": 1000 }));
    assert_eq!(error.code, -22, "{error:?}");
    assert!(error.message.contains("1000"), "{error:?}");
    let error = host.err("bdev_null_delete", json!({ "name": "m0" }));
    assert_eq!(error.code, -19, "{error:?}");
    // A refused create leaves nothing: the same name works at once.
    malloc(&mut host, "m1");
    host.stop();
}

#[test]
fn a_device_without_a_name_gets_one() {
    let mut host = Host::start("");
    let create = json!({ "num_blocks": 8, "block_size": 512 });
    assert_eq!(host.ok("bdev_malloc_create", create.clone()), "Malloc0");
    assert_eq!(host.ok("bdev_malloc_create", create), "Malloc1");
    host.stop();
}

#[test]
fn concurrent_creates_of_one_name_give_one_device() {
    let mut host = Host::start("");
    let mut connections: Vec<_> = (0..16).map(|_| host.connect()).collect();
    for connection in &mut connections {
        connection.send("bdev_malloc_create", json!({ "name": "same", "num_blocks": 8, "block_size": 512 }));
    }
    let results: Vec<_> = connections.iter_mut().map(|one| outcome(&one.receive().unwrap())).collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert!(results.iter().filter_map(|result| result.as_ref().err()).all(|error| error.code == -17));
    assert_eq!(host.bdevs(), ["same"]);
    host.stop();
}

#[test]
fn null_devices_resize_and_tell_their_consumers() {
    let mut host = Host::start("");
    host.ok("bdev_null_create", json!({ "name": "n0", "num_blocks": 2048, "block_size": 512 }));
    host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "n0" }));
    host.ok("bdev_null_resize", json!({ "name": "n0", "new_size": 4 }));
    wait_for("the size of p0", || {
        (host.ok("bdev_get_bdevs", json!({ "name": "p0" }))[0]["num_blocks"] == 8192).then_some(())
    });
    host.stop();
}

#[test]
fn rate_limits_are_shown_and_saved() {
    let mut host = Host::start("");
    malloc(&mut host, "m0");
    host.ok("bdev_set_qos_limit", json!({ "name": "m0", "rw_ios_per_sec": 20000, "r_mbytes_per_sec": 100 }));
    let limits = host.ok("bdev_get_bdevs", json!({ "name": "m0" }))[0]["assigned_rate_limits"].clone();
    assert_eq!((&limits["rw_ios_per_sec"], &limits["r_mbytes_per_sec"]), (&json!(20000), &json!(100)));
    let text = host.ok("save_config", json!({}));
    assert!(text.as_str().unwrap().contains("rw_ios_per_sec = 20000"), "{text}");
    host.stop();
}

#[test]
fn delay_and_error_devices_change_at_run_time() {
    let mut host = Host::start("");
    malloc(&mut host, "m0");
    host.ok(
        "bdev_delay_create",
        json!({ "name": "d0", "base_bdev_name": "m0", "avg_read_latency": 10, "p99_read_latency": 20, "avg_write_latency": 10, "p99_write_latency": 20 }),
    );
    host.ok(
        "bdev_delay_update_latency",
        json!({ "delay_bdev_name": "d0", "latency_type": "avg_read", "latency_us": 70 }),
    );
    let error = host.err(
        "bdev_delay_update_latency",
        json!({ "delay_bdev_name": "d0", "latency_type": "sometimes", "latency_us": 70 }),
    );
    assert!(error.message.contains("avg_read"), "{error:?}");
    host.ok("bdev_error_create", json!({ "base_name": "d0" }));
    host.ok(
        "bdev_error_inject_error",
        json!({ "name": "EE_d0", "io_type": "read", "error_type": "failure", "num": 3 }),
    );
    host.ok(
        "bdev_error_inject_error",
        json!({ "name": "EE_d0", "io_type": "clear", "error_type": "failure" }),
    );
    let text = host.ok("save_config", json!({}));
    assert!(text.as_str().unwrap().contains("avg_read_latency_us = 70"), "{text}");
    host.stop();
}

#[test]
fn a_file_is_a_device_under_both_families_of_names() {
    let mut host = Host::start("");
    let file = host.scratch().join("disk.img");
    std::fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    for family in ["aio", "uring"] {
        host.ok(
            &format!("bdev_{family}_create"),
            json!({ "name": "f0", "filename": file, "block_size": 512 }),
        );
        assert_eq!(host.ok("bdev_get_bdevs", json!({ "name": "f0" }))[0]["num_blocks"], 16384);
        host.ok(&format!("bdev_{family}_delete"), json!({ "name": "f0" }));
    }
    host.stop();
}

#[test]
fn many_creates_and_deletes_leave_no_trace() {
    let mut host = Host::start("");
    malloc(&mut host, "warm");
    host.ok("bdev_malloc_delete", json!({ "name": "warm" }));
    let before = counts(&mut host);
    for round in 0..300 {
        malloc(&mut host, "m0");
        host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "m0" }));
        let victim =
            if round % 2 == 0 { ("bdev_malloc_delete", "m0") } else { ("bdev_passthru_delete", "p0") };
        host.ok(victim.0, json!({ "name": victim.1 }));
        if round % 2 == 1 {
            host.ok("bdev_malloc_delete", json!({ "name": "m0" }));
        }
    }
    assert_eq!(counts(&mut host), before);
    host.stop();
}
