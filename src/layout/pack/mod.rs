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
mod node;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::host_bridge::{Kind, PerKind, Request};
use super::{Bridge, BridgeKind, Function, PlacedBar, Role};
use crate::units::{Addr, Bar, BarKind, KIB};
use list::{Entries, List, insert};
use merging::{
    MEM64_THROUGH_NONE, MEM64_THROUGH_PREF64, Merging, ROOT_WITH_HIGH, ROOT_WITHOUT_HIGH, Route, WITH_PREF64,
    WITHOUT_PREF64,
};
use node::{Largest, NOBODY, Node, NodeId, Nodes, Size, What, granularity};

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
    /// What of it is on that bus: its BARs, and the windows of a bridge.
    nodes: Range<NodeId>,
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
    group: NodeId,
    /// Nodes that may ask for something on it.
    most: usize,
    /// What lies in each of its windows.
    lists: PerKind<List>,
    /// Those of its lists that have changed since they were laid out, one bit each.
    stale: u8,
    /// Its lists hold what they should.
    filled: bool,
    /// How its lists are merged.
    merging: &'static Merging,
    /// Of a root bus: sizes of the expansion ROMs on it and behind, the largest last.
    roms: Vec<u64>,
}

/// Nodes of a bus: a window of each type, then padding of each type.
const GROUP: NodeId = 10;
/// Distance from a window to its padding.
const TO_PADDING: NodeId = 5;

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
    nodes: Nodes,
    /// What the lists of all buses hold.
    entries: Entries,
    /// Room for what [`Tree::fill`] looks at.
    asking: Vec<NodeId>,
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
            nodes: Nodes::with_capacity(count.bars + (count.bridges + 1) * GROUP as usize),
            entries: Entries::new(),
            asking: Vec::with_capacity(count.bars + count.bridges * TO_PADDING as usize),
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
        tree.make_room();
        tree
    }

    /// Makes room in each list for all nodes of its bus.
    fn make_room(&mut self) {
        let mut start = 0;
        for bus in &mut self.buses {
            for list in &mut bus.lists {
                *list = List::new(start);
                start += bus.most;
            }
        }
        self.entries = vec![0; start];
    }

    fn add_root(&mut self, functions: &'a [Function], on_bus_0: bool) {
        let bus = self.add_bus(None, None);
        self.roots.push(bus);
        self.flatten(functions, bus, on_bus_0);
        let rom = &mut self.nodes[self.buses[bus].group + TO_PADDING];
        (rom.what, rom.kind) = (What::Rom, Kind::Mem32);
        self.find_roms(bus);
    }

    fn flatten(&mut self, functions: &'a [Function], bus: usize, on_bus_0: bool) {
        let start = self.devs.len();
        let mut most = TO_PADDING;
        for function in functions {
            let at = self.devs.len();
            let first = self.nodes.next();
            let behind = bridge(function).filter(|_| expander(function).is_none());
            let may_go = behind.is_none() && !on_bus_0 && !function.vga;
            for bar in function.bars.iter().filter(|bar| !bar.is_rom()) {
                let (kind, len, mask) = demand(bar);
                let largest = if may_go { Largest { len, node: self.nodes.next() } } else { Largest::NONE };
                let (size, what) = (Size { len, mask, largest }, What::Bar(self.bars.len() as u32));
                self.nodes.push(Node { size, turn: 0, dev: at as u32, bus: bus as u32, what, kind });
                self.bars.push(PlacedBar {
                    function: function.id,
                    bar: *bar,
                    address: None,
                    reachable: false,
                    rescued: false,
                });
            }
            let nodes = first..self.nodes.next();
            self.devs.push(Dev { function, bus, end: at + 1, nodes, behind: None, rejected: false });
            if let Some(bridge) = behind {
                let below = self.add_bus(Some((at, bridge)), Some(bus));
                let dev = &mut self.devs[at];
                dev.behind = Some(below);
                // Its windows follow its BARs.
                dev.nodes.end += TO_PADDING;
                self.flatten(&bridge.children, below, false);
                self.devs[at].end = self.devs.len();
            }
            let nodes = &self.devs[at].nodes;
            most += nodes.end - nodes.start;
        }
        self.buses[bus].devs = start..self.devs.len();
        self.buses[bus].most = most as usize;
    }

    /// Adds a bus with its nodes, and returns its number.
    fn add_bus(&mut self, bridge: Option<(usize, &'a Bridge)>, above: Option<usize>) -> usize {
        let (number, group) = (self.buses.len(), self.nodes.next());
        let dev = bridge.map_or(NOBODY, |(dev, _)| dev as u32);
        let above = above.map_or(NOBODY, |bus| bus as u32);
        for (what, bus) in [(What::Window, above), (What::Padding, number as u32)] {
            self.nodes.extend(Kind::ALL.into_iter().map(|kind| {
                let size = Size::nothing(if what == What::Window { granularity(kind) } else { 0 });
                Node { size, turn: 0, dev, bus, what, kind }
            }));
        }
        self.buses.push(Bus {
            bridge,
            devs: 0..0,
            group,
            most: 0,
            lists: Default::default(),
            stale: 0,
            filled: false,
            merging: &WITHOUT_PREF64,
            roms: Vec::new(),
        });
        number
    }

    /// Keeps the sizes of all expansion ROMs on a root bus and behind.
    fn find_roms(&mut self, root: usize) {
        let bus = &mut self.buses[root];
        bus.roms.clear();
        bus.roms.extend(self.devs[bus.devs.clone()].iter().flat_map(|dev| rom_sizes(dev.function)));
        bus.roms.sort_unstable();
    }

    /// Builds the resource trees of a boot: nothing has been given up, and `padding` says what a hot-plug bridge keeps
    /// free.
    pub(super) fn boot(&mut self, rules: PackRules, padding: impl Fn(&Bridge) -> Padding) {
        if self.rules.replace(rules) != Some(rules) {
            // Nodes in no list are resized at no cost.
            self.buses.iter_mut().for_each(|bus| bus.filled = false);
        }
        let mut restored = false;
        for at in 0..self.devs.len() {
            let dev = &mut self.devs[at];
            if std::mem::take(&mut dev.rejected) && dev.behind.is_none() {
                restored = true;
                for node in dev.nodes.clone() {
                    let Node { what, size, .. } = self.nodes[node];
                    if let What::Bar(number) = what {
                        let len = self.bars[number as usize].bar.size.get();
                        self.resize(node, Size { len, ..size });
                    }
                }
            }
        }
        // What is behind a bridge comes after it.
        for at in (0..self.buses.len()).rev() {
            let spare = self.buses[at].group + TO_PADDING;
            match self.buses[at].bridge {
                Some((_, bridge)) if bridge.hotplug => {
                    for (node, len) in (spare..).zip(padding(bridge)) {
                        let largest = Largest { len, node };
                        self.resize(node, Size { len, mask: len.saturating_sub(1), largest });
                    }
                }
                Some(_) => {}
                None => {
                    if restored {
                        self.find_roms(at);
                    }
                    self.resize(spare, rom_size(&self.buses[at].roms));
                }
            }
            self.lay_out(at, rules);
        }
    }

    /// Number of root buses.
    pub(super) fn roots(&self) -> usize {
        self.roots.len()
    }

    /// What a root bus asks for.
    pub(super) fn requests(&self, root: usize) -> PerKind<Option<Request>> {
        let group = self.buses[self.roots[root]].group;
        let mut requests = [None; 5];
        for (request, window) in requests.iter_mut().zip(group..) {
            let Size { len, mask, .. } = self.nodes[window].size;
            *request = (len != 0).then_some(Request { len, mask });
        }
        requests
    }

    /// Gives up the largest consumer of each type that was not satisfied. `false` when nobody can be given up.
    pub(super) fn give_up(&mut self, unsatisfied: PerKind<bool>) -> bool {
        let Some(rules) = self.rules else { return false };
        // All are looked for before the first is given up.
        let mut largest = [NOBODY; 5];
        for kind in Kind::ALL.into_iter().filter(|kind| unsatisfied[*kind as usize]) {
            largest[kind as usize] = self.largest(kind).map_or(NOBODY, |node| self.nodes[node].dev);
        }
        let mut given_up = false;
        for at in largest.into_iter().filter(|at| *at != NOBODY) {
            let at = at as usize;
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
                None => (dev.bus, dev.nodes.clone()),
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
    fn largest(&self, kind: Kind) -> Option<NodeId> {
        let window = |root: &usize| self.buses[*root].group + kind as NodeId;
        let largest = match &self.roots[..] {
            [root] => self.nodes[window(root)].size.largest,
            roots => {
                let mut pool = Entries::with_capacity(roots.len());
                for root in roots {
                    insert(&mut pool, &self.nodes, window(root));
                }
                pool.iter().fold(Largest::NONE, |before, root| before.or(self.nodes[*root].size.largest))
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
    pub(super) fn placed<I: Iterator<Item = Option<u64>>>(
        &self,
        bases: impl Fn(usize) -> I,
    ) -> Vec<PlacedBar> {
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
        self.buses[bus].lists[window as usize].place_all(&self.entries, &self.nodes, |offset, node| {
            let address = base.saturating_add(offset);
            match node.what {
                What::Bar(number) => bars[number as usize].address = Some(Addr(address)),
                What::Window => {
                    if let Some(behind) = self.devs[node.dev as usize].behind {
                        self.place(behind, node.kind, address, bars);
                    }
                }
                What::Padding | What::Rom => {}
            }
        });
    }

    /// Fills the lists of a bus with everything on it that asks for anything: its padding, and the BARs and windows of the
    /// functions on it.
    fn fill(&mut self, bus: usize, rules: PackRules) {
        let Tree { devs, buses, nodes, entries, asking, .. } = self;
        let bus = &mut buses[bus];
        asking.clear();
        let mut ask = |own: Range<NodeId>| {
            own.filter(|node| nodes[*node].size.len != 0).for_each(|node| asking.push(node));
        };
        ask(bus.group + TO_PADDING..bus.group + GROUP);
        let mut at = bus.devs.start;
        while at < bus.devs.end {
            ask(devs[at].nodes.clone());
            at = devs[at].end;
        }
        let is_root = bus.bridge.is_none();
        let pref64 = !is_root && asking.iter().any(|node| rules.is_pref64(nodes[*node].kind));
        bus.merging = rules.merging(is_root, pref64);
        for (kind, list) in Kind::ALL.into_iter().zip(&mut bus.lists) {
            if !list.is_empty() {
                bus.stale |= bit(kind);
                list.clear();
            }
        }
        let mut in_use = 0;
        for &node in asking.iter() {
            let route = bus.merging.routes[nodes[node].kind as usize];
            nodes[node].turn = bus.turn(node, route);
            bus.lists[route.to as usize].push(entries, node);
            in_use |= bit(route.to);
        }
        in_bits(in_use).for_each(|kind| bus.lists[kind as usize].sort(entries, nodes));
        bus.stale |= in_use;
        bus.filled = true;
    }

    /// Gives a node another size, in its bus's list as well; [`Tree::lay_out`] has to follow.
    fn resize(&mut self, id: NodeId, size: Size) {
        let node = &mut self.nodes[id];
        if node.size == size {
            return;
        }
        let Some(bus) = self.buses.get_mut(node.bus as usize).filter(|bus| bus.filled) else {
            node.size = size;
            return;
        };
        let route = bus.merging.routes[node.kind as usize];
        node.turn = bus.turn(id, route);
        bus.stale |= bit(route.to);
        bus.lists[route.to as usize].resize(&mut self.entries, &mut self.nodes, id, size);
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
    fn lay_out(&mut self, at: usize, rules: PackRules) {
        let bus = &self.buses[at];
        // The first may have come, or the last have gone, that makes it merge in another way.
        let pref64 = bus.bridge.is_some() && !bus.lists[Kind::PMem64 as usize].is_empty();
        if !bus.filled || pref64 != bus.merging.pref64 {
            self.fill(at, rules);
        }
        let stale = std::mem::take(&mut self.buses[at].stale);
        for kind in in_bits(stale) {
            let bus = &mut self.buses[at];
            let size = bus.lists[kind as usize].lay_out(&mut self.entries, &self.nodes, kind, bus.merging);
            let window = bus.group + kind as NodeId;
            self.resize(window, size);
        }
    }
}

impl Bus<'_> {
    /// Nodes of a bus are numbered in the order of insertion, but for a bridge's padding, which comes last.
    fn turn(&self, node: NodeId, route: Route) -> u64 {
        let is_padding =
            self.bridge.is_some() && (self.group + TO_PADDING..self.group + GROUP).contains(&node);
        let number = if is_padding { NodeId::MAX } else { node };
        (route.rank << 32) + u64::from(if route.reversed { NodeId::MAX - number } else { number })
    }
}

/// A type as one bit.
fn bit(kind: Kind) -> u8 {
    1 << kind as u8
}

/// The types of such bits.
fn in_bits(bits: u8) -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(move |kind| bits & bit(*kind) != 0)
}

/// What the tests compare.
#[cfg(test)]
impl Tree<'_> {
    /// Of each list of each bus, what it holds in its order.
    fn lists(&self) -> Vec<list::Shown> {
        let lists = self.buses.iter().flat_map(|bus| &bus.lists);
        lists.map(|list| list.shown(&self.entries, &self.nodes)).collect()
    }

    /// The same with all lists filled anew.
    fn anew(&self) -> Vec<list::Shown> {
        let mut tree = self.clone();
        for bus in (0..tree.buses.len()).rev() {
            tree.buses[bus].filled = false;
            tree.lay_out(bus, self.rules.expect("a boot"));
        }
        tree.lists()
    }

    /// The same with each list in the order that the driver's own insertions give it.
    fn inserted(&self) -> Vec<list::Shown> {
        let mut tree = self.clone();
        for Bus { lists, merging, .. } in &mut tree.buses {
            for (kind, list) in Kind::ALL.into_iter().zip(lists) {
                list.insert_as_the_driver(&mut tree.entries, &tree.nodes, kind, merging);
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
    Size { len, ..Size::nothing(len.saturating_sub(1)) }
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
