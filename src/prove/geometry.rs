//! Random guests over everything the predictor claims to know.
//!
//! A guest follows from a seed and a number alone. The generator is PCG (`rand_pcg::Pcg64Mcg`), whose output is
//! fixed by its reference; choices are made here from its 64-bit words, so a seed means the same guest as long as
//! this file does not change.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

use crate::layout::{
    Bridge, BridgeKind, Chipset, CpuVendor, Firmware, Function, FunctionId, Guest, GuestCpu, HotplugMemory,
    MachineRules, Reserve, Role, built_in,
};
use crate::units::{Bar, BarKind, Bytes, GIB, KIB, MIB, PhysBits, TIB};

/// A random guest and where it came from.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// The seed.
    pub seed: u64,
    /// Its number under that seed.
    pub number: u64,
    /// The guest, with devices as they might be passed through.
    pub guest: Guest,
}

/// Guest `number` of `seed`, with this firmware.
pub fn geometry(seed: u64, number: u64, firmware: &Firmware) -> Geometry {
    // SplitMix64's odd constant keeps neighbouring numbers apart.
    let mixed = seed ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut dice = Dice { rng: Pcg64Mcg::seed_from_u64(mixed), next_id: 0 };
    Geometry { seed, number, guest: dice.guest(firmware) }
}

/// RAM in MiB: the edges of the map below 4 GiB, of 1 TiB and its HyperTransport hole, and sizes people buy.
const RAM: [u64; 34] = [
    1024, 2048, 2815, 2816, 2817, 3072, 3583, 3584, 3585, 4096, 6144, 8192, 16384, 32768, 65536, 131072,
    200000, 262144, 393216, 507904, 524288, 720896, 786432, 884736, 917504, 983040, 999424, 1003520, 1036288,
    1048576, 1310720, 1572864, 1966080, 2097152,
];

const BITS: [u64; 32] = [
    36, 37, 38, 39, 39, 40, 40, 40, 40, 40, 41, 41, 41, 42, 42, 42, 42, 42, 43, 43, 43, 43, 43, 44, 44, 44,
    45, 45, 46, 46, 47, 48,
];

/// Values of `X-PciMmio64Mb`, useful and not.
const MMIO64: [&str; 26] = [
    "0",
    "1",
    "1000",
    "16384",
    "32768",
    "32769",
    "65536",
    "65536",
    "98304",
    "131072",
    "131072",
    "262144",
    "262144",
    "524288",
    "524288",
    "1048576",
    "2097152",
    "4194304",
    "16777216",
    "16777217",
    "4294967296",
    "0x10000",
    "-1",
    "64G",
    " 65536",
    "65536 ",
];

struct Dice {
    rng: Pcg64Mcg,
    next_id: u32,
}

impl Dice {
    /// A number below `bound`; the bias of the remainder does not matter here.
    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound.max(1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let at = self.below(from.len() as u64) as usize;
        from[at]
    }

    /// A power of two from 2^`low` to 2^`high`.
    fn power(&mut self, low: u64, high: u64) -> u64 {
        1 << (low + self.below(high - low + 1))
    }

    fn id(&mut self) -> FunctionId {
        self.next_id += 1;
        FunctionId(self.next_id)
    }

    fn guest(&mut self, firmware: &Firmware) -> Guest {
        let chipset = if self.percent(15) { Chipset::I440fx } else { Chipset::Q35 };
        let ram = self.pick(&RAM) * MIB;
        let ram = if self.percent(30) { ram + self.below(2048) * MIB } else { ram };
        let hotplug = self.percent(15).then(|| HotplugMemory {
            max: Bytes(ram + self.pick(&[GIB, 16 * GIB, 256 * GIB, TIB])),
            slots: self.pick(&[1, 2, 4, 16]),
        });
        let vendor = match self.below(20) {
            0..=11 => CpuVendor::Intel,
            12..=18 => CpuVendor::Amd,
            _ => CpuVendor::Other,
        };
        let cpu = GuestCpu {
            vendor,
            phys_bits: PhysBits::new(self.pick(&BITS)).unwrap_or(PhysBits::QEMU_DEFAULT),
            guest_phys_bits: None,
            gib_pages: self.percent(85),
            la57: self.percent(10),
            long_mode: true,
        };
        let hole = match chipset {
            Chipset::Q35 => 32 * GIB,
            Chipset::I440fx => 2 * GIB,
        };
        Guest {
            machine: MachineRules {
                chipset,
                checks_phys_bits: true,
                relocates_around_ht_hole: self.percent(90),
                gigabyte_align: true,
                aligned_dimm: true,
            },
            ram: Bytes(ram),
            hotplug,
            sgx_epc: Bytes::ZERO,
            max_ram_below_4g: self.percent(5).then(|| Bytes(self.pick(&[GIB, 2 * GIB, 3 * GIB]))),
            pci_hole64: Bytes(if self.percent(90) { hole } else { self.power(33, 40) }),
            cpu,
            firmware: firmware.clone(),
            mmio64_mb: self.percent(35).then(|| self.pick(&MMIO64).to_owned()),
            bus: self.root_bus(chipset).into(),
        }
    }

    fn root_bus(&mut self, chipset: Chipset) -> Vec<Function> {
        let mut bus = built_in(chipset, || self.id());
        match chipset {
            Chipset::Q35 => self.q35(&mut bus),
            Chipset::I440fx => self.i440fx(&mut bus),
        }
        bus.sort_by_key(|f| (f.device, f.function));
        bus
    }

    /// Ports as libvirt arranges them: functions of devices 2, 3, …; some devices on the root bus itself.
    fn q35(&mut self, bus: &mut Vec<Function>) {
        let ports = 1 + self.pick(&[0, 1, 1, 2, 3, 3, 4, 5, 7, 7, 8, 11, 15]);
        let style = self.below(3);
        let spare_chance = self.pick(&[0, 0, 30, 60]);
        let ioh = self.percent(5);
        let reserves = self.percent(15);
        for n in 0..ports {
            let children = match self.below(100) {
                x if x < spare_chance => Vec::new(),
                x if x >= 92 => self.switch(style),
                x if x >= 87 => {
                    let below = self.devices(style, 1, 3);
                    vec![self.bridge(0, 0, BridgeKind::PciePciBridge, false, below)]
                }
                x if x >= 75 => vec![self.small_device(0)],
                _ => self.slot(0, style),
            };
            let kind = if ioh { BridgeKind::Ioh3420 } else { BridgeKind::RootPort };
            let (device, function) = (2 + (n / 8) as u8, (n % 8) as u8);
            let mut port = self.bridge(device, function, kind, reserves, children);
            if let (Role::Bridge(bridge), true) = (&mut port.role, self.percent(12)) {
                bridge.hotplug = false;
            }
            bus.push(port);
        }
        if self.percent(12) {
            let device = self.slot(8, style);
            bus.extend(device);
        }
        if self.percent(25) {
            let device = self.small_device(9);
            bus.push(device);
        }
        if self.percent(6) {
            let below = self.slot(0, style);
            let port = self.bridge(0, 0, BridgeKind::RootPort, false, below);
            let expander = BridgeKind::Expander { bus_nr: 128 };
            let mut expander = self.bridge(16, 0, expander, false, vec![port]);
            if let Role::Bridge(bridge) = &mut expander.role {
                bridge.hotplug = false;
            }
            bus.push(expander);
        }
    }

    fn i440fx(&mut self, bus: &mut Vec<Function>) {
        let style = self.below(3);
        for device in 3..3 + self.pick(&[1, 1, 2, 4, 8]) {
            let device = self.slot(device, style);
            bus.extend(device);
        }
        if self.percent(40) {
            let below = self.devices(style, 0, 3);
            let mut bridge = self.bridge(20, 0, BridgeKind::PciBridge, false, below);
            if let Role::Bridge(b) = &mut bridge.role {
                b.hotplug = self.percent(70);
                if !b.hotplug {
                    bridge.bars.clear();
                }
            }
            bus.push(bridge);
        }
    }

    fn switch(&mut self, style: u64) -> Vec<Function> {
        let mut ports = Vec::new();
        for n in 0..1 + self.below(4) {
            let below = if self.percent(75) { self.slot(0, style) } else { Vec::new() };
            ports.push(self.bridge(n as u8, 0, BridgeKind::SwitchDownstream, false, below));
        }
        let mut upstream = self.bridge(0, 0, BridgeKind::SwitchUpstream, false, ports);
        if let Role::Bridge(bridge) = &mut upstream.role {
            bridge.hotplug = false;
        }
        vec![upstream]
    }

    fn bridge(
        &mut self,
        device: u8,
        function: u8,
        kind: BridgeKind,
        reserves: bool,
        children: Vec<Function>,
    ) -> Function {
        let bars = match kind {
            BridgeKind::RootPort => vec![bar(0, 4 * KIB, BarKind::Mem32)],
            BridgeKind::PciBridge | BridgeKind::PciePciBridge => vec![bar(0, 256, BarKind::Mem64)],
            _ => Vec::new(),
        };
        let mut reserve = Reserve::default();
        if reserves && kind == BridgeKind::RootPort {
            reserve.pref64 = self.percent(60).then(|| Bytes(self.power(25, 38)));
            reserve.mem = self.percent(30).then(|| Bytes(self.pick(&[0, MIB, 4 * MIB, 32 * MIB])));
            reserve.io = self.percent(30).then(|| Bytes(self.pick(&[0, 4 * KIB, 8 * KIB])));
        }
        let role = Role::Bridge(Bridge { kind, hotplug: true, reserve, children });
        Function { id: self.id(), device, function, bars, vga: false, usb: false, role }
    }

    /// A few devices on a conventional bus; device 0 there is the bridge's own hot-plug controller.
    fn devices(&mut self, style: u64, least: u64, more: u64) -> Vec<Function> {
        let count = least + self.below(more);
        (0..count).flat_map(|n| self.slot(1 + n as u8, style)).collect()
    }

    /// What libvirt puts behind most ports: a virtio device or the USB controller.
    fn small_device(&mut self, device: u8) -> Function {
        let usb = self.percent(25);
        let bars = if usb {
            vec![bar(0, 16 * KIB, BarKind::Mem64)]
        } else {
            vec![bar(1, 4 * KIB, BarKind::Mem32), bar(4, 16 * KIB, BarKind::Mem64Prefetchable)]
        };
        Function { id: self.id(), device, function: 0, bars, vga: false, usb, role: Role::Endpoint }
    }

    /// One passed-through device, perhaps of several functions.
    fn slot(&mut self, device: u8, style: u64) -> Vec<Function> {
        let functions = self.pick(&[1, 1, 1, 1, 2, 3]);
        (0..functions).map(|function| self.endpoint(device, function, style)).collect()
    }

    fn endpoint(&mut self, device: u8, function: u8, style: u64) -> Function {
        use BarKind::{Io, Mem32, Mem64Prefetchable};
        let mut vga = false;
        // A guest has GPUs of one kind, or a mix.
        let kind = match style {
            0 => 0,
            1 => self.below(6),
            _ => 6 + self.below(4),
        };
        let mut bars = match kind {
            // H100 and H200, A100, MI300X, L40S and T4, an older card with 32-bit registers.
            0 => gpu(128 * GIB),
            1 => gpu(256 * GIB),
            2 => vec![
                bar(0, 256 * GIB, Mem64Prefetchable),
                bar(2, 2 * MIB, Mem64Prefetchable),
                bar(4, 256, Io),
                bar(5, 512 * KIB, Mem32),
            ],
            3 => gpu(64 * GIB),
            4 => vec![
                bar(0, 16 * MIB, Mem32),
                bar(1, 256 * MIB, Mem64Prefetchable),
                bar(3, 32 * MIB, Mem64Prefetchable),
            ],
            5 => {
                vga = self.percent(50);
                vec![
                    bar(0, 16 * MIB, Mem32),
                    bar(1, self.power(28, 34), Mem64Prefetchable),
                    bar(3, 32 * MIB, Mem64Prefetchable),
                    bar(5, 128, Io),
                ]
            }
            6 => vec![bar(2, self.power(20, 39), Mem64Prefetchable)],
            7 => vec![bar(1, 256, Io), bar(2, self.power(30, 38), Mem64Prefetchable)],
            8 => vec![bar(0, self.power(22, 27), Mem32), bar(2, self.power(33, 38), Mem64Prefetchable)],
            _ => vec![
                bar(0, self.power(20, 32), Mem64Prefetchable),
                bar(2, self.power(30, 39), Mem64Prefetchable),
                bar(4, self.power(20, 39), Mem64Prefetchable),
            ],
        };
        if self.percent(10) {
            bars.push(bar(6, 512 * KIB, Mem32));
        }
        Function { id: self.id(), device, function, bars, vga, usb: false, role: Role::Endpoint }
    }
}

/// The three BARs of a data-centre GPU.
fn gpu(memory: u64) -> Vec<Bar> {
    let kind = BarKind::Mem64Prefetchable;
    vec![bar(0, 16 * MIB, kind), bar(2, memory, kind), bar(4, 32 * MIB, kind)]
}

fn bar(index: u8, size: u64, kind: BarKind) -> Bar {
    Bar { index, size: Bytes(size), kind }
}
