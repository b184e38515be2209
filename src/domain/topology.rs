//! Where every device stands in the guest: the PCI tree that QEMU will build.
//!
//! Addresses that the domain gives stay; for the others libvirt's choice is made, root ports and bridges that it adds
//! included (`assign.rs` beside this file), so that a hand-written domain gives the same tree as its dumpxml. Knows
//! nothing of BARs.

use std::collections::BTreeMap;

use super::assign::{Assigned, on_root};
use super::model::{Controller, Domain, MachineFamily};
use super::slots::Refusal;
use crate::text::printable;
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
    /// Line in the XML; 0 when the fault is of no single line.
    pub line: u32,
    /// What is wrong, and what to do.
    pub message: String,
    /// The device has a place all the same: what libvirt refuses is the kind of bus.
    pub placed: bool,
}

impl Problem {
    /// A device or controller that has no place.
    pub(super) fn lost(line: u32, message: String) -> Problem {
        Problem { line, message: printable(&message), placed: false }
    }

    /// A given address that libvirt or QEMU refuses.
    pub(super) fn refused(line: u32, what: &str, at: PciAddress, refusal: Refusal) -> Problem {
        let message = match refusal {
            Refusal::Domain => format!("{what}: guest address {at} is not in PCI domain 0; write domain='0'"),
            Refusal::NoBus => {
                format!("{what}: guest address {at}, but no PCI controller has index {}", at.bus)
            }
            Refusal::Taken => format!("{what}: guest address {at} is taken twice; give it another"),
            Refusal::WrongKind => {
                format!("{what}: the bus of guest address {at} takes no such device in that slot")
            }
        };
        Problem { line, message: printable(&message), placed: refusal == Refusal::WrongKind }
    }
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
    let Assigned { mut controllers, ports, devices, mut problems } = Assigned::new(domain);
    let mut buses: BTreeMap<u8, Vec<Node>> = BTreeMap::new();
    let mut add = |at: PciAddress, what| {
        let node = Node { slot: at.slot, function: at.function, what };
        buses.entry(at.bus).or_default().push(node);
    };
    let built_in: &[(u8, u8, &'static str)] = match domain.family() {
        MachineFamily::Q35 => &Q35,
        MachineFamily::I440fx => &I440FX,
        MachineFamily::Other => &[],
    };
    for &(slot, function, name) in built_in {
        if !devices.contains(&Some(on_root(slot, function))) {
            add(on_root(slot, function), What::BuiltIn(name));
        }
    }
    for (position, at) in devices.iter().enumerate() {
        if let Some(at) = *at {
            add(at, What::Device(position));
        }
    }
    let mut on_bus: BTreeMap<u8, Vec<(PciAddress, Controller)>> = BTreeMap::new();
    for (index, at) in ports {
        if let Some(controller) = controllers.remove(&index) {
            on_bus.entry(at.bus).or_default().push((at, controller));
        }
    }
    let root = hang(0, &mut buses, &mut on_bus);
    let written = on_bus.into_values().flatten().filter(|(_, controller)| controller.line > 0);
    problems.extend(written.map(|(_, controller)| {
        let index = controller.index;
        Problem::lost(controller.line, format!("PCI controller {index}: no way leads from the root to it"))
    }));
    for (bus, node) in
        buses.into_iter().flat_map(|(bus, nodes)| nodes.into_iter().map(move |node| (bus, node)))
    {
        if let What::Device(position) = node.what {
            let line = domain.devices[position].line;
            problems.push(Problem::lost(line, format!("no way leads from the root to PCI bus {bus}")));
        }
    }
    if let Some(more) = problems.len().checked_sub(MAX_PROBLEMS).filter(|&more| more > 0) {
        problems.truncate(MAX_PROBLEMS);
        problems.push(Problem::lost(0, format!("{more} more faults of this kind")));
    }
    PciTree { root, problems }
}

/// Nobody reads more, and a broken generator can make as many as there are devices.
const MAX_PROBLEMS: usize = 100;

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
