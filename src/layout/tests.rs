//! Geometries that were booted on real firmware, and invariants that hold for all.

use super::*;
use crate::units::{Addr, Bar, BarKind, Bytes, GIB, KIB, MIB, PhysBits};

/// A q35 guest of QEMU 7.2 with an Intel CPU that has 1 GiB pages.
pub(super) fn guest(month: &str, ram: u64, phys_bits: u64) -> Guest {
    let mut ids = 1000..;
    Guest {
        machine: MachineRules {
            chipset: Chipset::Q35,
            checks_phys_bits: true,
            relocates_around_ht_hole: true,
            gigabyte_align: true,
            aligned_dimm: true,
        },
        ram: Bytes(ram),
        hotplug: None,
        sgx_epc: Bytes::ZERO,
        max_ram_below_4g: None,
        pci_hole64: Bytes(32 * GIB),
        cpu: GuestCpu {
            vendor: CpuVendor::Intel,
            phys_bits: PhysBits::new(phys_bits).expect("phys-bits"),
            guest_phys_bits: None,
            gib_pages: true,
            la57: false,
            long_mode: true,
        },
        firmware: Firmware::Ovmf(OvmfRules::era(month).expect("a month")),
        mmio64_mb: None,
        bus: built_in(Chipset::Q35, || FunctionId(ids.next().expect("an id"))).into(),
    }
}

pub(super) fn bar(index: u8, size: u64, kind: BarKind) -> Bar {
    Bar { index, size: Bytes(size), kind }
}

/// `pci-testdev` with a large BAR.
pub(super) fn testdev(id: u32, function: u8, size: u64) -> Function {
    let bars = vec![
        bar(0, 4 * KIB, BarKind::Mem32),
        bar(1, 256, BarKind::Io),
        bar(2, size, BarKind::Mem64Prefetchable),
    ];
    Function { id: FunctionId(id), device: 0, function, bars, vga: false, usb: false, role: Role::Endpoint }
}

/// `pcie-root-port` on device 1 and up.
pub(super) fn root_port(number: u8, children: Vec<Function>) -> Function {
    Function {
        id: FunctionId(100 + u32::from(number)),
        device: number,
        function: 0,
        bars: vec![bar(0, 4 * KIB, BarKind::Mem32)],
        vga: false,
        usb: false,
        role: Role::Bridge(Bridge {
            kind: BridgeKind::RootPort,
            hotplug: true,
            reserve: Reserve::default(),
            children,
        }),
    }
}

/// Ports with two stand-in functions each: 128 GiB and 32 MiB.
fn with_ports(mut guest: Guest, ports: u8) -> Guest {
    let ports = (1..=ports).map(|n| {
        let id = u32::from(n) * 2;
        root_port(n, vec![testdev(id, 0, 128 * GIB), testdev(id + 1, 1, 32 * MIB)])
    });
    guest.bus.splice(1..1, ports);
    guest
}

/// Addresses of BAR 2 of the large functions.
fn large(layout: &Layout) -> Vec<Option<u64>> {
    let large = |bar: &&PlacedBar| bar.bar.size.get() == 128 * GIB;
    layout.bars.iter().filter(large).map(|bar| bar.address.map(Addr::get)).collect()
}

#[test]
fn four_ports_of_128_gib_need_43_bits() {
    for (month, bits, placed) in [("202211", 42, 2), ("202211", 43, 4), ("202502", 42, 2), ("202608", 43, 4)]
    {
        let layout = lay_out(&with_ports(guest(month, 4 * GIB, bits), 4));
        assert_eq!(layout.outcome, Outcome::Boots);
        assert_eq!(large(&layout).iter().flatten().count(), placed, "{month}, {bits} bits");
    }
}
