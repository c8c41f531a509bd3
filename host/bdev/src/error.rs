//! The failure of an operation as an operator hears of it: a number for
//! programs, and object, reason and cause for people. Does not carry failures
//! of the data path.
// UNSAFETY: `from_abi` follows the pointer a module passes with its answer.

use std::fmt;

use tenon_abi::{ErrorV1, errno, reaches};

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpError {
    /// `-errno`.
    pub code: i32,
    /// The object that failed, by its name; for a missing base device, that device's name.
    pub object: String,
    /// What is wrong.
    pub reason: String,
    /// The underlying cause, or empty.
    pub cause: String,
}

impl OpError {
    /// An error without a cause.
    pub fn new(code: i32, object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { code, object: object.into(), reason: reason.into(), cause: String::new() }
    }

    /// The same with the underlying cause.
    pub fn with_cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = cause.to_string();
        self
    }

    /// The device that must exist first: the same request may succeed once it is ready.
    pub fn waiting_for(&self) -> Option<&str> {
        (self.code == errno::ENODEV && !self.object.is_empty()).then_some(self.object.as_str())
    }

    /// Copies what a module reports.
    ///
    /// # Safety
    /// `error` points to an [`ErrorV1`] whose texts are readable.
    pub(crate) unsafe fn from_abi(error: *const ErrorV1) -> Self {
        // SAFETY: the caller vouches for the pointer; `size` is read first and bounds the rest.
        let size = unsafe { (*error).size };
        if !reaches(size, std::mem::size_of::<ErrorV1>()) {
            return Self::new(errno::EIO, "", "module reported an error in an unknown shape");
        }
        // SAFETY: the struct reaches its end, and its texts are readable for this call.
        let (code, object, reason, cause) = unsafe {
            let error = &*error;
            (error.code, error.object.as_str(), error.reason.as_str(), error.cause.as_str())
        };
        Self {
            code: if code < 0 { code } else { errno::EIO },
            object: bounded(object.unwrap_or_default()),
            reason: bounded(reason.unwrap_or("module reported a reason that is not text")),
            cause: bounded(cause.unwrap_or_default()),
        }
    }
}

impl fmt::Display for OpError {
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

impl std::error::Error for OpError {}

/// `text`, cut to what a report can bear.
pub(crate) fn bounded(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Longest text taken over from a module.
const MAX_TEXT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::OpError;

    #[test]
    fn text_names_object_reason_and_cause() {
        let error = OpError::new(-19, "m0", "no such device").with_cause("not created yet");
        assert_eq!(error.to_string(), "m0: no such device (not created yet)");
        assert_eq!(error.waiting_for(), Some("m0"));
        assert_eq!(OpError::new(-22, "m0", "size is zero").waiting_for(), None);
    }
}
