//! The same plugin as `certified`, as if its compiler had laid one frozen type
//! out differently: what `tests/gates.rs` must see refused.

mod fixture;

use abi_stable::StableAbi;
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RSlice, RStr};
use tenon_abi::certificate::{Certificate, CertificateRef, TypeEntry};

/// Of the same name and size as the contract's, with another second field.
#[repr(C)]
#[derive(StableAbi)]
pub struct CopyRange {
    offset_blocks: u64,
    num_blocks: u32,
    reserved: u32,
}

static TYPES: &[TypeEntry] = &[
    TypeEntry { name: RStr::from_str("Str"), layout: <tenon_abi::Str as StableAbi>::LAYOUT },
    TypeEntry { name: RStr::from_str("CopyRange"), layout: <CopyRange as StableAbi>::LAYOUT },
];

/// What the host finds besides the entry symbol.
#[abi_stable::export_root_module]
pub fn certificate() -> CertificateRef {
    Certificate { descriptor: fixture::descriptor, types: RSlice::from_slice(TYPES) }.leak_into_prefix()
}
