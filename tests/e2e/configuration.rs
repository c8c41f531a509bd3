//! The configuration file: every example runs, order does not matter, mistakes
//! are named with their line, a reload touches only what changed.

use rustix::process::Signal;
use serde_json::{Value, json};
use tenon_tests::{Host, Scratch, root, run, wait_for};

#[test]
fn every_example_configuration_is_valid_and_runs() {
    let mut files: Vec<_> = std::fs::read_dir(root().join("configs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 7, "an example per plugin is expected, found {files:?}");
    for file in files {
        let checked = run(&["check", file.to_str().unwrap()]);
        assert_eq!(checked.code, 0, "{}: {}", file.display(), checked.stderr);
        let scratch = Scratch::new();
        let ours = format!("{}/tenon-", scratch.path().display());
        let text = std::fs::read_to_string(&file).unwrap().replace("/tmp/tenon-", &ours);
        let text = with_free_ports(&text);
        make_keys(&text);
        let mut host = Host::start_in(scratch, &text, &[]);
        for path in awaited_files(&text) {
            std::fs::File::create(path).unwrap().set_len(1 << 20).unwrap();
        }
        let devices = text.split("\n[[bdev]]").skip(1).filter_map(|table| {
            let own = table.split("\n[").next().unwrap_or(table);
            own.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        });
        for name in devices {
            wait_for(&format!("{name} of {}", file.display()), || {
                host.bdevs().iter().any(|bdev| bdev == name).then_some(())
            });
        }
        assert_eq!(host.ok("config_get_waiting", json!({})), json!([]), "{}", file.display());
        assert!(!host.log().contains("configuration entries failed"), "{}: {}", file.display(), host.log());
        host.stop();
    }
}

/// Key files that an example tells its reader to make.
fn make_keys(text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let keys = text.split("\n[[key]]").skip(1);
    for path in keys.filter_map(|table| table.split("path = \"").nth(1)?.split('"').next()) {
        let key = match path.contains("tls") {
            true => "NVMeTLSkey-1:01:YntK296Gk6JfhnDU4qcKk4Tb6MdzUhna0M61wERDQPU/amOe:\n",
            false => "DHHC-1:00:yYcxRFIaRqM47yhSUQ+QkXcqTQkf+1Dc1OuJs26/RXJHzlE7:\n",
        };
        std::fs::write(path, key).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// The ports of an example may be in use where tests run.
fn with_free_ports(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.starts_with("trsvcid = ") {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            lines.push(format!("trsvcid = {}", listener.local_addr().unwrap().port()));
        } else {
            lines.push(line.to_owned());
        }
    }
    lines.join("\n") + "\n"
}

/// Files that an example leaves to be plugged in later.
fn awaited_files(text: &str) -> Vec<&str> {
    let tables = text.split("[[bdev]]").filter(|table| table.contains("wait_for_file = true"));
    tables.filter_map(|table| table.split("filename = \"").nth(1)?.split('"').next()).collect()
}

#[test]
fn the_order_of_the_file_does_not_matter() {
    let mut host = Host::start(
        r#"
        [[bdev]]
        module = "passthru"
        name = "top"
        base = "middle"
        [[bdev]]
        module = "passthru"
        name = "middle"
        base = "bottom"
        [[bdev]]
        module = "malloc"
        name = "bottom"
        size = "1MiB"
        "#,
    );
    assert_eq!(host.bdevs(), ["bottom", "middle", "top"]);
    host.stop();
}

#[test]
fn a_device_that_waits_is_listed_and_comes_when_its_base_comes() {
    let mut host = Host::start("[[bdev]]\nmodule = \"passthru\"\nname = \"p0\"\nbase = \"later\"\n");
    let waiting = host.ok("config_get_waiting", json!({}));
    assert_eq!((&waiting[0]["name"], &waiting[0]["waits_for"]), (&json!("p0"), &json!("later")));
    host.ok("bdev_malloc_create", json!({ "name": "later", "num_blocks": 8, "block_size": 512 }));
    wait_for("p0", || host.bdevs().contains(&"p0".to_owned()).then_some(()));
    assert_eq!(host.ok("config_get_waiting", json!({})), json!([]));
    host.stop();
}

/// One that waits for its base, one for its file, an array for a member; each with its delete.
const WAITING: &str = r#"
[[bdev]]
module = "passthru"
name = "p0"
base = "later"
[[bdev]]
module = "uring"
name = "f0"
filename = "DISK"
block_size = 512
wait_for_file = true
[bdev.qos]
rw_ios_per_sec = 5000
[[bdev]]
module = "raid"
name = "r0"
level = "raid1"
base_bdevs = ["later", "never"]
"#;

fn waiting(host: &mut Host) -> Vec<String> {
    let list = host.ok("config_get_waiting", json!({}));
    let mut names: Vec<String> =
        list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_delete_ends_every_kind_of_wait() {
    let scratch = Scratch::new();
    let disk = scratch.join("disk.img");
    let config = WAITING.replace("DISK", disk.to_str().unwrap());
    let mut host = Host::start_in(scratch, &config, &[]);
    assert_eq!(waiting(&mut host), ["f0", "p0", "r0"]);
    // Who starts a host and who looks at it is told what for.
    let list = host.ok("config_get_waiting", json!({})).to_string();
    assert!(list.contains("disk.img") && list.contains("later, never"), "{list}");
    let announced = wait_for("the announcement", || {
        host.log().lines().find(|line| line.starts_with("  waiting ")).map(str::to_owned)
    });
    assert!(["f0", "p0", "r0"].iter().all(|name| announced.contains(name)), "{announced}");
    let text = host.ok("save_config", json!({}));
    for name in ["p0", "f0", "r0"] {
        assert_eq!(text.as_str().unwrap().matches(&format!("name = \"{name}\"")).count(), 1, "{text}");
    }
    assert!(text.as_str().unwrap().contains("rw_ios_per_sec = 5000"), "{text}");
    let other = host.err("bdev_malloc_delete", json!({ "name": "p0" }));
    assert_eq!(other.code, -19, "{other:?}");
    for (method, name) in
        [("bdev_passthru_delete", "p0"), ("bdev_uring_delete", "f0"), ("bdev_raid_delete", "r0")]
    {
        assert_eq!(host.ok(method, json!({ "name": name })), true);
        assert_eq!(host.err(method, json!({ "name": name })).code, -19);
    }
    assert_eq!(host.ok("config_get_waiting", json!({})), json!([]));
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    host.ok("bdev_malloc_create", json!({ "name": "later", "num_blocks": 8192, "block_size": 512 }));
    host.ok("bdev_wait_for_examine", json!({}));
    assert_eq!(host.bdevs(), ["later"]);
    host.stop();
}

#[test]
fn a_reload_ends_every_kind_of_wait() {
    let scratch = Scratch::new();
    let disk = scratch.join("disk.img");
    let config = WAITING.replace("DISK", disk.to_str().unwrap());
    let mut host = Host::start_in(scratch, &config, &[]);
    // What waits can also be changed while it does.
    let _ = host.scratch().write("tenon.toml", &config.replace("later", "soon").replace("512", "4096"));
    host.ok("config_reload", json!({}));
    assert_eq!(waiting(&mut host), ["f0", "p0", "r0"]);
    assert!(host.ok("config_get_waiting", json!({})).to_string().contains("soon"));
    let _ = host.scratch().write("tenon.toml", "");
    host.ok("config_reload", json!({}));
    assert_eq!(host.ok("config_get_waiting", json!({})), json!([]));
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    host.ok("bdev_malloc_create", json!({ "name": "soon", "num_blocks": 8192, "block_size": 512 }));
    host.ok("bdev_wait_for_examine", json!({}));
    assert_eq!(host.bdevs(), ["soon"]);
    host.stop();
}

#[test]
fn a_device_that_was_waited_for_has_the_limits_of_the_file() {
    let scratch = Scratch::new();
    let disk = scratch.join("disk.img");
    let config = WAITING.replace("DISK", disk.to_str().unwrap());
    let mut host = Host::start_in(scratch, &config, &[]);
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    wait_for("f0 with its limits", || {
        let list = host.ok("bdev_get_bdevs", json!({}));
        let bdev = list.as_array().unwrap().iter().find(|bdev| bdev["name"] == "f0")?.clone();
        (bdev["assigned_rate_limits"]["rw_ios_per_sec"] == 5000).then_some(())
    });
    host.stop();
}

#[track_caller]
fn check_refused(text: &str, words: &[&str]) {
    let scratch = Scratch::new();
    let file = scratch.write("bad.toml", text);
    let output = run(&["check", "-c", file.to_str().unwrap()]);
    assert_eq!(output.code, 78, "{text}\n{}{}", output.stdout, output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "`{word}` is missing in: {}", output.stderr);
    }
}

#[test]
fn what_no_host_could_make_is_refused_by_a_check() {
    let malloc = |name: &str| format!("[[bdev]]\nmodule = \"malloc\"\nname = \"{name}\"\nsize = \"1MiB\"\n");
    check_refused(&malloc("a/b"), &["bad.toml:3", "[[bdev]] a/b `name`", "contains a slash"]);
    check_refused(&malloc("a\\u0007"), &["bad.toml:3", "a control character: leave it out"]);
    check_refused("[[subsystem]]\nnqn = \"a\"\n", &["bad.toml:1: subsystem a: nqn does not begin with"]);
    let itself = "[[bdev]]\nmodule = \"passthru\"\nname = \"p0\"\nbase = \"p0\"\n";
    check_refused(itself, &["bad.toml:4", "[[bdev]] p0 `base`", "is the device itself"]);
    let uuid = |text: &str| format!("uuid = \"{text}\"\n");
    let lower = "abababab-1111-4111-8111-111111111111";
    let two = [malloc("m0"), uuid(lower), malloc("m1"), uuid(&lower.to_uppercase())].concat();
    check_refused(&two, &["bad.toml:10", "[[bdev]] m1 `uuid`", "is that of m0 at", "bad.toml:5"]);
}

#[test]
fn mistakes_are_named_with_line_and_remedy() {
    check_refused("[host]\nlog_levle = \"info\"\n", &["bad.toml:2", "log_levle", "did you mean `log_level`"]);
    check_refused(
        "[[bdev]]\nmodule = \"maloc\"\nname = \"m\"\n",
        &["bad.toml:2", "maloc", "did you mean `malloc`"],
    );
    check_refused(
        "[[bdev]]\nmodule = \"malloc\"\nname = \"m\"\nsise = \"1MiB\"\n",
        &["bad.toml:4", "sise", "did you mean `size`"],
    );
    check_refused(
        "[[bdev]]\nmodule = \"malloc\"\nname = \"m\"\nsize = \"1MiB\"\nblock_size = 1000\n",
        &["bad.toml:5", "1000", "power of two"],
    );
    check_refused("[[bdev]]\nmodule = \"malloc\"\nname = \"m\"\nsize = \"soon\"\n", &["bad.toml:4", "soon"]);
    check_refused("[[bdev]\n", &["bad.toml:1"]);
    check_refused("log_level = \"info\"\n", &["bad.toml:1", "unknown key `log_level`"]);
    check_refused("host = 1\n", &["bad.toml:1", "must be a table"]);
    check_refused("[metrics]\nlisten = \"here\"\n", &["bad.toml:2", "`here`", "127.0.0.1:9464"]);
    let malloc = "[[bdev]]\nmodule = \"malloc\"\nname = \"m\"\nsize = \"1MiB\"\n";
    check_refused(
        &format!("{malloc}[bdev.qos]\nrw_ios_per_se = 5\n"),
        &["bad.toml:6", "rw_ios_per_se", "did you mean `rw_ios_per_sec`"],
    );
    check_refused(
        &format!("{malloc}qos = {{ r_mbytes_per_sec = \"a\" }}\n"),
        &["bad.toml:5", "r_mbytes_per_sec"],
    );
    check_refused("[host]\ncpus = \"3-1\"\n", &["3-1"]);
    let raid = "[[module]]\nname = \"raid\"\n";
    check_refused(
        &format!("{raid}process_window_size_kb = \"wide\"\n"),
        &["bad.toml:3", "process_window_size_kb", "wide"],
    );
    check_refused(&format!("{raid}process_window_size_kb = 0\n"), &["bad.toml:3", "must be from 1"]);
    check_refused(
        &format!("{raid}process_windo_size_kb = 1\n"),
        &["bad.toml:3", "did you mean `process_window_size_kb`"],
    );
}

#[test]
fn options_of_a_module_set_by_a_call_are_saved() {
    let mut host = Host::start("[[module]]\nname = \"raid\"\nprocess_priority = \"high\"\n");
    host.ok("bdev_raid_set_options", json!({ "process_window_size_kb": 2048 }));
    host.ok("bdev_nvme_set_options", json!({ "bdev_retry_count": 7 }));
    let text = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    let has = |line: &str| assert!(text.lines().any(|one| one == line), "`{line}` is missing in: {text}");
    has("process_priority = \"high\"");
    has("process_window_size_kb = 2048");
    has("bdev_retry_count = 7");
    assert!(!text.contains("timeout_admin_us"), "defaults are left out: {text}");
    // Those of the next instance are the same.
    host.ok("module_unregister", json!({ "name": "raid" }));
    host.ok("module_load", json!({ "name": "raid" }));
    host.ok("bdev_raid_set_options", json!({ "process_priority": "low" }));
    let text = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(text.contains("process_window_size_kb = 2048"), "{text}");
    host.stop();
    Host::start(&text).stop();
}

#[test]
fn calls_of_the_configuration_make_what_waits_as_well() {
    let mut host = Host::start("[[bdev]]\nmodule = \"passthru\"\nname = \"p\"\nbase_bdev_name = \"later\"\n");
    let calls = host.ok("framework_get_config", json!({ "name": "bdev" }));
    let call = json!({
        "method": "bdev_passthru_create",
        "params": { "name": "p", "base_bdev_name": "later" },
    });
    assert!(calls.as_array().unwrap().contains(&call), "{calls}");
    host.stop();
}

#[test]
fn a_file_that_is_not_there_is_a_configuration_error() {
    let output = run(&["run", "-c", "/nonexistent/tenon.toml"]);
    assert_eq!(output.code, 78);
    assert!(output.stderr.contains("/nonexistent/tenon.toml"), "{}", output.stderr);
}

const BEFORE: &str = r#"
[[bdev]]
module = "malloc"
name = "stays"
size = "1MiB"
[[bdev]]
module = "malloc"
name = "goes"
size = "1MiB"
[[bdev]]
module = "null"
name = "grows"
num_blocks = 8
[[bdev]]
module = "delay"
name = "changes"
base = "stays"
avg_read_latency_us = 1
p99_read_latency_us = 1
avg_write_latency_us = 1
p99_write_latency_us = 1
"#;

#[test]
fn a_reload_applies_the_difference_and_leaves_the_rest_alone() {
    let mut host = Host::start(BEFORE);
    let uuid = host.ok("bdev_get_bdevs", json!({ "name": "stays" }))[0]["uuid"].clone();
    host.ok("bdev_malloc_create", json!({ "name": "by_rpc", "num_blocks": 8, "block_size": 512 }));
    let after = BEFORE
        .replace("name = \"goes\"", "name = \"comes\"")
        .replace("num_blocks = 8", "num_blocks = 16")
        .replace("avg_read_latency_us = 1", "avg_read_latency_us = 9");
    let _ = host.scratch().write("tenon.toml", &after);
    host.signal(Signal::HUP);
    wait_for("the reload", || host.bdevs().contains(&"comes".to_owned()).then_some(()));
    let names = host.bdevs();
    assert!(!names.contains(&"goes".to_owned()) && names.contains(&"by_rpc".to_owned()), "{names:?}");
    wait_for("the size of grows", || {
        (host.ok("bdev_get_bdevs", json!({ "name": "grows" }))[0]["num_blocks"] == 16).then_some(())
    });
    assert_eq!(host.ok("bdev_get_bdevs", json!({ "name": "stays" }))[0]["uuid"], uuid);
    let text = host.ok("save_config", json!({}));
    assert!(text.as_str().unwrap().contains("avg_read_latency_us = 9"), "{text}");
    host.stop();
}

#[test]
fn a_reload_of_a_broken_file_changes_nothing_and_says_why() {
    let mut host = Host::start(BEFORE);
    let before = host.bdevs();
    let _ = host.scratch().write("tenon.toml", "[[bdev]]\nname = 1\n");
    let error = host.err("config_reload", json!({}));
    assert!(error.message.contains("tenon.toml:"), "{error:?}");
    assert_eq!(host.bdevs(), before);
    host.stop();
}

#[test]
fn a_reload_does_not_remove_a_device_in_use() {
    let mut host = Host::start(BEFORE);
    let without_base = BEFORE.replacen("name = \"stays\"", "name = \"other\"", 1);
    let _ = host.scratch().write("tenon.toml", &without_base);
    let error = host.err("config_reload", json!({}));
    assert!(error.message.contains("stays"), "{error:?}");
    assert!(host.bdevs().contains(&"changes".to_owned()));
    host.stop();
}

#[test]
fn a_saved_configuration_makes_the_same_host() {
    let mut host = Host::start(BEFORE);
    host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "changes" }));
    host.ok("bdev_set_qos_limit", json!({ "name": "p0", "rw_mbytes_per_sec": 10 }));
    let saved = host.scratch().join("saved.toml");
    host.ok("save_config", json!({ "filename": saved }));
    let describe = |host: &mut Host| -> Vec<Value> {
        let mut list: Vec<Value> = host.ok("bdev_get_bdevs", json!({})).as_array().unwrap().clone();
        for bdev in &mut list {
            for changing in ["uuid", "aliases"] {
                bdev.as_object_mut().unwrap().remove(changing);
            }
        }
        list.sort_by_key(|bdev| bdev["name"].to_string());
        list
    };
    let before = describe(&mut host);
    let text = std::fs::read_to_string(&saved).unwrap();
    host.stop();
    let mut again = Host::start(&text);
    assert_eq!(describe(&mut again), before, "{text}");
    again.stop();
}

#[test]
fn a_name_that_waits_in_the_file_and_is_taken_by_a_call_is_saved_once() {
    let waiting = "[[bdev]]\nmodule = \"passthru\"\nname = \"x0\"\nbase = \"nobody\"\n";
    let mut host = Host::start(waiting);
    assert!(host.ok("save_config", json!({})).as_str().unwrap().contains("nobody"));
    host.ok("bdev_malloc_create", json!({ "name": "x0", "num_blocks": 8, "block_size": 512 }));
    let saved = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(saved.contains("malloc") && !saved.contains("nobody"), "{saved}");
    host.stop();
    let mut again = Host::start(&saved);
    assert_eq!(again.bdevs(), ["x0"]);
    again.stop();
}

#[test]
fn the_schema_names_every_module() {
    let output = run(&["config", "schema"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let schema: Value = serde_json::from_str(&output.stdout).expect("a schema is JSON");
    for module in ["malloc", "null", "delay", "error", "passthru", "uring"] {
        assert!(output.stdout.contains(&format!("\"const\": \"{module}\"")), "{module} is missing");
    }
    assert!(schema["properties"]["host"].is_object());
}
