//! Fixed-length ASCII fields: serial number, model, firmware revision, transport addresses.
//!
//! The specification pads such fields with spaces; many implementations pad
//! with NUL instead, so reading strips both and writing pads with spaces.
//! NVMe Qualified Names are UTF-8 and NUL-terminated: see [`crate::nqn`].

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A left-justified ASCII field of `N` bytes.
///
/// The convention is in the Base specification's chapter on conventions ("ASCII strings").
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct AsciiField<const N: usize>(pub [u8; N]);

impl<const N: usize> AsciiField<N> {
    /// The field holding `text`, padded with spaces.
    ///
    /// `None` if `text` is longer than the field or holds anything but printable ASCII.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        if text.len() > N || !text.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
            return None;
        }
        let mut field = [b' '; N];
        for (to, from) in field.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Some(Self(field))
    }

    /// The text without its padding; `None` if it is not printable ASCII.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        let text = self.without_padding();
        if !text.iter().all(|byte| (0x20..=0x7e).contains(byte)) {
            return None;
        }
        core::str::from_utf8(text).ok()
    }

    /// The bytes up to the padding, whatever they are.
    ///
    /// A NUL ends the text even if something follows it.
    #[must_use]
    pub fn without_padding(&self) -> &[u8] {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(N);
        let text = self.0.get(..end).unwrap_or(&self.0);
        let used = text.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        text.get(..used).unwrap_or(text)
    }
}

impl<const N: usize> fmt::Debug for AsciiField<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str() {
            Some(text) => write!(f, "{text:?}"),
            None => write!(f, "{:02x?}", self.without_padding()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_and_nul_padding_are_both_stripped() {
        assert_eq!(AsciiField(*b"ab  ").as_str(), Some("ab"));
        assert_eq!(AsciiField(*b"ab\0\0").as_str(), Some("ab"));
        assert_eq!(AsciiField(*b"ab \0").as_str(), Some("ab"));
        assert_eq!(AsciiField(*b"\0\0\0\0").as_str(), Some(""));
    }

    #[test]
    fn unprintable_text_is_refused_both_ways() {
        assert_eq!(AsciiField(*b"a\x01b ").as_str(), None);
        assert_eq!(AsciiField::<4>::new("a\n"), None);
    }

    #[test]
    fn text_longer_than_the_field_is_refused() {
        assert_eq!(AsciiField::<4>::new("abcde"), None);
        assert_eq!(AsciiField::<4>::new("abcd"), Some(AsciiField(*b"abcd")));
        assert_eq!(AsciiField::<4>::new("a"), Some(AsciiField(*b"a   ")));
    }
}
