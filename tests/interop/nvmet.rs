//! The kernel's own target, for our initiator: set up by configfs as its
//! administrators do, with a file as its namespace.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tenon_tests::initiator::{self, Load};

use crate::kernel::sh;

/// The subsystem it exports.
pub const NQN: &str = "nqn.2026-01.io.tenon:kernel";
/// Its namespace.
pub const ONE: &str = "11111111-1111-4111-8111-111111111111";
/// Another that may take its place.
pub const TWO: &str = "22222222-2222-4222-8222-222222222222";

const ROOT: &str = "/sys/kernel/config/nvmet";
const DISK: &str = "/run/kernel-disk";

/// The target with so many ports, each an ANA group state of its own; namespace 1 is in group 1.
pub struct Nvmet {
    ports: Vec<initiator::Path>,
}

impl Nvmet {
    /// Exports [`DISK`] by so many ports, to all hosts.
    pub fn start(ports: u16) -> Nvmet {
        Self::start_with(ports, |_| ())
    }

    /// The same with one port that takes only secure channels.
    pub fn start_secured() -> Nvmet {
        Self::start_with(1, |port| {
            set(&port.join("addr_tsas"), "tls1.3");
            set(&port.join("addr_treq"), "required");
        })
    }

    fn start_with(ports: u16, secure: impl Fn(&Path)) -> Nvmet {
        sh("mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config");
        sh(&format!("truncate -s 16M {DISK}; truncate -s 16M {DISK}.other"));
        fs::create_dir(subsystem()).unwrap();
        set(&subsystem().join("attr_allow_any_host"), "1");
        let nvmet = Nvmet { ports: (0..ports).map(way).collect() };
        nvmet.add_namespace(1, DISK, ONE);
        for at in 0..nvmet.ports.len() {
            let port = nvmet.port(at);
            fs::create_dir(&port).unwrap();
            let service = nvmet.ports[at].trsvcid.to_string();
            for (key, value) in
                [("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", "127.0.0.1"), ("trsvcid", &service)]
            {
                set(&port.join(format!("addr_{key}")), value);
            }
            secure(&port);
            nvmet.listen(at);
        }
        nvmet
    }

    /// Ways to it.
    pub fn paths(&self) -> &[initiator::Path] {
        &self.ports
    }

    /// Parameters that attach one of them; `more` are further ones.
    pub fn way(&self, path: usize, more: Value) -> Value {
        let (mut params, way) = (more, &self.ports[path]);
        for (key, value) in
            [("name", "nvme0"), ("trtype", "TCP"), ("traddr", way.traddr.as_str()), ("subnqn", NQN)]
        {
            params[key] = value.into();
        }
        params["trsvcid"] = way.trsvcid.to_string().into();
        params
    }

    /// Takes all of it back.
    pub fn stop(self) {
        for at in 0..self.ports.len() {
            self.stop_listening(at);
            fs::remove_dir(self.port(at)).unwrap();
        }
        self.enable(1, false);
        fs::remove_dir(namespace(1)).unwrap();
        fs::remove_dir(subsystem()).unwrap();
    }

    /// A verified load by all of its ports.
    pub fn load(&self, more: &Value) -> Load {
        Load::start(NQN, &self.ports, more)
    }

    /// A namespace in a file, enabled.
    pub fn add_namespace(&self, nsid: u32, file: &str, uuid: &str) {
        let folder = namespace(nsid);
        fs::create_dir(&folder).unwrap();
        set(&folder.join("device_path"), file);
        set(&folder.join("device_uuid"), uuid);
        // The file system of the machine is in memory: there is nothing to go past.
        set(&folder.join("buffered_io"), "1");
        self.enable(nsid, true);
    }

    /// Detaches a namespace from all controllers, or attaches it again.
    pub fn enable(&self, nsid: u32, is_enabled: bool) {
        set(&namespace(nsid).join("enable"), if is_enabled { "1" } else { "0" });
    }

    /// Makes the namespace one of so many MiB.
    pub fn resize(&self, mib: u32) {
        sh(&format!("truncate -s {mib}M {DISK}"));
        set(&namespace(1).join("revalidate_size"), "1");
    }

    /// Puts another namespace in the place of the first.
    pub fn replace(&self) {
        self.enable(1, false);
        set(&namespace(1).join("device_path"), &format!("{DISK}.other"));
        set(&namespace(1).join("device_uuid"), TWO);
        self.enable(1, true);
    }

    /// Sets the ANA state of a port.
    pub fn set_ana(&self, port: usize, state: &str) {
        set(&self.port(port).join("ana_groups/1/ana_state"), state);
    }

    /// Ends all connections of a port, which listens no more.
    pub fn stop_listening(&self, port: usize) {
        fs::remove_file(self.port(port).join("subsystems").join(NQN)).unwrap();
    }

    /// Has a port serve the subsystem.
    pub fn listen(&self, port: usize) {
        std::os::unix::fs::symlink(subsystem(), self.port(port).join("subsystems").join(NQN)).unwrap();
    }

    /// Lets only this host in, which proves who it is.
    pub fn require_key(&self, hostnqn: &str, key: &str, of_controller: Option<&str>) {
        let host = Path::new(ROOT).join("hosts").join(hostnqn);
        fs::create_dir(&host).unwrap();
        set(&host.join("dhchap_key"), key);
        if let Some(key) = of_controller {
            set(&host.join("dhchap_ctrl_key"), key);
        }
        set(&subsystem().join("attr_allow_any_host"), "0");
        std::os::unix::fs::symlink(&host, subsystem().join("allowed_hosts").join(hostnqn)).unwrap();
    }

    /// Has it prove itself by another key.
    pub fn set_key(&self, hostnqn: &str, key: &str) {
        set(&Path::new(ROOT).join("hosts").join(hostnqn).join("dhchap_key"), key);
    }

    /// Which hash and group it proves with.
    pub fn set_algorithms(&self, hostnqn: &str, hash: &str, group: &str) {
        let host = Path::new(ROOT).join("hosts").join(hostnqn);
        set(&host.join("dhchap_hash"), hash);
        set(&host.join("dhchap_dhgroup"), group);
    }

    fn port(&self, at: usize) -> PathBuf {
        Path::new(ROOT).join("ports").join((at + 1).to_string())
    }
}

fn way(at: u16) -> initiator::Path {
    initiator::Path { traddr: "127.0.0.1".to_owned(), trsvcid: 4500 + at }
}

fn subsystem() -> PathBuf {
    Path::new(ROOT).join("subsystems").join(NQN)
}

fn namespace(nsid: u32) -> PathBuf {
    subsystem().join("namespaces").join(nsid.to_string())
}

#[track_caller]
fn set(file: &Path, value: &str) {
    if let Err(error) = fs::write(file, value) {
        panic!("cannot write {value} to {}: {error}", file.display());
    }
}
