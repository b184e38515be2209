//! What firmware files are, kept in `/var/cache/barfit/firmware.json`: looking into an image takes up to a third of a
//! second, and finding the package that owns it means reading a megabyte or two, which is more than all else that a
//! hook does.
//!
//! An entry is good for a file of the same path, size and time of change, while no package was installed or removed,
//! read by the same version of barfit. A cache that cannot be read or written is no cache, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan_file::{sweep, write_atomically};
use crate::host::{Depth, FirmwareFile, Host, bytes};

/// Where it is, below the root directory.
const CACHE: &str = "var/cache/barfit/firmware.json";
/// Debian's package database. Where there is another, nothing is found by package.
const PACKAGES: &str = "var/lib/dpkg/status";
/// More files than any host has firmware.
const MOST: usize = 256;
/// No cache is larger.
const LARGEST: u64 = 1 << 20;

#[derive(Default, Serialize, Deserialize)]
struct Cache {
    barfit: String,
    files: BTreeMap<PathBuf, Entry>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    size: u64,
    /// Modification, nanoseconds since 1970.
    modified: i128,
    /// Modification of the package database; `None`: there is none.
    packages: Option<i128>,
    found: Option<FirmwareFile>,
}

/// What a firmware file is: by its package where that says enough, else by the image; looked up once.
pub(super) fn firmware_file(machine: &Host, path: &Path) -> Option<FirmwareFile> {
    let root = machine.root();
    let Ok(facts) = fs::metadata(root.join(path.strip_prefix("/").unwrap_or(path))) else {
        return machine.firmware_file(path, Depth::Package);
    };
    let packages = fs::metadata(root.join(PACKAGES)).ok().map(|facts| modified(&facts));
    let mut cache = read(root);
    let good = |entry: &&Entry| {
        (entry.size, entry.modified, entry.packages) == (facts.len(), modified(&facts), packages)
    };
    let kept = cache.files.get(path).filter(good).map(|entry| entry.found.clone());
    if let Some(found) = kept.as_ref().filter(|found| known(found)) {
        return found.clone();
    }
    let by_package = machine.firmware_file(path, Depth::Package);
    let found = if known(&by_package) {
        // Its package may have been out of reach when nothing was known of it.
        by_package
    } else if let Some(found) = kept {
        return found;
    } else {
        let found = machine.firmware_file(path, Depth::Image);
        if found.is_none() {
            // No firmware, or out of reach at this moment: not kept.
            return by_package;
        }
        found
    };
    if cache.files.len() >= MOST {
        cache.files.clear();
    }
    let (size, modified) = (facts.len(), modified(&facts));
    cache.files.insert(path.to_owned(), Entry { size, modified, packages, found: found.clone() });
    write(root, &cache);
    found
}

fn known(found: &Option<FirmwareFile>) -> bool {
    found.as_ref().is_some_and(|file| file.era.is_some() || file.version.is_some())
}

fn modified(facts: &fs::Metadata) -> i128 {
    i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec())
}

fn read(root: &Path) -> Cache {
    let path = root.join(CACHE);
    let text = bytes(&path, LARGEST).unwrap_or_default();
    let cache: Cache = serde_json::from_slice(&text).unwrap_or_default();
    let own = env!("CARGO_PKG_VERSION");
    if cache.barfit == own { cache } else { Cache { barfit: own.to_owned(), ..Cache::default() } }
}

/// Only root can; others go without.
fn write(root: &Path, cache: &Cache) {
    let path = root.join(CACHE);
    if let Ok(bytes) = serde_json::to_vec(cache) {
        // Should that be another hook's, it goes without.
        sweep(&path);
        let _ = write_atomically(&path, &bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/usr/share/OVMF/OVMF_CODE.fd";

    /// A file that no package owns, by name OVMF, in which nothing can be read.
    fn machine() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("usr/share/OVMF");
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("OVMF_CODE.fd"), "nothing").expect("written");
        let machine = Host::at(root.path());
        (root, machine)
    }

    /// Makes the cache say something that the file does not.
    fn mark(root: &Path) {
        let mut cache = read(root);
        let entry = cache.files.get_mut(Path::new(FILE)).expect("an entry");
        entry.found.as_mut().expect("a firmware").era = Some("202208".to_owned());
        write(root, &cache);
    }

    fn era(machine: &Host) -> Option<String> {
        firmware_file(machine, Path::new(FILE)).expect("a firmware by name").era
    }

    #[test]
    fn an_entry_is_good_until_the_file_changes() {
        let (root, machine) = machine();
        assert_eq!(era(&machine), None);
        mark(root.path());
        assert_eq!(era(&machine).as_deref(), Some("202208"));
        fs::write(root.path().join("usr/share/OVMF/OVMF_CODE.fd"), "something else").expect("written");
        assert_eq!(era(&machine), None);
    }

    #[test]
    fn an_entry_is_good_until_a_package_changes() {
        let (root, machine) = machine();
        assert_eq!(era(&machine), None);
        mark(root.path());
        assert_eq!(era(&machine).as_deref(), Some("202208"));
        let status = root.path().join(PACKAGES);
        fs::create_dir_all(status.parent().expect("a folder")).expect("made");
        fs::write(status, "").expect("written");
        assert_eq!(era(&machine), None);
    }

    #[test]
    fn a_corrupt_cache_is_no_cache() {
        let (root, machine) = machine();
        assert_eq!(era(&machine), None);
        for text in ["", "{", "{\"barfit\":1}", "\u{0}"] {
            fs::write(root.path().join(CACHE), text).expect("written");
            assert_eq!(era(&machine), None);
            mark(root.path());
        }
        fs::remove_file(root.path().join(CACHE)).expect("removed");
        fs::create_dir(root.path().join(CACHE)).expect("made");
        assert_eq!(era(&machine), None);
    }

    #[test]
    fn an_entry_of_another_version_counts_for_nothing() {
        let (root, machine) = machine();
        assert_eq!(era(&machine), None);
        mark(root.path());
        let mut cache = read(root.path());
        cache.barfit = "0.0.0".to_owned();
        write(root.path(), &cache);
        assert_eq!(era(&machine), None);
    }
}
