//! SELinux: the contexts with which the daemon may run a shim as it runs QEMU, and the boolean that lets hooks run.
//!
//! From Fedora's policy (selinux-policy PR 2195): hooks are `virt_hook_t` and run as `virt_hook_unconfined_t` only
//! with `virt_hooks_unconfined`; QEMU is `qemu_exec_t`. Read, not measured: no enforcing machine was at hand.

use super::manifest::Manifest;
use crate::deliver::{command, shim};

const BOOLEAN: &str = "virt_hooks_unconfined";

/// Whether SELinux is on.
pub(super) fn is_on() -> bool {
    command::is_there("selinuxenabled") && command::run::<&str>("selinuxenabled", &[]).is_ok()
}

/// Sets contexts and boolean, and notes in the manifest what to take back.
///
/// # Errors
/// A command fails or is missing.
pub(super) fn set(manifest: &mut Manifest, with_shims: bool) -> Result<(), String> {
    if with_shims {
        manifest.content.selinux_contexts = true;
        manifest.save()?;
        // -m where an earlier installation has added it.
        let add = |how| command::run("semanage", &["fcontext", how, "-t", "qemu_exec_t", &shims()]);
        add("-a").or_else(|_| add("-m"))?;
    }
    restore_contexts()?;
    // Older policies know neither the boolean nor the type it is about.
    if let Ok(value) = command::run("getsebool", &[BOOLEAN])
        && String::from_utf8_lossy(&value).trim().ends_with("off")
    {
        manifest.content.selinux_boolean = true;
        manifest.save()?;
        command::run("setsebool", &["-P", BOOLEAN, "on"])?;
    }
    Ok(())
}

/// Takes back what [`set`] did.
///
/// # Errors
/// A command fails or is missing.
pub(super) fn unset(manifest: &mut Manifest) -> Result<(), String> {
    if manifest.content.selinux_boolean {
        command::run("setsebool", &["-P", BOOLEAN, "off"])?;
        manifest.content.selinux_boolean = false;
        manifest.save()?;
    }
    if manifest.content.selinux_contexts {
        command::run("semanage", &["fcontext", "-d", &shims()])?;
        manifest.content.selinux_contexts = false;
        manifest.save()?;
    }
    Ok(())
}

fn restore_contexts() -> Result<(), String> {
    let shims = format!("/{}", shim::FOLDER);
    command::run("restorecon", &["-RF", "/usr/bin/barfit", "/etc/libvirt/hooks", "/etc/barfit"])?;
    if std::path::Path::new(&shims).exists() {
        command::run("restorecon", &["-RF", &shims])?;
    }
    Ok(())
}

/// The shims as a pattern of file contexts.
fn shims() -> String {
    format!("/{}/(qemu-.*|kvm)", shim::FOLDER)
}
