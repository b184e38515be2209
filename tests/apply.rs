//! `apply` and `apply --undo` on a real libvirt: twenty examples there and back, byte for byte as dumped.
//!
//! Needs root and the packages that `tests/install-programs` installs; see `tests/libvirt/private-libvirtd`.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{examples, host, root};

/// The same domain for a libvirt without KVM, huge pages and VFIO. What barfit changes is not touched.
fn for_this_libvirt(text: &str) -> String {
    text.replacen("<domain type='kvm'", "<domain type='qemu'", 1)
        .replace("<cpu mode='host-passthrough'", "<cpu mode='maximum'")
        .replace("check='partial'", "check='none'")
}

#[test]
fn twenty_examples_there_and_back() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("apply");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    let examples = examples();
    let mut count = 0;
    for (name, host_name) in common::pairs() {
        let libvirt = host(&host_name).libvirt.and_then(|libvirt| libvirt.number());
        let text = for_this_libvirt(&examples[&name]);
        let path = folder.join(format!("{name}.xml"));
        let known = libvirt.is_some_and(|version| version <= barfit::host::Version(9, 0, 0));
        if path.exists() || !known || common::answer(&text, &host(&host_name)).plan.changes.is_empty() {
            continue;
        }
        fs::write(&path, text).expect("written");
        let host = root().join("examples/hosts").join(format!("{host_name}.json"));
        fs::write(folder.join(format!("{name}.host")), host.display().to_string()).expect("written");
        count += 1;
    }
    assert!(count >= 20, "only {count} examples are changed");
    let output = Command::new(root().join("tests/libvirt/private-libvirtd"))
        .args(["--install", "true", "--cpu-bits", "52"])
        .arg(root().join("tests/libvirt/apply-all"))
        .arg(env!("CARGO_BIN_EXE_barfit"))
        .arg(&folder)
        .output()
        .expect("private-libvirtd runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}: {said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(said.lines().filter(|line| line.starts_with("there and back: ")).count(), count, "{said}");
}
