//! Where every device stands in the guest: the PCI tree that QEMU will build.
//!
//! Addresses that the domain gives stay; for the others libvirt's choice is made, root ports and bridges that it adds
//! included (`assign.rs` beside this file), so that a hand-written domain gives the same tree as its dumpxml. Knows
//! nothing of BARs.

use std::iter;

use super::assign::{Assigned, Controllers, on_root};
use super::model::{Controller, Domain, MachineFamily};
use super::slots::Refusal;
use crate::text::printable;
use crate::units::PciAddress;

/// The guest's PCI functions as a tree: by bus, which is the index of the controller that makes it.
#[derive(Debug, PartialEq, Eq)]
pub struct PciTree<'d> {
    /// Why libvirt or QEMU would refuse the domain: one sentence each. What has no place is not in the tree.
    pub problems: Vec<Problem>,
    /// In order of bus, slot and function.
    nodes: Vec<Node>,
    controllers: Controllers<'d>,
}

impl PciTree<'_> {
    /// The functions on a bus, in order of slot and function. The root is bus 0; expander buses are ports on it.
    pub fn on_bus(&self, bus: u8) -> &[Node] {
        let start = self.nodes.partition_point(|node| node.bus < bus);
        let count = self.nodes[start..].partition_point(|node| node.bus == bus);
        &self.nodes[start..start + count]
    }

    /// The controller of this index: the domain's, or one that libvirt adds (then without line).
    pub fn controller(&self, index: u8) -> Option<&Controller> {
        self.controllers.get(index)
    }
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
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The bus it stands on, by controller index.
    pub bus: u8,
    /// Device number on its bus, 0 to 31.
    pub slot: u8,
    /// Function number, 0 to 7.
    pub function: u8,
    /// What stands there.
    pub what: What,
}

/// What a function is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Part of the chipset, by QEMU's name.
    BuiltIn(&'static str),
    /// Position in [`Domain::devices`].
    Device(usize),
    /// A bridge, by its controller's index: the bus behind it.
    Port(u8),
}

/// Functions that are part of QEMU's q35 (`hw/i386/pc_q35.c`).
const Q35: [(u8, u8, &str); 4] =
    [(0, 0, "mch"), (0x1f, 0, "ICH9-LPC"), (0x1f, 2, "ich9-ahci"), (0x1f, 3, "ICH9-SMB")];
/// Functions that are part of QEMU's i440fx (`hw/i386/pc_piix.c`).
const I440FX: [(u8, u8, &str); 4] =
    [(0, 0, "i440FX"), (1, 0, "PIIX3"), (1, 1, "piix3-ide"), (1, 3, "PIIX4_PM")];

/// Gives every device and controller of a domain its place.
pub fn assign(domain: &Domain) -> PciTree<'_> {
    let Assigned { controllers, devices, mut problems } = Assigned::new(domain);
    let built_in: &[(u8, u8, &'static str)] = match domain.family() {
        MachineFamily::Q35 => &Q35,
        MachineFamily::I440fx => &I440FX,
        MachineFamily::Other => &[],
    };
    let built_in =
        built_in.iter().map(|&(slot, function, name)| (on_root(slot, function), What::BuiltIn(name)));
    let built_in = built_in.filter(|(at, _)| !devices.contains(&Some(*at)));
    let placed = devices.iter().enumerate().filter_map(|(i, at)| Some(((*at)?, What::Device(i))));
    let ports = controllers.iter().filter_map(|(index, standing)| Some((standing.at?, What::Port(index))));
    let node =
        |(at, what): (PciAddress, What)| Node { bus: at.bus, slot: at.slot, function: at.function, what };
    let mut nodes = Vec::with_capacity(Q35.len() + domain.controllers.len() + devices.len());
    built_in.chain(placed).chain(ports).for_each(|standing| nodes.push(node(standing)));

    // Of each bus, the one that its port stands on.
    let mut above = [None; 256];
    for node in &nodes {
        if let What::Port(index) = node.what {
            above[usize::from(index)] = Some(node.bus);
        }
    }
    let mut lost: Vec<Node> = nodes.extract_if(.., |node| !leads_to_root(node.bus, &above)).collect();
    lost.sort_by_key(|node| (matches!(node.what, What::Device(_)), node.bus));
    problems.extend(lost.iter().filter_map(|node| match node.what {
        What::Port(index) => {
            let line = controllers.get(index).map(|controller| controller.line).filter(|&line| line > 0)?;
            let message = format!("PCI controller {index}: no way leads from the root to it");
            Some(Problem::lost(line, message))
        }
        What::Device(position) => {
            let message = format!("no way leads from the root to PCI bus {}", node.bus);
            Some(Problem::lost(domain.devices[position].line, message))
        }
        What::BuiltIn(_) => None,
    }));
    if let Some(more) = problems.len().checked_sub(MAX_PROBLEMS).filter(|&more| more > 0) {
        problems.truncate(MAX_PROBLEMS);
        problems.push(Problem::lost(0, format!("{more} more faults of this kind")));
    }
    nodes.sort_by_key(|node| u32::from_be_bytes([0, node.bus, node.slot, node.function]));
    PciTree { problems, nodes, controllers }
}

/// Nobody reads more, and a broken generator can make as many as there are devices.
const MAX_PROBLEMS: usize = 100;

/// Whether the way up from a bus ends at the root: it may as well go in a circle, or end at a port that has no place.
fn leads_to_root(bus: u8, above: &[Option<u8>; 256]) -> bool {
    let way = iter::successors(Some(bus), |bus| above[usize::from(*bus)]);
    way.take(above.len()).any(|bus| bus == 0)
}
