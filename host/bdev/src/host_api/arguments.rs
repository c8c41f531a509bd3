//! Reading what modules pass: texts, structs with a size, handles of modules.
//!
//! Nothing is taken at its word that can be checked; what cannot be checked (that
//! a pointer is readable) is the module's part of the contract.
// UNSAFETY: follows pointers that modules pass.

use std::mem::offset_of;

use tenon_abi::{BdevOpsV1, HostModule, Str};
use tenon_modules::{Module, ModuleRef};

/// A struct that starts with its size.
///
/// # Safety
/// The first field is `size: u32`, and the type is `repr(C)`.
pub(super) unsafe trait Sized32: Copy {}

// SAFETY: each of these starts with `size: u32` (asserted by `abi.lock`) and is `repr(C)`.
unsafe impl Sized32 for tenon_abi::BdevV1 {}
// SAFETY: as above.
unsafe impl Sized32 for tenon_abi::BdevEvent {}
// SAFETY: as above.
unsafe impl Sized32 for tenon_abi::HotplugEvent {}
// SAFETY: as above.
unsafe impl Sized32 for tenon_abi::PollerV1 {}
// SAFETY: as above.
unsafe impl Sized32 for tenon_abi::MetricDesc {}

/// A copy of the struct at `pointer`; `None` if that is null or the struct ends before this host's does.
/// A longer one, of a newer module, is read as far as this host knows it.
///
/// # Safety
/// `pointer` is null or points to a struct that is readable for the `size` it states.
pub(super) unsafe fn read<T: Sized32>(pointer: *const T) -> Option<T> {
    if pointer.is_null() || !pointer.is_aligned() {
        return None;
    }
    // SAFETY: `T` starts with its size, and the caller vouches for the pointer.
    let size = unsafe { pointer.cast::<u32>().read() };
    // SAFETY: the struct reaches the end of `T`.
    tenon_abi::reaches(size, size_of::<T>()).then(|| unsafe { pointer.read() })
}

/// The table of a device has what every version of the contract has: all up to `destruct`.
///
/// # Safety
/// As for [`read`].
pub(super) unsafe fn is_table(ops: *const BdevOpsV1) -> bool {
    if ops.is_null() || !ops.is_aligned() {
        return false;
    }
    let end = offset_of!(BdevOpsV1, destruct) + size_of::<usize>();
    // SAFETY: a table starts with its size, and the caller vouches for the pointer.
    tenon_abi::reaches(unsafe { ops.cast::<u32>().read() }, end)
}

/// A text; `None` if it is not UTF-8.
///
/// # Safety
/// As for [`Str::as_str`], for the call that passed it.
pub(super) unsafe fn text<'a>(text: Str) -> Option<&'a str> {
    // SAFETY: as the caller promises.
    unsafe { text.as_str() }
}

/// The module behind the handle it was given at `init`.
pub(super) fn module(me: *mut HostModule) -> Option<ModuleRef> {
    Module::from_handle(me)
}
