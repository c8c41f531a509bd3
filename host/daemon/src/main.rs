//! `tenon`: the command line. One file per command; `run` and `perf` compose
//! the host from its crates, all others work without one or talk to a running
//! one over its control socket.
#![forbid(unsafe_code)]

mod check;
mod cli;
mod client;
mod exit;
mod exports;
mod host;
mod logs;
mod perf;
mod plugin;
mod run;
mod status;

use clap::Parser;

use cli::{Cli, Command, ConfigCommand};

fn main() {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Perf(args) => perf::perf(&args),
        Command::Check(args) => check::check(&args),
        Command::Rpc(args) => client::rpc(&args),
        Command::Status(args) => status::status(&args),
        Command::Plugin(args) => plugin::plugin(&args),
        Command::Config(ConfigCommand::Schema(args)) => check::schema(&args),
        Command::Completions { shell } => cli::completions(shell),
        Command::Man { out } => cli::man(out.as_deref()),
    };
    exit::end(result)
}
