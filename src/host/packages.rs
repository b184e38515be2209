//! The package database of Debian and its descendants, read as the plain text that it is.
//!
//! RPM's database cannot be read without RPM, and no process is started here: on such a host the answers are
//! unknown, and other sources must do.

use std::path::Path;

use memchr::memmem;

use super::read;

/// The version of an installed package, as dpkg writes it: `1:7.2+dfsg-7+deb12u18+b3`.
pub(super) fn version(root: &Path, package: &str) -> Option<String> {
    installed(&read::bytes(&root.join("var/lib/dpkg/status"), 64 << 20).ok()?, package)
}

/// The first of `packages` that has installed this file, with its version.
pub(super) fn owner<'p>(root: &Path, file: &Path, packages: &[&'p str]) -> Option<(&'p str, String)> {
    let package = packages.iter().find(|package| {
        let list = root.join(format!("var/lib/dpkg/info/{package}.list"));
        let files = read::text(&list, 1 << 20).unwrap_or_default();
        files.lines().any(|line| Path::new(line) == file)
    })?;
    Some((package, version(root, package)?))
}

/// What upstream called it: without epoch, which only orders dpkg's versions.
pub(super) fn without_epoch(version: &str) -> &str {
    version.split_once(':').map_or(version, |(_, rest)| rest)
}

fn installed(status: &[u8], package: &str) -> Option<String> {
    let head = format!("Package: {package}\n");
    let start = memmem::find_iter(status, &head).find(|&at| at == 0 || status[at - 1] == b'\n')?;
    let stanza = &status[start..];
    let stanza = &stanza[..memmem::find(stanza, b"\n\n").unwrap_or(stanza.len())];
    let stanza = String::from_utf8_lossy(stanza);
    let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let there = field("Status:")?.split(' ').next_back() == Some("installed");
    there.then(|| field("Version:").map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_installed_has_a_version() {
        let status = b"Package: ovmf-ia32\nStatus: install ok installed\nVersion: 1\n\n\
            Package: ovmf\nStatus: install ok installed\nArchitecture: all\nVersion: 2022.11-6+deb12u2\n\
            Description: says\n Package: seabios\n\n\
            Package: seabios\nStatus: deinstall ok config-files\nVersion: 1.16.2-1\n";
        assert_eq!(installed(status, "ovmf").as_deref(), Some("2022.11-6+deb12u2"));
        assert_eq!(installed(status, "ovmf-ia32").as_deref(), Some("1"));
        assert_eq!(installed(status, "seabios"), None);
        assert_eq!(installed(status, "qemu"), None);
        assert_eq!(installed(b"", "ovmf"), None);
        assert_eq!(without_epoch("1:7.2+dfsg-7"), "7.2+dfsg-7");
        assert_eq!(without_epoch("9.0.0-4"), "9.0.0-4");
    }
}
