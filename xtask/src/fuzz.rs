//! `cargo xtask fuzz`: runs the fuzz targets of `tests/fuzz`.
//!
//! Under libFuzzer where nightly and cargo-fuzz are installed, otherwise under
//! the targets' own driver; the functions fed are the same. Inputs libFuzzer
//! finds interesting go to `target/fuzz`, not to the committed corpus.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::setup;
use crate::steps;
use crate::workspace::Workspace;

const PACKAGE: &str = "tests/fuzz";
const OUTPUT: &str = "target/fuzz";
/// What one target gets by default.
const SECONDS: u64 = 60;
/// Targets of every host's own doors, which get as much within the test suite.
const DOORS: [&str; 3] = ["config", "plugin_metadata", "rpc_frame"];
/// What each other target gets there, since people wait for the suite.
const SLICE_SECONDS: u64 = 20;
/// An input that needs more is a finding.
const MAX_MEMORY_MIB: u32 = 2048;
const MAX_SECONDS_PER_INPUT: u32 = 10;

#[derive(Args, Debug)]
pub struct Options {
    /// The target to run; all of them without it
    target: Option<String>,
    /// How long to run each target
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
    /// Which driver feeds the targets
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    driver: Driver,
    /// Seed of the own driver; the time of day without it
    #[arg(long)]
    seed: Option<u64>,
    /// Feed one file instead of fuzzing
    #[arg(long, requires = "target")]
    replay: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Driver {
    /// libFuzzer if it is there, otherwise the own driver
    Auto,
    /// libFuzzer: guided by coverage, with the address sanitizer; needs nightly and cargo-fuzz
    Libfuzzer,
    /// The own driver: seeded mutations of the corpus on any toolchain
    Own,
}

/// Runs the chosen targets one after the other, or replays one input.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let all = targets(workspace)?;
    if let Some(file) = &options.replay {
        let target = options.target.as_deref().unwrap_or_default();
        return steps::must(own(workspace, target).args(["replay", file]));
    }
    let chosen: Vec<&String> =
        all.iter().filter(|name| options.target.as_ref().is_none_or(|target| *name == target)).collect();
    if chosen.is_empty() {
        bail!("no such fuzz target; there are: {}", all.join(", "));
    }
    let seed = options.seed.unwrap_or_else(seed_of_the_day);
    let driver = resolve(workspace, options.driver)?;
    for target in chosen {
        println!("fuzz: {target}, {} s", options.seconds);
        steps::must(&mut command(workspace, driver, target, options.seconds, seed)?)?;
    }
    Ok(())
}

/// Targets and commands for the test suite; empty when there are none.
pub fn slices(workspace: &Workspace) -> Result<Vec<(String, Command)>> {
    if !workspace.has(&format!("{PACKAGE}/Cargo.toml")) {
        return Ok(Vec::new());
    }
    let driver = resolve(workspace, Driver::Auto)?;
    let seed = seed_of_the_day();
    let slice = |target: String| {
        let seconds = if DOORS.contains(&target.as_str()) { SECONDS } else { SLICE_SECONDS };
        let command = command(workspace, driver, &target, seconds, seed)?;
        Ok((target, command))
    };
    targets(workspace)?.into_iter().map(slice).collect()
}

fn command(workspace: &Workspace, driver: Driver, target: &str, seconds: u64, seed: u64) -> Result<Command> {
    let corpus = workspace.path(&format!("{PACKAGE}/corpus/{target}")).display().to_string();
    let artifacts = workspace.path(&format!("{OUTPUT}/artifacts/{target}/")).display().to_string();
    fs::create_dir_all(&artifacts).with_context(|| artifacts.clone())?;
    if driver == Driver::Own {
        let mut command = own(workspace, target);
        command.args(["seconds", &seconds.to_string(), &seed.to_string(), &corpus, &artifacts]);
        return Ok(command);
    }
    // libFuzzer writes new inputs into the first folder; the second is only read.
    let found = workspace.path(&format!("{OUTPUT}/found/{target}")).display().to_string();
    fs::create_dir_all(&found).with_context(|| found.clone())?;
    fs::create_dir_all(&corpus).with_context(|| corpus.clone())?;
    let mut command = workspace.cargo_of("nightly");
    command.args([
        "fuzz",
        "run",
        "--fuzz-dir",
        PACKAGE,
        "--target-dir",
        OUTPUT,
        target,
        &found,
        &corpus,
        "--",
    ]);
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-rss_limit_mb={MAX_MEMORY_MIB}"),
        format!("-timeout={MAX_SECONDS_PER_INPUT}"),
        format!("-artifact_prefix={artifacts}"),
        "-print_final_stats=1".to_owned(),
    ]);
    // Optimising across crates costs minutes of building and finds nothing more.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    Ok(command)
}

/// `cargo run` of a target with the own driver, up to its arguments.
fn own(workspace: &Workspace, target: &str) -> Command {
    let mut command = workspace.cargo();
    command.args(["run", "--quiet", "--profile", "test", "--package", "tenon-fuzz", "--bin", target, "--"]);
    command
}

fn resolve(workspace: &Workspace, driver: Driver) -> Result<Driver> {
    if driver == Driver::Own {
        return Ok(driver);
    }
    let is_present = setup::has_program("c++")
        && steps::succeeds(workspace.cargo_of("nightly").arg("--version"))
        && steps::succeeds(workspace.cargo_of("nightly").args(["fuzz", "--version"]));
    match driver {
        Driver::Libfuzzer if !is_present => {
            bail!("libFuzzer needs `rustup toolchain install nightly`, `cargo install cargo-fuzz` and c++")
        }
        Driver::Auto if !is_present => {
            println!("fuzz: no nightly toolchain with cargo-fuzz; the targets run under their own driver");
            Ok(Driver::Own)
        }
        Driver::Auto | Driver::Libfuzzer | Driver::Own => Ok(Driver::Libfuzzer),
    }
}

/// Names of the `[[bin]]` entries: each is a target.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let path = format!("{PACKAGE}/Cargo.toml");
    let text = fs::read_to_string(workspace.path(&path)).with_context(|| path.clone())?;
    targets_in(&text).with_context(|| path)
}

fn targets_in(manifest: &str) -> Result<Vec<String>> {
    let manifest: toml::Table = manifest.parse()?;
    let bins = manifest.get("bin").and_then(toml::Value::as_array).context("no [[bin]] entries")?;
    let names = bins.iter().filter_map(|bin| bin.get("name")?.as_str());
    Ok(names.map(str::to_owned).collect())
}

/// A seed that differs between runs and is short enough to type.
fn seed_of_the_day() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bin_is_a_target() {
        let manifest = "[package]\nname = \"f\"\n[[bin]]\nname = \"a\"\n[[bin]]\nname = \"b\"\n";
        assert_eq!(targets_in(manifest).unwrap(), ["a", "b"]);
        assert!(targets_in("[package]\nname = \"f\"\n").is_err());
    }
}
