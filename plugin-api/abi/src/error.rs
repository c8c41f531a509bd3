//! How an operation's failure is told to an operator: a number for programs
//! and three texts for people. Does not carry data-path failures; those are
//! [`crate::IoStatus`].

use crate::Str;

/// An operator-facing error. All texts are lower case without a full stop.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct ErrorV1 {
    /// Bytes of this struct the writer knows.
    pub size: u32,
    /// `-errno`; `-ENODEV` with `object` naming a bdev means "waiting for that bdev".
    pub code: i32,
    /// The object that failed, by its name; for a missing base device, that device's name.
    pub object: Str,
    /// What is wrong, with the bad value and what would be right.
    pub reason: Str,
    /// The underlying cause, or empty.
    pub cause: Str,
}

/// The error numbers the contract gives a meaning to (Linux values, negative).
pub mod errno {
    /// Operation not permitted: the device is claimed or open read-only.
    pub const EPERM: i32 = -1;
    /// Object not found by that name.
    pub const ENOENT: i32 = -2;
    /// Input/output error.
    pub const EIO: i32 = -5;
    /// Resource temporarily unavailable.
    pub const EAGAIN: i32 = -11;
    /// Out of memory or of another bounded resource; a data-path I/O with this status is retried by the host.
    pub const ENOMEM: i32 = -12;
    /// Access denied.
    pub const EACCES: i32 = -13;
    /// Busy: in use, or an operation of the same kind is under way.
    pub const EBUSY: i32 = -16;
    /// The name is taken.
    pub const EEXIST: i32 = -17;
    /// The device is gone, or not there yet.
    pub const ENODEV: i32 = -19;
    /// An argument is wrong.
    pub const EINVAL: i32 = -22;
    /// No space or no slot left.
    pub const ENOSPC: i32 = -28;
    /// Out of range.
    pub const ERANGE: i32 = -34;
    /// The host or module is shutting down.
    pub const ESHUTDOWN: i32 = -108;
    /// Not supported by this module.
    pub const ENOTSUP: i32 = -95;
    /// Deadline passed.
    pub const ETIMEDOUT: i32 = -110;
    /// Cancelled by its owner.
    pub const ECANCELED: i32 = -125;
}
