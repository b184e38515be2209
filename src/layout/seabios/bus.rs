//! The bus tree as SeaBIOS sizes it: what each bus needs of I/O, memory and prefetchable memory.
//!
//! Knows the order in which SeaBIOS meets functions, how it sorts what they ask for, and how big it makes a
//! bridge's window. Knows nothing of RAM or of where anything ends up. All arithmetic wraps at 64 bits as the
//! firmware's does. Source: SeaBIOS `src/fw/pciinit.c`, `pci_bios_init_bus`, `pci_bios_check_devices` and
//! `pci_region_create_entry`, at the tags 1.12.0 to 1.17.0.

use super::super::{Bridge, BridgeKind, Function, FunctionId, Role};
use super::SeaBiosRules;
use crate::units::{Bar, BarKind, MIB};

const DEVICE_MEM_MIN: u64 = 4096;
const BRIDGE_MEM_MIN: u64 = 2 * MIB;
const BRIDGE_IO_MIN: u64 = 4096;

/// The three kinds of address space that SeaBIOS keeps apart.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Io,
    Mem,
    Pref,
}

/// In the order in which SeaBIOS sizes and maps them.
pub(super) const SPACES: [Space; 3] = [Space::Io, Space::Mem, Space::Pref];

/// A BAR and whose it is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnedBar {
    pub(super) function: FunctionId,
    /// Device and function number.
    pub(super) devfn: u8,
    pub(super) usb: bool,
    pub(super) bar: Bar,
}

/// Whose address an [`Entry`] is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A BAR of a function.
    Bar(OwnedBar),
    /// The window of the bridge that leads to this bus (an index of [`Tree::buses`]).
    Window(usize),
}

/// Something that needs addresses.
#[derive(Copy, Clone, Debug)]
pub(super) struct Entry {
    pub(super) owner: Owner,
    pub(super) size: u64,
    pub(super) align: u64,
    /// May lie above 4 GiB.
    pub(super) is64: bool,
}

/// What one bus needs of one space, largest alignment first.
#[derive(Clone, Debug, Default)]
pub(super) struct Region {
    pub(super) entries: Vec<Entry>,
}

impl Region {
    /// Behind everything that is aligned and sized at least alike.
    fn insert(&mut self, entry: Entry) {
        let smaller = |other: &Entry| {
            other.align < entry.align || (other.align == entry.align && other.size < entry.size)
        };
        let position = self.entries.iter().position(smaller).unwrap_or(self.entries.len());
        self.entries.insert(position, entry);
    }

    pub(super) fn sum(&self) -> u64 {
        self.entries.iter().fold(0, |sum: u64, entry| sum.wrapping_add(entry.size))
    }

    /// Alignment of the first entry, which is the largest; 1 when there is none.
    pub(super) fn align(&self) -> u64 {
        self.entries.first().map_or(1, |entry| entry.align)
    }

    /// A prefetchable window is 64-bit when everything in it is, an empty one too. QEMU's bridges all can.
    fn window_is64(&self, space: Space) -> bool {
        space == Space::Pref && self.entries.iter().all(|entry| entry.is64)
    }
}

/// A bus: what is on it, and the bridge that leads to it (`None` on root buses).
#[derive(Clone, Debug)]
pub(super) struct Bus<'a> {
    bridge: Option<&'a Bridge>,
    /// Index of the bus on which the bridge sits; expander buses count as bus 0.
    pub(super) parent: usize,
    /// Device and function number of the bridge.
    pub(super) devfn: u8,
    regions: [Region; 3],
}

impl Bus<'_> {
    pub(super) fn region(&self, space: Space) -> &Region {
        &self.regions[space as usize]
    }

    pub(super) fn region_mut(&mut self, space: Space) -> &mut Region {
        &mut self.regions[space as usize]
    }
}

/// What the size of a bridge's window depends on besides the bridge.
#[derive(Copy, Clone, Debug)]
pub(super) struct Padding {
    /// Hot-plug ports are padded in the 64-bit window.
    pub(super) on: bool,
    /// First address beyond the width that the firmware trusts; 0 when it trusts none.
    pub(super) mem64_top: u64,
}

/// All buses in the order of their numbers; root buses share the first.
#[derive(Clone, Debug)]
pub(super) struct Tree<'a> {
    pub(super) buses: Vec<Bus<'a>>,
}

impl<'a> Tree<'a> {
    /// Numbers the buses, collects the BARs and sizes the bridges, the highest bus first.
    pub(super) fn sized(root: &'a [Function], rules: &SeaBiosRules, padding: Padding) -> Tree<'a> {
        let mut tree = Tree { buses: Vec::new() };
        tree.push_bus(None, 0, 0);
        tree.add(root, 0);
        let mut expanders: Vec<(u8, &'a Bridge)> = root.iter().filter_map(expander).collect();
        expanders.sort_by_key(|(bus_nr, _)| *bus_nr);
        for (_, bridge) in expanders {
            tree.add(&bridge.children, 0);
        }
        for index in (1..tree.buses.len()).rev() {
            tree.size_windows(index, rules, padding);
        }
        tree
    }

    fn push_bus(&mut self, bridge: Option<&'a Bridge>, parent: usize, devfn: u8) -> usize {
        self.buses.push(Bus { bridge, parent, devfn, regions: Default::default() });
        self.buses.len() - 1
    }

    /// Adds the functions of one bus, then the buses behind its bridges, depth first.
    fn add(&mut self, functions: &'a [Function], bus: usize) {
        for function in functions {
            let is_bridge = matches!(function.role, Role::Bridge(_)) && expander(function).is_none();
            let mut bars: Vec<&Bar> = function.bars.iter().collect();
            bars.sort_by_key(|bar| bar.index);
            for bar in bars {
                if !(is_bridge && (2..6).contains(&bar.index)) && bar.size.get() > 0 {
                    let (space, entry) = bar_entry(function, *bar);
                    self.buses[bus].region_mut(space).insert(entry);
                }
            }
        }
        for function in functions {
            if let Role::Bridge(bridge) = &function.role
                && expander(function).is_none()
            {
                let behind = self.push_bus(Some(bridge), bus, devfn(function));
                self.add(&bridge.children, behind);
            }
        }
    }

    /// Gives the bridge that leads to bus `index` a window of each space on its parent bus.
    fn size_windows(&mut self, index: usize, rules: &SeaBiosRules, padding: Padding) {
        let bus = &self.buses[index];
        let (Some(bridge), parent) = (bus.bridge, bus.parent) else { return };
        for space in SPACES {
            let region = self.buses[index].region(space);
            let is64 = region.window_is64(space);
            let mut sum = region.sum();
            let mut align =
                region.align().max(if space == Space::Io { BRIDGE_IO_MIN } else { BRIDGE_MEM_MIN });
            if let Some(hotplug) = hotplug(bridge, rules) {
                let pad = padding.mem64_top >> 11;
                if padding.on && is64 && (pad > align || rules.misaligns) {
                    align = pad;
                }
                // 1.16.2 and earlier fill up only an empty window; there a sum below the alignment is empty anyway.
                let optional = hotplug == Hotplug::Pcie && space == Space::Io;
                if align > sum && !optional {
                    sum = align;
                }
            }
            let reserve = reserve(bridge, space);
            let size = match (reserve > sum, space) {
                (true, Space::Io) => reserve,
                (true, _) => align_up(reserve, align),
                (false, _) => align_up(sum, align),
            };
            let owner = Owner::Window(index);
            self.buses[parent].region_mut(space).insert(Entry { owner, size, align, is64 });
        }
    }
}

fn expander(function: &Function) -> Option<(u8, &Bridge)> {
    match &function.role {
        Role::Bridge(bridge) => match bridge.kind {
            BridgeKind::Expander { bus_nr } => Some((bus_nr, bridge)),
            _ => None,
        },
        Role::Endpoint => None,
    }
}

fn bar_entry(function: &Function, bar: Bar) -> (Space, Entry) {
    let (space, is64) = match bar.kind {
        BarKind::Io => (Space::Io, false),
        BarKind::Mem32 => (Space::Mem, false),
        BarKind::Mem64 => (Space::Mem, true),
        BarKind::Mem32Prefetchable => (Space::Pref, false),
        BarKind::Mem64Prefetchable => (Space::Pref, true),
    };
    let size = if space == Space::Io { bar.size.get() } else { bar.size.get().max(DEVICE_MEM_MIN) };
    let owner = OwnedBar { function: function.id, devfn: devfn(function), usb: function.usb, bar };
    (space, Entry { owner: Owner::Bar(owner), size, align: size, is64 })
}

fn devfn(function: &Function) -> u8 {
    function.device << 3 | (function.function & 7)
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Hotplug {
    Pcie,
    Shpc,
}

/// SeaBIOS takes every PCI Express slot for hot-pluggable, `hotplug=off` or not (measured).
fn hotplug(bridge: &Bridge, rules: &SeaBiosRules) -> Option<Hotplug> {
    match bridge.kind {
        BridgeKind::RootPort | BridgeKind::Ioh3420 | BridgeKind::SwitchDownstream => Some(Hotplug::Pcie),
        BridgeKind::PciePciBridge => rules.pads_pcie_pci_bridge.then_some(Hotplug::Shpc),
        BridgeKind::PciBridge => bridge.hotplug.then_some(Hotplug::Shpc),
        BridgeKind::SwitchUpstream | BridgeKind::DmiToPci | BridgeKind::Expander { .. } => None,
    }
}

/// What QEMU's capability reserves in a space; only the devices 1b36:0001 and 1b36:000c are asked.
fn reserve(bridge: &Bridge, space: Space) -> u64 {
    if !matches!(bridge.kind, BridgeKind::RootPort | BridgeKind::PciBridge) {
        return 0;
    }
    let reserve = &bridge.reserve;
    let bytes = match space {
        Space::Io => reserve.io,
        Space::Mem => reserve.mem,
        // Both at once contradict each other, and SeaBIOS then heeds neither.
        Space::Pref if reserve.pref32.is_some() && reserve.pref64.is_some() => None,
        Space::Pref => reserve.pref32.or(reserve.pref64),
    };
    bytes.map_or(0, |bytes| bytes.get())
}

/// Rounds up as the firmware does: wrapping, and to a power of two.
pub(super) fn align_up(value: u64, align: u64) -> u64 {
    value.wrapping_add(align.wrapping_sub(1)) & !align.wrapping_sub(1)
}
