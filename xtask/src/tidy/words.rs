//! `words`: what may not stand in any file of the tree, and how many notes may.
//!
//! The project speaks of itself alone: no paths of the machine something was
//! written on, no references that only its authors could follow. This file is
//! exempt, since it has to name the words.

use super::Finding;
use super::tree::Tree;

/// Text and what is wrong with it.
const REFUSED: &[(&str, &str)] = &[
    ("/work/", "a path of one machine"),
    ("/root/", "a path of one machine"),
    ("shared/", "a folder outside of the repository"),
    ("issue #", "a reference that only its author can follow: say what the problem is"),
];
const NOTES: &[&str] = &["TODO", "FIXME"];
/// Notes left in comments, per thousand lines of code.
const MAX_NOTES_PER_KLOC: f64 = 0.3;
const EXEMPT: &[&str] = &["xtask/src/tidy/words.rs", "Cargo.lock"];

/// Findings in every text file.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in &tree.texts {
        if EXEMPT.contains(&path.as_str()) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for (word, problem) in REFUSED {
                if contains_word(line, word) {
                    findings.push(Finding::new(path, number + 1, "words", format!("`{word}`: {problem}")));
                }
            }
        }
    }
    let notes = notes_in(tree);
    let code_lines: usize =
        tree.sources.iter().map(|source| source.lines.iter().filter(|line| line.is_code()).count()).sum();
    if per_kloc(notes.len(), code_lines) > MAX_NOTES_PER_KLOC {
        findings.extend(notes.into_iter().map(|(path, line)| {
            let message =
                format!("more than {MAX_NOTES_PER_KLOC} notes per kloc: do it, or write down why not");
            Finding::new(&path, line, "words", message)
        }));
    }
    findings
}

/// Places of the notes in comments.
pub fn notes_in(tree: &Tree) -> Vec<(String, usize)> {
    let mut notes = Vec::new();
    for source in tree.sources.iter().filter(|source| !EXEMPT.contains(&source.path.as_str())) {
        for (number, line) in source.numbered() {
            if NOTES.iter().any(|note| line.comment.contains(note)) {
                notes.push((source.path.clone(), number));
            }
        }
    }
    notes
}

/// How many per thousand lines.
pub fn per_kloc(count: usize, lines: usize) -> f64 {
    if lines == 0 { 0.0 } else { count as f64 * 1000.0 / lines as f64 }
}

/// Whether `word` occurs and does not merely end a longer word.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_words_are_found_in_any_file() {
        for text in ["see /work/x", "`shared/spec`", "fixes issue #7", "cd /root/x"] {
            assert_eq!(check(&Tree::from_texts(&[("README.md", text)])).len(), 1, "{text}");
        }
        for text in ["network/work/x", "unshared/", "target/shared.so", "/workspace", "~/root/x/y"] {
            let findings = check(&Tree::from_texts(&[("README.md", text)]));
            assert_eq!(findings.len(), usize::from(text.starts_with('~')), "{text}");
        }
    }

    #[test]
    fn notes_are_rationed_by_the_size_of_the_tree() {
        let note = "// TODO: this\n";
        let small = format!("//! H.\n{note}fn f() {{}}\n");
        assert_eq!(check(&Tree::from_texts(&[("host/a.rs", &small)])).len(), 1);
        let large = format!("//! H.\n{note}{}", "const A: u8 = 1;\n".repeat(4000));
        assert_eq!(check(&Tree::from_texts(&[("host/a.rs", &large)])), []);
        let string = "//! H.\nconst A: &str = \"TODO\";\n";
        assert_eq!(check(&Tree::from_texts(&[("host/a.rs", string)])), []);
    }
}
