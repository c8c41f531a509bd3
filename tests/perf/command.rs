//! What the command prints and how it ends.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tenon_tests::{Output, Scratch, run, tenon, wait_for};

const STACK: &str = r#"
[[bdev]]
module = "malloc"
name = "m0"
size = "4MiB"

[[bdev]]
module = "delay"
name = "d0"
base = "m0"

[[bdev]]
module = "null"
name = "n0"
size = "1GiB"
"#;

fn perf(scratch: &Scratch, config: &str, args: &str) -> Output {
    let file = scratch.write("perf.toml", config);
    let mut words = vec!["perf", "-c", file.to_str().unwrap()];
    words.extend(args.split_whitespace());
    run(&words)
}

#[track_caller]
fn json(output: &Output) -> Value {
    assert_eq!(output.code, 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

#[test]
fn without_names_every_device_that_nobody_claims_is_loaded_in_the_order_of_names() {
    let report = json(&perf(&Scratch::new(), STACK, "--ios 1000 --json"));
    let names: Vec<&str> =
        report["bdevs"].as_array().unwrap().iter().filter_map(|bdev| bdev["name"].as_str()).collect();
    assert_eq!(names, ["d0", "n0"]);
    assert_eq!(report["total"]["ios"], 2000);
}

#[test]
fn the_table_has_a_line_per_device_and_kind() {
    let output = perf(&Scratch::new(), STACK, "--bdev d0 --rw randrw --mix 50 --ios 1000 --latency all");
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert!(output.stdout.starts_with("4 KiB, queue depth 32, seed "), "{}", output.stdout);
    for start in ["d0               read ", "d0               write "] {
        assert!(output.stdout.lines().any(|line| line.starts_with(start)), "{}", output.stdout);
    }
    assert!(output.stderr.is_empty(), "{}", output.stderr);
}

#[test]
fn the_same_seed_gives_the_same_load() {
    let reads = || {
        let output = perf(&Scratch::new(), STACK, "--bdev n0 --rw randrw --seed 7 --ios 5000 --json");
        json(&output)["bdevs"][0]["read"]["ios"].clone()
    };
    let first = reads();
    assert_ne!(first, 0);
    assert_eq!(first, reads());
}

#[test]
fn progress_is_shown_where_it_is_asked_for() {
    let output = perf(&Scratch::new(), STACK, "--bdev n0 --time 1200ms --progress");
    assert_eq!(output.code, 0);
    assert!(output.stderr.contains("IOPS") && output.stderr.contains("MiB/s"), "{}", output.stderr);
}

#[test]
fn a_picture_of_the_latencies_is_written() {
    let scratch = Scratch::new();
    let file = scratch.join("latency.svg");
    let output =
        perf(&scratch, STACK, &format!("--bdev d0 --rw randrw --ios 2000 --histogram {}", file.display()));
    assert_eq!(output.code, 0, "{}", output.stderr);
    let svg = std::fs::read_to_string(file).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("d0 read") && svg.contains("d0 write"));
}

#[test]
fn lost_data_is_a_failure_that_names_device_and_block() {
    let scratch = Scratch::new();
    let state = format!("--verify --verify-state {}", scratch.join("state").display());
    let first = perf(&scratch, STACK, &format!("--bdev d0 --rw randwrite --ios 500 {state}"));
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(first.stdout.contains("d0: ") && first.stdout.contains(" verified, 0 wrong"), "{}", first.stdout);
    // Memory is empty again: whatever the file says was written is lost.
    let second = perf(&scratch, STACK, &format!("--bdev d0 --verify-only {state}"));
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("bdev d0: lba ") && second.stderr.contains(": lost: expected write "));
}

#[test]
fn failed_ios_are_a_failure_that_names_device_and_block() {
    let config = format!(
        "{STACK}\n[[bdev]]\nmodule = \"error\"\nname = \"e0\"\nbase = \"n0\"\n\
         inject = [{{ io_type = \"read\", error_type = \"failure\", num = 2 }}]\n"
    );
    let output = perf(&Scratch::new(), &config, "--bdev e0 --ios 100");
    assert_eq!(output.code, 1);
    assert!(output.stderr.contains("bdev e0: read of lba "), "{}", output.stderr);
    assert!(output.stderr.contains("Input/output error"), "{}", output.stderr);
}

/// Two reads of `e0` never come back.
fn hanging() -> String {
    format!(
        "{STACK}\n[[bdev]]\nmodule = \"error\"\nname = \"e0\"\nbase = \"n0\"\n\
         inject = [{{ io_type = \"read\", error_type = \"pending\", num = 2 }}]\n"
    )
}

#[test]
fn a_load_whose_io_hangs_ends_and_says_how_much_of_which_device() {
    for end in ["--time 300ms", "--ios 1000"] {
        let output = perf(&Scratch::new(), &hanging(), &format!("--bdev e0 {end} --io-timeout 1s"));
        assert_eq!(output.code, 1, "{}", output.stderr);
        let complaint = "bdev e0: gave up on 2 I/Os that do not come back";
        assert!(output.stderr.contains(complaint), "{}", output.stderr);
        // What was measured until then is not lost.
        assert!(output.stdout.lines().any(|line| line.starts_with("e0 ")), "{}", output.stdout);
    }
    let output = perf(&Scratch::new(), &hanging(), "--bdev e0 --ios 100 --io-timeout 1s --json");
    let report: Value = serde_json::from_str(&output.stdout).expect("the report is whole");
    assert_eq!((output.code, &report["bdevs"][0]["outstanding"]), (1, &Value::from(2)));
}

#[test]
fn a_load_that_is_interrupted_ends_also_if_its_io_hangs() {
    let scratch = Scratch::new();
    let file = scratch.write("perf.toml", &hanging());
    let words = ["--bdev", "e0", "--time", "600s", "--io-timeout", "600s", "--progress"];
    let mut command = Command::new(tenon());
    command.arg("perf").arg("-c").arg(file).args(words).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // The load runs as soon as it shows progress.
    assert!(lines.next().unwrap().unwrap().contains("IOPS"));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let status = wait_for("the end of the load", || child.try_wait().unwrap());
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(status.code(), Some(1), "{rest:?}");
    assert!(rest.concat().contains("bdev e0: gave up on 2 I/Os"), "{rest:?}");
}

#[test]
fn what_cannot_be_run_says_why() {
    let scratch = Scratch::new();
    for (args, code, words) in [
        ("--bdev x", 1, "x"),
        ("--bdev n0 --block-size 1000", 1, "no multiple of its blocks"),
        ("--bdev n0 --lend", 1, "does not support lending"),
        ("--rw read --mix 5", 78, "--mix"),
        ("--queue-depth 0", 78, "queue depth 0"),
        ("--rw sideways", 2, "sideways"),
    ] {
        let output = perf(&scratch, STACK, args);
        assert_eq!(output.code, code, "{args}: {}", output.stderr);
        assert!(output.stderr.contains(words), "{args}: {}", output.stderr);
    }
    let orphan = "[[bdev]]\nmodule = \"passthru\"\nname = \"p\"\nbase = \"nowhere\"\n";
    let output = perf(&scratch, orphan, "");
    assert_eq!(output.code, 69, "{}", output.stderr);
    assert!(output.stderr.contains("waits for nowhere"), "{}", output.stderr);
}
