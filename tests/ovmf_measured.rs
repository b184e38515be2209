//! Random guests that were booted on real OVMF (QEMU 7.2, TCG, stand-in devices): the prediction must give every
//! BAR the very address that the firmware gave it. See docs/fidelity.md.

use std::collections::BTreeMap;

use barfit::layout::{
    Bridge, BridgeKind, Chipset, CpuVendor, Firmware, Function, FunctionId, Guest, GuestCpu, HotplugMemory,
    MachineRules, Outcome, OvmfChange, OvmfRules, Reserve, Role, built_in, lay_out,
};
use barfit::units::{Bar, BarKind, Bytes, GIB, PhysBits};
use serde::Deserialize;

/// One boot: the guest, and what the firmware did.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Boot {
    seed: u64,
    edk2: String,
    #[serde(default)]
    backports_override: bool,
    chipset: String,
    ram: Bytes,
    maxmem: Option<Bytes>,
    #[serde(default)]
    slots: u32,
    pci_hole64: Option<Bytes>,
    mmio64_mb: Option<String>,
    vendor: String,
    phys_bits: PhysBits,
    gib_pages: bool,
    bus: Vec<Device>,
    /// `boots`, `refused` (by QEMU), `hangs` or `givesup` (from outside both look like a firmware that never ends).
    outcome: String,
    /// Addresses by `id.register`.
    #[serde(default)]
    placed: BTreeMap<String, Option<Bytes>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    id: u32,
    /// `device.function`, hexadecimal.
    at: String,
    bars: Vec<(u8, Bytes, BarKind)>,
    #[serde(default)]
    vga: bool,
    bridge: Option<String>,
    #[serde(default)]
    hotplug: bool,
    #[serde(default)]
    reserve: BTreeMap<String, Bytes>,
    #[serde(default)]
    bus_nr: u8,
    #[serde(default)]
    behind: Vec<Device>,
}

impl Device {
    fn function(&self) -> Function {
        let (device, function) = self.at.split_once('.').expect("device.function");
        let kind = self.bridge.as_deref().map(|kind| match kind {
            "root-port" => BridgeKind::RootPort,
            "ioh3420" => BridgeKind::Ioh3420,
            "switch-upstream" => BridgeKind::SwitchUpstream,
            "switch-downstream" => BridgeKind::SwitchDownstream,
            "pcie-pci-bridge" => BridgeKind::PciePciBridge,
            "pci-bridge" => BridgeKind::PciBridge,
            "dmi-to-pci" => BridgeKind::DmiToPci,
            "expander" => BridgeKind::Expander { bus_nr: self.bus_nr },
            other => panic!("bridge {other}"),
        });
        let reserve = |name: &str| self.reserve.get(name).copied();
        let bridge = |kind| Bridge {
            kind,
            hotplug: self.hotplug,
            reserve: Reserve {
                io: reserve("io"),
                mem: reserve("mem"),
                pref32: reserve("pref32"),
                pref64: reserve("pref64"),
            },
            children: self.behind.iter().map(Device::function).collect(),
        };
        Function {
            id: FunctionId(self.id),
            device: u8::from_str_radix(device, 16).expect("device"),
            function: function.parse().expect("function"),
            bars: self
                .bars
                .iter()
                .map(|(index, size, kind)| Bar { index: *index, size: *size, kind: *kind })
                .collect(),
            vga: self.vga,
            usb: false,
            role: kind.map_or(Role::Endpoint, |kind| Role::Bridge(bridge(kind))),
        }
    }
}

impl Boot {
    fn guest(&self) -> Guest {
        let (chipset, hole) = match self.chipset.as_str() {
            "q35" => (Chipset::Q35, 32 * GIB),
            "i440fx" => (Chipset::I440fx, 2 * GIB),
            other => panic!("chipset {other}"),
        };
        let mut rules = OvmfRules::era(&self.edk2).expect("a month");
        if self.backports_override {
            rules.apply(OvmfChange::FwCfgOverride);
        }
        let mut ids = (1_000_000..).map(FunctionId);
        let mut bus = built_in(chipset, || ids.next().expect("an id"));
        bus.extend(self.bus.iter().map(Device::function));
        bus.sort_by_key(|function| (function.device, function.function));
        Guest {
            machine: MachineRules {
                chipset,
                checks_phys_bits: true,
                relocates_around_ht_hole: true,
                gigabyte_align: true,
                aligned_dimm: true,
            },
            ram: self.ram,
            hotplug: self.maxmem.map(|max| HotplugMemory { max, slots: self.slots }),
            sgx_epc: Bytes::ZERO,
            max_ram_below_4g: None,
            pci_hole64: self.pci_hole64.unwrap_or(Bytes(hole)),
            cpu: GuestCpu {
                vendor: if self.vendor == "amd" { CpuVendor::Amd } else { CpuVendor::Intel },
                phys_bits: self.phys_bits,
                guest_phys_bits: None,
                gib_pages: self.gib_pages,
                la57: false,
                long_mode: true,
            },
            firmware: Firmware::Ovmf(rules),
            mmio64_mb: self.mmio64_mb.clone(),
            bus: bus.into(),
        }
    }
}

#[test]
fn every_bar_is_where_real_firmware_put_it() {
    let boots = include_str!("fixtures/ovmf/measured.jsonl");
    let mut wrong = Vec::new();
    let mut eras = BTreeMap::<String, usize>::new();
    for line in boots.lines() {
        let boot: Boot = serde_json::from_str(line).expect("a boot");
        let layout = lay_out(&boot.guest());
        let outcome = match &layout.outcome {
            Outcome::Boots => "boots",
            Outcome::Refused => "refused",
            Outcome::Hangs(_) => "hangs",
            Outcome::GivesUp(_) => "givesup",
        };
        if outcome != boot.outcome {
            wrong.push(format!("seed {}: {outcome}, the firmware: {}", boot.seed, boot.outcome));
        }
        let predicted: BTreeMap<String, Option<Bytes>> = layout
            .bars
            .iter()
            .map(|bar| {
                (
                    format!("{}.{}", bar.function.0, bar.bar.index),
                    bar.address.map(|address| Bytes(address.get())),
                )
            })
            .collect();
        for (name, address) in &boot.placed {
            let ours = predicted.get(name);
            if ours != Some(address) {
                wrong.push(format!("seed {}: BAR {name} at {ours:?}, the firmware: {address:?}", boot.seed));
            }
        }
        *eras.entry(boot.edk2).or_default() += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for era in ["202011", "202211", "202502", "202608"] {
        assert!(eras.get(era).is_some_and(|boots| *boots >= 10), "too few boots of {era}: {eras:?}");
    }
}
