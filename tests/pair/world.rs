//! The process that exports, and what is common to all scenarios.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use serde_json::{Value, json};
use tenon_tests::initiator::{self, Load};
use tenon_tests::{Host, Scratch};

/// The subsystem of every scenario.
pub const NQN: &str = "nqn.2026-01.io.tenon:pair";
/// Identities of namespaces.
pub const ONE: &str = "11111111-1111-4111-8111-111111111111";
pub const TWO: &str = "22222222-2222-4222-8222-222222222222";
/// Controllers come back by themselves, for as long as it takes.
pub const PATIENT: &str = r#""ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1"#;

/// The process that exports devices in files; its files and its ports outlive it.
pub struct Target {
    host: Option<Host>,
    place: Option<Scratch>,
    /// Tables of its devices.
    devices: String,
    pub ports: Vec<u16>,
}

impl Target {
    /// A target with so many listeners, and the device as namespace 1.
    pub fn start(listeners: usize) -> Target {
        let mut target = Target::empty(listeners);
        target.add_namespace(1, "f0", ONE);
        target
    }

    /// A target whose subsystem has no namespace yet.
    pub fn empty(listeners: usize) -> Target {
        let scratch = Scratch::new();
        let devices = file_device("f0", &scratch.join("disk.img"), 16, "");
        Target::of(scratch, devices, listeners)
    }

    /// A target with the devices of these tables, whose files are in the directory.
    pub fn of(scratch: Scratch, devices: String, listeners: usize) -> Target {
        let probes: Vec<_> =
            (0..listeners).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let ports = probes.iter().map(|probe| probe.local_addr().unwrap().port()).collect();
        drop(probes);
        let mut target = Target { host: None, place: Some(scratch), devices, ports };
        target.restart();
        target
    }

    fn config(&self) -> String {
        let mut text = format!(
            "{}[[transport]]\ntrtype = \"TCP\"\n\
             [[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\nana_reporting = true\n",
            self.devices
        );
        for port in &self.ports {
            text += &format!("[[subsystem.listener]]\ntraddr = \"127.0.0.1\"\ntrsvcid = {port}\n");
        }
        text
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        self.place = Some(self.host.take().expect("it runs").kill());
    }

    /// Starts the process again, without a namespace.
    pub fn restart(&mut self) {
        let config = self.config();
        let place = self.place.take().expect("it was killed");
        self.host = Some(Host::start_in(place, &config, &[]));
    }

    /// The running process.
    pub fn host(&mut self) -> &mut Host {
        self.host.as_mut().expect("it runs")
    }

    pub fn add_namespace(&mut self, nsid: u32, bdev: &str, uuid: &str) {
        let namespace = json!({ "nsid": nsid, "bdev_name": bdev, "uuid": uuid });
        self.host().ok("nvmf_subsystem_add_ns", json!({ "nqn": NQN, "namespace": namespace }));
    }

    pub fn remove_namespace(&mut self, nsid: u32) {
        self.host().ok("nvmf_subsystem_remove_ns", json!({ "nqn": NQN, "nsid": nsid }));
    }

    fn address(&self, path: usize) -> Value {
        json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": self.ports[path].to_string() })
    }

    pub fn set_ana(&mut self, path: usize, state: &str) {
        let address = self.address(path);
        let params = json!({ "nqn": NQN, "listen_address": address, "ana_state": state });
        self.host().ok("nvmf_subsystem_listener_set_ana_state", params);
    }

    pub fn stop_listening(&mut self, path: usize) {
        let address = self.address(path);
        self.host().ok("nvmf_subsystem_remove_listener", json!({ "nqn": NQN, "listen_address": address }));
    }

    pub fn listen(&mut self, path: usize) {
        let address = self.address(path);
        self.host().ok("nvmf_subsystem_add_listener", json!({ "nqn": NQN, "listen_address": address }));
    }

    /// Queues that hosts have connected.
    pub fn queues(&mut self) -> u64 {
        let stats = self.host().ok("nvmf_get_stats", json!({}));
        let of = |group: &Value, key: &str| group[key].as_u64().unwrap_or(0);
        let groups = stats["poll_groups"].as_array().cloned().unwrap_or_default();
        groups.iter().map(|g| of(g, "current_admin_qpairs") + of(g, "current_io_qpairs")).sum()
    }

    /// Ways to it, in the order of its listeners.
    pub fn paths(&self) -> Vec<initiator::Path> {
        self.ports
            .iter()
            .map(|port| initiator::Path { traddr: "127.0.0.1".to_owned(), trsvcid: *port })
            .collect()
    }

    /// A verified load on namespace 1 by all paths; `more` are further parameters of the controllers.
    pub fn load(&self, more: &Value) -> Load {
        Load::start(NQN, &self.paths(), more)
    }

    /// Parameters that attach one path; `more` are further ones, in JSON.
    pub fn path(&self, path: usize, more: &str) -> Value {
        let mut params: Value = serde_json::from_str(&format!("{{{more}}}")).unwrap();
        params["name"] = "nvme0".into();
        params["subnqn"] = NQN.into();
        params["trtype"] = "TCP".into();
        params["traddr"] = "127.0.0.1".into();
        params["trsvcid"] = self.ports[path].to_string().into();
        params
    }
}

/// The table of a device in a file of so many MiB; `more` are further lines of it.
pub fn file_device(name: &str, file: &Path, mib: u32, more: &str) -> String {
    format!(
        "[[bdev]]\nmodule = \"uring\"\nname = \"{name}\"\nfilename = \"{}\"\ncreate_size = \"{mib}MiB\"\n\
         block_size = 4096\n{more}",
        file.display()
    )
}

/// An initiator with nothing attached.
pub fn initiator() -> Host {
    Host::start("")
}
