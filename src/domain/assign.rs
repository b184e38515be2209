//! Gives out guest PCI addresses in libvirt's order.
//!
//! Addresses that the domain gives stay. For the others this does what libvirt does when a domain is defined: the
//! chipset's own places first, then controllers and devices by kind, adding root ports and bridges as needed. Then come
//! the devices of the QEMU command line, which QEMU places. Source: libvirt 9.0 `src/qemu/qemu_domain_address.c`
//! (`qemuDomainAssignPCIAddresses` and below); verified against libvirt 9.0 by defining domains and comparing. A host
//! device without an address is taken to be PCI Express, as libvirt takes one that it cannot find.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::model::{Controller, ControllerModel, Device, Domain, Element, MachineFamily, PortReserve};
use super::placing::{connect, driver, is_first, libvirt_order, name, piix3_function, usb2_function};
use super::qemu_device::Globals;
use super::slots::{Connect, Refusal, Slots};
use super::topology::Problem;
use crate::units::PciAddress;

/// Who stands where.
pub(super) struct Assigned {
    /// Every controller by index: the domain's, the root, and those that libvirt adds (without line).
    pub(super) controllers: BTreeMap<u8, Controller>,
    /// Place of each controller but the root.
    pub(super) ports: BTreeMap<u8, PciAddress>,
    /// Place of each of the domain's devices.
    pub(super) devices: Vec<Option<PciAddress>>,
    /// Addresses that cannot be.
    pub(super) problems: Vec<Problem>,
}

impl Assigned {
    /// Gives every device and controller of a domain its place.
    pub(super) fn new(domain: &Domain) -> Assigned {
        let mut work = Assignment::new(domain);
        // libvirt goes twice: first to learn how many buses it takes, then, with a controller for each, for good.
        work.pass(true);
        work.problems.clear();
        work.pass(false);
        work.command_line();
        work.number_expanders();
        let mut problems = work.list_problems;
        problems.append(&mut work.problems);
        Assigned { controllers: work.controllers, ports: work.ports, devices: work.devices, problems }
    }
}

struct Assignment<'d> {
    domain: &'d Domain,
    family: MachineFamily,
    /// Controllers by index, the root included, without those of the QEMU command line.
    controllers: BTreeMap<u8, Controller>,
    /// Indices of the controllers that libvirt adds.
    added: BTreeSet<u8>,
    slots: Slots,
    /// The first pass: libvirt only counts then, and writes no address down.
    growing: bool,
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
            growing: false,
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
                    ControllerModel::Other(name) if name.is_empty() => {
                        format!("PCI controller {index} has no model; write model=")
                    }
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
            self.list_problems.push(Problem::lost(controller.line, fault));
        }
        self.controllers.entry(0).or_insert_with(|| added(0, root));
    }

    /// One run of `qemuDomainAssignPCIAddresses`.
    fn pass(&mut self, growing: bool) {
        let models = self.controllers.iter().map(|(&index, c)| (usize::from(index), &c.model));
        self.slots = Slots::new(models, growing);
        self.growing = growing;
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
                self.problems.push(Problem::lost(controller.line, message));
                continue;
            }
            let taken = self.slots.take(at, needs);
            if !matches!(taken, Err(Refusal::Domain | Refusal::NoBus | Refusal::Taken)) {
                self.ports.insert(index, at);
            }
            if let Err(refusal) = taken {
                let what = format!("PCI controller {index}");
                self.problems.push(Problem::refused(controller.line, &what, at, refusal));
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
            self.problems.push(Problem::refused(device.line, &name(device), at, refusal));
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
            return;
        }
        let at = self.slots.next(connect(&self.domain.devices[video], self.root_is_express()), None);
        // When it only counts, libvirt forgets this one and counts it again with the other displays.
        if !self.growing {
            self.devices[video] = at;
        }
    }

    fn fixed(&mut self, position: usize, slot: u8, function: u8) {
        if self.devices[position].is_none() {
            self.place(position, on_root(slot, function), Connect::PCI.and(Connect::PCIE));
        }
    }

    fn reserve(&mut self, slot: u8, function: u8) {
        let at = on_root(slot, function);
        if self.slots.take(at, Connect::PCI.and(Connect::PCIE)).is_err() {
            let device = self.devices.iter().position(|place| *place == Some(at));
            let line = device.map_or(0, |position| self.domain.devices[position].line);
            let message = format!("guest address {at} belongs to the chipset; give the device another");
            self.problems.push(Problem::lost(line, message));
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
        let mut unplaced = 0;
        for (index, needs) in waiting {
            match self.slots.next(needs, None) {
                Some(at) => {
                    self.ports.insert(index, at);
                }
                None if self.added.contains(&index) => unplaced += 1,
                None => {
                    let line = self.controllers.get(&index).map_or(0, |controller| controller.line);
                    let message = format!("PCI controller {index}: there is no bus that it can stand on");
                    self.problems.push(Problem::lost(line, message));
                }
            }
        }
        if unplaced > 0 {
            let message =
                format!("libvirt would have to add {unplaced} more PCI buses than there is room for");
            self.problems.push(Problem::lost(0, message));
        }
        let is_express = self.root_is_express();
        let waits = |&i: &usize| {
            let device = &self.domain.devices[i];
            self.devices[i].is_none() && device.address.is_none() && device.arg.is_none()
        };
        let order: Vec<usize> = libvirt_order(&self.domain.devices).into_iter().filter(waits).collect();
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
                self.problems.push(Problem::lost(device.line, message));
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
                if !self.growing {
                    slots.extend(at.map(|at| (index, at)));
                }
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
                self.problems.push(Problem::lost(line, message));
                continue;
            };
            if let Err(refusal @ (Refusal::NoBus | Refusal::Taken)) = self.slots.take(at, Connect::PCI) {
                self.problems.push(Problem::refused(line, &format!("`-device` {what}"), at, refusal));
                continue;
            }
            match item {
                Item::Device(i) => self.devices[i] = Some(at),
                Item::Port(port) => {
                    let Ok(index) = u8::try_from(port.index) else { continue };
                    if self.controllers.contains_key(&index) {
                        let message = format!("`-device` {what}: all PCI buses are in use");
                        self.problems.push(Problem::lost(line, message));
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
                    self.problems.push(Problem::lost(controller.line, message));
                }
            }
        }
    }

    fn find(&self, wanted: impl Fn(&Device) -> bool) -> Option<usize> {
        self.domain.devices.iter().position(|device| device.arg.is_none() && wanted(device))
    }

    fn positions(&self, wanted: impl Fn(&Device) -> bool) -> Vec<usize> {
        let devices = self.domain.devices.iter().enumerate();
        devices.filter(|(_, device)| device.arg.is_none() && wanted(device)).map(|(i, _)| i).collect()
    }
}

pub(super) fn on_root(slot: u8, function: u8) -> PciAddress {
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
