//! `cargo xtask tidy --report`: what the tree measures, beside what it aims at.
//!
//! Figures for reading, not rules: the rules are in the other modules.

use std::fmt::Write;

use super::size::MAX_FUNCTION_LINES;
use super::source::Source;
use super::tree::Tree;
use super::{documentation, quotes, unsafety, words};
use crate::workspace::is_below;

const AREAS: &[&str] = &["plugin-api", "host", "plugins", "xtask"];
/// The crates whose comments are the contract.
const CONTRACT: &[&str] = &["plugin-api/abi", "plugin-api/sdk"];

/// Lines of one kind in a set of files.
#[derive(Debug, Default, Clone, Copy)]
struct LineCounts {
    code: usize,
    comment: usize,
    test: usize,
}

/// The report as text, one figure a line.
pub fn render(tree: &Tree) -> String {
    let mut out = String::new();
    row(&mut out, "what", "measured", "target");
    sizes(tree, &mut out);
    let (covered, blocks) = tree.sources.iter().map(unsafety::coverage).fold((0, 0), add);
    row(&mut out, "SAFETY on unsafe blocks", &share(covered, blocks), "100 %");
    for area in AREAS {
        let (documented, items) = documentation::coverage(tree, area);
        let target = if *area == "plugin-api" { "100 %" } else { ">= 90 %" };
        row(&mut out, &format!("public items documented, {area}"), &share(documented, items), target);
    }
    comments_and_tests(tree, &mut out);
    let (rules, open) = quotes::uncovered(tree);
    row(&mut out, "quoted rules with a test", &share(rules - open.len(), rules), "100 %");
    for place in open {
        let _ = writeln!(out, "    no test quotes {place}");
    }
    out
}

fn sizes(tree: &Tree, out: &mut String) {
    let product = || tree.sources.iter().filter(|source| !source.is_test_file);
    let files: Vec<usize> = product().map(Source::lines_without_tests).collect();
    let functions: Vec<usize> = product()
        .flat_map(|source| source.functions.iter().filter(|function| !source.is_test_line(function.line)))
        .map(|function| function.lines)
        .collect();
    let long = functions.iter().filter(|lines| **lines > MAX_FUNCTION_LINES).count();
    row(out, "files", &files.len().to_string(), "");
    row(out, "file lines, median / p95", &median_and_p95(&files), "<= 250 / <= 700");
    row(out, "functions", &functions.len().to_string(), "");
    row(out, "function lines, median / p95", &median_and_p95(&functions), "<= 10 / <= 45");
    let measured = format!("{long} ({})", share(long, functions.len()));
    row(out, &format!("functions > {MAX_FUNCTION_LINES} lines"), &measured, "<= 1 %");
}

fn comments_and_tests(tree: &Tree, out: &mut String) {
    let all = line_counts(tree.sources.iter());
    let contract = line_counts(
        tree.sources.iter().filter(|source| CONTRACT.iter().any(|folder| is_below(&source.path, folder))),
    );
    row(out, "comment lines", &share(all.comment, all.code + all.comment), "12 - 20 %");
    let lines = contract.code + contract.comment;
    row(out, "comment lines, plugin-api/{abi,sdk}", &share(contract.comment, lines), ">= 30 %");
    let ratio = if all.code == 0 { 0.0 } else { all.test as f64 / all.code as f64 };
    row(out, "test : code", &format!("{ratio:.2} ({} : {})", all.test, all.code), "0.6 - 1.0");
    let notes = words::per_kloc(words::notes_in(tree).len(), all.code + all.test);
    row(out, "notes per kloc", &format!("{notes:.2}"), "<= 0.3");
}

fn line_counts<'a>(sources: impl Iterator<Item = &'a Source>) -> LineCounts {
    let mut counts = LineCounts::default();
    for source in sources {
        for (number, line) in source.numbered() {
            if source.is_test_line(number) {
                counts.test += usize::from(line.is_code());
            } else {
                counts.code += usize::from(line.is_code());
                counts.comment += usize::from(line.is_comment());
            }
        }
    }
    counts
}

fn add(left: (usize, usize), right: (usize, usize)) -> (usize, usize) {
    (left.0 + right.0, left.1 + right.1)
}

fn row(out: &mut String, what: &str, measured: &str, target: &str) {
    let line = format!("{what:<40} {measured:<22} {target}");
    let _ = writeln!(out, "{}", line.trim_end());
}

fn share(part: usize, whole: usize) -> String {
    if whole == 0 {
        return "none".to_owned();
    }
    format!("{:.1} % of {whole}", part as f64 * 100.0 / whole as f64)
}

fn median_and_p95(values: &[usize]) -> String {
    format!("{} / {}", percentile(values, 50), percentile(values, 95))
}

/// Nearest-rank percentile.
fn percentile(values: &[usize], percent: usize) -> usize {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<usize> = (1..=100).collect();
        assert_eq!(percentile(&values, 50), 50);
        assert_eq!(percentile(&values, 95), 95);
        assert_eq!(percentile(&[7], 95), 7);
        assert_eq!(percentile(&[], 95), 0);
    }

    #[test]
    fn the_report_measures_code_comments_and_tests() {
        let tree = Tree::from_texts(&[(
            "plugin-api/sdk/src/a.rs",
            "//! H.\n/// D.\npub fn a() {}\npub fn b() {}\n#[cfg(test)]\nmod tests {\n    fn t() {}\n}\n",
        )]);
        let report = render(&tree);
        let line = |start: &str| report.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert!(line("public items documented, plugin-api").contains("50.0 % of 2"), "{report}");
        assert!(line("comment lines, plugin-api").contains("50.0 % of 4"), "{report}");
        assert!(line("test : code").contains("2.00 (4 : 2)"), "{report}");
        assert!(line("file lines").contains("4 / 4"), "{report}");
    }
}
