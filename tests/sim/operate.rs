//! What operators ask of controllers and paths, and what they are told.

use std::time::Duration;

use serde_json::{Value, json};
use tenon_nvmf_target::AnaState;

use crate::load::Load;
use crate::survive::drain;
use crate::world::{World, for_seeds};

fn one_path(world: &World) -> Load {
    world.export(&["a"]);
    world.attach("a", json!({})).expect("attaches");
    let load = Load::open(world, "nvme0n1", 0);
    world.advance(Duration::from_millis(10));
    load
}

fn run(world: &World, load: &Load, rounds: u32) {
    for _ in 0..rounds {
        load.submit(world);
        world.advance(Duration::from_micros(500));
        load.collect();
    }
}

/// A command of 64 bytes with this operation code and dword 10, as base64.
fn command(opcode: u8, cdw10: u8) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut entry = [0_u8; 66];
    (entry[0], entry[40]) = (opcode, cdw10);
    let mut text = String::new();
    for three in entry.chunks(3) {
        let word = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        (0..4).for_each(|at| text.push(char::from(LETTERS[(word >> (18 - 6 * at) & 63) as usize])));
    }
    text.truncate(86);
    text + "=="
}

#[test]
fn commands_reach_the_controller_and_their_answers_come_back() {
    for_seeds(5, |world| {
        let load = one_path(world);
        let identify = json!({
            "name": "nvme0", "cmd_type": "admin", "data_direction": "c2h", "cmdbuf": command(0x06, 1),
            "data_len": 4096,
        });
        let answer = world.rpc("bdev_nvme_send_cmd", identify).expect("answers");
        assert_eq!(answer["cpl"].as_str().map(str::len), Some(24), "16 bytes");
        assert!(answer["data"].as_str().expect("data").len() > 5000);
        let unknown = json!({
            "name": "nvme0", "cmd_type": "admin", "data_direction": "c2h", "cmdbuf": command(0xfe, 0),
        });
        let answer = world.rpc("bdev_nvme_send_cmd", unknown).expect("a status is an answer");
        assert!(answer.get("data").is_none());
        let gone = json!({
            "name": "nvme7", "cmd_type": "admin", "data_direction": "c2h", "cmdbuf": command(0x06, 1),
        });
        assert_eq!(world.rpc("bdev_nvme_send_cmd", gone).expect_err("no such").code, -19);
        let health =
            world.rpc("bdev_nvme_get_controller_health_info", json!({ "name": "nvme0" })).expect("healthy");
        assert!(health["temperature_celsius"].is_number() && health["model_number"].is_string(), "{health}");
        load.close(world);
    });
}

#[test]
fn an_answer_that_does_not_come_is_an_error() {
    for_seeds(10, |world| {
        let load = one_path(world);
        let answers = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        for _ in 0..4 {
            let heard = answers.clone();
            let params = json!({ "name": "nvme0" });
            world.on(|world| {
                world.core.rpc("bdev_nvme_get_controller_health_info", &params, move |answer| {
                    heard.borrow_mut().push(answer.is_ok());
                })
            });
            world.steps(world.roll(30));
        }
        world.kill_subsystem();
        assert!(world.within(Duration::from_secs(60), || answers.borrow().len() == 4), "all are answered");
        let params = json!({ "name": "nvme0" });
        let error = world.rpc("bdev_nvme_get_controller_health_info", params).expect_err("it is away");
        assert!(error.to_string().contains("takes no commands"), "{error}");
        load.close(world);
    });
}

#[test]
fn options_are_taken_together_or_not_at_all() {
    for_seeds(2, |world| {
        let set = |options: Value| world.rpc("bdev_nvme_set_options", options);
        set(json!({ "keep_alive_timeout_ms": 5000, "bdev_retry_count": -1 })).expect("taken");
        let error = set(json!({ "bdev_retry_count": 7, "rdma_srq_size": 64 })).expect_err("no rdma");
        assert!(error.to_string().contains("rdma_srq_size is 64: must be 0"), "{error}");
        let error = set(json!({ "no_such_option": 1 })).expect_err("unknown");
        assert!(error.to_string().contains("no_such_option"), "{error}");
        world
            .rpc("bdev_nvme_set_hotplug", json!({ "enable": false, "period_us": 1000 }))
            .expect("off is off");
        let error = world.rpc("bdev_nvme_set_hotplug", json!({ "enable": true })).expect_err("no pcie");
        assert!(error.to_string().contains("bdev_nvme_start_discovery"), "{error}");
        let firmware = json!({ "filename": "/tmp/x", "bdev_name": "nvme0n1" });
        world.rpc("bdev_nvme_apply_firmware", firmware).expect_err("no such device");
    });
}

#[test]
fn s2_h_paths_tell_what_they_did_and_what_is_in_their_way() {
    for_seeds(5, |world| {
        world.rpc("bdev_nvme_set_options", json!({ "io_path_stat": true })).expect("set");
        world.export(&["a", "b"]);
        world.attach_all(&["a", "b"]);
        let load = Load::open(world, "nvme0n1", 0);
        let policy = json!({ "name": "nvme0n1", "policy": "active_active", "selector": "latency" });
        world.rpc("bdev_nvme_set_multipath_policy", policy).expect("set");
        world.advance(Duration::from_millis(10));
        run(world, &load, 300);
        let stats = world.rpc("bdev_nvme_get_path_iostat", json!({ "name": "nvme0n1" })).expect("counted");
        let count = |at: usize, key: &str| stats["stats"][at]["stat"][key].as_u64().expect("a number");
        let all = |key: &str| count(0, key) + count(1, key);
        assert_eq!(all("num_read_ops") + all("num_write_ops"), load.good.get(), "each I/O once: {stats}");
        assert_eq!(all("bytes_read") + all("bytes_written"), load.good.get() * 4096);
        assert_eq!(stats["stats"][0]["trid"]["traddr"], "a");
        world.ana("b", AnaState::INACCESSIBLE);
        world.stop_listening("a");
        world.advance(Duration::from_millis(300));
        let told = world.rpc("bdev_nvme_get_io_paths", json!({ "name": "nvme0n1" })).expect("answers");
        let of = |traddr: &str| {
            let paths = told["poll_groups"][0]["io_paths"].as_array().expect("paths");
            paths.iter().find(|path| path["transport"]["traddr"] == traddr).expect("the path").clone()
        };
        assert_eq!(of("b")["reason"], "its ANA state is inaccessible");
        assert_eq!(of("b")["ana_state"], "inaccessible");
        let reason = of("a")["reason"].as_str().expect("a reason").to_owned();
        assert!(reason.starts_with("the controller is not connected"), "{reason}");
        assert!(of("b")["latency_us"].as_f64().expect("a number") >= 0.0 && of("b")["in_flight"] == 0);
        load.close(world);
    });
}

#[test]
fn s2_h_without_failback_a_device_stays_where_it_went() {
    for_seeds(5, |world| {
        world.rpc("bdev_nvme_set_options", json!({ "disable_auto_failback": true })).expect("set");
        world.export(&["a", "b"]);
        world.ana("b", AnaState::NON_OPTIMIZED);
        world.attach_all(&["a", "b"]);
        let load = Load::open(world, "nvme0n1", 0);
        world.advance(Duration::from_millis(10));
        run(world, &load, 5);
        world.ana("a", AnaState::INACCESSIBLE);
        world.advance(Duration::from_millis(50));
        run(world, &load, 5);
        world.ana("a", AnaState::OPTIMIZED);
        world.advance(Duration::from_millis(50));
        let current = |world: &World| world.paths("nvme0n1").iter().map(|path| path.1[2]).collect::<Vec<_>>();
        assert_eq!(current(world), [false, true], "b goes on, although a is better");
        world.ana("b", AnaState::INACCESSIBLE);
        world.advance(Duration::from_millis(50));
        assert_eq!(current(world), [true, false]);
        load.close(world);
    });
}

#[test]
fn errors_of_controllers_are_counted_by_status_if_asked_for() {
    for_seeds(3, |world| {
        world.rpc("bdev_nvme_set_options", json!({ "nvme_error_stat": true })).expect("set");
        world.export(&["a"]);
        world.attach("a", json!({})).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        world.advance(Duration::from_millis(10));
        for (count, sct, sc) in [(2, 0, 0x82), (1, 2, 0x81)] {
            let error = json!({
                "name": "nvme0", "cmd_type": "io", "opc": 2, "err_count": count, "sct": sct, "sc": sc,
            });
            world.rpc("bdev_nvme_add_error_injection", error).expect("injects");
            load.submit_at(world, 0, false);
            drain(world, &load, 1);
        }
        let told = |world: &World| world.driver_statistics("nvme0n1");
        let errors = told(world).expect("counted")["nvme_error"].clone();
        assert_eq!(errors["status_type"], json!({ "generic": 2, "media_error": 1 }));
        let codes = json!({ "namespace_not_ready": 2, "unrecovered_read_error": 1 });
        assert_eq!(errors["status_code"], codes);
        let specific = world.bdev("nvme0n1").and_then(|bdev| bdev.driver_specific).expect("told");
        assert!(specific["statistics"].is_null() && specific["nvme"].is_array(), "{specific}");
        load.close(world);
    });
}

#[test]
fn statistics_of_transports_have_the_names_clients_know() {
    for_seeds(1, |world| {
        world.export(&["a"]);
        world.attach("a", json!({})).expect("attaches");
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 10);
        drain(world, &load, 1);
        let told = world.rpc("bdev_nvme_get_transport_statistics", json!({})).expect("answers");
        let group =
            told["poll_groups"].as_array().expect("groups").iter().find(|one| one["thread"] == "reactor_0");
        let transport = group.expect("a reactor")["transports"][0].clone();
        assert_eq!(transport["trname"], "LOOP");
        assert!(transport["submitted_requests"].as_u64() > Some(load.good.get()), "{transport}");
        load.close(world);
    });
}
