//! A guest from a few numbers, for people who plan flavors before there is any XML.
//!
//! Writes the domain as a manager would hand it to libvirt, and the host facts that go with it; what follows is the
//! same path that every domain takes. Devices beside the GPUs are those of a plain cloud guest: a disk, a NIC, a
//! console, a display. Guest addresses are left to libvirt, which gives every GPU a root port of its own on q35.

use std::fmt::Write as _;

use crate::catalogue::Entry;
use crate::host::{HostCpu, HostFacts, PciFunction, SCHEMA};
use crate::layout::{Chipset, CpuVendor};
use crate::units::{Bytes, MIB, PciAddress, PhysBits};

/// What is planned.
#[derive(Clone, Debug)]
pub struct Flavor {
    /// How many GPUs, at most [`MOST_GPUS`].
    pub gpus: u8,
    /// Which.
    pub gpu: &'static Entry,
    /// RAM at boot, a whole number of MiB.
    pub ram: Bytes,
    /// `<maxMemory>` and its slots.
    pub max_memory: Option<(Bytes, u32)>,
    /// Chipset.
    pub chipset: Chipset,
    /// UEFI rather than BIOS.
    pub uefi: bool,
    /// The host's CPU vendor, where it is not in the host's facts.
    pub cpu_vendor: Option<CpuVendor>,
}

/// Most GPUs of a flavor: as many slots as a root bus has, less those that are taken.
pub const MOST_GPUS: u8 = 24;

impl Flavor {
    /// The domain, with so many phys-bits, or as many as QEMU gives by itself.
    pub fn xml(&self, bits: Option<PhysBits>) -> String {
        let mut xml = String::from("<domain type='kvm'>\n");
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a string does not fail.
            let _ = writeln!(xml, "  {text}");
        };
        line(format_args!("<name>{}x-{}</name>", self.gpus, self.gpu.slug));
        line(format_args!("<memory unit='MiB'>{}</memory>", self.ram.get() / MIB));
        if let Some((size, slots)) = self.max_memory {
            line(format_args!("<maxMemory slots='{slots}' unit='MiB'>{}</maxMemory>", size.get() / MIB));
        }
        line(format_args!("<vcpu>1</vcpu>"));
        let firmware = if self.uefi { " firmware='efi'" } else { "" };
        let machine = match self.chipset {
            Chipset::Q35 => "q35",
            Chipset::I440fx => "pc",
        };
        line(format_args!("<os{firmware}><type arch='x86_64' machine='{machine}'>hvm</type></os>"));
        let width = bits.map(|b| format!("<maxphysaddr mode='emulate' bits='{b}'/>")).unwrap_or_default();
        // Memory hot-plug needs a NUMA node, and libvirt says so.
        let numa = match self.max_memory {
            Some(_) => {
                format!("<numa><cell id='0' cpus='0' memory='{}' unit='MiB'/></numa>", self.ram.get() / MIB)
            }
            None => String::new(),
        };
        line(format_args!("<cpu mode='host-model'>{width}{numa}</cpu>"));
        line(format_args!("<devices>"));
        line(format_args!(
            "  <disk type='file' device='disk'><source file='/disk'/><target dev='vda' bus='virtio'/></disk>"
        ));
        line(format_args!(
            "  <interface type='network'><source network='default'/><model type='virtio'/></interface>"
        ));
        line(format_args!("  <console type='pty'/>"));
        line(format_args!("  <video><model type='virtio'/></video>"));
        for address in self.addresses() {
            line(format_args!(
                "  <hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' \
                 bus='{:#04x}' slot='0x00' function='0x0'/></source></hostdev>",
                address.bus
            ));
        }
        line(format_args!("</devices>"));
        xml.push_str("</domain>\n");
        xml
    }

    /// A host that has the GPUs, with the BARs of the catalogue, and the rest as given.
    pub fn host(&self, given: Option<&HostFacts>) -> HostFacts {
        let mut host = given.cloned().unwrap_or_default();
        host.schema = SCHEMA.to_owned();
        if let Some(vendor) = self.cpu_vendor {
            let name = match vendor {
                CpuVendor::Intel => "GenuineIntel",
                CpuVendor::Amd => "AuthenticAMD",
                CpuVendor::Other => "other",
            };
            host.cpu.get_or_insert_with(HostCpu::default).vendor = Some(name.to_owned());
        }
        let function = |address| PciFunction {
            address,
            vendor: self.gpu.vendor.to_owned(),
            device: self.gpu.device.to_owned(),
            class: self.gpu.class.to_owned(),
            iommu_group: None,
            numa_node: None,
            bars: Some(self.gpu.bars()),
        };
        host.pci = self.addresses().map(function).collect();
        host
    }

    /// Made-up host addresses, one bus a GPU.
    fn addresses(&self) -> impl Iterator<Item = PciAddress> + use<> {
        (1..=self.gpus).filter_map(|bus| PciAddress::new(0, bus, 0, 0))
    }
}
