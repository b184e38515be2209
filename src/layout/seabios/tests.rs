//! Geometries that were booted on real SeaBIOS; each row says which rule it shows.

use crate::layout::tests::{bar, guest, root_port, testdev};
use crate::layout::*;
use crate::units::{BarKind, Bytes, GIB, KIB, MIB};

const PAIR: &[u64] = &[128 * GIB, 32 * MIB];
const HALF_PAIR: &[u64] = &[64 * GIB, 32 * MIB];
const SMALL: &[u64] = &[256 * MIB];

/// A q35 guest under SeaBIOS with one stand-in function for each size behind each port.
fn seabios(version: &str, phys_bits: u64, ram_gib: u64, ports: &[&[u64]]) -> Guest {
    let mut guest = guest("202211", ram_gib * GIB, phys_bits);
    guest.firmware = Firmware::SeaBios(SeaBiosRules::version(version).expect("a version"));
    let port = |(number, sizes): (usize, &&[u64])| {
        let number = u8::try_from(number + 1).expect("few ports");
        let stand_in = |(function, size): (usize, &u64)| {
            let function = u8::try_from(function).expect("few functions");
            testdev(u32::from(number) * 8 + u32::from(function), function, *size)
        };
        root_port(number, sizes.iter().enumerate().map(stand_in).collect())
    };
    guest.bus.splice(1..1, ports.iter().enumerate().map(port));
    guest
}

fn amd(mut guest: Guest) -> Guest {
    guest.cpu.vendor = CpuVendor::Amd;
    guest
}

/// Address of BAR 2 of every stand-in, in order; 0 for none.
fn addresses(layout: &Layout) -> Vec<u64> {
    large(layout).map(|placed| placed.address.map_or(0, |address| address.get())).collect()
}

/// Which of them a guest can use there.
fn reachable(layout: &Layout) -> Vec<bool> {
    large(layout).map(|placed| placed.reachable).collect()
}

fn large(layout: &Layout) -> impl Iterator<Item = &PlacedBar> {
    layout.bars.iter().filter(|placed| placed.bar.kind == BarKind::Mem64Prefetchable)
}

/// The best-known table of the field: 256, 512 and 768 GiB at 40 bits leave 3, 2 and 1 of four 128 GiB BARs
/// usable, and of the last of these ports only the large BAR, for the small one lies beyond the limit.
#[test]
fn the_fields_table() {
    let four = [PAIR; 4];
    for (ram, first, usable) in
        [(256, 0x60_0000_0000u64, 3), (512, 0xa0_0000_0000, 2), (768, 0xe0_0000_0000, 1)]
    {
        let layout = lay_out(&seabios("1.16.2", 40, ram, &four));
        let stride = 0x40_0000_0000;
        let expected: Vec<u64> =
            (0..4).rev().flat_map(|n| [first + n * stride, first + n * stride + 0x20_0000_0000]).collect();
        assert_eq!(addresses(&layout), expected, "{ram} GiB");
        let reachable = reachable(&layout);
        assert_eq!(reachable.iter().step_by(2).filter(|usable| **usable).count(), usable, "{ram} GiB");
        assert_eq!(
            reachable.iter().skip(1).step_by(2).filter(|usable| **usable).count(),
            usable - 1,
            "{ram} GiB"
        );
        let wider = lay_out(&seabios("1.16.2", 41, ram, &four));
        assert_eq!(addresses(&wider), expected, "phys-bits change nothing");
        assert!(wider.bars.iter().all(|placed| placed.reachable), "{ram} GiB at 41 bits");
    }
}

#[test]
fn windows_by_version() {
    let with_hotplug = |mut guest: Guest| {
        guest.hotplug = Some(HotplugMemory { max: Bytes(1024 * GIB), slots: 8 });
        guest
    };
    let rows: &[(&str, Guest, u64, &[u64])] = &[
        (
            "1.14.0: above hot-plug memory",
            with_hotplug(seabios("1.14.0", 44, 512, &[PAIR; 2])),
            0x102_8000_0000,
            &[0x160_0000_0000, 0x180_0000_0000, 0x120_0000_0000, 0x140_0000_0000],
        ),
        (
            "1.16.3: at the top, and a port padded to 1/2048 loses the alignment of its BAR",
            seabios("1.16.3", 43, 512, &[PAIR; 4]),
            0x700_0000_0000,
            &[
                0x760_0000_0000,
                0x783_0000_0000,
                0x740_0000_0000,
                0x762_0000_0000,
                0x720_0000_0000,
                0x741_0000_0000,
                0x700_0000_0000,
                0x720_0000_0000,
            ],
        ),
        (
            "1.17.0: the same, aligned",
            seabios("1.17.0", 43, 512, &[PAIR; 2]),
            0x700_0000_0000,
            &[0x740_0000_0000, 0x760_0000_0000, 0x700_0000_0000, 0x720_0000_0000],
        ),
        (
            "1.16.3: clamped to 46 bits",
            seabios("1.16.3", 47, 512, &[PAIR; 1]),
            0x3800_0000_0000,
            &[0x3800_0000_0000, 0x3820_0000_0000],
        ),
        (
            "1.17.0: clamped to 44 bits",
            seabios("1.17.0", 46, 512, &[PAIR; 2]),
            0xe00_0000_0000,
            &[0xe40_0000_0000, 0xe60_0000_0000, 0xe00_0000_0000, 0xe20_0000_0000],
        ),
        (
            "1.17.0: not clamped with 1 TiB and more",
            seabios("1.17.0", 46, 1100, &[PAIR; 2]),
            0x3800_0000_0000,
            &[0x3840_0000_0000, 0x3860_0000_0000, 0x3800_0000_0000, 0x3820_0000_0000],
        ),
        (
            "1.17.0: 40 bits on Intel are not trusted, so right above RAM",
            seabios("1.17.0", 40, 256, &[PAIR; 2]),
            0x40_8000_0000,
            &[0xa0_0000_0000, 0xc0_0000_0000, 0x60_0000_0000, 0x80_0000_0000],
        ),
        (
            "1.16.3: 40 bits on AMD are trusted, and the window moves below the HyperTransport range",
            amd(seabios("1.16.3", 40, 100, &[&[64 * GIB]])),
            0xc0_0000_0000,
            &[0xc0_0000_0000],
        ),
        (
            "1.17.0: that move does not look where it goes: into RAM",
            amd(seabios("1.17.0", 40, 512, &[HALF_PAIR; 3])),
            0x40_0000_0000,
            &[0x80_0000_0000, 0x90_0000_0000, 0x60_0000_0000, 0x70_0000_0000, 0x40_0000_0000, 0x50_0000_0000],
        ),
        (
            "1.17.0: no RAM above 4 GiB, no padding, and the window runs past the top",
            seabios("1.17.0", 44, 2, &[PAIR, &[64 * GIB]]),
            0xfb0_0000_0000,
            &[0xfc0_0000_0000, 0xfe0_0000_0000, 0x1000_0000_0000],
        ),
        (
            "1.17.0: small BARs go high too, each hot-plug port with 1/2048",
            seabios("1.17.0", 42, 64, &[SMALL; 2]),
            0x380_0000_0000,
            &[0x380_8000_0000, 0x380_0000_0000],
        ),
    ];
    for (rule, guest, base, expected) in rows {
        let layout = lay_out(guest);
        assert_eq!(layout.outcome, Outcome::Boots, "{rule}");
        assert_eq!(layout.window.map(|window| window.span.first()), Some(*base), "{rule}");
        assert_eq!(addresses(&layout), *expected, "{rule}");
    }
}

#[test]
fn without_need_there_is_no_window() {
    let layout = lay_out(&seabios("1.16.2", 40, 64, &[SMALL; 2]));
    assert_eq!(layout.window, None);
    assert_eq!(addresses(&layout), [0xe000_0000, 0xd000_0000]);
    assert_eq!(reachable(&layout), [true, true]);
}

/// The size exceeds the whole width, the subtraction wraps, and the window begins below 2^64.
#[test]
fn a_window_larger_than_the_width_wraps() {
    let layout = lay_out(&seabios("1.17.0", 36, 8, &[&[32 * GIB], &[32 * GIB], &[GIB]]));
    assert_eq!(addresses(&layout), [0x8_0000_0000, 0, 0x10_0000_0000]);
    assert_eq!(layout.window, None);
    assert_eq!(layout.outcome, Outcome::Boots);
}

/// What lies beyond the limit and is small finds room elsewhere: below 4 GiB, or beside the 2 MiB windows of ports.
#[test]
fn linux_moves_what_it_can() {
    let rows: &[(&str, Guest, &[bool], &[bool])] = &[
        (
            "a port of 64 MiB goes below 4 GiB, larger ones find no room",
            seabios("1.16.2", 40, 700, &[&[256 * GIB], &[64 * GIB], &[32 * GIB], &[64 * MIB]]),
            &[true, false, false, false],
            &[false, false, false, true],
        ),
        (
            "1 MiB fits into the port's other window",
            seabios("1.16.2", 40, 512, &[&[128 * GIB, MIB] as &[u64]; 3]),
            &[false, false, true, false, true, true],
            &[false, true, false, true, false, false],
        ),
        (
            "16 GiB and 32 MiB lie below the limit by themselves",
            seabios("1.16.2", 40, 512, &[&[128 * GIB], &[16 * GIB, 32 * MIB], &[64 * GIB]]),
            &[true, true, true, true],
            &[false; 4],
        ),
        (
            "64 GiB beyond 44 bits have no other place",
            seabios("1.17.0", 44, 2, &[PAIR, &[64 * GIB]]),
            &[true, true, false],
            &[false; 3],
        ),
    ];
    for (what, guest, expected, moved) in rows {
        let layout = lay_out(guest);
        assert_eq!(reachable(&layout), *expected, "{what}");
        assert_eq!(large(&layout).map(|placed| placed.rescued).collect::<Vec<_>>(), *moved, "{what}");
    }
}

/// 1.16.3 puts large BARs outside the windows of their own ports.
#[test]
fn misaligned_bars_are_lost() {
    let layout = lay_out(&seabios("1.16.3", 43, 512, &[PAIR; 4]));
    assert_eq!(reachable(&layout), [false, true, false, true, false, true, true, true]);
}

#[test]
fn too_much_below_4_gib_or_in_io_space_stops_the_boot() {
    let hangs = |guest: &Guest| match lay_out(guest).outcome {
        Outcome::Hangs(why) => why,
        other => panic!("{other:?}"),
    };
    // A 32-bit prefetchable BAR (a display's) beside a large one keeps both below 4 GiB.
    let mut mixed = seabios("1.16.2", 42, 64, &[&[16 * GIB]]);
    if let Role::Bridge(port) = &mut mixed.bus[1].role {
        let mut display = testdev(99, 1, 0);
        display.bars = vec![bar(0, 16 * MIB, BarKind::Mem32Prefetchable), bar(2, 4 * KIB, BarKind::Mem32)];
        port.children.push(display);
    }
    assert!(hangs(&mixed).contains("out of 32bit address space"));

    let io = |ports: usize| seabios("1.16.2", 42, 64, &[SMALL; 15][..ports]);
    assert_eq!(lay_out(&io(14)).outcome, Outcome::Boots);
    assert!(hangs(&io(15)).contains("out of I/O address space"));
    assert!(lay_out(&io(15)).bars.iter().all(|placed| placed.address.is_none()));
}

#[test]
fn versions_are_read_in_every_spelling() {
    for (text, version, since_1_16_3) in [
        ("1.16.2", "1.16.2", false),
        ("1.16.2-debian-1.16.2-1", "1.16.2", false),
        ("rel-1.16.3-0-ga6ed6b701f0a-prebuilt.qemu.org", "1.16.3", true),
        ("1.17.0-5.el10", "1.17.0", true),
        ("1.9", "1.9.0", false),
        ("2.0.1", "2.0.1", true),
    ] {
        let rules = SeaBiosRules::version(text).expect(text);
        assert_eq!((rules.version.as_str(), rules.reads_phys_bits), (version, since_1_16_3), "{text}");
    }
    for text in ["", "unknown", "1", "sgabios"] {
        assert_eq!(SeaBiosRules::version(text), None, "{text}");
    }
}

#[test]
fn the_width_and_why() {
    for (version, bits, ram, vendor, usable, because) in [
        ("1.16.2", 46, 512, CpuVendor::Intel, 46, WidthRule::NotRead),
        ("1.16.3", 40, 256, CpuVendor::Intel, 40, WidthRule::NotTrusted),
        ("1.16.3", 40, 256, CpuVendor::Amd, 40, WidthRule::Cpuid),
        ("1.16.3", 40, 256, CpuVendor::Other, 40, WidthRule::NotTrusted),
        ("1.16.3", 47, 512, CpuVendor::Intel, 46, WidthRule::SeaBiosClamp),
        ("1.17.0", 46, 512, CpuVendor::Intel, 44, WidthRule::SeaBiosClamp),
        ("1.17.0", 46, 1100, CpuVendor::Intel, 46, WidthRule::Cpuid),
    ] {
        let mut guest = seabios(version, bits, ram, &[PAIR]);
        guest.cpu.vendor = vendor;
        let width = lay_out(&guest).width;
        assert_eq!(
            (u64::from(width.usable.get()), width.because),
            (usable, because),
            "{version} {bits} {ram}"
        );
    }
}
