//! Program versions that can be compared: QEMU's and libvirt's, `MAJOR.MINOR.MICRO`.

use std::fmt;
use std::str::FromStr;

/// A version of QEMU or libvirt. Compares by number: 10.0.0 is newer than 9.3.0.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// From the one number that libvirt uses in its capabilities: `7002022` is 7.2.22.
    pub fn from_number(number: u32) -> Version {
        Version(number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
    }

    /// The first version in what a program prints about itself: `QEMU emulator version 7.2.22 (Debian 1:7.2…)`,
    /// `libvirtd (libvirt) 9.0.0`.
    pub fn in_text(text: &str) -> Option<Version> {
        text.split_ascii_whitespace().find_map(|word| word.parse().ok())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Reads the leading `8.2.2` or `8.2` of a version; what a distribution appends (`8.2.2+ds-0ubuntu1`) is left out.
impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Version, String> {
        let numeric = |c: char| c.is_ascii_digit() || c == '.';
        let end = text.find(|c| !numeric(c)).unwrap_or(text.len());
        let mut parts = text[..end].trim_end_matches('.').split('.').map(|part| part.parse::<u32>().ok());
        match (parts.next().flatten(), parts.next(), parts.next()) {
            (Some(major), Some(Some(minor)), None) => Ok(Version(major, minor, 0)),
            (Some(major), Some(Some(minor)), Some(Some(micro))) => Ok(Version(major, minor, micro)),
            _ => Err(format!("`{text}` is not a version; write it like 8.2.2")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn versions_read_and_compare() {
        for (text, expected) in [
            ("8.2.2", Version(8, 2, 2)),
            ("8.2", Version(8, 2, 0)),
            ("7.2.22+dfsg-0+deb12u1", Version(7, 2, 22)),
            ("9.0.0-4+deb12u2", Version(9, 0, 0)),
            ("10.0.13+ds-0", Version(10, 0, 13)),
            ("10.1.0.1", Version(10, 1, 0)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "8", "x", ".", "..", "8..2", "99999999999.0.0", "v8.2.2", "-1.2"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
        for (text, expected) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n", Some(Version(7, 2, 22))),
            ("libvirtd (libvirt) 9.0.0\n", Some(Version(9, 0, 0))),
            ("9.0.0\n", Some(Version(9, 0, 0))),
            ("bash: qemu: command not found", None),
        ] {
            assert_eq!(Version::in_text(text), expected, "{text}");
        }
        assert!(Version(10, 0, 0) > Version(9, 3, 0));
        assert_eq!(Version::from_number(7_002_022), Version(7, 2, 22));
        assert_eq!(Version::from_number(9_000_000), Version(9, 0, 0));
    }
}
