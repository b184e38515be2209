//! Finds the programs and files a proof needs: QEMU, a firmware image and the NVRAM image of the same build.

use std::path::{Path, PathBuf};

use super::{Error, Result};

const QEMU_NAMES: [&str; 2] = ["qemu-system-x86_64", "qemu-kvm"];
const QEMU_ADVICE: &str = "install qemu-system-x86 (Debian, Ubuntu) or qemu-kvm (Fedora, RHEL)";
const FIRMWARE_ADVICE: &str =
    "install ovmf and seabios (Debian, Ubuntu) or edk2-ovmf and seabios-bin (Fedora, RHEL), or name a file";
const VARS_ADVICE: &str = "an OVMF CODE image needs the VARS image of the same build beside it";

/// A firmware image, and for OVMF in two parts the NVRAM that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareFiles {
    /// The code: OVMF_CODE, a combined OVMF.fd, or SeaBIOS's bios.bin.
    pub code: PathBuf,
    /// OVMF_VARS of the same build; `None` for SeaBIOS and a combined image.
    pub vars: Option<PathBuf>,
}

impl FirmwareFiles {
    /// The files that belong to a firmware image: for a file named `…CODE…`, the `…VARS…` beside it.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn beside(code: &Path) -> Result<FirmwareFiles> {
        if !code.is_file() {
            return Err(Error::NoFirmware { path: code.to_owned(), advice: FIRMWARE_ADVICE });
        }
        let name = code.file_name().unwrap_or_default().to_string_lossy();
        if !name.contains("CODE") {
            return Ok(FirmwareFiles { code: code.to_owned(), vars: None });
        }
        // Secure-boot and other variants of the code share the plain NVRAM template of their size.
        let plain = name.split('.').next().unwrap_or_default().replace("CODE", "VARS");
        let exact = name.replace("CODE", "VARS");
        let candidates = [exact, format!("{plain}.fd")].map(|name| code.with_file_name(name));
        match candidates.iter().find(|path| path.is_file()) {
            Some(vars) => Ok(FirmwareFiles { code: code.to_owned(), vars: Some(vars.clone()) }),
            None => Err(Error::NoFirmware { path: candidates[0].clone(), advice: VARS_ADVICE }),
        }
    }
}

/// The QEMU of this machine, first in `PATH`.
///
/// # Errors
/// [`Error::Missing`], with the names of the packages.
pub fn find_qemu() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    // Where Fedora and RHEL keep it.
    folders.push(PathBuf::from("/usr/libexec"));
    QEMU_NAMES
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::Missing { program: QEMU_NAMES[0].to_owned(), advice: QEMU_ADVICE })
}
