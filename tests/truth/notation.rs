//! Reads a guest written in one line.
//!
//! Settings first: `q35` or `i440fx`, `intel`, `amd` or `hygon`, `bits=43`, `ram=256G` (or `M`), and where wanted
//! `no-gib-pages`, `la57`, `mmio64=TEXT`, `maxmem=300G`, `slots=4`, `hole=64G`, `low=2G`, `machine-7.0`.
//! After `:` the devices. `port(…)` is a root port with what is behind it, `port` an empty one, `still` a port
//! without hot-plug, `ioh` an ioh3420, `switch(down(…) down)` an upstream port with downstream ports,
//! `pcie-pci(…)` and `pci-bridge(…)` conventional buses, `pxb(…)` an expander. A device is its BARs, joined by
//! `,`: `128G` is 64-bit prefetchable, `16M:m` 32-bit memory, `16M:p` 32-bit prefetchable, `16K:w` 64-bit memory,
//! `256:io` I/O, `512K:rom` the expansion ROM; `vga,` or `usb,` before them sets the class. `gpu` is the triple
//! of a data-centre GPU, `virtio` a modern virtio device. `+` joins functions of one slot, `3*` repeats.

use barfit::layout::{
    Bridge, BridgeKind, Chipset, CpuVendor, Firmware, Function, FunctionId, Guest, GuestCpu, HotplugMemory,
    MachineRules, Reserve, Role, built_in,
};
use barfit::units::{Bar, BarKind, Bytes, GIB, PhysBits};

type Result<T> = std::result::Result<T, String>;

/// The guest that `text` describes.
pub(crate) fn guest(text: &str, firmware: &Firmware) -> Result<Guest> {
    let (settings, devices) = text.split_once(':').ok_or("no `:` before the devices")?;
    let mut guest = Guest {
        machine: MachineRules {
            chipset: Chipset::Q35,
            checks_phys_bits: true,
            relocates_around_ht_hole: true,
            gigabyte_align: true,
            aligned_dimm: true,
        },
        ram: Bytes(4 * GIB),
        hotplug: None,
        sgx_epc: Bytes::ZERO,
        max_ram_below_4g: None,
        pci_hole64: Bytes::ZERO,
        cpu: GuestCpu {
            vendor: CpuVendor::Intel,
            phys_bits: PhysBits::QEMU_DEFAULT,
            guest_phys_bits: None,
            gib_pages: true,
            la57: false,
            long_mode: true,
        },
        firmware: firmware.clone(),
        mmio64_mb: None,
        bus: Vec::new().into(),
    };
    let mut slots = 1;
    for word in settings.split_whitespace() {
        match word.split_once('=').unwrap_or((word, "")) {
            ("q35", _) => guest.machine.chipset = Chipset::Q35,
            ("i440fx", _) => guest.machine.chipset = Chipset::I440fx,
            ("machine-7.0", _) => guest.machine.relocates_around_ht_hole = false,
            ("intel", _) => guest.cpu.vendor = CpuVendor::Intel,
            ("amd", _) => guest.cpu.vendor = CpuVendor::Amd,
            ("hygon", _) => guest.cpu.vendor = CpuVendor::Other,
            ("no-gib-pages", _) => guest.cpu.gib_pages = false,
            ("la57", _) => guest.cpu.la57 = true,
            ("bits", n) => guest.cpu.phys_bits = n.parse().ok().and_then(PhysBits::new).ok_or(word)?,
            ("ram", n) => guest.ram = size(n)?,
            ("low", n) => guest.max_ram_below_4g = Some(size(n)?),
            ("hole", n) => guest.pci_hole64 = size(n)?,
            ("mmio64", n) => guest.mmio64_mb = Some(n.to_owned()),
            ("slots", n) => slots = n.parse().map_err(|_| word)?,
            ("maxmem", n) => guest.hotplug = Some(HotplugMemory { max: size(n)?, slots: 0 }),
            _ => return Err(format!("`{word}` is no setting")),
        }
    }
    if let Some(hotplug) = &mut guest.hotplug {
        hotplug.slots = slots;
    }
    if guest.pci_hole64 == Bytes::ZERO {
        guest.pci_hole64 = Bytes(if guest.machine.chipset == Chipset::Q35 { 32 * GIB } else { 2 * GIB });
    }
    let mut reader = Reader { rest: devices.trim(), next_id: 0 };
    guest.bus = built_in(guest.machine.chipset, || reader.id()).into();
    // After the built-in devices of an i440fx.
    let on_root = reader.bus(2)?;
    if !reader.rest.is_empty() {
        return Err(format!("`{}` is left over", reader.rest));
    }
    guest.bus.extend(on_root);
    guest.bus.sort_by_key(|f| (f.device, f.function));
    Ok(guest)
}

/// `128G`, `16M`, `4K`, `256`.
fn size(text: &str) -> Result<Bytes> {
    let wrong = || format!("`{text}` is no size");
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        None => (text, 0),
        Some(digits) if text.ends_with('K') => (digits, 10),
        Some(digits) if text.ends_with('M') => (digits, 20),
        Some(digits) => (digits, 30),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).map(Bytes).ok_or_else(wrong)
}

struct Reader<'a> {
    rest: &'a str,
    next_id: u32,
}

impl<'a> Reader<'a> {
    fn id(&mut self) -> FunctionId {
        self.next_id += 1;
        FunctionId(self.next_id)
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find([' ', '(', ')', '+', '*']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn eat(&mut self, mark: char) -> bool {
        let eaten = self.rest.strip_prefix(mark);
        self.rest = eaten.unwrap_or(self.rest);
        eaten.is_some()
    }

    /// Slots up to the closing bracket, numbered from `first` on.
    fn bus(&mut self, first: u8) -> Result<Vec<Function>> {
        let mut out = Vec::new();
        let mut slot = first;
        loop {
            self.rest = self.rest.trim_start();
            if self.rest.is_empty() || self.rest.starts_with(')') {
                return Ok(out);
            }
            let start = self.rest;
            let count: u8 = self.word().parse().ok().filter(|_| self.eat('*')).unwrap_or_else(|| {
                self.rest = start;
                1
            });
            let body = self.rest;
            for _ in 0..count {
                self.rest = body;
                self.slot(slot, &mut out)?;
                slot += 1;
            }
        }
    }

    fn slot(&mut self, slot: u8, out: &mut Vec<Function>) -> Result<()> {
        let mut function = 0;
        loop {
            let word = self.word();
            let kind = match word {
                "port" | "still" => Some(BridgeKind::RootPort),
                "ioh" => Some(BridgeKind::Ioh3420),
                "switch" => Some(BridgeKind::SwitchUpstream),
                "down" => Some(BridgeKind::SwitchDownstream),
                "pcie-pci" => Some(BridgeKind::PciePciBridge),
                "pci-bridge" => Some(BridgeKind::PciBridge),
                "pxb" => Some(BridgeKind::Expander { bus_nr: 0x80 }),
                _ => None,
            };
            out.push(match kind {
                Some(kind) => self.bridge(kind, slot, function, word != "still")?,
                None => self.endpoint(word, slot, function)?,
            });
            if !self.eat('+') {
                return Ok(());
            }
            function += 1;
        }
    }

    fn bridge(&mut self, kind: BridgeKind, device: u8, function: u8, hotplug: bool) -> Result<Function> {
        use BridgeKind::{Expander, PciBridge, PciePciBridge, RootPort, SwitchUpstream};
        let bar = |size, kind| Bar { index: 0, size: Bytes(size), kind };
        let bars = match kind {
            RootPort => vec![bar(4096, BarKind::Mem32)],
            PciBridge | PciePciBridge => vec![bar(256, BarKind::Mem64)],
            _ => Vec::new(),
        };
        let id = self.id();
        let mut children = Vec::new();
        if self.eat('(') {
            // On a conventional bus the bridge itself keeps slot 0.
            children = self.bus(u8::from(matches!(kind, PciBridge | PciePciBridge)))?;
            if !self.eat(')') {
                return Err(format!("no `)` before `{}`", self.rest));
            }
        }
        let hotplug = hotplug && !matches!(kind, SwitchUpstream | Expander { .. });
        let role = Role::Bridge(Bridge { kind, hotplug, reserve: Reserve::default(), children });
        Ok(Function { id, device, function, bars, vga: false, usb: false, role })
    }

    fn endpoint(&mut self, word: &str, device: u8, function: u8) -> Result<Function> {
        let (mut vga, mut usb) = (false, false);
        let mut bars = Vec::new();
        let expanded = match word {
            "gpu" => "16M,128G,32M",
            "virtio" => "4K:m1,16K@4",
            other => other,
        };
        let mut index = 0;
        for part in expanded.split(',') {
            let (size_text, kind) = part.split_once(':').unwrap_or((part, ""));
            let (kind, is_64) = match kind {
                "" => (BarKind::Mem64Prefetchable, true),
                "m" | "m1" => (BarKind::Mem32, false),
                "p" => (BarKind::Mem32Prefetchable, false),
                "w" => (BarKind::Mem64, true),
                "io" => (BarKind::Io, false),
                "rom" => {
                    bars.push(Bar { index: 6, size: size(size_text)?, kind: BarKind::Mem32 });
                    continue;
                }
                _ => return Err(format!("`{part}` is no BAR")),
            };
            match part {
                "vga" => vga = true,
                "usb" => usb = true,
                _ => {
                    // Virtio's registers are 1 and 4.
                    let (size_text, at) = match size_text.strip_suffix("@4") {
                        Some(text) => (text, 4),
                        None => (size_text, if part.ends_with("m1") { 1 } else { index }),
                    };
                    bars.push(Bar { index: at, size: size(size_text)?, kind });
                    index = at + if is_64 { 2 } else { 1 };
                }
            }
        }
        Ok(Function { id: self.id(), device, function, bars, vga, usb, role: Role::Endpoint })
    }
}
