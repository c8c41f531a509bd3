//! Loads on real devices: exact ends, every device under verification, and
//! every kind of wrong block found.
#![allow(clippy::unwrap_used, reason = "tests")]

mod host;

use std::time::Duration;

use host::Host;
use serde_json::json;
use tenon_bdev::ObjectCounts;
use tenon_perf::{Access, End, MismatchKind, Report, StartError, Timing, Workload};

/// Two reactors, and one device of each kind on top of its own memory.
fn stacks() -> Host {
    let host = Host::start(2);
    host.create("null", json!({ "name": "n", "size": "1GiB" }));
    for name in ["m", "md", "mp", "me"] {
        host.create("malloc", json!({ "name": name, "size": "4MiB", "block_size": 512 }));
    }
    host.create(
        "delay",
        json!({ "name": "d", "base": "md", "avg_read_latency_us": 20, "avg_write_latency_us": 0 }),
    );
    host.create("passthru", json!({ "name": "p", "base": "mp" }));
    host.create("error", json!({ "name": "e", "base": "me" }));
    host
}

fn inject(host: &Host, inject: serde_json::Value) {
    let (answer, answers) = std::sync::mpsc::channel();
    host.on(move |core| {
        assert!(core.rpc("bdev_error_inject_error", &inject, move |result| {
            _ = answer.send(result.map(|_| ()));
        }));
    });
    answers.recv_timeout(host::PATIENCE).unwrap().unwrap();
}

fn verified(read_percent: u32) -> Workload {
    Workload { verify: true, read_percent, end: End::Ios(20_000), ..Workload::default() }
}

#[track_caller]
fn assert_clean(report: &Report) {
    assert!(report.is_clean(), "{report:#?}");
}

#[test]
fn a_load_ends_after_exactly_what_was_asked_for() {
    let host = stacks();
    for bdev in ["n", "m", "d"] {
        let report = host.run(&[bdev], Workload { end: End::Ios(10_000), ..Workload::default() });
        assert_clean(&report);
        assert_eq!((report.total.ios, report.bdevs[0].reactors), (10_000, 2), "{bdev}");
    }
    let bytes = Workload { end: End::Bytes(1 << 20), block_bytes: 8192, ..Workload::default() };
    assert_eq!(host.run(&["m"], bytes).total.bytes, 1 << 20);
    let timed = Workload { end: End::After(Duration::from_millis(100)), ..Workload::default() };
    let seconds = host.run(&["n"], timed).bdevs[0].seconds;
    assert!((0.1..5.0).contains(&seconds), "{seconds}");
    host.stop();
}

#[test]
fn several_devices_are_loaded_at_once_and_reported_apart() {
    let host = stacks();
    let report = host.run(&["n", "d", "m"], Workload { end: End::Ios(1000), ..Workload::default() });
    assert_clean(&report);
    let names: Vec<(&str, u64)> =
        report.bdevs.iter().map(|bdev| (bdev.name.as_str(), bdev.read.ios)).collect();
    assert_eq!(names, [("n", 1000), ("d", 1000), ("m", 1000)]);
    assert_eq!(report.total.ios, 3000);
    host.stop();
}

#[test]
fn latencies_are_those_of_the_device() {
    let host = stacks();
    let workload =
        Workload { end: End::Ios(2000), queue_depth: 1, timing: Timing::All, ..Workload::default() };
    let report = host.run(&["d"], workload);
    let latency = report.bdevs[0].read.latency.unwrap();
    assert_eq!(latency.samples, 2000);
    // The device measures from the begin of a turn, so a turn that was interrupted takes from the delay.
    assert!(latency.p50_ns >= 19_000 && latency.min_ns <= latency.p50_ns && latency.p50_ns <= latency.max_ns);
    host.stop();
}

#[test]
fn whole_devices_verify_under_every_kind_of_load() {
    let host = stacks();
    let loads = [
        verified(50),
        Workload { access: Access::Sequential, ..verified(0) },
        Workload { access: Access::Zipf { theta: 1.2 }, unmap_percent: 10, flush_every: 100, ..verified(50) },
        Workload { block_bytes: 512, queue_depth: 200, fill: true, ..verified(30) },
        Workload { block_bytes: 65_536, end: End::Ios(2000), ..verified(50) },
    ];
    for workload in loads {
        for bdev in ["m", "d", "p", "e"] {
            let report = host.run(&[bdev], workload.clone());
            assert_clean(&report);
            assert!(report.bdevs[0].verified_blocks > 1000, "{bdev} {workload:?}");
        }
    }
    let lent = Workload { lend: true, ..verified(80) };
    for bdev in ["m", "d", "p"] {
        assert_clean(&host.run(&[bdev], lent.clone()));
    }
    host.stop();
}

#[test]
fn a_byte_that_is_corrupted_on_its_way_is_found_with_its_block() {
    let host = stacks();
    inject(
        &host,
        json!({ "name": "e", "io_type": "write", "error_type": "corrupt_data", "num": 3, "corrupt_offset": 700 }),
    );
    let report = host.run(&["e"], Workload { access: Access::Sequential, end: End::Ios(100), ..verified(0) });
    assert_eq!((report.bdevs[0].mismatched_blocks, report.bdevs[0].errors), (3, 0), "{report:#?}");
    let first = &report.bdevs[0].mismatches[0];
    assert_eq!((first.kind, first.lba % 8), (MismatchKind::Torn, 1), "{first}");
    assert!(!report.is_clean());
    host.stop();
}

#[test]
fn failures_are_counted_and_named_and_their_blocks_may_hold_either() {
    let host = stacks();
    inject(&host, json!({ "name": "e", "io_type": "write", "error_type": "failure", "num": 5 }));
    let report = host.run(&["e"], verified(50));
    let bdev = &report.bdevs[0];
    assert_eq!((bdev.errors, bdev.mismatched_blocks, bdev.failures.len()), (5, 0, 5));
    assert_eq!(bdev.failures[0].op, "write");
    host.stop();
}

#[test]
fn a_worker_gives_up_when_everything_fails() {
    let host = stacks();
    let every = json!({ "name": "e", "io_type": "read", "error_type": "failure", "num": 4_294_967_295_u32 });
    inject(&host, every);
    let report = host.run(&["e"], Workload { end: End::Never, ..Workload::default() });
    assert!(report.bdevs[0].errors >= 1000 && report.bdevs[0].failures.len() <= 32, "{report:#?}");
    host.stop();
}

#[test]
fn what_a_state_file_says_is_checked_at_the_next_start() {
    let host = stacks();
    let state = std::env::temp_dir().join(format!("tenon-perf-state-{}", std::process::id()));
    let _ = std::fs::remove_file(&state);
    let first = Workload { state_file: Some(state.clone()), ..verified(20) };
    assert_clean(&host.run(&["m"], first.clone()));
    let check = Workload { check_only: true, seed: 99, ..first.clone() };
    let report = host.run(&["m"], check.clone());
    assert_clean(&report);
    assert!(report.bdevs[0].verified_blocks > 1000 && report.total.ios == 0);
    // Another load overwrites a part behind the file's back.
    let foreign =
        Workload { end: End::Ios(64), read_percent: 0, access: Access::Sequential, ..Workload::default() };
    host.run(&["m"], foreign);
    let report = host.run(&["m"], check.clone());
    assert!(report.bdevs[0].mismatched_blocks > 0);
    assert_eq!(report.bdevs[0].mismatches[0].kind, MismatchKind::Lost);
    // A new device has lost everything.
    host.delete("m");
    host.create("malloc", json!({ "name": "m", "size": "4MiB", "block_size": 512 }));
    let report = host.run(&["m"], check);
    assert_eq!(report.bdevs[0].mismatched_blocks, report.bdevs[0].verified_blocks);
    std::fs::remove_file(&state).unwrap();
    host.stop();
}

#[test]
fn a_rate_is_kept() {
    let host = stacks();
    let end = End::After(Duration::from_millis(500));
    let report = host.run(&["n", "m"], Workload { rate: Some(20_000), end, ..Workload::default() });
    for bdev in &report.bdevs {
        assert!((5_000.0..21_000.0).contains(&bdev.read.iops), "{}", bdev.read.iops);
    }
    host.stop();
}

#[test]
fn a_load_can_be_stopped_and_leaves_nothing_open() {
    let host = stacks();
    let before = host.counts();
    let load = host.load(&["n", "d"], Workload { end: End::Never, ..Workload::default() }).unwrap();
    load.wait_for_ios(10_000);
    load.monitor.stop();
    assert_clean(&load.report());
    // A module's channel closes in a later turn of its reactor, after the report. Memory is counted per process,
    // which other tests share.
    let what = |counts: &ObjectCounts| (counts.descriptors, counts.channels, counts.module_channels);
    host.wait_for_counts(|after| what(after) == what(&before));
    host.stop();
}

#[test]
fn what_a_device_cannot_do_is_refused_before_anything_is_started() {
    let host = stacks();
    let refused = |bdev: &str, workload: Workload| host.load(&[bdev], workload).map(|_| ()).unwrap_err();
    let odd = refused("m", Workload { block_bytes: 1000, ..Workload::default() });
    assert_eq!(odd.to_string(), "bdev m: block size 1000 is no multiple of its blocks of 512 bytes");
    let lend = refused("n", Workload { lend: true, ..Workload::default() });
    assert_eq!(lend.to_string(), "bdev n: does not support lending memory to reads");
    let claimed = refused("md", Workload { read_percent: 0, ..Workload::default() });
    assert!(matches!(claimed, StartError::Open(_)), "{claimed}");
    let missing = refused("x", Workload::default());
    assert!(matches!(missing, StartError::Open(_)), "{missing}");
    let large = refused("m", Workload { block_bytes: 4 << 20, ..Workload::default() });
    assert!(matches!(large, StartError::TooSmall { .. }), "{large}");
    assert_eq!(host.counts().descriptors, 3, "those of the filters");
    host.stop();
}

#[test]
fn a_device_that_goes_is_left_and_the_others_go_on() {
    let host = stacks();
    let load = host.load(&["n", "d"], Workload { end: End::Never, ..Workload::default() }).unwrap();
    load.wait_for_ios(5_000);
    host.delete("d");
    let done = load.monitor.progress().ios;
    load.wait_for_ios(done + 5_000);
    load.monitor.stop();
    let report = load.report();
    assert!(report.bdevs[1].is_removed && report.bdevs[1].errors == 0, "{report:#?}");
    assert!(!report.bdevs[0].is_removed && report.bdevs[0].errors == 0);
    host.stop();
}
