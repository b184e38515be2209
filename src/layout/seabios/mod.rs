//! Where SeaBIOS puts every BAR.
//!
//! SeaBIOS sorts what each bus needs by alignment, packs it without gaps below 0xFEC00000, and when that is too
//! small (from 1.16.3 on: in any guest with RAM above 4 GiB) moves everything 64-bit on the root bus into a
//! window above 4 GiB that is exactly as large as needed. It drops nothing and compares nothing with phys-bits:
//! what lies beyond is the guest's problem. When the space below 4 GiB or the I/O space is too small, it stops.
//! Knows the addresses; what a guest can do with them is the matter of [`super::linux`].
//! Source: SeaBIOS `src/fw/pciinit.c` at the tags 1.12.0 to 1.17.0.

mod bus;
mod rules;
#[cfg(test)]
mod tests;

use super::linux::{self, BarView, BusView, Use};
use super::ram::{ram_map, refuses};
use super::{
    Chipset, Function, FunctionId, Guest, Layout, Outcome, PlacedBar, RamMap, Role, Width, WidthRule, Window,
    WindowRule,
};
use crate::units::{Addr, Bar, BarKind, Bytes, GIB, PhysBits, Span};
use bus::{Entry, OwnedBar, Owner, Padding, Region, SPACES, Space, Tree, align_up};
pub use rules::{SeaBiosClamp, SeaBiosPadding, SeaBiosRules};

/// Where memory BARs end below 4 GiB: at the I/O APIC.
const MEM32_END: u64 = 0xfec0_0000;
/// q35 places MMCONFIG (256 MiB) at 0xB0000000 and memory BARs above it.
const Q35_MMCONFIG: u64 = 0xb000_0000;
const Q35_MEM32_START: u64 = 0xc000_0000;
const FOUR_GIB: u64 = 4 * GIB;

/// Where SeaBIOS puts every BAR of this guest.
pub(super) fn lay_out(guest: &Guest, rules: &SeaBiosRules) -> Layout {
    let ram = ram_map(guest);
    let above_4g = ram.above_4g.map_or(0, |span| span.end().saturating_sub(FOUR_GIB));
    let bits = rules.trusted_bits(&guest.cpu).map(|bits| rules.clamped(bits, above_4g));
    let padding =
        Padding { on: rules.pads(&guest.cpu, above_4g), mem64_top: bits.map_or(0, |bits| 1u64 << bits) };
    let tree = Tree::sized(&guest.bus, rules, padding);

    let mut placement = Placement::new(&tree);
    let outcome = if refuses(guest, &ram) {
        Outcome::Refused
    } else {
        placement.place_all(guest, &ram, padding).map_or_else(Outcome::Hangs, |()| Outcome::Boots)
    };
    let bars = placed_bars(guest, &ram, &placement);
    let width = width(guest, rules, bits);
    Layout { ram, width, window: placement.window, outcome, bars }
}

fn width(guest: &Guest, rules: &SeaBiosRules, bits: Option<u8>) -> Width {
    let cpuid = guest.cpu.phys_bits;
    let clamped = bits.filter(|bits| *bits < cpuid.get());
    let usable = clamped.and_then(|bits| PhysBits::new(bits.into())).unwrap_or(cpuid);
    let because = match (bits, clamped) {
        (None, _) if rules.reads_phys_bits => WidthRule::NotTrusted,
        (None, _) => WidthRule::NotRead,
        (Some(_), None) => WidthRule::Cpuid,
        (Some(_), Some(_)) => WidthRule::SeaBiosClamp,
    };
    Width { cpuid, usable, because }
}

/// Addresses as they are handed out.
pub(super) struct Placement<'a> {
    tree: Tree<'a>,
    /// The 64-bit window, once it is known that there is one.
    window: Option<Window>,
    bars: Vec<Held>,
    /// First address and size of the windows of each bus's bridge, by [`Space`].
    windows: Vec<[Option<(u64, u64)>; 3]>,
}

/// What a BAR register holds.
#[derive(Copy, Clone, Debug)]
struct Held {
    /// Index of the bus.
    bus: usize,
    owned: OwnedBar,
    register: u64,
}

impl Held {
    /// The range that QEMU maps: none at address 0, and none that ends with the last address of all.
    fn span(&self) -> Option<Span> {
        Span::new(self.register, self.owned.bar.size.get())
            .filter(|span| span.first() > 0 && span.last() < u64::MAX)
    }
}

impl<'a> Placement<'a> {
    fn new(tree: &Tree<'a>) -> Placement<'a> {
        let windows = vec![[None; 3]; tree.buses.len()];
        Placement { tree: tree.clone(), window: None, bars: Vec::new(), windows }
    }

    /// Bases of the root bus first, then every bus in the order of its number. The error says why SeaBIOS stops.
    fn place_all(&mut self, guest: &Guest, ram: &RamMap, padding: Padding) -> Result<(), String> {
        let io = io_base(guest, self.tree.buses[0].region(Space::Io).sum())
            .ok_or("SeaBIOS stops: \"PCI: out of I/O address space\"")?;
        let mut low = self.mem32_bases(guest, ram);
        if padding.on || low.is_none() {
            let high = [Space::Mem, Space::Pref].map(|space| self.take_64bit(space));
            low = self.mem32_bases(guest, ram);
            if low.is_some() {
                self.place_high(high, ram, padding);
            }
        }
        let (mem, pref) = low.ok_or("SeaBIOS stops: \"PCI: out of 32bit address space\"")?;
        let mut bases = [io, mem, pref];
        for index in 0..self.tree.buses.len() {
            for space in SPACES {
                if index > 0 {
                    bases[space as usize] = self.windows[index][space as usize].map_or(0, |(base, _)| base);
                }
                let region = self.tree.buses[index].region(space).clone();
                self.map(index, &region, space, bases[space as usize]);
            }
        }
        Ok(())
    }

    /// Where memory and prefetchable memory of the root bus begin below 4 GiB, or `None` when they do not fit.
    fn mem32_bases(&self, guest: &Guest, ram: &RamMap) -> Option<(u64, u64)> {
        let root = &self.tree.buses[0];
        let (mem, pref) = (root.region(Space::Mem), root.region(Space::Pref));
        let below = |end: u64, region: &Region| end.wrapping_sub(region.sum()) & !(region.align() - 1);
        // The region with the larger alignment goes first, the other one to the end.
        let swapped = mem.align() < pref.align();
        let (first, last) = if swapped { (pref, mem) } else { (mem, pref) };
        let last_base = below(MEM32_END, last);
        let first_base = below(last_base, first);
        let fits = (mem32_start(guest, ram)..=MEM32_END).contains(&first_base);
        fits.then_some(if swapped { (last_base, first_base) } else { (first_base, last_base) })
    }

    /// Takes what may lie above 4 GiB off the root bus, USB controllers excepted.
    fn take_64bit(&mut self, space: Space) -> Region {
        let entries = &mut self.tree.buses[0].region_mut(space).entries;
        let goes_high =
            |entry: &Entry| entry.is64 && !matches!(entry.owner, Owner::Bar(OwnedBar { usb: true, .. }));
        let (entries_high, entries_low) = std::mem::take(entries).into_iter().partition(goes_high);
        *entries = entries_low;
        Region { entries: entries_high }
    }

    /// Finds the 64-bit window and maps it.
    fn place_high(&mut self, [mem, pref]: [Region; 2], ram: &RamMap, padding: Padding) {
        let mut base = ram_end(ram);
        let top = padding.mem64_top;
        if top > 0 {
            let mut size = align_up(mem.sum(), GIB).wrapping_add(align_up(pref.sum(), GIB));
            if padding.on {
                size = align_up(size, top >> 3);
            }
            // Wraps when the BARs exceed the whole width: SeaBIOS then starts just below 2^64.
            base = base.max(top.wrapping_sub(size));
            if is_used(ram, base, size) {
                base = base.wrapping_sub(size);
            }
        }
        let mem_base = align_up(align_up(base, mem.align()), GIB);
        let pref_base = align_up(align_up(mem_base.wrapping_add(mem.sum()), pref.align()), GIB);
        let end = align_up(pref_base.wrapping_add(pref.sum()), GIB);
        let needed = end.wrapping_sub(mem_base);
        self.window = Span::new(mem_base, needed).map(|span| Window {
            span,
            rule: WindowRule::SeaBios,
            needed: Bytes(needed),
        });
        self.map(0, &mem, Space::Mem, mem_base);
        self.map(0, &pref, Space::Pref, pref_base);
    }

    /// Hands out addresses on a bus from `base` on, without gaps.
    fn map(&mut self, bus: usize, region: &Region, space: Space, base: u64) {
        let mut next = base;
        for entry in &region.entries {
            match entry.owner {
                // A register cannot hold an address that is no multiple of the BAR's size.
                Owner::Bar(owned) => {
                    let register = next & !owned.bar.size.get().wrapping_sub(1);
                    self.bars.push(Held { bus, owned, register });
                }
                Owner::Window(behind) => self.windows[behind][space as usize] = Some((next, entry.size)),
            }
            next = next.wrapping_add(entry.size);
        }
    }

    /// The buses as a guest finds them.
    fn buses(&self) -> Vec<BusView> {
        let of_bus = |(index, bus): (usize, &bus::Bus<'_>)| {
            let window = |space: Space| {
                self.windows[index][space as usize].and_then(|(base, size)| Span::new(base, size))
            };
            let memory = |held: &&Held| held.bus == index && held.owned.bar.kind != BarKind::Io;
            let mut bars: Vec<BarView> = self
                .bars
                .iter()
                .filter(memory)
                .map(|held| {
                    let OwnedBar { function, devfn, bar, .. } = held.owned;
                    BarView { function, devfn, bar, span: held.span() }
                })
                .collect();
            bars.sort_by_key(|view| (view.devfn, view.bar.index));
            let (mem, pref) = (window(Space::Mem), window(Space::Pref));
            BusView { parent: bus.parent, devfn: bus.devfn, mem, pref, bars }
        };
        self.tree.buses.iter().enumerate().map(of_bus).collect()
    }
}

/// First I/O port of the root bus, or `None` when `sum` ports are too many.
fn io_base(guest: &Guest, sum: u64) -> Option<u64> {
    let low_end = match guest.machine.chipset {
        Chipset::Q35 => 0x10000,
        Chipset::I440fx => 0xa000,
    };
    if sum < 0x4000 { Some(0xc000) } else { (sum < low_end - 0x1000).then_some(0x1000) }
}

fn mem32_start(guest: &Guest, ram: &RamMap) -> u64 {
    match (guest.machine.chipset, ram.below_4g.get()) {
        (Chipset::Q35, _) => Q35_MEM32_START,
        (Chipset::I440fx, 0..=0x8000_0000) => 0x8000_0000,
        (Chipset::I440fx, 0x8000_0001..=0xc000_0000) => 0xc000_0000,
        (Chipset::I440fx, low) => low,
    }
}

/// First address above RAM and, if there is any, above hot-plug memory (QEMU announces it in whole GiB).
fn ram_end(ram: &RamMap) -> u64 {
    let above = ram.above_4g.map_or(FOUR_GIB, |span| span.end().max(FOUR_GIB));
    ram.hotplug.map_or(above, |span| align_up(span.end(), GIB).max(above))
}

/// Whether `size` bytes from `base` on touch RAM or something reserved, wrapping as the firmware's test does.
fn is_used(ram: &RamMap, base: u64, size: u64) -> bool {
    let end = base.wrapping_add(size);
    let fixed =
        [Span::new(0, ram.below_4g.get()), Span::new(Q35_MMCONFIG, 256 << 20), ram.above_4g, ram.sgx_epc];
    let spans = fixed.into_iter().flatten().chain(ram.reserved.iter().copied());
    spans.into_iter().any(|span| end > span.first() && base < span.end())
}

/// Every BAR but expansion ROMs, in the order of the input, with what its register holds and whether a guest can use it there.
fn placed_bars(guest: &Guest, ram: &RamMap, placement: &Placement<'_>) -> Vec<PlacedBar> {
    let uses = linux::uses(guest, ram, &placement.buses());
    let mut bars = Vec::new();
    collect(&guest.bus, &mut |function, bar| {
        let mine = |held: &&Held| held.owned.function == function && held.owned.bar.index == bar.index;
        let address = placement.bars.iter().find(mine).and_then(Held::span).map(Span::first);
        let usable = uses.iter().find(|(id, index, _)| *id == function && *index == bar.index);
        let reachable = address.is_some()
            && (bar.kind == BarKind::Io || usable.is_some_and(|(_, _, use_)| *use_ == Use::AsPlaced));
        let rescued = usable.is_some_and(|(_, _, use_)| *use_ == Use::Moved);
        bars.push(PlacedBar { function, bar, address: address.map(Addr), reachable, rescued });
    });
    bars
}

fn collect(functions: &[Function], found: &mut impl FnMut(FunctionId, Bar)) {
    for function in functions {
        function.bars.iter().filter(|bar| !bar.is_rom()).for_each(|bar| found(function.id, *bar));
        if let Role::Bridge(bridge) = &function.role {
            collect(&bridge.children, found);
        }
    }
}
