//! `cargo xtask new-plugin`: makes a block-device plugin outside of this tree.
//!
//! What comes out compiles, passes the conformance suite and is documented: a
//! disk in memory to be turned into something else. Its code is the example
//! `plugin-api/examples/ramdisk`, which is built and tested with the tree; the
//! rest are templates in `xtask/templates/plugin`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::workspace::Workspace;

/// Arguments of `cargo xtask new-plugin`.
#[derive(Args, Debug)]
pub struct Options {
    /// Name of the package, such as `bdev-ramdisk`
    name: String,
    /// Folder to make, outside of this repository
    #[arg(long)]
    out: PathBuf,
    /// Folder with the crates a plugin builds on; this repository's plugin-api without it
    #[arg(long)]
    api_path: Option<PathBuf>,
}

/// The code to start from.
const EXAMPLE: &str = include_str!("../../plugin-api/examples/ramdisk/src/lib.rs");
/// What its module is called.
const EXAMPLE_MODULE: &str = "\"ramdisk\"";
/// Path in the new crate and its template.
const TEMPLATES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../templates/plugin/Cargo.toml.in")),
    (".gitignore", include_str!("../templates/plugin/gitignore.in")),
    ("README.md", include_str!("../templates/plugin/README.md.in")),
    ("example.toml", include_str!("../templates/plugin/example.toml.in")),
    ("src/lib.rs", EXAMPLE),
    ("tests/conformance.rs", include_str!("../templates/plugin/conformance.rs.in")),
];
/// A module's name may not be longer.
const MAX_NAME_BYTES: usize = 63;
/// Packages of block-device modules start so; the module's own name does not.
const PACKAGE_PREFIX: &str = "bdev-";

/// Writes the crate and says what to do with it.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let out = std::path::absolute(&options.out)?;
    if out.starts_with(&workspace.root) {
        bail!("{} lies in this repository: a plugin of one's own lives outside", out.display());
    }
    let api = match &options.api_path {
        Some(path) => std::path::absolute(path)?,
        None => workspace.path("plugin-api"),
    };
    if !api.join("sdk/Cargo.toml").is_file() {
        bail!("{} has no sdk/Cargo.toml: name the plugin-api folder by --api-path", api.display());
    }
    write(&out, &Names::of(&options.name)?, &api)?;
    println!("new-plugin: {} in {}", options.name, out.display());
    println!("  cargo test                try it against the conformance suite");
    println!(
        "  cargo build --release     make the plugin, target/release/{}",
        Names::of(&options.name)?.file()
    );
    println!("  README.md                 its page, example.toml a configuration with it");
    Ok(())
}

/// The forms of a plugin's name.
#[derive(Debug, PartialEq, Eq)]
struct Names {
    /// `bdev-ram-disk`
    package: String,
    /// `ram-disk`, as in `module = "ram-disk"`
    module: String,
    /// `bdev_ram_disk`
    library: String,
}

impl Names {
    fn of(package: &str) -> Result<Self> {
        let is_word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        if !package.split('-').all(is_word) || package.len() > MAX_NAME_BYTES {
            bail!(
                "name {package:?} is not of the form `bdev-ramdisk`: lower-case words joined by `-`, at most \
                 {MAX_NAME_BYTES} bytes"
            );
        }
        let module = package.strip_prefix(PACKAGE_PREFIX).unwrap_or(package);
        Ok(Self {
            package: package.to_owned(),
            module: module.to_owned(),
            library: package.replace('-', "_"),
        })
    }

    /// File name of the built plugin.
    fn file(&self) -> String {
        format!("lib{}.so", self.library)
    }

    fn fill(&self, template: &str, api: &Path) -> String {
        template
            .replace("@name@", &self.package)
            .replace("@module@", &self.module)
            .replace("@library@", &self.library)
            .replace(EXAMPLE_MODULE, &format!("\"{}\"", self.module))
            .replace("@api@", &api.display().to_string())
    }
}

fn write(out: &Path, names: &Names, api: &Path) -> Result<()> {
    let is_used = out.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if is_used {
        bail!("{} is not empty", out.display());
    }
    for (path, template) in TEMPLATES {
        let path = out.join(path);
        let folder = path.parent().context("a template without a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::write(&path, names.fill(template, api)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_form_for_each_place() {
        let names = Names::of("bdev-ram-disk2").unwrap();
        assert_eq!((names.module.as_str(), names.library.as_str()), ("ram-disk2", "bdev_ram_disk2"));
        assert_eq!(names.file(), "libbdev_ram_disk2.so");
        assert_eq!(Names::of("ram").unwrap().module, "ram");
    }

    #[test]
    fn a_name_that_is_no_package_name_is_refused() {
        for name in ["", "Ram", "ram_disk", "-ram", "ram--disk", "2ram", &"a".repeat(64)] {
            assert!(Names::of(name).is_err(), "{name}");
        }
    }

    #[test]
    fn every_template_is_filled_and_parses() {
        let names = Names::of("bdev-ram-disk").unwrap();
        for (path, template) in TEMPLATES {
            let text = names.fill(template, Path::new("/api"));
            assert!(!text.contains('@'), "{path}: a placeholder is left");
            assert!(!text.contains(EXAMPLE_MODULE), "{path}: the example's name is left");
            if path.ends_with(".rs") {
                syn::parse_file(&text).unwrap();
            }
            if path.ends_with(".toml") {
                text.parse::<toml::Table>().unwrap();
            }
        }
    }

    #[test]
    fn the_example_names_its_module_where_it_is_replaced() {
        assert!(EXAMPLE.contains(&format!("name: {EXAMPLE_MODULE},")));
    }

    #[test]
    fn a_folder_in_use_is_left_alone() {
        let out = std::env::temp_dir().join(format!("tenon-new-plugin-{}", std::process::id()));
        let names = Names::of("bdev-ram").unwrap();
        write(&out, &names, Path::new("/api")).unwrap();
        assert!(out.join("src/lib.rs").is_file());
        assert!(write(&out, &names, Path::new("/api")).is_err());
        fs::remove_dir_all(&out).unwrap();
    }
}
