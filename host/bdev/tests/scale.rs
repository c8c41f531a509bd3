//! Ten thousand devices: the last cost no more than the first.

mod host;
mod vendor;

use std::time::{Duration, Instant};

use host::Host;
use serde_json::json;

const DEVICES: usize = 10_000;
const SAMPLE: usize = 100;
/// So many that a neighbour on the processor does not spoil them all.
const SAMPLES: usize = 20;

fn create(host: &Host, range: std::ops::Range<usize>) -> Duration {
    let started = cpu_time();
    for n in range {
        host.create(0, json!({ "name": format!("bdev-{n}") })).expect("a device");
    }
    cpu_time() - started
}

/// Of this thread, on which the simulated host runs: what others do beside us does not count.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn ten_thousand_devices_register_at_the_same_pace() {
    let host = Host::new(1);
    host.load(0);
    host.load(1);
    // The allocator and the caches warm up first; of several samples the best counts, as caches are shared.
    create(&host, 0..SAMPLE);
    let best =
        |from: usize| (0..SAMPLES).map(|n| create(&host, from + n * SAMPLE..from + (n + 1) * SAMPLE)).min();
    let first = best(SAMPLE).unwrap();
    create(&host, SAMPLE * (SAMPLES + 1)..DEVICES - SAMPLES * SAMPLE);
    let last = best(DEVICES - SAMPLES * SAMPLE).unwrap();
    println!("first {SAMPLE}: {first:?}, last {SAMPLE} of {DEVICES}: {last:?}");
    assert!(last <= first * 2, "first {first:?}, last {last:?}");

    let found = host.on(|core| core.bdev("bdev-9999")).unwrap();
    assert_eq!(host.on(|core| core.find(&found.uuid.to_string())), Some(found.handle));
    assert_eq!(host.on(|core| core.bdev_count()), DEVICES);
    let started = Instant::now();
    host.finish();
    println!("shutdown of {DEVICES}: {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(30));
}
