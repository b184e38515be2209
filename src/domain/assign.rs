//! Gives out guest PCI addresses in libvirt's order.
//!
//! Addresses that the domain gives stay. For the others this does what libvirt does when a domain is defined: the
//! chipset's own places first, then controllers and devices by kind, adding root ports and bridges as needed. Then come
//! the devices of the QEMU command line, which QEMU places. Source: libvirt 9.0 `src/qemu/qemu_domain_address.c`
//! (`qemuDomainAssignPCIAddresses` and below); verified against libvirt 9.0 by defining domains and comparing. A host
//! device without an address is taken to be PCI Express, as libvirt takes one that it cannot find.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Deref;

use super::model::{Controller, ControllerModel, Device, Domain, Element, MachineFamily, PortReserve};
use super::placing::{connect, driver, is_first, libvirt_order, name, piix3_function, usb2_function};
use super::qemu_device::Globals;
use super::slots::{Connect, Refusal, Slots};
use super::topology::Problem;
use crate::units::PciAddress;

/// What the slot takes that a conventional guest keeps for a bridge.
const KEPT: Connect = Connect::PCI.and(Connect::AUTO);

/// Who stands where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Assigned<'d> {
    /// Every controller: the domain's, the root, and those that libvirt adds (without line).
    pub(super) controllers: Controllers<'d>,
    /// Place of each of the domain's devices.
    pub(super) devices: Vec<Option<PciAddress>>,
    /// Addresses that cannot be.
    pub(super) problems: Vec<Problem>,
}

impl<'d> Assigned<'d> {
    /// Gives every device and controller of a domain its place.
    pub(super) fn new(domain: &'d Domain) -> Assigned<'d> {
        Assigned::by(domain, Assignment::is_settled)
    }

    /// The same; `is_settled` says that a second pass is not needed.
    fn by(domain: &'d Domain, is_settled: impl Fn(&Assignment<'d>) -> bool) -> Assigned<'d> {
        let mut work = Assignment::new(domain);
        // libvirt goes twice: first to learn how many buses it takes, then, with a controller for each, for good.
        work.take_places(true);
        if !is_settled(&work) {
            work.give_out();
            work.add_controllers();
            work.problems.clear();
            work.take_places(false);
            work.give_out();
        }
        work.slots.growing = false;
        work.command_line();
        work.number_expanders();
        let mut problems = work.list_problems;
        problems.append(&mut work.problems);
        Assigned { controllers: work.controllers, devices: work.devices, problems }
    }
}

/// Controllers by index.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Controllers<'d>(Vec<Option<Standing<'d>>>);

/// A controller and where it stands; the root stands nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Standing<'d> {
    controller: Kept<'d>,
    pub(super) at: Option<PciAddress>,
}

/// A controller of the domain's, or one that the domain does not have like this.
#[derive(Debug, PartialEq, Eq)]
enum Kept<'d> {
    Written(&'d Controller),
    // In a box, for a controller is large, and most are written.
    Made(Box<Controller>),
}

impl Deref for Kept<'_> {
    type Target = Controller;

    fn deref(&self) -> &Controller {
        match self {
            Kept::Written(controller) => controller,
            Kept::Made(controller) => controller,
        }
    }
}

impl Standing<'_> {
    /// What it needs of a bus, when it has yet to be given a place.
    fn waits_for(&self) -> Option<Connect> {
        let waits = self.at.is_none() && self.controller.address.is_none();
        Connect::of_controller(&self.controller.model).filter(|_| waits)
    }

    /// Whether libvirt adds it.
    fn is_added(&self) -> bool {
        self.controller.line == 0
    }
}

impl<'d> Controllers<'d> {
    pub(super) fn get(&self, index: u8) -> Option<&Controller> {
        Some(&self.0.get(usize::from(index))?.as_ref()?.controller)
    }

    /// In order of index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, &Standing<'d>)> {
        (0..=u8::MAX).zip(&self.0).filter_map(|(index, standing)| Some((index, standing.as_ref()?)))
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = (u8, &mut Standing<'d>)> {
        (0..=u8::MAX).zip(&mut self.0).filter_map(|(index, standing)| Some((index, standing.as_mut()?)))
    }

    fn insert(&mut self, index: u8, controller: Kept<'d>, at: Option<PciAddress>) {
        let index = usize::from(index);
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = Some(Standing { controller, at });
    }

    fn put(&mut self, index: u8, at: PciAddress) {
        if let Some(standing) = self.0.get_mut(usize::from(index)).and_then(Option::as_mut) {
            standing.at = Some(at);
        }
    }
}

struct Assignment<'d> {
    domain: &'d Domain,
    family: MachineFamily,
    /// Controllers by index, the root included, without those of the QEMU command line.
    controllers: Controllers<'d>,
    /// In the first pass they grow: libvirt only counts then, and writes no address down.
    slots: Slots,
    /// Place of each of the domain's devices.
    devices: Vec<Option<PciAddress>>,
    problems: Vec<Problem>,
    /// What was wrong with the list of controllers itself.
    list_problems: Vec<Problem>,
}

impl<'d> Assignment<'d> {
    fn new(domain: &'d Domain) -> Assignment<'d> {
        let mut work = Assignment {
            domain,
            family: domain.family(),
            controllers: Controllers(Vec::with_capacity(domain.controllers.len() + 1)),
            slots: Slots::new(std::iter::empty(), false),
            devices: Vec::new(),
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
                Ok(index) if self.controllers.get(index).is_some() => {
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
                        let advice = if controller.after.is_some() {
                            "; write index=, or the root as well"
                        } else {
                            ""
                        };
                        format!("PCI controller {index}: index 0 is the root's, and only the root's{advice}")
                    }
                    model if index == 0 && self.family != MachineFamily::Other && *model != root => {
                        "PCI controller 0 is not the root of this machine; libvirt refuses it".to_owned()
                    }
                    _ => {
                        self.controllers.insert(index, Kept::Written(controller), None);
                        continue;
                    }
                },
            };
            self.list_problems.push(Problem::lost(controller.line, fault));
        }
        if self.controllers.get(0).is_none() {
            self.controllers.insert(0, Kept::Made(added(0, root)), None);
        }
    }

    /// The first half of a run of `qemuDomainAssignPCIAddresses`: the places that are not chosen.
    fn take_places(&mut self, growing: bool) {
        let model = |standing: &Option<Standing<'d>>| Some(standing.as_ref()?.controller.model.clone());
        self.slots = Slots::new(self.controllers.0.iter().map(model), growing);
        self.devices = vec![None; self.domain.devices.len()];
        self.controllers.iter_mut().for_each(|(_, standing)| standing.at = None);

        self.take_given();
        match self.family {
            MachineFamily::Q35 => self.q35(),
            MachineFamily::I440fx => self.i440fx(),
            MachineFamily::Other => {}
        }
    }

    /// Whether, after the first half of the first pass, all that is left of the two would come to the same: nothing
    /// waits for a place, and every bus has its controller. For then the other half gives nothing out, and a second
    /// pass, on the same buses, takes the same places: that it may not add buses makes no difference, for none was
    /// added. It is so with every domain that libvirt has defined.
    fn is_settled(&self) -> bool {
        // The slot that is kept for a bridge could take a new bus as well.
        let is_kept = self.root_is_express() || self.slots.are_full() || self.slots.have_room(KEPT);
        is_kept
            && self.slots.models().count() == self.controllers.iter().count()
            && self.controllers.iter().all(|(_, standing)| standing.waits_for().is_none())
            && (0..self.devices.len()).all(|position| !self.waits(position))
    }

    fn root_is_express(&self) -> bool {
        self.controllers.get(0).is_some_and(|root| root.model == ControllerModel::PcieRoot)
    }

    /// Addresses that the domain gives.
    fn take_given(&mut self) {
        for (index, Standing { controller, at: place }) in self.controllers.iter_mut() {
            let (Some(at), Some(needs)) = (controller.address, Connect::of_controller(&controller.model))
            else {
                continue;
            };
            if at.bus == index {
                let message = format!("PCI controller {index} stands on its own bus; give it another bus");
                self.problems.push(Problem::lost(controller.line, message));
                continue;
            }
            let taken = self.slots.take(at, needs);
            if !matches!(taken, Err(Refusal::Domain | Refusal::NoBus | Refusal::Taken)) {
                *place = Some(at);
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
        let dmi = self.controllers.iter().find(|(_, Standing { controller, .. })| {
            controller.model == ControllerModel::DmiToPciBridge && controller.address.is_none()
        });
        if let Some((index, _)) = dmi.filter(|_| self.slots.root_slot_is_free(0x1e)) {
            self.reserve(0x1e, 0);
            self.controllers.put(index, on_root(0x1e, 0));
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
        if !self.slots.growing {
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
        let is_express = self.root_is_express();
        if self.slots.growing && !is_express && !self.slots.are_full() {
            // One slot of a conventional guest is kept for a bridge.
            self.slots.next(KEPT, None);
        }
        let mut waiting: Vec<_> = self
            .controllers
            .iter_mut()
            .filter_map(|(index, standing)| Some((index, standing.waits_for()?, standing)))
            .collect();
        // Those that libvirt adds stand at the end of its list, whatever their index.
        waiting.sort_by_key(|(index, _, standing)| {
            let after = standing.controller.after;
            (standing.is_added(), after.unwrap_or(u32::from(*index)), after.is_some())
        });
        let mut unplaced = 0;
        for (index, needs, standing) in waiting {
            standing.at = self.slots.next(needs, None);
            if standing.at.is_some() {
                continue;
            }
            if standing.is_added() {
                unplaced += 1;
            } else {
                let message = format!("PCI controller {index}: there is no bus that it can stand on");
                self.problems.push(Problem::lost(standing.controller.line, message));
            }
        }
        if unplaced > 0 {
            let message =
                format!("libvirt would have to add {unplaced} more PCI buses than there is room for");
            self.problems.push(Problem::lost(0, message));
        }
        let order = libvirt_order(&self.domain.devices).into_iter();
        let order: Vec<usize> = order.filter(|&position| self.waits(position)).collect();
        let mut usb2 = self.usb2_slots();
        for position in order {
            let device = &self.domain.devices[position];
            let needs = connect(device, is_express);
            let at = match driver(device).and_then(usb2_function) {
                Some(function) => self.usb2(&mut usb2, device.number, function, needs),
                None => self.slots.next(needs, None),
            };
            self.devices[position] = at;
            if at.is_none() {
                let message = format!("{}: no PCI slot is left for it", name(device));
                self.problems.push(Problem::lost(device.line, message));
            }
        }
    }

    /// Whether one of the domain's devices has yet to be given a place.
    fn waits(&self, position: usize) -> bool {
        let device = &self.domain.devices[position];
        self.devices[position].is_none() && device.address.is_none() && device.arg.is_none()
    }

    /// Slots of ICH9 USB 2 controllers, by number.
    fn usb2_slots(&self) -> BTreeMap<u32, PciAddress> {
        let devices = self.domain.devices.iter().zip(&self.devices);
        let usb2 = devices.filter(|(device, _)| driver(device).and_then(usb2_function).is_some());
        usb2.filter_map(|(device, at)| Some((device.number, (*at)?))).collect()
    }

    /// An ICH9 USB 2 controller shares its slot with its companions.
    fn usb2(
        &mut self,
        slots: &mut BTreeMap<u32, PciAddress>,
        number: u32,
        function: u8,
        needs: Connect,
    ) -> Option<PciAddress> {
        match slots.get(&number) {
            Some(&at) => {
                let at = PciAddress { function, ..at };
                self.slots.take(at, needs).is_ok().then_some(at)
            }
            None => {
                let at = self.slots.next(needs, Some(function));
                if !self.slots.growing {
                    slots.extend(at.map(|at| (number, at)));
                }
                at
            }
        }
    }

    /// Controllers for the buses that the first pass added, and a spare root port for later where libvirt alone chose
    /// them all.
    fn add_controllers(&mut self) {
        let (given, buses) = (self.controllers.0.len(), self.slots.models().count());
        if given == 1 && buses > given && self.root_is_express() {
            self.slots.next(Connect::PCIE.and(Connect::AUTO), None);
        }
        let globals = Globals::new(&self.domain.command_line.globals);
        for (index, model) in self.slots.models() {
            if self.controllers.get(index).is_none() {
                let mut controller = added(index, model.clone());
                globals.apply_to_port(&mut controller);
                self.controllers.insert(index, Kept::Made(controller), None);
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
                    if self.controllers.get(index).is_some() {
                        let message = format!("`-device` {what}: all PCI buses are in use");
                        self.problems.push(Problem::lost(line, message));
                        continue;
                    }
                    self.slots.put(usize::from(index), port.model.clone());
                    self.controllers.insert(index, Kept::Written(port), Some(at));
                }
            }
        }
    }

    /// An expander bus without a number gets the lowest one in use less two (`qemuDomainAddressFindNewBusNr`).
    fn number_expanders(&mut self) {
        let numbers = self.controllers.iter().filter_map(|(_, standing)| standing.controller.bus_nr);
        let mut lowest = numbers.min().map_or(256, u16::from);
        for (index, Standing { controller, .. }) in self.controllers.iter_mut() {
            let is_expander =
                matches!(controller.model, ControllerModel::PcieExpander | ControllerModel::PciExpander);
            if is_expander && controller.bus_nr.is_none() {
                lowest = lowest.saturating_sub(2);
                let number = u8::try_from(lowest).ok().filter(|&number| number > 0);
                if number.is_none() {
                    let message = format!("PCI controller {index}: no bus number is left for it");
                    self.problems.push(Problem::lost(controller.line, message));
                }
                *controller = Kept::Made(Box::new(Controller { bus_nr: number, ..(**controller).clone() }));
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
fn added(index: u8, model: ControllerModel) -> Box<Controller> {
    Box::new(Controller {
        index: u32::from(index),
        after: None,
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
    })
}
