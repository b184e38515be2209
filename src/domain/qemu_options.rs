//! How QEMU reads the value of an option: `key=value` lists, sizes, switches.
//!
//! Sources: QEMU 7.2 `util/qemu-option.c` (`get_opt_name_value`, `get_opt_value`), `util/cutils.c` (`qemu_strtosz`),
//! `softmmu/vl.c` (`qemu_global_option`). Nothing here fails: what QEMU would refuse comes back as `None`.

use std::ops::Range;

use super::value::{Base, unsigned};
use crate::units::Bytes;

/// A `key=value` list. A comma in a value is written twice; a first part without `=` belongs to the implied key; any
/// other part without `=` is a switch that is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options(Vec<(String, String)>);

impl Options {
    /// Reads an option's value.
    pub(crate) fn parse(text: &str, implied: &str) -> Options {
        let value = |part: &Part<'_>| match &part.value {
            Some(value) => text[value.clone()].replace(",,", ","),
            None => "on".to_owned(),
        };
        Options(parts(text, implied).iter().map(|part| (part.key.to_owned(), value(part))).collect())
    }

    /// A JSON object (`-device {"driver": …}`); `None` when it is none. Numbers and booleans become words.
    pub(super) fn from_json(text: &str) -> Option<Options> {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
        let word = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => text,
            serde_json::Value::Bool(true) => "on".to_owned(),
            serde_json::Value::Bool(false) => "off".to_owned(),
            other => other.to_string(),
        };
        Some(Options(object.into_iter().map(|(key, value)| (key, word(value))).collect()))
    }

    /// The value of a key: of several the last, as in QEMU.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// One part of a `key=value` list, by its place in the text.
pub(crate) struct Part<'a> {
    /// The key, given or implied.
    pub(crate) key: &'a str,
    /// The part without the commas around it.
    pub(crate) whole: Range<usize>,
    /// The value, its commas doubled; `None` for a switch that is on by its mere name.
    pub(crate) value: Option<Range<usize>>,
}

/// Takes a `key=value` list apart.
pub(crate) fn parts<'a>(text: &'a str, implied: &'a str) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let name_end = text[start..].find(['=', ',']).map_or(text.len(), |end| start + end);
        let name = &text[start..name_end];
        let (key, value) = match text[name_end..].starts_with('=') {
            true => (name, Some(name_end + 1)),
            false if parts.is_empty() => (implied, Some(start)),
            false => (name, None),
        };
        let end = value_end(text, value.unwrap_or(name_end));
        parts.push(Part { key, whole: start..end, value: value.map(|value| value..end) });
        start = end + 1;
    }
    parts
}

/// Where the value that begins at `start` ends: at a comma that is not doubled.
fn value_end(text: &str, start: usize) -> usize {
    let mut at = start;
    while let Some(comma) = text[at..].find(',') {
        at += comma;
        if !text[at + 1..].starts_with(',') {
            return at;
        }
        at += 2;
    }
    text.len()
}

/// The name of an option: QEMU takes one hyphen or two.
pub(crate) fn option_name(word: &str) -> Option<&str> {
    let name = word.strip_prefix('-')?;
    Some(name.strip_prefix('-').unwrap_or(name))
}

/// The value of a `-global`.
pub(crate) struct GlobalText {
    /// QEMU's type.
    pub(crate) driver: String,
    /// Property of the type.
    pub(crate) property: String,
    /// What it is set to.
    pub(crate) value: String,
    /// Where that stands in the text.
    pub(crate) span: Range<usize>,
}

/// `driver.property=value`, or the long spelling with three keys.
pub(crate) fn global(text: &str) -> Option<GlobalText> {
    if let Some((driver, rest)) = text.split_once('.')
        && let Some((property, value)) = rest.split_once('=')
        && !driver.is_empty()
        && !driver.contains('=')
        && !property.is_empty()
    {
        let (driver, property, value) = (driver.to_owned(), property.to_owned(), value.to_owned());
        let span = text.len() - value.len()..text.len();
        return Some(GlobalText { driver, property, value, span });
    }
    let options = Options::parse(text, "driver");
    let get = |key| options.get(key).map(str::to_owned);
    let span = parts(text, "driver").into_iter().rfind(|part| part.key == "value")?.value?;
    Some(GlobalText { driver: get("driver")?, property: get("property")?, value: get("value")?, span })
}

/// A size: decimal, with an optional fraction and a letter for the unit, or hexadecimal. Without a letter it counts in
/// `default` bytes.
pub(super) fn size(text: &str, default: u64) -> Option<Bytes> {
    let text = text.trim_start();
    if text.starts_with("0x") || text.starts_with("0X") {
        return unsigned(text, Base::Any).ok()?.checked_mul(default).map(Bytes);
    }
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let scale: u64 = match suffix.to_ascii_lowercase().as_str() {
        "" => default,
        "b" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        "p" => 1 << 50,
        "e" => 1 << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 15 || fraction.contains('.') {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let part = match fraction {
        "" => 0,
        digits => {
            let power = 10u128.pow(u32::try_from(digits.len()).ok()?);
            u64::try_from(u128::from(digits.parse::<u64>().ok()?) * u128::from(scale) / power).ok()?
        }
    };
    whole.checked_mul(scale)?.checked_add(part).map(Bytes)
}

/// `on`, `off`, and their other spellings.
pub(crate) fn switch(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// A whole number in any base, as QEMU's properties take it.
pub(crate) fn number(text: &str) -> Option<u64> {
    unsigned(text, Base::Any).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{GIB, KIB, MIB, TIB};

    fn parsed(text: &str) -> String {
        let options = Options::parse(text, "name");
        options.iter().map(|(key, value)| format!("[{key}={value}]")).collect()
    }

    #[test]
    fn lists_as_qemu_reads_them() {
        for (text, shown) in [
            ("", ""),
            ("a", "[name=a]"),
            ("opt/ovmf/X,string=1", "[name=opt/ovmf/X][string=1]"),
            ("name=opt/ovmf/X,string=1", "[name=opt/ovmf/X][string=1]"),
            ("string=1,name=x", "[string=1][name=x]"),
            ("x,string=a,,b,,,c", "[name=x][string=a,b,][c=on]"),
            ("x,on", "[name=x][on=on]"),
            ("x,a=b=c", "[name=x][a=b=c]"),
            ("x,,y,z=1", "[name=x,y][z=1]"),
            (",a=1", "[name=][a=1]"),
        ] {
            assert_eq!(parsed(text), shown, "{text}");
        }
        assert_eq!(Options::parse("a=1,a=2", "name").get("a"), Some("2"));
    }

    #[test]
    fn globals_in_both_spellings() {
        let all = |a: &str, b: &str, c: &str| Some((a.to_owned(), b.to_owned(), c.to_owned()));
        for (text, found) in [
            ("x86_64-cpu.phys-bits=46", all("x86_64-cpu", "phys-bits", "46")),
            ("driver=x86_64-cpu,property=phys-bits,value=46", all("x86_64-cpu", "phys-bits", "46")),
            ("value=a.b=c,property=p,driver=d", all("d", "p", "a.b=c")),
            ("d.p=", all("d", "p", "")),
            ("d.p=1,2", all("d", "p", "1,2")),
            ("d.p", None),
            ("", None),
            ("driver=d,property=p", None),
        ] {
            let global = global(text);
            let spanned = global.as_ref().map(|global| text[global.span.clone()].to_owned());
            let global = global.map(|global| (global.driver, global.property, global.value));
            assert_eq!(global, found, "{text}");
            assert_eq!(spanned, found.map(|(_, _, value)| value), "{text}");
        }
    }

    #[test]
    fn sizes_with_letters() {
        for (text, default, bytes) in [
            ("1024", 1, Some(KIB)),
            ("2048G", 1, Some(2 * TIB)),
            ("1.5g", 1, Some(3 * GIB / 2)),
            ("0x40000000", 1, Some(GIB)),
            ("512", MIB, Some(512 * MIB)),
            ("2147483648K", 1, Some(2 * TIB)),
            ("16E", 1, None),
            ("1GiB", 1, None),
            (".5G", 1, None),
            ("-1", 1, None),
            ("", 1, None),
        ] {
            assert_eq!(size(text, default), bytes.map(Bytes), "{text}");
        }
    }
}
