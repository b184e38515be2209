//! OVMF's rules by era: one row for every change that matters for BARs, with the edk2-stable tag that first
//! contains it and the commit it came with.
//!
//! A new era is one new row. Distributions backport single changes: [`OvmfRules::apply`] puts one on top of an
//! era. Rows were read in tianocore/edk2; which tag contains a commit was asked of the repository itself.

use super::OvmfRules;

/// One change of OVMF's rules.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum OvmfChange {
    /// `X-PciMmio64Mb` is parsed strictly, with a cap of 16 TiB.
    FwCfgStrict,
    /// CPUID's width is used and the window moves to the top of it.
    ReadsCpuid,
    /// The dynamic window is 2^(P - this).
    WindowShift(u8),
    /// Widest address space with 4-level paging.
    Clamp(u8),
    /// Hot-plug ports get a share of a large window as padding.
    PadsPref64,
    /// Hot-plug ports no longer get I/O padding.
    NoIoPadding,
    /// Reserved e820 entries are known and avoided.
    AvoidsReserved,
    /// MMCONFIG moved to 0xE0000000.
    MmconfigE0,
    /// CPUID's guest-phys-bits are honoured.
    ReadsGuestPhysBits,
    /// Guests that end below 1 TiB leave 5-level paging.
    FourLevelBelow1T,
    /// `X-PciMmio64Mb` is the exact size of the window.
    FwCfgOverride,
    /// 64-bit BARs behind a bridge may go high whether prefetchable or not.
    Mem64ThroughPref64(bool),
}

/// A change, the first edk2-stable tag that has it, and its commit.
struct Row {
    since: u32,
    change: OvmfChange,
    #[allow(dead_code, reason = "the source of the row, for the reader")]
    source: &'static str,
}

const fn row(since: u32, change: OvmfChange, source: &'static str) -> Row {
    Row { since, change, source }
}

/// In order of time.
const ROWS: &[Row] = &[
    row(202005, OvmfChange::FwCfgStrict, "98800cce65"),
    row(202211, OvmfChange::ReadsCpuid, "8f9ef9c9a0, bbda386d25, ecb778d0ac"),
    row(202211, OvmfChange::PadsPref64, "9e6b552b4c"),
    row(202302, OvmfChange::AvoidsReserved, "c0a0b9bc35, bf65d7ee88"),
    row(202305, OvmfChange::MmconfigE0, "82c1aa87f9"),
    row(202308, OvmfChange::Clamp(46), "c1e8537690"),
    row(202308, OvmfChange::NoIoPadding, "27727338b2"),
    row(202408, OvmfChange::ReadsGuestPhysBits, "603ad2d6ae, 90cb1ec332"),
    row(202411, OvmfChange::FourLevelBelow1T, "2069a63a8e"),
    row(202505, OvmfChange::FwCfgOverride, "9ac1704af6"),
    row(202602, OvmfChange::Mem64ThroughPref64(true), "f6489621b8"),
    row(202605, OvmfChange::Mem64ThroughPref64(false), "defbd14d63, a revert"),
    // Merged after edk2-stable202605; Debian's 2026.08 does not have it.
    row(202611, OvmfChange::WindowShift(2), "pull request 12997"),
];

/// The oldest rules described here, edk2-stable201808.
const FIRST: u32 = 201808;

impl OvmfRules {
    /// The rules of the edk2 of a month, `202211` (a tag `edk2-stable202211` and a date `2022.11` are read as
    /// well): those of the last era that began by then. `None` when that is no month; months before 201808
    /// count as 201808.
    pub fn era(month: &str) -> Option<OvmfRules> {
        let digits = month.strip_prefix("edk2-stable").unwrap_or(month).replace(['.', '-'], "");
        let digits = digits.get(..6).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
        let month: u32 = digits.parse().ok()?;
        if !(1..=12).contains(&(month % 100)) || !(200601..=299912).contains(&month) {
            return None;
        }
        let mut rules = OvmfRules::oldest();
        let mut era = FIRST;
        for row in ROWS.iter().filter(|row| row.since <= month) {
            era = row.since;
            rules.apply(row.change);
        }
        Some(OvmfRules { era: era.to_string(), ..rules })
    }

    /// Puts one change on top: what a distribution has backported or configured.
    pub fn apply(&mut self, change: OvmfChange) {
        match change {
            OvmfChange::FwCfgStrict => self.fw_cfg_strict = true,
            OvmfChange::ReadsCpuid => self.reads_cpuid = true,
            OvmfChange::WindowShift(shift) => self.window_shift = shift,
            OvmfChange::Clamp(bits) => self.clamp = bits,
            OvmfChange::PadsPref64 => self.pads_pref64 = true,
            OvmfChange::NoIoPadding => self.pads_io = false,
            OvmfChange::AvoidsReserved => self.avoids_reserved = true,
            OvmfChange::MmconfigE0 => self.mmconfig_e0 = true,
            OvmfChange::ReadsGuestPhysBits => self.reads_guest_phys_bits = true,
            OvmfChange::FourLevelBelow1T => self.four_level_below_1t = true,
            OvmfChange::FwCfgOverride => self.fw_cfg_override = true,
            OvmfChange::Mem64ThroughPref64(yes) => self.mem64_through_pref64 = yes,
        }
    }

    pub(super) fn oldest() -> OvmfRules {
        OvmfRules {
            era: FIRST.to_string(),
            reads_cpuid: false,
            window_shift: 3,
            clamp: 47,
            five_level: false,
            reads_guest_phys_bits: false,
            avoids_reserved: false,
            fw_cfg_override: false,
            fw_cfg_strict: false,
            pads_pref64: false,
            pads_io: true,
            mmconfig_e0: false,
            gib_page_tables: true,
            four_level_below_1t: false,
            mem64_through_pref64: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_gets_the_last_era_that_began() {
        for (month, era) in [
            ("201108", Some("201808")),
            ("202002", Some("201808")),
            ("202011", Some("202005")),
            ("2022.11-6+deb12u2", Some("202211")),
            ("202304", Some("202302")),
            ("20231122", Some("202308")),
            ("edk2-stable202502", Some("202411")),
            ("2026.08+ds-2", Some("202605")),
            ("202213", None),
            ("2022", None),
            ("sid", None),
            ("", None),
        ] {
            assert_eq!(OvmfRules::era(month).map(|r| r.era).as_deref(), era, "{month}");
        }
    }

    #[test]
    fn rows_are_in_order_of_time() {
        assert!(ROWS.is_sorted_by_key(|row| row.since));
        assert!(ROWS.iter().all(|row| !row.source.is_empty()));
    }

    #[test]
    fn only_202602_lets_non_prefetchable_bars_go_high() {
        let high: Vec<bool> = ["202511", "202602", "202605"]
            .iter()
            .filter_map(|m| OvmfRules::era(m))
            .map(|r| r.mem64_through_pref64)
            .collect();
        assert_eq!(high, [false, true, false]);
    }
}
