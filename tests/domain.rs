//! The domain view against the shipped examples and against a real libvirt.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use barfit::domain::topology::{self, PciTree, What};
use barfit::domain::{DeviceKind, Domain};

use common::{files, foreign, root};

fn xml_files(directory: &str) -> Vec<PathBuf> {
    files(directory, "xml").into_values().collect()
}

fn parse(path: &Path) -> Domain {
    let text = std::fs::read(path).expect("readable");
    Domain::parse(&text).unwrap_or_else(|error| panic!("{}:{error}", path.display()))
}

/// The tree as text: a line a function, indented by bus.
fn drawn(domain: &Domain, tree: &PciTree<'_>) -> String {
    let mut text = String::new();
    draw(domain, tree, 0, 0, &mut text);
    for problem in &tree.problems {
        writeln!(text, "! {}", problem.message).expect("a string");
    }
    text
}

fn draw(domain: &Domain, tree: &PciTree<'_>, bus: u8, depth: usize, text: &mut String) {
    for node in tree.on_bus(bus) {
        write!(text, "{:depth$}{:02x}.{:x} ", "", node.slot, node.function).expect("a string");
        match node.what {
            What::BuiltIn(name) => writeln!(text, "{name}").expect("a string"),
            What::Device(position) => {
                let device = &domain.devices[position];
                let what = match &device.kind {
                    DeviceKind::Host { host, .. } => format!("host {host}"),
                    DeviceKind::Emulated { driver, sizes } => {
                        let sizes = sizes.iter().filter(|(_, size)| size.get() > 0);
                        let sizes: Vec<_> = sizes.map(|(name, size)| format!(" {name}={size}")).collect();
                        format!("{driver}{}", sizes.concat())
                    }
                };
                writeln!(text, "{what}").expect("a string");
            }
            What::Port(index) => {
                let controller = tree.controller(index).expect("a controller");
                let plug = if controller.hotplug { "" } else { " no hotplug" };
                let bus = controller.bus_nr.map(|n| format!(" bus {n}")).unwrap_or_default();
                writeln!(text, "{:?} {}{plug}{bus}", controller.model, controller.index).expect("a string");
                draw(domain, tree, index, depth + 2, text);
            }
        }
    }
}

fn drawn_file(path: &Path) -> String {
    let domain = parse(path);
    drawn(&domain, &topology::assign(&domain))
}

/// What a person writes and what libvirt makes of it are the same machine.
#[test]
fn sources_and_examples_are_the_same_tree() {
    let examples = xml_files("examples");
    assert!(examples.len() >= 40, "{} examples", examples.len());
    for example in examples {
        let source = root().join("examples/src").join(example.file_name().expect("a name"));
        let tree = drawn_file(&example);
        assert!(!tree.contains('!'), "{}\n{tree}", example.display());
        assert_eq!(drawn_file(&source), tree, "{}", source.display());
        let (written, normal) = (parse(&source), parse(&example));
        assert_eq!(written.memory, normal.memory, "{}", source.display());
        assert_eq!(written.firmware, normal.firmware, "{}", source.display());
        assert_eq!(written.pci_hole64, normal.pci_hole64, "{}", source.display());
        assert_eq!(written.command_line.args, normal.command_line.args, "{}", source.display());
    }
}

/// A running domain, and one as the hook sees it, is the same machine as the one that was defined.
#[test]
fn live_domains_are_the_same_tree() {
    let live = xml_files("examples/live");
    assert!(live.len() >= 12, "{} live domains", live.len());
    for path in live {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let example =
            root().join("examples").join(format!("{}.xml", name.split('.').next().expect("a stem")));
        assert_eq!(drawn_file(&path), drawn_file(&example), "{}", path.display());
        let (running, defined) = (parse(&path), parse(&example));
        assert!(running.running && !defined.running, "{}", path.display());
        assert_eq!(running.memory, defined.memory, "{}", path.display());
        assert_eq!(running.command_line.args, defined.command_line.args, "{}", path.display());
    }
}

/// Domains without addresses, in many mixtures: what libvirt gives out is what we assume.
#[test]
fn libvirt_gives_out_the_same_addresses() {
    let inputs = xml_files("tests/domain/unaddressed");
    assert!(inputs.len() >= 20, "{} inputs", inputs.len());
    let defined = tempfile::tempdir().expect("a directory");
    let script = r#"
        out=$1; shift
        for file; do
            name=$(virsh define "$file" 2>"$out/error" | sed -n "s/^Domain '\(.*\)' defined.*/\1/p")
            if [ -z "$name" ]; then cp "$out/error" "$out/$(basename "$file").refused"; continue; fi
            virsh dumpxml --inactive "$name" >"$out/$(basename "$file")"
            virsh undefine --nvram "$name" >/dev/null
        done"#;
    let run = Command::new(root().join("tests/libvirt/private-libvirtd"))
        .args(["bash", "-ec", script, "define"])
        .arg(defined.path())
        .args(&inputs)
        .output()
        .expect("bash");
    assert!(
        run.status.success(),
        "{}\nneeds root and: apt-get install libvirt-daemon-system libvirt-clients qemu-system-x86",
        String::from_utf8_lossy(&run.stderr)
    );
    let mut wrong = String::new();
    for input in inputs {
        let normal = defined.path().join(input.file_name().expect("a name"));
        if let Ok(error) = std::fs::read_to_string(normal.with_extension("xml.refused")) {
            writeln!(wrong, "{}\nlibvirt: {error}", input.display()).expect("a string");
            continue;
        }
        let (ours, libvirts) = (drawn_file(&input), drawn_file(&normal));
        if libvirts.contains('!') || ours != libvirts || parse(&input).memory != parse(&normal).memory {
            writeln!(wrong, "{}\n--- ours\n{ours}--- libvirt\n{libvirts}", input.display())
                .expect("a string");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Why what libvirt's tests expect is not what we assume.
const OTHERWISE: [(&str, &str); 4] = [
    ("default-video-type-x86_64-caps-test-0", "a QEMU without cirrus"),
    ("q35", "a QEMU without xHCI"),
    ("channel-virtio-autoadd", "more channels than the controller has ports: libvirt adds another"),
    ("pci-autoadd-idx", "since libvirt 10 the controllers that it adds stand among the others, by index"),
];

/// libvirt's tests: what was written, and what it is once it is defined.
fn libvirts_own() -> Vec<(PathBuf, PathBuf)> {
    let cache = foreign();
    let mut pairs = Vec::new();
    for (folder, written, defined) in [
        ("bookworm-libvirt", "tests+qemuxml2argvdata+", "tests+qemuxml2xmloutdata+"),
        ("trixie-libvirt", "tests+qemuxmlconfdata+", "tests+qemuxmlconfdata+"),
    ] {
        let files = xml_files(cache.join(folder).to_str().expect("UTF-8"));
        for file in files {
            let name = file.file_stem().and_then(|name| name.to_str()).expect("a name");
            let Some(name) = name.strip_prefix(written) else { continue };
            let outputs = [".x86_64-latest", ""].map(|variant| format!("{defined}{name}{variant}.xml"));
            let outputs = outputs.map(|output| file.with_file_name(output));
            let output = outputs.into_iter().find(|output| *output != file && output.exists());
            pairs.extend(output.map(|output| (file, output)));
        }
    }
    pairs
}

/// What libvirt's own tests expect it to make of a domain is what we assume.
#[test]
fn libvirts_own_examples_are_the_same_tree() {
    let (mut same, mut wrong) = (0, String::new());
    let mut excused: BTreeSet<&str> = BTreeSet::new();
    for (written, defined) in libvirts_own() {
        let texts = [&written, &defined].map(|path| std::fs::read(path).expect("readable"));
        let [Ok(ours), Ok(libvirts)] = texts.map(|text| Domain::parse(&text)) else { continue };
        if !matches!(libvirts.arch.as_deref(), Some("x86_64" | "i686")) {
            continue;
        }
        let [ours, libvirts] = [ours, libvirts].map(|domain| drawn(&domain, &topology::assign(&domain)));
        let name = written.file_stem().and_then(|name| name.to_str()).expect("a name");
        let name = name.rsplit('+').next().expect("a name");
        if ours == libvirts {
            same += 1;
        } else if let Some((known, _)) = OTHERWISE.iter().find(|(known, _)| *known == name) {
            excused.insert(known);
        } else {
            writeln!(wrong, "{}\n--- ours\n{ours}--- libvirt\n{libvirts}", written.display())
                .expect("a string");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(same > 900, "only {same} pairs; run tests/foreign/collect");
    assert_eq!(excused.len(), OTHERWISE.len(), "no longer otherwise: {excused:?} is all that is left");
}
