//! Which QEMU and which libvirt this host has, without asking them.
//!
//! libvirt: its library's file name carries the version (`libvirt.so.0.9003.1` is 9.3.1: meson.build,
//! `libvirt_lib_version`), on every distribution alike. QEMU: libvirt keeps what it has probed in
//! `/var/cache/libvirt/qemu/capabilities` (readable by root); else the package, whose version may lack the last
//! number. Who may start a process can do so and read the answer with [`Version::in_text`].

use std::cmp::Reverse;
use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memchr::memmem;

use super::packages;
use super::read;
use super::version::Version;

/// A program's version, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundVersion {
    /// The version.
    pub version: Version,
    /// Where it was read: `/usr/lib64/libvirt.so.0`, `package qemu-system-x86 1:7.2+dfsg-7`.
    pub because: String,
}

const LIBRARY_FOLDERS: [&str; 3] = ["usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib"];
const LIBVIRT_PACKAGES: [&str; 2] = ["libvirt0", "libvirt-daemon"];
const QEMU_PACKAGES: [&str; 2] = ["qemu-system-x86", "pve-qemu-kvm"];

/// libvirt's version.
pub(super) fn libvirt(root: &Path) -> Option<FoundVersion> {
    let library = LIBRARY_FOLDERS.iter().find_map(|folder| {
        let link = Path::new(folder).join("libvirt.so.0");
        let target = fs::read_link(root.join(&link)).ok()?;
        let version = library_version(target.file_name()?.to_str()?)?;
        Some(FoundVersion { version, because: Path::new("/").join(link).display().to_string() })
    });
    library.or_else(|| package(root, &LIBVIRT_PACKAGES))
}

/// QEMU's version.
pub(super) fn qemu(root: &Path) -> Option<FoundVersion> {
    probed(root).or_else(|| package(root, &QEMU_PACKAGES))
}

/// `libvirt.so.0.9003.1`: age is 1000 x major + minor.
fn library_version(name: &str) -> Option<Version> {
    let (age, micro) = name.strip_prefix("libvirt.so.0.")?.split_once('.')?;
    let age: u32 = age.parse().ok()?;
    Some(Version(age / 1000, age % 1000, micro.parse().ok()?))
}

/// The newest capabilities of a QEMU for x86-64 that libvirt has cached.
fn probed(root: &Path) -> Option<FoundVersion> {
    let folder = root.join("var/cache/libvirt/qemu/capabilities");
    let modified = |entry: DirEntry| Some((entry.metadata().and_then(|m| m.modified()).ok()?, entry.path()));
    let mut files: Vec<(SystemTime, PathBuf)> =
        fs::read_dir(folder).ok()?.flatten().filter_map(modified).collect();
    files.sort_by_key(|(time, _)| Reverse(*time));
    let version = files.iter().find_map(|(_, path)| probed_version(path))?;
    Some(FoundVersion { version, because: "libvirt's cache of capabilities".to_owned() })
}

/// The version of QEMU in a file of capabilities; `None` where that is not of x86-64.
fn probed_version(path: &Path) -> Option<Version> {
    // Both stand before the long lists of CPU models.
    let known = |text: &[u8]| element(text, "version").is_some() && element(text, "arch").is_some();
    let text = read::beginning(path, 64 << 10, known).ok()?;
    let number = element(&text, "version")?.parse().ok()?;
    (element(&text, "arch")? == "x86_64").then(|| Version::from_number(number))
}

/// What stands in the first element of a name.
fn element<'t>(text: &'t [u8], name: &str) -> Option<&'t str> {
    let tag = format!("<{name}>");
    let start = memmem::find(text, tag.as_bytes())? + tag.len();
    let end = start + memchr::memchr(b'<', &text[start..])?;
    std::str::from_utf8(&text[start..end]).ok()
}

fn package(root: &Path, names: &[&str]) -> Option<FoundVersion> {
    names.iter().find_map(|name| {
        let text = packages::version(root, name)?;
        let version = packages::without_epoch(&text).parse().ok()?;
        Some(FoundVersion { version, because: format!("package {name} {text}") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_named_by_its_version() {
        for (name, version) in [
            ("libvirt.so.0.9000.0", Some(Version(9, 0, 0))),
            ("libvirt.so.0.8007.0", Some(Version(8, 7, 0))),
            ("libvirt.so.0.11003.1", Some(Version(11, 3, 1))),
            ("libvirt.so.0.1002.2", Some(Version(1, 2, 2))),
            ("libvirt.so.0", None),
            ("libvirt-qemu.so.0.9000.0", None),
            ("libvirt.so.0.x.0", None),
        ] {
            assert_eq!(library_version(name), version, "{name}");
        }
    }
}
