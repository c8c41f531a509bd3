//! The keyring for modules: the functions of [`KeyringTableV1`], which modules
//! find by the host's `query`. Whose the keys are and where they come from is
//! `keyring`'s matter.
// UNSAFETY: writes a key to memory of a module.

use tenon_abi::{HostModule, KeyringTableV1, QUERY_KEYRING, Str, errno};
use tenon_bdev::register_host_table;

use crate::target::Target;

/// Makes the host's `query` answer for the keyring. Any number of times.
pub(crate) fn offer_keyring() {
    register_host_table(QUERY_KEYRING, 1, &KEYRING_TABLE);
}

static KEYRING_TABLE: KeyringTableV1 =
    KeyringTableV1 { size: size_of::<KeyringTableV1>() as u32, flags: 0, acquire, release };

unsafe extern "C" fn acquire(_me: *mut HostModule, name: Str, out: *mut u8, out_len: usize) -> i32 {
    let Some(target) = Target::current() else { return errno::EPERM };
    // SAFETY: the module's text is readable during the call.
    let Some(name) = (unsafe { name.as_str() }) else { return errno::EINVAL };
    let Some(text) = target.hold_key(name) else { return errno::ENOENT };
    if text.len() > out_len || out.is_null() {
        target.let_go_of_key(name);
        return errno::ERANGE;
    }
    // SAFETY: the module gives `out_len` writable bytes, and the text is no longer.
    unsafe { out.copy_from_nonoverlapping(text.as_ptr(), text.len()) };
    text.len() as i32
}

unsafe extern "C" fn release(_me: *mut HostModule, name: Str) {
    let Some(target) = Target::current() else { return };
    // SAFETY: the module's text is readable during the call.
    if let Some(name) = unsafe { name.as_str() } {
        target.let_go_of_key(name);
    }
}
