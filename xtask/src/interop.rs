//! `cargo xtask interop`: the kernel's own NVMe/TCP host and target against the built process.
//!
//! Builds the product and the suite `tests/interop`, then runs every scenario
//! in a machine of its own ([`crate::vm`]), so that none sees what another
//! left in the kernel. A part of them runs in `cargo xtask test`, in one machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::steps;
use crate::vm::Kernel;
use crate::workspace::Workspace;

/// Scenarios of `cargo xtask test`: a few seconds each, one of every kind.
const SMOKE: &[&str] = &[
    "connect::discover_and_connect",
    "connect::every_log_page_and_feature_decodes",
    "data::a_file_system_survives_a_remount",
    "changes::namespaces_come_go_and_grow_under_load",
    "paths::every_ana_state_reaches_the_kernel",
    "access::only_hosts_in_the_list_connect",
    "initiator::the_kernels_namespaces_come_and_go",
];
/// Those of them that run where the kernel is emulated, a tenth as fast.
const SMOKE_EMULATED: &[&str] = &["connect::discover_and_connect", "data::a_file_system_survives_a_remount"];
/// Seconds a scenario may take; those that take long say so themselves.
const TIMEOUT_S: u32 = 120;
const LONG: &[(&str, u32)] = &[
    ("connect::connecting_over_and_over_leaves_nothing", 900),
    ("access::every_hash_and_group_is_agreed", 300),
];
/// Seconds for all of [`SMOKE`] together.
const SMOKE_TIMEOUT_S: u32 = 240;
/// An emulated machine takes so many times longer.
const EMULATED: u32 = 4;
/// What the emulated machine's kernel does not have built in.
const LOAD_MODULES: &str = "modprobe -a nvme-tcp nvmet-tcp sch_netem ext4; exec \"$@\"";

/// Arguments of `cargo xtask interop`.
#[derive(Args, Debug)]
pub struct Options {
    /// Only scenarios whose name holds this text
    filter: Option<String>,
    /// Name the scenarios, run none
    #[arg(long)]
    list: bool,
    /// Show what scenarios print also when they pass
    #[arg(long)]
    verbose: bool,
    /// Which kernel
    #[arg(long, value_enum, default_value_t = Kernel::Uml)]
    kernel: Kernel,
}

/// Runs the scenarios and prints one line for each.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let suite = build(workspace)?;
    let wanted = |name: &String| options.filter.as_ref().is_none_or(|filter| name.contains(filter));
    let names: Vec<String> = scenarios(&suite)?.into_iter().filter(wanted).collect();
    if names.is_empty() {
        bail!("no scenario's name holds {:?}", options.filter.as_deref().unwrap_or(""));
    }
    if options.list {
        names.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let mut failed = Vec::new();
    for name in &names {
        let limit = LONG.iter().find(|(long, _)| long == name).map_or(TIMEOUT_S, |(_, limit)| *limit);
        let begin = Instant::now();
        let output = machine(&suite, options.kernel, std::slice::from_ref(&name.as_str()), limit)
            .output()
            .context("cannot start the machine")?;
        let took = begin.elapsed().as_secs_f64();
        let verdict = if output.status.success() { "ok" } else { "FAILED" };
        println!("{took:>8.1} s  {verdict:<8} {name}");
        if !output.status.success() || options.verbose {
            println!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        if !output.status.success() {
            failed.push(name.as_str());
        }
    }
    println!("{} passed, {} failed", names.len() - failed.len(), failed.len());
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

/// The short scenarios, all in one machine: a step of `cargo xtask test`.
pub fn smoke(workspace: &Workspace, kernel: Kernel) -> Result<Command> {
    let names = match kernel {
        Kernel::Uml => SMOKE,
        Kernel::Qemu => SMOKE_EMULATED,
    };
    Ok(machine(&build(workspace)?, kernel, names, SMOKE_TIMEOUT_S))
}

/// Builds product and suite with the profile tests use; gives the suite's program.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut product = workspace.cargo();
    // Not this program, which is running: its file would be another one.
    product.args(["build", "--quiet", "--workspace", "--exclude", "xtask", "--profile", "test"]);
    steps::must(&mut product)?;
    let mut suite = workspace.cargo();
    suite.args(["test", "--quiet", "--package", "tenon-tests", "--test", "interop", "--no-run"]);
    suite.args(["--message-format", "json"]);
    let messages = steps::output_of(&mut suite)?;
    let programs = messages.lines().filter_map(|line| {
        let message: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).ok()?;
        let is_suite = message.get("target")?.get("name")? == "interop";
        is_suite.then(|| message.get("executable")?.as_str().map(PathBuf::from))?
    });
    programs.collect::<Vec<_>>().pop().context("cargo names no program of the suite")
}

fn scenarios(suite: &Path) -> Result<Vec<String>> {
    let text = steps::output_of(Command::new(suite).args(["--list", "--ignored"]))?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// This program again, as the machine that runs scenarios one after the other. A build since its start may have
/// replaced its file.
fn machine(suite: &Path, kernel: Kernel, names: &[&str], timeout_s: u32) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["vm", "run"]);
    match kernel {
        Kernel::Uml => command.args(["--timeout", &timeout_s.to_string(), "--"]),
        Kernel::Qemu => {
            command.args(["--kernel", "qemu", "--timeout", &(EMULATED * timeout_s).to_string(), "--"]);
            command.args(["/bin/sh", "-c", LOAD_MODULES, "sh"])
        }
    };
    command.arg(suite).args(["--ignored", "--exact", "--test-threads=1"]).args(names);
    command
}
