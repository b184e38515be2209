//! What a Linux guest makes of the addresses that a firmware gave: which BARs it can use where they are, which
//! it moves, and which it loses.
//!
//! A BAR beyond 2^phys-bits is no address for the CPU. Linux cuts the host bridge's window at that limit, cuts
//! the windows of bridges to what is left, and takes only BARs that lie inside ("can't claim; no compatible
//! bridge window"). It then looks for room for the rest inside the host bridge's window, as QEMU's ACPI tables
//! announce it (`_CRS`), without moving anything that has its place; what finds none is lost ("can't assign; no
//! space"). The first half has been stable for a decade; the second is what Linux 6.1 does, and a guest that
//! depends on it is luck rather than design. Knows memory only: firmware that runs out of I/O ports stops by
//! itself. Sources: Linux 6.1 `drivers/acpi/pci_root.c`, `arch/x86/pci/i386.c`, `drivers/pci/setup-bus.c`,
//! `setup-res.c`, `bus.c`; QEMU `hw/pci-host/q35.c` (`_CRS`); measured with Linux 6.1.

use super::{Bridge, BridgeKind, Chipset, Function, FunctionId, Guest, RamMap, Role};
use crate::units::{Bar, BarKind, GIB, MIB, Span, align_up};

const FOUR_GIB: u64 = 4 * GIB;
/// End of the window below 4 GiB (the I/O APIC), and q35's MMCONFIG within it.
const LOW_END: u64 = 0xfec0_0000;
const MMCONFIG: (u64, u64) = (0xb000_0000, 0xc000_0000);

/// What a guest can do with a BAR.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It works where the firmware put it.
    AsPlaced,
    /// Linux 6.1 finds another place for it.
    Moved,
    /// No guest can use it there, and Linux finds no other place.
    Lost,
}

/// A bus with the windows of the bridge that leads to it, as the firmware left them.
#[derive(Clone, Debug, Default)]
pub(super) struct BusView {
    /// Index of the bus on which the bridge sits, smaller than this bus's own. Bus 0 is the root.
    pub(super) parent: usize,
    /// Device and function number of that bridge.
    pub(super) devfn: u8,
    /// Memory window.
    pub(super) mem: Option<Span>,
    /// Prefetchable window.
    pub(super) pref: Option<Span>,
    /// Memory BARs on the bus.
    pub(super) bars: Vec<BarView>,
}

/// A memory BAR and what its register holds.
#[derive(Copy, Clone, Debug)]
pub(super) struct BarView {
    pub(super) function: FunctionId,
    pub(super) devfn: u8,
    pub(super) bar: Bar,
    /// Where it lies; `None` when the register holds no usable value.
    pub(super) span: Option<Span>,
}

/// What becomes of every BAR of `buses`, in their order.
pub(super) fn uses(guest: &Guest, ram: &RamMap, buses: &[BusView]) -> Vec<(FunctionId, u8, Use)> {
    let mut kernel = Kernel::new(guest, ram, buses);
    kernel.claim_windows();
    kernel.claim_bars();
    // Expander buses have windows of their own, and what Linux would move into those is not known.
    if !guest.bus.iter().any(is_expander) {
        kernel.assign_rest();
    }
    let of_bus = |(bus, uses): (&BusView, Vec<Use>)| {
        let bars: Vec<_> = bus.bars.iter().map(|view| (view.function, view.bar.index)).collect();
        bars.into_iter()
            .zip(uses)
            .map(|((function, index), use_)| (function, index, use_))
            .collect::<Vec<_>>()
    };
    buses.iter().zip(kernel.uses).flat_map(of_bus).collect()
}

/// A window of a bus and what of it is taken.
#[derive(Clone, Debug)]
struct Room {
    span: Span,
    prefetchable: bool,
    taken: Vec<Span>,
}

impl Room {
    fn contains(&self, span: Span) -> bool {
        self.span.first() <= span.first() && span.last() <= self.span.last()
    }

    /// Takes a given range, unless something in it is taken.
    fn claim(&mut self, span: Span) -> bool {
        let free = self.contains(span) && !self.taken.iter().any(|other| other.overlaps(span));
        if free {
            self.taken.push(span);
        }
        free
    }

    /// Takes the lowest free range of that size and alignment from `min` on.
    fn find(&mut self, size: u64, align: u64, min: u64) -> Option<Span> {
        let mut start = align_up(self.span.first().max(min), align)?;
        loop {
            let span = Span::new(start, size)?;
            if !self.contains(span) {
                return None;
            }
            match self.taken.iter().find(|other| other.overlaps(span)) {
                None => break,
                Some(other) => start = align_up(other.end(), align)?,
            }
        }
        let span = Span::new(start, size)?;
        self.taken.push(span);
        Some(span)
    }
}

/// Something without a place, on a bus.
#[derive(Copy, Clone, Debug)]
struct Homeless {
    what: What,
    devfn: u8,
    size: u64,
    align: u64,
    prefetchable: bool,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum What {
    /// BAR number in [`BusView::bars`].
    Bar(usize),
    /// Prefetchable window of the bridge to this bus.
    Window(usize),
}

struct Kernel<'a> {
    buses: &'a [BusView],
    /// Windows of each bus in the order in which Linux tries them.
    rooms: Vec<Vec<Room>>,
    uses: Vec<Vec<Use>>,
    /// Size and alignment that the homeless behind a bridge need, by bus.
    wanted: Vec<Option<(u64, u64)>>,
}

impl<'a> Kernel<'a> {
    fn new(guest: &Guest, ram: &RamMap, buses: &'a [BusView]) -> Kernel<'a> {
        let mut rooms = vec![Vec::new(); buses.len()];
        if let Some(root) = rooms.first_mut() {
            *root = root_rooms(guest, ram, buses);
        }
        let uses = buses.iter().map(|bus| vec![Use::Lost; bus.bars.len()]).collect();
        Kernel { buses, rooms, uses, wanted: vec![None; buses.len()] }
    }

    /// Bridges keep what of their windows lies in the window above them.
    fn claim_windows(&mut self) {
        for index in 1..self.buses.len() {
            let bus = &self.buses[index];
            for (span, prefetchable) in [(bus.mem, false), (bus.pref, true)] {
                // A window that begins at 0 counts as unset.
                let claimed = span.filter(|span| span.first() > 0).and_then(|span| {
                    let rooms = self.rooms[bus.parent].iter_mut();
                    let mut rooms = rooms.filter(|room| prefetchable || !room.prefetchable);
                    rooms.find_map(|room| {
                        let first = room.span.first().max(span.first());
                        let last = room.span.last().min(span.last());
                        let clipped = Span::new(first, last.checked_sub(first)?.checked_add(1)?)?;
                        room.claim(clipped).then_some(clipped)
                    })
                });
                let room = claimed.map(|span| Room { span, prefetchable, taken: Vec::new() });
                self.rooms[index].extend(room);
            }
        }
    }

    fn claim_bars(&mut self) {
        for (index, bus) in self.buses.iter().enumerate() {
            for (number, view) in bus.bars.iter().enumerate() {
                let prefetchable = is_prefetchable(&view.bar);
                let mut rooms =
                    self.rooms[index].iter_mut().filter(|room| prefetchable || !room.prefetchable);
                if view.span.is_some_and(|span| rooms.any(|room| room.claim(span))) {
                    self.uses[index][number] = Use::AsPlaced;
                }
            }
        }
    }

    /// Sizes windows from the leaves up, then hands out what is free from the root down.
    fn assign_rest(&mut self) {
        for index in (1..self.buses.len()).rev() {
            if !self.rooms[index].iter().any(|room| room.prefetchable) {
                self.wanted[index] = wanted_window(&self.homeless(index));
            }
        }
        for index in 0..self.buses.len() {
            let mut homeless = self.homeless(index);
            homeless.sort_by_key(|one| (std::cmp::Reverse(one.align), one.devfn));
            for one in homeless {
                let Some(span) = self.find(index, &one) else { continue };
                match one.what {
                    What::Bar(number) => self.uses[index][number] = Use::Moved,
                    What::Window(bus) => {
                        self.rooms[bus].push(Room { span, prefetchable: true, taken: Vec::new() });
                    }
                }
            }
        }
    }

    /// 64-bit BARs on the bus that have no place, and windows of bridges on it that need one.
    fn homeless(&self, index: usize) -> Vec<Homeless> {
        let lost = |(number, view): (usize, &BarView)| {
            let is64 = matches!(view.bar.kind, BarKind::Mem64 | BarKind::Mem64Prefetchable);
            let size = view.bar.size.get();
            let what = What::Bar(number);
            let prefetchable = is_prefetchable(&view.bar);
            (is64 && self.uses[index][number] == Use::Lost).then_some(Homeless {
                what,
                devfn: view.devfn,
                size,
                align: size,
                prefetchable,
            })
        };
        let windows = self.wanted.iter().enumerate().filter_map(|(bus, wanted)| {
            let (size, align) = (*wanted)?;
            let devfn = self.buses[bus].devfn;
            let here = bus > 0 && self.buses[bus].parent == index;
            here.then_some(Homeless { what: What::Window(bus), devfn, size, align, prefetchable: true })
        });
        self.buses[index].bars.iter().enumerate().filter_map(lost).chain(windows).collect()
    }

    /// A prefetchable window first, above 4 GiB before below.
    fn find(&mut self, index: usize, one: &Homeless) -> Option<Span> {
        for prefetchable in [true, false] {
            for min in [FOUR_GIB, 0] {
                let rooms = self.rooms[index].iter_mut().filter(|room| room.prefetchable == prefetchable);
                for room in rooms.filter(|room| one.prefetchable || !room.prefetchable) {
                    if let Some(span) = room.find(one.size, one.align, min) {
                        return Some(span);
                    }
                }
            }
        }
        None
    }
}

/// The host bridge's windows: what QEMU's `_CRS` says, cut at the CPU's width.
fn root_rooms(guest: &Guest, ram: &RamMap, buses: &[BusView]) -> Vec<Room> {
    let low_start = ram.below_4g.get();
    let low = match guest.machine.chipset {
        Chipset::Q35 => vec![(low_start, MMCONFIG.0), (MMCONFIG.1, LOW_END)],
        Chipset::I440fx => vec![(low_start, LOW_END)],
    };
    let limit = guest.cpu.phys_bits.limit();
    low.into_iter()
        .chain(high_window(guest, ram, buses))
        .filter_map(|(start, end)| {
            let span = Span::new(start, end.min(limit).checked_sub(start)?)?;
            // RAM within a window stays RAM; a window that begins or ends within RAM is ignored.
            let taken: Vec<Span> = ram.above_4g.into_iter().filter(|ram| ram.overlaps(span)).collect();
            let whole = taken.iter().all(|ram| span.first() <= ram.first() && ram.last() <= span.last());
            whole.then_some(Room { span, prefetchable: false, taken })
        })
        .collect()
}

/// The 64-bit window of `_CRS`: from the first to the last address in use on the root bus, at least
/// `pci-hole64-size` long.
fn high_window(guest: &Guest, ram: &RamMap, buses: &[BusView]) -> Option<(u64, u64)> {
    let windows = buses.iter().skip(1).filter(|bus| bus.parent == 0).filter_map(|bus| bus.pref);
    let bars = buses.first()?.bars.iter();
    let bars = bars.filter(|view| matches!(view.bar.kind, BarKind::Mem64 | BarKind::Mem64Prefetchable));
    let used: Vec<Span> = windows.chain(bars.filter_map(|view| view.span)).collect();
    let high = used.iter().filter(|span| span.last() >= FOUR_GIB);
    let start = match high.clone().map(|span| span.first().max(FOUR_GIB)).min() {
        Some(first) => first,
        None => align_up(ram.top.get(), GIB)?,
    };
    // QEMU's own arithmetic wraps when something ends with the last address of all.
    let end = high.map(|span| span.last()).max().map_or(0, |last| last.wrapping_add(1));
    let end = end.max(align_up(start.saturating_add(guest.pci_hole64.get()), GIB).unwrap_or(u64::MAX));
    Some((start, end))
}

fn is_expander(function: &Function) -> bool {
    matches!(&function.role, Role::Bridge(Bridge { kind: BridgeKind::Expander { .. }, .. }))
}

fn is_prefetchable(bar: &Bar) -> bool {
    matches!(bar.kind, BarKind::Mem32Prefetchable | BarKind::Mem64Prefetchable)
}

/// Size and alignment that Linux gives the window around prefetchable things without a place.
fn wanted_window(homeless: &[Homeless]) -> Option<(u64, u64)> {
    let inside = homeless.iter().filter(|one| one.prefetchable);
    let mut by_order = [0u64; 64];
    let (mut sum, mut max_order) = (0u64, 0);
    for one in inside {
        let align = one.align.max(MIB);
        let order = align.trailing_zeros();
        sum = sum.checked_add(one.size.max(one.align))?;
        // What is larger than its alignment does not raise the window's alignment.
        if one.size <= one.align {
            by_order[order as usize] = by_order[order as usize].checked_add(one.align)?;
        }
        max_order = max_order.max(order);
    }
    if sum == 0 {
        return None;
    }
    let (mut below, mut min_align) = (0u64, MIB);
    for order in MIB.trailing_zeros()..=max_order {
        let align = 1u64 << order;
        if below == 0 {
            min_align = align;
        } else if align_up(below.checked_add(min_align)?, min_align)? < align {
            min_align = align >> 1;
        }
        below = below.checked_add(by_order[order as usize])?;
    }
    Some((align_up(sum, min_align)?, min_align))
}
