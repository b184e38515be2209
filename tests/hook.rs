//! The hook and the shim on a real libvirtd with real QEMU and OVMF: a start is corrected in that very start, and
//! whatever is broken, no guest is worse off than without barfit.
//!
//! Needs root and the packages that `tests/install-programs` installs.

#[path = "hook/rig.rs"]
mod rig;

use rig::{Guest, Rig, install};

/// Three BARs that do not fit in 40 bits.
const LARGE: &[&str] = &["128G", "128G", "128G"];
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
