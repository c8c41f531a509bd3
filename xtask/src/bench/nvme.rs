//! Probes of the initiator: what choosing a path costs, by a program of its crate,
//! and over TCP on loopback as in `tcp` what four paths to a namespace give by turns
//! with one, and what an I/O costs the initiator's processor beside a loop that only
//! asks for the same bytes.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::host::{Connection, Host, Load};
use super::tcp::only_moved;
use super::{Probe, Round};
use crate::steps;
use crate::workspace::Workspace;

const TENON: &str = "target/release/tenon";
const SELECT: &str = "target/release/examples/select";
const TARGET: &str = "target/bench/nvme-target.toml";
const INITIATOR: &str = "target/bench/nvme.toml";
const TARGET_CPU: &str = "0";
const INITIATOR_CPU: &str = "1";
const FIRST_PORT: u16 = 14_520;
const PATHS: u16 = 4;
const NQN: &str = "nqn.2026-01.io.tenon:bench-paths";
const READS: [&str; 9] =
    ["--bdev", "nvme0n1", "--fill", "--rw", "randread", "-q", "128", "--block-size", "4096"];
/// How much longer a load runs than it is watched.
const LEAD: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);
/// What `select` prints a time for.
pub const WAYS: [&str; 4] = ["active_passive", "round_robin", "queue_depth", "latency"];

/// All probes of this file.
pub fn probes(workspace: &Workspace, seconds: u64) -> Vec<Probe> {
    let select = workspace.path(SELECT);
    let (root, again) = (workspace.root.clone(), workspace.root.clone());
    vec![
        Probe {
            group: "nvme",
            name: "nvme select".to_owned(),
            run: Box::new(move |round| choices(&steps::output_of(&mut Command::new(&select))?, round)),
        },
        Probe {
            group: "nvme",
            name: "nvme paths".to_owned(),
            run: Box::new(move |round| {
                let workspace = Workspace { root: root.clone() };
                let (mut own, mut moved) = ([0.0; 2], [0.0; 2]);
                for turn in [0, 1, 1, 0] {
                    let paths = [1, PATHS][turn];
                    own[turn] += reads(&workspace, paths, seconds)?;
                    moved[turn] += 1e6 / of_loop(&workspace, "read", paths, seconds)?[0];
                }
                for (turn, paths) in [1, PATHS].iter().enumerate() {
                    round.insert(format!("nvme paths {paths}"), own[turn] / 2.0);
                    round.insert(format!("nvme loop {paths}"), moved[turn] / 2.0);
                }
                Ok(())
            }),
        },
        Probe {
            group: "nvme",
            name: "nvme processor".to_owned(),
            run: Box::new(move |round| {
                let workspace = Workspace { root: again.clone() };
                round.insert("nvme busy".to_owned(), busy(&workspace, seconds)?);
                for kind in ["read", "fetch"] {
                    round.insert(format!("nvme loop {kind}"), of_loop(&workspace, kind, 1, seconds)?[2]);
                }
                Ok(())
            }),
        },
    ]
}

/// Nanoseconds that a read takes of the initiator's reactor, its turns without work left out.
fn busy(workspace: &Workspace, seconds: u64) -> Result<f64> {
    configure(workspace, 1)?;
    let _host = Host::start(&workspace.root, &["-c", TARGET, "--cpus", TARGET_CPU])?;
    let file = workspace.path(INITIATOR);
    let time = format!("{}s", seconds + LEAD.as_secs());
    let args = ["--cpus", INITIATOR_CPU, "-c", file.to_str().context("a path")?, "--time", &time];
    let mut load = Load::start(&workspace.root, &[&READS[..], &args[..]].concat())?;
    let mut connection = load.connection()?.context("the load did not begin")?;
    let begin = Instant::now();
    // The device may not be there yet.
    while !reads_so_far(&mut connection).is_ok_and(|reads| reads > 0.0) {
        ensure!(begin.elapsed() < PATIENCE, "no read within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(LEAD / 2);
    let before = (busy_ns(&mut connection)?, reads_so_far(&mut connection)?);
    thread::sleep(Duration::from_secs(seconds));
    let after = (busy_ns(&mut connection)?, reads_so_far(&mut connection)?);
    Ok((after.0 - before.0) / (after.1 - before.1))
}

/// Nanoseconds of work so far of the data reactor.
fn busy_ns(connection: &mut Connection) -> Result<f64> {
    let all = connection.call("thread_get_stats", &json!({}))?;
    let rate = all["tick_rate"].as_f64().context("no tick rate")?;
    let threads = all["threads"].as_array().context("no threads")?;
    let data = threads.iter().find(|thread| thread["name"] == "reactor_0").context("no data reactor")?;
    Ok(data["busy"].as_f64().context("no ticks")? * 1e9 / rate)
}

fn reads_so_far(connection: &mut Connection) -> Result<f64> {
    let all = connection.call("bdev_get_iostat", &json!({ "name": "nvme0n1" }))?;
    all["bdevs"][0]["num_read_ops"].as_f64().context("no count of reads")
}

/// As `only_moved`, of 128 commands in flight on so many connections.
fn of_loop(workspace: &Workspace, kind: &str, connections: u16, seconds: u64) -> Result<[f64; 3]> {
    let lines = usize::from(connections);
    only_moved(workspace, kind, [lines, 128 / lines, 4096, seconds as usize], "")
}

/// Reads what `select` prints: a way and nanoseconds in each line.
fn choices(output: &str, round: &mut Round) -> Result<()> {
    for way in WAYS {
        let line = output.lines().find_map(|line| line.strip_prefix(way));
        let ns = line.with_context(|| format!("select prints no line of {way}"))?.trim().parse()?;
        round.insert(format!("nvme select {way}"), ns);
    }
    Ok(())
}

/// Microseconds per read by so many paths, all of them used.
fn reads(workspace: &Workspace, paths: u16, seconds: u64) -> Result<f64> {
    configure(workspace, paths)?;
    let _host = Host::start(&workspace.root, &["-c", TARGET, "--cpus", TARGET_CPU])?;
    let mut command = Command::new(workspace.path(TENON));
    command.args(["perf", "--json", "--seed", "1", "--cpus", INITIATOR_CPU]).args(READS);
    command.arg("-c").arg(workspace.path(INITIATOR));
    command.args(["--time", &format!("{seconds}s")]);
    let report: Value = serde_json::from_str(&steps::output_of(&mut command)?)?;
    Ok(1e6 / report["total"]["iops"].as_f64().context("a report without IOPS")?)
}

fn configure(workspace: &Workspace, paths: u16) -> Result<()> {
    for (name, text) in [(TARGET, target()), (INITIATOR, initiator(paths))] {
        let file = workspace.path(name);
        fs::write(&file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn target() -> String {
    let mut text = format!(
        "[[bdev]]\nmodule = \"malloc\"\nname = \"m0\"\nsize = \"256MiB\"\n\n[[transport]]\ntrtype = \"TCP\"\n\n\
         [[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\nana_reporting = true\n\n\
         [[subsystem.namespace]]\nbdev_name = \"m0\"\n",
    );
    for port in FIRST_PORT..FIRST_PORT + PATHS {
        text += &format!(
            "\n[[subsystem.listener]]\ntrtype = \"TCP\"\ntraddr = \"127.0.0.1\"\ntrsvcid = {port}\n"
        );
    }
    text
}

fn initiator(paths: u16) -> String {
    let further: Vec<String> =
        (1..paths).map(|at| format!("{{ trsvcid = \"{}\" }}", FIRST_PORT + at)).collect();
    format!(
        "[[bdev]]\nmodule = \"nvme\"\nname = \"nvme0\"\ntrtype = \"TCP\"\ntraddr = \"127.0.0.1\"\n\
         trsvcid = \"{FIRST_PORT}\"\nsubnqn = \"{NQN}\"\npaths = [{}]\n\
         bdevs = [{{ name = \"nvme0n1\", policy = \"active_active\" }}]\n",
        further.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_for_each_way_of_choosing() {
        let mut round = Round::new();
        let output = "active_passive 5.10\nround_robin 6.00\nqueue_depth 7.25\nlatency 9.00\n";
        choices(output, &mut round).unwrap();
        assert_eq!(round.get("nvme select queue_depth"), Some(&7.25));
        assert!(choices("latency 9\n", &mut round).is_err());
    }
}
