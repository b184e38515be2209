//! QEMU's memory map of a PC: where RAM, hot-plug memory and the HyperTransport hole lie, and when QEMU
//! refuses to start because of them.
//!
//! Sources: QEMU hw/i386/pc_q35.c and pc_piix.c (split at 4 GiB), hw/i386/pc.c (`pc_memory_init`,
//! `pc_pci_hole64_start`, `pc_max_used_gpa`); read at 7.2 and 10.0. CXL windows are not known here.

use super::{Chipset, CpuVendor, Guest, RamMap};
use crate::units::{Addr, Bytes, GIB, PhysBits, Span, TIB, align_up};

/// Start of the range that AMD's IOMMU keeps for HyperTransport.
const HT_START: u64 = 0xfd_0000_0000;
/// Where RAM above 4 GiB starts instead when it would reach into that range.
const ABOVE_HT: u64 = TIB;

/// QEMU's memory map of this guest.
///
/// Sums that leave 64 bits saturate: such a guest is refused anyway.
pub fn ram_map(guest: &Guest) -> RamMap {
    let (below, above) = split(guest);
    let mut start = 4 * GIB;
    let mut ends = Ends::new(guest, start, above);
    let hole = has_ht_hole(guest);
    if hole && guest.machine.relocates_around_ht_hole && ends.max_used(guest) >= HT_START {
        start = ABOVE_HT;
        ends = Ends::new(guest, start, above);
    }
    let mut reserved = Vec::new();
    if hole && guest.machine.relocates_around_ht_hole && guest.cpu.phys_bits >= PhysBits::QEMU_DEFAULT {
        reserved.extend(Span::new(HT_START, ABOVE_HT - HT_START));
    }
    reserved.extend(ends.sgx_epc);
    RamMap {
        below_4g: Bytes(below),
        above_4g: Span::new(start, above),
        sgx_epc: ends.sgx_epc,
        hotplug: ends.hotplug,
        reserved,
        top: Addr(ends.top),
        max_used: Addr(ends.max_used(guest)),
    }
}

/// Whether QEMU refuses to start this guest: `phys-bits too low`.
pub fn refuses(guest: &Guest, map: &RamMap) -> bool {
    guest.machine.checks_phys_bits && guest.cpu.phys_bits.limit() - 1 < map.max_used.get()
}

/// Bytes of RAM below and above 4 GiB.
fn split(guest: &Guest) -> (u64, u64) {
    let ram = guest.ram.get();
    let cap = guest.max_ram_below_4g.map(Bytes::get).unwrap_or(match guest.machine.chipset {
        Chipset::Q35 => 4 * GIB,
        Chipset::I440fx => 0xe000_0000,
    });
    let low = match guest.machine.chipset {
        Chipset::Q35 if ram >= 0xb000_0000 => cap.min(0x8000_0000),
        Chipset::Q35 => cap.min(0xb000_0000),
        Chipset::I440fx if ram >= cap && guest.machine.gigabyte_align => cap.min(0xc000_0000),
        Chipset::I440fx => cap,
    };
    (ram.min(low), ram.saturating_sub(low))
}

fn has_ht_hole(guest: &Guest) -> bool {
    guest.cpu.vendor == CpuVendor::Amd
}

/// Where things end for a given start of the RAM above 4 GiB.
struct Ends {
    sgx_epc: Option<Span>,
    hotplug: Option<Span>,
    /// End of everything, before rounding.
    top: u64,
}

impl Ends {
    fn new(guest: &Guest, start: u64, above: u64) -> Ends {
        let ram_end = start.saturating_add(above);
        let sgx_epc = Span::new(ram_end, guest.sgx_epc.get());
        let above_end = sgx_epc.map_or(ram_end, Span::end);
        let hotplug = guest.hotplug.filter(|area| area.max > guest.ram).and_then(|area| {
            let gap = if guest.machine.aligned_dimm { u64::from(area.slots).saturating_mul(GIB) } else { 0 };
            let size = (area.max.get() - guest.ram.get()).saturating_add(gap);
            let base = align_up(above_end, GIB)?;
            Span::new(base, size)
        });
        Ends { sgx_epc, hotplug, top: hotplug.map_or(above_end, Span::end) }
    }

    /// Last address that must lie below 2^phys-bits.
    fn max_used(&self, guest: &Guest) -> u64 {
        if guest.cpu.phys_bits == PhysBits::MIN {
            return PhysBits::MIN.limit() - 1;
        }
        let hole = align_up(self.top, GIB).unwrap_or(u64::MAX);
        hole.saturating_add(guest.pci_hole64.get()).saturating_sub(1)
    }
}
