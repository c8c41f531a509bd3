//! `unsafe`: where unsafe code may stand, and what must be written beside it.
//!
//! The allow-list is `xtask/unsafe.toml`; every other crate forbids unsafe
//! code in its root. Listed code says why at its module head (`UNSAFETY:`), at
//! every block (`SAFETY:`) and on every unsafe function (`# Safety`).

use super::Finding;
use super::lists::{UNSAFE, UnsafeList};
use super::source::{Source, UnsafeKind};
use super::tree::Tree;
use crate::workspace::is_below;

/// How far above a block its comment may stand when a statement is broken over lines.
const MAX_STATEMENT_LINES: usize = 12;

/// Findings of this rule.
pub fn check(tree: &Tree, list: &UnsafeList) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in &tree.sources {
        if is_crate_root(&source.path) {
            crate_root(tree, source, list, &mut findings);
        }
        if source.unsafe_sites.is_empty() {
            continue;
        }
        if !list.allow.iter().any(|entry| is_below(&source.path, &entry.path)) {
            let line = source.unsafe_sites[0].line;
            let message =
                format!("unsafe code outside of {UNSAFE}: write it safely, or list it with a reason");
            findings.push(Finding::new(&source.path, line, "unsafe", message));
        }
        module_head(source, &mut findings);
        sites(source, &mut findings);
    }
    for (index, entry) in list.allow.iter().enumerate() {
        if list.allow[..index].iter().any(|other| other.path == entry.path) {
            findings.push(Finding::new(UNSAFE, 1, "unsafe", format!("{} is listed twice", entry.path)));
        }
        if entry.reason.trim().is_empty() {
            findings.push(Finding::new(
                UNSAFE,
                1,
                "unsafe",
                format!("{} is listed without a reason", entry.path),
            ));
        }
        let has_unsafe =
            |source: &Source| is_below(&source.path, &entry.path) && !source.unsafe_sites.is_empty();
        let is_generated = tree.texts.contains_key(&entry.path)
            && !tree.sources.iter().any(|source| source.path == entry.path);
        if !is_generated && !tree.sources.iter().any(has_unsafe) {
            let message = format!("lists {}, which has no unsafe code: drop the entry", entry.path);
            findings.push(Finding::new(UNSAFE, 1, "unsafe", message));
        }
    }
    findings
}

/// Blocks and implementations with unsafe code, and how many carry a `SAFETY:` comment.
pub fn coverage(source: &Source) -> (usize, usize) {
    let blocks = source.unsafe_sites.iter().filter(|site| needs_comment(site.kind));
    let all: Vec<bool> = blocks.map(|site| has_safety_comment(source, site.line)).collect();
    (all.iter().filter(|covered| **covered).count(), all.len())
}

fn needs_comment(kind: UnsafeKind) -> bool {
    matches!(kind, UnsafeKind::Block | UnsafeKind::Impl)
}

fn is_crate_root(path: &str) -> bool {
    path.ends_with("/src/lib.rs")
        || path.ends_with("/src/main.rs")
        || path.rsplit_once('/').is_some_and(|(folder, _)| folder.ends_with("/src/bin"))
}

fn crate_root(tree: &Tree, source: &Source, list: &UnsafeList, findings: &mut Vec<Finding>) {
    let Some(package) = tree.package_of(&source.path) else { return };
    if list.allow.iter().any(|entry| entry.path == package.dir) {
        return;
    }
    let has_listed_file = list.allow.iter().any(|entry| is_below(&entry.path, &package.dir));
    let has = |attribute: &str| source.inner_attributes.iter().any(|inner| inner == attribute);
    let is_guarded = has("forbid(unsafe_code)") || (has_listed_file && has("deny(unsafe_code)"));
    if !is_guarded {
        let wanted = if has_listed_file { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
        let message = format!("the crate is not in {UNSAFE}: its root needs `{wanted}`");
        findings.push(Finding::new(&source.path, 1, "unsafe", message));
    }
}

fn module_head(source: &Source, findings: &mut Vec<Finding>) {
    let mut head = source.numbered().take_while(|(number, _)| *number < source.first_item_line);
    if source.is_test_file || head.any(|(_, line)| line.comment.starts_with("// UNSAFETY: ")) {
        return;
    }
    if source.unsafe_sites.iter().all(|site| source.is_test_line(site.line)) {
        return;
    }
    let message = "uses unsafe code without a line `// UNSAFETY: reason` at its head";
    findings.push(Finding::new(&source.path, 1, "unsafe", message));
}

fn sites(source: &Source, findings: &mut Vec<Finding>) {
    let has_module_section = source.lines.iter().any(|line| line.comment.starts_with("//! # Safety"));
    let mut private = Vec::new();
    for site in &source.unsafe_sites {
        let has_comment = || has_safety_comment(source, site.line);
        match site.kind {
            UnsafeKind::Block | UnsafeKind::Impl if !has_comment() => {
                let message = "has no `// SAFETY:` comment above it that says why it is sound";
                findings.push(Finding::new(&source.path, site.line, "unsafe", message));
            }
            UnsafeKind::Function { has_section: false, .. } if source.is_test_line(site.line) => {}
            UnsafeKind::Function { is_public: true, has_section: false } => {
                let message = "unsafe function without a `# Safety` section that says what the caller owes";
                findings.push(Finding::new(&source.path, site.line, "unsafe", message));
            }
            UnsafeKind::Function { has_section: false, .. } if !has_module_section && !has_comment() => {
                private.push(site.line);
            }
            UnsafeKind::Block | UnsafeKind::Impl | UnsafeKind::Function { .. } | UnsafeKind::Other => {}
        }
    }
    if let Some(first) = private.first() {
        let message = format!(
            "{} private unsafe functions say nothing of what the caller owes: `# Safety` on each, or once for \
             all of them in the file's `//!` header",
            private.len()
        );
        findings.push(Finding::new(&source.path, *first, "unsafe", message));
    }
}

/// Whether the comment that belongs to the statement at `line` contains `SAFETY:`.
fn has_safety_comment(source: &Source, line: usize) -> bool {
    let line_at = |number: usize| &source.lines[number - 1];
    if says_why(&line_at(line).comment) {
        return true;
    }
    let mut code_lines = 0;
    for number in (1..line).rev() {
        let above = line_at(number);
        if says_why(&above.comment) {
            return true;
        }
        if above.is_blank() {
            return false;
        }
        if above.is_code() {
            let code = above.code.trim_end();
            // An arm's comment stands above its pattern, wherever the formatter breaks the arm.
            let is_arm = code.ends_with("=> {");
            let is_attribute = code.trim_start().starts_with('#');
            let ends_statement = code.ends_with([';', '{', '}']) && !is_arm && !is_attribute;
            code_lines += 1;
            if ends_statement || code_lines > MAX_STATEMENT_LINES {
                return false;
            }
        }
    }
    false
}

/// `SAFETY:`, but not the `UNSAFETY:` of the module head.
fn says_why(comment: &str) -> bool {
    comment.match_indices("SAFETY:").any(|(at, _)| !comment[..at].ends_with("UN"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::lists::UnsafeEntry;

    const MANIFEST: (&str, &str) = ("host/x/Cargo.toml", "[package]\nname = \"x\"\n");
    const ROOT: &str = "host/x/src/lib.rs";

    fn list(path: &str) -> UnsafeList {
        toml::from_str(&format!("[[allow]]\npath = \"{path}\"\nreason = \"r\"\n")).unwrap()
    }

    #[track_caller]
    fn check_text(text: &str, list: &UnsafeList, expected: &[&str]) {
        let findings = check(&Tree::from_texts(&[MANIFEST, (ROOT, text)]), list);
        assert_eq!(findings.len(), expected.len(), "{findings:?}");
        for (finding, part) in findings.iter().zip(expected) {
            assert!(finding.message.contains(part), "{finding}");
        }
    }

    #[test]
    fn an_unlisted_crate_forbids_unsafe_code() {
        check_text("//! H.\n#![forbid(unsafe_code)]\n", &UnsafeList::default(), &[]);
        check_text("//! H.\n", &UnsafeList::default(), &["needs `#![forbid(unsafe_code)]`"]);
    }

    #[test]
    fn a_crate_with_one_listed_file_denies_it_elsewhere() {
        let text = "//! H.\n#![deny(unsafe_code)]\n";
        let listed = "//! H.\n// UNSAFETY: r\nfn f() {\n    // SAFETY: s\n    unsafe { g() }\n}\n";
        let texts = [MANIFEST, (ROOT, text), ("host/x/src/a.rs", listed)];
        assert_eq!(check(&Tree::from_texts(&texts), &list("host/x/src/a.rs")), []);
        assert_eq!(check(&Tree::from_texts(&texts), &UnsafeList::default()).len(), 2);
    }

    #[test]
    fn listed_code_still_owes_its_reasons() {
        let list = list("host/x");
        let good = "//! H.\n// UNSAFETY: r\nfn f() {\n    // SAFETY: s\n    unsafe { g() }\n}\n";
        check_text(good, &list, &[]);
        check_text(&good.replace("// UNSAFETY: r\n", ""), &list, &["without a line `// UNSAFETY"]);
        check_text(&good.replace("    // SAFETY: s\n", ""), &list, &["no `// SAFETY:` comment"]);
        check_text("//! H.\n", &list, &["drop the entry"]);
    }

    #[test]
    fn a_comment_reaches_over_a_broken_statement_but_not_over_the_one_before() {
        let list = list("host/x");
        let head = "//! H.\n// UNSAFETY: r\n";
        let broken = "fn f() {\n    // SAFETY: s\n    let a =\n        unsafe { g() };\n}\n";
        check_text(&format!("{head}{broken}"), &list, &[]);
        let arm = "fn f() {\n    match a {\n        // SAFETY: s\n        1 => {\n            unsafe { g() }\n        }\n    }\n}\n";
        check_text(&format!("{head}{arm}"), &list, &[]);
        let before = "fn f() {\n    // SAFETY: s\n    let a = 1;\n    unsafe { g() };\n}\n";
        check_text(&format!("{head}{before}"), &list, &["no `// SAFETY:` comment"]);
    }

    #[test]
    fn an_unsafe_function_owes_a_safety_section() {
        let list = list("host/x");
        let head = "//! H.\n// UNSAFETY: r\n";
        check_text(&format!("{head}/// D.\npub unsafe fn f() {{}}\n"), &list, &["`# Safety` section"]);
        check_text(&format!("{head}/// D.\n/// # Safety\n/// S.\npub unsafe fn f() {{}}\n"), &list, &[]);
        check_text(&format!("{head}// SAFETY: s\nunsafe fn f() {{}}\n"), &list, &[]);
        check_text(&format!("{head}unsafe fn f() {{}}\nunsafe fn g() {{}}\n"), &list, &["2 private unsafe"]);
        check_text(&format!("{head}unsafe extern \"C\" fn f() {{}}\n"), &list, &[]);
        check_text(&format!("{head}pub unsafe extern \"C\" fn f() {{}}\n"), &list, &["`# Safety` section"]);
        check_text("//! H.\n//! # Safety\n//! S.\n// UNSAFETY: r\nunsafe fn f() {}\n", &list, &[]);
        check_text(&format!("{head}// SAFETY: s\npub unsafe fn f() {{}}\n"), &list, &["`# Safety` section"]);
    }

    #[test]
    fn an_entry_owes_a_reason() {
        let list = UnsafeList { allow: vec![UnsafeEntry { path: "host/x".into(), reason: " ".into() }] };
        let text = "//! H.\n// UNSAFETY: r\nfn f() {\n    // SAFETY: s\n    unsafe { g() }\n}\n";
        check_text(text, &list, &["without a reason"]);
    }

    #[test]
    fn a_place_is_listed_once() {
        let entry = || UnsafeEntry { path: "host/x".into(), reason: "r".into() };
        let text = "//! H.\n// UNSAFETY: r\nfn f() {\n    // SAFETY: s\n    unsafe { g() }\n}\n";
        check_text(text, &UnsafeList { allow: vec![entry(), entry()] }, &["listed twice"]);
    }

    #[test]
    fn coverage_counts_blocks_with_and_without_comment() {
        let text = "//! H.\nfn f() {\n    // SAFETY: s\n    unsafe { g() };\n    unsafe { g() };\n}\n";
        let tree = Tree::from_texts(&[(ROOT, text)]);
        assert_eq!(coverage(&tree.sources[0]), (1, 2));
    }
}
