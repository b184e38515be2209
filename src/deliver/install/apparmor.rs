//! AppArmor: the rules without which libvirt's profiles keep the daemon from running a shim, and a guest from becoming
//! QEMU through it.
//!
//! Measured (Debian 12, AppArmor 3.0.8, libvirt 9.0, enforcing): with the shim in PATH and no rule every define and
//! every probe of the host fails; with the daemon's rule alone every guest does. Guests' profiles are made anew at
//! each start, the daemon's has to be loaded again. libvirt 9.0 reads `local/abstractions/libvirt-qemu`, newer ones
//! (11.3) the folder `abstractions/libvirt-qemu.d`; the profile's own text says which.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::deliver::place::State;
use crate::deliver::{command, plan_file, shim};

const FOLDER: &str = "etc/apparmor.d";
/// The daemons' profiles.
const DAEMONS: [&str; 2] = ["usr.sbin.libvirtd", "usr.sbin.virtqemud"];
const BEGIN: &str =
    "# barfit: the emulator shim; added and taken away by `barfit install` and `barfit uninstall`";
const END: &str = "# barfit: end";

/// The rule files as they shall be, given how they were before barfit: `original` says so.
///
/// # Errors
/// A file cannot be read.
pub(super) fn wanted(
    root: &Path,
    shims: &[&str],
    original: impl Fn(&Path) -> Result<State, String>,
) -> Result<Vec<(PathBuf, State)>, String> {
    let folder = Path::new(FOLDER);
    let add = |path: PathBuf, rules: &str| -> Result<(PathBuf, State), String> {
        let (mut bytes, mode, owner) = match original(&path)? {
            State::File { bytes, mode, owner } => (bytes, mode, owner),
            State::Absent => (Vec::new(), 0o644, None),
            State::Link(_) | State::Folder => {
                return Err(format!("/{}: not a plain file; barfit's rules cannot go there", path.display()));
            }
        };
        if !bytes.is_empty() && !bytes.ends_with(b"\n") {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(format!("{BEGIN}\n{rules}{END}\n").as_bytes());
        Ok((path, State::File { bytes, mode, owner }))
    };
    let each = |permissions: &str| -> String {
        shims.iter().map(|name| format!("  /{}/{name} {permissions},\n", shim::FOLDER)).collect()
    };
    let mut wanted = Vec::new();
    for name in DAEMONS {
        let profile = root.join(folder).join(name);
        // What cannot be looked at may be there, and then keeps the daemon from its guests.
        if profile.try_exists().map_err(|error| format!("{}: {error}", profile.display()))? {
            wanted.push(add(folder.join("local").join(name), &each("PUx"))?);
        }
    }
    let abstraction = root.join(folder).join("abstractions/libvirt-qemu");
    let text = match fs::read_to_string(&abstraction) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("{}: {error}", abstraction.display())),
    };
    if let Some(text) = text {
        let rules = each("rmix")
            + &format!("  /{}/*.json r,\n  @{{PROC}}/sys/kernel/random/boot_id r,\n", plan_file::PLANS);
        let place = if text.contains("<abstractions/libvirt-qemu.d>") {
            "abstractions/libvirt-qemu.d/barfit"
        } else {
            "local/abstractions/libvirt-qemu"
        };
        if !text.contains("<abstractions/libvirt-qemu.d>")
            && !text.contains("<local/abstractions/libvirt-qemu>")
        {
            return Err(format!(
                "{}: it includes no file for local rules, so guests could not run the shim; install with --no-shim",
                abstraction.display()
            ));
        }
        wanted.push(add(folder.join(place), &rules)?);
    }
    Ok(wanted)
}

/// Whether a place holds rules.
pub(super) fn is_rule(path: &Path) -> bool {
    path.starts_with(FOLDER)
}

/// Whether the kernel enforces AppArmor.
pub(super) fn is_on(root: &Path) -> bool {
    let enabled = fs::read_to_string(root.join("sys/module/apparmor/parameters/enabled"));
    enabled.is_ok_and(|text| text.trim() == "Y") && root.join("sys/kernel/security/apparmor").exists()
}

/// Loads the daemons' profiles again. A running daemon keeps running, under the new rules.
///
/// # Errors
/// The parser refuses.
pub(super) fn reload(root: &Path) -> Result<(), String> {
    for name in DAEMONS {
        let profile = root.join(FOLDER).join(name);
        let disabled = root.join(FOLDER).join("disable").join(name);
        if profile.try_exists().unwrap_or(true) && !disabled.exists() {
            command::run("apparmor_parser", &["-r".as_ref(), profile.as_os_str()])?;
        }
    }
    Ok(())
}
