//! Turns a guest of stand-ins into a QEMU command line: the same machine, RAM, CPU width, ports and addresses.
//!
//! RAM and large BARs are promised, not allocated (`reserve=off`), so a 2 TiB guest runs on a laptop. What the
//! local QEMU cannot have (a guest-phys-bits value, SGX memory, rules of machine types before 2.4) is refused
//! rather than approximated. Options are those of QEMU 7.2.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::qemu::CONSOLE;
use super::stand_in::{Device, StandIn};
use super::trace::EVENTS;
use super::{Error, FirmwareFiles, Result};
use crate::layout::{
    Bridge, BridgeKind, Chipset, CpuVendor, Function, FunctionId, Guest, GuestCpu, Role, WidthRule, built_in,
    lay_out,
};
use crate::units::{Bytes, GIB, MIB};

/// What executes the guest's instructions.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// QEMU itself: always works.
    #[default]
    Tcg,
    /// The host's CPU: needs /dev/kvm, and a host at least as wide as the guest.
    Kvm,
}

/// A Linux guest: its word on which BARs it can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linux {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
}

/// The guest need not initialise all of its RAM, nor trust the timer of a busy machine.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1 no_timer_check mem=2G";

/// Everything that is the same for every guest booted: the programs and files.
#[derive(Debug)]
pub struct Rig {
    /// The QEMU program.
    pub qemu: PathBuf,
    /// The firmware.
    pub firmware: FirmwareFiles,
    /// What executes.
    pub accel: Accel,
    /// A Linux to boot after the firmware.
    pub linux: Option<Linux>,
    /// Longest silence of a bare guest, by what makes its width: measured when a boot looks like a hang.
    pub(super) baselines: Mutex<BTreeMap<String, Duration>>,
}

impl Rig {
    /// A rig of these programs and files.
    pub fn new(qemu: PathBuf, firmware: FirmwareFiles, accel: Accel) -> Rig {
        Rig { qemu, firmware, accel, linux: None, baselines: Mutex::default() }
    }

    /// QEMU's arguments for a guest, without the program's name. Files it needs (the copy of the NVRAM, empty
    /// ROMs) are made in `folder`, and the monitor's socket will be `folder/qmp`.
    pub(super) fn arguments(&self, stand: &StandIn, folder: &Path) -> Result<Vec<String>> {
        let guest = &stand.guest;
        let mut args = Args::default();
        args.push(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        args.push(["-accel", if self.accel == Accel::Kvm { "kvm" } else { "tcg" }]);
        machine(guest, &mut args)?;
        args.push(["-cpu", &cpu(&guest.cpu)?]);
        for event in EVENTS {
            args.push(["-trace", event]);
        }
        args.push(["-qmp", &format!("unix:{},server=on,wait=off", quoted(&folder.join("qmp")))]);
        self.flash(folder, &mut args)?;
        if let Some(linux) = &self.linux {
            args.push(["-serial", &format!("file:{}", quoted(&folder.join(CONSOLE)))]);
            args.push(["-kernel", &linux.kernel.display().to_string()]);
            args.push(["-initrd", &linux.initrd.display().to_string(), "-append", KERNEL_COMMAND_LINE]);
        }
        if let Some(value) = &guest.mmio64_mb {
            let value = value.replace(',', ",,");
            args.push(["-fw_cfg", &format!("name=opt/ovmf/X-PciMmio64Mb,string={value}")]);
        }
        let root = match guest.machine.chipset {
            Chipset::Q35 => "pcie.0",
            Chipset::I440fx => "pci.0",
        };
        let mut devices = Devices { stand, folder, chassis: 0, args: &mut args, later: Vec::new() };
        devices.bus(&guest.bus, root)?;
        // QEMU wants a primary display before all others.
        let mut later = devices.later;
        later.sort_by_key(|option| !option.starts_with("qxl-vga"));
        for option in later {
            args.push(["-device", &option]);
        }
        Ok(args.0)
    }

    fn flash(&self, folder: &Path, args: &mut Args) -> Result<()> {
        let code = quoted(&self.firmware.code);
        let Some(vars) = &self.firmware.vars else {
            args.push(["-bios", &self.firmware.code.display().to_string()]);
            return Ok(());
        };
        let copy = folder.join("vars.fd");
        let bytes = std::fs::read(vars).map_err(Error::io(vars.display().to_string()))?;
        std::fs::write(&copy, bytes).map_err(Error::io(copy.display().to_string()))?;
        args.push(["-drive", &format!("if=pflash,format=raw,unit=0,readonly=on,file={code}")]);
        args.push(["-drive", &format!("if=pflash,format=raw,unit=1,file={}", quoted(&copy))]);
        Ok(())
    }
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn push<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(str::to_owned));
    }
}

/// A path inside an option value: QEMU reads a doubled comma as one.
fn quoted(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::Unsupported(what.to_owned()))
}

fn on(yes: bool) -> &'static str {
    if yes { "on" } else { "off" }
}

fn machine(guest: &Guest, args: &mut Args) -> Result<()> {
    let rules = &guest.machine;
    if !rules.checks_phys_bits {
        return unsupported("a QEMU before 7.1 does not check phys-bits; this one does");
    }
    if !rules.gigabyte_align || !rules.aligned_dimm {
        return unsupported("a machine type before 2.4");
    }
    if guest.sgx_epc != Bytes::ZERO {
        return unsupported("SGX memory");
    }
    let (name, bridge) = match rules.chipset {
        Chipset::Q35 => ("q35", "q35-pcihost"),
        Chipset::I440fx => ("i440fx", "i440FX-pcihost"),
    };
    // 7.0 is the last whose AMD guests keep their RAM below 1 TiB.
    let name = match (rules.chipset, rules.relocates_around_ht_hole) {
        (_, false) => format!("pc-{name}-7.0"),
        (Chipset::Q35, true) => "q35".to_owned(),
        (Chipset::I440fx, true) => "pc".to_owned(),
    };
    let low = guest.max_ram_below_4g.map(|b| format!(",max-ram-below-4g={}", b.get())).unwrap_or_default();
    args.push(["-machine", &format!("{name},memory-backend=ram{low}")]);
    args.push(["-object", &format!("memory-backend-ram,id=ram,size={},reserve=off", guest.ram.get())]);
    let hotplug = guest.hotplug.map(|h| format!(",slots={},maxmem={}B", h.slots, h.max.get()));
    args.push(["-m", &format!("size={}B{}", guest.ram.get(), hotplug.unwrap_or_default())]);
    args.push(["-global", &format!("{bridge}.pci-hole64-size={}", guest.pci_hole64.get())]);
    Ok(())
}

fn cpu(cpu: &GuestCpu) -> Result<String> {
    if cpu.guest_phys_bits.is_some() {
        return unsupported("guest-phys-bits");
    }
    if !cpu.long_mode {
        return unsupported("a CPU without long mode");
    }
    let (model, vendor) = match cpu.vendor {
        CpuVendor::Intel => ("Skylake-Server", "GenuineIntel"),
        CpuVendor::Amd => ("EPYC", "AuthenticAMD"),
        CpuVendor::Other => ("EPYC", "HygonGenuine"),
    };
    Ok(format!(
        "{model},vendor={vendor},host-phys-bits=off,phys-bits={},pdpe1gb={},la57={}",
        cpu.phys_bits,
        on(cpu.gib_pages),
        on(cpu.la57)
    ))
}

struct Devices<'a> {
    stand: &'a StandIn,
    folder: &'a Path,
    chassis: u8,
    args: &'a mut Args,
    /// Options of the endpoints, which follow all bridges.
    later: Vec<String>,
}

impl Devices<'_> {
    fn bus(&mut self, functions: &[Function], bus: &str) -> Result<()> {
        for f in functions {
            let shares_slot = functions.iter().any(|o| o.device == f.device && o.function != f.function);
            let multi = if shares_slot && f.function == 0 { ",multifunction=on" } else { "" };
            let place = format!(
                "id={},bus={bus},addr={:#x}.{:#x}{multi}{}",
                qemu_id(f.id),
                f.device,
                f.function,
                self.rom(f)?
            );
            match &f.role {
                Role::Bridge(bridge) => {
                    self.bridge(bridge, &place)?;
                    self.bus(&bridge.children, &qemu_id(f.id))?;
                }
                Role::Endpoint => self.endpoint(f, &place)?,
            }
        }
        Ok(())
    }

    /// An expansion ROM as large as the guest's, all zeroes: firmware sees that it holds no program.
    fn rom(&self, f: &Function) -> Result<String> {
        let Some(rom) = f.bars.iter().find(|b| b.is_rom()) else { return Ok(",romfile=".to_owned()) };
        let size = rom.size.get();
        let path = self.folder.join(format!("rom-{size}"));
        let file = std::fs::File::create(&path).map_err(Error::io(path.display().to_string()))?;
        file.set_len(size).map_err(Error::io(path.display().to_string()))?;
        Ok(format!(",romfile={},romsize={size}", quoted(&path)))
    }

    fn bridge(&mut self, bridge: &Bridge, place: &str) -> Result<()> {
        let reserve = &bridge.reserve;
        let mut options = String::new();
        for (name, size) in
            [("io", reserve.io), ("mem", reserve.mem), ("pref32", reserve.pref32), ("pref64", reserve.pref64)]
        {
            options.extend(size.map(|size| format!(",{name}-reserve={}", size.get())));
        }
        self.chassis = match self.chassis.checked_add(1) {
            Some(next) => next,
            None => return unsupported("more than 255 bridges"),
        };
        let chassis = self.chassis;
        let hotplug = on(bridge.hotplug);
        let driver = match bridge.kind {
            BridgeKind::RootPort => format!("pcie-root-port,chassis={chassis},hotplug={hotplug}"),
            BridgeKind::Ioh3420 => format!("ioh3420,chassis={chassis},hotplug={hotplug}"),
            BridgeKind::SwitchUpstream => "x3130-upstream".to_owned(),
            BridgeKind::SwitchDownstream => format!("xio3130-downstream,chassis={chassis},hotplug={hotplug}"),
            BridgeKind::PciePciBridge => "pcie-pci-bridge".to_owned(),
            BridgeKind::PciBridge => format!("pci-bridge,chassis_nr={chassis},shpc={hotplug}"),
            BridgeKind::DmiToPci => "i82801b11-bridge".to_owned(),
            BridgeKind::Expander { bus_nr } => format!("pxb-pcie,bus_nr={bus_nr}"),
        };
        self.args.push(["-device", &format!("{driver},{place}{options}")]);
        Ok(())
    }

    fn endpoint(&mut self, f: &Function, place: &str) -> Result<()> {
        let Some(device) = self.stand.devices.get(&f.id) else {
            return unsupported("a device without a stand-in");
        };
        let driver = match *device {
            Device::BuiltIn => return Ok(()),
            Device::TestDevice { large } => {
                format!("pci-testdev,membar={}", large.unwrap_or_default().get())
            }
            Device::SharedMemory { large } => {
                let memory = self.memory(f.id, large, ",share=on");
                format!("ivshmem-plain,memdev={memory}")
            }
            Device::Nvme { buffer, large } => {
                let memory = self.memory(f.id, large, "");
                format!("nvme,serial=0,cmb_size_mb={},pmrdev={memory}", buffer.get() / MIB)
            }
            Device::Display { memory } => format!("bochs-display,vgamem={}", memory.get()),
            Device::QxlVga { large } => format!(
                "qxl-vga,ram_size_mb=1,vram_size_mb=1,vgamem_mb=1,vram64_size_mb={}",
                large.get() / MIB
            ),
            Device::Fixed(fixed) => fixed.driver.to_owned(),
        };
        self.later.push(format!("{driver},{place}"));
        Ok(())
    }

    fn memory(&mut self, id: FunctionId, size: Bytes, options: &str) -> String {
        let name = format!("m{}", id.0);
        let size = size.get();
        self.args
            .push(["-object", &format!("memory-backend-ram,id={name},size={size},reserve=off{options}")]);
        name
    }
}

fn qemu_id(id: FunctionId) -> String {
    format!("f{}", id.0)
}

/// A guest with nothing plugged in and an address space of the same width: what a hang is measured against, for it
/// is the width that firmware spends its time on.
///
/// Where the width is the CPU's, it stays that with little RAM and no `X-PciMmio64Mb`, which may be what hangs the
/// guest. Elsewhere RAM and window make the width, and stay.
pub(super) fn bare(guest: &Guest) -> Guest {
    let mut next = 0;
    let next_id = || {
        next += 1;
        FunctionId(next)
    };
    let mut bare = Guest { bus: built_in(guest.machine.chipset, next_id).into(), ..guest.clone() };
    if !matches!(lay_out(guest).width.because, WidthRule::NotTrusted | WidthRule::NotRead) {
        bare.ram = Bytes(2 * GIB);
        bare.hotplug = None;
        bare.mmio64_mb = None;
    }
    bare
}
