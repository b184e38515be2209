//! How edk2's PCI bus driver arranges BARs behind bridges: sorted by alignment, window inside window, padding
//! for hot-plug, and which device it gives up when something does not fit.
//!
//! Source: edk2 MdeModulePkg/Bus/Pci/PciBusDxe, PciResourceSupport.c (`CreateResourceMap`, `DegradeResource`,
//! `CalculateResourceAperture`, `InsertResourceNode`) and PciEnumerator.c (`PciHostBridgeAdjustAllocation`,
//! `GetMaxResourceConsumerDevice`, `RejectPciDevice`), unchanged in substance from 2020 to 2026 but for
//! `mem64_through_pref64`. SR-IOV and resizable BARs are not looked at: QEMU hides both from passed-through
//! devices.

use std::ops::Range;

use super::host_bridge::{Kind, PerKind, Request};
use super::{Bridge, BridgeKind, Function, PlacedBar, Role};
use crate::units::{Addr, Bar, BarKind, KIB, MIB, align_up};

/// BARs of memory are aligned to a page at least.
const PAGE_MASK: u64 = 4 * KIB - 1;
/// Granularity of a bridge's memory windows.
const BRIDGE_MEM_MASK: u64 = MIB - 1;
/// Granularity of a bridge's I/O window.
const BRIDGE_IO_MASK: u64 = 4 * KIB - 1;
/// Index of the expansion ROM among BARs.
const ROM: u8 = 6;

/// Space kept free behind a hot-plug bridge, naturally aligned; 0: none.
pub(super) type Padding = PerKind<u64>;

/// What of the firmware's rules matters here.
#[derive(Copy, Clone, Debug)]
pub(super) struct PackRules {
    /// There is a 64-bit window.
    pub(super) high: bool,
    /// See [`OvmfRules`](super::OvmfRules).
    pub(super) mem64_through_pref64: bool,
}

/// A function in the flat list of all functions; what is behind a bridge follows it.
#[derive(Debug)]
struct Dev<'a> {
    function: &'a Function,
    /// The bridge it is behind.
    parent: Option<usize>,
    /// One past the last function behind it.
    end: usize,
    /// Its BARs: nodes.
    bars: Range<usize>,
    /// Of a bridge, the first of its [`GROUP`] nodes.
    group: Option<usize>,
    /// Behind the root bus 0 without a bridge in between.
    on_bus_0: bool,
    /// It was given up; of a bridge, its padding was.
    rejected: bool,
    /// Something behind it has changed since its windows were built.
    stale: bool,
}

/// A root bus.
#[derive(Clone, Debug)]
struct Root {
    /// Functions on it and behind.
    devs: Range<usize>,
    /// The first of its [`GROUP`] nodes; in the place of padding, one for expansion ROMs.
    group: usize,
}

/// Nodes of a bus: a window of each type, then padding of each type.
const GROUP: usize = 10;
/// Distance from a window to its padding.
const TO_PADDING: usize = 5;

/// What a node of a resource tree stands for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum What {
    /// A BAR: its number in the list of all BARs.
    Bar(usize),
    /// Everything of one type behind a bridge.
    Window,
    /// Space for devices plugged later.
    Padding,
    /// The place where expansion ROMs are copied from.
    Rom,
}

#[derive(Debug)]
struct Node {
    /// Whose it is; `None`: a root bus's.
    dev: Option<usize>,
    what: What,
    kind: Kind,
    len: u64,
    /// Alignment minus one.
    mask: u64,
    /// From the start of the window it lies in.
    offset: u64,
    /// What lies in it, back to front.
    children: Vec<usize>,
}

/// All functions of a guest, and the resource trees of the current attempt. A node is made once; an attempt
/// builds anew only the windows that the last rejection changed.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    devs: Vec<Dev<'a>>,
    /// All BARs but expansion ROMs, none placed.
    bars: Vec<PlacedBar>,
    /// Main bus first, then expander buses by number.
    roots: Vec<Root>,
    rules: PackRules,
    nodes: Vec<Node>,
    /// Root windows by type in the driver's order.
    pools: PerKind<Vec<usize>>,
}

impl<'a> Tree<'a> {
    /// Reads the guest's functions; `padding` says what a hot-plug bridge keeps free.
    pub(super) fn new(
        bus: &'a [Function],
        rules: PackRules,
        padding: impl Fn(&Bridge) -> Padding,
    ) -> Tree<'a> {
        let mut tree = Tree {
            devs: Vec::new(),
            bars: Vec::new(),
            roots: Vec::new(),
            rules,
            nodes: Vec::new(),
            pools: Default::default(),
        };
        tree.add_root(bus, true, &padding);
        let mut expanders: Vec<(u8, &Bridge)> =
            bus.iter().filter_map(|f| Some((expander(f)?, bridge(f)?))).collect();
        expanders.sort_by_key(|(bus_nr, _)| *bus_nr);
        for (_, expander) in expanders {
            // An empty expander bus is not found.
            if !expander.children.is_empty() {
                tree.add_root(&expander.children, false, &padding);
            }
        }
        tree
    }

    fn add_root(&mut self, bus: &'a [Function], on_bus_0: bool, padding: &impl Fn(&Bridge) -> Padding) {
        let start = self.devs.len();
        self.flatten(bus, None, on_bus_0, padding);
        let group = self.add_group(None, Padding::default());
        self.nodes[group + TO_PADDING].what = What::Rom;
        self.roots.push(Root { devs: start..self.devs.len(), group });
    }

    fn flatten(
        &mut self,
        functions: &'a [Function],
        parent: Option<usize>,
        on_bus_0: bool,
        padding: &impl Fn(&Bridge) -> Padding,
    ) {
        for function in functions {
            let at = self.devs.len();
            let first = self.nodes.len();
            for bar in function.bars.iter().filter(|bar| bar.index != ROM) {
                let (kind, len, mask) = demand(bar);
                self.add_node(Some(at), What::Bar(self.bars.len()), kind, len, mask);
                self.bars.push(PlacedBar {
                    function: function.id,
                    bar: *bar,
                    address: None,
                    reachable: false,
                    rescued: false,
                });
            }
            let bars = first..self.nodes.len();
            let behind = bridge(function).filter(|_| expander(function).is_none());
            let group = behind.map(|bridge| {
                let padding = if bridge.hotplug { padding(bridge) } else { Padding::default() };
                self.add_group(Some(at), padding)
            });
            let (rejected, stale) = (false, true);
            self.devs.push(Dev { function, parent, end: at + 1, bars, group, on_bus_0, rejected, stale });
            if let Some(bridge) = behind {
                self.flatten(&bridge.children, Some(at), false, padding);
                self.devs[at].end = self.devs.len();
            }
        }
    }

    /// Adds the nodes of a bus and returns the first.
    fn add_group(&mut self, dev: Option<usize>, padding: Padding) -> usize {
        let group = self.nodes.len();
        for kind in Kind::ALL {
            self.add_node(dev, What::Window, kind, 0, 0);
        }
        for (kind, len) in Kind::ALL.into_iter().zip(padding) {
            self.add_node(dev, What::Padding, kind, len, len.saturating_sub(1));
        }
        group
    }

    fn add_node(&mut self, dev: Option<usize>, what: What, kind: Kind, len: u64, mask: u64) {
        self.nodes.push(Node { dev, what, kind, len, mask, offset: 0, children: Vec::new() });
    }

    /// Number of root buses.
    pub(super) fn roots(&self) -> usize {
        self.roots.len()
    }

    /// Builds the resource trees and says what each root bus asks for.
    pub(super) fn requests(&mut self) -> Vec<PerKind<Option<Request>>> {
        let mut pools: PerKind<Vec<usize>> = Default::default();
        let mut requests = Vec::with_capacity(self.roots.len());
        for Root { devs, group } in self.roots.clone() {
            let rom = self.largest_rom(devs.clone());
            let node = &mut self.nodes[group + TO_PADDING];
            (node.kind, node.len, node.mask) = (Kind::Mem32, rom, rom.saturating_sub(1));
            self.build(group, devs, None);
            requests.push(std::array::from_fn(|kind| {
                self.insert(&mut pools[kind], group + kind);
                let Node { len, mask, .. } = self.nodes[group + kind];
                (len != 0).then_some(Request { len, mask })
            }));
        }
        self.pools = pools;
        requests
    }

    /// Gives up the largest consumer of each type that was not satisfied. `false` when nobody can be given up.
    pub(super) fn give_up(&mut self, unsatisfied: PerKind<bool>) -> bool {
        let mut given_up = false;
        for kind in Kind::ALL.into_iter().filter(|kind| unsatisfied[*kind as usize]) {
            let Some(dev) = self.largest(&self.pools[kind as usize]).and_then(|node| self.nodes[node].dev)
            else {
                continue;
            };
            // A bridge loses its padding, a device everything; one of several types may have done it already.
            given_up |= !self.devs[dev].rejected;
            self.devs[dev].rejected = true;
            let mut above = Some(dev);
            while let Some(at) = above {
                self.devs[at].stale = true;
                above = self.devs[at].parent;
            }
        }
        given_up
    }

    /// All BARs: depth first, what is on expander buses last. None has an address.
    pub(super) fn unplaced(self) -> Vec<PlacedBar> {
        self.bars
    }

    /// All BARs with their addresses, given where each root bus's types begin.
    pub(super) fn placed(mut self, bases: impl Fn(usize) -> PerKind<Option<u64>>) -> Vec<PlacedBar> {
        let mut bars = std::mem::take(&mut self.bars);
        for (at, root) in self.roots.iter().enumerate() {
            for (node, base) in (root.group..).zip(bases(at)) {
                if let Some(base) = base {
                    self.place(node, base, &mut bars);
                }
            }
        }
        bars
    }

    fn place(&self, window: usize, base: u64, bars: &mut [PlacedBar]) {
        for at in &self.nodes[window].children {
            let node = &self.nodes[*at];
            let address = base.saturating_add(node.offset);
            match node.what {
                What::Bar(number) => bars[number].address = Some(Addr(address)),
                What::Window => self.place(*at, address, bars),
                What::Padding | What::Rom => {}
            }
        }
    }

    /// Builds the windows of a bus: of a bridge, or (`None`) of a root bus.
    fn build(&mut self, group: usize, bus: Range<usize>, bridge: Option<usize>) {
        let mut lists: PerKind<Vec<usize>> =
            std::array::from_fn(|kind| std::mem::take(&mut self.nodes[group + kind].children));
        lists.iter_mut().for_each(Vec::clear);
        let padding = group + TO_PADDING..group + GROUP;
        if bridge.is_none() {
            self.insert_all(&mut lists, padding.clone());
        }
        let mut at = bus.start;
        while at < bus.end {
            self.add(at, &mut lists);
            at = self.devs[at].end;
        }
        if bridge.is_some_and(|at| !self.devs[at].rejected) {
            self.insert_all(&mut lists, padding);
        }
        self.degrade(bridge.is_none(), &mut lists);
        for (window, list) in (group..).zip(lists) {
            self.lay_out(window, list);
        }
    }

    /// Adds a function's BARs and, of a bridge, its windows.
    fn add(&mut self, at: usize, lists: &mut PerKind<Vec<usize>>) {
        let dev = &mut self.devs[at];
        let (bars, group, behind) = (dev.bars.clone(), dev.group, at + 1..dev.end);
        if dev.rejected && group.is_none() {
            return;
        }
        let stale = std::mem::take(&mut dev.stale);
        self.insert_all(lists, bars);
        if let Some(group) = group {
            if stale {
                self.build(group, behind, Some(at));
            }
            self.insert_all(lists, group..group + TO_PADDING);
        }
    }

    /// Inserts those nodes that ask for anything.
    fn insert_all(&self, lists: &mut PerKind<Vec<usize>>, nodes: Range<usize>) {
        for at in nodes {
            let Node { kind, len, .. } = self.nodes[at];
            if len != 0 {
                self.insert(&mut lists[kind as usize], at);
            }
        }
    }

    /// Moves BARs to types that the bridge can pass.
    fn degrade(&self, root: bool, lists: &mut PerKind<Vec<usize>>) {
        use Kind::{Mem32, Mem64, PMem32, PMem64};
        if root {
            if !self.rules.high {
                self.merge(lists, Mem32, Mem64);
                self.merge(lists, PMem32, PMem64);
            }
            self.merge(lists, Mem32, PMem32);
            self.merge(lists, Mem64, PMem64);
        } else {
            self.merge(lists, if self.rules.mem64_through_pref64 { PMem64 } else { Mem32 }, Mem64);
            if !lists[PMem64 as usize].is_empty() {
                self.merge(lists, Mem32, PMem32);
            }
        }
    }

    /// Moves the nodes of one list into another, first to last.
    fn merge(&self, lists: &mut PerKind<Vec<usize>>, to: Kind, from: Kind) {
        for node in std::mem::take(&mut lists[from as usize]).into_iter().rev() {
            self.insert(&mut lists[to as usize], node);
        }
    }

    /// Lays the list out in the window, and makes the window just large enough.
    fn lay_out(&mut self, window: usize, list: Vec<usize>) {
        let io = self.nodes[window].kind == Kind::Io;
        let mut mask = if io { BRIDGE_IO_MASK } else { BRIDGE_MEM_MASK };
        let (mut used, mut padded) = (0u64, 0u64);
        for at in list.iter().rev() {
            let node = &mut self.nodes[*at];
            if io && node.what == What::Padding {
                padded = node.len;
                continue;
            }
            let end = if node.what == What::Padding { &mut padded } else { &mut used };
            node.offset = align_up(*end, node.mask + 1).unwrap_or(u64::MAX);
            *end = node.offset.saturating_add(node.len);
        }
        used = align_up(used, mask + 1).unwrap_or(u64::MAX);
        if !io {
            padded = align_up(padded, mask + 1).unwrap_or(u64::MAX);
        }
        if let Some(first) = list.last() {
            mask = mask.max(self.nodes[*first].mask);
        }
        let window = &mut self.nodes[window];
        (window.len, window.mask, window.children) = (used.max(padded), mask, list);
    }

    /// Inserts by falling alignment; lists are kept back to front. Among equals a node goes first when its length
    /// is a multiple of its alignment, otherwise behind those that stick out farther.
    fn insert(&self, list: &mut Vec<usize>, at: usize) {
        let node = &self.nodes[at];
        let rest = node.len & node.mask;
        let farther = |other: &Node| other.mask == node.mask && other.len & node.mask > rest;
        let mut place = list.partition_point(|other| self.nodes[*other].mask <= node.mask);
        while rest != 0 && place > 0 && farther(&self.nodes[list[place - 1]]) {
            place -= 1;
        }
        list.insert(place, at);
    }

    /// The largest BAR or padding in the lists that may be given up; the last of equals.
    fn largest(&self, list: &[usize]) -> Option<usize> {
        let mut largest: Option<usize> = None;
        for at in list.iter().rev() {
            let node = &self.nodes[*at];
            let candidate = match node.what {
                What::Window => self.largest(&node.children),
                What::Padding => Some(*at),
                What::Rom => None,
                What::Bar(_) => node
                    .dev
                    .map(|dev| &self.devs[dev])
                    .filter(|dev| dev.group.is_none() && !dev.on_bus_0 && !dev.function.vga)
                    .map(|_| *at),
            };
            if let Some(candidate) = candidate
                && largest.is_none_or(|l| self.nodes[l].len <= self.nodes[candidate].len)
            {
                largest = Some(candidate);
            }
        }
        largest
    }

    /// Size of the largest expansion ROM on a root bus; 0: there is none.
    fn largest_rom(&self, devs: Range<usize>) -> u64 {
        let present = self.devs[devs].iter().filter(|dev| dev.group.is_some() || !dev.rejected);
        let roms = present.flat_map(|dev| &dev.function.bars).filter(|bar| bar.index == ROM);
        roms.map(|bar| bar.size.get()).max().unwrap_or(0)
    }
}

/// Which type of space a BAR asks for, how much, and how aligned (minus one).
fn demand(bar: &Bar) -> (Kind, u64, u64) {
    let len = bar.size.get();
    let mask = len.saturating_sub(1);
    let kind = match bar.kind {
        BarKind::Io => return (Kind::Io, len, mask),
        BarKind::Mem32 => Kind::Mem32,
        BarKind::Mem32Prefetchable => Kind::PMem32,
        BarKind::Mem64 => Kind::Mem64,
        BarKind::Mem64Prefetchable => Kind::PMem64,
    };
    (kind, len, mask.max(PAGE_MASK))
}

fn bridge(function: &Function) -> Option<&Bridge> {
    match &function.role {
        Role::Bridge(bridge) => Some(bridge),
        Role::Endpoint => None,
    }
}

fn expander(function: &Function) -> Option<u8> {
    match bridge(function)?.kind {
        BridgeKind::Expander { bus_nr } => Some(bus_nr),
        _ => None,
    }
}
