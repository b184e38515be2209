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
mod firmware;
mod iommu;
mod json;
mod packages;
mod pci;
mod programs;
mod read;
mod version;

use std::path::{Path, PathBuf};

pub use facts::{FirmwareFile, FirmwareKind, HostCpu, HostFacts, PciFunction, Program, SCHEMA};
pub use firmware::{Depth, Descriptor, Wanted};
pub use iommu::ReservedRegion;
pub use json::HostFileError;
pub use pci::PciError;
pub use programs::FoundVersion;
pub(crate) use read::{attribute, bytes};
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

    /// The directory at which its file system begins.
    pub fn root(&self) -> &Path {
        &self.root
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

    /// One PCI function, as far as a guest sees it (group and node are not read); nothing else is read.
    pub fn pci_function(&self, address: PciAddress) -> Result<PciFunction, PciError> {
        pci::function(&self.root, address)
    }

    /// All PCI functions by address, and a note on each that could not be read.
    pub fn pci_functions(&self) -> (Vec<PciFunction>, Vec<String>) {
        pci::functions(&self.root)
    }

    /// Whether a function is PCI Express; `None` where its capabilities cannot be read (it takes root).
    /// A device that sleeps is woken up.
    pub fn is_pci_express(&self, address: PciAddress) -> Option<bool> {
        pci::is_express(&self.root, address)
    }

    /// QEMU's version, from libvirt's cache or the package database; no process is started.
    pub fn qemu_version(&self) -> Option<FoundVersion> {
        programs::qemu(&self.root)
    }

    /// libvirt's version, from its library's name or the package database; no process is started.
    pub fn libvirt_version(&self) -> Option<FoundVersion> {
        programs::libvirt(&self.root)
    }

    /// What a firmware file is; `None` when it cannot be read or is no firmware that is known here.
    pub fn firmware_file(&self, path: &Path, depth: Depth) -> Option<FirmwareFile> {
        firmware::file(&self.root, path, depth)
    }

    /// All firmware files, those that libvirt's descriptors name first and in its order, and a note on each
    /// descriptor that could not be read.
    pub fn firmware_files(&self, depth: Depth) -> (Vec<FirmwareFile>, Vec<String>) {
        firmware::files(&self.root, depth)
    }

    /// Where SeaBIOS may be, the most likely place first: that of the first that can be read is what QEMU loads.
    pub fn seabios_paths(&self) -> impl Iterator<Item = PathBuf> {
        firmware::seabios_paths(&self.root)
    }

    /// The firmware that libvirt picks for `<os firmware='efi'>` (or `bios`): the first descriptor that fits.
    pub fn firmware_for(&self, wanted: &Wanted<'_>) -> Option<Descriptor> {
        firmware::descriptors(&self.root).0.into_iter().find(|descriptor| descriptor.fits(wanted))
    }

    /// Everything, and notes in plain words on what could not be had. The IOMMU's width is that of the GPUs' units.
    pub fn facts(&self) -> (HostFacts, Vec<String>) {
        let (pci, mut notes) = self.pci_functions();
        let (firmware, firmware_notes) = self.firmware_files(Depth::Image);
        notes.extend(firmware_notes);
        let program = |found: FoundVersion| Program { version: found.version.to_string() };
        let gpus = pci.iter().filter(|f| catalogue::is_gpu(&f.class, &f.vendor, &f.device));
        let gpus: Vec<PciAddress> = gpus.map(|f| f.address).collect();
        let facts = HostFacts {
            schema: SCHEMA.to_owned(),
            cpu: Some(self.cpu()).filter(|cpu| *cpu != HostCpu::default()),
            iommu_bits: self.iommu_bits(&gpus),
            qemu: self.qemu_version().map(program),
            libvirt: self.libvirt_version().map(program),
            firmware,
            pci,
        };
        (facts, notes)
    }
}
