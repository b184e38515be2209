//! Reading and writing `barfit/host/1`, strictly: an unknown key, a wrong schema or an absurd number is an error
//! with its place, never a guess.
//!
//! Every check runs while serde_json reads, so that each error has the line and column where it was noticed.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use thiserror::Error;

use super::facts::{HostFacts, PciFunction, SCHEMA};
use super::version::Version;
use crate::units::Bar;

/// What is wrong with a file of host facts, and where.
///
/// ```
/// # use barfit::host::HostFacts;
/// let error = HostFacts::from_json(r#"{"schema": "barfit/host/1", "cpu": {"phys_bits": 99}}"#).unwrap_err();
/// assert_eq!(error.to_string(), "1:52: phys_bits 99 is outside 32 to 52");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{line}:{column}: {message}")]
pub struct HostFileError {
    /// Line, from 1.
    pub line: usize,
    /// Column in bytes, from 1 (0 where a line ends too early).
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl From<serde_json::Error> for HostFileError {
    fn from(error: serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        let place = format!(" at line {line} column {column}");
        HostFileError { line, column, message: text.strip_suffix(&place).unwrap_or(&text).to_owned() }
    }
}

impl HostFacts {
    /// Reads the text of a `barfit/host/1` file.
    pub fn from_json(text: &str) -> Result<HostFacts, HostFileError> {
        #[derive(serde::Deserialize)]
        struct Head {
            #[serde(deserialize_with = "schema")]
            #[expect(dead_code, reason = "only its check counts")]
            schema: String,
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.trim_start().starts_with('[') {
            // serde would read a list as a struct, field by field.
            let message = "host facts are an object: {\"schema\": …}, not a list".to_owned();
            return Err(HostFileError { line: 1, column: 1, message });
        }
        // A file of another schema fails at its first unknown key; its schema is the better thing to name.
        serde_json::from_str(text).map_err(|error| match serde_json::from_str::<Head>(text) {
            Err(head) if head.is_data() => head.into(),
            _ => error.into(),
        })
    }

    /// The text that [`HostFacts::from_json`] reads, indented, ending in a newline.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

pub(super) fn schema<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let schema = String::deserialize(d)?;
    if schema == SCHEMA {
        return Ok(schema);
    }
    Err(D::Error::custom(format_args!("schema is `{schema}`; this barfit reads `{SCHEMA}`")))
}

pub(super) fn cpu_bits<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u8>, D::Error> {
    bits(d, "phys_bits", 32, 52)
}

pub(super) fn iommu_bits<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u8>, D::Error> {
    bits(d, "iommu_bits", 30, 64)
}

fn bits<'de, D: Deserializer<'de>>(d: D, name: &str, least: u8, most: u8) -> Result<Option<u8>, D::Error> {
    let Some(bits) = Option::<u64>::deserialize(d)? else { return Ok(None) };
    let fits = u8::try_from(bits).ok().filter(|b| (least..=most).contains(b));
    let error = || D::Error::custom(format_args!("{name} {bits} is outside {least} to {most}"));
    fits.map(Some).ok_or_else(error)
}

pub(super) fn version<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    text.parse::<Version>().map_err(D::Error::custom)?;
    Ok(text)
}

/// An edk2-stable tag's date: six digits, year and month.
pub(super) fn era<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let Some(era) = Option::<String>::deserialize(d)? else { return Ok(None) };
    let month = era.get(4..).and_then(|m| m.parse::<u8>().ok());
    let digits = era.len() == 6 && era.bytes().all(|b| b.is_ascii_digit());
    if digits && month.is_some_and(|m| (1..=12).contains(&m)) {
        return Ok(Some(era));
    }
    Err(D::Error::custom(format_args!("era `{era}` is not a year and month like 202211")))
}

pub(super) fn pci_id<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    hex_digits(d, 4, "10de")
}

pub(super) fn pci_class<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    hex_digits(d, 6, "030200")
}

fn hex_digits<'de, D: Deserializer<'de>>(d: D, digits: usize, like: &str) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    if text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(D::Error::custom(format_args!("`{text}` is not {digits} hex digits; write it like \"{like}\"")))
}

pub(super) fn functions<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<PciFunction>, D::Error> {
    d.deserialize_seq(Checked {
        phantom: PhantomData,
        check: |f: &PciFunction| Ok((f.address, f.address.to_string())),
    })
}

pub(super) fn bars<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<Bar>>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(transparent)]
    struct Bars(#[serde(deserialize_with = "checked_bars")] Vec<Bar>);
    Ok(Option::<Bars>::deserialize(d)?.map(|bars| bars.0))
}

fn checked_bars<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Bar>, D::Error> {
    let check = |bar: &Bar| {
        if bar.index > 6 {
            return Err(format!("BAR index {} is outside 0 to 6", bar.index));
        }
        if !bar.size.get().is_power_of_two() {
            return Err(format!("size {:#x} of BAR {} is not a power of two", bar.size.get(), bar.index));
        }
        Ok((bar.index, format!("BAR {}", bar.index)))
    };
    d.deserialize_seq(Checked { phantom: PhantomData, check })
}

/// Reads a list and checks each element as it comes: `check` gives its key, which must be unique, and the key's name.
struct Checked<T, F> {
    phantom: PhantomData<T>,
    check: F,
}

impl<'de, T, K, F> Visitor<'de> for Checked<T, F>
where
    T: Deserialize<'de>,
    K: Eq + Hash,
    F: Fn(&T) -> Result<(K, String), String>,
{
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        let mut seen = HashSet::new();
        while let Some(element) = seq.next_element::<T>()? {
            let (key, name) = (self.check)(&element).map_err(A::Error::custom)?;
            if !seen.insert(key) {
                return Err(A::Error::custom(format_args!("{name} is listed twice")));
            }
            list.push(element);
        }
        Ok(list)
    }
}
