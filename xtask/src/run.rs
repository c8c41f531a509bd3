//! `cargo xtask run`: builds everything for release and starts the host on a configuration.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::setup::{self, Group};
use crate::steps;
use crate::workspace::{Workspace, is_below};

const BINARY: &str = "target/release/tenon";

/// Arguments of `cargo xtask run`.
#[derive(Args, Debug)]
pub struct Options {
    /// The configuration to run
    #[arg(short, long, default_value = "configs/quickstart.toml")]
    config: String,
    /// Further arguments for `tenon run`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Replaces this process by the host, so that signals reach it directly.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(&[Group::Base])?;
    if !workspace.path(&options.config).is_file() {
        bail!("configuration {} does not exist", options.config);
    }
    build_release(workspace)?;
    println!("run: {BINARY} run -c {}", options.config);
    let error = Command::new(workspace.path(BINARY))
        .args(["run", "-c", &options.config])
        .args(&options.arguments)
        .current_dir(&workspace.root)
        .exec();
    Err(error).with_context(|| format!("cannot start {BINARY}"))
}

/// The host and all plugins, into `target/release`.
pub fn build_release(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo();
    command.args(["build", "--release", "--workspace"]);
    for package in workspace.packages()? {
        let is_product = !["tests", "xtask"].iter().any(|area| is_below(&package.dir, area));
        if !is_product {
            command.args(["--exclude", &package.name]);
        }
    }
    steps::must(&mut command)
}
