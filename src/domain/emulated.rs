//! Which device of QEMU's an element of `<devices>` becomes, and the sizes its BARs depend on.
//!
//! Names are QEMU's (`virtio-net-pci`, `qxl-vga`), as libvirt writes them on the command line (libvirt 9.0
//! `src/qemu/qemu_command.c`, with what later versions added). Only PCI functions; what hangs on another bus is `None`.
//! BAR sizes themselves are known elsewhere.

use super::error::ParseError;
use super::read::{Node, Reader, child, child_attribute, text};
use super::value::{self, Base};
use crate::units::{Bytes, KIB, MIB};

/// A device by QEMU's name, with size properties.
pub(super) struct Emulated {
    pub(super) driver: String,
    pub(super) sizes: Vec<(String, Bytes)>,
}

impl Emulated {
    pub(super) fn named(driver: impl Into<String>) -> Emulated {
        Emulated { driver: driver.into(), sizes: Vec::new() }
    }
}

/// A virtio device: `virtio-blk-pci`, with the suffix of an older or newer protocol when the model asks for it.
fn virtio(base: &str, model: Option<&str>) -> Emulated {
    let suffix = match model {
        Some("virtio-transitional") => "-transitional",
        Some("virtio-non-transitional") => "-non-transitional",
        _ => "",
    };
    Emulated::named(format!("{base}-pci{suffix}"))
}

/// The bus of a disk; without one, libvirt goes by the name of the device (`virDomainDiskDefPostParse`).
pub(super) fn disk_bus<'d>(node: Node<'d, '_>) -> &'d str {
    let Some(target) = child(node, "target") else { return "" };
    let dev = target.attribute("dev").unwrap_or_default();
    match target.attribute("bus") {
        Some(bus) => bus,
        None if node.attribute("device") == Some("floppy") => "fdc",
        None if dev.starts_with("sd") => "scsi",
        None if dev.starts_with("vd") => "virtio",
        None if dev.starts_with("xvd") => "xen",
        None => "ide",
    }
}

/// The number in a disk's name: `sda` is 0, `sdz` 25, `sdaa` 26 (`virDiskNameParse`, libvirt 9.0
/// `src/util/virutil.c`). It decides which controller a disk without an address stands on.
pub(super) fn disk_number(node: Node<'_, '_>) -> u32 {
    let dev = child_attribute(node, "target", "dev").unwrap_or_default();
    let prefixes = ["fd", "hd", "vd", "sd", "xvd", "ubd"];
    let letters = prefixes.iter().find_map(|prefix| dev.strip_prefix(prefix)).unwrap_or_default();
    let letters = letters.bytes().take_while(u8::is_ascii_lowercase);
    let number =
        letters.fold(0u32, |sum, letter| sum.saturating_mul(26).saturating_add(u32::from(letter - b'a') + 1));
    number.saturating_sub(1)
}

/// `<disk>` on the bus `virtio`.
pub(super) fn virtio_disk(node: Node<'_, '_>) -> Emulated {
    let base = if node.attribute("type") == Some("vhostuser") { "vhost-user-blk" } else { "virtio-blk" };
    virtio(base, node.attribute("model"))
}

/// `<interface>` but for type hostdev. Without a model libvirt takes the rtl8139 (`qemuDomainDefaultNetModel`), but for
/// what only virtio can be.
pub(super) fn interface(node: Node<'_, '_>) -> Option<Emulated> {
    let Some(model) = child_attribute(node, "model", "type") else {
        let passt = child_attribute(node, "backend", "type") == Some("passt");
        return Some(match node.attribute("type") {
            Some("vdpa") => virtio("virtio-net", None),
            Some("vhostuser") if passt => virtio("virtio-net", None),
            _ => Emulated::named("rtl8139"),
        });
    };
    // libvirt knows these names in whatever case.
    let lower = model.to_ascii_lowercase();
    match lower.as_str() {
        "usb-net" => None,
        _ if lower.starts_with("virtio") => Some(virtio("virtio-net", Some(&lower))),
        _ => Some(Emulated::named(lower)),
    }
}

/// `<controller>` of another type than pci.
pub(super) fn controller(node: Node<'_, '_>) -> Option<Emulated> {
    let model = node.attribute("model");
    match node.attribute("type")? {
        "usb" => usb_controller(model.unwrap_or("piix3-uhci")),
        "scsi" => scsi_controller(model),
        "virtio-serial" => Some(virtio("virtio-serial", model)),
        "sata" => Some(Emulated::named("ich9-ahci")),
        "ide" => Some(Emulated::named("piix3-ide")),
        "nvme" => Some(Emulated::named("nvme")),
        _ => None,
    }
}

fn usb_controller(model: &str) -> Option<Emulated> {
    Some(Emulated::named(match model {
        "none" => return None,
        "piix3-uhci" => "piix3-usb-uhci",
        "piix4-uhci" => "piix4-usb-uhci",
        "ehci" => "usb-ehci",
        "ich9-ehci1" => "ich9-usb-ehci1",
        "ich9-uhci1" => "ich9-usb-uhci1",
        "ich9-uhci2" => "ich9-usb-uhci2",
        "ich9-uhci3" => "ich9-usb-uhci3",
        "vt82c686b-uhci" => "vt82c686b-usb-uhci",
        "nec-xhci" => "nec-usb-xhci",
        other => other,
    }))
}

/// Without a model libvirt takes the lsilogic where QEMU has it (`qemuDomainGetSCSIControllerModel`).
pub(super) fn scsi_controller(model: Option<&str>) -> Option<Emulated> {
    match model {
        None | Some("auto" | "lsilogic") => Some(Emulated::named("lsi53c895a")),
        Some("lsisas1068") => Some(Emulated::named("mptsas1068")),
        Some("lsisas1078") => Some(Emulated::named("megasas")),
        Some("vmpvscsi") => Some(Emulated::named("pvscsi")),
        Some("virtio-scsi") => Some(virtio("virtio-scsi", None)),
        Some(model) if model.starts_with("virtio") => Some(virtio("virtio-scsi", Some(model))),
        Some("ncr53c90" | "ibmvscsi") => None,
        Some(other) => Some(Emulated::named(other)),
    }
}

/// `<filesystem>`.
pub(super) fn filesystem(node: Node<'_, '_>) -> Option<Emulated> {
    match child_attribute(node, "driver", "type") {
        Some("virtiofs") => Some(virtio("vhost-user-fs", None)),
        None | Some("path" | "handle") => Some(virtio("virtio-9p", node.attribute("model"))),
        Some(_) => None,
    }
}

/// `<sound>`.
pub(super) fn sound(node: Node<'_, '_>) -> Option<Emulated> {
    Some(Emulated::named(match node.attribute("model")? {
        "es1370" => "ES1370",
        "ac97" => "AC97",
        "ich6" => "intel-hda",
        "ich9" => "ich9-intel-hda",
        "virtio" => "virtio-sound-pci",
        _ => return None,
    }))
}

/// `<memballoon>`.
pub(super) fn memballoon(node: Node<'_, '_>) -> Option<Emulated> {
    let model = node.attribute("model");
    model.is_none_or(|model| model.starts_with("virtio")).then(|| virtio("virtio-balloon", model))
}

/// `<rng>`.
pub(super) fn rng(node: Node<'_, '_>) -> Option<Emulated> {
    Some(virtio("virtio-rng", node.attribute("model")))
}

/// `<crypto>`.
pub(super) fn crypto(node: Node<'_, '_>) -> Option<Emulated> {
    Some(virtio("virtio-crypto", node.attribute("model")))
}

/// `<watchdog>`: one of the models is a PCI device.
pub(super) fn watchdog(node: Node<'_, '_>) -> Option<Emulated> {
    (node.attribute("model") == Some("i6300esb")).then(|| Emulated::named("i6300esb"))
}

/// `<vsock>`.
pub(super) fn vsock(node: Node<'_, '_>) -> Option<Emulated> {
    Some(virtio("vhost-vsock", node.attribute("model")))
}

/// `<input>`.
pub(super) fn input(node: Node<'_, '_>) -> Option<Emulated> {
    if node.attribute("bus") != Some("virtio") {
        return None;
    }
    let base = match node.attribute("type")? {
        "mouse" => "virtio-mouse",
        "tablet" => "virtio-tablet",
        "keyboard" => "virtio-keyboard",
        "passthrough" => "virtio-input-host",
        _ => return None,
    };
    Some(virtio(base, node.attribute("model")))
}

/// `<serial>`: on PCI only when asked for.
pub(super) fn serial(node: Node<'_, '_>) -> Option<Emulated> {
    (child_attribute(node, "target", "type") == Some("pci-serial")).then(|| Emulated::named("pci-serial"))
}

/// `<iommu>`: Intel's and AMD's are part of the chipset.
pub(super) fn iommu(node: Node<'_, '_>) -> Option<Emulated> {
    (node.attribute("model") == Some("virtio")).then(|| Emulated::named("virtio-iommu-pci"))
}

/// `<panic>`: one of the models is a PCI device (after libvirt 9.0).
pub(super) fn panic(node: Node<'_, '_>) -> Option<Emulated> {
    (node.attribute("model") == Some("pvpanic")).then(|| Emulated::named("pvpanic-pci"))
}

/// `<memory>` in `<devices>`: the virtio ones also have a function of their own.
pub(super) fn memory(node: Node<'_, '_>) -> Option<Emulated> {
    match node.attribute("model")? {
        "virtio-mem" => Some(Emulated::named("virtio-mem-pci")),
        "virtio-pmem" => Some(Emulated::named("virtio-pmem-pci")),
        _ => None,
    }
}

/// `<hostdev type='scsi_host'>`: the host's vhost-scsi behind a virtio device.
pub(super) fn scsi_host(node: Node<'_, '_>) -> Emulated {
    virtio("vhost-scsi", node.attribute("model"))
}

/// `<shmem>`: the shared memory is BAR 2. Size in bytes by default; without one, 4 MiB
/// (`qemuDomainShmemDefPostParse`), but for the doorbell, whose server alone knows it.
pub(super) fn shmem(reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<Emulated, ParseError> {
    let model = child_attribute(node, "model", "type").unwrap_or("ivshmem");
    let mut device = Emulated::named(model);
    let size = child(node, "size").filter(|size| !text(*size).is_empty());
    match size.map(|size| (size, value::size(&text(size), size.attribute("unit"), 1))) {
        Some((_, Ok(bytes))) => device.sizes.push(("size".to_owned(), bytes)),
        Some((size, Err(message))) => return reader.fail(size, format!("`<size>`: {message}")),
        None if model == "ivshmem-doorbell" => {}
        None => device.sizes.push(("size".to_owned(), Bytes(4 * MIB))),
    }
    if let Some((_, bytes)) = device.sizes.first()
        && (!bytes.get().is_power_of_two() || bytes.get() < MIB)
    {
        return reader
            .fail(node, format!("shared memory of {bytes}; it must be a power of two, 1 MiB or more"));
    }
    Ok(device)
}

/// `<pstore>` (after libvirt 9.0): its storage is a BAR.
pub(super) fn pstore(reader: &Reader<'_, '_>, node: Node<'_, '_>) -> Result<Emulated, ParseError> {
    let mut device = Emulated::named("acpi-erst");
    if let Some(size) = child(node, "size")
        && let Some(bytes) = reader.memory(size)?
    {
        device.sizes.push(("size".to_owned(), bytes));
    }
    Ok(device)
}

/// `<video>`. The first one is the primary display (`virDomainDefPostParseVideo`); sizes are KiB, rounded up to
/// powers of two, with libvirt's defaults (`virDomainVideoDefPostParse`, `virDomainVideoDefaultRAM`).
pub(super) fn video(
    reader: &Reader<'_, '_>,
    node: Node<'_, '_>,
    primary: bool,
) -> Result<Option<Emulated>, ParseError> {
    let Some(model) = child(node, "model") else { return Ok(Some(default_video())) };
    let size = |name: &str, default: u64| -> Result<Bytes, ParseError> {
        let kib = reader.number(model, name, Base::Ten, u64::from(u32::MAX))?.filter(|&kib| kib > 0);
        let bytes = kib.unwrap_or(default).next_power_of_two().saturating_mul(KIB);
        Ok(Bytes(if kib.is_none() && default == 0 { 0 } else { bytes }))
    };
    let is_3d = child_attribute(model, "acceleration", "accel3d") == Some("yes");
    let vhost_user = child_attribute(node, "driver", "name") == Some("vhostuser");
    let driver = match (model.attribute("type"), primary) {
        (None, _) => return Ok(Some(default_video())),
        (Some("virtio"), true) if vhost_user => "vhost-user-vga",
        (Some("virtio"), false) if vhost_user => "vhost-user-gpu-pci",
        (Some("virtio"), true) if is_3d => "virtio-vga-gl",
        (Some("virtio"), true) => "virtio-vga",
        (Some("virtio"), false) if is_3d => "virtio-gpu-gl-pci",
        (Some("virtio"), false) => "virtio-gpu-pci",
        (Some("qxl"), true) => "qxl-vga",
        (Some("qxl"), false) => "qxl",
        (Some("vga"), _) => "VGA",
        (Some("cirrus"), _) => "cirrus-vga",
        (Some("vmvga"), _) => "vmware-svga",
        (Some("bochs"), _) => "bochs-display",
        (Some(_), _) => return Ok(None),
    };
    let mut device = Emulated::named(driver);
    let sizes: &[(&str, &str, u64)] = match driver {
        "qxl-vga" | "qxl" => &[
            ("ram_size", "ram", 64 << 10),
            ("vram_size", "vram", 64 << 10),
            ("vram64_size_mb", "vram64", 0),
            ("vgamem_mb", "vgamem", 16 << 10),
        ],
        "VGA" | "vmware-svga" => &[("vgamem_mb", "vram", 16 << 10)],
        "bochs-display" => &[("vgamem", "vram", 16 << 10)],
        _ => &[],
    };
    for &(property, attribute, default) in sizes {
        device.sizes.push((property.to_owned(), size(attribute, default)?));
    }
    Ok(Some(device))
}

/// What libvirt takes when nobody chose (`qemuDomainDefaultVideoDevice`).
pub(super) fn default_video() -> Emulated {
    Emulated::named("cirrus-vga")
}
