//! What is wrong with an input text, and where.

use std::fmt;

use crate::text::printable;

/// An input that cannot be read as a domain. Printed after the file's name: `barfit: FILE:LINE:COL: message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub col: u32,
    /// What is wrong, and what to do.
    pub message: String,
}

/// `LINE:COL: message`.
impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.col, self.message)
    }
}

impl std::error::Error for ParseError {}

impl ParseError {
    /// An error at a byte offset of `text`. An offset past the end or inside a character counts as the place before it.
    pub fn at(text: &str, offset: usize, message: impl Into<String>) -> ParseError {
        let (line, col) = position(text, offset);
        ParseError { line, col, message: printable(&message.into()) }
    }
}

/// Line and column, both from 1, of a byte offset. A byte order mark takes no column.
pub(super) fn position(text: &str, offset: usize) -> (u32, u32) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = 1 + before.bytes().filter(|&b| b == b'\n').count();
    let col = 1 + before[line_start..].chars().filter(|&c| c != '\u{feff}').count();
    (number(line), number(col))
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        let text = "\u{feff}<a>\r\n  <é b='1'/>\n</a>";
        for (needle, place) in [("<a>", (1, 1)), ("<é", (2, 3)), ("b=", (2, 6)), ("</a>", (3, 1))] {
            assert_eq!(position(text, text.find(needle).expect(needle)), place, "{needle}");
        }
        assert_eq!(position(text, 1 << 40), (3, 5));
        assert_eq!(position("", 0), (1, 1));
    }
}
