//! The two lists of exceptions: `xtask/ratchet.toml` and `xtask/unsafe.toml`.
//!
//! Every entry has a reason. The rules decide what an entry permits; here they
//! are only read and, for the ratchet, written back.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::tree::Tree;

/// The list of sizes above the limits.
pub const RATCHET: &str = "xtask/ratchet.toml";
/// The list of places with unsafe code.
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

/// Both lists.
#[derive(Debug, Default)]
pub struct Lists {
    /// What is larger than the limits.
    pub ratchet: Ratchet,
    /// Where unsafe code may stand.
    pub unsafety: UnsafeList,
}

/// `xtask/ratchet.toml`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ratchet {
    /// Files above the limit.
    #[serde(rename = "file", skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileEntry>,
    /// Functions above the limit.
    #[serde(rename = "function", skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<FunctionEntry>,
    /// Test files that sleep.
    #[serde(rename = "sleep", skip_serializing_if = "Vec::is_empty")]
    pub sleeps: Vec<SleepEntry>,
}

/// A file above the limit.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path relative to the root.
    pub path: String,
    /// What is allowed; at most what is measured.
    pub lines: usize,
    /// Why the rule does not serve here.
    pub reason: String,
}

/// A function above the limit.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionEntry {
    /// Path relative to the root.
    pub path: String,
    /// `name` or `Type::name`.
    pub name: String,
    /// What is allowed; at most what is measured.
    pub lines: usize,
    /// Why the rule does not serve here.
    pub reason: String,
}

/// A test file that sleeps.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SleepEntry {
    /// Path relative to the root.
    pub path: String,
    /// Sleeps allowed; at most what is counted.
    pub count: usize,
    /// Why the rule does not serve here.
    pub reason: String,
}

/// Where unsafe code may stand.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnsafeList {
    /// Permitted places.
    pub allow: Vec<UnsafeEntry>,
}

/// One permitted place.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnsafeEntry {
    /// A crate's folder or a single file.
    pub path: String,
    /// Why the rule does not serve here.
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
