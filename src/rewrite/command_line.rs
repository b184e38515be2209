//! `<qemu:commandline>`: QEMU's own words in a domain.
//!
//! Found by namespace URI and local name, whatever the prefix; several blocks count as one, as libvirt reads them. A
//! block whose prefix is not declared would be dropped in silence, so a new one brings its declaration along: on
//! `<domain>`, as libvirt prints it, or on itself where `<domain>` uses the prefix for something else.

use roxmltree::Node;

use super::options::{Carrier, Words};
use super::place::{
    Fragment, attribute, insert_children, qualified_name, remove_element, set_value, start_tag,
};
use super::xml::Edits;
use crate::domain::{ParseError, QEMU_NAMESPACE};
use crate::plan::Change;

/// Collects the edits that the changes ask for among QEMU's words.
pub(super) fn edit(edits: &mut Edits<'_>, changes: &[Change]) -> Result<(), ParseError> {
    let blocks: Vec<_> = qemu_children(edits.root, "commandline").collect();
    let args: Vec<_> = blocks.iter().flat_map(|block| qemu_children(*block, "arg")).collect();
    let value = |arg: &Node<'_, '_>| attribute(*arg, "value").map(|value| value.value().to_owned());
    let mut words = Words::new(args.iter().map(value).collect());
    words.make(changes, Carrier::Libvirt);

    let appends = !words.appended.is_empty();
    let mut removed = words.removed.iter();
    for (at, block) in blocks.iter().enumerate() {
        let receives = appends && at + 1 == blocks.len();
        let own: Vec<_> = qemu_children(*block, "arg").zip(removed.by_ref()).collect();
        let all_go = !own.is_empty() && own.iter().all(|(_, removed)| **removed);
        if all_go && !receives && holds_only_args(*block) {
            remove_element(edits.text, *block, &mut edits.splices);
            continue;
        }
        for (arg, _) in own.iter().filter(|(_, removed)| **removed) {
            remove_element(edits.text, *arg, &mut edits.splices);
        }
    }
    for ((arg, now), _) in args.iter().zip(&words.words).zip(&words.removed).filter(|(_, removed)| !**removed)
    {
        if let (Some(value), Some(now)) = (attribute(*arg, "value"), now)
            && value.value() != now
        {
            set_value(edits.text, value, now, &mut edits.splices);
        }
    }
    if appends {
        append(edits, blocks.last().copied(), &words.appended)?;
    }
    Ok(())
}

/// Adds words at the end of a block, or in a new block.
fn append(edits: &mut Edits<'_>, block: Option<Node<'_, '_>>, words: &[String]) -> Result<(), ParseError> {
    let q = edits.quote;
    let arg = |prefix: &str, word: &String| Fragment::Leaf(format!("<{prefix}arg value={q}{word}{q}/>"));
    if let Some(block) = block {
        let name = qualified_name(edits.text, block);
        let prefix = name.strip_suffix("commandline").unwrap_or_default();
        let after = qemu_children(block, "arg").last();
        let new: Vec<_> = words.iter().map(|word| (after, arg(prefix, word))).collect();
        return insert_children(edits.text, block, &new, &edits.step, &mut edits.splices);
    }
    let (prefix, declaration) = prefix(edits)?;
    let fragment = Fragment::Parent {
        open: format!("<{prefix}:commandline{declaration}>"),
        children: words.iter().map(|word| arg(&format!("{prefix}:"), word)).collect(),
        close: format!("</{prefix}:commandline>"),
    };
    edits.in_root.push((edits.root.last_element_child(), fragment));
    Ok(())
}

/// A prefix for a new block, and what the block must declare itself. Declares it on `<domain>` where it can.
fn prefix(edits: &mut Edits<'_>) -> Result<(String, String), ParseError> {
    let bound = |prefix: &str| edits.root.namespaces().any(|namespace| namespace.name() == Some(prefix));
    let q = edits.quote;
    if let Some(prefix) = edits.root.lookup_prefix(QEMU_NAMESPACE).filter(|prefix| !prefix.is_empty()) {
        return Ok((prefix.to_owned(), String::new()));
    }
    if !bound("qemu") {
        let tag = start_tag(edits.text, edits.root)?;
        edits.splices.insert(tag.attributes_end, format!(" xmlns:qemu={q}{QEMU_NAMESPACE}{q}"));
        return Ok(("qemu".to_owned(), String::new()));
    }
    let free = (1u32..).map(|n| format!("qemu{n}")).find(|prefix| !bound(prefix)).unwrap_or_default();
    let declaration = format!(" xmlns:{free}={q}{QEMU_NAMESPACE}{q}");
    Ok((free, declaration))
}

/// Whether a block holds nothing but arguments, and nothing is said on it: one that barfit could have made.
fn holds_only_args(block: Node<'_, '_>) -> bool {
    let is_blank = |child: &Node<'_, '_>| child.text().is_none_or(|text| text.trim().is_empty());
    block.attributes().len() == 0
        && block.children().all(|child| match child.is_text() {
            true => is_blank(&child),
            false => child.has_tag_name((QEMU_NAMESPACE, "arg")),
        })
}

fn qemu_children<'a>(parent: Node<'a, 'a>, name: &str) -> impl Iterator<Item = Node<'a, 'a>> {
    parent.children().filter(move |child| child.has_tag_name((QEMU_NAMESPACE, name)))
}
