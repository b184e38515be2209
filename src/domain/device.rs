//! `<devices>`: every PCI function the guest will see, in document order.
//!
//! Where it stands in the guest is read here, what it is comes from [`super::emulated`]. What libvirt adds when a
//! domain is defined is added here too, marked as such (`qemuDomainDefAddDefaultDevices`,
//! `virDomainDefAddImplicitDevices`, libvirt 9.0), so that a hand-written domain looks like its dumpxml.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::controller;
use super::emulated::{self, Emulated};
use super::error::ParseError;
use super::memory::MemoryParts;
use super::model::{Controller, Device, DeviceKind, Element, HostForm, MachineFamily, Unresolved};
use super::read::{Node, Reader, child, child_attribute, elements, text};
use super::value::{Base, switch};
use crate::units::{Bytes, PciAddress};

/// Everything found in `<devices>`.
#[derive(Default)]
pub(super) struct Devices {
    pub(super) emulator: Option<PathBuf>,
    pub(super) controllers: Vec<Controller>,
    pub(super) devices: Vec<Device>,
    pub(super) unresolved: Vec<Unresolved>,
    pub(super) pci_hole64: Option<Bytes>,
    /// PCI controllers without `index=`, by position.
    unnumbered: Vec<usize>,
}

/// Where an element says its device stands.
struct Place {
    address: Option<PciAddress>,
    multifunction: bool,
}

/// What has been seen, as far as libvirt's additions depend on it.
#[derive(Default)]
struct Seen {
    usb: bool,
    sata: bool,
    graphics: bool,
    balloon: bool,
    /// Largest controller index that a disk or host device needs, by controller type.
    needs: [(Option<u64>, Option<u64>); 3],
}

/// Controller types that libvirt adds when something needs them: index into [`Seen::needs`].
const SCSI: usize = 0;
const SATA: usize = 1;
const SERIAL: usize = 2;

impl Seen {
    /// Something stands on a controller.
    fn need(&mut self, kind: usize, node: Node<'_, '_>) {
        let address = child(node, "address").and_then(|a| a.attribute("controller"));
        let index = address.and_then(|text| text.parse().ok()).unwrap_or(0);
        self.needs[kind].0 = self.needs[kind].0.max(Some(index));
    }

    /// A controller is there. Indices are dense in practice: the largest one stands for all below it.
    fn have(&mut self, kind: usize, node: Node<'_, '_>) {
        let index = node.attribute("index").and_then(|text| text.parse().ok()).unwrap_or(0);
        self.needs[kind].1 = self.needs[kind].1.max(Some(index));
    }

    /// How many controllers libvirt adds; nobody has more than a few.
    fn missing(&self, kind: usize) -> u64 {
        let (needed, there) = self.needs[kind];
        let count = |index: Option<u64>| index.map_or(0, |index| index.saturating_add(1));
        count(needed).saturating_sub(count(there)).min(256)
    }
}

impl Devices {
    pub(super) fn parse(
        reader: &mut Reader<'_, '_>,
        node: Option<Node<'_, '_>>,
        memory: &mut MemoryParts,
        family: MachineFamily,
    ) -> Result<Devices, ParseError> {
        let mut found = Devices::default();
        let mut seen = Seen::default();
        let mut videos = Vec::new();
        for (name, node) in node.into_iter().flat_map(elements) {
            match name {
                "emulator" if found.emulator.is_none() => {
                    found.emulator = Some(PathBuf::from(text(node).as_ref()));
                }
                "controller" => found.controller(reader, node, &mut seen)?,
                "hostdev" => found.hostdev(reader, node, &mut seen)?,
                "interface" => found.interface(reader, node)?,
                "memory" => {
                    memory.device(reader, node)?;
                    found.emulated(reader, node, Element::Memory, emulated::memory(node))?;
                }
                "disk" => {
                    match emulated::disk_bus(node) {
                        "scsi" => seen.need(SCSI, node),
                        "sata" => seen.need(SATA, node),
                        _ => {}
                    }
                    found.emulated(reader, node, Element::Disk, emulated::disk(node))?;
                }
                "graphics" => seen.graphics = true,
                "video" => videos.push(node),
                "memballoon" => {
                    seen.balloon = true;
                    found.emulated(reader, node, Element::Memballoon, emulated::memballoon(node))?;
                }
                "channel" | "console" => {
                    if child_attribute(node, "target", "type") == Some("virtio") {
                        seen.need(SERIAL, node);
                    }
                }
                "shmem" => found.shmem(reader, node)?,
                "pstore" => {
                    let device = emulated::pstore(reader, node)?;
                    found.emulated(reader, node, Element::Pstore, Some(device))?;
                }
                _ => {
                    let Some((element, device)) = simple(name, node) else { continue };
                    found.emulated(reader, node, element, device)?;
                }
            }
        }
        found.number_controllers();
        found.videos(reader, &videos)?;
        let line = node.map_or(1, |node| reader.line(node));
        found.add_implicit(&seen, family, videos.is_empty(), line);
        Ok(found)
    }

    fn controller(
        &mut self,
        reader: &mut Reader<'_, '_>,
        node: Node<'_, '_>,
        seen: &mut Seen,
    ) -> Result<(), ParseError> {
        match node.attribute("type") {
            Some("pci") => {
                let index = reader.number(node, "index", Base::Ten, u64::from(u32::MAX))?;
                if index.is_none() {
                    self.unnumbered.push(self.controllers.len());
                }
                let index = index.and_then(|index| u32::try_from(index).ok()).unwrap_or(0);
                let (controller, hole) = controller::parse(reader, node, index)?;
                self.pci_hole64 = self.pci_hole64.or(hole);
                self.controllers.push(controller);
                return Ok(());
            }
            Some("usb") => seen.usb = true,
            Some("scsi") => seen.have(SCSI, node),
            Some("virtio-serial") => seen.have(SERIAL, node),
            Some("sata") => {
                seen.sata = true;
                seen.have(SATA, node);
            }
            _ => {}
        }
        self.emulated(reader, node, Element::Controller, emulated::controller(node))
    }

    /// A PCI controller without an index takes the lowest free one (`virDomainControllerFindUnusedIndex`).
    fn number_controllers(&mut self) {
        let unnumbered = std::mem::take(&mut self.unnumbered);
        if unnumbered.is_empty() {
            return;
        }
        let given = |i: &usize| unnumbered.binary_search(i).is_err();
        let taken: BTreeSet<u32> =
            (0..self.controllers.len()).filter(given).map(|i| self.controllers[i].index).collect();
        let free = (0..=u32::MAX).filter(|index| !taken.contains(index));
        for (position, index) in unnumbered.into_iter().zip(free) {
            self.controllers[position].index = index;
        }
    }

    fn hostdev(
        &mut self,
        reader: &mut Reader<'_, '_>,
        node: Node<'_, '_>,
        seen: &mut Seen,
    ) -> Result<(), ParseError> {
        if node.attribute("mode").is_some_and(|mode| mode != "subsystem") {
            return Ok(());
        }
        match node.attribute("type") {
            Some("pci") => {
                let host = source_address(reader, node)?;
                self.host(reader, node, host, HostForm::Hostdev)
            }
            Some("mdev") if node.attribute("model").is_none_or(|model| model == "vfio-pci") => {
                let source = child(node, "source").and_then(|source| child(source, "address"));
                let uuid = source.and_then(|address| address.attribute("uuid")).unwrap_or("without uuid");
                let line = reader.line(node);
                self.unresolved.push(Unresolved { what: format!("mdev {uuid}"), line, certain: true });
                self.emulated(reader, node, Element::Hostdev, Some(Emulated::named("vfio-pci")))
            }
            Some("scsi") => {
                seen.need(SCSI, node);
                Ok(())
            }
            Some("scsi_host") => {
                self.emulated(reader, node, Element::Hostdev, Some(emulated::scsi_host(node)))
            }
            _ => Ok(()),
        }
    }

    fn interface(&mut self, reader: &mut Reader<'_, '_>, node: Node<'_, '_>) -> Result<(), ParseError> {
        let kind = node.attribute("type").unwrap_or_default();
        if kind == "hostdev" {
            let source = child(node, "source").and_then(|source| child(source, "address"));
            if source.and_then(|address| address.attribute("type")).is_some_and(|kind| kind != "pci") {
                return Ok(());
            }
            let host = source_address(reader, node)?;
            return self.host(reader, node, host, HostForm::Interface);
        }
        if kind == "network" {
            let network = child_attribute(node, "source", "network").unwrap_or_default();
            let line = reader.line(node);
            let what = format!("network \"{network}\" may pick a virtual function at start");
            self.unresolved.push(Unresolved { what, line, certain: false });
        }
        self.emulated(reader, node, Element::Interface, emulated::interface(node))
    }

    fn shmem(&mut self, reader: &mut Reader<'_, '_>, node: Node<'_, '_>) -> Result<(), ParseError> {
        let device = emulated::shmem(reader, node)?;
        if device.sizes.is_empty() {
            let line = reader.line(node);
            let name = node.attribute("name").unwrap_or_default();
            let what = format!("shared memory \"{name}\": only its server knows the size");
            self.unresolved.push(Unresolved { what, line, certain: false });
        }
        self.emulated(reader, node, Element::Shmem, Some(device))
    }

    /// All displays: which is the primary one depends on all of them.
    fn videos(&mut self, reader: &mut Reader<'_, '_>, videos: &[Node<'_, '_>]) -> Result<(), ParseError> {
        let is_primary = |video: &Node<'_, '_>| child_attribute(*video, "model", "primary") == Some("yes");
        let primary = videos.iter().position(is_primary).unwrap_or(0);
        for (i, &node) in videos.iter().enumerate() {
            let device = emulated::video(reader, node, i == primary)?;
            let before = self.devices.len();
            self.emulated(reader, node, Element::Video, device)?;
            // libvirt moves the primary display to the front.
            if i == primary && self.devices.len() > before {
                let first = self.devices.iter().position(|d| d.element == Element::Video).unwrap_or(before);
                self.devices[first..].rotate_right(1);
            }
        }
        Ok(())
    }

    fn host(
        &mut self,
        reader: &mut Reader<'_, '_>,
        node: Node<'_, '_>,
        host: PciAddress,
        form: HostForm,
    ) -> Result<(), ParseError> {
        let kind = DeviceKind::Host { host, rom_bar: rom_bar(node), form };
        self.push(reader, node, Element::Hostdev, kind)
    }

    fn emulated(
        &mut self,
        reader: &mut Reader<'_, '_>,
        node: Node<'_, '_>,
        element: Element,
        device: Option<Emulated>,
    ) -> Result<(), ParseError> {
        let Some(mut device) = device else { return Ok(()) };
        if !rom_bar(node) {
            device.sizes.push(("rombar".to_owned(), Bytes::ZERO));
        }
        let kind = DeviceKind::Emulated { driver: device.driver, sizes: device.sizes };
        self.push(reader, node, element, kind)
    }

    fn push(
        &mut self,
        reader: &mut Reader<'_, '_>,
        node: Node<'_, '_>,
        element: Element,
        kind: DeviceKind,
    ) -> Result<(), ParseError> {
        let Some(Place { address, multifunction }) = place(reader, node)? else { return Ok(()) };
        self.devices.push(Device {
            kind,
            address,
            multifunction,
            alias: alias(node),
            line: reader.line(node),
            element,
            implicit: false,
            arg: None,
            bus: None,
        });
        Ok(())
    }

    /// What libvirt adds at define, on the machines it does so for.
    fn add_implicit(&mut self, seen: &Seen, family: MachineFamily, no_video: bool, line: u32) {
        let mut add = |driver: &str, element| {
            let kind = DeviceKind::Emulated { driver: driver.to_owned(), sizes: Vec::new() };
            self.devices.push(Device {
                kind,
                address: None,
                multifunction: false,
                alias: None,
                line,
                element,
                implicit: true,
                arg: None,
                bus: None,
            });
        };
        let usb = match family {
            MachineFamily::Q35 => "qemu-xhci",
            MachineFamily::I440fx => "piix3-usb-uhci",
            MachineFamily::Other => return,
        };
        if !seen.usb {
            add(usb, Element::Controller);
        }
        for _ in 0..seen.missing(SCSI) {
            add("lsi53c895a", Element::Controller);
        }
        let own_sata = u64::from(family == MachineFamily::Q35 && !seen.sata);
        for _ in 0..seen.missing(SATA).max(own_sata) {
            add("ich9-ahci", Element::Controller);
        }
        for _ in 0..seen.missing(SERIAL) {
            add("virtio-serial-pci", Element::Controller);
        }
        if no_video && seen.graphics {
            add(&emulated::default_video().driver, Element::Video);
        }
        if !seen.balloon {
            add("virtio-balloon-pci", Element::Memballoon);
        }
    }
}

/// Elements that need nothing but their own attributes.
fn simple(name: &str, node: Node<'_, '_>) -> Option<(Element, Option<Emulated>)> {
    Some(match name {
        "filesystem" => (Element::Filesystem, emulated::filesystem(node)),
        "sound" => (Element::Sound, emulated::sound(node)),
        "rng" => (Element::Rng, emulated::rng(node)),
        "watchdog" => (Element::Watchdog, emulated::watchdog(node)),
        "input" => (Element::Input, emulated::input(node)),
        "serial" => (Element::Serial, emulated::serial(node)),
        "iommu" => (Element::Iommu, emulated::iommu(node)),
        "vsock" => (Element::Vsock, emulated::vsock(node)),
        "crypto" => (Element::Crypto, emulated::crypto(node)),
        "panic" => (Element::Panic, emulated::panic(node)),
        _ => return None,
    })
}

/// `<source><address/></source>`: the host's address, not to be confused with the guest's beside it.
fn source_address(reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<PciAddress, ParseError> {
    match child(node, "source").and_then(|source| child(source, "address")) {
        Some(address) => reader.pci_address(address),
        None => {
            let name = node.tag_name().name();
            reader
                .fail(node, format!("`<{name}>` passes a PCI device through but has no `<source><address/>`"))
        }
    }
}

/// The guest's address; `None` when the device is on no PCI bus (or on none at all: `unassigned`).
fn place(reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<Option<Place>, ParseError> {
    let Some(address) = child(node, "address") else {
        return Ok(Some(Place { address: None, multifunction: false }));
    };
    if address.attribute("type").is_some_and(|kind| kind != "pci") {
        return Ok(None);
    }
    let multifunction = address.attribute("multifunction").and_then(switch).unwrap_or(false);
    Ok(Some(Place { address: guest_address(reader, address)?, multifunction }))
}

/// An address of all zeros asks for one to be given, as in libvirt.
pub(super) fn guest_address(
    reader: &Reader<'_, '_>,
    address: Node<'_, '_>,
) -> Result<Option<PciAddress>, ParseError> {
    let found = reader.pci_address(address)?;
    Ok(Some(found).filter(|_| found != PciAddress::default()))
}

/// Whether the guest sees an expansion ROM: not with `<rom bar='off'>`, nor `<rom enabled='no'>`.
fn rom_bar(node: Node<'_, '_>) -> bool {
    child(node, "rom").is_none_or(|rom| {
        rom.attribute("bar").and_then(switch) != Some(false)
            && rom.attribute("enabled").and_then(switch) != Some(false)
    })
}

/// `<alias name=>`.
pub(super) fn alias(node: Node<'_, '_>) -> Option<String> {
    child_attribute(node, "alias", "name").map(str::to_owned)
}
