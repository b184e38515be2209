//! Reading small files of a tree whose contents nobody promised: bounded, and never a panic.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Up to `limit` bytes of a file; what follows is left unread.
pub(crate) fn bytes(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    // The kernel says 4096 of its own files, or nothing.
    let size = file.metadata().map_or(0, |facts| facts.len()).clamp(1024, limit.max(1024));
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    file.take(limit).read_to_end(&mut content)?;
    Ok(content)
}

/// The beginning of a file: as many blocks of it as it takes until `enough` of it is there, `limit` bytes at most.
pub(super) fn beginning(path: &Path, limit: usize, enough: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 10;
    let file = File::open(path)?;
    let mut content = Vec::with_capacity(BLOCK);
    while content.len() < limit && !enough(&content) {
        content.reserve(BLOCK);
        if read_once(&file, &mut content)? == 0 {
            break;
        }
    }
    Ok(content)
}

/// The text of a file that the kernel makes up, without the white space around it. It gives all of a small one at
/// once (Linux `Documentation/filesystems/sysfs.rst`: a page at most), so that asking for more is left out.
pub(crate) fn attribute(path: &Path) -> io::Result<String> {
    let mut content = Vec::with_capacity(PAGE);
    read_once(&File::open(path)?, &mut content)?;
    Ok(String::from_utf8_lossy(&content).trim().to_owned())
}

/// One read into the room that is left.
fn read_once(file: &File, content: &mut Vec<u8>) -> io::Result<usize> {
    let read = || rustix::io::read(file, rustix::buffer::spare_capacity(content));
    Ok(rustix::io::retry_on_intr(read)?)
}

/// The text of a file, without the white space around it. Bytes that are not UTF-8 are replaced.
pub(super) fn text(path: &Path, limit: u64) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&bytes(path, limit)?).trim().to_owned())
}

/// Enough for any descriptor of a firmware.
pub(super) const DESCRIPTOR: u64 = 64 << 10;
/// The most that an attribute of sysfs holds.
const PAGE: usize = 4 << 10;

/// A hexadecimal number, with or without `0x`.
pub(super) fn hex(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    // A sign is taken, too.
    u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
}
