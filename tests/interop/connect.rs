//! Finding, connecting, describing: what a host asks before it sends data.

use serde_json::json;
use tenon_tests::wait_for;

use crate::kernel::{self, NQN, PORT, attribute, connect, device, finish, sh, target, try_sh};

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn discover_and_connect() {
    let host = target("");
    let found = sh(&format!("nvme discover -t tcp -a 127.0.0.1 -s {PORT}"));
    for word in [NQN, "current discovery subsystem", "nvme subsystem", "traddr:  127.0.0.1"] {
        assert!(found.contains(word), "{word} is missing in\n{found}");
    }
    assert!(!found.contains("unrecognized"), "{found}");
    let controller = connect("");
    let device = device(1);
    let list = sh("nvme list");
    assert!(list.contains(&device.display().to_string()) && list.contains("Tenon bdev Controller"), "{list}");
    let paths = sh("nvme list-subsys");
    assert!(paths.contains(NQN) && paths.contains("live"), "{paths}");
    let id = sh(&format!("nvme id-ctrl /dev/{controller} -H"));
    for word in ["0x20000", NQN, "Tenon bdev Controller"] {
        assert!(id.contains(word), "{word} is missing in\n{id}");
    }
    let id = sh(&format!("nvme id-ns {}", device.display()));
    assert!(id.contains("nsze    : 0x20000") && id.contains("lbads:9"), "{id}");
    sh(&format!("nvme ns-descs {}", device.display()));
    sh(&format!("nvme list-ns /dev/{controller} | grep -q 0x1"));
    for property in ["0x0", "0x8", "0x14", "0x1c"] {
        sh(&format!("nvme get-property /dev/{controller} -o {property}"));
    }
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn connect_all_by_discovery() {
    let host = target(&kernel::second_listener());
    sh(&format!("nvme connect-all -t tcp -a 127.0.0.1 -s {PORT}"));
    wait_for("both paths", || {
        let live = kernel::controllers().values().filter(|state| *state == "live").count();
        (live == 2).then_some(())
    });
    device(1);
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn every_log_page_and_feature_decodes() {
    let mut host = target("");
    let controller = connect("");
    device(1);
    for command in [
        "error-log",
        "smart-log",
        "fw-log",
        "effects-log",
        "changed-ns-list-log",
        "ana-log",
        "supported-log-pages",
        "fid-support-effects-log",
        "resv-notif-log",
        "id-ctrl -H",
        "nvm-id-ctrl",
        "id-iocs",
        "list-ctrl",
        "list-ns",
        "id-ns -n 1 -H",
        "cmdset-ind-id-ns -n 1",
        "resv-report -n 1 -e",
    ] {
        let (verb, options) = command.split_once(' ').unwrap_or((command, ""));
        let text = sh(&format!("nvme {verb} /dev/{controller} {options} 2>/run/errors"));
        for word in ["unrecognized", "Unknown", "NVMe status"] {
            assert!(!text.contains(word), "nvme {command}: {text}");
        }
        let errors = std::fs::read_to_string("/run/errors").unwrap();
        assert!(errors.is_empty(), "nvme {command}: {errors}");
    }
    for feature in ["0x01", "0x02", "0x04", "0x05", "0x07", "0x0b", "0x0f"] {
        sh(&format!("nvme get-feature /dev/{controller} -f {feature} -H 2>&1"));
    }
    // An entry of the error log is real: a command that cannot be.
    let refused = try_sh("nvme read /dev/nvme0n1 -s 99999999 -c 0 -z 512 2>&1");
    assert!(refused.is_err(), "{refused:?}");
    let log = sh(&format!("nvme error-log /dev/{controller} -e 1"));
    assert!(log.contains("LBA_RANGE") || log.contains("LBA Out of Range"), "{log}");
    let stats = host.ok("nvmf_get_stats", json!({}));
    assert_eq!(stats["poll_groups"][0]["current_io_qpairs"], 1, "{stats}");
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn digests_are_agreed_and_checked() {
    let host = target("");
    for options in ["--hdr-digest", "--data-digest", "--hdr-digest --data-digest"] {
        connect(options);
        let device = device(1);
        crate::data::verify(&device, "8M");
        sh("nvme disconnect-all");
        wait_for("the end", || kernel::find_device(1).is_none().then_some(()));
    }
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn queue_sizes_and_keep_alive_are_as_asked() {
    let mut host = target("");
    let controller = connect("--queue-size 16 --keep-alive-tmo 3 --nr-io-queues 1");
    let of = |key: &str| attribute(&format!("/sys/class/nvme/{controller}/{key}"));
    assert_eq!(of("queue_count").as_deref(), Some("2"));
    assert_eq!(of("sqsize").as_deref(), Some("15"));
    let controllers = host.ok("nvmf_subsystem_get_controllers", json!({ "nqn": NQN }));
    assert_eq!(controllers[0]["num_io_qpairs"], 1, "{controllers}");
    // The kernel asks for a little more than it was told.
    let timeout = controllers[0]["keep_alive_timeout_ms"].as_u64().unwrap();
    assert!((3000..20_000).contains(&timeout), "{controllers}");
    let queues = host.ok("nvmf_subsystem_get_qpairs", json!({ "nqn": NQN }));
    assert_eq!(queues[1]["qid"], 1, "{queues}");
    assert_eq!(
        (&queues[0]["state"], &queues[0]["peer_address"]["traddr"]),
        (&json!("enabled"), &json!("127.0.0.1"))
    );
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn many_hosts_are_served_at_a_time() {
    const HOSTS: usize = 64;
    let mut host = target("");
    for number in 0..HOSTS {
        let id = format!("00000000-0000-4000-8000-{number:012}");
        kernel::connect_as(&format!("nqn.2014-08.org.nvmexpress:uuid:{id}"), &id);
    }
    wait_for("all hosts", || (kernel::target_controllers(&mut host) == HOSTS).then_some(()));
    crate::data::verify(&device(1), "4M");
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn connecting_over_and_over_leaves_nothing() {
    let rounds: usize =
        std::env::var("TENON_INTEROP_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let mut host = target("");
    connect("");
    sh("nvme disconnect-all");
    wait_for("the first end", || (kernel::target_controllers(&mut host) == 0).then_some(()));
    let before = tenon_tests::counts(&mut host);
    let line = format!(
        "for i in $(seq {rounds}); do nvme connect -t tcp -a 127.0.0.1 -s {PORT} -n {NQN} && nvme disconnect -n {NQN} >/dev/null || exit 1; done"
    );
    sh(&line);
    wait_for("the last end", || (kernel::target_controllers(&mut host) == 0).then_some(()));
    wait_for("the reactors' end of them", || {
        let counts = host.ok("debug_get_object_counts", json!({}))["nvmf"].clone();
        (counts["queues"] == 0).then_some(())
    });
    let (mut before, mut after) = (before, tenon_tests::counts(&mut host));
    // Pools may have grown by a few pages: they are kept, and bounded.
    let memory = |counts: &mut serde_json::Value| {
        counts.as_object_mut().unwrap().remove("memory_bytes").and_then(|bytes| bytes.as_u64()).unwrap()
    };
    let grown = memory(&mut after).saturating_sub(memory(&mut before));
    assert!(grown <= 1 << 20, "{grown} bytes are left");
    assert_eq!(after, before, "something is left");
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_persistent_discovery_controller_is_told_of_changes() {
    let mut host = target("");
    sh(&format!("nvme discover -t tcp -a 127.0.0.1 -s {PORT} --persistent --keep-alive-tmo 5"));
    let (name, _) = kernel::controllers().into_iter().next().expect("the controller stays");
    let page = |name: &str| sh(&format!("nvme discover -d {name} -t tcp -a 127.0.0.1 -s {PORT} 2>&1"));
    assert!(page(&name).contains("Number of Records 2"));
    let mut events = std::process::Command::new("busybox")
        .args(["uevent", "/bin/sh", "-c", "env | grep NVME_AEN >>/run/events"])
        .spawn()
        .unwrap();
    // Nobody says when the listener for events listens: changes go on until it has heard one.
    let second = json!({ "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "4422" });
    let change = json!({ "nqn": NQN, "listen_address": second });
    wait_for("the event", || {
        host.ok("nvmf_subsystem_add_listener", change.clone());
        host.ok("nvmf_subsystem_remove_listener", change.clone());
        page(&name);
        std::fs::read_to_string("/run/events").ok().filter(|text| text.contains("0x70f002"))
    });
    events.kill().unwrap();
    events.wait().unwrap();
    finish(host);
}
