//! Installing into a tree and removing from it: nothing lost, nothing left, whatever happens in between.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

#[path = "common/trees.rs"]
mod trees;

use trees::{assert_same, host, tree, with_hook};

fn barfit(root: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_barfit"))
        .args(words)
        .arg("--root")
        .arg(root)
        .output()
        .expect("barfit runs")
}

fn well(root: &Path, words: &[&str]) -> String {
    let output = barfit(root, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_dry_run_names_every_place_and_writes_nothing() {
    let root = host("9000.0");
    let before = tree(root.path());
    let said = well(root.path(), &["install", "--dry-run"]);
    assert_same(&before, &tree(root.path()), "dry run");
    well(root.path(), &["install"]);
    for path in tree(root.path()).keys().filter(|path| !before.contains_key(*path)) {
        let full = root.path().join(path);
        if full.is_file() && !path.starts_with("var/lib/barfit") {
            assert!(said.contains(&full.display().to_string()), "{} is not in {said}", path.display());
        }
    }
}

#[test]
fn everything_is_in_its_place() {
    let root = host("9000.0");
    well(root.path(), &["install"]);
    let read =
        |path: &str| fs::read_to_string(root.path().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert!(read("etc/apparmor.d/local/usr.sbin.libvirtd").starts_with("# no newline at the end\n# barfit"));
    assert!(
        read("etc/apparmor.d/local/usr.sbin.libvirtd")
            .contains("\n  /usr/libexec/barfit/qemu-system-x86_64 PUx,\n")
    );
    let guests = read("etc/apparmor.d/local/abstractions/libvirt-qemu");
    for rule in [
        "/usr/libexec/barfit/qemu-system-x86_64 rmix,",
        "/run/barfit/plans/*.json r,",
        "@{PROC}/sys/kernel/random/boot_id r,",
    ] {
        assert!(guests.contains(rule), "{rule} is not in {guests}");
    }
    for unit in ["libvirtd", "virtqemud"] {
        let drop_in = read(&format!("etc/systemd/system/{unit}.service.d/50-barfit.conf"));
        assert!(drop_in.contains("\nEnvironment=\"PATH=/usr/libexec/barfit:/usr/"), "{drop_in}");
    }
    let own = fs::read(env!("CARGO_BIN_EXE_barfit")).expect("this barfit");
    for path in ["usr/bin/barfit", "usr/libexec/barfit/qemu-system-x86_64"] {
        assert_eq!(fs::read(root.path().join(path)).expect(path), own, "{path}");
    }
    assert_eq!(
        fs::read_link(root.path().join("usr/libexec/barfit/real/qemu-system-x86_64")).expect("a link"),
        Path::new("/usr/bin/qemu-system-x86_64")
    );
    let policy = read("etc/barfit/barfit.toml");
    barfit::plan::Policy::default().add(&policy).expect("the policy reads as it is");
    let spoken: String = policy
        .lines()
        .filter_map(|line| {
            line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(|l| format!("{l}\n"))
        })
        .collect();
    barfit::plan::Policy::default().add(&spoken).expect("so do its examples");
    let hook = root.path().join("etc/libvirt/hooks/qemu.d/50-barfit");
    let facts = fs::symlink_metadata(&hook).expect("the hook");
    assert!(facts.is_file() && facts.permissions().mode() & 0o777 == 0o755, "a real file, executable");
    assert!(!root.path().join("etc/libvirt/hooks/qemu").exists());
}

#[test]
fn twice_is_once_and_a_removal_restores_every_byte() {
    for (libvirt, words) in
        [("9000.0", vec!["install"]), ("9000.0", vec!["install", "--no-shim"]), ("6000.0", vec!["install"])]
    {
        for hook in [false, true] {
            let root = host(libvirt);
            if hook {
                with_hook(root.path());
            }
            let before = tree(root.path());
            well(root.path(), &words);
            let once = tree(root.path());
            assert_ne!(before, once);
            let said = well(root.path(), &words);
            assert_eq!(said, "nothing to do: everything is in its place\n");
            assert_same(&once, &tree(root.path()), "twice");
            well(root.path(), &["uninstall", "--dry-run"]);
            assert_same(&once, &tree(root.path()), "a dry removal");
            well(root.path(), &["uninstall"]);
            assert_same(&before, &tree(root.path()), &format!("{libvirt} {words:?} with a hook: {hook}"));
        }
    }
}

#[test]
fn a_hook_that_was_there_stays_and_runs_first() {
    let root = host("9000.0");
    with_hook(root.path());
    let hook = root.path().join("etc/libvirt/hooks/qemu");
    let theirs = fs::read(&hook).expect("theirs");
    well(root.path(), &["install"]);
    assert_eq!(fs::read(&hook).expect("theirs"), theirs);

    let old = host("6000.0");
    with_hook(old.path());
    well(old.path(), &["install"]);
    let kept = old.path().join("etc/libvirt/hooks/qemu.before-barfit");
    assert_eq!(fs::read(&kept).expect("theirs"), theirs);
    assert_eq!(fs::metadata(&kept).expect("theirs").permissions().mode() & 0o777, 0o711);
    let ours = fs::read_to_string(old.path().join("etc/libvirt/hooks/qemu")).expect("ours");
    assert!(ours.contains("before-barfit"), "{ours}");
}

#[test]
fn without_the_shim_nothing_of_it_is_there() {
    let root = host("9000.0");
    let before = tree(root.path());
    well(root.path(), &["install"]);
    well(root.path(), &["install", "--no-shim"]);
    for path in
        ["usr/libexec/barfit/qemu-system-x86_64", "etc/systemd/system/libvirtd.service.d/50-barfit.conf"]
    {
        assert!(!root.path().join(path).exists(), "{path}");
    }
    let rules =
        fs::read_to_string(root.path().join("etc/apparmor.d/local/usr.sbin.libvirtd")).expect("rules");
    assert_eq!(rules, "# no newline at the end");
    assert!(root.path().join("etc/libvirt/hooks/qemu.d/50-barfit").exists());
    well(root.path(), &["uninstall"]);
    assert_same(&before, &tree(root.path()), "removed");
}

#[test]
fn what_the_operator_changed_is_left_and_named() {
    let root = host("9000.0");
    well(root.path(), &["install"]);
    let edited = ["etc/barfit/barfit.toml", "etc/apparmor.d/local/usr.sbin.libvirtd"];
    for path in edited {
        let path = root.path().join(path);
        let text = fs::read_to_string(&path).expect("installed");
        fs::write(&path, text + "# edited\n").expect("edited");
    }
    fs::write(root.path().join("usr/bin/barfit"), "an older barfit").expect("written");
    let said = well(root.path(), &["install"]);
    assert!(said.contains("left") && said.contains("usr.sbin.libvirtd"), "{said}");
    let own = fs::read(env!("CARGO_BIN_EXE_barfit")).expect("this barfit");
    assert_eq!(fs::read(root.path().join("usr/bin/barfit")).expect("there"), own, "an upgrade replaces it");
    let said = well(root.path(), &["uninstall"]);
    for path in edited {
        let text = fs::read_to_string(root.path().join(path)).expect("left");
        assert!(text.ends_with("# edited\n"), "{path}");
        assert!(said.contains(&format!("left {}", root.path().join(path).display())), "{said}");
    }
    assert!(!root.path().join("usr/bin/barfit").exists());
}

/// libvirt writes its choice of emulator into what it defines. No libvirt answers here, so the definition stays.
#[test]
fn a_domain_that_names_the_shim_finds_an_emulator_there() {
    let root = host("9000.0");
    fs::create_dir_all(root.path().join("usr/libexec")).expect("made");
    let before = tree(root.path());
    well(root.path(), &["install"]);
    let shim = root.path().join("usr/libexec/barfit/qemu-system-x86_64");
    let definitions = root.path().join("etc/libvirt/qemu");
    fs::create_dir_all(&definitions).expect("made");
    let domain =
        "<domain><devices><emulator>/usr/libexec/barfit/qemu-system-x86_64</emulator></devices></domain>";
    fs::write(definitions.join("vm.xml"), domain).expect("written");

    let said = well(root.path(), &["uninstall", "--dry-run"]);
    assert!(said.contains(&format!("would be left: {}", shim.display())), "{said}");
    assert!(!shim.is_symlink());
    let said = well(root.path(), &["uninstall"]);
    assert!(said.contains("etc/libvirt/qemu/vm.xml"), "{said}");
    assert_eq!(fs::read_link(&shim).expect("a link"), Path::new("/usr/bin/qemu-system-x86_64"));
    assert!(!root.path().join("usr/libexec/barfit/qemu-system-i386").exists(), "nothing names this one");

    // The link is no emulator to go back to.
    well(root.path(), &["install"]);
    assert!(shim.is_file() && !shim.is_symlink());
    fs::remove_dir_all(&definitions).expect("removed");
    well(root.path(), &["uninstall"]);
    assert_same(&before, &tree(root.path()), "removed twice");
}

/// Something stands where a folder has to be: the installation fails there and takes back what it did.
#[test]
fn a_step_that_fails_takes_everything_back() {
    for obstacle in [
        "etc/apparmor.d/local/abstractions",
        "etc/barfit",
        "etc/libvirt/hooks",
        "usr/libexec",
        "usr/libexec/barfit/real",
        "etc/systemd",
        "etc/systemd/system/virtqemud.service.d",
        "var",
    ] {
        let root = host("9000.0");
        let path = root.path().join(obstacle);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, "in the way").expect("written");
        let before = tree(root.path());
        let output = barfit(root.path(), &["install"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{obstacle}: {said}");
        assert_same(&before, &tree(root.path()), &format!("{obstacle}: {said}"));
    }
}
