//! `names`: no name that says nothing.
//!
//! A file or type called after its being useful attracts whatever has no
//! place; the words below are refused in names of files, folders, packages and
//! everything a source file defines. Locals are left to review.

use super::Finding;
use super::tree::Tree;

/// Refused as a word of any name, singular or plural.
const REFUSED_WORDS: &[&str] = &["manager", "helper", "util", "misc"];
/// Refused as a whole name only: `CommonHeader` is the specification's word.
const REFUSED_NAMES: &[&str] = &["common", "commons"];

/// Findings of this rule.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in tree.texts.keys() {
        for part in path.split('/') {
            let stem = part.split('.').find(|stem| !stem.is_empty()).unwrap_or(part);
            if let Some(word) = refused_word(stem) {
                let message = format!("`{part}` says nothing (`{word}`): name it after what it holds");
                findings.push(Finding::new(path, 1, "names", message));
            }
        }
    }
    for package in &tree.packages {
        if let Some(word) = refused_word(&package.name) {
            let message = format!("package `{}` says nothing (`{word}`)", package.name);
            findings.push(Finding::new(&format!("{}/Cargo.toml", package.dir), 1, "names", message));
        }
    }
    for source in &tree.sources {
        for definition in &source.definitions {
            if let Some(word) = refused_word(&definition.name) {
                let message = format!("`{}` says nothing (`{word}`): say what it does", definition.name);
                findings.push(Finding::new(&source.path, definition.line, "names", message));
            }
        }
    }
    findings
}

/// The refused word in a name, if there is one.
fn refused_word(name: &str) -> Option<String> {
    let whole = name.to_lowercase();
    if REFUSED_NAMES.contains(&whole.as_str()) {
        return Some(whole);
    }
    words_of(name).into_iter().find(|word| {
        let singular = word.strip_suffix('s').unwrap_or(word);
        REFUSED_WORDS.contains(&word.as_str()) || REFUSED_WORDS.contains(&singular)
    })
}

/// `IoQueue_fooBar` → `io`, `queue`, `foo`, `bar`.
fn words_of(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for c in name.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && was_lower) {
            words.push(String::new());
        }
        was_lower = c.is_lowercase();
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_name(name: &str, expected: Option<&str>) {
        assert_eq!(refused_word(name).as_deref(), expected, "{name}");
    }

    #[test]
    fn words_are_found_inside_names_of_any_case() {
        check_name("BdevManager", Some("manager"));
        check_name("test_helpers", Some("helpers"));
        check_name("utils", Some("utils"));
        check_name("UTIL", Some("util"));
        check_name("common", Some("common"));
        check_name("CommonHeader", None);
        check_name("utilization", None);
        check_name("manage", None);
    }

    #[test]
    fn files_packages_and_definitions_are_looked_at() {
        let tree = Tree::from_texts(&[
            ("host/x/Cargo.toml", "[package]\nname = \"x-common\"\n"),
            ("host/y/Cargo.toml", "[package]\nname = \"y-util\"\n"),
            ("host/x/src/common.rs", "//! H.\n"),
            (
                "host/x/src/a.rs",
                "//! H.\nstruct A { helper: u8 }\nfn f() { let manager = 1; }\n#[test]\nfn the_manager_is_told() {}\n",
            ),
        ]);
        let places: Vec<_> = check(&tree).into_iter().map(|f| (f.path, f.line)).collect();
        let expected = [("host/x/src/common.rs", 1), ("host/y/Cargo.toml", 1), ("host/x/src/a.rs", 2)];
        assert_eq!(places, expected.map(|(path, line)| (path.to_owned(), line)));
    }
}
