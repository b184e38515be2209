//! Reading attributes and children of one element, with errors that know their place.

use std::borrow::Cow;

use super::document::Document;
use super::error::ParseError;
use super::value::{self, Base};
use crate::units::{Bytes, PciAddress};

/// An element of the domain.
pub(super) type Node<'d, 'a> = roxmltree::Node<'d, 'a>;

/// The document being read, and a line counter that only ever has to go forward.
pub(super) struct Reader<'d, 'a> {
    doc: &'d Document<'a>,
    line: u32,
    counted: usize,
}

impl<'d, 'a> Reader<'d, 'a> {
    pub(super) fn new(doc: &'d Document<'a>) -> Reader<'d, 'a> {
        Reader { doc, line: 1, counted: 0 }
    }

    /// Line on which an element starts.
    pub(super) fn line(&mut self, node: Node<'_, '_>) -> u32 {
        let at = node.range().start;
        if at < self.counted {
            (self.line, self.counted) = (1, 0);
        }
        let newlines = memchr::memchr_iter(b'\n', &self.doc.text().as_bytes()[self.counted..at]).count();
        self.line = self.line.saturating_add(u32::try_from(newlines).unwrap_or(u32::MAX));
        self.counted = at;
        self.line
    }

    /// An error at an element.
    pub(super) fn fail<T>(&self, node: Node<'_, '_>, message: impl Into<String>) -> Result<T, ParseError> {
        Err(self.doc.error(node.range().start, message))
    }

    /// An error at an attribute of an element, or at the element when it is not there.
    pub(super) fn fail_attribute<T>(
        &self,
        node: Node<'_, '_>,
        name: &str,
        message: impl std::fmt::Display,
    ) -> Result<T, ParseError> {
        let at = node.attribute_node(name).map_or(node.range().start, |a| a.range().start);
        Err(self.doc.error(at, format!("{name}= of `<{}>`: {message}", node.tag_name().name())))
    }

    /// A number in an attribute; `None` when the attribute is missing.
    pub(super) fn number(
        &self,
        node: Node<'_, '_>,
        name: &str,
        base: Base,
        max: u64,
    ) -> Result<Option<u64>, ParseError> {
        let Some(text) = node.attribute(name) else { return Ok(None) };
        match value::unsigned(text, base) {
            Ok(number) if number > max => {
                self.fail_attribute(node, name, format!("`{text}` is out of range; the largest is {max:#x}"))
            }
            Ok(number) => Ok(Some(number)),
            Err(message) => self.fail_attribute(node, name, message),
        }
    }

    /// A size of memory in the text of an element; `None` when there is no text (as libvirt has it).
    pub(super) fn memory(&self, node: Node<'_, '_>) -> Result<Option<Bytes>, ParseError> {
        self.sized(node, value::memory)
    }

    /// The same, of memory that may come to be.
    pub(super) fn max_memory(&self, node: Node<'_, '_>) -> Result<Option<Bytes>, ParseError> {
        self.sized(node, value::max_memory)
    }

    fn sized(
        &self,
        node: Node<'_, '_>,
        read: fn(&str, Option<&str>) -> Result<Bytes, String>,
    ) -> Result<Option<Bytes>, ParseError> {
        let text = text(node);
        if text.is_empty() {
            return Ok(None);
        }
        match read(&text, node.attribute("unit")) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(message) => self.fail(node, format!("`<{}>`: {message}", node.tag_name().name())),
        }
    }

    /// `<address domain= bus= slot= function=>`: every part optional, numbers in any base
    /// (`virPCIDeviceAddressParseXML`, libvirt `src/conf/device_conf.c`).
    pub(super) fn pci_address(&self, node: Node<'_, '_>) -> Result<PciAddress, ParseError> {
        let part = |name, max| Ok(self.number(node, name, Base::Any, max)?.unwrap_or(0));
        let domain = part("domain", u64::from(u32::MAX))?;
        let bus = part("bus", 0xff)?;
        let slot = part("slot", 0x1f)?;
        let function = part("function", 7)?;
        // The bounds above are those of the types.
        Ok(PciAddress {
            domain: u32::try_from(domain).unwrap_or(u32::MAX),
            bus: u8::try_from(bus).unwrap_or(u8::MAX),
            slot: u8::try_from(slot).unwrap_or(u8::MAX),
            function: u8::try_from(function).unwrap_or(u8::MAX),
        })
    }
}

/// Child elements without a namespace, as all of libvirt's are.
pub(super) fn elements<'d, 'a>(node: Node<'d, 'a>) -> impl Iterator<Item = (&'a str, Node<'d, 'a>)> {
    node.children()
        .filter(|child| child.is_element() && child.tag_name().namespace().is_none())
        .map(|child| (child.tag_name().name(), child))
}

/// The first child element of a name.
pub(super) fn child<'d, 'a>(node: Node<'d, 'a>, name: &str) -> Option<Node<'d, 'a>> {
    elements(node).find(|(found, _)| *found == name).map(|(_, child)| child)
}

/// An attribute of the first child element of a name.
pub(super) fn child_attribute<'d>(node: Node<'d, '_>, name: &str, attribute: &str) -> Option<&'d str> {
    child(node, name)?.attribute(attribute)
}

/// All text directly in an element, comments left out.
pub(super) fn text<'d>(node: Node<'d, '_>) -> Cow<'d, str> {
    let mut parts = node.children().filter(|child| child.is_text()).filter_map(|child| child.text());
    let first = parts.next().unwrap_or_default();
    match parts.next() {
        None => Cow::Borrowed(first),
        Some(second) => Cow::Owned([first, second].into_iter().chain(parts).collect()),
    }
}
