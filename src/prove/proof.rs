//! One guest asked, from the numbers to the verdict: what the local QEMU cannot have is replaced by the nearest
//! that it can, devices by stand-ins, and prediction and truth are put side by side.

use super::compare::{Agreement, compare};
use super::observe::{Limits, Observed, Seen, boot};
use super::stand_in::{StandIn, stand_in};
use super::{Result, Rig};
use crate::layout::{Firmware, FunctionId, Guest, Layout, PlacedBar, lay_out};
use crate::units::{BarKind, Bytes};

/// A guest, predicted and seen.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The guest as it was booted.
    pub stand: StandIn,
    /// What was predicted for it.
    pub predicted: Layout,
    /// What was seen.
    pub observed: Observed,
    /// How the two agree, the Linux guest's word included if there is one.
    pub agreement: Agreement,
    /// What differs from the guest that was asked about, in words.
    pub notes: Vec<String>,
}

impl Proof {
    /// The firmware was done, and did what was predicted.
    pub fn is_as_predicted(&self) -> bool {
        self.agreement.holds() && self.observed.seen != Seen::TimedOut
    }
}

/// Asks about one guest.
///
/// # Errors
/// As [`boot`].
pub fn prove(rig: &Rig, guest: &Guest, limits: &Limits) -> Result<Proof> {
    let (nearest, mut notes) = nearest(guest);
    let mut stand = stand_in(&nearest)?;
    notes.append(&mut stand.notes);
    let predicted = lay_out(&stand.guest);
    let observed = boot(rig, &stand, limits)?;
    let mut agreement = compare(&predicted, &observed.seen);
    if let Some(console) = &observed.console {
        compare_linux(&predicted, &stand.guest.firmware, &observed, console, &mut agreement);
    }
    Ok(Proof { stand, predicted, observed, agreement, notes })
}

/// The guest that this machine's QEMU can have.
fn nearest(guest: &Guest) -> (Guest, Vec<String>) {
    let mut near = guest.clone();
    let mut notes = Vec::new();
    if !near.machine.checks_phys_bits {
        near.machine.checks_phys_bits = true;
        notes.push("the QEMU here checks phys-bits at the start; the guest's does not".to_owned());
    }
    if !near.machine.gigabyte_align || !near.machine.aligned_dimm {
        near.machine.gigabyte_align = true;
        near.machine.aligned_dimm = true;
        notes.push("the machine type is older than 2.4; a newer one was booted".to_owned());
    }
    if near.sgx_epc != Bytes::ZERO {
        near.ram = near.ram.checked_add(near.sgx_epc).unwrap_or(near.ram);
        near.sgx_epc = Bytes::ZERO;
        notes.push("SGX memory was booted as plain RAM".to_owned());
    }
    if let Some(bits) = near.cpu.guest_phys_bits.take() {
        near.cpu.phys_bits = near.cpu.phys_bits.min(bits);
        notes.push(format!("guest-phys-bits {bits} was booted as the CPU's width"));
    }
    (near, notes)
}

/// Lines in which the kernel says that a BAR or a window found no place: what is lost first.
pub fn complaints(console: &str) -> Vec<&str> {
    let lost = ["no space", "failed to assign", "can't assign"];
    let has = |line: &str, marks: &[&str]| marks.iter().any(|mark| line.contains(mark));
    // An initramfs may repeat the kernel's log with a mark in front.
    let lines = console.lines().filter(|line| !line.starts_with("dmesg "));
    let mut lines: Vec<&str> =
        lines.filter(|line| has(line, &lost) || has(line, &["can't claim"])).map(str::trim_end).collect();
    lines.sort_by_key(|line| !has(line, &lost));
    lines
}

/// The last line of a guest that has listed what it uses.
const LISTED: &str = "barfit: end";

/// Whether Linux uses a BAR: its initramfs lists those as `bar ADDRESS INDEX START END FLAGS` (sysfs's `resource`).
/// `None` when it lists nothing.
pub fn used_by_linux(observed: &Observed, function: FunctionId, index: u8) -> Option<bool> {
    let console = observed.console.as_ref().filter(|console| console.contains(LISTED))?;
    let (bus, slot, f, _) = observed.registers.get(&(function, index))?;
    let start = format!("bar 0000:{bus:02x}:{slot:02x}.{f:x} {index} 0x");
    let line = console.lines().find_map(|line| line.strip_prefix(start.as_str()));
    // The kernel forgets what a BAR was that it finds no place for, or shows it from 0 on.
    Some(line.is_some_and(|line| line.chars().take_while(char::is_ascii_hexdigit).any(|c| c != '0')))
}

fn compare_linux(
    predicted: &Layout,
    firmware: &Firmware,
    observed: &Observed,
    console: &str,
    agreement: &mut Agreement,
) {
    if !console.contains(LISTED) {
        return;
    }
    // What Linux finds for a device that OVMF has dropped is luck, and nobody predicts it.
    let may_rescue = matches!(firmware, Firmware::Ovmf(_));
    let memory = |bar: &&PlacedBar| bar.bar.kind != BarKind::Io && !bar.bar.is_rom();
    for guess in predicted.bars.iter().filter(memory) {
        let expected = guess.address.is_some() && (guess.reachable || guess.rescued);
        let id = guess.function;
        if used_by_linux(observed, id, guess.bar.index)
            .is_some_and(|used| used != expected && !(used && may_rescue))
        {
            agreement.placed = false;
            agreement.differences.push(format!(
                "BAR {} ({}) of function {}: Linux {} it, which was not predicted",
                guess.bar.index,
                guess.bar.size,
                id.0,
                if expected { "cannot use" } else { "uses" }
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Seen;
    use super::*;

    /// Lines of a real guest (SeaBIOS 1.16.2, 40 bits, 512 GiB).
    const CONSOLE: &str = "\
[    0.612345] pci 0000:00:03.0: bridge window [mem 0x12000000000-0x15fffffffff 64bit pref]: can't claim; no compatible bridge window
[    0.712345] pci 0000:00:02.0: PCI bridge to [bus 01]
[    0.812345] pci 0000:02:00.0: BAR 2: no space for [mem size 0x2000000000 64bit pref]
dmesg [    0.812345] pci 0000:02:00.0: BAR 2: no space for [mem size 0x2000000000 64bit pref]
bar 0000:02:00.0 2 0x0000000000000000 0x0000001fffffffff 0x000000000014220c
bar 0000:01:00.0 2 0x000000a000000000 0x000000bfffffffff 0x000000000014220c";

    #[test]
    fn the_kernel_s_complaints_are_found_once_what_is_lost_first() {
        let found = complaints(CONSOLE);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("no space"));
    }

    #[test]
    fn what_linux_does_not_list_it_does_not_use() {
        let id = FunctionId;
        let mut observed = Observed {
            seen: Seen::TimedOut,
            time: Duration::ZERO,
            settled: Duration::ZERO,
            cpu: Duration::ZERO,
            registers: [((id(1), 2), (2, 0, 0, 2)), ((id(2), 2), (1, 0, 0, 2)), ((id(3), 2), (3, 0, 0, 2))]
                .into(),
            console: Some(format!("{CONSOLE}\r\nbarfit: end\r\n")),
        };
        assert_eq!(used_by_linux(&observed, id(1), 2), Some(false));
        assert_eq!(used_by_linux(&observed, id(2), 2), Some(true));
        assert_eq!(used_by_linux(&observed, id(3), 2), Some(false));
        observed.console = Some(CONSOLE.to_owned());
        assert_eq!(used_by_linux(&observed, id(1), 2), None);
    }
}
