//! A plugin in Rust without the SDK, with a true layout certificate: what
//! `tests/gates.rs` loads under the strictest policy.

mod fixture;

use abi_stable::prefix_type::PrefixTypeTrait;
use tenon_abi::certificate::{Certificate, CertificateRef, types};

/// What the host finds besides the entry symbol.
#[abi_stable::export_root_module]
pub fn certificate() -> CertificateRef {
    Certificate { descriptor: fixture::descriptor, types: types() }.leak_into_prefix()
}
