//! The difference between two texts as a unified diff: for `patch` and `git apply` byte for byte, for people with
//! colours.
//!
//! Knows lines (which end in LF, with or without a CR before it, as both programs see them) and a name; knows nothing
//! of XML. What differs is found by the crate `similar`; the form is that of GNU diffutils ("Detailed Unified").

use similar::{Algorithm, ChangeTag, DiffOp, capture_diff_slices, group_diff_ops};

/// Unchanged lines around a change.
const CONTEXT: usize = 3;

/// A diff that `patch -p1` and `git apply` take; empty when the texts are equal.
///
/// `name` is the file to patch; a leading `/` or `./` is dropped, as `a/` and `b/` take its place.
#[must_use]
pub fn unified(name: &str, old: &[u8], new: &[u8]) -> Vec<u8> {
    render(name, old, new, &Colours::NONE)
}

/// The same diff in ANSI colours.
#[must_use]
pub fn coloured(name: &str, old: &[u8], new: &[u8]) -> Vec<u8> {
    render(name, old, new, &Colours::ANSI)
}

/// What stands before a line of each kind, and after any of them.
struct Colours {
    header: &'static str,
    hunk: &'static str,
    removed: &'static str,
    added: &'static str,
    end: &'static str,
}

impl Colours {
    const NONE: Colours = Colours { header: "", hunk: "", removed: "", added: "", end: "" };
    const ANSI: Colours = Colours {
        header: "\x1b[1m",
        hunk: "\x1b[36m",
        removed: "\x1b[31m",
        added: "\x1b[32m",
        end: "\x1b[0m",
    };
}

fn render(name: &str, old: &[u8], new: &[u8], colours: &Colours) -> Vec<u8> {
    let old: Vec<&[u8]> = old.split_inclusive(|&byte| byte == b'\n').collect();
    let new: Vec<&[u8]> = new.split_inclusive(|&byte| byte == b'\n').collect();
    let mut out = Vec::new();
    if old == new {
        return out;
    }
    for (mark, side) in [("---", 'a'), ("+++", 'b')] {
        line(&mut out, colours.header, format!("{mark} {}\n", file(side, name)).as_bytes(), colours.end);
    }
    for group in group_diff_ops(capture_diff_slices(Algorithm::Myers, &old, &new), CONTEXT) {
        line(&mut out, colours.hunk, hunk(&group).as_bytes(), colours.end);
        for change in group.iter().flat_map(|op| op.iter_changes(&old, &new)) {
            let (colour, sign) = match change.tag() {
                ChangeTag::Equal => ("", b' '),
                ChangeTag::Delete => (colours.removed, b'-'),
                ChangeTag::Insert => (colours.added, b'+'),
            };
            let text = [&[sign], change.value()].concat();
            line(&mut out, colour, &text, if colour.is_empty() { "" } else { colours.end });
            if !text.ends_with(b"\n") {
                out.extend_from_slice(b"\n\\ No newline at end of file\n");
            }
        }
    }
    out
}

/// Writes a line with its colour ending before its line break.
fn line(out: &mut Vec<u8>, colour: &str, text: &[u8], end: &str) {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let body = body.strip_suffix(b"\r").unwrap_or(body);
    out.extend_from_slice(colour.as_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(end.as_bytes());
    out.extend_from_slice(&text[body.len()..]);
}

/// `@@ -12,7 +12,8 @@`
fn hunk(group: &[DiffOp]) -> String {
    let side = |range: fn(&DiffOp) -> std::ops::Range<usize>| {
        let start = group.first().map_or(0, |op| range(op).start);
        let end = group.last().map_or(start, |op| range(op).end);
        match end - start {
            // An empty side names the line before it.
            0 => format!("{start},0"),
            1 => format!("{}", start + 1),
            length => format!("{},{length}", start + 1),
        }
    };
    format!("@@ -{} +{} @@\n", side(DiffOp::old_range), side(DiffOp::new_range))
}

/// A file name as both programs read it: quoted where it holds what would end it, and with a tab after it where it
/// holds a blank.
fn file(side: char, name: &str) -> String {
    let name = name.trim_start_matches("./").trim_start_matches('/');
    let name = format!("{side}/{name}");
    if name.chars().any(|c| c.is_control() || c == '"' || c == '\\') {
        let mut quoted = String::from('"');
        for byte in name.bytes() {
            match byte {
                b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
                b' '..=b'~' => quoted.push(char::from(byte)),
                _ => quoted.push_str(&format!("\\{byte:03o}")),
            }
        }
        quoted.push('"');
        return quoted;
    }
    if name.contains(' ') { name + "\t" } else { name }
}
