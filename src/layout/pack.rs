//! How edk2's PCI bus driver arranges BARs behind bridges: sorted by alignment, window inside window, padding
//! for hot-plug, and which device it gives up when something does not fit.
//!
//! Source: edk2 MdeModulePkg/Bus/Pci/PciBusDxe, PciResourceSupport.c (`CreateResourceMap`, `DegradeResource`,
//! `CalculateResourceAperture`, `InsertResourceNode`) and PciEnumerator.c (`PciHostBridgeAdjustAllocation`,
//! `GetMaxResourceConsumerDevice`, `RejectPciDevice`), unchanged in substance from 2020 to 2026 but for
//! `mem64_through_pref64`. SR-IOV and resizable BARs are not looked at: QEMU hides both from passed-through
//! devices.

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
    /// One past the last function behind it.
    end: usize,
    /// Its first BAR in the list of all BARs.
    first_bar: usize,
    /// Behind the root bus 0 without a bridge in between.
    on_bus_0: bool,
    padding: Option<Padding>,
    rejected: bool,
}

impl Dev<'_> {
    fn is_bridge(&self) -> bool {
        matches!(self.function.role, Role::Bridge(_))
    }
}

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
    dev: usize,
    what: What,
    len: u64,
    /// Alignment minus one.
    mask: u64,
    offset: u64,
    children: Vec<usize>,
}

/// All functions of a guest, and the resource trees of the current attempt.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    devs: Vec<Dev<'a>>,
    /// All BARs but expansion ROMs, none placed.
    bars: Vec<PlacedBar>,
    /// Functions on each root bus: ranges of `devs`, main bus first, then expander buses by number.
    roots: Vec<std::ops::Range<usize>>,
    rules: PackRules,
    nodes: Vec<Node>,
    /// Windows of each root bus.
    tops: Vec<PerKind<usize>>,
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
            tops: Vec::new(),
            pools: Default::default(),
        };
        tree.flatten(bus, true, &padding);
        tree.roots.push(0..tree.devs.len());
        let mut expanders: Vec<(u8, &Bridge)> =
            bus.iter().filter_map(|f| Some((expander(f)?, bridge(f)?))).collect();
        expanders.sort_by_key(|(bus_nr, _)| *bus_nr);
        for (_, expander) in expanders {
            // An empty expander bus is not found.
            if !expander.children.is_empty() {
                let start = tree.devs.len();
                tree.flatten(&expander.children, false, &padding);
                tree.roots.push(start..tree.devs.len());
            }
        }
        tree
    }

    fn flatten(&mut self, functions: &'a [Function], on_bus_0: bool, padding: &impl Fn(&Bridge) -> Padding) {
        for function in functions {
            let at = self.devs.len();
            let behind = bridge(function).filter(|_| expander(function).is_none());
            let padding_here =
                behind.filter(|b| b.hotplug).map(padding).filter(|p| p.iter().any(|len| *len != 0));
            let first_bar = self.bars.len();
            self.bars.extend(function.bars.iter().filter(|bar| bar.index != ROM).map(|bar| PlacedBar {
                function: function.id,
                bar: *bar,
                address: None,
                reachable: false,
                rescued: false,
            }));
            self.devs.push(Dev {
                function,
                end: 0,
                first_bar,
                on_bus_0,
                padding: padding_here,
                rejected: false,
            });
            if let Some(bridge) = behind {
                self.flatten(&bridge.children, false, padding);
            }
            self.devs[at].end = self.devs.len();
        }
    }

    /// Number of root buses.
    pub(super) fn roots(&self) -> usize {
        self.roots.len()
    }

    /// Builds the resource trees and says what each root bus asks for.
    pub(super) fn requests(&mut self) -> Vec<PerKind<Option<Request>>> {
        self.nodes.clear();
        self.tops.clear();
        self.pools = Default::default();
        let mut requests = Vec::with_capacity(self.roots.len());
        for root in self.roots.clone() {
            let mut lists: PerKind<Vec<usize>> = Default::default();
            if let Some(size) = self.largest_rom(root.clone()) {
                let rom = self.node(usize::MAX, What::Rom, size, size - 1);
                lists[Kind::Mem32 as usize].push(rom);
            }
            let top = self.window(usize::MAX, root, lists, None);
            for (pool, node) in Kind::ALL.into_iter().zip(top) {
                let list = std::mem::take(&mut self.pools[pool as usize]);
                self.pools[pool as usize] = self.inserted(list, node);
            }
            self.tops.push(top);
            requests.push(top.map(|node| {
                let node = &self.nodes[node];
                (node.len != 0).then_some(Request { len: node.len, mask: node.mask })
            }));
        }
        requests
    }

    /// Gives up the largest consumer of each type that was not satisfied. `false` when nobody can be given up.
    pub(super) fn give_up(&mut self, unsatisfied: PerKind<bool>) -> bool {
        let mut removed: Vec<usize> = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| unsatisfied[*kind as usize]) {
            let Some(node) = self.largest(&self.pools[kind as usize]) else { continue };
            let dev = self.nodes[node].dev;
            if removed.contains(&dev) {
                continue;
            }
            // A bridge loses its padding, a device everything.
            if self.devs[dev].is_bridge() {
                self.devs[dev].padding = None;
            } else {
                self.devs[dev].rejected = true;
            }
            removed.push(dev);
        }
        !removed.is_empty()
    }

    /// All BARs: depth first, what is on expander buses last. None has an address.
    pub(super) fn unplaced(self) -> Vec<PlacedBar> {
        self.bars
    }

    /// All BARs with their addresses, given where each root bus's types begin.
    pub(super) fn placed(mut self, bases: impl Fn(usize) -> PerKind<Option<u64>>) -> Vec<PlacedBar> {
        let mut bars = std::mem::take(&mut self.bars);
        for (root, top) in self.tops.iter().enumerate() {
            for (node, base) in top.iter().zip(bases(root)) {
                if let Some(base) = base {
                    self.place(*node, base, &mut bars);
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

    /// Builds the windows of a bus: of a bridge, or of a root bus (`dev` is then `usize::MAX`).
    fn window(
        &mut self,
        dev: usize,
        bus: std::ops::Range<usize>,
        mut lists: PerKind<Vec<usize>>,
        padding: Option<Padding>,
    ) -> PerKind<usize> {
        let mut at = bus.start;
        while at < bus.end {
            let end = self.devs[at].end;
            if !self.devs[at].rejected {
                self.add(at, &mut lists);
            }
            at = end;
        }
        for (kind, len) in Kind::ALL.into_iter().zip(padding.unwrap_or_default()) {
            if len != 0 {
                let node = self.node(dev, What::Padding, len, len - 1);
                self.insert(&mut lists[kind as usize], node);
            }
        }
        self.degrade(dev == usize::MAX, &mut lists);
        let mut windows = [0; 5];
        for (kind, list) in Kind::ALL.into_iter().zip(lists) {
            windows[kind as usize] = self.aperture(dev, kind, list);
        }
        windows
    }

    /// Adds a function's BARs and, of a bridge, its windows.
    fn add(&mut self, at: usize, lists: &mut PerKind<Vec<usize>>) {
        let function = self.devs[at].function;
        let bars = function.bars.iter().filter(|bar| bar.index != ROM);
        for (number, bar) in (self.devs[at].first_bar..).zip(bars) {
            if let Some((kind, len, mask)) = demand(bar) {
                let node = self.node(at, What::Bar(number), len, mask);
                self.insert(&mut lists[kind as usize], node);
            }
        }
        if self.devs[at].is_bridge() && expander(function).is_none() {
            let windows =
                self.window(at, at + 1..self.devs[at].end, Default::default(), self.devs[at].padding);
            for (list, node) in lists.iter_mut().zip(windows) {
                if self.nodes[node].len != 0 {
                    self.insert(list, node);
                }
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
        for node in std::mem::take(&mut lists[from as usize]) {
            self.insert(&mut lists[to as usize], node);
        }
    }

    /// Lays the list out and makes the window that holds it.
    fn aperture(&mut self, dev: usize, kind: Kind, list: Vec<usize>) -> usize {
        let mut mask = if kind == Kind::Io { BRIDGE_IO_MASK } else { BRIDGE_MEM_MASK };
        let (mut used, mut padded) = (0u64, 0u64);
        for node in &list {
            let node = &mut self.nodes[*node];
            if kind == Kind::Io && node.what == What::Padding {
                padded = node.len;
                continue;
            }
            let end = if node.what == What::Padding { &mut padded } else { &mut used };
            node.offset = align_up(*end, node.mask + 1).unwrap_or(u64::MAX);
            *end = node.offset.saturating_add(node.len);
        }
        used = align_up(used, mask + 1).unwrap_or(u64::MAX);
        if kind != Kind::Io {
            padded = align_up(padded, mask + 1).unwrap_or(u64::MAX);
        }
        if let Some(first) = list.first() {
            mask = mask.max(self.nodes[*first].mask);
        }
        let window = self.node(dev, What::Window, used.max(padded), mask);
        self.nodes[window].children = list;
        window
    }

    /// Inserts by falling alignment. Among equals a node goes first when its length is a multiple of its
    /// alignment, otherwise behind those that stick out farther.
    fn insert(&self, list: &mut Vec<usize>, node: usize) {
        let mask = self.nodes[node].mask;
        let rest = self.nodes[node].len & mask;
        let mut at = list.partition_point(|other| self.nodes[*other].mask > mask);
        while rest != 0
            && list.get(at).is_some_and(|other| {
                let other = &self.nodes[*other];
                other.mask == mask && other.len & mask > rest
            })
        {
            at += 1;
        }
        list.insert(at, node);
    }

    fn inserted(&self, mut list: Vec<usize>, node: usize) -> Vec<usize> {
        self.insert(&mut list, node);
        list
    }

    fn node(&mut self, dev: usize, what: What, len: u64, mask: u64) -> usize {
        self.nodes.push(Node { dev, what, len, mask, offset: 0, children: Vec::new() });
        self.nodes.len() - 1
    }

    /// The largest BAR or padding in the lists that may be given up; the last of equals.
    fn largest(&self, list: &[usize]) -> Option<usize> {
        let mut largest: Option<usize> = None;
        for at in list {
            let node = &self.nodes[*at];
            let candidate = match node.what {
                What::Window => self.largest(&node.children),
                What::Padding => Some(*at),
                What::Rom => None,
                What::Bar(_) => {
                    let dev = &self.devs[node.dev];
                    (!dev.is_bridge() && !dev.on_bus_0 && !dev.function.vga).then_some(*at)
                }
            };
            if let Some(candidate) = candidate
                && largest.is_none_or(|l| self.nodes[l].len <= self.nodes[candidate].len)
            {
                largest = Some(candidate);
            }
        }
        largest
    }

    /// Size of the largest expansion ROM on a root bus.
    fn largest_rom(&self, root: std::ops::Range<usize>) -> Option<u64> {
        let mut largest = None;
        let mut at = root.start;
        while at < root.end {
            let dev = &self.devs[at];
            if !dev.rejected {
                let rom = dev.function.bars.iter().find(|bar| bar.index == ROM).map(|bar| bar.size.get());
                largest = largest.max(rom);
            }
            at += 1;
        }
        largest.filter(|size| *size != 0)
    }
}

/// Which type of space a BAR asks for, how much, and how aligned (minus one).
fn demand(bar: &Bar) -> Option<(Kind, u64, u64)> {
    let len = bar.size.get();
    if len == 0 {
        return None;
    }
    let kind = match bar.kind {
        BarKind::Io => return Some((Kind::Io, len, len - 1)),
        BarKind::Mem32 => Kind::Mem32,
        BarKind::Mem32Prefetchable => Kind::PMem32,
        BarKind::Mem64 => Kind::Mem64,
        BarKind::Mem64Prefetchable => Kind::PMem64,
    };
    Some((kind, len, (len - 1).max(PAGE_MASK)))
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
