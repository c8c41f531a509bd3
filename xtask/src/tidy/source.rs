//! One parsed source file: its functions, definitions, unsafe sites and test parts.
//!
//! Collected in one walk over the syntax tree, so that each rule is a filter
//! over plain lists. Judges nothing: limits and exceptions live in the rules.

use std::ops::RangeInclusive;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::scan::{self, Line};

/// What the rules want to know of one file.
#[derive(Debug)]
pub struct Source {
    /// Path relative to the root.
    pub path: String,
    /// Its text, line by line.
    pub lines: Vec<Line>,
    /// The file as a whole is test code.
    pub is_test_file: bool,
    /// Lines of items that exist only in tests.
    test_ranges: Vec<RangeInclusive<usize>>,
    /// Paths without `.rs` of modules declared for tests only.
    pub test_modules: Vec<String>,
    /// Functions with a body, in order.
    pub functions: Vec<Function>,
    /// Every place that needs `unsafe`.
    pub unsafe_sites: Vec<UnsafeSite>,
    /// What `pub` makes visible, tests excepted.
    pub public_items: Vec<PublicItem>,
    /// Every name it introduces.
    pub definitions: Vec<Definition>,
    /// `#[repr(C)]` structs with public fields: layouts somebody else may rely on.
    pub c_structs: Vec<Definition>,
    /// Inner lint attributes such as `forbid(unsafe_code)`, without blanks.
    pub inner_attributes: Vec<String>,
    /// Line of the first item that is more than a `use` or `mod x;`.
    pub first_item_line: usize,
}

/// A function's place and length.
#[derive(Debug)]
pub struct Function {
    /// `name` or `Type::name`.
    pub name: String,
    /// Line of its signature.
    pub line: usize,
    /// Lines from signature to closing brace.
    pub lines: usize,
}

/// One place that needs `unsafe`.
#[derive(Debug)]
pub struct UnsafeSite {
    /// Its line.
    pub line: usize,
    /// Which form it has.
    pub kind: UnsafeKind,
}

/// The forms of unsafe code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnsafeKind {
    /// `unsafe { … }`.
    Block,
    /// An unsafe function; whether its doc, or what it implements, has a `# Safety` section.
    Function { is_public: bool, has_section: bool },
    /// `unsafe impl`.
    Impl,
    /// `unsafe extern`, `#[unsafe(…)]`, `unsafe trait`, and inside macro calls.
    Other,
}

/// An item, field, variant or method that is `pub`.
#[derive(Debug)]
pub struct PublicItem {
    /// `name` or `Type::name`.
    pub name: String,
    /// Its line.
    pub line: usize,
    /// Whether it has a doc comment.
    pub is_documented: bool,
}

/// A name this file introduces.
#[derive(Debug)]
pub struct Definition {
    /// As written.
    pub name: String,
    /// Its line.
    pub line: usize,
}

impl Source {
    /// Parses a file; an error is a line and a message.
    pub fn parse(path: &str, text: &str) -> Result<Self, (usize, String)> {
        let file = syn::parse_file(text).map_err(|error| (error.span().start().line, error.to_string()))?;
        let mut walk = Walk::new(path);
        walk.visit_file(&file);
        let is_first = |item: &&syn::Item| match item {
            syn::Item::Use(_) | syn::Item::ExternCrate(_) => false,
            syn::Item::Mod(module) => module.content.is_some(),
            _ => true,
        };
        let first_item = file.items.iter().find(is_first);
        Ok(Self {
            path: path.to_owned(),
            lines: scan::split(text),
            is_test_file: is_test_path(path) || file.attrs.iter().any(is_test_attribute),
            test_ranges: walk.test_ranges,
            test_modules: walk.test_modules,
            functions: walk.functions,
            unsafe_sites: walk.unsafe_sites,
            public_items: walk.public_items,
            definitions: walk.definitions,
            c_structs: walk.c_structs,
            inner_attributes: file.attrs.iter().map(attribute_text).collect(),
            first_item_line: first_item.map_or(usize::MAX, |item| item.span().start().line),
        })
    }

    /// Whether this line (1-based) is test code.
    pub fn is_test_line(&self, line: usize) -> bool {
        self.is_test_file || self.test_ranges.iter().any(|range| range.contains(&line))
    }

    /// Lines with their 1-based numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.lines.iter().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Number of lines that are not test code; the empty end after the last newline does not count.
    pub fn lines_without_tests(&self) -> usize {
        let last = self.lines.len() - usize::from(self.lines.last().is_some_and(Line::is_blank));
        (1..=last).filter(|line| !self.is_test_line(*line)).count()
    }

    /// The top folder: `host`, `plugin-api`, `plugins`, `tests` or `xtask`.
    pub fn area(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }
}

/// Folders whose files are tests by their place.
fn is_test_path(path: &str) -> bool {
    let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
    path.ends_with("/tests.rs") || folders.split('/').any(|folder| folder == "tests" || folder == "benches")
}

fn is_test_attribute(attribute: &syn::Attribute) -> bool {
    let path = attribute.path();
    if path.segments.last().is_some_and(|segment| segment.ident == "test") {
        return true;
    }
    if !path.is_ident("cfg") {
        return false;
    }
    attribute.meta.require_list().is_ok_and(|list| names_test(list.tokens.clone()))
}

/// Whether a `cfg` predicate names `test` outside of `not(…)`.
fn names_test(tokens: TokenStream) -> bool {
    let mut is_negated = false;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if ident == "test" => return true,
            TokenTree::Ident(ident) => is_negated = ident == "not",
            TokenTree::Group(group) if !is_negated && names_test(group.stream()) => return true,
            TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => is_negated = false,
        }
    }
    false
}

fn attribute_text(attribute: &syn::Attribute) -> String {
    let meta = &attribute.meta;
    quote::quote!(#meta).to_string().split_whitespace().collect()
}

/// The text of the doc comments among these attributes.
fn doc_text(attributes: &[syn::Attribute]) -> String {
    let docs = attributes.iter().filter(|attribute| attribute.path().is_ident("doc"));
    docs.map(|attribute| attribute_text(attribute) + "\n").collect()
}

/// One walk over a file's syntax tree.
struct Walk {
    path: String,
    test_depth: usize,
    /// Names of the enclosing inline modules.
    modules: Vec<String>,
    /// The type or trait whose members are being visited.
    owner: Option<String>,
    is_public_trait: bool,
    is_trait_impl: bool,
    test_ranges: Vec<RangeInclusive<usize>>,
    test_modules: Vec<String>,
    functions: Vec<Function>,
    unsafe_sites: Vec<UnsafeSite>,
    public_items: Vec<PublicItem>,
    definitions: Vec<Definition>,
    c_structs: Vec<Definition>,
}

impl Walk {
    fn new(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            test_depth: 0,
            modules: Vec::new(),
            owner: None,
            is_public_trait: false,
            is_trait_impl: false,
            test_ranges: Vec::new(),
            test_modules: Vec::new(),
            functions: Vec::new(),
            unsafe_sites: Vec::new(),
            public_items: Vec::new(),
            definitions: Vec::new(),
            c_structs: Vec::new(),
        }
    }

    /// Visits something that carries attributes, noting it when it exists only in tests.
    fn scoped(&mut self, attributes: &[syn::Attribute], node: &impl Spanned, visit: impl FnOnce(&mut Self)) {
        let is_test = attributes.iter().any(is_test_attribute);
        if is_test {
            let span = node.span();
            self.test_ranges.push(span.start().line..=span.end().line);
        }
        self.test_depth += usize::from(is_test);
        visit(self);
        self.test_depth -= usize::from(is_test);
    }

    fn define(&mut self, name: &syn::Ident) {
        self.definitions.push(Definition { name: name.to_string(), line: name.span().start().line });
    }

    fn public(&mut self, name: &syn::Ident, attributes: &[syn::Attribute]) {
        let docs = doc_text(attributes);
        if self.test_depth > 0 || docs.contains("(hidden)") {
            return;
        }
        let line = name.span().start().line;
        let name = self.owner.as_ref().map_or_else(|| name.to_string(), |owner| format!("{owner}::{name}"));
        self.public_items.push(PublicItem { name, line, is_documented: !docs.is_empty() });
    }

    fn function(
        &mut self,
        signature: &syn::Signature,
        attributes: &[syn::Attribute],
        end: usize,
        public: bool,
    ) {
        let line = signature.span().start().line;
        let name = &signature.ident;
        let name = self.owner.as_ref().map_or_else(|| name.to_string(), |owner| format!("{owner}::{name}"));
        self.functions.push(Function { name, line, lines: end + 1 - line });
        self.unsafe_function(signature, attributes, public);
    }

    fn unsafe_function(
        &mut self,
        signature: &syn::Signature,
        attributes: &[syn::Attribute],
        is_public: bool,
    ) {
        if signature.unsafety.is_some() {
            // A private `extern "C"` function is a callback: the table it goes into says what is owed.
            let is_callback = !is_public && signature.abi.is_some();
            let is_stated_elsewhere = self.is_trait_impl || is_callback;
            let has_section = is_stated_elsewhere || doc_text(attributes).contains("#Safety");
            let kind = UnsafeKind::Function { is_public, has_section };
            self.unsafe_sites.push(UnsafeSite { line: signature.span().start().line, kind });
        }
    }

    /// The file a `mod name;` of this file stands for, without `.rs`.
    fn module_path(&self, name: &syn::Ident) -> String {
        let (folder, file) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let stem = file.trim_end_matches(".rs");
        let mut parts = vec![folder.to_owned()];
        if !matches!(stem, "lib" | "main" | "mod") {
            parts.push(stem.to_owned());
        }
        parts.extend(self.modules.iter().cloned());
        parts.push(name.to_string());
        parts.join("/")
    }

    fn fields(&mut self, owner: &syn::Ident, fields: &syn::Fields, are_public: bool) {
        let previous = self.owner.replace(owner.to_string());
        for field in fields {
            let Some(name) = &field.ident else { continue };
            self.define(name);
            if are_public && (is_public(&field.vis) || matches!(field.vis, syn::Visibility::Inherited)) {
                self.public(name, &field.attrs);
            }
        }
        self.owner = previous;
    }
}

fn is_public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

/// Attributes, name and visibility of an item, where it has them.
fn parts_of(item: &syn::Item) -> (&[syn::Attribute], Option<(&syn::Ident, &syn::Visibility)>) {
    use syn::Item;
    match item {
        Item::Const(i) => (&i.attrs, Some((&i.ident, &i.vis))),
        Item::Enum(i) => (&i.attrs, Some((&i.ident, &i.vis))),
        Item::ExternCrate(i) => (&i.attrs, None),
        Item::Fn(i) => (&i.attrs, Some((&i.sig.ident, &i.vis))),
        Item::ForeignMod(i) => (&i.attrs, None),
        Item::Impl(i) => (&i.attrs, None),
        Item::Macro(i) => (&i.attrs, None),
        Item::Mod(i) => (&i.attrs, Some((&i.ident, &i.vis))),
        Item::Static(i) => (&i.attrs, Some((&i.ident, &i.vis))),
        Item::Struct(i) => (&i.attrs, Some((&i.ident, &i.vis))),
        Item::Trait(i) => (&i.attrs, Some((&i.ident, &i.vis))),
        Item::TraitAlias(i) => (&i.attrs, Some((&i.ident, &i.vis))),
        Item::Type(i) => (&i.attrs, Some((&i.ident, &i.vis))),
        Item::Union(i) => (&i.attrs, Some((&i.ident, &i.vis))),
        Item::Use(i) => (&i.attrs, None),
        _ => (&[], None),
    }
}

impl<'ast> Visit<'ast> for Walk {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let (attributes, named) = parts_of(item);
        self.scoped(attributes, item, |walk| {
            if let Some((name, visibility)) = named {
                // The name of a test is a sentence, not a name.
                if !attributes.iter().any(|attribute| attribute.path().is_ident("test")) {
                    walk.define(name);
                }
                // The header of the file documents a module declared elsewhere.
                let is_elsewhere = matches!(item, syn::Item::Mod(module) if module.content.is_none());
                if is_public(visibility) && !is_elsewhere {
                    walk.public(name, attributes);
                }
            }
            visit::visit_item(walk, item);
        });
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.content.is_none() {
            if self.test_depth > 0 {
                let path = self.module_path(&module.ident);
                self.test_modules.push(path);
            }
            return;
        }
        self.modules.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.modules.pop();
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let end = function.span().end().line;
        self.function(&function.sig, &function.attrs, end, is_public(&function.vis));
        let previous = self.owner.take();
        visit::visit_item_fn(self, function);
        self.owner = previous;
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        let is_public_struct = is_public(&item.vis);
        let has_public_fields = item.fields.iter().any(|field| is_public(&field.vis));
        if has_public_fields
            && item.attrs.iter().any(|attribute| attribute_text(attribute).starts_with("repr(C"))
        {
            let line = item.ident.span().start().line;
            self.c_structs.push(Definition { name: item.ident.to_string(), line });
        }
        if is_public_struct && has_public_fields {
            let public = item.fields.iter().filter(|field| is_public(&field.vis)).cloned().collect();
            let named = syn::FieldsNamed { brace_token: syn::token::Brace::default(), named: public };
            self.fields(&item.ident, &syn::Fields::Named(named), true);
        } else {
            self.fields(&item.ident, &item.fields, false);
        }
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        let previous = self.owner.replace(item.ident.to_string());
        for variant in &item.variants {
            self.define(&variant.ident);
            if is_public(&item.vis) {
                self.public(&variant.ident, &variant.attrs);
            }
        }
        visit::visit_item_enum(self, item);
        self.owner = previous;
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.unsafety.is_some() {
            self.unsafe_sites.push(UnsafeSite { line: item.span().start().line, kind: UnsafeKind::Impl });
        }
        let owner = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
            _ => None,
        };
        let previous = std::mem::replace(&mut self.owner, owner);
        let was_trait_impl = std::mem::replace(&mut self.is_trait_impl, item.trait_.is_some());
        visit::visit_item_impl(self, item);
        self.owner = previous;
        self.is_trait_impl = was_trait_impl;
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.scoped(&function.attrs, function, |walk| {
            walk.define(&function.sig.ident);
            let is_public = is_public(&function.vis);
            if is_public {
                walk.public(&function.sig.ident, &function.attrs);
            }
            walk.function(&function.sig, &function.attrs, function.span().end().line, is_public);
            visit::visit_impl_item_fn(walk, function);
        });
    }

    fn visit_impl_item_const(&mut self, constant: &'ast syn::ImplItemConst) {
        self.define(&constant.ident);
        if is_public(&constant.vis) {
            self.public(&constant.ident, &constant.attrs);
        }
        visit::visit_impl_item_const(self, constant);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        if item.unsafety.is_some() {
            self.unsafe_sites.push(UnsafeSite { line: item.span().start().line, kind: UnsafeKind::Other });
        }
        let previous = self.owner.replace(item.ident.to_string());
        self.is_public_trait = is_public(&item.vis);
        visit::visit_item_trait(self, item);
        self.is_public_trait = false;
        self.owner = previous;
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        self.scoped(&function.attrs, function, |walk| {
            walk.define(&function.sig.ident);
            let is_public = walk.is_public_trait;
            if is_public {
                walk.public(&function.sig.ident, &function.attrs);
            }
            if function.default.is_some() {
                walk.function(&function.sig, &function.attrs, function.span().end().line, is_public);
            } else {
                walk.unsafe_function(&function.sig, &function.attrs, is_public);
            }
            visit::visit_trait_item_fn(walk, function);
        });
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        self.unsafe_sites.push(UnsafeSite { line: item.span().start().line, kind: UnsafeKind::Other });
        visit::visit_item_foreign_mod(self, item);
    }

    fn visit_expr_unsafe(&mut self, block: &'ast syn::ExprUnsafe) {
        let line = block.unsafe_token.span().start().line;
        self.unsafe_sites.push(UnsafeSite { line, kind: UnsafeKind::Block });
        visit::visit_expr_unsafe(self, block);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("unsafe") {
            self.unsafe_sites
                .push(UnsafeSite { line: attribute.span().start().line, kind: UnsafeKind::Other });
        }
    }

    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        if let Some(name) = &item.ident {
            self.define(name);
            if item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) {
                self.public(name, &item.attrs);
            }
        }
        visit::visit_item_macro(self, item);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if let Some(line) = line_of_unsafe(call.tokens.clone()) {
            self.unsafe_sites.push(UnsafeSite { line, kind: UnsafeKind::Other });
        }
    }
}

fn line_of_unsafe(tokens: TokenStream) -> Option<usize> {
    tokens.into_iter().find_map(|token| match token {
        TokenTree::Ident(ident) if ident == "unsafe" => Some(ident.span().start().line),
        TokenTree::Group(group) => line_of_unsafe(group.stream()),
        TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse("host/x/src/a.rs", text).unwrap()
    }

    #[test]
    fn functions_are_measured_from_signature_to_brace() {
        let source = parse("/// Doc.\n#[inline]\npub fn f() {\n    1;\n}\nimpl A {\n    fn g() {}\n}\n");
        let measured: Vec<_> = source.functions.iter().map(|f| (f.name.as_str(), f.line, f.lines)).collect();
        assert_eq!(measured, [("f", 3, 3), ("A::g", 7, 1)]);
    }

    #[test]
    fn only_what_exists_in_tests_is_test_code() {
        let source = parse(
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n#[cfg(not(test))]\nfn c() {}\n\
             #[cfg(any(test, fuzzing))]\nfn d() {}\n",
        );
        let tests: Vec<_> = (1..=9).filter(|line| source.is_test_line(*line)).collect();
        assert_eq!(tests, [2, 3, 4, 5, 8, 9]);
        assert_eq!(source.lines_without_tests(), 3);
    }

    #[test]
    fn every_form_of_unsafe_is_seen() {
        let source = parse(
            "fn a() { unsafe { b() } }\nunsafe fn b() {}\nunsafe impl Send for A {}\n\
             unsafe extern \"C\" { fn c(); }\n#[unsafe(no_mangle)]\nfn d() {}\nfn e() { m!(unsafe { b() }); }\n",
        );
        let mut lines: Vec<_> = source.unsafe_sites.iter().map(|site| site.line).collect();
        lines.sort_unstable();
        assert_eq!(lines, [1, 2, 3, 4, 5, 7]);
    }

    #[test]
    fn public_items_include_fields_variants_and_methods() {
        let source = parse(
            "/// D.\npub struct A { pub b: u8, c: u8 }\npub enum E { F }\nimpl A { pub fn g() {} fn h() {} }\n\
             pub trait T { fn i(); }\nimpl T for A { fn i() {} }\npub(crate) fn j() {}\npub mod k;\n",
        );
        let items: Vec<_> =
            source.public_items.iter().map(|item| (item.name.as_str(), item.is_documented)).collect();
        assert_eq!(
            items,
            [
                ("A", true),
                ("A::b", false),
                ("E", false),
                ("E::F", false),
                ("A::g", false),
                ("T", false),
                ("T::i", false)
            ]
        );
    }

    #[test]
    fn hidden_items_are_not_public() {
        assert!(parse("#[doc(hidden)]\npub fn f() {}\n").public_items.is_empty());
    }

    #[test]
    fn files_in_test_folders_are_tests() {
        assert!(is_test_path("host/x/tests/a.rs"));
        assert!(is_test_path("tests/src/lib.rs"));
        assert!(is_test_path("host/x/src/tests.rs"));
        assert!(!is_test_path("plugin-api/testkit/src/lib.rs"));
    }
}
