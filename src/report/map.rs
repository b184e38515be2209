//! The guest's address space as a picture: RAM, holes, window, BARs and the limit; not to scale, highest address on top.

use super::Paint;
use super::placement::is_usable;
use super::table::{Tone, WIDTH, shortened};
use crate::layout::{Layout, Outcome, PlacedBar};
use crate::plan::Answer;
use crate::units::{GIB, Span, approximate};

/// Addresses from here on are drawn one by one; below lies one hole of 32-bit devices.
const FOUR_GIB: u64 = 4 * GIB;
/// Gaps smaller than this are not drawn.
const SMALLEST_GAP: u64 = GIB;
/// Inner width of the drawn column.
const COLUMN: usize = 10;

/// A stretch of addresses and what it is.
struct Stretch {
    span: Span,
    fill: char,
    label: String,
    tone: Tone,
}

/// A line of the picture.
enum Line {
    Stretch(Stretch),
    /// A mark at an address, with a rule across.
    Mark(u64, char, String),
}

impl Line {
    /// Where it stands, and marks above the stretch that begins at the same address.
    fn order(&self) -> (u64, bool) {
        match self {
            Line::Stretch(stretch) => (stretch.span.first(), true),
            Line::Mark(at, ..) => (*at, false),
        }
    }
}

/// Draws a layout of an answer.
pub(super) fn map(answer: &Answer, layout: &Layout, paint: Paint) -> String {
    let limit = layout.width.cpuid.limit();
    let mut taken = memory(layout);
    taken.extend(devices(answer, layout));
    taken.sort_by_key(|stretch| stretch.span);
    let mut lines = with_gaps(taken, layout, limit);
    if let Some(window) = layout.window {
        let text = format!(
            "64-bit window begins: {} ({})",
            approximate(window.span.size()),
            super::json::rule(window.rule)
        );
        lines.push(Line::Mark(window.span.first(), '─', text));
        if window.span.end() != limit {
            lines.push(Line::Mark(window.span.end(), '─', "64-bit window ends".to_owned()));
        }
    }
    let text = format!("limit of {} phys-bits: {}", layout.width.cpuid, approximate(limit));
    lines.push(Line::Mark(limit, '═', text));
    lines.sort_by_key(Line::order);
    let digits = lines.last().map_or(9, |line| format!("{:x}", line.order().0).len());
    lines.iter().rev().map(|line| drawn(line, digits, paint)).collect()
}

fn drawn(line: &Line, digits: usize, paint: Paint) -> String {
    let text = match line {
        Line::Mark(at, rule, text) => {
            let bar = rule.to_string().repeat(COLUMN);
            format!("  {at:#0w$x}  ├{bar}┤ {}", paint.bold(text), w = digits + 2)
        }
        Line::Stretch(Stretch { span, fill, label, tone }) => {
            let bar = fill.to_string().repeat(COLUMN);
            let head = format!(
                "  {:#0w$x}  │{bar}│ {:>11}  ",
                span.first(),
                approximate(span.size()),
                w = digits + 2
            );
            let label = shortened(label, WIDTH.saturating_sub(head.chars().count()));
            format!("{head}{}", tone.paint(paint, &label))
        }
    };
    text.trim_end().to_owned() + "\n"
}

/// RAM and what QEMU puts beside it.
fn memory(layout: &Layout) -> Vec<Stretch> {
    let ram = &layout.ram;
    let below = ram.below_4g.get();
    let rows = [
        (Span::new(0, below), '█', "RAM"),
        (Span::new(below, FOUR_GIB.saturating_sub(below)), '░', "32-bit hole: 32-bit BARs, firmware"),
        (ram.above_4g, '█', "RAM"),
        (ram.sgx_epc, '▒', "SGX EPC"),
        (ram.hotplug, '▒', "hot-plug memory"),
    ];
    let reserved = ram.reserved.iter().map(|span| (Some(*span), '╳', "reserved (AMD HyperTransport)"));
    rows.into_iter()
        .chain(reserved)
        .filter_map(|(span, fill, label)| {
            Some(Stretch { span: span?, fill, label: label.to_owned(), tone: Tone::Plain })
        })
        .collect()
}

/// BARs above 4 GiB, those of one device (and of all emulated devices) that follow one another as one stretch.
fn devices(answer: &Answer, layout: &Layout) -> Vec<Stretch> {
    if layout.outcome != Outcome::Boots {
        return Vec::new();
    }
    let mut bars: Vec<(Span, &PlacedBar)> = layout
        .bars
        .iter()
        .filter_map(|bar| Some((Span::new(bar.address?.get(), bar.bar.size.get())?, bar)))
        .filter(|(span, _)| span.first() >= FOUR_GIB)
        .collect();
    bars.sort_by_key(|(span, _)| *span);
    let owner = |bar: &PlacedBar| answer.assembled.devices.iter().find(|device| device.id == bar.function);
    let id = |bar: &PlacedBar| owner(bar).map(|device| device.id);
    bars.chunk_by(|(_, a), (_, b)| id(a) == id(b))
        .filter_map(|group| {
            let (first, bar) = group.first()?;
            let end = group.iter().map(|(span, _)| span.end()).max()?;
            let span = Span::new(first.first(), end.checked_sub(first.first())?)?;
            let reachable = group.iter().all(|(_, bar)| is_usable(answer, bar));
            let (fill, mut label) = match owner(bar) {
                Some(device) => ('▓', format!("{} {}", device.place(), device.name)),
                None => ('▒', "emulated devices and their ports".to_owned()),
            };
            if !reachable {
                label.push_str(": out of reach");
            }
            let tone = if reachable { Tone::Good } else { Tone::Bad };
            Some(Stretch { span, fill, label, tone })
        })
        .collect()
}

/// The stretches, and those between them up to the limit.
fn with_gaps(taken: Vec<Stretch>, layout: &Layout, limit: u64) -> Vec<Line> {
    let window = layout.window.map(|window| window.span);
    let gap = |from: u64, to: u64, between_devices: bool| {
        // The window's ends divide a gap, for what is free within it is something else.
        let mut cuts = vec![from, to];
        cuts.extend(
            window.into_iter().flat_map(|w| [w.first(), w.end()]).filter(|at| (from..to).contains(at)),
        );
        cuts.sort_unstable();
        let mut lines = Vec::new();
        for pair in cuts.windows(2) {
            let &[low, high] = pair else { continue };
            let Some(span) = Span::new(low, high.saturating_sub(low)).filter(|s| s.size() >= SMALLEST_GAP)
            else {
                continue;
            };
            let inside = window.is_some_and(|w| w.overlaps(span));
            let (fill, label) = match (inside, between_devices) {
                (true, true) => ('░', "lost to alignment and to ports"),
                (true, false) => ('░', "left in the window"),
                (false, _) => (' ', "free"),
            };
            lines.push(Line::Stretch(Stretch { span, fill, label: label.to_owned(), tone: Tone::Faint }));
        }
        lines
    };
    let mut lines = Vec::new();
    let mut at = 0;
    let mut after_device = false;
    for stretch in taken {
        let device = stretch.tone != Tone::Plain;
        if stretch.span.first() > at {
            lines.extend(gap(at, stretch.span.first(), after_device && device));
        }
        at = at.max(stretch.span.end());
        after_device = device;
        lines.push(Line::Stretch(stretch));
    }
    if at < limit {
        lines.extend(gap(at, limit, false));
    }
    lines
}
