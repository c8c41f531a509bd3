//! What makes a crate a plugin: the entry symbol, the metadata section and the
//! certificate, all emitted by [`export_plugin!`].
// UNSAFETY: descriptors hold raw pointers to static tables.

use tenon_abi::{ABI_MAJOR, ABI_MINOR, AbiSizes, MAGIC, ModuleOpsV1, PluginDescV1, Str};

/// Makes a [`Module`](crate::Module) the module of this plugin image. Once per crate, whose library has
/// `crate-type = ["cdylib", "rlib"]`.
///
/// * `module`: the type; it gets [`Exported`](crate::Exported).
/// * `name`: 1–63 bytes of `a-z 0-9 _ -`; `version`: usually `env!("CARGO_PKG_VERSION")`.
/// * `provides`: `bdev`, `transport`; `rpc`: methods whose first call makes the host load the plugin. The module
///   registers them in [`Module::init_complete`](crate::Module::init_complete).
///
/// Emits `pub fn plugin()`, the descriptor for tests that link the crate, next to the entry symbol
/// `tenon_plugin_v1`. The symbol has the same name in every plugin, so never link two plugins into one binary.
#[macro_export]
macro_rules! export_plugin {
    (
        module: $module:ty,
        name: $name:literal,
        version: $version:expr,
        provides: [$($provides:literal),* $(,)?],
        rpc: [$($rpc:literal),* $(,)?] $(,)?
    ) => {
        impl $crate::Exported for $module {
            const NAME: &'static str = $name;

            fn slot() -> &'static $crate::__private::Slot<Self> {
                static SLOT: $crate::__private::Slot<$module> = $crate::__private::Slot::new();
                &SLOT
            }
        }

        /// The plugin's descriptor, for tests that link this crate.
        #[must_use]
        pub fn plugin() -> *const $crate::abi::PluginDescV1 {
            static DESCRIPTOR: $crate::abi::PluginDescV1 = $crate::__private::descriptor(
                $name,
                $version,
                &$crate::__private::Callbacks::<$module>::TABLE,
            );
            &DESCRIPTOR
        }

        const _: () = {
            const TEXT: &[&str] = &[
                $crate::__private::ABI,
                "\0name=", $name,
                "\0version=", $version,
                "\0provides=", $($provides, ",",)*
                "\0rpc=", $($rpc, ",",)*
                "\0",
            ];
            const LEN: usize = $crate::__private::metadata_len(TEXT);

            #[used]
            #[unsafe(link_section = ".tenon_plugin")]
            static METADATA: [u8; LEN] = $crate::__private::metadata(TEXT);

            #[unsafe(no_mangle)]
            extern "C" fn tenon_plugin_v1() -> *const $crate::abi::PluginDescV1 {
                $crate::__private::loaded();
                plugin()
            }
        };

        $crate::__export_certificate!();
    };
}

/// Emits the root module a certified plugin has: what `#[export_root_module]` of `abi_stable` would emit, but
/// fit for every edition.
#[cfg(feature = "certificate")]
#[doc(hidden)]
#[macro_export]
macro_rules! __export_certificate {
    () => {
        const _: () = {
            use $crate::__private::abi_stable::library::{LibHeader, RootModuleResult};

            extern "C" fn descriptor() -> *const ::core::ffi::c_void {
                plugin().cast()
            }

            fn root_module() -> $crate::__private::CertificateRef {
                $crate::__private::certificate(descriptor)
            }

            extern "C" fn certificate() -> RootModuleResult {
                $crate::__private::abi_stable::library::__call_root_module_loader(root_module)
            }

            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            static HEADER: LibHeader = $crate::__private::certificate_header(certificate);
        };
    };
}

/// Emits nothing: this build of the SDK has no certificate.
#[cfg(not(feature = "certificate"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __export_certificate {
    () => {};
}

/// First pair of the metadata section.
#[doc(hidden)]
pub const ABI: &str = "abi=1.0";
const _: () = assert!(ABI_MAJOR == 1 && ABI_MINOR == 0, "`ABI` states the version");

/// Fills a descriptor.
#[doc(hidden)]
#[must_use]
pub const fn descriptor(
    name: &'static str,
    version: &'static str,
    ops: &'static ModuleOpsV1,
) -> PluginDescV1 {
    assert!(is_module_name(name), "a module name is 1-63 bytes of a-z 0-9 _ -");
    PluginDescV1 {
        magic: MAGIC,
        size: size_of::<PluginDescV1>() as u32,
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        sizes: AbiSizes::current(),
        name: Str::new(name),
        version: Str::new(version),
        built_with: Str::new(env!("TENON_SDK_RUSTC")),
        ops,
    }
}

/// Bytes of the metadata made of `text`.
#[doc(hidden)]
#[must_use]
pub const fn metadata_len(text: &[&str]) -> usize {
    let (mut len, mut index) = (0, 0);
    while index < text.len() {
        if !is_spare_comma(text, index) {
            len += text[index].len();
        }
        index += 1;
    }
    len
}

/// Concatenates `text`, leaving out the comma after the last entry of a list.
#[doc(hidden)]
#[must_use]
pub const fn metadata<const LEN: usize>(text: &[&str]) -> [u8; LEN] {
    let mut out = [0; LEN];
    let (mut at, mut index) = (0, 0);
    while index < text.len() {
        let piece = text[index].as_bytes();
        let mut byte = 0;
        while byte < piece.len() && !is_spare_comma(text, index) {
            out[at] = piece[byte];
            at += 1;
            byte += 1;
        }
        index += 1;
    }
    assert!(at == LEN);
    out
}

const fn is_spare_comma(text: &[&str], index: usize) -> bool {
    matches!(text[index].as_bytes(), b",")
        && index + 1 < text.len()
        && matches!(text[index + 1].as_bytes(), [0, ..])
}

const fn is_module_name(name: &str) -> bool {
    let name = name.as_bytes();
    let mut index = 0;
    while index < name.len() {
        if !matches!(name[index], b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-') {
            return false;
        }
        index += 1;
    }
    !name.is_empty() && name.len() <= 63
}

#[cfg(feature = "certificate")]
mod certified {
    use std::ffi::c_void;

    use abi_stable::library::{CheckTypeLayout, LibHeader, ROOT_MODULE_LOADER_NAME, RootModuleResult};
    use abi_stable::prefix_type::PrefixTypeTrait;
    use tenon_abi::certificate::{Certificate, CertificateRef, types};

    /// Makes the certificate of the plugin with `descriptor`.
    #[doc(hidden)]
    #[must_use]
    pub fn certificate(descriptor: extern "C" fn() -> *const c_void) -> CertificateRef {
        Certificate { descriptor, types: types() }.leak_into_prefix()
    }

    /// The static under abi_stable's name for a root module.
    #[doc(hidden)]
    #[must_use]
    pub const fn certificate_header(constructor: extern "C" fn() -> RootModuleResult) -> LibHeader {
        assert!(is_same(ROOT_MODULE_LOADER_NAME, "_1as_0lib_1header_0root_bmodule_bloader"));
        // SAFETY: `certificate` returns a `CertificateRef`.
        unsafe { LibHeader::from_constructor::<CertificateRef>(constructor, CheckTypeLayout::Yes) }
    }

    const fn is_same(left: &str, right: &str) -> bool {
        let (left, right) = (left.as_bytes(), right.as_bytes());
        let mut index = 0;
        while index < left.len() && index < right.len() && left[index] == right[index] {
            index += 1;
        }
        index == left.len() && index == right.len()
    }
}

#[cfg(feature = "certificate")]
#[doc(hidden)]
pub use certified::{certificate, certificate_header};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_pairs_ended_by_nul_with_comma_lists() {
        const TEXT: &[&str] =
            &[ABI, "\0name=", "x", "\0provides=", "bdev", ",", "transport", ",", "\0rpc=", "\0"];
        const LEN: usize = metadata_len(TEXT);
        let bytes: [u8; LEN] = metadata(TEXT);
        assert_eq!(&bytes[..], b"abi=1.0\0name=x\0provides=bdev,transport\0rpc=\0");
    }
}
