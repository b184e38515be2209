//! Firmware detection against the real files: those of this machine, and those of other Debian releases that
//! `tests/firmware/fetch` keeps in `.cache/firmware`. Backports included: Debian 2025.02 has `X-PciMmio64Mb` as an exact
//! size although upstream's tag has not, and its code says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use barfit::host::{Depth, FirmwareFile, FirmwareKind, Host, Wanted};

/// Release, OVMF's era (by markers alone where the image names no version), its override, SeaBIOS's version.
const RELEASES: [(&str, &str, bool, &str); 2] =
    [("bullseye", "202005", false, "1.14.0"), ("trixie", "202502", true, "1.16.3")];

fn cache() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/firmware");
    std::env::var_os("BARFIT_FIRMWARE_CACHE").map_or_else(default, PathBuf::from)
}

fn ovmf(files: &[FirmwareFile]) -> impl Iterator<Item = &FirmwareFile> {
    files.iter().filter(|file| file.kind == FirmwareKind::Ovmf)
}

#[test]
fn every_file_of_a_release_is_of_its_era() {
    for (release, era, overrides, seabios) in RELEASES {
        let root = cache().join(release);
        assert!(root.is_dir(), "{} is missing: run tests/firmware/fetch", root.display());
        let (files, notes) = Host::at(&root).firmware_files(Depth::Image);
        assert_eq!(notes, Vec::<String>::new(), "{release}");
        assert!(ovmf(&files).count() >= 6, "{release}: {files:#?}");
        for file in ovmf(&files) {
            assert_eq!(file.era.as_deref(), Some(era), "{release}: {file:#?}");
            assert_eq!(file.fw_cfg_override, Some(overrides), "{release}: {file:#?}");
            assert_eq!(file.gib_page_tables, None, "{release}: {file:#?}");
        }
        let versions: Vec<_> = files.iter().filter_map(|file| file.version.as_deref()).collect();
        assert!(!versions.is_empty() && versions.iter().all(|v| *v == seabios), "{release}: {versions:?}");
    }
}

#[test]
fn this_machine_s_package_and_image_agree() {
    let host = Host::here();
    let (files, _) = host.firmware_files(Depth::Image);
    assert!(ovmf(&files).count() > 0, "no OVMF here: install the package ovmf");
    for file in ovmf(&files) {
        let by_package = host.firmware_file(&file.path, Depth::Package).expect("the same file");
        assert_eq!(by_package.era, file.era, "{file:#?}");
        assert!(by_package.fw_cfg_override.is_none_or(|o| Some(o) == file.fw_cfg_override), "{file:#?}");
    }
    let seabios = files.iter().find(|file| file.kind == FirmwareKind::Seabios);
    assert!(
        seabios.is_some_and(|file| file.version.is_some()),
        "no SeaBIOS here: install the package seabios"
    );
}

#[test]
fn libvirt_s_choice_is_a_file_that_is_known() {
    let host = Host::here();
    let wanted = Wanted { machine: "pc-q35-7.2", ..Wanted::default() };
    let chosen = host.firmware_for(&wanted).expect("a descriptor: install the package ovmf");
    let (files, _) = host.firmware_files(Depth::Package);
    assert_eq!(files.first().map(|file| &file.path), Some(&chosen.path));
    // Secure Boot's variant wants SMM, which the old chipset has not.
    let old =
        host.firmware_for(&Wanted { machine: "pc-i440fx-7.2", ..Wanted::default() }).expect("a descriptor");
    assert!(!old.features.iter().any(|feature| feature == "requires-smm"), "{old:#?}");
    let plain = Wanted { secure_boot: Some(false), ..wanted };
    let plain = host.firmware_for(&plain).expect("a descriptor without Secure Boot");
    assert!(!plain.features.iter().any(|feature| feature == "secure-boot"), "{plain:#?}");
    assert_eq!(host.firmware_for(&Wanted { machine: "virt-7.2", ..Wanted::default() }), None);
}

#[test]
fn a_container_is_looked_into() {
    let host = Host::here();
    let (files, _) = host.firmware_files(Depth::Package);
    let plain = ovmf(&files).next().expect("no OVMF here: install the package ovmf");
    let root = tempfile::tempdir().expect("a temporary directory");
    let folder = root.path().join("usr/share/edk2/ovmf");
    std::fs::create_dir_all(&folder).expect("a folder");
    // As Fedora's package does it.
    let status = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", "-S", "4096"])
        .args([&plain.path, &folder.join("OVMF_CODE_4M.qcow2")])
        .status()
        .expect("cannot run qemu-img: install the package qemu-utils");
    assert!(status.success());
    let (found, _) = Host::at(root.path()).firmware_files(Depth::Image);
    let expected = host.firmware_file(&plain.path, Depth::Image).expect("the same file");
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].era, found[0].fw_cfg_override), (&expected.era, expected.fw_cfg_override));
}
