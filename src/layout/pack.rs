//! How edk2's PCI bus driver arranges BARs behind bridges: sorted by alignment, window inside window, padding
//! for hot-plug, and which device it gives up when something does not fit.
//!
//! Source: edk2 MdeModulePkg/Bus/Pci/PciBusDxe, PciResourceSupport.c (`CreateResourceMap`, `DegradeResource`,
//! `CalculateResourceAperture`, `InsertResourceNode`) and PciEnumerator.c (`PciHostBridgeAdjustAllocation`,
//! `GetMaxResourceConsumerDevice`, `RejectPciDevice`), unchanged in substance from 2020 to 2026 but for
//! `mem64_through_pref64`. SR-IOV and resizable BARs are not looked at: QEMU hides both from passed-through
//! devices.
//!
//! The driver builds its lists anew for each attempt. With hundreds of devices that it gives up one by one that is far
//! too slow for a prediction: here the lists of a bus are kept sorted, and a device given up changes those of its own
//! bus and of the buses above. Where the order follows from the keys alone (see [`List`]) nothing else is looked at;
//! where it does not, the list goes through the driver's own insertions again.

use std::collections::BTreeMap;
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
    /// The bus it is on.
    bus: usize,
    /// One past the last function behind it.
    end: usize,
    /// Its BARs: nodes.
    bars: Range<usize>,
    /// Of a bridge, the bus behind it.
    behind: Option<usize>,
    /// It was given up; of a bridge, its padding was.
    rejected: bool,
}

/// A bus: a root bus, or one behind a bridge.
#[derive(Debug)]
struct Bus {
    /// The bridge that leads to it; `None`: a root bus.
    bridge: Option<usize>,
    /// Functions on it and behind.
    devs: Range<usize>,
    /// The first of its [`GROUP`] nodes; on a root bus there is, in the place of padding, one for expansion ROMs.
    group: usize,
    /// What lies in each of its windows.
    lists: PerKind<List>,
    /// In which list each type ends up.
    routes: PerKind<Route>,
    /// Something goes through its prefetchable 64-bit window.
    pref64: bool,
    /// Of a root bus: sizes of the expansion ROMs on it and behind, and how many there are of each.
    roms: BTreeMap<u64, usize>,
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

#[derive(Copy, Clone, Debug)]
struct Node {
    /// Whose it is; `None`: a root bus's.
    dev: Option<usize>,
    /// The bus in whose lists it stands; `None`: a root bus's window.
    bus: Option<usize>,
    what: What,
    kind: Kind,
    size: Size,
}

/// How much a node asks for. With a length of 0 it stands in no list.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Size {
    len: u64,
    /// Alignment minus one.
    mask: u64,
    /// The largest BAR or padding in it that may be given up, and its length.
    largest: Option<(u64, usize)>,
}

/// A node in a list, with all that the order depends on.
#[derive(Copy, Clone, Debug)]
struct Entry {
    node: usize,
    size: Size,
    kind: Kind,
    padding: bool,
    /// Its place among entries of the same alignment, as far as the keys decide on that.
    key: u64,
}

/// What lies in a window, back to front.
///
/// The driver inserts by falling alignment. Among equals a node goes first, so that the order follows from that of the
/// insertions: [`Entry::key`]. There is one exception: a node whose length is no multiple of its alignment goes behind
/// those that stick out farther. Where two nodes of the same alignment stick out by different lengths, the order is
/// only to be had by inserting one after the other.
#[derive(Debug, Default)]
struct List {
    entries: Vec<Entry>,
    /// The order does not follow from the keys.
    by_insertion: bool,
    /// Has changed since it was last laid out.
    stale: bool,
}

/// Where the nodes of a type end up after all lists have been merged.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Route {
    /// The list.
    to: Kind,
    /// Behind how many other types in the order of insertion.
    rank: u64,
    /// Turned around by an odd number of merges.
    reversed: bool,
}

/// All functions of a guest, and the resource trees of the current attempt.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    devs: Vec<Dev<'a>>,
    /// All BARs but expansion ROMs, none placed.
    bars: Vec<PlacedBar>,
    buses: Vec<Bus>,
    /// Root buses: main bus first, then expander buses by number.
    roots: Vec<usize>,
    rules: PackRules,
    nodes: Vec<Node>,
}

impl<'a> Tree<'a> {
    /// Reads the guest's functions and builds their resource trees; `padding` says what a hot-plug bridge keeps free.
    pub(super) fn new(
        bus: &'a [Function],
        rules: PackRules,
        padding: impl Fn(&Bridge) -> Padding,
    ) -> Tree<'a> {
        let count = count(bus);
        let mut tree = Tree {
            devs: Vec::with_capacity(count.functions),
            bars: Vec::with_capacity(count.bars),
            buses: Vec::with_capacity(count.bridges + 1),
            roots: Vec::with_capacity(1),
            rules,
            nodes: Vec::with_capacity(count.bars + (count.bridges + 1) * GROUP),
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
        tree.build();
        tree
    }

    /// Fills and lays out all lists.
    fn build(&mut self) {
        // What is behind a bridge comes after it.
        for bus in (0..self.buses.len()).rev() {
            self.collect(bus);
            for (window, size) in self.lay_out(bus) {
                self.nodes[window].size = size;
            }
        }
    }

    fn add_root(&mut self, functions: &'a [Function], on_bus_0: bool, padding: &impl Fn(&Bridge) -> Padding) {
        let bus = self.add_bus(None, None, Padding::default());
        self.roots.push(bus);
        self.flatten(functions, bus, on_bus_0, padding);
        let mut roms = BTreeMap::new();
        for dev in &self.devs[self.buses[bus].devs.clone()] {
            rom_sizes(dev.function).for_each(|size| *roms.entry(size).or_default() += 1);
        }
        let rom = self.buses[bus].group + TO_PADDING;
        (self.nodes[rom].what, self.nodes[rom].kind) = (What::Rom, Kind::Mem32);
        self.nodes[rom].size = rom_size(&roms);
        self.buses[bus].roms = roms;
    }

    fn flatten(
        &mut self,
        functions: &'a [Function],
        bus: usize,
        on_bus_0: bool,
        padding: &impl Fn(&Bridge) -> Padding,
    ) {
        let start = self.devs.len();
        for function in functions {
            let at = self.devs.len();
            let first = self.nodes.len();
            let behind = bridge(function).filter(|_| expander(function).is_none());
            let may_go = behind.is_none() && !on_bus_0 && !function.vga;
            for bar in function.bars.iter().filter(|bar| bar.index != ROM) {
                let (kind, len, mask) = demand(bar);
                let largest = may_go.then_some((len, self.nodes.len()));
                let what = What::Bar(self.bars.len());
                let size = Size { len, mask, largest };
                self.nodes.push(Node { dev: Some(at), bus: Some(bus), what, kind, size });
                self.bars.push(PlacedBar {
                    function: function.id,
                    bar: *bar,
                    address: None,
                    reachable: false,
                    rescued: false,
                });
            }
            let bars = first..self.nodes.len();
            let rejected = false;
            self.devs.push(Dev { function, bus, end: at + 1, bars, behind: None, rejected });
            if let Some(bridge) = behind {
                let padded = if bridge.hotplug { padding(bridge) } else { Padding::default() };
                let below = self.add_bus(Some(at), Some(bus), padded);
                self.devs[at].behind = Some(below);
                self.flatten(&bridge.children, below, false, padding);
                self.devs[at].end = self.devs.len();
            }
        }
        self.buses[bus].devs = start..self.devs.len();
    }

    /// Adds a bus with its nodes, and returns its number.
    fn add_bus(&mut self, bridge: Option<usize>, above: Option<usize>, padding: Padding) -> usize {
        let (number, group) = (self.buses.len(), self.nodes.len());
        for kind in Kind::ALL {
            let size = Size { len: 0, mask: 0, largest: None };
            self.nodes.push(Node { dev: bridge, bus: above, what: What::Window, kind, size });
        }
        for (kind, len) in Kind::ALL.into_iter().zip(padding) {
            let largest = Some((len, self.nodes.len()));
            let size = Size { len, mask: len.saturating_sub(1), largest };
            self.nodes.push(Node { dev: bridge, bus: Some(number), what: What::Padding, kind, size });
        }
        self.buses.push(Bus {
            bridge,
            devs: 0..0,
            group,
            lists: Default::default(),
            routes: routes(&[]),
            pref64: false,
            roms: BTreeMap::new(),
        });
        number
    }

    /// Number of root buses.
    pub(super) fn roots(&self) -> usize {
        self.roots.len()
    }

    /// What each root bus asks for.
    pub(super) fn requests(&self) -> Vec<PerKind<Option<Request>>> {
        let request = |node: usize| {
            let Size { len, mask, .. } = self.nodes[node].size;
            (len != 0).then_some(Request { len, mask })
        };
        let groups = self.roots.iter().map(|bus| self.buses[*bus].group);
        groups.map(|group| std::array::from_fn(|kind| request(group + kind))).collect()
    }

    /// Gives up the largest consumer of each type that was not satisfied. `false` when nobody can be given up.
    pub(super) fn give_up(&mut self, unsatisfied: PerKind<bool>) -> bool {
        let kinds = Kind::ALL.into_iter().filter(|kind| unsatisfied[*kind as usize]);
        let largest: Vec<usize> = kinds.filter_map(|kind| self.nodes[self.largest(kind)?].dev).collect();
        let mut given_up = false;
        for at in largest {
            // One of several types may have done it already.
            if std::mem::replace(&mut self.devs[at].rejected, true) {
                continue;
            }
            given_up = true;
            let dev = &self.devs[at];
            // A bridge loses its padding, a device everything.
            let (bus, nodes) = match dev.behind {
                Some(behind) => {
                    let group = self.buses[behind].group;
                    (behind, group + TO_PADDING..group + GROUP)
                }
                None => (dev.bus, dev.bars.clone()),
            };
            if dev.behind.is_none() {
                self.forget_rom(at);
            }
            for node in nodes {
                self.resize(node, Size { len: 0, ..self.nodes[node].size });
            }
            self.settle(bus);
        }
        given_up
    }

    /// The largest BAR or padding of a type that may be given up; the last of equals.
    fn largest(&self, kind: Kind) -> Option<usize> {
        let mut pool = Vec::with_capacity(self.roots.len());
        for root in &self.roots {
            insert(&mut pool, self.entry(self.buses[*root].group + kind as usize, 0));
        }
        pool.iter().rev().fold(None, larger).map(|(_, node)| node)
    }

    /// Takes a device's expansion ROM out of what its root bus keeps room for.
    fn forget_rom(&mut self, at: usize) {
        let mut root = self.devs[at].bus;
        while let Some(bridge) = self.buses[root].bridge {
            root = self.devs[bridge].bus;
        }
        let roms = &mut self.buses[root].roms;
        for size in rom_sizes(self.devs[at].function) {
            if let Some(count) = roms.get_mut(&size) {
                *count -= 1;
                if *count == 0 {
                    roms.remove(&size);
                }
            }
        }
        let size = rom_size(roms);
        self.resize(self.buses[root].group + TO_PADDING, size);
        self.settle(root);
    }

    /// All BARs: depth first, what is on expander buses last. None has an address.
    pub(super) fn unplaced(self) -> Vec<PlacedBar> {
        self.bars
    }

    /// All BARs with their addresses, given where each root bus's types begin.
    pub(super) fn placed(mut self, bases: impl Fn(usize) -> PerKind<Option<u64>>) -> Vec<PlacedBar> {
        let mut bars = std::mem::take(&mut self.bars);
        for (at, root) in self.roots.iter().enumerate() {
            for (kind, base) in Kind::ALL.into_iter().zip(bases(at)) {
                if let Some(base) = base {
                    self.place(*root, kind, base, &mut bars);
                }
            }
        }
        bars
    }

    /// Places what lies in a window of the bus that begins at `base`.
    fn place(&self, bus: usize, window: Kind, base: u64, bars: &mut [PlacedBar]) {
        walk(&self.buses[bus].lists[window as usize].entries, window, |entry, offset| {
            let address = base.saturating_add(offset);
            let node = &self.nodes[entry.node];
            match (node.what, node.dev.and_then(|dev| self.devs[dev].behind)) {
                (What::Bar(number), _) => bars[number].address = Some(Addr(address)),
                (What::Window, Some(behind)) => self.place(behind, node.kind, address, bars),
                _ => {}
            }
        });
    }

    /// Fills the lists of a bus with everything on it that asks for anything.
    fn collect(&mut self, bus: usize) {
        let Bus { bridge, group, devs, .. } = &self.buses[bus];
        let (is_root, group, devs) = (bridge.is_none(), *group, devs.clone());
        let mut nodes: Vec<usize> = (group + TO_PADDING..group + GROUP).collect();
        let mut at = devs.start;
        while at < devs.end {
            let Dev { bars, behind, end, .. } = &self.devs[at];
            nodes.extend(bars.clone());
            if let Some(behind) = behind {
                let group = self.buses[*behind].group;
                nodes.extend(group..group + TO_PADDING);
            }
            at = *end;
        }
        nodes.retain(|node| self.nodes[*node].size.len != 0);
        let through = |kind: Kind| match kind {
            Kind::PMem64 => true,
            Kind::Mem64 => self.rules.mem64_through_pref64,
            _ => false,
        };
        let pref64 = nodes.iter().any(|node| through(self.nodes[*node].kind));
        let routes = routes(self.merges(is_root, pref64));
        let mut lists: PerKind<List> = Default::default();
        for node in nodes {
            let route = routes[self.nodes[node].kind as usize];
            lists[route.to as usize].entries.push(self.entry(node, self.key(node, bus, route)));
        }
        for list in &mut lists {
            list.entries.sort_unstable_by_key(Entry::place);
            list.stale = true;
        }
        let bus = &mut self.buses[bus];
        (bus.lists, bus.routes, bus.pref64) = (lists, routes, pref64);
    }

    /// Which list is merged into which, one after the other: BARs move to types that the bridge can pass.
    fn merges(&self, is_root: bool, pref64: bool) -> &'static [(Kind, Kind)] {
        use Kind::{Mem32, Mem64, PMem32, PMem64};
        match (is_root, self.rules.high, self.rules.mem64_through_pref64, pref64) {
            (true, true, ..) => &[(Mem32, PMem32), (Mem64, PMem64)],
            (true, false, ..) => &[(Mem32, Mem64), (PMem32, PMem64), (Mem32, PMem32)],
            (false, _, true, true) => &[(PMem64, Mem64), (Mem32, PMem32)],
            (false, _, true, false) => &[(PMem64, Mem64)],
            (false, _, false, true) => &[(Mem32, Mem64), (Mem32, PMem32)],
            (false, _, false, false) => &[(Mem32, Mem64)],
        }
    }

    fn entry(&self, node: usize, key: u64) -> Entry {
        let Node { what, kind, size, .. } = self.nodes[node];
        Entry { node, size, kind, padding: what == What::Padding, key }
    }

    /// Nodes of a bus are numbered in the order of insertion, but for a bridge's padding, which comes last.
    fn key(&self, node: usize, bus: usize, route: Route) -> u64 {
        let Bus { bridge, group, .. } = &self.buses[bus];
        let is_padding = (group + TO_PADDING..group + GROUP).contains(&node);
        let number = if is_padding && bridge.is_some() { self.nodes.len() } else { node } as u64;
        (route.rank << 32) + if route.reversed { u64::from(u32::MAX) - number } else { number }
    }

    /// Gives a node another size, in its bus's list as well; [`Tree::settle`] has to follow.
    fn resize(&mut self, node: usize, size: Size) {
        let before = std::mem::replace(&mut self.nodes[node].size, size);
        let Some(bus) = self.nodes[node].bus.filter(|_| before != size) else { return };
        let route = self.buses[bus].routes[self.nodes[node].kind as usize];
        let entry = self.entry(node, self.key(node, bus, route));
        let list = &mut self.buses[bus].lists[route.to as usize];
        list.stale = true;
        if before.len != 0 {
            let place = Entry { size: before, ..entry }.place();
            let at = if list.by_insertion {
                list.entries.iter().position(|other| other.node == node)
            } else {
                list.entries.binary_search_by_key(&place, Entry::place).ok()
            };
            if let Some(at) = at {
                list.entries.remove(at);
            }
        }
        if size.len != 0 {
            let at = list.entries.partition_point(|other| other.place() < entry.place());
            list.entries.insert(at, entry);
        }
    }

    /// Lays out anew what has changed on a bus, and on those above.
    fn settle(&mut self, mut bus: usize) {
        loop {
            let Bus { bridge, lists, pref64, .. } = &self.buses[bus];
            let bridge = *bridge;
            if bridge.is_some() && *pref64 && lists[Kind::PMem64 as usize].entries.is_empty() {
                self.collect(bus);
            }
            for (window, size) in self.lay_out(bus) {
                self.resize(window, size);
            }
            let Some(bridge) = bridge else { return };
            bus = self.devs[bridge].bus;
        }
    }

    /// Lays out those lists of a bus that have changed; gives the sizes of their windows.
    fn lay_out(&mut self, bus: usize) -> impl Iterator<Item = (usize, Size)> + use<> {
        let Bus { bridge, group, pref64, .. } = self.buses[bus];
        let merges = self.merges(bridge.is_none(), pref64);
        let lists = &mut self.buses[bus].lists;
        let sizes = Kind::ALL.map(|kind| {
            let list = &mut lists[kind as usize];
            std::mem::take(&mut list.stale).then(|| list.lay_out(kind, merges))
        });
        (group..).zip(sizes).filter_map(|(window, size)| Some((window, size?)))
    }
}

/// What the tests compare.
#[cfg(test)]
impl Tree<'_> {
    /// Of each list of each bus: nodes and sizes in their order.
    pub(super) fn lists(&self) -> Vec<Vec<(usize, u64, u64)>> {
        let entries = |list: &List| {
            list.entries.iter().map(|entry| (entry.node, entry.size.len, entry.size.mask)).collect()
        };
        self.buses.iter().flat_map(|bus| &bus.lists).map(entries).collect()
    }

    /// The same with all lists built anew.
    pub(super) fn anew(&self) -> Tree<'_> {
        let bus = |bus: &Bus| Bus {
            bridge: bus.bridge,
            devs: bus.devs.clone(),
            group: bus.group,
            lists: Default::default(),
            routes: routes(&[]),
            pref64: false,
            roms: BTreeMap::new(),
        };
        let mut tree = Tree {
            devs: self.devs.iter().map(|dev| Dev { bars: dev.bars.clone(), ..*dev }).collect(),
            bars: Vec::new(),
            buses: self.buses.iter().map(bus).collect(),
            roots: self.roots.clone(),
            rules: self.rules,
            nodes: self.nodes.clone(),
        };
        tree.build();
        tree
    }
}

impl Entry {
    /// By what a list is sorted.
    fn place(&self) -> (u64, u64) {
        (self.size.mask, self.key)
    }

    /// What is left of its length beyond a multiple of its alignment.
    fn rest(&self) -> u64 {
        self.size.len & self.size.mask
    }
}

impl List {
    /// Brings the entries into the driver's order, and says how large a window they need.
    fn lay_out(&mut self, window: Kind, merges: &[(Kind, Kind)]) -> Size {
        let ambiguous = self.entries.chunk_by(|a, b| a.size.mask == b.size.mask).any(|equals| {
            let mut rests = equals.iter().map(Entry::rest).filter(|rest| *rest != 0);
            rests.next().is_some_and(|first| rests.any(|rest| rest != first))
        });
        if ambiguous || self.by_insertion {
            self.entries = inserted(std::mem::take(&mut self.entries), window, merges);
            self.by_insertion = ambiguous;
        }
        let mut mask = if window == Kind::Io { BRIDGE_IO_MASK } else { BRIDGE_MEM_MASK };
        let mut largest = None;
        let (used, padded) = walk(&self.entries, window, |entry, _| largest = larger(largest, entry));
        let used = align_up(used, mask + 1).unwrap_or(u64::MAX);
        let padded = if window == Kind::Io { padded } else { align_up(padded, mask + 1).unwrap_or(u64::MAX) };
        if let Some(first) = self.entries.last() {
            mask = mask.max(first.size.mask);
        }
        Size { len: used.max(padded), mask, largest }
    }
}

/// Visits the entries front to back, each with its distance from the start of the window. Returns where the last one
/// ends, and where padding does.
fn walk(entries: &[Entry], window: Kind, mut visit: impl FnMut(&Entry, u64)) -> (u64, u64) {
    let (mut used, mut padded) = (0u64, 0u64);
    for entry in entries.iter().rev() {
        let Size { len, mask, .. } = entry.size;
        if entry.padding && window == Kind::Io {
            padded = len;
            visit(entry, 0);
            continue;
        }
        let end = if entry.padding { &mut padded } else { &mut used };
        let offset = align_up(*end, mask + 1).unwrap_or(u64::MAX);
        *end = offset.saturating_add(len);
        visit(entry, offset);
    }
    (used, padded)
}

/// The larger of two that may be given up; the later of equals.
fn larger(before: Option<(u64, usize)>, entry: &Entry) -> Option<(u64, usize)> {
    let now = entry.size.largest;
    match (before, now) {
        (Some((most, _)), Some((len, _))) if len < most => before,
        _ => now.or(before),
    }
}

/// The entries of one list in the order that the driver's own insertions give them.
fn inserted(mut entries: Vec<Entry>, list: Kind, merges: &[(Kind, Kind)]) -> Vec<Entry> {
    let routes = routes(merges);
    // Each type on its own first, in the order of the functions.
    entries.sort_unstable_by_key(|entry| {
        if routes[entry.kind as usize].reversed { u64::MAX - entry.key } else { entry.key }
    });
    let mut lists: PerKind<Vec<Entry>> = Default::default();
    for entry in entries {
        insert(&mut lists[entry.kind as usize], entry);
    }
    for (to, from) in merges {
        for entry in std::mem::take(&mut lists[*from as usize]).into_iter().rev() {
            insert(&mut lists[*to as usize], entry);
        }
    }
    std::mem::take(&mut lists[list as usize])
}

/// Inserts by falling alignment; lists are kept back to front. Among equals a node goes first when its length is a
/// multiple of its alignment, otherwise behind those that stick out farther.
fn insert(list: &mut Vec<Entry>, entry: Entry) {
    let (mask, rest) = (entry.size.mask, entry.rest());
    let farther = |other: &Entry| other.size.mask == mask && other.rest() > rest;
    let mut place = list.partition_point(|other| other.size.mask <= mask);
    while rest != 0 && place > 0 && farther(&list[place - 1]) {
        place -= 1;
    }
    list.insert(place, entry);
}

/// Where each type ends up when lists are merged like that. A merge takes the nodes of one list first to last, and
/// puts each before its equals.
fn routes(merges: &[(Kind, Kind)]) -> PerKind<Route> {
    let mut routes = Kind::ALL.map(|to| Route { to, rank: 0, reversed: false });
    for &(to, from) in merges {
        let last = |routes: &PerKind<Route>, of: Kind| {
            routes.iter().filter(|route| route.to == of).map(|route| route.rank).max()
        };
        let (behind, turned) = (last(&routes, to).unwrap_or(0), last(&routes, from).unwrap_or(0));
        for route in routes.iter_mut().filter(|route| route.to == from) {
            *route = Route { to, rank: behind + 1 + turned - route.rank, reversed: !route.reversed };
        }
    }
    routes
}

fn rom_sizes(function: &Function) -> impl Iterator<Item = u64> {
    function.bars.iter().filter(|bar| bar.index == ROM).map(|bar| bar.size.get())
}

/// Space for copying expansion ROMs: that of the largest.
fn rom_size(roms: &BTreeMap<u64, usize>) -> Size {
    let len = roms.last_key_value().map_or(0, |(size, _)| *size);
    Size { len, mask: len.saturating_sub(1), largest: None }
}

/// How much there will be.
struct Count {
    functions: usize,
    bars: usize,
    bridges: usize,
}

fn count(functions: &[Function]) -> Count {
    let own = functions.iter().map(|function| function.bars.len()).sum();
    let count = Count { functions: functions.len(), bars: own, bridges: 0 };
    functions.iter().filter_map(bridge).fold(count, |count, bridge| {
        let behind = self::count(&bridge.children);
        Count {
            functions: count.functions + behind.functions,
            bars: count.bars + behind.bars,
            bridges: count.bridges + 1 + behind.bridges,
        }
    })
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
