//! `cargo xtask tidy`: the rules of the house, checked by machine.
//!
//! Each submodule holds one group of rules as a function from the tree to its
//! findings; a finding names the place, the rule and what would be right.
//! Nothing is run or built: what the compiler or clippy can say, they say.
//! Numbers are a ratchet (`xtask/ratchet.toml`): what exists may not grow.

mod borders;
mod contract;
mod documentation;
mod errors;
mod lists;
mod names;
mod pages;
mod quotes;
mod report;
mod scan;
mod size;
mod sleeps;
mod source;
mod tree;
mod unsafety;
mod words;

use std::fmt;
use std::fs;

use anyhow::{Result, bail};
use clap::Args;

use crate::workspace::Workspace;
use lists::Lists;
use tree::Tree;

/// Arguments of `cargo xtask tidy`.
#[derive(Args, Debug)]
pub struct Options {
    /// Lower the numbers in xtask/ratchet.toml to what is measured; never raises one
    #[arg(long)]
    bless: bool,
    /// Print measured sizes and coverage beside their targets instead of checking
    #[arg(long)]
    report: bool,
}

/// One broken rule at one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Relative path of the file.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Short name of the rule.
    pub rule: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Finding {
    /// A finding of `rule` at a place.
    pub fn new(path: &str, line: usize, rule: &'static str, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, rule, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.message)
    }
}

/// Runs the command.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if options.report {
        let (tree, _) = load(workspace)?;
        print!("{}", report::render(&tree));
        return Ok(());
    }
    if options.bless {
        let (tree, mut lists) = load(workspace)?;
        let lowered = size::lower(&tree, &mut lists.ratchet) + sleeps::lower(&tree, &mut lists.ratchet);
        fs::write(workspace.path(lists::RATCHET), lists.ratchet.render()?)?;
        println!("tidy: {lowered} entries of {} lowered or removed", lists::RATCHET);
    }
    check(workspace)
}

/// Prints every finding; fails when there is one.
pub fn check(workspace: &Workspace) -> Result<()> {
    let (tree, lists) = load(workspace)?;
    let findings = findings(&tree, &lists);
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => println!("tidy: {} files, no findings", tree.texts.len()),
        1 => bail!("tidy: 1 finding"),
        count => bail!("tidy: {count} findings"),
    }
    Ok(())
}

fn load(workspace: &Workspace) -> Result<(Tree, Lists)> {
    let tree = Tree::read(workspace)?;
    let lists = Lists::of(&tree)?;
    Ok((tree, lists))
}

fn findings(tree: &Tree, lists: &Lists) -> Vec<Finding> {
    let mut findings = tree.unparsed.clone();
    findings.extend(size::check(tree, &lists.ratchet));
    findings.extend(unsafety::check(tree, &lists.unsafety));
    findings.extend(names::check(tree));
    findings.extend(errors::check(tree));
    findings.extend(borders::check(tree));
    findings.extend(contract::check(tree));
    findings.extend(pages::check(tree));
    findings.extend(sleeps::check(tree, &lists.ratchet));
    findings.extend(words::check(tree));
    findings.extend(quotes::check(tree));
    findings.extend(documentation::check(tree));
    findings.sort();
    findings.dedup();
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_as_place_rule_and_message() {
        let finding = Finding::new("a/b.rs", 7, "size", "too long");
        assert_eq!(finding.to_string(), "a/b.rs:7: size: too long");
    }

    #[test]
    fn a_file_that_does_not_parse_is_a_finding() {
        let tree = Tree::from_texts(&[("host/x/src/lib.rs", "//! Header.\nfn {")]);
        assert!(findings(&tree, &Lists::default()).iter().any(|finding| finding.rule == "parse"));
    }

    #[test]
    fn a_clean_tree_has_no_findings() {
        let tree = Tree::from_texts(&[
            (
                "host/reactor/Cargo.toml",
                "[package]\nname = \"tenon-reactor\"\n[dependencies]\nlog = \"0.4\"\n",
            ),
            (
                "host/reactor/src/lib.rs",
                "//! Event loop.\n#![forbid(unsafe_code)]\n/// Runs.\npub fn run() {}\n",
            ),
            ("configs/a.toml", "# What it shows.\nx = 1\n"),
        ]);
        assert_eq!(findings(&tree, &Lists::default()), []);
    }
}
