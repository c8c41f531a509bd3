//! Splits Rust text into code and comments, line by line.
//!
//! The syntax tree has no comments and no layout; many rules are about exactly
//! these. Strings become blanks in the code half, so that a search for code
//! never finds prose. Not a lexer: it knows only what can hide a comment.

/// One line, split in two.
#[derive(Debug, Default, Clone)]
pub struct Line {
    /// The code with comments removed and the contents of strings blanked.
    pub code: String,
    /// The comment text with its `//`, `///`, `//!` or `/*` marks.
    pub comment: String,
}

impl Line {
    /// Neither code nor comment.
    pub fn is_blank(&self) -> bool {
        self.code.trim().is_empty() && self.comment.is_empty()
    }

    /// A comment with no code beside it.
    pub fn is_comment(&self) -> bool {
        self.code.trim().is_empty() && !self.comment.is_empty()
    }

    /// Some code, with or without a comment.
    pub fn is_code(&self) -> bool {
        !self.code.trim().is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Code,
    LineComment,
    BlockComment { depth: u32 },
    String,
    RawString { hashes: usize },
}

/// Splits a whole file; line `n` (1-based) is element `n - 1`.
pub fn split(text: &str) -> Vec<Line> {
    let mut splitter = Splitter { chars: text.chars().collect(), at: 0, lines: vec![Line::default()] };
    let mut state = State::Code;
    while splitter.at < splitter.chars.len() {
        if splitter.chars[splitter.at] == '\n' {
            splitter.lines.push(Line::default());
            splitter.at += 1;
            if state == State::LineComment {
                state = State::Code;
            }
            continue;
        }
        state = match state {
            State::Code => splitter.code(),
            State::LineComment => splitter.comment(state),
            State::BlockComment { depth } => splitter.block_comment(depth),
            State::String => splitter.string(),
            State::RawString { hashes } => splitter.raw_string(hashes),
        };
    }
    splitter.lines
}

struct Splitter {
    chars: Vec<char>,
    at: usize,
    lines: Vec<Line>,
}

impl Splitter {
    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(index, c)| self.chars.get(self.at + index) == Some(&c))
    }

    fn line(&mut self) -> &mut Line {
        if self.lines.is_empty() {
            self.lines.push(Line::default());
        }
        let last = self.lines.len() - 1;
        &mut self.lines[last]
    }

    /// Moves `count` characters to the code half.
    fn take_code(&mut self, count: usize) {
        for _ in 0..count {
            let c = self.chars[self.at];
            self.line().code.push(c);
            self.at += 1;
        }
    }

    /// Moves `count` characters to the comment half.
    fn take_comment(&mut self, count: usize) {
        for _ in 0..count {
            let c = self.chars[self.at];
            self.line().comment.push(c);
            self.at += 1;
        }
    }

    /// Puts a blank where a string's character stood.
    fn blank(&mut self) {
        self.line().code.push(' ');
        self.at += 1;
    }

    fn code(&mut self) -> State {
        if self.starts_with("//") {
            self.take_comment(2);
            return State::LineComment;
        }
        if self.starts_with("/*") {
            self.take_comment(2);
            return State::BlockComment { depth: 1 };
        }
        if let Some((hashes, length)) = self.raw_string_start() {
            self.take_code(length);
            return State::RawString { hashes };
        }
        match self.chars[self.at] {
            '"' => {
                self.take_code(1);
                State::String
            }
            '\'' => {
                self.char_or_lifetime();
                State::Code
            }
            _ => {
                self.take_code(1);
                State::Code
            }
        }
    }

    /// `r"`, `br##"` and so on: number of hashes and length of the opening.
    fn raw_string_start(&self) -> Option<(usize, usize)> {
        let before = self.at.checked_sub(1).map(|index| self.chars[index]);
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            return None;
        }
        let prefix = ["r", "br", "cr"].iter().find(|prefix| {
            self.starts_with(prefix) && matches!(self.chars.get(self.at + prefix.len()), Some('"' | '#'))
        })?;
        let rest = &self.chars[self.at + prefix.len()..];
        let hashes = rest.iter().take_while(|c| **c == '#').count();
        // `r#name` is an identifier.
        (rest.get(hashes) == Some(&'"')).then_some((hashes, prefix.len() + hashes + 1))
    }

    /// `'x'`, `'\n'` and `'\u{1F600}'` are characters, `'a` is a lifetime.
    fn char_or_lifetime(&mut self) {
        self.take_code(1);
        let is_escape = self.chars.get(self.at) == Some(&'\\');
        let is_char = is_escape || self.chars.get(self.at + 1) == Some(&'\'');
        if !is_char {
            return;
        }
        if is_escape {
            self.blank();
        }
        if self.at < self.chars.len() && self.chars[self.at] != '\n' {
            self.blank();
        }
        while self.at < self.chars.len() && !matches!(self.chars[self.at], '\'' | '\n') {
            self.blank();
        }
        if self.at < self.chars.len() && self.chars[self.at] == '\'' {
            self.take_code(1);
        }
    }

    fn comment(&mut self, state: State) -> State {
        self.take_comment(1);
        state
    }

    fn block_comment(&mut self, depth: u32) -> State {
        if self.starts_with("/*") {
            self.take_comment(2);
            return State::BlockComment { depth: depth + 1 };
        }
        if self.starts_with("*/") {
            self.take_comment(2);
            return if depth == 1 { State::Code } else { State::BlockComment { depth: depth - 1 } };
        }
        self.take_comment(1);
        State::BlockComment { depth }
    }

    fn string(&mut self) -> State {
        match self.chars[self.at] {
            '"' => {
                self.take_code(1);
                State::Code
            }
            '\\' if self.chars.get(self.at + 1).is_some_and(|c| *c != '\n') => {
                self.blank();
                self.blank();
                State::String
            }
            _ => {
                self.blank();
                State::String
            }
        }
    }

    fn raw_string(&mut self, hashes: usize) -> State {
        let closing: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
        if self.starts_with(&closing) {
            self.take_code(hashes + 1);
            return State::Code;
        }
        self.blank();
        State::RawString { hashes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, code: &str, comment: &str) {
        let lines = split(text);
        assert_eq!(lines.len(), 1, "{text}");
        assert_eq!((lines[0].code.as_str(), lines[0].comment.as_str()), (code, comment), "{text}");
    }

    #[test]
    fn comments_leave_the_code() {
        check("a(); // b", "a(); ", "// b");
        check("/// doc", "", "/// doc");
        check("a /* b /* c */ d */ e", "a  e", "/* b /* c */ d */");
    }

    #[test]
    fn strings_hide_comment_marks() {
        check(r#"f("// no", 1) // yes"#, r#"f("     ", 1) "#, "// yes");
        check(r#"f("\"//")"#, r#"f("    ")"#, "");
        check(r###"f(r#"a" // b"#)"###, r###"f(r#"       "#)"###, "");
        check("r#type // c", "r#type ", "// c");
    }

    #[test]
    fn characters_and_lifetimes_are_told_apart() {
        check("m('\"', 'a', '\\'') // c", "m(' ', ' ', '  ') ", "// c");
        check("fn f<'a>(x: &'a str) // c", "fn f<'a>(x: &'a str) ", "// c");
        check("'\\u{1F600}' // c", "'         ' ", "// c");
    }

    #[test]
    fn a_string_over_several_lines_stays_a_string() {
        let lines = split("let s = \"a\n// b\n\"; // c");
        assert_eq!(lines[1].code.trim(), "");
        assert_eq!(lines[1].comment, "");
        assert_eq!(lines[2].comment, "// c");
    }

    #[test]
    fn kinds_of_lines() {
        let lines = split("\n// c\nx // d");
        assert!(lines[0].is_blank() && lines[1].is_comment() && lines[2].is_code());
    }
}
