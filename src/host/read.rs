//! Reading small files of a tree whose contents nobody promised: bounded, and never a panic.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Up to `limit` bytes of a file; what follows is left unread.
pub(super) fn bytes(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    // The kernel says 4096 of its own files, or nothing.
    let size = file.metadata().map_or(0, |facts| facts.len()).clamp(1024, limit.max(1024));
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// The text of a file, without the white space around it. Bytes that are not UTF-8 are replaced.
pub(super) fn text(path: &Path, limit: u64) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&bytes(path, limit)?).trim().to_owned())
}

/// Enough for any attribute of sysfs.
pub(super) const ATTRIBUTE: u64 = 64 << 10;

/// A hexadecimal number, with or without `0x`.
pub(super) fn hex(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}
