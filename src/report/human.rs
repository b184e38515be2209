//! `check` for people: the answer in one sentence, then devices, reason, change, findings and a picture.

use super::Paint;
use super::json::rule;
use super::map::map;
use super::placement::{PlacedDevice, Register, placements};
use super::table::{Side, Table, Tone, WIDTH, paragraph, printable, shortened};
use crate::domain::Domain;
use crate::finding::{Code, Finding, Level};
use crate::guest::HostDevice;
use crate::layout::{Layout, Outcome, WidthRule};
use crate::plan::{Answer, Change, Placement, Verdict};
use crate::units::{GIB, approximate};

/// How much to show.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// One picture: of the guest after the change, or as it is where nothing changes.
    #[default]
    Usual,
    /// Both pictures.
    Full,
}

/// The whole answer for one domain: the sentence in one line, the rest in lines of at most a hundred characters.
pub fn check_text(domain: &Domain, answer: &Answer, detail: Detail, paint: Paint) -> String {
    let mut out = paint.bold(&headline(domain, answer)) + "\n";
    if !answer.assembled.devices.is_empty() {
        out.push('\n');
        out.push_str(&devices(answer, paint));
    }
    let reason = reason(answer);
    if !reason.is_empty() {
        out.push_str(&format!("\n{}\n", paint.bold("Why")));
        reason.iter().for_each(|sentence| out.push_str(&paragraph("  ", sentence)));
    }
    if !answer.plan.changes.is_empty() {
        out.push_str(&format!("\n{}\n", paint.bold("Change")));
        for change in &answer.plan.changes {
            out.push_str(&format!("  {change}\n"));
        }
        out.push_str("  `barfit diff` shows it in place, `barfit rewrite` makes it.\n");
    }
    if !answer.findings.is_empty() {
        out.push_str(&format!("\n{}\n", paint.bold("Findings")));
        answer.findings.iter().for_each(|finding| out.push_str(&finding_text(finding, paint)));
    }
    out.push_str(&pictures(answer, detail, paint));
    out
}

/// The answer in one sentence, the domain's name first.
pub fn headline(domain: &Domain, answer: &Answer) -> String {
    let name = if domain.name.is_empty() { "(no name)".to_owned() } else { printable(&domain.name) };
    let counts = Counts::of(answer);
    let with = planned(answer);
    let sentence = match answer.verdict {
        Verdict::NoPassthrough => {
            "no device of the host is passed through; there is nothing to place, and barfit changes nothing."
                .to_owned()
        }
        Verdict::Unknown => {
            let why = answer.assembled.unknown.first().map(|why| printable(why)).unwrap_or_default();
            format!("it is not known whether every device gets an address: {why}.")
        }
        Verdict::Fits if answer.plan.changes.is_empty() => {
            format!("{}; nothing needs to change.", counts.now())
        }
        Verdict::Fits => {
            format!("{}, and with {with}, which the policy wants, still {}.", counts.now(), counts.does())
        }
        Verdict::DoesNotFit | Verdict::WillNotStart => {
            let now = if answer.verdict == Verdict::WillNotStart { no_start(answer) } else { counts.now() };
            format!("{now}; {}.", counts.then(answer, &with))
        }
    };
    format!("{name}: {sentence}")
}

/// How many are placed, of what is counted: GPUs, or all passed-through devices where there is no GPU.
struct Counts {
    noun: &'static str,
    total: usize,
    now: usize,
    then: usize,
    /// Those of `now` of which only the largest BAR is placed.
    partly_now: usize,
    /// Devices that are not counted (companions, emulated ones) and have a BAR without address.
    others_now: usize,
}

impl Counts {
    fn of(answer: &Answer) -> Counts {
        let gpus = answer.assembled.gpus();
        let counted = |device: &&HostDevice| gpus == 0 || device.gpu;
        let placed = |layout: Option<&Layout>| {
            let devices = answer.assembled.devices.iter().filter(counted);
            layout.map_or(0, |layout| devices.filter(|d| answer.is_placed(layout, d.id)).count())
        };
        let others_now = answer.present.as_ref().map_or(0, |layout| {
            let companions = answer.assembled.devices.iter().filter(|d| !counted(d)).map(|d| d.id);
            let emulated = answer.assembled.emulated.iter().map(|(id, _)| *id);
            companions.chain(emulated).filter(|id| answer.placement(layout, *id) != Placement::Placed).count()
        });
        let partly_now = answer.present.as_ref().map_or(0, |layout| {
            let devices = answer.assembled.devices.iter().filter(counted);
            devices.filter(|d| answer.placement(layout, d.id) == Placement::Partly).count()
        });
        Counts {
            partly_now,
            noun: if gpus > 0 { "GPU" } else { "device" },
            total: if gpus > 0 { gpus } else { answer.assembled.devices.len() },
            now: placed(answer.present.as_ref()),
            then: placed(answer.plan.layout.as_ref()),
            others_now,
        }
    }

    fn now(&self) -> String {
        let Counts { noun, total, now, partly_now, others_now, .. } = *self;
        let counted = match (now, total) {
            (0, 1) => format!("its {noun} gets no address"),
            (now, total) if now == total => format!("{} an address", self.gets()),
            (1, total) => format!("1 of {total} {noun}s gets an address"),
            (now, total) => format!("{now} of {total} {noun}s get an address"),
        };
        match (partly_now, others_now) {
            (1, _) if now == 1 => format!("{counted} for a part of its BARs only"),
            (1, _) => format!("{counted}, one of them for a part of its BARs only"),
            (n, _) if n > 1 => format!("{counted}, {n} of them for a part of their BARs only"),
            (_, 1) if now == total => format!("{counted}, but another device gets none"),
            (_, n) if n > 1 && now == total => format!("{counted}, but {n} other devices get none"),
            _ => counted,
        }
    }

    /// `it does`, `both do`, `all 4 do`.
    fn does(&self) -> String {
        match self.total {
            1 => "it does".to_owned(),
            2 => "both do".to_owned(),
            total => format!("all {total} do"),
        }
    }

    /// `its GPU gets`, `both GPUs get`, `all 4 GPUs get`.
    fn gets(&self) -> String {
        let Counts { noun, total, .. } = *self;
        match total {
            1 => format!("its {noun} gets"),
            2 => format!("both {noun}s get"),
            total => format!("all {total} {noun}s get"),
        }
    }

    /// What the plan brings.
    fn then(&self, answer: &Answer, with: &str) -> String {
        let Counts { total, then, .. } = *self;
        let starts = answer.verdict == Verdict::WillNotStart;
        match answer.plan.verdict {
            _ if answer.plan.changes.is_empty() => "nothing that may be changed helps".to_owned(),
            Verdict::Fits if starts => format!("with {with} it does, and {} an address", self.gets()),
            Verdict::Fits if self.now == total => format!("with {with} every device does"),
            Verdict::Fits => format!("with {with} {}", self.does()),
            _ => format!("the most that can be had is {then} of {total}, with {with}"),
        }
    }
}

fn no_start(answer: &Answer) -> String {
    let found = |code| answer.findings.iter().any(|finding| finding.code == code);
    let why = match answer.present.as_ref().map(|layout| &layout.outcome) {
        Some(Outcome::Hangs(_)) => "the firmware never finishes",
        Some(Outcome::GivesUp(_)) => {
            return "it does not come up, as the firmware gives up and leaves every device without BARs"
                .to_owned();
        }
        _ if found(Code::BitsAboveHost) => "libvirt refuses more phys-bits than the host has",
        _ if found(Code::BitsInvalid) => "QEMU refuses such a number of phys-bits",
        _ if found(Code::PhysBitsTooLow) => "QEMU refuses so few phys-bits",
        _ => "libvirt refuses the domain",
    };
    format!("it does not start, as {why}")
}

/// What the plan changes, in words: `43 bits and a window of 2 TiB`.
fn planned(answer: &Answer) -> String {
    let mut words = Vec::new();
    for change in &answer.plan.changes {
        words.push(match change {
            Change::SetMaxPhysAddr(_) | Change::SetCpuGlobal(_) => answer
                .plan
                .phys_bits
                .map_or_else(|| "another width".to_owned(), |bits| format!("{bits} bits")),
            Change::RequireFeature(_) => "1 GiB pages".to_owned(),
            Change::SetMmio64Mib(mib) => {
                format!("X-PciMmio64Mb={mib} ({})", approximate(u64::from(*mib) << 20))
            }
            Change::RemoveMmio64 => "no X-PciMmio64Mb".to_owned(),
        });
    }
    words.dedup();
    words.join(" and ")
}

/// Devices with BARs and addresses. With a plan, addresses before and after it.
fn devices(answer: &Answer, paint: Paint) -> String {
    let unknown = answer.verdict == Verdict::Unknown;
    let present = answer.present.as_ref().filter(|_| !unknown);
    let planned = answer.plan.layout.as_ref().filter(|_| !answer.plan.changes.is_empty());
    let mut columns = vec![
        ("DEVICE", Side::Left),
        ("NAME", Side::Left),
        ("BAR", Side::Right),
        ("SIZE", Side::Right),
        ("ADDRESS", Side::Left),
    ];
    if planned.is_some() {
        columns.push(("WITH THE CHANGE", Side::Left));
    }
    let mut table = Table::new(&columns);
    let name_width = if planned.is_some() { 27 } else { 38 };
    let after = planned.map(|layout| placements(answer, Some(layout)));
    let mut marked = false;
    for (at, PlacedDevice { device, registers, .. }) in placements(answer, present).into_iter().enumerate() {
        let guest = device.guest.map(|guest| format!("guest {guest}"));
        let then = after.as_ref().and_then(|devices| devices.get(at));
        for row in 0..registers.len().max(if guest.is_some() { 2 } else { 1 }) {
            let (place, name) = match row {
                0 => (device.place(), shortened(&device.name, name_width)),
                1 => (String::new(), guest.clone().unwrap_or_default()),
                _ => Default::default(),
            };
            let name_tone = if row == 0 { Tone::Plain } else { Tone::Faint };
            let mut cells = vec![(place, Tone::Plain), (name, name_tone)];
            if let Some(now) = registers.get(row) {
                let later = then.and_then(|then| then.registers.get(row));
                marked |= [Some(now), later].into_iter().flatten().any(|r| r.address.is_some() && !r.usable);
                cells.push((now.bar.index.to_string(), Tone::Plain));
                cells.push((now.bar.size.to_string(), Tone::Plain));
                cells.push(address(now, present.is_some(), later.is_none()));
                cells.extend(later.map(|later| address(later, true, true)));
            } else if row == 0 {
                let none = if device.source.is_none() { "BARs unknown" } else { "no BARs" };
                cells.extend([Default::default(), Default::default(), (none.to_owned(), Tone::Doubtful)]);
            }
            table.row(cells);
        }
    }
    let mut text = table.text(0, paint);
    if marked {
        text.push_str("! out of reach: the guest's kernel, or the host's CPU and IOMMU, cannot use it\n");
    }
    text
}

/// An address and how it is coloured; `!` marks one that nobody can use.
fn address(register: &Register, known: bool, with_size: bool) -> (String, Tone) {
    match register.address {
        None if known => ("none".to_owned(), Tone::Bad),
        None => ("not known".to_owned(), Tone::Doubtful),
        Some(address) if !register.usable => (format!("{address} !"), Tone::Bad),
        // Whole GiB: where it lies, not how long it is.
        Some(address) if with_size && address.get() >= GIB => {
            (format!("{address} ({} GiB)", address.get() / GIB), Tone::Good)
        }
        Some(address) => (address.to_string(), Tone::Good),
    }
}

/// Why the width is what it is, in words.
pub(super) fn because(answer: &Answer, layout: &Layout) -> String {
    let set_by = &answer.assembled.cpu.because;
    let (cpuid, usable) = (layout.width.cpuid, layout.width.usable);
    let rule = match layout.width.because {
        WidthRule::Cpuid => return set_by.clone(),
        WidthRule::NotRead => "this firmware does not read the width".to_owned(),
        WidthRule::NotTrusted => format!("the firmware does not trust {cpuid} bits of such a CPU"),
        WidthRule::PagingClamp => format!("the firmware's page tables reach {usable} bits"),
        WidthRule::NoGibPages => format!("without 1 GiB pages the firmware uses {usable} bits"),
        WidthRule::GuestPhysBits => format!("guest-phys-bits are {usable}"),
        WidthRule::SeaBiosClamp => format!("this SeaBIOS uses {usable} bits while RAM ends below 1 TiB"),
    };
    format!("{set_by}; {rule}")
}

/// Width, window and need, as the domain stands.
fn reason(answer: &Answer) -> Vec<String> {
    let Some(layout) = answer.present.as_ref().filter(|_| answer.verdict != Verdict::Unknown) else {
        return Vec::new();
    };
    let mut sentences =
        vec![format!("The guest has {} phys-bits ({}).", layout.width.cpuid, because(answer, layout))];
    let top =
        format!("RAM and hot-plug memory end at {} ({})", layout.ram.top, approximate(layout.ram.top.get()));
    sentences.push(match layout.window {
        Some(window) => format!(
            "{top}; the firmware's 64-bit window is {:#x}-{:#x}, {} ({}), and the devices need {}, alignment and ports \
             included.",
            window.span.first(),
            window.span.last(),
            approximate(window.span.size()),
            rule(window.rule),
            approximate(window.needed.get())
        ),
        None => format!("{top}; there is no 64-bit window."),
    });
    sentences
}

/// One finding, its level coloured.
pub(super) fn finding_text(finding: &Finding, paint: Paint) -> String {
    let level = match finding.level {
        Level::Error => Tone::Bad,
        Level::Warning => Tone::Doubtful,
        Level::Note => Tone::Faint,
    };
    // The code stands on the first line; painted after the breaking of lines, which counts characters.
    let head = format!("  {:<7} ", finding.level.to_string());
    let text = paragraph(&head, &printable(&format!("{}: {}", finding.code, finding.text)));
    text.replacen(&head, &level.paint(paint, &head), 1)
}

fn pictures(answer: &Answer, detail: Detail, paint: Paint) -> String {
    if matches!(answer.verdict, Verdict::Unknown | Verdict::NoPassthrough) {
        return String::new();
    }
    let planned = answer.plan.layout.as_ref().filter(|_| !answer.plan.changes.is_empty());
    let mut out = String::new();
    let mut picture = |title: String, layout: &Layout| {
        out.push_str(&format!("\n{}\n{}", paint.bold(&title), map(answer, layout, paint)));
    };
    if let Some(layout) = answer.present.as_ref().filter(|_| detail == Detail::Full || planned.is_none()) {
        picture("Address map as it stands (not to scale)".to_owned(), layout);
    }
    if let Some(layout) = planned {
        picture("Address map with the change (not to scale)".to_owned(), layout);
    }
    out
}

/// A domain among many, in a line.
pub struct SummaryRow([(String, Tone); 5]);

impl SummaryRow {
    /// The row of a domain; `input` is what it was called by.
    pub fn new(input: &str, domain: &Domain, answer: &Answer) -> SummaryRow {
        let counts = Counts::of(answer);
        let (verdict, tone) = verdict_word(answer.verdict);
        let placed = match answer.verdict {
            Verdict::NoPassthrough => String::new(),
            Verdict::Unknown if counts.total == 0 => "?".to_owned(),
            Verdict::Unknown => format!("?/{}", counts.total),
            _ => format!("{}/{}", counts.now, counts.total),
        };
        let change = match (answer.plan.changes.is_empty(), answer.plan.verdict) {
            (true, _) => String::new(),
            (false, Verdict::Fits) => planned(answer),
            (false, _) => format!("{} ({}/{})", planned(answer), counts.then, counts.total),
        };
        SummaryRow([
            (shortened(input, WIDTH / 3), Tone::Plain),
            (shortened(&domain.name, 24), Tone::Plain),
            (verdict.to_owned(), tone),
            (placed, Tone::Plain),
            (change, Tone::Plain),
        ])
    }
}

/// Several domains, one line each.
pub fn summary_text(rows: Vec<SummaryRow>, paint: Paint) -> String {
    let mut table = Table::new(&[
        ("INPUT", Side::Left),
        ("DOMAIN", Side::Left),
        ("VERDICT", Side::Left),
        ("PLACED", Side::Right),
        ("CHANGE", Side::Left),
    ]);
    for SummaryRow(cells) in rows {
        table.row(cells);
    }
    table.text(0, paint)
}

/// A verdict for people.
pub(super) fn verdict_word(verdict: Verdict) -> (&'static str, Tone) {
    match verdict {
        Verdict::Fits => ("fits", Tone::Good),
        Verdict::DoesNotFit => ("does not fit", Tone::Bad),
        Verdict::WillNotStart => ("will not start", Tone::Bad),
        Verdict::NoPassthrough => ("no passthrough", Tone::Faint),
        Verdict::Unknown => ("unknown", Tone::Doubtful),
    }
}
