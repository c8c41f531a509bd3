//! Cuts a byte stream into JSON texts. Clients send requests back to back,
//! with or without white space between them and in pieces of any size, so the
//! end of a text is found by counting brackets outside strings, once per byte.
//! Does not check the text any further; that is the parser's work.

use thiserror::Error;

/// Longest accepted request, in bytes.
pub const MAX_FRAME_BYTES: usize = 4 << 20;

/// Why a stream cannot be cut any further; the connection ends.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// A text that is no object and no array.
    #[error("expected a JSON object or array, found byte {byte:#04x}")]
    NotJson {
        /// The first byte of the text.
        byte: u8,
    },
    /// A text longer than [`MAX_FRAME_BYTES`].
    #[error("request longer than {MAX_FRAME_BYTES} bytes")]
    TooLong,
}

/// The cutter: bytes in by [`Framer::push`], texts out by [`Framer::next_frame`].
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already looked at; `0 <= scanned <= buffer.len()`.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Framer {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// True if no byte of an unfinished text is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next whole text, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// The stream is no sequence of JSON objects and arrays, or a text is too long.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        if self.depth == 0 {
            self.skip_white_space();
        }
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if self.scanned >= MAX_FRAME_BYTES {
                return Err(FrameError::TooLong);
            }
            self.scanned += 1;
            if self.ends_text(byte)? {
                let rest = self.buffer.split_off(self.scanned);
                self.scanned = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
        }
        Ok(None)
    }

    fn skip_white_space(&mut self) {
        let blanks = self.buffer.iter().take_while(|byte| byte.is_ascii_whitespace() || **byte == 0).count();
        self.buffer.drain(..blanks);
    }

    fn ends_text(&mut self, byte: u8) -> Result<bool, FrameError> {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(false);
        }
        match byte {
            b'{' | b'[' => self.depth += 1,
            _ if self.depth == 0 => return Err(FrameError::NotJson { byte }),
            b'"' => self.in_string = true,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        Ok(self.depth == 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(input: &[u8], frames: &[&str], end: Result<(), FrameError>) {
        for piece in [1, 2, 7, input.len().max(1)] {
            let mut framer = Framer::default();
            let mut found = Vec::new();
            let mut result = Ok(());
            'stream: for bytes in input.chunks(piece) {
                framer.push(bytes);
                loop {
                    match framer.next_frame() {
                        Ok(Some(frame)) => found.push(String::from_utf8(frame).unwrap()),
                        Ok(None) => break,
                        Err(error) => {
                            result = Err(error);
                            break 'stream;
                        }
                    }
                }
            }
            assert_eq!(
                (found.as_slice(), &result),
                (frames.map_strings().as_slice(), &end),
                "pieces of {piece}"
            );
        }
    }

    trait Strings {
        fn map_strings(&self) -> Vec<String>;
    }

    impl Strings for &[&str] {
        fn map_strings(&self) -> Vec<String> {
            self.iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn texts_are_cut_with_and_without_space_between_them() {
        check(
            br#"{"a":1}{"b":[2]} [3]
 {"c":{}}"#,
            &[r#"{"a":1}"#, r#"{"b":[2]}"#, "[3]", r#"{"c":{}}"#],
            Ok(()),
        );
    }

    #[test]
    fn brackets_and_quotes_inside_strings_do_not_count() {
        check(br#"{"a":"}]\"{\\"}{"b":1}"#, &[r#"{"a":"}]\"{\\"}"#, r#"{"b":1}"#], Ok(()));
    }

    #[test]
    fn a_bare_word_ends_the_stream() {
        check(b"{}x", &["{}"], Err(FrameError::NotJson { byte: b'x' }));
    }

    #[test]
    fn an_endless_text_ends_the_stream_at_the_bound() {
        let mut framer = Framer::default();
        framer.push(b"[\"");
        framer.push(&vec![b'a'; MAX_FRAME_BYTES - 2]);
        assert_eq!(framer.next_frame(), Ok(None));
        framer.push(b"a");
        assert_eq!(framer.next_frame(), Err(FrameError::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_cut_or_refused_without_losing_any(bytes: Vec<u8>) {
            let mut framer = Framer::default();
            framer.push(&bytes);
            let mut taken = 0;
            while let Ok(Some(frame)) = framer.next_frame() {
                prop_assert!(!frame.is_empty());
                taken += frame.len();
            }
            prop_assert!(taken <= bytes.len());
        }
    }
}
