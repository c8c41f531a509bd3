//! `cargo xtask COMMAND`: every task of this repository as one program.
//!
//! Holds the command line only; each command lives in the module of its name.
//! Tasks are Rust rather than shell so that they are tested and read like the
//! rest of the tree. Nothing here is part of the product.

#![forbid(unsafe_code)]

mod abi;
mod bench;
mod dist;
mod fuzz;
mod interop;
mod new_plugin;
mod rare;
mod run;
mod setup;
mod steps;
mod suite;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Tasks of the Tenon repository")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the Debian packages the build needs; does nothing when all are present
    Setup(setup::Options),
    /// Check, build and test everything; ends with a line `N passed, N failed`
    Test,
    /// Build for release and start the host on a configuration
    Run(run::Options),
    /// Compare the plugin contract with plugin-api/abi.lock and tenon_plugin.h
    Abi(abi::Options),
    /// Measure against what Tenon has to reach
    Bench(bench::Options),
    /// Pack an archive to install from
    Dist(dist::Options),
    /// Run the fuzz targets of tests/fuzz
    Fuzz(fuzz::Options),
    /// Run the kernel's NVMe/TCP host against the built process, scenario by scenario
    Interop(interop::Options),
    /// Make a block-device plugin outside of this repository
    NewPlugin(new_plugin::Options),
    /// Explore all interleavings of the lock-free parts
    Loom(rare::LoomOptions),
    /// Run the tests of the unsafe crates under miri, or the address sanitizer
    Miri,
    /// Check the rules of the house: sizes, borders, unsafe code, pages, names
    Tidy(tidy::Options),
    /// Run a command under a real kernel with NVMe-oF, RDMA, ublk and nbd
    Vm(vm::Options),
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(task: Task) -> Result<()> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup(options) => setup::run(&options),
        Task::Test => suite::run(&workspace),
        Task::Run(options) => run::run(&workspace, &options),
        Task::Abi(options) => abi::run(&workspace, &options),
        Task::Bench(options) => bench::run(&workspace, &options),
        Task::Dist(options) => dist::run(&workspace, &options),
        Task::Fuzz(options) => fuzz::run(&workspace, &options),
        Task::Interop(options) => interop::run(&workspace, &options),
        Task::NewPlugin(options) => new_plugin::run(&workspace, &options),
        Task::Loom(options) => rare::loom(&workspace, &options),
        Task::Miri => rare::miri(&workspace),
        Task::Tidy(options) => tidy::run(&workspace, &options),
        Task::Vm(options) => vm::run(&options),
    }
}
