//! Domains made up from bytes: of parts that libvirt knows, in numbers that hurt, on any host, under any policy.

use arbitrary::Unstructured;
use barfit::catalogue;
use barfit::domain::QEMU_NAMESPACE;
use barfit::guest::FirmwareChoice;

use super::promise::{Case, HOSTS, holds};
use super::spelling::{Item, Pen, leaf};

/// A made-up domain, spelled in a made-up way.
pub(super) fn domain_structured(bytes: &[u8]) {
    let (text, case) = made(bytes);
    let told = Told(&text, &case);
    holds(text.as_bytes(), &case);
    std::mem::forget(told);
}

/// Shows what was made when a property does not hold for it.
struct Told<'a>(&'a str, &'a Case<'a>);

#[allow(clippy::print_stderr, reason = "said only when a property fails")]
impl Drop for Told<'_> {
    fn drop(&mut self) {
        let Case { policy, firmware, assume_gpu, .. } = self.1;
        eprintln!("{}\n{firmware:?} {policy:?} {assume_gpu:?}\n{:?}", self.0, self.1.host);
    }
}

/// The text, and what it is judged by.
fn made(bytes: &[u8]) -> (String, Case<'static>) {
    // A short tape is for the spelling; what is left says what is spelled.
    let (tape, rest) = bytes.split_at(bytes.len() / 4);
    let mut maker = Maker(Unstructured::new(rest));
    let host = maker.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let firmware = match maker.pick(&[0, 0, 0, 0, 1, 2, 3]) {
        0 => None,
        1 => Some(FirmwareChoice::SeaBios(None)),
        2 => Some(FirmwareChoice::SeaBios(Some(
            maker.pick(&["1.12.0", "1.16.2", "1.16.3", "1.17.0"]).to_owned(),
        ))),
        _ => Some(FirmwareChoice::Era(
            maker.pick(&["201808", "202002", "202208", "202211", "202305", "202411", "202605"]).to_owned(),
        )),
    };
    let mut case = Case { firmware, ..Case::on(&HOSTS[host]) };
    case.assume_gpu = catalogue::entries().get(maker.number() as usize);
    if maker.chance(3) {
        let text = maker.policy();
        case.policy.add(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    }
    let style = (maker.pick(&["\n", "\n", "\r\n", ""]), maker.pick(&["  ", "  ", "\t", ""]));
    let head = maker.pick(&["", "", "\u{feff}", "<?xml version='1.0' encoding='UTF-8'?>\n"]);
    let domain = maker.domain();
    let tape = if tape.is_empty() { &[0][..] } else { tape };
    let mut pen = Pen { out: head.to_owned(), tape: tape.iter().cycle(), newline: style.0, indent: style.1 };
    pen.item(&domain, 0);
    (pen.out + "\n", case)
}

/// Makes parts of a domain of what it is fed with.
struct Maker<'a>(Unstructured<'a>);

type Attributes = Vec<(&'static str, String)>;

fn element(name: &'static str, attributes: Attributes, children: Vec<Item>) -> Item {
    Item::Element(name, attributes, children)
}

fn text(name: &'static str, attributes: Attributes, text: String) -> Item {
    element(name, attributes, vec![Item::Raw(text.into())])
}

impl Maker<'_> {
    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        *self.0.choose(choices).unwrap_or(&choices[0])
    }

    /// Once in so many times.
    fn chance(&mut self, times: u8) -> bool {
        self.0.int_in_range(1..=times).is_ok_and(|number| number == times && times > 1)
    }

    fn count(&mut self, most: usize) -> usize {
        self.0.int_in_range(0..=most).unwrap_or_default()
    }

    /// A number, mostly one on an edge of something.
    fn number(&mut self) -> u64 {
        let shift = self.0.int_in_range(0..=63).unwrap_or(0);
        match self.pick(&[0, 0, 0, 1, 2, 3]) {
            0 => self.pick(&[0, 1, 2, 3, 4, 5, 8, 16, 32, 64, 512, 1023, 1024]),
            1 => 1 << shift,
            2 => (1 << shift) - 1,
            _ => self.0.arbitrary().unwrap_or_default(),
        }
    }

    fn size(&mut self) -> (Attributes, String) {
        let unit = self.pick(&["GiB", "GiB", "GiB", "MiB", "KiB", "TiB", "PiB", "EiB", "b", "bytes", "GB"]);
        let number = match self.pick(&[0, 0, 0, 0, 1]) {
            0 => self.pick(&[1u64, 2, 3, 4, 8, 64, 256, 512, 768, 1000, 1010, 1023, 1024, 2048, 4096]),
            _ => self.number(),
        };
        (vec![("unit", unit.to_owned())], number.to_string())
    }

    fn sized(&mut self, name: &'static str) -> Item {
        let (attributes, number) = self.size();
        text(name, attributes, number)
    }

    fn bits(&mut self) -> String {
        match self.pick(&[0, 0, 0, 1]) {
            0 => self.pick(&[32, 36, 39, 40, 41, 42, 43, 44, 46, 47, 48, 52, 53, 64]).to_string(),
            _ => self.number().to_string(),
        }
    }

    fn domain(&mut self) -> Item {
        let mut children = vec![
            text(
                "name",
                vec![],
                self.pick(&["vm", "instance-0000002a", "a b", "&lt;b&gt;&#10;x", "é", ""]).to_owned(),
            ),
            text("uuid", vec![], "6f0c7d2e-6b0a-4a4e-9d55-0a4b1c6c2f01".to_owned()),
            self.sized("memory"),
        ];
        if self.chance(4) {
            let Item::Element(name, mut attributes, children_of) = self.sized("maxMemory") else {
                return leaf("domain", &[]);
            };
            attributes.push(("slots", self.pick(&["0", "1", "16", "256", "4294967295"]).to_owned()));
            children.push(element(name, attributes, children_of));
        }
        if self.chance(4) {
            children.push(self.metadata());
        }
        children.push(self.os());
        if !self.chance(4) {
            children.push(self.cpu());
        }
        children.push(self.devices());
        if self.chance(3) {
            children.push(self.command_line());
        }
        if self.chance(8) {
            let at = self.count(children.len().saturating_sub(1));
            let again = children[at].clone();
            let to = self.count(children.len());
            children.insert(to, again);
        }
        if self.chance(6) {
            let (at, to) = (self.count(children.len() - 1), self.count(children.len() - 1));
            children.swap(at, to);
        }
        let kind = self.pick(&["kvm", "kvm", "kvm", "qemu", "xen"]).to_owned();
        element("domain", vec![("type", kind), ("xmlns:qemu", QEMU_NAMESPACE.to_owned())], children)
    }

    fn os(&mut self) -> Item {
        let machine = self.pick(&[
            "pc-q35-7.2",
            "q35",
            "pc-q35-6.2",
            "pc-q35-10.0",
            "pc",
            "pc-i440fx-7.2",
            "pc-i440fx-2.11",
            "pc-q35-rhel9.4.0",
            "pc-i440fx-bionic-hpb",
            "microvm",
            "isapc",
            "",
        ]);
        let arch = self.pick(&["x86_64", "x86_64", "x86_64", "i686", "aarch64"]).to_owned();
        let mut children =
            vec![text("type", vec![("arch", arch), ("machine", machine.to_owned())], "hvm".to_owned())];
        let mut attributes = vec![];
        match self.pick(&[0, 0, 0, 1, 2, 3]) {
            0 => {
                let file = self.pick(&[
                    "/usr/share/OVMF/OVMF_CODE_4M.fd",
                    "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
                    "/usr/share/ovmf/OVMF.fd",
                    "/nowhere.fd",
                ]);
                let kind = self.pick(&["pflash", "pflash", "rom"]).to_owned();
                children.push(text(
                    "loader",
                    vec![("readonly", "yes".to_owned()), ("type", kind)],
                    file.to_owned(),
                ));
            }
            1 => attributes.push(("firmware", self.pick(&["efi", "bios"]).to_owned())),
            2 => children.push(text("loader", vec![], "/usr/share/seabios/bios-256k.bin".to_owned())),
            _ => {}
        }
        element("os", attributes, children)
    }

    fn cpu(&mut self) -> Item {
        let mut attributes = vec![];
        let mode = self.pick(&["host-model", "custom", "host-passthrough", "maximum", ""]);
        if !mode.is_empty() {
            attributes.push(("mode", mode.to_owned()));
        }
        if self.chance(6) {
            attributes.push(("migratable", self.pick(&["on", "off"]).to_owned()));
        }
        let mut children = vec![];
        for _ in 0..self.count(4) {
            children.push(match self.pick(&[0, 1, 2, 3, 4]) {
                0 => text(
                    "model",
                    vec![("fallback", "allow".to_owned())],
                    self.pick(&[
                        "Skylake-Server-IBRS",
                        "EPYC-Milan",
                        "EPYC-Genoa",
                        "SandyBridge",
                        "qemu64",
                        "kvm64",
                        "Icelake-Server",
                        "SapphireRapids",
                        "qemu32",
                        "Unheard-Of",
                    ])
                    .to_owned(),
                ),
                1 => {
                    let mut attributes =
                        vec![("mode", self.pick(&["emulate", "emulate", "passthrough"]).to_owned())];
                    if self.chance(2) {
                        attributes.push(("bits", self.bits()));
                    }
                    if self.chance(3) {
                        attributes.push(("limit", self.bits()));
                    }
                    element("maxphysaddr", attributes, vec![])
                }
                2 => element(
                    "feature",
                    vec![
                        ("name", self.pick(&["pdpe1gb", "la57", "lm", "vmx"]).to_owned()),
                        (
                            "policy",
                            self.pick(&["require", "disable", "force", "optional", "forbid"]).to_owned(),
                        ),
                    ],
                    vec![],
                ),
                3 => {
                    let cells = (0..self.count(3)).map(|_| {
                        let (mut attributes, number) = self.size();
                        attributes.push(("memory", number));
                        element("cell", attributes, vec![])
                    });
                    element("numa", vec![], cells.collect())
                }
                _ => leaf("topology", &[("sockets", "2"), ("cores", "16"), ("threads", "2")]),
            });
        }
        element("cpu", attributes, children)
    }

    fn metadata(&mut self) -> Item {
        let nova = vec![("xmlns:nova", "http://openstack.org/xmlns/libvirt/nova/1.1".to_owned())];
        let flavor = self.pick(&["ao.3.64.512_H100-4", "x", "", "a&#10;b", "*"]);
        let flavor = element("nova:flavor", vec![("name", flavor.to_owned())], vec![]);
        let mut children = vec![element("nova:instance", nova, vec![flavor])];
        if self.chance(2) {
            let bits = self.bits();
            let policy =
                [("bits", bits.as_str()), ("mode", "strict"), ("fw_cfg", "never"), ("headroom_gpus", "2")];
            let policy: Vec<_> = policy.into_iter().filter(|_| self.chance(2)).collect();
            children.push(leaf("policy", &policy));
        }
        element("metadata", vec![], children)
    }

    fn address(&mut self, kind: bool) -> Item {
        let bus = self.pick(&[0u64, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 255]);
        let slot = self.pick(&[0u64, 0, 0, 1, 2, 3, 8, 31]);
        let mut attributes = vec![
            ("domain", "0x0000".to_owned()),
            ("bus", format!("{bus:#x}")),
            ("slot", format!("{slot:#x}")),
            ("function", format!("{:#x}", self.pick(&[0u64, 0, 0, 0, 1, 2, 7]))),
        ];
        if kind {
            attributes.insert(0, ("type", "pci".to_owned()));
        }
        if self.chance(6) {
            attributes.push(("multifunction", "on".to_owned()));
        }
        element("address", attributes, vec![])
    }

    fn own_address(&mut self) -> Vec<Item> {
        if self.chance(3) { vec![self.address(true)] } else { vec![] }
    }

    fn source(&mut self) -> Item {
        // A function that one of the hosts has, or any.
        let at = self.count(HOSTS.len() - 1);
        let functions = &HOSTS[at].pci;
        let which = self.count(functions.len());
        let address = match functions.get(which) {
            Some(function) => {
                let address = function.address.to_string();
                let digits: Vec<&str> = address.split([':', '.']).collect();
                let names = ["domain", "bus", "slot", "function"];
                let attributes = names.into_iter().zip(digits.iter().map(|digits| format!("0x{digits}")));
                element("address", attributes.collect(), vec![])
            }
            None => self.address(false),
        };
        element("source", vec![], vec![address])
    }

    fn devices(&mut self) -> Item {
        let mut children = vec![];
        if self.chance(8) {
            children.push(text("emulator", vec![], "/usr/bin/qemu-system-x86_64".to_owned()));
        }
        let root = self.pick(&["pcie-root", "pci-root", ""]);
        if !root.is_empty() {
            let hole = if self.chance(4) { vec![self.sized("pcihole64")] } else { vec![] };
            let attributes = [("type", "pci"), ("index", "0"), ("model", root)];
            let attributes = attributes.map(|(name, value)| (name, value.to_owned())).into();
            children.push(element("controller", attributes, hole));
        }
        let mut index = 0;
        for _ in 0..self.count(12) {
            index += 1;
            children.push(self.controller(index));
        }
        for _ in 0..self.count(8) {
            let source = self.source();
            let mut parts = vec![source];
            if self.chance(6) {
                parts.push(leaf("rom", &[("bar", "off")]));
            }
            parts.extend(self.own_address());
            let attributes = [("mode", "subsystem"), ("type", "pci"), ("managed", "yes")];
            let attributes = attributes.map(|(name, value)| (name, value.to_owned())).into();
            children.push(element("hostdev", attributes, parts));
        }
        for _ in 0..self.count(6) {
            children.push(self.device());
        }
        element("devices", vec![], children)
    }

    fn controller(&mut self, index: u32) -> Item {
        let model = self.pick(&[
            "pcie-root-port",
            "pcie-root-port",
            "pcie-root-port",
            "pcie-root-port",
            "pcie-root-port",
            "pcie-switch-upstream-port",
            "pcie-switch-downstream-port",
            "pcie-to-pci-bridge",
            "pci-bridge",
            "dmi-to-pci-bridge",
            "pcie-expander-bus",
            "pci-expander-bus",
            "nonsense",
        ]);
        let index = if self.chance(8) { self.number() as u32 } else { index };
        let attributes =
            vec![("type", "pci".to_owned()), ("index", index.to_string()), ("model", model.to_owned())];
        let mut children = self.own_address();
        if model.ends_with("expander-bus") || self.chance(6) {
            let mut target = vec![];
            for (name, most) in [("busNr", 255), ("chassis", 255), ("port", 255), ("hotplug", 1)] {
                if self.chance(3) {
                    let number = self.count(most);
                    let value = if most == 1 { ["off", "on"][number].to_owned() } else { number.to_string() };
                    target.push((name, value));
                }
            }
            if self.chance(4) {
                target.push(("memReserve", self.number().to_string()));
            }
            children.push(element("target", target, vec![]));
        }
        element("controller", attributes, children)
    }

    fn device(&mut self) -> Item {
        let owned = |attributes: &[(&'static str, &str)]| -> Attributes {
            attributes.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
        };
        match self.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8]) {
            0 => {
                let size = self.sized("size");
                let model = self.pick(&["dimm", "nvdimm", "virtio-mem", "virtio-pmem", "sgx-epc"]);
                element("memory", owned(&[("model", model)]), vec![element("target", vec![], vec![size])])
            }
            1 => {
                let size = self.sized("size");
                let model = self.pick(&["ivshmem-plain", "ivshmem-doorbell"]);
                element("shmem", owned(&[("name", "s")]), vec![leaf("model", &[("type", model)]), size])
            }
            2 => {
                let kind = self.pick(&["qxl", "virtio", "vga", "cirrus", "bochs", "ramfb", "none"]);
                let mut attributes = owned(&[("type", kind)]);
                for name in ["ram", "vram", "vram64", "vgamem"] {
                    if self.chance(4) {
                        attributes.push((name, self.number().to_string()));
                    }
                }
                element("video", vec![], vec![element("model", attributes, vec![])])
            }
            3 => {
                let kind = self.pick(&["network", "bridge", "hostdev", "vdpa"]);
                let mut children = vec![match kind {
                    "hostdev" => self.source(),
                    _ => leaf("source", &[("network", "default")]),
                }];
                children.push(leaf("model", &[("type", self.pick(&["virtio", "e1000e", "rtl8139"]))]));
                children.extend(self.own_address());
                element("interface", owned(&[("type", kind)]), children)
            }
            4 => {
                let model = self.pick(&["vfio-pci", "vfio-ap"]);
                let address = leaf("address", &[("uuid", "6f0c7d2e-6b0a-4a4e-9d55-0a4b1c6c2f01")]);
                let attributes = owned(&[("mode", "subsystem"), ("type", "mdev"), ("model", model)]);
                element("hostdev", attributes, vec![element("source", vec![], vec![address])])
            }
            5 => {
                let bus = self.pick(&["virtio", "sata", "scsi", "ide", "usb", "fdc"]);
                let target =
                    leaf("target", &[("dev", self.pick(&["vda", "sda", "hdz", "vdzzzzzzzz"])), ("bus", bus)]);
                let mut children = vec![target];
                children.extend(self.own_address());
                element("disk", owned(&[("type", "file"), ("device", "disk")]), children)
            }
            6 => {
                let kind = self.pick(&["usb", "scsi", "virtio-serial", "sata", "nvme"]);
                let model = self.pick(&["qemu-xhci", "ich9-ehci1", "virtio-scsi", "lsilogic", "none"]);
                let children = self.own_address();
                element("controller", owned(&[("type", kind), ("index", "0"), ("model", model)]), children)
            }
            7 => leaf("memballoon", &[("model", self.pick(&["virtio", "none"]))]),
            _ => leaf(
                self.pick(&["rng", "sound", "watchdog", "iommu", "vsock"]),
                &[("model", self.pick(&["virtio", "ich9", "i6300esb", "intel"]))],
            ),
        }
    }

    fn command_line(&mut self) -> Item {
        let mut args = vec![];
        for _ in 0..self.count(4) {
            let (option, value) = self.pick(&[
                ("-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string="),
                ("-fw_cfg", "opt/ovmf/X-PciMmio64Mb,file=/a,,b"),
                ("--fw_cfg", "opt/org.example/x,string=a,,name=opt/ovmf/X-PciMmio64Mb"),
                ("-global", "x86_64-cpu.phys-bits="),
                ("-global", "x86_64-cpu.host-phys-bits=on"),
                ("-global", "driver=cpu,property=host-phys-bits-limit,value="),
                ("-cpu", "EPYC-Milan,-pdpe1gb,phys-bits="),
                ("-cpu", "host,host-phys-bits-limit="),
                ("-machine", "q35,max-ram-below-4g="),
                ("-m", "4G,slots=2,maxmem="),
                ("-device", "vfio-pci,host=41:00.0,id=x"),
                ("-device", "vfio-pci,host=61:00.0,bus=pcie.0,addr=1f.7,multifunction=on"),
                ("-device", "{\"driver\":\"vfio-pci\",\"host\":\"0000:a1:00.0\"}"),
                ("-device", "pcie-root-port,id=rp,chassis=9,pref64-reserve="),
                ("-device", "ivshmem-plain,memdev=m"),
                ("-object", "memory-backend-ram,id=m,size="),
                ("-set", "device.hostdev0.x-pci-sub-device-id=1"),
            ]);
            let end = match value.ends_with('=') {
                true => self.number().to_string() + self.pick(&["", "G", "M", "x"]),
                false => String::new(),
            };
            args.push(leaf("qemu:arg", &[("value", option)]));
            args.push(leaf("qemu:arg", &[("value", &(value.to_owned() + &end))]));
        }
        element("qemu:commandline", vec![], args)
    }

    fn policy(&mut self) -> String {
        let keys = |maker: &mut Self| {
            let mut keys = String::new();
            if maker.chance(2) {
                keys += &format!("mode = \"{}\"\n", maker.pick(&["observe", "enforce", "strict"]));
            }
            if maker.chance(2) {
                let bits = maker.pick(&["\"smallest\"", "\"host\"", "32", "40", "43", "46", "52"]);
                keys += &format!("bits = {bits}\n");
            }
            if maker.chance(2) {
                keys += &format!("fw_cfg = \"{}\"\n", maker.pick(&["auto", "always", "never"]));
            }
            if maker.chance(2) {
                keys += &format!("headroom_gpus = {}\n", maker.pick(&[0, 1, 2, 8, 255]));
            }
            keys
        };
        let mut text = keys(self);
        if self.chance(3) {
            text += "[gpus]\nalso = [\"15b3:101e\", \"1b36:0005\"]\n";
        }
        if self.chance(2) {
            let matches = self.pick(&["name = \"*\"", "flavor = \"ao.*\"", "min_gpus = 2", ""]);
            text += &format!("[[rule]]\nmatch = {{ {matches} }}\n{}", keys(self));
        }
        text
    }
}
