//! How wide the IOMMU's addresses are, and what it keeps for itself.
//!
//! A BAR beyond that width cannot be mapped for other devices (peer to peer fails), and RAM beyond it stops the
//! guest. Layouts: VT-d capability register as decoded by Linux (`drivers/iommu/intel/iommu.h`: `cap_mgaw`,
//! `cap_sagaw`); AMD extended feature register, HATS (`drivers/iommu/amd/amd_iommu_types.h`). What the driver
//! decides beyond its hardware's word (first-stage tables, for one) is not modelled.

use std::fs;
use std::path::Path;

use super::read;
use crate::units::{PciAddress, Span};

/// A range of bus addresses that the kernel keeps out of a guest's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The range.
    pub span: Span,
    /// The kernel's word for it: `msi`, `direct`, `direct-relaxable`, `reserved`.
    pub kind: String,
}

/// The narrowest IOMMU that serves these functions; of all IOMMUs, where none of them is said to have one.
pub(super) fn width(root: &Path, functions: &[PciAddress]) -> Option<u8> {
    let devices = root.join("sys/bus/pci/devices");
    let own = functions.iter().filter_map(|f| unit_width(&devices.join(f.to_string()).join("iommu")));
    own.min().or_else(|| {
        let units = fs::read_dir(root.join("sys/class/iommu")).ok()?;
        units.flatten().filter_map(|unit| unit_width(&unit.path())).min()
    })
}

/// The width of one unit, by its sysfs directory.
fn unit_width(unit: &Path) -> Option<u8> {
    let attribute = |name: &str| read::attribute(&unit.join(name)).ok();
    if let Some(cap) = attribute("intel-iommu/cap") {
        return read::hex(&cap).map(vtd_width);
    }
    amd_width(&attribute("amd-iommu/features")?)
}

/// VT-d: the guest address width (MGAW), or less where the page tables (SAGAW) are shallower.
fn vtd_width(cap: u64) -> u8 {
    let mgaw = (cap >> 16 & 0x3f) as u8 + 1;
    let tables = [(3, 57), (2, 48), (1, 39)].into_iter().find(|(bit, _)| cap >> 8 & (1 << bit) != 0);
    tables.map_or(mgaw, |(_, width)| mgaw.min(width))
}

/// AMD: what the deepest host page table (HATS: 4, 5 or 6 levels) reaches.
///
/// The file holds one register, or two with a colon between: second before first in Linux 5.17 to 6.6, first
/// before second since. The first one is the larger number: it has its feature bits up to 63, the second but a few
/// low ones.
fn amd_width(features: &str) -> Option<u8> {
    let register = features.split(':').filter_map(read::hex).max().filter(|r| *r != 0)?;
    match register >> 10 & 0b11 {
        0b00 => Some(48),
        0b01 => Some(57),
        0b10 => Some(64),
        _ => None,
    }
}

/// The reserved regions of an IOMMU group; empty where the kernel lists none.
pub(super) fn reserved_regions(root: &Path, group: u32) -> Vec<ReservedRegion> {
    let path = root.join(format!("sys/kernel/iommu_groups/{group}/reserved_regions"));
    let text = read::attribute(&path).unwrap_or_default();
    text.lines().filter_map(region).collect()
}

/// `0x00000000fee00000 0x00000000feefffff msi`
fn region(line: &str) -> Option<ReservedRegion> {
    let mut words = line.splitn(3, ' ');
    let first = read::hex(words.next()?)?;
    let last = read::hex(words.next()?)?;
    let kind = words.next()?.trim().to_owned();
    let span = Span::new(first, last.checked_sub(first)?.checked_add(1)?)?;
    Some(ReservedRegion { span, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vtd_registers_decode() {
        for (cap, width) in [
            (0x1c0000c40660462, 39),  // client: MGAW 39, tables 39
            (0x8d2078c106f0466, 48),  // Xeon: MGAW 48
            (0x19ed008c40780c66, 57), // Sapphire Rapids: MGAW 57, tables to 57
            (0x19ed008c40780466, 48), // the same with tables to 48 only
            (0x2f << 16, 48),         // no second-stage tables named
        ] {
            assert_eq!(vtd_width(cap), width, "{cap:#x}");
        }
    }

    #[test]
    fn amd_registers_decode_in_either_order() {
        for (features, width) in [
            ("246577efa2254afa:10", Some(64)),
            ("10:246577efa2254afa", Some(64)),
            ("f77ef22294ada", Some(64)),
            ("246577efa22542fa:0", Some(48)),
            ("0", None),
            ("", None),
            ("c00", None),
        ] {
            assert_eq!(amd_width(features), width, "{features}");
        }
    }

    #[test]
    fn regions_read() {
        let hole = region("0x000000fd00000000 0x000000ffffffffff reserved").expect("the HyperTransport hole");
        assert_eq!((hole.span.first(), hole.span.end()), (0xfd_0000_0000, 0x100_0000_0000));
        assert_eq!(hole.kind, "reserved");
        for line in ["", "0x1 0x0 msi", "0x0 0xffffffffffffffff all", "0x0 0x1", "x y z"] {
            assert_eq!(region(line), None, "{line}");
        }
    }
}
