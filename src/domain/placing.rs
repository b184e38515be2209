//! What libvirt's address rules ask of a device: its turn, its kind of bus, its fixed function.
//!
//! Sources: libvirt 9.0 `src/qemu/qemu_domain_address.c` and `src/conf/domain_conf.c`, at the functions named below.

use super::model::{Device, DeviceKind, Element, HostForm};
use super::slots::Connect;

/// Positions of devices in the order in which libvirt goes through them: by kind, and within a kind as it keeps them.
/// Disks are kept by the number in their name (`virDomainDiskInsert`), interfaces that are host devices before other
/// host devices, controllers as [`controllers`] says.
pub(super) fn libvirt_order(devices: &[Device]) -> Vec<usize> {
    let mut order: Vec<_> = devices
        .iter()
        .enumerate()
        .map(|(position, device)| {
            let rank = match device.element {
                Element::Disk => (device.index, false),
                _ => (None, !matches!(device.kind, DeviceKind::Host { form: HostForm::Interface, .. })),
            };
            (device.element, rank, position)
        })
        .collect();
    order.sort_unstable();
    let others = order.partition_point(|(element, ..)| *element < Element::Controller);
    for ((_, _, position), controller) in order[others..].iter_mut().zip(controllers(devices)) {
        *position = controller;
    }
    order.into_iter().map(|(_, _, position)| position).collect()
}

/// Positions of controllers as libvirt keeps them (`virDomainControllerInsertPreAlloced`): by type, and there each before
/// the first with a larger index, or else behind all others; those that it adds at the end.
fn controllers(devices: &[Device]) -> impl Iterator<Item = usize> {
    let mut kept: Vec<(&str, Option<u32>, bool, usize)> = Vec::new();
    let all = devices.iter().enumerate().filter(|(_, device)| device.element == Element::Controller);
    for (position, device) in all.clone().filter(|(_, device)| !device.implicit) {
        let driver = driver(device).unwrap_or_default();
        let (kind, index) = (controller_type(driver), device.index);
        let companion = driver.starts_with("ich9-usb-uhci");
        let is_behind = |&(other, number, is_companion, _): &(&str, Option<u32>, bool, usize)| {
            let number = number.filter(|_| other == kind && index.is_some());
            number.is_some() && (number, is_companion) > (index, companion)
        };
        let last = || kept.iter().rposition(|(other, ..)| *other == kind).map(|last| last + 1);
        let place = kept.iter().position(is_behind).or_else(last).unwrap_or(kept.len());
        kept.insert(place, (kind, index, companion, position));
    }
    let added = all.filter(|(_, device)| device.implicit).map(|(position, _)| position);
    kept.into_iter().map(|(.., position)| position).chain(added)
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
