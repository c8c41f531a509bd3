//! User-Mode Linux: Debian's kernel source built as a program that runs the host's programs at native speed.
//!
//! Boots and powers off in half a second. It has one CPU, so a process that
//! polls without sleeping starves the kernel's own initiator; and no PCI
//! devices: for those see [`super::qemu`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use super::cache::{self, BuildFolder};
use super::control::Control;
use super::{RunOptions, ensure_packages};
use crate::setup::{self, Group};
use crate::steps;

const CONFIG: &str = include_str!("../../vm/uml.config");
const INIT: &str = include_str!("../../vm/init");
const PREFIX: &str = "linux-uml";
const SOURCE_PACKAGE: &str = "linux-source-6.12";
const SOURCE_ARCHIVE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// Programs in the machine's way from start to command.
const RUN_PROGRAMS: &[&str] = &["busybox", "timeout"];
/// Where user-mode Linux keeps and sets the vector registers of its processes.
const REGISTERS: &str = "arch/x86/um/os-Linux/registers.c";
/// Changes to the source: file, text that must be there, what replaces it.
const CHANGES: &[(&str, &str, &str)] = &[
    // Built in, ib_uverbs would start after its clients: `rdma link delete` then hangs, and a device's removal
    // is never reported.
    (
        "drivers/infiniband/core/uverbs_main.c",
        "module_init(ib_uverbs_init)",
        "fs_initcall_sync(ib_uverbs_init)",
    ),
    // On a processor with AMX the registers are larger than the source thinks, and the host takes them whole only:
    // the first process would not start. What is kept of them goes first, the rest is zero; nobody in the machine
    // may use it.
    (
        REGISTERS,
        "static int have_xstate_support;\n",
        "#include <string.h>\n\
         static int have_xstate_support;\n\
         static unsigned long host_xstate[8192];\n\
         static size_t host_xstate_size;\n",
    ),
    (
        REGISTERS,
        "\t\tiov.iov_base = fp_regs;\n\t\tiov.iov_len = FP_SIZE * sizeof(unsigned long);\n\
         \t\tif (ptrace(PTRACE_SETREGSET",
        "\t\tmemcpy(host_xstate, fp_regs, FP_SIZE * sizeof(unsigned long));\n\
         \t\tiov.iov_base = host_xstate;\n\t\tiov.iov_len = host_xstate_size;\n\
         \t\tif (ptrace(PTRACE_SETREGSET",
    ),
    (
        REGISTERS,
        "\tiov.iov_base = fp_regs;\n\tiov.iov_len = FP_SIZE * sizeof(unsigned long);\n\
         \tif (ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &iov) == 0)\n",
        "\tiov.iov_base = host_xstate;\n\tiov.iov_len = sizeof(host_xstate);\n\
         \tif (ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &iov) == 0 && (host_xstate_size = iov.iov_len))\n",
    ),
];

/// Builds the kernel of the source package that is installed, unless it is in the cache.
pub fn build() -> Result<PathBuf> {
    setup::ensure(&[Group::Base, Group::Vm])?;
    let folder = cache::folder()?;
    let kernel = folder.join(format!("{PREFIX}-{}-{}", source_version()?, config_hash()));
    if kernel.is_file() {
        return Ok(kernel);
    }
    eprintln!("vm: building {}; this takes some minutes, once", kernel.display());
    let build = BuildFolder::create(&folder)?;
    steps::must(
        Command::new("tar").args(["--extract", "--file", SOURCE_ARCHIVE, "--directory"]).arg(&build.path),
    )?;
    let source = build.path.join(SOURCE_PACKAGE);
    change(&source)?;
    let config = build.path.join("config");
    fs::write(&config, CONFIG)?;
    steps::must(make(&source).arg("allnoconfig").env("KCONFIG_ALLCONFIG", &config))?;
    check_config(&fs::read_to_string(source.join(".config"))?)?;
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    steps::must(make(&source).arg(format!("--jobs={jobs}")).arg("linux"))?;
    let stripped = build.path.join("linux");
    steps::must(Command::new("strip").arg("-o").arg(&stripped).arg(source.join("linux")))?;
    fs::rename(&stripped, &kernel).with_context(|| format!("cannot create {}", kernel.display()))?;
    Ok(kernel)
}

/// Whether the cache has a kernel of these sources.
pub fn is_built() -> Result<bool> {
    Ok(cache::newest(&cache::folder()?, PREFIX, &config_hash())?.is_some())
}

/// Runs a command under the kernel and returns its exit code.
pub fn run(options: &RunOptions) -> Result<i32> {
    if options.cpus != 1 || !options.qemu_arg.is_empty() {
        bail!("--cpus and --qemu-arg need --kernel qemu");
    }
    let kernel = match cache::newest(&cache::folder()?, PREFIX, &config_hash())? {
        Some(kernel) => kernel,
        None => build()?,
    };
    ensure_packages(Group::Vm, RUN_PROGRAMS)?;
    let control = Control::create("uml", None, &options.command)?;
    let init = control.write_program("init", INIT)?;
    let mut machine = Command::new(&kernel);
    machine.arg(format!("mem={}", options.memory));
    machine.args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]);
    machine.arg(format!("init={}", init.display()));
    // The init reads the shared folder's path from its environment, which is where unknown arguments go.
    machine.arg(format!("tenon_control={}", control.folder.display()));
    machine.args(["con=null", "con0=null,fd:1", "quiet", "panic=-1"]);
    machine.args(&options.kernel_arg);
    control.run(options.timeout, &machine, "dmesg", options.keep.as_deref())
}

fn make(source: &Path) -> Command {
    let mut command = Command::new("make");
    // The kernel's own warnings are nothing that can be acted on here.
    command.args(["--silent", "ARCH=um", "KCFLAGS=-w"]).current_dir(source);
    // cargo's own job server is not make's.
    command.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("CARGO_MAKEFLAGS");
    // Standard output is for the kernel's path alone.
    command.stdout(std::io::stderr());
    command
}

fn change(source: &Path) -> Result<()> {
    for (file, old, new) in CHANGES {
        let path = source.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !text.contains(old) {
            bail!(
                "{SOURCE_PACKAGE}: {file} no longer holds {old:?}; look whether the change is still needed"
            );
        }
        fs::write(&path, text.replace(old, new))?;
    }
    Ok(())
}

/// Fails if the kernel's configuration dropped something: it does so silently when a dependency is missing.
fn check_config(made: &str) -> Result<()> {
    let wanted = CONFIG.lines().filter(|line| line.ends_with("=y"));
    let missing: Vec<&str> = wanted.filter(|line| !made.lines().any(|other| other == *line)).collect();
    if missing.is_empty() { Ok(()) } else { bail!("the kernel's configuration lacks {}", missing.join(", ")) }
}

fn config_hash() -> String {
    let mut inputs = vec![CONFIG];
    for (file, old, new) in CHANGES {
        inputs.extend([*file, *old, *new]);
    }
    cache::hash_of(&inputs)
}

fn source_version() -> Result<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Version}", SOURCE_PACKAGE]);
    let version = steps::output_of(&mut query)?;
    Ok(version.replace('/', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_lost_something_is_refused() {
        assert!(check_config(CONFIG).is_ok());
        let error = check_config(&CONFIG.replace("CONFIG_NVME_TCP=y", "")).unwrap_err();
        assert!(format!("{error}").contains("CONFIG_NVME_TCP=y"), "{error}");
    }

    #[test]
    fn the_configuration_names_nothing_twice() {
        let mut names: Vec<&str> = CONFIG.lines().filter_map(|line| line.split('=').next()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
