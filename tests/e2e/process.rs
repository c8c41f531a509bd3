//! The process itself: signals, exit codes, sudden death, readiness.

use std::process::Command;

use rustix::process::Signal;
use serde_json::json;
use tenon_tests::{Host, Scratch, run, tenon, wait_for};

const TWO: &str = r#"
[[bdev]]
module = "malloc"
name = "m0"
size = "1MiB"
[[bdev]]
module = "passthru"
name = "p0"
base = "m0"
"#;

#[test]
fn sigterm_drains_and_exits_with_zero() {
    let host = Host::start(TWO);
    host.stop();
}

#[test]
fn kill_instance_is_the_same_over_rpc() {
    let mut host = Host::start(TWO);
    host.ok("spdk_kill_instance", json!({ "sig_name": "SIGTERM" }));
    assert!(host.wait().success());
    assert!(!host.socket().exists());
}

#[test]
fn after_a_sudden_death_the_next_start_works_on_the_same_paths() {
    let mut scratch = Scratch::new();
    for _ in 0..10 {
        let mut host = Host::start_in(scratch, TWO, &[]);
        assert_eq!(host.bdevs(), ["m0", "p0"]);
        scratch = host.kill();
        assert!(scratch.join("rpc.sock").exists(), "a killed host leaves its socket");
    }
}

#[test]
fn a_second_host_on_the_same_socket_is_refused_and_the_first_lives() {
    let mut host = Host::start(TWO);
    let output = run(&["run", "--rpc-socket", host.socket().to_str().unwrap()]);
    assert_eq!(output.code, 78, "{}", output.stderr);
    assert!(output.stderr.contains("in use"), "{}", output.stderr);
    assert_eq!(host.bdevs(), ["m0", "p0"]);
    host.stop();
}

#[test]
fn a_file_in_the_place_of_the_socket_is_not_removed() {
    let scratch = Scratch::new();
    let path = scratch.write("precious", "data");
    let output = run(&["run", "--rpc-socket", path.to_str().unwrap()]);
    assert_eq!(output.code, 78, "{}", output.stderr);
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
}

#[test]
fn a_required_module_that_fails_ends_the_start() {
    let scratch = Scratch::new();
    let file = scratch.write("t.toml", "[[module]]\nname = \"no_such\"\nrequired = true\n");
    let socket = scratch.join("rpc.sock");
    let output = run(&["run", "-c", file.to_str().unwrap(), "--rpc-socket", socket.to_str().unwrap()]);
    assert_eq!(output.code, 69, "{}", output.stderr);
    assert!(output.stderr.contains("no_such"), "{}", output.stderr);
}

#[test]
fn readiness_is_told_to_the_service_manager() {
    let scratch = Scratch::new();
    let socket = std::os::unix::net::UnixDatagram::bind(scratch.join("notify")).unwrap();
    socket.set_read_timeout(Some(tenon_tests::PATIENCE)).unwrap();
    let file = scratch.write("tenon.toml", TWO);
    let mut command = Command::new(tenon());
    command.env("NOTIFY_SOCKET", scratch.join("notify"));
    command.arg("run").arg("-c").arg(file).arg("--rpc-socket").arg(scratch.join("rpc.sock"));
    let host = Host::spawn(scratch, command);
    let mut message = [0; 256];
    let count = socket.recv(&mut message).unwrap();
    assert!(String::from_utf8_lossy(&message[..count]).contains("READY=1"));
    host.stop();
}

#[test]
fn an_idle_host_sleeps() {
    let host = Host::start(TWO);
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", host.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // Up to 1 % of one CPU: at 100 ticks per second that is 2 ticks in 2 s.
    wait_for("two idle seconds", || {
        let before = ticks();
        std::thread::sleep(std::time::Duration::from_secs(2));
        (ticks() - before <= 2).then_some(())
    });
    host.stop();
}

#[test]
fn two_signals_end_a_host_that_cannot_drain() {
    let mut host = Host::start(TWO);
    host.signal(Signal::TERM);
    host.signal(Signal::TERM);
    let status = host.wait();
    assert!(status.success() || status.code() == Some(130), "{status}");
}
