//! Host facts for people. For programs there is the file format itself, [`HostFacts::to_json`].

use super::Paint;
use super::table::{Side, Table, Tone, printable, shortened};
use crate::catalogue;
use crate::host::{FirmwareFile, FirmwareKind, HostFacts, PciFunction, Program};
use crate::units::GIB;

/// Widths, versions, firmware, GPUs and what else has a large BAR; other PCI functions are only counted.
pub fn host_text(facts: &HostFacts, paint: Paint) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        out.push_str(&format!("{} {}\n", paint.bold(&format!("{name:<9}")), printable(&value)))
    };
    let cpu = facts.cpu.clone().unwrap_or_default();
    let yes = |has: Option<bool>, what: &str| match has {
        Some(true) => what.to_owned(),
        Some(false) => format!("no {what}"),
        None => format!("{what} not known"),
    };
    line(
        "CPU",
        format!(
            "{}, {}, {}, {}",
            cpu.vendor.as_deref().unwrap_or("vendor not known"),
            cpu.phys_bits.map_or_else(|| "width not known".to_owned(), |bits| format!("{bits} phys-bits")),
            yes(cpu.pdpe1gb, "1 GiB pages"),
            yes(cpu.la57, "5-level paging"),
        ),
    );
    line(
        "IOMMU",
        facts.iommu_bits.map_or_else(|| "width not known".to_owned(), |bits| format!("{bits} bits")),
    );
    let version = |program: &Option<Program>| program.as_ref().map_or("not known", |p| &p.version).to_owned();
    line("QEMU", version(&facts.qemu));
    line("libvirt", version(&facts.libvirt));
    if facts.firmware.is_empty() {
        line("Firmware", "none known".to_owned());
    } else {
        out.push_str(&format!("\n{}\n{}", paint.bold("Firmware"), firmware(&facts.firmware, paint)));
    }
    let (shown, others): (Vec<&PciFunction>, Vec<&PciFunction>) =
        facts.pci.iter().partition(|function| is_gpu(function) || largest(function) >= GIB);
    out.push_str(&format!("\n{}\n", paint.bold("GPUs, and what else has a BAR of 1 GiB or more")));
    if shown.is_empty() {
        out.push_str("  none\n");
    } else {
        out.push_str(&functions(&shown, paint));
    }
    out.push_str(&format!("  {} other PCI functions\n", others.len()));
    out
}

fn firmware(files: &[FirmwareFile], paint: Paint) -> String {
    let mut table = Table::new(&[("PATH", Side::Left), ("RULES", Side::Left), ("X-PciMmio64Mb", Side::Left)]);
    for file in files {
        let (rules, window) = match file.kind {
            FirmwareKind::Seabios => {
                (format!("SeaBIOS {}", file.version.as_deref().unwrap_or("of unknown version")), "not read")
            }
            FirmwareKind::Ovmf => (
                format!("OVMF {}", file.era.as_deref().unwrap_or("of unknown era")),
                match file.fw_cfg_override {
                    Some(true) => "exact size",
                    Some(false) => "at least",
                    None => "not known",
                },
            ),
        };
        table.row([
            (printable(&file.path.display().to_string()), Tone::Plain),
            (printable(&rules), Tone::Plain),
            (window.to_owned(), Tone::Plain),
        ]);
    }
    table.text(2, paint)
}

fn functions(functions: &[&PciFunction], paint: Paint) -> String {
    let mut table = Table::new(&[
        ("ADDRESS", Side::Left),
        ("ID", Side::Left),
        ("NAME", Side::Left),
        ("GROUP", Side::Right),
        ("NODE", Side::Right),
        ("BARS", Side::Left),
    ]);
    let number = |n: Option<u32>| n.map_or_else(String::new, |n| n.to_string());
    for function in functions {
        let known = catalogue::by_id(&function.vendor, &function.device);
        let name = known.map_or_else(|| format!("class {}", function.class), |entry| entry.name.to_owned());
        let bars = function.bars.as_ref().map(|bars| {
            bars.iter()
                .filter(|bar| !bar.is_rom())
                .map(|bar| bar.size.to_string())
                .collect::<Vec<_>>()
                .join(" + ")
        });
        let bars = bars.map_or_else(|| ("not known".to_owned(), Tone::Doubtful), |bars| (bars, Tone::Plain));
        table.row([
            (function.address.to_string(), Tone::Plain),
            (format!("{}:{}", function.vendor, function.device), Tone::Faint),
            (shortened(&name, 28), Tone::Plain),
            (number(function.iommu_group), Tone::Plain),
            (number(function.numa_node), Tone::Plain),
            bars,
        ]);
    }
    table.text(2, paint)
}

fn is_gpu(function: &PciFunction) -> bool {
    catalogue::is_gpu(&function.class, &function.vendor, &function.device)
}

fn largest(function: &PciFunction) -> u64 {
    let bars = function.bars.iter().flatten();
    bars.map(|bar| bar.size.get()).max().unwrap_or(0)
}
