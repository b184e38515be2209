//! Edits as splices of byte ranges. Knows nothing of XML.

use std::ops::Range;

/// One edit: the bytes of `range` become `text`. An empty range inserts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Splice {
    pub(super) range: Range<usize>,
    pub(super) text: String,
}

/// The edits of one text, in any order until [`Splices::sorted`].
#[derive(Clone, Debug, Default)]
pub(super) struct Splices(Vec<Splice>);

impl Splices {
    pub(super) fn insert(&mut self, at: usize, text: impl Into<String>) {
        self.replace(at..at, text);
    }

    pub(super) fn remove(&mut self, range: Range<usize>) {
        self.replace(range, "");
    }

    pub(super) fn replace(&mut self, range: Range<usize>, text: impl Into<String>) {
        self.0.push(Splice { range, text: text.into() });
    }

    /// In the order of the text; insertions at one place stay in the order in which they were asked for, and stand
    /// before an edit of what follows. `None` when two edits overlap.
    pub(super) fn sorted(mut self) -> Option<Vec<Splice>> {
        self.0.sort_by_key(|splice| (splice.range.start, splice.range.end));
        let apart = self.0.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start);
        apart.then_some(self.0)
    }
}

/// The part `window` of `text` with those of the sorted `splices` that lie in it; `None` when one leaves the text.
pub(super) fn apply(text: &str, window: Range<usize>, splices: &[Splice]) -> Option<String> {
    let grown: usize = splices.iter().map(|splice| splice.text.len()).sum();
    let mut out = String::with_capacity(window.len() + grown);
    let mut at = window.start;
    for splice in splices {
        out.push_str(text.get(at..splice.range.start)?);
        out.push_str(&splice.text);
        at = splice.range.end;
    }
    out.push_str(text.get(at..window.end)?);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splices_apply_in_order() {
        let mut splices = Splices::default();
        splices.remove(4..6);
        splices.insert(4, "<");
        splices.insert(4, ">");
        splices.replace(0..1, "A");
        let sorted = splices.sorted().unwrap();
        assert_eq!(apply("abcdefgh", 0..8, &sorted).as_deref(), Some("Abcd<>gh"));
        assert_eq!(apply("abcdefgh", 0..5, &sorted), None, "an edit past the window");
    }

    #[test]
    fn overlaps_are_refused() {
        let mut splices = Splices::default();
        splices.remove(2..5);
        splices.insert(3, "x");
        assert_eq!(splices.sorted(), None);
    }
}
