//! The two lists of exceptions: `xtask/ratchet.toml` and `xtask/unsafe.toml`.
//!
//! Every entry has a reason. The rules decide what an entry permits; here they
//! are only read and, for the ratchet, written back.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::tree::Tree;

pub const RATCHET: &str = "xtask/ratchet.toml";
pub const UNSAFE: &str = "xtask/unsafe.toml";

const RATCHET_HEADER: &str = "\
# What is larger than the house's limits, and why. A number here may only fall:
# `cargo xtask tidy --bless` lowers it to what is measured and drops what has
# come within the limits. A new entry is made by hand and needs a reason.
#
# [[file]]      path, lines (without tests), reason
# [[function]]  path, name (`name` or `Type::name`), lines, reason
# [[sleep]]     path, count (sleeps in test code), reason
";

#[derive(Debug, Default)]
pub struct Lists {
    pub ratchet: Ratchet,
    pub unsafety: UnsafeList,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ratchet {
    #[serde(rename = "file", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileEntry>,
    #[serde(rename = "function", skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<FunctionEntry>,
    #[serde(rename = "sleep", skip_serializing_if = "Vec::is_empty")]
    pub sleeps: Vec<SleepEntry>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub path: String,
    pub lines: usize,
    pub reason: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionEntry {
    pub path: String,
    pub name: String,
    pub lines: usize,
    pub reason: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SleepEntry {
    pub path: String,
    pub count: usize,
    pub reason: String,
}

/// Where unsafe code may stand.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnsafeList {
    pub allow: Vec<UnsafeEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnsafeEntry {
    /// A crate's folder or a single file.
    pub path: String,
    pub reason: String,
}

impl Lists {
    /// The lists of this tree; a missing file is an empty list.
    pub fn of(tree: &Tree) -> Result<Self> {
        let text = |path: &str| tree.texts.get(path).map_or("", String::as_str);
        Ok(Self {
            ratchet: toml::from_str(text(RATCHET)).context(RATCHET)?,
            unsafety: toml::from_str(text(UNSAFE)).context(UNSAFE)?,
        })
    }
}

impl Ratchet {
    /// The file's text with its explaining header.
    pub fn render(&self) -> Result<String> {
        let body = toml::to_string(self).context(RATCHET)?;
        let separator = if body.is_empty() { "" } else { "\n" };
        Ok(format!("{RATCHET_HEADER}{separator}{body}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratchet_survives_being_written_and_read() {
        let text = "[[file]]\npath = \"a.rs\"\nlines = 900\nreason = \"table\"\n";
        let ratchet: Ratchet = toml::from_str(text).unwrap();
        let rendered = ratchet.render().unwrap();
        assert!(rendered.starts_with("# What is larger"));
        assert_eq!(toml::from_str::<Ratchet>(&rendered).unwrap().files[0].lines, 900);
    }

    #[test]
    fn an_entry_without_reason_is_refused() {
        assert!(toml::from_str::<Ratchet>("[[file]]\npath = \"a.rs\"\nlines = 900\n").is_err());
        assert!(toml::from_str::<UnsafeList>("[[allow]]\npath = \"a.rs\"\n").is_err());
    }
}
