//! `-device` in `<qemu:commandline>`: a device or a port that libvirt knows nothing of.
//!
//! It becomes a [`Device`] or [`Controller`] like libvirt's own. A port gets a controller index nobody uses, counted
//! down from 255. `bus=` names libvirt's controllers by alias (`pci.5`, `pcie.0`) and earlier ports by `id=`.
//! What is no PCI function is passed over; what may be one and is not known is reported.

use std::collections::BTreeMap;

use super::device::Devices;
use super::model::{
    Controller, ControllerModel, Device, DeviceKind, Element, Global, HostForm, PortReserve, Unresolved,
    UnresolvedKind,
};
use super::qemu_options::{Options, number, size, switch};
use crate::units::{Bytes, MIB, PciAddress};

/// Sizes that a BAR depends on: property, bytes in one of it.
const SIZE_PROPERTIES: [(&str, u64); 13] = [
    ("membar", 1),
    ("size", 1),
    ("hostmem", 1),
    ("vgamem", 1),
    ("ram_size", 1),
    ("vram_size", 1),
    ("vram-size", 1),
    ("ram_size_mb", MIB),
    ("vram_size_mb", MIB),
    ("vram64_size_mb", MIB),
    ("vgamem_mb", MIB),
    ("cmb_size_mb", MIB),
    ("rombar", 1),
];

/// QEMU's PCI devices whose names do not say so.
const PCI_DEVICES: [&str; 62] = [
    "AC97",
    "ES1370",
    "VGA",
    "acpi-erst",
    "am53c974",
    "ati-vga",
    "bochs-display",
    "cirrus-vga",
    "dc390",
    "e1000",
    "e1000e",
    "edu",
    "i6300esb",
    "i82550",
    "i82551",
    "i82557a",
    "i82557b",
    "i82557c",
    "i82558a",
    "i82558b",
    "i82559a",
    "i82559b",
    "i82559c",
    "i82559er",
    "i82562",
    "i82801",
    "ich9-ahci",
    "ich9-intel-hda",
    "ich9-usb-ehci1",
    "ich9-usb-ehci2",
    "ich9-usb-uhci1",
    "ich9-usb-uhci2",
    "ich9-usb-uhci3",
    "ich9-usb-uhci4",
    "ich9-usb-uhci5",
    "ich9-usb-uhci6",
    "igb",
    "igbvf",
    "intel-hda",
    "ivshmem-doorbell",
    "ivshmem-plain",
    "lsi53c810",
    "lsi53c895a",
    "megasas",
    "megasas-gen2",
    "mptsas1068",
    "ne2k_pci",
    "nec-usb-xhci",
    "nvme",
    "pci-ohci",
    "pci-testdev",
    "pcnet",
    "pvscsi",
    "qemu-xhci",
    "qxl",
    "qxl-vga",
    "rtl8139",
    "secondary-vga",
    "usb-ehci",
    "vfio-pci",
    "vfio-pci-nohotplug",
    "vmxnet3",
];

/// Beginnings of names of devices that are no PCI functions: they hang on other buses, or are memory.
const OTHER_DEVICES: [&str; 30] = [
    "usb-",
    "scsi-",
    "ide-",
    "isa-",
    "hda-",
    "virtserialport",
    "virtconsole",
    "nvme-",
    "pc-dimm",
    "nvdimm",
    "vmgenid",
    "vmcoreinfo",
    "ramfb",
    "tpm-",
    "floppy",
    "pvpanic",
    "loader",
    "guest-loader",
    "sga",
    "intel-iommu",
    "amd-iommu",
    "ccid-",
    "fw_cfg",
    "smbus-",
    "i2c-",
    "u2f-",
    "vhost-user-test",
    "generic-sdhci",
    "sb16",
    "kvm-pit",
];

/// Reads the devices of one command line, in order.
pub(super) struct QemuDevices<'f> {
    found: &'f mut Devices,
    /// Ports by name, to controller index: `id=` of this command line, aliases of libvirt's.
    ports: BTreeMap<String, u8>,
    /// `-object memory-backend-*`: `id=` to size.
    backends: BTreeMap<String, Bytes>,
    /// Controller indices that nobody has, in ascending order.
    free: Vec<u8>,
}

impl<'f> QemuDevices<'f> {
    pub(super) fn new(found: &'f mut Devices) -> QemuDevices<'f> {
        let mut ports = BTreeMap::new();
        let mut is_free = [true; 256];
        for controller in &found.controllers {
            let Ok(index) = u8::try_from(controller.index) else { continue };
            is_free[usize::from(index)] = false;
            ports.extend(controller.alias.clone().map(|alias| (alias, index)));
        }
        let free = (1..=u8::MAX).filter(|&index| is_free[usize::from(index)]).collect();
        QemuDevices { found, ports, backends: BTreeMap::new(), free }
    }

    /// `-object`: shared memory has its size from one.
    pub(super) fn object(&mut self, text: &str) {
        let options = if text.starts_with('{') { Options::from_json(text) } else { None };
        let options = options.unwrap_or_else(|| Options::parse(text, "qom-type"));
        if let (Some(id), Some(bytes)) = (options.get("id"), options.get("size").and_then(|s| size(s, 1))) {
            self.backends.insert(id.to_owned(), bytes);
        }
    }

    /// `-device`, its value at `arg`. What cannot be taken into account comes back as a sentence.
    pub(super) fn device(&mut self, text: &str, arg: usize, line: u32) -> Result<(), String> {
        let options = if text.trim_start().starts_with('{') {
            Options::from_json(text).ok_or("a `-device` whose JSON cannot be read")?
        } else {
            Options::parse(text, "driver")
        };
        let driver = canonical(options.get("driver").ok_or("a `-device` without driver")?);
        let (address, bus) = self.place(&options, &driver)?;
        let alias = options.get("id").map(str::to_owned);
        if let Some(model) = port_model(&driver) {
            return self.port(Controller {
                index: 0,
                after: None,
                model,
                address,
                hotplug: options.get("hotplug").and_then(switch).unwrap_or(true),
                bus_nr: options.get("bus_nr").and_then(number).and_then(|n| u8::try_from(n).ok()),
                hardware: Some(driver),
                reserve: reserve(|name| options.get(name)),
                alias,
                line,
                arg: Some(arg),
                bus,
            });
        }
        let multifunction = options.get("multifunction").and_then(switch).unwrap_or(false);
        let device = |kind| Device {
            kind,
            address,
            multifunction,
            alias,
            line,
            element: Element::CommandLine,
            index: None,
            number: 0,
            implicit: false,
            arg: Some(arg),
            bus,
        };
        if driver.starts_with("vfio-pci") {
            let kind = self.vfio(&options, driver, line)?;
            self.found.devices.push(device(kind));
            return Ok(());
        }
        if is_pci(&driver) {
            let sizes = self.sizes(&options, &driver);
            self.found.devices.push(device(DeviceKind::Emulated { driver, sizes }));
            return Ok(());
        }
        if OTHER_DEVICES.iter().any(|other| driver.starts_with(other)) {
            return Ok(());
        }
        Err(format!("`-device {driver}`: not known whether it takes address space"))
    }

    /// `bus=` and `addr=`. Without a bus, QEMU takes the root.
    fn place(&self, options: &Options, driver: &str) -> Result<(Option<PciAddress>, Option<u8>), String> {
        let bus = match options.get("bus") {
            None => None,
            Some(name) => match self.bus(name) {
                Some(bus) => Some(bus),
                None if is_pci(driver) || port_model(driver).is_some() => {
                    return Err(format!("`-device {driver}`: there is no PCI bus `{name}`"));
                }
                None => None,
            },
        };
        let Some(addr) = options.get("addr") else { return Ok((None, bus)) };
        match slot_and_function(addr) {
            Some((slot, function)) => Ok((PciAddress::new(0, bus.unwrap_or(0), slot, function), bus)),
            None => Err(format!("`-device {driver}`: addr `{addr}` is no slot; write it like 0x5 or 5.1")),
        }
    }

    /// The controller index of a bus by QEMU's name for it.
    fn bus(&self, name: &str) -> Option<u8> {
        if let Some(&index) = self.ports.get(name) {
            return Some(index);
        }
        match name {
            "pcie.0" | "pci.0" => Some(0),
            _ => name.strip_prefix("pci.").and_then(|index| index.parse().ok()),
        }
    }

    fn port(&mut self, mut port: Controller) -> Result<(), String> {
        let Some(index) = self.free.pop() else {
            return Err("more PCI ports than there are buses".to_owned());
        };
        port.index = u32::from(index);
        if let Some(id) = &port.alias {
            self.ports.insert(id.clone(), index);
        }
        self.found.controllers.push(port);
        Ok(())
    }

    /// `vfio-pci`: by host address, or by path in sysfs.
    fn vfio(&mut self, options: &Options, driver: String, line: u32) -> Result<DeviceKind, String> {
        let path = options.get("sysfsdev").map(|path| path.trim_end_matches('/'));
        let last = path.and_then(|path| path.rsplit('/').next());
        match options.get("host").or(last).map(str::parse::<PciAddress>) {
            Some(Ok(host)) => {
                let rom_bar =
                    options.get("rombar").and_then(number) != Some(0) && options.get("romfile") != Some("");
                Ok(DeviceKind::Host { host, rom_bar, form: HostForm::CommandLine })
            }
            Some(Err(_)) if last.is_some() => {
                let what = format!("mdev {}", last.unwrap_or_default());
                self.found.unresolved.push(Unresolved { what, line, kind: UnresolvedKind::Mediated });
                Ok(DeviceKind::Emulated { driver, sizes: Vec::new() })
            }
            Some(Err(message)) => Err(format!("`-device {driver}`: {message}")),
            None => {
                Err(format!("`-device {driver}`: it does not say which host device (host= or sysfsdev=)"))
            }
        }
    }

    fn sizes(&self, options: &Options, driver: &str) -> Vec<(String, Bytes)> {
        let mut sizes = Vec::new();
        for (name, value) in options.iter() {
            if let Some(bytes) = size_property(name, value) {
                sizes.push((name.to_owned(), bytes));
            }
        }
        if let Some(&bytes) = options.get("memdev").and_then(|id| self.backends.get(id))
            && driver.starts_with("ivshmem")
        {
            sizes.push(("size".to_owned(), bytes));
        }
        sizes
    }

    /// Lets `-global` fill in what neither libvirt nor `-device` says: reserved space and hot-plug of ports, sizes of
    /// devices, the ROM of host devices.
    pub(super) fn apply_globals(&mut self, globals: &Globals<'_>) {
        for port in &mut self.found.controllers {
            globals.apply_to_port(port);
        }
        for device in &mut self.found.devices {
            globals.apply_to_device(&mut device.kind);
        }
    }
}

/// `-global`: of several for the same property, the last counts.
pub(super) struct Globals<'g>(BTreeMap<(&'g str, &'g str), &'g str>);

impl<'g> Globals<'g> {
    pub(super) fn new(globals: &'g [Global]) -> Globals<'g> {
        let by_name = globals.iter().map(|g| ((g.driver.as_str(), g.property.as_str()), g.value.as_str()));
        Globals(by_name.collect())
    }

    fn get(&self, driver: &str, property: &str) -> Option<&'g str> {
        self.0.get(&(driver, property)).copied()
    }

    /// Reserved space and hot-plug of a port.
    pub(super) fn apply_to_port(&self, port: &mut Controller) {
        let Some(hardware) = port.hardware.as_deref().or_else(|| default_hardware(&port.model)) else {
            return;
        };
        let given = reserve(|property| self.get(hardware, property));
        port.reserve = PortReserve {
            io: port.reserve.io.or(given.io),
            mem: port.reserve.mem.or(given.mem),
            pref32: port.reserve.pref32.or(given.pref32),
            pref64: port.reserve.pref64.or(given.pref64),
        };
        if self.get(hardware, "hotplug").and_then(switch) == Some(false) {
            port.hotplug = false;
        }
    }

    fn apply_to_device(&self, kind: &mut DeviceKind) {
        match kind {
            DeviceKind::Host { rom_bar, .. } => {
                *rom_bar &= self.get("vfio-pci", "rombar").and_then(number) != Some(0);
            }
            DeviceKind::Emulated { driver, sizes } => {
                for (property, _) in SIZE_PROPERTIES {
                    let value = self.get(driver, property).and_then(|value| size_property(property, value));
                    if !sizes.iter().any(|(name, _)| name == property) {
                        sizes.extend(value.map(|bytes| (property.to_owned(), bytes)));
                    }
                }
            }
        }
    }
}

/// A property that a BAR's size depends on. Of `rombar` only 0 says something.
fn size_property(name: &str, value: &str) -> Option<Bytes> {
    let &(_, unit) = SIZE_PROPERTIES.iter().find(|&&(known, _)| known == name)?;
    let bytes = Bytes(size(value, 1)?.get().checked_mul(unit)?);
    (name != "rombar" || bytes == Bytes::ZERO).then_some(bytes)
}

fn reserve<'o>(get: impl Fn(&str) -> Option<&'o str>) -> PortReserve {
    let bytes = |name| get(name).and_then(|text| size(text, 1));
    PortReserve {
        io: bytes("io-reserve"),
        mem: bytes("mem-reserve"),
        pref32: bytes("pref32-reserve"),
        pref64: bytes("pref64-reserve"),
    }
}

/// `5`, `0x5`, `5.1`: always hexadecimal (`set_pci_devfn`, QEMU 7.2 `hw/core/qdev-properties-system.c`).
fn slot_and_function(text: &str) -> Option<(u8, u8)> {
    let hex = |text: &str| {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
        if digits.starts_with(['+', '-']) { None } else { u8::from_str_radix(digits, 16).ok() }
    };
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let (slot, function) = (hex(slot)?, hex(function)?);
    (slot <= 0x1f && function <= 7).then_some((slot, function))
}

/// QEMU's own name behind an alias (`qdev_alias_table`, QEMU 7.2 `softmmu/qdev-monitor.c`).
fn canonical(driver: &str) -> String {
    match driver {
        "ac97" => "AC97".to_owned(),
        "es1370" => "ES1370".to_owned(),
        "ahci" => "ich9-ahci".to_owned(),
        "lsi" => "lsi53c895a".to_owned(),
        "e1000-82540em" => "e1000".to_owned(),
        "virtio-9p" | "virtio-balloon" | "virtio-blk" | "virtio-gpu" | "virtio-gpu-gl"
        | "virtio-input-host" | "virtio-iommu" | "virtio-keyboard" | "virtio-mouse" | "virtio-net"
        | "virtio-rng" | "virtio-scsi" | "virtio-serial" | "virtio-sound" | "virtio-tablet" => {
            format!("{driver}-pci")
        }
        other => other.to_owned(),
    }
}

fn is_pci(driver: &str) -> bool {
    let virtio = driver.strip_suffix("-transitional").unwrap_or(driver);
    let virtio = virtio.strip_suffix("-non").unwrap_or(virtio);
    let by_name = virtio.ends_with("-pci") || driver.starts_with("virtio-vga") || driver == "vhost-user-vga";
    by_name || driver.starts_with("e1000") || PCI_DEVICES.contains(&driver)
}

fn port_model(driver: &str) -> Option<ControllerModel> {
    Some(match driver {
        "pcie-root-port" | "ioh3420" => ControllerModel::RootPort,
        "x3130-upstream" => ControllerModel::SwitchUpstream,
        "xio3130-downstream" => ControllerModel::SwitchDownstream,
        "pcie-pci-bridge" => ControllerModel::PcieToPciBridge,
        "pci-bridge" => ControllerModel::PciBridge,
        "i82801b11-bridge" => ControllerModel::DmiToPciBridge,
        "pxb-pcie" => ControllerModel::PcieExpander,
        "pxb" => ControllerModel::PciExpander,
        _ => return None,
    })
}

/// What libvirt makes of a controller without `<model name=>` (`qemuDomainPCIControllerSetDefaultModelName`).
fn default_hardware(model: &ControllerModel) -> Option<&'static str> {
    Some(match model {
        ControllerModel::RootPort => "pcie-root-port",
        ControllerModel::SwitchUpstream => "x3130-upstream",
        ControllerModel::SwitchDownstream => "xio3130-downstream",
        ControllerModel::PcieToPciBridge => "pcie-pci-bridge",
        ControllerModel::PciBridge => "pci-bridge",
        ControllerModel::DmiToPciBridge => "i82801b11-bridge",
        ControllerModel::PcieExpander => "pxb-pcie",
        ControllerModel::PciExpander => "pxb",
        ControllerModel::PcieRoot | ControllerModel::PciRoot | ControllerModel::Other(_) => return None,
    })
}
