//! The catalogue listed.

use serde::Serialize;

use super::Paint;
use super::table::{Side, Table, Tone, shortened};
use crate::catalogue::{Confidence, Entry, Row};

/// The value of `schema`.
const SCHEMA: &str = "barfit/catalogue/1";

/// Entries for people: slug, ids, BARs that count, confidence, name; with one entry alone also the sources.
pub fn catalogue_text(entries: &[&Entry], paint: Paint) -> String {
    let mut table = Table::new(&[
        ("SLUG", Side::Left),
        ("ID", Side::Left),
        ("NAME", Side::Left),
        ("BARS", Side::Left),
        ("CONFIDENCE", Side::Left),
    ]);
    for entry in entries {
        let bars: Vec<String> = entry.largest().map(|row| row.bar.size.to_string()).collect();
        table.row([
            (entry.slug.to_owned(), Tone::Plain),
            (format!("{}:{}", entry.vendor, entry.device), Tone::Faint),
            (shortened(entry.name, 34), Tone::Plain),
            (bars.join(" + "), Tone::Plain),
            confidence(entry.confidence()),
        ]);
    }
    let mut out = table.text(0, paint);
    if let [entry] = entries {
        out.push('\n');
        out.push_str(&sources(entry, paint));
    }
    out
}

fn sources(entry: &Entry, paint: Paint) -> String {
    let mut table = Table::new(&[
        ("BAR", Side::Right),
        ("SIZE", Side::Right),
        ("KIND", Side::Left),
        ("CONFIDENCE", Side::Left),
        ("SOURCE", Side::Left),
    ]);
    for row in entry.rows {
        let mode = if row.mode.is_empty() { String::new() } else { format!("[{}] ", row.mode) };
        table.row([
            (row.bar.index.to_string(), Tone::Plain),
            (row.bar.size.to_string(), Tone::Plain),
            (row.bar.kind.to_string(), Tone::Plain),
            confidence(row.confidence),
            (format!("{mode}{}", row.source), Tone::Plain),
        ]);
    }
    table.text(0, paint)
}

fn confidence(confidence: Confidence) -> (String, Tone) {
    match confidence {
        Confidence::High => ("high".to_owned(), Tone::Good),
        Confidence::Medium => ("medium".to_owned(), Tone::Plain),
        Confidence::Low => ("low".to_owned(), Tone::Doubtful),
    }
}

/// Entries for programs, `barfit/catalogue/1`.
///
/// # Errors
/// None that is known; serde's signature has one.
pub fn catalogue_json(entries: &[&Entry]) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct List<'a> {
        schema: &'static str,
        devices: Vec<Device<'a>>,
    }
    #[derive(Serialize)]
    struct Device<'a> {
        slug: &'a str,
        vendor: &'a str,
        device: &'a str,
        class: &'a str,
        name: &'a str,
        gpu: bool,
        virtual_function: bool,
        confidence: Confidence,
        bars: Vec<Register<'a>>,
    }
    #[derive(Serialize)]
    struct Register<'a> {
        #[serde(flatten)]
        bar: crate::units::Bar,
        confidence: Confidence,
        #[serde(skip_serializing_if = "str::is_empty")]
        mode: &'a str,
        source: &'a str,
    }
    let register = |row: &'static Row| Register {
        bar: row.bar,
        confidence: row.confidence,
        mode: row.mode,
        source: row.source,
    };
    let device = |entry: &&Entry| Device {
        slug: entry.slug,
        vendor: entry.vendor,
        device: entry.device,
        class: entry.class,
        name: entry.name,
        gpu: entry.is_gpu(),
        virtual_function: entry.virtual_function,
        confidence: entry.confidence(),
        bars: entry.rows.iter().map(register).collect(),
    };
    let list = List { schema: SCHEMA, devices: entries.iter().map(device).collect() };
    serde_json::to_string_pretty(&list).map(|text| text + "\n")
}
