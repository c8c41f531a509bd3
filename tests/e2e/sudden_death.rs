//! Death at any moment: whatever a host does when it is killed, the next one on
//! the same socket, state directory and configuration gets ready and is what the
//! configuration says; a saved configuration is the old one or the new one.
//!
//! The moment is chosen by a seed: after so many calls, or after so many
//! microseconds of a start. `TENON_TEST_SEED` chooses other moments.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tenon_tests::{Connection, Host, Scratch, build_c_example, outcome, plugin_directory, run, tenon};

/// Times a host is killed at work; each second time one is killed at its start too.
const ROUNDS: u64 = 50;
/// Clients that call at the same time.
const CLIENTS: u64 = 4;
/// The host is killed after at most so many calls.
const MAX_CALLS: u64 = 300;
/// A start is killed after at most so many microseconds.
const MAX_START_US: u64 = 60_000;

const BASE: &str = r#"
[[bdev]]
module = "malloc"
name = "m0"
size = "1MiB"
[[bdev]]
module = "passthru"
name = "p0"
base = "m0"
[[bdev]]
module = "uring"
name = "f0"
filename = "disk.img"
block_size = 512
"#;

/// Where the random numbers of a test begin.
fn seed() -> u64 {
    let chosen = std::env::var("TENON_TEST_SEED").ok();
    chosen.map_or(0x7e40, |seed| seed.parse().expect("TENON_TEST_SEED is a number"))
}

/// Xorshift64*: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % bound
    }
}

/// What every start of a test has in common.
struct Place {
    saved: PathBuf,
    file: PathBuf,
    plugin: PathBuf,
}

impl Place {
    fn new(scratch: &Scratch) -> Place {
        let plugin = plugin_directory(scratch).join("libc_ramdisk.so");
        build_c_example(&plugin);
        let file = scratch.join("disk.img");
        std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let policy = format!("[plugins]\nstate_directory = \"{}\"\n", scratch.join("state").display());
        let base = BASE.replace("disk.img", file.to_str().unwrap());
        let saved = scratch.write("saved.toml", &format!("{policy}{base}"));
        Place { saved, file, plugin }
    }

    fn command(&self, scratch: &Scratch) -> Command {
        let mut command = Command::new(tenon());
        command.arg("run").arg("-c").arg(&self.saved).arg("--rpc-socket").arg(scratch.join("rpc.sock"));
        command.arg("--plugin-dir").arg(scratch.join("plugins"));
        command
    }
}

#[test]
fn killed_at_work_the_next_start_is_ready_and_what_was_saved() {
    let mut scratch = Scratch::new();
    let place = Place::new(&scratch);
    for round in 0..ROUNDS {
        let mut random = Random::new(seed() + round);
        if round % 2 == 1 {
            kill_a_start(&place, &scratch, &mut random);
        }
        let command = place.command(&scratch);
        let mut host = Host::spawn(scratch, command);
        is_what_was_saved(&mut host, &place, round);
        work_until_killed(&host, &place, round, &mut random);
        scratch = host.kill();
    }
    let command = place.command(&scratch);
    let mut host = Host::spawn(scratch, command);
    is_what_was_saved(&mut host, &place, ROUNDS);
    host.ok("save_config", json!({ "filename": place.saved }));
    leftovers_are_few(&host);
    host.stop();
}

fn kill_a_start(place: &Place, scratch: &Scratch, random: &mut Random) {
    let mut command = place.command(scratch);
    let child: Child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("tenon starts");
    // Nobody sends: the wait is the time.
    let (_sender, nobody) = channel::<()>();
    let time = Duration::from_micros(random.below(MAX_START_US));
    assert_eq!(nobody.recv_timeout(time), Err(RecvTimeoutError::Timeout));
    kill(child);
}

fn kill(mut child: Child) {
    child.kill().expect("own child");
    child.wait().expect("own child");
}

/// Every device of the file is there or waits for another one, and nothing else is there.
#[track_caller]
fn is_what_was_saved(host: &mut Host, place: &Place, round: u64) {
    let text = std::fs::read_to_string(&place.saved).unwrap();
    let table: toml::Table =
        text.parse().unwrap_or_else(|error| panic!("round {round}: torn: {error}\n{text}"));
    let entries = table.get("bdev").and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let wanted: BTreeSet<String> =
        entries.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect();
    let there: BTreeSet<String> = host.bdevs().into_iter().collect();
    let waiting: BTreeSet<String> = host
        .ok("config_get_waiting", json!({}))
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap().to_owned())
        .collect();
    let all: BTreeSet<String> = there.union(&waiting).cloned().collect();
    assert_eq!(all, wanted, "round {round}\n{text}\n{}", host.log());
    assert!(there.is_disjoint(&waiting), "round {round}");
    for bdev in host.ok("bdev_get_bdevs", json!({})).as_array().unwrap() {
        assert_eq!(bdev["state"], "ready", "round {round}: {bdev}");
    }
    let counts = host.ok("debug_get_object_counts", json!({}));
    assert_eq!(counts["operations"], 0, "round {round}: {counts}");
}

/// Copies and drafts of killed hosts do not pile up.
fn leftovers_are_few(host: &Host) {
    let names = |directory: PathBuf| -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let copies = names(host.scratch().join("state/plugins"));
    assert!(copies.len() <= 64, "{copies:?}");
    let own = names(host.scratch().path().to_owned());
    let expected = ["disk.img", "log", "plugins", "rpc.sock", "saved.toml", "state"];
    let unexpected: Vec<&String> = own.iter().filter(|name| !expected.contains(&name.as_str())).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

/// Several clients call at random until the host is killed under them.
fn work_until_killed(host: &Host, place: &Place, round: u64, random: &mut Random) {
    let calls_left = AtomicI64::new(1 + random.below(MAX_CALLS) as i64);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let random = Random::new(seed() + round * CLIENTS + client + 1000);
            let calls_left = &calls_left;
            scope.spawn(move || call_at_random(host, place, random, calls_left));
        }
    });
}

fn call_at_random(host: &Host, place: &Place, mut random: Random, calls_left: &AtomicI64) {
    let Ok(mut connection) = Connection::open(&host.socket()) else { return };
    loop {
        // A few calls at once, then their answers.
        let count = 1 + random.below(4);
        for _ in 0..count {
            let (method, params) = any_call(place, &mut random);
            if connection.try_send(&method, params).is_err() {
                return;
            }
            if calls_left.fetch_sub(1, Ordering::Relaxed) == 1 {
                host.signal(Signal::KILL);
                return;
            }
        }
        for _ in 0..count {
            let Some(reply) = connection.receive() else { return };
            if let Err(error) = outcome(&reply) {
                assert!(error.code > -32000 || error.code == -32601, "a fault of the host: {error:?}");
            }
        }
    }
}

fn any_call(place: &Place, random: &mut Random) -> (String, Value) {
    let name = format!("x{}", random.below(4));
    let base = ["m0", "p0", "f0", "x0", "x1", "x2", "x3"][random.below(7) as usize];
    let blocks = json!({ "name": name, "num_blocks": 64, "block_size": 512 });
    let over = json!({ "name": name, "base_bdev_name": base });
    let delay = json!({
        "name": name, "base_bdev_name": base,
        "avg_read_latency": 1, "p99_read_latency": 1, "avg_write_latency": 1, "p99_write_latency": 1
    });
    let file = json!({ "name": name, "filename": place.file, "block_size": 512 });
    let (method, params) = match random.below(18) {
        0 | 1 => ("bdev_malloc_create", blocks),
        2 => ("bdev_null_create", blocks),
        3 | 4 => ("bdev_passthru_create", over),
        5 => ("bdev_delay_create", delay),
        6 => (["bdev_uring_create", "bdev_aio_create"][random.below(2) as usize], file),
        7 => ("module_load", json!({ "path": place.plugin })),
        8 => ("bdev_c_ramdisk_create", json!({ "name": name, "num_blocks": 64 })),
        9 => ("module_unregister", json!({ "name": "c_ramdisk" })),
        10 | 11 => {
            let module =
                ["malloc", "null", "passthru", "delay", "uring", "c_ramdisk"][random.below(6) as usize];
            return (format!("bdev_{module}_delete"), json!({ "name": name }));
        }
        12 => ("bdev_set_qos_limit", json!({ "name": base, "rw_ios_per_sec": 1000 * random.below(3) })),
        13 | 14 => ("save_config", json!({ "filename": place.saved })),
        15 => ("config_reload", json!({})),
        16 => ("bdev_wait_for_examine", json!({})),
        _ => ("bdev_get_bdevs", json!({})),
    };
    (method.to_owned(), params)
}

#[test]
fn killed_while_saving_the_file_is_the_old_one_or_the_new_one() {
    const DEVICES: usize = 300;
    const KILLS: u64 = 25;
    let devices: String = (0..DEVICES)
        .map(|number| format!("[[bdev]]\nmodule = \"null\"\nname = \"n{number:03}\"\nnum_blocks = 8\n"))
        .collect();
    let mut scratch = Scratch::new();
    let saved = scratch.join("saved.toml");
    let mut was_new = BTreeSet::new();
    for round in 0..KILLS {
        let mut host = Host::start_in(scratch, &devices, &[]);
        let limit = |on: bool| json!({ "name": "n000", "rw_ios_per_sec": if on { 5000 } else { 0 } });
        host.ok("bdev_set_qos_limit", limit(false));
        let old = host.ok("save_config", json!({}));
        host.ok("save_config", json!({ "filename": saved }));
        host.ok("bdev_set_qos_limit", limit(true));
        let new = host.ok("save_config", json!({}));
        assert_ne!(old, new);
        let mut connection = host.connect();
        connection.send("save_config", json!({ "filename": saved }));
        let (_sender, nobody) = channel::<()>();
        // From before it reads the call to after the file is in its place.
        let _ = nobody.recv_timeout(Duration::from_micros(Random::new(seed() + round).below(12_000)));
        scratch = host.kill();
        let found = json!(std::fs::read_to_string(&saved).unwrap());
        assert!(found == old || found == new, "round {round}: torn\n{found}");
        was_new.insert(found == new);
        let checked = run(&["check", saved.to_str().unwrap()]);
        assert_eq!(checked.code, 0, "round {round}: {}", checked.stderr);
    }
    let mut host = Host::start_in(scratch, &devices, &[]);
    host.ok("save_config", json!({ "filename": saved }));
    assert!(!saved.with_file_name("saved.toml.new").exists(), "a draft is left behind");
    host.stop();
    println!("both outcomes seen: {}", was_new.len() == 2);
}
