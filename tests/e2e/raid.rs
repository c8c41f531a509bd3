//! Arrays in the running host, on real `delay` and `error` devices: what a create
//! promises, and what becomes of data when members go. A test that proves a
//! scenario carries its id. What stands on an array is a passthru, and an array.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tenon_tests::{Connection, Host, Scratch, counts, outcome, tenon, wait_for, wait_for_counts};

/// How long a write to a slow member takes, twice of which a superblock needs at least.
const SLOW_US: u64 = 500_000;
const SLOW: Duration = Duration::from_micros(SLOW_US);

fn named(name: &str) -> Value {
    json!({ "name": name })
}

fn malloc(name: &str) -> Value {
    json!({ "name": name, "num_blocks": 16384, "block_size": 512 })
}

fn delay(name: &str, base: &str, us: u64) -> Value {
    json!({ "name": name, "base_bdev_name": base, "avg_read_latency": us, "p99_read_latency": us,
        "avg_write_latency": us, "p99_write_latency": us })
}

fn array(name: &str, level: &str, bases: &[&str], superblock: bool) -> Value {
    let strip = if level == "raid1" { 0 } else { 64 };
    json!({ "name": name, "raid_level": level, "strip_size_kb": strip, "base_bdevs": bases,
        "superblock": superblock })
}

/// Memory devices `m0`…, below slow ones `d0`….
fn slow_members(host: &mut Host, count: usize) {
    for nth in 0..count {
        host.ok("bdev_malloc_create", malloc(&format!("m{nth}")));
        host.ok("bdev_delay_create", delay(&format!("d{nth}"), &format!("m{nth}"), SLOW_US));
    }
}

fn arrays(host: &mut Host) -> Vec<Value> {
    host.ok("bdev_raid_get_bdevs", json!({ "category": "all" })).as_array().unwrap().clone()
}

fn the_array(host: &mut Host, name: &str) -> Value {
    arrays(host).into_iter().find(|array| array["name"] == name).unwrap_or(Value::Null)
}

fn reply_of(connection: &mut Connection) -> Result<Value, tenon_tests::CallError> {
    outcome(&connection.receive().unwrap())
}

#[test]
fn s4_a_each_reply_is_followed_at_once_by_a_create_on_what_it_announced() {
    for waits in [false, true] {
        let mut host = Host::start("");
        host.ok("bdev_malloc_create", malloc("m0"));
        host.ok("bdev_malloc_create", malloc("m1"));
        host.ok("bdev_delay_create", delay("d0", "m0", SLOW_US));
        host.ok("bdev_delay_create", delay("d1", "m1", SLOW_US));
        let begin = Instant::now();
        assert_eq!(host.ok("bdev_raid_create", array("r0", "raid1", &["d0", "d1"], true)), true);
        assert!(begin.elapsed() >= SLOW, "answered before a superblock can be durable");
        if waits {
            host.ok("bdev_wait_for_examine", json!({}));
        }
        host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "r0" }));
        let shown = the_array(&mut host, "r0");
        assert_eq!((&shown["state"], &shown["num_base_bdevs_operational"]), (&json!("online"), &json!(2)));
        assert_eq!(host.bdevs(), ["m0", "m1", "d0", "d1", "r0", "p0"]);
        host.stop();
    }
}

#[test]
fn s4_b_every_level_is_registered_examined_and_claimed_when_its_create_is_answered() {
    let mut host = Host::start("");
    slow_members(&mut host, 4);
    for (level, count) in [("raid0", 2), ("concat", 2), ("raid1", 2), ("raid5f", 3), ("raid10", 4)] {
        for superblock in [false, true] {
            let bases: Vec<String> = (0..count).map(|nth| format!("d{nth}")).collect();
            let bases: Vec<&str> = bases.iter().map(String::as_str).collect();
            assert_eq!(host.ok("bdev_raid_create", array("r0", level, &bases, superblock)), true);
            assert_eq!(host.ok("bdev_get_bdevs", named("r0"))[0]["state"], "ready", "{level}");
            let error = host.err("bdev_raid_create", array("r1", "raid1", &bases[..2], false));
            assert_eq!((error.code, &error.data["object"]), (-1, &json!("d0")), "{level}");
            host.ok("bdev_passthru_create", json!({ "name": "p0", "base_bdev_name": "r0" }));
            host.ok("bdev_passthru_delete", named("p0"));
            host.ok("bdev_raid_destroy", json!({ "name": "r0", "wipe": superblock }));
        }
    }
    host.stop();
}

#[test]
fn s4_c_others_never_see_an_array_that_is_half_created() {
    let mut host = Host::start("");
    slow_members(&mut host, 3);
    let (mut first, mut second) = (host.connect(), host.connect());
    first.send("bdev_raid_create", array("r0", "raid1", &["d0", "d1"], true));
    wait_for("the create has begun", || (the_array(&mut host, "r0") != Value::Null).then_some(()));
    second.send("bdev_wait_for_examine", json!({}));
    second.send("bdev_get_bdevs", json!({}));
    second.send("bdev_raid_get_bdevs", json!({ "category": "all" }));
    second.send("bdev_raid_create", array("r0", "raid1", &["d0", "d1"], true));
    second.send("bdev_raid_create", array("r1", "raid1", &["d0", "d2"], false));
    let replies: Vec<Value> = (0..5).map(|_| second.receive().unwrap()).collect();
    let reply = |id: u64| replies.iter().find(|reply| reply["id"] == id).unwrap();
    let names = outcome(reply(2)).unwrap().to_string();
    assert!(!names.contains("Raid Volume"), "{names}");
    assert_eq!(outcome(reply(3)).unwrap()[0]["state"], "configuring");
    assert_eq!(outcome(reply(4)).unwrap_err().code, -17);
    let claimed = outcome(reply(5)).unwrap_err();
    assert_eq!((claimed.code, &claimed.data["object"]), (-1, &json!("d0")));
    // The second create of the name is answered when the first is over, as is who waits for that.
    let before: BTreeSet<u64> = replies[..3].iter().filter_map(|reply| reply["id"].as_u64()).collect();
    assert_eq!(before, [2, 3, 5].into(), "the wait for examine does not count the create: {replies:?}");
    assert_eq!(reply_of(&mut first), Ok(json!(true)));
    assert_eq!(the_array(&mut host, "r0")["state"], "online");
    host.stop();
}

#[test]
fn s4_d_a_member_that_takes_no_superblock_is_named_and_the_create_can_be_repeated() {
    let mut host = Host::start("");
    for nth in 0..2 {
        host.ok("bdev_malloc_create", malloc(&format!("m{nth}")));
    }
    host.ok("bdev_error_create", json!({ "base_name": "m1" }));
    let before = counts(&mut host);
    let inject =
        json!({ "name": "EE_m1", "io_type": "write", "error_type": "failure", "num": 4294967295_u32 });
    host.ok("bdev_error_inject_error", inject);
    let create = array("r0", "raid1", &["m0", "EE_m1"], true);
    let error = host.err("bdev_raid_create", create.clone());
    assert_eq!((error.code, &error.data["object"]), (-5, &json!("EE_m1")), "{error:?}");
    assert_eq!(arrays(&mut host), Vec::<Value>::new());
    assert_eq!(counts(&mut host), before);
    host.ok("bdev_error_inject_error", json!({ "name": "EE_m1", "io_type": "clear" }));
    // Nothing on the other member belongs to an array.
    assert_eq!(host.err("bdev_raid_wipe_superblock", named("m0")).code, -2);
    host.ok("bdev_raid_create", create);
    host.stop();
}

#[test]
fn s4_e_a_name_taken_during_the_create_undoes_it() {
    let mut host = Host::start("");
    slow_members(&mut host, 2);
    let before = counts(&mut host);
    let mut creator = host.connect();
    creator.send("bdev_raid_create", array("r0", "raid1", &["d0", "d1"], true));
    wait_for("the create has begun", || (the_array(&mut host, "r0") != Value::Null).then_some(()));
    let taken = host.call("bdev_malloc_create", malloc("r0"));
    let created = reply_of(&mut creator);
    // One of the two has the name; the other is told so and leaves nothing.
    assert!(taken.is_ok() != created.is_ok(), "{taken:?} {created:?}");
    let loser = taken.clone().err().or(created.clone().err()).unwrap();
    assert_eq!(loser.code, -17, "{loser:?}");
    if taken.is_ok() {
        host.ok("bdev_malloc_delete", named("r0"));
    } else {
        host.ok("bdev_raid_destroy", named("r0"));
    }
    drop(creator);
    wait_for_counts(&mut host, &before);
    host.stop();
}

#[test]
fn s4_f_a_member_that_goes_during_the_create_ends_it_with_its_name() {
    let mut host = Host::start("");
    slow_members(&mut host, 2);
    let mut creator = host.connect();
    creator.send("bdev_raid_create", array("r0", "raid1", &["d0", "d1"], true));
    wait_for("the create has begun", || (the_array(&mut host, "r0") != Value::Null).then_some(()));
    host.ok("bdev_delay_delete", named("d1"));
    let error = reply_of(&mut creator).unwrap_err();
    assert_eq!(error.data["object"], "d1", "{error:?}");
    assert_eq!(arrays(&mut host), Vec::<Value>::new());
    host.ok("bdev_delay_create", delay("d1", "m1", 0));
    host.ok("bdev_raid_create", array("r0", "raid1", &["d0", "d1"], true));
    host.stop();
}

#[test]
fn s4_g_a_missing_member_is_named_and_the_array_is_there_once_when_it_appears() {
    let mut host = Host::start("");
    host.ok("bdev_malloc_create", malloc("m0"));
    let reply = host.ok("bdev_raid_create", array("r0", "raid1", &["m0", "m1"], true));
    assert_eq!(reply, json!({ "state": "configuring", "missing": ["m1"] }));
    host.ok("bdev_wait_for_examine", json!({}));
    let last = host.ok("notify_get_notifications", json!({ "id": 0, "max": 1000 })).as_array().unwrap().len();
    host.ok("bdev_malloc_create", malloc("m1"));
    host.ok("bdev_wait_for_examine", json!({}));
    assert_eq!(the_array(&mut host, "r0")["state"], "online");
    let news = host.ok("notify_get_notifications", json!({ "id": last, "max": 1000 }));
    let is_it = |news: &&Value| news["type"] == "bdev_register" && news["ctx"] == "r0";
    assert_eq!(news.as_array().unwrap().iter().filter(is_it).count(), 1, "{news}");
    host.stop();
}

#[test]
fn s4_i_a_client_that_goes_during_the_create_changes_nothing_about_it() {
    let mut host = Host::start("");
    slow_members(&mut host, 2);
    let mut creator = host.connect();
    creator.send("bdev_raid_create", array("r0", "raid1", &["d0", "d1"], true));
    wait_for("the create has begun", || (the_array(&mut host, "r0") != Value::Null).then_some(()));
    drop(creator);
    let state = wait_for("the create is over", || {
        let shown = the_array(&mut host, "r0");
        (shown["state"] != "configuring").then_some(shown)
    });
    if state == Value::Null {
        host.ok("bdev_raid_create", array("r0", "raid1", &["d0", "d1"], true));
    }
    assert_eq!(the_array(&mut host, "r0")["state"], "online");
    host.stop();
}

const CHAIN: [&str; 5] = [
    "[[bdev]]\nmodule = \"passthru\"\nname = \"top\"\nbase = \"r2\"\n",
    "[[bdev]]\nmodule = \"raid\"\nname = \"r2\"\nlevel = \"raid0\"\nstrip_size_kb = 64\nbase_bdevs = [\"r0\", \"r1\"]\n",
    "[[bdev]]\nmodule = \"raid\"\nname = \"r0\"\nlevel = \"raid1\"\nbase_bdevs = [\"m0\", \"m1\"]\nspares = [\"m4\"]\nsuperblock = true\n",
    "[[bdev]]\nmodule = \"raid\"\nname = \"r1\"\nlevel = \"raid1\"\nbase_bdevs = [\"m2\", \"m3\"]\n",
    "[[bdev]]\nmodule = \"malloc\"\nname = \"m{}\"\nsize = \"8MiB\"\n",
];

#[test]
fn s4_j_a_file_comes_up_in_any_order_of_its_tables_and_is_saved_as_it_is() {
    let mallocs = || (0..5).map(|nth| CHAIN[4].replace("{}", &nth.to_string())).collect::<String>();
    let upper = || CHAIN[..4].concat();
    let lower_first: String = CHAIN[..4].iter().rev().copied().collect();
    for config in [upper() + &mallocs(), mallocs() + &lower_first, mallocs() + &upper()] {
        let mut host = Host::start(&config);
        assert_eq!(host.ok("bdev_get_bdevs", named("top"))[0]["state"], "ready");
        assert_eq!(host.ok("config_get_waiting", json!({})), json!([]));
        let saved = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
        assert!(saved.contains(r#"spares = ["m4"]"#), "{saved}");
        assert_eq!(the_array(&mut host, "r0")["spares"], json!([{ "name": "m4", "is_there": true }]));
        host.stop();
        let mut again = Host::start(&saved);
        assert_eq!(again.ok("bdev_get_bdevs", named("top"))[0]["state"], "ready");
        again.stop();
    }
}

#[test]
fn s4_k_arrays_come_and_go_and_leave_nothing() {
    let mut host = Host::start("");
    for nth in 0..2 {
        host.ok("bdev_malloc_create", malloc(&format!("m{nth}")));
    }
    let before = counts(&mut host);
    for _ in 0..100 {
        host.ok("bdev_raid_create", array("r0", "raid1", &["m0", "m1"], true));
        host.ok("bdev_raid_destroy", named("r0"));
    }
    // Channels close on their reactors, after the device they were of is gone.
    wait_for_counts(&mut host, &before);
    host.ok("bdev_raid_create", array("r0", "raid1", &["m0", "m1"], true));
    host.ok("bdev_raid_delete", named("r0"));
    let error = host.err("bdev_raid_create", array("other", "raid1", &["m0", "m1"], true));
    assert_eq!(error.code, -17);
    assert!(error.message.contains("overwrite_superblock"), "{error:?}");
    host.stop();
}

/// Runs a verified load on `r0` in the same process as the array and calls `disturb` again and again meanwhile.
fn under_load(config: &str, unit: &str, mut disturb: impl FnMut(&mut Connection, u32)) -> Value {
    let scratch = Scratch::new();
    let (file, socket) = (scratch.write("tenon.toml", config), scratch.join("perf.sock"));
    let child = Command::new(tenon())
        .args(["perf", "--bdev", "r0", "--verify", "--json", "--seed", "3", "--time", "600s", "-q", "16"])
        .args(["--rw", "randrw", "--mix", "50", "--block-size", unit, "-c"])
        .arg(&file)
        .arg("--rpc-socket")
        .arg(&socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut connection = wait_for("the control socket", || Connection::open(&socket).ok());
    connection.call("framework_wait_init", json!({})).unwrap();
    let begin = Instant::now();
    let mut round = 0;
    while begin.elapsed() < Duration::from_secs(3) || round < 2 {
        disturb(&mut connection, round);
        round += 1;
    }
    // The load lasts as long as the disturbance: one of a fixed time would be over before a slow round.
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn is_whole(connection: &mut Connection) -> bool {
    let all = connection.call("bdev_raid_get_bdevs", json!({ "category": "online" })).unwrap();
    let array = &all[0];
    array["num_base_bdevs_operational"] == array["num_base_bdevs"] && array.get("process").is_none()
}

#[test]
fn members_that_go_and_return_under_load_lose_nothing() {
    for (level, members, unit) in [("raid1", 2, "4KiB"), ("raid10", 4, "4KiB"), ("raid5f", 3, "64KiB")] {
        let strip = if level == "raid1" { 0 } else { 32 };
        let names: Vec<String> = (0..members).map(|nth| format!("m{nth}")).collect();
        let mut config = format!(
            "[[bdev]]\nmodule = \"raid\"\nname = \"r0\"\nlevel = \"{level}\"\nstrip_size_kb = {strip}\nbase_bdevs = {names:?}\nsuperblock = true\n"
        );
        for name in &names {
            config += &format!("[[bdev]]\nmodule = \"malloc\"\nname = \"{name}\"\nsize = \"8MiB\"\n");
        }
        let report = under_load(&config, unit, |connection, round| {
            let name = &names[round as usize % members];
            connection.call("bdev_malloc_delete", named(name)).unwrap();
            let create = json!({ "name": name, "num_blocks": 16384, "block_size": 512 });
            connection.call("bdev_malloc_create", create).unwrap();
            let add = json!({ "raid_bdev": "r0", "base_bdev": name });
            connection.call("bdev_raid_add_base_bdev", add).unwrap();
            wait_for("the member is rebuilt", || is_whole(connection).then_some(()));
        });
        assert_eq!(report["total"]["errors"], 0, "{level} {report}");
        assert_eq!(report["total"]["mismatched_blocks"], 0, "{level} {report}");
        assert!(report["bdevs"][0]["verified_blocks"].as_u64().unwrap() > 1000, "{level} {report}");
    }
}

/// A number that the host tells of `r0`.
#[track_caller]
fn metric_of(address: SocketAddr, name: &str) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let line = page.lines().find(|line| line.starts_with(&format!("{name}{{raid=\"r0\"")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name}\n{page}"))
}

#[test]
fn a_missing_member_and_its_rebuild_are_on_the_status_screen_and_among_the_metrics() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut host = Host::start(&format!("[metrics]\nlisten = \"{free}\"\n"));
    let metric = |name: &str| metric_of(free, name);
    for nth in 0..2 {
        host.ok("bdev_malloc_create", malloc(&format!("m{nth}")));
    }
    host.ok("bdev_raid_create", array("r0", "raid1", &["m0", "m1"], true));
    host.ok("bdev_raid_set_options", json!({ "process_max_bandwidth_mb_sec": 1 }));
    host.ok("bdev_raid_remove_base_bdev", named("m1"));
    host.ok("bdev_raid_add_base_bdev", json!({ "raid_bdev": "r0", "base_bdev": "m1" }));
    assert_eq!(metric("tenon_raid_missing_members"), 1);
    // 7 MiB at 1 MiB/s.
    let left = wait_for("the rate", || {
        Some(metric("tenon_raid_process_remaining_seconds")).filter(|left| *left > 0)
    });
    assert!(left < 60, "{left}");
    assert!(metric("tenon_raid_process_bytes_per_second") > 0);
    host.ok("bdev_raid_pause_process", named("r0"));
    assert_eq!(metric("tenon_raid_process_bytes_per_second"), 0);
    assert!(metric("tenon_raid_process_percent") < 100);
    let socket = host.socket();
    let screen = tenon_tests::run(&["status", "--rpc-socket", socket.to_str().unwrap()]);
    assert_eq!(screen.code, 0, "{}", screen.stderr);
    let line = screen.stdout.lines().find(|line| line.contains("rebuild")).unwrap_or_default();
    assert!(line.contains("r0") && line.contains("paused") && line.contains('%'), "{}", screen.stdout);
    let line = screen.stdout.lines().find(|line| line.contains("degraded")).unwrap_or_default();
    assert!(line.contains("r0") && line.contains("1 of 2 members"), "{}", screen.stdout);
    host.stop();
}
