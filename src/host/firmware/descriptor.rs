//! Firmware descriptors: the JSON files by which libvirt finds a firmware for `<os firmware='efi'>`.
//!
//! Format: QEMU `docs/interop/firmware.json`. Folders, order and masking by file name: libvirt
//! `src/qemu/qemu_interop_config.c`; which one fits: `qemuFirmwareMatchDomain` in `src/qemu/qemu_firmware.c` (9.0).
//! A user's own folder (session mode) is not read, and what this program never meets (sleep states) is not matched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::host::read;

/// Later folders mask earlier ones, file by file.
const FOLDERS: [&str; 2] = ["usr/share/qemu/firmware", "etc/qemu/firmware"];

/// A firmware as its descriptor describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Path of the firmware file, as written there.
    pub path: PathBuf,
    /// Whether it is UEFI.
    pub uefi: bool,
    /// Whether it is BIOS.
    pub bios: bool,
    /// Whether it is mapped as flash with its variables in a file of their own, rather than read into memory.
    pub split_flash: bool,
    /// Features: `secure-boot`, `enrolled-keys`, `requires-smm`, `amd-sev`…
    pub features: Vec<String>,
    /// Machine patterns for x86-64: `pc-q35-*`.
    machines: Vec<String>,
}

/// What a domain asks of a firmware that libvirt picks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted<'d> {
    /// Machine type, its alias resolved: `pc-q35-7.2`.
    pub machine: &'d str,
    /// `<os firmware='bios'>` rather than `efi`.
    pub bios: bool,
    /// `<loader secure='yes'>`.
    pub secure_loader: bool,
    /// `<feature name='secure-boot' enabled=…>` in `<os><firmware>`.
    pub secure_boot: Option<bool>,
    /// `<feature name='enrolled-keys' enabled=…>`.
    pub enrolled_keys: Option<bool>,
    /// `<loader stateless='yes'>` or `type='rom'`: not flash.
    pub in_memory: Option<bool>,
    /// `type=` of `<launchSecurity>`: `sev`, `sev-snp`, `tdx`.
    pub launch_security: Option<&'d str>,
}

impl Descriptor {
    /// Whether libvirt would take this one.
    pub fn fits(&self, wanted: &Wanted<'_>) -> bool {
        let has = |feature: &str| self.features.iter().any(|f| f == feature);
        let agrees = |asked: Option<bool>, feature| asked.is_none_or(|asked| asked == has(feature));
        let launch = match wanted.launch_security {
            None => true,
            Some("sev") => has("amd-sev"),
            Some("sev-snp") => has("amd-sev-snp"),
            Some("tdx") => has("intel-tdx"),
            Some(_) => false,
        };
        (if wanted.bios { self.bios } else { self.uefi })
            && self.machines.iter().any(|pattern| matches_pattern(pattern, wanted.machine))
            && agrees(wanted.secure_boot, "secure-boot")
            && agrees(wanted.enrolled_keys, "enrolled-keys")
            && (!wanted.secure_loader || has("requires-smm"))
            && wanted.in_memory.is_none_or(|in_memory| in_memory != self.split_flash)
            && launch
    }
}

/// All descriptors for x86-64 in libvirt's order, and a note on each that cannot be read.
pub(in crate::host) fn descriptors(root: &Path) -> (Vec<Descriptor>, Vec<String>) {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    for folder in FOLDERS {
        for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str().filter(|name| !name.starts_with('.')) {
                files.insert(name.to_owned(), entry.path());
            }
        }
    }
    let (mut found, mut notes) = (Vec::new(), Vec::new());
    for path in files.into_values() {
        let text = read::text(&path, read::DESCRIPTOR).map_err(|e| e.to_string());
        match text.and_then(|text| parse(&text)) {
            Ok(descriptor) => found.extend(descriptor),
            Err(error) => notes.push(format!("{}: {error}", path.display())),
        }
    }
    (found, notes)
}

/// One descriptor; `None` for an empty file, which only masks another, and for what is not for x86-64 or not a file.
fn parse(text: &str) -> Result<Option<Descriptor>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let json: Json = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let (path, split_flash) = match (json.mapping.executable, json.mapping.filename) {
        (Some(executable), _) => match json.mapping.mode.as_deref().unwrap_or("split") {
            // Code and variables in one file: libvirt does not use it.
            "combined" => return Ok(None),
            mode => (executable.filename, mode == "split"),
        },
        (None, Some(filename)) => (filename, false),
        (None, None) => return Ok(None),
    };
    let targets = json.targets.into_iter().filter(|target| target.architecture == "x86_64");
    let machines: Vec<String> = targets.flat_map(|target| target.machines).collect();
    let interface = |name: &str| json.interface_types.iter().any(|i| i == name);
    let descriptor = Descriptor {
        path,
        uefi: interface("uefi"),
        bios: interface("bios"),
        split_flash,
        features: json.features,
        machines,
    };
    Ok(Some(descriptor).filter(|d| !d.machines.is_empty()))
}

#[derive(Deserialize)]
struct Json {
    #[serde(rename = "interface-types", default)]
    interface_types: Vec<String>,
    mapping: Mapping,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Deserialize)]
struct Mapping {
    mode: Option<String>,
    executable: Option<Executable>,
    filename: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Executable {
    filename: PathBuf,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    #[serde(default)]
    machines: Vec<String>,
}

/// `*` for any text, `?` for any character, as GLib's simple patterns have it.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match retry {
                Some((after, from)) => {
                    (p, t) = (after, from + 1);
                    retry = Some((after, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_glib_does() {
        for (pattern, text, expected) in [
            ("pc-q35-*", "pc-q35-7.2", true),
            ("pc-q35-*", "pc-i440fx-7.2", false),
            ("pc-*", "pc-q35-rhel9.2.0", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("a*b*c", "aXXbYYbc", true),
            ("a*b*c", "aXXbYY", false),
            ("pc-q35-?.2", "pc-q35-7.2", true),
        ] {
            assert_eq!(matches_pattern(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn descriptors_parse_or_say_why() {
        assert_eq!(parse(""), Ok(None));
        assert!(parse("{").is_err());
        assert_eq!(parse(r#"{"mapping": {"device": "flash"}}"#), Ok(None));
        let arm = r#"{"mapping": {"filename": "/x"}, "targets": [{"architecture": "aarch64", "machines": ["virt-*"]}]}"#;
        assert_eq!(parse(arm), Ok(None));
    }
}
