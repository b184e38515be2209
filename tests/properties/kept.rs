//! What no change of barfit's may touch, by bytes and by meaning; found without barfit's own reader.

use std::ops::Range;

use barfit::domain::QEMU_NAMESPACE;
use roxmltree::Node;

pub(crate) fn parse(text: &str) -> roxmltree::Document<'_> {
    roxmltree::Document::parse(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

pub(crate) fn plain_child<'a, 'i>(parent: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    parent.children().find(|child| child.tag_name().namespace().is_none() && child.has_tag_name(name))
}

pub(crate) fn blocks<'a, 'i>(document: &'a roxmltree::Document<'i>) -> Vec<Node<'a, 'i>> {
    let root = document.root_element();
    root.children().filter(|child| child.has_tag_name((QEMU_NAMESPACE, "commandline"))).collect()
}

/// The text without some ranges and the blanks before them.
fn without(text: &str, mut ranges: Vec<Range<usize>>) -> String {
    ranges.sort_by_key(|range| range.start);
    let mut kept = String::new();
    let mut at = 0;
    for range in ranges {
        kept.push_str(text[at..range.start].trim_end());
        at = range.end;
    }
    kept + &text[at..]
}

/// What no change may touch, byte for byte: all but `<cpu>`, the blocks of QEMU's words, the tags of `<domain>`, and
/// the blanks before these.
pub(crate) fn untouched(text: &str) -> String {
    let document = parse(text);
    let root = document.root_element();
    let mut ranges: Vec<_> = blocks(&document).iter().map(Node::range).collect();
    ranges.extend(plain_child(root, "cpu").map(|cpu| cpu.range()));
    let inside: Vec<_> = root.children().map(|child| child.range()).collect();
    let (first, last) = match (inside.first(), inside.last()) {
        (Some(first), Some(last)) => (first.start, last.end),
        _ => (root.range().end, root.range().end),
    };
    ranges.push(root.range().start..first);
    ranges.push(last..root.range().end);
    without(text, ranges)
}

/// An element as a tree, without what a plan changes.
fn tree(node: Node<'_, '_>, planned: &dyn Fn(Node<'_, '_>) -> bool) -> String {
    if planned(node) {
        return String::new();
    }
    if node.is_text() || !node.is_element() {
        let text = node.text().unwrap_or_default().trim();
        return if text.is_empty() { String::new() } else { format!("{:?} {text}\n", node.node_type()) };
    }
    let attributes: Vec<_> = node.attributes().map(|a| (a.namespace(), a.name(), a.value())).collect();
    let children: String = node.children().map(|child| tree(child, planned)).collect();
    // The CPU that came with its content.
    if node.has_tag_name("cpu") && attributes.is_empty() && children.is_empty() {
        return String::new();
    }
    format!("{:?} {attributes:?} [\n{children}]\n", node.tag_name())
}

/// The domain as a tree, without what a plan changes.
pub(crate) fn kept_tree(text: &str) -> String {
    let document = parse(text);
    let root = document.root_element();
    let cpu = plain_child(root, "cpu");
    let first = cpu.and_then(|cpu| plain_child(cpu, "maxphysaddr"));
    tree(root, &|node| {
        let in_cpu = cpu.is_some() && node.parent() == cpu;
        Some(node) == first
            || in_cpu && node.has_tag_name("feature") && node.attribute("name") == Some("pdpe1gb")
            // The model that came with a feature.
            || in_cpu && node.has_tag_name("model") && node.text() == Some("qemu64")
            || node.has_tag_name((QEMU_NAMESPACE, "commandline"))
    })
}
