//! How edk2's PCI bus driver arranges BARs behind bridges: sorted by alignment, window inside window, padding
//! for hot-plug, and which device it gives up when something does not fit.
//!
//! Source: edk2 MdeModulePkg/Bus/Pci/PciBusDxe, PciResourceSupport.c (`CreateResourceMap`, `DegradeResource`,
//! `CalculateResourceAperture`, `InsertResourceNode`) and PciEnumerator.c (`PciHostBridgeAdjustAllocation`,
//! `GetMaxResourceConsumerDevice`, `RejectPciDevice`), unchanged in substance from 2020 to 2026 but for
//! `mem64_through_pref64`. SR-IOV and resizable BARs are not looked at: QEMU hides both from passed-through
//! devices.
//!
//! The driver builds its lists anew for each attempt. Here a [`Tree`] is read from a guest once; each of its boots
//! ([`Tree::boot`]: another window, other padding) changes in the lists what differs, and so does a device given up.
//! What changes on a bus is added up anew, and then on the buses above. Where the order follows from the keys alone
//! (see [`List`]) nothing else is looked at; where it does not, the list goes through the driver's own insertions again.

mod list;
mod merging;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::host_bridge::{Kind, PerKind, Request};
use super::{Bridge, BridgeKind, Function, PlacedBar, Role};
use crate::units::{Addr, Bar, BarKind, KIB};
use list::{Entry, Largest, List, Size, Sums, insert};
use merging::{
    MEM64_THROUGH_NONE, MEM64_THROUGH_PREF64, Merging, ROOT_WITH_HIGH, ROOT_WITHOUT_HIGH, Route, WITH_PREF64,
    WITHOUT_PREF64,
};

/// BARs of memory are aligned to a page at least.
const PAGE_MASK: u64 = 4 * KIB - 1;

/// Space kept free behind a hot-plug bridge, naturally aligned; 0: none.
pub(super) type Padding = PerKind<u64>;

/// What of the firmware's rules matters here.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct PackRules {
    /// There is a 64-bit window.
    pub(super) high: bool,
    /// See [`OvmfRules`](super::OvmfRules).
    pub(super) mem64_through_pref64: bool,
}

/// A function in the flat list of all functions; what is behind a bridge follows it.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
struct Bus<'a> {
    /// The function that leads to it, and what it says; `None`: a root bus.
    bridge: Option<(usize, &'a Bridge)>,
    /// Functions on it and behind.
    devs: Range<usize>,
    /// The first of its [`GROUP`] nodes; on a root bus there is, in the place of padding, one for expansion ROMs.
    group: usize,
    /// What lies in each of its windows.
    lists: PerKind<List>,
    /// Its lists hold what they should.
    filled: bool,
    /// How its lists are merged.
    merging: &'static Merging,
    /// Of a root bus: sizes of the expansion ROMs on it and behind, the largest last.
    roms: Vec<u64>,
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

impl PackRules {
    /// How the lists of a bus are merged. `pref64` says that something goes through its prefetchable 64-bit window.
    fn merging(self, is_root: bool, pref64: bool) -> &'static Merging {
        match (is_root, self.high, self.mem64_through_pref64, pref64) {
            (true, true, ..) => &ROOT_WITH_HIGH,
            (true, false, ..) => &ROOT_WITHOUT_HIGH,
            (false, _, true, true) => &MEM64_THROUGH_PREF64,
            (false, _, true, false) => &MEM64_THROUGH_NONE,
            (false, _, false, true) => &WITH_PREF64,
            (false, _, false, false) => &WITHOUT_PREF64,
        }
    }

    /// Whether what is of this type goes through a bridge's prefetchable 64-bit window.
    fn is_pref64(self, kind: Kind) -> bool {
        kind == Kind::PMem64 || (kind == Kind::Mem64 && self.mem64_through_pref64)
    }
}

/// All functions of a guest, and the resource trees of the current attempt.
#[derive(Clone, Debug)]
pub(super) struct Tree<'a> {
    devs: Vec<Dev<'a>>,
    /// All BARs but expansion ROMs, none placed.
    bars: Vec<PlacedBar>,
    buses: Vec<Bus<'a>>,
    /// Root buses: main bus first, then expander buses by number.
    roots: Vec<usize>,
    /// The rules by which the lists were filled; `None` before the first boot.
    rules: Option<PackRules>,
    nodes: Vec<Node>,
}

impl<'a> Tree<'a> {
    /// Reads the guest's functions. [`Tree::boot`] has to follow.
    pub(super) fn new(bus: &'a [Function]) -> Tree<'a> {
        let count = count(bus);
        let mut tree = Tree {
            devs: Vec::with_capacity(count.functions),
            bars: Vec::with_capacity(count.bars),
            buses: Vec::with_capacity(count.bridges + 1),
            roots: Vec::with_capacity(1),
            rules: None,
            nodes: Vec::with_capacity(count.bars + (count.bridges + 1) * GROUP),
        };
        tree.add_root(bus, true);
        let mut expanders: Vec<(u8, &Bridge)> =
            bus.iter().filter_map(|f| Some((expander(f)?, bridge(f)?))).collect();
        expanders.sort_by_key(|(bus_nr, _)| *bus_nr);
        for (_, expander) in expanders {
            // An empty expander bus is not found.
            if !expander.children.is_empty() {
                tree.add_root(&expander.children, false);
            }
        }
        tree
    }

    fn add_root(&mut self, functions: &'a [Function], on_bus_0: bool) {
        let bus = self.add_bus(None, None);
        self.roots.push(bus);
        self.flatten(functions, bus, on_bus_0);
        let rom = self.buses[bus].group + TO_PADDING;
        (self.nodes[rom].what, self.nodes[rom].kind) = (What::Rom, Kind::Mem32);
    }

    fn flatten(&mut self, functions: &'a [Function], bus: usize, on_bus_0: bool) {
        let start = self.devs.len();
        for function in functions {
            let at = self.devs.len();
            let first = self.nodes.len();
            let behind = bridge(function).filter(|_| expander(function).is_none());
            let may_go = behind.is_none() && !on_bus_0 && !function.vga;
            for bar in function.bars.iter().filter(|bar| !bar.is_rom()) {
                let (kind, len, mask) = demand(bar);
                let node = self.nodes.len();
                let largest = if may_go { Largest { len, node } } else { Largest::NONE };
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
                let below = self.add_bus(Some((at, bridge)), Some(bus));
                self.devs[at].behind = Some(below);
                self.flatten(&bridge.children, below, false);
                self.devs[at].end = self.devs.len();
            }
        }
        self.buses[bus].devs = start..self.devs.len();
    }

    /// Adds a bus with its nodes, and returns its number.
    fn add_bus(&mut self, bridge: Option<(usize, &'a Bridge)>, above: Option<usize>) -> usize {
        let (number, group) = (self.buses.len(), self.nodes.len());
        let dev = bridge.map(|(dev, _)| dev);
        for (what, bus) in [(What::Window, above), (What::Padding, Some(number))] {
            self.nodes.extend(Kind::ALL.iter().map(|&kind| Node {
                dev,
                bus,
                what,
                kind,
                size: Size::NOTHING,
            }));
        }
        self.buses.push(Bus {
            bridge,
            devs: 0..0,
            group,
            lists: Default::default(),
            filled: false,
            merging: &WITHOUT_PREF64,
            roms: Vec::new(),
        });
        number
    }

    /// Builds the resource trees of a boot: nothing has been given up, and `padding` says what a hot-plug bridge keeps
    /// free.
    pub(super) fn boot(&mut self, rules: PackRules, padding: impl Fn(&Bridge) -> Padding) {
        if self.rules.replace(rules) != Some(rules) {
            // Nodes in no list are resized at no cost.
            self.buses.iter_mut().for_each(|bus| bus.filled = false);
        }
        for at in 0..self.devs.len() {
            let dev = &mut self.devs[at];
            if std::mem::take(&mut dev.rejected) && dev.behind.is_none() {
                for node in dev.bars.clone() {
                    let Node { what, size, .. } = self.nodes[node];
                    if let What::Bar(number) = what {
                        let len = self.bars[number].bar.size.get();
                        self.resize(node, Size { len, ..size });
                    }
                }
            }
        }
        for at in 0..self.buses.len() {
            let bus = &mut self.buses[at];
            let spare = bus.group + TO_PADDING;
            match bus.bridge {
                Some((_, bridge)) if bridge.hotplug => {
                    for (node, len) in (spare..).zip(padding(bridge)) {
                        let largest = Largest { len, node };
                        self.resize(node, Size { len, mask: len.saturating_sub(1), largest });
                    }
                }
                Some(_) => {}
                None => {
                    let functions = self.devs[bus.devs.clone()].iter().map(|dev| dev.function);
                    bus.roms.clear();
                    bus.roms.extend(functions.flat_map(rom_sizes));
                    bus.roms.sort_unstable();
                    let size = rom_size(&bus.roms);
                    self.resize(spare, size);
                }
            }
        }
        // What is behind a bridge comes after it.
        for bus in (0..self.buses.len()).rev() {
            self.lay_out(bus, rules);
        }
    }

    /// Number of root buses.
    pub(super) fn roots(&self) -> usize {
        self.roots.len()
    }

    /// What a root bus asks for.
    pub(super) fn requests(&self, root: usize) -> PerKind<Option<Request>> {
        let group = self.buses[self.roots[root]].group;
        std::array::from_fn(|kind| {
            let Size { len, mask, .. } = self.nodes[group + kind].size;
            (len != 0).then_some(Request { len, mask })
        })
    }

    /// Gives up the largest consumer of each type that was not satisfied. `false` when nobody can be given up.
    pub(super) fn give_up(&mut self, unsatisfied: PerKind<bool>) -> bool {
        let Some(rules) = self.rules else { return false };
        // All are looked for before the first is given up.
        let mut largest = [None; 5];
        for kind in Kind::ALL.into_iter().filter(|kind| unsatisfied[*kind as usize]) {
            largest[kind as usize] = self.largest(kind).and_then(|node| self.nodes[node].dev);
        }
        let mut given_up = false;
        for at in largest.into_iter().flatten() {
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
                self.forget_rom(at, rules);
            }
            for node in nodes {
                self.resize(node, Size { len: 0, ..self.nodes[node].size });
            }
            self.settle(bus, rules);
        }
        given_up
    }

    /// The largest BAR or padding of a type that may be given up; the last of equals.
    fn largest(&self, kind: Kind) -> Option<usize> {
        let window = |root: &usize| self.buses[*root].group + kind as usize;
        let largest = match &self.roots[..] {
            [root] => self.nodes[window(root)].size.largest,
            roots => {
                let mut pool = Vec::with_capacity(roots.len());
                for root in roots {
                    insert(&mut pool, self.entry(window(root), 0));
                }
                pool.iter().fold(Largest::NONE, |before, entry| before.or(entry.size.largest))
            }
        };
        (largest.len != 0).then_some(largest.node)
    }

    /// Takes a device's expansion ROM out of what its root bus keeps room for.
    fn forget_rom(&mut self, at: usize, rules: PackRules) {
        if rom_sizes(self.devs[at].function).next().is_none() {
            return;
        }
        let mut root = self.devs[at].bus;
        while let Some((bridge, _)) = self.buses[root].bridge {
            root = self.devs[bridge].bus;
        }
        let roms = &mut self.buses[root].roms;
        for size in rom_sizes(self.devs[at].function) {
            if let Ok(place) = roms.binary_search(&size) {
                roms.remove(place);
            }
        }
        let size = rom_size(roms);
        self.resize(self.buses[root].group + TO_PADDING, size);
        self.settle(root, rules);
    }

    /// All BARs: depth first, what is on expander buses last. None has an address.
    pub(super) fn unplaced(&self) -> Vec<PlacedBar> {
        self.bars.clone()
    }

    /// All BARs with their addresses, given where each root bus's types begin.
    pub(super) fn placed(&self, bases: impl Fn(usize) -> PerKind<Option<u64>>) -> Vec<PlacedBar> {
        let mut bars = self.bars.clone();
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
        for (offset, entry) in self.buses[bus].lists[window as usize].offsets() {
            let address = base.saturating_add(offset);
            let node = &self.nodes[entry.node];
            match (node.what, node.dev.and_then(|dev| self.devs[dev].behind)) {
                (What::Bar(number), _) => bars[number].address = Some(Addr(address)),
                (What::Window, Some(behind)) => self.place(behind, node.kind, address, bars),
                _ => {}
            }
        }
    }

    /// Nodes on a bus: its padding, and the BARs and windows of the functions on it.
    fn on_bus(&self, bus: usize) -> impl Iterator<Item = usize> {
        let Bus { group, devs, .. } = &self.buses[bus];
        let mut at = devs.start;
        let devs = std::iter::from_fn(move || {
            let dev = (at < devs.end).then(|| &self.devs[at])?;
            at = dev.end;
            let windows = dev.behind.map_or(0..0, |behind| {
                let group = self.buses[behind].group;
                group..group + TO_PADDING
            });
            Some(dev.bars.clone().chain(windows))
        });
        (group + TO_PADDING..group + GROUP).chain(devs.flatten())
    }

    /// Fills the lists of a bus with everything on it that asks for anything.
    fn fill(&mut self, bus: usize, rules: PackRules) {
        let is_root = self.buses[bus].bridge.is_none();
        let asks = |node: &usize| self.nodes[*node].size.len != 0;
        let is_pref64 = |node: usize| rules.is_pref64(self.nodes[node].kind);
        let pref64 = !is_root && self.on_bus(bus).filter(asks).any(is_pref64);
        let merging = rules.merging(is_root, pref64);
        let mut lists = std::mem::take(&mut self.buses[bus].lists);
        lists.iter_mut().for_each(List::clear);
        self.on_bus(bus).filter(asks).for_each(|node| {
            let route = merging.routes[self.nodes[node].kind as usize];
            lists[route.to as usize].push(self.entry(node, self.turn(node, bus, route)));
        });
        lists.iter_mut().for_each(List::sort);
        let bus = &mut self.buses[bus];
        (bus.lists, bus.merging, bus.filled) = (lists, merging, true);
    }

    fn entry(&self, node: usize, turn: u64) -> Entry {
        let Node { what, kind, size, .. } = self.nodes[node];
        Entry { node, size, kind, padding: what == What::Padding, turn, sums: Sums::NOTHING }
    }

    /// Nodes of a bus are numbered in the order of insertion, but for a bridge's padding, which comes last.
    fn turn(&self, node: usize, bus: usize, route: Route) -> u64 {
        let Bus { bridge, group, .. } = &self.buses[bus];
        let is_padding = (group + TO_PADDING..group + GROUP).contains(&node);
        let number = if is_padding && bridge.is_some() { self.nodes.len() } else { node } as u64;
        (route.rank << 32) + if route.reversed { u64::from(u32::MAX) - number } else { number }
    }

    /// Gives a node another size, in its bus's list as well; [`Tree::lay_out`] has to follow.
    fn resize(&mut self, node: usize, size: Size) {
        let before = std::mem::replace(&mut self.nodes[node].size, size);
        let Some(bus) = self.nodes[node].bus.filter(|bus| before != size && self.buses[*bus].filled) else {
            return;
        };
        let route = self.buses[bus].merging.routes[self.nodes[node].kind as usize];
        let entry = self.entry(node, self.turn(node, bus, route));
        self.buses[bus].lists[route.to as usize].replace(before, entry);
    }

    /// Lays out anew what has changed on a bus, and on those above.
    fn settle(&mut self, mut bus: usize, rules: PackRules) {
        loop {
            self.lay_out(bus, rules);
            let Some((bridge, _)) = self.buses[bus].bridge else { return };
            bus = self.devs[bridge].bus;
        }
    }

    /// Lays out those lists of a bus that have changed, and gives its windows their sizes.
    fn lay_out(&mut self, bus: usize, rules: PackRules) {
        let Bus { lists, merging, filled, bridge, .. } = &self.buses[bus];
        // The first may have come, or the last have gone, that makes it merge in another way.
        let pref64 = bridge.is_some() && !lists[Kind::PMem64 as usize].is_empty();
        if !filled || pref64 != merging.pref64 {
            self.fill(bus, rules);
        }
        for kind in Kind::ALL {
            let Bus { group, merging, lists, .. } = &mut self.buses[bus];
            let list = &mut lists[kind as usize];
            if list.take_stale() {
                let (window, size) = (*group + kind as usize, list.lay_out(kind, merging));
                self.resize(window, size);
            }
        }
    }
}

/// What the tests compare.
#[cfg(test)]
impl Tree<'_> {
    /// Of each list of each bus, what it holds in its order.
    fn lists(&self) -> Vec<Vec<list::Shown>> {
        self.buses.iter().flat_map(|bus| &bus.lists).map(List::shown).collect()
    }

    /// The same with all lists filled anew.
    fn anew(&self) -> Vec<Vec<list::Shown>> {
        let mut tree = self.clone();
        for bus in (0..tree.buses.len()).rev() {
            tree.buses[bus].filled = false;
            tree.lay_out(bus, self.rules.expect("a boot"));
        }
        tree.lists()
    }

    /// The same with each list in the order that the driver's own insertions give it.
    fn inserted(&self) -> Vec<Vec<list::Shown>> {
        let mut tree = self.clone();
        for Bus { lists, merging, .. } in &mut tree.buses {
            for (kind, list) in Kind::ALL.into_iter().zip(lists) {
                list.insert_as_the_driver(kind, merging);
            }
        }
        tree.lists()
    }
}

fn rom_sizes(function: &Function) -> impl Iterator<Item = u64> {
    function.bars.iter().filter(|bar| bar.is_rom()).map(|bar| bar.size.get())
}

/// Space for copying expansion ROMs: that of the largest.
fn rom_size(roms: &[u64]) -> Size {
    let len = roms.last().copied().unwrap_or(0);
    Size { len, mask: len.saturating_sub(1), largest: Largest::NONE }
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
