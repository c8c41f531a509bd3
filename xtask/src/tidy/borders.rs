//! `borders`: who may depend on whom.
//!
//! Plugins and host meet only in `plugin-api`; inside the host the start order
//! is the only direction; no arrow leads between plugins. Read from the
//! manifests, so it holds for every target and feature.

use super::Finding;
use super::tree::Tree;
use crate::workspace::{Package, is_below};

/// Host crates in start order: a lower one never imports a higher one.
const HOST_ORDER: &[&str] = &["reactor", "modules", "bdev", "nvmf-target", "perf", "control", "daemon"];
const KINDS: &[&str] = &["dependencies", "build-dependencies", "dev-dependencies"];
/// The contract itself: builds without anything but `core`.
const CONTRACT: &str = "plugin-api/abi";

/// Findings of this rule.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &tree.packages {
        let manifest = format!("{}/Cargo.toml", package.dir);
        for kind in KINDS {
            for (name, value) in package.dependencies(kind) {
                // `alias = { package = "real-name" }`
                let real = value.get("package").and_then(toml::Value::as_str).unwrap_or(&name);
                let Some(target) = tree.packages.iter().find(|other| other.name == real) else { continue };
                if let Some(problem) = forbidden(package, target, kind) {
                    let message = format!("`{}` depends on `{real}` ({kind}): {problem}", package.name);
                    findings.push(Finding::new(&manifest, 1, "borders", message));
                }
            }
        }
        if let Some(message) = host_place(package) {
            findings.push(Finding::new(&manifest, 1, "borders", message));
        }
        if package.dir == CONTRACT {
            findings.extend(contract(package).map(|message| Finding::new(&manifest, 1, "deps", message)));
        }
    }
    findings
}

/// Why `from` may not depend on `to`, if it may not.
fn forbidden(from: &Package, to: &Package, kind: &str) -> Option<String> {
    let area = |package: &Package| package.dir.split('/').next().unwrap_or_default().to_owned();
    let (from_area, to_area) = (area(from), area(to));
    match (from_area.as_str(), to_area.as_str()) {
        (_, "tests" | "xtask") if from_area != to_area => Some("nothing builds on tests or tasks".to_owned()),
        ("tests" | "xtask", _) | (_, "plugin-api") => None,
        ("plugin-api", _) => Some("plugin-api stands alone".to_owned()),
        ("plugins", "plugins") => Some("no arrow leads between plugins".to_owned()),
        ("plugins", _) => Some("a plugin knows plugin-api only".to_owned()),
        ("host", "plugins") => Some("the host loads plugins, it never links them".to_owned()),
        ("host", "host") => {
            let rank = |package: &Package| HOST_ORDER.iter().position(|name| *name == host_name(package));
            let is_upward = rank(from)? <= rank(to)? && from.name != to.name;
            is_upward.then(|| format!("start order is {}; this points up ({kind})", HOST_ORDER.join(" < ")))
        }
        _ => Some("not part of the map".to_owned()),
    }
}

fn host_name(package: &Package) -> &str {
    package.dir.trim_start_matches("host/")
}

fn host_place(package: &Package) -> Option<String> {
    let is_unknown = is_below(&package.dir, "host") && !HOST_ORDER.contains(&host_name(package));
    is_unknown
        .then(|| format!("`{}` has no place in the start order {}", package.name, HOST_ORDER.join(" < ")))
}

/// The contract crate has neither a mandatory dependency nor a default feature that brings one.
fn contract(package: &Package) -> impl Iterator<Item = String> {
    let mandatory = package.dependencies("dependencies").into_iter().filter_map(|(name, value)| {
        let is_optional = value.get("optional").and_then(toml::Value::as_bool) == Some(true);
        (!is_optional)
            .then(|| format!("`{name}` is not optional: the contract depends on nothing by default"))
    });
    let default = package.manifest.get("features").and_then(|features| features.get("default")?.as_array());
    let has_default = default.is_some_and(|features| !features.is_empty());
    mandatory.chain(has_default.then(|| "default features must be empty".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_arrow(from: &str, to: &str, expected: Option<&str>) {
        let manifest = "[package]\nname = \"from\"\n[dependencies]\nto.workspace = true\n";
        let tree = Tree::from_texts(&[
            (&format!("{from}/Cargo.toml"), manifest),
            (&format!("{to}/Cargo.toml"), "[package]\nname = \"to\"\n"),
        ]);
        let findings = check(&tree);
        match expected {
            None => assert_eq!(findings, [], "{from} → {to}"),
            Some(part) => assert!(findings[0].message.contains(part), "{from} → {to}: {findings:?}"),
        }
    }

    #[test]
    fn arrows_lead_to_the_contract_and_down() {
        check_arrow("plugins/bdev-x", "plugin-api/sdk", None);
        check_arrow("host/bdev", "plugin-api/abi", None);
        check_arrow("host/bdev", "host/modules", None);
        check_arrow("host/bdev", "host/control", Some("points up"));
        check_arrow("plugins/bdev-x", "host/bdev", Some("plugin-api only"));
        check_arrow("plugins/bdev-x", "plugins/bdev-y", Some("between plugins"));
        check_arrow("host/daemon", "plugins/bdev-y", Some("never links"));
        check_arrow("plugin-api/sdk", "host/bdev", Some("stands alone"));
        check_arrow("host/daemon", "tests", Some("nothing builds on tests"));
        check_arrow("tests", "host/bdev", None);
        check_arrow("host/else", "plugin-api/abi", Some("no place in the start order"));
    }

    #[test]
    fn a_renamed_dependency_is_still_one() {
        let tree = Tree::from_texts(&[
            (
                "plugins/a/Cargo.toml",
                "[package]\nname = \"a\"\n[dependencies]\nx = { package = \"b\", path = \"../b\" }\n",
            ),
            ("plugins/b/Cargo.toml", "[package]\nname = \"b\"\n"),
        ]);
        assert_eq!(check(&tree).len(), 1);
    }

    #[test]
    fn the_contract_has_no_default_dependency() {
        let count = |tables: &str| {
            let manifest = format!("[package]\nname = \"tenon-abi\"\n{tables}");
            check(&Tree::from_texts(&[("plugin-api/abi/Cargo.toml", &manifest)])).len()
        };
        assert_eq!(count("[dependencies]\nx = { version = \"1\", optional = true }\n"), 0);
        assert_eq!(count("[dependencies]\nx = \"1\"\n"), 1);
        assert_eq!(count("[features]\ndefault = [\"certificate\"]\n"), 1);
        assert_eq!(count("[features]\ndefault = []\n"), 0);
    }
}
