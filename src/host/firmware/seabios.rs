//! SeaBIOS by its own version string, which lies open in the file: `rel-1.16.3-0-ga6ed6b701f0a-prebuilt.qemu.org`,
//! `1.16.2-debian-1.16.2-1`.

use memchr::memmem;

use crate::host::Version;

/// The version of a SeaBIOS image; `None` when it is no SeaBIOS, or does not say.
pub(super) fn version(image: &[u8]) -> Option<Version> {
    memmem::find(image, b"SeaBIOS")?;
    memmem::find_iter(image, b"1.").find_map(|at| {
        let before = &image[..at];
        let before = before.strip_suffix(b"rel-").unwrap_or(before);
        let begins = before.last().is_none_or(|byte| !byte.is_ascii_graphic());
        let text = image[at..].split(|byte| !byte.is_ascii_graphic()).next()?;
        let text = std::str::from_utf8(text).ok().filter(|_| begins)?;
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, rest) = text.split_at(end);
        let whole = number.split('.').count() == 3 && (rest.is_empty() || rest.starts_with('-'));
        whole.then(|| number.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_string_tells() {
        for (text, expected) in [
            ("SeaBIOS (version %s)\0\x01\x021.16.2\0\x001.16.2-debian-1.16.2-1\0", Some(Version(1, 16, 2))),
            ("SeaBIOS\0rel-1.16.3-0-ga6ed6b701f0a-prebuilt.qemu.org\0", Some(Version(1, 16, 3))),
            ("\u{80}\u{1}1.14.0-2\0SeaBIOS\0", Some(Version(1, 14, 0))),
            ("SeaBIOS\x001.17.0", Some(Version(1, 17, 0))),
            ("SeaBIOS\x001.17\x002.40.1\x001.2.3x\0gcc: 12.2.0\0", None),
            ("1.16.2-debian", None),
            ("", None),
        ] {
            assert_eq!(version(text.as_bytes()), expected, "{text:?}");
        }
    }
}
