//! Where every device stands in the guest: the PCI tree that QEMU will build.
//!
//! Addresses that the domain gives stay. For the others this module does what libvirt does when a domain is defined,
//! root ports and bridges that it adds included, so that a hand-written domain gives the same tree as its dumpxml.
//! Knows nothing of BARs. Source: libvirt 9.0 `src/qemu/qemu_domain_address.c` (`qemuDomainAssignPCIAddresses` and
//! below); verified against libvirt 9.0 by defining domains and comparing. A host device without an address is taken
//! to be PCI Express, as libvirt takes one that it cannot find.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::model::{
    Controller, ControllerModel, Device, DeviceKind, Domain, Element, HostForm, MachineFamily, PortReserve,
};
use super::qemu_device::Globals;
use super::slots::{Connect, Refusal, Slots};
use crate::units::PciAddress;

/// The guest's PCI functions as a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciTree {
    /// The root bus, in order of slot and function. Expander buses are controllers on it, with children of their own.
    pub root: Vec<Node>,
    /// Why libvirt or QEMU would refuse the domain: one sentence each. What has no place is not in the tree.
    pub problems: Vec<Problem>,
}

/// An address that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the XML.
    pub line: u32,
    /// What is wrong, and what to do.
    pub message: String,
}

/// One PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Device number on its bus, 0 to 31.
    pub slot: u8,
    /// Function number, 0 to 7.
    pub function: u8,
    /// What stands there.
    pub what: What,
}

/// What a function is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Part of the chipset, by QEMU's name.
    BuiltIn(&'static str),
    /// Position in [`Domain::devices`].
    Device(usize),
    /// A bridge, and the bus behind it.
    Port(Box<Port>),
}

/// A bridge of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The controller: the domain's, or one that libvirt adds (then without line).
    pub controller: Controller,
    /// The bus behind it, in order of slot and function.
    pub children: Vec<Node>,
}

/// Functions that are part of QEMU's q35 (`hw/i386/pc_q35.c`).
const Q35: [(u8, u8, &str); 4] =
    [(0, 0, "mch"), (0x1f, 0, "ICH9-LPC"), (0x1f, 2, "ich9-ahci"), (0x1f, 3, "ICH9-SMB")];
/// Functions that are part of QEMU's i440fx (`hw/i386/pc_piix.c`).
const I440FX: [(u8, u8, &str); 4] =
    [(0, 0, "i440FX"), (1, 0, "PIIX3"), (1, 1, "piix3-ide"), (1, 3, "PIIX4_PM")];

/// Gives every device and controller of a domain its place.
pub fn assign(domain: &Domain) -> PciTree {
    let mut work = Assignment::new(domain);
    // libvirt goes twice: first to learn how many buses it takes, then, with a controller for each, for good.
    work.pass(true);
    work.problems.clear();
    work.pass(false);
    work.command_line();
    work.number_expanders();
    work.tree()
}

struct Assignment<'d> {
    domain: &'d Domain,
    family: MachineFamily,
    /// Controllers by index, the root included, without those of the QEMU command line.
    controllers: BTreeMap<u8, Controller>,
    /// Indices of the controllers that libvirt adds.
    added: BTreeSet<u8>,
    slots: Slots,
    /// Place of each of the domain's devices.
    devices: Vec<Option<PciAddress>>,
    /// Place of each controller.
    ports: BTreeMap<u8, PciAddress>,
    problems: Vec<Problem>,
    /// What was wrong with the list of controllers itself.
    list_problems: Vec<Problem>,
}

impl<'d> Assignment<'d> {
    fn new(domain: &'d Domain) -> Assignment<'d> {
        let mut work = Assignment {
            domain,
            family: domain.family(),
            controllers: BTreeMap::new(),
            added: BTreeSet::new(),
            slots: Slots::new(std::iter::empty(), false),
            devices: Vec::new(),
            ports: BTreeMap::new(),
            problems: Vec::new(),
            list_problems: Vec::new(),
        };
        work.list_controllers();
        work
    }

    /// Sorts the controllers by index, as libvirt keeps them, and adds the root.
    fn list_controllers(&mut self) {
        let root = match self.family {
            MachineFamily::Q35 => ControllerModel::PcieRoot,
            MachineFamily::I440fx | MachineFamily::Other => ControllerModel::PciRoot,
        };
        for controller in self.domain.controllers.iter().filter(|c| c.arg.is_none()) {
            let is_root = Connect::of_controller(&controller.model).is_none();
            let fault = match u8::try_from(controller.index) {
                Err(_) => {
                    format!("PCI controller index {} is out of range; buses end at 255", controller.index)
                }
                Ok(index) if self.controllers.contains_key(&index) => {
                    format!("two PCI controllers have index {index}; give each its own")
                }
                Ok(index) => match &controller.model {
                    ControllerModel::Other(name) => {
                        format!("PCI controller {index}: model `{name}` is not known")
                    }
                    _ if is_root != (index == 0) => {
                        format!("PCI controller {index}: index 0 is the root's, and only the root's")
                    }
                    model if index == 0 && self.family != MachineFamily::Other && *model != root => {
                        "PCI controller 0 is not the root of this machine; libvirt refuses it".to_owned()
                    }
                    _ => {
                        self.controllers.insert(index, controller.clone());
                        continue;
                    }
                },
            };
            self.list_problems.push(Problem { line: controller.line, message: fault });
        }
        self.controllers.entry(0).or_insert_with(|| added(0, root));
    }

    /// One run of `qemuDomainAssignPCIAddresses`.
    fn pass(&mut self, growing: bool) {
        let models = self.controllers.iter().map(|(&index, c)| (usize::from(index), &c.model));
        self.slots = Slots::new(models, growing);
        self.devices = vec![None; self.domain.devices.len()];
        self.ports.clear();

        self.take_given();
        match self.family {
            MachineFamily::Q35 => self.q35(),
            MachineFamily::I440fx => self.i440fx(),
            MachineFamily::Other => {}
        }
        let is_express = self.root_is_express();
        if growing && !is_express && !self.slots.are_full() {
            // One slot of a conventional guest is kept for a bridge.
            self.slots.next(Connect::PCI.and(Connect::AUTO), None);
        }
        self.give_out();
        if growing {
            self.add_controllers(is_express);
        }
    }

    fn root_is_express(&self) -> bool {
        self.controllers.get(&0).is_some_and(|root| root.model == ControllerModel::PcieRoot)
    }

    /// Addresses that the domain gives.
    fn take_given(&mut self) {
        for (&index, controller) in &self.controllers {
            let (Some(at), Some(needs)) = (controller.address, Connect::of_controller(&controller.model))
            else {
                continue;
            };
            if self.controllers.get(&at.bus).is_some_and(|_| at.bus == index) {
                let message = format!("PCI controller {index} stands on its own bus; give it another bus");
                self.problems.push(Problem { line: controller.line, message });
                continue;
            }
            let taken = self.slots.take(at, needs);
            if !matches!(taken, Err(Refusal::Domain | Refusal::NoBus | Refusal::Taken)) {
                self.ports.insert(index, at);
            }
            if let Err(refusal) = taken {
                let message = refused(&format!("PCI controller {index}"), at, refusal);
                self.problems.push(Problem { line: controller.line, message });
            }
        }
        for (position, device) in self.domain.devices.iter().enumerate() {
            let Some(at) = device.address.filter(|_| device.arg.is_none()) else { continue };
            if self.is_in_piix3(device, at) {
                continue;
            }
            self.place(position, at, connect(device, self.root_is_express()));
        }
    }

    /// The chipset's own IDE and USB: taken together with the rest of the chipset.
    fn is_in_piix3(&self, device: &Device, at: PciAddress) -> bool {
        self.family == MachineFamily::I440fx
            && driver(device).is_some_and(|driver| piix3_function(driver) == Some(at.function))
            && (at.bus, at.slot) == (0, 1)
    }

    fn place(&mut self, position: usize, at: PciAddress, needs: Connect) {
        let device = &self.domain.devices[position];
        let taken = self.slots.take(at, needs);
        if !matches!(taken, Err(Refusal::Domain | Refusal::NoBus | Refusal::Taken)) {
            self.devices[position] = Some(at);
        }
        if let Err(refusal) = taken {
            let message = refused(&name(device), at, refusal);
            self.problems.push(Problem { line: device.line, message });
        }
    }

    /// Where devices of the real chipset stand (`qemuDomainValidateDevicePCISlotsQ35`).
    fn q35(&mut self) {
        if let Some(sata) = self.find(|device| driver(device) == Some("ich9-ahci") && is_first(device)) {
            self.fixed(sata, 0x1f, 2);
        }
        let uhci = self.positions(|device| driver(device) == Some("ich9-usb-uhci1"));
        for position in uhci {
            let free = [0x1d, 0x1a].into_iter().find(|&slot| self.slots.root_slot_is_free(slot));
            if let Some(slot) = free.filter(|_| self.devices[position].is_none()) {
                self.fixed(position, slot, 0);
            }
        }
        let dmi = self.controllers.iter().filter(|(_, c)| c.model == ControllerModel::DmiToPciBridge);
        let dmi: Vec<u8> = dmi.filter(|(_, c)| c.address.is_none()).map(|(&index, _)| index).collect();
        if let Some(&index) = dmi.first().filter(|_| self.slots.root_slot_is_free(0x1e)) {
            self.reserve(0x1e, 0);
            self.ports.insert(index, on_root(0x1e, 0));
        }
        self.reserve(0x1f, 0);
        self.reserve(0x1f, 3);
        self.primary_video(1);
        let sound = self.find(|device| driver(device) == Some("ich9-intel-hda") && device.address.is_none());
        if let Some(sound) = sound.filter(|_| self.slots.root_slot_is_free(0x1b)) {
            self.fixed(sound, 0x1b, 0);
        }
    }

    /// The same for the older chipset (`qemuDomainValidateDevicePCISlotsPIIX3`).
    fn i440fx(&mut self) {
        for position in self.positions(|device| driver(device).is_some_and(|d| piix3_function(d).is_some())) {
            let device = &self.domain.devices[position];
            if let Some(function) = driver(device).and_then(piix3_function).filter(|_| is_first(device)) {
                self.fixed(position, 1, function);
            }
        }
        self.reserve(1, 0);
        self.reserve(1, 3);
        self.primary_video(2);
    }

    /// The first display has a slot of its own where that is free.
    fn primary_video(&mut self, slot: u8) {
        let Some(video) = self.find(|device| device.element == Element::Video) else { return };
        if self.devices[video].is_some() || self.domain.devices[video].address.is_some() {
            return;
        }
        if self.slots.root_slot_is_free(slot) {
            self.fixed(video, slot, 0);
        } else {
            self.devices[video] =
                self.slots.next(connect(&self.domain.devices[video], self.root_is_express()), None);
        }
    }

    fn fixed(&mut self, position: usize, slot: u8, function: u8) {
        if self.devices[position].is_none() {
            self.place(position, on_root(slot, function), Connect::PCI.and(Connect::PCIE));
        }
    }

    fn reserve(&mut self, slot: u8, function: u8) {
        if self.slots.take(on_root(slot, function), Connect::PCI.and(Connect::PCIE)).is_err() {
            let message =
                format!("0000:00:{slot:02x}.{function:x} belongs to the chipset; give another slot");
            let line = self.domain.devices.first().map_or(0, |device| device.line);
            self.problems.push(Problem { line, message });
        }
    }

    /// Places for everything that has none, in libvirt's order (`qemuDomainAssignDevicePCISlots`).
    fn give_out(&mut self) {
        let mut waiting: Vec<(u8, Connect)> = self
            .controllers
            .iter()
            .filter(|(index, controller)| controller.address.is_none() && !self.ports.contains_key(index))
            .filter_map(|(&index, controller)| Some((index, Connect::of_controller(&controller.model)?)))
            .collect();
        // Those that libvirt adds stand at the end of its list, whatever their index.
        waiting.sort_by_key(|(index, _)| self.added.contains(index));
        for (index, needs) in waiting {
            self.place_controller(index, needs);
        }
        let is_express = self.root_is_express();
        let mut order: Vec<usize> = (0..self.domain.devices.len())
            .filter(|&i| self.devices[i].is_none() && self.domain.devices[i].address.is_none())
            .filter(|&i| self.domain.devices[i].arg.is_none())
            .collect();
        order.sort_by_key(|&i| {
            let device = &self.domain.devices[i];
            // libvirt reads interfaces first, also those that are host devices.
            let is_hostdev = !matches!(device.kind, DeviceKind::Host { form: HostForm::Interface, .. });
            (device.element, is_hostdev)
        });
        let mut usb2 = self.usb2_slots();
        for position in order {
            let device = &self.domain.devices[position];
            let needs = connect(device, is_express);
            let at = match driver(device).and_then(usb2_function) {
                Some(function) => self.usb2(&mut usb2, device.index, function, needs),
                None => self.slots.next(needs, None),
            };
            self.devices[position] = at;
            if at.is_none() {
                let message = format!("{}: no PCI slot is left for it", name(device));
                self.problems.push(Problem { line: device.line, message });
            }
        }
    }

    fn place_controller(&mut self, index: u8, needs: Connect) {
        match self.slots.next(needs, None) {
            Some(at) => {
                self.ports.insert(index, at);
            }
            None => {
                let message = format!("PCI controller {index}: there is no bus that it can stand on");
                let line = self.controllers.get(&index).map_or(0, |controller| controller.line);
                self.problems.push(Problem { line, message });
            }
        }
    }

    /// Slots of ICH9 USB 2 controllers, by index.
    fn usb2_slots(&self) -> BTreeMap<Option<u32>, PciAddress> {
        let devices = self.domain.devices.iter().zip(&self.devices);
        let usb2 = devices.filter(|(device, _)| driver(device).and_then(usb2_function).is_some());
        usb2.filter_map(|(device, at)| Some((device.index, (*at)?))).collect()
    }

    /// An ICH9 USB 2 controller shares its slot with its companions.
    fn usb2(
        &mut self,
        slots: &mut BTreeMap<Option<u32>, PciAddress>,
        index: Option<u32>,
        function: u8,
        needs: Connect,
    ) -> Option<PciAddress> {
        match slots.get(&index) {
            Some(&at) => {
                let at = PciAddress { function, ..at };
                self.slots.take(at, needs).is_ok().then_some(at)
            }
            None => {
                let at = self.slots.next(needs, Some(function));
                slots.extend(at.map(|at| (index, at)));
                at
            }
        }
    }

    /// Controllers for the buses that the first pass added, and a spare root port for later where libvirt alone chose
    /// them all.
    fn add_controllers(&mut self, is_express: bool) {
        let given = self.controllers.keys().next_back().copied().unwrap_or(0);
        let is_grown = self.slots.models().count() > usize::from(given) + 1;
        if given == 0 && is_grown && is_express {
            self.slots.next(Connect::PCIE.and(Connect::AUTO), None);
        }
        let globals = Globals::new(&self.domain.command_line.globals);
        let models: Vec<_> = self.slots.models().map(|(index, model)| (index, model.clone())).collect();
        for (index, model) in models {
            let Ok(index) = u8::try_from(index) else { continue };
            if let Entry::Vacant(vacant) = self.controllers.entry(index) {
                let mut controller = added(index, model);
                globals.apply_to_port(&mut controller);
                vacant.insert(controller);
                self.added.insert(index);
            }
        }
    }

    /// What the QEMU command line adds, in its order.
    fn command_line(&mut self) {
        enum Item<'d> {
            Port(&'d Controller),
            Device(usize),
        }
        let ports = self.domain.controllers.iter().filter_map(|c| Some((c.arg?, Item::Port(c))));
        let devices = self.domain.devices.iter().enumerate();
        let devices = devices.filter_map(|(i, device)| Some((device.arg?, Item::Device(i))));
        let mut items: Vec<_> = ports.chain(devices).collect();
        items.sort_by_key(|&(arg, _)| arg);
        for (_, item) in items {
            let (address, bus, line, what) = match item {
                Item::Port(c) => (c.address, c.bus, c.line, c.hardware.clone().unwrap_or_default()),
                Item::Device(i) => {
                    let device = &self.domain.devices[i];
                    (device.address, device.bus, device.line, name(device))
                }
            };
            let Some(at) = address.or_else(|| self.slots.lowest(bus.unwrap_or(0))) else {
                let message = format!("`-device` {what}: its bus does not exist or is full");
                self.problems.push(Problem { line, message });
                continue;
            };
            if let Err(refusal @ (Refusal::NoBus | Refusal::Taken)) = self.slots.take(at, Connect::PCI) {
                let message = refused(&format!("`-device` {what}"), at, refusal);
                self.problems.push(Problem { line, message });
                continue;
            }
            match item {
                Item::Device(i) => self.devices[i] = Some(at),
                Item::Port(port) => {
                    let Ok(index) = u8::try_from(port.index) else { continue };
                    if self.controllers.contains_key(&index) {
                        let message = format!("`-device` {what}: all PCI buses are in use");
                        self.problems.push(Problem { line, message });
                        continue;
                    }
                    self.slots.put(usize::from(index), port.model.clone());
                    self.controllers.insert(index, port.clone());
                    self.ports.insert(index, at);
                }
            }
        }
    }

    /// An expander bus without a number gets the lowest one in use less two (`qemuDomainAddressFindNewBusNr`).
    fn number_expanders(&mut self) {
        let numbers = self.controllers.values().filter_map(|controller| controller.bus_nr);
        let mut lowest = numbers.min().map_or(256, u16::from);
        for controller in self.controllers.values_mut() {
            let is_expander =
                matches!(controller.model, ControllerModel::PcieExpander | ControllerModel::PciExpander);
            if is_expander && controller.bus_nr.is_none() {
                lowest = lowest.saturating_sub(2);
                controller.bus_nr = u8::try_from(lowest).ok().filter(|&number| number > 0);
                if controller.bus_nr.is_none() {
                    let message =
                        format!("PCI controller {}: no bus number is left for it", controller.index);
                    self.problems.push(Problem { line: controller.line, message });
                }
            }
        }
    }

    fn tree(mut self) -> PciTree {
        let mut buses: BTreeMap<u8, Vec<Node>> = BTreeMap::new();
        let mut add = |at: PciAddress, what| {
            let node = Node { slot: at.slot, function: at.function, what };
            buses.entry(at.bus).or_default().push(node);
        };
        let built_in: &[(u8, u8, &'static str)] = match self.family {
            MachineFamily::Q35 => &Q35,
            MachineFamily::I440fx => &I440FX,
            MachineFamily::Other => &[],
        };
        for &(slot, function, name) in built_in {
            if !self.devices.contains(&Some(on_root(slot, function))) {
                add(on_root(slot, function), What::BuiltIn(name));
            }
        }
        for (position, at) in self.devices.iter().enumerate() {
            if let Some(at) = *at {
                add(at, What::Device(position));
            }
        }
        let mut ports: BTreeMap<u8, Vec<(PciAddress, Controller)>> = BTreeMap::new();
        for (index, at) in &self.ports {
            if let Some(controller) = self.controllers.remove(index) {
                ports.entry(at.bus).or_default().push((*at, controller));
            }
        }
        let root = hang(0, &mut buses, &mut ports);
        let lost = ports.into_values().flatten();
        let lost = lost.map(|(_, controller)| Problem {
            line: controller.line,
            message: format!("PCI controller {}: no way leads from the root to it", controller.index),
        });
        let mut problems = self.list_problems;
        problems.append(&mut self.problems);
        problems.extend(lost);
        PciTree { root, problems }
    }

    fn find(&self, wanted: impl Fn(&Device) -> bool) -> Option<usize> {
        self.domain.devices.iter().position(|device| device.arg.is_none() && wanted(device))
    }

    fn positions(&self, wanted: impl Fn(&Device) -> bool) -> Vec<usize> {
        let devices = self.domain.devices.iter().enumerate();
        devices.filter(|(_, device)| device.arg.is_none() && wanted(device)).map(|(i, _)| i).collect()
    }
}

/// The functions of one bus, and behind its bridges theirs. Every bus is used once, so this ends.
fn hang(
    bus: u8,
    buses: &mut BTreeMap<u8, Vec<Node>>,
    ports: &mut BTreeMap<u8, Vec<(PciAddress, Controller)>>,
) -> Vec<Node> {
    let mut nodes = buses.remove(&bus).unwrap_or_default();
    for (at, controller) in ports.remove(&bus).unwrap_or_default() {
        let index = u8::try_from(controller.index).unwrap_or(u8::MAX);
        let children = hang(index, buses, ports);
        let what = What::Port(Box::new(Port { controller, children }));
        nodes.push(Node { slot: at.slot, function: at.function, what });
    }
    nodes.sort_by_key(|node| (node.slot, node.function));
    nodes
}

/// What a device needs of its bus (`qemuDomainDeviceCalculatePCIConnectFlags`). Virtio devices are Express where the
/// guest is, but for the transitional ones.
fn connect(device: &Device, is_express: bool) -> Connect {
    let conventional = Connect::PCI.and(Connect::AUTO);
    let express = if is_express { Connect::PCIE.and(Connect::AUTO) } else { conventional };
    let Some(driver) = driver(device) else { return express };
    match driver {
        "virtio-iommu-pci" => express.and(Connect::INTEGRATED),
        "pvpanic-pci" => conventional.and(Connect::PCIE).and(Connect::INTEGRATED),
        "virtio-crypto-pci" => conventional,
        "vfio-pci" | "nec-usb-xhci" | "qemu-xhci" | "e1000e" | "igb" | "bochs-display" | "nvme" => express,
        _ if driver.ends_with("-pci-transitional") => conventional,
        _ if driver.starts_with("virtio-") || driver.starts_with("vhost-") => express,
        _ => conventional,
    }
}

fn driver(device: &Device) -> Option<&str> {
    match &device.kind {
        DeviceKind::Emulated { driver, .. } => Some(driver),
        DeviceKind::Host { .. } => None,
    }
}

/// What to call a device in a message.
fn name(device: &Device) -> String {
    match &device.kind {
        DeviceKind::Emulated { driver, .. } => format!("`{driver}`"),
        DeviceKind::Host { host, .. } => format!("host device {host}"),
    }
}

fn is_first(device: &Device) -> bool {
    device.index.unwrap_or(0) == 0
}

fn piix3_function(driver: &str) -> Option<u8> {
    match driver {
        "piix3-ide" => Some(1),
        "piix3-usb-uhci" => Some(2),
        _ => None,
    }
}

fn usb2_function(driver: &str) -> Option<u8> {
    match driver {
        "ich9-usb-uhci1" => Some(0),
        "ich9-usb-uhci2" => Some(1),
        "ich9-usb-uhci3" => Some(2),
        "ich9-usb-ehci1" => Some(7),
        _ => None,
    }
}

fn on_root(slot: u8, function: u8) -> PciAddress {
    PciAddress { domain: 0, bus: 0, slot, function }
}

/// A controller that libvirt adds.
fn added(index: u8, model: ControllerModel) -> Controller {
    Controller {
        index: u32::from(index),
        model,
        address: None,
        hotplug: true,
        bus_nr: None,
        hardware: None,
        reserve: PortReserve::default(),
        alias: None,
        line: 0,
        arg: None,
        bus: None,
    }
}

fn refused(what: &str, at: PciAddress, refusal: Refusal) -> String {
    match refusal {
        Refusal::Domain => format!("{what}: guest address {at} is not in PCI domain 0; write domain='0'"),
        Refusal::NoBus => format!("{what}: guest address {at}, but no PCI controller has index {}", at.bus),
        Refusal::Taken => format!("{what}: guest address {at} is taken twice; give it another"),
        Refusal::WrongKind => {
            format!("{what}: the bus of guest address {at} takes no such device in that slot")
        }
    }
}
