//! `quotes`: protocol rules quoted in code have their form, and their tests are known.
//!
//! A quote is `//= source` followed by `//# sentence` lines; the test that
//! proves it carries the same pair with `//= type=test` between. A malformed
//! quote is a finding; one without a test is only reported.

use std::collections::BTreeSet;

use super::Finding;
use super::source::Source;
use super::tree::Tree;

/// One sentence of a specification, as quoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quote {
    source: String,
    sentence: String,
}

#[derive(Debug)]
struct Place {
    path: String,
    line: usize,
    quote: Quote,
    is_test: bool,
}

/// Findings of this rule.
pub fn check(tree: &Tree) -> Vec<Finding> {
    places(tree).1
}

/// Number of quoted rules, and the places of those no test quotes too.
pub fn uncovered(tree: &Tree) -> (usize, Vec<String>) {
    let (places, _) = places(tree);
    let tested: BTreeSet<&Quote> =
        places.iter().filter(|place| place.is_test).map(|place| &place.quote).collect();
    let rules: Vec<&Place> = places.iter().filter(|place| !place.is_test).collect();
    let open = rules.iter().filter(|place| !tested.contains(&place.quote));
    let described = open.map(|place| {
        format!("{}:{}: {}: {}", place.path, place.line, place.quote.source, place.quote.sentence)
    });
    (rules.len(), described.collect())
}

fn places(tree: &Tree) -> (Vec<Place>, Vec<Finding>) {
    let mut places = Vec::new();
    let mut findings = Vec::new();
    for source in &tree.sources {
        quotes_of(source, &mut places, &mut findings);
    }
    (places, findings)
}

/// Walks the comment lines of a file; a quote ends with the first line that is not part of it.
fn quotes_of(source: &Source, places: &mut Vec<Place>, findings: &mut Vec<Finding>) {
    let mut open: Option<Place> = None;
    let mut malformed =
        |line: usize, message: &str| findings.push(Finding::new(&source.path, line, "quotes", message));
    for (number, line) in source.numbered() {
        let comment = line.comment.as_str();
        let own_line = line.is_comment();
        if own_line && comment == "//= type=test" {
            match &mut open {
                Some(place) if place.quote.sentence.is_empty() => place.is_test = true,
                _ => malformed(number, "`//= type=test` belongs right after the `//= source` line"),
            }
        } else if own_line && comment.starts_with("//=") {
            finish(open.take(), places, &mut malformed);
            let text = comment.trim_start_matches("//=").trim();
            if text.is_empty() || !comment.starts_with("//= ") || text.starts_with("type=") {
                malformed(number, "a quote begins `//= specification §section`");
                continue;
            }
            let quote = Quote { source: text.to_owned(), sentence: String::new() };
            open = Some(Place { path: source.path.clone(), line: number, quote, is_test: false });
        } else if own_line && comment.starts_with("//#") {
            let text = comment.trim_start_matches("//#").trim();
            match &mut open {
                Some(place) if !text.is_empty() && comment.starts_with("//# ") => {
                    if !place.quote.sentence.is_empty() {
                        place.quote.sentence.push(' ');
                    }
                    place.quote.sentence.push_str(text);
                }
                Some(_) => malformed(number, "an empty `//#` line"),
                None => malformed(number, "`//#` without a `//= source` line above it"),
            }
        } else {
            finish(open.take(), places, &mut malformed);
        }
    }
    finish(open, places, &mut malformed);
}

fn finish(open: Option<Place>, places: &mut Vec<Place>, malformed: &mut impl FnMut(usize, &str)) {
    match open {
        Some(place) if place.quote.sentence.is_empty() => {
            malformed(place.line, "`//= source` without a quoted `//# sentence`");
        }
        Some(place) => places.push(place),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "//= NVMe/TCP 1.1 §3.6\n//# The length\n//# shall be 8.\n";
    const TEST: &str = "//= NVMe/TCP 1.1 §3.6\n//= type=test\n//# The length shall be 8.\n";

    fn tree_of(text: &str) -> Tree {
        Tree::from_texts(&[("host/a.rs", &format!("//! H.\n{text}fn f() {{}}\n"))])
    }

    #[test]
    fn a_rule_is_covered_by_a_test_that_quotes_it() {
        assert_eq!(
            uncovered(&tree_of(RULE)),
            (1, vec!["host/a.rs:2: NVMe/TCP 1.1 §3.6: The length shall be 8.".to_owned()])
        );
        assert_eq!(uncovered(&tree_of(&format!("{RULE}fn g() {{}}\n{TEST}"))), (1, vec![]));
        assert_eq!(check(&tree_of(&format!("{RULE}{TEST}"))), []);
    }

    #[test]
    fn malformed_quotes_are_findings() {
        for text in [
            "//# No source.\n",
            "//= NVMe 2.1 §3\n",
            "//=\n//# No source.\n",
            "//= type=test\n//# No source.\n",
            "//= NVMe 2.1 §3\n//#\n//# Empty line.\n",
            "//= NVMe 2.1 §3\n//# Late.\n//= type=test\n",
            "//= type=todo\n",
        ] {
            assert!(!check(&tree_of(text)).is_empty(), "{text}");
        }
    }
}
