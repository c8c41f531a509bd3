//! Probes of the NVMe/TCP target over loopback: `tenon run` on one core, driven
//! by `tenon perf --nvmf` on another, by turns with what it is compared with: a
//! program that only moves the same bytes, or the target in other circumstances.
//! Each stores microseconds per I/O under its name, and of the other side under
//! its name with `beside`. And what the target costs while its hosts are idle.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::host::Host;
use super::{Probe, Round};
use crate::steps;
use crate::workspace::Workspace;

const TENON: &str = "target/release/tenon";
const CEILING: &str = "target/release/examples/ceiling_tcp";
const CONFIG: &str = "target/bench/tcp.toml";
const TARGET_CPU: &str = "0";
const INITIATOR_CPU: &str = "1";
const PORT: u16 = 14_420;
/// Devices of a target are together as large as this: more than a cache holds.
const DEVICES_MIB: usize = 256;
/// Hosts that are connected and do nothing, and how long the target is watched then: some keep-alives of each.
const IDLE_HOSTS: usize = 100;
const IDLE: Duration = Duration::from_secs(10);
const IDLE_CONFIG: &str = "target/bench/tcp-hosts.toml";

/// What a work is measured by turns with.
enum Beside {
    Nothing,
    /// A program that moves the same bytes.
    Ceiling,
    /// The target at other work.
    Work(&'static Work),
}

/// What is done on how many connections; each has a subsystem with a device of its own.
struct Work {
    name: &'static str,
    connections: usize,
    depth: usize,
    block_bytes: usize,
    is_write: bool,
    /// Further words for each controller.
    words: &'static str,
    /// The target takes no data with a write command.
    asks_for_data: bool,
    beside: Beside,
}

const PLAIN: Work = Work {
    name: "read",
    connections: 1,
    depth: 128,
    block_bytes: 4096,
    is_write: false,
    words: "",
    asks_for_data: false,
    beside: Beside::Nothing,
};

const READ: Work = PLAIN;
const WRITE: Work = Work { name: "write", is_write: true, ..PLAIN };
/// As many commands in flight as with 256 connections.
const DEEP: Work = Work { depth: 1024, ..PLAIN };
const DIGESTS: &str = " hdgst:true ddgst:true";

const WORKS: [Work; 10] = [
    Work { beside: Beside::Ceiling, ..READ },
    Work { name: "read 4", connections: 4, beside: Beside::Ceiling, ..READ },
    Work { beside: Beside::Ceiling, ..WRITE },
    Work { name: "write 4", connections: 4, beside: Beside::Ceiling, ..WRITE },
    Work { name: "read one", depth: 1, beside: Beside::Ceiling, ..READ },
    Work { name: "read large", depth: 32, block_bytes: 131_072, beside: Beside::Ceiling, ..READ },
    Work { name: "write asked", asks_for_data: true, beside: Beside::Work(&WRITE), ..WRITE },
    Work { name: "read digests", words: DIGESTS, beside: Beside::Work(&READ), ..READ },
    Work { name: "write digests", words: DIGESTS, beside: Beside::Work(&WRITE), ..WRITE },
    Work { name: "read 256", connections: 256, depth: 4, beside: Beside::Work(&DEEP), ..READ },
];

/// All probes of this file.
pub fn probes(workspace: &Workspace, seconds: u64) -> Vec<Probe> {
    let own = |workspace: &Workspace| Workspace { root: workspace.root.clone() };
    let probe = |work: &'static Work| {
        let workspace = own(workspace);
        let run = move |round: &mut Round| measure(&workspace, work, seconds, round);
        Probe { group: "tcp", name: format!("tcp {}", work.name), run: Box::new(run) }
    };
    let mut probes: Vec<Probe> = WORKS.iter().map(probe).collect();
    let workspace = own(workspace);
    let run = move |round: &mut Round| idle(&workspace, round);
    probes.push(Probe { group: "tcp", name: "tcp idle hosts".to_owned(), run: Box::new(run) });
    probes
}

/// The work, what is beside it, that again, the work again.
fn measure(workspace: &Workspace, work: &Work, seconds: u64, round: &mut Round) -> Result<()> {
    let mut sums = [0.0; 2];
    for turn in [0, 1, 1, 0] {
        sums[turn] += match (turn, &work.beside) {
            (0, _) => target(workspace, work, seconds)?,
            (_, Beside::Nothing) => 0.0,
            (_, Beside::Ceiling) => ceiling(workspace, work, seconds)?,
            (_, Beside::Work(other)) => target(workspace, other, seconds)?,
        };
    }
    round.insert(format!("tcp {}", work.name), sums[0] / 2.0);
    round.insert(format!("tcp {} beside", work.name), sums[1] / 2.0);
    Ok(())
}

fn target(workspace: &Workspace, work: &Work, seconds: u64) -> Result<f64> {
    write(workspace, CONFIG, &config(work))?;
    let _host = Host::start(&workspace.root, &["-c", CONFIG, "--cpus", TARGET_CPU])?;
    let mut command = Command::new(workspace.path(TENON));
    command.args(["perf", "--json", "--seed", "1", "--cpus", INITIATOR_CPU]);
    command.args(["--time", &format!("{seconds}s"), "-q", &work.depth.to_string()]);
    command.args(["--block-size", &work.block_bytes.to_string()]);
    // Memory that was never written is found and zeroed first, or all read from one page.
    command.args(["--fill", "--rw", if work.is_write { "randwrite" } else { "randread" }]);
    for index in 0..work.connections {
        let (nqn, words) = (nqn(index), work.words);
        let trid = format!("trtype:TCP traddr:127.0.0.1 trsvcid:{PORT} subnqn:{nqn}{words}");
        command.args(["--nvmf", &trid]);
    }
    let report: Value = serde_json::from_str(&steps::output_of(&mut command)?)?;
    Ok(1e6 / report["total"]["iops"].as_f64().context("a report without IOPS")?)
}

fn ceiling(workspace: &Workspace, work: &Work, seconds: u64) -> Result<f64> {
    let numbers = [work.connections, work.depth, work.block_bytes, seconds as usize];
    let mut command = Command::new(workspace.path(CEILING));
    command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    command.arg(if work.is_write { "write" } else { "read" }).args(numbers.map(|number| number.to_string()));
    let output = steps::output_of(&mut command)?;
    let rate = output.split_whitespace().next().context("ceiling_tcp prints two numbers")?;
    Ok(1e6 / rate.parse::<f64>()?)
}

/// What the target costs while a hundred hosts are connected and do nothing but keep alive.
fn idle(workspace: &Workspace, round: &mut Round) -> Result<()> {
    write(workspace, CONFIG, &format!("[[transport]]\ntrtype = \"TCP\"\n{}", subsystem(0)))?;
    write(workspace, IDLE_CONFIG, &idle_hosts())?;
    let target = Host::start(&workspace.root, &["-c", CONFIG, "--cpus", TARGET_CPU])?;
    let _hosts = Host::start(&workspace.root, &["-c", IDLE_CONFIG, "--cpus", INITIATOR_CPU])?;
    let controllers = target.call("nvmf_subsystem_get_controllers", &json!({ "nqn": nqn(0) }))?;
    let connected = controllers.as_array().map_or(0, Vec::len);
    ensure!(connected == IDLE_HOSTS, "{connected} of {IDLE_HOSTS} hosts are connected");
    let (before, begin) = (target.cpu_ns()?, Instant::now());
    thread::sleep(IDLE);
    let used = target.cpu_ns()?.saturating_sub(before) as f64;
    round.insert("tcp idle hosts %".to_owned(), 100.0 * used / begin.elapsed().as_nanos() as f64);
    Ok(())
}

fn write(workspace: &Workspace, name: &str, text: &str) -> Result<()> {
    let file = workspace.path(name);
    fs::write(&file, text).with_context(|| file.display().to_string())
}

fn nqn(index: usize) -> String {
    format!("nqn.2026-01.io.tenon:bench{index}")
}

/// A target with a subsystem for each connection.
fn config(work: &Work) -> String {
    let mut text = "[[transport]]\ntrtype = \"TCP\"\n".to_owned();
    if work.asks_for_data {
        text += "in_capsule_data_size = 0\n";
    }
    for index in 0..work.connections {
        let size = DEVICES_MIB / work.connections;
        text += &subsystem(index);
        text += &format!(
            "\n[[subsystem.namespace]]\nbdev_name = \"m{index}\"\n\
             \n[[bdev]]\nmodule = \"malloc\"\nname = \"m{index}\"\nsize = \"{size}MiB\"\n",
        );
    }
    text
}

/// A subsystem without namespaces.
fn subsystem(index: usize) -> String {
    format!(
        "\n[[subsystem]]\nnqn = \"{}\"\nallow_any_host = true\n\
         \n[[subsystem.listener]]\ntrtype = \"TCP\"\ntraddr = \"127.0.0.1\"\ntrsvcid = {PORT}\n",
        nqn(index)
    )
}

/// Hosts with a name and a controller of their own each.
fn idle_hosts() -> String {
    let mut text = String::new();
    for index in 0..IDLE_HOSTS {
        text += &format!(
            "[[bdev]]\nmodule = \"nvme\"\nname = \"nvme{index}\"\ntrtype = \"TCP\"\ntraddr = \"127.0.0.1\"\n\
             trsvcid = \"{PORT}\"\nsubnqn = \"{}\"\n\
             hostnqn = \"nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-{index:012}\"\n\n",
            nqn(0)
        );
    }
    text
}
