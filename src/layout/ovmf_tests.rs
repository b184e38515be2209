//! OVMF's rules, one row for each geometry that was booted on the real firmware, and what holds for every guest.

use proptest::prelude::*;

use super::tests::{bar, guest, root_port, testdev};
use super::*;
use crate::units::{Addr, BarKind, Bytes, GIB, MIB, PhysBits, Span};

const G: u64 = GIB;
const NONE: Option<u64> = None;

fn at(address: u64) -> Option<u64> {
    Some(address)
}

/// Two to four root ports with one `pci-testdev` each.
fn ports(mut guest: Guest, count: u8, size: u64) -> Guest {
    let ports = (1..=count).map(|n| root_port(n, vec![testdev(n.into(), 0, size)]));
    guest.bus.splice(1..1, ports);
    guest
}

fn amd(mut guest: Guest) -> Guest {
    guest.cpu.vendor = CpuVendor::Amd;
    guest
}

fn no_gib_pages(mut guest: Guest) -> Guest {
    guest.cpu.gib_pages = false;
    guest
}

/// As `mem-reserve=` on the first ports.
fn reserve_2_gib(mut guest: Guest, ports: usize) -> Guest {
    let bridges = guest.bus.iter_mut().filter_map(|function| match &mut function.role {
        Role::Bridge(bridge) => Some(bridge),
        Role::Endpoint => None,
    });
    for bridge in bridges.take(ports) {
        bridge.reserve.mem = Some(Bytes(2 * G));
    }
    guest
}

fn mmio64(mut guest: Guest, mib: &str) -> Guest {
    guest.mmio64_mb = Some(mib.to_owned());
    guest
}

/// Addresses of the stand-ins' large BARs.
fn large(layout: &Layout) -> Vec<Option<u64>> {
    let large = |bar: &&PlacedBar| bar.function.0 < 100 && bar.bar.index == 2;
    layout.bars.iter().filter(large).map(|bar| bar.address.map(Addr::get)).collect()
}

#[test]
fn measured_places() {
    let rows: &[(&str, Guest, &[Option<u64>])] = &[
        // The classic window just fits below 2^40.
        (
            "classic below 40 bits",
            ports(no_gib_pages(guest("202608", 990 * G, 42)), 2, G),
            &[at(0xf8_0000_0000), at(0xf8_4000_0000)],
        ),
        // No window: everything below 4 GiB, the last port first.
        (
            "no window",
            ports(mmio64(no_gib_pages(guest("202608", 1500 * G, 42)), "0"), 2, MIB),
            &[at(0x8050_0000), at(0x8040_0000)],
        ),
        (
            "no window, 2020",
            ports(mmio64(no_gib_pages(guest("202011", 1500 * G, 42)), "0"), 2, MIB),
            &[at(0xc050_0000), at(0xc040_0000)],
        ),
        // AMD at 40 bits: the window moves from 896 to 768 GiB, below the HyperTransport range …
        (
            "moved window",
            ports(amd(guest("202608", 765 * G, 40)), 2, G),
            &[at(0xc0_0000_0000), at(0xc0_4000_0000)],
        ),
        // … then below RAM, where it wraps: what fits goes below 4 GiB, the rest is given up.
        ("wrapped window", ports(amd(guest("202608", 800 * G, 40)), 2, G), &[at(0x8000_0000), NONE]),
        (
            "before windows moved",
            ports(amd(guest("202011", 800 * G, 40)), 2, G),
            &[at(0xd0_0000_0000), at(0xd0_4000_0000)],
        ),
        // A reservation that does not fit is dropped, the devices stay …
        (
            "2 GiB of 32-bit padding",
            reserve_2_gib(ports(guest("202608", 8 * G, 42), 2, 64 * MIB), 1),
            &[at(0x380_8000_0000), at(0x380_0000_0000)],
        ),
        // A classic window that reaches into the range ends where it begins.
        (
            "window into the hole",
            ports(amd(guest("202608", 970 * G, 40)), 4, 8 * G),
            &[at(0xf8_0000_0000), at(0xfa_0000_0000), NONE, NONE],
        ),
        (
            "window across the hole, 2020",
            ports(amd(guest("202011", 970 * G, 40)), 4, 8 * G),
            &[at(0xf8_0000_0000), at(0xfa_0000_0000), at(0xfc_0000_0000), at(0xfe_0000_0000)],
        ),
    ];
    for (name, guest, places) in rows {
        let layout = lay_out(guest);
        assert_eq!(layout.outcome, Outcome::Boots, "{name}");
        assert_eq!(large(&layout), *places, "{name}");
    }
}

#[test]
fn measured_ends() {
    let hangs = |outcome: &Outcome| matches!(outcome, Outcome::Hangs(_));
    let gives_up = |outcome: &Outcome| matches!(outcome, Outcome::GivesUp(_));
    type Test<'a> = &'a dyn Fn(&Outcome) -> bool;
    let rows: &[(&str, Guest, Test<'_>)] = &[
        ("window beyond the width", ports(mmio64(guest("202608", 256 * G, 42), "4194304"), 2, G), &hangs),
        ("window partly beyond", ports(mmio64(guest("202608", 256 * G, 42), "3145728"), 2, G), &hangs),
        ("no device at all", mmio64(guest("202608", 256 * G, 42), "4194304"), &hangs),
        ("classic beyond 40 bits", ports(no_gib_pages(guest("202608", 1000 * G, 42)), 2, G), &hangs),
        ("classic at 40 bits", ports(no_gib_pages(guest("202608", 1022 * G, 42)), 2, G), &hangs),
        ("across the hole", ports(amd(mmio64(guest("202608", 900 * G, 40), "131072")), 4, 16 * G), &hangs),
        // … but 4 GiB are refused before anybody is asked to give way.
        (
            "4 GiB of 32-bit padding",
            reserve_2_gib(ports(guest("202608", 8 * G, 42), 2, 64 * MIB), 2),
            &gives_up,
        ),
        // The largest is given up, and then nothing asks for the type that failed: no way forward.
        ("one device too large", ports(mmio64(guest("202608", 4 * G, 46), "32768"), 1, 64 * G), &gives_up),
        (
            "four too large, no padding",
            ports(no_gib_pages(guest("202608", 950 * G, 42)), 4, 128 * G),
            &gives_up,
        ),
    ];
    for (name, guest, expected) in rows {
        let layout = lay_out(guest);
        assert!(expected(&layout.outcome), "{name}: {:?}", layout.outcome);
        assert!(layout.bars.iter().all(|bar| bar.address.is_none()), "{name}");
    }
}

#[test]
fn qemu_refuses_what_exceeds_phys_bits() {
    for (ram, bits, refused) in [(990, 40, false), (991, 40, true), (2000, 40, true), (2014, 41, false)] {
        let layout = lay_out(&guest("202608", ram * G, bits));
        assert_eq!(layout.outcome == Outcome::Refused, refused, "{ram} GiB at {bits} bits");
    }
}

#[test]
fn windows_and_widths() {
    // month, vendor, CPUID bits, 1 GiB pages, usable bits, window
    use CpuVendor::{Amd, Intel, Other};
    let rows = [
        ("202011", Intel, 46, true, 36, 0x8_0000_0000, 0x8_0000_0000),
        ("202211", Intel, 40, true, 36, 0x8_0000_0000, 0x8_0000_0000),
        ("202211", Intel, 39, true, 39, 0x70_0000_0000, 0x10_0000_0000),
        ("202211", Intel, 42, true, 42, 0x380_0000_0000, 0x80_0000_0000),
        ("202211", Amd, 40, true, 40, 0xe0_0000_0000, 0x20_0000_0000),
        ("202302", Amd, 40, true, 40, 0xc0_0000_0000, 0x20_0000_0000),
        ("202211", Intel, 52, true, 47, 0x7000_0000_0000, 0x1000_0000_0000),
        ("202308", Intel, 52, true, 46, 0x3800_0000_0000, 0x800_0000_0000),
        ("202308", Intel, 46, false, 40, 0xe0_0000_0000, 0x20_0000_0000),
        ("202308", Other, 40, true, 36, 0x8_0000_0000, 0x8_0000_0000),
        ("202308", Other, 41, true, 41, 0x1c0_0000_0000, 0x40_0000_0000),
        ("202611", Intel, 46, true, 46, 0x3000_0000_0000, 0x1000_0000_0000),
    ];
    for (month, vendor, bits, gib_pages, usable, base, size) in rows {
        let mut guest = guest(month, 4 * G, bits);
        guest.cpu.vendor = vendor;
        guest.cpu.gib_pages = gib_pages;
        let layout = lay_out(&guest);
        assert_eq!(u64::from(layout.width.usable.get()), usable, "{month} {vendor:?} {bits}");
        let window = layout.window.map(|window| window.span);
        assert_eq!(window, Span::new(base, size), "{month} {vendor:?} {bits}");
    }
}

/// A guest with ports of several stand-ins, some without hot-plug, and some devices on the root bus.
pub(super) fn any_guest() -> impl Strategy<Value = Guest> {
    let month =
        prop::sample::select(vec!["201911", "202011", "202211", "202305", "202502", "202602", "202608"]);
    let kind = prop::sample::select(vec![
        BarKind::Io,
        BarKind::Mem32,
        BarKind::Mem32Prefetchable,
        BarKind::Mem64,
        BarKind::Mem64Prefetchable,
    ]);
    let function = prop::collection::vec((kind, 4u32..42), 0..4);
    let port = (prop::collection::vec(function, 0..4), any::<bool>());
    let cpu = (36u64..=52, any::<bool>(), any::<bool>());
    let asked = prop::option::of(prop::sample::select(vec!["0", "32768", "65536", "100000", "1048576", "x"]));
    (month, 1u64..3000, cpu, asked, prop::collection::vec(port, 0..14)).prop_map(
        |(month, ram, (bits, is_amd, gib_pages), asked, ports)| {
            let mut guest = guest(month, ram * G, bits);
            guest.cpu.vendor = if is_amd { CpuVendor::Amd } else { CpuVendor::Intel };
            guest.cpu.gib_pages = gib_pages;
            guest.mmio64_mb = asked.map(str::to_owned);
            let mut id = 0;
            for (number, (functions, hotplug)) in (1..).zip(ports) {
                let children = (0..).zip(functions).map(|(n, bars)| {
                    id += 1;
                    let mut function = testdev(id, n, 4096);
                    function.bars = (0..)
                        .zip(bars)
                        .map(|(index, (kind, exponent))| {
                            let most = if kind == BarKind::Io {
                                8
                            } else if matches!(kind, BarKind::Mem32 | BarKind::Mem32Prefetchable) {
                                31
                            } else {
                                42
                            };
                            bar(index, 1 << exponent.min(most), kind)
                        })
                        .collect();
                    function
                });
                let mut port = root_port(number, children.collect());
                if let Role::Bridge(bridge) = &mut port.role {
                    bridge.hotplug = hotplug;
                }
                guest.bus.push(port);
            }
            guest
        },
    )
}

proptest! {
    #[test]
    fn bars_are_aligned_and_apart_and_in_a_window(guest in any_guest()) {
        let layout = lay_out(&guest);
        let mut spaces: [Vec<Span>; 2] = Default::default();
        for placed in &layout.bars {
            let Some(address) = placed.address else {
                prop_assert!(!placed.reachable);
                continue;
            };
            prop_assert_eq!(&layout.outcome, &Outcome::Boots);
            let size = placed.bar.size.get();
            prop_assert_eq!(address.get() % size, 0);
            let span = Span::new(address.get(), size).expect("a range");
            let io = placed.bar.kind == BarKind::Io;
            if io {
                prop_assert!(span.last() < 0x1_0000);
            } else if span.first() >= 4 * G {
                let window = layout.window.expect("a window").span;
                prop_assert!(window.first() <= span.first() && span.last() <= window.last());
                prop_assert!(matches!(placed.bar.kind, BarKind::Mem64 | BarKind::Mem64Prefetchable));
            } else {
                prop_assert!(span.first() >= layout.ram.below_4g.get() && span.last() < 0xfc00_0000);
            }
            prop_assert_eq!(placed.reachable, io || span.last() < guest.cpu.phys_bits.limit());
            spaces[usize::from(io)].push(span);
        }
        for spans in &mut spaces {
            spans.sort();
            prop_assert!(spans.windows(2).all(|pair| !pair[0].overlaps(pair[1])));
        }
    }

    /// What is said of a guest without laying it out holds when it is, whatever its firmware.
    #[test]
    fn what_is_reachable_has_room(guest in any_guest(), seabios in prop::option::of(0usize..6)) {
        let mut guest = guest;
        if let Some(version) = seabios {
            let version = ["1.12.0", "1.14.0", "1.16.0", "1.16.2", "1.16.3", "1.17.0"][version];
            guest.firmware = Firmware::SeaBios(SeaBiosRules::version(version).expect("a version"));
        }
        let layout = lay_out(&guest);
        let room = Predictor::new(&guest).room(guest.cpu, guest.mmio64_mb.clone());
        let lost: Vec<FunctionId> = layout.bars.iter().filter(|bar| !bar.reachable).map(|bar| bar.function).collect();
        prop_assert!(room.may_hold(Demand::new(&guest.bus, |id| !lost.contains(&id))));
    }

    #[test]
    fn a_device_has_all_its_bars_or_none(guest in any_guest()) {
        let layout = lay_out(&guest);
        for pair in layout.bars.windows(2).filter(|pair| pair[0].function == pair[1].function) {
            prop_assert_eq!(pair[0].address.is_some(), pair[1].address.is_some());
        }
    }

    #[test]
    fn more_room_than_needed_places_everything_high(guest in any_guest()) {
        let mut guest = guest;
        guest.firmware = Firmware::Ovmf(OvmfRules::era("202505").expect("a month"));
        guest.mmio64_mb = Some("16777216".to_owned());
        guest.cpu.phys_bits = PhysBits::MAX;
        guest.cpu.gib_pages = true;
        let layout = lay_out(&guest);
        let Some(window) = layout.window.filter(|window| window.needed <= Bytes(window.span.size())) else {
            return Ok(());
        };
        if layout.outcome == Outcome::Boots && layout.bars.iter().all(|bar| bar.address.is_some()) {
            let large = layout.bars.iter().filter(|bar| bar.bar.kind == BarKind::Mem64Prefetchable);
            prop_assert!(large.filter_map(|bar| bar.address).all(|address| address.get() >= window.span.first()));
        }
    }
}
