//! A guest in numbers: what the domain asks for, on this host, with this firmware.
//!
//! Joins the views of [`domain`](crate::domain), [`host`](crate::host) and [`catalogue`](crate::catalogue) into the
//! [`layout::Guest`](crate::layout::Guest) that the predictor takes, and remembers which function is which device.
//! What had to be assumed is a finding; what cannot be known is listed in [`Assembled::unknown`].

mod bus;
mod cpu;
mod cpu_model;
mod devices;
mod emulated;
mod firmware;
mod machine;

pub(crate) use cpu::{LIMIT_SINCE, MAXPHYSADDR_SINCE};
pub use cpu::{ResolvedCpu, WidthControl};
pub use devices::{HostDevice, Source};
pub use firmware::{FirmwareChoice, firmware_rules};

use crate::catalogue;
use crate::domain::{Domain, MachineFamily, UnresolvedKind, VirtType};
use crate::finding::{Code, Finding};
use crate::host::{HostFacts, Version};
use crate::layout::{Chipset, FunctionId, Guest, HotplugMemory};
use crate::units::{Bytes, GIB};

/// What the caller says beside the domain and the host.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// `--firmware`.
    pub firmware: Option<&'a FirmwareChoice>,
    /// `--assume-gpu`.
    pub assume_gpu: Option<&'static catalogue::Entry>,
    /// Whether the policy counts an id (vendor, device) as a GPU.
    pub also_gpu: &'a dyn Fn(&str, &str) -> bool,
    /// Where the host's facts come from.
    pub host_is: Source,
    /// Takes every interface whose network may hand out a virtual function for a large one.
    pub networks_as_vf: bool,
}

/// A guest ready for the predictor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembled {
    /// The numbers; `None` when the machine is not one whose layout is known.
    pub guest: Option<Guest>,
    /// The CPU and how its width can be changed.
    pub cpu: ResolvedCpu,
    /// Passed-through functions, in document order.
    pub devices: Vec<HostDevice>,
    /// Emulated functions with BARs: number in the layout, QEMU's name.
    pub emulated: Vec<(FunctionId, String)>,
    /// libvirt's version, if known.
    pub libvirt: Option<Version>,
    /// What keeps the answer from being known, one sentence each.
    pub unknown: Vec<String>,
    /// What was assumed.
    pub findings: Vec<Finding>,
}

impl Assembled {
    /// Whether this function is a GPU.
    pub fn is_gpu(&self, id: FunctionId) -> bool {
        self.devices.iter().any(|device| device.id == id && device.gpu)
    }

    /// Whether this function is a device rather than a bridge or built into the machine.
    pub fn is_device(&self, id: FunctionId) -> bool {
        self.devices.iter().any(|device| device.id == id)
            || self.emulated.iter().any(|(other, _)| *other == id)
    }

    /// Passed-through GPUs.
    pub fn gpus(&self) -> usize {
        self.devices.iter().filter(|device| device.gpu).count()
    }
}

/// Joins a domain and a host.
pub fn assemble(domain: &Domain, host: &HostFacts, options: &Options<'_>) -> Assembled {
    let mut findings = Vec::new();
    let mut unknown = Vec::new();
    let qemu = host.qemu.as_ref().and_then(|p| p.number());
    let libvirt = host.libvirt.as_ref().and_then(|p| p.number());
    let machine = machine::machine(domain, qemu);
    let host_phys_bits = machine.is_some_and(|m| m.host_phys_bits);
    let cpu = cpu::resolve(domain, host, host_phys_bits, &mut findings);

    let chipset = machine.map_or(Chipset::Q35, |m| m.rules.chipset);
    let bus = bus::build(domain, chipset, host, options, &mut findings, &mut unknown);
    let strange = |device: &HostDevice| {
        device.host.is_some_and(|address| !host.pci.iter().any(|function| function.address == address))
    };
    if options.host_is == Source::Sysfs && !bus.devices.is_empty() && bus.devices.iter().all(strange) {
        findings.push(Finding::warning(
            Code::NotTheHypervisor,
            "none of the domain's host devices is in this machine, so its CPU, IOMMU and firmware are hardly those \
             that count; give --host FILE with a snapshot taken by `barfit host` on the hypervisor",
        ));
    }
    for unresolved in &domain.unresolved {
        let text = format!("line {}: {}", unresolved.line, unresolved.what);
        findings.push(match unresolved.kind {
            UnresolvedKind::Mediated => {
                let text = format!("{text}: only the driver that makes it knows its BARs");
                unknown.push(text.clone());
                Finding::error(Code::MdevUnknown, text)
            }
            UnresolvedKind::Network => Finding::note(Code::NetworkMayBeVf, text),
            UnresolvedKind::SharedMemory => Finding::note(Code::SharedMemoryUnknown, text),
        });
    }
    let not_understood = &domain.command_line.not_understood;
    for (index, text) in not_understood.iter().enumerate() {
        // Ten `-set` are one statement.
        if !not_understood[..index].contains(text) {
            findings.push(Finding::warning(Code::CommandLineNotUnderstood, text.clone()));
        }
    }

    let guest = machine.and_then(|machine| {
        let firmware = firmware::firmware(domain, host, options.firmware, &mut findings)?;
        let default_hole = if machine.rules.chipset == Chipset::Q35 { 32 * GIB } else { 2 * GIB };
        Some(Guest {
            machine: machine.rules,
            ram: domain.memory.boot,
            hotplug: domain.memory.max.map(|max| HotplugMemory { max: max.size, slots: max.slots }),
            sgx_epc: domain.memory.sgx_epc,
            max_ram_below_4g: domain.command_line.max_ram_below_4g,
            pci_hole64: domain.command_line.pci_hole64.or(domain.pci_hole64).unwrap_or(Bytes(default_hole)),
            cpu: cpu.cpu,
            firmware,
            mmio64_mb: domain.command_line.mmio64.as_ref().and_then(|entry| entry.value.clone()),
            bus: bus.functions.into(),
        })
    });
    if guest.is_none() {
        let what = match (domain.family(), &domain.virt) {
            (_, VirtType::Other(kind)) => format!("domain type `{kind}` is not run by QEMU"),
            (MachineFamily::Q35 | MachineFamily::I440fx, _) => {
                "the firmware's rules are not known".to_owned()
            }
            _ => format!(
                "machine `{}` is neither q35 nor i440fx: its address layout is not known",
                domain.machine.as_deref().unwrap_or("(none)")
            ),
        };
        findings.push(Finding::warning(Code::NotSupported, what.clone()));
        unknown.push(what);
    }
    Assembled { guest, cpu, devices: bus.devices, emulated: bus.emulated, libvirt, unknown, findings }
}
