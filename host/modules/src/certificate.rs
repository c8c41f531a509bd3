//! Gate 2: the layouts that the plugin's compiler made of the frozen types,
//! compared with ours field by field.
//!
//! `abi_stable`'s own comparison is not used for the types, for two reasons: it
//! is one-directional (it refuses an older plugin whose table is shorter), and
//! its report does not name one field. A type that starts with `size: u32` may
//! have grown at its end; every other type must be equal. Names that only one
//! side knows are left out. It says nothing about what functions do.
// UNSAFETY: reads a symbol of the plugin.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use abi_stable::library::AbiHeaderRef;
use abi_stable::type_layout::{TLData, TLField, TLFunction, TLPrimitive, TypeLayout};
use tenon_abi::PluginDescV1;
use tenon_abi::certificate::{CertificateRef, TypeEntry};

use crate::error::LoadError;

/// Deepest nesting of types that is followed; ours has 6.
const MAX_DEPTH: usize = 64;

/// Checks the certificate of an opened library. `Ok(None)`: it has none. `Ok(Some(n))`: `n` types are equal.
///
/// # Safety
/// `library` is a plugin whose constructors have run; a symbol with the certificate's name is what
/// `abi_stable` exports under it.
pub(crate) unsafe fn check(
    library: &libloading::os::unix::Library,
    descriptor: *const PluginDescV1,
) -> Result<Option<usize>, LoadError> {
    let name = abi_stable::library::ROOT_MODULE_LOADER_NAME_WITH_NUL;
    // SAFETY: the caller vouches for the type of the symbol.
    let Ok(header) = (unsafe { library.get::<AbiHeaderRef>(name.as_bytes()) }) else {
        return Ok(None);
    };
    let header = *header;
    let bad = |cause: String| LoadError::BadCertificate { cause };
    // The plugin's part of this runs as `extern "C"` and aborts on a panic; ours may find nonsense and panic.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let certificate: CertificateRef = header
            .upgrade()
            .and_then(|header| header.init_root_module::<CertificateRef>())
            .map_err(|error| bad(one_line(&error.to_string())))?;
        if certificate.descriptor()() != descriptor.cast() {
            return Err(bad("it certifies another descriptor".into()));
        }
        compare(tenon_abi::certificate::types().as_slice(), certificate.types().as_slice())
    }));
    match outcome {
        Ok(result) => result.map(Some),
        Err(_) => Err(bad("its description of a type is inconsistent".into())),
    }
}

/// Compares the types both sides know; returns how many there were.
fn compare(host: &[TypeEntry], plugin: &[TypeEntry]) -> Result<usize, LoadError> {
    let mut comparison = Comparison { visited: HashSet::new(), depth: 0 };
    let mut compared = 0;
    for ours in host {
        for theirs in plugin.iter().filter(|theirs| theirs.name == ours.name) {
            let ty = ours.name.as_str();
            comparison.types(ours.layout, theirs.layout, Place { ty, field: "" }).map_err(
                |Difference { ty, field, host, plugin }| LoadError::LayoutDiffers { ty, field, host, plugin },
            )?;
            compared += 1;
        }
    }
    Ok(compared)
}

/// The first difference found.
struct Difference {
    ty: String,
    field: String,
    host: String,
    plugin: String,
}

/// Where the comparison is: for messages only.
#[derive(Clone, Copy)]
struct Place<'a> {
    ty: &'a str,
    field: &'a str,
}

impl Place<'_> {
    fn differs(self, host: String, plugin: String) -> Result<(), Difference> {
        Err(Difference { ty: self.ty.to_owned(), field: self.field.to_owned(), host, plugin })
    }
}

struct Comparison {
    /// Pairs that are compared or being compared: types refer to each other in circles.
    visited: HashSet<(*const TypeLayout, *const TypeLayout)>,
    depth: usize,
}

impl Comparison {
    fn types(
        &mut self,
        host: &'static TypeLayout,
        plugin: &'static TypeLayout,
        at: Place<'_>,
    ) -> Result<(), Difference> {
        if !self.visited.insert((host, plugin)) {
            return Ok(());
        }
        if self.depth == MAX_DEPTH {
            return at.differs("nested".into(), format!("nested deeper than {MAX_DEPTH} types"));
        }
        self.depth += 1;
        let result = self.types_inside(host, plugin, at);
        self.depth -= 1;
        result
    }

    fn types_inside(
        &mut self,
        host: &'static TypeLayout,
        plugin: &'static TypeLayout,
        at: Place<'_>,
    ) -> Result<(), Difference> {
        if host.data_discriminant() != plugin.data_discriminant() || host.name() != plugin.name() {
            return at.differs(describe(host), describe(plugin));
        }
        if let (TLData::Primitive(ours), TLData::Primitive(theirs)) = (host.data(), plugin.data())
            && ours != theirs
        {
            return at.differs(describe(host), describe(plugin));
        }
        let grows = is_sized_table(host) && is_sized_table(plugin);
        self.fields(host, plugin, grows)?;
        // What a pointer points to and an array consists of.
        for (ours, theirs) in host.phantom_fields().iter().zip(plugin.phantom_fields()) {
            self.types(ours.layout(), theirs.layout(), at)?;
        }
        let is_equal = host.alignment() == plugin.alignment() && (grows || host.size() == plugin.size());
        if is_equal { Ok(()) } else { at.differs(describe(host), describe(plugin)) }
    }

    fn fields(
        &mut self,
        host: &'static TypeLayout,
        plugin: &'static TypeLayout,
        grows: bool,
    ) -> Result<(), Difference> {
        let ours: Vec<TLField> = host.get_fields().into_iter().flatten().collect();
        let theirs: Vec<TLField> = plugin.get_fields().into_iter().flatten().collect();
        let ty = host.name();
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let at = Place { ty, field: ours.name() };
            if ours.name() != theirs.name() && !is_reserved(ours.name()) && !is_reserved(theirs.name()) {
                return at.differs(format!("field {}", ours.name()), format!("field {}", theirs.name()));
            }
            // A field lies inside its struct: even a table that may grow must not, here.
            if ours.layout().size() != theirs.layout().size() {
                return at.differs(describe(ours.layout()), describe(theirs.layout()));
            }
            self.types(ours.layout(), theirs.layout(), at)?;
            self.functions(ours, theirs, at)?;
        }
        if grows || ours.len() == theirs.len() {
            return Ok(());
        }
        let common = ours.len().min(theirs.len());
        let side = |fields: &[TLField]| fields.get(common).map_or("absent".into(), |f| describe(f.layout()));
        let field = ours.get(common).or(theirs.get(common)).map_or("", |field| field.name());
        Place { ty, field }.differs(side(&ours), side(&theirs))
    }

    /// Parameters and results of a field that is a function pointer.
    fn functions(&mut self, host: &TLField, plugin: &TLField, at: Place<'_>) -> Result<(), Difference> {
        let (ours, theirs) = (host.function_range(), plugin.function_range());
        if ours.len() != theirs.len() {
            return at.differs(format!("{} functions", ours.len()), format!("{} functions", theirs.len()));
        }
        for (ours, theirs) in ours.iter().zip(theirs.iter()) {
            if ours.param_type_layouts.len() != theirs.param_type_layouts.len() {
                return at.differs(signature(&ours), signature(&theirs));
            }
            for (ours, theirs) in ours.param_type_layouts.iter().zip(theirs.param_type_layouts.iter()) {
                self.types(ours(), theirs(), at)?;
            }
            match (ours.return_type_layout(), theirs.return_type_layout()) {
                (None, None) => {}
                (Some(ours), Some(theirs)) => self.types(ours(), theirs(), at)?,
                (Some(_), None) | (None, Some(_)) => {
                    return at.differs(signature(&ours), signature(&theirs));
                }
            }
        }
        Ok(())
    }
}

/// A struct whose first field is `size: u32` may grow at its end in a minor version.
fn is_sized_table(layout: &'static TypeLayout) -> bool {
    let first = layout.get_fields().and_then(|fields| fields.into_iter().next());
    first.is_some_and(|field| {
        field.name() == "size" && matches!(field.layout().data(), TLData::Primitive(TLPrimitive::U32))
    })
}

/// A reserved field may have got a name, and a meaning, in a newer minor version.
fn is_reserved(name: &str) -> bool {
    name.starts_with("reserved") || name.starts_with('_')
}

fn describe(layout: &TypeLayout) -> String {
    format!("{} of {} bytes", one_line(&layout.full_type().to_string()), layout.size())
}

fn signature(function: &TLFunction) -> String {
    one_line(&function.to_string())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use abi_stable::StableAbi;
    use abi_stable::std_types::RStr;

    use super::*;

    #[repr(C)]
    #[derive(StableAbi)]
    struct Frozen {
        first: u32,
        second: u64,
    }

    #[repr(C)]
    #[derive(StableAbi)]
    struct Table {
        size: u32,
        reserved: u32,
        call: unsafe extern "C" fn(value: *const Frozen) -> i32,
    }

    /// The same names as above with one difference each: what another build of the plugin would carry.
    mod other {
        macro_rules! build {
            ($module:ident, $($text:tt)*) => {
                #[allow(dead_code)]
                pub mod $module {
                    use abi_stable::StableAbi;
                    type Value = *const super::super::Frozen;
                    #[repr(C)]
                    #[derive(StableAbi)]
                    $($text)*
                }
            };
        }
        build!(
            narrower,
            pub struct Frozen {
                pub first: u32,
                pub second: u32,
                pub third: u32,
            }
        );
        build!(
            signed,
            pub struct Frozen {
                pub first: u32,
                pub second: i64,
            }
        );
        build!(
            swapped,
            pub struct Frozen {
                pub second: u32,
                pub first: u64,
            }
        );
        build!(
            appended,
            pub struct Frozen {
                pub first: u32,
                pub second: u64,
                pub third: u64,
            }
        );
        build!(
            grown,
            pub struct Table {
                pub size: u32,
                pub flags: u32,
                pub call: unsafe extern "C" fn(value: Value) -> i32,
                pub added: unsafe extern "C" fn(),
            }
        );
        build!(
            answer,
            pub struct Table {
                pub size: u32,
                pub reserved: u32,
                pub call: unsafe extern "C" fn(value: Value) -> u32,
            }
        );
        build!(
            parameter,
            pub struct Table {
                pub size: u32,
                pub reserved: u32,
                pub call: unsafe extern "C" fn(value: *const super::narrower::Frozen) -> i32,
            }
        );
        build!(
            arity,
            pub struct Table {
                pub size: u32,
                pub reserved: u32,
                pub call: unsafe extern "C" fn(value: Value, more: u32) -> i32,
            }
        );
    }

    fn entry<T: StableAbi>(name: &'static str) -> TypeEntry {
        TypeEntry { name: RStr::from_str(name), layout: T::LAYOUT }
    }

    #[track_caller]
    fn check<H: StableAbi, P: StableAbi>(expected: Result<(), &str>) {
        let result = compare(&[entry::<H>("T")], &[entry::<P>("T")]).map_err(|error| error.to_string());
        match (result, expected) {
            (Ok(count), Ok(())) => assert_eq!(count, 1),
            (Err(text), Err(expected)) => assert!(text.starts_with(expected), "{text:?}, not {expected:?}"),
            (result, expected) => panic!("{result:?}, not {expected:?}"),
        }
    }

    #[test]
    fn equal_types_pass() {
        check::<Frozen, Frozen>(Ok(()));
        check::<Table, Table>(Ok(()));
    }

    #[test]
    fn a_changed_field_is_named_even_at_equal_size() {
        check::<Frozen, other::narrower::Frozen>(Err(
            "its Frozen.second is u32 of 4 bytes, the host's is u64",
        ));
        check::<Frozen, other::signed::Frozen>(Err("its Frozen.second is i64 of 8 bytes, the host's is u64"));
        check::<Frozen, other::swapped::Frozen>(Err(
            "its Frozen.first is field second, the host's is field first",
        ));
    }

    #[test]
    fn a_frozen_type_must_not_grow_in_either_direction() {
        check::<Frozen, other::appended::Frozen>(Err(
            "its Frozen.third is u64 of 8 bytes, the host's is absent",
        ));
        check::<other::appended::Frozen, Frozen>(Err(
            "its Frozen.third is absent, the host's is u64 of 8 bytes",
        ));
    }

    #[test]
    fn a_sized_table_may_grow_in_both_directions() {
        check::<Table, other::grown::Table>(Ok(()));
        check::<other::grown::Table, Table>(Ok(()));
    }

    #[test]
    fn a_changed_function_is_named() {
        check::<Table, other::answer::Table>(Err("its Table.call is u32 of 4 bytes, the host's is i32"));
        check::<Table, other::parameter::Table>(Err(
            "its Frozen.second is u32 of 4 bytes, the host's is u64",
        ));
        check::<Table, other::arity::Table>(Err("its Table.call is unsafe fn("));
    }

    #[test]
    fn names_only_one_side_knows_are_left_out() {
        let host = [entry::<Frozen>("Old"), entry::<Table>("New")];
        let plugin = [entry::<Frozen>("Old"), entry::<other::signed::Frozen>("Other")];
        assert_eq!(compare(&host, &plugin), Ok(1));
    }

    #[test]
    fn the_whole_contract_equals_itself() {
        let types = tenon_abi::certificate::types();
        assert_eq!(compare(types.as_slice(), types.as_slice()), Ok(tenon_abi::layout::TYPES.len()));
    }
}
