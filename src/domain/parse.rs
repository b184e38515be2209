//! From the root element down: which parts there are, and who reads each.
//!
//! One walk over the tree. Of an element that may stand only once, the first counts, as in libvirt's `./name[1]`.

use std::path::PathBuf;

use super::command_line;
use super::cpu;
use super::device::Devices;
use super::document::Document;
use super::error::ParseError;
use super::memory::MemoryParts;
use super::metadata;
use super::model::{Domain, FirmwareRequest, MachineFamily, QEMU_NAMESPACE, VirtType};
use super::read::{Node, Reader, child, elements, text};
use crate::text::printable;

impl Domain {
    /// Reads a domain XML. The error says where and what to do.
    pub fn parse(bytes: &[u8]) -> Result<Domain, ParseError> {
        Domain::from_document(&Document::parse(bytes)?)
    }

    /// Reads the domain in a document.
    pub fn from_document(document: &Document<'_>) -> Result<Domain, ParseError> {
        let root = document.root();
        let mut reader = Reader::new(document);
        check_root(&reader, root)?;

        let mut name = None;
        let mut uuid = None;
        let mut os = None;
        let mut memory = MemoryParts::default();
        let mut cpu = None;
        let mut devices = None;
        let mut launch_security = None;
        let mut metadata = None;
        let mut words = Vec::new();
        for node in root.children().filter(Node::is_element) {
            match (node.tag_name().namespace(), node.tag_name().name()) {
                (Some(QEMU_NAMESPACE), "commandline") => {
                    command_line::collect(&mut reader, node, &mut words);
                }
                (Some(_), _) => {}
                (None, "name") => set_first(&mut name, || text(node).into_owned()),
                (None, "uuid") => set_first(&mut uuid, || normal_uuid(&text(node))),
                (None, "os") => set_first(&mut os, || node),
                (None, "memory") => memory.total(&reader, node)?,
                (None, "maxMemory") => memory.max(&reader, node)?,
                (None, "cpu") if cpu.is_none() => {
                    if let Some(numa) = child(node, "numa") {
                        memory.cells(&reader, numa)?;
                    }
                    cpu = Some(cpu::parse(&reader, node)?);
                }
                (None, "devices") => set_first(&mut devices, || node),
                (None, "launchSecurity") => set_first(&mut launch_security, || node.attribute("type")),
                (None, "metadata") if metadata.is_none() => metadata = Some(metadata::parse(node)),
                (None, _) => {}
            }
        }

        let os = Os::parse(&reader, os)?;
        let family = MachineFamily::of(os.machine.as_deref());
        let mut found = Devices::parse(&mut reader, devices, &mut memory, family)?;
        let command_line = command_line::parse(words, cpu.as_ref(), family, &mut found);
        let metadata = metadata.unwrap_or_default();
        let mut unresolved = found.unresolved;
        for one in &mut unresolved {
            one.what = printable(&one.what);
        }
        Ok(Domain {
            name: name.unwrap_or_default(),
            uuid,
            virt: virt(root),
            running: root.has_attribute("id"),
            arch: os.arch,
            machine: os.machine,
            emulator: found.emulator,
            firmware: os.firmware,
            memory: memory.finish(&reader, root)?,
            cpu,
            controllers: found.controllers,
            devices: found.devices,
            unresolved,
            pci_hole64: found.pci_hole64,
            command_line,
            flavor: metadata.flavor,
            launch_security: launch_security.flatten().map(str::to_owned),
            policy: metadata.policy,
        })
    }
}

/// Keeps the first of several.
fn set_first<T>(slot: &mut Option<T>, value: impl FnOnce() -> T) {
    if slot.is_none() {
        *slot = Some(value());
    }
}

fn check_root(reader: &Reader<'_, '_>, root: Node<'_, '_>) -> Result<(), ParseError> {
    let name = root.tag_name();
    if name.name() != "domain" {
        return reader.fail(
            root,
            format!("this is `<{}>`, not a domain; give the output of `virsh dumpxml NAME`", name.name()),
        );
    }
    match name.namespace() {
        None => Ok(()),
        Some(uri) => reader.fail(
            root,
            format!("`<domain>` stands in namespace `{uri}`, libvirt's stands in none; remove xmlns="),
        ),
    }
}

fn virt(root: Node<'_, '_>) -> VirtType {
    match root.attribute("type") {
        Some("kvm") => VirtType::Kvm,
        Some("qemu") => VirtType::Qemu,
        other => VirtType::Other(other.unwrap_or_default().to_owned()),
    }
}

/// Lower case with hyphens: libvirt takes a UUID with hyphens anywhere or nowhere (`virUUIDParse`).
fn normal_uuid(text: &str) -> String {
    let digits: String =
        text.chars().filter(char::is_ascii_hexdigit).map(|c| c.to_ascii_lowercase()).collect();
    if digits.len() != 32 {
        return text.trim().to_owned();
    }
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]).join("-")
}

/// What `<os>` says.
struct Os {
    arch: Option<String>,
    machine: Option<String>,
    firmware: FirmwareRequest,
}

impl Os {
    /// Sources: `virDomainDefParseBootFirmwareOptions`, `virDomainLoaderDefParseXML` (libvirt 9.0
    /// `src/conf/domain_conf.c`). An empty `<loader/>` names no file; a loader without type is `rom`.
    fn parse(reader: &Reader<'_, '_>, node: Option<Node<'_, '_>>) -> Result<Os, ParseError> {
        let mut os = Os { arch: None, machine: None, firmware: FirmwareRequest::Default };
        let Some(node) = node else { return Ok(os) };
        let mut kind = None;
        let mut loader = None;
        for (name, child) in elements(node) {
            match name {
                "type" => set_first(&mut kind, || child),
                "loader" => set_first(&mut loader, || child),
                _ => {}
            }
        }
        let attribute = |name| kind.and_then(|k| k.attribute(name)).map(str::to_owned);
        os.arch = attribute("arch");
        os.machine = attribute("machine");
        let path = loader.map(|l| PathBuf::from(text(l).as_ref())).filter(|p| !p.as_os_str().is_empty());
        os.firmware = match (node.attribute("firmware"), path, loader.and_then(|l| l.attribute("type"))) {
            (Some("efi"), loader, _) => FirmwareRequest::AutoEfi { loader },
            (Some("bios"), _, _) => FirmwareRequest::AutoBios,
            (Some(other), _, _) => {
                return reader.fail_attribute(
                    node,
                    "firmware",
                    format!("`{other}` is neither `efi` nor `bios`"),
                );
            }
            (None, Some(path), Some("pflash")) => FirmwareRequest::Pflash(path),
            (None, Some(path), _) => FirmwareRequest::Rom(path),
            (None, None, _) => FirmwareRequest::Default,
        };
        Ok(os)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{CpuMode, DeviceKind, MaxMemory, MaxPhysAddrMode};
    use crate::units::{Bytes, GIB, MIB};

    fn domain(body: &str) -> Domain {
        let memory = if body.contains("<memory") { "" } else { "<memory>1048576</memory>" };
        Domain::parse(format!("<domain type='kvm'>{memory}{body}</domain>").as_bytes()).expect(body)
    }

    #[test]
    fn memory_in_every_form() {
        let cell = |a: &str, b: &str| format!("<cpu><numa><cell {a}/><cell {b}/></numa></cpu>");
        let dimm = |model: &str, gib: u64| {
            format!("<memory model='{model}'><target><size unit='GiB'>{gib}</size></target></memory>")
        };
        let max = |gib, slots| Some(MaxMemory { size: Bytes(gib * GIB), slots });
        for (body, boot, max, sgx, plugged) in [
            ("<memory unit='GiB'>512</memory>".to_owned(), 512 * GIB, None, 0, 0),
            // 1 GB is 976563 KiB, and QEMU counts in MiB.
            ("<memory unit='GB'>1</memory>".to_owned(), 954 * MIB, None, 0, 0),
            ("<memory>1048577</memory>".to_owned(), 1025 * MIB, None, 0, 0),
            ("<memory>1048576</memory><memory>2097152</memory>".to_owned(), GIB, None, 0, 0),
            (
                "<memory>1<!-- -->048576</memory><currentMemory>1024</currentMemory>".to_owned(),
                GIB,
                None,
                0,
                0,
            ),
            (
                format!(
                    "<memory unit='GiB'>4</memory>{}",
                    cell("memory='131072'", "memory='128' unit='MiB'")
                ),
                256 * MIB,
                None,
                0,
                0,
            ),
            (format!("<memory unit='GiB'>4</memory>{}", cell("cpus='0'", "cpus='1'")), 4 * GIB, None, 0, 0),
            // Each cell is rounded up for itself.
            (cell("memory='1025'", "memory='1025'"), 4 * MIB, None, 0, 0),
            (
                format!(
                    "<maxMemory slots='16' unit='GiB'>64</maxMemory><memory unit='GiB'>12</memory>\
                     <devices>{}{}</devices>",
                    dimm("dimm", 3),
                    dimm("virtio-mem", 1)
                ),
                8 * GIB,
                max(64, 16),
                0,
                4 * GIB,
            ),
            (
                format!("<memory unit='GiB'>9</memory><devices>{}</devices>", dimm("sgx-epc", 1)),
                8 * GIB,
                None,
                GIB,
                0,
            ),
        ] {
            let found = domain(&body).memory;
            let expected = crate::domain::Memory {
                boot: Bytes(boot),
                max,
                sgx_epc: Bytes(sgx),
                plugged: Bytes(plugged),
            };
            assert_eq!(found, expected, "{body}");
        }
    }

    #[test]
    fn firmware_in_every_form() {
        let path = |p: &str| PathBuf::from(p);
        for (os, firmware) in [
            ("", FirmwareRequest::Default),
            ("<os><type>hvm</type></os>", FirmwareRequest::Default),
            ("<os firmware='efi'/>", FirmwareRequest::AutoEfi { loader: None }),
            ("<os firmware='efi'><loader secure='yes'/></os>", FirmwareRequest::AutoEfi { loader: None }),
            (
                "<os firmware='efi'><loader type='pflash'>/f</loader></os>",
                FirmwareRequest::AutoEfi { loader: Some(path("/f")) },
            ),
            ("<os firmware='bios'/>", FirmwareRequest::AutoBios),
            (
                "<os><loader readonly='yes' type='pflash'>/f</loader></os>",
                FirmwareRequest::Pflash(path("/f")),
            ),
            ("<os><loader type='rom'>/f</loader></os>", FirmwareRequest::Rom(path("/f"))),
            ("<os><loader>/f</loader></os>", FirmwareRequest::Rom(path("/f"))),
            ("<os><nvram>/n</nvram></os>", FirmwareRequest::Default),
        ] {
            assert_eq!(domain(os).firmware, firmware, "{os}");
        }
    }

    #[test]
    fn cpu_with_nonsense_kept() {
        assert_eq!(domain("").cpu, None);
        let cpu = domain(
            "<cpu mode='host-passthrough' migratable='off'><maxphysaddr mode='emulate' bits='64'/>\
             <maxphysaddr mode='passthrough' limit='39'/><feature name='a' policy='disable'/><feature name='b'/></cpu>",
        )
        .cpu
        .expect("a cpu");
        assert_eq!(cpu.mode, CpuMode::HostPassthrough);
        assert_eq!(cpu.migratable, Some(false));
        let width = cpu.maxphysaddr.expect("a width");
        assert_eq!((width.mode, width.bits, width.limit), (MaxPhysAddrMode::Emulate, Some(64), None));
        assert_eq!(cpu.features.len(), 2);
    }

    #[test]
    fn hostdevs_and_their_two_addresses() {
        let found = domain(
            "<devices><hostdev type='pci'><source><address domain='0x10000' bus='010' slot='31' function='0x1'/>\
             </source><rom bar='off'/><address type='pci' bus='0x05' multifunction='on'/></hostdev>\
             <hostdev mode='subsystem' type='usb'/><hostdev mode='capabilities' type='misc'/>\
             <hostdev mode='subsystem' type='pci'><source><address bus='1'/></source><address type='unassigned'/></hostdev>\
             <disk type='nvme'><source type='pci'><address bus='2'/></source><target dev='vda' bus='virtio'/></disk>\
             <hostdev type='mdev' model='vfio-pci'><source><address uuid='u'/></source></hostdev></devices>",
        );
        let host: Vec<_> = found
            .devices
            .iter()
            .filter_map(|d| match &d.kind {
                DeviceKind::Host { host, rom_bar, .. } => Some((host.to_string(), *rom_bar, d.address)),
                DeviceKind::Emulated { .. } => None,
            })
            .collect();
        let guest = crate::units::PciAddress { bus: 5, ..Default::default() };
        assert_eq!(host, [("10000:08:1f.1".to_owned(), false, Some(guest))]);
        assert_eq!(found.unresolved.len(), 1);
        assert_eq!(found.unresolved[0].what, "mdev u");
    }

    #[test]
    fn nova_and_policy_by_namespace() {
        let found = domain(
            "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'><n:flavor name='ao.3.96'/>\
             </n:instance><p:x xmlns:p='https://barfit.dev/xmlns/domain/1' bits='46'><p:mode> observe </p:mode></p:x>\
             </metadata>",
        );
        assert_eq!(found.flavor.as_deref(), Some("ao.3.96"));
        let policy = [("bits".to_owned(), "46".to_owned()), ("mode".to_owned(), "observe".to_owned())];
        assert_eq!(found.policy, policy);
    }
}
