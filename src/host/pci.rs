//! PCI functions as sysfs shows them: ids, class, group, node, and the BARs with the sizes they have right now.
//!
//! `resource` holds one line a BAR (first address, last address, flags), line 6 the expansion ROM; what follows are
//! SR-IOV VF BARs and bridge windows, which a guest that is given this function never sees. An unassigned BAR keeps
//! its size there (from 0 on); one that the kernel gave up on becomes a line of zeros, and only the register in
//! `config` still tells. Flags: Linux `include/linux/ioport.h`, which promises not to move them. `modalias` holds the
//! ids and the class in one line (`modalias_show`, Linux `drivers/pci/pci-sysfs.c`; what it looks like is fixed by
//! `file2alias`); they are read one by one only where it does not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::PciFunction;
use super::read;
use crate::catalogue;
use crate::units::{Bar, BarKind, Bytes, PciAddress};

const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_TYPE_BITS: u64 = 0x1f00;
const IORESOURCE_PREFETCH: u64 = 0x2000;
const IORESOURCE_MEM_64: u64 = 0x10_0000;

/// The frame buffer BAR of every GPU known is larger than this.
const LARGE: u64 = 128 << 20;

const BARS: u8 = 6;
const ROM: u8 = Bar::ROM;

/// Why a PCI function could not be read.
#[derive(Debug, Error)]
pub enum PciError {
    /// There is no such function.
    #[error("there is no PCI function {0} on this host")]
    Missing(PciAddress),
    /// One of its files cannot be read, or went away while it was.
    #[error("cannot read `{file}` of PCI function {address}")]
    Unreadable {
        /// Which function.
        address: PciAddress,
        /// Name of the file in its sysfs directory.
        file: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// One of its files does not hold what the kernel writes there.
    #[error("`{file}` of PCI function {address} holds `{content}`")]
    Malformed {
        /// Which function.
        address: PciAddress,
        /// Name of the file in its sysfs directory.
        file: &'static str,
        /// What it holds, cut short.
        content: String,
    },
}

/// What a guest sees of one function: its ids and BARs. Where it stands in this host is left out.
pub(super) fn function(root: &Path, address: PciAddress) -> Result<PciFunction, PciError> {
    let dir = folder(root, address);
    let attribute = |file: &'static str| match read::attribute(&dir.join(file)) {
        Ok(text) => Ok(text),
        Err(_) if !dir.exists() => Err(PciError::Missing(address)),
        Err(source) => Err(PciError::Unreadable { address, file, source }),
    };
    let id = |file: &'static str, digits: usize| {
        let text = attribute(file)?;
        match text.strip_prefix("0x") {
            Some(hex) if hex.len() == digits && read::hex(hex).is_some() => Ok(hex.to_ascii_lowercase()),
            _ => Err(PciError::Malformed { address, file, content: text.chars().take(40).collect() }),
        }
    };
    let resource = attribute("resource")?;
    let lines = parse_resource(&resource).ok_or_else(|| PciError::Malformed {
        address,
        file: "resource",
        content: resource.chars().take(40).collect(),
    })?;
    let ids = read::attribute(&dir.join("modalias")).ok().and_then(|text| parse_modalias(&text));
    let (vendor, device, class) = match ids {
        Some(ids) => ids,
        None => (id("vendor", 4)?, id("device", 4)?, id("class", 6)?),
    };
    // Reading `config` wakes a device that sleeps, so only where something is missing: no GPU has but small BARs.
    // A VF's registers are zero whatever it has.
    let forgotten = catalogue::is_gpu(&class, &vendor, &device)
        && lines.iter().all(|line| line.size < LARGE)
        && !dir.join("physfn").exists()
        && config_has_other_bars(&dir, &lines);
    let bars = if forgotten { None } else { lines.into_iter().map(Line::bar).collect() };
    Ok(PciFunction { address, vendor, device, class, iommu_group: None, numa_node: None, bars })
}

fn folder(root: &Path, address: PciAddress) -> PathBuf {
    root.join(format!("sys/bus/pci/devices/{address}"))
}

/// All functions, by address, with their groups and nodes, and a note on each that could not be read.
pub(super) fn functions(root: &Path) -> (Vec<PciFunction>, Vec<String>) {
    let mut addresses: Vec<PciAddress> = fs::read_dir(root.join("sys/bus/pci/devices"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    addresses.sort_unstable();
    let mut notes = Vec::new();
    let mut found = Vec::with_capacity(addresses.len());
    for address in addresses {
        match function(root, address) {
            Ok(function) => {
                if function.bars.is_none() {
                    notes.push(format!("the kernel does not know the BAR sizes of {address}"));
                }
                let dir = folder(root, address);
                // -1 where the machine has no nodes
                let node = read::attribute(&dir.join("numa_node")).ok().and_then(|node| node.parse().ok());
                found.push(PciFunction { iommu_group: group(&dir), numa_node: node, ..function });
            }
            Err(error) => notes.push(error.to_string()),
        }
    }
    (found, notes)
}

/// Whether a function is PCI Express, by its capability list; `None` where that cannot be read (it takes root).
/// A device that sleeps is woken up by this.
pub(super) fn is_express(root: &Path, address: PciAddress) -> Option<bool> {
    let dir = folder(root, address);
    let config = read::bytes(&dir.join("config"), 256).ok()?;
    let byte = |at: u8| config.get(usize::from(at)).copied();
    if byte(0x06)? & 0x10 == 0 {
        return Some(false);
    }
    let mut next = byte(0x34)? & !0b11;
    // 48 capabilities fill the whole space: a longer list runs in a circle.
    for _ in 0..48 {
        if next == 0 {
            return Some(false);
        }
        if byte(next)? == 0x10 {
            return Some(true);
        }
        next = byte(next + 1)? & !0b11;
    }
    None
}

fn group(dir: &Path) -> Option<u32> {
    fs::read_link(dir.join("iommu_group")).ok()?.file_name()?.to_str()?.parse().ok()
}

/// Vendor, device and class as their own files have them, from `pci:v000010DEd00002330sv…sd…bc03sc02i00`.
fn parse_modalias(text: &str) -> Option<(String, String, String)> {
    let mut rest = text.strip_prefix("pci:")?;
    let mut part = |name: &str, digits: usize| {
        let (value, after) = rest.strip_prefix(name)?.split_at_checked(digits)?;
        rest = after;
        value.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| value.to_ascii_lowercase())
    };
    let ids = [part("v", 8)?, part("d", 8)?, part("sv", 8)?, part("sd", 8)?];
    let class = part("bc", 2)? + &part("sc", 2)? + &part("i", 2)?;
    let [vendor, device, ..] = ids.map(|id| id.strip_prefix("0000").map(str::to_owned));
    Some((vendor?, device?, class))
}

/// A line of `resource` that is in use.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Line {
    index: u8,
    size: u64,
    kind: BarKind,
}

impl Line {
    /// The BAR, or `None` when its size is not one that a BAR can have.
    fn bar(self) -> Option<Bar> {
        let Line { index, size, kind } = self;
        size.is_power_of_two().then_some(Bar { index, size: Bytes(size), kind })
    }
}

/// What most lines are.
const UNUSED: &str = "0x0000000000000000 0x0000000000000000 0x0000000000000000";

/// The lines of a `resource` file that stand for a BAR or the ROM; `None` when it is not such a file.
fn parse_resource(text: &str) -> Option<Vec<Line>> {
    let mut lines = Vec::new();
    for (index, line) in (0..=ROM).zip(text.lines()).filter(|(_, line)| *line != UNUSED) {
        let mut words = line.split_ascii_whitespace().map(read::hex);
        let (first, last, flags) = (words.next()??, words.next()??, words.next()??);
        let kind = match flags & IORESOURCE_TYPE_BITS {
            IORESOURCE_IO => BarKind::Io,
            // The kernel marks every ROM as prefetchable; its register cannot be.
            IORESOURCE_MEM if index == ROM => BarKind::Mem32,
            IORESOURCE_MEM => match (flags & IORESOURCE_MEM_64 != 0, flags & IORESOURCE_PREFETCH != 0) {
                (false, false) => BarKind::Mem32,
                (false, true) => BarKind::Mem32Prefetchable,
                (true, false) => BarKind::Mem64,
                (true, true) => BarKind::Mem64Prefetchable,
            },
            0 => continue,
            _ => return None,
        };
        // Both ends 0: the kernel has a type but no size.
        let size = if last == 0 { 0 } else { last.checked_sub(first)?.saturating_add(1) };
        lines.push(Line { index, size, kind });
    }
    Some(lines)
}

/// Whether the registers show a BAR that `resource` does not: one for which the kernel found no room and which it
/// then forgot. The first 64 bytes of `config` are readable by everyone.
fn config_has_other_bars(dir: &Path, lines: &[Line]) -> bool {
    let Ok(config) = read::bytes(&dir.join("config"), 64) else { return false };
    let endpoint = config.get(0x0e).is_some_and(|header| header & 0x7f == 0);
    let answers = config.get(..2).is_some_and(|vendor| vendor != [0xff, 0xff]);
    if !endpoint || !answers {
        return false;
    }
    let mut upper_half = false;
    for (index, register) in (0..BARS).zip(config[0x10..].chunks_exact(4)) {
        if upper_half {
            upper_half = false;
            continue;
        }
        let memory_64 = register[0] & 0b111 == 0b100;
        upper_half = memory_64;
        if register != [0; 4] && !lines.iter().any(|line| line.index == index) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, KIB, MIB};
    use proptest::prelude::*;

    fn bars(text: &str) -> Option<Vec<Bar>> {
        parse_resource(text)?.into_iter().map(Line::bar).collect()
    }

    fn bar(index: u8, size: u64, kind: BarKind) -> Bar {
        Bar { index, size: Bytes(size), kind }
    }

    #[test]
    fn a_hopper_card_has_three_wide_bars() {
        let text = "0x000038c002000000 0x000038c002ffffff 0x000000000014220c\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x000038a000000000 0x000038bfffffffff 0x000000000014220c\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                    0x000038c000000000 0x000038c001ffffff 0x000000000014220c\n";
        let wide = BarKind::Mem64Prefetchable;
        let expected = vec![bar(0, 16 * MIB, wide), bar(2, 128 * GIB, wide), bar(4, 32 * MIB, wide)];
        assert_eq!(bars(text), Some(expected));
    }

    #[test]
    fn each_line_means_one_thing() {
        for (line, index, expected) in [
            ("0xb7000000 0xb7ffffff 0x40200", 0, Some((16 * MIB, BarKind::Mem32))),
            ("0xb7000000 0xb7ffffff 0x42208", 0, Some((16 * MIB, BarKind::Mem32Prefetchable))),
            ("0x4000080000 0x40000fffff 0x140204", 0, Some((512 * KIB, BarKind::Mem64))),
            ("0xf000 0xf0ff 0x40101", 4, Some((256, BarKind::Io))),
            ("0x3f6 0x3f6 0x110", 1, Some((1, BarKind::Io))),
            ("0xc2280000 0xc229ffff 0x46200", 6, Some((128 * KIB, BarKind::Mem32))),
            ("0xc0000 0xdffff 0x212", 6, Some((128 * KIB, BarKind::Mem32))),
            // unassigned: from 0, size kept
            ("0x0 0x1fffffffff 0x2014220c", 2, Some((128 * GIB, BarKind::Mem64Prefetchable))),
            ("0x0 0x0 0x0", 3, None),
        ] {
            let text = "0x0 0x0 0x0\n".repeat(index) + line;
            let index = index as u8;
            let expected = expected.map(|(size, kind)| bar(index, size, kind)).into_iter().collect();
            assert_eq!(bars(&text), Some(expected), "{line}");
        }
    }

    #[test]
    fn ids_stand_in_one_line() {
        let read =
            |text| parse_modalias(text).map(|(vendor, device, class)| format!("{vendor} {device} {class}"));
        let h100 = "pci:v000010DEd00002330sv000010DEsd000016C1bc03sc02i00";
        assert_eq!(read(h100).as_deref(), Some("10de 2330 030200"));
        for text in [
            "",
            "pci:v000010DEd00002330sv000010DEsd000016C1bc03sc02i0",
            "pci:v000010DEd00002330sv000010DEsd000016C1bc03sc02i0x",
            "pci:v100010DEd00002330sv000010DEsd000016C1bc03sc02i00",
            "pci:v000010DEd0000é",
            "usb:v1D6Bp0002d0606dc09dsc00dp01ic09isc00ip00in00",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn lines_beyond_the_rom_are_not_bars() {
        let text = "0x0 0x0 0x0\n".repeat(7) + "0x205e00000000 0x205effffffff 0x14220c\n";
        assert_eq!(bars(&text), Some(vec![]));
        assert_eq!(bars(""), Some(vec![]));
    }

    #[test]
    fn a_size_that_no_bar_has_is_unknown() {
        for text in ["0x1000 0x1fff2 0x40200", "0x0 0x0 0x40200", "0x0 0xffffffffffffffff 0x14220c"] {
            assert_eq!(bars(text), None, "{text}");
        }
        for text in
            ["garbage", "0x1 0x2", "0x2000 0x1000 0x200", "0x0 0x1 0x300", "0x0 0x10000000000000000 0x200"]
        {
            assert_eq!(parse_resource(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_resource_file_is_read_or_refused(text in r"(0x[0-9a-f]{0,17}|[ \n]|\PC){0,80}") {
            for line in parse_resource(&text).unwrap_or_default() {
                prop_assert!(line.index <= ROM);
            }
        }

        #[test]
        fn what_the_kernel_writes_is_understood(
            shifts in proptest::collection::vec(7u32..40, 0..7),
            base in 0u64..1 << 20,
            flags in prop::sample::select(vec![0x40101, 0x40200, 0x42208, 0x14_0204, 0x14_220c]),
        ) {
            let line = |s: &u32| {
                let first = (base << 30).next_multiple_of(1 << s);
                format!("{first:#018x} {:#018x} {flags:#018x}\n", first + (1 << s) - 1)
            };
            let text: String = shifts.iter().map(line).collect();
            let sizes: Vec<u64> = bars(&text).expect("well formed").iter().map(|b| b.size.get()).collect();
            prop_assert_eq!(sizes, shifts.iter().map(|s| 1u64 << s).collect::<Vec<_>>());
        }
    }
}
