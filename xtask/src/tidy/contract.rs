//! `abi`: every layout of the contract is in its lock.
//!
//! The lock is measured from a list the crate keeps; a struct missing from the
//! list would be free to change unnoticed. Whether the lock is current is the
//! business of `cargo xtask abi`.

use super::Finding;
use super::tree::Tree;

const SOURCES: &str = "plugin-api/abi/src/";
const LOCK: &str = "plugin-api/abi.lock";
/// Exists only with the feature of its name, and abi_stable checks its shape at load time.
const CERTIFICATE: &str = "plugin-api/abi/src/certificate.rs";

/// Findings of this rule.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let lock = tree.texts.get(LOCK).map_or("", String::as_str);
    let locked: Vec<&str> =
        lock.lines().filter_map(|line| line.split_once(" size=")).map(|(name, _)| name).collect();
    let mut findings = Vec::new();
    for source in tree.sources.iter().filter(|source| source.path.starts_with(SOURCES)) {
        if source.path == CERTIFICATE {
            continue;
        }
        for missing in source.c_structs.iter().filter(|item| !locked.contains(&item.name.as_str())) {
            let message =
                format!("`{}` is part of the contract and not in {LOCK}: list it in `layout`", missing.name);
            findings.push(Finding::new(&source.path, missing.line, "abi", message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_missing_from_the_lock_is_a_finding() {
        let text = "//! H.\n#[repr(C)]\npub struct A {\n    pub a: u8,\n}\n#[repr(C, align(64))]\npub struct B {\n    pub b: u8,\n}\n\
                    #[repr(C)]\npub struct Opaque {\n    _private: [u8; 0],\n}\npub struct Plain {\n    pub c: u8,\n}\n";
        let tree = Tree::from_texts(&[
            ("plugin-api/abi/src/a.rs", text),
            (LOCK, "abi 1.0\nA size=1 align=1\nA.a offset=0\n"),
        ]);
        let findings = check(&tree);
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [7]);
    }
}
