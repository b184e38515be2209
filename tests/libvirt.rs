//! What a real libvirt makes of rewritten domains: it takes them with `virsh define --validate`, keeps what was
//! written, and gives QEMU the words that the change stands for.
//!
//! Needs root and the packages that `tests/install-programs` installs; see `tests/libvirt/private-libvirtd`.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use barfit::host::{Program, Version};
use barfit::plan::{Change, CpuGlobal, MaxPhysAddrValue};
use barfit::rewrite::{argv, rewrite};
use barfit::units::PhysBits;
use common::{answer, examples, host, pairs, root};

/// The same domain for a libvirt without KVM, 1 GiB pages, Ceph's secrets and VFIO: nothing that barfit changes.
fn for_this_libvirt(text: &str) -> String {
    let mut text = text
        .replacen("<domain type='kvm'", "<domain type='qemu'", 1)
        // host-passthrough is refused without KVM; `maximum` is its equal there.
        .replace("<cpu mode='host-passthrough'", "<cpu mode='maximum'")
        .replace("check='partial'", "check='none'");
    for (start, end) in [("<memoryBacking>", "</memoryBacking>"), ("<auth ", "</auth>")] {
        if let Some((before, rest)) = text.split_once(start) {
            let (_, after) = rest.split_once(end).expect("a whole element");
            text = format!("{before}{after}");
        }
    }
    // Where a domain names no driver, `domxml-to-native` asks the machine.
    let driver = "<driver name='vfio'/>";
    text = text.replace(driver, "");
    for managed in ["yes", "no"] {
        let hostdev = format!("<hostdev mode='subsystem' type='pci' managed='{managed}'>");
        text = text.replace(&hostdev, &format!("{hostdev}{driver}"));
    }
    text
}

/// What libvirt says of one domain.
#[derive(Debug)]
struct Answer {
    /// Why it is refused.
    refused: Option<String>,
    /// The stored domain.
    dump: String,
    /// QEMU's command line; `None` where libvirt 9.0 cannot make one.
    argv: Option<Vec<String>>,
}

/// Asks one libvirtd about all `domains`, which must be [`for_this_libvirt`].
fn ask_libvirt(test: &str, domains: &BTreeMap<String, String>) -> BTreeMap<String, Answer> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("directory for this test");
    for (name, text) in domains {
        fs::write(directory.join(format!("{name}.xml")), text).expect("domain for libvirt");
    }
    let scripts = root().join("tests/libvirt");
    // 52 bits: what a rewritten domain asks for does not depend on the machine that runs the test.
    let output = Command::new(scripts.join("private-libvirtd"))
        .args(["--cpu-bits", "52"])
        .args([scripts.join("define-all"), directory.clone()])
        .output()
        .expect("private-libvirtd runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    domains.keys().map(|name| (name.clone(), read_answer(&directory.join(name)))).collect()
}

fn read_answer(stem: &Path) -> Answer {
    let read = |extension: &str| -> Option<String> {
        let path = PathBuf::from(format!("{}.{extension}", stem.display()));
        path.exists().then(|| fs::read_to_string(&path).expect("an answer of define-all"))
    };
    let argv = read("argv").map(|line| line.split_whitespace().map(str::to_owned).collect());
    if let Some(reason) = read("no-argv") {
        assert!(reason.contains("interface of type hostdev"), "{}: {reason}", stem.display());
    }
    Answer { refused: read("refused"), dump: read("dump").unwrap_or_default(), argv }
}

/// The word after `option`, each time it is there.
fn values<'a>(argv: &'a [String], option: &str) -> Vec<&'a str> {
    argv.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

/// Asserts that QEMU is told what the change says.
fn assert_told(name: &str, argv: &[String], change: &Change) {
    let cpu = values(argv, "-cpu").concat();
    let cpu_has = |property: &str| cpu.split(',').any(|p| p == property);
    match change {
        Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(bits)) => {
            assert!(cpu_has(&format!("phys-bits={bits}")), "{name}: {change:?} but -cpu {cpu}");
        }
        Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { .. }) => {
            assert!(cpu_has("host-phys-bits=on"), "{name}: {change:?} but -cpu {cpu}");
        }
        Change::RequireFeature(feature) => {
            assert!(cpu_has(&format!("{feature}=on")), "{name}: {change:?} but -cpu {cpu}");
        }
        Change::SetMmio64Mib(mib) => {
            let all: Vec<_> = values(argv, "-fw_cfg")
                .into_iter()
                .filter(|v| v.contains("opt/ovmf/X-PciMmio64Mb"))
                .collect();
            assert_eq!(all.len(), 1, "{name}: a second entry of the same name stops QEMU: {all:?}");
            assert!(all[0].ends_with(&format!(",string={mib}")), "{name}: {change:?} but {all:?}");
        }
        Change::RemoveMmio64 => {
            assert!(!argv.iter().any(|word| word.contains("X-PciMmio64Mb")), "{name}: {argv:?}");
        }
        Change::SetCpuGlobal(global) => {
            let wanted = match global {
                CpuGlobal::PhysBits(bits) => format!("x86_64-cpu.phys-bits={bits}"),
                CpuGlobal::HostPhysBits => "x86_64-cpu.host-phys-bits=on".to_owned(),
                CpuGlobal::HostPhysBitsLimit(bits) => format!("x86_64-cpu.host-phys-bits-limit={bits}"),
            };
            let globals = values(argv, "-global");
            assert!(globals.contains(&wanted.as_str()), "{name}: {change:?} but {globals:?}");
        }
    }
}

/// Makes changes in domains, and holds libvirt's answers to what must be true of all. A domain is the name of its
/// case, its text, and the changes.
fn change(test: &str, cases: &BTreeMap<String, (String, Vec<Change>)>) {
    let mut domains = BTreeMap::new();
    for (name, (text, changes)) in cases {
        let changed = rewrite(text.as_bytes(), changes).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        domains.insert(name.clone(), for_this_libvirt(&String::from_utf8(changed).expect("UTF-8")));
    }
    for (name, answer) in ask_libvirt(test, &domains) {
        let changes = &cases[&name].1;
        assert_eq!(answer.refused, None, "{name}: libvirt refuses it");
        // libvirt drops in silence what it does not know. Nothing is missing if there is nothing to change again.
        let again = rewrite(answer.dump.as_bytes(), changes).expect("libvirt's own dump");
        assert_eq!(
            String::from_utf8(again).expect("UTF-8"),
            answer.dump,
            "{name}: libvirt did not keep the changes"
        );
        let Some(argv) = &answer.argv else { continue };
        for change in changes {
            // The model that a host-model expands to depends on the machine, and what it has anyway is left out.
            let in_model =
                answer.dump.contains("mode='host-model'") && matches!(change, Change::RequireFeature(_));
            if !in_model {
                assert_told(&name, argv, change);
            }
        }
    }
}

/// The same changes in every example.
fn change_every_example(test: &str, changes: &[Change]) {
    let case = |(name, text)| (name, (text, changes.to_vec()));
    change(test, &examples().into_iter().map(case).collect());
}

fn bits(bits: u64) -> PhysBits {
    PhysBits::new(bits).expect("32 to 52")
}

#[test]
fn unchanged_examples_are_taken() {
    change_every_example("unchanged", &[]);
}

#[test]
fn emulated_bits_window_and_feature_are_taken() {
    let changes = [
        Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(bits(47))),
        Change::RequireFeature("pdpe1gb"),
        Change::SetMmio64Mib(4_194_304),
    ];
    change_every_example("emulate", &changes);
}

#[test]
fn passed_through_bits_without_a_window_are_taken() {
    let changes =
        [Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: None }), Change::RemoveMmio64];
    change_every_example("passthrough", &changes);
}

#[test]
fn globals_for_an_old_libvirt_are_taken() {
    let changes = [Change::SetCpuGlobal(CpuGlobal::PhysBits(bits(47))), Change::SetMmio64Mib(4_194_304)];
    change_every_example("global", &changes);
}

/// A domain of one CPU and some words for QEMU.
fn small(cpu: &str, words: &[&str]) -> String {
    let args: String = words.iter().map(|word| format!("    <qemu:arg value='{word}'/>\n")).collect();
    let block = match words {
        [] => String::new(),
        _ => format!("  <qemu:commandline>\n{args}  </qemu:commandline>\n"),
    };
    format!(
        "<domain type='qemu' xmlns:qemu='{}'>\n  <name>small</name>\n  <memory unit='MiB'>64</memory>\n  <os>\n    \
         <type arch='x86_64' machine='q35'>hvm</type>\n  </os>\n{cpu}{block}</domain>\n",
        barfit::domain::QEMU_NAMESPACE
    )
}

/// The parts of `-cpu`, whose order is libvirt's own.
fn sorted(cpu: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = cpu.split(',').collect();
    // Said beside `phys-bits` of `max`, where only KVM asks for it.
    parts.retain(|part| *part != "host-phys-bits=off");
    parts.sort_unstable();
    parts
}

/// Changed in the XML or changed in the words that the old XML makes: QEMU is told the same, and it is this.
#[test]
fn both_ways_to_qemu_say_the_same() {
    let emulate = || Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(bits(43)));
    let passthrough = || Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: None });
    let pdpe1gb = || Change::RequireFeature("pdpe1gb");
    let window = || Change::SetMmio64Mib(2_097_152);
    let model = "  <cpu mode='custom'>\n    <model>Skylake-Server</model>\n  </cpu>\n";
    let disabled = "  <cpu mode='custom'>\n    <model>Skylake-Server</model>\n    <feature policy='disable' name='pdpe1gb'/>\n  </cpu>\n";
    let small_bits = "  <cpu mode='maximum'>\n    <maxphysaddr mode='emulate' bits='41'/>\n  </cpu>\n";
    let host_on = ["-global", "x86_64-cpu.host-phys-bits=on"];
    let short = ["-fw_cfg", "opt/ovmf/X-PciMmio64Mb,string=1024"];
    // A name, a domain, changes, and what QEMU is told of the CPU and by fw_cfg.
    let cases = [
        ("no-cpu", small("", &[]), vec![emulate()], "qemu64,phys-bits=43", None),
        (
            "no-cpu-feature",
            small("", &[]),
            vec![pdpe1gb(), emulate()],
            "qemu64,pdpe1gb=on,phys-bits=43",
            None,
        ),
        ("no-model", small("  <cpu/>\n", &[]), vec![pdpe1gb()], "qemu64,pdpe1gb=on", None),
        (
            "model",
            small(model, &[]),
            vec![emulate(), window()],
            "Skylake-Server,phys-bits=43",
            Some("name=opt/ovmf/X-PciMmio64Mb,string=2097152"),
        ),
        ("host-width", small(model, &[]), vec![passthrough()], "Skylake-Server,host-phys-bits=on", None),
        ("feature-disabled", small(disabled, &[]), vec![pdpe1gb()], "Skylake-Server,pdpe1gb=on", None),
        ("bits-corrected", small(small_bits, &[]), vec![emulate()], "max,phys-bits=43", None),
        ("host-width-goes", small(model, &host_on), vec![emulate()], "Skylake-Server,phys-bits=43", None),
        (
            "window-corrected",
            small(model, &short),
            vec![window()],
            "Skylake-Server",
            Some("opt/ovmf/X-PciMmio64Mb,string=2097152"),
        ),
        ("window-removed", small(model, &short), vec![Change::RemoveMmio64], "Skylake-Server", None),
    ];
    let mut domains = BTreeMap::new();
    for (name, old, changes, ..) in &cases {
        let new = rewrite(old.as_bytes(), changes).expect(name);
        domains.insert(format!("{name}-old"), old.clone());
        domains.insert(format!("{name}-new"), String::from_utf8(new).expect("UTF-8"));
    }
    let answers = ask_libvirt("both-ways", &domains);
    for (name, _, changes, cpu, fw_cfg) in &cases {
        let argv = |suffix| answers[&format!("{name}-{suffix}")].argv.clone().expect(name);
        let new = argv("new");
        let old: Vec<OsString> = argv("old").into_iter().map(OsString::from).collect();
        let words: Vec<String> =
            argv::rewrite(old, changes).iter().map(|word| word.to_string_lossy().into_owned()).collect();
        for argv in [&new, &words] {
            assert_eq!(sorted(&values(argv, "-cpu").concat()), sorted(cpu), "{name}");
            assert_eq!(values(argv, "-fw_cfg"), Vec::from_iter(*fw_cfg), "{name}");
        }
    }
}

/// What `barfit rewrite` prints.
fn rewritten_by_command(example: &str, host: &str) -> String {
    let examples = root().join("examples");
    let output = Command::new(env!("CARGO_BIN_EXE_barfit"))
        .arg("rewrite")
        .arg("--host")
        .arg(examples.join("hosts").join(format!("{host}.json")))
        .arg(examples.join(format!("{example}.xml")))
        .output()
        .expect("barfit runs");
    assert!(output.status.success(), "{example} on {host}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What barfit plans for each example on each host that goes with it. Plans for a newer libvirt than the 9.0 that
/// answers here may say what it does not know, and stay out.
#[test]
fn every_plan_is_taken() {
    let examples = examples();
    let mut cases = BTreeMap::new();
    for (name, host_name) in pairs() {
        let host = host(&host_name);
        let libvirt = host.libvirt.as_ref().and_then(Program::number).expect("a version of libvirt");
        if libvirt > Version(9, 0, 0) {
            continue;
        }
        let changes = answer(&examples[&name], &host).plan.changes;
        if !changes.is_empty() {
            let text = rewritten_by_command(&name, &host_name);
            assert_ne!(text, examples[&name], "{name} on {host_name}: {changes:?}");
            // Made by the command, so that making them again here must not change anything.
            let again = rewrite(text.as_bytes(), &changes).expect("a rewritten example");
            assert_eq!(String::from_utf8(again).expect("UTF-8"), text, "{name} on {host_name}");
            cases.insert(format!("{name}-on-{host_name}"), (text, changes));
        }
    }
    assert!(cases.len() >= 20, "only {} plans change something", cases.len());
    change("plans", &cases);
}
