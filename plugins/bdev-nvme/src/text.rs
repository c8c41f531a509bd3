//! Fixed-width text of identify pages.

/// The text of a padded field; what is not ASCII becomes `?`.
pub(crate) fn ascii(field: &[u8]) -> String {
    let text: String = field
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' })
        .collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_cut_and_foreign_bytes_are_shown_as_such() {
        assert_eq!(ascii(b"Tenon   "), "Tenon");
        assert_eq!(ascii(b"a\xffb\0 c"), "a?b");
        assert_eq!(ascii(b""), "");
    }
}
