//! What this host says about one domain: its facts and its policy.
//!
//! The hook and the command line both ask here, so that they decide alike. Only what the domain needs is read: its own
//! devices, its own firmware. A root directory is given, so that tests use a tree of their own; no process is started.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::firmware_cache;
use crate::domain::{DeviceKind, Domain, FirmwareRequest, MachineFamily};
use crate::guest::Source;
use crate::host::{FirmwareFile, Host, HostFacts, Program, Version, Wanted};
use crate::plan::Policy;
use crate::units::PciAddress;

/// The host's facts by hand: where this file exists, what it says wins over what the machine says.
pub const HOST_FILE: &str = "etc/barfit/host.json";
/// The policy.
pub const POLICY: &str = "etc/barfit/barfit.toml";
/// Drop-ins of the policy, `*.toml` in the order of their names.
pub const POLICY_FOLDER: &str = "etc/barfit/barfit.d";

/// Whether there is anything to read of a policy.
pub(super) fn has_policy(root: &Path) -> bool {
    let missing = |path: &str| {
        fs::symlink_metadata(root.join(path)).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    };
    !missing(POLICY) || !missing(POLICY_FOLDER)
}

/// The policy of this host: the file and its drop-ins, as far as they exist.
///
/// # Errors
/// A file that cannot be read, or that is no policy: its path, where and what.
pub fn policy(root: &Path) -> Result<Policy, String> {
    let mut files = vec![root.join(POLICY)];
    let mut more = drop_ins(&root.join(POLICY_FOLDER))?;
    more.sort();
    files.append(&mut more);
    let mut policy = Policy::default();
    for path in files {
        match fs::read_to_string(&path) {
            Ok(text) => policy.add(&text).map_err(|error| format!("{}:{error}", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    Ok(policy)
}

/// A drop-in that cannot be seen may be the one that forbids: no folder is fine, one that cannot be read is not.
fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let says = |error: io::Error| format!("{}: {error}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(says(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(says)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// The facts that an administrator has written down in [`HOST_FILE`]; `None` where there is no such file.
///
/// # Errors
/// A file that cannot be read, or that is no host file: its path, where and what.
pub fn host_file(root: &Path) -> Result<Option<HostFacts>, String> {
    let path = root.join(HOST_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => HostFacts::from_json(&text).map(Some).map_err(|e| format!("{}:{e}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// What has to be known of this host for this domain, and nothing else: what is given, and for the rest the machine.
/// With it go notes on what could not be read, and why.
pub fn facts(machine: &Host, domain: &Domain, given: Option<HostFacts>) -> (HostFacts, Source, Vec<String>) {
    let mut notes = Vec::new();
    let source = if given.is_some() { Source::HostFile } else { Source::Sysfs };
    let mut host = given.unwrap_or_default();
    let addresses: Vec<PciAddress> = host_devices(domain).collect();
    let program = |version: Version| Program { version: version.to_string() };
    host.cpu = host.cpu.or_else(|| Some(machine.cpu()));
    host.iommu_bits = host.iommu_bits.or_else(|| machine.iommu_bits(&addresses));
    host.qemu = host.qemu.or_else(|| machine.qemu_version().map(|found| program(found.version)));
    host.libvirt = host.libvirt.or_else(|| machine.libvirt_version().map(|found| program(found.version)));
    for address in addresses {
        if !host.pci.iter().any(|function| function.address == address) {
            match machine.pci_function(address) {
                Ok(function) => host.pci.push(function),
                Err(error) => notes.push(with_cause(&error)),
            }
        }
    }
    if host.firmware.is_empty() {
        host.firmware.extend(firmware(machine, domain));
    }
    (host, source, notes)
}

/// An error and what the system said, where it goes on about that.
fn with_cause(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// Whether anything of this host is passed through, or counts as if it were. Where not, nothing else need be known.
pub(super) fn passes_through(domain: &Domain, policy: &Policy) -> bool {
    policy.names_gpus() || domain.passes_through()
}

fn host_devices(domain: &Domain) -> impl Iterator<Item = PciAddress> {
    domain.devices.iter().filter_map(|device| match &device.kind {
        DeviceKind::Host { host, .. } => Some(*host),
        DeviceKind::Emulated { .. } => None,
    })
}

/// The guest's firmware file, by its package where that is known: reading an image takes far longer.
fn firmware(machine: &Host, domain: &Domain) -> Option<FirmwareFile> {
    let probe = |path: &Path| firmware_cache::firmware_file(machine, path);
    let picked = || {
        machine.firmware_for(&Wanted {
            machine: domain.machine.as_deref().unwrap_or("pc"),
            launch_security: domain.launch_security.as_deref(),
            ..Wanted::default()
        })
    };
    match &domain.firmware {
        FirmwareRequest::Pflash(path)
        | FirmwareRequest::Rom(path)
        | FirmwareRequest::AutoEfi { loader: Some(path) } => probe(path),
        FirmwareRequest::AutoEfi { loader: None } => probe(&picked()?.path),
        FirmwareRequest::AutoBios | FirmwareRequest::Default => (domain.family() != MachineFamily::Other)
            .then(|| machine.seabios_paths().find_map(|path| probe(&path)))?,
    }
}
