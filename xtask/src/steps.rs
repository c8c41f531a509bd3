//! Running programs as timed steps, and adding up what test runners report.
//!
//! A step's output passes through unchanged while it runs; its lines are read
//! on the way for the runners' summary lines. A failed step does not stop the
//! following ones: the caller decides by the returned flag.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What the runners of one session reported, and how long each step took.
#[derive(Debug, Default)]
pub struct Session {
    steps: Vec<Step>,
    counts: Counts,
}

#[derive(Debug)]
struct Step {
    title: String,
    took: Duration,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Tests that passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed or timed out.
    pub failed: u64,
}

impl Session {
    /// Runs a program as one step; true when it succeeded.
    ///
    /// A step that fails without reporting a failed test counts as one failure,
    /// so that the last line never claims `0 failed` over a broken build.
    pub fn command(&mut self, title: &str, command: &mut Command) -> bool {
        self.announce(title);
        let start = Instant::now();
        let (succeeded, counts) = match stream(command) {
            Ok(result) => result,
            Err(error) => {
                eprintln!("error: {error:#}");
                (false, Counts::default())
            }
        };
        self.record(title, start.elapsed(), succeeded, counts)
    }

    /// Runs a function as one step; true when it succeeded.
    pub fn check(&mut self, title: &str, check: impl FnOnce() -> Result<()>) -> bool {
        self.announce(title);
        let start = Instant::now();
        let result = check();
        if let Err(error) = &result {
            eprintln!("error: {error:#}");
        }
        self.record(title, start.elapsed(), result.is_ok(), Counts::default())
    }

    /// Notes a step that was left out, and why.
    pub fn skip(&mut self, title: &str, reason: &str) {
        println!("==> {title}: skipped, {reason}");
        let step = Step { title: title.to_owned(), took: Duration::ZERO, outcome: Outcome::Skipped };
        self.steps.push(step);
    }

    /// Prints the times and the closing line; fails when anything failed.
    pub fn finish(self) -> Result<()> {
        println!();
        for step in &self.steps {
            let outcome = match step.outcome {
                Outcome::Passed => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            println!("{:>8.1} s  {:<8} {}", step.took.as_secs_f64(), outcome, step.title);
        }
        let total: Duration = self.steps.iter().map(|step| step.took).sum();
        println!("{:>8.1} s  in all", total.as_secs_f64());
        println!("{} passed, {} failed", self.counts.passed, self.counts.failed);
        let failed: Vec<&str> = self.failed_steps().collect();
        if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
    }

    fn failed_steps(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter(|step| step.outcome == Outcome::Failed).map(|step| step.title.as_str())
    }

    fn announce(&self, title: &str) {
        println!("==> {title}");
        // The step writes to the same terminal through its own handle.
        let _ = std::io::stdout().flush();
    }

    fn record(&mut self, title: &str, took: Duration, succeeded: bool, counts: Counts) -> bool {
        self.counts.passed += counts.passed;
        self.counts.failed += if succeeded { counts.failed } else { counts.failed.max(1) };
        let outcome = if succeeded { Outcome::Passed } else { Outcome::Failed };
        self.steps.push(Step { title: title.to_owned(), took, outcome });
        succeeded
    }
}

/// Runs a command that must succeed, with the terminal as its output.
pub fn must(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", describe(command)))?;
    if status.success() { Ok(()) } else { bail!("{} failed: {status}", describe(command)) }
}

/// Runs a command that must succeed and returns what it wrote to standard output.
pub fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    if !output.status.success() {
        bail!("{} failed: {}", describe(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{}: output is not text", describe(command)))
}

/// Whether a command succeeds; its output is thrown away.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Runs a command, passing its output through and adding up its summary lines.
fn stream(command: &mut Command) -> Result<(bool, Counts)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    let (sender, lines) = mpsc::channel();
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let readers = [forward(stdout, sender.clone(), false), forward(stderr, sender, true)];
    let mut counts = Counts::default();
    for line in lines {
        if let Some(more) = counts_in(&line) {
            counts.passed += more.passed;
            counts.failed += more.failed;
        }
    }
    for reader in readers {
        reader.join().map_err(|_| anyhow::anyhow!("the reader of a step's output panicked"))?;
    }
    let status = child.wait().context("waiting for a step")?;
    Ok((status.success(), counts))
}

fn forward(
    input: impl Read + Send + 'static,
    sender: mpsc::Sender<String>,
    is_stderr: bool,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(input);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            // A closed terminal must not stop the step: the counts still matter.
            let _ = if is_stderr {
                std::io::stderr().write_all(&bytes)
            } else {
                std::io::stdout().write_all(&bytes)
            };
            let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
            bytes.clear();
        }
    })
}

/// Counts of a summary line of cargo test (`test result: …`) or cargo nextest (`Summary […] …`).
fn counts_in(line: &str) -> Option<Counts> {
    let line = without_escapes(line);
    // nextest repeats the output of a failed test indented; what that says was counted already.
    let is_summary = line.starts_with("test result: ")
        || (line.trim_start().starts_with("Summary [") && line.contains(" run: "));
    if !is_summary {
        return None;
    }
    let passed = number_before(&line, "passed").unwrap_or(0);
    let failed = number_before(&line, "failed").unwrap_or(0) + number_before(&line, "timed out").unwrap_or(0);
    Some(Counts { passed, failed })
}

/// The number in front of a word: `number_before("3 passed; 1 failed", "failed") == Some(1)`.
fn number_before(line: &str, word: &str) -> Option<u64> {
    let (before, _) = line.split_once(&format!(" {word}"))?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The text without terminal colours.
fn without_escapes(line: &str) -> String {
    let mut plain = String::new();
    let mut is_escape = false;
    for c in line.chars() {
        match (is_escape, c) {
            (false, '\u{1b}') => is_escape = true,
            (false, other) => plain.push(other),
            (true, other) => is_escape = !other.is_ascii_alphabetic(),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: Option<(u64, u64)>) {
        let expected = expected.map(|(passed, failed)| Counts { passed, failed });
        assert_eq!(counts_in(line), expected, "{line}");
    }

    #[test]
    fn summary_lines_of_both_runners_are_counted() {
        check("test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out", Some((7, 0)));
        check("test result: FAILED. 7 passed; 2 failed; 1 ignored; 0 measured", Some((7, 2)));
        check("     Summary [   0.003s] 5 tests run: 4 passed, 1 failed, 2 skipped", Some((4, 1)));
        check("     Summary [   9.0s] 3 tests run: 1 passed, 1 failed, 1 timed out, 0 skipped", Some((1, 2)));
        check("     Summary [   0.003s] 5/9 tests run: 5 passed (1 slow), 2 skipped", Some((5, 0)));
        check("\u{1b}[32;1m     Summary\u{1b}[0m [   0.0s] 1 test run: 1 passed, 0 skipped", Some((1, 0)));
        check("running 5 tests", None);
        check("    test result: FAILED. 0 passed; 1 failed; 0 ignored", None);
        check("2 passed, 1 failed", None);
    }

    #[test]
    fn a_failed_step_without_counts_is_one_failure() {
        let mut session = Session::default();
        assert!(!session.command("false", &mut Command::new("false")));
        assert_eq!(session.counts, Counts { passed: 0, failed: 1 });
        assert!(session.finish().is_err());
    }

    #[test]
    fn a_program_that_cannot_start_is_a_failed_step() {
        let mut session = Session::default();
        assert!(!session.command("nothing", &mut Command::new("no-such-program-of-tenon")));
        assert!(session.finish().is_err());
    }

    #[test]
    fn counts_of_several_steps_add_up() {
        let mut session = Session::default();
        for line in ["test result: ok. 2 passed; 0 failed", "test result: ok. 3 passed; 0 failed"] {
            assert!(session.command("echo", Command::new("echo").arg(line)));
        }
        assert_eq!(session.counts, Counts { passed: 5, failed: 0 });
        assert!(session.finish().is_ok());
    }

    #[test]
    fn a_command_that_fails_is_reported_with_its_arguments() {
        let error = must(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert!(format!("{error}").contains("sh -c exit 3 failed"), "{error}");
    }
}
