//! libvirt's daemon: which one runs, how it is made to see a new hook and a new PATH, whether guests still start.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::{command, shim};

/// The daemons that run QEMU guests: the one for all, and the modular one.
pub(super) const UNITS: [&str; 2] = ["libvirtd", "virtqemud"];
/// What systemd gives a service that says nothing about it.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The libvirt of this host.
pub(super) const URI: &str = "qemu:///system";

/// Whether systemd runs this machine.
pub(super) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// PATH of a daemon as its unit has it without barfit.
pub(super) fn path_of(unit: &str, commands: bool) -> String {
    let own = format!("/{}", shim::FOLDER);
    let shown = (commands && has_systemd())
        .then(|| command::run("systemctl", &["show", "--property=Environment", "--value", unit]).ok())
        .flatten()
        .unwrap_or_default();
    let shown = String::from_utf8_lossy(&shown);
    let words = shown.split_ascii_whitespace().map(|word| word.trim_matches('"'));
    let path = words.filter_map(|word| word.strip_prefix("PATH=")).next_back().unwrap_or(USUAL_PATH);
    let rest: Vec<&str> = path.split(':').filter(|folder| !folder.is_empty() && *folder != own).collect();
    rest.join(":")
}

/// Process ids of the daemons that run.
pub(super) fn running() -> Vec<Pid> {
    let pids = UNITS.iter().filter_map(|unit| {
        let pid: i32 = fs::read_to_string(format!("/run/{unit}.pid")).ok()?.trim().parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == *unit).then(|| Pid::from_raw(pid)).flatten()
    });
    pids.collect()
}

/// Makes the daemons see a hook that is their first (measured: SIGHUP is enough).
pub(super) fn see_hook() {
    for pid in running() {
        // A daemon that has just ended sees the hook when it starts again.
        let _ = kill_process(pid, Signal::HUP);
    }
}

/// Gives the daemons the PATH of their units. Guests keep running; the daemon finds them again.
///
/// # Errors
/// systemd refuses, or a daemon does not come back.
pub(super) fn restart() -> Result<(), String> {
    command::run("systemctl", &["daemon-reload"])?;
    for unit in UNITS {
        command::run("systemctl", &["try-restart", unit])?;
    }
    Ok(())
}

/// Restarts the daemons after the shim has left their PATH; where that is the operator's to do, the result says so.
///
/// # Errors
/// Those of [`restart`].
pub(super) fn without_shim() -> Result<Option<String>, String> {
    if has_systemd() {
        return restart().map(|()| None);
    }
    let folder = shim::FOLDER;
    Ok(Some(format!("without systemd: restart libvirtd (or virtqemud) with a PATH without /{folder}")))
}

/// Whether a daemon answers.
pub(super) fn answers() -> bool {
    command::is_there("virsh") && virsh(&["uri"]).is_ok()
}

/// The emulator that libvirt takes where a domain names none.
///
/// # Errors
/// libvirt cannot probe it.
pub(super) fn default_emulator() -> Result<String, String> {
    let text = virsh(&["domcapabilities"])?;
    let text = String::from_utf8_lossy(&text);
    let path = text.split_once("<path>").and_then(|(_, rest)| rest.split_once("</path>"));
    path.map(|(path, _)| path.to_owned())
        .ok_or_else(|| "`virsh domcapabilities` names no emulator".to_owned())
}

/// Lets libvirt probe an emulator: under AppArmor this needs the daemon's rule.
///
/// # Errors
/// What libvirt says.
pub(super) fn probe(emulator: &Path) -> Result<(), String> {
    virsh(&["domcapabilities", "--emulatorbin", &emulator.display().to_string()]).map(|_| ())
}

/// Starts a small paused guest with an emulator and takes it away again: under AppArmor this needs the guests' rules.
///
/// # Errors
/// What libvirt says.
pub(super) fn try_guest(emulator: &Path) -> Result<(), String> {
    let path = emulator.display().to_string();
    let name = format!("barfit-self-test-{}", std::process::id());
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(|error| error.to_string())?;
    let uuid = uuid.trim();
    let domain = format!(
        "<domain type='qemu'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  <memory unit='MiB'>32</memory>\n  \
         <vcpu>1</vcpu>\n  <os><type arch='x86_64'>hvm</type></os>\n  <devices>\n    <emulator>{path}</emulator>\n    \
         <memballoon model='none'/>\n  </devices>\n</domain>\n"
    );
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file = folder.path().join("domain.xml");
    fs::write(&file, domain).map_err(|error| error.to_string())?;
    let file = file.display().to_string();
    virsh(&["define", &file])?;
    let started = virsh(&["start", "--paused", &name]);
    let stopped = virsh(&["destroy", &name]);
    // A start that took too long may still succeed; one that failed has nothing to stop.
    let stopped = if started.is_ok() { stopped } else { Ok(Vec::new()) };
    let gone = virsh(&["undefine", &name]);
    // libvirt keeps these of every guest that ever was (measured, 9.0).
    for left in [
        format!("/etc/apparmor.d/libvirt/libvirt-{uuid}"),
        format!("/etc/apparmor.d/libvirt/libvirt-{uuid}.files"),
        format!("/var/log/libvirt/qemu/{name}.log"),
    ] {
        let _ = fs::remove_file(left);
    }
    started.and(stopped).and(gone).map(|_| ())
}

fn virsh(words: &[&str]) -> Result<Vec<u8>, String> {
    command::run("virsh", &[&["--connect", URI, "--quiet"], words].concat())
}
