//! The control socket: framing, errors, bounds, and neighbours that misbehave.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};
use tenon_tests::{Host, Scratch, outcome, tenon, wait_for};

#[test]
fn the_socket_is_for_its_owner_only() {
    let host = Host::start("");
    let mode = std::fs::metadata(host.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    host.stop();
}

#[test]
fn pipelined_calls_are_all_answered() {
    let host = Host::start("");
    let mut connection = host.connect();
    let sent: Vec<u64> = (0..500).map(|_| connection.send("spdk_get_version", json!({}))).collect();
    let mut answered: Vec<u64> =
        sent.iter().map(|_| connection.receive().unwrap()["id"].as_u64().unwrap()).collect();
    answered.sort_unstable();
    assert_eq!(answered, sent);
    host.stop();
}

#[test]
fn a_call_may_arrive_byte_by_byte_and_two_in_one_piece() {
    let host = Host::start("");
    let mut connection = host.connect();
    let call = br#" {"jsonrpc":"2.0","id":"x","method":"rpc_get_methods"} "#;
    for byte in call {
        connection.stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(connection.receive().unwrap()["id"], "x");
    connection.stream.write_all(&[call.as_slice(), call.as_slice()].concat()).unwrap();
    assert!(connection.receive().is_some() && connection.receive().is_some());
    host.stop();
}

#[test]
fn text_that_is_no_json_is_answered_and_ends_only_its_connection() {
    let mut host = Host::start("");
    for garbage in [&b"hello"[..], b"{\"jsonrpc\": nonsense}", b"{]"] {
        let mut connection = host.connect();
        connection.stream.write_all(garbage).unwrap();
        let reply = connection.receive().expect("a reply before the end");
        assert_eq!(outcome(&reply).unwrap_err().code, -32700, "{reply}");
        assert_eq!(connection.receive(), None);
    }
    host.ok("spdk_get_version", json!({}));
    host.stop();
}

#[test]
fn a_call_without_end_is_cut_off_at_the_bound() {
    let mut host = Host::start("");
    let mut connection = host.connect();
    let piece = vec![b'['; 1 << 20];
    for _ in 0..8 {
        // The host closes in the middle of it.
        if connection.stream.write_all(&piece).is_err() {
            break;
        }
    }
    if let Some(reply) = connection.receive() {
        assert_eq!(outcome(&reply).unwrap_err().code, -32700);
    }
    host.ok("spdk_get_version", json!({}));
    host.stop();
}

#[test]
fn a_client_that_never_reads_does_not_disturb_others() {
    let mut host = Host::start("");
    let connection = host.connect();
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "rpc_get_methods" }).to_string();
    connection.stream.set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    let mut stream = &connection.stream;
    for _ in 0..100_000 {
        if stream.write_all(call.as_bytes()).is_err() {
            break;
        }
    }
    for _ in 0..100 {
        host.ok("spdk_get_version", json!({}));
    }
    drop(connection);
    host.stop();
}

#[test]
fn an_unknown_method_names_the_nearest() {
    let mut host = Host::start("");
    let error = host.err("bdev_get_bdev", json!({}));
    assert_eq!(error.code, -32601);
    assert!(error.message.contains("bdev_get_bdevs"), "{error:?}");
    host.stop();
}

#[test]
fn parameters_that_do_not_fit_are_named() {
    let mut host = Host::start("");
    let error = host.err("bdev_get_bdevs", json!({ "nam": "x" }));
    assert_eq!(error.code, -32602);
    assert!(error.message.contains("nam"), "{error:?}");
    let error = host.err("bdev_get_bdevs", json!({ "name": "x" }));
    assert_eq!((error.code, &error.data["object"]), (-19, &Value::from("x")));
    // What a module's method does not take is named by the method.
    let latency = json!({ "delay_bdev_name": "d0", "latency_type": "p50", "latency_us": 1 });
    let error = host.err("bdev_delay_update_latency", latency);
    assert_eq!(error.data["object"], "bdev_delay_update_latency");
    assert!(error.message.contains("p50") && error.message.contains("p99_read"), "{error:?}");
    host.stop();
}

#[test]
fn log_lines_begin_with_the_time_unless_told_otherwise() {
    let mut host = Host::start("");
    let null = |name: &str| json!({ "name": name, "num_blocks": 8, "block_size": 512 });
    let line_of = |host: &mut Host, name: &str| -> String {
        host.ok("bdev_null_create", null(name));
        let words = format!("bdev is registered bdev={name} ");
        host.log().lines().find(|line| line.contains(&words)).expect("the line is logged").to_owned()
    };
    let with_time = line_of(&mut host, "n0");
    assert!(with_time.contains("Z INFO"), "{with_time}");
    host.ok("log_enable_timestamps", json!({ "enabled": false }));
    let without = line_of(&mut host, "n1");
    assert!(without.starts_with("[INFO "), "{without}");
    host.ok("log_enable_timestamps", json!({ "enabled": true }));
    assert!(line_of(&mut host, "n2").contains("Z INFO"));
    host.stop();
}

#[test]
fn batches_and_notifications_follow_the_standard() {
    let host = Host::start("");
    let mut connection = host.connect();
    let batch = json!([
        { "jsonrpc": "2.0", "id": 1, "method": "spdk_get_version" },
        { "jsonrpc": "2.0", "method": "spdk_get_version" },
        { "jsonrpc": "2.0", "id": 2, "method": "no_such_method" },
        7,
    ]);
    connection.stream.write_all(batch.to_string().as_bytes()).unwrap();
    let reply = connection.receive().unwrap();
    let replies = reply.as_array().expect("a batch is answered by a batch");
    assert_eq!(replies.len(), 3, "{reply}");
    let code = |id: Value| replies.iter().find(|one| one["id"] == id).map(|one| one["error"]["code"].clone());
    assert_eq!(code(json!(1)), Some(Value::Null));
    assert_eq!(code(json!(2)), Some(json!(-32601)));
    assert_eq!(code(Value::Null), Some(json!(-32600)));
    host.stop();
}

#[test]
fn notifications_are_waited_for() {
    let mut host = Host::start("");
    let seen = host.ok("notify_get_notifications", json!({}));
    let next = seen.as_array().unwrap().last().map_or(0, |last| last["id"].as_u64().unwrap() + 1);
    let mut waiting = host.connect();
    waiting.send("notify_get_notifications", json!({ "id": next, "timeout": 20_000 }));
    host.ok("bdev_null_create", json!({ "name": "n0", "num_blocks": 8, "block_size": 512 }));
    let reply = outcome(&waiting.receive().unwrap()).unwrap();
    assert!(reply.as_array().is_some_and(|list| !list.is_empty()), "{reply}");
    let told = wait_for("the notification of n0", || {
        let list = host.ok("notify_get_notifications", json!({ "id": next }));
        let is_n0 = |one: &Value| one["type"] == "bdev_register" && one["ctx"] == "n0";
        list.as_array().unwrap().iter().find(|one| is_n0(one)).cloned()
    });
    assert!(told["id"].as_u64().unwrap() >= next);
    host.stop();
}

#[test]
fn a_device_can_be_waited_for() {
    let mut host = Host::start("");
    let mut waiting = host.connect();
    waiting.send("bdev_get_bdevs", json!({ "name": "late", "timeout": 20_000 }));
    host.ok("bdev_null_create", json!({ "name": "late", "num_blocks": 8, "block_size": 512 }));
    let list = outcome(&waiting.receive().unwrap()).unwrap();
    assert_eq!(list[0]["name"], "late");
    let error = host.err("bdev_get_bdevs", json!({ "name": "never", "timeout": 50 }));
    assert_eq!(error.code, -19);
    host.stop();
}

#[test]
fn every_listed_method_is_served() {
    let mut host = Host::start("");
    let methods = host.ok("rpc_get_methods", json!({}));
    let skip = ["spdk_kill_instance"];
    for method in
        methods.as_array().unwrap().iter().filter_map(Value::as_str).filter(|name| !skip.contains(name))
    {
        let result = host.call(method, json!({ "no_such_parameter": 1 }));
        let error = result.expect_err(method);
        assert_ne!(error.code, -32601, "{method}: {error:?}");
    }
    host.stop();
}

#[test]
fn results_have_the_shape_clients_expect() {
    let mut host = Host::start("");
    host.ok("bdev_malloc_create", json!({ "name": "m0", "num_blocks": 2048, "block_size": 512 }));
    let bdev = host.ok("bdev_get_bdevs", json!({ "name": "m0" }))[0].clone();
    for key in [
        "name",
        "aliases",
        "product_name",
        "block_size",
        "num_blocks",
        "uuid",
        "assigned_rate_limits",
        "claimed",
        "zoned",
        "supported_io_types",
        "driver_specific",
    ] {
        assert!(bdev.get(key).is_some(), "bdev_get_bdevs lacks {key}: {bdev}");
    }
    let iostat = host.ok("bdev_get_iostat", json!({ "name": "m0" }));
    for key in [
        "bytes_read",
        "num_read_ops",
        "bytes_written",
        "num_write_ops",
        "read_latency_ticks",
        "max_write_latency_ticks",
    ] {
        assert!(iostat["bdevs"][0].get(key).is_some(), "bdev_get_iostat lacks {key}: {iostat}");
    }
    assert!(iostat["tick_rate"].as_u64().unwrap() > 1_000_000);
    let reactors = host.ok("framework_get_reactors", json!({}));
    assert!(reactors["reactors"].as_array().unwrap().len() >= 2, "{reactors}");
    let pollers = host.ok("thread_get_pollers", json!({}));
    assert_eq!(pollers["threads"].as_array().unwrap().len(), reactors["reactors"].as_array().unwrap().len());
    host.ok("bdev_enable_histogram", json!({ "name": "m0", "enable": true }));
    let histogram = host.ok("bdev_get_histogram", json!({ "name": "m0" }));
    assert_eq!(histogram["bucket_shift"], 7);
    host.stop();
}

#[test]
fn without_descriptors_left_clients_wait_and_the_host_neither_spins_nor_floods_its_log() {
    let scratch = Scratch::new();
    let socket = scratch.join("rpc.sock");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 80; exec \"$@\"", "sh"]).arg(tenon());
    command.arg("run").arg("--rpc-socket").arg(&socket);
    let mut host = Host::spawn(scratch, command);
    let crowd: Vec<_> = (0..90).map(|_| host.connect()).collect();
    let complaints = |host: &Host| host.log().matches("cannot accept").count();
    wait_for("the want of descriptors", || (complaints(&host) > 0).then_some(()));
    // It looks again once a second; without a rest it complains thousands of times by the third time.
    wait_for("the third look", || (complaints(&host) >= 3).then_some(()));
    assert!(complaints(&host) < 10, "{}", complaints(&host));
    drop(crowd);
    host.ok("spdk_get_version", json!({}));
    host.stop();
}
