//! Reading a machine: fixture trees of `/sys` and `/proc` with the BARs of real cards, as their owners printed them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use barfit::host::{Depth, Host, HostFacts, PciError, Wanted};
use barfit::units::{Bar, BarKind, Bytes, PciAddress};
use tempfile::TempDir;

const WIDE: u64 = 0x14_220c;
const MEM32: u64 = 0x4_0200;
const IO: u64 = 0x4_0101;
const ROM: u64 = 0x4_6200;

/// A tree that looks like a machine.
struct Sysroot(TempDir);

impl Sysroot {
    fn new() -> Sysroot {
        Sysroot(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn host(&self) -> Host {
        Host::at(self.path())
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) -> &Sysroot {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("not the root")).expect("a directory");
        fs::write(path, content).expect("a file");
        self
    }

    fn link(&self, path: &str, target: &str) -> &Sysroot {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().expect("not the root")).expect("a directory");
        symlink(target, path).expect("a link");
        self
    }

    /// A function; `lines` are (line number, first, last, flags) of its `resource` file.
    fn device(&self, address: &str, ids: (&str, &str, &str), lines: &[(usize, u64, u64, u64)]) -> PathBuf {
        let dir = format!("sys/bus/pci/devices/{address}");
        let (vendor, device, class) = ids;
        self.write(&format!("{dir}/vendor"), format!("0x{vendor}\n"));
        self.write(&format!("{dir}/device"), format!("0x{device}\n"));
        self.write(&format!("{dir}/class"), format!("0x{class}\n"));
        self.write(&format!("{dir}/numa_node"), "1\n");
        let mut table = [(0, 0, 0); 13];
        for &(line, first, last, flags) in lines {
            table[line] = (first, last, flags);
        }
        let text: String = table.iter().map(|(a, b, f)| format!("{a:#018x} {b:#018x} {f:#018x}\n")).collect();
        self.write(&format!("{dir}/resource"), text);
        self.path().join(dir)
    }

    /// Two sockets: a Hopper board with its switch, and what else people pass through.
    fn server() -> Sysroot {
        let root = Sysroot::new();
        root.write(
            "proc/cpuinfo",
            "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu lm pdpe1gb la57\n\
             address sizes\t: 46 bits physical, 57 bits virtual\n\nprocessor\t: 1\n",
        );
        // The first unit serves the display of the base board alone, and is narrower.
        root.write("sys/class/iommu/dmar0/intel-iommu/cap", "1c0000c40660462\n");
        root.write("sys/class/iommu/dmar1/intel-iommu/cap", "8d2078c106f0466\n");
        root.write(
            "sys/kernel/iommu_groups/12/reserved_regions",
            "0x00000000fee00000 0x00000000feefffff msi\n",
        );
        let h100 = [
            (0, 0x38c0_0200_0000, 0x38c0_02ff_ffff, WIDE),
            (2, 0x38a0_0000_0000, 0x38bf_ffff_ffff, WIDE),
            (4, 0x38c0_0000_0000, 0x38c0_01ff_ffff, WIDE),
        ];
        root.device("0000:41:00.0", ("10de", "2330", "030200"), &h100);
        root.link("sys/bus/pci/devices/0000:41:00.0/iommu_group", "../../../../kernel/iommu_groups/12");
        root.link("sys/bus/pci/devices/0000:41:00.0/iommu", "../../../../class/iommu/dmar1");
        root.device(
            "0000:44:00.0",
            ("10de", "22a3", "068000"),
            &[(0, 0x38e0_0000_0000, 0x38e0_01ff_ffff, WIDE)],
        );
        let a30 = [
            (0, 0xaf00_0000, 0xafff_ffff, MEM32),
            (1, 0x38a8_0000_0000, 0x38af_ffff_ffff, WIDE),
            (3, 0x38b8_1000_0000, 0x38b8_11ff_ffff, WIDE),
        ];
        root.device("0000:51:00.0", ("10de", "20b7", "030200"), &a30);
        let mi100 = [
            (0, 0x4f8_0000_0000, 0x4ff_ffff_ffff, WIDE),
            (2, 0x500_0000_0000, 0x500_001f_ffff, WIDE),
            (4, 0xf000, 0xf0ff, IO),
            (5, 0xc220_0000, 0xc227_ffff, MEM32),
            (6, 0xc228_0000, 0xc229_ffff, ROM),
        ];
        root.device("0000:61:00.0", ("1002", "738c", "038000"), &mi100);
        let flex = [
            (0, 0x205e_1f00_0000, 0x205e_1fff_ffff, WIDE),
            (2, 0x201c_0000_0000, 0x201f_ffff_ffff, WIDE),
            (6, 0, 0x1f_ffff, ROM),
            (7, 0x205e_0000_0000, 0x205e_1eff_ffff, WIDE),
            (9, 0x2020_0000_0000, 0x205d_ffff_ffff, WIDE),
        ];
        root.device("0000:71:00.0", ("8086", "56c0", "038000"), &flex);
        let vf =
            [(0, 0x205e_0000_0000, 0x205e_00ff_ffff, WIDE), (2, 0x2020_0000_0000, 0x2021_ffff_ffff, WIDE)];
        let dir = root.device("0000:71:00.1", ("8086", "56c0", "038000"), &vf);
        // The registers of a VF are zero, whatever it has.
        fs::write(dir.join("config"), [0; 64]).expect("a file");
        root.link("sys/bus/pci/devices/0000:71:00.1/physfn", "../0000:71:00.0");
        root.device("10000:01:00.0", ("10de", "1aef", "040300"), &[(0, 0xf708_0000, 0xf708_3fff, MEM32)]);
        root.write("sys/bus/pci/devices/not-an-address/vendor", "0x10de\n");
        root
    }
}

fn address(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

#[test]
fn a_server_reads_as_it_was_printed() {
    let root = Sysroot::server();
    let (facts, notes) = root.host().facts();
    assert_eq!(notes, Vec::<String>::new());
    let text = facts.to_json().expect("facts are always JSON");
    assert_eq!(HostFacts::from_json(&text).as_ref(), Ok(&facts));
    insta::with_settings!({ snapshot_path => "../snapshots/host", prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("server", text);
    });
}

#[test]
fn one_function_is_read_alone() {
    let root = Sysroot::server();
    // Whatever is wrong with the others does not matter.
    fs::remove_dir_all(root.path().join("sys/bus/pci/devices/0000:51:00.0")).expect("removed");
    root.write("sys/bus/pci/devices/0000:61:00.0/resource", "nonsense");
    let function = root.host().pci_function(address("41:00.0")).expect("readable");
    let bars = function.bars.expect("known");
    let expected = Bar { index: 2, size: Bytes(128 << 30), kind: BarKind::Mem64Prefetchable };
    assert_eq!((bars.len(), bars[1]), (3, expected));
}

/// `modalias` says what three files say, and they are read where it does not.
#[test]
fn ids_by_whichever_file_there_is() {
    let root = Sysroot::server();
    let folder = "sys/bus/pci/devices/0000:61:00.0";
    let ids = || {
        let function = root.host().pci_function(address("61:00.0")).expect("readable");
        (function.vendor, function.device, function.class)
    };
    let expected = ("1002".to_owned(), "738c".to_owned(), "038000".to_owned());
    assert_eq!(ids(), expected);
    root.write(&format!("{folder}/modalias"), "pci:v00001002\n");
    assert_eq!(ids(), expected);
    root.write(&format!("{folder}/modalias"), "pci:v00001002d0000738Csv00001002sd00000C34bc03sc80i00\n");
    for file in ["vendor", "device", "class"] {
        fs::remove_file(root.path().join(folder).join(file)).expect("removed");
    }
    assert_eq!(ids(), expected);
}

#[test]
fn trouble_is_told_apart() {
    let root = Sysroot::server();
    let host = root.host();
    assert!(matches!(host.pci_function(address("99:00.0")), Err(PciError::Missing(_))));
    root.write("sys/bus/pci/devices/0000:61:00.0/resource", "nonsense\n");
    let error = host.pci_function(address("61:00.0")).expect_err("malformed");
    assert_eq!(error.to_string(), "`resource` of PCI function 0000:61:00.0 holds `nonsense`");
    fs::remove_file(root.path().join("sys/bus/pci/devices/0000:51:00.0/class")).expect("removed");
    let error = host.pci_function(address("51:00.0")).expect_err("no class");
    assert_eq!(error.to_string(), "cannot read `class` of PCI function 0000:51:00.0");
    // A machine with a broken device still reads.
    let (functions, notes) = host.pci_functions();
    assert_eq!(functions.len(), 5);
    assert_eq!(
        notes,
        [
            "cannot read `class` of PCI function 0000:51:00.0",
            "`resource` of PCI function 0000:61:00.0 holds `nonsense`"
        ]
    );
}

/// The first 64 bytes of a type 0 header with these base address registers.
fn config(registers: [u32; 6]) -> Vec<u8> {
    let mut config = vec![0; 64];
    config[..4].copy_from_slice(&[0xde, 0x10, 0x21, 0x23]);
    for (index, register) in registers.iter().enumerate() {
        config[0x10 + 4 * index..][..4].copy_from_slice(&register.to_le_bytes());
    }
    config
}

#[test]
fn a_bar_that_the_kernel_forgot_makes_the_sizes_unknown() {
    let root = Sysroot::new();
    let small =
        [(0, 0x38c0_0200_0000, 0x38c0_02ff_ffff, WIDE), (4, 0x38c0_0000_0000, 0x38c0_01ff_ffff, WIDE)];
    let dir = root.device("0000:41:00.0", ("10de", "2321", "030200"), &small);
    let host = root.host();
    let bars = || host.pci_function(address("41:00.0")).expect("readable").bars.map(|b| b.len());

    fs::write(dir.join("config"), config([0x0200_000c, 0x38c0, 0xc, 0, 0xc, 0x38c0])).expect("a file");
    assert_eq!(bars(), None);
    let (_, notes) = host.pci_functions();
    assert_eq!(notes, ["the kernel does not know the BAR sizes of 0000:41:00.0"]);

    // The upper half of a 64-bit BAR is not a BAR.
    fs::write(dir.join("config"), config([0x0200_000c, 0x38c0, 0, 0, 0xc, 0x38c0])).expect("a file");
    assert_eq!(bars(), Some(2));
    // A device that does not answer says nothing.
    fs::write(dir.join("config"), [0xff; 64]).expect("a file");
    assert_eq!(bars(), Some(2));
    fs::remove_file(dir.join("config")).expect("removed");
    assert_eq!(bars(), Some(2));
}

#[test]
fn the_iommu_of_the_devices_counts() {
    let root = Sysroot::server();
    let host = root.host();
    assert_eq!(host.iommu_bits(&[address("41:00.0")]), Some(48));
    assert_eq!(host.iommu_bits(&[address("51:00.0")]), Some(39), "no unit is named: the narrowest of all");
    assert_eq!(host.iommu_bits(&[]), Some(39));
    let regions = host.reserved_regions(12);
    assert_eq!((regions.len(), regions[0].span.first(), regions[0].kind.as_str()), (1, 0xfee0_0000, "msi"));
    assert_eq!(host.reserved_regions(13), []);

    let amd = Sysroot::new();
    amd.write("sys/class/iommu/ivhd0/amd-iommu/features", "246577efa2254afa:10\n");
    assert_eq!(amd.host().iommu_bits(&[]), Some(64));
}

#[test]
fn pci_express_is_in_the_capability_list() {
    let root = Sysroot::new();
    let dir = root.device("0000:01:00.0", ("10de", "2321", "030200"), &[]);
    let host = root.host();
    let with = |status: u8, entries: &[(usize, u8, u8)]| {
        let mut config = vec![0; 256];
        (config[0x06], config[0x34]) = (status, 0x60);
        for &(at, id, next) in entries {
            (config[at], config[at + 1]) = (id, next);
        }
        fs::write(dir.join("config"), config).expect("a file");
        host.is_pci_express(address("01:00.0"))
    };
    assert_eq!(with(0x10, &[(0x60, 0x01, 0x68), (0x68, 0x10, 0)]), Some(true));
    assert_eq!(with(0x10, &[(0x60, 0x01, 0x68), (0x68, 0x05, 0)]), Some(false));
    assert_eq!(with(0x00, &[(0x60, 0x10, 0)]), Some(false));
    assert_eq!(with(0x10, &[(0x60, 0x01, 0x60)]), None, "a list that runs in a circle");
    // What an ordinary user can read ends before the list.
    let mut short = config([0; 6]);
    (short[0x06], short[0x34]) = (0x10, 0x60);
    fs::write(dir.join("config"), short).expect("a file");
    assert_eq!(host.is_pci_express(address("01:00.0")), None);
}

#[test]
fn a_machine_without_anything_is_all_unknown() {
    let root = Sysroot::new();
    let (facts, notes) = root.host().facts();
    assert_eq!((facts.pci.len(), facts.iommu_bits, notes.len()), (0, None, 0));
    let text = facts.to_json().expect("facts are always JSON");
    assert_eq!(HostFacts::from_json(&text), Ok(facts));
}

const STATUS: &str = "Package: libvirt0\nStatus: install ok installed\nVersion: 9.0.0-4+deb12u2\n\n\
    Package: ovmf\nStatus: install ok installed\nVersion: 2025.02-8+deb13u1\n\n\
    Package: qemu-system-x86\nStatus: install ok installed\nVersion: 1:7.2+dfsg-7+deb12u18+b3\n\n";

#[test]
fn versions_come_from_the_best_source_there_is() {
    let root = Sysroot::new();
    let host = root.host();
    assert_eq!((host.qemu_version(), host.libvirt_version()), (None, None));

    root.write("var/lib/dpkg/status", STATUS);
    let shown = |found: Option<barfit::host::FoundVersion>| {
        found.map(|found| format!("{}: {}", found.version, found.because)).unwrap_or_default()
    };
    assert_eq!(shown(host.qemu_version()), "7.2.0: package qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3");
    assert_eq!(shown(host.libvirt_version()), "9.0.0: package libvirt0 9.0.0-4+deb12u2");

    root.link("usr/lib64/libvirt.so.0", "libvirt.so.0.9003.1");
    assert_eq!(shown(host.libvirt_version()), "9.3.1: /usr/lib64/libvirt.so.0");

    let cached = |version: &str, arch: &str| {
        format!(
            "<qemuCaps>\n  <selfvers>9000000</selfvers>\n  <flag name='kvm'/>\n  <version>{version}</version>\n  \
             <kvmVersion>0</kvmVersion>\n  <arch>{arch}</arch>\n</qemuCaps>\n"
        )
    };
    let folder = "var/cache/libvirt/qemu/capabilities";
    root.write(&format!("{folder}/1.xml"), cached("7002022", "x86_64"));
    root.write(&format!("{folder}/2.xml"), cached("8002000", "aarch64"));
    root.write(&format!("{folder}/3.xml"), "<qemuCaps>");
    assert_eq!(shown(host.qemu_version()), "7.2.22: libvirt's cache of capabilities");
}

#[test]
fn a_package_tells_the_era_of_its_files() {
    let root = Sysroot::new();
    root.write("var/lib/dpkg/status", STATUS);
    root.write(
        "var/lib/dpkg/info/ovmf.list",
        "/.\n/usr/share/OVMF\n/usr/share/OVMF/OVMF_CODE_4M.secboot.fd\n",
    );
    root.write("usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "not looked at");
    root.link("usr/share/OVMF/OVMF_CODE_4M.ms.fd", "OVMF_CODE_4M.secboot.fd");
    root.write("usr/share/OVMF/OVMF_VARS_4M.fd", "variables");
    root.write("usr/share/edk2/ovmf/OVMF.amdsev.fd", "of no package");
    let host = root.host();
    let (files, _) = host.firmware_files(Depth::Package);
    let shown: Vec<_> = files
        .iter()
        .map(|f| (f.path.to_str().expect("UTF-8"), f.era.as_deref(), f.fw_cfg_override, f.gib_page_tables))
        .collect();
    assert_eq!(
        shown,
        [
            ("/usr/share/OVMF/OVMF_CODE_4M.ms.fd", Some("202502"), Some(true), None),
            ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", Some("202502"), Some(true), None),
            ("/usr/share/edk2/ovmf/OVMF.amdsev.fd", None, None, Some(false)),
        ]
    );
    assert_eq!(files[0].because.as_deref(), Some("package ovmf 2025.02-8+deb13u1"));
    // The image is no firmware volume: its package is all there is.
    assert_eq!(host.firmware_file(&files[0].path, Depth::Image), Some(files[0].clone()));
    assert_eq!(host.firmware_file(Path::new("/nowhere/OVMF.fd"), Depth::Image), None);
}

#[test]
fn descriptors_are_ordered_and_masked_by_name() {
    let root = Sysroot::new();
    let descriptor = |file: &str, features: &str| {
        format!(
            r#"{{"interface-types": ["uefi"], "features": [{features}],
                "mapping": {{"device": "flash", "executable": {{"filename": "{file}", "format": "raw"}}}},
                "targets": [{{"architecture": "x86_64", "machines": ["pc-q35-*"]}}]}}"#
        )
    };
    root.write(
        "usr/share/qemu/firmware/40-secure.json",
        descriptor("/secure.fd", r#""secure-boot", "requires-smm""#),
    );
    root.write("usr/share/qemu/firmware/60-plain.json", descriptor("/plain.fd", ""));
    root.write("usr/share/qemu/firmware/70-broken.json", "{");
    root.write(
        "usr/share/qemu/firmware/50-sev.json",
        r#"{"interface-types": ["uefi"], "features": ["amd-sev", "amd-sev-snp"],
            "mapping": {"device": "memory", "filename": "/amdsev.fd"},
            "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]}"#,
    );
    let host = root.host();
    let chosen = |wanted: Wanted<'_>| {
        let wanted = Wanted { machine: "pc-q35-7.2", ..wanted };
        host.firmware_for(&wanted).map(|d| d.path.display().to_string()).unwrap_or_default()
    };
    assert_eq!(chosen(Wanted::default()), "/secure.fd");
    assert_eq!(
        chosen(Wanted { secure_boot: Some(false), in_memory: Some(false), ..Wanted::default() }),
        "/plain.fd"
    );
    assert_eq!(chosen(Wanted { launch_security: Some("sev-snp"), ..Wanted::default() }), "/amdsev.fd");
    assert_eq!(chosen(Wanted { bios: true, ..Wanted::default() }), "");
    let (_, notes) = host.firmware_files(Depth::Package);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("70-broken.json"), "{notes:?}");

    // An empty file of the same name in /etc takes the packaged one out; another puts its own in its place.
    root.write("etc/qemu/firmware/40-secure.json", "");
    root.write("etc/qemu/firmware/60-plain.json", descriptor("/own.fd", ""));
    assert_eq!(chosen(Wanted { in_memory: Some(false), ..Wanted::default() }), "/own.fd");
}
