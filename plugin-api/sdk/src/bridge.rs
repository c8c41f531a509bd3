//! Bridges from the plugin's own copies of `log` and of the panic hook to the
//! host's log, and the guard that turns a panic of a control-path callback
//! into an error. A plugin image has its own statics; nothing here is shared
//! with the host but the table of functions.
//!
//! A panic on the data path is not caught: it aborts in `extern "C"`, which is
//! right with an I/O half done.
// UNSAFETY: calls the host's `log` through its table.

use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use tenon_abi::{HostApiV1, LogRecord, Str};

use crate::Error;

static HOST: AtomicPtr<HostApiV1> = AtomicPtr::new(null_mut());
/// True in a plugin that was loaded as an image of its own, false in a test that links it.
static LOADED: AtomicBool = AtomicBool::new(false);
static BRIDGE: Bridge = Bridge;

thread_local! {
    /// Guards this thread is inside of.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Text of this thread's last panic.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Notes that the entry symbol was called: every panic of this image is the plugin's.
pub fn loaded() {
    LOADED.store(true, Ordering::Relaxed);
}

/// Sends log lines and panics of this image to `host` from now on.
pub(crate) fn install(host: &'static HostApiV1) {
    static HOOK: Once = Once::new();
    HOST.store(std::ptr::from_ref(host).cast_mut(), Ordering::Release);
    // In a test that has a logger of its own, that one stays.
    if log::set_logger(&BRIDGE).is_ok() && log::max_level() == log::LevelFilter::Off {
        // Until the host states its level.
        log::set_max_level(log::LevelFilter::Info);
    }
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if LOADED.load(Ordering::Relaxed) || DEPTH.get() > 0 {
                note_panic(info);
            } else {
                previous(info);
            }
        }));
    });
}

/// Obeys the host's log level: 0 off, 1 error … 5 trace.
pub(crate) fn set_level(level: u32) {
    log::set_max_level(match level {
        0 => log::LevelFilter::Off,
        1 => log::LevelFilter::Error,
        2 => log::LevelFilter::Warn,
        3 => log::LevelFilter::Info,
        4 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    });
}

/// Runs code of the module; a panic becomes an error that carries its text.
pub(crate) fn guard<R>(callback: &'static str, code: impl FnOnce() -> R) -> Result<R, Error> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(code));
    DEPTH.set(DEPTH.get() - 1);
    result.map_err(|payload| {
        // Its destructor is the module's code as well.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        panicked(callback)
    })
}

/// As [`guard`], for code whose failure nobody waits for: the panic was logged by the hook.
pub(crate) fn run(callback: &'static str, code: impl FnOnce()) {
    drop(guard(callback, code));
}

/// The error that answers for code that panicked on this thread.
pub(crate) fn panicked(callback: &'static str) -> Error {
    let text = PANIC.with_borrow(String::clone);
    Error::io(format!("module panicked in {callback}")).caused_by(text)
}

fn note_panic(info: &PanicHookInfo<'_>) {
    let text = info.payload_as_str().unwrap_or("no text");
    let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
    let text = format!("{text}{place}");
    log::error!("plugin panicked text=\"{text}\"");
    // The thread may be ending, or be inside of this very borrow: then the text is lost, not the panic.
    let _ = PANIC.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = text;
        }
    });
}

struct Bridge;

impl log::Log for Bridge {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        let host = HOST.load(Ordering::Acquire);
        if host.is_null() || !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line { short: [0; Line::SHORT], used: 0, long: String::new() };
        let message = match record.args().as_str() {
            Some(text) => text,
            None => {
                // Formatting fails only if a `Display` fails: then what it wrote so far is logged.
                let _ = line.write_fmt(*record.args());
                line.as_str()
            }
        };
        let record = LogRecord {
            size: size_of::<LogRecord>() as u32,
            level: record.level() as u32,
            line: record.line().unwrap_or(0),
            reserved: 0,
            target: Str::new(record.target()),
            file: Str::new(record.file().unwrap_or("")),
            message: Str::new(message),
        };
        // SAFETY: `install` stored a table that lives as long as the process; `record` lives for the call.
        unsafe { ((*host).log)(&record) }
    }

    fn flush(&self) {}
}

/// A message under construction: on the stack while short.
struct Line {
    short: [u8; Line::SHORT],
    used: usize,
    long: String,
}

impl Line {
    const SHORT: usize = 512;

    fn as_str(&self) -> &str {
        if self.long.is_empty() {
            std::str::from_utf8(&self.short[..self.used]).unwrap_or("")
        } else {
            &self.long
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.used + text.len();
        if self.long.is_empty() && end <= Line::SHORT {
            self.short[self.used..end].copy_from_slice(text.as_bytes());
            self.used = end;
        } else {
            if self.long.is_empty() {
                let so_far = self.as_str().to_owned();
                self.long = so_far;
            }
            self.long.push_str(text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_kept_whole() {
        let mut line = Line { short: [0; Line::SHORT], used: 0, long: String::new() };
        let mut expected = String::new();
        for number in 0..300 {
            write!(line, "{number} ").unwrap();
            write!(expected, "{number} ").unwrap();
        }
        assert_eq!(line.as_str(), expected);
    }

    #[test]
    fn a_panic_becomes_an_error_with_its_text() {
        install(crate::stub::table());
        let error = guard("create", || panic!("number {}", 7)).unwrap_err();
        assert_eq!(error.reason, "module panicked in create");
        assert!(error.cause.starts_with("number 7 at "), "{}", error.cause);
    }
}
