//! `size` for people: widths against what they bring.

use super::Paint;
use super::human::verdict_word;
use super::json::rule;
use super::table::{Side, Table, Tone};
use crate::plan::{Answer, Verdict};
use crate::units::{PhysBits, approximate};

/// A width and how the guest fares with it.
pub struct SizeRow {
    /// The guest's width.
    pub bits: PhysBits,
    /// How it fares.
    pub answer: Answer,
}

/// The table; the row of `chosen` is marked.
pub fn size_text(rows: &[SizeRow], chosen: Option<PhysBits>, paint: Paint) -> String {
    let mut table = Table::new(&[
        ("BITS", Side::Right),
        ("SPACE", Side::Right),
        ("VERDICT", Side::Left),
        ("GPUS", Side::Right),
        ("WINDOW", Side::Right),
        ("NEEDED", Side::Right),
        ("RULE", Side::Left),
        ("", Side::Left),
    ]);
    for SizeRow { bits, answer } in rows {
        let (verdict, tone) = verdict_word(answer.verdict);
        let layout = answer.present.as_ref();
        let window = layout.and_then(|layout| layout.window);
        let size = |bytes: Option<u64>| (bytes.map_or_else(|| "-".to_owned(), approximate), Tone::Plain);
        let total = answer.assembled.gpus();
        let placed = if answer.verdict == Verdict::WillNotStart { 0 } else { answer.gpus_placed(layout) };
        table.row([
            (bits.to_string(), Tone::Plain),
            (approximate(bits.limit()), Tone::Faint),
            (verdict.to_owned(), tone),
            (format!("{placed}/{total}"), Tone::Plain),
            size(window.map(|w| w.span.size())),
            size(window.map(|w| w.needed.get())),
            (window.map_or("-", |w| rule(w.rule)).to_owned(), Tone::Faint),
            (if chosen == Some(*bits) { "<- smallest that fits" } else { "" }.to_owned(), Tone::Good),
        ]);
    }
    table.text(2, paint)
}
