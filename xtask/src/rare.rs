//! `cargo xtask loom` and `cargo xtask miri`: tests under tools that see what a plain run does not.
//!
//! Loom explores every interleaving of the lock-free parts; miri, or the
//! address sanitizer where miri is missing, watches the unsafe ones. Both use
//! target folders of their own, so that they never rebuild the ordinary one.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::steps;
use crate::workspace::{Package, Workspace};

/// Interleavings with more preemptions than this are left out: two find nearly all faults, three take hours.
const LOOM_MAX_PREEMPTIONS: &str = "2";
/// The crates that hold the unsafe code everything else relies on.
const MIRI_CRATES: &[&str] = &["tenon-abi", "tenon-sdk", "tenon-bdev"];
/// What the address sanitizer can watch beyond miri's reach: real threads and system calls.
const SANITIZER_CRATES: &[&str] = &["tenon-abi", "tenon-sdk", "tenon-bdev", "tenon-testkit", "tenon-reactor"];
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Arguments of `cargo xtask loom`.
#[derive(Args, Debug)]
pub struct LoomOptions {
    /// Bound on preemptions per interleaving
    #[arg(long, default_value = LOOM_MAX_PREEMPTIONS)]
    preemptions: String,
}

/// Runs the model tests of every package that has some.
pub fn loom(workspace: &Workspace, options: &LoomOptions) -> Result<()> {
    let packages = loom_packages(&workspace.packages()?);
    if packages.is_empty() {
        bail!("no package names loom as a dependency");
    }
    steps::must(&mut loom_command(workspace, &packages, &options.preemptions))
}

/// The command for the test suite, or nothing when no package has model tests.
pub fn loom_slice(workspace: &Workspace) -> Result<Option<Command>> {
    let packages = loom_packages(&workspace.packages()?);
    Ok((!packages.is_empty()).then(|| loom_command(workspace, &packages, LOOM_MAX_PREEMPTIONS)))
}

/// Packages that can be built with `--cfg loom`: they name the model checker as a dependency.
fn loom_packages(packages: &[Package]) -> Vec<String> {
    packages.iter().filter(|package| package.mentions("loom")).map(|package| package.name.clone()).collect()
}

/// Optimised: the model checker runs a test many thousand times.
fn loom_command(workspace: &Workspace, packages: &[String], preemptions: &str) -> Command {
    let mut command = workspace.cargo();
    command.args(["test", "--release", "--lib", "--target-dir", "target/loom"]);
    for package in packages {
        command.args(["--package", package]);
    }
    command.args(["loom"]);
    command.env("CARGO_PROFILE_RELEASE_LTO", "off");
    command.env("RUSTFLAGS", "--cfg loom").env("LOOM_MAX_PREEMPTIONS", preemptions);
    command
}

/// Runs the tests of the unsafe crates under miri, or under the address sanitizer.
pub fn miri(workspace: &Workspace) -> Result<()> {
    if !steps::succeeds(workspace.cargo_of("nightly").arg("--version")) {
        bail!("no nightly toolchain: `rustup toolchain install nightly --component miri`");
    }
    let mut command = workspace.cargo_of("nightly");
    let crates = if steps::succeeds(workspace.cargo_of("nightly").args(["miri", "--version"])) {
        command.args(["miri", "test", "--lib", "--target-dir", "target/miri"]);
        MIRI_CRATES
    } else {
        println!("miri: this nightly has no miri component; running under the address sanitizer instead");
        command.args(["test", "--lib", "--tests", "--target", TARGET, "--target-dir", "target/asan"]);
        command.env("RUSTFLAGS", "-Zsanitizer=address");
        let leaks = workspace.root.join("plugin-api/testkit/tests/faults.supp");
        command.env("LSAN_OPTIONS", format!("suppressions={}", leaks.display()));
        SANITIZER_CRATES
    };
    for package in present(&workspace.packages()?, crates) {
        command.args(["--package", &package]);
    }
    steps::must(&mut command)
}

fn present(packages: &[Package], wanted: &[&str]) -> Vec<String> {
    let is_wanted = |package: &&Package| wanted.contains(&package.name.as_str());
    packages.iter().filter(is_wanted).map(|package| package.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::workspace::packages_in;

    #[test]
    fn only_packages_that_name_loom_are_model_checked() {
        let manifest = |name: &str, table: &str| format!("[package]\nname = \"{name}\"\n{table}");
        let texts = BTreeMap::from([
            ("a/Cargo.toml".to_owned(), manifest("a", "[target.'cfg(loom)'.dependencies]\nloom = \"0.7\"\n")),
            ("b/Cargo.toml".to_owned(), manifest("b", "[dependencies]\nlog = \"0.4\"\n")),
        ]);
        assert_eq!(loom_packages(&packages_in(&texts).unwrap()), ["a"]);
        assert_eq!(present(&packages_in(&texts).unwrap(), &["b", "c"]), ["b"]);
    }
}
