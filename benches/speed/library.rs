//! What the library takes, beside a bare parse of the same text: reading, deciding, rewriting; and the layout alone.

use std::fmt::Write as _;
use std::hint::black_box;

use barfit::domain::{Document, Domain};
use barfit::guest::Source;
use barfit::host::{FirmwareFile, FirmwareKind, HostFacts, PciFunction};
use barfit::layout::{
    Bridge, BridgeKind, Chipset, CpuVendor, Firmware, Function, FunctionId, Guest, GuestCpu, MachineRules,
    OvmfRules, Reserve, Role, lay_out,
};
use barfit::plan::{Answer, Policy, Request, answer};
use barfit::rewrite::rewrite_document;
use barfit::units::{Bar, BarKind, Bytes, GIB, MIB, PciAddress, PhysBits, TIB};

use crate::machine::nova;
use crate::table::Row;
use crate::timing::{each, in_turns};

pub(crate) fn decide(domain: &Domain, host: &HostFacts, policy: &Policy) -> Answer {
    answer(&Request { domain, host, host_is: Source::HostFile, policy, firmware: None, assume_gpu: None })
}

/// A text of about 2 KB: what the smallest guest with a GPU needs.
const SMALL: &str = include_str!("small.xml");

/// Reading, checking and rewriting at four sizes.
pub(crate) fn documents(host: &HostFacts) -> Vec<Row> {
    let mut rows = Vec::new();
    let policy = Policy::default();
    for (name, text) in [
        ("2 KB", SMALL.to_owned()),
        ("20 KB", nova(4, 20_000)),
        ("200 KB", nova(4, 200_000)),
        ("2 MB", nova(4, 2_000_000)),
    ] {
        let domain = Domain::parse(text.as_bytes()).expect("a domain");
        let changes = decide(&domain, host, &policy).plan.changes;
        assert!(!changes.is_empty(), "{name}: there is something to change");
        let seconds = in_turns(&mut [
            &mut each(|| roxmltree::Document::parse(&text).expect("XML")),
            &mut each(|| Domain::parse(text.as_bytes()).expect("a domain")),
            &mut each(|| {
                let domain = Domain::parse(text.as_bytes()).expect("a domain");
                black_box(decide(&domain, host, &policy));
            }),
            &mut each(|| {
                let document = Document::parse(text.as_bytes()).expect("XML");
                rewrite_document(&document, &changes).expect("a rewrite")
            }),
        ]);
        let [bare, read, check, rewrite] = seconds[..] else { unreachable!("four works") };
        rows.push(Row::plain(format!("{name}: bare parse"), bare * 1e6, "µs"));
        rows.push(Row::at_most(format!("{name}: read the domain / bare parse"), read / bare, "x", 2.0));
        rows.push(Row::at_most(format!("{name}: check (read, decide) / bare parse"), check / bare, "x", 2.0));
        rows.push(Row::at_most(
            format!("{name}: rewrite (parse, edit, gate) / bare parse"),
            rewrite / bare,
            "x",
            2.0,
        ));
    }
    rows
}

/// The layout and the decision: 8 GPUs, 1,000 devices.
pub(crate) fn layouts(host: &HostFacts) -> Vec<Row> {
    let policy = Policy::default();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(root.join("examples/eight-h100-sxm.xml")).expect("an example");
    let facts = std::fs::read_to_string(root.join("examples/hosts/xeon-46-h100-sxm.json")).expect("a host");
    let eight_host = HostFacts::from_json(&facts).expect("a host");
    let eight = Domain::parse(&text).expect("a domain");
    let guest = decide(&eight, &eight_host, &policy).plan.guest.expect("a guest");

    let small = thousand(1, 16 * MIB);
    let dropped = thousand(1, 128 * GIB);
    let dropped_behind = thousand(8, 128 * GIB);
    let count = |guest: &Guest| lay_out(guest).bars.iter().filter(|bar| bar.address.is_none()).count();
    assert_eq!(count(&small), 0);
    assert!(count(&dropped) > 1500 && count(&dropped_behind) > 1500);
    let (many, many_host) = thousand_in_a_domain(host);
    let seconds = in_turns(&mut [
        &mut each(|| lay_out(&guest)),
        &mut each(|| decide(&eight, &eight_host, &policy)),
        &mut each(|| lay_out(&small)),
        &mut each(|| lay_out(&dropped)),
        &mut each(|| lay_out(&dropped_behind)),
        &mut each(|| decide(&many, &many_host, &policy)),
    ]);
    let micro = |at: usize| seconds[at] * 1e6;
    vec![
        Row::at_most("8 GPUs: layout", micro(0), "µs", 20.0),
        Row::at_most("8 GPUs: decision (every layout that it tries)", micro(1), "µs", 20.0),
        Row::at_most("1,000 devices, all placed: layout", micro(2), "µs", 2000.0),
        Row::at_most("1,000 devices on 1,000 ports, nearly all given up: layout", micro(3), "µs", 2000.0),
        Row::at_most("1,000 devices on 125 ports, nearly all given up: layout", micro(4), "µs", 2000.0),
        Row::at_most("1,000 devices on 125 ports: decision", micro(5), "µs", 2000.0),
    ]
}

/// A thousand devices with a large and a small BAR each, `each` behind a port.
fn thousand(each: u32, size: u64) -> Guest {
    let bar = |index, size| Bar { index, size: Bytes(size), kind: BarKind::Mem64Prefetchable };
    let function = |id, at: u32, bars, role| Function {
        id: FunctionId(id),
        device: u8::try_from(at / 8 % 32).expect("a slot"),
        function: u8::try_from(at % 8).expect("a function"),
        bars,
        vga: false,
        usb: false,
        role,
    };
    let port = |n: u32| {
        let devices = (0..each)
            .map(|at| function(n * each + at, at, vec![bar(0, size), bar(2, 16 * MIB)], Role::Endpoint));
        let bridge = Bridge {
            kind: BridgeKind::RootPort,
            hotplug: false,
            reserve: Reserve::default(),
            children: devices.collect(),
        };
        function(10_000 + n, n, Vec::new(), Role::Bridge(bridge))
    };
    Guest {
        machine: MachineRules {
            chipset: Chipset::Q35,
            checks_phys_bits: true,
            relocates_around_ht_hole: true,
            gigabyte_align: true,
            aligned_dimm: true,
        },
        ram: Bytes(TIB),
        hotplug: None,
        sgx_epc: Bytes(0),
        max_ram_below_4g: None,
        pci_hole64: Bytes(32 * GIB),
        cpu: GuestCpu {
            vendor: CpuVendor::Intel,
            phys_bits: PhysBits::new(46).expect("a width"),
            guest_phys_bits: None,
            gib_pages: true,
            la57: false,
            long_mode: true,
        },
        firmware: Firmware::Ovmf(OvmfRules::era("202411").expect("an era")),
        mmio64_mb: None,
        bus: (0..1000 / each).map(port).collect(),
    }
}

/// 125 ports with eight H100 each, which no width holds.
fn thousand_in_a_domain(host: &HostFacts) -> (Domain, HostFacts) {
    let (start, end) = include_str!("small.xml").split_once("    <hostdev").expect("a device");
    let (_, end) = end.split_once("</hostdev>\n").expect("its end");
    let mut text = start.to_owned();
    let mut facts = HostFacts {
        pci: Vec::new(),
        firmware: vec![FirmwareFile {
            path: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            kind: FirmwareKind::Ovmf,
            era: Some("202411".to_owned()),
            fw_cfg_override: None,
            version: None,
            gib_page_tables: None,
            because: None,
        }],
        ..host.clone()
    };
    let model = host.pci.iter().find(|function| function.device == "2321").expect("an H100");
    for port in 0..125 {
        let (index, slot, function) = (port + 3, 2 + port / 8, port % 8);
        writeln!(
            text,
            "    <controller type='pci' index='{index}' model='pcie-root-port'>\n      \
             <address type='pci' domain='0x0000' bus='0x00' slot='{slot:#04x}' function='{function:#x}' multifunction='on'/>\n    \
             </controller>"
        )
        .expect("a string");
        for function in 0..8 {
            let address: PciAddress = format!("{:04x}:{:02x}:00.{function}", port / 100, port % 100 + 1)
                .parse()
                .expect("an address");
            writeln!(
                text,
                "    <hostdev mode='subsystem' type='pci' managed='yes'>\n      \
                 <source><address domain='{:#06x}' bus='{:#04x}' slot='0x00' function='{function:#x}'/></source>\n      \
                 <address type='pci' domain='0x0000' bus='{index:#04x}' slot='0x00' function='{function:#x}' multifunction='on'/>\n    </hostdev>",
                port / 100, port % 100 + 1
            )
            .expect("a string");
            facts.pci.push(PciFunction { address, ..model.clone() });
        }
    }
    let domain = Domain::parse((text + end).as_bytes()).expect("a domain");
    (domain, facts)
}
