//! A guest's kernel log: which of its lines speak of PCI addresses, of which device, and whether the cause is the
//! guest's address space or something else.
//!
//! Knows the words of Linux (drivers/pci/setup-bus.c, setup-res.c, before and after 6.9 changed their order), of
//! NVIDIA's module and of amdgpu. The last word on a resource counts: Linux says "no space", tries again, and often
//! succeeds. I/O ports, 32-bit memory and expansion ROMs run short for reasons of their own; more phys-bits do not
//! help them.

use std::collections::BTreeMap;

use crate::units::PciAddress;

/// What a line means for the question whether the address space is too small.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// 64-bit addresses ran out, or lie beyond the guest's width.
    AddressSpace,
    /// It follows from an address that is missing, if the log says so of this device; else it is not known.
    Unclear,
    /// Something else, and more phys-bits do not help.
    Other,
}

/// One thing that the log says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Symptom {
    /// Stable code.
    pub(super) code: &'static str,
    /// What it comes from.
    pub(super) cause: Cause,
    /// The device, by its address in the guest.
    pub(super) device: Option<PciAddress>,
    /// Line of the log, from 1.
    pub(super) line: usize,
    /// The line without its time.
    pub(super) text: String,
    /// What it means and what to do.
    pub(super) meaning: &'static str,
}

/// Words that are recognised as they stand: all of `words` in a line (in lower case).
const WORDS: [(&[&str], &str, Cause, &str); 11] = [
    (
        &["nvrm: bar", "is 0m @ 0x0"],
        "NVRM_BAR_EMPTY",
        Cause::AddressSpace,
        "NVIDIA's driver finds a BAR without an address",
    ),
    (
        &["not enough pci address space for a large bar"],
        "BAR_NOT_RESIZED",
        Cause::AddressSpace,
        "amdgpu would use a larger BAR; the bridge above it has no room. The GPU works with the smaller one",
    ),
    (
        &["problem resizing bar", "(-28)"],
        "BAR_NOT_RESIZED",
        Cause::AddressSpace,
        "amdgpu would use a larger BAR; there is no room for it. The GPU works with the smaller one",
    ),
    (
        &["nvrm", "rminitadapter failed"],
        "NVRM_INIT_FAILED",
        Cause::Unclear,
        "NVIDIA's driver could not start the GPU: look at the lines before it, at the GPU's power, its firmware, \
         fabric manager, and whether another guest left it in a bad state",
    ),
    (
        &["nvrm", "fallen off the bus"],
        "NVRM_OFF_THE_BUS",
        Cause::Other,
        "the GPU does not answer: power, heat, slot, or a reset that failed; look at the host's kernel log",
    ),
    (
        &["nvrm: xid"],
        "NVRM_XID",
        Cause::Other,
        "an error of the GPU at work; NVIDIA's list of Xid numbers says which",
    ),
    (
        &["nvrm", "open", "kernel module", "not supported"],
        "NVRM_MODULE_UNFIT",
        Cause::Other,
        "this GPU needs the other kind of NVIDIA's kernel module (open or proprietary)",
    ),
    (
        &["nvrm", "already bound to nouveau"],
        "NVRM_NOUVEAU",
        Cause::Other,
        "nouveau holds the GPU; keep it from loading in the guest",
    ),
    (
        &["nvrm", "api mismatch"],
        "NVRM_MISMATCH",
        Cause::Other,
        "kernel module and user-space libraries of NVIDIA's driver are of two versions",
    ),
    (
        &["amdgpu", "fatal error during gpu init"],
        "AMDGPU_INIT_FAILED",
        Cause::Unclear,
        "amdgpu could not start the GPU: the lines before it say at which step",
    ),
    (
        &["amdgpu", "unable to locate a bios rom"],
        "AMDGPU_NO_ROM",
        Cause::Other,
        "the GPU's ROM cannot be read; give it with <rom file=…/>",
    ),
];

/// What the log says, in its order; what was said and later put right is left out.
pub(super) fn symptoms(log: &str) -> Vec<Symptom> {
    let mut found: Vec<Symptom> = Vec::new();
    // Resources that have no address so far, by device and name: the number of the symptom.
    let mut missing: BTreeMap<(PciAddress, String), usize> = BTreeMap::new();
    let mut settled: Vec<usize> = Vec::new();
    for (at, line) in log.lines().enumerate() {
        let text = without_time(line);
        let lower = text.to_ascii_lowercase();
        let device = address(text);
        if let (Some(device), Some(resource)) = (device, Resource::of(text)) {
            let key = (device, resource.name.clone());
            let fails = ["no space", "failed to assign", "can't claim", "can't assign"];
            if fails.iter().any(|words| lower.contains(words)) {
                let (code, cause, meaning) = resource.short_of(&lower);
                let symptom = Symptom {
                    code,
                    cause,
                    device: Some(device),
                    line: at + 1,
                    text: text.to_owned(),
                    meaning,
                };
                // "no space" and "failed to assign" are said of the same attempt.
                missing.entry(key).or_insert_with(|| {
                    found.push(symptom);
                    found.len() - 1
                });
                continue;
            }
            if lower.contains("assigned")
                && lower.contains("0x")
                && let Some(number) = missing.remove(&key)
            {
                settled.push(number);
            }
        }
        if let Some(symptom) = by_words(&lower, text, device, at + 1) {
            found.push(symptom);
        }
    }
    let mut number = 0;
    found.retain(|_| {
        number += 1;
        !settled.contains(&(number - 1))
    });
    explain_probes(&mut found);
    found
}

/// Whether the guest's address space is too small, by what its log says: `None` where the log does not say.
pub(super) fn is_address_space(symptoms: &[Symptom]) -> Option<bool> {
    if symptoms.iter().any(|symptom| symptom.cause == Cause::AddressSpace) {
        return Some(true);
    }
    let all_else = !symptoms.is_empty() && symptoms.iter().all(|symptom| symptom.cause == Cause::Other);
    all_else.then_some(false)
}

fn by_words(lower: &str, text: &str, device: Option<PciAddress>, line: usize) -> Option<Symptom> {
    let symptom =
        |code, cause, meaning| Symptom { code, cause, device, line, text: text.to_owned(), meaning };
    let known = WORDS.iter().find(|(words, ..)| words.iter().all(|word| lower.contains(word)));
    if let Some((_, code, cause, meaning)) = known {
        return Some(symptom(code, *cause, meaning));
    }
    let probe = lower.contains("probe") && lower.contains("failed with error -");
    probe.then(|| {
        symptom(
            "PROBE_FAILED",
            Cause::Unclear,
            "the driver gave the device up; the log says no reason that has to do with its addresses",
        )
    })
}

/// A driver that gave up a device without addresses gave it up for that.
fn explain_probes(found: &mut [Symptom]) {
    let short: Vec<PciAddress> = found
        .iter()
        .filter(|symptom| symptom.cause == Cause::AddressSpace)
        .filter_map(|symptom| symptom.device)
        .collect();
    for symptom in found.iter_mut().filter(|symptom| symptom.cause == Cause::Unclear) {
        if symptom.device.is_some_and(|device| short.contains(&device)) {
            symptom.cause = Cause::AddressSpace;
            symptom.meaning = "the driver gave the device up because a BAR of it has no address";
        }
    }
}

/// The resource that a line of the PCI core speaks of.
struct Resource {
    /// `BAR 2`, `bridge window`, `ROM`, with what tells two bridge windows apart.
    name: String,
    io: bool,
    wide: bool,
    rom: bool,
}

impl Resource {
    fn of(text: &str) -> Option<Resource> {
        let at = ["BAR ", "bridge window", "ROM "].iter().find_map(|word| text.find(word))?;
        let rest = &text[at..];
        let inside = rest.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(i, _)| i);
        let head = if let Some(number) = rest.strip_prefix("BAR ") {
            let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
            format!("BAR {}", &number[..digits])
        } else {
            let kind: Vec<&str> =
                inside.split(' ').filter(|word| ["io", "mem", "64bit", "pref"].contains(word)).collect();
            format!("{} {}", rest.split(['[', ':']).next().unwrap_or_default().trim(), kind.join(" "))
        };
        Some(Resource {
            rom: head.starts_with("ROM") || head == "BAR 6",
            name: head,
            io: inside.starts_with("io"),
            wide: inside.contains("64bit"),
        })
    }

    /// Code, cause and meaning where this resource gets no address.
    fn short_of(&self, lower: &str) -> (&'static str, Cause, &'static str) {
        if self.rom {
            return (
                "ROM_UNPLACED",
                Cause::Other,
                "an expansion ROM without an address: harmless once the guest runs",
            );
        }
        if self.io {
            return (
                "IO_UNPLACED",
                Cause::Other,
                "I/O ports ran out, as they do with many root ports: GPUs need none",
            );
        }
        if !self.wide {
            return (
                "MEM32_UNPLACED",
                Cause::Other,
                "32-bit memory below 4 GiB ran out; more phys-bits do not help, fewer or smaller devices do",
            );
        }
        if lower.contains("can't claim") {
            return (
                "WINDOW_NOT_CLAIMED",
                Cause::AddressSpace,
                "the firmware gave an address that the guest cannot use: beyond its width, or outside its bridge",
            );
        }
        (
            "BAR_UNPLACED",
            Cause::AddressSpace,
            "the window for 64-bit BARs is full: the guest needs more phys-bits or a larger window",
        )
    }
}

/// A line without `[    1.234567] ` and what journals put before it.
fn without_time(line: &str) -> &str {
    let line = line.trim();
    let line = line.split_once(" kernel: ").map_or(line, |(_, rest)| rest);
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((time, rest)) if time.trim().starts_with(|c: char| c.is_ascii_digit()) => rest,
        _ => line,
    }
}

/// The first PCI address of a line: `0000:02:00.0`, also as `PCI:0000:02:00.0`.
fn address(text: &str) -> Option<PciAddress> {
    let words = text.split(|c: char| c.is_whitespace() || "()[],".contains(c));
    words.map(|word| word.trim_start_matches("PCI:").trim_end_matches([':', '.'])).find_map(|word| {
        // Without its domain, too much else looks like an address.
        (word.matches(':').count() == 2).then(|| word.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::{Cause, is_address_space, symptoms};

    /// Code, device and cause of each symptom, a line each.
    fn told(log: &str) -> Vec<String> {
        symptoms(log)
            .iter()
            .map(|s| format!("{} {} {:?}", s.code, s.device.map_or("-".into(), |d| d.to_string()), s.cause))
            .collect()
    }

    #[test]
    fn a_gpu_without_its_large_bar_before_linux_6_9() {
        let log = "\
[    0.512345] pci 0000:06:00.0: BAR 2: no space for [mem size 0x2000000000 64bit pref]
[    0.512350] pci 0000:06:00.0: BAR 2: failed to assign [mem size 0x2000000000 64bit pref]
[    0.512360] pci 0000:06:00.0: BAR 0: assigned [mem 0x38000000000-0x38000ffffff 64bit pref]
[    5.100000] nvidia 0000:06:00.0: enabling device (0000 -> 0002)
[    5.100100] NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:
[    5.100101] NVRM: BAR1 is 0M @ 0x0 (PCI:0000:06:00.0)
[    5.100200] nvidia: probe of 0000:06:00.0 failed with error -1
";
        assert_eq!(
            told(log),
            [
                "BAR_UNPLACED 0000:06:00.0 AddressSpace",
                "NVRM_BAR_EMPTY 0000:06:00.0 AddressSpace",
                "PROBE_FAILED 0000:06:00.0 AddressSpace"
            ]
        );
        assert_eq!(is_address_space(&symptoms(log)), Some(true));
    }

    #[test]
    fn the_words_since_linux_6_9_and_a_journal() {
        let log = "\
Nov 25 01:02:03 vm kernel: pci 0000:00:02.3: bridge window [mem 0x12000000000-0x15fffffffff 64bit pref]: can't claim; no compatible bridge window
Nov 25 01:02:03 vm kernel: pci 0000:02:00.0: BAR 2 [mem size 0x800000000 64bit pref]: can't assign; no space
Nov 25 01:02:03 vm kernel: pci 0000:02:00.0: BAR 2 [mem size 0x800000000 64bit pref]: failed to assign
Nov 25 01:02:09 vm kernel: nvidia 0000:02:00.0: probe with driver nvidia failed with error -1
";
        assert_eq!(
            told(log),
            [
                "WINDOW_NOT_CLAIMED 0000:00:02.3 AddressSpace",
                "BAR_UNPLACED 0000:02:00.0 AddressSpace",
                "PROBE_FAILED 0000:02:00.0 AddressSpace"
            ]
        );
    }

    #[test]
    fn what_is_put_right_later_is_no_symptom() {
        let log = "\
[    0.4] pci 0000:02:00.0: BAR 2 [mem size 0x800000000 64bit pref]: can't assign; no space
[    0.5] pci 0000:02:00.0: BAR 2 [mem 0x3800000000-0x3fffffffff 64bit pref]: assigned
[    0.6] pci 0000:03:00.0: BAR 2: no space for [mem size 0x800000000 64bit pref]
[    0.7] pci 0000:03:00.0: BAR 2: assigned [mem 0x4000000000-0x47ffffffff 64bit pref]
";
        assert_eq!(told(log), [] as [&str; 0]);
        assert_eq!(is_address_space(&symptoms(log)), None);
    }

    #[test]
    fn ports_roms_and_narrow_memory_are_no_matter_of_phys_bits() {
        let log = "\
[    0.4] pci 0000:00:01.0: bridge window [io size 0x1000]: can't assign; no space
[    0.4] pci 0000:06:00.0: ROM [mem size 0x00080000 pref]: can't assign; no space
[    0.4] pci 0000:07:00.0: BAR 6: no space for [mem size 0x00080000 pref]
[    0.4] pci 0000:06:00.0: BAR 0 [mem size 0x10000000]: can't assign; no space
";
        let all = symptoms(log);
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|symptom| symptom.cause == Cause::Other), "{all:?}");
        assert_eq!(is_address_space(&all), Some(false));
    }

    #[test]
    fn drivers_fail_for_reasons_of_their_own() {
        let log = "\
[   10.0] NVRM: GPU 0000:06:00.0: RmInitAdapter failed! (0x26:0x56:1463)
[   11.0] NVRM: Xid (PCI:0000:06:00): 79, pid=1234, GPU has fallen off the bus.
[   12.0] amdgpu 0000:07:00.0: amdgpu: Unable to locate a BIOS ROM
[   12.1] amdgpu 0000:07:00.0: amdgpu: Fatal error during GPU init
[   12.2] amdgpu 0000:07:00.0: probe with driver amdgpu failed with error -22
";
        let all = symptoms(log);
        assert_eq!(
            all.iter().map(|s| s.code).collect::<Vec<_>>(),
            ["NVRM_INIT_FAILED", "NVRM_OFF_THE_BUS", "AMDGPU_NO_ROM", "AMDGPU_INIT_FAILED", "PROBE_FAILED"]
        );
        assert_eq!(is_address_space(&all), None, "some of them could have any cause");
        let amd = "[    9.1] amdgpu 0000:07:00.0: amdgpu: Not enough PCI address space for a large BAR.";
        assert_eq!(told(amd), ["BAR_NOT_RESIZED 0000:07:00.0 AddressSpace"]);
    }

    #[test]
    fn a_log_of_something_else_has_none() {
        for log in
            ["", "no space left on device\n", "\u{0}\u{ff}[[[]]] ] [", "usb 1-1: probe failed with error"]
        {
            assert_eq!(told(log), [] as [&str; 0], "{log}");
        }
    }
}
