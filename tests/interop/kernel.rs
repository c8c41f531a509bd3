//! The kernel's host as an operator drives it: nvme-cli to act, sysfs to look.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tenon_tests::{Host, Scratch, wait_for};

/// The subsystem every scenario exports.
pub const NQN: &str = "nqn.2026-01.io.tenon:interop";
/// Where it is reached.
pub const PORT: u16 = 4420;
/// The second way to it.
pub const SECOND_PORT: u16 = 4421;

/// A host with a malloc device of 64 MiB as namespace 1; `more` is further configuration.
pub fn target(more: &str) -> Host {
    Host::start(&config("allow_any_host = true\nana_reporting = true", more))
}

/// The configuration of [`target`]; `subsystem` are keys of the subsystem.
pub fn config(subsystem: &str, more: &str) -> String {
    format!(
        r#"
[[bdev]]
module = "malloc"
name = "m0"
size = "64MiB"
block_size = 512
[[transport]]
trtype = "TCP"
[[subsystem]]
nqn = "{NQN}"
{subsystem}
[[subsystem.namespace]]
bdev_name = "m0"
[[subsystem.listener]]
traddr = "127.0.0.1"
trsvcid = {PORT}
{more}
"#
    )
}

/// A `[[subsystem.listener]]` of the second way.
pub fn second_listener() -> String {
    format!("[[subsystem.listener]]\ntraddr = \"127.0.0.1\"\ntrsvcid = {SECOND_PORT}\n")
}

/// Runs a shell line that must succeed; gives what it printed.
#[track_caller]
pub fn sh(line: &str) -> String {
    match try_sh(line) {
        Ok(text) => text,
        Err(text) => panic!("`{line}` failed:\n{text}"),
    }
}

/// Runs a shell line; gives what it printed, or that with its errors.
pub fn try_sh(line: &str) -> Result<String, String> {
    let output = Command::new("/bin/bash").args(["-c", line]).output().expect("a shell runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{text}{}{}", String::from_utf8_lossy(&output.stderr), output.status))
}

/// Connects with further options and waits until the controller is live; gives its name.
#[track_caller]
pub fn connect(options: &str) -> String {
    let before = controllers();
    sh(&format!("nvme connect -t tcp -a 127.0.0.1 -n {NQN} {}", with_port(options)));
    wait_for("the controller", || {
        let new = controllers().into_iter().find(|(name, _)| !before.contains_key(name));
        new.filter(|(_, state)| state == "live").map(|(name, _)| name)
    })
}

/// Connects as a host of that name, past nvme-cli, which takes all hosts for one; gives the controller's name.
#[track_caller]
pub fn connect_as(hostnqn: &str, hostid: &str) -> String {
    try_connect_as(hostnqn, hostid, "").expect("the host is let in")
}

/// The same with further options of the kernel, such as `,tls`.
pub fn try_connect_as(hostnqn: &str, hostid: &str, options: &str) -> Result<String, String> {
    let before = controllers();
    try_sh(&format!(
        "echo -n transport=tcp,traddr=127.0.0.1,trsvcid={PORT},nqn={NQN},hostnqn={hostnqn},hostid={hostid}{options} >/dev/nvme-fabrics"
    ))?;
    Ok(wait_for("the controller", || {
        let new = controllers().into_iter().find(|(name, _)| !before.contains_key(name));
        new.filter(|(_, state)| state == "live").map(|(name, _)| name)
    }))
}

/// What secures connections of this kernel, until it is dropped; see `tlshd.c`.
pub struct Tlshd(Child);

impl Tlshd {
    /// With one key in the interchange format, of which `hash` is 01 (SHA-256) or 02 (SHA-384).
    #[track_caller]
    pub fn start(hash: &str, key: &str, hostnqn: &str, subnqn: &str) -> Tlshd {
        let source = tenon_tests::root().join("tests/interop/tlshd.c");
        sh(&format!("gcc -O1 -o /run/tlshd {} -lssl -lcrypto", source.display()));
        let mut child = Command::new("/run/tlshd")
            .args([hash, key, hostnqn, subnqn])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was compiled");
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("a pipe");
        assert_eq!(line.trim(), "ready");
        Tlshd(child)
    }
}

impl Drop for Tlshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes a file that only its owner reads, as keys must be.
pub fn secret(scratch: &Scratch, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = scratch.write(name, text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("the file is ours");
    path
}

/// A `[[key]]` table of that name, with the key in a file.
pub fn key_table(scratch: &Scratch, name: &str, key: &str) -> String {
    format!("[[key]]\nname = \"{name}\"\npath = \"{}\"\n", secret(scratch, name, key).display())
}

/// The options with the usual port, unless they name one.
pub fn with_port(options: &str) -> String {
    if options.contains("-s ") { options.to_owned() } else { format!("-s {PORT} {options}") }
}

/// Controllers of fabrics by name, with their state.
pub fn controllers() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/sys/class/nvme").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(state) = attribute(&format!("/sys/class/nvme/{name}/state")) {
            found.insert(name, state);
        }
    }
    found
}

/// A file of sysfs, without its line end.
pub fn attribute(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

/// The block device of a namespace of [`NQN`], once it is there.
#[track_caller]
pub fn device(nsid: u32) -> PathBuf {
    wait_for("the block device", || find_device(nsid))
}

/// The block device of a namespace of [`NQN`].
pub fn find_device(nsid: u32) -> Option<PathBuf> {
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let of_it = |key: &str| attribute(&format!("/sys/block/{name}/{key}"));
        // A path of a multipath device is named nvme0c0n1 and is no device of its own.
        let is_device = name.starts_with("nvme") && !name[4..].contains('c');
        let nqn = of_it("device/subsysnqn");
        if is_device && nqn.as_deref() == Some(NQN) && of_it("nsid").as_deref() == Some(&nsid.to_string()) {
            let path = Path::new("/dev").join(name);
            return path.exists().then_some(path);
        }
    }
    None
}

/// Size of a block device in bytes.
pub fn size_of(device: &Path) -> u64 {
    let name = device.file_name().expect("a device has a name").to_string_lossy().into_owned();
    attribute(&format!("/sys/block/{name}/size")).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 512
}

/// A load that checks what it wrote, in the background.
pub struct Load(Child);

impl Load {
    /// Writes and checks random blocks of `device` for so many seconds.
    pub fn start(device: &Path, seconds: u32) -> Load {
        let child = Command::new("fio")
            .args(["--name=load", "--ioengine=psync", "--direct=1", "--rw=randwrite", "--bs=4k"])
            .args(["--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--time_based"])
            .arg("--size=16M")
            .arg(format!("--runtime={seconds}"))
            .arg(format!("--filename={}", device.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("fio runs");
        Load(child)
    }

    /// Waits for its end; what it read must be what it wrote.
    #[track_caller]
    pub fn finish(self) {
        let output = self.0.wait_with_output().expect("own child");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "fio: {}\n{text}{errors}", output.status);
        assert!(text.contains("err= 0"), "{text}{errors}");
    }
}

/// Controllers as the target counts them.
pub fn target_controllers(host: &mut Host) -> usize {
    let list = host.ok("nvmf_subsystem_get_controllers", serde_json::json!({ "nqn": NQN }));
    list.as_array().map_or(0, Vec::len)
}

/// Ends all connections, then the target, which must have nothing left.
#[track_caller]
pub fn finish(mut host: Host) {
    sh("nvme disconnect-all");
    wait_for("the end of the controllers", || controllers().is_empty().then_some(()));
    wait_for("the target's end of them", || (target_controllers(&mut host) == 0).then_some(()));
    let counts = host.ok("debug_get_object_counts", serde_json::json!({}))["nvmf"].clone();
    assert_eq!((&counts["queues"], &counts["controllers"]), (&0.into(), &0.into()), "{counts}");
    host.stop();
}
