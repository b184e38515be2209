//! What libvirt's address rules ask of a device: its turn, its kind of bus, its fixed function.
//!
//! Sources: libvirt 9.0 `src/qemu/qemu_domain_address.c` and `src/conf/domain_conf.c`, at the functions named below.

use std::collections::BTreeMap;

use super::model::{Device, DeviceKind, Element, HostForm};
use super::slots::Connect;

/// Positions of devices in the order in which libvirt goes through them: by kind, and within a kind as it keeps them.
/// Controllers are kept by type and index, those it adds at the end (`virDomainControllerInsertPreAlloced`); disks by
/// the number in their name (`virDomainDiskInsert`); interfaces that are host devices before other host devices.
pub(super) fn libvirt_order(devices: &[Device]) -> Vec<usize> {
    // Of each type of controller: its rank, and the last so far, which one without an index comes after.
    let mut types: BTreeMap<&str, (usize, (u32, bool))> = BTreeMap::new();
    let mut order: Vec<_> = devices
        .iter()
        .enumerate()
        .map(|(position, device)| {
            let rank = match (device.element, driver(device)) {
                (Element::Controller, Some(driver)) if !device.implicit => {
                    let count = types.len();
                    let (rank, last) = types.entry(controller_type(driver)).or_insert((count, (0, false)));
                    let companion = driver.starts_with("ich9-usb-uhci");
                    let own = device.index.map_or(*last, |index| (index, companion));
                    *last = own.max(*last);
                    (*rank, own)
                }
                (Element::Controller, _) => (usize::MAX, (0, false)),
                (Element::Disk, _) => (0, (device.index.unwrap_or(0), false)),
                _ => (0, (0, !matches!(device.kind, DeviceKind::Host { form: HostForm::Interface, .. }))),
            };
            (device.element, rank, position)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, _, position)| position).collect()
}

/// `type=` of the controller that became this device.
pub(super) fn controller_type(driver: &str) -> &'static str {
    match driver {
        "ich9-ahci" => "sata",
        "piix3-ide" => "ide",
        "nvme" => "nvme",
        _ if driver.starts_with("virtio-serial") => "virtio-serial",
        _ if driver.contains("usb") || driver.ends_with("hci") => "usb",
        _ => "scsi",
    }
}

/// What a device needs of its bus (`qemuDomainDeviceCalculatePCIConnectFlags`). Virtio devices are Express where the
/// guest is, but for the transitional ones.
pub(super) fn connect(device: &Device, is_express: bool) -> Connect {
    let conventional = Connect::PCI.and(Connect::AUTO);
    let express = if is_express { Connect::PCIE.and(Connect::AUTO) } else { conventional };
    let Some(driver) = driver(device) else { return express };
    match driver {
        "virtio-iommu-pci" => express.and(Connect::INTEGRATED),
        "pvpanic-pci" => conventional.and(Connect::PCIE).and(Connect::INTEGRATED),
        "virtio-crypto-pci" => conventional,
        "vfio-pci" | "nec-usb-xhci" | "qemu-xhci" | "e1000e" | "igb" | "bochs-display" | "nvme" => express,
        _ if driver.ends_with("-pci-transitional") => conventional,
        _ if driver.starts_with("virtio-") || driver.starts_with("vhost-") => express,
        // Network cards that libvirt has no name for (`ne2k_pci`, `pcnet`, `e1000-82545em`) are taken to be Express, too.
        "e1000" | "rtl8139" | "vmxnet3" | "vmxnet2" | "vmxnet" | "vlance" | "netfront" | "lan9118" => {
            conventional
        }
        _ if device.element == Element::Interface => express,
        _ => conventional,
    }
}

pub(super) fn driver(device: &Device) -> Option<&str> {
    match &device.kind {
        DeviceKind::Emulated { driver, .. } => Some(driver),
        DeviceKind::Host { .. } => None,
    }
}

/// What to call a device in a message.
pub(super) fn name(device: &Device) -> String {
    match &device.kind {
        DeviceKind::Emulated { driver, .. } => format!("`{driver}`"),
        DeviceKind::Host { host, .. } => format!("host device {host}"),
    }
}

pub(super) fn is_first(device: &Device) -> bool {
    device.number == 0
}

pub(super) fn piix3_function(driver: &str) -> Option<u8> {
    match driver {
        "piix3-ide" => Some(1),
        "piix3-usb-uhci" => Some(2),
        _ => None,
    }
}

pub(super) fn usb2_function(driver: &str) -> Option<u8> {
    match driver {
        "ich9-usb-uhci1" => Some(0),
        "ich9-usb-uhci2" => Some(1),
        "ich9-usb-uhci3" => Some(2),
        "ich9-usb-ehci1" => Some(7),
        _ => None,
    }
}
