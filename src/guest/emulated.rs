//! BARs of the devices that QEMU emulates, by QEMU's name.
//!
//! Read from QEMU 7.2 itself (`info qtree`, QMP `query-pci` with each device plugged); devices that 7.2 lacks from
//! the source of QEMU 10.0. Small BARs matter as well: they take 32-bit, I/O and bridge space.

use crate::units::{Bar, BarKind, Bytes, KIB, MIB};

use BarKind::{Io, Mem32, Mem32Prefetchable, Mem64, Mem64Prefetchable};

/// An emulated device's BARs, and whether it is of VGA class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Emulated {
    /// BARs, expansion ROM included.
    pub bars: Vec<Bar>,
    /// Class 0300.
    pub vga: bool,
    /// Class 0c03.
    pub usb: bool,
}

const ROM: u8 = Bar::ROM;
const NIC_ROM: (u8, u64, BarKind) = (ROM, 256 * KIB, Mem32);
const VGA_ROM: (u8, u64, BarKind) = (ROM, 64 * KIB, Mem32);

/// The BARs of `driver`, or `None` for a device not known here. `sizes` are its size properties in bytes;
/// `express` says that it sits behind a PCI Express port, where virtio devices drop their I/O BAR.
pub(super) fn emulated(driver: &str, sizes: &[(String, Bytes)], express: bool) -> Option<Emulated> {
    let size = |name: &str| sizes.iter().find(|(n, _)| n == name).map(|(_, s)| s.get());
    if let Some(bars) = virtio(driver, express) {
        return Some(device(bars, driver == "virtio-vga" || driver == "virtio-vga-gl", false));
    }
    let bars: Vec<(u8, u64, BarKind)> = match driver {
        "e1000" | "e1000-82540em" | "e1000-82544gc" | "e1000-82545em" => {
            vec![(0, 128 * KIB, Mem32), (1, 64, Io), NIC_ROM]
        }
        "e1000e" => {
            vec![(0, 128 * KIB, Mem32), (1, 128 * KIB, Mem32), (2, 32, Io), (3, 16 * KIB, Mem32), NIC_ROM]
        }
        "igb" => {
            vec![(0, 128 * KIB, Mem32), (1, 128 * KIB, Mem32), (2, 32, Io), (3, 16 * KIB, Mem32), NIC_ROM]
        }
        "rtl8139" => vec![(0, 256, Io), (1, 256, Mem32), NIC_ROM],
        "vmxnet3" => vec![(0, 4 * KIB, Mem32), (1, 4 * KIB, Mem32), (2, 8 * KIB, Mem32), NIC_ROM],
        "pcnet" => vec![(0, 32, Io), (1, 32, Mem32), NIC_ROM],
        "ne2k_pci" => vec![(0, 256, Io), NIC_ROM],
        _ if driver.starts_with("i825") => {
            vec![(0, 4 * KIB, Mem32), (1, 64, Io), (2, 128 * KIB, Mem32), (ROM, 128 * KIB, Mem32)]
        }
        "nvme" => vec![(0, 16 * KIB, Mem64)],
        "ahci" | "ich9-ahci" => vec![(4, 32, Io), (5, 4 * KIB, Mem32)],
        "piix3-ide" | "piix4-ide" => vec![(4, 16, Io)],
        "megasas" => vec![(0, 16 * KIB, Mem64), (2, 256, Io), (3, 256 * KIB, Mem64)],
        "megasas-gen2" => vec![(0, 256, Io), (1, 16 * KIB, Mem64), (3, 256 * KIB, Mem64)],
        "mptsas1068" => vec![(0, 256, Io), (1, 16 * KIB, Mem32), (2, 64 * KIB, Mem32)],
        "lsi" | "lsi53c895a" | "lsi53c810" => vec![(0, 256, Io), (1, KIB, Mem32), (2, 8 * KIB, Mem32)],
        "am53c974" | "dc390" => vec![(0, 128, Io)],
        "pvscsi" => vec![(0, 32 * KIB, Mem32)],
        "qemu-xhci" | "nec-usb-xhci" => vec![(0, 16 * KIB, Mem64)],
        "usb-ehci" | "ich9-usb-ehci1" | "ich9-usb-ehci2" => vec![(0, 4 * KIB, Mem32)],
        "piix3-usb-uhci" | "piix4-usb-uhci" | "vt82c686b-usb-uhci" => vec![(4, 32, Io)],
        _ if driver.starts_with("ich9-usb-uhci") => vec![(4, 32, Io)],
        "pci-ohci" => vec![(0, 256, Mem32)],
        "intel-hda" | "ich9-intel-hda" => vec![(0, 16 * KIB, Mem32)],
        "AC97" => vec![(0, KIB, Io), (1, 256, Io)],
        "ES1370" => vec![(0, 256, Io)],
        "i6300esb" => vec![(0, 16, Mem32)],
        "pvpanic-pci" => vec![(0, 2, Mem32)],
        "pci-serial" => vec![(0, 8, Io)],
        "pci-serial-2x" => vec![(0, 16, Io)],
        "pci-serial-4x" => vec![(0, 32, Io)],
        "sdhci-pci" => vec![(0, 256, Mem32)],
        "edu" => vec![(0, MIB, Mem32)],
        "pci-testdev" => {
            let membar = size("membar").filter(|s| *s > 0).map(|s| (2, s, Mem64Prefetchable));
            [(0, 4 * KIB, Mem32), (1, 256, Io)].into_iter().chain(membar).collect()
        }
        "ivshmem-plain" => vec![(0, 256, Mem32), (2, size("size").unwrap_or(4 * MIB), Mem64Prefetchable)],
        "ivshmem-doorbell" | "ivshmem" => vec![
            (0, 256, Mem32),
            (1, 4 * KIB, Mem32),
            (2, size("size").unwrap_or(4 * MIB), Mem64Prefetchable),
        ],
        "VGA" | "bochs-display" | "secondary-vga" => {
            let vram =
                size("vgamem_mb").or(size("vgamem")).unwrap_or(16 * MIB).checked_next_power_of_two()?;
            let rom = match driver {
                "VGA" => Some(VGA_ROM),
                "bochs-display" => Some((ROM, 32 * KIB, Mem32)),
                _ => None,
            };
            [(0, vram, Mem32Prefetchable), (2, 4 * KIB, Mem32)].into_iter().chain(rom).collect()
        }
        "cirrus-vga" => vec![(0, 32 * MIB, Mem32Prefetchable), (1, 4 * KIB, Mem32), VGA_ROM],
        "vmware-svga" => {
            let vram = size("vgamem_mb").unwrap_or(16 * MIB).checked_next_power_of_two()?;
            vec![(0, 16, Io), (1, vram, Mem32Prefetchable), (2, 64 * KIB, Mem32Prefetchable), VGA_ROM]
        }
        "ati-vga" => vec![(0, 16 * MIB, Mem32Prefetchable), (1, 256, Io), (2, 16 * KIB, Mem32), VGA_ROM],
        "qxl" | "qxl-vga" => qxl(&size, driver == "qxl-vga")?,
        // No BAR of its own.
        "ramfb" | "isa-vga" => return None,
        _ => return None,
    };
    let vga = matches!(driver, "VGA" | "cirrus-vga" | "vmware-svga" | "ati-vga" | "qxl-vga");
    let usb = ["xhci", "ehci", "uhci", "ohci"].iter().any(|kind| driver.contains(kind));
    Some(device(bars, vga, usb))
}

/// QXL rounds each of its memories up to a power of two; the 64-bit one is there only when it is larger than the
/// 32-bit one. Source: QEMU hw/display/qxl.c (`qxl_init_ramsize`).
fn qxl(size: &impl Fn(&str) -> Option<u64>, primary: bool) -> Option<Vec<(u8, u64, BarKind)>> {
    let vgamem = size("vgamem_mb").unwrap_or(16 * MIB).clamp(MIB, 256 * MIB).checked_next_power_of_two()?;
    let least = if primary { 2 * vgamem } else { 0 };
    let ram = size("ram_size").unwrap_or(64 * MIB).max(least).max(MIB).checked_next_power_of_two()?;
    let vram32 = size("vram_size").unwrap_or(64 * MIB).max(4 * KIB).checked_next_power_of_two()?;
    let vram64 = size("vram64_size_mb").unwrap_or(0).max(vram32).checked_next_power_of_two()?;
    let mut bars = vec![(0, ram, Mem32), (1, vram32, Mem32), (2, 8 * KIB, Mem32), (3, 32, Io)];
    if vram64 > vram32 && vram64 <= 1 << 50 {
        bars.push((4, vram64, Mem64Prefetchable));
    }
    if primary {
        bars.push(VGA_ROM);
    }
    Some(bars)
}

/// virtio: MSI-X in BAR 1, the device in BAR 4, and on a conventional bus the legacy I/O BAR 0.
fn virtio(driver: &str, express: bool) -> Option<Vec<(u8, u64, BarKind)>> {
    const MSIX: (u8, u64, BarKind) = (1, 4 * KIB, Mem32);
    const DEVICE: (u8, u64, BarKind) = (4, 16 * KIB, Mem64Prefetchable);
    if matches!(driver, "virtio-vga" | "virtio-vga-gl") {
        return Some(vec![
            (0, 8 * MIB, Mem32Prefetchable),
            (2, 16 * KIB, Mem64Prefetchable),
            (4, 4 * KIB, Mem32),
            VGA_ROM,
        ]);
    }
    let (base, legacy) = match driver.strip_suffix("-non-transitional") {
        Some(base) => (base, false),
        None => match driver.strip_suffix("-transitional") {
            Some(base) => (base, true),
            None => (driver, !express),
        },
    };
    // Legacy I/O BAR: the device's configuration space rounded up; 0 for devices that never had a legacy form.
    let io = match base {
        "virtio-net-pci" | "virtio-rng-pci" => 32,
        "virtio-blk-pci" | "vhost-user-blk-pci" => 128,
        "virtio-scsi-pci"
        | "vhost-scsi-pci"
        | "vhost-user-scsi-pci"
        | "virtio-serial-pci"
        | "virtio-balloon-pci"
        | "virtio-9p-pci" => 64,
        "virtio-gpu-pci"
        | "virtio-gpu-gl-pci"
        | "virtio-keyboard-pci"
        | "virtio-mouse-pci"
        | "virtio-tablet-pci"
        | "virtio-input-host-pci"
        | "virtio-crypto-pci"
        | "virtio-iommu-pci"
        | "virtio-mem-pci"
        | "virtio-pmem-pci"
        | "vhost-user-fs-pci"
        | "vhost-vsock-pci"
        | "virtio-sound-pci" => 0,
        _ => return None,
    };
    let mut bars = Vec::with_capacity(4);
    if legacy && io > 0 {
        bars.push((0, io, Io));
    }
    if !matches!(base, "virtio-balloon-pci" | "virtio-iommu-pci" | "virtio-mem-pci" | "virtio-pmem-pci") {
        bars.push(MSIX);
    }
    bars.push(DEVICE);
    if base == "virtio-net-pci" {
        bars.push(NIC_ROM);
    }
    Some(bars)
}

/// Vendor and device id of emulated devices that can stand in for a GPU, where a policy names them.
pub(super) fn pci_id(driver: &str) -> Option<(&'static str, &'static str)> {
    match driver {
        "pci-testdev" => Some(("1b36", "0005")),
        "ivshmem-plain" | "ivshmem-doorbell" => Some(("1af4", "1110")),
        _ => None,
    }
}

fn device(bars: Vec<(u8, u64, BarKind)>, vga: bool, usb: bool) -> Emulated {
    Emulated { bars: to_bars(bars), vga, usb }
}

/// BARs of an index, a size in bytes and a kind each.
pub(super) fn to_bars(bars: impl IntoIterator<Item = (u8, u64, BarKind)>) -> Vec<Bar> {
    bars.into_iter().map(|(index, size, kind)| Bar { index, size: Bytes(size), kind }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    fn shape(driver: &str, sizes: &[(&str, u64)], express: bool) -> Option<Vec<(u8, u64, BarKind)>> {
        let sizes: Vec<_> = sizes.iter().map(|(n, s)| ((*n).to_owned(), Bytes(*s))).collect();
        emulated(driver, &sizes, express)
            .map(|e| e.bars.iter().map(|b| (b.index, b.size.get(), b.kind)).collect())
    }

    #[test]
    fn virtio_drops_its_io_bar_behind_a_port() {
        assert_eq!(
            shape("virtio-blk-pci", &[], true),
            Some(vec![(1, 4096, Mem32), (4, 16384, Mem64Prefetchable)])
        );
        assert_eq!(
            shape("virtio-blk-pci", &[], false),
            Some(vec![(0, 128, Io), (1, 4096, Mem32), (4, 16384, Mem64Prefetchable)])
        );
        assert_eq!(
            shape("virtio-net-pci-non-transitional", &[], false),
            Some(vec![(1, 4096, Mem32), (4, 16384, Mem64Prefetchable), (6, 262144, Mem32)])
        );
    }

    #[test]
    fn sized_devices_take_their_size() {
        assert_eq!(
            shape("ivshmem-plain", &[("size", 64 * GIB)], true),
            Some(vec![(0, 256, Mem32), (2, 64 * GIB, Mem64Prefetchable)])
        );
        assert_eq!(
            shape("qxl", &[("vram64_size_mb", 256 * MIB)], false),
            Some(vec![
                (0, 64 * MIB, Mem32),
                (1, 64 * MIB, Mem32),
                (2, 8192, Mem32),
                (3, 32, Io),
                (4, 256 * MIB, Mem64Prefetchable),
            ])
        );
        assert_eq!(shape("vfio-pci", &[], true), None);
    }
}
