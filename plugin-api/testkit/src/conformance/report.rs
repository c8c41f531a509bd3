//! What the suite found, as a list a person reads: one line per check.

use std::fmt;

use crate::violation::Fault;

/// How one check ended with one seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As the contract asks.
    Passed,
    /// It does not apply, and why.
    Skipped(String),
    /// What is wrong.
    Failed {
        /// For people.
        text: String,
        /// The violations among it.
        faults: Vec<Fault>,
    },
}

/// One check with one seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckResult {
    /// Name of the check.
    pub name: &'static str,
    /// Seed it ran with.
    pub seed: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// Results of a run of the suite.
#[derive(Clone, Default, Debug)]
pub struct Report {
    results: Vec<CheckResult>,
}

impl Report {
    pub(super) fn push(&mut self, result: CheckResult) {
        self.results.push(result);
    }

    /// Every result, in order.
    #[must_use]
    pub fn results(&self) -> &[CheckResult] {
        &self.results
    }

    /// One text per failure; empty if the plugin conforms.
    #[must_use]
    pub fn failed(&self) -> Vec<String> {
        let text = |result: &CheckResult| match &result.outcome {
            Outcome::Failed { text, .. } => Some(format!("  {} (seed {}): {text}", result.name, result.seed)),
            Outcome::Passed | Outcome::Skipped(_) => None,
        };
        self.results.iter().filter_map(text).collect()
    }

    /// True if some check failed with this violation.
    #[must_use]
    pub fn has_fault(&self, fault: Fault) -> bool {
        self.results.iter().any(|result| match &result.outcome {
            Outcome::Failed { faults, .. } => faults.contains(&fault),
            Outcome::Passed | Outcome::Skipped(_) => false,
        })
    }

    /// Names of the checks that failed.
    #[must_use]
    pub fn failed_checks(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = Vec::new();
        for result in &self.results {
            if matches!(result.outcome, Outcome::Failed { .. }) && !names.contains(&result.name) {
                names.push(result.name);
            }
        }
        names
    }

    /// Names of the checks that were skipped.
    #[must_use]
    pub fn skipped_checks(&self) -> Vec<&'static str> {
        let skipped = self.results.iter().filter(|result| matches!(result.outcome, Outcome::Skipped(_)));
        skipped.map(|result| result.name).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = 0;
        while let Some(first) = self.results.get(at) {
            let group: Vec<&CheckResult> =
                self.results[at..].iter().take_while(|result| result.name == first.name).collect();
            at += group.len();
            let failed: Vec<String> = group
                .iter()
                .filter(|result| matches!(result.outcome, Outcome::Failed { .. }))
                .map(|result| result.seed.to_string())
                .collect();
            match &first.outcome {
                Outcome::Skipped(reason) => writeln!(f, "check {} ... skip ({reason})", first.name)?,
                Outcome::Passed | Outcome::Failed { .. } if failed.is_empty() => {
                    writeln!(f, "check {} ... ok ({} seeds)", first.name, group.len())?;
                }
                Outcome::Passed | Outcome::Failed { .. } => {
                    writeln!(f, "check {} ... FAILED (seeds {})", first.name, failed.join(", "))?;
                }
            }
        }
        Ok(())
    }
}
