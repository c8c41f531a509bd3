//! Exit codes, so that a service manager or a script can tell what happened.

use std::fmt;
use std::process::ExitCode;

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

/// Prints what went wrong and gives the code.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.downcast_ref::<Exit>().map_or(FAILURE, |exit| exit.code);
            if !error.to_string().is_empty() {
                eprintln!("tenon: {error:#}");
            }
            ExitCode::from(code)
        }
    }
}
