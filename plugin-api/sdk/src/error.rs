//! The one error type of the SDK: a number for programs, three texts for
//! people, the same as [`tenon_abi::ErrorV1`]. Not for the data path, whose
//! failures are [`crate::IoStatus`].

use std::fmt::{self, Display};

use crate::errno;

/// Why an operation failed, told to an operator.
///
/// Texts are lower case without a full stop and name the object and the bad value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// `-errno`, see [`errno`].
    pub code: i32,
    /// Name of the object that failed; for [`Error::missing_base`] the missing device.
    pub object: String,
    /// What is wrong and what would be right.
    pub reason: String,
    /// The underlying cause, or empty.
    pub cause: String,
}

impl Error {
    /// An error with a number of [`errno`] and a reason.
    pub fn new(code: i32, reason: impl Into<String>) -> Self {
        Error { code: code_of(code), object: String::new(), reason: reason.into(), cause: String::new() }
    }

    /// An argument is wrong (`-EINVAL`).
    pub fn invalid(reason: impl Into<String>) -> Self {
        Error::new(errno::EINVAL, reason)
    }

    /// A base device is not there yet (`-ENODEV`): the host repeats the create when a device of that name is ready.
    pub fn missing_base(name: impl Into<String>) -> Self {
        let name = name.into();
        Error::new(errno::ENODEV, format!("base device {name} does not exist")).object(name)
    }

    /// Nothing has that name (`-ENODEV`, which existing clients compare with).
    pub fn not_found(name: impl Into<String>) -> Self {
        Error::new(errno::ENODEV, "does not exist").object(name)
    }

    /// The name is taken (`-EEXIST`).
    pub fn exists(name: impl Into<String>) -> Self {
        Error::new(errno::EEXIST, "exists already").object(name)
    }

    /// In use, or an operation of the same kind is under way (`-EBUSY`).
    pub fn busy(reason: impl Into<String>) -> Self {
        Error::new(errno::EBUSY, reason)
    }

    /// This module cannot do it (`-ENOTSUP`).
    pub fn not_supported(reason: impl Into<String>) -> Self {
        Error::new(errno::ENOTSUP, reason)
    }

    /// Memory or another bounded resource is short (`-ENOMEM`).
    pub fn no_memory(reason: impl Into<String>) -> Self {
        Error::new(errno::ENOMEM, reason)
    }

    /// A device, file or peer failed (`-EIO`).
    pub fn io(reason: impl Into<String>) -> Self {
        Error::new(errno::EIO, reason)
    }

    /// A claim or the way of opening forbids it (`-EPERM`).
    pub fn permission(reason: impl Into<String>) -> Self {
        Error::new(errno::EPERM, reason)
    }

    /// A deadline passed (`-ETIMEDOUT`).
    pub fn timed_out(reason: impl Into<String>) -> Self {
        Error::new(errno::ETIMEDOUT, reason)
    }

    /// Names the object that failed.
    #[must_use]
    pub fn object(mut self, name: impl Into<String>) -> Self {
        self.object = name.into();
        self
    }

    /// Adds the underlying cause.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Display) -> Self {
        self.cause = cause.to_string();
        self
    }

    /// Makes an error of what a host function returned; `Ok` for 0.
    pub(crate) fn check(code: i32, what: &str) -> Result<(), Error> {
        if code == 0 { Ok(()) } else { Err(Error::from_code(code, what)) }
    }

    /// Makes an error of a negative number, with the system's text for it as the cause.
    pub(crate) fn from_code(code: i32, what: &str) -> Error {
        Error::new(code, what).caused_by(system_text(code))
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        f.write_str(&self.reason)?;
        if !self.cause.is_empty() {
            write!(f, " ({})", self.cause)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let code = error.raw_os_error().map_or(errno::EIO, |number| -number);
        Error::new(code, error.to_string())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        // The place in the text means nothing to an operator, who wrote TOML or used a client.
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or(&text);
        Error::invalid(reason)
    }
}

/// An error is never 0 or positive, whatever the module wrote.
fn code_of(code: i32) -> i32 {
    if code < 0 { code } else { errno::EIO }
}

fn system_text(code: i32) -> String {
    let text = std::io::Error::from_raw_os_error(code.saturating_neg()).to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_object_reason_and_cause() {
        let error = Error::invalid("size 3 is not a multiple of 512").object("m0").caused_by("rounding");
        assert_eq!(error.to_string(), "m0: size 3 is not a multiple of 512 (rounding)");
        assert_eq!(error.code, -22);
    }

    #[test]
    fn a_missing_base_is_enodev_with_its_name() {
        let error = Error::missing_base("b0");
        assert_eq!((error.code, error.object.as_str()), (errno::ENODEV, "b0"));
    }

    #[test]
    fn a_code_that_is_no_error_becomes_eio() {
        assert_eq!(Error::new(0, "x").code, errno::EIO);
        assert_eq!(Error::new(5, "x").code, errno::EIO);
    }

    #[test]
    fn system_errors_keep_their_number() {
        let error = Error::from(std::io::Error::from_raw_os_error(2));
        assert_eq!(error.code, errno::ENOENT);
        assert_eq!(Error::from_code(-16, "busy").cause, "device or resource busy");
    }
}
