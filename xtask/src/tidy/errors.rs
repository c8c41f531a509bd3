//! `errors`: no `unwrap` outside tests, `anyhow` only where an operator reads it.
//!
//! A library that returns `anyhow::Error` hides which failures exist; the
//! daemon, the tests and these tasks are the only places where that is wanted.

use super::Finding;
use super::source::Source;
use super::tree::Tree;
use crate::workspace::is_below;

const ANYHOW_AREAS: &[&str] = &["host/daemon", "tests", "xtask"];
const UNWRAPS: &[&str] = &[".unwrap()", ".unwrap_err()"];

/// Findings of this rule.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in tree.sources.iter().filter(|source| !is_tool(source)) {
        for (number, line) in source.numbered() {
            let unwraps = UNWRAPS.iter().find(|unwrap| line.code.contains(**unwrap));
            if let Some(unwrap) = unwraps.filter(|_| !source.is_test_line(number)) {
                let message = format!(
                    "`{unwrap}` outside a test: return the error, or `expect` with the reason it cannot fail"
                );
                findings.push(Finding::new(&source.path, number, "errors", message));
            }
        }
    }
    for package in &tree.packages {
        let is_allowed = ANYHOW_AREAS.iter().any(|area| is_below(&package.dir, area));
        let depends = ["dependencies", "build-dependencies"]
            .iter()
            .any(|kind| package.dependencies(kind).iter().any(|(name, _)| name == "anyhow"));
        if depends && !is_allowed {
            let message = "depends on anyhow: a library's failures are thiserror enums";
            findings.push(Finding::new(&format!("{}/Cargo.toml", package.dir), 1, "errors", message));
        }
    }
    findings
}

/// An example that says why it may: a program for people at a terminal, such as a measurement.
fn is_tool(source: &Source) -> bool {
    let says_why = |inner: &String| inner.starts_with("allow(clippy::unwrap_used,reason=");
    source.path.contains("/examples/") && source.inner_attributes.iter().any(says_why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwrap_is_refused_outside_tests_only() {
        let text = "//! H.\n// a.unwrap()\nfn f() { a.unwrap(); b.expect(\".unwrap()\"); c.unwrap_or(1); }\n\
                    #[cfg(test)]\nmod tests {\n    fn t() { a.unwrap(); }\n}\n";
        let findings = check(&Tree::from_texts(&[("host/x/src/a.rs", text)]));
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn an_example_may_say_why_it_unwraps() {
        let text = "//! H.\n#![allow(clippy::unwrap_used, reason = \"a tool\")]\nfn main() { a.unwrap(); }\n";
        let count = |path: &str, text: &str| check(&Tree::from_texts(&[(path, text)])).len();
        assert_eq!(count("host/x/examples/a.rs", text), 0);
        assert_eq!(count("host/x/src/a.rs", text), 1);
        assert_eq!(count("host/x/examples/a.rs", &text.replace(", reason = \"a tool\"", "")), 1);
    }

    #[test]
    fn anyhow_is_refused_in_libraries() {
        let manifest = |table: &str| format!("[package]\nname = \"x\"\n[{table}]\nanyhow = \"1\"\n");
        let count = |path: &str, table: &str| {
            check(&Tree::from_texts(&[(&format!("{path}/Cargo.toml"), &manifest(table))])).len()
        };
        assert_eq!(count("host/bdev", "dependencies"), 1);
        assert_eq!(count("plugins/x", "target.'cfg(unix)'.dependencies"), 1);
        assert_eq!(count("host/bdev", "dev-dependencies"), 0);
        assert_eq!(count("host/daemon", "dependencies"), 0);
        assert_eq!(count("xtask", "dependencies"), 0);
    }
}
