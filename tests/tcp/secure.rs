//! Secure channels: TLS 1.3 with a pre-shared key, spoken by OpenSSL's own client and by the nvme module.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::json;
use tenon_tests::{Host, Scratch};

use crate::speaker::{Data, HOSTNQN, Speaker, identify, pattern};
use crate::{NQN, PLAIN, free_address, listen_address, wait_for_gone};

/// A key in the interchange format, and what it derives for [`HOSTNQN`] and [`NQN`], computed elsewhere.
struct Key {
    text: &'static str,
    identity: &'static str,
    suite: &'static str,
    psk: &'static str,
}

const SHA_256: Key = Key {
    text: "NVMeTLSkey-1:00:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwfLJNij:",
    identity: "NVMe0R01",
    suite: "TLS_AES_128_GCM_SHA256",
    psk: "b90c7db7b991fa68ab5475cfbf80aa59a67a37bb4980f120b99ecf3e2b939ef5",
};
const SHA_384: Key = Key {
    text: "NVMeTLSkey-1:00:CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJnSBpqw==:",
    identity: "NVMe0R02",
    suite: "TLS_AES_256_GCM_SHA384",
    psk: "2cbacf912efa485481c2b63724a0d62e3e5b0bfaa5bbcd4553859aea4db84f0e71bf8c9615f70c4160714478f515c94a",
};

/// The key of [`SHA_384`] as a session, the only form in which OpenSSL's client takes one of that hash: version,
/// protocol, cipher suite, no identifier, key, time, time-out.
const SESSION_384: &str = "-----BEGIN SSL SESSION PARAMETERS-----
ME8CAQECAgMEBAITAgQABDAsus+RLvpIVIHCtjckoNYuPlsL+qW7zUVThZrqTbhP
DnG/jJYV9wxBYHFEePUVyUqhBgIEZVPxAKIGAgR/////
-----END SSL SESSION PARAMETERS-----
";

/// OpenSSL's client, whose standard input and output are the channel's plain bytes.
struct Client {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
}

impl Client {
    fn start(address: SocketAddr, identity: &str, suite: &str, key: [&str; 2]) -> Client {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-nocommands", "-tls1_3", "-connect", &address.to_string()])
            .args(["-psk_identity", identity, "-ciphersuites", suite])
            .args(key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        let (to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Client { child, to, from }
    }

    fn of(address: SocketAddr, key: &Key, scratch: &Scratch) -> Client {
        let session = scratch.write("session.pem", SESSION_384);
        let how = match key.identity {
            "NVMe0R02" => ["-psk_session", session.to_str().expect("a plain path")],
            _ => ["-psk", key.psk],
        };
        Client::start(address, &format!("{} {HOSTNQN} {NQN}", key.identity), key.suite, how)
    }
}

impl Read for Client {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.from.read(bytes)
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.to.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process with a secured listener, and one host with this key.
fn serve(key: &Key) -> (Host, SocketAddr) {
    let scratch = Scratch::new();
    let path = scratch.write("key", key.text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("the file is ours");
    let mut host = Host::start_in(scratch, "", &[]);
    host.ok("nvmf_create_transport", json!({ "trtype": "TCP" }));
    host.ok("bdev_malloc_create", json!({ "name": "m0", "num_blocks": 8192, "block_size": 512 }));
    host.ok("nvmf_create_subsystem", json!({ "nqn": NQN }));
    host.ok("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": { "bdev_name": "m0" } }));
    host.ok("keyring_file_add_key", json!({ "name": "k0", "path": path }));
    host.ok("nvmf_subsystem_add_host", json!({ "nqn": NQN, "host": HOSTNQN, "psk": "k0" }));
    let address = free_address();
    let listener = json!({ "nqn": NQN, "listen_address": listen_address(address), "secure_channel": true });
    host.ok("nvmf_subsystem_add_listener", listener);
    (host, address)
}

fn moves_data(key: &Key) {
    let (mut host, address) = serve(key);
    let mut admin = Speaker::over(Box::new(Client::of(address, key, host.scratch())), PLAIN);
    assert!(admin.shakes_hands());
    let cntlid = admin.become_admin(NQN);
    assert!(admin.command(identify(), Data::In(4096)).0.status.is_success());
    let mut io = Speaker::over(Box::new(Client::of(address, key, host.scratch())), PLAIN);
    assert!(io.shakes_hands());
    io.become_io(NQN, 1, cntlid);
    for (at, len) in [(0, 512), (8, 4096), (64, 65_536), (1024, 1 << 20)] {
        let data = pattern(len as u64, len);
        io.write(at, &data);
        assert!(io.read(at, len) == data, "{len} bytes differ");
    }
    drop((io, admin));
    wait_for_gone(&mut host);
    host.stop();
}

#[test]
fn a_secured_channel_moves_data_with_sha_256() {
    moves_data(&SHA_256);
}

#[test]
fn a_secured_channel_moves_data_with_sha_384() {
    moves_data(&SHA_384);
}

#[test]
fn a_client_with_several_cipher_suites_gets_that_of_its_key() {
    let (host, address) = serve(&SHA_256);
    let identity = format!("{} {HOSTNQN} {NQN}", SHA_256.identity);
    let both = format!("{}:{}", SHA_384.suite, SHA_256.suite);
    let client = Client::start(address, &identity, &both, ["-psk", SHA_256.psk]);
    assert!(Speaker::over(Box::new(client), PLAIN).shakes_hands());
    host.stop();
}

#[test]
fn a_wrong_key_identity_or_plain_text_ends_the_connection() {
    let (mut host, address) = serve(&SHA_256);
    let wrong_key = Client::start(
        address,
        &format!("NVMe0R01 {HOSTNQN} {NQN}"),
        SHA_256.suite,
        ["-psk", &"ab".repeat(32)],
    );
    assert!(!Speaker::over(Box::new(wrong_key), PLAIN).shakes_hands());
    let unknown = format!("NVMe0R01 {HOSTNQN} nqn.2026-01.io.tenon:other");
    let unknown = Client::start(address, &unknown, SHA_256.suite, ["-psk", SHA_256.psk]);
    assert!(!Speaker::over(Box::new(unknown), PLAIN).shakes_hands());
    assert!(!Speaker::dial(address, PLAIN).shakes_hands(), "not without TLS");
    wait_for_gone(&mut host);
    let mut good = Speaker::over(Box::new(Client::of(address, &SHA_256, host.scratch())), PLAIN);
    assert!(good.shakes_hands());
    host.stop();
}

#[test]
fn a_channel_is_for_the_subsystem_its_key_is_for() {
    let (mut host, address) = serve(&SHA_256);
    let other = "nqn.2026-01.io.tenon:other";
    host.ok("nvmf_create_subsystem", json!({ "nqn": other, "allow_any_host": true }));
    let listener = json!({ "nqn": other, "listen_address": listen_address(address), "secure_channel": true });
    host.ok("nvmf_subsystem_add_listener", listener);
    let mut speaker = Speaker::over(Box::new(Client::of(address, &SHA_256, host.scratch())), PLAIN);
    assert!(speaker.shakes_hands());
    assert!(!speaker.connect(other, 0, 0xffff).status.is_success());
}

/// A second process whose table attaches to the first over secured channels, and exports what it finds in the clear.
#[track_caller]
fn attaches_over_tls(key: &Key, version: u8) {
    let (host, address) = serve(key);
    let scratch = Scratch::new();
    let path = scratch.write("key", key.text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("the file is ours");
    let config = format!(
        "[[key]]\nname = \"k0\"\npath = {path:?}\n\
         [[bdev]]\nmodule = \"nvme\"\nname = \"nvme0\"\ntrtype = \"TCP\"\ntraddr = \"{}\"\n\
         trsvcid = \"{}\"\nsubnqn = \"{NQN}\"\nhostnqn = \"{HOSTNQN}\"\npsk = \"k0\"\n\
         psk_identity_version = {version}\n",
        address.ip(),
        address.port(),
    );
    let mut initiator = Host::start_in(scratch, &config, &[]);
    let nqn = "nqn.2026-01.io.tenon:again";
    initiator.ok("nvmf_create_transport", json!({ "trtype": "TCP" }));
    initiator.ok("nvmf_create_subsystem", json!({ "nqn": nqn, "allow_any_host": true }));
    initiator.ok("nvmf_subsystem_add_ns", json!({ "nqn": nqn, "namespace": { "bdev_name": "nvme0n1" } }));
    let plain = free_address();
    let listener = json!({ "nqn": nqn, "listen_address": listen_address(plain) });
    initiator.ok("nvmf_subsystem_add_listener", listener);
    let mut admin = Speaker::dial(plain, PLAIN);
    assert!(admin.shakes_hands());
    let cntlid = admin.become_admin(nqn);
    let mut io = Speaker::dial(plain, PLAIN);
    assert!(io.shakes_hands());
    io.become_io(nqn, 1, cntlid);
    for (at, len) in [(0, 512), (64, 65_536), (1024, 1 << 20)] {
        let data = pattern(len as u64, len);
        io.write(at, &data);
        assert!(io.read(at, len) == data, "{len} bytes differ");
    }
    drop((io, admin));
    initiator.stop();
    host.stop();
}

#[test]
fn the_nvme_module_attaches_over_a_secured_channel() {
    attaches_over_tls(&SHA_256, 0);
    attaches_over_tls(&SHA_384, 1);
}

#[test]
fn the_nvme_module_attaches_nowhere_with_a_wrong_key_or_none() {
    let (mut host, address) = serve(&SHA_256);
    let path = host.scratch().write("other", SHA_384.text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("the file is ours");
    host.ok("keyring_file_add_key", json!({ "name": "other", "path": path }));
    for psk in [json!({ "psk": "other" }), json!({})] {
        let mut params = json!({
            "name": "nvme0", "trtype": "TCP", "traddr": address.ip().to_string(),
            "trsvcid": address.port().to_string(), "subnqn": NQN, "hostnqn": HOSTNQN,
            "fabrics_connect_timeout_us": 2_000_000,
        });
        let more = psk.as_object().cloned().unwrap_or_default();
        params.as_object_mut().expect("an object").extend(more);
        let error = host.call("bdev_nvme_attach_controller", params).expect_err("refused");
        assert!(!format!("{error:?}").contains("NVMeTLSkey"), "no secret is told");
    }
    host.stop();
}
