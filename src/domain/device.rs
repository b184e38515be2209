//! `<devices>`: every PCI function the guest will see, in document order.
//!
//! Where it stands in the guest is read here, what it is comes from [`super::emulated`]. What libvirt adds when a
//! domain is defined is added here too, marked as such (`qemuDomainDefAddDefaultDevices`,
//! `virDomainDefAddImplicitDevices`, libvirt 9.0), so that a hand-written domain looks like its dumpxml.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::controller;
use super::emulated::{self, Emulated};
use super::error::ParseError;
use super::memory::MemoryParts;
use super::model::{
    Controller, Device, DeviceKind, Element, HostForm, MachineFamily, Unresolved, UnresolvedKind,
};
use super::placing::{controller_type, driver, libvirt_order, usb2_function};
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
    /// The largest `index=` of a PCI controller so far.
    last_index: u32,
}

/// Where an element says its device stands.
struct Place {
    address: Option<PciAddress>,
    multifunction: bool,
}

/// What has been seen, as far as libvirt's additions depend on it.
#[derive(Default)]
struct Seen {
    usb: Indices,
    graphics: bool,
    balloon: bool,
    scsi: Indices,
    sata: Indices,
    serial: Indices,
    /// SCSI controllers that host devices stand on, in the order of these.
    scsi_hosts: Vec<u32>,
}

impl Seen {
    /// The controllers of a type, as far as they matter.
    fn controllers(&mut self, kind: &str) -> Option<&mut Indices> {
        match kind {
            "usb" => Some(&mut self.usb),
            "scsi" => Some(&mut self.scsi),
            "sata" => Some(&mut self.sata),
            "virtio-serial" => Some(&mut self.serial),
            _ => None,
        }
    }
}

/// Controllers of one type, by index.
#[derive(Default)]
struct Indices {
    /// Those that a disk or host device stands on.
    needed: BTreeSet<u32>,
    /// Those that are written.
    there: BTreeSet<u32>,
}

/// The SCSI controller that libvirt adds.
const SCSI: &str = "lsi53c895a";

/// Nobody has more controllers of a type than this; it bounds what a strange index can cost.
const MAX_CONTROLLERS: u32 = 256;

impl Indices {
    fn need(&mut self, node: Node<'_, '_>, chosen: impl FnOnce() -> u32) {
        self.needed.insert(stands_on(node, chosen));
    }

    /// One without an index is numbered when all are known.
    fn have(&mut self, node: Node<'_, '_>) {
        self.there.extend(node.attribute("index").map(|text| text.parse().unwrap_or(0)));
    }

    /// What libvirt adds: each that is needed.
    fn missing(&self) -> impl Iterator<Item = u32> {
        self.needed.iter().copied().filter(|index| *index < MAX_CONTROLLERS && !self.there.contains(index))
    }

    /// The same for controllers of disks: all up to the largest that is needed, which are there from now on.
    fn missing_up_to(&mut self, last: Option<u32>) -> Vec<u32> {
        let count = last.map_or(0, |last| last.saturating_add(1)).min(MAX_CONTROLLERS);
        let missing: Vec<u32> = (0..count).filter(|index| !self.there.contains(index)).collect();
        self.there.extend(&missing);
        missing
    }

    fn missing_for_disks(&mut self) -> Vec<u32> {
        self.missing_up_to(self.needed.last().copied())
    }
}

/// The controller that something stands on: the one its address names, or the one libvirt chooses.
fn stands_on(node: Node<'_, '_>, chosen: impl FnOnce() -> u32) -> u32 {
    let address = child(node, "address").and_then(|address| address.attribute("controller"));
    address.map_or_else(chosen, |text| text.parse().unwrap_or(0))
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
                        "scsi" => seen.scsi.need(node, || emulated::disk_number(node) / 7),
                        "sata" => seen.sata.need(node, || emulated::disk_number(node) / 6),
                        // Only these are functions of their own.
                        "virtio" => {
                            found.emulated(reader, node, Element::Disk, Some(emulated::virtio_disk(node)))?;
                        }
                        _ => {}
                    }
                }
                "graphics" => seen.graphics = true,
                "video" => videos.push(node),
                "memballoon" => {
                    seen.balloon = true;
                    found.emulated(reader, node, Element::Memballoon, emulated::memballoon(node))?;
                }
                "channel" | "console" => {
                    if child_attribute(node, "target", "type") == Some("virtio") {
                        seen.serial.need(node, || 0);
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
        let line = node.map_or(1, |node| reader.line(node));
        if family != MachineFamily::Other {
            found.add_for_hosts(&mut seen, line);
        }
        found.number_others(&mut seen);
        found.videos(reader, &videos)?;
        found.add_implicit(&mut seen, family, videos.is_empty(), line);
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
                let index = index.and_then(|index| u32::try_from(index).ok());
                let (mut controller, hole) = controller::parse(reader, node, index.unwrap_or(0))?;
                match index {
                    Some(index) => self.last_index = self.last_index.max(index),
                    None => controller.after = Some(self.last_index),
                }
                self.pci_hole64 = self.pci_hole64.or(hole);
                self.controllers.push(controller);
                return Ok(());
            }
            // None is one, too.
            Some("usb") if node.attribute("model") == Some("none") => seen.usb.there.extend([0]),
            kind => {
                if let Some(indices) = kind.and_then(|kind| seen.controllers(kind)) {
                    indices.have(node);
                }
            }
        }
        self.emulated(reader, node, Element::Controller, emulated::controller(node))
    }

    /// A PCI controller without an index takes the lowest free one (`virDomainControllerFindUnusedIndex`).
    fn number_controllers(&mut self) {
        if self.controllers.iter().all(|controller| controller.after.is_none()) {
            return;
        }
        let given = self.controllers.iter().filter(|controller| controller.after.is_none());
        let taken: BTreeSet<u32> = given.map(|controller| controller.index).collect();
        let mut free = (0..=u32::MAX).filter(|index| !taken.contains(index));
        for controller in self.controllers.iter_mut().filter(|controller| controller.after.is_some()) {
            controller.index = free.next().unwrap_or(u32::MAX);
        }
    }

    /// The same for controllers of other types (`virDomainAssignControllerIndexes`), in libvirt's order. The functions of
    /// ICH9's USB 2 are the exception: they join the USB controller before them, until one of them comes a second time.
    fn number_others(&mut self, seen: &mut Seen) {
        let is_waiting = |device: &Device| device.element == Element::Controller && device.index.is_none();
        if !self.devices.iter().any(is_waiting) {
            return;
        }
        let order = libvirt_order(&self.devices).into_iter();
        let order: Vec<usize> = order.filter(|&i| self.devices[i].element == Element::Controller).collect();
        let drivers: Vec<String> =
            order.iter().map(|&i| driver(&self.devices[i]).unwrap_or_default().to_owned()).collect();
        // By type, and by QEMU's name.
        let mut taken: BTreeSet<(&str, u32)> = BTreeSet::new();
        for (&position, driver) in order.iter().zip(&drivers) {
            let index = self.devices[position].index;
            taken.extend(
                index.into_iter().flat_map(|index| [(controller_type(driver), index), (driver, index)]),
            );
        }
        let mut free: BTreeMap<&str, u32> = BTreeMap::new();
        let mut before = None;
        for (&position, driver) in order.iter().zip(&drivers) {
            let device = &mut self.devices[position];
            let kind = controller_type(driver);
            let is_usb2 = usb2_function(driver).is_some();
            if device.index.is_none() {
                let joins = before.filter(|&number| is_usb2 && !taken.contains(&(driver, number)));
                device.number = joins.unwrap_or_else(|| {
                    let next = free.entry(kind).or_default();
                    while taken.contains(&(kind, *next)) {
                        *next += 1;
                    }
                    *next
                });
                taken.extend([(kind, device.number), (driver, device.number)]);
                if let Some(indices) = seen.controllers(kind) {
                    indices.there.insert(device.number);
                }
            }
            if kind == "usb" {
                before = Some(device.number).filter(|_| is_usb2);
            }
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
                self.unresolved.push(Unresolved {
                    what: format!("mdev {uuid}"),
                    line,
                    kind: UnresolvedKind::Mediated,
                });
                self.emulated(reader, node, Element::Hostdev, Some(Emulated::named("vfio-pci")))
            }
            Some("scsi") => {
                seen.scsi_hosts.push(stands_on(node, || 0));
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
            self.unresolved.push(Unresolved { what, line, kind: UnresolvedKind::Network });
        }
        self.emulated(reader, node, Element::Interface, emulated::interface(node))
    }

    fn shmem(&mut self, reader: &mut Reader<'_, '_>, node: Node<'_, '_>) -> Result<(), ParseError> {
        let device = emulated::shmem(reader, node)?;
        if device.sizes.is_empty() {
            let line = reader.line(node);
            let name = node.attribute("name").unwrap_or_default();
            let what = format!("shared memory \"{name}\": only its server knows the size, taken to be 4 MiB");
            self.unresolved.push(Unresolved { what, line, kind: UnresolvedKind::SharedMemory });
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
        let index = reader.number(node, "index", Base::Ten, u64::from(u32::MAX))?;
        let index = match element {
            Element::Controller => index.and_then(|index| u32::try_from(index).ok()),
            Element::Disk => Some(emulated::disk_number(node)),
            _ => None,
        };
        self.devices.push(Device {
            kind,
            address,
            multifunction,
            alias: alias(node),
            line: reader.line(node),
            element,
            index,
            number: index.filter(|_| element == Element::Controller).unwrap_or(0),
            implicit: false,
            arg: None,
            bus: None,
        });
        Ok(())
    }

    /// The controllers that SCSI host devices stand on, of the model of the first that is there. libvirt adds them while it
    /// reads, before those without an index are numbered.
    fn add_for_hosts(&mut self, seen: &mut Seen, line: u32) {
        let mut hosts = seen.scsi_hosts.iter();
        let last = hosts.clone().max().copied();
        let model = hosts.find_map(|&index| self.scsi_controller(index)).unwrap_or(SCSI).to_owned();
        for index in seen.scsi.missing_up_to(last) {
            self.add(&model, Element::Controller, Some(index), line);
        }
    }

    /// What libvirt adds at define, on the machines it does so for.
    fn add_implicit(&mut self, seen: &mut Seen, family: MachineFamily, no_video: bool, line: u32) {
        let mut add = |driver: &str, element, index| self.add(driver, element, index, line);
        let usb = match family {
            MachineFamily::Q35 => "qemu-xhci",
            MachineFamily::I440fx => "piix3-usb-uhci",
            MachineFamily::Other => return,
        };
        if !seen.usb.there.contains(&0) {
            add(usb, Element::Controller, Some(0));
        }
        for index in seen.scsi.missing_for_disks() {
            add(SCSI, Element::Controller, Some(index));
        }
        if family == MachineFamily::Q35 {
            seen.sata.needed.insert(0);
        }
        for index in seen.sata.missing_for_disks() {
            add("ich9-ahci", Element::Controller, Some(index));
        }
        for index in seen.serial.missing() {
            add("virtio-serial-pci", Element::Controller, Some(index));
        }
        if no_video && seen.graphics {
            add(&emulated::default_video().driver, Element::Video, None);
        }
        if !seen.balloon {
            add("virtio-balloon-pci", Element::Memballoon, None);
        }
    }

    fn add(&mut self, driver: &str, element: Element, index: Option<u32>, line: u32) {
        self.devices.push(Device {
            kind: DeviceKind::Emulated { driver: driver.to_owned(), sizes: Vec::new() },
            address: None,
            multifunction: false,
            alias: None,
            line,
            element,
            index,
            number: index.unwrap_or(0),
            implicit: true,
            arg: None,
            bus: None,
        });
    }

    /// QEMU's name of the SCSI controller of this index.
    fn scsi_controller(&self, index: u32) -> Option<&str> {
        let controllers = self.devices.iter().filter(|device| device.element == Element::Controller);
        controllers
            .filter(|device| device.index == Some(index))
            .filter_map(driver)
            .find(|driver| controller_type(driver) == "scsi")
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
