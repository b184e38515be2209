//! `barfit prove` as a person types it: examples on this machine's QEMU and firmware, and what it leaves behind.
//! Needs QEMU, OVMF and SeaBIOS, and for the Linux guest a kernel and busybox: `tests/install-programs`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn barfit(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_barfit"));
    command.current_dir(root()).arg("prove").args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = barfit(arguments).output().expect("barfit runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

const HOST: [&str; 2] = ["--host", "examples/hosts/xeon-46-h100.json"];

#[test]
fn four_gpus_before_and_after() {
    let (code, out, err) = run(&[&["examples/four-h100.xml"], &HOST[..]].concat());
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("Before, 40 bits: 0 of 4 devices placed"), "{out}");
    assert!(out.contains("After, 43 bits: 4 of 4 devices placed"), "{out}");
    assert!(out.contains("agrees with the real firmware, address by address"), "{out}");
}

#[test]
fn the_same_for_programs() {
    let (code, out, err) =
        run(&[&["--after", "--format", "json", "examples/bios-four-h100-256g.xml"], &HOST[..]].concat());
    assert_eq!(code, Some(0), "{out}{err}");
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(json["schema"], "barfit/prove/1");
    assert_eq!(json["agrees"], true);
    let proof = &json["proofs"][0];
    assert_eq!((&proof["which"], &proof["outcome"]), (&"after".into(), &"placed".into()), "{proof}");
    let devices = proof["devices"].as_array().expect("devices");
    assert_eq!(devices.len(), 4);
    for device in devices {
        assert_eq!((&device["placed"], &device["partly"]), (&true.into(), &false.into()), "{device}");
        let large =
            &device["bars"].as_array().expect("BARs").iter().find(|bar| bar["size"] == "0x2000000000");
        assert!(large.is_some_and(|bar| bar["address"].is_string()), "{device}");
    }
}

/// The field's best-known table: 3, 2 and 1 of four GPUs at 256, 512 and 768 GiB of RAM, by the word of Linux.
#[test]
fn a_linux_guest_counts_three_two_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let initrd = folder.path().join("initrd");
    let built = Command::new(root().join("tests/linux/build-initrd")).arg(&initrd).status();
    assert!(built.expect("a shell").success(), "no initramfs: install busybox-static and cpio");
    let kernel = kernel();
    for (ram, before) in [("256", 3), ("512", 2), ("768", 1)] {
        let domain = format!("examples/bios-four-h100-{ram}g.xml");
        let linux = ["--kernel", kernel.to_str().expect("text"), "--initrd", initrd.to_str().expect("text")];
        let (code, out, err) = run(&[&[domain.as_str()], &HOST[..], &linux[..]].concat());
        assert_eq!(code, Some(0), "{out}{err}");
        assert!(out.contains(&format!("Before, 40 bits: {before} of 4 devices placed")), "{out}");
        assert!(out.contains("can't assign; no space"), "{out}");
        assert!(out.contains("After, 41 bits: 4 of 4 devices placed ("), "{out}");
    }
}

fn kernel() -> PathBuf {
    let boot = std::fs::read_dir("/boot").expect("/boot");
    let mut kernels: Vec<PathBuf> = boot
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .collect();
    kernels.sort();
    kernels.pop().expect("no kernel in /boot: install linux-image-cloud-amd64")
}

#[test]
fn no_answer_in_time_is_no_agreement() {
    let (code, out, err) = run(&[&["examples/four-h100.xml", "--timeout", "0"], &HOST[..]].concat());
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("nothing is proved"), "{out}");
}

#[test]
fn what_is_missing_is_named() {
    let arguments = [&["examples/four-h100.xml"], &HOST[..]].concat();
    let missing = barfit(&arguments).env("PATH", "/nonexistent").output().expect("barfit runs");
    let err = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert_eq!(missing.status.code(), Some(2), "{err}");
    assert!(err.contains("install qemu-system-x86"), "{err}");

    let (code, out, err) =
        run(&[&["examples/four-h100.xml", "--firmware", "/nonexistent/OVMF_CODE.fd"], &HOST[..]].concat());
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.contains("/nonexistent/OVMF_CODE.fd"), "{err}");
}

/// A signal in the middle of a boot leaves neither a QEMU nor a file.
#[test]
fn a_signal_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = barfit(&[&["examples/four-h100.xml"], &HOST[..]].concat())
        .env("TMPDIR", folder.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("barfit starts");
    let files = || std::fs::read_dir(folder.path()).expect("the folder").count();
    let deadline = Instant::now() + Duration::from_secs(30);
    while files() == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(files(), 1, "QEMU was not started");
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(killed.expect("kill").success());
    let status = child.wait().expect("its end");
    assert_eq!(status.code(), Some(2));
    assert_eq!(files(), 0);
    let name = folder.path().to_str().expect("text").to_owned();
    let processes = Command::new("ps").args(["-eo", "args"]).output().expect("ps");
    let left = String::from_utf8_lossy(&processes.stdout).lines().filter(|l| l.contains(&name)).count();
    assert_eq!(left, 0, "a QEMU is left");
}
