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
use crate::{abi, fuzz, interop, rare, tidy, vm};

/// Runs every step and prints the closing line.
pub fn run(workspace: &Workspace) -> Result<()> {
    let mut session = Session::default();
    session.check("setup", || setup::ensure(&[Group::Base]));
    session.check("tidy", || tidy::check(workspace));
    session.check("abi", || abi::run_check(workspace));
    session.command("format", workspace.cargo().args(["fmt", "--all", "--check"]));
    session.command("clippy", &mut clippy(workspace));
    if session.command("build", &mut build(workspace)) {
        tests(workspace, &mut session);
        rare_faults(workspace, &mut session)?;
        real_kernel(workspace, &mut session)?;
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

fn tests(workspace: &Workspace, session: &mut Session) {
    if steps::succeeds(workspace.cargo().args(["nextest", "--version"])) {
        let mut command = workspace.cargo();
        command.args(["nextest", "run", "--workspace", "--no-fail-fast", "--no-tests", "pass"]);
        session.command("tests (nextest)", &mut command);
    } else {
        let mut command = workspace.cargo();
        command.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests", "--examples"]);
        session.command("tests (cargo test)", &mut command);
    }
    // The whole workspace: a choice of packages would build the dependencies again, with fewer features.
    let mut command = workspace.cargo();
    command.args(["test", "--workspace", "--doc", "--no-fail-fast"]);
    session.command("tests in documentation", &mut command);
}

/// The short scenarios against a real kernel. Left out only where no kernel can be had: without network, or rights to
/// install packages.
fn real_kernel(workspace: &Workspace, session: &mut Session) -> Result<()> {
    const TITLE: &str = "interop (smoke)";
    match vm::at_hand() {
        Ok(kernel) => _ = session.command(TITLE, &mut interop::smoke(workspace, kernel)?),
        Err(error) => session.skip(TITLE, &format!("no kernel to run it under: {error:#}")),
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
