//! Replaces the devices of a guest by devices that QEMU can make without hardware, and says what differs.
//!
//! No stand-in has a GPU's three large BARs on one function. The nearest, measured on QEMU 7.2:
//!
//! | QEMU device | BARs |
//! |---|---|
//! | `nvme` with buffers | 0: 16 KiB mem64; 2: 1 MiB and more, and 4: any size, both 64-bit prefetchable |
//! | `ivshmem-plain` | 0: 256 B mem32; 2: any size, 64-bit prefetchable |
//! | `pci-testdev` | 0: 4 KiB mem32; 1: 256 B I/O; 2: any size, 64-bit prefetchable, or none |
//! | `bochs-display` | 0: 4 to 256 MiB mem32 prefetchable; 2: 4 KiB mem32 |
//! | `edu` | 0: 1 MiB mem32 |
//! | emulated devices | theirs |
//! | `qxl-vga`, one a guest | VGA class; 0: 16 MiB, 1: 1 MiB, 2: 8 KiB mem32; 3: 32 B I/O; 4: 64-bit prefetchable |
//!
//! A function with more BARs than one of these has becomes several functions of the same slot, so that the port
//! above it asks for the same window. What they decide together on the real device (a device that is given up
//! loses all its BARs) they may decide apart. Prediction and truth both speak of the guest with stand-ins.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, Result};
use crate::layout::{Chipset, Function, FunctionId, Guest, Role, built_in};
use crate::units::{Bar, BarKind, Bytes, GIB, KIB, MIB};

/// Largest buffer that is given to `nvme` as ordinary memory of the QEMU process.
const NVME_BUFFER_MAX: u64 = 4 * GIB;
/// Largest video memory of `qxl-vga` that any machine can promise.
const VGA_MAX: u64 = 16 * GIB;
/// Smallest BAR that matters for a bridge's window; smaller ones vanish in its rounding.
const SMALL: u64 = MIB;

/// A device that QEMU makes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// Comes with the machine.
    BuiltIn,
    /// `pci-testdev`.
    TestDevice {
        /// BAR 2, if any.
        large: Option<Bytes>,
    },
    /// `ivshmem-plain`.
    SharedMemory {
        /// BAR 2.
        large: Bytes,
    },
    /// `nvme` with a controller memory buffer and a persistent memory region.
    Nvme {
        /// BAR 2, whole MiB.
        buffer: Bytes,
        /// BAR 4.
        large: Bytes,
    },
    /// `bochs-display`.
    Display {
        /// BAR 0, 4 to 256 MiB.
        memory: Bytes,
    },
    /// `qxl-vga`: class VGA.
    QxlVga {
        /// BAR 4.
        large: Bytes,
    },
    /// A device whose BARs are always the same.
    Fixed(&'static Fixed),
}

/// A QEMU device whose BARs are always the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Its name and options.
    pub driver: &'static str,
    vga: bool,
    usb: bool,
    bars: &'static [Bar],
}

const fn bar(index: u8, size: u64, kind: BarKind) -> Bar {
    Bar { index, size: Bytes(size), kind }
}

const fn fixed(driver: &'static str, bars: &'static [Bar]) -> Fixed {
    Fixed { driver, vga: false, usb: false, bars }
}

const fn vga(driver: &'static str, bars: &'static [Bar]) -> Fixed {
    Fixed { driver, vga: true, usb: false, bars }
}

const fn usb(driver: &'static str, bars: &'static [Bar]) -> Fixed {
    Fixed { driver, vga: false, usb: true, bars }
}

static EDU: Fixed = fixed("edu", &[bar(0, MIB, BarKind::Mem32)]);
static AUDIO: Fixed = fixed("intel-hda", &[bar(0, 16 * KIB, BarKind::Mem32)]);

/// QEMU's primary display; a guest can have one.
const QXL: &str = "qxl-vga";

/// Devices that guests have beside those passed through, or that have the same BARs.
static FIXED: [Fixed; 16] = {
    use BarKind::{Io, Mem32, Mem32Prefetchable, Mem64, Mem64Prefetchable};
    const MODERN: &str = "virtio-serial-pci,disable-legacy=on,disable-modern=off";
    const NO_MSIX: &str = "virtio-serial-pci,vectors=0,disable-legacy=on,disable-modern=off";
    [
        fixed(MODERN, &[bar(1, 4 * KIB, Mem32), bar(4, 16 * KIB, Mem64Prefetchable)]),
        fixed(NO_MSIX, &[bar(4, 16 * KIB, Mem64Prefetchable)]),
        fixed(
            "virtio-serial-pci,disable-legacy=off",
            &[bar(0, 64, Io), bar(1, 4 * KIB, Mem32), bar(4, 16 * KIB, Mem64Prefetchable)],
        ),
        fixed(
            "virtio-rng-pci,disable-legacy=off",
            &[bar(0, 32, Io), bar(1, 4 * KIB, Mem32), bar(4, 16 * KIB, Mem64Prefetchable)],
        ),
        fixed(
            "virtio-balloon-pci,disable-legacy=off",
            &[bar(0, 64, Io), bar(4, 16 * KIB, Mem64Prefetchable)],
        ),
        fixed("edu", &[bar(0, MIB, Mem32)]),
        fixed("intel-hda", &[bar(0, 16 * KIB, Mem32)]),
        fixed("nvme,serial=0", &[bar(0, 16 * KIB, Mem64)]),
        fixed("ich9-ahci", &[bar(4, 32, Io), bar(5, 4 * KIB, Mem32)]),
        usb("qemu-xhci", &[bar(0, 16 * KIB, Mem64)]),
        usb("usb-ehci", &[bar(0, 4 * KIB, Mem32)]),
        usb("ich9-usb-uhci1", &[bar(4, 32, Io)]),
        vga("VGA", &[bar(0, 16 * MIB, Mem32Prefetchable), bar(2, 4 * KIB, Mem32)]),
        vga(
            "virtio-vga",
            &[
                bar(0, 8 * MIB, Mem32Prefetchable),
                bar(2, 16 * KIB, Mem64Prefetchable),
                bar(4, 4 * KIB, Mem32),
            ],
        ),
        vga(QXL, &[bar(0, 64 * MIB, Mem32), bar(1, 64 * MIB, Mem32), bar(2, 8 * KIB, Mem32), bar(3, 32, Io)]),
        vga("cirrus-vga,vgamem_mb=16", &[bar(0, 32 * MIB, Mem32Prefetchable), bar(1, 4 * KIB, Mem32)]),
    ]
};

impl Device {
    /// The BARs it has in QEMU, expansion ROM excepted.
    fn bars(&self) -> Vec<Bar> {
        use BarKind::{Io, Mem32, Mem32Prefetchable, Mem64, Mem64Prefetchable};
        match *self {
            Device::BuiltIn => Vec::new(),
            Device::TestDevice { large } => {
                let mut bars = vec![bar(0, 4 * KIB, Mem32), bar(1, 256, Io)];
                bars.extend(large.map(|size| bar(2, size.get(), Mem64Prefetchable)));
                bars
            }
            Device::SharedMemory { large } => {
                vec![bar(0, 256, Mem32), bar(2, large.get(), Mem64Prefetchable)]
            }
            Device::Nvme { buffer, large } => vec![
                bar(0, 16 * KIB, Mem64),
                bar(2, buffer.get(), Mem64Prefetchable),
                bar(4, large.get(), Mem64Prefetchable),
            ],
            Device::Display { memory } => {
                vec![bar(0, memory.get(), Mem32Prefetchable), bar(2, 4 * KIB, Mem32)]
            }
            Device::QxlVga { large } => vec![
                bar(0, 16 * MIB, Mem32),
                bar(1, MIB, Mem32),
                bar(2, 8 * KIB, Mem32),
                bar(3, 32, Io),
                bar(4, large.get(), Mem64Prefetchable),
            ],
            Device::Fixed(fixed) => fixed.bars.to_vec(),
        }
    }

    fn vga(&self) -> bool {
        matches!(self, Device::QxlVga { .. } | Device::Fixed(Fixed { vga: true, .. }))
    }

    fn usb(&self) -> bool {
        matches!(self, Device::Fixed(Fixed { usb: true, .. }))
    }
}

/// What stands for one device of the original guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stood {
    /// The original function.
    pub original: FunctionId,
    /// For every original BAR that was reproduced: its register, and the function and register that stand for it.
    pub registers: Vec<(u8, FunctionId, u8)>,
}

/// A guest of stand-ins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandIn {
    /// The guest with the BARs that the stand-ins really have. A [`Guest`] whose devices are stand-ins already
    /// stays as it is.
    pub guest: Guest,
    /// The QEMU device of every function that is no bridge.
    pub devices: BTreeMap<FunctionId, Device>,
    /// What stands for what.
    pub stood: Vec<Stood>,
    /// What differs from the original, in words.
    pub notes: Vec<String>,
}

/// Replaces every device of `guest`.
///
/// # Errors
/// [`Error::Unsupported`] when two functions share an address.
pub fn stand_in(guest: &Guest) -> Result<StandIn> {
    let mut maker = Maker {
        chipset: guest.machine.chipset,
        next: 1 + highest_id(&guest.bus),
        vga_taken: false,
        devices: BTreeMap::new(),
        stood: Vec::new(),
        notes: Vec::new(),
    };
    let mut stood_guest = guest.clone();
    stood_guest.bus = maker.bus(&guest.bus, true)?.into();
    Ok(StandIn { guest: stood_guest, devices: maker.devices, stood: maker.stood, notes: maker.notes })
}

/// One part of a replacement: the device, and which original registers its registers stand for.
struct Part {
    device: Device,
    stands_for: Vec<(u8, u8)>,
}

impl Part {
    fn new(device: Device, stands_for: &[(u8, u8)]) -> Part {
        Part { device, stands_for: stands_for.to_vec() }
    }
}

struct Maker {
    chipset: Chipset,
    next: u32,
    vga_taken: bool,
    devices: BTreeMap<FunctionId, Device>,
    stood: Vec<Stood>,
    notes: Vec<String>,
}

impl Maker {
    fn bus(&mut self, functions: &[Function], root: bool) -> Result<Vec<Function>> {
        let mut taken = BTreeSet::new();
        for f in functions {
            if !taken.insert((f.device, f.function)) {
                let place = format!("{:02x}.{:x}", f.device, f.function);
                return Err(Error::Unsupported(format!("two functions at {place} of one bus")));
            }
        }
        let mut out = Vec::new();
        for f in functions {
            match &f.role {
                Role::Bridge(bridge) => {
                    let mut copy = f.clone();
                    let mut bridge = bridge.clone();
                    bridge.children = self.bus(&bridge.children, false)?;
                    copy.role = Role::Bridge(bridge);
                    out.push(copy);
                }
                Role::Endpoint if root && is_built_in(self.chipset, f) => {
                    self.devices.insert(f.id, Device::BuiltIn);
                    out.push(f.clone());
                }
                Role::Endpoint => self.endpoint(f, &mut taken, &mut out),
            }
        }
        out.sort_by_key(|f| (f.device, f.function));
        Ok(out)
    }

    fn endpoint(&mut self, f: &Function, taken: &mut BTreeSet<(u8, u8)>, out: &mut Vec<Function>) {
        let mut registers = Vec::new();
        for (n, part) in self.parts(f).into_iter().enumerate() {
            let (id, function) = if n == 0 {
                (f.id, f.function)
            } else if let Some(free) = (1..8).find(|&free| !taken.contains(&(f.device, free))) {
                taken.insert((f.device, free));
                self.next += 1;
                (FunctionId(self.next - 1), free)
            } else {
                self.note(f, "some BARs are left out: the slot has no free function");
                continue;
            };
            let mut bars = part.device.bars();
            // The ROM stays what it was: any device takes a ROM file of any size.
            bars.extend(f.bars.iter().filter(|b| n == 0 && b.is_rom()));
            registers.extend(part.stands_for.iter().map(|&(was, is)| (was, id, is)));
            self.devices.insert(id, part.device);
            let (vga, usb) = (part.device.vga(), part.device.usb());
            out.push(Function { id, device: f.device, function, bars, vga, usb, role: Role::Endpoint });
        }
        let vga = out.iter().any(|o| o.vga && o.id == f.id);
        if f.vga && !vga {
            self.note(f, "its stand-in is no VGA device, so the firmware may give it up");
        }
        self.stood.push(Stood { original: f.id, registers });
    }

    fn note(&mut self, f: &Function, text: &str) {
        self.notes.push(format!("device {:02x}.{:x}: {text}", f.device, f.function));
    }

    /// The devices that together have BARs like those of `f`.
    fn parts(&mut self, f: &Function) -> Vec<Part> {
        let own: Vec<Bar> = f.bars.iter().copied().filter(|b| !b.is_rom()).collect();
        let primary =
            |d: &Device| matches!(d, Device::QxlVga { .. } | Device::Fixed(Fixed { driver: QXL, .. }));
        if let Some(device) = exact(&own, f).filter(|d| !(self.vga_taken && primary(d))) {
            self.vga_taken |= primary(&device);
            let same: Vec<(u8, u8)> = own.iter().map(|b| (b.index, b.index)).collect();
            return vec![Part::new(device, &same)];
        }
        let mut parts = Vec::new();
        let mut large: Vec<Bar> = own
            .iter()
            .copied()
            .filter(|b| b.kind == BarKind::Mem64Prefetchable && b.size.get() >= SMALL)
            .collect();
        large.sort_by_key(|b| b.size);
        let mut io = own.iter().find(|b| b.kind == BarKind::Io).copied();

        if f.vga
            && !self.vga_taken
            && large.last().is_some_and(|b| (256 * MIB..=VGA_MAX).contains(&b.size.get()))
        {
            self.vga_taken = true;
            if let Some(b) = large.pop() {
                let mut same = vec![(b.index, 4)];
                same.extend(io.take().map(|b| (b.index, 3)));
                parts.push(Part::new(Device::QxlVga { large: b.size }, &same));
            }
        }
        while let Some(b) = large.pop() {
            let buffer = large.iter().rposition(|second| second.size.get() <= NVME_BUFFER_MAX);
            if let Some(second) = buffer.map(|at| large.remove(at)) {
                let device = Device::Nvme { buffer: second.size, large: b.size };
                parts.push(Part::new(device, &[(b.index, 4), (second.index, 2)]));
            } else if let Some(port) = io.take() {
                let device = Device::TestDevice { large: Some(b.size) };
                parts.push(Part::new(device, &[(b.index, 2), (port.index, 1)]));
            } else {
                parts.push(Part::new(Device::SharedMemory { large: b.size }, &[(b.index, 2)]));
            }
        }
        if let Some(port) = io {
            parts.push(Part::new(Device::TestDevice { large: None }, &[(port.index, 1)]));
        }
        for b in own.iter().filter(|b| b.size.get() >= SMALL) {
            if matches!(b.kind, BarKind::Io | BarKind::Mem64Prefetchable) || vga_has(&parts, b) {
                continue;
            }
            let size = b.size.get();
            if size > 256 * MIB {
                self.note(f, "a 32-bit BAR above 256 MiB is stood for by one of 256 MiB");
            }
            let device = match size {
                MIB => Device::Fixed(&EDU),
                _ => Device::Display { memory: Bytes(size.clamp(4 * MIB, 256 * MIB)) },
            };
            parts.push(Part::new(device, &[(b.index, 0)]));
        }
        if parts.is_empty() {
            // Only registers that vanish in a bridge's rounding.
            let stands_for: Vec<(u8, u8)> = own.first().map(|b| (b.index, 0)).into_iter().collect();
            parts.push(Part::new(Device::Fixed(&AUDIO), &stands_for));
        }
        parts
    }
}

fn highest_id(functions: &[Function]) -> u32 {
    let below = |f: &Function| match &f.role {
        Role::Bridge(bridge) => highest_id(&bridge.children),
        Role::Endpoint => 0,
    };
    functions.iter().map(|f| f.id.0.max(below(f))).max().unwrap_or(0)
}

/// The VGA stand-in has a 16 MiB BAR of its own.
fn vga_has(parts: &[Part], bar: &Bar) -> bool {
    matches!(parts.first(), Some(Part { device: Device::QxlVga { .. }, .. })) && bar.size.get() <= 16 * MIB
}

/// A device of QEMU that has exactly the BARs `bars` of `f`.
fn exact(bars: &[Bar], f: &Function) -> Option<Device> {
    let mut wanted = bars.to_vec();
    wanted.sort_by_key(|b| b.index);
    let at = |index: u8| bars.iter().find(|b| b.index == index).map(|b| b.size);
    let mut candidates: Vec<Device> = FIXED.iter().map(Device::Fixed).collect();
    candidates.push(Device::TestDevice { large: at(2) });
    let displayable = at(0).filter(|size| (4 * MIB..=256 * MIB).contains(&size.get()));
    candidates.extend(displayable.map(|memory| Device::Display { memory }));
    candidates.extend(at(2).map(|large| Device::SharedMemory { large }));
    if let (Some(buffer), Some(large)) = (at(2), at(4)) {
        candidates.push(Device::Nvme { buffer, large });
    }
    candidates.into_iter().find(|d| d.bars() == wanted && d.vga() == f.vga && d.usb() == f.usb)
}

/// Whether a function of the root bus comes with the machine.
fn is_built_in(chipset: Chipset, f: &Function) -> bool {
    let place = (f.device, f.function);
    built_in(chipset, || f.id).iter().any(|own| (own.device, own.function) == place && own.bars == f.bars)
}
