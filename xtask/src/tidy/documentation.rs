//! `public-docs`: every public item of `plugin-api` is documented.
//!
//! The rest of the tree has a target instead of a rule; `report` prints both.

use super::Finding;
use super::source::Source;
use super::tree::Tree;

/// Findings of this rule.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let contract = tree.sources.iter().filter(|source| counts(source) && source.area() == "plugin-api");
    let mut findings = Vec::new();
    for source in contract {
        for item in source.public_items.iter().filter(|item| !item.is_documented) {
            let message = format!("`{}` is public and has no doc comment", item.name);
            findings.push(Finding::new(&source.path, item.line, "public-docs", message));
        }
    }
    findings
}

/// Documented and all public items of an area.
pub fn coverage(tree: &Tree, area: &str) -> (usize, usize) {
    let sources = tree.sources.iter().filter(|source| counts(source) && source.area() == area);
    let items: Vec<bool> =
        sources.flat_map(|source| &source.public_items).map(|item| item.is_documented).collect();
    (items.iter().filter(|documented| **documented).count(), items.len())
}

/// Tests and examples have no readers of their items.
fn counts(source: &Source) -> bool {
    !source.is_test_file && !source.path.contains("/examples/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undocumented_item_is_a_finding_in_the_contract_only() {
        let text = "//! H.\n/// D.\npub fn a() {}\npub fn b() {}\nfn c() {}\n";
        let tree = Tree::from_texts(&[
            ("plugin-api/sdk/src/a.rs", text),
            ("plugin-api/sdk/tests/a.rs", text),
            ("host/x/src/a.rs", text),
        ]);
        let findings = check(&tree);
        assert_eq!(findings.len(), 1);
        assert_eq!((findings[0].path.as_str(), findings[0].line), ("plugin-api/sdk/src/a.rs", 4));
        assert_eq!(coverage(&tree, "host"), (1, 2));
    }
}
