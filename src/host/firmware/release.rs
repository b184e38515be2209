//! From the version that someone gave a build of OVMF to the edk2-stable tag whose rules it follows.
//!
//! Distributions name their builds after the tag (`2022.11-6+deb12u2`, `202308-1`, `edk2-stable202302-for-qemu`) or
//! after the day of the tag or commit (`20231122-6.el9`, `0~20191122.bd85bf54-2ubuntu3`). Single changes are
//! backported without a trace in the name; for the one that matters, `X-PciMmio64Mb` as an exact size (edk2
//! 9ac1704af6, first tag 202505), the packages whose changelogs mention it are listed here.

/// edk2's stable tags and the day on which each was made, as the repository has it.
const TAGS: [(&str, u32); 32] = [
    ("201808", 20180815),
    ("201811", 20181114),
    ("201903", 20190308),
    ("201905", 20190606),
    ("201908", 20190829),
    ("201911", 20191125),
    ("202002", 20200302),
    ("202005", 20200602),
    ("202008", 20200903),
    ("202011", 20201127),
    ("202102", 20210302),
    ("202105", 20210527),
    ("202108", 20210824),
    ("202111", 20211126),
    ("202202", 20220221),
    ("202205", 20220526),
    ("202208", 20220828),
    ("202211", 20221117),
    ("202302", 20230301),
    ("202305", 20230524),
    ("202308", 20230825),
    ("202311", 20231122),
    ("202402", 20240214),
    ("202405", 20240524),
    ("202408", 20240813),
    ("202411", 20241117),
    ("202502", 20250221),
    ("202505", 20250523),
    ("202508", 20250812),
    ("202511", 20251119),
    ("202602", 20260213),
    ("202605", 20260508),
];

/// First tag in which `X-PciMmio64Mb` is an exact size.
pub(super) const OVERRIDE: &str = "202505";

/// Packages that have the same change on an older tag: the version before the revision's last number, and the least
/// such number. Debian: changelog of edk2 2025.02-2. Ubuntu 24.10: 2024.05-2ubuntu0.2 (Launchpad bug 2101903).
const OVERRIDE_BACKPORTS: [(&str, u32); 2] = [("2025.02-", 2), ("2024.05-2ubuntu0.", 2)];

/// The era of a build with this version, or `None` when no month can be read out of it.
pub(super) fn era(version: &str) -> Option<String> {
    (0..version.len()).find_map(|at| {
        let starts = at == 0 || !version.as_bytes()[at - 1].is_ascii_digit();
        let rest = version.get(at..).filter(|rest| starts && rest.starts_with("20"))?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        match digits {
            4 => {
                let month = rest[4..].strip_prefix('.')?;
                let digits = month.bytes().take_while(u8::is_ascii_digit).count();
                (digits == 2).then(|| of_month(&format!("{}{}", &rest[..4], &month[..2])))?
            }
            6 => of_month(&rest[..6]),
            8 => of_day(&rest[..8]),
            _ => None,
        }
    })
}

/// The last tag up to this month; a month after the last tag known here stands for itself.
fn of_month(month: &str) -> Option<String> {
    if !(1..=12).contains(&month.get(4..6)?.parse::<u8>().ok()?) {
        return None;
    }
    let (last, _) = TAGS[TAGS.len() - 1];
    if month > last {
        return Some(month.to_owned());
    }
    TAGS.iter().rev().find(|(tag, _)| *tag <= month).map(|(tag, _)| (*tag).to_owned())
}

/// The last tag up to this day.
fn of_day(day: &str) -> Option<String> {
    of_month(&day[..6]).filter(|_| (1..=31).contains(&day[6..].parse::<u8>().unwrap_or(0)))?;
    let number: u32 = day.parse().ok()?;
    TAGS.iter().rev().find(|(_, made)| *made <= number).map(|(tag, _)| (*tag).to_owned())
}

/// Whether a build with this version has `X-PciMmio64Mb` as an exact size; `None` where its era lacks it and a
/// backport is possible.
pub(super) fn overrides(version: &str, era: &str) -> Option<bool> {
    if era >= OVERRIDE {
        return Some(true);
    }
    OVERRIDE_BACKPORTS.iter().find_map(|(before, least)| {
        let digits: String = version.strip_prefix(before)?.chars().take_while(char::is_ascii_digit).collect();
        Some(digits.parse::<u32>().ok()? >= *least)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_schemes_give_an_era() {
        for (version, expected) in [
            ("2022.11-6+deb12u2", Some("202211")),
            ("2020.11-2+deb11u2", Some("202011")),
            ("2025.02-8+deb13u1", Some("202502")),
            ("2025.08.01-6", Some("202508")),
            ("2026.08+ds-2", Some("202608")),
            ("2024.02-2ubuntu0.8", Some("202402")),
            ("0~20191122.bd85bf54-2ubuntu3", Some("201908")),
            ("0~20181115.85588389-3+deb10u3", Some("201811")),
            ("20231122-6.el9", Some("202311")),
            ("edk2-20240524-5.fc40", Some("202405")),
            ("edk2-ovmf-20220826gitba0e0e4c6a-2.el9", Some("202205")),
            ("edk2-stable202302-for-qemu", Some("202302")),
            ("202308-150600.5.1", Some("202308")),
            ("4.2025.02-4", Some("202502")),
            ("3.20230228-4", Some("202211")),
            ("2023.12-1", Some("202311")),
            ("2017.11", None),
            ("0.0.0", None),
            ("1.16.2-debian-1.16.2-1", None),
            ("2000", None),
            ("202213", None),
            ("20231199-1", None),
            ("120231122", None),
            ("é2022.11", Some("202211")),
            ("", None),
        ] {
            assert_eq!(era(version).as_deref(), expected, "{version}");
        }
    }

    #[test]
    fn tags_are_in_order() {
        assert!(TAGS.is_sorted() && TAGS.is_sorted_by_key(|(_, day)| day));
    }

    #[test]
    fn backports_are_known_by_package() {
        for (version, expected) in [
            ("2025.02-8+deb13u1", Some(true)),
            ("2025.02-2", Some(true)),
            ("2025.02-1", Some(false)),
            ("2024.05-2ubuntu0.3", Some(true)),
            ("2024.05-2ubuntu0.1", Some(false)),
            ("2024.02-2ubuntu0.8", None),
            ("2022.11-6+deb12u2", None),
            ("2025.05-1", Some(true)),
            ("20250812-16.fc42", Some(true)),
            ("2025.02-", None),
        ] {
            let era = era(version).expect(version);
            assert_eq!(overrides(version, &era), expected, "{version}");
        }
    }
}
