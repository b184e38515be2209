//! How QEMU reads the value of an option: `key=value` lists, sizes, switches.
//!
//! Sources: QEMU 7.2 `util/qemu-option.c` (`get_opt_name_value`, `get_opt_value`), `util/cutils.c` (`qemu_strtosz`),
//! `softmmu/vl.c` (`qemu_global_option`). Nothing here fails: what QEMU would refuse comes back as `None`.

use super::value::{Base, unsigned};
use crate::units::Bytes;

/// A `key=value` list. A comma in a value is written twice; a first part without `=` belongs to the implied key; any
/// other part without `=` is a switch that is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options(Vec<(String, String)>);

impl Options {
    /// Reads an option's value.
    pub(super) fn parse(text: &str, implied: &str) -> Options {
        let mut options = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let name_end = rest.find(['=', ',']).unwrap_or(rest.len());
            let (name, after) = rest.split_at(name_end);
            let (name, value_text, plain) = match after.strip_prefix('=') {
                Some(value) => (name, value, false),
                None if options.is_empty() => (implied, rest, false),
                None => (name, after, true),
            };
            let (value, next) = value_up_to_comma(value_text);
            options.push((name.to_owned(), if plain { "on".to_owned() } else { value }));
            rest = next;
        }
        Options(options)
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
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// The value at the start of `text`, doubled commas halved, and what follows its closing comma.
fn value_up_to_comma(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some(comma) = rest.find(',') {
        value.push_str(&rest[..comma]);
        rest = &rest[comma + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, rest),
        }
    }
    value.push_str(rest);
    (value, "")
}

/// `driver.property=value`, or the long spelling with three keys.
pub(super) fn global(text: &str) -> Option<(String, String, String)> {
    if let Some((driver, rest)) = text.split_once('.')
        && let Some((property, value)) = rest.split_once('=')
        && !driver.is_empty()
        && !driver.contains('=')
        && !property.is_empty()
    {
        return Some((driver.to_owned(), property.to_owned(), value.to_owned()));
    }
    let options = Options::parse(text, "driver");
    let get = |key| options.get(key).map(str::to_owned);
    Some((get("driver")?, get("property")?, get("value")?))
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
pub(super) fn switch(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

/// A whole number in any base, as QEMU's properties take it.
pub(super) fn number(text: &str) -> Option<u64> {
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
            assert_eq!(global(text), found, "{text}");
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
