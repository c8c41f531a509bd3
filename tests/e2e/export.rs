//! What is exported over NVMe-oF, as an operator sees it: calls, files, reloads
//! and saved configurations. Uses the transport inside the process; what hosts
//! make of it is `tests/interop`.

use rustix::process::Signal;
use serde_json::{Value, json};
use tenon_tests::{Host, Scratch, counts, run, wait_for};

const NQN: &str = "nqn.2026-01.io.tenon:one";
const HOST: &str = "nqn.2026-01.io.tenon:host";
/// As `nvme gen-dhchap-key` makes them, for nobody.
const DHCHAP_KEY: &str = "DHHC-1:00:yYcxRFIaRqM47yhSUQ+QkXcqTQkf+1Dc1OuJs26/RXJHzlE7:\n";

fn address_of_loop(traddr: &str) -> Value {
    json!({ "trtype": "LOOP", "adrfam": "loop", "traddr": traddr, "trsvcid": "" })
}

fn subsystem(host: &mut Host) -> Value {
    let all = host.ok("nvmf_get_subsystems", json!({}));
    let found = all.as_array().unwrap().iter().find(|one| one["nqn"] == NQN);
    found.unwrap_or(&Value::Null).clone()
}

/// What a script of an existing client does to export a device.
fn export(host: &mut Host) {
    assert_eq!(host.ok("nvmf_create_transport", json!({ "trtype": "LOOP", "max_queue_depth": 64 })), true);
    host.ok("bdev_malloc_create", json!({ "name": "m0", "num_blocks": 2048, "block_size": 512 }));
    let create = json!({
        "nqn": NQN, "serial_number": "TENON1", "model_number": "Test", "allow_any_host": true,
        "ana_reporting": true, "max_namespaces": 8, "min_cntlid": 10, "max_cntlid": 20
    });
    assert_eq!(host.ok("nvmf_create_subsystem", create), true);
    let namespace = json!({ "nqn": NQN, "namespace": { "bdev_name": "m0", "nsid": 3 } });
    assert_eq!(host.ok("nvmf_subsystem_add_ns", namespace), 3);
    let listener = json!({ "nqn": NQN, "tgt_name": "nvmf_tgt", "listen_address": address_of_loop("a") });
    assert_eq!(host.ok("nvmf_subsystem_add_listener", listener), true);
}

#[test]
fn a_device_is_exported_by_the_calls_existing_scripts_make() {
    let mut host = Host::start("");
    let before = counts(&mut host);
    export(&mut host);
    let shown = subsystem(&mut host);
    assert_eq!(shown["subtype"], "NVMe");
    assert_eq!(shown["listen_addresses"], json!([address_of_loop("a")]));
    assert_eq!((&shown["serial_number"], &shown["max_namespaces"]), (&json!("TENON1"), &json!(8)));
    assert_eq!((&shown["min_cntlid"], &shown["max_cntlid"]), (&json!(10), &json!(20)));
    let uuid = host.ok("bdev_get_bdevs", json!({ "name": "m0" }))[0]["uuid"].clone();
    let namespace = &shown["namespaces"][0];
    assert_eq!((&namespace["nsid"], &namespace["bdev_name"]), (&json!(3), &json!("m0")));
    assert_eq!(
        (&namespace["uuid"], &namespace["name"], &namespace["anagrpid"]),
        (&uuid, &json!("m0"), &json!(3))
    );
    let all = host.ok("nvmf_get_subsystems", json!({ "tgt_name": "nvmf_tgt" }));
    assert_eq!(all[0]["subtype"], "Discovery");
    assert_eq!(all[0]["hosts"], json!([]));
    let transports = host.ok("nvmf_get_transports", json!({ "trtype": "loop" }));
    assert_eq!((&transports[0]["trtype"], &transports[0]["max_queue_depth"]), (&json!("LOOP"), &json!(64)));
    let stats = host.ok("nvmf_get_stats", json!({}));
    let group = &stats["poll_groups"][0];
    for key in ["admin_qpairs", "io_qpairs", "current_admin_qpairs", "pending_bdev_io", "completed_nvme_io"] {
        assert_eq!(group[key], 0, "{stats}");
    }
    assert_eq!(group["transports"][0]["trtype"], "LOOP");
    assert_eq!(host.ok("nvmf_subsystem_get_controllers", json!({ "nqn": NQN })), json!([]));
    assert_eq!(host.ok("nvmf_subsystem_get_qpairs", json!({ "nqn": NQN })), json!([]));
    assert_eq!(host.ok("nvmf_delete_subsystem", json!({ "nqn": NQN })), true);
    host.ok("bdev_malloc_delete", json!({ "name": "m0" }));
    assert_eq!(host.ok("nvmf_delete_transport", json!({ "trtype": "LOOP" })), true);
    assert_eq!(counts(&mut host), before, "something is left");
    host.stop();
}

#[test]
fn what_is_exported_changes_by_calls() {
    let mut host = Host::start("");
    export(&mut host);
    let ok = |host: &mut Host, method: &str, params: Value| {
        let mut params = params;
        params["nqn"] = json!(NQN);
        host.ok(method, params)
    };
    // Hosts.
    ok(&mut host, "nvmf_subsystem_add_host", json!({ "host": HOST }));
    assert_eq!(ok(&mut host, "nvmf_subsystem_allow_any_host", json!({ "allow_any_host": false })), true);
    let shown = subsystem(&mut host);
    assert_eq!((&shown["hosts"], &shown["allow_any_host"]), (&json!([{ "nqn": HOST }]), &json!(false)));
    ok(&mut host, "nvmf_subsystem_remove_host", json!({ "host": HOST }));
    // A namespace that only some see, with an identity of its own.
    host.ok("bdev_malloc_create", json!({ "name": "m1", "num_blocks": 8, "block_size": 512 }));
    let namespace = json!({
        "bdev_name": "m1", "nguid": "00112233445566778899aabbccddeeff", "eui64": "0011223344556677",
        "uuid": "7b5c1b36-6a5b-4d0e-8d3b-0a1b2c3d4e5f", "anagrpid": 2
    });
    let nsid =
        ok(&mut host, "nvmf_subsystem_add_ns", json!({ "namespace": namespace, "no_auto_visible": true }));
    assert_eq!(nsid, 1);
    ok(&mut host, "nvmf_ns_add_host", json!({ "nsid": 1, "host": HOST }));
    let shown = subsystem(&mut host)["namespaces"][0].clone();
    assert_eq!(shown["nguid"], "00112233445566778899AABBCCDDEEFF");
    assert_eq!(shown["eui64"], "0011223344556677");
    assert_eq!((&shown["anagrpid"], &shown["hosts"]), (&json!(2), &json!([HOST])));
    ok(&mut host, "nvmf_ns_remove_host", json!({ "nsid": 1, "host": HOST }));
    ok(&mut host, "nvmf_subsystem_set_ns_ana_group", json!({ "nsid": 1, "anagrpid": 4 }));
    assert_eq!(subsystem(&mut host)["namespaces"][0]["anagrpid"], 4);
    ok(&mut host, "nvmf_subsystem_remove_ns", json!({ "nsid": 1 }));
    host.ok("bdev_malloc_delete", json!({ "name": "m1" }));
    // Paths.
    let set = json!({ "listen_address": address_of_loop("a"), "ana_state": "inaccessible", "anagrpid": 2 });
    ok(&mut host, "nvmf_subsystem_listener_set_ana_state", set);
    let states = ok(&mut host, "nvmf_subsystem_get_listeners", json!({}))[0]["ana_states"].clone();
    assert_eq!(states[1], json!({ "ana_group": 2, "ana_state": "inaccessible" }));
    assert_eq!(states[0]["ana_state"], "optimized");
    let second = json!({ "listen_address": address_of_loop("b"), "ana_state": "non_optimized" });
    ok(&mut host, "nvmf_subsystem_add_listener", second);
    ok(&mut host, "nvmf_subsystem_remove_listener", json!({ "listen_address": address_of_loop("a") }));
    let listeners = ok(&mut host, "nvmf_subsystem_get_listeners", json!({}));
    assert_eq!(listeners[0]["address"]["traddr"], "b");
    assert_eq!(listeners[0]["ana_state"], "non_optimized");
    // Pause, which nobody has to end.
    ok(&mut host, "nvmf_subsystem_pause", json!({ "deadline_ms": 60_000 }));
    assert_eq!(subsystem(&mut host)["state"], "paused");
    ok(&mut host, "nvmf_subsystem_resume", json!({}));
    ok(&mut host, "nvmf_subsystem_pause", json!({ "deadline_ms": 1 }));
    wait_for("the end of the pause", || (subsystem(&mut host)["state"] == "active").then_some(()));
    host.stop();
}

#[test]
fn referrals_and_options_are_kept_and_told() {
    let mut host = Host::start("");
    let address = json!({ "trtype": "tcp", "traddr": "10.0.0.9", "trsvcid": "8009" });
    assert_eq!(
        host.ok("nvmf_discovery_add_referral", json!({ "address": address, "secure_channel": true })),
        true
    );
    let expected = json!([{
        "address": { "trtype": "TCP", "adrfam": "IPv4", "traddr": "10.0.0.9", "trsvcid": "8009" },
        "secure_channel": true,
        "subnqn": "nqn.2014-08.org.nvmexpress.discovery",
    }]);
    assert_eq!(host.ok("nvmf_discovery_get_referrals", json!({})), expected);
    assert_eq!(host.err("nvmf_discovery_add_referral", json!({ "address": address })).code, -17);
    assert_eq!(host.ok("nvmf_discovery_remove_referral", json!({ "address": address })), true);
    assert_eq!(host.err("nvmf_discovery_remove_referral", json!({ "address": address })).code, -2);
    // The discovery subsystem listens on every address, and on those it is given.
    host.ok("nvmf_create_transport", json!({ "trtype": "LOOP" }));
    let discovery =
        json!({ "nqn": "nqn.2014-08.org.nvmexpress.discovery", "listen_address": address_of_loop("d") });
    host.ok("nvmf_subsystem_add_listener", discovery.clone());
    let shown = host.ok("nvmf_get_subsystems", json!({}))[0]["listen_addresses"].clone();
    assert_eq!(shown, json!([address_of_loop("d")]));
    let text = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(text.contains("[[subsystem]]\nnqn = \"nqn.2014-08.org.nvmexpress.discovery\""), "{text}");
    host.ok("nvmf_subsystem_remove_listener", discovery);
    host.ok("nvmf_set_config", json!({ "discovery_filter": "transport,svcid", "acceptor_poll_rate": 10000 }));
    host.ok("nvmf_set_max_subsystems", json!({ "max_subsystems": 1 }));
    host.ok("nvmf_set_crdt", json!({ "crdt1": 10, "crdt3": 30 }));
    host.ok("nvmf_create_subsystem", json!({ "nqn": NQN }));
    let error = host.err("nvmf_create_subsystem", json!({ "nqn": "nqn.2026-01.io.tenon:two" }));
    assert_eq!(error.code, -28, "{error:?}");
    let text = host.ok("save_config", json!({}));
    for line in ["discovery_filter = \"transport,svcid\"", "max_subsystems = 1\n", "crdt = [10, 0, 30]"] {
        assert!(text.as_str().unwrap().contains(line), "{line} is missing in {text}");
    }
    host.stop();
}

/// A refused call per line: method, parameters, code, and a word that the error holds.
const REFUSALS: &str = r#"
nvmf_create_transport {"trtype": "loop"} -17 LOOP
nvmf_create_transport {"trtype": "pigeon"} -19 transport_pigeon
nvmf_create_transport {} -32602 trtype
nvmf_delete_transport {"trtype": "loop"} -16 listeners
nvmf_delete_transport {"trtype": "none"} -2 none
nvmf_get_transports {"trtype": "none"} -2 none
nvmf_get_transports {"tgt_name": "other"} -32602 nvmf_tgt
nvmf_create_subsystem {"nqn": "nqn.2026-01.io.tenon:one"} -17 tenon:one
nvmf_create_subsystem {"nqn": "iqn.2026"} -22 iqn.2026
nvmf_create_subsystem {"nqn": "nqn.2026-01.io.tenon:t", "serial": 1} -32602 serial
nvmf_create_subsystem {"nqn": "nqn.2026-01.io.tenon:t", "serial_number": "123456789012345678901"} -22 serial_number
nvmf_create_subsystem {"nqn": "nqn.2026-01.io.tenon:t", "min_cntlid": 9, "max_cntlid": 8} -22 identifiers
nvmf_create_subsystem {"nqn": "nqn.2026-01.io.tenon:t", "max_write_zeroes_size_kib": 5} -22 power
nvmf_create_subsystem {"nqn": "nqn.2026-01.io.tenon:t", "passthrough": true} -95 passthrough
nvmf_delete_subsystem {"nqn": "none"} -2 none
nvmf_delete_subsystem {"nqn": "nqn.2014-08.org.nvmexpress.discovery"} -22 discovery
nvmf_get_subsystems {"nqn": "none"} -2 none
nvmf_subsystem_add_ns {"nqn": "NQN", "namespace": {"bdev_name": "none"}} -19 none
nvmf_subsystem_add_ns {"nqn": "NQN", "namespace": {"bdev_name": "m0"}} -1 m0
nvmf_subsystem_add_ns {"nqn": "NQN", "namespace": {"bdev_name": "m0", "nsid": 3}} -17 3
nvmf_subsystem_add_ns {"nqn": "NQN", "namespace": {"bdev_name": "m0", "nsid": 9}} -22 identifier
nvmf_subsystem_add_ns {"nqn": "NQN", "namespace": {"bdev_name": "m0", "nguid": "12"}} -32602 nguid
nvmf_subsystem_add_ns {"nqn": "NQN", "namespace": {"bdev_name": "m0", "uuid": "12"}} -32602 uuid
nvmf_subsystem_add_ns {"nqn": "NQN", "namespace": {"bdev": "m0"}} -32602 bdev
nvmf_subsystem_remove_ns {"nqn": "NQN", "nsid": 1} -2 namespace
nvmf_subsystem_set_ns_ana_group {"nqn": "NQN", "nsid": 3, "anagrpid": 9} -22 9
nvmf_ns_add_host {"nqn": "NQN", "nsid": 3, "host": "nqn.2026-01.io.tenon:host"} -22 every
nvmf_ns_remove_host {"nqn": "NQN", "nsid": 4, "host": "nqn.2026-01.io.tenon:host"} -2 4
nvmf_subsystem_add_listener {"nqn": "NQN", "listen_address": {"trtype": "LOOP", "traddr": "a"}} -17 LOOP/a
nvmf_subsystem_add_listener {"nqn": "NQN", "listen_address": {"trtype": "RDMA", "traddr": "a"}} -2 RDMA
nvmf_subsystem_add_listener {"nqn": "NQN", "listen_address": {"adrfam": "ipx", "traddr": "a"}} -32602 ipx
nvmf_subsystem_add_listener {"nqn": "NQN", "listen_address": {"traddr": "c"}, "ana_state": "fast"} -32602 fast
nvmf_subsystem_remove_listener {"nqn": "NQN", "listen_address": {"trtype": "LOOP", "traddr": "z"}} -2 LOOP/z
nvmf_subsystem_listener_set_ana_state {"nqn": "NQN", "listen_address": {"trtype": "LOOP", "traddr": "a"}, "ana_state": "optimized", "anagrpid": 99} -22 99
nvmf_subsystem_add_host {"nqn": "NQN", "host": ""} -22 host
nvmf_subsystem_add_host {"nqn": "NQN", "host": "nqn.2026-01.io.tenon:host", "dhchap_key": "none"} -22 none
nvmf_subsystem_set_keys {"nqn": "NQN", "host": "nqn.2026-01.io.tenon:host"} -2 tenon:host
nvmf_subsystem_set_host_qos_limit {"nqn": "NQN", "host": "nqn.2026-01.io.tenon:host", "rw_ios_per_sec": 1} -2 tenon:host
nvmf_subsystem_remove_host {"nqn": "NQN", "host": "nqn.2026-01.io.tenon:host"} -2 tenon:host
nvmf_subsystem_allow_any_host {"nqn": "none", "allow_any_host": true} -2 none
nvmf_subsystem_get_controllers {"nqn": "none"} -2 none
nvmf_subsystem_get_qpairs {"nqn": "none"} -2 none
nvmf_subsystem_get_listeners {"nqn": "none"} -2 none
nvmf_subsystem_resume {"nqn": "NQN"} -22 paused
nvmf_set_config {"discovery_filter": "colour"} -32602 colour
nvmf_set_config {"dhchap_digests": ["md5"]} -32602 md5
nvmf_set_config {"dhchap_dhgroups": []} -32602 dhchap_dhgroups
nvmf_set_config {"admin_cmd_passthru": {"identify_ctrlr": true}} -95 admin_cmd_passthru
nvmf_set_max_subsystems {"max_subsystems": 0} -32602 max_subsystems
nvmf_set_crdt {"crdt1": -1} -32602 crdt1
nvmf_discovery_add_referral {"address": {"trtype": "TCP"}} -32602 traddr
keyring_file_add_key {"name": "k", "path": "relative"} -22 absolute
keyring_file_add_key {"name": "k", "path": "/nonexistent"} -22 nonexistent
keyring_file_remove_key {"name": "k"} -2 k
"#;

#[test]
fn wrong_requests_are_refused_with_object_and_reason() {
    let mut host = Host::start("");
    export(&mut host);
    let before = subsystem(&mut host);
    for line in REFUSALS.trim().lines() {
        let (method, rest) = line.split_once(' ').unwrap();
        let (params, end) = rest.rsplit_once("} ").unwrap();
        let (code, word) = end.split_once(' ').unwrap();
        let params: Value =
            serde_json::from_str(&format!("{params}}}").replace("\"NQN\"", &format!("{NQN:?}"))).unwrap();
        let error = host.err(method, params);
        assert_eq!(error.code, code.parse::<i64>().unwrap(), "{line}: {error:?}");
        let told = format!("{} {}", error.message, error.data);
        assert!(told.contains(word), "{line}: {word} is missing in {error:?}");
        assert!(error.data["object"].is_string() && error.data["reason"].is_string(), "{error:?}");
    }
    assert_eq!(subsystem(&mut host), before, "a refusal changed something");
    host.stop();
}

#[test]
fn keys_come_from_private_files_and_belong_to_hosts() {
    use std::os::unix::fs::PermissionsExt;
    let mut host = Host::start("");
    export(&mut host);
    let path = host.scratch().write("key", DHCHAP_KEY);
    let add = json!({ "name": "k0", "path": path });
    let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    let error = host.err("keyring_file_add_key", add.clone());
    assert!(error.code == -22 && error.message.contains("0600"), "{error:?}");
    mode(0o600);
    assert_eq!(host.ok("keyring_file_add_key", add.clone()), true);
    assert_eq!(host.err("keyring_file_add_key", add).code, -17);
    host.ok("nvmf_subsystem_add_host", json!({ "nqn": NQN, "host": HOST, "dhchap_key": "k0" }));
    assert_eq!(subsystem(&mut host)["hosts"], json!([{ "nqn": HOST, "dhchap_key": "k0" }]));
    let keys = host.ok("keyring_get_keys", json!({}));
    assert_eq!((&keys[0]["name"], &keys[0]["path"]), (&json!("k0"), &json!(path)));
    assert_eq!(host.err("keyring_file_remove_key", json!({ "name": "k0" })).code, -16);
    let text = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(text.contains("[[key]]\nname = \"k0\"") && text.contains("dhchap_key = \"k0\""), "{text}");
    let limits = json!({ "nqn": NQN, "host": HOST, "rw_ios_per_sec": 500 });
    host.ok("nvmf_subsystem_set_host_qos_limit", limits);
    assert_eq!(subsystem(&mut host)["hosts"][0]["assigned_rate_limits"]["rw_ios_per_sec"], 500);
    let text = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    assert!(text.contains("rw_ios_per_sec = 500"), "{text}");
    host.ok("nvmf_subsystem_set_host_qos_limit", json!({ "nqn": NQN, "host": HOST }));
    host.ok("nvmf_subsystem_set_keys", json!({ "nqn": NQN, "host": HOST }));
    assert_eq!(subsystem(&mut host)["hosts"], json!([{ "nqn": HOST }]));
    assert_eq!(host.ok("keyring_file_remove_key", json!({ "name": "k0" })), true);
    host.stop();
}

const FILE: &str = r#"
[[subsystem]]
nqn = "nqn.2026-01.io.tenon:one"
serial_number = "S1"
ana_reporting = true
[[subsystem.namespace]]
bdev_name = "p0"
[[subsystem.namespace]]
bdev_name = "late"
[[subsystem.listener]]
trtype = "LOOP"
traddr = "a"
ana_groups = [{ anagrpid = 2, ana_state = "inaccessible" }]
[[subsystem.host]]
nqn = "nqn.2026-01.io.tenon:host"
[[transport]]
trtype = "loop"
[[bdev]]
module = "passthru"
name = "p0"
base = "m0"
[[bdev]]
module = "malloc"
name = "m0"
size = "1MiB"
[[referral]]
traddr = "10.0.0.9"
trsvcid = 8009
"#;

#[test]
fn a_file_exports_in_any_order_and_a_namespace_waits_for_its_device() {
    let mut host = Host::start(FILE);
    let shown = subsystem(&mut host);
    assert_eq!(shown["namespaces"].as_array().unwrap().len(), 1, "{shown}");
    let waiting = host.ok("config_get_waiting", json!({}));
    assert_eq!((&waiting[0]["module"], &waiting[0]["waits_for"]), (&json!("nvmf"), &json!("late")));
    let late = json!({ "name": "late", "num_blocks": 8, "block_size": 512 });
    host.ok("bdev_malloc_create", late.clone());
    let second = |host: &mut Host| subsystem(host)["namespaces"][1]["bdev_name"] == "late";
    wait_for("the namespace", || second(&mut host).then_some(()));
    assert_eq!(subsystem(&mut host)["namespaces"][1]["nsid"], 2);
    // A device that goes takes its namespace along, and brings it back.
    host.ok("bdev_malloc_delete", json!({ "name": "late" }));
    wait_for("the end of the namespace", || (!second(&mut host)).then_some(()));
    host.ok("bdev_malloc_create", late.clone());
    wait_for("the namespace", || second(&mut host).then_some(()));
    // One that an operator removed stays away.
    host.ok("nvmf_subsystem_remove_ns", json!({ "nqn": NQN, "nsid": 2 }));
    host.ok("bdev_malloc_delete", json!({ "name": "late" }));
    host.ok("bdev_malloc_create", late);
    host.ok("bdev_wait_for_examine", json!({}));
    assert!(!second(&mut host));
    host.stop();
}

#[test]
fn a_namespace_follows_its_device_however_fast_that_comes_and_goes() {
    let mut host = Host::start(FILE);
    let late = json!({ "name": "late", "num_blocks": 8, "block_size": 512 });
    for _ in 0..50 {
        host.ok("bdev_malloc_create", late.clone());
        host.ok("bdev_malloc_delete", json!({ "name": "late" }));
    }
    host.ok("bdev_malloc_create", late);
    wait_for("the namespace", || {
        (subsystem(&mut host)["namespaces"][1]["bdev_name"] == "late").then_some(())
    });
    host.stop();
}

#[test]
fn a_reload_changes_only_what_differs() {
    let mut host = Host::start(FILE);
    host.ok("nvmf_create_subsystem", json!({ "nqn": "nqn.2026-01.io.tenon:by-rpc" }));
    let after = FILE
        .replace("bdev_name = \"late\"", "bdev_name = \"m2\"")
        .replace("traddr = \"a\"", "traddr = \"b\"")
        .replace("tenon:host", "tenon:other")
        .replace("10.0.0.9", "10.0.0.8")
        + "[[bdev]]\nmodule = \"malloc\"\nname = \"m2\"\nsize = \"1MiB\"\n[nvmf]\nmax_subsystems = 7\n";
    let before = subsystem(&mut host);
    let _ = host.scratch().write("tenon.toml", &after);
    host.signal(Signal::HUP);
    wait_for("the reload", || (subsystem(&mut host)["namespaces"][1]["bdev_name"] == "m2").then_some(()));
    wait_for("the listener", || {
        (subsystem(&mut host)["listen_addresses"] == json!([address_of_loop("b")])).then_some(())
    });
    let shown = subsystem(&mut host);
    assert_eq!(shown["namespaces"][0], before["namespaces"][0]);
    assert_eq!(shown["hosts"], json!([{ "nqn": "nqn.2026-01.io.tenon:other" }]));
    assert_eq!(host.ok("nvmf_discovery_get_referrals", json!({}))[0]["address"]["traddr"], "10.0.0.8");
    assert_eq!(host.ok("nvmf_get_subsystems", json!({})).as_array().unwrap().len(), 3);
    // A device leaves together with its namespace.
    let _ = host.scratch().write(
        "tenon.toml",
        &after
            .split("[[bdev]]\nmodule = \"malloc\"\nname = \"m2\"")
            .next()
            .unwrap()
            .replace("[[subsystem.namespace]]\nbdev_name = \"m2\"\n", ""),
    );
    assert_eq!(host.ok("config_reload", json!({})), true);
    assert_eq!(subsystem(&mut host)["namespaces"].as_array().unwrap().len(), 1);
    assert!(!host.bdevs().contains(&"m2".to_owned()));
    // And everything that is exported, with the transport.
    let devices = FILE.split("[[bdev]]").skip(1).map(|table| format!("[[bdev]]{table}")).collect::<String>();
    let _ = host.scratch().write("tenon.toml", devices.split("[[referral]]").next().unwrap());
    assert_eq!(host.ok("config_reload", json!({})), true);
    assert_eq!(subsystem(&mut host), Value::Null);
    assert_eq!(host.ok("nvmf_get_transports", json!({})), json!([]));
    host.stop();
}

#[test]
fn reloads_that_meet_are_made_one_after_the_other() {
    let mut host = Host::start(FILE);
    let more = FILE.replace("traddr = \"a\"", "traddr = \"b\"");
    let mut connection = host.connect();
    for round in 0..10 {
        let text = if round % 2 == 0 { &more } else { FILE };
        // As a whole or not at all: the host reads while the next one is written.
        let next = host.scratch().write("next.toml", text);
        std::fs::rename(next, host.scratch().join("tenon.toml")).unwrap();
        connection.send("config_reload", json!({}));
    }
    for _ in 0..10 {
        let reply = connection.receive().expect("a reply");
        assert_eq!(reply["result"], true, "{reply}");
    }
    // The last file written was the one of the start.
    assert_eq!(host.ok("config_reload", json!({})), true);
    assert_eq!(subsystem(&mut host)["listen_addresses"], json!([address_of_loop("a")]));
    host.stop();
}

#[test]
fn a_step_that_fails_is_told_and_tried_again_by_the_next_reload() {
    let mut host = Host::start(FILE);
    let broken = FILE.replace("trtype = \"loop\"", "trtype = \"loop\"\n[[transport]]\ntrtype = \"pigeon\"");
    let _ = host.scratch().write("tenon.toml", &broken);
    for _ in 0..2 {
        let error = host.err("config_reload", json!({}));
        assert!(error.message.contains("transport PIGEON"), "{error:?}");
    }
    let _ = host.scratch().write("tenon.toml", FILE);
    assert_eq!(host.ok("config_reload", json!({})), true);
    host.stop();
}

#[test]
fn a_saved_configuration_exports_the_same() {
    let mut host = Host::start(FILE);
    host.ok("bdev_malloc_create", json!({ "name": "late", "num_blocks": 8, "block_size": 512 }));
    wait_for("the namespace", || subsystem(&mut host)["namespaces"][1].is_object().then_some(()));
    host.ok("nvmf_subsystem_set_ns_ana_group", json!({ "nqn": NQN, "nsid": 1, "anagrpid": 5 }));
    host.ok("nvmf_set_crdt", json!({ "crdt1": 3 }));
    let everything = |host: &mut Host| {
        json!([
            host.ok("nvmf_get_subsystems", json!({})),
            host.ok("nvmf_subsystem_get_listeners", json!({ "nqn": NQN })),
            host.ok("nvmf_discovery_get_referrals", json!({})),
            host.ok("nvmf_get_transports", json!({})),
            host.ok("framework_get_config", json!({ "name": "nvmf" })),
        ])
    };
    let before = everything(&mut host);
    let text = host.ok("save_config", json!({})).as_str().unwrap().to_owned();
    let calls = host.ok("framework_get_config", json!({ "name": "nvmf" }));
    host.stop();
    let mut again = Host::start(&text);
    assert_eq!(everything(&mut again), before, "{text}");
    again.stop();
    // The calls do the same, as `load_config` of an existing client makes them.
    let devices: String = text.split("[nvmf]").next().unwrap().to_owned();
    let mut by_calls = Host::start(&devices);
    for call in calls.as_array().unwrap() {
        by_calls.ok(call["method"].as_str().unwrap(), call["params"].clone());
    }
    assert_eq!(everything(&mut by_calls), before);
    by_calls.stop();
}

#[track_caller]
fn check_refused(text: &str, words: &[&str]) {
    let scratch = Scratch::new();
    let file = scratch.write("bad.toml", text);
    let output = run(&["check", file.to_str().unwrap()]);
    assert_eq!(output.code, 78, "{text}\n{}{}", output.stdout, output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "`{word}` is missing in: {}", output.stderr);
    }
}

#[test]
fn mistakes_in_exports_are_found_without_a_start() {
    let subsystem = "[[subsystem]]\nnqn = \"nqn.2026-01.io.tenon:a\"\n";
    check_refused("[[transport]]\ntrtype = \"LOPO\"\n", &["bad.toml:2", "LOPO", "did you mean `LOOP`"]);
    check_refused(
        "[[transport]]\ntrtype = \"LOOP\"\nmax_queue_dept = 4\n",
        &["bad.toml:3", "max_queue_dept", "did you mean `max_queue_depth`"],
    );
    check_refused(
        "[[transport]]\ntrtype = \"TCP\"\nmax_queue_depth = 1\n",
        &["bad.toml:3", "max_queue_depth is 1", "2 to 4096"],
    );
    check_refused(
        &format!("{subsystem}[[subsystem.listener]]\ntrtype = \"LOOP\"\ntraddr = \"a\"\n"),
        &["bad.toml:3", "there is no [[transport]] LOOP"],
    );
    check_refused(
        &format!("{subsystem}[[subsystem.host]]\nnqn = \"nqn.2026-01.io.tenon:h\"\npsk = \"k\"\n"),
        &["bad.toml:3", "there is no [[key]] k"],
    );
    check_refused(
        &format!("{subsystem}[[subsystem.namespace]]\nbdev_name = \"m0\"\nnsid = 33\n"),
        &["bad.toml:3", "33 is more than max_namespaces, 32"],
    );
    check_refused(&format!("{subsystem}serial = \"x\"\n"), &["bad.toml:3", "did you mean `serial_number`"]);
}

#[test]
fn status_and_start_show_what_is_exported() {
    let host = Host::start(FILE);
    let output = run(&["status", "--rpc-socket", host.socket().to_str().unwrap()]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    for word in ["SUBSYSTEM nqn.2026-01.io.tenon:one", "namespace 1", "p0", "listener  loop a", "for late"] {
        assert!(output.stdout.contains(word), "`{word}` is missing in:\n{}", output.stdout);
    }
    host.stop();
}

#[test]
fn a_listener_that_cannot_listen_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut host = Host::start("[[transport]]\ntrtype = \"TCP\"\n");
    let nqn = "nqn.2026-01.io.tenon:refused";
    host.ok("nvmf_create_subsystem", json!({ "nqn": nqn }));
    // The second is of the documentation's range, which no machine has.
    for (traddr, remedy) in [("127.0.0.1", "choose another trsvcid"), ("192.0.2.1", "correct traddr")] {
        let address = json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": traddr, "trsvcid": port });
        let error = host.err("nvmf_subsystem_add_listener", json!({ "nqn": nqn, "listen_address": address }));
        assert!(error.message.contains(remedy) && error.message.contains(traddr), "{error:?}");
    }
    host.stop();
}
