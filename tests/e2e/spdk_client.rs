//! A client as SPDK's `rpc.py` sends and receives: one JSON object per call
//! without a newline, ids that count up, absent parameters left out, replies
//! read until the bytes so far are one JSON text. Results and integer codes must
//! be what scripts written for it expect.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use tenon_tests::{Host, PATIENCE, Scratch, wait_for};

struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    last_id: u64,
}

impl Client {
    fn open(host: &Host) -> Client {
        let stream = UnixStream::connect(host.socket()).expect("the host listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, received: Vec::new(), last_id: 0 }
    }

    /// What `rpc.py` makes of a call: no `params` if there are none.
    fn request(&mut self, method: &str, params: &Value) -> String {
        self.last_id += 1;
        let mut request = json!({ "jsonrpc": "2.0", "method": method, "id": self.last_id });
        if params.as_object().is_some_and(|table| !table.is_empty()) {
            request["params"] = params.clone();
        }
        // Python separates with a blank after colon and comma.
        request.to_string().replace("\":", "\": ")
    }

    /// Reads until what is there is a whole JSON text, as `rpc.py` does.
    fn receive(&mut self) -> Value {
        loop {
            let mut texts = serde_json::Deserializer::from_slice(&self.received).into_iter::<Value>();
            if let Some(Ok(reply)) = texts.next() {
                let end = texts.byte_offset();
                self.received.drain(..end);
                return reply;
            }
            let mut bytes = [0; 4096];
            let count = self.stream.read(&mut bytes).expect("a reply in time");
            assert_ne!(count, 0, "the host closed the connection");
            self.received.extend_from_slice(&bytes[..count]);
        }
    }

    #[track_caller]
    fn call(&mut self, method: &str, params: Value) -> Result<Value, (i64, String)> {
        let request = self.request(method, &params);
        self.stream.write_all(request.as_bytes()).expect("the host reads");
        let reply = self.receive();
        assert_eq!(reply["jsonrpc"], "2.0", "{reply}");
        assert_eq!(reply["id"], self.last_id, "{reply}");
        match reply.get("error") {
            None => Ok(reply.get("result").expect("a result or an error").clone()),
            Some(error) => Err((
                error["code"].as_i64().expect("an integer code"),
                error["message"].as_str().expect("a message").to_owned(),
            )),
        }
    }

    #[track_caller]
    fn ok(&mut self, method: &str, params: Value) -> Value {
        self.call(method, params.clone()).unwrap_or_else(|error| panic!("{method} {params}: {error:?}"))
    }

    #[track_caller]
    fn code(&mut self, method: &str, params: Value) -> i64 {
        self.call(method, params.clone()).expect_err(method).0
    }
}

#[test]
fn a_session_of_an_existing_script_works() {
    let host = Host::start("");
    let mut client = Client::open(&host);
    assert!(client.ok("spdk_get_version", json!({}))["version"].is_string());
    assert!(client.ok("rpc_get_methods", json!({ "current": true })).as_array().unwrap().len() > 20);
    client.ok("framework_wait_init", json!({}));
    // rpc.py bdev_malloc_create 8 512 -b Malloc0; then without a name.
    let malloc = json!({ "num_blocks": 16384, "block_size": 512, "name": "Malloc0" });
    assert_eq!(client.ok("bdev_malloc_create", malloc), "Malloc0");
    assert_eq!(client.ok("bdev_malloc_create", json!({ "num_blocks": 8, "block_size": 512 })), "Malloc1");
    assert_eq!(
        client.ok("bdev_null_create", json!({ "name": "Null0", "num_blocks": 2048, "block_size": 512 })),
        "Null0"
    );
    assert_eq!(client.ok("bdev_null_resize", json!({ "name": "Null0", "new_size": 2 })), true);
    let delay = json!({
        "name": "Delay0", "base_bdev_name": "Malloc0",
        "avg_read_latency": 10, "p99_read_latency": 20, "avg_write_latency": 10, "p99_write_latency": 20
    });
    assert_eq!(client.ok("bdev_delay_create", delay), "Delay0");
    let latency = json!({ "delay_bdev_name": "Delay0", "latency_type": "p99_write", "latency_us": 50 });
    assert_eq!(client.ok("bdev_delay_update_latency", latency), true);
    let passthru = json!({ "base_bdev_name": "Delay0", "name": "Pass0" });
    assert_eq!(client.ok("bdev_passthru_create", passthru), "Pass0");
    assert_eq!(client.ok("bdev_error_create", json!({ "base_name": "Malloc1" })), true);
    let inject = json!({ "name": "EE_Malloc1", "io_type": "read", "error_type": "failure", "num": 1 });
    assert_eq!(client.ok("bdev_error_inject_error", inject), true);
    assert_eq!(client.ok("bdev_examine", json!({ "name": "Malloc1" })), true);
    assert_eq!(client.ok("bdev_wait_for_examine", json!({})), true);
    let names: Vec<Value> = client
        .ok("bdev_get_bdevs", json!({}))
        .as_array()
        .unwrap()
        .iter()
        .map(|bdev| bdev["name"].clone())
        .collect();
    assert_eq!(names, ["Malloc0", "Malloc1", "Null0", "Delay0", "Pass0", "EE_Malloc1"]);
    assert_eq!(client.ok("bdev_set_qos_limit", json!({ "name": "Null0", "rw_ios_per_sec": 20000 })), true);
    assert_eq!(client.ok("bdev_enable_histogram", json!({ "name": "Null0", "enable": true })), true);
    assert!(client.ok("bdev_get_histogram", json!({ "name": "Null0" }))["histogram"].is_string());
    let iostat = client.ok("bdev_get_iostat", json!({ "name": "Null0" }));
    assert_eq!(iostat["bdevs"][0]["num_read_ops"], 0, "{iostat}");
    assert!(client.ok("thread_get_stats", json!({}))["threads"].is_array());
    assert!(client.ok("framework_get_subsystems", json!({})).is_array());
    assert!(client.ok("framework_get_config", json!({ "name": "bdev" })).is_array());
    for (method, name) in [
        ("bdev_error_delete", "EE_Malloc1"),
        ("bdev_passthru_delete", "Pass0"),
        ("bdev_delay_delete", "Delay0"),
        ("bdev_null_delete", "Null0"),
        ("bdev_malloc_delete", "Malloc1"),
        ("bdev_malloc_delete", "Malloc0"),
    ] {
        assert_eq!(client.ok(method, json!({ "name": name })), true, "{method}");
    }
    assert_eq!(client.ok("bdev_get_bdevs", json!({})), json!([]));
    client.ok("spdk_kill_instance", json!({ "sig_name": "SIGTERM" }));
    wait_for("the end", || (!host.socket().exists()).then_some(()));
}

#[test]
fn refusals_have_the_codes_scripts_compare_with() {
    const EPERM: i64 = -1;
    const EEXIST: i64 = -17;
    const ENODEV: i64 = -19;
    const EINVAL: i64 = -22;
    let host = Host::start("");
    let mut client = Client::open(&host);
    let malloc = |name: &str| json!({ "name": name, "num_blocks": 8, "block_size": 512 });
    client.ok("bdev_malloc_create", malloc("m0"));
    client.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "m0" }));
    assert_eq!(client.code("bdev_malloc_create", malloc("m0")), EEXIST);
    assert_eq!(
        client.code("bdev_malloc_create", json!({ "name": "m1", "num_blocks": 8, "block_size": 100 })),
        EINVAL
    );
    assert_eq!(
        client.code("bdev_malloc_create", json!({ "name": "m1", "num_blocks": 0, "block_size": 512 })),
        EINVAL
    );
    assert_eq!(client.code("bdev_passthru_create", json!({ "name": "p1", "base_bdev_name": "m0" })), EPERM);
    assert_eq!(
        client.code("bdev_passthru_create", json!({ "name": "p1", "base_bdev_name": "none" })),
        ENODEV
    );
    for method in ["bdev_malloc_delete", "bdev_null_delete", "bdev_passthru_delete", "bdev_delay_delete"] {
        assert_eq!(client.code(method, json!({ "name": "none" })), ENODEV, "{method}");
    }
    assert_eq!(client.code("bdev_null_delete", json!({ "name": "m0" })), ENODEV, "of another module");
    for method in ["bdev_get_bdevs", "bdev_get_iostat", "bdev_get_histogram", "bdev_examine"] {
        let code = client.code(method, json!({ "name": "none" }));
        assert!(code == ENODEV, "{method} {code}");
    }
    assert_eq!(client.code("bdev_set_qos_limit", json!({ "name": "none", "rw_ios_per_sec": 20000 })), ENODEV);
    assert_eq!(client.code("bdev_null_resize", json!({ "name": "none", "new_size": 1 })), ENODEV);
    assert_eq!(client.code("no_such_method", json!({})), -32601);
    assert_eq!(client.code("bdev_get_bdevs", json!({ "name": 1 })), -32602);
    assert_eq!(client.code("bdev_get_bdevs", json!({ "nonsense": 1 })), -32602);
    assert_eq!(client.code("bdev_malloc_delete", json!({})), -32602);
    host.stop();
}

#[test]
fn calls_sent_together_are_answered_each_by_its_id() {
    let host = Host::start("");
    let mut client = Client::open(&host);
    // rpc.py's batch mode: calls joined by newlines, flushed at once.
    let requests: Vec<String> = (0..20).map(|_| client.request("bdev_get_bdevs", &json!({}))).collect();
    client.stream.write_all(requests.join("\n").as_bytes()).unwrap();
    let mut ids: Vec<u64> = (0..20).map(|_| client.receive()["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=20).collect::<Vec<u64>>());
    host.stop();
}

#[test]
fn devices_with_metadata_are_made_and_shown() {
    let host = Host::start("");
    let mut client = Client::open(&host);
    let separate = json!({ "name": "Sep", "num_blocks": 64, "block_size": 512, "md_size": 8 });
    assert_eq!(client.ok("bdev_malloc_create", separate), "Sep");
    let extended =
        json!({ "name": "Ext", "num_blocks": 64, "block_size": 512, "md_size": 8, "md_interleave": true });
    assert_eq!(client.ok("bdev_malloc_create", extended), "Ext");
    let null = json!({ "name": "Null", "num_blocks": 64, "block_size": 528, "md_size": 16 });
    assert_eq!(client.ok("bdev_null_create", null), "Null");
    for (name, block_size, md_size, interleaved) in
        [("Sep", 512, 8, false), ("Ext", 520, 8, true), ("Null", 528, 16, true)]
    {
        let found = &client.ok("bdev_get_bdevs", json!({ "name": name }))[0];
        let shown = [&found["block_size"], &found["md_size"], &found["md_interleave"], &found["dif_type"]];
        assert_eq!(shown, [&json!(block_size), &json!(md_size), &json!(interleaved), &json!(0)], "{name}");
        assert_eq!(found["num_blocks"], 64, "{name}");
    }
    let protected =
        json!({ "name": "Dif", "num_blocks": 64, "block_size": 512, "md_size": 8, "dif_type": 1 });
    let (_, message) = client.call("bdev_malloc_create", protected).expect_err("dif_type 1");
    assert!(message.contains("dif_type 1"), "{message}");
}

/// What `rpc.py save_config` and `load_config` do, which are all the client's work.
#[test]
fn a_configuration_saved_by_a_client_makes_the_same_host_when_it_is_loaded() {
    let scratch = Scratch::new();
    let file = scratch.write("disk", "");
    std::fs::File::options().write(true).open(&file).unwrap().set_len(1 << 20).unwrap();
    let mut first = Host::start("");
    for (method, params) in [
        ("bdev_malloc_create", json!({ "name": "m0", "num_blocks": 2048, "block_size": 512 })),
        ("bdev_malloc_create", json!({ "name": "m1", "num_blocks": 2048, "block_size": 4096 })),
        ("bdev_null_create", json!({ "name": "n0", "num_blocks": 2048, "block_size": 512 })),
        ("bdev_null_resize", json!({ "name": "n0", "new_size": 8 })),
        ("bdev_aio_create", json!({ "name": "a0", "filename": file, "block_size": 512 })),
        ("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "m0" })),
        ("bdev_error_create", json!({ "base_name": "m1" })),
        (
            "bdev_error_inject_error",
            json!({ "name": "EE_m1", "io_type": "read", "error_type": "failure", "num": 3 }),
        ),
        ("bdev_set_qos_limit", json!({ "name": "p0", "rw_ios_per_sec": 20000, "w_mbytes_per_sec": 7 })),
        ("bdev_set_options", json!({ "bdev_auto_examine": false })),
        ("module_load", json!({ "name": "nvme" })),
        ("module_configure", json!({ "name": "nvme", "config": { "bdev_retry_count": 9 } })),
    ] {
        first.ok(method, params);
    }
    let saved = |host: &mut Host| -> Vec<Value> {
        let subsystems = host.ok("framework_get_subsystems", json!({}));
        let names = subsystems.as_array().unwrap().iter().map(|subsystem| subsystem["subsystem"].clone());
        let calls = |name: Value| {
            host.ok("framework_get_config", json!({ "name": name })).as_array().unwrap().clone()
        };
        names.flat_map(calls).collect()
    };
    let shown = |host: &mut Host| -> Vec<Value> {
        let mut bdevs = host.ok("bdev_get_bdevs", json!({})).as_array().unwrap().clone();
        for bdev in &mut bdevs {
            for changing in ["uuid", "aliases"] {
                bdev.as_object_mut().unwrap().remove(changing);
            }
        }
        bdevs
    };
    let (calls, bdevs) = (saved(&mut first), shown(&mut first));
    first.stop();
    let mut second = Host::start("");
    for call in &calls {
        second.ok(call["method"].as_str().unwrap(), call["params"].clone());
    }
    assert_eq!(saved(&mut second), calls);
    assert_eq!(shown(&mut second), bdevs);
    second.stop();
}
