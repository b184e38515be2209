//! Numbers and sizes as libvirt reads them.
//!
//! The rules are libvirt's own, because a number means what libvirt makes of it: `virScaleInteger`
//! (`src/util/virutil.c`, 9.0) for sizes with a unit, `virStrToLong_*` (`src/util/virstring.c`) for plain numbers.
//! Errors are sentences; the caller knows the place.

use crate::units::{Bytes, KIB, PhysBits};

/// How a number says its base.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) enum Base {
    /// Always decimal.
    Ten,
    /// As in C: `0x10` is hexadecimal, `010` is octal.
    Any,
}

/// A number as C's `strtoul` reads it, with nothing after it: leading blanks and `+` are fine, `-` is not.
pub(super) fn unsigned(text: &str, base: Base) -> Result<u64, String> {
    let digits = text.trim_start_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = match (base, hex) {
        (Base::Any, Some(rest)) => (rest, 16),
        (Base::Any, None) if digits.starts_with('0') => (digits, 8),
        _ => (digits, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(format!("`{text}` is not a number; write a non-negative whole number"));
    }
    u64::from_str_radix(digits, radix).map_err(|_| format!("`{text}` is too large a number"))
}

/// A size: `text` counted in `unit`, or in `default` bytes when no unit is given.
pub(super) fn size(text: &str, unit: Option<&str>, default: u64) -> Result<Bytes, String> {
    let number = unsigned(text, Base::Ten)?;
    let scale = match unit.filter(|unit| !unit.is_empty()) {
        Some(unit) => scale(unit)
            .ok_or_else(|| format!("`{unit}` is not a unit libvirt knows; write KiB, MiB, GiB or TiB"))?,
        None => default,
    };
    number.checked_mul(scale).map(Bytes).ok_or_else(|| too_large(text, unit))
}

/// A size of memory: KiB by default, rounded up to KiB (`virDomainParseMemory`). libvirt reads up to 8 EiB; what no
/// x86 guest can address, 4 PiB and more, is refused here, for nothing sensible can be said of it.
pub(super) fn memory(text: &str, unit: Option<&str>) -> Result<Bytes, String> {
    let bytes = size(text, unit, KIB)?;
    let addressable = |bytes: &Bytes| bytes.get() < PhysBits::MAX.limit();
    round_up(bytes, KIB).filter(addressable).ok_or_else(|| too_large(text, unit))
}

/// Memory that may be plugged in one day. libvirt defines a guest with up to 8 EiB of it, so such a guest gets an
/// answer: whatever lies above 4 PiB is as far out of reach as 4 PiB, and is taken for that.
pub(super) fn max_memory(text: &str, unit: Option<&str>) -> Result<Bytes, String> {
    let bytes = size(text, unit, KIB)?;
    if bytes.get() > i64::MAX.unsigned_abs() {
        return Err(too_large(text, unit));
    }
    Ok(round_up(bytes, KIB).unwrap_or(bytes).min(Bytes(PhysBits::MAX.limit())))
}

fn too_large(text: &str, unit: Option<&str>) -> String {
    format!("`{text}{}` is more than any guest can have", unit.map(|u| format!(" {u}")).unwrap_or_default())
}

/// Bytes in one of `unit`; `None` when libvirt does not know it.
fn scale(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    if matches!(unit.as_str(), "b" | "byte" | "bytes") {
        return Some(1);
    }
    let mut rest = unit.chars();
    let letter = rest.next()?;
    let power = 1 + u32::try_from("kmgtpe".find(letter)?).ok()?;
    match rest.as_str() {
        "" | "ib" => 1024u64.checked_pow(power),
        "b" => 1000u64.checked_pow(power),
        _ => None,
    }
}

/// Rounds up to a multiple of `step`; `None` past 64 bits.
pub(super) fn round_up(bytes: Bytes, step: u64) -> Option<Bytes> {
    bytes.get().checked_next_multiple_of(step).map(Bytes)
}

/// `yes`/`no` and `on`/`off`: libvirt takes one pair in each place, and nobody confuses them.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text {
        "yes" | "on" => Some(true),
        "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, MIB};

    #[test]
    fn numbers_as_c_reads_them() {
        for (text, base, number) in [
            ("0", Base::Any, Some(0)),
            ("31", Base::Any, Some(31)),
            ("0x1f", Base::Any, Some(31)),
            ("0X1F", Base::Any, Some(31)),
            ("010", Base::Any, Some(8)),
            ("010", Base::Ten, Some(10)),
            (" +7", Base::Any, Some(7)),
            ("08", Base::Any, None),
            ("0x", Base::Any, None),
            ("0x1f", Base::Ten, None),
            ("", Base::Any, None),
            ("-1", Base::Any, None),
            ("1 ", Base::Any, None),
            ("1.5", Base::Ten, None),
            ("18446744073709551615", Base::Ten, Some(u64::MAX)),
            ("18446744073709551616", Base::Ten, None),
            ("١", Base::Ten, None),
        ] {
            assert_eq!(unsigned(text, base).ok(), number, "`{text}`");
        }
    }

    #[test]
    fn every_spelling_of_a_unit() {
        for (text, unit, bytes) in [
            ("1", None, Some(KIB)),
            ("1", Some(""), Some(KIB)),
            ("1024", Some("b"), Some(KIB)),
            ("1025", Some("bytes"), Some(2 * KIB)),
            ("1", Some("Byte"), Some(KIB)),
            ("1", Some("k"), Some(KIB)),
            ("1", Some("KiB"), Some(KIB)),
            ("1", Some("KB"), Some(KIB)),
            ("3", Some("KB"), Some(3 * KIB)),
            ("1", Some("m"), Some(MIB)),
            ("1", Some("MB"), Some(977 * KIB)),
            ("1", Some("GB"), Some(976_563 * KIB)),
            ("512", Some("gib"), Some(512 * GIB)),
            ("1", Some("T"), Some(1 << 40)),
            ("1", Some("PiB"), Some(1 << 50)),
            ("4", Some("PiB"), None),
            ("1", Some("e"), None),
            ("8", Some("EiB"), None),
            ("16", Some("EiB"), None),
            ("1", Some("KKB"), None),
            ("1", Some("kbi"), None),
            ("1", Some("GiBi"), None),
            ("1", Some("pages"), None),
            ("1", Some("é"), None),
            ("1.5", Some("GiB"), None),
            ("1 ", None, None),
            ("", None, None),
        ] {
            assert_eq!(memory(text, unit).ok(), bytes.map(Bytes), "`{text}` `{unit:?}`");
        }
    }
}
