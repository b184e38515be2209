//! What a glance at libvirt's own text of a domain tells: whose it is, and that it has nothing of the host's.
//!
//! Most guests of most hosts have no passed-through device, and reading all of their XML is most of what a hook would
//! spend on them. libvirt writes `<domain …>`, `<name>`, `<uuid>` in this order and nothing between them
//! (`virDomainDefFormatInternalSetRootName`, libvirt 9.0). Of a text of another shape this tells nothing; then it has
//! to be read.

use memchr::memmem;

use super::plan_file::is_uuid;

/// What was seen.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Glance<'a> {
    /// The UUID, as libvirt prints it.
    pub(super) uuid: &'a str,
    /// Whether no device of the host can be in it. `false` says nothing.
    pub(super) nothing_of_the_host: bool,
}

/// Without these a domain names no device of the host: elements and types are called `hostdev`, QEMU's own options
/// stand in `<qemu:commandline>`, and what spells either by other characters has one of the other two.
const MARKS: [&[u8]; 4] = [b"hostdev", b"commandline", b"&#", b"<!"];

/// Looks at a domain; `None` for a text that is not of libvirt's shape.
pub(super) fn glance(xml: &[u8]) -> Option<Glance<'_>> {
    let rest = xml.strip_prefix(b"<domain ")?.trim_ascii_end().strip_suffix(b"</domain>")?;
    // An attribute's `>` leads to what is no element.
    let rest = &rest[memchr::memchr(b'>', rest)? + 1..];
    let name = rest.trim_ascii_start().strip_prefix(b"<name>")?;
    let (_, rest) = name.split_at(memchr::memchr(b'<', name)?);
    let uuid = rest.strip_prefix(b"</name>")?.trim_ascii_start().strip_prefix(b"<uuid>")?;
    let (uuid, _) = uuid.split_at(memmem::find(uuid, b"</uuid>")?);
    let uuid = std::str::from_utf8(uuid).ok().filter(|uuid| is_uuid(uuid))?;
    let nothing_of_the_host = MARKS.iter().all(|mark| memmem::find(xml, mark).is_none());
    Some(Glance { uuid, nothing_of_the_host })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Domain;

    const UUID: &str = "1d8a3c54-9b0e-4f5c-8f6d-2b7e90c1a411";

    fn domain(devices: &str) -> String {
        format!(
            "<domain type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>\n  <name>a &gt; b</name>\n  \
             <uuid>{UUID}</uuid>\n  <devices>{devices}</devices>\n</domain>\n"
        )
    }

    #[test]
    fn what_may_be_the_hosts_has_to_be_read() {
        for (devices, nothing) in [
            ("<disk type='file'/><interface type='network'/>", true),
            ("<hostdev mode='subsystem' type='pci'/>", false),
            ("<interface type='hostdev'/>", false),
            ("<interface type='host&#100;ev'/>", false),
            ("<interface type='host&#x64;ev'/>", false),
            ("</devices><q:commandline/><devices>", false),
            ("<!-- half --> <disk/>", false),
        ] {
            let expected = Glance { uuid: UUID, nothing_of_the_host: nothing };
            assert_eq!(glance(domain(devices).as_bytes()), Some(expected), "{devices}");
        }
    }

    #[test]
    fn another_shape_tells_nothing() {
        let good = domain("");
        for (from, to) in [
            ("</domain>", ""),
            ("<domain ", "<domains "),
            ("<domain ", "<?xml version='1.0'?><domain "),
            ("<name>", "<title/><name>"),
            ("<uuid>", "<metadata><uuid>x</uuid></metadata><uuid>"),
            (UUID, "1D8A3C54-9B0E-4F5C-8F6D-2B7E90C1A411"),
            (UUID, "../../../../../../../../../etc/passwd"),
            ("</uuid>", "&amp;</uuid>"),
            ("<uuid>", "<genid>"),
        ] {
            assert_eq!(glance(good.replacen(from, to, 1).as_bytes()), None, "{from} {to}");
        }
        for text in ["", "<domain/>", "<domain></domain>", "<domain><name>", "</domain>", "<domain</domain>"]
        {
            assert_eq!(glance(text.as_bytes()), None, "{text}");
        }
    }

    /// All examples: whoever glances sees what the reader sees, or less.
    #[test]
    fn a_glance_agrees_with_the_reader() {
        let (mut seen, mut clear) = (0, 0);
        for entry in std::fs::read_dir("examples").expect("examples").flatten() {
            let path = entry.path();
            let Some(text) =
                std::fs::read(&path).ok().filter(|_| path.extension().is_some_and(|e| e == "xml"))
            else {
                continue;
            };
            let Ok(domain) = Domain::parse(&text) else { continue };
            let Some(glance) = glance(&text) else { continue };
            seen += 1;
            assert_eq!(Some(glance.uuid), domain.uuid.as_deref(), "{}", path.display());
            if glance.nothing_of_the_host {
                clear += 1;
                assert!(!domain.passes_through(), "{}", path.display());
            }
        }
        assert!(seen > 20 && clear > 0, "{seen} seen, {clear} clear");
    }
}
