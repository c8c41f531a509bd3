//! A reload as an operator meets it: what the order of the file has no part in,
//! what could not be done and is tried again, options of modules and devices.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use tenon_tests::{Host, PATIENCE, Scratch, tenon, wait_for};

const NULL: &str = "[[bdev]]\nmodule = \"null\"\nnum_blocks = 64\n";
const FILTER: &str = "[[bdev]]\nmodule = \"passthru\"\n";

fn null(name: &str) -> String {
    format!("{NULL}name = \"{name}\"\n")
}

fn filter(name: &str, base: &str) -> String {
    format!("{FILTER}name = \"{name}\"\nbase = \"{base}\"\n")
}

/// Writes `text` into the host's file and reloads it.
fn reload(host: &mut Host, text: &str) -> Result<Value, String> {
    let _ = host.scratch().write("tenon.toml", text);
    host.call("config_reload", json!({})).map_err(|error| error.message)
}

#[test]
fn a_stack_goes_whatever_the_order_of_the_file() {
    let stack = [filter("top", "middle"), filter("middle", "bottom"), null("bottom")];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut host = Host::start(&order.map(|index| stack[index].clone()).concat());
        assert_eq!(host.bdevs().len(), 3);
        assert_eq!(reload(&mut host, &null("other")), Ok(json!(true)), "{order:?}");
        assert_eq!(host.bdevs(), ["other"], "{order:?}");
        host.stop();
    }
}

#[test]
fn a_filter_moves_to_another_base_and_the_old_one_goes() {
    let mut host = Host::start(&[null("old"), filter("top", "old")].concat());
    assert_eq!(reload(&mut host, &[filter("top", "new"), null("new")].concat()), Ok(json!(true)));
    let mut bdevs = host.bdevs();
    bdevs.sort();
    assert_eq!(bdevs, ["new", "top"]);
    host.stop();
}

#[test]
fn a_name_that_is_held_changes_its_module_when_its_filter_goes_in_the_same_reload() {
    let mut host = Host::start(&[filter("top", "base"), null("base")].concat());
    let malloc = "[[bdev]]\nmodule = \"malloc\"\nname = \"base\"\nsize = \"1MiB\"\n";
    assert_eq!(reload(&mut host, malloc), Ok(json!(true)));
    assert_eq!(host.ok("bdev_get_bdevs", json!({}))[0]["module"], "malloc");
    host.stop();
}

#[test]
fn what_could_not_be_removed_goes_with_the_next_reload() {
    let mut host = Host::start(&null("held"));
    host.ok("bdev_passthru_create", json!({ "name": "by_rpc", "base_bdev_name": "held" }));
    let refused = reload(&mut host, "").unwrap_err();
    assert!(refused.contains("held") && refused.contains("passthru"), "{refused}");
    assert_eq!(refused.matches("held").count(), 1, "told once: {refused}");
    host.ok("bdev_passthru_delete", json!({ "name": "by_rpc" }));
    assert_eq!(reload(&mut host, ""), Ok(json!(true)));
    assert!(host.bdevs().is_empty());
    host.stop();
}

#[test]
fn what_could_not_be_made_at_the_start_or_by_a_reload_is_tried_again() {
    let scratch = Scratch::new();
    let path = scratch.write("file", &"x".repeat(700));
    let file = format!(
        "[[bdev]]\nmodule = \"uring\"\nname = \"file\"\nfilename = \"{}\"\nblock_size = 512\n",
        path.display()
    );
    std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    let mut host = Host::start_in(scratch, &file, &[]);
    assert!(host.bdevs().is_empty(), "an empty file is no device");
    assert!(reload(&mut host, &file).is_err(), "it is told at each reload");
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(reload(&mut host, &file), Ok(json!(true)));
    assert_eq!(host.bdevs(), ["file"]);
    host.ok("bdev_null_create", json!({ "name": "taken", "num_blocks": 8, "block_size": 512 }));
    let with_taken = [file.as_str(), &filter("taken", "file")].concat();
    assert!(reload(&mut host, &with_taken).unwrap_err().contains("taken"));
    host.ok("bdev_null_delete", json!({ "name": "taken" }));
    assert_eq!(reload(&mut host, &with_taken), Ok(json!(true)));
    assert_eq!(host.bdevs().len(), 2);
    host.stop();
}

#[test]
fn a_change_that_was_refused_is_due_until_it_is_made_or_taken_back() {
    let smaller = null("grows").replace("64", "32");
    let mut host = Host::start(&null("grows"));
    let blocks =
        |host: &mut Host| host.ok("bdev_get_bdevs", json!({ "name": "grows" }))[0]["num_blocks"].clone();
    assert!(reload(&mut host, &null("grows").replace("64", "0")).is_err());
    assert_eq!(blocks(&mut host), 64);
    assert!(reload(&mut host, &null("grows").replace("64", "0")).is_err(), "it is still due");
    assert_eq!(reload(&mut host, &null("grows")), Ok(json!(true)));
    assert_eq!(reload(&mut host, &smaller), Ok(json!(true)));
    assert_eq!(blocks(&mut host), 32);
    host.stop();
}

#[test]
fn limits_of_a_device_that_waits_change_with_the_file() {
    let waits = filter("top", "later");
    let mut host = Host::start(&waits);
    let limited = format!("{waits}qos = {{ rw_mbytes_per_sec = 5 }}\n");
    assert_eq!(reload(&mut host, &limited), Ok(json!(true)));
    host.ok("bdev_null_create", json!({ "name": "later", "num_blocks": 64, "block_size": 512 }));
    let top = host.ok("bdev_get_bdevs", json!({ "name": "top", "timeout": 5000 }))[0].clone();
    wait_for("its limits", || {
        let top = host.ok("bdev_get_bdevs", json!({ "name": "top" }))[0].clone();
        (top["assigned_rate_limits"]["rw_mbytes_per_sec"] == 5).then_some(())
    });
    assert_eq!(top["name"], "top");
    host.stop();
}

#[test]
fn options_of_modules_follow_the_file_and_calls_and_are_saved() {
    let options = |retries: i32| format!("[[module]]\nname = \"nvme\"\nbdev_retry_count = {retries}\n");
    let saved = |host: &mut Host| host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    let is_loaded = |host: &mut Host| {
        let list = host.ok("module_get_list", json!({}))["modules"].clone();
        list.as_array().unwrap().iter().any(|module| module["name"] == "nvme")
    };
    let mut host = Host::start("");
    assert!(!is_loaded(&mut host));
    assert_eq!(reload(&mut host, &options(7)), Ok(json!(true)));
    assert!(is_loaded(&mut host), "a module that is new in the file is loaded as at a start");
    assert_eq!(reload(&mut host, &options(8)), Ok(json!(true)));
    assert!(saved(&mut host).contains("bdev_retry_count = 8"));
    // The module itself checks what it is given, so that a wrong value shows that it was given.
    let wrong = options(8).replace('8', "\"often\"");
    let refused = reload(&mut host, &wrong).unwrap_err();
    assert!(refused.contains("nvme") && refused.contains("often"), "{refused}");
    assert!(saved(&mut host).contains("bdev_retry_count = 8"), "what was refused is not in force");
    assert!(reload(&mut host, &wrong).is_err(), "it is still due");
    host.ok("module_configure", json!({ "name": "nvme", "config": { "bdev_retry_count": 9 } }));
    assert!(saved(&mut host).contains("bdev_retry_count = 9"));
    assert_eq!(reload(&mut host, ""), Ok(json!(true)));
    assert!(!saved(&mut host).contains("bdev_retry_count"), "without its table it has its defaults");
    host.stop();
}

#[test]
fn options_of_the_device_layer_follow_the_file_and_calls_and_are_saved() {
    let mut host = Host::start("[bdev_options]\nreset_drain_timeout_sec = 7\n");
    let saved = |host: &mut Host| host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(saved(&mut host).contains("reset_drain_timeout_sec = 7"));
    assert!(!saved(&mut host).contains("auto_examine"));
    host.ok("bdev_set_options", json!({ "bdev_auto_examine": false }));
    assert!(saved(&mut host).contains("auto_examine = false"));
    assert_eq!(reload(&mut host, "[bdev_options]\nauto_examine = true\n"), Ok(json!(true)));
    let text = saved(&mut host);
    assert!(text.contains("auto_examine = true") && !text.contains("reset_drain"), "{text}");
    host.stop();
}

#[test]
fn the_log_level_follows_the_file() {
    let mut host = Host::start("");
    assert_eq!(reload(&mut host, "[host]\nlog_level = \"debug\"\n"), Ok(json!(true)));
    // By the names of the calls, which have one level more.
    assert_eq!(host.ok("log_get_print_level", json!({})), "INFO");
    host.ok("log_set_print_level", json!({ "level": "ERROR" }));
    assert_eq!(reload(&mut host, "[host]\nlog_level = \"debug\"\n[metrics]\n"), Ok(json!(true)));
    assert_eq!(host.ok("log_get_print_level", json!({})), "ERROR", "what did not change is left alone");
    host.stop();
}

#[test]
fn the_service_manager_hears_when_a_reload_began_and_ended() {
    let scratch = Scratch::new();
    let socket = UnixDatagram::bind(scratch.join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let file = scratch.write("tenon.toml", "");
    let mut command = Command::new(tenon());
    command.env("NOTIFY_SOCKET", scratch.join("notify"));
    command.arg("run").arg("-c").arg(file).arg("--rpc-socket").arg(scratch.join("rpc.sock"));
    let host = Host::spawn(scratch, command);
    let hear = || {
        let mut message = [0; 256];
        let count = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..count]).into_owned()
    };
    assert!(hear().contains("READY=1"));
    host.signal(Signal::HUP);
    let began = hear();
    assert!(began.contains("RELOADING=1\n") && began.contains("MONOTONIC_USEC="), "{began}");
    assert!(hear().contains("READY=1"));
    host.stop();
}
