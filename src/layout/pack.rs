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
//! What changes on a bus is added up anew, and then on the buses above. Where the order follows from the keys alone (see
//! [`Order`]) nothing else is looked at; where it does not, the list goes through the driver's own insertions again.

use std::cmp::Reverse;
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

/// How much a node asks for. With a length of 0 it stands in no list.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Size {
    len: u64,
    /// Alignment minus one.
    mask: u64,
    /// The largest BAR or padding in it that may be given up.
    largest: Largest,
}

/// A node that may be given up, and its length; of length 0: there is none.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Largest {
    len: u64,
    node: usize,
}

impl Largest {
    const NONE: Largest = Largest { len: 0, node: 0 };

    /// The larger of this one and a later one; the later of equals.
    fn or(self, later: Largest) -> Largest {
        if later.len != 0 && later.len >= self.len { later } else { self }
    }
}

/// A node in a list, with all that the order depends on.
#[derive(Copy, Clone, Debug)]
struct Entry {
    node: usize,
    size: Size,
    kind: Kind,
    padding: bool,
    /// When it is inserted among entries of the same alignment.
    turn: u64,
    /// What the entries of its alignment come to, from the first to this one.
    sums: Sums,
}

impl Entry {
    /// What is left of its length beyond a multiple of its alignment.
    fn rest(&self) -> u64 {
        self.size.len & self.size.mask
    }
}

/// What the order of a list follows from.
///
/// The driver inserts by falling alignment. Among equals a node goes first, but behind those that stick out farther:
/// whose length has a larger rest beyond a multiple of the alignment. A node without a rest always goes first.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Order {
    /// Among equals the last inserted is first: no two of them have different rests.
    #[default]
    LastFirst,
    /// Among equals the one with the largest rest is first, then the last inserted: all have one, or none.
    RestFirst,
    /// Neither holds, and the order is only to be had by inserting one after the other.
    Inserted,
}

/// What lies in a window, front to back.
#[derive(Clone, Debug, Default)]
struct List {
    entries: Vec<Entry>,
    order: Order,
    /// Has changed since it was last laid out.
    stale: bool,
}

/// What entries of the same alignment come to. Where the first begins is aligned like all of them, so that these sums
/// do not depend on it.
#[derive(Copy, Clone, Debug)]
struct Sums {
    /// From the first to the end of the last.
    used: u64,
    /// The same of the padding among them.
    padded: u64,
    largest: Largest,
    /// One has no rest.
    whole: bool,
    /// The rest of the first that has one.
    rest: u64,
    /// The entries can be ordered like that.
    last_first: bool,
    rest_first: bool,
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

/// Which list of a bus is merged into which: BARs move to types that the bridge can pass.
#[derive(Debug)]
struct Merging {
    /// One after the other: the list that takes, and the one that is taken.
    merges: &'static [(Kind, Kind)],
    routes: PerKind<Route>,
    /// Something goes through the bridge's prefetchable 64-bit window.
    pref64: bool,
}

static ROOT_WITH_HIGH: Merging =
    Merging::new(&[(Kind::Mem32, Kind::PMem32), (Kind::Mem64, Kind::PMem64)], false);
static ROOT_WITHOUT_HIGH: Merging = Merging::new(
    &[(Kind::Mem32, Kind::Mem64), (Kind::PMem32, Kind::PMem64), (Kind::Mem32, Kind::PMem32)],
    false,
);
static MEM64_THROUGH_PREF64: Merging =
    Merging::new(&[(Kind::PMem64, Kind::Mem64), (Kind::Mem32, Kind::PMem32)], true);
static MEM64_THROUGH_NONE: Merging = Merging::new(&[(Kind::PMem64, Kind::Mem64)], false);
static WITH_PREF64: Merging = Merging::new(&[(Kind::Mem32, Kind::Mem64), (Kind::Mem32, Kind::PMem32)], true);
static WITHOUT_PREF64: Merging = Merging::new(&[(Kind::Mem32, Kind::Mem64)], false);

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
    filled: Option<PackRules>,
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
            filled: None,
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
            for bar in function.bars.iter().filter(|bar| bar.index != ROM) {
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
        let size = Size { len: 0, mask: 0, largest: Largest::NONE };
        let windows = Kind::ALL.map(|kind| Node { dev, bus: above, what: What::Window, kind, size });
        let padding = Kind::ALL.map(|kind| Node { dev, bus: Some(number), what: What::Padding, kind, size });
        self.nodes.extend(windows);
        self.nodes.extend(padding);
        self.buses.push(Bus {
            bridge,
            devs: 0..0,
            group,
            lists: Default::default(),
            merging: &WITHOUT_PREF64,
            roms: Vec::new(),
        });
        number
    }

    /// Builds the resource trees of a boot: nothing has been given up, and `padding` says what a hot-plug bridge keeps
    /// free.
    pub(super) fn boot(&mut self, rules: PackRules, padding: impl Fn(&Bridge) -> Padding) {
        let anew = self.filled.replace(rules) != Some(rules);
        let resize = |tree: &mut Self, node: usize, size: Size| {
            if anew {
                tree.nodes[node].size = size;
            } else {
                tree.resize(node, size);
            }
        };
        for at in 0..self.devs.len() {
            let dev = &mut self.devs[at];
            if std::mem::take(&mut dev.rejected) && dev.behind.is_none() {
                for node in dev.bars.clone() {
                    let Node { what, size, .. } = self.nodes[node];
                    if let What::Bar(number) = what {
                        let len = self.bars[number].bar.size.get();
                        resize(self, node, Size { len, ..size });
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
                        resize(self, node, Size { len, mask: len.saturating_sub(1), largest });
                    }
                }
                Some(_) => {}
                None => {
                    let functions = self.devs[bus.devs.clone()].iter().map(|dev| dev.function);
                    bus.roms.clear();
                    bus.roms.extend(functions.flat_map(rom_sizes));
                    bus.roms.sort_unstable();
                    let size = rom_size(&bus.roms);
                    resize(self, spare, size);
                }
            }
        }
        if anew {
            self.fill(rules);
        } else {
            self.refill(rules);
        }
    }

    /// Fills and lays out all lists.
    fn fill(&mut self, rules: PackRules) {
        // What is behind a bridge comes after it.
        for bus in (0..self.buses.len()).rev() {
            self.collect(bus, self.merging(bus, rules));
            for (window, size) in self.lay_out(bus) {
                self.nodes[window].size = size;
            }
        }
    }

    /// Lays out the lists that have changed.
    fn refill(&mut self, rules: PackRules) {
        for bus in (0..self.buses.len()).rev() {
            self.merge(bus, rules);
            for (window, size) in self.lay_out(bus) {
                self.resize(window, size);
            }
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
        // All are looked for before the first is given up.
        let largest = Kind::ALL.map(|kind| {
            let node = unsatisfied[kind as usize].then(|| self.largest(kind)).flatten()?;
            self.nodes[node].dev
        });
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
    fn forget_rom(&mut self, at: usize) {
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
        self.settle(root);
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
        let mut end = 0;
        for equals in self.buses[bus].lists[window as usize].equals() {
            let Size { mask, .. } = equals[0].size;
            let first = align_up(end, mask + 1).unwrap_or(u64::MAX);
            for entry in equals.iter().filter(|entry| !entry.padding) {
                end = first.saturating_add(entry.sums.used);
                let address = base.saturating_add(end - entry.size.len);
                let node = &self.nodes[entry.node];
                match (node.what, node.dev.and_then(|dev| self.devs[dev].behind)) {
                    (What::Bar(number), _) => bars[number].address = Some(Addr(address)),
                    (What::Window, Some(behind)) => self.place(behind, node.kind, address, bars),
                    _ => {}
                }
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

    /// Nodes on a bus that ask for anything.
    fn asking(&self, bus: usize) -> impl Iterator<Item = usize> {
        self.on_bus(bus).filter(|node| self.nodes[*node].size.len != 0)
    }

    /// How the lists of a bus are to be merged.
    fn merging(&self, bus: usize, rules: PackRules) -> &'static Merging {
        let is_root = self.buses[bus].bridge.is_none();
        let pref64 = !is_root && self.asking(bus).any(|node| rules.is_pref64(self.nodes[node].kind));
        rules.merging(is_root, pref64)
    }

    /// Fills the lists of a bus with everything on it that asks for anything.
    fn collect(&mut self, bus: usize, merging: &'static Merging) {
        let mut lists = std::mem::take(&mut self.buses[bus].lists);
        for list in &mut lists {
            list.entries.clear();
            (list.order, list.stale) = (Order::LastFirst, true);
        }
        for node in self.asking(bus) {
            let route = merging.routes[self.nodes[node].kind as usize];
            lists[route.to as usize].entries.push(self.entry(node, self.turn(node, bus, route)));
        }
        for (kind, list) in Kind::ALL.into_iter().zip(&mut lists) {
            list.sort();
            list.add_up(0..list.entries.len(), kind);
        }
        let bus = &mut self.buses[bus];
        (bus.lists, bus.merging) = (lists, merging);
    }

    /// Fills the lists of a bus anew where they are to be merged in another way now.
    fn merge(&mut self, bus: usize, rules: PackRules) {
        let merging = self.merging(bus, rules);
        if merging.pref64 != self.buses[bus].merging.pref64 {
            self.collect(bus, merging);
        }
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

    /// Gives a node another size, in its bus's list as well; [`Tree::settle`] has to follow.
    fn resize(&mut self, node: usize, size: Size) {
        let before = std::mem::replace(&mut self.nodes[node].size, size);
        let Some(bus) = self.nodes[node].bus.filter(|_| before != size) else { return };
        let route = self.buses[bus].merging.routes[self.nodes[node].kind as usize];
        let entry = self.entry(node, self.turn(node, bus, route));
        self.buses[bus].lists[route.to as usize].replace(before, entry, route.to);
    }

    /// Lays out anew what has changed on a bus, and on those above.
    fn settle(&mut self, mut bus: usize) {
        loop {
            let Bus { bridge, lists, merging, .. } = &self.buses[bus];
            let bridge = *bridge;
            // The last that went through it may have been given up.
            if let (true, Some(rules)) =
                (merging.pref64 && lists[Kind::PMem64 as usize].entries.is_empty(), self.filled)
            {
                self.merge(bus, rules);
            }
            for (window, size) in self.lay_out(bus) {
                self.resize(window, size);
            }
            let Some((bridge, _)) = bridge else { return };
            bus = self.devs[bridge].bus;
        }
    }

    /// Lays out those lists of a bus that have changed; gives the sizes of their windows.
    fn lay_out(&mut self, bus: usize) -> impl Iterator<Item = (usize, Size)> + use<> {
        let Bus { group, merging, lists, .. } = &mut self.buses[bus];
        let sizes = Kind::ALL.map(|kind| {
            let list = &mut lists[kind as usize];
            std::mem::take(&mut list.stale).then(|| list.lay_out(kind, merging))
        });
        (*group..).zip(sizes).filter_map(|(window, size)| Some((window, size?)))
    }
}

/// A node in a list, its size, and where used space and padding end, as the tests compare them.
#[cfg(test)]
pub(super) type Shown = (usize, u64, u64, u64, u64);

/// What the tests compare.
#[cfg(test)]
impl Tree<'_> {
    /// Of each list of each bus, what it holds in its order.
    pub(super) fn lists(&self) -> Vec<Vec<Shown>> {
        let shown = |entry: &Entry| {
            let Entry { node, size, sums, .. } = *entry;
            (node, size.len, size.mask, sums.used, sums.padded)
        };
        let lists = self.buses.iter().flat_map(|bus| &bus.lists);
        lists.map(|list| list.entries.iter().map(shown).collect()).collect()
    }

    /// The same with all lists filled anew.
    pub(super) fn anew(&self) -> Vec<Vec<Shown>> {
        let mut tree = self.clone();
        tree.fill(self.filled.expect("a boot"));
        tree.lists()
    }

    /// The same with each list in the order that the driver's own insertions give it.
    pub(super) fn inserted(&self) -> Vec<Vec<Shown>> {
        let mut tree = self.clone();
        for Bus { lists, merging, .. } in &mut tree.buses {
            for (kind, list) in Kind::ALL.into_iter().zip(lists) {
                list.entries = inserted(std::mem::take(&mut list.entries), kind, merging);
                list.add_up(0..list.entries.len(), kind);
            }
        }
        tree.lists()
    }
}

impl List {
    /// By what the list is sorted, as far as that follows from the keys.
    fn place(&self, size: Size, turn: u64) -> impl Ord + use<> {
        let rest = if self.order == Order::RestFirst { size.len & size.mask } else { 0 };
        (Reverse(size.mask), Reverse(rest), Reverse(turn))
    }

    fn sort(&mut self) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_unstable_by_key(|entry| self.place(entry.size, entry.turn));
        self.entries = entries;
    }

    /// Puts an entry in the place of the one that its node had with another size.
    fn replace(&mut self, before: Size, entry: Entry, window: Kind) {
        self.stale = true;
        let (old, new) = (self.place(before, entry.turn), self.place(entry.size, entry.turn));
        let was = match self.order {
            _ if before.len == 0 => None,
            Order::Inserted => self.entries.iter().position(|other| other.node == entry.node),
            _ => self.entries.binary_search_by(|other| self.place(other.size, other.turn).cmp(&old)).ok(),
        };
        if entry.size.len == 0 {
            if let Some(was) = was {
                self.entries.remove(was);
                self.add_up_equals(was, before.mask, window);
            }
            return;
        }
        let now = self.entries.partition_point(|other| self.place(other.size, other.turn) < new);
        let Some(was) = was else {
            self.entries.insert(now, entry);
            return self.add_up_equals(now, entry.size.mask, window);
        };
        // Only what lies between the two places moves.
        let now = if now > was {
            self.entries[was..now].rotate_left(1);
            now - 1
        } else {
            self.entries[now..=was].rotate_right(1);
            now
        };
        self.entries[now] = entry;
        self.add_up_equals(now, entry.size.mask, window);
        if now != was || before.mask != entry.size.mask {
            let gap = if was < now { was } else { was + 1 };
            self.add_up_equals(gap, before.mask, window);
        }
    }

    /// Adds up the entries from `first` on that have this alignment.
    fn add_up_equals(&mut self, first: usize, mask: u64, window: Kind) {
        let count = self.entries[first..].iter().take_while(|entry| entry.size.mask == mask).count();
        self.add_up(first..first + count, window);
    }

    fn add_up(&mut self, which: Range<usize>, window: Kind) {
        let before = which.start.checked_sub(1).map(|at| &self.entries[at]);
        let (mut mask, mut sums) = before.map_or((0, Sums::NOTHING), |entry| (entry.size.mask, entry.sums));
        for entry in &mut self.entries[which] {
            if entry.size.mask != mask {
                (mask, sums) = (entry.size.mask, Sums::NOTHING);
            }
            sums.add(entry, window);
            entry.sums = sums;
        }
    }

    /// The entries by alignment.
    fn equals(&self) -> impl Iterator<Item = &[Entry]> {
        let mut rest = &self.entries[..];
        std::iter::from_fn(move || {
            let mask = rest.first()?.size.mask;
            let (equals, others) = rest.split_at(rest.partition_point(|entry| entry.size.mask == mask));
            rest = others;
            Some(equals)
        })
    }

    /// Brings the entries into the driver's order, and says how large a window they need.
    fn lay_out(&mut self, window: Kind, merging: &Merging) -> Size {
        let mut total = self.total(window);
        let order = match self.order {
            order @ Order::LastFirst if total.last_first => order,
            order @ Order::RestFirst if total.rest_first => order,
            _ if total.last_first => Order::LastFirst,
            _ if total.rest_first => Order::RestFirst,
            _ => Order::Inserted,
        };
        if order != self.order || order == Order::Inserted {
            self.order = order;
            if order == Order::Inserted {
                self.entries = inserted(std::mem::take(&mut self.entries), window, merging);
            } else {
                self.sort();
            }
            self.add_up(0..self.entries.len(), window);
            total = self.total(window);
        }
        let granularity = if window == Kind::Io { BRIDGE_IO_MASK } else { BRIDGE_MEM_MASK };
        let round_up = |len: u64| align_up(len, granularity + 1).unwrap_or(u64::MAX);
        let padded = if window == Kind::Io { total.padded } else { round_up(total.padded) };
        let mask = self.entries.first().map_or(granularity, |first| granularity.max(first.size.mask));
        Size { len: round_up(total.used).max(padded), mask, largest: total.largest }
    }

    /// What all entries come to.
    fn total(&self, window: Kind) -> Sums {
        let mut total = Sums::NOTHING;
        for equals in self.equals() {
            let Some(Entry { size: Size { mask, .. }, sums, .. }) = equals.last() else { continue };
            let follow = |end: u64, len: u64| match len {
                0 => end,
                _ => align_up(end, mask + 1).unwrap_or(u64::MAX).saturating_add(len),
            };
            total.used = follow(total.used, sums.used);
            total.padded = match window {
                Kind::Io if sums.padded != 0 => sums.padded,
                _ => follow(total.padded, sums.padded),
            };
            total.largest = total.largest.or(sums.largest);
            total.last_first &= sums.last_first;
            total.rest_first &= sums.rest_first;
        }
        total
    }
}

impl Sums {
    const NOTHING: Sums = Sums {
        used: 0,
        padded: 0,
        largest: Largest::NONE,
        whole: false,
        rest: 0,
        last_first: true,
        rest_first: true,
    };

    /// Adds an entry behind those of the same alignment.
    fn add(&mut self, entry: &Entry, window: Kind) {
        let Size { len, mask, largest } = entry.size;
        if entry.padding && window == Kind::Io {
            self.padded = len;
        } else {
            let end = if entry.padding { &mut self.padded } else { &mut self.used };
            *end = align_up(*end, mask + 1).unwrap_or(u64::MAX).saturating_add(len);
        }
        self.largest = self.largest.or(largest);
        match entry.rest() {
            0 => self.whole = true,
            rest if self.rest == 0 => self.rest = rest,
            rest => self.last_first &= rest == self.rest,
        }
        self.rest_first &= !self.whole || self.rest == 0;
    }
}

/// The entries of one list in the order that the driver's own insertions give them.
fn inserted(mut entries: Vec<Entry>, list: Kind, merging: &Merging) -> Vec<Entry> {
    // Each type on its own first, in the order of the functions.
    entries.sort_unstable_by_key(|entry| {
        if merging.routes[entry.kind as usize].reversed { u64::MAX - entry.turn } else { entry.turn }
    });
    let mut lists: PerKind<Vec<Entry>> = Default::default();
    for entry in entries {
        insert(&mut lists[entry.kind as usize], entry);
    }
    for (to, from) in merging.merges {
        for entry in std::mem::take(&mut lists[*from as usize]) {
            insert(&mut lists[*to as usize], entry);
        }
    }
    std::mem::take(&mut lists[list as usize])
}

/// Inserts by falling alignment. Among equals a node goes first when its length is a multiple of its alignment,
/// otherwise behind those that stick out farther.
fn insert(list: &mut Vec<Entry>, entry: Entry) {
    let (mask, rest) = (entry.size.mask, entry.rest());
    let farther = |other: &Entry| other.size.mask == mask && other.rest() > rest;
    let mut place = list.partition_point(|other| other.size.mask > mask);
    while rest != 0 && list.get(place).is_some_and(farther) {
        place += 1;
    }
    list.insert(place, entry);
}

impl Merging {
    const fn new(merges: &'static [(Kind, Kind)], pref64: bool) -> Merging {
        Merging { merges, routes: routes(merges), pref64 }
    }
}

/// Where each type ends up when lists are merged like that. A merge takes the nodes of one list first to last, and
/// puts each before its equals.
const fn routes(merges: &[(Kind, Kind)]) -> PerKind<Route> {
    let mut routes = [Route { to: Kind::Io, rank: 0, reversed: false }; 5];
    let mut kind = 0;
    while kind < 5 {
        routes[kind].to = Kind::ALL[kind];
        kind += 1;
    }
    let mut merge = 0;
    while merge < merges.len() {
        let (to, from) = merges[merge];
        let (behind, turned) = (last_rank(&routes, to), last_rank(&routes, from));
        let mut kind = 0;
        while kind < 5 {
            let Route { to: now, rank, reversed } = routes[kind];
            if now as usize == from as usize {
                routes[kind] = Route { to, rank: behind + 1 + turned - rank, reversed: !reversed };
            }
            kind += 1;
        }
        merge += 1;
    }
    routes
}

/// The rank of the type that is inserted last into a list.
const fn last_rank(routes: &PerKind<Route>, list: Kind) -> u64 {
    let (mut last, mut kind) = (0, 0);
    while kind < 5 {
        if routes[kind].to as usize == list as usize && routes[kind].rank > last {
            last = routes[kind].rank;
        }
        kind += 1;
    }
    last
}

fn rom_sizes(function: &Function) -> impl Iterator<Item = u64> {
    function.bars.iter().filter(|bar| bar.index == ROM).map(|bar| bar.size.get())
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
