//! `cargo xtask bench`: what Tenon needs, how long it takes, how much it holds,
//! against what it has to reach.
//!
//! Probes are run one after the other in every round, so that whatever else the
//! machine does meets all of them; a figure that compares two probes is computed
//! within each round. Shown are the median of the rounds and their range.

mod figures;
mod host;
mod load;
mod nvme;
mod raid;
mod reactor;
mod tcp;

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Result, bail};
use clap::Args;

use crate::run::build_release;
use crate::setup::{self, Group};
use crate::steps;
use crate::workspace::Workspace;

use figures::Figure;

/// Arguments of `cargo xtask bench`.
#[derive(Args, Debug)]
pub struct Options {
    /// Groups to run: null, malloc, stack, deferred, raid, uring, reactor, host, registration, tcp, nvme [default: all]
    names: Vec<String>,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each load
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the probes of one round measured.
pub type Round = BTreeMap<String, f64>;

/// Puts what it measures into the round.
pub type Measure = Box<dyn Fn(&mut Round) -> Result<()>>;

/// Something that is measured once per round.
pub struct Probe {
    /// Its group.
    pub group: &'static str,
    /// What is run, for the progress line.
    pub name: String,
    /// Measures it.
    pub run: Measure,
}

const GROUPS: &[&str] = &[
    "null",
    "malloc",
    "stack",
    "deferred",
    "raid",
    "uring",
    "reactor",
    "host",
    "registration",
    "tcp",
    "nvme",
];

/// Builds for release, measures and prints.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if let Some(unknown) = options.names.iter().find(|name| !GROUPS.contains(&name.as_str())) {
        bail!("no group `{unknown}`: there are {}", GROUPS.join(", "));
    }
    let is_wanted = |group: &str| options.names.is_empty() || options.names.iter().any(|name| name == group);
    setup::ensure(&[Group::Base])?;
    if is_wanted("uring") {
        setup::ensure(&[Group::Bench])?;
    }
    build_release(workspace)?;
    steps::must(workspace.cargo().args(["build", "--release", "--package", "tenon-perf", "--examples"]))?;
    steps::must(workspace.cargo().args(["build", "--release", "--package", "tenon-reactor", "--examples"]))?;
    steps::must(workspace.cargo().args(["build", "--release", "--package", "bdev-raid", "--examples"]))?;
    steps::must(workspace.cargo().args(["build", "--release", "--package", "bdev-nvme", "--examples"]))?;
    let mut probes = load::probes(workspace, options.seconds)?;
    probes.extend(raid::probes(workspace, options.seconds)?);
    probes.extend(reactor::probes(workspace));
    probes.extend(host::probes(workspace));
    probes.extend(tcp::probes(workspace, options.seconds));
    probes.extend(nvme::probes(workspace, options.seconds));
    probes.retain(|probe| is_wanted(probe.group));
    let mut rounds = Vec::new();
    for number in 1..=options.rounds.max(1) {
        let mut round = Round::new();
        for probe in &probes {
            eprint!("\r{:78}\rbench: round {number} of {}: {}", "", options.rounds.max(1), probe.name);
            let _ = std::io::stderr().flush();
            (probe.run)(&mut round)?;
        }
        rounds.push(round);
    }
    eprintln!("\r{:78}\r", "");
    let figures: Vec<Figure> = figures::all().into_iter().filter(|figure| is_wanted(figure.group)).collect();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures::as_json(&figures, &rounds))?);
    } else {
        print!("{}", figures::as_table(&figures, &rounds));
    }
    Ok(())
}
