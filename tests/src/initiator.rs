//! The initiator as a process of its own: `tenon perf` attaches the paths of a
//! subsystem and puts a verified load on its first namespace, while tests look at
//! it by its control socket.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{Host, Scratch, tenon, wait_for};

/// An address of a subsystem.
#[derive(Clone, Debug)]
pub struct Path {
    /// Address.
    pub traddr: String,
    /// Port.
    pub trsvcid: u16,
}

/// The process; the device with the load is `nvme0n1`.
#[derive(Debug)]
pub struct Load {
    /// To call it.
    pub host: Host,
}

/// What a load found when it ended.
#[derive(Debug)]
pub struct Verdict {
    /// Whether it succeeded.
    pub is_clean: bool,
    /// What it printed and logged.
    pub text: String,
}

impl Load {
    /// Starts a load that goes on until it is told to end; `more` are further parameters of all controllers.
    #[must_use]
    pub fn start(nqn: &str, paths: &[Path], more: &Value) -> Load {
        Self::start_in(Scratch::new(), nqn, paths, more)
    }

    /// The same in a given directory.
    #[must_use]
    pub fn start_in(scratch: Scratch, nqn: &str, paths: &[Path], more: &Value) -> Load {
        // Another module looks at the devices, as one does that finds arrays.
        let mut config = "[[module]]\nname = \"raid\"\n[[module]]\nname = \"nvme\"\nkeep_alive_timeout_ms = 2000\nbdev_retry_count = -1\n\
             ctrlr_loss_timeout_sec = -1\nreconnect_delay_sec = 1\n[[bdev]]\nmodule = \"nvme\"\n"
            .to_owned();
        let attach = |path: &Path| {
            let mut params = more.clone();
            for (key, value) in
                [("name", "nvme0"), ("trtype", "TCP"), ("traddr", &path.traddr), ("subnqn", nqn)]
            {
                params[key] = value.into();
            }
            params["trsvcid"] = path.trsvcid.to_string().into();
            params
        };
        for (key, value) in attach(&paths[0]).as_object().into_iter().flatten() {
            // Texts, numbers and booleans are written alike.
            config += &format!("{key} = {value}\n");
        }
        let file = scratch.write("perf.toml", &config);
        let mut command = Command::new(tenon());
        command.arg("perf").arg("-c").arg(file).arg("--rpc-socket").arg(scratch.join("rpc.sock"));
        // The machine is left to those who wait for something.
        command.args(["--bdev", "nvme0n1", "--rw", "randrw", "--verify", "--rate", "4000", "--seed", "7"]);
        command.args(["--time", "600s", "--io-timeout", "60s"]);
        let mut host = Host::spawn(scratch, command);
        for path in &paths[1..] {
            host.ok("bdev_nvme_attach_controller", attach(path));
        }
        Load { host }
    }

    /// Reads and writes that have completed.
    pub fn ios(&mut self) -> u64 {
        let stats = self.host.ok("bdev_get_iostat", json!({ "name": "nvme0n1" }));
        let bdev = &stats["bdevs"][0];
        ["num_read_ops", "num_write_ops"].iter().filter_map(|key| bdev[key].as_u64()).sum()
    }

    /// Waits until no I/O completes any more; gives how many had.
    #[track_caller]
    pub fn stands_still(&mut self) -> u64 {
        let (mut since, mut before) = (Instant::now(), self.ios());
        wait_for("the last I/O", || {
            let now = self.ios();
            if now != before {
                (since, before) = (Instant::now(), now);
            }
            (since.elapsed() >= STILL).then_some(now)
        })
    }

    /// Waits until so much I/O completes that some of it reads what was written.
    #[track_caller]
    pub fn goes_on(&mut self) {
        let before = self.ios();
        wait_for("I/O that completes", || (self.ios() > before + ENOUGH).then_some(()));
    }

    /// Ends it: what it read must be what it wrote, and nothing may have failed.
    #[track_caller]
    pub fn finish(self) {
        self.host.signal(Signal::INT);
        let verdict = self.verdict();
        assert!(verdict.is_clean && verdict.text.contains(" verified, 0 wrong"), "{}", verdict.text);
    }

    /// Waits for its end, whatever it found.
    #[track_caller]
    pub fn verdict(mut self) -> Verdict {
        let status = self.host.wait();
        Verdict { is_clean: status.success(), text: self.host.log() }
    }
}

/// Whether each of these paths of `nvme0n1` is connected, accessible and current.
pub fn paths(host: &mut Host, of: &[Path]) -> Vec<[bool; 3]> {
    let report = host.ok("bdev_nvme_get_io_paths", json!({ "name": "nvme0n1" }));
    let group = report["poll_groups"].as_array().into_iter().flatten().next().cloned().unwrap_or_default();
    let found = group["io_paths"].as_array().cloned().unwrap_or_default();
    let state = |wanted: &Path| {
        let is_it = |address: &Value| {
            let port = address["trsvcid"].as_str().and_then(|text| text.parse().ok());
            address["traddr"] == wanted.traddr && port == Some(wanted.trsvcid)
        };
        let path = found.iter().find(|path| is_it(&path["transport"]))?;
        let flag = |name: &str| path[name] == true;
        Some([flag("connected"), flag("accessible"), flag("current")])
    };
    of.iter().map(|path| state(path).unwrap_or_default()).collect()
}

/// Waits until a check holds; gives how long it took, which must be at most `bound`.
#[track_caller]
pub fn within(bound: Duration, what: &str, mut check: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    wait_for(what, || check().then_some(()));
    let took = begin.elapsed();
    assert!(took <= bound, "{what}: after {took:?}, which is later than {bound:?}");
    println!("{what}: after {took:?}, bound {bound:?}");
    took
}

/// States of all controllers.
pub fn states(host: &mut Host) -> Vec<String> {
    let groups = host.ok("bdev_nvme_get_controllers", json!({}));
    let of_group = |group: &Value| group["ctrlrs"].as_array().cloned().unwrap_or_default();
    let all = groups.as_array().into_iter().flatten().flat_map(of_group);
    all.map(|one| one["state"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Blocks of a device, or `None` if there is no such device.
pub fn num_blocks(host: &mut Host, name: &str) -> Option<u64> {
    let found = host.call("bdev_get_bdevs", json!({ "name": name })).ok()?;
    found[0]["num_blocks"].as_u64()
}

/// UUID of a device.
pub fn uuid(host: &mut Host, name: &str) -> Option<String> {
    let found = host.call("bdev_get_bdevs", json!({ "name": name })).ok()?;
    found[0]["uuid"].as_str().map(str::to_owned)
}

/// A load that completes nothing for so long stands still.
const STILL: Duration = Duration::from_millis(300);
/// I/Os of a load that goes on.
const ENOUGH: u64 = 500;
