//! No allocation per I/O: the same load is run once short and once long under a
//! library that counts every allocation of the process, the plugins' included.
//! Start and end cost some; a longer load must not cost more.

use std::path::{Path, PathBuf};
use std::process::Command;

use tenon_tests::{Scratch, root, tenon};

fn counter(scratch: &Scratch) -> PathBuf {
    let library = scratch.join("count_allocations.so");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let compiled = Command::new(compiler)
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(root().join("tests/perf/count_allocations.c"))
        .status();
    assert!(compiled.unwrap().success(), "the counter does not compile");
    library
}

fn allocations(scratch: &Scratch, counter: &Path, config: &str, args: &str, ios: u64) -> u64 {
    let file = scratch.write("perf.toml", config);
    let count = scratch.join("count");
    let output = Command::new(tenon())
        .args(["perf", "--seed", "1", "--ios", &ios.to_string(), "-c"])
        .arg(file)
        .args(args.split_whitespace())
        .env("LD_PRELOAD", counter)
        .env("TENON_COUNT_FILE", &count)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(count).unwrap().trim().parse().unwrap()
}

#[track_caller]
fn check(config: &str, args: &str) {
    let scratch = Scratch::new();
    let counter = counter(&scratch);
    let short = allocations(&scratch, &counter, config, args, SHORT);
    let long = allocations(&scratch, &counter, config, args, LONG);
    assert!(short > 1000, "the counter counts: {short}");
    let more = long.saturating_sub(short);
    assert!(more < MAX_MORE, "{args}: {more} allocations for {} more I/Os", LONG - SHORT);
}

const NULL: &str = "[[bdev]]\nmodule = \"null\"\nname = \"n0\"\nsize = \"1GiB\"\n";
const MALLOC: &str = "[[bdev]]\nmodule = \"malloc\"\nname = \"m0\"\nsize = \"4MiB\"\n";

#[test]
fn null_allocates_nothing_per_io() {
    check(NULL, "--rw randrw");
}

#[test]
fn malloc_allocates_nothing_per_io() {
    check(MALLOC, "--rw randrw --unmap-percent 5 --flush-every 50");
}

#[test]
fn lending_allocates_nothing_per_io() {
    check(MALLOC, "--lend");
}

#[test]
fn a_stack_with_a_device_that_completes_later_allocates_nothing_per_io() {
    let config = format!(
        "{MALLOC}\n[[bdev]]\nmodule = \"passthru\"\nname = \"p0\"\nbase = \"m0\"\n\n\
         [[bdev]]\nmodule = \"delay\"\nname = \"d0\"\nbase = \"p0\"\n\n\
         [[bdev]]\nmodule = \"delay\"\nname = \"d1\"\nbase = \"d0\"\navg_read_latency_us = 5\n"
    );
    check(&config, "--rw randrw");
}

const SHORT: u64 = 20_000;
const LONG: u64 = 120_000;
/// A longer run has a few more turns of whatever is done by time; 100,000 more I/Os are not among it.
const MAX_MORE: u64 = 200;
