//! Stacks that come and go under load, a thousand times, with the removal at a
//! random moment and from a random layer: nothing may be left, nothing may fail
//! but what bounced, and it may not take long.
#![allow(clippy::unwrap_used, reason = "tests")]

mod host;

use std::time::{Duration, Instant};

use host::Host;
use serde_json::json;
use tenon_perf::{End, Workload};

/// Wyrand-like: which moment and layer need not be unpredictable, only spread.
struct Moments(u64);

impl Moments {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let product = u128::from(self.0) * u128::from(self.0 ^ 0xe703_7ed1_a0b4_28db);
        (((product >> 64) as u64 ^ product as u64) >> 32) % bound
    }
}

fn round(host: &Host, moments: &mut Moments, seed: u64) {
    host.create("malloc", json!({ "name": "m", "size": "1MiB" }));
    let latency = moments.below(3) * 30;
    host.create("delay", json!({ "name": "d", "base": "m", "avg_read_latency_us": latency }));
    host.create("passthru", json!({ "name": "p", "base": "d" }));
    let workload = Workload {
        read_percent: 50,
        unmap_percent: 5,
        verify: moments.below(2) == 0,
        queue_depth: 1 + moments.below(64) as u32,
        end: End::Never,
        seed,
        ..Workload::default()
    };
    let load = host.load(&["p"], workload).unwrap();
    load.wait_for_ios(moments.below(400));
    let layer = ["m", "d", "p"][moments.below(3) as usize];
    let removed = host.ask_delete(layer);
    if moments.below(4) == 0 {
        load.monitor.stop();
    }
    removed.recv_timeout(host::PATIENCE).unwrap().unwrap();
    let report = load.report();
    let bdev = &report.bdevs[0];
    assert_eq!((bdev.errors, bdev.mismatched_blocks), (0, 0), "seed {seed}: {report:#?}");
    // What was below the removed layer is still there.
    for name in ["p", "d", "m"] {
        let (lower, exists) = (name.to_owned(), name.to_owned());
        if host.on(move |core| core.find(&exists).is_some()) {
            host.delete(&lower);
        }
    }
}

#[test]
fn a_thousand_stacks_removed_under_load_leave_nothing() {
    const ROUNDS: u64 = 1000;
    let host = Host::start(2);
    // The modules stay: load them before counting.
    round(&host, &mut Moments(0), 0);
    let before = host.counts();
    let begin = Instant::now();
    for seed in 1..=ROUNDS {
        round(&host, &mut Moments(seed), seed);
    }
    let took = begin.elapsed();
    let after = host.counts();
    assert_eq!(before.owned(), after.owned(), "{before:#?} {after:#?}");
    assert_eq!((after.bdevs, after.descriptors, after.channels, after.module_channels), (0, 0, 0, 0));
    assert_eq!(before.memory_bytes, after.memory_bytes);
    for (before, after) in before.reactors.iter().zip(&after.reactors) {
        assert!(after.pollers <= before.pollers && after.fds == before.fds, "{before:?} {after:?}");
    }
    println!("{ROUNDS} stacks in {took:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    host.stop();
}
