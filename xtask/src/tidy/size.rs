//! `size`: files and functions stay small, and what is large does not grow.
//! `header`: every file opens by saying what it holds.
//!
//! The limits are for what is written from now on; an older excess stands in
//! the ratchet with its exact size. Tests do not count towards a file's size.

use super::Finding;
use super::lists::{RATCHET, Ratchet};
use super::source::{Function, Source};
use super::tree::Tree;

/// Limit for a file, tests not counted.
pub const MAX_FILE_LINES: usize = 800;
/// Limit for a function, from signature to closing brace.
pub const MAX_FUNCTION_LINES: usize = 70;

/// Findings of both rules.
pub fn check(tree: &Tree, ratchet: &Ratchet) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in &tree.sources {
        header(tree, source, &mut findings);
        file(source, ratchet, &mut findings);
        for function in &source.functions {
            check_function(source, function, ratchet, &mut findings);
        }
    }
    stale(tree, ratchet, &mut findings);
    reasons(ratchet, &mut findings);
    findings
}

/// Lowers every entry to what is measured and drops those within the limits; returns how many changed.
pub fn lower(tree: &Tree, ratchet: &mut Ratchet) -> usize {
    let mut changed = 0;
    ratchet.files.retain_mut(|entry| {
        let measured = file_lines(tree, &entry.path).filter(|lines| *lines > MAX_FILE_LINES);
        keep_lowered(&mut entry.lines, measured, &mut changed)
    });
    ratchet.functions.retain_mut(|entry| {
        let lines = function_lines(tree, &entry.path, &entry.name);
        let measured = lines.filter(|lines| *lines > MAX_FUNCTION_LINES);
        keep_lowered(&mut entry.lines, measured, &mut changed)
    });
    changed
}

/// Whether an entry stays; lowers it to `measured`. Never raises: growth stays a finding.
pub fn keep_lowered(listed: &mut usize, measured: Option<usize>, changed: &mut usize) -> bool {
    let Some(measured) = measured else {
        *changed += 1;
        return false;
    };
    if measured < *listed {
        *listed = measured;
        *changed += 1;
    }
    true
}

fn header(tree: &Tree, source: &Source, findings: &mut Vec<Finding>) {
    let text = tree.texts.get(&source.path).map_or("", String::as_str);
    let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!/"));
    if !first.is_some_and(|line| line.starts_with("//! ") && line.len() > "//! ".len()) {
        let message = "does not open with a `//!` header that says what the file holds";
        findings.push(Finding::new(&source.path, 1, "header", message));
    }
}

fn file(source: &Source, ratchet: &Ratchet, findings: &mut Vec<Finding>) {
    let lines = source.lines_without_tests();
    let listed = ratchet.files.iter().find(|entry| entry.path == source.path).map(|entry| entry.lines);
    if let Some(problem) = judge(lines, MAX_FILE_LINES, listed) {
        let message = format!("{lines} lines without tests, {problem}");
        findings.push(Finding::new(&source.path, 1, "size", message));
    }
}

fn check_function(source: &Source, function: &Function, ratchet: &Ratchet, findings: &mut Vec<Finding>) {
    let is_this = |path: &str, name: &str| path == source.path && name == function.name;
    let entry = ratchet.functions.iter().find(|entry| is_this(&entry.path, &entry.name));
    if let Some(problem) = judge(function.lines, MAX_FUNCTION_LINES, entry.map(|entry| entry.lines)) {
        let message = format!("`{}` has {} lines, {problem}", function.name, function.lines);
        findings.push(Finding::new(&source.path, function.line, "size", message));
    }
}

/// What is wrong with a measured size, if anything.
fn judge(measured: usize, limit: usize, listed: Option<usize>) -> Option<String> {
    match listed {
        None if measured > limit => {
            Some(format!("limit {limit}: split, or list it in {RATCHET} with a reason"))
        }
        None => None,
        Some(listed) if measured > listed.max(limit) => Some(format!("{RATCHET} allows {listed}: it grew")),
        Some(listed) if measured < listed => {
            Some(format!("{RATCHET} still allows {listed}: lower it (`cargo xtask tidy --bless`)"))
        }
        Some(_) if measured <= limit => Some(format!("within the limit: drop its entry in {RATCHET}")),
        Some(_) => None,
    }
}

/// Every entry says why the limit does not serve there.
fn reasons(ratchet: &Ratchet, findings: &mut Vec<Finding>) {
    let files = ratchet.files.iter().map(|entry| (&entry.path, &entry.reason));
    let functions = ratchet.functions.iter().map(|entry| (&entry.path, &entry.reason));
    let sleeps = ratchet.sleeps.iter().map(|entry| (&entry.path, &entry.reason));
    for (path, _) in files.chain(functions).chain(sleeps).filter(|(_, reason)| reason.trim().is_empty()) {
        findings.push(Finding::new(RATCHET, 1, "size", format!("the entry for {path} has no reason")));
    }
}

fn stale(tree: &Tree, ratchet: &Ratchet, findings: &mut Vec<Finding>) {
    for entry in &ratchet.files {
        if file_lines(tree, &entry.path).is_none() {
            let message = format!("lists the file {}, which does not exist: drop the entry", entry.path);
            findings.push(Finding::new(RATCHET, 1, "size", message));
        }
    }
    for entry in &ratchet.functions {
        if function_lines(tree, &entry.path, &entry.name).is_none() {
            let message = format!("lists `{}` of {}, which does not exist: drop it", entry.name, entry.path);
            findings.push(Finding::new(RATCHET, 1, "size", message));
        }
    }
}

fn file_lines(tree: &Tree, path: &str) -> Option<usize> {
    tree.sources.iter().find(|source| source.path == path).map(Source::lines_without_tests)
}

/// The longest function of this name in the file (one name may occur under several `cfg`s).
fn function_lines(tree: &Tree, path: &str, name: &str) -> Option<usize> {
    let source = tree.sources.iter().find(|source| source.path == path)?;
    source.functions.iter().filter(|function| function.name == name).map(|function| function.lines).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_of(lines: usize) -> Tree {
        let body = "    f();\n".repeat(lines.saturating_sub(2));
        Tree::from_texts(&[("host/x/src/a.rs", &format!("//! Header.\nfn long() {{\n{body}}}\n"))])
    }

    fn ratchet_of(lines: usize) -> Ratchet {
        toml::from_str(&format!(
            "[[function]]\npath = \"host/x/src/a.rs\"\nname = \"long\"\nlines = {lines}\nreason = \"r\"\n"
        ))
        .unwrap()
    }

    #[track_caller]
    fn check_one(tree: &Tree, ratchet: &Ratchet, expected: Option<&str>) {
        let findings = check(tree, ratchet);
        match expected {
            None => assert_eq!(findings, []),
            Some(part) => {
                assert_eq!(findings.len(), 1, "{findings:?}");
                assert!(findings[0].message.contains(part), "{findings:?}");
            }
        }
    }

    #[test]
    fn a_function_at_the_limit_passes_and_one_above_does_not() {
        check_one(&tree_of(70), &Ratchet::default(), None);
        check_one(&tree_of(71), &Ratchet::default(), Some("has 71 lines, limit 70"));
    }

    #[test]
    fn a_listed_function_may_neither_grow_nor_keep_a_stale_number() {
        check_one(&tree_of(90), &ratchet_of(90), None);
        check_one(&tree_of(91), &ratchet_of(90), Some("it grew"));
        check_one(&tree_of(80), &ratchet_of(90), Some("lower it"));
        check_one(&tree_of(60), &ratchet_of(60), Some("drop its entry"));
    }

    #[test]
    fn an_entry_for_nothing_is_a_finding() {
        check_one(&Tree::from_texts(&[]), &ratchet_of(90), Some("does not exist"));
    }

    #[test]
    fn an_entry_owes_a_reason() {
        let mut ratchet = ratchet_of(90);
        ratchet.functions[0].reason.clear();
        check_one(&tree_of(90), &ratchet, Some("has no reason"));
    }

    #[test]
    fn blessing_lowers_and_drops_but_never_raises() {
        let mut ratchet = ratchet_of(90);
        assert_eq!(lower(&tree_of(80), &mut ratchet), 1);
        assert_eq!(ratchet.functions[0].lines, 80);
        assert_eq!(lower(&tree_of(85), &mut ratchet), 0);
        assert_eq!(ratchet.functions[0].lines, 80);
        assert_eq!(lower(&tree_of(70), &mut ratchet), 1);
        assert!(ratchet.functions.is_empty());
    }

    #[test]
    fn a_long_file_is_measured_without_its_tests() {
        let code = "const A: u8 = 1;\n".repeat(799);
        let tests = "#[cfg(test)]\nmod tests {\n    const B: u8 = 1;\n}\n";
        let path = "host/x/src/a.rs";
        let fits = format!("//! Header.\n{code}{tests}");
        check_one(&Tree::from_texts(&[(path, &fits)]), &Ratchet::default(), None);
        let exceeds = format!("//! Header.\n//! More.\n{code}{tests}");
        let findings = check(&Tree::from_texts(&[(path, &exceeds)]), &Ratchet::default());
        assert!(findings[0].message.starts_with("801 lines without tests"), "{findings:?}");
    }

    #[test]
    fn a_file_without_header_is_a_finding() {
        for text in ["fn f() {}\n", "// Not a header.\nfn f() {}\n", "//!\nfn f() {}\n"] {
            let findings = check(&Tree::from_texts(&[("host/x/src/a.rs", text)]), &Ratchet::default());
            assert_eq!(findings.len(), 1, "{text}");
            assert_eq!(findings[0].rule, "header");
        }
    }
}
