//! `<qemu:commandline>`: words for QEMU beside those of libvirt.
//!
//! Each `<qemu:arg value=>` is one word; blocks of several elements follow one another (libvirt merges them), and all
//! come after libvirt's own words. Knows the options that touch the address space; an option that may touch it in a way
//! not modelled here is reported in [`CommandLine::not_understood`], every other one is passed over.
//! Which types QEMU honours for the width of the CPU was measured on QEMU 7.2 with `qom-get`.

use super::device::Devices;
use super::model::{
    CommandLine, Cpu, CpuArgs, CpuMode, CpuOption, FwCfgString, Global, MachineFamily, QEMU_NAMESPACE,
};
use super::qemu_device::{Globals, QemuDevices};
use super::qemu_options::{self, GlobalText, Options, number, option_name, size, switch};
use super::read::{Node, Reader};
use crate::text::printable;

/// The fw_cfg file by which OVMF's window is given.
pub(crate) const MMIO64: &str = "opt/ovmf/X-PciMmio64Mb";

/// Options that bring or change devices, memory or firmware in ways not modelled.
const NOT_MODELLED: [&str; 18] = [
    "bios",
    "pflash",
    "m",
    "numa",
    "readconfig",
    "set",
    "vga",
    "nic",
    "net",
    "virtfs",
    "usb",
    "watchdog",
    "soundhw",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "cdrom",
];

/// One `<qemu:arg>`.
pub(super) struct Word {
    text: String,
    line: u32,
}

/// Adds the words of one `<qemu:commandline>`.
pub(super) fn collect(reader: &mut Reader<'_, '_>, node: Node<'_, '_>, words: &mut Vec<Word>) {
    for arg in node.children().filter(|child| child.has_tag_name((QEMU_NAMESPACE, "arg"))) {
        if let Some(text) = arg.attribute("value") {
            words.push(Word { text: text.to_owned(), line: reader.line(arg) });
        }
    }
}

/// What the words mean, for a guest of this CPU and machine. Devices among them join those found.
pub(super) fn parse(
    words: Vec<Word>,
    cpu: Option<&Cpu>,
    family: MachineFamily,
    found: &mut Devices,
) -> CommandLine {
    let mut line = CommandLine::default();
    let mut devices = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let value = words.get(at + 1).map(|word| word.text.as_str());
        let took_value = match (option_name(&word.text), value) {
            (Some("fw_cfg"), Some(value)) => fw_cfg(&mut line, value, at + 1),
            (Some("global"), Some(value)) => global(&mut line, value, at + 1),
            (Some("cpu"), Some(value)) => {
                line.cpu.replaced = Some(value.to_owned());
                true
            }
            (Some("machine" | "M"), Some(value)) => machine(&mut line, value),
            (Some(name @ ("device" | "object")), Some(_)) => {
                devices.push((name == "device", at + 1));
                true
            }
            (Some("drive"), Some(value)) => {
                if Options::parse(value, "").get("if") == Some("pflash") {
                    line.not_understood.push("`-drive if=pflash` brings a firmware of its own".to_owned());
                }
                true
            }
            (Some(name), _) if NOT_MODELLED.contains(&name) => {
                line.not_understood.push(format!("`-{name}` may change devices, memory or firmware"));
                false
            }
            _ => false,
        };
        at += if took_value { 2 } else { 1 };
    }
    cpu_globals(&mut line, cpu, family);

    let mut reader = QemuDevices::new(found);
    for (is_device, at) in devices {
        let word = &words[at];
        if !is_device {
            reader.object(&word.text);
        } else if let Err(message) = reader.device(&word.text, at, word.line) {
            line.not_understood.push(message);
        }
    }
    reader.apply_globals(&Globals::new(&line.globals));
    line.not_understood = line.not_understood.iter().map(|word| printable(word)).collect();
    line.args = words.into_iter().map(|word| word.text).collect();
    line
}

fn fw_cfg(line: &mut CommandLine, text: &str, arg: usize) -> bool {
    let options = Options::parse(text, "name");
    if options.get("name") != Some(MMIO64) {
        return true;
    }
    if line.mmio64.is_some() {
        line.not_understood.push(format!("fw_cfg `{MMIO64}` is given twice; QEMU refuses to start"));
        return true;
    }
    let value = options.get("string").map(str::to_owned);
    if value.is_none() {
        line.not_understood.push(format!("fw_cfg `{MMIO64}` has no string=; its value is not known"));
    }
    line.mmio64 = Some(FwCfgString { value, arg });
    true
}

fn global(line: &mut CommandLine, text: &str, arg: usize) -> bool {
    match qemu_options::global(text) {
        Some(GlobalText { driver, property, value, .. }) => {
            line.globals.push(Global { driver, property, value, arg });
        }
        None => line.not_understood.push(format!("`-global {text}` names no property; QEMU refuses it")),
    }
    true
}

fn machine(line: &mut CommandLine, text: &str) -> bool {
    let options = Options::parse(text, "type");
    if options.get("type").is_some() {
        line.not_understood.push("`-machine` changes the machine type".to_owned());
    }
    match options.get("max-ram-below-4g").map(|text| size(text, 1)) {
        None => {}
        Some(Some(bytes)) => line.max_ram_below_4g = Some(bytes),
        Some(None) => line.not_understood.push("`-machine max-ram-below-4g=` is no size".to_owned()),
    }
    true
}

/// Whether QEMU applies a `-global` to this guest's CPU. `None`: libvirt picks the model at start.
fn honoured(driver: &str, cpu: Option<&Cpu>) -> Option<bool> {
    if matches!(driver, "x86_64-cpu" | "cpu") {
        return Some(true);
    }
    let Some(model) = driver.strip_suffix("-x86_64-cpu") else { return Some(false) };
    match cpu.map(|cpu| (cpu.mode, cpu.model.as_deref())) {
        Some((CpuMode::HostPassthrough, _)) => Some(matches!(model, "host" | "max")),
        Some((CpuMode::Maximum, _)) => Some(model == "max"),
        Some((CpuMode::HostModel, _)) => None,
        Some((CpuMode::Custom, name)) => Some(name.unwrap_or("qemu64") == model),
        None => Some(model == "qemu64"),
    }
}

/// Picks what is said of the address width and of the hole out of the globals; of several the last counts.
fn cpu_globals(line: &mut CommandLine, cpu: Option<&Cpu>, family: MachineFamily) {
    let bridges: &[&str] = match family {
        MachineFamily::Q35 => &["q35-pcihost", "pcie-host-bridge", "pci-host-bridge"],
        MachineFamily::I440fx | MachineFamily::Other => &["i440FX-pcihost", "pci-host-bridge"],
    };
    let mut notes = Vec::new();
    for Global { driver, property, value, arg } in &line.globals {
        let understood = match property.as_str() {
            "phys-bits" | "host-phys-bits" | "host-phys-bits-limit" | "guest-phys-bits" => {
                match honoured(driver, cpu) {
                    Some(true) => width(&mut line.cpu, property, value, *arg),
                    Some(false) => Err("QEMU ignores it for this CPU"),
                    None => Err("libvirt picks the model at start"),
                }
            }
            "pci-hole64-size" if !bridges.contains(&driver.as_str()) => {
                Err("this is not the host bridge's type")
            }
            "pci-hole64-size" => match size(value, 1) {
                Some(bytes) => {
                    line.pci_hole64 = Some(bytes);
                    Ok(())
                }
                None => Err("this is no size"),
            },
            _ => Ok(()),
        };
        if let Err(why) = understood {
            notes.push(format!("`-global {driver}.{property}={value}`: {why}"));
        }
    }
    line.not_understood.extend(notes);
}

/// Takes in one width property that QEMU honours.
fn width(cpu: &mut CpuArgs, property: &str, value: &str, arg: usize) -> Result<(), &'static str> {
    if property == "host-phys-bits" {
        cpu.host_phys_bits = Some(switch(value).ok_or("this is neither on nor off")?);
        return Ok(());
    }
    let bits = Some(number(value).ok_or("this is no number")?);
    match property {
        "phys-bits" => (cpu.phys_bits, cpu.phys_bits_arg) = (bits, Some(arg)),
        "guest-phys-bits" => cpu.guest_phys_bits = bits,
        _ => cpu.host_phys_bits_limit = bits,
    }
    Ok(())
}

impl CpuArgs {
    /// The `-cpu` that replaces libvirt's, taken apart (`x86_cpu_parse_featurestr`, QEMU 7.2 `target/i386/cpu.c`).
    pub fn replacement(&self) -> Option<CpuOption> {
        let mut parts = self.replaced.as_deref()?.split(',');
        let model = parts.next()?.to_owned();
        let property =
            |part: &str| match (part.strip_prefix('+'), part.strip_prefix('-'), part.split_once('=')) {
                (Some(feature), _, _) => (feature.to_owned(), "on".to_owned()),
                (_, Some(feature), _) => (feature.to_owned(), "off".to_owned()),
                (_, _, Some((name, value))) => (name.to_owned(), value.to_owned()),
                _ => (part.to_owned(), "on".to_owned()),
            };
        let properties = parts
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (name, value) = property(part);
                (name.replace('_', "-"), value)
            })
            .collect();
        Some(CpuOption { model, properties })
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::{CommandLine, CpuOption, DeviceKind, Domain};
    use crate::units::{Bytes, GIB, TIB};

    fn domain(cpu: &str, words: &[&str]) -> Domain {
        let args: String =
            words.iter().map(|word| format!("<q:arg value='{}'/>", word.replace('\'', "&apos;"))).collect();
        let text = format!(
            "<domain type='kvm' xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><memory>1048576</memory>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os>{cpu}<devices/>\
             <q:commandline>{args}</q:commandline></domain>"
        );
        Domain::parse(text.as_bytes()).expect(&text)
    }

    fn line(words: &[&str]) -> CommandLine {
        domain("<cpu><model>Skylake-Server</model></cpu>", words).command_line
    }

    #[test]
    fn fw_cfg_in_every_spelling() {
        for (value, string) in [
            ("name=opt/ovmf/X-PciMmio64Mb,string=65536", Some("65536")),
            ("opt/ovmf/X-PciMmio64Mb,string=65536", Some("65536")),
            ("string=1,name=opt/ovmf/X-PciMmio64Mb", Some("1")),
            ("opt/ovmf/X-PciMmio64Mb,string=1,,2", Some("1,2")),
            ("name=opt/ovmf/X-PciMmio64Mb,string=", Some("")),
            ("name=opt/ovmf/X-PciMmio64Mb,file=/x", None),
        ] {
            let found = line(&["-name", "x", "-fw_cfg", value]);
            let entry = found.mmio64.expect(value);
            assert_eq!((entry.value.as_deref(), entry.arg), (string, 3), "{value}");
            assert_eq!(found.not_understood.is_empty(), string.is_some(), "{value}");
        }
        assert_eq!(line(&["-fw_cfg", "name=opt/com.coreos/config,string=x"]).mmio64, None);
        assert_eq!(line(&["--fw_cfg", "opt/ovmf/X-PciMmio64Mb,string=1"]).mmio64.map(|e| e.arg), Some(1));
        let twice = ["-fw_cfg", "opt/ovmf/X-PciMmio64Mb,string=1"].repeat(2);
        assert_eq!(line(&twice).not_understood.len(), 1);
    }

    /// Measured on QEMU 7.2: which `-global` reaches the CPU.
    #[test]
    fn width_by_global() {
        let skylake = "<cpu><model>Skylake-Server</model></cpu>";
        let host = "<cpu mode='host-passthrough'/>";
        for (cpu, global, bits) in [
            (skylake, "x86_64-cpu.phys-bits=46", Some(46)),
            (skylake, "driver=x86_64-cpu,property=phys-bits,value=46", Some(46)),
            (skylake, "cpu.phys-bits=0x2e", Some(46)),
            (skylake, "Skylake-Server-x86_64-cpu.phys-bits=46", Some(46)),
            (skylake, "EPYC-x86_64-cpu.phys-bits=46", None),
            (skylake, "x86-cpu.phys-bits=46", None),
            (skylake, "x86_64-cpu.phys-bits=many", None),
            ("", "qemu64-x86_64-cpu.phys-bits=46", Some(46)),
            (host, "host-x86_64-cpu.phys-bits=46", Some(46)),
            (host, "max-x86_64-cpu.phys-bits=46", Some(46)),
            ("<cpu mode='maximum'/>", "host-x86_64-cpu.phys-bits=46", None),
            ("<cpu mode='host-model'/>", "EPYC-x86_64-cpu.phys-bits=46", None),
        ] {
            let found = domain(cpu, &["-global", global]).command_line;
            assert_eq!(found.cpu.phys_bits, bits, "{cpu} {global}");
            assert_eq!(found.not_understood.is_empty(), bits.is_some(), "{cpu} {global}");
        }
        let found = line(&[
            "-global",
            "x86_64-cpu.phys-bits=44",
            "-global",
            "x86_64-cpu.phys-bits=46",
            "-global",
            "cpu.host-phys-bits=on",
            "-global",
            "cpu.host-phys-bits-limit=43",
        ]);
        assert_eq!((found.cpu.phys_bits, found.cpu.phys_bits_arg), (Some(46), Some(3)));
        assert_eq!((found.cpu.host_phys_bits, found.cpu.host_phys_bits_limit), (Some(true), Some(43)));
    }

    #[test]
    fn other_options() {
        let found = line(&[
            "-global",
            "q35-pcihost.pci-hole64-size=2048G",
            "-machine",
            "max-ram-below-4g=1G",
            "-cpu",
            "host,phys_bits=46,+pdpe1gb,-la57,migratable",
            "-msg",
            "timestamp=on",
        ]);
        assert_eq!(found.pci_hole64, Some(Bytes(2 * TIB)));
        assert_eq!(found.max_ram_below_4g, Some(Bytes(GIB)));
        let property = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            found.cpu.replacement(),
            Some(CpuOption {
                model: "host".to_owned(),
                properties: vec![
                    property("phys-bits", "46"),
                    property("pdpe1gb", "on"),
                    property("la57", "off"),
                    property("migratable", "on"),
                ],
            })
        );
        assert_eq!(found.not_understood, Vec::<String>::new());
        for words in [
            &["-m", "8G"][..],
            &["-bios", "x"],
            &["-drive", "if=pflash,file=x"],
            &["-global", "i440FX-pcihost.pci-hole64-size=1G"],
            &["-global", "nonsense"],
            &["-machine", "pc"],
            &["-device", "unheard-of"],
            &["-device", "{"],
            &["-device", "nvme,bus=nowhere"],
            &["-device", "nvme,addr=20"],
            &["-device", "vfio-pci"],
        ] {
            assert_eq!(line(words).not_understood.len(), 1, "{words:?}");
        }
    }

    #[test]
    fn devices_and_ports() {
        let found = domain(
            "",
            &[
                "-object",
                "memory-backend-file,id=shm,size=256M,mem-path=/dev/shm/x",
                "-device",
                "pcie-root-port,id=rp,bus=pcie.0,addr=1c.1,pref64-reserve=64G",
                "-device",
                "vfio-pci,host=41:00.0,bus=rp,addr=0x0,rombar=0",
                "-device",
                "{\"driver\":\"pci-testdev\",\"membar\":1073741824,\"bus\":\"pci.5\",\"addr\":\"0x0\"}",
                "-device",
                "ivshmem-plain,memdev=shm",
                "-device",
                "vfio-pci,sysfsdev=/sys/bus/mdev/devices/c2177883-f1bb-47f0-914d-32a22e3a8804",
                "-device",
                "usb-tablet",
                "-global",
                "pcie-root-port.io-reserve=0",
            ],
        );
        assert_eq!(found.command_line.not_understood, Vec::<String>::new());
        let port = &found.controllers[0];
        assert_eq!((port.index, port.address.map(|a| a.to_string())), (255, Some("0000:00:1c.1".to_owned())));
        assert_eq!((port.reserve.pref64, port.reserve.io), (Some(Bytes(64 * GIB)), Some(Bytes(0))));
        let devices: Vec<String> = found
            .devices
            .iter()
            .filter(|device| device.arg.is_some())
            .map(|device| {
                let kind = match &device.kind {
                    DeviceKind::Host { host, rom_bar, .. } => format!("{host} rom {rom_bar}"),
                    DeviceKind::Emulated { driver, sizes } => format!("{driver} {sizes:?}"),
                };
                format!("{kind} at {:?}", device.address.map(|address| address.to_string()))
            })
            .collect();
        assert_eq!(
            devices,
            [
                "0000:41:00.0 rom false at Some(\"0000:ff:00.0\")",
                "pci-testdev [(\"membar\", Bytes(1073741824))] at Some(\"0000:05:00.0\")",
                "ivshmem-plain [(\"size\", Bytes(268435456))] at None",
                "vfio-pci [] at None",
            ]
        );
        assert_eq!(found.unresolved.len(), 1);
    }
}
