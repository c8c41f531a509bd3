//! `tenon plugin`: plugin files from outside.

use anyhow::Context;
use tenon_control::config::Config;
use tenon_modules::{LayoutCheck, Trust};

use crate::cli::PluginCommand;
use crate::exit::{self, CONFIG, Exit};
use crate::host;

/// Runs the command.
pub fn plugin(command: &PluginCommand) -> anyhow::Result<()> {
    exit::end_with_reader();
    match command {
        PluginCommand::List { plugin_dir, json } => list(plugin_dir, *json),
        PluginCommand::Inspect { file } => {
            let info = tenon_modules::inspect(file, Trust::Owner)
                .map_err(|error| Exit::new(CONFIG, error.to_string()))?;
            println!("{}", serde_json::to_string_pretty(&info).context("cannot print")?);
            Ok(())
        }
        PluginCommand::Check { file, require_certificate } => {
            let policy = if *require_certificate { LayoutCheck::Require } else { LayoutCheck::Warn };
            let report = tenon_modules::check(file, Trust::Owner, policy)
                .map_err(|error| Exit::new(CONFIG, error.to_string()))?;
            println!("{}", serde_json::to_string_pretty(&report).context("cannot print")?);
            Ok(())
        }
    }
}

fn list(directories: &[std::path::PathBuf], json: bool) -> anyhow::Result<()> {
    let catalog = host::catalog(&Config::default(), directories);
    if json {
        println!("{}", serde_json::to_string_pretty(catalog.plugins()).context("cannot print")?);
        return Ok(());
    }
    println!("{:<14} {:<10} {:<6} {:<12} FILE", "NAME", "VERSION", "ABI", "PROVIDES");
    for plugin in catalog.plugins() {
        println!(
            "{:<14} {:<10} {:<6} {:<12} {}",
            plugin.name,
            plugin.version.to_string(),
            format!("{}.{}", plugin.abi_major, plugin.abi_minor),
            plugin.provides.join(","),
            plugin.path.display(),
        );
    }
    for error in catalog.rejected() {
        eprintln!("tenon: {error}");
    }
    Ok(())
}
