//! The changes in a domain XML: gathers the edits of `<cpu>` and of `<qemu:commandline>`, and applies them.

use roxmltree::Node;

use super::place::{NewChild, indentation_step, insert_children, quote};
use super::splice::{Splice, Splices, apply};
use super::{command_line, cpu, gate};
use crate::domain::{Document, MAX_TEXT, ParseError};
use crate::plan::Change;

/// The text of a domain with the changes made.
///
/// # Errors
/// As [`Document::parse`] and [`rewrite_document`].
pub fn rewrite(text: &[u8], changes: &[Change]) -> Result<Vec<u8>, ParseError> {
    if changes.is_empty() {
        Document::parse(text)?;
        return Ok(text.to_vec());
    }
    rewrite_document(&Document::parse(text)?, changes)
}

/// The text of a domain that has been parsed, with the changes made. Work grows with what is edited, not with the
/// text, apart from copying it.
///
/// # Errors
/// When the root is not a libvirt `<domain>`, when the result would be larger than libvirt takes, or when the result would not be what the changes ask for (which would
/// be a defect of barfit: nothing is returned then).
pub fn rewrite_document(document: &Document<'_>, changes: &[Change]) -> Result<Vec<u8>, ParseError> {
    let text = document.text();
    let splices = edits(document, changes)?;
    if splices.is_empty() {
        return Ok(text.as_bytes().to_vec());
    }
    gate::pass(document, &splices, changes)?;
    let new = apply(text, 0..text.len(), &splices).ok_or_else(|| defect(document))?;
    if new.len() > MAX_TEXT {
        let message =
            format!("with its changes this would be {} bytes long, more than libvirt takes", new.len());
        return Err(document.error(0, message));
    }
    Ok(new.into_bytes())
}

/// The edits that make the changes; none where everything is as it should be.
pub(super) fn edits(document: &Document<'_>, changes: &[Change]) -> Result<Vec<Splice>, ParseError> {
    let root = document.root();
    if root.tag_name().namespace().is_some() || root.tag_name().name() != "domain" {
        let name = root.tag_name().name();
        return Err(document.error(
            root.range().start,
            format!("`<{name}>` is not a libvirt domain; give the output of `virsh dumpxml`"),
        ));
    }
    let text = document.text();
    let mut edits = Edits {
        text,
        root,
        step: indentation_step(text, root),
        quote: root.attributes().next().map_or('\'', |attribute| quote(text, attribute)),
        splices: Splices::default(),
        in_root: Vec::new(),
    };
    cpu::edit(&mut edits, changes)?;
    command_line::edit(&mut edits, changes)?;
    insert_children(text, root, &edits.in_root, &edits.step, &mut edits.splices)?;
    edits.splices.sorted().ok_or_else(|| defect(document))
}

/// The rewriter has gone wrong; better no output than a bad one.
pub(super) fn defect(document: &Document<'_>) -> ParseError {
    document.error(
        document.root().range().start,
        "barfit cannot make the planned changes in this text (a defect of barfit); nothing was changed",
    )
}

/// The edits of one text, as they come together.
pub(super) struct Edits<'a> {
    pub(super) text: &'a str,
    /// `<domain>`.
    pub(super) root: Node<'a, 'a>,
    /// What one level adds to the indentation.
    pub(super) step: String,
    /// The quote that new elements use: that of the domain's first attribute.
    pub(super) quote: char,
    pub(super) splices: Splices,
    /// New children of the root.
    pub(super) in_root: Vec<NewChild<'a, 'a>>,
}

/// The first child of this name, in no namespace: the one that libvirt reads.
pub(super) fn child<'a>(parent: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    children(parent, &[name]).next()
}

/// The children of these names, in no namespace.
pub(super) fn children<'a>(parent: Node<'a, 'a>, names: &[&str]) -> impl Iterator<Item = Node<'a, 'a>> {
    parent.children().filter(move |child| {
        let name = child.tag_name();
        child.is_element() && name.namespace().is_none() && names.contains(&name.name())
    })
}
