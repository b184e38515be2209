//! Which firmware a guest gets on this host, and by which rules it plays.
//!
//! The XML names a file, or asks libvirt to pick one, or says nothing (SeaBIOS). The host's facts say what the
//! file is. `--firmware PATH|ERA` overrides both. Where nothing is known, the assumption is a finding.

use std::path::Path;

use crate::domain::{Domain, FirmwareRequest};
use crate::finding::{Code, Finding};
use crate::host::{FirmwareFile, FirmwareKind, HostFacts};
use crate::layout::{Firmware, OvmfRules, SeaBiosRules};

/// Rules assumed for a UEFI firmware of unknown era: CPUID is read, 46 bits are the most, `X-PciMmio64Mb` is only a
/// minimum. What fits by these fits by all later ones.
const ASSUMED_ERA: &str = "202308";
/// Rules assumed for a SeaBIOS of unknown version: the last that ignores phys-bits, where a guest needs most care.
const ASSUMED_SEABIOS: &str = "1.16.2";

/// What `--firmware` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirmwareChoice {
    /// A file described in the host's facts, or just probed.
    File(FirmwareFile),
    /// An era: `202211`, `edk2-stable202211`.
    Era(String),
    /// `seabios`, or `seabios-1.16.3`.
    SeaBios(Option<String>),
}

/// The firmware's rules, and what is uncertain about them.
pub(super) fn firmware(
    domain: &Domain,
    host: &HostFacts,
    choice: Option<&FirmwareChoice>,
    findings: &mut Vec<Finding>,
) -> Option<Firmware> {
    if let Some(choice) = choice {
        return match choice {
            FirmwareChoice::File(file) => described(file, findings),
            FirmwareChoice::Era(era) => OvmfRules::era(era).map(Firmware::Ovmf),
            FirmwareChoice::SeaBios(version) => seabios(version.as_deref()),
        };
    }
    match &domain.firmware {
        FirmwareRequest::Pflash(path) | FirmwareRequest::AutoEfi { loader: Some(path) } => {
            ovmf_file(path, host, findings)
        }
        FirmwareRequest::AutoEfi { loader: None } => auto_efi(host, findings),
        FirmwareRequest::Rom(path) => match find(host, path) {
            Some(file) => described(file, findings),
            None if looks_like_uefi(path) => ovmf_file(path, host, findings),
            None => default_bios(host, findings),
        },
        FirmwareRequest::AutoBios | FirmwareRequest::Default => default_bios(host, findings),
    }
}

fn find<'h>(host: &'h HostFacts, path: &Path) -> Option<&'h FirmwareFile> {
    host.firmware.iter().find(|file| file.path == path)
}

/// Single-image UEFI builds are loaded as `rom`; their names say so.
fn looks_like_uefi(path: &Path) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    ["ovmf", "edk2", "uefi", "tdvf"].iter().any(|word| name.contains(word))
}

fn ovmf_file(path: &Path, host: &HostFacts, findings: &mut Vec<Finding>) -> Option<Firmware> {
    if let Some(file) = find(host, path) {
        return described(file, findings);
    }
    // Variants of one build (4M, secboot, ms) follow the same rules: a sibling in the same folder answers.
    let ovmf = |file: &&FirmwareFile| file.kind == FirmwareKind::Ovmf && file.era.is_some();
    let sibling = host.firmware.iter().filter(ovmf).find(|file| file.path.parent() == path.parent());
    match sibling {
        Some(file) => {
            findings.push(Finding::note(
                Code::FirmwareAssumed,
                format!(
                    "{} is not in the host's facts; taken to be of the same build as {}",
                    path.display(),
                    file.path.display()
                ),
            ));
            described(file, findings)
        }
        None => assumed_ovmf(&path.display().to_string(), findings),
    }
}

fn auto_efi(host: &HostFacts, findings: &mut Vec<Finding>) -> Option<Firmware> {
    match host.firmware.iter().find(|file| file.kind == FirmwareKind::Ovmf && file.era.is_some()) {
        Some(file) => described(file, findings),
        None => assumed_ovmf("the UEFI firmware that libvirt picks", findings),
    }
}

fn assumed_ovmf(what: &str, findings: &mut Vec<Finding>) -> Option<Firmware> {
    findings.push(Finding::warning(
        Code::FirmwareAssumed,
        format!(
            "the era of {what} is not known; assumed to follow the rules of edk2-stable{ASSUMED_ERA}. \
             Name it with --firmware PATH or --firmware ERA"
        ),
    ));
    OvmfRules::era(ASSUMED_ERA).map(Firmware::Ovmf)
}

fn default_bios(host: &HostFacts, findings: &mut Vec<Finding>) -> Option<Firmware> {
    match host.firmware.iter().find(|file| file.kind == FirmwareKind::Seabios) {
        Some(file) => described(file, findings),
        None => {
            findings.push(Finding::warning(
                Code::FirmwareAssumed,
                format!("the version of SeaBIOS is not known; assumed to be {ASSUMED_SEABIOS}"),
            ));
            seabios(None)
        }
    }
}

fn seabios(version: Option<&str>) -> Option<Firmware> {
    let known = version.and_then(SeaBiosRules::version);
    known.or_else(|| SeaBiosRules::version(ASSUMED_SEABIOS)).map(Firmware::SeaBios)
}

fn described(file: &FirmwareFile, findings: &mut Vec<Finding>) -> Option<Firmware> {
    firmware_rules(file).or_else(|| match file.kind {
        FirmwareKind::Seabios => seabios(None),
        FirmwareKind::Ovmf => assumed_ovmf(&file.path.display().to_string(), findings),
    })
}

/// The rules of a firmware file; `None` when its version is not known.
pub fn firmware_rules(file: &FirmwareFile) -> Option<Firmware> {
    match file.kind {
        FirmwareKind::Seabios => {
            file.version.as_deref().and_then(SeaBiosRules::version).map(Firmware::SeaBios)
        }
        FirmwareKind::Ovmf => {
            let mut rules = file.era.as_deref().and_then(OvmfRules::era)?;
            if let Some(overrides) = file.fw_cfg_override {
                rules.fw_cfg_override = overrides;
            }
            if let Some(tables) = file.gib_page_tables {
                rules.gib_page_tables = tables;
            }
            Some(Firmware::Ovmf(rules))
        }
    }
}
