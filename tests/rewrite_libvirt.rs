//! What a real libvirt makes of rewritten domains: it takes them with `--validate`, drops nothing in silence, and
//! hands to QEMU what the plan says. Needs root and libvirt; `tests/libvirt/private-libvirtd` says what to install.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use barfit::plan::{Change, CpuGlobal, MaxPhysAddrValue};
use barfit::rewrite::{argv, rewrite};
use barfit::units::PhysBits;

const BITS: PhysBits = match PhysBits::new(43) {
    Some(bits) => bits,
    None => PhysBits::MAX,
};
const EMULATE: Change = Change::SetMaxPhysAddr(MaxPhysAddrValue::Emulate(BITS));
const PASSTHROUGH: Change = Change::SetMaxPhysAddr(MaxPhysAddrValue::Passthrough { limit: None });
const PDPE1GB: Change = Change::RequireFeature("pdpe1gb");
const WINDOW: Change = Change::SetMmio64Mib(2_097_152);
const GLOBAL: Change = Change::SetCpuGlobal(CpuGlobal::PhysBits(BITS));

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a shell line over the domains, by name, in a libvirtd of their own: `$in` is a domain, `$out` what is read
/// back. KVM is hidden, so every domain is of type `qemu`.
fn in_libvirt(test: &str, domains: &BTreeMap<String, Vec<u8>>, line: &str) -> BTreeMap<String, String> {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).expect("a scratch directory");
    for (name, text) in domains {
        let text = String::from_utf8_lossy(text).replacen("type='kvm'", "type='qemu'", 1);
        fs::write(directory.join(name).with_extension("xml"), text).expect(name);
    }
    let script = format!(
        "for in in \"$1\"/*.xml; do out=${{in%.xml}}.out; {line} || {{ echo \"$in: refused\" >&2; exit 1; }}; done"
    );
    let output = Command::new(root().join("tests/libvirt/private-libvirtd"))
        .args(["--cpu-bits", "52", "bash", "-uc", &script, "bash"])
        .arg(&directory)
        .output()
        .expect("tests/libvirt/private-libvirtd runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &String| fs::read_to_string(directory.join(name).with_extension("out")).expect(name);
    domains.keys().map(|name| (name.clone(), read(name))).collect()
}

/// Each example, changed in several ways, is valid for libvirt and comes back with nothing left to change.
#[test]
fn libvirt_keeps_what_is_written() {
    let plans: [(&str, Vec<Change>); 3] = [
        ("bits", vec![EMULATE, PDPE1GB, WINDOW]),
        ("host", vec![PASSTHROUGH, Change::RemoveMmio64]),
        ("global", vec![GLOBAL, WINDOW]),
    ];
    let mut domains = BTreeMap::new();
    let mut asked = BTreeMap::new();
    for entry in fs::read_dir(root().join("examples")).expect("examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "xml") {
            continue;
        }
        let example = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = fs::read(&path).expect("an example");
        for (plan, changes) in &plans {
            let new = rewrite(&text, changes).expect(&example);
            domains.insert(format!("{example}-{plan}"), new);
            asked.insert(format!("{example}-{plan}"), changes);
        }
    }
    assert!(domains.len() > 60, "{}", domains.len());
    let dumps = in_libvirt(
        "libvirt-keeps",
        &domains,
        "virsh define --validate \"$in\" >/dev/null && name=$(virsh list --all --name | head -n 1) && \
         virsh dumpxml --inactive \"$name\" >\"$out\" && virsh undefine --keep-nvram \"$name\" >/dev/null",
    );
    for (name, dump) in &dumps {
        let changes = asked[name];
        let again = rewrite(dump.as_bytes(), changes).expect(name);
        assert!(again == dump.as_bytes(), "{name}: libvirt dropped something:\n{dump}");
    }
}

/// Small domains that libvirt can turn into a command line here.
fn small(cpu: &str, tail: &str) -> Vec<u8> {
    let qemu = barfit::domain::QEMU_NAMESPACE;
    format!(
        "<domain type='qemu' xmlns:qemu='{qemu}'>\n  <name>small</name>\n  <uuid>6f0c7d2e-6b0a-4a4e-9d55-0a4b1c6c2f01</uuid>\n  <memory unit='MiB'>64</memory>\n  <os>\n    <type arch='x86_64' machine='q35'>hvm</type>\n  </os>\n{cpu}{tail}</domain>\n"
    )
    .into_bytes()
}

fn block(words: &[&str]) -> String {
    let args: String = words.iter().map(|word| format!("    <qemu:arg value='{word}'/>\n")).collect();
    format!("  <qemu:commandline>\n{args}  </qemu:commandline>\n")
}

/// The words after the first QEMU word of what `domxml-to-native` prints.
fn argv_of(native: &str) -> Vec<OsString> {
    let line = native.lines().find(|line| line.contains("/qemu-system-")).expect("a command line");
    line.split_whitespace().map(|word| OsString::from(word.trim_matches('\''))).collect()
}

/// The values of an option.
fn values(argv: &[OsString], option: &str) -> Vec<String> {
    let pairs = argv.windows(2).filter(|pair| pair[0] == option);
    pairs.map(|pair| pair[1].to_string_lossy().into_owned()).collect()
}

/// The rewritten XML makes QEMU's command line say what the plan says, and so does the plan in the words of the
/// command line that the old XML makes.
#[test]
fn qemu_is_told_what_the_plan_says() {
    let model = "  <cpu mode='custom' match='exact'>\n    <model>Skylake-Server</model>\n  </cpu>\n";
    let small_bits = "  <cpu mode='maximum'>\n    <maxphysaddr mode='emulate' bits='41'/>\n  </cpu>\n";
    let disabled = "  <cpu mode='custom'>\n    <model>Skylake-Server</model>\n    <feature policy='disable' name='pdpe1gb'/>\n  </cpu>\n";
    let short = block(&["-fw_cfg", "opt/ovmf/X-PciMmio64Mb,string=1024"]);
    let twice = block(&["-global", "x86_64-cpu.phys-bits=41", "-global", "cpu.phys-bits=42"]);
    let window = ["name=opt/ovmf/X-PciMmio64Mb,string=2097152"];
    /// A name, a domain, a plan, and QEMU's words for the CPU, the globals and the firmware.
    type Case<'a> = (&'a str, Vec<u8>, Vec<Change>, &'a str, &'a [&'a str], &'a [&'a str]);
    let cases: Vec<Case<'_>> = vec![
        ("no-cpu", small("", ""), vec![EMULATE], "qemu64,phys-bits=43", &[], &[]),
        ("no-cpu-1g", small("", ""), vec![EMULATE, PDPE1GB], "qemu64,pdpe1gb=on,phys-bits=43", &[], &[]),
        ("empty", small("  <cpu/>\n", ""), vec![PDPE1GB], "qemu64,pdpe1gb=on", &[], &[]),
        ("model", small(model, ""), vec![EMULATE, WINDOW], "Skylake-Server,phys-bits=43", &[], &window),
        ("host", small(model, ""), vec![PASSTHROUGH], "Skylake-Server,host-phys-bits=on", &[], &[]),
        ("corrected", small(small_bits, ""), vec![EMULATE], "max,phys-bits=43", &[], &[]),
        ("disabled", small(disabled, ""), vec![PDPE1GB], "Skylake-Server,pdpe1gb=on", &[], &[]),
        (
            "short",
            small(model, &short),
            vec![WINDOW],
            "Skylake-Server",
            &[],
            &["opt/ovmf/X-PciMmio64Mb,string=2097152"],
        ),
        ("gone", small(model, &short), vec![Change::RemoveMmio64], "Skylake-Server", &[], &[]),
        ("global", small(model, ""), vec![GLOBAL], "Skylake-Server", &["x86_64-cpu.phys-bits=43"], &[]),
        (
            "globals",
            small(model, &twice),
            vec![GLOBAL],
            "Skylake-Server",
            &["x86_64-cpu.phys-bits=43", "cpu.phys-bits=43"],
            &[],
        ),
    ];
    let mut domains = BTreeMap::new();
    for (name, old, changes, ..) in &cases {
        domains.insert(format!("{name}-old"), old.clone());
        domains.insert(format!("{name}-new"), rewrite(old, changes).expect(name));
    }
    let native =
        in_libvirt("libvirt-native", &domains, "virsh domxml-to-native qemu-argv --xml \"$in\" >\"$out\"");
    for (name, _, changes, cpu, globals, firmware) in &cases {
        let new = argv_of(&native[&format!("{name}-new")]);
        assert_eq!(values(&new, "-cpu"), [*cpu], "{name}");
        assert_eq!(values(&new, "-global"), *globals, "{name}");
        assert_eq!(values(&new, "-fw_cfg"), *firmware, "{name}");

        let old = argv::rewrite(argv_of(&native[&format!("{name}-old")]), changes);
        assert_eq!(values(&old, "-fw_cfg"), *firmware, "{name}, in words");
        assert_eq!(argv::rewrite(new.clone(), changes).len(), new.len(), "{name}, in words");
        if !changes.contains(&GLOBAL) {
            let sorted = |argv: &[OsString]| {
                let mut pieces: Vec<_> =
                    values(argv, "-cpu").concat().split(',').map(str::to_owned).collect();
                pieces.sort();
                pieces.retain(|piece| piece != "host-phys-bits=off");
                pieces
            };
            assert_eq!(sorted(&old), sorted(&new), "{name}, in words");
        }
    }
}
