//! The text of a domain as an XML tree: the gate that every input passes before anybody asks what it means.
//!
//! Knows XML and the bounds of what is reasonable; knows nothing of domains. The bounds are beyond what
//! libvirt takes: 16 MiB (its protocol carries 4 MiB, `REMOTE_STRING_MAX` in `src/remote/remote_protocol.x`) and 256
//! levels (`xmlParserMaxDepth` of libxml2, which libvirt does not raise). The others keep work and memory in
//! proportion to the text, whatever it holds. A DOCTYPE is refused: it has no place in a domain, and entities make
//! meaning depend on it. Text is UTF-8, with or without a byte order mark.

use memchr::{memchr, memchr_iter, memchr2, memchr3, memmem};

use super::error::ParseError;
use crate::text::printable;

/// Largest text, in bytes.
pub(crate) const MAX_TEXT: usize = 16 << 20;
/// Deepest nesting of elements.
const MAX_DEPTH: usize = 256;
/// Most attributes of one element: the parser compares each with each.
const MAX_ATTRIBUTES: usize = 256;
/// A space, a name, `=` and two quotation marks.
const SHORTEST_ATTRIBUTE: usize = 5;
/// Most namespace declarations: each element that has one costs as much as all that are in force.
const MAX_NAMESPACES: usize = 1024;

/// A well-formed XML text and its tree. Node ranges are byte offsets into [`Document::text`].
#[derive(Debug)]
pub struct Document<'a> {
    text: &'a str,
    xml: roxmltree::Document<'a>,
}

impl<'a> Document<'a> {
    /// Reads UTF-8 bytes. The error says where and what to do.
    pub fn parse(bytes: &'a [u8]) -> Result<Document<'a>, ParseError> {
        let text = decode(bytes)?;
        if !is_within_bounds(bytes) {
            Bounds::new(text).check()?;
        }
        let xml = roxmltree::Document::parse(text).map_err(|error| match Bounds::new(text).check() {
            Ok(end) => explain(text, &error, end),
            Err(out_of_bounds) => out_of_bounds,
        })?;
        Ok(Document { text, xml })
    }

    /// The text as given, byte order mark included.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The tree.
    pub fn xml(&self) -> &roxmltree::Document<'a> {
        &self.xml
    }

    /// The root element.
    pub fn root(&self) -> roxmltree::Node<'_, 'a> {
        self.xml.root_element()
    }

    /// An error at a byte offset.
    pub fn error(&self, offset: usize, message: impl Into<String>) -> ParseError {
        ParseError::at(self.text, offset, message)
    }
}

/// Bytes to text: UTF-8 only.
fn decode(bytes: &[u8]) -> Result<&str, ParseError> {
    let at_start = |message: String| ParseError { line: 1, col: 1, message };
    if bytes.len() > MAX_TEXT {
        return Err(at_start(format!(
            "this is {} bytes long; no domain is larger than {MAX_TEXT}; give the output of `virsh dumpxml`",
            bytes.len()
        )));
    }
    if matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'<', 0, ..] | [0, b'<', ..]) {
        return Err(at_start(
            "the text is UTF-16; convert it to UTF-8 (`iconv -f UTF-16 -t UTF-8`)".to_owned(),
        ));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let good = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        let byte = bytes.get(error.valid_up_to()).copied().unwrap_or_default();
        ParseError::at(
            good,
            good.len(),
            format!("byte {byte:#04x} is not UTF-8; save the file as UTF-8 (`iconv -t UTF-8`)"),
        )
    })
}

/// The parser's complaint in words that help.
fn explain(text: &str, error: &roxmltree::Error, end: End<'_>) -> ParseError {
    use roxmltree::Error as E;
    let unfinished = matches!(error, E::UnclosedRootNode | E::UnexpectedEndOfStream)
        || (end.open.is_some() && at_end(text, error));
    if text.trim_start_matches('\u{feff}').trim_ascii().is_empty() {
        return ParseError::at(text, 0, "the text is empty; give the output of `virsh dumpxml`");
    }
    if unfinished {
        let what = match end.open {
            Some((name, offset)) => {
                let (line, _) = super::error::position(text, offset);
                format!("the text ends before `<{name}>` of line {line} is closed; is the file cut off?")
            }
            None => "the text ends too early; is the file cut off?".to_owned(),
        };
        return ParseError::at(text, text.len(), what);
    }
    let roxmltree::TextPos { row, col } = error.pos();
    let message = match error {
        E::NoRootNode => "there is no XML element; give the output of `virsh dumpxml`".to_owned(),
        E::UnknownToken(_) if !text.trim_start_matches('\u{feff}').trim_ascii_start().starts_with('<') => {
            "this is not XML; give the output of `virsh dumpxml`".to_owned()
        }
        E::UnknownToken(_) => "this stands after the end of the document; remove it".to_owned(),
        E::UnexpectedCloseTag(expected, actual, _) => {
            format!("`</{actual}>` closes an element that is `<{expected}>`; make the two tags match")
        }
        E::DuplicatedAttribute(name, _) => format!("attribute `{name}` appears twice; remove one"),
        E::UnknownNamespace(prefix, _) => {
            format!(
                "prefix `{prefix}` is not declared; add xmlns:{prefix}='…' to the element or to `<domain>`"
            )
        }
        E::UnknownEntityReference(name, _) => {
            format!("`&{name};` is not known to XML; write the character itself, or `&amp;` for an ampersand")
        }
        E::MalformedEntityReference(_) => "an ampersand stands alone; write `&amp;`".to_owned(),
        E::InvalidChar(expected, _, _) => format!("not well-formed XML: expected `{}`", *expected as char),
        E::InvalidChar2(expected, _, _) => format!("not well-formed XML: expected {expected}"),
        other => {
            let words = other.to_string();
            let words = words.strip_suffix(&format!(" at {}", other.pos())).unwrap_or(&words);
            format!("not well-formed XML: {words}")
        }
    };
    ParseError { line: row, col, message: printable(&message) }
}

/// Whether the parser stopped where the text does.
fn at_end(text: &str, error: &roxmltree::Error) -> bool {
    let (line, col) = super::error::position(text, text.trim_end().len());
    let pos = error.pos();
    (pos.row, pos.col) >= (line, col)
}

/// Where the scan ended: the innermost element still open.
#[derive(Copy, Clone)]
struct End<'a> {
    open: Option<(&'a str, usize)>,
}

/// Whether a text is within bounds for certain, seen by larger steps than [`Bounds`] takes: true of nearly all that libvirt
/// writes. It relies on nothing that the parser would not refuse otherwise.
fn is_within_bounds(text: &[u8]) -> bool {
    let may_have_other_markup = memchr2(b'!', b'?', text).is_some();
    if may_have_other_markup && [b"<!", b"<?"].iter().any(|mark| memmem::find(text, *mark).is_some()) {
        return false;
    }
    if memmem::find_iter(text, b"xmlns").nth(MAX_NAMESPACES).is_some() {
        return false;
    }
    // What is nested deeper has more tags, and one with more attributes goes on through a whole chunk.
    let mut chunks = text.chunks_exact(MAX_ATTRIBUTES * SHORTEST_ATTRIBUTE / 2);
    if memchr_iter(b'<', text).count() <= 2 * MAX_DEPTH && chunks.all(|chunk| memchr(b'<', chunk).is_some()) {
        return true;
    }
    let mut depth = 0usize;
    let mut tags = memchr_iter(b'<', text).peekable();
    while let Some(start) = tags.next() {
        let tag = &text[start..tags.peek().copied().unwrap_or(text.len())];
        if tag.len() > MAX_ATTRIBUTES * SHORTEST_ATTRIBUTE {
            return false;
        }
        if tag.starts_with(b"</") {
            depth = depth.saturating_sub(1);
            continue;
        }
        // A `>` before the last may be in a value, or text may follow.
        let tag = tag.trim_ascii_end();
        let has_end = tag.ends_with(b"/>") && memchr(b'>', tag) == Some(tag.len() - 1);
        depth += usize::from(!has_end);
        if depth > MAX_DEPTH {
            return false;
        }
    }
    true
}

/// One pass over the tags, before the parser allocates anything: refuses what is out of bounds, and leaves every other
/// fault to the parser.
struct Bounds<'a> {
    text: &'a str,
    /// Name and offset of each element that is open.
    open: Vec<(&'a str, usize)>,
    namespaces: usize,
}

impl<'a> Bounds<'a> {
    fn new(text: &'a str) -> Bounds<'a> {
        Bounds { text, open: Vec::new(), namespaces: 0 }
    }

    fn check(mut self) -> Result<End<'a>, ParseError> {
        let mut at = 0;
        while let Some(found) = memchr(b'<', &self.text.as_bytes()[at..]) {
            match self.markup(at + found)? {
                Some(end) => at = end,
                None => break,
            }
        }
        Ok(End { open: self.open.last().copied() })
    }

    /// Steps over the markup at `start`; `None` when it is not finished.
    fn markup(&mut self, start: usize) -> Result<Option<usize>, ParseError> {
        let text = self.text;
        let rest = &text.as_bytes()[start..];
        let past = |mark: &[u8]| memmem::find(rest, mark).map(|end| start + end + mark.len());
        match rest {
            [_, b'/', ..] => {
                self.open.pop();
                Ok(memchr(b'>', rest).map(|end| start + end + 1))
            }
            [_, b'?', ..] => {
                let end = past(b"?>");
                if rest.starts_with(b"<?xml ") {
                    encoding(text, start, end.unwrap_or(text.len()))?;
                }
                Ok(end)
            }
            [_, b'!', ..] if rest.starts_with(b"<!--") => Ok(past(b"-->")),
            [_, b'!', ..] if rest.starts_with(b"<![CDATA[") => Ok(past(b"]]>")),
            [_, b'!', ..] => {
                let message = "a DOCTYPE has no place in a domain and is refused; remove it";
                Err(ParseError::at(text, start, message))
            }
            _ => self.start_tag(start),
        }
    }

    /// Steps from quotation mark to quotation mark, as what is not quoted is no value to the parser.
    fn start_tag(&mut self, start: usize) -> Result<Option<usize>, ParseError> {
        let text = self.text;
        let rest = &text.as_bytes()[start..];
        let ends_name = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n' | b'/' | b'>');
        let name_end = rest.iter().position(ends_name).unwrap_or(rest.len());
        let name = text.get(start + 1..start + name_end).unwrap_or_default();
        let mut attributes = 0;
        let mut at = name_end;
        while let Some(found) = memchr3(b'\'', b'"', b'>', &rest[at..]) {
            let mark = at + found;
            if rest[mark] == b'>' {
                if rest[mark - 1] != b'/' {
                    self.open(name, start)?;
                }
                return Ok(Some(start + mark + 1));
            }
            attributes += 1;
            if attributes > MAX_ATTRIBUTES {
                let message =
                    format!("`<{name}>` has more than {MAX_ATTRIBUTES} attributes; this is no domain");
                return Err(ParseError::at(text, start, message));
            }
            let attribute = rest[at..mark].trim_ascii_start();
            if attribute.starts_with(b"xmlns") {
                self.namespaces += 1;
                if self.namespaces > MAX_NAMESPACES {
                    let message =
                        format!("more than {MAX_NAMESPACES} namespace declarations; this is no domain");
                    return Err(ParseError::at(text, start + mark - attribute.len(), message));
                }
            }
            match memchr(rest[mark], &rest[mark + 1..]) {
                Some(length) => at = mark + 1 + length + 1,
                None => break,
            }
        }
        self.open(name, start)?;
        Ok(None)
    }

    fn open(&mut self, name: &'a str, start: usize) -> Result<(), ParseError> {
        if self.open.len() == MAX_DEPTH {
            let message =
                format!("elements are nested more than {MAX_DEPTH} deep, which libvirt does not read either");
            return Err(ParseError::at(self.text, start, message));
        }
        self.open.push((name, start));
        Ok(())
    }
}

/// Refuses an XML declaration that names another encoding than the text has.
fn encoding(text: &str, start: usize, end: usize) -> Result<(), ParseError> {
    let declaration = &text[start..end];
    let Some(at) = declaration.find("encoding") else { return Ok(()) };
    let value = declaration[at + "encoding".len()..].trim_start().trim_start_matches('=').trim_start();
    let name = value.get(1..).and_then(|v| v.split(['"', '\'']).next()).unwrap_or_default();
    if ["utf-8", "utf8", "us-ascii", "ascii"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
        return Ok(());
    }
    Err(ParseError::at(
        text,
        start + at,
        format!("the text says it is `{name}`; convert it to UTF-8 (`iconv -t UTF-8`) and say so"),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(text: &[u8]) -> String {
        Document::parse(text).expect_err("refused").to_string()
    }

    #[test]
    fn reads_with_mark_and_declaration() {
        for text in [
            "<domain/>",
            "\u{feff}<domain/>",
            "\u{feff}<?xml version='1.0' encoding='UTF-8'?>\r\n<domain/>\r\n",
            "<?xml version=\"1.0\" encoding=\"utf-8\" standalone=\"yes\"?><!-- <!DOCTYPE --><domain a='>' b=\"<!\"/>",
        ] {
            let text = text.replace("b=\"<!\"", "b=\"=\"");
            let document = Document::parse(text.as_bytes()).expect(&text);
            assert!(document.root().has_tag_name("domain"));
            assert_eq!(document.text(), text);
        }
    }

    /// A table of faults, as a person sees them.
    #[test]
    fn faults_say_where_and_what_to_do() {
        let cases: &[(&str, &[u8])] = &[
            ("empty", b""),
            ("blank", b" \n\n"),
            ("mark only", b"\xef\xbb\xbf"),
            ("no xml", b"error: failed to get domain 'x'\n"),
            ("binary", b"\x7fELF\x02\x01\x01\x00\xff"),
            ("invalid utf-8", b"<domain>\n  <name>caf\xe9</name>\n</domain>"),
            ("utf-16", b"\xff\xfe<\0d\0"),
            ("utf-16 without mark", b"<\0d\0o\0m\0"),
            ("latin-1 declared", b"<?xml version='1.0' encoding='ISO-8859-1'?>\n<domain/>"),
            ("doctype", b"<?xml version='1.0'?>\n<!DOCTYPE d [<!ENTITY a 'b'>]>\n<domain>&a;</domain>"),
            ("doctype inside", b"<domain>\n <!DOCTYPE d>\n</domain>"),
            ("cut in a tag", b"<domain>\n  <devices>\n    <hostdev mode='subsys"),
            ("cut between tags", b"<domain>\n  <devices>\n    <hostdev/>\n"),
            ("cut in a comment", b"<domain>\n  <!-- half"),
            ("cut in the declaration", b"<?xml version='1.0'"),
            ("wrong end tag", b"<domain>\n  <name>x</nam>\n</domain>"),
            ("attribute twice", b"<domain type='kvm'\n  type='qemu'/>"),
            ("no prefix", b"<domain>\n <qemu:commandline/>\n</domain>"),
            ("entity", b"<domain>\n<name>&nbsp;</name></domain>"),
            ("ampersand", b"<domain>\n<name>a & b</name></domain>"),
            ("two roots", b"<domain/>\n<domain/>"),
            ("text after", b"<domain/>\nend"),
            ("a line break in a tag", b"<domain>\n  <name/\n>x</domain>"),
            ("control character", b"<domain>\n<name>a\x01</name></domain>"),
        ];
        let shown: String =
            cases.iter().map(|(name, text)| format!("{name}\n    {}\n", fault(text))).collect();
        insta::with_settings!({snapshot_path => "../../snapshots/domain", prepend_module_to_snapshot => false}, {
            insta::assert_snapshot!("faults_of_a_document", shown);
        });
    }

    #[test]
    fn depth_is_bounded() {
        let deep = |n: usize| "<a>".repeat(n) + &"</a>".repeat(n);
        assert!(Document::parse(deep(256).as_bytes()).is_ok());
        assert!(fault(deep(257).as_bytes()).starts_with("1:769: elements are nested"));
        assert!(fault(deep(100_000).as_bytes()).starts_with("1:769: elements are nested"));
        assert!(fault("<a>".repeat(100_000).as_bytes()).starts_with("1:769: elements are nested"));
    }

    proptest! {
        /// What passes at a glance passes the scan of every tag.
        #[test]
        fn large_steps_are_no_laxer(
            parts in prop::collection::vec(
                (
                    prop::sample::select(vec![
                        "<a>", "</a>", "<a/>", "<a b='/>'>", "<a b='>' c=\"/>\" />", "<a b='x'>t/></a>", " \n", "<", "'", "/>",
                        "\"", "<a xmlns:b='c'>", "<!-- > -->", "<?p?>", "<a ", "b='' ",
                    ]),
                    prop_oneof![4 => 1usize..3, 1 => 250usize..1100],
                ),
                0..6,
            ),
        ) {
            let text: String = parts.iter().map(|(part, times)| part.repeat(*times)).collect();
            // Of text that is no XML the parser makes short work.
            if is_within_bounds(text.as_bytes()) && roxmltree::Document::parse(&text).is_ok() {
                prop_assert!(Bounds::new(&text).check().is_ok(), "{}", text);
            }
        }
    }

    #[test]
    fn size_and_work_are_bounded() {
        let big = vec![b' '; 200 << 20];
        assert!(fault(&big).contains("209715200 bytes long"));
        let attributes: String = (0..257).map(|i| format!(" a{i}=''")).collect();
        assert!(fault(format!("<domain{attributes}/>").as_bytes()).contains("256 attributes"));
        let namespaces = "<b xmlns:c='d'/>".repeat(1025);
        assert!(fault(format!("<domain>{namespaces}</domain>").as_bytes()).contains("1024 namespace"));
    }
}
