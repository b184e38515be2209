//! A host's tree as far as the installer looks at it, and trees compared.

#![allow(dead_code, reason = "each test crate uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A folder in memory: thousands of runs write to it, and each waits until what it wrote is on the disk.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder")
}

/// A host's tree as far as the installer looks at it.
pub(crate) fn host(libvirt: &str) -> tempfile::TempDir {
    let root = folder();
    let write = |path: &str, text: &str, mode: u32| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    write("usr/bin/qemu-system-x86_64", "the real one", 0o755);
    write(&format!("usr/lib64/libvirt.so.0.{libvirt}"), "", 0o644);
    symlink(format!("libvirt.so.0.{libvirt}"), root.path().join("usr/lib64/libvirt.so.0")).expect("linked");
    write("etc/libvirt/qemu.conf", "# mine\n", 0o600);
    write("etc/apparmor.d/usr.sbin.libvirtd", "  #include <local/usr.sbin.libvirtd>\n", 0o644);
    write("etc/apparmor.d/local/usr.sbin.libvirtd", "# no newline at the end", 0o640);
    write(
        "etc/apparmor.d/abstractions/libvirt-qemu",
        "  #include <local/abstractions/libvirt-qemu>\n",
        0o644,
    );
    root
}

pub(crate) fn with_hook(root: &Path) {
    let hook = root.join("etc/libvirt/hooks/qemu");
    fs::create_dir_all(hook.parent().expect("a folder")).expect("made");
    fs::write(&hook, b"#!/bin/sh\n# theirs \xff\n").expect("written");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o711)).expect("chmod");
}

/// A number for a content, the same for the same: programs are large, and comparing them is much quicker than hashing.
fn number(content: Vec<u8>) -> usize {
    static SEEN: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    seen.iter().position(|other| *other == content).unwrap_or_else(|| {
        seen.push(content);
        seen.len() - 1
    })
}

/// Everything in a tree: kind, permissions, content.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let facts = fs::symlink_metadata(&path).expect("metadata");
            let mode = facts.permissions().mode();
            let what = if facts.is_symlink() {
                format!("link to {}", fs::read_link(&path).expect("a link").display())
            } else if facts.is_dir() {
                folders.push(path.clone());
                format!("folder {mode:o}")
            } else if !facts.is_file() {
                format!("special {mode:o}")
            } else {
                format!("file {mode:o}, content {}", number(fs::read(&path).expect("readable")))
            };
            all.insert(path.strip_prefix(root).expect("below").to_owned(), what);
        }
    }
    all
}

/// Trees are compared whole; a failure names the difference only.
pub(crate) fn assert_same(left: &BTreeMap<PathBuf, String>, right: &BTreeMap<PathBuf, String>, what: &str) {
    let differs: Vec<&PathBuf> =
        left.keys().chain(right.keys()).filter(|path| left.get(*path) != right.get(*path)).collect();
    assert!(differs.is_empty(), "{what}: {differs:?}");
}
