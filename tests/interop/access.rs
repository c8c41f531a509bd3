//! Who may do what: host lists, keys, visibility, reservations.

use serde_json::json;
use tenon_tests::{Host, Scratch, wait_for};

use crate::kernel::{
    NQN, PORT, Tlshd, config, connect, connect_as, controllers, device, find_device, finish, key_table, sh,
    target, target_controllers, try_connect_as, try_sh,
};

const FIRST: (&str, &str) = (
    "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001",
    "00000000-0000-4000-8000-000000000001",
);
const SECOND: (&str, &str) = (
    "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000002",
    "00000000-0000-4000-8000-000000000002",
);

fn as_host((nqn, id): (&str, &str)) -> String {
    format!("--hostnqn {nqn} --hostid {id}")
}

fn refused(options: &str) -> String {
    let line = format!("nvme connect -t tcp -a 127.0.0.1 -s {PORT} -n {NQN} {options} 2>&1");
    try_sh(&line).expect_err("the host is not wanted")
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn only_hosts_in_the_list_connect() {
    let text = config("", &format!("[[subsystem.host]]\nnqn = \"{}\"\n", FIRST.0));
    let mut host = Host::start(&text);
    refused(&as_host(SECOND));
    let found = sh(&format!(
        "nvme discover -t tcp -a 127.0.0.1 -s {PORT} --hostnqn {} --hostid {}",
        SECOND.0, SECOND.1
    ));
    assert!(!found.contains(NQN), "{found}");
    connect(&as_host(FIRST));
    device(1);
    host.ok("nvmf_subsystem_add_host", json!({ "nqn": NQN, "host": SECOND.0 }));
    connect_as(SECOND.0, SECOND.1);
    assert_eq!(target_controllers(&mut host), 2);
    host.ok("nvmf_subsystem_remove_host", json!({ "nqn": NQN, "host": SECOND.0 }));
    let left = host.ok("nvmf_subsystem_get_controllers", json!({ "nqn": NQN }));
    assert_eq!((left.as_array().unwrap().len(), &left[0]["hostnqn"]), (1, &json!(FIRST.0)));
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_namespace_is_seen_by_its_hosts_only() {
    let mut host = target("");
    host.ok("bdev_malloc_create", json!({ "name": "m1", "num_blocks": 2048, "block_size": 512 }));
    let namespace = json!({ "bdev_name": "m1", "nsid": 2, "no_auto_visible": true });
    host.ok("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": namespace }));
    connect(&as_host(FIRST));
    device(1);
    assert!(find_device(2).is_none());
    let of_first = json!({ "nqn": NQN, "nsid": 2, "host": FIRST.0 });
    host.ok("nvmf_ns_add_host", of_first.clone());
    device(2);
    host.ok("nvmf_ns_remove_host", of_first);
    wait_for("the end of the device", || find_device(2).is_none().then_some(()));
    finish(host);
}

/// A host with a key for itself and one for the subsystem, in files of their own.
fn with_keys(scratch: Scratch) -> (Host, String, String) {
    let key = |hash: u32| sh(&format!("nvme gen-dhchap-key -m {hash} -n {}", FIRST.0)).trim().to_owned();
    let (own, other) = (key(1), key(2));
    let more = format!(
        "[[subsystem.host]]\nnqn = \"{}\"\ndhchap_key = \"own\"\ndhchap_ctrlr_key = \"other\"\n{}{}",
        FIRST.0,
        key_table(&scratch, "own", &own),
        key_table(&scratch, "other", &other)
    );
    (Host::start_in(scratch, &config("", &more), &[]), own, other)
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn hosts_prove_who_they_are() {
    let (mut host, own, other) = with_keys(Scratch::new());
    let stranger = sh(&format!("nvme gen-dhchap-key -m 1 -n {}", FIRST.0));
    refused(&as_host(FIRST));
    refused(&format!("{} --dhchap-secret '{}'", as_host(FIRST), stranger.trim()));
    assert_eq!(target_controllers(&mut host), 0);
    connect(&format!("{} --dhchap-secret '{own}'", as_host(FIRST)));
    let queues = host.ok("nvmf_subsystem_get_qpairs", json!({ "nqn": NQN }));
    assert_eq!(queues[0]["auth"]["state"], "completed", "{queues}");
    crate::data::verify(&device(1), "2M");
    sh("nvme disconnect-all");
    wait_for("the end", || controllers().is_empty().then_some(()));
    connect(&format!("{} --dhchap-secret '{own}' --dhchap-ctrl-secret '{other}'", as_host(FIRST)));
    device(1);
    sh("nvme disconnect-all");
    wait_for("the end", || controllers().is_empty().then_some(()));
    refused(&format!(
        "{} --dhchap-secret '{own}' --dhchap-ctrl-secret '{}'",
        as_host(FIRST),
        stranger.trim()
    ));
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn every_hash_and_group_is_agreed() {
    let (mut host, own, _) = with_keys(Scratch::new());
    let digests = ["sha256", "sha384", "sha512"];
    let groups = ["null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"];
    for (digest, group) in
        digests.iter().map(|one| (*one, "null")).chain(groups.iter().map(|one| ("sha256", *one)))
    {
        host.ok("nvmf_set_config", json!({ "dhchap_digests": [digest], "dhchap_dhgroups": [group] }));
        connect(&format!("{} --dhchap-secret '{own}'", as_host(FIRST)));
        let queues = host.ok("nvmf_subsystem_get_qpairs", json!({ "nqn": NQN }));
        let auth = &queues[0]["auth"];
        assert_eq!((&auth["digest"], &auth["dhgroup"]), (&json!(digest), &json!(group)), "{queues}");
        sh("nvme disconnect-all");
        wait_for("the end", || (target_controllers(&mut host) == 0).then_some(()));
    }
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn reservations_keep_the_other_host_out() {
    let host = target("");
    connect(&as_host(FIRST));
    let mine = device(1).display().to_string();
    let first = controllers().into_keys().next().unwrap();
    connect_as(SECOND.0, SECOND.1);
    let second = controllers().into_keys().find(|name| *name != first).unwrap();
    // Commands go to the path they name: the devices behind both controllers.
    let by = |controller: &str| format!("/dev/{controller}");
    sh(&format!("nvme resv-register {} -n 1 --nrkey=0x11 --rrega=0", by(&first)));
    sh(&format!("nvme resv-register {} -n 1 --nrkey=0x22 --rrega=0", by(&second)));
    sh(&format!("nvme resv-acquire {} -n 1 --crkey=0x11 --rtype=1 --racqa=0", by(&first)));
    let report = sh(&format!("nvme resv-report {} -n 1 -e -o json", by(&second)));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["rtype"], &report["regctl"]), (&json!(1), &json!(2)), "{report}");
    let conflict =
        try_sh(&format!("nvme resv-release {} -n 1 --crkey=0x33 --rtype=1 --rrela=0 2>&1", by(&second)));
    assert!(conflict.is_err(), "{conflict:?}");
    sh(&format!("dd if=/dev/zero of={mine} bs=4096 count=1 oflag=direct status=none"));
    // Preempted by the other.
    sh(&format!("nvme resv-acquire {} -n 1 --crkey=0x22 --prkey=0x11 --rtype=1 --racqa=1", by(&second)));
    let report = sh(&format!("nvme resv-report {} -n 1 -e -o json", by(&second)));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["regctl"], 1, "{report}");
    sh(&format!("nvme resv-release {} -n 1 --crkey=0x22 --rtype=1 --rrela=0", by(&second)));
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_persistent_reservation_outlives_the_target() {
    let text = |scratch: &Scratch| {
        let folder =
            format!("[nvmf]\nreservation_directory = \"{}\"\n", scratch.join("reservations").display());
        let identity = "bdev_name = \"m0\"\nuuid = \"7b5c1b36-6a5b-4d0e-8d3b-0a1b2c3d4e5f\"";
        config("allow_any_host = true", &folder).replace("bdev_name = \"m0\"", identity)
    };
    let scratch = Scratch::new();
    let mut host = {
        let text = text(&scratch);
        Host::start_in(scratch, &text, &[])
    };
    let first = connect(&format!("{} --reconnect-delay 1 --ctrl-loss-tmo 60", as_host(FIRST)));
    device(1);
    sh(&format!("nvme resv-register /dev/{first} -n 1 --nrkey=0x11 --rrega=0 --cptpl=3"));
    sh(&format!("nvme resv-acquire /dev/{first} -n 1 --crkey=0x11 --rtype=2 --racqa=0"));
    let scratch = host.kill();
    let text = text(&scratch);
    host = Host::start_in(scratch, &text, &[]);
    wait_for("the return", || (controllers().get(&first).map(String::as_str) == Some("live")).then_some(()));
    let report = sh(&format!("nvme resv-report /dev/{first} -n 1 -e -o json"));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(
        (&report["rtype"], &report["regctl"], &report["ptpls"]),
        (&json!(2), &json!(1), &json!(1)),
        "{report}"
    );
    finish(host);
}

/// A key for a secure channel, in the interchange format.
pub fn channel_key(hash: u32) -> String {
    sh(&format!("nvme gen-tls-key -m {hash}")).trim().to_owned()
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn secure_channels_carry_data_and_refuse_other_keys() {
    for (hash, number) in [("01", 1), ("02", 2)] {
        let scratch = Scratch::new();
        let key = channel_key(number);
        let more = format!(
            "secure_channel = true\n[[subsystem.host]]\nnqn = \"{}\"\npsk = \"channel\"\n{}",
            FIRST.0,
            key_table(&scratch, "channel", &key)
        );
        let mut host = Host::start_in(scratch, &config("", &more), &[]);
        let tlshd = Tlshd::start(hash, &key, FIRST.0, NQN);
        let controller = try_connect_as(FIRST.0, FIRST.1, ",tls").unwrap();
        crate::data::verify(&device(1), "8M");
        let queues = host.ok("nvmf_subsystem_get_qpairs", json!({ "nqn": NQN }));
        assert_eq!(queues.as_array().unwrap().len(), 2, "{queues}");
        sh(&format!("nvme reset /dev/{controller}"));
        wait_for("the reset", || {
            (controllers().get(&controller).map(String::as_str) == Some("live")).then_some(())
        });
        sh("nvme disconnect-all");
        wait_for("the end", || (target_controllers(&mut host) == 0).then_some(()));
        // In clear, and with another key.
        try_connect_as(FIRST.0, FIRST.1, "").expect_err("the listener is secure");
        drop(tlshd);
        let _other = Tlshd::start(hash, &channel_key(number), FIRST.0, NQN);
        try_connect_as(FIRST.0, FIRST.1, ",tls").expect_err("the key is another one");
        assert_eq!(target_controllers(&mut host), 0);
        finish(host);
    }
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn two_hosts_see_what_the_other_wrote() {
    let host = target("");
    let first = connect_as(FIRST.0, FIRST.1);
    let second = connect_as(SECOND.0, SECOND.1);
    device(1);
    for (writer, reader, byte) in [(&first, &second, "A"), (&second, &first, "B")] {
        sh(&format!("head -c 4096 /dev/zero | tr '\\0' {byte} >/run/block"));
        // Through each controller itself, past the device that joins them.
        let through = |controller: &str, what: &str| {
            sh(&format!(
                "nvme io-passthru /dev/{controller} {what} --namespace-id=1 --cdw10=800 --cdw12=7 --data-len=4096"
            ))
        };
        through(writer, "--opcode=1 --write --input-file=/run/block");
        through(reader, "--opcode=2 --read --input-file=/run/back");
        sh("cmp /run/block /run/back");
    }
    finish(host);
}
