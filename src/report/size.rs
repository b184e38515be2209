//! `size` for people: widths against what they bring.

use super::Paint;
use super::human::{finding_text, headline, verdict_word};
use super::json::rule;
use super::table::{Side, Table, Tone};
use crate::domain::Domain;
use crate::finding::Level;
use crate::plan::{Answer, Verdict};
use crate::units::{PhysBits, approximate};

/// A width and how the guest fares with it.
pub struct SizeRow {
    /// The guest's width.
    pub bits: PhysBits,
    /// How it fares.
    pub answer: Answer,
}

/// The answer for the guest as libvirt would make it, the widths in a table with the smallest sufficient one marked,
/// and what the answer rests on.
pub fn size_text(domain: &Domain, answer: &Answer, rows: &[SizeRow], paint: Paint) -> String {
    let mut out = paint.bold(&headline(domain, answer)) + "\n\n";
    out.push_str(&widths(rows, paint));
    let said = answer.findings.iter().filter(|finding| finding.level != Level::Note);
    let said: String = said.map(|finding| finding_text(finding, paint)).collect();
    if !said.is_empty() {
        out.push_str(&format!("\n{said}"));
    }
    out
}

fn widths(rows: &[SizeRow], paint: Paint) -> String {
    let fits = |row: &&SizeRow| row.answer.verdict == Verdict::Fits;
    let chosen = rows.iter().find(fits).map(|row| row.bits);
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
