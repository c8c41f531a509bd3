//! `cargo xtask test`: everything a change must pass, in one run.
//!
//! Order: cheap checks first, then lints, build and tests. Later steps still
//! run after a failed check, so that one run shows everything; only tests of
//! a tree that does not build are left out.

use std::process::Command;

use anyhow::Result;

use crate::setup::{self, Group};
use crate::steps::{self, Session};
use crate::workspace::Workspace;
use crate::{abi, fuzz, rare, tidy};

/// Runs every step and prints the closing line.
pub fn run(workspace: &Workspace) -> Result<()> {
    let mut session = Session::default();
    session.check("setup", || setup::ensure(&[Group::Base]));
    session.check("tidy", || tidy::check(workspace));
    session.check("abi", || abi::run_check(workspace));
    session.command("format", workspace.cargo().args(["fmt", "--all", "--check"]));
    session.command("clippy", &mut clippy(workspace));
    if session.command("build", &mut build(workspace)) {
        tests(workspace, &mut session)?;
        rare_faults(workspace, &mut session)?;
    } else {
        session.skip("tests", "the build failed");
    }
    session.finish()
}

/// All steps use the test profile: one set of artefacts instead of two.
fn build(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo();
    command.args(["build", "--workspace", "--profile", "test"]);
    command
}

fn clippy(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--profile", "test", "--", "-D", "warnings"]);
    command
}

fn tests(workspace: &Workspace, session: &mut Session) -> Result<()> {
    if steps::succeeds(workspace.cargo().args(["nextest", "--version"])) {
        let mut command = workspace.cargo();
        command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "pass"]);
        session.command("tests (nextest)", &mut command);
    } else {
        let mut command = workspace.cargo();
        command.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"]);
        session.command("tests (cargo test)", &mut command);
    }
    let documented = documented_packages(workspace)?;
    if documented.is_empty() {
        session.skip("tests in documentation", "no package has a library");
    } else {
        let mut command = workspace.cargo();
        command.args(["test", "--doc", "--no-fail-fast"]);
        for package in &documented {
            command.args(["--package", package]);
        }
        session.command("tests in documentation", &mut command);
    }
    Ok(())
}

/// Short runs of the tools that look for rare faults.
fn rare_faults(workspace: &Workspace, session: &mut Session) -> Result<()> {
    match rare::loom_slice(workspace)? {
        Some(mut command) => _ = session.command("interleavings (loom)", &mut command),
        None => session.skip("interleavings (loom)", "no package has model tests"),
    }
    for (target, mut command) in fuzz::slices(workspace)? {
        session.command(&format!("fuzz {target}"), &mut command);
    }
    Ok(())
}

/// Member packages with a library whose examples in comments can be run.
fn documented_packages(workspace: &Workspace) -> Result<Vec<String>> {
    let metadata =
        steps::output_of(workspace.cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let has_doctests = |package: &serde_json::Value| {
        package["targets"].as_array().is_some_and(|targets| {
            targets.iter().any(|target| {
                let is_rlib = target["crate_types"]
                    .as_array()
                    .is_some_and(|kinds| kinds.iter().any(|kind| kind == "lib" || kind == "rlib"));
                is_rlib && target["doctest"] == true
            })
        })
    };
    let named = packages.iter().filter(|package| has_doctests(package));
    Ok(named.filter_map(|package| package["name"].as_str().map(str::to_owned)).collect())
}
