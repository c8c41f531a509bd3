//! `cargo xtask abi`: the plugin contract has not changed unnoticed.
//!
//! Two committed files are compared with what the crate says today: the lock
//! (size, alignment and offsets of every frozen type) and the C header. The
//! header is also compiled against the lock, so that C and Rust agree.
//! Which changes are permitted is decided in `lock`.

mod header;
mod lock;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::steps;
use crate::workspace::Workspace;
use lock::Lock;

const LOCK: &str = "plugin-api/abi.lock";
const HEADER: &str = "plugin-api/tenon_plugin.h";

/// Arguments of `cargo xtask abi`.
#[derive(Args, Debug)]
pub struct Options {
    /// Write the lock and the header anew; refuses a change that breaks existing plugins
    #[arg(long)]
    bless: bool,
    /// With --bless: accept a breaking change
    #[arg(long = "break", requires = "bless")]
    accept_break: bool,
}

/// Measures the contract, writes it down if asked to, and compares.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let layout = ["run", "-q", "-p", "tenon-abi", "--example", "layout"];
    let measured = steps::output_of(workspace.cargo().args(layout))?;
    let lock = Lock::parse(&measured)?;
    let header = header::generate(workspace, &lock)?;
    if options.bless {
        bless(workspace, &measured, &lock, options.accept_break)?;
        write(&workspace.path(HEADER), &header)?;
    }
    check(workspace, &lock, &header)
}

/// The check alone, for the test suite.
pub fn run_check(workspace: &Workspace) -> Result<()> {
    run(workspace, &Options { bless: false, accept_break: false })
}

/// Compares what is committed with what the crate says.
fn check(workspace: &Workspace, lock: &Lock, header: &str) -> Result<()> {
    let old = Lock::parse(&read(workspace, LOCK)?)?;
    let breaks = old.breaks_to(lock);
    if !breaks.is_empty() {
        bail!("the plugin ABI breaks:\n  {}", breaks.join("\n  "));
    }
    if old != *lock {
        let appended = old.appended_in(lock).join("\n  ");
        bail!("{LOCK} is not current; append with `cargo xtask abi --bless`:\n  {appended}");
    }
    if read(workspace, HEADER)? != header {
        bail!("{HEADER} is not what cbindgen makes of plugin-api/abi: run `cargo xtask abi --bless`");
    }
    header::compile(&workspace.path(HEADER), lock)?;
    println!("abi: {} types, lock and header are current", lock.types().count());
    Ok(())
}

fn bless(workspace: &Workspace, measured: &str, lock: &Lock, accept_break: bool) -> Result<()> {
    if workspace.has(LOCK) {
        let breaks = Lock::parse(&read(workspace, LOCK)?)?.breaks_to(lock);
        if !breaks.is_empty() && !accept_break {
            let list = breaks.join("\n  ");
            bail!("refused, this breaks existing plugins (`--bless --break` accepts it):\n  {list}");
        }
    }
    write(&workspace.path(LOCK), measured)
}

fn read(workspace: &Workspace, path: &str) -> Result<String> {
    fs::read_to_string(workspace.path(path))
        .with_context(|| format!("{path} (written by `cargo xtask abi --bless`)"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
