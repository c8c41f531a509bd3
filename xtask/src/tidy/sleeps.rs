//! `sleeps`: tests do not sleep, time is injected.
//!
//! A test that drives a real process sometimes has to; such a file is listed
//! in the ratchet with its number of sleeps. Product code is not looked at:
//! there a sleep is a design question, not a rule.

use super::Finding;
use super::lists::{RATCHET, Ratchet};
use super::size::keep_lowered;
use super::source::Source;
use super::tree::Tree;

/// Findings of this rule.
pub fn check(tree: &Tree, ratchet: &Ratchet) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in &tree.sources {
        let sleeps = sleeps_in(source);
        let listed = ratchet.sleeps.iter().find(|entry| entry.path == source.path);
        match listed.map_or(0, |entry| entry.count) {
            allowed if sleeps.len() < allowed => {
                let message = format!("{} sleeps, {RATCHET} still allows {allowed}: lower it", sleeps.len());
                findings.push(Finding::new(&source.path, 1, "sleeps", message));
            }
            allowed => findings.extend(sleeps.iter().skip(allowed).map(|line| {
                let message = "a test sleeps: inject the time, or wait for the event with a deadline";
                Finding::new(&source.path, *line, "sleeps", message)
            })),
        }
    }
    for entry in &ratchet.sleeps {
        if !tree.sources.iter().any(|source| source.path == entry.path) {
            let message = format!("lists sleeps of {}, which does not exist: drop the entry", entry.path);
            findings.push(Finding::new(RATCHET, 1, "sleeps", message));
        }
    }
    findings
}

/// Lowers every entry to what is counted and drops the empty ones; returns how many changed.
pub fn lower(tree: &Tree, ratchet: &mut Ratchet) -> usize {
    let mut changed = 0;
    ratchet.sleeps.retain_mut(|entry| {
        let source = tree.sources.iter().find(|source| source.path == entry.path);
        let measured = source.map(|source| sleeps_in(source).len()).filter(|count| *count > 0);
        keep_lowered(&mut entry.count, measured, &mut changed)
    });
    changed
}

/// Lines of test code that call a sleep.
fn sleeps_in(source: &Source) -> Vec<usize> {
    let tests = source.numbered().filter(|(number, _)| source.is_test_line(*number));
    tests.filter(|(_, line)| calls_sleep(&line.code)).map(|(number, _)| number).collect()
}

/// `sleep(…)` or `thread::sleep(…)`, but neither a method `x.sleep(…)` nor its definition.
fn calls_sleep(code: &str) -> bool {
    code.match_indices("sleep(").any(|(at, _)| {
        let before = &code[..at];
        let is_longer_name = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let is_nanosleep = before.ends_with("nano");
        let is_method = before.ends_with('.') || before.trim_end().ends_with("fn");
        (!is_longer_name || is_nanosleep) && !is_method
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "host/x/src/a.rs";

    fn tree_of(statement: &str) -> Tree {
        let text = format!(
            "//! H.\nfn f() {{ thread::sleep(D); }}\n#[cfg(test)]\nmod tests {{\n    #[test]\n    fn t() {{\n{statement}\n    }}\n}}\n"
        );
        Tree::from_texts(&[(PATH, &text)])
    }

    fn listed(count: usize) -> Ratchet {
        toml::from_str(&format!("[[sleep]]\npath = \"{PATH}\"\ncount = {count}\nreason = \"r\"\n")).unwrap()
    }

    #[test]
    fn a_sleep_is_a_finding_only_in_tests() {
        for sleep in ["std::thread::sleep(D);", "sleep(D);", "rustix::thread::nanosleep(&t);"] {
            let findings = check(&tree_of(sleep), &Ratchet::default());
            assert_eq!(findings.len(), 1, "{sleep}");
            assert_eq!(findings[0].line, 7);
        }
        for other in ["clock.sleep(D);", "// thread::sleep(D)", "fn sleep() {}", "fall_asleep();"] {
            assert_eq!(check(&tree_of(other), &Ratchet::default()), [], "{other}");
        }
    }

    #[test]
    fn listed_sleeps_pass_until_there_are_fewer_or_more() {
        let tree = tree_of("sleep(D);");
        assert_eq!(check(&tree, &listed(1)), []);
        assert!(check(&tree, &listed(2))[0].message.contains("lower it"));
        assert_eq!(check(&tree_of("sleep(D);\nsleep(D);"), &listed(1)).len(), 1);
    }

    #[test]
    fn blessing_lowers_the_count() {
        let mut ratchet = listed(2);
        assert_eq!(lower(&tree_of("sleep(D);"), &mut ratchet), 1);
        assert_eq!(ratchet.sleeps[0].count, 1);
        assert_eq!(lower(&tree_of(""), &mut ratchet), 1);
        assert!(ratchet.sleeps.is_empty());
    }
}
