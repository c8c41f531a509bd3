//! Changes under a connection: namespaces, listeners, reloads. Loads on what
//! does not change must not notice.

use rustix::process::Signal;
use serde_json::json;
use tenon_tests::wait_for;

use crate::kernel::{
    Load, NQN, PORT, config, connect, controllers, device, find_device, finish, second_listener, size_of,
    target,
};

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn namespaces_come_go_and_grow_under_load() {
    let mut host = target("");
    connect("");
    let load = Load::start(&device(1), 4);
    host.ok("bdev_null_create", json!({ "name": "n0", "num_blocks": 2048, "block_size": 512 }));
    let add = json!({ "nqn": NQN, "namespace": { "bdev_name": "n0" } });
    assert_eq!(host.ok("nvmf_subsystem_add_ns", add.clone()), 2);
    let second = device(2);
    assert_eq!(size_of(&second), 1 << 20);
    host.ok("bdev_null_resize", json!({ "name": "n0", "new_size": 4 }));
    wait_for("the new size", || (size_of(&second) == 4 << 20).then_some(()));
    host.ok("nvmf_subsystem_remove_ns", json!({ "nqn": NQN, "nsid": 2 }));
    wait_for("the end of the device", || find_device(2).is_none().then_some(()));
    host.ok("nvmf_subsystem_add_ns", add);
    device(2);
    // Its device goes: so does the namespace.
    host.ok("bdev_null_delete", json!({ "name": "n0" }));
    wait_for("the end of the device", || find_device(2).is_none().then_some(()));
    load.finish();
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_reload_leaves_connections_alone() {
    let mut host = target("");
    let controller = connect("");
    let before = host.ok("nvmf_subsystem_get_controllers", json!({ "nqn": NQN }));
    let load = Load::start(&device(1), 4);
    let more = "[[subsystem.namespace]]\nbdev_name = \"m1\"\n".to_owned()
        + &second_listener()
        + "[[bdev]]\nmodule = \"malloc\"\nname = \"m1\"\nsize = \"8MiB\"\n";
    let common = "allow_any_host = true\nana_reporting = true";
    let _ = host.scratch().write("tenon.toml", &config(common, &more));
    host.signal(Signal::HUP);
    assert_eq!(size_of(&device(2)), 8 << 20);
    wait_for("the second listener", || {
        let listeners = host.ok("nvmf_subsystem_get_listeners", json!({ "nqn": NQN }));
        (listeners.as_array().unwrap().len() == 2).then_some(())
    });
    let _ = host.scratch().write("tenon.toml", &config(common, ""));
    assert_eq!(host.ok("config_reload", json!({})), true);
    wait_for("the end of the second device", || find_device(2).is_none().then_some(()));
    load.finish();
    assert_eq!(host.ok("nvmf_subsystem_get_controllers", json!({ "nqn": NQN })), before);
    assert_eq!(controllers().get(&controller).map(String::as_str), Some("live"));
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_listener_goes_and_returns() {
    let mut host = target("");
    let controller = connect("--reconnect-delay 1 --ctrl-loss-tmo 60");
    let load = Load::start(&device(1), 6);
    let listener = json!({
        "nqn": NQN,
        "listen_address": { "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": PORT.to_string() }
    });
    host.ok("nvmf_subsystem_remove_listener", listener.clone());
    wait_for("the loss", || {
        (controllers().get(&controller).map(String::as_str) == Some("connecting")).then_some(())
    });
    host.ok("nvmf_subsystem_add_listener", listener);
    wait_for("the return", || {
        (controllers().get(&controller).map(String::as_str) == Some("live")).then_some(())
    });
    load.finish();
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_pause_holds_commands_and_keeps_the_connection() {
    let mut host = target("");
    let controller = connect("--keep-alive-tmo 2");
    let load = Load::start(&device(1), 6);
    for _ in 0..3 {
        host.ok("nvmf_subsystem_pause", json!({ "nqn": NQN, "deadline_ms": 1000 }));
        wait_for("the pause's own end", || {
            let shown = host.ok("nvmf_get_subsystems", json!({ "nqn": NQN }));
            (shown[0]["state"] == "active").then_some(())
        });
    }
    load.finish();
    assert_eq!(controllers().get(&controller).map(String::as_str), Some("live"));
    finish(host);
}
