//! `cargo xtask vm`: runs a command under a real kernel with NVMe-oF, RDMA, ublk and nbd.
//!
//! Ordinary build machines have none of these, and no KVM either. Two kernels
//! can be had there: User-Mode Linux (`uml`), built once as an ordinary
//! program, and a stock Debian kernel emulated by QEMU (`qemu`). Both run the
//! host's own programs over the host's root, read-only under a layer that is
//! thrown away. Holds the command line; [`control`] is what host and machine
//! share, [`uml`] and [`qemu`] are the machines, [`cache`] keeps what is built.

mod cache;
mod control;
mod qemu;
mod uml;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::exit;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use crate::setup::{self, Group};

/// Exit code of `vm run` when the machine itself failed, so that no result of the command is known.
const MACHINE_FAILED: i32 = 125;
/// How long a command may take by default. A boot takes 0.5 s (`uml`) to 15 s (`qemu`).
const DEFAULT_TIMEOUT_S: &str = "120";
/// Enough for a kernel, a target and fio; less makes the tmpfs layer too small for test images.
const DEFAULT_MEMORY: &str = "1G";

/// Arguments of `cargo xtask vm`.
#[derive(Args, Debug)]
pub struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    /// Build or fetch a kernel into the user's cache; does nothing when it is there
    Build {
        /// Which kernel
        #[arg(long, value_enum, default_value_t = Kernel::Uml)]
        kernel: Kernel,
    },
    /// Run a command under the kernel; the exit code is the command's, 125 if the machine failed
    Run(RunOptions),
}

/// Arguments of `cargo xtask vm run`.
#[derive(Args, Debug)]
struct RunOptions {
    /// Which kernel
    #[arg(long, value_enum, default_value_t = Kernel::Uml)]
    kernel: Kernel,
    /// Memory of the machine, with suffix M or G
    #[arg(long, default_value = DEFAULT_MEMORY, value_parser = memory)]
    memory: String,
    /// Seconds until the machine is stopped
    #[arg(long, default_value = DEFAULT_TIMEOUT_S)]
    timeout: u32,
    /// CPUs of the machine; `uml` has one
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// One more argument of the kernel (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    kernel_arg: Vec<String>,
    /// One more argument of QEMU (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<String>,
    /// Folder that gets the machine's console and kernel log
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// The command, run in the present folder
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// The kernels there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// User-Mode Linux: native speed, one CPU, no PCI devices
    Uml,
    /// Debian's kernel emulated by QEMU: slow, with PCI, emulated NVMe SSDs and VFIO
    Qemu,
}

/// Does what the command line says. `run` ends the process with the command's exit code.
pub fn run(options: &Options) -> Result<()> {
    match &options.task {
        Task::Build { kernel: Kernel::Uml } => uml::build().map(|path| println!("{}", path.display())),
        Task::Build { kernel: Kernel::Qemu } => qemu::build().map(|path| println!("{}", path.display())),
        Task::Run(options) => match run_command(options) {
            Ok(code) => exit(code),
            Err(error) => {
                eprintln!("error: {error:#}");
                exit(MACHINE_FAILED)
            }
        },
    }
}

/// The kernel that scenarios can run under without minutes of building: `uml` where it was built, else `qemu`,
/// which is fetched.
pub fn at_hand() -> Result<Kernel> {
    if uml::is_built()? {
        return Ok(Kernel::Uml);
    }
    qemu::build()?;
    Ok(Kernel::Qemu)
}

fn run_command(options: &RunOptions) -> Result<i32> {
    match options.kernel {
        Kernel::Uml => uml::run(options),
        Kernel::Qemu => qemu::run(options),
    }
}

/// Installs a group's packages only when something the machine needs is not there yet.
///
/// A kernel in the cache outlives the packages it was made from, so a later run needs none of them.
fn ensure_packages(group: Group, needed: &[&str]) -> Result<()> {
    if needed.iter().all(|program| setup::has_program(program)) { Ok(()) } else { setup::ensure(&[group]) }
}

fn memory(text: &str) -> Result<String, String> {
    let digits = text.strip_suffix(['M', 'G']).ok_or("no suffix M or G")?;
    match digits.parse::<u32>() {
        Ok(1..) => Ok(text.to_owned()),
        Ok(0) | Err(_) => Err("not a positive number with suffix M or G".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_needs_a_positive_number_and_a_suffix() {
        assert!(memory("1G").is_ok() && memory("1536M").is_ok());
        for text in ["1", "0G", "G", "-1G", "1T", "1 G"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }
}
