//! The control socket while the data plane has every CPU: calls come back in
//! time.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenon_tests::{Host, Scratch, tenon};

/// What 99 of 100 calls must come back within.
const BOUND: Duration = Duration::from_millis(100);
const CALLS: usize = 400;

/// As many reactors as this machine has CPUs, all spinning.
fn busy_on_every_cpu() -> (String, usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (format!("[host]\nmode = \"poll\"\ncpus = \"0-{}\"\n", cpus - 1), cpus)
}

/// Sorted times of calls of three kinds, and the last `bdev_get_iostat`.
fn measure(host: &mut Host) -> (Vec<Duration>, Value) {
    let mut times = Vec::with_capacity(CALLS);
    let mut iostat = Value::Null;
    for number in 0..CALLS {
        let begin = Instant::now();
        match number % 3 {
            0 => drop(host.ok("bdev_get_bdevs", json!({}))),
            1 => iostat = host.ok("bdev_get_iostat", json!({ "name": "n0" })),
            _ => drop(host.ok("thread_get_stats", json!({}))),
        }
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    (times, iostat)
}

#[track_caller]
fn are_in_time(times: &[Duration]) {
    let p99 = times[times.len() * 99 / 100];
    assert!(p99 <= BOUND, "p99 {p99:?}, longest {:?}", times[times.len() - 1]);
}

#[test]
fn calls_are_answered_while_a_load_floods_every_reactor() {
    let (host_table, cpus) = busy_on_every_cpu();
    let scratch = Scratch::new();
    let config = format!("{host_table}[[bdev]]\nmodule = \"null\"\nname = \"n0\"\nsize = \"1GiB\"\n");
    let file = scratch.write("tenon.toml", &config);
    let mut command = Command::new(tenon());
    command.args(["perf", "--bdev", "n0", "--queue-depth", "128", "--time", "60s", "-c"]).arg(file);
    command.arg("--rpc-socket").arg(scratch.join("rpc.sock")).stdin(Stdio::null());
    let mut host = Host::spawn(scratch, command);
    let reads = |iostat: &Value| iostat["bdevs"][0]["num_read_ops"].as_u64().unwrap();
    let before = reads(&host.ok("bdev_get_iostat", json!({ "name": "n0" })));
    let begin = Instant::now();
    let (times, iostat) = measure(&mut host);
    let rate = (reads(&iostat) - before) as f64 / begin.elapsed().as_secs_f64();
    assert!(rate > 10_000.0, "only {rate:.0} I/Os per second on {cpus} reactors: that is no flood");
    are_in_time(&times);
    // A device is made and removed under the load as well.
    let begin = Instant::now();
    host.ok("bdev_null_create", json!({ "name": "n1", "num_blocks": 8, "block_size": 512 }));
    host.ok("bdev_null_delete", json!({ "name": "n1" }));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    host.signal(rustix::process::Signal::TERM);
    assert!(host.wait().success(), "{}", host.log());
}

#[test]
fn calls_are_answered_while_idle_reactors_spin_on_every_cpu() {
    let (host_table, _) = busy_on_every_cpu();
    let mut host =
        Host::start(&format!("{host_table}[[bdev]]\nmodule = \"null\"\nname = \"n0\"\nsize = \"1GiB\"\n"));
    let (times, _) = measure(&mut host);
    are_in_time(&times);
    host.stop();
}
