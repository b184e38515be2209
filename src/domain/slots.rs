//! Which slot of which bus a device may take: libvirt's bookkeeping of PCI addresses.
//!
//! Knows what each kind of bus accepts and finds the next free place; which devices there are, and in what order they
//! ask, is [`super::topology`]'s business. Source: libvirt 9.0 `src/conf/domain_addr.c`
//! (`virDomainPCIAddressBusSetModel`, `…FlagsCompatible`, `…SetGrow`, `…GetNextAddr`, `…ReserveAddrInternal`).

use super::model::ControllerModel;
use crate::units::PciAddress;

/// What a device needs, or a bus accepts.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Connect(u16);

impl Connect {
    pub(super) const PCI: Connect = Connect(1);
    pub(super) const PCIE: Connect = Connect(1 << 1);
    pub(super) const ROOT_PORT: Connect = Connect(1 << 2);
    pub(super) const UPSTREAM: Connect = Connect(1 << 3);
    pub(super) const DOWNSTREAM: Connect = Connect(1 << 4);
    pub(super) const DMI_TO_PCI: Connect = Connect(1 << 5);
    pub(super) const PCIE_TO_PCI: Connect = Connect(1 << 6);
    pub(super) const PCI_BRIDGE: Connect = Connect(1 << 7);
    pub(super) const PCI_EXPANDER: Connect = Connect(1 << 8);
    pub(super) const PCIE_EXPANDER: Connect = Connect(1 << 9);
    const KINDS: Connect = Connect((1 << 10) - 1);
    /// A place that libvirt gives out by itself, or a device that takes only such.
    pub(super) const AUTO: Connect = Connect(1 << 10);
    /// May share its slot with others of its kind, as functions of one device.
    pub(super) const AGGREGATE: Connect = Connect(1 << 11);
    /// Belongs on the root bus.
    pub(super) const INTEGRATED: Connect = Connect(1 << 12);

    pub(super) const fn and(self, other: Connect) -> Connect {
        Connect(self.0 | other.0)
    }

    const fn has(self, other: Connect) -> bool {
        self.0 & other.0 != 0
    }

    /// What a controller needs of the bus it stands on; `None` for a root.
    pub(super) fn of_controller(model: &ControllerModel) -> Option<Connect> {
        Some(match model {
            ControllerModel::RootPort => Connect::ROOT_PORT.and(Connect::AGGREGATE),
            ControllerModel::SwitchUpstream => Connect::UPSTREAM,
            ControllerModel::SwitchDownstream => Connect::DOWNSTREAM,
            ControllerModel::PcieToPciBridge => Connect::PCIE_TO_PCI,
            ControllerModel::PciBridge => Connect::PCI_BRIDGE,
            ControllerModel::DmiToPciBridge => Connect::DMI_TO_PCI,
            ControllerModel::PcieExpander => Connect::PCIE_EXPANDER,
            ControllerModel::PciExpander => Connect::PCI_EXPANDER,
            ControllerModel::PcieRoot | ControllerModel::PciRoot | ControllerModel::Other(_) => return None,
        })
    }
}

/// One device number of a bus.
#[derive(Copy, Clone, Default)]
struct Slot {
    /// Functions in use, one bit each.
    functions: u8,
    /// The functions are of a kind that shares.
    aggregate: bool,
}

/// A bus and what stands on it.
struct Bus {
    model: ControllerModel,
    accepts: Connect,
    first: u8,
    last: u8,
    slots: [Slot; 32],
}

impl Bus {
    fn new(model: ControllerModel) -> Bus {
        let endpoints = Connect::AUTO.and(Connect::PCI).and(Connect::PCI_BRIDGE);
        let (accepts, first, last) = match model {
            ControllerModel::PciRoot => (endpoints.and(Connect::PCI_EXPANDER), 1, 31),
            ControllerModel::PciBridge | ControllerModel::PcieToPciBridge => (endpoints, 1, 31),
            ControllerModel::PciExpander => (endpoints, 0, 31),
            ControllerModel::PcieRoot => {
                let ports = Connect::ROOT_PORT.and(Connect::DMI_TO_PCI).and(Connect::PCIE_EXPANDER);
                (Connect::PCIE.and(ports), 1, 31)
            }
            ControllerModel::DmiToPciBridge => (Connect::PCI.and(Connect::PCI_BRIDGE), 0, 31),
            ControllerModel::RootPort | ControllerModel::SwitchDownstream => {
                let bridges = Connect::UPSTREAM.and(Connect::PCIE_TO_PCI);
                (Connect::AUTO.and(Connect::PCIE).and(bridges), 0, 0)
            }
            ControllerModel::SwitchUpstream => (Connect::DOWNSTREAM, 0, 31),
            ControllerModel::PcieExpander => (Connect::ROOT_PORT.and(Connect::DMI_TO_PCI), 0, 31),
            ControllerModel::Other(_) => (Connect(0), 0, 31),
        };
        Bus { model, accepts, first, last, slots: [Slot::default(); 32] }
    }

    /// Whether libvirt would put such a device here by itself.
    fn takes(&self, index: usize, device: Connect) -> bool {
        let integrated = device.has(Connect::INTEGRATED);
        if integrated && index != 0 {
            return false;
        }
        let auto = !device.has(Connect::AUTO) || self.accepts.has(Connect::AUTO) || integrated;
        auto && Connect(device.0 & Connect::KINDS.0).has(self.accepts)
    }

    /// Whether libvirt takes such a device here when the XML says so: endpoints of either kind go where one does.
    fn takes_given(&self, device: Connect) -> bool {
        let endpoint = Connect::PCI.and(Connect::PCIE);
        let accepts = if self.accepts.has(endpoint) { self.accepts.and(endpoint) } else { self.accepts };
        let device = if device.has(Connect::PCI_BRIDGE) { device.and(Connect::PCI) } else { device };
        Connect(device.0 & Connect::KINDS.0).has(accepts)
    }

    fn free(&self, device: Connect, function: Option<u8>) -> Option<(u8, u8)> {
        (self.first..=self.last).find_map(|slot| {
            let taken = self.slots[usize::from(slot)];
            if taken.functions == 0 {
                return Some((slot, function.unwrap_or(0)));
            }
            if !(device.has(Connect::AGGREGATE) && taken.aggregate) {
                return None;
            }
            let wanted = function.map_or(0..=7, |function| function..=function);
            wanted.into_iter().find(|function| taken.functions & (1 << function) == 0).map(|f| (slot, f))
        })
    }

    fn is_full(&self) -> bool {
        (self.first..=self.last).all(|slot| self.slots[usize::from(slot)].functions != 0)
    }
}

/// All buses of a guest, by controller index.
pub(super) struct Slots {
    buses: Vec<Option<Bus>>,
    /// A bus may be added when none has room.
    pub(super) growing: bool,
    /// Devices for which nothing is left: buses only ever get fuller.
    exhausted: Vec<Connect>,
}

/// Most buses: an address has 8 bits for one.
const MAX_BUSES: usize = 256;

impl Slots {
    /// The buses of these controllers, by index. Indices nobody has are filled as libvirt does: with root ports where
    /// there is a PCI Express root, with bridges elsewhere.
    pub(super) fn new(models: impl Iterator<Item = Option<ControllerModel>>, growing: bool) -> Slots {
        let buses = models.map(|model| model.map(Bus::new)).collect();
        let mut slots = Slots { buses, growing, exhausted: Vec::new() };
        let filler = slots.filler();
        for bus in &mut slots.buses {
            bus.get_or_insert_with(|| Bus::new(filler.clone()));
        }
        slots
    }

    fn filler(&self) -> ControllerModel {
        let has_express = self.buses.iter().flatten().any(|bus| bus.model == ControllerModel::PcieRoot);
        if has_express { ControllerModel::RootPort } else { ControllerModel::PciBridge }
    }

    /// Adds a bus, with none in between.
    pub(super) fn put(&mut self, index: usize, model: ControllerModel) {
        if index >= MAX_BUSES {
            return;
        }
        if self.buses.len() <= index {
            self.buses.resize_with(index + 1, || None);
        }
        self.buses[index] = Some(Bus::new(model));
    }

    /// The buses there are, with what they are.
    pub(super) fn models(&self) -> impl Iterator<Item = (u8, &ControllerModel)> {
        (0..=u8::MAX).zip(&self.buses).filter_map(|(index, bus)| Some((index, &bus.as_ref()?.model)))
    }

    /// Takes an address that is given. The reason when libvirt would refuse it; an address that is merely of the wrong
    /// kind is taken all the same.
    pub(super) fn take(&mut self, at: PciAddress, device: Connect) -> Result<(), Refusal> {
        if at.domain != 0 {
            return Err(Refusal::Domain);
        }
        let index = usize::from(at.bus);
        if self.growing && index >= self.buses.len() {
            self.grow(index, device);
        }
        let Some(bus) = self.buses.get_mut(index).and_then(Option::as_mut) else {
            return Err(Refusal::NoBus);
        };
        let fits = bus.takes_given(device) && (bus.first..=bus.last).contains(&at.slot);
        let slot = &mut bus.slots[usize::from(at.slot & 0x1f)];
        let bit = 1u8 << (at.function & 7);
        if slot.functions & bit != 0 {
            return Err(Refusal::Taken);
        }
        slot.aggregate |= slot.functions == 0 && device.has(Connect::AGGREGATE);
        slot.functions |= bit;
        if fits { Ok(()) } else { Err(Refusal::WrongKind) }
    }

    /// Gives out the next place for a device, adding a bus when that is allowed and needed.
    pub(super) fn next(&mut self, device: Connect, function: Option<u8>) -> Option<PciAddress> {
        if self.exhausted.contains(&device) {
            return None;
        }
        let at = self.find(device, function).or_else(|| self.find_on_new_bus(device, function));
        match at {
            Some(at) => self.take(at, device).is_ok().then_some(at),
            None => {
                self.exhausted.push(device);
                None
            }
        }
    }

    fn find(&self, device: Connect, function: Option<u8>) -> Option<PciAddress> {
        self.buses.iter().enumerate().find_map(|(index, bus)| {
            let bus = bus.as_ref().filter(|bus| bus.takes(index, device))?;
            let (slot, function) = bus.free(device, function)?;
            PciAddress::new(0, u8::try_from(index).ok()?, slot, function)
        })
    }

    fn find_on_new_bus(&mut self, device: Connect, function: Option<u8>) -> Option<PciAddress> {
        if !self.growing {
            return None;
        }
        let index = self.grow(self.buses.len(), device)?;
        let first = self.buses[index].as_ref()?.first;
        PciAddress::new(0, u8::try_from(index).ok()?, first, function.unwrap_or(0))
    }

    /// The lowest slot of a bus whose function 0 is free, as QEMU takes it when `-device` has no `addr=`.
    pub(super) fn lowest(&self, bus: u8) -> Option<PciAddress> {
        let slots = &self.buses.get(usize::from(bus))?.as_ref()?.slots;
        let from = u8::from(bus == 0);
        let free = (from..32).find(|&slot| slots[usize::from(slot)].functions & 1 == 0)?;
        PciAddress::new(0, bus, free, 0)
    }

    /// Whether nothing stands on a slot of the root bus.
    pub(super) fn root_slot_is_free(&self, slot: u8) -> bool {
        let root = self.buses.first().and_then(Option::as_ref);
        root.is_some_and(|root| root.slots[usize::from(slot & 0x1f)].functions == 0)
    }

    /// Whether there is a place for a device on the buses there are.
    pub(super) fn have_room(&self, device: Connect) -> bool {
        self.find(device, None).is_some()
    }

    /// Whether no bus has a free slot.
    pub(super) fn are_full(&self) -> bool {
        self.buses.iter().flatten().all(Bus::is_full)
    }

    /// Adds buses up to an index, of the kind that the device needs. Returns the index of the bus for it: one more
    /// than asked for where a conventional device first needs a bridge on a PCI Express guest.
    fn grow(&mut self, index: usize, device: Connect) -> Option<usize> {
        let mut index = index;
        let model = if device.has(Connect::PCI) {
            let has_place = self.buses.iter().flatten().any(|bus| bus.accepts.has(Connect::PCI_BRIDGE));
            if !has_place && index == self.buses.len() {
                // A root port for the bridge alone, and the bridge: the device goes behind it.
                self.push(ControllerModel::RootPort)?;
                let port = self.buses.last_mut()?.as_mut()?;
                port.accepts = Connect::PCIE_TO_PCI;
                self.push(ControllerModel::PcieToPciBridge)?;
                index += 1;
            }
            ControllerModel::PciBridge
        } else if device.has(Connect::PCIE.and(Connect::UPSTREAM)) {
            ControllerModel::RootPort
        } else {
            return None;
        };
        while self.buses.len() <= index {
            self.push(model.clone())?;
        }
        Some(index)
    }

    fn push(&mut self, model: ControllerModel) -> Option<()> {
        (self.buses.len() < MAX_BUSES).then(|| self.buses.push(Some(Bus::new(model))))
    }
}

/// Why an address cannot be had.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Guests have PCI domain 0 only.
    Domain,
    /// No controller has this index.
    NoBus,
    /// Something stands there already.
    Taken,
    /// The bus takes no such device, or has no such slot.
    WrongKind,
}
