//! The hook and the shim on a real libvirtd with real QEMU and OVMF: a start is corrected in that very start, and
//! whatever is broken, no guest is worse off than without barfit.
//!
//! Needs root and the packages that `tests/install-programs` installs.

use std::fs;
use std::os::unix::fs::PermissionsExt;

#[path = "hook/rig.rs"]
mod rig;

use rig::{Guest, Rig, install};

/// Three BARs that do not fit in 40 bits.
const LARGE: &[&str] = &["128G", "128G", "128G"];
/// Three that do not fit in 40 bits by any means.
const TOO_LARGE: &[&str] = &["512G", "512G", "512G"];
/// A host of 40 bits.
const NARROW: &str = r#"{"schema": "barfit/host/1", "cpu": {"phys_bits": 40}}"#;
const POLICY: &str = "/etc/barfit/barfit.toml";
const ALSO: &str = "[gpus]\nalso = [\"1b36:0005\"]\n";

fn mode(rig: &Rig, mode: &str) {
    rig.write(POLICY, &format!("mode = \"{mode}\"\n{ALSO}"));
}

#[test]
fn a_start_takes_effect() {
    let rig = Rig::start(&install());
    let guest = Guest { name: "vm", number: 1, bars: LARGE };
    let defined = rig.define(&guest.xml());

    // As it would be without barfit.
    mode(&rig, "observe");
    rig.must("virsh start vm");
    assert_eq!(rig.placed("vm", 1), [None, None, None]);
    assert_eq!(rig.phys_bits("vm"), 40);
    let said = rig.journal();
    assert!(
        said[0].contains("vm: 0 of 3 GPUs get an address") && said[0].contains("only observes"),
        "{said:#?}"
    );
    rig.must("virsh destroy vm");

    // With it, in that very start.
    mode(&rig, "enforce");
    rig.must("virsh start vm");
    let placed = rig.placed("vm", 1);
    assert!(placed.iter().all(|bar| bar.is_some_and(|address| address < 1 << 42)), "{placed:x?}");
    assert_eq!(rig.phys_bits("vm"), 42);
    let said = rig.journal();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(
        said[0]
            .contains("0 of 3 GPUs get an address; with <maxphysaddr mode='emulate' bits='42'/> 3 of 3 do")
    );
    assert_eq!(said[1], "vm: runs with <maxphysaddr mode='emulate' bits='42'/>");
    let log = rig.must("grep ^barfit: /var/log/libvirt/qemu/vm.log");
    assert_eq!(log, "barfit: changed the command line as planned: <maxphysaddr mode='emulate' bits='42'/>\n");
    assert_eq!(rig.must("virsh dumpxml --inactive vm"), defined);
    assert!(!rig.must("virsh dumpxml vm").contains("maxphysaddr"));
    let exe = rig.must("readlink /proc/$(cat /run/libvirt/qemu/vm.pid)/exe");
    assert_eq!(exe, "/usr/bin/qemu-system-x86_64\n");

    // A reset keeps it; so does saving and restoring, with the state and all.
    rig.must("virsh reset vm");
    assert_eq!(rig.placed("vm", 2), placed);
    rig.must("virsh managedsave vm");
    assert_eq!(rig.must("ls /run/barfit/plans"), "");
    rig.journal();
    rig.must("virsh start vm");
    assert_eq!(rig.phys_bits("vm"), 42);
    let said = rig.journal();
    assert!(said[0].contains("restored with what it was started with"), "{said:#?}");
    assert_eq!(said[1], "vm: runs with <maxphysaddr mode='emulate' bits='42'/>");

    // A new daemon takes the running guest up again.
    let pid = rig.must("cat /run/libvirt/qemu/vm.pid");
    rig.restart_daemon();
    assert_eq!(rig.must("virsh domstate vm").trim(), "running");
    assert_eq!(rig.must("cat /run/libvirt/qemu/vm.pid"), pid);

    // And again from the start; a guest that is gone leaves no plan.
    for _ in 0..2 {
        rig.must("virsh destroy vm");
        assert_eq!(rig.must("ls /run/barfit/plans"), "");
        rig.must("virsh start vm");
        assert_eq!(rig.placed("vm", 1), placed);
    }
    assert_eq!(rig.must("virsh dumpxml --inactive vm"), defined);
}

/// What is broken before the start, by which shell commands, and the width that the guest gets.
const BROKEN_BEFORE: &[(&str, &str, u64)] = &[
    ("nothing", ":", 42),
    ("the hook panics", "echo prepare panic >/run/barfit/fault", 40),
    ("the hook is killed", "echo prepare abort >/run/barfit/fault", 40),
    ("the hook hangs", "echo prepare hang >/run/barfit/fault", 40),
    ("started panics", "echo started panic >/run/barfit/fault", 42),
    ("started is killed", "echo started abort >/run/barfit/fault", 42),
    ("started hangs", "echo started hang >/run/barfit/fault", 42),
    ("the shim panics", "echo shim panic >/run/barfit/fault", 40),
    ("barfit is gone", "mv /usr/bin/barfit /usr/bin/off", 40),
    (
        "barfit is no program",
        "mv /usr/bin/barfit /usr/bin/off; printf '\\177ELF' >/usr/bin/barfit; chmod 755 /usr/bin/barfit",
        40,
    ),
    ("the policy is nonsense", "echo mode=1 >/etc/barfit/barfit.toml", 40),
    ("the host file is nonsense", "echo { >/etc/barfit/host.json", 42),
    ("the firmware cache is nonsense", "echo { >/var/cache/barfit/firmware.json", 42),
    ("there is no room for plans", "rm -rf /run/barfit/plans; touch /run/barfit/plans", 40),
];

/// What becomes of the plan `$PLAN` between the hook and the shim. The guest starts as if there were none.
const BROKEN_BETWEEN: &[(&str, &str)] = &[
    ("it is removed", "rm $PLAN"),
    ("it is unreadable", "chmod 000 $PLAN"),
    ("it is somebody's", "chown nobody $PLAN"),
    ("it is everybody's", "chmod 666 $PLAN"),
    ("it has two names", "ln $PLAN /run/barfit/second"),
    ("it is a link", "mv $PLAN /run/barfit/moved; ln -s ../moved $PLAN"),
    ("it is a pipe", "rm $PLAN; mkfifo $PLAN"),
    ("it is nonsense", "echo { >$PLAN"),
    ("it is huge", "truncate -s 1T $PLAN"),
    ("it is another guest's", "sed -i s/7f000002/7f000003/ $PLAN"),
    ("it is of another boot", r#"sed -i 's/boot_id":"./boot_id":"x/' $PLAN"#),
    ("it is of another time", r#"sed -i 's/written":/written":9/' $PLAN"#),
    ("its folder is everybody's", "chmod 777 /run/barfit/plans"),
];

#[test]
fn no_fault_stops_a_guest() {
    let rig = Rig::start(&install());
    let guest = Guest { name: "vm", number: 2, bars: LARGE };
    rig.define(&guest.xml());
    let meddle = "#!/bin/sh\n[ $2 != start ] || . /run/test/between\n";
    rig.write("/etc/libvirt/hooks/qemu.d/60-meddle", meddle);
    rig.must("chmod 755 /etc/libvirt/hooks/qemu.d/60-meddle");
    rig.must("mkdir -p /run/barfit; cp /etc/barfit/barfit.toml /run/test/");
    let before = BROKEN_BEFORE.iter().map(|&(what, before, bits)| (what, before, ":", bits));
    let between = BROKEN_BETWEEN.iter().map(|&(what, between)| (what, ":", between, 40));
    for (what, before, between, bits) in before.chain(between) {
        rig.write("/run/test/between", &format!("PLAN=/run/barfit/plans/{}.json\n{between}\n", guest.uuid()));
        rig.must(before);
        rig.must("virsh start --paused vm");
        assert_eq!(rig.phys_bits("vm"), bits, "{what}: {:#?}", rig.journal());
        assert_eq!(rig.must("virsh domstate vm").trim(), "paused", "{what}");
        rig.must("virsh destroy vm");
        // Whatever was broken is whole again.
        rig.must("[ ! -e /usr/bin/off ] || mv /usr/bin/off /usr/bin/barfit; rm -rf /run/barfit /etc/barfit/host.json");
        rig.must("mkdir /run/barfit; cp /run/test/barfit.toml /etc/barfit/");
    }

    // A new daemon takes a running guest up again, whatever the hook does.
    rig.must("rm /etc/libvirt/hooks/qemu.d/60-meddle; virsh start --paused vm");
    let pid = rig.must("cat /run/libvirt/qemu/vm.pid");
    for fault in ["panic", "abort", "hang"] {
        rig.write("/run/barfit/fault", &format!("reconnect {fault}"));
        rig.restart_daemon();
        assert_eq!(rig.must("virsh domstate vm").trim(), "paused", "{fault}");
        assert_eq!(rig.must("cat /run/libvirt/qemu/vm.pid"), pid, "{fault}");
    }
}

#[test]
fn strict_refuses_and_enforce_does_not() {
    let rig = Rig::start(&install());
    rig.define(&Guest { name: "vm", number: 3, bars: TOO_LARGE }.xml());
    rig.write("/etc/barfit/host.json", NARROW);
    mode(&rig, "strict");
    let said = rig.run("virsh start --paused vm");
    assert_eq!(said.status, 1, "{said:?}");
    let reason = "exit status 1: barfit refuses to start vm: 3 of 3 GPUs would get no address. ";
    assert!(said.stderr.contains(reason), "{said:?}");
    for mode_name in ["enforce", "observe"] {
        mode(&rig, mode_name);
        rig.must("virsh start --paused vm && virsh destroy vm");
    }
    // Strict lets through what it can correct.
    rig.must("rm /etc/barfit/host.json");
    mode(&rig, "strict");
    rig.must("virsh start --paused vm");
    assert_eq!(rig.phys_bits("vm"), 44);
}

#[test]
fn fifty_starts_at_once_get_each_their_own_plan() {
    let rig = Rig::start(&install());
    let shapes: [&[&str]; 5] = [&["128G"], &["128G"; 3], &["256G"; 3], &["512G"; 3], &["1T"; 3]];
    let guests: Vec<(String, u32)> = (0..50).map(|number| (format!("vm{number}"), number)).collect();
    for (name, number) in &guests {
        let guest = Guest { name, number: 0x100 + number, bars: shapes[*number as usize % 5] };
        rig.define(&guest.xml());
    }
    rig.must("seq 0 49 | xargs -P 50 -I N virsh start --paused vmN");
    let mut widths = Vec::new();
    for (name, number) in &guests {
        let guest = Guest { name, number: 0x100 + number, bars: &[] };
        let start = rig.must(&format!("cat /run/barfit/starts/{}.json", guest.uuid()));
        let start: serde_json::Value = serde_json::from_str(&start).expect("JSON");
        let planned = start["planned"][0].as_str().unwrap_or("bits='40'");
        let bits = planned.split('\'').rev().nth(1).and_then(|bits| bits.parse().ok()).expect("a width");
        assert_eq!(rig.phys_bits(name), bits, "{name}: {start}");
        assert_eq!(start["name"], name.as_str());
        widths.push((number % 5, bits));
    }
    widths.sort_unstable();
    widths.dedup();
    assert_eq!(widths, [(0, 41), (1, 42), (2, 43), (3, 44), (4, 45)]);
    assert_eq!(rig.must("ls -A /run/barfit/plans | wc -l").trim(), "50");
}

#[test]
fn nothing_is_printed_at_migrate_and_restore() {
    let rig = Rig::start(&install());
    rig.write("/run/test/domain.xml", &Guest { name: "vm", number: 4, bars: LARGE }.xml());
    for operation in
        ["migrate", "restore", "prepare", "start", "started", "reconnect", "release", "attach", "unheard-of"]
    {
        for hook in ["/etc/libvirt/hooks/qemu.d/50-barfit", "/usr/bin/barfit hook"] {
            let said = rig.run(&format!("{hook} vm {operation} begin - </run/test/domain.xml"));
            assert_eq!((said.status, said.stdout.as_str()), (0, ""), "{hook} {operation}: {said:?}");
        }
    }
}

#[test]
fn another_hook_has_its_say() {
    let rig = Rig::start(&install());
    rig.define(&Guest { name: "vm", number: 5, bars: LARGE }.xml());
    let other = "#!/bin/sh\ncat >/run/test/seen.$2\necho \"$@\" >>/run/test/calls\n. /run/test/other\n";
    let chain = include_str!("../hooks/qemu");

    // As qemu.d has it, and as hooks/qemu chains it where libvirt knows no qemu.d.
    for chained in [false, true] {
        if chained {
            rig.must("rm -r /etc/libvirt/hooks/qemu.d");
            rig.write("/etc/libvirt/hooks/qemu", chain);
            rig.write("/etc/libvirt/hooks/qemu.before-barfit", other);
        } else {
            rig.write("/etc/libvirt/hooks/qemu", other);
        }
        rig.must("chmod 755 /etc/libvirt/hooks/qemu*; rm -f /run/test/calls");
        // It fails where barfit does not: its exit code and its words come through.
        rig.write("/run/test/other", "[ $2 != prepare ] || { echo not today >&2; exit 7; }");
        let said = rig.run("virsh start --paused vm");
        assert!(said.stderr.contains("exit status 7: not today"), "{chained}: {said:?}");
        // It agrees, and so does barfit.
        rig.write("/run/test/other", "");
        rig.must("virsh start --paused vm");
        assert_eq!(rig.phys_bits("vm"), 42, "{chained}");
        // What it prints at restore is what libvirt gets: here, another word in QEMU's own arguments.
        rig.must("virsh managedsave vm");
        rig.write("/run/test/other", "[ $2 != restore ] || sed 's/vm</vm</; s/membar=128G/membar=128G,multifunction=off/' /run/test/seen.$2");
        rig.must("virsh start --paused vm");
        assert!(
            rig.argv("vm").iter().any(|word| word.ends_with("membar=128G,multifunction=off")),
            "{chained}"
        );
        assert_eq!(rig.phys_bits("vm"), 42, "{chained}");
        rig.must("virsh destroy vm");
        let calls = rig.must("cut -d' ' -f2 /run/test/calls | tr '\n' ' '");
        assert_eq!(
            calls,
            "prepare stopped release prepare start started stopped release restore prepare start started stopped release ",
            "{chained}"
        );
    }

    // barfit's refusal comes through the chain, too.
    rig.define(&Guest { name: "vm", number: 5, bars: TOO_LARGE }.xml());
    rig.write("/etc/barfit/host.json", NARROW);
    mode(&rig, "strict");
    let said = rig.run("virsh start --paused vm");
    assert!(said.stderr.contains("exit status 1: barfit refuses to start vm"), "{said:?}");
}

#[test]
fn a_new_qemu_is_asked_again() {
    let rig = Rig::start(&install());
    rig.define(&Guest { name: "vm", number: 6, bars: LARGE }.xml());
    let asked = || rig.must("grep -c -e '-machine none' /run/test/calls || :").trim().to_owned();
    let upgrade = "cd /usr/bin; [ -e qemu.real ] || mv qemu-system-x86_64 qemu.real
        printf '#!/bin/sh\necho \"$@\" >>/run/test/calls\nexec /usr/bin/qemu.real \"$@\"\n' >new
        chmod 755 new; mv new qemu-system-x86_64; : >/run/test/calls; chmod 666 /run/test/calls";

    // As a package without modules would: libvirt sees the shim, which is the same. It compares whole seconds.
    rig.must("sleep 1.1");
    rig.must(upgrade);
    rig.must("virsh domcapabilities >/dev/null");
    assert_eq!(asked(), "0", "if libvirt notices this by itself now, `refresh` can go");
    // The next start of a guest brings it out.
    rig.must("virsh start --paused vm");
    assert!(rig.journal()[0].starts_with("QEMU is newer than /usr/libexec/barfit/qemu-system-x86_64"));
    rig.must("virsh domcapabilities >/dev/null");
    assert_ne!(asked(), "0");
    rig.must("virsh destroy vm");

    // As distributions do: the folder of QEMU's modules changes, too, and the very next start has it right.
    rig.must(upgrade);
    rig.must("for folder in /usr/lib/*/qemu; do touch $folder/new; rm $folder/new; done");
    rig.must("virsh start --paused vm");
    assert_ne!(asked(), "0");
    assert_eq!(rig.phys_bits("vm"), 42);
}

/// What doctor says of these codes, in this order; nothing of one that it does not check.
fn states(rig: &Rig, arguments: &str, codes: &[&str]) -> Vec<String> {
    let said = rig.run(&format!("barfit doctor --format json {arguments}"));
    let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    assert_eq!(json["schema"], "barfit/doctor/1");
    assert_eq!(said.status, i32::from(json["state"] == "fail"), "{said:?}");
    let checks = json["checks"].as_array().expect("checks");
    let mut states = Vec::new();
    for code in codes {
        let found = checks.iter().filter(|check| check["code"] == *code);
        states.extend(found.map(|check| check["state"].as_str().expect("a state").to_owned()));
    }
    states
}

#[test]
fn doctor_and_status_tell_how_it_is() {
    let rig = Rig::start(&install());
    let installation = ["HOOK_INSTALLED", "HOOK_SEEN", "SHIM_IN_PATH", "SHIM_INSTALLED", "SHIM_IS_DEFAULT"];
    assert_eq!(states(&rig, "", &installation), ["ok"; 5]);
    assert_eq!(states(&rig, "", &["HOST_BITS", "LIBVIRT_VERSION", "QEMU_VERSION"]), ["ok"; 3]);

    let hook = "/etc/libvirt/hooks/qemu.d/50-barfit";
    for (change, back, codes, expected) in [
        (format!("chmod 644 {hook}"), format!("chmod 755 {hook}"), &installation[..1], &["fail"][..]),
        (format!("mv {hook} /root/"), format!("mv /root/50-barfit {hook}"), &installation[..1], &["fail"]),
        // Newer than the daemon, and never called so far.
        (format!("sleep 1.1; touch {hook}"), String::new(), &installation[1..2], &["warn"]),
        (
            "mv /usr/bin/qemu-system-x86_64 /usr/bin/off".to_owned(),
            "mv /usr/bin/off /usr/bin/qemu-system-x86_64".to_owned(),
            &installation[3..4],
            &["fail"],
        ),
    ] {
        rig.must(&change);
        assert_eq!(states(&rig, "", codes), expected, "{change}");
        rig.must(&back);
    }

    // A guest, as libvirt keeps it and as it runs.
    let guest = ["DOMAIN_FITS", "DOMAIN_EMULATOR", "RUNNING_QEMU"];
    rig.define(&Guest { name: "vm", number: 9, bars: LARGE }.xml());
    assert_eq!(states(&rig, "vm", &guest), ["fail"], "it needs more bits, and does not run");
    assert!(rig.must("barfit status").starts_with("no guest with passed-through devices has started"));
    mode(&rig, "observe");
    rig.must("virsh start --paused vm");
    assert_eq!(states(&rig, "vm", &guest), ["fail", "fail"]);
    let status = rig.must("barfit status");
    assert!(status.starts_with("vm  ") && status.contains("ago: not applied\n"), "{status}");
    rig.must("virsh destroy vm");
    mode(&rig, "enforce");
    rig.must("virsh start --paused vm");
    assert_eq!(states(&rig, "vm", &guest), ["fail", "ok"], "the definition is as it was, the guest is not");
    let status: serde_json::Value =
        serde_json::from_str(&rig.must("barfit status --format json")).expect("JSON");
    assert_eq!((&status["starts"][0]["name"], &status["starts"][0]["applied"]), (&"vm".into(), &true.into()));
    rig.must("virsh destroy vm");
    // The guest's own word.
    rig.write(
        "/run/test/dmesg",
        "[    2.8] pci 0000:05:00.0: BAR 2: no space for [mem size 0x2000000000 64bit pref]\n",
    );
    assert_eq!(states(&rig, "vm --dmesg /run/test/dmesg", &["GUEST_LOG", "BAR_UNPLACED"]), ["fail", "fail"]);
    assert_eq!(states(&rig, "--dmesg /etc/hostname", &["GUEST_LOG", "HOOK_INSTALLED"]), ["ok"]);

    // A daemon that does not know of the shim.
    rig.restart_daemon_with("/usr/sbin:/usr/bin:/sbin:/bin");
    assert_eq!(states(&rig, "", &installation), ["ok", "ok", "fail", "ok", "fail"]);
    rig.must("virsh -q undefine --keep-nvram vm");
    rig.define(&Guest { name: "vm", number: 9, bars: LARGE }.xml());
    assert_eq!(states(&rig, "vm", &guest), ["fail", "warn"], "it names the real emulator");
}

/// Of a guest that `rewrite` (as `apply` does) has corrected, and of one that only the shim has: the other host's
/// barfit decides alike.
/// A guest without devices, whose emulator is libvirt's choice.
fn small(name: &str, number: u32) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><uuid>5b0d2f6e-3d57-4c0e-9a53-6c2d7e{number:06x}</uuid>\
         <memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os>\
         <devices><graphics type='vnc' passwd='secret'/><memballoon model='none'/></devices></domain>"
    )
}

/// While the shim is first in PATH libvirt writes it into what it defines; without it those domains have to start.
#[test]
fn a_removal_leaves_every_domain_an_emulator() {
    const SHIM: &str = "<emulator>/usr/libexec/barfit/qemu-system-x86_64</emulator>";
    const REAL: &str = "<emulator>/usr/bin/qemu-system-x86_64</emulator>";
    let rig = Rig::start("true");
    let barfit = env!("CARGO_BIN_EXE_barfit");
    let said = rig.must(&format!("{barfit} install"));
    assert!(said.contains("a guest starts through /usr/libexec/barfit/qemu-system-x86_64"), "{said}");
    assert_eq!(
        rig.must("ls /var/log/libvirt/qemu; virsh -q list --all"),
        "",
        "the test guest leaves nothing"
    );
    rig.restart_daemon();
    for (number, name) in ["off", "saved", "running"].into_iter().enumerate() {
        let defined = rig.define(&small(name, u32::try_from(number).expect("few")));
        assert!(defined.contains(SHIM), "{defined}");
    }
    rig.must("virsh start saved; virsh managedsave saved; virsh start running");
    let dump = |name: &str| rig.must(&format!("virsh dumpxml --inactive --security-info {name}"));
    let before: Vec<String> = ["off", "saved", "running"].map(dump).into();

    let said = rig.must("barfit uninstall --dry-run");
    assert!(said.contains("<emulator> again: off"), "{said}");
    assert_eq!(dump("off"), before[0]);
    let said = rig.must("barfit uninstall");
    for (name, before) in ["off", "saved", "running"].into_iter().zip(&before) {
        assert!(said.contains(&format!("gave {name} /usr/bin/qemu-system-x86_64")), "{said}");
        assert_eq!(dump(name), before.replace(SHIM, REAL));
    }
    let link = rig.must("readlink /usr/libexec/barfit/qemu-system-x86_64");
    assert_eq!(link, "/usr/bin/qemu-system-x86_64\n", "the running and the saved guest need it");
    for user in ["/run/libvirt/qemu/running.xml", "/var/lib/libvirt/qemu/save/saved.save"] {
        assert!(said.contains(user), "{said}");
    }
    assert_eq!(rig.must("ls -A /var/lib/barfit 2>/dev/null || true"), "");

    rig.restart_daemon_with("/usr/sbin:/usr/bin:/sbin:/bin");
    rig.must("virsh start off; virsh start saved");
    assert_eq!(rig.must("virsh -q list --name"), "running\noff\nsaved\n");
}

#[test]
fn a_corrected_guest_migrates() {
    let (source, mut target) = (Rig::start(&install()), Rig::start(&install()));
    let shared = tempfile::tempdir().expect("a folder");
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o777)).expect("open to all");
    let address = target.become_another_host(shared.path());
    for (name, number) in [("defined", 7), ("shimmed", 8)] {
        source.define(&Guest { name, number, bars: LARGE }.xml());
        if name == "defined" {
            source.must("barfit rewrite --policy /etc/barfit/barfit.toml /run/test/domain.xml >/run/test/corrected.xml");
            source.must("virsh define /run/test/corrected.xml");
        }
        source.must(&format!("virsh start --paused {name}"));
        assert_eq!(source.phys_bits(name), 42);
        source.must(&format!(
            "virsh migrate --unsafe --persistent {name} '{address}' unix://{}/{name}.sock",
            shared.path().display()
        ));
        assert_eq!(target.phys_bits(name), 42, "{name}: {:#?}", target.journal());
        assert_eq!(target.must(&format!("virsh domstate {name}")).trim(), "paused");
        let kept = target.must(&format!("virsh dumpxml --inactive {name}"));
        assert_eq!(kept.contains("<maxphysaddr mode='emulate' bits='42'/>"), name == "defined", "{kept}");
    }
}
