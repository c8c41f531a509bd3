//! The certificate: what the plugin's compiler made of each frozen type, in a
//! form the host can compare field by field. Optional (feature `certificate`);
//! it appears in no signature and is never touched by an I/O.
//!
//! The shape of [`Certificate`] itself never grows, because a comparison of
//! prefix types is one-directional: it would refuse an older plugin in a newer
//! host. Only the table inside grows; the host compares the names both know.

use core::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::std_types::{RSlice, RStr};
use abi_stable::type_layout::TypeLayout;

/// A frozen type and what the compiler made of it.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct TypeEntry {
    /// Name as in `abi.lock`.
    pub name: RStr<'static>,
    /// Its layout.
    pub layout: &'static TypeLayout,
}

/// Root module of a certified plugin.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = CertificateRef)))]
pub struct Certificate {
    /// The plugin's descriptor, the same as the entry symbol returns.
    pub descriptor: extern "C" fn() -> *const c_void,
    /// The types this plugin was built with.
    #[sabi(last_prefix_field)]
    pub types: RSlice<'static, TypeEntry>,
}

impl abi_stable::library::RootModule for CertificateRef {
    abi_stable::declare_root_module_statics! {CertificateRef}
    const BASE_NAME: &'static str = "tenon_plugin";
    const NAME: &'static str = "tenon_plugin";
    const VERSION_STRINGS: abi_stable::sabi_types::VersionStrings =
        abi_stable::sabi_types::VersionStrings::new("1.0.0");
}

/// The types of this build of the contract.
#[must_use]
pub fn types() -> RSlice<'static, TypeEntry> {
    RSlice::from_slice(crate::layout::CERTIFIED)
}
