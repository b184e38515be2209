//! The gate that a rewritten domain passes before anybody sees it.
//!
//! The new text must parse, and asked for the same changes again it must have nothing left to do. What is parsed is
//! the new text without the children of `<domain>` that no edit touches: those are elements that parsed a moment ago,
//! byte for byte the same, and a sibling cannot make them ill-formed (a prefix that `<domain>` newly declares was
//! unbound before, so nothing there can use it). The answer is that of the whole text, at the price of the part that
//! changed.

use roxmltree::Node;

use super::splice::{Splice, apply};
use super::xml::{defect, edits};
use crate::domain::{Document, ParseError, QEMU_NAMESPACE};
use crate::plan::Change;

/// Lets the sorted edits pass, or says that they must not be made.
pub(super) fn pass(
    document: &Document<'_>,
    splices: &[Splice],
    changes: &[Change],
) -> Result<(), ParseError> {
    let touched = touched(document, splices).ok_or_else(|| defect(document))?;
    let again = Document::parse(touched.as_bytes()).and_then(|new| edits(&new, changes));
    match again {
        Ok(left) if left.is_empty() => Ok(()),
        _ => Err(defect(document)),
    }
}

/// The new text without the untouched children of the root.
fn touched(document: &Document<'_>, splices: &[Splice]) -> Option<String> {
    let text = document.text();
    let mut new = String::new();
    let mut at = 0;
    let mut rest = splices;
    for child in document.root().children().filter(Node::is_element) {
        if is_edited(child) {
            continue;
        }
        let range = child.range();
        let (before, from) = rest.split_at(rest.partition_point(|splice| splice.range.end <= range.start));
        if from.first().is_some_and(|splice| splice.range.start < range.end) {
            continue;
        }
        new.push_str(&apply(text, at..range.start, before)?);
        rest = from;
        at = range.end;
    }
    new.push_str(&apply(text, at..text.len(), rest)?);
    Some(new)
}

/// Whether edits are decided by what this child of the root says.
fn is_edited(child: Node<'_, '_>) -> bool {
    let name = child.tag_name();
    match name.namespace() {
        None => name.name() == "cpu",
        Some(namespace) => namespace == QEMU_NAMESPACE,
    }
}
