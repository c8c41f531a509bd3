//! Probes of the NVMe/TCP target over loopback: `tenon run` on one core, driven
//! by `tenon perf --nvmf` on another, by turns with a program that only moves the
//! same bytes. Each stores microseconds per I/O under its name.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

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
/// Most connections with I/O; each has a subsystem with a device of its own.
const CONNECTIONS: usize = 4;

/// What is done on how many connections, and how the ceiling does the same.
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
    has_ceiling: bool,
}

const PLAIN: Work = Work {
    name: "",
    connections: 1,
    depth: 128,
    block_bytes: 4096,
    is_write: false,
    words: "",
    asks_for_data: false,
    has_ceiling: true,
};

const DIGESTS: &str = " hdgst:true ddgst:true";

const WORKS: [Work; 9] = [
    Work { name: "read", ..PLAIN },
    Work { name: "read 4", connections: 4, ..PLAIN },
    Work { name: "write", is_write: true, ..PLAIN },
    Work { name: "write 4", is_write: true, connections: 4, ..PLAIN },
    Work { name: "read one", depth: 1, ..PLAIN },
    Work { name: "read large", depth: 32, block_bytes: 131_072, ..PLAIN },
    Work { name: "write asked", is_write: true, asks_for_data: true, has_ceiling: false, ..PLAIN },
    Work { name: "read digests", words: DIGESTS, has_ceiling: false, ..PLAIN },
    Work { name: "write digests", is_write: true, words: DIGESTS, has_ceiling: false, ..PLAIN },
];

/// All probes of this file.
pub fn probes(workspace: &Workspace, seconds: u64) -> Vec<Probe> {
    let probe = |work: &'static Work| {
        let workspace = Workspace { root: workspace.root.clone() };
        let run = move |round: &mut Round| measure(&workspace, work, seconds, round);
        Probe { group: "tcp", name: format!("tcp {}", work.name), run: Box::new(run) }
    };
    WORKS.iter().map(probe).collect()
}

/// The target, the ceiling, the ceiling, the target.
fn measure(workspace: &Workspace, work: &Work, seconds: u64, round: &mut Round) -> Result<()> {
    let mut sums = [0.0; 2];
    for turn in [0, 1, 1, 0] {
        sums[turn] += match turn {
            0 => target(workspace, work, seconds)?,
            _ if work.has_ceiling => ceiling(workspace, work, seconds)?,
            _ => 0.0,
        };
    }
    round.insert(format!("tcp {}", work.name), sums[0] / 2.0);
    if work.has_ceiling {
        round.insert(format!("tcp ceiling {}", work.name), sums[1] / 2.0);
    }
    Ok(())
}

fn target(workspace: &Workspace, work: &Work, seconds: u64) -> Result<f64> {
    let file = workspace.path(CONFIG);
    fs::write(&file, config(work.asks_for_data)).with_context(|| file.display().to_string())?;
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
    command.arg(if work.is_write { "write" } else { "read" }).args(numbers.map(|number| number.to_string()));
    let output = steps::output_of(&mut command)?;
    let rate = output.split_whitespace().next().context("ceiling_tcp prints two numbers")?;
    Ok(1e6 / rate.parse::<f64>()?)
}

fn nqn(index: usize) -> String {
    format!("nqn.2026-01.io.tenon:bench{index}")
}

/// A target with as many subsystems as there may be connections.
fn config(asks_for_data: bool) -> String {
    let mut text = "[[transport]]\ntrtype = \"TCP\"\n".to_owned();
    if asks_for_data {
        text += "in_capsule_data_size = 0\n";
    }
    for index in 0..CONNECTIONS {
        text += &format!(
            "\n[[bdev]]\nmodule = \"malloc\"\nname = \"m{index}\"\nsize = \"{DEVICE_MIB}MiB\"\n\
             \n[[subsystem]]\nnqn = \"{}\"\nallow_any_host = true\n\
             \n[[subsystem.namespace]]\nbdev_name = \"m{index}\"\n\
             \n[[subsystem.listener]]\ntrtype = \"TCP\"\ntraddr = \"127.0.0.1\"\ntrsvcid = {PORT}\n",
            nqn(index)
        );
    }
    text
}

/// More than a cache holds.
const DEVICE_MIB: usize = 256;
