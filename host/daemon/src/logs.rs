//! The process's log: env_logger for form and `RUST_LOG`, with a level and
//! per-target flags that can be changed while the host runs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use log::{LevelFilter, Log, Metadata, Record};
use tenon_control::LogControl;

/// The logger; one per process.
struct Logger {
    inner: env_logger::Logger,
    /// The same without the time.
    plain: env_logger::Logger,
    has_timestamps: AtomicBool,
    level: AtomicU8,
    flags: RwLock<BTreeSet<String>>,
}

/// The handle the control plane gets: the logger and the names of its flags.
pub struct Logs {
    logger: Arc<Logger>,
    modules: Box<dyn Fn() -> Vec<String>>,
}

static LOGGER: OnceLock<Arc<Logger>> = OnceLock::new();

/// Installs the logger. `RUST_LOG`, if set, decides instead of `level` until the level is changed.
pub fn install(level: LevelFilter) {
    let has_directives = std::env::var_os("RUST_LOG").is_some();
    let builder = || env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("trace"));
    let inner = builder().format_timestamp_micros().build();
    let plain = builder().format_timestamp(None).build();
    let level = if has_directives { inner.filter() } else { level };
    let logger = Arc::new(Logger {
        inner,
        plain,
        has_timestamps: AtomicBool::new(true),
        level: AtomicU8::new(level as u8),
        flags: RwLock::default(),
    });
    if LOGGER.set(logger.clone()).is_ok() && log::set_boxed_logger(Box::new(Forward(logger))).is_ok() {
        log::set_max_level(level);
    }
}

/// A handle; `modules` gives the names of the modules that can be flags.
pub fn handle(modules: impl Fn() -> Vec<String> + 'static) -> Logs {
    let logger = LOGGER.get().expect("the logger is installed before the host starts").clone();
    Logs { logger, modules: Box::new(modules) }
}

struct Forward(Arc<Logger>);

impl Log for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.admits(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.0.admits(record.metadata()) {
            self.0.writer().log(record);
        }
    }

    fn flush(&self) {
        self.0.writer().flush();
    }
}

impl Logger {
    fn admits(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() as u8 <= self.level.load(Ordering::Relaxed) || self.is_flagged(metadata.target())
    }

    fn writer(&self) -> &env_logger::Logger {
        if self.has_timestamps.load(Ordering::Relaxed) { &self.inner } else { &self.plain }
    }

    fn is_flagged(&self, target: &str) -> bool {
        let Ok(flags) = self.flags.read() else { return false };
        !flags.is_empty() && (flags.contains(ALL) || flags.iter().any(|flag| names(flag, target)))
    }

    fn apply(&self) {
        let has_flags = self.flags.read().is_ok_and(|flags| !flags.is_empty());
        log::set_max_level(if has_flags { LevelFilter::Trace } else { self.level() });
    }

    fn level(&self) -> LevelFilter {
        LEVELS[usize::from(self.level.load(Ordering::Relaxed)).min(LEVELS.len() - 1)]
    }
}

/// True if `flag` names the crate of `target`: `bdev` names `tenon_bdev::…`, `malloc` names `bdev_malloc::…`.
fn names(flag: &str, target: &str) -> bool {
    let crate_name = target.split("::").next().unwrap_or(target);
    crate_name == flag || crate_name.strip_suffix(flag).is_some_and(|head| head.ends_with('_'))
}

impl LogControl for Logs {
    fn level(&self) -> LevelFilter {
        self.logger.level()
    }

    fn set_level(&self, level: LevelFilter) {
        self.logger.level.store(level as u8, Ordering::Relaxed);
        self.logger.apply();
    }

    fn set_timestamps(&self, on: bool) {
        self.logger.has_timestamps.store(on, Ordering::Relaxed);
    }

    fn flags(&self) -> Vec<(String, bool)> {
        let set = self.logger.flags.read().map(|flags| flags.clone()).unwrap_or_default();
        let mut names: Vec<String> = HOST_FLAGS.iter().map(ToString::to_string).collect();
        names.extend((self.modules)());
        names.sort();
        names.dedup();
        names.into_iter().map(|name| (name.clone(), set.contains(&name) || set.contains(ALL))).collect()
    }

    fn set_flag(&self, target: &str, on: bool) -> bool {
        if target != ALL && !self.flags().iter().any(|(name, _)| name == target) {
            return false;
        }
        if let Ok(mut flags) = self.logger.flags.write() {
            if on {
                flags.insert(target.to_owned());
            } else {
                flags.remove(target);
            }
        }
        self.logger.apply();
        true
    }
}

const ALL: &str = "all";
const HOST_FLAGS: &[&str] = &["reactor", "modules", "bdev", "nvmf_target", "control", "tenon"];
const LEVELS: [LevelFilter; 6] = [
    LevelFilter::Off,
    LevelFilter::Error,
    LevelFilter::Warn,
    LevelFilter::Info,
    LevelFilter::Debug,
    LevelFilter::Trace,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_names_a_crate_by_its_last_word() {
        for (flag, target, expected) in [
            ("bdev", "tenon_bdev::examine", true),
            ("malloc", "bdev_malloc", true),
            ("tenon_bdev", "tenon_bdev", true),
            ("loc", "bdev_malloc", false),
            ("bdev", "bdev_malloc", false),
        ] {
            assert_eq!(names(flag, target), expected, "{flag} {target}");
        }
    }
}
