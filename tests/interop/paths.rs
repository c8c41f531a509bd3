//! Several ways to one namespace: ANA states and native multipath.

use serde_json::json;
use tenon_tests::{Host, wait_for};

use crate::kernel::{
    Load, NQN, PORT, SECOND_PORT, attribute, connect, device, finish, second_listener, target,
};

fn set_state(host: &mut Host, port: u16, state: &str) {
    let address =
        json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port.to_string() });
    host.ok(
        "nvmf_subsystem_listener_set_ana_state",
        json!({ "nqn": NQN, "listen_address": address, "ana_state": state }),
    );
}

/// ANA state of the only path of a controller, as the kernel has it.
fn state_of(controller: &str) -> Option<String> {
    let folder = format!("/sys/class/nvme/{controller}");
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(state) = attribute(&format!("{folder}/{name}/ana_state")) {
            return Some(state);
        }
    }
    None
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn every_ana_state_reaches_the_kernel() {
    let mut host = target("");
    let controller = connect("");
    device(1);
    for (state, word) in [
        ("non_optimized", "non-optimized"),
        ("inaccessible", "inaccessible"),
        ("optimized", "optimized"),
        ("change", "change"),
        ("persistent_loss", "persistent-loss"),
        ("optimized", "optimized"),
    ] {
        set_state(&mut host, PORT, state);
        wait_for(state, || (state_of(&controller).as_deref() == Some(word)).then_some(()));
    }
    finish(host);
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn a_load_moves_to_the_path_that_is_left() {
    let mut host = target(&second_listener());
    let first = connect("");
    let second = connect(&format!("-s {SECOND_PORT}"));
    let load = Load::start(&device(1), 6);
    for _ in 0..3 {
        set_state(&mut host, PORT, "inaccessible");
        wait_for("the first path's end", || {
            (state_of(&first).as_deref() == Some("inaccessible")).then_some(())
        });
        set_state(&mut host, PORT, "optimized");
        wait_for("its return", || (state_of(&first).as_deref() == Some("optimized")).then_some(()));
        set_state(&mut host, SECOND_PORT, "inaccessible");
        wait_for("the second's end", || (state_of(&second).as_deref() == Some("inaccessible")).then_some(()));
        set_state(&mut host, SECOND_PORT, "non_optimized");
        wait_for("its return", || (state_of(&second).as_deref() == Some("non-optimized")).then_some(()));
    }
    load.finish();
    finish(host);
}
