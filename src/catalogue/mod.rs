//! BAR sizes by PCI id, for when no sysfs can be asked: planning a flavor, reading a domain of another machine.
//!
//! Knows what `data/gpus.csv` says: one row a BAR, each with its source and how far it can be trusted. A size is
//! the one at full VRAM (resizable BAR on, compute mode); where a mode changes it, the larger one counts. It does
//! not know what this machine's cards are set to: sysfs always wins over it. Most rows of cards that nobody has
//! printed follow a rule that held in every printed data-center case (frame buffer BAR = VRAM rounded up to a
//! power of two) and say `low`.
//!
//! A *slug* is the name of an entry on the command line, `h100-nvl`: lower case, model, then form factor or memory
//! where one model has several. Slugs are unique and never change meaning.

mod class;

pub use class::is_gpu;

use serde::Serialize;

use crate::units::{Bar, BarKind, Bytes};

include!(concat!(env!("OUT_DIR"), "/catalogue_table.rs"));

/// How far a row can be trusted; the order is from least to most.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Inferred from the family; nobody was found to have printed it.
    Low,
    /// Printed, but the id did not stand beside it, or only the size is known.
    Medium,
    /// Printed by lspci or a kernel log for this very device.
    High,
}

/// One row of the catalogue: a BAR, and where that knowledge comes from.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The BAR.
    pub bar: Bar,
    /// How far it can be trusted.
    pub confidence: Confidence,
    /// The setting in which the BAR has this size (`ReBAR on`); empty where there is but one.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub mode: &'static str,
    /// Who printed it, or the rule it was inferred by.
    pub source: &'static str,
}

/// One device of the catalogue: a GPU, or a companion that takes space beside one (NVSwitch, NIC, audio function).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Name on the command line, `h100-nvl`.
    pub slug: &'static str,
    /// Vendor id, four hex digits.
    pub vendor: &'static str,
    /// Device id, four hex digits. A virtual function that has no id of its own in the table bears its parent's.
    pub device: &'static str,
    /// Class code, six hex digits: `030200`.
    pub class: &'static str,
    /// Whether this is an SR-IOV virtual function.
    pub virtual_function: bool,
    /// Full name, vendor first.
    pub name: &'static str,
    /// All rows, by BAR index; a BAR whose size depends on a mode has several.
    pub rows: &'static [Row],
}

impl Entry {
    /// Whether this is a GPU rather than a companion.
    pub fn is_gpu(&self) -> bool {
        is_gpu(self.class, self.vendor, self.device)
    }

    /// The row that counts for each BAR, by index: the largest size of any mode.
    pub fn largest(&self) -> impl Iterator<Item = &'static Row> + use<> {
        let rows = self.rows;
        (0..=6).filter_map(move |index| {
            rows.iter().filter(|row| row.bar.index == index).max_by_key(|row| row.bar.size)
        })
    }

    /// The BARs, by index.
    pub fn bars(&self) -> Vec<Bar> {
        self.largest().map(|row| row.bar).collect()
    }

    /// Confidence in the largest BAR, the one that decides whether the device fits.
    pub fn confidence(&self) -> Confidence {
        let decisive = self.largest().max_by_key(|row| row.bar.size);
        decisive.map_or(Confidence::Low, |row| row.confidence)
    }
}

/// All entries: GPUs first by vendor and family, as in `data/gpus.csv`.
pub fn entries() -> &'static [Entry] {
    ENTRIES
}

/// The device with these ids (four hex digits each, any case); of a physical function and its VF the physical one.
pub fn by_id(vendor: &str, device: &str) -> Option<&'static Entry> {
    let id = number(vendor)? << 16 | number(device)?;
    let first = BY_ID.partition_point(|(other, _)| *other < id);
    let mut found = BY_ID[first..].iter().take_while(|(other, _)| *other == id).map(|(_, at)| &ENTRIES[*at]);
    let first = found.next()?;
    Some(if first.virtual_function { found.next().unwrap_or(first) } else { first })
}

/// An id of four hex digits, any case.
fn number(id: &str) -> Option<u32> {
    let digits = <[u8; 4]>::try_from(id.as_bytes()).ok()?;
    digits.into_iter().try_fold(0, |number, digit| Some(number << 4 | char::from(digit).to_digit(16)?))
}

/// The device of this slug, any case.
pub fn by_slug(slug: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|e| e.slug.eq_ignore_ascii_case(slug))
}

/// Slugs that a wrong one may have meant, the likeliest first, at most three.
pub fn similar_slugs(slug: &str) -> Vec<&'static str> {
    let slug = slug.to_ascii_lowercase();
    let mut scored: Vec<(f64, &str)> = ENTRIES
        .iter()
        .map(|e| {
            let prefix = !slug.is_empty() && e.slug.starts_with(&slug);
            let score = if prefix { 1.0 } else { strsim::jaro_winkler(&slug, e.slug) };
            (score, e.slug)
        })
        .filter(|(score, _)| *score > 0.8)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, slug)| slug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, MIB};

    #[test]
    fn the_reference_card_has_its_three_bars() {
        let h100 = by_id("10DE", "2321").expect("H100 NVL");
        assert_eq!((h100.slug, h100.is_gpu(), h100.confidence()), ("h100-nvl", true, Confidence::High));
        let kind = BarKind::Mem64Prefetchable;
        let expected = [(0, 16 * MIB), (2, 128 * GIB), (4, 32 * MIB)].map(|(index, size)| Bar {
            index,
            size: Bytes(size),
            kind,
        });
        assert_eq!(h100.bars(), expected);
    }

    #[test]
    fn the_documented_slugs_exist() {
        for slug in ["h100-nvl", "h100-sxm5", "h200-sxm", "b200", "a100-80g", "mi300x", "H100-NVL"] {
            assert!(by_slug(slug).is_some_and(|e| e.is_gpu()), "{slug}");
        }
    }

    #[test]
    fn the_larger_mode_counts() {
        for (slug, size) in [("rtx-3090", 32 * GIB), ("rtx-4090", 32 * GIB), ("rtx-a6000", 64 * GIB)] {
            let bars = by_slug(slug).expect(slug).bars();
            assert_eq!(bars.iter().map(|b| b.size.get()).max(), Some(size), "{slug}");
            assert_eq!(bars.iter().filter(|b| b.index == 1).count(), 1, "{slug}");
        }
    }

    #[test]
    fn an_id_means_the_physical_function() {
        for e in entries() {
            let found = by_id(e.vendor, e.device).expect(e.slug);
            assert!(std::ptr::eq(found, e) || e.virtual_function, "{}", e.slug);
            assert!(std::ptr::eq(by_slug(e.slug).expect(e.slug), e));
        }
        assert_eq!(by_id("1002", "74b5").map(|e| e.slug), Some("mi300x-vf"));
    }

    #[test]
    fn every_entry_is_sane() {
        for e in entries() {
            assert!(
                e.slug.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{}",
                e.slug
            );
            let mut next_free = 0;
            for bar in e.bars() {
                assert!(bar.index >= next_free, "{}: BAR {} overlaps a 64-bit one", e.slug, bar.index);
                let wide = matches!(bar.kind, BarKind::Mem64 | BarKind::Mem64Prefetchable);
                assert!(bar.index + u8::from(wide) <= if bar.index == 6 { 6 } else { 5 }, "{}", e.slug);
                next_free = bar.index + 1 + u8::from(wide);
            }
            assert!(!e.rows.is_empty() && e.rows.iter().all(|r| !r.source.is_empty()), "{}", e.slug);
        }
    }

    #[test]
    fn companions_are_not_gpus() {
        let companions: Vec<&str> = entries().iter().filter(|e| !e.is_gpu()).map(|e| e.slug).collect();
        assert_eq!(
            companions,
            [
                "nvswitch-a100",
                "nvswitch-h100",
                "audio-ga102",
                "audio-ad102",
                "audio-gb202",
                "audio-tu104",
                "xhci-tu102",
                "connectx-6",
                "connectx-7"
            ]
        );
    }

    #[test]
    fn a_wrong_slug_gets_a_suggestion() {
        for (wrong, right) in [
            ("h100nvl", "h100-nvl"),
            ("h10-nvl", "h100-nvl"),
            ("mi300", "mi300x"),
            ("a100-80gb", "a100-80g"),
            ("B20", "b200"),
        ] {
            assert_eq!(similar_slugs(wrong).first(), Some(&right), "{wrong}: {:?}", similar_slugs(wrong));
        }
        assert_eq!(similar_slugs("zzz"), Vec::<&str>::new());
        assert_eq!(similar_slugs(""), Vec::<&str>::new());
    }
}
