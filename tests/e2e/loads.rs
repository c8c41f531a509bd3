//! Real I/O through the whole process: every read of `tenon perf --verify` is
//! compared with what was written before, on single devices, on stacks and on a
//! plugin in C.

use std::path::Path;

use serde_json::Value;
use tenon_tests::{Scratch, build_c_example, plugin_directory, run};

/// Runs a verified load on `bdev`; gives exit code, report and what was complained about.
#[track_caller]
fn load(config: &str, bdev: &str, args: &[&str], plugin_dir: Option<&Path>) -> (i32, Value, String) {
    let scratch = Scratch::new();
    let file = scratch.write("tenon.toml", config);
    let fixed = ["perf", "-c", file.to_str().unwrap(), "--bdev", bdev, "--verify", "--json", "--seed", "7"];
    let directory = plugin_dir.map(|path| path.to_str().unwrap());
    let directory: Vec<&str> = directory.iter().flat_map(|path| ["--plugin-dir", *path]).collect();
    let output = run(&[&fixed[..], &directory, args].concat());
    let report = serde_json::from_str(&output.stdout).unwrap_or_default();
    (output.code, report, output.stderr)
}

#[track_caller]
fn loses_nothing(config: &str, bdev: &str, args: &[&str], plugin_dir: Option<&Path>) {
    let (code, report, complaints) = load(config, bdev, args, plugin_dir);
    assert_eq!(code, 0, "{complaints}{report}");
    assert_eq!(report["total"]["errors"], 0, "{report}");
    assert_eq!(report["total"]["mismatched_blocks"], 0, "{report}");
    assert!(report["bdevs"][0]["verified_blocks"].as_u64().unwrap() > 1000, "{report}");
}

const MIXED: &[&str] = &["--rw", "randrw", "--mix", "50", "--block-size", "4KiB", "--ios", "20000"];
const LARGE: &[&str] = &["--rw", "randrw", "--mix", "50", "--block-size", "128KiB", "--ios", "2000"];

#[test]
fn a_plugin_in_c_keeps_what_is_written() {
    let scratch = Scratch::new();
    let directory = plugin_directory(&scratch);
    build_c_example(&directory.join("libc_ramdisk.so"));
    let config = "[[bdev]]\nmodule = \"c_ramdisk\"\nname = \"c0\"\nnum_blocks = 16384\n";
    for args in [MIXED, LARGE] {
        loses_nothing(config, "c0", args, Some(&directory));
    }
    let stack = format!("{config}[[bdev]]\nmodule = \"passthru\"\nname = \"p0\"\nbase = \"c0\"\n");
    loses_nothing(&stack, "p0", MIXED, Some(&directory));
}

#[test]
fn stacks_keep_what_is_written() {
    let config = r#"
        [[bdev]]
        module = "malloc"
        name = "m0"
        size = "8MiB"
        [[bdev]]
        module = "delay"
        name = "d0"
        base = "m0"
        avg_read_latency_us = 20
        p99_read_latency_us = 200
        avg_write_latency_us = 20
        p99_write_latency_us = 200
        [[bdev]]
        module = "passthru"
        name = "p0"
        base = "d0"
        [[bdev]]
        module = "error"
        name = "e0"
        base = "p0"
        inject = [{ io_type = "all", error_type = "nomem", num = 4294967295, probability = 1.0 }]
        [[bdev]]
        module = "passthru"
        name = "p1"
        base = "e0"
    "#;
    for args in [MIXED, LARGE] {
        loses_nothing(config, "p1", args, None);
    }
}

#[test]
fn lent_memory_shows_what_was_written() {
    let config = "[[bdev]]\nmodule = \"malloc\"\nname = \"m0\"\nsize = \"8MiB\"\n";
    loses_nothing(config, "m0", &[LARGE, &["--lend"]].concat(), None);
}

#[test]
fn a_file_keeps_what_is_written() {
    let scratch = Scratch::new();
    let file = scratch.join("disk.img");
    std::fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let config = format!(
        "[[bdev]]\nmodule = \"uring\"\nname = \"f0\"\nfilename = \"{}\"\nblock_size = 4096\n[[bdev]]\nmodule = \"passthru\"\nname = \"p0\"\nbase = \"f0\"\n",
        file.display()
    );
    loses_nothing(&config, "p0", MIXED, None);
}

#[test]
fn the_check_finds_what_a_device_corrupts() {
    let config = r#"
        [[bdev]]
        module = "malloc"
        name = "m0"
        size = "8MiB"
        [[bdev]]
        module = "error"
        name = "e0"
        base = "m0"
        inject = [{ io_type = "write", error_type = "corrupt_data", num = 1, corrupt_offset = 100, corrupt_value = 1 }]
    "#;
    let (code, report, complaints) = load(config, "e0", MIXED, None);
    assert_eq!(code, 1, "{complaints}");
    assert!(report["total"]["mismatched_blocks"].as_u64().unwrap() >= 1, "{report}");
}
