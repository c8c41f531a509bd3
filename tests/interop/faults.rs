//! What goes wrong: the target dies, the network dies, the host gives up.

use serde_json::json;
use tenon_tests::{Host, wait_for};

use crate::kernel::{
    Load, NQN, PORT, connect, controllers, device, find_device, finish, sh, target, target_controllers,
    try_sh,
};

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_killed_target_comes_back_with_every_block() {
    sh("truncate -s 32M /run/disk");
    let text = format!(
        "[[bdev]]\nmodule = \"uring\"\nname = \"u0\"\nfilename = \"/run/disk\"\nblock_size = 4096\n[[transport]]\ntrtype = \"TCP\"\n[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n[[subsystem.namespace]]\nbdev_name = \"u0\"\nuuid = \"7b5c1b36-6a5b-4d0e-8d3b-0a1b2c3d4e5f\"\n[[subsystem.listener]]\ntraddr = \"127.0.0.1\"\ntrsvcid = {PORT}\n"
    );
    let mut host = Host::start(&text);
    let controller = connect("--reconnect-delay 1 --ctrl-loss-tmo 120");
    let load = Load::start(&device(1), 12);
    for _ in 0..3 {
        let scratch = host.kill();
        wait_for("the loss", || {
            (controllers().get(&controller).map(String::as_str) == Some("connecting")).then_some(())
        });
        host = Host::start_in(scratch, &text, &[]);
        wait_for("the return", || {
            (controllers().get(&controller).map(String::as_str) == Some("live")).then_some(())
        });
    }
    load.finish();
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_silent_host_is_given_up_and_may_return() {
    let mut host = target("");
    let controller = connect("--keep-alive-tmo 2 --reconnect-delay 1 --ctrl-loss-tmo 60");
    device(1);
    sh("tc qdisc add dev lo root netem loss 100%");
    wait_for("the target's patience", || (target_controllers(&mut host) == 0).then_some(()));
    sh("tc qdisc del dev lo root");
    wait_for("the return", || {
        let is_live = controllers().get(&controller).map(String::as_str) == Some("live");
        (is_live && target_controllers(&mut host) == 1).then_some(())
    });
    crate::data::verify(&device(1), "2M");
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_reset_under_load_loses_nothing() {
    let host = target("");
    let controller = connect("");
    let load = Load::start(&device(1), 5);
    for _ in 0..5 {
        sh(&format!("nvme reset /dev/{controller}"));
        wait_for("the reset", || {
            (controllers().get(&controller).map(String::as_str) == Some("live")).then_some(())
        });
    }
    load.finish();
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_host_may_leave_with_commands_in_flight() {
    let mut host = target("");
    let slow = json!({
        "name": "d0", "base_bdev_name": "m1", "avg_read_latency": 300_000, "p99_read_latency": 300_000,
        "avg_write_latency": 300_000, "p99_write_latency": 300_000
    });
    host.ok("bdev_malloc_create", json!({ "name": "m1", "num_blocks": 8192, "block_size": 512 }));
    host.ok("bdev_delay_create", slow);
    host.ok("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": { "bdev_name": "d0", "nsid": 2 } }));
    for _ in 0..3 {
        connect("");
        let path = device(2).display().to_string();
        let mut readers: Vec<_> = (0..4)
            .map(|index| {
                let line = format!(
                    "exec dd if={path} of=/dev/null bs=4096 count=64 skip={index} iflag=direct 2>/dev/null"
                );
                std::process::Command::new("/bin/bash").args(["-c", &line]).spawn().unwrap()
            })
            .collect();
        wait_for("commands in flight", || {
            let stats = host.ok("nvmf_get_stats", json!({}));
            (stats["poll_groups"][0]["pending_bdev_io"].as_u64() > Some(0)).then_some(())
        });
        sh("nvme disconnect-all");
        readers.iter_mut().for_each(|reader| drop(reader.wait()));
        wait_for("the end", || {
            (find_device(2).is_none() && target_controllers(&mut host) == 0).then_some(())
        });
    }
    let stats = host.ok("nvmf_get_stats", json!({}));
    assert_eq!(stats["poll_groups"][0]["pending_bdev_io"], 0, "{stats}");
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_target_that_ends_lets_hosts_go() {
    let host = target("");
    connect("--reconnect-delay 1 --ctrl-loss-tmo 1");
    device(1);
    host.stop();
    wait_for("the host's end", || controllers().is_empty().then_some(()));
    assert!(try_sh("ls /dev/nvme0n1").is_err());
}
