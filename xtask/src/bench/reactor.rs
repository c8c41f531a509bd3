//! Probe of the event loop: how long a message takes to a reactor that sleeps,
//! and to one that is awake. Runs the reactor crate's own bench and reads what it
//! prints.

use std::process::Command;

use anyhow::Context;

use super::{Probe, Round};
use crate::steps;
use crate::workspace::Workspace;

const BENCH: &str = "target/release/examples/reactor_bench";
/// Beginnings of the lines, and under which names their figures are kept.
const LINES: [(&str, &str); 3] = [
    ("message latency, asleep", "asleep"),
    ("wake-up without a reactor", "bare"),
    ("message latency, awake", "awake"),
];

/// The probe of this file.
pub fn probes(workspace: &Workspace) -> Vec<Probe> {
    let bench = workspace.path(BENCH);
    let run = move |round: &mut Round| {
        let output = steps::output_of(&mut Command::new(&bench))?;
        for (line, name) in LINES {
            let text =
                output.lines().find(|text| text.starts_with(line)).context("reactor_bench lacks a line")?;
            for share in ["p50", "p99"] {
                let value = figure_of(text, share).with_context(|| format!("no {share} in `{text}`"))?;
                round.insert(format!("{name} {share} us"), value);
            }
        }
        Ok(())
    };
    vec![Probe { group: "reactor", name: "messages".to_owned(), run: Box::new(run) }]
}

/// The number behind a word, e.g. behind `p50` in `awake: p50 0.14 us, p99 0.20 us`.
fn figure_of(text: &str, word: &str) -> Option<f64> {
    let mut words = text.split_whitespace().skip_while(|found| *found != word);
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_number_behind_its_word() {
        let text =
            "message latency, asleep (there; back to one awake): p50 24.10 us, p99 36.02 us, max 90.00 us";
        assert_eq!(figure_of(text, "p50"), Some(24.1));
        assert_eq!(figure_of(text, "p99"), Some(36.02));
        assert_eq!(figure_of(text, "p98"), None);
    }
}
