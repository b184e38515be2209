//! Proofs as text for people: per device what became of its BARs, then whether the prediction was right.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::fate::{BarFate, Fate};
use super::observe::Seen;
use super::proof::{Proof, complaints};
use crate::guest::HostDevice;
use crate::plan::Placement;

/// Lines of the kernel's that are shown of each guest.
const COMPLAINTS_SHOWN: usize = 16;

/// Shows proofs of one domain side by side, each under its title; `devices` are those whose fate matters.
pub fn proof_text(domain: &str, firmware: &str, devices: &[HostDevice], proofs: &[(&str, Proof)]) -> String {
    let mut out = format!("{domain} on {firmware}\n");
    for (title, proof) in proofs {
        section(&mut out, title, devices, proof);
    }
    let differences: Vec<String> = proofs
        .iter()
        .flat_map(|(title, proof)| proof.agreement.differences.iter().map(move |d| format!("{title}: {d}")))
        .collect();
    let undecided = proofs.iter().any(|(_, proof)| proof.observed.seen == Seen::TimedOut);
    let holds = proofs.iter().all(|(_, proof)| proof.agreement.holds());
    out.push_str(match (undecided, holds, differences.is_empty()) {
        (true, ..) => "\nTime was up before the firmware was done: nothing is proved.\n",
        (_, true, true) => "\nThe prediction agrees with the real firmware, address by address.\n",
        (_, true, false) => "\nThe prediction agrees on what is placed, but not on every address:\n",
        (_, false, _) => "\nTHE PREDICTION IS WRONG:\n",
    });
    if !undecided {
        differences.iter().for_each(|line| lines(&mut out, line));
    }
    let notes: BTreeSet<&String> = proofs.iter().flat_map(|(_, proof)| &proof.notes).collect();
    if !notes.is_empty() {
        out.push_str("\nThe guest that was booted differs:\n");
        notes.iter().for_each(|note| lines(&mut out, note));
    }
    if devices.iter().any(|device| device.bars.len() > 1) {
        out.push_str(STAND_INS);
    }
    out
}

/// What a reader must know of stand-ins before taking their fate for that of the real devices.
const STAND_INS: &str = "
The devices are stand-ins: no QEMU device has a GPU's BARs on one function, so each BAR is a function of its own in
the device's slot. Placed all is placed all; but a firmware short of room may drop such functions one by one, where
it would drop a real device whole.
";

fn lines(out: &mut String, text: &str) {
    out.push_str("  ");
    out.push_str(text);
    out.push('\n');
}

fn section(out: &mut String, title: &str, devices: &[HostDevice], proof: &Proof) {
    let bits = proof.stand.guest.cpu.phys_bits;
    let seconds = proof.observed.time.as_secs();
    let fates = proof.fates(devices);
    let placed = fates.iter().filter(|fate| fate.placement != Placement::Unplaced).count();
    let partly = fates.iter().filter(|fate| fate.placement == Placement::Partly).count();
    let in_part = if partly > 0 { format!(", {partly} of them in part only") } else { String::new() };
    let how = match &proof.observed.seen {
        Seen::Refused(message) => format!("QEMU refuses to start it: {message}"),
        Seen::Hung(sign) => format!("the firmware hangs: {sign}"),
        Seen::TimedOut => "no answer yet".to_owned(),
        Seen::Placed(_) => format!("{placed} of {} devices placed{in_part}", devices.len()),
    };
    let _ = writeln!(out, "\n{title}, {bits} bits: {how} ({seconds} s)");
    if matches!(proof.observed.seen, Seen::Placed(_)) {
        fates.iter().for_each(|fate| lines(out, &device(fate)));
    }
    if let Some(console) = &proof.observed.console {
        let all = complaints(console);
        out.push_str("  Linux:\n");
        all.iter().take(COMPLAINTS_SHOWN).for_each(|line| lines(out, &format!("  {line}")));
        match all.len() {
            0 => lines(out, "  no complaint"),
            n if n > COMPLAINTS_SHOWN => lines(out, &format!("  … {} more", n - COMPLAINTS_SHOWN)),
            _ => {}
        }
        // /proc/iomem above 4 GiB: addresses of more than eight digits.
        let iomem = console.lines().filter_map(|line| line.strip_prefix("iomem "));
        let high = iomem.filter(|line| line.find('-').is_some_and(|at| line[..at].trim_start().len() > 8));
        high.for_each(|line| lines(out, &format!("  {}", line.trim_end())));
    }
}

/// The line that shows how a device fares.
fn device(fate: &Fate<'_>) -> String {
    let address = fate.device.guest.map_or_else(String::new, |at| at.to_string());
    let words: Vec<String> = fate.bars.iter().map(word).collect();
    format!("{address:<12}  {:<24} {}", fate.device.name, words.join(", "))
}

fn word(fate: &BarFate<'_>) -> String {
    let what = match (fate.address, fate.used) {
        (None, Some(true)) => "no address, but placed by Linux".to_owned(),
        (None, _) => "no address".to_owned(),
        (Some(at), Some(false)) => format!("at {at}, refused by Linux"),
        (Some(at), None) if !fate.reachable => format!("at {at}, beyond phys-bits"),
        (Some(at), _) => format!("at {at}"),
    };
    format!("{} {what}", fate.bar.size)
}
