//! What the machine has: CPU width, IOMMU width, versions, firmware files, PCI functions with their BARs.
//!
//! The facts are plain data ([`HostFacts`], the file format `barfit/host/1`); reading this machine ([`Host`]) and
//! reading a file ([`HostFacts::from_json`]) give the same type, so that an answer can be had anywhere. Every field
//! but `schema` may be missing: missing means unknown, never zero.
//!
//! This room alone reads `/sys`, `/proc` and the package database. It starts no process, and its root directory is
//! given, so that tests use a tree of their own. Each question can be asked alone: a hook asks only for the devices
//! of its domain and for what costs microseconds.

mod cpu;
mod facts;
mod iommu;
mod json;
mod pci;
mod read;
mod version;

use std::path::{Path, PathBuf};

pub use facts::{FirmwareFile, FirmwareKind, HostCpu, HostFacts, PciFunction, Program, SCHEMA};
pub use iommu::ReservedRegion;
pub use json::HostFileError;
pub use pci::PciError;
pub use version::Version;

use crate::catalogue;
use crate::units::PciAddress;

/// A machine, by the directory at which its file system begins.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// This machine.
    pub fn here() -> Host {
        Host::at(Path::new("/"))
    }

    /// The machine whose `/` is at `root`.
    pub fn at(root: &Path) -> Host {
        Host { root: root.to_owned() }
    }

    /// The CPU; what `/proc/cpuinfo` does not say is unknown.
    pub fn cpu(&self) -> HostCpu {
        cpu::read_cpu(&self.root)
    }

    /// Width of the narrowest IOMMU that serves these functions, in bits; of all IOMMUs where none of them is known
    /// to be served by one. `None` without an IOMMU, or where its registers cannot be read.
    pub fn iommu_bits(&self, functions: &[PciAddress]) -> Option<u8> {
        iommu::width(&self.root, functions)
    }

    /// What the IOMMU keeps out of a guest's hands in this group.
    pub fn reserved_regions(&self, iommu_group: u32) -> Vec<ReservedRegion> {
        iommu::reserved_regions(&self.root, iommu_group)
    }

    /// One PCI function; nothing else is read.
    pub fn pci_function(&self, address: PciAddress) -> Result<PciFunction, PciError> {
        pci::function(&self.root, address)
    }

    /// All PCI functions by address, and a note on each that could not be read.
    pub fn pci_functions(&self) -> (Vec<PciFunction>, Vec<String>) {
        pci::functions(&self.root)
    }

    /// Whether a function is PCI Express; `None` where its capabilities cannot be read (it takes root).
    pub fn is_pci_express(&self, address: PciAddress) -> Option<bool> {
        pci::is_express(&self.root, address)
    }

    /// Everything, and notes in plain words on what could not be had. The IOMMU's width is that of the GPUs' units.
    pub fn facts(&self) -> (HostFacts, Vec<String>) {
        let (pci, notes) = self.pci_functions();
        let gpus = pci.iter().filter(|f| catalogue::is_gpu(&f.class, &f.vendor, &f.device));
        let gpus: Vec<PciAddress> = gpus.map(|f| f.address).collect();
        let facts = HostFacts {
            schema: SCHEMA.to_owned(),
            cpu: Some(self.cpu()).filter(|cpu| *cpu != HostCpu::default()),
            iommu_bits: self.iommu_bits(&gpus),
            qemu: None,
            libvirt: None,
            firmware: Vec::new(),
            pci,
        };
        (facts, notes)
    }
}
