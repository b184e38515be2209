//! How many address bits OVMF uses.
//!
//! Source: edk2 OvmfPkg/Library/PlatformInitLib/MemDetect.c (`PlatformAddressWidthFromCpuid`,
//! `PlatformAddressWidthInitialization`, `PlatformSetupPagingLevel`). SeaBIOS has rules of its own.

use super::window::Classic;
use super::{CpuVendor, Guest, GuestCpu, OvmfRules, Width, WidthRule};
use crate::units::{PhysBits, TIB};

/// Without 1 GiB pages the page tables of a wider space would take too much memory.
const WITHOUT_GIB_PAGES: u8 = 40;
/// Narrowest width that OVMF assumes when it does not know better.
const NARROWEST_GUESS: u8 = 36;

/// The width OVMF uses; `None` as the second part when it does not trust CPUID and guesses from what it needs.
pub(super) fn ovmf_width(guest: &Guest, rules: &OvmfRules, classic: &Classic) -> (Width, Option<PhysBits>) {
    let cpu = &guest.cpu;
    let cpuid = cpu.phys_bits;
    let gphys = cpu.guest_phys_bits.filter(|_| rules.reads_guest_phys_bits);
    let trusted = rules.reads_cpuid && (gphys.is_some() || is_credible(cpu));
    if !trusted {
        let because = if rules.reads_cpuid { WidthRule::NotTrusted } else { WidthRule::NotRead };
        return (Width { cpuid, usable: guessed(classic.end), because }, None);
    }
    let mut usable = cpuid;
    let mut because = WidthRule::Cpuid;
    let mut clamp = |to: u8, why: WidthRule| {
        if let Some(to) = PhysBits::new(u64::from(to)).filter(|to| *to < usable) {
            usable = to;
            because = why;
        }
    };
    if let Some(gphys) = gphys {
        clamp(gphys.get(), WidthRule::GuestPhysBits);
    }
    let five_level =
        rules.five_level && cpu.la57 && cpu.gib_pages && !(rules.four_level_below_1t && classic.end < TIB);
    if !five_level {
        clamp(rules.clamp, WidthRule::PagingClamp);
    } else if gphys.is_none() {
        clamp(48, WidthRule::PagingClamp);
    }
    if !cpu.gib_pages || !rules.gib_page_tables {
        clamp(WITHOUT_GIB_PAGES, WidthRule::NoGibPages);
    }
    (Width { cpuid, usable, because }, Some(usable))
}

/// Whether CPUID's width is more than QEMU's default, by which no firmware can go. OVMF and SeaBIOS judge alike.
pub(super) fn is_credible(cpu: &GuestCpu) -> bool {
    matches!(
        (cpu.vendor, cpu.phys_bits.get()),
        (_, 41..) | (CpuVendor::Intel, 36 | 39) | (CpuVendor::Amd, 40)
    )
}

/// Bits that hold every address below `end`, at least 36.
fn guessed(end: u64) -> PhysBits {
    let bits = u64::from(64 - end.saturating_sub(1).leading_zeros());
    PhysBits::new(bits.max(u64::from(NARROWEST_GUESS))).unwrap_or(PhysBits::MAX)
}
