//! Borrowed text, scatter lists and the JSON writer: the plain data that
//! crosses the door in every direction. Owns nothing.
// UNSAFETY: borrowed text is read through its raw pointer.

use core::ffi::c_void;

/// Borrowed UTF-8 text, valid during the call that passes it and not NUL-terminated.
/// A receiver that needs it longer copies it. `len == 0` allows a null `ptr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct Str {
    /// First byte.
    pub ptr: *const u8,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: `Str` is a pair of plain words; whoever dereferences it obeys its lifetime.
unsafe impl Send for Str {}
// SAFETY: as above; shared access never writes through `ptr`.
unsafe impl Sync for Str {}

impl Str {
    /// The empty text.
    pub const EMPTY: Str = Str { ptr: core::ptr::null(), len: 0 };

    /// Borrows `text` for the duration of a call.
    #[must_use]
    pub const fn new(text: &str) -> Self {
        Str { ptr: text.as_ptr(), len: text.len() }
    }

    /// The text, or `None` if it is not UTF-8.
    ///
    /// # Safety
    /// `ptr` must be valid for `len` bytes for `'a`, or `len` must be 0.
    #[must_use]
    pub unsafe fn as_str<'a>(self) -> Option<&'a str> {
        if self.len == 0 {
            return Some("");
        }
        if self.ptr.is_null() {
            return None;
        }
        // SAFETY: the caller promises `len` readable bytes at the non-null `ptr`.
        let bytes = unsafe { core::slice::from_raw_parts(self.ptr, self.len) };
        core::str::from_utf8(bytes).ok()
    }
}

/// One piece of a scatter list; the same layout as `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct IoVec {
    /// First byte.
    pub base: *mut c_void,
    /// Length in bytes.
    pub len: usize,
}

impl IoVec {
    /// A piece of no bytes.
    pub const EMPTY: IoVec = IoVec { base: core::ptr::null_mut(), len: 0 };
}

/// Where a callback writes JSON text: call `write` any number of times; the pieces are concatenated.
/// Owned by the host, valid during the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "certificate", derive(abi_stable::StableAbi))]
pub struct JsonSink {
    /// Appends a piece of text.
    pub write: unsafe extern "C" fn(arg: *mut c_void, text: Str),
    /// First argument of `write`.
    pub arg: *mut c_void,
}
