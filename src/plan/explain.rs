//! Why: every step of a decision as a finding. Texts name the device and the range, in hex and in GiB.

use super::answer::{Plan, is_ovmf};
use super::decide::{Bound, Bounds, Decision, Trial};
use super::judge::{ByFunction, Placement, of_bars};
use super::policy::{FwCfg, Settings};
use crate::domain::Domain;
use crate::finding::{Code, Finding};
use crate::guest::Assembled;
use crate::layout::{Guest, Layout, Outcome, PlacedBar, WidthRule};
use crate::units::{Addr, Bytes, GIB, PhysBits, approximate};

/// Everything a decision rested on.
pub(super) struct Case<'a> {
    pub(super) domain: &'a Domain,
    pub(super) assembled: &'a Assembled,
    pub(super) guest: &'a Guest,
    pub(super) now: &'a Trial,
    pub(super) then: &'a Trial,
    pub(super) decision: Option<&'a Decision>,
    pub(super) bounds: Bounds,
    pub(super) settings: Settings,
    pub(super) limit: u64,
    pub(super) plan: &'a Plan,
    /// libvirt or QEMU refuses the definition itself: where BARs would be is idle talk then.
    pub(super) refused: bool,
}

/// Adds the findings.
pub(super) fn explain(case: &Case<'_>, findings: &mut Vec<Finding>) {
    if !case.refused {
        as_found(case, findings);
    }
    settings_as_found(case, findings);
    if let Some(decision) = case.decision {
        reasoning(case, decision, findings);
    }
    outcome(case, findings);
}

/// What goes wrong as the domain stands.
fn as_found(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let layout = &case.now.layout;
    match &layout.outcome {
        Outcome::Refused => findings.push(Finding::error(
            Code::PhysBitsTooLow,
            format!(
                "QEMU refuses to start: RAM, hot-plug memory and the PCI hole end at {} ({}), beyond the {} of {} \
                 phys-bits",
                layout.ram.max_used,
                approximate(layout.ram.max_used.get()),
                approximate(layout.width.cpuid.limit()),
                layout.width.cpuid
            ),
        )),
        Outcome::Hangs(why) => {
            findings.push(Finding::error(Code::FirmwareHangs, format!("the firmware never finishes: {why}")));
        }
        Outcome::GivesUp(why) => findings.push(Finding::error(
            Code::AllocationGivenUp,
            format!("the firmware gives up, and every device of the guest, disks included, is without BARs: {why}"),
        )),
        Outcome::Boots => unplaced(case, layout, findings),
    }
}

/// One finding for all devices that fare alike.
fn unplaced(case: &Case<'_>, layout: &Layout, findings: &mut Vec<Finding>) {
    let functions = ByFunction::new(layout);
    let mut groups: Vec<(Code, Unusable, &str, Vec<String>)> = Vec::new();
    for device in &case.assembled.devices {
        let bars = functions.bars(device.id);
        let code = match of_bars(bars, case.limit) {
            Placement::Placed => continue,
            Placement::Partly if device.gpu => Code::GpuPartlyPlaced,
            Placement::Unplaced if device.gpu => Code::GpuUnplaced,
            _ => Code::DeviceUnplaced,
        };
        let why = why_unplaced(case, layout, bars);
        match groups.iter_mut().find(|(c, w, n, _)| (*c, *w, *n) == (code, why, &device.name)) {
            Some((.., places)) => places.push(device.place()),
            None => groups.push((code, why, &device.name, vec![device.place()])),
        }
    }
    for (code, why, name, places) in groups {
        let (bar, cause) = why.texts(case, layout);
        findings.push(Finding::error(code, format!("{} ({name}): {bar}{cause}", places.join(", "))));
    }
    // Of emulated devices it is enough to say which, for one is like the other.
    let mut groups: Vec<(Unusable, Vec<&str>)> = Vec::new();
    for (id, driver) in &case.assembled.emulated {
        let bars = functions.bars(*id);
        if of_bars(bars, case.limit) == Placement::Placed {
            continue;
        }
        let why = why_unplaced(case, layout, bars);
        match groups.iter_mut().find(|(first, _)| first.cause == why.cause) {
            Some((_, drivers)) => drivers.push(driver),
            None => groups.push((why, vec![driver])),
        }
    }
    for (why, drivers) in groups {
        let (bar, cause) = why.texts(case, layout);
        let first = if drivers.len() > 1 { ", of the first for instance," } else { "" };
        let bar = bar.replacen(" lies", &format!("{first} lies"), 1);
        let text = format!("emulated {}: {bar}{cause}", drivers.join(", "));
        findings.push(Finding::error(Code::DeviceUnplaced, text));
    }
}

/// A BAR that cannot be used.
#[derive(Copy, Clone, PartialEq, Eq)]
struct Unusable {
    /// Its index and size, and where it lies; `None` where no single BAR is at fault.
    bar: Option<(u8, Bytes, Option<Addr>)>,
    /// What is wrong with that.
    cause: Cause,
}

/// Why a BAR cannot be used.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Cause {
    /// Not known.
    Unknown,
    /// The firmware gave it no address.
    NoAddress,
    /// It lies beyond what the host's CPU and IOMMU reach.
    BeyondHost,
    /// It lies beyond the guest's width.
    BeyondWidth,
    /// It lies over RAM, or outside its port's window.
    OutOfPlace,
}

fn ends_beyond(address: Addr, size: Bytes, limit: u64) -> bool {
    address.get().saturating_add(size.get()) > limit
}

/// The largest BAR of a device with these that cannot be used, and why.
fn why_unplaced(case: &Case<'_>, layout: &Layout, bars: &[PlacedBar]) -> Unusable {
    let unusable = bars.iter().filter(|bar| !bar.bar.is_rom()).filter(|bar| match bar.address {
        None => true,
        Some(address) => !bar.reachable || ends_beyond(address, bar.bar.size, case.limit),
    });
    let Some(bad) = unusable.max_by_key(|bar| bar.bar.size) else {
        return Unusable { bar: None, cause: Cause::Unknown };
    };
    let size = bad.bar.size;
    let cause = match bad.address {
        None => Cause::NoAddress,
        Some(_) if bad.reachable => Cause::BeyondHost,
        Some(address) if ends_beyond(address, size, layout.width.cpuid.limit()) => Cause::BeyondWidth,
        Some(_) => Cause::OutOfPlace,
    };
    Unusable { bar: Some((bad.bar.index, size, bad.address)), cause }
}

impl Unusable {
    /// Which BAR and where it lies, and what is wrong with that.
    fn texts(&self, case: &Case<'_>, layout: &Layout) -> (String, String) {
        let bar = match self.bar {
            None => "unplaced".to_owned(),
            Some((index, size, None)) => format!("BAR {index} ({size})"),
            Some((index, size, Some(address))) => format!("BAR {index} ({size}) lies at {address}"),
        };
        let cause = match self.cause {
            Cause::Unknown => String::new(),
            Cause::NoAddress => {
                let window = layout.window.map_or_else(
                    || "there is no 64-bit window".to_owned(),
                    |w| {
                        format!(
                            "the window {:#x}-{:#x} has {}, all devices need {}",
                            w.span.first(),
                            w.span.last(),
                            approximate(w.span.size()),
                            approximate(w.needed.get())
                        )
                    },
                );
                format!(" gets no address from the firmware: {window}")
            }
            Cause::BeyondHost => {
                format!(", beyond the {} that the host's CPU and IOMMU reach", approximate(case.limit))
            }
            Cause::BeyondWidth => format!(
                ", beyond the {} of {} phys-bits: the guest's kernel refuses it",
                approximate(layout.width.cpuid.limit()),
                layout.width.cpuid
            ),
            Cause::OutOfPlace => {
                ", over RAM or outside the window of its port: the guest's kernel refuses it".to_owned()
            }
        };
        (bar, cause)
    }
}

/// Settings of the domain that do not do what they say.
fn settings_as_found(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let width = case.now.layout.width;
    match width.because {
        WidthRule::NoGibPages => findings.push(Finding::warning(
            Code::NoGibPages,
            format!(
                "the guest's CPU has no 1 GiB pages (pdpe1gb): the firmware uses {} of its {} bits",
                width.usable, width.cpuid
            ),
        )),
        WidthRule::PagingClamp | WidthRule::GuestPhysBits | WidthRule::SeaBiosClamp
            if width.usable < width.cpuid =>
        {
            findings.push(Finding::note(
                Code::BitsClamped,
                format!("the firmware uses {} of the guest's {} bits", width.usable, width.cpuid),
            ));
        }
        _ => {}
    }
    if case.domain.command_line.mmio64.is_some() && !is_ovmf(case.guest) {
        findings.push(Finding::warning(
            Code::FwCfgIgnored,
            "X-PciMmio64Mb is set, but this guest's firmware is SeaBIOS, which does not read it",
        ));
    }
    if let Some(text) = case.guest.mmio64_mb.as_deref().filter(|_| is_ovmf(case.guest)) {
        if text.parse::<u32>().is_err() {
            findings.push(Finding::warning(
                Code::FwCfgInvalid,
                format!("X-PciMmio64Mb is `{text}`, which is no number of MiB from 0 to 16777216: the firmware ignores it"),
            ));
        } else if case.plan.mmio64_mib.is_some_and(|mib| mib.to_string() != text) {
            findings.push(Finding::warning(
                Code::FwCfgTooSmall,
                format!("X-PciMmio64Mb is {text} (MiB): not the window that these devices need"),
            ));
        }
    }
}

/// How the decision was reached.
fn reasoning(case: &Case<'_>, decision: &Decision, findings: &mut Vec<Finding>) {
    let bound = match case.bounds.by {
        Bound::Host => "the host's CPU",
        Bound::Iommu => "the IOMMU",
        Bound::Assumed => "an assumption, as the host is not known",
        Bound::Qemu => "QEMU",
        Bound::Model => "the 32-bit CPU model",
    };
    findings.push(Finding::note(
        Code::BitsBound,
        format!("at most {} bits may be used; {bound} sets that bound", case.bounds.highest),
    ));
    if decision.tried.len() > 1 {
        let gpus = case.assembled.gpus();
        let (total, what) = if gpus > 0 { (gpus, "GPUs") } else { (case.assembled.devices.len(), "devices") };
        let tried: Vec<String> =
            decision.tried.chunk_by(|a, b| a.1.is_none() && b.1.is_none()).map(by_width).collect();
        findings.push(Finding::note(
            Code::BitsTried,
            format!("{what} placed (of {total}) by width: {}", tried.join(", ")),
        ));
    }
    if let Some((sum, naive)) = naive_bits(case)
        && naive != case.then.candidate.phys_bits
        && is_ovmf(case.guest)
        && let Some(window) = case.then.layout.window
    {
        findings.push(Finding::note(
            Code::SumIsWrong,
            format!(
                "the large BARs alone add up to {}, which {naive} bits seem to hold; with the small ones, aligned, \
                 each behind its own port, they need {}",
                approximate(sum),
                approximate(window.needed.get())
            ),
        ));
    }
}

/// How many GPUs one width places, or why several do not place all.
fn by_width(tried: &[(PhysBits, Option<usize>)]) -> String {
    let hopeless = "too little space for the BARs alone";
    match tried {
        [(bits, Some(placed))] => format!("{bits}: {placed}"),
        [(bits, None)] => format!("{bits}: {hopeless}"),
        [(first, _), .., (last, _)] => format!("{first} to {last}: {hopeless}"),
        [] => String::new(),
    }
}

/// What adding up BARs gives: the sum, and the smallest width whose top eighth holds it.
fn naive_bits(case: &Case<'_>) -> Option<(u64, PhysBits)> {
    let bars = case.assembled.devices.iter().flat_map(|device| &device.bars);
    let sum = bars.map(|bar| bar.size.get()).filter(|size| *size >= GIB).try_fold(0u64, u64::checked_add)?;
    let fits = |bits: &PhysBits| sum > 0 && bits.limit() >> 3 >= sum;
    (PhysBits::QEMU_DEFAULT.get()..=PhysBits::MAX.get())
        .filter_map(|bits| PhysBits::new(bits.into()))
        .find(fits)
        .map(|bits| (sum, bits))
}

/// What comes of it.
fn outcome(case: &Case<'_>, findings: &mut Vec<Finding>) {
    let total = case.assembled.devices.len();
    let all = match total {
        1 => "the passed-through device is".to_owned(),
        2 => "both passed-through devices are".to_owned(),
        _ => format!("all {total} passed-through devices are"),
    };
    if case.then.fits && case.plan.changes.is_empty() {
        findings.push(Finding::note(
            Code::AllPlaced,
            format!("{all} placed at {} bits", case.guest.cpu.phys_bits),
        ));
    } else if case.then.fits {
        let changes: Vec<String> = case.plan.changes.iter().map(ToString::to_string).collect();
        findings.push(Finding::note(Code::Planned, format!("{all} placed with {}", changes.join(" and "))));
    } else {
        let best = format!(
            "the best that can be had is {} of {} GPUs, at {} bits",
            case.then.gpus_placed,
            case.assembled.gpus(),
            case.then.candidate.phys_bits
        );
        findings.push(Finding::error(
            Code::DoesNotFit,
            format!(
                "nothing that may be changed up to {} bits places every device; {best}",
                case.bounds.highest
            ),
        ));
        if case.settings.fw_cfg == FwCfg::Never && is_ovmf(case.guest) {
            findings.push(Finding::note(
                Code::PolicyForbids,
                "the policy forbids X-PciMmio64Mb, which might help",
            ));
        }
    }
}
