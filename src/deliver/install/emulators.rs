//! Domains that were defined while the shim was libvirt's own choice of emulator: libvirt wrote the shim's path into
//! them as `<emulator>`, and without the shim they would not start.
//!
//! A removal gives the definitions the emulator behind the shim, through libvirt, and looks whether nothing else became
//! of them. Where libvirt keeps the shim's path in a place that cannot be redefined (a guest that runs, one that was
//! saved, a snapshot), or does not answer, a link to the real emulator stays where the shim was.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use memchr::memmem;

use crate::deliver::apply::Libvirt;
use crate::deliver::{daemon, shim};
use crate::domain::Domain;

/// Where libvirt keeps domains, below the root directory: definitions, guests that run, saved guests, snapshots,
/// checkpoints.
const KEPT: [&str; 5] = [
    "etc/libvirt/qemu",
    "run/libvirt/qemu",
    "var/lib/libvirt/qemu/save",
    "var/lib/libvirt/qemu/snapshot",
    "var/lib/libvirt/qemu/checkpoint",
];
/// A saved guest's file begins with its XML; behind it comes memory.
const LARGEST_XML: u64 = 16 << 20;

/// Gives every persistent domain of this host's libvirt that names a shim the emulator behind it. A line each, also for
/// those that could not be changed.
pub(super) fn give_back(root: &Path, dry_run: bool) -> Vec<String> {
    let definitions = root.join(KEPT[0]);
    let files = shim::NAMES.iter().flat_map(|name| named_in(root, &place(name)));
    // By their UUIDs: a name may look like another domain's number.
    let uuids: Vec<String> = files
        .filter(|file| file.parent() == Some(&definitions))
        .filter_map(|file| Domain::parse(&fs::read(file).ok()?).ok()?.uuid)
        .collect();
    // Nobody is asked where nothing is to be done.
    if uuids.is_empty() || !daemon::answers() {
        return Vec::new();
    }
    let libvirt = Libvirt { uri: daemon::URI.to_owned(), root: root.to_owned() };
    let changed = uuids.iter().filter_map(|uuid| give_back_one(root, &libvirt, uuid, dry_run).transpose());
    changed.map(|said| said.unwrap_or_else(|error| format!("left {error}"))).collect()
}

/// `None` where the domain names no shim.
fn give_back_one(
    root: &Path,
    libvirt: &Libvirt,
    uuid: &str,
    dry_run: bool,
) -> Result<Option<String>, String> {
    let definition = libvirt.definition(uuid)?;
    let name = &definition.name;
    for emulator in shim::NAMES {
        let named = |path: &Path| format!("<emulator>{}</emulator>", path.display()).into_bytes();
        let (old, shim) = (&definition.xml, named(&Path::new("/").join(place(emulator))));
        let Some(at) = memmem::find(old, &shim) else { continue };
        let real = shim::real_emulator(root, emulator.as_ref())?;
        let new = [&old[..at], &named(&real), &old[at + shim.len()..]].concat();
        let real = real.display();
        if dry_run {
            return Ok(Some(format!("would be given {real} as its <emulator> again: {name}")));
        }
        libvirt.replace(&definition, &new)?;
        return Ok(Some(format!("gave {name} {real} as its <emulator> again")));
    }
    Ok(None)
}

/// The shim of this name, from the root directory on.
fn place(name: &str) -> PathBuf {
    Path::new(shim::FOLDER).join(name)
}

/// The files in which libvirt keeps domains that name this shim (a path from the root directory on).
pub(super) fn named_in(root: &Path, shim: &Path) -> Vec<PathBuf> {
    let words = format!("<emulator>/{}</emulator>", shim.display());
    let finder = memmem::Finder::new(&words);
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = KEPT.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() => {
                    let mut text = Vec::new();
                    let file = fs::File::open(&path);
                    let read = file.and_then(|file| file.take(LARGEST_XML).read_to_end(&mut text));
                    if read.is_ok() && finder.find(&text).is_some() {
                        found.push(path);
                    }
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}
