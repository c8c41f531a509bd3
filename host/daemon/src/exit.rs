//! Exit codes, so that a service manager or a script can tell what happened.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGPIPE;

/// The configuration or a plugin file is wrong; starting again will not help (`EX_CONFIG`).
pub const CONFIG: u8 = 78;
/// Something needed is not there: a required module failed, or no host answers (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;
/// Anything else went wrong.
pub const FAILURE: u8 = 1;

/// An error with the code to exit with.
#[derive(Debug)]
pub struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    /// Exits with `code` after printing `message`.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Exit { code, message: message.into() }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}

/// True once the exit handlers of the process must not run.
static SKIPS_HANDLERS: AtomicBool = AtomicBool::new(false);

/// Remembers that a plugin holds the dynamic linker for ever: an ordinary exit runs the destructors of libraries,
/// for which it would wait.
pub fn skip_exit_handlers() {
    SKIPS_HANDLERS.store(true, Ordering::Relaxed);
}

/// Ends the process without any handler: what is urgent, or cannot be done otherwise.
pub fn at_once(code: u8) -> ! {
    signal_hook::low_level::exit(i32::from(code))
}

/// From now on the process ends silently when nobody reads its output any more, as after `tenon status | head`.
pub fn end_with_reader() {
    // If it cannot be, a broken pipe is an error like any other.
    let _ = signal_hook::flag::register_conditional_default(SIGPIPE, Arc::new(AtomicBool::new(true)));
}

/// Prints what went wrong and ends the process with its code.
pub fn end(result: anyhow::Result<()>) -> ! {
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            let code = error.downcast_ref::<Exit>().map_or(FAILURE, |exit| exit.code);
            if !error.to_string().is_empty() {
                eprintln!("tenon: {error:#}");
            }
            code
        }
    };
    if SKIPS_HANDLERS.load(Ordering::Relaxed) {
        at_once(code);
    }
    std::process::exit(i32::from(code))
}
