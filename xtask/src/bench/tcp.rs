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

/// Who does a work.
enum Side {
    Target(Work),
    /// The program that moves the same bytes. Its further words.
    Moved(Work, &'static str),
}

/// Two sides that are measured by turns.
struct Pair {
    name: &'static str,
    own: Side,
    beside: Side,
}

/// What is done on how many connections; each has a subsystem with a device of its own.
#[derive(Clone, Copy)]
struct Work {
    connections: usize,
    depth: usize,
    block_bytes: usize,
    kind: Kind,
    /// Further words for each controller.
    words: &'static str,
    /// The target takes no data with a write command.
    asks_for_data: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
    /// Data is thrown away, which a target does not.
    Drop,
}

const READ: Work =
    Work { connections: 1, depth: 128, block_bytes: 4096, kind: Kind::Read, words: "", asks_for_data: false };
const WRITE: Work = Work { kind: Kind::Write, ..READ };
const FOUR_READ: Work = Work { connections: 4, ..READ };
const FOUR_WRITE: Work = Work { connections: 4, ..WRITE };
const MANY: Work = Work { connections: 256, depth: 4, ..READ };
/// As many commands in flight as `MANY` has.
const DEEP: Work = Work { depth: 1024, ..READ };
const ONE: Work = Work { depth: 1, ..READ };
const LARGE: Work = Work { depth: 32, block_bytes: 131_072, ..READ };
const DIGESTS: &str = " hdgst:true ddgst:true";

const PAIRS: [Pair; 16] = [
    moved("read", READ),
    moved("read 4", FOUR_READ),
    moved("write", WRITE),
    moved("write 4", FOUR_WRITE),
    moved("read one", ONE),
    moved("read large", LARGE),
    moved("read 256", MANY),
    targets("write asked", Work { asks_for_data: true, ..WRITE }, WRITE),
    targets("read digests", Work { words: DIGESTS, ..READ }, READ),
    targets("write digests", Work { words: DIGESTS, ..WRITE }, WRITE),
    targets("read many", MANY, DEEP),
    Pair { name: "moved many", own: Side::Moved(MANY, ""), beside: Side::Moved(DEEP, "") },
    Pair {
        name: "moved dropped",
        own: Side::Moved(Work { kind: Kind::Drop, ..WRITE }, ""),
        beside: Side::Moved(WRITE, ""),
    },
    Pair { name: "uring", own: Side::Moved(READ, "uring"), beside: Side::Moved(READ, "") },
    Pair { name: "uring 4", own: Side::Moved(FOUR_READ, "uring"), beside: Side::Moved(FOUR_READ, "") },
    Pair { name: "uring 256", own: Side::Moved(MANY, "uring"), beside: Side::Moved(MANY, "") },
];

/// The target, and what only moves the same bytes.
const fn moved(name: &'static str, work: Work) -> Pair {
    Pair { name, own: Side::Target(work), beside: Side::Moved(work, "") }
}

/// The target at one work and at another.
const fn targets(name: &'static str, own: Work, beside: Work) -> Pair {
    Pair { name, own: Side::Target(own), beside: Side::Target(beside) }
}

/// All probes of this file.
pub fn probes(workspace: &Workspace, seconds: u64) -> Vec<Probe> {
    let own = |workspace: &Workspace| Workspace { root: workspace.root.clone() };
    let probe = |pair: &'static Pair| {
        let workspace = own(workspace);
        let run = move |round: &mut Round| measure(&workspace, pair, seconds, round);
        Probe { group: "tcp", name: format!("tcp {}", pair.name), run: Box::new(run) }
    };
    let mut probes: Vec<Probe> = PAIRS.iter().map(probe).collect();
    let workspace = own(workspace);
    let run = move |round: &mut Round| idle(&workspace, round);
    probes.push(Probe { group: "tcp", name: "tcp idle hosts".to_owned(), run: Box::new(run) });
    probes
}

/// One side, the other, that again, the first again.
fn measure(workspace: &Workspace, pair: &Pair, seconds: u64, round: &mut Round) -> Result<()> {
    let mut sums = [0.0; 2];
    for turn in [0, 1, 1, 0] {
        sums[turn] += match [&pair.own, &pair.beside][turn] {
            Side::Target(work) => target(workspace, work, seconds)?,
            Side::Moved(work, words) => ceiling(workspace, work, words, seconds)?,
        };
    }
    round.insert(format!("tcp {}", pair.name), sums[0] / 2.0);
    round.insert(format!("tcp {} beside", pair.name), sums[1] / 2.0);
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
    let rw = if matches!(work.kind, Kind::Read) { "randread" } else { "randwrite" };
    command.args(["--fill", "--rw", rw]);
    for index in 0..work.connections {
        let (nqn, words) = (nqn(index), work.words);
        let trid = format!("trtype:TCP traddr:127.0.0.1 trsvcid:{PORT} subnqn:{nqn}{words}");
        command.args(["--nvmf", &trid]);
    }
    let report: Value = serde_json::from_str(&steps::output_of(&mut command)?)?;
    Ok(1e6 / report["total"]["iops"].as_f64().context("a report without IOPS")?)
}

fn ceiling(workspace: &Workspace, work: &Work, words: &str, seconds: u64) -> Result<f64> {
    let kind = match work.kind {
        Kind::Read => "read",
        Kind::Write => "write",
        Kind::Drop => "drop",
    };
    let numbers = [work.connections, work.depth, work.block_bytes, seconds as usize];
    Ok(1e6 / only_moved(workspace, kind, numbers, words)?[0])
}

/// What `ceiling_tcp` prints for so many connections, depth, bytes of a block and seconds: I/Os per second, microseconds
/// between answers, and nanoseconds of the asking side per I/O.
pub fn only_moved(workspace: &Workspace, kind: &str, numbers: [usize; 4], words: &str) -> Result<[f64; 3]> {
    let mut command = Command::new(workspace.path(CEILING));
    command.arg(kind).args(numbers.map(|number| number.to_string())).args(words.split_whitespace());
    let output = steps::output_of(&mut command)?;
    let printed: Vec<f64> = output.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    printed.try_into().ok().context("ceiling_tcp prints three numbers")
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
