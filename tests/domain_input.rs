//! Inputs that are no domain, or one that cannot be: what is said of them, and that nothing breaks.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use barfit::domain::Domain;
use barfit::domain::topology;
use proptest::prelude::*;

/// A domain with a body and with devices.
fn text(body: &str, devices: &str) -> String {
    format!(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n\
         <os><type arch='x86_64' machine='q35'>hvm</type></os>\n{body}\n<devices>\n{devices}\n</devices>\n</domain>\n"
    )
}

const MEMORY: &str = "<memory unit='GiB'>8</memory>";

macro_rules! snapshot {
    ($name:literal, $text:expr) => {
        insta::with_settings!({snapshot_path => "../snapshots/domain", prepend_module_to_snapshot => false}, {
            insta::assert_snapshot!($name, $text);
        })
    };
}

/// Every fault of meaning that keeps a text from being read, in a person's view: line, column, what, what to do.
#[test]
fn faults_of_a_domain() {
    let source = "<source><address bus='0x41'/></source>";
    let hostdev = |inner: &str| text(MEMORY, &format!("<hostdev type='pci'>{inner}</hostdev>"));
    let with = |body: &str| text(&format!("{MEMORY}{body}"), "");
    let device = |device: &str| text(MEMORY, device);
    let cases = [
        ("not a domain", "<network>\n</network>".to_owned()),
        ("a snapshot", "<domainsnapshot><domain/></domainsnapshot>".to_owned()),
        ("a namespace of its own", "<domain xmlns='urn:x'/>".to_owned()),
        ("no memory", text("", "")),
        ("empty memory", text("<memory unit='GiB'/>", "")),
        ("memory in words", text("<memory>lots</memory>", "")),
        ("memory with a fraction", text("<memory unit='GiB'>1.5</memory>", "")),
        ("negative memory", text("<memory>-1</memory>", "")),
        ("unit unknown", text("<memory unit='pages'>1</memory>", "")),
        ("too much memory", text("<memory unit='EiB'>8</memory>", "")),
        ("a number too large", text("<memory>99999999999999999999</memory>", "")),
        (
            "cells add up to too much",
            with(
                "<cpu><numa><cell memory='3' unit='PiB'/><cell memory='512' unit='TiB'/>\n<cell memory='512' unit='TiB'/></numa></cpu>",
            ),
        ),
        ("a cell in words", with("<cpu><numa>\n<cell id='0' memory='x'/></numa></cpu>")),
        (
            "devices take all memory",
            device("<memory model='dimm'><target><size unit='GiB'>8</size></target></memory>"),
        ),
        ("a memory device without size", device("<memory model='dimm'><target/></memory>")),
        ("slots in words", with("<maxMemory unit='GiB' slots='x'>16</maxMemory>")),
        ("cpu mode", with("<cpu mode='passthrough'/>")),
        ("feature policy", with("<cpu><model>x</model>\n  <feature name='a' policy='on'/></cpu>")),
        ("feature without name", with("<cpu><feature policy='require'/></cpu>")),
        ("maxphysaddr without mode", with("<cpu><maxphysaddr bits='46'/></cpu>")),
        ("maxphysaddr mode", with("<cpu><maxphysaddr mode='host' bits='46'/></cpu>")),
        ("bits in words", with("<cpu><maxphysaddr mode='emulate' bits='many'/></cpu>")),
        (
            "bits too large for a number",
            with("<cpu><maxphysaddr mode='emulate' bits='99999999999999999999'/></cpu>"),
        ),
        ("firmware", with("").replace("<os>", "<os firmware='uefi'>")),
        ("hostdev without source", hostdev("")),
        ("hostdev without address", hostdev("<source/>")),
        ("host bus", hostdev("<source><address bus='0x100'/></source>")),
        ("host slot in octal", hostdev("<source><address slot='08'/></source>")),
        ("host function", hostdev("<source><address function='8'/></source>")),
        ("guest bus", hostdev(&format!("{source}\n<address type='pci' bus='300'/>"))),
        ("interface without address", device("<interface type='hostdev'/>")),
        ("controller index", device("<controller type='pci' model='pcie-root-port' index='-1'/>")),
        (
            "busNr",
            device(
                "<controller type='pci' model='pcie-expander-bus' index='1'><target busNr='256'/></controller>",
            ),
        ),
        (
            "pcihole64",
            device(
                "<controller type='pci' model='pcie-root' index='0'>\n<pcihole64 unit='x'>1</pcihole64></controller>",
            ),
        ),
        (
            "shared memory",
            device("<shmem name='s'><model type='ivshmem-plain'/><size unit='M'>3</size></shmem>"),
        ),
        ("video memory", device("<video><model type='qxl' vram64='x'/></video>")),
    ];
    let mut shown = String::new();
    for (name, text) in cases {
        let error = Domain::parse(text.as_bytes()).expect_err(name);
        writeln!(shown, "{name}\n    {error}").expect("a string");
    }
    snapshot!("faults_of_a_domain", shown);
}

/// Addresses that cannot be: the domain is read, and each is named.
#[test]
fn impossible_addresses() {
    let port = |index: u32, address: &str| {
        format!("<controller type='pci' model='pcie-root-port' index='{index}'>{address}</controller>\n")
    };
    let host = |bus: u8, address: &str| {
        format!("<hostdev type='pci'><source><address bus='{bus}'/></source>{address}</hostdev>\n")
    };
    let bridge = |index: u32, bus: u32| {
        format!(
            "<controller type='pci' model='pci-bridge' index='{index}'><address type='pci' bus='{bus}' slot='1'/></controller>\n"
        )
    };
    let args = |words: &[&str]| {
        let args: String = words.iter().map(|word| format!("<qemu:arg value='{word}'/>")).collect();
        format!("</devices>\n<qemu:commandline>{args}</qemu:commandline><devices>")
    };
    let at = |bus: u32, slot: u32| format!("<address type='pci' bus='{bus}' slot='{slot}'/>");
    let cases = [
        ("one slot twice", port(1, "") + &host(1, &at(1, 0)) + &host(2, &at(1, 0))),
        ("the chipset's slot", host(1, &at(0, 0x1f))),
        ("a slot that a port lacks", port(1, "") + &host(1, &at(1, 3))),
        ("another domain", host(1, "<address type='pci' domain='1' bus='1'/>")),
        ("index 300", port(300, "")),
        ("one index twice", port(1, "") + &port(1, "")),
        ("index 0", port(0, "")),
        ("a second root", "<controller type='pci' model='pcie-root' index='1'/>".to_owned()),
        ("the other root", "<controller type='pci' model='pci-root' index='0'/>".to_owned()),
        ("no model", "<controller type='pci' index='1'/>".to_owned()),
        ("a port on itself", port(1, &at(1, 0))),
        ("a port behind a port", port(1, "") + &port(2, &at(1, 0))),
        ("bridges in a circle", bridge(1, 2) + &bridge(2, 1)),
        (
            "a switch on its own port",
            port(1, "")
                + "<controller type='pci' model='pcie-switch-upstream-port' index='2'/>\n"
                + "<controller type='pci' model='pcie-switch-downstream-port' index='3'/>\n"
                + &host(1, &at(1, 0)),
        ),
        (
            "a bus that only bridges could make",
            host(1, &at(40, 0)) + "<sound model='ac97'><address type='pci' bus='50' slot='1'/></sound>",
        ),
        ("QEMU's own device on a taken slot", host(1, &at(0, 5)) + &args(&["-device", "nvme,addr=5"])),
        (
            "QEMU's own device on a full port",
            port(1, "") + &host(1, &at(1, 0)) + &args(&["-device", "nvme,bus=pci.1,addr=0"]),
        ),
        ("QEMU's own device on no bus", args(&["-device", "nvme,bus=pci.77"])),
        ("more devices than slots", host(1, "").repeat(300)),
    ];
    let mut shown = String::new();
    for (name, devices) in cases {
        let domain = Domain::parse(text(MEMORY, &devices).as_bytes()).expect(name);
        let mut problems = topology::assign(&domain).problems;
        assert!(!problems.is_empty(), "{name}");
        writeln!(shown, "{name}").expect("a string");
        let more = problems.len().saturating_sub(3);
        for problem in problems.drain(..).take(3) {
            let place = if problem.placed { " (placed)" } else { "" };
            writeln!(shown, "    line {}: {}{place}", problem.line, problem.message).expect("a string");
        }
        if more > 0 {
            writeln!(shown, "    … {more} more").expect("a string");
        }
    }
    snapshot!("impossible_addresses", shown);
}

/// The worst that 1 MiB can hold takes time in proportion; were any of it quadratic, it would take minutes.
#[test]
fn work_is_bounded() {
    let fill = |unit: &str| unit.repeat((1 << 20) / unit.len());
    let hostdev = "<hostdev type='pci'><source><address/></source></hostdev>";
    let wrap = |devices: String| text(MEMORY, &devices);
    let args = |unit: &str| {
        let args = fill(unit);
        format!(
            "<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>{MEMORY}<q:commandline>{args}</q:commandline></domain>"
        )
    };
    let cases = [
        ("host devices", wrap(fill(hostdev))),
        ("rngs", wrap(fill("<rng/>"))),
        ("controllers without index", wrap(fill("<controller type='pci' model='pcie-root-port'/>"))),
        ("ports of one index", wrap(fill("<controller type='pci' model='pcie-root-port' index='1'/>"))),
        ("usb companions", wrap(fill("<controller type='usb' model='ich9-uhci1'/>"))),
        ("disks", wrap(fill("<disk><target dev='sdzzz'/></disk>"))),
        ("displays", wrap(fill("<video/>"))),
        ("features", text(&format!("{MEMORY}<cpu>{}</cpu>", fill("<feature name='a'/>")), "")),
        ("lines", format!("<domain>{}{MEMORY}</domain>", fill("\n"))),
        ("devices for qemu", args("<q:arg value='-device'/><q:arg value='nvme'/>")),
        ("ports for qemu", args("<q:arg value='-device'/><q:arg value='pcie-root-port'/>")),
        ("globals", args("<q:arg value='-global'/><q:arg value='nvme.a=1'/>")),
        ("fw_cfg", args("<q:arg value='-fw_cfg'/><q:arg value='opt/ovmf/X-PciMmio64Mb,string=1'/>")),
        ("commas", args("<q:arg value='-device'/><q:arg value='a,,,,,,,,,,,,,,,,,,,,'/>")),
        ("metadata", text(&format!("{MEMORY}<metadata>{}</metadata>", fill("<a/>")), "")),
    ];
    // Many times what it takes, unoptimised, on a busy machine.
    let patience = Duration::from_secs(30);
    for (name, text) in cases {
        let start = Instant::now();
        if let Ok(domain) = Domain::parse(text.as_bytes()) {
            topology::assign(&domain);
        }
        let took = start.elapsed();
        println!("{name}: {took:?}");
        assert!(took < patience, "{name}: {took:?}");
    }
}

fn examples() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut paths: Vec<_> = std::fs::read_dir(directory)
        .expect("examples")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "xml"))
        .collect();
    paths.sort();
    paths.into_iter().map(|path| std::fs::read(path).expect("readable")).collect()
}

static EXAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

/// Reads whatever it is. Nothing may panic, and an error must point into the text.
fn read(text: &[u8]) {
    match Domain::parse(text) {
        Ok(domain) => {
            topology::assign(&domain);
        }
        Err(error) => {
            let lines = 1 + text.iter().filter(|&&b| b == b'\n').count();
            assert!((1..=lines).contains(&(error.line as usize)), "{error}");
            assert!(error.col >= 1 && !error.message.is_empty(), "{error}");
            assert!(!error.message.contains('\n'), "{error}");
        }
    }
}

/// What libvirt's words can be replaced with.
const WORDS: [&str; 24] = [
    "0",
    "1",
    "-1",
    "255",
    "256",
    "4294967296",
    "18446744073709551615",
    "0x1f",
    "010",
    "",
    "pci",
    "pcie-root-port",
    "pci-bridge",
    "pcie-root",
    "pcie-expander-bus",
    "virtio",
    "qxl",
    "hostdev",
    "on",
    "off",
    "EiB",
    "emulate",
    "q35",
    "pc",
];

/// Cuts, doubles, swaps and replaces: attribute values and elements change places, bytes are lost.
fn mutate(text: &[u8], edits: &[(u8, usize, usize)]) -> Vec<u8> {
    let mut text = text.to_vec();
    for &(kind, a, b) in edits {
        let len = text.len().max(1);
        let (from, to) = ((a % len).min(b % len), (a % len).max(b % len));
        match kind % 6 {
            0 => text.truncate(to),
            1 => drop(text.drain(from..to.min(from + 40).min(text.len()))),
            2 => {
                let piece = text[from..to.min(from + 400)].to_vec();
                text.splice(from..from, piece);
            }
            3 => text[from..to].rotate_left((to - from) / 2),
            // The value of the next attribute becomes another word.
            4 => {
                let quote = |from: usize| text[from..].iter().position(|&b| b == b'\'').map(|at| from + at);
                if let Some(open) = quote(from)
                    && let Some(close) = quote(open + 1)
                {
                    text.splice(open + 1..close, WORDS[b % WORDS.len()].bytes());
                }
            }
            // The next whole line is doubled.
            _ => {
                let newline =
                    |from: usize| text[from..].iter().position(|&b| b == b'\n').map(|at| from + at + 1);
                if let Some(start) = newline(from)
                    && let Some(end) = newline(start)
                {
                    let line = text[start..end].to_vec();
                    text.splice(start..start, line);
                }
            }
        }
        if text.is_empty() {
            break;
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        read(&bytes);
    }

    #[test]
    fn any_markup_is_read_or_refused(text in "(<[a-z/!?-]{0,6}( [a-z:]{1,5}='[^<&]{0,3}')?/?>|&[a-z#0-9;]{0,4}|[ \n\u{feff}é]){0,40}") {
        read(text.as_bytes());
    }

    #[test]
    fn changed_examples_are_read_or_refused(
        which in any::<usize>(),
        edits in proptest::collection::vec(any::<(u8, usize, usize)>(), 1..6),
    ) {
        let examples = EXAMPLES.get_or_init(examples);
        read(&mutate(&examples[which % examples.len()], &edits));
    }
}
