//! The command line as types: what clap parses, and what completions and man
//! pages are made from.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::perf::PerfArgs;

/// Where the control socket is unless somebody says otherwise.
pub const DEFAULT_SOCKET: &str = "/var/tmp/tenon.sock";

const EXIT_CODES: &str = "Exit codes: 0 success; 1 failure; 2 wrong usage; 69 something needed is not there \
(a required module failed, no host answers); 78 the configuration is wrong.";

/// A userspace block-storage host that loads its devices and transports as plugins.
#[derive(Parser)]
#[command(name = "tenon", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the host. SIGTERM drains and exits, a second one exits at once, SIGHUP reads the configuration again.
    Run(RunArgs),
    /// Put load on the devices of a configuration file and measure it.
    Perf(Box<PerfArgs>),
    /// Check a configuration file without starting anything.
    Check(CheckArgs),
    /// Call a method of a running host and print its result.
    Rpc(RpcArgs),
    /// Show what a running host does.
    Status(StatusArgs),
    /// Look at plugin files.
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Facts about the configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script.
    Completions {
        /// The shell it is for.
        shell: Shell,
    },
    /// Print the man page, or write one page per command into a directory.
    Man {
        /// Directory for the pages.
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

#[derive(Args)]
pub struct RunArgs {
    /// Configuration file; without one the host starts empty and is driven over RPC.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Control socket [default: /var/tmp/tenon.sock].
    #[arg(long, value_name = "PATH")]
    pub rpc_socket: Option<PathBuf>,
    /// Further plugin directory, searched first; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub plugin_dir: Vec<PathBuf>,
    /// CPUs of the data reactors, e.g. 0-3,8; overrides the configuration.
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<String>,
}

#[derive(Args)]
pub struct CheckArgs {
    /// Configuration file.
    #[arg(required_unless_present = "config")]
    pub file: Option<PathBuf>,
    /// Configuration file, as `run` takes it.
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    pub config: Option<PathBuf>,
    /// Further plugin directory, searched first; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub plugin_dir: Vec<PathBuf>,
}

#[derive(Args)]
pub struct SchemaArgs {
    /// Further plugin directory, searched first; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub plugin_dir: Vec<PathBuf>,
}

#[derive(Args)]
pub struct RpcArgs {
    /// Method name.
    pub method: String,
    /// Parameters as one JSON object.
    pub params: Option<String>,
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Seconds to wait for the answer.
    #[arg(long, default_value_t = 60)]
    pub timeout: u64,
}

#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub socket: SocketArgs,
    /// Show again every so many seconds.
    #[arg(long, value_name = "SECONDS")]
    pub watch: Option<u64>,
}

#[derive(Args)]
pub struct SocketArgs {
    /// Control socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub rpc_socket: PathBuf,
}

#[derive(Subcommand)]
pub enum PluginCommand {
    /// List the plugins found, without loading them.
    List {
        /// Further plugin directory, searched first; may be repeated.
        #[arg(long, value_name = "DIR")]
        plugin_dir: Vec<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print what a plugin file says of itself, without loading it.
    Inspect {
        /// Plugin file.
        file: PathBuf,
    },
    /// Load a plugin file and check everything the host would check, without starting its module.
    Check {
        /// Plugin file.
        file: PathBuf,
        /// Refuse a plugin without a layout certificate.
        #[arg(long)]
        require_certificate: bool,
    },
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Print the JSON Schema of the configuration file.
    Schema(SchemaArgs),
}

/// Prints a completion script.
pub fn completions(shell: Shell) -> anyhow::Result<()> {
    crate::exit::end_with_reader();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tenon", &mut script);
    std::io::stdout().write_all(&script).context("cannot print")
}

/// Prints the page of `tenon`, or writes all pages.
pub fn man(out: Option<&Path>) -> anyhow::Result<()> {
    crate::exit::end_with_reader();
    match out {
        Some(directory) => {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
            clap_mangen::generate_to(Cli::command(), directory)
                .with_context(|| format!("cannot write into {}", directory.display()))
        }
        None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()).context("cannot print"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
