//! OVMF's 64-bit MMIO window: classic (right above RAM), dynamic (the top of the address space), or the size
//! that fw_cfg `opt/ovmf/X-PciMmio64Mb` asks for.
//!
//! Source: edk2 OvmfPkg/Library/PlatformInitLib/MemDetect.c (`PlatformGetFirstNonAddress`,
//! `PlatformDynamicMmioWindow`, `PlatformReservationConflictCB`) and QemuFwCfgSimpleParserLib. Windows that a
//! host provides through fw_cfg `etc/hardware-info` are not known here: QEMU provides none.

use super::{Guest, OvmfRules, RamMap, WindowRule};
use crate::units::{GIB, MIB, PhysBits, align_up};

/// Size of the classic window (`PcdPciMmio64Size`).
const CLASSIC_SIZE: u64 = 32 * GIB;
/// Largest `X-PciMmio64Mb` a strict parser accepts: 16 TiB.
const FW_CFG_MAX: u64 = 0x100_0000;

/// The window right above RAM, which OVMF computes first whatever it does later.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Classic {
    /// First address; 0 when there is no window.
    pub(super) base: u64,
    /// Bytes; 0: no window.
    pub(super) size: u64,
    /// First address above RAM and window: all that the firmware thinks it needs.
    pub(super) end: u64,
    /// Size and place were asked for through fw_cfg.
    pub(super) asked: bool,
}

impl Classic {
    pub(super) fn new(guest: &Guest, rules: &OvmfRules, ram: &RamMap) -> Classic {
        let ram_end = ram.above_4g.map_or(4 * GIB, |span| span.end());
        let asked = guest.mmio64_mb.as_deref().and_then(|text| fw_cfg_mib(text, rules));
        let size = asked.map_or(CLASSIC_SIZE, |mib| mib * MIB);
        let none = Classic { base: 0, size: 0, end: ram_end, asked: asked.is_some() };
        if size == 0 {
            return none;
        }
        // The file etc/reserved-memory-end is rounded by QEMU, RAM's end by the firmware.
        let top = ram.hotplug.map_or(ram_end, |area| area.end());
        let window = || {
            let size = align_up(size, GIB)?;
            let base = align_up(align_up(top, GIB)?, 1 << size.ilog2())?;
            Some(Classic { base, size, end: base.checked_add(size)?, asked: asked.is_some() })
        };
        window().unwrap_or(none)
    }
}

/// A window as the firmware computes it. Not a [`Span`](crate::units::Span): it may leave the address space.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Aperture {
    /// First address.
    pub(super) base: u64,
    /// Bytes, not 0.
    pub(super) size: u64,
    /// The rule that made it.
    pub(super) rule: WindowRule,
}

/// The 64-bit window, or `None` when there is none. `trusted` is the width where the firmware trusts CPUID.
pub(super) fn ovmf_window(
    rules: &OvmfRules,
    ram: &RamMap,
    classic: &Classic,
    trusted: Option<PhysBits>,
) -> Option<Aperture> {
    let kept = Aperture {
        base: classic.base,
        size: classic.size,
        rule: if classic.asked { WindowRule::FwCfg } else { WindowRule::Classic },
    };
    let overridden = rules.fw_cfg_override && classic.asked;
    if let Some(width) = trusted.filter(|_| !overridden) {
        let size = width.limit() >> rules.window_shift;
        if classic.size < size && classic.base.saturating_add(size) < width.limit() {
            let mut base = width.limit() - size;
            if rules.avoids_reserved {
                base = below_conflicts(base, size, ram);
            }
            let rule =
                if rules.window_shift == 2 { WindowRule::DynamicQuarter } else { WindowRule::DynamicEighth };
            return Some(Aperture { base, size, rule });
        }
    }
    Some(kept).filter(|window| window.size != 0)
}

/// Moves the window below every e820 entry that it overlaps, one after the other in the table's order, RAM
/// included: below RAM there is no room, and the subtraction wraps as it does in the firmware.
fn below_conflicts(mut base: u64, size: u64, ram: &RamMap) -> u64 {
    let low = (0, ram.below_4g.get());
    let high = ram.above_4g.map(|span| (span.first(), span.end()));
    let (hole, epc): (Vec<_>, Vec<_>) = ram
        .reserved
        .iter()
        .map(|span| (span.first(), span.end()))
        .partition(|range| range.0 != epc_start(ram));
    for (start, end) in hole.into_iter().chain([low]).chain(high).chain(epc) {
        if base.max(start) < base.wrapping_add(size).min(end) {
            base = start.wrapping_sub(size) & !(size - 1);
        }
    }
    base
}

fn epc_start(ram: &RamMap) -> u64 {
    ram.sgx_epc.map_or(u64::MAX, |span| span.first())
}

/// What the firmware reads as a number of MiB; `None`: malformed, the default size stays.
fn fw_cfg_mib(text: &str, rules: &OvmfRules) -> Option<u64> {
    let trimmed = text.trim_start_matches([' ', '\t']);
    if !rules.fw_cfg_strict {
        // At most seven characters, then whatever digits it begins with.
        let digits = trimmed.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
        return (text.len() <= 7).then(|| digits.parse().unwrap_or(0));
    }
    let line = |s: &'_ str| s.strip_suffix("\r\n").or_else(|| s.strip_suffix('\n')).unwrap_or(s).len();
    let end = line(text);
    let digits = trimmed.get(..trimmed.len() - (text.len() - end).min(trimmed.len()))?;
    // A buffer of 23 bytes, the closing NUL included.
    if text.len() > 22 || end == 0 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Blanks alone count as 0.
    let mib = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    (mib <= FW_CFG_MAX).then_some(mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fw_cfg_text_is_read_as_each_parser_reads_it() {
        for (text, strict, lenient) in [
            ("65536", Some(65536), Some(65536)),
            ("65536\n", Some(65536), Some(65536)),
            ("65536\r\n", Some(65536), Some(65536)),
            (" 0032768", Some(32768), None),
            ("0", Some(0), Some(0)),
            ("", None, Some(0)),
            (" ", Some(0), Some(0)),
            ("64G", None, Some(64)),
            ("0x100", None, Some(0)),
            ("-1", None, Some(0)),
            ("16777216", Some(16777216), None),
            ("16777217", None, None),
            ("9999999", Some(9999999), Some(9999999)),
            ("00000000000000000065536", None, None),
            ("0000000000000000065536", Some(65536), None),
            ("99999999999999999999", None, None),
        ] {
            let mut rules = OvmfRules::era("202211").unwrap_or_else(|| unreachable!());
            assert_eq!(fw_cfg_mib(text, &rules), strict, "{text:?}, strict");
            rules.fw_cfg_strict = false;
            assert_eq!(fw_cfg_mib(text, &rules), lenient, "{text:?}, lenient");
        }
    }
}
