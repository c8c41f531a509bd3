//! Where the repository is, which files and packages it has, and how cargo is called in it.
//!
//! Reads manifests itself instead of asking `cargo metadata`, so that the checks
//! still work on a tree cargo refuses to load. Runs nothing: see `steps`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The repository on disk.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// Absolute path of the folder with the workspace manifest.
    pub root: PathBuf,
}

/// One `Cargo.toml` with a `[package]` table.
#[derive(Debug, Clone)]
pub struct Package {
    /// Folder, relative to the root, with `/` as separator.
    pub dir: String,
    /// Name cargo knows it by.
    pub name: String,
    /// The whole manifest.
    pub manifest: toml::Table,
}

impl Workspace {
    /// The tree this program was built from.
    pub fn locate() -> Result<Self> {
        let xtask = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = xtask.parent().context("xtask has no parent folder")?.to_path_buf();
        if !root.join("Cargo.toml").is_file() {
            bail!("no Cargo.toml in {}", root.display());
        }
        Ok(Self { root })
    }

    /// Absolute path of a relative one.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Whether a file or folder of this relative path exists.
    pub fn has(&self, relative: &str) -> bool {
        self.path(relative).exists()
    }

    /// `cargo` of the running toolchain, started in the root.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        command
    }

    /// `cargo +TOOLCHAIN`: goes through rustup's proxy, which alone understands the plus.
    pub fn cargo_of(&self, toolchain: &str) -> Command {
        let mut command = Command::new("cargo");
        command.arg(format!("+{toolchain}")).current_dir(&self.root);
        // A missing toolchain is a reason to do something else, not to download one.
        command.env("RUSTUP_AUTO_INSTALL", "0");
        command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env_remove("RUSTDOC");
        command
    }

    /// Relative paths of all files that are, or may be, committed; sorted.
    pub fn files(&self) -> Result<Vec<String>> {
        let mut files = if self.has(".git") { self.git_files()? } else { Vec::new() };
        if files.is_empty() {
            collect_files(&self.root, "", &mut files)?;
        }
        // git still lists a file that was deleted but not yet committed as deleted.
        files.retain(|file| self.path(file).is_file());
        files.sort();
        files.dedup();
        Ok(files)
    }

    fn git_files(&self) -> Result<Vec<String>> {
        let output = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&self.root)
            .output()
            .context("git ls-files")?;
        if !output.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let names = String::from_utf8_lossy(&output.stdout);
        Ok(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// All packages, members and excluded ones alike, by folder.
    pub fn packages(&self) -> Result<Vec<Package>> {
        let mut texts = BTreeMap::new();
        for file in self.files()? {
            if is_manifest(&file) {
                texts.insert(file.clone(), fs::read_to_string(self.path(&file))?);
            }
        }
        packages_in(&texts)
    }
}

impl Package {
    /// Names of the dependencies in every table of this kind, target-specific ones included.
    pub fn dependencies(&self, kind: &str) -> Vec<(String, toml::Value)> {
        let mut found = Vec::new();
        let mut tables = vec![self.manifest.get(kind)];
        if let Some(targets) = self.manifest.get("target").and_then(toml::Value::as_table) {
            tables.extend(targets.values().map(|target| target.get(kind)));
        }
        for table in tables.into_iter().flatten().filter_map(toml::Value::as_table) {
            found.extend(table.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        found
    }

    /// Whether the package depends on `name` in any way.
    pub fn mentions(&self, name: &str) -> bool {
        ["dependencies", "dev-dependencies", "build-dependencies"]
            .iter()
            .any(|kind| self.dependencies(kind).iter().any(|(dependency, _)| dependency == name))
    }
}

/// Whether this relative path is a cargo manifest (and not a template of one).
pub fn is_manifest(path: &str) -> bool {
    path == "Cargo.toml" || path.ends_with("/Cargo.toml")
}

/// Whether `path` is the folder or file `base` or lies below it.
pub fn is_below(path: &str, base: &str) -> bool {
    base.is_empty() || path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The packages among these manifest texts (path → text).
pub fn packages_in(texts: &BTreeMap<String, String>) -> Result<Vec<Package>> {
    let mut packages = Vec::new();
    for (path, text) in texts.iter().filter(|(path, _)| is_manifest(path)) {
        let manifest: toml::Table = text.parse().with_context(|| format!("manifest {path}"))?;
        let name = manifest.get("package").and_then(|package| package.get("name")?.as_str());
        if let Some(name) = name.map(str::to_owned) {
            let dir = path.trim_end_matches("Cargo.toml").trim_end_matches('/').to_owned();
            packages.push(Package { dir, name, manifest });
        }
    }
    Ok(packages)
}

/// All files below `root/prefix`, for trees without git (a source archive).
fn collect_files(root: &Path, prefix: &str, files: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(prefix)).with_context(|| format!("folder {prefix:?}"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() && name != "target" && name != ".git" {
            collect_files(root, &path, files)?;
        } else if kind.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(text: &str) -> Package {
        let texts = BTreeMap::from([("a/b/Cargo.toml".to_owned(), text.to_owned())]);
        packages_in(&texts).unwrap().remove(0)
    }

    #[test]
    fn a_package_knows_its_folder_and_name() {
        let package = package("[package]\nname = \"x\"\n");
        assert_eq!((package.dir.as_str(), package.name.as_str()), ("a/b", "x"));
    }

    #[test]
    fn target_specific_dependencies_are_dependencies() {
        let package = package("[package]\nname = \"x\"\n[target.'cfg(loom)'.dependencies]\nloom = \"0.7\"\n");
        assert!(package.mentions("loom"));
        assert!(!package.mentions("syn"));
    }

    #[test]
    fn a_virtual_manifest_is_no_package() {
        let texts = BTreeMap::from([("Cargo.toml".to_owned(), "[workspace]\n".to_owned())]);
        assert!(packages_in(&texts).unwrap().is_empty());
    }
}
