//! What a verb has to say, and the terminal that it is said to.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Read, Seek, Write};
use std::process::ExitCode;

use tempfile::SpooledTempFile;

use super::arguments::Colour;
use crate::report::Paint;
use crate::text::{is_plain, printable};

/// The whole output of a verb.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// For standard output.
    pub(super) stdout: Vec<u8>,
    /// For standard output, after that.
    pub(super) long: Option<Long>,
    /// For standard error, a line each: what the reader of the output should know.
    pub(super) notes: Vec<String>,
    /// The answer is no.
    pub(super) no: bool,
}

impl Output {
    /// An output that is fine.
    pub(super) fn text(text: impl Into<Vec<u8>>) -> Output {
        Output { stdout: text.into(), ..Output::default() }
    }
}

/// A text that may be longer than one wants to keep in memory before the first byte of it is printed: what exceeds a
/// bound goes to a temporary file without a name.
#[derive(Debug)]
pub(super) struct Long {
    file: SpooledTempFile,
    empty: bool,
}

/// What is kept in memory.
const SHORT: usize = 1 << 20;

impl Default for Long {
    fn default() -> Long {
        Long { file: SpooledTempFile::new(SHORT), empty: true }
    }
}

impl Long {
    /// Adds a part, and before it, unless it is the first, what stands between parts.
    pub(super) fn push(&mut self, between: &str, part: &str) -> Result<(), Failure> {
        let between = if std::mem::take(&mut self.empty) { "" } else { between };
        let written =
            self.file.write_all(between.as_bytes()).and_then(|()| self.file.write_all(part.as_bytes()));
        written.map_err(|error| {
            Failure::new(format!(
                "a temporary file in {}: {error}; name a folder with room in TMPDIR",
                std::env::temp_dir().display()
            ))
        })
    }

    fn copy(&mut self, to: &mut impl Write) -> io::Result<()> {
        self.file.rewind()?;
        if io::stdout().is_terminal() {
            let mut bytes = Vec::new();
            self.file.read_to_end(&mut bytes)?;
            return to.write_all(&for_terminal(&bytes));
        }
        io::copy(&mut self.file, to).map(|_| ())
    }
}

/// Why there is no output: one message for each thing that is wrong.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    messages: Vec<String>,
    status: u8,
}

impl Failure {
    /// Usage, input, or a command that failed.
    pub(super) fn new(message: impl Display) -> Failure {
        Failure { messages: vec![message.to_string()], status: 2 }
    }

    /// The answer is no, and so nothing may be printed.
    pub(super) fn refusal(message: impl Display) -> Failure {
        Failure { status: 1, ..Failure::new(message) }
    }

    /// All of them together.
    pub(super) fn all(failures: Vec<Failure>) -> Failure {
        Failure { messages: failures.into_iter().flat_map(|failure| failure.messages).collect(), status: 2 }
    }
}

/// JSON that cannot be written is a defect, and said like any failure.
impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::new(format!("the answer cannot be written as JSON: {error}"))
    }
}

/// Where output goes, and whether it is coloured.
#[derive(Copy, Clone, Debug)]
pub(super) struct Terminal {
    colour: bool,
}

impl Terminal {
    pub(super) fn new() -> Terminal {
        Terminal { colour: false }
    }

    /// `auto` is a terminal, and <https://no-color.org>.
    pub(super) fn with_colour(self, colour: Colour) -> Terminal {
        let colour = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
                !unwanted && !dumb && io::stdout().is_terminal()
            }
        };
        Terminal { colour }
    }

    pub(super) fn paint(self) -> Paint {
        Paint(self.colour)
    }

    /// Prints an output. A reader that has gone away (`barfit … | head`) has read enough.
    pub(super) fn show(self, output: Output) -> ExitCode {
        let mut stdout = io::stdout().lock();
        let long = |stdout: &mut _| output.long.map_or(Ok(()), |mut long| long.copy(stdout));
        let shown = stdout.write_all(&for_terminal(&output.stdout)).and_then(|()| long(&mut stdout));
        match shown.and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                return self.fail(&Failure::new(format!("standard output: {error}")));
            }
            _ => {}
        }
        output.notes.iter().for_each(|note| say(note));
        ExitCode::from(u8::from(output.no))
    }

    /// Says what is wrong.
    pub(super) fn fail(self, failure: &Failure) -> ExitCode {
        failure.messages.iter().for_each(|message| say(message));
        ExitCode::from(failure.status)
    }
}

/// What goes to standard output, as a terminal may have it: a file or a program gets every byte as it is, but a
/// definition that is shown may hold what a terminal obeys. Only colours pass.
pub(super) fn for_terminal(bytes: &[u8]) -> Cow<'_, [u8]> {
    if io::stdout().is_terminal() { Cow::Owned(tamed(bytes).into_bytes()) } else { Cow::Borrowed(bytes) }
}

/// The text without what a terminal obeys, but for line ends, tabs and colours (`ESC [ numbers m`).
fn tamed(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut tame = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '\x1b' {
            let colour = rest
                .as_str()
                .strip_prefix('[')
                .and_then(|rest| rest.split_once('m'))
                .map(|(numbers, _)| numbers);
            if let Some(numbers) = colour.filter(|n| n.bytes().all(|b| b.is_ascii_digit() || b == b';')) {
                tame.push_str(&format!("\x1b[{numbers}m"));
                rest = rest.as_str()[numbers.len() + 2..].chars();
                continue;
            }
        }
        tame.push(if matches!(c, '\n' | '\t') || is_plain(c) { c } else { '\u{fffd}' });
    }
    tame
}

fn say(message: &str) {
    // Names and texts of others may hold what a terminal obeys.
    let message = message.lines().map(printable).collect::<Vec<_>>().join("\n");
    // Where standard error cannot be written to there is no place left to say so.
    let _ = writeln!(io::stderr().lock(), "barfit: {message}");
}

#[cfg(test)]
mod tests {
    use super::tamed;

    #[test]
    fn a_terminal_gets_text_and_colours() {
        for (text, tame) in [
            ("\x1b[31m-a\x1b[0m\tb\n", "\x1b[31m-a\x1b[0m\tb\n"),
            ("\x1b[2Ja\x1b]0;x\x07", "\u{fffd}[2Ja\u{fffd}]0;x\u{fffd}"),
            ("\u{9b}31m\r\x7f\u{202e}", "\u{fffd}31m\u{fffd}\u{fffd}\u{fffd}"),
            ("\x1b[", "\u{fffd}["),
        ] {
            assert_eq!(tamed(text.as_bytes()), tame, "{text:?}");
        }
    }
}
