//! Columns of text that line up, and paragraphs that fit.

use super::Paint;
use crate::text::is_plain;

/// Width that texts for people are made for, in characters.
pub(super) const WIDTH: usize = 100;

/// Which side of a column the cells stick to.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// How a cell is coloured.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
    Doubtful,
    Faint,
}

impl Tone {
    pub(super) fn paint(self, paint: Paint, text: &str) -> String {
        match self {
            Tone::Plain => text.to_owned(),
            Tone::Good => paint.good(text),
            Tone::Bad => paint.bad(text),
            Tone::Doubtful => paint.doubtful(text),
            Tone::Faint => paint.faint(text),
        }
    }
}

/// A table under headings: as wide as its cells, two blanks between columns.
pub(super) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<(String, Tone)>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Side)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells that are missing are empty.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = (String, Tone)>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text, each line behind `indent` blanks.
    pub(super) fn text(&self, indent: usize, paint: Paint) -> String {
        let width = |at: usize, heading: &str| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|(cell, _)| cell.chars().count());
            cells.max().unwrap_or(0).max(heading.chars().count())
        };
        let widths: Vec<usize> =
            self.columns.iter().enumerate().map(|(at, (heading, _))| width(at, heading)).collect();
        let headings: Vec<(String, Tone)> =
            self.columns.iter().map(|(heading, _)| ((*heading).to_owned(), Tone::Faint)).collect();
        let mut out = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = " ".repeat(indent);
            // Blanks are added before the next cell, so that no line ends in them.
            let mut owed = 0;
            for (at, (cell, tone)) in row.iter().enumerate() {
                let (Some(&(_, side)), Some(&width)) = (self.columns.get(at), widths.get(at)) else { break };
                let missing = width - cell.chars().count().min(width);
                let (before, after) = if side == Side::Right { (missing, 0) } else { (0, missing) };
                if !cell.is_empty() {
                    line.push_str(&" ".repeat(owed + before));
                    line.push_str(&tone.paint(paint, cell));
                    owed = after + 2;
                } else {
                    owed += width + 2;
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Breaks a text into lines of at most [`WIDTH`] characters: the first behind `first`, the others behind as many
/// blanks. A word that is longer stays whole.
pub(super) fn paragraph(first: &str, text: &str) -> String {
    let indent = first.chars().count();
    let mut out = String::from(first);
    let mut column = indent;
    for (at, word) in text.split_whitespace().enumerate() {
        let length = word.chars().count();
        if at > 0 && column + 1 + length > WIDTH {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else if at > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out.push('\n');
    out
}

/// A text from elsewhere without what a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if is_plain(c) { c } else { '\u{fffd}' }).collect()
}

/// A text of at most `width` characters, the end left out if need be; control characters replaced.
pub(super) fn shortened(text: &str, width: usize) -> String {
    let text = &printable(text);
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_line_ends_in_blanks() {
        let mut table = Table::new(&[("name", Side::Left), ("size", Side::Right), ("what", Side::Left)]);
        let plain = |cells: &[&str]| cells.iter().map(|c| ((*c).to_owned(), Tone::Plain)).collect::<Vec<_>>();
        table.row(plain(&["a", "128 GiB", "GPU"]));
        table.row(plain(&["", "16 MiB"]));
        table.row(plain(&["longer", "", "NIC"]));
        assert_eq!(
            table.text(2, Paint(false)),
            "  name       size  what\n  a       128 GiB  GPU\n           16 MiB\n  longer           NIC\n"
        );
    }

    #[test]
    fn paragraphs_break_between_words() {
        let text = paragraph("- ", &"word ".repeat(30));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(text.lines().nth(1), Some(format!("  {}", "word ".repeat(11).trim_end()).as_str()));
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(shortened("abcd", 4), "abcd");
        assert_eq!(shortened("a\u{9b}31m\nb", 9), "a\u{fffd}31m\u{fffd}b");
    }
}
