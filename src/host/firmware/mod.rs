//! Which firmware files this host has, and by which rules each of them plays.
//!
//! Two ways to find out, by what they cost. [`Depth::Package`]: the file's name and the package that owns it (dpkg),
//! under a millisecond; nothing is known of a file that no package owns. [`Depth::Image`]: the file itself, some
//! 15 ms, up to 0.3 s for a build that does not name its version. What is read from a file stays true until the file
//! changes: a caller in a hurry may keep it.
//!
//! A file that is neither OVMF nor SeaBIOS has no entry.

mod descriptor;
mod ovmf;
mod qcow2;
mod release;
mod seabios;
mod volume;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

pub use descriptor::{Descriptor, Wanted};

pub(super) use descriptor::descriptors;

use super::facts::{FirmwareFile, FirmwareKind};
use super::{packages, read};

/// How much to read.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Name and package only.
    Package,
    /// The file's contents.
    Image,
}

/// Packages that bring firmware for x86-64 guests.
const PACKAGES: [&str; 9] = [
    "ovmf",
    "ovmf-generic",
    "ovmf-amdsev",
    "ovmf-inteltdx",
    "ovmf-legacy",
    "pve-edk2-firmware-ovmf",
    "pve-edk2-firmware",
    "seabios",
    "qemu-system-data",
];

/// Where distributions keep firmware that no descriptor names; SeaBIOS where QEMU looks for it, first match first.
const FOLDERS: [&str; 10] = [
    "usr/share/OVMF",
    "usr/share/ovmf",
    "usr/share/ovmf/x64",
    "usr/share/edk2/ovmf",
    "usr/share/edk2/x64",
    "usr/share/edk2-ovmf/x64",
    "usr/share/pve-edk2-firmware",
    "usr/share/qemu",
    "usr/share/seabios",
    "usr/share/qemu-kvm",
];

/// All builds have 1 to 16 MiB.
const LARGEST: u64 = 64 << 20;

/// What this file is; `None` when it cannot be read or is no firmware that is known here.
pub(super) fn file(root: &Path, path: &Path, depth: Depth) -> Option<FirmwareFile> {
    let on_disk = root.join(path.strip_prefix("/").unwrap_or(path));
    let kind = kind_by_name(path);
    if kind == Some(FirmwareKind::Seabios) {
        // 256 KiB, less than the package database: always read.
        return seabios(path, &read::bytes(&on_disk, LARGEST).ok()?);
    }
    let package = owner(root, &on_disk);
    if depth == Depth::Image {
        let mut content = read::bytes(&on_disk, LARGEST).ok()?;
        if qcow2::is_qcow2(&content) {
            content = qcow2::contents(&content, LARGEST).unwrap_or_default();
        }
        if let Some(image) = volume::Image::new(&content) {
            let version = package.as_ref().map(|(_, version)| packages::without_epoch(version));
            let found = ovmf::examine(&image, version)?;
            return Some(FirmwareFile {
                era: Some(found.era),
                fw_cfg_override: found.fw_cfg_override,
                gib_page_tables: found.gib_page_tables,
                because: Some(found.because),
                ..unknown(path, FirmwareKind::Ovmf)
            });
        }
        if let Some(seabios) = seabios(path, &content) {
            return Some(seabios);
        }
    }
    if kind != Some(FirmwareKind::Ovmf) || !on_disk.exists() {
        return None;
    }
    let mut file = unknown(path, FirmwareKind::Ovmf);
    if let Some((name, version)) = package {
        let version = packages::without_epoch(&version);
        if let Some(era) = release::era(version) {
            file.fw_cfg_override = release::overrides(version, &era);
            file.era = Some(era);
            file.because = Some(format!("package {name} {version}"));
        }
    }
    file.gib_page_tables = path.to_string_lossy().contains("amdsev").then_some(false);
    Some(file)
}

/// All firmware files: what libvirt's descriptors name, in its order, then what lies in the usual places.
pub(super) fn files(root: &Path, depth: Depth) -> (Vec<FirmwareFile>, Vec<String>) {
    let (described, notes) = descriptors(root);
    let paths = described.into_iter().map(|d| d.path).chain(usual(root));
    let mut seen = HashSet::new();
    let mut found: Vec<FirmwareFile> = Vec::new();
    // Several names often lead to one file: it is read once.
    let mut read_already: Vec<(PathBuf, usize)> = Vec::new();
    for path in paths.filter(|path| seen.insert(path.clone())) {
        let on_disk = root.join(path.strip_prefix("/").unwrap_or(&path));
        let Ok(target) = fs::canonicalize(&on_disk) else { continue };
        let same = read_already.iter().find(|(other, _)| *other == target).map(|(_, index)| *index);
        let entry = match same.and_then(|index| found.get(index)) {
            Some(known) => Some(FirmwareFile { path, ..known.clone() }),
            None => file(root, &path, depth),
        };
        if let Some(entry) = entry {
            read_already.push((target, found.len()));
            found.push(entry);
        }
    }
    (found, notes)
}

/// What by its name is a firmware in the usual places.
fn usual(root: &Path) -> impl Iterator<Item = PathBuf> {
    FOLDERS.into_iter().flat_map(move |folder| {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> =
            entries.map(|entry| Path::new("/").join(folder).join(entry.file_name())).collect();
        paths.retain(|path| kind_by_name(path).is_some());
        paths.sort_unstable();
        paths
    })
}

/// What by its name is SeaBIOS, in the order of [`files`]; no file is opened.
pub(super) fn seabios_paths(root: &Path) -> impl Iterator<Item = PathBuf> {
    let described = descriptors(root).0.into_iter().map(|d| d.path);
    described.chain(usual(root)).filter(|path| kind_by_name(path) == Some(FirmwareKind::Seabios))
}

/// A firmware that runs code for x86-64 PCs, by the names that all distributions use.
fn kind_by_name(path: &Path) -> Option<FirmwareKind> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let image = [".fd", ".bin", ".qcow2"].iter().any(|end| name.ends_with(end));
    let variables = name.contains("vars") || name.contains("i386") || name.contains("ia32");
    if name == "bios-256k.bin" || name == "bios.bin" {
        Some(FirmwareKind::Seabios)
    } else if image && !variables && (name.contains("ovmf") || name.starts_with("edk2-x86_64")) {
        Some(FirmwareKind::Ovmf)
    } else {
        None
    }
}

fn seabios(path: &Path, content: &[u8]) -> Option<FirmwareFile> {
    let version = seabios::version(content)?;
    Some(FirmwareFile { version: Some(version.to_string()), ..unknown(path, FirmwareKind::Seabios) })
}

fn unknown(path: &Path, kind: FirmwareKind) -> FirmwareFile {
    FirmwareFile {
        path: path.to_owned(),
        kind,
        era: None,
        fw_cfg_override: None,
        version: None,
        gib_page_tables: None,
        because: None,
    }
}

/// The package that owns the file behind a path, links followed, and its version.
fn owner(root: &Path, on_disk: &Path) -> Option<(&'static str, String)> {
    let target = fs::canonicalize(on_disk).ok()?;
    let root = fs::canonicalize(root).ok()?;
    packages::owner(&root, &Path::new("/").join(target.strip_prefix(&root).ok()?), &PACKAGES)
}
