//! Where in the text an edit goes: exact spans of tags and attributes, and the whitespace to copy.
//!
//! The tree gives the range of a node; the tokens inside a tag are quick-xml's, read from that one tag. Whitespace is
//! taken from the neighbour: what stands before a sibling, from its line break on, stands before the new one too, so
//! that tabs, CRLF and one-line texts continue as they began.

use std::ops::Range;

use quick_xml::Reader;
use quick_xml::escape::{escape, unescape};
use quick_xml::events::Event;
use roxmltree::{Attribute, Node};

use super::splice::Splices;
use crate::domain::ParseError;

const BLANK: [char; 4] = [' ', '\t', '\r', '\n'];
const NEWLINE: [char; 2] = ['\r', '\n'];

/// A new element.
#[derive(Clone, Debug)]
pub(super) enum Fragment {
    /// Complete markup that stays on one line.
    Leaf(String),
    /// An element with children, one on each line where the neighbourhood has lines.
    Parent { open: String, children: Vec<Fragment>, close: String },
}

/// A new child: after this sibling, or first.
pub(super) type NewChild<'a, 't> = (Option<Node<'a, 't>>, Fragment);

/// A start tag or an empty-element tag.
pub(super) struct Tag {
    /// From `<` to past `>`.
    pub(super) range: Range<usize>,
    /// It ends in `/>`.
    pub(super) empty: bool,
    /// Past the last attribute (or the name): where an attribute is added.
    pub(super) attributes_end: usize,
}

/// The start tag of an element.
pub(super) fn start_tag(text: &str, element: Node<'_, '_>) -> Result<Tag, ParseError> {
    let start = element.range().start;
    let lost = || ParseError::at(text, start, "this tag has no end that barfit can find");
    let mut reader = Reader::from_str(text.get(element.range()).ok_or_else(lost)?);
    let empty = match reader.read_event() {
        Ok(Event::Start(_)) => false,
        Ok(Event::Empty(_)) => true,
        _ => return Err(lost()),
    };
    let length = usize::try_from(reader.buffer_position()).map_err(|_| lost())?;
    let range = start..start + length;
    let inside = text.get(start..range.end - if empty { 2 } else { 1 }).ok_or_else(lost)?;
    Ok(Tag { attributes_end: start + inside.trim_end_matches(BLANK).len(), range, empty })
}

/// The name of an element as written, prefix included.
pub(super) fn qualified_name<'t>(text: &'t str, element: Node<'_, '_>) -> &'t str {
    let after = text.get(element.range().start + 1..).unwrap_or_default();
    let end = after.find(|c| BLANK.contains(&c) || c == '/' || c == '>').unwrap_or(after.len());
    &after[..end]
}

/// The whitespace before an offset, from the last line break on: `"\r\n\t\t"`, `" "`, `""`.
pub(super) fn lead(text: &str, offset: usize) -> &str {
    let before = text.get(..offset).unwrap_or_default();
    let blank = &before[before.trim_end_matches(BLANK).len()..];
    match blank.rfind(NEWLINE) {
        Some(at) if blank[..at].ends_with('\r') && blank[at..].starts_with('\n') => &blank[at - 1..],
        Some(at) => &blank[at..],
        None => blank,
    }
}

/// What one level of nesting adds to the indentation, as the children of the root show it.
pub(super) fn indentation_step(text: &str, root: Node<'_, '_>) -> String {
    let indentation =
        |node: Node<'_, '_>| lead(text, node.range().start).trim_start_matches(NEWLINE).to_owned();
    let inner = root.children().find(Node::is_element).map(indentation).unwrap_or_default();
    let step = inner.strip_prefix(indentation(root).as_str()).filter(|step| !step.is_empty());
    step.unwrap_or("  ").to_owned()
}

/// Adds children to an element, opening it where it is `<empty/>`.
pub(super) fn insert_children(
    text: &str,
    parent: Node<'_, '_>,
    new: &[NewChild<'_, '_>],
    step: &str,
    splices: &mut Splices,
) -> Result<(), ParseError> {
    if new.is_empty() {
        return Ok(());
    }
    let tag = start_tag(text, parent)?;
    if let Some(first) = parent.children().find(|child| !child.is_text()) {
        for (after, fragment) in new {
            let at = after.map_or(tag.range.end, |sibling| past(text, sibling));
            let lead = lead(text, after.unwrap_or(first).range().start);
            splices.insert(at, render(fragment, lead, step));
        }
        return Ok(());
    }
    let content = if tag.empty { tag.range.end..tag.range.end } else { content(text, parent, &tag) };
    let blank = text.get(content.clone()).unwrap_or_default();
    if blank.contains(NEWLINE) {
        let inner = format!("{}{step}", lead(text, content.end));
        for (_, fragment) in new {
            splices.insert(tag.range.end, render(fragment, &inner, step));
        }
        return Ok(());
    }
    let outer = lead(text, parent.range().start);
    let (outer, inner) =
        if outer.contains(NEWLINE) { (outer, format!("{outer}{step}")) } else { ("", String::new()) };
    let children: String = new.iter().map(|(_, fragment)| render(fragment, &inner, step)).collect();
    if tag.empty {
        let close = qualified_name(text, parent);
        splices.replace(tag.attributes_end..tag.range.end, format!(">{children}{outer}</{close}>"));
    } else if blank.trim_matches(BLANK).is_empty() {
        splices.replace(content, format!("{children}{outer}"));
    } else {
        splices.insert(tag.range.end, children);
    }
    Ok(())
}

/// Takes an element out, with the whitespace before it.
pub(super) fn remove_element(text: &str, element: Node<'_, '_>, splices: &mut Splices) {
    let range = element.range();
    splices.remove(range.start - lead(text, range.start).len()..range.end);
}

/// Gives an attribute a value: in place, byte for byte where the two agree, or as a new attribute in the quotes of its
/// neighbour.
pub(super) fn set_attribute(
    text: &str,
    element: Node<'_, '_>,
    name: &str,
    value: &str,
    splices: &mut Splices,
) -> Result<(), ParseError> {
    if let Some(attribute) = attribute(element, name) {
        set_value(text, attribute, value, splices);
        return Ok(());
    }
    let tag = start_tag(text, element)?;
    let quote = element.attributes().next_back().map_or('\'', |neighbour| quote(text, neighbour));
    splices.insert(tag.attributes_end, format!(" {name}={quote}{value}{quote}"));
    Ok(())
}

/// Takes an attribute out, with the whitespace before it.
pub(super) fn remove_attribute(text: &str, element: Node<'_, '_>, name: &str, splices: &mut Splices) {
    if let Some(attribute) = attribute(element, name) {
        let range = attribute.range();
        let before = text.get(..range.start).unwrap_or_default();
        splices.remove(before.trim_end_matches(BLANK).len()..range.end);
    }
}

/// An attribute as libvirt finds it: by its local name, whatever its prefix.
pub(super) fn attribute<'a, 't>(element: Node<'a, 't>, name: &str) -> Option<Attribute<'a, 't>> {
    element.attributes().find(|attribute| attribute.name() == name)
}

/// The value of [`attribute`].
pub(super) fn value_of<'a>(element: Node<'a, '_>, name: &str) -> Option<&'a str> {
    attribute(element, name).map(|attribute| attribute.value())
}

/// The quote an attribute is written in.
pub(super) fn quote(text: &str, attribute: Attribute<'_, '_>) -> char {
    let raw = text.get(attribute.range()).unwrap_or_default();
    if raw.ends_with('"') { '"' } else { '\'' }
}

/// Changes the value of an attribute where it differs, and only there.
pub(super) fn set_value(text: &str, attribute: Attribute<'_, '_>, value: &str, splices: &mut Splices) {
    let range = attribute.range();
    let raw = text.get(range.clone()).unwrap_or_default();
    // A name holds neither `=` nor quotes, so the first quote opens the value and the last byte closes it.
    let open = raw.find(['\'', '"']).unwrap_or_default() + 1;
    let inner = raw.get(open..raw.len().saturating_sub(1)).unwrap_or_default();
    let old = decode(inner);
    let (mut head, mut tail) = (0, 0);
    if old.text == attribute.value() {
        head = shared(old.text.chars(), value.chars());
        tail = shared(old.text[head..].chars().rev(), value[head..].chars().rev());
    }
    let end = old.offsets.len() - 1 - tail;
    let span = old.offsets[head]..old.offsets[end];
    let start = range.start + open;
    splices.replace(start + span.start..start + span.end, escaped(&value[head..value.len() - tail]));
}

/// Bytes that two character sequences have in common at their beginning.
fn shared(a: impl Iterator<Item = char>, b: impl Iterator<Item = char>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

/// An attribute value and where each of its bytes comes from.
struct Decoded {
    text: String,
    /// Offset in the raw value of each byte of `text`, and of the end.
    offsets: Vec<usize>,
}

/// Resolves references and normalises whitespace, as XML does for an attribute.
fn decode(raw: &str) -> Decoded {
    let mut decoded = Decoded { text: String::with_capacity(raw.len()), offsets: Vec::new() };
    let mut at = 0;
    while let Some(next) = raw[at..].chars().next() {
        let (piece, length) = match next {
            '&' => {
                let end = raw[at..].find(';').map_or(raw.len(), |semicolon| at + semicolon + 1);
                let reference = &raw[at..end];
                (unescape(reference).map_or_else(|_| reference.to_owned(), String::from), reference.len())
            }
            '\r' if raw[at..].starts_with("\r\n") => (" ".to_owned(), 2),
            '\r' | '\n' | '\t' => (" ".to_owned(), 1),
            other => (other.to_string(), other.len_utf8()),
        };
        decoded.text.push_str(&piece);
        decoded.offsets.resize(decoded.text.len(), at);
        at += length;
    }
    decoded.offsets.push(raw.len());
    decoded
}

/// A value as it may stand in either kind of quotes.
pub(super) fn escaped(value: &str) -> String {
    escape(value).replace('\n', "&#10;").replace('\r', "&#13;").replace('\t', "&#9;")
}

/// Past an element, and past a comment that ends its line.
fn past(text: &str, element: Node<'_, '_>) -> usize {
    let end = element.range().end;
    let rest = text.get(end..).unwrap_or_default();
    let line = &rest[..rest.find(NEWLINE).unwrap_or(rest.len())];
    let comment = line.trim_matches([' ', '\t']);
    let whole = comment.starts_with("<!--") && comment.find("-->") == Some(comment.len() - 3);
    if whole { end + line.trim_end_matches([' ', '\t']).len() } else { end }
}

/// Between the start tag and the end tag of an element that has no child but text.
fn content(text: &str, element: Node<'_, '_>, tag: &Tag) -> Range<usize> {
    let whole = text.get(element.range()).unwrap_or_default();
    let end = whole.rfind("</").unwrap_or(whole.len());
    tag.range.end..element.range().start + end
}

fn render(fragment: &Fragment, lead: &str, step: &str) -> String {
    match fragment {
        Fragment::Leaf(markup) => format!("{lead}{markup}"),
        Fragment::Parent { open, children, close } => {
            let inner = if lead.contains(NEWLINE) { format!("{lead}{step}") } else { lead.to_owned() };
            let children: String = children.iter().map(|child| render(child, &inner, step)).collect();
            format!("{lead}{open}{children}{lead}{close}")
        }
    }
}
