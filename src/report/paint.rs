//! Colour, where it is wanted.

/// Whether text is coloured with ANSI escapes.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Headings and the answer itself.
    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What is well.
    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// What is wrong.
    pub(super) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    /// What is uncertain.
    pub(super) fn doubtful(self, text: &str) -> String {
        self.with("33", text)
    }

    /// What is there for completeness.
    pub(super) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }
}
