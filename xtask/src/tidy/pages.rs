//! `plugin-readme`: a plugin without its page does not exist.
//! `config-header`: a configuration says on its first line what it shows.

use super::Finding;
use super::tree::Tree;

const SECTIONS: &[&str] =
    &["Synopsis", "Parameters", "Operations", "Base removal and resize", "Example", "See also"];

/// Findings of this rule.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &tree.packages {
        if package.dir.strip_prefix("plugins/").is_some_and(|name| !name.contains('/')) {
            plugin_page(tree, &package.dir, &mut findings);
        }
    }
    for (path, text) in &tree.texts {
        let is_config = path.strip_prefix("configs/").is_some_and(|name| name.ends_with(".toml"));
        let header = text.lines().next().and_then(|line| line.strip_prefix('#')).map(str::trim);
        if is_config && header.is_none_or(str::is_empty) {
            let message = "does not start with a comment that says what this configuration shows";
            findings.push(Finding::new(path, 1, "config-header", message));
        }
    }
    findings
}

fn plugin_page(tree: &Tree, folder: &str, findings: &mut Vec<Finding>) {
    let path = format!("{folder}/README.md");
    let Some(text) = tree.texts.get(&path) else {
        let message = format!("missing; sections: {}", SECTIONS.join(", "));
        findings.push(Finding::new(&path, 1, "plugin-readme", message));
        return;
    };
    let mut headings = Vec::new();
    let mut is_code = false;
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        if !is_code && line.starts_with('#') {
            headings.push(line.trim_start_matches('#').trim());
        }
    }
    for section in SECTIONS {
        if !headings.iter().any(|heading| heading.eq_ignore_ascii_case(section)) {
            let message = format!("has no section `{section}`");
            findings.push(Finding::new(&path, 1, "plugin-readme", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLUGIN: (&str, &str) = ("plugins/bdev-x/Cargo.toml", "[package]\nname = \"bdev-x\"\n");
    const PAGE: &str = "# x\n## Synopsis\n## Parameters\n## Operations\n## Base removal and resize\n\
                        ## Example\n## See also\n";

    #[test]
    fn a_plugin_needs_its_page_with_every_section() {
        assert_eq!(check(&Tree::from_texts(&[PLUGIN])).len(), 1);
        assert_eq!(check(&Tree::from_texts(&[PLUGIN, ("plugins/bdev-x/README.md", PAGE)])), []);
        for section in SECTIONS {
            let page = PAGE.replace(&format!("## {section}\n"), "");
            let findings = check(&Tree::from_texts(&[PLUGIN, ("plugins/bdev-x/README.md", &page)]));
            assert_eq!(findings.len(), 1, "{section}");
            assert!(findings[0].message.contains(section));
        }
    }

    #[test]
    fn a_heading_inside_an_example_is_none() {
        let page = PAGE.replace("## Synopsis\n", "```toml\n# Synopsis\n```\n");
        assert_eq!(check(&Tree::from_texts(&[PLUGIN, ("plugins/bdev-x/README.md", &page)])).len(), 1);
    }

    #[test]
    fn a_configuration_opens_with_a_comment() {
        let count = |text: &str| check(&Tree::from_texts(&[("configs/a.toml", text)])).len();
        assert_eq!(count("# Two disks.\nx = 1\n"), 0);
        assert_eq!(count("x = 1\n"), 1);
        assert_eq!(count("\n# Late.\n"), 1);
        assert_eq!(count("#\nx = 1\n"), 1);
        assert_eq!(count(""), 1);
    }
}
