//! In-band authentication, the nvme module against the target core: every queue
//! proves who it is, keys rotate under load, and nothing else gets in.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tenon_nvmf_target::{AuthenticationOptions, DhGroupId, HashId, HostKeys};

use crate::load::Load;
use crate::survive::{drain, run};
use crate::world::{NQN, ONE, World, for_seeds};

const HOST: &str = "nqn.2026-01.io.tenon:authenticated";

/// Keys as `nvme gen-dhchap-key` writes them: secrets of 32 equal bytes, of 48, and of 64.
const KEYS: [(&str, &str); 3] = [
    ("one", "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:"),
    ("two", "DHHC-1:00:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwfLJNij:"),
    ("tls", "NVMeTLSkey-1:00:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwfLJNij:"),
];

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tenon-sim-{name}-{}", std::process::id()));
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    path
}

fn keys(host: &str, controller: Option<&str>) -> HostKeys {
    let controller = controller.map(str::to_owned);
    HostKeys { psk: None, dhchap_key: Some(host.to_owned()), dhchap_ctrlr_key: controller }
}

/// A subsystem whose host has keys, with one namespace.
fn serve(world: &World, keys: HostKeys) {
    for (name, text) in KEYS {
        let path = file(name, text);
        world.wait(|world, reply| world.target.add_key_file(name, &path, reply)).expect("a key");
    }
    world.device("m0", 1024);
    world.subsystem(&["a"]);
    world.on(|world| world.target.add_host_with_keys(NQN, HOST, keys)).expect("a host");
    world.add_namespace(1, "m0", ONE);
}

fn attach(world: &World, keys: Value) -> Result<Value, String> {
    let mut params = json!({ "hostnqn": HOST });
    let more = keys.as_object().cloned().unwrap_or_default();
    params.as_object_mut().expect("an object").extend(more);
    world.attach("a", params).map_err(|error| error.to_string())
}

/// How the queues of the subsystem have authenticated.
fn proven(world: &World) -> Vec<Option<(HashId, DhGroupId)>> {
    let queues = world.wait(|world, reply| world.target.queues(NQN, reply)).expect("answers");
    queues.iter().map(|queue| queue.authentication.and_then(|it| it.proven)).collect()
}

#[test]
fn every_queue_authenticates_one_way_and_both_ways_by_what_both_sides_have() {
    let combinations = [
        (HashId::SHA_256, DhGroupId::NULL, "null", "sha256"),
        (HashId::SHA_384, DhGroupId::FFDHE_2048, "ffdhe2048", "sha384"),
        (HashId::SHA_512, DhGroupId::FFDHE_3072, "ffdhe3072", "sha512"),
    ];
    for_seeds(6, |world| {
        let (hash, group, group_word, hash_word) = combinations[world.roll(3) as usize];
        let is_mutual = world.roll(2) == 0;
        serve(world, keys("one", Some("two")));
        // Either side may be the one that leaves no choice.
        if world.roll(2) == 0 {
            let options = AuthenticationOptions { hashes: vec![hash], groups: vec![group] };
            world.on(|world| world.target.set_authentication(options)).expect("known");
        } else {
            let options = json!({ "dhchap_digests": [hash_word], "dhchap_dhgroups": [group_word] });
            world.rpc("bdev_nvme_set_options", options).expect("options");
        }
        let given = match is_mutual {
            true => json!({ "dhchap_key": "one", "dhchap_ctrlr_key": "two" }),
            false => json!({ "dhchap_key": "one" }),
        };
        assert_eq!(attach(world, given).expect("attaches"), json!(["nvme0n1"]));
        let load = Load::open(world, "nvme0n1", 0);
        run(world, &load, 50);
        let queues = proven(world);
        assert!(queues.len() >= 2 && queues.iter().all(|it| *it == Some((hash, group))), "{queues:?}");
        // A lost target is authenticated anew.
        world.kill_subsystem();
        run(world, &load, 1 + world.roll(1500));
        world.subsystem(&["a"]);
        world
            .on(|world| world.target.add_host_with_keys(NQN, HOST, keys("one", Some("two"))))
            .expect("a host");
        world.add_namespace(1, "m0", ONE);
        world.serves_within(5);
        drain(world, &load, 10);
        assert!(load.failed.borrow().is_empty() && load.good.get() > 0);
        load.close(world);
        let held = world.on(|world| world.target.remove_key("one"));
        assert!(held.is_err(), "a key in use stays");
        world.rpc("bdev_nvme_detach_controller", json!({ "name": "nvme0" })).expect("detaches");
    });
}

#[test]
fn who_does_not_prove_itself_is_refused_with_words() {
    for_seeds(4, |world| {
        serve(world, keys("one", Some("two")));
        #[track_caller]
        fn refused(world: &World, keys: Value, words: &str) {
            let error = attach(world, keys).expect_err("refused");
            assert!(error.contains(words), "{error}");
            assert!(!error.contains("DHHC-1:"), "no secret is told: {error}");
            assert_eq!(world.controllers(), Vec::<String>::new());
        }
        refused(world, json!({}), "no dhchap_key");
        refused(world, json!({ "dhchap_key": "two" }), "the controller refuses this host");
        let wrong = json!({ "dhchap_key": "one", "dhchap_ctrlr_key": "one" });
        refused(world, wrong, "did not prove");
        refused(world, json!({ "dhchap_key": "none" }), "there is no key of this name");
        refused(world, json!({ "dhchap_key": "tls" }), "must be a DHHC-1 key");
        refused(world, json!({ "psk": "one" }), "must be an NVMeTLSkey-1 key");
        refused(world, json!({ "dhchap_ctrlr_key": "one" }), "needs a dhchap_key");
        refused(world, json!({ "dhchap_key": "one", "psk": "tls" }), "cannot secure a channel");
        for (name, _) in KEYS {
            let users = world.on(|world| world.target.keys());
            let users = users.iter().find(|key| key.name == name).map(|key| key.users);
            assert_eq!(users, Some([1, 1, 0][KEYS.iter().position(|key| key.0 == name).expect("one")]));
        }
    });
}

#[test]
fn keys_rotate_under_load_and_wrong_ones_change_nothing() {
    for_seeds(6, |world| {
        serve(world, keys("one", None));
        assert_eq!(attach(world, json!({ "dhchap_key": "one" })).expect("attaches"), json!(["nvme0n1"]));
        let load = Load::open(world, "nvme0n1", world.roll(2) as usize);
        run(world, &load, 20);
        let rotate =
            |key: &str| world.on(|world| world.target.set_host_keys(NQN, HOST, Some(key.into()), None));
        let set = |key: &str| world.rpc("bdev_nvme_set_keys", json!({ "name": "nvme0", "dhchap_key": key }));
        rotate("two").expect("known");
        set("two").expect("the new key is right");
        run(world, &load, 50);
        assert_eq!(world.controllers(), ["enabled"]);
        let error = set("one").expect_err("the old key is wrong by now").to_string();
        assert!(error.contains("authentication failed"), "{error}");
        // The target ends a connection that fails to prove itself; it comes back with the key that is right.
        run(world, &load, 1500);
        world.serves_within(5);
        assert!(set("none").is_err());
        run(world, &load, 20);
        drain(world, &load, 10);
        assert!(load.failed.borrow().is_empty());
        load.close(world);
        world.rpc("bdev_nvme_detach_controller", json!({ "name": "nvme0" })).expect("detaches");
        world.advance(Duration::from_millis(10));
    });
}
