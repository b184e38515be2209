//! What differs between SeaBIOS releases, as data: one row a release that changed where BARs go.
//!
//! Source: SeaBIOS `src/fw/pciinit.c` and `src/fw/paravirt.c` at the tags `rel-1.12.0` to `rel-1.17.0`.
//! Every row was compared with the real program (1.14.0, 1.16.2, 1.16.3 and 1.17.0). Changes before 1.12.0
//! (2018) are not told apart: an older version gets the rules of 1.12.0.

use super::super::GuestCpu;
use super::super::width::is_credible;
use crate::units::TIB;

/// How a SeaBIOS release decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeaBiosRules {
    /// Version of the firmware, `1.16.2`.
    pub version: String,
    /// `pcie-pci-bridge` is padded for hot-plug like a `pci-bridge` (1.16.0 and later).
    pub pads_pcie_pci_bridge: bool,
    /// CPUID's width is read and the window sits at the top of it (1.16.3 and later).
    pub reads_phys_bits: bool,
    /// How much of CPUID's width is used.
    pub clamp: SeaBiosClamp,
    /// When 64-bit BARs go above 4 GiB even if they would fit below.
    pub padding: SeaBiosPadding,
    /// Padding replaces the alignment of a larger BAR behind the port, which then lands on an address that is
    /// not a multiple of its size (1.16.3 only).
    pub misaligns: bool,
}

/// How much of CPUID's width a SeaBIOS release uses.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SeaBiosClamp {
    /// All of it, or the width is not read at all.
    None,
    /// At most 46 bits (1.16.3).
    At46,
    /// 44 bits when there are more and RAM above 4 GiB is less than 1 TiB; all of it otherwise (1.17.0).
    At44BelowTib,
}

/// When a SeaBIOS release moves everything 64-bit above 4 GiB and pads hot-plug ports there.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SeaBiosPadding {
    /// Never: the window above 4 GiB is used only when the one below is too small.
    Never,
    /// With RAM above 4 GiB, a 64-bit CPU and a width of at least 36 bits that it trusts (1.16.3).
    TrustedWidth,
    /// With RAM above 4 GiB and a 64-bit CPU (1.17.0).
    Always,
}

/// Row of the table: the release that began it, and everything but the version.
type Row = (
    /* since */ [u32; 3],
    /* pads_pcie_pci_bridge */ bool,
    SeaBiosClamp,
    SeaBiosPadding,
    /* misaligns */ bool,
);

const ROWS: [Row; 4] = [
    // bcd82420: the reservation capability of a pci-bridge is read.
    ([1, 12, 0], false, SeaBiosClamp::None, SeaBiosPadding::Never, false),
    // bba24ef8, b06d956d.
    ([1, 16, 0], true, SeaBiosClamp::None, SeaBiosPadding::Never, false),
    // bcfed7e2, 96a8d130, 1e1da7a9, a6ed6b70.
    ([1, 16, 3], true, SeaBiosClamp::At46, SeaBiosPadding::TrustedWidth, true),
    // e5f2e4c6, ec0bc256, df9dd418.
    ([1, 17, 0], true, SeaBiosClamp::At44BelowTib, SeaBiosPadding::Always, false),
];

impl SeaBiosRules {
    /// The rules of a version as SeaBIOS or its package spells it: `1.16.2`, `rel-1.16.3-0-ga6ed6b70…`,
    /// `1.16.2-debian-1.16.2-1`. `None` when the text holds no version number.
    pub fn version(text: &str) -> Option<SeaBiosRules> {
        let number = version_number(text)?;
        let row = ROWS.iter().rev().find(|row| row.0 <= number).unwrap_or(&ROWS[0]);
        let &(_, pads_pcie_pci_bridge, clamp, padding, misaligns) = row;
        Some(SeaBiosRules {
            version: format!("{}.{}.{}", number[0], number[1], number[2]),
            pads_pcie_pci_bridge,
            reads_phys_bits: clamp != SeaBiosClamp::None,
            clamp,
            padding,
            misaligns,
        })
    }

    /// The width that the firmware works with: `None` when it reads none or takes CPUID's for meaningless.
    pub(super) fn trusted_bits(&self, cpu: &GuestCpu) -> Option<u8> {
        if !self.reads_phys_bits {
            return None;
        }
        if !cpu.long_mode {
            return Some(36); // SeaBIOS looks no further than PAE, which every CPU of QEMU with PCI has.
        }
        is_credible(cpu).then_some(cpu.phys_bits.get())
    }

    /// What is left of `bits` after the clamp, with `ram_above_4g` bytes between 4 GiB and the end of RAM.
    pub(super) fn clamped(&self, bits: u8, ram_above_4g: u64) -> u8 {
        match self.clamp {
            SeaBiosClamp::None => bits,
            SeaBiosClamp::At46 => bits.min(46),
            SeaBiosClamp::At44BelowTib if ram_above_4g < TIB => bits.min(44),
            SeaBiosClamp::At44BelowTib => bits,
        }
    }

    /// Whether everything 64-bit goes above 4 GiB.
    pub(super) fn pads(&self, cpu: &GuestCpu, ram_above_4g: u64) -> bool {
        let wanted = match self.padding {
            SeaBiosPadding::Never => false,
            SeaBiosPadding::TrustedWidth => self.trusted_bits(cpu).is_some_and(|bits| bits >= 36),
            SeaBiosPadding::Always => true,
        };
        wanted && cpu.long_mode && ram_above_4g > 0
    }
}

/// The first `major.minor[.patch]` in a text.
fn version_number(text: &str) -> Option<[u32; 3]> {
    text.split(|c: char| !(c.is_ascii_digit() || c == '.')).find_map(|word| {
        let mut parts = word.split('.').map(|part| part.parse::<u32>().ok());
        let (major, minor) = (parts.next()??, parts.next()??);
        let patch = match parts.next() {
            Some(part) => part?,
            None => 0,
        };
        Some([major, minor, patch])
    })
}
