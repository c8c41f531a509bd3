//! The commands that need no host, and those that talk to one.

use serde_json::Value;
use tenon_tests::{Host, Scratch, plugin, run};

#[test]
fn rpc_prints_the_result_and_fails_with_the_reason() {
    let host = Host::start("");
    let socket = host.socket();
    let socket = socket.to_str().unwrap();
    let output = run(&[
        "rpc",
        "bdev_malloc_create",
        r#"{"name":"m0","num_blocks":8,"block_size":512}"#,
        "--rpc-socket",
        socket,
    ]);
    assert_eq!((output.code, output.stdout.trim()), (0, "\"m0\""), "{}", output.stderr);
    let output = run(&["rpc", "bdev_malloc_delete", r#"{"name":"m9"}"#, "--rpc-socket", socket]);
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("m9"), "{}", output.stderr);
    host.stop();
}

#[test]
fn without_a_host_the_clients_say_so() {
    let scratch = Scratch::new();
    let socket = scratch.join("none.sock");
    for command in [&["status"][..], &["rpc", "spdk_get_version"]] {
        let output = run(&[command, &["--rpc-socket", socket.to_str().unwrap()]].concat());
        assert_eq!(output.code, 69, "{}", output.stderr);
        assert!(output.stderr.contains("none.sock"), "{}", output.stderr);
    }
}

#[test]
fn status_shows_devices_reactors_and_modules() {
    let host = Host::start("[[bdev]]\nmodule = \"malloc\"\nname = \"m0\"\nsize = \"64MiB\"\n");
    let output = run(&["status", "--rpc-socket", host.socket().to_str().unwrap()]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    for word in ["m0", "64 MiB", "malloc", "reactor_0", "running", "ready"] {
        assert!(output.stdout.contains(word), "`{word}` is missing in\n{}", output.stdout);
    }
    host.stop();
}

#[test]
fn plugins_are_listed_inspected_and_checked() {
    let output = run(&["plugin", "list", "--json"]);
    let list: Value = serde_json::from_str(&output.stdout).expect("a list is JSON");
    let names: Vec<&str> = list.as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    for name in ["malloc", "null", "delay", "error", "passthru", "uring"] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    let file = plugin("bdev-malloc");
    let output = run(&["plugin", "inspect", file.to_str().unwrap()]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stdout.contains("bdev_malloc_create"), "{}", output.stdout);
    let output = run(&["plugin", "check", "--require-certificate", file.to_str().unwrap()]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let output = run(&["plugin", "check", "/etc/hostname"]);
    assert_eq!(output.code, 78);
    assert!(output.stderr.contains("ELF"), "{}", output.stderr);
}

#[test]
fn a_reader_that_leaves_ends_a_command_silently() {
    use std::io::Read;
    for args in [&["config", "schema"][..], &["completions", "bash"]] {
        let mut command = std::process::Command::new(tenon_tests::tenon());
        let command =
            command.args(args).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let mut complaint = String::new();
        child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
        child.wait().unwrap();
        assert_eq!(complaint, "", "{args:?}");
    }
}

#[test]
fn completions_and_man_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.code == 0 && output.stdout.contains("tenon"), "{shell}: {}", output.stderr);
    }
    let scratch = Scratch::new();
    let output = run(&["man", "--out", scratch.path().to_str().unwrap()]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let pages = std::fs::read_dir(scratch.path()).unwrap().count();
    assert!(pages >= 8, "{pages} pages");
}
