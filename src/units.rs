//! Sizes, guest addresses, closed ranges, PCI addresses and phys-bits: types that cannot hold nonsense.
//!
//! Everything here is exact and checked: arithmetic that would leave 64 bits says so with `None` instead of
//! wrapping. Sizes and addresses appear in JSON as hexadecimal strings (`"0x2000000000"`), for people in
//! binary units (`128 GiB`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes in a KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;
/// Bytes in a TiB.
pub const TIB: u64 = 1 << 40;

/// A number of bytes.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes at all.
    pub const ZERO: Bytes = Bytes(0);

    /// `n` MiB, or `None` when that does not fit in 64 bits.
    pub fn mib(n: u64) -> Option<Bytes> {
        n.checked_mul(MIB).map(Bytes)
    }

    /// `n` GiB, or `None` when that does not fit in 64 bits.
    pub fn gib(n: u64) -> Option<Bytes> {
        n.checked_mul(GIB).map(Bytes)
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The sum, or `None` when it does not fit in 64 bits.
    pub fn checked_add(self, other: Bytes) -> Option<Bytes> {
        self.0.checked_add(other.0).map(Bytes)
    }
}

/// `128 GiB`, `16 MiB`, `1.5 TiB`, `768 GiB`; exact: a size that no binary unit divides is printed in a smaller unit.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 5] =
            [(1 << 50, "PiB"), (TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        for (unit, name) in UNITS {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return f.pad(&format!("{} {name}", self.0 / unit));
            }
        }
        f.pad(&format!("{} B", self.0))
    }
}

/// A number of bytes for people, to one decimal: `896.1 GiB`, `1 TiB`. Exact where it can be; TiB only where whole,
/// for a tenth of a TiB is more than a GPU's BAR.
pub fn approximate(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let fits = |unit: u64| bytes >= unit && (unit < TIB || bytes.is_multiple_of(unit));
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| fits(*unit)) else {
        return format!("{bytes} B");
    };
    // Tenths, rounded up: what is needed must not look smaller than it is.
    let tenths = bytes / unit * 10 + (bytes % unit * 10).div_ceil(unit);
    if tenths.is_multiple_of(10) {
        format!("{} {name}", tenths / 10)
    } else {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    }
}

/// A guest physical address.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub u64);

impl Addr {
    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:#x}", self.0))
    }
}

macro_rules! hex_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(&format_args!("{:#x}", self.0))
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
                let digits = digits.filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_hexdigit()));
                digits.and_then(|d| u64::from_str_radix(d, 16).ok()).map($name).ok_or_else(|| {
                    serde::de::Error::custom(format_args!(
                        "`{text}` is not a hexadecimal number of at most 64 bits; write it like \"0x2000000000\""
                    ))
                })
            }
        }
    };
}
hex_serde!(Bytes);
hex_serde!(Addr);

/// A closed, non-empty range of guest addresses: both ends belong to it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    first: u64,
    last: u64,
}

impl Span {
    /// The range of `size` bytes from `base` on; `None` when it is empty or leaves 64 bits.
    pub fn new(base: u64, size: u64) -> Option<Span> {
        let last = base.checked_add(size.checked_sub(1)?)?;
        Some(Span { first: base, last })
    }

    /// First address of the range.
    pub const fn first(self) -> u64 {
        self.first
    }

    /// Last address of the range.
    pub const fn last(self) -> u64 {
        self.last
    }

    /// Bytes in the range. The whole 64-bit space counts as `u64::MAX`.
    pub const fn size(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// One past the last address, saturating at the end of 64 bits.
    pub const fn end(self) -> u64 {
        self.last.saturating_add(1)
    }

    /// Whether the two ranges share an address.
    pub const fn overlaps(self, other: Span) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Rounds up to a power-of-two `align`; `None` past 64 bits.
pub fn align_up(value: u64, align: u64) -> Option<u64> {
    debug_assert!(align.is_power_of_two());
    Some(value.checked_add(align - 1)? & !(align - 1))
}

/// A width of the guest's physical address space, 32 to 52 bits: what QEMU accepts as `phys-bits`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysBits(u8);

impl PhysBits {
    /// The smallest width QEMU accepts.
    pub const MIN: PhysBits = PhysBits(32);
    /// The largest width QEMU accepts (`TARGET_PHYS_ADDR_SPACE_BITS`).
    pub const MAX: PhysBits = PhysBits(52);
    /// What QEMU gives a guest whose width nobody chose.
    pub const QEMU_DEFAULT: PhysBits = PhysBits(40);
    /// What a host of unknown width is taken to have: the narrowest of today's servers.
    pub const ASSUMED_HOST: PhysBits = PhysBits(46);

    /// A width, or `None` outside 32 to 52.
    pub const fn new(bits: u64) -> Option<PhysBits> {
        if bits >= 32 && bits <= 52 { Some(PhysBits(bits as u8)) } else { None }
    }

    /// The plain number of bits.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// First address that no longer fits: 2 to the power of this width.
    pub const fn limit(self) -> u64 {
        1u64 << self.0
    }
}

impl fmt::Display for PhysBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for PhysBits {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for PhysBits {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bits = u64::deserialize(d)?;
        PhysBits::new(bits)
            .ok_or_else(|| serde::de::Error::custom(format_args!("{bits} phys-bits is outside 32 to 52")))
    }
}

/// A PCI function on the host or in the guest: `0000:41:00.0`. The domain has up to 32 bits (VMD uses `10000:`).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI domain (segment).
    pub domain: u32,
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Slot (device number), 0 to 31.
    pub slot: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl PciAddress {
    /// An address whose slot and function are in range.
    pub fn new(domain: u32, bus: u8, slot: u8, function: u8) -> Option<PciAddress> {
        (slot <= 0x1f && function <= 7).then_some(PciAddress { domain, bus, slot, function })
    }
}

/// As sysfs names it.
impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.slot, self.function))
    }
}

/// Reads `0000:41:00.0` and, with domain 0 understood, `41:00.0`.
impl FromStr for PciAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.rsplit(':');
            let slot = hex(parts.next()?)?;
            let bus = hex(parts.next()?)?;
            let domain = parts.next().map_or(Some(0), hex)?;
            if parts.next().is_some() {
                return None;
            }
            PciAddress::new(
                domain,
                bus.try_into().ok()?,
                slot.try_into().ok()?,
                hex(function)?.try_into().ok()?,
            )
        };
        parse().ok_or_else(|| format!("`{text}` is not a PCI address; write it like 0000:41:00.0"))
    }
}

fn hex(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > 8 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(text, 16).ok()
}

impl Serialize for PciAddress {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PciAddress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What kind of space a BAR asks for.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// 32-bit memory.
    Mem32,
    /// 32-bit prefetchable memory.
    Mem32Prefetchable,
    /// 64-bit memory, not prefetchable: behind a bridge it must lie below 4 GiB.
    Mem64,
    /// 64-bit prefetchable memory: the only kind that a bridge passes above 4 GiB.
    Mem64Prefetchable,
}

/// As in JSON.
impl fmt::Display for BarKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            BarKind::Io => "io",
            BarKind::Mem32 => "mem32",
            BarKind::Mem32Prefetchable => "mem32-prefetchable",
            BarKind::Mem64 => "mem64",
            BarKind::Mem64Prefetchable => "mem64-prefetchable",
        })
    }
}

/// One base address register of a PCI function. An expansion ROM is index 6 (as in sysfs) and `mem32`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bar {
    /// Register number 0 to 5; 6 is the expansion ROM.
    pub index: u8,
    /// Size in bytes, a power of two.
    pub size: Bytes,
    /// The space it asks for.
    pub kind: BarKind,
}

impl Bar {
    /// Index of the expansion ROM.
    pub const ROM: u8 = 6;

    /// Whether it is the expansion ROM rather than a register.
    pub fn is_rom(&self) -> bool {
        self.index == Bar::ROM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_exactly() {
        for (bytes, text) in [
            (0, "0 B"),
            (1000, "1000 B"),
            (4096, "4 KiB"),
            (16 * MIB, "16 MiB"),
            (128 * GIB, "128 GiB"),
            (128 * GIB + 32 * MIB, "131104 MiB"),
            (TIB, "1 TiB"),
            (1536 * GIB, "1536 GiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn approximations_never_look_smaller() {
        for (bytes, text) in [
            (512, "512 B"),
            (128 * GIB + 48 * MIB, "128.1 GiB"),
            (TIB, "1 TiB"),
            (TIB + 48 * MIB, "1024.1 GiB"),
            (3 * TIB / 2, "1536 GiB"),
            (8 * TIB, "8 TiB"),
        ] {
            assert_eq!(approximate(bytes), text);
        }
    }

    #[test]
    fn spans_refuse_nonsense() {
        assert_eq!(Span::new(0, 0), None);
        assert_eq!(Span::new(u64::MAX, 2), None);
        assert_eq!(Span::new(u64::MAX, 1).map(Span::size), Some(1));
        assert_eq!(align_up(u64::MAX, 4096), None);
        assert_eq!(align_up(0x80_8000_0000, 0x20_0000_0000), Some(0xa0_0000_0000));
    }

    #[test]
    fn pci_addresses_read_and_print() {
        for (text, shown) in [
            ("0000:41:00.0", "0000:41:00.0"),
            ("41:00.1", "0000:41:00.1"),
            ("10000:01:1f.7", "10000:01:1f.7"),
        ] {
            assert_eq!(text.parse::<PciAddress>().map(|a| a.to_string()), Ok(shown.to_owned()));
        }
        for text in
            ["", "41", "0000:41:20.0", "0000:41:00.8", "0:0:0:0.0", "0000:411:00.0", "zz:00.0", "+1:00.0"]
        {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn phys_bits_stay_in_range() {
        assert_eq!(PhysBits::new(31), None);
        assert_eq!(PhysBits::new(53), None);
        assert_eq!(PhysBits::new(43).map(PhysBits::limit), Some(1 << 43));
    }
}
