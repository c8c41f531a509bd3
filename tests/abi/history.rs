//! Plugins as they were built when a version of the contract was new: the
//! sources come out of the repository's history, are built in a workspace of
//! their own, and stay built until the target directory is removed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use tenon_tests::{root, target_dir};

/// A version of the contract.
pub struct Version {
    /// `major.minor`.
    pub abi: String,
    commit: String,
}

/// Every version there ever was, from `plugin-api/abi-history.toml`.
pub fn versions() -> Vec<Version> {
    let file = root().join("plugin-api/abi-history.toml");
    let text = std::fs::read_to_string(&file).expect("the history of the contract is readable");
    let table: toml::Table = text.parse().expect("the history of the contract is TOML");
    let entries = table["abi"].as_array().expect("the history has [[abi]] entries");
    assert!(!entries.is_empty(), "{} names no version", file.display());
    let field = |entry: &toml::Value, key: &str| entry[key].as_str().expect(key).to_owned();
    entries
        .iter()
        .map(|entry| Version { abi: field(entry, "version"), commit: field(entry, "commit") })
        .collect()
}

impl Version {
    /// The RAM disk in Rust of that version's SDK.
    pub fn rust_plugin(&self) -> PathBuf {
        let built = self.directory().join("libexample_ramdisk.so");
        self.once(&built, |tree| {
            let target = self.directory().join("build");
            build(tree, &target);
            target.join("debug/libexample_ramdisk.so")
        });
        built
    }

    /// The RAM disk in C, against the header of that version.
    pub fn c_plugin(&self) -> PathBuf {
        let built = self.directory().join("libc_ramdisk.so");
        self.once(&built, |tree| {
            let draft = self.directory().join("c_ramdisk.draft");
            let source = tree.join("plugin-api/examples/c-ramdisk/ramdisk.c");
            super::plugin_files::compile(&source, &tree.join("plugin-api"), &draft, &[]);
            draft
        });
        built
    }

    fn directory(&self) -> PathBuf {
        target_dir()
            .parent()
            .expect("a profile's folder lies in the target folder")
            .join("abi")
            .join(&self.commit)
    }

    /// Makes `built` unless it is there from an earlier run.
    fn once(&self, built: &Path, make: impl FnOnce(&Path) -> PathBuf) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if built.exists() {
            return;
        }
        let made = make(&self.tree());
        // By a copy and a rename: a run that is interrupted leaves nothing that looks finished.
        let draft = built.with_extension(format!("{}.draft", std::process::id()));
        std::fs::copy(&made, &draft).unwrap_or_else(|error| panic!("{}: {error}", made.display()));
        std::fs::rename(&draft, built).expect("the target folder is writable");
    }

    /// The sources of that version as a workspace of their own.
    fn tree(&self) -> PathBuf {
        let tree = self.directory().join("tree");
        if tree.exists() {
            return tree;
        }
        let draft = self.directory().join(format!("tree.{}.draft", std::process::id()));
        let _ = std::fs::remove_dir_all(&draft);
        std::fs::create_dir_all(&draft).expect("the target folder is writable");
        self.extract(&draft);
        make_workspace(&draft);
        std::fs::rename(&draft, &tree).expect("the target folder is writable");
        tree
    }

    fn extract(&self, into: &Path) {
        let commit = format!("{}^{{commit}}", self.commit);
        let is_known = Command::new("git").arg("-C").arg(root()).args(["cat-file", "-e", &commit]).output();
        assert!(
            is_known.expect("git runs").status.success(),
            "commit {} of contract {} is not in this clone; a shallow clone lacks it: run `git fetch --unshallow`",
            self.commit,
            self.abi
        );
        let archive = into.join("archive.tar");
        let mut git = Command::new("git");
        git.arg("-C").arg(root()).args(["archive", "--format=tar", "-o"]).arg(&archive);
        must(git.args([&self.commit, "plugin-api", "Cargo.toml"]));
        must(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(into));
        std::fs::remove_file(archive).expect("the archive is ours");
    }
}

/// Leaves of the old root manifest what `plugin-api` inherits. The lock file is today's: its packages are on this
/// machine already, so that building needs no network.
fn make_workspace(tree: &Path) {
    let manifest = tree.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).expect("a commit has a manifest");
    let mut table: toml::Table = text.parse().expect("the manifest is TOML");
    let workspace = table["workspace"].as_table_mut().expect("the root is a workspace");
    workspace.remove("default-members");
    let members = packages(&tree.join("plugin-api"));
    let relative = |path: PathBuf| path.strip_prefix(tree).expect("found below it").display().to_string();
    workspace.insert("members".into(), members.into_iter().map(relative).collect::<Vec<_>>().into());
    table.remove("profile");
    std::fs::write(&manifest, table.to_string()).expect("the tree is writable");
    std::fs::copy(root().join("Cargo.lock"), tree.join("Cargo.lock")).expect("the tree is writable");
}

/// Folders with a manifest, up to two levels down.
fn packages(folder: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).expect("a folder of the tree");
        entries
            .map(|entry| entry.expect("a folder of the tree").path())
            .filter(|path| path.is_dir())
            .collect()
    };
    let first = below(folder);
    let second: Vec<PathBuf> = first.iter().flat_map(|folder| below(folder)).collect();
    let mut found: Vec<PathBuf> = first.into_iter().chain(second).collect();
    found.retain(|folder| folder.join("Cargo.toml").exists());
    found.sort();
    found
}

fn build(tree: &Path, target: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let command = |offline: bool| {
        let mut command = Command::new(&cargo);
        command.current_dir(tree).env("CARGO_TARGET_DIR", target);
        command.args(["build", "--quiet", "--package", "example-ramdisk"]);
        // It is the machine code of a plugin that matters here, not its speed.
        command.env("CARGO_PROFILE_DEV_DEBUG", "false");
        command.args(offline.then_some("--offline"));
        command
    };
    let offline = command(true).output().expect("cargo runs");
    if !offline.status.success() {
        must(&mut command(false));
    }
}

fn must(command: &mut Command) {
    let output = command.output().expect("the program is installed");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}
