//! OVMF's answer for a guest: width, window, and every BAR, or why the boot does not get that far.
//!
//! Sources: edk2 OvmfPkg/Library/PlatformInitLib (`PlatformMemMapInitialization`: windows for I/O and 32-bit
//! memory), OvmfPkg/PciHotPlugInitDxe (padding), MdeModulePkg PciBusDxe (`PciHostBridgeResourceAllocator`: try,
//! give up the largest device, try again). What was measured and what each disagreement taught is in
//! docs/fidelity.md.

use super::host_bridge::{HostBridge, Kind, PerKind, Pool, Status};
use super::pack::{PackRules, Padding, Tree};
use super::ram::{ram_map, refuses};
use super::width::ovmf_width;
use super::window::{Aperture, Classic, ovmf_window};
use super::{Bridge, Chipset, Guest, Layout, Outcome, OvmfRules, PlacedBar, RamMap, Room, Width, Window};
use crate::units::{BarKind, Bytes, GIB, KIB, MIB, PhysBits, Span, align_up};

/// The space that OVMF has for BARs, and how it comes to it.
struct Space {
    ram: RamMap,
    width: Width,
    aperture: Option<Aperture>,
    low: Pool,
    high: Option<Pool>,
}

impl Space {
    fn new(guest: &Guest, rules: &OvmfRules) -> Space {
        let ram = ram_map(guest);
        let classic = Classic::new(guest, rules, &ram);
        let (width, trusted) = ovmf_width(guest, rules, &classic);
        let aperture = ovmf_window(rules, &ram, &classic, trusted);
        let low = low_pool(guest, rules, &ram);
        let high = aperture.map(|a| high_pool(a, rules, &ram, width.usable));
        Space { ram, width, aperture, low, high }
    }
}

/// The space of this guest for BARs of memory.
pub(super) fn room(guest: &Guest, rules: &OvmfRules) -> Room {
    let Space { low, high, .. } = Space::new(guest, rules);
    let len = |pool: Pool| pool.end.saturating_sub(pool.base);
    let above_4g = high.map_or(0, len);
    Room { all: len(low).saturating_add(above_4g), above_4g }
}

/// Where OVMF puts every BAR of this guest, whose functions `tree` was made of.
pub(super) fn lay_out(guest: &Guest, rules: &OvmfRules, tree: &mut Tree<'_>) -> Layout {
    let Space { ram, width, aperture, low, high } = Space::new(guest, rules);
    let pack = PackRules { high: aperture.is_some(), mem64_through_pref64: rules.mem64_through_pref64 };
    tree.boot(pack, |bridge| padding(bridge, rules, aperture));
    let window = aperture.and_then(|aperture| report(aperture, tree));
    let boot =
        if refuses(guest, &ram) { Err(Outcome::Refused) } else { hang(&width, aperture).map_or(Ok(()), Err) };
    let (outcome, mut bars) = match boot {
        Err(outcome) => (outcome, tree.unplaced()),
        Ok(()) => allocate(tree, HostBridge::new(tree.roots(), io_pool(guest), low, high)),
    };
    for bar in &mut bars {
        bar.reachable = reachable(bar, guest.cpu.phys_bits);
    }
    Layout { ram, width, window, outcome, bars }
}

/// Tries, gives up the largest device of what did not fit, and tries again.
fn allocate(tree: &mut Tree<'_>, mut bridge: HostBridge) -> (Outcome, Vec<PlacedBar>) {
    loop {
        for root in 0..tree.roots() {
            if bridge.submit(root, &tree.requests(root)).is_err() {
                let why = "the devices ask for 4 GiB or more of 32-bit memory".to_owned();
                return (Outcome::GivesUp(why), tree.unplaced());
            }
        }
        if bridge.allocate() {
            return (Outcome::Boots, tree.placed(|root| bridge.statuses(root).map(Status::base)));
        }
        // Of several root buses the last that asked for a type decides.
        let mut unsatisfied = [false; 5];
        for root in 0..tree.roots() {
            for (unsatisfied, status) in unsatisfied.iter_mut().zip(bridge.statuses(root)) {
                match status {
                    Status::None => {}
                    Status::Submitted => *unsatisfied = true,
                    Status::Allocated(_) => *unsatisfied = false,
                }
            }
        }
        if !tree.give_up(unsatisfied) {
            return (Outcome::GivesUp(stuck(unsatisfied)), tree.unplaced());
        }
        bridge.free();
    }
}

/// Why nothing more can be given up.
fn stuck(unsatisfied: PerKind<bool>) -> String {
    let names: Vec<&str> = [
        (Kind::Io, "I/O ports"),
        (Kind::Mem32, "32-bit memory"),
        (Kind::PMem32, "32-bit memory"),
        (Kind::Mem64, "64-bit memory"),
        (Kind::PMem64, "64-bit memory"),
    ]
    .into_iter()
    .filter(|(kind, _)| unsatisfied[*kind as usize])
    .map(|(_, name)| name)
    .collect();
    if names.is_empty() {
        return "one root bus lacks space, and the firmware looks at another".to_owned();
    }
    format!("{} does not suffice, and no device is left that the firmware may give up", names.join(" and "))
}

/// Whether the firmware never gets as far as placing BARs. RAM beyond the width alone does no harm: that RAM is
/// ignored.
fn hang(width: &Width, aperture: Option<Aperture>) -> Option<Outcome> {
    let Aperture { base, size, .. } = aperture?;
    let end = base.checked_add(size)?;
    (end > width.usable.limit()).then(|| {
        let bits = width.usable;
        Outcome::Hangs(format!(
            "the 64-bit window at {base:#x} ends beyond the {bits} bits that the firmware uses"
        ))
    })
}

/// The window as the caller sees it, with what the guest would need. A window that wrapped is none.
fn report(aperture: Aperture, tree: &Tree<'_>) -> Option<Window> {
    aperture.base.checked_add(aperture.size)?;
    let mut end = aperture.base;
    for request in (0..tree.roots()).filter_map(|root| tree.requests(root)[Kind::Mem64 as usize]) {
        end = align_up(end, request.mask.saturating_add(1)).and_then(|base| base.checked_add(request.len))?;
    }
    let span = Span::new(aperture.base, aperture.size)?;
    Some(Window { span, rule: aperture.rule, needed: Bytes(end - aperture.base) })
}

fn io_pool(guest: &Guest) -> Pool {
    match guest.machine.chipset {
        Chipset::Q35 => Pool { base: 0x6000, end: 0x1_0000 },
        Chipset::I440fx => Pool { base: 0xc000, end: 0x1_0000 },
    }
}

/// The window below 4 GiB.
fn low_pool(guest: &Guest, rules: &OvmfRules, ram: &RamMap) -> Pool {
    // The uncacheable range ends at 4 GiB and is a power of two in size.
    let uncached = 4 * GIB - ram.below_4g.get().min(4 * GIB - 1);
    let base = 4 * GIB - (1 << uncached.ilog2());
    match guest.machine.chipset {
        Chipset::Q35 if rules.mmconfig_e0 => Pool { base, end: 0xe000_0000 },
        Chipset::Q35 => Pool { base: 0xc000_0000, end: 0xfc00_0000 },
        Chipset::I440fx => Pool { base, end: 0xfc00_0000 },
    }
}

/// The window above 4 GiB: what lies beyond the firmware's width is not in its memory map (all of a window that
/// wrapped), and what follows a reserved range is never added to it.
fn high_pool(aperture: Aperture, rules: &OvmfRules, ram: &RamMap, width: PhysBits) -> Pool {
    let mut end = aperture.base.saturating_add(aperture.size).min(width.limit());
    if rules.avoids_reserved {
        for reserved in ram.reserved.iter().filter(|span| span.end() > aperture.base) {
            end = end.min(reserved.first());
        }
    }
    Pool { base: aperture.base, end }
}

/// What a hot-plug bridge keeps free: what QEMU's capability asks for, or the firmware's defaults.
fn padding(bridge: &Bridge, rules: &OvmfRules, aperture: Option<Aperture>) -> Padding {
    let reserve = &bridge.reserve;
    let mut padding = Padding::default();
    padding[Kind::Io as usize] = match Hint::new(reserve.io, 64) {
        Hint::Size(size) => size,
        Hint::Nothing => 0,
        Hint::Default => u64::from(rules.pads_io) * (KIB / 2),
    };
    padding[Kind::Mem32 as usize] = match Hint::new(reserve.mem, 32) {
        Hint::Size(size) => size,
        Hint::Nothing => 0,
        Hint::Default => 2 * MIB,
    };
    // One kind of prefetchable space at most, and no way to ask for none.
    let default = |padding: &mut Padding| {
        if let Some(window) = aperture.filter(|a| rules.pads_pref64 && a.size > 32 * GIB) {
            padding[Kind::PMem64 as usize] = (window.size >> 8).next_power_of_two();
        }
    };
    match (Hint::new(reserve.pref32, 32), Hint::new(reserve.pref64, 64)) {
        (Hint::Size(size), _) => padding[Kind::PMem32 as usize] = size,
        (_, Hint::Size(size)) => padding[Kind::PMem64 as usize] = size,
        _ => default(&mut padding),
    }
    padding
}

/// How the firmware reads one number of the capability.
enum Hint {
    /// The firmware's default.
    Default,
    /// None at all.
    Nothing,
    /// This much, a power of two.
    Size(u64),
}

impl Hint {
    /// Reads a field of that many bits: all ones mean nothing was said, as does a size that cannot be rounded up.
    fn new(value: Option<Bytes>, bits: u32) -> Hint {
        let all_ones = u64::MAX >> (64 - bits);
        match value.map(|value| value.get() & all_ones) {
            Some(0) => Hint::Nothing,
            Some(size) if size != all_ones => {
                let rounded = size.checked_next_power_of_two().filter(|size| *size <= all_ones);
                rounded.map_or(Hint::Default, Hint::Size)
            }
            _ => Hint::Default,
        }
    }
}

/// Whether a guest can use a BAR at its address.
fn reachable(bar: &PlacedBar, width: PhysBits) -> bool {
    bar.address.is_some_and(|address| {
        bar.bar.kind == BarKind::Io
            || address.get().checked_add(bar.bar.size.get()).is_some_and(|end| end <= width.limit())
    })
}
