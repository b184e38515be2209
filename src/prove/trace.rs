//! Follows QEMU's trace of a booting firmware, line by line, and knows from it when enumeration is over and
//! what is mapped at that moment.
//!
//! OVMF and SeaBIOS fetch the ACPI tables (fw_cfg file `etc/table-loader`) after they have placed every BAR,
//! and with memory decoding switched on for every device that has a place (QEMU's tables describe what is
//! decoded then; edk2 OvmfPkg/AcpiPlatformDxe/PciDecoding.c, SeaBIOS src/fw/paravirt.c). Shortly afterwards
//! OVMF switches decoding off again, so a look from outside would come too early or too late. The trace is
//! written by the virtual CPU's own thread: the mappings seen before the selection of that file are exactly
//! those that the firmware has made. Measured with OVMF 2020.11, 2022.11, 2025.02, 2026.08 and SeaBIOS 1.14 to
//! 1.17.
//!
//! It knows no guest and no devices, only bus numbers.

use std::collections::{BTreeMap, BTreeSet};

/// The trace events to switch on.
pub const EVENTS: [&str; 3] = ["fw_cfg_add_file", "fw_cfg_select", "pci_update_mappings*"];

/// The firmware has written an address into a BAR that is decoded.
const ADD: &str = "pci_update_mappings_add ";

/// The file that is fetched when every BAR has its place.
const LAST: &str = "etc/table-loader";

/// fw_cfg's first key for a named file (`FW_CFG_FILE_FIRST`); files are numbered in the order of their names.
const FIRST_FILE: usize = 0x20;

/// A BAR by its place at this moment: bus, slot, function, register.
pub type Register = (u8, u8, u8, u8);

/// What a line meant.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing that the firmware did.
    Other,
    /// The firmware did something.
    Progress,
    /// The firmware has placed all BARs.
    Done,
}

/// What the trace has told so far.
#[derive(Debug, Default)]
pub struct Trace {
    files: BTreeSet<String>,
    mapped: BTreeMap<Register, u64>,
}

impl Trace {
    /// Takes the next line.
    pub fn line(&mut self, line: &str) -> Step {
        if let Some(rest) = after(line, ADD) {
            if let Some((register, address)) = mapping(rest) {
                self.mapped.insert(register, address);
            }
            Step::Progress
        } else if let Some(rest) = after(line, "pci_update_mappings_del ") {
            if let Some((register, _)) = mapping(rest) {
                self.mapped.remove(&register);
            }
            Step::Progress
        } else if let Some(rest) = after(line, "fw_cfg_select ") {
            let key = after(rest, "key 0x").and_then(|t| t.get(..4));
            match key.and_then(|k| usize::from_str_radix(k, 16).ok()) {
                Some(key) if Some(key) == self.last_key() => Step::Done,
                _ => Step::Progress,
            }
        } else {
            // "fw_cfg_add_file … #3: etc/e820 (40 bytes)"
            let file = after(line, "fw_cfg_add_file ").and_then(|rest| after(rest, ": "));
            if let Some((name, _)) = file.and_then(|t| t.rsplit_once(" (")) {
                self.files.insert(name.to_owned());
            }
            Step::Other
        }
    }

    /// What is mapped now.
    pub fn mapped(&self) -> &BTreeMap<Register, u64> {
        &self.mapped
    }

    fn last_key(&self) -> Option<usize> {
        Some(FIRST_FILE + self.files.iter().position(|name| name == LAST)?)
    }
}

/// Whether a line says that a BAR has got an address.
pub(super) fn maps(line: &str) -> bool {
    line.contains(ADD)
}

fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.split_once(mark).map(|(_, rest)| rest)
}

/// `pci-testdev 01:00.0 2,0x38000000000+0x400000000`, the device's name first.
fn mapping(text: &str) -> Option<(Register, u64)> {
    let mut words = text.trim_end().rsplit(' ');
    let (bar, range) = words.next()?.split_once(',')?;
    let (bus, rest) = words.next()?.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let (base, _) = range.strip_prefix("0x")?.split_once('+')?;
    let hex = |text| u8::from_str_radix(text, 16).ok();
    Some(((hex(bus)?, hex(slot)?, hex(function)?, bar.parse().ok()?), u64::from_str_radix(base, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a real boot (OVMF 2025.02), shortened.
    const BOOT: &str = "\
fw_cfg_add_file 0x56355b7b51e0 #1: etc/e820 (40 bytes)
fw_cfg_add_file 0x56355b7b51e0 #2: etc/table-loader (4096 bytes)
fw_cfg_add_file 0x56355b7b51e0 #0: etc/acpi/tables (131072 bytes)
qemu-system-x86_64: warning: TCG doesn't support requested feature: CPUID.01H:ECX.pcid [bit 17]
fw_cfg_select 0x56355b7b51e0 key 0x0021 'unknown', ret: 1
pci_update_mappings_add pci-testdev 01:00.0 2,0x38000000000+0x400000000
pci_update_mappings_del pci-testdev 01:00.0 2,0x38000000000+0x400000000
pci_update_mappings_add pci-testdev 01:00.0 1,0x6000+0x100
1234@1700000000.123456:pci_update_mappings_add ich9-ahci 00:1f.2 5,0x80201000+0x1000
fw_cfg_select 0x56355b7b51e0 key 0x0022 'unknown', ret: 1";

    #[test]
    fn the_table_loader_ends_it() {
        let mut trace = Trace::default();
        let steps: Vec<Step> = BOOT.lines().map(|line| trace.line(line)).collect();
        assert_eq!(steps.iter().filter(|s| **s == Step::Done).count(), 1);
        assert_eq!(steps.last(), Some(&Step::Done));
        assert_eq!(steps[3], Step::Other);
        let mapped: Vec<_> = trace.mapped().iter().collect();
        assert_eq!(mapped, [(&(0, 0x1f, 2, 5), &0x8020_1000), (&(1, 0, 0, 1), &0x6000)]);
    }
}
