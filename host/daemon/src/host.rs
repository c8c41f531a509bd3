//! Composes a host from a configuration: reactors, modules, devices, target,
//! control plane; and takes it apart again. Used by `run`, which serves it, and by `perf`, which puts load on it.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use tenon_bdev::{Core, CoreOptions, ShutdownReport, host_api};
use tenon_control::config::{BdevEntry, Config, ConfigError, LayoutCheck, ReactorMode};
use tenon_control::{Control, LogControl, ProcessControl};
use tenon_modules::{Catalog, ModulesOptions, Origin, PluginDirectory, Trust, default_directories};
use tenon_nvmf_target::{Target, TargetOptions};
use tenon_reactor::{Cpus, Mode, Reactors, ReactorsOptions};

use crate::exit::{CONFIG, Exit};

/// How long a drain, a removal or the end of the target may take unless the configuration says otherwise.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(10);

/// How long a call from the main thread into the control reactor may take.
pub const CONTROL_CALL: Duration = Duration::from_secs(30);

/// Reads a configuration file, or gives an empty configuration.
pub fn read_config(file: Option<&Path>) -> anyhow::Result<Config> {
    match file {
        None => Ok(Config::default()),
        Some(file) => Config::load(file).map_err(config_error),
    }
}

/// A configuration error as an exit.
pub fn config_error(error: ConfigError) -> anyhow::Error {
    Exit::new(CONFIG, error.to_string()).into()
}

/// Finds the plugins without loading any.
pub fn catalog(config: &Config, extra: &[PathBuf]) -> Catalog {
    let configured = |path: &PathBuf| PluginDirectory { path: path.clone(), origin: Origin::Configured };
    let mut directories: Vec<PluginDirectory> =
        extra.iter().chain(&config.plugins.directories).map(configured).collect();
    directories.extend(default_directories());
    Catalog::scan(directories, Trust::Owner)
}

/// Starts the reactors a configuration asks for, or those of the command line.
pub fn start_reactors(config: &Config, cpus: Option<&str>) -> anyhow::Result<Reactors> {
    start_reactors_on(config, cpus, None)
}

/// As [`start_reactors`]; `count`, if given, is what counts.
pub fn start_reactors_on(
    config: &Config,
    cpus: Option<&str>,
    count: Option<Cpus>,
) -> anyhow::Result<Reactors> {
    let mut options = ReactorsOptions::default();
    if let Some(cpus) = count {
        options.cpus = cpus;
    } else if let Some(list) = cpus.or(config.host.cpus.as_deref()) {
        options.cpus = Cpus::List(parse_cpus(list).map_err(|reason| Exit::new(CONFIG, reason))?);
    }
    options.mode = match config.host.mode {
        ReactorMode::Adaptive => Mode::Adaptive,
        ReactorMode::Poll => Mode::Poll,
    };
    if let Some(spin_us) = config.host.spin_us {
        options.spin = Duration::from_micros(spin_us);
    }
    Reactors::start(options).context("cannot start the reactors")
}

/// The module layer's options.
pub fn modules_options(config: &Config) -> ModulesOptions {
    let mut options = ModulesOptions::new(host_api());
    options.layout_check = match config.plugins.layout_check {
        LayoutCheck::Require => tenon_modules::LayoutCheck::Require,
        LayoutCheck::Warn => tenon_modules::LayoutCheck::Warn,
        LayoutCheck::Off => tenon_modules::LayoutCheck::Off,
    };
    if let Some(seconds) = config.plugins.init_timeout_sec {
        options.init_deadline = Duration::from_secs(seconds);
    }
    let of_service = || std::env::var_os("STATE_DIRECTORY").map(PathBuf::from);
    options.state_dir = config.plugins.state_directory.clone().or_else(of_service);
    options
}

/// Starts the core and the control plane; control reactor only.
pub fn compose(
    config: &Config,
    catalog: Catalog,
    logs: Rc<dyn LogControl>,
    process: Rc<dyn ProcessControl>,
) -> Control {
    let mut options = CoreOptions { modules: modules_options(config), ..CoreOptions::default() };
    if let Some(seconds) = config.host.drain_timeout_sec {
        let deadline = Duration::from_secs(seconds);
        options.remove_deadline = deadline;
        options.drain_deadline = deadline;
        options.destruct_deadline = deadline;
    }
    let core = Core::start(options, catalog);
    let mut options = TargetOptions::default();
    if let Some(seconds) = config.host.drain_timeout_sec {
        options.drain_deadline = options.drain_deadline.min(Duration::from_secs(seconds));
    }
    let of_service = || std::env::var_os("STATE_DIRECTORY").map(|path| Path::new(&path).join("reservations"));
    let folder = config.nvmf.options.reservation_directory.clone().or_else(of_service);
    options.reservation_folder = folder.filter(|folder| make_private(folder));
    let target = Target::start(options, core.clone());
    let directory = tenon_reactor::current().directory().clone();
    Control::new(core, target, directory, logs, process)
}

/// Makes a folder of this process's own; false, and a word in the log, if that cannot be.
fn make_private(folder: &Path) -> bool {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    if let Err(error) = &made {
        log::error!("reservations will not persist directory={} error={error}", folder.display());
    }
    made.is_ok()
}

/// Ends what [`compose`] made: listeners stop, connections drain, subsystems go, then devices and modules.
/// A target that does not end within `limit` is left, and holds its devices; `done` gets the report of them.
pub fn shut_down(control: &Control, limit: Duration, done: impl FnOnce(ShutdownReport) + 'static) {
    let next = Rc::new(Cell::new(Some((control.core().clone(), done))));
    let late = next.clone();
    let timer = tenon_reactor::current().set_timer(limit, move || {
        if let Some((core, done)) = late.take() {
            log::error!("target did not end in time, its devices are taken away limit_s={}", limit.as_secs());
            core.shutdown(done);
        }
    });
    control.target().shutdown(move || {
        let Some((core, done)) = next.take() else { return };
        if let Ok(timer) = timer {
            tenon_reactor::current().cancel_timer(timer);
        }
        core.shutdown(done);
    });
}

/// The keys every entry may use, as its module's schema tells them; an entry with an unknown one is an error.
pub fn check_keys(entry: &BdevEntry, schema: &serde_json::Value) -> Result<(), ConfigError> {
    match tenon_control::schema::bdev_keys(schema) {
        Some(keys) => entry.params.check_keys(keys.iter().map(String::as_str)),
        None => Ok(()),
    }
}

/// Reads a list of CPUs such as `0-3,8`.
pub fn parse_cpus(list: &str) -> Result<Vec<u32>, String> {
    let wrong = || format!("CPU list `{list}`: must be like 0-3,8");
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|cpu| *cpu < MAX_CPU).ok_or_else(wrong);
    let mut cpus = Vec::new();
    for part in list.split(',') {
        match part.split_once('-') {
            None => cpus.push(number(part)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(wrong());
                }
                cpus.extend(first..=last);
            }
        }
    }
    cpus.sort_unstable();
    if cpus.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(format!("CPU list `{list}`: names a CPU twice"));
    }
    Ok(cpus)
}

/// Above every CPU number Linux gives.
const MAX_CPU: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(list: &str, expected: Option<&[u32]>) {
        assert_eq!(parse_cpus(list).ok().as_deref(), expected, "{list}");
    }

    #[test]
    fn ranges_and_single_cpus_are_sorted() {
        check("0", Some(&[0]));
        check("8,0-2", Some(&[0, 1, 2, 8]));
    }

    #[test]
    fn malformed_lists_are_refused() {
        for list in ["", "a", "3-1", "1,1", "0-9999999", "-1", "1-"] {
            check(list, None);
        }
    }
}
