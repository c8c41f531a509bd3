//! `cargo xtask dist`: an archive to install from.
//!
//! Holds the host, all plugins, configurations, the C header, man pages,
//! completions, a systemd unit and the pages of the plugins, in the folders of
//! an ordinary prefix. The same commit gives the same file list and times.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::run::build_release;
use crate::setup::{self, Group};
use crate::steps;
use crate::workspace::{Package, Workspace};

const RELEASE: &str = "target/release";
const OUTPUT: &str = "target/dist";
const PLUGINS: &str = "lib/tenon/plugins";
const UNIT: &str = include_str!("../templates/dist/tenon.service.in");
/// Where the archive is unpacked unless somebody chooses otherwise.
const PREFIX: &str = "/usr/local";
const CONFIG: &str = "/etc/tenon/tenon.toml";

/// Arguments of `cargo xtask dist`.
#[derive(Args, Debug)]
pub struct Options {
    /// Prefix the systemd unit starts the host from
    #[arg(long, default_value = PREFIX)]
    prefix: String,
    /// Keep the line tables for backtraces and profiles
    #[arg(long)]
    keep_debug: bool,
}

/// Builds for release and packs `target/dist/tenon-VERSION-ARCH-linux.tar.gz`.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(&[Group::Base])?;
    build_release(workspace)?;
    let packages = workspace.packages()?;
    let name = format!("tenon-{}-{}-linux", version(workspace)?, std::env::consts::ARCH);
    let stage = workspace.path(&format!("{OUTPUT}/{name}"));
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| stage.display().to_string())?;
    }
    let files = files(workspace, &packages)?;
    for (from, to) in &files {
        copy(&workspace.path(from), &stage.join(to))?;
    }
    write(&stage.join("lib/systemd/system/tenon.service"), &unit(&options.prefix))?;
    generated(&stage)?;
    if !options.keep_debug {
        strip(&stage, &files)?;
    }
    let archive = pack(workspace, &name)?;
    println!("dist: {}, {} plugins", archive.display(), plugins(&packages).count());
    Ok(())
}

/// What is copied: path in the repository and path in the archive.
fn files(workspace: &Workspace, packages: &[Package]) -> Result<Vec<(String, String)>> {
    let mut files = vec![
        (format!("{RELEASE}/tenon"), "bin/tenon".to_owned()),
        ("plugin-api/tenon_plugin.h".to_owned(), "include/tenon_plugin.h".to_owned()),
    ];
    for page in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        files.push((page.to_owned(), format!("share/doc/tenon/{page}")));
    }
    for package in plugins(packages) {
        let library = library_of(package);
        files.push((format!("{RELEASE}/{library}"), format!("{PLUGINS}/{library}")));
        let page = format!("share/doc/tenon/plugins/{}.md", package.name);
        files.push((format!("{}/README.md", package.dir), page));
    }
    for path in workspace.files()? {
        if let Some(config) = path.strip_prefix("configs/").filter(|name| name.ends_with(".toml")) {
            files.push((path.clone(), format!("share/doc/tenon/configs/{config}")));
        }
    }
    Ok(files)
}

/// Plugins to ship: every package directly below `plugins/`.
fn plugins(packages: &[Package]) -> impl Iterator<Item = &Package> {
    packages
        .iter()
        .filter(|package| package.dir.strip_prefix("plugins/").is_some_and(|name| !name.contains('/')))
}

/// File name of a plugin's library: after its `[lib] name`, or after the package.
fn library_of(package: &Package) -> String {
    let name = package.manifest.get("lib").and_then(|lib| lib.get("name")?.as_str());
    format!("lib{}.so", name.unwrap_or(&package.name).replace('-', "_"))
}

fn unit(prefix: &str) -> String {
    UNIT.replace("@prefix@", prefix.trim_end_matches('/')).replace("@config@", CONFIG)
}

/// What the host says of itself: man pages and completions.
fn generated(stage: &Path) -> Result<()> {
    let host = stage.join("bin/tenon");
    let pages = stage.join("share/man/man1");
    steps::must(Command::new(&host).args(["man", "--out"]).arg(&pages))?;
    let shells = [
        ("bash", "share/bash-completion/completions/tenon"),
        ("zsh", "share/zsh/site-functions/_tenon"),
        ("fish", "share/fish/vendor_completions.d/tenon.fish"),
    ];
    for (shell, path) in shells {
        let script = steps::output_of(Command::new(&host).args(["completions", shell]))?;
        write(&stage.join(path), &script)?;
    }
    Ok(())
}

fn strip(stage: &Path, files: &[(String, String)]) -> Result<()> {
    let is_image = |path: &str| path.starts_with("bin/") || path.starts_with(PLUGINS);
    for (_, to) in files.iter().filter(|(_, to)| is_image(to)) {
        steps::must(Command::new("strip").arg("--strip-debug").arg(stage.join(to)))?;
    }
    Ok(())
}

/// Packs the folder; order, owner and times do not depend on this machine.
fn pack(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let output = workspace.path(OUTPUT);
    let archive = output.join(format!("{name}.tar.gz"));
    steps::must(
        Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
            .arg(format!("--mtime=@{}", time_of(workspace)))
            .arg("-czf")
            .arg(&archive)
            .arg(name)
            .current_dir(&output),
    )?;
    let sum = steps::output_of(Command::new("sha256sum").arg(format!("{name}.tar.gz")).current_dir(&output))?;
    write(&output.join(format!("{name}.tar.gz.sha256")), &sum)?;
    Ok(archive)
}

/// Time of the last commit in seconds since 1970; 0 without git.
fn time_of(workspace: &Workspace) -> u64 {
    let output =
        Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(&workspace.root).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn version(workspace: &Workspace) -> Result<String> {
    let text = fs::read_to_string(workspace.path("Cargo.toml"))?;
    let manifest: toml::Table = text.parse().context("Cargo.toml")?;
    let version = manifest.get("workspace").and_then(|table| table.get("package")?.get("version")?.as_str());
    Ok(version.context("Cargo.toml: no workspace.package.version")?.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_file() {
        bail!("{} is missing", from.display());
    }
    make_folder(to)?;
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    make_folder(path)?;
    fs::write(path, text).with_context(|| path.display().to_string())
}

fn make_folder(file: &Path) -> Result<()> {
    let folder = file.parent().with_context(|| format!("{} has no folder", file.display()))?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::workspace::packages_in;

    #[test]
    fn a_plugin_ships_its_library_under_the_name_cargo_gives_it() {
        let manifest = |text: &str| format!("[package]\nname = \"bdev-x\"\n{text}");
        let texts = BTreeMap::from([
            ("plugins/bdev-x/Cargo.toml".to_owned(), manifest("")),
            ("plugins/bdev-y/Cargo.toml".to_owned(), manifest("[lib]\nname = \"other\"\n")),
            ("plugins/bdev-y/deep/Cargo.toml".to_owned(), manifest("")),
            ("host/bdev/Cargo.toml".to_owned(), manifest("")),
        ]);
        let packages = packages_in(&texts).unwrap();
        let libraries: Vec<String> = plugins(&packages).map(library_of).collect();
        assert_eq!(libraries, ["libbdev_x.so", "libother.so"]);
    }

    #[test]
    fn the_unit_starts_the_host_from_its_prefix() {
        let unit = unit("/opt/tenon/");
        assert!(unit.contains("ExecStart=/opt/tenon/bin/tenon run -c /etc/tenon/tenon.toml\n"), "{unit}");
        assert!(!unit.contains('@'), "{unit}");
    }
}
