//! A hypervisor to run barfit on as libvirt does: its own `/sys`, `/run` and `/var/lib`, in a mount namespace that ends
//! with the process; and domains of any size.

#![allow(dead_code, reason = "each test crate uses its part")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use barfit::host::HostFacts;
use barfit::units::{Bar, BarKind};
use tempfile::TempDir;

/// The name under which libvirt calls the hook.
pub(crate) const HOOK: &str = "50-barfit";
/// The emulator of the domains: barfit's shim.
pub(crate) const SHIM: &str = "/usr/libexec/barfit/qemu-system-x86_64";
/// Where programs under names of their own are.
const BIN: &str = "bin";

/// Puts the machine's folders in place and becomes the command.
const ENTER: &str = r#"
set -e
machine=$1
shift
mkdir -p "$machine/lib/dpkg"
[ ! -d /var/lib/dpkg ] || mount --bind /var/lib/dpkg "$machine/lib/dpkg"
mount --rbind "$machine/lib" /var/lib
mount --bind "$machine/sys" /sys
mount --bind "$machine/cpuinfo" /proc/cpuinfo
mkdir -p "$machine/libexec/valgrind"
[ ! -d /usr/libexec/valgrind ] || mount --bind /usr/libexec/valgrind "$machine/libexec/valgrind"
mount --rbind "$machine/libexec" /usr/libexec
mount --bind "$machine/cache" /var/cache
mount -t tmpfs none /run
exec "$@"
"#;

/// A machine's folders.
pub(crate) struct Machine(TempDir);

impl Machine {
    /// The machine of these facts, with `barfit` installed as its shim, which stands before `emulator`.
    pub(crate) fn new(facts: &HostFacts, barfit: &Path, emulator: &Path) -> Machine {
        let machine = Machine(tempfile::tempdir().expect("a folder"));
        let bits = facts.cpu.as_ref().and_then(|cpu| cpu.phys_bits).expect("a width");
        machine.write(
            "cpuinfo",
            &format!(
                "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu lm pdpe1gb\n\
                 address sizes\t: {bits} bits physical, 48 bits virtual\n\n"
            ),
        );
        machine.write("sys/class/iommu/dmar0/intel-iommu/cap", "8d2078c106f0466\n");
        // What libvirtd keeps of a QEMU that it has asked: the beginning, and about as much as there is.
        machine.write(
            "cache/libvirt/qemu/capabilities/0123.xml",
            &format!(
                "<qemuCaps>\n  <emulator>/usr/bin/qemu-system-x86_64</emulator>\n  <version>7002022</version>\n  \
                 <arch>x86_64</arch>\n{}</qemuCaps>\n",
                "  <cpu type='kvm' name='Skylake-Server' typename='Skylake-Server-x86_64-cpu' usable='yes'/>\n"
                    .repeat(1500)
            ),
        );
        for function in &facts.pci {
            let folder = format!("sys/bus/pci/devices/{}", function.address);
            machine.write(&format!("{folder}/vendor"), &format!("0x{}\n", function.vendor));
            machine.write(&format!("{folder}/device"), &format!("0x{}\n", function.device));
            machine.write(&format!("{folder}/class"), &format!("0x{}\n", function.class));
            machine.write(
                &format!("{folder}/modalias"),
                &modalias(&function.vendor, &function.device, &function.class),
            );
            machine.write(&format!("{folder}/numa_node"), "0\n");
            machine.write(&format!("{folder}/resource"), &resource(function.bars.as_deref().unwrap_or(&[])));
            let group = function.iommu_group.unwrap_or_default();
            symlink(
                format!("../../../../kernel/iommu_groups/{group}"),
                machine.path(&format!("{folder}/iommu_group")),
            )
            .expect("a link");
        }
        fs::create_dir_all(machine.path("libexec/barfit/real")).expect("a folder");
        fs::create_dir_all(machine.path(BIN)).expect("a folder");
        fs::copy(barfit, machine.path("libexec/barfit/qemu-system-x86_64")).expect("a copy");
        symlink(emulator, machine.path("libexec/barfit/real/qemu-system-x86_64")).expect("a link");
        machine
    }

    /// A path of the machine's own folder.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// A program under a name of its own, by which it is called.
    pub(crate) fn named(&self, folder: &str, name: &str, program: &Path) -> PathBuf {
        let path = self.path(BIN).join(folder).join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::copy(program, &path).expect("a copy");
        path
    }

    /// A command on this machine. Who is not root becomes it in a namespace of users.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        let own = fs::metadata("/proc/self").map(|facts| std::os::unix::fs::MetadataExt::uid(&facts));
        if own.expect("a process") != 0 {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["sh", "-c", ENTER, "machine"]).arg(self.0.path()).arg(program);
        command
    }
}

/// The line that the kernel makes of a function's ids.
fn modalias(vendor: &str, device: &str, class: &str) -> String {
    let upper = |text: &str| text.to_ascii_uppercase();
    let (base, sub, interface) = (&class[..2], &class[2..4], &class[4..]);
    format!(
        "pci:v0000{}d0000{}sv000010DEsd000016C1bc{}sc{}i{}\n",
        upper(vendor),
        upper(device),
        upper(base),
        upper(sub),
        upper(interface)
    )
}

/// Where the BARs of the host are.
const FIRST: u64 = 4 << 40;

/// The file that the kernel shows: a line for each register.
fn resource(bars: &[Bar]) -> String {
    let mut text = String::new();
    for index in 0..13 {
        let bar = bars.iter().find(|bar| bar.index == index);
        let (size, flags) = bar.map_or((0, 0), |bar| {
            let flags = match bar.kind {
                BarKind::Io => 0x4_0101,
                BarKind::Mem32 => 0x4_0200,
                BarKind::Mem32Prefetchable => 0x4_2208,
                BarKind::Mem64 => 0x14_0204,
                BarKind::Mem64Prefetchable => 0x14_220c,
            };
            (bar.size.get(), flags)
        });
        let (first, last) = if size == 0 { (0, 0) } else { (FIRST, FIRST + size - 1) };
        writeln!(text, "{first:#018x} {last:#018x} {flags:#018x}").expect("a string");
    }
    text
}

/// A domain as Nova defines it, with `gpus` of its four GPUs and so many SCSI disks that it is at least `bytes` long.
pub(crate) fn nova(gpus: usize, bytes: usize) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("examples/nova.xml")).expect("an example");
    let text = text.replace("/usr/bin/qemu-system-x86_64", SHIM);
    let (start, end) = ("    <hostdev ", "    </hostdev>\n");
    let mut parts = text.split(start);
    let mut domain = parts.next().expect("a beginning").to_owned();
    let mut rest = String::new();
    for (number, part) in parts.enumerate() {
        let (own, after) = part.split_once(end).expect("an end");
        if number < gpus {
            domain.extend([start, own, end]);
        }
        rest.push_str(after);
    }
    let mut number = 0;
    while domain.len() + rest.len() < bytes {
        write!(
            domain,
            "    <disk type='file' device='disk'>\n      \
             <driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>\n      \
             <source file='/var/lib/nova/instances/1d8a3c54-9b0e-4f5c-8f6d-2b7e90c1a411/disk-{number}'/>\n      \
             <target dev='sd{}' bus='scsi'/>\n      \
             <address type='drive' controller='0' bus='0' target='{number}' unit='0'/>\n    </disk>\n",
            letters(number)
        )
        .expect("a string");
        number += 1;
    }
    domain + &rest
}

/// a, b, … z, aa, ab…
fn letters(number: usize) -> String {
    let last = char::from(b'a' + u8::try_from(number % 26).expect("a letter"));
    if number < 26 { last.to_string() } else { letters(number / 26 - 1) + &last.to_string() }
}
