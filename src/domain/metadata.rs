//! `<metadata>`: Nova's flavor and barfit's own words. Everybody else's is left alone.

use super::model::POLICY_NAMESPACE;
use super::read::{Node, text};

/// Nova's namespace without its version: 1.0 (until 2022) and 1.1 say the same about flavors
/// (nova `nova/virt/libvirt/config.py`, `NOVA_NS`).
const NOVA_NAMESPACE: &str = "http://openstack.org/xmlns/libvirt/nova/";

/// What is of interest.
#[derive(Default)]
pub(super) struct Metadata {
    /// `<nova:instance><nova:flavor name=>`.
    pub(super) flavor: Option<String>,
    /// Attributes and child texts of barfit's element.
    pub(super) policy: Vec<(String, String)>,
}

pub(super) fn parse(node: Node<'_, '_>) -> Metadata {
    let mut found = Metadata::default();
    let mut seen_policy = false;
    for element in node.children().filter(Node::is_element) {
        match element.tag_name().namespace() {
            Some(uri) if uri.starts_with(NOVA_NAMESPACE) && found.flavor.is_none() => {
                found.flavor = element
                    .children()
                    .find(|child| child.has_tag_name((uri, "flavor")))
                    .and_then(|flavor| flavor.attribute("name"))
                    .map(str::to_owned);
            }
            // libvirt keeps one element a namespace; the first one, should there be more.
            Some(POLICY_NAMESPACE) if !seen_policy => {
                seen_policy = true;
                found.policy = policy(element);
            }
            _ => {}
        }
    }
    found
}

fn policy(element: Node<'_, '_>) -> Vec<(String, String)> {
    let attributes = element
        .attributes()
        .filter(|attribute| attribute.namespace().is_none())
        .map(|attribute| (attribute.name().to_owned(), attribute.value().to_owned()));
    let children = element
        .children()
        .filter(|child| child.is_element() && child.tag_name().namespace() == Some(POLICY_NAMESPACE))
        .map(|child| (child.tag_name().name().to_owned(), text(child).trim().to_owned()));
    attributes.chain(children).collect()
}
