//! `cargo xtask setup`: the Debian packages each group of tasks needs.
//!
//! One table says what is installed and why. Root rights are asked for only
//! when something is missing. Rust itself comes from rustup and is not
//! installed here; on other systems the table tells what to look for.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

/// Arguments of `cargo xtask setup`.
#[derive(Args, Debug, Default)]
pub struct Options {
    /// Also install what these groups of tasks need (repeatable)
    #[arg(long = "group", value_enum)]
    groups: Vec<Group>,
    /// Only say what is missing
    #[arg(long)]
    dry_run: bool,
}

/// The tasks a package is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// `run` and `test`
    Base,
    /// `bench`
    Bench,
    /// `vm`
    Vm,
    /// `vm` with `--kernel qemu`
    VmQemu,
}

struct DebianPackage {
    name: &'static str,
    group: Group,
    reason: &'static str,
}

const PACKAGES: &[DebianPackage] = &[
    DebianPackage {
        name: "build-essential",
        group: Group::Base,
        reason: "linker for Rust, compiler for the plugin example in C and for -sys crates",
    },
    DebianPackage { name: "libssl-dev", group: Group::Base, reason: "TLS of the TCP transport" },
    DebianPackage { name: "pkg-config", group: Group::Base, reason: "finds libssl" },
    DebianPackage { name: "fio", group: Group::Bench, reason: "load generator of the benchmarks" },
    DebianPackage {
        name: "linux-source-6.12",
        group: Group::Vm,
        reason: "source of the User-Mode-Linux kernel",
    },
    DebianPackage { name: "flex", group: Group::Vm, reason: "build tool of the kernel" },
    DebianPackage { name: "bison", group: Group::Vm, reason: "build tool of the kernel" },
    DebianPackage { name: "bc", group: Group::Vm, reason: "build tool of the kernel" },
    DebianPackage { name: "xz-utils", group: Group::Vm, reason: "unpacks the kernel's source and modules" },
    DebianPackage { name: "busybox-static", group: Group::Vm, reason: "first program of a machine" },
    DebianPackage { name: "iproute2", group: Group::Vm, reason: "network set-up in a machine" },
    DebianPackage { name: "kmod", group: Group::Vm, reason: "kernel modules in a machine" },
    DebianPackage { name: "nvme-cli", group: Group::Vm, reason: "drives the kernel's NVMe-oF host" },
    DebianPackage { name: "ibverbs-providers", group: Group::Vm, reason: "RDMA devices in a machine" },
    DebianPackage { name: "qemu-system-x86", group: Group::VmQemu, reason: "emulator of a machine with PCI" },
    DebianPackage { name: "cpio", group: Group::VmQemu, reason: "packs the initial file system" },
    DebianPackage { name: "zstd", group: Group::VmQemu, reason: "unpacks the kernel" },
];

/// Says what is missing and, unless it is a dry run, installs it.
pub fn run(options: &Options) -> Result<()> {
    let mut groups = vec![Group::Base];
    groups.extend(&options.groups);
    let missing = missing_of(&groups);
    if missing.is_empty() {
        println!("setup: all packages are present");
        return Ok(());
    }
    for package in &missing {
        println!("setup: {} is missing; needed as {}", package.name, package.reason);
    }
    if options.dry_run { Ok(()) } else { install(&missing) }
}

/// Installs what these groups need and is not there; silent when nothing is missing.
pub fn ensure(groups: &[Group]) -> Result<()> {
    if missing_of(groups).is_empty() {
        return Ok(());
    }
    run(&Options { groups: groups.to_vec(), dry_run: false })
}

fn missing_of(groups: &[Group]) -> Vec<&'static DebianPackage> {
    let wanted = PACKAGES.iter().filter(|package| groups.contains(&package.group));
    if has_program("dpkg-query") {
        return wanted.filter(|package| !is_installed(package.name)).collect();
    }
    // Not Debian: the packages have other names there, so look for the programs.
    wanted.filter(|package| !has_program(program_of(package.name))).collect()
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn program_of(package: &'static str) -> &'static str {
    match package {
        "build-essential" => "cc",
        // Its headers come with the program elsewhere.
        "libssl-dev" => "openssl",
        other => other,
    }
}

/// Whether a program of this name is on the search path.
pub fn has_program(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|paths| env::split_paths(&paths).any(|dir| dir.join(name).is_file()))
}

fn install(missing: &[&DebianPackage]) -> Result<()> {
    if !has_program("apt-get") {
        bail!("this is not a Debian system: install what is named above by hand");
    }
    let is_root = Path::new("/proc/self").metadata().is_ok_and(|meta| {
        use std::os::unix::fs::MetadataExt;
        meta.uid() == 0
    });
    if !is_root && !has_program("sudo") {
        bail!("neither root nor sudo: run `apt-get install` for what is named above as root");
    }
    println!("setup: installing with apt-get{}", if is_root { "" } else { " through sudo" });
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    // A fresh image has no package lists; a failing update (one dead mirror) need not stop the install.
    let _ = apt(is_root, &["update", "--quiet"]);
    let mut arguments = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
    arguments.extend(names);
    if apt(is_root, &arguments)? { Ok(()) } else { bail!("apt-get {} failed", arguments.join(" ")) }
}

fn apt(is_root: bool, arguments: &[&str]) -> Result<bool> {
    let mut command = if is_root { Command::new("apt-get") } else { Command::new("sudo") };
    if !is_root {
        command.arg("apt-get");
    }
    let status = command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status();
    Ok(status.context("apt-get")?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_listed_once_with_a_reason() {
        for (index, package) in PACKAGES.iter().enumerate() {
            assert!(!package.reason.is_empty(), "{}", package.name);
            assert!(PACKAGES[..index].iter().all(|other| other.name != package.name), "{}", package.name);
        }
    }

    #[test]
    fn a_program_that_does_not_exist_is_not_found() {
        assert!(!has_program("no-such-program-of-tenon"));
        assert!(has_program("sh"));
    }

    #[test]
    fn a_package_that_does_not_exist_is_not_installed() {
        assert!(!is_installed("no-such-package-of-tenon"));
    }
}
