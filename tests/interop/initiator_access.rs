//! Our initiator proves itself to the kernel's target and secures its channels.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tenon_tests::initiator::states;
use tenon_tests::{Host, Scratch, wait_for};

use crate::access::channel_key;
use crate::kernel::{Tlshd, key_table, sh, try_sh};
use crate::nvmet::{NQN, Nvmet};

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001";

/// Tables of these keys, by name.
fn key_tables(scratch: &Scratch, keys: &[(&str, &str)]) -> String {
    keys.iter().map(|(name, key)| key_table(scratch, name, key)).collect()
}

/// Parameters that attach the target as [`HOST`].
fn parameters(target: &Nvmet, more: &Value) -> Value {
    let mut params = target.way(0, more.clone());
    params["hostnqn"] = HOST.into();
    params
}

fn proof_key(hash: u32) -> String {
    sh(&format!("nvme gen-dhchap-key -m {hash} -n {HOST}")).trim().to_owned()
}

/// A verified load in a process of its own, which attaches with these keys: what it says in the end.
fn load(target: &Nvmet, keys: &[(&str, &str)], more: &Value) -> Result<String, String> {
    let scratch = Scratch::new();
    let mut text = key_tables(&scratch, keys);
    text += "[[bdev]]\nmodule = \"nvme\"\n";
    for (key, value) in parameters(target, more).as_object().unwrap() {
        writeln!(text, "{key} = {value}").unwrap();
    }
    let config = scratch.write("perf.toml", &text);
    let tenon = tenon_tests::tenon();
    try_sh(&format!(
        "timeout 60 {} perf -c {} --bdev nvme0n1 --rw randrw --verify --ios 2000 --seed 7 2>&1",
        tenon.display(),
        config.display()
    ))
}

#[track_caller]
fn carries_data(target: &Nvmet, keys: &[(&str, &str)], more: &Value) {
    let said = load(target, keys, more).unwrap_or_else(|said| panic!("{more}: {said}"));
    assert!(said.contains(" verified, 0 wrong"), "{said}");
}

#[track_caller]
fn is_refused(target: &Nvmet, keys: &[(&str, &str)], more: &Value, reason: &str) {
    let said = load(target, keys, more).expect_err("the target does not take that");
    println!("{more}: {said}");
    assert!(said.contains(reason), "{more}: {said}");
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn the_kernels_target_is_shown_who_we_are_by_every_hash_and_group() {
    let (own, other, stranger) = (proof_key(1), proof_key(2), proof_key(1));
    let keys = [("own", own.as_str()), ("other", &other), ("stranger", &stranger)];
    let target = Nvmet::start(1);
    target.require_key(HOST, &own, Some(&other));
    let groups = ["null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"];
    let hashes = ["hmac(sha256)", "hmac(sha384)", "hmac(sha512)"].map(|hash| (hash, "ffdhe2048"));
    for (hash, group) in hashes.into_iter().chain(groups.map(|group| ("hmac(sha256)", group))) {
        target.set_algorithms(HOST, hash, group);
        println!("{hash} {group}");
        carries_data(&target, &keys, &json!({ "dhchap_key": "own" }));
        carries_data(&target, &keys, &json!({ "dhchap_key": "own", "dhchap_ctrlr_key": "other" }));
    }
    is_refused(&target, &keys, &json!({}), "authentication");
    is_refused(&target, &keys, &json!({ "dhchap_key": "stranger" }), "authentication");
    // The target is who does not prove itself.
    let wrong = json!({ "dhchap_key": "own", "dhchap_ctrlr_key": "stranger" });
    is_refused(&target, &keys, &wrong, "authentication");
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn keys_change_while_the_kernels_target_is_used() {
    let (first, second) = (proof_key(1), proof_key(1));
    let target = Nvmet::start(1);
    target.require_key(HOST, &first, None);
    let scratch = Scratch::new();
    let text = key_tables(&scratch, &[("first", &first), ("second", &second)]);
    let mut host = Host::start_in(scratch, &text, &[]);
    let patient = json!({ "dhchap_key": "first", "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1 });
    host.ok("bdev_nvme_attach_controller", parameters(&target, &patient));
    let set = |host: &mut Host, key: &str| {
        host.call("bdev_nvme_set_keys", json!({ "name": "nvme0", "dhchap_key": key }))
    };
    set(&mut host, "second").expect_err("the target still wants the first");
    // That was fatal for the kernel's controller; the next one is shown the first key.
    wait_for("the loss", || (states(&mut host) != ["enabled"]).then_some(()));
    wait_for("the return", || (states(&mut host) == ["enabled"]).then_some(()));
    target.set_key(HOST, &second);
    set(&mut host, "second").unwrap();
    assert_eq!(states(&mut host), ["enabled"]);
    host.stop();
}

#[test]
#[ignore = "needs the kernel of cargo xtask interop"]
fn secure_channels_to_the_kernels_target_carry_data() {
    for (hash, number) in [("01", 1), ("02", 2)] {
        let (own, stranger) = (channel_key(number), channel_key(number));
        let keys = [("own", own.as_str()), ("stranger", &stranger)];
        let target = Nvmet::start_secured();
        let tlshd = Tlshd::start(hash, &own, HOST, NQN);
        carries_data(&target, &keys, &json!({ "psk": "own" }));
        carries_data(&target, &keys, &json!({ "psk": "own", "hdgst": true, "ddgst": true }));
        is_refused(&target, &keys, &json!({ "psk": "stranger" }), "cannot be secured");
        is_refused(&target, &keys, &json!({}), "nvme0");
        drop(tlshd);
        target.stop();
    }
}
