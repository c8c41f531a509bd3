//! Macros that make the crate's two kinds of open newtype, and its layout checks.
//!
//! `open_enum!` is a code of which the specification names some values and
//! every other value stays representable; `bit_set!` is a word of flags. Both
//! hold the wire form, so wire structures embed them directly. A Rust `enum`
//! was rejected: an unknown discriminant from a peer would be undefined
//! behaviour, and dropping it would lose what has to be logged.

/// Makes an open enumeration over `u8`, or over a little-endian `U16`/`U32`.
macro_rules! open_enum {
    ($(#[$meta:meta])* pub struct $Name:ident(u8) { $($Const:ident = $value:expr, $text:literal;)* }) => {
        open_enum!(@make $(#[$meta])* $Name, u8, u8, { $($Const = $value, $text;)* });
        impl $Name {
            /// The value, known or not.
            #[must_use]
            pub const fn get(self) -> u8 {
                self.0
            }

            /// Wraps a value, known or not.
            #[must_use]
            pub const fn new(value: u8) -> Self {
                Self(value)
            }
        }
    };
    ($(#[$meta:meta])* pub struct $Name:ident($Wire:ident as $Native:ident) {
        $($Const:ident = $value:expr, $text:literal;)*
    }) => {
        open_enum!(@make $(#[$meta])* $Name, $Wire, $Native, { $($Const = $value, $text;)* });
        impl $Name {
            /// The value, known or not.
            #[must_use]
            pub const fn get(self) -> $Native {
                self.0.get()
            }

            /// Wraps a value, known or not.
            #[must_use]
            pub const fn new(value: $Native) -> Self {
                Self($Wire::new(value))
            }
        }
    };
    (@make $(#[$meta:meta])* $Name:ident, $Wire:ident, $Native:ident,
     { $($Const:ident = $value:expr, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        #[derive(::zerocopy::FromBytes, ::zerocopy::Immutable, ::zerocopy::IntoBytes)]
        #[derive(::zerocopy::KnownLayout, ::zerocopy::Unaligned)]
        #[repr(transparent)]
        pub struct $Name(pub $Wire);

        impl $Name {
            $(
                #[doc = concat!($text, ".")]
                pub const $Const: Self = Self::new($value);
            )*

            /// Every value this crate has a name for.
            pub const KNOWN: &'static [Self] = &[$(Self::$Const),*];

            /// The specification's words for this value, `None` if it has none here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.get() {
                    $(value if value == $value => Some($text),)*
                    _ => None,
                }
            }

            /// Whether this crate has a name for the value.
            #[must_use]
            pub const fn is_known(self) -> bool {
                self.name().is_some()
            }
        }

        impl ::core::fmt::Debug for $Name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                let name = self.name().unwrap_or("unknown");
                write!(f, "{}({:#x}, {name})", stringify!($Name), self.get())
            }
        }

        impl ::core::fmt::Display for $Name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "unknown {:#x}", self.get()),
                }
            }
        }

        impl From<$Native> for $Name {
            fn from(value: $Native) -> Self {
                Self::new(value)
            }
        }
    };
}

/// Makes a word of flags over `u8`, or over a little-endian `U16`/`U32`/`U64`.
macro_rules! bit_set {
    ($(#[$meta:meta])* pub struct $Name:ident(u8) { $($Const:ident = $value:expr, $text:literal;)* }) => {
        bit_set!(@make $(#[$meta])* $Name, u8, u8, { $($Const = $value, $text;)* });
        impl $Name {
            /// All bits, named or not.
            #[must_use]
            pub const fn get(self) -> u8 {
                self.0
            }

            /// Wraps the bits as they are.
            #[must_use]
            pub const fn new(bits: u8) -> Self {
                Self(bits)
            }
        }
    };
    ($(#[$meta:meta])* pub struct $Name:ident($Wire:ident as $Native:ident) {
        $($Const:ident = $value:expr, $text:literal;)*
    }) => {
        bit_set!(@make $(#[$meta])* $Name, $Wire, $Native, { $($Const = $value, $text;)* });
        impl $Name {
            /// All bits, named or not.
            #[must_use]
            pub const fn get(self) -> $Native {
                self.0.get()
            }

            /// Wraps the bits as they are.
            #[must_use]
            pub const fn new(bits: $Native) -> Self {
                Self($Wire::new(bits))
            }
        }
    };
    (@make $(#[$meta:meta])* $Name:ident, $Wire:ident, $Native:ident,
     { $($Const:ident = $value:expr, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        #[derive(::zerocopy::FromBytes, ::zerocopy::Immutable, ::zerocopy::IntoBytes)]
        #[derive(::zerocopy::KnownLayout, ::zerocopy::Unaligned)]
        #[repr(transparent)]
        pub struct $Name(pub $Wire);

        #[allow(dead_code, reason = "a word without a multi-bit field needs no field access")]
        impl $Name {
            $(
                #[doc = concat!($text, ".")]
                pub const $Const: Self = Self::new($value);
            )*

            /// No bit set.
            pub const EMPTY: Self = Self::new(0);

            /// Every bit this crate has a name for.
            pub const KNOWN: Self = Self::new(0 $(| $value)*);

            /// Whether every bit of `other` is set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.get() & other.get() == other.get()
            }

            /// Whether any bit of `other` is set.
            #[must_use]
            pub const fn intersects(self, other: Self) -> bool {
                self.get() & other.get() != 0
            }

            /// Whether no bit is set.
            #[must_use]
            pub const fn is_empty(self) -> bool {
                self.get() == 0
            }

            /// These bits and those of `other`.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self::new(self.get() | other.get())
            }

            /// These bits without those of `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self::new(self.get() & !other.get())
            }

            /// The field of `width` bits at bit `low`.
            const fn field(self, low: u32, width: u32) -> $Native {
                (self.get() >> low) & ($Native::MAX >> ($Native::BITS - width))
            }

            /// This word with the field of `width` bits at bit `low` replaced; excess bits of `value` are cut.
            const fn with_field(self, low: u32, width: u32, value: $Native) -> Self {
                let mask = $Native::MAX >> ($Native::BITS - width);
                Self::new((self.get() & !(mask << low)) | ((value & mask) << low))
            }
        }

        impl ::core::ops::BitOr for $Name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                self.with(other)
            }
        }

        impl ::core::fmt::Debug for $Name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                write!(f, "{}({:#x}", stringify!($Name), self.get())?;
                $(
                    if self.contains(Self::$Const) {
                        f.write_str(concat!(" ", stringify!($Const)))?;
                    }
                )*
                f.write_str(")")
            }
        }
    };
}

/// Asserts at compile time the size of a wire structure and the offsets of the named fields.
macro_rules! assert_layout {
    ($Type:ty, $size:expr $(, $field:ident: $offset:expr)* $(,)?) => {
        const _: () = {
            assert!(::core::mem::size_of::<$Type>() == $size);
            assert!(::core::mem::align_of::<$Type>() == 1);
            $(assert!(::core::mem::offset_of!($Type, $field) == $offset);)*
        };
    };
}
